"""Files of `torch.save` -> tensors and plain data. No code in the file is ever run.

torch's `weights_only` unpickler makes tensors and plain containers and refuses every other name. fairseq's files name
some more: enums, omegaconf nodes, argparse namespaces. For those on the list below a stand-in takes their place, which
holds what it is given and does nothing; the module that the file names is not imported. Any other name is refused.
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

STOOD_IN_FOR = (
    r"argparse\.Namespace",
    r"omegaconf\.[\w.]+",
    r"fairseq\.[\w.]+",
    r"fairseq_user_dir_\d+\.[\w.]+",
    r"(EAT|ASDA|data2vec|examples\.data2vec)\.[\w.]+",
    r"\w+\.data\.modality\.Modality",
    r"typing\.Any",
    r"builtins\.(int|float|str|bool|bytes|list|dict|tuple|set)",
    r"builtins\.getattr",  # how Python 3.11.0 to 3.11.3 write an enum; inert as all others
    r"collections\.defaultdict",
    r"pathlib\.\w+",
    r"numpy\.(core|_core)\.multiarray\.(scalar|_reconstruct)",
    r"numpy\.(dtype|ndarray)",
    r"_codecs\.encode",
)
"""Names (regular expressions) that files of fairseq hold beside tensors; each becomes a `StandIn`, none is imported."""
NAME_IN_MESSAGE = re.compile(r"GLOBAL ([\w.]+)")
ZIP_START, PICKLE_START = b"PK\x03\x04", b"\x80"
OMEGACONF_CONTENT = ("_content", "_val")
"""Where omegaconf's containers and nodes keep what they hold."""


