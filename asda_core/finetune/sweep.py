"""Many fine-tunings in one command: checkpoints x modes x folds x seeds; finished runs are not repeated."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from asda_core.catalog import Catalog
from asda_core.checkpoint import Checkpoint
from asda_core.config_io import find_config, load_run_config, shipped_configs, signature
from asda_core.errors import AsdaError, CheckpointError, ConfigError, PartlyFailed, TrainingStopped, unknown_message
from asda_core.finetune.evaluation import (
    PREDICTIONS,
    interval_over_folds,
    load_predictions,
    pool_folds,
    write_evaluation,
)
from asda_core.finetune.finetune_model import Start
from asda_core.finetune.jobs import Job
from asda_core.finetune.recipes import flatten_changes, recipe_for
from asda_core.finetune.running import finetune_named
from asda_core.finetune.sampling import weights_digest
from asda_core.finetune_config import FinetuneConfig
from asda_core.labelled.examples import LabelledData
from asda_core.labelled.splits import Round
from asda_core.official.reading import read_model
from asda_core.system.files import model_digest
from asda_core.system.markdown import escape_surrogates
from asda_core.system.paths import is_config_file, is_package_model, labelled_path, model_name

SEED_FIELD = "{seed}"
"""Placeholder in the path of a checkpoint for the seed of the run, if every seed has its own checkpoint."""
ALL_FOLDS = "all_folds"
RunRow = dict[str, Any]


@dataclass(frozen=True)
class Sweep:
    """The runs of a comparison.

    Attributes:
        recipe: recipe of the file.
        starts: label -> path of a checkpoint (which may hold `{seed}`), or a config for random weights.
        modes: see `recipe_for`.
        seeds: every combination is run with each.
        data: labelled clips.
        rounds: folds, or the single split.
        base_folder: folder that paths in the recipe are relative to.
        overrides: changes of a task file or a command line, which take precedence over those of a mode.
        data_digest: digest of all clips, labels and splits, including folds that are not run.
    """

    recipe: FinetuneConfig
    starts: Mapping[str, str]
    modes: Sequence[str]
    seeds: Sequence[int]
    data: LabelledData
    rounds: Sequence[Round]
    base_folder: Path = Path()
    overrides: Mapping[str, Any] = field(default_factory=dict)
    data_digest: str = ""


class RunsFailed(PartlyFailed[list[RunRow]]):
    """Runs of a sweep failed."""


def read_start(path: str | Path) -> tuple[Start, str]:
    """Read a checkpoint with the digest of its file, or a config for random weights with an empty digest.

    Raises:
        CheckpointError, ConfigError: neither exists.
    """
    named = is_package_model(path)
    config = find_config(path)
    if is_config_file(config) and config.is_file() and not named:
        return load_run_config(path), ""
    if not named and not Path(path).exists():
        raise _missing_start(path)
    checkpoint = read_model(Path(path))
    return checkpoint, model_digest(checkpoint.file)


def _missing_start(path: str | Path) -> CheckpointError:
    is_name = Path(path).name == str(path) and not Path(path).suffix
    names = f" By name: {unknown_message('config', str(path), shipped_configs())}"
    return CheckpointError(f"no checkpoint or config at {path}.{names if is_name else ''}")


def parse_starts(arguments: Sequence[str]) -> dict[str, str]:
    """Map labels to paths, given `LABEL=PATH` or a path whose own name is the label.

    Raises:
        ConfigError: two have the same label.
    """
    starts: dict[str, str] = {}
    for text in arguments:
        label, path = labelled_path("--checkpoint", text)
        label = escape_surrogates(label or model_name(path))
        if label in starts or not label or "/" in label:
            raise ConfigError(f"--checkpoint {text!r}: give each checkpoint a unique label, as in mine={text}.")
        starts[label] = path
    return starts


def check_starts(starts: Mapping[str, str], seeds: Sequence[int]) -> None:
    """Check, before data is read, that a file exists for every checkpoint and seed.

    Raises:
        CheckpointError: naming the first that is missing.
    """
    for path in starts.values():
        for file in {path.replace(SEED_FIELD, str(seed)): None for seed in seeds}:
            if not find_config(file).exists():
                raise _missing_start(file)


def recipe_signature(recipe: FinetuneConfig, overrides: Mapping[str, Any]) -> str:
    """Signature of a recipe and the changes to it, excluding keys without influence on results."""
    changes = {key: value for key, value in flatten_changes(overrides).items() if key not in recipe.without_influence}
    return signature(recipe, over=changes)


def mode_signature(recipe: FinetuneConfig, base_folder: Path) -> str:
    """Signature of the recipe of a mode and of its sampling weights, independent of the seed."""
    return signature(replace(recipe, seed=0), **weights_digest(recipe.sampling, base_folder))


def run_sweep(sweep: Sweep, out: Path, catalog: Catalog, device: str = "cpu", progress: bool = True) -> list[RunRow]:
    """Run the unfinished part of a sweep.

    Returns:
        one row per run.

    Raises:
        ConfigError: a mode is unknown, or does not fit the recipe; raised before anything runs.
        RunsFailed: some runs failed; all others are done.
        TrainingStopped: after Ctrl-C or SIGTERM.
    """
    recipes = {mode: recipe_for(sweep.recipe, mode, catalog, sweep.overrides) for mode in sweep.modes}
    plan = [
        (label, mode, seed, split)
        for seed in sweep.seeds
        for label in sweep.starts
        for mode in sweep.modes
        for split in sweep.rounds
    ]
    common = {"recipe": recipe_signature(sweep.recipe, sweep.overrides), "data": sweep.data_digest}
    rows: list[RunRow] = []
    failed: list[str] = []
    starts: dict[str, tuple[Start, str]] = {}
    for label, mode, seed, split in tqdm(plan, desc="runs", unit="run", disable=not progress or len(plan) == 1):
        path = sweep.starts[label].replace(SEED_FIELD, str(seed))
        of_mode = mode_signature(recipes[mode], sweep.base_folder)
        facts = {"checkpoint": label, "mode": mode, "split": split.name, "seed": seed, **common, "of_mode": of_mode}
        try:
            if path not in starts:
                starts = {path: read_start(path)}  # one at a time in memory
                _print_report(starts[path][0])
            start, digest = starts[path]
            job = Job(replace(recipes[mode], seed=seed), start, sweep.data, split, digest, sweep.base_folder)
            facts["start"] = digest or signature(start)
            name = _folder_name(label, mode, split.name, f"seed{seed}")
            folder, result = finetune_named(job, out, name, catalog, device, progress)
        except TrainingStopped:
            raise
        except AsdaError as error:
            run = [label, mode, *([split.name] if split.name else []), f"seed {seed}"]
            failed.append(f"{', '.join(run)}: {error}")
            if len(plan) == 1:
                raise
            print(f"failed: {failed[-1]}", file=sys.stderr)
            continue
        rows.append({**facts, **_row(result), "folder": folder.name})
    if failed:
        raise RunsFailed(rows, f"{len(failed)} of {len(plan)} runs failed: " + "; ".join(failed))
    return rows


def _folder_name(*parts: str) -> str:
    """Name of the folder of a run, without its identity; the name of a split may be any text."""
    return "-".join(part for part in parts if part).replace("=", "").replace("/", "_")


def _print_report(start: Start) -> None:
    if isinstance(start, Checkpoint) and start.report:
        print(start.report, file=sys.stderr)


def _row(result: Mapping[str, Any]) -> RunRow:
    """Return the columns of a result for the table of runs."""
    row: RunRow = {name: "" if value is None else value for name, value in result["scores"].items()}
    row |= {f"{part}_clips": number for part, number in result["clips"].items()}
    keys = ("parameters", "trained", "train_seconds", "train_cpu_seconds", "train_mebibytes", "select", "step", "steps")
    counts = {"skipped": len(result["skipped"]), "start_heard_test": int(result.get("start_heard_test", False))}
    return row | {key: result[key] for key in keys} | counts


def evaluate_folds(rows: Sequence[RunRow], out: Path, title: str, resamples: int) -> dict[str, tuple[float, float]]:
    """Evaluate the pooled clips of all folds of one seed, and write tables and picture to `out/all_folds`.

    Returns:
        the interval of the mean over folds of each metric.
    """
    first = rows[0]
    parts = [load_predictions(out / row["folder"] / PREDICTIONS) for row in rows]
    name = f"{first['checkpoint']}-{first['mode'].replace('=', '')}-seed{first['seed']}"
    write_evaluation(out / ALL_FOLDS / name, pool_folds(parts), f"{title}, all folds", resamples)
    return interval_over_folds(parts, resamples)
