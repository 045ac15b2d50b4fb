"""The training loop: load, step, log, save. Stopped at any moment, it goes on with the same losses."""

import hashlib
import json
import math
import sys
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from asda_core.assemble import Parts, build_parts, plugin_origins
from asda_core.audio import list_identity
from asda_core.catalog import Catalog
from asda_core.checkpoint import (
    MODEL_FILE,
    TRAINING_FILE,
    Checkpoint,
    load_strict,
    metadata_of,
    model_tensors,
    newest_step,
    read_checkpoint,
    read_tensors,
    write_model,
    write_step,
)
from asda_core.config import RunConfig
from asda_core.config_io import signature, to_yaml
from asda_core.data.sources import AudioList
from asda_core.data.stream_batches import open_clips
from asda_core.devices import usable_device
from asda_core.errors import AsdaError, ConfigError
from asda_core.files import DIGEST_DIGITS, file_digest, write_text
from asda_core.filling import fill_features
from asda_core.pretrain.data import Batches, Clips
from asda_core.pretrain.prefetching import prefetched
from asda_core.pretrain.reporter import LOG_FILE, SKIPPED_FILE, Reporter, named_skipped
from asda_core.pretrain.resuming import (
    TrainingStopped,
    drop_log_after,
    optimizer_states,
    put_states_back,
    step_seed,
    stop_on_signal,
)
from asda_core.pretrain.schedule import learning_rate, make_optimizer
from asda_core.starting import start_from


@dataclass
class Run:
    """A run in progress."""

    config: RunConfig
    catalog: Catalog
    folder: Path
    device: torch.device
    parts: Parts
    optimizer: torch.optim.Optimizer
    data: str
    step: int = 0
    stop: bool = field(default=False)

    def ask_to_stop(self) -> None:
        """After the step in progress."""
        self.stop = True


def pretrain(
    config: RunConfig,
    files: AudioList,
    folder: Path,
    catalog: Catalog,
    device: str = "cpu",
    progress: bool = True,
    init: Checkpoint | None = None,
) -> Path:
    """Train, or go on with, one run.

    Args:
        config: the run.
        files: audio to train on, or streams of shards.
        folder: where the run lives; one that holds steps of the same config is gone on with.
        catalog: the plugins.
        device: "cpu", "cuda", ...
        progress: whether to show a bar.
        init: weights to begin with, instead of random ones; a folder that holds steps goes on with them.

    Returns:
        the exported encoder, `folder/model.safetensors`.

    Raises:
        ConfigError: the folder holds another run, or there is an adapter and nothing to begin with.
        AudioError: no file is readable.
        TrainingStopped: after Ctrl-C or SIGTERM, when the state is saved.
        AsdaError: the loss is no longer finite.
    """
    if config.adapter is not None and init is None:
        raise ConfigError(f"the adapter {config.adapter.name!r} needs a trained encoder: begin with one (--init).")
    data = list_digest(files) if init is None else f"{list_digest(files)} from {file_digest(init.file)}"
    run = _start(config, catalog, folder, usable_device(device), data, init)
    clips = open_clips(files, config.data, run.parts.front_end.sample_rate, config.seed, folder=folder)
    bar = tqdm(total=config.steps, initial=run.step, unit="step", disable=not progress, desc=folder.name)
    writer = SummaryWriter(str(folder / "tensorboard"), purge_step=run.step)
    with closing(writer), bar, (folder / LOG_FILE).open("a") as log, stop_on_signal(run.ask_to_stop):
        _train(run, clips, Reporter(bar, log, writer))
    if skipped := named_skipped(folder):
        where = folder / SKIPPED_FILE
        print(f"{len(skipped)} of {len(files)} files were skipped; {where} names them.", file=sys.stderr)
    final = folder / MODEL_FILE
    write_model(final, model_tensors(run.parts, with_objective=False), metadata_of(config, catalog, run.step, run.data))
    return final


def list_digest(files: AudioList) -> str:
    """A digest of the list of audio files, by which a run knows its data again."""
    return hashlib.sha256(json.dumps(list_identity(files)).encode()).hexdigest()[:DIGEST_DIGITS]


def _train(run: Run, clips: Batches, reporter: Reporter) -> None:
    """Load, step, log, save; the next batches are read while a step runs."""
    config = run.config
    if run.step >= config.steps:
        return
    with closing(prefetched(clips, run.step, config.steps)) as batches:
        for batch in batches:
            record = _train_step(run, batch)
            reporter.name_skipped(run.folder, clips)
            logs = run.step % config.log_every == 0 or run.step in (1, config.steps)
            saves = run.step % config.checkpoint_every == 0 or run.step == config.steps or run.stop
            if logs or saves:
                values = {name: float(value) for name, value in record.items()}
                _check_finite(values, run)  # so that no step with NaN takes the place of a good one
            if logs:
                reporter.log(run.step, values)
            reporter.bar.update()
            if saves:
                _save(run)
            if run.stop and run.step < config.steps:
                raise TrainingStopped(f"stopped after step {run.step} of {config.steps}; the same command goes on.")


