"""`asda data pack` and `asda data stats`."""

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from asda_core.audio_files.pack_options import PACK_FILE, SKIPPED_FILE, PackOptions
from asda_core.audio_files.sources import find_audio, warn_of_duplicates
from asda_core.catalog import installed_catalog
from asda_core.commands.config_arguments import apply_changes
from asda_core.config import RunConfig, require
from asda_core.config_io import load_run_config
from asda_core.data.packing import pack
from asda_core.data.statistics import Statistics, measure
from asda_core.errors import MAX_LISTED, counted, listing
from asda_core.labelled.examples import LabelledData
from asda_core.labelled.reading import read_labelled
from asda_core.labelled.shards import CLASSES_FILE
from asda_core.labelled.source import load_source
from asda_core.labelled.splits import with_splits
from asda_core.system.files import csv_text
from asda_core.system.resources import SECONDS_PER_HOUR

DIGITS = 3
"""Decimal places of a mean and a standard deviation, as in published ones."""


def run_pack(parsed: argparse.Namespace) -> None:
    """`asda data pack`."""
    require(parsed.jobs > 0, f"--jobs must be at least 1, not {parsed.jobs}.")
    names = ("rate", "format", "keep", "seconds", "shard_mebibytes", "seed", "name")
    options = PackOptions(**{name: getattr(parsed, name) for name in names})
    data = _labelled(parsed.sources, options) if parsed.labelled else None
    files = _find_files(parsed.sources) if data is None else [example.file for example in data.examples]
    descriptions = None if data is None else labels_and_splits(data)
    extra_files = None if data is None else {CLASSES_FILE: label_file_text(data)}
    print(f"{counted(len(files), 'audio file')} -> {parsed.out}", file=sys.stderr)
    packed = pack(files, parsed.out, options, parsed.jobs, descriptions=descriptions, extra_files=extra_files)
    if packed.skipped:
        where = parsed.out / SKIPPED_FILE
        pieces = ", or parts of " + ("it" if len(packed.skipped) == 1 else "them") if parsed.seconds else ""
        print(f"skipped {counted(len(packed.skipped), 'file')}{pieces}; see {where}.", file=sys.stderr)
    next_command = "asda pretrain CONFIG" if data is None else "asda finetune RECIPE --checkpoint CHECKPOINT"
    print(
        f"{counted(packed.shards, 'shard')}, {counted(packed.clips, 'clip')}, {packed.hours:.2f} h, "
        f"{packed.gibibytes:.3f} GiB ({parsed.out / PACK_FILE}): {next_command} --data {parsed.out}"
    )


def _labelled(sources: Sequence[Path], options: PackOptions) -> LabelledData:
    require(len(sources) == 1, f"--labelled takes one SOURCE, as `asda finetune --data` does, not {len(sources)}.")
    message = "--seconds could split a clip between training and test, and repeats its labels on each piece; omit it"
    require(options.seconds is None, f"{message} with --labelled.")
    source, folder = load_source(sources[0])
    return with_splits(read_labelled(source, folder), source)


def labels_and_splits(data: LabelledData) -> Mapping[Path, Mapping[str, object]]:
    """Labels and split of each clip, as written to its JSON description."""
    return {example.file: {"labels": list(example.labels), "split": example.split} for example in data.examples}


def label_file_text(data: LabelledData) -> str:
    """CSV of index, identifier (if any differs from its name) and name of each class, in the layout of AudioSet's."""
    for name in (*data.classes, *data.class_names):
        require(
            name.isprintable(),
            f"the class {name!r} has unprintable characters (tab, line break, ...); a label file cannot store them.",
        )
    if data.classes == data.class_names:
        return csv_text([("index", "display_name"), *enumerate(data.classes)])
    identified = zip(data.classes, data.class_names, strict=True)
    return csv_text([("index", "mid", "display_name"), *((number, *both) for number, both in enumerate(identified))])


