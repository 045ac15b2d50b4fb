"""`asda new-plugin`: what it writes passes the contract; impossible names are refused; the guide's listing holds."""

import importlib
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from asda_core import cli as core_cli
from asda_core import testing
from asda_core.catalog import load_catalog
from asda_core.cli import main
from asda_core.commands.new_plugin import FAMILY_TEMPLATES, write_plugin
from asda_core.config_io import load_run_config, parse
from asda_core.hookspecs import FAMILIES
from asda_core.settings.strict_yaml import read_yaml
from asda_core.system.command_line import EXIT_ERROR
from asda_hear import cli as hear_cli
from asda_hear.ablation.settings import PlanConfig

GUIDE = (Path(__file__).parents[1] / "docs" / "write-a-plugin.md").read_text()
Capture = pytest.CaptureFixture[str]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", GUIDE, re.DOTALL)


@pytest.fixture
def modules() -> Iterator[None]:
    """Modules that a test imported from its own folder are forgotten."""
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith(("asda_own_", "test_own_")):
            del sys.modules[name]


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_written_passes_its_contract(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, modules: None, capsys: Capture
) -> None:
    """The package's own tests are run: the contract with two sets of options, and the offer."""
    name = f"own_{family.replace(' ', '_')}"
    given = [name.replace("_", "-"), "--family", family.replace(" ", "-"), "--into", str(tmp_path)]
    assert main(["new-plugin", *given]) == 0
    folder = tmp_path / f"asda-{given[0]}"
    printed = capsys.readouterr().out
    assert {file.name for file in folder.iterdir()} == {
        "pyproject.toml",
        f"asda_{name}.py",
        f"test_{name}.py",
        "README.md",
    }
    assert all(str(file) in printed for file in folder.iterdir())
    assert all("$" not in file.read_text() for file in folder.iterdir())
    monkeypatch.syspath_prepend(folder)
    module = importlib.import_module(f"asda_{name}")
    spec = load_catalog(module, installed=False).find(family, name).spec
    getattr(testing, FAMILY_TEMPLATES[family].check)(spec)
    tests = vars(importlib.import_module(f"test_{name}"))
    written = [test for key, test in tests.items() if key.startswith("test_")]
    assert len(written) == 3
    for test in written:
        test()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_metadata(family: str, tmp_path: Path) -> None:
    folder, files = write_plugin(family, "mine_2", tmp_path / "a" / "b", load_catalog(installed=False))
    assert folder.parent == tmp_path / "a" / "b"
    assert files == [folder / name for name in ("pyproject.toml", "asda_mine_2.py", "test_mine_2.py", "README.md")]
    metadata = tomllib.loads((folder / "pyproject.toml").read_text())
    assert metadata["project"]["name"] == folder.name == "asda-mine-2"
    assert metadata["project"]["dependencies"] == ["asda-hear"]
    assert metadata["project"]["entry-points"]["asda"] == {"mine_2": "asda_mine_2"}
    assert metadata["tool"]["hatch"]["build"]["targets"]["wheel"]["only-include"] == ["asda_mine_2.py"]
    for file in files[1:3]:
        compile(file.read_text(), str(file), "exec")
    assert "mine_2" in files[3].read_text()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Big", "lower-case letters and digits"),
        ("2x", "lower-case letters and digits"),
        ("a--b", "lower-case letters and digits"),
        ("élan", "lower-case letters and digits"),
        ("class", "a Python keyword"),
        ("null", "YAML reads it as None"),
        ("standard", "the mixer name 'standard' is taken by asda-hear "),
        ("core", "a module asda_core is installed already"),
    ],
)
def test_names_that_cannot_be(name: str, message: str, tmp_path: Path, capsys: Capture) -> None:
    assert main(["new-plugin", name, "--into", str(tmp_path)]) == EXIT_ERROR
    assert message in (errors := capsys.readouterr().err)
    assert len(errors.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "asda-mine"
    folder.mkdir()
    assert main(["new-plugin", "mine"]) == 0, "an empty folder is filled"
    (folder / "asda_mine.py").write_text("work")
    assert main(["new-plugin", "mine"]) == EXIT_ERROR
    assert "exists and is not empty; nothing was written" in capsys.readouterr().err
    assert (folder / "asda_mine.py").read_text() == "work"


def test_a_place_that_cannot_be_written(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "file").write_text("")
    assert main(["new-plugin", "mine", "--into", str(tmp_path / "file")]) == EXIT_ERROR
    (tmp_path / "asda-mine").write_text("")
    assert main(["new-plugin", "mine", "--into", str(tmp_path)]) == EXIT_ERROR
    errors = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in errors] == ["error", "error"]


def test_the_listing_of_the_guide_passes(modules: None) -> None:
    listing, _ = blocks("python")  # the second is a method
    module = ModuleType("asda_own_listing")
    sys.modules[module.__name__] = module  # dataclasses look their module up
    exec(compile(listing, "docs/write-a-plugin.md", "exec"), vars(module))
    offer = load_catalog(module, installed=False).find("mixer", "linear")
    testing.check_mixer(offer.spec)
    testing.check_mixer(offer.spec, qkv_bias=False)


def test_the_commands_and_files_of_the_guide_parse(tmp_path: Path) -> None:
    parsers = {"asda": core_cli.make_parser(), "asda-hear": hear_cli.make_parser()}
    commands = [part.split() for block in blocks("bash") for line in block.splitlines() for part in line.split("&&")]
    asda = [words for words in commands if words[0] in parsers]
    assert {words[1] for words in asda} == {"new-plugin", "plugins", "pretrain", "show"}
    for words in asda:
        parsers[words[0]].parse_args(words[1:])
    run, plan = blocks("yaml")
    (tmp_path / "small.yaml").write_text(run)
    assert load_run_config(tmp_path / "small.yaml").encoder.mixer.name == "linear"
    (tmp_path / "plan.yaml").write_text(plan)
    assert parse(PlanConfig, read_yaml(tmp_path / "plan.yaml")).axes == {"encoder.mixer": ["standard", "linear"]}
