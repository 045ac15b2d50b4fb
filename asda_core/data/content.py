"""Content of audio files by their first and last bytes: tells files of equal name and size apart without decoding."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from asda_core.data.sources import AudioList, list_identity
from asda_core.data.tars import index_of, split_member
from asda_core.errors import AudioError
from asda_core.system.files import DIGEST_DIGITS, text_digest

END_BYTES = 1 << 14
"""Bytes read at each end of an audio file."""
CONTENT = " content "
"""Separates the digest of sampled content from what precedes it in the data digest of a run."""
SAMPLED = 256
"""Maximum number of files of a list that are read where reading all would take too long."""


def ends(file: Path) -> str:
    """Digest of the first and last bytes of an audio file; empty if it cannot be read."""
    member = split_member(file)
    if member is None and not file.is_file():  # reading a pipe would block
        return ""
    try:
        offset, size = (0, file.stat().st_size) if member is None else index_of(member[0]).place(member[1])
        with (file if member is None else member[0]).open("rb") as stream:
            stream.seek(offset)
            first = stream.read(min(END_BYTES, size))
            stream.seek(offset + max(0, size - END_BYTES))
            return hashlib.sha256(first + stream.read(min(END_BYTES, size))).hexdigest()[:DIGEST_DIGITS]
    except (OSError, AudioError):
        return ""


def sampled_content(files: Sequence[Path]) -> str:
    """Digest of the ends of at most `SAMPLED` files, evenly spaced over a list."""
    count = min(len(files), SAMPLED)
    digests = " ".join(ends(files[number * len(files) // count]) for number in range(count))
    return text_digest(digests)


def audio_digest(files: AudioList, begins: str | None = None) -> str:
    """Data digest of a run: names and sizes of all files, content of a sample of them, and the initial weights.

    Args:
        files: audio files, or streamed shards, whose content is not sampled.
        begins: digest of the weights that the run starts from.
    """
    listed = text_digest(json.dumps(list_identity(files)))
    content = sampled_content([file for file in files if isinstance(file, Path)])
    return f"{listed}{'' if begins is None else f' from {begins}'}{CONTENT}{content}"


def same_audio(noted: str, today: str) -> bool:
    """Whether a run resumes with the data that it recorded; runs of earlier versions recorded no content."""
    return noted in (today, today.partition(CONTENT)[0])
