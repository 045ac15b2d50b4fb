"""`asda test`: evaluate a fine-tuned checkpoint, of this package or released, on labelled clips."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from asda_core.catalog import installed_catalog
from asda_core.checkpoint import Checkpoint
from asda_core.errors import TaskError, unknown
from asda_core.finetune.config import FinetuneConfig, FinetuneDataConfig
from asda_core.finetune.evaluation import write_evaluation
from asda_core.finetune.jobs import clip_facts
from asda_core.finetune.leakage import heard_before
from asda_core.finetune.predicting import Predictor, predict
from asda_core.finetune.scoring import Scores
from asda_core.finetune.tuned import load_tuned
from asda_core.labelled.examples import Example, Labelled
from asda_core.labelled.reading import read_labelled
from asda_core.labelled.source import SourceConfig, load_source
from asda_core.labelled.splits import rounds, usual_split
from asda_core.official.reading import read_model
from asda_core.pretrain.clip_reader import ClipReader
from asda_core.system.files import NAME_DIGITS, model_digest, text_digest
from asda_core.weights.paths import model_name

BOOTSTRAP = 1000


def run_test(parsed: argparse.Namespace) -> None:
    """Run `asda test`."""
    source, here = load_source(parsed.data)
    data = read_labelled(source, here)
    examples, tested = _chosen(parsed.part, parsed.fold, data, source)
    if not examples:
        raise TaskError(f"{data.name} has no clips in its {parsed.part} split.")
    checkpoint = read_model(parsed.checkpoint)
    if checkpoint.report:
        print(checkpoint.report, file=sys.stderr)
    which = model_name(parsed.checkpoint)
    part = parsed.part + (f"-{parsed.fold}" if parsed.fold else "")
    chosen = replace(data, examples=tuple(examples))
    known = text_digest(f"{model_digest(checkpoint.file)} {clip_facts(examples)}", NAME_DIGITS)
    out = parsed.out or Path("runs") / f"test-{which}-{data.name}-{part}-{known}"
    if warning := heard_before(checkpoint, chosen, parsed.part, tested):
        print(warning, file=sys.stderr)
    scores = measure(checkpoint, chosen, out, parsed.device, parsed.compat == "released")
    print(json.dumps({"scores": scores.values, "intervals": scores.intervals, "clips": scores.num_clips}, indent=1))
    for note in scores.notes:
        print(note, file=sys.stderr)
    print(out, file=sys.stderr)


def _chosen(part: str, fold: str | None, data: Labelled, source: SourceConfig) -> tuple[Sequence[Example], str]:
    """Return the clips to test, and the name of the fold that they belong to.

    Raises:
        TaskError: a fold is required, unknown, or not applicable.
    """
    if part == "all":
        if fold:
            raise TaskError(f"--part all takes every clip, and --fold {fold} some; give one of the two.")
        return data.examples, ""
    usual = [example for example in data.examples if usual_split(example.split) == part]
    if usual and not (fold or source.split):  # a set may have nothing but test clips
        return usual, ""
    folds = rounds(data, source, [fold] if fold else [])
    if len(folds) > 1:
        raise TaskError(f"{data.name} has {len(folds)} folds: name one by --fold, or take --part all.")
    found: Sequence[Example] = getattr(folds[0], part)
    return found, folds[0].name


def measure(
    checkpoint: Checkpoint,
    data: Labelled,
    out: Path,
    device: str = "cpu",
    released: bool = False,
    progress: bool = True,
) -> Scores:
    """Evaluate a fine-tuned checkpoint on all clips of a set, and write predictions, tables and a picture.

    Args:
        checkpoint: checkpoint with a head.
        data: clips and labels.
        out: folder to write to.
        device: "cpu", "cuda", ...
        released: whether clips are cropped and excluded as in the training of a released checkpoint, which skips short
            ones and uses the beginning of long ones; otherwise every clip is used whole, as in `asda classify`.
        progress: whether to show a progress bar.

    Raises:
        TaskError: the labels are not those of the model, or no clip can be read.
        CheckpointError: it has no head.
    """
    tuned = load_tuned(checkpoint, installed_catalog(), device)
    config = tuned.classifier.config
    matched = with_classes_of(data, config.labels, config.num_classes)
    usual = FinetuneDataConfig(**{**vars(checkpoint.config.data), "micro_batch": None})
    cut = usual if released else replace(usual, crop="random", min_samples=0, resample_along="time")
    recipe = FinetuneConfig(epochs=1, data=cut)
    predictor = Predictor(tuned, recipe, ClipReader(recipe.data, int(tuned.front_end.sample_rate)))
    made = predict(predictor, matched, matched.examples, progress)
    for reason in predictor.skipped.values():
        print(f"skipped: {reason}", file=sys.stderr)
    return write_evaluation(out, made, data.name, BOOTSTRAP)


def with_classes_of(data: Labelled, labels: tuple[str, ...], num_classes: int) -> Labelled:
    """Return the clips with the classes of a model, matched by identifier or by name.

    Raises:
        TaskError: the model lacks a class of the data, or does not name its classes and has another number of them.
    """
    if not labels:
        if len(data.classes) != num_classes:
            raise TaskError(f"the model has {num_classes} classes without names, and the data {len(data.classes)}.")
        return data
    own = dict(zip(data.classes, data.names, strict=True))
    meant = {name: name if name in labels else own[name] for name in data.classes}
    if strange := sorted(name for name in meant.values() if name not in labels):
        raise TaskError(f"{unknown('class', strange[0], labels)} (of {data.name}, for the classes of the model)")
    back = {identifier: own[name] for name, identifier in meant.items()}
    examples = tuple(
        Example(example.file, tuple(meant[label] for label in example.labels), example.split)
        for example in data.examples
    )
    return replace(data, examples=examples, classes=labels, names=tuple(back.get(label, label) for label in labels))
