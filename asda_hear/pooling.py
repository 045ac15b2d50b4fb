"""From patches to embeddings: what a backbone gives for a window of features."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from asda_core.model.encoder import Encoder

ScenePooling = Literal["mean", "summary", "both"]
TimestampPooling = Literal["mean", "concat"]


class EncoderBackbone(nn.Module):
    """An encoder whose patches of one time step become one vector.

    `timestamp_pooling` "mean" averages the bands (D values), "concat" puts them side by side (bands x D).
    `scene_pooling` "mean" is the mean of all patches, "summary" the class token, "both" the two side by side.
    """

    def __init__(
        self, encoder: Encoder, num_bins: int, scene_pooling: ScenePooling, timestamp_pooling: TimestampPooling
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.patch_frames, self.stride_frames = encoder.config.patch_frames, encoder.config.stride_frames
        self.num_bands = encoder.config.grid(num_bins, self.patch_frames)[1]
        self.scene_pooling, self.timestamp_pooling = scene_pooling, timestamp_pooling
        dim = encoder.config.dim
        self.scene_size = 2 * dim if scene_pooling == "both" else dim
        self.step_size = self.num_bands * dim if timestamp_pooling == "concat" else dim

    def forward(
        self, features: Float[Tensor, "batch bins frames"]
    ) -> tuple[Float[Tensor, "batch dim"], Float[Tensor, "batch patches dim"], Float[Tensor, "batch patches dim2"]]:
        """(summary, mean patch per time step, timestamp vector per time step) of a window."""
        encoded = self.encoder(features)
        steps = encoded.tokens.reshape(len(features), *encoded.layout.grid, -1)  # (B, T', bands, D)
        means = steps.mean(dim=2)
        return encoded.summary, means, means if self.timestamp_pooling == "mean" else steps.flatten(2)

    def pool_scene(
        self, summary: Float[Tensor, "batch dim"], mean: Float[Tensor, "batch dim"]
    ) -> Float[Tensor, "batch size"]:
        """The scene embedding from the averages over the windows."""
        if self.scene_pooling == "both":
            return torch.cat([summary, mean], dim=1)
        return summary if self.scene_pooling == "summary" else mean


class LogMelBackbone(nn.Module):
    """The plain baseline: the mean log-mel spectrum of each patch, and of the clip. Nothing is learned."""

    def __init__(self, num_bins: int, patch_frames: int) -> None:
        super().__init__()
        self.patch_frames, self.stride_frames = patch_frames, None
        self.num_bands = 1
        self.scene_size = self.step_size = num_bins

    def forward(
        self, features: Float[Tensor, "batch bins frames"]
    ) -> tuple[Float[Tensor, "batch dim"], Float[Tensor, "batch patches dim"], Float[Tensor, "batch patches dim"]]:
        """(mean spectrum, mean spectrum per patch, the same)."""
        steps = features.reshape(*features.shape[:2], -1, self.patch_frames).mean(dim=3).transpose(1, 2)
        return steps.mean(dim=1), steps, steps

    def pool_scene(
        self, summary: Float[Tensor, "batch dim"], mean: Float[Tensor, "batch dim"]
    ) -> Float[Tensor, "batch dim"]:
        """The mean spectrum of the clip."""
        return mean
