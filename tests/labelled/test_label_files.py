"""Label files: AudioSet's table, a table of index and name, a list; names for the classes of a classifier."""

from pathlib import Path

import pytest

from asda_core.errors import ConfigError
from asda_core.finetune_config import ClassifierConfig
from asda_core.labelled.label_files import Label, class_names, read_labels

Capture = pytest.CaptureFixture[str]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (
            'index,mid,display_name\n0,/m/a,"Speech, male"\n1,/m/b,Dog\n',
            [Label("/m/a", "Speech, male"), Label("/m/b", "Dog")],
        ),
        ("1,/m/b,Dog\n0,/m/a,Cat\n", [Label("/m/a", "Cat"), Label("/m/b", "Dog")]),
        ("0,dog\n1,cat\n", [Label("", "dog"), Label("", "cat")]),
        ("\ufeffdog\n\ncat, black\n", [Label("", "dog"), Label("", "cat, black")]),
        ("0\tdog\n1\tcat\n", [Label("", "dog"), Label("", "cat")]),
        ("²,dog\n", [Label("", "²,dog")]),
        ("0\n1\n", [Label("", "0"), Label("", "1")]),
    ],
)
def test_label_files(tmp_path: Path, text: str, wanted: list[Label]) -> None:
    file = tmp_path / "labels.csv"
    file.write_text(text, encoding="utf-8")
    assert read_labels(file) == wanted


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "holds no labels"), ("0,a,b\n2,c,d\n", "not 0 to 1, each once"), ("0,a,b\nx,c,d\n", "some rows begin with")],
)
def test_bad_label_files(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "labels.csv"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_labels(file)


def test_names_of_classes() -> None:
    plain, known = ClassifierConfig(2), ClassifierConfig(2, labels=("/m/a", "/m/b"))
    table = [Label("/m/b", "Bee"), Label("/m/a", "Ant")]
    assert class_names(plain, None) == ["class 0", "class 1"]
    assert class_names(known, None) == ["/m/a", "/m/b"]
    assert class_names(plain, table) == ["Bee", "Ant"]
    assert class_names(known, [*table, Label("/m/c", "Cat")]) == ["Ant", "Bee"]
    with pytest.raises(ConfigError, match="has 2 classes, but the label file names 3"):
        class_names(plain, [*table, Label("/m/c", "Cat")])


def test_identifiers_of_another_data_set(capsys: Capture) -> None:
    known = ClassifierConfig(2, labels=("/m/a", "/m/b"))
    assert class_names(known, [Label("/x/1", "Ant"), Label("/x/2", "Bee")]) == ["Ant", "Bee"]
    assert "names are assigned in order" in capsys.readouterr().err
