"""The command `asda-hear evaluate`. Nothing here takes seconds to import, so that `--jobs` processes start at once."""

import argparse
import functools
import json
import math
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path

from asda_core.config_io import parsed_changes
from asda_core.errors import ConfigError, TaskError
from asda_core.system.command_line import output_folder
from asda_core.system.files import read_json, write_text
from asda_core.system.locks import hold_lock
from asda_core.system.paths import is_config_file, labelled_path, model_name
from asda_core.system.workers import signals_as_interrupt
from asda_hear.evaluate.identity import (
    SEARCH_STAMP,
    search_stamp,
    stored_identity,
    task_identity,
    weights_identity,
)
from asda_hear.evaluate.pairs import EvaluationFailed, EvaluationSetup, Pair, score_in_processes
from asda_hear.evaluate.scores import (
    SCORE_FILE,
    TABLES_LOCK,
    TaskScore,
    read_task_score,
    to_markdown,
    write_tables,
)
from asda_hear.evaluate.standing import write_standing
from asda_hear.evaluate.task_checks import DEFAULT_SEED, EvaluationConfig, find_tasks
from asda_hear.model_paths import find_model
from asda_hear.names import LOG_MEL

OPTION_HELP = "options of load_model, as in scene_pooling=statistics (docs/configuration.md lists them)"
MODEL_NOTE = "model.json"
"""File in the folder of a model that records its path, or `LOG_MEL`."""


def add_evaluate(parser: argparse.ArgumentParser) -> None:
    """Arguments of `asda-hear evaluate`."""
    parser.add_argument(
        "--tasks", type=Path, required=True, help="folder of HEAR tasks: a folder per task, or one task"
    )
    parser.add_argument("--task", nargs="+", default=[], help="names of the tasks to evaluate (default: all)")
    parser.add_argument(
        "--model", "--checkpoint", nargs="+", default=[""], metavar="[LABEL=]MODEL",
        help="checkpoints, run folders, configs for random weights (a file, or a name as in asda_base), or log_mel, "
        "the baseline (default: the model of the package)",
    )  # fmt: skip
    parser.add_argument(
        "--out",
        type=output_folder,
        default=Path("results/evaluate"),
        help="results folder; its tables list every model scored there with the same settings (default: "
        "results/evaluate)",
    )
    parser.add_argument(
        "--grid",
        choices=["default", "fast", "faster"],
        default="default",
        help="heareval's search: at most 500, 50 or 10 epochs per predictor (default: default)",
    )
    parser.add_argument(
        "--grid-points", type=int, default=8, help="hyperparameter settings tried per task (default: 8, as HEAR)"
    )
    parser.add_argument(
        "--threads", type=int, default=1, help="torch threads per process; scores depend on it (default: 1)"
    )
    parser.add_argument(
        "--seed", type=int, default=DEFAULT_SEED, help=f"seed of the predictors (default: {DEFAULT_SEED}, as heareval)"
    )
    parser.add_argument("--option", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help=OPTION_HELP)
    parser.add_argument(
        "--jobs", type=int, default=1, metavar="N", help="processes on this machine, --threads each (default: 1)"
    )
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.set_defaults(run="asda_hear.evaluate.commands:run_evaluate")


def run_evaluate(parsed: argparse.Namespace) -> None:
    """Score all pairs of models and tasks and write the tables."""
    options = parsed_changes(parsed.option, "--option")
    tasks = find_tasks(parsed.tasks, parsed.task)
    config = EvaluationConfig(parsed.grid, parsed.grid_points, parsed.threads, parsed.seed)
    if parsed.jobs < 1:
        raise ConfigError(f"--jobs must be at least 1, not {parsed.jobs}.")
    models = named_models(parsed.model, options, parsed.seed)
    setup = EvaluationSetup(
        [Pair(model, name, task) for name, model in models.items() for task in tasks], parsed.out, config, options
    )
    if not parsed.worker:
        claim_names(models, parsed.out)
    try:
        if parsed.jobs > 1:
            rows = score_in_processes(setup, parsed.given, min(parsed.jobs, len(setup.pairs)))
        else:
            rows = score_serially(setup, parsed)
    except EvaluationFailed as failed:
        write_tables(failed.results + comparable_scores(setup, warn=not parsed.worker), parsed.out)
        raise
    if parsed.worker:
        return
    everything = rows + comparable_scores(setup, warn=True)
    write_tables(everything, parsed.out)
    print(to_markdown(everything), end="")
    for name, score in everything:
        if math.isnan(score.score):
            problem = f"{name} on {score.task}: {score.metric} is NaN, undefined for the labels of this task"
            print(f"warning: {problem} (see `asda-hear tasks check`).", file=sys.stderr)
    if standing := write_standing(everything, parsed.out):
        print(f"\n{standing}", end="")
    print(f"written to {parsed.out}/scores.md, .csv, .json", file=sys.stderr)


def score_serially(setup: EvaluationSetup, parsed: argparse.Namespace) -> list[tuple[str, TaskScore]]:
    """Score in this process; the tables grow as models are done. Slow modules are imported only here."""
    scoring = import_module("asda_hear.evaluate.scoring")
    scoring.check_models(setup)  # a mistake shows before hours of evaluation
    rows: list[tuple[str, TaskScore]]
    if parsed.worker:
        with signals_as_interrupt():
            rows = scoring.score_pairs(setup, progress=False)
    else:
        rows = scoring.score_pairs(setup, True, lambda rows: write_tables(rows + comparable_scores(setup), parsed.out))
    return rows


