"""Learning task after task: what frozen encoders keep, what fine-tuning forgets, and the figures of both."""

import csv
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

import asda_core.finetune.continual as continual
import asda_core.finetune.jobs as jobs
from asda_core.catalog import Catalog
from asda_core.checkpoint import checkpoint_metadata, read_checkpoint, write_model
from asda_core.cli import main
from asda_core.config import PluginChoice
from asda_core.config_io import to_yaml
from asda_core.finetune.continual import Outcome
from asda_core.finetune.continual_table import _seeds_text
from asda_core.finetune.running import RESULT_FILE
from asda_core.labelled.examples import Example
from tests.finetune.making import small_checkpoint, small_recipe, small_run, write_table, write_tones

MATRIX = ((0.9,), (0.6, 0.8), (0.7, 0.5, 1.0))


def test_figures_by_hand() -> None:
    outcome = Outcome(MATRIX, (10, 10, 10), 100)
    assert outcome.average() == pytest.approx((0.7 + 0.5 + 1.0) / 3)
    assert outcome.forgetting() == pytest.approx(((0.9 - 0.7) + (0.8 - 0.5)) / 2)
    assert outcome.backward_transfer() == pytest.approx(((0.7 - 0.9) + (0.5 - 0.8)) / 2)
    better = Outcome(((0.5,), (0.7, 0.5), (0.6, 0.6, 0.5)), (1, 1, 1), 1)
    assert better.forgetting() == pytest.approx(((0.7 - 0.6) + (0.5 - 0.6)) / 2)
    assert better.backward_transfer() == pytest.approx((0.1 + 0.1) / 2)


