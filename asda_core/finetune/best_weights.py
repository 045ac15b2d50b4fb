"""Files of the best weights of a fine-tuning, kept so that a run that is killed resumes with the right ones.

The weights of each new best evaluation get a file named by their step. Of these, the best so far is kept, and the one
that was best when the newest step was saved: a run that is killed resumes from there.
"""

from collections.abc import Iterable
from pathlib import Path

from asda_core.checkpoint import read_checkpoint

BEST_FILES = "best-*.safetensors"
FORMER_BEST_FILE = "best.safetensors"
"""The only file of the best weights in runs of earlier versions."""


def best_file(folder: Path, step: int) -> Path:
    """Path of the weights that were the best of a run after `step` updates."""
    return folder / BEST_FILES.replace("*", f"{step:08d}")


def keep_best(folder: Path, steps: Iterable[int]) -> None:
    """Remove the files of the best weights of all but these steps."""
    kept = {best_file(folder, step) for step in steps}
    for file in folder.glob(BEST_FILES):
        if file not in kept:
            file.unlink()


def drop_best(folder: Path) -> None:
    """Remove all files of best weights, also of earlier versions."""
    for file in [*folder.glob(BEST_FILES), folder / FORMER_BEST_FILE]:
        file.unlink(missing_ok=True)


def has_best(folder: Path, step: int) -> bool:
    """Whether the best weights of a step exist; the file of an earlier version is renamed."""
    former = folder / FORMER_BEST_FILE
    if former.is_file() and read_checkpoint(former).step == step:
        former.rename(best_file(folder, step))
    return best_file(folder, step).is_file()
