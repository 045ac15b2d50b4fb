"""The fine-tuning loop: load, update, evaluate on validation clips, save. It resumes exactly after any interruption."""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from asda_core.catalog import Catalog
from asda_core.checkpoint import TRAINING_FILE, checkpoint_metadata, read_checkpoint, write_model, write_step
from asda_core.data.clip_batches import ClipBatches, Clips
from asda_core.data.prefetching import prefetch
from asda_core.devices import seeded
from asda_core.errors import AudioError, ConfigError, TrainingStopped, counted
from asda_core.finetune.batches import label_matrix, training_batch, training_clips
from asda_core.finetune.best_weights import best_file, has_best, keep_best
from asda_core.finetune.finetune_model import FinetuneModel
from asda_core.finetune.frozen import EncodedClips, encode_once
from asda_core.finetune.jobs import Job
from asda_core.finetune.losses import batch_loss
from asda_core.finetune.optimizing import add_to_average, parameter_groups, set_rates
from asda_core.finetune.predicting import Predictor, predict
from asda_core.labelled.examples import Example
from asda_core.model.processor import exact_matmul
from asda_core.pretrain.reporter import LOG_FILE, Reporter, tensorboard
from asda_core.pretrain.resuming import (
    load_optimizer_states,
    optimizer_states,
    step_seed,
    stop_on_signal,
    truncate_log,
)
from asda_core.pretrain.schedule import optimizer_of
from asda_core.pretrain.step import check_finite
from asda_core.system.memory import report_out_of_memory
from asda_core.system.paths import MODEL_FILE, newest_step
from asda_core.weights.tensor_files import read_tensors

STATE = "finetuning"
"""Key in the metadata of a step for the state of the loop other than tensors."""
AVERAGE = "average|"
"""Prefix of the names of the averaged weights in the training state."""


@dataclass
class LoopState:
    """State of the loop between steps, other than weights.

    Attributes:
        best, best_step: highest value of the evaluations, and the update after which it was reached.
        waited: evaluations since then.
        averaged: epochs in the average.
        ended: whether training ended early.
    """

    best: float = -math.inf
    best_step: int = 0
    waited: int = 0
    averaged: int = 0
    ended: bool = False


@dataclass
class Training:
    """A fine-tuning in progress."""

    job: Job
    model: FinetuneModel
    catalog: Catalog
    folder: Path
    identity: str
    trained_on: Mapping[str, str]
    optimizer: torch.optim.Optimizer
    clips: ClipBatches
    labels: Tensor
    predictor: Predictor
    steps: int
    steps_per_epoch: Fraction
    step: int = 0
    state: LoopState = field(default_factory=LoopState)
    average: dict[str, Tensor] = field(default_factory=dict)
    stop: bool = False
    saved_best_step: int = 0

    def request_stop(self) -> None:
        """Request a stop after the step in progress."""
        self.stop = True

    @property
    def selection_clips(self) -> tuple[Example, ...]:
        """The clips on which weights are selected; none if the last ones are kept."""
        split = self.job.split
        return {"valid": split.valid, "test": split.test}.get(self.job.recipe.select, ())

    def metadata(self) -> dict[str, str]:
        """Return the metadata that is written with the tensors."""
        head = self.model.classifier.config
        metadata = checkpoint_metadata(
            self.model.config, self.catalog, self.step, self.identity, head, trained_on=self.trained_on
        )
        return {**metadata, STATE: json.dumps(vars(self.state))}


