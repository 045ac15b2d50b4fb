"""Masks of the masked-patch objective, and what its losses see."""

from typing import Any

import pytest
import torch
from asda_plugins import objective_masked_patch
from asda_plugins.objective_masked_patch import MaskedPatchConfig, draw_masked, info_nce

from asda_core.catalog import Catalog
from asda_core.config import EncoderConfig
from asda_core.config_io import parse
from asda_core.contracts import ObjectiveContext
from asda_core.errors import ConfigError
from asda_core.model.encoder import Encoder
from asda_core.testing import check_objective, small_encoder

GRID = (64, 8)


def drawn(grid: tuple[int, int] = GRID, clips: int = 300, **options: Any) -> torch.Tensor:
    """True where a patch is hidden: (clips, times, bands)."""
    columns = draw_masked(grid, clips, MaskedPatchConfig(**options), torch.Generator().manual_seed(0))
    assert (columns[:, 1:] > columns[:, :-1]).all()  # in raster order, none twice
    return torch.zeros(clips, grid[0] * grid[1], dtype=torch.bool).scatter(1, columns, True).unflatten(1, grid)


@pytest.mark.parametrize("options", [{}, {"pattern": "uniform"}, {"biased_clusters": True}])
@pytest.mark.parametrize("grid", [GRID, (512, 1), (3, 2), (3, 1), (1, 8)])
def test_as_many_in_every_clip(options: dict[str, Any], grid: tuple[int, int]) -> None:
    size = grid[0] * grid[1]
    hidden = drawn(grid, 40, **options)
    wanted = min(size - 1, max(2, round(size * 400 / 512)))
    if "biased_clusters" in options:
        wanted = min(wanted, size - 1)
    assert (hidden.flatten(1).sum(1) == wanted).all()


def test_every_patch_is_hidden_equally_often() -> None:
    for options in ({}, {"pattern": "uniform"}):
        rates = drawn(clips=1500, **options).float().mean(0)
        assert (rates.mean(0) - 400 / 512).abs().max() < 0.015  # bands
        assert rates.min() > 0.70
        assert rates.max() < 0.86


def test_the_released_bias() -> None:
    """Measured on the released sampler: rates of the bands, and the first patch never."""
    hidden = drawn(clips=1500, biased_clusters=True)
    rates = hidden.float().mean((0, 1))
    assert torch.allclose(rates, torch.tensor([0.415, 0.670, 0.813, 0.872, 0.888, 0.887, 0.885, 0.819]), atol=0.02)
    assert not hidden[:, 0, 0].any()
    assert not hidden[:, -1, -1].any()


def test_clusters_hang_together() -> None:
    """With few patches hidden, a hidden patch has hidden neighbours; uniform ones seldom do."""
    shares = {}
    for pattern in ("clusters", "uniform"):
        hidden = drawn(masked_share=0.1, pattern=pattern)
        beside = hidden[:, 1:] & hidden[:, :-1]
        shares[pattern] = float(beside.sum() / hidden.sum())
    assert shares["clusters"] > 0.6 > 0.2 > shares["uniform"]


def build(catalog: Catalog, encoder: Encoder, **options: Any) -> Any:
    spec = catalog.find("objective", "masked_patch").spec
    return spec.build(parse(spec.config, options), ObjectiveContext(encoder))


@pytest.mark.parametrize("options", [
    {"one_mask": True}, {"normalise_over": "targets"}, {"generative_weight": 0.0}, {"discriminative_weight": 0.0},
    {"biased_clusters": True}, {"pattern": "uniform", "masked_share": 0.3},
])  # fmt: skip
def test_contract_of_the_options(catalog: Catalog, options: dict[str, Any]) -> None:
    check_objective(catalog.find("objective", "masked_patch").spec, None, **options)


def test_hidden_patches_are_not_seen(catalog: Catalog) -> None:
    """What stands in hidden patches changes the targets and nothing that the encoder makes."""
    torch.manual_seed(0)
    encoder = small_encoder(catalog.find("mixer", "standard").spec)
    objective = build(catalog, encoder)
    features = torch.randn(2, 128, 64)
    hidden = torch.tensor([[0, 5, 9], [1, 2, 31]])
    changed = features.clone()
    for clip, columns in enumerate(hidden.tolist()):
        for column in columns:
            time, band = divmod(column, 8)
            changed[clip, band * 16 : band * 16 + 16, time * 16 : time * 16 + 16] += 3
    with torch.no_grad():
        assert torch.equal(objective._encoded(encoder, features, hidden), objective._encoded(encoder, changed, hidden))
        other = hidden.flip(0)
        assert not torch.equal(
            objective._encoded(encoder, features, other), objective._encoded(encoder, changed, other)
        )


def test_one_mask_is_one_pass(catalog: Catalog) -> None:
    encoder = small_encoder()
    features = torch.randn(2, 128, 64)
    for options, passes in (({}, 2), ({"one_mask": True}, 1), ({"generative_weight": 0.0}, 1)):
        calls = []
        handle = encoder.blocks[0].register_forward_hook(lambda *_, calls=calls: calls.append(1))
        build(catalog, encoder, **options).loss(encoder, features, torch.Generator().manual_seed(0))
        handle.remove()
        assert len(calls) == passes


def test_one_mask_is_one_pass_on_a_device_too(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    """There, moving a mask gives a new tensor."""
    monkeypatch.setattr(objective_masked_patch, "to_device", lambda values, device: values.to(device, copy=True))
    test_one_mask_is_one_pass(catalog)


def test_contrast_by_hand() -> None:
    """Two patches: targets e1, e2; predictions 2 e1 and e1 + e2."""
    targets = torch.eye(2)[None]
    predictions = torch.tensor([[[2.0, 0.0], [1.0, 1.0]]])
    e = torch.e
    scores = torch.tensor([[2.0, 1.0], [0.0, 1.0]])  # targets x predictions
    over_predictions = (scores[0].logsumexp(0) - 2 + scores[1].logsumexp(0) - 1) / 2
    over_targets = (scores[:, 0].logsumexp(0) - 2 + scores[:, 1].logsumexp(0) - 1) / 2
    assert info_nce(targets, predictions, "predictions")[0].item() == pytest.approx(over_predictions.item())
    assert info_nce(targets, predictions, "targets")[0].item() == pytest.approx(over_targets.item())
    assert over_targets.item() != pytest.approx(over_predictions.item(), abs=0.05)
    perfect = info_nce(targets * e**3, targets * e**3, "targets")
    assert perfect[1].item() == 1.0
    assert perfect[0].item() < 1e-6


def test_wrong_settings(catalog: Catalog) -> None:
    for options, message in (
        ({"masked_share": 1.0}, "objective.options.masked_share must lie between 0 and 1, not 1.0"),
        ({"cluster_sides": (4, 3)}, "cluster_sides"),
        (
            {"generative_weight": 0.0, "discriminative_weight": 0.0},
            "discriminative_weight and generative_weight must not be negative or both 0",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            MaskedPatchConfig(**options)  # type: ignore[arg-type]
    encoder = Encoder(EncoderConfig(dim=32, depth=1, num_heads=4, stride_frames=10), [torch.nn.Identity()])
    with pytest.raises(ConfigError, match="requires patches that do not overlap"):
        build(catalog, encoder)
    objective = build(catalog, small_encoder())
    with pytest.raises(ConfigError, match="fewer than 3 patches"):
        objective.loss(small_encoder(), torch.randn(1, 16, 16), torch.Generator())
