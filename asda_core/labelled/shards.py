"""Labelled audio in tar shards, as webdataset and `asda data pack --labelled` have it.

    train-000003.tar    dog-17.flac    dog-17.json    {"label": "dog", "fold": 2}
                        dog-18.flac    dog-18.cls     3

A sound's labels are in the member of its key that ends in `.cls`, or under a usual key in the one that ends in `.json`;
its split is there too, or in the name of the shard.
"""

import json
import re
import sys
import tarfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from asda_core.data.pack_options import unfinished
from asda_core.data.sources import NUMBERS, expanded
from asda_core.data.tar_headers import TAR_SUFFIX, StrictHeader, is_audio, plain_name
from asda_core.data.tars import index_of
from asda_core.errors import AudioError, TaskError
from asda_core.inference.classifying import Label
from asda_core.labelled.examples import NO_SPLIT
from asda_core.labelled.rows import Row
from asda_core.labelled.source import SourceConfig
from asda_core.labelled.splits import usual_split
from asda_core.labelled.tables import USUAL_COLUMNS, usual_column, usual_separator
from asda_core.system.files import files_below

COMPRESSED = (".tar.gz", ".tgz", ".tar.xz", ".tar.bz2", ".tar.zst")
"""Ends of the names of shards in which no sound is at hand: they would have to be unpacked from their beginning."""
FEW = 3
"""Files that a line names."""
LABEL_SUFFIX, FACTS_SUFFIX = "cls", "json"
"""What follows the key in the names of the members beside a sound. **Source**: webdataset's conventions."""
PACKED_CLASSES = "class_labels_indices.csv"
"""The classes of a pack, under the name that AudioSet's have, where they are looked for."""


class Described(NamedTuple):
    """A sound and what is said of it: its class alone, or any facts. `folders` are those of the shard, and its name."""

    shard: Path
    name: str
    folders: tuple[str, ...]
    label: str
    facts: dict[str, Any]

    @property
    def file(self) -> Path:
        """The sound, as a path below the shard."""
        return self.shard / self.name


def shards_at(place: Path) -> list[Path]:
    """A tar, those that `{000..099}` in its name stands for, or those below a folder without loose audio; else none."""
    if is_pattern(place):
        return [Path(name) for name in expanded(str(place))]
    if place.is_file():
        return [place] if place.suffix == TAR_SUFFIX else []
    shards = []
    for file in files_below(place):
        if file.name.startswith("."):
            continue
        if is_audio(file.name) and file.is_file():  # most often the first file, so that a large folder is not searched
            return []
        if file.suffix == TAR_SUFFIX and not file.is_dir():
            shards.append(file)
    return sorted(shards)


def is_pattern(place: Path) -> bool:
    """Whether it names several shards by their numbers, and is none itself."""
    return place.suffix == TAR_SUFFIX and NUMBERS.search(str(place)) is not None and not place.exists()


def shard_rows(place: Path, source: SourceConfig, vocabulary: Sequence[Label] = ()) -> list[Row]:
    """Every sound of the shards of a folder, or of one shard.

    Args:
        place: the folder, the tar, or the tars by `{000..099}`.
        source: `label_column` and `split_column` name the keys of the JSON where they are not the usual ones.
        vocabulary: of the classes; a number in a `.cls` is a place in it, unless a class is called so.

    Raises:
        TaskError: a shard is no tar; a sound has no label; a description is no JSON, or its label no text or number; a
            pack is not finished.
    """
    shards = shards_at(place)
    if not shards:
        raise TaskError(f"no shards (*{TAR_SUFFIX}) at {place}.")
    _check_folder(place)
    kept = {*USUAL_COLUMNS["label"], *USUAL_COLUMNS["split"], source.label_column, source.split_column}
    found = [described for shard in shards for described in _described(shard, place, kept)]
    if source.label_column:
        found = [described._replace(label="") for described in found]
    label_key = _key("label", source.label_column, [each.facts for each in found if not each.label], place)
    split_key = _key("split", source.split_column, [each.facts for each in found], place)
    texts = [value for each in found if isinstance(value := each.facts.get(label_key or ""), str)]
    separator = source.label_separator or usual_separator(label_key or "", texts)
    names = {name for label in vocabulary for name in (label.identifier, label.name)}
    return [
        Row(each.file, _labels(each, label_key, separator, vocabulary, names), _split(each, split_key), each.file, 0)
        for each in found
    ]


def _check_folder(place: Path) -> None:
    """Refuse a pack that is not finished, and tell of compressed shards that are left out."""
    if not place.is_dir():
        return
    if trouble := unfinished(place):
        raise TaskError(trouble)
    if compressed := [file.name for file in files_below(place) if file.name.endswith(COMPRESSED)]:
        print(f"warning: left out of {place}, unpack to use: {', '.join(compressed[:FEW])}.", file=sys.stderr)


