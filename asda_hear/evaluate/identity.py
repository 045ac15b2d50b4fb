"""Identity of what scores belong to: a model's weights, a task, and the installed versions."""

import functools
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from asda_core.config_io import load_run_config
from asda_core.errors import AsdaError, TaskError
from asda_core.system.files import file_digest, read_json, safetensors_metadata, sidecar_config_file
from asda_core.system.paths import find_model_file, is_config_file, is_third_party
from asda_hear.evaluate.scores import SCORE_FILE, read_task_score
from asda_hear.evaluate.task_checks import DEFAULT_SEED, VOCABULARY_FILE, EvaluationConfig
from asda_hear.model_paths import find_model
from asda_hear.names import LOG_MEL

IDENTITY_DIGITS = 16
Stamp = dict[str, Any]
SEARCH_STAMP, SOURCE_STAMP = "evaluation.json", "embedding.json"
"""Files that record what the scores and the embeddings in a folder were made from."""
SEPARATOR = " "
"""Separator of the identities of a task."""
TEXT_FILES = (".json", ".csv")


def weights_identity(model: str) -> str:
    """Return what a model's embeddings depend on: its name, or digests of its files and the versions of its plugins."""
    if model == LOG_MEL:
        return LOG_MEL
    file = find_model_file(find_model(model))
    beside = sidecar_config_file(file)
    digests = [_digest(path, path.stat().st_size, path.stat().st_mtime_ns) for path in (file, beside) if path]
    return "+".join([*digests, *_foreign_plugins(file)])


def _foreign_plugins(file: Path) -> list[str]:
    """Distribution and installed version of every third-party plugin of a model: another may give other embeddings."""
    status = file.stat()
    names = _foreign_distributions(file, status.st_size, status.st_mtime_ns)
    return sorted(f"{name} {version_of(name)}" for name in names)


@functools.lru_cache(maxsize=4096)
def _foreign_distributions(file: Path, size: int, time_ns: int) -> frozenset[str]:
    """Distributions of the third-party plugins of a model; cached while the size and time of the file stay the same."""
    try:
        if is_config_file(file):
            from asda_core.assemble import plugin_origins  # imports torch, which help does not need
            from asda_core.catalog import installed_catalog

            origins = plugin_origins(installed_catalog(), load_run_config(file), with_objective=False)
        else:
            origins = json.loads(safetensors_metadata(file).get("plugins", "{}"))
        used = [origin for family, origin in origins.items() if family != "objective"]  # only trains
        return frozenset(filter(is_third_party, (origin["distribution"] for origin in used)))
    except (AsdaError, ValueError, AttributeError, KeyError, TypeError, RecursionError):  # none of ours, or no config
        return frozenset()


@functools.lru_cache(maxsize=4096)
def _digest(file: Path, size: int, time_ns: int) -> str:
    """Digest of a file; cached while its size and time stay the same."""
    return file_digest(file)


def task_identity(task: Path) -> str:
    """Return what the scores on a task may depend on: its `identity_at` every sample rate, the highest first.

    Scores belong to one of these, so that adding a sample rate does not invalidate existing scores.
    """
    return SEPARATOR.join(identity_at(task, rate) for rate in sorted(_rates(task), reverse=True) or [0])


def identity_at(task: Path, rate: int) -> str:
    """Digest of what scores depend on: labels, splits, metadata by content, audio at one rate by name, size and time.

    Args:
        task: its folder; hidden files are ignored.
        rate: sample rate of the model in Hz; if the task lacks it, its highest is used, from which it is resampled.
    """
    rates = _rates(task)
    audio = rates.get(rate) or (rates[max(rates)] if rates else None)
    text_files = [*task.glob("*.json"), task / VOCABULARY_FILE]
    return _digest_of(
        task, [path for path in [*text_files, *(audio.rglob("*") if audio else ())] if _is_visible(task, path)]
    )


def _rates(task: Path) -> dict[int, Path]:
    """Sample rate in Hz -> the folder of its audio."""
    return {int(path.name): path for path in task.iterdir() if path.name.isdigit() and path.is_dir()}


def _is_visible(task: Path, path: Path) -> bool:
    return not any(part.startswith(".") for part in path.relative_to(task).parts)


def _digest_of(task: Path, paths: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for file in sorted(path for path in paths if path.is_file()):
        digest.update(os.fsencode(file.relative_to(task)))
        status = file.stat()
        is_text = file.suffix in TEXT_FILES
        digest.update(file.read_bytes() if is_text else f"{status.st_size} {status.st_mtime_ns}".encode())
    return digest.hexdigest()[:IDENTITY_DIGITS]


@functools.lru_cache(maxsize=4096)
def _former_identity(task: Path, current: str) -> str:
    """Identity for scores of earlier versions, which covered every file; cached while the task stays the same."""
    return _digest_of(task, task.rglob("*"))


def stored_identity(folder: Path, task: Path, current: str) -> str:
    """Return the identity under which a folder keeps what was made from a task.

    Args:
        folder: of embeddings and scores.
        task: the task.
        current: its current `task_identity`.

    Returns:
        the identity in a stamp of the folder if the task still matches it; otherwise `current`.
    """
    for stamp in (SEARCH_STAMP, SOURCE_STAMP):
        content = read_json(folder / stamp)
        identity = content.get("task") if isinstance(content, dict) else None
        if identity is not None and (
            identity in current.split(SEPARATOR) or identity == _former_identity(task, current)
        ):
            return str(identity)
    return current


def versions(*distributions: str) -> dict[str, str]:
    """Distribution -> its installed version."""
    return {name: version_of(name) for name in distributions}


def version_of(distribution: str) -> str:
    """Return the installed version of a distribution; "" if it is not installed: then no scores match."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return ""


def stamps(weights: str, options: Mapping[str, Any], task: str, config: EvaluationConfig) -> tuple[Stamp, Stamp]:
    """Return the stamps of embeddings and of scores: what they belong to.

    Args:
        weights: the `weights_identity` of the model.
        options: keyword arguments of `load_model`.
        task: identity of the task that they are kept under.
        config: the search.
    """
    source = {"weights": weights, "options": dict(options), "task": task, **versions("asda-hear", "torch")}
    return source, {**source, **search_stamp(config)}


def search_stamp(config: EvaluationConfig) -> Stamp:
    """Return the part of a stamp that records the settings of the search."""
    search = asdict(config)
    if config.seed == DEFAULT_SEED:  # as in stamps from before the seed could be set
        del search["seed"]
    return {**search, **versions("heareval")}


def is_scored(folder: Path, search: Stamp, task: Path) -> bool:
    """Whether a folder holds readable scores that belong to this search and task.

    Args:
        folder: of a model and a task.
        search: the second of its `stamps`, made with the `task_identity`.
        task: the task.
    """
    expected = {**search, "task": stored_identity(folder, task, search["task"])}
    if not (folder / SCORE_FILE).exists() or read_json(folder / SEARCH_STAMP) != expected:
        return False
    try:
        read_task_score(folder)
    except TaskError:  # damaged: recomputed
        return False
    return True
