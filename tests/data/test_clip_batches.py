"""Batches: the same for a step whenever asked; broken files named and replaced; long files in stretches."""

import threading
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from asda_core.audio_files.sources import find_audio
from asda_core.config import DataConfig
from asda_core.data import clip_reader
from asda_core.data.clip_batches import ClipBatches
from asda_core.data.prefetching import prefetch
from asda_core.errors import AudioError, ConfigError, FileAccessError
from tests.audio_files.shards import write_shards

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
    monkeypatch.setattr(
        clips.reader, "read_crop", lambda file, share, content: (seen.append(file), torch.zeros(8_000))[1]
    )
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


def test_a_missing_file_is_tried_again_when_it_is_due(
    audio_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not waited for."""
    monkeypatch.setattr(clip_reader.time, "sleep", lambda _: pytest.fail("waits for a missing file"))
    files = find_audio(audio_folder)
    config = replace(CONFIG, batch_size=5, cache_mebibytes=0)
    whole, clips = (ClipBatches(files, config, 16_000, seed=1) for _ in range(2))
    wanted = whole.batch(0).audio
    files[2].rename(tmp_path / "away")
    assert not torch.equal(clips.batch(0).audio, wanted)
    assert set(clips.skipped) == {files[2]}
    (tmp_path / "away").rename(files[2])
    for step in (1, 2):
        assert torch.equal(clips.batch(step).audio, whole.batch(step).audio)


def fails(errors: int, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Let the next attempts to open a file fail as a network does; return the list of pauses that follow."""
    pauses: list[float] = []
    left = iter(range(errors))
    opened = clip_reader.open_audio

    def open_audio(*arguments: Any) -> Any:
        if next(left, None) is not None:
            raise FileAccessError("cannot read: Stale file handle.")
        return opened(*arguments)

    monkeypatch.setattr(clip_reader, "open_audio", open_audio)
    monkeypatch.setattr(clip_reader.time, "sleep", pauses.append)
    return pauses


def test_a_network_that_fails_for_a_moment_changes_nothing(audio_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = find_audio(audio_folder)
    config = replace(CONFIG, cache_mebibytes=0)
    wanted = ClipBatches(files, config, 16_000, seed=1).batch(0).audio
    pauses = fails(3, monkeypatch)  # as many retries as in the released data path
    clips = ClipBatches(files, config, 16_000, seed=1)
    assert torch.equal(clips.batch(0).audio, wanted)
    assert (len(pauses), clips.skipped) == (3, {})


def test_a_disk_that_is_gone_is_not_waited_for(audio_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses = fails(10_000, monkeypatch)
    clips = ClipBatches(find_audio(audio_folder), CONFIG, 16_000, seed=1)
    for _ in range(2):
        with pytest.raises(AudioError, match="audio files is readable"):
            clips.batch(0)
    assert len(pauses) == clip_reader.RETRIES * clip_reader.MAX_FAILED_IN_A_ROW


def test_a_batch_that_does_not_fit_into_memory(audio_folder: Path) -> None:
    clips = ClipBatches(find_audio(audio_folder), replace(CONFIG, clip_seconds=1e9), 16_000, seed=1)
    with pytest.raises(ConfigError, match=r"the audio of 3 clips does not fit into memory: .* lower data.batch_size"):
        clips.batch(0)


def test_long_files_are_read_in_stretches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clip_reader, "WHOLE_FILE_SECONDS", 1.0)
    soundfile.write(tmp_path / "long.wav", np.linspace(-0.9, 0.9, 32_000), 16_000, subtype="FLOAT")
    clips = ClipBatches([tmp_path / "long.wav"], CONFIG, 16_000, seed=1)
    starts = clips.batch(0).audio[:, 0]
    assert not clips.reader._cache
    assert len(set(starts.tolist())) == 3
    first = ClipBatches([tmp_path / "long.wav"], replace(CONFIG, crop="first"), 16_000, seed=1)
    assert first.batch(0).audio[:, 0].tolist() == pytest.approx([-0.9] * 3)


def test_a_crop_of_a_long_file_does_not_depend_on_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluation caches whole files; training crops long ones by time, before they are resampled."""
    monkeypatch.setattr(clip_reader, "WHOLE_FILE_SECONDS", 1.0)
    noise = np.random.default_rng(0).normal(size=100_000) * 0.1
    soundfile.write(tmp_path / "long.wav", noise, 44_100, subtype="FLOAT")
    fresh, cached = (ClipBatches([tmp_path / "long.wav"], CONFIG, 16_000, seed=1) for _ in range(2))
    cached.reader.read_whole(tmp_path / "long.wav")
    assert cached.reader._cache
    assert torch.equal(fresh.batch(0).audio, cached.batch(0).audio)


def test_a_partly_bad_long_file_after_a_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clip_reader, "WHOLE_FILE_SECONDS", 1.0)
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


@pytest.mark.parametrize("shards", [False, True])
@pytest.mark.parametrize("world", [2, 3, 6])
def test_ranks_share_every_batch(audio_folder: Path, tmp_path: Path, world: int, shards: bool) -> None:
    """Rank r of W has its part of the batch that one process has, so together they have each clip once."""
    files = write_shards(tmp_path / "shards", [3, 4]) if shards else [audio_folder]
    files = [found for source in files for found in find_audio(source)]
    config = replace(CONFIG, batch_size=6)
    whole = ClipBatches(files, config, 16_000, seed=1)
    ranks = [ClipBatches(files, config, 16_000, seed=1, rank=rank, world_size=world) for rank in range(world)]
    for step in range(4):
        batch = whole.batch(step)
        parts = [clips.batch(step) for clips in ranks]
        assert all(len(part.audio) == 6 // world for part in parts)
        assert torch.equal(torch.cat([part.audio for part in parts]), batch.audio)
        assert torch.equal(torch.cat([part.source_indices for part in parts]), batch.source_indices)
        assert torch.equal(torch.cat([part.num_samples for part in parts]), batch.num_samples)


def test_parts_that_do_not_fit(audio_folder: Path) -> None:
    with pytest.raises(ConfigError, match="data.batch_size 3, of all processes, must be a multiple of their number, 2"):
        ClipBatches(find_audio(audio_folder), CONFIG, 16_000, 1, rank=0, world_size=2)
    with pytest.raises(ConfigError, match=r"the rank must lie in 0..2, not 3"):
        ClipBatches(find_audio(audio_folder), CONFIG, 16_000, 1, rank=3, world_size=3)


def test_any_number_of_workers_gives_the_same(audio_folder: Path) -> None:
    """Also what is skipped, and in which order."""
    for number in range(4):
        (audio_folder / f"broken{number}.wav").write_text("no audio" * number)
    files = find_audio(audio_folder)
    config = replace(CONFIG, batch_size=7)
    one = ClipBatches(files, config, 16_000, seed=1)
    wanted = [one.batch(step) for step in range(5)]
    for workers, room in ((4, 1024), (3, 0)):
        many = ClipBatches(files, replace(config, workers=workers, cache_mebibytes=room), 16_000, seed=1)
        for step, batch in enumerate(wanted):
            assert torch.equal(many.batch(step).audio, batch.audio)
        assert list(many.skipped.items()) == list(one.skipped.items())
    assert len(one.skipped) == 4


def test_workers_read_at_the_same_time(audio_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three clips wait for each other within a read: one thread alone would wait for ever."""
    clips = ClipBatches(find_audio(audio_folder), replace(CONFIG, workers=3), 16_000, seed=1)
    together = threading.Barrier(3)

    def stretch(file: Path, share: float, content: bytes | None) -> torch.Tensor:
        together.wait(timeout=30)
        return torch.ones(10)

    monkeypatch.setattr(clips.reader, "read_crop", stretch)
    assert clips.batch(0).audio.sum() == 30


@pytest.mark.parametrize("ahead", [1, 4])
def test_prefetched(audio_folder: Path, ahead: int) -> None:
    files = find_audio(audio_folder)
    clips = ClipBatches(files, replace(CONFIG, prefetch=ahead, workers=2), 16_000, seed=1)
    with closing(prefetch(clips, 2, 7)) as batches:
        found = [batch.audio for batch in batches]
    alone = ClipBatches(files, CONFIG, 16_000, seed=1)
    assert len(found) == 5
    assert all(torch.equal(alone.batch(step).audio, audio) for step, audio in enumerate(found, start=2))


def test_prefetched_goes_no_further_than_it_says(audio_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clips = ClipBatches(find_audio(audio_folder), replace(CONFIG, prefetch=2), 16_000, seed=1)
    asked: list[int] = []
    original = clips.batch
    monkeypatch.setattr(clips, "batch", lambda step: (asked.append(step), original(step))[1])
    batches = prefetch(clips, 0, 100)
    next(batches)
    next(batches)
    batches.close()
    assert asked == list(range(len(asked)))
    assert 2 <= len(asked) <= 4
    monkeypatch.setattr(clips, "files", [])
    with pytest.raises(AudioError, match="no audio files"), closing(prefetch(clips, 0, 3)) as batches:
        next(batches)
