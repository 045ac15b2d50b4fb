"""Stretches of audio files at one rate, and what was decoded kept for the next time."""

import threading
from pathlib import Path

from jaxtyping import Float
from soundfile import SoundFile
from torch import Tensor

from asda_core.audio import opened, read_sound, resample
from asda_core.config import DataConfig
from asda_core.data.tars import member_bytes, split_member
from asda_core.errors import AudioError
from asda_core.sound.flac import whole_flac

WHOLE_FILE_SECONDS = 60.0
"""Files up to this length are decoded once and cached; of longer ones only the stretch in use is decoded."""
BYTES_PER_MEBIBYTE = 1 << 20


class ClipReader:
    """Stretches of audio files; what was decoded is kept as far as there is room. Threads may share it."""

    def __init__(self, config: DataConfig, sample_rate: int) -> None:
        self.config = config
        self.sample_rate = sample_rate
        self.num_samples = round(config.clip_seconds * sample_rate)
        self.long_files: set[Path] = set()
        self._cache: dict[Path, Tensor] = {}
        self._room = config.cache_mebibytes * BYTES_PER_MEBIBYTE
        self._lock = threading.Lock()

    def stretch(self, file: Path, share: float, content: bytes | None = None) -> Float[Tensor, " samples"]:
        """The stretch that begins at `share` of what can be its beginning; shorter than a clip if the file is.

        Args:
            file: its path, or the name of the sound in `content`.
            share: in [0, 1).
            content: the bytes of the file, where they are at hand; they are decoded anew each time.

        Raises:
            AudioError: the file cannot be read, or has fewer samples than the config wants.
        """
        audio = self._cache.get(file) if content is None else None
        if audio is None:
            inside = _content_of(file) if content is None else content
            with opened(file, inside) as sound:
                seconds = self._seconds(sound, file)
                if seconds > WHOLE_FILE_SECONDS:
                    self.long_files.add(file)
                    start = share * max(0.0, seconds - self.config.clip_seconds)
                    return self._read(sound, file, start, self.config.clip_seconds)[: self.num_samples]
                audio = self._all_of(sound, file, inside)
            if content is None:
                self._keep(file, audio)
        first = int(share * max(0, len(audio) - self.num_samples + 1))
        return audio[first : first + self.num_samples]

    def heard(self, file: Path) -> Float[Tensor, " samples"]:
        """What evaluation hears of a file: all of it, or its first stretch where training always takes that.

        Raises:
            AudioError: the file cannot be read, or has fewer samples than the config wants.
        """
        return self.stretch(file, 0.0) if self.config.crop == "first" else self.whole(file)

    def _all_of(self, sound: SoundFile, file: Path, content: bytes | None) -> Tensor:
        """All of a sound that fits into memory."""
        samples = whole_flac(sound, file, content)
        return self._read(sound, file) if samples is None else resample(samples, sound.samplerate, self.sample_rate)

    def _seconds(self, sound: SoundFile, file: Path) -> float:
        """Length of a sound that is not too short."""
        if len(sound) < self.config.min_samples:
            raise AudioError(f"left out {file}: {len(sound)} samples are fewer than {self.config.min_samples}.")
        return float(len(sound) / sound.samplerate)

    def _read(self, sound: SoundFile, file: Path, start_seconds: float = 0.0, seconds: float | None = None) -> Tensor:
        along = self.config.resample_along
        return read_sound(sound, str(file), self.sample_rate, start_seconds, seconds, along)

    def whole(self, file: Path) -> Float[Tensor, " samples"]:
        """All of a file, kept in memory if there is room.

        Raises:
            AudioError: the file cannot be read.
        """
        if (known := self._cache.get(file)) is not None:
            return known
        content = _content_of(file)
        with opened(file, content) as sound:
            fits = self._seconds(sound, file) <= WHOLE_FILE_SECONDS
            audio = self._all_of(sound, file, content) if fits else self._read(sound, file)
        self._keep(file, audio)
        return audio

    def _keep(self, file: Path, audio: Tensor) -> None:
        size = audio.numel() * audio.element_size()
        with self._lock:
            if size <= self._room and file not in self._cache:
                self._room -= size
                self._cache[file] = audio


def _content_of(file: Path) -> bytes | None:
    """The bytes of a sound in a shard; None of a file of its own."""
    inside = split_member(file)
    return None if inside is None else member_bytes(*inside)
