"""What sounds hold, by their first and last bytes: others of the same names and sizes are told apart undecoded."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from asda_core.data.tars import index_of, split_member
from asda_core.errors import AudioError
from asda_core.files import DIGEST_DIGITS

END_BYTES = 1 << 14
"""Read at each end of a sound."""
SAMPLED = 256
"""Sounds of a list that are looked at where all of them would take too long."""


def ends(file: Path) -> str:
    """Digest of the first and last bytes of a sound; empty for one that cannot be read."""
    inside = split_member(file)
    try:
        place, size = (0, file.stat().st_size) if inside is None else index_of(inside[0]).place(inside[1])
        with (file if inside is None else inside[0]).open("rb") as opened:
            opened.seek(place)
            first = opened.read(min(END_BYTES, size))
            opened.seek(place + max(0, size - END_BYTES))
            return hashlib.sha256(first + opened.read(min(END_BYTES, size))).hexdigest()[:DIGEST_DIGITS]
    except (OSError, AudioError):
        return ""


def sampled_content(files: Sequence[Path]) -> str:
    """Digest of the ends of at most `SAMPLED` sounds, evenly spread over a list."""
    chosen = range(len(files)) if len(files) <= SAMPLED else range(0, len(files), len(files) // SAMPLED)
    return hashlib.sha256(" ".join(ends(files[number]) for number in chosen).encode()).hexdigest()[:DIGEST_DIGITS]
