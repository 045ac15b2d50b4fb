"""The tensors of EAT and ASDA: what they are called, what shapes they have, and what architecture that is.

Nothing in a released file says "differential", and the width of the MLP that it states is wrong for ASDA. So all is
recognised from names and shapes, but the number of heads and the epsilon of the norms, which no tensor shows.

**Source**: released ASDA and EAT checkpoints (fairseq), and EAT's Hugging Face files.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from asda_core.config import EncoderConfig, PluginChoice
from asda_core.errors import CheckpointError
from asda_core.model.patches import sine_cosine_positions

HEAD_WIDTH = 64
"""Width of an attention head in every released model, for files that do not state the number of heads."""
NUM_BINS = 128
"""Mel bins of every released model, for files that do not state them."""
POSITION_TOLERANCE = 1e-3
"""Largest difference of stored positions to ours; float32 angles alone give 4e-5 behind 768 time steps."""
FIRST_BLOCK = "blocks.0.norm1.weight"
"""A tensor that every file of the family has, whatever stands before its name."""

Shape = tuple[int, ...]

ROOTS = {
    "fairseq": {
        "class_token": "modality_encoders.IMAGE.extra_tokens",
        "patches.projection": "modality_encoders.IMAGE.local_encoder.proj",
        "input_norm": "modality_encoders.IMAGE.context_encoder.norm",
        "positions": "modality_encoders.IMAGE.fixed_positional_encoder.positions",
        "decoder": "modality_encoders.IMAGE.decoder",
    },
    "Hugging Face": {
        "class_token": "extra_tokens",
        "patches.projection": "local_encoder.proj",
        "input_norm": "pre_norm",
        "positions": "fixed_positional_encoder.positions",
        "decoder": "decoder",
    },
}
"""Layout -> our name of what stands outside the blocks -> theirs."""


@dataclass(frozen=True)
class Architecture:
    """What names, shapes and the stored config tell of a model.

    Attributes:
        layout: "fairseq" or "Hugging Face".
        prefix: what stands before every name of the encoder: "" or "model.".
        encoder: its shape, with the mixer.
        hidden: width of the MLP.
        bias: whether query, key and value have one.
        decoder: shapes of the decoder's convolutions (out, in / groups, kernel, kernel); empty if there is none.
        num_classes: of a fine-tuned model; 0 if there is no head.
    """

    layout: str
    prefix: str
    encoder: EncoderConfig
    hidden: int
    bias: bool
    decoder: tuple[Shape, ...]
    num_classes: int


def recognise(tensors: Mapping[str, Tensor], stated: Mapping[str, Any], file: Path) -> Architecture:
    """The architecture of a state.

    Args:
        tensors: by released name.
        stated: `num_heads`, `norm_eps`, `layer_norm_first` as the file's config has them; all optional.
        file: for messages.

    Raises:
        CheckpointError: it is no model of this family.
    """
    prefix = next((name.removesuffix(FIRST_BLOCK) for name in tensors if name.endswith(FIRST_BLOCK)), None)
    if prefix not in ("", "model."):
        few = ", ".join(list(tensors)[:3]) or "nothing"
        raise CheckpointError(
            f"{file} is no checkpoint of EAT or ASDA: no tensor is called {FIRST_BLOCK!r}; it has {few}."
        )
    layout = "fairseq" if any(name.startswith(f"{prefix}modality_encoders.") for name in tensors) else "Hugging Face"
    roots = {ours: prefix + theirs for ours, theirs in ROOTS[layout].items()}

    def shape(name: str, num_axes: int) -> Shape:
        if name not in tensors or tensors[name].ndim != num_axes:
            what = f"has {tensors[name].ndim} axes" if name in tensors else "is missing"
            raise CheckpointError(f"{file}: the tensor {name!r}, which tells the architecture, {what}.")
        return tuple(tensors[name].shape)

    dim, _, patch_frames, patch_bins = shape(f"{roots['patches.projection']}.weight", 4)
    hidden = shape(f"{prefix}blocks.0.mlp.fc1.weight", 2)[0]
    mixer = "differential" if f"{prefix}blocks.0.attn.qk.weight" in tensors else "standard"
    bias = f"{prefix}blocks.0.attn.{'qk' if mixer == 'differential' else 'qkv'}.bias" in tensors
    block = re.compile(re.escape(prefix) + r"blocks\.(\d+)\.")
    numbers = {int(found.group(1)) for found in map(block.match, tensors) if found}
    convolution = re.compile(re.escape(roots["decoder"]) + r"\.blocks\.(\d+)\.0\.weight")
    layers = sorted(int(found.group(1)) for found in map(convolution.fullmatch, tensors) if found)
    encoder = EncoderConfig(
        dim=dim,
        depth=len(numbers),
        num_heads=_num_heads(dim, stated, file),
        mlp_ratio=_ratio(dim, hidden),
        norm="pre" if stated.get("layer_norm_first") else "post",
        pre_norm_residual=not stated.get("layer_norm_first"),
        norm_eps=float(stated.get("norm_eps") or EncoderConfig.norm_eps),
        patch_frames=patch_frames,
        patch_bins=patch_bins,
        mixer=PluginChoice(mixer, {} if bias else {"qkv_bias": False}),
    )
    decoder = tuple(shape(f"{roots['decoder']}.blocks.{layer}.0.weight", 4) for layer in layers)
    num_classes = shape(_head(prefix, layout), 2)[0] if _head(prefix, layout) in tensors else 0
    return Architecture(layout, prefix, encoder, hidden, bias, decoder, num_classes)


def encoder_names(found: Architecture) -> dict[str, tuple[str, Shape]]:
    """Our name of every tensor of the encoder -> its released name and shape."""
    config = found.encoder
    dim, hidden = config.dim, found.hidden
    linear = {"proj": (dim, dim)}
    norms = {"norm1": dim, "norm2": dim}
    if config.mixer.name == "differential":
        linear |= {"qk": (4 * dim, dim), "v": (dim, dim)}
        norms |= {"mixer.norm": dim}
    else:
        linear |= {"qkv": (3 * dim, dim)}
    block: dict[str, Shape] = {f"{norm}.{kind}": (dim,) for norm in norms for kind in ("weight", "bias")}
    for name, shape in linear.items():
        block[f"mixer.{name}.weight"] = shape
        if found.bias or name == "proj":
            block[f"mixer.{name}.bias"] = shape[:1]
    for name, shape in {"expand": (hidden, dim), "contract": (dim, hidden)}.items():
        block |= {f"mlp.{name}.weight": shape, f"mlp.{name}.bias": shape[:1]}
    ours: dict[str, Shape] = {
        "class_token": (1, 1, dim),
        "patches.projection.weight": (dim, 1, config.patch_frames, config.patch_bins),
        "patches.projection.bias": (dim,),
        "input_norm.weight": (dim,),
        "input_norm.bias": (dim,),
    }
    for layer in range(config.depth):
        ours |= {f"blocks.{layer}.{name}": shape for name, shape in block.items()}
    return {name: (released_name(name, found), shape) for name, shape in ours.items()}


def decoder_names(found: Architecture) -> dict[str, tuple[str, Shape]]:
    """Our name of every tensor of the decoder -> its released name and shape."""
    root, dim = ROOTS[found.layout]["decoder"], found.encoder.dim
    names: dict[str, tuple[str, Shape]] = {}
    for layer, shape in enumerate(found.decoder):
        names[f"convolutions.{layer}.weight"] = (f"{found.prefix}{root}.blocks.{layer}.0.weight", shape)
        names[f"convolutions.{layer}.bias"] = (f"{found.prefix}{root}.blocks.{layer}.0.bias", shape[:1])
    if found.decoder:
        names["proj.weight"] = (f"{found.prefix}{root}.proj.weight", (dim, found.decoder[-1][0]))
        names["proj.bias"] = (f"{found.prefix}{root}.proj.bias", (dim,))
    return names


def classifier_names(found: Architecture) -> dict[str, tuple[str, Shape]]:
    """Our name of every tensor of the head -> its released name and shape."""
    if not found.num_classes:
        return {}
    dim, head = found.encoder.dim, _head(found.prefix, found.layout)
    norm = head.replace("head.weight", "fc_norm")
    return {
        "norm.weight": (f"{norm}.weight", (dim,)),
        "norm.bias": (f"{norm}.bias", (dim,)),
        "head.weight": (head, (found.num_classes, dim)),
        "head.bias": (head.replace("weight", "bias"), (found.num_classes,)),
    }


def released_name(ours: str, found: Architecture) -> str:
    """The released name of a tensor of our encoder."""
    for name, theirs in ROOTS[found.layout].items():
        if ours == name or ours.startswith(f"{name}."):
            return found.prefix + theirs + ours.removeprefix(name)
    inside = ours.replace(".mixer.", ".attn.").replace(".expand.", ".fc1.").replace(".contract.", ".fc2.")
    return found.prefix + inside


def positions_name(found: Architecture) -> str:
    """Where the file keeps the table of fixed positions."""
    return found.prefix + ROOTS[found.layout]["positions"]


def check_positions(table: Tensor, found: Architecture, file: Path, num_bins: int = NUM_BINS) -> None:
    """Compare a stored table with the positions that we compute; any number of time steps will do.

    Raises:
        CheckpointError: it is another table.
    """
    config = found.encoder
    bands = num_bins // config.patch_bins
    rows = table.shape[1] if table.ndim == 3 else 0
    if tuple(table.shape) != (1, rows, config.dim) or not rows or rows % bands:
        raise CheckpointError(f"{file}: positions of shape {tuple(table.shape)} are no table of {bands} bands.")
    error = float((table[0].float() - sine_cosine_positions((rows // bands, bands), config.dim)).abs().max())
    if not error < POSITION_TOLERANCE:
        raise CheckpointError(f"{file}: its positions are not the fixed sine-cosine table (off by {error:.2g}).")


def finite(tensors: Mapping[str, Tensor], file: Path) -> None:
    """Refuse NaN and infinite weights.

    Raises:
        CheckpointError: naming the tensors.
    """
    bad = [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]
    if bad:
        raise CheckpointError(f"{file} holds NaN or infinite values in {', '.join(bad)}.")


def _head(prefix: str, layout: str) -> str:
    """Name of the head's weight: fairseq's fine-tuned model keeps it beside the encoder, Hugging Face's within."""
    return "head.weight" if layout == "fairseq" else f"{prefix}head.weight"


def _num_heads(dim: int, stated: Mapping[str, Any], file: Path) -> int:
    heads = stated.get("num_heads")
    if heads is None and dim % HEAD_WIDTH == 0:
        return dim // HEAD_WIDTH
    if not isinstance(heads, int) or heads < 1 or dim % heads:
        raise CheckpointError(f"{file}: no config in or beside it states how many heads its width {dim} has ({heads}).")
    return heads


def _ratio(dim: int, hidden: int) -> float:
    """A ratio of which `int(dim * ratio)` is the hidden width."""
    ratio = hidden / dim
    return ratio if int(dim * ratio) == hidden else math.nextafter(ratio, math.inf)
