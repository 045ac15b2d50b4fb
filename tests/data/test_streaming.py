"""Streamed shards: every clip once, ranks apart, exact going on, commands that fail, tars that are cut off."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from threading import Timer
from typing import Any

import pytest
import torch

from asda_core.audio_files.sources import ShardStream, find_training_data
from asda_core.catalog import Catalog
from asda_core.config import DataConfig, RunConfig
from asda_core.config_io import to_yaml
from asda_core.data import stream_batches
from asda_core.data.clip_batches import ClipBatches
from asda_core.data.clip_counts import SHARDS_FILE, ClipCounts
from asda_core.data.prefetching import prefetch
from asda_core.data.shard_streams import RETRY_SECONDS, RunningCommands, StreamMember, read_stream
from asda_core.data.stream_batches import StreamBatches, open_batches
from asda_core.errors import AudioError, ConfigError, TrainingStopped
from asda_core.pretrain.loop import pretrain
from asda_core.pretrain.reporter import LOG_FILE, read_log
from asda_core.system.command_line import EXIT_STOPPED
from asda_core.system.paths import newest_step
from tests.audio_files.shards import sound_bytes, write_shards, write_tar
from tests.waiting import wait_until

CONFIG = DataConfig(clip_seconds=0.2, batch_size=4, shuffle_clips=5)
COUNTS = [4, 7, 3, 6]
AT_FIRST = 'echo >> count; if [ "$(wc -l < count)" -lt 3 ];'
"""Begin of a script that does something else the first two times."""


def streams(folder: Path, counts: list[int] = COUNTS) -> list[ShardStream]:
    return [ShardStream(f"stream:{file}") for file in write_shards(folder, counts)]


def names(clips: StreamBatches, steps: range, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Names of the clips of each step."""
    seen: list[str] = []

    def stretch(file: Path, share: float, content: bytes | None) -> torch.Tensor:
        seen.append(str(file))
        return torch.zeros(10)

    monkeypatch.setattr(clips.reader, "read_crop", stretch)
    found = []
    for step in steps:
        seen.clear()
        clips.batch(step)
        found.append(list(seen))
    clips.close()
    return found


def test_every_clip_once_in_an_epoch_and_orders_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = streams(tmp_path)
    found = names(StreamBatches(shards, CONFIG, 16_000, 1), range(15), monkeypatch)
    clips = [name for step in found for name in step]
    epochs = [clips[first : first + 20] for first in (0, 20, 40)]
    assert len(set(epochs[0])) == 20
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(epochs[2])
    assert epochs[0] != epochs[1] != epochs[2]
    assert epochs[0] != sorted(epochs[0])
    other = names(StreamBatches(shards, CONFIG, 16_000, 2), range(5), monkeypatch)
    assert [name for step in other for name in step] != epochs[0]


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("step", [1, 3, 4, 6, 9, 11, 14])
def test_going_on_is_exact(tmp_path: Path, step: int, workers: int) -> None:
    """In the middle of a shard, a block and an epoch, with and without the counts that the run noted down."""
    shards, run = streams(tmp_path / "shards"), tmp_path / "run"
    through = StreamBatches(shards, CONFIG, 16_000, 1, folder=run)
    wanted = [through.batch(number) for number in range(16)]
    through.close()
    assert len((run / SHARDS_FILE).read_text().splitlines()) == 4
    for folder in (None, run):
        again = StreamBatches(shards, replace(CONFIG, workers=workers), 16_000, 1, folder=folder)
        for number in range(step, 16):
            batch = again.batch(number)
            assert torch.equal(batch.audio, wanted[number].audio)
            assert torch.equal(batch.source_indices, wanted[number].source_indices)
        assert torch.equal(again.batch(0).audio, wanted[0].audio)
        again.close()


