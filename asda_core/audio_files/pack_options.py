"""Options of `asda data pack`."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from asda_core.config import require

PACK_FILE, SKIPPED_FILE = "pack.json", "skipped.jsonl"
"""Files of a pack: what it holds, and what could not be read; the second is written when the pack is finished."""

PackFormat = Literal["flac", "wav"]
MIN_RATE, MAX_RATE = 1_000, 655_350
"""Range of the sample rate of packed audio, in Hz: lower rates hold nothing a front end uses; FLAC allows no higher."""
FLAC_RATE, FLAC_STEP = 65_535, 10
"""Highest rate that FLAC stores in Hz, and the step above it. **Source**: RFC 9639, section 9.1.2: a rate has 16 bits,
in Hz or in tens of Hz."""
MIN_SECONDS = 0.01
"""Shortest allowed piece of a file, below one frame of log-mel (25 ms): ours, to reject a slip such as 1e-9."""


def unfinished_message(folder: Path) -> str:
    """Message for a folder with an unfinished pack; empty for any other folder."""
    if (folder / PACK_FILE).is_file() and not (folder / SKIPPED_FILE).is_file():
        return f"the pack {folder} is not finished; run its `asda data pack` command again to resume it."
    return ""


@dataclass(frozen=True)
class PackOptions:
    """Options for packing audio.

    Attributes:
        rate: sample rate in Hz; the front ends use 16 kHz.
        format: of the 16-bit mono audio: "flac", or "wav", which is larger and takes a third of the time to read.
        keep: whether to store the original files undecoded instead.
        seconds: maximum length; longer files are cut into equal pieces of at most this length; None leaves them whole.
        shard_mebibytes: size at which a shard is closed.
        seed: of the order of the files. Streams are only shuffled within blocks, so shards should not be sorted.
        name: prefix of the shard names, before the number.
    """

    rate: int = 16_000
    format: PackFormat = "flac"
    keep: bool = False
    seconds: float | None = None
    shard_mebibytes: int = 256
    seed: int = 1
    name: str = "train"

    def __post_init__(self) -> None:
        rate_allowed = MIN_RATE <= self.rate <= MAX_RATE
        require(rate_allowed, f"--rate must lie in {MIN_RATE}..{MAX_RATE}, not {self.rate}.")
        flac_allowed = self.format != "flac" or self.rate <= FLAC_RATE or self.rate % FLAC_STEP == 0
        require(
            flac_allowed,
            f"--rate {self.rate}: above {FLAC_RATE}, FLAC needs a multiple of {FLAC_STEP}; or use --format wav.",
        )
        formats = get_args(PackFormat)
        require(self.format in formats, f"--format must be {' or '.join(formats)}, not {self.format!r}.")
        seconds_allowed = self.seconds is None or MIN_SECONDS <= self.seconds < math.inf
        require(seconds_allowed, f"--seconds must be finite and at least {MIN_SECONDS}, not {self.seconds}.")
        require(not (self.keep and self.seconds), "--keep leaves files as they are and --seconds cuts them; give one.")
        default_encoding = (self.rate, self.format) == (PackOptions.rate, PackOptions.format)
        require(
            not self.keep or default_encoding,
            "--keep leaves files as they are; --rate and --format apply to re-encoded files only.",
        )
        require(self.shard_mebibytes > 0, f"--shard-mebibytes must be positive, not {self.shard_mebibytes}.")
        require(self.seed >= 0, f"--seed must not be negative, not {self.seed}.")
        plain = self.name.isprintable() and not set(self.name) & set("/.{} ") and not self.name.startswith("-")
        require(
            bool(self.name) and plain,
            f"--name must be a plain word without spaces, / . {{ }} or a - at its start, not {self.name!r}.",
        )
