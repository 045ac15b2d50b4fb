"""ESC-50, UrbanSound8K and Speech Commands as they are unpacked, in small; and the real audio that is here."""

from collections import Counter
from pathlib import Path

import pytest

from asda_core.errors import TaskError
from asda_core.labelled.source import SourceConfig
from asda_core.labelled.splits import rounds
from tests.conftest import SHARED
from tests.labelled.making import found, read, sound, text

ESC50 = (
    "filename,fold,target,category,esc10,src_file,take\n1-1-A-0.wav,1,0,dog,True,1,A\n2-1-A-1.wav,2,1,cow,False,1,A\n"
)


def test_esc50(tmp_path: Path) -> None:
    sound(tmp_path / "audio" / "1-1-A-0.wav")
    sound(tmp_path / "audio" / "2-1-A-1.wav")
    text(tmp_path / "meta" / "esc50.csv", ESC50)
    data = read(tmp_path)
    assert found(data, tmp_path / "audio") == [("1-1-A-0.wav", ("dog",), "1"), ("2-1-A-1.wav", ("cow",), "2")]
    assert data.classes == ("cow", "dog")
    assert read(tmp_path, label_column="target").classes == ("0", "1")
    (tmp_path / "audio" / "2-1-A-1.wav").unlink()
    with pytest.raises(TaskError, match="1 of 2 files not found"):
        read(tmp_path)
    (tmp_path / "meta" / "esc50.csv").unlink()
    with pytest.raises(TaskError, match="is not ESC-50: expected the folder audio and meta/esc50.csv"):
        read(tmp_path, format="esc50")


def test_part_of_esc50(tmp_path: Path) -> None:
    sound(tmp_path / "audio" / "1-1-A-0.wav")
    sound(tmp_path / "audio" / "2-1-A-1.wav")
    text(tmp_path / "part.csv", ESC50)
    assert [each.split for each in read(tmp_path).examples] == ["1", "2"]


def urbansound(root: Path, rows: str) -> Path:
    for name in ("fold1/1-3-0-0.wav", "fold10/2-0-0-0.wav"):
        sound(root / "audio" / name)
    header = "slice_file_name,fsID,start,end,salience,fold,classID,class\n"
    text(root / "metadata" / "UrbanSound8K.csv", header + rows)
    return root


def test_urbansound8k(tmp_path: Path) -> None:
    rows = "1-3-0-0.wav,1,0,1,1,1,10,ambulance\n2-0-0-0.wav,2,0,1,1,10,2,drill\n"
    data = read(urbansound(tmp_path, rows))
    assert found(data, tmp_path / "audio") == [
        ("fold1/1-3-0-0.wav", ("ambulance",), "1"),
        ("fold10/2-0-0-0.wav", ("drill",), "10"),
    ]
    assert data.classes == ("drill", "ambulance")
    with pytest.raises(TaskError, match="is read as urbansound8k, which does not use the key label_column"):
        read(tmp_path, label_column="classID")


def test_wrong_urbansound8k(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="2.wav \\(line 3\\)"):
        read(urbansound(tmp_path, "1-3-0-0.wav,1,0,1,1,1,3,dog\n2.wav,2,0,1,1,10,0,air\n"))
    with pytest.raises(TaskError, match="line 2: slice_file_name, fold or class is empty"):
        read(urbansound(tmp_path, "1-3-0-0.wav,1,0,1,1,,3,dog\n"))
    text(tmp_path / "metadata" / "UrbanSound8K.csv", "slice_file_name,fold,class\n")
    with pytest.raises(TaskError, match="unknown column 'classID'. Did you mean 'class'"):
        read(tmp_path)


def speech_commands(root: Path) -> Path:
    for name in ("yes/a.wav", "yes/b.wav", "no/a.wav", "no/c.wav", "_background_noise_/noise.wav"):
        sound(root / name)
    text(root / "validation_list.txt", "yes/b.wav\nno/gone.wav\n")
    text(root / "testing_list.txt", "no/c.wav\n")
    return root


def test_speech_commands(tmp_path: Path) -> None:
    data = read(speech_commands(tmp_path))
    assert found(data, tmp_path) == [
        ("no/a.wav", ("no",), "train"),
        ("no/c.wav", ("no",), "test"),
        ("yes/a.wav", ("yes",), "train"),
        ("yes/b.wav", ("yes",), "valid"),
    ]
    assert data.classes == ("no", "yes")


def test_wrong_speech_commands(tmp_path: Path) -> None:
    root = speech_commands(tmp_path)
    text(root / "testing_list.txt", "up/a.wav\nup/b.wav\n")
    with pytest.raises(TaskError, match="testing_list.txt: none of its 2 files exists below .*, e.g. 'up/a.wav'"):
        read(root)
    text(root / "testing_list.txt", "no/c.wav\n")
    loose = sound(root / "loose.wav")
    with pytest.raises(TaskError, match="loose.wav is not in a folder of its word"):
        read(root)
    loose.unlink()
    (root / "testing_list.txt").unlink()
    with pytest.raises(TaskError, match="cannot read .*testing_list.txt: No such file"):
        read(root, format="speech_commands")


@pytest.mark.shared
def test_real_esc10() -> None:
    data = read(SHARED / "data" / "esc10")
    assert (data.name, len(data.examples), len(data.classes), data.single) == ("esc10", 400, 10, True)
    folds = rounds(data, SourceConfig("esc10"))
    assert [each.name for each in folds] == [f"fold{number}" for number in range(1, 6)]
    for each in folds:
        assert (len(each.train), len(each.valid), len(each.test)) == (320, 0, 80)
        assert set(Counter(example.labels for example in each.test).values()) == {8}


@pytest.mark.shared
def test_real_fsdd() -> None:
    data = read(SHARED / "data" / "fsdd", label_column="digit", split_column="speaker")
    assert data.classes == tuple("0123456789")
    assert Counter(each.split for each in data.examples) == dict.fromkeys(
        ("george", "jackson", "lucas", "nicolas", "theo", "yweweler"), 500
    )
    message = "none of the columns filename, digit, speaker, index has a usual name of a label"
    with pytest.raises(TaskError, match=message):
        read(SHARED / "data" / "fsdd")
