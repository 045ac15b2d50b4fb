"""What scores belong to: a model's weights, a task, and what is installed."""

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from asda_core.files import file_digest
from asda_core.locating import locate
from asda_hear.evaluate.scores import SCORE_FILE
from asda_hear.evaluate.search import USUAL_SEED, EvaluationConfig
from asda_hear.names import DEFAULT_WEIGHTS, LOG_MEL

IDENTITY_DIGITS = 16
Stamp = dict[str, Any]
SEARCH_STAMP = "evaluation.json"
"""What the scores in a folder were made from."""


def weights_identity(model: str) -> str:
    """What a model's embeddings depend on: its name, or the content of its checkpoint or config."""
    if model == LOG_MEL:
        return LOG_MEL
    file = locate(Path(model or DEFAULT_WEIGHTS))
    facts = file.stat()
    return _digest(file, facts.st_size, facts.st_mtime_ns)


@functools.lru_cache(maxsize=4096)
def _digest(file: Path, size: int, time_ns: int) -> str:
    """Digest of a file, taken once as long as its size and time stay."""
    return file_digest(file)


def task_identity(task: Path) -> str:
    """What the scores on a task depend on: labels, splits and metadata by content, audio by name, size and time."""
    digest = hashlib.sha256()
    for file in sorted(path for path in task.rglob("*") if path.is_file()):
        digest.update(str(file.relative_to(task)).encode())
        facts = file.stat()
        text = file.suffix in (".json", ".csv")
        digest.update(file.read_bytes() if text else f"{facts.st_size} {facts.st_mtime_ns}".encode())
    return digest.hexdigest()[:IDENTITY_DIGITS]


def versions(*distributions: str) -> dict[str, str]:
    """Distribution -> its version here."""
    return {name: version_of(name) for name in distributions}


def version_of(distribution: str) -> str:
    """ "" where it is not installed: then no scores are those of this installation."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return ""


def read_stamp(file: Path) -> Any:
    """What a stamp says; None if it is missing or damaged."""
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):
        return None


def stamps(weights: str, options: Mapping[str, Any], task: str, config: EvaluationConfig) -> tuple[Stamp, Stamp]:
    """What embeddings, and what scores, belong to.

    Args:
        weights: the `weights_identity` of the model.
        options: keyword arguments of `load_model`.
        task: its `task_identity`.
        config: the search.
    """
    source = {"weights": weights, "options": dict(options), "task": task, **versions("asda-hear", "torch")}
    search = asdict(config)
    if config.seed == USUAL_SEED:  # as scores were kept before there were others
        del search["seed"]
    return source, {**source, **search, **versions("heareval")}


def is_scored(folder: Path, search: Stamp) -> bool:
    """Whether a folder holds the scores that belong to this."""
    return (folder / SCORE_FILE).exists() and read_stamp(folder / SEARCH_STAMP) == search
