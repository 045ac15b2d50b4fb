"""MP3: files that do not tell their length are refused before they are cut; stretches are what the whole is there."""

import io
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from asda_core.audio import long_files
from asda_core.audio.flac import HAS_MINIAUDIO
from asda_core.audio.long_files import StreamedSound
from asda_core.audio.opening import open_audio
from asda_core.audio.reading import read_audio, read_samples
from asda_core.errors import AudioError
from tests.audio_files.shards import write_tar

SECONDS, RATE = 20, 22_050
SYNC = b"\xff\xf3"
"""How a frame of MPEG 2, layer III, begins."""
ID3 = b"ID3\x04\x00\x00\x00\x00\x01\x00" + b"\xff\xfb".ljust(128, b"a")
"""A tag of 128 bytes, which hold what looks like the start of a frame."""


@pytest.fixture
def sound() -> np.ndarray:
    """Quiet first, then noise: of a variable rate the first frame is far smaller than most."""
    generator = np.random.default_rng(0)
    noise = generator.normal(size=SECONDS * RATE) * 0.2
    noise[: 2 * RATE] *= 1e-3
    return noise


def encoded(sound: np.ndarray, told: bool, variable: bool = True) -> bytes:
    """The sound as MP3, with or without the first frame, which tells the length."""
    file = io.BytesIO()
    mode = "VARIABLE" if variable else "CONSTANT"
    soundfile.write(file, sound, RATE, format="MP3", bitrate_mode=mode, compression_level=0.5)
    content = file.getvalue()
    assert content.startswith(SYNC)
    return content if told else content[content.index(SYNC, 4) :]


@pytest.mark.skipif(not HAS_MINIAUDIO, reason="miniaudio, which counts the frames, has no wheels for this processor")
@pytest.mark.parametrize("place", ["alone", "behind a tag", "in a shard"])
def test_a_file_that_does_not_tell_its_length(tmp_path: Path, sound: np.ndarray, place: str) -> None:
    content = encoded(sound, told=False)
    size = 3_000
    tag = b"ID3\x04\x00\x00" + bytes([0, 0, size >> 7, size & 0x7F]) + b"Xing".ljust(size, b"\0")
    content = tag + content if place == "behind a tag" else content
    file = tmp_path / "no.mp3"
    file.write_bytes(content)
    if place == "in a shard":
        file = write_tar(tmp_path / "a.tar", [("no.mp3", content)]) / "no.mp3"
    for _ in range(2):
        with pytest.raises(AudioError, match="it does not state its length, and .* would not be read; rewrite it"):
            read_audio(file, 16_000)
    with pytest.raises(AudioError, match="it does not state its length"):
        StreamedSound(file, 16_000)


@pytest.mark.parametrize(
    "junk",
    [
        b"\0",
        b"abc" * 500,
        b"\xff\xe0ab\xff\xfbcd",
        b"no such sample rate \xff\xfb\x9cd",
        b"no bit rate \xff\xfe\x02\xf3" + b"abc" * 500,
        ID3 + bytes(500),
        ID3 + ID3 + b"a",
    ],
)
def test_what_precedes_the_first_frame_in_a_shard(tmp_path: Path, sound: np.ndarray, junk: bytes) -> None:
    content = junk + encoded(sound, told=True)
    (tmp_path / "a.mp3").write_bytes(content)
    shard = write_tar(tmp_path / "a.tar", [("a.mp3", content)])
    whole = read_audio(tmp_path / "a.mp3", RATE)
    assert len(whole) == pytest.approx(len(sound), abs=3_000)
    assert torch.equal(read_audio(shard / "a.mp3", RATE), whole)
    assert torch.equal(read_audio(shard / "a.mp3", RATE, 7.0, 2.0), read_audio(tmp_path / "a.mp3", RATE, 7.0, 2.0))


@pytest.mark.parametrize("content", [b"no audio" * 100, b"\xff\xfbno audio" * 100, b"\0\xff\xfbno audio" * 100])
def test_no_mp3_in_a_shard(tmp_path: Path, content: bytes) -> None:
    shard = write_tar(tmp_path / "a.tar", [("a.mp3", content)])
    with pytest.raises(AudioError, match="it is damaged, or not an audio format that libsndfile supports"):
        read_audio(shard / "a.mp3", RATE)


@pytest.mark.skipif(not HAS_MINIAUDIO, reason="miniaudio, which counts the frames, has no wheels for this processor")
def test_a_tag_that_libsndfile_ignores_does_not_tell_the_length(tmp_path: Path, sound: np.ndarray) -> None:
    """Fraunhofer's VBRI, 36 bytes behind the start of the first frame."""
    content, frames = encoded(sound, told=True), len(sound) // 576
    audio = encoded(sound, told=False)
    tag = b"VBRI" + struct.pack(">HHHIIHHHH", 1, 0, 75, len(content), frames, 1, 1, 2, frames) + bytes(2)
    first = content[:4].ljust(36, b"\0") + tag
    (tmp_path / "a.mp3").write_bytes(first.ljust(len(content) - len(audio), b"\0") + audio)
    with pytest.raises(AudioError, match="it does not state its length"):
        read_audio(tmp_path / "a.mp3", RATE)


@pytest.mark.parametrize(("told", "variable"), [(True, True), (True, False), (False, False)])
def test_files_whose_length_is_known(tmp_path: Path, sound: np.ndarray, told: bool, variable: bool) -> None:
    (tmp_path / "a.mp3").write_bytes(encoded(sound, told, variable))
    assert len(read_audio(tmp_path / "a.mp3", RATE)) == pytest.approx(len(sound), abs=3_000)


@pytest.mark.parametrize("variable", [True, False])
def test_a_stretch_is_what_the_whole_is_there(
    tmp_path: Path, sound: np.ndarray, variable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind a seek the decoder lacks the frames before, from which a frame takes bits: its samples would be wrong."""
    file = tmp_path / "a.mp3"
    file.write_bytes(encoded(sound, told=True, variable=variable))
    whole = read_audio(file, RATE)
    for start in np.random.default_rng(1).integers(0, len(whole) - RATE, size=30):
        stretch = read_audio(file, RATE, (start + 0.5) / RATE, (RATE - 0.5) / RATE)
        assert torch.allclose(stretch, whole[start : start + RATE], atol=1e-6), start
    monkeypatch.setattr(long_files, "STREAM_SAMPLES", 30_011)
    streamed = StreamedSound(file, RATE)
    assert torch.allclose(streamed.segment(0, len(whole)), whole, atol=1e-6)


def test_a_stretch_of_two_channels(tmp_path: Path, sound: np.ndarray) -> None:
    file = tmp_path / "a.mp3"
    soundfile.write(file, np.stack([sound, sound[::-1]], axis=1), RATE)
    whole = read_audio(file, RATE)
    with open_audio(file) as source:
        stretch = read_samples(source, "a", RATE, 7.0, 2.0)
    assert torch.allclose(stretch, whole[7 * RATE : 9 * RATE], atol=1e-6)
