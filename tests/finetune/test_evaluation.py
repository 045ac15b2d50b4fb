"""Predictions come back as they were written; the folder of an evaluation says what the scores say."""

import csv
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from asda_core.errors import TaskError
from asda_core.finetune.evaluation import Predictions, load_predictions, pool_folds, save_predictions, write_evaluation
from asda_core.finetune.pictures import MAX_NAME_CHARACTERS, confusion_figure, draw_confusion, shorten_name

CLASSES, NAMES = ("/m/1", "/m/2", "/m/3"), ("dog, small", "Größe", "siren")
PNG = b"\x89PNG\r\n\x1a\n"


def make(num_clips: int = 31, single: bool = True, seed: int = 0, prefix: str = "clips/") -> Predictions:
    generator = np.random.default_rng(seed)
    targets = np.eye(3, dtype=np.uint8)[generator.integers(3, size=num_clips)]
    if not single:
        targets |= (generator.random(targets.shape) < 0.3).astype(np.uint8)
    given = (generator.random(targets.shape) + targets / 2).astype(np.float32) / 2
    files = tuple(f"{prefix}sound {number} ä.wav" for number in range(num_clips))
    return Predictions(files, targets, given, CLASSES, NAMES, single)


def assert_same(found: Predictions, expected: Predictions) -> None:
    np.testing.assert_array_equal(found.targets, expected.targets, strict=True)
    np.testing.assert_array_equal(found.probabilities, expected.probabilities, strict=True)
    for key in ("files", "classes", "names", "single"):
        assert getattr(found, key) == getattr(expected, key)
        assert type(getattr(found, key)) is type(getattr(expected, key))


@pytest.mark.parametrize("num_clips", [0, 1, 31])
@pytest.mark.parametrize("single", [True, False])
def test_round_trip(tmp_path: Path, num_clips: int, single: bool) -> None:
    save_predictions(tmp_path / "predictions", make(num_clips, single))
    assert [each.name for each in tmp_path.iterdir()] == ["predictions"]
    assert_same(load_predictions(tmp_path / "predictions"), make(num_clips, single))


def test_the_same_predictions_make_the_same_file(tmp_path: Path) -> None:
    for name in ("a.npz", "b.npz"):
        save_predictions(tmp_path / name, make())
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_a_damaged_file_is_refused_wherever_the_damage_is(tmp_path: Path) -> None:
    file = tmp_path / "predictions.npz"
    save_predictions(file, make(3))
    whole = file.read_bytes()
    refused = 0
    for place in range(0, len(whole), 5):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            found = load_predictions(file)
        except TaskError:
            refused += 1
        else:
            assert_same(found, make(3))  # the damage was to dates and the like
    assert refused > len(whole) / 5 / 3
    for length in range(0, len(whole), 50):
        file.write_bytes(whole[:length])
        with pytest.raises(TaskError, match="not a predictions file"):
            load_predictions(file)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="none.npz: cannot be read .No such file"):
        load_predictions(tmp_path / "none.npz")
    with pytest.raises(TaskError, match="cannot be read"):
        load_predictions(tmp_path)
    (tmp_path / "text").write_text("predictions")
    np.save(tmp_path / "array.npy", np.zeros(3))
    np.savez(tmp_path / "other.npz", given=np.zeros(3))
    np.savez(tmp_path / "newer.npz", format="asda predictions 9")
    for name in ("text", "array.npy", "other.npz", "newer.npz"):
        with pytest.raises(TaskError, match=f"{name}: not a predictions file"):
            load_predictions(tmp_path / name)


def test_the_array_has_its_name_and_files_of_earlier_versions_are_read(tmp_path: Path) -> None:
    save_predictions(tmp_path / "new.npz", make())
    arrays = dict(np.load(tmp_path / "new.npz"))
    np.savez(tmp_path / "old.npz", **{"given" if key == "probabilities" else key: arrays[key] for key in arrays})
    assert_same(load_predictions(tmp_path / "old.npz"), make())


