"""AudioSet: manifests of the released code, and lists of segments."""

from pathlib import Path

import pytest

from asda_core.errors import TaskError
from asda_core.labelled.source import SourceConfig
from asda_core.labelled.splits import rounds
from tests.labelled.making import found, read, sound, text

VOCABULARY = 'index,mid,display_name\n0,/m/09x0r,"Speech"\n1,/m/05zppz,"Male speech, man speaking"\n2,/m/068hy,"Pets"\n'


@pytest.fixture
def manifests(tmp_path: Path) -> Path:
    """The files that manifests name are not there: they are not looked at."""
    folder = tmp_path / "AS20K"
    (tmp_path / "clips").mkdir()
    text(folder / "train.tsv", "../clips\npart 1/Y-ab_cd.wav\t160000\nY--x.flac 160000\n\n")
    text(folder / "train.lbl", "-ab_cd\t/m/05zppz,/m/09x0r\nY--x /m/09x0r\n")
    text(folder / "eval.tsv", f"{tmp_path / 'clips'}\nmy file.wav 99\n")
    text(folder / "eval.lbl", "my file /m/09x0r\n")
    text(folder / "label_descriptors.csv", VOCABULARY)
    return folder


def test_manifests(manifests: Path) -> None:
    data = read(manifests)
    assert [(each.file.name, each.labels, each.split) for each in data.examples] == [
        ("my file.wav", ("/m/09x0r",), "test"),
        ("Y-ab_cd.wav", ("/m/05zppz", "/m/09x0r"), "train"),
        ("Y--x.flac", ("/m/09x0r",), "train"),
    ]
    assert data.examples[1].file == manifests / "../clips" / "part 1" / "Y-ab_cd.wav"
    assert data.classes == ("/m/09x0r", "/m/05zppz", "/m/068hy")
    assert data.class_names[1] == "Male speech, man speaking"
    assert (data.name, data.single) == ("AS20K", False)


def test_one_manifest_without_vocabulary_and_another_root(manifests: Path, tmp_path: Path) -> None:
    (manifests / "label_descriptors.csv").unlink()
    data = read(manifests / "train.tsv", audio=str(tmp_path))
    assert found(data, tmp_path)[0] == ("part 1/Y-ab_cd.wav", ("/m/05zppz", "/m/09x0r"), "train")
    assert data.classes == ("/m/05zppz", "/m/09x0r")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train.tsv", "../clips\nY-ab_cd.wav\t1\n", "train.tsv lists 1 file, but .*train.lbl has 2 lines"),
        ("train.tsv", "../gone\na.wav\t1\nb.wav\t1\n", "its root folder .*gone does not exist; correct line 1"),
        ("train.tsv", "../clips\na.h5/key\t1\nb.wav\t1\n", "line 2: a.h5/key is in an HDF5 file"),
        ("train.tsv", "../clips\n-ab_cd.wav\nY--x.flac\t1\n", "line 2: expected NAME<tab>SAMPLES, got '-ab_cd.wav'"),
        ("train.tsv", "../clips\nY-ab_cd.wav\t1\nother.wav\t1\n", "train.lbl line 2: labels for 'Y--x', but .* line 3"),
        ("train.tsv", "", "train.tsv lists 0 files"),
        ("train.lbl", "-ab_cd\t/m/05zppz\nY--x\t/m/068h\n", "train.lbl line 2: unknown label '/m/068h'. .*'/m/068hy'"),
    ],
)
def test_wrong_manifests(manifests: Path, name: str, content: str, message: str) -> None:
    text(manifests / name, content)
    with pytest.raises(TaskError, match=message):
        read(manifests)


def test_a_clip_for_training_and_testing(manifests: Path) -> None:
    text(manifests / "eval.tsv", "../clips\nY--x.flac 160000\n")
    text(manifests / "eval.lbl", "Y--x /m/09x0r\n")
    with pytest.raises(TaskError, match="train.lbl line 2: Y--x.flac is in the split 'train', but .*eval.lbl line 1"):
        read(manifests)


def test_no_manifest(tmp_path: Path) -> None:
    text(tmp_path / "train.tsv", "root\n")
    with pytest.raises(TaskError, match="is not AudioSet: expected X.tsv with X.lbl beside it"):
        read(tmp_path, format="audioset")


HEAD = """# Segments csv created Sun Mar  5 10:54:31 2017
# num_ytids=2, num_segs=2
# YTID, start_seconds, end_seconds, positive_labels
"""


