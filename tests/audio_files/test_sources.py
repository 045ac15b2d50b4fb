"""What `--data` takes: manifests, tables, shards by their numbers, streams."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asda_core.audio_files import digests, manifests
from asda_core.audio_files.pack_options import SKIPPED_FILE, PackOptions
from asda_core.audio_files.sources import (
    ShardStream,
    expand_braces,
    find_audio,
    find_training_data,
    list_identity,
    warn_of_duplicates,
)
from asda_core.audio_files.tars import INDEX_SUFFIX
from asda_core.data.packing import pack
from asda_core.errors import AudioError, ConfigError
from tests.audio_files.shards import write_shards


def test_numbers_in_a_name(tmp_path: Path) -> None:
    assert expand_braces("a-{08..11}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]
    assert expand_braces("{0..1}/{2..3}") == ["0/2", "0/3", "1/2", "1/3"]
    assert expand_braces("plain.tar") == ["plain.tar"]
    with pytest.raises(ConfigError, match=r"3..1 is descending; write \{1..3\}"):
        expand_braces("{3..1}.tar")
    write_shards(tmp_path, [2, 1, 3])
    assert len(find_audio(tmp_path / "train-{000..002}.tar")) == 6
    assert find_audio(tmp_path / "train-{000..002}.tar") == find_audio(tmp_path)
    with pytest.raises(AudioError, match="no folder, manifest or audio file at .*train-003.tar"):
        find_audio(tmp_path / "train-{000..003}.tar")


def test_a_tar_beside_loose_files_is_left_out(audio_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Most often it is the archive that they were unpacked from; older runs keep their files."""
    before = find_audio(audio_folder)
    (shard,) = write_shards(audio_folder, [2])
    assert find_audio(audio_folder) == before
    assert "skipped 1 tar file beside 5 audio files" in capsys.readouterr().err
    assert len(find_training_data([audio_folder, shard])) == 7


