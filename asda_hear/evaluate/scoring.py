"""Scoring of models x tasks: any number of processes each take a free pair, and none is done twice."""

from collections.abc import Callable
from functools import partial

from asda_core.system.files import disk_time
from asda_hear.api import load_model
from asda_hear.evaluate.compat import hear_tools
from asda_hear.evaluate.pairs import EvaluationSetup, Pair, rows_or_raise, score_rows
from asda_hear.evaluate.runner import Evaluation
from asda_hear.evaluate.scores import TaskScore
from asda_hear.work_queue import ItemFailure, attempt_locked, process_queue


def check_models(setup: EvaluationSetup) -> None:
    """Open every model, to check it.

    Raises:
        AsdaError: a model cannot be opened, or its options are invalid.
    """
    for model in dict.fromkeys(pair.model for pair in setup.pairs):
        load_model(model, **setup.options)


def score_pairs(
    setup: EvaluationSetup,
    progress: bool = True,
    on_model: Callable[[list[tuple[str, TaskScore]]], None] = lambda rows: None,
) -> list[tuple[str, TaskScore]]:
    """Score all pairs; other processes may do the same concurrently, each taking free pairs.

    Pairs held by others are waited for, and taken over if those die. A pair that fails does not stop the others.

    Args:
        setup: the pairs.
        progress: whether to show progress bars.
        on_model: called with all scores so far when a model is done.

    Returns:
        name of the model and score, in the order of the pairs.

    Raises:
        EvaluationFailed: some failed; all others are done.
    """
    since, scores, failed = disk_time(setup.out), dict[Pair, TaskScore](), dict[Pair, str]()
    current: Evaluation | None = None

    def attempt(pair: Pair) -> TaskScore | ItemFailure | None:
        nonlocal current
        if current is None or current.out.name != pair.name:  # one model at a time is in memory
            current = Evaluation(pair.model, setup.out / pair.name, setup.config, setup.options, progress)
        score = partial(current.score, pair.task)
        return attempt_locked(score, str(pair), setup.claim_file(pair), setup.error_file(pair), since)

    with hear_tools():
        for pair, outcome in process_queue(setup.pairs, attempt):
            if isinstance(outcome, ItemFailure):
                failed[pair] = outcome.error
                continue
            scores[pair] = outcome
            if pair is setup.pairs[-1] or setup.pairs[setup.pairs.index(pair) + 1].name != pair.name:
                on_model(score_rows(setup, scores))
    return rows_or_raise(setup, scores, failed)
