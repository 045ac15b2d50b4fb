"""Corners that a review found: dropout in probes, ends of epochs, signals at the end, what goes over what."""

import csv
import json
import re
import shutil
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import numpy as np
import pytest
import torch

import asda_core.finetune.loop as loop
from asda_core.catalog import Catalog
from asda_core.checkpoint import Checkpoint, read_checkpoint
from asda_core.cli import main
from asda_core.config_io import to_yaml
from asda_core.data.clip_reader import ClipReader
from asda_core.errors import ConfigError, TrainingStopped
from asda_core.finetune.evaluation import Predictions, interval_over_folds
from asda_core.finetune.finetune_model import FinetuneModel, build_finetune_model, load_finetune_model
from asda_core.finetune.jobs import Job, prepare_job
from asda_core.finetune.losses import multi_label_loss
from asda_core.finetune.predicting import Predictor, predict
from asda_core.finetune.recipes import load_recipe, recipe_for, with_changes
from asda_core.finetune.running import RESULT_FILE, finetune
from asda_core.finetune_config import FinetuneConfig
from asda_core.inference.classifying import probabilities
from asda_core.inference.clip_encoder import ClipEncoder, EncodeOptions, with_training_length
from asda_core.labelled.examples import Example, LabelledData
from asda_core.labelled.reading import read_labelled
from asda_core.labelled.source import SourceConfig
from asda_core.labelled.splits import Round, rounds
from tests.finetune.making import small_checkpoint, small_recipe, small_run, write_table, write_tones


@pytest.fixture(scope="module")
def tones(tmp_path_factory: pytest.TempPathFactory) -> tuple[LabelledData, Round]:
    source = SourceConfig(data=str(write_tones(tmp_path_factory.mktemp("tones") / "tones")))
    data = read_labelled(source, Path())
    return data, rounds(data, source)[0]


@pytest.fixture
def start(tmp_path: Path, catalog: Catalog) -> Checkpoint:
    return small_checkpoint(tmp_path / "start", catalog)


def test_a_probe_of_an_encoder_with_dropout(
    tones: tuple[LabelledData, Round], start: Checkpoint, catalog: Catalog, tmp_path: Path
) -> None:
    """The frozen encoder hears as in evaluation: encoded once or anew, twice the same, and nobody's generator moves."""
    data, split = tones
    adapted = recipe_for(small_recipe(), "convolution", catalog, {"adapter.options.dropout": 0.5})
    finetune(Job(adapted, start, data, split), tmp_path / "adapted", catalog, progress=False)
    dropping = read_checkpoint(tmp_path / "adapted")
    found = []
    for number, mebibytes in enumerate((64, 64, 0)):
        recipe = recipe_for(small_recipe(), "linear", catalog, {"data.cache_mebibytes": mebibytes})
        before = torch.get_rng_state()
        finetune(Job(recipe, dropping, data, split), tmp_path / str(number), catalog, progress=False)
        assert torch.equal(torch.get_rng_state(), before)
        found.append(read_checkpoint(tmp_path / str(number)).tensors)
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    for name, tensor in found[0].items():
        torch.testing.assert_close(found[2][name], tensor, rtol=1e-4, atol=1e-5)


def test_the_interval_is_of_the_mean_over_folds() -> None:
    """Scores of two folds on scales of their own: each ranks well, both together do not."""
    generator = np.random.default_rng(0)
    parts = []
    for shift in (0.0, 10.0):
        targets = np.eye(2, dtype=np.uint8)[generator.integers(2, size=60)]
        given = (targets + 0.5 * generator.normal(size=targets.shape) + shift).astype(np.float32)
        files = tuple(f"{shift}-{number}" for number in range(60))
        parts.append(Predictions(files, targets, given, ("a", "b"), ("a", "b"), True))
    from_each = [float((p.probabilities.argmax(1) == p.targets.argmax(1)).mean()) for p in parts]
    found = interval_over_folds(parts, 500)
    assert set(found) == {"accuracy", "mAP", "AUC"}
    low, high = found["accuracy"]
    assert low <= np.mean(from_each) <= high
    assert found["AUC"][0] > 0.75, "folds are not ranked against each other"
    assert high - low < 0.25


