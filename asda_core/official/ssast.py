"""Read the tensors of SSAST and SSAMBA, and infer the architecture from their names and shapes.

Both keep one position table for class tokens and patches, which are numbered band by band. A class token and its
position only ever appear as their sum, so the sum becomes the class token here; the rest becomes the position table,
time step by time step. No file states the number of heads, the patch stride of a fine-tuned model, or the wiring of
SSAMBA's blocks. By default heads are 64 wide, as in every release, and the wiring is the released one; the rest must be
stated where it matters, in a `config.json` beside the file:

    {"num_heads": 4, "wiring": "sequential", "stride_frames": 10, "stride_bins": 10, "bins": 128, "pooling": "summary"}

**Source**: SSAST (Gong et al. 2022) and SSAMBA (Shams et al. 2024), released model code.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from asda_core.checkpoint import Checkpoint, Weights
from asda_core.config import (
    ClassTokenConfig,
    EncoderConfig,
    PluginChoice,
    PositionConfig,
    RunConfig,
    Wiring,
    require,
)
from asda_core.config_io import load_run_config, parse, to_plain
from asda_core.errors import CheckpointError, ConfigError
from asda_core.finetune_config import ClassifierConfig, Pooling
from asda_core.official.eat import HEAD_WIDTH
from asda_core.official.matching import check_finite_tensors, check_tensors
from asda_core.official.ssast_names import MASK_TOKEN, SsastArchitecture, folded_shapes, released_names
from asda_core.official.stored_config import HOP_SECONDS, WINDOW_SECONDS

DATA_PARALLEL_PREFIX = "module."
"""Prefix that DataParallel adds to every name in the releases."""
THROUGH_BANDS = 8
"""Number of bands of the intermediate grid when the releases interpolate a table in time, whatever their grid."""
HEAD_NORM_EPS = 1e-5
"""Epsilon of the LayerNorm before a fine-tuned head (PyTorch's default)."""
UNUSED = ("v.head.weight", "v.head.bias", "v.head_dist.weight", "v.head_dist.bias", "p_input_fdim", "p_input_tdim")
"""Tensors that are stored but unused, except the last two: bins and frames of the pre-training clips."""
STEP_DIVISOR = 16
"""By default the rank of Mamba's steps is the width divided by this, rounded up."""
CLASS_ROWS = {"v.blocks.": 2, "v.layers.": 1}


def is_ssast(tensors: Mapping[str, Tensor]) -> bool:
    """Return whether tensors are those of SSAST or SSAMBA."""
    return any(name.removeprefix(DATA_PARALLEL_PREFIX).startswith(tuple(CLASS_ROWS)) for name in tensors)


@dataclass(frozen=True)
class Settings:
    """Settings that no tensor shows and that a `config.json` may state.

    Attributes:
        num_heads: number of SSAST's heads; null makes them 64 wide.
        wiring: of SSAMBA's blocks.
        stride_frames, stride_bins: from patch to patch; must be stated for a fine-tuned model.
        bins: of the features of a fine-tuned model, which does not store them.
        pooling: of a fine-tuned model: "mean" of the patches, or "summary" of the class tokens.
    """

    num_heads: int | None = None
    wiring: Wiring = "released"
    stride_frames: int | None = None
    stride_bins: int | None = None
    bins: int = 128
    pooling: Pooling = "mean"

    def __post_init__(self) -> None:
        for name in ("num_heads", "stride_frames", "stride_bins", "bins"):
            value = getattr(self, name)
            require(value is None or value > 0, f"{name} must be positive, not {value}.")


def read_ssast(stored: Mapping[str, Tensor], sidecar: Mapping[str, Any], file: Path, weights: Weights) -> Checkpoint:
    """Return the checkpoint under asda's names.

    Args:
        stored: tensors by released name.
        sidecar: contents of a `config.json` beside the file, see `Settings`.
        file: for messages.
        weights: only "student" exists.

    Raises:
        CheckpointError: a tensor is missing, unexpected, misshapen or not finite, or shapes or settings do not agree.
    """
    if weights == "teacher":
        raise CheckpointError(f"{file} holds no teacher; its weights are those of the student.")
    tensors = {name.removeprefix(DATA_PARALLEL_PREFIX): tensor for name, tensor in stored.items()}
    if len(tensors) < len(stored):
        raise CheckpointError(f"{file} contains tensors twice, with and without the prefix {DATA_PARALLEL_PREFIX!r}.")
    try:
        settings = parse(Settings, dict(sidecar), str(file.with_name("config.json")))
        architecture = infer_ssast_architecture(tensors, settings, file)
    except KeyError as error:
        raise CheckpointError(f"{file} is not a complete model of SSAST or SSAMBA: it lacks {error}.") from None
    except ConfigError as error:
        raise CheckpointError(f"{file} cannot be read as a model of SSAST or SSAMBA: {error}") from None
    names, folded = released_names(architecture), folded_shapes(architecture)
    also = (*UNUSED, MASK_TOKEN) if architecture.num_classes else UNUSED
    check_tensors(tensors, dict(names.values()) | folded, also, file)
    ours = {name: tensors[theirs].float().contiguous().clone() for name, (theirs, _) in names.items()}
    ours["encoder.patches.projection.weight"] = ours["encoder.patches.projection.weight"].transpose(2, 3).contiguous()
    ours["encoder.class_token"], ours["encoder.patches.table"] = unfold_positions(tensors, architecture.encoder)
    check_finite_tensors(ours, file)
    state = f"fine-tuned to {architecture.num_classes} classes" if architecture.num_classes else "pre-trained"
    unused = len([name for name in also if name in tensors])
    report = (
        f"{file}: {architecture.family}, {state}: {len(tensors) - unused} of {len(tensors) - unused} tensors matched"
    )
    report += f" ({len(folded)} of positions and class tokens, {unused} more unused)."
    if architecture.family == "SSAMBA":
        report += f" Wiring: {architecture.encoder.wiring}, not inferable from the tensors."
    classifier = None
    if architecture.num_classes:
        classifier = ClassifierConfig(architecture.num_classes, pooling=settings.pooling, norm_eps=HEAD_NORM_EPS)
    return Checkpoint(file, _run(architecture), {}, 0, "", ours, classifier=classifier, report=report)


def infer_ssast_architecture(tensors: Mapping[str, Tensor], settings: Settings, file: Path) -> SsastArchitecture:
    """Infer the architecture from the tensors and the settings stated beside them.

    Raises:
        CheckpointError: a setting is missing that the tensors do not tell, or their positions fit no grid of patches.
        KeyError: a tensor is missing.
    """
    dim, _, patch_bins, patch_frames = tensors["v.patch_embed.proj.weight"].shape
    ssast = any(name.startswith("v.blocks.") for name in tensors)
    root = "v.blocks." if ssast else "v.layers."
    head = tensors.get("mlp_head.1.weight")
    if head is not None and None in (settings.stride_frames, settings.stride_bins):
        raise CheckpointError(
            f"{file} is fine-tuned, and its patch stride cannot be inferred from the tensors: state it in a "
            'config.json beside it, as in {"stride_frames": 10, "stride_bins": 10} (frame models: 1 and 128).'
        )
    bins = settings.bins if head is not None else int(tensors["p_input_fdim"])
    shape: dict[str, Any] = {
        "dim": dim,
        "depth": len({name.removeprefix(root).split(".")[0] for name in tensors if name.startswith(root)}),
        "patch_frames": patch_frames,
        "patch_bins": patch_bins,
        "stride_frames": settings.stride_frames,
        "stride_bins": settings.stride_bins,
    }
    grid, frames = _grid(EncoderConfig(**{**shape, "num_heads": 1}), tensors, CLASS_ROWS[root], bins, file)
    # a fine-tuned table was adapted already: for longer clips it is interpolated directly
    shape["positions"] = PositionConfig("learned", grid, THROUGH_BANDS if head is None else None)
    common: dict[str, Any] = {"bins": bins, "frames": frames, "num_classes": 0 if head is None else int(head.shape[0])}
    if ssast:
        if settings.num_heads is None and dim % HEAD_WIDTH:
            raise CheckpointError(
                f"{file}: no config.json beside it states num_heads, and its width {dim} is not a multiple of "
                f"{HEAD_WIDTH}."
            )
        heads = settings.num_heads or dim // HEAD_WIDTH
        ratio = tensors["v.blocks.0.mlp.fc1.weight"].shape[0] / dim
        encoder = replace(load_run_config("ssast_base").encoder, num_heads=heads, mlp_ratio=ratio, **shape)
        return SsastArchitecture("SSAST", encoder, **common)
    return _recognise_mamba(tensors, settings, shape, common)


def _recognise_mamba(
    tensors: Mapping[str, Tensor], settings: Settings, shape: dict[str, Any], common: dict[str, Any]
) -> SsastArchitecture:
    channels, states = tensors["v.layers.0.mixer.A_log"].shape
    rank, taps = (tensors[f"v.layers.0.mixer.{name}"].shape[-1] for name in ("dt_proj.weight", "conv1d.weight"))
    own, dim = "v.layers.0.mixer.D_b" in tensors, shape["dim"]
    version = "v2" if own else "v1" if "v.layers.0.mixer.A_b_log" in tensors else "forward"
    options: dict[str, Any] = {"version": version, "states": states, "expand": channels // dim, "conv_width": taps}
    if rank != math.ceil(dim / STEP_DIVISOR):
        options["step_rank"] = rank
    base = load_run_config("ssamba_tiny").encoder
    encoder = replace(
        base,
        num_heads=1 if dim % base.num_heads else base.num_heads,  # of no effect
        norm_type="layer" if "v.norm_f.bias" in tensors else "rms",
        wiring=settings.wiring,
        class_token=ClassTokenConfig(position="first"),
        mixer=PluginChoice("mamba", options),
        **shape,
    )
    return SsastArchitecture(
        "SSAMBA", encoder, **common, states=states, channels=channels, step_rank=rank, conv_width=taps
    )


def _grid(
    config: EncoderConfig, tensors: Mapping[str, Tensor], class_rows: int, bins: int, file: Path
) -> tuple[tuple[int, int], int]:
    """Return ((time steps, bands) of the stored table, frames of its features); stored sizes must agree."""
    rows = tensors["v.pos_embed"].shape[1] - class_rows
    bands = config.grid(bins, config.patch_frames)[1]
    if bands < 1 or rows < 1 or rows % bands:
        raise CheckpointError(
            f"{file}: its {rows} positions do not fit a grid of {bands} bands ({bins} bins, patches of "
            f"{config.patch_bins} every {config.step_bins}); a config.json beside it can state stride_frames, "
            "stride_bins and bins."
        )
    times = rows // bands
    if "p_input_tdim" in tensors and "mlp_head.1.weight" not in tensors:
        frames = int(tensors["p_input_tdim"])
        if config.grid(bins, frames)[0] != times:
            raise CheckpointError(f"{file}: its {rows} positions do not match {frames} frames and {bins} bins.")
    return (times, bands), (times - 1) * config.step_frames + config.patch_frames


def unfold_positions(tensors: Mapping[str, Tensor], config: EncoderConfig) -> tuple[Tensor, Tensor]:
    """Return (class tokens with their positions added (1, c, D), table (1, N, D) in raster order)."""
    count = config.class_token.count
    table = tensors["v.pos_embed"].float()
    tokens = torch.cat([tensors[name].float() for name in ("v.cls_token", "v.dist_token")[:count]], dim=1)
    times, bands = config.positions.grid
    patches = table[:, count:].reshape(1, bands, times, -1).transpose(1, 2).flatten(1, 2)
    return tokens + table[:, :count], patches.contiguous()


def _run(architecture: SsastArchitecture) -> RunConfig:
    """Return the config of a run that would continue the training: published settings with the inferred shape."""
    base = load_run_config("ssast_base" if architecture.family == "SSAST" else "ssamba_tiny")
    bands = architecture.encoder.positions.grid[1]
    options = {**base.objective.options, "biased_clusters": True}
    if bands == 1:
        options |= {"pattern": "uniform"}
    seconds = (architecture.frames - 1) * HOP_SECONDS + WINDOW_SECONDS
    front_end = base.front_end
    if architecture.bins != Settings.bins:
        front_end = replace(front_end, options={**front_end.options, "num_bins": architecture.bins})
    run = replace(
        base,
        front_end=front_end,
        encoder=architecture.encoder,
        objective=replace(base.objective, options=options),
        data=replace(base.data, clip_seconds=seconds),
    )
    return parse(RunConfig, to_plain(run))
