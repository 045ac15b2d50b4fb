"""The leaderboard row and the aggregates of `asda-hear evaluate`."""

import csv
from pathlib import Path

from asda_hear.evaluate.leaderboard import HEADER
from asda_hear.evaluate.scores import TaskScore
from asda_hear.evaluate.standing import write_standing

ESC, LIBRI = "esc50-v2.0.0-full", "libricount-v1.0.0-hear2021-full"


def score(task: str, value: float) -> TaskScore:
    return TaskScore(task, "top1_acc", value, (value,), {"top1_acc": value}, value)


def test_rows_and_aggregates(tmp_path: Path) -> None:
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


def test_tasks_of_ones_own_have_no_standing(tmp_path: Path) -> None:
    assert write_standing([("ours", score("mine-v1-full", 0.5))], tmp_path) == ""
    assert not list(tmp_path.iterdir())
