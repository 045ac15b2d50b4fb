"""The tensors of EAT and ASDA: their names and shapes, and the architecture that these imply.

Nothing in a released file says "differential", and the width of the MLP that it states is wrong for ASDA. Everything is
therefore inferred from names and shapes, except the number of heads and the norms' epsilon, which no tensor shows.

**Source**: released ASDA and EAT checkpoints (fairseq), and EAT's Hugging Face files.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from asda_core.config import EncoderConfig, PluginChoice
from asda_core.errors import CheckpointError
from asda_core.model.patches import sine_cosine_positions
from asda_core.official.matching import Shape, printable

HEAD_WIDTH = 64
"""Width of an attention head in every released model, for files that do not state the number of heads."""
NUM_BINS = 128
"""Mel bins of every released model, for files that do not state them."""
POSITION_TOLERANCE = 1e-3
"""Largest allowed difference of stored from computed positions; float32 angles alone give 4e-5 at 768 time steps."""
STEPS_COMPARED = 768
"""Time steps of a stored table that are compared: as many as in released ones. The model always computes its own."""
BLOCK = re.compile(r"((?:module\.)?(?:model\.)?)blocks\.(\d{1,3})\.(.+)", re.DOTALL)
"""Name of a tensor of a block: its prefix, the number of the block, and the name within the block."""
BLOCK_EXAMPLE = "blocks.0.norm1.weight"
QKV_BIAS = {"attn.qk.bias", "attn.v.bias", "attn.qkv.bias"}

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
"""Layout -> asda's name of a module outside the blocks -> its released name."""


@dataclass(frozen=True)
class Architecture:
    """Architecture of a model, as inferred from tensor names, shapes and the stored config.

    Attributes:
        layout: "fairseq" or "Hugging Face".
        prefix: prefix of every name of the encoder: "", "model." (and "module." of parallel training).
        encoder: config of the encoder, with the mixer.
        hidden: width of the MLP.
        qkv_bias: whether query, key and value have one.
        decoder: shapes of the decoder's convolutions (out, in / groups, kernel, kernel); empty if there is none.
        num_classes: number of classes of a fine-tuned model; 0 if there is no head.
    """

    layout: str
    prefix: str
    encoder: EncoderConfig
    hidden: int
    qkv_bias: bool
    decoder: tuple[Shape, ...]
    num_classes: int


