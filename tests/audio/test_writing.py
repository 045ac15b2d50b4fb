"""WAV files as they are written."""

import errno
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asda_core.audio.writing import write_wav


def test_the_bytes_of_libsndfile(tmp_path: Path) -> None:
    audio = np.random.default_rng(0).uniform(-1, 1, 1000).astype("float32")
    write_wav(tmp_path / "new" / "a.wav", audio, 16_000)
    soundfile.write(tmp_path / "b.wav", audio, 16_000, subtype="PCM_16")
    assert (tmp_path / "new" / "a.wav").read_bytes() == (tmp_path / "b.wav").read_bytes()


def test_a_full_disk_is_named() -> None:
    with pytest.raises(OSError, match="No space left on device") as told:
        write_wav(Path("/dev/full"), np.zeros(10), 16_000)
    assert (told.value.errno, told.value.filename) == (errno.ENOSPC, "/dev/full")
