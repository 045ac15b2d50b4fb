"""Frozen dataclasses of fine-tuning: the head, and a recipe. The defaults are ASDA's for ESC-50, its defects corrected.

**Source** of the defaults: released fine-tuning of ASDA and EAT (one GPU).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from asda_core.config import MAX_SEED, Compat, DataConfig, OptimizerConfig, PluginChoice, require
from asda_core.settings.released import FINETUNING

Pooling = Literal["summary", "mean", "linear_softmax", "attentive"]
Mode = Literal["full", "linear", "attentive", "last_blocks", "adapter"]
MODES: tuple[Mode, ...] = ("full", "linear", "attentive", "last_blocks", "adapter")
Loss = Literal["cross_entropy", "binary_cross_entropy"]
LossDivisor = Literal["clips", "labels"]
Selection = Literal["auto", "last", "valid", "test"]
MixupInput = Literal["features", "audio"]
MixupUnit = Literal["batch", "clip"]

CLIP_SECONDS = 5.135
"""512 frames: a window of 25 ms and 511 hops of 10 ms. **Source**: released ESC-50 recipe."""
RESAMPLES = 1000
"""Bootstrap resamples for an interval; the ends of one of 95 % then rest on the 25 lowest and highest."""


@dataclass(frozen=True)
class ClassifierConfig:
    """A head on the encoder: pooling, LayerNorm, linear.

    Attributes:
        num_classes: width of the output.
        pooling: "summary" (the class token), "mean" of the patches, "linear_softmax" over them, or "attentive" (a
            learned query attends over summary and patches).
        norm_eps: epsilon of the LayerNorm; 1e-6 in the release, 1e-5 in EAT's Hugging Face layout.
        multi_label: whether classes are predicted independently: probabilities are then sigmoids, otherwise a softmax.
        labels: identifier of each class; empty if unknown.
        num_heads: attention heads of attentive pooling.
    """

    num_classes: int
    pooling: Pooling = "summary"
    norm_eps: float = 1e-6
    multi_label: bool = True
    labels: tuple[str, ...] = ()
    num_heads: int = 1

    def __post_init__(self) -> None:
        require(self.num_classes > 0, f"classifier.num_classes must be positive, not {self.num_classes}.")
        require(self.num_heads > 0, f"classifier.num_heads must be positive, not {self.num_heads}.")
        require(
            len(self.labels) in (0, self.num_classes),
            f"classifier.labels has {len(self.labels)} names for {self.num_classes} classes.",
        )


@dataclass(frozen=True)
class MixupConfig:
    """Mixing pairs of clips.

    Attributes:
        probability: probability that a batch (or a clip) is mixed; 0 disables mixup.
        alpha: the weight is drawn from Beta(alpha, alpha).
        of: "features" as ASDA and EAT release it, or "audio" as AST and its family do.
        each: one weight for a whole "batch" (ASDA, EAT), or one for each "clip".
    """

    probability: float = 0.0
    alpha: float = 0.8
    of: MixupInput = "features"
    each: MixupUnit = "batch"

    def __post_init__(self) -> None:
        require(0 <= self.probability <= 1, f"augment.mixup.probability must lie in [0, 1], not {self.probability}.")
        require(0 < self.alpha < float("inf"), f"augment.mixup.alpha must be positive, not {self.alpha}.")


@dataclass(frozen=True)
class SpecAugmentConfig:
    """One mask over bins and one over frames of each clip, of a random width.

    Attributes:
        share: largest width as a share of the spectrogram, for both axes; 0 uses `bins` and `frames`.
        bins, frames: largest widths.
    """

    share: float = 0.0
    bins: int = 0
    frames: int = 0

    def __post_init__(self) -> None:
        require(0 <= self.share <= 1, f"augment.spec_augment.share must lie in [0, 1], not {self.share}.")
        require(min(self.bins, self.frames) >= 0, "augment.spec_augment.bins and frames must not be negative.")


@dataclass(frozen=True)
class AugmentConfig:
    """Augmentation of training clips, in this order: audio, features, batch.

    Attributes:
        roll: whether a clip is shifted circularly and scaled by 0.5 + Beta(10, 10).
        noise: largest amplitude of uniform noise on the normalised features; 0.1 in the released Speech Commands
            recipe.
        time_shift: largest circular shift of the features in frames; 10 in that recipe.
        mixup: mixing of pairs of clips.
        spec_augment: masks over bins and frames.
    """

    roll: bool = False
    noise: float = 0.0
    time_shift: int = 0
    mixup: MixupConfig = MixupConfig()
    spec_augment: SpecAugmentConfig = SpecAugmentConfig()

    def __post_init__(self) -> None:
        require(self.noise >= 0, f"augment.noise must not be negative, not {self.noise}.")
        require(self.time_shift >= 0, f"augment.time_shift must not be negative, not {self.time_shift}.")


@dataclass(frozen=True)
class SamplingConfig:
    """How often a training clip is drawn.

    Attributes:
        weights: "uniform", "balanced" (by the rarity of a clip's labels), or a text file with one weight per line, in
            the order of the training clips; or with a name and a weight per line, which may list other clips too.
        clips_per_epoch: draws per epoch; null for the number of clips. 200,000 for AudioSet-2M.
        replacement: whether a clip can be drawn twice in an epoch; false in the released recipe.
    """

    weights: str = "uniform"
    clips_per_epoch: int | None = None
    replacement: bool = False

    def __post_init__(self) -> None:
        require((self.clips_per_epoch or 1) > 0, "sampling.clips_per_epoch must be positive.")


@dataclass(frozen=True)
class StepDecayConfig:
    """Decay of the learning rate by a factor at the end of certain epochs, on top of the schedule (AST, SSAST, AAT).

    Attributes:
        first_epoch: epoch after which the rate first decays; 0 for never.
        every: epochs between decays.
        factor: factor on the rate at each decay.
    """

    first_epoch: int = 0
    every: int = 1
    factor: float = 0.85

    def __post_init__(self) -> None:
        require(self.first_epoch >= 0, f"step_decay.first_epoch must be 0 or more, not {self.first_epoch}.")
        require(self.every > 0, f"step_decay.every must be 1 or more, not {self.every}.")
        require(0 < self.factor <= 1, f"step_decay.factor must lie in (0, 1], not {self.factor}.")


@dataclass(frozen=True)
class FinetuneOptimizerConfig(OptimizerConfig):
    """`OptimizerConfig` with the rates of the released recipe for ESC-50."""

    peak_lr: float = 5e-5
    floor_lr: float = 1e-6
    warmup_steps: int = 400
    clip_norm: float = 0.0


@dataclass(frozen=True)
class FinetuneDataConfig(DataConfig):
    """`DataConfig` with clips of 512 frames."""

    clip_seconds: float = CLIP_SECONDS


@dataclass(frozen=True)
class FinetuneConfig:
    """Recipe for fine-tuning a checkpoint into a classifier.

    Attributes:
        compat: "released" sets the keys of `settings.released.FINETUNING` that the recipe does not state.
        mode: what is trained: "full", "linear" (head alone), "attentive" (head with attentive pooling), "last_blocks",
            or "adapter"; the head is always trained.
        blocks: number of trained blocks, for mode "last_blocks".
        adapter: plugin, for mode "adapter".
        mixer: another mixer, such as `frequency_time`, that takes over the weights of the checkpoint's; null keeps it.
        stride_frames, stride_bins: distance between patches, if they overlap more than in pre-training (SSAST: 10
            instead of 16); null keeps those of the checkpoint.
        pooling: what the head reads.
        loss: "cross_entropy" needs clips of one label; "binary_cross_entropy" is summed over classes.
        loss_per: divisor of the loss of a batch; "labels" as in the release, for clips with several.
        label_smoothing: share of a label that is spread over all classes; for cross entropy only.
        layer_decay: factor from a block's rate to that of the block below; 1 for none. For modes that train blocks.
        decay_embeddings: whether patches and class token count as the layer below the first block; the release trains
            them at the full rate.
        drop_path: probability of dropping the branches of the last block, decreasing to 0 for the first.
        head_rate: factor on the learning rate of the head.
        front_end: options that differ from the checkpoint's front end, such as mean and std of the data.
        optimizer, step_decay: learning rates.
        data: clips; longer files are cropped at random in training, and processed in windows in evaluation.
        augment, sampling: augmentation and sampling of the training clips.
        steps, epochs: length of the training; one of the two is given, the other is 0.
        evaluations: number of evaluations on the validation clips, evenly spaced over the training.
        select: which weights are kept: "last", the best on "valid", or the best on "test" clips as papers of the field
            report for ESC-50 (optimistically biased); "auto" is "valid" if there are validation clips and no average
            is kept, otherwise "last".
        patience: evaluations without improvement after which training ends; null for no early stopping.
        valid_share: share of the training clips held out for validation if the data names none.
        average_from_epoch: first epoch at whose end the weights enter the average that is kept (SSAST); 0 for none.
        bootstrap: bootstrap resamples for the intervals.
        by_mode: mode, or name of an adapter -> keys that differ for it.
    """

    compat: Compat = "default"
    mode: Mode = "full"
    blocks: int = 0
    adapter: PluginChoice | None = None
    mixer: PluginChoice | None = None
    stride_frames: int | None = None
    stride_bins: int | None = None
    pooling: Pooling = "summary"
    loss: Loss = "cross_entropy"
    loss_per: LossDivisor = "clips"
    label_smoothing: float = 0.0
    layer_decay: float = 0.65
    decay_embeddings: bool = True
    drop_path: float = 0.1
    head_rate: float = 1.0
    front_end: Mapping[str, Any] = field(default_factory=dict)
    optimizer: FinetuneOptimizerConfig = FinetuneOptimizerConfig()
    step_decay: StepDecayConfig = StepDecayConfig()
    data: FinetuneDataConfig = FinetuneDataConfig()
    augment: AugmentConfig = AugmentConfig()
    sampling: SamplingConfig = SamplingConfig()
    steps: int = 0
    epochs: float = 0.0
    evaluations: int = 20
    select: Selection = "auto"
    patience: int | None = None
    valid_share: float = 0.0
    average_from_epoch: int = 0
    bootstrap: int = RESAMPLES
    seed: int = 1
    log_every: int = 50
    checkpoint_every: int = 500
    by_mode: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    without_influence: ClassVar[tuple[str, ...]] = (
        "log_every",
        "checkpoint_every",
        "data.cache_mebibytes",
        "data.workers",
        "data.prefetch",
        "data.shuffle_clips",
        "by_mode",
        "bootstrap",
    )
    added: ClassVar[Mapping[str, Any]] = {"stride_frames": None, "stride_bins": None, "data.micro_batch": None}

    @staticmethod
    def released_keys(plain: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the keys that `compat: released` sets."""
        return FINETUNING

    def __post_init__(self) -> None:
        require((self.steps > 0) != (self.epochs > 0), "give either steps or epochs, as a positive number.")
        require(self.epochs < math.inf, f"epochs must be a finite number, not {self.epochs}.")
        require(self.data.micro_batch is None, "data.micro_batch is only for pre-training; remove it.")
        require(
            (self.mode == "last_blocks") == (self.blocks > 0),
            "blocks must be > 0 in mode last_blocks, and 0 otherwise.",
        )
        require(
            (self.mode == "adapter") == (self.adapter is not None),
            "mode adapter needs an adapter; other modes take none.",
        )
        require(self.mode != "attentive" or self.pooling == "attentive", "mode attentive needs pooling: attentive.")
        for name in ("layer_decay", "head_rate"):
            require(getattr(self, name) > 0, f"{name} must be positive, not {getattr(self, name)}.")
        for name in ("drop_path", "label_smoothing", "valid_share"):
            require(0 <= getattr(self, name) < 1, f"{name} must lie in [0, 1), not {getattr(self, name)}.")
        for name in ("average_from_epoch", "bootstrap", "seed"):
            require(getattr(self, name) >= 0, f"{name} must not be negative, not {getattr(self, name)}.")
        require(self.seed <= MAX_SEED, f"seed must be at most {MAX_SEED}, not {self.seed}.")
        for name in ("evaluations", "log_every", "checkpoint_every"):
            require(getattr(self, name) > 0, f"{name} must be positive, not {getattr(self, name)}.")
        require(self.patience is None or self.patience > 0, f"patience must be positive, not {self.patience}.")
        smooth = self.label_smoothing == 0 or self.loss == "cross_entropy"
        require(smooth, "label_smoothing has no effect with binary_cross_entropy (nor in the release); remove it.")
