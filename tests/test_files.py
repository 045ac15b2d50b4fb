"""Files that are written whole or not at all, and lines that several processes add."""

import errno
import os
import time
from pathlib import Path

import pytest
import torch

from asda_core.checkpoint import write_step
from asda_core.system.files import (
    append_line,
    disk_time,
    read_json,
    read_json_lines,
    read_json_object,
    write_atomically,
    write_text,
)


def test_a_full_disk_is_told_with_the_file(tmp_path: Path) -> None:
    """What the system raises for a write names no file; and what was there stays."""
    file = tmp_path / "a.json"
    write_text(file, "before")

    def fill(part: Path) -> None:
        part.write_text("half", encoding="utf-8")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match=r"No space left on device: '.*a\.json'") as full:
        write_atomically(file, fill)
    assert full.value.filename == str(file)
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert file.read_text() == "before"


def test_text_files_take_names_of_any_bytes(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    write_text(file, "caf\udce9 é\n")
    append_line(file, "caf\udce9 é")
    assert file.read_bytes() == "caf\\udce9 é\n".encode() * 2


def test_the_target_of_a_link_is_written(tmp_path: Path) -> None:
    """Also if it is not there yet."""
    (tmp_path / "real").mkdir()
    link = tmp_path / "link"
    link.symlink_to(Path("real", "a.txt"))
    for text in ("first", "second"):
        write_text(link, text)
        assert link.is_symlink()
        assert (tmp_path / "real" / "a.txt").read_text(encoding="utf-8") == text
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.txt", "link", "real"]


def test_what_is_no_file_is_left(tmp_path: Path) -> None:
    """Pipes and devices; a link to /dev/null must not replace that of the machine."""
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to("pipe")
    for file in (pipe, link):
        with pytest.raises(OSError, match="Not a regular file") as failed:
            write_text(file, "text")
        assert failed.value.filename == str(file)
    assert pipe.is_fifo()


@pytest.mark.parametrize(("name", "message"), [("folder", "Is a directory"), ("none/a", "No such file or directory")])
def test_errors_name_the_file_that_was_asked_for(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match=message) as failed:
        write_text(tmp_path / name, "text")
    assert failed.value.filename == str(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize(
    ("there", "wanted"),
    [(None, "new\n"), ("", "new\n"), ("old\n", "old\nnew\n"), ("old\ncut of", "old\ncut of\nnew\n")],
)
def test_lines_stand_behind_whole_lines(tmp_path: Path, there: str | None, wanted: str) -> None:
    file = tmp_path / "folder" / "lines.jsonl"
    if there is not None:
        file.parent.mkdir()
        file.write_text(there)
    append_line(file, "new")
    assert file.read_text() == wanted


def test_times_of_a_disk_are_those_of_its_files(tmp_path: Path) -> None:
    before = disk_time(tmp_path)
    time.sleep(0.05)
    (tmp_path / "a").touch()
    time.sleep(0.05)
    assert before < (tmp_path / "a").stat().st_mtime < disk_time(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_two_writers_of_one_file_are_told(tmp_path: Path) -> None:
    """The temporary file is gone because the other process has renamed it."""
    with pytest.raises(FileNotFoundError) as told:
        write_atomically(tmp_path / "a.npy", lambda part: part.unlink())
    assert told.value.filename == str(tmp_path / "a.npy")
    assert told.value.strerror == "its temporary file has vanished; another process may be writing the same file"
    with pytest.raises(FileNotFoundError) as told:
        write_atomically(tmp_path / "none" / "a.npy", lambda part: None)
    assert told.value.strerror == "No such file or directory"


@pytest.mark.parametrize("content", [None, "", "{", "[1", "[" * 100_000, b"\xff"])
def test_json_that_is_missing_or_damaged(tmp_path: Path, content: str | bytes | None) -> None:
    file = tmp_path / "a.json"
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert read_json(file) is None
    assert read_json_object(file) == {}


def test_json_that_is_something_else(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    write_text(file, "[1]")
    assert (read_json(file), read_json_object(file)) == ([1], {})
    write_text(file, '{"a": 1}')
    assert read_json(file) == read_json_object(file) == {"a": 1}


def test_what_is_written_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a loss of power there is the old file or the new one, and never a part of it."""
    order: list[str] = []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(descriptor: int) -> None:
        order.append(f"synced {Path(os.readlink(f'/proc/self/fd/{descriptor}')).name}")
        fsync(descriptor)

    def noted_replace(part: Path, target: Path) -> None:
        order.append(f"renamed {target.name}")
        replace(part, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    write_text(tmp_path / "a.json", "{}")
    assert order == ["synced .a.json.part", "renamed a.json", f"synced {tmp_path.name}"]
    order.clear()
    write_step(tmp_path / "run", 3, {"model.safetensors": ({"weight": torch.zeros(2)}, {})}, keep=1)
    assert order == ["synced model.safetensors", "synced .step-00000003.part", "renamed step-00000003", "synced run"]


def test_lines_that_a_kill_cut_off(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    assert read_json_lines(file) == []
    file.write_text('{"a": 1}\n{"a"\n\n[2]\n{"a": ')
    assert read_json_lines(file) == [{"a": 1}, [2]]