def test_known_shards_are_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards, run = streams(tmp_path / "shards"), tmp_path / "run"
    through = StreamBatches(shards, CONFIG, 16_000, 1, folder=run)
    for number in range(14):
        through.batch(number)
    through.close()
    read: list[str] = []

    def spied(shard: ShardStream, *more: Any) -> object:
        read.append(shard.address)
        return read_stream(shard, *more)

    monkeypatch.setattr(stream_batches, "read_stream", spied)
    for folder, most in ((run, 3), (None, 15)):
        read.clear()
        again = StreamBatches(shards, CONFIG, 16_000, 1, folder=folder)
        again.batch(10)  # begins the third epoch
        again.close()
        assert (len(read) <= 3) == (most == 3)


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_read_shards_of_their_own(tmp_path: Path, world: int, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = streams(tmp_path, [5, 5, 5, 5])
    of_ranks = []
    for rank in range(world):
        clips = StreamBatches(shards, CONFIG, 16_000, 1, rank, world)
        found = names(clips, range(10), monkeypatch)
        assert all(len(step) == 4 // world for step in found)
        of_ranks.append([name for step in found for name in step])
    for epoch in range(2):
        size = 20 // world
        parts = [set(clips[epoch * size : (epoch + 1) * size]) for clips in of_ranks]
        assert [len(part) for part in parts] == [size] * world
        assert len(set.union(*parts)) == 20
    with pytest.raises(ConfigError, match="4 streamed shards are too few for 8 parts"):
        StreamBatches(shards, replace(CONFIG, batch_size=8), 16_000, 1, 0, 8)


@pytest.mark.parametrize(("parts", "world"), [(2, 1), (2, 4), (4, 2), (4, 1), (1, 4), (1, 2)])
def test_another_number_of_processes_goes_on_with_the_same_batches(
    tmp_path: Path, parts: int, world: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream keeps the parts it was begun with: epochs, blocks and batches are the same from any step on."""
    shards = streams(tmp_path, [5, 4, 6, 5])
    began = [
        names(StreamBatches(shards, CONFIG, 16_000, 1, rank, parts), range(12), monkeypatch) for rank in range(parts)
    ]
    goes_on = [
        names(StreamBatches(shards, CONFIG, 16_000, 1, rank, world, parts=parts), range(3, 12), monkeypatch)
        for rank in range(world)
    ]
    batches = [[name for rank in began for name in rank[step]] for step in range(12)]
    assert [[name for rank in goes_on for name in rank[step]] for step in range(9)] == batches[3:]
    with pytest.raises(ConfigError, match="data.batch_size 4 is not a multiple of 3 parts"):
        StreamBatches(shards, CONFIG, 16_000, 1, parts=3)


@pytest.mark.parametrize(("rank", "world", "parts"), [(1, 2, 2), (0, 1, 2), (0, 1, 1)])
def test_a_shard_without_a_sound_is_named(tmp_path: Path, rank: int, world: int, parts: int) -> None:
    """Also where it is all that a part reads in an epoch."""
    (whole,) = write_shards(tmp_path, [8])
    broken = tmp_path / "broken.tar"
    broken.write_bytes(b"no tar" * 1000)
    shards = [ShardStream(f"stream:{file}") for file in (whole, broken)]
    clips = StreamBatches(shards, CONFIG, 16_000, 1, rank, world, parts=parts)
    for step in range(6):
        clips.batch(step)
    assert [file.name for file in clips.skipped] == ["broken.tar"]


def test_a_broken_sound_is_replaced_and_a_cut_tar_named(tmp_path: Path) -> None:
    whole, cut = write_shards(tmp_path, [3, 3])
    broken = write_tar(tmp_path / "broken.tar", [("x.flac", b"no audio"), ("y.flac", sound_bytes(9))])
    content = cut.read_bytes()
    cut.write_bytes(content[: len(content) // 2])
    no_tar = tmp_path / "no.tar"
    no_tar.write_text("text" * 500)
    shards = [ShardStream(f"stream:{file}") for file in (whole, cut, broken, no_tar)]
    through = StreamBatches(shards, CONFIG, 16_000, 1)
    wanted = [through.batch(step).audio for step in range(6)]
    assert all((audio.abs().sum(1) > 0).all() for audio in wanted)
    assert {file.name for file in through.skipped} == {"x.flac", cut.name, "no.tar"}
    through.close()
    for workers, step in ((1, 3), (3, 1)):
        again = StreamBatches(shards, replace(CONFIG, workers=workers), 16_000, 1)
        assert torch.equal(again.batch(step).audio, wanted[step])
        again.close()


def test_a_broken_rest_of_an_epoch(tmp_path: Path) -> None:
    """The last clip of an epoch, alone behind the last block, is broken: another one takes its place."""
    members = [(f"{number}.flac", sound_bytes(number)) for number in range(10)]
    shards = [ShardStream(f"stream:{write_tar(tmp_path / 'a.tar', [*members, ('x.flac', b'no audio')])}")]
    through = StreamBatches(shards, CONFIG, 16_000, 1)
    wanted = [through.batch(step).audio for step in range(8)]
    through.close()
    assert [file.name for file in through.skipped] == ["x.flac"]
    for step in range(8):
        again = StreamBatches(shards, CONFIG, 16_000, 1)
        assert torch.equal(again.batch(step).audio, wanted[step])
        again.close()


def test_nothing_to_stream(tmp_path: Path) -> None:
    shards = [ShardStream(f"stream:{write_tar(tmp_path / f'{number}.tar', [])}") for number in range(2)]
    clips = StreamBatches(shards, CONFIG, 16_000, 1)
    with pytest.raises(AudioError, match="no audio in the 2 streamed shards"):
        clips.batch(0)
    bad = write_tar(tmp_path / "bad.tar", [("x.flac", b"no audio")] * 1)
    with pytest.raises(AudioError, match="none of the 1 clips of a shuffle block of the stream is readable"):
        StreamBatches([ShardStream(f"stream:{bad}")], CONFIG, 16_000, 1).batch(0)
    with pytest.raises(AudioError, match="cannot read the shard"):
        list(read_stream(ShardStream(f"stream:{tmp_path}/none.tar"), [], RunningCommands()))


def piped(folder: Path, script: str) -> str:
    """Address of a shard that a script prints; it runs in `folder`."""
    file = folder / f"{len(list(folder.glob('*.sh')))}.sh"
    file.write_text(f"cd {shlex.quote(str(folder))} || exit 1\n{script}\n")
    return f"pipe:sh {shlex.quote(str(file))}"


def test_a_command(tmp_path: Path) -> None:
    """A connection that breaks twice gives what an unbroken one gives; one that never holds is an error."""
    (shard,) = write_shards(tmp_path, [4])
    unbroken = list(read_stream(ShardStream(f"stream:{shard}"), [], RunningCommands()))
    half = f"head -c {shard.stat().st_size // 2} {shard.name}"
    flaky = ShardStream(piped(tmp_path, f"{AT_FIRST} then {half}; exit 7; fi; cat {shard.name}"))
    trouble: list[tuple[Path, str]] = []
    found = list(read_stream(flaky, trouble, RunningCommands()))
    assert len((tmp_path / "count").read_text()) == 3
    assert [(sound.file.name, sound.content) for sound in found] == [(s.file.name, s.content) for s in unbroken]
    never = ShardStream(piped(tmp_path, f"{half}; exit 7"))
    with pytest.raises(AudioError, match=r"failed with status 7 \(3 attempts\); stopped after 2 clips"):
        list(read_stream(never, trouble, RunningCommands()))
    trouble.clear()
    cut = ShardStream(piped(tmp_path, half))
    assert len(list(read_stream(cut, trouble, RunningCommands()))) == 2
    assert "truncated" in trouble[0][1]


def test_a_command_that_gives_a_page_of_errors(tmp_path: Path) -> None:
    """As `curl -s` does where a server is busy, and the first of two commands joined by a pipe that fails."""
    (shard,) = write_shards(tmp_path, [4])
    trouble: list[tuple[Path, str]] = []
    busy = ShardStream(piped(tmp_path, f"{AT_FIRST} then echo busy; else cat {shard.name}; fi"))
    assert len(list(read_stream(busy, trouble, RunningCommands()))) == 4
    assert not trouble
    with pytest.raises(AudioError, match=r"the output of the command is truncated or not a tar .* \(3 attempts\)"):
        list(read_stream(ShardStream("pipe:echo busy"), trouble, RunningCommands()))
    with pytest.raises(AudioError, match="truncated or not a tar"):
        list(read_stream(ShardStream("pipe:cat /nowhere.tar 2>/dev/null | cat"), trouble, RunningCommands()))


def test_a_server_gets_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Longer before each time, and not where everything is being ended."""
    waited: list[float] = []
    monkeypatch.setattr("asda_core.data.shard_streams.RETRY_SECONDS", RETRY_SECONDS)
    commands = RunningCommands()
    monkeypatch.setattr(commands._ended, "wait", lambda seconds: bool(waited.append(seconds)))
    with pytest.raises(AudioError, match=r"failed with status 3 \(3 attempts\)"):
        list(read_stream(ShardStream("pipe:exit 3"), [], commands))
    assert waited == [1.0, 4.0]
    monkeypatch.setattr("asda_core.data.shard_streams.RETRY_SECONDS", 3600.0)
    ended = RunningCommands()
    Timer(0.1, ended.abort).start()
    with pytest.raises(AudioError, match="the stream was closed"):
        list(read_stream(ShardStream("pipe:exit 3"), [], ended))


def test_counts_that_were_cut_off(tmp_path: Path) -> None:
    first, second = (ShardStream(f"pipe:cat {name}") for name in "ab")
    (tmp_path / SHARDS_FILE).write_text('{"shard": "pipe:cat a", "cl')
    counts = ClipCounts(tmp_path)
    assert counts.total([first]) is None
    counts.record(second, 5)
    counts.record(first, 3)
    assert ClipCounts(tmp_path).total([first, second]) == 8


def has_ended(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    return False


def test_a_command_that_is_left_early_ends(tmp_path: Path) -> None:
    (shard,) = write_shards(tmp_path, [2])
    endless = ShardStream(piped(tmp_path, f"echo $$ > process; cat {shard.name}; exec sleep 60"))
    sounds = read_stream(endless, [], RunningCommands())
    assert isinstance(next(sounds), StreamMember)
    start = time.monotonic()
    sounds.close()  # type: ignore[attr-defined]
    assert time.monotonic() - start < 30
    wait_until(lambda: has_ended(int((tmp_path / "process").read_text())), "the end of the command")


def test_a_shard_that_changed(tmp_path: Path) -> None:
    shards = streams(tmp_path / "shards", [2, 2])
    first = StreamBatches(shards, CONFIG, 16_000, 1, folder=tmp_path)
    first.batch(2)
    first.close()
    write_shards(tmp_path / "shards", [3, 3])
    with pytest.raises(AudioError, match="has 3 clips but had 2 before"):
        StreamBatches(shards, CONFIG, 16_000, 1, folder=tmp_path).batch(1)


def test_a_run_on_streams_goes_on_to_the_same_losses(tiny: RunConfig, catalog: Catalog, tmp_path: Path) -> None:
    config = replace(tiny, data=replace(tiny.data, shuffle_clips=3, workers=2))
    data = find_training_data([f"stream:{file}" for file in write_shards(tmp_path / "shards", [3, 2])])
    pretrain(config, data, tmp_path / "whole", catalog, progress=False)
    steps: list[int] = []
    original = StreamBatches.batch

    def batch(self: StreamBatches, step: int) -> object:
        if step == 4 and not steps:
            steps.append(step)
            raise TrainingStopped("pulled the plug")
        return original(self, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StreamBatches, "batch", batch)
        with pytest.raises(TrainingStopped):
            pretrain(config, data, tmp_path / "stopped", catalog, progress=False)
    pretrain(config, data, tmp_path / "stopped", catalog, progress=False)
    losses = [read_log(tmp_path / name)["loss"] for name in ("whole", "stopped")]
    assert losses[0] == losses[1]
    assert len(losses[0]) == config.steps


def test_open_clips(tmp_path: Path, audio_folder: Path) -> None:
    assert isinstance(open_batches(find_training_data([audio_folder]), CONFIG, 16_000, 1), ClipBatches)
    clips = open_batches(list(streams(tmp_path / "shards")), CONFIG, 16_000, 1, folder=tmp_path)
    assert isinstance(clips, StreamBatches)
    with closing(prefetch(clips, 3, 6)) as batches:
        found = [batch.audio for batch in batches]
    assert [torch.equal(clips.batch(step).audio, found[step - 3]) for step in (3, 4, 5)] == [True] * 3
    clips.close()


def stalled_after(shard: Path, folder: Path) -> str:
    """A command that prints a shard the first time, and then never ends, as a connection does that hangs."""
    return piped(folder, f"if mkdir once 2> /dev/null; then cat {shard.name}; else sleep 600 & wait; fi")


def test_nobody_waits_for_a_command_that_stalls(tmp_path: Path) -> None:
    (shard,) = write_shards(tmp_path, [8])
    clips = StreamBatches([ShardStream(stalled_after(shard, tmp_path))], CONFIG, 16_000, 1)
    asked: list[bool] = []
    started = time.monotonic()
    batches = prefetch(clips, 0, 9, lambda: bool(asked.append(True)) or len(asked) > 2)
    assert 1 <= len(list(batches)) <= 2
    assert time.monotonic() - started < 30
    assert len(asked) == 3


@pytest.mark.slow
def test_a_run_whose_data_stall_is_stopped_and_keeps_its_steps(
    tiny: RunConfig, catalog: Catalog, tmp_path: Path
) -> None:
    (shard,) = write_shards(tmp_path, [16])
    config = replace(tiny, steps=50, checkpoint_every=50, data=replace(tiny.data, shuffle_clips=8))
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    command = ["-m", "asda_core.cli", "pretrain", str(tmp_path / "config.yaml"), "--device", "cpu"]
    command += ["--data", stalled_after(shard, tmp_path), "--out", str(tmp_path / "run")]
    with subprocess.Popen([sys.executable, *command], stderr=subprocess.PIPE, text=True) as run:
        wait_until(lambda: (tmp_path / "run" / LOG_FILE).exists(), "a step")
        time.sleep(2)  # until the data are used up
        run.send_signal(signal.SIGTERM)
        told = run.communicate(timeout=60)[1]
    assert run.returncode == EXIT_STOPPED, told
    stopped = int(re.findall(r"stopped after step (\d+) of 50", told)[0])
    assert newest_step(tmp_path / "run") == tmp_path / "run" / f"step-{stopped:08d}"


def test_a_stream_that_is_cut_off_elsewhere_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was given before counts, though the last attempt gave less."""
    monkeypatch.setattr("asda_core.data.shard_streams.RETRY_SECONDS", 0.01)
    (shard,) = write_shards(tmp_path, [8])
    size = shard.stat().st_size
    cut = piped(
        tmp_path,
        "n=$(cat n 2>/dev/null || echo 0); echo $((n + 1)) > n\n"
        f"test $n = 0 && head -c {size * 3 // 4} {shard.name} || head -c {size // 4} {shard.name}",
    )
    trouble: list[tuple[Path, str]] = []
    found = list(read_stream(ShardStream(cut), trouble, RunningCommands()))
    assert len(found) > 4
    assert f"only the files before that point are used ({len(found)})." in trouble[0][1]
