"""`asda embed`, `asda classify` and `asda convert`."""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import get_args

import torch

from asda_core.audio import find_audio
from asda_core.catalog import installed_catalog
from asda_core.checkpoint import Checkpoint, load_classifier, load_encoder, metadata_of, write_model
from asda_core.compute import Precision
from asda_core.config import Padding
from asda_core.devices import usable_device
from asda_core.errors import AudioError, CheckpointError, ConfigError
from asda_core.files import file_digest
from asda_core.inference.classifying import class_names, probabilities, read_labels
from asda_core.inference.embedding import embed_files, open_sound, output_names
from asda_core.inference.indexing import EmbedJob
from asda_core.inference.listening import Listener, ListenOptions, as_trained
from asda_core.inference.many import embed_in_processes
from asda_core.official.reading import read_model
from asda_core.workers import Shard, read_shard

FILLED: dict[str, Padding] = {"default": "silence", "released": "features"}
NO_FORMATS = ("npz", "pt", "pth", "h5", "hdf5", "csv", "json", "parquet")
"""Suffixes of files that an output cannot be, and no folder is likely to have."""
CHECKPOINT_HELP = "of asda (file or run folder), released (.pt), or a Hugging Face folder"


def add_embed(parser: argparse.ArgumentParser) -> None:
    """Arguments of `asda embed`."""
    parser.add_argument("sources", nargs="+", type=Path, metavar="IN", help="folders, manifests or audio files")
    parser.add_argument("--out", required=True, type=Path, help="folder; or FILE.npy, FILE.safetensors for one sound")
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
    _add_listening(parser, "take each clip as it is")
    parser.set_defaults(run=run_embed)


def add_classify(parser: argparse.ArgumentParser) -> None:
    """Arguments of `asda classify`."""
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="audio files or folders")
    parser.add_argument("--labels", type=Path, help="index,mid,name as AudioSet's class_labels_indices.csv, or names")
    parser.add_argument("--top", type=int, default=12, help="classes that are printed, the most probable first")
    parser.add_argument("--json", action="store_true", help="for programs: one object per file")
    _add_listening(parser, "fill to, or cut into windows of, the clips that it was trained on")
    parser.set_defaults(run=run_classify)


def add_convert(parser: argparse.ArgumentParser) -> None:
    """Arguments of `asda convert`."""
    parser.add_argument("checkpoint", type=Path, help=CHECKPOINT_HELP)
    parser.add_argument("out", type=Path, metavar="OUT.safetensors")
    parser.add_argument("--weights", choices=["student", "teacher"], default="student")
    parser.set_defaults(run=run_convert)


def run_embed(parsed: argparse.Namespace) -> None:
    """`asda embed`."""
    suffix = parsed.out.suffix.lower().removeprefix(".")
    if suffix in NO_FORMATS:
        raise ConfigError(f"--out {parsed.out}: embeddings are written as .npy or .safetensors, or into a folder.")
    if suffix not in ("npy", "safetensors"):
        suffix = parsed.format or "npy"
    elif parsed.format not in (None, suffix):
        raise ConfigError(f"--out {parsed.out} and --format {parsed.format} ask for two formats.")
    names = output_names(parsed.sources, suffix)  # a wrong path shows before a large checkpoint is read
    if parsed.jobs < 1:
        raise ConfigError(f"--jobs must be at least 1, not {parsed.jobs}.")
    if parsed.jobs > 1:
        print(embed_in_processes(parsed.given, names, parsed.out, parsed.jobs, parsed.shard))
        return
    checkpoint, options = _read(parsed)
    listener = _listener(checkpoint, options, parsed.device)
    job = EmbedJob(
        checkpoint=f"{checkpoint.file.name} {file_digest(checkpoint.file)} {parsed.weights}",
        granularity=parsed.granularity or ("frame" if listener.encoder.class_token is None else "all"),
        format=suffix,
        listening=asdict(options),
    )
    print(embed_files(listener, names, parsed.out, job, not parsed.worker, parsed.shard))


def run_classify(parsed: argparse.Namespace) -> None:
    """`asda classify`."""
    if parsed.top < 1:
        raise ConfigError(f"--top must be at least 1, not {parsed.top}.")
    checkpoint, options = _read(parsed)
    classifier = load_classifier(checkpoint)
    names = class_names(classifier.config, read_labels(parsed.labels) if parsed.labels else None)
    listener = _listener(checkpoint, options, parsed.device)
    classifier.to(usable_device(parsed.device))
    listener.options = as_trained(options, listener.front_end, listener.encoder)
    failed = 0
    files = [file for source in parsed.files for file in (find_audio(source) if source.is_dir() else [source])]
    for file in files:
        try:
            sound = open_sound(file, listener)
            likely, numbers = probabilities(listener, classifier, sound).topk(min(parsed.top, len(names)))
        except AudioError as error:
            failed += 1
            print(f"skipped: {error}", file=sys.stderr)
            continue
        found = [(names[number], value) for number, value in zip(numbers.tolist(), likely.tolist(), strict=True)]
        if parsed.json:
            print(json.dumps({"file": str(file), "labels": [{"label": n, "probability": p} for n, p in found]}))
            continue
        width = max(len("LABEL"), *(len(name) for name, _ in found))
        print(f"{file}\n{'LABEL':<{width}}  PROBABILITY")
        print("\n".join(f"{name:<{width}}  {value:.4f}" for name, value in found))
    if failed == len(files):
        raise AudioError("none of the audio files is readable.")


def run_convert(parsed: argparse.Namespace) -> None:
    """`asda convert`."""
    if parsed.out.suffix != ".safetensors":
        raise ConfigError(f"{parsed.out} must end in .safetensors.")
    checkpoint = read_model(parsed.checkpoint, parsed.weights)
    print(checkpoint.report or f"{checkpoint.file}: {len(checkpoint.tensors)} tensors, of asda", file=sys.stderr)
    catalog = installed_catalog()
    load_encoder(checkpoint, catalog)  # so that nothing is written that could not be loaded
    if checkpoint.classifier:
        load_classifier(checkpoint)
    if parsed.out.exists() and parsed.out.samefile(checkpoint.file):
        raise CheckpointError(f"{parsed.out} is the file that is read; give another name.")
    parsed.out.parent.mkdir(parents=True, exist_ok=True)
    facts = (checkpoint.step, checkpoint.data, checkpoint.classifier, checkpoint.embedding or None)
    metadata = metadata_of(checkpoint.config, catalog, *facts)
    write_model(parsed.out, dict(checkpoint.tensors), metadata)
    print(parsed.out)


def _add_listening(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument("--checkpoint", required=True, type=Path, help=CHECKPOINT_HELP)
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
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")


def _read(parsed: argparse.Namespace) -> tuple[Checkpoint, ListenOptions]:
    """The checkpoint, told on stderr, and how clips are cut."""
    checkpoint = read_model(parsed.checkpoint, parsed.weights)
    if checkpoint.report:
        print(checkpoint.report, file=sys.stderr)
    options = ListenOptions(
        target_length=parsed.target_length,
        window_seconds=parsed.window_seconds,
        precision=parsed.precision,
        clip_seconds=checkpoint.config.data.clip_seconds,
        padding=FILLED[parsed.compat] if parsed.compat else checkpoint.config.data.padding,
        resample_along="channels" if parsed.compat == "released" else "time",
    )
    return checkpoint, options


def _listener(checkpoint: Checkpoint, options: ListenOptions, device: str) -> Listener:
    front_end, encoder = load_encoder(checkpoint, installed_catalog())
    where = usable_device(device)
    return Listener(front_end.to(where), encoder.to(where), options)
