"""Names and texts that an encoding cannot hold: file names of any bytes, and terminals that take ASCII alone."""

import contextlib
import io
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from asda_core.catalog import Catalog
from asda_core.cli import main
from asda_core.config_io import to_yaml
from asda_core.weights.tensor_files import read_tensors
from asda_hear.cli import main as hear_main
from asda_hear.evaluate.task_checks import find_tasks
from tests.conftest import TINY
from tests.finetune.making import small_checkpoint, small_recipe, write_tones
from tests.hear.plans import tone_plan

Capture = pytest.CaptureFixture[str]
ODD = os.fsdecode(b"caf\xe9")
ASCII_LOCALE = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": ""}
PROGRAM = """
from asda_core.system.command_line import Command, Program

def add(parser):
    parser.set_defaults(run="program:run")

def run(parsed):
    print("\\u0394 caf\\udce9")

if __name__ == "__main__":
    Program("program", "", [Command("say", "program:add", "")]).run(["say"])
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Clips of a class whose name is not UTF-8."""
    write_tones(tmp_path / "tones", 2, 6).joinpath("tone1").rename(tmp_path / "tones" / ODD)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(command: Callable[[list[str]], int], *words: str) -> int:
    """Run a command whose output is bytes: that of pytest is UTF-8 alone."""
    with contextlib.redirect_stdout(io.TextIOWrapper(io.BytesIO(), "utf-8")):
        return command(list(words))


@pytest.mark.slow
def test_fine_tuning_on_a_class_of_any_name(place: Path, catalog: Catalog, capsys: Capture) -> None:
    """Also into a folder, and from a checkpoint, of such names; a later command reads what is there."""
    small_checkpoint(place / ODD, catalog)
    (place / "recipe.yaml").write_text(to_yaml(small_recipe(steps=2)), encoding="utf-8")
    command = ["finetune", "recipe.yaml", "--checkpoint", ODD, "--data", "tones", "--out", f"out-{ODD}"]
    for modes in (["full"], ["full", "linear"]):
        assert run(main, *command, "--modes", *modes, "--device", "cpu") == 0
    assert "warning: out-caf\\udce9/" in capsys.readouterr().err
    table = (place / f"out-{ODD}" / "table.md").read_text(encoding="utf-8")
    assert table.count("| caf\\\\udce9 | full |") == table.count("| caf\\\\udce9 | linear |") == 1
    scores = next((place / f"out-{ODD}").glob("*/per_class.csv")).read_text(encoding="utf-8")
    assert "caf\\udce9" in scores


def test_a_run_in_a_folder_of_any_name_resumes(place: Path, capsys: Capture) -> None:
    """TensorBoard takes no such name, which is said; safetensors opens none."""
    Path("tiny.yaml").write_text(yaml.safe_dump({**TINY, "steps": 2, "checkpoint_every": 1}), encoding="utf-8")
    for out in ("plain", ODD):
        assert run(main, "pretrain", "tiny.yaml", "--data", "tones", "--out", out, "--device", "cpu") == 0
        assert ("accepts only paths in UTF-8" in capsys.readouterr().err) == (out == ODD)
    content = (place / "plain" / "model.safetensors").read_bytes()
    assert (place / ODD / "model.safetensors").read_bytes() == content
    shutil.rmtree(place / ODD / "step-00000002")
    assert run(main, "pretrain", "tiny.yaml", "--data", "tones", "--out", ODD, "--device", "cpu") == 0
    assert (place / ODD / "model.safetensors").read_bytes() == content
    tensors, metadata = read_tensors(place / ODD / "model.safetensors")
    assert sorted(tensors) == sorted(read_tensors(place / "plain" / "model.safetensors")[0])
    assert metadata["step"] == "2"


@pytest.mark.parametrize("suffix", ["html", "png", "npz"])
def test_looking_at_a_file_of_any_name(place: Path, catalog: Catalog, suffix: str) -> None:
    small_checkpoint(place / "start", catalog)
    shutil.copy(place / "tones" / ODD / "0.wav", place / f"{ODD}.wav")
    assert run(hear_main, "look", f"{ODD}.wav", "--checkpoint", "start", "--out", f"{ODD}.{suffix}") == 0
    assert (place / f"{ODD}.{suffix}").stat().st_size > 1000


def test_tasks_of_classes_of_any_name(place: Path) -> None:
    """They are escaped: what reads HEAR's tasks takes no such names."""
    assert run(hear_main, "tasks", "build", "odd", "tones", "--out", ODD, "--seconds", "0.3") == 0
    (task,) = find_tasks(Path(ODD))
    assert (task / "labelvocabulary.csv").read_text(encoding="utf-8") == "idx,label\n0,caf\\udce9\n1,tone0\n"
    assert {file.name.split("-")[0] for file in task.rglob("*.wav")} == {"caf\\udce9", "tone0"}


@pytest.mark.parametrize(("encoding", "printed"), [("utf-8", b"\xce\x94 caf\xe9\n"), ("ascii", b"\\u0394 caf\xe9\n")])
def test_any_text_is_printed(encoding: str, printed: bytes, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM, encoding="utf-8")
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run(
        [sys.executable, "program.py"], cwd=tmp_path, env=environment, capture_output=True, check=True
    )
    assert (done.stdout, done.stderr) == (printed, b"")


@pytest.mark.heareval
def test_a_plan_in_an_ascii_locale(tmp_path: Path) -> None:
    plan = tone_plan(tmp_path, axes={"mixer": {"stándard": {"encoder.mixer": "standard"}}})
    plan.write_text(f"# stándard\n{plan.read_text(encoding='utf-8')}", encoding="utf-8")
    command = [sys.executable, "-X", "utf8=0", "-m", "asda_hear.cli", "ablate", str(plan), "--report", "--out", "out"]
    done = subprocess.run(command, cwd=tmp_path, env=ASCII_LOCALE, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "# stándard" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
