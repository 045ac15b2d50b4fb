"""Where models stand on HEAR: a row of its leaderboard for each, and its aggregates."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from asda_hear.evaluate.leaderboard import aggregates, hear_column, leaderboard_row, write_leaderboard
from asda_hear.evaluate.scores import TaskScore
from asda_hear.names import LOG_MEL

LEADERBOARD_FILE = "leaderboard.csv"
NAMES = ("mean", "share of the best", "s(m)", "z")
"""What `aggregates` may give."""


def write_standing(rows: Sequence[tuple[str, TaskScore]], out: Path) -> str:
    """Write `leaderboard.csv` and return a table of aggregates; nothing where no task is one of HEAR's.

    Args:
        rows: model and score, of any tasks; those that are none of HEAR's are left out. Where "log_mel" is a model, its
            scores are the zero of s(m), else the published ones.
        out: folder.
    """
    scores: dict[str, dict[str, float]] = {}
    for model, score in rows:
        if hear_column(score.task):
            scores.setdefault(model, {})[score.task] = score.score
    if not scores:
        return ""
    today = datetime.now(UTC).date().isoformat()
    found_rows = [leaderboard_row(model, "", today, known) for model, known in scores.items()]
    write_leaderboard(found_rows, out / LEADERBOARD_FILE)
    lines = [f"| model | HEAR tasks | {' | '.join(NAMES)} |", "|---" * (2 + len(NAMES)) + "|"]
    for model, known in scores.items():
        found = aggregates(known, scores.get(LOG_MEL))
        values = [f"{found[name]:.3f}" if name in found else "" for name in NAMES]
        lines.append(f"| {model} | {len(known)} | {' | '.join(values)} |")
    return "\n".join(lines) + "\n"
