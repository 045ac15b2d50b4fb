"""The tensors of SSAST and SSAMBA: what they are called, and what architecture that is.

Both keep one position table for class tokens and patches, which they number band by band. A class token and its
position only ever appear as their sum, so the sum becomes our class token; the rest becomes our table, step by step of
time. No file says how many heads there are, nor how SSAMBA's blocks are wired. Heads are 64 wide in every release; the
wiring is the released one. A `config.json` beside the file may say otherwise:

    {"num_heads": 4, "wiring": "sequential", "stride_frames": 10, "stride_bins": 10, "pooling": "summary"}

**Source**: SSAST (Gong et al. 2022) and SSAMBA (Shams et al. 2024), released model code.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from asda_core.checkpoint import Checkpoint, Weights
from asda_core.config import (
    ClassifierConfig,
    ClassTokenConfig,
    EncoderConfig,
    PluginChoice,
    PositionConfig,
    RunConfig,
)
from asda_core.config_io import load_run_config, parse, to_plain
from asda_core.errors import CheckpointError, ConfigError
from asda_core.official.matching import Shape, check_all, check_finite_tensors

PARALLEL = "module."
"""What the releases' DataParallel puts before every name."""
MASK_TOKEN = "mask_embed"
HEAD_WIDTH = 64
THROUGH_BANDS = 8
"""Bands by way of which the releases interpolate a table in time, whatever their grid."""
HEAD_NORM_EPS = 1e-5
"""Epsilon of the LayerNorm before a fine-tuned head (PyTorch's default)."""
UNUSED = ("v.head.weight", "v.head.bias", "v.head_dist.weight", "v.head_dist.bias", "p_input_fdim", "p_input_tdim")
"""What is stored and used by nothing, but for the last two: bins and frames of the pre-training clips."""
SETTINGS = ("num_heads", "wiring", "stride_frames", "stride_bins", "pooling")
"""Keys of a `config.json` that are listened to."""
HOP_SECONDS, WINDOW_SECONDS = 0.010, 0.025
BLOCK_NAMES = {"mixer": "attn", "mlp.expand": "mlp.fc1", "mlp.contract": "mlp.fc2"}
BRANCH_NAMES = {
    "conv.weight": "conv1d{}.weight",
    "conv.bias": "conv1d{}.bias",
    "to_states.weight": "x_proj{}.weight",
    "to_steps.weight": "dt_proj{}.weight",
    "to_steps.bias": "dt_proj{}.bias",
    "log_decay": "A{}_log",
    "skip": "D{}",
}
"""Our name within a branch of Mamba -> the released one; `{}` is empty forward and `_b` backward."""
CLASS_ROWS = {"v.blocks.": 2, "v.layers.": 1}


def is_masked_patch(tensors: Mapping[str, Tensor]) -> bool:
    """Whether tensors are those of SSAST or SSAMBA."""
    return any(name.removeprefix(PARALLEL).startswith(tuple(CLASS_ROWS)) for name in tensors)


@dataclass(frozen=True)
class Found:
    """What names and shapes tell.

    Attributes:
        family: "SSAST" or "SSAMBA".
        encoder: its shape.
        frames: of the clips for which the table was made.
        states, channels, rank, taps: of Mamba; 0 for SSAST.
        num_classes: of a fine-tuned model, else 0.
    """

    family: str
    encoder: EncoderConfig
    frames: int
    states: int = 0
    channels: int = 0
    rank: int = 0
    taps: int = 0
    num_classes: int = 0


def read_masked_patch(
    stored: Mapping[str, Tensor], beside: Mapping[str, Any], file: Path, weights: Weights
) -> Checkpoint:
    """The checkpoint under our names.

    Args:
        stored: tensors by released name.
        beside: what a `config.json` beside the file says, of `SETTINGS`.
        file: for messages.
        weights: only "student" is there.

    Raises:
        CheckpointError: a tensor is missing, unexpected, misshapen or not finite, or nothing fits together.
    """
    if weights == "teacher":
        raise CheckpointError(f"{file} holds no teacher; its weights are those of the student.")
    tensors = {name.removeprefix(PARALLEL): tensor for name, tensor in stored.items()}
    try:
        found = recognise_masked_patch(tensors, {key: beside[key] for key in SETTINGS if key in beside}, file)
    except (ConfigError, LookupError, AttributeError, TypeError, ValueError) as error:
        what = f"there is no {error}" if isinstance(error, KeyError) else error
        raise CheckpointError(f"{file}: its tensors make no model of SSAST or SSAMBA: {what}") from None
    names, folded = released_names(found), _folded_shapes(found)
    also = (*UNUSED, MASK_TOKEN) if found.num_classes else UNUSED
    check_all(tensors, dict(names.values()) | folded, also, file)
    ours = {name: tensors[theirs].float().contiguous().clone() for name, (theirs, _) in names.items()}
    ours["encoder.patches.projection.weight"] = ours["encoder.patches.projection.weight"].transpose(2, 3).contiguous()
    ours["encoder.class_token"], ours["encoder.patches.table"] = unfold_positions(tensors, found.encoder)
    check_finite_tensors(ours, file)
    state = f"fine-tuned to {found.num_classes} classes" if found.num_classes else "pre-trained"
    unused = len([name for name in also if name in tensors])
    report = f"{file}: {found.family}, {state}: {len(tensors) - unused} of {len(tensors) - unused} tensors matched"
    report += f" ({len(folded)} of positions and class tokens, {unused} more that nothing uses)."
    if found.family == "SSAMBA":
        report += f" Wiring: {found.encoder.wiring}, which no tensor shows."
    classifier = None
    if found.num_classes:
        pooling = beside.get("pooling", "mean")
        classifier = ClassifierConfig(found.num_classes, pooling=pooling, norm_eps=HEAD_NORM_EPS)
    return Checkpoint(file, _run(found), {}, 0, "", ours, classifier=classifier, report=report)