def start_training(job: Job, model: FinetuneModel, catalog: Catalog, folder: Path, identity: str) -> Training:
    """Return a new training, or one resumed from the last step saved in its folder.

    Args:
        job: from `prepare_job`, so that `select` is resolved ("last", "valid" or "test").
        model: the model on its device; its weights are replaced by those in the folder.
        catalog: the plugins.
        folder: folder of the run.
        identity: identity of the job; a folder with another one is rejected.

    Raises:
        ConfigError: the folder contains another run.
    """
    recipe, split = job.recipe, job.split
    clips = training_clips(recipe, split.train, int(model.front_end.sample_rate), job.base_folder)
    per_epoch = Fraction(clips.clips_per_epoch, recipe.data.batch_size)
    steps = recipe.steps or max(1, math.ceil(Fraction(str(recipe.epochs)) * per_epoch))
    if recipe.average_from_epoch > steps / per_epoch:
        raise ConfigError(
            f"average_from_epoch {recipe.average_from_epoch} is after the end of the training ({steps} updates)."
        )
    optimizer = optimizer_of(parameter_groups(model, recipe), recipe.optimizer)
    labels = label_matrix(split.train, job.data.classes)
    predictor = Predictor(model, recipe, clips.reader)
    training = Training(job, model, catalog, folder, identity, job.trained_on(), optimizer, clips, labels, predictor,
                        steps, per_epoch)  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    latest = newest_step(folder)
    if latest is not None:
        _resume(training, latest)
    truncate_log(folder / LOG_FILE, training.step)
    return training


def _resume(training: Training, latest: Path) -> None:
    checkpoint = read_checkpoint(latest)
    if checkpoint.data_digest != training.identity:
        raise ConfigError(f"{training.folder} contains a run with another recipe, data or start; give another folder.")
    training.model.load(checkpoint)
    states, metadata = read_tensors(latest / TRAINING_FILE)
    device = training.model.device
    load_optimizer_states(states, training.model.trained_parameters(), training.optimizer, device)
    training.average = {n.removeprefix(AVERAGE): t.to(device) for n, t in states.items() if n.startswith(AVERAGE)}
    training.state = LoopState(**json.loads(metadata[STATE]))
    training.step, training.saved_best_step = checkpoint.step, training.state.best_step
    if training.state.best_step and not has_best(training.folder, training.state.best_step):
        training.state = replace(training.state, best=-math.inf, best_step=0)  # its weights are lost


def train(training: Training, progress: bool) -> None:
    """Run the remaining updates.

    Raises:
        TrainingStopped: after Ctrl-C or SIGTERM, once the state is saved.
        AudioError: no file is readable; the state is saved.
        AsdaError: loss, gradient norm or weights are no longer finite.
    """
    recipe = training.job.recipe
    if training.step >= training.steps or training.state.ended:
        return
    encoded_clips = encode_once(training.model, recipe, training.clips.reader, training.job.split.train, progress)
    name = training.folder.name
    bar = tqdm(total=training.steps, initial=training.step, unit="step", disable=not progress, desc=name, leave=False)
    log = (training.folder / LOG_FILE).open("a", encoding="utf-8")
    exact = exact_matmul(training.model.device)
    batches = closing(prefetch(training.clips, training.step, training.steps))
    board, stopping = tensorboard(training.folder, training.step), stop_on_signal(training.request_stop)
    with board as writer, log, bar, exact, stopping, batches as batch_iterator:
        reporter = Reporter(bar, log, writer)
        for clips in _readable(training, batch_iterator):
            with report_out_of_memory(f"an update of {counted(len(clips.audio), 'clip')}", "lower data.batch_size"):
                values = _train_step(training, clips, encoded_clips)
            bar.update()
            reporter.report_skipped(training.folder, training.clips)
            _after_step(training, values, reporter)
            if training.state.ended:
                break


def _readable(training: Training, batches: Iterator[Clips]) -> Iterator[Clips]:
    """Yield batches; where none is readable any more, save the last update before the error ends the training."""
    first = training.step
    try:
        yield from batches
    except AudioError:
        if training.step > first:
            _check_weights(training)
            _save(training)
        raise


