"""Safetensors files, which hold no code; the same content gives the same bytes."""

import json
import os
import re
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save_file
from torch import Tensor

from asda_core.errors import CheckpointError
from asda_core.system.files import LENGTH_BYTES, METADATA_KEY, safetensors_metadata
from asda_core.system.markdown import escape_surrogates

OS_ERROR = re.compile(r"\(os error (\d+)\)")
"""Number of an error of the operating system in a message of safetensors."""
PICKLE_PROTOCOLS = (b"\x02", b"\x03", b"\x04", b"\x05")


class DamagedFileError(CheckpointError):
    """A safetensors file is truncated or was overwritten."""


def save_tensors(file: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file; same content, same bytes. Tensors that share memory are each written in full.

    Raises:
        OSError: the file cannot be written, as on a full disk.
    """
    try:
        save_file(_apart(tensors), file, metadata)
    except SafetensorError as error:
        if number := OS_ERROR.search(str(error)):
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(file)) from None
        raise OSError(f"cannot write {file}: {error}") from None
    _sort_metadata(file)


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give each tensor its own memory: tied tensors, which the library refuses to write, are copied."""
    apart: dict[str, Tensor] = {}
    owners = set[tuple[torch.device, int]]()
    for name, tensor in tensors.items():
        memory = (tensor.device, tensor.untyped_storage().data_ptr())
        apart[name] = tensor.clone() if memory in owners and tensor.numel() else tensor
        owners.add(memory)
    return apart


def _sort_metadata(file: Path) -> None:
    """Sort the metadata, which the library writes in a random order; sorted, it takes as many bytes."""
    with file.open("r+b") as opened:
        length = int.from_bytes(opened.read(LENGTH_BYTES), "little")
        header = json.loads(opened.read(length))
        header[METADATA_KEY] = dict(sorted(header[METADATA_KEY].items()))
        in_order = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(in_order) <= length:
            opened.seek(LENGTH_BYTES)
            opened.write(in_order.ljust(length))


def read_tensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file.

    Raises:
        CheckpointError: the file is damaged or of another format; nothing in it is executed to find out.
    """
    try:
        if escape_surrogates(str(file)) != str(file):  # the library opens only paths in UTF-8
            return load(file.read_bytes()), safetensors_metadata(file)
        with safe_open(file, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}, dict(opened.metadata() or {})  # noqa: SIM118
    except SafetensorError as error:
        raise DamagedFileError(f"cannot read {file}: {_description(file)} ({error})") from None
    except OSError as error:
        raise CheckpointError(f"cannot read {file}: {_description(file)} ({error})") from None


def _description(file: Path) -> str:
    if not file.is_file():
        return "it does not exist"
    with file.open("rb") as opened:
        start = opened.read(4)
    descriptions = {
        b"PK\x03\x04": "it is a zip archive, as torch.save writes; its pickle is not opened",
        b"": "it is empty",
    }
    if start[:1] == b"\x80" and start[1:2] in PICKLE_PROTOCOLS:
        return "it is a pickle, which could run code when opened, so it is not opened"
    return descriptions.get(start[:4], "it is not a checkpoint, or a truncated one")
