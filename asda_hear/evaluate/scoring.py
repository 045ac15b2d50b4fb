"""Scoring of models x tasks: any number of processes each take a free pair, and none is done twice."""

from collections.abc import Callable
from functools import partial

from asda_core.system.files import disk_time
from asda_hear.api import load_model
from asda_hear.evaluate.compat import hear_tools
from asda_hear.evaluate.pairs import Pair, Pairs, rows_of, unless_failed
from asda_hear.evaluate.runner import Evaluation
from asda_hear.evaluate.scores import TaskScore
from asda_hear.work_queue import Failed, attempt_alone, shared_work


def open_all(work: Pairs) -> None:
    """Open every model, to check it.

    Raises:
        AsdaError: a model cannot be opened, or its options are invalid.
    """
    for model in dict.fromkeys(pair.model for pair in work.pairs):
        load_model(model, **work.options)


def score_pairs(
    work: Pairs, progress: bool = True, on_model: Callable[[list[tuple[str, TaskScore]]], None] = lambda rows: None
) -> list[tuple[str, TaskScore]]:
    """Score all pairs; other processes may do the same concurrently, each taking free pairs.

    Pairs held by others are waited for, and taken over if those die. A pair that fails does not stop the others.

    Args:
        work: the pairs.
        progress: whether to show progress bars.
        on_model: called with all scores so far when a model is done.

    Returns:
        name of the model and score, in the order of the pairs.

    Raises:
        EvaluationFailed: some failed; all others are done.
    """
    since, scores, failed = disk_time(work.out), dict[Pair, TaskScore](), dict[Pair, str]()
    current: Evaluation | None = None

    def attempt(pair: Pair) -> TaskScore | Failed | None:
        nonlocal current
        if current is None or current.out.name != pair.name:  # one model at a time is in memory
            current = Evaluation(pair.model, work.out / pair.name, work.config, work.options, progress)
        score = partial(current.score, pair.task)
        return attempt_alone(score, str(pair), work.claim_file(pair), work.error_file(pair), since)

    with hear_tools():
        for pair, outcome in shared_work(work.pairs, attempt):
            if isinstance(outcome, Failed):
                failed[pair] = outcome.why
                continue
            scores[pair] = outcome
            if pair is work.pairs[-1] or work.pairs[work.pairs.index(pair) + 1].name != pair.name:
                on_model(rows_of(work, scores))
    return unless_failed(work, scores, failed)
