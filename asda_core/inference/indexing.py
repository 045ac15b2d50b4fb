"""Index of a folder of embeddings: its contents, their audio files and settings. Several processes may share it.

Reading and writing it requires a lock, which the system releases when its process ends, however it ends. A line is
appended by a single write after a complete line, so that a killed process loses no more than its own line.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from asda_core.audio_files.tars import split_member
from asda_core.errors import AudioError, ConfigError
from asda_core.inference.writing import ArrayFormat, Granularity, OutputKind
from asda_core.system.files import append_line, read_json_lines, write_text
from asda_core.system.locks import hold_lock

SETTINGS_FILE = "embed.json"
GRID = "grid"
"""Key of that file that is derived from the others."""
INDEX_FILE = "index.jsonl"
SKIPPED_FILE = "skipped.jsonl"
LOCK_FILE = ".index.lock"
"""Held while any of these three files is read and written."""
POLL_SECONDS = 0.005
"""Interval at which a process polls the lock; it is held for less."""
Entry = dict[str, Any]


@dataclass(frozen=True)
class EmbedJob:
    """Settings of the embeddings in a folder, as stored in `embed.json`.

    Attributes:
        checkpoint: name and digest of the file of weights, which weights of it, and foreign plugins.
        granularity: "all" (class token and patches), "frame" (patches, one per band and time step), "utterance" (the
            summary).
        format: of the files.
        listening: options for cutting clips, as in `EncodeOptions`.
    """

    checkpoint: str
    granularity: Granularity
    format: ArrayFormat
    listening: Mapping[str, object]

    @property
    def kind(self) -> OutputKind:
        """Granularity and format of each file."""
        return OutputKind(self.granularity, self.format)


class Index:
    """Index of one folder.

    Args:
        folder: of the embeddings; `claim` creates it if it does not exist.
        names: audio file -> name of its embedding, for all files, including those that other processes embed.
    """

    def __init__(self, folder: Path, names: Mapping[Path, Path]) -> None:
        self.folder, self.names = folder, names
        self.entries: dict[str, Entry] = {}

    def claim(self, job: EmbedJob, shared: bool, grid: Mapping[str, float] | None = None) -> None:
        """Record the settings in the folder, check that it holds no others, and read its index.

        Args:
            job: settings of the embeddings.
            shared: whether other processes may have started already and recorded the same.
            grid: geometry of the patches, which is recorded too.

        Raises:
            ConfigError: the folder holds embeddings made with other settings, or of other files under the same names.
        """
        now = json.loads(json.dumps(asdict(job)))
        settings = self.folder / SETTINGS_FILE
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._locked():
            index = self._read()
            if settings.exists() and (index or shared):
                _check_same(settings, now)
            for file, name in self.names.items():
                source = index.get(str(name), {}).get("file", str(file))
                if source != str(file):
                    raise ConfigError(
                        f"{self.folder / name} is the embedding of {source}, not of {file}; give another folder."
                    )
            content = now if grid is None else {**now, GRID: dict(grid)}
            write_text(settings, json.dumps(content, indent=2) + "\n")
            self.entries = index

    def read(self) -> None:
        """Read the index, without checking the settings."""
        self.entries = self._read()

    def holds(self, entry: Entry) -> bool:
        """Return whether the embedding of exactly this file exists."""
        return self.entries.get(entry["embedding"]) == entry and (self.folder / entry["embedding"]).exists()

    def append(self, entry: Entry) -> None:
        """Append a line for an embedding that has been written."""
        with self._locked():
            append_line(self.folder / INDEX_FILE, json.dumps(entry))

    def tidy(self, own_files: Sequence[Path], skipped: Mapping[Path, str]) -> None:
        """Keep one line per embedding, and delete embeddings under former names and outdated ones of skipped files.

        Args:
            own_files: files assigned to this process; lines of the other files in `names` are kept.
            skipped: files that could not be used, and the reasons.
        """
        now = {str(file): str(name) for file, name in self.names.items()}
        others = now.keys() - {str(file) for file in own_files}
        with self._locked():
            bad = {str(file): file for file in skipped}
            lines = [line for line in read_entries(self.folder / SKIPPED_FILE) if line["file"] in others]
            lines += [{"file": str(file), "reason": reason} for file, reason in skipped.items()]
            write_text(self.folder / SKIPPED_FILE, _text(lines))
            entries = []
            for place, entry in sorted(self._read().items()):
                name = now.get(entry["file"], place)
                moved = name != place and Path(name).parent == Path(place).parent  # another file of its name was added
                file = bad.get(entry["file"])
                if moved or (file is not None and _changed(entry, file)):
                    (self.folder / place).unlink(missing_ok=True)
                elif entry["file"] in others or (self.folder / place).exists():
                    entries.append(entry)
            write_text(self.folder / INDEX_FILE, _text(entries))

    def _read(self) -> dict[str, Entry]:
        return {entry["embedding"]: entry for entry in read_entries(self.folder / INDEX_FILE) if "embedding" in entry}

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with hold_lock(self.folder / LOCK_FILE, poll_interval=POLL_SECONDS):
            yield


def entry_of(name: Path, file: Path) -> Entry:
    """Return the index entry of an embedding: its audio file, and the size and time that reveal a change of it.

    Raises:
        AudioError: the file does not exist.
    """
    try:
        inside = split_member(file)
        status = (file if inside is None else inside[0]).stat()  # a file in a tar shard changes with its shard
    except OSError:
        raise AudioError(f"cannot read {file}: it does not exist.") from None
    return {"embedding": str(name), "file": str(file), "size": status.st_size, "time": status.st_mtime_ns}


def _changed(entry: Entry, file: Path) -> bool:
    """Return whether a file differs from its entry; a missing file (an unmounted disk) counts as unchanged."""
    try:
        return entry_of(Path(entry["embedding"]), file) != entry
    except AudioError:
        return False


def _check_same(settings: Path, now: Mapping[str, Any]) -> None:
    try:
        before = dict(json.loads(settings.read_text(encoding="utf-8")))
    except (TypeError, ValueError):
        raise ConfigError(f"{settings} is damaged; give another folder.") from None
    if changes := _changes(before, now):
        raise ConfigError(
            f"{settings.parent} holds embeddings with other settings ({'; '.join(changes)}); give another folder."
        )


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Describe each setting that differs; of nested ones only the entries that differ."""
    changes = []
    for key, value in now.items():
        former = before.get(key)
        if isinstance(former, Mapping) and isinstance(value, Mapping):
            changes += _changes(former, value)
        elif former != value:
            changes.append(f"{key} {former}, not {value}")
    return changes


def read_entries(file: Path) -> list[Entry]:
    """Read the lines of an index or of a list of skipped files, which need not exist; damaged lines are skipped."""
    return [entry for entry in read_json_lines(file) if isinstance(entry, dict) and "file" in entry]


def _text(lines: Sequence[Entry]) -> str:
    return "".join(f"{json.dumps(line)}\n" for line in lines)
