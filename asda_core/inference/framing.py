"""Split long audio into windows at integer sample positions. Integer arithmetic only; no floats accumulate.

One patch covers `span` samples (2,800: 16 frames 160 apart, each 400 long). The patch of step k begins at
`k * step - offset`; for timestamps the offset is half a span, so that its centre is the timestamp::

      step            0        1        2        3           step = 640 samples = 40 ms with four shifts
      timestamp       0       640     1280     1920
      patch 0    [----+----]                                 [ span 2,800 ], half of it before the audio begins
      patch 1            [----+----]
      audio           |=================== ...

With `shifts` runs, run r takes patches r, r + shifts, r + 2 shifts, ..., which lie side by side without overlap, as the
encoder's grid requires; the outputs of the runs are interleaved.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from asda_core.contracts import FrontEnd

MILLISECONDS = 1000
CONTEXT_DIVISOR = 8
"""One eighth of a window at each inner edge serves only as context."""


def num_frames(num_samples: int, front_end: FrontEnd) -> int:
    """Return the number of frames that fit entirely into `num_samples`, at least 0."""
    return max(0, (num_samples - front_end.window_samples) // front_end.hop_samples + 1)


@dataclass(frozen=True)
class Framing:
    """Positions of patches in the audio, in samples.

    Attributes:
        sample_rate: in Hz.
        hop_samples, window_samples: of the front end's frames.
        patch_frames: frames in a patch.
        shifts: number of interleaved runs; a divisor of the frames from one patch to the next.
        stride_frames: frames from one patch to the next if patches overlap; None if they lie side by side.
        centred: whether patches are centred on their step (timestamps) or begin there (scenes).
    """

    sample_rate: int
    hop_samples: int
    window_samples: int
    patch_frames: int
    shifts: int = 1
    centred: bool = True
    stride_frames: int | None = None

    @property
    def run_stride_frames(self) -> int:
        """Frames from one patch of a run to the next."""
        return self.patch_frames if self.stride_frames is None else self.stride_frames

    @property
    def shift_frames(self) -> int:
        """Frames from one step to the next."""
        return self.run_stride_frames // self.shifts

    @property
    def step_samples(self) -> int:
        """Samples from one step to the next."""
        return self.shift_frames * self.hop_samples

    @property
    def span_samples(self) -> int:
        """Samples that one patch covers."""
        return (self.patch_frames - 1) * self.hop_samples + self.window_samples

    @property
    def offset_samples(self) -> int:
        """Samples by which the first patch starts before the audio."""
        return self.span_samples // 2 if self.centred else 0

    def num_steps(self, num_samples: int) -> int:
        """Steps of a clip. Centred: one at 0 and one per whole step after it; otherwise as many as cover all frames."""
        if self.centred:
            return num_samples // self.step_samples + 1
        frames = 1 + max(0, num_samples - self.window_samples) // self.hop_samples
        return 1 + max(0, -(-(frames - self.patch_frames) // self.shift_frames))

    def patches_in(self, frames: int) -> int:
        """Whole patches of one run in `frames` frames, at least one."""
        return max(1, (frames - self.patch_frames) // self.run_stride_frames + 1)

    def frames_of(self, patches: int) -> int:
        """Frames that `patches` patches of one run cover."""
        return (patches - 1) * self.run_stride_frames + self.patch_frames

    def timestamps_ms(self, num_samples: int) -> Float[Tensor, " steps"]:
        """Times of the steps in ms (patch centres if `centred`): integer samples converted in float64, then float32."""
        samples = torch.arange(self.num_steps(num_samples), dtype=torch.int64, device="cpu") * self.step_samples
        return (samples.double() * MILLISECONDS / self.sample_rate).float()

    def window_frames(self, patches: int) -> int:
        """Frames that all shifts of a window of `patches` patches need together."""
        return self.frames_of(patches) + (self.shifts - 1) * self.shift_frames

    def samples_of(self, first_patch: int, patches: int) -> tuple[int, int]:
        """First sample and end (exclusive) of a window of `patches` patches, starting at `first_patch` of run 0."""
        start = first_patch * self.run_stride_frames * self.hop_samples - self.offset_samples
        return start, start + (self.window_frames(patches) - 1) * self.hop_samples + self.window_samples

    def window_audio(
        self, audio: Float[Tensor, "batch samples"], first_patch: int, patches: int
    ) -> Float[Tensor, "batch window"]:
        """Return the samples of a window, zero-padded where it extends beyond the audio.

        Args:
            audio: whole clips.
            first_patch: first patch of run 0.
            patches: number of patches per run.
        """
        start, stop = self.samples_of(first_patch, patches)
        inside = audio[:, max(0, start) : max(0, stop)]
        before = min(max(0, -start), stop - start)
        return torch.nn.functional.pad(inside, (before, stop - start - before - inside.shape[1]))


@dataclass(frozen=True)
class Window:
    """Window of patches: `first` to `first + size` are computed, of which `keep_from` to `keep_to` are kept."""

    first: int
    size: int
    keep_from: int
    keep_to: int


def windows(num_patches: int, size: int, context: int) -> Iterator[Window]:
    """Cover patches with overlapping windows of equal size, keeping each patch from a window that gives it context.

    ::

        |ccKKKKcc|          c context, K kept; the first and the last window keep their outer context too
             |ccKKKKcc|
                |ccKKKK|    the last window is moved back to end with the audio

    Args:
        num_patches: patches of the clip (per run).
        size: patches per window; a shorter clip is one window of its own length.
        context: patches at each inner edge that are computed but not kept.
    """
    if num_patches <= size:
        yield Window(0, num_patches, 0, num_patches)
        return
    done = 0
    while done < num_patches:
        first = min(max(0, done - context), num_patches - size)
        last = first + size == num_patches
        keep_to = size if last else size - context
        yield Window(first, size, done - first, keep_to)
        done = first + keep_to
