"""A folder for each class."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from asda_core.errors import TaskError
from tests.labelled.making import found, read, sound, text


def test_a_folder_per_class(tmp_path: Path) -> None:
    for name in ("10/a.wav", "2/a.wav", "2/b.flac"):
        sound(tmp_path / name)
    text(tmp_path / "readme.csv", "this,is,no list\n")
    data = read(tmp_path, name="numbers")
    assert found(data, tmp_path) == [("10/a.wav", ("10",), ""), ("2/a.wav", ("2",), ""), ("2/b.flac", ("2",), "")]
    assert (data.name, data.classes, data.class_names, data.single) == ("numbers", ("2", "10"), ("2", "10"), True)


@pytest.mark.parametrize(
    "names", [("train", "valid", "test"), ("Training", "val", "eval"), ("train", "dev", "testing")]
)
def test_splits_and_their_other_names(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        sound(tmp_path / name / "cat" / "a.wav")
    (tmp_path / "docs").mkdir()
    data = read(tmp_path)
    assert sorted(each.split for each in data.examples) == ["test", "train", "valid"]
    assert data.classes == ("cat",)


def test_a_folder_that_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The class is missing, and that is said; on a file server it may be any error."""
    for name in ("cat", "dog", "owl"):
        sound(tmp_path / name / "a.wav")
    scan = os.scandir

    def refusing(folder: str | Path) -> Iterator[os.DirEntry[str]]:
        if Path(folder).name == "owl":
            raise PermissionError(errno.EACCES, "Permission denied")
        return scan(folder)

    monkeypatch.setattr(os, "scandir", refusing)
    monkeypatch.setattr(os, "access", lambda folder, mode: Path(folder).name != "owl")
    assert read(tmp_path).classes == ("cat", "dog")
    warnings = capsys.readouterr().err
    assert f"warning: cannot read the folder {tmp_path / 'owl'}: Permission denied; its files are not used." in warnings
    assert f"warning: {tmp_path / 'owl'} cannot be read and not used as a class." in warnings


def test_a_vocabulary_orders_and_may_have_more(tmp_path: Path) -> None:
    for name in ("dog", "cat"):
        sound(tmp_path / "data" / name / "a.wav")
    words = text(tmp_path / "words.txt", "dog\nmouse\ncat\n")
    assert read(tmp_path / "data", vocabulary=str(words)).classes == ("dog", "mouse", "cat")
    text(words, "index,mid,name\n0,/m/1,dog\n1,/m/2,cat\n")
    data = read(tmp_path / "data", vocabulary=str(words))
    assert (data.classes, data.class_names) == (("/m/1", "/m/2"), ("dog", "cat"))
    assert [each.labels for each in data.examples] == [("/m/2",), ("/m/1",)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("dog\ncar\n", "cat/a.wav: unknown label 'cat'. Did you mean 'car'"),
        ("dog\ncat\ndog\n", "lists the class 'dog' twice"),
        ("", "holds no labels"),
    ],
)
def test_wrong_vocabularies(tmp_path: Path, content: str, message: str) -> None:
    sound(tmp_path / "data" / "cat" / "a.wav")
    with pytest.raises(TaskError, match=message):
        read(tmp_path / "data", vocabulary=str(text(tmp_path / "words.txt", content)))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("cat/a.wav", "loose.wav"), "loose.wav is not in a folder of its class \\(expected CLASS/FILE"),
        (("cat/deep/a.wav",), "a.wav is not in a folder of its class"),
        (("train/cat/a.wav", "test/b.wav"), "expected SPLIT/CLASS/FILE"),
        (("train/cat/a.wav", "extra/cat/b.wav"), "the folder train is named like a split, but extra is not"),
        ((), "no audio files in"),
    ],
)
def test_wrong_folders(tmp_path: Path, names: tuple[str, ...], message: str) -> None:
    for name in names:
        sound(tmp_path / name)
    with pytest.raises(TaskError, match=message):
        read(tmp_path)


def test_nothing_there_and_no_format(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="none does not exist; expected a folder, a table or a shard"):
        read(tmp_path / "none")
    with pytest.raises(TaskError, match="a.wav is neither a folder nor a table"):
        read(sound(tmp_path / "a.wav"))
    with pytest.raises(TaskError, match="a.wav is a file, but the format folders needs a folder"):
        read(tmp_path / "a.wav", format="folders")
    with pytest.raises(TaskError, match="is read as folders, which does not use the key split_column"):
        read(tmp_path, split_column="fold")


def test_what_is_hidden_is_no_class(tmp_path: Path) -> None:
    """Caches of programs, and the shadows that some systems leave of every file."""
    for name in ("x/a.wav", "y/a.wav", "y/._a.wav", ".cache/a.wav"):
        sound(tmp_path / name)
    assert found(read(tmp_path, name="n"), tmp_path) == [("x/a.wav", ("x",), ""), ("y/a.wav", ("y",), "")]


def test_a_class_called_train(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As in ESC-50: beside folders that no split is called by, with sounds in it, it is one of them."""
    for name in ("train/1.wav", "dog/1.wav", "helicopter/1.wav"):
        sound(tmp_path / name)
    data = read(tmp_path)
    assert data.classes == ("dog", "helicopter", "train")
    assert {example.split for example in data.examples} == {""}
    assert "train is treated as a class, like the folders beside it." in capsys.readouterr().err
