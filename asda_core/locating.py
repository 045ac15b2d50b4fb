"""Where the model of a run folder lies."""

from pathlib import Path

from asda_core.errors import CheckpointError

MODEL_FILE = "model.safetensors"
BARE_STATE_FILE = "pytorch_model.bin"
"""What a Hugging Face folder may hold in the place of `model.safetensors`."""
STEP_FOLDERS = "step-*"


def newest_step(folder: Path) -> Path | None:
    """The newest whole step of a run folder."""
    return max(folder.glob(STEP_FOLDERS), default=None)


def locate(path: Path) -> Path:
    """The model file that a path means: itself, that of a step, or the newest of a run.

    Raises:
        CheckpointError: there is none.
    """
    if path.is_file():
        return path
    for candidate in (path / MODEL_FILE, (newest_step(path) or path) / MODEL_FILE, path / BARE_STATE_FILE):
        if candidate.is_file():
            return candidate
    what = (
        "a file (.safetensors, or .pt of a released model), a folder that holds one, a run folder or one of its steps"
    )
    raise CheckpointError(f"no checkpoint at {path}: expected {what}.")
