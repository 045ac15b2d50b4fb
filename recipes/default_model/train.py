"""Train the model of the package to classify the words, synthesisers and recordings of `make_corpus.py`.

    OMP_NUM_THREADS=2 python recipes/default_model/train.py CORPUS first.safetensors --parts words sounds
    OMP_NUM_THREADS=2 python recipes/default_model/train.py CORPUS asda_small.safetensors \\
        --start first.safetensors --steps 1900

The encoder of `configs/asda_small.yaml` starts from random weights, or from those of `--start`. Each part of the corpus
has a head: mean and standard deviation over time of each band, batch normalisation, and a linear map to the classes.
Augmentation: the spectrum is shifted by a few bins (as by another vocal tract length), tilted, and cropped at a random
frame. The heads are discarded. Training can be stopped at any time; the same command resumes it from
`asda_small.safetensors.training`.
"""

import argparse
import math
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import soundfile
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad
from tqdm import tqdm

from asda_core.assemble import build_model
from asda_core.catalog import installed_catalog
from asda_core.checkpoint import checkpoint_metadata, write_model
from asda_core.config_io import load_run_config
from asda_core.log_mel import LogMel, LogMelConfig
from asda_core.model.encoder import Encoder
from asda_core.system.files import write_atomically

RATE = 16_000
PEAK_RATE, WARMUP, DECAY, CLIP, SMOOTHING = 1e-3, 50, 0.02, 2.0, 0.1
MAX_BINS = 5
"""Largest shift of a spectrum, up or down."""
GAIN, TILT = 0.25, 0.15
"""Standard deviation of the offset of a clip's log-mel features, and of the change from its lowest to its middle bin,
in units of the normalised features, of which 0.25 is 10 dB."""
SAVE_EVERY, LOOK_EVERY = 100, 250
EMBEDDING = {"scene_pooling": "dynamics", "timestamp_pooling": "concat", "layers": [2, 4]}
"""Default options of `load_model` for this model."""


@dataclass(frozen=True)
class Task:
    """A classification task.

    Attributes:
        name: folder in the corpus.
        samples: length to which clips are padded; frames: length of a crop; batch: clips per update.
    """

    name: str
    samples: int
    frames: int
    batch: int


TASKS = (
    Task("words", 16_480, 96, 64),
    Task("sounds", 32_240, 192, 32),
    Task("recordings", 32_240, 192, 32),
)


def features_of(folder: Path, samples: int) -> np.ndarray:
    """Log-mel features of all clips of a folder, in float16."""
    torch.set_num_threads(1)
    clips = [soundfile.read(file, dtype="float32")[0] for file in sorted(folder.glob("*.flac"))]
    filled = np.stack([np.pad(clip, (0, max(0, samples - len(clip))))[:samples] for clip in clips])
    with torch.no_grad():
        features: Tensor = LogMel(LogMelConfig(), RATE)(torch.from_numpy(filled))
    return features.half().numpy()


def class_folders(folder: Path) -> list[Path]:
    """The folder of each class in `train` or `valid`, which must have the same classes."""
    train, valid = ({path.name for path in (folder.parent / part).iterdir()} for part in ("train", "valid"))
    if not train or train != valid:
        raise SystemExit(f"{folder.parent} is empty or incomplete; run recipes/default_model/make_corpus.py.")
    return [folder / name for name in sorted(train)]


def read_part(folder: Path, samples: int) -> tuple[Tensor, Tensor]:
    """Features and class of every clip below a folder."""
    folders = class_folders(folder)
    with ProcessPoolExecutor() as workers:
        features = workers.map(features_of, folders, [samples] * len(folders), chunksize=8)
        by_class = list(tqdm(features, total=len(folders), desc=f"reading {folder.parent.name}/{folder.name}"))
    targets = torch.cat([torch.full((len(clips),), number) for number, clips in enumerate(by_class)])
    return torch.from_numpy(np.concatenate(by_class)), targets


