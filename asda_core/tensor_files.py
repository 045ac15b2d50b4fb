"""Files of tensors (safetensors), which hold no code: the same bytes for the same content."""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from asda_core.errors import CheckpointError

LENGTH_BYTES = 8
"""With which such a file begins: the length of what describes its tensors, lowest byte first. Behind it comes JSON.

**Source**: https://huggingface.co/docs/safetensors
"""
METADATA = "__metadata__"
"""Key of that JSON for what is no tensor."""
PICKLE_PROTOCOLS = (b"\x02", b"\x03", b"\x04", b"\x05")


def save_tensors(file: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file: the same bytes for the same content.

    Raises:
        OSError: it cannot be written, as on a full disk.
    """
    try:
        save_file(tensors, file, metadata)
    except SafetensorError as error:
        raise OSError(f"cannot write {file}: {error}") from None
    _sort_metadata(file)


def _sort_metadata(file: Path) -> None:
    """The library writes it in an order that is drawn anew each time; sorted, it takes as many bytes."""
    with file.open("r+b") as opened:
        length = int.from_bytes(opened.read(LENGTH_BYTES), "little")
        header = json.loads(opened.read(length))
        header[METADATA] = dict(sorted(header[METADATA].items()))
        in_order = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(in_order) <= length:
            opened.seek(LENGTH_BYTES)
            opened.write(in_order.ljust(length))


def read_tensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file.

    Raises:
        CheckpointError: it is damaged or something else; nothing in it is run to find out.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}, dict(opened.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"cannot read {file}: {_what_it_is(file)} ({error})") from None


def _what_it_is(file: Path) -> str:
    start = b""
    if file.is_file():
        with file.open("rb") as opened:
            start = opened.read(4)
    known = {
        b"PK\x03\x04": "it is a zip archive, as torch.save writes; its pickle is not opened",
        b"": "it is empty",
    }
    if start[:1] == b"\x80" and start[1:2] in PICKLE_PROTOCOLS:
        return "it is a pickle, which could run code when opened, so it is not opened"
    return known.get(start[:4], "it is no checkpoint, or a truncated one")
