"""`asda-hear tasks`: build, check, resample tasks in HEAR's format."""

import argparse
from pathlib import Path

from asda_core.errors import TaskError
from asda_hear.evaluate.labels import Columns, assign_splits, clips_from_csv, clips_from_folders
from asda_hear.evaluate.search import find_tasks
from asda_hear.evaluate.tasks import TRAIN_VALID_TEST, TaskConfig, build_task, check_task, resample_task


def add_tasks(parser: argparse.ArgumentParser) -> None:
    """Arguments of `asda-hear tasks`."""
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
