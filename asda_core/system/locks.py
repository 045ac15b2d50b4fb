"""Locks that admit one process at a time to a folder."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from asda_core.errors import ConfigError

LOCK_FILE = ".lock"
"""Name of the lock file of a run folder."""
POLL_SECONDS = 0.05
"""Interval between two attempts at a lock that another process holds."""


@contextmanager
def hold_lock(file: Path, timeout: float = -1, poll_interval: float = POLL_SECONDS) -> Iterator[None]:
    """Hold a lock among processes, also of several machines; the system releases it when its process ends.

    Args:
        file: the lock file; created if missing, and kept.
        timeout: seconds to wait for the lock; -1 waits without limit.
        poll_interval: seconds between two attempts.

    Raises:
        Timeout: another process holds it.
        ConfigError: the disk does not support locks.
    """
    lock = FileLock(file, timeout=timeout, poll_interval=poll_interval)
    try:
        lock.acquire()
    except NotImplementedError:
        raise ConfigError(
            f"{file.parent} is on a disk that does not support locks (flock), which keep several processes apart; "
            "write to another disk."
        ) from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def hold_folder_lock(folder: Path, lock_name: str, activity: str) -> Iterator[None]:
    """Hold the lock of a folder, which is created if missing.

    Args:
        folder: where this process writes.
        lock_name: name of the lock file in it, which is kept.
        activity: what a process does there, for the message.

    Raises:
        ConfigError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file_lock = FileLock(folder / lock_name)
    try:
        file_lock.acquire(timeout=0)
    except Timeout:
        raise ConfigError(f"another process {activity} {folder}; wait for it, or use another folder.") from None
    except NotImplementedError:
        print(
            f"warning: the disk of {folder} does not support locks (flock); do not start a second process there.",
            file=sys.stderr,
        )
    try:
        yield
    finally:
        file_lock.release()
