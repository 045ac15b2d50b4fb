"""Write embedding files incrementally, as rows become available, and atomically."""

import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from asda_core.errors import ConfigError
from asda_core.inference.clip_encoder import EncodedClip, EncodedWindow, check_outputs
from asda_core.system.files import write_atomically

Granularity = Literal["all", "frame", "utterance"]
ArrayFormat = Literal["npy", "safetensors"]

NO_CLASS_TOKEN = "granularity 'all' includes the class token, but this model has none; use 'frame'."
TENSOR_NAME = "embedding"
"""Name of the only tensor in a safetensors file of an embedding."""
LITTLE_FLOAT = "<f4"
"""NumPy's name of little-endian float32, which both formats store."""
HEADER_ALIGNMENT = 8
"""Bytes to a multiple of which safetensors pads its header with spaces. **Source**: safetensors."""


@dataclass(frozen=True)
class OutputKind:
    """Kind of embedding in a file.

    Attributes:
        granularity: "all" (class token and patches), "frame" (patches, one per band and time step), "utterance" (the
            summary).
        format: of the file.
    """

    granularity: Granularity
    format: ArrayFormat


def embedding(clip: EncodedClip, granularity: Granularity) -> Float[Tensor, "*tokens dim"]:
    """Return the rows of a clip: (1 + N, D) with the class token first, (N, D) patches, or the summary (D,).

    Raises:
        ConfigError: "all" for a model without a class token.

    **Source**: granularities of the released feature extraction.
    """
    if granularity == "frame":
        return clip.tokens
    if granularity == "utterance":
        return clip.summary
    if not clip.has_class_token:
        raise ConfigError(NO_CLASS_TOKEN)
    return torch.cat([clip.summary[None], clip.tokens])


def write_embedding(
    target: Path, values: Float[Tensor, "*tokens dim"], grid: tuple[int, int], kind: OutputKind
) -> None:
    """Write one file atomically, in float32.

    Args:
        target: the file.
        values: as returned by `embedding`.
        grid: time steps and bands, which a safetensors file records.
        kind: granularity and format.
    """

    def fill(part: Path) -> None:
        with part.open("wb") as opened:
            opened.write(header(kind, tuple(values.shape), grid))
            _append(opened, values)

    write_atomically(target, fill)


def write_windows(target: Path, windows: Iterable[EncodedWindow], steps: int, kind: OutputKind) -> None:
    """Write the embedding of a clip of any length window by window; equal to `write_embedding` of the whole.

    Args:
        target: the file, which appears only when all is written.
        windows: windows from beginning to end.
        steps: time steps of all windows together.
        kind: granularity and format.
    """

    def fill(part: Path) -> None:
        with part.open("wb") as opened:
            _stream(opened, iter(windows), steps, kind)

    write_atomically(target, fill)


def header(kind: OutputKind, shape: tuple[int, ...], grid: tuple[int, int]) -> bytes:
    """Return the bytes of a file that precede the values."""
    if kind.format == "npy":
        buffer = io.BytesIO()
        fields = {"descr": LITTLE_FLOAT, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(buffer, fields)
        return buffer.getvalue()
    metadata = {"granularity": kind.granularity, "time_steps": str(grid[0]), "bands": str(grid[1])}
    size = 4 * int(np.prod(shape))
    text = json.dumps(
        {"__metadata__": metadata, TENSOR_NAME: {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}}
    ).encode()
    text += b" " * (-len(text) % HEADER_ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _stream(opened: BinaryIO, windows: Iterator[EncodedWindow], steps: int, kind: OutputKind) -> None:
    """Write all rows; the summary is known last and fills the space reserved for it."""
    summary, done, begin, bands = torch.zeros(()), 0, 0, 1
    summary_rows = 0 if kind.granularity == "frame" else 1
    for piece in windows:
        tokens = piece.tokens()
        if not done:
            bands, dim = piece.encoded.layout.grid[1], tokens.shape[1]
            shape = (dim,) if kind.granularity == "utterance" else (summary_rows + steps * bands, dim)
            opened.write(header(kind, shape, (steps, bands)))
            begin = opened.tell()
            _append(opened, torch.zeros(summary_rows, dim))
        if kind.granularity != "utterance":
            _append(opened, tokens)
        summary = summary.to(piece.encoded.summary) + piece.encoded.summary[0] * len(tokens)
        done += len(tokens)
    assert done == steps * bands, f"{done} rows for {steps} time steps of {bands} bands"
    if summary_rows:
        opened.seek(begin)
        _append(opened, summary / done)


def _append(opened: BinaryIO, values: Tensor) -> None:
    rows = values.float().cpu().contiguous()
    check_outputs(rows)
    opened.write(rows.numpy().astype(LITTLE_FLOAT, copy=False).tobytes())
