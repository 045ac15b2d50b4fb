"""The commands `asda embed`, `asda classify` and `asda convert`."""

import argparse
import json
import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path

from asda_core.assemble import third_party_plugins
from asda_core.audio_files.sources import find_audio
from asda_core.catalog import installed_catalog
from asda_core.checkpoint import Checkpoint, checkpoint_metadata, load_classifier, load_encoder, write_model
from asda_core.config import Padding
from asda_core.devices import usable_device
from asda_core.errors import AudioError, CheckpointError, ConfigError
from asda_core.inference.classifying import probabilities
from asda_core.inference.clip_encoder import ClipEncoder, EncodeOptions, with_training_length
from asda_core.inference.embedding import embed_files, open_sound, output_names
from asda_core.inference.indexing import EmbedJob
from asda_core.inference.jobs import embed_in_processes
from asda_core.labelled.label_files import class_names, read_labels
from asda_core.official.reading import read_model
from asda_core.system.files import model_digest
from asda_core.system.locks import hold_folder_lock
from asda_core.system.paths import ARRAY_FORMATS, is_array_file
from asda_core.system.workers import Shard

PADDING_BY_COMPAT: dict[str, Padding] = {"default": "silence", "released": "features"}
UNSUPPORTED_FORMATS = ("npz", "pt", "pth", "h5", "hdf5", "csv", "json", "parquet")
"""Suffixes of unsupported output formats, which a folder is unlikely to have."""


def run_embed(parsed: argparse.Namespace) -> None:
    """Run `asda embed`."""
    suffix = parsed.out.suffix.lower().removeprefix(".")
    if suffix in UNSUPPORTED_FORMATS:
        raise ConfigError(f"--out {parsed.out}: embeddings are written as .npy or .safetensors, or into a folder.")
    if suffix not in ARRAY_FORMATS:
        suffix = parsed.format or "npy"
    elif parsed.format not in (None, suffix):
        raise ConfigError(f"--out {parsed.out} and --format {parsed.format} name different formats.")
    names = output_names(parsed.sources, suffix)  # report a wrong path before reading a large checkpoint
    if parsed.jobs < 1:
        raise ConfigError(f"--jobs must be at least 1, not {parsed.jobs}.")
    if is_array_file(parsed.out) and max(parsed.jobs, parsed.shard.count) > 1:
        raise ConfigError(f"{parsed.out} is a single file, written by one process; --jobs and --shard need a folder.")
    if parsed.jobs > 1:
        with _alone(parsed.out, parsed.shard):
            print(embed_in_processes(parsed.given, names, parsed.out, parsed.jobs, parsed.shard))
        return
    checkpoint, options = _read(parsed)
    clip_encoder = _clip_encoder(checkpoint, options, parsed.device)
    third_party = third_party_plugins(installed_catalog(), checkpoint.config, with_objective=False)
    job = EmbedJob(
        checkpoint=" ".join([checkpoint.file.name, model_digest(checkpoint.file), parsed.weights, *third_party]),
        granularity=parsed.granularity or ("frame" if clip_encoder.encoder.class_token is None else "all"),
        format=suffix,
        listening=asdict(options),
    )
    if checkpoint.embedding and not parsed.worker:
        settings = ", ".join(f"{key}={value}" for key, value in checkpoint.embedding.items())
        hint = f"asda_hear.get_scene_embeddings gives the scene embeddings of this model ({settings})"
        print(f"note: the tokens of the last block are written; {hint}.", file=sys.stderr)
    with nullcontext() if parsed.worker or is_array_file(parsed.out) else _alone(parsed.out, parsed.shard):
        print(embed_files(clip_encoder, names, parsed.out, job, not parsed.worker, parsed.shard))


def _alone(out: Path, shard: Shard) -> AbstractContextManager[None]:
    """Keep other processes from embedding the same shard into a folder."""
    part = "" if shard.count == 1 else f" shard {shard.index}/{shard.count}"
    return hold_folder_lock(out, f".shard-{shard.index}-of-{shard.count}.lock", f"embeds{part} into")


