"""Standing of models on HEAR: a row of its leaderboard for each, and aggregates."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from asda_core.system.files import read_json_object
from asda_core.system.locks import hold_lock
from asda_core.system.markdown import escape_markdown, table_lines
from asda_hear.evaluate.identity import SEARCH_STAMP
from asda_hear.evaluate.leaderboard import aggregates, hear_column, leaderboard_row, version_notes, write_leaderboard
from asda_hear.evaluate.scores import TABLES_LOCK, TaskScore
from asda_hear.evaluate.task_checks import DEFAULT_SEED
from asda_hear.names import LOG_MEL

LEADERBOARD_FILE = "leaderboard.csv"
AGGREGATE_NAMES = ("mean", "share of the best", "s(m)", "z")
"""Keys that `aggregates` may return."""
PUBLISHED = "(published)"
"""Name of the baseline with the scores published by HEAR, used if there is no log-mel of this search."""


class EvaluationSettings(NamedTuple):
    """Settings of an evaluation: `options` of `load_model` as JSON, and the seed of the predictors."""

    options: str
    seed: int


def write_standing(rows: Sequence[tuple[str, TaskScore]], out: Path) -> str:
    """Write `leaderboard.csv` and return a table of aggregates; nothing if no task is HEAR's.

    The zero of s(m) is log-mel, whatever its row is called: with the same options and seed if that exists, otherwise
    without options and with the same seed, otherwise the published one. The table says which.

    Args:
        rows: model and score, of any tasks; those that are not HEAR's are ignored.
        out: result folder; MODEL/TASK in it records what each score was made from.
    """
    scores: dict[str, dict[str, float]] = {}
    settings: dict[str, EvaluationSettings] = {}
    baselines: dict[EvaluationSettings, str] = {}
    for model, score in rows:
        if hear_column(score.task):
            scores.setdefault(model, {})[score.task] = score.score
            stamp = read_json_object(out / model / score.task / SEARCH_STAMP)
            settings[model] = EvaluationSettings(
                json.dumps(stamp.get("options", {}), sort_keys=True), stamp.get("seed", DEFAULT_SEED)
            )
            if stamp.get("weights") == LOG_MEL:
                baselines[settings[model]] = model
    if not scores:
        return ""
    today = datetime.now(UTC).date().isoformat()
    leaderboard_rows = [leaderboard_row(model, "", today, task_scores) for model, task_scores in scores.items()]
    with hold_lock(out / TABLES_LOCK):
        write_leaderboard(leaderboard_rows, out / LEADERBOARD_FILE)
    header = ["model", "HEAR tasks", *AGGREGATE_NAMES, "zero of s(m)"]
    table = []
    for model, task_scores in scores.items():
        naive = _naive(settings[model], task_scores, baselines, scores)
        values = aggregates(task_scores, None if naive is None else scores[naive])
        cells = [f"{values[name]:.3f}" if name in values else "" for name in AGGREGATE_NAMES]
        zero = PUBLISHED if naive is None else escape_markdown(naive)
        table.append([escape_markdown(model), str(len(task_scores)), *cells, zero])
    notes = version_notes(score.task for _, score in rows)
    return "\n".join([*table_lines(header, table), *(f"\n{note}" for note in notes)]) + "\n"


def _naive(
    settings: EvaluationSettings,
    task_scores: Mapping[str, float],
    baselines: Mapping[EvaluationSettings, str],
    scores: Mapping[str, Mapping[str, float]],
) -> str | None:
    """Return the row that is the zero of s(m) for a model with these settings: one with scores on all its tasks."""
    candidates = (baselines.get(settings), baselines.get(settings._replace(options="{}")))
    return next((name for name in candidates if name and scores[name].keys() >= task_scores.keys()), None)
