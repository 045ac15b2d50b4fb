"""HEAR-format tasks from folders and tables, checked against what heareval reads."""

import dataclasses
import itertools
import json
import re
import shutil
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import soundfile

from asda_core.audio.writing import write_wav
from asda_core.errors import ConfigError, TaskError
from asda_core.labelled.examples import NO_SPLIT, TRAIN_VALID_TEST
from asda_core.system.command_line import interrupts_enabled
from asda_core.system.locks import hold_folder_lock
from asda_hear.cli import main
from asda_hear.evaluate import tasks
from asda_hear.evaluate.labels import Columns, assign_splits, clips_from_csv, clips_from_folders, fold_names
from asda_hear.evaluate.task_audio import resample_task
from asda_hear.evaluate.task_checks import check_task
from asda_hear.evaluate.tasks import Clip, Event, TaskConfig, build_task, clip_names


def write(file: Path, seconds: float = 0.5, rate: int = 8_000) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(file, 0.1 * np.random.default_rng(0).normal(size=int(seconds * rate)), rate)
    return file


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    for label in ("cat", "dog"):
        for number in range(10):
            write(tmp_path / "classes" / label / f"{number}.wav")
    return tmp_path / "classes"


def read(folder: Path, name: str) -> dict[str, object]:
    content: dict[str, object] = json.loads((folder / f"{name}.json").read_text())
    return content


def test_a_folder_per_class(classes: Path, tmp_path: Path) -> None:
    clips = assign_splits(clips_from_folders(classes), {}, folds=5)
    folder = build_task(TaskConfig("pets", clip_seconds=1.0), clips, tmp_path / "tasks", progress=False)
    assert folder.name == "pets-v1.0.0-full"
    metadata = read(folder, "task_metadata")
    assert metadata["splits"] == [f"fold{number:02d}" for number in range(5)]
    assert metadata["split_mode"] == "presplit_kfold"
    assert metadata["evaluation"] == ["top1_acc"]
    assert (folder / "labelvocabulary.csv").read_text() == "idx,label\n0,cat\n1,dog\n"
    for fold in metadata["splits"]:  # type: ignore[attr-defined]
        answers = read(folder, fold)
        assert Counter(itertools.chain(*answers.values())) == {"cat": 2, "dog": 2}  # type: ignore[arg-type]
        for name in answers:
            info = soundfile.info(folder / "16000" / fold / name)
            assert (info.samplerate, info.channels, info.frames, info.subtype) == (16_000, 1, 16_000, "PCM_16")


def test_train_valid_test_is_drawn_by_label(classes: Path) -> None:
    clips = assign_splits(clips_from_folders(classes), {}, folds=0)
    for label in ("cat", "dog"):
        assert Counter(clip.split for clip in clips if clip.labels == (label,)) == {"train": 6, "valid": 2, "test": 2}
    assert assign_splits(clips_from_folders(classes), {}, folds=0) == clips


def test_event_tasks_are_drawn_by_label(tmp_path: Path) -> None:
    """The clips of a table are drawn alike whether its labels are those of clips or of events."""
    table = tmp_path / "table.csv"
    rows = [f"{number}.wav,{label},0.1,0.3" for number, label in enumerate("a" * 10 + "b" * 10 + "c" * 10)]
    table.write_text("\n".join(["filename,label,start,end", *rows, "0.wav,a,0.4,0.5"]))
    scene, event = (clips_from_csv(table, tmp_path, Columns(), kind) for kind in ("scene", "event"))
    for folds, counts in ((0, {"train": 6, "valid": 2, "test": 2}), (5, {f"fold{n:02d}": 2 for n in range(5)})):
        assigned = assign_splits(event, {}, folds)
        assert [clip.split for clip in assigned] == [clip.split for clip in assign_splits(scene, {}, folds)]
        for label in "abc":
            assert Counter(clip.split for clip in assigned if clip.event_labels == (label,)) == counts


def test_folders_that_are_split_already(tmp_path: Path) -> None:
    for split in ("train", "valid", "test"):
        write(tmp_path / "data" / split / "cat" / f"{split}.wav")
    clips = assign_splits(clips_from_folders(tmp_path / "data"), {}, folds=0)
    assert [(clip.labels, clip.split) for clip in clips] == [
        (("cat",), "test"),
        (("cat",), "train"),
        (("cat",), "valid"),
    ]
    write(tmp_path / "data" / "loose.wav")
    with pytest.raises(TaskError, match="not in a folder of its class"):
        clips_from_folders(tmp_path / "data")