def recognise_masked_patch(tensors: Mapping[str, Tensor], stated: Mapping[str, Any], file: Path) -> Found:
    """The architecture of tensors, given what is stated beside them."""
    dim, _, patch_bins, patch_frames = tensors["v.patch_embed.proj.weight"].shape
    ssast = any(name.startswith("v.blocks.") for name in tensors)
    root = "v.blocks." if ssast else "v.layers."
    depth = len({name.removeprefix(root).split(".")[0] for name in tensors if name.startswith(root)})
    strides = {key: stated[key] for key in ("stride_frames", "stride_bins") if key in stated}
    step_bins, step_frames = strides.get("stride_bins", patch_bins), strides.get("stride_frames", patch_frames)
    rows = tensors["v.pos_embed"].shape[1] - CLASS_ROWS[root]
    bands = (int(tensors["p_input_fdim"]) - patch_bins) // step_bins + 1
    if rows % bands:
        raise CheckpointError(
            f"{file}: its {rows} positions make no grid of {bands} bands; if patches overlap, a config.json beside it "
            'must say how far they are apart: {"stride_frames": 10, "stride_bins": 10}.'
        )
    head = tensors.get("mlp_head.1.weight")
    shape: dict[str, Any] = {
        "dim": dim,
        "depth": depth,
        "patch_frames": patch_frames,
        "patch_bins": patch_bins,
        "positions": PositionConfig("learned", (rows // bands, bands), THROUGH_BANDS),
        **strides,
    }
    common = {"frames": (rows // bands - 1) * step_frames + patch_frames}
    common["num_classes"] = 0 if head is None else int(head.shape[0])
    if ssast:
        heads = stated.get("num_heads", dim // HEAD_WIDTH)
        if "num_heads" not in stated and dim % HEAD_WIDTH:
            raise CheckpointError(f"{file}: no config.json beside it states num_heads, and its width is {dim}.")
        ratio = tensors["v.blocks.0.mlp.fc1.weight"].shape[0] / dim
        encoder = replace(load_run_config("ssast_base").encoder, num_heads=heads, mlp_ratio=ratio, **shape)
        return Found("SSAST", encoder, **common)
    decay = tensors["v.layers.0.mixer.A_log"].shape
    rank, taps = (tensors[f"v.layers.0.mixer.{name}"].shape[-1] for name in ("dt_proj.weight", "conv1d.weight"))
    own = "v.layers.0.mixer.D_b" in tensors
    version = "v2" if own else "v1" if "v.layers.0.mixer.A_b_log" in tensors else "forward"
    options = {"version": version, "states": decay[1], "expand": decay[0] // dim, "step_rank": rank, "conv_width": taps}
    encoder = replace(
        load_run_config("ssamba_tiny").encoder,
        num_heads=1,
        norm_type="layer" if "v.norm_f.bias" in tensors else "rms",
        wiring=stated.get("wiring", "released"),
        class_token=ClassTokenConfig(position="first"),
        mixer=PluginChoice("mamba", options),
        **shape,
    )
    return Found("SSAMBA", encoder, **common, states=decay[1], channels=decay[0], rank=rank, taps=taps)


def released_names(found: Found) -> dict[str, tuple[str, Shape]]:
    """Our name of every tensor that is only renamed (or turned) -> the released name and shape."""
    config = found.encoder
    dim = config.dim
    patch = (dim, 1, config.patch_bins, config.patch_frames)
    names: dict[str, tuple[str, Shape]] = {
        "encoder.patches.projection.weight": ("v.patch_embed.proj.weight", patch),
        "encoder.patches.projection.bias": ("v.patch_embed.proj.bias", (dim,)),
    }
    block, root, end = _attention_block(config), "v.blocks", "v.norm"
    if found.family == "SSAMBA":
        block, root, end = _mamba_block(found), "v.layers", "v.norm_f"
    for layer in range(config.depth):
        names |= {f"encoder.blocks.{layer}.{ours}": (f"{root}.{layer}.{theirs}", shape)
                  for ours, (theirs, shape) in block.items()}  # fmt: skip
    for kind in ("weight", "bias") if config.norm_type == "layer" else ("weight",):
        names[f"encoder.final_norm.{kind}"] = (f"{end}.{kind}", (dim,))
    if found.num_classes:
        names |= {f"classifier.norm.{kind}": (f"mlp_head.0.{kind}", (dim,)) for kind in ("weight", "bias")}
        names["classifier.head.weight"] = ("mlp_head.1.weight", (found.num_classes, dim))
        names["classifier.head.bias"] = ("mlp_head.1.bias", (found.num_classes,))
        return names
    names["objective.mask_token"] = (MASK_TOKEN, (1, 1, dim))
    values = config.patch_bins * config.patch_frames
    for ours, theirs in (("predict", "cpredlayer"), ("paint", "gpredlayer")):
        for number, width in ((0, dim), (2, values)):
            names[f"objective.{ours}.{number}.weight"] = (f"{theirs}.{number}.weight", (width, dim))
            names[f"objective.{ours}.{number}.bias"] = (f"{theirs}.{number}.bias", (width,))
    return names


def _attention_block(config: EncoderConfig) -> dict[str, tuple[str, Shape]]:
    dim, hidden = config.dim, round(config.dim * config.mlp_ratio)
    linear = {
        "mixer.qkv": (3 * dim, dim),
        "mixer.proj": (dim, dim),
        "mlp.expand": (hidden, dim),
        "mlp.contract": (dim, hidden),
    }
    shapes: dict[str, Shape] = {f"norm{number}.{kind}": (dim,) for number in (1, 2) for kind in ("weight", "bias")}
    for name, shape in linear.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}

    def theirs(name: str) -> str:
        return next((name.replace(a, b) for a, b in BLOCK_NAMES.items() if name.startswith(a)), name)

    return {name: (theirs(name), shape) for name, shape in shapes.items()}


def _mamba_block(found: Found) -> dict[str, tuple[str, Shape]]:
    dim, channels, states, rank = found.encoder.dim, found.channels, found.states, found.rank
    shapes: dict[str, Shape] = {
        "conv.weight": (channels, 1, found.taps),
        "conv.bias": (channels,),
        "to_states.weight": (rank + 2 * states, channels),
        "to_steps.weight": (channels, rank),
        "to_steps.bias": (channels,),
        "log_decay": (channels, states),
        "skip": (channels,),
    }
    names: dict[str, tuple[str, Shape]] = {
        "mixer.in_proj.weight": ("mixer.in_proj.weight", (2 * channels, dim)),
        "mixer.out_proj.weight": ("mixer.out_proj.weight", (dim, channels)),
        "norm1.weight": ("norm.weight", (dim,)),
    }
    if found.encoder.norm_type == "layer":
        names["norm1.bias"] = ("norm.bias", (dim,))
    version = found.encoder.mixer.options["version"]
    for branch, suffix in enumerate(("", "_b") if version == "v2" else ("",)):
        for ours, theirs in BRANCH_NAMES.items():
            names[f"mixer.branches.{branch}.{ours}"] = (f"mixer.{theirs.format(suffix)}", shapes[ours])
    if version == "v1":
        names["mixer.backward_log_decay"] = ("mixer.A_b_log", (channels, states))
    return names


def _folded_shapes(found: Found) -> dict[str, Shape]:
    """Tensors that become the class token and the table."""
    config = found.encoder
    times, bands = config.positions.grid
    count = config.class_token.count
    shapes: dict[str, Shape] = dict.fromkeys(("v.cls_token", "v.dist_token")[:count], (1, 1, config.dim))
    return shapes | {"v.pos_embed": (1, count + times * bands, config.dim)}


def unfold_positions(tensors: Mapping[str, Tensor], config: EncoderConfig) -> tuple[Tensor, Tensor]:
    """(class tokens with their positions (1, c, D), table (1, N, D) in raster order)."""
    count = config.class_token.count
    table = tensors["v.pos_embed"].float()
    tokens = torch.cat([tensors[name].float() for name in ("v.cls_token", "v.dist_token")[:count]], dim=1)
    times, bands = config.positions.grid
    patches = table[:, count:].reshape(1, bands, times, -1).transpose(1, 2).flatten(1, 2)
    return tokens + table[:, :count], patches.contiguous()


def _run(found: Found) -> RunConfig:
    """The run that would go on with the training: published settings, in the shape that was found."""
    base = load_run_config("ssast_base" if found.family == "SSAST" else "ssamba_tiny")
    bands = found.encoder.positions.grid[1]
    options = {**base.objective.options, "biased_clusters": True}
    if bands == 1:
        options |= {"pattern": "uniform"}
    seconds = (found.frames - 1) * HOP_SECONDS + WINDOW_SECONDS
    run = replace(
        base,
        encoder=found.encoder,
        objective=replace(base.objective, options=options),
        data=replace(base.data, clip_seconds=seconds),
    )
    return parse(RunConfig, to_plain(run))
