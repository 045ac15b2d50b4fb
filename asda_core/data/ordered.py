"""Work done by several threads, its results in the order in which it was given."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

AHEAD_PER_JOB = 4
"""Results per thread that may wait for those before them."""


def in_order(work: Callable[[ItemT], ResultT], items: Iterable[ItemT], jobs: int) -> Iterator[tuple[ItemT, ResultT]]:
    """Each item with what `work` makes of it, in order; a bounded number is under way at any time."""
    with ThreadPoolExecutor(jobs, "jobs") as pool:
        waiting: deque[tuple[ItemT, Future[ResultT]]] = deque()
        try:
            for item in items:
                waiting.append((item, pool.submit(work, item)))
                if len(waiting) > jobs * AHEAD_PER_JOB:
                    first, made = waiting.popleft()
                    yield first, made.result()
            while waiting:
                first, made = waiting.popleft()
                yield first, made.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
