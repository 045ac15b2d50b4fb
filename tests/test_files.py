"""Files that are written whole or not at all, and lines that several processes add."""

import errno
import time
from pathlib import Path

import pytest

from asda_core.system.files import append_line, disk_time, write_atomically, write_text


def test_a_full_disk_is_told_with_the_file(tmp_path: Path) -> None:
    """What the system raises for a write names no file; and what was there stays."""
    file = tmp_path / "a.json"
    write_text(file, "before")

    def fill(part: Path) -> None:
        part.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match=r"No space left on device: '.*a\.json'") as full:
        write_atomically(file, fill)
    assert full.value.filename == str(file)
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert file.read_text() == "before"


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
