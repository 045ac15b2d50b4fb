"""The fast decoder of FLAC gives libsndfile's samples or none."""

import io
import platform
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from asda_core.audio import flac
from asda_core.audio.flac import decode_flac
from asda_core.audio.opening import open_audio
from asda_core.audio_files.sources import find_audio
from asda_core.config import DataConfig
from asda_core.data import clip_reader
from asda_core.data.clip_reader import ClipReader
from asda_core.errors import AudioError
from tests.audio_files.shards import write_shards

pytestmark = pytest.mark.skipif(
    sys.platform == "linux" and platform.machine() != "x86_64" and not flac.HAS_MINIAUDIO,
    reason="on Linux for ARM miniaudio has no wheels",
)


def noise(num_samples: int, seed: int = 0) -> np.ndarray:
    return np.clip(np.random.default_rng(seed).normal(size=num_samples) * 0.3, -1, 1 - 1e-6)


def encoded(samples: np.ndarray, rate: int = 16_000, subtype: str = "PCM_16") -> bytes:
    made = io.BytesIO()
    soundfile.write(made, samples, rate, format="FLAC", subtype=subtype)
    return made.getvalue()


def test_it_is_there() -> None:
    """Where this runs on x86, the dependency must be installed, or all else here would tell nothing."""
    assert flac.HAS_MINIAUDIO


def fast(file: Path, content: bytes | None = None) -> torch.Tensor | None:
    """The whole of what libsndfile opens."""
    with open_audio(file, content) as sound:
        return decode_flac(sound, file, content)


@pytest.mark.parametrize("subtype", ["PCM_S8", "PCM_16", "PCM_24"])
@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100, 96_000])
@pytest.mark.parametrize("num_samples", [1, 3, 4_095, 4_096, 40_001])
def test_every_sample_is_that_of_libsndfile(tmp_path: Path, subtype: str, rate: int, num_samples: int) -> None:
    content = encoded(noise(num_samples), rate, subtype)
    (tmp_path / "sound.flac").write_bytes(content)
    wanted = torch.from_numpy(soundfile.read(io.BytesIO(content), dtype="float32")[0])
    for found in (fast(Path("any name"), content), fast(tmp_path / "sound.flac")):
        assert found is not None
        assert torch.equal(found, wanted)


def test_what_is_left_to_libsndfile(tmp_path: Path) -> None:
    stereo, wav = io.BytesIO(), io.BytesIO()
    soundfile.write(stereo, np.stack([noise(8_000), noise(8_000, 1)], 1), 16_000, format="FLAC")
    soundfile.write(wav, noise(8_000), 16_000, format="WAV", subtype="PCM_16")
    whole = encoded(noise(32_000))
    assert fast(Path("x.flac"), whole) is not None
    for content in (stereo.getvalue(), wav.getvalue(), whole[: len(whole) // 2], whole[:-1]):
        assert fast(Path("x.flac"), content) is None
        (tmp_path / "x.flac").write_bytes(content)
        assert fast(tmp_path / "x.flac") is None


def test_depths_that_libsndfile_refuses_are_refused(tmp_path: Path) -> None:
    """What a run trains on must not depend on what is installed: 20 bits, which only miniaudio reads."""
    content = bytearray(encoded(noise(4_096), subtype="PCM_24"))
    content[20:22] = (int.from_bytes(content[20:22]) & ~0x01F0 | (19 << 4)).to_bytes(2)  # STREAMINFO: depth less one
    (tmp_path / "x.flac").write_bytes(content)
    with pytest.raises(AudioError):
        ClipReader(DataConfig(clip_seconds=0.1), 16_000).read_crop(tmp_path / "x.flac", 0.0)


def test_damage_is_never_heard() -> None:
    """Whatever byte is changed behind the header: the right samples (the byte did not matter) or none."""
    content, draw = encoded(noise(20_000)), np.random.default_rng(0)
    wanted = torch.from_numpy(soundfile.read(io.BytesIO(content), dtype="float32")[0])
    refused = 0
    for place in draw.integers(200, len(content), 300):
        damaged = bytearray(content)
        damaged[place] ^= int(draw.integers(1, 256))
        found = fast(Path("x.flac"), bytes(damaged))
        refused += found is None
        assert found is None or torch.equal(found, wanted)
    assert refused > 200


def test_names_that_a_shell_would_read_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("~.flac").write_bytes(encoded(noise(100)))
    Path("~").mkdir()
    Path("~/x.flac").write_bytes(encoded(noise(200)))
    for name, num_samples in (("~.flac", 100), ("~/x.flac", 200)):
        found = fast(Path(name))
        assert found is not None
        assert len(found) == num_samples


@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_clips_are_the_same_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rate: int) -> None:
    folder = tmp_path / "audio"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.flac").write_bytes(encoded(noise(rate, number), rate))
    files = [*sorted(folder.glob("*.flac")), *find_audio(write_shards(tmp_path / "shards", [3])[0])]
    assert len(files) == 6
    config = DataConfig(clip_seconds=0.5)

    def clips() -> list[torch.Tensor]:
        reader = ClipReader(config, 16_000)
        return [
            each
            for file in files
            for each in (reader.read_crop(file, 0.3), ClipReader(config, 16_000).read_whole(file))
        ]

    fast = clips()
    monkeypatch.setattr(clip_reader, "decode_flac", lambda *_: None)
    for ours, theirs in zip(fast, clips(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("in_shard", [True, False])
def test_libsndfile_decodes_nothing_that_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_shard: bool
) -> None:
    (tmp_path / "x.flac").write_bytes(encoded(noise(16_000)))
    file = find_audio(write_shards(tmp_path / "shards", [1])[0])[0] if in_shard else tmp_path / "x.flac"
    monkeypatch.setattr(clip_reader, "read_samples", None)
    reader = ClipReader(DataConfig(clip_seconds=0.25), 16_000)
    assert len(reader.read_crop(file, 0.0)) == 4_000
