"""Parity of pre-training: features, losses, gradients, moving average, rates, optimiser, and six whole updates."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from asda_core.assemble import Parts, build_encoder
from asda_core.catalog import Catalog
from asda_core.config import OptimizerConfig, RunConfig
from asda_core.config_io import load_run_config, parse
from asda_core.contracts import Losses
from asda_core.finetune.rates import rate_scale
from asda_core.model.patches import sine_cosine_positions
from asda_core.official.pickles import read_pickled
from asda_core.pretrain.latent_regression import LatentRegressionConfig, squared_error
from asda_core.pretrain.masking import split_columns
from asda_core.pretrain.schedule import learning_rate, make_optimizer
from asda_core.pretrain.teacher import Teacher, TeacherConfig, ema_decay, make_targets
from tests.released import golden
from tests.released.golden import CASES, TRAINING, Arrays, assert_close, features_of


@pytest.mark.parametrize("case", CASES)
def test_model(catalog: Catalog, case: str) -> None:
    arrays = golden.load(f"model_{case}.npz")
    parts = golden.parts_of(catalog, case)
    _compare_features(parts, arrays)
    _compare_masks(arrays)
    _compare_losses(parts, arrays, case)
    _compare_gradients(parts, arrays, case)
    arrays.assert_all_compared()


def _compare_features(parts: Parts, arrays: Arrays) -> None:
    features = features_of(arrays)
    layers: list[Tensor] = []
    hooks = [block.mlp.register_forward_hook(lambda *call: layers.append(call[-1])) for block in parts.encoder.blocks]
    encoded = parts.encoder(features)
    for hook in hooks:
        hook.remove()
    assert_close(torch.cat([encoded.summary[:, None], encoded.tokens], 1), arrays["features_all"])
    assert_close(encoded.tokens, arrays["features_frame"])
    assert_close(torch.stack(layers), arrays["features_layer_results"])
    assert_close(torch.stack(encoded.layers), arrays["features_layer_results"][:, :, 1:])
    short = parts.encoder(features[:, :, :-32])
    assert_close(torch.cat([short.summary[:, None], short.tokens], 1), arrays["features_short"])
    long = parts.encoder(torch.cat([features, features[:, :, :48]], 2))
    assert_close(torch.cat([long.summary[:, None], long.tokens], 1), arrays["features_long"])


def _compare_masks(arrays: Arrays) -> None:
    hidden = arrays["mask"].bool()
    kept, _ = split_columns(hidden)
    assert torch.equal(kept, arrays["kept_raster"])
    assert torch.equal(arrays["ids_keep"].sort(dim=1).values, kept)  # their order is arbitrary
    restored = arrays["ids_restore"].gather(1, arrays["ids_keep"])
    assert torch.equal(restored, torch.arange(kept.shape[1]).expand_as(kept))
    assert torch.equal(arrays["ids_restore"] < kept.shape[1], ~hidden)
    assert_close(hidden.float().mean(), arrays["masked_pct"])


def _watched(parts: Parts, features: Tensor, hidden: Tensor, noise: Tensor) -> tuple[Losses, dict[str, Tensor]]:
    """The losses, and what went into and out of the student's blocks and the decoder."""
    seen: dict[str, Tensor] = {}
    hooks = [
        parts.encoder.blocks[0].register_forward_pre_hook(lambda _, given: seen.update(encoder_in=given[0])),
        parts.encoder.blocks[-1].register_forward_hook(lambda _, given, made: seen.update(encoder_out=made[0])),
        parts.objective.decoder.register_forward_pre_hook(lambda _, given: seen.update(decoder_in=given[0])),
        parts.objective.decoder.register_forward_hook(lambda _, given, made: seen.update(predicted=made)),
    ]
    losses = parts.objective.loss_for(parts.encoder, features, hidden, noise)
    for hook in hooks:
        hook.remove()
    grid = parts.encoder.config.grid(*features.shape[1:])
    seen["decoder_out"] = parts.objective.decoder(seen["decoder_in"], grid)  # the loss asks for hidden patches alone
    return losses, seen


