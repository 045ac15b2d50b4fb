"""What a block of a program costs: time and memory."""

import ctypes
import gc
import os
import threading
import time
from pathlib import Path
from types import TracebackType

import torch

SAMPLED_EVERY_SECONDS = 0.02
"""Often enough to see the peak of a training step, seldom enough to cost nothing."""
MEBIBYTE = 2**20
PAGES = Path("/proc/self/statm")
"""Where Linux tells how many pages of this process are in memory (the second number), and how many of them are of files
(the third): libraries come in as their functions are first called, so that a first training would seem the heaviest."""


class Cost:
    """Seconds, processor seconds, and the most memory that a block takes beyond what was in use before it.

    Processor seconds are of all threads of this process, and tell more where something else runs beside it.
    On a GPU the memory is that of its tensors; else it is the process's resident memory but for pages of files, looked
    at every 20 ms, and 0 where the system does not tell.
    """

    def __init__(self) -> None:
        self.seconds = self.cpu_seconds = self.mebibytes = 0.0
        self._stop = threading.Event()

    def __enter__(self) -> "Cost":
        _release()
        self._start, self._cpu = time.monotonic(), time.process_time()
        self._before, self._peak = _resident(), 0
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self._watch = threading.Thread(target=self._look, daemon=True)
        self._watch.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._watch.join()
        self.seconds, self.cpu_seconds = time.monotonic() - self._start, time.process_time() - self._cpu
        on_gpu = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
        self.mebibytes = (on_gpu or max(0, self._peak - self._before)) / MEBIBYTE

    def _look(self) -> None:
        while not self._stop.wait(SAMPLED_EVERY_SECONDS):
            self._peak = max(self._peak, _resident())


def _release() -> None:
    """Give back what was freed but kept, so that a second training does not seem to cost nothing."""
    gc.collect()
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):  # glibc
        libc.malloc_trim(0)


def _resident() -> int:
    try:
        _, resident, of_files, *_ = map(int, PAGES.read_text().split())
        return (resident - of_files) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