DAMAGE = (
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
"""What torch's reader raises at files that are damaged."""
CRC_BYTES = 1 << 24
"""Of a checkpoint, read at once to look at its checksums."""
SCRIPTED = "/constants.pkl"
"""End of the name of a member that archives of `torch.jit.save` alone have."""
MOST_BYTES_LISTED = 1 << 22
"""Of a pickle, when the names in it are looked for to refuse it by them."""


class StandIn:
    """Takes the place of an object whose class is not imported: holds its arguments and state, and does nothing."""

    def __new__(cls, *arguments: Any) -> "StandIn":  # noqa: D102
        made = super().__new__(cls)
        made.arguments, made.state = arguments, None
        return made

    arguments: tuple[Any, ...]
    state: Any

    def __setstate__(self, state: Any) -> None:
        self.state = state


class EmptyDict:
    """Takes the place of `collections.defaultdict`: calling it gives a new dict, whatever the factory would be."""

    def __new__(cls, *arguments: Any) -> dict[Any, Any]:  # type: ignore[misc]  # noqa: D102
        return {}


def read_pickled(file: Path) -> Any:
    """What a file of `torch.save` holds: tensors (mapped from the disk, not read), plain data and stand-ins.

    Raises:
        CheckpointError: it is damaged, or names something that is not on the list.
    """
    is_zip = _starts_with(file, ZIP_START)
    try:
        if is_zip:
            _check_stored(file)
        names = get_unsafe_globals_in_checkpoint(str(file)) if is_zip else []
        refused = [name for name in sorted(names) if not any(re.fullmatch(known, name) for known in STOOD_IN_FOR)]
        if refused:
            raise CheckpointError(
                f"cannot read {file}: it is refused, since it would call {', '.join(refused)} when opened. "
                "Nothing in it was run."
            )
        if is_zip and (damaged := damaged_members(file)):
            raise CheckpointError(f"cannot read {file}: it is damaged ({damaged[0]} has another checksum than noted).")
        stand_ins: list[Any] = [(_stand_in(name), name) for name in names]
        with safe_globals(stand_ins), catch_warnings():
            simplefilter("ignore")  # of a protocol that torch does not write; what it cannot read is refused anyway
            return torch.load(file, map_location="cpu", weights_only=True, mmap=is_zip or None)
    except UnpicklingError as error:
        named = NAME_IN_MESSAGE.findall(str(error)) or names_called(file)
        why = f"it would call {', '.join(named)} when opened" if named else "it holds more than tensors and plain data"
        if not named and (protocol := _protocol(file)) > DEFAULT_PROTOCOL:
            why = f"its pickle has protocol {protocol}; what torch.save writes by default ({DEFAULT_PROTOCOL}) is read"
        raise CheckpointError(f"cannot read {file}: it is refused, since {why}. Nothing in it was run.") from None
    except RecursionError:
        raise CheckpointError(f"cannot read {file}: it is nested without end.") from None
    except DAMAGE as error:
        reason = str(error).splitlines()[0].split(". ")[0] if str(error) else type(error).__name__
        what = "it is truncated, damaged or no file of torch.save"
        raise CheckpointError(f"cannot read {file}: {what} ({reason}).") from None


def plain(value: Any, seen: dict[int, Any] | None = None) -> Any:
    """Plain data from what was read: mappings, lists and values; stand-ins become what they hold.

    What stands in several places is made once, so that references to references cost nothing.
    """
    seen = {} if seen is None else seen
    if id(value) in seen:
        return seen[id(value)]
    if isinstance(value, Mapping):
        made: dict[Any, Any] = {}
        seen[id(value)] = made
        made.update({key: plain(below, seen) for key, below in value.items()})
        return made
    if isinstance(value, list | tuple):
        items: list[Any] = []
        seen[id(value)] = items
        items.extend(plain(item, seen) for item in value)
        return items
    if not isinstance(value, StandIn):
        return value
    seen[id(value)] = None
    if isinstance(value.state, Mapping):
        held = next((value.state[key] for key in OMEGACONF_CONTENT if key in value.state), value.state)
        seen[id(value)] = plain(held, seen)
    elif len(value.arguments) == 1:  # an enum is its value
        seen[id(value)] = plain(value.arguments[0], seen)
    return seen[id(value)]


def _check_stored(file: Path) -> None:
    """Refuse a zip that is larger inside than outside; `torch.save` compresses nothing."""
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
    if any(info.filename.endswith(SCRIPTED) for info in members):
        raise CheckpointError(f"cannot read {file}: it is a TorchScript archive, and no checkpoint of torch.save.")
    packed = next((info.filename for info in members if info.compress_type != zipfile.ZIP_STORED), None)
    if packed is not None or sum(info.file_size for info in members) > file.stat().st_size:
        raise CheckpointError(
            f"cannot read {file}: it is refused, since {packed or 'what it holds'} is compressed, which torch.save "
            "never does. If you trust it, unpack it and store it without compression (zip -0)."
        )


def _protocol(file: Path) -> int:
    """Of the pickle in a file; 0 where that is not told."""
    start = _pickle(file)[:2]
    return start[1] if len(start) > 1 and start[:1] == PICKLE_START else 0


def _pickle(file: Path) -> bytes:
    """The first bytes of the pickle of a file of `torch.save`."""
    if not _starts_with(file, ZIP_START):
        with file.open("rb") as opened:
            return opened.read(MOST_BYTES_LISTED)
    with zipfile.ZipFile(file) as archive:
        inside = next(name for name in archive.namelist() if name.endswith("data.pkl"))
        with archive.open(inside) as opened:
            return opened.read(MOST_BYTES_LISTED)


def _stand_in(name: str) -> type:
    return EmptyDict if name == "collections.defaultdict" else type("StandIn", (StandIn,), {})


def names_called(file: Path) -> list[str]:
    """The names that a pickle would call, found by reading its instructions and following none."""
    try:
        found, words = [], [""]
        for code, argument, _ in pickletools.genops(_pickle(file)):
            if code.name in ("GLOBAL", "INST"):
                found.append(str(argument).replace(" ", "."))
            elif code.name == "STACK_GLOBAL":
                found.append(".".join(words[-2:]))
            elif isinstance(argument, str):
                words.append(argument)
    except (*DAMAGE, StopIteration):
        return []
    return sorted({name for name in found if not name.startswith(("torch.", "collections.OrderedDict"))})


def damaged_members(file: Path) -> list[str]:
    """Members of a zip of `torch.save` whose checksum is not the noted one; torch does not look at them.

    Where no member has it, none was noted (`torch.serialization.set_crc32_options`), and none counts.
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
    """Whether a file is a zip archive or a pickle, as `torch.save` writes, by its first bytes.

    A safetensors file begins with the length of its header, whose first byte may be that of a pickle; then a brace.
    """
    with file.open("rb") as opened:
        start = opened.read(LENGTH_BYTES + 1)
    if start[LENGTH_BYTES:] == b"{" and int.from_bytes(start[:LENGTH_BYTES], "little") < file.stat().st_size:
        return False
    return start.startswith((ZIP_START, PICKLE_START))


def _starts_with(file: Path, start: bytes) -> bool:
    with file.open("rb") as opened:
        return opened.read(len(start)) == start
