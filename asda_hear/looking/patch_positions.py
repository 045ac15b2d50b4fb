"""Conversion between seconds and Hz and the patches of an excerpt."""

import math
from dataclasses import dataclass

from asda_core.errors import ConfigError
from asda_core.log_mel import LOW_HZ, LogMel
from asda_hear.looking.clip import Excerpt, OpenModel

MEL_FACTOR, MEL_CORNER_HZ = 1127.0, 700.0
"""`mel = 1127 ln(1 + Hz / 700)`. **Source**: Kaldi, as torchaudio's `mel_scale_scalar`."""
TICKS_HZ = (250, 500, 1000, 2000, 4000, 8000, 16_000)
"""Frequencies labelled on an axis."""


@dataclass(frozen=True)
class PatchPositions:
    """Positions of the patches of an excerpt.

    Attributes:
        grid: (time steps, bands).
        start_seconds: start of the first step, in the file.
        step_seconds: from one step to the next.
        step_bins: from one band to the next.
        num_bins: of the front end.
        top_hz: upper edge of the highest mel bin; None if the bins are not mel bands.
    """

    grid: tuple[int, int]
    start_seconds: float
    step_seconds: float
    step_bins: int
    num_bins: int
    top_hz: float | None

    @property
    def end_seconds(self) -> float:
        """End of the last step, in the file."""
        return self.start_seconds + self.grid[0] * self.step_seconds

    def mel_bin(self, hertz: float) -> float:
        """Fractional mel bin of a frequency; bin i is centred at i."""
        assert self.top_hz is not None, "only mel bands have frequencies"
        low, high = hz_to_mel(LOW_HZ), hz_to_mel(self.top_hz)
        return (hz_to_mel(hertz) - low) / (high - low) * (self.num_bins + 1) - 1

    def ticks(self) -> list[tuple[float, str]]:
        """(bin, label) pairs for an axis in kHz; bin numbers if the bins are not mel bands."""
        if self.top_hz is None:
            quarter = max(1, self.num_bins // 4)
            return [(float(number), str(number)) for number in range(0, self.num_bins + 1, quarter)]
        return [(self.mel_bin(hertz), f"{hertz / 1000:g}") for hertz in TICKS_HZ if hertz <= self.top_hz]

    def patch_at(self, seconds: float, hertz: float) -> int:
        """Raster index of the patch at a time (of the file) and a frequency.

        Raises:
            ConfigError: the position is outside the excerpt, or the model's bins are not mel bands.
        """
        if not self.start_seconds <= seconds < self.end_seconds:
            raise ConfigError(
                f"--query: {seconds:g} s is outside the excerpt from {self.start_seconds:g} s to "
                f"{self.end_seconds:g} s; move it with --at."
            )
        if self.top_hz is None:
            raise ConfigError("--query: the bins of this model are not mel bands, so its patches have no frequency.")
        if not LOW_HZ <= hertz <= self.top_hz:
            raise ConfigError(f"--query: {hertz:g} Hz is not between {LOW_HZ:g} and {self.top_hz:g} Hz.")
        step = min(int((seconds - self.start_seconds) / self.step_seconds), self.grid[0] - 1)
        band = min(int(max(0, round(self.mel_bin(hertz))) / self.step_bins), self.grid[1] - 1)
        return step * self.grid[1] + band


def patch_positions(model: OpenModel, excerpt: Excerpt, num_frames: int) -> PatchPositions:
    """Return the positions of the patches of features with `num_frames` frames."""
    front_end, config = model.front_end, model.encoder.config
    return PatchPositions(
        grid=config.grid(front_end.num_bins, num_frames),
        start_seconds=excerpt.start_seconds,
        step_seconds=config.step_frames * front_end.hop_samples / model.sample_rate,
        step_bins=config.step_bins,
        num_bins=front_end.num_bins,
        top_hz=model.sample_rate / 2 if isinstance(front_end, LogMel) else None,
    )


def hz_to_mel(hertz: float) -> float:
    """Convert Hz to mel."""
    return MEL_FACTOR * math.log1p(hertz / MEL_CORNER_HZ)
