"""Parity with SSAST, SSAMBA and Vision Mamba: every array of the golden files, to 1e-4 (gradients 1e-3).

Another set of the same make is tried with `ASDA_GOLDEN_SSM=FOLDER pytest tests/released`.
"""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from asda_plugins.mixer_mamba.scan import chunked_scan, sequential_scan
from asda_plugins.objective_masked_patch import info_nce
from torch import Tensor, nn

from asda_core.assemble import Parts, build, build_encoder, build_parts
from asda_core.catalog import Catalog
from asda_core.checkpoint import Checkpoint, load_classifier, load_encoder, load_strict
from asda_core.config import ClassTokenConfig, EncoderConfig, PluginChoice, PositionConfig
from asda_core.contracts import MixerContext
from asda_core.layout import TokenLayout, gather_tokens
from asda_core.model.block import Block
from asda_core.model.patches import patch_values
from asda_core.official.reading import read_model
from tests.released.golden import GOLDEN, TRAINING, Arrays, assert_close

SSM = Path(os.environ.get("ASDA_GOLDEN_SSM", GOLDEN / "ssm"))
SSM = SSM if SSM.is_dir() else Path(__file__).parents[1] / "golden" / "ssm"
MODELS = ("ssast_patch", "ssast_frame", "ssamba_tiny")
SCANS = {"sequential": sequential_scan, "chunked": chunked_scan}


def load(name: str) -> Arrays:
    return Arrays(SSM / f"{name}.npz")


def softplus(values: Tensor) -> Tensor:
    return nn.functional.softplus(values)


def time_first(values: Tensor) -> Tensor:
    return values.permute(2, 0, 1)


