"""Non-speech sounds: random synthesisers, each rendered many times with slightly different parameters.

Classifying such synthesisers teaches features that classifying real sounds needs, without a recording. **Source** of
the idea: Cherep and Singh, "Contrastive Learning from Synthetic Audio Doppelgangers", ICLR 2025. The synthesiser is
ours: one to three layers, each an excitation (noise, pulses, or a tone) through resonances, with a slow envelope.
"""

from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.random import Generator
from scipy.signal import lfilter

RATE = 16_000
MAX_LAYERS, MAX_RESONANCES, MAX_HARMONICS = 3, 4, 24
KNOB_SPREAD = 0.15
"""Standard deviation of the natural logarithm of a parameter over renderings: about 15 %."""
SHAPES = ("steady", "swell", "events")
EXCITATIONS = ("noise", "pulses", "tone")


@dataclass(frozen=True)
class Layer:
    """One voice of a synthesiser. Floats are parameters that vary, all positive; the others are its structure.

    Attributes:
        excitation: one of `EXCITATIONS`; shape: of the envelope, one of `SHAPES`.
        regular: pulses and events come at equal times, not by chance; odd: a tone has odd harmonics alone;
            falling: its glide goes down.
        loudness: amplitude beside the other layers; colour: pole of the low-pass of noise, below 1.
        pulse_rate: pulses in a second; pitch: of the tone in Hz; roll_off: of its harmonics, exponent of their number.
        glide: octaves in an event; vibrato_rate in Hz and vibrato_depth in octaves; roughness: noise in its phase.
        event_rate: events in a second; attack and decay of an event in seconds; swell_rate in Hz; swell_depth below 1.
        resonances: in Hz; sharpness: their quality factor.
    """

    excitation: str
    shape: str
    regular: bool
    odd: bool
    falling: bool
    loudness: float
    colour: float
    pulse_rate: float
    pitch: float
    roll_off: float
    glide: float
    vibrato_rate: float
    vibrato_depth: float
    roughness: float
    event_rate: float
    attack: float
    decay: float
    swell_rate: float
    swell_depth: float
    sharpness: float
    resonances: tuple[float, ...]


def synthesiser(generator: Generator) -> list[Layer]:
    """The layers of a random synthesiser."""
    return [drawn_layer(generator) for _ in range(generator.integers(1, MAX_LAYERS + 1))]


def drawn_layer(generator: Generator) -> Layer:
    """A random layer; parameters are log-uniform over the ranges of everyday sounds."""

    def between(low: float, high: float) -> float:
        return float(np.exp(generator.uniform(np.log(low), np.log(high))))

    return Layer(
        excitation=str(generator.choice(EXCITATIONS)),
        shape=str(generator.choice(SHAPES, p=(0.25, 0.3, 0.45))),
        regular=bool(generator.random() < 0.5),
        odd=bool(generator.random() < 0.3),
        falling=bool(generator.random() < 0.5),
        loudness=between(0.2, 1.0),
        colour=between(0.05, 0.97),
        pulse_rate=between(2.0, 250.0),
        pitch=between(60.0, 3_000.0),
        roll_off=between(0.3, 2.5),
        glide=between(0.02, 1.5),
        vibrato_rate=between(0.7, 12.0),
        vibrato_depth=between(0.003, 0.3),
        roughness=between(0.001, 0.3),
        event_rate=between(0.6, 10.0),
        attack=between(0.001, 0.2),
        decay=between(0.01, 1.0),
        swell_rate=between(0.3, 40.0),
        swell_depth=between(0.1, 0.95),
        sharpness=between(0.7, 40.0),
        resonances=tuple(between(120.0, 7_000.0) for _ in range(generator.integers(1, MAX_RESONANCES + 1))),
    )


def rendered(layers: list[Layer], num_samples: int, generator: Generator) -> np.ndarray:
    """A rendering of a synthesiser with varied parameters, at `RATE`."""
    return sum((played(moved(layer, generator), num_samples, generator) for layer in layers), np.zeros(num_samples))


def moved(layer: Layer, generator: Generator) -> Layer:
    """The layer with slightly different parameters."""

    def near(value: float) -> float:
        return float(value * np.exp(KNOB_SPREAD * generator.normal()))

    knobs = {field.name: near(getattr(layer, field.name)) for field in fields(layer) if field.type is float}
    knobs["colour"], knobs["swell_depth"] = min(knobs["colour"], 0.98), min(knobs["swell_depth"], 1.0)
    return replace(layer, **knobs, resonances=tuple(near(value) for value in layer.resonances))


