"""Find the model file that a command-line argument or a run folder refers to."""

import os
import re
from importlib.util import find_spec
from pathlib import Path

from asda_core.errors import CheckpointError, ConfigError, listing

MODEL_FILE = "model.safetensors"
WEIGHT_SUFFIXES, CONFIG_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin"), (".yaml", ".yml")
"""Suffixes of files of weights and of configs; of a path that does not exist (yet), another dot is part of its name."""
ARRAY_FORMATS = ("npy", "safetensors")
"""Formats of embeddings, each also the suffix of its files."""
PACKAGE_MODEL = "asda_small"
"""Name of the trained model that comes with the package; see MODEL_CARD.md. As a config it means its architecture."""
OWN_DISTRIBUTION = "asda-hear"
"""Distribution whose plugins come with the package; other distributions cannot take over their names."""
NO_DISTRIBUTION = "(given)"
"""Stands for the distribution of a plugin that a program passes directly."""
PYTORCH_MODEL_FILE = "pytorch_model.bin"
"""Weights file that a Hugging Face folder may hold instead of `model.safetensors`."""
HUGGING_FACE_CONFIG = "config.json"
"""Config file that a Hugging Face folder holds beside its weights."""
STEP_FOLDERS = "step-*"
STEP_NAME = re.compile(r"step-(\d{8,})")

CHECKPOINT_DESCRIPTION = (
    "a file (.safetensors, or .pt of a released model), a folder that holds one, a run folder or one of its steps"
)
"""Paths that refer to a model file, in words."""


def is_third_party(distribution: str) -> bool:
    """Whether a distribution of plugins is neither the package itself nor stands for a plugin that was passed."""
    return distribution not in (OWN_DISTRIBUTION, NO_DISTRIBUTION)


def labelled_path(option: str, text: str) -> tuple[str, str]:
    """Split `LABEL=PATH`; the label is empty if the whole text is an existing path or has no "=".

    Raises:
        ConfigError: one side of the "=" is empty.
    """
    label, equals, path = text.partition("=")
    if not equals or Path(text).exists():
        return "", text
    if not path:
        raise ConfigError(f"{option} {text!r}: no path after {label!r}; is a variable not set?")
    if not label:
        raise ConfigError(f"{option} {text!r}: the empty text before the = cannot be a label.")
    return label, path


def is_config_file(path: Path) -> bool:
    """Whether a path is that of a config by its suffix, in upper or lower case."""
    return path.suffix.lower() in CONFIG_SUFFIXES


def is_array_file(path: Path) -> bool:
    """Whether an output path is that of one file of embeddings by its suffix, not that of a folder."""
    return path.suffix.lower().removeprefix(".") in ARRAY_FORMATS


def model_name(path: str | Path) -> str:
    """Name of a model by its path: the file, the folder of a `model.safetensors`, or run and step of a step folder."""
    file = Path(os.path.abspath(path))  # links are called as the user calls them
    weights = file.suffix.lower() in WEIGHT_SUFFIXES and not file.is_dir()
    if weights and file.stem in (Path(MODEL_FILE).stem, Path(PYTORCH_MODEL_FILE).stem):
        file = file.parent
    elif file.is_file() or file.suffix.lower() in WEIGHT_SUFFIXES or is_config_file(file):
        file = file.with_suffix("")
    return f"{file.parent.name}-{file.name}" if file.match(STEP_FOLDERS) else file.name


def step_folders(folder: Path) -> list[Path]:
    """The complete steps of a run folder, the newest last; copies by the user under other names do not count."""
    numbered = ((STEP_NAME.fullmatch(path.name), path) for path in folder.glob(STEP_FOLDERS))
    return [path for _, path in sorted((int(name[1]), path) for name, path in numbered if name)]


def newest_step(folder: Path) -> Path | None:
    """The newest complete step of a run folder."""
    return next(reversed(step_folders(folder)), None)


def find_model_file(path: Path, prefer_step: bool = False) -> Path:
    """Return the model file that a path refers to: itself, that of a step, or the newest of a run.

    Args:
        path: file or folder.
        prefer_step: prefer the newest step of a run to its exported model: only steps hold the objective, and with it
            a teacher.

    Raises:
        CheckpointError: there is none, or the folder holds several runs.
    """
    if path.is_file():
        return path
    if is_package_model(path):
        return package_model_file()
    exported, step = path / MODEL_FILE, (newest_step(path) or path) / MODEL_FILE
    for candidate in (*((step, exported) if prefer_step else (exported, step)), path / PYTORCH_MODEL_FILE):
        if candidate.is_file():
            return candidate
    below = sorted(file.parent for file in path.glob(f"*/{MODEL_FILE}"))
    if len(below) == 1:
        return below[0] / MODEL_FILE
    if below:
        raise CheckpointError(f"{path} holds {len(below)} runs; give one of them: {listing(below)}.")
    raise CheckpointError(f"no checkpoint at {path}: expected {CHECKPOINT_DESCRIPTION}.")


def is_package_model(path: str | Path) -> bool:
    """Whether a path is the name of the package's model, and no such file exists."""
    return str(path) == PACKAGE_MODEL and not Path(path).exists()


def package_model_file() -> Path:
    """Return the file of the package's model, which is in another folder of the same distribution.

    Raises:
        CheckpointError: it is not installed.
    """
    spec = find_spec("asda_hear")
    file = Path(spec.origin or "").with_name(f"{PACKAGE_MODEL}.safetensors") if spec is not None else None
    if file is None or not file.is_file():
        raise CheckpointError(f"the model {PACKAGE_MODEL} of the package is not installed.")
    return file
