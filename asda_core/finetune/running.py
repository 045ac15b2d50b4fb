"""One fine-tuning run from checkpoint to scores: train, select the weights, evaluate, write the results."""

import json
import shutil
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from asda_core.assemble import check_clip
from asda_core.catalog import Catalog
from asda_core.checkpoint import Checkpoint, read_checkpoint, write_model
from asda_core.config_io import to_yaml
from asda_core.devices import own_modes, usable_device
from asda_core.errors import TaskError
from asda_core.finetune.best_weights import best_file, drop_best
from asda_core.finetune.evaluation import PREDICTIONS, SCORES, load_predictions, write_evaluation
from asda_core.finetune.finetune_model import FinetuneModel, build_finetune_model
from asda_core.finetune.jobs import Job, prepare_job
from asda_core.finetune.leakage import leakage_warning, shared_clips_warning
from asda_core.finetune.loop import Training, start_training, train
from asda_core.finetune.predicting import predict
from asda_core.labelled.examples import TEST, Example
from asda_core.labelled.splits import check_round
from asda_core.pretrain.reporter import read_skipped
from asda_core.pretrain.schedule import warmup_warning
from asda_core.system.files import read_json, read_json_object, write_text
from asda_core.system.locks import LOCK_FILE, hold_folder_lock
from asda_core.system.paths import MODEL_FILE, step_folders
from asda_core.system.resources import record_resource_usage

RESULT_FILE = "result.json"
LAST_FILE = "last.safetensors"
COST_FILE = "cost.json"


def finetune(
    job: Job, folder: str | Path, catalog: Catalog, device: str = "cpu", progress: bool = True
) -> dict[str, Any]:
    """Run or resume a job; a finished one is not run again.

    Args:
        job: job to run.
        folder: receives `model.safetensors` (the selected weights), `last.safetensors` if others were selected,
            `result.json`, predictions, tables and pictures.
        catalog: the plugins.
        device: "cpu", "cuda", ...
        progress: whether to show a progress bar.

    Returns:
        what `result.json` holds: scores, intervals, sizes, costs.

    Raises:
        TaskError, ConfigError, CheckpointError, AudioError: see `prepare_job`, `check_round`, `shared_clips_warning`,
            `build_finetune_model` and `start_training`; or another process trains in the folder.
        TrainingStopped: after Ctrl-C or SIGTERM, once the state is saved.
    """
    job = prepare_job(job)
    return _finetune_prepared(job, job.identity(catalog), Path(folder), catalog, device, progress)


def finetune_named(
    job: Job, parent: Path, name: str, catalog: Catalog, device: str = "cpu", progress: bool = True
) -> tuple[Path, dict[str, Any]]:
    """As `finetune`, in the folder `NAME-IDENTITY` of `parent`; return that folder and the result."""
    job = prepare_job(job)
    identity = job.identity(catalog)
    folder = parent / f"{name}-{identity}"
    return folder, _finetune_prepared(job, identity, folder, catalog, device, progress)


@own_modes()
def _finetune_prepared(
    job: Job, identity: str, folder: Path, catalog: Catalog, device: str, progress: bool
) -> dict[str, Any]:
    """Run or resume a job from `prepare_job`; its identity, which asks the disk for every clip, is found once."""
    if (done := _finished(job, folder, identity)) is not None:
        return done
    for line in check_round(job.split, job.data.classes, job.data.single):
        print(f"warning: {line}", file=sys.stderr)
    warnings = LeakageWarnings(shared_clips_warning(job.split), _trained_test_clips_warning(job))
    for warning in filter(None, warnings):
        print(warning, file=sys.stderr)
    model = build_finetune_model(catalog, job.recipe, job.start, job.data.classes)
    check_clip(model.front_end, model.encoder, job.recipe.data.clip_seconds)
    model.move_to(usable_device(device))
    with hold_folder_lock(folder, LOCK_FILE, "trains in"):
        if (done := _finished(job, folder, identity)) is not None:  # by another process, just now
            return done
        return _run(job, model, folder, identity, warnings, catalog, progress)


def _finished(job: Job, folder: Path, identity: str) -> dict[str, Any] | None:
    """Return the result if the job is finished in the folder, otherwise None."""
    done = read_result(folder)
    complete = (folder / MODEL_FILE).is_file() and (folder / PREDICTIONS).is_file()
    if done is None or done.get("identity") != identity or not complete:
        return None
    _remove_resume_files(folder)
    return _with_intervals(job, folder, done)


class LeakageWarnings(NamedTuple):
    """Warnings kept in the result of a run: clips shared between splits, test clips that its start was trained on."""

    shared_clips: str
    trained_test_clips: str


def _run(
    job: Job,
    model: FinetuneModel,
    folder: Path,
    identity: str,
    warnings: LeakageWarnings,
    catalog: Catalog,
    progress: bool,
) -> dict[str, Any]:
    """Run the unfinished part of `finetune`."""
    training = start_training(job, model, catalog, folder, identity)
    if job.recipe.optimizer.warmup_steps >= training.steps:
        warning = warmup_warning(job.recipe.optimizer, f"the {training.steps} updates")
        print(f"warning: {warning} Set more epochs or steps, or a shorter warm-up.", file=sys.stderr)
    write_text(folder / "recipe.yaml", to_yaml(job.recipe))
    cost = _train_and_count(training, folder, progress)
    step = _select_weights(training)
    tested = _test(job, training, warnings, progress)
    result = _write_result(folder, {"identity": identity, **tested, "step": step, **cost})
    _remove_resume_files(folder)
    return result


