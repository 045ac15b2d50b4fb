"""Frozen dataclasses: every number that defines a run. The defaults are the published ASDA base model.

**Source** of the defaults: the released ASDA code and its pre-training configuration for AudioSet-2M.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from asda_core.errors import ConfigError
from asda_core.settings.compute import ROUNDING_ONLY_KEYS, ComputeConfig, divisors
from asda_core.settings.released import released_keys

ClassTokenPosition = Literal["first", "middle", "last", "none"]
NormPlacement = Literal["post", "pre"]
NormType = Literal["layer", "rms"]
Wiring = Literal["sequential", "paired", "paired_sum", "released"]
TokenOrder = Literal["time", "frequency"]
PositionType = Literal["sine_cosine", "learned"]
Crop = Literal["random", "first"]
Compat = Literal["default", "released"]
Algorithm = Literal["adamw", "adam", "fairseq_adam"]
Schedule = Literal["cosine", "constant", "inverse_sqrt", "fairseq_cosine"]
Padding = Literal["silence", "features"]
ResampleAxis = Literal["time", "channels"]
MAX_SEED = 2**32 - 1
"""Largest seed that NumPy accepts; the seed of a step, a multiple of it plus the step, fits PyTorch's 64 bits."""


def require(condition: bool, message: str) -> None:
    """Raise ConfigError with the message unless the condition holds."""
    if not condition:
        raise ConfigError(message)


