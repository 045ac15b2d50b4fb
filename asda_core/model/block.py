"""One encoder block: a mixer that exchanges information between tokens, and an MLP applied to each token."""

from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from asda_core.config import EncoderConfig
from asda_core.errors import PluginError
from asda_core.layout import TokenLayout
from asda_core.model.norms import make_norm
from asda_core.model.recomputation import is_plain, with_recomputation

INIT_STD = 0.02
"""Standard deviation of new linear weights. **Source**: BERT, as the released code initialises all linear layers."""


class Mlp(nn.Module):
    """Two linear layers with an exact GELU between; it takes the layout to have the same signature as a mixer."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.expand = nn.Linear(dim, hidden)
        self.activation = nn.GELU()
        self.contract = nn.Linear(hidden, dim)

    def forward(
        self, tokens: Float[Tensor, "batch tokens dim"], layout: TokenLayout
    ) -> Float[Tensor, "batch tokens dim"]:
        """Expand, apply the GELU, contract."""
        return self._contracted(self.expand(tokens))

    def norm_and_forward(
        self, norm: nn.Module, tokens: Float[Tensor, "batch tokens dim"]
    ) -> tuple[Float[Tensor, "batch tokens dim"], Float[Tensor, "batch tokens dim"]]:
        """Return `norm(tokens)` and `forward` of it; the backward pass keeps `tokens` instead of `norm(tokens)`."""
        normed, hidden = with_recomputation(
            partial(self._normed_and_expanded, norm), tokens, modules=(norm, self.expand)
        )
        return normed, self._contracted(hidden)

    def _normed_and_expanded(self, norm: nn.Module, tokens: Tensor) -> tuple[Tensor, Tensor]:
        normed = norm(tokens)
        return normed, self.expand(normed)

    def _contracted(self, hidden: Tensor) -> Tensor:
        return with_recomputation(self._activated_and_contracted, hidden, modules=(self.activation, self.contract))

    def _activated_and_contracted(self, hidden: Tensor) -> Tensor:
        contracted: Tensor = self.contract(self.activation(hidden))
        return contracted


class Block(nn.Module):
    """Mixer and MLP, each with a residual and a norm.

    Post-norm, as ASDA and EAT::          Pre-norm, as SSAST::             Without MLP, as Mamba::

        r = norm1(t + mixer(t))               r = t + mixer(norm1(t))          m = mixer(norm1(t))
        m = mlp(r)                            m = mlp(norm2(r))                y = t + m
        y = norm2(r + m)                      y = r + m

    `forward` returns y and m: the released training regresses on m, the output of the MLP before its residual.

    **Differs**: the released pre-norm branch loses its residual and returns 2 m; no released setting uses it.
    `pre_norm_residual` False reproduces this.

    Attributes:
        drop_path: probability that a clip skips a branch in training; set by fine-tuning.
    """

    def __init__(self, config: EncoderConfig, mixer: nn.Module) -> None:
        super().__init__()
        self.pre_norm = config.norm == "pre"
        self.drop_path = 0.0
        self.pre_norm_residual = config.pre_norm_residual
        self.mixer = mixer
        self.norm1 = make_norm(config)
        self.mlp: nn.Module | None = None
        self.norm2: nn.Module | None = None
        if config.mlp_ratio:
            self.mlp = Mlp(config.dim, int(config.dim * config.mlp_ratio))
            self.norm2 = make_norm(config)

    def forward(
        self, tokens: Float[Tensor, "batch tokens dim"], layout: TokenLayout
    ) -> tuple[Float[Tensor, "batch tokens dim"], Float[Tensor, "batch tokens dim"]]:
        """Return (block output, output of the MLP or, without one, of the mixer)."""
        branch = self._mixed(self.norm1(tokens) if self.pre_norm else tokens, layout)
        mixed = tokens + self._dropped(branch)
        if self.mlp is None or self.norm2 is None:
            return (mixed if self.pre_norm else self.norm1(mixed)), branch
        if self.pre_norm:
            _, branch = self._norm_and_mlp(self.norm2, self.mlp, mixed, layout)
            return (mixed if self.pre_norm_residual else branch) + self._dropped(branch), branch
        mixed, branch = self._norm_and_mlp(self.norm1, self.mlp, mixed, layout)
        return self.norm2(mixed + self._dropped(branch)), branch

    def _mixed(self, tokens: Tensor, layout: TokenLayout) -> Tensor:
        """What the mixer returns, which must be like its tokens; under autocast it may have another precision."""
        branch: object = self.mixer(tokens, layout)
        name = type(self.mixer).__name__
        if not isinstance(branch, Tensor):
            raise PluginError(f"the mixer {name} returned {type(branch).__name__}, not a tensor.")
        if branch.shape != tokens.shape:
            raise PluginError(
                f"the mixer {name} returned shape {tuple(branch.shape)} for tokens of shape {tuple(tokens.shape)}; "
                "they must be equal."
            )
        if torch.promote_types(tokens.dtype, branch.dtype) not in (tokens.dtype, torch.float32):
            raise PluginError(f"the mixer {name} returned {branch.dtype} for tokens of {tokens.dtype}.")
        return branch

    def _norm_and_mlp(
        self, norm: nn.Module, mlp: nn.Module, tokens: Tensor, layout: TokenLayout
    ) -> tuple[Tensor, Tensor]:
        if isinstance(mlp, Mlp) and is_plain(mlp, (Mlp,)):
            return mlp.norm_and_forward(norm, tokens)
        normed = norm(tokens)
        return normed, mlp(normed, layout)

    def _dropped(self, branch: Tensor) -> Tensor:
        """Stochastic depth: in training, zero the branch for some clips and scale it up for the others."""
        if not (self.training and self.drop_path):
            return branch
        keep = 1 - self.drop_path
        mask = torch.rand(len(branch), 1, 1, device=branch.device) < keep
        return branch * mask / keep


def init_linear_layers(module: nn.Module) -> None:
    """Draw the weights of all linear layers in `module` from a normal of standard deviation 0.02; zero the biases."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=INIT_STD)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
