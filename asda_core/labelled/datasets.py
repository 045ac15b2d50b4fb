"""Read ESC-50, Speech Commands and UrbanSound8K in their original folder layouts."""

from dataclasses import replace
from pathlib import Path

from asda_core.errors import TaskError, unknown_message
from asda_core.labelled.examples import TEST, TRAIN, VALID
from asda_core.labelled.folders import audio_below
from asda_core.labelled.label_files import Label
from asda_core.labelled.rows import Row, by_number
from asda_core.labelled.source import SourceConfig
from asda_core.labelled.tables import read_header, read_table, read_text, require_files, table_rows

ESC50_TABLE = Path("meta", "esc50.csv")
ESC50_COLUMNS = {"filename", "fold", "category"}
URBANSOUND8K_TABLE = Path("metadata", "UrbanSound8K.csv")
URBANSOUND8K_COLUMNS = ("slice_file_name", "fold", "class", "classID")
SPEECH_COMMANDS_LISTS = {"validation_list.txt": VALID, "testing_list.txt": TEST}
"""Lists beside the folders of the words, and the split of the clips that they name."""


def esc50_table(root: Path) -> Path | None:
    """The table of ESC-50, or of a subset: the only csv beside the folder `audio`; None if this is neither."""
    if not (root / "audio").is_dir():
        return None
    if (root / ESC50_TABLE).is_file():
        return root / ESC50_TABLE
    tables = list(root.glob("*.csv"))
    return tables[0] if len(tables) == 1 and set(read_header(tables[0])) >= ESC50_COLUMNS else None


def esc50_rows(root: Path, source: SourceConfig) -> list[Row]:
    """Rows of ESC-50: folds 1 to 5; the label is the category.

    Raises:
        TaskError: the folder is not ESC-50, its table is malformed, or files are missing.

    **Source**: https://github.com/karolpiczak/ESC-50.
    """
    table = esc50_table(root)
    if table is None:
        raise TaskError(f"{root} is not ESC-50: expected the folder audio and {ESC50_TABLE}.")
    audio = source.audio or str(root / "audio")
    return table_rows(table, replace(source, audio=audio), label_column="category")


def is_urbansound8k(root: Path) -> bool:
    """Whether the folder contains the table of UrbanSound8K."""
    return (root / URBANSOUND8K_TABLE).is_file()


def urbansound8k_rows(root: Path) -> tuple[list[Row], list[Label]]:
    """Rows of UrbanSound8K in folds 1 to 10, and the classes in the order of their numbers.

    Raises:
        TaskError: the table is missing or malformed, or files are missing.

    **Source**: https://urbansounddataset.weebly.com/urbansound8k.html.
    """
    table = root / URBANSOUND8K_TABLE
    columns, lines = read_table(table)
    for column in URBANSOUND8K_COLUMNS:
        if column not in columns:
            raise TaskError(f"{table}: {unknown_message('column', column, columns)}")
    rows, numbers = [], {}
    for line, values, _ in lines:
        name, fold, label, number = (values[column].strip() for column in URBANSOUND8K_COLUMNS)
        if not (name and fold and label):
            raise TaskError(f"{table} line {line}: slice_file_name, fold or class is empty.")
        numbers[label] = number
        rows.append(Row(root / "audio" / f"fold{fold}" / name, (label,), fold, table, line))
    ordered = sorted(numbers, key=lambda label: by_number(numbers[label]))
    return require_files(iter(rows), table), [Label("", label) for label in ordered]


def is_speech_commands(root: Path) -> bool:
    """Whether the folder contains both lists of Speech Commands."""
    return all((root / name).is_file() for name in SPEECH_COMMANDS_LISTS)


def speech_commands_rows(root: Path) -> list[Row]:
    """Rows of Speech Commands: one folder per word; two lists name validation and test clips, the rest is for training.

    Folders that begin with `_` are not words (background noise). A list may name some missing files.

    Raises:
        TaskError: a list is missing or none of its files exists; an audio file is outside a word's folder.

    **Source**: https://arxiv.org/abs/1804.03209.
    """
    files = {file.relative_to(root).as_posix(): file for file in audio_below(root)}
    split_of: dict[str, str] = {}
    for name, part in SPEECH_COMMANDS_LISTS.items():
        listed = [line.strip() for line in read_text(root / name).split("\n") if line.strip()]
        if listed and not any(entry in files for entry in listed):
            raise TaskError(f"{root / name}: none of its {len(listed)} files exists below {root}, e.g. {listed[0]!r}.")
        split_of.update(dict.fromkeys(listed, part))
    rows = []
    for name, file in files.items():
        word, _, rest = name.partition("/")
        if word.startswith("_"):
            continue
        if not rest or "/" in rest:
            raise TaskError(f"{file} is not in a folder of its word (expected WORD/FILE below {root}).")
        rows.append(Row(file, (word,), split_of.get(name, TRAIN), root, 0))
    return rows
