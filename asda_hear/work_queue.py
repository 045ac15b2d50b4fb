"""Work that any number of processes share: each takes up what is free, and nothing is done twice.

A piece of work has a lock, which the system frees when its process ends, however it ends, and a file that says why it
failed, for the other processes and for the user.
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
from asda_core.system.locks import locked

POLL_SECONDS = 0.5
"""How often a process that has nothing left to take up looks whether the others are done or have died."""

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Failed:
    """A piece of work that failed.

    Attributes:
        why: kind and message of the error.
    """

    why: str


def shared_work(
    items: Sequence[Item], attempt: Callable[[Item], Result | Failed | None], until: float = float("inf")
) -> Iterator[tuple[Item, Result | Failed]]:
    """Take up one item after the other until all have ended; what others are doing is waited for.

    Args:
        items: taken up in this order; those that are not free come again after the others.
        attempt: does an item; None where another process is at it (see `attempt_alone`).
        until: `time.monotonic()` after which nothing more is taken up.

    Yields:
        each item as it ends, and what came of it.
    """
    left = list(items)
    while left:
        before = len(left)
        for item in list(left):
            if time.monotonic() > until:
                return
            outcome = attempt(item)
            if outcome is not None:
                left.remove(item)
                yield item, outcome
        if len(left) == before:
            time.sleep(POLL_SECONDS)


def attempt_alone(
    do: Callable[[], Result], name: str, lock: Path, error_file: Path, since: float
) -> Result | Failed | None:
    """Do a piece of work, whose error does not take the others down, unless another process is at it.

    Args:
        do: the work.
        name: of it, for messages.
        lock: held meanwhile.
        error_file: where an error is left; removed when the work is done.
        since: `asda_core.system.files.disk_time`; what failed after it, in another process, is not tried again.

    Returns:
        what `do` returns; how it failed, now or just before; None where another process is at it.

    Raises:
        TrainingStopped, KeyboardInterrupt: the work was stopped.
    """
    error_file.parent.mkdir(parents=True, exist_ok=True)
    try:
        with locked(lock, timeout=0):
            if why := read_failure(error_file, since):
                return Failed(why)
            try:
                result = do()
            except TrainingStopped:
                raise
            except Exception as error:
                failed = Failed(write_failure(error_file, error))
                print(f"failed: {name}: {failed.why}", file=sys.stderr)
                return failed
            error_file.unlink(missing_ok=True)
            return result
    except Timeout:
        return None


def write_failure(file: Path, error: Exception) -> str:
    """Leave an error in a file, its kind and message in the first line, which is returned."""
    told = "; ".join(line.strip() for line in str(error).splitlines() if line.strip())
    first = f"{type(error).__name__}: {told}"
    text = f"{first}\n\n{''.join(traceback.format_exception(error))}"
    write_text(file, text.encode(errors="backslashreplace").decode())  # names of files are any bytes
    return first


def read_failure(file: Path, since: float = 0.0) -> str:
    """The kind and message of the error in a file; of an earlier version, what its traceback ends with.

    Args:
        file: what `write_failure` wrote.
        since: "" where it is older than this `asda_core.system.files.disk_time`, or not there.
    """
    try:
        if file.stat().st_mtime <= since:
            return ""
        lines = file.read_text(encoding="utf-8").strip().splitlines() or [""]
    except FileNotFoundError:
        return ""
    return lines[-1] if lines[0].startswith("Traceback") else lines[0]
