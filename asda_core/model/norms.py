"""Norms over the width of tokens."""

from jaxtyping import Float
from torch import Tensor, nn

from asda_core.config import EncoderConfig


class RmsNorm(nn.RMSNorm):
    """`nn.RMSNorm` in the type of its weights, as autocast has `nn.LayerNorm`; no kernel is fast where types differ."""

    def forward(self, values: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows dim"]:
        """Scale to a root mean square of 1, and by the weights."""
        normed: Tensor = super().forward(values.to(self.weight.dtype))
        return normed


def make_norm(config: EncoderConfig) -> nn.Module:
    """The norm over the width that a config asks for."""
    make = RmsNorm if config.norm_type == "rms" else nn.LayerNorm
    return make(config.dim, eps=config.norm_eps)
