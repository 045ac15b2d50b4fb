"""Many processes: they train what one process trains, agree on when to stop, and a run outlives any of them.

The processes of the slow tests are real ones that torchrun starts; they talk by gloo, on the CPU.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from asda_core.audio_files.sources import AudioList, find_audio, find_training_data
from asda_core.catalog import Catalog
from asda_core.config import DataConfig, RunConfig
from asda_core.config_io import load_run_config, parse, signature, to_plain, to_yaml, with_value
from asda_core.errors import ConfigError, TrainingStopped
from asda_core.finetune_config import FinetuneConfig, FinetuneDataConfig
from asda_core.pretrain import loop
from asda_core.pretrain.loop import pretrain
from asda_core.pretrain.processes import SINGLE_PROCESS, Processes, process_device, processes_from_environment
from asda_core.pretrain.resuming import step_seed
from asda_core.pretrain.step import pass_seed, plan_passes
from asda_core.settings.compute import ComputeConfig
from asda_core.system.paths import newest_step
from asda_core.weights.tensor_files import read_tensors
from tests.audio_files.shards import write_shards
from tests.pretrain.test_loop import losses, wait_for_step

EQUAL = 1e-6
"""Difference between two processes and one that is rounding: of losses, relative; of weights."""
BATCH = 8
SMOOTH_EPS = 1e-3
"""Of Adam: by the default 1e-8 it makes full steps of gradients that are rounding alone, as of the biases of keys."""
LIMIT_SECONDS = 240
"""After which a test takes a run of several processes to hang."""
ONE_LOSS = {
    "name": "masked_patch",
    "options": {"discriminative_weight": 0.0, "masked_share": 0.5},
}
"""An objective one of whose heads gets no gradient."""


def changed(config: RunConfig, changes: Mapping[str, Any]) -> RunConfig:
    plain = to_plain(config)
    for key, value in {"data.batch_size": BATCH, "optimizer.eps": SMOOTH_EPS, **changes}.items():
        plain = with_value(plain, key, value)
    return parse(RunConfig, plain)


def start(world: int, config: RunConfig, audio: Path | str, out: Path, *options: str) -> "subprocess.Popen[str]":
    file = out.with_suffix(".yaml")
    file.write_text(to_yaml(config))
    command = ["-m", "asda_core.cli", "pretrain", str(file), "--data", str(audio), "--out", str(out), "--device", "cpu"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world), *options]
    return subprocess.Popen([*launcher, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(run: "subprocess.Popen[str]") -> str:
    """What it wrote on stderr."""
    try:
        return run.communicate(timeout=LIMIT_SECONDS)[1]
    finally:
        run.kill()


def worker(run: "subprocess.Popen[str]", rank: int) -> int:
    """Process id of a rank."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == run.pid and f"RANK={rank}" in (folder / "environ").read_text().split("\0"):
                return int(folder.name)
        except (OSError, ValueError):
            continue
    raise AssertionError(f"there is no rank {rank}")


def same_numbers(one: Path, other: Path) -> None:
    """Equal losses, norms and weights, those of the teacher too, but for rounding; and as much in every file."""
    lines, others = losses(one), losses(other)
    assert [line["step"] for line in lines] == [line["step"] for line in others]
    for line, wanted in zip(lines, others, strict=True):
        assert line == pytest.approx(wanted, rel=EQUAL, abs=EQUAL)
    tensors, wanted_tensors = (load_file(newest_step(run) / "model.safetensors") for run in (one, other))
    for name, tensor in tensors.items():
        torch.testing.assert_close(
            tensor, wanted_tensors[name], rtol=EQUAL, atol=EQUAL, msg=lambda text, name=name: f"{name}: {text}"
        )
    states, wanted_states = (read_tensors(newest_step(run) / "training.safetensors")[0] for run in (one, other))
    assert states.keys() == wanted_states.keys()
    final, wanted_final = (load_file(run / "model.safetensors") for run in (one, other))
    assert final.keys() == wanted_final.keys()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
