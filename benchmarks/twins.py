"""Naive twins: reference implementations of what the fast paths compute, in the manner of the released code."""

import math
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm

from asda_core.model import recomputation
from asda_core.model.encoder import Encoder
from asda_core.pretrain.latent_regression import LatentRegression


def set_by_formula(encoder: Encoder, by_formula: bool) -> None:
    """Set whether attention computes both maps and subtracts them, or uses the fast path."""
    for each in encoder.blocks:
        each.mixer.by_formula = by_formula


def keeping_everything() -> Any:
    """Disable recomputation in the backward pass: autograd keeps all it needs."""
    return mock.patch.object(recomputation, "MIN_VALUES", math.inf)


def decoded(of: Any, patches: Tensor, grid: tuple[int, int]) -> Tensor:
    """Pass all patches through the decoder, channels first, with a transposition for each norm."""
    maps = patches.transpose(1, 2).reshape(len(patches), -1, *grid)
    for convolution in of.convolutions:
        new = convolution(maps).permute(0, 2, 3, 1)
        new = gelu(layer_norm(new, new.shape[3:]).permute(0, 3, 1, 2))
        maps = new + maps if new.shape == maps.shape else new
    return of.proj(maps.flatten(2).transpose(1, 2))


def targets(layers: tuple[Tensor, ...]) -> Tensor:
    """Targets: instance norm of each layer, mean over layers, layer norm."""
    normed = [torch.nn.functional.instance_norm(layer.float().transpose(1, 2)).transpose(1, 2) for layer in layers]
    return layer_norm(sum(normed) / len(normed), normed[0].shape[2:])


@keeping_everything()
def step_loss(objective: LatentRegression, encoder: Encoder, features: Tensor, hidden: Tensor, noise: Tensor) -> Tensor:
    """Pre-training loss with clips repeated for their clones, all patches predicted, and targets repeated."""
    config = objective.config
    tokens, layout = encoder.embed(features)
    repeated = tokens.repeat_interleave(config.clones, 0)
    shape = (len(repeated), -1, tokens.shape[2])
    owner = torch.arange(len(features), device=features.device).repeat_interleave(config.clones)
    order = hidden.to(torch.uint8).argsort(dim=1, stable=True)
    kept = order[:, : int((~hidden[0]).sum())]
    student = encoder.encode(repeated[~hidden].view(shape), layout.select(owner, kept))
    filled = noise.to(student.tokens.dtype).scatter(1, kept[..., None].expand(-1, -1, shape[2]), student.tokens)
    predicted = decoded(objective.decoder, filled, layout.grid)
    with torch.no_grad():
        target = targets(objective.teacher.encoder(features).layers)
        all_targets = target.repeat_interleave(config.clones, 0)
    frame = (predicted[hidden].float() - all_targets[hidden]).square().sum(-1).mean() / math.sqrt(shape[2])
    whole = (student.summary.float() - all_targets.mean(1)).square().sum(-1).mean() / math.sqrt(shape[2])
    rows = len(owner) if config.utterance_rows is None else config.utterance_rows
    return config.frame_weight * frame + config.utterance_weight * rows * whole