def comparable_scores(setup: EvaluationSetup, warn: bool = False) -> list[tuple[str, TaskScore]]:
    """Return the scores of other pairs in the result folder that are comparable with those of this call.

    Args:
        setup: the pairs of this call.
        warn: whether to report on stderr what is excluded, and why.
    """
    reason_of = ScoreFilter(setup).rejection_reason
    own_folders = {setup.folder(pair) for pair in setup.pairs}
    rows, excluded = [], []
    for folder in (file.parent for file in sorted(setup.out.glob(f"*/*/{SCORE_FILE}"))):
        if folder in own_folders:
            continue
        name = folder.parent.name
        if reason := reason_of(folder):
            excluded.append(f"{name} on {folder.name} ({reason})")
            continue
        try:
            rows.append((name, read_task_score(folder)))
        except TaskError as error:
            excluded.append(f"{name} on {folder.name} ({error})")
    if warn and excluded:
        print(f"warning: excluded from the tables: {'; '.join(excluded)}", file=sys.stderr)
    return rows


class ScoreFilter:
    """Filter of scores of other calls: keeps those that are comparable with this one."""

    def __init__(self, setup: EvaluationSetup) -> None:
        # without the seed, which is part of a row's name
        self.search = {key: value for key, value in search_stamp(setup.config).items() if key != "seed"}
        self.tasks = {pair.task.name: pair.task for pair in setup.pairs}
        self.models = {pair.name: pair.model for pair in setup.pairs}
        self.identity = functools.cache(task_identity)

    def rejection_reason(self, folder: Path) -> str:
        """Return why scores are not comparable with those of this call (search, task or model); "" if they are."""
        stamp = read_json(folder / SEARCH_STAMP)
        if not isinstance(stamp, dict):
            return f"unfinished, or its {SEARCH_STAMP} is damaged"
        differing = [
            f"{key} {stamp.get(key)}, not {value}" for key, value in self.search.items() if stamp.get(key) != value
        ]
        if differing:
            return ", ".join(differing)
        task = self.tasks.get(folder.name)
        if task is not None and stamp.get("task") != stored_identity(folder, task, self.identity(task)):
            return "the task has changed since"
        model = self.models.get(folder.parent.name)
        if model is not None and stamp.get("weights") != weights_identity(model):
            return "the model has changed since"
        return ""


def named_models(arguments: Sequence[str], options: dict[str, object], seed: int = DEFAULT_SEED) -> dict[str, str]:
    """Folder and row name of each model -> argument of `load_model`.

    Raises:
        ConfigError: two models would have the same name, or a label cannot be a folder name.
    """
    models: dict[str, str] = {}
    for text in arguments:
        label, path = labelled_path("--model", text)
        if label.startswith(".") or set(label) & set("/\\"):
            raise ConfigError(f"--model {text!r}: {label!r} cannot be a label, since labels are folder names.")
        name = row_name(path, options, seed, label)
        if name in models:
            raise ConfigError(
                f"{models[name]!r} and {path!r} would both be named {name!r}: give one a different label, as in "
                f"other={path}."
            )
        models[name] = path
    return models


def claim_names(models: Mapping[str, str], out: Path) -> None:
    """Record which model each name stands for, one process at a time, and report those with random weights.

    Raises:
        ConfigError: there are scores of another, still existing model of that name, which would be lost.
    """
    out.mkdir(parents=True, exist_ok=True)
    with hold_lock(out / TABLES_LOCK):
        for name, model in models.items():
            _claim_name(name, model, out)


def _claim_name(name: str, model: str, out: Path) -> None:
    path = Path(LOG_MEL) if model == LOG_MEL else find_model(model)
    if is_config_file(path):
        print(f"{name} is a config: its weights are random, initialised from its seed.", file=sys.stderr)
    folder, current = out / name, model if model == LOG_MEL else str(path.resolve())
    previous = _recorded_model(folder) or current
    exists = previous == LOG_MEL or Path(previous).exists()
    if previous != current and exists and any(folder.glob(f"*/{SCORE_FILE}")):
        raise ConfigError(
            f"{folder} holds the scores of {previous}, which those of {current} would overwrite: give the "
            f"model another label, as in other={model}, or use another --out."
        )
    folder.mkdir(parents=True, exist_ok=True)
    note = {"model": current}
    if read_json(folder / MODEL_NOTE) != note:
        write_text(folder / MODEL_NOTE, json.dumps(note))


def _recorded_model(folder: Path) -> str:
    """Path of the model that the scores in a folder belong to, or `LOG_MEL`; "" if unknown."""
    note = read_json(folder / MODEL_NOTE)
    if isinstance(note, dict):
        return str(note.get("model", ""))
    search_stamps = [read_json(file) for file in folder.glob(f"*/{SEARCH_STAMP}")]
    baseline = any(isinstance(stamp, dict) and stamp.get("weights") == LOG_MEL for stamp in search_stamps)
    return LOG_MEL if baseline else ""  # earlier versions did not record the baseline


def row_name(model: str, options: dict[str, object], seed: int = DEFAULT_SEED, label: str = "") -> str:
    """Return the folder and row name of a model: its label or path, its options, a seed other than heareval's."""
    if label:
        stem = label
    elif model in ("", LOG_MEL):
        stem = model or "asda_hear"
    else:
        stem = model_name(model)
    seed_part = [] if seed == DEFAULT_SEED else [f"seed={seed}"]
    return "-".join([stem, *(f"{key}={value}" for key, value in sorted(options.items())), *seed_part])
