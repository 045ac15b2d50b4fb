"""Batches made ahead, while the step before them runs."""

from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor, wait

from asda_core.pretrain.data import Batches, Clips

ASKED_EVERY_SECONDS = 0.5
"""How long somebody who stops a run waits for it where batches do not come."""


def prefetched(
    clips: Batches, first_step: int, last_step: int, stop: Callable[[], bool] = lambda: False
) -> Generator[Clips, None, None]:
    """The batches of updates `first_step` to `last_step - 1` in order, `data.prefetch` of them made ahead.

    One thread makes them, with the help of the `data.workers` of `clips`, which are closed in the end. Use with
    `contextlib.closing`: whoever leaves early waits for the batch in progress alone, and for no command that stalls.

    Args:
        clips: what makes them.
        first_step, last_step: from 0.
        stop: asked while a batch does not come; where it says so, no more batches come.

    Raises:
        AudioError: no file is readable; raised at the step that would have got the batch.
    """
    with ThreadPoolExecutor(1, "batches") as ahead:
        waiting: deque[Future[Clips]] = deque()
        try:
            for step in range(first_step, last_step):
                while len(waiting) <= clips.config.prefetch and step + len(waiting) < last_step:
                    waiting.append(ahead.submit(clips.batch, step + len(waiting)))
                while not wait([waiting[0]], ASKED_EVERY_SECONDS).done:
                    if stop():
                        return
                yield waiting.popleft().result()
        finally:
            clips.end()
            ahead.shutdown(wait=True, cancel_futures=True)
            clips.close()
