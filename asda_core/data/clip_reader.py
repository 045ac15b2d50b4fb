"""Crops of audio files at one sample rate, with a cache of decoded files, and further attempts where a disk fails."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

from jaxtyping import Float
from soundfile import SoundFile
from torch import Tensor

from asda_core.audio.flac import decode_flac
from asda_core.audio.opening import open_audio
from asda_core.audio.reading import read_samples, resample
from asda_core.audio_files.tars import member_bytes, split_member
from asda_core.config import DataConfig
from asda_core.errors import AudioError, FileAccessError, MissingFileError, counted
from asda_core.system.resources import MEBIBYTE

WHOLE_FILE_SECONDS = 60.0
"""Files up to this length are decoded whole and cached; of longer ones only the requested crop is decoded."""
RETRIES, RETRY_SECONDS = 3, 0.1
"""Further attempts at a file that cannot be accessed, and the pause before each.

**Source**: the released data path retries 3 times, without a pause.
"""
MAX_FAILED_IN_A_ROW = 3
"""Files that cannot be accessed in a row, after which the next ones are tried once: the whole disk may be gone."""


class ClipReader:
    """Reader of crops of audio files, with a cache of limited size for decoded files. Safe to share among threads."""

    def __init__(self, config: DataConfig, sample_rate: int) -> None:
        self.config = config
        self.sample_rate = sample_rate
        self.num_samples = round(config.clip_seconds * sample_rate)
        self.long_files: set[Path] = set()
        self._cache: dict[Path, Tensor] = {}
        self._free_bytes = config.cache_mebibytes * MEBIBYTE
        self._lock = threading.Lock()
        self._inaccessible: set[Path] = set()
        self._failed_in_a_row = 0

    def read_crop(self, file: Path, fraction: float, content: bytes | None = None) -> Float[Tensor, " samples"]:
        """Return the crop at `fraction` of the range of start positions; shorter than a clip if the file is.

        Args:
            file: its path, or the name of the audio in `content`.
            fraction: in [0, 1).
            content: the bytes of the file, if already available; they are decoded anew at every call.

        Raises:
            FileAccessError: the file is missing, or its disk or network fails, also in further attempts.
            AudioError: it cannot be read, or has fewer samples than `min_samples` of the config.
        """
        return self._retried(file, lambda: self._read_crop(file, fraction, content))

    def _retried(self, file: Path, read: Callable[[], Tensor]) -> Tensor:
        """Read a file, again if its disk or network fails; a file for which that was in vain is only tried once later.

        A missing file is not waited for: large data sets lack many.
        """
        in_vain = file in self._inaccessible or self._failed_in_a_row >= MAX_FAILED_IN_A_ROW
        retries = 0 if in_vain else RETRIES
        while True:
            try:
                audio = read()
            except MissingFileError:
                raise
            except FileAccessError:
                if retries == 0:
                    self._inaccessible.add(file)
                    self._failed_in_a_row += 1
                    raise
                retries -= 1
                time.sleep(RETRY_SECONDS)
            else:
                self._inaccessible.discard(file)
                self._failed_in_a_row = 0
                return audio

    def _read_crop(self, file: Path, fraction: float, content: bytes | None) -> Tensor:
        audio = self._cache.get(file) if content is None else None
        if audio is None or len(audio) > WHOLE_FILE_SECONDS * self.sample_rate:  # cached by `read_whole`
            encoded = _content_of(file) if content is None else content
            with open_audio(file, encoded) as sound:
                seconds = self._seconds(sound, file)
                if seconds > WHOLE_FILE_SECONDS:
                    self.long_files.add(file)
                    start = fraction * max(0.0, seconds - self.config.clip_seconds)
                    return self._read(sound, file, start, self.config.clip_seconds)[: self.num_samples]
                audio = self._decode_whole(sound, file, encoded)
            if content is None:
                self._cache_audio(file, audio)
        first = int(fraction * max(0, len(audio) - self.num_samples + 1))
        return audio[first : first + self.num_samples]

    def read_for_evaluation(self, file: Path) -> Float[Tensor, " samples"]:
        """Return the waveform that evaluation uses: the whole file, or its first crop if training always takes that.

        Raises:
            AudioError: the file cannot be read, or has fewer samples than `min_samples` of the config.
        """
        return self.read_crop(file, 0.0) if self.config.crop == "first" else self.read_whole(file)

    def _decode_whole(self, sound: SoundFile, file: Path, content: bytes | None) -> Tensor:
        """Decode a whole file that fits into memory."""
        samples = decode_flac(sound, file, content)
        return self._read(sound, file) if samples is None else resample(samples, sound.samplerate, self.sample_rate)

    def _seconds(self, sound: SoundFile, file: Path) -> float:
        """Return the length of a file in seconds; raise AudioError if it is too short."""
        if len(sound) < self.config.min_samples:
            least = self.config.min_samples
            raise AudioError(
                f"{file} is too short: {counted(len(sound), 'sample')}, fewer than data.min_samples {least}."
            )
        return float(len(sound) / sound.samplerate)

    def _read(self, sound: SoundFile, file: Path, start_seconds: float = 0.0, seconds: float | None = None) -> Tensor:
        along = self.config.resample_along
        return read_samples(sound, str(file), self.sample_rate, start_seconds, seconds, along)

    def read_whole(self, file: Path) -> Float[Tensor, " samples"]:
        """Return the whole file, and cache it if there is room.

        Raises:
            AudioError: the file cannot be read, or has fewer samples than `min_samples` of the config.
        """
        return self._retried(file, lambda: self._read_whole(file))

    def _read_whole(self, file: Path) -> Tensor:
        if (cached := self._cache.get(file)) is not None:
            return cached
        content = _content_of(file)
        with open_audio(file, content) as sound:
            fits = self._seconds(sound, file) <= WHOLE_FILE_SECONDS
            audio = self._decode_whole(sound, file, content) if fits else self._read(sound, file)
        self._cache_audio(file, audio)
        return audio

    def _cache_audio(self, file: Path, audio: Tensor) -> None:
        size = audio.numel() * audio.element_size()
        with self._lock:
            if size <= self._free_bytes and file not in self._cache:
                self._free_bytes -= size
                self._cache[file] = audio


def _content_of(file: Path) -> bytes | None:
    """Return the bytes of an audio file in a shard; None for a file outside a shard."""
    member = split_member(file)
    return None if member is None else member_bytes(*member)
