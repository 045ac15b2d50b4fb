"""HEAR's three functions, as `hear-validator` and `heareval` call them."""

import os
from dataclasses import asdict, replace
from typing import Any, Literal, cast

from jaxtyping import Float
from torch import Tensor

from asda_core.assemble import build_front_end
from asda_core.catalog import Catalog, installed_catalog
from asda_core.checkpoint import Checkpoint
from asda_core.config import PluginChoice, RunConfig
from asda_core.config_io import parse
from asda_core.contracts import FrontEnd
from asda_core.devices import building, own_modes
from asda_core.errors import ConfigError
from asda_core.model.encoder import Encoder
from asda_hear.model import HearModel, HearOptions
from asda_hear.model_loading import open_encoder
from asda_hear.names import LOG_MEL
from asda_hear.pooling import EncoderBackbone, LogMelBackbone

DEFAULT_POOLING: Literal["mean"] = "mean"
"""Pooling of scenes and timestamps if neither the options nor the checkpoint specify one."""


def load_model(
    model_file_path: str | os.PathLike[str] = "", *, catalog: Catalog | None = None, **options: Any
) -> HearModel:
    """Load a model that implements the HEAR API.

    Args:
        model_file_path: a checkpoint or run folder of `asda pretrain`; a released checkpoint of EAT or ASDA (`.pt`),
            or EAT's Hugging Face folder; a config (`.yaml`, or the name of one in the package: "asda_base") for
            random weights drawn from its seed; "log_mel" for the baseline without a model; empty for the small model
            of the package.
        catalog: plugins to use; by default those installed.
        options: see `HearOptions`.

    Returns:
        the model, in evaluation mode, in float32 on the CPU.

    Raises:
        CheckpointError: the checkpoint is missing, damaged or rejected, or needs a plugin that is missing.
        ConfigError: an option or the config is invalid.
        PluginError: a config names a plugin that is missing or broken.

    **Source**: HEAR API, https://hearbenchmark.com/hear-api.html
    """
    parsed = parse(HearOptions, options, "load_model")
    plugins = catalog or installed_catalog()
    if str(model_file_path) == LOG_MEL:
        if parsed.weights == "teacher":
            raise ConfigError(f"weights teacher: {LOG_MEL} is not a trained model and has no teacher.")
        return _baseline(plugins, parsed)
    opened = open_encoder(model_file_path, plugins, parsed.weights)
    if opened.checkpoint is not None:
        parsed = _with_recommended(parsed, opened.checkpoint)
    return build_hear_model(opened.front_end, opened.encoder, opened.config.data.clip_seconds, parsed)


def build_hear_model(front_end: FrontEnd, encoder: Encoder, clip_seconds: float, options: HearOptions) -> HearModel:
    """Build the model of a front end and an encoder.

    Args:
        front_end: computes the features.
        encoder: the encoder that takes its features.
        clip_seconds: length of the clips that it was trained on, in seconds.
        options: how embeddings are computed.

    Raises:
        ConfigError: the options do not fit the model.
    """
    backbone = EncoderBackbone(
        encoder,
        front_end.num_bins,
        options.scene_pooling or DEFAULT_POOLING,
        options.timestamp_pooling or DEFAULT_POOLING,
        options.layers,
    )
    return HearModel(front_end, backbone, clip_seconds, options)


@building()
@own_modes()
def _baseline(plugins: Catalog, options: HearOptions) -> HearModel:
    """Build the log-mel baseline, which has no encoder.

    Raises:
        ConfigError: `layers` is given.
    """
    if options.layers is not None:
        raise ConfigError(f"layers: {LOG_MEL} has no encoder and therefore no layers.")
    front_end, defaults = build_front_end(plugins, PluginChoice(LOG_MEL)), RunConfig()
    pooling = options.scene_pooling or DEFAULT_POOLING
    backbone = LogMelBackbone(front_end.num_bins, defaults.encoder.patch_frames, pooling)
    return HearModel(front_end, backbone, defaults.data.clip_seconds, options)


def _with_recommended(options: HearOptions, checkpoint: Checkpoint) -> HearOptions:
    """Fill in unset options with those that the checkpoint recommends.

    Raises:
        ConfigError: the checkpoint recommends something that is not a valid option.
    """
    recommended = parse(HearOptions, checkpoint.embedding, f"{checkpoint.file}: embedding")
    explicit = {name: value for name, value in asdict(options).items() if value is not None}
    return replace(recommended, **explicit)


def get_scene_embeddings(
    audio: Float[Tensor, "n_sounds n_samples"], model: HearModel
) -> Float[Tensor, "n_sounds size"]:
    """Compute one embedding per clip.

    Args:
        audio: mono in [-1, 1] at `model.sample_rate`; any length from 1 sample to hours.
        model: from `load_model`.

    Returns:
        float32, on the model's device, without a gradient.

    Raises:
        AudioError: the audio is not a two-dimensional floating-point tensor, is empty, or has NaN, infinite or
            implausibly large samples.
        ConfigError: the model was cast to another dtype, or is not from `load_model`.
        CheckpointError: the embeddings have NaN or infinite values (checked on the CPU only).
    """
    return _loaded(model).scene(audio)


def get_timestamp_embeddings(
    audio: Float[Tensor, "n_sounds n_samples"], model: HearModel
) -> tuple[Float[Tensor, "n_sounds n_timestamps size"], Float[Tensor, "n_sounds n_timestamps"]]:
    """Compute embeddings at regular times of each clip.

    Args:
        audio: mono in [-1, 1] at `model.sample_rate`; any length from 1 sample to hours.
        model: from `load_model`.

    Returns:
        embeddings, and the centre of each in milliseconds from the beginning (0, 40, 80, ...); both float32.
        float32 represents whole milliseconds exactly up to 4 hours 39 minutes.

    Raises:
        AudioError: the audio is not a two-dimensional floating-point tensor, is empty, or has NaN, infinite or
            implausibly large samples.
        ConfigError: the model was cast to another dtype, or is not from `load_model`.
        CheckpointError: the embeddings have NaN or infinite values (checked on the CPU only).
    """
    return _loaded(model).timestamps(audio)


def _loaded(model: Any) -> HearModel:
    """Return the model, or a wrapper of one, as that of `torch.compile`.

    Raises:
        ConfigError: it is something else, such as the name of a model.
    """
    if hasattr(model, "scene") and hasattr(model, "timestamps"):
        return cast(HearModel, model)
    name = repr(os.fspath(model)) if isinstance(model, str | os.PathLike) else ""
    given, call = name or type(model).__name__, f"load_model({name})" if name else "load_model"
    raise ConfigError(f"model must be what load_model returns, not {given}; call {call} first.")