def test_audio_that_cannot_be_read_is_counted(audio_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = find_audio(audio_folder)
    for name in ("a.m4a", "b.M4A", "c.aac", "notes.txt"):
        (audio_folder / name).write_bytes(b"")
    assert find_audio(audio_folder) == before
    assert "skipped 3 files" in (told := capsys.readouterr().err)
    assert "(.aac, .m4a); convert them" in told
    soundfile.write(audio_folder / "d.caf", np.zeros(100), 8000)
    assert find_audio(audio_folder) == sorted([*before, audio_folder / "d.caf"])
    assert find_audio(audio_folder / "d.caf") == [audio_folder / "d.caf"]


def test_the_tsv_of_fairseq(audio_folder: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "elsewhere" / "train.tsv"
    manifest.parent.mkdir()
    manifest.write_text(f"{audio_folder}\nsound2.ogg\t44100\nsound0.wav\t16000\n")
    assert find_audio(manifest) == [audio_folder / "sound2.ogg", audio_folder / "sound0.wav"]


@pytest.mark.parametrize("delimiter", [",", "\t"])
def test_a_table_with_a_column_of_files(audio_folder: Path, tmp_path: Path, delimiter: str) -> None:
    table = tmp_path / "table.csv"
    rows = [("id", "label", "file"), ("1", "dog, loud", "audio/sound1.flac"), ("2", "cat", "audio/sound0.wav")]
    quoted = [delimiter.join(f'"{cell}"' if "," in cell else cell for cell in row) for row in rows]
    table.write_text("\n".join(quoted))
    assert find_audio(table) == [audio_folder / "sound1.flac", audio_folder / "sound0.wav"]


def test_a_manifest_names_shards_and_sounds_in_them(tmp_path: Path) -> None:
    first, second = write_shards(tmp_path, [2, 2])
    manifest = tmp_path / "list.txt"
    manifest.write_text(f"{first.name}\n{second.name}/0003.flac\n")
    assert find_audio(manifest) == [first / "0000.flac", first / "0001.flac", second / "0003.flac"]


def test_parquet(audio_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    names = ["audio/sound1.flac", "audio/sound0.wav", "audio/sound2.ogg"]
    table = tmp_path / "table.parquet"
    parquet.write_table(pyarrow.table({"number": [1, 2, 3], "origin": ["a.wav"] * 3, "path": names}), table)
    assert find_audio(table) == [tmp_path / name for name in names]
    parquet.write_table(pyarrow.table({"number": [1, 2], "note": ["x", "y"]}), table)
    with pytest.raises(AudioError, match="no column names audio files .columns: number, note;"):
        find_audio(table)
    table.write_text("no parquet")
    with pytest.raises(AudioError, match="not a parquet table or is damaged"):
        find_audio(table)

    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(manifests, "import_module", missing)
    with pytest.raises(ConfigError, match=r"parquet needs pyarrow: pip install 'asda-hear\[parquet\]'"):
        find_audio(table)


def test_streams(tmp_path: Path) -> None:
    first, second = write_shards(tmp_path, [2, 1])
    found = find_training_data([f"stream:{tmp_path}/train-{{000..001}}.tar", "pipe:curl -s https://host/{0..1}.tar"])
    assert found[:2] == [ShardStream(f"stream:{first}"), ShardStream(f"stream:{second}")]
    assert [shard.address for shard in found[2:]] == [
        "pipe:curl -s https://host/0.tar",
        "pipe:curl -s https://host/1.tar",
    ]
    assert list_identity(found)[0] == ("train-000.tar", first.stat().st_size)
    assert list_identity(found)[2] == ("pipe:curl -s https://host/0.tar", 0)
    with pytest.raises(ConfigError, match="is a stream, .* is not"):
        find_training_data([f"stream:{first}", second])
    with pytest.raises(AudioError, match="1 of 2 shards not found: stream:.*train-002.tar"):
        find_training_data([f"stream:{tmp_path}/train-{{001..002}}.tar"])
    with pytest.raises(AudioError, match=r"4 of 5 shards not found: \S*002.tar, \S*003.tar, \S*004.tar, \.\.\."):
        find_training_data([f"stream:{tmp_path}/train-{{001..005}}.tar"])
    with pytest.raises(ConfigError, match="only `asda pretrain` reads streamed shards"):
        find_audio(f"stream:{first}")
    assert find_training_data([tmp_path]) == find_audio(tmp_path)


def test_links_to_folders_are_followed_and_circles_are_not(audio_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "CLASSES" / "cat").mkdir(parents=True)
    sound = next(file for file in find_audio(audio_folder) if file.suffix == ".wav" and file.parent == audio_folder)
    (tmp_path / "CLASSES" / "cat" / "a.wav").symlink_to(sound)
    (tmp_path / "CLASSES" / "dog").symlink_to(sound.parent)
    (tmp_path / "CLASSES" / "cat" / "up").symlink_to(tmp_path / "CLASSES")
    (tmp_path / "CLASSES" / "lost").symlink_to(tmp_path / "nowhere")
    found = find_audio(tmp_path / "CLASSES")
    assert found[0] == tmp_path / "CLASSES" / "cat" / "a.wav"
    below = [file.relative_to(audio_folder) for file in find_audio(audio_folder)]
    assert found[1:] == [tmp_path / "CLASSES" / "dog" / file for file in below]


def test_folders_that_link_to_each_other(
    audio_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No walk without end, nor one that multiplies without bounds; what is there more than once is told."""
    sound = next(audio_folder.glob("*.wav"))
    for number in range(9):
        folder = tmp_path / "many" / f"f{number}"
        folder.mkdir(parents=True)
        shutil.copy(sound, folder / "a.wav")
        for other in {*range(9)} - {number}:
            (folder / f"to{other}").symlink_to(f"../f{other}")
    (tmp_path / "many" / "me").symlink_to("me")  # a circle of one
    found = find_audio(tmp_path / "many")
    assert len(found) == 9 * (1 + 8 * 8)  # behind each link every other folder once
    warn_of_duplicates(found)
    told = capsys.readouterr().err
    assert f"listed more than once (linked folders?): {len(found) - 9} of {len(found)} files" in told


def test_links_between_the_parts_of_a_set(audio_folder: Path, tmp_path: Path) -> None:
    """A split or a class that is a link is one, wherever it leads to."""
    sound = next(audio_folder.glob("*.wav"))
    for place in ("train/dog", "test/cat"):
        (tmp_path / "set" / place).mkdir(parents=True)
        shutil.copy(sound, tmp_path / "set" / place / "a.wav")
    (tmp_path / "set" / "test" / "dog").symlink_to("../train/dog")
    (tmp_path / "set" / "valid").symlink_to("test")
    (tmp_path / "set" / "more").symlink_to(tmp_path / "set")
    assert [str(file.relative_to(tmp_path / "set")) for file in find_audio(tmp_path / "set")] == [
        "test/cat/a.wav", "test/dog/a.wav", "train/dog/a.wav", "valid/cat/a.wav", "valid/dog/a.wav",
    ]  # fmt: skip


def test_names_as_a_table_quotes_them(audio_folder: Path, tmp_path: Path) -> None:
    sound = next(audio_folder.glob("*.wav"))
    names = [" lead.wav", "comma,name.wav", "new\nline.wav", "plain.wav"]
    for name in names:
        shutil.copy(sound, tmp_path / name)
    (tmp_path / "q.csv").write_text(
        '\n \nfilename,label\n" lead.wav",a\n"comma,name.wav",b\n"new\nline.wav",c\n plain.wav ,d\n'
    )
    assert find_audio(tmp_path / "q.csv") == [tmp_path / name for name in names]
    (tmp_path / "header.csv").write_text('"file\nname",label\nplain.wav,a\n')
    (tmp_path / "old.csv").write_bytes(b"\r\rfile,label\rplain.wav,a\r")  # as Macs had it
    quote = '"odd.wav\n' + "plain.wav\n" * 20_000  # no table, and a quote that is never closed
    (tmp_path / "list.txt").write_text(quote)
    assert len(find_audio(tmp_path / "list.txt")) == 20_001
    for table in ("header.csv", "old.csv"):
        assert find_audio(tmp_path / table) == [tmp_path / "plain.wav"]


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_an_empty_manifest(tmp_path: Path, text: str) -> None:
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(AudioError, match="no audio files in"):
        find_audio(tmp_path / "list.txt")


@pytest.mark.parametrize("cell", ["", " ", "b.m4a"])
def test_a_table_with_an_odd_cell(audio_folder: Path, cell: str) -> None:
    """It stays a table; what is no audio is named when it is read."""
    table = audio_folder / "table.csv"
    table.write_text(f"label,file\n1,sound0.wav\n2,{cell}\n3,sound1.wav\n")
    found = [file.name for file in find_audio(table)]
    assert found == ["sound0.wav", *([cell] if cell.strip() else []), "sound1.wav"]


def test_a_parquet_table_whose_first_cells_are_empty(audio_folder: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    column = [None] * 30 + ["sound0.wav"]
    parquet.write_table(pyarrow.table({"label": list(range(31)), "file": column}), audio_folder / "table.parquet")
    assert find_audio(audio_folder / "table.parquet") == [audio_folder / "sound0.wav"]


def test_a_parquet_table_names_files_in_text_columns_alone(audio_folder: Path) -> None:
    """As Hugging Face stores audio; empty or 0 in its first rows, where the column is looked for."""
    import pyarrow
    from pyarrow import parquet

    stored = [None] * 25 + [{"bytes": b"RIFF", "path": "sound0.wav"}]
    names = ["sound0.wav\n", "  ", *["sound1.wav"] * 24]
    for column in (stored, [0] * 25 + [7], [None] * 25 + [0.5], [[]] * 25 + [["sound0.wav"]]):
        parquet.write_table(pyarrow.table({"audio": column, "file": names}), audio_folder / "table.parquet")
        assert find_audio(audio_folder / "table.parquet")[:2] == [audio_folder / f"sound{n}.wav" for n in (0, 1)]
        parquet.write_table(pyarrow.table({"audio": column}), audio_folder / "table.parquet")
        with pytest.raises(AudioError, match=r"no column names audio files \(columns: audio; audio stored in cells"):
            find_audio(audio_folder / "table.parquet")
    coded = pyarrow.array(names).dictionary_encode()
    parquet.write_table(pyarrow.table({"file": coded}), audio_folder / "table.parquet")
    assert len(find_audio(audio_folder / "table.parquet")) == 25


def test_manifests_that_are_wrong(tmp_path: Path) -> None:
    (tmp_path / "open.csv").write_text('file,label\na.wav,x\nb.wav,"y\nc.wav,x\n')
    with pytest.raises(
        AudioError, match="not a table or manifest .a quote is not closed in the row that begins at line 3"
    ):
        find_audio(tmp_path / "open.csv")
    (tmp_path / "shards.txt").write_text("none.tar\n")
    with pytest.raises(AudioError, match="cannot read the shard .*none.tar: No such file"):
        find_audio(tmp_path / "shards.txt")
    (tmp_path / "long.csv").write_text("label,file\n" + "x" * 200_000 + ",a.wav\n")
    (tmp_path / "long.txt").write_text("a.wav\n" * 30 + "x" * 200_000 + "\n")
    for name in ("long.csv", "long.txt"):
        with pytest.raises(AudioError, match="it is not a table or manifest .*field larger"):
            find_audio(tmp_path / name)


def test_a_sample_is_even_and_no_larger_than_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []

    def look(file: Path) -> str:
        looked.append(int(file.name))
        return file.name

    monkeypatch.setattr(digests, "ends_digest", look)
    for count in (
        0,
        1,
        digests.MAX_SAMPLED,
        digests.MAX_SAMPLED + 1,
        2 * digests.MAX_SAMPLED - 1,
        5 * digests.MAX_SAMPLED,
    ):
        looked.clear()
        digests.sampled_digest([Path(str(number)) for number in range(count)])
        assert len(set(looked)) == len(looked) == min(count, digests.MAX_SAMPLED)
        assert not looked or looked[0] == 0


def named_in(file: Path) -> list[str]:
    return [str(path.relative_to(file.parent)) for path in find_audio(file)]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("audio\naudio/1.ogg\naudio/2.ogg", ["audio/1.ogg", "audio/2.ogg"]),  # a header, though a folder too
        ("audio\n1.ogg\n2.ogg", ["audio/1.ogg", "audio/2.ogg"]),  # a folder, though a header too
        ("file,clean\na.ogg,b.ogg", ["a.ogg"]),
        ("file\tclean\na.ogg\tb.ogg", ["a.ogg"]),
        ("id,wav_path\n1,a.ogg\n2,b.ogg", ["a.ogg", "b.ogg"]),
        ("id;file\n1;a.ogg\n2;b.ogg", ["a.ogg", "b.ogg"]),
        ("a,b.ogg\nc,d.ogg", ["a,b.ogg", "c,d.ogg"]),  # names with commas
        ('file,label\na,b.ogg\n"c.ogg",dog', ["a,b.ogg", "c.ogg"]),
        ("a.ogg,dog\nb.ogg,cat", ["a.ogg", "b.ogg"]),
        ("one.m4a\ntwo.m4a\nthree.ogg", ["one.m4a", "two.m4a", "three.ogg"]),  # no audio is reported when it is read
        ("b c.ogg 1600\nb d.ogg 1600", ["b c.ogg 1600", "b d.ogg 1600"]),
        ("clip 1\nclip 2", ["clip 1", "clip 2"]),
        ("Path\na.ogg\nb.ogg", ["a.ogg", "b.ogg"]),  # a header
        ("file,label\na.m4a\nb.ogg,cat", ["a.m4a", "b.ogg"]),
        ("/nowhere/at/all\na.ogg\nb.ogg", ["a.ogg", "b.ogg"]),  # roots on another machine
        ("nowhere\na.ogg\t9\nb.ogg\t9", ["a.ogg", "b.ogg"]),
        ("a.ogg\ra\u2028b.ogg\r\na\x85b.ogg\n", ["a.ogg", "a\u2028b.ogg", "a\x85b.ogg"]),
    ],
)
def test_what_lines_name(tmp_path: Path, text: str, named: list[str]) -> None:
    (tmp_path / "audio").mkdir()
    for name in ("1.ogg", "2.ogg"):
        (tmp_path / "audio" / name).touch()
    (tmp_path / "list.csv").write_bytes(text.encode())
    assert named_in(tmp_path / "list.csv") == named


def test_a_pack_that_is_not_whole(tmp_path: Path, audio_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pack(find_audio(audio_folder), tmp_path / "pack", PackOptions(keep=True), progress=False)
    whole = find_audio(tmp_path / "pack")
    assert not capsys.readouterr().err
    (tmp_path / "pack" / SKIPPED_FILE).rename(tmp_path / "elsewhere")
    (tmp_path / "pack" / f"train-000001{INDEX_SUFFIX}").write_text("{}")
    assert find_audio(tmp_path / "pack") == whole
    told = capsys.readouterr().err
    assert f"the pack {tmp_path}/pack is not finished" in told
    assert f"1 of 2 shards of {tmp_path}/pack not found, although their index files exist: train-000001.tar" in told
    for number in range(2, 5):
        (tmp_path / "pack" / f"train-{number:06d}{INDEX_SUFFIX}").write_text("{}")
    find_audio(tmp_path / "pack")
    assert "exist: train-000001.tar, train-000002.tar, train-000003.tar, ..." in capsys.readouterr().err


def test_links_that_lead_nowhere_are_counted(audio_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As to a disk that is not mounted."""
    whole = find_audio(audio_folder)
    for number in range(3):
        (audio_folder / f"gone{number}.wav").symlink_to("/nowhere/at/all.wav")
    assert find_audio(audio_folder) == whole
    assert f"skipped 3 broken links in {audio_folder}, such as {audio_folder / 'gone0.wav'}" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", [".m4a", ".WMA"])
def test_a_format_that_libsndfile_does_not_read(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"a{suffix}"
    file.write_bytes(b"\0\0\0\x20ftypM4A \xff\xfe")
    with pytest.raises(AudioError, match=f"libsndfile does not read {suffix}; convert it"):
        find_audio(str(file))
