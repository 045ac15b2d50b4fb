"""A model listens to a whole clip: audio of any length -> patches, in one piece or in windows."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from asda_core.audio import check_finite
from asda_core.config import Padding, ResampleAxis
from asda_core.errors import AudioError, ConfigError
from asda_core.filling import fill_features
from asda_core.inference.framing import CONTEXT_SHARE, Framing, num_frames, windows
from asda_core.model.encoder import Encoded, Encoder

MAX_STEPS = 768
"""Time steps of a clip that is encoded in one piece: 122.88 s. **Source**: rows of the released table of positions."""


@dataclass(frozen=True)
class ListenOptions:
    """How a clip is cut.

    Attributes:
        target_length: frames that every clip is cut or filled to, as in the released scripts; None takes the clip as it
            is, filled to a whole patch.
        minimum_length: shorter clips are filled to so many frames.
        minimum_samples: clips of up to so many samples are `minimum_length`, though a few frames at their end may not
            fill a patch.
        window_seconds: longer clips go through in windows of this length; None takes up to 122.88 s in one piece, and
            longer ones in windows of `clip_seconds`.
        clip_seconds: length of the clips that the model was trained on.
        padding: "features" fills behind the log-mel, louder than most sound, as the released training does.
        resample_along: "channels" resamples files of several channels along the wrong axis, as the release does.
    """

    target_length: int | None = None
    minimum_length: int = 1
    minimum_samples: int = 0
    window_seconds: float | None = None
    clip_seconds: float = 10.255
    padding: Padding = "silence"
    resample_along: ResampleAxis = "time"

    def __post_init__(self) -> None:
        for name in ("target_length", "minimum_length", "window_seconds", "clip_seconds"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"{name} must be positive, not {value}.")


@dataclass(frozen=True)
class Heard:
    """A clip, encoded.

    Attributes:
        summary: (D,) the class token, or the mean of the patches; over windows, their mean by kept patches.
        tokens: (N, D) patches, time first, all bands of a time step together.
        grid: (time steps, bands).
        has_class_token: whether the summary is one.
    """

    summary: Float[Tensor, " dim"]
    tokens: Float[Tensor, "tokens dim"]
    grid: tuple[int, int]
    has_class_token: bool


@dataclass(frozen=True)
class Piece:
    """What one window gives: its encoding, and the time steps `keep_from` to `keep_to` that are kept of it."""

    encoded: Encoded
    keep_from: int
    keep_to: int


def as_trained(options: ListenOptions, front_end: Any, encoder: Encoder) -> ListenOptions:
    """Clips filled to, or heard in windows of, those of the training, unless the options say otherwise."""
    if options.target_length is not None:
        return options
    num_samples = round(options.clip_seconds * int(front_end.sample_rate))
    whole = num_frames(num_samples, front_end) // encoder.config.patch_frames * encoder.config.patch_frames
    seconds = options.window_seconds or options.clip_seconds
    return replace(options, minimum_length=max(1, whole), minimum_samples=num_samples, window_seconds=seconds)


class Listener:
    """A front end and an encoder in evaluation mode, and how they cut a clip."""

    def __init__(self, front_end: Any, encoder: Encoder, options: ListenOptions) -> None:
        self.front_end, self.encoder, self.options = front_end, encoder, options
        self.sample_rate = int(front_end.sample_rate)
        self.patch_frames = encoder.config.patch_frames
        self.framing = Framing(
            self.sample_rate,
            front_end.hop_samples,
            front_end.window_samples,
            self.patch_frames,
            centred=False,
            stride_frames=encoder.config.stride_frames,
        )
        if options.target_length is not None and options.target_length < self.patch_frames:
            raise ConfigError(f"target_length {options.target_length} is less than a patch of {self.patch_frames}.")

    @torch.no_grad()
    def listen(self, audio: Float[Tensor, " samples"]) -> Heard:
        """Encode a clip, mono in [-1, 1] at `sample_rate`, of any length from 1 sample on.

        Raises:
            AudioError: no samples, NaN or infinite ones.
        """
        summary, kept, bands = torch.zeros(()), [], 1
        for piece in self.pieces(audio):
            encoded = piece.encoded
            bands = encoded.layout.grid[1]
            kept.append(encoded.tokens[0, piece.keep_from * bands : piece.keep_to * bands])
            summary = summary.to(encoded.summary) + encoded.summary[0] * len(kept[-1])
        tokens = torch.cat(kept)
        grid = (len(tokens) // bands, bands)
        return Heard(summary / len(tokens), tokens, grid, self.encoder.class_token is not None)

    def pieces(self, audio: Float[Tensor, " samples"]) -> Iterator[Piece]:
        """Encode a clip window by window; most are one window."""
        if audio.ndim != 1 or not len(audio):
            raise AudioError(f"audio must be one channel of at least one sample, not of shape {tuple(audio.shape)}.")
        check_finite(audio, "the audio")
        if self.options.padding == "features":
            audio = audio - audio.mean()  # of no effect but on the last digits: every frame loses its mean anyway
        frames = self._num_frames(len(audio))
        framing = self.framing
        steps = framing.patches_in(frames)
        size = self._window_steps(steps)
        device = next(self.encoder.parameters()).device
        for window in windows(steps, size, size // CONTEXT_SHARE):
            first = window.first * framing.step_samples
            clip = framing.window_audio(audio[None], window.first, window.size)
            features = self.front_end(clip.to(device))
            if self.options.padding == "features":
                features = fill_features(features, torch.tensor([len(audio) - first]), self.front_end)
            yield Piece(self.encoder(features), window.keep_from, window.keep_to)

    def _num_frames(self, num_samples: int) -> int:
        """Frames of the clip, filled to a whole patch, or as many as are asked for."""
        if self.options.target_length is not None:
            return self.options.target_length
        short = num_samples <= self.options.minimum_samples
        whole = max(self.options.minimum_length, 0 if short else num_frames(num_samples, self.front_end))
        patches = 1 + max(0, -(-(whole - self.patch_frames) // self.framing.run_frames))
        return self.framing.frames_of(patches)

    def _window_steps(self, steps: int) -> int:
        seconds = self.options.window_seconds
        if seconds is None:
            if steps <= MAX_STEPS:
                return steps
            seconds = self.options.clip_seconds
        return self.framing.patches_in(num_frames(round(seconds * self.sample_rate), self.front_end))
