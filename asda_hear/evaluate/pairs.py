"""Pairs of models and tasks, their results, and the processes that score them, each of which runs `scoring`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from asda_core.errors import AsdaError, PartlyFailed
from asda_core.system.files import disk_time
from asda_core.system.workers import run_workers, with_options
from asda_hear.evaluate.identity import is_scored, stamps, task_identity, weights_identity
from asda_hear.evaluate.scores import TaskScore, read_task_score
from asda_hear.evaluate.task_checks import EvaluationConfig
from asda_hear.work_queue import read_failure

JOBS_FOLDER = ".jobs"
"""Logs of the processes, in the result folder."""


class EvaluationFailed(PartlyFailed[list[tuple[str, TaskScore]]]):
    """Pairs of model and task failed."""


@dataclass(frozen=True)
class Pair:
    """A model and a task.

    Attributes:
        model: what `asda_hear.load_model` takes.
        name: name of the model and of the folder of its results.
        task: task folder in HEAR's format.
    """

    model: str
    name: str
    task: Path

    def __str__(self) -> str:
        return f"{self.name} on {self.task.name}"


@dataclass(frozen=True)
class EvaluationSetup:
    """Pairs of models and tasks to evaluate, and the settings of the evaluation.

    Attributes:
        pairs: all pairs, those of a model together.
        out: folder of the results.
        config: the search.
        options: keyword arguments of `load_model`.
    """

    pairs: Sequence[Pair]
    out: Path
    config: EvaluationConfig
    options: Mapping[str, Any]

    def folder(self, pair: Pair) -> Path:
        """Folder of the scores of a pair."""
        return self.out / pair.name / pair.task.name

    def error_file(self, pair: Pair) -> Path:
        """File that says why a pair failed."""
        return self.out / pair.name / f"{pair.task.name}.error.txt"

    def claim_file(self, pair: Pair) -> Path:
        """Lock file that a process holds while it scores a pair; the system releases it when the process ends."""
        return self.out / pair.name / f".{pair.task.name}.claim"


def score_in_processes(setup: EvaluationSetup, arguments: Sequence[str], jobs: int) -> list[tuple[str, TaskScore]]:
    """Score all pairs in `jobs` processes on this machine; Ctrl-C and SIGTERM stop all.

    Args:
        setup: the pairs.
        arguments: command line of `asda-hear`, which each process gets.
        jobs: number of processes, each with `setup.config.threads` threads.

    Raises:
        EvaluationFailed: pairs failed.
        AsdaError: the processes ended before all was done.
    """
    since = disk_time(setup.out)
    weights = {pair.model: weights_identity(pair.model) for pair in setup.pairs}
    tasks = {pair.task: task_identity(pair.task) for pair in setup.pairs}
    search_stamps = {
        pair: stamps(weights[pair.model], setup.options, tasks[pair.task], setup.config)[1] for pair in setup.pairs
    }

    def done() -> list[Pair]:
        return [pair for pair in setup.pairs if is_scored(setup.folder(pair), search_stamps[pair], pair.task)]

    command = ["asda_hear.cli", *with_options(arguments, ["--jobs", "1", "--worker"])]
    bar = tqdm(total=len(setup.pairs), desc="evaluate", unit="pair")
    ended = run_workers([command] * jobs, setup.out / JOBS_FOLDER, setup.config.threads, bar, lambda: len(done()))
    scores = {pair: read_task_score(setup.folder(pair)) for pair in done()}
    errors = {pair: read_failure(setup.error_file(pair), since) for pair in setup.pairs if pair not in scores}
    failed = {pair: why for pair, why in errors.items() if why}
    if remaining := [str(pair) for pair in setup.pairs if pair not in scores and pair not in failed]:
        raise AsdaError(f"not scored: {', '.join(remaining)}; {ended.failure_message()}")
    return rows_or_raise(setup, scores, failed)


def score_rows(setup: EvaluationSetup, scores: Mapping[Pair, TaskScore]) -> list[tuple[str, TaskScore]]:
    """Return name of the model and score, in the order of the pairs."""
    return [(pair.name, scores[pair]) for pair in setup.pairs if pair in scores]


def rows_or_raise(
    setup: EvaluationSetup, scores: Mapping[Pair, TaskScore], failures: Mapping[Pair, str]
) -> list[tuple[str, TaskScore]]:
    """Return the rows of the table.

    Raises:
        EvaluationFailed: a pair failed, for the reason in `failures`; the exception holds the rows.
    """
    rows = score_rows(setup, scores)
    if failures:
        reasons = "; ".join(f"{pair}: {reason} (see {setup.error_file(pair)})" for pair, reason in failures.items())
        raise EvaluationFailed(
            rows, f"{len(failures)} of {len(setup.pairs)} evaluations failed, the others are done: {reasons}"
        )
    return rows
