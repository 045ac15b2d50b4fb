"""Arguments of all `asda-hear` commands except `evaluate`. This module imports nothing that takes seconds."""

import argparse
from pathlib import Path

from asda_core.labelled.examples import TRAIN_VALID_TEST
from asda_core.system.command_line import output_folder
from asda_core.system.paths import PACKAGE_MODEL
from asda_core.system.workers import Shard, parse_shard
from asda_hear.names import MEAN_HEAD


def add_validate(parser: argparse.ArgumentParser) -> None:
    """Arguments of `asda-hear validate`."""
    parser.usage = "asda-hear validate [-h] [MODULE] [--model CHECKPOINT] [--device DEVICE]"
    parser.add_argument(
        "rest",
        nargs=argparse.REMAINDER,
        help="[MODULE] [--model CHECKPOINT] [--device DEVICE], as hear-validator takes them (default: asda_hear)",
    )
    parser.set_defaults(run="asda_hear.evaluate.validating:run_validate")


def add_tasks(parser: argparse.ArgumentParser) -> None:
    """Arguments of `asda-hear tasks`."""
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    build = commands.add_parser("build", help="from a folder per class, or from a CSV and a folder of audio")
    build.add_argument("name", help="name of the task, as in esc10")
    build.add_argument("audio", type=Path, help="folder of class folders, or with --csv the folder of its audio files")
    build.add_argument("--out", type=output_folder, required=True, help="folder of tasks")
    build.add_argument("--csv", type=Path, help="table with a header: a row per clip, or per event")
    build.add_argument("--file-column", default="filename", help="column of --csv with file names (default: filename)")
    build.add_argument("--label-column", default="label", help="column of --csv with labels (default: label)")
    build.add_argument(
        "--label-separator", default="", metavar="TEXT",
        help="separator of labels (default: ; or with --multilabel a comma if the column name is a plural, as labels)",
    )  # fmt: skip
    build.add_argument(
        "--split-column",
        default="",
        help="column with the fold, or train/valid/test by their usual names (default: draw a split)",
    )
    build.add_argument("--start-column", default="start", help="column of event starts, in seconds (default: start)")
    build.add_argument("--end-column", default="end", help="column of event ends, in seconds (default: end)")
    for part in TRAIN_VALID_TEST:
        build.add_argument(
            f"--{part}", default="", metavar="A,B", help=f"values of the split column that count as {part}"
        )
    build.add_argument("--folds", type=int, default=0, help="number of folds to draw (default: draw train/valid/test)")
    build.add_argument(
        "--kind",
        choices=["scene", "event"],
        default="scene",
        help="a label per clip, or per event with start and end (default: scene)",
    )
    build.add_argument("--multilabel", action="store_true", help="clips may have several labels, or none")
    build.add_argument("--seconds", type=float, help="crop or pad all clips to this length (default: as they are)")
    build.add_argument("--rate", type=int, nargs="+", default=[16_000], help="sampling rates in Hz (default: 16000)")
    build.add_argument(
        "--metric",
        nargs="+",
        default=[],
        help="heareval's metrics, the primary one first: top1_acc, mAP, aucroc, d_prime, pitch_acc, chroma_acc, "
        "event_onset_200ms_fms, segment_1s_er (default: depends on the kind of labels)",
    )
    build.set_defaults(run="asda_hear.evaluate.task_commands:run_build")
    check = commands.add_parser("check", help="check everything that heareval reads from tasks or folders of tasks")
    check.add_argument("folders", type=Path, nargs="+", help="task folders, or folders of tasks")
    check.set_defaults(run="asda_hear.evaluate.task_commands:run_check")
    resample = commands.add_parser("resample", help="add audio at another sampling rate")
    resample.add_argument("folder", type=Path, help="task folder")
    resample.add_argument("rate", type=int, help="sampling rate in Hz, as in 48000")
    resample.set_defaults(run="asda_hear.evaluate.task_commands:run_resample")


def add_ablate(parser: argparse.ArgumentParser) -> None:
    """Arguments of `asda-hear ablate`."""
    parser.add_argument(
        "plan", type=Path, help="YAML file, or the name of a plan of the package, as in ablations/mixers"
    )
    parser.add_argument("--out", type=output_folder, help="folder of the tables and the page (default: results/PLAN)")
    parser.add_argument(
        "--store", type=output_folder, help="folder of trainings and scores, which plans may share (default: --out)"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="list the cells, what is done, and the estimated time for the rest"
    )
    parser.add_argument(
        "--report", action="store_true", help="run nothing; write tables and page of the results so far"
    )
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes on this machine (default: 1)")
    parser.add_argument(
        "--shard", type=parse_shard, default=Shard(), metavar="I/N", help="run only shard I of N, counted from 1"
    )
    parser.add_argument("--submit", type=int, metavar="N", help="submit the plan to a cluster as N jobs (extra: slurm)")
    parser.add_argument("--cluster", default="slurm", choices=["slurm", "local"], help="cluster type (default: slurm)")
    parser.add_argument("--detach", action="store_true", help="with --submit: do not wait for the jobs")
    parser.add_argument(
        "--cluster-set", nargs="+", action="extend", default=[], metavar="KEY=VALUE",
        help="parameters of submitit, as in slurm_partition=gpu timeout_min=600 gpus_per_node=1",
    )  # fmt: skip
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.set_defaults(run="asda_hear.ablate:run_ablate")


def add_look(parser: argparse.ArgumentParser) -> None:
    """Arguments of `asda-hear look`."""
    parser.add_argument("audio", type=Path, metavar="AUDIO", help="one audio file")
    parser.add_argument(
        "--checkpoint",
        "--model",
        nargs="+",
        default=[PACKAGE_MODEL],
        metavar="[LABEL=]PATH",
        help="checkpoints to show side by side (default: the model of the package)",
    )
    parser.add_argument(
        "--layer", type=int, nargs="+", default=[], metavar="L", help="blocks, counted from 0 (default: the last)"
    )
    parser.add_argument(
        "--head",
        nargs="+",
        default=[MEAN_HEAD],
        metavar="H",
        help="heads, counted from 0, or mean (default: the mean over the heads)",
    )
    parser.add_argument(
        "--query",
        default="default",
        metavar="class|mean|SECONDS,HZ",
        help="query whose attention is shown: the class token, the mean over all tokens, or the patch at a time in the "
        "file and a frequency (default: class, or mean if there is no class token)",
    )
    parser.add_argument(
        "--at", type=float, default=0.0, metavar="SECONDS", help="start of the excerpt in the file (default: 0)"
    )
    parser.add_argument(
        "--snr",
        type=float,
        metavar="DB",
        help="signal-to-noise ratio in dB of noise added to half of the time steps (default: no noise)",
    )
    parser.add_argument("--noise", metavar="white|FILE", help="noise that --snr adds (default: white)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise (default: 0)")
    parser.add_argument(
        "--out", type=Path, default=Path("look.html"), help="file to write: .html, .png or .npz (default: look.html)"
    )
    parser.set_defaults(run="asda_hear.looking.commands:run_look")


def add_demo(parser: argparse.ArgumentParser) -> None:
    """Arguments of `asda-hear demo`."""
    parser.add_argument("--out", type=output_folder, default=Path("demo"), help="folder to write (default: demo)")
    parser.set_defaults(run="asda_hear.demo:run_command")