@pytest.mark.parametrize(("clips", "batch", "epochs", "steps"), [(9, 7, 21, 27), (7, 3, 15, 35), (10, 5, 0.5, 1)])
def test_epochs_are_counted_in_whole_numbers(
    clips: int, batch: int, epochs: float, steps: int, start: Checkpoint, catalog: Catalog, tmp_path: Path
) -> None:
    source = SourceConfig(data=str(write_tones(tmp_path / "tones", classes=2, clips=clips)))
    data = read_labelled(source, Path())
    split = Round("", data.examples[:clips], (), data.examples[clips:])
    recipe = with_changes(small_recipe(), {"epochs": epochs, "data.batch_size": batch, "step_decay.first_epoch": 2})
    tuned = build_finetune_model(catalog, recipe, start, data.classes)
    training = loop.start_training(Job(recipe, start, data, split), tuned, catalog, tmp_path / "run", "x")
    assert training.steps == steps
    assert training.steps_per_epoch == Fraction(clips, batch)


@pytest.mark.parametrize("seconds", [0.3, 0.335, 0.35, 0.7, 1.0])
def test_evaluation_hears_what_classify_hears(
    seconds: float, tones: tuple[LabelledData, Round], start: Checkpoint, catalog: Catalog, tmp_path: Path
) -> None:
    """Also for clips of exactly the length of the training, whose last frames fill no patch."""
    source = SourceConfig(data=str(write_tones(tmp_path / "clips", clips=2, seconds=seconds)))
    data = read_labelled(source, Path())
    recipe = with_changes(small_recipe(steps=1), {"data.clip_seconds": 0.35})
    finetune(Job(recipe, start, *tones), tmp_path / "run", catalog, progress=False)
    tuned = load_finetune_model(read_checkpoint(tmp_path / "run"), catalog)
    reader = ClipReader(recipe.data, 16_000)
    made = predict(Predictor(tuned, recipe, reader), data, data.examples)
    options = with_training_length(EncodeOptions(clip_seconds=0.35), tuned.front_end, tuned.encoder)
    listener = ClipEncoder(tuned.front_end, tuned.encoder, options)
    order = {str(example.file): example.file for example in data.examples}
    for name, row in zip(made.files, made.probabilities, strict=True):
        said = probabilities(listener, tuned.classifier, reader.read_whole(order[name]))
        torch.testing.assert_close(said, torch.from_numpy(row), rtol=1e-5, atol=1e-6)


def test_predictions_keep_the_order_of_the_clips(start: Checkpoint, catalog: Catalog, tmp_path: Path) -> None:
    """Bootstrap intervals depend on it, and short clips wait for a full batch while long ones do not."""
    folder = write_tones(tmp_path / "clips", clips=2, seconds=0.3)
    write_tones(tmp_path / "long", clips=1, seconds=1.0)
    last = sorted(folder.rglob("*.wav"))[-1]
    shutil.copy(sorted((tmp_path / "long").rglob("*.wav"))[0], last)
    data = read_labelled(SourceConfig(data=str(folder)), Path())
    model = build_finetune_model(catalog, small_recipe(), start, data.classes)
    predictor = Predictor(model, small_recipe(), ClipReader(small_recipe().data, 16_000))
    for examples in (data.examples, data.examples[::-1]):
        made = predict(predictor, data, examples)
        assert made.files == tuple(str(example.file) for example in examples)
        assert [data.classes[row.argmax()] for row in made.targets] == [example.labels[0] for example in examples]


