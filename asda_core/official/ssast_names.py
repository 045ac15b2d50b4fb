"""Names and shapes of the tensors of SSAST and SSAMBA.

**Source**: SSAST (Gong et al. 2022) and SSAMBA (Shams et al. 2024), released model code.
"""

from dataclasses import dataclass

from asda_core.config import EncoderConfig
from asda_core.official.matching import Shape

MASK_TOKEN = "mask_embed"
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
"""asda's name within a branch of Mamba -> the released one; `{}` is empty forward and `_b` backward."""


@dataclass(frozen=True)
class SsastArchitecture:
    """Architecture inferred from tensor names and shapes.

    Attributes:
        family: "SSAST" or "SSAMBA".
        encoder: config of the encoder.
        bins, frames: of the features for which the position table was made.
        states, channels, step_rank, conv_width: of Mamba; 0 for SSAST.
        num_classes: number of classes of a fine-tuned model, otherwise 0.
    """

    family: str
    encoder: EncoderConfig
    bins: int
    frames: int
    states: int = 0
    channels: int = 0
    step_rank: int = 0
    conv_width: int = 0
    num_classes: int = 0


def released_names(architecture: SsastArchitecture) -> dict[str, tuple[str, Shape]]:
    """Map asda's name of every tensor that is only renamed (or transposed) to its released name and shape."""
    config = architecture.encoder
    dim = config.dim
    patch = (dim, 1, config.patch_bins, config.patch_frames)
    names: dict[str, tuple[str, Shape]] = {
        "encoder.patches.projection.weight": ("v.patch_embed.proj.weight", patch),
        "encoder.patches.projection.bias": ("v.patch_embed.proj.bias", (dim,)),
    }
    block, root, end = _attention_block(config), "v.blocks", "v.norm"
    if architecture.family == "SSAMBA":
        block, root, end = _mamba_block(architecture), "v.layers", "v.norm_f"
    for layer in range(config.depth):
        names |= {f"encoder.blocks.{layer}.{ours}": (f"{root}.{layer}.{theirs}", shape)
                  for ours, (theirs, shape) in block.items()}  # fmt: skip
    for kind in ("weight", "bias") if config.norm_type == "layer" else ("weight",):
        names[f"encoder.final_norm.{kind}"] = (f"{end}.{kind}", (dim,))
    if architecture.num_classes:
        names |= {f"classifier.norm.{kind}": (f"mlp_head.0.{kind}", (dim,)) for kind in ("weight", "bias")}
        names["classifier.head.weight"] = ("mlp_head.1.weight", (architecture.num_classes, dim))
        names["classifier.head.bias"] = ("mlp_head.1.bias", (architecture.num_classes,))
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


def _mamba_block(architecture: SsastArchitecture) -> dict[str, tuple[str, Shape]]:
    dim, channels, states, rank = (
        architecture.encoder.dim,
        architecture.channels,
        architecture.states,
        architecture.step_rank,
    )
    shapes: dict[str, Shape] = {
        "conv.weight": (channels, 1, architecture.conv_width),
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
    if architecture.encoder.norm_type == "layer":
        names["norm1.bias"] = ("norm.bias", (dim,))
    version = architecture.encoder.mixer.options["version"]
    for branch, suffix in enumerate(("", "_b") if version == "v2" else ("",)):
        for ours, theirs in BRANCH_NAMES.items():
            names[f"mixer.branches.{branch}.{ours}"] = (f"mixer.{theirs.format(suffix)}", shapes[ours])
    if version == "v1":
        names["mixer.backward_log_decay"] = ("mixer.A_b_log", (channels, states))
    return names


def folded_shapes(architecture: SsastArchitecture) -> dict[str, Shape]:
    """Return the names and shapes of the tensors that become the class token and the position table."""
    config = architecture.encoder
    times, bands = config.positions.grid
    count = config.class_token.count
    shapes: dict[str, Shape] = dict.fromkeys(("v.cls_token", "v.dist_token")[:count], (1, 1, config.dim))
    return shapes | {"v.pos_embed": (1, count + times * bands, config.dim)}
