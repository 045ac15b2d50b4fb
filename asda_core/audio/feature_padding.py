"""Padding of short clips in the features."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from asda_core.devices import to_device
from asda_core.errors import ConfigError


def padded_features(
    front_end: Any, audio: Float[Tensor, "batch samples"], num_samples: Int[Tensor, " batch"], padding: str
) -> Float[Tensor, "batch bins frames"]:
    """Compute the features of clips that were padded with silence; with padding "features", see `fill_features`.

    Raises:
        ConfigError: as `fill_features`.
    """
    features: Tensor = front_end(audio)
    return fill_features(features, num_samples, front_end) if padding == "features" else features


def fill_features(
    features: Float[Tensor, "batch bins frames"], num_samples: Int[Tensor, " batch"], front_end: Any
) -> Float[Tensor, "batch bins frames"]:
    """Set the frames that do not lie wholly within the audio to the front end's `filling`, as the release does.

    Args:
        features: features of clips that were padded with silence.
        num_samples: number of samples in each clip, without padding.
        front_end: the `FrontEnd` that computed the features.

    Raises:
        ConfigError: the front end has no `filling`.

    **Source**: released data path, which pads the log-mel with 0 before it normalises.
    """
    if not hasattr(front_end, "filling"):
        raise ConfigError(
            "data.padding is 'features' (which compat: released sets), but this front end defines no value to pad "
            "with (filling); data.padding: silence pads the audio."
        )
    whole = (num_samples - front_end.window_samples) // front_end.hop_samples + 1  # (B,), 0 or less below one window
    is_padding = torch.arange(features.shape[2], device=features.device) >= to_device(whole, features.device)[:, None]
    filled: Tensor = torch.where(is_padding[:, None], front_end.filling, features)
    return filled
