"""Generate the training clips of the package's model: words in many voices, random synthesisers, recordings.

    apt-get install espeak-ng
    python recipes/default_model/recordings.py AUDIO
    python recipes/default_model/make_corpus.py CORPUS AUDIO

writes `CORPUS/words/{train,valid}/WORD/*.flac` (one word, 1 s, 16 kHz), `CORPUS/sounds/{train,valid}/NUMBER/*.flac` (a
rendering of a synthesiser, 2 s) and `CORPUS/recordings/{train,valid}/NAME/*.flac` (an excerpt of a recording, 2 s). If
stopped, the same command resumes. The voices of `valid` do not occur in `train`. Every clip depends only on the seed,
its word, synthesiser or recordings, and its number.
"""

import argparse
import io
import subprocess
import zlib
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import soundfile
from recordings import kinds_of, piece
from scipy.signal import butter, fftconvolve, resample_poly, sosfilt
from sounds import RATE, rendered, synthesiser
from tqdm import tqdm

WORD_SECONDS, SOUND_SECONDS, RECORDING_SECONDS = 1.0, 2.0, 2.0
WORDS = Path(__file__).with_name("words.txt")
ACCENTS = ("en-us", "en-gb", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-029", "en-us-nyc")
"""Accents of espeak-ng 1.51."""
VARIANTS = Path(__file__).with_name("voices.txt").read_text(encoding="utf-8").split()
"""Voices of espeak-ng that sound like people."""
VALID_EVERY = 10
"""Every tenth voice occurs in `valid` only."""
TRACT = (0.82, 1.22)
"""Range of the factor by which the spectrum is stretched, which simulates another vocal tract length."""
MAX_DENOMINATOR = 64
"""Largest denominator of a ratio of rates, which bounds the filter that resamples."""
BANDWIDTHS = (3_400.0, 3_900.0, 5_500.0, 7_900.0)
"""Upper cut-off frequencies in Hz of the simulated channels."""
Clip = Callable[[str, int, int, bool], np.ndarray]
"""Name, number, seed, whether it belongs to `valid` -> samples."""


def spoken(word: str, generator: np.random.Generator, valid: bool) -> np.ndarray:
    """A word in a random voice, at the sample rate of the corpus."""
    held_out = [number % VALID_EVERY == 0 for number in range(len(VARIANTS))]
    voices = [name for name, held in zip(VARIANTS, held_out, strict=True) if held == valid]
    voice = f"{generator.choice(ACCENTS)}+{generator.choice(voices)}"
    tract = generator.uniform(*TRACT)
    speed = str(round(generator.uniform(110, 230) / tract))
    command = ["espeak-ng", "-v", voice, "-p", str(generator.integers(5, 95)), "-s", speed, "--stdout", word]
    made = subprocess.run(command, capture_output=True, check=True)
    audio, rate = soundfile.read(io.BytesIO(made.stdout))
    ratio = Fraction(RATE / (rate * tract)).limit_denominator(MAX_DENOMINATOR)
    return resample_poly(audio, ratio.numerator, ratio.denominator) if len(audio) else np.zeros(RATE // 2)


def trimmed(audio: np.ndarray, share: float = 0.01) -> np.ndarray:
    """The audio without both ends that are quieter than a share of the peak."""
    loud = np.flatnonzero(np.abs(audio) > share * max(1e-6, np.abs(audio).max()))
    return audio[loud[0] : loud[-1] + 1] if len(loud) else audio


def in_a_room(audio: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Simulate a channel with random bandwidth and spectral tilt, and in half of the clips reverberation."""
    if generator.random() < 0.5:
        time = np.arange(int(RATE * generator.uniform(0.05, 0.3)))
        echo = generator.normal(size=len(time)) * np.exp(-6.9 * time / len(time)) * generator.uniform(0.02, 0.3)
        echo[0] = 1.0
        audio = fftconvolve(audio, echo)
    tilt = generator.uniform(-0.7, 0.7)
    audio = sosfilt(np.array([[1.0, -tilt, 0.0, 1.0, 0.0, 0.0]]), audio)
    low = generator.uniform(20, 250)
    high = generator.choice(BANDWIDTHS)
    return sosfilt(butter(4, [low, high], "bandpass", fs=RATE, output="sos"), audio)


def placed(audio: np.ndarray, seconds: float, generator: np.random.Generator) -> np.ndarray:
    """A clip of that length: half start with the audio, as cropped recordings do; level and noise are random."""
    num_samples = round(seconds * RATE)
    audio = audio[:num_samples]
    first = 0 if generator.random() < 0.5 else int(generator.integers(num_samples - len(audio) + 1))
    clip = np.zeros(num_samples)
    clip[first : first + len(audio)] = audio
    clip *= 10 ** generator.uniform(-1.5, -0.05) / max(1e-6, np.abs(clip).max())
    if generator.random() < 0.6:
        colour = generator.uniform(0, 0.95)
        noise = sosfilt(np.array([[1.0, 0.0, 0.0, 1.0, -colour, 0.0]]), generator.normal(size=num_samples))
        level = np.abs(clip).max() * 10 ** generator.uniform(-3.5, -1)
        clip += level * noise / noise.std()
    return np.clip(clip, -1, 1)


def word_clip(word: str, number: int, seed: int, valid: bool) -> np.ndarray:
    """Clip `number` of a word."""
    generator = np.random.default_rng([seed, zlib.crc32(word.encode()), number, valid])
    return placed(in_a_room(trimmed(spoken(word, generator, valid)), generator), WORD_SECONDS, generator)


def sound_clip(name: str, number: int, seed: int, valid: bool) -> np.ndarray:
    """Clip `number` of a synthesiser, whose name is its number."""
    layers = synthesiser(np.random.default_rng([seed, int(name)]))
    generator = np.random.default_rng([seed, int(name), number, valid])
    audio = rendered(layers, round(SOUND_SECONDS * RATE), generator)
    return placed(in_a_room(audio, generator), SOUND_SECONDS, generator)


def recording_clip(name: str, number: int, seed: int, valid: bool, files: list[Path]) -> np.ndarray:
    """Clip `number` of a class of recordings."""
    generator = np.random.default_rng([seed, zlib.crc32(name.encode()), number, valid])
    audio = piece(files, RECORDING_SECONDS, generator)
    return placed(in_a_room(audio, generator), RECORDING_SECONDS, generator)


def make_kind(kind: tuple[str, Clip], folder: Path, count: int, seed: int, valid: bool) -> None:
    """Write the missing clips of a word, synthesiser or class of recordings."""
    name, make = kind
    place = folder / name
    place.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        file = place / f"{name}-{number:04d}.flac"
        if not file.exists():
            part = file.with_suffix(".part")
            soundfile.write(part, make(name, number, seed, valid), RATE, "PCM_16", format="FLAC")
            part.replace(file)


def main() -> None:
    """Generate all parts of the corpus."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("audio", type=Path, nargs="?", help="folder of recordings.py; without it, no recordings")
    parser.add_argument("--renderings", type=int, default=30, help="training clips per word or synthesiser")
    parser.add_argument("--pieces", type=int, default=8, help="training clips per class of recordings")
    parser.add_argument("--words", type=int, help="number of words (default: all)")
    parser.add_argument("--sounds", type=int, default=1200, help="number of synthesisers")
    parser.add_argument("--speech", type=int, default=1500, help="number of classes of recorded speech")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parsed = parser.parse_args()
    words = WORDS.read_text(encoding="utf-8").split()[: parsed.words]
    found = kinds_of(parsed.audio, parsed.speech) if parsed.audio else {}
    kinds: dict[str, tuple[int, list[tuple[str, Clip]]]] = {
        "words": (parsed.renderings, [(word, word_clip) for word in words]),
        "sounds": (parsed.renderings, [(f"{number:04d}", sound_clip) for number in range(parsed.sounds)]),
        "recordings": (parsed.pieces, [(name, partial(recording_clip, files=files)) for name, files in found.items()]),
    }
    with ProcessPoolExecutor(parsed.jobs) as workers:
        for task, (pieces, every) in kinds.items():
            for part, count in (("valid", 1), ("train", pieces)):
                folder = parsed.corpus / task / part
                make = partial(make_kind, folder=folder, count=count, seed=parsed.seed, valid=part == "valid")
                list(tqdm(workers.map(make, every), total=len(every), desc=f"{task} {part}"))


if __name__ == "__main__":
    main()
