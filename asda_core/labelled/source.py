"""Labelled sources: the keys of a task file."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from asda_core.audio_files.sources import BRACE_RANGE
from asda_core.config import require
from asda_core.config_io import parse
from asda_core.errors import ConfigError, prefix_errors, unknown_message
from asda_core.labelled.examples import TRAIN_VALID_TEST
from asda_core.settings.strict_yaml import read_yaml
from asda_core.system.paths import is_config_file

SourceFormat = Literal["auto", "folders", "csv", "esc50", "speech_commands", "urbansound8k", "audioset", "shards"]
LEAVE_OUT = "leave_out"
"""Key of `split` for the values of the split column that are excluded."""


@dataclass(frozen=True)
class SourceConfig:
    """A labelled source.

    Attributes:
        data: a folder, a table, or a tar shard, or several by their numbers: `train-{000000..000099}.tar`.
        name: of the task; empty takes the name of `data`.
        format: of the source; "auto" detects it.
        audio: folder of the audio files, if it is not that of the table or list.
        file_column, label_column, split_column: of a table; empty ones are recognised by their usual names. In shards
            the last two are keys of the JSON descriptions.
        label_separator: between the labels of a clip in a table or description; empty: a semicolon, or a comma in a
            column with a plural name, such as `labels`, that has no semicolons.
        split: train, valid, test and leave_out -> values of the split column.
        folds: number of folds to draw if there is no split, or all is train; 0 draws train, valid and test.
        seed: of that random draw.
        vocabulary: file of the classes, as `asda_core.labelled.label_files.read_labels` reads it.
        set: changes to the recipe for this task.
    """

    data: str
    name: str = ""
    format: SourceFormat = "auto"
    audio: str | None = None
    file_column: str = ""
    label_column: str = ""
    split_column: str = ""
    label_separator: str = ""
    split: dict[str, tuple[str, ...]] = field(default_factory=dict)
    folds: int = 0
    seed: int = 0
    vocabulary: str | None = None
    set: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require(bool(self.data), "data is empty; expected a folder or a table.")
        require(self.folds == 0 or self.folds > 1, f"folds must be 0, or 2 or more, not {self.folds}.")
        require(self.seed >= 0, f"seed must be 0 or more, not {self.seed}.")
        _check_split(self.split)


def _check_split(split: Mapping[str, tuple[str, ...]]) -> None:
    """Every key is known, every value belongs to one part, and there is something to train on and to test on."""
    owner: dict[str, str] = {}
    for part, values in split.items():
        if part not in (*TRAIN_VALID_TEST, LEAVE_OUT):
            raise ConfigError(f"{unknown_message('part', part, (*TRAIN_VALID_TEST, LEAVE_OUT))} (at split.{part})")
        for value in values:
            other = owner.setdefault(value, part)
            require(other == part, f"split: the value {value!r} is in both {other} and {part}.")
    if parts := sorted(set(split) - {LEAVE_OUT}):
        require({"train", "test"} <= set(parts), f"split needs train and test (valid is optional), got {parts}.")


def load_source(path: str | Path) -> tuple[SourceConfig, Path]:
    """Load the source from a task file, or make one from labelled audio itself.

    Args:
        path: a YAML file with the keys of `SourceConfig`; any other path (folder, table, shard) becomes `data`.

    Returns:
        the source, and the folder that its relative paths refer to.

    Raises:
        ConfigError: the file is missing, not YAML, or has wrong keys; the message begins with its name.
    """
    path = Path(path).expanduser()
    if not is_config_file(path):
        return SourceConfig(data=str(path)), Path()
    content = read_yaml(path)
    if isinstance(content, dict) and isinstance(content.get("split"), dict):
        content["split"] = {part: _as_list(values) for part, values in content["split"].items()}
    with prefix_errors(path):
        return parse(SourceConfig, content), path.parent


def _as_list(values: Any) -> Any:
    """Wrap a single value in a list, and convert integers to text as in a table: `test: 5` becomes ["5"]."""
    items = values if isinstance(values, list) else [values]
    return [str(value) if type(value) is int else value for value in items]


def resolve_paths(source: SourceConfig, folder: str | Path) -> SourceConfig:
    """Return the source with its name set and its paths resolved against `folder`; `~` is the user's home."""
    data = folder / Path(source.data).expanduser()
    place = data.resolve() if data.name in ("", "..") else data
    return replace(
        source,
        data=str(data),
        name=source.name or (place.name if place.is_dir() else BRACE_RANGE.sub("", place.stem).rstrip("-_.")),
        audio=_resolve(folder, source.audio),
        vocabulary=_resolve(folder, source.vocabulary),
    )


def _resolve(folder: str | Path, path: str | None) -> str | None:
    return None if path is None else str(folder / Path(path).expanduser())
