"""Models x tasks, their results, and waiting for the processes that score them; `scoring` is what they do."""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from asda_core.errors import AsdaError
from asda_core.files import disk_time
from asda_core.workers import Worker, begin, ended_as_interrupt, how_ended, stop, with_options
from asda_hear.evaluate.identity import is_scored, stamps, task_identity, weights_identity
from asda_hear.evaluate.scores import TaskScore, read_task_score
from asda_hear.evaluate.search import EvaluationConfig
from asda_hear.work_queue import read_failure

JOBS_FOLDER = ".jobs"
"""Logs of the processes, in the result folder."""
POLL_SECONDS = 0.5
"""How often it is looked whether more pairs are done."""


class EvaluationFailed(AsdaError):
    """Pairs failed; `rows` holds the scores of all others."""

    def __init__(self, rows: list[tuple[str, TaskScore]], message: str) -> None:
        super().__init__(message)
        self.rows = rows


@dataclass(frozen=True)
class Pair:
    """A model and a task.

    Attributes:
        model: what `asda_hear.load_model` takes.
        name: of the model: the folder of its results.
        task: folder in HEAR's format.
    """

    model: str
    name: str
    task: Path

    def __str__(self) -> str:
        return f"{self.name} on {self.task.name}"


@dataclass(frozen=True)
class Pairs:
    """What is to be evaluated, and how.

    Attributes:
        pairs: all of them, those of a model together.
        out: folder of the results.
        config: the search.
        options: keyword arguments of `load_model`.
    """

    pairs: Sequence[Pair]
    out: Path
    config: EvaluationConfig
    options: Mapping[str, Any]

    def folder(self, pair: Pair) -> Path:
        """Where its scores are."""
        return self.out / pair.name / pair.task.name

    def error_file(self, pair: Pair) -> Path:
        """Where it says why a pair failed."""
        return self.out / pair.name / f"{pair.task.name}.error.txt"

    def claim_file(self, pair: Pair) -> Path:
        """The lock that a process holds while it does a pair; the system frees it when the process ends."""
        return self.out / pair.name / f".{pair.task.name}.claim"


def score_in_processes(work: Pairs, given: Sequence[str], jobs: int) -> list[tuple[str, TaskScore]]:
    """Score all pairs in so many processes of this machine; Ctrl-C and SIGTERM stop all.

    Args:
        work: the pairs.
        given: the command line of `asda-hear`, which each process gets.
        jobs: processes, each of `work.config.threads` threads.

    Raises:
        EvaluationFailed: pairs failed.
        AsdaError: the processes ended before all was done.
    """
    logs = [work.out / JOBS_FOLDER / f"{os.getpid()}-{number}.log" for number in range(1, jobs + 1)]
    (work.out / JOBS_FOLDER).mkdir(parents=True, exist_ok=True)
    began = disk_time(work.out)
    workers: list[Worker] = []
    try:
        with ended_as_interrupt():
            command = ["asda_hear.cli", *with_options(given, ["--jobs", "1", "--worker"])]
            workers.extend(begin(command, log, work.config.threads) for log in logs)
            done = _wait(work, workers)
    finally:
        stop(workers)
    codes = [worker.returncode for worker in workers]
    told = {pair: read_failure(work.error_file(pair), began) for pair in work.pairs if pair not in done}
    failed = {pair: why for pair, why in told.items() if why}
    if left := [str(pair) for pair in work.pairs if pair not in done and pair not in failed]:
        raise AsdaError(f"left are {', '.join(left)}, and {how_ended(codes, logs)}")
    scores = {pair: read_task_score(work.folder(pair)) for pair in done}
    return unless_failed(work, scores, failed)


def _wait(work: Pairs, workers: Sequence[Worker]) -> list[Pair]:
    """A bar of what is done, until nothing runs any more; returns the pairs that are."""
    weights = {pair.model: weights_identity(pair.model) for pair in work.pairs}
    tasks = {pair.task: task_identity(pair.task) for pair in work.pairs}
    wanted = {pair: stamps(weights[pair.model], work.options, tasks[pair.task], work.config)[1] for pair in work.pairs}
    with tqdm(total=len(work.pairs), desc="evaluate", unit="pair") as bar:
        while True:
            alive = any(worker.poll() is None for worker in workers)
            done = [pair for pair in work.pairs if is_scored(work.folder(pair), wanted[pair], pair.task)]
            bar.update(len(done) - bar.n)
            if not alive:
                return done
            time.sleep(POLL_SECONDS)


def rows_of(work: Pairs, scores: Mapping[Pair, TaskScore]) -> list[tuple[str, TaskScore]]:
    """Name of the model and score, in the order of the pairs."""
    return [(pair.name, scores[pair]) for pair in work.pairs if pair in scores]


def unless_failed(
    work: Pairs, scores: Mapping[Pair, TaskScore], failed: Mapping[Pair, str]
) -> list[tuple[str, TaskScore]]:
    """The rows of the table.

    Raises:
        EvaluationFailed: with them, if any pair failed; `failed` says why.
    """
    rows = rows_of(work, scores)
    if failed:
        reasons = "; ".join(f"{pair}: {reason} (see {work.error_file(pair)})" for pair, reason in failed.items())
        raise EvaluationFailed(
            rows, f"{len(failed)} of {len(work.pairs)} evaluations failed, the others are done: {reasons}"
        )
    return rows
