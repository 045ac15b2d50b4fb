"""Altered frames: what is altered, how often, and what is asked of the encoder."""

import pytest
import torch
from asda_plugins.mixer_differential import asda_mixers as differential
from asda_plugins.mixer_standard import asda_mixers as standard
from asda_plugins.objective_altered_frames import (
    AlteredFrames,
    AlteredFramesConfig,
    asda_objectives,
    draw_alteration,
    draw_bands,
    draw_spans,
)
from torch import Tensor, nn

from asda_core.config import ClassTokenConfig, EncoderConfig
from asda_core.config_io import parse
from asda_core.contracts import MixerContext, MixerSpec, ObjectiveContext
from asda_core.errors import ConfigError
from asda_core.layout import TokenLayout
from asda_core.model.encoder import Encoder, EncoderOutput
from asda_core.model.patches import patch_values
from asda_core.testing import check_objective, seeded

(SPEC,) = asda_objectives()
(STANDARD,), (DIFFERENTIAL,) = standard(), differential()
RELEASED = parse(AlteredFramesConfig, dict(SPEC.released))
FRAME = {"patch_frames": 1, "patch_bins": 16}
BLOCK = {"patch_frames": 4, "patch_bins": 8}
OVERLAPPING = {"patch_frames": 4, "patch_bins": 8, "stride_frames": 3, "stride_bins": 5}
PATCHES = pytest.mark.parametrize("patch", [FRAME, BLOCK, OVERLAPPING], ids=["frame", "block", "overlapping"])
MIXERS = pytest.mark.parametrize("mixer", [STANDARD, DIFFERENTIAL], ids=["standard", "differential"])
CLIPS = 4_000
"""Draws over which shares are counted."""


def small(mixer: MixerSpec = STANDARD, **patch: int) -> Encoder:
    """As the MFCC-gram Transformer: pre-norm, no class token."""
    config = EncoderConfig(
        dim=32, depth=2, num_heads=4, norm="pre", input_norm=False, final_norm=True,
        class_token=ClassTokenConfig(position="none"), **patch,
    )  # fmt: skip
    return Encoder(config, [mixer.build(mixer.config(), MixerContext(32, 4, layer, 2)) for layer in range(2)])


class Copying(Encoder):
    """Its tokens are the patches that it sees."""

    def __init__(self, **patch: int) -> None:
        dim = patch["patch_frames"] * patch["patch_bins"]
        super().__init__(EncoderConfig(dim=dim, depth=1, num_heads=1, **patch), [nn.Identity()])

    def embed(self, features: Tensor) -> tuple[Tensor, TokenLayout]:
        return patch_values(features, self.config), TokenLayout.full(
            len(features), self.config.grid(*features.shape[1:])
        )

    def encode(self, tokens: Tensor, layout: TokenLayout, layers: bool = True) -> EncoderOutput:
        return EncoderOutput(tokens.mean(1), tokens, layout, ())


def copying(**patch: int) -> tuple[Copying, AlteredFrames]:
    """An encoder and a head that copy what they see."""
    encoder = Copying(**patch)
    objective = AlteredFrames(AlteredFramesConfig(), encoder)
    nn.init.eye_(objective.head.weight)
    nn.init.zeros_(objective.head.bias)
    return encoder, objective


