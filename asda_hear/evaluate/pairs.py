"""Models x tasks: any number of processes each take the pair that is free, and none is done twice."""

import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from tqdm import tqdm

from asda_core.errors import AsdaError
from asda_core.files import write_text
from asda_core.workers import Begun, Worker, tails
from asda_hear.evaluate.compat import hear_tools
from asda_hear.evaluate.identity import task_identity
from asda_hear.evaluate.runner import Evaluation
from asda_hear.evaluate.scores import TaskScore, read_task_score
from asda_hear.evaluate.search import EvaluationConfig

POLL_SECONDS = 0.5
"""How often a process looks whether a pair has become free, or is done."""


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

    def evaluation(self, pair: Pair, progress: bool = False) -> Evaluation:
        """What scores the model of a pair."""
        return Evaluation(pair.model, self.out / pair.name, self.config, self.options, progress)

    def error_file(self, pair: Pair) -> Path:
        """Where it says why a pair failed."""
        return self.out / pair.name / f"{pair.task.name}.error.txt"

    def claim_file(self, pair: Pair) -> Path:
        """The lock that a process holds while it does a pair; the system frees it when the process ends."""
        return self.out / pair.name / f".{pair.task.name}.claim"


def score_pairs(
    work: Pairs, progress: bool = True, on_model: Callable[[list[tuple[str, TaskScore]]], None] = lambda rows: None
) -> list[tuple[str, TaskScore]]:
    """Score all pairs; other processes may do the same at the same time, and take what is free.

    What others are doing is waited for, and taken up where they die. A pair that fails does not end the others.

    Args:
        work: the pairs.
        progress: whether to show bars.
        on_model: is called with all scores so far when a model is done.

    Returns:
        name of the model and score, in the order of the pairs.

    Raises:
        EvaluationFailed: some failed; all others are done.
    """
    since, scores, failed = time.time(), dict[Pair, TaskScore](), dict[Pair, str]()
    current: Evaluation | None = None
    with hear_tools():
        while left := [pair for pair in work.pairs if pair not in scores and pair not in failed]:
            for pair in left:
                if current is None or current.out.name != pair.name:  # one model at a time is in memory
                    current = work.evaluation(pair, progress)
                outcome = _try_pair(work, pair, current, since)
                if isinstance(outcome, TaskScore):
                    scores[pair] = outcome
                    if pair is work.pairs[-1] or work.pairs[work.pairs.index(pair) + 1].name != pair.name:
                        on_model(_rows(work, scores))
                elif outcome:
                    failed[pair] = outcome
            if len(left) == len(work.pairs) - len(scores) - len(failed):
                time.sleep(POLL_SECONDS)
    return _unless_failed(work, scores, failed)


def score_in_processes(work: Pairs, workers: Begun) -> list[tuple[str, TaskScore]]:
    """Wait for `score_pairs` in processes of this machine; Ctrl-C and SIGTERM stop all.

    Args:
        work: the pairs.
        workers: the processes.

    Raises:
        EvaluationFailed: pairs failed.
        AsdaError: the processes ended before all was done.
    """
    done = _wait(work, workers.processes)
    codes = [worker.returncode for worker in workers.processes]
    failed = {}
    for pair in work.pairs:
        file = work.error_file(pair)
        if pair not in done and file.exists() and file.stat().st_mtime > workers.since:
            failed[pair] = file.read_text().strip().splitlines()[-1]
    if left := [str(pair) for pair in work.pairs if pair not in done and pair not in failed]:
        raise AsdaError(
            f"left are {', '.join(left)}, and the processes have ended ({codes}); the same command goes on with them. "
            f"{tails(workers.logs)}"
        )
    scores = {pair: read_task_score(work.out / pair.name / pair.task.name) for pair in done}
    return _unless_failed(work, scores, failed)


def _try_pair(work: Pairs, pair: Pair, evaluation: Evaluation, since: float) -> TaskScore | str | None:
    """Its score; why it failed; None where another process is at it."""
    error_file = work.error_file(pair)
    error_file.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(work.claim_file(pair), timeout=0):
            if error_file.exists() and error_file.stat().st_mtime > since:  # another process has just tried
                return error_file.read_text().strip().splitlines()[-1]
            try:
                score = evaluation.score(pair.task)
            except Exception as error:  # one pair must not take the others down
                write_text(error_file, traceback.format_exc())
                print(f"failed: {pair}: {type(error).__name__}: {error}", file=sys.stderr)
                return f"{type(error).__name__}: {error}"
            error_file.unlink(missing_ok=True)
            return score
    except Timeout:
        return None


def _wait(work: Pairs, workers: Sequence[Worker]) -> list[Pair]:
    """A bar of what is done, until nothing runs any more; returns the pairs that are."""
    evaluations = {pair.name: work.evaluation(pair) for pair in work.pairs}
    identities = {pair.task: task_identity(pair.task) for pair in work.pairs}
    with tqdm(total=len(work.pairs), desc="evaluate", unit="pair") as bar:
        while True:
            alive = any(worker.poll() is None for worker in workers)
            done = [p for p in work.pairs if evaluations[p.name].is_done(p.task, identities[p.task])]
            bar.update(len(done) - bar.n)
            if not alive:
                return done
            time.sleep(POLL_SECONDS)


def _rows(work: Pairs, scores: Mapping[Pair, TaskScore]) -> list[tuple[str, TaskScore]]:
    return [(pair.name, scores[pair]) for pair in work.pairs if pair in scores]


def _unless_failed(
    work: Pairs, scores: Mapping[Pair, TaskScore], failed: Mapping[Pair, str]
) -> list[tuple[str, TaskScore]]:
    """The rows of the table."""
    rows = _rows(work, scores)
    if failed:
        reasons = "; ".join(f"{pair}: {reason} (see {work.error_file(pair)})" for pair, reason in failed.items())
        raise EvaluationFailed(
            rows, f"{len(failed)} of {len(work.pairs)} evaluations failed, the others are done: {reasons}"
        )
    return rows
