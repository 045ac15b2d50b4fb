"""Labels in tar shards: webdataset's conventions, packs of ours, what is wrong named."""

import json
import tarfile
from pathlib import Path

import pytest
import torch

from asda_core.audio.reading import read_audio
from asda_core.audio_files.tars import member_bytes
from asda_core.cli import main
from asda_core.errors import TaskError
from asda_core.finetune.evaluation import load_predictions
from asda_core.labelled.examples import LabelledData
from asda_core.labelled.reading import read_labelled
from asda_core.labelled.source import SourceConfig, load_source
from asda_core.labelled.splits import rounds, with_splits
from tests.audio_files.shards import sound_bytes, write_tar
from tests.labelled.making import read, sound, text


def clip(key: str, number: int, **facts: object) -> list[tuple[str, bytes]]:
    return [(f"{key}.flac", sound_bytes(number)), (f"{key}.json", json.dumps(facts).encode())]


def said(folder: Path, **keys: object) -> list[tuple[str, tuple[str, ...], str]]:
    return [(each.file.name, each.labels, each.split) for each in read(folder, **keys).examples]


def test_labels_and_folds_of_descriptions(tmp_path: Path) -> None:
    """Words, whole numbers and lists; folds are as text, as those of a table."""
    write_tar(tmp_path / "a-0.tar", [*clip("x", 0, label="dog", fold=1), *clip("y", 1, label="cat", fold=2)])
    write_tar(tmp_path / "a-1.tar", [*clip("z", 2, label=3, fold=2), *clip("w", 3, label=["cat", "dog"], fold=1)])
    data = read(tmp_path)
    found = [(each.file, each.labels, each.split) for each in data.examples]
    first, second = tmp_path / "a-0.tar", tmp_path / "a-1.tar"
    assert found == [
        (first / "x.flac", ("dog",), "1"),
        (first / "y.flac", ("cat",), "2"),
        (second / "z.flac", ("3",), "2"),
        (second / "w.flac", ("cat", "dog"), "1"),
    ]
    assert data.classes == ("3", "cat", "dog")
    assert not data.single


def test_a_class_beside_the_sound_counts_before_its_description(tmp_path: Path) -> None:
    members = [("x.wav", sound_bytes(0)), ("x.cls", b"7\n"), ("d/y.k.flac", sound_bytes(1)), ("d/y.cls", b"10")]
    write_tar(tmp_path / "s.tar", [*members, *clip("z", 2, label="no"), ("z.cls", b"9")])
    data = read(tmp_path / "s.tar")
    assert [each.labels for each in data.examples] == [("7",), ("10",), ("9",)]
    assert data.classes == ("7", "9", "10")  # numbers by their value


def test_names_of_shards_tell_the_split_and_descriptions_go_before(tmp_path: Path) -> None:
    write_tar(tmp_path / "birds-train-000.tar", [*clip("a", 0, label="x"), *clip("b", 1, label="y", split="dev")])
    write_tar(tmp_path / "birds-test-000.tar", clip("c", 2, label="x"))
    write_tar(tmp_path / "birds_more.tar", [*clip("d", 3, label="y"), *clip("e", 4, label="y", split="")])
    assert said(tmp_path) == [
        ("c.flac", ("x",), "test"),
        ("a.flac", ("x",), "train"),
        ("b.flac", ("y",), "dev"),
        ("d.flac", ("y",), ""),
        ("e.flac", ("y",), ""),
    ]


def test_keys_may_be_named(tmp_path: Path) -> None:
    write_tar(tmp_path / "s.tar", clip("a", 0, bird="owl", label="no", year=3))
    assert said(tmp_path, label_column="bird", split_column="year") == [("a.flac", ("owl",), "3")]
    with pytest.raises(TaskError, match=r"no JSON description has the key 'brid' \(key label_column\)"):
        read(tmp_path, label_column="brid")
    with pytest.raises(TaskError, match="which does not use the key file_column"):
        read(tmp_path, file_column="bird")


def test_a_vocabulary_beside_the_shards_gives_the_classes(tmp_path: Path) -> None:
    write_tar(tmp_path / "s.tar", [*clip("a", 0, tags=["/m/1", "Dog"]), *clip("b", 1, tags=[])])
    text(tmp_path / "class_labels_indices.csv", "index,mid,display_name\n0,/m/2,Dog\n1,/m/1,Cat\n2,/m/3,Owl\n")
    data = read(tmp_path)
    assert data.classes == ("/m/2", "/m/1", "/m/3")
    assert [each.labels for each in data.examples] == [("/m/1", "/m/2"), ()]


