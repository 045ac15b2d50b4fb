"""The commands: output, exit codes, one line for a user's mistake."""

import argparse
import inspect
import json
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import soundfile
import torch
import yaml

from asda_core import arguments, hookspecs
from asda_core.catalog import Catalog, installed_catalog
from asda_core.cli import PROGRAM, main
from asda_core.commands import plugins as commands
from asda_core.config_io import load_run_config
from asda_core.devices import device_name, usable_device
from asda_core.errors import CheckpointError, ConfigError
from asda_core.finetune.sweep import read_start
from asda_core.official.reading import read_model
from asda_core.settings.compute import AUTO
from asda_core.system.command_line import EXIT_ERROR, EXIT_STOPPED, Program, import_function
from asda_hear.cli import PROGRAM as HEAR_PROGRAM
from asda_hear.model_paths import find_model
from tests.conftest import TINY
from tests.released.writing import write_fairseq

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(TINY))
    return file


def test_pretrain(
    config: Path,
    audio_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["pretrain", str(config), "--data", str(audio_folder), "--set", "steps=2", "--device", "cpu"]
    assert main(command) == 0
    printed = capsys.readouterr()
    final = Path(printed.out.strip())
    assert final.parent.parent == Path("runs")
    assert final.parent.name.startswith("tiny-")
    assert "5 audio files" in printed.err
    assert "2/2" in printed.err
    assert "loss" in printed.err
    assert main([*command, "--set", "seed=3"]) == 0
    assert len(list(Path("runs").iterdir())) == 2


def test_plugins(capsys: Capture) -> None:
    assert main(["plugins"]) == 0
    printed = capsys.readouterr().out
    for text in (
        "mixers:",
        "front ends:",
        "objectives:",
        "adapters:",
        "differential",
        "asda-hear 0.1.0",
        "Interspeech",
    ):
        assert text in printed
    assert main(["plugins", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    standard = next(plugin for plugin in listed["plugins"] if plugin["name"] == "standard")
    assert standard["family"] == "mixer"


def test_show(config: Path, capsys: Capture) -> None:
    assert main(["show", str(config)]) == 0
    printed = capsys.readouterr().out
    assert yaml.safe_load(printed)["encoder"]["dim"] == 32
    assert "# signature" in printed
    assert "trainable parameters" in printed


def test_configs_whatever_the_case_of_their_suffix(config: Path, tmp_path: Path, capsys: Capture) -> None:
    upper, recipe = config.rename(tmp_path / "C.YAML"), tmp_path / "r.Yml"
    recipe.write_text("epochs: 3")
    assert main(["show", str(upper)]) == 0, capsys.readouterr().err
    assert "# encoder" in capsys.readouterr().out
    assert main(["show", str(recipe)]) == 0, capsys.readouterr().err
    assert "epochs: 3" in capsys.readouterr().out
    assert find_model(upper) == upper
    assert read_start(str(upper))[0] == load_run_config(upper)
    with pytest.raises(CheckpointError, match="is a config and has no weights"):
        read_model(upper)


def test_show_of_a_model_whose_objective_is_gone(
    config: Path, audio_folder: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is trained and needs none; of a config the same name is a mistake."""
    assert main(["pretrain", str(config), "--data", str(audio_folder), "--out", str(tmp_path / "run")]) == 0
    whole = installed_catalog()
    offers = {key: offer for key, offer in whole.offers.items() if key[0] != "objective"}
    monkeypatch.setattr(commands, "installed_catalog", lambda: replace(whole, offers=offers))
    capsys.readouterr()
    assert main(["show", str(tmp_path / "run")]) == 0
    printed = capsys.readouterr()
    assert "no installed plugin offers its objective 'latent_regression'" in printed.err
    assert "# encoder" in printed.out
    assert "\n# objective  " not in printed.out
    assert main(["show", str(config)]) == EXIT_ERROR
    assert "unknown objective 'latent_regression'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "change", "message"),
    [
        ("encoder: {lamda: 1}", "steps=1", "unknown config key 'lamda'"),
        ("", "stepz=1", "unknown config key 'stepz'. Did you mean 'steps'?"),
        ("", "steps", "must have the form key=value"),
        ("", "seed=[1", "is not YAML"),
        ("", "seed.x=1", "seed has the value 1, which has no key 'x'"),
        ("", "seed=-1", "seed must not be negative"),
        ("", "steps=yes", "expected int, got the boolean True. YAML 1.1 reads yes"),
        ("", "data.clip_seconds=.nan", "data.clip_seconds must be a finite number"),
        ("", "optimizer.betas=[2, 3]", r"betas must lie in [0, 1)"),
        ("", "encoder.num_heads=0", "encoder.num_heads must be positive"),
        ("", "objective.options.top_layers=0", "top_layers must be at least 1"),
        ("", "objective.options.top_layers=99", "more than encoder.depth"),
        ("encoder: {dim: 32, num_heads: 2, depth: 1}", "data.clip_seconds=0.1", "hold no patch"),
        ("encoder: {mixer: diferential}", "steps=1", "unknown mixer 'diferential'. Did you mean 'differential'?"),
    ],
)
def test_mistakes_are_one_line(
    tmp_path: Path, audio_folder: Path, text: str, change: str, message: str, capsys: Capture
) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    command = ["pretrain", str(file), "--data", str(audio_folder), "--set", change, "--out", str(tmp_path / "run")]
    assert main(command) == EXIT_ERROR
    errors = capsys.readouterr().err
    assert "error: " in errors
    assert message in errors
    assert "Traceback" not in errors
    assert not (tmp_path / "run").exists()


def test_a_device_or_folder_that_is_none(config: Path, audio_folder: Path, tmp_path: Path, capsys: Capture) -> None:
    command = ["pretrain", str(config), "--data", str(audio_folder), "--out"]
    assert main([*command, str(tmp_path / "run"), "--device", "bla"]) == EXIT_ERROR
    assert "the device 'bla' cannot be used here" in capsys.readouterr().err
    assert main([*command, str(config), "--device", "cpu"]) == EXIT_ERROR
    assert capsys.readouterr().err == f"error: {config} is a file; expected an output folder.\n"


def test_a_folder_without_a_name(config: Path, audio_folder: Path, capsys: Capture) -> None:
    """As of a variable of the shell that is not set."""
    assert main(["pretrain", str(config), "--data", str(audio_folder), "--out", ""]) == EXIT_ERROR
    assert "the name of the output folder is empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["pretrain", "asda_tiny", "--data", ""], "--data"),
        (["pretrain", "asda_tiny", "--data", "somewhere", " "], "--data"),
        (["pretrain", "asda_tiny", "--init", ""], "--init"),
        (["embed", "somewhere", "--out", "there", "--checkpoint", ""], "--checkpoint"),
        (["show", ""], "the command"),
    ],
)
def test_what_is_empty_is_no_folder(arguments: list[str], option: str, capsys: Capture) -> None:
    """As of a variable of the shell that is not set: it would be the current folder, or the package's model."""
    assert main([*arguments]) == EXIT_ERROR
    assert f"an argument of {option} is empty" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["show", "pretrain"])
def test_a_plan_is_no_config(command: str, audio_folder: Path, capsys: Capture) -> None:
    more = ["--data", str(audio_folder)] if command == "pretrain" else []
    assert main([command, "ablations/lambda", *more]) == EXIT_ERROR
    assert "ablations/lambda is a plan, not a config: asda-hear ablate ablations/lambda" in capsys.readouterr().err


def test_a_recipe_is_no_config_and_a_config_no_recipe(audio_folder: Path, capsys: Capture) -> None:
    data = ["--data", str(audio_folder)]
    assert main(["pretrain", "finetune/tiny", *data]) == EXIT_ERROR
    assert "finetune/tiny is a recipe, not a config: asda finetune finetune/tiny uses it" in capsys.readouterr().err
    assert main(["finetune", "asda_tiny", "--checkpoint", "asda_tiny", *data]) == EXIT_ERROR
    assert "asda_tiny is a config, not a recipe: asda pretrain asda_tiny trains its model" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="finetune/tiny is a recipe, not a config"):
        read_start("finetune/tiny")


def test_what_has_no_effect_is_told(config: Path, audio_folder: Path, tmp_path: Path, capsys: Capture) -> None:
    command = ["pretrain", str(config), "--data", str(audio_folder), str(audio_folder / "sound0.wav")]
    command += ["--out", str(tmp_path / "run"), "--device", "cpu", "--set", "steps=0", "data.shuffle_clips=5"]
    assert main(command) == 0
    told = capsys.readouterr().err
    assert "warning: data.shuffle_clips applies to streamed shards only" in told
    assert "warning: listed more than once (linked folders?): 1 of 6 files" in told


@pytest.mark.parametrize("words", [
    "pretrain asda_tiny --data x --out {}", "data pack x --out {}/below", "embed x --checkpoint y --out {}",
    "embed x --checkpoint y --out {}/a.npy", "finetune tiny --checkpoint y --data x --out {}",
    "test y --data x --out {}", "new-plugin mine --into {}",
])  # fmt: skip
def test_a_file_where_a_folder_is_wanted(words: str, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "file").write_text("")
    command = [word.format(tmp_path / "file") for word in words.split()]
    assert main(command) == EXIT_ERROR
    assert capsys.readouterr().err == f"error: {tmp_path / 'file'} is a file; expected an output folder.\n"
    (tmp_path / "file").unlink()
    (tmp_path / "file").symlink_to("gone")
    assert main(command) == EXIT_ERROR
    expected = f"error: {tmp_path / 'file'} is a broken link to gone; expected an output folder.\n"
    assert capsys.readouterr().err == expected


def test_a_disk_that_says_no(config: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "name").symlink_to("name")  # a circle
    assert main(["pretrain", str(config), "--data", str(tmp_path / "name" / "x")]) == EXIT_ERROR
    assert "Errno" not in capsys.readouterr().err
    assert main(["pretrain", "none.yaml", "--data", str(tmp_path)]) == EXIT_ERROR
    assert capsys.readouterr().err == "error: cannot read the config none.yaml: No such file or directory\n"


def test_other_audio_in_the_folder_of_a_run(config: Path, audio_folder: Path, tmp_path: Path, capsys: Capture) -> None:
    command = ["pretrain", str(config), "--out", str(tmp_path / "run"), "--device", "cpu", "--data"]
    assert main([*command, str(audio_folder)]) == 0
    assert main([*command, str(audio_folder / "sound0.wav")]) == EXIT_ERROR
    assert "contains a run with other audio files" in capsys.readouterr().err
    for file in audio_folder.glob("*.wav"):  # of the same names and sizes
        audio, rate = soundfile.read(file)
        soundfile.write(file, audio[::-1], rate)
    assert main([*command, str(audio_folder)]) == EXIT_ERROR
    assert "contains a run with other audio files" in capsys.readouterr().err


def test_no_audio(config: Path, tmp_path: Path, capsys: Capture) -> None:
    assert main(["pretrain", str(config), "--data", str(tmp_path / "nothing")]) == EXIT_ERROR
    assert "no folder, manifest or audio file" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["--version"], ["--help"], ["pretrain", "--help"]])
