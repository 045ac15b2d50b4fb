"""The training loop: load, step, log, save. Stopped at any time, a run resumes with the same losses."""

import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from asda_core.adapting import set_train_mode
from asda_core.assemble import Parts
from asda_core.audio.feature_padding import padded_features
from asda_core.audio_files.digests import audio_digest
from asda_core.audio_files.sources import AudioList
from asda_core.catalog import Catalog
from asda_core.checkpoint import (
    TRAINING_FILE,
    Checkpoint,
    checkpoint_metadata,
    model_tensors,
    write_model,
    write_step,
)
from asda_core.config import RunConfig
from asda_core.config_io import to_yaml
from asda_core.data.clip_batches import Batches, Clips
from asda_core.data.prefetching import prefetch
from asda_core.data.stream_batches import open_batches
from asda_core.devices import own_modes, to_device
from asda_core.errors import AudioError, TrainingStopped
from asda_core.model.processor import exact_matmul
from asda_core.pretrain.initial_weights import build_training_parts
from asda_core.pretrain.processes import SINGLE_PROCESS, Processes, process_device, process_group
from asda_core.pretrain.reporter import LOG_FILE, SKIPPED_FILE, Reporter, read_skipped, reporting, warn_of_unused_bins
from asda_core.pretrain.resuming import (
    PASS_KEY,
    STREAM_KEY,
    load_optimizer_states,
    optimizer_states,
    read_step,
    stop_on_signal,
    truncate_log,
)
from asda_core.pretrain.schedule import learning_rate, make_optimizer, no_decay_ids
from asda_core.pretrain.step import Passes, Step, check_finite, pass_seed, plan_passes
from asda_core.pretrain.step_wrapping import distribute_like, full_tensor, gather_tensors, prepare
from asda_core.system.files import model_digest, write_text
from asda_core.system.locks import LOCK_FILE, hold_folder_lock
from asda_core.system.memory import report_out_of_memory
from asda_core.system.paths import MODEL_FILE, newest_step
from asda_core.weights.provenance import stored_plugins


@dataclass
class Run:
    """A run in progress.

    Attributes:
        stop: whether a stop was requested.
        lost_audio: why a process cannot read its next batch; empty while all can.
    """

    config: RunConfig
    catalog: Catalog
    folder: Path
    device: torch.device
    parts: Parts
    optimizer: torch.optim.Optimizer
    data_digest: str
    wrapped_step: nn.Module
    passes: Passes
    stream_parts: int
    processes: Processes = SINGLE_PROCESS
    step: int = 0
    stop: bool = field(default=False)
    lost_audio: str = ""

    def request_stop(self) -> None:
        """Request a stop after the step in progress."""
        self.stop = True


@own_modes()
def pretrain(
    config: RunConfig,
    files: AudioList,
    folder: str | Path,
    catalog: Catalog,
    device: str = "cpu",
    progress: bool = True,
    init: Checkpoint | None = None,
    processes: Processes = SINGLE_PROCESS,
) -> Path:
    """Start or resume a training run.

    Args:
        config: of the run.
        files: audio files to train on, or streamed shards.
        folder: of the run; if it holds steps of the same config, the run is resumed.
        catalog: the plugins.
        device: "cpu", "cuda", ...; each of several processes uses a GPU of its own.
        progress: whether to show a progress bar.
        init: initial weights instead of random ones; if the folder holds steps, the run resumes from those.
        processes: rank of this process among those that train the run; all call this with the same arguments.

    Returns:
        path of the exported encoder, `folder/model.safetensors`.

    Raises:
        ConfigError: the folder contains a different run, or another process trains in it; a clip holds no patch; there
            is an adapter but no `init`; or the processes cannot share the batch.
        AudioError: no file is readable; the state is saved if that occurs after an update.
        TrainingStopped: after Ctrl-C or SIGTERM, once the state is saved.
        AsdaError: the loss or the gradient norm is no longer finite, or another process has ended.
    """
    parts = build_training_parts(config, catalog, init)  # an invalid config raises before a folder is created
    data = audio_digest(files, None if init is None else model_digest(init.file))
    own, folder = process_device(device, processes), Path(folder)
    lock = hold_folder_lock(folder, LOCK_FILE, "trains in") if processes.is_first else nullcontext()
    with process_group(processes, own), lock:
        run = _start(config, catalog, folder, own, data, parts, processes)
        reports = reporting(folder, run.step, config.steps, progress) if processes.is_first else nullcontext()
        with reports as reporter, exact_matmul(own), stop_on_signal(run.request_stop, patient=processes.has_launcher):
            _train(run, _clips(run, files), reporter)
        if reporter is not None and (skipped := read_skipped(folder)):
            print(f"skipped {len(skipped)} of {len(files)} files: {folder / SKIPPED_FILE}", file=sys.stderr)
        tensors = gather_tensors(model_tensors(run.parts, with_objective=False), processes.is_first)
        if processes.is_first:
            plugins = stored_plugins(newest_step(folder))
            metadata = checkpoint_metadata(config, catalog, run.step, run.data_digest, plugins=plugins)
            write_model(folder / MODEL_FILE, tensors, metadata)
        processes.barrier()
    return folder / MODEL_FILE


