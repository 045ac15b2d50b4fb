"""Progress reports of a run: progress bar, `log.jsonl`, TensorBoard, `skipped.jsonl`."""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn, TextIO

from tqdm import tqdm

from asda_core.config import EncoderConfig
from asda_core.data.clip_batches import Batches
from asda_core.system.files import append_line, read_json_lines

SKIPPED_FILE, LOG_FILE = "skipped.jsonl", "log.jsonl"
NO_TENSORFLOW = "tensorboard.compat.notf"
"""Module whose presence tells TensorBoard not to import TensorFlow, which would take seconds and 600 MiB. **Source**:
`tensorboard.compat`."""

sys.modules.setdefault(NO_TENSORFLOW, ModuleType(NO_TENSORFLOW))
SummaryWriter = import_module("torch.utils.tensorboard").SummaryWriter


@dataclass
class Reporter:
    """Destinations of the progress reports of a run: progress bar, `log.jsonl`, TensorBoard, `skipped.jsonl`."""

    bar: "tqdm[NoReturn]"
    log_file: TextIO
    writer: Any | None
    num_reported: int = 0

    def log(self, step: int, values: dict[str, float]) -> None:
        """Write the values of a step to all destinations."""
        self.log_file.write(json.dumps({"step": step, **values, "time": round(time.time(), 3)}) + "\n")
        self.log_file.flush()
        if self.writer is not None:
            for name, value in values.items():
                self.writer.add_scalar(name, value, step)
        self.bar.set_postfix_str(f"loss {values['loss']:.3f}", refresh=False)

    def report_skipped(self, folder: Path, batches: Batches) -> None:
        """Report skipped files not yet reported, in this session or an earlier one."""
        if len(batches.skipped) == self.num_reported:
            return
        self.num_reported = len(batches.skipped)
        reported = read_skipped(folder)
        for path, reason in batches.skipped.items():
            if str(path) not in reported:
                tqdm.write(f"skipped: {reason}", file=sys.stderr)
                append_line(folder / SKIPPED_FILE, json.dumps({"file": str(path), "reason": reason}))


@contextmanager
def tensorboard(folder: Path, completed: int) -> Iterator[Any | None]:
    """Open TensorBoard's log of a run in `folder` after `completed` steps; None, and a warning, if it rejects the path.

    It accepts only UTF-8, and names of folders may be any bytes.
    """
    try:
        writer = SummaryWriter(str(folder / "tensorboard"), purge_step=completed + 1)
    except UnicodeEncodeError:
        print(f"warning: {folder} has no log for TensorBoard, which accepts only paths in UTF-8.", file=sys.stderr)
        yield None
        return
    with closing(writer):
        yield writer


@contextmanager
def reporting(folder: Path, completed: int, steps: int, progress: bool) -> Iterator[Reporter]:
    """Open the reporter of a run in `folder` after `completed` of its steps; `progress` shows these and a bar."""
    if completed and progress:
        status = f"resumes after step {completed} of" if completed < steps else "is complete:"
        print(f"{folder} {status} {steps} steps.", file=sys.stderr)
    bar = tqdm(total=steps, initial=completed, unit="step", disable=not progress, desc=folder.name)
    with tensorboard(folder, completed) as writer, bar, (folder / LOG_FILE).open("a", encoding="utf-8") as log:
        yield Reporter(bar, log, writer)


def read_log(folder: Path, names: Sequence[str] = ("step", "loss")) -> dict[str, list[float]]:
    """Read columns of a run's log; empty if there is no log."""
    records = read_json_lines(folder / LOG_FILE)
    return {name: [float(record[name]) for record in records] for name in names} if records else {}


def read_skipped(folder: Path) -> dict[str, str]:
    """Read the skipped files of a run folder with the reasons, from this and earlier sessions."""
    return {entry["file"]: entry["reason"] for entry in read_json_lines(folder / SKIPPED_FILE)}


def warn_of_unused_bins(encoder: EncoderConfig, num_bins: int) -> None:
    """Warn of bins above the last patch, which the model does not use."""
    bands = encoder.grid(num_bins, encoder.patch_frames)[1]
    unused = num_bins - (bands - 1) * encoder.step_bins - encoder.patch_bins
    if bands and unused:
        print(f"warning: the top {unused} of {num_bins} bins are in no patch (encoder.patch_bins).", file=sys.stderr)
