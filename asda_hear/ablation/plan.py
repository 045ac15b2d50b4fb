"""A plan: a grid over settings -> cells, each a whole run with a name of its own.

question: does subtracting a second map help?
base: ../asda_tiny.yaml
data: [../../audio]                    # relative to this file
tasks: {folder: ../../tasks, names: [esc10, fsdd]}
seeds: [0, 1, 2]
axes:
  lambda: {"0": {encoder.mixer.options.lambda_init: 0.0}, "0.1": {encoder.mixer.options.lambda_init: 0.1}}
  steps: [0, 400]                      # short: the axis is a key of the config, the labels are its values
  options.scene_pooling: [mean, summary]   # of `load_model`: both labels share one training
baselines: {log-mel: log_mel}
reference: {lambda: "0", steps: "0", options.scene_pooling: mean}   # what all lines are compared with
budget: {hours: 8}
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from asda_core.audio import find_audio, list_identity
from asda_core.checkpoint import locate
from asda_core.config import RunConfig, require
from asda_core.config_io import load_run_config, parse, read_yaml, signature, to_plain, with_change, with_value
from asda_core.errors import ConfigError, unknown
from asda_core.files import file_digest
from asda_hear.ablation.measuring import NoiseMeasure
from asda_hear.evaluate.runner import EvaluationConfig
from asda_hear.looking.noise import WHITE
from asda_hear.looking.noise_attention import NoiseConfig

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
OPTION, INIT = "options.", "init"
"""Keys of an axis that are no key of a run: options of `load_model`, and the checkpoint that cells begin with."""


@dataclass(frozen=True)
class TaskChoice:
    """HEAR tasks: their folder, and which of them (empty: all)."""

    folder: str
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class NoisePlan(NoiseConfig):
    """Measure how much attention falls on noise: which clips, and the noise that is added to them.

    Attributes:
        audio: folders, manifests or files.
    """

    audio: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        require(bool(self.audio), "noise_attention.audio must name the clips.")


@dataclass(frozen=True)
class BudgetConfig:
    """What a plan may take.

    Attributes:
        steps: updates of every cell; None leaves them as the config and the axes say.
        hours: after so long a command begins no further cell; what it has begun it ends. None: no limit.
    """

    steps: int | None = None
    hours: float | None = None

    def __post_init__(self) -> None:
        require(self.steps is None or self.steps >= 0, f"budget.steps must not be negative, not {self.steps}.")
        require(self.hours is None or self.hours > 0, f"budget.hours must be positive, not {self.hours}.")


@dataclass(frozen=True)
class PlanConfig:
    """The keys of a plan file.

    Attributes:
        base: config file that every cell starts from.
        data: folders, manifests or files of audio to pre-train on.
        tasks: what is evaluated; None where attention alone is measured.
        axes: name -> label -> {config key: value}; or key -> list of values. Beside the keys of a run there are
            "options.KEY" of `load_model`, and "init".
        seeds: every combination is run with each.
        baselines: label -> what `load_model` takes; evaluated once.
        evaluation: heareval's search.
        options: keyword arguments of `load_model`.
        set: config keys that differ from the base in every cell.
        init: a checkpoint that every cell begins with, as `asda pretrain --init` does; adapters need one.
        question: what the table answers; its heading.
        reference: the line that others are compared with, as {axis: label}, or the label of a baseline; by default
            the first combination.
        budget: limits.
        noise_attention: how much attention falls on added noise, measured of every cell.
    """

    base: str
    axes: dict[str, Any]
    tasks: TaskChoice | None = None
    data: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0,)
    baselines: dict[str, str] = field(default_factory=dict)
    evaluation: EvaluationConfig = EvaluationConfig()
    options: dict[str, Any] = field(default_factory=dict)
    set: dict[str, Any] = field(default_factory=dict)
    question: str = ""
    init: str | None = None
    reference: dict[str, Any] | str | None = None
    budget: BudgetConfig = BudgetConfig()
    noise_attention: NoisePlan | None = None

    def __post_init__(self) -> None:
        if not self.axes or not self.seeds:
            raise ConfigError("a plan needs at least one axis and one seed.")
        if self.tasks is None and self.noise_attention is None:
            raise ConfigError("a plan needs tasks, or noise_attention.")
        if len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(f"the seeds of a plan must differ, given {list(self.seeds)}.")
        if taken := sorted(RESERVED & self.axes.keys()):
            raise ConfigError(f"an axis cannot be called {taken[0]!r}: the table has a column of that name.")
        if isinstance(self.reference, str) and self.reference not in self.baselines:
            raise ConfigError(unknown("baseline as the reference", self.reference, self.baselines))


@dataclass(frozen=True)
class Cell:
    """One combination with one seed.

    Attributes:
        labels: axis -> label.
        seed: of the run.
        config: the whole run.
        name: signature of the config, the data and the weights it begins with; equal cells of any plans share it,
            and with it the training.
        options: keyword arguments of `load_model`.
        init: the checkpoint that it begins with.
    """

    labels: Mapping[str, str]
    seed: int
    config: RunConfig
    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    init: Path | None = None


@dataclass(frozen=True)
class Plan:
    """A plan with its cells, files found.

    Attributes:
        audio: to pre-train on.
        reference: a label of each axis, or the label of a baseline.
        noise: clips and noise, where attention on it is measured.
    """

    file: Path
    config: PlanConfig
    cells: tuple[Cell, ...]
    audio: tuple[Path, ...]
    reference: Mapping[str, str] | str = field(default_factory=dict)
    noise: NoiseMeasure | None = None


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
    axes = {name: _labelled(name, choices) for name, choices in config.axes.items()}
    reference = _reference(config, axes, file)
    start = _Start(file, config, to_plain(load_run_config(here / config.base)), list_identity(audio))
    cells = []
    for combination in itertools.product(*axes.values()):
        labels = dict(zip(axes, combination, strict=True))
        changes = {key: value for axis, label in labels.items() for key, value in axes[axis][label].items()}
        cells += start.cells(labels, changes)
    return Plan(file, config, tuple(cells), audio, reference, _noise(config, here))


def _noise(config: PlanConfig, here: Path) -> NoiseMeasure | None:
    """The clips of `noise_attention`, found; a file of noise lies beside the plan."""
    given = config.noise_attention
    if given is None:
        return None
    noise = given.noise if given.noise == WHITE else str(here / given.noise)
    files = tuple(found for source in given.audio for found in find_audio(here / source))
    return NoiseMeasure(files, NoiseConfig(given.snr_db, noise, given.clips, given.seed))


class _Start:
    """What all cells of a plan begin from."""

    def __init__(self, file: Path, config: PlanConfig, base: dict[str, Any], data: list[tuple[str, int]]) -> None:
        self.file, self.config, self.data = file, config, data
        budget = {} if config.budget.steps is None else {"steps": config.budget.steps}
        for key, value in {**config.set, **budget}.items():
            base = with_change(base, key, value)
        self.base = base

    def cells(self, labels: Mapping[str, str], changes: Mapping[str, Any]) -> list[Cell]:
        """The cells of one combination, one for each seed."""
        plain, options, init = self.base, dict(self.config.options), self.config.init
        for key, value in changes.items():
            if key.startswith(OPTION):
                options[key.removeprefix(OPTION)] = value
            elif key == INIT:
                init = value
            else:
                plain = with_change(plain, key, value)
        begins = None if init is None else locate(self.file.parent / init)
        more = {} if begins is None else {"init": file_digest(begins)}
        found = []
        for seed in self.config.seeds:
            try:
                run = parse(RunConfig, with_value(plain, "seed", seed))
            except ConfigError as error:
                raise ConfigError(f"{self.file}, cell {text_of(labels)}: {error}") from None
            name = signature(run, data=self.data if run.steps else [], **more)
            found.append(Cell(labels, seed, run, name, options, begins))
        return found


def text_of(labels: Mapping[str, str]) -> str:
    """The labels of a cell in one line."""
    return ", ".join(f"{axis} {label}" for axis, label in labels.items())


def _reference(config: PlanConfig, axes: Mapping[str, Mapping[str, Any]], file: Path) -> Mapping[str, str] | str:
    """The stated reference, checked; else the first label of each axis."""
    if isinstance(config.reference, str):
        return config.reference
    given = {str(axis): str(label) for axis, label in (config.reference or {}).items()}
    for axis, label in given.items():
        if axis not in axes:
            raise ConfigError(f"{file}, reference: {unknown('axis', axis, axes)}")
        if label not in axes[axis]:
            raise ConfigError(f"{file}, reference: {unknown(f'label of the axis {axis}', label, axes[axis])}")
    return {axis: given.get(axis, next(iter(labels))) for axis, labels in axes.items()}


def _labelled(axis: str, choices: Any) -> dict[str, dict[str, Any]]:
    """Both ways of writing an axis as label -> {config key: value}."""
    if isinstance(choices, list) and choices:
        return {str(value): {axis: value} for value in choices}
    if isinstance(choices, dict) and choices and all(isinstance(value, dict | None) for value in choices.values()):
        return {str(label): value or {} for label, value in choices.items()}
    raise ConfigError(f"axis {axis!r} must be a list of values, or labels with {{config key: value}}, not {choices!r}.")
