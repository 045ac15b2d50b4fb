"""Augmentation of the published recipes: widths, probabilities and amplitudes, over many draws."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import beta, kstest
from torch import Tensor

from asda_core.catalog import Catalog
from asda_core.data.clip_batches import Clips
from asda_core.finetune import batches
from asda_core.finetune.augment import mixup, mixup_weights, noise_and_shift, random_roll_and_gain, spec_augment
from asda_core.finetune.batches import plain_features, training_batch
from asda_core.finetune.finetune_model import build_finetune_model
from asda_core.finetune.recipes import load_recipe
from asda_core.finetune_config import FinetuneConfig
from tests.finetune.making import RATE, SECONDS, small_recipe, small_run
from tests.finetune.published import PUBLISHED

BINS = 128
DRAWS = 2_000
SIGMAS = 4.5
"""So far may a mean lie from what is expected; the seeds are fixed."""
MASKED = ["asda_as20k", "asda_esc50", "asda_spcv2", "ssast_as20k", "ssast_esc50", "ssast_spcv2", "aat_urbansound8k"]
"""One recipe for each size of masks and length of clips."""
MIXED = [name for name, keys in PUBLISHED.items() if keys["augment.mixup.probability"]]


def recipe_of(name: str) -> FinetuneConfig:
    return load_recipe(f"finetune/{name}")


def near(values: np.ndarray, mean: float) -> bool:
    """Whether the mean of draws is what it should be."""
    return abs(values.mean() - mean) < SIGMAS * values.std() / math.sqrt(len(values)) + 1e-12


def limits_of(name: str) -> tuple[float, float]:
    """Limits of the widths of masks (bins, frames) as published, which the release does not round."""
    keys = PUBLISHED[name]
    if share := keys.get("augment.spec_augment.share"):
        return BINS * share, keys["frames"] * share
    return keys["augment.spec_augment.bins"], keys["augment.spec_augment.frames"]


def widths_of(masked: Tensor, axis: int) -> Tensor:
    """Width of the one stretch of each clip that is hidden along an axis, where the other mask is not."""
    hidden = (masked == 0).all(dim=3 - axis)
    begins = hidden[:, :1].sum(dim=1) + (hidden[:, 1:] & ~hidden[:, :-1]).sum(dim=1)
    assert int(begins.max()) <= 1, "one stretch"
    return hidden.sum(dim=1)


@pytest.mark.slow
@pytest.mark.parametrize("name", MASKED)
def test_spec_augment(name: str) -> None:
    """Two masks of each clip: of 0, of width floor(U * limit), anywhere, each clip by itself."""
    frames = PUBLISHED[name]["frames"]
    config = recipe_of(name).augment.spec_augment
    torch.manual_seed(0)
    widths = []
    for _ in range(DRAWS // 50):
        masked = spec_augment(torch.ones(50, BINS, frames), config)
        rows, columns = widths_of(masked, 1), widths_of(masked, 2)
        shown = (BINS - rows) * (frames - columns)
        assert torch.equal((masked == 1).sum(dim=(1, 2)), shown), "a rectangle of rows, one of columns, and no more"
        assert torch.equal((masked == 0).sum(dim=(1, 2)), BINS * frames - shown)
        widths.append(torch.stack([rows, columns], dim=1))
    table = torch.cat(widths).double().numpy()
    for drawn, limit in zip(table.T, limits_of(name), strict=True):
        width_values = np.arange(math.ceil(limit))
        shares = np.minimum(limit - width_values, 1) / limit  # the widest one is rarer where the limit is no integer
        assert 0 <= drawn.min() <= 0.03 * limit
        assert 0.97 * (limit - 1) <= drawn.max() < limit
        assert near(drawn, float(shares @ width_values))
        counts = np.bincount(drawn.astype(int), minlength=len(shares))
        excess = ((counts - DRAWS * shares) ** 2 / (DRAWS * shares)).sum()
        freedom = len(shares) - 1
        assert excess < freedom + SIGMAS * math.sqrt(2 * freedom), "not uniform"
    lag = np.corrcoef(table[:-1, 0], table[1:, 0])[0, 1]
    across = np.corrcoef(table[:, 0], table[:, 1])[0, 1]
    assert max(abs(lag), abs(across)) < SIGMAS / math.sqrt(DRAWS)


def test_masks_of_spec_augment_stand_anywhere() -> None:
    """From the first bin to the last, and on both sides alike."""
    config = recipe_of("asda_as20k").augment.spec_augment
    torch.manual_seed(0)
    hidden = (spec_augment(torch.ones(8_000, BINS, 40), config) == 0).all(dim=2).double().mean(dim=0).numpy()
    assert hidden[:-1].min() > 0  # torchaudio's masks end before the last one
    assert hidden[:64].mean() == pytest.approx(hidden[64:].mean(), rel=0.06)
    assert hidden[40:88].std() < 0.15 * hidden[40:88].mean()
    assert hidden[60] > 3 * hidden[1]  # few masks reach the edge


def test_without_masks_nothing_is_hidden() -> None:
    features = torch.randn(2, BINS, 98)
    assert torch.equal(spec_augment(features, recipe_of("aicl").augment.spec_augment), features)


@pytest.mark.parametrize("name", MIXED)
def test_mixup(name: str) -> None:
    """How often, by which weights, and whether clips of a batch share them."""
    keys, config = PUBLISHED[name], recipe_of(name).augment.mixup
    steps, batch = 4_000, 4
    drawn = [mixup_weights(config, batch, np.random.default_rng([7, step, 2])) for step in range(steps)]
    table = np.array([np.ones(batch) if weights is None else weights.numpy() for weights in drawn], dtype=float)
    mixed, chance, alpha = table < 1, keys["augment.mixup.probability"], keys["augment.mixup.alpha"]
    assert near(mixed[:, 0].astype(float), chance)
    weights = table[:, 0][mixed[:, 0]]
    assert kstest(weights, beta(alpha, alpha).cdf).pvalue > 1e-3
    assert weights.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.1)
    if keys["augment.mixup.each"] == "batch":
        assert (table == table[:, :1]).all()
        assert sum(weights is None for weights in drawn) == (~mixed[:, 0]).sum()
    else:
        assert abs(np.corrcoef(table[:, 0], table[:, 1])[0, 1]) < SIGMAS / math.sqrt(steps)
        assert near(mixed.all(axis=1).astype(float), chance**batch)


def test_mixup_of_clips_with_their_mirror_images() -> None:
    """Inputs and labels by one formula, also of odd batches, and what was given stays as it was."""
    inputs, labels = torch.randn(5, 3, 6), torch.eye(5)
    weights = torch.tensor([0.9, 0.2, 0.4, 1.0, 0.0])
    before = inputs.clone()
    mixed, shares = mixup(inputs, labels, weights)
    for clip in range(5):
        weight = float(weights[clip])
        expected = weight * inputs[clip] + (1 - weight) * inputs[4 - clip]
        torch.testing.assert_close(mixed[clip], expected)
        torch.testing.assert_close(shares[clip], weight * labels[clip] + (1 - weight) * labels[4 - clip])
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(5))
    assert torch.equal(inputs, before)


def test_clips_that_are_not_mixed_keep_their_own_padding(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clip mixed with a longer one is as long as that; one that is left alone is not."""
    recipe = small_recipe(
        augment={"mixup": {"probability": 0.5, "of": "audio", "each": "clip"}},
        data={"clip_seconds": SECONDS, "batch_size": 4, "padding": "features"},
    )
    model = build_finetune_model(catalog, recipe, small_run(), ("a", "b"))
    lengths = torch.tensor([2_000, 2_500, 5_000, 5_360])
    audio = torch.randn(4, round(SECONDS * RATE)) * 0.1 * (torch.arange(round(SECONDS * RATE)) < lengths[:, None])
    weights = torch.tensor([1.0, 0.5, 0.5, 1.0])
    monkeypatch.setattr(batches, "mixup_weights", lambda *_: weights)
    clips = Clips(audio, lengths, torch.arange(4))
    features = training_batch(model, recipe, clips, torch.eye(4, 2), step=0).features
    alone = plain_features(model, recipe, [audio[0, :2_000], audio[3, :5_360]])
    torch.testing.assert_close(features[[0, 3]], alone)
    is_padding = (features == model.front_end.filling).all(dim=1)
    assert is_padding.sum(dim=1).tolist() == [21, 3, 3, 0]


