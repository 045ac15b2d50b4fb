"""File -> mono float32 waveform at one rate; cropping and padding; what was wrong with a bad file."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import soundfile
import torch
import torchaudio.functional
from jaxtyping import Float
from torch import Tensor

from asda_core.errors import AudioError

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".w64", ".au")
"""File names that a search through folders takes for audio; libsndfile reads all of them."""


def read_audio(
    file: str | Path, sample_rate: int, start_seconds: float = 0.0, seconds: float | None = None
) -> Float[Tensor, " samples"]:
    """Read an audio file, or a stretch of it, as mono at a given rate.

    Channels are averaged first, then the mean is resampled with torchaudio's windowed sinc.

    Args:
        file: anything that libsndfile reads.
        sample_rate: the rate wanted, in Hz.
        start_seconds: where the stretch begins.
        seconds: how long it is at most; None reads to the end.

    Returns:
        float32 samples, in [-1, 1] for integer formats.

    Raises:
        AudioError: the file is missing, empty, no audio, damaged, or holds NaN or infinite samples.

    **Differs** from the released code, which resamples a two-channel file along the channel axis, so that 44.1 kHz
    stereo plays 2.76 times slower.
    """
    try:
        with soundfile.SoundFile(str(file)) as sound:
            rate = sound.samplerate
            sound.seek(min(int(start_seconds * rate), len(sound)))
            samples = sound.read(
                -1 if seconds is None else int(np.ceil(seconds * rate)), dtype="float32", always_2d=True
            )
    except (OSError, soundfile.SoundFileError) as error:
        raise AudioError(f"cannot read {file}: {_reason(Path(file), error)}") from None
    if len(samples) == 0:
        raise AudioError(f"cannot use {file}: it holds no samples from {start_seconds:g} s on.")
    mono = torch.from_numpy(samples.mean(axis=1))
    check_finite(mono, str(file))
    return resample(mono, rate, sample_rate)


def resample(audio: Float[Tensor, "*batch samples"], rate: int, sample_rate: int) -> Float[Tensor, "*batch new"]:
    """Resample with torchaudio's defaults (windowed sinc, Hann, width 6, roll-off 0.99).

    **Source**: `torchaudio.functional.resample`; the released data path uses the same.
    """
    if rate == sample_rate:
        return audio
    resampled: Tensor = torchaudio.functional.resample(audio, rate, sample_rate)
    return resampled


def duration_seconds(file: str | Path) -> float:
    """Length of an audio file from its header alone.

    Raises:
        AudioError: the header cannot be read or tells of no samples.
    """
    try:
        info = soundfile.info(str(file))
    except (OSError, soundfile.SoundFileError) as error:
        raise AudioError(f"cannot read {file}: {_reason(Path(file), error)}") from None
    if info.frames <= 0:
        raise AudioError(f"cannot use {file}: it holds no samples.")
    return float(info.frames / info.samplerate)


def check_finite(audio: Tensor, name: str) -> None:
    """Refuse NaN and infinite samples.

    Raises:
        AudioError: naming how many there are and where the first one is.
    """
    bad = ~torch.isfinite(audio)
    if bool(bad.any()):
        first = bad.nonzero()[0].tolist()
        raise AudioError(
            f"cannot use {name}: {int(bad.sum())} samples are NaN or infinite, the first at index {first}."
        )


def crop_or_pad(audio: Float[Tensor, " samples"], num_samples: int, offset: int = 0) -> Float[Tensor, " num_samples"]:
    """A stretch of exactly `num_samples` from `offset` on, followed by silence where the audio is shorter.

    **Differs** from the released code, which pads the spectrogram with 0 before normalisation: filling is then
    +0.467 and louder than most sound, while silence is -1.278.
    """
    stretch = audio[offset : offset + num_samples]
    return torch.nn.functional.pad(stretch, (0, num_samples - len(stretch)))


def find_audio(source: str | Path) -> list[Path]:
    """Audio files of a folder (searched through), a manifest, or one file.

    A manifest is a text file with one path per line, relative to the manifest; what follows a tab or comma is left
    alone, so `tsv` and `csv` lists serve too. A first line that names a folder is the root of the lines after it.

    Returns:
        paths in sorted order for a folder, in the manifest's order otherwise.

    Raises:
        AudioError: nothing is there, or no name in it looks like audio.
    """
    path = Path(source)
    if path.is_dir():
        found = sorted(file for file in path.rglob("*") if file.suffix.lower() in AUDIO_SUFFIXES and file.is_file())
    elif path.suffix.lower() in AUDIO_SUFFIXES and path.is_file():
        found = [path]
    elif path.is_file():
        found = list(_manifest(path))
    else:
        raise AudioError(f"no folder, manifest or audio file at {path}.")
    if not found:
        raise AudioError(f"no audio files in {path} (looked for {' '.join(AUDIO_SUFFIXES)}).")
    return found


def _manifest(path: Path) -> Iterable[Path]:
    root = path.parent
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise AudioError(f"{path} is neither audio by its name nor a text manifest.") from None
    for number, line in enumerate(lines):
        name = line.split("\t")[0].split(",")[0].strip()
        if number == 0 and name and (path.parent / name).is_dir():
            root = path.parent / name
        elif Path(name).suffix.lower() in AUDIO_SUFFIXES:
            yield root / name


def _reason(file: Path, error: Exception) -> str:
    if not file.exists():
        return "there is no such file."
    if file.is_dir():
        return "it is a folder."
    if file.stat().st_size == 0:
        return "it is empty (0 bytes)."
    return f"it is no audio that libsndfile knows, or it is damaged ({error})."