def infer_architecture(tensors: Mapping[str, Tensor], stored_config: Mapping[str, Any], file: Path) -> Architecture:
    """Infer the architecture from a state dict; missing tensors do not matter where others imply the same.

    Args:
        tensors: by released name.
        stored_config: `num_heads`, `norm_eps`, `layer_norm_first` as the file's config has them; all optional.
        file: for messages.

    Raises:
        CheckpointError: it is not a model of this family.
    """
    prefix, depth, inside = _blocks(tensors, file)
    layout = "fairseq" if any(name.startswith(f"{prefix}modality_encoders.") for name in tensors) else "Hugging Face"
    roots = {ours: prefix + theirs for ours, theirs in ROOTS[layout].items()}
    mixer = "differential" if any(name.startswith("attn.qk.") for name in inside) else "standard"
    dim = _usual(inside, ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"), 0)
    if dim < 1:
        raise CheckpointError(f"{file}: cannot infer the width of the model: its blocks have no norm weights.")
    hidden = _usual(inside, ("mlp.fc1.weight", "mlp.fc1.bias"), 4 * dim)
    patch: Shape = tuple(getattr(tensors.get(f"{roots['patches.projection']}.weight"), "shape", ()))
    before_norm = stored_config.get("layer_norm_first") is True
    encoder = EncoderConfig(
        dim=dim,
        depth=depth,
        num_heads=_num_heads(dim, stored_config, file),
        mlp_ratio=_ratio(dim, hidden),
        norm="pre" if before_norm else "post",
        pre_norm_residual=not before_norm,
        norm_eps=_norm_eps(stored_config, file),
        patch_frames=int(patch[2]) if len(patch) == 4 else EncoderConfig.patch_frames,
        patch_bins=int(patch[3]) if len(patch) == 4 else EncoderConfig.patch_bins,
        mixer=PluginChoice(mixer, {} if QKV_BIAS & inside.keys() else {"qkv_bias": False}),
    )
    head: Shape = tuple(getattr(tensors.get(_head(prefix, layout)), "shape", ()))
    return Architecture(
        layout=layout,
        prefix=prefix,
        encoder=encoder,
        hidden=hidden,
        qkv_bias=bool(QKV_BIAS & inside.keys()),
        decoder=_convolutions(tensors, roots["decoder"]),
        num_classes=int(head[0]) if len(head) == 2 else 0,
    )


def _blocks(tensors: Mapping[str, Tensor], file: Path) -> tuple[str, int, dict[str, list[Shape]]]:
    """Return the prefix of the blocks' names, the number of blocks, and the shapes by name within a block."""
    blocks = [block for block in map(BLOCK.fullmatch, tensors) if block]
    if not blocks:
        few = ", ".join(map(printable, list(tensors)[:3])) or "nothing"
        raise CheckpointError(
            f"{file} is not a checkpoint of EAT or ASDA: no tensor has a name like {BLOCK_EXAMPLE!r}; found {few}."
        )
    prefix = Counter(block.group(1) for block in blocks).most_common(1)[0][0]
    inside: dict[str, list[Shape]] = {}
    for match in blocks:
        if match.group(1) == prefix:
            inside.setdefault(match.group(3), []).append(tuple(tensors[match.group(0)].shape))
    return prefix, len({block.group(2) for block in blocks if block.group(1) == prefix}), inside


def _convolutions(tensors: Mapping[str, Tensor], root: str) -> tuple[Shape, ...]:
    """Return the shapes of the decoder's convolutions, in order."""
    name = re.compile(re.escape(root) + r"\.blocks\.(\d{1,3})\.0\.weight")
    layers = sorted((int(match.group(1)), match.group(0)) for match in map(name.fullmatch, tensors) if match)
    return tuple(tuple(tensors[layer].shape) for _, layer in layers if tensors[layer].ndim == 4)


def encoder_names(architecture: Architecture) -> dict[str, tuple[str, Shape]]:
    """Map asda's name of every tensor of the encoder to its released name and shape."""
    config = architecture.encoder
    dim, hidden = config.dim, architecture.hidden
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
        if architecture.qkv_bias or name == "proj":
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
    return {name: (released_name(name, architecture), shape) for name, shape in ours.items()}


def decoder_names(architecture: Architecture) -> dict[str, tuple[str, Shape]]:
    """Map asda's name of every tensor of the decoder to its released name and shape."""
    root, dim = ROOTS[architecture.layout]["decoder"], architecture.encoder.dim
    names: dict[str, tuple[str, Shape]] = {}
    for layer, shape in enumerate(architecture.decoder):
        names[f"convolutions.{layer}.weight"] = (f"{architecture.prefix}{root}.blocks.{layer}.0.weight", shape)
        names[f"convolutions.{layer}.bias"] = (f"{architecture.prefix}{root}.blocks.{layer}.0.bias", shape[:1])
    if architecture.decoder:
        names["proj.weight"] = (f"{architecture.prefix}{root}.proj.weight", (dim, architecture.decoder[-1][0]))
        names["proj.bias"] = (f"{architecture.prefix}{root}.proj.bias", (dim,))
    return names


def classifier_names(architecture: Architecture) -> dict[str, tuple[str, Shape]]:
    """Map asda's name of every tensor of the head to its released name and shape."""
    if not architecture.num_classes:
        return {}
    dim, head = architecture.encoder.dim, _head(architecture.prefix, architecture.layout)
    norm = head.replace("head.weight", "fc_norm")
    return {
        "norm.weight": (f"{norm}.weight", (dim,)),
        "norm.bias": (f"{norm}.bias", (dim,)),
        "head.weight": (head, (architecture.num_classes, dim)),
        "head.bias": (head.replace("weight", "bias"), (architecture.num_classes,)),
    }


def released_name(ours: str, architecture: Architecture) -> str:
    """Return the released name of a tensor of the encoder."""
    for name, theirs in ROOTS[architecture.layout].items():
        if ours == name or ours.startswith(f"{name}."):
            return architecture.prefix + theirs + ours.removeprefix(name)
    inside = ours.replace(".mixer.", ".attn.").replace(".expand.", ".fc1.").replace(".contract.", ".fc2.")
    return architecture.prefix + inside


def positions_name(architecture: Architecture) -> str:
    """Return the released name of the table of fixed positions."""
    return architecture.prefix + ROOTS[architecture.layout]["positions"]


def check_positions(table: Tensor, architecture: Architecture, file: Path, num_bins: int = NUM_BINS) -> None:
    """Check that a stored table, of any number of time steps, equals the computed positions.

    Raises:
        CheckpointError: it differs.
    """
    config = architecture.encoder
    bands = num_bins // config.patch_bins
    rows = table.shape[1] if table.ndim == 3 else 0
    if tuple(table.shape) != (1, rows, config.dim) or bands < 1 or not rows or rows % bands:
        raise CheckpointError(f"{file}: positions of shape {tuple(table.shape)} are not a table of {bands} bands.")
    steps = min(rows // bands, STEPS_COMPARED)
    expected = sine_cosine_positions((steps, bands), config.dim)
    error = float((table[0, : steps * bands].float() - expected).abs().max())
    if not error < max(POSITION_TOLERANCE, 2 * torch.finfo(table.dtype).eps):
        raise CheckpointError(f"{file}: its positions differ from the fixed sine-cosine table (by {error:.2g}).")


def _usual(inside: Mapping[str, list[Shape]], names: tuple[str, ...], otherwise: int) -> int:
    """Return the most common first dimension of these tensors, so that a single misshapen one does not matter."""
    sizes = Counter(shape[0] for name in names for shape in inside.get(name, ()) if shape)
    return sizes.most_common(1)[0][0] if sizes else otherwise


def _head(prefix: str, layout: str) -> str:
    """Return the name of the head's weight: beside the encoder in fairseq's layout, within it in Hugging Face's."""
    return f"{prefix.removesuffix('model.') if layout == 'fairseq' else prefix}head.weight"


def _norm_eps(stored_config: Mapping[str, Any], file: Path) -> float:
    eps = stored_config.get("norm_eps")
    if eps is None:
        return EncoderConfig.norm_eps
    if not isinstance(eps, float | int) or not 0 < eps < 1:
        raise CheckpointError(f"{file}: norm_eps in its config must be a number between 0 and 1, not {eps!r:.40}.")
    return float(eps)


def _num_heads(dim: int, stored_config: Mapping[str, Any], file: Path) -> int:
    heads = stored_config.get("num_heads")
    if heads is None and dim % HEAD_WIDTH == 0:
        return dim // HEAD_WIDTH
    if heads is None:
        raise CheckpointError(
            f"{file}: no config in or beside it states num_heads, and its width {dim} is not a multiple of "
            f"{HEAD_WIDTH}."
        )
    if not isinstance(heads, int) or isinstance(heads, bool) or heads < 1 or dim % heads:
        raise CheckpointError(
            f"{file}: its config states num_heads {heads!r:.40}, which does not divide its width {dim}."
        )
    return heads


def _ratio(dim: int, hidden: int) -> float:
    """Return a ratio for which `int(dim * ratio)` is the hidden width."""
    ratio = hidden / dim
    return ratio if int(dim * ratio) == hidden else math.nextafter(ratio, math.inf)
