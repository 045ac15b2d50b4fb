"""Parity with the released code on the numbers of `tests/golden`, made by running it (see the README there)."""

import numpy as np
import pytest
import torch
from torch import Tensor

from asda_core.assemble import Parts, build_parts
from asda_core.catalog import Catalog
from asda_core.config import EncoderConfig, OptimizerConfig, PluginChoice, RunConfig
from asda_core.config_io import parse
from asda_core.contracts import MixerContext
from asda_core.layout import TokenLayout
from asda_core.log_mel import LogMel, LogMelConfig
from asda_core.model.block import Block
from asda_core.model.patches import sine_cosine_positions
from asda_core.pretrain.decoder import ConvolutionalDecoder, DecoderConfig
from asda_core.pretrain.latent_regression import squared_error
from asda_core.pretrain.masking import MaskConfig, block_masks, num_kept, split_columns
from asda_core.pretrain.schedule import make_optimizer
from asda_core.pretrain.teacher import TeacherConfig, ema_decay, make_targets
from tests import golden_numbers as golden
from tests.conftest import SHARED
from tests.golden_numbers import TRAINING, assert_close

DIM, HEADS = 48, 4
CASES = {"asda": ("differential", 3.5), "eat": ("standard", 4.0)}


def layout_of(tokens: Tensor, padding: Tensor | None = None) -> TokenLayout:
    layout = TokenLayout.full(len(tokens), (tokens.shape[1], 1))
    return layout if padding is None else TokenLayout(layout.index, layout.grid, padding.bool())


def make_mixer(catalog: Catalog, name: str) -> torch.nn.Module:
    spec = catalog.find("mixer", name).spec
    mixer: torch.nn.Module = spec.build(spec.config(), MixerContext(DIM, HEADS, 0, 1))
    return mixer


@pytest.mark.parametrize("case", CASES)
def test_attention(catalog: Catalog, case: str) -> None:
    arrays = golden.load(f"attention_{case}.npz")
    mixer = make_mixer(catalog, CASES[case][0])
    mixer.load_state_dict(golden.parameters(arrays))
    tokens = arrays["x"].requires_grad_()
    mixed = mixer(tokens, layout_of(tokens))
    assert_close(mixed, arrays["y"])
    (mixed * arrays["cotangent"]).sum().backward()
    assert_close(tokens.grad, arrays["grad/x"], TRAINING)
    compared = golden.gradients(mixer)
    assert len(compared) == len(golden.parameters(arrays)) == (8 if case == "asda" else 4)
    for name, gradient in compared.items():
        assert_close(gradient, arrays[f"grad/{name}"], TRAINING)


@pytest.mark.parametrize("case", CASES)
def test_attention_with_padding(catalog: Catalog, case: str) -> None:
    arrays = golden.load(f"attention_{case}.npz")
    mixer = make_mixer(catalog, CASES[case][0])
    mixer.load_state_dict(golden.parameters(arrays))
    assert_close(mixer(arrays["x"], layout_of(arrays["x"], arrays["padding_mask"])), arrays["y_padded"])


@pytest.mark.parametrize("case", CASES)
def test_block(catalog: Catalog, case: str) -> None:
    arrays = golden.load(f"block_{case}.npz")
    name, ratio = CASES[case]
    config = EncoderConfig(dim=DIM, depth=1, num_heads=HEADS, mlp_ratio=ratio)
    block = Block(config, make_mixer(catalog, name))
    block.load_state_dict({golden.our_name(f".{k}").lstrip("."): v for k, v in golden.parameters(arrays).items()})
    for suffix, padding in (("", None), ("_padded", arrays["padding_mask"])):
        output, layer = block(arrays["x"], layout_of(arrays["x"], padding))
        assert_close(output, arrays[f"y{suffix}"])
        assert_close(layer, arrays[f"layer_result{suffix}"])


