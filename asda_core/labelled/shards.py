"""Labelled audio in tar shards, as webdataset and `asda data pack --labelled` have it.

    train-000003.tar    dog-17.flac    dog-17.json    {"label": "dog", "fold": 2}
                        dog-18.flac    dog-18.cls     3

A sound's labels are in the member of its key that ends in `.cls`, or under a usual key in the one that ends in `.json`;
its split is there too, or in the name of the shard.
"""

import json
import re
import tarfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from asda_core.data.tars import TAR_SUFFIX, StrictHeader, index_of, is_audio, plain_name
from asda_core.errors import AudioError, TaskError
from asda_core.labelled.examples import NO_SPLIT
from asda_core.labelled.rows import Row
from asda_core.labelled.source import SourceConfig
from asda_core.labelled.splits import usual_split
from asda_core.labelled.tables import USUAL_COLUMNS, usual_column

LABEL_SUFFIX, FACTS_SUFFIX = "cls", "json"
"""What follows the key in the names of the members beside a sound. **Source**: webdataset's conventions."""

PACKED_CLASSES = "class_labels_indices.csv"
"""The classes of a pack, under the name that AudioSet's have, where they are looked for."""


class Described(NamedTuple):
    """A sound and what is said of it: its class alone, or any facts."""

    shard: Path
    name: str
    label: str
    facts: dict[str, Any]


def shards_at(place: Path) -> list[Path]:
    """A tar, or those of a folder that has no audio beside them; else none."""
    if place.is_file():
        return [place] if place.suffix == TAR_SUFFIX else []
    names = sorted(place.iterdir())
    shards = [file for file in names if file.suffix == TAR_SUFFIX and file.is_file()]
    return [] if any(is_audio(file.name) for file in names) else shards


def shard_rows(place: Path, source: SourceConfig) -> list[Row]:
    """Every sound of the shards of a folder, or of one shard.

    Args:
        place: the folder, or the tar.
        source: `label_column` and `split_column` name the keys of the JSON where they are not the usual ones.

    Raises:
        TaskError: a shard is no tar; a sound has no label; a description is no JSON, or its label no text or number.
    """
    shards = shards_at(place)
    if not shards:
        raise TaskError(f"no shards (*{TAR_SUFFIX}) at {place}.")
    kept = {*USUAL_COLUMNS["label"], *USUAL_COLUMNS["split"], source.label_column, source.split_column}
    found = [described for shard in shards for described in _described(shard, kept)]
    keys = list(dict.fromkeys(key for described in found for key in described.facts))
    label_key = _key("label", source.label_column, keys, place)
    split_key = _key("split", source.split_column, keys, place)
    return [
        Row(
            described.shard / described.name,
            _labels(described, label_key),
            _split(described, split_key),
            described.shard / described.name,
            0,
        )
        for described in found
    ]


def _key(role: str, given: str, keys: list[str], place: Path) -> str | None:
    if given and given not in keys:
        raise TaskError(f"{place}: no description has the key {given!r} (key {role}_column).")
    return given or usual_column(role, keys, place)


def _described(shard: Path, kept: Collection[str]) -> Iterator[Described]:
    """The whole sounds of a shard in its order, each with what is beside it; of its facts those of these keys."""
    try:
        sounds = index_of(shard).rows
    except AudioError as error:
        raise TaskError(str(error)) from None
    beside = _beside(shard)
    for name in sounds:
        key = _split_name(name)[0]
        label = beside.get((key, LABEL_SUFFIX), b"").decode("utf-8", errors="replace").strip()
        facts = _facts(shard / f"{key}.{FACTS_SUFFIX}", beside.get((key, FACTS_SUFFIX), b"{}"))
        few = {each: value for each, value in facts.items() if each in kept or each.lower() in kept}
        yield Described(shard, name, label, few)


def _split_name(name: str) -> tuple[str, str]:
    """Key and suffix of a member: the name up to the first dot of its last part, and the rest."""
    folder, slash, last = name.rpartition("/")
    stem, _, suffix = last.partition(".")
    return folder + slash + stem, suffix.lower()


def _beside(shard: Path) -> dict[tuple[str, str], bytes]:
    """(key, suffix) -> content of the members that say something of a sound; what is cut off has been told of."""
    found: dict[tuple[str, str], bytes] = {}
    with tarfile.open(shard, "r:", tarinfo=StrictHeader) as tar:
        try:
            for info in tar:
                key, suffix = _split_name(plain_name(info.name))
                if info.isfile() and suffix in (LABEL_SUFFIX, FACTS_SUFFIX):
                    content = tar.extractfile(info)
                    found.setdefault((key, suffix), content.read() if content else b"")
        except tarfile.ReadError:
            pass
    return found


def _facts(where: Path, content: bytes) -> dict[str, Any]:
    try:
        facts = json.loads(content)
    except ValueError as error:
        raise TaskError(f"cannot read {where}: it is no JSON ({error}).") from None
    if not isinstance(facts, dict):
        raise TaskError(f"{where} is a {type(facts).__name__}; expected keys and values.")
    return facts


def _labels(described: Described, key: str | None) -> tuple[str, ...]:
    """Of the `.cls`, or else of the JSON: one label, or a list of them."""
    where = described.shard / described.name
    if described.label:
        return (described.label,)
    if key is None or key not in described.facts:
        what = f"the key {key}" if key else "a usual key for labels"
        raise TaskError(
            f"{where} has no label: expected a .{LABEL_SUFFIX}, or a .{FACTS_SUFFIX} with {what}, beside it."
        )
    value = described.facts[key]
    return tuple(_word(each, where, key) for each in (value if isinstance(value, list) else [value]))


def _split(described: Described, key: str | None) -> str:
    """What the JSON says; else a word of the shard's name that splits are usually called by."""
    if key is not None and key in described.facts:
        value = described.facts[key]
        return _word(value, described.shard / described.name, key) if value not in ("", None) else NO_SPLIT
    words = re.split(r"[^A-Za-z]+", described.shard.name.removesuffix(TAR_SUFFIX))
    return next(filter(None, map(usual_split, words)), NO_SPLIT)


def _word(value: object, where: Path, key: str) -> str:
    """A label or a split as text; numbers as they are written."""
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise TaskError(f"{where}: {key} is {value!r}; expected a word or a whole number, or a list of them.")
    return str(value).strip()
