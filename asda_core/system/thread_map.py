"""Map a function over items with several threads, keeping the order of the items."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

PREFETCH_FACTOR = 4
"""Results per thread that may be queued behind earlier ones (as `prefetch_factor` of torch's DataLoader)."""


def map_in_threads(
    function: Callable[[ItemT], ResultT], items: Iterable[ItemT], jobs: int, prefetch_factor: int = PREFETCH_FACTOR
) -> Iterator[tuple[ItemT, ResultT]]:
    """Yield each item with the result of `function` on it, in order; a bounded number is in progress at any time.

    Args:
        function: called in threads; its exceptions are raised here, at their place in the order.
        items: the arguments of `function`.
        jobs: number of threads.
        prefetch_factor: results per thread that may be queued behind earlier ones.
    """
    with ThreadPoolExecutor(jobs, "jobs") as pool:
        pending: deque[tuple[ItemT, Future[ResultT]]] = deque()
        try:
            for item in items:
                pending.append((item, pool.submit(function, item)))
                if len(pending) > jobs * prefetch_factor:
                    yield _first(pending)
            while pending:
                yield _first(pending)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _first(pending: deque[tuple[ItemT, Future[ResultT]]]) -> tuple[ItemT, ResultT]:
    """Return the first result and drop its future, so that only the caller refers to the result."""
    item, future = pending.popleft()
    return item, future.result()
