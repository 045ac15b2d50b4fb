"""Stopping and resuming a training run: signals, the optimiser's state, the log."""

import json
import math
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

import torch
from torch import Tensor, nn

from asda_core.assemble import Parts, plugin_origins, with_all_options, without_speed_options
from asda_core.audio_files.digests import is_same_data
from asda_core.catalog import Catalog
from asda_core.checkpoint import TRAINING_FILE, load_strict, read_checkpoint
from asda_core.config import RunConfig
from asda_core.config_io import differences, signature
from asda_core.errors import CheckpointError, ConfigError
from asda_core.system.files import write_text
from asda_core.system.paths import MODEL_FILE, step_folders
from asda_core.weights.provenance import changed_plugins
from asda_core.weights.tensor_files import DamagedFileError, read_tensors

STEP_SEED_STRIDE = 1_000_003
"""Seed of a step = seed of the run x this + step: unique over steps and seeds for runs with fewer steps than this."""
PASS_KEY, STREAM_KEY = "micro_batch", "stream_parts"
"""Metadata keys of a step for the number of clips in a pass and of parts of a stream, kept when another number of
processes resumes the run."""


def step_seed(seed: int, step: int) -> int:
    """Seed of all random draws of update `step` (from 0)."""
    return seed * STEP_SEED_STRIDE + step


@contextmanager
def suggest_older_step(latest: Path) -> Iterator[None]:
    """Context that adds to the error of a damaged newest step how to resume from the one before, if there is one.

    Raises:
        CheckpointError: that of the block, with the advice.
    """
    try:
        yield
    except CheckpointError as error:
        older = [step for step in step_folders(latest.parent) if step != latest]
        incomplete = not all((latest / name).is_file() for name in (MODEL_FILE, TRAINING_FILE))
        if not older or not (incomplete or isinstance(error, DamagedFileError)):  # such as a step of a newer version
            raise
        raise CheckpointError(f"{error} Delete {latest} to resume from {older[-1].name}.") from None


def read_step(
    latest: Path, config: RunConfig, catalog: Catalog, data: str, parts: Parts
) -> tuple[int, dict[str, Tensor], dict[str, int]]:
    """Load the weights of a step; return its number, the optimiser's state, and how the run shares its clips.

    Raises:
        ConfigError: the folder contains a different run, or one with other audio files or initial weights.
        CheckpointError: the step is damaged, or does not fit the modules.
    """
    with suggest_older_step(latest):
        checkpoint, (states, stored) = read_checkpoint(latest), read_tensors(latest / TRAINING_FILE)
    folder = latest.parent
    saved, current = (without_speed_options(catalog, run_config) for run_config in (checkpoint.config, config))
    with suppress(ConfigError):  # an option that no longer exists
        saved, current = with_all_options(catalog, saved), with_all_options(catalog, current)
    if signature(saved) != signature(current):
        changes = "; ".join(differences(saved, current))
        raise ConfigError(
            f"{folder} contains a different run ({changes}); use another folder. To start from its weights, give "
            "its checkpoint to --init."
        )
    if checkpoint.data_digest and not is_same_data(checkpoint.data_digest, data):
        raise ConfigError(f"{folder} contains a run with other audio files or initial weights; use another folder.")
    if changes := changed_plugins(checkpoint.plugins, plugin_origins(catalog, config)):  # of each process, may differ
        print(f"warning: {folder} continues with other plugins than it was trained with: {changes}.", file=sys.stderr)
    for prefix in ("front_end", "encoder", "objective"):
        load_strict(getattr(parts, prefix), checkpoint.tensors, f"{prefix}.", checkpoint.file)
    split = {PASS_KEY: config.data.batch_size} | {k: int(stored[k]) for k in (PASS_KEY, STREAM_KEY) if k in stored}
    return checkpoint.step, states, split


@contextmanager
def stop_on_signal(callback: Callable[[], None], patient: bool = False) -> Iterator[None]:
    """Call `callback` at the first Ctrl-C or SIGTERM; a second Ctrl-C stops at once, unless `patient`.

    A launcher forwards the Ctrl-C that its processes have already received from the terminal.
    """

    def on_signal(number: int, frame: FrameType | None) -> None:
        callback()
        if not patient:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    try:
        previous = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: the caller handles signals
        yield
        return
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def optimizer_states(
    named_parameters: Iterable[tuple[str, nn.Parameter]], optimizer: torch.optim.Optimizer
) -> dict[str, Tensor]:
    """Return the optimiser's state as named tensors: `parameter|key`."""
    return {
        f"{name}|{key}": torch.as_tensor(value).contiguous()
        for name, parameter in named_parameters
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer_states(
    states: Mapping[str, Tensor],
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    optimizer: torch.optim.Optimizer,
    device: torch.device,
    place: Callable[[Tensor, nn.Parameter], Tensor] | None = None,
) -> None:
    """Load the output of `optimizer_states`; `place` moves tensors of a parameter's shape to where the parameter is.

    A fused optimiser counts its steps on the device of the parameters, others on the CPU.
    """
    step_device = device if optimizer.defaults.get("fused") else torch.device("cpu")
    for name, parameter in named_parameters:
        state = {key.removeprefix(f"{name}|"): value for key, value in states.items() if key.startswith(f"{name}|")}
        optimizer.state[parameter] = {
            key: value.to(step_device if key == "step" else device)
            if key == "step" or place is None
            else place(value, parameter)
            for key, value in state.items()
        }


def truncate_log(log: Path, step: int) -> None:
    """Remove from the log what a killed run wrote after its last saved step, as it will be written again."""
    if log.exists():
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        write_text(log, "".join(f"{line}\n" for line in lines if _step_of(line) <= step))


def _step_of(line: str) -> float:
    """Return the step of a line of the log; infinity for a truncated line."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError):
        return math.inf