def _key(role: str, given: str, facts: Iterable[dict[str, Any]], place: Path) -> str | None:
    keys = list(dict.fromkeys(key for each in facts for key in each))
    if given and given not in keys:
        raise TaskError(f"{place}: no description has the key {given!r} (key {role}_column).")
    return given or usual_column(role, keys, place)


def _described(shard: Path, place: Path, kept: Collection[str]) -> Iterator[Described]:
    """The whole sounds of a shard in its order, each with what is beside it; of its facts those of these keys."""
    try:
        index = index_of(shard)
    except AudioError as error:
        raise TaskError(str(error)) from None
    except OSError as error:
        raise TaskError(f"cannot read the shard {shard}: {error.strerror or error}.") from None
    beside, whole = _beside(shard)
    folders = shard.relative_to(place).parts if place.is_dir() else (shard.name,)
    for name in index.rows:
        key = _split_name(name)[0]
        said = [beside[key, suffix] for suffix in (LABEL_SUFFIX, FACTS_SUFFIX) if (key, suffix) in beside]
        if not (said or whole) and name == list(index.rows)[-1]:
            print(f"warning: left out {shard / name}: the shard is cut off where its label stood.", file=sys.stderr)
            continue
        label = beside.get((key, LABEL_SUFFIX), b"").decode("utf-8", errors="replace").strip()
        facts = _facts(shard / f"{key}.{FACTS_SUFFIX}", beside.get((key, FACTS_SUFFIX), b"{}"))
        few = {each: value for each, value in facts.items() if each in kept or each.lower() in kept}
        yield Described(shard, name, folders, label, few)


def _split_name(name: str) -> tuple[str, str]:
    """Key and suffix of a member: the name up to the first dot of its last part, and the rest."""
    folder, slash, last = name.rpartition("/")
    stem, _, suffix = last.partition(".")
    return folder + slash + stem, suffix.lower()


def _beside(shard: Path) -> tuple[dict[tuple[str, str], bytes], bool]:
    """(key, suffix) -> content of the members that say something of a sound, and whether the shard is whole."""
    found: dict[tuple[str, str], bytes] = {}
    with tarfile.open(shard, "r:", tarinfo=StrictHeader) as tar:
        try:
            for info in tar:
                key, suffix = _split_name(plain_name(info.name))
                if info.isfile() and suffix in (LABEL_SUFFIX, FACTS_SUFFIX):
                    content = tar.extractfile(info)
                    found.setdefault((key, suffix), content.read() if content else b"")
        except tarfile.ReadError:
            return found, False
    return found, True


def _facts(where: Path, content: bytes) -> dict[str, Any]:
    try:
        facts = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise TaskError(f"cannot read {where}: it is no JSON ({error}).") from None
    if not isinstance(facts, dict):
        raise TaskError(f"{where} is a {type(facts).__name__}; expected keys and values.")
    return facts


def _labels(
    described: Described, key: str | None, separator: str, vocabulary: Sequence[Label], names: Collection[str]
) -> tuple[str, ...]:
    """Of the `.cls`, or else of the JSON: one label, or a list of them, or several in one text."""
    where, label = described.file, described.label
    if label:
        if label.isdecimal() and label not in names and int(label) < len(vocabulary):
            numbered = vocabulary[int(label)]
            label = numbered.identifier or numbered.name
        return (label,)
    if key is None or key not in described.facts:
        what = f"the key {key}" if key else "a usual key for labels"
        raise TaskError(
            f"{where} has no label: expected a .{LABEL_SUFFIX}, or a .{FACTS_SUFFIX} with {what}, beside it."
        )
    value = described.facts[key]
    if isinstance(value, str) and separator in value:
        value = [part.strip() for part in value.split(separator) if part.strip()]
    return tuple(_word(each, where, key) for each in (value if isinstance(value, list) else [value]))


def _split(described: Described, key: str | None) -> str:
    """What the JSON says; else a word, of the shard's folders or name, that splits are usually called by."""
    if key is not None and key in described.facts:
        value = described.facts[key]
        return _word(value, described.file, key) if value not in ("", None) else NO_SPLIT
    words = re.split(r"[^A-Za-z]+", " ".join(described.folders))
    return next(filter(None, map(usual_split, words)), NO_SPLIT)


def _word(value: object, where: Path, key: str) -> str:
    """A label or a split as text; numbers as they are written."""
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise TaskError(f"{where}: {key} is {value!r}; expected a word or a whole number, or a list of them.")
    return str(value).strip()
