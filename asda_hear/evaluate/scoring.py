"""Models x tasks: any number of processes each take the pair that is free, and none is done twice."""

import sys
import time
from collections.abc import Callable

from filelock import Timeout

from asda_core.claiming import locked
from asda_core.files import disk_time
from asda_hear.api import load_model
from asda_hear.evaluate.compat import hear_tools
from asda_hear.evaluate.pairs import POLL_SECONDS, Pair, Pairs, rows_of, unless_failed
from asda_hear.evaluate.runner import Evaluation
from asda_hear.evaluate.scores import TaskScore
from asda_hear.failures import read_failure, write_failure


def open_all(work: Pairs) -> None:
    """Open every model.

    Raises:
        AsdaError: one of them cannot be, or its options are wrong.
    """
    for model in dict.fromkeys(pair.model for pair in work.pairs):
        load_model(model, **work.options)


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
    since, scores, failed = disk_time(work.out), dict[Pair, TaskScore](), dict[Pair, str]()
    current: Evaluation | None = None
    with hear_tools():
        while left := [pair for pair in work.pairs if pair not in scores and pair not in failed]:
            for pair in left:
                if current is None or current.out.name != pair.name:  # one model at a time is in memory
                    current = Evaluation(pair.model, work.out / pair.name, work.config, work.options, progress)
                outcome = _try_pair(work, pair, current, since)
                if isinstance(outcome, TaskScore):
                    scores[pair] = outcome
                    if pair is work.pairs[-1] or work.pairs[work.pairs.index(pair) + 1].name != pair.name:
                        on_model(rows_of(work, scores))
                elif outcome:
                    failed[pair] = outcome
            if len(left) == len(work.pairs) - len(scores) - len(failed):
                time.sleep(POLL_SECONDS)
    return unless_failed(work, scores, failed)


def _try_pair(work: Pairs, pair: Pair, evaluation: Evaluation, since: float) -> TaskScore | str | None:
    """Its score; why it failed; None where another process is at it."""
    error_file = work.error_file(pair)
    error_file.parent.mkdir(parents=True, exist_ok=True)
    try:
        with locked(work.claim_file(pair), timeout=0):
            if why := read_failure(error_file, since):  # another process has just tried
                return why
            try:
                score = evaluation.score(pair.task)
            except Exception as error:  # one pair must not take the others down
                told = write_failure(error_file, error)
                print(f"failed: {pair}: {told}", file=sys.stderr)
                return told
            error_file.unlink(missing_ok=True)
            return score
    except Timeout:
        return None
