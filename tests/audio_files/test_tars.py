"""Sounds in shards: found by the index, refused where a shard is damaged, read as any file."""

import io
import json
import re
import shlex
import shutil
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from asda_core.audio.reading import read_audio
from asda_core.audio_files.sources import ShardStream, find_audio
from asda_core.audio_files.tar_headers import TRAILING_DATA, read_headers
from asda_core.audio_files.tars import (
    READER_VERSION,
    _index,
    index_file,
    member_bytes,
    num_bytes,
    shard_index,
    split_member,
)
from asda_core.data.shard_streams import RunningCommands, read_stream
from asda_core.errors import AudioError
from tests.audio_files.shards import sound_bytes, write_shards, write_tar


def test_a_sound_in_a_shard_is_read_as_any_file(tmp_path: Path) -> None:
    (shard,) = write_shards(tmp_path, [3])
    files = find_audio(shard)
    assert [str(file.relative_to(shard)) for file in files] == ["0000.flac", "0001.flac", "0002.flac"]
    for number, file in enumerate(files):
        wanted, _ = soundfile.read(io.BytesIO(sound_bytes(number)), dtype="float32")
        assert np.array_equal(read_audio(file, 16_000).numpy(), wanted)
        assert num_bytes(file) == len(sound_bytes(number))
    assert split_member(tmp_path / "a.wav") is None
    with pytest.raises(AudioError, match=r"none.flac: the shard has no such audio file \(it has 3 others\)"):
        read_audio(shard / "none.flac", 16_000)
    assert num_bytes(shard / "none.flac") == 0


def test_the_index_is_written_once_and_belongs_to_its_shard(tmp_path: Path) -> None:
    first, second = write_shards(tmp_path, [2, 2])
    shard_index(first)
    facts = json.loads(index_file(first).read_text())
    assert facts["columns"] == ["name", "offset", "size", "samples", "rate"]
    assert [row[0] for row in facts["members"]] == ["0000.flac", "0001.flac"]
    for name, offset, size, *_ in facts["members"]:
        assert first.read_bytes()[offset : offset + size] == sound_bytes(int(name[:4]))
    same_size = (
        write_tar(tmp_path / "b.tar", [("x.wav", bytes(700))]),
        write_tar(tmp_path / "c.tar", [("y.wav", bytes(700))]),
    )
    shard_index(same_size[0])
    shutil.copy(same_size[1], same_size[0])  # another shard of the same name and size
    assert list(shard_index(same_size[0]).rows) == ["y.wav"]
    index_file(second).write_text('{"bytes": ')
    assert list(shard_index(second).rows) == ["0002.flac", "0003.flac"]


def test_names_that_lead_elsewhere(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "a.tar", [("./x/a.flac", sound_bytes(0)), ("/../b.flac", sound_bytes(1))])
    files = find_audio(shard)
    assert files == [shard / "x" / "a.flac", shard / "b.flac"]
    assert all(len(read_audio(file, 16_000)) for file in files)


def test_a_truncated_shard_gives_what_is_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (shard,) = write_shards(tmp_path, [5])
    members, trouble = read_headers(shard)
    assert len(members) == 5
    assert not trouble
    content = shard.read_bytes()
    for cut, whole in ((members[3].offset + 10, 3), (members[3].offset - 100, 3), (members[0].offset + 5, 0)):
        short = tmp_path / f"cut{cut}.tar"
        short.write_bytes(content[:cut])
        index = shard_index(short)
        assert list(index.rows) == [f"{number:04d}.flac" for number in range(whole)]
        assert "is truncated" in index.problems[0]
        assert "is truncated" in capsys.readouterr().err
    damaged = bytearray(content)
    damaged[members[2].offset - 500] ^= 0xFF  # in the header of the third: tarfile takes it for the end
    (tmp_path / "damaged.tar").write_bytes(damaged)
    assert len(shard_index(tmp_path / "damaged.tar").rows) == 2
    assert shard_index(tmp_path / "damaged.tar").problems


def test_a_header_with_a_negative_size(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "a.tar", [("a.flac", sound_bytes(0)), ("b.flac", b""), ("c.flac", sound_bytes(1))])
    content = bytearray(shard.read_bytes())
    start = content.index(b"b.flac")
    content[start + 124 : start + 136] = b"\xff" * 11 + b"\x00"  # -256 in base 256
    content[start + 148 : start + 156] = b" " * 8
    content[start + 148 : start + 156] = b"%06o\0 " % sum(content[start : start + 512])
    shard.write_bytes(content)
    index = shard_index(shard)
    assert list(index.rows) == ["a.flac"]
    reason = "negative size|invalid offset"  # tarfile's own, before Python 3.13 and from it on
    assert re.search(rf"is truncated after 1 members \(({reason})\)", index.problems[0])
    problems: list[tuple[Path, str]] = []
    read = read_stream(ShardStream(f"stream:{shard}"), problems, RunningCommands())
    assert [member.content for member in read] == [sound_bytes(0)]
    assert re.search(reason, problems[0][1])


def test_a_shard_that_shrank_behind_its_index(tmp_path: Path) -> None:
    (shard,) = write_shards(tmp_path, [2])
    last = find_audio(shard)[1]
    offset, size = shard_index(shard).offset_and_size("0001.flac")
    with shard.open("r+b") as opened:
        opened.truncate(offset + size - 1)
    with pytest.raises(AudioError, match="no such audio file"):
        read_audio(last, 16_000)


