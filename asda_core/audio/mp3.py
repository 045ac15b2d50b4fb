"""Peculiarities of MP3: a length that may not be stored, and frames that depend on those before them.

A Xing header in the first frame states the number of frames. Without it libsndfile assumes the bit rate of the first
frame for all, and reads no further than that gives: at a variable bit rate it may lose most. So frames are counted.
"""

import functools
import io
import os
import re
from pathlib import Path

from soundfile import LibsndfileError, SoundFile

from asda_core.audio.flac import HAS_MINIAUDIO

FORMAT, SUFFIX = "MP3", ".mp3"
"""libsndfile's name of the format, and the suffix by which it knows files of it whose beginning is another."""
RATES = b"".join(bytes([bit_rate << 4, ord("-"), bit_rate << 4 | 0xB]) for bit_rate in range(1, 0xF))
"""Third bytes of a header, as ranges of a pattern: four bits for the bit rate, neither 0 (free format, which hardly any
file has) nor 15, and two for the sample rate, not 3."""
SYNC = re.compile(rb"\xff[\xe2-\xe7\xf2-\xf7\xfa-\xff][" + RATES + b"]")
"""Start of a frame: eleven bits of 1, and a version, layer and rates that exist. **Source**: ISO/IEC 11172-3."""
SAMPLES_PER_FRAME = 1152
"""**Source**: ISO/IEC 11172-3, layer III."""
LEAD_SAMPLES = 20 * SAMPLES_PER_FRAME
"""Samples that are decoded before the target of a seek and discarded. A frame takes bits from those before it (at most
511 bytes, ten of the smallest frames) and overlaps with the last one; without them the first samples after a seek are
wrong. Measured: LAB.md."""
SLACK_SAMPLES = 4 * SAMPLES_PER_FRAME
"""Tolerance between two ways of counting: samples that an encoder adds before and after the audio."""
TAGS = (b"Xing", b"Info")
"""A first frame that states the length contains one of these tags. libsndfile ignores a third one, VBRI."""
FIRST_BYTES = 1 << 10
"""Number of bytes from the start of that frame which contain the tag."""
ID3, ID3_BYTES = b"ID3", 10
"""Start of a tag that may precede the first frame, and length of its header. **Source**: ID3 version 2.4."""


def open_bytes(file: Path, content: bytes) -> SoundFile:
    """Open the bytes of an audio file; those of an `.mp3` from the first frame on if something unknown precedes it.

    libsndfile does so itself for a path, and leaves bytes without a suffix unrecognised.

    Raises:
        soundfile.LibsndfileError: the bytes are not audio.
    """
    try:
        return SoundFile(io.BytesIO(content))
    except LibsndfileError:
        frame = SYNC.search(content, _after_id3(content)) if file.suffix.lower() == SUFFIX else None
        if frame is None:
            raise
        return SoundFile(io.BytesIO(content[frame.start() :]))


def lead_samples(sound: SoundFile, first: int) -> int:
    """Samples to decode before sample `first`, so that it is the same as when decoding from the beginning."""
    return min(first, LEAD_SAMPLES) if sound.format == FORMAT else 0


def lost_samples(sound: SoundFile, file: Path, content: bytes | None) -> int:
    """Number of samples of an open MP3 file that libsndfile would not read; 0 for other formats.

    Args:
        sound: the file as libsndfile opened it.
        file: its path; not read if its bytes are given.
        content: its bytes, if available.
    """
    if not HAS_MINIAUDIO or sound.format != FORMAT:
        return 0
    if content is None:
        stat = os.stat(file)
        counted = _count_in_file(os.path.abspath(file), stat.st_size, stat.st_mtime_ns)
    else:
        counted = 0 if _states_length(content[: FIRST_BYTES + _after_id3(content[:ID3_BYTES])]) else _count(content)
    lost = counted - len(sound)
    return lost if lost > SLACK_SAMPLES else 0


@functools.lru_cache(maxsize=1 << 16)
def _count_in_file(file: str, size: int, modified: int) -> int:
    """Number of samples of a file that does not state its length; 0 if it does. Size and time are for the cache."""
    with open(file, "rb") as stream:
        start = _after_id3(stream.read(ID3_BYTES))
        stream.seek(start)
        if _states_length(stream.read(FIRST_BYTES)):
            return 0
        stream.seek(0)
        return _count(stream.read())


def _after_id3(head: bytes) -> int:
    """Offset of the first frame: the size of the tag is stored in four bytes of seven bits."""
    if not head.startswith(ID3) or len(head) < ID3_BYTES:
        return 0
    return ID3_BYTES + functools.reduce(lambda size, byte: size << 7 | byte & 0x7F, head[6:ID3_BYTES], 0)


def _states_length(head: bytes) -> bool:
    return any(tag in head for tag in TAGS)


def _count(content: bytes) -> int:
    import miniaudio

    try:
        return int(miniaudio.mp3_get_info(content).num_frames)
    except miniaudio.MiniaudioError:
        return 0
