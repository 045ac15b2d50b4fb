"""A second FLAC decoder, faster than that of libsndfile and equal to it in every sample.

FLAC is lossless, so the choice of decoder cannot change a result. libsndfile opens every file and reports its format,
or what is wrong with it; miniaudio decodes only whole files of one channel, and a file that it does not read to the
length stated in the header is left to libsndfile.
"""

import os
from importlib.util import find_spec
from pathlib import Path

import torch
from jaxtyping import Float
from soundfile import SoundFile
from torch import Tensor

HAS_MINIAUDIO = find_spec("miniaudio") is not None
"""There are no wheels of miniaudio for Linux on ARM, so it is not required: frames of MP3 are then not counted."""
FORMAT, SUBTYPES = "FLAC", ("PCM_S8", "PCM_16", "PCM_24")
"""libsndfile's names of what is decoded here; FLAC within Ogg has another name."""


def decode_flac(sound: SoundFile, file: Path, content: bytes | None) -> Float[Tensor, " samples"] | None:
    """All samples of a FLAC file of one channel, in [-1, 1].

    Args:
        sound: the file as libsndfile opened it.
        file: its path; not read if its bytes are given.
        content: its bytes, if available.

    Returns:
        the samples; None for any other file, and for a damaged one.
    """
    if not HAS_MINIAUDIO or sound.format != FORMAT or sound.subtype not in SUBTYPES or sound.channels != 1:
        return None
    import miniaudio

    try:
        if content is None:
            decoded = miniaudio.flac_read_file_f32(os.path.abspath(file))  # it expands a leading "~" to a home folder
        else:
            decoded = miniaudio.flac_read_f32(content)
    except (miniaudio.MiniaudioError, OSError, ValueError):
        return None
    matches = (len(decoded.samples), decoded.sample_rate, decoded.nchannels) == (len(sound), sound.samplerate, 1)
    return torch.frombuffer(decoded.samples, dtype=torch.float32) if matches else None