@pytest.mark.parametrize("name", ["asda_spcv2", "ssast_spcv2", "aat_spcv2"])
def test_noise_and_shift(name: str) -> None:
    """Noise in 0..0.1 of an amplitude that each clip has for itself, and -10 to 9 frames in a circle."""
    augment, clips = recipe_of(name).augment, 2_000
    torch.manual_seed(0)
    noise = noise_and_shift(torch.zeros(clips, 16, 30), augment.noise, augment.time_shift)
    assert 0 <= float(noise.min()) <= float(noise.max()) < 0.1
    loudest = noise.flatten(1).amax(dim=1).double().numpy()
    assert kstest(loudest, "uniform", args=(0, 0.1)).pvalue > 1e-3
    assert near(noise.flatten(1).mean(dim=1).double().numpy(), 0.025)
    evenness = noise.flatten(1) / torch.from_numpy(loudest)[:, None]
    assert float(evenness.std(dim=1).mean()) == pytest.approx(1 / math.sqrt(12), rel=0.02)  # uniform, not Gaussian
    ramp = torch.arange(30.0).expand(clips, 16, 30)
    shifted = noise_and_shift(ramp, 0.0, augment.time_shift)
    shifts = shifted[:, 0].argmin(dim=1)
    for clip, by in zip(shifted, shifts.tolist(), strict=True):
        assert torch.equal(clip, ramp[0].roll(by, dims=1))
    counts = np.bincount(((shifts + 10) % 30).numpy(), minlength=30)
    assert (counts[:20] > 0).all()
    assert not counts[20:].any()
    assert ((counts[:20] - clips / 20) ** 2 / (clips / 20)).sum() < 19 + SIGMAS * math.sqrt(38)


