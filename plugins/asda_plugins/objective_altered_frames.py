"""Altered frames: the encoder sees a corrupted spectrogram and reconstructs the original, token by token.

    features --> altered --> embed, encode (all tokens) --> linear --> patches
        |                                                                | L1, all tokens
        +--> patches ----------------------------------------------------+

Three alterations, in this order::

    time       . . . 0 0 0 0 0 0 0 . . .    spans of frames, treated alike in a clip: 80 % zero, 10 % other frames
    channel    a band of neighbouring bins is zero in every frame of a clip
    magnitude  with some probability, noise is added to the whole batch

**Source**: Gauy and Finger, Audio MFCC-gram Transformers (STIL 2021, arXiv 2210.14085), released code, which follows
TERA (Liu et al. 2021) and Mockingjay (Liu et al. 2020) as implemented in s3prl.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from asda_core.contracts import Losses, ObjectiveContext, ObjectiveSpec, hookimpl
from asda_core.devices import to_device
from asda_core.errors import ConfigError
from asda_core.model.encoder import Encoder
from asda_core.model.patches import patch_values

ZEROED, REPLACED = 0.8, 0.1
"""Shares of clips whose spans are zeroed, and replaced; the rest are unchanged. **Source**: released code, s3prl."""


@dataclass(frozen=True)
class AlteredFramesConfig:
    """Settings of altered frames.

    The defaults are TERA's time and channel alteration, its model `T_F`. Confirmed in s3prl's settings of `T-F-M`:
    0.15, 7, 0.2, and 0.15 for noise. Not confirmed are the settings of the MFCC-gram paper: all shares default to 0 in
    its released code, and the main script uses noise only, (0, 0, 0.1), which is `released`.

    Attributes:
        time_share: approximate share of frames altered; spans may overlap, so 0.15 alters 0.145.
        span_frames: length of a span; a shorter clip is one span.
        channel_share: largest width of the altered band as a share of the bins; widths from 0 are equally likely.
        noise_probability: probability that noise is added to a batch.
        noise_std: of the noise, in units of the features. 0.2 is large for normalised features and negligible for MFCCs
            in dB, to which the release adds it.
    """

    time_share: float = 0.15
    span_frames: int = 7
    channel_share: float = 0.2
    noise_probability: float = 0.0
    noise_std: float = 0.2

    def __post_init__(self) -> None:
        for name in ("time_share", "channel_share", "noise_probability"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ConfigError(f"objective.options.{name} must lie between 0 and 1, not {value}.")
        if self.span_frames < 1:
            raise ConfigError(f"objective.options.span_frames must be at least 1, not {self.span_frames}.")
        if not 0 <= self.noise_std < float("inf"):
            raise ConfigError(f"objective.options.noise_std must be finite and not negative, not {self.noise_std}.")
        if not (self.time_share or self.channel_share or self.noise_probability):
            raise ConfigError("objective.options time_share, channel_share and noise_probability must not all be 0.")


@dataclass(frozen=True)
class Alteration:
    """Alterations of a batch, applied in the order of the attributes.

    Attributes:
        source: (B, T) index of the frame that is put at each position; its own index where nothing is replaced.
        zero_frames: (B, T) True where a frame is zeroed.
        zero_bins: (B, F) True where a bin is zeroed in all frames.
        noise: (B, F, T) added noise; None for none.
    """

    source: Int[Tensor, "batch frames"]
    zero_frames: Bool[Tensor, "batch frames"]
    zero_bins: Bool[Tensor, "batch bins"]
    noise: Float[Tensor, "batch bins frames"] | None

    def apply(self, features: Float[Tensor, "batch bins frames"]) -> Float[Tensor, "batch bins frames"]:
        """Return the altered features, on the device of `features`."""
        device = features.device
        altered = features.gather(2, to_device(self.source, device).unsqueeze(1).expand_as(features))
        altered = altered.masked_fill(to_device(self.zero_frames, device).unsqueeze(1), 0.0)
        altered = altered.masked_fill(to_device(self.zero_bins, device).unsqueeze(2), 0.0)
        return altered if self.noise is None else altered + to_device(self.noise, device).to(altered.dtype)


class AlteredFrames(nn.Module):
    """Prediction head, and the loss on all tokens.

    **Differs** from the release, where no span includes the last frame and no band the last bin.
    """

    def __init__(self, config: AlteredFramesConfig, encoder: Encoder) -> None:
        super().__init__()
        self.config = config
        shape = encoder.config
        self.head = nn.Linear(shape.dim, shape.patch_frames * shape.patch_bins)
        nn.init.xavier_uniform_(self.head.weight)

    def loss(
        self, encoder: Encoder, features: Float[Tensor, "batch bins frames"], generator: torch.Generator
    ) -> Losses:
        """Draw an alteration and compute `loss_for`.

        Raises:
            ConfigError: the options alter nothing in clips of this length.
        """
        batch, bins, frames = features.shape
        if not (
            num_spans(frames, self.config) or max_band_width(bins, self.config.channel_share) or self._adds_noise()
        ):
            raise ConfigError(
                f"in clips of {frames} frames and {bins} bins objective.options time_share {self.config.time_share:g} "
                f"and channel_share {self.config.channel_share:g} alter nothing: they are rounded to whole spans of "
                f"{self.config.span_frames} frames, and to whole bins."
            )
        alteration = draw_alteration((batch, bins, frames), self.config, generator)
        return self.loss_for(encoder, features, alteration.apply(features))

    def _adds_noise(self) -> bool:
        return bool(self.config.noise_probability and self.config.noise_std)

    def loss_for(
        self,
        encoder: Encoder,
        features: Float[Tensor, "batch bins frames"],
        altered: Float[Tensor, "batch bins frames"],
    ) -> Losses:
        """Compute the loss for given altered features.

        Args:
            encoder: gets the altered features.
            features: the targets.
            altered: the input.

        Returns:
            L1 over all values of all patches. Of its parts, `altered` and `unaltered` are the L1 over the values that
            were changed in the input and over those that were not (0 if there are none), and `altered_share` is the
            share of the former.
        """
        encoded = encoder.encode(*encoder.embed(altered), layers=False)
        error = (self.head(encoded.tokens) - patch_values(features, encoder.config)).float().abs()
        with torch.no_grad():
            changed = patch_values(altered != features, encoder.config)
            parts = {"altered": masked_mean(error, changed), "unaltered": masked_mean(error, ~changed)}
            parts["altered_share"] = changed.float().mean()
        return Losses(error.mean(), parts)

    def after_step(self, encoder: Encoder, step: int) -> None:
        """Do nothing: there is no teacher to update."""


def draw_alteration(shape: tuple[int, int, int], config: AlteredFramesConfig, generator: torch.Generator) -> Alteration:
    """Draw the alterations of a batch of (clips, bins, frames), on the CPU."""
    batch, bins, frames = shape
    source, zero_frames = draw_spans(batch, frames, config, generator)
    zero_bins = draw_bands(batch, bins, config.channel_share, generator)
    noise = None
    if float(torch.rand((), generator=generator)) < config.noise_probability:
        noise = torch.randn(shape, generator=generator) * config.noise_std
    return Alteration(source, zero_frames, zero_bins, noise)


def num_spans(frames: int, config: AlteredFramesConfig) -> int:
    """Return the number of altered spans per clip, which may overlap."""
    span = min(config.span_frames, frames)
    return min(round(frames * config.time_share / span), frames - span + 1)


def max_band_width(bins: int, share: float) -> int:
    """Return the largest width of the altered band, in bins."""
    return round(bins * share)


def draw_spans(
    batch: int, frames: int, config: AlteredFramesConfig, generator: torch.Generator
) -> tuple[Int[Tensor, "batch frames"], Bool[Tensor, "batch frames"]]:
    """Draw `source` and `zero_frames` of an `Alteration`: spans at distinct positions, treated alike within a clip.

    The share is rounded to whole spans: by default 7 for 319 frames, none for clips of 23 or fewer. Replaced spans are
    copies of spans drawn anywhere in the clip.
    """
    span, count = min(config.span_frames, frames), num_spans(frames, config)
    num_starts = frames - span + 1
    starts, origins = (torch.rand(batch, num_starts, generator=generator).topk(count).indices for _ in range(2))
    draw = torch.rand(batch, 1, generator=generator)
    index = torch.arange(frames)
    if not count:
        return index.repeat(batch, 1), torch.zeros(batch, frames, dtype=torch.bool)
    offset = index - starts.unsqueeze(2)  # (B, spans, T)
    covers = (offset >= 0) & (offset < span)
    covered = covers.any(dim=1)
    # Where spans overlap, the first one drawn is used.
    origin = (origins - starts).gather(1, covers.to(torch.uint8).argmax(dim=1)) + index
    replaced = covered & (draw >= ZEROED) & (draw < ZEROED + REPLACED)
    return torch.where(replaced, origin, index), covered & (draw < ZEROED)


def draw_bands(batch: int, bins: int, share: float, generator: torch.Generator) -> Bool[Tensor, "batch bins"]:
    """Draw `zero_bins` of an `Alteration`: one band per clip, 0 to `round(bins * share)` wide, anywhere it fits."""
    width = torch.randint(max_band_width(bins, share) + 1, (batch, 1), generator=generator)
    position = torch.rand(batch, 1, generator=generator, dtype=torch.float64)
    first = (position * (bins - width + 1)).long()
    number = torch.arange(bins)
    return (number >= first) & (number < first + width)


def masked_mean(error: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of the errors where the mask is true, 0 if it is true nowhere."""
    return (error * mask).sum() / mask.sum().clamp(min=1)


def build(config: AlteredFramesConfig, context: ObjectiveContext) -> AlteredFrames:
    """Build the objective from its options and the encoder."""
    return AlteredFrames(config, context.encoder)


@hookimpl
def asda_objectives() -> Iterable[ObjectiveSpec[AlteredFramesConfig]]:
    """Offer `altered_frames`."""
    return [
        ObjectiveSpec(
            name="altered_frames",
            config=AlteredFramesConfig,
            build=build,
            summary="reconstruct spectrograms with frames and bands zeroed or replaced, and noise",
            source="Gauy and Finger 2021 (arXiv 2210.14085), released code; TERA (Liu et al. 2021), s3prl",
            released={"time_share": 0.0, "channel_share": 0.0, "noise_probability": 0.1},
        )
    ]
