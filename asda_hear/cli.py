"""The command `asda-hear`: validate, tasks, evaluate, ablate, look, demo."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from asda_core import __version__
from asda_core.checkpoint import MODEL_FILE, STEP_FOLDERS
from asda_core.cli import run_command
from asda_core.config_io import parsed_changes
from asda_core.errors import ConfigError, TaskError
from asda_core.workers import ended_as_interrupt
from asda_hear.ablate import add_ablate
from asda_hear.api import LOG_MEL, load_model
from asda_hear.demo import run_demo
from asda_hear.evaluate.compat import validate
from asda_hear.evaluate.labels import Columns, assign_splits, clips_from_csv, clips_from_folders
from asda_hear.evaluate.pairs import EvaluationFailed, Pair, Pairs, score_in_processes, score_pairs
from asda_hear.evaluate.runner import USUAL_SEED, EvaluationConfig, find_tasks
from asda_hear.evaluate.scores import SCORE_FILE, TaskScore, read_task_score, to_markdown, write_tables
from asda_hear.evaluate.standing import write_standing
from asda_hear.evaluate.tasks import TRAIN_VALID_TEST, TaskConfig, build_task, check_task, resample_task
from asda_hear.looking.commands import add_look


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the console script."""
    return run_command(arguments, make_parser)


def make_parser() -> argparse.ArgumentParser:
    """The command line of `asda-hear`."""
    parser = argparse.ArgumentParser(prog="asda-hear", description="HEAR evaluation and ablation tables.")
    parser.add_argument("--version", action="version", version=f"asda-hear {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    validate = commands.add_parser("validate", help="hear-validator, without TensorFlow: asda_hear --model CHECKPOINT")
    validate.add_argument("rest", nargs=argparse.REMAINDER, help="arguments of hear-validator (default: asda_hear)")
    validate.set_defaults(run=run_validate)
    _add_tasks(commands.add_parser("tasks", help="build, check, resample HEAR-format tasks"))
    _add_evaluate(commands.add_parser("evaluate", help="score a model on HEAR tasks with heareval"))
    add_ablate(commands.add_parser("ablate", help="pre-train and evaluate every cell of a plan; one table"))
    add_look(commands.add_parser("look", help="attention maps on a sound: map 1, map 2, lambda, their difference"))
    demo = commands.add_parser("demo", help="the whole way on a synthetic corpus: minutes on a laptop, no download")
    demo.add_argument("--out", type=Path, default=Path("demo"))
    demo.set_defaults(run=lambda parsed: print(run_demo(parsed.out)))
    return parser


def _add_tasks(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    build = commands.add_parser("build", help="from a folder per class, or from a CSV and a folder of audio")
    build.add_argument("name", help="name of the task, as in esc10")
    build.add_argument("audio", type=Path, help="folder per class, or with --csv the folder of the files it names")
    build.add_argument("--out", type=Path, required=True, help="folder of tasks")
    build.add_argument("--csv", type=Path, help="table with a header")
    build.add_argument("--file-column", default="filename")
    build.add_argument("--label-column", default="label", help="several labels of a clip are separated by ;")
    build.add_argument("--split-column", default="", help="folds, or train/valid/test, or what --train ... name")
    build.add_argument("--start-column", default="start", help="of events, in seconds")
    build.add_argument("--end-column", default="end")
    for part in TRAIN_VALID_TEST:
        build.add_argument(f"--{part}", default="", metavar="A,B", help=f"values of the split column that are {part}")
    build.add_argument("--folds", type=int, default=0, help="draw so many folds (default: draw train/valid/test)")
    build.add_argument("--kind", choices=["scene", "event"], default="scene")
    build.add_argument("--multilabel", action="store_true")
    build.add_argument("--seconds", type=float, help="cut or fill all clips to this length (default: as they are)")
    build.add_argument("--rate", type=int, nargs="+", default=[16_000])
    build.add_argument("--metric", nargs="+", default=[], help="the primary one first")
    build.set_defaults(run=run_build)
    check = commands.add_parser("check", help="check all that heareval will read, of tasks or folders of tasks")
    check.add_argument("folders", type=Path, nargs="+")
    check.set_defaults(run=run_check)
    resample = commands.add_parser("resample", help="add audio at another rate")
    resample.add_argument("folder", type=Path)
    resample.add_argument("rate", type=int)
    resample.set_defaults(run=lambda parsed: print(resample_task(parsed.folder, parsed.rate)))


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
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


def run_validate(parsed: argparse.Namespace) -> None:
    """`asda-hear validate`: the tool's own entry point, with a stand-in for TensorFlow."""
    validate(parsed.rest or ["asda_hear"])


def run_build(parsed: argparse.Namespace) -> None:
    """`asda-hear tasks build`."""
    columns = Columns(
        parsed.file_column, parsed.label_column, parsed.split_column, parsed.start_column, parsed.end_column
    )
    if parsed.csv:
        clips = clips_from_csv(parsed.csv, parsed.audio, columns, parsed.kind)
    elif parsed.kind == "event":
        raise TaskError("events need a --csv with their start and end.")
    else:
        clips = clips_from_folders(parsed.audio)
    parts = {part: getattr(parsed, part).split(",") for part in TRAIN_VALID_TEST if getattr(parsed, part)}
    clips = assign_splits(clips, parts, parsed.folds)
    multilabel = parsed.multilabel or parsed.kind == "event"
    config = TaskConfig(
        name=parsed.name,
        embedding_type=parsed.kind,
        prediction_type="multilabel" if multilabel else "multiclass",
        clip_seconds=parsed.seconds,
        sample_rates=tuple(parsed.rate),
        evaluation=tuple(parsed.metric),
    )
    print(build_task(config, clips, parsed.out))


def run_check(parsed: argparse.Namespace) -> None:
    """`asda-hear tasks check`."""
    for given in parsed.folders:
        for folder in [given] if (given / "task_metadata.json").exists() else find_tasks(given):
            check_task(folder)
            print(f"{folder}: good")


def run_evaluate(parsed: argparse.Namespace) -> None:
    """`asda-hear evaluate`."""
    options = parsed_changes(parsed.option, "--option")
    tasks = find_tasks(parsed.tasks, parsed.task)
    config = EvaluationConfig(parsed.grid, parsed.grid_points, parsed.threads, parsed.seed)
    if parsed.jobs < 1:
        raise ConfigError(f"--jobs must be at least 1, not {parsed.jobs}.")
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
        if parsed.jobs > 1:
            rows = score_in_processes(work, parsed.given, min(parsed.jobs, len(work.pairs)))
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


if __name__ == "__main__":
    sys.exit(main())