@pytest.mark.parametrize("name", SCANS)
def test_selective_scan(name: str) -> None:
    arrays = load("selective_scan")
    leaves = {
        key: arrays[key].clone().requires_grad_() for key in ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
    }
    u, delta, a, b, c, d, z, bias = leaves.values()
    rows = len(u)

    def scan(u: Tensor, step: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        rates = a.t().expand(len(u), -1, -1) if a.ndim == 2 else a
        return SCANS[name](time_first(u), time_first(step), rates, time_first(b), time_first(c)).permute(1, 2, 0)

    def gated(u: Tensor, step: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        return (scan(u, step, a, b, c) + d[:, None] * u) * nn.functional.silu(z)

    step = softplus(delta + bias[:, None])
    given = gated(u, step, a, b, c)
    assert_close(given, arrays["y"])
    (given * arrays["grad_out"]).sum().backward()
    for key, leaf in leaves.items():
        assert leaf.grad is not None
        assert_close(leaf.grad, arrays[f"grad_{key}"], TRAINING)
    with torch.no_grad():
        plain = scan(u, step, a, b, c)
        assert_close(plain, arrays["y_noskip_nogate"])
        assert_close(plain + d[:, None] * u, arrays["y_nogate"])
        assert_close(gated(u, delta.abs(), a, b, c), arrays["y_nosoftplus_nobias"])
        flipped = [each.flip(-1) for each in (u, step)], [each.flip(-1) for each in (b, c)]
        backward = scan(*flipped[0], a, *flipped[1]).flip(-1) + d[:, None] * u
        assert_close(backward * nn.functional.silu(z), arrays["y_reverse"])
        large = scan(u, softplus(arrays["delta_large"] + bias[:, None]), arrays["A_large"], b, c)
        assert_close((large + d[:, None] * u) * nn.functional.silu(z), arrays["y_large_delta"])
        groups = arrays["B_grouped"].shape[1]  # channels of a group share B and C: a group is a row of its own

        def split(values: Tensor) -> Tensor:
            return values.unflatten(1, (groups, -1)).flatten(0, 1)

        rates = a.unflatten(0, (groups, -1)).transpose(1, 2).repeat(rows, 1, 1)
        entering, reading = (arrays[key].flatten(0, 1) for key in ("B_grouped", "C_grouped"))
        grouped = scan(split(u), split(step), rates, entering, reading).unflatten(0, (rows, groups)).flatten(1, 2)
        assert_close((grouped + d[:, None] * u) * nn.functional.silu(z), arrays["y_grouped"])
        # the last state, read through states one at a time
        states = b.shape[1]
        one = [torch.zeros_like(c) for _ in range(states)]
        for number, reader in enumerate(one):
            reader[:, number] = 1
        last = torch.stack([scan(u, step, a, b, reader)[:, :, -1] for reader in one], dim=2)
        assert_close(last, arrays["last_state"])
    arrays.assert_all_compared()


def mamba(catalog: Catalog, dim: int, layers: int = 1, **options: Any) -> nn.Module:
    module: nn.Module = build(
        catalog, "mixer", PluginChoice("mamba", options), MixerContext(dim, 1, 0, layers), "mixer"
    )
    return module


BRANCH = {"conv": "conv1d", "to_states": "x_proj", "to_steps": "dt_proj"}


def released_mamba(name: str) -> str:
    """Our name of a parameter of the mixer -> the released one."""
    if not name.startswith("branches."):
        return "A_b_log" if name == "backward_log_decay" else name
    _, branch, rest = name.split(".", 2)
    suffix = "_b" if branch == "1" else ""
    if rest in ("log_decay", "skip"):
        return f"A{suffix}_log" if rest == "log_decay" else f"D{suffix}"
    module, _, kind = rest.partition(".")
    return f"{BRANCH[module]}{suffix}.{kind}"


def load_mamba(mixer: nn.Module, weights: dict[str, Tensor]) -> None:
    assert {released_mamba(name) for name in mixer.state_dict()} == weights.keys()
    mixer.load_state_dict({name: weights[released_mamba(name)] for name in mixer.state_dict()})


@pytest.mark.parametrize("scan", SCANS)
def test_bidirectional_mixer(catalog: Catalog, scan: str) -> None:
    arrays = load("bimamba_mixer")
    dim, states, taps, expand, rank = arrays["cfg_dmodel_dstate_dconv_expand_dtrank"].tolist()
    shape = {"states": states, "conv_width": taps, "expand": expand, "step_rank": rank, "scan": scan}
    for case, options in {
        "none": {"version": "forward"},
        "v1": {"version": "v1"},
        "v2": {"version": "v2", "halve": False},
        "v2div": {"version": "v2"},
    }.items():
        mixer = mamba(catalog, dim, **shape, **options)
        load_mamba(mixer, arrays.below(f"{'v2' if case == 'v2div' else case}/w/"))
        tokens = arrays["x"].clone().requires_grad_()
        mixed = mixer(tokens, TokenLayout.full(len(tokens), (tokens.shape[1], 1)))
        assert_close(mixed, arrays[f"{case}/y"])
        (mixed * arrays[f"{case}/grad_out"]).sum().backward()
        assert tokens.grad is not None
        assert_close(tokens.grad, arrays[f"{case}/grad_x"], TRAINING)
        ours = {released_mamba(name): parameter.grad for name, parameter in mixer.named_parameters()}
        wanted = arrays.below(f"{case}/grad/")
        assert wanted
        for name, gradient in wanted.items():
            assert_close(ours[name], gradient, TRAINING)
    arrays.assert_all_compared()


@pytest.mark.parametrize("case", ["ln", "rms_fused_res32"])
def test_mamba_block(catalog: Catalog, case: str) -> None:
    """The release carries (hidden, residual); ours carries their sum."""
    arrays = load("mamba_block")
    hidden, residual = arrays["hidden_states"], arrays["residual"]
    weights = arrays.below(f"{case}/w/")
    mixer_weights = {name.removeprefix("mixer."): value for name, value in weights.items() if "mixer." in name}
    dim = hidden.shape[2]
    states, rank = mixer_weights["A_log"].shape[1], mixer_weights["dt_proj.weight"].shape[1]
    expand = len(mixer_weights["A_log"]) // dim
    taps = mixer_weights["conv1d.weight"].shape[2]
    config = EncoderConfig(
        dim=dim,
        depth=1,
        num_heads=1,
        mlp_ratio=0.0,
        norm="pre",
        norm_eps=1e-5,
        norm_type="layer" if case == "ln" else "rms",
    )
    block = Block(config, mamba(catalog, dim, states=states, step_rank=rank, expand=expand, conv_width=taps))
    load_mamba(block.mixer, mixer_weights)
    block.norm1.load_state_dict({k.removeprefix("norm."): v for k, v in weights.items() if k.startswith("norm.")})
    layout = TokenLayout.full(len(hidden), (hidden.shape[1], 1))
    with torch.no_grad():
        first, mixed = block(hidden, layout)
        assert_close(arrays[f"{case}/first_residual"], hidden)
        assert_close(mixed, arrays[f"{case}/first_hidden"])
        assert_close(first, hidden + arrays[f"{case}/first_hidden"])
        stream = hidden + residual
        after, mixed = block(stream, layout)
        assert_close(arrays[f"{case}/residual_out"], stream)
        assert_close(block.norm1(stream), arrays[f"{case}/normed"])
        assert_close(mixed, arrays[f"{case}/hidden"])
        assert_close(after, arrays[f"{case}/hidden"] + arrays[f"{case}/residual_out"])
    other = "rms_fused_res32" if case == "ln" else "ln"
    arrays.below(f"{other}/")  # compared in the other case
    arrays.assert_all_compared()


def write_released(
    arrays: Arrays, folder: Path, name: str, more: dict[str, Tensor] | None = None, **stated: Any
) -> Path:
    """The weights of a golden model as the releases keep them: a parallel model's state, pickled."""
    weights = arrays.below("w/")
    if more is not None:
        weights = {
            key: value for key, value in weights.items() if "predlayer" not in key and key != "mask_embed"
        } | more
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({f"module.{key}": value for key, value in weights.items()}, folder / f"{name}.pth")
    if "cfg_embed_depth_heads_fshape_tshape_fdim_tdim" in arrays:
        stated["num_heads"] = arrays["cfg_embed_depth_heads_fshape_tshape_fdim_tdim"].tolist()[2]
    (folder / "config.json").write_text(json.dumps(stated))
    return folder / f"{name}.pth"


def parts_of(catalog: Catalog, read: Checkpoint) -> Parts:
    parts = build_parts(catalog, read.config)
    load_strict(parts.encoder, read.tensors, "encoder.", read.file)
    load_strict(parts.objective, read.tensors, "objective.", read.file)
    return parts


def raster(ids: Tensor, grid: tuple[int, int]) -> Tensor:
    """Released numbers, band by band -> our columns, time step by time step."""
    times, bands = grid
    return ids.long() % times * bands + ids.long() // times


def by_band(values: Tensor, grid: tuple[int, int]) -> Tensor:
    """Our tokens (B, N, D), time step by time step -> in the released order."""
    return values.unflatten(1, grid).transpose(1, 2).flatten(1, 2)


def parts_bins(read: Checkpoint) -> int:
    """Bins of the front end that a checkpoint asks for."""
    return int(read.config.front_end.options.get("num_bins", 128))


def with_class(encoded: Tensor, class_tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    return torch.cat([class_tokens.expand(len(encoded), -1, -1), by_band(encoded, grid)], dim=1)


@pytest.mark.parametrize("name", MODELS)
def test_model(catalog: Catalog, name: str, tmp_path: Path) -> None:
    arrays = load(name)
    read = read_model(write_released(arrays, tmp_path, name))
    weights = arrays.below("w/")
    assert f": {len(weights) - len(UNUSED & weights.keys())} of " in read.report
    assert parts_bins(read) == arrays["x"].shape[2]
    parts = parts_of(catalog, read)
    encoder, objective = parts.encoder.eval(), parts.objective
    features = arrays["x"].transpose(1, 2)
    grid = encoder.config.grid(*features.shape[1:])
    assert grid == encoder.config.positions.grid
    ids = raster(arrays["mask_index"], grid)
    losses = objective.loss_for(encoder, features, ids, ids)
    assert_close(losses.total, arrays["loss_joint_lambda10"])
    assert_close(losses.parts["discriminative"], arrays["nce"])
    assert_close(losses.parts["generative"], arrays["mse"])
    assert_close(losses.parts["accuracy"], arrays["acc"])
    two = objective.loss_for(encoder, features, ids, ids.clone())  # two passes, as released
    assert_close(two.total, arrays["loss_joint_lambda10"])
    losses.total.backward()
    _compare_gradients(arrays, encoder, objective, grid)
    with torch.no_grad():
        (_compare_ssast if name.startswith("ssast") else _compare_ssamba)(arrays, encoder, objective, features, ids)
    _compare_finetuned(catalog, arrays, name, tmp_path)
    _compare_configuration(arrays, encoder)
    arrays.assert_all_compared()


UNUSED = {"v.head.weight", "v.head.bias", "v.head_dist.weight", "v.head_dist.bias", "p_input_fdim", "p_input_tdim"}


def _compare_configuration(arrays: Arrays, encoder: nn.Module) -> None:
    config = encoder.config
    frames = (config.positions.grid[0] - 1) * config.step_frames + config.patch_frames
    bins = (config.positions.grid[1] - 1) * config.step_bins + config.patch_bins
    if "cfg_embed_depth_tdim" in arrays:
        dim, depth, stored = arrays["cfg_embed_depth_tdim"].tolist()
        assert (config.dim, config.depth) == (dim, depth)
    else:
        dim, depth, heads, *patch, stored_bins, stored = arrays[
            "cfg_embed_depth_heads_fshape_tshape_fdim_tdim"
        ].tolist()
        assert (config.dim, config.depth, config.num_heads) == (dim, depth, heads)
        assert [config.patch_bins, config.patch_frames] == patch
        assert bins <= stored_bins < bins + config.patch_bins
    assert frames <= stored < frames + config.patch_frames


def _compare_gradients(arrays: Arrays, encoder: nn.Module, objective: nn.Module, grid: tuple[int, int]) -> None:
    blocks = {"attn.qkv": "mixer.qkv"}
    for name, wanted in arrays.below("grad/").items():
        if name == "mask_embed":
            given = objective.mask_token.grad
        elif name == "v.pos_embed":
            given = with_class(encoder.patches.table.grad, encoder.class_token.grad, grid)
        elif name == "v.patch_embed.proj.weight":
            given = encoder.patches.projection.weight.grad.transpose(2, 3)
        elif "predlayer" in name:
            head = objective.predict if name.startswith("c") else objective.paint
            given = head.get_parameter(name.split(".", 1)[1]).grad
        elif name == "v.norm_f.weight":
            given = encoder.final_norm.weight.grad
        elif ".blocks." in name:
            ours = name.removeprefix("v.")
            for theirs, better in blocks.items():
                ours = ours.replace(theirs, better)
            given = encoder.get_parameter(ours).grad
        else:
            _, _, layer, _, rest = name.split(".", 4)
            mixer = encoder.blocks[int(layer)].mixer
            given = {released_mamba(key): p.grad for key, p in mixer.named_parameters()}[rest]
        assert_close(given, wanted, TRAINING)


def _masked_input(
    encoder: nn.Module, objective: nn.Module, features: Tensor, ids: Tensor
) -> tuple[Tensor, TokenLayout]:
    tokens, layout = encoder.embed(features)
    hidden = torch.zeros_like(layout.index, dtype=torch.bool).scatter(1, ids, True)
    return torch.where(hidden[..., None], objective.mask_token + encoder.patches.positions(layout.grid), tokens), layout


def _compare_ssast(arrays: Arrays, encoder: nn.Module, objective: nn.Module, features: Tensor, ids: Tensor) -> None:
    grid = encoder.config.positions.grid
    values = patch_values(features, encoder.config)
    assert_close(by_band(values, grid), arrays["unfold_patches"])
    tokens, layout = encoder.embed(features)
    assert_close(by_band(tokens - encoder.patches.positions(grid), grid), arrays["patch_embed"])
    masked, layout = _masked_input(encoder, objective, features, ids)
    assert_close(with_class(masked, encoder.class_token, grid), arrays["enc_in_masked"])
    joined = torch.cat([encoder.class_token.expand(len(masked), -1, -1), masked], dim=1)
    first, _ = encoder.blocks[0](joined, layout.with_class_token(0, 2))
    assert_close(with_class(first[:, 2:], torch.zeros(1, 0, first.shape[2]), grid), arrays["block0_out"][:, 2:])
    assert_close(first[:, :2], arrays["block0_out"][:, :2])
    encoded = encoder.encode(masked, layout)
    assert_close(by_band(encoded.tokens, grid), arrays["enc_out"][:, 2:])
    assert_close(encoded.summary, arrays["enc_out"][:, :2].mean(dim=1))
    seen, targets = gather_tokens(encoded.tokens, ids), gather_tokens(values, ids)
    assert_close(objective.predict(seen), arrays["cpred"])
    assert_close(objective.paint(seen), arrays["gpred"])
    assert_close(targets @ objective.predict(seen).transpose(1, 2), arrays["sim_total"])
    loss, accuracy = info_nce(targets, objective.predict(seen), "targets")
    assert_close(loss, arrays["nce_paper_eq1_dim0"])
    assert_close(accuracy, arrays["acc_paper_dim0"])


def _compare_ssamba(arrays: Arrays, encoder: nn.Module, objective: nn.Module, features: Tensor, ids: Tensor) -> None:
    """Layer by layer: the release keeps (hidden, residual) and odd layers see the sequence reversed."""
    assert encoder.config.wiring == "released"
    grid = encoder.config.positions.grid
    masked, layout = _masked_input(encoder, objective, features, ids)
    order = layout.frequency_order()
    stream = torch.cat([encoder.class_token.expand(len(masked), -1, -1), gather_tokens(masked, order)], dim=1)
    ordered = layout.select(torch.arange(len(masked)), order).with_class_token(0)
    for pair in range(0, len(encoder.blocks), 2):
        outputs = []
        for layer, flip in ((pair, False), (pair + 1, True)):
            given, places = (stream.flip(1), ordered.reversed()) if flip else (stream, ordered)
            after, mixed = encoder.blocks[layer](given, places)
            assert_close(mixed, arrays[f"layer{layer}/hidden"])
            assert_close(given, arrays[f"layer{layer}/residual"])
            outputs.append(after.flip(1) if flip else after)
        stream = outputs[0] + outputs[1]
    once = encoder.final_norm(stream)
    assert_close(once, arrays["norm_f_once"])
    twice = encoder.final_norm(once)
    assert_close(twice, arrays["norm_f_twice"])
    encoded = encoder.encode(masked, layout)
    assert_close(by_band(encoded.tokens, grid), arrays["norm_f_twice"][:, 1:])
    assert_close(encoded.summary, arrays["norm_f_twice"][:, 0])


def _compare_finetuned(catalog: Catalog, arrays: Arrays, name: str, folder: Path) -> None:
    """Each fine-tuned model twice: the pre-trained table adapted by us, and the file of it as the release keeps it."""
    pretrained = read_model(folder / f"{name}.pth")
    cases = sorted({key.split("/")[0] for key in arrays if key.startswith("ft")})
    assert cases
    for case in cases:
        found = arrays.below(f"{case}/")
        key = next(key for key in found if key.startswith("cfg"))
        stride_frames = found[key].tolist()[-1]
        stride_bins = found[key].tolist()[1] if len(found[key]) == 3 else stride_frames
        strides = {"stride_frames": stride_frames, "stride_bins": stride_bins}
        features = found["x"].transpose(1, 2)
        positions = replace(pretrained.config.encoder.positions, adapt_own_grid=True)
        config = replace(pretrained.config.encoder, positions=positions, **strides)
        encoder = build_encoder(catalog, config).eval()
        load_strict(encoder, pretrained.tensors, "encoder.", pretrained.file)
        grid = config.grid(*features.shape[1:])
        with torch.no_grad():
            table = encoder.patches.positions(grid)
            count = config.class_token.count
            assert_close(by_band(table[None], grid), found["pos_embed"][:, count:])
            folded = arrays["w/v.pos_embed"][:, :count]
            assert_close(found["pos_embed"][:, :count], folded)
            encoded = encoder(features)
        head = {
            f"mlp_head.{rest}": found[f"w/mlp_head.{rest}"] for rest in ("0.weight", "0.bias", "1.weight", "1.bias")
        }
        head["v.pos_embed"] = found["pos_embed"]
        told = {**strides, "bins": features.shape[1]}
        for pooling, wanted in (("mean", found["avgtok"]), ("summary", found["cls"])):
            file = write_released(arrays, folder / case / pooling, case, head, pooling=pooling, **told)
            read = read_model(file)
            assert "fine-tuned to" in read.report
            _, stored = load_encoder(read, catalog)
            classifier = load_classifier(read).eval()
            with torch.no_grad():
                assert_close(classifier(stored.eval()(features)), wanted)
                assert_close(classifier(encoded), wanted)


def test_vision_mamba(catalog: Catalog) -> None:
    """The class token anywhere, paired blocks, RMSNorm; one table for the sequence with its class token."""
    arrays = load("vim_encoder")
    weights = arrays.below("w/")
    features = arrays["x"].squeeze(1)
    dim, _, bins, frames = weights["patch_embed.proj.weight"].shape
    depth = len({key.split(".")[1] for key in weights if key.startswith("layers.")})
    mixers = {
        number: {k.removeprefix(f"layers.{number}.mixer."): v for k, v in weights.items()
                 if k.startswith(f"layers.{number}.mixer.")}
        for number in range(depth)
    }  # fmt: skip
    channels, states = mixers[0]["A_log"].shape
    options = {"states": states, "expand": channels // dim, "step_rank": mixers[0]["dt_proj.weight"].shape[1]}
    options["conv_width"] = mixers[0]["conv1d.weight"].shape[2]
    base = EncoderConfig(
        dim=dim, depth=depth, num_heads=1, mlp_ratio=0.0, norm="pre", norm_eps=1e-5, norm_type="rms", input_norm=False,
        final_norm=True, token_order="frequency", patch_bins=bins, patch_frames=frames,
        mixer=PluginChoice("mamba", options),
    )  # fmt: skip
    times, bands = base.grid(*features.shape[1:])
    base = replace(base, positions=PositionConfig("learned", (times, bands)))
    middle = times * bands // 2
    cases = {
        "feat_middle": (ClassTokenConfig(position="middle"), "sequential", middle),
        "feat_head": (ClassTokenConfig(position="first"), "sequential", 0),
        "feat_middle_ifbidirectional": (ClassTokenConfig(position="middle"), "paired_sum", middle),
        "feat_nocls_mean": (ClassTokenConfig(position="none"), "sequential", middle),
    }
    for case, (token, wiring, row) in cases.items():
        encoder = build_encoder(catalog, replace(base, class_token=token, wiring=wiring)).eval()
        table = weights["pos_embed"]
        patches = torch.cat([table[:, :row], table[:, row + 1 :]], dim=1)
        state = {
            "patches.projection.weight": weights["patch_embed.proj.weight"].transpose(2, 3),
            "patches.projection.bias": weights["patch_embed.proj.bias"],
            "patches.table": patches.unflatten(1, (bands, times)).transpose(1, 2).flatten(1, 2),
            "final_norm.weight": weights["norm_f.weight"],
        }
        if token.position != "none":
            state["class_token"] = weights["cls_token"] + table[:, row : row + 1]
        for number, block in enumerate(encoder.blocks):
            names = block.mixer.state_dict()
            state |= {f"blocks.{number}.mixer.{key}": mixers[number][released_mamba(key)] for key in names}
            state[f"blocks.{number}.norm1.weight"] = weights[f"layers.{number}.norm.weight"]
        encoder.load_state_dict(state)
        with torch.no_grad():
            summary = encoder(features).summary
        assert_close(summary, arrays[case])
        if case == "feat_middle":
            assert_close(summary @ weights["head.weight"].t() + weights["head.bias"], arrays["logits_middle"])
    arrays.assert_all_compared()