def _train_step(training: Training, clips: Clips, encoded_clips: EncodedClips | None) -> dict[str, Any]:
    """Run one update and return the values to log."""
    model, recipe, step = training.model, training.job.recipe, training.step
    model.set_training(True)
    rates = set_rates(training.optimizer, recipe, step, training.steps, training.steps_per_epoch)
    labels = training.labels[clips.source_indices]
    device = model.device
    with seeded(device, step_seed(recipe.seed, step)):  # dropout, drop path and augmentation
        if encoded_clips is None:
            batch = training_batch(model, recipe, clips, labels, step)
            encoded, labels = model.encoder(batch.features, layers=False), batch.labels
        else:
            encoded, labels = encoded_clips.batch(clips.source_indices), labels.to(device)
        loss = batch_loss(recipe, model.classifier(encoded), labels)
    training.optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    trained = [parameter for _, parameter in model.trained_parameters()]
    norm = torch.nn.utils.clip_grad_norm_(trained, recipe.optimizer.clip_norm or math.inf)
    training.optimizer.step()
    training.step += 1
    return {"loss": loss.detach(), "lr": max(rates), "grad_norm": norm}


def _after_step(training: Training, values: Mapping[str, Any], reporter: Reporter) -> None:
    """Average, evaluate, log, save, stop."""
    recipe, step, last = training.job.recipe, training.step, training.step == training.steps
    evaluates = bool(training.selection_clips) and (
        step * recipe.evaluations // training.steps > (step - 1) * recipe.evaluations // training.steps
    )
    saves = last or step % recipe.checkpoint_every == 0
    record: dict[str, float] = {}
    if evaluates or saves or training.stop or step % recipe.log_every == 0 or step == 1:
        record = {name: float(value) for name, value in values.items()}
        check_finite(record, step, training.folder)
    if evaluates or saves or training.stop:
        _check_weights(training)
    _average(training)
    if evaluates:
        record |= _evaluate(training)
    if record:
        reporter.log(step, record)
    if saves or training.stop or training.state.ended:
        _save(training)
    if training.stop:
        raise TrainingStopped(f"stopped after step {step} of {training.steps}; the same command resumes.")


def _average(training: Training) -> None:
    """Update the average of the weights, at the end of each epoch from `average_from_epoch` on."""
    first = training.job.recipe.average_from_epoch
    epoch = training.step / training.steps_per_epoch
    ended = int(epoch) > int((training.step - 1) / training.steps_per_epoch)
    if not first or not ended or int(epoch) < first:
        return
    training.state.averaged += 1
    add_to_average(training.average, training.model.trained_parameters(), training.state.averaged)


def _evaluate(training: Training) -> dict[str, float]:
    """Return the value by which weights are selected; the best weights are saved in a separate file."""
    state, recipe = training.state, training.job.recipe
    predictions = predict(training.predictor, training.job.data, training.selection_clips)
    name = predictions.main_metric
    value = predictions.score(resamples=0).values[name]
    if value is not None and value > state.best:
        state.best, state.best_step, state.waited = value, training.step, 0
        write_model(best_file(training.folder, training.step), training.model.tensors(), training.metadata())
        keep_best(training.folder, (state.best_step, training.saved_best_step))
    else:
        state.waited += 1
        state.ended = recipe.patience is not None and state.waited >= recipe.patience
    return {f"{recipe.select}_{name}": value for value in [value] if value is not None}


def _save(training: Training) -> None:
    """Write a step with everything needed to resume, then delete best weights that were superseded."""
    states = optimizer_states(training.model.trained_parameters(), training.optimizer)
    states |= {f"{AVERAGE}{name}": tensor for name, tensor in training.average.items()}
    metadata = training.metadata()
    files = {MODEL_FILE: (training.model.tensors(), metadata), TRAINING_FILE: (states, metadata)}
    write_step(training.folder, training.step, files, keep=1)
    training.saved_best_step = training.state.best_step
    keep_best(training.folder, [training.state.best_step])


def _check_weights(training: Training) -> None:
    weights = {name: float(parameter.detach().sum()) for name, parameter in training.model.trained_parameters()}
    check_finite(weights, training.step, training.folder, updated=True)