def seed(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def runs(row: Tensor) -> int:
    """How many stretches of True there are."""
    return int((torch.nn.functional.pad(row.int(), (1, 0)).diff() == 1).sum())


@MIXERS
def test_contract(mixer: MixerSpec) -> None:
    check_objective(SPEC, mixer)
    check_objective(SPEC, mixer, **SPEC.released)
    check_objective(SPEC, mixer, time_share=0.5, channel_share=0.5, noise_probability=1.0)


@PATCHES
@MIXERS
@seeded
def test_learns_with_any_patches(patch: dict[str, int], mixer: MixerSpec) -> None:
    """One batch, altered anew in every step, is learnt; at the end the altered places are guessed as well."""
    encoder = small(mixer, **patch)
    objective = AlteredFrames(AlteredFramesConfig(), encoder)
    features = torch.randn(2, 16, 45).cumsum(dim=2) / 5
    trained = [*encoder.parameters(), *objective.parameters()]
    optimizer = torch.optim.AdamW(trained, lr=3e-3)
    found = []
    for step in range(150):
        losses = objective.loss(encoder, features, seed(step))
        optimizer.zero_grad()
        losses.total.backward()
        assert all(parameter.grad is not None for parameter in trained)
        optimizer.step()
        objective.after_step(encoder, step + 1)
        found.append((float(losses.total.detach()), float(losses.parts["altered"])))
    first, last = torch.tensor(found[:10]).mean(0), torch.tensor(found[-10:]).mean(0)
    assert (last < 0.6 * first).all(), f"{first.tolist()} -> {last.tolist()}"


@PATCHES
def test_targets_are_the_originals(patch: dict[str, int]) -> None:
    encoder, objective = copying(**patch)
    features = torch.randn(3, 16, 45, generator=seed())
    assert objective.loss_for(encoder, features, features).total == 0
    altered = draw_alteration((3, 16, 45), AlteredFramesConfig(), seed(3)).apply(features)
    losses = objective.loss_for(encoder, features, altered)
    difference = patch_values((features - altered).abs(), encoder.config)
    assert losses.total.detach() == pytest.approx(float(difference.mean()), rel=1e-5)
    assert losses.parts["unaltered"] == 0
    assert losses.parts["altered"] == pytest.approx(float(difference[difference > 0].mean()), rel=1e-5)
    assert losses.parts["altered_share"] == pytest.approx(float((difference > 0).float().mean()))
    share = losses.parts["altered_share"]
    assert losses.total.detach() == pytest.approx(float(share * losses.parts["altered"]), rel=1e-5)


def test_a_head_that_says_one_number() -> None:
    """L1 over all values of all tokens, of the features and not of what the encoder saw."""
    encoder = small(patch_frames=1, patch_bins=16)
    objective = AlteredFrames(AlteredFramesConfig(), encoder)
    nn.init.zeros_(objective.head.weight)
    nn.init.constant_(objective.head.bias, 2.0)
    features = torch.randn(3, 16, 45, generator=seed())
    losses = objective.loss(encoder, features, seed())
    assert losses.total.detach() == pytest.approx(float((features - 2).abs().mean()), rel=1e-5)


def test_patches_are_those_of_the_embedding() -> None:
    """A linear map of the cut patches is the convolution of the embedding, frames and bins in the same order."""
    for patch in (FRAME, BLOCK, OVERLAPPING):
        encoder = small(**patch)
        features = torch.randn(2, 16, 45, generator=seed())
        tokens, layout = encoder.embed(features)
        projection = encoder.patches.projection
        patches = patch_values(features, encoder.config)
        kernel = projection.weight.transpose(2, 3).flatten(1)  # bin by bin, as the patches
        mapped = patches @ kernel.T + projection.bias + encoder.patches.positions(layout.grid)
        assert torch.allclose(mapped, tokens, atol=1e-5)
        assert objective_width(encoder) == patches.shape[2]


def objective_width(encoder: Encoder) -> int:
    return AlteredFrames(AlteredFramesConfig(), encoder).head.out_features


def test_share_of_frames_and_their_fates() -> None:
    """Of 319 frames 7 spans of 7 that may overlap; 80 % of the clips zero, 10 % replaced, 10 % left."""
    source, zero = draw_spans(CLIPS, 319, AlteredFramesConfig(), seed())
    own = torch.arange(319)
    zeroed, replaced = zero.any(dim=1), (source != own).any(dim=1)
    assert not (zeroed & replaced).any()
    assert zeroed.float().mean() == pytest.approx(0.8, abs=0.02)
    assert replaced.float().mean() == pytest.approx(0.1, abs=0.02)
    expected = 1 - (1 - 7 / 313) ** 7  # a frame is in none of the spans; a little less at the ends
    assert zero[zeroed].float().mean() == pytest.approx(expected, abs=0.005)
    counts = zero[zeroed].sum(dim=1)
    assert counts.max() == 49
    assert counts.min() >= 7
    assert all(runs(row) <= 7 for row in zero[:200])
    everywhere = zero[zeroed].float().mean(dim=0)
    assert everywhere[[0, 318]] == pytest.approx(torch.tensor([7 / 313] * 2), abs=0.01)
    assert everywhere[6:-6].min() > 0.1


def test_time_share_is_kept() -> None:
    for share, span in ((0.05, 7), (0.3, 7), (0.15, 1), (0.5, 20)):
        config = AlteredFramesConfig(time_share=share, span_frames=span)
        _, zero = draw_spans(CLIPS, 319, config, seed())
        chosen = zero[zero.any(dim=1)]
        assert chosen.sum(dim=1).max() <= round(319 * share / span) * span
        if span == 1:
            assert (chosen.sum(dim=1) == 48).all()  # single frames cannot overlap
        else:
            assert 0.75 * share < chosen.float().mean() <= 1.02 * share


def test_replaced_frames_are_whole_spans_of_the_same_clip() -> None:
    """One span: 7 frames that follow each other stand where 7 others were; every other frame is its own."""
    config = AlteredFramesConfig(time_share=0.07)
    source, zero = draw_spans(CLIPS, 100, config, seed())
    own = torch.arange(100)
    replaced = source[(source != own).any(dim=1)]
    assert len(replaced) > 300
    for row in replaced:
        places = (row != own).nonzero().flatten()
        assert places.tolist() == list(range(int(places[0]), int(places[0]) + 7))
        assert (row[places].diff() == 1).all()
    assert (source[zero.any(dim=1)] == own).all()
    features = torch.randn(CLIPS, 2, 100, generator=seed())
    altered = draw_alteration((CLIPS, 2, 100), AlteredFramesConfig(time_share=0.07, channel_share=0.0), seed()).apply(
        features
    )
    frames = features.mT.reshape(-1, 2)
    for clip in range(300):
        moved = (altered[clip] != features[clip]).any(dim=0) & (altered[clip] != 0).any(dim=0)
        for frame in moved.nonzero().flatten().tolist():
            assert (altered[clip, :, frame] == frames[clip * 100 : clip * 100 + 100]).all(dim=1).any()


def test_overlapping_replaced_spans_copy_originals() -> None:
    source, _ = draw_spans(CLIPS, 60, AlteredFramesConfig(time_share=0.9), seed())
    assert source.min() >= 0
    assert source.max() < 60


@pytest.mark.parametrize(("bins", "share", "widest"), [(128, 0.2, 26), (16, 0.2, 3), (16, 1.0, 16), (3, 0.1, 0)])
def test_bands(bins: int, share: float, widest: int) -> None:
    """One whole band per clip; all widths are as likely, and every bin is reached."""
    zero = draw_bands(CLIPS, bins, share, seed())
    assert max(runs(row) for row in zero) == min(widest, 1)
    shares = zero.sum(dim=1).bincount(minlength=widest + 1) / CLIPS
    assert len(shares) == widest + 1
    assert shares == pytest.approx(torch.full_like(shares, 1 / (widest + 1)), abs=0.03)
    if widest:
        assert zero.any(dim=0).all()


def test_bands_go_through_all_frames() -> None:
    features = torch.randn(50, 16, 20, generator=seed())
    config = AlteredFramesConfig(time_share=0.0, channel_share=0.5)
    zero = draw_alteration((50, 16, 20), config, seed()).apply(features) == 0
    assert (zero.any(dim=2) == zero.all(dim=2)).all()
    assert zero.any()


def test_released_options_are_noise_alone() -> None:
    features = torch.randn(4, 16, 319, generator=seed())
    changed = []
    for number in range(500):
        altered = draw_alteration((4, 16, 319), RELEASED, seed(number)).apply(features)
        changed.append(altered - features)
    noisy = [difference for difference in changed if difference.any()]
    assert 30 <= len(noisy) <= 75  # of 500, 50 expected, spread 6.7
    for difference in noisy:
        assert difference.std() == pytest.approx(0.2, abs=0.01)
        assert difference.mean() == pytest.approx(0.0, abs=0.01)


def test_noise_comes_last() -> None:
    """Zeroed places are noisy, too, and always the same noise."""
    config = AlteredFramesConfig(time_share=0.3, noise_probability=1.0, noise_std=0.5)
    without = AlteredFramesConfig(time_share=0.3)
    features = torch.randn(4, 16, 100, generator=seed())
    noisy, quiet = (draw_alteration((4, 16, 100), one, seed(1)).apply(features) for one in (config, without))
    assert (noisy - quiet).std() == pytest.approx(0.5, abs=0.02)
    assert ((noisy - quiet)[quiet == 0] != 0).all()


def test_nothing_altered_counts_as_zero() -> None:
    encoder, objective = copying(**FRAME)
    features = torch.randn(2, 16, 30, generator=seed())
    parts = objective.loss_for(encoder, features, features).parts
    assert {name: float(value) for name, value in parts.items()} == {"altered": 0, "unaltered": 0, "altered_share": 0}
    parts = objective.loss_for(encoder, features, features + 1).parts
    assert {name: round(float(value), 4) for name, value in parts.items()} == {
        "altered": 1, "unaltered": 0, "altered_share": 1
    }  # fmt: skip


def test_only_the_generator_is_drawn_from() -> None:
    encoder = small(**FRAME)
    objective = AlteredFrames(AlteredFramesConfig(noise_probability=0.5), encoder)
    features = torch.randn(2, 16, 60, generator=seed())
    before = torch.get_rng_state()
    totals = [float(objective.loss(encoder, features, seed(number)).total.detach()) for number in (1, 2, 1)]
    assert totals[0] == totals[2] != totals[1]
    assert torch.equal(before, torch.get_rng_state())


def test_the_features_stay() -> None:
    features = torch.randn(4, 16, 60, generator=seed())
    kept = features.clone()
    draw_alteration((4, 16, 60), AlteredFramesConfig(noise_probability=1.0), seed()).apply(features)
    assert torch.equal(features, kept)


@pytest.mark.parametrize("frames", [1, 3, 7, 23, 24])
def test_short_clips(frames: int) -> None:
    """Fewer than half a span is none; a span is never longer than the clip."""
    _, zero = draw_spans(200, frames, AlteredFramesConfig(), seed())
    assert zero.any() == (frames == 24)
    _, zero = draw_spans(200, frames, AlteredFramesConfig(time_share=1.0), seed())
    assert zero.any()
    encoder = small(**FRAME)
    objective = AlteredFrames(AlteredFramesConfig(time_share=0.6), encoder)
    losses = objective.loss(encoder, torch.randn(3, 16, frames, generator=seed()), seed())
    assert losses.total.isfinite()


def test_clips_without_a_patch() -> None:
    encoder = small(**BLOCK)
    with pytest.raises(ConfigError, match="hold no patch"):
        AlteredFrames(AlteredFramesConfig(), encoder).loss(encoder, torch.zeros(2, 16, 3), seed())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"time_share": -0.1}, "time_share must lie between 0 and 1, not -0.1"),
        ({"channel_share": 1.5}, "channel_share must lie between 0 and 1, not 1.5"),
        ({"noise_probability": 2.0}, "noise_probability must lie between 0 and 1"),
        ({"noise_probability": float("nan")}, "noise_probability must lie between 0 and 1"),
        ({"span_frames": 0}, "span_frames must be at least 1, not 0"),
        ({"noise_std": -1.0}, "noise_std must be finite and not negative"),
        ({"noise_std": float("inf")}, "noise_std must be finite and not negative"),
        (
            {"time_share": 0.0, "channel_share": 0.0},
            "time_share, channel_share and noise_probability must not all be 0",
        ),
    ],
)
def test_wrong_settings(options: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=rf"objective\.options[. ]{message}"):
        AlteredFramesConfig(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("channel_share", [0.0, 0.003])
def test_what_would_alter_nothing_is_refused(channel_share: float) -> None:
    """Shares are rounded to whole spans and bins, of which short clips may hold none."""
    encoder, features = small(**BLOCK), torch.zeros(2, 16, 45)

    def loss(**more: float) -> None:
        config = AlteredFramesConfig(time_share=0.01, channel_share=channel_share, **more)
        SPEC.build(config, ObjectiveContext(encoder)).loss(encoder, features, torch.Generator().manual_seed(0))

    with pytest.raises(ConfigError, match=r"clips of 45 frames and 16 bins .* alter nothing"):
        loss()
    loss(noise_probability=0.5)
