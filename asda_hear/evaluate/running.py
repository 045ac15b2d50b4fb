"""What `asda-hear evaluate` does: pairs of models and tasks, in this process or in several, and the tables."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from asda_core.checkpoint import MODEL_FILE, STEP_FOLDERS
from asda_core.config_io import parsed_changes
from asda_core.errors import ConfigError
from asda_core.workers import Begun, ended_as_interrupt
from asda_hear.api import LOG_MEL, load_model
from asda_hear.evaluate.pairs import EvaluationFailed, Pair, Pairs, score_in_processes, score_pairs
from asda_hear.evaluate.scores import SCORE_FILE, TaskScore, read_task_score, to_markdown, write_tables
from asda_hear.evaluate.search import USUAL_SEED, EvaluationConfig
from asda_hear.evaluate.standing import write_standing


def evaluate_models(
    parsed: argparse.Namespace, tasks: Sequence[Path], config: EvaluationConfig, workers: Begun
) -> None:
    """Score all pairs and write the tables.

    Args:
        parsed: the command line.
        tasks: folders of tasks.
        config: the search.
        workers: processes that have begun to do the same; without any, this one does it.

    Raises:
        EvaluationFailed: pairs failed; the others are in the tables.
    """
    options = parsed_changes(parsed.option, "--option")
    names = [model_name(model, options, parsed.seed) for model in parsed.model]
    if len(set(names)) < len(names):
        raise ConfigError(f"two models would be called the same: {', '.join(names)}; give each its own folder.")
    work = Pairs(
        [Pair(model, name, task) for model, name in zip(parsed.model, names, strict=True) for task in tasks],
        parsed.out,
        config,
        options,
    )
    try:
        if workers.processes:
            rows = score_in_processes(work, workers)
        else:
            for model in parsed.model:  # all are opened now: a mistake shows before hours of evaluation
                load_model(model, **options)
            rows = score_here(work, parsed, names)
    except EvaluationFailed as failed:
        write_tables(failed.rows + scores_beside(parsed.out, names), parsed.out)
        raise
    if parsed.worker:
        return
    everything = rows + scores_beside(parsed.out, names)
    write_tables(everything, parsed.out)
    print(to_markdown(everything), end="")
    if standing := write_standing(everything, parsed.out):
        print(f"\n{standing}", end="")
    print(f"written to {parsed.out}/scores.md, .csv, .json", file=sys.stderr)


def score_here(work: Pairs, parsed: argparse.Namespace, names: Sequence[str]) -> list[tuple[str, TaskScore]]:
    """Score in this process; the tables grow as models are done."""
    if parsed.worker:
        with ended_as_interrupt():
            return score_pairs(work, progress=False)
    return score_pairs(work, True, lambda rows: write_tables(rows + scores_beside(parsed.out, names), parsed.out))


def scores_beside(out: Path, names: Sequence[str]) -> list[tuple[str, TaskScore]]:
    """Scores in a result folder of models that are not in this call."""
    folders = [folder for folder in sorted(out.glob("*/*")) if (folder / SCORE_FILE).is_file()]
    return [(folder.parent.name, read_task_score(folder)) for folder in folders if folder.parent.name not in names]


def model_name(model: str, options: dict[str, object], seed: int = USUAL_SEED) -> str:
    """Folder and row name of a model: what its path says, the options, and a seed that is not heareval's own."""
    if model in ("", LOG_MEL):
        stem = model or "asda_hear"
    else:
        path = Path(model).resolve()
        path = path.parent if path.name == MODEL_FILE else path.with_suffix("") if path.is_file() else path
        stem = f"{path.parent.name}-{path.name}" if path.match(STEP_FOLDERS) else path.name
    own = [] if seed == USUAL_SEED else [f"seed={seed}"]
    return "-".join([stem, *(f"{key}={value}" for key, value in sorted(options.items())), *own])
