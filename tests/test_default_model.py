"""The recipe of the package's model, in small, and the file that it made."""

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from asda_core.checkpoint import read_checkpoint
from asda_hear import get_scene_embeddings, load_model
from asda_hear.model import HearModel
from asda_hear.names import DEFAULT_WEIGHTS

RECIPE = Path(__file__).parents[1] / "recipes" / "default_model"
MAX_MEGABYTES = 20
"""That ships well in a wheel."""
NEW_SOUNDS = range(2000, 2040)
"""Synthesisers that are in no training: the corpus has the first 1,200."""


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    monkeypatch.syspath_prepend(str(RECIPE))
    names = ("sounds", "recordings", "overlap", "make_corpus", "train")
    modules = {name: importlib.import_module(name) for name in names}
    for name in names:
        monkeypatch.delitem(sys.modules, name)
    return modules


def test_a_synthesiser_sounds_alike_and_never_the_same(recipe: dict[str, ModuleType]) -> None:
    sounds = recipe["sounds"]
    layers = [sounds.synthesiser(np.random.default_rng([0, number])) for number in range(8)]
    assert layers[0] == sounds.synthesiser(np.random.default_rng([0, 0])) != layers[1]
    for each in layers:
        once, again = (sounds.rendered(each, 16_000, np.random.default_rng(seed)) for seed in (0, 1))
        assert once.shape == (16_000,)
        assert np.isfinite(once).all()
        assert once.std() > 1e-4
        assert not np.allclose(once, again)
        assert np.array_equal(once, sounds.rendered(each, 16_000, np.random.default_rng(0)))
        for layer in each:
            moved = sounds.moved(layer, np.random.default_rng(0))
            assert moved != layer
            assert moved.excitation == layer.excitation
            assert 0.4 < moved.pitch / layer.pitch < 2.5
            assert moved.swell_depth <= 1


