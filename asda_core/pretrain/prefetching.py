"""Batches made ahead, while the step before them runs."""

from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor

from asda_core.pretrain.data import Batches, Clips


def prefetched(clips: Batches, first_step: int, last_step: int) -> Generator[Clips, None, None]:
    """The batches of updates `first_step` to `last_step - 1` in order, `data.prefetch` of them made ahead.

    One thread makes them, with the help of the `data.workers` of `clips`, which are closed in the end. Use with
    `contextlib.closing`: whoever leaves early waits for the batch in progress alone.

    Raises:
        AudioError: no file is readable; raised at the step that would have got the batch.
    """
    with ThreadPoolExecutor(1, "batches") as ahead:
        waiting: deque[Future[Clips]] = deque()
        try:
            for step in range(first_step, last_step):
                while len(waiting) <= clips.config.prefetch and step + len(waiting) < last_step:
                    waiting.append(ahead.submit(clips.batch, step + len(waiting)))
                yield waiting.popleft().result()
        finally:
            ahead.shutdown(wait=True, cancel_futures=True)
            clips.close()