@pytest.mark.parametrize(
    ("changes", "alone"),
    [
        ({}, {"data.micro_batch": 4}),
        ({"data.micro_batch": 2, "objective": ONE_LOSS}, {}),
        ({"data.micro_batch": 2, "compute.sharding": "full", "compute.recompute": True}, {}),
        ({"compute.precision": "bfloat16", "compute.recompute": True}, {"data.micro_batch": 4}),
    ],
    ids=["share each", "accumulated, a head unused", "sharded, accumulated, recomputed", "bfloat16"],
)
def test_two_processes_train_what_one_trains(
    catalog: Catalog,
    tiny: RunConfig,
    audio_folder: Path,
    tmp_path: Path,
    changes: dict[str, Any],
    alone: dict[str, Any],
) -> None:
    config = changed(tiny, changes)
    run = start(2, config, audio_folder, tmp_path / "two")
    pretrain(changed(config, alone), find_audio(audio_folder), tmp_path / "one", catalog, progress=False)
    errors = finish(run)
    assert run.returncode == 0, errors
    assert errors.count("5 audio files ->") == 1
    same_numbers(tmp_path / "two", tmp_path / "one")
    assert len(list((tmp_path / "two" / "tensorboard").iterdir())) == 1


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_a_killed_process_ends_the_run_and_one_goes_on(
    catalog: Catalog, tiny: RunConfig, audio_folder: Path, tmp_path: Path
) -> None:
    """2 -> 1: the passes of the run that two processes began are those of the one that ends it."""
    config = changed(tiny, {"steps": 300, "checkpoint_every": 10})
    files, folder = find_audio(audio_folder), tmp_path / "run"
    run = start(2, config, audio_folder, folder)
    wait_for_step(folder, 12)
    os.kill(victim := worker(run, 1), signal.SIGKILL)
    killed = time.monotonic()
    errors = finish(run)
    assert time.monotonic() - killed < LIMIT_SECONDS / 4
    assert run.returncode == 1
    assert "process 0 of 2 lost another process" in errors
    assert f"Signal 9 (SIGKILL) received by PID {victim}" in errors.split("Root Cause")[1]
    seen = max(line["step"] for line in losses(folder))
    stop_at(config, files, folder, catalog, seen + 5)
    whole = changed(config, {"data.micro_batch": BATCH // 2})
    stop_at(whole, files, tmp_path / "whole", catalog, seen + 5)
    same_numbers_until_now(folder, tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
@pytest.mark.parametrize(
    ("whom", "sharding", "streamed"), [("rank 1", "full", False), ("torchrun", "none", False), ("rank 1", "none", True)]
)
def test_one_is_asked_to_stop_and_all_do(
    catalog: Catalog, tiny: RunConfig, audio_folder: Path, tmp_path: Path, whom: str, sharding: str, streamed: bool
) -> None:
    """1 -> 2 -> 1: begun by one process, gone on with by two, stopped by a signal, gone on with by one.

    A stream has the parts that it was begun with, so that both of the two read the only one.
    """
    keys = {"steps": 300, "checkpoint_every": 100, "data.micro_batch": 2, "compute.sharding": sharding}
    config, folder = changed(tiny, keys), tmp_path / "run"
    audio = str(audio_folder)
    if streamed:
        write_shards(tmp_path / "shards", [5, 4, 6])
        audio = f"stream:{tmp_path}/shards/train-" + "{000..002}.tar"
    files = find_training_data([audio])
    stop_at(config, files, folder, catalog, 5)
    run = start(2, config, audio, folder)
    wait_for_step(folder, 12)
    os.kill(worker(run, 1) if whom == "rank 1" else run.pid, signal.SIGTERM if whom == "rank 1" else signal.SIGINT)
    errors = finish(run)
    assert run.returncode != 0
    assert errors.count("the same command resumes") == 2
    seen = max(line["step"] for line in losses(folder))
    assert newest_step(folder) == folder / f"step-{seen:08d}"
    stop_at(config, files, folder, catalog, seen + 5)
    stop_at(config, files, tmp_path / "whole", catalog, seen + 5)
    same_numbers_until_now(folder, tmp_path / "whole")


def stop_at(config: RunConfig, files: AudioList, folder: Path, catalog: Catalog, step: int) -> None:
    """One process does the run until that step is done, and saves it."""
    real = loop._train_step

    def stopping(run: loop.Run, batch: Any) -> dict[str, Any]:
        record = real(run, batch)
        if run.step == step:
            run.request_stop()
        return record

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "_train_step", stopping)
        with pytest.raises(TrainingStopped):
            pretrain(config, files, folder, catalog, progress=False)


def same_numbers_until_now(one: Path, other: Path) -> None:
    """Equal losses of runs that are not at their end; rounding grows over many steps."""
    lines, others = losses(one), losses(other)
    assert [line["step"] for line in lines] == [line["step"] for line in others]
    for line, wanted in zip(lines, others, strict=True):
        assert line["loss"] == pytest.approx(wanted["loss"], rel=1e-5), line["step"]


def test_passes_of_a_batch() -> None:
    whole = plan_passes(DataConfig(batch_size=8), SINGLE_PROCESS)
    assert (whole.size, whole.count, whole.first) == (8, 1, 0)
    cut = plan_passes(DataConfig(batch_size=8, micro_batch=2), SINGLE_PROCESS)
    assert (cut.size, cut.count, cut.first) == (2, 4, 0)
    second = plan_passes(DataConfig(batch_size=8, micro_batch=2), Processes(1, 2))
    assert (second.size, second.count, second.first) == (2, 2, 2)
    shared = plan_passes(DataConfig(batch_size=8), Processes(1, 4))
    assert (shared.size, shared.count, shared.first) == (2, 1, 1)
    assert plan_passes(DataConfig(batch_size=8), SINGLE_PROCESS, initial_size=4).count == 2


@pytest.mark.parametrize(
    ("config", "world", "begun_with", "messages"),
    [
        ({}, 5, None, ["data.batch_size 8 cannot be divided among 5 processes", "their number must be 1, 2, 4 or 8"]),
        (
            {"micro_batch": 4},
            4,
            None,
            ["8 is not a multiple of 4 processes x passes of 4", "1 or 2 processes", "1 or 2 with"],
        ),
        ({"micro_batch": 4}, 3, None, ["data.micro_batch none with 3 processes"]),
        ({}, 2, 8, ["the pass size of this run", "Possible: 1 processes with passes of 8"]),
    ],
)
def test_a_batch_that_cannot_be_shared(
    config: dict[str, int], world: int, begun_with: int | None, messages: list[str]
) -> None:
    with pytest.raises(ConfigError) as error:
        plan_passes(DataConfig(batch_size=8, **config), Processes(0, world), begun_with)
    for message in messages:
        assert message in str(error.value)


def test_a_pass_must_divide_the_batch() -> None:
    with pytest.raises(ConfigError, match="data.micro_batch is only for pre-training"):
        FinetuneConfig(steps=1, data=FinetuneDataConfig(batch_size=8, micro_batch=2))
    with pytest.raises(ConfigError, match=r"micro_batch 3 does not divide batch_size; valid: \[1, 2, 4, 8\]"):
        DataConfig(batch_size=8, micro_batch=3)


def test_seeds_of_passes() -> None:
    """The first pass draws what the update drew before there were passes; no two share a seed."""
    assert pass_seed(3, 7, 0) == step_seed(3, 7)
    seeds = [pass_seed(seed, step, number) for seed in range(4) for step in range(8) for number in range(8)]
    assert len(set(seeds)) == len(seeds)
    assert pass_seed(1, 2, 3) == 6498626229777268288  # whoever changes this changes published runs
    assert all(torch.Generator().manual_seed(seed).initial_seed() == seed for seed in seeds)


def test_who_a_launcher_says_that_we_are() -> None:
    told = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "here"}
    assert processes_from_environment(told) == Processes(3, 4, 1, has_launcher=True)
    assert not processes_from_environment(told).is_first
    assert processes_from_environment({"RANK": "3"}) == processes_from_environment({}) == SINGLE_PROCESS
    with pytest.raises(ConfigError, match="must be integers, not RANK='x'"):
        processes_from_environment({**told, "RANK": "x"})


def test_each_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match="process 6 has local rank 2 .*with 2 GPUs; use torchrun --nproc-per-node 2"):
        process_device("cuda", Processes(6, 8, 2))
    with pytest.raises(ConfigError, match="device 'cuda:1': each of 8 processes"):
        process_device("cuda:1", Processes(6, 8, 2))
    with pytest.raises(ConfigError, match="device 'mps' does not support several processes; use 'cpu' or 'cuda'"):
        process_device("mps", Processes(6, 8, 2))
    assert process_device("cpu", Processes(6, 8, 2)) == torch.device("cpu")