def _trained_test_clips_warning(job: Job) -> str:
    """Return a warning if the initial weights of a job were trained on its test clips; otherwise empty."""
    if not isinstance(job.start, Checkpoint):
        return ""
    return leakage_warning(job.start, replace(job.data, examples=job.split.test), TEST, job.split.name)


def _remove_resume_files(folder: Path) -> None:
    """Remove the files that only resuming the training needs."""
    for step in step_folders(folder):
        shutil.rmtree(step, ignore_errors=True)  # another process may do the same
    drop_best(folder)


def _test(job: Job, training: Training, warnings: LeakageWarnings, progress: bool) -> dict[str, Any]:
    """Evaluate the current model on the test clips, and write the results."""
    folder = training.folder
    predictions = predict(training.predictor, job.data, job.split.test, progress)
    scores = write_evaluation(folder, predictions, _title(job), job.recipe.bootstrap)
    skipped = {**read_skipped(folder), **{str(file): reason for file, reason in training.predictor.skipped.items()}}
    readable = tuple(example for example in job.split.train if str(example.file) not in skipped)
    unread_warnings = _unread_warnings(job, readable)
    for line in unread_warnings:
        print(f"warning: {line}", file=sys.stderr)
    return {
        "scores": scores.values,
        "intervals": scores.intervals,
        "bootstrap": job.recipe.bootstrap,
        "notes": [*scores.notes, *unread_warnings, *filter(None, warnings)],
        "start_heard_test": bool(warnings.trained_test_clips),
        "clips": {"train": len(readable), "valid": len(job.split.valid), "test": scores.num_clips},
        "skipped": skipped,
        "select": job.recipe.select,
        "steps": training.step,
        **training.model.sizes(),
    }


def _title(job: Job) -> str:
    return f"{job.data.name} {job.split.name}".strip()


def _with_intervals(job: Job, folder: Path, done: dict[str, Any]) -> dict[str, Any]:
    """Return a finished result, its intervals recomputed from the predictions if the number of resamples changed."""
    if done.get("bootstrap") == job.recipe.bootstrap:  # not recorded by earlier versions
        return done
    old_notes = read_json_object(folder / SCORES).get("notes", [])
    scores = write_evaluation(folder, load_predictions(folder / PREDICTIONS), _title(job), job.recipe.bootstrap)
    notes = [*scores.notes, *(note for note in done.get("notes", []) if note not in old_notes)]
    new = {"intervals": scores.intervals, "notes": notes, "bootstrap": job.recipe.bootstrap}
    return _write_result(folder, {**done, **new})


def _write_result(folder: Path, result: Mapping[str, Any]) -> dict[str, Any]:
    """Write the result of a run; return what the file holds, as `read_result` does later."""
    text = json.dumps(result, indent=1, default=list)
    write_text(folder / RESULT_FILE, text)
    return dict(json.loads(text))


def _unread_warnings(job: Job, readable: tuple[Example, ...]) -> list[str]:
    """Return warnings about a round with unreadable clips; no error, since a finished run is not discarded."""
    classes, single = job.data.classes, job.data.single
    try:
        after = check_round(replace(job.split, train=readable), classes, single)
    except TaskError as error:
        after = [f"{error}."]
    before = check_round(job.split, classes, single)
    return [f"{line} The other clips could not be read." for line in after if line not in before]


def _train_and_count(training: Training, folder: Path, progress: bool) -> dict[str, float]:
    """Train, and return seconds, CPU seconds and memory over all sessions of the run."""
    with record_resource_usage(folder / COST_FILE, "train") as cost:
        train(training, progress)
    return cost


def _select_weights(training: Training) -> int:
    """Load the selected weights into the model, write them, and return the number of the update they are from."""
    folder, state = training.folder, training.state
    step = training.step
    if training.job.recipe.select == "last":
        if training.average:
            _write(training, folder / LAST_FILE)
            _load_average(training.model, training.average)
    else:
        _write(training, folder / LAST_FILE)
        if state.best_step:
            training.model.load(read_checkpoint(best_file(folder, state.best_step)))
            step = state.best_step
    _write(training, folder / MODEL_FILE, step)
    return step


def _write(training: Training, file: Path, step: int | None = None) -> None:
    step_entry = {} if step is None else {"step": str(step)}
    write_model(file, training.model.tensors(), {**training.metadata(), **step_entry})


@torch.no_grad()
def _load_average(model: FinetuneModel, average: Mapping[str, Tensor]) -> None:
    for name, parameter in model.trained_parameters():
        parameter.copy_(average[name])


def read_result(folder: Path) -> dict[str, Any] | None:
    """Return the result of a finished run; None if there is none."""
    result: dict[str, Any] | None = read_json(folder / RESULT_FILE)
    return result
