"""A small plan that really runs: two kinds of tones, a tiny model, heareval with one short training."""

from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import yaml

from asda_core.catalog import Catalog
from asda_hear.ablation.cells import PlanSetup
from asda_hear.ablation.plan import load_plan
from asda_hear.ablation.run import prepare
from asda_hear.evaluate.labels import assign_splits, clips_from_folders
from asda_hear.evaluate.tasks import TaskConfig, build_task
from tests.conftest import TINY

MIXERS = {"standard": {"encoder.mixer": "standard"}, "differential": {"encoder.mixer": "differential"}}


def tone_plan(folder: Path, **changes: Any) -> Path:
    """Write audio, a task, a base config and a plan into a folder; `changes` are keys of the plan."""
    generator = np.random.default_rng(0)
    for label, hertz in (("low", 200), ("high", 2000)):
        for number in range(9):
            tone = np.sin(2 * np.pi * hertz * generator.uniform(0.8, 1.2) * np.arange(8_000) / 16_000)
            file = folder / "audio" / label / f"{label}{number}.wav"
            file.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(file, 0.3 * tone + 0.01 * generator.normal(size=8_000), 16_000)
    grid = {"max_epochs": [9], "hidden_dim": [16], "lr": [0.01]}
    config = TaskConfig("tones", clip_seconds=0.5, evaluation_params={"task_specific_param_grid": grid})
    build_task(config, assign_splits(clips_from_folders(folder / "audio"), {}, 3), folder / "tasks", progress=False)
    (folder / "base.yaml").write_text(yaml.safe_dump({**TINY, "steps": 2}))
    plan = {
        "base": "base.yaml",
        "data": ["audio"],
        "tasks": {"folder": "tasks"},
        "axes": {"mixer": MIXERS},
        "seeds": [0, 1],
        "baselines": {"log-mel": "log_mel"},
        "evaluation": {"grid": "faster", "grid_points": 1},
        **changes,
    }
    file = folder / "plan.yaml"
    file.write_text(yaml.safe_dump(plan, sort_keys=False))
    return file


def change_plan(file: Path, **changes: Any) -> None:
    """Change keys of a plan file."""
    file.write_text(
        yaml.safe_dump({**yaml.safe_load(file.read_text(encoding="utf-8")), **changes}, sort_keys=False),
        encoding="utf-8",
    )


def work_on(file: Path, out: Path, catalog: Catalog | None = None, store: Path | None = None) -> PlanSetup:
    """What `run_plan` takes."""
    return prepare(load_plan(file), out, progress=False, catalog=catalog, store=store)
