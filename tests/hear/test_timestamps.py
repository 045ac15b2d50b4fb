"""Proof that timestamps are right: clicks at random times, and where the embeddings respond.

The response is the difference to the embeddings of the same audio without clicks. It must peak within half a patch and
half a hop of the click (100 ms), and its centre must be unbiased, at the beginning and at ten minutes alike.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import asda_hear
from asda_core.catalog import Catalog
from asda_core.config import DataConfig, RunConfig
from asda_core.config_io import to_yaml
from asda_core.inference.framing import Framing
from asda_hear.model import HearModel

RATE = 16_000
NUM_CLICKS = 50
SLOT_SECONDS = 0.96
"""Each click has a slot of its own, so that responses do not overlap."""
NEAR_MS = 240.0


def responses(model: HearModel, audio: Tensor, clicks: Tensor) -> tuple[Tensor, Tensor]:
    """Per click, in ms relative to it: where the response peaks, and its centre."""
    clicked = audio.clone()
    clicked[0, clicks] += 0.8
    with_clicks, stamps = asda_hear.get_timestamp_embeddings(clicked, model)
    without, _ = asda_hear.get_timestamp_embeddings(audio, model)
    strength = (with_clicks - without).norm(dim=-1)[0].double()
    time = stamps[0].double()
    peaks, centres = [], []
    for click in clicks.tolist():
        truth = click * 1000 / RATE
        near = torch.where((time - truth).abs() <= NEAR_MS, strength, 0.0)
        peaks.append(float(time[near.argmax()]) - truth)
        above = (near - near.max() / 2).clamp(min=0)
        centres.append(float((above * time).sum() / above.sum()) - truth)
    return torch.tensor(peaks), torch.tensor(centres)


def random_clicks(start_seconds: float, generator: torch.Generator) -> Tensor:
    inside = torch.rand(NUM_CLICKS, generator=generator) * (SLOT_SECONDS / 2) + SLOT_SECONDS / 4
    return ((start_seconds + torch.arange(NUM_CLICKS) * SLOT_SECONDS + inside) * RATE).long()


@pytest.fixture
def model(catalog: Catalog, tiny: RunConfig, tmp_path: Path) -> HearModel:
    config = tmp_path / "model.yaml"
    config.write_text(to_yaml(replace(tiny, data=DataConfig(clip_seconds=2.575))))
    return asda_hear.load_model(config, catalog=catalog)


@pytest.mark.parametrize("start_seconds", [0.0, 600.0])
def test_clicks(model: HearModel, start_seconds: float) -> None:
    generator = torch.Generator().manual_seed(1)
    seconds = start_seconds + NUM_CLICKS * SLOT_SECONDS
    audio = 0.003 * torch.randn(1, int(seconds * RATE), generator=generator)
    peaks, centres = responses(model, audio, random_clicks(start_seconds, generator))
    assert peaks.abs().max() <= 100
    assert centres.mean().abs() <= 5
    assert centres.abs().max() <= 60


def test_the_proof_can_fail(model: HearModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Timestamps that tell the beginning of a patch instead of its centre are found out."""
    monkeypatch.setattr(Framing, "offset_samples", 0)
    generator = torch.Generator().manual_seed(1)
    audio = 0.003 * torch.randn(1, int(NUM_CLICKS * SLOT_SECONDS * RATE), generator=generator)
    _, centres = responses(model, audio, random_clicks(0.0, generator))
    assert centres.mean() == pytest.approx(-87.5, abs=5)
