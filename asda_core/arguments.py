"""What the commands of `asda` take. Nothing here takes seconds to import, so that help and mistakes show at once."""

import argparse
import os
from pathlib import Path
from typing import get_args

from asda_core.command_line import output_folder
from asda_core.compute import AUTO, Precision
from asda_core.data.pack_options import PackFormat, PackOptions
from asda_core.labelled.examples import TEST, TRAIN_VALID_TEST
from asda_core.locating import PACKAGE_MODEL
from asda_core.workers import Shard, read_shard

CHECKPOINT_HELP = "of asda (file or run folder), released (.pt), or a Hugging Face folder"
SET_HELP = "change keys, as in --set steps=400 encoder.mixer=standard"
RECIPE_SET_HELP = "change keys of the recipe, as in --set epochs=10 optimizer.peak_lr=0.001"
SOURCES_HELP = "folders, manifests, tables, audio files or tar shards"
FORMAT_HELP = "of 16-bit mono: flac, or wav, which is larger and faster to read (default: flac)"
LABELLED_HELP = "SOURCE is what `asda finetune --data` takes; labels, splits and classes go into the pack"
JOBS_HELP = "threads (default: one for each core)"
PARTS = (*TRAIN_VALID_TEST, "all")
DEVICE_HELP = "cpu, cuda, cuda:1, ... (default: a GPU where there is one)"
ARRAY_SUFFIXES = (".npy", ".safetensors")
FAMILIES = ("mixer", "front-end", "objective", "adapter")
"""Of plugins, as a command line has them."""


def folder_or_array(text: str) -> Path:
    """What argparse calls for the place of embeddings: a folder, or a file in one."""
    path = Path(text)
    output_folder(str(path.parent) if path.suffix.lower() in ARRAY_SUFFIXES else text)
    return path


def add_pretrain(parser: argparse.ArgumentParser) -> None:
    """Arguments of `asda pretrain`."""
    parser.add_argument("config", type=Path, help="YAML, the name of one that comes with the package, or a checkpoint")
    parser.add_argument(
        "--data",
        nargs="+",
        default=[],
        help="folders, manifests, audio files or shards; stream:, pipe: (needed to train)",
    )
    parser.add_argument("--out", type=output_folder, help="run folder (default: runs/CONFIG-SIGNATURE)")
    parser.add_argument("--init", type=Path, help="checkpoint to begin with, ours or a released one (default: random)")
    parser.add_argument("--device", default=AUTO, help=DEVICE_HELP)
    add_changes(parser)
    parser.set_defaults(run="asda_core.pretrain.commands:run_pretrain")


def add_data(parser: argparse.ArgumentParser) -> None:
    """Arguments of `asda data`."""
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_pack(commands.add_parser("pack", help="audio to tar shards that train fast; goes on after a stop"))
    _add_stats(commands.add_parser("stats", help="mean and spread of the features, lengths, rates, what is broken"))


def _add_pack(parser: argparse.ArgumentParser) -> None:
    usual = PackOptions()
    parser.add_argument("sources", nargs="+", type=Path, metavar="SOURCE", help=SOURCES_HELP)
    parser.add_argument("--out", required=True, type=output_folder, metavar="FOLDER", help="where the shards go")
    parser.add_argument("--labelled", action="store_true", help=LABELLED_HELP)
    parser.add_argument("--rate", type=int, default=usual.rate, help="in Hz (default: 16000)")
    parser.add_argument("--format", choices=get_args(PackFormat), default=usual.format, help=FORMAT_HELP)
    parser.add_argument("--keep", action="store_true", help="the files as they are, instead of 16-bit mono")
    parser.add_argument("--seconds", type=float, help="cut longer files into equal pieces of at most so many seconds")
    parser.add_argument(
        "--shard-mebibytes",
        type=int,
        default=usual.shard_mebibytes,
        help=f"size of a shard (default: {usual.shard_mebibytes})",
    )
    parser.add_argument("--seed", type=int, default=usual.seed, help="of the order of the files")
    parser.add_argument(
        "--name", default=usual.name, help=f"of the shards, before their number (default: {usual.name})"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help=JOBS_HELP)
    parser.set_defaults(run="asda_core.data.commands:run_pack")


def _add_stats(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sources", nargs="+", type=Path, metavar="SOURCE", help=SOURCES_HELP)
    parser.add_argument("--config", type=Path, help="run whose front end is used (default: log_mel as published)")
    add_changes(parser)
    parser.add_argument("--sample", type=int, metavar="N", help="look at N files, drawn at random")
    parser.add_argument("--seed", type=int, default=1, help="of that draw")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help=JOBS_HELP)
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.set_defaults(run="asda_core.data.commands:run_stats")


