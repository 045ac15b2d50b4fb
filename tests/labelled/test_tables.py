"""Tables with a header."""

import random
from pathlib import Path

import pytest

from asda_core.errors import TaskError
from asda_core.labelled.tables import read_header, usual_column
from tests.labelled.making import found, read, sound, text


@pytest.fixture
def sounds(tmp_path: Path) -> Path:
    for name in ("a", "b", "c", "d"):
        sound(tmp_path / f"{name}.wav")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv", "filename,label,fold\na.wav,x,2\nb.wav,y,10\n"),
        ("t.csv", "\ufefffold , Path , Class\n2, a.wav , x\n10, b.wav ,y\n"),
        ("t.tsv", "fname\tcategory\tset\r\na.wav\tx\t2\r\nb.wav\ty\t10\r\n"),
        ("t.csv", "file;word;subset\na.wav;x;2\n\nb.wav;y;10\n"),
    ],
)
def test_usual_columns_and_delimiters(sounds: Path, name: str, content: str) -> None:
    data = read(text(sounds / name, content))
    assert found(data, sounds) == [("a.wav", ("x",), "2"), ("b.wav", ("y",), "10")]
    assert (data.name, data.classes, data.single) == ("t", ("x", "y"), True)
    assert read(sounds) == read(sounds / name, name=sounds.name)  # the one table of a folder


def test_columns_by_name(sounds: Path) -> None:
    content = "clip,label,digit,who\na.wav,x,10,ann\nb.wav,y,9,bob\nc.wav,y,-1.5,bob\n"
    table = text(sounds / "t.csv", content)
    data = read(table, file_column="clip", label_column="digit", split_column="who")
    assert found(data, sounds) == [("a.wav", ("10",), "ann"), ("b.wav", ("9",), "bob"), ("c.wav", ("-1.5",), "bob")]
    assert data.classes == ("-1.5", "9", "10")


def test_several_labels(sounds: Path) -> None:
    table = text(sounds / "t.csv", "file,labels\na.wav,x; y;x\nb.wav,\nc.wav,y\n")
    data = read(table)
    assert [each.labels for each in data.examples] == [("x", "y"), (), ("y",)]
    assert (data.classes, data.single) == (("x", "y"), False)
    text(table, 'file,labels\na.wav,"x, y"\nb.wav,z;w\n')
    assert read(table, label_separator=",").classes == ("x", "y", "z;w")


def test_a_file_in_several_rows(sounds: Path) -> None:
    table = text(sounds / "t.csv", "file,label,split\na.wav,x,1\nb.wav,x,2\n./a.wav,y,1\na.wav,x,1\n")
    assert found(read(table), sounds) == [("a.wav", ("x", "y"), "1"), ("b.wav", ("x",), "2")]
    text(table, "file,label,split\na.wav,x,1\nb.wav,x,2\na.wav,y,2\n")
    with pytest.raises(TaskError, match="t.csv line 4: a.wav is in the split '2', but in '1' at .*t.csv line 2"):
        read(table)


