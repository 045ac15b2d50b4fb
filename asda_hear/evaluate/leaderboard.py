"""HEAR's leaderboard: its 19 columns, the row to submit, and aggregates over tasks."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from asda_core.system.files import csv_text, write_text


@dataclass(frozen=True)
class HearColumn:
    """One column of HEAR's leaderboard; scores are fractions of the primary metric.

    Attributes:
        tasks: names of the tasks, without version and size; the column is their mean.
        mean: mean over the leaderboard's models that have a value.
        deviation: population standard deviation over the same models.
        best: best score of the leaderboard.
        naive: score of the mel baseline; None if not published.
        size: last part of the name of the task's folder.
    """

    tasks: tuple[str, ...]
    mean: float
    deviation: float
    best: float
    naive: float | None = None
    size: str = "full"


HEAR_COLUMNS: Mapping[str, HearColumn] = {
    "Beehive": HearColumn(("beehive_states_fold0", "beehive_states_fold1"), 0.6112, 0.1297, 0.8780),
    "Beijing Opera": HearColumn(("beijing_opera",), 0.9202, 0.0703, 0.9746, 0.987),
    "CREMA-D": HearColumn(("tfds_crema_d",), 0.5757, 0.1106, 0.7521, 0.380),
    "DCASE 2016": HearColumn(("dcase2016_task2",), 0.5728, 0.2721, 0.9254, 0.088),
    "ESC-50": HearColumn(("esc50",), 0.6226, 0.2258, 0.9665, 0.286),
    "FSD50K": HearColumn(("fsd50k",), 0.3625, 0.1582, 0.6548, 0.132),
    "GTZAN Genre": HearColumn(("tfds_gtzan",), 0.7511, 0.1123, 0.9080),
    "GTZAN Music/Speech": HearColumn(("tfds_gtzan_music_speech",), 0.9399, 0.0402, 0.9923),
    "Gunshot": HearColumn(("gunshot_triangulation",), 0.8566, 0.0991, 0.9673),
    "Libricount": HearColumn(("libricount",), 0.6062, 0.0931, 0.7853, 0.435),
    "Maestro 5h": HearColumn(("maestro",), 0.1421, 0.1893, 0.4691, size="5h"),
    "Mridangam Stroke": HearColumn(("mridangam_stroke",), 0.9235, 0.0693, 0.9753, 0.941),
    "Mridangam Tonic": HearColumn(("mridangam_tonic",), 0.8090, 0.1294, 0.9655, 0.876),
    "NSynth Pitch 50h": HearColumn(("nsynth_pitch",), 0.6150, 0.2089, 0.9000, size="50h"),
    "NSynth Pitch 5h": HearColumn(("nsynth_pitch",), 0.4420, 0.2638, 0.8780, 0.876, size="5h"),
    "Speech commands 5h": HearColumn(("speech_commands",), 0.7092, 0.2273, 0.9763, 0.133, size="5h"),
    "Speech commands full": HearColumn(("speech_commands",), 0.7382, 0.2149, 0.9779),
    "Vocal Imitation": HearColumn(("vocal_imitation",), 0.1219, 0.0548, 0.2269),
    "VoxLingua107 top 10": HearColumn(("vox_lingua_top10",), 0.3611, 0.2005, 0.7202, 0.148),
}
"""In the order of a submission.

**Source**: mean and deviation are computed over the 30 models (12 to 30 of them have a value) of docs/leaderboard.csv
of github.com/hearbenchmark/hearbenchmark.com at commit 1e632f5d10e9a7b859e9554d744df005ded8c9ec; the best is that of
the 34 models of 2023-09-26 (github.com/hearbenchmark/hear-leaderboard, 7ebc0af), whose table could not be read again.
Naive is "HEAR-Naive" of the GRAM paper, table 6.
"""

SUBMISSION = ("Model", "URL", "Submission Date")
"""Columns before the scores."""
HEADER = (*SUBMISSION, *HEAR_COLUMNS)

_BY_FOLDER = {(name, column.size): heading for heading, column in HEAR_COLUMNS.items() for name in column.tasks}


def hear_column(task: str) -> str | None:
    """Return the leaderboard's column of a task folder, such as `esc50-v2.0.0-full`; None if the task is not HEAR's.

    The version is ignored; the size is not.
    """
    name, size = task.split("-", 1)[0], task.rsplit("-", 1)[-1]
    return _BY_FOLDER.get((name, size))


def version_notes(tasks: Iterable[str]) -> list[str]:
    """Return a sentence for each of HEAR's tasks that is there in several versions, of which none is in its column."""
    versions: dict[tuple[str | None, str], list[str]] = {}
    for task in sorted(set(tasks)):
        versions.setdefault((hear_column(task), task.split("-", 1)[0]), []).append(task)
    return [
        f"{', '.join(names)} are versions of one task: where several are scored, the leaderboard's column {heading} "
        "is empty, and of the aggregates there is only the mean."
        for (heading, _), names in versions.items()
        if heading and len(names) > 1
    ]


