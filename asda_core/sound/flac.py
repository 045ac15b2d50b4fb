"""A second way to decode FLAC, faster than libsndfile's and equal to it in every sample.

FLAC is lossless, so which decoder reads it cannot change a result. libsndfile opens every file and says what it is, or
what is wrong with it; miniaudio is asked for the samples of whole files of one channel alone, and what it does not read
to the length that the header tells is left to libsndfile.
"""

import os
from importlib.util import find_spec
from pathlib import Path

import torch
from jaxtyping import Float
from soundfile import SoundFile
from torch import Tensor

INSTALLED = find_spec("miniaudio") is not None
"""On Linux for ARM it has no wheels, and is not asked for."""
FORMAT, SUBTYPES = "FLAC", ("PCM_S8", "PCM_16", "PCM_24")
"""As libsndfile names what is decoded here; a FLAC within Ogg has another name."""


def whole_flac(sound: SoundFile, file: Path, content: bytes | None) -> Float[Tensor, " samples"] | None:
    """All samples of a FLAC file of one channel, in [-1, 1].

    Args:
        sound: the file as libsndfile opened it.
        file: its path; not read where its bytes are given.
        content: its bytes, where they are at hand.

    Returns:
        None of anything else, and of what is damaged.
    """
    if not INSTALLED or sound.format != FORMAT or sound.subtype not in SUBTYPES or sound.channels != 1:
        return None
    import miniaudio

    try:
        if content is None:
            decoded = miniaudio.flac_read_file_f32(os.path.abspath(file))  # it takes a first "~" for a home
        else:
            decoded = miniaudio.flac_read_f32(content)
    except (miniaudio.MiniaudioError, OSError, ValueError):
        return None
    same = (len(decoded.samples), decoded.sample_rate, decoded.nchannels) == (len(sound), sound.samplerate, 1)
    return torch.frombuffer(decoded.samples, dtype=torch.float32) if same else None