class Part(nn.Module):
    """A task with its clips and its head."""

    def __init__(self, task: Task, corpus: Path, encoder: Encoder) -> None:
        super().__init__()
        self.task = task
        self.clips, self.targets = read_part(corpus / task.name / "train", task.samples)
        self.valid, self.valid_targets = read_part(corpus / task.name / "valid", task.samples)
        bands = encoder.config.grid(self.clips.shape[1], task.frames)[1]
        width = 2 * bands * encoder.config.dim
        self.head = nn.Sequential(nn.BatchNorm1d(width), nn.Linear(width, int(self.targets.max()) + 1))

    def loss(self, encoder: Encoder, generator: torch.Generator) -> Tensor:
        """Cross-entropy of a random batch."""
        indices = torch.randint(len(self.clips), (self.task.batch,), generator=generator)
        logits = self.head(statistics(encoder, augmented(self.clips[indices], self.task.frames, generator)))
        return cross_entropy(logits, self.targets[indices], label_smoothing=SMOOTHING)

    @torch.no_grad()
    def accuracy(self, encoder: Encoder) -> float:
        """Accuracy on the clips of `valid`."""
        encoder.eval(), self.eval()
        batches = self.valid.split(self.task.batch)
        classes = [
            self.head(statistics(encoder, clips.float()[:, :, : self.task.frames])).argmax(1) for clips in batches
        ]
        encoder.train(), self.train()
        return float((torch.cat(classes) == self.valid_targets).float().mean())


def statistics(encoder: Encoder, features: Tensor) -> Tensor:
    """Mean and standard deviation over time of each band, as `load_model(scene_pooling="statistics")`."""
    encoded = encoder(features, layers=False)
    steps = encoded.tokens.unflatten(1, encoded.layout.grid).flatten(2)  # (B, T', bands x D)
    return torch.cat([steps.mean(dim=1), (steps.var(dim=1, correction=0) + 1e-6).sqrt()], dim=1)


def augmented(features: Tensor, frames: int, generator: torch.Generator) -> Tensor:
    """Shift each clip by bins, crop it at a random frame, and change its level and spectral tilt."""
    clips = []
    for clip in features.float():
        first = int(torch.randint(clip.shape[1] - frames + 1, (), generator=generator))
        shift = int(torch.randint(-MAX_BINS, MAX_BINS + 1, (), generator=generator))
        crop = clip[:, first : first + frames]
        padded = pad(crop[None], (0, 0, max(0, shift), max(0, -shift)), mode="replicate")[0]
        clips.append(padded[max(0, -shift) : max(0, -shift) + len(clip)])
    gain, tilt = torch.randn(2, len(clips), 1, 1, generator=generator)
    slope = torch.linspace(-1, 1, features.shape[1])[:, None]
    return torch.stack(clips) + gain * GAIN + tilt * TILT * slope


class Training:
    """The state of a training.

    Args:
        encoder: trained in place.
        parts: tasks with their clips and heads.
        steps: number of updates.
        peak_rate: highest learning rate.
        heads_first: number of first updates that train the heads alone.
    """

    def __init__(self, encoder: Encoder, parts: list[Part], steps: int, peak_rate: float, heads_first: int) -> None:
        self.encoder, self.parts, self.steps, self.step = encoder, parts, steps, 0
        self.peak_rate, self.heads_first = peak_rate, heads_first
        self.modules = nn.ModuleList([encoder, *parts])
        groups = [{"params": list(module.parameters())} for module in (encoder, nn.ModuleList(parts))]
        self.optimizer = torch.optim.AdamW(groups, peak_rate, (0.9, 0.98), weight_decay=DECAY, fused=True)
        self.generator = torch.Generator().manual_seed(0)

    def update(self) -> list[float]:
        """Take one step on a batch of each task; return the losses."""
        for group, factor in zip(self.optimizer.param_groups, self._rate_factors(), strict=True):
            group["lr"] = self.peak_rate * factor
        self.optimizer.zero_grad()
        losses = []
        for part in self.parts:
            loss = part.loss(self.encoder, self.generator)
            loss.backward()
            losses.append(float(loss.detach()))
        nn.utils.clip_grad_norm_(self.modules.parameters(), CLIP)
        self.optimizer.step()
        self.step += 1
        return losses

    def _rate_factors(self) -> tuple[float, float]:
        """Shares of the peak rate: of the encoder and of the heads."""
        decay = 0.5 * (1 + math.cos(math.pi * self.step / self.steps))
        updates = self.step + 1 - self.heads_first  # of the encoder
        return decay * min(1.0, max(0, updates) / WARMUP), decay * min(1.0, (self.step + 1) / WARMUP)

    def save(self, file: Path) -> None:
        """Write the state atomically."""
        state = (self.modules.state_dict(), self.optimizer.state_dict(), self.generator.get_state(), self.step)
        write_atomically(file, lambda part: torch.save(state, part))

    def resume(self, file: Path) -> None:
        """Load a saved state."""
        modules, optimizer, generator, self.step = torch.load(file, weights_only=True)
        self.modules.load_state_dict(modules)
        self.optimizer.load_state_dict(optimizer)
        self.generator.set_state(generator)


