"""Files are decoded in the background while the encoder runs, and come together by length; in bounded memory."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from asda_core.system.thread_map import in_order

MOST_READERS = 4
READERS = max(1, min(MOST_READERS, (os.cpu_count() or 1) // 2))
"""Threads that decode: one decodes faster than an encoder of any size hears on two processor cores."""
FILES_AHEAD = 4
"""Files that each of them may have read or begun before they are asked for."""
HELD_SAMPLES = 1 << 22
"""Samples of clips that may wait for others of their length: 16 MiB, 4 minutes at 16 kHz."""

Item = TypeVar("Item")
Read = TypeVar("Read")


def read_ahead(items: Iterable[Item], read: Callable[[Item], Read]) -> Iterator[tuple[Item, Read]]:
    """`read` of every item, in order, of a few in the background."""
    return in_order(read, items, READERS, FILES_AHEAD)


class Together(Generic[Item]):
    """Gathers clips of equal length until a pass is full.

    Longer waits would need more memory: where too much is held, the fullest group goes as it is.
    """

    def __init__(self) -> None:
        self._groups: dict[int, list[tuple[Item, int]]] = {}
        self._held = 0

    @property
    def waiting(self) -> int:
        """Clips that wait for others."""
        return sum(len(group) for group in self._groups.values())

    def add(self, item: Item, steps: int, samples: int, full: int) -> list[Item]:
        """Take a clip; returns those that shall go through now, if any.

        Args:
            item: the clip.
            steps: its length as the encoder sees it; clips of equal steps go together.
            samples: what it takes of the memory.
            full: how many of these fill a pass.
        """
        group = self._groups.setdefault(steps, [])
        group.append((item, samples))
        self._held += samples
        if len(group) >= full:
            return self._take(steps)
        return self._take(self._fullest()) if self._held > HELD_SAMPLES else []

    def rest(self) -> Iterator[list[Item]]:
        """What is left, group by group."""
        while self._groups:
            yield self._take(self._fullest())

    def _fullest(self) -> int:
        return max(self._groups, key=lambda steps: sum(samples for _, samples in self._groups[steps]))

    def _take(self, steps: int) -> list[Item]:
        group = self._groups.pop(steps)
        self._held -= sum(samples for _, samples in group)
        return [item for item, _ in group]


class InBackground:
    """Does things one after the other in a thread, and lets at most a few wait; with `with`, ends when all are done."""

    def __init__(self, waiting: int) -> None:
        self._pool = ThreadPoolExecutor(1, "asda-write")
        self._futures: deque[Future[None]] = deque()
        self._waiting = waiting

    def do(self, what: Callable[[], None]) -> None:
        """Queue one thing. What an earlier one raised is raised here."""
        self._futures.append(self._pool.submit(what))
        while self._futures and (len(self._futures) > self._waiting or self._futures[0].done()):
            self._futures.popleft().result()

    def __enter__(self) -> "InBackground":
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        """Waits for all, also after an error: what is finished shall be on the disk."""
        self._pool.shutdown()
        for future in self._futures:
            if kind is None:
                future.result()
