"""Encode a whole clip of any length to patches, in one piece or in windows."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from asda_core.audio.checks import check_samples, check_waveform
from asda_core.audio.feature_padding import padded_features
from asda_core.audio.long_files import LoadedSound, Sound
from asda_core.config import Padding, ResampleAxis
from asda_core.contracts import FrontEnd
from asda_core.errors import AudioError, CheckpointError, ConfigError
from asda_core.inference.framing import CONTEXT_DIVISOR, Framing, Window, num_frames, windows
from asda_core.model.encoder import Encoder, EncoderOutput
from asda_core.model.processor import matmul_precision
from asda_core.settings.compute import Precision

MAX_STEPS = 768
"""Most time steps encoded in one piece: 122.88 s. **Source**: rows of the released table of positions."""

TOKENS_PER_PASS = {"cpu": 512}
"""Patches that go through the encoder in one pass: a window of 10 s, or twenty clips of half a second. More give no
speed-up on a CPU and only cost memory."""
ACCELERATOR_TOKENS_PER_PASS = 16384
"""The same on accelerators."""


@dataclass(frozen=True)
class EncodeOptions:
    """Options for cutting clips.

    Attributes:
        target_length: frames that every clip is cut or padded to, as in the released scripts; None keeps the length,
            padded to a whole patch.
        minimum_length: shorter clips are padded to this many frames.
        minimum_samples: clips of up to this many samples get `minimum_length` frames, though a few frames at their end
            may not fill a patch.
        window_seconds: longer clips are encoded in windows of this length; None encodes up to 122.88 s in one piece,
            and longer clips in windows of `clip_seconds`.
        clip_seconds: length of the clips that the model was trained on.
        padding: "features" pads the log-mel, with a value louder than most audio, as the released training does.
        resample_along: "channels" resamples multi-channel files along the wrong axis, as the release does.
        precision: "bfloat16" multiplies in bfloat16: faster on processors that support it, and less exact.
    """

    target_length: int | None = None
    minimum_length: int = 1
    minimum_samples: int = 0
    window_seconds: float | None = None
    clip_seconds: float = 10.255
    padding: Padding = "silence"
    resample_along: ResampleAxis = "time"
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        for name in ("target_length", "minimum_length", "window_seconds", "clip_seconds"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"{name} must be positive, not {value}.")


@dataclass(frozen=True)
class EncodedClip:
    """An encoded clip.

    Attributes:
        summary: (D,) the class token, or the mean of the patches; over windows, their mean weighted by kept patches.
        tokens: (N, D) patches in order of time, all bands of a time step together.
        grid: (time steps, bands).
        has_class_token: whether the summary is a class token.
    """

    summary: Float[Tensor, " dim"]
    tokens: Float[Tensor, "tokens dim"]
    grid: tuple[int, int]
    has_class_token: bool


@dataclass(frozen=True)
class EncodedWindow:
    """Encoding of one window, of which time steps `keep_from` to `keep_to` are kept."""

    encoded: EncoderOutput
    keep_from: int
    keep_to: int

    def tokens(self) -> Float[Tensor, "tokens dim"]:
        """Return the kept patches."""
        bands = self.encoded.layout.grid[1]
        return self.encoded.tokens[0, self.keep_from * bands : self.keep_to * bands]


@dataclass(frozen=True)
class WindowPlan:
    """Division of a clip into windows.

    Attributes:
        num_samples: of the clip.
        steps: time steps that cover it.
        size: time steps in a window; at least `steps` if the clip is encoded in one piece.
    """

    num_samples: int
    steps: int
    size: int

    @property
    def in_one_piece(self) -> bool:
        """Whether one window covers the clip."""
        return self.steps <= self.size

    def windows(self) -> list[Window]:
        """Return the windows from beginning to end."""
        return list(windows(self.steps, self.size, self.size // CONTEXT_DIVISOR))


def with_training_length(options: EncodeOptions, front_end: FrontEnd, encoder: Encoder) -> EncodeOptions:
    """Return options that pad clips to the training length and cut longer ones into such windows by default."""
    if options.target_length is not None:
        return options
    num_samples = round(options.clip_seconds * front_end.sample_rate)
    framing = framing_of(front_end, encoder)
    whole = framing.frames_of(framing.patches_in(num_frames(num_samples, front_end)))
    seconds = options.window_seconds or options.clip_seconds
    return replace(options, minimum_length=whole, minimum_samples=num_samples, window_seconds=seconds)


def framing_of(front_end: FrontEnd, encoder: Encoder) -> Framing:
    """Return the positions of an encoder's patches in the audio; the first starts at sample 0."""
    return Framing(
        front_end.sample_rate,
        front_end.hop_samples,
        front_end.window_samples,
        encoder.config.patch_frames,
        centred=False,
        stride_frames=encoder.config.stride_frames,
    )


