"""`asda data stats`: feature mean and standard deviation, lengths, sample rates, silent and broken files."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from asda_core.assemble import build_front_end
from asda_core.audio.opening import open_audio
from asda_core.audio.reading import read_samples
from asda_core.catalog import Catalog
from asda_core.config import Compat, PluginChoice
from asda_core.contracts import FrontEnd
from asda_core.errors import AudioError, ConfigError, NoSamplesError, first_reasons, prefix_errors
from asda_core.system.thread_map import map_in_threads

BLOCK_SECONDS = 60.0
"""Longer files are processed in blocks of this length."""
MISSING_SECONDS = 0.1
"""Excess of the header's length above which the decoded length counts instead; resampling rounds to a sample."""
SILENT_PEAK = 1 / (1 << 15)
"""Files with a peak of at most one 16-bit step are silent."""
NEUTRAL = {"mean": 0.0, "std": 0.5}
"""Options with which `(x - mean) / (2 std)` is x."""
SHIFTED = {"mean": 1.0, "std": 1.0}
"""Options with which it is (x - 1) / 2."""


class FileStatistics(NamedTuple):
    """Statistics of one file, or the `problem` that prevents them. A file shorter than one window gives no values."""

    seconds: float = 0.0
    rate: int = 0
    channels: int = 0
    peak: float = 0.0
    num_values: int = 0
    total: float = 0.0
    squares: float = 0.0
    problem: str = ""


@dataclass
class Statistics:
    """Statistics of all files together. Sums are in float64.

    Attributes:
        front_end: the plugin whose features were measured.
        seconds: length of each file that could be read.
        rates, channels: number of files by sample rate in Hz, and by number of channels.
        num_values, total, squares: number, sum and sum of squares of the un-normalised feature values.
        silent: files no louder than one 16-bit step.
        short: files shorter than one window of the front end; they are readable, but give no feature.
        broken: file -> what is wrong with it.
    """

    front_end: PluginChoice
    seconds: list[float] = field(default_factory=list)
    rates: Counter[int] = field(default_factory=Counter)
    channels: Counter[int] = field(default_factory=Counter)
    num_values: int = 0
    total: float = 0.0
    squares: float = 0.0
    silent: list[str] = field(default_factory=list)
    short: list[str] = field(default_factory=list)
    broken: dict[str, str] = field(default_factory=dict)

    @property
    def mean(self) -> float:
        """Mean of all values."""
        return self.total / self.num_values

    @property
    def std(self) -> float:
        """Standard deviation of all values."""
        return math.sqrt(max(0.0, self.squares / self.num_values - self.mean**2))

    def add(self, file: Path, file_statistics: FileStatistics) -> None:
        """Add the statistics of one file."""
        if file_statistics.problem:
            self.broken[str(file)] = file_statistics.problem
            return
        self.seconds.append(file_statistics.seconds)
        self.rates[file_statistics.rate] += 1
        self.channels[file_statistics.channels] += 1
        self.num_values += file_statistics.num_values
        self.total += file_statistics.total
        self.squares += file_statistics.squares
        if not file_statistics.num_values:
            self.short.append(str(file))
        if file_statistics.peak <= SILENT_PEAK:
            self.silent.append(str(file))


def measure(
    files: Sequence[Path],
    catalog: Catalog,
    front_end: PluginChoice,
    compat: Compat = "default",
    jobs: int = 1,
    progress: bool = True,
) -> Statistics:
    """Measure audio files with a front end.

    Args:
        files: audio files.
        catalog: the plugins.
        front_end: front end to determine `mean` and `std` for; its own values of them are ignored.
        compat: of the run.
        jobs: number of threads.
        progress: whether to show a progress bar.

    Raises:
        ConfigError: the front end does not normalise by one mean and one standard deviation.
        AudioError: no file gives a feature.
    """
    module = build_unnormalised(catalog, front_end, compat)
    overall = Statistics(front_end)
    with tqdm(total=len(files), unit="file", disable=not progress) as bar:
        for file, measured in map_in_threads(lambda file: measure_file(file, module), files, jobs):
            overall.add(file, measured)
            bar.update()
    if not overall.num_values:
        short = [f"{file} is shorter than one window" for file in overall.short]
        reasons = first_reasons([*overall.broken.values(), *short])
        raise AudioError(f"none of the {len(files)} audio files gives features. First reasons: {reasons}")
    return overall


def build_unnormalised(catalog: Catalog, choice: PluginChoice, compat: Compat = "default") -> Any:
    """Build the front end without its normalisation.

    Raises:
        ConfigError: its normalisation is not of the form `(x - mean) / (2 std)`.
    """
    message = f"the front end {choice.name!r} does not normalise features by (x - mean) / (2 std)"
    with prefix_errors(message):
        plain, shifted = (
            build_front_end(catalog, PluginChoice(choice.name, {**choice.options, **options}), compat)
            for options in (NEUTRAL, SHIFTED)
        )
    audio = torch.randn(1, plain.sample_rate, generator=torch.Generator().manual_seed(0)) / 10
    with torch.inference_mode():
        if not torch.allclose(shifted(audio), (plain(audio) - 1) / 2, atol=1e-4):
            raise ConfigError(f"{message}; log_mel does.")
    return plain.eval()


def measure_file(file: Path, front_end: FrontEnd) -> FileStatistics:
    """Measure one file with a front end."""
    count, total, squares, peak, end = 0, 0.0, 0.0, 0.0, 0.0
    try:
        with open_audio(file) as source, torch.inference_mode():
            seconds, rate, channels = len(source) / source.samplerate, int(source.samplerate), int(source.channels)
            for start in _starts(seconds):
                try:
                    audio = read_samples(source, str(file), front_end.sample_rate, start, BLOCK_SECONDS)
                except NoSamplesError:  # the file is shorter than its header says
                    if not count:
                        raise
                    break
                end = start + len(audio) / front_end.sample_rate
                peak = max(peak, float(audio.abs().max()))
                try:
                    values = front_end(audio[None]).double()
                except ConfigError:  # shorter than one window
                    break
                count += values.numel()
                total += float(values.sum())
                squares += float(values.square().sum())
    except AudioError as error:
        return FileStatistics(problem=str(error))
    return FileStatistics(
        end if seconds - end > MISSING_SECONDS else seconds, rate, channels, peak, count, total, squares
    )


def _starts(seconds: float) -> Iterator[float]:
    start = 0.0
    while start < seconds:
        yield start
        start += BLOCK_SECONDS