def _clips(run: Run, files: AudioList) -> Batches:
    """Open the batches of this process."""
    config, rate, processes = run.config, run.parts.front_end.sample_rate, run.processes
    return open_batches(
        files, config.data, rate, config.seed, processes.rank, processes.world_size, run.folder, run.stream_parts
    )


def _train(run: Run, clips: Batches, reporter: Reporter | None) -> None:
    """Load, step, log, save; the next batches are read while a step runs. All processes run in lockstep."""
    config = run.config
    if run.step >= config.steps:
        return
    saves = True
    record: dict[str, Any] = {}
    with closing(
        prefetch(clips, run.step, config.steps, lambda: run.stop and run.processes.world_size == 1)
    ) as batches:
        for batch in _readable(run, batches):
            with report_out_of_memory(f"an update in passes of {run.passes.size} clips", "lower data.micro_batch"):
                record = _train_step(run, batch)
            stop = run.processes.any(run.stop)
            logs = run.step % config.log_every == 0 or run.step in (1, config.steps)
            saves = run.step % config.checkpoint_every == 0 or run.step == config.steps or stop
            if logs or saves:
                values = _checked(run, record)
                _share_skipped(run, clips)
            if reporter is not None:
                reporter.report_skipped(run.folder, clips)
                reporter.bar.update()
                if logs:
                    reporter.log(run.step, values)
            if saves:
                _save(run)
            if stop:
                break
    if run.step < config.steps:
        if not saves:  # stopped while waiting for the next batch, or there is none
            _checked(run, record)
            _save(run)
        if run.lost_audio:
            saved = f" Step {run.step} is saved; the same command resumes." if run.step else ""
            raise AudioError(f"{run.lost_audio}{saved}")
        raise TrainingStopped(f"stopped after step {run.step} of {config.steps}; the same command resumes.")


def _readable(run: Run, batches: Iterator[Clips]) -> Iterator[Clips]:
    """Yield batches until a process cannot read its next one, which ends the iteration in all of them."""
    while True:
        batch = None
        try:
            batch = next(batches, None)
        except AudioError as error:
            run.lost_audio = str(error)
        if run.processes.any(bool(run.lost_audio)):
            run.lost_audio = next(filter(None, run.processes.gather(run.lost_audio)))
            return
        if batch is None:
            return
        yield batch


def _checked(run: Run, record: Mapping[str, Any]) -> dict[str, float]:
    """Return the logged values, averaged over the processes; raise before a step with NaN replaces a good one."""
    values = run.processes.mean({name: float(value) for name, value in record.items()})
    check_finite({name: values[name] for name in ("loss", "grad_norm")}, run.step, run.folder)
    return values