def run_classify(parsed: argparse.Namespace) -> None:
    """Run `asda classify`."""
    if parsed.top < 1:
        raise ConfigError(f"--top must be at least 1, not {parsed.top}.")
    checkpoint, options = _read(parsed)
    classifier = load_classifier(checkpoint)
    names = class_names(classifier.config, read_labels(parsed.labels) if parsed.labels else None)
    clip_encoder = _clip_encoder(checkpoint, options, parsed.device)
    classifier.to(usable_device(parsed.device))
    clip_encoder.options = with_training_length(options, clip_encoder.front_end, clip_encoder.encoder)
    failed: list[Path] = []
    folders = {source: find_audio(source) for source in parsed.files if source.is_dir()}
    files = [file for source in parsed.files for file in folders.get(source, [source])]
    for file in files:
        try:
            sound = open_sound(file, clip_encoder)
            highest, classes = probabilities(clip_encoder, classifier, sound).topk(min(parsed.top, len(names)))
        except AudioError as error:
            failed.append(file)
            print(f"skipped: {error}", file=sys.stderr)
            continue
        top = [(names[number], value) for number, value in zip(classes.tolist(), highest.tolist(), strict=True)]
        if parsed.json:
            print(json.dumps({"file": str(file), "labels": [{"label": n, "probability": p} for n, p in top]}))
            continue
        width = max(len("LABEL"), *(len(name) for name, _ in top))
        print(f"{file}\n{'LABEL':<{width}}  PROBABILITY")
        print("\n".join(f"{name:<{width}}  {value:.4f}" for name, value in top))
    if len(failed) == len(files):
        raise AudioError("none of the audio files is readable.")
    if unreadable := [str(file) for file in failed if file in parsed.files]:
        raise AudioError(f"not classified: {', '.join(unreadable)}; the others were.")


def run_convert(parsed: argparse.Namespace) -> None:
    """Run `asda convert`."""
    if parsed.out.suffix != ".safetensors":
        raise ConfigError(f"{parsed.out} must end in .safetensors.")
    checkpoint = read_model(parsed.checkpoint, parsed.weights)
    print(checkpoint.report or f"{checkpoint.file}: {len(checkpoint.tensors)} tensors, asda format", file=sys.stderr)
    catalog = installed_catalog()
    load_encoder(checkpoint, catalog)  # ensures that what is written can be loaded
    if checkpoint.classifier:
        load_classifier(checkpoint)
    if parsed.out.exists() and parsed.out.samefile(checkpoint.file):
        raise CheckpointError(f"{parsed.out} is the input file; give another name.")
    parsed.out.parent.mkdir(parents=True, exist_ok=True)
    facts = (
        checkpoint.step,
        checkpoint.data_digest,
        checkpoint.classifier,
        checkpoint.embedding,
        checkpoint.trained_on,
    )
    metadata = checkpoint_metadata(checkpoint.config, catalog, *facts, plugins=checkpoint.plugins)
    write_model(parsed.out, dict(checkpoint.tensors), metadata)
    print(parsed.out)


def _read(parsed: argparse.Namespace) -> tuple[Checkpoint, EncodeOptions]:
    """Read the checkpoint, report it on stderr, and return it with the options for cutting clips."""
    checkpoint = read_model(parsed.checkpoint, parsed.weights)
    if checkpoint.report:
        print(checkpoint.report, file=sys.stderr)
    options = EncodeOptions(
        target_length=parsed.target_length,
        window_seconds=parsed.window_seconds,
        precision=parsed.precision,
        clip_seconds=checkpoint.config.data.clip_seconds,
        padding=PADDING_BY_COMPAT[parsed.compat] if parsed.compat else checkpoint.config.data.padding,
        resample_along="channels" if parsed.compat == "released" else "time",
    )
    return checkpoint, options


def _clip_encoder(checkpoint: Checkpoint, options: EncodeOptions, device: str) -> ClipEncoder:
    front_end, encoder = load_encoder(checkpoint, installed_catalog())
    where = usable_device(device)
    return ClipEncoder(front_end.to(where), encoder.to(where), options)
