"""Parity of the modules with the released code: every array of the golden files, to 1e-4 (gradients 1e-3)."""

from dataclasses import replace

import pytest
import torch

from asda_core.catalog import Catalog
from asda_core.config_io import parse
from asda_core.contracts import MixerContext
from asda_core.model.block import Block
from asda_core.model.patches import sine_cosine_positions
from asda_core.pretrain.decoder import ConvolutionalDecoder, DecoderConfig
from asda_core.pretrain.latent_regression import LatentRegressionConfig, channel_std, squared_error
from asda_core.pretrain.masking import MaskConfig, block_masks, num_kept
from asda_core.pretrain.teacher import TARGET_NORM_EPS, make_targets
from tests.released import golden
from tests.released.golden import CASES, TRAINING, Arrays, assert_close, layout_of


def mixer_of(catalog: Catalog, case: str) -> torch.nn.Module:
    config = golden.architecture(f"model_{case}").encoder
    spec = catalog.find("mixer", CASES[case]).spec
    mixer: torch.nn.Module = spec.build(spec.config(), MixerContext(config.dim, config.num_heads, 0, 1))
    return mixer


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("by_formula", [False, True])
def test_attention(catalog: Catalog, case: str, by_formula: bool) -> None:
    arrays = golden.load(f"attention_{case}.npz")
    mixer = mixer_of(catalog, case)
    mixer.load_state_dict(arrays.below("param/"))
    if case == "asda":
        mixer.by_formula = by_formula
    elif by_formula:
        return  # standard attention has one way only
    tokens = arrays["x"].requires_grad_()
    for suffix, padding in (("", None), ("_padded", arrays["padding_mask"])):
        layout = layout_of(tokens, padding)
        assert_close(mixer(tokens, layout), arrays[f"y{suffix}"])
        for number, softmax in enumerate(mixer.maps(tokens, layout), 1):
            assert_close(softmax, arrays[f"softmax{number}{suffix}"])
    (mixer(tokens, layout_of(tokens)) * arrays["cotangent"]).sum().backward()
    assert_close(tokens.grad, arrays["grad/x"], TRAINING)
    wanted = {name: value for name, value in arrays.below("grad/").items() if name != "x"}
    compared = golden.gradients(mixer)
    if wanted:  # of both modules in the golden set, but a set may leave those of standard attention out
        assert compared.keys() >= wanted.keys()
    for name, gradient in wanted.items():
        assert_close(compared[name], gradient, TRAINING)
    arrays.assert_all_compared()


@pytest.mark.parametrize("case", CASES)
def test_block(catalog: Catalog, case: str) -> None:
    arrays = golden.load(f"block_{case}.npz")
    state = {golden.block_name(name): value for name, value in arrays.below("param/").items()}
    config = replace(golden.architecture(f"model_{case}").encoder, depth=1)
    block = Block(config, mixer_of(catalog, case))
    block.load_state_dict(state)
    for suffix, padding in (("", None), ("_padded", arrays["padding_mask"])):
        output, layer = block(arrays["x"], layout_of(arrays["x"], padding))
        assert_close(output, arrays[f"y{suffix}"])
        assert_close(layer, arrays[f"layer_result{suffix}"])
    as_released = Block(replace(config, norm="pre", pre_norm_residual=False), mixer_of(catalog, case))
    as_released.load_state_dict(state)
    output, layer = as_released(arrays["x"], layout_of(arrays["x"]))
    assert_close(output, arrays["y_prenorm_quirk"])
    assert_close(layer, arrays["layer_result_prenorm_quirk"])
    arrays.assert_all_compared()


