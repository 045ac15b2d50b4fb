"""Continual learning: adapters and a head per task on a frozen encoder, or one encoder fine-tuned task after task.

The task of a clip is known at test time (task-incremental learning). After every task t the accuracy a[t, k] on
every task k so far is measured with what is stored by then::

    frozen modes     base + adapter k + head k, read back from the files of task k
    full             the encoder as task t left it + head k

**Source**: AI-CL (arXiv 2302.14314) for the protocol. **Differs**: AI-CL reports the best epoch on the test clips.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from asda_core.catalog import Catalog
from asda_core.checkpoint import Checkpoint, read_checkpoint
from asda_core.config_io import signature
from asda_core.data.clip_reader import ClipReader
from asda_core.errors import ConfigError
from asda_core.finetune.finetune_model import Start, load_finetune_model
from asda_core.finetune.jobs import Job
from asda_core.finetune.leakage import leakage_warning
from asda_core.finetune.predicting import Predictor, predict
from asda_core.finetune.running import finetune_named
from asda_core.finetune.sweep import mode_signature
from asda_core.finetune_config import FinetuneConfig
from asda_core.labelled.examples import TEST, LabelledData
from asda_core.labelled.splits import Round
from asda_core.system.files import file_digest, read_json_object, write_text
from asda_core.system.paths import MODEL_FILE

SEQUENTIAL = ("full", "last_blocks")
"""Modes that change weights on which earlier tasks rely."""
MIN_TASKS = 2
SCORE_CACHE_FILE = "heard.json"


@dataclass(frozen=True)
class Task:
    """One task of a sequence.

    Attributes:
        recipe: how it is learned.
        data: its clips.
        split: which of them train and test.
        overrides: changes of its file or the command line, which take precedence over those of a mode.
        digest: digest of all clips, labels and splits.
    """

    recipe: FinetuneConfig
    data: LabelledData
    split: Round
    overrides: Mapping[str, Any] = field(default_factory=dict)
    digest: str = ""


@dataclass(frozen=True)
class Outcome:
    """Result of continual learning.

    Attributes:
        matrix: a[t][k] for k <= t: accuracy (or mAP) on task k after task t.
        trained: number of parameters trained for each task.
        stored: number of parameters kept in the end.
        start: digest of the checkpoint or config that it started from.
        recipes: signatures of the recipes of its tasks, independent of the seed.
        heard: tasks whose test clips were in the training of the start or of another task.
    """

    matrix: tuple[tuple[float, ...], ...]
    trained: tuple[int, ...]
    stored: int
    start: str = ""
    recipes: tuple[str, ...] = ()
    heard: tuple[str, ...] = ()

    def average(self) -> float:
        """Mean over all tasks after the last one was learned."""
        return sum(self.matrix[-1]) / len(self.matrix)

    def forgetting(self) -> float:
        """Mean over all but the last task of the drop from the best value: `max_{t<T} a[t, k] - a[T, k]`.

        **Source**: Chaudhry et al. 2018.
        """
        last = len(self.matrix) - 1
        drops = [max(self.matrix[t][k] for t in range(k, last)) - self.matrix[last][k] for k in range(last)]
        return sum(drops) / len(drops)

    def backward_transfer(self) -> float:
        """Mean over all but the last task of `a[T, k] - a[k, k]`. **Source**: Lopez-Paz and Ranzato 2017."""
        last = len(self.matrix) - 1
        return sum(self.matrix[last][k] - self.matrix[k][k] for k in range(last)) / last


def learn_sequentially(
    tasks: Sequence[Task],
    start: Start,
    digest: str,
    folder: Path,
    catalog: Catalog,
    device: str = "cpu",
    progress: bool = True,
    base_folder: Path = Path(),
) -> Outcome:
    """Fine-tune on one task after the other, and evaluate all so far after each; finished work is not repeated.

    Args:
        tasks: tasks in order; their recipes share one mode.
        start: start of the first task, and in frozen modes of all.
        digest: digest of its file.
        folder: parent of the folders of the tasks.
        catalog: the plugins.
        device: "cpu", "cuda", ...
        progress: whether to show progress bars.
        base_folder: folder that paths in the recipe are relative to.

    Raises:
        ConfigError: fewer than two tasks, or two with the same name.
    """
    names = [task.data.name for task in tasks]
    if len(tasks) < MIN_TASKS or len(set(names)) < len(names):
        raise ConfigError(f"continual learning needs at least two tasks, each with a unique name; got {names}.")
    sequential = tasks[0].recipe.mode in SEQUENTIAL
    matrix: list[tuple[float, ...]] = []
    files: list[Path] = []
    results: list[Mapping[str, Any]] = []
    for number, task in enumerate(tasks, start=1):
        initial, initial_digest = (start, digest) if not (sequential and files) else _left_by(files[-1], start)
        job = Job(task.recipe, initial, task.data, task.split, initial_digest, base_folder)
        run_folder, result = finetune_named(job, folder, f"{number}-{task.data.name}", catalog, device, progress)
        results.append(result)
        files.append(run_folder / MODEL_FILE)
        encoders = [files[-1] if sequential else file for file in files]
        so_far = zip(tasks, encoders, files, strict=False)
        matrix.append(tuple(_score_of(old, encoder, head, catalog, device, progress) for old, encoder, head in so_far))
    leaked = [name for name, result in zip(names, results, strict=True) if result.get("start_heard_test")]
    return Outcome(
        tuple(matrix),
        tuple(int(result["trained"]) for result in results),
        _num_stored(results, sequential),
        digest or signature(start),
        recipes=tuple(mode_signature(task.recipe, base_folder) for task in tasks),
        heard=tuple(dict.fromkeys([*leaked, *(_leaked_later(tasks, files[-1]) if sequential else ())])),
    )


def _leaked_later(tasks: Sequence[Task], file: Path) -> list[str]:
    """Return tasks before the last whose test clips the final model was trained on, and print a warning for each."""
    final, names = read_checkpoint(file), []
    for task in tasks[:-1]:
        test_clips = replace(task.data, examples=task.split.test)
        if warning := leakage_warning(final, test_clips, TEST, task.split.name):
            print(f"{warning} They are test clips of {task.data.name}.", file=sys.stderr)
            names.append(task.data.name)
    return names


def _left_by(file: Path, start: Start) -> tuple[Checkpoint, str]:
    """Return the model that a task left, with front end and strides of the start: a task's changes are its own."""
    final, first = read_checkpoint(file), start.config if isinstance(start, Checkpoint) else start
    strides = {name: getattr(first.encoder, name) for name in ("stride_frames", "stride_bins")}
    encoder = replace(final.config.encoder, **strides)
    return replace(final, config=replace(final.config, front_end=first.front_end, encoder=encoder)), file_digest(file)


