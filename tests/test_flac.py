"""The fast decoder of FLAC gives libsndfile's samples or none."""

import io
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from asda_core import flac
from asda_core.audio import find_audio
from asda_core.config import DataConfig
from asda_core.flac import whole_flac
from asda_core.pretrain import clip_reader
from asda_core.pretrain.clip_reader import ClipReader
from tests.data.shards import write_shards

pytestmark = pytest.mark.skipif(
    sys.platform == "linux" and not flac.INSTALLED, reason="on Linux for ARM miniaudio has no wheels"
)


def noise(num_samples: int, seed: int = 0) -> np.ndarray:
    return np.clip(np.random.default_rng(seed).normal(size=num_samples) * 0.3, -1, 1 - 1e-6)


def encoded(samples: np.ndarray, rate: int = 16_000, subtype: str = "PCM_16") -> bytes:
    made = io.BytesIO()
    soundfile.write(made, samples, rate, format="FLAC", subtype=subtype)
    return made.getvalue()


def test_it_is_there() -> None:
    """Where this runs on x86, the dependency must be installed, or all else here would tell nothing."""
    assert flac.INSTALLED


@pytest.mark.parametrize("subtype", ["PCM_S8", "PCM_16", "PCM_24"])
@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100, 96_000])
@pytest.mark.parametrize("num_samples", [1, 3, 4_095, 4_096, 40_001])
def test_every_sample_is_that_of_libsndfile(tmp_path: Path, subtype: str, rate: int, num_samples: int) -> None:
    content = encoded(noise(num_samples), rate, subtype)
    (tmp_path / "sound.flac").write_bytes(content)
    wanted = torch.from_numpy(soundfile.read(io.BytesIO(content), dtype="float32")[0])
    for found in (whole_flac("any name", content, 60.0), whole_flac(tmp_path / "sound.flac", None, 60.0)):
        assert found is not None
        assert torch.equal(found[0], wanted)
        assert found[1] == rate


def test_what_is_left_to_libsndfile(tmp_path: Path) -> None:
    whole, stereo = encoded(noise(32_000)), encoded(np.stack([noise(8_000), noise(8_000, 1)], 1))
    assert whole_flac("x.flac", whole, 2.0) is not None
    assert whole_flac("x.flac", whole, 1.9) is None  # too long to be decoded at once
    for content in (stereo, b"", b"fLaC", b"RIFF....WAVE", whole[: len(whole) // 2], whole[:-1], whole[:60]):
        assert whole_flac("x.flac", content, 60.0) is None
        (tmp_path / "x.flac").write_bytes(content)
        assert whole_flac(tmp_path / "x.flac", None, 60.0) is None
    assert whole_flac(tmp_path / "none.flac", None, 60.0) is None
    assert whole_flac(tmp_path, None, 60.0) is None
    (tmp_path / "x.wav").write_bytes(whole)
    assert whole_flac(tmp_path / "x.wav", None, 60.0) is None  # by its name nothing to be opened twice for


def test_damage_is_never_heard() -> None:
    """Whatever byte is changed behind the header: the right samples (the byte did not matter) or none."""
    content, draw = encoded(noise(20_000)), np.random.default_rng(0)
    wanted = torch.from_numpy(soundfile.read(io.BytesIO(content), dtype="float32")[0])
    refused = 0
    for place in draw.integers(200, len(content), 300):
        damaged = bytearray(content)
        damaged[place] ^= int(draw.integers(1, 256))
        found = whole_flac("x.flac", bytes(damaged), 60.0)
        refused += found is None
        assert found is None or torch.equal(found[0], wanted)
    assert refused > 200


def test_names_that_a_shell_would_read_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("~.flac").write_bytes(encoded(noise(100)))
    Path("~").mkdir()
    Path("~/x.flac").write_bytes(encoded(noise(200)))
    for name, num_samples in (("~.flac", 100), ("~/x.flac", 200)):
        found = whole_flac(name, None, 60.0)
        assert found is not None
        assert len(found[0]) == num_samples


@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_clips_are_the_same_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rate: int) -> None:
    folder = tmp_path / "audio"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.flac").write_bytes(encoded(noise(rate, number), rate))
    files = [*sorted(folder.glob("*.flac")), *find_audio(*write_shards(tmp_path / "shards", [3]))]
    assert len(files) == 6
    config = DataConfig(clip_seconds=0.5)

    def clips() -> list[torch.Tensor]:
        reader = ClipReader(config, 16_000)
        return [each for file in files for each in (reader.stretch(file, 0.3), ClipReader(config, 16_000).whole(file))]

    fast = clips()
    monkeypatch.setattr(clip_reader, "whole_flac", lambda *_: None)
    for ours, theirs in zip(fast, clips(), strict=True):
        assert torch.equal(ours, theirs)


def test_libsndfile_is_not_asked_for_what_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.flac").write_bytes(encoded(noise(16_000)))
    monkeypatch.setattr(clip_reader, "opened", None)
    assert len(ClipReader(DataConfig(clip_seconds=0.5), 16_000).stretch(tmp_path / "x.flac", 0.0)) == 8_000
