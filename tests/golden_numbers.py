"""Reads `tests/golden`: numbers made by running the released code, and the released names of our parameters."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

GOLDEN = Path(__file__).parent / "golden"
FORWARD = 1e-4
"""Tolerance of forward passes, relative to the largest magnitude."""
TRAINING = 1e-3
"""Tolerance of gradients and of training traces, likewise."""

TO_OURS = (
    ("modality_encoders.IMAGE.extra_tokens", "class_token"),
    ("modality_encoders.IMAGE.local_encoder.proj.", "patches.projection."),
    ("modality_encoders.IMAGE.context_encoder.norm.", "input_norm."),
    (".attn.", ".mixer."),
    (".mlp.fc1.", ".mlp.expand."),
    (".mlp.fc2.", ".mlp.contract."),
)
DECODER = "modality_encoders.IMAGE.decoder."
POSITIONS = "modality_encoders.IMAGE.fixed_positional_encoder.positions"


def load(name: str) -> dict[str, Tensor]:
    """All arrays of a file, those that are text as a list."""
    with np.load(GOLDEN / name) as arrays:
        return {
            key: torch.from_numpy(arrays[key]) if arrays[key].dtype.kind != "U" else arrays[key].tolist()
            for key in arrays.files
        }


def our_name(released: str) -> str:
    """The name in our encoder of a released tensor."""
    for theirs, ours in TO_OURS:
        released = released.replace(theirs, ours)
    return released


def our_decoder_name(released: str) -> str:
    """The name in our decoder of a released decoder tensor (without prefix)."""
    parts = released.split(".")
    return f"convolutions.{parts[1]}.{parts[3]}" if parts[0] == "blocks" else released


def released_tensors(name: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Student and teacher tensors of a golden checkpoint."""
    model = torch.load(GOLDEN / name, weights_only=True)["model"]
    return {key: value for key, value in model.items() if key != "_ema"}, model["_ema"]


def encoder_state(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Released tensors as the state of our encoder."""
    return {our_name(k): v for k, v in tensors.items() if not k.startswith(DECODER) and k != POSITIONS}


def decoder_state(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Released tensors as the state of our decoder."""
    return {our_decoder_name(k.removeprefix(DECODER)): v for k, v in tensors.items() if k.startswith(DECODER)}


def parameters(arrays: dict[str, Tensor], prefix: str = "param/") -> dict[str, Tensor]:
    """The arrays under a prefix as a state, attention alone: names fit as they are."""
    return {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}


def assert_close(given: Tensor, wanted: Tensor, tolerance: float = FORWARD) -> None:
    """Largest difference relative to the largest magnitude of what is wanted."""
    assert given.shape == wanted.shape
    error = (given.double() - wanted.double()).abs().max() / wanted.double().abs().max().clamp(min=1e-30)
    assert error < tolerance, f"differs by {error:.2e} of the largest magnitude"


def gradients(module: nn.Module) -> dict[str, Tensor]:
    """Gradient of every parameter that has one."""
    return {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
