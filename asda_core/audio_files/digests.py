"""Content of audio files by their first and last bytes: distinguishes files of equal name and size without decoding."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from asda_core.audio_files.sources import AudioList, list_identity
from asda_core.audio_files.tars import shard_index, split_member
from asda_core.errors import AudioError
from asda_core.system.files import DIGEST_DIGITS, text_digest

END_BYTES = 1 << 14
"""Bytes read at each end of an audio file."""
CONTENT_SEPARATOR = " content "
"""Separates the digest of sampled content from what precedes it in the data digest of a run."""
MAX_SAMPLED = 256
"""Maximum number of files of a list that are read where reading all would take too long."""


def ends_digest(file: Path) -> str:
    """Digest of the first and last bytes of an audio file; empty if it cannot be read."""
    member = split_member(file)
    if member is None and not file.is_file():  # reading a pipe would block
        return ""
    try:
        offset, size = (0, file.stat().st_size) if member is None else shard_index(member[0]).offset_and_size(member[1])
        with (file if member is None else member[0]).open("rb") as stream:
            stream.seek(offset)
            first = stream.read(min(END_BYTES, size))
            stream.seek(offset + max(0, size - END_BYTES))
            return hashlib.sha256(first + stream.read(min(END_BYTES, size))).hexdigest()[:DIGEST_DIGITS]
    except (OSError, AudioError):
        return ""


def sampled_digest(files: Sequence[Path]) -> str:
    """Digest of the ends of at most `MAX_SAMPLED` files, evenly spaced over a list."""
    count = min(len(files), MAX_SAMPLED)
    digests = " ".join(ends_digest(files[number * len(files) // count]) for number in range(count))
    return text_digest(digests)


def audio_digest(files: AudioList, initial_weights_digest: str | None = None) -> str:
    """Data digest of a run: names and sizes of all files, content of a sample of them, and the initial weights.

    Args:
        files: audio files, or streamed shards, whose content is not sampled.
        initial_weights_digest: digest of the weights that the run starts from.
    """
    listed = text_digest(json.dumps(list_identity(files)))
    content = sampled_digest([file for file in files if isinstance(file, Path)])
    initial = "" if initial_weights_digest is None else f" from {initial_weights_digest}"
    return f"{listed}{initial}{CONTENT_SEPARATOR}{content}"


def is_same_data(recorded: str, current: str) -> bool:
    """Whether a run resumes with the data that it recorded; runs of earlier versions recorded no content."""
    return recorded in (current, current.partition(CONTENT_SEPARATOR)[0])
