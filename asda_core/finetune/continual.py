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
from asda_core.errors import ConfigError
from asda_core.finetune.config import FinetuneConfig
from asda_core.finetune.jobs import Job, prepared
from asda_core.finetune.leakage import heard_before
from asda_core.finetune.predicting import Predictor, predict
from asda_core.finetune.running import finetune
from asda_core.finetune.scoring import score
from asda_core.finetune.sweep import mode_signature
from asda_core.finetune.tuned import Start, load_tuned
from asda_core.labelled.examples import TEST, Labelled
from asda_core.labelled.splits import Round
from asda_core.pretrain.clip_reader import ClipReader
from asda_core.system.files import file_digest, write_text
from asda_core.weights.paths import MODEL_FILE

SEQUENTIAL = ("full", "last_blocks")
"""Modes that change weights on which earlier tasks rely."""
MIN_TASKS = 2
HEARD_FILE = "heard.json"


@dataclass(frozen=True)
class Task:
    """One task of a sequence.

    Attributes:
        recipe: how it is learned.
        data: its clips.
        split: which of them train and test.
        over: changes of its file or the command line, which take precedence over those of a mode.
        digest: digest of all clips, labels and splits.
    """

    recipe: FinetuneConfig
    data: Labelled
    split: Round
    over: Mapping[str, Any] = field(default_factory=dict)
    digest: str = ""


@dataclass(frozen=True)
class Outcome:
    """Result of continual learning.

    Attributes:
        matrix: a[t][k] for k <= t: accuracy (or mAP) on task k after task t.
        trained: number of parameters trained for each task.
        stored: number of parameters kept in the end.
        start: digest of the checkpoint or config that it began with.
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
        """Mean over all but the last task of the drop from its best value: `max_{t<T} a[t, k] - a[T, k]`.

        **Source**: Chaudhry et al. 2018.
        """
        last = len(self.matrix) - 1
        lost = [max(self.matrix[t][k] for t in range(k, last)) - self.matrix[last][k] for k in range(last)]
        return sum(lost) / len(lost)

    def backward_transfer(self) -> float:
        """Mean over all but the last task of `a[T, k] - a[k, k]`. **Source**: Lopez-Paz and Ranzato 2017."""
        last = len(self.matrix) - 1
        return sum(self.matrix[last][k] - self.matrix[k][k] for k in range(last)) / last


def learn_in_turn(
    tasks: Sequence[Task],
    start: Start,
    digest: str,
    folder: Path,
    catalog: Catalog,
    device: str = "cpu",
    progress: bool = True,
    here: Path = Path(),
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
        here: folder that paths in the recipe are relative to.

    Raises:
        ConfigError: fewer than two tasks, or two with the same name.
    """
    names = [task.data.name for task in tasks]
    if len(tasks) < MIN_TASKS or len(set(names)) < len(names):
        raise ConfigError(f"learning task after task needs two tasks or more of different names, given {names}.")
    changing = tasks[0].recipe.mode in SEQUENTIAL
    matrix: list[tuple[float, ...]] = []
    files: list[Path] = []
    results: list[Mapping[str, Any]] = []
    for task in tasks:
        begins, known = (start, digest) if not (changing and files) else _left_by(files[-1], start)
        job = Job(task.recipe, begins, task.data, task.split, known, here)
        place = folder / f"{len(files) + 1}-{task.data.name}-{prepared(job).identity(catalog)}"
        results.append(finetune(job, place, catalog, device, progress))
        files.append(place / MODEL_FILE)
        encoders = [files[-1] if changing else file for file in files]
        so_far = zip(tasks, encoders, files, strict=False)
        matrix.append(tuple(_value(old, encoder, head, catalog, device, progress) for old, encoder, head in so_far))
    heard = [name for name, result in zip(names, results, strict=True) if result.get("start_heard_test")]
    return Outcome(
        tuple(matrix),
        tuple(int(result["trained"]) for result in results),
        _stored(results, changing),
        digest or signature(start),
        recipes=tuple(mode_signature(task.recipe, here) for task in tasks),
        heard=tuple(dict.fromkeys([*heard, *(_heard_later(tasks, files[-1]) if changing else ())])),
    )


def _heard_later(tasks: Sequence[Task], file: Path) -> list[str]:
    """Return tasks before the last whose test clips the final model was trained on, and print a warning for each."""
    left, names = read_checkpoint(file), []
    for task in tasks[:-1]:
        tested = replace(task.data, examples=task.split.test)
        if told := heard_before(left, tested, TEST, task.split.name):
            print(f"{told} They are test clips of {task.data.name}.", file=sys.stderr)
            names.append(task.data.name)
    return names


def _left_by(file: Path, start: Start) -> tuple[Checkpoint, str]:
    """Return the model that a task left, with front end and strides of the start: a task's changes are its own."""
    left, first = read_checkpoint(file), start.config if isinstance(start, Checkpoint) else start
    strides = {name: getattr(first.encoder, name) for name in ("stride_frames", "stride_bins")}
    encoder = replace(left.config.encoder, **strides)
    return replace(left, config=replace(left.config, front_end=first.front_end, encoder=encoder)), file_digest(file)


def _value(task: Task, encoder: Path, head: Path, catalog: Catalog, device: str, progress: bool) -> float:
    """Accuracy (mAP if clips have several labels) on the test clips with an encoder and a head read from disk.

    A value measured before with the same files is read from `heard.json` next to the head.
    """
    known = head.with_name(HEARD_FILE)
    heard: dict[str, float] = json.loads(known.read_text()) if known.exists() else {}
    which = f"{file_digest(encoder)} {file_digest(head)}"
    if which in heard:
        return heard[which]
    stored = read_checkpoint(head)
    if encoder != head:
        changed = {name: t for name, t in read_checkpoint(encoder).tensors.items() if name.startswith("encoder.")}
        stored = replace(stored, tensors={**stored.tensors, **changed})
    tuned = load_tuned(stored, catalog, device)
    reader = ClipReader(task.recipe.data, int(tuned.front_end.sample_rate))
    made = predict(Predictor(tuned, task.recipe, reader), task.data, task.split.test, progress)
    value = score(made.targets, made.given, made.classes, made.single, resamples=0).values[
        "accuracy" if made.single else "mAP"
    ]
    assert value is not None, "a test split has clips, and clips have labels"
    write_text(known, json.dumps({**heard, which: value}))
    return value


def _stored(sizes: Sequence[Mapping[str, Any]], changing: bool) -> int:
    """Number of parameters to keep for all tasks: one encoder, and the own parameters of every task."""
    own = "head" if changing else "trained"
    return int(sizes[0]["parameters"] - sizes[0][own] + sum(size[own] for size in sizes))