def test_alone_there_is_nothing_to_exchange(
    catalog: Catalog, tiny: RunConfig, audio_folder: Path, tmp_path: Path
) -> None:
    assert (SINGLE_PROCESS.gather(3), SINGLE_PROCESS.any(True), SINGLE_PROCESS.mean({"loss": 2.0})) == (
        [3],
        True,
        {"loss": 2.0},
    )
    files = find_audio(audio_folder)
    pretrain(tiny, files, tmp_path / "plain", catalog, progress=False)
    sharded = replace(tiny, compute=ComputeConfig(sharding="full"))
    pretrain(sharded, files, tmp_path / "alone", catalog, progress=False)
    assert losses(tmp_path / "alone") == losses(tmp_path / "plain")


def test_the_clips_in_a_pass_are_kept(catalog: Catalog, tiny: RunConfig, audio_folder: Path, tmp_path: Path) -> None:
    """A run that others began with smaller passes goes on with those; one of before is of one pass."""
    files, config = find_audio(audio_folder), changed(tiny, {"steps": 6})
    cut = changed(config, {"data.micro_batch": 4})
    stop_at(cut, files, tmp_path / "cut", catalog, 6 - 1)
    _, told = read_tensors(newest_step(tmp_path / "cut") / "training.safetensors")
    assert told["micro_batch"] == "4"
    assert signature(cut) != signature(config)
    pretrain(config, files, tmp_path / "whole", catalog, progress=False)
    _, told = read_tensors(newest_step(tmp_path / "whole") / "training.safetensors")
    assert told["micro_batch"] == str(BATCH)
    assert json.loads(told["config"])["data"]["micro_batch"] is None
    assert load_run_config(tmp_path / "whole" / "config.yaml") == config
    first, other = losses(tmp_path / "whole")[0]["loss"], losses(tmp_path / "cut")[0]["loss"]
    assert first != other
    assert first == pytest.approx(other, rel=0.1)  # other masks, the same batch