@dataclass(frozen=True)
class PluginChoice:
    """A plugin by its name, with options that are checked against the plugin's own dataclass."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ClassTokenConfig:
    """Position and number of class tokens.

    `join_layer` counts blocks: 0 joins before the first block (as published), `depth - 1` before the last one.
    `position` is the place in the sequence; `none` omits the class token and uses the mean of the patches as summary.
    `count` class tokens (SSAST: 2) are adjacent, and their mean is the summary.
    """

    join_layer: int = 0
    position: ClassTokenPosition = "first"
    count: int = 1

    def __post_init__(self) -> None:
        require(self.count >= 1, f"encoder.class_token.count must be at least 1, not {self.count}.")
        require(self.position != "none" or self.count == 1, f"encoder.class_token.count {self.count} needs a position.")


@dataclass(frozen=True)
class PositionConfig:
    """Positional embeddings of the tokens.

    `sine_cosine` is computed for any grid. `learned` is a table for a `grid` of (time steps, bands), SSAST's for 10 s
    by default; its middle is used for fewer steps, and it is interpolated for more: in the release via 8 bands
    (`through_bands`), and for its own grid too when fine-tuning begins (`adapt_own_grid`).
    """

    type: PositionType = "sine_cosine"
    grid: tuple[int, int] = (64, 8)
    through_bands: int | None = None
    adapt_own_grid: bool = False

    def __post_init__(self) -> None:
        require(min(self.grid) > 0, f"encoder.positions.grid must be positive, not {self.grid}.")
        require((self.through_bands or 1) > 0, "encoder.positions.through_bands must be positive.")
        if self.type == "sine_cosine" and (self.grid, self.adapt_own_grid) != ((64, 8), False):
            raise ConfigError("encoder.positions.grid and adapt_own_grid are for a learned table; set type: learned.")


@dataclass(frozen=True)
class EncoderConfig:
    """Shape of the encoder. `mlp_ratio` 3.5 is ASDA's (EAT: 4); 0 omits the MLP, as Mamba's blocks do.

    Attributes:
        norm: "post" (ASDA, EAT) or "pre" (SSAST, SSAMBA); `norm_type` "layer" or "rms".
        pre_norm_residual: False drops the residual of pre-norm blocks, as the released code of EAT does.
        input_norm: normalise tokens before the first block (ASDA, EAT); `final_norm` after the last (SSAST).
        wiring: "sequential"; "paired" runs every second block on the reversed sequence and takes the mean of the
            pair; "paired_sum" takes the sum, which doubles the residual with every pair (Vim's `if_bidirectional`);
            "released" is the sum with the final norm applied twice, as SSAMBA's release does.
        token_order: order of the tokens, for mixers that depend on it: "time" lists all bands of a time step before
            the next one, "frequency" all time steps of a band (SSAST, SSAMBA).
        stride_frames, stride_bins: strides of overlapping patches; null for patches without overlap.
    """

    dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 3.5
    norm: NormPlacement = "post"
    pre_norm_residual: bool = True
    norm_eps: float = 1e-6
    norm_type: NormType = "layer"
    input_norm: bool = True
    final_norm: bool = False
    wiring: Wiring = "sequential"
    token_order: TokenOrder = "time"
    patch_frames: int = 16
    patch_bins: int = 16
    stride_frames: int | None = None
    stride_bins: int | None = None
    positions: PositionConfig = PositionConfig()
    mixer: PluginChoice = PluginChoice("differential")
    class_token: ClassTokenConfig = ClassTokenConfig()

    def __post_init__(self) -> None:
        for name in ("dim", "depth", "num_heads", "patch_frames", "patch_bins", "norm_eps"):
            require(getattr(self, name) > 0, f"encoder.{name} must be positive, not {getattr(self, name)}.")
        for name in ("step_frames", "step_bins"):
            require(getattr(self, name) > 0, f"encoder.{name.replace('step', 'stride')} must be positive.")
        require(0 <= self.mlp_ratio < math.inf, f"encoder.mlp_ratio must not be negative, not {self.mlp_ratio}.")
        require(not 0 < self.dim * self.mlp_ratio < 1, f"encoder.mlp_ratio {self.mlp_ratio} gives no hidden units.")
        if self.wiring != "sequential" and self.depth % 2:
            raise ConfigError(f"encoder.wiring {self.wiring!r} pairs blocks; encoder.depth {self.depth} is odd.")
        if self.wiring == "released" and not self.final_norm:
            raise ConfigError("encoder.wiring 'released' applies the final norm twice; set encoder.final_norm: true.")
        if self.dim % self.num_heads:
            raise ConfigError(f"encoder.dim {self.dim} is not a multiple of encoder.num_heads {self.num_heads}.")
        if self.dim % 4:
            raise ConfigError(f"encoder.dim {self.dim} must be a multiple of 4: positions are sin, cos of two axes.")
        if not 0 <= self.class_token.join_layer < self.depth:
            raise ConfigError(
                f"encoder.class_token.join_layer {self.class_token.join_layer} is not in 0..{self.depth - 1} "
                f"(encoder.depth is {self.depth})."
            )

    @property
    def step_frames(self) -> int:
        """Frames from one patch to the next."""
        return self.patch_frames if self.stride_frames is None else self.stride_frames

    @property
    def step_bins(self) -> int:
        """Bins from one patch to the next."""
        return self.patch_bins if self.stride_bins is None else self.stride_bins

    def grid(self, num_bins: int, num_frames: int) -> tuple[int, int]:
        """(time steps, bands) of the patches of features of this size; 0 where none fits."""
        times = max(0, (num_frames - self.patch_frames) // self.step_frames + 1)
        return times, max(0, (num_bins - self.patch_bins) // self.step_bins + 1)


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with linear warm-up and a cosine to `floor_lr`; rates are per update, gradient norms over all parameters.

    `decay_norms_and_biases` False exempts one-dimensional parameters from weight decay; the released training decays
    all parameters, since the exemption that it requests is never applied. `algorithm` "fairseq_adam" adds epsilon
    before the bias correction, and `schedule` "fairseq_cosine" begins at `floor_lr` and restarts at a tenth of the
    peak when training continues past its end, both as released. "adam" adds the decay to the gradient (SSAST);
    "inverse_sqrt" falls as `1 / sqrt(step)` after the warm-up (MFCC-gram transformers), "constant" stays at the peak.
    `clip_norm` 0 disables gradient clipping.
    """

    algorithm: Algorithm = "adamw"
    schedule: Schedule = "cosine"
    peak_lr: float = 5e-4
    floor_lr: float = 0.0
    warmup_steps: int = 106_666
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.05
    decay_norms_and_biases: bool = False
    clip_norm: float = 4.0

    def __post_init__(self) -> None:
        for name in ("peak_lr", "eps"):
            value = getattr(self, name)
            require(0 < value < math.inf, f"optimizer.{name} must be a positive number, not {value}.")
        for name in ("floor_lr", "warmup_steps", "weight_decay", "clip_norm"):
            value = getattr(self, name)
            require(0 <= value < math.inf, f"optimizer.{name} must not be negative, not {value}.")
        require(all(0 <= beta < 1 for beta in self.betas), f"optimizer.betas must lie in [0, 1), not {self.betas}.")


@dataclass(frozen=True)
class DataConfig:
    """Audio for training: clips per step, and the segment of each that is used.

    `clip_seconds` 10.255 gives 1,024 frames, 64 x 8 patches (a clip of 10 s has 998 frames); shorter clips are padded
    with silence. `crop` says where the segment of a longer clip begins; the released code always takes the first.
    `cache_mebibytes` of decoded audio are kept in memory; `workers` threads read the clips of a batch, `prefetch`
    batches are read ahead. Streamed shards are shuffled within blocks of `shuffle_clips` clips.

    Three defects of the release can be reproduced: `padding` "features" pads short clips after the log-mel, with a
    value louder than most audio (+0.467) instead of silence; `resample_along` "channels" resamples files of several
    channels along the wrong axis; `min_samples` excludes files of fewer samples (10,000 in the release).

    `batch_size` counts the clips of an update over all processes, and `micro_batch` those that pass through the model
    at a time; null: each process passes its share of the batch at once.
    """

    clip_seconds: float = 10.255
    batch_size: int = 48
    crop: Crop = "random"
    padding: Padding = "silence"
    resample_along: ResampleAxis = "time"
    min_samples: int = 0
    cache_mebibytes: int = 1024
    micro_batch: int | None = None
    workers: int = 1
    prefetch: int = 2
    shuffle_clips: int = 1024

    def __post_init__(self) -> None:
        require(0 < self.clip_seconds < math.inf, f"data.clip_seconds must be positive, not {self.clip_seconds}.")
        require(self.batch_size > 0, f"data.batch_size must be positive, not {self.batch_size}.")
        for name in ("min_samples", "cache_mebibytes"):
            require(getattr(self, name) >= 0, f"data.{name} must not be negative, not {getattr(self, name)}.")
        if self.micro_batch is not None and not (self.micro_batch > 0 and self.batch_size % self.micro_batch == 0):
            valid = divisors(self.batch_size)
            raise ConfigError(f"data.micro_batch {self.micro_batch} does not divide batch_size; valid: {valid}.")
        for name in ("workers", "prefetch", "shuffle_clips"):
            require(getattr(self, name) > 0, f"data.{name} must be at least 1, not {getattr(self, name)}.")


WITHOUT_INFLUENCE = (
    "log_every", "checkpoint_every", "keep_checkpoints", "data.cache_mebibytes", "data.workers", "data.prefetch",
    *ROUNDING_ONLY_KEYS,
)  # fmt: skip
"""Keys of `RunConfig` that cannot change a result; `signature` excludes them."""

ADDED: Mapping[str, Any] = {
    "compat": "default",
    "adapter": None,
    "encoder.pre_norm_residual": True,
    "encoder.norm_type": "layer",
    "encoder.input_norm": True,
    "encoder.final_norm": False,
    "encoder.wiring": "sequential",
    "encoder.token_order": "time",
    "encoder.stride_frames": None,
    "encoder.stride_bins": None,
    "encoder.positions": {"type": "sine_cosine", "grid": [64, 8], "through_bands": None, "adapt_own_grid": False},
    "encoder.class_token.count": 1,
    "optimizer.algorithm": "adamw",
    "optimizer.schedule": "cosine",
    "data.padding": "silence",
    "data.resample_along": "time",
    "data.min_samples": 0,
    "data.micro_batch": None,
    "compute.precision": "float32",
    "data.shuffle_clips": 1024,
}
"""Keys added later, with the former behaviour as value: `signature` excludes them at it, so older runs keep theirs."""


@dataclass(frozen=True)
class RunConfig:
    """One pre-training run. Its signature names the run folder.

    `compat` "released" sets keys that a config does not state to the values of `settings.released.RELEASED`, and
    plugins to the options that their specs name; the resulting model is comparable with one of the released code.

    With an `adapter` the encoder is frozen, the adapter is wrapped around it, and only the adapter and the objective
    are trained; the run must start from the weights of a checkpoint.
    """

    compat: Compat = "default"
    front_end: PluginChoice = PluginChoice("log_mel")
    encoder: EncoderConfig = EncoderConfig()
    objective: PluginChoice = PluginChoice("latent_regression")
    adapter: PluginChoice | None = None
    optimizer: OptimizerConfig = OptimizerConfig()
    data: DataConfig = DataConfig()
    compute: ComputeConfig = ComputeConfig()
    steps: int = 800_000
    seed: int = 1
    log_every: int = 50
    checkpoint_every: int = 2_000
    keep_checkpoints: int = 1

    without_influence: ClassVar[tuple[str, ...]] = WITHOUT_INFLUENCE
    added: ClassVar[Mapping[str, Any]] = ADDED

    @staticmethod
    def released_keys(plain: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the keys that `compat: released` sets in this plain config, which depend on the objective."""
        return released_keys(plain)

    def __post_init__(self) -> None:
        for name in ("steps", "seed"):
            require(getattr(self, name) >= 0, f"{name} must not be negative, not {getattr(self, name)}.")
        require(self.seed <= MAX_SEED, f"seed must be at most {MAX_SEED}, not {self.seed}.")
        for name in ("log_every", "checkpoint_every", "keep_checkpoints"):
            require(getattr(self, name) > 0, f"{name} must be positive, not {getattr(self, name)}.")
