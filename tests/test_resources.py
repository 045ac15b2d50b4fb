"""What a run costs, over sessions of which any may be stopped or killed."""

import json
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from asda_core.system import resources
from asda_core.system.resources import ResourceUsage, record_resource_usage
from tests.waiting import wait_until

KILLED = """
import sys, time
from pathlib import Path
from asda_core.system import resources
resources.CALLBACK_INTERVAL_SECONDS = 0.1
with resources.record_resource_usage(Path(sys.argv[1]), "train"):
    time.sleep(600)
"""


def noted(file: Path) -> dict[str, float]:
    found: dict[str, float] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return found


def test_sessions_add_up(tmp_path: Path) -> None:
    file = tmp_path / "cost.json"
    file.write_text('{"other": 3.0}')
    for session, mebibytes in ((1, 100), (2, 50)):
        with record_resource_usage(file, "train") as spent:
            held = np.ones(mebibytes * resources.MEBIBYTE // 8)
            time.sleep(0.2)
        assert spent == noted(file)
        assert 0.2 * session <= spent["train_seconds"] < 30
        assert 90 <= spent["train_mebibytes"] < 140, "the most of any session, not their sum"
        assert spent["other"] == 3.0
        del held


def test_a_block_that_ends_before_anyone_looked(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine whose other processes leave the thread that looks no turn."""
    monkeypatch.setattr(resources, "SAMPLE_INTERVAL_SECONDS", 600)
    with ResourceUsage() as spent:
        held = np.ones(40 * resources.MEBIBYTE // 8)
    assert 38 <= spent.mebibytes < 200
    del held


def pieces() -> list[np.ndarray]:
    """40 MiB, in pieces that the C library does not map apart."""
    return [np.ones(2**16 // 8) for _ in range(40 * 16)]


def test_memory_that_the_heap_has_kept_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a second training would seem to take next to nothing."""
    monkeypatch.setattr(resources, "_release", lambda: None)
    held = pieces()
    above = pieces()  # so that the heap cannot shrink
    del held
    with ResourceUsage() as spent:
        held = pieces()
    assert 38 <= spent.mebibytes < 60
    del held, above


@pytest.mark.parametrize("system", ["resources._heap = lambda: None", "resources.ctypes.CDLL = lambda name: None"])
def test_where_the_c_library_does_not_tell(system: str) -> None:
    script = f"""
import numpy as np
from asda_core.system import resources
{system}
with resources.ResourceUsage() as spent:
    held = np.ones(100 * resources.MEBIBYTE // 8)
print(spent.mebibytes)
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert 95 <= float(run.stdout) < 150


def test_an_allocator_that_torch_does_not_ask_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where another one is loaded before it: torch's memory is not in its figures."""

    library = mock.MagicMock()
    library.mallinfo2.return_value = resources._Mallinfo()
    library.malloc.return_value = None
    resources._heap.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(resources.ctypes, "CDLL", lambda name: library)
        assert resources._heap() is None
    resources._heap.cache_clear()
    assert resources._heap() is not None


def test_a_look_that_waits_for_its_turn_does_not_put_off_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """As beside threads that read data: only what a look itself takes counts for the pause behind it."""
    looks: list[float] = []

    def waits() -> int:
        looks.append(time.monotonic())
        time.sleep(0.05)
        return 0

    monkeypatch.setattr(resources, "_in_use", waits)
    with ResourceUsage():
        time.sleep(2)
    assert len(looks) > 5


def test_a_look_that_takes_long_is_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process of millions of small pieces."""
    looks: list[float] = []

    def works() -> int:
        looks.append(time.monotonic())
        until = time.thread_time() + 0.05
        while time.thread_time() < until:
            pass
        return 0

    monkeypatch.setattr(resources, "_in_use", works)
    with ResourceUsage():
        time.sleep(1)
    assert len(looks) <= 4, "before, once or twice on the way, and at the end"


def test_what_torch_imports_is_there_before(tmp_path: Path) -> None:
    script = f"""
import sys
from pathlib import Path
from asda_core.system import resources
assert resources.IMPORTED_BY_UPDATES not in sys.modules
with resources.record_resource_usage(Path("{tmp_path}/cost.json"), "train"):
    there = set(sys.modules)
    import torch
    weight = torch.ones(2, requires_grad=True)
    weight.grad = torch.ones(2)
    torch.optim.AdamW([weight]).step()
    assert not {{name for name in set(sys.modules) - there if name.startswith("torch._dynamo")}}
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_session_that_ends_with_an_error_counts(tmp_path: Path) -> None:
    def fail() -> None:
        with record_resource_usage(tmp_path / "cost.json", "train"):
            time.sleep(0.1)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert noted(tmp_path / "cost.json")["train_seconds"] >= 0.1


def test_what_is_refused_at_once_leaves_no_folder(tmp_path: Path) -> None:
    with record_resource_usage(tmp_path / "refused" / "cost.json", "train"):
        pass
    assert not (tmp_path / "refused").exists()


def test_a_killed_session_counts(tmp_path: Path) -> None:
    file = tmp_path / "cost.json"
    with subprocess.Popen([sys.executable, "-c", KILLED, str(file)]) as process:
        try:
            wait_until(lambda: noted(file).get("train_seconds", 0) > 0.5, "a note of half a second")
        finally:
            process.kill()
    before = noted(file)["train_seconds"]
    with record_resource_usage(file, "train") as spent:
        time.sleep(0.1)
    assert spent["train_seconds"] >= before + 0.1


def test_a_full_disk_takes_nothing_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: Path, text: str) -> None:
        raise OSError(28, "No space left on device")

    asked: list[float] = []
    monkeypatch.setattr(resources, "CALLBACK_INTERVAL_SECONDS", 0.05)
    with ResourceUsage(lambda so_far: asked.append(so_far.seconds)):
        wait_until(lambda: len(asked) >= 2, "two calls")

    reached: list[bool] = []

    def session() -> None:
        with record_resource_usage(tmp_path / "cost.json", "train"):
            time.sleep(0.2)  # notes fail meanwhile, and take nothing down
            reached.append(True)

    monkeypatch.setattr(resources, "write_text", full)
    with pytest.raises(OSError, match="No space"):
        session()
    assert reached
