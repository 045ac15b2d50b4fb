"""Trains the model of the package on the corpus of `make_corpus.py`: which word is said, in whatever voice.

    OMP_NUM_THREADS=2 python recipes/default_model/train.py CORPUS asda_small.safetensors --minutes 13

The encoder of `configs/asda_small.yaml`, from random weights or those of a run (`--init`), with a head of the kind that
reads it later: mean and deviation over time, band by band, each value normed over the batch, and a linear map to the
words. Spectra are moved by a few bins, which is what another vocal tract does, and cut at another frame each time. The
head is thrown away.
"""

import argparse
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad
from tqdm import tqdm

from asda_core.assemble import build_model
from asda_core.catalog import installed_catalog
from asda_core.checkpoint import load_encoder, metadata_of, write_model
from asda_core.config_io import load_run_config
from asda_core.log_mel import LogMel, LogMelConfig
from asda_core.model.encoder import Encoder
from asda_core.official.reading import read_model

RATE, SAMPLES, FRAMES = 16_000, 16_480, 96
"""Of a clip of a word: 101 frames, of which 96 are taken."""
BATCH, PEAK_RATE, WARMUP, DECAY, CLIP, SMOOTHING = 64, 1e-3, 50, 0.02, 2.0, 0.1
MOST_BINS = 5
"""By which a spectrum is moved up or down."""
GAIN = 0.25
"""Spread of what is added to a whole clip's log-mel, in units of the normalised features: 10 dB."""


def features_of(folder: Path) -> np.ndarray:
    """Log-mel of all clips of a word, in float16."""
    torch.set_num_threads(1)
    clips = [soundfile.read(file, dtype="float32")[0] for file in sorted(folder.glob("*.flac"))]
    filled = np.stack([np.pad(clip, (0, SAMPLES))[:SAMPLES] for clip in clips])
    with torch.no_grad():
        features: Tensor = LogMel(LogMelConfig(), RATE)(torch.from_numpy(filled))
    return features.half().numpy()


def words_of(folder: Path) -> tuple[Tensor, Tensor]:
    """Features and the number of the word of every clip below a folder."""
    folders = sorted(path for path in folder.iterdir() if path.is_dir())
    with ProcessPoolExecutor() as workers:
        found = list(tqdm(workers.map(features_of, folders, chunksize=8), total=len(folders), desc=folder.name))
    words = torch.cat([torch.full((len(clips),), number) for number, clips in enumerate(found)])
    return torch.from_numpy(np.concatenate(found)), words


def statistics(encoder: Encoder, features: Tensor) -> Tensor:
    """What `load_model(scene_pooling="statistics")` makes of a clip."""
    encoded = encoder(features)
    steps = encoded.tokens.unflatten(1, encoded.layout.grid).flatten(2)  # (B, T', bands x D)
    return torch.cat([steps.mean(dim=1), (steps.var(dim=1, correction=0) + 1e-6).sqrt()], dim=1)


def changed(features: Tensor, generator: torch.Generator) -> Tensor:
    """A batch in other voices: moved by bins, cut at another frame, louder or softer."""
    clips = []
    for clip in features.float():
        first = int(torch.randint(clip.shape[1] - FRAMES + 1, (), generator=generator))
        by = int(torch.randint(-MOST_BINS, MOST_BINS + 1, (), generator=generator))
        cut = clip[:, first : first + FRAMES]
        moved = pad(cut[None], (0, 0, max(0, by), max(0, -by)), mode="replicate")[0]
        clips.append(moved[max(0, -by) : max(0, -by) + len(clip)])
    gains = torch.randn(len(clips), 1, 1, generator=generator) * GAIN
    return torch.stack(clips) + gains


@torch.no_grad()
def accuracy(encoder: Encoder, head: nn.Module, features: Tensor, words: Tensor) -> float:
    """Share of clips whose word is told."""
    encoder.eval(), head.eval()
    told = [head(statistics(encoder, clips.float()[:, :, :FRAMES])).argmax(1) for clips in features.split(BATCH)]
    encoder.train(), head.train()
    return float((torch.cat(told) == words).float().mean())


def main() -> None:
    """Train for so many minutes and write the encoder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=13)
    parser.add_argument("--init", type=Path)
    parsed = parser.parse_args()
    (clips, words), (valid, valid_words) = (words_of(parsed.corpus / "words" / part) for part in ("train", "valid"))
    config, catalog = load_run_config("asda_small"), installed_catalog()
    torch.manual_seed(0)
    front_end, encoder = load_encoder(read_model(parsed.init), catalog) if parsed.init else build_model(catalog, config)
    encoder.train()
    width = 2 * config.encoder.dim * config.encoder.grid(clips.shape[1], FRAMES)[1]
    head = nn.Sequential(nn.BatchNorm1d(width), nn.Linear(width, int(words.max()) + 1))
    trained = [*encoder.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(trained, PEAK_RATE, (0.9, 0.98), weight_decay=DECAY, fused=True)
    generator = torch.Generator().manual_seed(0)
    start, step, done, told = time.monotonic(), 0, 0.0, []
    bar = tqdm(total=1000, unit="share")
    while done < 1:
        for group in optimizer.param_groups:
            group["lr"] = PEAK_RATE * min(1.0, (step + 1) / WARMUP) * (1 - done)
        chosen = torch.randint(len(clips), (BATCH,), generator=generator)
        logits = head(statistics(encoder, changed(clips[chosen], generator)))
        loss = cross_entropy(logits, words[chosen], label_smoothing=SMOOTHING)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, CLIP)
        optimizer.step()
        step, told = step + 1, [*told[-49:], float(loss.detach())]
        done = (time.monotonic() - start) / (60 * parsed.minutes)
        bar.n = min(1000, int(done * 1000))
        bar.set_postfix_str(f"step {step} loss {np.mean(told):.3f}")
        if step % 200 == 0:
            print(f"\nstep {step}: {accuracy(encoder, head, valid, valid_words):.3f} of words in voices never heard")
    print(f"\n{step} updates; {accuracy(encoder, head, valid, valid_words):.3f} of words in voices never heard")
    parts = (("front_end", front_end), ("encoder", encoder))
    tensors = {f"{name}.{key}": value.contiguous() for name, part in parts for key, value in part.state_dict().items()}
    write_model(parsed.out, tensors, metadata_of(config, catalog, step))


if __name__ == "__main__":
    main()
