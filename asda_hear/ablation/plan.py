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
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from asda_core.audio_files.digests import sampled_digest
from asda_core.audio_files.sources import find_audio, list_identity
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
from asda_core.errors import ConfigError, prefix_errors, unknown_message
from asda_core.settings.kinds import require_kind
from asda_core.settings.strict_yaml import read_yaml
from asda_core.system.files import model_digest
from asda_core.system.paths import find_model_file
from asda_hear.ablation.axes import check_disjoint, check_effect, flatten, label_text, merge_label_changes, parse_axis
from asda_hear.ablation.noise_metric import NoiseMeasure
from asda_hear.ablation.settings import PlanConfig
from asda_hear.api import DEFAULT_POOLING
from asda_hear.looking.noise import WHITE
from asda_hear.looking.noise_attention import NoiseConfig
from asda_hear.model import HearOptions

PLANS_FOLDER = "ablations"
"""Subfolder of the configs that holds plans."""
OPTION, INIT, SEED = "options.", "init", "seed"
"""Special axis keys: prefix of `load_model` options, the checkpoint that cells start from, and the seed (rejected)."""
OUTSIDE = "../../"
"""Prefix of the paths of the package's plans that lead out of its configs."""


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
        name: name of a plan of the package, if it was loaded by its name.
    """

    file: Path
    config: PlanConfig
    cells: tuple[Cell, ...]
    audio: tuple[Path, ...]
    reference: Mapping[str, str] | str = field(default_factory=dict)
    noise: NoiseMeasure | None = None
    name: str = ""

    @property
    def argument(self) -> str:
        """Argument of `asda-hear ablate` for this plan, from the current folder."""
        return self.name or os.path.abspath(self.file)  # a link stays: paths are relative to where it is


def load_plan(file: Path) -> Plan:
    """Read a plan and check every cell of it before anything runs.

    Args:
        file: YAML file, or the name of a plan of the package, such as "ablations/lambda", whose paths that lead out of
            the package are relative to the current folder.

    Raises:
        ConfigError: a key or value is invalid, in the plan or in a cell (which the message names).
        AudioError: `data` has no audio.
        CheckpointError: `init` is not a checkpoint.
    """
    name_or_path, file = file, find_config(file)
    if not file.suffix and not file.exists():
        raise ConfigError(
            f"no file at {name_or_path}: {unknown_message('plan', str(name_or_path), shipped_configs(PLANS_FOLDER))}"
        )
    name = "" if file == name_or_path else str(name_or_path)
    content = read_yaml(file)
    require_kind(content, "plan", name_or_path)
    config = parse(PlanConfig, _from_current_folder(content) if name else content, str(file))
    config = replace(config, options=_non_default(config.options, to_plain(HearOptions())))
    here = file.parent
    audio = tuple(found for source in config.data for found in find_audio(here / source))
    axes = {name: parse_axis(name, choices) for name, choices in config.axes.items()}
    reference = _reference(config, axes, file)
    audio_identity = [*list_identity(audio), ("content", sampled_digest(audio))]
    base_file = here / config.base
    # otherwise `base` is the name of a config of the package
    base = load_run_config(base_file if base_file.suffix or base_file.exists() else config.base)
    factory = _CellFactory(file, config, to_plain(base), audio_identity)
    cells, identities = [], {}
    with prefix_errors(file):
        check_disjoint(axes)
    for combination in itertools.product(*axes.values()):
        labels = dict(zip(axes, combination, strict=True))
        changes = {key: value for axis, label in labels.items() for key, value in flatten(axes[axis][label]).items()}
        found = factory.cells(labels, changes)
        identities[combination] = repr((found[0].name, _parsed_options(found[0].options)))
        cells += found
    with prefix_errors(file):
        check_effect(axes, identities)
    return Plan(file, config, tuple(cells), audio, reference, _noise(config, here), name)


def _from_current_folder(value: Any) -> Any:
    """Return the content of a plan of the package with the paths that lead out of it relative to the current folder."""
    if isinstance(value, dict):
        return {key: _from_current_folder(nested) for key, nested in value.items()}
    if isinstance(value, list):
        return [_from_current_folder(nested) for nested in value]
    return (
        str(Path.cwd() / value.removeprefix(OUTSIDE)) if isinstance(value, str) and value.startswith(OUTSIDE) else value
    )


def _parsed_options(options: Mapping[str, Any]) -> object:
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
    settings = config.noise_attention
    if settings is None:
        return None
    noise = settings.noise if settings.noise == WHITE else str(here / settings.noise)
    if noise != WHITE and not Path(noise).is_file():
        raise ConfigError(f"noise_attention.noise: no file at {noise}.")
    files = tuple(clip for source in settings.audio for clip in find_audio(here / source))
    return NoiseMeasure(files, NoiseConfig(settings.snr_db, noise, settings.clips, settings.seed))


class _CellFactory:
    """Builds the cells of a plan from its base config and its `set`."""

    def __init__(self, file: Path, config: PlanConfig, base: dict[str, Any], data: list[Any]) -> None:
        self.file, self.config, self.data = file, config, data
        budget = {} if config.budget.steps is None else {"steps": config.budget.steps}
        self.base, self.common = base, {**config.set, **budget}

    def cells(self, labels: Mapping[str, str], changes: Mapping[str, Any]) -> list[Cell]:
        """Return the cells of one combination, one for each seed."""
        base, options, init = self.base, dict(self.config.options), self.config.init
        for key, value in merge_label_changes(self.common, changes).items():
            if key.startswith(OPTION):
                options[key.removeprefix(OPTION)] = value
            elif key == INIT:
                if not isinstance(value, str | None):
                    raise ConfigError(
                        f"{self.file}, cell {labels_text(labels)}: init must name a checkpoint, not {value!r}."
                    )
                init = value
            elif key == SEED:
                raise ConfigError(
                    f"{self.file}, cell {labels_text(labels)}: seeds are given by `seeds`, not by an axis."
                )
            else:
                base = with_change(base, key, value)
        checkpoint = None if init is None else find_model_file(self.file.parent / init)
        identity = {} if checkpoint is None else {"init": model_digest(checkpoint)}
        pooling = {
            "scene_pooling": DEFAULT_POOLING,
            "timestamp_pooling": DEFAULT_POOLING,
        }  # no cell is the package's model
        defaults = {**to_plain(HearOptions()), **pooling}
        seed_cells = []
        for seed in self.config.seeds:
            with prefix_errors(f"{self.file}, cell {labels_text(labels)}"):
                run = parse(RunConfig, with_value(base, "seed", seed))
            name = signature(run, data=self.data if run.steps else [], **identity)
            seed_cells.append(Cell(labels, seed, run, name, _non_default(options, defaults), checkpoint))
        return seed_cells


def labels_text(labels: Mapping[str, str]) -> str:
    """Return the labels of a cell in one line."""
    return ", ".join(f"{axis} {label}" for axis, label in labels.items())


def _non_default(options: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that differ from the defaults: stating a default explicitly changes nothing."""
    return {key: value for key, value in options.items() if key not in defaults or defaults[key] != value}


def _reference(config: PlanConfig, axes: Mapping[str, Mapping[str, Any]], file: Path) -> Mapping[str, str] | str:
    """Return the stated reference after checking it; unstated axes take their first label."""
    if isinstance(config.reference, str):
        return config.reference
    stated = {str(axis): label_text(label) for axis, label in (config.reference or {}).items()}
    for axis, label in stated.items():
        if axis not in axes:
            raise ConfigError(f"{file}, reference: {unknown_message('axis', axis, axes)}")
        if label not in axes[axis]:
            raise ConfigError(f"{file}, reference: {unknown_message(f'label of the axis {axis}', label, axes[axis])}")
    return {axis: stated.get(axis, next(iter(labels))) for axis, labels in axes.items()}
