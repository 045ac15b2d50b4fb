"""Pooling of patches to embeddings: what a backbone returns for a window of features."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from asda_core.errors import ConfigError
from asda_core.model.encoder import Encoder, EncoderOutput

ScenePooling = Literal["mean", "summary", "both", "statistics", "dynamics"]
BAND_BY_BAND = ("statistics", "dynamics")
TimestampPooling = Literal["mean", "concat"]


@dataclass(frozen=True)
class BackboneOutput:
    """Output of a backbone for a window.

    Attributes:
        summary: embedding of the whole window.
        scene: embedding per time step, to be averaged to scene embeddings.
        timestamp: embedding per time step, used as timestamp embedding.
    """

    summary: Float[Tensor, "batch dim"]
    scene: Float[Tensor, "batch steps dim2"]
    timestamp: Float[Tensor, "batch steps dim3"]


@dataclass(frozen=True)
class ClipStatistics:
    """Averages over all time steps of a clip.

    Attributes:
        summary: mean of the windows' summaries, weighted by the steps kept from each.
        mean, std: mean and standard deviation over the steps.
        change: root mean square of the change from one step to the next.
    """

    summary: Float[Tensor, "batch dim"]
    mean: Float[Tensor, "batch dim2"]
    std: Float[Tensor, "batch dim2"]
    change: Float[Tensor, "batch dim2"]


class StatisticsAccumulator:
    """Accumulator of the windows of one batch of clips into `ClipStatistics`."""

    def __init__(self) -> None:
        self._steps = 0
        self._summary = self._total = self._last = torch.zeros((), device="cpu")
        self._exact = self._squares = self._changes = torch.zeros((), dtype=torch.float64, device="cpu")

    def add(self, steps: BackboneOutput, keep_from: int, keep_to: int) -> None:
        """Add the steps `keep_from` to `keep_to` of a window."""
        kept = steps.scene[:, keep_from:keep_to]
        if not kept.shape[1]:
            return
        with_last = torch.cat([self._last.to(kept), kept], dim=1) if self._steps else kept
        self._changes = self._changes.to(kept.device) + with_last.diff(dim=1).double().square().sum(dim=1)
        self._last = kept[:, -1:]
        self._steps += kept.shape[1]
        self._summary = self._summary.to(kept) + steps.summary * kept.shape[1]
        self._total = self._total.to(kept) + kept.sum(dim=1)
        exact = kept.double()  # a variance is the difference of two large sums
        self._exact = self._exact.to(kept.device) + exact.sum(dim=1)
        self._squares = self._squares.to(kept.device) + exact.square().sum(dim=1)

    def compute(self) -> ClipStatistics:
        """Return the averages so far; the deviation divides by n, and both it and the change are 0 for one step."""
        variance = (self._squares / self._steps - (self._exact / self._steps).square()).clamp(min=0)
        change = (self._changes / max(1, self._steps - 1)).sqrt()
        return ClipStatistics(
            self._summary / self._steps,
            self._total / self._steps,
            variance.sqrt().to(self._total),
            change.to(self._total),
        )


class EncoderBackbone(nn.Module):
    """An encoder whose patches of a time step are pooled to one vector.

    `timestamp_pooling` "mean" averages the bands (D values), "concat" concatenates them (bands x D).
    `scene_pooling` "mean" is the mean of all patches, "summary" the class token, "both" the two concatenated,
    "statistics" the mean and the standard deviation over time of the concatenated bands (2 x bands x D), "dynamics"
    these and how much the bands change from one time step to the next (3 x bands x D).
    `layers` are the block outputs to concatenate, each D wide: 0 is the input of the first block.

    **Source** of "statistics": concatenated bands as in MSM-MAE (Niizumi et al. 2022); mean and deviation over time
    are the statistics pooling of x-vectors (Snyder et al. 2018). "dynamics" is new here: two clips with the same mean
    and deviation may differ in how fast they change. Of `layers`: fusing layers (Niizumi et al. 2022,
    "Composing general audio representation by fusing multilayer features of a pre-trained model").
    """

    def __init__(
        self,
        encoder: Encoder,
        num_bins: int,
        scene_pooling: ScenePooling = "mean",
        timestamp_pooling: TimestampPooling = "mean",
        layers: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.patch_frames, self.stride_frames = encoder.config.patch_frames, encoder.config.stride_frames
        self.num_bands = encoder.config.grid(num_bins, self.patch_frames)[1]
        self.scene_pooling, self.timestamp_pooling = scene_pooling, timestamp_pooling
        self.layers = tuple(resolve_layers(encoder, layers))
        dim = encoder.config.dim * len(self.layers)
        widths = {
            "mean": dim,
            "summary": encoder.config.dim,
            "both": encoder.config.dim + dim,
            "statistics": 2 * self.num_bands * dim,
            "dynamics": 3 * self.num_bands * dim,
        }
        self.scene_size = widths[scene_pooling]
        self.timestamp_size = self.num_bands * dim if timestamp_pooling == "concat" else dim

    def forward(self, features: Float[Tensor, "batch bins frames"]) -> BackboneOutput:
        """Return the summary and the steps of a window."""
        encoded: EncoderOutput = self.encoder(features, self.layers, layers=False)
        last = self.encoder.config.depth
        outputs = [encoded.tokens if layer == last else encoded.outputs[layer] for layer in self.layers]
        tokens = torch.cat(outputs, dim=-1).float()
        steps = tokens.reshape(len(features), *encoded.layout.grid, -1)  # (B, T', bands, D)
        mean, concatenated = steps.mean(dim=2), steps.flatten(2)
        return BackboneOutput(
            encoded.summary.float(),
            concatenated if self.scene_pooling in BAND_BY_BAND else mean,
            concatenated if self.timestamp_pooling == "concat" else mean,
        )

    def pool_scene(self, statistics: ClipStatistics) -> Float[Tensor, "batch size"]:
        """Return the scene embedding from the averages over the windows."""
        match self.scene_pooling:
            case "statistics":
                return torch.cat([statistics.mean, statistics.std], dim=1)
            case "dynamics":
                return torch.cat([statistics.mean, statistics.std, statistics.change], dim=1)
            case "both":
                return torch.cat([statistics.summary, statistics.mean], dim=1)
            case "summary":
                return statistics.summary
        return statistics.mean


def resolve_layers(encoder: Encoder, layers: Sequence[int] | None) -> Sequence[int]:
    """Return the requested layer numbers after checking them; None selects the last layer.

    Raises:
        ConfigError: the list is empty, has duplicates, or has a layer that the encoder does not have.
    """
    depth = encoder.config.depth
    if layers is None:
        return (depth,)
    valid = range(0, depth + 1, 1 if encoder.config.wiring == "sequential" else 2)
    if not layers or len(set(layers)) < len(layers) or any(layer not in valid for layer in layers):
        raise ConfigError(
            f"layers must be one or more different ones of {', '.join(map(str, valid))}, not {list(layers)}: "
            f"0 is the input of the first block, {depth} the output of the last."
        )
    return layers


class LogMelBackbone(nn.Module):
    """The plain baseline: the mean log-mel spectrum of each patch, and of the clip. Nothing is learned.

    `scene_pooling` "statistics" adds the deviation over the patches to the mean, "dynamics" also their change.
    """

    def __init__(self, num_bins: int, patch_frames: int, scene_pooling: ScenePooling = "mean") -> None:
        super().__init__()
        self.patch_frames, self.stride_frames = patch_frames, None
        self.num_bands = 1
        self.scene_size = num_bins * {"statistics": 2, "dynamics": 3}.get(scene_pooling, 1)
        self.timestamp_size = num_bins

    def forward(self, features: Float[Tensor, "batch bins frames"]) -> BackboneOutput:
        """Mean spectrum of the window, and that of each patch."""
        steps = features.reshape(*features.shape[:2], -1, self.patch_frames).mean(dim=3).transpose(1, 2)
        return BackboneOutput(steps.mean(dim=1), steps, steps)

    def pool_scene(self, statistics: ClipStatistics) -> Float[Tensor, "batch size"]:
        """The mean spectrum of the clip, and its deviation and change if asked for."""
        parts = [statistics.mean, statistics.std, statistics.change]
        return torch.cat(parts[: self.scene_size // self.timestamp_size], dim=1)
