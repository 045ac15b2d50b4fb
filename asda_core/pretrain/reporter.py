"""Where a run tells how it goes: the bar, `log.jsonl`, TensorBoard, `skipped.jsonl`."""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, TextIO

from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from asda_core.config import EncoderConfig
from asda_core.pretrain.data import Batches
from asda_core.system.files import append_line, json_lines

SKIPPED_FILE, LOG_FILE = "skipped.jsonl", "log.jsonl"


@dataclass
class Reporter:
    """Where a run tells how it goes: the bar, `log.jsonl`, TensorBoard, `skipped.jsonl`."""

    bar: "tqdm[NoReturn]"
    lines: TextIO
    writer: SummaryWriter
    num_seen: int = 0

    def log(self, step: int, values: dict[str, float]) -> None:
        """Write the numbers of a step everywhere."""
        self.lines.write(json.dumps({"step": step, **values, "time": round(time.time(), 3)}) + "\n")
        self.lines.flush()
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.bar.set_postfix_str(f"loss {values['loss']:.3f}", refresh=False)

    def name_skipped(self, folder: Path, clips: Batches) -> None:
        """Name files the first time they are skipped, in this session or one before."""
        if len(clips.skipped) == self.num_seen:
            return
        self.num_seen = len(clips.skipped)
        known = named_skipped(folder)
        for path, reason in clips.skipped.items():
            if str(path) not in known:
                tqdm.write(f"skipped: {reason}", file=sys.stderr)
                append_line(folder / SKIPPED_FILE, json.dumps({"file": str(path), "reason": reason}))


@contextmanager
def reporting(folder: Path, done: int, steps: int, progress: bool) -> Iterator[Reporter]:
    """The reporter of a run in `folder` that has done some of its steps; `progress` shows a bar."""
    bar = tqdm(total=steps, initial=done, unit="step", disable=not progress, desc=folder.name)
    writer = SummaryWriter(str(folder / "tensorboard"), purge_step=done + 1)
    with closing(writer), bar, (folder / LOG_FILE).open("a") as log:
        yield Reporter(bar, log, writer)


def read_log(folder: Path, names: Sequence[str] = ("step", "loss")) -> dict[str, list[float]]:
    """Columns of a run's log; empty where there is none."""
    records = json_lines(folder / LOG_FILE)
    return {name: [float(record[name]) for record in records] for name in names} if records else {}


def named_skipped(folder: Path) -> dict[str, str]:
    """Files that the run's folder names as skipped, with the reason, in this session or one before."""
    return {entry["file"]: entry["reason"] for entry in json_lines(folder / SKIPPED_FILE)}


def tell_left_out(encoder: EncoderConfig, num_bins: int) -> None:
    """Warn of bins above the last patch, which nothing looks at."""
    bands = encoder.grid(num_bins, encoder.patch_frames)[1]
    left = num_bins - (bands - 1) * encoder.step_bins - encoder.patch_bins
    if bands and left:
        print(f"warning: the top {left} of {num_bins} bins are in no patch (encoder.patch_bins).", file=sys.stderr)