@pytest.mark.slow
def test_audio_that_disappears_costs_no_update(
    catalog: Catalog, tiny: RunConfig, audio_folder: Path, tmp_path: Path
) -> None:
    """Both processes have the same last step, one of them saves it, and both say why they end."""
    keys = {"steps": 300, "checkpoint_every": 1000, "data.micro_batch": 2, "data.cache_mebibytes": 0}
    config, folder, files = changed(tiny, keys), tmp_path / "run", find_audio(audio_folder)
    run = start(2, config, audio_folder, folder)
    wait_for_step(folder, 12)
    audio_folder.rename(tmp_path / "away")
    errors = finish(run)
    assert run.returncode != 0
    seen = max(line["step"] for line in losses(folder))
    assert errors.count(f"Step {seen} is saved; the same command resumes.") == 2
    assert newest_step(folder) == folder / f"step-{seen:08d}"
    (tmp_path / "away").rename(audio_folder)
    stop_at(config, files, folder, catalog, seen + 5)
    stop_at(config, files, tmp_path / "whole", catalog, seen + 5)
    same_numbers_until_now(folder, tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_torchrun_begins_them_again(tiny: RunConfig, audio_folder: Path, tmp_path: Path) -> None:
    """A process that is killed: `--max-restarts` begins all again, and they go on from the newest step."""
    config, folder = changed(tiny, {"steps": 40, "checkpoint_every": 10, "data.micro_batch": 2}), tmp_path / "run"
    run = start(2, config, str(audio_folder), folder, "--max-restarts", "1")
    wait_for_step(folder, 12)
    os.kill(worker(run, 1), signal.SIGKILL)
    errors = finish(run)
    assert run.returncode == 0, errors
    assert [line["step"] for line in losses(folder)][-1] == 40
    assert (folder / "model.safetensors").is_file()