def test_pickles_are_not_opened(tmp_path: Path) -> None:
    with (tmp_path / "evil.npz").open("wb") as opened:
        np.savez(opened, format="asda predictions 1", files=np.array([print], dtype=object))
    with pytest.raises(TaskError, match="evil.npz: damaged.*allow_pickle=False"):
        load_predictions(tmp_path / "evil.npz")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"files": ("a",)}, r"targets are uint8 \(31, 3\); expected uint8 \(1, 3\)"),
        ({"probabilities": np.zeros((31, 3))}, r"probabilities are float64 \(31, 3\); expected float32"),
        ({"targets": np.zeros((31, 2), np.uint8)}, r"targets are uint8 \(31, 2\)"),
        ({"names": ("a",)}, "1 names for 3 classes"),
    ],
)
def test_predictions_that_do_not_fit_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        replace(make(), **change)  # type: ignore[arg-type]


def test_pooled_folds_keep_every_clip() -> None:
    folds = [make(size, seed=size, prefix=f"fold{size}/") for size in (1, 7, 30)]
    found = pool_folds(folds)
    assert len(found.files) == 38
    assert found.files[1] == "fold7/sound 0 ä.wav"
    np.testing.assert_array_equal(found.probabilities[8:], folds[2].probabilities, strict=True)
    np.testing.assert_array_equal(found.targets[1:8], folds[1].targets, strict=True)
    assert_same(pool_folds(folds[:1]), folds[0])


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (make(), r"clips/sound 0 ä.wav occurs twice"),
        (replace(make(prefix="b"), classes=("/m/1", "/m/9", "/m/3")), "predictions 1 .*class 1 is '/m/9'.*'/m/2'"),
        (replace(make(prefix="b"), names=("dog, small", "Größe", "bell")), "class 2 is 'bell', expected 'siren'"),
        (replace(make(prefix="b"), single=False), "one has a single label for each clip"),
        (Predictions((), np.zeros((0, 1), np.uint8), np.zeros((0, 1), np.float32), ("a",), ("a",), True), "1 classes"),
    ],
)
def test_folds_that_do_not_fit_are_refused(other: Predictions, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        pool_folds([make(), other])


def test_no_folds_are_refused() -> None:
    with pytest.raises(TaskError, match="no predictions to pool"):
        pool_folds([])


def rows_of(file: Path) -> list[list[str]]:
    with file.open(encoding="utf-8", newline="") as opened:
        return list(csv.reader(opened))


def test_evaluation_of_one_label_per_clip(tmp_path: Path) -> None:
    predictions, folder = make(), tmp_path / "new" / "evaluation"
    scores = write_evaluation(folder, predictions, "fold 1", resamples=100)
    names = ["confusion.csv", "confusion.png", "per_class.csv", "predictions.npz", "scores.json"]
    assert sorted(each.name for each in folder.iterdir()) == names
    assert_same(load_predictions(folder / "predictions.npz"), predictions)
    told = json.loads((folder / "scores.json").read_text())
    assert told["values"] == scores.values
    assert told["intervals"] == {name: list(interval) for name, interval in scores.intervals.items()}
    assert (told["num_clips"], told["num_classes"], told["resamples"], told["notes"]) == (31, 3, 100, [])
    right = predictions.targets.argmax(axis=1) == predictions.probabilities.argmax(axis=1)
    header, *rows = rows_of(folder / "per_class.csv")
    assert header == ["class", "name", "clips", "AP", "AUC", "recall", "precision", "F1", "confused_with"]
    assert [(row[0], row[1]) for row in rows] == list(zip(CLASSES, NAMES, strict=True))
    for index, row in enumerate(rows):
        of_class = predictions.targets[:, index] == 1
        assert (int(row[2]), row[5]) == (of_class.sum(), f"{right[of_class].mean():.6f}")
    header, *rows = rows_of(folder / "confusion.csv")
    assert header == ["true \\ predicted", *NAMES]
    counts = np.array([row[1:] for row in rows], dtype=int)
    assert counts.sum() == 31
    assert np.trace(counts) == right.sum()
    assert (folder / "confusion.png").read_bytes().startswith(PNG)


def test_evaluation_of_several_labels(tmp_path: Path) -> None:
    predictions = make(single=False)
    predictions.targets[:, 2] = 0
    scores = write_evaluation(tmp_path, predictions, "test", resamples=10)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["per_class.csv", "predictions.npz", "scores.json"]
    assert json.loads((tmp_path / "scores.json").read_text())["values"]["accuracy"] is None
    assert scores.num_classes == 2
    assert rows_of(tmp_path / "per_class.csv")[3] == ["/m/3", "siren", "0", "", ""]


def test_an_evaluation_that_fails_writes_nothing(tmp_path: Path) -> None:
    predictions = make()
    predictions.probabilities[4, 1] = np.nan
    with pytest.raises(TaskError, match="clip 4, class Größe, is nan"):
        write_evaluation(tmp_path / "evaluation", predictions, "test")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("num_classes", [1, 2, 20, 21, 50])
def test_pictures_of_different_matrices_differ(tmp_path: Path, num_classes: int) -> None:
    names = [f"class {number}" for number in range(num_classes)]
    matrix = np.eye(num_classes, dtype=int) * 5
    draw_confusion(matrix, names, tmp_path / "a.png", "title")
    draw_confusion(matrix, names, tmp_path / "again.png", "title")
    matrix[-1, -1] = 0
    draw_confusion(matrix, names, tmp_path / "b.png", "title")
    first, again, other = ((tmp_path / name).read_bytes() for name in ("a.png", "again.png", "b.png"))
    assert first.startswith(PNG)
    assert first == again != other


def test_what_a_picture_says() -> None:
    figure = confusion_figure(np.array([[12345, 1], [0, 0]]), ["$a$ dog", "x" * 40], "50 $ each $")
    axes = figure.axes[0]
    assert {text.get_text(): text.get_color() for text in axes.texts} == {"12345": "white", "1": "black"}
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_title()) == ("predicted", "true", r"50 \$ each \$")
    assert [label.get_text() for label in axes.get_yticklabels()] == [r"\$a\$ dog", shorten_name("x" * 40)]