def test_hidden_folders_are_no_splits(tmp_path: Path) -> None:
    for split in ("train", "valid", "test"):
        write(tmp_path / "data" / split / "cat" / f"{split}.wav")
    (tmp_path / "data" / ".ipynb_checkpoints").mkdir()
    assert {clip.split for clip in clips_from_folders(tmp_path / "data")} == {"train", "valid", "test"}


def test_hidden_folders_are_no_classes(tmp_path: Path) -> None:
    for name in ("cat", "dog", ".trash"):
        write(tmp_path / "data" / name / "a.wav")
    assert {clip.labels for clip in clips_from_folders(tmp_path / "data")} == {("cat",), ("dog",)}


def test_a_column_of_labels_by_commas(tmp_path: Path) -> None:
    """As FSD50K has them, and as `asda finetune` reads them."""
    rows = table(tmp_path, 'filename,labels\na.wav,"animal,dog"\nb.wav,rain\n')
    columns = Columns(label="labels")
    clips = clips_from_csv(rows, tmp_path, columns, "scene")
    assert [clip.labels for clip in clips] == [("animal", "dog"), ("rain",)]
    for single in (
        clips_from_csv(rows, tmp_path, columns, "scene", multilabel=False),
        clips_from_csv(rows, tmp_path, dataclasses.replace(columns, separator="|"), "scene"),
    ):
        assert [clip.labels for clip in single] == [("animal,dog",), ("rain",)]


