"""The exception hierarchy. Messages say what was given, what was expected, where, and the nearest valid choice."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from itertools import islice
from typing import Generic, TypeVar

ResultsT = TypeVar("ResultsT")
SIMILARITY_CUTOFF = 0.5
"""Ratio of `difflib` above which a valid name is offered as a correction; 0.6 misses `lamda` for `lambda_init`."""
MAX_LISTED, MAX_LISTED_LONG = 5, 3
"""Largest number of names in a message, and of longer texts, such as paths and reasons."""


class AsdaError(Exception):
    """Root of all errors that a user can cause; the command line prints them without a traceback."""


class ConfigError(AsdaError, ValueError):
    """A configuration is wrong: an unknown key, a wrong type, numbers that do not fit together."""


class PluginError(AsdaError):
    """A plugin is missing, broken, or not unique."""


class AudioError(AsdaError, ValueError):
    """An audio file or signal cannot be used."""


class FileAccessError(AudioError):
    """An audio file is missing, or its disk or network fails; a later attempt may succeed."""


class MissingFileError(FileAccessError):
    """An audio file does not exist."""


class NoSamplesError(AudioError):
    """An audio file ends before the requested segment."""


class CheckpointError(AsdaError):
    """A checkpoint is missing, damaged, not trusted, or does not fit."""


class TaskError(AsdaError, ValueError):
    """A task is wrong: its folder, its labels, or its splits."""


class TrainingStopped(AsdaError):
    """The run was asked to stop; its progress is saved."""


class PartlyFailed(AsdaError, Generic[ResultsT]):
    """Parts of the work failed; `results` holds those of all others."""

    def __init__(self, results: ResultsT, message: str) -> None:
        super().__init__(message)
        self.results = results


@contextmanager
def prefix_errors(location: object) -> Iterator[None]:
    """Prefix the message of any configuration error raised in the block with where it occurred.

    Args:
        location: a file or key, as in "plan.yaml, cell lambda 0.1".

    Raises:
        ConfigError: "WHERE: MESSAGE".
    """
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{location}: {error}") from None


def error_message(error: Exception) -> str:
    """The message of an error without errno and file name; the output line names the file already."""
    return (isinstance(error, OSError) and error.strerror) or str(error)


def listing(names: Sequence[object], limit: int = MAX_LISTED) -> str:
    """Names after each other, as in "a, b, ..." for three names and a limit of 2."""
    return ", ".join(map(str, names[:limit])) + (", ..." if len(names) > limit else "")


def counted(count: int, noun: str, plural: str = "") -> str:
    """A number and its noun, as in "1 file" and "1,200 files"; `plural` if it is not the noun with an "s"."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def first_reasons(reasons: Iterable[str]) -> str:
    """The first few reasons why files were skipped, to tell why none is left."""
    return "; ".join(islice(reasons, MAX_LISTED_LONG))


def unknown_message(kind: str, name: str, valid: Iterable[str]) -> str:
    """One line for an unknown name, with the nearest valid one first; `name` may lack the folder of that one.

    Args:
        kind: what the name should have been, as in "config key".
        name: the name as the user wrote it.
        valid: the names that would have been accepted.
    """
    names = sorted(valid)
    candidates = {each.rpartition("/")[2]: each for each in names} | {each: each for each in names}
    near = get_close_matches(name, candidates, n=1, cutoff=SIMILARITY_CUTOFF)
    hint = f" Did you mean {candidates[near[0]]!r}?" if near else ""
    return f"unknown {kind} {name!r}.{hint} Valid: {', '.join(names) or 'none'}."
