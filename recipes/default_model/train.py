"""Trains the model of the package on the corpus of `make_corpus.py`: which word, which synthesiser, which recording?

    OMP_NUM_THREADS=2 python recipes/default_model/train.py CORPUS first.safetensors --parts words sounds
    OMP_NUM_THREADS=2 python recipes/default_model/train.py CORPUS asda_small.safetensors \\
        --start first.safetensors --steps 1900

The encoder of `configs/asda_small.yaml` from random weights, or from those of `--start`, with a head for each part of
the corpus that is there, of the kind that reads it later: mean and deviation over time, band by band, each value normed
over the batch, and a linear map to the words, synthesisers or recordings.
Spectra are moved by a few bins, which is what another vocal tract does, tilted, and cut at another frame each time. The
heads are thrown away. It can be stopped at any time, and goes on from `asda_small.safetensors.training`.
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
from asda_core.checkpoint import metadata_of, write_model
from asda_core.config_io import load_run_config
from asda_core.log_mel import LogMel, LogMelConfig
from asda_core.model.encoder import Encoder
from asda_core.system.files import write_whole

RATE = 16_000
PEAK_RATE, WARMUP, DECAY, CLIP, SMOOTHING = 1e-3, 50, 0.02, 2.0, 0.1
MOST_BINS = 5
"""By which a spectrum is moved up or down."""
GAIN, TILT = 0.25, 0.15
"""Spread of what is added to a whole clip's log-mel, and from its lowest to its middle bin, in units of the normalised
features, of which 0.25 is 10 dB."""
SAVE_EVERY, LOOK_EVERY = 100, 250
EMBEDDING = {"scene_pooling": "dynamics", "timestamp_pooling": "concat", "layers": [2, 4]}
"""What `load_model` takes for it, if not told otherwise."""


@dataclass(frozen=True)
class Task:
    """Clips in kinds that are to be told apart.

    Attributes:
        name: of the folder in the corpus.
        samples: to which clips are filled; frames: that are taken of them; batch: clips in an update.
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
    """Log-mel of all clips of a folder, in float16."""
    torch.set_num_threads(1)
    clips = [soundfile.read(file, dtype="float32")[0] for file in sorted(folder.glob("*.flac"))]
    filled = np.stack([np.pad(clip, (0, max(0, samples - len(clip))))[:samples] for clip in clips])
    with torch.no_grad():
        features: Tensor = LogMel(LogMelConfig(), RATE)(torch.from_numpy(filled))
    return features.half().numpy()


def kinds_in(folder: Path) -> list[Path]:
    """Folders of the kinds in `train` or `valid`, which must be the same in both: they are told apart by number."""
    train, valid = ({path.name for path in (folder.parent / part).iterdir()} for part in ("train", "valid"))
    if not train or train != valid:
        raise SystemExit(f"{folder.parent} is empty or half made; recipes/default_model/make_corpus.py fills it.")
    return [folder / name for name in sorted(train)]


def read_part(folder: Path, samples: int) -> tuple[Tensor, Tensor]:
    """Features and the number of the kind of every clip below a folder."""
    folders = kinds_in(folder)
    with ProcessPoolExecutor() as workers:
        found = workers.map(features_of, folders, [samples] * len(folders), chunksize=8)
        clips = list(tqdm(found, total=len(folders), desc=f"reading {folder.parent.name}/{folder.name}"))
    kinds = torch.cat([torch.full((len(each),), number) for number, each in enumerate(clips)])
    return torch.from_numpy(np.concatenate(clips)), kinds


class Part(nn.Module):
    """A task with its clips and its head."""

    def __init__(self, task: Task, corpus: Path, encoder: Encoder) -> None:
        super().__init__()
        self.task = task
        self.clips, self.kinds = read_part(corpus / task.name / "train", task.samples)
        self.valid, self.valid_kinds = read_part(corpus / task.name / "valid", task.samples)
        bands = encoder.config.grid(self.clips.shape[1], task.frames)[1]
        width = 2 * bands * encoder.config.dim
        self.head = nn.Sequential(nn.BatchNorm1d(width), nn.Linear(width, int(self.kinds.max()) + 1))

    def loss(self, encoder: Encoder, generator: torch.Generator) -> Tensor:
        """Cross-entropy of a batch that is drawn."""
        chosen = torch.randint(len(self.clips), (self.task.batch,), generator=generator)
        logits = self.head(statistics(encoder, changed(self.clips[chosen], self.task.frames, generator)))
        return cross_entropy(logits, self.kinds[chosen], label_smoothing=SMOOTHING)

    @torch.no_grad()
    def accuracy(self, encoder: Encoder) -> float:
        """Share of the clips of `valid` whose kind is told."""
        encoder.eval(), self.eval()
        batches = self.valid.split(self.task.batch)
        told = [self.head(statistics(encoder, clips.float()[:, :, : self.task.frames])).argmax(1) for clips in batches]
        encoder.train(), self.train()
        return float((torch.cat(told) == self.valid_kinds).float().mean())


