"""HearModel: a front end and a backbone behind HEAR's two functions, for audio of any length in bounded memory."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from asda_core.audio.checks import check_samples, check_waveform, warn_if_unscaled
from asda_core.checkpoint import Weights
from asda_core.contracts import FrontEnd
from asda_core.errors import AudioError, ConfigError
from asda_core.inference.clip_encoder import check_outputs
from asda_core.inference.framing import CONTEXT_DIVISOR, MILLISECONDS, Framing, Window, num_frames, windows
from asda_core.model.processor import matmul_precision
from asda_core.settings.compute import Precision
from asda_hear.pooling import EncoderBackbone, LogMelBackbone, ScenePooling, StatisticsAccumulator, TimestampPooling

TOKENS_PER_PASS = 8192
"""Patches in one forward pass: bounds the memory; a larger batch would be no faster."""

SAMPLES_PER_PASS = 2**22
"""Samples in one forward pass (26 clips of 10 s): the bound where audio gives few tokens, as for log-mel alone."""

MAX_HOP_MS = 50.0
"""Longest time from one timestamp to the next. **Source**: HEAR's rules of the timestamp-based tasks."""


@dataclass(frozen=True)
class HearOptions:
    """Keyword arguments of `load_model`.

    Attributes:
        timestamp_hop_ms: time between timestamps, a whole number of frames that divides the time from one patch to
            the next. The model runs once per shift and interleaves the outputs. None takes the longest hop that HEAR
            allows: for patches of 160 ms, 40 ms and four runs.
        scene_pooling: "mean" of all patches, "summary" (the class token), "both", "statistics" (mean and standard
            deviation over time, per band), or "dynamics" (these and the change from step to step: the richest).
        timestamp_pooling: "mean" over the bands of a time step, or "concat".
        layers: block outputs to concatenate in all but the summary; 0 is the input of the first block.
        window_seconds: length of the windows that audio is divided into; None takes that of its training clips.
        weights: "student", or "teacher" where the checkpoint holds one.
        precision: "bfloat16" computes matrix products in bfloat16: faster on hardware that supports it, less exact.

    None for one of the first five takes what the checkpoint recommends (that of the package does), otherwise the
    longest hop, "mean", "mean", the last block, and the length of the training clips.
    """

    timestamp_hop_ms: float | None = None
    scene_pooling: ScenePooling | None = None
    timestamp_pooling: TimestampPooling | None = None
    layers: tuple[int, ...] | None = None
    window_seconds: float | None = None
    weights: Weights = "student"
    precision: Precision = "float32"


