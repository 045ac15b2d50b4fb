"""Which model a text of a command line means, and where that of a run folder lies."""

import re
from importlib.util import find_spec
from pathlib import Path

from asda_core.errors import CheckpointError, ConfigError

MODEL_FILE = "model.safetensors"
MODEL_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".yaml", ".yml")
"""Of files that a model is in, or its config: where a path is not there (yet), what follows another dot is its name."""
PACKAGE_MODEL = "asda_small"
"""Name of the trained model that comes with the package; see MODEL_CARD.md. As a config it is its architecture."""
OWN_DISTRIBUTION = "asda-hear"
"""Whose plugins come with the package; their names cannot be taken over by another distribution."""
GIVEN = "(given)"
"""In the place of a distribution, where a program gives a plugin by itself."""
BARE_STATE_FILE = "pytorch_model.bin"
"""What a Hugging Face folder may hold in the place of `model.safetensors`."""
HUGGING_FACE_CONFIG = "config.json"
"""What a Hugging Face folder has beside its weights."""
FEW = 5
"""Runs that a message names."""
STEP_FOLDERS = "step-*"
STEP_NAME = re.compile(r"step-(\d{8,})")

CHECKPOINTS = (
    "a file (.safetensors, or .pt of a released model), a folder that holds one, a run folder or one of its steps"
)
"""What a path may be that means a model file."""


def labelled_path(option: str, text: str) -> tuple[str, str]:
    """Label and path of `LABEL=PATH`; no label where the whole is a path, or there is no "=".

    Raises:
        ConfigError: on one side of the "=" there is nothing.
    """
    label, equals, path = text.partition("=")
    if not equals or Path(text).exists():
        return "", text
    if not path:
        raise ConfigError(f"{option} {text!r}: behind {label!r} there is no path; is a variable not set?")
    if not label:
        raise ConfigError(f"{option} {text!r}: nothing, which stands before the =, cannot be a label.")
    return label, path


def model_name(path: str | Path) -> str:
    """What a model is called by its path: its folder where files of all models are called alike, its run and step."""
    file = Path(path).resolve()
    if file.stem == Path(MODEL_FILE).stem and not file.is_dir():
        file = file.parent
    elif file.is_file() or file.suffix.lower() in MODEL_SUFFIXES:
        file = file.with_suffix("")
    return f"{file.parent.name}-{file.name}" if file.match(STEP_FOLDERS) else file.name


def step_folders(folder: Path) -> list[Path]:
    """The whole steps of a run folder, the newest last; copies under other names are the user's."""
    numbered = ((STEP_NAME.fullmatch(path.name), path) for path in folder.glob(STEP_FOLDERS))
    return [path for _, path in sorted((int(name[1]), path) for name, path in numbered if name)]


def newest_step(folder: Path) -> Path | None:
    """The newest whole step of a run folder."""
    return next(reversed(step_folders(folder)), None)


def locate(path: Path, in_training: bool = False) -> Path:
    """The model file that a path means: itself, that of a step, or the newest of a run.

    Args:
        path: file or folder.
        in_training: of a run, take its newest step before what it exported: the objective, and with it a teacher, is
            in steps alone.

    Raises:
        CheckpointError: there is none.
    """
    if path.is_file():
        return path
    if is_package_model(path):
        return package_model()
    exported, step = path / MODEL_FILE, (newest_step(path) or path) / MODEL_FILE
    for candidate in (*((step, exported) if in_training else (exported, step)), path / BARE_STATE_FILE):
        if candidate.is_file():
            return candidate
    below = sorted(file.parent for file in path.glob(f"*/{MODEL_FILE}"))
    if len(below) == 1:
        return below[0] / MODEL_FILE
    if below:
        named = ", ".join(map(str, below[:FEW])) + (", ..." if len(below) > FEW else "")
        raise CheckpointError(f"{path} holds {len(below)} runs; give one of them: {named}.")
    raise CheckpointError(f"no checkpoint at {path}: expected {CHECKPOINTS}.")


def is_package_model(path: str | Path) -> bool:
    """Whether a path is the name of the package's model, and nothing lies there."""
    return str(path) == PACKAGE_MODEL and not Path(path).exists()


def package_model() -> Path:
    """The file of the package's model, which is in another folder of the same distribution.

    Raises:
        CheckpointError: it is not there.
    """
    spec = find_spec("asda_hear")
    file = Path(spec.origin or "").with_name(f"{PACKAGE_MODEL}.safetensors") if spec is not None else None
    if file is None or not file.is_file():
        raise CheckpointError(f"the model {PACKAGE_MODEL} of the package is not installed.")
    return file
