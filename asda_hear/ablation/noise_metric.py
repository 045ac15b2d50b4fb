"""What a plan measures beside HEAR's tasks: how much attention falls on added noise."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from asda_core.audio import list_identity
from asda_core.catalog import Catalog
from asda_core.data.content import sampled_content
from asda_core.system.files import NAME_DIGITS, file_digest, text_digest, write_text
from asda_hear.evaluate.identity import read_stamp, weights_identity
from asda_hear.evaluate.scores import TaskScore
from asda_hear.looking.noise import WHITE
from asda_hear.looking.noise_attention import CLEAN, NoiseConfig, NoiseRow, main_rows, measure_noise
from asda_hear.names import LOG_MEL

NOISE_METRIC, CONTROL_METRIC = "noise share", "share, clean"
"""Share of attention on the patches that noise fills, divided by the share of tokens that they are: 1 is chance; and
that of the same patches where there is no noise, of which neither more nor less is better."""
LOWER_IS_BETTER = frozenset({NOISE_METRIC})
MEASURED = frozenset({NOISE_METRIC, CONTROL_METRIC})
"""Metrics of what is measured beside HEAR's tasks."""
FORM = 2
"""Of the file; older ones, which name no clips, are measured again."""


@dataclass(frozen=True)
class NoiseMeasure:
    """What is measured of every cell.

    Attributes:
        files: clips.
        config: the noise.
    """

    files: tuple[Path, ...]
    config: NoiseConfig

    @cached_property
    def file_name(self) -> str:
        """Where the result lies in the folder of a cell; another setting, or other clips, is another result."""
        noise = self.config.noise if self.config.noise == WHITE else file_digest(Path(self.config.noise))
        clips = [list_identity(self.files), sampled_content(self.files)]
        facts = json.dumps([asdict(replace(self.config, noise=noise)), *clips], sort_keys=True)
        return f"noise-{text_digest(facts, NAME_DIGITS)}.json"


def can_measure(model: str) -> bool:
    """Whether a model has attention at all: the log-mel baseline has none."""
    return model != LOG_MEL


def measure(noise: NoiseMeasure, model: str, folder: Path, catalog: Catalog, progress: bool) -> None:
    """Measure a model, unless it is done."""
    if read_measured(noise, model, folder) is None:
        started = time.monotonic()
        rows = [asdict(row) for row in measure_noise(model, noise.files, noise.config, progress, catalog)]
        spent = round(time.monotonic() - started, 1)
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / noise.file_name, json.dumps({**_stamp(model), "seconds": spent, "rows": rows}))


def read_measured(noise: NoiseMeasure, model: str, folder: Path) -> list[NoiseRow] | None:
    """What was measured of these very weights; None where that is still to do."""
    found = read_stamp(folder / noise.file_name)
    if not isinstance(found, dict) or {key: found.get(key) for key in _stamp(model)} != _stamp(model):
        return None
    return [NoiseRow(**{**row, "ratios": tuple(row["ratios"]), "clips": tuple(row["clips"])}) for row in found["rows"]]


def as_scores(rows: Sequence[NoiseRow]) -> list[TaskScore]:
    """What the model really uses, as if each condition were a task and each clip a fold; less is better.

    Of every ratio there are three: the noise, the same patches in the clean clip, and the change from this to that,
    clip by clip, which is what a mechanism that cancels noise makes negative.
    """
    found = []
    by_ratio: dict[float, dict[bool, NoiseRow]] = {}
    for row in main_rows(rows):
        by_ratio.setdefault(row.snr_db, {})[row.condition == CLEAN] = row
    for snr_db, pair in by_ratio.items():
        noisy, clean = pair[False], pair[True]
        change = tuple(with_noise - without for with_noise, without in zip(noisy.ratios, clean.ratios, strict=True))
        found.append(_score(f"noise at {snr_db:g} dB", NOISE_METRIC, noisy.ratios))
        found.append(_score(f"same place, clean ({snr_db:g} dB)", CONTROL_METRIC, clean.ratios))
        found.append(_score(f"change by noise ({snr_db:g} dB)", NOISE_METRIC, change))
    return found


def clips_identity(rows: Sequence[NoiseRow]) -> str:
    """Which clips were measured: models may leave out different ones, and then they cannot be paired clip by clip."""
    names = json.dumps([[row.snr_db, row.clips] for row in main_rows(rows)])
    return text_digest(names, NAME_DIGITS)


def _score(name: str, metric: str, ratios: Sequence[float]) -> TaskScore:
    mean = sum(ratios) / len(ratios)
    return TaskScore(name, metric, mean, tuple(ratios), {metric: mean}, mean)


def _stamp(model: str) -> dict[str, Any]:
    return {"weights": weights_identity(model), "asda": version("asda-hear"), "form": FORM}