@pytest.mark.parametrize(
    "stem",
    ["{}", "Y{}", "{}_30", "Y{}_30.000", "{}_30000", "{}_30_40", "Y{}_30.000_40.000", "{}_30000_40000"],
)
def test_segments_and_the_names_of_their_audio(tmp_path: Path, stem: str) -> None:
    folder = tmp_path / "lists"
    rows = '--_B_30_xyz, 30.000, 40.000, "/m/09x0r,/m/05zppz"\n-0RWZT-miFs, 30.000, 40.000, "/m/068hy"\n'
    text(folder / "balanced_train_segments.csv", HEAD + rows)
    text(folder / "eval_segments.csv", HEAD + 'Y1234567890, 30.000, 40.000, "/m/09x0r"\n')
    text(folder / "class_labels_indices.csv", VOCABULARY)
    for name in ("--_B_30_xyz", "-0RWZT-miFs", "Y1234567890"):
        sound(tmp_path / "clips" / name[:2] / f"{stem.format(name)}.flac")
    data = read(folder, audio=str(tmp_path / "clips"))
    assert [(each.file.stem, each.labels, each.split) for each in data.examples] == [
        (stem.format("--_B_30_xyz"), ("/m/09x0r", "/m/05zppz"), "train"),
        (stem.format("-0RWZT-miFs"), ("/m/068hy",), "train"),
        (stem.format("Y1234567890"), ("/m/09x0r",), "test"),
    ]
    assert data.classes == ("/m/09x0r", "/m/05zppz", "/m/068hy")


def test_a_segment_is_preferred_to_the_whole_video(tmp_path: Path) -> None:
    for name in ("abc", "abc_30", "abc_30_40", "abc_30_50"):
        sound(tmp_path / f"{name}.wav")
    table = text(tmp_path / "mine.csv", HEAD + "abc, 30.000, 40.000, x\n")
    data = read(table)
    assert found(data, tmp_path) == [("abc_30_40.wav", ("x",), "")]


def test_videos_vanish(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = "".join(f"video{number}, 0.000, 10.000, x\n" for number in range(1_500))
    table = text(tmp_path / "unbalanced_train_segments.csv", "YTID,start_seconds,end_seconds,positive_labels\n" + rows)
    message = "1,500 of 1,500 segments have no audio file .* looked for names such as YTID_30"
    with pytest.raises(TaskError, match=message):
        read(tmp_path)
    sound(tmp_path / "video7_0.wav")
    assert found(read(table), tmp_path) == [("video7_0.wav", ("x",), "train")]
    assert capsys.readouterr().err == f"warning: 1,499 of 1,500 segments have no audio file below {tmp_path}.\n"


@pytest.mark.parametrize("row", ["abc, 30.000, /m/1", "abc, thirty, 40.000, /m/1", "abc, 30, inf, /m/1"])
def test_wrong_segments(tmp_path: Path, row: str) -> None:
    table = text(tmp_path / "eval_segments.csv", f"{HEAD}{row}\n")
    with pytest.raises(TaskError, match="eval_segments.csv line 4: expected YTID, START, END"):
        read(table)
    with pytest.raises(TaskError, match="no folder .*gone \\(key audio\\)"):
        read(table, audio=str(tmp_path / "gone"))


def test_balanced_and_unbalanced_lists(tmp_path: Path) -> None:
    """Both train, but for the one that is left out."""
    for name, video in (("balanced_train", "aaa"), ("unbalanced_train", "bbb"), ("eval", "ccc")):
        text(tmp_path / f"{name}_segments.csv", HEAD + f'{video}, 30.000, 40.000, "/m/09x0r"\n')
        sound(tmp_path / f"{video}.wav")
    data = read(tmp_path)
    assert {each.file.stem: each.split for each in data.examples} == {
        "aaa": "balanced_train", "bbb": "unbalanced_train", "ccc": "test",
    }  # fmt: skip
    whole = rounds(data, SourceConfig(data=str(tmp_path)))[0]
    assert [each.file.stem for each in whole.train] == ["aaa", "bbb"]
    split = {"train": ("balanced_train",), "test": ("eval",), "leave_out": ("unbalanced_train",)}
    small = rounds(data, SourceConfig(data=str(tmp_path), split=split))[0]
    assert [[each.file.stem for each in part] for part in (small.train, small.test)] == [["aaa"], ["ccc"]]
