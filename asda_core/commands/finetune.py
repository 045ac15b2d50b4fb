"""`asda finetune`: train classifiers from checkpoints on labelled audio, and write a table."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from asda_core.audio_files.digests import sampled_digest
from asda_core.catalog import Catalog, installed_catalog
from asda_core.config_io import find_config, parsed_changes, signature
from asda_core.errors import ConfigError, PartlyFailed, counted, prefix_errors
from asda_core.finetune.continual import Task
from asda_core.finetune.continual_table import TABLE_FILE as CONTINUAL_TABLE
from asda_core.finetune.continual_table import Stream, run_stream, write_stream
from asda_core.finetune.jobs import clip_facts
from asda_core.finetune.recipes import (
    MODE_KEYS,
    OPTIONS,
    check_by_mode,
    flatten_changes,
    load_recipe,
    merge_changes,
    mode_of,
    recipe_for,
    with_changes,
)
from asda_core.finetune.sweep import Sweep, check_starts, parse_starts, recipe_signature, run_sweep
from asda_core.finetune.table import TABLE_FILE, write_tables
from asda_core.finetune_config import FinetuneConfig
from asda_core.labelled.examples import LabelledData
from asda_core.labelled.reading import read_labelled
from asda_core.labelled.source import load_source
from asda_core.labelled.splits import rounds, with_splits
from asda_core.pretrain.processes import processes_from_environment
from asda_core.system.command_line import interrupts_enabled
from asda_core.system.files import text_digest

ResultsT = TypeVar("ResultsT")


@interrupts_enabled()
def run_finetune(parsed: argparse.Namespace) -> None:
    """Run `asda finetune`."""
    if parsed.continual != bool(parsed.tasks) or bool(parsed.data) == bool(parsed.tasks):
        raise ConfigError("give either --data, or --tasks A B ... together with --continual.")
    if processes_from_environment(os.environ).world_size > 1:
        raise ConfigError("fine-tuning runs in one process: start it without torchrun.")
    _check_unique(parsed.modes, "--modes")
    _check_unique(parsed.seeds, "--seeds")
    catalog = installed_catalog()
    recipe, over = load_recipe(parsed.recipe), parsed_changes(parsed.changes)
    check_by_mode(recipe, catalog)
    if parsed.modes and (of_mode := _mode_keys(over)):
        raise ConfigError(f"--set {of_mode[0]} conflicts with --modes; give one of the two.")
    if not parsed.modes:
        recipe = with_changes(recipe, over)
    for mode in parsed.modes:
        recipe_for(recipe, mode, catalog, over)
    check_starts(parse_starts(parsed.checkpoint), parsed.seeds or [over.get("seed", recipe.seed)])
    (run_continual if parsed.continual else run_on_data_set)(parsed, recipe, over, catalog)


def run_on_data_set(
    parsed: argparse.Namespace, recipe: FinetuneConfig, cli_changes: Mapping[str, Any], catalog: Catalog
) -> None:
    """Run checkpoints x modes x folds x seeds on one data set."""
    source, here = load_source(parsed.data)
    check_task(source.set, recipe, parsed.data)
    data = read_labelled(source, here)
    folds = rounds(data, source, parsed.folds)
    over = merge_changes(source.set, cli_changes)
    if of_mode := _mode_keys(source.set):
        if parsed.modes:
            raise ConfigError(f"{parsed.data}, set: {of_mode[0]} conflicts with --modes; give one of the two.")
        recipe = with_changes(with_changes(recipe, source.set), cli_changes)
    modes, seeds = parsed.modes or [mode_of(recipe)], parsed.seeds or [over.get("seed", recipe.seed)]
    recipe_folder = find_config(parsed.recipe).parent
    digest = data_digest(with_splits(data, source))
    sweep = Sweep(recipe, parse_starts(parsed.checkpoint), modes, seeds, data, folds, recipe_folder, over, digest)
    out = parsed.out or Path("runs") / f"{parsed.recipe.stem}-{data.name}-{recipe_signature(recipe, over)}"
    print_data_summary(data, len(folds), out)
    _run_and_print(
        lambda: run_sweep(sweep, out, catalog, parsed.device),
        lambda rows: write_tables(sweep, rows, out),
        out / TABLE_FILE,
    )


def run_continual(
    parsed: argparse.Namespace, recipe: FinetuneConfig, cli_changes: Mapping[str, Any], catalog: Catalog
) -> None:
    """Learn one task after the other; a task with folds uses the first one, or the first of `--folds`."""
    tasks = []
    for file in parsed.tasks:
        source, here = load_source(file)
        check_task(source.set, recipe, file)
        if global_keys := [*_mode_keys(source.set), *(key for key in source.set if key == "seed")]:
            raise ConfigError(
                f"{file}, set: {global_keys[0]} must be the same for all tasks; give it on the command line."
            )
        data = read_labelled(source, here)
        folds = rounds(data, source)
        if len(folds) > 1 and parsed.folds:
            folds = rounds(data, source, parsed.folds[:1])
        digest = data_digest(with_splits(data, source))
        tasks.append(Task(recipe, data, folds[0], merge_changes(source.set, cli_changes), digest))
    modes, seeds = parsed.modes or [mode_of(recipe)], parsed.seeds or [cli_changes.get("seed", recipe.seed)]
    test_folds = {"folds": [task.split.name for task in tasks]} if any(task.split.name for task in tasks) else {}
    stream_digest = signature(recipe, over=cli_changes, tasks=[task.data.name for task in tasks], **test_folds)
    out = parsed.out or Path("runs") / f"{parsed.recipe.stem}-continual-{stream_digest}"
    for task in tasks:
        print_data_summary(task.data, 1, out)
        if task.split.name:
            print(f"{task.data.name}: the test fold is {task.split.name}.", file=sys.stderr)
    stream = Stream(tasks, parse_starts(parsed.checkpoint), modes, seeds, find_config(parsed.recipe).parent)
    _run_and_print(
        lambda: run_stream(stream, out, catalog, parsed.device),
        lambda outcomes: write_stream(stream, outcomes, out),
        out / CONTINUAL_TABLE,
    )


def _run_and_print(run: Callable[[], ResultsT], write: Callable[[ResultsT], str], table: Path) -> None:
    """Run, then write and print the table `table`, also if parts failed.

    Raises:
        PartlyFailed: from `run`.
    """

    def show(results: ResultsT) -> None:
        if results:
            print(write(results))
            print(table, file=sys.stderr)

    try:
        results = run()
    except PartlyFailed as failed:
        show(failed.results)
        raise
    show(results)


def check_task(changes: Mapping[str, Any], recipe: FinetuneConfig, place: Path) -> None:
    """Apply the changes of a task file, so that errors in it are reported with its name.

    Raises:
        ConfigError: a wrong key or value.
    """
    with prefix_errors(f"{place}, set"):
        with_changes(recipe, {key: value for key, value in changes.items() if not key.startswith("adapter")})


def data_digest(data: LabelledData) -> str:
    """Digest of all clips (name, size, labels, split) and of the content of a sample of them."""
    splits, content = [clip.split for clip in data.examples], sampled_digest([clip.file for clip in data.examples])
    facts = json.dumps([clip_facts(data.examples), splits, content])
    return text_digest(facts)


def _mode_keys(changes: Mapping[str, Any]) -> list[str]:
    """Return the keys that set a mode, as --modes does; adapter options do not."""
    keys = [key for key in flatten_changes(changes) if not key.startswith(OPTIONS)]
    return [key for key in keys if key.startswith(MODE_KEYS)]


def print_data_summary(data: LabelledData, folds: int, out: Path) -> None:
    """Print one line that summarises the data."""
    labels = "one label each"
    if not data.single:
        others = [example for example in data.examples if len(example.labels) != 1]
        first = f"{others[0].file.name}: {', '.join(others[0].labels) or 'none'}"
        labels = f"{len(others):,} without exactly one label ({first})"
    splits = f", {folds} folds" if folds > 1 else ""
    print(
        f"{data.name}: {counted(len(data.examples), 'clip')} of {len(data.classes)} classes, {labels}{splits} -> {out}",
        file=sys.stderr,
    )


def _check_unique(values: list[Any], option: str) -> None:
    if duplicates := sorted({str(value) for value in values if values.count(value) > 1}):
        raise ConfigError(f"{option} contains {duplicates[0]!r} more than once.")