def statistics(encoder: Encoder, features: Tensor) -> Tensor:
    """Mean and deviation over time, band by band: what `load_model(scene_pooling="statistics")` makes of a clip."""
    encoded = encoder(features, layers=False)
    steps = encoded.tokens.unflatten(1, encoded.layout.grid).flatten(2)  # (B, T', bands x D)
    return torch.cat([steps.mean(dim=1), (steps.var(dim=1, correction=0) + 1e-6).sqrt()], dim=1)


def changed(features: Tensor, frames: int, generator: torch.Generator) -> Tensor:
    """A batch as others would sound: moved by bins, cut at another frame, louder or softer, darker or brighter."""
    clips = []
    for clip in features.float():
        first = int(torch.randint(clip.shape[1] - frames + 1, (), generator=generator))
        by = int(torch.randint(-MOST_BINS, MOST_BINS + 1, (), generator=generator))
        cut = clip[:, first : first + frames]
        moved = pad(cut[None], (0, 0, max(0, by), max(0, -by)), mode="replicate")[0]
        clips.append(moved[max(0, -by) : max(0, -by) + len(clip)])
    gain, tilt = torch.randn(2, len(clips), 1, 1, generator=generator)
    slope = torch.linspace(-1, 1, features.shape[1])[:, None]
    return torch.stack(clips) + gain * GAIN + tilt * TILT * slope


class Training:
    """Everything that changes, and how to go on with it."""

    def __init__(self, encoder: Encoder, parts: list[Part], steps: int) -> None:
        self.encoder, self.parts, self.steps, self.step = encoder, parts, steps, 0
        self.modules = nn.ModuleList([encoder, *parts])
        self.optimizer = torch.optim.AdamW(
            self.modules.parameters(), PEAK_RATE, (0.9, 0.98), weight_decay=DECAY, fused=True
        )
        self.generator = torch.Generator().manual_seed(0)

    def update(self) -> list[float]:
        """One, on a batch of each task; the losses."""
        rate = min(1.0, (self.step + 1) / WARMUP) * 0.5 * (1 + math.cos(math.pi * self.step / self.steps))
        for group in self.optimizer.param_groups:
            group["lr"] = PEAK_RATE * rate
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

    def save(self, file: Path) -> None:
        """All of it, whole or not at all."""
        state = (self.modules.state_dict(), self.optimizer.state_dict(), self.generator.get_state(), self.step)
        write_whole(file, lambda part: torch.save(state, part))

    def go_on(self, file: Path) -> None:
        """From what was saved."""
        modules, optimizer, generator, self.step = torch.load(file, weights_only=True)
        self.modules.load_state_dict(modules)
        self.optimizer.load_state_dict(optimizer)
        self.generator.set_state(generator)


def encoder_weights(file: Path) -> dict[str, Tensor]:
    """Of a model that this wrote."""
    prefix = "encoder."
    return {name.removeprefix(prefix): value for name, value in load_file(file).items() if name.startswith(prefix)}


def main() -> None:
    """Train and write the encoder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--start", type=Path, help="a model whose encoder is gone on with (default: random weights)")
    parser.add_argument("--parts", nargs="+", help="parts of the corpus to train on (default: all that are there)")
    parser.add_argument(
        "--batches",
        nargs=len(TASKS),
        type=int,
        default=[task.batch for task in TASKS],
        metavar=tuple(task.name.upper() for task in TASKS),
        help="clips of each part in an update (default: %(default)s)",
    )
    parsed = parser.parse_args()
    tasks = [replace(task, batch=batch) for task, batch in zip(TASKS, parsed.batches, strict=True)]
    config, catalog = load_run_config("asda_small"), installed_catalog()
    torch.manual_seed(0)
    front_end, encoder = build_model(catalog, config)
    if parsed.start:
        encoder.load_state_dict(encoder_weights(parsed.start))
    wanted = parsed.parts or [task.name for task in tasks if (parsed.corpus / task.name).exists()]
    parts = [Part(task, parsed.corpus, encoder) for task in tasks if task.name in wanted]
    training = Training(encoder.train(), parts, parsed.steps)
    saved = parsed.out.with_name(parsed.out.name + ".training")
    if saved.exists():
        training.go_on(saved)
    bar, told = tqdm(total=parsed.steps, initial=training.step, unit="update"), []
    while training.step < parsed.steps:
        told = [*told[-49:], training.update()]
        bar.update()
        bar.set_postfix_str("losses " + " ".join(f"{loss:.3f}" for loss in np.mean(told, axis=0)))
        if training.step % SAVE_EVERY == 0:
            training.save(saved)
        if training.step % LOOK_EVERY == 0 or training.step == parsed.steps:
            shares = ", ".join(f"{part.task.name} {part.accuracy(encoder):.3f}" for part in training.parts)
            tqdm.write(f"{training.step} updates; told right of clips never heard: {shares}")
    tensors = {
        f"{name}.{key}": value.contiguous()
        for name, module in (("front_end", front_end), ("encoder", encoder))
        for key, value in module.state_dict().items()
    }
    write_model(parsed.out, tensors, metadata_of(config, catalog, training.step, embedding=EMBEDDING))
    saved.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