def test_a_class_called_train(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("cat", "dog", "train"):
        write(tmp_path / "data" / name / "a.wav")
    assert {clip.labels for clip in clips_from_folders(tmp_path / "data")} == {("cat",), ("dog",), ("train",)}
    assert "train is treated as a class, like the folders beside it." in capsys.readouterr().err


def test_a_clip_without_a_split(tmp_path: Path) -> None:
    rows = table(tmp_path, "filename,label,fold\na.wav,x,1\nb.wav,x, \n")
    with pytest.raises(TaskError, match="line 3: b.wav has no value in the column 'fold'"):
        clips_from_csv(rows, tmp_path, Columns(split="fold"), "scene")


@pytest.mark.parametrize("names", [("train", "valid", "test"), ("training", "val", "Evaluation")])
def test_splits_by_their_usual_names(tmp_path: Path, names: tuple[str, ...]) -> None:
    """In folders and in a column, as `asda finetune` reads them."""
    for name in names:
        write(tmp_path / "data" / name / "cat" / f"{name}.wav")
    below = assign_splits(clips_from_folders(tmp_path / "data"), {}, folds=0)
    listed = assign_splits([Clip(tmp_path / f"{name}.wav", name, ("cat",)) for name in names], {}, folds=0)
    for clips in (below, listed):
        assert {clip.file.stem: clip.split for clip in clips} == dict(zip(names, TRAIN_VALID_TEST, strict=True))


@pytest.mark.parametrize("names", [("train", "test"), ("train", "valid", "test", "extra"), ("val", "dev", "test")])
def test_splits_that_are_not_all_are_no_classes_and_no_folds(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        write(tmp_path / "data" / name / "cat" / f"{name}.wav")
    with pytest.raises(
        TaskError, match="the folder has .*needs exactly train, valid and test|is named like a split, but extra is not"
    ):
        assign_splits(clips_from_folders(tmp_path / "data"), {}, folds=0, where="the folder")
    clips = [Clip(tmp_path / f"{name}.wav", name, ("cat",)) for name in names]
    with pytest.raises(TaskError, match="the split column has .* --train A --valid B"):
        assign_splits(clips, {}, folds=0)


def table(folder: Path, text: str) -> Path:
    (folder / "table.csv").write_text(text)
    return folder / "table.csv"


def test_csv_multilabel(tmp_path: Path) -> None:
    rows = "filename,label,fold\n" + "".join(f"{n}.wav,{'a;b' if n % 2 else ''},{n % 3 + 1}\n" for n in range(6))
    for number in range(6):
        write(tmp_path / f"{number}.wav")
    clips = assign_splits(clips_from_csv(table(tmp_path, rows), tmp_path, Columns(split="fold"), "scene"), {}, 0)
    folder = build_task(TaskConfig("tags", prediction_type="multilabel"), clips, tmp_path / "tasks", progress=False)
    assert read(folder, "fold01") == {"1.wav": ["a", "b"], "4.wav": []}
    assert read(folder, "task_metadata")["evaluation"] == ["mAP", "d_prime", "aucroc"]
    assert read(folder, "task_metadata")["sample_duration"] is None


def test_csv_events_by_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = "filename,label,start,end,who\n"
    for number, who in enumerate(["x", "y", "z"]):
        write(tmp_path / "audio" / f"{number}.wav", 2.0)
        rows += f"{number}.wav,bell,0.25,0.5,{who}\n{number}.wav,bell,1,1.5,{who}\n"
    write(tmp_path / "audio" / "3.wav", 2.0)
    rows += "3.wav,,,,x\n"
    command = [
        "tasks",
        "build",
        "bells",
        str(tmp_path / "audio"),
        "--csv",
        str(table(tmp_path, rows)),
        "--kind",
        "event",
    ]
    command += [
        "--split-column",
        "who",
        "--train",
        "x",
        "--valid",
        "y",
        "--test",
        "z",
        "--seconds",
        "2",
        "--kind",
        "event",
    ]
    assert main([*command, "--out", str(tmp_path / "tasks")]) == 0
    folder = tmp_path / "tasks" / "bells-v1.0.0-full"
    assert capsys.readouterr().out.strip() == str(folder)
    bells = [{"label": "bell", "start": 250.0, "end": 500.0}, {"label": "bell", "start": 1000.0, "end": 1500.0}]
    assert read(folder, "train") == {"0.wav": bells, "3.wav": []}
    assert read(folder, "test") == {"2.wav": bells}
    assert read(folder, "task_metadata")["split_mode"] == "trainvaltest"
    assert main(["tasks", "check", str(folder)]) == 0
    assert capsys.readouterr().out == f"{folder}: good\n"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("file,label\na.wav,x\n", "unknown column 'filename'. Did you mean 'file'"),
        ("filename,label,start,end\na.wav,x,one,2\n", "line 2: start and end must be seconds"),
        ("filename,label,start,end\na.wav,x,nan,2\n", "line 2: start and end must be seconds"),
        ("filename,label,start,end\na.wav,x\n", "line 2: start and end must be seconds"),
        ("filename,label,start,end\na.wav,x,-0.1,2\n", "line 2: start is -0.1 s, before the clip begins"),
        ("filename,label,start,end\na.wav,x,2,1\n", "line 2: end is 1 s, before start, 2 s"),
        ("filename,label,start,end\n ,x,1,2\n", "line 2: the column filename is empty"),
        ("filename,label,start,end\na.wav,rock, hard,1,2\n", "line 2 has more values than columns .'2'.: quote labels"),
    ],
)
def test_wrong_tables(tmp_path: Path, rows: str, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        clips_from_csv(table(tmp_path, rows), tmp_path, Columns(), "event")
    with pytest.raises(TaskError, match="cannot read"):
        clips_from_csv(tmp_path / "none.csv", tmp_path, Columns(), "scene")


def test_one_file_under_two_spellings_is_one_clip(tmp_path: Path) -> None:
    """Otherwise the same audio would be in training and test."""
    names = ("a.wav ", "./a.wav", f"{tmp_path}/x/../a.wav")
    rows = table(tmp_path, "".join(["filename,label,fold\n", *(f"{name},{name[0]},0\n" for name in names)]))
    assert clips_from_csv(rows, tmp_path, Columns(), "scene") == [Clip(tmp_path / "a.wav", NO_SPLIT, ("a", ".", "/"))]
    for name in names[1:]:
        rows = table(tmp_path, f"filename,label,fold\na.wav ,x,0\n{name},x,2\n")
        with pytest.raises(TaskError, match=r"line 3: .*a\.wav is in two splits, '0' and '2'"):
            clips_from_csv(rows, tmp_path, Columns(split="fold"), "scene")


def test_a_table_from_a_spreadsheet(tmp_path: Path) -> None:
    file = tmp_path / "table.csv"
    file.write_text("filename,label\na.wav,x\nb.wav\n", encoding="utf-8-sig")
    clips = clips_from_csv(file, tmp_path, Columns(), "scene")
    assert [(clip.file.name, clip.labels) for clip in clips] == [("a.wav", ("x",)), ("b.wav", ())]


def scene_clips(folder: Path, splits: str = "abc", labels: tuple[str, ...] = ("x",)) -> list[Clip]:
    return [Clip(write(folder / "in" / f"{split}.wav"), f"fold0{n}", labels) for n, split in enumerate(splits)]


@pytest.mark.parametrize(
    ("config", "splits", "labels", "message"),
    [
        (TaskConfig("t"), "ab", ("x",), "2 folds .* at least 3"),
        (TaskConfig("t"), "abc", ("x", "y"), "exactly one label, got"),
    ],
)
def test_wrong_tasks(tmp_path: Path, config: TaskConfig, splits: str, labels: tuple[str, ...], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        build_task(config, scene_clips(tmp_path, splits, labels), tmp_path / "tasks", progress=False)
    assert not list((tmp_path / "tasks").glob("*"))


def test_unreadable_clips_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clips = scene_clips(tmp_path)
    (tmp_path / "in" / "broken.wav").touch()
    clips.append(Clip(tmp_path / "in" / "broken.wav", "fold00", ("x",)))
    folder = build_task(TaskConfig("t"), clips, tmp_path / "tasks", progress=False)
    assert "skipped: cannot read" in capsys.readouterr().err
    assert set(read(folder, "fold00")) == {"a.wav"}
    broken = [Clip(tmp_path / "in" / "broken.wav", f"fold0{number}", ("x",)) for number in range(3)]
    with pytest.raises(TaskError, match="none of the 3 clips is readable"):
        build_task(TaskConfig("t"), broken, tmp_path / "tasks", progress=False)


def test_same_name_in_two_folders(tmp_path: Path) -> None:
    clips = [Clip(write(tmp_path / who / "1.wav"), f"fold0{n}", ("x",)) for n, who in enumerate("abc")]
    folder = build_task(TaskConfig("t"), clips, tmp_path / "tasks", progress=False)
    assert list(read(folder, "fold01")) == ["b-1.wav"]


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("fold01.json", '{"b.wav": ["strange"]}', "unknown label 'strange'"),
        ("fold01.json", '{"missing.wav": ["x"]}', "missing.wav is missing"),
        ("labelvocabulary.csv", "idx,label\n1,x\n", "idx must run from 0 to 0"),
        ("fold01.json", '{"b.wav": "x"}', "must contain a list of labels or events"),
        ("labelvocabulary.csv", "number,label\n0,x\n", "labelvocabulary.csv must have the header idx,label"),
        ("task_metadata.json", "{", "is not a HEAR task: task_metadata.json: JSONDecodeError"),
        ("task_metadata.json", "[]", "task_metadata.json must contain a JSON object"),
        ("task_metadata.json", '{"splits": []}', "task_metadata.json lacks task_name, .*split_mode"),
    ],
)
def test_check_finds_damage(tmp_path: Path, file: str, text: str, message: str) -> None:
    folder = build_task(TaskConfig("t"), scene_clips(tmp_path), tmp_path / "tasks", progress=False)
    check_task(folder)
    (folder / file).write_text(text)
    with pytest.raises(TaskError, match=message):
        check_task(folder)


