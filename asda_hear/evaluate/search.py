"""What is asked of an evaluation: which tasks, and how heareval searches."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from asda_core.errors import ConfigError, TaskError, unknown

USUAL_SEED = 42
"""heareval's own."""
HearGrid = Literal["default", "fast", "faster"]


@dataclass(frozen=True)
class EvaluationConfig:
    """How heareval searches.

    Attributes:
        grid: heareval's own names: "default" (500 epochs at most), "fast" (50), "faster" (10, small layers).
        grid_points: settings of the predictor that are tried on the first fold; HEAR's is 8.
        threads: threads of torch while heareval runs. Scores change with it, so it is part of the setting.
        seed: of the predictors, and of the draw of grid points.
    """

    grid: HearGrid = "default"
    grid_points: int = 8
    threads: int = 1
    seed: int = USUAL_SEED

    def __post_init__(self) -> None:
        if self.grid_points < 1 or self.threads < 1:
            raise ConfigError("grid_points and threads must be at least 1.")
        if not 0 <= self.seed < 2**32:
            raise ConfigError(f"seed must be in 0..{2**32 - 1}, not {self.seed}.")


def find_tasks(tasks_dir: Path, names: Sequence[str] = ()) -> list[Path]:
    """Task folders below `tasks_dir`, or those named (by folder or by task name).

    Raises:
        TaskError: none, or a name that is not there.
    """
    if not tasks_dir.is_dir():
        raise TaskError(f"no folder of HEAR tasks at {tasks_dir}.")
    folders = [path for path in sorted(tasks_dir.iterdir()) if not path.name.startswith(".")]
    found = {path.name: path for path in folders if (path / "task_metadata.json").is_file()}
    if not found:
        raise TaskError(f"{tasks_dir} holds no HEAR task (a folder with task_metadata.json).")
    if not names:
        return list(found.values())
    by_task: dict[str, list[Path]] = {}
    for path in found.values():
        task_name = json.loads((path / "task_metadata.json").read_text())["task_name"]
        by_task.setdefault(task_name, []).append(path)
    chosen = []
    for name in names:
        matches = [found[name]] if name in found else by_task.get(name, [])
        if not matches:
            raise TaskError(unknown("task", name, {*found, *by_task}))
        if len(matches) > 1:
            raise TaskError(
                f"{name!r} may be any of {', '.join(path.name for path in matches)}; give the folder's name."
            )
        chosen += matches
    return chosen
