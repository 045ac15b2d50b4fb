"""The built-in corpus, and the full pipeline on it: validate, pre-train, evaluate, table. No download, no audio needed.

Minutes of audio are synthesised with NumPy from a seed into three tasks in HEAR's format: `demo_pitch` (which note),
`demo_kind` (which kind of sound, in three folds) and `demo_events` (what starts when).
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from asda_core.audio.writing import write_wav
from asda_core.config_io import to_yaml
from asda_hear.ablation.plan import load_plan
from asda_hear.ablation.run import prepare, run_plan
from asda_hear.ablation.settings import PlanConfig, TaskChoice
from asda_hear.evaluate.compat import validate
from asda_hear.evaluate.task_checks import EvaluationConfig
from asda_hear.evaluate.tasks import Clip, Event, TaskConfig, build_task
from asda_hear.reporting.report import write_report

RATE = 16_000
MIDI_A4, HERTZ_A4, NOTES_PER_OCTAVE = 69, 440.0, 12
PITCHES = range(57, 81)
"""MIDI numbers of the notes: 220 Hz to 784 Hz in semitones."""
NOISE = 0.02
EVENT_CLIP_SECONDS = 4.0
QUICK_GRID = {
    "hidden_layers": [1],
    "hidden_dim": [256],
    "lr": [0.0032, 0.001],
    "max_epochs": [120],
    "check_val_every_n_epoch": [10],
    "patience": [3],
}
"""heareval's search space, narrowed so that the demo takes minutes; a task may define its own."""
CONFIG = """\
# The demo's model: a minute of training on one CPU.
encoder: {dim: 96, depth: 3, num_heads: 3}
objective:
  name: latent_regression
  options:
    clones: 4
    utterance_weight: 0.02
    decoder: {dim: 96, layers: 2, groups: 8}
    teacher: {decay_start: 0.98, decay_end: 0.998, anneal_steps: 150}
optimizer: {peak_lr: 0.002, warmup_steps: 30}
data: {clip_seconds: 0.975, batch_size: 16}
steps: 300
log_every: 20
checkpoint_every: 100
"""
AUDIO = (
    "tasks/demo_pitch-v1.0.0-full/16000/train",
    "tasks/demo_kind-v1.0.0-full/16000",
    "tasks/demo_events-v1.0.0-full/16000/train",
)
"""What the demo pre-trains on, without labels: all folds of demo_kind, the training splits of the others."""
Signal = np.ndarray
Synthesiser = Callable[[np.random.Generator, float], Signal]


def _time(seconds: float) -> Signal:
    return np.arange(round(seconds * RATE)) / RATE


def harmonic(generator: np.random.Generator, seconds: float, hertz: float = 0.0) -> Signal:
    """A tone of six partials with random strengths and a decay."""
    time = _time(seconds)
    pitch = hertz or generator.uniform(150, 600)
    partials = [
        generator.uniform(0.2, 1) / k * np.sin(2 * np.pi * (k * pitch * time + generator.random())) for k in range(1, 7)
    ]
    tone: Signal = np.sum(partials, axis=0)
    return tone * np.exp(-time * generator.uniform(0, 3))


def noise(generator: np.random.Generator, seconds: float) -> Signal:
    """White noise, coloured by a random one-pole filter."""
    white = generator.normal(size=len(_time(seconds)))
    weight = generator.uniform(0, 0.9)
    return np.convolve(white, weight ** np.arange(50), mode="same")


def chirp(generator: np.random.Generator, seconds: float) -> Signal:
    """A tone that glides up or down by an octave or more."""
    time = _time(seconds)
    low, ratio = generator.uniform(150, 500), generator.uniform(2, 6)
    glide = ratio ** (time / seconds if generator.random() < 0.5 else 1 - time / seconds)
    return np.sin(2 * np.pi * np.cumsum(low * glide) / RATE)


def clicks(generator: np.random.Generator, seconds: float) -> Signal:
    """A train of clicks at 8 to 30 per second."""
    signal = np.zeros(len(_time(seconds)))
    signal[:: round(RATE / generator.uniform(8, 30))] = 4.0
    return np.convolve(signal, np.exp(-np.arange(80) / 15) * np.cos(np.arange(80)), mode="same")


def tremolo(generator: np.random.Generator, seconds: float) -> Signal:
    """Noise whose loudness beats 3 to 8 times a second."""
    beat = 0.5 - 0.5 * np.cos(2 * np.pi * generator.uniform(3, 8) * _time(seconds))
    return noise(generator, seconds) * beat


def vibrato(generator: np.random.Generator, seconds: float) -> Signal:
    """A tone whose pitch swings."""
    time = _time(seconds)
    swing = generator.uniform(0.05, 0.2) * np.sin(2 * np.pi * generator.uniform(4, 8) * time)
    return np.sin(2 * np.pi * np.cumsum(generator.uniform(200, 800) * (1 + swing)) / RATE)


KINDS: dict[str, Synthesiser] = {
    "chirp": chirp, "clicks": clicks, "harmonic": harmonic, "noise": noise, "tremolo": tremolo, "vibrato": vibrato,
}  # fmt: skip