def run_stats(parsed: argparse.Namespace) -> None:
    """`asda data stats`."""
    require(parsed.jobs > 0, f"--jobs must be at least 1, not {parsed.jobs}.")
    require(parsed.sample is None or parsed.sample > 0, f"--sample must be at least 1, not {parsed.sample}.")
    config = apply_changes(load_run_config(parsed.config) if parsed.config else RunConfig(), parsed.changes)
    files = _find_files(parsed.sources)
    total = len(files)
    if parsed.sample is not None and parsed.sample < total:
        sample = np.random.default_rng(parsed.seed).choice(total, parsed.sample, replace=False)
        files = [files[number] for number in sorted(sample.tolist())]
    measured = measure(files, installed_catalog(), config.front_end, config.compat, parsed.jobs)
    print(json.dumps(as_dict(measured, total), indent=2) if parsed.json else as_text(measured, total))


def _find_files(sources: Sequence[Path]) -> list[Path]:
    files = [file for source in sources for file in find_audio(source)]
    warn_of_duplicates(files)
    return files


def yaml_line(stats: Statistics) -> str | None:
    """Line to paste into a config; None if the standard deviation rounds to 0: all values are the same."""
    if not round(stats.std, DIGITS):
        return None
    options = {**stats.front_end.options, "mean": round(stats.mean, DIGITS), "std": round(stats.std, DIGITS)}
    pairs = ", ".join(f"{key}: {value}" for key, value in options.items())
    return f"front_end: {{name: {stats.front_end.name}, options: {{{pairs}}}}}"


def as_dict(stats: Statistics, num_files: int) -> dict[str, Any]:
    """Statistics as plain values for JSON; `num_files` is the number of files before sampling."""
    return {
        "files": num_files,
        "looked_at": len(stats.seconds) + len(stats.broken),
        "mean": stats.mean,
        "std": stats.std,
        "values": stats.num_values,
        "yaml": yaml_line(stats),
        "hours": sum(stats.seconds) / SECONDS_PER_HOUR,
        "seconds": {
            "shortest": min(stats.seconds),
            "median": statistics.median(stats.seconds),
            "longest": max(stats.seconds),
        },
        "rates": {str(rate): count for rate, count in sorted(stats.rates.items())},
        "channels": {str(channels): count for channels, count in sorted(stats.channels.items())},
        "silent": stats.silent,
        "short": stats.short,
        "broken": stats.broken,
    }


def as_text(stats: Statistics, num_files: int) -> str:
    """Statistics as readable text."""
    plain = as_dict(stats, num_files)
    seconds, looked_at = plain["seconds"], plain["looked_at"]
    share = f"{looked_at} of {num_files} files, at random" if looked_at < num_files else f"{num_files} files"
    rates = ", ".join(f"{rate} Hz: {count}" for rate, count in plain["rates"].items())
    channels = ", ".join(f"{channels}: {count}" for channels, count in plain["channels"].items())
    lines = [
        f"files     {share}, {plain['hours']:.2f} h",
        f"seconds   {seconds['shortest']:.2f} to {seconds['longest']:.2f}, median {seconds['median']:.2f}",
        f"rates     {rates}",
        f"channels  {channels}",
        f"silent    {_named(stats.silent)}",
        *([f"short     {_named(stats.short)} (shorter than one window)"] if stats.short else []),
        f"broken    {_named(list(stats.broken))}",
        *(f"          {reason}" for reason in list(stats.broken.values())[:MAX_LISTED]),
        f"features  mean {stats.mean:.4f}, std {stats.std:.4f} over {stats.num_values:,} values",
        "",
        plain["yaml"]
        or "All values are the same: the standard deviation is 0, so there is nothing to set in a config.",
    ]
    return "\n".join(lines)


def _named(files: Sequence[str]) -> str:
    return f"{len(files)}" + (f": {listing(files)}" if files else "")
