"""Arguments of the commands of `asda`. All imports here are fast, so that help and usage errors appear at once."""

import argparse
import os
from pathlib import Path
from typing import get_args

from asda_core.audio_files.pack_options import PackFormat, PackOptions
from asda_core.labelled.examples import TEST, TRAIN_VALID_TEST
from asda_core.settings.compute import AUTO, Precision
from asda_core.system.command_line import output_folder
from asda_core.system.paths import ARRAY_FORMATS, PACKAGE_MODEL, is_array_file
from asda_core.system.workers import Shard, parse_shard

CHECKPOINT_HELP = "checkpoint file or run folder of asda, released checkpoint (.pt, .pth), or Hugging Face folder"
SET_HELP = "override keys, as in --set steps=400 encoder.mixer=standard"
CONFIG_HELP = (
    "YAML file, checkpoint, or a name: asda_tiny, asda_small, asda_base, eat_base, eat_large, ssast_base, ssamba_tiny, "
    "mfcc_gram"
)
RECIPE_HELP = (
    "YAML file, or a name: finetune/tiny, finetune/tiny_continual, finetune/asda_esc50 (as20k, as2m, spcv2), "
    "finetune/eat_..., finetune/ssast_..., finetune/aat_..., finetune/aicl"
)
WEIGHTS_HELP = "which network of a pre-training checkpoint (default: student)"
RECIPE_SET_HELP = "override keys of the recipe, as in --set epochs=10 optimizer.peak_lr=0.001"
SOURCES_HELP = "folders, manifests, tables, audio files or tar shards"
FORMAT_HELP = "16-bit mono flac, or wav: larger, and faster to read (default: flac)"
LABELLED_HELP = "SOURCE is labelled, as for `asda finetune --data`: pack labels, splits and classes too"
JOBS_HELP = "threads (default: one for each core)"
PARTS = (*TRAIN_VALID_TEST, "all")
DEVICE_HELP = "cpu, cuda, cuda:1, ... (default: a GPU where there is one)"
FAMILIES = ("mixer", "front-end", "objective", "adapter")
"""Families of plugins, as written on a command line."""


def folder_or_array(text: str) -> Path:
    """Return the output path of embeddings, as an argparse type: a folder, or a file in one."""
    path = Path(text)
    output_folder(str(path.parent) if is_array_file(path) else text)
    return path


def add_pretrain(parser: argparse.ArgumentParser) -> None:
    """Arguments of `asda pretrain`."""
    parser.add_argument("config", type=Path, help=CONFIG_HELP)
    parser.add_argument(
        "--data",
        nargs="+",
        default=[],
        help="folders, manifests, tables, audio files, tar shards, or streams of shards (stream:..., pipe:...); needed "
        "unless steps is 0",
    )
    parser.add_argument("--out", type=output_folder, help="run folder (default: runs/CONFIG-SIGNATURE)")
    parser.add_argument("--init", type=Path, help="checkpoint to initialise the weights from (default: random weights)")
    parser.add_argument("--device", default=AUTO, help=DEVICE_HELP)
    add_changes(parser)
    parser.set_defaults(run="asda_core.commands.pretrain:run_pretrain")


def add_data(parser: argparse.ArgumentParser) -> None:
    """Arguments of `asda data`."""
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_pack(
        commands.add_parser("pack", help="pack audio into tar shards that train fast; can be stopped and resumed")
    )
    _add_stats(
        commands.add_parser(
            "stats", help="mean and standard deviation of the features, lengths, sampling rates, broken files"
        )
    )


def _add_pack(parser: argparse.ArgumentParser) -> None:
    defaults = PackOptions()
    parser.add_argument("sources", nargs="+", type=Path, metavar="SOURCE", help=SOURCES_HELP)
    parser.add_argument("--out", required=True, type=output_folder, metavar="FOLDER", help="where the shards go")
    parser.add_argument("--labelled", action="store_true", help=LABELLED_HELP)
    parser.add_argument("--rate", type=int, default=defaults.rate, help="sampling rate in Hz (default: 16000)")
    parser.add_argument("--format", choices=get_args(PackFormat), default=defaults.format, help=FORMAT_HELP)
    parser.add_argument(
        "--keep", action="store_true", help="keep files as they are instead of converting them to 16-bit mono"
    )
    parser.add_argument("--seconds", type=float, help="cut longer files into equal pieces of at most this length")
    parser.add_argument(
        "--shard-mebibytes",
        type=int,
        default=defaults.shard_mebibytes,
        help=f"size of a shard in MiB (default: {defaults.shard_mebibytes})",
    )
    parser.add_argument(
        "--seed", type=int, default=defaults.seed, help=f"seed of the shuffle of files (default: {defaults.seed})"
    )
    parser.add_argument(
        "--name", default=defaults.name, help=f"name of the shards, before their number (default: {defaults.name})"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help=JOBS_HELP)
    parser.set_defaults(run="asda_core.commands.data:run_pack")