@pytest.mark.parametrize("which", ["main", "base_like"])
def test_decoder(which: str) -> None:
    arrays = golden.load("decoder.npz")
    dim, groups, kernel, layers, times, bands = arrays[f"{which}/cfg"].tolist()
    decoder = ConvolutionalDecoder(DecoderConfig(dim, layers, kernel, groups), dim=arrays[f"{which}/x"].shape[-1])
    state = golden.parameters(arrays, f"{which}/param/")
    decoder.load_state_dict({golden.our_decoder_name(key): value for key, value in state.items()})
    assert_close(decoder(arrays[f"{which}/x"], (times, bands)), arrays[f"{which}/y"])


def test_targets_and_loss() -> None:
    arrays = golden.load("targets.npz")
    layers = list(arrays["layer_results"])
    assert_close(make_targets(layers), arrays["target_top4"])
    assert_close(make_targets(layers, 2), arrays["target_top2"])
    assert_close(make_targets(layers).mean(1), arrays["cls_target_top4"])
    assert_close(squared_error(arrays["loss_pred"], arrays["loss_target"]), arrays["loss_elementwise"].sum(-1))


def test_positions() -> None:
    arrays = golden.load("posembed.npz")
    assert_close(sine_cosine_positions((16, 8), 48), arrays["small"])
    table = sine_cosine_positions((768, 8), 768)
    assert_close(table[arrays["base_rows"]], arrays["base_768"])
    assert_close(table[:512].sum(1), arrays["base_rowsum"])


@pytest.mark.parametrize(("name", "grid"), [("h64w8", (64, 8)), ("h32w8", (32, 8)), ("small", (4, 8))])
def test_masks_keep_as_many(name: str, grid: tuple[int, int], generator: torch.Generator) -> None:
    arrays = golden.load("masks.npz")
    hidden = block_masks(grid, 16, MaskConfig(), generator)
    kept = int(arrays[f"{name}_kept"])
    assert num_kept(grid[0] * grid[1], MaskConfig()) == kept
    assert hidden.shape == arrays[name].shape
    assert (hidden.shape[1] - hidden.sum(1) == kept).all()
    assert (hidden.shape[1] - arrays[name].sum(1) == kept).all()


