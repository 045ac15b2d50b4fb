"""Read files of `torch.save` as tensors and plain data. No code in the file is ever run.

torch's `weights_only` unpickler builds tensors and plain containers and rejects every other global. fairseq's files
contain a few more: enums, omegaconf nodes, argparse namespaces. Those on the list below are replaced by an inert
stand-in that only stores what it is given; the module that the file names is not imported. Any other is rejected.
"""

import pickletools
import re
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from warnings import catch_warnings, simplefilter

import torch
from torch.serialization import DEFAULT_PROTOCOL, get_unsafe_globals_in_checkpoint, safe_globals

from asda_core.errors import CheckpointError
from asda_core.system.files import LENGTH_BYTES

ALLOWED_GLOBALS = (
    r"argparse\.Namespace",
    r"omegaconf\.[\w.]+",
    r"fairseq\.[\w.]+",
    r"fairseq_user_dir_\d+\.[\w.]+",
    r"(EAT|ASDA|data2vec|examples\.data2vec)\.[\w.]+",
    r"\w+\.data\.modality\.Modality",
    r"typing\.Any",
    r"builtins\.(int|float|str|bool|bytes|list|dict|tuple|set)",
    r"builtins\.getattr",  # how Python 3.11.0 to 3.11.3 pickle an enum; inert like all others
    r"collections\.defaultdict",
    r"pathlib\.\w+",
    r"numpy\.(core|_core)\.multiarray\.(scalar|_reconstruct)",
    r"numpy\.(dtype|ndarray)",
    r"_codecs\.encode",
)
"""Globals (regular expressions) in fairseq's files besides tensors; each becomes a `StandIn`, none is imported."""
NAME_IN_MESSAGE = re.compile(r"GLOBAL ([\w.]+)")
ZIP_START, PICKLE_START = b"PK\x03\x04", b"\x80"
OMEGACONF_CONTENT = ("_content", "_val")
"""Attributes in which omegaconf's containers and nodes keep their contents."""


DAMAGE_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
)
"""Exceptions that torch's reader raises for damaged files."""
CRC_BYTES = 1 << 24
"""Bytes of a checkpoint that are read at a time to verify its checksums."""
TORCHSCRIPT_SUFFIX = "/constants.pkl"
"""Suffix of an archive member that only `torch.jit.save` writes."""
MAX_PICKLE_BYTES = 1 << 22
"""Bytes of a pickle that are searched for the names to report when it is rejected."""


class StandIn:
    """Inert replacement of an object whose class is not imported; only stores its arguments and state."""

    def __new__(cls, *arguments: Any) -> "StandIn":  # noqa: D102
        instance = super().__new__(cls)
        instance.arguments, instance.state = arguments, None
        return instance

    arguments: tuple[Any, ...]
    state: Any

    def __setstate__(self, state: Any) -> None:
        self.state = state


class EmptyDict:
    """Replacement of `collections.defaultdict`: calling it returns a new dict, whatever the factory."""

    def __new__(cls, *arguments: Any) -> dict[Any, Any]:  # type: ignore[misc]  # noqa: D102
        return {}


def read_pickled(file: Path) -> Any:
    """Load a file of `torch.save`: tensors (memory-mapped, not read), plain data and stand-ins.

    Raises:
        CheckpointError: it is damaged, or contains a global that is not on the list.
    """
    is_zip = _starts_with(file, ZIP_START)
    try:
        if is_zip:
            _check_stored(file)
        names = get_unsafe_globals_in_checkpoint(str(file)) if is_zip else []
        rejected = [name for name in sorted(names) if not any(re.fullmatch(known, name) for known in ALLOWED_GLOBALS)]
        if rejected:
            raise CheckpointError(
                f"cannot read {file}: rejected, because it would call {', '.join(rejected)} when loaded. "
                "Nothing in it was run."
            )
        if is_zip and (damaged := damaged_members(file)):
            raise CheckpointError(f"cannot read {file}: it is damaged (the checksum of {damaged[0]} does not match).")
        stand_ins: list[Any] = [(_stand_in(name), name) for name in names]
        with safe_globals(stand_ins), catch_warnings():
            simplefilter("ignore")  # about a protocol that torch does not write; unreadable files are rejected anyway
            return torch.load(file, map_location="cpu", weights_only=True, mmap=is_zip or None)
    except UnpicklingError as error:
        called = NAME_IN_MESSAGE.findall(str(error)) or called_globals(file)
        cause = (
            f"it would call {', '.join(called)} when loaded" if called else "it holds more than tensors and plain data"
        )
        if not called and (protocol := _protocol(file)) > DEFAULT_PROTOCOL:
            cause = f"its pickle protocol is {protocol}, not {DEFAULT_PROTOCOL} as torch.save writes by default"
        raise CheckpointError(f"cannot read {file}: rejected, because {cause}. Nothing in it was run.") from None
    except RecursionError:
        raise CheckpointError(f"cannot read {file}: it is nested too deeply.") from None
    except DAMAGE_ERRORS as error:
        reason = str(error).splitlines()[0].split(". ")[0] if str(error) else type(error).__name__
        what = "it is truncated, damaged or not a file of torch.save"
        raise CheckpointError(f"cannot read {file}: {what} ({reason}).") from None