def make_corpus(folder: str | Path, seed: int = 0) -> Path:
    """Write the three tasks below `folder/tasks`; the same seed gives the same samples."""
    generator = np.random.default_rng(seed)
    folder = Path(folder)
    tasks = folder / "tasks"
    params = {"task_specific_param_grid": QUICK_GRID}
    pitch = TaskConfig("demo_pitch", clip_seconds=1.0, evaluation=("pitch_acc", "chroma_acc"), evaluation_params=params)
    build_task(pitch, _pitch_clips(folder / "audio" / "pitch", generator), tasks, progress=False)
    kind = TaskConfig("demo_kind", clip_seconds=1.0, evaluation_params=params)
    build_task(kind, _kind_clips(folder / "audio" / "kind", generator), tasks, progress=False)
    events = TaskConfig("demo_events", "event", "multilabel", clip_seconds=EVENT_CLIP_SECONDS, evaluation_params=params)
    build_task(events, _event_clips(folder / "audio" / "events", generator), tasks, progress=False)
    return tasks


def _save(file: Path, signal: Signal, generator: np.random.Generator) -> Path:
    """Write a signal with random loudness and a little noise as 16-bit audio; return the file."""
    loud = signal / np.abs(signal).max() * generator.uniform(0.1, 0.8) + NOISE * generator.normal(size=len(signal))
    write_wav(file, loud.clip(-1, 1), RATE)
    return file


def _pitch_clips(folder: Path, generator: np.random.Generator) -> list[Clip]:
    clips = []
    for midi in PITCHES:
        hertz = HERTZ_A4 * 2 ** ((midi - MIDI_A4) / NOTES_PER_OCTAVE)
        for number in range(10):
            split = "train" if number < 6 else "valid" if number < 8 else "test"
            signal = harmonic(generator, 1.0, hertz * 2 ** generator.uniform(-0.03, 0.03))
            clips.append(Clip(_save(folder / f"{midi}-{number:02d}.wav", signal, generator), split, (str(midi),)))
    return clips


def _kind_clips(folder: Path, generator: np.random.Generator) -> list[Clip]:
    clips = []
    for kind, maker in KINDS.items():
        for number in range(30):
            file = _save(folder / f"{kind}-{number:02d}.wav", maker(generator, 1.0), generator)
            clips.append(Clip(file, f"fold{number % 3:02d}", (kind,)))
    return clips


def _event_clips(folder: Path, generator: np.random.Generator) -> list[Clip]:
    clips = []
    for number in range(40):
        split = "train" if number < 24 else "valid" if number < 32 else "test"
        signal = NOISE * generator.normal(size=len(_time(EVENT_CLIP_SECONDS)))
        events = []
        for slot in range(4):  # at most one event in each second, so that they do not overlap
            if generator.random() < 0.7:
                label = str(generator.choice(["clicks", "harmonic", "noise"]))
                start, seconds = slot + generator.uniform(0, 0.4), generator.uniform(0.3, 0.55)
                sound = KINDS[label](generator, seconds)
                first = round(start * RATE)
                signal[first : first + len(sound)] += 0.7 * sound / np.abs(sound).max()
                events.append(Event(label, start * 1000, (start + seconds) * 1000))
        clips.append(Clip(_save(folder / f"mix-{number:02d}.wav", signal, generator), split, events=tuple(events)))
    return clips


def demo_plan(folder: Path) -> Path:
    """Write the plan of the demo: standard and differential attention, beside a plain log-mel baseline."""
    base = folder / "demo_config.yaml"
    base.write_text(CONFIG, encoding="utf-8")
    plan = PlanConfig(
        base=base.name,
        tasks=TaskChoice("tasks"),
        axes={
            "mixer": {
                "standard": {"encoder.mixer": "standard", "encoder.mlp_ratio": 4.0},
                "differential": {"encoder.mixer": "differential"},
            }
        },
        data=AUDIO,
        baselines={"log-mel": "log_mel"},
        evaluation=EvaluationConfig(grid_points=2),
        question="Demo: standard and differential attention on synthetic sound",
    )
    file = folder / "demo_plan.yaml"
    file.write_text(to_yaml(plan), encoding="utf-8")
    return file


def run_demo(folder: Path, progress: bool = True) -> str:
    """Run the whole demo and return the table as Markdown; a further call resumes where it was stopped."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "tasks" / "demo_events-v1.0.0-full").is_dir():
        print("1/3 making the corpus", file=sys.stderr)
        make_corpus(folder)
    print("2/3 hear-validator asda_hear", file=sys.stderr)
    validate(["asda_hear"])
    print("3/3 pre-training, heareval, table", file=sys.stderr)
    setup = prepare(load_plan(demo_plan(folder)), folder / "results", progress)
    return write_report(setup, run_plan(setup))


def run_command(parsed: argparse.Namespace) -> None:
    """`asda-hear demo`."""
    print(run_demo(parsed.out))
