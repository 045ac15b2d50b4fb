"""Freely licensed recordings: sounds, voices and music of Debian's packages, sorted into classes.

    python recipes/default_model/recordings.py AUDIO

downloads each package of `packages.txt` with `apt-get` and unpacks its audio files and its copyright file into
`AUDIO/PACKAGE`; nothing is installed, and a stopped download is resumed. Files with one name and different numbers
(`bark1.ogg`, `bark2.ogg`) are one class. Each clip of a class is a random excerpt of a random file, at a random speed.
"""

import argparse
import re
import shutil
import subprocess
import zlib
from collections import defaultdict
from fractions import Fraction
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import soundfile
from numpy.random import Generator
from scipy.signal import resample_poly
from sounds import RATE
from tqdm import tqdm

PACKAGES = Path(__file__).with_name("packages.txt")
"""Names of Debian 12."""
SUFFIXES = (".wav", ".ogg", ".oga", ".flac", ".mp3", ".aiff", ".aif", ".au")
KEPT = (*SUFFIXES, "copyright")
SPEECH = re.compile(r"asterisk-core|klettres|ktuberling|fillets|gcin-voice|emacspeak|saytime|_desc|/voices?/")
"""Paths of speech, in packages that consist mostly of speech."""
EVALUATED = re.compile(r"^fire_small\.")
"""Names of files that are clips of an evaluation dataset: this one is 1-4211-A of ESC-10."""
TAKE = re.compile(r"[\d_\-. ]+$")
SPEED = 0.2
"""Largest absolute logarithm of the speed factor of an excerpt, which also changes its pitch."""
MAX_DENOMINATOR = 64
"""Largest denominator of a ratio of rates, which bounds the filter that resamples."""
SHORTEST, LONGEST = 0.15, 30.0
"""Seconds: shorter files are skipped, and only this much of longer files is used."""
QUIET, TRIES = 1e-3, 5
"""An excerpt with a smaller peak is drawn again, at most this many times."""


def unpacked(package: str, folder: Path) -> None:
    """Download a package and keep its audio files, unless its folder exists."""
    place = folder / package
    if place.exists():
        return
    work = folder / f"{package}.part"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    subprocess.run(["apt-get", "--quiet", "download", package], cwd=work, check=True, capture_output=True)
    (archive,) = work.glob("*.deb")
    subprocess.run(["dpkg-deb", "--extract", archive, work / "kept"], check=True)
    keep_audio(work / "kept")
    (work / "kept").rename(place)
    shutil.rmtree(work)


def keep_audio(folder: Path) -> None:
    """Delete everything except audio files and copyright files; zip archives are unpacked first."""
    for inner in folder.rglob("*.zip"):
        with ZipFile(inner) as opened:
            members = [name for name in opened.namelist() if name.lower().endswith(SUFFIXES)]
            opened.extractall(inner.parent, members)
        inner.unlink()
    for file in folder.rglob("*"):
        if file.is_symlink() or (file.is_file() and not file.name.lower().endswith(KEPT)):
            file.unlink()


def kinds_of(folder: Path, most_speech: int) -> dict[str, list[Path]]:
    """Class name -> files: all classes without speech, and at most `most_speech` classes of speech."""
    found: dict[str, list[Path]] = defaultdict(list)
    for file in sorted(folder.rglob("*")):
        if file.suffix.lower() in SUFFIXES and not EVALUATED.match(file.name) and usable(file):
            parts = file.relative_to(folder).parts
            name = "-".join([parts[0], *parts[-3:-1], TAKE.sub("", file.stem)])
            found[re.sub(r"\W+", "-", name)].append(file)
    said = [name for name, files in found.items() if SPEECH.search(files[0].relative_to(folder).as_posix())]
    said.sort(key=lambda name: zlib.crc32(name.encode()))
    for name in said[most_speech:]:
        del found[name]
    return dict(found)


def usable(file: Path) -> bool:
    """Whether the used part of a file can be read and is long enough."""
    try:
        with soundfile.SoundFile(file) as opened:
            samples = opened.read(round(LONGEST * opened.samplerate), always_2d=True)
            return len(samples) >= SHORTEST * opened.samplerate
    except soundfile.LibsndfileError:
        return False


def piece(files: list[Path], seconds: float, generator: Generator) -> np.ndarray:
    """A random excerpt of one of the files, or all of it if it is shorter, at the sample rate of the corpus."""
    file = files[generator.integers(len(files))]
    speed = np.exp(generator.uniform(-SPEED, SPEED))
    with soundfile.SoundFile(file) as opened:
        wanted = round(seconds * speed * opened.samplerate)
        latest = max(0, min(len(opened), round(LONGEST * opened.samplerate)) - wanted)
        for _ in range(TRIES):
            opened.seek(int(generator.integers(latest + 1)))
            audio = opened.read(wanted, always_2d=True).mean(axis=1)
            if len(audio) and np.abs(audio).max() > QUIET:
                break
        ratio = Fraction(RATE / (opened.samplerate * speed)).limit_denominator(MAX_DENOMINATOR)
    return resample_poly(audio, ratio.numerator, ratio.denominator)


def main() -> None:
    """Download all packages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("audio", type=Path)
    folder = parser.parse_args().audio
    folder.mkdir(parents=True, exist_ok=True)
    for package in tqdm(PACKAGES.read_text(encoding="utf-8").split(), unit="package"):
        unpacked(package, folder)


if __name__ == "__main__":
    main()
