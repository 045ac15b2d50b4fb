"""What the config stored in a released file tells of the run that made it, as a config of ours.

The weights are read without it; it fills in what no tensor shows: masks, loss weights, rates, the length of a clip.
What is missing or strange in it keeps the published value.
"""

from collections.abc import Mapping
from typing import Any

from asda_core.config import ClassifierConfig, RunConfig
from asda_core.config_io import parse
from asda_core.errors import ConfigError
from asda_core.official.eat import Architecture, Shape

NORMALISATION = {
    "esc50_eval": {"mean": -6.627, "std": 5.359},
    "spcv2_eval": {"mean": -6.846, "std": 5.565},
    "fsd50k_eval": {"mean": -7.966, "std": 4.753},
}
"""Flag of the released task -> mean and spread of log-mel; the last true one wins. **Source**: released data path."""
HOP_SECONDS, WINDOW_SECONDS = 0.010, 0.025
"""Of the log-mel frames of every released model."""
HUGGING_FACE_HEAD_EPS = 1e-5
"""Epsilon of the LayerNorm before the head in EAT's Hugging Face model (PyTorch's default); fairseq's has 1e-6."""
PREDICTION_MODES = {"CLS_TOKEN": "summary", "MEAN_POOLING": "mean", "LIN_SOFTMAX": "linear_softmax"}
"""Name of the pooling in a fine-tuned file -> ours."""


REPRODUCED = {
    ("loss_beta",): 0,
    ("loss_scale",): None,
    ("end_of_block_targets",): False,
    ("layer_norm_target_layer",): False,
    ("batch_norm_target_layer",): False,
    ("instance_norm_target_layer",): True,
    ("instance_norm_targets",): False,
    ("layer_norm_targets",): True,
    ("recon_loss",): 0,
    ("modalities", "image", "inverse_mask"): True,
    ("modalities", "image", "mask_dropout"): 0,
    ("modalities", "image", "keep_masked_pct"): 0,
    ("modalities", "image", "add_masks"): False,
    ("modalities", "image", "decoder", "decoder_residual"): True,
    ("modalities", "image", "decoder", "add_positions_all"): False,
    ("modalities", "image", "decoder", "add_positions_masked"): False,
}
"""Settings of the released training that every recipe has, and that latent regression takes for granted."""


def told(tree: Any, *path: str) -> Any:
    """The value at a path of nested mappings, None where there is none."""
    for key in path:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree


def pretraining(stored: Any) -> Any:
    """The pre-training config within a stored one: itself, or what a fine-tuned file keeps of it."""
    return told(stored, "model", "pretrained_model_args") or stored


def run_config(found: Architecture, stored: Any, beside: Mapping[str, Any]) -> RunConfig:
    """The run that made a file.

    Args:
        found: architecture of its tensors.
        stored: config within a fairseq file; empty if there is none.
        beside: `config.json` beside a Hugging Face file; empty if there is none.
    """
    flags = {**(told(stored, "model") or {}), **(told(stored, "task") or {})}
    front_end: dict[str, Any] = {}
    for flag, constants in NORMALISATION.items():
        front_end |= constants if flags.get(flag) is True else {}
    frames = flags.get("target_length") or (beside.get("img_size") or [None])[0]
    seconds = (frames - 1) * HOP_SECONDS + WINDOW_SECONDS if isinstance(frames, int) and frames > 0 else None
    before = pretraining(stored)
    group = told(before, "optimizer", "groups", "default")
    plain: dict[str, Any] = {
        "compat": "released",
        "front_end": {"name": "log_mel", "options": front_end},
        "encoder": found.encoder,
        "objective": {"name": "latent_regression", "options": _objective(found, told(before, "model"))},
        "optimizer": _stated(
            peak_lr=told(group, "lr_float"),
            warmup_steps=told(group, "lr_scheduler", "warmup_updates"),
            weight_decay=told(group, "optimizer", "weight_decay"),
            clip_norm=told(before, "optimization", "clip_norm"),
        ),
        "data": _stated(clip_seconds=seconds),
        **_stated(steps=told(before, "optimization", "max_update"), seed=told(before, "common", "seed")),
    }
    try:
        return parse(RunConfig, plain)
    except ConfigError:  # a stored config that makes no sense must not keep the weights from being used
        return parse(RunConfig, {key: plain[key] for key in ("compat", "encoder")})


def not_reproduced(stored: Any) -> list[str]:
    """Settings of the stored training that ours does not have; they matter only to training on, not to features."""
    model = told(pretraining(stored), "model")
    given = {path: told(model, *path) for path in REPRODUCED}
    return [
        f"{path[-1]} {given[path]}"
        for path, usual in REPRODUCED.items()
        if given[path] is not None and given[path] != usual
    ]


def classifier_config(found: Architecture, stored: Any, labels: Mapping[Any, Any]) -> ClassifierConfig | None:
    """The head of a fine-tuned file, None if it has none.

    Args:
        found: architecture of its tensors.
        stored: config within a fairseq file.
        labels: name of a class -> its number, as `task_state` has it.
    """
    if not found.num_classes:
        return None
    numbers = {int(number): str(name) for name, number in labels.items() if str(number).isdigit()}
    complete = sorted(numbers) == list(range(found.num_classes))
    mode = told(stored, "model", "prediction_mode")
    return parse(
        ClassifierConfig,
        {
            "num_classes": found.num_classes,
            "pooling": PREDICTION_MODES.get(str(mode), "summary"),
            "norm_eps": ClassifierConfig.norm_eps if found.layout == "fairseq" else HUGGING_FACE_HEAD_EPS,
            "multi_label": told(stored, "model", "esc50_eval") is not True,
            "labels": tuple(numbers[number] for number in range(found.num_classes)) if complete else (),
        },
    )


def _objective(found: Architecture, model: Any) -> dict[str, Any]:
    """Options of latent regression."""
    image = told(model, "modalities", "image")
    options = _stated(
        clones=told(model, "clone_batch"),
        utterance_weight=told(model, "cls_loss"),
        top_layers=told(model, "average_top_k_layers"),
        noise_std=told(image, "mask_noise_std"),
    )
    options["mask"] = _stated(
        hidden_share=told(image, "mask_prob"),
        block=told(image, "mask_length"),
        adjust=told(image, "mask_prob_adjust"),
    )
    options["teacher"] = _stated(
        decay_start=told(model, "ema_decay"),
        decay_end=told(model, "ema_end_decay"),
        anneal_steps=told(model, "ema_anneal_end_step"),
    )
    options["decoder"] = _stated(
        dim=told(image, "decoder", "decoder_dim"),
        layers=told(image, "decoder", "decoder_layers"),
        kernel=told(image, "decoder", "decoder_kernel"),
        groups=told(image, "decoder", "decoder_groups"),
    )
    if found.decoder:
        options["decoder"] = _decoder(found.decoder, found.encoder.dim)
    return options


def _decoder(shapes: tuple[Shape, ...], dim: int) -> dict[str, int]:
    """Settings of the decoder from the shapes of its convolutions."""
    width, per_group, kernel, _ = shapes[0]
    return {"dim": width, "layers": len(shapes), "kernel": kernel, "groups": max(1, dim // max(1, per_group))}


def _stated(**values: Any) -> dict[str, Any]:
    """The numbers among the values."""
    return {key: value for key, value in values.items() if isinstance(value, int | float) and value is not True}