def test_roll_keeps_the_samples() -> None:
    """The same samples less their mean, from another place on, times a gain of 0.5 + Beta(10, 10)."""
    audio = torch.randn(64, generator=torch.Generator().manual_seed(0)) + 0.3
    centred = audio - audio.mean()
    gains, shifts = [], []
    for seed in range(3_000):
        rolled = random_roll_and_gain(audio, np.random.default_rng([1, seed, 1]))
        gain = float(rolled.norm() / centred.norm())
        by = int(rolled.argmax() - audio.argmax()) % 64
        torch.testing.assert_close(rolled, centred.roll(by) * gain, rtol=1e-4, atol=1e-5)
        gains.append(gain)
        shifts.append(by)
    assert 0.5 < min(gains) < max(gains) < 1.5
    assert kstest(np.array(gains) - 0.5, beta(10, 10).cdf).pvalue > 1e-3
    counts = np.bincount(shifts, minlength=64)
    assert ((counts - 3_000 / 64) ** 2 / (3_000 / 64)).sum() < 63 + SIGMAS * math.sqrt(126)


def test_every_size_of_masks_is_tried() -> None:
    sizes = {(keys["frames"], *limits_of(name)) for name, keys in PUBLISHED.items() if "frames" in keys}
    assert sizes == {(PUBLISHED[name]["frames"], *limits_of(name)) for name in MASKED}
    assert len(sizes) == len(MASKED) == 7
