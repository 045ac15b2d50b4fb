"""Measurement of a plan besides HEAR's tasks: how much attention falls on added noise."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from asda_core.audio_files.digests import sampled_digest
from asda_core.audio_files.sources import list_identity
from asda_core.catalog import Catalog
from asda_core.system.files import NAME_DIGITS, file_digest, read_json, text_digest, write_text
from asda_hear.evaluate.identity import weights_identity
from asda_hear.evaluate.scores import TaskScore
from asda_hear.evaluate.task_checks import ERROR_RATES
from asda_hear.looking.noise import WHITE
from asda_hear.looking.noise_attention import CLEAN, NoiseConfig, NoiseRow, main_rows, measure_noise
from asda_hear.names import LOG_MEL

NOISE_METRIC, CONTROL_METRIC = "noise share", "share, clean"
"""Share of attention on the noisy patches, divided by their share of the tokens (1 is chance level); and the same for
these patches in the clean clip, where neither higher nor lower is better."""
LOWER_IS_BETTER = ERROR_RATES | {NOISE_METRIC}
"""Metrics of a plan, of HEAR or not, of which lower values are better."""
NOISE_METRICS = frozenset({NOISE_METRIC, CONTROL_METRIC})
"""Metrics other than those of HEAR's tasks."""
FORMAT_VERSION = 2
"""Version of the file format; older files, which do not name the clips, are measured again."""


@dataclass(frozen=True)
class NoiseMeasure:
    """Clips and noise for the measurement of every cell.

    Attributes:
        files: audio files of the clips.
        config: settings of the noise.
    """

    files: tuple[Path, ...]
    config: NoiseConfig

    @cached_property
    def file_name(self) -> str:
        """Name of the result file in the folder of a cell; it depends on the settings and the clips."""
        noise = self.config.noise if self.config.noise == WHITE else file_digest(Path(self.config.noise))
        clips = [list_identity(self.files), sampled_digest(self.files)]
        settings = json.dumps([asdict(replace(self.config, noise=noise)), *clips], sort_keys=True)
        return f"noise-{text_digest(settings, NAME_DIGITS)}.json"


def has_attention(model: str) -> bool:
    """Whether a model has attention at all: the log-mel baseline has none."""
    return model != LOG_MEL


def measure_model(noise: NoiseMeasure, model: str, folder: Path, catalog: Catalog, progress: bool) -> None:
    """Measure a model, unless its result exists."""
    if read_noise_rows(noise, model, folder) is None:
        started = time.monotonic()
        rows = [asdict(row) for row in measure_noise(model, noise.files, noise.config, progress, catalog)]
        seconds = round(time.monotonic() - started, 1)
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / noise.file_name, json.dumps({**_stamp(model), "seconds": seconds, "rows": rows}))


def read_noise_rows(noise: NoiseMeasure, model: str, folder: Path) -> list[NoiseRow] | None:
    """Read what was measured of exactly these weights; None if not done yet."""
    content = read_json(folder / noise.file_name)
    if not isinstance(content, dict) or {key: content.get(key) for key in _stamp(model)} != _stamp(model):
        return None
    return [
        NoiseRow(**{**row, "ratios": tuple(row["ratios"]), "clips": tuple(row["clips"])}) for row in content["rows"]
    ]


def noise_scores(rows: Sequence[NoiseRow]) -> list[TaskScore]:
    """Return the map that the model really uses as scores, with each condition as a task and each clip as a fold.

    There are three for every signal-to-noise ratio: with noise (lower is better), the same patches in the clean clip,
    and the change from clean to noisy, clip by clip, which a mechanism that cancels noise makes negative.
    """
    scores = []
    by_ratio: dict[float, dict[bool, NoiseRow]] = {}
    for row in main_rows(rows):
        by_ratio.setdefault(row.snr_db, {})[row.condition == CLEAN] = row
    for snr_db, pair in by_ratio.items():
        noisy, clean = pair[False], pair[True]
        change = tuple(with_noise - without for with_noise, without in zip(noisy.ratios, clean.ratios, strict=True))
        scores.append(_score(f"noise at {snr_db:g} dB", NOISE_METRIC, noisy.ratios))
        scores.append(_score(f"same place, clean ({snr_db:g} dB)", CONTROL_METRIC, clean.ratios))
        scores.append(_score(f"change by noise ({snr_db:g} dB)", NOISE_METRIC, change))
    return scores


def clips_identity(rows: Sequence[NoiseRow]) -> str:
    """Return a digest of the measured clips: models may skip different ones, and then cannot be paired clip by clip."""
    names = json.dumps([[row.snr_db, row.clips] for row in main_rows(rows)])
    return text_digest(names, NAME_DIGITS)


def _score(name: str, metric: str, ratios: Sequence[float]) -> TaskScore:
    mean = sum(ratios) / len(ratios)
    return TaskScore(name, metric, mean, tuple(ratios), {metric: mean}, mean)


def _stamp(model: str) -> dict[str, Any]:
    return {"weights": weights_identity(model), "asda": version("asda-hear"), "form": FORMAT_VERSION}
