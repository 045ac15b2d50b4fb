"""`asda-hear evaluate`: what is asked; `running` does it."""

import argparse
import os
from importlib import import_module
from pathlib import Path

from asda_core.errors import ConfigError
from asda_core.workers import begun
from asda_hear.evaluate.search import USUAL_SEED, EvaluationConfig, find_tasks

JOBS_FOLDER = ".jobs"
"""Logs of the processes, in the result folder."""


def add_evaluate(parser: argparse.ArgumentParser) -> None:
    """Arguments of `asda-hear evaluate`."""
    parser.add_argument("--tasks", type=Path, required=True, help="folder of HEAR tasks")
    parser.add_argument("--task", nargs="+", default=[], help="only these")
    parser.add_argument("--model", nargs="+", default=[""], help="checkpoints, run folders, configs, or log_mel")
    parser.add_argument(
        "--out", type=Path, default=Path("results/evaluate"), help="results; tables hold all its models"
    )
    parser.add_argument("--grid", choices=["default", "fast", "faster"], default="default", help="heareval's grids")
    parser.add_argument("--grid-points", type=int, default=8, help="of the predictor; HEAR's own is 8")
    parser.add_argument("--threads", type=int, default=1, help="scores change with it")
    parser.add_argument(
        "--seed", type=int, default=USUAL_SEED, help=f"of the predictors (heareval's own: {USUAL_SEED})"
    )
    parser.add_argument("--option", action="append", default=[], metavar="KEY=VALUE", help="of load_model")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes on this machine, --threads each")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.set_defaults(run=run_evaluate)


def run_evaluate(parsed: argparse.Namespace) -> None:
    """Score models on tasks. Other processes are begun first: they import what they need while this one does."""
    tasks = find_tasks(parsed.tasks, parsed.task)
    config = EvaluationConfig(parsed.grid, parsed.grid_points, parsed.threads, parsed.seed)
    if parsed.jobs < 1:
        raise ConfigError(f"--jobs must be at least 1, not {parsed.jobs}.")
    jobs = min(parsed.jobs, len(parsed.model) * len(tasks))
    command = ["asda_hear.cli", *parsed.given, "--jobs", "1", "--worker"]
    logs = [parsed.out / JOBS_FOLDER / f"{os.getpid()}-{number}.log" for number in range(1, jobs + 1)]
    with begun(command, logs if jobs > 1 else [], config.threads) as workers:
        import_module("asda_hear.evaluate.running").evaluate_models(parsed, tasks, config, workers)
