"""The index of a folder of embeddings: what it holds, of which files, made how. Several processes may share it.

Whoever reads and writes it holds a lock, which the system frees when its process ends, however it ends. A line is
added by a single write behind a whole line, so that a process that is killed costs no more than its own line.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from asda_core.data.tars import split_member
from asda_core.errors import AudioError, ConfigError
from asda_core.inference.writing import ArrayFormat, Granularity, OutputKind
from asda_core.system.files import append_line, write_text
from asda_core.system.locks import locked

SETTINGS_FILE = "embed.json"
GRID = "grid"
"""Its key that follows from the others."""
INDEX_FILE = "index.jsonl"
SKIPPED_FILE = "skipped.jsonl"
LOCK_FILE = ".index.lock"
"""Held while one of the three is read and written."""
POLL_SECONDS = 0.005
"""How often a process looks whether the lock is free; it is held for less."""
Entry = dict[str, Any]


@dataclass(frozen=True)
class EmbedJob:
    """What is made of the files of a folder, as `embed.json` keeps it.

    Attributes:
        checkpoint: name and digest of the file of weights, and which weights of it.
        granularity: "all" (class token and patches), "frame" (patches, 8 per time step), "utterance" (the summary).
        format: of the files.
        listening: the options of the listener.
    """

    checkpoint: str
    granularity: Granularity
    format: ArrayFormat
    listening: Mapping[str, object]

    @property
    def kind(self) -> OutputKind:
        """What each file holds."""
        return OutputKind(self.granularity, self.format)


class Index:
    """The index of one folder.

    Args:
        folder: of the embeddings; it is made if it is not there.
        names: audio file -> name of its embedding, of all files, also those that other processes do.
    """

    def __init__(self, folder: Path, names: Mapping[Path, Path]) -> None:
        self.folder, self.names = folder, names
        self.entries: dict[str, Entry] = {}

    def claim(self, job: EmbedJob, shared: bool, grid: Mapping[str, float] | None = None) -> None:
        """Note what is made in the folder, or refuse if something else is, and read what it holds.

        Args:
            job: what is made.
            shared: whether other processes may have begun already, and noted the same.
            grid: how the patches of an embedding lie, which is noted too.

        Raises:
            ConfigError: the folder holds embeddings that were made otherwise, or of other files by these names.
        """
        now = json.loads(json.dumps(asdict(job)))
        settings = self.folder / SETTINGS_FILE
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._locked():
            index = self._read()
            if settings.exists() and (index or shared):
                _check_same(settings, now)
            for file, name in self.names.items():
                known = index.get(str(name), {}).get("file", str(file))
                if known != str(file):
                    raise ConfigError(
                        f"{self.folder / name} is the embedding of {known}, not of {file}; give another folder."
                    )
            told = now if grid is None else {**now, GRID: dict(grid)}
            write_text(settings, json.dumps(told, indent=2) + "\n")
            self.entries = index

    def read(self) -> None:
        """Look what the folder holds, whoever makes it."""
        self.entries = self._read()

    def holds(self, entry: Entry) -> bool:
        """Whether this embedding of this very file is there."""
        return self.entries.get(entry["embedding"]) == entry and (self.folder / entry["embedding"]).exists()

    def note(self, entry: Entry) -> None:
        """Add a line: its embedding is in its place."""
        with self._locked():
            append_line(self.folder / INDEX_FILE, json.dumps(entry))

    def tidy(self, mine: Sequence[Path], skipped: Mapping[Path, str]) -> None:
        """Leave one line of each embedding, and no embedding under a name that its sound had before.

        Args:
            mine: the files that this process was to do; of the others that are named, all stays as it is.
            skipped: those that could not be used, and why.
        """
        now = {str(file): str(name) for file, name in self.names.items()}
        others = now.keys() - {str(file) for file in mine}
        with self._locked():
            bad = {str(file): file for file in skipped}
            told = [line for line in _lines(self.folder / SKIPPED_FILE) if line["file"] in others]
            told += [{"file": str(file), "reason": reason} for file, reason in skipped.items()]
            write_text(self.folder / SKIPPED_FILE, _text(told))
            kept = []
            for place, entry in sorted(self._read().items()):
                name = now.get(entry["file"], place)
                moved = name != place and Path(name).parent == Path(place).parent  # another sound of its name has come
                file = bad.get(entry["file"])
                if moved or (file is not None and _changed(entry, file)):
                    (self.folder / place).unlink(missing_ok=True)
                elif entry["file"] in others or (self.folder / place).exists():
                    kept.append(entry)
            write_text(self.folder / INDEX_FILE, _text(kept))

    def _read(self) -> dict[str, Entry]:
        return {entry["embedding"]: entry for entry in _lines(self.folder / INDEX_FILE) if "embedding" in entry}

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with locked(self.folder / LOCK_FILE, poll_interval=POLL_SECONDS):
            yield


def entry_of(name: Path, file: Path) -> Entry:
    """What the index keeps of an embedding: whose it is, and by what a change of the file is seen.

    Raises:
        AudioError: there is no such file.
    """
    try:
        inside = split_member(file)
        facts = (file if inside is None else inside[0]).stat()  # a sound in a shard changes with its shard
    except OSError:
        raise AudioError(f"cannot read {file}: there is no such file.") from None
    return {"embedding": str(name), "file": str(file), "size": facts.st_size, "time": facts.st_mtime_ns}


def _changed(entry: Entry, file: Path) -> bool:
    """Whether a file is another one than that of the entry; one that is not there (a disk that is away) is not."""
    try:
        return entry_of(Path(entry["embedding"]), file) != entry
    except AudioError:
        return False


def _check_same(settings: Path, now: Mapping[str, Any]) -> None:
    try:
        before = dict(json.loads(settings.read_text()))
    except (TypeError, ValueError):
        raise ConfigError(f"{settings} is damaged; give another folder.") from None
    other = [f"{key} {before.get(key)}, not {value}" for key, value in now.items() if before.get(key) != value]
    if other:
        raise ConfigError(
            f"{settings.parent} holds embeddings made otherwise ({'; '.join(other)}); give another folder."
        )


def _lines(file: Path) -> list[Entry]:
    """The lines of a file; one that a kill cut off is none."""
    found = []
    for line in file.read_text().splitlines() if file.exists() else []:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and "file" in entry:
            found.append(entry)
    return found


def _text(lines: Sequence[Entry]) -> str:
    return "".join(f"{json.dumps(line)}\n" for line in lines)
