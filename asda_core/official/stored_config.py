"""Convert the config stored in a released file to a `RunConfig` of the run that made it.

The weights are read without it; it adds what no tensor shows: masks, loss weights, learning rates, clip length.
Missing settings keep the published value; so do invalid ones, which are reported.
"""

import ast
import math
from collections.abc import Mapping
from typing import Any

from asda_core.config import RunConfig
from asda_core.config_io import parse, with_value
from asda_core.errors import ConfigError
from asda_core.finetune_config import ClassifierConfig, Pooling
from asda_core.log_mel import LogMelConfig
from asda_core.official.eat import Architecture
from asda_core.pretrain.decoder import DecoderConfig
from asda_core.pretrain.latent_regression import LatentRegressionConfig

NORMALISATION = {
    "esc50_eval": {"mean": -6.627, "std": 5.359},
    "spcv2_eval": {"mean": -6.846, "std": 5.565},
    "fsd50k_eval": {"mean": -7.966, "std": 4.753},
}
"""Flag of the released task -> mean and std of the log-mel; the last true one wins. **Source**: released data path."""
HOP_SECONDS, WINDOW_SECONDS = 0.010, 0.025
"""Hop and window length of the log-mel frames of every released model."""
HUGGING_FACE_HEAD_EPS = 1e-5
"""Epsilon of the LayerNorm before the head in EAT's Hugging Face model (PyTorch's default); fairseq's has 1e-6."""
PREDICTION_MODES: dict[str, Pooling] = {"CLS_TOKEN": "summary", "MEAN_POOLING": "mean", "LIN_SOFTMAX": "linear_softmax"}
"""Name of the pooling in a fine-tuned file -> asda's name."""
OBJECTIVE = "objective.options"
STORED_PATHS = {
    "optimizer.peak_lr": ("optimizer", "groups", "default", "lr_float"),
    "optimizer.warmup_steps": ("optimizer", "groups", "default", "lr_scheduler", "warmup_updates"),
    "optimizer.weight_decay": ("optimizer", "groups", "default", "optimizer", "weight_decay"),
    "optimizer.betas": ("optimizer", "groups", "default", "optimizer", "adam_betas"),
    "optimizer.clip_norm": ("optimization", "clip_norm"),
    "data.batch_size": ("dataset", "batch_size"),
    "steps": ("optimization", "max_update"),
    "seed": ("common", "seed"),
    f"{OBJECTIVE}.clones": ("model", "clone_batch"),
    f"{OBJECTIVE}.utterance_weight": ("model", "cls_loss"),
    f"{OBJECTIVE}.top_layers": ("model", "average_top_k_layers"),
    f"{OBJECTIVE}.noise_std": ("model", "modalities", "image", "mask_noise_std"),
    f"{OBJECTIVE}.mask.hidden_share": ("model", "modalities", "image", "mask_prob"),
    f"{OBJECTIVE}.mask.block": ("model", "modalities", "image", "mask_length"),
    f"{OBJECTIVE}.mask.adjust": ("model", "modalities", "image", "mask_prob_adjust"),
    f"{OBJECTIVE}.teacher.decay_start": ("model", "ema_decay"),
    f"{OBJECTIVE}.teacher.decay_end": ("model", "ema_end_decay"),
    f"{OBJECTIVE}.teacher.anneal_steps": ("model", "ema_anneal_end_step"),
}
"""asda's key -> path in a stored pre-training config. The batch is per GPU, over which the utterance loss is summed."""
SUPPORTED_SETTINGS = {
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
"""Settings that every released training recipe shares and that latent regression assumes."""


def nested_value(tree: Any, *path: str) -> Any:
    """Return the value at a path of nested mappings, None if there is none."""
    for key in path:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree


def pretraining_config(stored_config: Any) -> Any:
    """Return the pre-training config within a stored one: itself, or what a fine-tuned file keeps of it."""
    return nested_value(stored_config, "model", "pretrained_model_args") or stored_config


def run_config(
    architecture: Architecture, stored_config: Any, sidecar: Mapping[str, Any]
) -> tuple[RunConfig, list[str]]:
    """Return the config of the run that made a file, and the stored settings that were not usable, as in "clip_norm 0".

    Args:
        architecture: architecture of its tensors.
        stored_config: config within a fairseq file; empty if there is none.
        sidecar: `config.json` beside a Hugging Face file; empty if there is none.
    """
    before = pretraining_config(stored_config)
    values: dict[str, Any] = {}
    for flag, constants in NORMALISATION.items():
        if any(nested_value(stored_config, part, flag) is True for part in ("model", "task")):
            values |= {f"front_end.options.{name}": value for name, value in constants.items()}
    bins = nested_value(sidecar, "mel_bins")
    if bins not in (None, LogMelConfig.num_bins):
        values["front_end.options.num_bins"] = bins
    frames = nested_value(stored_config, "task", "target_length") or nested_value(
        stored_config, "model", "target_length"
    )
    size = nested_value(sidecar, "img_size")
    frames = frames or (size[0] if isinstance(size, list) and size else None)
    if frames is not None and _is_number(frames):
        values["data.clip_seconds"] = (frames - 1) * HOP_SECONDS + WINDOW_SECONDS
    values |= {key: nested_value(before, *path) for key, path in STORED_PATHS.items()}
    values |= {
        f"{OBJECTIVE}.decoder.{name}": value
        for name, value in _decoder(architecture, nested_value(before, "model")).items()
    }
    start = {
        "compat": "released",
        "front_end": "log_mel",
        "objective": "latent_regression",
        "encoder": architecture.encoder,
    }
    return _accepted(start, {key: value for key, value in values.items() if value is not None}, architecture)


def _accepted(
    plain: dict[str, Any], values: Mapping[str, Any], architecture: Architecture
) -> tuple[RunConfig, list[str]]:
    """Return the config with every value that it accepts, and a description of each of the others."""
    rejected = []
    for key, value in values.items():
        if key == "optimizer.betas" and isinstance(value, str):
            value = _pair(value)
        try:
            candidate = with_value(plain, key, value)
            run = parse(RunConfig, candidate)
            options = parse(LatentRegressionConfig, run.objective.options)
            parse(LogMelConfig, run.front_end.options)
        except ConfigError:
            rejected.append(f"{key.rpartition('.')[2]} {value!r:.40}")
            continue
        if (options.top_layers or 0) > architecture.encoder.depth:
            rejected.append(f"top_layers {options.top_layers}")
            continue
        plain = candidate
    return parse(RunConfig, plain), rejected


def unsupported_settings(stored_config: Any) -> list[str]:
    """List stored training settings that asda does not reproduce; they affect further training, not the features."""
    model = nested_value(pretraining_config(stored_config), "model")
    values = {path: nested_value(model, *path) for path in SUPPORTED_SETTINGS}
    return [
        f"{path[-1]} {values[path]!r:.40}"
        for path, expected in SUPPORTED_SETTINGS.items()
        if values[path] is not None and values[path] != expected
    ]


def classifier_config(
    architecture: Architecture, stored_config: Any, labels: Mapping[Any, Any]
) -> ClassifierConfig | None:
    """Return the config of the head of a fine-tuned file, None if it has none.

    Args:
        architecture: architecture of its tensors.
        stored_config: config within a fairseq file.
        labels: name of a class -> its number, as in `task_state`.
    """
    if not architecture.num_classes:
        return None
    numbers = {str(number): number for number in range(architecture.num_classes)}
    names = {numbers[str(number)]: str(name) for name, number in labels.items() if str(number) in numbers}
    mode = nested_value(stored_config, "model", "prediction_mode")
    return ClassifierConfig(
        num_classes=architecture.num_classes,
        pooling=PREDICTION_MODES.get(str(mode), "summary"),
        norm_eps=ClassifierConfig.norm_eps if architecture.layout == "fairseq" else HUGGING_FACE_HEAD_EPS,
        multi_label=nested_value(stored_config, "model", "esc50_eval") is not True,
        labels=tuple(names[number] for number in numbers.values()) if len(names) == architecture.num_classes else (),
    )


def _decoder(architecture: Architecture, model: Any) -> dict[str, Any]:
    """Return decoder settings: from the shapes of its convolutions, or as stated, or adjusted to fit the width."""
    dim = architecture.encoder.dim
    if architecture.decoder:
        width, per_group, kernel, _ = architecture.decoder[0]
        return {
            "groups": max(1, dim // max(1, per_group)),
            "dim": width,
            "layers": len(architecture.decoder),
            "kernel": kernel,
        }
    names = {"groups": "decoder_groups", "dim": "decoder_dim", "layers": "decoder_layers", "kernel": "decoder_kernel"}
    stated = {ours: nested_value(model, "modalities", "image", "decoder", theirs) for ours, theirs in names.items()}
    groups = stated["groups"] if _is_number(stated["groups"]) else DecoderConfig.groups
    if dim % max(1, int(groups)):
        return {"groups": math.gcd(dim, DecoderConfig.groups), "dim": dim}
    return stated


def _pair(text: str) -> Any:
    """Parse a pair of numbers that is stored as text, as fairseq's command lines do."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and value is not True and 0 < value < 1 << 31
