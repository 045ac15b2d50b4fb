"""Small tar shards to test with."""

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile


def sound_bytes(number: int, seconds: float = 0.3, rate: int = 16_000) -> bytes:
    """A FLAC whose content tells its number."""
    noise = np.random.default_rng(number).normal(size=int(seconds * rate)) * 0.1
    file = io.BytesIO()
    soundfile.write(file, noise, rate, format="FLAC")
    return file.getvalue()


def write_tar(file: Path, members: Sequence[tuple[str, bytes]]) -> Path:
    """A tar of these members."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file


def write_shards(folder: Path, counts: Sequence[int]) -> list[Path]:
    """Shards of so many sounds each, every one with a description beside it, as webdataset has them."""
    made, number = [], 0
    for shard, count in enumerate(counts):
        members = []
        for _ in range(count):
            members += [(f"{number:04d}.flac", sound_bytes(number)), (f"{number:04d}.json", json.dumps({}).encode())]
            number += 1
        made.append(write_tar(folder / f"train-{shard:03d}.tar", members))
    return made
