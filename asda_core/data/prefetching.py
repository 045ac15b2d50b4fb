"""Batches prepared ahead, while the previous step runs."""

from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor, wait

from asda_core.data.clip_batches import Batches, Clips

POLL_SECONDS = 0.5
"""Interval at which a stop request is polled while a batch does not arrive."""


def prefetch(
    batches: Batches, first_step: int, last_step: int, should_stop: Callable[[], bool] = lambda: False
) -> Generator[Clips, None, None]:
    """Yield the batches of updates `first_step` to `last_step - 1` in order, `data.prefetch` of them prepared ahead.

    One thread prepares them with the `data.workers` threads of `batches`, which is closed at the end. Use with
    `contextlib.closing`: on early exit it waits only for the batch in progress, and not for a stalled command.

    Args:
        batches: source of the batches.
        first_step, last_step: counted from 0.
        should_stop: polled while a batch does not arrive; once it returns True, no more batches are yielded.

    Raises:
        AudioError: no file is readable; raised at the step that would have received the batch.
    """
    with ThreadPoolExecutor(1, "batches") as executor:
        pending: deque[Future[Clips]] = deque()
        try:
            for step in range(first_step, last_step):
                while len(pending) <= batches.config.prefetch and step + len(pending) < last_step:
                    pending.append(executor.submit(batches.batch, step + len(pending)))
                while not wait([pending[0]], POLL_SECONDS).done:
                    if should_stop():
                        return
                yield pending.popleft().result()
        finally:
            batches.abort()
            executor.shutdown(wait=True, cancel_futures=True)
            batches.close()