def add_finetune(parser: argparse.ArgumentParser) -> None:
    """Arguments of `asda finetune`."""
    parser.add_argument("recipe", type=Path, help="YAML, or the name of a recipe of the package")
    parser.add_argument(
        "--checkpoint",
        required=True,
        nargs="+",
        metavar="[LABEL=]PATH",
        help="what to begin with: checkpoints (ours or released ones; {seed} in a path is the seed), or configs for "
        "random weights",
    )
    parser.add_argument(
        "--data", type=Path, help="labelled audio: folder, table, shards, AudioSet manifests, or a YAML that says more"
    )
    parser.add_argument(
        "--tasks", nargs="+", type=Path, default=[], help="with --continual: labelled audio, one task after the other"
    )
    parser.add_argument(
        "--continual", action="store_true", help="learn the tasks in turn: what is forgotten, by adapters and by full"
    )
    parser.add_argument("--out", type=output_folder, help="folder of the runs and tables (default: runs/RECIPE-DATA)")
    parser.add_argument(
        "--modes",
        nargs="+",
        default=[],
        help="full, linear, attentive, last_blocks=K, or adapters",
    )
    parser.add_argument("--folds", nargs="+", default=[], help="only these folds (default: all)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[], help="default: the recipe's")
    parser.add_argument("--device", default=AUTO, help=DEVICE_HELP)
    add_changes(parser, RECIPE_SET_HELP)
    parser.set_defaults(run="asda_core.finetune.commands:run_finetune")


def add_test(parser: argparse.ArgumentParser) -> None:
    """Arguments of `asda test`."""
    parser.add_argument("checkpoint", type=Path, help="fine-tuned: of asda (file or run folder), or released (.pt)")
    parser.add_argument("--data", required=True, type=Path, help="labelled audio, as of asda finetune")
    parser.add_argument("--part", choices=PARTS, default=TEST, help="which split; all takes every clip")
    parser.add_argument("--fold", help="of data with folds: the one to test")
    parser.add_argument(
        "--out", type=output_folder, help="folder for predictions, tables and pictures (default: runs/test-...)"
    )
    parser.add_argument(
        "--compat",
        choices=["default", "released"],
        default="default",
        help="released: leave clips out, and cut long ones, as the training of a released checkpoint did",
    )
    parser.add_argument("--device", default=AUTO, help=DEVICE_HELP)
    parser.set_defaults(run="asda_core.finetune.measuring:run_test")


def add_embed(parser: argparse.ArgumentParser) -> None:
    """Arguments of `asda embed`."""
    parser.add_argument("sources", nargs="+", type=Path, metavar="IN", help="folders, manifests or audio files")
    parser.add_argument(
        "--out", required=True, type=folder_or_array, help="folder; or FILE.npy, FILE.safetensors for one sound"
    )
    parser.add_argument(
        "--granularity",
        choices=["all", "frame", "utterance"],
        help="class token and patches (1 + N, D), patches (N, D) or the summary (D,); default: all, or frame where "
        "there is no class token",
    )
    parser.add_argument("--format", choices=["npy", "safetensors"], help="of the files in a folder (default: npy)")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes on this machine")
    parser.add_argument("--shard", type=read_shard, default=Shard(), metavar="I/N", help="do this part of N only")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    _add_listening(parser, "take each clip as it is", PACKAGE_MODEL)
    parser.set_defaults(run="asda_core.inference.commands:run_embed")


def add_classify(parser: argparse.ArgumentParser) -> None:
    """Arguments of `asda classify`."""
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="audio files or folders")
    parser.add_argument("--labels", type=Path, help="index,mid,name as AudioSet's class_labels_indices.csv, or names")
    parser.add_argument("--top", type=int, default=12, help="classes that are printed, the most probable first")
    parser.add_argument("--json", action="store_true", help="for programs: one object per file")
    _add_listening(parser, "fill to, or cut into windows of, the clips that it was trained on")
    parser.set_defaults(run="asda_core.inference.commands:run_classify")


def add_convert(parser: argparse.ArgumentParser) -> None:
    """Arguments of `asda convert`."""
    parser.add_argument("checkpoint", type=Path, help=CHECKPOINT_HELP)
    parser.add_argument("out", type=Path, metavar="OUT.safetensors")
    parser.add_argument("--weights", choices=["student", "teacher"], default="student")
    parser.set_defaults(run="asda_core.inference.commands:run_convert")


def _add_listening(parser: argparse.ArgumentParser, default: str, usual: str | None = None) -> None:
    needed = {"required": True} if usual is None else {"default": Path(usual)}
    shown = "" if usual is None else f" (default: {usual}, the model of the package)"
    parser.add_argument("--checkpoint", type=Path, help=CHECKPOINT_HELP + shown, **needed)
    parser.add_argument("--weights", choices=["student", "teacher"], default="student")
    parser.add_argument("--target-length", type=int, help=f"frames to cut or fill every clip to (default: {default})")
    parser.add_argument("--window-seconds", type=float, help="longer clips go through in windows of this length")
    parser.add_argument("--precision", choices=get_args(Precision), default="float32", help="of products")
    parser.add_argument(
        "--compat",
        choices=["default", "released"],
        help="default: fill clips with silence; released: fill them, and resample stereo, as the released code does "
        "(if not given: filled as in the training of the checkpoint, stereo averaged)",
    )
    parser.add_argument("--device", default=AUTO, help=DEVICE_HELP)


def add_new_plugin(parser: argparse.ArgumentParser) -> None:
    """Arguments of `asda new-plugin`."""
    parser.add_argument("name", metavar="NAME", help="what configs will say, as in linear or my-linear")
    parser.add_argument("--family", choices=FAMILIES, default="mixer", help="(default: mixer)")
    parser.add_argument("--into", type=output_folder, default=Path(), metavar="FOLDER", help="default: the current one")
    parser.set_defaults(run="asda_core.new_plugin:run_new_plugin")


def add_plugins(parser: argparse.ArgumentParser) -> None:
    """Arguments of `asda plugins`."""
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.add_argument(
        "--check", action="store_true", help="run the contract suite on each, and on all that fit together; minutes"
    )
    parser.set_defaults(run="asda_core.showing:run_plugins")


def add_show(parser: argparse.ArgumentParser) -> None:
    """Arguments of `asda show`."""
    parser.add_argument("config", type=Path, help="YAML of a run or a recipe, a name, or a checkpoint")
    add_changes(parser)
    parser.set_defaults(run="asda_core.showing:run_show")


def add_changes(parser: argparse.ArgumentParser, what: str = SET_HELP) -> None:
    """The argument `--set`, as `changes`."""
    parser.add_argument("--set", dest="changes", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help=what)