def test_where_the_audio_is(tmp_path: Path) -> None:
    table = text(tmp_path / "lists" / "t.csv", "fname,label\n17,x\n18.1,y\n")
    for name in ("17.wav", "deep/18.1.flac"):
        sound(tmp_path / "lists" / "audio" / name)
        sound(tmp_path / "elsewhere" / name)
    assert [each.file for each in read(table).examples][1] == table.parent / "audio" / "deep" / "18.1.flac"
    assert read(table, audio=str(tmp_path / "elsewhere")).examples[0].file == tmp_path / "elsewhere" / "17.wav"
    with pytest.raises(TaskError, match="no folder .*nowhere \\(key audio\\)"):
        read(table, audio=str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("file,path,label\na.wav,a.wav,x\n", "file and path could each be the file column; set file_column"),
        ("file,target,category\na.wav,0,x\n", "target and category could each be the label column; set label_column"),
        ("file,label,fold,split\na.wav,x,1,2\n", "fold and split could each be the split column; set split_column"),
        (
            "clip,label\na.wav,x\n",
            "none of the columns clip, label has a usual name of a file column .* set file_column",
        ),
        (
            "file,digit\na.wav,x\n",
            "none of the columns file, digit has a usual name of a label column .* set label_column",
        ),
        ("file,label\n", "t has no clips: its list is empty"),
        ("", "t.csv is empty; expected a header line with the column names"),
        (
            "file,label\na.wav,x\nb.wav,\n",
            "t.csv line 3: b.wav has no label, but t is not multi-label .no clip has several",
        ),
        ("file,label\na.wav,x\n,y\n", "line 3: the column file is empty"),
        ("file,label,fold\na.wav,x,1\nb.wav,x\n", "line 3: the column fold is empty"),
        ("file,label\na.wav,x,y\n", "line 2: 3 values, but 2 columns; quote values that contain the delimiter"),
        ("file,label\na.wav,x\nmissing.wav,y\n", "1 of 2 files not found: .*missing.wav \\(line 3\\)"),
        (
            'file,label\na.wav,x\nb.wav,"y\nc.wav,x\nd.wav,x\n',
            "a quote is not closed in the row that begins at line 3.$",
        ),
        (
            'file,label\na.wav,x\nb.wav,"y\n' + "c.wav,x\n" * 20_000,
            "field larger .* in the row that begins at line 3; is a quote not closed",
        ),
        (
            "file,label\na.wav,x\x00\x00\n" + "b" * 200_000 + ",y\n",
            "cannot read .*t.csv: field larger .* \\(after line 2",
        ),
    ],
)
def test_wrong_tables(sounds: Path, content: str, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        read(text(sounds / "t.csv", content))


def test_keys_that_do_not_fit(sounds: Path) -> None:
    table = text(sounds / "t.csv", "file,labels\na.wav,x\n")
    with pytest.raises(TaskError, match="unknown column 'label'. Did you mean 'labels'.*key label_column"):
        read(table, label_column="label")
    twice = text(sounds / "v.csv", "file,label,label\na.wav,x,y\n")
    with pytest.raises(TaskError, match="v.csv: several columns are called label; rename all but one"):
        read(twice, label_column="label")
    twice.unlink()
    words = text(sounds / "words.txt", "y\nxx\n")
    with pytest.raises(TaskError, match="t.csv line 2: unknown label 'x'. Did you mean 'xx'"):
        read(table, vocabulary=str(words))
    text(sounds / "u.csv", "file,labels\na.wav,x\n")
    with pytest.raises(TaskError, match="expected one table with a file column, found t.csv, u.csv"):
        read(sounds)


def test_blank_lines_above_the_header(sounds: Path) -> None:
    data = read(text(sounds / "t.csv", "\n \n\nfile,label\na.wav,x\nb.wav,y\n"))
    assert found(data, sounds) == [("a.wav", ("x",), ""), ("b.wav", ("y",), "")]
    with pytest.raises(TaskError, match="line 6: the column file is empty"):
        read(text(sounds / "t.csv", "\n \n\nfile,label\na.wav,x\n,y\n"))


def test_blank_lines_above_the_header_of_the_table_of_a_folder(sounds: Path) -> None:
    """Its columns say that the folder is no folder of classes."""
    text(sounds / "t.csv", "\n \n\nfile,label\na.wav,x\nb.wav,y\n")
    assert found(read(sounds), sounds) == [("a.wav", ("x",), ""), ("b.wav", ("y",), "")]


def test_not_utf8(sounds: Path) -> None:
    (sounds / "t.csv").write_bytes("file,label\na.wav,Vögel\n".encode("latin-1"))
    with pytest.raises(TaskError, match="byte 18 \\(0xf6\\) is not UTF-8"):
        read(sounds / "t.csv")


def test_random_tables_come_back(sounds: Path) -> None:
    """What a csv writer quotes is read back: commas, quotes, umlauts, line breaks."""
    generator = random.Random(0)
    labels = {name: "".join(generator.choices('a"ö ,\n', k=6)) + "z" for name in ("a", "b", "c", "d")}
    quoted = {name: label.replace('"', '""') for name, label in labels.items()}
    table = text(sounds / "t.csv", "file,label\n" + "".join(f'{name}.wav,"{q}"\n' for name, q in quoted.items()))
    assert [each.labels for each in read(table).examples] == [(label.strip(),) for label in labels.values()]


def test_labels_between_commas_in_a_column_of_labels(tmp_path: Path) -> None:
    """FSD50K's table; a comma in a column of one label is a part of its name."""
    for name in ("1.wav", "2.wav"):
        sound(tmp_path / name)
    many = text(tmp_path / "many.csv", 'fname,labels\n1.wav,"Bark,Dog"\n2.wav,Dog\n')
    assert (read(many).classes, read(many).single) == (("Bark", "Dog"), False)
    one = text(tmp_path / "one.csv", 'fname,label\n1.wav,"Male speech, man speaking"\n2.wav,Dog\n')
    assert (read(one).classes, read(one).single) == (("Dog", "Male speech, man speaking"), True)
    both = text(tmp_path / "both.csv", 'fname,labels\n1.wav,"Male speech, man; Dog"\n2.wav,Dog\n')
    assert read(both).classes == ("Dog", "Male speech, man")


def test_names_without_suffix_in_folders(tmp_path: Path) -> None:
    """cat/0 and dog/0 are two files, also where the folders lie deeper; a bare 0 could be either."""
    for name in ("audio/cat/0.wav", "audio/dog/0.wav", "audio/dog/1.wav"):
        sound(tmp_path / name)
    data = read(text(tmp_path / "t.csv", "filename,label\ncat/0,cat\ndog/0,dog\n1,dog\n"))
    names = [(name, labels) for name, labels, _ in found(data, tmp_path)]
    assert names == [("audio/cat/0.wav", ("cat",)), ("audio/dog/0.wav", ("dog",)), ("audio/dog/1.wav", ("dog",))]
    with pytest.raises(TaskError, match=r"line 2: 0 matches .*cat/0.wav and .*dog/0.wav; give names with suffix"):
        read(text(tmp_path / "t.csv", "filename,label\n0,cat\n"))


def test_a_file_column_with_another_that_might_be_one(tmp_path: Path) -> None:
    """The usual names of data sets go before those that only lists for pre-training have."""
    assert usual_column("file", ["filename", "file_path", "wav"], tmp_path) == "filename"
    assert usual_column("file", ["wav", "label"], tmp_path) == "wav"
    with pytest.raises(TaskError, match="filename and path could each be the file column"):
        usual_column("file", ["filename", "path"], tmp_path)


def test_a_header_with_commas_within_a_name(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("file;a,b,c;label\nx.wav;1;cat\n")
    assert read_header(tmp_path / "t.csv") == ["file", "a,b,c", "label"]