def played(layer: Layer, num_samples: int, generator: Generator) -> np.ndarray:
    """Excitation through the resonances, with the envelope and the loudness of the layer."""
    events = times(layer.event_rate, layer.regular, num_samples, generator)
    make = {"noise": noise, "pulses": pulses, "tone": tone}[layer.excitation]
    audio = resonant(make(layer, events, num_samples, generator), layer) * envelope(
        layer, events, num_samples, generator
    )
    return layer.loudness * audio / max(1e-6, float(np.abs(audio).max()))


def times(rate: float, regular: bool, num_samples: int, generator: Generator) -> np.ndarray:
    """Sample indices of events at a rate per second, at least one."""
    period = RATE / rate
    if regular:
        steps = generator.uniform(0, min(period, num_samples)) + period * np.arange(int(num_samples / period) + 1)
        steps = steps + generator.normal(size=len(steps)) * 0.02 * period
    else:
        steps = generator.uniform(0, num_samples, max(1, generator.poisson(num_samples / period)))
    inside = np.sort(steps[(steps >= 0) & (steps < num_samples)]).astype(int)
    return inside if len(inside) else np.array([int(generator.integers(num_samples // 2))])


def noise(layer: Layer, events: np.ndarray, num_samples: int, generator: Generator) -> np.ndarray:
    """Low-pass filtered white noise."""
    return lfilter([1.0], [1.0, -layer.colour], generator.normal(size=num_samples))


def pulses(layer: Layer, events: np.ndarray, num_samples: int, generator: Generator) -> np.ndarray:
    """Impulses with random amplitudes."""
    audio = np.zeros(num_samples)
    at = times(layer.pulse_rate, layer.regular, num_samples, generator)
    audio[at] = np.exp(0.5 * generator.normal(size=len(at)))
    return audio


def tone(layer: Layer, events: np.ndarray, num_samples: int, generator: Generator) -> np.ndarray:
    """Harmonics of a pitch with glides at events and vibrato."""
    clock = np.arange(num_samples)
    since = clock - events[np.maximum(np.searchsorted(events, clock, side="right") - 1, 0)]
    glide = (-1 if layer.falling else 1) * layer.glide * np.clip(since / (RATE * layer.decay), -1, 1)
    wave = np.sin(2 * np.pi * (layer.vibrato_rate * clock / RATE + generator.random()))
    pitch = np.clip(layer.pitch * 2.0 ** (glide + layer.vibrato_depth * wave), 20, RATE / 2)
    phase = 2 * np.pi * np.cumsum(pitch) / RATE + np.cumsum(generator.normal(size=num_samples)) * layer.roughness
    audio = np.zeros(num_samples)
    for number in range(1, MAX_HARMONICS + 1, 2 if layer.odd else 1):
        if number * pitch.min() > RATE / 2:
            break
        audio += np.where(number * pitch < RATE / 2, np.sin(number * phase), 0.0) / number**layer.roll_off
    return audio


def resonant(audio: np.ndarray, layer: Layer) -> np.ndarray:
    """Sum of all resonances and a little of the input."""
    out = 0.1 * audio / max(1e-6, float(np.abs(audio).max()))
    for hertz in layer.resonances:
        angle = 2 * np.pi * min(hertz, 0.49 * RATE) / RATE
        radius = np.exp(-angle / (2 * layer.sharpness))
        ringing = lfilter([1.0, 0.0, -1.0], [1.0, -2 * radius * np.cos(angle), radius**2], audio)
        out = out + ringing / max(1e-6, float(np.abs(ringing).max()))
    return out


def envelope(layer: Layer, events: np.ndarray, num_samples: int, generator: Generator) -> np.ndarray:
    """Amplitude of the layer at each sample, in [0, 1]."""
    if layer.shape == "steady":
        return np.ones(num_samples)
    clock = np.arange(num_samples) / RATE
    if layer.shape == "swell":
        wave = np.sin(2 * np.pi * (layer.swell_rate * clock + generator.random()))
        return 1 - layer.swell_depth * (0.5 + 0.5 * wave)
    level = np.zeros(num_samples)
    for first in events:
        since = clock[: num_samples - first]
        heights = np.minimum(since / layer.attack, 1) * np.exp(-np.maximum(since - layer.attack, 0) / layer.decay * 3)
        level[first:] = np.maximum(level[first:], heights * np.exp(0.3 * generator.normal()))
    return level / max(1e-6, float(level.max()))
