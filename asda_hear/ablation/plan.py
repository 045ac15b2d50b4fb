"""A plan: a grid over settings -> cells, each a whole run with a name of its own.

question: does subtracting a second map help?
base: ../asda_tiny.yaml
data: [../../audio]                    # relative to this file
tasks: {folder: ../../tasks, names: [esc10, fsdd]}
seeds: [0, 1, 2]
axes:
  lambda: {"0": {encoder.mixer.options.lambda_init: 0.0}, "0.1": {encoder.mixer.options.lambda_init: 0.1}}
  steps: [0, 400]                      # short: the axis is a key of the config, the labels are its values
baselines: {log-mel: log_mel}
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from asda_core.audio import find_audio, list_identity
from asda_core.checkpoint import locate
from asda_core.config import RunConfig
from asda_core.config_io import load_run_config, parse, read_yaml, signature, to_plain, with_change, with_value
from asda_core.errors import ConfigError
from asda_core.files import file_digest
from asda_hear.evaluate.runner import EvaluationConfig

FACTS = (
    "seed",
    "cell",
    "parameters",
    "trained",
    "gflops",
    "updates",
    "pretrain_seconds",
    "pretrain_cpu_seconds",
    "pretrain_mebibytes",
    "plugins",
)
RESULTS = ("task", "metric", "score", "folds", "validation", "asda", "torch", "heareval")
BASELINE = "model"
"""Columns of `rows.csv` beside the axes; `model` tells baselines from cells."""
RESERVED = {BASELINE, *FACTS, *RESULTS}


@dataclass(frozen=True)
class TaskChoice:
    """HEAR tasks: their folder, and which of them (empty: all)."""

    folder: str
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class PlanConfig:
    """The keys of a plan file.

    Attributes:
        base: config file that every cell starts from.
        data: folders, manifests or files of audio to pre-train on.
        tasks: what is evaluated.
        axes: name -> label -> {config key: value}; or key -> list of values.
        seeds: every combination is run with each.
        baselines: label -> what `load_model` takes; evaluated once.
        evaluation: heareval's search.
        options: keyword arguments of `load_model`.
        set: config keys that differ from the base in every cell.
        init: a checkpoint that every cell begins with, as `asda pretrain --init` does; adapters need one.
        question: what the table answers; its heading.
    """

    base: str
    tasks: TaskChoice
    axes: dict[str, Any]
    data: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0,)
    baselines: dict[str, str] = field(default_factory=dict)
    evaluation: EvaluationConfig = EvaluationConfig()
    options: dict[str, Any] = field(default_factory=dict)
    set: dict[str, Any] = field(default_factory=dict)
    question: str = ""
    init: str | None = None

    def __post_init__(self) -> None:
        if not self.axes or not self.seeds:
            raise ConfigError("a plan needs at least one axis and one seed.")
        if len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(f"the seeds of a plan must differ, given {list(self.seeds)}.")
        if taken := sorted(RESERVED & self.axes.keys()):
            raise ConfigError(f"an axis cannot be called {taken[0]!r}: the table has a column of that name.")


@dataclass(frozen=True)
class Cell:
    """One combination with one seed.

    Attributes:
        labels: axis -> label.
        seed: of the run.
        config: the whole run.
        name: signature of the config and the data; equal cells of any plans share it.
    """

    labels: Mapping[str, str]
    seed: int
    config: RunConfig
    name: str


@dataclass(frozen=True)
class Plan:
    """A plan with its cells, files found; `init` is the checkpoint that cells begin with."""

    file: Path
    config: PlanConfig
    cells: tuple[Cell, ...]
    audio: tuple[Path, ...]
    tasks_folder: Path
    init: Path | None = None


def load_plan(file: Path) -> Plan:
    """Read a plan and check every cell of it before anything runs.

    Raises:
        ConfigError: a wrong key or value, in the plan or in any cell (which it names).
        AudioError: no audio where `data` says.
        CheckpointError: no checkpoint where `init` says.
    """
    config = parse(PlanConfig, read_yaml(file), str(file))
    here = file.parent
    audio = tuple(found for source in config.data for found in find_audio(here / source))
    identity = list_identity(audio)
    base = to_plain(load_run_config(here / config.base))
    for key, value in config.set.items():
        base = with_change(base, key, value)
    init = None if config.init is None else locate(here / config.init)
    begins = {} if init is None else {"init": file_digest(init)}
    axes = {name: _labelled(name, choices) for name, choices in config.axes.items()}
    cells = []
    for combination in itertools.product(*axes.values()):
        labels = dict(zip(axes, combination, strict=True))
        plain = base
        for axis, label in labels.items():
            for key, value in axes[axis][label].items():
                plain = with_change(plain, key, value)
        for seed in config.seeds:
            where = f"{file}, cell {', '.join(f'{axis} {label}' for axis, label in labels.items())}"
            try:
                run = parse(RunConfig, with_value(plain, "seed", seed))
            except ConfigError as error:
                raise ConfigError(f"{where}: {error}") from None
            name = signature(run, data=identity if run.steps else [], **begins)
            cells.append(Cell(labels, seed, run, name))
    return Plan(file, config, tuple(cells), audio, here / config.tasks.folder, init)


def _labelled(axis: str, choices: Any) -> dict[str, dict[str, Any]]:
    """Both ways of writing an axis as label -> {config key: value}."""
    if isinstance(choices, list) and choices:
        return {str(value): {axis: value} for value in choices}
    if isinstance(choices, dict) and choices and all(isinstance(value, dict | None) for value in choices.values()):
        return {str(label): value or {} for label, value in choices.items()}
    raise ConfigError(f"axis {axis!r} must be a list of values, or labels with {{config key: value}}, not {choices!r}.")