def test_what_goes_over_what(catalog: Catalog) -> None:
    """The file, then the mode, then a task or the command line."""
    recipe = small_recipe(by_mode={"linear": {"epochs": 50, "data.clip_seconds": 5.0, "optimizer": {"peak_lr": 0.5}}})
    linear = recipe_for(recipe, "linear", catalog)
    assert (linear.epochs, linear.steps, linear.data.clip_seconds, linear.optimizer.peak_lr) == (50, 0, 5.0, 0.5)
    assert linear.optimizer.warmup_steps == recipe.optimizer.warmup_steps, "a group names what it changes"
    linear = recipe_for(recipe, "linear", catalog, {"steps": 3, "data": {"clip_seconds": 1.0}})
    assert (linear.epochs, linear.steps, linear.data.clip_seconds) == (0, 3, 1.0)
    assert linear.data.batch_size == recipe.data.batch_size
    linear = recipe_for(recipe, "linear", catalog, {"by_mode.linear.optimizer.peak_lr": 0.25})
    assert (linear.optimizer.peak_lr, linear.optimizer.warmup_steps, linear.epochs) == (0.25, 2, 50)
    low_rank = recipe_for(recipe, "low_rank", catalog, {"adapter.options.rank": 2})
    assert low_rank.adapter is not None
    assert low_rank.adapter.options == {"rank": 2}
    assert recipe_for(recipe, "full", catalog, {"adapter.options.rank": 2}).adapter is None
    with pytest.raises(ConfigError, match="cannot change the mode"):
        recipe_for(small_recipe(by_mode={"linear": {"mode": "full"}}), "linear", catalog)


def test_a_recipe_of_an_attentive_probe_lends_its_pooling_to_nobody(catalog: Catalog) -> None:
    recipe = small_recipe(mode="attentive", pooling="attentive")
    assert recipe_for(recipe, "attentive", catalog).pooling == "attentive"
    assert recipe_for(recipe, "linear", catalog).pooling == "summary"
    assert recipe_for(recipe, "full", catalog, {"pooling": "mean"}).pooling == "mean"
    assert recipe_for(small_recipe(pooling="attentive"), "full", catalog).pooling == "attentive"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"average_from_epoch": 1, "select": "valid"}, "averages the last weights"),
        ({"average_from_epoch": 9}, "after the end of the training"),
        ({"patience": 2, "select": "last"}, "patience needs validation clips"),
        ({"epochs": float("inf")}, "finite"),
        ({"front_end": {"num_bins": 64}}, "changes num_bins from 128 to 64"),
        ({"front_end": {"hop_ms": 20.0}}, "changes hop_samples from 160 to 320"),
        ({"front_end": {"name": "mfcc", "mean": 1.0}}, "is for the front end 'mfcc'"),
    ],
)
def test_settings_without_effect_or_sense(
    change: dict[str, Any],
    message: str,
    tones: tuple[LabelledData, Round],
    start: Checkpoint,
    catalog: Catalog,
    tmp_path: Path,
) -> None:
    def run() -> None:
        recipe = with_changes(small_recipe(), change)
        finetune(Job(recipe, start, *tones), tmp_path / "run", catalog, progress=False)

    with pytest.raises(ConfigError, match=message):
        run()


def test_the_average_decides_what_auto_means(tones: tuple[LabelledData, Round], start: Checkpoint) -> None:
    assert prepare_job(Job(small_recipe(average_from_epoch=1), start, *tones)).recipe.select == "last"


