"""One process at a time in a folder."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from asda_core.errors import ConfigError

LOCK_FILE = ".lock"
"""By which a run folder is held."""
POLL_SECONDS = 0.05
"""Between two looks at a lock that another process holds."""


@contextmanager
def locked(file: Path, timeout: float = -1, poll_interval: float = POLL_SECONDS) -> Iterator[None]:
    """Hold a file among processes, of several machines too; the system frees it when its process ends.

    Args:
        file: made if it is not there, and stays.
        timeout: seconds after which it is given up; -1: never.
        poll_interval: seconds between two looks.

    Raises:
        Timeout: another process holds it.
        ConfigError: the disk knows no locks.
    """
    held = FileLock(file, timeout=timeout, poll_interval=poll_interval)
    try:
        held.acquire()
    except NotImplementedError:
        raise ConfigError(
            f"{file.parent} is on a disk that knows no locks (flock), which keep several processes apart; "
            "write to another disk."
        ) from None
    try:
        yield
    finally:
        held.release()


@contextmanager
def alone_in(folder: Path, lock: str, does: str) -> Iterator[None]:
    """Hold a folder, which is made if it is not there.

    Args:
        folder: where this process writes.
        lock: name of the file in it by which it is held; it stays.
        does: what a process does there, for the message.

    Raises:
        ConfigError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    held = FileLock(folder / lock)
    try:
        held.acquire(timeout=0)
    except Timeout:
        raise ConfigError(f"another process {does} {folder}; wait for it, or give another folder.") from None
    except NotImplementedError:
        print(f"warning: the disk of {folder} knows no locks (flock): start no second process there.", file=sys.stderr)
    try:
        yield
    finally:
        held.release()
