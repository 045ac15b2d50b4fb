"""What is particular about MP3: a length that nobody may have written down, and frames that need those before them.

A first frame named after Xing tells how many frames there are. Without it libsndfile takes the rate of the first frame
for that of all, and reads no further than that: of a variable rate it may lose most. So their frames are counted.
"""

import functools
import os
from importlib.util import find_spec
from pathlib import Path

from soundfile import SoundFile

INSTALLED = find_spec("miniaudio") is not None
"""On Linux for ARM it has no wheels, and frames are not counted."""
FORMAT = "MP3"
"""As libsndfile names it."""
SAMPLES_PER_FRAME = 1152
"""**Source**: ISO/IEC 11172-3, layer III."""
LEAD_SAMPLES = 20 * SAMPLES_PER_FRAME
"""A frame takes bits from those before it (at most 511 bytes, ten of the smallest frames), and overlaps with the last;
behind a seek the first samples are wrong for want of them. So many are read before and thrown away. Measured: with 20
frames none of 360 stretches of six files differed."""
SLACK_SAMPLES = 4 * SAMPLES_PER_FRAME
"""By which two ways to count may differ: what an encoder puts before and behind a sound."""
TAGS = (b"Xing", b"Info", b"VBRI")
"""Of which one is in a first frame that tells the length."""
FIRST_BYTES = 1 << 10
"""In which it is."""
ID3, ID3_BYTES = b"ID3", 10
"""How a tag begins that may stand before the first frame, and how long its header is. **Source**: ID3 version 2.4."""


def lead(sound: SoundFile, first: int) -> int:
    """Samples that must be read before sample `first`, so that it is what it is when all is read from the beginning."""
    return min(first, LEAD_SAMPLES) if sound.format == FORMAT else 0


def lost_samples(sound: SoundFile, file: Path, content: bytes | None) -> int:
    """Samples of an open MP3 that libsndfile does not know of; 0 of anything else.

    Args:
        sound: the file as libsndfile opened it.
        file: its path; not read where its bytes are given.
        content: its bytes, where they are at hand.
    """
    if not INSTALLED or sound.format != FORMAT:
        return 0
    if content is None:
        facts = os.stat(file)
        counted = _counted_in(os.path.abspath(file), facts.st_size, facts.st_mtime_ns)
    else:
        counted = 0 if _tells_length(content[: FIRST_BYTES + _behind_id3(content[:ID3_BYTES])]) else _counted(content)
    lost = counted - len(sound)
    return lost if lost > SLACK_SAMPLES else 0


@functools.lru_cache(maxsize=1 << 16)
def _counted_in(file: str, size: int, changed: int) -> int:
    """Samples of a file that does not tell its length; 0 of one that does. Size and time are for the cache."""
    with open(file, "rb") as opened:
        skipped = _behind_id3(opened.read(ID3_BYTES))
        opened.seek(skipped)
        if _tells_length(opened.read(FIRST_BYTES)):
            return 0
        opened.seek(0)
        return _counted(opened.read())


def _behind_id3(head: bytes) -> int:
    """Where the first frame begins: the size of the tag is in four bytes of seven bits."""
    if not head.startswith(ID3) or len(head) < ID3_BYTES:
        return 0
    return ID3_BYTES + functools.reduce(lambda size, byte: size << 7 | byte & 0x7F, head[6:ID3_BYTES], 0)


def _tells_length(head: bytes) -> bool:
    return any(tag in head for tag in TAGS)


def _counted(content: bytes) -> int:
    import miniaudio

    try:
        return int(miniaudio.mp3_get_info(content).num_frames)
    except miniaudio.MiniaudioError:
        return 0
