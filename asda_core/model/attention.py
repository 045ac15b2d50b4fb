"""Building blocks shared by attention mixers: fused attention, the softmax map, and subtraction of a second map."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention

from asda_core.errors import ConfigError
from asda_core.layout import TokenLayout, mean_over_valid
from asda_core.model.block import init_linear_layers
from asda_core.model.norms import RmsNorm
from asda_core.model.recomputation import with_recomputation

LambdaMode = Literal["vectors", "scalars", "fixed", "token"]

VECTOR_STD = 0.1
"""Initial standard deviation of the four vectors of lambda. **Source**: Differential Transformer, released code."""
HEAD_NORM_EPS = 1e-5
"""Epsilon of the per-head norm. **Source**: Differential Transformer, released code."""


@dataclass(frozen=True)
class AttentionMaps:
    """Attention maps of a mixer; iterating yields the one or two softmax maps.

    Attributes:
        first: softmax per query; rows sum to 1 over the tokens that are not padding.
        second: the noise map, which is subtracted, repeated for all heads that share it; None if there is none.
        weight: lambda, broadcastable to (batch, heads, tokens, 1); None without a second map.
        mean: mean row of the first map, which DINT adds with the same weight; None for other mixers.
    """

    first: Float[Tensor, "batch heads tokens tokens"]
    second: Float[Tensor, "batch heads tokens tokens"] | None = None
    weight: Tensor | None = None
    mean: Float[Tensor, "batch heads one tokens"] | None = None

    @property
    def difference(self) -> Float[Tensor, "batch heads tokens tokens"]:
        """Map applied to the values: `first - weight * second [+ weight * mean]`; `first` without a second map.

        Its rows sum to 1 - weight, or to 1 with `mean`.
        """
        if self.second is None or self.weight is None:
            return self.first
        subtracted = self.second if self.mean is None else self.second - self.mean
        return self.first - self.weight * subtracted

    def __iter__(self) -> Iterator[Tensor]:
        yield self.first
        if self.second is not None:
            yield self.second


def split_heads(
    projected: Float[Tensor, "batch tokens projections"], parts: int, num_heads: int
) -> Float[Tensor, "parts batch heads tokens width"]:
    """Split projections that were computed at once, such as queries, keys and values, and each of them into heads."""
    return torch.unflatten(projected, 2, (parts, num_heads, -1)).permute(2, 0, 3, 1, 4)


def softmax_map(
    query: Float[Tensor, "batch heads tokens width"],
    key: Float[Tensor, "batch heads tokens width"],
    layout: TokenLayout,
) -> Float[Tensor, "batch heads tokens tokens"]:
    """`softmax(q k^T / sqrt(width))`: rows sum to 1, padding has weight 0.

    **Source**: Vaswani et al. 2017, equation 1.
    """
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    if layout.padding is not None:
        scores = scores.masked_fill(layout.padding[:, None, None, :], -torch.inf)
    softmax: Tensor = scores.softmax(dim=-1)
    return softmax


def attend(
    query: Float[Tensor, "batch heads queries width"],
    key: Float[Tensor, "batch heads tokens width"],
    value: Float[Tensor, "batch heads tokens values"],
    layout: TokenLayout,
) -> Float[Tensor, "batch heads queries values"]:
    """Compute `softmax_map(query, key) @ value` without materialising the map.

    The fused kernel requires equal widths: where values are wider, queries and keys are padded with zeros, which
    changes no score.
    """
    scale = query.shape[-1] ** -0.5
    missing = value.shape[-1] - query.shape[-1]
    if missing > 0:
        query, key = pad(query, (0, missing)), pad(key, (0, missing))
    allowed = None if layout.padding is None else layout.valid[:, None, None, :]
    mixed: Tensor = scaled_dot_product_attention(query, key, value, attn_mask=allowed, scale=scale)
    return mixed


def initial_lambda(mode: LambdaMode, lambda_init: float | None, layer: int) -> float:
    """Initial value of lambda: `lambda_init` if given, otherwise by depth; 0 in mode "token", which has none.

    Raises:
        ConfigError: an initial value is given in mode "token".
    """
    if mode != "token":
        return lambda_by_depth(layer) if lambda_init is None else lambda_init
    if lambda_init is not None:
        raise ConfigError("encoder.mixer.options.lambda_init has no effect with lambda_mode 'token'; leave it out.")
    return 0.0


def lambda_by_depth(layer: int) -> float:
    """Return `0.8 - 0.6 exp(-0.3 layer)`, with layers counted from 0. **Source**: Ye et al. 2025, equation 3."""
    return 0.8 - 0.6 * math.exp(-0.3 * layer)


class Lambda(nn.Module):
    """Lambda, the weight of the second map.

    "vectors": `exp(q1.k1) - exp(q2.k2) + start`, four learned vectors shared by the heads of a layer (Ye et al. 2025,
    eq. 3); "scalars": `exp(a) - exp(b) + start`, two learned scalars; "fixed": `start`; "token":
    `sigmoid(w_h . token)` per token and head (Differential Transformer V2), without an initial value.
    """

    def __init__(self, mode: LambdaMode, start: float, width: int, num_heads: int, dim: int) -> None:
        super().__init__()
        if not math.isfinite(start):
            raise ConfigError(f"encoder.mixer.options.lambda_init must be finite, not {start}.")
        self.mode, self.start = mode, start
        if mode == "vectors":
            self.vectors = nn.Parameter(torch.randn(4, width) * VECTOR_STD)  # q1, k1, q2, k2
        elif mode == "scalars":
            self.scalars = nn.Parameter(torch.zeros(2))
        elif mode == "token":
            self.gate = nn.Linear(dim, num_heads, bias=False)

    def no_weight_decay(self) -> list[str]:
        """The learned vectors or scalars; the matrix of mode "token" is decayed like any other."""
        return [name for name, _ in self.named_parameters(recurse=False)]

    def forward(self, tokens: Float[Tensor, "batch tokens dim"]) -> Tensor:
        """Return lambda, broadcastable to (B, H, N, width)."""
        if self.mode == "token":
            weight: Tensor = self.gate(tokens).sigmoid().transpose(1, 2).unsqueeze(-1)  # (B, H, N, 1)
            return weight
        if self.mode == "fixed":
            return tokens.new_tensor(self.start)
        if self.mode == "vectors":
            query1, key1, query2, key2 = self.vectors
            first, second = (query1 * key1).sum(), (query2 * key2).sum()
        else:
            first, second = self.scalars
        learned: Tensor = first.exp() - second.exp() + self.start
        return learned


@dataclass(frozen=True)
class Heads:
    """Number and width of the heads.

    Attributes:
        signal, noise: number of heads whose maps are kept and subtracted; each noise head is shared by `signal / noise`
            neighbouring signal heads.
        width: of queries and keys.
        value_width: of values; `signal * value_width` is the width of the tokens.
        shared_keys: whether a noise head uses the keys of its signal head and has only its own queries.
    """

    signal: int
    noise: int
    width: int
    value_width: int
    shared_keys: bool = False


class SubtractiveAttention(nn.Module):
    """`gain * norm((A1 - lambda A2 [+ lambda G]) v)` per head, then a linear map.

    `Ai = softmax(qi ki^T / sqrt(width))`; G repeats the mean row of A1 (DINT), which makes rows sum to 1. The rows of
    `qkv` are: signal and noise queries, signal and noise keys, values. `by_formula` True materialises the maps and
    subtracts them (N^2 memory); otherwise a fused kernel multiplies each map with the values.

    **Source**: Ye et al. 2025, equations 1 to 4; the mixers that use it state what they change.
    """

    def __init__(
        self, dim: int, heads: Heads, weight: Lambda, norm: bool, bias: bool = False, add_mean: bool = False
    ) -> None:
        super().__init__()
        if heads.signal % heads.noise:
            raise ConfigError(
                f"the {heads.signal} signal heads cannot be divided evenly among {heads.noise} noise heads."
            )
        self.heads, self.weight, self.add_mean = heads, weight, add_mean
        self.by_formula = False
        keys = heads.signal + (0 if heads.shared_keys else heads.noise)
        self.sizes = ((heads.signal + heads.noise) * heads.width, keys * heads.width, dim)
        self.qkv = nn.Linear(dim, sum(self.sizes), bias=bias)
        self.norm = RmsNorm(heads.value_width, eps=HEAD_NORM_EPS) if norm else nn.Identity()
        self.gain = 1 - weight.start if norm else 1.0
        if not self.gain:
            raise ConfigError(
                "encoder.mixer.options.lambda_init 1 zeroes normalised heads, which are scaled by 1 - lambda_init."
            )
        self.proj = nn.Linear(dim, dim)
        init_linear_layers(self)

    def forward(
        self, tokens: Float[Tensor, "batch tokens dim"], layout: TokenLayout
    ) -> Float[Tensor, "batch tokens dim"]:
        """Attend to all tokens that are not padding with both maps, and take the difference."""
        query1, query2, key1, key2, value = self._split(tokens)
        weight = self.weight(tokens)
        shared = self.heads.signal // self.heads.noise
        if self.by_formula:
            return self._projected(self._maps(query1, query2, key1, key2, weight, layout).difference @ value)
        signal = attend(query1, key1, value, layout)
        batch, _, num_tokens, width = value.shape
        grouped = value.reshape(batch, self.heads.noise, shared, num_tokens, width).transpose(2, 3).flatten(3)
        noise = attend(query2, key2, grouped, layout)  # (B, noise, N, shared * width)
        project = partial(self._difference_projected, layout)
        return with_recomputation(project, signal, noise, weight, modules=(self.norm, self.proj))

    def _difference_projected(self, layout: TokenLayout, signal: Tensor, noise: Tensor, weight: Tensor) -> Tensor:
        shared = self.heads.signal // self.heads.noise
        noise = noise.reshape(*noise.shape[:3], shared, self.heads.value_width).transpose(2, 3).flatten(1, 2)
        mixed = signal - weight * noise
        if self.add_mean:  # every row of G is the mean row of A1, so G v is the mean of A1 v
            mixed = mixed + weight * mean_over_valid(signal, layout).unsqueeze(2)
        return self._projected(mixed)

    def _projected(self, mixed: Tensor) -> Tensor:
        projected: Tensor = self.proj((self.norm(mixed) * self.gain).transpose(1, 2).flatten(2))
        return projected

    def maps(self, tokens: Float[Tensor, "batch tokens dim"], layout: TokenLayout) -> AttentionMaps:
        """Return A1 and A2 of every signal head, lambda, and for DINT the mean row of A1."""
        query1, query2, key1, key2, _ = self._split(tokens)
        return self._maps(query1, query2, key1, key2, self.weight(tokens), layout)

    def _maps(
        self, query1: Tensor, query2: Tensor, key1: Tensor, key2: Tensor, weight: Tensor, layout: TokenLayout
    ) -> AttentionMaps:
        first, second = softmax_map(query1, key1, layout), softmax_map(query2, key2, layout)
        second = second.repeat_interleave(self.heads.signal // self.heads.noise, dim=1)
        return AttentionMaps(
            first, second, weight, mean_over_valid(first, layout).unsqueeze(2) if self.add_mean else None
        )

    def _split(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """q1, q2, k1, k2, v, each (B, H, N, width)."""
        query, key, value = self.qkv(tokens).split(self.sizes, dim=2)
        heads = self.heads
        query, key = (part.unflatten(2, (-1, heads.width)).transpose(1, 2) for part in (query, key))
        value = value.unflatten(2, (-1, heads.value_width)).transpose(1, 2)
        key1 = key[:, : heads.signal]
        key2 = key1[:, :: heads.signal // heads.noise] if heads.shared_keys else key[:, heads.signal :]
        return query[:, : heads.signal], query[:, heads.signal :], key1, key2, value


@dataclass(frozen=True)
class SubtractionConfig:
    """Settings shared by mixers of the Differential Transformer family; the defaults are the published ones.

    Attributes:
        lambda_mode: "vectors" (published), "scalars" (timm's `dual_lambda`), "fixed", or "token" (a sigmoid for each
            token and head, as in V2).
        lambda_init: initial value of lambda; null: `0.8 - 0.6 exp(-0.3 layer)`. "token" has neither it nor the gain.
        head_norm: whether each head is normalised (RMS) and multiplied by `1 - lambda_init`.
        qkv_bias: whether query, key and value have a bias.
    """

    lambda_mode: LambdaMode = "vectors"
    lambda_init: float | None = None
    head_norm: bool = True
    qkv_bias: bool = False


def build_paired_attention(
    config: SubtractionConfig, dim: int, num_heads: int, layer: int, add_mean: bool = False
) -> SubtractiveAttention:
    """Build attention with heads in pairs, one signal and one noise head, and values twice as wide.

    Raises:
        ConfigError: the number of heads is odd, or the initial value of lambda does not fit the mode.

    **Source**: Ye et al. 2025, section 2.1.
    """
    if num_heads % 2:
        raise ConfigError(f"this mixer pairs its heads: encoder.num_heads must be even, not {num_heads}.")
    heads, width = num_heads // 2, dim // num_heads
    start = initial_lambda(config.lambda_mode, config.lambda_init, layer)
    weight = Lambda(config.lambda_mode, start, width, heads, dim)
    shape = Heads(heads, heads, width, 2 * width)
    return SubtractiveAttention(dim, shape, weight, config.head_norm, config.qkv_bias, add_mean)