def _add_stats(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sources", nargs="+", type=Path, metavar="SOURCE", help=SOURCES_HELP)
    parser.add_argument("--config", type=Path, help="config whose front end is used (default: log_mel as published)")
    add_changes(parser, "override keys of the config, as in --set front_end.options.num_bins=64")
    parser.add_argument("--sample", type=int, metavar="N", help="use a random sample of N files (default: all)")
    parser.add_argument("--seed", type=int, default=1, help="seed of --sample (default: 1)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help=JOBS_HELP)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run="asda_core.commands.data:run_stats")


def add_finetune(parser: argparse.ArgumentParser) -> None:
    """Arguments of `asda finetune`."""
    parser.add_argument("recipe", type=Path, help=RECIPE_HELP)
    parser.add_argument(
        "--checkpoint",
        required=True,
        nargs="+",
        metavar="[LABEL=]PATH",
        help="models to fine-tune: checkpoints ({seed} in a path becomes the seed), or configs for random weights",
    )
    parser.add_argument(
        "--data",
        type=Path,
        help="labelled audio: folder per class, table, shards, AudioSet manifests, or a YAML description of the data",
    )
    parser.add_argument(
        "--tasks", nargs="+", type=Path, default=[], help="with --continual: labelled audio of each task, in order"
    )
    parser.add_argument(
        "--continual", action="store_true", help="train on --tasks one after the other and report forgetting"
    )
    parser.add_argument(
        "--out",
        type=output_folder,
        help="folder of the runs and tables (default: runs/RECIPE-DATA-SIGNATURE)",
    )
    parser.add_argument(
        "--modes",
        nargs="+",
        default=[],
        help="full, linear, attentive, last_blocks=K (the top K blocks), or adapters by name (default: the mode of the "
        "recipe)",
    )
    parser.add_argument("--folds", nargs="+", default=[], help="only these folds (default: all)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[], help="(default: the seed of the recipe)")
    parser.add_argument("--device", default=AUTO, help=DEVICE_HELP)
    add_changes(parser, RECIPE_SET_HELP)
    parser.set_defaults(run="asda_core.commands.finetune:run_finetune")


def add_test(parser: argparse.ArgumentParser) -> None:
    """Arguments of `asda test`."""
    parser.add_argument(
        "checkpoint", type=Path, help="fine-tuned checkpoint of asda (file or run folder), or released (.pt)"
    )
    parser.add_argument("--data", required=True, type=Path, help="labelled audio, as for asda finetune")
    parser.add_argument(
        "--part", choices=PARTS, default=TEST, help=f"split to score; all: every clip (default: {TEST})"
    )
    parser.add_argument("--fold", help="fold to score, for data with folds")
    parser.add_argument(
        "--out", type=output_folder, help="folder for predictions, tables and pictures (default: runs/test-...)"
    )
    parser.add_argument(
        "--compat",
        choices=["default", "released"],
        default="default",
        help="released: drop short clips and crop long ones as the released code does (default: default)",
    )
    parser.add_argument("--device", default=AUTO, help=DEVICE_HELP)
    parser.set_defaults(run="asda_core.commands.test:run_test")


def add_embed(parser: argparse.ArgumentParser) -> None:
    """Arguments of `asda embed`."""
    parser.add_argument("sources", nargs="+", type=Path, metavar="IN", help="folders, manifests or audio files")
    parser.add_argument(
        "--out", required=True, type=folder_or_array, help="folder; or FILE.npy, FILE.safetensors for one sound"
    )
    parser.add_argument(
        "--granularity",
        choices=["all", "frame", "utterance"],
        help="all: class token and patches, (1 + N, D); frame: a vector per patch, (N, D); utterance: the class token, "
        "or the mean of the patches where there is none, (D,) (default: all, or frame where there is no class token)",
    )
    parser.add_argument("--format", choices=ARRAY_FORMATS, help="file format in a folder (default: npy)")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes on this machine (default: 1)")
    parser.add_argument(
        "--shard",
        type=parse_shard,
        default=Shard(),
        metavar="I/N",
        help="process only part I of N of the files, counted from 1",
    )
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    _add_inference(
        parser, "each clip as it is", "one pass up to 768 time steps, then as long as the training clips", PACKAGE_MODEL
    )
    parser.set_defaults(run="asda_core.commands.inference:run_embed")


def add_classify(parser: argparse.ArgumentParser) -> None:
    """Arguments of `asda classify`."""
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="audio files or folders")
    parser.add_argument(
        "--labels",
        type=Path,
        help="class names: CSV index,mid,display_name as AudioSet's, or one name per line (default: the checkpoint's)",
    )
    parser.add_argument("--top", type=int, default=12, help="number of classes printed (default: 12)")
    parser.add_argument("--json", action="store_true", help="print one JSON object per file")
    _add_inference(parser, "pad to, or window by, the length of the training clips", "length of the training clips")
    parser.set_defaults(run="asda_core.commands.inference:run_classify")


def add_convert(parser: argparse.ArgumentParser) -> None:
    """Arguments of `asda convert`."""
    parser.add_argument("checkpoint", type=Path, help=CHECKPOINT_HELP)
    parser.add_argument("out", type=Path, metavar="OUT.safetensors", help="file to write")
    parser.add_argument("--weights", choices=["student", "teacher"], default="student", help=WEIGHTS_HELP)
    parser.set_defaults(run="asda_core.commands.inference:run_convert")


def _add_inference(
    parser: argparse.ArgumentParser, length_default: str, window_default: str, default_checkpoint: str | None = None
) -> None:
    requirement = {"required": True} if default_checkpoint is None else {"default": Path(default_checkpoint)}
    default_note = "" if default_checkpoint is None else f" (default: {default_checkpoint}, the model of the package)"
    parser.add_argument("--checkpoint", type=Path, help=CHECKPOINT_HELP + default_note, **requirement)
    parser.add_argument("--weights", choices=["student", "teacher"], default="student", help=WEIGHTS_HELP)
    parser.add_argument(
        "--target-length",
        type=int,
        metavar="FRAMES",
        help=f"crop or pad every clip to this many spectrogram frames, e.g. 1024 (10.24 s) (default: {length_default})",
    )
    parser.add_argument(
        "--window-seconds",
        type=float,
        help=f"encode longer clips in windows of this length (default: {window_default})",
    )
    parser.add_argument(
        "--precision",
        choices=get_args(Precision),
        default="float32",
        help="precision of matrix products (default: float32)",
    )
    parser.add_argument(
        "--compat",
        choices=["default", "released"],
        help="default: pad clips with silence; released: pad, and resample stereo, as the released code does (if not "
        "given: pad as in the training of the checkpoint, average stereo)",
    )
    parser.add_argument("--device", default=AUTO, help=DEVICE_HELP)


def add_new_plugin(parser: argparse.ArgumentParser) -> None:
    """Arguments of `asda new-plugin`."""
    parser.add_argument("name", metavar="NAME", help="name of the plugin in configs, as in linear or my-linear")
    parser.add_argument("--family", choices=FAMILIES, default="mixer", help="family of the plugin (default: mixer)")
    parser.add_argument(
        "--into", type=output_folder, default=Path(), metavar="FOLDER", help="(default: the current folder)"
    )
    parser.set_defaults(run="asda_core.commands.new_plugin:run_new_plugin")


def add_plugins(parser: argparse.ArgumentParser) -> None:
    """Arguments of `asda plugins`."""
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--check", action="store_true", help="run the contract suite on each and on all combinations: 1 to 2 minutes"
    )
    parser.set_defaults(run="asda_core.commands.plugins:run_plugins")


def add_show(parser: argparse.ArgumentParser) -> None:
    """Arguments of `asda show`."""
    parser.add_argument("config", type=Path, help=f"{CONFIG_HELP}; or a recipe")
    add_changes(parser)
    parser.set_defaults(run="asda_core.commands.plugins:run_show")


def add_changes(parser: argparse.ArgumentParser, help_text: str = SET_HELP) -> None:
    """Add the argument `--set`, parsed into `changes`."""
    parser.add_argument(
        "--set", dest="changes", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help=help_text
    )