def test_decoder() -> None:
    arrays = golden.load("decoder.npz")
    sets = sorted({key.split("/")[0] for key in arrays})
    assert "main" in sets
    for which in sets:
        dim, groups, kernel, layers, times, bands = arrays[f"{which}/cfg"].tolist()
        decoder = ConvolutionalDecoder(DecoderConfig(dim, layers, kernel, groups), dim=arrays[f"{which}/x"].shape[-1])
        state = arrays.below(f"{which}/param/")
        decoder.load_state_dict({golden.decoder_name(key): value for key, value in state.items()})
        assert_close(decoder(arrays[f"{which}/x"], (times, bands)), arrays[f"{which}/y"])
    arrays.assert_all_compared()


def test_targets_and_loss() -> None:
    arrays = golden.load("targets.npz")
    layers = list(arrays["layer_results"])
    target = make_targets(layers)
    assert_close(target, arrays["target_top4"])
    assert_close(make_targets(layers, 2), arrays["target_top2"])
    assert_close(target.mean(1), arrays["cls_target_top4"])
    assert_close(channel_std(target), arrays["compute_var_of_target_top4"])
    before = arrays["target_top4_no_final_layernorm"]
    assert_close(torch.nn.functional.layer_norm(before, before.shape[-1:], eps=TARGET_NORM_EPS), target)
    assert_close(squared_error(arrays["loss_pred"], arrays["loss_target"]), arrays["loss_elementwise"].sum(-1))
    arrays.assert_all_compared()


def test_positions() -> None:
    arrays = golden.load("posembed.npz")
    rows, dim = arrays["small"].shape
    assert_close(sine_cosine_positions((rows // 8, 8), dim), arrays["small"])
    table = sine_cosine_positions((768, 8), arrays["base_768"].shape[1])
    assert_close(table[arrays["base_rows"]], arrays["base_768"])
    assert_close(table[: len(arrays["base_rowsum"])].sum(1), arrays["base_rowsum"])
    arrays.assert_all_compared()


def mask_settings() -> MaskConfig:
    settings: LatentRegressionConfig = parse(LatentRegressionConfig, golden.run_of("asda").objective.options)
    return settings.mask


def test_masks(generator: torch.Generator) -> None:
    """As many are kept; each patch as often, and its neighbour in time too (the bits depend on the order of draws).

    The large grids have the published settings, or those of the golden model, as the small one has.
    """
    arrays, own = golden.load("masks.npz"), mask_settings()
    large = MaskConfig() if num_kept(64 * 8, MaskConfig()) == int(arrays["h64w8_kept"]) else own
    for name, grid, settings in (("h64w8", (64, 8), large), ("h32w8", (32, 8), large), ("small", small_grid(), own)):
        drawn = block_masks(grid, 16, settings, generator)
        kept = int(arrays[f"{name}_kept"])
        assert num_kept(grid[0] * grid[1], settings) == kept
        assert drawn.shape == arrays[name].shape
        for hidden in (drawn, arrays[name]):
            assert (hidden.shape[1] - hidden.sum(1) == kept).all()
    _compare_statistics(arrays, large, generator)
    arrays.assert_all_compared()


def small_grid() -> tuple[int, int]:
    arrays = golden.load("model_asda.npz")
    return arrays["source"].shape[2] // 16, arrays["source"].shape[3] // 16


def _compare_statistics(arrays: Arrays, settings: MaskConfig, generator: torch.Generator) -> None:
    number = int(arrays["n_samples"])
    kept = ~torch.cat([block_masks((64, 8), 2000, settings, generator) for _ in range(max(1, number // 2000))])
    kept = kept.view(-1, 64, 8).float()
    share = settings.hidden_share
    spread = (
        share * (1 - share) * (1 / len(kept) + 1 / number)
    ) ** 0.5  # of the difference of two estimated probabilities
    assert (kept.mean(0) - arrays["keep_prob_h64w8"]).abs().max() < 5 * spread
    neighbour = (kept[:, 1:] * kept[:, :-1]).sum() / kept[:, :-1].sum()
    assert abs(float(neighbour) - float(arrays["neigh_keep_h64w8"])) < 0.01
