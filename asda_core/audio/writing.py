"""Write audio files."""

import io
from pathlib import Path

import numpy as np
import soundfile
from jaxtyping import Float

from asda_core.system.files import name_in_errors


def write_wav(file: Path, audio: Float[np.ndarray, " samples"], sample_rate: int) -> None:
    """Write a 16-bit mono WAV file; missing folders are created.

    Args:
        file: its path.
        audio: samples in [-1, 1].
        sample_rate: in Hz.

    Raises:
        OSError: for example, the disk is full; its `filename` is `file`. (libsndfile would report a "System error".)
    """
    encoded = io.BytesIO()
    soundfile.write(encoded, audio, sample_rate, format="WAV", subtype="PCM_16")
    file.parent.mkdir(parents=True, exist_ok=True)
    with name_in_errors(file):
        file.write_bytes(encoded.getvalue())
