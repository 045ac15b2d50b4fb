"""Measure the time and memory that a block of code takes."""

import contextlib
import ctypes
import gc
import importlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import TracebackType

import torch

from asda_core.system.files import read_json_object, write_text

SAMPLE_INTERVAL_SECONDS = 0.02
"""Short enough to see the memory peak of a training step, long enough to cost nothing."""
CALLBACK_INTERVAL_SECONDS = 5.0
"""Up to this much of a killed session may be missing from the cost of its run."""
MEBIBYTE, GIBIBYTE = 2**20, 2**30
"""Bytes in a MiB and a GiB."""
SECONDS_PER_HOUR = 3600
MINUTE = 60
"""Seconds in a minute, and minutes in an hour."""
MAX_SAMPLING_SHARE = 0.02
"""Largest share of a core that sampling takes: with a million small blocks in use, one sample takes 0.1 s."""
PROBES = 3
"""Attempts to see an allocation in the figures of the C library; another thread may free as much meanwhile."""
IMPORTED_BY_UPDATES = "torch._dynamo"
"""Imported by the first update of any torch optimiser: a second or two that would count towards the first training."""
STATM_FILE = Path("/proc/self/statm")
"""Linux's number of pages of this process in memory (second value), and how many of them belong to files (third):
libraries are loaded as their functions are first called, so that a first training would seem to take the most."""


class ResourceUsage:
    """Seconds, CPU seconds, and the peak memory of a block beyond what was in use before it.

    CPU seconds are those of all threads of this process, and are more informative if other programs run beside it.
    On a GPU the memory is that of its tensors; otherwise it is what the C library has allocated and not freed, sampled
    every 20 ms if the thread gets its turn: tensors and arrays, touched or not, but not what Python maps for small
    objects. Memory that the library keeps for later allocations does not count, so that a second training costs about
    as much as the first. If the library does not report it (glibc before 2.33, or another allocator in front of it),
    it is the resident memory without pages of files, of which a second training takes little; and 0 if the system
    reports neither.

    Attributes:
        seconds, cpu_seconds, mebibytes: what the block has taken so far; final when it has ended.
    """

    def __init__(self, callback: Callable[["ResourceUsage"], None] | None = None) -> None:
        """`callback` is called every few seconds during the block, in a separate thread."""
        self.seconds = self.cpu_seconds = self.mebibytes = 0.0
        self._note, self._stop = callback, threading.Event()

    def __enter__(self) -> "ResourceUsage":
        _release()
        self._start, self._cpu = time.monotonic(), time.process_time()
        self._before, self._peak, self._on_gpu = _in_use(), 0, 0
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
            self._on_gpu = torch.cuda.memory_allocated()
        self._sampler = threading.Thread(target=self._sample, daemon=True)
        self._sampler.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._sampler.join()
        self._count()

    def _count(self) -> None:
        self._peak = max(self._peak, _in_use())  # on a busy machine the sampling thread may not have had its turn
        self.seconds, self.cpu_seconds = time.monotonic() - self._start, time.process_time() - self._cpu
        on_gpu = torch.cuda.max_memory_allocated() - self._on_gpu if torch.cuda.is_available() else 0
        self.mebibytes = (on_gpu or max(0, self._peak - self._before)) / MEBIBYTE

    def _sample(self) -> None:
        last_note = self._start
        pause = SAMPLE_INTERVAL_SECONDS
        while not self._stop.wait(pause):
            start = time.thread_time()  # without the time spent waiting for other threads
            self._peak = max(self._peak, _in_use())
            pause = max(SAMPLE_INTERVAL_SECONDS, (time.thread_time() - start) / MAX_SAMPLING_SHARE)
            if self._note is not None and time.monotonic() - last_note > CALLBACK_INTERVAL_SECONDS:
                last_note = time.monotonic()
                self._count()
                self._note(self)


@contextlib.contextmanager
def record_resource_usage(file: Path, name: str) -> Iterator[dict[str, float]]:
    """Measure the cost of a block, accumulated over the sessions of a run, any of which may be killed.

    Args:
        file: JSON file that stores it; its other keys are kept.
        name: prefix of the keys, before `_seconds`, `_cpu_seconds` and `_mebibytes`.

    Yields:
        the content of the file; complete when the block has ended.
    """
    before: dict[str, float] = read_json_object(file)
    total = dict(before)

    def note(cost: ResourceUsage) -> None:
        earlier = {key: before.get(f"{name}_{key}", 0.0) for key in ("seconds", "cpu_seconds", "mebibytes")}
        total[f"{name}_seconds"] = round(earlier["seconds"] + cost.seconds, 2)
        total[f"{name}_cpu_seconds"] = round(earlier["cpu_seconds"] + cost.cpu_seconds, 2)
        total[f"{name}_mebibytes"] = round(max(earlier["mebibytes"], cost.mebibytes), 1)
        if file.parent.is_dir():  # a run that is rejected at once leaves no folder behind
            write_text(file, json.dumps(total))

    def try_note(cost: ResourceUsage) -> None:
        with contextlib.suppress(OSError):
            note(cost)

    importlib.import_module(IMPORTED_BY_UPDATES)
    cost = ResourceUsage(try_note)
    try:
        with cost:
            yield total
    finally:
        note(cost)


def _release() -> None:
    """Free unreferenced memory, and, if memory in use is not reported, also what the C library keeps after freeing."""
    gc.collect()
    if _heap() is None and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):  # glibc
        libc.malloc_trim(0)


class _Mallinfo(ctypes.Structure):
    """glibc's statistics of its heap, in bytes. **Source**: mallinfo2(3)."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"
        )
    )  # fmt: skip


@cache
def _heap() -> Callable[[], int] | None:
    """Return a function for the bytes that the C library has allocated; None for another `malloc` (jemalloc, say)."""
    library = ctypes.CDLL(None)
    mallinfo = getattr(library, "mallinfo2", None)
    if mallinfo is None:
        return None
    mallinfo.restype, library.malloc.restype = _Mallinfo, ctypes.c_void_p
    library.malloc.argtypes, library.free.argtypes = (ctypes.c_size_t,), (ctypes.c_void_p,)

    def allocated() -> int:
        heap = mallinfo()
        return int(heap.uordblks + heap.hblkhd)  # within its arenas, and mapped separately

    for _ in range(PROBES):
        before = allocated()
        probe = library.malloc(MEBIBYTE)
        is_counted = allocated() - before >= MEBIBYTE
        library.free(probe)
        if is_counted:
            return allocated
    return None


def _in_use() -> int:
    heap = _heap()
    return heap() if heap is not None else _resident()


def _resident() -> int:
    try:
        _, resident, of_files, *_ = map(int, STATM_FILE.read_text(encoding="utf-8").split())
        return (resident - of_files) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def format_duration(seconds: float) -> str:
    """Format a duration: "90 s", "12 min", "1 h 05 min"."""
    if seconds < 2 * MINUTE:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / MINUTE), MINUTE)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"
