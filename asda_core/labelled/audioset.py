"""AudioSet: the manifests of the released code, and the segment lists that Google publishes."""

import csv
import io
import re
import sys
from collections.abc import Iterator
from functools import lru_cache
from itertools import islice
from pathlib import Path

from asda_core.errors import TaskError, counted
from asda_core.labelled.examples import NO_SPLIT, TRAIN
from asda_core.labelled.rows import Row
from asda_core.labelled.splits import usual_split
from asda_core.labelled.tables import files_by_stem, read_text

VOCABULARIES = ("label_descriptors.csv", "class_labels_indices.csv")
"""Names of the file of the 527 classes, in the released code and at Google."""
SEGMENTS = "_segments.csv"
"""End of the names of Google's lists."""
LABEL_SEPARATOR = ","
"""Separator of the labels of a clip, in both kinds of list."""
HEAD_LINES = 5
"""Number of first lines searched for the comment that names the columns of a segment list."""
MILLISECONDS = 1000
"""Per second."""
HDF5 = re.compile(r"\.(h5|hdf5)(/|$)", re.IGNORECASE)
"""Path of a clip in an HDF5 file, as PANNs packs AudioSet."""


def audioset_lists(path: Path) -> list[Path]:
    """Manifests that have labels beside them, otherwise segment lists: those of a folder, or the file itself."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    manifests = [file for file in files if file.suffix == ".tsv" and file.with_suffix(".lbl").is_file()]
    return manifests or [file for file in files if file.suffix == ".csv" and _has_segments(file)]


def _has_segments(file: Path) -> bool:
    if file.name.endswith(SEGMENTS):
        return True
    try:
        with file.open(encoding="utf-8", errors="replace") as lines:
            return any(line.startswith("#") and "YTID" in line for line in islice(lines, HEAD_LINES))
    except OSError:  # a folder with such a name
        return False


def audioset_vocabulary(path: Path) -> Path | None:
    """The class file beside the lists; None if there is none."""
    folder = path if path.is_dir() else path.parent
    return next((folder / name for name in VOCABULARIES if (folder / name).is_file()), None)


def audioset_rows(path: Path, audio: str | None) -> list[Row]:
    """Rows of all lists of a folder, or of one list; its name determines the split, and `eval` is the test split.

    Args:
        path: the folder, or one list. If there is a balanced and an unbalanced list, both are for training: their
            splits are then `balanced_train` and `unbalanced_train`, so that the key `split` can exclude one.
        audio: folder of the audio; None takes the root named in a manifest, or searches below segment lists.

    Raises:
        TaskError: there are no lists, a list is malformed, or no audio file exists.

    **Source**: the data set's own page, https://research.google.com/audioset/download.html; fairseq's manifests, as
    the released code of EAT and ASDA reads them.
    """
    lists = audioset_lists(path) or [file for file in [path] if file.is_file() and file.suffix == ".csv"]
    if not lists:
        raise TaskError(f"{path} is not AudioSet: expected X.tsv with X.lbl beside it, or X{SEGMENTS}.")
    splits = {file: _split(file, alone=len(lists) == 1) for file in lists}
    trained = [file for file, split in splits.items() if split == TRAIN and file.name.endswith(SEGMENTS)]
    if len(trained) > 1:  # balanced and unbalanced: both train, unless the key split excludes one
        splits |= {file: file.name.removesuffix(SEGMENTS) for file in trained}
    if lists[0].suffix == ".tsv":
        return [row for file, split in splits.items() for row in _manifest_rows(file, split, audio)]
    folder = Path(audio) if audio is not None else lists[0].parent
    if not folder.is_dir():
        raise TaskError(f"no folder {folder} (key audio).")
    files = {stem: matches[0] for stem, matches in files_by_stem(folder).items()}
    return _with_audio([row for file, split in splits.items() for row in _segment_rows(file, split, files)], folder)


def _split(file: Path, alone: bool) -> str:
    """Split by the words of the file name: balanced_train_segments is for training."""
    candidates = [usual_split(word) for word in re.split("[_-]", file.stem)]
    return next(filter(None, candidates), NO_SPLIT if alone else file.stem)


def _manifest_rows(manifest: Path, split: str, audio: str | None) -> Iterator[Row]:
    """Read `X.tsv`: the root, then NAME<tab>SAMPLES; and `X.lbl`: ID<tab>LABEL,LABEL in the same order.

    **Differs** from the released code, which splits at any space: here names may contain spaces.
    """
    file_of_labels = manifest.with_suffix(".lbl")
    root, *files = _lines(manifest) or [(1, "")]
    labelled = _lines(file_of_labels)
    if len(files) != len(labelled):
        lines = counted(len(labelled), "line")
        raise TaskError(f"{manifest} lists {counted(len(files), 'file')}, but {file_of_labels} has {lines}.")
    folder = manifest.parent / root[1].strip() if audio is None else Path(audio)
    if not folder.is_dir():
        raise TaskError(f"{manifest}: its root folder {folder} does not exist; correct line 1, or set the key audio.")
    cache: dict[str, tuple[str, ...]] = {}
    for (line, text), (line_of_labels, text_of_labels) in zip(files, labelled, strict=True):
        name, count = _last_field(text)
        if HDF5.search(name):
            raise TaskError(f"{manifest} line {line}: {name} is in an HDF5 file, which is not supported; unpack it.")
        if not count.strip().isdecimal():
            raise TaskError(f"{manifest} line {line}: expected NAME<tab>SAMPLES, got {text!r}.")
        identifier, labels = _last_field(text_of_labels)
        if not _fits(identifier.strip(), name):
            raise TaskError(
                f"{file_of_labels} line {line_of_labels}: labels for {identifier!r}, "
                f"but {manifest.name} line {line} has {name!r}."
            )
        if labels not in cache:
            cache[labels] = _parts(labels)
        yield Row(folder / name, cache[labels], split, file_of_labels, line_of_labels)


def _lines(file: Path) -> list[tuple[int, str]]:
    """Non-empty lines with their line numbers."""
    lines = enumerate(read_text(file).split("\n"), start=1)
    return [(number, line.rstrip("\r")) for number, line in lines if line and not line.isspace()]


def _last_field(line: str) -> tuple[str, str]:
    """Split a line at its last tab, or at its last space if it has no tab."""
    first, *rest = line.rsplit("\t", 1) if "\t" in line else line.rsplit(None, 1)
    return first, rest[0] if rest else ""


def _fits(identifier: str, name: str) -> bool:
    """Whether the identifier is that of the file: its name, with or without suffix or the Y before video names."""
    last = name.rpartition("/")[2]
    stem = last.rpartition(".")[0] or last
    return identifier in (stem, last, name) or stem == f"Y{identifier}" or identifier == f"Y{stem}"


def _parts(labels: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in labels.split(LABEL_SEPARATOR) if part.strip())


def _segment_rows(file: Path, split: str, files: dict[str, Path]) -> Iterator[Row | None]:
    """Read rows like `YTID, 30.000, 40.000, "/m/09x0r,/m/05zppz"`; None for a segment without audio."""
    reader = csv.reader(io.StringIO(read_text(file), newline=""), skipinitialspace=True)
    for row in reader:
        if not row or row[0].startswith("#") or row[0] == "YTID":
            continue
        try:
            name, start, end, labels = row
            stem = next((stem for stem in _stems(name, start, end) if stem in files), None)
        except (ValueError, OverflowError):
            raise TaskError(
                f'{file} line {reader.line_num}: expected YTID, START, END, "LABEL,LABEL", got {", ".join(row)!r}.'
            ) from None
        yield None if stem is None else Row(files[stem], _parts(labels), split, file, reader.line_num)


def _with_audio(rows: list[Row | None], folder: Path) -> list[Row]:
    """Rows whose audio exists; warns how many are missing, because videos get deleted."""
    existing = [row for row in rows if row is not None]
    if missing := len(rows) - len(existing):
        message = f"{missing:,} of {len(rows):,} segments have no audio file below {folder}"
        if not existing:
            raise TaskError(f"{message}; looked for names such as {', '.join(_stems('YTID', '30.000', '40.000'))}.")
        print(f"warning: {message}.", file=sys.stderr)
    return existing


def _stems(name: str, start: str, end: str) -> Iterator[str]:
    """Usual file names of the audio of a segment, without suffix, the most precise first."""
    for suffix in _suffixes(start.strip(), end.strip()):
        yield f"{name}{suffix}"
        yield f"Y{name}{suffix}"


@lru_cache
def _suffixes(start: str, end: str) -> tuple[str, ...]:
    """_START_END and _START, each as written, in whole seconds, with milliseconds, in milliseconds; and empty."""
    both = list(zip(_times(start), _times(end), strict=True))
    suffixes = [*(f"_{first}_{last}" for first, last in both), *(f"_{first}" for first, _ in both), ""]
    return tuple(dict.fromkeys(suffixes))


def _times(text: str) -> tuple[str, str, str, str]:
    seconds = float(text)
    return text, f"{seconds:.0f}", f"{seconds:.3f}", str(round(seconds * MILLISECONDS))
