"""Writes files as the released codes do, of any size, from models of ours with random weights."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from asda_core.assemble import Parts, build_parts
from asda_core.catalog import Catalog
from asda_core.config import EncoderConfig, RunConfig
from asda_core.config_io import parse
from asda_core.finetune_config import ClassifierConfig
from asda_core.model.heads import Classifier
from asda_core.model.patches import sine_cosine_positions
from asda_core.official.eat import Architecture, classifier_names, decoder_names, encoder_names, positions_name

OTHER_SIZES: dict[str, Any] = {
    "encoder": {"dim": 40, "depth": 3, "num_heads": 5},
    "objective": {
        "name": "latent_regression",
        "options": {"clones": 3, "decoder": {"dim": 20, "layers": 2, "kernel": 5, "groups": 5}},
    },
    "data": {"clip_seconds": 0.975},
}
"""Width 40, 5 heads, 96 frames, a narrow decoder with a kernel of 5: nothing like the golden set."""
NUM_CLASSES = 7


@dataclass(frozen=True)
class Written:
    """A file, and the model that was written into it."""

    path: Path
    parts: Parts
    classifier: Classifier | None = None


def make_parts(catalog: Catalog, mixer: str) -> Parts:
    """A model with a teacher of its own."""
    encoder = {**OTHER_SIZES["encoder"], "mixer": mixer, "mlp_ratio": 3.5 if mixer == "differential" else 4.0}
    parts = build_parts(catalog, parse(RunConfig, {**OTHER_SIZES, "encoder": encoder}))
    generator = torch.Generator().manual_seed(1)
    for parameter in parts.objective.teacher.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return parts


def released_state(parts: Parts, layout: str, prefix: str, classes: int = 0) -> tuple[dict[str, Tensor], Classifier]:
    """The student's tensors by released name, and a head (used if there are classes)."""
    config: EncoderConfig = parts.encoder.config
    convolutions = tuple(tuple(layer.weight.shape) for layer in parts.objective.decoder.convolutions)
    hidden = int(config.dim * config.mlp_ratio)
    decoder = convolutions if not classes and layout == "fairseq" else ()
    found = Architecture(layout, prefix, config, hidden, True, decoder, classes)
    head = Classifier(ClassifierConfig(classes or 1, norm_eps=1e-6 if layout == "fairseq" else 1e-5), config.dim)
    state = {released: parts.encoder.state_dict()[name] for name, (released, _) in encoder_names(found).items()}
    state |= {
        released: parts.objective.decoder.state_dict()[name] for name, (released, _) in decoder_names(found).items()
    }
    state |= {released: head.state_dict()[name] for name, (released, _) in classifier_names(found).items()}
    state[positions_name(found)] = sine_cosine_positions((16, 8), config.dim)[None]
    return {name: tensor.detach().clone() for name, tensor in state.items()}, head.eval()


def write_fairseq(file: Path, catalog: Catalog, mixer: str = "differential", classes: int = 0, **extra: Any) -> Written:
    """A `.pt` file of fairseq, pre-trained with its teacher, or fine-tuned."""
    parts = make_parts(catalog, mixer)
    model = {"num_heads": 5, "mlp_ratio": 4, "norm_eps": 1e-6, "clone_batch": 3, "layer_norm_first": False}
    if classes:
        state, head = released_state(parts, "fairseq", "model.", classes)
        cfg: dict[str, Any] = {"model": {"pretrained_model_args": {"model": model}}, "task": {"target_length": 96}}
        torch.save({"cfg": cfg, "model": state, **extra}, file)
        return Written(file, parts, head)
    state, _ = released_state(parts, "fairseq", "")
    found = Architecture("fairseq", "", parts.encoder.config, int(40 * parts.encoder.config.mlp_ratio), True, (), 0)
    teacher = parts.objective.teacher.encoder.state_dict()
    ema = {released: teacher[name] for name, (released, _) in encoder_names(found).items()}
    whole = {"cfg": {"model": model, "task": {"target_length": 96}}, "model": {**state, "_ema": ema}, **extra}
    torch.save(whole, file)
    return Written(file, parts)


def write_hugging_face(folder: Path, catalog: Catalog, classes: int = 0) -> Written:
    """EAT's Hugging Face layout: `model.safetensors` with `config.json`."""
    parts = make_parts(catalog, "standard")
    state, head = released_state(parts, "Hugging Face", "model.", classes)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: tensor.contiguous() for name, tensor in state.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    config = {"model_type": "eat", "num_heads": 5, "norm_eps": 1e-6, "mel_bins": 128, "img_size": [96, 128]}
    (folder / "config.json").write_text(json.dumps(config))
    return Written(folder, parts, head if classes else None)
