"""A small labelled set and a small model, for the tests of fine-tuning."""

from pathlib import Path

import numpy as np
import soundfile

from asda_core.assemble import build_parts
from asda_core.catalog import Catalog
from asda_core.checkpoint import Checkpoint, checkpoint_metadata, model_tensors, read_checkpoint, write_model
from asda_core.config import RunConfig
from asda_core.config_io import parse
from asda_core.finetune_config import FinetuneConfig

RATE = 16_000
SECONDS = 0.335
"""32 frames: 2 x 8 patches."""


def write_tones(root: Path, classes: int = 3, clips: int = 8, seconds: float = 0.3) -> Path:
    """A folder per class: a tone of its own pitch in noise."""
    generator = np.random.default_rng(0)
    for label in range(classes):
        for number in range(clips):
            time = np.arange(int(seconds * RATE)) / RATE
            tone = 0.3 * np.sin(2 * np.pi * 300 * 2**label * time + generator.random())
            file = root / f"tone{label}" / f"{number}.wav"
            file.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(file, tone + 0.01 * generator.normal(size=len(time)), RATE)
    return root


def write_table(root: Path, folds: int = 2, classes: int = 3, clips: int = 4) -> Path:
    """The tones as a table with folds."""
    write_tones(root / "audio", classes, clips)
    rows = [
        f"tone{label}/{number}.wav,{number % folds + 1},tone{label}"
        for label in range(classes)
        for number in range(clips)
    ]
    table = root / "tones.csv"
    table.write_text("\n".join(["filename,fold,category", *rows]) + "\n")
    return table


def small_run(mixer: object = "differential", **more: object) -> RunConfig:
    """A run with a tiny encoder."""
    plain = {
        "encoder": {"dim": 16, "depth": 2, "num_heads": 2, "mixer": mixer, **more},
        "objective": {"name": "latent_regression", "options": {"decoder": {"dim": 16, "layers": 1, "groups": 4}}},
        "data": {"clip_seconds": SECONDS},
    }
    return parse(RunConfig, plain)


def small_recipe(**more: object) -> FinetuneConfig:
    """A recipe of a few steps."""
    plain: dict[str, object] = {
        "optimizer": {"peak_lr": 0.01, "warmup_steps": 2},
        "data": {"clip_seconds": SECONDS, "batch_size": 4},
        "drop_path": 0.0,
        "layer_decay": 1.0,
        "bootstrap": 20,
        "seed": 3,
        **more,
    }
    if not {"steps", "epochs"} & plain.keys():
        plain["steps"] = 6
    return parse(FinetuneConfig, plain)


def small_checkpoint(folder: Path, catalog: Catalog, config: RunConfig | None = None) -> Checkpoint:
    """A model file with random weights."""
    config = config or small_run()
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "model.safetensors"
    write_model(file, model_tensors(build_parts(catalog, config), False), checkpoint_metadata(config, catalog, 0))
    return read_checkpoint(file)
