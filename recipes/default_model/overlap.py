"""Search for the clips of a dataset in the training recordings, so that no model is evaluated on its training data.

    OMP_NUM_THREADS=1 python recipes/default_model/overlap.py AUDIO CLIPS

takes the loudest second of every audio file in the folder CLIPS and compares its log-mel spectrogram (each band minus
its mean) with that of AUDIO, as far as `make_corpus.py` uses it, at every 40 ms. For the closest matches it prints the
correlation of the waveforms at the best offset: near 1 is the same recording, also if it was filtered or cropped; other
recordings of the same source are far below. Copies at another speed are not found; silent clips are skipped.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from recordings import LONGEST, SUFFIXES, kinds_of
from scipy.signal import correlate
from sounds import RATE
from torch import Tensor
from torch.nn.functional import pad
from tqdm import tqdm

from asda_core.audio.reading import read_audio
from asda_core.errors import AudioError
from asda_core.log_mel import LogMel, LogMelConfig

FRAMES = 4
"""Number of frames of 10 ms that are averaged to a step."""
STEPS = 25
"""Number of steps in the second of a clip."""
SAMPLES = round(RATE * 1.1)
"""Number of samples of that second, with the last window."""
QUIET = 1e-3
"""Clips with a smaller peak are skipped."""
FRONT_END = LogMel(LogMelConfig(num_bins=64), RATE)


@dataclass
class Sought:
    """A second of a clip and its closest match.

    Attributes:
        clip: its file; samples: the second; likeness: cosine similarity of the spectrograms, -1 to 1.
        file, second: place of the closest match in the recordings.
    """

    clip: Path
    samples: Tensor
    likeness: float = -1.0
    file: Path | None = None
    second: float = 0.0


def steps_of(samples: Tensor) -> Tensor:
    """Log-mel features of every 40 ms, (64, steps)."""
    features: Tensor = FRONT_END(samples[None])[0]
    return features[:, : features.shape[1] // FRAMES * FRAMES].unflatten(1, (-1, FRAMES)).mean(dim=2)


def normed(windows: Tensor) -> Tensor:
    """Windows (N, 64, STEPS) as unit vectors, each band minus its mean."""
    vectors = (windows - windows.mean(dim=2, keepdim=True)).flatten(1)
    lengths: Tensor = vectors.norm(dim=1, keepdim=True)
    return vectors / lengths.clamp(min=1e-6)


def loudest_second(clip: Path) -> Sought | None:
    """The loudest second of a clip; None if it is silent or too short."""
    samples = read_audio(clip, RATE)
    if len(samples) < SAMPLES or samples.abs().max() < QUIET:
        return None
    first = int(samples.square().unfold(0, SAMPLES, RATE // 10).mean(dim=1).argmax()) * (RATE // 10)
    return Sought(clip, samples[first : first + SAMPLES])


def seek(sought: list[Sought], files: list[Path]) -> float:
    """Fill in the closest match of each; return the hours of audio that were searched."""
    vectors = normed(torch.stack([steps_of(each.samples)[:, :STEPS] for each in sought]))
    hours = 0.0
    for file in tqdm(files, unit="file"):
        try:
            samples = read_audio(file, RATE, 0.0, LONGEST)
        except AudioError as error:
            tqdm.write(f"skipped: {error}")
            continue
        hours += len(samples) / RATE / 3600
        windows = steps_of(pad(samples, (0, max(0, SAMPLES - len(samples))))).unfold(1, STEPS, 1).transpose(0, 1)
        likeness, where = (normed(windows) @ vectors.T).max(dim=0)
        for each, value, step in zip(sought, likeness.tolist(), where.tolist(), strict=True):
            if value > each.likeness:
                each.likeness, each.file, each.second = value, file, step * FRAMES / 100
    return hours


def correlation(each: Sought) -> float:
    """Correlation of the waveform of the second with that of its closest match, within 200 ms."""
    if each.file is None:
        return 0.0
    margin = RATE // 5
    first = max(0, round(each.second * RATE) - margin)
    found = read_audio(each.file, RATE, first / RATE, (len(each.samples) + 2 * margin) / RATE)
    found = pad(found, (0, max(0, len(each.samples) - len(found))))
    products = torch.from_numpy(correlate(found.numpy(), each.samples.numpy(), "valid"))
    powers = found.square().unfold(0, len(each.samples), 1).sum(dim=1)
    return float((products.abs() / (powers.sqrt() * each.samples.norm()).clamp(min=1e-6)).max())


def main() -> None:
    """Search for all clips and print the closest matches."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("audio", type=Path)
    parser.add_argument("clips", type=Path)
    parser.add_argument("--top", type=int, default=12, help="number of closest matches to print (default: %(default)s)")
    parser.add_argument("--speech", type=int, default=0, help="classes of speech to search as well (default: none)")
    parsed = parser.parse_args()
    clips = [file for file in sorted(parsed.clips.rglob("*")) if file.suffix.lower() in SUFFIXES]
    sought = [second for second in map(loudest_second, clips) if second]
    if not sought:
        parser.error(f"{parsed.clips} contains no audio file of {SAMPLES / RATE:g} s or more that is not silent.")
    files = [file for takes in kinds_of(parsed.audio, parsed.speech).values() for file in takes]
    hours = seek(sought, files)
    print(f"searched for {len(sought)} of {len(clips)} clips in {hours:.1f} hours of {len(files)} files")
    print("spectrogram  waveform  clip, and its closest match")
    for each in sorted(sought, key=lambda one: -one.likeness)[: parsed.top]:
        print(f"{each.likeness:11.3f}  {correlation(each):8.3f}  {each.clip.name}, {each.file} at {each.second:.2f} s")


if __name__ == "__main__":
    main()
