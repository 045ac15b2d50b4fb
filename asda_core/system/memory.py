"""One line instead of a traceback for what does not fit into memory, of the machine or of a GPU."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from asda_core.errors import ConfigError

NO_MEMORY = re.compile(r"tried to allocate|out of memory|calculation overflowed", re.IGNORECASE)
"""Matches torch's messages about insufficient memory."""
ALLOCATION = re.compile(r"tried to allocate ([\d.]+ \w+)", re.IGNORECASE)
"""Matches the size in such a message."""


@contextmanager
def report_out_of_memory(subject: str, advice: str = "") -> Iterator[None]:
    """Report in one line that something is too large; also a decorator.

    Args:
        subject: what is created or computed in the block.
        advice: what to do about it, as in "lower data.batch_size".

    Raises:
        ConfigError: it does not fit into memory.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and NO_MEMORY.search(str(error)) is None:
            raise
        allocation = ALLOCATION.search(str(error))
        size = f": {allocation.group(1)}" if allocation else ""
        raise ConfigError(f"{subject} does not fit into memory{size}{advice and f'; {advice}'}.") from None
