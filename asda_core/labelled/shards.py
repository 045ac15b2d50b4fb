"""Read labelled audio from tar shards in the layout of webdataset and `asda data pack --labelled`.

    train-000003.tar    dog-17.flac    dog-17.json    {"label": "dog", "fold": 2}
                        dog-18.flac    dog-18.cls     3

The labels of a clip are in the member with its key and the suffix `.cls`, or under a usual key in the `.json` member;
its split is there too, or in the name of the shard.
"""

import json
import re
import sys
import tarfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from asda_core.audio_files.pack_options import unfinished_message
from asda_core.audio_files.sources import BRACE_RANGE, expand_braces
from asda_core.audio_files.tar_headers import TAR_SUFFIX, StrictHeader, is_audio, plain_name
from asda_core.audio_files.tars import shard_index
from asda_core.errors import MAX_LISTED_LONG, AudioError, TaskError, listing
from asda_core.labelled.examples import NO_SPLIT
from asda_core.labelled.label_files import Label
from asda_core.labelled.rows import Row
from asda_core.labelled.source import SourceConfig
from asda_core.labelled.splits import usual_split
from asda_core.labelled.tables import USUAL_COLUMNS, usual_column, usual_separator
from asda_core.system.files import files_below

COMPRESSED_SUFFIXES = (".tar.gz", ".tgz", ".tar.xz", ".tar.bz2", ".tar.zst")
"""Suffixes of compressed shards, which have no random access: they would have to be unpacked from the beginning."""
LABEL_SUFFIX, DESCRIPTION_SUFFIX = "cls", "json"
"""Suffixes of the members that describe a clip, after its key. **Source**: webdataset's conventions."""
CLASSES_FILE = "class_labels_indices.csv"
"""Class file of a pack, with the name of AudioSet's, by which it is found."""


class DescribedClip(NamedTuple):
    """A clip and its description: a class, or any facts. `folders` are the folders of the shard and its name."""

    shard: Path
    name: str
    folders: tuple[str, ...]
    label: str
    description: dict[str, Any]

    @property
    def file(self) -> Path:
        """The audio file, as a path below the shard."""
        return self.shard / self.name


def find_shards(path: Path) -> list[Path]:
    """The tar itself, those given by `{000..099}` in its name, or those below a folder without loose audio; or none."""
    if is_pattern(path):
        return [Path(name) for name in expand_braces(str(path))]
    if path.is_file():
        return [path] if path.suffix == TAR_SUFFIX else []
    shards = []
    for file in files_below(path):
        if file.name.startswith("."):
            continue
        if is_audio(file.name) and file.is_file():  # usually the first file, so large folders are not searched
            return []
        if file.suffix == TAR_SUFFIX and not file.is_dir():
            shards.append(file)
    return sorted(shards)


def is_pattern(path: Path) -> bool:
    """Whether the path names several shards by a range of numbers, and is not itself a file."""
    return path.suffix == TAR_SUFFIX and BRACE_RANGE.search(str(path)) is not None and not path.exists()


def shard_rows(path: Path, source: SourceConfig, vocabulary: Sequence[Label] = ()) -> list[Row]:
    """Rows of all clips in the shards of a folder, or in one shard.

    Args:
        path: the folder, the tar, or several tars by `{000..099}`.
        source: `label_column` and `split_column` name the keys of the JSON if they are not the usual ones.
        vocabulary: of the classes; a number in a `.cls` is an index into it, unless a class has that name.

    Raises:
        TaskError: a shard is not a tar; a clip has no label; a description is not JSON, or its label is neither text
            nor a whole number; a pack is not finished.
    """
    shards = find_shards(path)
    if not shards:
        raise TaskError(f"no shards (*{TAR_SUFFIX}) at {path}.")
    _check_folder(path)
    keys = {*USUAL_COLUMNS["label"], *USUAL_COLUMNS["split"], source.label_column, source.split_column}
    clips = [described for shard in shards for described in _describe(shard, path, keys)]
    if source.label_column:
        clips = [described._replace(label="") for described in clips]
    label_key = _key("label", source.label_column, [clip.description for clip in clips if not clip.label], path)
    split_key = _key("split", source.split_column, [clip.description for clip in clips], path)
    texts = [value for clip in clips if isinstance(value := clip.description.get(label_key or ""), str)]
    separator = source.label_separator or usual_separator(label_key or "", texts)
    names = {name for label in vocabulary for name in (label.identifier, label.name)}
    return [
        Row(clip.file, _labels(clip, label_key, separator, vocabulary, names), _split(clip, split_key), clip.file, 0)
        for clip in clips
    ]


def _check_folder(path: Path) -> None:
    """Raise a `TaskError` for an unfinished pack, and warn of compressed shards, which are excluded."""
    if not path.is_dir():
        return
    if message := unfinished_message(path):
        raise TaskError(message)
    if compressed := [file.name for file in files_below(path) if file.name.endswith(COMPRESSED_SUFFIXES)]:
        print(
            f"warning: skipped compressed shards in {path} (unpack to use): {listing(compressed, MAX_LISTED_LONG)}.",
            file=sys.stderr,
        )