def test_skipped_files_are_remembered(
    tones: tuple[LabelledData, Round],
    start: Checkpoint,
    catalog: Catalog,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A training that ended in one session and is evaluated in the next names what the first could not read."""
    data, split = tones
    bad = tmp_path / "bad.wav"
    bad.write_bytes(b"nothing")
    split = replace(split, train=(*split.train, Example(bad, ("tone1",))))
    real = loop._after_step

    def asked(training: loop.Training, *rest: Any) -> None:
        training.stop = training.step == training.steps  # Ctrl-C in the last update
        real(training, *rest)

    job = Job(small_recipe(steps=8), start, data, split)
    monkeypatch.setattr(loop, "_after_step", asked)
    with pytest.raises(TrainingStopped, match="stopped after step 8 of 8"):
        finetune(job, tmp_path / "run", catalog, progress=False)
    assert not (tmp_path / "run" / RESULT_FILE).exists()
    monkeypatch.setattr(loop, "_after_step", real)
    assert set(finetune(job, tmp_path / "run", catalog, progress=False)["skipped"]) == {str(bad)}


def test_a_clip_that_fails_once_is_in_the_next_evaluation(
    start: Checkpoint, catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asda_core.data.clip_reader.RETRIES", 0)
    source = SourceConfig(data=str(write_tones(tmp_path / "tones")))
    data, recipe = read_labelled(source, Path()), small_recipe()
    model = build_finetune_model(catalog, recipe, start, data.classes)
    predictor = Predictor(model, recipe, ClipReader(recipe.data, 16_000))
    missing, damaged = (example.file for example in data.examples[:2])
    damaged.write_text("no audio")
    missing.rename(tmp_path / "away")
    assert len(predict(predictor, data, data.examples).files) == len(data.examples) - 2
    (tmp_path / "away").rename(missing)
    assert len(predict(predictor, data, data.examples).files) == len(data.examples) - 1
    assert predictor.damaged == {damaged}
    assert set(predictor.skipped) == {missing, damaged}


def test_the_file_tells_the_update_of_its_weights(
    tones: tuple[LabelledData, Round], start: Checkpoint, catalog: Catalog, tmp_path: Path
) -> None:
    result = finetune(Job(small_recipe(select="valid", evaluations=6), start, *tones), tmp_path / "run", catalog,
                      progress=False)  # fmt: skip
    assert read_checkpoint(tmp_path / "run").step == result["step"]
    assert read_checkpoint(tmp_path / "run" / "last.safetensors").step == result["steps"] == 6


def test_no_label_in_a_batch() -> None:
    logits = torch.zeros(2, 3)
    assert multi_label_loss(logits, torch.zeros(2, 3), "labels") == pytest.approx(6 * np.log(2))


@pytest.fixture
def place(tmp_path: Path, catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(to_yaml(small_recipe(steps=2)))
    small_checkpoint(tmp_path / "start", catalog)
    write_table(tmp_path / "tones")
    return tmp_path


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as opened:
        return list(csv.DictReader(opened))


def test_a_second_command_keeps_the_runs_of_the_first(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of the same recipe; those of another one are not beside them."""
    command = ["finetune", "recipe.yaml", "--checkpoint", "start", "--data", "tones/tones.csv", "--out", "out"]
    assert main([*command, "--modes", "full"]) == 0
    assert main([*command, "--modes", "linear"]) == 0
    table = capsys.readouterr().out
    assert len(rows_of(place / "out" / "runs.csv")) == 4
    assert [line.split(" | ")[1] for line in table.splitlines() if line.startswith("| start")] == [
        "full",
        "full",
        "linear",
    ]
    assert main([*command, "--modes", "linear", "--set", "steps=1"]) == 0
    assert {row["mode"] for row in rows_of(place / "out" / "runs.csv")} == {"linear"}
    table = (place / "out" / "table.md").read_text()
    assert "## tones: fold1, fold2" in table
    assert "Runs of other recipes, data or checkpoints in this folder, not in the table: 4." in table


def test_a_recipe_is_shown_and_its_name_corrected(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "finetune/asda_esc50", "--set", "epochs=3"]) == 0
    shown = capsys.readouterr().out
    assert "label_smoothing: 0.1" in shown
    assert "epochs: 3" in shown
    (place / "shown.yaml").write_text(shown)
    assert load_recipe(place / "shown.yaml").steps == 0
    assert main(["finetune", "finetune/asda_esc5", "--checkpoint", "start", "--data", "tones/tones.csv"]) == 1
    assert "Did you mean 'finetune/asda_esc50'" in capsys.readouterr().err


def test_a_missing_checkpoint_shows_before_the_data_is_read(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["finetune", "recipe.yaml", "--checkpoint", "gone.pt", "--data", "nowhere"]) == 1
    assert "no checkpoint or config at gone.pt" in capsys.readouterr().err
    assert main(["finetune", "recipe.yaml", "--checkpoint", "start", "--data", "nowhere", "--modes", "lora"]) == 1
    assert "unknown mode 'lora'" in capsys.readouterr().err