def test_help(command: list[str], capsys: Capture) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(command)
    assert "asda" in capsys.readouterr().out


def test_going_on_with_a_released_model(audio_folder: Path, tmp_path: Path, catalog: Catalog, capsys: Capture) -> None:
    """A checkpoint is a config too; `asda show` prints one that fits; what begins anew is told."""
    file = write_fairseq(tmp_path / "released.pt", catalog).path
    assert main(["show", str(file)]) == 0
    (tmp_path / "run.yaml").write_text(capsys.readouterr().out)
    assert main(["show", str(tmp_path / "run.yaml")]) == 0
    assert yaml.safe_load(capsys.readouterr().out) == yaml.safe_load((tmp_path / "run.yaml").read_text())
    more = [
        "--init",
        str(file),
        "--data",
        str(audio_folder),
        "--device",
        "cpu",
        "--set",
        "steps=1",
        "data.batch_size=2",
    ]
    for number, config in enumerate((file, tmp_path / "run.yaml")):
        assert main(["pretrain", str(config), "--out", str(tmp_path / f"r{number}"), *more]) == 0
        errors = capsys.readouterr().err
        assert "initialised with the encoder of" in errors
        assert "with its objective" in errors
        assert "is not less than steps 1" in errors
    tuned = write_fairseq(tmp_path / "tuned.pt", catalog, classes=3).path
    more[1] = str(tuned)
    assert main(["pretrain", str(tuned), "--out", str(tmp_path / "t"), *more]) == 0
    assert "with a new objective" in capsys.readouterr().err
    assert main(["pretrain", "asda_tiny", "--out", str(tmp_path / "o"), *more]) == EXIT_ERROR
    assert "encoder.dim 128, not 40" in (errors := capsys.readouterr().err)
    assert "prints a config that fits" in errors
    wide = ["pretrain", str(file), "--init", str(file), "--out", str(tmp_path / "w"), *more[2:]]
    assert main([*wide, "objective.options.decoder.layers=1"]) == EXIT_ERROR
    assert "the objective of the run differs from that of the checkpoint" in capsys.readouterr().err


