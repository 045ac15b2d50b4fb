"""`asda test`: evaluate a fine-tuned checkpoint, of this package or released, on labelled clips."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from asda_core.catalog import installed_catalog
from asda_core.checkpoint import Checkpoint
from asda_core.data.clip_reader import ClipReader
from asda_core.errors import TaskError, unknown_message
from asda_core.finetune.evaluation import write_evaluation
from asda_core.finetune.finetune_model import load_finetune_model
from asda_core.finetune.jobs import clip_facts
from asda_core.finetune.leakage import leakage_warning
from asda_core.finetune.predicting import Predictor, predict
from asda_core.finetune.scoring import Scores
from asda_core.finetune_config import FinetuneConfig, FinetuneDataConfig
from asda_core.labelled.examples import Example, LabelledData
from asda_core.labelled.reading import read_labelled
from asda_core.labelled.source import SourceConfig, load_source
from asda_core.labelled.splits import rounds, usual_split
from asda_core.official.reading import read_model
from asda_core.system.files import NAME_DIGITS, model_digest, text_digest
from asda_core.system.paths import model_name


def run_test(parsed: argparse.Namespace) -> None:
    """Run `asda test`."""
    source, here = load_source(parsed.data)
    data = read_labelled(source, here)
    examples, tested = _clips_to_test(parsed.part, parsed.fold, data, source)
    if not examples:
        raise TaskError(f"{data.name} has no clips in its {parsed.part} split.")
    checkpoint = read_model(parsed.checkpoint)
    if checkpoint.report:
        print(checkpoint.report, file=sys.stderr)
    model = model_name(parsed.checkpoint)
    part = parsed.part + (f"-{parsed.fold}" if parsed.fold else "")
    chosen = replace(data, examples=tuple(examples))
    digest = text_digest(f"{model_digest(checkpoint.file)} {clip_facts(examples)}", NAME_DIGITS)
    out = parsed.out or Path("runs") / f"test-{model}-{data.name}-{part}-{digest}"
    if warning := leakage_warning(checkpoint, chosen, parsed.part, tested):
        print(warning, file=sys.stderr)
    scores = evaluate_checkpoint(checkpoint, chosen, out, parsed.device, parsed.compat == "released")
    print(json.dumps({"scores": scores.values, "intervals": scores.intervals, "clips": scores.num_clips}, indent=1))
    for note in scores.notes:
        print(note, file=sys.stderr)
    print(out, file=sys.stderr)


def _clips_to_test(
    part: str, fold: str | None, data: LabelledData, source: SourceConfig
) -> tuple[Sequence[Example], str]:
    """Return the clips to test, and the name of the fold that they belong to.

    Raises:
        TaskError: a fold is required, unknown, or not applicable.
    """
    if part == "all":
        if fold:
            raise TaskError(f"--part all uses all clips, but --fold {fold} only some; give one of the two.")
        return data.examples, ""
    in_split = [example for example in data.examples if usual_split(example.split) == part]
    if in_split and not (fold or source.split):  # a set may have nothing but test clips
        return in_split, ""
    folds = rounds(data, source, [fold] if fold else [])
    if len(folds) > 1:
        raise TaskError(f"{data.name} has {len(folds)} folds: choose one with --fold, or use --part all.")
    clips: Sequence[Example] = getattr(folds[0], part)
    return clips, folds[0].name


def evaluate_checkpoint(
    checkpoint: Checkpoint,
    data: LabelledData,
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
    model = load_finetune_model(checkpoint, installed_catalog(), device)
    config = model.classifier.config
    matched = match_classes(data, config.labels, config.num_classes)
    base = FinetuneDataConfig(**{**vars(checkpoint.config.data), "micro_batch": None})
    data_config = base if released else replace(base, crop="random", min_samples=0, resample_along="time")
    recipe = FinetuneConfig(epochs=1, data=data_config)
    predictor = Predictor(model, recipe, ClipReader(recipe.data, int(model.front_end.sample_rate)))
    predictions = predict(predictor, matched, matched.examples, progress)
    for reason in predictor.skipped.values():
        print(f"skipped: {reason}", file=sys.stderr)
    return write_evaluation(out, predictions, data.name)


def match_classes(data: LabelledData, labels: tuple[str, ...], num_classes: int) -> LabelledData:
    """Return the clips with the classes of a model, matched by identifier or by name.

    Raises:
        TaskError: the model lacks a class of the data, or does not name its classes and has another number of them.
    """
    if not labels:
        if len(data.classes) != num_classes:
            raise TaskError(f"the model has {num_classes} unnamed classes, but the data has {len(data.classes)}.")
        return data
    name_of = dict(zip(data.classes, data.class_names, strict=True))
    class_of = {name: name if name in labels else name_of[name] for name in data.classes}
    if missing := sorted(name for name in class_of.values() if name not in labels):
        raise TaskError(
            f"{unknown_message('class', missing[0], labels)} (in {data.name}, which must use classes of the model)"
        )
    own_name = {identifier: name_of[name] for name, identifier in class_of.items()}
    examples = tuple(
        Example(example.file, tuple(class_of[label] for label in example.labels), example.split)
        for example in data.examples
    )
    return replace(
        data, examples=examples, classes=labels, class_names=tuple(own_name.get(label, label) for label in labels)
    )