def check_outputs(values: Tensor) -> None:
    """Check that a model's outputs are finite; its input and weights have been checked before.

    Values on an accelerator are not checked, since that would wait for it.

    Raises:
        CheckpointError: some values are NaN or infinite.
    """
    if values.device.type == "cpu" and not bool(torch.isfinite(values).all()):
        raise CheckpointError(
            "the model outputs NaN or infinite values: its weights are too large, or its training diverged."
        )


class ClipEncoder:
    """A front end and an encoder in evaluation mode, with the options for cutting clips."""

    def __init__(self, front_end: FrontEnd, encoder: Encoder, options: EncodeOptions) -> None:
        self.front_end, self.encoder, self.options = front_end, encoder, options
        self.sample_rate = front_end.sample_rate
        self.patch_frames = encoder.config.patch_frames
        self.framing = framing_of(front_end, encoder)
        if options.target_length is not None and options.target_length < self.patch_frames:
            raise ConfigError(f"target_length {options.target_length} is less than a patch of {self.patch_frames}.")

    @torch.no_grad()
    def encode(self, audio: Float[Tensor, " samples"]) -> EncodedClip:
        """Encode a clip, mono in [-1, 1] at `sample_rate`, of any length from 1 sample.

        Raises:
            AudioError: the clip has no samples, or NaN or infinite ones.
        """
        summary, kept = torch.zeros((), device="cpu"), []
        bands = 1
        for piece in self.encode_windows(audio):
            bands = piece.encoded.layout.grid[1]
            kept.append(piece.tokens())
            summary = summary.to(piece.encoded.summary) + piece.encoded.summary[0] * len(kept[-1])
        tokens = torch.cat(kept)
        return self._clip(summary / len(tokens), tokens, bands)

    @torch.no_grad()
    def encode_batch(self, clips: Sequence[Float[Tensor, " samples"]]) -> list[EncodedClip]:
        """Return `encode` of clips with equally many time steps, computed in one pass; equal up to rounding.

        Args:
            clips: whose plans are `in_one_piece` and have the same `steps`; already checked by `check_audio`.

        Raises:
            ValueError: the clips differ in their time steps, or need several windows.
        """
        plans = [self.plan_windows(len(audio)) for audio in clips]
        if not all(plan.in_one_piece and plan.steps == plans[0].steps for plan in plans):
            raise ValueError("clips of different lengths cannot be encoded in one batch.")
        whole = Window(0, plans[0].steps, 0, plans[0].steps)
        encoded = self._encode(
            [self._window_audio(LoadedSound(audio), self._mean(LoadedSound(audio)), whole) for audio in clips]
        )
        bands = encoded.layout.grid[1]
        rows = zip(encoded.summary, encoded.tokens, strict=True)
        return [self._clip(summary, tokens, bands) for summary, tokens in rows]

    @torch.no_grad()
    def encode_windows(self, audio: Float[Tensor, " samples"] | Sound) -> Iterator[EncodedWindow]:
        """Encode a clip window by window, a few per pass; most clips are a single window.

        Raises:
            AudioError: the clip has no samples, or NaN or infinite ones.
        """
        if isinstance(audio, Tensor):
            audio = LoadedSound(check_audio(audio))
        plan, mean = self.plan_windows(audio.num_samples), self._mean(audio)
        all_windows, per_pass = plan.windows(), self.windows_per_pass(plan)
        for first in range(0, len(all_windows), per_pass):
            batch = all_windows[first : first + per_pass]
            encoded = self._encode([self._window_audio(audio, mean, window) for window in batch])
            for row, window in enumerate(batch):
                yield EncodedWindow(_row(encoded, row), window.keep_from, window.keep_to)

    def plan_windows(self, num_samples: int) -> WindowPlan:
        """Return how a clip of `num_samples` samples is divided into windows."""
        steps = self.framing.patches_in(self._num_frames(num_samples))
        return WindowPlan(num_samples, steps, self._window_steps(steps))

    def windows_per_pass(self, plan: WindowPlan) -> int:
        """Return the number of windows, or of clips in one piece, per pass."""
        bands = self.encoder.config.grid(self.front_end.num_bins, self.patch_frames)[1]
        tokens = TOKENS_PER_PASS.get(self.device.type, ACCELERATOR_TOKENS_PER_PASS)
        return max(1, tokens // (bands * min(plan.steps, plan.size)))

    @property
    def device(self) -> torch.device:
        """Device of the encoder."""
        return next(self.encoder.parameters()).device

    def _window_audio(self, sound: Sound, mean: float, window: Window) -> tuple[Tensor, int]:
        """Return the audio of a window, zero-padded at its end, and the samples from its start to the clip's end."""
        first, last = self.framing.samples_of(window.first, window.size)
        audio = sound.segment(first, last) - mean
        return torch.nn.functional.pad(audio, (0, last - first - len(audio))), sound.num_samples - first

    def _mean(self, sound: Sound) -> float:
        """Return what is subtracted from all samples; it affects only rounding, as each frame loses its mean anyway."""
        return sound.mean() if self.options.padding == "features" else 0.0

    def _encode(self, windows: Sequence[tuple[Tensor, int]]) -> EncoderOutput:
        with torch.autocast(self.device.type, enabled=False):
            audio = torch.stack([audio for audio, _ in windows]).to(self.device)
            lengths = torch.tensor([length for _, length in windows])
            features = padded_features(self.front_end, audio, lengths, self.options.padding)
        with matmul_precision(features.device, self.options.precision):
            encoded: EncoderOutput = self.encoder(features, layers=False)
        return replace(encoded, summary=encoded.summary.float(), tokens=encoded.tokens.float())

    def _clip(self, summary: Tensor, tokens: Tensor, bands: int) -> EncodedClip:
        return EncodedClip(summary, tokens, (len(tokens) // bands, bands), self.encoder.class_token is not None)

    def _num_frames(self, num_samples: int) -> int:
        """Return the frames of the clip, padded to a whole patch, or `target_length` if that is set."""
        if self.options.target_length is not None:
            return self.options.target_length
        short = num_samples <= self.options.minimum_samples
        whole = max(self.options.minimum_length, 0 if short else num_frames(num_samples, self.front_end))
        patches = 1 + max(0, -(-(whole - self.patch_frames) // self.framing.run_stride_frames))
        return self.framing.frames_of(patches)

    def _window_steps(self, steps: int) -> int:
        seconds = self.options.window_seconds
        if seconds is None:
            if steps <= MAX_STEPS:
                return steps
            seconds = self.options.clip_seconds
        return self.framing.patches_in(num_frames(round(seconds * self.sample_rate), self.front_end))


def check_audio(audio: object) -> Float[Tensor, " samples"]:
    """Check that a tensor is a valid clip, and return it as float32.

    Raises:
        AudioError: it is no floating-point tensor, has several channels or no samples, or samples that are NaN,
            infinite or far outside [-1, 1].
    """
    samples = check_waveform(audio)
    if samples.ndim != 1 or not len(samples):
        raise AudioError(f"audio must be one channel of at least one sample, not of shape {tuple(samples.shape)}.")
    check_samples(samples, "the audio")
    return samples.float()


def _row(encoded: EncoderOutput, row: int) -> EncoderOutput:
    """Return one clip of a batch."""
    if len(encoded.summary) == 1:
        return encoded
    index, padding = encoded.layout.index[row : row + 1], encoded.layout.padding
    layout = replace(encoded.layout, index=index, padding=None if padding is None else padding[row : row + 1])
    layers = tuple(layer[row : row + 1] for layer in encoded.layers)
    return EncoderOutput(encoded.summary[row : row + 1], encoded.tokens[row : row + 1], layout, layers)
