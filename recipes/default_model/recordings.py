"""Recordings that are free to use: sounds, voices and music of Debian's packages, and which of them are one kind.

    python recipes/default_model/recordings.py AUDIO

asks `apt-get` for each package of `packages.txt`, unpacks what is audio, and its copyright, into `AUDIO/PACKAGE`, and
installs nothing; it goes on where it was stopped. Takes of one name (`bark1.ogg`, `bark2.ogg`) are one kind. Of a kind,
every clip is another piece of another take, faster or slower.
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
"""What is said, in packages that hold far more of it than of anything else."""
EVALUATED = re.compile(r"^fire_small\.")
"""Names of files that are clips of a dataset on which the model is evaluated: this is 1-4211-A of ESC-10."""
TAKE = re.compile(r"[\d_\-. ]+$")
SPEED = 0.2
"""Range of the logarithm of the factor by which a piece is made faster, and so higher."""
LARGEST_RATIO = 64
"""Largest denominator of a ratio of rates, which bounds the filter that resamples."""
SHORTEST, LONGEST = 0.15, 30.0
"""Seconds of a file: shorter ones are left out, of longer ones this much is used."""
QUIET, TRIES = 1e-3, 5
"""A piece with a smaller peak is drawn again, so many times."""


def unpacked(package: str, folder: Path) -> None:
    """Fetch a package and keep what is audio, unless that was done."""
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
    """Delete what is no audio, of archives too."""
    for inner in folder.rglob("*.zip"):
        with ZipFile(inner) as opened:
            members = [name for name in opened.namelist() if name.lower().endswith(SUFFIXES)]
            opened.extractall(inner.parent, members)
        inner.unlink()
    for file in folder.rglob("*"):
        if file.is_symlink() or (file.is_file() and not file.name.lower().endswith(KEPT)):
            file.unlink()


def kinds_of(folder: Path, most_speech: int) -> dict[str, list[Path]]:
    """Name -> its takes, of all that is not said, and of as many kinds of speech."""
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
    """Whether what is used of a file can be read and is long enough."""
    try:
        with soundfile.SoundFile(file) as opened:
            samples = opened.read(round(LONGEST * opened.samplerate), always_2d=True)
            return len(samples) >= SHORTEST * opened.samplerate
    except soundfile.LibsndfileError:
        return False


def piece(files: list[Path], seconds: float, generator: Generator) -> np.ndarray:
    """So many seconds of one of the takes, or all of it if it is shorter, at the rate of the corpus."""
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
        ratio = Fraction(RATE / (opened.samplerate * speed)).limit_denominator(LARGEST_RATIO)
    return resample_poly(audio, ratio.numerator, ratio.denominator)


def main() -> None:
    """Fetch all packages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("audio", type=Path)
    folder = parser.parse_args().audio
    folder.mkdir(parents=True, exist_ok=True)
    for package in tqdm(PACKAGES.read_text().split(), unit="package"):
        unpacked(package, folder)


if __name__ == "__main__":
    main()