def _key(role: str, requested: str, descriptions: Iterable[dict[str, Any]], path: Path) -> str | None:
    keys = list(dict.fromkeys(key for description in descriptions for key in description))
    if requested and requested not in keys:
        raise TaskError(f"{path}: no JSON description has the key {requested!r} (key {role}_column).")
    return requested or usual_column(role, keys, path)


def _describe(shard: Path, path: Path, keys: Collection[str]) -> Iterator[DescribedClip]:
    """Yield the complete clips of a shard in order, with label and facts; only facts with these keys remain."""
    try:
        index = shard_index(shard)
    except AudioError as error:
        raise TaskError(str(error)) from None
    except OSError as error:
        raise TaskError(f"cannot read the shard {shard}: {error.strerror or error}.") from None
    descriptions, complete = _descriptions(shard)
    folders = shard.relative_to(path).parts if path.is_dir() else (shard.name,)
    for name in index.rows:
        key = _split_name(name)[0]
        own = [
            descriptions[key, suffix] for suffix in (LABEL_SUFFIX, DESCRIPTION_SUFFIX) if (key, suffix) in descriptions
        ]
        if not (own or complete) and name == list(index.rows)[-1]:
            print(f"warning: skipped {shard / name}: the shard is truncated before its label.", file=sys.stderr)
            continue
        label = descriptions.get((key, LABEL_SUFFIX), b"").decode("utf-8", errors="replace").strip()
        description = _parse_description(
            shard / f"{key}.{DESCRIPTION_SUFFIX}", descriptions.get((key, DESCRIPTION_SUFFIX), b"{}")
        )
        selected = {field: value for field, value in description.items() if field in keys or field.lower() in keys}
        yield DescribedClip(shard, name, folders, label, selected)


def _split_name(name: str) -> tuple[str, str]:
    """Key and suffix of a member: the name up to the first dot of its last component, and the rest."""
    folder, slash, last = name.rpartition("/")
    stem, _, suffix = last.partition(".")
    return folder + slash + stem, suffix.lower()


def _descriptions(shard: Path) -> tuple[dict[tuple[str, str], bytes], bool]:
    """(key, suffix) -> content of the members that describe clips, and whether the shard is complete."""
    contents: dict[tuple[str, str], bytes] = {}
    with tarfile.open(shard, "r:", tarinfo=StrictHeader) as tar:
        try:
            for info in tar:
                key, suffix = _split_name(plain_name(info.name))
                if info.isfile() and suffix in (LABEL_SUFFIX, DESCRIPTION_SUFFIX):
                    content = tar.extractfile(info)
                    contents.setdefault((key, suffix), content.read() if content else b"")
        except tarfile.ReadError:
            return contents, False
    return contents, True


def _parse_description(where: Path, content: bytes) -> dict[str, Any]:
    try:
        description = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise TaskError(f"cannot read {where}: it is not valid JSON ({error}).") from None
    if not isinstance(description, dict):
        raise TaskError(f"{where}: expected a JSON object, got {type(description).__name__}.")
    return description


def _labels(
    described: DescribedClip, key: str | None, separator: str, vocabulary: Sequence[Label], names: Collection[str]
) -> tuple[str, ...]:
    """Labels from the `.cls`, otherwise from the JSON: one label, a list, or several in one string."""
    where, label = described.file, described.label
    if label:
        if label.isdecimal() and label not in names and int(label) < len(vocabulary):
            indexed = vocabulary[int(label)]
            label = indexed.identifier or indexed.name
        return (label,)
    if key is None or key not in described.description:
        expected = f"the key {key}" if key else "a usual key for labels"
        raise TaskError(
            f"{where} has no label: expected a .{LABEL_SUFFIX} beside it, or a .{DESCRIPTION_SUFFIX} with {expected}."
        )
    value = described.description[key]
    if isinstance(value, str) and separator in value:
        value = [part.strip() for part in value.split(separator) if part.strip()]
    return tuple(_as_text(item, where, key) for item in (value if isinstance(value, list) else [value]))


def _split(described: DescribedClip, key: str | None) -> str:
    """Split from the JSON, otherwise from the first usual split name in the shard's folders or name."""
    if key is not None and key in described.description:
        value = described.description[key]
        return _as_text(value, described.file, key) if value not in ("", None) else NO_SPLIT
    words = re.split(r"[^A-Za-z]+", " ".join(described.folders))
    return next(filter(None, map(usual_split, words)), NO_SPLIT)


def _as_text(value: object, where: Path, key: str) -> str:
    """A label or a split as text; whole numbers are converted."""
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise TaskError(f"{where}: {key} is {value!r}; expected text or an integer, or a list of them.")
    return str(value).strip()