def _score_of(task: Task, encoder: Path, head: Path, catalog: Catalog, device: str, progress: bool) -> float:
    """Accuracy (mAP if clips have several labels) on the test clips with an encoder and a head read from disk.

    A value computed before with the same files is read from `heard.json` next to the head.
    """
    cache_file = head.with_name(SCORE_CACHE_FILE)
    cache: dict[str, float] = read_json_object(cache_file)
    key = f"{file_digest(encoder)} {file_digest(head)}"
    if key in cache:
        return cache[key]
    checkpoint = read_checkpoint(head)
    if encoder != head:
        encoder_tensors = {
            name: tensor for name, tensor in read_checkpoint(encoder).tensors.items() if name.startswith("encoder.")
        }
        checkpoint = replace(checkpoint, tensors={**checkpoint.tensors, **encoder_tensors})
    model = load_finetune_model(checkpoint, catalog, device)
    reader = ClipReader(task.recipe.data, int(model.front_end.sample_rate))
    predictions = predict(Predictor(model, task.recipe, reader), task.data, task.split.test, progress)
    value = predictions.score(resamples=0).values[predictions.main_metric]
    assert value is not None, "a test split has clips, and clips have labels"
    write_text(cache_file, json.dumps({**cache, key: value}))
    return value


def _num_stored(sizes: Sequence[Mapping[str, Any]], sequential: bool) -> int:
    """Number of parameters to keep for all tasks: one encoder, and the own parameters of every task."""
    own = "head" if sequential else "trained"
    return int(sizes[0]["parameters"] - sizes[0][own] + sum(size[own] for size in sizes))