def test_masks_keep_the_same_places(generator: torch.Generator) -> None:
    """How often each patch is kept, and how often its neighbour in time is, as the reference has it."""
    arrays = golden.load("masks.npz")
    number = int(arrays["n_samples"])
    kept = ~torch.cat([block_masks((64, 8), 2000, MaskConfig(), generator) for _ in range(max(1, number // 2000))])
    kept = kept.view(-1, 64, 8).float()
    spread = (0.2 * 0.8 * (1 / len(kept) + 1 / number)) ** 0.5  # of the difference of two estimated probabilities
    assert (kept.mean(0) - arrays["keep_prob_h64w8"]).abs().max() < 5 * spread
    neighbour = (kept[:, 1:] * kept[:, :-1]).sum() / kept[:, :-1].sum()
    assert abs(float(neighbour) - float(arrays["neigh_keep_h64w8"])) < 0.01


def golden_run(catalog: Catalog, case: str, **options: object) -> Parts:
    """The tiny released pre-training model with student and teacher weights."""
    mixer, ratio = CASES[case]
    objective = {
        "clones": 2,
        "utterance_rows": None,
        "utterance_weight": 0.5,
        "noise_std": 0.0,
        "decoder": {"dim": 48, "groups": 4, "kernel": 3, "layers": 3},
        **options,
    }
    encoder = {"dim": DIM, "depth": 2, "num_heads": HEADS, "mlp_ratio": ratio, "mixer": mixer}
    config = parse(RunConfig, {"encoder": encoder, "objective": {"name": "latent_regression", "options": objective}})
    parts = build_parts(catalog, config)
    student, teacher = golden.released_tensors(f"model_{case}.pt")
    parts.encoder.load_state_dict(golden.encoder_state(student))
    parts.objective.decoder.load_state_dict(golden.decoder_state(student))
    parts.objective.teacher.encoder.load_state_dict(golden.encoder_state(teacher))
    return parts


def features_of(arrays: dict[str, Tensor]) -> Tensor:
    """Released (B, 1, T, F) -> ours (B, F, T)."""
    return arrays["source"].squeeze(1).transpose(1, 2)


@pytest.mark.parametrize("case", CASES)
def test_encoder_features(catalog: Catalog, case: str) -> None:
    arrays = golden.load(f"model_{case}.npz")
    encoder = golden_run(catalog, case).encoder
    features = features_of(arrays)
    encoded = encoder(features)
    assert_close(torch.cat([encoded.summary[:, None], encoded.tokens], 1), arrays["features_all"])
    assert_close(encoded.tokens, arrays["features_frame"])
    assert_close(torch.stack(encoded.layers), arrays["features_layer_results"][:, :, 1:])
    short = encoder(features[:, :, :-32])
    assert_close(torch.cat([short.summary[:, None], short.tokens], 1), arrays["features_short"])
    long = encoder(torch.cat([features, features[:, :, :48]], 2))
    assert_close(torch.cat([long.summary[:, None], long.tokens], 1), arrays["features_long"])


@pytest.mark.parametrize("case", CASES)
def test_student_teacher_and_losses(catalog: Catalog, case: str) -> None:
    arrays = golden.load(f"model_{case}.npz")
    parts = golden_run(catalog, case)
    features, hidden = features_of(arrays), arrays["mask"].bool()
    kept, _ = split_columns(hidden)
    assert torch.equal(kept, arrays["kept_raster"])
    tokens, layout = parts.encoder.embed(features)
    owner = torch.arange(2).repeat_interleave(2)
    student = parts.encoder.encode(
        tokens[owner].gather(1, kept[..., None].expand(-1, -1, DIM)), layout.select(owner, kept)
    )
    assert_close(torch.cat([student.summary[:, None], student.tokens], 1), arrays["encoder_out"])
    teacher = parts.objective.teacher.layers(features)
    target = make_targets(teacher)
    assert_close(target, arrays["target"])
    assert_close(target.mean(1), arrays["cls_target"])
    for prefix, noise in (("", torch.zeros(4, 32, DIM)), ("noise_", arrays["mask_token_noise_at_patch"])):
        losses = parts.objective.loss_for(parts.encoder, features, hidden, noise)
        size = arrays["sample_size"]
        assert_close(losses.parts["frame"], arrays[f"{prefix}frame_loss_sum"] / size)
        assert_close(losses.parts["utterance"] * 0.5 * len(owner), arrays[f"{prefix}cls_loss_sum"] / size)
        assert_close(losses.total, arrays[f"{prefix}loss_per_sample_size"])


@pytest.mark.parametrize("case", CASES)
def test_gradients(catalog: Catalog, case: str) -> None:
    arrays = golden.load(f"model_{case}.npz")
    parts = golden_run(catalog, case)
    parts.objective.loss_for(
        parts.encoder, features_of(arrays), arrays["mask"].bool(), torch.zeros(4, 32, DIM)
    ).total.backward()
    ours = golden.gradients(parts.encoder)
    ours |= {f"decoder.{name}": value for name, value in golden.gradients(parts.objective.decoder).items()}

    def find(released: str) -> Tensor:
        if released.startswith(golden.DECODER):
            return ours["decoder." + golden.our_decoder_name(released.removeprefix(golden.DECODER))]
        return ours[golden.our_name(released)]

    names = arrays["grad_names"]
    assert len(names) == len(ours)
    norms = torch.stack([find(name).norm() for name in names])
    assert_close(norms, arrays["grad_norms"], TRAINING)
    full = [key.removeprefix("grad/") for key in arrays if key.startswith("grad/")]
    assert len(full) == 7
    for name in full:
        assert_close(find(name), arrays[f"grad/{name}"], TRAINING)


def test_ema() -> None:
    arrays = golden.load("ema.npz")
    config = TeacherConfig(
        float(arrays["ema_decay"]), float(arrays["ema_end_decay"]), int(arrays["ema_anneal_end_step"])
    )
    names = [key.removeprefix("teacher_0/") for key in arrays if key.startswith("teacher_0/")]
    assert len(names) == 3
    teacher = {name: arrays[f"teacher_0/{name}"] for name in names}
    for step in range(1, 7):
        decay = ema_decay(step, config)
        assert decay == pytest.approx(float(arrays["decay_used"][step]), abs=1e-7)
        for name in names:
            teacher[name] = torch.lerp(teacher[name], arrays[f"student_after_step_{step - 1}/{name}"], 1 - decay)
            assert_close(teacher[name], arrays[f"teacher_after_call_{step}/{name}"])


def test_ema_decay_of_the_published_run() -> None:
    arrays = golden.load("schedules.npz")
    ours = [1 - ema_decay(int(step), TeacherConfig()) for step in arrays["steps"]]
    assert np.allclose(ours[1:], arrays["one_minus_ema_decay"][1:], rtol=1e-4)


def test_training_trace(catalog: Catalog) -> None:
    """Six updates as released, with the released rates and decay on everything: losses, norms, student and teacher."""
    trace, arrays = golden.load("train_trace_asda.npz"), golden.load("model_asda.npz")
    parts = golden_run(catalog, "asda", teacher={"decay_start": 0.9, "decay_end": 0.99, "anneal_steps": 4})
    config = OptimizerConfig(weight_decay=float(trace["weight_decay"]), decay_norms_and_biases=True)
    trained = [*parts.encoder.parameters(), *parts.objective.decoder.parameters()]
    optimizer = make_optimizer(trained, config)
    for step in range(6):
        optimizer.param_groups[0]["lr"] = float(trace["log/lr"][step])
        features = features_of(arrays) * trace["source_scale"][step]
        losses = parts.objective.loss_for(parts.encoder, features, trace["mask"][step].bool(), torch.zeros(4, 32, DIM))
        assert_close(losses.parts["frame"], trace["log/frame"][step] / trace["log/sample_size"][step], TRAINING)
        optimizer.zero_grad()
        losses.total.backward()
        norm = torch.nn.utils.clip_grad_norm_(trained, float(trace["clip_norm"]))
        assert_close(norm, trace["log/grad_norm"][step], TRAINING)
        optimizer.step()
        parts.objective.after_step(parts.encoder, step + 1)
    for which, encoder in (("student", parts.encoder), ("teacher", parts.objective.teacher.encoder)):
        state = encoder.state_dict()
        for key in trace:
            if key.startswith(f"{which}_final/") and golden.DECODER not in key:
                assert_close(state[golden.our_name(key.split("/", 1)[1])], trace[key], TRAINING)


@pytest.mark.shared
def test_front_end() -> None:
    """On a second of real audio; the file stays outside, since it holds that second."""
    with np.load(SHARED / "golden" / "asda" / "fbank.npz") as arrays:
        wave, log_mel, padded = (torch.from_numpy(arrays[key]) for key in ("wave16", "logmel_raw", "as_64"))
        silence = torch.from_numpy(arrays["silence_value"])
    wave = wave - wave.mean()  # as released; without it rounding differs by 1.3e-4, since frames lose their mean anyway
    raw = LogMel(LogMelConfig(mean=0.0, std=0.5), 16_000)(wave[None])[0].T
    assert_close(raw, log_mel)
    front_end = LogMel(LogMelConfig(), 16_000)
    assert_close(front_end(wave[None])[0].T[:64], padded[0])
    assert_close(front_end(torch.zeros(1, 400))[0, :1, 0], silence)


def test_choice_by_name_alone() -> None:
    assert parse(EncoderConfig, {"mixer": "standard"}).mixer == PluginChoice("standard")
