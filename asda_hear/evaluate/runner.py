"""Runs the unmodified heareval in process: embeddings, then predictions, task by task; it resumes after a kill."""

import contextlib
import functools
import importlib
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO
from unittest import mock

import torch
from tqdm import tqdm

from asda_core.system.files import read_json, read_json_object, write_text
from asda_core.system.locks import hold_lock
from asda_hear.evaluate.clip_predictions import write_predictions
from asda_hear.evaluate.compat import TrainingCache, hear_tools, temporary_handlers
from asda_hear.evaluate.identity import (
    SEARCH_STAMP,
    SOURCE_STAMP,
    Stamp,
    identity_at,
    is_scored,
    stamps,
    stored_identity,
    task_identity,
    weights_identity,
)
from asda_hear.evaluate.process_state import keep_process_state
from asda_hear.evaluate.scores import FIXED_SPLITS, METADATA_FILE, TaskScore, read_task_score
from asda_hear.evaluate.task_audio import resample_task
from asda_hear.evaluate.task_checks import EvaluationConfig, check_task

MODULE = "asda_hear"
SECONDS_FILE = "seconds.json"
"""File with the seconds that a task has taken: `embedding` and `prediction`."""
SIZES_FILE = "embedding-files.json"
"""File with the size in bytes of each of heareval's embedding files, so that a truncated one is recomputed."""
EMBEDDING_FILES = (
    "*.embeddings.npy", "*.target-labels.pkl", "*.embedding-dimensions.json", "*.filename-timestamps.json",
)  # fmt: skip
COPY_STAMP = ".source"
"""File that records what a task at another sample rate was made from."""


def evaluate(
    model: str,
    tasks: Sequence[Path],
    out: Path,
    config: EvaluationConfig,
    options: dict[str, Any] | None = None,
    progress: bool = True,
    cache: Path | None = None,
) -> list[TaskScore]:
    """Score one model on tasks; results that are already in `out` are reused.

    Results belong to the weights (by content), the options, the task (see `identity_at`), the installed versions and
    the search; if one of them has changed, what depends on it is computed again.

    Args:
        model: what `asda_hear.load_model` takes.
        tasks: folders in HEAR's format.
        out: folder of this model's embeddings, trainings, scores, and heareval's output in `heareval.log`.
        config: the search.
        options: keyword arguments of `load_model`.
        progress: whether to show progress bars.
        cache: folder for tasks resampled to another sample rate (default: beside `out`).
    """
    with hear_tools():
        return [*map(Evaluation(model, out, config, options or {}, progress, cache).score, tasks)]


class Evaluation:
    """Evaluation of one model; see `evaluate` for the arguments. The model is loaded when it is first needed."""

    def __init__(
        self,
        model: str,
        out: Path,
        config: EvaluationConfig,
        options: Mapping[str, Any],
        progress: bool = True,
        cache: Path | None = None,
    ) -> None:
        self.model, self.config, self.options, self.progress = model, config, dict(options), progress
        self.out = out.resolve()  # heareval puts its own logs below an absolute path
        self.cache = cache or self.out.parent
        self.weights = weights_identity(model)
        self._embedding: Any = None

    def is_done(self, task: Path, identity: str) -> bool:
        """Whether the scores on a task of this `task_identity` exist."""
        return is_scored(self.out / task.name, self._stamps(identity)[1], task)

    def _stamps(self, identity: str) -> tuple[Stamp, Stamp]:
        return stamps(self.weights, self.options, identity, self.config)

    def score(self, task: Path) -> TaskScore:
        """Score the model on a task, within `hear_tools()`; existing results are reused."""
        folder = self.out / task.name
        source, search = self._stamps(stored_identity(folder, task, task_identity(task)))
        if is_scored(folder, search, task):
            return read_task_score(folder)
        check_task(task)
        self.out.mkdir(parents=True, exist_ok=True)
        log_file = self.out / "heareval.log"
        with _threads(self.config.threads), log_file.open("a", encoding="utf-8", errors="backslashreplace") as log:
            seconds = read_json_object(folder / SECONDS_FILE)
            intact = read_json(folder / SIZES_FILE) in (None, _sizes(folder)) and read_json(folder / METADATA_FILE)
            if not intact or read_json(folder / SOURCE_STAMP) != source:
                started = time.monotonic()
                self._embedding = self._embedding or _load(self.model, self.options, log)
                identity = identity_at(task, self._embedding.sample_rate)
                source, search = self._stamps(identity)
                audio = _at_rate(task, self._embedding.sample_rate, self.cache, identity, self.progress)
                _embed(self._embedding, audio, folder, log, self.progress)
                write_text(folder / SIZES_FILE, json.dumps(_sizes(folder)))
                write_text(folder / SOURCE_STAMP, json.dumps(source))
                seconds = {"embedding": time.monotonic() - started}
            started = time.monotonic()
            (folder / SEARCH_STAMP).unlink(missing_ok=True)  # or scores of another search would count as this one's
            _predict(folder, self.config, search, log, self.progress)
            write_predictions(folder)
            write_text(folder / SECONDS_FILE, json.dumps({**seconds, "prediction": time.monotonic() - started}))
            write_text(folder / SEARCH_STAMP, json.dumps(search))
        return read_task_score(folder)


