"""The reference objective: a student that sees a fifth of a clip predicts a slow teacher's outputs for the whole.

    features --+--> teacher, all patches ----------------> targets (frames) --> mean (utterance)
               |                                              |                    |
               +--> student, 16 clones, each with its         | squared error      | squared error
                    own fifth --+--> decoder --> hidden ------+                    |
                                +--> class token ----------------------------------+

**Source**: ASDA (Interspeech 2025) and EAT (Chen et al. 2024), released code; data2vec 2.0.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from asda_core.contracts import Losses, ObjectiveContext, ObjectiveSpec, hookimpl
from asda_core.devices import generator_on, to_device
from asda_core.errors import ConfigError
from asda_core.model.encoder import Encoder
from asda_core.pretrain.decoder import ConvolutionalDecoder, DecoderConfig, take_tokens
from asda_core.pretrain.masking import MaskConfig, block_masks, num_kept, split_columns
from asda_core.pretrain.teacher import Teacher, TeacherConfig, make_targets

PUBLISHED_ROWS = 192
"""Rows (12 clips x 16 clones on each GPU) over which the released utterance loss is summed."""


VARIANCE_EPS = 1e-6
"""Added to the variance before the square root in the logged standard deviation. **Source**: released code."""


@dataclass(frozen=True)
class LatentRegressionConfig:
    """Settings of latent regression; the defaults are ASDA's (EAT: `utterance_weight` 1).

    Attributes:
        clones: masked views per clip.
        frame_weight, utterance_weight: weights of the two losses.
        utterance_rows: the utterance loss is this many times its mean over rows. The release sums over the rows
            of a GPU, so that its weight grows with the batch; 192 gives the published balance at every batch
            size, null sums over the batch as released.
        top_layers: number of last layers that are averaged to the target; null takes all.
        noise_std: of the noise at the hidden positions of the decoder's input.
    """

    clones: int = 16
    frame_weight: float = 1.0
    utterance_weight: float = 0.5
    utterance_rows: int | None = PUBLISHED_ROWS
    top_layers: int | None = None
    noise_std: float = 0.01
    mask: MaskConfig = MaskConfig()
    decoder: DecoderConfig = DecoderConfig()
    teacher: TeacherConfig = TeacherConfig()

    def __post_init__(self) -> None:
        for name in ("clones", "utterance_rows", "top_layers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"objective.options.{name} must be at least 1, not {value}.")
        for name in ("frame_weight", "utterance_weight", "noise_std"):
            if (weight := getattr(self, name)) < 0:
                raise ConfigError(f"objective.options.{name} must not be negative, not {weight}.")
        if not (self.frame_weight or self.utterance_weight):
            raise ConfigError("objective.options: frame_weight and utterance_weight are both 0: nothing to learn.")


class LatentRegression(nn.Module):
    """Decoder, teacher and the two losses."""

    def __init__(self, config: LatentRegressionConfig, encoder: Encoder) -> None:
        super().__init__()
        if (config.top_layers or 0) > encoder.config.depth:
            raise ConfigError(
                f"objective.options.top_layers {config.top_layers} is more than encoder.depth {encoder.config.depth}."
            )
        self.config = config
        self.decoder = ConvolutionalDecoder(config.decoder, encoder.config.dim)
        self.teacher = Teacher(encoder, config.teacher)

    def loss(
        self, encoder: Encoder, features: Float[Tensor, "batch bins frames"], generator: torch.Generator
    ) -> Losses:
        """Draw masks and noise, then `loss_for`.

        Raises:
            ConfigError: the clips hold too few patches to hide any.
        """
        times, bands = encoder.config.grid(*features.shape[1:])
        if not times * bands:
            raise ConfigError(f"clips of {features.shape[2]} frames hold no patch; data.clip_seconds is too short.")
        if times * bands == num_kept(times * bands, self.config.mask):
            raise ConfigError(f"clips of {times * bands} patch leave none to hide; data.clip_seconds is too short.")
        rows = len(features) * self.config.clones
        hidden = block_masks((times, bands), rows, self.config.mask, generator)
        device, shape = features.device, (rows, times * bands, encoder.config.dim)  # 75 million numbers as published
        noise = torch.randn(shape, generator=generator_on(device, generator), device=device).mul_(self.config.noise_std)
        return self.loss_for(encoder, features, hidden, noise)

    def loss_for(
        self,
        encoder: Encoder,
        features: Float[Tensor, "batch bins frames"],
        hidden: Bool[Tensor, "rows patches"],
        noise: Float[Tensor, "rows patches dim"],
    ) -> Losses:
        """Return the losses for given masks and noise.

        Args:
            encoder: the student.
            features: a batch of clips.
            hidden: True where a patch is hidden; row `b * clones + c` belongs to clip b. Best on the CPU, where
                reading it needs no synchronisation.
            noise: values at the hidden positions of the decoder's input.
        """
        visible, masked = (to_device(columns, features.device) for columns in split_columns(hidden))
        tokens, layout = encoder.embed(features)
        owner = torch.arange(len(features), device=tokens.device).repeat_interleave(self.config.clones)
        student = encoder.encode(take_tokens(tokens, visible, owner), layout.select(owner, visible), layers=False)
        encoded = student.tokens
        positions = torch.arange(len(visible), device=visible.device).unsqueeze(1) * noise.shape[1] + visible
        filled = (
            noise.to(encoded.dtype)
            .flatten(0, 1)
            .index_copy(0, positions.flatten(), encoded.flatten(0, 1))
            .view_as(noise)
        )
        predicted = self.decoder(filled, layout.grid, masked)
        target = make_targets(self.teacher.layer_outputs(features), self.config.top_layers)
        masked_target = take_tokens(target, masked, owner)
        frame = squared_error(predicted, masked_target).mean()
        utterance = squared_error(student.summary, target.mean(dim=1)[owner]).mean()
        rows = len(owner) if self.config.utterance_rows is None else self.config.utterance_rows
        weight = self.config.utterance_weight * rows
        total = self.config.frame_weight * frame + weight * utterance
        with torch.no_grad():
            statistics = {"target_std": channel_std(masked_target), "prediction_std": channel_std(predicted)}
        return Losses(total, {"frame": frame.detach(), "utterance": utterance.detach(), **statistics})

    def after_step(self, encoder: Encoder, step: int) -> None:
        """Update the teacher."""
        self.teacher.update(encoder, step)


def squared_error(predicted: Float[Tensor, "*rows dim"], target: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows"]:
    """`sum_d (p - t)^2 / sqrt(D)` per row. **Source**: released loss (`loss_scale` unset)."""
    total = (predicted.float() - target.float()).square().sum(-1)
    return total / math.sqrt(predicted.shape[-1])


def channel_std(values: Float[Tensor, "rows tokens dim"]) -> Tensor:
    """Mean over channels of the standard deviation over all tokens; near 0, training has collapsed.

    **Source**: the released code logs the same as `target_var` and `pred_var`.
    """
    rows = values.float().flatten(0, 1)
    variance = rows.var(dim=0) if len(rows) > 1 else torch.zeros_like(rows[0])  # undefined for one token
    return (variance + VARIANCE_EPS).sqrt().mean()


def build(config: LatentRegressionConfig, context: ObjectiveContext) -> LatentRegression:
    """Build the objective from its options and the encoder."""
    return LatentRegression(config, context.encoder)


@hookimpl
def asda_objectives() -> Iterable[ObjectiveSpec[LatentRegressionConfig]]:
    """Offer `latent_regression`."""
    return [
        ObjectiveSpec(
            name="latent_regression",
            config=LatentRegressionConfig,
            build=build,
            summary="regress a slow teacher's latent frames and utterance from a masked view",
            source="ASDA (Interspeech 2025) and EAT (Chen et al. 2024), released code; data2vec 2.0",
            released={"utterance_rows": None},
        )
    ]