@pytest.mark.parametrize(
    ("beside", "message"),
    [
        ([], r"x\.flac has no label: expected a \.cls beside it, or a \.json with a usual key for labels"),
        ([("x.json", b'{"caption": "a dog"}')], "with a usual key for labels"),
        ([("x.json", b'{"label": "dog"')], r"x\.json: it is not valid JSON"),
        ([("x.json", b'["dog"]')], r"x\.json: expected a JSON object, got list"),
        ([("x.json", b'{"label": {"name": "dog"}}')], r"label is \{'name': 'dog'\}; expected text or an integer"),
        ([("x.json", b'{"label": true}')], "label is True"),
        ([("x.json", b'{"label": ""}')], "label is ''"),
        ([("x.json", b'{"label": "dog", "category": "pet"}')], "label and category could each be the label column"),
        ([("x.json", b'{"label": "dog"}'), *clip("y", 1)], r"y\.flac has no label: .* with the key label"),
    ],
)
def test_what_says_no_label(tmp_path: Path, beside: list[tuple[str, bytes]], message: str) -> None:
    write_tar(tmp_path / "s.tar", [("x.flac", sound_bytes(0)), *beside])
    with pytest.raises(TaskError, match=message):
        read(tmp_path)


def test_shards_that_are_none_or_cut_off(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text(tmp_path / "none" / "s.tar", "no tar")
    with pytest.raises(TaskError, match="it is not a tar"):
        read(tmp_path / "none")
    whole = write_tar(tmp_path / "cut" / "s.tar", [*clip("x", 0, label="a"), *clip("y", 1, label="b")])
    with tarfile.open(whole) as tar:
        end = tar.getmember("y.json").offset_data
    whole.write_bytes(whole.read_bytes()[: end + 3])  # a sound without its description
    assert said(tmp_path / "cut") == [("x.flac", ("a",), "")]
    assert "y.flac: the shard is truncated before its label" in capsys.readouterr().err
    (tmp_path / "gone").mkdir()
    (tmp_path / "gone" / "s.tar").symlink_to(tmp_path / "nothing.tar")
    with pytest.raises(TaskError, match=r"s\.tar"):
        read(tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    with pytest.raises(TaskError, match="no shards"):
        read(tmp_path / "empty", format="shards")


def test_shards_by_their_numbers(tmp_path: Path) -> None:
    for number in range(3):
        write_tar(tmp_path / f"birds-train-{number:03d}.tar", clip(f"a{number}", number, label="xyz"[number]))
    data = read(tmp_path / "birds-train-{001..002}.tar")
    assert [(each.file.name, each.labels, each.split) for each in data.examples] == [
        ("a1.flac", ("y",), "train"),
        ("a2.flac", ("z",), "train"),
    ]
    assert data.name == "birds-train"
    with pytest.raises(TaskError, match=r"birds-train-003\.tar: No such file"):
        read(tmp_path / "birds-train-{001..003}.tar")


def test_home_in_a_task_file_that_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "task.yaml").write_text("data: packs")
    assert load_source(Path("~/task.yaml")) == (SourceConfig(data="packs"), tmp_path)


def test_tars_beside_loose_audio_are_left_alone(tmp_path: Path) -> None:
    sound(tmp_path / "dog" / "a.wav")
    sound(tmp_path / "b.wav")
    write_tar(tmp_path / "s.tar", clip("x", 0, label="a"))
    with pytest.raises(TaskError, match="not in a folder of its class"):
        read(tmp_path)


def test_shards_in_folders_of_splits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A class is never called as a shard; hidden files are none of ours, compressed shards are told of."""
    write_tar(tmp_path / "train" / "000000.tar", clip("a", 0, label="cat"))
    write_tar(tmp_path / "test" / "000000.tar", clip("a", 1, label="dog"))
    text(tmp_path / "train" / "._000000.tar", "of a Mac")
    for number in range(1, 5):
        text(tmp_path / "train" / f"{number:06d}.tar.gz", "compressed")
    assert said(tmp_path) == [("a.flac", ("dog",), "test"), ("a.flac", ("cat",), "train")]
    told = capsys.readouterr().err
    assert "skipped compressed shards in" in told
    assert "(unpack to use): 000001.tar.gz, 000002.tar.gz, 000003.tar.gz, ..." in told
    with pytest.raises(TaskError, match="is in a shard, not in a class folder"):
        read(tmp_path, format="folders")


def test_numbers_in_a_class_file_are_places_in_the_vocabulary(tmp_path: Path) -> None:
    members = [("x.wav", sound_bytes(0)), ("x.cls", b"1"), ("y.wav", sound_bytes(1)), ("y.cls", b"a")]
    write_tar(tmp_path / "s.tar", members)
    text(tmp_path / "class_labels_indices.csv", "0,a\n1,b\n")
    assert [each.labels for each in read(tmp_path).examples] == [("b",), ("a",)]
    text(tmp_path / "class_labels_indices.csv", "0,1\n1,a\n")  # a class that is called 1
    assert [each.labels for each in read(tmp_path).examples] == [("1",), ("a",)]


def test_a_named_key_goes_before_a_class_file_and_several_labels_stand_in_a_text(tmp_path: Path) -> None:
    facts = {"class": "dog", "target": 1, "tags": "x|y"}
    write_tar(tmp_path / "s.tar", [*clip("a", 0, **facts), ("a.cls", b"7")])
    assert said(tmp_path) == [("a.flac", ("7",), "")]  # though the JSON has two usual keys
    assert said(tmp_path, label_column="class") == [("a.flac", ("dog",), "")]
    assert said(tmp_path, label_column="tags", label_separator="|") == [("a.flac", ("x", "y"), "")]


def labelled_folder(folder: Path) -> Path:
    """Six clips of two classes in three folds, with a class that has none."""
    lines = ["file,label,fold"]
    for number in range(6):
        (folder / f"{number}.flac").parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.flac").write_bytes(sound_bytes(number))
        lines.append(f'{number}.flac,"{("owl, small", "10")[number % 2]}",{number // 2 + 1}')
    text(folder / "birds.csv", "\n".join(lines) + "\n")
    text(folder / "classes.txt", "owl, small\n10\nwren\n")
    text(folder / "task.yaml", "data: birds.csv\nvocabulary: classes.txt\n")
    return folder


@pytest.mark.parametrize("more", [[], ["--keep"], ["--shard-mebibytes", "1", "--jobs", "2"]])
def test_a_labelled_pack_is_the_same_data(tmp_path: Path, more: list[str]) -> None:
    """Labels, folds, classes with their order, and the sound of every clip."""
    loose = labelled_folder(tmp_path / "loose")
    main(["data", "pack", str(loose / "task.yaml"), "--labelled", "--out", str(tmp_path / "pack"), *more])
    before, after = read_labelled(*load_source(loose / "task.yaml")), read(tmp_path / "pack")
    assert after.classes == before.classes == ("owl, small", "10", "wren")
    assert after.single == before.single

    def by_sound(data: LabelledData) -> dict[bytes, tuple[tuple[str, ...], str]]:
        return {read_audio(each.file, 16_000).numpy().tobytes(): (each.labels, each.split) for each in data.examples}

    assert by_sound(after) == by_sound(before)
    assert len(by_sound(after)) == 6
    assert [len(each.test) for each in rounds(after, SourceConfig(data="pack"))] == [2, 2, 2]


def test_a_pack_keeps_to_its_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Other labels are another pack; pieces and several sources are refused."""
    loose = labelled_folder(tmp_path / "loose")
    command = ["data", "pack", str(loose / "birds.csv"), "--labelled", "--out", str(tmp_path / "pack")]
    assert main(command) == main(command) == 0  # done already
    table = loose / "birds.csv"
    table.write_text(table.read_text().replace(",3", ",1"))
    plain = [word for word in command if word != "--labelled"]
    assert main(plain) == 1  # without labels it would be half of each
    assert "a different pack" in capsys.readouterr().err
    for more, message in (
        ([], "a different pack"),
        (["--seconds", "1"], "could split a clip"),
        ([str(loose)], "one SOURCE"),
    ):
        assert main([*command[:3], *more, *command[3:]]) == 1
        assert message in capsys.readouterr().err


def test_other_classes_are_another_pack(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loose = labelled_folder(tmp_path / "loose")
    command = ["data", "pack", str(loose / "task.yaml"), "--labelled", "--out", str(tmp_path / "pack")]
    assert main(command) == 0
    kept = (tmp_path / "pack" / "class_labels_indices.csv").read_text()
    text(loose / "classes.txt", "wren\n10\nowl, small\n")
    assert main(command) == 1
    assert "a different pack" in capsys.readouterr().err
    assert (tmp_path / "pack" / "class_labels_indices.csv").read_text() == kept


def test_an_unfinished_pack_is_refused(tmp_path: Path) -> None:
    loose = labelled_folder(tmp_path / "loose")
    main(["data", "pack", str(loose / "birds.csv"), "--labelled", "--out", str(tmp_path / "pack")])
    (tmp_path / "pack" / "skipped.jsonl").unlink()  # written last
    with pytest.raises(TaskError, match="is not finished"):
        read(tmp_path / "pack")


def test_a_class_that_no_label_file_can_hold(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tar(tmp_path / "s" / "s.tar", [*clip("a", 0, label="x\ty", fold=1), *clip("b", 1, label="z", fold=2)])
    assert main(["data", "pack", str(tmp_path / "s"), "--labelled", "--out", str(tmp_path / "pack")]) == 1
    assert r"the class 'x\ty' has unprintable characters (tab, line break, ...)" in capsys.readouterr().err


@pytest.mark.parametrize(
    "keys", ["", "folds: 4\nseed: 3\n", "split: {train: [b], test: [a], leave_out: [c]}\nsplit_column: part\n"]
)
def test_splits_of_a_source_and_its_draws_are_packed(tmp_path: Path, keys: str) -> None:
    """The very clips to train and to test on are the same, whatever their new names; what is left out is left out."""
    lines = ["file,label,part" if "split" in keys else "file,label"]
    for number in range(20):
        (tmp_path / "loose").mkdir(exist_ok=True)
        (tmp_path / "loose" / f"{number}.flac").write_bytes(sound_bytes(number))
        lines.append(f"{number}.flac,{'xy'[number % 2]}" + (f",{'abbc'[number % 4]}" if "split" in keys else ""))
    text(tmp_path / "loose" / "all.csv", "\n".join(lines) + "\n")
    task = text(tmp_path / "loose" / "task.yaml", f"data: all.csv\n{keys}")
    main(["data", "pack", str(task), "--labelled", "--keep", "--out", str(tmp_path / "pack")])

    def heard(place: Path) -> list[tuple[set[bytes], ...]]:
        source, here = load_source(place)
        return [
            tuple({read_audio(each.file, 16_000).numpy().tobytes() for each in part} for part in (one.train, one.test))
            for one in rounds(read_labelled(source, here), source)
        ]

    assert heard(tmp_path / "pack") == heard(task)


def test_finetune_of_a_pack_equals_that_of_the_files(tmp_path: Path) -> None:
    """The same bytes in the same order, once in a shard and once loose: the same predictions to the last bit."""
    loose = labelled_folder(tmp_path / "loose")
    main(["data", "pack", str(loose / "birds.csv"), "--labelled", "--keep", "--out", str(tmp_path / "pack")])
    (tmp_path / "again").mkdir()
    lines = ["file,label,fold"]
    for number, each in enumerate(read(tmp_path / "pack").examples):
        (tmp_path / "again" / f"{number}.flac").write_bytes(member_bytes(each.file.parent, each.file.name))
        lines.append(f'{number}.flac,"{each.labels[0]}",{each.split}')
    text(tmp_path / "again" / "again.csv", "\n".join(lines) + "\n")
    given = []
    for data in (tmp_path / "pack", tmp_path / "again"):
        out = tmp_path / "out" / data.name
        command = ["finetune", "finetune/tiny", "--checkpoint", "asda_tiny", "--data", str(data), "--out", str(out)]
        main([*command, "--modes", "linear", "--folds", "1", "--set", "epochs=2"])
        (predictions,) = out.glob("*-linear-*/predictions.npz")
        given.append(torch.as_tensor(load_predictions(predictions).probabilities))
    assert torch.equal(given[0], given[1])


def test_folds_of_shards_that_are_all_called_train(tmp_path: Path) -> None:
    """webdataset's usual names: their word is no reason not to draw where folds are asked for."""
    members = [clip(str(number), number, label="ab"[number % 2]) for number in range(6)]
    write_tar(tmp_path / "train-000000.tar", [member for each in members for member in each])
    data = read(tmp_path)
    with pytest.raises(TaskError, match="has no test split, only train; .* draw folds with the key folds"):
        rounds(data, SourceConfig(data=str(tmp_path)))
    found = rounds(data, SourceConfig(data=str(tmp_path), folds=3))
    assert [(len(each.train), len(each.test)) for each in found] == [(4, 2)] * 3
    drawn = [with_splits(data, SourceConfig(data=str(tmp_path), folds=3, seed=seed)).examples for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]  # which digests of the data tell apart