class HearModel(nn.Module):
    """Model with the HEAR API, from `load_model`.

    Attributes:
        sample_rate: sample rate of the expected audio, in Hz.
        scene_embedding_size, timestamp_embedding_size: widths of the two embeddings.
    """

    def __init__(
        self,
        front_end: FrontEnd,
        backbone: EncoderBackbone | LogMelBackbone,
        clip_seconds: float,
        options: HearOptions,
    ) -> None:
        super().__init__()
        self.front_end, self.backbone = front_end, backbone
        self.sample_rate, self.precision = front_end.sample_rate, options.precision
        self.scene_embedding_size = backbone.scene_size
        self.timestamp_embedding_size = backbone.timestamp_size
        geometry = (front_end.sample_rate, front_end.hop_samples, front_end.window_samples, backbone.patch_frames)
        self.scene_framing = Framing(*geometry, centred=False, stride_frames=backbone.stride_frames)
        shifts = self._shifts(options.timestamp_hop_ms)
        self.timestamp_framing = replace(self.scene_framing, centred=True, shifts=shifts)
        seconds = clip_seconds if options.window_seconds is None else options.window_seconds
        if seconds <= 0:
            raise ConfigError(f"window_seconds must be positive, not {seconds:g}.")
        frames = num_frames(round(seconds * self.sample_rate), front_end)
        self.window_patches = self.scene_framing.patches_in(frames)
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def scene(self, audio: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch size"]:
        """Return one embedding per clip; windows are weighted by the number of patches kept from each."""
        audio = self._checked(audio)
        framing = self.scene_framing
        num_patches = framing.num_steps(audio.shape[1])
        scenes = []
        for clips in _batches(audio, self._clips_per_pass(1, num_patches)):
            averaging = StatisticsAccumulator()
            for window in windows(num_patches, self.window_patches, self.window_patches // CONTEXT_DIVISOR):
                features = self._features(framing, clips, window)
                with matmul_precision(features.device, self.precision):
                    steps = self.backbone(features)
                averaging.add(steps, window.keep_from, window.keep_to)
            scenes.append(self.backbone.pool_scene(averaging.compute()))
        embeddings = torch.cat(scenes).float()
        check_outputs(embeddings)
        return embeddings

    @torch.no_grad()
    def timestamps(
        self, audio: Float[Tensor, "batch samples"]
    ) -> tuple[Float[Tensor, "batch steps size"], Float[Tensor, "batch steps"]]:
        """Return one embedding per step and clip, and the times of the steps in milliseconds."""
        audio = self._checked(audio)
        framing = self.timestamp_framing
        shifts, num_steps = framing.shifts, framing.num_steps(audio.shape[1])
        num_patches = -(-num_steps // shifts)
        embeddings = audio.new_empty(len(audio), num_steps, self.timestamp_embedding_size)
        per_pass = self._clips_per_pass(shifts, num_patches)
        for clips, out in zip(_batches(audio, per_pass), _batches(embeddings, per_pass), strict=True):
            for window in windows(num_patches, self.window_patches, self.window_patches // CONTEXT_DIVISOR):
                features = self._features(framing, clips, window)
                frames = framing.frames_of(window.size)
                starts = [shift * framing.shift_frames for shift in range(shifts)]
                runs = torch.cat([features[:, :, start : start + frames] for start in starts])
                with matmul_precision(runs.device, self.precision):
                    steps = self.backbone(runs).timestamp
                check_outputs(steps)
                kept = steps[:, window.keep_from : window.keep_to]  # (shifts x B, kept, D)
                interleaved = kept.unflatten(0, (shifts, -1)).permute(1, 2, 0, 3).flatten(1, 2)
                first = (window.first + window.keep_from) * shifts
                out[:, first : first + interleaved.shape[1]] = interleaved[:, : num_steps - first]
        stamps = framing.timestamps_ms(audio.shape[1]).to(audio.device)
        return embeddings, stamps.repeat(len(audio), 1)

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode, even as part of a model in training: embeddings are deterministic."""
        return super().train(False)

    def _features(self, framing: Framing, clips: Tensor, window: Window) -> Tensor:
        """Compute the features of a window in float32, regardless of the caller's autocast."""
        with torch.autocast(clips.device.type, enabled=False):
            features: Tensor = self.front_end(framing.window_audio(clips, window.first, window.size))
        return features

    def _shifts(self, hop_ms: float | None) -> int:
        """Return the number of interleaved runs that gives this hop."""
        frames = self.scene_framing.run_stride_frames
        native_ms = frames * self.scene_framing.hop_samples * MILLISECONDS / self.sample_rate
        valid = {native_ms / shifts: shifts for shifts in range(1, frames + 1) if frames % shifts == 0}
        if hop_ms is None:
            return next((shifts for hop, shifts in valid.items() if hop <= MAX_HOP_MS), frames)
        if hop_ms not in valid:
            text = ", ".join(f"{hop:g}" for hop in valid)
            raise ConfigError(f"timestamp_hop_ms {hop_ms:g} does not divide the patch; valid: {text}.")
        return valid[hop_ms]

    def _clips_per_pass(self, shifts: int, num_patches: int) -> int:
        patches = min(num_patches, self.window_patches)
        tokens, samples = shifts * self.backbone.num_bands * patches, self.scene_framing.step_samples * patches
        return max(1, min(TOKENS_PER_PASS // tokens, SAMPLES_PER_PASS // samples))

    def _checked(self, audio: Tensor) -> Tensor:
        """Check the audio and return it as float32 on the model's device.

        Raises:
            AudioError: the shape, type or samples are invalid, or there are no samples.
            ConfigError: the model was cast, as by `model.half()`.
        """
        check_waveform(audio)
        if audio.ndim != 2 or 0 in audio.shape:
            raise AudioError(f"audio must have shape (n_sounds, n_samples), both at least 1, not {tuple(audio.shape)}.")
        check_samples(audio, "the audio")
        warn_if_unscaled(audio)
        first = next(chain(self.parameters(), self.buffers()))
        if first.dtype != torch.float32:
            remedy = "cast it back with model.float()" if first.dtype == torch.float64 else "load it again"
            raise ConfigError(
                f"the model was cast to {first.dtype}; {remedy}, or use load_model(precision='bfloat16') for speed."
            )
        return audio.to(first.device, torch.float32)


def _batches(clips: Tensor, size: int) -> Sequence[Tensor]:
    """Return views of the clips, `size` at a time."""
    return [clips[first : first + size] for first in range(0, len(clips), size)]
