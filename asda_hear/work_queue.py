"""Work queue shared by any number of processes: each takes a free item, and no item is done twice.

An item has a lock, which the operating system releases when its process ends, however it ends, and a file that says
why it failed, for the other processes and for the user.
"""

import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from filelock import Timeout

from asda_core.errors import TrainingStopped
from asda_core.system.files import write_text
from asda_core.system.locks import hold_lock

POLL_SECONDS = 0.5
"""Seconds between checks of a process without a free item whether the others are done or have died."""

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class ItemFailure:
    """An item that failed.

    Attributes:
        error: type and message of the error.
    """

    error: str


def process_queue(
    items: Sequence[Item], attempt: Callable[[Item], Result | ItemFailure | None], deadline: float = float("inf")
) -> Iterator[tuple[Item, Result | ItemFailure]]:
    """Process one item after the other until all have ended, waiting for those that other processes hold.

    Args:
        items: processed in this order; those that are not free are tried again after the others.
        attempt: processes an item; returns None if another process holds it (see `attempt_locked`).
        deadline: value of `time.monotonic()` after which no further item is started.

    Yields:
        each item as it ends, and its result or failure.
    """
    remaining = list(items)
    while remaining:
        num_before = len(remaining)
        for item in list(remaining):
            if time.monotonic() > deadline:
                return
            outcome = attempt(item)
            if outcome is not None:
                remaining.remove(item)
                yield item, outcome
        if len(remaining) == num_before:
            time.sleep(POLL_SECONDS)


def attempt_locked(
    run: Callable[[], Result], name: str, lock: Path, error_file: Path, since: float
) -> Result | ItemFailure | None:
    """Process an item unless another process holds it; an error is recorded and does not stop the other items.

    Args:
        run: processes the item.
        name: name of the item, for messages.
        lock: lock file, held meanwhile.
        error_file: file to which an error is written; removed on success.
        since: an `asda_core.system.files.disk_time`; an item that failed later, in another process, is not retried.

    Returns:
        the result of `run`; `ItemFailure` if it failed now or after `since`; None if another process holds the item.

    Raises:
        TrainingStopped, KeyboardInterrupt: the work was stopped.
    """
    error_file.parent.mkdir(parents=True, exist_ok=True)
    try:
        with hold_lock(lock, timeout=0):
            if why := read_failure(error_file, since):
                return ItemFailure(why)
            try:
                result = run()
            except TrainingStopped:
                raise
            except Exception as error:
                failed = ItemFailure(write_failure(error_file, error))
                print(f"failed: {name}: {failed.error}", file=sys.stderr)
                return failed
            error_file.unlink(missing_ok=True)
            return result
    except Timeout:
        return None


def write_failure(file: Path, error: Exception) -> str:
    """Write an error to a file; return the first line of it, which has the type and message."""
    message = "; ".join(line.strip() for line in str(error).splitlines() if line.strip())
    first_line = f"{type(error).__name__}: {message}"
    text = f"{first_line}\n\n{''.join(traceback.format_exception(error))}"
    write_text(file, text.encode(errors="backslashreplace").decode())  # file names may hold any bytes
    return first_line


def read_failure(file: Path, since: float = 0.0) -> str:
    """Return type and message of the error in a file; for a file of an earlier version, the end of its traceback.

    Args:
        file: what `write_failure` wrote.
        since: the result is "" if the file is not newer than this `asda_core.system.files.disk_time`, or is missing.
    """
    try:
        if file.stat().st_mtime <= since:
            return ""
        lines = file.read_text(encoding="utf-8").strip().splitlines() or [""]
    except FileNotFoundError:
        return ""
    return lines[-1] if lines[0].startswith("Traceback") else lines[0]