def _start(
    config: RunConfig, catalog: Catalog, folder: Path, device: torch.device, data: str, init: Checkpoint | None
) -> Run:
    """A new run, or the newest step of an old one."""
    parts = build_parts(catalog, config) if init is None else start_from(init, catalog, config)
    for module in (parts.front_end, parts.encoder, parts.objective):
        module.to(device).train()
    named = [(f"encoder.{n}", p) for n, p in parts.encoder.named_parameters() if p.requires_grad]
    named += [(f"objective.{n}", p) for n, p in parts.objective.named_parameters() if p.requires_grad]
    optimizer = make_optimizer((parameter for _, parameter in named), config.optimizer)
    run = Run(config, catalog, folder, device, parts, optimizer, data)
    folder.mkdir(parents=True, exist_ok=True)
    latest = newest_step(folder)
    if latest is not None:
        _resume(run, latest, dict(named))
    write_text(folder / "config.yaml", to_yaml(config))
    drop_log_after(folder / LOG_FILE, run.step)
    return run


def _resume(run: Run, latest: Path, named: dict[str, torch.nn.Parameter]) -> None:
    """Put the state of a step back."""
    checkpoint = read_checkpoint(latest)
    if signature(checkpoint.config) != signature(run.config):
        raise ConfigError(f"{run.folder} holds another run ({signature(checkpoint.config)}); give another folder.")
    if checkpoint.data and checkpoint.data != run.data:
        raise ConfigError(f"{run.folder} holds a run on other audio files or from other weights; give another folder.")
    if checkpoint.plugins != (now := plugin_origins(run.catalog, run.config)):
        print(f"warning: {run.folder} was trained with {checkpoint.plugins}, and goes on with {now}.", file=sys.stderr)
    for prefix in ("front_end", "encoder", "objective"):
        load_strict(getattr(run.parts, prefix), checkpoint.tensors, f"{prefix}.", checkpoint.file)
    states, _ = read_tensors(latest / TRAINING_FILE)
    put_states_back(states, named.items(), run.optimizer, run.device)
    run.step = checkpoint.step


def _train_step(run: Run, batch: Clips) -> dict[str, Any]:
    """One update; returns what is logged, still as tensors."""
    config = run.config
    rate = learning_rate(run.step, config.steps, config.optimizer)
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    generator = torch.Generator().manual_seed(step_seed(config.seed, run.step))
    with torch.no_grad():
        features = run.parts.front_end(batch.audio.to(run.device))
        if config.data.padding == "features":
            features = fill_features(features, batch.num_samples, run.parts.front_end)
    with torch.random.fork_rng(devices=[run.device] if run.device.type == "cuda" else []):
        torch.manual_seed(generator.initial_seed())  # for dropout, which asks no generator of ours
        losses = run.parts.objective.loss(run.parts.encoder, features, generator)
    run.optimizer.zero_grad(set_to_none=True)
    losses.total.backward()
    trained = [p for group in run.optimizer.param_groups for p in group["params"]]
    norm = torch.nn.utils.clip_grad_norm_(trained, config.optimizer.clip_norm or math.inf)
    run.optimizer.step()
    run.step += 1
    run.parts.objective.after_step(run.parts.encoder, run.step)
    return {"loss": losses.total.detach(), **losses.parts, "lr": rate, "grad_norm": norm}


def _save(run: Run) -> None:
    """Write a step: everything that is needed to go on."""
    parameters = [*run.parts.encoder.named_parameters("encoder"), *run.parts.objective.named_parameters("objective")]
    states = optimizer_states(parameters, run.optimizer)
    metadata = metadata_of(run.config, run.catalog, run.step, run.data)
    files = {MODEL_FILE: (model_tensors(run.parts, True), metadata), TRAINING_FILE: (states, metadata)}
    write_step(run.folder, run.step, files, run.config.keep_checkpoints)


def _check_finite(values: dict[str, float], run: Run) -> None:
    if not all(value == value and abs(value) != float("inf") for value in values.values()):
        raise AsdaError(
            f"the loss is no longer finite at step {run.step} ({values}); the last saved step is "
            f"{newest_step(run.folder)}. A lower optimizer.peak_lr or a longer warm-up may help."
        )
