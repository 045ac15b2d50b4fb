"""The leaderboard row and the aggregates of `asda-hear evaluate`."""

import csv
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from asda_hear.evaluate.commands import MODEL_NOTE, claim_names
from asda_hear.evaluate.identity import SEARCH_STAMP
from asda_hear.evaluate.leaderboard import HEADER
from asda_hear.evaluate.scores import TaskScore
from asda_hear.evaluate.standing import write_standing

ESC, LIBRI = "esc50-v2.0.0-full", "libricount-v1.0.0-hear2021-full"


def score(task: str, value: float) -> TaskScore:
    return TaskScore(task, "top1_acc", value, (value,), {"top1_acc": value}, value)


def kept(out: Path, model: str, **stamp: object) -> None:
    """What a score was made from, as it lies beside it."""
    for task in (ESC, LIBRI):
        (out / model / task).mkdir(parents=True)
        (out / model / task / SEARCH_STAMP).write_text(json.dumps(stamp))


def test_rows_and_aggregates(tmp_path: Path) -> None:
    kept(tmp_path, "log_mel", weights="log_mel", options={})
    rows = [("ours", score(ESC, 0.8)), ("ours", score(LIBRI, 0.6)), ("ours", score("mine-v1-full", 0.1))]
    rows += [("log_mel", score(ESC, 0.3)), ("log_mel", score(LIBRI, 0.4))]
    text = write_standing(rows, tmp_path)
    with (tmp_path / "leaderboard.csv").open() as file:
        ours, mel = csv.DictReader(file)
    assert tuple(ours) == HEADER
    assert (ours["Model"], ours["ESC-50"], ours["Libricount"], ours["FSD50K"]) == ("ours", "0.8", "0.6", "")
    assert mel["Model"] == "log_mel"
    lines = text.splitlines()
    assert lines[2].startswith("| ours | 2 | 0.700 | ")
    assert lines[3].split(" | ")[4] == "0.000"  # s(m) of the measured baseline
    best = [0.9665, 0.7853]
    expected = 100 * (0.5 / (best[0] - 0.3) + 0.2 / (best[1] - 0.4)) / 2
    assert abs(float(lines[2].split(" | ")[4]) - expected) < 0.1


def test_versions_of_one_task_are_told_under_the_table(tmp_path: Path) -> None:
    rows = [("ours", score(ESC, 0.8)), ("ours", score("esc50-v1.0.0-full", 0.6))]
    table, _, note = write_standing(rows, tmp_path).partition("\n\n")
    assert table.splitlines()[2] == "| ours | 2 | 0.700 |  |  |  | (published) |"
    assert note.startswith("esc50-v1.0.0-full, esc50-v2.0.0-full are versions of one task")


def test_the_zero_is_log_mel_whatever_it_is_called(tmp_path: Path) -> None:
    """By what it is, and by options and seed, not by the name of a row."""
    values = {"mel": 0.3, "mel-seed=3": 0.4, "mel-wide": 0.5, "a": 0.6, "a-seed=3": 0.6, "a-wide": 0.6, "log_mel": 0.6}
    kept(tmp_path, "mel", weights="log_mel", options={})
    kept(tmp_path, "mel-seed=3", weights="log_mel", options={}, seed=3)
    kept(tmp_path, "mel-wide", weights="log_mel", options={"scene_pooling": "statistics"})
    kept(tmp_path, "a", weights="123", options={"layers": [2]})
    kept(tmp_path, "a-seed=3", weights="123", options={}, seed=3)
    kept(tmp_path, "a-wide", weights="123", options={"scene_pooling": "statistics"})
    kept(tmp_path, "log_mel", weights="123", options={}, seed=4)
    rows = [(name, score(task, value)) for name, value in values.items() for task in (ESC, LIBRI)]
    lines = [line.strip("| ").split(" | ") for line in write_standing(rows, tmp_path).splitlines()[2:]]
    assert {line[0].replace("\\", ""): line[-1] for line in lines} == {
        "mel": "mel", "mel-seed=3": "mel-seed=3", "mel-wide": "mel-wide", "a": "mel", "a-seed=3": "mel-seed=3",
        "a-wide": "mel-wide", "log_mel": "(published)",
    }  # fmt: skip
    zeros = {line[0]: line[4] for line in lines}
    assert zeros["mel"] == zeros["mel-seed=3"] == zeros["mel-wide"] == "0.000"
    assert float(zeros["a"]) > float(zeros["a-seed=3"]) > float(zeros["a-wide"]) > 0


def test_a_model_called_published_is_no_zero(tmp_path: Path) -> None:
    rows = [("ours", score(ESC, 0.8)), ("ours", score(LIBRI, 0.6))]
    alone = write_standing(rows, tmp_path).splitlines()[2]
    for name in ("published", "(published)"):
        assert (
            write_standing([*rows, (name, score(ESC, 0.7)), (name, score(LIBRI, 0.5))], tmp_path).splitlines()[2]
            == alone
        )


def test_a_baseline_that_lacks_a_task_is_no_zero(tmp_path: Path) -> None:
    kept(tmp_path, "log_mel", weights="log_mel", options={})
    rows = [("a|b", score(ESC, 0.8)), ("a|b", score(LIBRI, 0.6)), ("log_mel", score(ESC, 0.3))]
    ours, mel = write_standing(rows, tmp_path).splitlines()[2:]
    assert ours.startswith("| a\\|b | 2 | ")
    assert ours.endswith(" | (published) |")
    assert mel.split(" | ")[4] == "0.000"


def test_tasks_of_ones_own_have_no_standing(tmp_path: Path) -> None:
    assert write_standing([("ours", score("mine-v1-full", 0.5))], tmp_path) == ""
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("file", "write"),
    [
        (f"log_mel/{MODEL_NOTE}", lambda out: claim_names({"log_mel": "log_mel"}, out)),
        ("leaderboard.csv", lambda out: write_standing([("ours", score(ESC, 0.8))], out)),
    ],
)
def test_commands_that_start_or_end_at_once_share_a_folder(
    file: str, write: Callable[[Path], object], tmp_path: Path
) -> None:
    """Each file has one temporary name, so that two processes that write it at once would disturb each other."""
    for place in range(8):
        out = tmp_path / str(place)
        out.mkdir()
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(write, [out] * 4))
        assert (out / file).exists()


def test_an_unchanged_record_of_a_model_is_not_written_again(tmp_path: Path) -> None:
    note = tmp_path / "log_mel" / MODEL_NOTE
    written = []
    for _ in range(2):
        claim_names({"log_mel": "log_mel"}, tmp_path)
        written.append((note.stat().st_ino, note.stat().st_mtime_ns))
    assert written[0] == written[1]
