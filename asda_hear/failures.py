"""Why a part of a long piece of work failed, left in a file for other processes and for the user."""

import traceback
from pathlib import Path

from asda_core.files import write_text


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
        since: "" where it is older than this `asda_core.files.disk_time`, or not there.
    """
    try:
        if file.stat().st_mtime <= since:
            return ""
        lines = file.read_text(encoding="utf-8").strip().splitlines() or [""]
    except FileNotFoundError:
        return ""
    return lines[-1] if lines[0].startswith("Traceback") else lines[0]