def encoder_weights(file: Path) -> dict[str, Tensor]:
    """Weights of the encoder in a model file of this script."""
    prefix = "encoder."
    return {name.removeprefix(prefix): value for name, value in load_file(file).items() if name.startswith(prefix)}


def parse_arguments() -> argparse.Namespace:
    """The arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--start", type=Path, help="a model whose encoder is trained further (default: random weights)")
    parser.add_argument("--rate", type=float, default=PEAK_RATE, help="highest learning rate (default: %(default)s)")
    parser.add_argument(
        "--heads-first", type=int, default=0, help="number of first updates that train only the heads (default: 0)"
    )
    parser.add_argument("--parts", nargs="+", help="parts of the corpus to train on (default: all that exist)")
    parser.add_argument(
        "--batches",
        nargs=len(TASKS),
        type=int,
        default=[task.batch for task in TASKS],
        metavar=tuple(task.name.upper() for task in TASKS),
        help="clips of each part per update (default: %(default)s)",
    )
    parsed = parser.parse_args()
    if parsed.heads_first > parsed.steps:
        parser.error("--heads-first must not exceed --steps.")
    return parsed


def main() -> None:
    """Train and write the encoder."""
    parsed = parse_arguments()
    tasks = [replace(task, batch=batch) for task, batch in zip(TASKS, parsed.batches, strict=True)]
    config, catalog = load_run_config("asda_small"), installed_catalog()
    torch.manual_seed(0)
    front_end, encoder = build_model(catalog, config)
    if parsed.start:
        encoder.load_state_dict(encoder_weights(parsed.start))
    names = parsed.parts or [task.name for task in tasks if (parsed.corpus / task.name).exists()]
    parts = [Part(task, parsed.corpus, encoder) for task in tasks if task.name in names]
    training = Training(encoder.train(), parts, parsed.steps, parsed.rate, parsed.heads_first)
    saved = parsed.out.with_name(parsed.out.name + ".training")
    if saved.exists():
        training.resume(saved)
    bar, recent = tqdm(total=parsed.steps, initial=training.step, unit="update"), []
    while training.step < parsed.steps:
        recent = [*recent[-49:], training.update()]
        bar.update()
        bar.set_postfix_str("losses " + " ".join(f"{loss:.3f}" for loss in np.mean(recent, axis=0)))
        if training.step % SAVE_EVERY == 0:
            training.save(saved)
        if training.step % LOOK_EVERY == 0 or training.step == parsed.steps:
            accuracies = ", ".join(f"{part.task.name} {part.accuracy(encoder):.3f}" for part in training.parts)
            tqdm.write(f"{training.step} updates; accuracy on held-out clips: {accuracies}")
    tensors = {
        f"{name}.{key}": value.contiguous()
        for name, module in (("front_end", front_end), ("encoder", encoder))
        for key, value in module.state_dict().items()
    }
    write_model(parsed.out, tensors, checkpoint_metadata(config, catalog, training.step, embedding=EMBEDDING))
    saved.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