def test_devices_are_refused_in_a_line(config: Path, audio_folder: Path, capsys: Capture) -> None:
    assert main(["pretrain", str(config), "--data", str(audio_folder), "--device", "mps"]) == EXIT_ERROR
    errors = capsys.readouterr().err
    assert "the device 'mps' cannot be used here" in errors
    assert len(errors.splitlines()) < 5


@pytest.mark.parametrize("package", ["asda_core", "asda_hear"])
def test_what_is_not_asked_for_is_not_imported(package: str) -> None:
    """Help of every command, and mistakes in names and arguments, come at once, as do the processes of `--jobs`."""
    code = f"""
import contextlib, sys
from {package}.cli import PROGRAM, main
of_commands = [[command.name, *more] for command in PROGRAM.commands for more in (["--help"], ["--wrong"])]
for arguments in (["--help"], ["--version"], ["trian"], *of_commands):
    with contextlib.suppress(SystemExit):
        main(arguments)
assert not {{"torch", "numpy", "matplotlib"}} & set(sys.modules)
"""
    ran = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "0.1.0" in ran.stdout
    assert "invalid choice: 'trian'" in ran.stderr
    program = PROGRAM if package == "asda_core" else HEAR_PROGRAM
    for command in program.commands:
        assert f"usage: {program.name} {command.name}" in ran.stdout


