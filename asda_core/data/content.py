"""What sounds hold, by their first and last bytes: others of the same names and sizes are told apart undecoded."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from asda_core.data.sources import AudioList, list_identity
from asda_core.data.tars import index_of, split_member
from asda_core.errors import AudioError
from asda_core.system.files import DIGEST_DIGITS, text_digest

END_BYTES = 1 << 14
"""Read at each end of a sound."""
CONTENT = " content "
"""Before what a sample of the audio holds, in what a run notes of its data."""
SAMPLED = 256
"""Sounds of a list that are looked at where all of them would take too long."""


def ends(file: Path) -> str:
    """Digest of the first and last bytes of a sound; empty for one that cannot be read."""
    inside = split_member(file)
    if inside is None and not file.is_file():  # a pipe would be waited for
        return ""
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
    count = min(len(files), SAMPLED)
    told = " ".join(ends(files[number * len(files) // count]) for number in range(count))
    return text_digest(told)


def audio_digest(files: AudioList, begins: str | None = None) -> str:
    """What a run notes of its data: names and sizes of all files, what a sample of them holds, and where it began.

    Args:
        files: audio, or streams of shards, which are known by their addresses alone.
        begins: digest of the weights that it begins with.
    """
    listed = text_digest(json.dumps(list_identity(files)))
    held = sampled_content([file for file in files if isinstance(file, Path)])
    return f"{listed}{'' if begins is None else f' from {begins}'}{CONTENT}{held}"


def same_audio(noted: str, today: str) -> bool:
    """Whether a run goes on with the data that it noted; runs of earlier versions noted no content."""
    return noted in (today, today.partition(CONTENT)[0])
