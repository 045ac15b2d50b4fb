"""Work done by several threads, its results in the order in which it was given."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

AHEAD_PER_JOB = 4
"""Results per thread that may wait for those before them."""


def in_order(
    work: Callable[[ItemT], ResultT], items: Iterable[ItemT], jobs: int, ahead: int = AHEAD_PER_JOB
) -> Iterator[tuple[ItemT, ResultT]]:
    """Each item with what `work` makes of it, in order; a bounded number is under way at any time.

    Args:
        work: is called in threads; what it raises is raised here, when its turn comes.
        items: what is to be worked on.
        jobs: threads.
        ahead: results per thread that may wait for those before them.
    """
    with ThreadPoolExecutor(jobs, "jobs") as pool:
        waiting: deque[tuple[ItemT, Future[ResultT]]] = deque()
        try:
            for item in items:
                waiting.append((item, pool.submit(work, item)))
                if len(waiting) > jobs * ahead:
                    yield _first(waiting)
            while waiting:
                yield _first(waiting)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _first(waiting: deque[tuple[ItemT, Future[ResultT]]]) -> tuple[ItemT, ResultT]:
    """The first result; the future that holds it is let go, so that it is the caller's alone."""
    item, made = waiting.popleft()
    return item, made.result()
