"""The loop: what a run leaves behind, and that a stopped run goes on with the same losses."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from asda_plugins.mixer_differential import DifferentialConfig
from safetensors.torch import load_file

from asda_core.audio_files.sources import find_audio
from asda_core.catalog import Catalog
from asda_core.checkpoint import load_encoder, read_checkpoint, write_model
from asda_core.config import OptimizerConfig, PluginChoice, RunConfig
from asda_core.config_io import load_run_config, to_yaml
from asda_core.data.clip_batches import Clips
from asda_core.errors import AsdaError, AudioError, CheckpointError, ConfigError, TrainingStopped
from asda_core.pretrain import loop
from asda_core.pretrain.initial_weights import build_from_checkpoint
from asda_core.pretrain.loop import pretrain
from asda_core.pretrain.schedule import learning_rate, make_optimizer
from asda_core.weights.tensor_files import read_tensors

SEEN_LOSSES = [614.02, 589.22, 547.26, 480.6, 478.6, 456.34]


def losses(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "time"} for line in lines]


def test_what_a_run_leaves(catalog: Catalog, tiny: RunConfig, audio_folder: Path, tmp_path: Path) -> None:
    (audio_folder / "broken.wav").write_text("no audio")
    final = pretrain(tiny, find_audio(audio_folder), tmp_path / "run", catalog, progress=False)
    assert final == tmp_path / "run" / "model.safetensors"
    assert load_run_config(tmp_path / "run" / "config.yaml") == tiny
    assert [line["step"] for line in losses(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]
    assert {"loss", "frame", "utterance", "lr", "grad_norm"} <= losses(tmp_path / "run")[0].keys()
    assert "broken.wav" in (tmp_path / "run" / "skipped.jsonl").read_text()
    assert list((tmp_path / "run" / "tensorboard").glob("events*"))
    assert [path.name for path in (tmp_path / "run").glob("step-*")] == ["step-00000006"]
    checkpoint = read_checkpoint(tmp_path / "run")
    assert checkpoint.step == 6
    assert checkpoint.plugins["mixer"] == {"name": "differential", "distribution": "(given)", "version": "0"}
    front_end, encoder = load_encoder(checkpoint, catalog)
    assert encoder(front_end(torch.zeros(1, 16_000))).summary.isfinite().all()
    assert not any(name.startswith("objective") for name in checkpoint.tensors)


def test_stopped_and_gone_on(
    catalog: Catalog, tiny: RunConfig, audio_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = find_audio(audio_folder)
    pretrain(tiny, files, tmp_path / "whole", catalog, progress=False)
    step = loop._train_step
    calls = []

    def fail_in_the_middle(run: loop.Run, audio: torch.Tensor) -> dict[str, object]:
        calls.append(run.step)
        if len(calls) == 6:
            raise KeyboardInterrupt  # after the save of step 4 and an unsaved step 5
        return step(run, audio)

    monkeypatch.setattr(loop, "_train_step", fail_in_the_middle)
    with pytest.raises(KeyboardInterrupt):
        pretrain(tiny, files, tmp_path / "parts", catalog, progress=False)
    assert len(losses(tmp_path / "parts")) == 5
    pretrain(tiny, files, tmp_path / "parts", catalog, progress=False)
    assert calls[6:] == [4, 5]
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    whole, parts = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_finished_run_is_not_done_again(
    catalog: Catalog, tiny: RunConfig, audio_folder: Path, tmp_path: Path
) -> None:
    files = find_audio(audio_folder)
    pretrain(tiny, files, tmp_path / "run", catalog, progress=False)
    before = losses(tmp_path / "run")
    start = time.monotonic()
    pretrain(tiny, files, tmp_path / "run", catalog, progress=False)
    assert losses(tmp_path / "run") == before
    assert time.monotonic() - start < 30


def test_another_run_in_the_folder(catalog: Catalog, tiny: RunConfig, audio_folder: Path, tmp_path: Path) -> None:
    files = find_audio(audio_folder)
    pretrain(tiny, files, tmp_path / "run", catalog, progress=False)
    with pytest.raises(ConfigError, match=r"contains a different run \(seed: 1, now 9\); use another folder"):
        pretrain(replace(tiny, seed=9, log_every=3), files, tmp_path / "run", catalog, progress=False)


def test_an_option_without_influence_makes_no_other_run(
    catalog: Catalog, tiny: RunConfig, audio_folder: Path, tmp_path: Path
) -> None:
    files = find_audio(audio_folder)

    def with_scan(options: dict[str, object]) -> RunConfig:
        return replace(tiny, encoder=replace(tiny.encoder, mixer=PluginChoice("mamba", options)))

    pretrain(with_scan({"scan": "sequential"}), files, tmp_path / "run", catalog, progress=False)
    before = losses(tmp_path / "run")
    pretrain(with_scan({}), files, tmp_path / "run", catalog, progress=False)
    assert losses(tmp_path / "run") == before
    with pytest.raises(ConfigError, match="contains a different run"):
        pretrain(with_scan({"states": 8}), files, tmp_path / "run", catalog, progress=False)


def test_no_steps_exports_the_initial_weights(
    catalog: Catalog, tiny: RunConfig, audio_folder: Path, tmp_path: Path
) -> None:
    pretrain(replace(tiny, steps=0), find_audio(audio_folder), tmp_path / "run", catalog, progress=False)
    assert read_checkpoint(tmp_path / "run").step == 0
    pretrain(replace(tiny, steps=0), [], tmp_path / "without", catalog, progress=False)
    assert read_checkpoint(tmp_path / "without").step == 0


def test_a_loss_that_is_not_finite_stops(catalog: Catalog, tiny: RunConfig, audio_folder: Path, tmp_path: Path) -> None:
    wild = replace(tiny, optimizer=OptimizerConfig(peak_lr=1e30, warmup_steps=0), steps=20)
    with pytest.raises(AsdaError, match="no longer finite at step .*lower optimizer.peak_lr"):
        pretrain(wild, find_audio(audio_folder), tmp_path / "run", catalog, progress=False)


def test_no_step_that_is_not_finite_is_saved(
    catalog: Catalog, tiny: RunConfig, audio_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = loop._train_step

    def breaks(run: loop.Run, audio: torch.Tensor) -> dict[str, object]:
        record = step(run, audio)
        return {**record, "loss": torch.tensor(float("nan"))} if run.step == 4 else record

    monkeypatch.setattr(loop, "_train_step", breaks)
    quiet = replace(tiny, log_every=100)
    with pytest.raises(AsdaError, match="no longer finite at step 4 .*step-00000002"):
        pretrain(quiet, find_audio(audio_folder), tmp_path / "run", catalog, progress=False)


def test_no_step_that_is_not_finite_is_saved_where_data_stall(
    catalog: Catalog, tiny: RunConfig, audio_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, batches = loop._train_step, loop.prefetch

    def breaks(run: loop.Run, audio: torch.Tensor) -> dict[str, object]:
        record = step(run, audio)
        return {**record, "loss": torch.tensor(float("nan"))} if run.step == 3 else record

    monkeypatch.setattr(loop, "_train_step", breaks)
    monkeypatch.setattr(loop, "prefetch", lambda clips, first, last, stop: batches(clips, first, 3, stop))
    with pytest.raises(AsdaError, match="no longer finite at step 3 .*step-00000002"):
        pretrain(replace(tiny, log_every=100), find_audio(audio_folder), tmp_path / "run", catalog, progress=False)
    assert [path.name for path in (tmp_path / "run").glob("step-*")] == ["step-00000002"]


def test_an_update_that_does_not_fit_into_memory_is_not_saved(
    catalog: Catalog, tiny: RunConfig, audio_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = loop._features

    def fails(run: loop.Run, clips: Clips) -> torch.Tensor:
        if run.step == 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ...")
        return features(run, clips)

    monkeypatch.setattr(loop, "_features", fails)
    told = r"an update in passes of 2 clips does not fit into memory: 2.00 GiB; lower data.micro_batch\.$"
    with pytest.raises(ConfigError, match=told):
        pretrain(tiny, find_audio(audio_folder), tmp_path / "run", catalog, progress=False)
    assert [path.name for path in (tmp_path / "run").glob("step-*")] == ["step-00000002"]


def test_audio_that_disappears_costs_no_update(
    catalog: Catalog, tiny: RunConfig, audio_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = replace(tiny, steps=12, checkpoint_every=100, data=replace(tiny.data, cache_mebibytes=0))
    files, run, away = find_audio(audio_folder), tmp_path / "run", tmp_path / "away"
    pretrain(long, files, tmp_path / "whole", catalog, progress=False)
    step = loop._train_step

    def loses(run: loop.Run, clips: Clips) -> dict[str, object]:
        if run.step == 2:
            audio_folder.rename(away)
        return step(run, clips)

    monkeypatch.setattr(loop, "_train_step", loses)
    with pytest.raises(AudioError, match=r"none of the 5 .* Step \d+ is saved; the same command resumes\.$"):
        pretrain(long, files, run, catalog, progress=False)
    assert [path.name for path in run.glob("step-*")] == [f"step-{losses(run)[-1]['step']:08d}"]
    assert 3 <= losses(run)[-1]["step"] < 12
    away.rename(audio_folder)
    monkeypatch.setattr(loop, "_train_step", step)
    pretrain(long, files, run, catalog, progress=False)
    assert losses(run) == losses(tmp_path / "whole")


def test_skipped_files_are_named_once_over_sessions(
    catalog: Catalog, tiny: RunConfig, audio_folder: Path, tmp_path: Path
) -> None:
    (audio_folder / "broken.wav").touch()
    files = find_audio(audio_folder)
    pretrain(tiny, files, tmp_path / "run", catalog, progress=False)
    pretrain(tiny, files, tmp_path / "run", catalog, progress=False)
    assert len((tmp_path / "run" / "skipped.jsonl").read_text().splitlines()) == 1


def start_command(config: Path, audio: Path, out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "asda_core.cli", "pretrain", str(config), "--data", str(audio), "--out", str(out)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def wait_for_step(folder: Path, step: int) -> None:
    for _ in range(1200):
        if (folder / "log.jsonl").exists() and len((folder / "log.jsonl").read_text().splitlines()) >= step:
            return
        time.sleep(0.05)
    raise AssertionError("the run does not get on")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_killed_from_outside(tiny: RunConfig, audio_folder: Path, tmp_path: Path, number: int) -> None:
    """The installed command, killed while it runs, then run again: the log is that of an undisturbed run."""
    config = tmp_path / "tiny.yaml"
    config.write_text(to_yaml(replace(tiny, steps=120, checkpoint_every=10)))
    whole = start_command(config, audio_folder, tmp_path / "whole")
    _, errors = whole.communicate()
    assert whole.returncode == 0, errors
    victim = start_command(config, audio_folder, tmp_path / "victim")
    wait_for_step(tmp_path / "victim", 12)
    os.kill(victim.pid, number)
    _, errors = victim.communicate()
    assert victim.returncode == (-signal.SIGKILL if number == signal.SIGKILL else 130)
    if number != signal.SIGKILL:
        assert "the same command resumes" in errors
    again = start_command(config, audio_folder, tmp_path / "victim")
    again.communicate()
    assert again.returncode == 0
    assert losses(tmp_path / "victim") == losses(tmp_path / "whole")


def test_stop_flag_saves(
    catalog: Catalog, tiny: RunConfig, audio_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = loop._train_step

    def ask_to_stop(run: loop.Run, audio: torch.Tensor) -> dict[str, object]:
        if run.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(run, audio)

    monkeypatch.setattr(loop, "_train_step", ask_to_stop)
    with pytest.raises(TrainingStopped, match="stopped after step 3 of 6"):
        pretrain(tiny, find_audio(audio_folder), tmp_path / "run", catalog, progress=False)
    assert (tmp_path / "run" / "step-00000003").is_dir()


def test_learning_rate() -> None:
    config = OptimizerConfig(peak_lr=1.0, warmup_steps=10, floor_lr=0.1)
    rates = [learning_rate(step, 110, config) for step in range(111)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == pytest.approx(1.0)
    assert rates[60] == pytest.approx(0.55)
    assert rates[110] == pytest.approx(0.1)
    assert all(later <= earlier for earlier, later in itertools.pairwise(rates[10:]))


def test_norms_and_biases_have_no_decay() -> None:
    layers = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
    token = torch.nn.Parameter(torch.zeros(1, 1, 4))
    groups = make_optimizer([*layers.parameters(), token], OptimizerConfig()).param_groups
    assert [(len(group["params"]), group["weight_decay"]) for group in groups] == [(1, 0.05), (4, 0.0)]
    assert len(make_optimizer(layers.parameters(), OptimizerConfig(decay_norms_and_biases=True)).param_groups) == 1


def test_a_seed_keeps_its_meaning(catalog: Catalog, tiny: RunConfig, tmp_path: Path) -> None:
    """Losses of six updates, seen on 2026-11-20: whoever changes the order in which numbers are drawn changes these,
    and with them every published table. Such a change goes into CHANGELOG in bold."""
    time_axis = np.arange(48_000) / 16_000
    soundfile.write(tmp_path / "tone.wav", 0.3 * np.sin(2 * np.pi * 300 * time_axis**1.5), 16_000, subtype="FLOAT")
    pretrain(tiny, [tmp_path / "tone.wav"], tmp_path / "run", catalog, progress=False)
    assert [line["loss"] for line in losses(tmp_path / "run")] == pytest.approx(SEEN_LOSSES, rel=1e-3)


def test_begins_with_given_weights(catalog: Catalog, tiny: RunConfig, audio_folder: Path, tmp_path: Path) -> None:
    """From a step (encoder, decoder and teacher) and from an encoder alone; another audio or start is another run."""
    files = find_audio(audio_folder)
    pretrain(tiny, files, tmp_path / "first", catalog, progress=False)
    still = replace(tiny, steps=0)
    for number, path in enumerate([tmp_path / "first" / "step-00000006", tmp_path / "first" / "model.safetensors"]):
        init = read_checkpoint(path)
        run = pretrain(still, files, tmp_path / f"next{number}", catalog, progress=False, init=init)
        made, given = load_file(run), init.tensors
        assert all(torch.equal(made[name], given[name]) for name in made)
    parts = build_from_checkpoint(read_checkpoint(tmp_path / "first" / "model.safetensors"), catalog, tiny)
    for one, other in zip(parts.objective.teacher.encoder.parameters(), parts.encoder.parameters(), strict=True):
        assert torch.equal(one, other)  # the teacher begins as a copy of what was loaded
    pretrain(replace(tiny, steps=2), files, tmp_path / "more", catalog, progress=False, init=init)
    with pytest.raises(ConfigError, match="or initial weights"):
        pretrain(replace(tiny, steps=2), files, tmp_path / "more", catalog, progress=False)
    other = replace(tiny, encoder=replace(tiny.encoder, depth=1))
    heads = replace(
        tiny, encoder=replace(tiny.encoder, num_heads=4, mixer=PluginChoice("differential", {"lambda_init": 0.3}))
    )
    for run, message in (
        (other, "encoder.depth 1, not 2"),
        (heads, "num_heads 4, not 2; encoder.mixer.options.lambda_init 0.3, not 0.1. `asda show"),
    ):
        with pytest.raises(ConfigError, match=f"the model of the run differs from .*{message}"):
            pretrain(run, files, tmp_path / "other", catalog, progress=False, init=init)
    stated = replace(tiny.encoder, mixer=PluginChoice("differential", {"lambda_init": 0.1}), pre_norm_residual=False)
    assert build_from_checkpoint(init, catalog, replace(tiny, encoder=stated))  # the same model in other words


def test_an_option_that_is_stated_at_its_default_is_the_same_run(
    catalog: Catalog, tiny: RunConfig, audio_folder: Path, tmp_path: Path
) -> None:
    files, run = find_audio(audio_folder), tmp_path / "run"
    pretrain(replace(tiny, steps=1), files, run, catalog, progress=False)
    usual = DifferentialConfig().lambda_init
    stated = PluginChoice("differential", {"lambda_init": usual})
    pretrain(replace(tiny, steps=1, encoder=replace(tiny.encoder, mixer=stated)), files, run, catalog, progress=False)
    other = PluginChoice("differential", {"lambda_init": usual + 0.1})
    with pytest.raises(ConfigError, match="contains a different run .*lambda_init"):
        pretrain(
            replace(tiny, steps=1, encoder=replace(tiny.encoder, mixer=other)), files, run, catalog, progress=False
        )


@pytest.mark.parametrize("name", ["model.safetensors", "training.safetensors"])
def test_a_damaged_step_names_the_one_before(
    catalog: Catalog, tiny: RunConfig, audio_folder: Path, tmp_path: Path, name: str
) -> None:
    files, run = find_audio(audio_folder), tmp_path / "run"
    config = replace(tiny, steps=2, checkpoint_every=1, keep_checkpoints=2)
    whole = pretrain(config, files, run, catalog, progress=False).read_bytes()
    (run / "step-00000002" / name).unlink()
    with pytest.raises(CheckpointError, match=r"Delete .*step-00000002 to resume from step-00000001\."):
        pretrain(config, files, run, catalog, progress=False)
    shutil.rmtree(run / "step-00000002")
    assert pretrain(config, files, run, catalog, progress=False).read_bytes() == whole
    file = run / "step-00000002" / "model.safetensors"
    tensors, metadata = read_tensors(file)
    for changes, message in (
        ({"format": "asda-2"}, "expected format 'asda-1'"),
        ({"step": "x"}, "cannot read 'step' in its metadata"),
    ):
        write_model(file, tensors, {**metadata, **changes})
        with pytest.raises(CheckpointError, match=message) as error:  # whole, and of another version: it stays
            pretrain(config, files, run, catalog, progress=False)
        assert "Delete" not in str(error.value)


def test_a_run_with_an_option_of_yesterday(
    catalog: Catalog, tiny: RunConfig, audio_folder: Path, tmp_path: Path
) -> None:
    files, run = find_audio(audio_folder), tmp_path / "run"
    pretrain(replace(tiny, steps=1), files, run, catalog, progress=False)
    file = run / "step-00000001" / "model.safetensors"
    tensors, metadata = read_tensors(file)
    config = json.loads(metadata["config"])
    config["encoder"]["mixer"]["options"] = {"option_of_yesterday": 1}
    write_model(file, tensors, {**metadata, "config": json.dumps(config)})
    with pytest.raises(ConfigError, match=r"contains a different run \(encoder.mixer.options.option_of_yesterday: 1"):
        pretrain(replace(tiny, steps=1), files, run, catalog, progress=False)


def test_tensorflow_is_left_alone(tmp_path: Path) -> None:
    """TensorBoard imports it where it is installed: seconds, and hundreds of mebibytes in every training."""
    (tmp_path / "tensorflow").mkdir()
    (tmp_path / "tensorflow" / "__init__.py").write_text("raise SystemExit('TensorFlow was imported')")
    code = """
from pathlib import Path
from asda_core.pretrain.reporter import tensorboard
with tensorboard(Path("run"), 0) as board:
    board.add_scalar("loss", 1.0, 1)
"""
    paths = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": paths})
    assert list((tmp_path / "run" / "tensorboard").glob("events*"))