def _compare_losses(parts: Parts, arrays: Arrays, case: str) -> None:
    settings: LatentRegressionConfig = parse(LatentRegressionConfig, golden.run_of(case).objective.options)
    features, hidden, size = features_of(arrays), arrays["mask"].bool(), arrays["sample_size"]
    teacher = parts.objective.teacher.layer_outputs(features)
    assert_close(torch.stack(teacher), arrays["teacher_layer_results"])
    target = make_targets(teacher, settings.top_layers)
    owner = torch.arange(len(features)).repeat_interleave(settings.clones)
    assert_close(target, arrays["target"])
    assert_close(target.mean(1), arrays["cls_target"])
    assert_close(target[owner][hidden], arrays["target_masked"])
    assert int(hidden.sum()) == int(size)
    assert float(arrays["ema_decay"]) == pytest.approx(1000 * settings.teacher.decay_start)  # as it is logged
    noise = arrays["mask_token_noise_at_patch"]
    for prefix, given in (("noise_", noise), ("", torch.zeros_like(noise))):
        losses, seen = _watched(parts, features, hidden, given)
        assert_close(seen["decoder_in"], arrays[f"{prefix}decoder_in"])
        assert_close(seen["decoder_out"], arrays[f"{prefix}decoder_out"])
        assert_close(seen["predicted"].flatten(0, 1), arrays[f"{prefix}prediction_masked"])
        assert_close(losses.parts["frame"], arrays[f"{prefix}frame_loss_sum"] / size)
        weighted = losses.parts["utterance"] * settings.utterance_weight * len(owner)
        assert_close(weighted, arrays[f"{prefix}cls_loss_sum"] / size)
        assert_close(losses.total, arrays[f"{prefix}loss_per_sample_size"])
        assert arrays[f"{prefix}frame_loss_shape"].tolist() == [int(size), target.shape[-1]]
        assert arrays[f"{prefix}cls_loss_shape"].tolist() == [len(owner), target.shape[-1]]
    assert_close(seen["encoder_in"], arrays["encoder_in"])
    assert_close(seen["encoder_out"], arrays["encoder_out"])
    assert_close(losses.parts["target_std"], arrays["target_var"])
    assert_close(losses.parts["prediction_std"], arrays["pred_var"])
    per_token = squared_error(seen["decoder_out"][hidden], target[owner][hidden])
    assert_close(per_token, arrays["frame_loss_per_token"])
    utterance = squared_error(seen["encoder_out"][:, 0], target.mean(1)[owner]) * settings.utterance_weight * size
    assert_close(utterance, arrays["cls_loss_elementwise"].sum(-1))


def _compare_gradients(parts: Parts, arrays: Arrays, case: str) -> None:
    parts.objective.zero_grad()
    parts.encoder.zero_grad()
    noise = torch.zeros_like(arrays["mask_token_noise_at_patch"])
    hidden = arrays["mask"].bool()
    parts.objective.loss_for(parts.encoder, features_of(arrays), hidden, noise).total.backward()
    found = golden.gradients(parts.encoder, "encoder.") | golden.gradients(parts.objective.decoder, "decoder.")
    ours = golden.ours(case)
    names = arrays["grad_names"]
    assert len(names) == len(found)
    norms = torch.stack([found[ours[name]].norm() for name in names])
    assert_close(norms, arrays["grad_norms"], TRAINING)
    full = arrays.below("grad/")
    assert full
    for name, gradient in full.items():
        assert_close(found[ours[name]], gradient, TRAINING)