def test_what_a_task_changes_in_the_front_end_is_its_own(place: Path) -> None:
    """A sequence of full fine-tunings hears its second task as adapters do: with the front end of the checkpoint."""
    write_tones(place / "first")
    write_tones(place / "second", classes=2)
    (place / "first.yaml").write_text("data: first\nset: {front_end: {mean: -6.6, std: 5.3}}\n")
    command = ["finetune", "recipe.yaml", "--checkpoint", "start", "--continual", "--tasks", "first.yaml", "second"]
    assert main([*command, "--modes", "full", "bottleneck", "--out", "out"]) == 0
    for mode in ("full", "bottleneck"):
        first, second = sorted((place / "out" / f"start-{mode}-seed3").iterdir())
        assert read_checkpoint(first).config.front_end.options == {"mean": -6.6, "std": 5.3}
        assert read_checkpoint(second).config.front_end.options == {}


def test_a_mode_that_fails_leaves_the_others(place: Path, catalog: Catalog, capsys: pytest.CaptureFixture[str]) -> None:
    small_checkpoint(place / "mamba", catalog, small_run("mamba", mlp_ratio=0.0))
    write_tones(place / "first")
    write_tones(place / "second", classes=2)
    command = ["finetune", "recipe.yaml", "--checkpoint", "mamba", "--continual", "--tasks", "first", "second"]
    assert main([*command, "--modes", "bottleneck", "linear", "--out", "out"]) == 1
    told = capsys.readouterr()
    assert "1 of the runs failed: mamba, bottleneck, seed 3: bottleneck: beside_mlp" in told.err
    assert re.search(r"\| mamba \| linear \| second \|", told.out)


@pytest.mark.parametrize(
    ("where", "told"),
    [
        ("loop.training_batch", "an update of 4 clips does not fit into memory: 2.00 GiB; lower data.batch_size."),
        ("predicting._probabilities", "a pass of 32 clips does not fit into memory: 2.00 GiB; use a device with more"),
    ],
)
def test_what_does_not_fit_into_memory_leaves_the_other_runs(
    where: str, told: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = f"asda_core.finetune.{where}"
    whole = resolve_name(name)

    def fails_in_full(first: FinetuneModel | Predictor, *others: Any) -> Any:
        if (first if isinstance(first, FinetuneModel) else first.model).config.adapter is None:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return whole(first, *others)

    monkeypatch.setattr(name, fails_in_full)
    command = ["finetune", "recipe.yaml", "--checkpoint", "start", "--data", "tones/tones.csv", "--folds", "1"]
    assert main([*command, "--modes", "full", "bottleneck", "--device", "cpu", "--out", "out"]) == 1
    printed = capsys.readouterr()
    assert f"failed: start, full, fold1, seed 3: {told}" in printed.err
    assert "error: 1 of 2 runs failed" in printed.err
    assert [row["mode"] for row in rows_of(place / "out" / "runs.csv")] == ["bottleneck"]
    assert len(list((place / "out").glob("*/step-*"))) == ("predicting" in where)  # the last update before it


def test_a_wrong_key_of_a_task_names_its_file(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "task.yaml").write_text("data: tones/tones.csv\nset: {epoch: 3}\n")
    assert main(["finetune", "recipe.yaml", "--checkpoint", "start", "--data", "task.yaml"]) == 1
    assert "task.yaml, set: unknown config key 'epoch'" in capsys.readouterr().err


def test_numbers_that_do_not_fit_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("steps: 3\nepochs: 3\n")
    with pytest.raises(ConfigError) as caught:
        load_recipe(tmp_path / "recipe.yaml")
    assert len(str(caught.value)) < 200 + len(str(tmp_path))
    assert isinstance(load_recipe("finetune/tiny"), FinetuneConfig)


def test_the_step_a_kill_left_is_not_lost(
    tones: tuple[LabelledData, Round],
    start: Checkpoint,
    catalog: Catalog,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A kill between the end of training and the result: nothing is trained again."""
    job = Job(small_recipe(select="valid"), start, *tones)
    monkeypatch.setattr("asda_core.finetune.running._test", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        finetune(job, tmp_path / "run", catalog, progress=False)
    monkeypatch.undo()
    monkeypatch.setattr(loop, "_train_step", lambda *_: pytest.fail("trained again"))
    result = finetune(job, tmp_path / "run", catalog, progress=False)
    assert json.loads((tmp_path / "run" / RESULT_FILE).read_text())["step"] == result["step"]