def plain_data(value: Any, memo: dict[int, Any] | None = None) -> Any:
    """Convert what was read to plain mappings, lists and values; stand-ins become what they hold.

    An object that occurs several times is converted once, so that nested shared references stay cheap.
    """
    memo = {} if memo is None else memo
    if id(value) in memo:
        return memo[id(value)]
    if isinstance(value, Mapping):
        mapping: dict[Any, Any] = {}
        memo[id(value)] = mapping
        mapping.update({key: plain_data(nested, memo) for key, nested in value.items()})
        return mapping
    if isinstance(value, list | tuple):
        items: list[Any] = []
        memo[id(value)] = items
        items.extend(plain_data(item, memo) for item in value)
        return items
    if not isinstance(value, StandIn):
        return value
    memo[id(value)] = None
    if isinstance(value.state, Mapping):
        content = next((value.state[key] for key in OMEGACONF_CONTENT if key in value.state), value.state)
        memo[id(value)] = plain_data(content, memo)
    elif len(value.arguments) == 1:  # an enum becomes its value
        memo[id(value)] = plain_data(value.arguments[0], memo)
    return memo[id(value)]


def _check_stored(file: Path) -> None:
    """Reject a zip whose contents are larger than the file; `torch.save` compresses nothing."""
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
    if any(info.filename.endswith(TORCHSCRIPT_SUFFIX) for info in members):
        raise CheckpointError(f"cannot read {file}: it is a TorchScript archive, not a checkpoint of torch.save.")
    packed = next((info.filename for info in members if info.compress_type != zipfile.ZIP_STORED), None)
    if packed is not None or sum(info.file_size for info in members) > file.stat().st_size:
        raise CheckpointError(
            f"cannot read {file}: rejected, because {packed or 'its content'} is compressed, which torch.save never "
            "does. If you trust it, unpack it and store it without compression (zip -0)."
        )


def _protocol(file: Path) -> int:
    """Return the protocol of the pickle in a file; 0 if it states none."""
    start = _pickle(file)[:2]
    return start[1] if len(start) > 1 and start[:1] == PICKLE_START else 0


def _pickle(file: Path) -> bytes:
    """Read the first bytes of the pickle in a file of `torch.save`."""
    if not _starts_with(file, ZIP_START):
        with file.open("rb") as opened:
            return opened.read(MAX_PICKLE_BYTES)
    with zipfile.ZipFile(file) as archive:
        inside = next(name for name in archive.namelist() if name.endswith("data.pkl"))
        with archive.open(inside) as opened:
            return opened.read(MAX_PICKLE_BYTES)


def _stand_in(name: str) -> type:
    return EmptyDict if name == "collections.defaultdict" else type("StandIn", (StandIn,), {})


def called_globals(file: Path) -> list[str]:
    """Return the globals that a pickle would call, found by reading its opcodes without executing them."""
    try:
        names, words = [], [""]
        for code, argument, _ in pickletools.genops(_pickle(file)):
            if code.name in ("GLOBAL", "INST"):
                names.append(str(argument).replace(" ", "."))
            elif code.name == "STACK_GLOBAL":
                names.append(".".join(words[-2:]))
            elif isinstance(argument, str):
                words.append(argument)
    except (*DAMAGE_ERRORS, StopIteration):
        return []
    return sorted({name for name in names if not name.startswith(("torch.", "collections.OrderedDict"))})


def damaged_members(file: Path) -> list[str]:
    """Return the members of a `torch.save` zip whose checksum is not the recorded one, which torch does not check.

    If no member matches, none was recorded (`torch.serialization.set_crc32_options`), and the result is empty.
    """
    damaged = []
    with zipfile.ZipFile(file) as archive:
        members = [info for info in archive.infolist() if info.file_size]
        for info in members:
            try:
                with archive.open(info) as opened:
                    while opened.read(CRC_BYTES):
                        pass
            except zipfile.BadZipFile:
                damaged.append(info.filename)
    return damaged if len(damaged) < len(members) else []


def is_pickled(file: Path) -> bool:
    """Return whether a file is a zip archive or a pickle, as `torch.save` writes, by its first bytes.

    A safetensors file begins with the length of its header, whose first byte may be a pickle's, followed by a brace.
    """
    with file.open("rb") as opened:
        start = opened.read(LENGTH_BYTES + 1)
    if start[LENGTH_BYTES:] == b"{" and int.from_bytes(start[:LENGTH_BYTES], "little") < file.stat().st_size:
        return False
    return start.startswith((ZIP_START, PICKLE_START))


def _starts_with(file: Path, start: bytes) -> bool:
    with file.open("rb") as opened:
        return opened.read(len(start)) == start
