"""kill -9 at any moment: the same command goes on, and ends with the same files as an undisturbed one."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from asda_core.catalog import Catalog
from asda_core.checkpoint import read_checkpoint
from asda_core.config_io import to_yaml
from tests.finetune.making import small_checkpoint, small_recipe, write_table

COSTS = {"train_seconds", "train_cpu_seconds", "train_mebibytes"}
STEPS = 40


def rows_of(out: Path) -> list[dict[str, str]]:
    with (out / "runs.csv").open(newline="") as opened:
        return [{key: value for key, value in row.items() if key not in COSTS} for row in csv.DictReader(opened)]


def saved_steps(out: Path) -> int:
    return max((int(folder.name.removeprefix("step-")) for folder in out.glob("*/step-*")), default=0)


@pytest.mark.slow
def test_a_killed_sweep_goes_on(tmp_path: Path, catalog: Catalog) -> None:
    recipe = small_recipe(steps=STEPS, checkpoint_every=3, valid_share=0.3, augment={"roll": True}, drop_path=0.1)
    (tmp_path / "recipe.yaml").write_text(to_yaml(recipe))
    small_checkpoint(tmp_path / "start", catalog)
    write_table(tmp_path / "tones", clips=6)
    command = [sys.executable, "-m", "asda_core.cli", "finetune", "recipe.yaml", "--checkpoint", "start", "--data",
               "tones/tones.csv", "--modes", "full", "linear", "--device", "cpu", "--out"]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}

    def begin(out: str) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            [*command, out], cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    assert begin("whole").wait() == 0
    killed = tmp_path / "killed"
    process = begin("killed")
    while saved_steps(killed) < STEPS // 3 and process.poll() is None:
        time.sleep(0.005)
    assert process.poll() is None, "it ended before it could be killed"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / "runs.csv").exists()
    assert begin("killed").wait() == 0
    assert rows_of(killed) == rows_of(tmp_path / "whole")
    for row in rows_of(killed):
        first, second = (read_checkpoint(tmp_path / out / row["folder"]).tensors for out in ("whole", "killed"))
        assert all(np.array_equal(first[name], second[name]) for name in first)