def test_a_corpus_is_made_and_gone_on_with(
    recipe: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["make_corpus.py", str(tmp_path), "--words", "0", "--sounds", "2", "--renderings", "2", "--jobs", "1"]
    monkeypatch.setattr(sys, "argv", command)
    monkeypatch.setattr(recipe["make_corpus"], "ProcessPoolExecutor", OneProcess)
    recipe["make_corpus"].main()
    files = sorted(tmp_path.rglob("*.flac"))
    assert [file.parent.parent.name for file in files] == ["train"] * 4 + ["valid"] * 2
    first, rate = soundfile.read(files[0])
    assert rate == 16_000
    assert len(first) == 32_000
    assert 0 < np.abs(first).max() <= 1
    kept = files[1].stat().st_mtime_ns
    files[0].unlink()
    recipe["make_corpus"].main()
    assert np.array_equal(soundfile.read(files[0])[0], first)
    assert files[1].stat().st_mtime_ns == kept


@pytest.fixture
def recordings_folder(tmp_path: Path) -> Path:
    """Two barks, a drum in two folders, 40 s of rain in stereo, a click too short, three words, a file that is none."""
    sounds = {
        "game/usr/dogs/bark1.wav": (0.4, 44_100, 1),
        "game/usr/dogs/bark2.wav": (0.6, 22_050, 1),
        "game/usr/kit_a/drum.flac": (0.3, 48_000, 2),
        "kits/usr/kit_b/drum.ogg": (0.3, 48_000, 1),
        "game/usr/ambient/rain.wav": (40.0, 8_000, 2),
        "game/usr/click.wav": (0.1, 16_000, 1),
        **{f"klettres-data/usr/en/{word}.ogg": (0.5, 22_050, 1) for word in ("a", "b", "c")},
    }
    for number, (name, (seconds, rate, channels)) in enumerate(sounds.items()):
        file = tmp_path / "audio" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(number).normal(size=(round(seconds * rate), channels))
        soundfile.write(file, 0.1 * noise, rate)
    (tmp_path / "audio" / "game" / "usr" / "broken.wav").write_text("no sound")
    return tmp_path / "audio"


def test_kinds_of_recordings(recipe: dict[str, ModuleType], recordings_folder: Path) -> None:
    """Takes are one kind; names of other folders are others; of speech as many as are wanted, always the same."""
    recordings = recipe["recordings"]
    kinds = recordings.kinds_of(recordings_folder, 2)
    assert [file.name for file in kinds["game-usr-dogs-bark"]] == ["bark1.wav", "bark2.wav"]
    spoken = {name for name in kinds if name.startswith("klettres")}
    assert len(spoken) == 2
    wanted = {"game-usr-dogs-bark", "game-usr-kit_a-drum", "kits-usr-kit_b-drum", "game-usr-ambient-rain"}
    assert kinds.keys() - spoken == wanted
    assert kinds == recordings.kinds_of(recordings_folder, 2)
    for files in kinds.values():
        for seed in range(3):
            audio = recordings.piece(files, 2.0, np.random.default_rng(seed))
            assert audio.ndim == 1
            assert 0.2 * 16_000 < len(audio) <= 2.02 * 16_000
            assert np.abs(audio).max() > 0.01
    rain = [recordings.piece(kinds["game-usr-ambient-rain"], 2.0, np.random.default_rng(seed)) for seed in (0, 0, 1)]
    assert np.array_equal(rain[0], rain[1])
    assert not np.array_equal(rain[0][:1000], rain[2][:1000])


def test_clips_of_recordings(
    recipe: dict[str, ModuleType], recordings_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["make_corpus.py", str(tmp_path / "made"), str(recordings_folder), "--words", "0", "--sounds", "0"]
    monkeypatch.setattr(sys, "argv", [*command, "--pieces", "2", "--speech", "1"])
    monkeypatch.setattr(recipe["make_corpus"], "ProcessPoolExecutor", OneProcess)
    recipe["make_corpus"].main()
    clips = [soundfile.read(file)[0] for file in sorted((tmp_path / "made" / "recordings").rglob("*.flac"))]
    assert len(clips) == 5 * 3
    assert {len(clip) for clip in clips} == {32_000}
    assert all(0 < np.abs(clip).max() <= 1 for clip in clips)


def test_a_clip_that_is_among_the_recordings_is_found(
    recipe: dict[str, ModuleType],
    recordings_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Softer, filtered and cut from the middle; one that is not there, one of silence and one too short are told."""
    rain, rate = soundfile.read(recordings_folder / "game" / "usr" / "ambient" / "rain.wav")
    heard = np.convolve(rain[round(12.34 * rate) : round(14.34 * rate)].mean(axis=1), [0.3, -0.1], "same")
    heard[: rate // 2] *= 0.1
    clips = {
        "heard.wav": heard,
        "other.wav": np.random.default_rng(99).normal(size=2 * rate) * 0.1,
        "silent.wav": np.zeros(2 * rate),
        "short.wav": heard[: rate // 2],
    }
    (tmp_path / "clips").mkdir()
    for name, samples in clips.items():
        soundfile.write(tmp_path / "clips" / name, samples, rate)
    monkeypatch.setattr(sys, "argv", ["overlap.py", str(recordings_folder), str(tmp_path / "clips")])
    recipe["overlap"].main()
    first, _, found, other = capsys.readouterr().out.splitlines()
    assert first.startswith("searched for 2 of 4 clips in 0.0 hours of 5 files")
    likeness, waveform, name, where = found.split(maxsplit=3)
    assert name == "heard.wav,"
    assert where.split(" at ")[0].endswith("rain.wav")
    assert 12.8 <= float(where.split(" at ")[1].removesuffix(" s")) <= 13.3
    assert min(float(likeness), float(waveform)) > 0.85
    assert float(other.split()[1]) < 0.3
    monkeypatch.setattr(sys, "argv", ["overlap.py", str(recordings_folder), str(recordings_folder / "kits")])
    with pytest.raises(SystemExit):
        recipe["overlap"].main()
    assert "contains no audio file of 1.1 s or more" in capsys.readouterr().err


def test_what_cannot_be_used_of_the_recordings(recipe: dict[str, ModuleType], recordings_folder: Path) -> None:
    """A file that is a clip of ESC-10, and one that is damaged behind its header."""
    place = recordings_folder / "game" / "usr"
    kinds = recipe["recordings"].kinds_of(recordings_folder, 0)
    (place / "fire_small.ogg").write_bytes((recordings_folder / "kits" / "usr" / "kit_b" / "drum.ogg").read_bytes())
    whole = (recordings_folder / "game" / "usr" / "kit_a" / "drum.flac").read_bytes()
    (place / "damaged.flac").write_bytes(whole[:200] + bytes(len(whole) - 200))
    assert recipe["recordings"].kinds_of(recordings_folder, 0) == kinds


def write_corpus(folder: Path) -> None:
    for task, seconds in (("words", 1), ("sounds", 2), ("recordings", 2)):
        for part in ("train", "valid"):
            for kind in range(2):
                place = folder / task / part / str(kind)
                place.mkdir(parents=True)
                for number in range(2):
                    clip = np.random.default_rng([kind, number]).normal(size=16_000 * seconds) * 0.1
                    soundfile.write(place / f"{number}.flac", clip * (1 + kind), 16_000)


def test_training_stops_and_goes_on_to_the_same_weights(
    recipe: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train: Any = recipe["train"]
    write_corpus(tmp_path / "corpus")
    monkeypatch.setattr(train, "TASKS", tuple(train.Task(t.name, t.samples, t.frames, 4) for t in train.TASKS))
    monkeypatch.setattr(train, "ProcessPoolExecutor", OneProcess)
    monkeypatch.setattr(train, "SAVE_EVERY", 2)

    def run(out: str, *more: str) -> dict[str, Tensor]:
        command = ["train.py", str(tmp_path / "corpus"), str(tmp_path / out), *(more or ("--steps", "4"))]
        monkeypatch.setattr(sys, "argv", command)
        train.main()
        return dict(read_checkpoint(tmp_path / out).tensors)

    whole = run("whole.safetensors")
    update = train.Training.update

    def interrupted(self: Any) -> Any:
        if self.step == 3:
            raise KeyboardInterrupt
        return update(self)

    monkeypatch.setattr(train.Training, "update", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run("parts.safetensors")
    monkeypatch.setattr(train.Training, "update", update)
    parts = run("parts.safetensors")
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert not (tmp_path / "parts.safetensors.training").exists()
    heads = ("--steps", "1", "--start", str(tmp_path / "parts.safetensors"), "--heads-first", "1")
    frozen = run("heads.safetensors", *heads)
    assert all(torch.equal(whole[name], frozen[name]) for name in whole)
    begun = run("more.safetensors", "--steps", "0", "--start", str(tmp_path / "parts.safetensors"), "--parts", "words")
    assert all(torch.equal(whole[name], begun[name]) for name in whole)
    (tmp_path / "corpus" / "sounds" / "valid" / "2").mkdir()
    with pytest.raises(SystemExit, match="sounds is empty or incomplete"):
        run("half.safetensors")
    model = load_model(tmp_path / "parts.safetensors")
    assert model.scene_embedding_size == load_model().scene_embedding_size


class OneProcess:
    """In the place of a pool: modules that a test imports by path are not found by other processes."""

    def __init__(self, *_: object) -> None:
        pass

    def __enter__(self) -> "OneProcess":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def map(self, function: Any, *arguments: Any, chunksize: int = 1) -> Any:
        threads = torch.get_num_threads()
        found = list(map(function, *arguments))
        torch.set_num_threads(threads)
        return found


def told_by_neighbours(model: HearModel, clips: Tensor, kinds: Tensor) -> float:
    """Share of clips whose nearest neighbour is of their kind, each value standardised."""
    embeddings = get_scene_embeddings(clips, model)
    standard = (embeddings - embeddings.mean(0)) / embeddings.std(0).clamp(min=1e-6)
    near = torch.cdist(standard, standard).fill_diagonal_(torch.inf).argmin(dim=1)
    return float((kinds[near] == kinds).float().mean())


def test_the_model_of_the_package_knows_more_than_random_weights_and_log_mel(recipe: dict[str, ModuleType]) -> None:
    assert DEFAULT_WEIGHTS.stat().st_size < MAX_MEGABYTES * 10**6
    checkpoint = read_checkpoint(DEFAULT_WEIGHTS)
    assert checkpoint.step > 0
    assert checkpoint.embedding == recipe["train"].EMBEDDING
    clip = recipe["make_corpus"].sound_clip
    made = [clip(str(number), take, 0, False) for number in NEW_SOUNDS for take in range(3)]
    clips = torch.from_numpy(np.stack(made)).float()
    kinds = torch.tensor([number for number in NEW_SOUNDS for _ in range(3)])
    random = load_model(RECIPE.parents[1] / "configs" / "asda_small.yaml", **checkpoint.embedding)
    log_mel = load_model("log_mel", scene_pooling="dynamics")
    shares = [told_by_neighbours(model, clips, kinds) for model in (load_model(), random, log_mel)]
    assert shares[0] > max(shares[1:]), shares
