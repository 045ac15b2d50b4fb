"""Reads a golden set: numbers made by running the released code. Nothing here depends on the sizes of the set.

Another set of the same make is tried with `ASDA_GOLDEN=FOLDER pytest tests/released`.
"""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from asda_core.assemble import Parts, build_parts
from asda_core.catalog import Catalog
from asda_core.checkpoint import Checkpoint, load_strict
from asda_core.config import RunConfig
from asda_core.config_io import parse, to_plain, with_value
from asda_core.layout import TokenLayout
from asda_core.official.eat import Architecture, decoder_names, encoder_names, infer_architecture
from asda_core.official.pickles import read_pickled
from asda_core.official.reading import read_model

GOLDEN = Path(os.environ.get("ASDA_GOLDEN", Path(__file__).parents[1] / "golden"))
FORWARD = 1e-4
"""Tolerance of forward passes, relative to the largest magnitude."""
TRAINING = 1e-3
"""Tolerance of gradients and of training traces, likewise."""
CASES = {"asda": "differential", "eat": "standard"}
DECODER = "modality_encoders.IMAGE.decoder."


class Arrays(Mapping[str, Any]):
    """The arrays of a file, which notes which of them were looked at."""

    def __init__(self, file: Path) -> None:
        with np.load(file) as arrays:
            self._arrays = {
                key: torch.from_numpy(arrays[key]) if arrays[key].dtype.kind != "U" else arrays[key].tolist()
                for key in arrays.files
            }
        self._seen: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self._seen.add(key)
        return self._arrays[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def below(self, prefix: str) -> dict[str, Any]:
        """The arrays whose names begin so, without that beginning."""
        return {key.removeprefix(prefix): self[key] for key in self if key.startswith(prefix)}

    def assert_all_compared(self) -> None:
        """Nobody forgot an array."""
        assert not self._arrays.keys() - self._seen, f"not compared: {sorted(self._arrays.keys() - self._seen)}"


def load(name: str) -> Arrays:
    return Arrays(GOLDEN / name)


@cache
def checkpoint(name: str) -> Checkpoint:
    """A golden checkpoint as the product reads it."""
    return read_model(GOLDEN / f"{name}.pt")


@cache
def architecture(name: str) -> Architecture:
    whole = read_pickled(GOLDEN / f"{name}.pt")
    tensors = {key: value for key, value in whole["model"].items() if isinstance(value, Tensor)}
    stored = whole["cfg"]["model"]
    stored = stored.get("pretrained_model_args", {"model": stored})["model"]
    return infer_architecture(tensors, stored, GOLDEN / f"{name}.pt")


def stored_settings(name: str) -> dict[str, Any]:
    """`cfg.model` of a golden checkpoint."""
    settings: dict[str, Any] = read_pickled(GOLDEN / f"{name}.pt")["cfg"]["model"]
    return settings


def run_of(case: str, **changes: Any) -> RunConfig:
    """The pre-training run of a golden model, with changes of its keys."""
    plain = to_plain(checkpoint(f"model_{case}").config)
    for key, value in changes.items():
        plain = with_value(plain, key.replace("__", "."), value)
    return parse(RunConfig, plain)


def parts_of(catalog: Catalog, case: str, **changes: Any) -> Parts:
    """Encoder, decoder and teacher of a golden pre-training model with their weights."""
    read = checkpoint(f"model_{case}")
    parts = build_parts(catalog, run_of(case, **changes))
    load_strict(parts.encoder, read.tensors, "encoder.", read.file)
    load_strict(parts.objective, read.tensors, "objective.", read.file)
    return parts


def ours(case: str) -> dict[str, str]:
    """Released name -> our name, of everything that is trained in pre-training."""
    found = architecture(f"model_{case}")
    names = {released: f"encoder.{name}" for name, (released, _) in encoder_names(found).items()}
    return names | {released: f"decoder.{name}" for name, (released, _) in decoder_names(found).items()}


def block_name(released: str) -> str:
    """Our name of a tensor of a block, given without the block's number."""
    return released.replace("attn.", "mixer.").replace("mlp.fc1", "mlp.expand").replace("mlp.fc2", "mlp.contract")


def decoder_name(released: str) -> str:
    """Our name of a tensor of the decoder, given without prefix."""
    parts = released.split(".")
    return f"convolutions.{parts[1]}.{parts[3]}" if parts[0] == "blocks" else released


def features_of(arrays: Mapping[str, Tensor]) -> Tensor:
    """Released (B, 1, T, F) -> ours (B, F, T)."""
    return arrays["source"].squeeze(1).transpose(1, 2)


def layout_of(tokens: Tensor, padding: Tensor | None = None) -> TokenLayout:
    """Tokens in a row, some of them padding."""
    layout = TokenLayout.full(len(tokens), (tokens.shape[1], 1))
    return layout if padding is None else replace(layout, padding=padding.bool())


def assert_close(given: Tensor, wanted: Tensor, tolerance: float = FORWARD) -> None:
    """Largest difference relative to the largest magnitude of what is wanted."""
    assert given.shape == wanted.shape, f"shape {tuple(given.shape)}, not {tuple(wanted.shape)}"
    error = (given.double() - wanted.double()).abs().max() / wanted.double().abs().max().clamp(min=1e-30)
    assert error < tolerance, f"differs by {error:.2e} of the largest magnitude"


def gradients(module: nn.Module, prefix: str = "") -> dict[str, Tensor]:
    """Gradient of every parameter that has one."""
    return {prefix + name: p.grad for name, p in module.named_parameters() if p.grad is not None}


def stored_json(arrays: Mapping[str, Any], key: str) -> Any:
    """A text array that holds JSON."""
    return json.loads(arrays[key])
