"""Batches: the same for a step whenever asked; broken files named and replaced; long files in stretches."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from asda_core.audio import find_audio
from asda_core.config import DataConfig
from asda_core.errors import AudioError
from asda_core.pretrain import data
from asda_core.pretrain.data import ClipBatches

CONFIG = DataConfig(clip_seconds=0.5, batch_size=3)


def test_a_step_is_the_same_whenever_asked(audio_folder: Path) -> None:
    files = find_audio(audio_folder)
    through = ClipBatches(files, CONFIG, 16_000, seed=1)
    batches = [through.batch(step).audio for step in range(6)]
    assert batches[0].shape == (3, 8_000)
    for step in (5, 0, 3):
        assert torch.equal(ClipBatches(files, CONFIG, 16_000, seed=1).batch(step).audio, batches[step])
    assert not torch.equal(ClipBatches(files, CONFIG, 16_000, seed=2).batch(0).audio, batches[0])
    without_cache = ClipBatches(files, replace(CONFIG, cache_mebibytes=0), 16_000, seed=1)
    assert torch.equal(without_cache.batch(4).audio, batches[4])


def test_an_epoch_has_every_file_once(audio_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = find_audio(audio_folder)
    clips = ClipBatches(files, replace(CONFIG, batch_size=5), 16_000, seed=1)
    seen: list[Path] = []
    monkeypatch.setattr(clips.reader, "stretch", lambda file, share: (seen.append(file), torch.zeros(8_000))[1])
    clips.batch(0)
    clips.batch(1)
    assert sorted(seen[:5]) == sorted(seen[5:]) == sorted(files)
    assert seen[:5] != seen[5:]


def test_broken_files_are_named_and_replaced(audio_folder: Path) -> None:
    (audio_folder / "empty.wav").touch()
    (audio_folder / "text.wav").write_text("no audio")
    clips = ClipBatches(find_audio(audio_folder), CONFIG, 16_000, seed=1)
    for step in range(5):
        assert clips.batch(step).audio.abs().sum(1).min() > 0
    assert sorted(file.name for file in clips.skipped) == ["empty.wav", "text.wav"]
    assert "0 bytes" in clips.skipped[audio_folder / "empty.wav"]


def test_nothing_readable(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.wav").touch()
    with pytest.raises(AudioError, match="none of the 3 audio files is readable"):
        ClipBatches(find_audio(tmp_path), CONFIG, 16_000, seed=1).batch(0)
    with pytest.raises(AudioError, match="no audio files"):
        ClipBatches([], CONFIG, 16_000, seed=1).batch(0)


def test_long_files_are_read_in_stretches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "WHOLE_FILE_SECONDS", 1.0)
    soundfile.write(tmp_path / "long.wav", np.linspace(-0.9, 0.9, 32_000), 16_000, subtype="FLOAT")
    clips = ClipBatches([tmp_path / "long.wav"], CONFIG, 16_000, seed=1)
    starts = clips.batch(0).audio[:, 0]
    assert not clips.reader._cache
    assert len(set(starts.tolist())) == 3
    first = ClipBatches([tmp_path / "long.wav"], replace(CONFIG, crop="first"), 16_000, seed=1)
    assert first.batch(0).audio[:, 0].tolist() == pytest.approx([-0.9] * 3)


def test_a_partly_bad_long_file_after_a_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "WHOLE_FILE_SECONDS", 1.0)
    noise = np.random.default_rng(0).normal(size=64_000) * 0.1
    noise[20_000:40_000] = np.nan
    soundfile.write(tmp_path / "long.wav", noise, 16_000, subtype="FLOAT")
    soundfile.write(tmp_path / "short.wav", noise[:9_000], 16_000, subtype="FLOAT")
    files = find_audio(tmp_path)
    through = ClipBatches(files, CONFIG, 16_000, seed=1)
    batches = [through.batch(step).audio for step in range(8)]
    assert [file.name for file in through.skipped] == ["long.wav"]
    for step in range(8):
        assert torch.equal(ClipBatches(files, CONFIG, 16_000, seed=1).batch(step).audio, batches[step])


def test_short_clips_are_followed_by_silence(audio_folder: Path) -> None:
    clips = ClipBatches([audio_folder / "sound3.wav"], CONFIG, 16_000, seed=1)
    batch = clips.batch(0).audio
    assert (batch[:, 4_810:] == 0).all()
    assert batch[:, :4_800].abs().max() > 0.1