@pytest.fixture
def place(tmp_path: Path, catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two tasks: three tones, and two tones of which the second is called by another name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(to_yaml(small_recipe(steps=4, pooling="mean")))
    small_checkpoint(tmp_path / "start", catalog, small_run("standard"))
    write_tones(tmp_path / "tones")
    write_tones(tmp_path / "pair", classes=2)
    (tmp_path / "second.yaml").write_text("data: pair\nname: second\nset: {steps: 3}\n")
    return tmp_path


COMMAND = ["finetune", "recipe.yaml", "--checkpoint", "mine=start", "--tasks", "tones", "second.yaml", "--continual"]


def test_what_a_task_changes_in_the_front_end_and_the_strides_is_its_own(place: Path, catalog: Catalog) -> None:
    start = read_checkpoint(place / "start")
    encoder = replace(start.config.encoder, stride_frames=4, stride_bins=8)
    front_end = PluginChoice("log_mel", {"mean": 1.0})
    config = replace(start.config, encoder=encoder, front_end=front_end)
    write_model(place / "left.safetensors", dict(start.tensors), checkpoint_metadata(config, catalog, 3))
    for begun in (start, start.config):
        left, _ = continual._left_by(place / "left.safetensors", begun)
        assert left.config == start.config


def test_the_fold_is_the_first_that_is_asked_for_and_no_seed(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_table(place / "folds", folds=3, clips=6).rename(place / "folds" / "folded.csv")
    command = [*COMMAND, "--modes", "linear", "--out", "out"]
    command[command.index("second.yaml")] = "folds/folded.csv"
    assert main([*command, "--folds", "3", "1"]) == 0
    assert "the test fold is fold3" in capsys.readouterr().err
    assert main([*command, "--folds", "2"]) == 0
    assert "One seed;" in capsys.readouterr().out
    assert len(list((place / "out").glob("*.outcome.json"))) == 2


def rows_of(place: Path) -> dict[tuple[str, str, str], float]:
    with (place / "out" / "continual.csv").open(newline="") as opened:
        return {(row["mode"], row["after"], row["on"]): float(row["value"]) for row in csv.DictReader(opened)}


@pytest.mark.slow
def test_frozen_modes_forget_nothing_and_full_starts_from_the_task_before(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*COMMAND, "--modes", "convolution", "linear", "full", "--out", "out"]) == 0
    table = capsys.readouterr().out
    found = rows_of(place)
    for mode in ("convolution", "linear", "full"):
        folder = place / "out" / f"mine-{mode}-seed3"
        runs = sorted(folder.iterdir())
        results = [json.loads((run / RESULT_FILE).read_text()) for run in runs]
        assert [run.name[:2] for run in runs] == ["1-", "2-"]
        assert [result["steps"] for result in results] == [4, 3]
        assert found[mode, "tones", "tones"] == pytest.approx(results[0]["scores"]["accuracy"], abs=1e-6)
        assert found[mode, "second", "second"] == pytest.approx(results[1]["scores"]["accuracy"], abs=1e-6)
        if mode != "full":
            assert found[mode, "second", "tones"] == found[mode, "tones", "tones"]
    first, second = (read_checkpoint(run).tensors for run in sorted((place / "out" / "mine-full-seed3").iterdir()))
    base = read_checkpoint(place / "start").tensors
    moved = [name for name in base if name.startswith("encoder.blocks") and not np.array_equal(first[name], base[name])]
    assert moved
    assert sum(float((second[name] - first[name]).abs().sum()) for name in moved) < sum(
        float((second[name] - base[name]).abs().sum()) for name in moved
    )
    lines = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| mine")]
    assert [line[2] for line in lines] == ["tones", "second"] * 3
    assert lines[1][6] == "0.000", "the convolution adapters forget nothing"


def test_stored_parameters(place: Path, catalog: Catalog) -> None:
    """One encoder, and of each task its adapter and head; counted from the files."""
    assert main([*COMMAND, "--modes", "bottleneck", "full", "--out", "out"]) == 0
    base = sum(t.numel() for name, t in read_checkpoint(place / "start").tensors.items() if name.startswith("encoder."))
    for mode in ("bottleneck", "full"):
        own = 0
        for run in sorted((place / "out" / f"mine-{mode}-seed3").iterdir()):
            tensors = read_checkpoint(run).tensors
            own += sum(t.numel() for name, t in tensors.items() if "adapter" in name or name.startswith("classifier."))
        text = (place / "out" / "continual.md").read_text()
        line = next(line for line in text.splitlines() if line.startswith(f"| mine | {mode} | second"))
        assert line.strip("| ").split(" | ")[-1] == f"{base + own:,}"


def test_a_full_encoder_is_heard_with_the_old_head(
    place: Path, monkeypatch: pytest.MonkeyPatch, catalog: Catalog
) -> None:
    """The value after the second task is that of the new encoder under the first task's head."""
    heard: list[dict[str, object]] = []
    real = continual.load_finetune_model

    def listening(checkpoint: object, *rest: object) -> object:
        heard.append(dict(checkpoint.tensors))  # type: ignore[attr-defined]
        return real(checkpoint, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(continual, "load_finetune_model", listening)
    assert main([*COMMAND, "--modes", "full", "--out", "out"]) == 0
    first, second = (read_checkpoint(run).tensors for run in sorted((place / "out" / "mine-full-seed3").iterdir()))
    mixed = heard[1]
    assert all(np.array_equal(mixed[n], second[n]) for n in mixed if n.startswith("encoder."))  # type: ignore[call-overload]
    assert all(np.array_equal(mixed[n], first[n]) for n in mixed if n.startswith("classifier."))  # type: ignore[call-overload]


def test_the_clips_of_a_run_are_looked_up_once(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, parts = jobs.clip_facts, []

    def counted(examples: Sequence[Example]) -> list[list[object]]:
        parts.append(examples)
        return real(examples)

    monkeypatch.setattr(jobs, "clip_facts", counted)
    assert main([*COMMAND, "--modes", "linear", "--out", "out"]) == 0
    assert len(parts) == 2 * len(("train", "valid", "test")), "two tasks"
    parts.clear()
    assert main(["finetune", "recipe.yaml", "--checkpoint", "start", "--data", "tones", "--out", "sweep"]) == 0
    assert len(parts) == len(("train", "valid", "test"))


def test_it_goes_on_and_does_nothing_twice(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, predict, calls = continual.finetune_named, continual.predict, []

    def dying(*arguments: object, **named: object) -> object:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(continual, "finetune_named", dying)
    command = [*COMMAND, "--modes", "full", "--out", "out"]
    assert main(command) == 130
    stamps = {file: file.stat().st_mtime_ns for file in (place / "out").rglob("model.safetensors")}
    assert len(stamps) == 1
    assert main(command) == 0
    assert all(file.stat().st_mtime_ns == stamp for file, stamp in stamps.items())
    before = (place / "out" / "continual.md").read_text()
    monkeypatch.setattr(continual, "predict", lambda *_: pytest.fail("heard again"))
    assert main(command) == 0
    assert (place / "out" / "continual.md").read_text() == before
    for damaged in (place / "out").rglob(continual.SCORE_CACHE_FILE):
        damaged.write_text("{")
    monkeypatch.setattr(continual, "predict", predict)
    assert main(command) == 0
    assert (place / "out" / "continual.md").read_text() == before


def test_frequency_time_attention_is_an_option(place: Path) -> None:
    assert main([*COMMAND, "--modes", "convolution", "--set", "mixer=frequency_time", "--out", "out"]) == 0
    for run in (place / "out" / "mine-convolution-seed3").iterdir():
        assert read_checkpoint(run).config.encoder.mixer.name == "frequency_time"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--tasks": ["tones"]}, "at least two tasks"),
        ({"--tasks": ["tones", "tones"]}, "each with a unique name"),
        ({"--data": ["tones"]}, "either --data"),
        ({"--modes": ["nothing"]}, "unknown mode"),
    ],
)
def test_mistakes(change: dict[str, list[str]], message: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = {"--checkpoint": ["start"], "--tasks": ["tones", "second.yaml"], "--continual": [], "--out": ["out"]}
    options |= change
    assert main(["finetune", "recipe.yaml", *(word for key, given in options.items() for word in [key, *given])]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_modes_of_an_earlier_command_stay_in_the_table(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*COMMAND, "--modes", "linear", "--out", "out"]) == 0
    before = rows_of(place)
    assert main([*COMMAND, "--modes", "bias_only", "--out", "out"]) == 0
    after = rows_of(place)
    assert {mode for mode, _, _ in after} == {"linear", "bias_only"}
    assert before.items() <= after.items()
    (place / "out" / "mine-linear-seed3.outcome.json").write_text("{")
    capsys.readouterr()
    other = ["finetune", "recipe.yaml", "--checkpoint", "mine=start", "--tasks", "second.yaml", "tones", "--continual"]
    assert main([*other, "--modes", "full", "--out", "out"]) == 0  # in another order: another table
    assert {mode for mode, _, _ in rows_of(place)} == {"full"}
    assert "outcome.json is damaged" in capsys.readouterr().err


def test_outcomes_of_other_clips_and_checkpoints_stand_apart(
    place: Path, catalog: Catalog, capsys: pytest.CaptureFixture[str]
) -> None:
    """Tasks and labels of the same names are not enough; what was there stays, and is counted under the table."""
    command = [*COMMAND, "--modes", "linear", "--out", "out"]
    assert main(command) == 0
    (first,) = (place / "out").glob("*.outcome.json")
    small_checkpoint(place / "elsewhere", catalog, small_run(depth=1))
    assert main([*command, "--checkpoint", "mine=elsewhere", "--seeds", "4"]) == 0
    table = capsys.readouterr().out
    assert "over 2 seeds" not in table
    assert "Outcomes of other tasks, clips, recipes or checkpoints in this folder, not in the table: 1." in table
    audio = next((place / "pair").rglob("*.wav"))
    sound, rate = soundfile.read(audio)
    soundfile.write(audio, sound[::-1], rate)
    assert main([*command, "--seeds", "5"]) == 0
    table = capsys.readouterr().out
    assert "over 2 seeds" not in table
    assert "not in the table: 2." in table
    assert main([*command, "--seeds", "6"]) == 0  # the same clips and weights as the one before
    table = capsys.readouterr().out
    assert "over 2 seeds" in table
    assert "not in the table: 2." in table
    assert first.is_file()
    small_checkpoint(place / "third", catalog, small_run("standard"))
    others = [*command, "--checkpoint", "third=third", "--seeds", "5"]
    assert main(others) == 0  # which says nothing of "mine": its newest outcomes stand together
    table = capsys.readouterr().out
    assert "| mine | linear | second |" in table
    assert "over the seeds of a line (not every line has every seed)" in table  # two of "mine", one of "third"
    ends = [line.strip("| ").split(" | ") for line in table.splitlines() if " | linear | second | " in line]
    assert {line[0]: line[8] for line in ends} == {"mine": "2", "third": "1"}
    assert "not in the table: 2." in table
    damaged = json.loads(first.read_text())
    for key in ("start", "per_seed"):
        damaged.pop(key)
    damaged["of"][2] = 6
    first.write_text(json.dumps(damaged))  # as an earlier version left it, of what is done anew
    assert main(others) == 0
    assert "not in the table: 1." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("seeds", "text"),
    [
        ({"a": [0, 1], "b": [0, 1]}, "Mean ± half the 95 % interval over 2 seeds"),
        ({"a": [0], "b": [1]}, "One seed (not every line has every seed)"),
        (
            {"a": [0, 1, 2], "b": [0]},
            "Mean ± half the 95 % interval over the seeds of a line (not every line has every seed)",
        ),
    ],
)
def test_lines_of_other_seeds_are_told(seeds: dict[str, list[int]], text: str) -> None:
    outcome = Outcome(((0.5,),), (1,), 1)
    assert _seeds_text({(label, "full"): dict.fromkeys(numbers, outcome) for label, numbers in seeds.items()}) == text


def test_outcomes_of_another_recipe_of_the_mode_stand_apart(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for rate, seed in ((0.01, "0"), (0.0001, "1")):
        recipe = small_recipe(steps=4, pooling="mean", by_mode={"linear": {"optimizer.peak_lr": rate}})
        (place / "recipe.yaml").write_text(to_yaml(recipe))
        assert main([*COMMAND, "--modes", "linear", "--seeds", seed, "--out", "out"]) == 0
    table = capsys.readouterr().out.rpartition("| checkpoint")[2]
    assert "One seed;" in table
    assert "not in the table: 1." in table


@pytest.mark.parametrize("mode", ["full", "linear"])
def test_test_clips_that_another_task_trains_on_are_told(
    place: Path, mode: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One encoder learns all tasks in mode full; frozen, a task hears of no other."""
    table = write_table(place / "folds", folds=3, clips=6)
    for name, train, test in (("one", "[1]", "[3]"), ("two", "[1, 3]", "[2]")):
        left = sorted({"1", "2", "3"} - set(train + test))
        split = f"{{train: {train}, test: {test}{f', leave_out: {left}' if left else ''}}}".replace("'", "")
        (place / f"{name}.yaml").write_text(f"data: {table}\nname: {name}\nsplit: {split}\n")
    command = ["finetune", "recipe.yaml", "--checkpoint", "mine=start", "--tasks", "one.yaml", "two.yaml"]
    assert main([*command, "--continual", "--modes", mode, "--out", "out"]) == 0
    told = capsys.readouterr()
    warned = "They are test clips of one." in told.err
    noted = "**Test clips of one were in the training data of the start or of another task**" in told.out
    assert (warned, noted) == (mode == "full", mode == "full")
