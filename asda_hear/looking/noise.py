"""Noise on half of the time steps of a clip, and the patches it affects.

Whole steps are drawn, so that noisy and clean patches are side by side::

    steps         0     1     2     3     4          noise begins after the last frame of all patches of preceding
    noise            [-----|-----]     [-----]       clean steps, and ends where the next step begins
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from asda_core.audio.reading import read_audio
from asda_core.errors import AudioError, ConfigError
from asda_core.inference.framing import num_frames
from asda_hear.looking.clip import Excerpt, OpenModel, patch_energies

WHITE = "white"
"""Name of the noise that needs no file."""
DECIBELS = 10.0
"""Decibels per factor of ten in power."""


@dataclass(frozen=True)
class Noise:
    """Noise for one excerpt, before it is scaled.

    Attributes:
        audio: noise over the whole excerpt.
        steps: time steps to which it is added.
        gate: 1 at the samples to which it is added.
    """

    audio: Float[Tensor, " samples"]
    steps: Bool[Tensor, " steps"]
    gate: Float[Tensor, " samples"]


@dataclass(frozen=True)
class NoisyExcerpt:
    """An excerpt with noise.

    Attributes:
        excerpt: sum of clip and noise.
        noise_patches: patches, in raster order, in which the noise is louder than the clean clip.
        unpadded_patches: patches that begin within the file's samples; those after them are padding.
        snr_db: signal-to-noise ratio over the clip.
    """

    excerpt: Excerpt
    noise_patches: Bool[Tensor, " patches"]
    unpadded_patches: Bool[Tensor, " patches"]
    snr_db: float


def draw_noise(model: OpenModel, excerpt: Excerpt, source: str | Path, seed: int) -> Noise:
    """Draw half of the time steps that are not padding, and the noise to add to them.

    Args:
        model: its patches determine where steps begin.
        excerpt: the clean clip.
        source: "white" (Gaussian) or an audio file, from which an excerpt is drawn; too short a file is repeated.
        seed: of both draws.

    Raises:
        AudioError: fewer than two steps are not padding, the file cannot be used, or patches overlap so far that
            those of clean steps cover all drawn steps.
    """
    generator = torch.Generator().manual_seed(seed)
    num_steps, num_unpadded = _num_steps(model, excerpt), _num_unpadded(model, excerpt)
    if num_unpadded < 2:
        raise AudioError("the clip covers fewer than two time steps: noisy and clean ones cannot be compared.")
    steps = torch.zeros(num_steps, dtype=torch.bool)
    steps[torch.randperm(num_unpadded, generator=generator)[: num_unpadded // 2]] = True
    gate = _gate(model, excerpt, steps)
    if not gate.any():
        raise AudioError("patches overlap so far that those of clean steps cover every noisy step: no noise is left.")
    num_samples = len(excerpt.audio)
    if str(source) == WHITE:
        audio = torch.randn(num_samples, generator=generator)
    else:
        audio = _from_file(Path(source), model.sample_rate, num_samples, generator)
    return Noise(audio, steps, gate)


def add_noise(model: OpenModel, excerpt: Excerpt, noise: Noise, snr_db: float) -> NoisyExcerpt:
    """Scale the noise so that `10 log10(P_sound / P_noise)` is `snr_db`, and add it at the drawn steps.

    Both powers are mean squares over all samples of the file, that of the noise before gating: on the drawn steps it
    has the level that the ratio gives. A patch is a noise patch if the mean mel energy of the noise alone exceeds that
    of the clean clip alone; both are known, so nothing is estimated. Noise below the floor of the model's log-mel does
    not count.

    Raises:
        AudioError: the clip or the noise is silent, so that the ratio is undefined.
        ConfigError: `snr_db` is not finite, or the model's features are not mel bands.
    """
    if not -float("inf") < snr_db < float("inf"):
        raise ConfigError(f"the signal-to-noise ratio must be a finite number of dB, not {snr_db}.")
    sound_power = float(excerpt.unpadded_audio.double().square().mean())
    noise_power = float(noise.audio[: excerpt.num_file_samples].double().square().mean())
    for name, power in (("clip", sound_power), ("noise", noise_power)):
        if not power:
            raise AudioError(f"the {name} is digital silence here: the signal-to-noise ratio is undefined.")
    try:
        scale = (sound_power / noise_power * 10 ** (-snr_db / DECIBELS)) ** 0.5
    except OverflowError:
        scale = float("inf")
    added = noise.audio * noise.gate * scale
    if not added.isfinite().all():
        raise ConfigError(f"noise at {snr_db:g} dB would exceed the range of float32.")
    louder = patch_energies(model, added) > patch_energies(model, excerpt.audio)
    bands = len(louder) // len(noise.steps)
    counted = torch.arange(len(noise.steps)) < _num_unpadded(model, excerpt)
    noisy = Excerpt(excerpt.audio + added, excerpt.num_file_samples, excerpt.start_seconds)
    return NoisyExcerpt(noisy, louder, counted.repeat_interleave(bands), snr_db)


def _num_steps(model: OpenModel, excerpt: Excerpt) -> int:
    """Number of time steps in the excerpt."""
    front_end = model.front_end
    return model.encoder.config.grid(front_end.num_bins, num_frames(len(excerpt.audio), front_end))[0]


def _num_unpadded(model: OpenModel, excerpt: Excerpt) -> int:
    """Number of time steps that begin before the file's samples end."""
    step_samples = model.encoder.config.step_frames * model.front_end.hop_samples
    return min(_num_steps(model, excerpt), -(-excerpt.num_file_samples // step_samples))


def _gate(model: OpenModel, excerpt: Excerpt, steps: Bool[Tensor, " steps"]) -> Float[Tensor, " samples"]:
    """1 at samples of the drawn steps that no patch of a clean step uses; 0 elsewhere and in padding."""
    front_end, config = model.front_end, model.encoder.config
    hop, window = front_end.hop_samples, front_end.window_samples
    step_samples = config.step_frames * hop
    patch_samples = (config.patch_frames - 1) * hop + max(window, hop)
    gate = torch.ones(len(excerpt.audio))
    gate[len(steps) * step_samples :] = 0
    for step in (~steps).nonzero().flatten().tolist():
        gate[step * step_samples : step * step_samples + patch_samples] = 0
    gate[excerpt.num_file_samples :] = 0
    return gate


def _from_file(file: Path, sample_rate: int, num_samples: int, generator: torch.Generator) -> Tensor:
    """A randomly drawn excerpt of a file; a short file is repeated."""
    audio = read_audio(file, sample_rate)
    if len(audio) > num_samples:
        first = int(torch.randint(len(audio) - num_samples + 1, (1,), generator=generator))
        return audio[first : first + num_samples]
    return audio.repeat(-(-num_samples // len(audio)))[:num_samples]
