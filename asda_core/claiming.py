"""One process at a time in a folder."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from asda_core.errors import ConfigError

LOCK_FILE = ".lock"
"""By which a run folder is held."""


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
