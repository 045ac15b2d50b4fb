"""Task files."""

from dataclasses import replace
from pathlib import Path

import pytest

from asda_core.errors import ConfigError
from asda_core.labelled.reading import read_labelled
from asda_core.labelled.source import SourceConfig, load_source, resolve_paths
from asda_core.labelled.splits import rounds
from tests.conftest import SHARED
from tests.labelled.making import sound, text


def test_a_task_file_and_its_relative_paths(tmp_path: Path) -> None:
    file = text(
        tmp_path / "tasks" / "digits.yaml",
        "data: ../data/table.csv\naudio: ../sounds\nlabel_column: digit\nfolds: 3\n"
        "split: {train: [a, 1], test: b, leave_out: [c]}\nset: {steps: 10, recipe.rate: 0.1}\n",
    )
    source, here = load_source(file)
    assert here == tmp_path / "tasks"
    assert source.split == {"train": ("a", "1"), "test": ("b",), "leave_out": ("c",)}
    assert source.set == {"steps": 10, "recipe.rate": 0.1}
    sound(tmp_path / "sounds" / "x.wav")
    sound(tmp_path / "sounds" / "y.wav")
    text(tmp_path / "data" / "table.csv", "file,digit\nx.wav,1\ny.wav,0\n")
    data = read_labelled(source, here)
    assert (data.name, data.classes) == ("table", ("0", "1"))
    assert all(each.file.is_file() for each in data.examples)


def test_any_other_path_is_the_data_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_source(Path("data/esc.v2")) == (SourceConfig(data="data/esc.v2"), Path())
    (tmp_path / "esc.v2").mkdir()
    assert resolve_paths(SourceConfig("esc.v2"), Path()).name == "esc.v2"
    assert resolve_paths(SourceConfig("."), tmp_path / "esc.v2").name == "esc.v2"
    assert resolve_paths(SourceConfig("a/list.v2.csv"), Path()).name == "list.v2"
    assert resolve_paths(SourceConfig("a", name="b"), Path()).name == "b"
    assert resolve_paths(SourceConfig("~/a", audio="~"), Path()).audio == str(Path.home())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("name: x\n", "task.yaml: data: Field required"),
        ("data: x\nlabels: y\n", "unknown config key 'labels'. Did you mean 'label_"),
        ("data: x\nformat: esc\n", "task.yaml: format: Input should be"),
        ("data: ''\n", "data is empty"),
        ("data: x\nfolds: 1\n", "folds must be 0, or 2 or more, not 1"),
        ("data: x\nseed: -1\n", "seed must be 0 or more"),
        ("data: x\nsplit: {train: [a], tests: [b]}\n", "unknown part 'tests'. Did you mean 'test'"),
        ("data: x\nsplit: {train: [a], test: [b, a]}\n", "the value 'a' is in both train and test"),
        ("data: x\nsplit: {train: [a]}\n", "split needs train and test .* got \\['train'\\]"),
        (
            "data: x\nsplit: {train: [no], test: [b]}\n",
            "split.train.0: expected str, got the boolean False. .*quote them",
        ),
        ("- a\n", "must be a mapping"),
    ],
)
def test_wrong_task_files(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_source(text(tmp_path / "task.yaml", content))


def test_a_missing_task_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the config"):
        load_source(tmp_path / "none.yml")


TASKS = Path(__file__).parents[2] / "configs" / "tasks"


@pytest.mark.shared
def test_the_tasks_of_the_package() -> None:
    """They read the sets that they are of, wherever DATA is."""
    found = {}
    for file in sorted(TASKS.glob("*.yaml")):
        source, here = load_source(file)
        located_at = {
            key: str(given).replace("../../DATA", str(SHARED / "data"))
            for key, given in (("data", source.data), ("audio", source.audio))
            if given is not None
        }
        source = replace(source, **located_at)  # type: ignore[arg-type]
        data = read_labelled(source, here)
        split = rounds(data, source)[0]
        found[data.name] = (len(data.classes), len(split.train), len(split.test))
    assert found == {"digits": (10, 2700, 300), "speakers": (6, 2700, 300), "esc10": (10, 320, 80)}