def test_weights_without_torch() -> None:
    """The same weights were written with numpy: what the product reads from the pickled file is just that."""
    case = "asda"
    arrays = golden.load(f"model_{case}_weights.npz")
    read = golden.checkpoint(f"model_{case}").tensors
    ours = golden.ours(case)
    for prefix in ("model/", "ema/"):
        for name, value in arrays.below(prefix).items():
            if name.endswith("positions"):
                assert_close(sine_cosine_positions((value.shape[1] // 8, 8), value.shape[2]), value[0])
                continue
            part = ours[name].replace("decoder.", "objective.decoder.")
            if prefix == "ema/":
                part = part.replace("encoder.", "objective.teacher.encoder.", 1)
            assert torch.equal(read[part], value), name
    assert golden.stored_json(arrays, "cfg_json") == read_pickled(golden.GOLDEN / f"model_{case}.pt")["cfg"]
    arrays.assert_all_compared()


def test_ema(catalog: Catalog) -> None:
    """The teacher's three watched parameters, moved by the product's own teacher."""
    arrays = golden.load("ema.npz")
    config = TeacherConfig(
        float(arrays["ema_decay"]), float(arrays["ema_end_decay"]), int(arrays["ema_anneal_end_step"])
    )
    student = build_encoder(catalog, golden.run_of("asda").encoder)
    ours = {name: golden.ours("asda")[name].removeprefix("encoder.") for name in arrays.below("teacher_0/")}
    assert ours

    def fill(encoder: torch.nn.Module, prefix: str) -> None:
        for released, name in ours.items():
            encoder.get_parameter(name).data.copy_(arrays[f"{prefix}/{released}"])

    fill(student, "student_init")
    teacher = Teacher(student, config)
    fill(teacher.encoder, "teacher_0")
    calls = len(arrays["decay_used"])
    for step in range(calls):
        if step:  # call 0 does nothing
            teacher.update(student, step)
            assert ema_decay(step, config) == pytest.approx(float(arrays["decay_used"][step]), abs=1e-7)
        for released, name in ours.items():
            assert_close(teacher.encoder.get_parameter(name), arrays[f"teacher_after_call_{step}/{released}"])
        fill(student, f"student_after_step_{step}")
    arrays.assert_all_compared()


FINE_TUNING = {
    "as20k_asda": (5e-5, 6_000, 60_000),
    "as20k_eat": (5e-5, 4_000, 40_000),
    "as2m_asda": (5e-5, 60_000, 600_000),
    "as2m_eat": (5e-5, 30_000, 300_000),
    "esc50": (5e-5, 400, 4_000),
    "spc2_asda": (2e-4, 8_000, 80_000),
    "spc2_eat": (2e-4, 4_000, 40_000),
}
"""Recipe -> peak rate, warm-up, updates."""
LAYERS, LAYER_DECAY, FLOOR = 12, 0.65, 1e-6


def test_schedules() -> None:
    arrays = golden.load("schedules.npz")
    for name in ("asda", "eat"):
        run = load_run_config(f"{name}_base")
        config = parse(OptimizerConfig, {"schedule": "fairseq_cosine", "warmup_steps": run.optimizer.warmup_steps})
        _compare_rates(arrays, f"pretrain_{name}", run.steps, config)
    for recipe, (peak, warmup, steps) in FINE_TUNING.items():
        for block in (None, 0, 5, 11):
            scale = 1.0 if block is None else rate_scale(f"blocks.{block}.norm1.weight", LAYERS, LAYER_DECAY)
            config = OptimizerConfig(
                schedule="fairseq_cosine", peak_lr=peak * scale, warmup_steps=warmup, floor_lr=FLOOR
            )
            name = f"finetune_{recipe}" + ("" if block is None else f"/block{block}")
            _compare_rates(arrays, name, steps, config)
    steps = arrays["steps"]
    decays = np.array([ema_decay(int(step), TeacherConfig()) for step in steps])
    first = steps == 0  # fairseq's moving average begins with call 1
    assert np.allclose(decays[~first], arrays["ema_decay"][~first], rtol=1e-9)
    assert np.allclose((1 - decays)[~first], arrays["one_minus_ema_decay"][~first], rtol=1e-4)
    arrays.assert_all_compared()


def _compare_rates(arrays: Arrays, name: str, steps: int, config: OptimizerConfig) -> None:
    rates = torch.tensor([learning_rate(int(step), steps, config) for step in arrays[f"{name}/steps"]])
    assert_close(rates, arrays[f"{name}/lr"], 1e-5)


def test_adam() -> None:
    arrays = golden.load("adam.npz")
    config = OptimizerConfig(
        algorithm="fairseq_adam",
        peak_lr=float(arrays["lr"]),
        betas=(float(arrays["betas"][0]), float(arrays["betas"][1])),
        eps=float(arrays["eps"]),
        weight_decay=float(arrays["weight_decay"]),
    )
    usual = OptimizerConfig(peak_lr=config.peak_lr, betas=config.betas, weight_decay=config.weight_decay)
    for suffix in ("", "_tiny"):
        ours = _steps(arrays["p0"], arrays[f"grads{suffix}"], config)
        moved = arrays[f"params{suffix}"] - arrays["p0"]
        assert_close(ours - arrays["p0"], moved)
        adamw = _steps(arrays["p0"], arrays[f"grads{suffix}"], usual)
        near = bool(((adamw - arrays["p0"] - moved).abs().max() / moved.abs().max()) < 1e-2)
        assert near == (suffix == "")  # AdamW differs where gradients are as small as its epsilon
    arrays.assert_all_compared()


def _steps(start: Tensor, grads: Tensor, config: OptimizerConfig) -> Tensor:
    parameter = torch.nn.Parameter(start.clone())
    optimizer = make_optimizer([parameter], config)
    after = []
    for gradient in grads:
        parameter.grad = gradient.clone()
        optimizer.step()
        after.append(parameter.detach().clone())
    return torch.stack(after)


def test_training_trace(catalog: Catalog) -> None:
    """Six updates as released: rates, losses, norms, student and teacher."""
    trace, arrays = golden.load("train_trace_asda.npz"), golden.load("model_asda.npz")
    teacher: dict[str, Any] = {
        "decay_start": float(trace["ema_decay_start"]),
        "decay_end": float(trace["ema_decay_end"]),
        "anneal_steps": int(trace["ema_anneal_end_step"]),
    }
    parts = golden.parts_of(catalog, "asda", objective__options__teacher=teacher)
    config = RunConfig(
        steps=int(trace["max_update"]),
        optimizer=parse(
            OptimizerConfig,
            {
                "algorithm": "fairseq_adam",
                "schedule": "fairseq_cosine",
                "decay_norms_and_biases": True,
                "peak_lr": float(trace["peak_lr"]),
                "warmup_steps": int(trace["warmup_updates"]),
                "weight_decay": float(trace["weight_decay"]),
                "clip_norm": float(trace["clip_norm"]),
            },
        ),
    )
    trained = [*parts.encoder.parameters(), *parts.objective.decoder.parameters()]
    optimizer = make_optimizer(trained, config.optimizer)
    noise = torch.zeros_like(arrays["mask_token_noise_at_patch"])
    for step in range(len(trace["log/lr"])):
        rate = learning_rate(step, config.steps, config.optimizer)
        assert rate == pytest.approx(float(trace["log/lr"][step]), rel=1e-5, abs=1e-12)
        if step:
            decay = ema_decay(step, parts.objective.teacher.config)
            assert decay == pytest.approx(float(trace["log/decay"][step]), rel=1e-6)
        for group in optimizer.param_groups:
            group["lr"] = rate
        features = features_of(arrays) * trace["source_scale"][step]
        losses = parts.objective.loss_for(parts.encoder, features, trace["mask"][step].bool(), noise)
        size = trace["log/sample_size"][step]
        assert_close(losses.parts["frame"], trace["log/frame"][step] / size, TRAINING)
        weighted = losses.total.detach() - losses.parts["frame"]
        assert_close(weighted, trace["log/cls"][step] / size, TRAINING)
        optimizer.zero_grad()
        losses.total.backward()
        norm = torch.nn.utils.clip_grad_norm_(trained, config.optimizer.clip_norm)
        assert_close(norm, trace["log/grad_norm"][step], TRAINING)
        optimizer.step()
        parts.objective.after_step(parts.encoder, step + 1)
    _compare_final(parts, trace)
    trace.assert_all_compared()


def _compare_final(parts: Parts, trace: Arrays) -> None:
    ours = golden.ours("asda")
    student = {f"encoder.{name}": value for name, value in parts.encoder.state_dict().items()}
    student |= {f"decoder.{name}": value for name, value in parts.objective.decoder.state_dict().items()}
    teacher = {f"encoder.{name}": value for name, value in parts.objective.teacher.encoder.state_dict().items()}
    for which, state in (("student", student), ("teacher", teacher)):
        full = trace.below(f"{which}_final/")
        assert full
        for name, value in full.items():  # to 1e-4, at which the weight decay shows
            assert_close(state[ours[name]], value)
        for name, norm in zip(trace[f"{which}_names"], trace[f"{which}_final_norms"], strict=True):
            if name in ours:  # the fixed positions are no state of ours
                assert_close(state[ours[name]].norm(), norm, TRAINING)
