"""`asda finetune` and `asda test` as users call them, and where a fine-tuned checkpoint goes then."""

import csv
import json
import re
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch

from asda_core.catalog import Catalog
from asda_core.checkpoint import read_checkpoint
from asda_core.cli import main
from asda_core.config_io import to_yaml
from asda_core.finetune import leakage
from asda_core.finetune import table as finetune_table
from asda_core.finetune.evaluation import load_predictions
from asda_core.finetune.sweep import Sweep, parse_starts
from asda_core.finetune.table import TEXT_COLUMNS, _number, write_tables
from asda_core.labelled.reading import read_labelled
from asda_core.labelled.source import load_source
from asda_core.official.reading import read_model
from asda_core.system.command_line import EXIT_ERROR
from asda_hear.api import get_scene_embeddings, load_model
from asda_hear.cli import main as hear_main
from tests.finetune.making import SECONDS, small_checkpoint, small_recipe, small_run, write_table, write_tones


@pytest.fixture
def place(tmp_path: Path, catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a recipe, a checkpoint, a config and a table of folds; commands run in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(to_yaml(small_recipe()))
    (tmp_path / "small.yaml").write_text(to_yaml(small_run()))
    small_checkpoint(tmp_path / "start", catalog)
    write_table(tmp_path / "tones")
    return tmp_path


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as opened:
        return list(csv.DictReader(opened))


@pytest.mark.slow
def test_folds_modes_seeds_and_checkpoints(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One command, one table; a second time nothing is trained."""
    command = ["finetune", "recipe.yaml", "--checkpoint", "mine=start", "scratch=small.yaml"]
    command += [
        "--data",
        "tones/tones.csv",
        "--modes",
        "full",
        "linear",
        "low_rank",
        "--seeds",
        "0",
        "1",
        "--out",
        "out",
    ]
    assert main(command) == 0
    table = capsys.readouterr().out
    rows = rows_of(place / "out" / "runs.csv")
    assert len(rows) == 2 * 3 * 2 * 2
    lines = [line for line in table.splitlines() if line.startswith(("| mine", "| scratch"))]
    assert [line.split(" | ")[0] + line.split(" | ")[1] for line in lines] == [
        f"| {label}{mode}" for label in ("mine", "scratch") for mode in ("full", "linear", "low_rank")
    ]
    for line in lines:
        cells = line.strip("| ").split(" | ")
        members = [row for row in rows if [row["checkpoint"], row["mode"]] == cells[:2]]
        means = [sum(float(r["accuracy"]) for r in members if r["seed"] == seed) / 2 for seed in ("0", "1")]
        assert cells[4].startswith(f"{sum(means) / 2:.3f} ±")
        assert cells[2] == f"{int(members[0]['trained']):,}"
        assert cells[3] == f"{100 * int(members[0]['trained']) / int(members[0]['parameters']):.1f} %"
    before = (place / "out" / "table.md").read_text()
    stamps = {file: file.stat().st_mtime_ns for file in (place / "out").rglob("model.safetensors")}
    assert main(command) == 0
    assert (place / "out" / "table.md").read_text() == before
    assert {file: file.stat().st_mtime_ns for file in (place / "out").rglob("model.safetensors")} == stamps


def test_one_seed_has_the_interval_of_a_bootstrap(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["finetune", "recipe.yaml", "--checkpoint", "start", "--data", "tones/tones.csv", "--out", "out"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("| start"))
    value, low, high = line.split(" | ")[4].replace("[", "").replace("]", "").replace(",", "").split()
    assert float(low) <= float(value) <= float(high)


def test_one_fold_and_a_seed_in_the_path(place: Path, catalog: Catalog, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in (4, 5):
        small_checkpoint(place / f"seed{seed}", catalog, small_run())
    arguments = ["finetune", "recipe.yaml", "--checkpoint", "mine=seed{seed}", "--data", "tones/tones.csv", "--folds",
                 "2", "--seeds", "4", "5", "--out", "out"]  # fmt: skip
    assert main(arguments) == 0
    assert {(row["split"], row["seed"]) for row in rows_of(place / "out" / "runs.csv")} == {
        ("fold2", "4"),
        ("fold2", "5"),
    }
    assert main([*arguments[:-3], "6", "--out", "out"]) == 1
    assert "no checkpoint or config at seed6" in capsys.readouterr().err


def test_clips_of_the_training_are_not_tested_in_silence(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A fold that was held out is new to the model; the other, and all clips, are not, whatever the set is called."""
    command = ["finetune", "recipe.yaml", "--checkpoint", "start", "--data", "tones/tones.csv", "--folds", "2"]
    assert main([*command, "--out", "out"]) == 0
    (run,) = (folder.parent for folder in (place / "out").rglob("model.safetensors"))
    (place / "tones" / "others.csv").write_text((place / "tones" / "tones.csv").read_text())
    capsys.readouterr()
    for words, known in (
        (["--fold", "2"], 0),
        (["--fold", "fold2"], 0),
        (["--fold", "1"], 6),
        (["--fold", "2", "--part", "train"], 6),
        (["--part", "all"], 6),
        (["--data", "tones/others.csv", "--fold", "1"], 6),
    ):
        assert main(["test", str(run), "--data", "tones/tones.csv", "--out", "tested", *words]) == 0
        told = capsys.readouterr().err
        clips = 12 if "all" in words else 6
        warning = f"{known} of the {clips} clips (by their first and last bytes) are in its training data."
        assert (warning in told) == bool(known), words
        assert ("warning: " in told) == bool(known), words
    assert main(["test", str(run), "--data", "tones/tones.csv", "--part", "all", "--fold", "1"]) == 1
    assert "--part all uses all clips, but --fold 1 only some" in capsys.readouterr().err


def test_a_fine_tuning_tells_of_test_clips_that_its_start_has_heard(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also when it was converted, and when another set came between."""
    command = ["finetune", "recipe.yaml", "--data", "tones/tones.csv", "--folds", "2", "--out", "out"]
    assert main([*command, "--checkpoint", "start"]) == 0
    (run,) = (folder.parent for folder in (place / "out").rglob("model.safetensors"))
    assert main(["convert", str(run), "converted.safetensors"]) == 0
    assert read_checkpoint("converted.safetensors").trained_on == read_checkpoint(run).trained_on
    write_tones(place / "other" / "train")
    write_tones(place / "other" / "test")
    for number, file in enumerate(sorted((place / "other").rglob("*.wav"))):  # all are other sounds
        audio, rate = soundfile.read(file)
        soundfile.write(file, audio[::-1] * (0.5 + number / 1000), rate)
    again = ["finetune", "recipe.yaml", "--data", "other", "--checkpoint", "converted.safetensors", "--out", "again"]
    assert main(again) == 0
    assert "in its training data" not in capsys.readouterr().err
    (later,) = (folder.parent for folder in (place / "again").rglob("model.safetensors"))
    assert json.loads(read_checkpoint(later).trained_on["before"]) == [["tones", "fold2", True]]
    for start in (run, later):
        words = ["finetune", "recipe.yaml", "--checkpoint", f"a={start}", "--data", "tones/tones.csv"]
        assert main([*words, "--out", f"from-{start.name}"]) == 0
        told = capsys.readouterr()
        assert "6 of the 6 clips (by their first and last bytes) are in its training data." in told.err
        assert told.err.count("in its training data") == 1  # the fold that was held out is
        assert "**Some runs started from weights that were trained on their test clips**" in told.out
        results = [json.loads(file.read_text()) for file in (place / f"from-{start.name}").glob("*/result.json")]
        assert sorted(result["start_heard_test"] for result in results) == [False, True]


def test_one_sound_under_two_names(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A copy in the test split is warned of, a link to a training clip is refused, a detour is the same file."""
    for split in ("train", "test"):
        write_tones(place / "set" / split, clips=2)
    for number, file in enumerate(sorted((place / "set" / "test").rglob("*.wav"))):
        audio, rate = soundfile.read(file)
        soundfile.write(file, audio[::-1] * (0.5 + number / 1000), rate)
    first, copy = place / "set" / "train" / "tone0" / "0.wav", place / "set" / "test" / "tone0" / "copy.wav"
    copy.write_bytes(first.read_bytes())
    command = ["finetune", "recipe.yaml", "--checkpoint", "start", "--data", "set", "--out", "out"]
    assert main(command) == 0
    told = "1 of 7 test clips have the same first and last bytes as a training clip"
    assert told in capsys.readouterr().err
    (result,) = (json.loads(file.read_text()) for file in (place / "out").glob("*/result.json"))
    assert any(told in note for note in result["notes"])
    copy.unlink()
    copy.symlink_to(first)
    assert main([*command[:-1], "linked"]) == 1
    assert "copy.wav in the test split is the same file as" in capsys.readouterr().err
    rows = "filename,label,split\nset/train/tone0/0.wav,a,train\nset/test/../train/tone0/0.wav,a,test\n"
    (place / "list.csv").write_text(rows)
    assert main([*command[:-4], "--data", "list.csv"]) == 1
    assert "0.wav is in the split 'test', but " in capsys.readouterr().err


def test_a_class_whose_clips_cannot_be_read(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Is no class of the training: one other alone is an error, two a warning; clips are counted as they are heard."""
    for split in ("train", "test"):
        write_tones(place / "set" / split, clips=3)
    for file in (place / "set" / "train" / "tone0").glob("*.wav"):
        file.write_bytes(b"no sound")
    command = ["finetune", "recipe.yaml", "--checkpoint", "start", "--data", "set", "--modes", "full", "linear"]
    assert main([*command, "--out", "out"]) == 0
    told = capsys.readouterr()
    assert told.err.count("1 class (tone0) without training clips. The other clips could not be read.") == 2
    assert "Clips that could not be read: 3 (" in told.out  # not once for every run
    (result, _) = (json.loads(file.read_text()) for file in (place / "out").glob("*/result.json"))
    assert result["clips"] == {"train": 6, "valid": 0, "test": 9}
    for file in (place / "set" / "train" / "tone1").glob("*.wav"):
        file.write_bytes(b"no sound")
    for _ in range(2):  # what is trained is told of, and not thrown away
        assert main([*command, "--out", "other"]) == 0
    (result, _) = (json.loads(file.read_text()) for file in (place / "other").glob("*/result.json"))
    assert any("training needs clips of at least two classes; the train split has tone2." in n for n in result["notes"])


@pytest.mark.parametrize("lost", ["predictions.npz", "model.safetensors"])
def test_what_is_lost_of_a_run_is_made_again(place: Path, lost: str) -> None:
    command = ["finetune", "recipe.yaml", "--checkpoint", "start", "--data", "tones/tones.csv", "--out", "out"]
    assert main(command) == 0
    table = (place / "out" / "table.md").read_text().splitlines()[4].split(" | ")[:5]
    gone = next((place / "out").glob(f"start-*/{lost}"))
    gone.unlink()
    assert main(command) == 0
    assert gone.is_file()
    assert (place / "out" / "table.md").read_text().splitlines()[4].split(" | ")[:5] == table


def test_models_of_one_name_are_tested_into_folders_of_their_own(place: Path, catalog: Catalog) -> None:
    for name, seed in (("one", "1"), ("two", "2")):
        command = ["finetune", "recipe.yaml", "--checkpoint", "start", "--data", "tones/tones.csv", "--folds", "1"]
        assert main([*command, "--seeds", seed, "--out", name]) == 0
        (file,) = (place / name).rglob("model.safetensors")
        (place / f"{name}-best").mkdir()
        file.rename(place / f"{name}-best" / "best.safetensors")
        best = str(place / f"{name}-best" / "best.safetensors")
        for _ in range(2):
            assert main(["test", best, "--data", "tones/tones.csv", "--fold", "1"]) == 0
    assert len(list((place / "runs").glob("test-best-tones-test-1-*/scores.json"))) == 2


def test_clips_of_several_labels_are_named(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (place / "tones" / "tones.csv").open("a") as table:
        table.write("tone0/1.wav,2,tone1\n")
    assert main(["finetune", "recipe.yaml", "--checkpoint", "start", "--data", "tones/tones.csv", "--out", "out"]) == 1
    told = capsys.readouterr().err
    assert "1 without exactly one label (1.wav: tone0, tone1)" in told
    assert "not every clip has exactly one label; if this is intended, set loss: binary_cross_entropy" in told


def test_a_training_without_marks_is_known_by_its_name(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of more clips than are noted down: name of the set and fold must do."""
    monkeypatch.setattr(leakage, "MAX_MARKED", 0)
    command = ["finetune", "recipe.yaml", "--checkpoint", "start", "--data", "tones/tones.csv", "--folds", "2"]
    assert main([*command, "--out", "out"]) == 0
    (run,) = (folder.parent for folder in (place / "out").rglob("model.safetensors"))
    for words, warned in (
        (["--fold", "2"], ""),
        (["--fold", "1"], "fold2 held out: the test clips of fold1 are in its training data"),
    ):
        capsys.readouterr()
        assert main(["test", str(run), "--data", "tones/tones.csv", "--out", "tested", *words]) == 0
        told = capsys.readouterr().err
        assert warned in told
        assert ("warning: " in told) == bool(warned)


def test_a_set_of_test_clips_alone(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["finetune", "recipe.yaml", "--checkpoint", "start", "--data", "tones/tones.csv", "--folds", "2"]
    assert main([*command, "--out", "out"]) == 0
    (run,) = (folder.parent for folder in (place / "out").rglob("model.safetensors"))
    write_tones(place / "alone" / "test", clips=1)
    assert main(["test", str(run), "--data", "alone", "--out", "tested"]) == 0
    assert '"clips": 3' in capsys.readouterr().out


def test_other_audio_of_the_same_names_and_sizes_is_other_data(place: Path) -> None:
    """In another folder, or in place: figures of the first are not those of the second, nor averaged with them."""
    command = ["finetune", "recipe.yaml", "--checkpoint", "start", "--data", "tones/tones.csv", "--folds", "1"]
    assert main([*command, "--out", "out"]) == 0
    (first,) = rows_of(place / "out" / "runs.csv")
    for file in (place / "tones" / "audio").rglob("*.wav"):
        audio, rate = soundfile.read(file)
        soundfile.write(file, audio[::-1] / 2, rate)
    assert main([*command, "--out", "out"]) == 0
    (second,) = rows_of(place / "out" / "runs.csv")
    assert second["folder"] != first["folder"]
    assert (
        "Runs of other recipes, data or checkpoints in this folder, not in the table: 1."
        in (place / "out" / "table.md").read_text()
    )


def test_runs_of_another_checkpoint_of_the_same_name_are_not_averaged(place: Path, catalog: Catalog) -> None:
    command = ["finetune", "recipe.yaml", "--checkpoint", "start", "--data", "tones/tones.csv", "--out", "out"]
    assert main([*command, "--folds", "1"]) == 0
    assert main([*command, "--folds", "2"]) == 0
    assert len(rows_of(place / "out" / "runs.csv")) == 2
    small_checkpoint(place / "start", catalog, replace(small_run(), seed=5))
    assert main([*command, "--folds", "2"]) == 0
    assert [row["split"] for row in rows_of(place / "out" / "runs.csv")] == ["fold2"]


def test_a_task_may_say_the_mode(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "task.yaml").write_text("data: tones/tones.csv\nset: {mode: linear}\n")
    command = ["finetune", "recipe.yaml", "--checkpoint", "start", "--folds", "1", "--out", "out"]
    assert main([*command, "--data", "task.yaml"]) == 0
    assert [row["mode"] for row in rows_of(place / "out" / "runs.csv")] == ["linear"]
    assert main([*command, "--data", "task.yaml", "--modes", "full"]) == 1
    assert "set: mode conflicts with --modes; give one of the two" in capsys.readouterr().err
    assert main([*command, "--data", "tones/tones.csv", "--modes", "full", "--set", "mode=linear"]) == 1
    assert "--set mode conflicts with --modes; give one of the two" in capsys.readouterr().err
    (place / "task.yaml").write_text("data: tones/tones.csv\nset: {adapter: {name: low_rank}}\n")
    assert main([*command, "--data", "task.yaml", "--modes", "full"]) == 1
    assert "set: adapter" in capsys.readouterr().err
    (place / "task.yaml").write_text("data: tones/tones.csv\nset: {adapter.options.rank: 2}\n")
    assert main([*command, "--data", "task.yaml", "--modes", "low_rank"]) == 0
    (place / "task.yaml").write_text("data: tones/tones.csv\nset: {mode: linear}\n")
    assert main([*command, "--continual", "--tasks", "task.yaml", "task.yaml"]) == 1
    assert "set: mode must be the same for all tasks" in capsys.readouterr().err


def test_keys_without_influence_train_nothing_again(place: Path) -> None:
    command = ["finetune", "recipe.yaml", "--checkpoint", "start", "--data", "tones/tones.csv", "--folds", "1"]
    for more in ([], ["--set", "log_every=7"], ["--set", "data.workers=2"]):
        assert main([*command, *more]) == 0
    assert len(list((place / "runs").rglob("result.json"))) == 1


def test_a_seed_with_some_of_the_folds(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What an earlier command left takes nothing away from the seed that has all folds, and is told."""
    command = ["finetune", "recipe.yaml", "--checkpoint", "start", "--data", "tones/tones.csv", "--out", "out"]
    assert main([*command, "--folds", "1", "--seeds", "3"]) == 0
    assert main([*command, "--seeds", "0"]) == 0
    assert [folder.name for folder in (place / "out" / "all_folds").iterdir()] == ["start-full-seed0"]
    assert "Not every seed has every fold" in capsys.readouterr().out


RUN = {"recipe": "r", "data": "d", "parameters": 2, "trained": 1, "select": "last", "accuracy": 0.5, "mAP": 0.5}
COSTS = {"train_cpu_seconds": 1.0, "train_mebibytes": 1.0}
OVER_SEEDS, OF_ONE_SEED = "Mean ± half the 95 % interval", "Lines of one seed: in brackets"
INCOMPLETE = "Not every seed has every fold in every line"


@pytest.mark.parametrize(
    ("runs", "told"),
    [
        ([("a", "1", 0), ("b", "1", 0)], [OF_ONE_SEED]),
        ([("a", "1", 0), ("b", "1", 1)], [OF_ONE_SEED, INCOMPLETE]),
        ([("a", "1", 0), ("a", "1", 1), ("b", "1", 0)], [OVER_SEEDS, OF_ONE_SEED, INCOMPLETE]),
        ([("a", "1", 0), ("a", "1", 1), ("b", "1", 0), ("b", "1", 1)], [OVER_SEEDS]),
        ([("a", "1", 0), ("a", "2", 0), ("b", "1", 0)], [OF_ONE_SEED, INCOMPLETE]),
        ([("a", "1", 0), ("a", "2", 0), ("a", "1", 1), ("b", "2", 1)], [OVER_SEEDS, OF_ONE_SEED, INCOMPLETE]),
    ],
)
def test_the_footnote_is_of_each_line(
    runs: list[tuple[str, str, int]], told: list[str], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lines of other seeds or folds are compared on other clips, and their interval is that of their own seeds."""
    monkeypatch.setattr(finetune_table, "evaluate_folds", lambda *_: {})
    names = ("checkpoint", "split", "seed", "mode", "start", "folder", "of_mode")
    rows = [dict(zip(names, (*run, "full", run[0], "-".join(map(str, run)), ""), strict=True)) for run in runs]
    source, here = load_source(Path("tones/tones.csv"))
    sweep = Sweep(small_recipe(), {}, ["full"], [0], read_labelled(source, here), [])
    text = write_tables(sweep, [RUN | COSTS | row for row in rows], place / "out")
    assert [note for note in (OVER_SEEDS, OF_ONE_SEED, INCOMPLETE) if note in text] == told
    assert ("Spread: standard deviation over the folds of a seed" in text) == any(fold == "2" for _, fold, _ in runs)


def test_a_fold_without_a_value_leaves_no_mean(place: Path) -> None:
    """d' of an AUC of 1 is infinite: the mean of the other folds would be that of the worst."""
    command = ["finetune", "recipe.yaml", "--checkpoint", "start", "--data", "tones/tones.csv", "--out", "out"]
    assert main(command) == 0
    rows = [
        {name: value if name in TEXT_COLUMNS else _number(value) for name, value in row.items()}
        for row in rows_of(place / "out" / "runs.csv")
    ]
    rows[0]["mAP"] = ""
    source, here = load_source(Path("tones/tones.csv"))
    data = read_labelled(source, here)
    text = write_tables(Sweep(small_recipe(), {"start": "start"}, ["full"], [3], data, []), rows, place / "out")
    cells = next(line for line in text.splitlines() if line.startswith("| start")).split(" | ")
    assert cells[5] == ""
    assert cells[6] == f"{statistics.stdev(float(row['accuracy']) for row in rows):.3f}"  # of folds, n - 1
    assert "Empty cell: the value is undefined in a run" in text


def test_values_of_splits_with_a_slash(place: Path) -> None:
    table = place / "tones" / "tones.csv"
    table.write_text(re.sub(r",([12]),", r",s/\1,", table.read_text()))
    assert main(["finetune", "recipe.yaml", "--checkpoint", "start", "--data", "tones/tones.csv", "--out", "out"]) == 0
    assert [row["split"] for row in rows_of(place / "out" / "runs.csv")] == ["folds/1", "folds/2"]
    assert "[" in (place / "out" / "table.md").read_text().splitlines()[4]  # the interval of both folds


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--modes", "bottelneck"], "Did you mean 'bottleneck'"),
        (["--modes", "full", "full"], "--modes contains 'full' more than once"),
        (["--folds", "7"], "unknown fold '7'"),
        (["--set", "epoch=3"], "unknown config key 'epoch'"),
        (["--set", "epochs"], "key=value"),
        (["--checkpoint", "nowhere.pt"], "no checkpoint or config at nowhere.pt.\n"),
        (
            ["--checkpoint", "asda_tny"],
            "no checkpoint or config at asda_tny. By name: unknown config 'asda_tny'. Did you",
        ),
        (["--checkpoint", "start", "start"], "give each checkpoint a unique label"),
        (["--data", "gone"], "gone"),
        (["--continual"], "--tasks"),
        (["--set", "mode=adapter"], "mode adapter needs an adapter"),
        (["--set", "loss=mse"], "loss"),
        (["--set", "select=last", "valid_share=0.3"], "valid_share holds clips out of the training"),
        (["--set", "data.clip_seconds=0.01"], "data.clip_seconds 0.01: 160 samples are less than one window"),
    ],
)
def test_mistakes_are_one_line(
    change: list[str], message: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    usual = {"--checkpoint": ["start"], "--data": ["tones/tones.csv"], "--out": ["out"]}
    usual[change[0]] = change[1:]
    assert main(["finetune", "recipe.yaml", *(word for key, values in usual.items() for word in [key, *values])]) == 1
    told = capsys.readouterr().err
    assert message in told
    assert "Traceback" not in told
    assert not (place / "out").exists()


@pytest.mark.slow
def test_a_run_that_fails_leaves_the_others(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A fold of which nothing can be read fails; the others are trained and in the table."""
    write_table(place / "tones", folds=3, clips=6)
    for file in (place / "tones" / "audio").rglob("*.wav"):
        if int(file.stem) % 3 == 0:  # fold 1
            file.write_bytes(b"no audio")
    assert main(["finetune", "recipe.yaml", "--checkpoint", "start", "--data", "tones/tones.csv", "--out", "out"]) == 1
    told = capsys.readouterr()
    assert "1 of 3 runs failed" in told.err
    assert "| start" in told.out
    assert {row["split"] for row in rows_of(place / "out" / "runs.csv")} == {"fold2", "fold3"}


def test_the_command_says_what_asda_classify_says(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Predictions of the evaluation, `asda test` and `asda classify` are the same, for short and for long clips."""
    write_tones(place / "long" / "audio", clips=2, seconds=1.3)
    (place / "long" / "long.csv").write_text(
        "filename,split,label\n" + "".join(
            f"audio/tone{label}/{number}.wav,{'train' if number else 'test'},tone{label}\n"
            for label in range(3) for number in range(2)
        )
    )  # fmt: skip
    for data in ("tones/tones.csv", "long/long.csv"):
        folds = ["--folds", "1"] if data.startswith("tones") else []
        assert (
            main(["finetune", "recipe.yaml", "--checkpoint", "start", "--data", data, *folds, "--out", data[:4]]) == 0
        )
        run = next((place / data[:4]).glob("start-*"))
        made = load_predictions(run / "predictions.npz")
        capsys.readouterr()
        assert main(["classify", *made.files, "--checkpoint", str(run), "--json", "--device", "cpu"]) == 0
        for line, row in zip(capsys.readouterr().out.splitlines(), made.probabilities, strict=True):
            said = {each["label"]: each["probability"] for each in json.loads(line)["labels"]}
            torch.testing.assert_close(
                torch.tensor([said[name] for name in made.classes]), torch.from_numpy(row), rtol=1e-4, atol=1e-5
            )
        fold = ["--fold", "1"] if folds else []
        assert main(["test", str(run), "--data", data, *fold, "--out", "tested", "--device", "cpu"]) == 0
        again = load_predictions(place / "tested" / "predictions.npz")
        assert again.files == made.files
        torch.testing.assert_close(
            torch.from_numpy(again.probabilities), torch.from_numpy(made.probabilities), rtol=1e-4, atol=1e-5
        )
        assert json.loads(capsys.readouterr().out)["scores"]["accuracy"] == pytest.approx(
            json.loads((run / "result.json").read_text())["scores"]["accuracy"]
        )


def test_labels_of_another_set_are_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["finetune", "recipe.yaml", "--checkpoint", "start", "--data", "tones/tones.csv", "--out", "out"]) == 0
    run = next((place / "out").glob("start-*"))
    other = write_tones(place / "other")
    (other / "tone1").rename(other / "tune1")
    assert main(["test", str(run), "--data", "other", "--part", "all"]) == 1
    assert "Did you mean 'tone1'" in capsys.readouterr().err
    assert main(["test", str(place / "start"), "--data", "tones/tones.csv", "--part", "all"]) == 1
    assert "no classifier" in capsys.readouterr().err
    assert main(["test", str(run), "--data", "tones/tones.csv"]) == 1
    assert "--fold" in capsys.readouterr().err


@pytest.mark.parametrize("mode", ["full", "convolution"])
def test_a_fine_tuned_checkpoint_answers_hear_and_goes_into_plans(
    mode: str, place: Path, catalog: Catalog, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["finetune", "recipe.yaml", "--checkpoint", "start", "--data", "tones/tones.csv", "--folds", "1",
                 "--modes", mode, "--out", "out"]) == 0  # fmt: skip
    run = next((place / "out").glob("start-*"))
    audio = torch.from_numpy(soundfile.read(place / "tones" / "audio" / "tone0" / "0.wav", dtype="float32")[0])[None]
    tuned, before = load_model(str(run), catalog=catalog), load_model(str(place / "start"), catalog=catalog)
    assert not torch.equal(get_scene_embeddings(audio, tuned), get_scene_embeddings(audio, before))
    assert main(["embed", "tones/audio/tone0", "--checkpoint", str(run), "--out", "embedded", "--device", "cpu"]) == 0
    assert main(["convert", str(run), "converted.safetensors"]) == 0
    assert read_checkpoint(place / "converted.safetensors").classifier == read_checkpoint(run).classifier
    hear_main(["tasks", "build", "tones", "tones/audio", "--folds", "3", "--out", "tasks"])
    adapter = "" if mode == "full" else "set: {adapter: convolution}\n"
    (place / "plan.yaml").write_text(
        f"base: small.yaml\ninit: {run.relative_to(place)}\ntasks: {{folder: tasks}}\n"
        f"baselines: {{tuned: {run.relative_to(place)}}}\n"
        f"data: [tones/audio]\n{adapter}axes: {{steps: [0, 1]}}\n"
    )
    capsys.readouterr()
    assert hear_main(["ablate", "plan.yaml", "--dry-run", "--out", "plan"]) == 0
    assert "tuned: " in capsys.readouterr().out


def test_a_path_as_a_config_and_labels(tmp_path: Path) -> None:
    (tmp_path / "asda-0.5").mkdir()
    assert parse_starts([str(tmp_path / "asda-0.5")]) == {"asda-0.5": str(tmp_path / "asda-0.5")}
    assert parse_starts(["runs/mine/model.safetensors", "b=x.pt", "EAT.pt"]) == {
        "mine": "runs/mine/model.safetensors", "b": "x.pt", "EAT": "EAT.pt",
    }  # fmt: skip


def test_the_released_model_is_tested(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A fine-tuned file as the release writes it, on a table whose labels are its mids."""
    golden = Path(__file__).parents[1] / "golden" / "finetune_asda.pt"
    classifier = read_model(golden).classifier
    assert classifier is not None
    write_tones(tmp_path / "audio", classes=len(classifier.labels), clips=2, seconds=SECONDS)
    rows = [f"tone{label}/{clip}.wav,{name}" for label, name in enumerate(classifier.labels) for clip in range(2)]
    (tmp_path / "set.csv").write_text("\n".join(["filename,label", *rows]))
    assert main(["test", str(golden), "--data", str(tmp_path / "set.csv"), "--part", "all", "--out",
                 str(tmp_path / "out"), "--device", "cpu"]) == 0  # fmt: skip
    assert json.loads(capsys.readouterr().out)["clips"] == 2 * len(classifier.labels)


def test_the_python_of_the_guide_runs(place: Path, catalog: Catalog) -> None:
    """`docs/finetuning.md`, in a folder that has what it names."""
    guide = (Path(__file__).parents[2] / "docs" / "finetuning.md").read_text()
    reading, running = re.findall(r"```python\n(.*?)```", guide, re.DOTALL)
    write_tones(place / "CLASSES")
    small_checkpoint(place / "runs" / "mine", catalog)
    found: dict[str, Any] = {}
    exec(compile(running.replace('"finetune/tiny"', '"recipe.yaml"'), "finetuning.md", "exec"), found)
    assert 0 <= found["result"]["scores"]["accuracy"] <= 1
    exec(compile(reading.replace("OUT/RUN", "runs/tuned"), "finetuning.md", "exec"), found)
    assert found["made"].probabilities.shape == (len(found["job"].split.test), 3)


def test_a_damaged_checkpoint_leaves_the_others(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "cut.safetensors").write_bytes(next(place.rglob("model.safetensors")).read_bytes()[:1000])
    command = [
        "finetune",
        "recipe.yaml",
        "--data",
        "tones/tones.csv",
        "--folds",
        "1",
        "--seeds",
        "0",
        "1",
        "--out",
        "out",
    ]
    assert main([*command, "--checkpoint", "1e3=start", "b=cut.safetensors"]) == EXIT_ERROR
    captured = capsys.readouterr()
    assert "2 of 4 runs failed: b, full, fold1, seed 0: cannot read" in captured.err
    assert "| 1e3 | full |" in captured.out
    assert main([*command, "--checkpoint", "1e3=start"]) == 0
    assert capsys.readouterr().out.count("| 1e3 |") == 1  # the name is no number
    assert [row["checkpoint"] for row in rows_of(place / "out" / "runs.csv")] == ["1e3", "1e3"]


def test_runs_of_another_recipe_of_the_mode_are_not_averaged(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What `by_mode` says is of no influence on other modes, and of much on its own."""
    command = ["finetune", "recipe.yaml", "--checkpoint", "start", "--data", "tones/tones.csv", "--out", "out"]
    command += ["--modes", "linear"]
    for rate, fold in (("0.01", "1"), ("0.0001", "2")):
        recipe = small_recipe(by_mode={"linear": {"optimizer.peak_lr": float(rate)}, "full": {"pooling": "mean"}})
        (place / "recipe.yaml").write_text(to_yaml(recipe))
        assert main([*command, "--folds", fold]) == 0
    table = capsys.readouterr().out.rpartition("## ")[2]
    assert table.startswith("tones: fold2\n")
    assert "not in the table: 1." in table
    (place / "recipe.yaml").write_text(to_yaml(replace(recipe, by_mode={"linear": recipe.by_mode["linear"]})))
    assert main([*command, "--folds", "1"]) == 0  # what is said of the other mode changes nothing
    assert "## tones: fold2, fold1\n" in capsys.readouterr().out


def test_validation_clips_that_are_test_clips(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They would choose the weights by the test in silence; a copy is told and noted, a link is refused."""
    for split in ("train", "valid", "test"):
        write_tones(place / "set" / split, clips=2)
    for part, files in (("valid", 0.5), ("test", 0.7)):
        for number, file in enumerate(sorted((place / "set" / part).rglob("*.wav"))):
            audio, rate = soundfile.read(file)
            soundfile.write(file, audio[::-1] * (files + number / 1000), rate)
    first, copy = place / "set" / "test" / "tone0" / "0.wav", place / "set" / "valid" / "tone0" / "copy.wav"
    copy.write_bytes(first.read_bytes())
    again = place / "set" / "valid" / "tone1" / "again.wav"
    again.write_bytes((place / "set" / "train" / "tone1" / "0.wav").read_bytes())
    command = ["finetune", "recipe.yaml", "--checkpoint", "start", "--data", "set", "--out", "out"]
    assert main(command) == 0
    told = capsys.readouterr().err
    assert "1 of 6 test clips have the same first and last bytes as a validation clip" in told
    assert "1 of 8 validation clips have the same first and last bytes as a training clip" in told
    (result,) = (json.loads(file.read_text()) for file in (place / "out").glob("*/result.json"))
    assert any("as a validation clip" in note for note in result["notes"])
    copy.unlink()
    copy.symlink_to(first)
    assert main([*command[:-1], "linked"]) == 0  # as people do who have no validation clips
    assert "1 of 6 test clips have the same first and last bytes as a validation clip" in capsys.readouterr().err


@pytest.mark.parametrize(("of_task", "said"), [("epochs: 1", "steps=3"), ("steps: 3", "epochs=1")])
def test_a_length_of_the_command_takes_the_place_of_that_of_a_task(
    place: Path, of_task: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "task.yaml").write_text(f"data: tones/tones.csv\nset: {{{of_task}}}\n")
    command = ["finetune", "recipe.yaml", "--checkpoint", "start", "--data", "task.yaml", "--folds", "1"]
    for modes in ([], ["--modes", "linear"]):
        assert main([*command, *modes, "--set", said, "--out", "out"]) == 0, capsys.readouterr().err
    results = [json.loads(file.read_text()) for file in (place / "out").glob("*/result.json")]
    assert [result["steps"] for result in results] == [3 if said == "steps=3" else 2] * 2


def test_torchrun_is_refused(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost"}.items():
        monkeypatch.setenv(name, value)
    assert main(["finetune", "recipe.yaml", "--checkpoint", "start", "--data", "tones/tones.csv"]) == EXIT_ERROR
    assert "fine-tuning runs in one process: start it without torchrun" in capsys.readouterr().err
