"""Read one folder per class, optionally within folders for train, valid and test."""

import os
import sys
from pathlib import Path

from asda_core.audio_files.sources import find_audio
from asda_core.audio_files.tar_headers import TAR_SUFFIX
from asda_core.errors import AudioError, TaskError
from asda_core.labelled.examples import NO_SPLIT
from asda_core.labelled.rows import Row
from asda_core.labelled.splits import usual_split

CLASS_FILE_DEPTH = 2
"""Number of path components of a file below the root, in a data set without split folders."""


def audio_below(root: Path) -> list[Path]:
    """Audio files below a folder.

    Raises:
        TaskError: there are none.
    """
    try:
        return find_audio(root)
    except AudioError as error:
        raise TaskError(str(error)) from None


def warn_of_empty_folders(root: Path, depth: int) -> None:
    """Warn of empty folders at this depth, that of the class folders: the class would be missing."""
    folders = sorted(
        path for path in root.glob("/".join("*" * depth)) if path.is_dir() and not path.name.startswith(".")
    )
    for folder in folders:
        readable = os.access(folder, os.R_OK | os.X_OK)
        if not readable or not any(path.is_file() for path in folder.rglob("*")):
            state = "is empty" if readable else "cannot be read"
            print(f"warning: {folder} {state} and not used as a class.", file=sys.stderr)


def folder_rows(root: Path) -> list[Row]:
    """Rows of CLASS/FILE, or SPLIT/CLASS/FILE if all folders have usual split names; hidden files are excluded.

    A single folder with a split's name among others is treated as a class if all files are directly in these folders.

    Raises:
        TaskError: there is no audio, audio is outside a class folder, or only some of the folders are splits.
    """
    paths = ((file, file.relative_to(root).parts) for file in audio_below(root))
    files = {file: parts for file, parts in paths if not any(part.startswith(".") for part in parts)}
    if shard := next((file for file, parts in files.items() if any(part.endswith(TAR_SUFFIX) for part in parts)), None):
        raise TaskError(f"{shard} is in a shard, not in a class folder; set format to shards.")
    tops = sorted({parts[0] for parts in files.values() if len(parts) > 1})
    splits = [top for top in tops if usual_split(top)]
    if len(splits) == 1 < len(tops) and all(len(parts) == CLASS_FILE_DEPTH for parts in files.values()):
        print(f"{root / splits.pop()} is treated as a class, like the folders beside it.", file=sys.stderr)
    warn_of_empty_folders(root, 2 if splits else 1)
    if splits and len(splits) < len(tops):
        other = next(top for top in tops if top not in splits)
        raise TaskError(f"{root}: the folder {splits[0]} is named like a split, but {other} is not; move one of them.")
    rows = []
    for file, parts in files.items():
        if len(parts) != CLASS_FILE_DEPTH + bool(splits):
            expected = "SPLIT/CLASS/FILE" if splits else "CLASS/FILE"
            raise TaskError(f"{file} is not in a folder of its class (expected {expected} below {root}).")
        rows.append(Row(file, (parts[-2],), usual_split(parts[0]) if splits else NO_SPLIT, root, 0))
    return rows