@pytest.mark.parametrize("program", [PROGRAM, HEAR_PROGRAM], ids=lambda program: program.name)
def test_every_command_has_what_runs_it(program: Program) -> None:
    """Each names a function that is there and takes what was parsed."""
    waiting = [program.parser()]
    runs = []
    while waiting:
        parser = waiting.pop()
        below = [each for each in parser._actions if isinstance(each, argparse._SubParsersAction)]
        waiting += [choice for each in below for choice in each.choices.values()]
        if not below:
            runs.append(import_function(parser.get_default("run")))
    assert len(runs) >= len(program.commands)
    assert all(list(inspect.signature(run).parameters) == ["parsed"] for run in runs)


def test_words_of_the_command_line_are_those_of_the_package() -> None:
    assert tuple(family.replace(" ", "-") for family in hookspecs.FAMILIES) == arguments.FAMILIES
    assert device_name(AUTO) == ("cuda" if torch.cuda.is_available() else "cpu")
    assert usable_device(AUTO).type == device_name(AUTO)


def test_embedding_does_not_wait_for_pictures() -> None:
    """What draws and logs is imported by what draws and logs."""
    code = """
import contextlib, sys
from asda_core.cli import main
with contextlib.suppress(SystemExit):
    main(["embed", "none", "--out", "none", "--checkpoint", "none"])
assert "torch" in sys.modules
assert not {"matplotlib", "tensorboard", "sklearn"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize("name", ["api.load_model", "load_model", "model.HearModel", "pooling.BackboneOutput"])
def test_the_package_gives_what_it_has_always_given(name: str) -> None:
    code = f"import asda_hear; print(asda_hear.{name}.__name__, 'load_model' in dir(asda_hear)); asda_hear.nothing"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.stdout.split() == [name.rpartition(".")[2], "True"]
    assert "module 'asda_hear' has no attribute 'nothing'" in ran.stderr


def test_what_does_not_train_needs_no_audio(config: Path, tmp_path: Path, capsys: Capture) -> None:
    command = ["pretrain", str(config), "--out", str(tmp_path / "run"), "--device", "cpu"]
    assert main(command) == EXIT_ERROR
    assert "error: --data is required for training" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert main([*command, "--set", "steps=0"]) == 0
    assert (tmp_path / "run" / "model.safetensors").is_file()


def test_an_interrupt_while_modules_are_imported_counts(tmp_path: Path) -> None:
    """torch's own import swallows it: it would be lost, and the command would run to its end."""
    (tmp_path / "sound").mkdir()
    hook = """
import signal, sys
from importlib.abc import MetaPathFinder

class Finder(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "numpy._core._multiarray_umath":
            signal.raise_signal(signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever the shell of these tests has set
sys.meta_path.insert(0, Finder())
from asda_core.cli import main
sys.exit(main(["embed", "sound", "--out", "out"]))
"""
    run = subprocess.run([sys.executable, "-c", hook], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == EXIT_STOPPED
    assert run.stderr == "stopped; run the same command again to resume.\n"
    assert not (tmp_path / "out").exists()


def test_who_ignores_interrupts_still_does(audio_folder: Path, tmp_path: Path) -> None:
    """As whatever a script leaves in the background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    command = [sys.executable, "-m", "asda_core.cli", "embed", str(audio_folder), "--out", str(tmp_path / "out")]
    try:
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as run:
            for _ in range(8):
                time.sleep(0.3)
                run.send_signal(signal.SIGINT)
            assert run.wait(timeout=100) == 0
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("program", "command", "called"),
    [
        (PROGRAM, "pretrain tiny.yaml --data audio", "asda_core.commands.pretrain.installed_catalog"),
        (PROGRAM, "finetune finetune/tiny --checkpoint x --data a", "asda_core.commands.finetune.installed_catalog"),
        (HEAR_PROGRAM, "ablate plan.yaml", "asda_hear.ablate.load_plan"),
    ],
)
def test_who_trains_hears_an_interrupt_that_a_script_ignores(
    program: Program, command: str, called: str, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also outside the updates, where the loop has no handler of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(called, lambda *_: signal.raise_signal(signal.SIGINT))
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert program.run(command.split()) == EXIT_STOPPED
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("closed", ["2>&-", ">&-", ">&- 2>&-"])
def test_closed_streams_break_nothing(audio_folder: Path, tmp_path: Path, closed: str) -> None:
    """And what belongs to stderr does not come on stdout."""
    command = shlex.join([sys.executable, "-m", "asda_core.cli", "data", "stats", str(audio_folder), "--json"])
    run = subprocess.run(f"{command} {closed}", shell=True, capture_output=True, text=True)
    assert run.returncode == 0
    assert "Traceback" not in run.stderr
    if closed == "2>&-":
        assert run.stderr == ""
        assert json.loads(run.stdout)["files"] > 0


def test_a_run_that_resumes_or_is_complete_says_so(
    config: Path, audio_folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    command = ["pretrain", str(config), "--data", str(audio_folder), "--out", str(tmp_path / "run")]
    command += ["--set", "steps=2", "checkpoint_every=1", "keep_checkpoints=2"]
    assert main(command) == 0
    assert "of 2 steps" not in capsys.readouterr().err
    assert main(command) == 0
    assert f"{tmp_path / 'run'} is complete: 2 steps." in capsys.readouterr().err
    shutil.rmtree(tmp_path / "run" / "step-00000002")
    assert main(command) == 0
    assert f"{tmp_path / 'run'} resumes after step 1 of 2 steps." in capsys.readouterr().err
    assert main([*command, "--set", "seed=9"]) == EXIT_ERROR
    printed = capsys.readouterr().err
    assert "contains a different run (seed: 1, now 9)" in printed
    assert "of 2 steps" not in printed
