"""One process at a time in a run folder, and what lies beside its steps is left alone."""

from pathlib import Path

import pytest
import torch
from filelock import FileLock, Timeout

from asda_core.audio_files.sources import find_audio
from asda_core.catalog import Catalog
from asda_core.checkpoint import write_step
from asda_core.config import RunConfig
from asda_core.errors import ConfigError
from asda_core.pretrain.loop import pretrain
from asda_core.pretrain.resuming import truncate_log
from asda_core.system.locks import LOCK_FILE, hold_folder_lock, hold_lock
from asda_core.system.paths import newest_step


def test_a_second_process_is_refused(
    catalog: Catalog, tiny: RunConfig, audio_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files, run = find_audio(audio_folder), tmp_path / "run"
    pretrain(tiny, files, run, catalog, progress=False)
    log = (run / "log.jsonl").read_text()
    with FileLock(run / LOCK_FILE), pytest.raises(ConfigError, match=f"another process trains in {run}"):
        pretrain(tiny, files, run, catalog, progress=False)
    assert (run / "log.jsonl").read_text() == log
    pretrain(tiny, files, run, catalog, progress=False)


def test_it_is_let_go_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), hold_folder_lock(tmp_path / "new", LOCK_FILE, "trains in"):
        raise ZeroDivisionError
    with hold_folder_lock(tmp_path / "new", LOCK_FILE, "trains in"):
        pass


def test_a_disk_without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*given: object, **more: object) -> None:
        raise NotImplementedError

    monkeypatch.setattr("filelock.FileLock.acquire", fail)
    with hold_folder_lock(tmp_path, LOCK_FILE, "trains in"):
        assert "does not support locks" in capsys.readouterr().err


def test_where_processes_share_a_folder_its_disk_must_know_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*given: object, **more: object) -> None:
        raise NotImplementedError

    monkeypatch.setattr("filelock.FileLock.acquire", fail)
    with pytest.raises(ConfigError, match="does not support locks .flock., which keep"), hold_lock(tmp_path / "lock"):
        pytest.fail("it is not held")


def test_a_lock_is_held_and_let_go(tmp_path: Path) -> None:
    with hold_lock(tmp_path / "lock"), pytest.raises(Timeout), hold_lock(tmp_path / "lock", timeout=0):
        pytest.fail("it is held twice")
    with pytest.raises(ZeroDivisionError), hold_lock(tmp_path / "lock"):
        raise ZeroDivisionError
    with hold_lock(tmp_path / "lock", timeout=0):
        pass


@pytest.mark.parametrize("copy", ["step-best", "step-00000001-good", "step-old"])
def test_a_copy_of_a_step_is_no_step(tmp_path: Path, copy: str) -> None:
    (tmp_path / copy).mkdir()
    for step in (2, 3, 100_000_000, 100_000_001):
        final = write_step(tmp_path, step, {"model.safetensors": ({"x": torch.ones(1)}, {})}, keep=1)
        assert newest_step(tmp_path) == final
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([copy, "step-100000001"])


def test_torn_lines_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text(
        '{"step": 1, "l{"step": 1, "loss": 2}\n{"step": 1}\n[1]\n{"loss": 3}\n{"step": 2}\n{"step": 3}\n{"st'
    )
    truncate_log(log, 2)
    assert log.read_text() == '{"step": 1}\n{"step": 2}\n'
