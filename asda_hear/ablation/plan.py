"""A plan: a grid of settings, expanded to cells, each a complete run with a name of its own.

question: does subtracting a second map help?
base: ../asda_tiny.yaml
data: [../../audio]                    # relative to this file
tasks: {folder: ../../tasks, names: [esc10, fsdd]}
seeds: [0, 1, 2]
axes:
  lambda: {"0": {encoder.mixer.options.lambda_init: 0.0}, "0.1": {encoder.mixer.options.lambda_init: 0.1}}
  steps: [0, 400]                      # short form: the axis is a key of the config, the labels are its values
  options.scene_pooling: [mean, summary]   # of `load_model`: both labels share one training
baselines: {log-mel: log_mel}
reference: {lambda: "0", steps: "0", options.scene_pooling: mean}   # what all rows are compared with
budget: {hours: 8}
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from asda_core.audio import find_audio, list_identity
from asda_core.config import RunConfig
from asda_core.config_io import (
    find_config,
    load_run_config,
    parse,
    shipped_configs,
    signature,
    to_plain,
    with_change,
    with_value,
)
from asda_core.data.content import sampled_content
from asda_core.errors import ConfigError, prefixed, unknown
from asda_core.settings.strict_yaml import read_yaml
from asda_core.system.files import model_digest
from asda_core.weights.paths import locate
from asda_hear.ablation.axes import check_apart, check_effect, flat, labelled, text_of_label, together
from asda_hear.ablation.noise_metric import NoiseMeasure
from asda_hear.ablation.settings import PlanConfig
from asda_hear.api import USUAL_POOLING
from asda_hear.looking.noise import WHITE
from asda_hear.looking.noise_attention import NoiseConfig
from asda_hear.model import HearOptions

FOLDER = "ablations"
"""Subfolder of the configs that holds plans."""
OPTION, INIT, SEED = "options.", "init", "seed"
"""Special axis keys: prefix of `load_model` options, the checkpoint that cells start from, and the seed (rejected)."""


@dataclass(frozen=True)
class Cell:
    """One combination of labels with one seed.

    Attributes:
        labels: axis -> label.
        seed: seed of the run.
        config: config of the run.
        name: signature of the config, the data and the initial weights; equal cells of any plans share it, and with
            it the training.
        options: keyword arguments of `load_model`.
        init: the checkpoint that it starts from.
    """

    labels: Mapping[str, str]
    seed: int
    config: RunConfig
    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    init: Path | None = None


@dataclass(frozen=True)
class Plan:
    """A plan with its cells and located files.

    Attributes:
        audio: audio files to pre-train on.
        reference: a label of each axis, or the label of a baseline.
        noise: clips and noise, if attention on noise is measured.
    """

    file: Path
    config: PlanConfig
    cells: tuple[Cell, ...]
    audio: tuple[Path, ...]
    reference: Mapping[str, str] | str = field(default_factory=dict)
    noise: NoiseMeasure | None = None


def load_plan(file: Path) -> Plan:
    """Read a plan and check every cell of it before anything runs.

    Args:
        file: YAML file, or the name of a plan of the package, such as "ablations/lambda".

    Raises:
        ConfigError: a key or value is invalid, in the plan or in a cell (which the message names).
        AudioError: `data` has no audio.
        CheckpointError: `init` is not a checkpoint.
    """
    named, file = file, find_config(file)
    if not file.suffix and not file.exists():
        raise ConfigError(f"no file at {named}: {unknown('plan', str(named), shipped_configs(FOLDER))}")
    config = parse(PlanConfig, read_yaml(file), str(file))
    config = replace(config, options=_stated(config.options, to_plain(HearOptions())))
    here = file.parent
    audio = tuple(found for source in config.data for found in find_audio(here / source))
    axes = {name: labelled(name, choices) for name, choices in config.axes.items()}
    reference = _reference(config, axes, file)
    audio_there = [*list_identity(audio), ("content", sampled_content(audio))]
    beside = here / config.base
    base = load_run_config(beside if beside.suffix or beside.exists() else config.base)  # else a name of the package
    start = _Start(file, config, to_plain(base), audio_there)
    cells, made = [], {}
    with prefixed(file):
        check_apart(axes)
    for combination in itertools.product(*axes.values()):
        labels = dict(zip(axes, combination, strict=True))
        changes = {key: value for axis, label in labels.items() for key, value in flat(axes[axis][label]).items()}
        found = start.cells(labels, changes)
        made[combination] = repr((found[0].name, _as_heard(found[0].options)))
        cells += found
    with prefixed(file):
        check_effect(axes, made)
    return Plan(file, config, tuple(cells), audio, reference, _noise(config, here))


def _as_heard(options: Mapping[str, Any]) -> object:
    """Return the parsed options; invalid ones are returned as they are and rejected later, with the cell."""
    try:
        return parse(HearOptions, options)
    except ConfigError:
        return options


def _noise(config: PlanConfig, here: Path) -> NoiseMeasure | None:
    """Locate the clips of `noise_attention`; a noise file is relative to the plan.

    Raises:
        ConfigError: the noise file does not exist.
    """
    given = config.noise_attention
    if given is None:
        return None
    noise = given.noise if given.noise == WHITE else str(here / given.noise)
    if noise != WHITE and not Path(noise).is_file():
        raise ConfigError(f"noise_attention.noise: no file at {noise}.")
    files = tuple(found for source in given.audio for found in find_audio(here / source))
    return NoiseMeasure(files, NoiseConfig(given.snr_db, noise, given.clips, given.seed))


class _Start:
    """What all cells of a plan start from."""

    def __init__(self, file: Path, config: PlanConfig, base: dict[str, Any], data: list[Any]) -> None:
        self.file, self.config, self.data = file, config, data
        budget = {} if config.budget.steps is None else {"steps": config.budget.steps}
        self.base, self.of_all = base, {**config.set, **budget}

    def cells(self, labels: Mapping[str, str], changes: Mapping[str, Any]) -> list[Cell]:
        """Return the cells of one combination, one for each seed."""
        plain, options, init = self.base, dict(self.config.options), self.config.init
        for key, value in together(self.of_all, changes).items():
            if key.startswith(OPTION):
                options[key.removeprefix(OPTION)] = value
            elif key == INIT:
                if not isinstance(value, str | None):
                    raise ConfigError(
                        f"{self.file}, cell {text_of(labels)}: init must name a checkpoint, not {value!r}."
                    )
                init = value
            elif key == SEED:
                raise ConfigError(f"{self.file}, cell {text_of(labels)}: seeds are given by `seeds`, not by an axis.")
            else:
                plain = with_change(plain, key, value)
        begins = None if init is None else locate(self.file.parent / init)
        more = {} if begins is None else {"init": model_digest(begins)}
        pooling = {"scene_pooling": USUAL_POOLING, "timestamp_pooling": USUAL_POOLING}  # no cell is the package's model
        usual = {**to_plain(HearOptions()), **pooling}
        found = []
        for seed in self.config.seeds:
            with prefixed(f"{self.file}, cell {text_of(labels)}"):
                run = parse(RunConfig, with_value(plain, "seed", seed))
            name = signature(run, data=self.data if run.steps else [], **more)
            found.append(Cell(labels, seed, run, name, _stated(options, usual), begins))
        return found


def text_of(labels: Mapping[str, str]) -> str:
    """Return the labels of a cell in one line."""
    return ", ".join(f"{axis} {label}" for axis, label in labels.items())


def _stated(options: Mapping[str, Any], usual: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that differ from the defaults: stating a default explicitly changes nothing."""
    return {key: value for key, value in options.items() if key not in usual or usual[key] != value}


def _reference(config: PlanConfig, axes: Mapping[str, Mapping[str, Any]], file: Path) -> Mapping[str, str] | str:
    """Return the stated reference after checking it; unstated axes take their first label."""
    if isinstance(config.reference, str):
        return config.reference
    given = {str(axis): text_of_label(label) for axis, label in (config.reference or {}).items()}
    for axis, label in given.items():
        if axis not in axes:
            raise ConfigError(f"{file}, reference: {unknown('axis', axis, axes)}")
        if label not in axes[axis]:
            raise ConfigError(f"{file}, reference: {unknown(f'label of the axis {axis}', label, axes[axis])}")
    return {axis: given.get(axis, next(iter(labels))) for axis, labels in axes.items()}
