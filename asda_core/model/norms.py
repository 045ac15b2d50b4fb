"""Norms over the token width."""

from jaxtyping import Float
from torch import Tensor, nn

from asda_core.config import EncoderConfig


class RmsNorm(nn.RMSNorm):
    """`nn.RMSNorm` in the dtype of its weights, as autocast runs `nn.LayerNorm` on a GPU; mixed dtypes are slow."""

    def forward(self, values: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows dim"]:
        """Scale to a root mean square of 1, then by the weights."""
        normed: Tensor = super().forward(values.to(self.weight.dtype))
        return normed


def make_norm(config: EncoderConfig) -> nn.Module:
    """Return the norm over the token width that the config selects."""
    make = RmsNorm if config.norm_type == "rms" else nn.LayerNorm
    return make(config.dim, eps=config.norm_eps)