def _start(
    config: RunConfig,
    catalog: Catalog,
    folder: Path,
    device: torch.device,
    data: str,
    parts: Parts,
    processes: Processes,
) -> Run:
    """Set up a new run, or resume one from its newest step."""
    latest = newest_step(folder)
    processes.check_same("the config", to_yaml(config))
    processes.check_same("the audio files and initial weights", data)
    processes.check_same("the newest step in the run's folder", str(latest))
    step, states, split = (0, {}, {}) if latest is None else read_step(latest, config, catalog, data, parts)
    passes = plan_passes(config.data, processes, split.get(PASS_KEY))
    stream_parts = split.get(STREAM_KEY, processes.world_size)
    parts.front_end.to(device).eval()  # its features must not be random
    for module in (parts.encoder, parts.objective):
        module.train()
    if config.adapter is not None:
        set_train_mode(parts.encoder)
    step_module = Step(parts.encoder, parts.objective, config.compute.precision)
    with report_out_of_memory("the model"):
        wrapped = prepare(step_module, config.compute, processes, device)
    trainable = [(name, parameter) for name, parameter in parts.named_parameters() if parameter.requires_grad]
    exempt = no_decay_ids(parts.encoder, parts.objective)
    optimizer = make_optimizer((parameter for _, parameter in trainable), config.optimizer, exempt)
    if states:
        load_optimizer_states(states, trainable, optimizer, device, distribute_like)
    if processes.is_first:
        warn_of_unused_bins(config.encoder, int(parts.front_end.num_bins))
        write_text(folder / "config.yaml", to_yaml(config))
        truncate_log(folder / LOG_FILE, step)
    return Run(config, catalog, folder, device, parts, optimizer, data, wrapped, passes, stream_parts, processes, step)


def _train_step(run: Run, batch: Clips) -> dict[str, Any]:
    """Do one update; return the values to log, still as tensors, averaged over the passes of this process."""
    config, passes = run.config, run.passes
    rate = learning_rate(run.step, config.steps, config.optimizer)
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    run.optimizer.zero_grad(set_to_none=True)
    record: dict[str, Any] = {}
    for number, clips in passes.split(batch):
        features = _features(run, clips)
        with passes.sync_context(number, run.wrapped_step):
            loss, parts = run.wrapped_step(features, pass_seed(config.seed, run.step, number))
            (loss / passes.count).backward()
        for name, value in {"loss": loss.detach(), **parts}.items():
            record[name] = record.get(name, 0) + value / passes.count
    parameters = [p for group in run.optimizer.param_groups for p in group["params"]]
    norm = full_tensor(torch.nn.utils.clip_grad_norm_(parameters, config.optimizer.clip_norm or math.inf))
    run.optimizer.step()
    run.step += 1
    run.parts.objective.after_step(run.parts.encoder, run.step)
    return {**record, "lr": rate, "grad_norm": norm}


@torch.no_grad()
def _features(run: Run, clips: Clips) -> Float[Tensor, "batch bins frames"]:
    """Compute the front end's features of clips, on the device."""
    audio = to_device(clips.audio, run.device)
    return padded_features(run.parts.front_end, audio, clips.num_samples, run.config.data.padding)


def _save(run: Run) -> None:
    """Write a step: everything needed to resume."""
    tensors = gather_tensors(model_tensors(run.parts, True), run.processes.is_first)
    states = gather_tensors(optimizer_states(run.parts.named_parameters(), run.optimizer), run.processes.is_first)
    if run.processes.is_first:
        shared = {PASS_KEY: str(run.passes.size), STREAM_KEY: str(run.stream_parts)}
        metadata = checkpoint_metadata(run.config, run.catalog, run.step, run.data_digest) | shared
        files = {MODEL_FILE: (tensors, metadata), TRAINING_FILE: (states, metadata)}
        write_step(run.folder, run.step, files, run.config.keep_checkpoints)
    run.processes.barrier()  # if one process ends, the launcher ends the others, which may still be writing


def _share_skipped(run: Run, clips: Batches) -> None:
    """Merge the skipped files of all processes, so that the first can report them."""
    for skipped in run.processes.gather(dict(clips.skipped)):
        for file, reason in skipped.items():
            clips.skipped.setdefault(file, reason)