def leaderboard_row(model: str, url: str, date: str, scores: Mapping[str, float]) -> dict[str, str]:
    """Return the row to submit.

    Args:
        model: its name on the leaderboard.
        url: where the model is.
        date: of the submission, year-month-day.
        scores: task folder -> primary metric as a fraction; tasks that are not HEAR's are ignored.

    Returns:
        text for every column in HEAR's order; empty if a task (for Beehive: one of its two) was not run, or was run in
        several versions.
    """
    row = dict.fromkeys(HEADER, "") | dict(zip(SUBMISSION, (model, url, date), strict=True))
    for heading, tasks in _columns(scores).items():
        value = _mean([scores[task] for task in tasks])
        if heading in HEAR_COLUMNS and math.isfinite(value):
            row[heading] = f"{value:.10g}"
    return row


def write_leaderboard(rows: Sequence[Mapping[str, str]], file: Path) -> None:
    """Write rows of `leaderboard_row` under HEAR's header, as CSV."""
    write_text(file, csv_text([HEADER, *([row[heading] for heading in HEADER] for row in rows)]))


def aggregates(
    scores: Mapping[str, float],
    naive: Mapping[str, float] | None = None,
    best: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Aggregate the scores over all tasks, in the four ways in use; the two Beehive tasks count as one.

    Args:
        scores: task folder -> primary metric as a fraction.
        naive: task folder -> score of the log-mel baseline; for missing tasks, HEAR's published one is used.
        best: task folder -> best score; for missing tasks, the leaderboard's best is used.

    Returns:
        "mean"; "share of the best"; "s(m)", 0 for the naive baseline and 100 for the best; "z", standard deviations
        from the leaderboard's mean, clipped to [-1, 1]. What cannot be computed for every task is excluded.

    **Source**: share: EfficientAT (github.com/fschmid56/EfficientAT_HEAR). s(m): SUPERB-SG (ACL 2022), clipped at 0 as
    in GRAM and WavJEPA. z: github.com/hearbenchmark/hear-leaderboard.
    """
    columns = _columns(scores)
    if not columns:
        return {}
    values = {heading: _mean([scores[task] for task in tasks]) for heading, tasks in columns.items()}
    lowest = _measured_or_published(columns, naive, lambda column: column.naive)
    highest = _measured_or_published(columns, best, lambda column: column.best)
    parts = {
        "mean": list(values.values()),
        "share of the best": [_share(values[heading], highest[heading]) for heading in columns],
        "s(m)": [100 * _between(values[heading], lowest[heading], highest[heading]) for heading in columns],
        "z": [_deviations(value, HEAR_COLUMNS.get(heading)) for heading, value in values.items()],
    }
    means = {name: _mean(members) for name, members in parts.items()}
    return {name: mean for name, mean in means.items() if math.isfinite(mean)}


def _columns(scores: Mapping[str, float]) -> dict[str, list[str]]:
    """Column -> its tasks; one that is not HEAR's, half of a column, or one of several versions has its own."""
    columns: dict[str, list[str]] = {}
    for task in scores:
        columns.setdefault(hear_column(task) or task, []).append(task)
    used_columns: dict[str, list[str]] = {}
    for heading, tasks in columns.items():
        names = sorted(task.split("-", 1)[0] for task in tasks)
        is_complete = heading not in HEAR_COLUMNS or names == sorted(HEAR_COLUMNS[heading].tasks)
        used_columns |= {heading: tasks} if is_complete else {task: [task] for task in tasks}
    return used_columns


def _measured_or_published(
    columns: Mapping[str, Sequence[str]],
    measured: Mapping[str, float] | None,
    published: Callable[[HearColumn], float | None],
) -> dict[str, float]:
    """Column -> mean of the measured scores of its tasks if all have one, otherwise HEAR's value, otherwise NaN."""
    scores = {}
    for heading, tasks in columns.items():
        value = published(HEAR_COLUMNS[heading]) if heading in HEAR_COLUMNS else None
        if measured is not None and all(task in measured for task in tasks):
            value = _mean([measured[task] for task in tasks])
        scores[heading] = math.nan if value is None else value
    return scores


def _share(score: float, best: float) -> float:
    return score / best if best > 0 else math.nan


def _between(score: float, naive: float, best: float) -> float:
    """Scale to 0 at and below the naive baseline, 1 at the best; NaN above a baseline that is itself the best."""
    if math.isnan(score + naive + best):
        return math.nan
    if score <= naive:
        return 0.0
    return (score - naive) / (best - naive) if best > naive else math.nan


def _deviations(score: float, column: HearColumn | None) -> float:
    if column is None or math.isnan(score):
        return math.nan
    return max(-1.0, min(1.0, (score - column.mean) / column.deviation))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