def test_an_empty_tar_and_no_tar(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(AudioError, match="no audio files in"):
        find_audio(write_tar(tmp_path / "empty.tar", []))
    for name, content, reason in (("zero.tar", b"", r"0 bytes"), ("text.tar", b"no tar" * 200, "it is not a tar")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(AudioError, match=reason):
            find_audio(tmp_path / name)
    write_shards(tmp_path, [2])
    assert len(find_audio(tmp_path)) == 2
    assert capsys.readouterr().err.count("skipped") == 2


def test_of_several_of_one_name_the_first_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    members = [("a.flac", sound_bytes(0)), ("a.flac", sound_bytes(1)), ("b.flac", sound_bytes(2))]
    shard = write_tar(tmp_path / "a.tar", members)
    files = find_audio(shard)
    assert [file.name for file in files] == ["a.flac", "b.flac"]
    assert "has 1 members with a repeated name" in capsys.readouterr().err
    wanted, _ = soundfile.read(io.BytesIO(sound_bytes(0)), dtype="float32")
    assert torch.equal(read_audio(files[0], 16_000), torch.from_numpy(wanted))


def test_a_folder_that_may_only_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (shard,) = write_shards(tmp_path, [2])

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("read only")

    monkeypatch.setattr("asda_core.audio_files.tars.write_text", refuse)
    assert len(find_audio(shard)) == 2
    assert not index_file(shard).exists()


def test_a_disk_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (shard,) = write_shards(tmp_path, [2])
    file = find_audio(shard)[0]

    def fail(*_: object, **__: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "open", fail)
    with pytest.raises(AudioError, match="cannot read .*0000.flac: Input/output"):
        read_audio(file, 16_000)
    monkeypatch.undo()
    assert len(read_audio(file, 16_000))


def test_a_sound_of_more_than_one_call_gives(tmp_path: Path) -> None:
    """Linux reads at most 2 GiB - 4 KiB at once."""
    size = (1 << 31) + 10
    with (tmp_path / "big.tar").open("wb") as opened:
        info = tarfile.TarInfo("big.wav")
        info.size = size
        opened.write(info.tobuf())
        opened.truncate(512 + size + 1024 + 502)  # a hole: no room on the disk
    content = member_bytes(tmp_path / "big.tar", "big.wav")
    assert len(content) == size


def test_zeros_where_a_header_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As of a lost block of the disk: tarfile takes it for the end."""
    shard = write_tar(tmp_path / "a.tar", [(f"{number}.wav", bytes([number + 1]) * 40_000) for number in range(8)])
    third = shard_index(shard).offset_and_size("2.wav")[0] - 512
    content = bytearray(shard.read_bytes())
    content[third : third + 1024] = bytes(1024)
    index_file(shard).unlink()
    shard.write_bytes(content)
    capsys.readouterr()
    assert list(shard_index(shard).rows) == ["0.wav", "1.wav"]
    assert f"{shard} {TRAILING_DATA}; only the files before that point are used (2)." in capsys.readouterr().err
    trouble: list[tuple[Path, str]] = []
    for address in (f"stream:{shard}", f"pipe:cat {shlex.quote(str(shard))}"):
        trouble.clear()
        assert len(list(read_stream(ShardStream(address), trouble, RunningCommands()))) == 2
        assert TRAILING_DATA in trouble[0][1]
    (tmp_path / "nothing.tar").write_bytes(bytes(20_480))
    assert not shard_index(tmp_path / "nothing.tar").rows
    assert "contains no audio files" in capsys.readouterr().err


def test_members_whose_bytes_are_elsewhere_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Hard links, and sounds of which the silence is not stored: by the index and streamed the same are left out."""
    (tmp_path / "a").mkdir()
    sound = np.zeros(200_000)
    sound[:1000] = sound[-1000:] = 0.5
    soundfile.write(tmp_path / "a" / "0.wav", np.ones(1000) * 0.1, 16_000)
    (tmp_path / "a" / "1.wav").hardlink_to(tmp_path / "a" / "0.wav")
    whole = tmp_path / "whole.wav"
    soundfile.write(whole, sound, 16_000)
    content = whole.read_bytes()
    with (tmp_path / "a" / "2.wav").open("wb") as opened:  # with a hole
        opened.write(content[:4096])
        opened.seek(len(content) - 4096)
        opened.write(content[-4096:])
    shard = tmp_path / "s.tar"
    subprocess.run(["tar", "--sparse", "--sort=name", "-cf", shard, "-C", tmp_path, "a"], check=True)
    with tarfile.open(shard) as tar:
        assert [info.issparse() or info.islnk() for info in tar if info.name.endswith(".wav")] == [False, True, True]
    assert [file.name for file in find_audio(shard)] == ["0.wav"]
    told = "s.tar has 2 audio files that are skipped: hard links or sparse members (tar --sparse)."
    assert told in capsys.readouterr().err
    trouble: list[tuple[Path, str]] = []
    assert [sound.file.name for sound in read_stream(ShardStream(f"stream:{shard}"), trouble, RunningCommands())] == [
        "0.wav"
    ]
    assert told in trouble[0][1]
    facts = json.loads(index_file(shard).read_text())
    facts.pop("reader")
    facts["members"].append([*facts["members"][0][:1], 0, 1, 0, 0])
    index_file(shard).write_text(json.dumps(facts))  # of a version that took them for sounds
    _index.cache_clear()
    assert [file.name for file in find_audio(shard)] == ["0.wav"]
    assert json.loads(index_file(shard).read_text())["reader"] == READER_VERSION