def finished_scores(
    model: str,
    identities: Mapping[Path, str],
    out: Path,
    config: EvaluationConfig,
    options: Mapping[str, Any],
) -> list[TaskScore]:
    """Return the scores that `evaluate` would reuse; tasks without such scores are excluded.

    Args:
        model: what `asda_hear.load_model` takes; it must exist.
        identities: task folder -> its `task_identity`.
        out: folder of this model's scores.
        config: the search.
        options: keyword arguments of `load_model`.
    """
    evaluation = Evaluation(model, out, config, options)
    done = [task for task, identity in identities.items() if evaluation.is_done(task, identity)]
    return [read_task_score(out / task.name) for task in done]


def _load(model: str, options: dict[str, Any], log: TextIO) -> Any:
    embeddings = importlib.import_module("heareval.embeddings.task_embeddings")
    with _output_to(log):
        return embeddings.Embedding(MODULE, model or None, options)


def _embed(embedding: Any, task: Path, folder: Path, log: TextIO, progress: bool) -> None:
    """Embed one task as heareval's own command does, with progress bars; unfinished embeddings are recomputed."""
    shutil.rmtree(folder, ignore_errors=True)
    embeddings = importlib.import_module("heareval.embeddings.task_embeddings")
    bar = functools.partial(tqdm, desc=f"embedding {task.name}", disable=not progress, file=sys.stderr, leave=False)
    with mock.patch.object(embeddings, "tqdm", bar), _output_to(log):
        embeddings.task_embeddings(embedding, task, folder)


def _sizes(folder: Path) -> dict[str, int]:
    """Name -> size in bytes of heareval's embedding files."""
    return {file.name: file.stat().st_size for pattern in EMBEDDING_FILES for file in sorted(folder.glob(pattern))}


def _predict(folder: Path, config: EvaluationConfig, stamp: dict[str, Any], log: TextIO, progress: bool) -> None:
    """Run heareval's own prediction command for one task, with a bar over its trainings."""
    runner = importlib.import_module("heareval.predictions.runner")
    predictions = importlib.import_module("heareval.predictions.task_predictions")
    seed_everything = functools.partial(_seed_with, predictions.seed_everything, config.seed)
    metadata = json.loads((folder / METADATA_FILE).read_text(encoding="utf-8"))
    folds = 1 if metadata["split_mode"] == FIXED_SPLITS else len(metadata["splits"])
    (folder / "prediction-done.json").unlink(missing_ok=True)
    total = config.grid_points + folds - 1

    def on_training() -> None:
        bar.update()

    bar = tqdm(total=total, desc=metadata["task_name"], unit="training", disable=not progress, file=sys.stderr)
    with (
        bar,
        TrainingCache(folder, stamp, on_training),
        _output_to(log),
        temporary_handlers(metadata["task_name"]),
        mock.patch.object(predictions, "seed_everything", seed_everything),
        keep_process_state(),  # the next embeddings and trainings run as the first ones did
    ):
        runner.runner.callback(
            task_dirs=[str(folder)],
            grid_points=config.grid_points,
            gpus="[0]" if torch.cuda.is_available() else None,
            grid=config.grid,
        )


def _seed_with(seed_everything: Callable[..., Any], seed: int, _: int, **settings: Any) -> None:
    """Call heareval's seeding with another seed than its own."""
    seed_everything(seed, **settings)


def _at_rate(task: Path, rate: int, cache: Path, identity: str, progress: bool) -> Path:
    """Return the task at the model's sample rate, made in `cache` if missing: HEAR's archives have only 48 kHz."""
    if (task / str(rate)).is_dir():
        return task
    copy = cache / f"tasks-{rate}" / task.name
    copy.parent.mkdir(parents=True, exist_ok=True)
    with hold_lock(copy.with_name(f".{task.name}.lock")):  # several processes may share the cache
        if read_json(copy / COPY_STAMP) != identity:
            shutil.rmtree(copy, ignore_errors=True)
            resample_task(task, rate, copy, progress)
            write_text(copy / COPY_STAMP, json.dumps(identity))
    return copy


@contextlib.contextmanager
def _output_to(log: TextIO) -> Iterator[None]:
    """Redirect heareval's prints, bars and log lines to a file."""
    with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        yield
    log.flush()


@contextlib.contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