def test_a_picture_grows_with_its_classes() -> None:
    for sizes in ((2, 10, 20), (21, 50, 100)):  # with numbers and without
        widths = [confusion_figure(np.eye(size), ["a"] * size, "").get_figwidth() for size in sizes]
        assert widths == sorted(set(widths))
    assert len(confusion_figure(np.eye(20), ["a"] * 20, "").axes[0].texts) == 20
    assert not confusion_figure(np.eye(21), ["a"] * 21, "").axes[0].texts


def test_letters_that_the_font_lacks_do_not_matter(tmp_path: Path) -> None:
    draw_confusion(np.eye(2), ["鳥", "犬\n"], tmp_path / "a.png", "音")
    assert (tmp_path / "a.png").read_bytes().startswith(PNG)


def test_a_picture_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "a.png").mkdir()
    with pytest.raises(OSError, match="a.png"):
        draw_confusion(np.eye(2), ["a", "b"], tmp_path / "a.png", "title")
    assert [each.name for each in tmp_path.iterdir()] == ["a.png"]


def test_long_names_lose_their_middle() -> None:
    assert shorten_name("a" * MAX_NAME_CHARACTERS) == "a" * MAX_NAME_CHARACTERS
    assert shorten_name("beginning of a name and its end") == "beginning of…and its end"
    assert len(shorten_name("x" * 99)) == MAX_NAME_CHARACTERS


def test_importing_loads_no_state_of_drawing() -> None:
    code = "import sys, asda_core.finetune.evaluation; assert 'matplotlib.pyplot' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
