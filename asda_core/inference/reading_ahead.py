"""Decode files in the background while the encoder runs, and group them by length, in bounded memory."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from asda_core.system.thread_map import map_in_threads

MAX_READERS = 4
READERS = max(1, min(MAX_READERS, (os.cpu_count() or 1) // 2))
"""Decoding threads: one decodes faster than an encoder of any size runs on two CPU cores."""
FILES_AHEAD = 4
"""Files that each thread may have read or started before they are requested."""
HELD_SAMPLES = 1 << 22
"""Samples of clips that may wait for others of equal length: 16 MiB, 4 minutes at 16 kHz."""

Item = TypeVar("Item")
Read = TypeVar("Read")


def read_ahead(items: Iterable[Item], read: Callable[[Item], Read]) -> Iterator[tuple[Item, Read]]:
    """Yield each item and `read` of it, in order, reading a few ahead in the background."""
    return map_in_threads(read, items, READERS, FILES_AHEAD)


class LengthBatcher(Generic[Item]):
    """Group clips of equal length until a pass is full.

    To bound memory, the largest group is released early when the waiting clips hold too many samples.
    """

    def __init__(self) -> None:
        self._groups: dict[int, list[tuple[Item, int]]] = {}
        self._held = 0

    @property
    def waiting(self) -> int:
        """Number of waiting clips."""
        return sum(len(group) for group in self._groups.values())

    def add(self, item: Item, steps: int, samples: int, max_clips: int) -> list[Item]:
        """Add a clip; returns the clips to encode now, if any.

        Args:
            item: the clip.
            steps: its length in time steps; clips of equal steps are grouped.
            samples: its length in samples, which bounds the memory.
            max_clips: number of such clips that fill a pass.
        """
        group = self._groups.setdefault(steps, [])
        group.append((item, samples))
        self._held += samples
        if len(group) >= max_clips:
            return self._take(steps)
        return self._take(self._fullest()) if self._held > HELD_SAMPLES else []

    def flush(self) -> Iterator[list[Item]]:
        """Yield the remaining clips, group by group."""
        while self._groups:
            yield self._take(self._fullest())

    def _fullest(self) -> int:
        return max(self._groups, key=lambda steps: sum(samples for _, samples in self._groups[steps]))

    def _take(self, steps: int) -> list[Item]:
        group = self._groups.pop(steps)
        self._held -= sum(samples for _, samples in group)
        return [item for item, _ in group]


class BackgroundQueue:
    """Run tasks one after another in a thread, with a bounded queue; as a context manager, waits for all on exit."""

    def __init__(self, waiting: int) -> None:
        self._pool = ThreadPoolExecutor(1, "asda-write")
        self._futures: deque[Future[None]] = deque()
        self._waiting = waiting

    def submit(self, task: Callable[[], None]) -> None:
        """Queue a task; an exception of an earlier one is raised here."""
        self._futures.append(self._pool.submit(task))
        while self._futures and (len(self._futures) > self._waiting or self._futures[0].done()):
            self._futures.popleft().result()

    def __enter__(self) -> "BackgroundQueue":
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        """Wait for all tasks, also after an error, so that finished embeddings reach the disk."""
        self._pool.shutdown()
        for future in self._futures:
            if kind is None:
                future.result()