def test_check_finds_what_heareval_would_find_late(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A metric that it does not know, and audio of another rate than its folder says."""
    folder = build_task(TaskConfig("t"), scene_clips(tmp_path), tmp_path / "tasks", progress=False)
    file, whole = folder / "task_metadata.json", read(folder, "task_metadata")
    file.write_text(json.dumps({**whole, "evaluation": ["top1_ac"]}))
    with pytest.raises(TaskError, match="unknown metric 'top1_ac'. Did you mean 'top1_acc'"):
        check_task(folder)
    file.write_text(json.dumps(whole))
    (folder / "16000").rename(folder / "48000")
    with pytest.raises(TaskError, match=r"a\.wav has a sample rate of 16000 Hz, but is in the folder of 48000 Hz"):
        check_task(folder)
    shutil.copytree(folder / "48000", folder / "16000")
    capsys.readouterr()
    check_task(folder)  # a model may hear the rate that is right
    assert capsys.readouterr().err.count("is in the folder of 48000 Hz") == 3


def test_resample(tmp_path: Path) -> None:
    folder = build_task(
        TaskConfig("t", sample_rates=(48_000,)), scene_clips(tmp_path), tmp_path / "tasks", progress=False
    )
    copy = resample_task(folder, 16_000, tmp_path / "copy", progress=False)
    assert sorted(path.name for path in copy.iterdir() if path.is_dir()) == ["16000"]
    check_task(copy)
    assert resample_task(folder, 16_000, progress=False) == folder
    check_task(folder)
    assert soundfile.info(folder / "16000" / "fold00" / "a.wav").samplerate == 16_000


@pytest.mark.parametrize("ending", ["full disk", "SIGINT", "SIGTERM"])
def test_a_build_that_ends_early_leaves_nothing(
    classes: Path, tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def write_third(file: Path, *rest: Any) -> None:
        third = len(list(file.parent.glob("*.wav"))) == 2
        if third and ending != "full disk":
            signal.raise_signal(signal.Signals[ending])
        write_wav(Path("/dev/full") if third else file, *rest)

    monkeypatch.setattr(tasks, "write_wav", write_third)
    folder = tmp_path / "tasks" / "pets-v1.0.0-full"
    full = ending == "full disk"
    with interrupts_enabled():  # also where the tests run in the background of a script
        assert main(["tasks", "build", "pets", str(classes), "--out", str(folder.parent)]) == (1 if full else 130)
    expected = "error: No space left on device (/dev/full)" if full else f"stopped; {folder} was not written."
    assert capsys.readouterr().err.splitlines()[-1] == expected
    assert not list(folder.parent.iterdir())
    monkeypatch.undo()
    assert main(["tasks", "build", "pets", str(classes), "--out", str(folder.parent)]) == 0


def test_two_processes_do_not_build_one_task(classes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with hold_folder_lock(tmp_path, ".pets-v1.0.0-full.lock", "builds"):
        assert main(["tasks", "build", "pets", str(classes), "--out", str(tmp_path)]) == 1
        expected = f"error: another process builds pets-v1.0.0-full in {tmp_path}; wait for it, or use another folder."
        assert capsys.readouterr().err.splitlines()[-1] == expected
        assert main(["tasks", "build", "others", str(classes), "--out", str(tmp_path)]) == 0


def test_two_processes_do_not_resample_one_task(tmp_path: Path) -> None:
    folder = build_task(TaskConfig("t", sample_rates=(8_000,)), scene_clips(tmp_path), tmp_path / "tasks", False)
    with hold_folder_lock(folder, ".16000.lock", "resamples"):
        expected = f"another process resamples to 16000 Hz in {folder}; wait for it, or use another folder."
        with pytest.raises(ConfigError, match=re.escape(expected)):
            resample_task(folder, 16_000, progress=False)
    resample_task(folder, 16_000, progress=False)
    assert not list(folder.glob(".*")), "no lock file is left in the task"


def test_a_stopped_resampling_goes_on_and_is_not_taken_for_whole(tmp_path: Path) -> None:
    """Also upwards, where the new rate is the highest."""
    folder = build_task(TaskConfig("t", sample_rates=(8_000,)), scene_clips(tmp_path), tmp_path / "tasks", False)
    written: list[bytes] = []
    write_sound = soundfile.write

    def killed(file: bytes, *rest: object, **named: object) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(file)
        write_sound(file, *rest, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(soundfile, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            resample_task(folder, 16_000, progress=False)
    check_task(folder)
    assert not (folder / "16000").exists()
    resample_task(folder, 16_000, progress=False)
    check_task(folder)
    assert len(list((folder / "16000").rglob("*.wav"))) == len(list((folder / "8000").rglob("*.wav")))
    next((folder / "16000").rglob("*.wav")).unlink()  # as former versions left it
    resample_task(folder, 16_000, progress=False)
    check_task(folder)
    for rate in (0, -5, 3):
        with pytest.raises(TaskError, match=f"the sample rate must be at least 1000 Hz, not {rate}"):
            resample_task(folder, rate, progress=False)
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == ["16000", "8000"]


def test_fold_names_sort_by_value() -> None:
    assert fold_names(["10", "2", "1"]) == {"1": "fold00", "2": "fold01", "10": "fold02"}
    assert fold_names(["a", "1", "fold1", "A", "2"]) == {
        "1": "fold00", "fold1": "fold01", "2": "fold02", "A": "fold03", "a": "fold04"
    }  # fmt: skip
    assert fold_names(["fold10", "fold2", "fold1"]) == {"fold1": "fold00", "fold2": "fold01", "fold10": "fold02"}


def test_events_need_order(tmp_path: Path) -> None:
    clips = [Clip(write(tmp_path / f"{n}.wav"), f"fold0{n}", events=(Event("x", 400.0, 100.0),)) for n in range(3)]
    with pytest.raises(TaskError, match="ends before it starts"):
        build_task(TaskConfig("t", "event", "multilabel"), clips, tmp_path / "tasks", progress=False)


def test_a_vocabulary_from_a_spreadsheet(tmp_path: Path) -> None:
    folder = build_task(TaskConfig("t"), scene_clips(tmp_path), tmp_path / "tasks", progress=False)
    vocabulary = (folder / "labelvocabulary.csv").read_text()
    (folder / "labelvocabulary.csv").write_text(vocabulary, encoding="utf-8-sig")
    check_task(folder)


def test_events_end_with_their_clip(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Audio is cut to a second: what begins later is heard by nobody."""
    events = (
        Event("x", 100.0, 300.0),
        Event("x", 900.0, 1400.0),
        Event("y", 1000.0, 1200.0),
        Event("x", 1500.0, 1600.0),
    )
    clips = [Clip(write(tmp_path / f"{n}.wav", 2.0), f"fold0{n}", events=events) for n in range(3)]
    config = TaskConfig("t", "event", "multilabel", clip_seconds=1.0)
    folder = build_task(config, clips, tmp_path / "tasks", progress=False)
    kept = [{"label": "x", "start": 100.0, "end": 300.0}, {"label": "x", "start": 900.0, "end": 1000.0}]
    assert read(folder, "fold01") == {"1.wav": kept}
    assert (folder / "labelvocabulary.csv").read_text() == "idx,label\n0,x\n"
    assert "dropped 6 of 12 events, which begin at or after 1 s, where clips are cropped." in capsys.readouterr().err
    late = [Clip(clip.file, clip.split, events=events[2:]) for clip in clips]
    with pytest.raises(TaskError, match="all 6 events begin at or after 1 s"):
        build_task(config, late, tmp_path / "tasks", progress=False)
    whole = build_task(TaskConfig("t", "event", "multilabel"), clips, tmp_path / "whole", progress=False)
    assert len(read(whole, "fold01")["1.wav"]) == 4  # type: ignore[arg-type]


def test_events_behind_their_clips_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of times in ms for seconds all are; one may be a slip."""
    events = (Event("x", 100.0, 300.0), Event("y", 7300.0, 9400.0))
    clips = [Clip(write(tmp_path / f"{n}.wav", 0.5), f"fold0{n}", events=events) for n in range(3)]
    config = TaskConfig("t", "event", "multilabel")
    folder = build_task(config, clips, tmp_path / "tasks", progress=False)
    assert read(folder, "fold01") == {"1.wav": [{"label": "x", "start": 100.0, "end": 300.0}]}
    assert "3 of 6 events begin at or after the end of their clips; times must be in seconds" in capsys.readouterr().err
    late = [Clip(clip.file, clip.split, events=events[1:]) for clip in clips]
    with pytest.raises(TaskError, match="3 of 3 events begin at or after the end of their clips"):
        build_task(config, late, tmp_path / "tasks", progress=False)


def test_same_names_in_every_split(tmp_path: Path) -> None:
    """train/p/001.wav, valid/p/001.wav, test/p/001.wav: HEAR keeps names by split."""
    for split in ("train", "valid", "test"):
        for label in ("p", "q"):
            write(tmp_path / "data" / split / label / "001.wav")
    clips = assign_splits(clips_from_folders(tmp_path / "data"), {}, 0)
    folder = build_task(TaskConfig("t"), clips, tmp_path / "tasks", progress=False)
    for split in ("train", "valid", "test"):
        assert read(folder, split) == {"p-001.wav": ["p"], "q-001.wav": ["q"]}


def test_names_take_as_much_of_the_path_as_they_need(tmp_path: Path) -> None:
    files = ["a/p/1.wav", "b/p/1.wav", "a/q/1.wav", "a/q/2.wav", "p/a-q-3.wav", "a/q/3.wav"]
    names = [name for _, name in clip_names([Clip(tmp_path / file, "train") for file in files])]
    assert names == ["a-p-1.wav", "b-p-1.wav", "q-1.wav", "2.wav", "a-q-3.wav", "3.wav"]


def test_names_are_checked_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soundfile, "write", lambda *_, **__: pytest.fail("audio was written"))
    clips = [Clip(tmp_path / "p" / f"1.{ending}", "fold00") for ending in ("wav", "flac")]
    clips += [Clip(tmp_path / f"{n}.wav", f"fold0{n}") for n in (1, 2)]
    with pytest.raises(TaskError, match=r"two clips would be named .*1.wav and .*1.flac"):
        build_task(TaskConfig("t"), clips, tmp_path / "tasks", progress=False)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--seconds", "0"], "clip length must be finite and at least one sample, got 0"),
        (["--seconds", "-1"], "clip length must be finite and at least one sample"),
        (["--seconds", "nan"], "clip length must be finite"),
        (["--rate", "16000", "0"], r"sample rates must be at least 1000 Hz, got \[16000, 0\]"),
        (["--rate", "16"], r"sample rates must be at least 1000 Hz, got \[16\]"),
        (["--metric", "event_onset_200ms_fms"], "unknown metric of scene tasks 'event_onset_200ms_fms'"),
        (["--metric", "accuracy"], "unknown metric of scene tasks 'accuracy'"),
        (["--folds", "2"], "--folds must be at least 3 for heareval, not 2"),
        (["--folds", "-3"], "--folds must be at least 3"),
        (["--folds", "100"], "--folds 100 exceeds the number of clips, "),
        (["--train", "0,1,2,3", "--valid", "3", "--test", "4"], "give --split-column too"),
    ],
)
def test_impossible_tasks_are_refused_before_audio_is_written(
    classes: Path, tmp_path: Path, given: list[str], message: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(soundfile, "write", lambda *_, **__: pytest.fail("audio was written"))
    assert main(["tasks", "build", "t", str(classes), "--out", str(tmp_path / "tasks"), *given]) == 1
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "tasks").exists()


@pytest.mark.parametrize("name", ["a/b", "", "..", ".hidden"])
def test_names_of_no_folder(name: str) -> None:
    with pytest.raises(TaskError, match="is not a valid name, version or mode of a task"):
        TaskConfig(name)
    with pytest.raises(TaskError, match="a task cannot be event and multiclass"):
        TaskConfig("t", "event")


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"train": "0123", "valid": "3", "test": "4"}, "'3' is in both train and valid"),
        ({"train": "012", "valid": "3"}, "'4' is in none of train, valid and test"),
        ({"train": "0123", "test": "4"}, "no clip is in valid: give --valid one or more of 0, 1, 2, 3, 4"),
        ({"train": "0123", "valid": "9", "test": "4"}, "no clip is in valid"),
    ],
)
def test_wrong_parts(parts: dict[str, str], message: str) -> None:
    clips = [Clip(Path(f"{number}.wav"), str(number), ("x",)) for number in range(5)]
    with pytest.raises(TaskError, match=message):
        assign_splits(clips, {part: list(values) for part, values in parts.items()}, 0)


def test_folds_are_counted_before_audio_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clips = scene_clips(tmp_path, "ab")
    monkeypatch.setattr(soundfile, "write", lambda *_, **__: pytest.fail("audio was written"))
    with pytest.raises(TaskError, match="t-v1.0.0-full: 2 folds .* at least 3"):
        build_task(TaskConfig("t"), clips, tmp_path / "tasks", progress=False)


def test_what_a_task_is_made_of_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An empty folder is no class, and folds that a class cannot fill are warned of."""
    for label, count in (("cat", 5), ("dog", 3), ("cow", 0)):
        (tmp_path / "audio" / label).mkdir(parents=True)
        for number in range(count):
            soundfile.write(tmp_path / "audio" / label / f"{number}.wav", np.full(16_000, 0.1), 16_000)
    command = ["tasks", "build", "pets", str(tmp_path / "audio"), "--out", str(tmp_path / "tasks")]
    assert main([*command, "--folds", "3"]) == 0
    told = capsys.readouterr().err
    assert f"warning: {tmp_path / 'audio' / 'cow'} is empty and not used as a class." in told
    assert "pets: 8 clips of 2 classes, " in told
    assert "some folds lack it" not in told
    assert main([*command, "--folds", "4"]) == 0
    assert "warning: 4 folds, and the class 'dog' has 3 clips: some folds lack it." in capsys.readouterr().err


def test_a_split_that_loses_its_clips_is_told_of(tmp_path: Path) -> None:
    """And which were unreadable; not that there are too few folds."""
    clips = [
        Clip(write(tmp_path / f"{split}{n}.wav"), split, (label,))
        for split in ("train", "valid", "test")
        for n, label in enumerate("ab")
    ]
    for number in range(2):
        (tmp_path / f"valid{number}.wav").write_bytes(b"nothing")
    with pytest.raises(TaskError, match=r"no clip of valid is readable. First reasons: .*valid0\.wav"):
        build_task(TaskConfig("t"), clips, tmp_path / "tasks", progress=False)
    assert not list((tmp_path / "tasks").glob("*"))


def test_clips_that_are_too_few_for_three_parts() -> None:
    clips = [Clip(Path(f"{number}.wav"), NO_SPLIT, ("ab"[number % 2],)) for number in range(3)]
    with pytest.raises(TaskError, match="3 clips are too few for a random split into train, valid and test"):
        assign_splits(clips, {}, 0)


def test_labels_are_counted_before_audio_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row that is there twice says nothing new; one with another label is named."""
    rows = table(tmp_path, "filename,label\na.wav,x\na.wav,x\nb.wav,y\nb.wav,x\nc.wav,\n")
    clips = clips_from_csv(rows, tmp_path, Columns(), "scene")
    assert [clip.labels for clip in clips] == [("x",), ("y", "x"), ()]
    monkeypatch.setattr(soundfile, "write", lambda *_, **__: pytest.fail("audio was written"))
    folds = [replace(clip, split=f"fold0{number}") for number, clip in enumerate(clips)]
    with pytest.raises(TaskError, match=r"got \['y', 'x'\] for b.wav \(2 of 3 clips\); --multilabel allows any"):
        build_task(TaskConfig("t"), folds, tmp_path / "tasks", progress=False)


def test_a_task_of_one_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every model is told to be perfect."""
    clips = [Clip(write(tmp_path / f"{number}.wav"), f"fold0{number}", ("rain",)) for number in range(3)]
    build_task(TaskConfig(name="one"), clips, tmp_path / "tasks", progress=False)
    warned = capsys.readouterr().err
    assert f"{tmp_path / 'tasks' / 'one-v1.0.0-full'} has one class (rain): a constant prediction is always" in warned


@pytest.mark.parametrize(("kind", "answer"), [("scene", "a label"), ("event", "an event")])
def test_tasks_without_labels(
    tmp_path: Path, kind: Literal["scene", "event"], answer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A task without any is refused, before audio is written and when checked; a split without any is warned of."""
    config = TaskConfig("bare", kind, "multilabel")
    clips = [Clip(write(tmp_path / f"{split}.wav"), split) for split in TRAIN_VALID_TEST]
    with pytest.raises(TaskError, match=f"^bare-v1.0.0-full: no clip has {answer}.$"):
        build_task(config, clips, tmp_path, progress=False)
    given: Any = {"scene": {"labels": ("bell",)}, "event": {"events": (Event("bell", 100, 200),)}}[kind]
    folder = build_task(config, [replace(clips[0], **given), *clips[1:]], tmp_path, progress=False)
    warning = f"warning: {folder}: no clip of valid, test has {answer}: scores are undefined or meaningless.\n"
    assert capsys.readouterr().err == warning
    assert main(["tasks", "check", str(folder)]) == 0
    assert capsys.readouterr().err == warning
    (folder / "train.json").write_text('{"train.wav": []}')
    (folder / "labelvocabulary.csv").write_text("idx,label\n")
    assert main(["tasks", "check", str(folder)]) == 1
    assert capsys.readouterr().err == f"error: {folder}: no clip has {answer}.\n"
