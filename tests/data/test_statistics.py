"""Mean and spread against an explicit computation; what is silent, short or broken is named."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import torchaudio
import yaml

from asda_core.audio.reading import read_audio
from asda_core.audio_files.sources import find_audio
from asda_core.catalog import Catalog
from asda_core.cli import main
from asda_core.commands.data import as_text
from asda_core.config import PluginChoice, RunConfig
from asda_core.config_io import parse
from asda_core.data import statistics
from asda_core.data.statistics import measure
from asda_core.errors import AudioError, ConfigError, PluginError
from tests.audio_files.shards import write_shards


def kaldi(file: Path) -> np.ndarray:
    """Log-mel of a file by torchaudio's own function, in float64."""
    features = torchaudio.compliance.kaldi.fbank(
        read_audio(file, 16_000)[None], htk_compat=True, sample_frequency=16_000, use_energy=False,
        window_type="hanning", num_mel_bins=128, dither=0.0, frame_shift=10,
    )  # fmt: skip
    return features.numpy().astype(np.float64)


@pytest.mark.parametrize("jobs", [1, 3])
def test_mean_and_spread_of_all_values(audio_folder: Path, catalog: Catalog, jobs: int) -> None:
    files = find_audio(audio_folder)
    found = measure(files, catalog, PluginChoice("log_mel"), jobs=jobs, progress=False)
    values = np.concatenate([kaldi(file).ravel() for file in files])
    assert found.num_values == len(values)
    assert found.mean == pytest.approx(values.mean(), abs=1e-5)
    assert found.std == pytest.approx(values.std(), abs=1e-5)
    assert sorted(found.rates.items()) == [(8_000, 1), (16_000, 1), (22_050, 1), (44_100, 1), (48_000, 1)]
    assert sorted(found.channels.items()) == [(1, 3), (2, 2)]
    assert found.seconds == pytest.approx([1.0, 0.7, 2.0, 0.3, 1.3], abs=1e-3)
    given = PluginChoice("log_mel", {"mean": 3.0, "std": 9.0, "num_bins": 64})  # its own normalisation does not matter
    plain = PluginChoice("log_mel", {"num_bins": 64})
    assert measure(files, catalog, given, progress=False).mean == measure(files, catalog, plain, progress=False).mean


def test_what_it_says_normalises(audio_folder: Path, catalog: Catalog) -> None:
    found = measure(find_audio(audio_folder), catalog, PluginChoice("log_mel"), progress=False)
    module = statistics.build_front_end(catalog, PluginChoice("log_mel", {"mean": found.mean, "std": found.std}))
    values = torch.cat([module(read_audio(file, 16_000)[None]).flatten() for file in find_audio(audio_folder)])
    assert values.mean().item() == pytest.approx(0.0, abs=1e-5)
    assert values.std(correction=0).item() == pytest.approx(0.5, abs=1e-5)


def test_one_step_of_16_bits_is_silent_and_two_are_not(tmp_path: Path, catalog: Catalog) -> None:
    for steps in (1, 2):
        soundfile.write(tmp_path / f"{steps}.wav", np.full(16_000, steps, np.int16), 16_000)
    found = measure(find_audio(tmp_path), catalog, PluginChoice("log_mel"), progress=False)
    assert [Path(file).name for file in found.silent] == ["1.wav"]


def test_silent_short_and_broken(audio_folder: Path, catalog: Catalog) -> None:
    soundfile.write(audio_folder / "silent.wav", np.zeros(16_000), 16_000)
    soundfile.write(audio_folder / "short.wav", np.ones(300) / 2, 16_000)
    (audio_folder / "text.wav").write_text("no audio")
    soundfile.write(audio_folder / "nan.wav", np.array([0.0, np.nan] * 800), 16_000, subtype="FLOAT")
    found = measure(find_audio(audio_folder), catalog, PluginChoice("log_mel"), progress=False)
    assert [Path(file).name for file in found.silent] == ["silent.wav"]
    assert sorted(Path(file).name for file in found.broken) == ["nan.wav", "text.wav"]
    assert [Path(file).name for file in found.short] == ["short.wav"]
    told = as_text(found, 9)
    assert f"short     1: {audio_folder / 'short.wav'} (shorter than one window)\nbroken    2: " in told
    assert len(found.seconds) == 7
    with pytest.raises(AudioError, match=r"short.wav is shorter than one window"):
        measure([audio_folder / "short.wav"], catalog, PluginChoice("log_mel"), progress=False)
    with pytest.raises(AudioError, match="none of the 1 audio files gives features"):
        measure([audio_folder / "text.wav"], catalog, PluginChoice("log_mel"), progress=False)


def test_long_sounds_in_blocks(tmp_path: Path, catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    soundfile.write(tmp_path / "a.wav", np.random.default_rng(0).normal(size=48_100) / 10, 16_000, subtype="FLOAT")
    whole = measure([tmp_path / "a.wav"], catalog, PluginChoice("log_mel"), progress=False)
    monkeypatch.setattr(statistics, "BLOCK_SECONDS", 1.0)
    blocks = measure([tmp_path / "a.wav"], catalog, PluginChoice("log_mel"), progress=False)
    assert (whole.num_values, blocks.num_values) == (
        299 * 128,
        3 * 98 * 128,
    )  # frames across two blocks, and 100 samples more
    assert blocks.mean == pytest.approx(whole.mean, abs=0.01)
    assert blocks.seconds == [48_100 / 16_000]


def test_front_ends_without_one_mean_and_one_spread(audio_folder: Path, catalog: Catalog) -> None:
    with pytest.raises(ConfigError, match="'mfcc' does not normalise features by"):
        measure(find_audio(audio_folder), catalog, PluginChoice("mfcc"), progress=False)
    with pytest.raises(PluginError, match="Did you mean 'log_mel'"):
        measure(find_audio(audio_folder), catalog, PluginChoice("log_mle"), progress=False)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_shards(tmp_path / "shards", [4, 5])
    (tmp_path / "text.wav").write_text("no audio")
    sources = ["data", "stats", str(tmp_path / "shards"), str(tmp_path / "text.wav")]
    assert main([*sources, "--jobs", "2"]) == 0
    printed = capsys.readouterr().out
    assert "files     10 files" in printed
    assert "broken    1: " in printed
    pasted = parse(RunConfig, yaml.safe_load(printed.splitlines()[-1])).front_end
    assert main([*sources, "--json", "--set", "front_end={name: log_mel}"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert pasted.options == {"mean": round(plain["mean"], 3), "std": round(plain["std"], 3)}
    assert plain["looked_at"] == 10
    assert list(plain["broken"]) == [str(tmp_path / "text.wav")]
    assert main([*sources, "--json", "--sample", "3"]) == 0
    assert json.loads(capsys.readouterr().out)["looked_at"] == 3
    assert main([*sources, "--sample", "0"]) == 1
    assert "--sample must be at least 1" in capsys.readouterr().err


@pytest.mark.parametrize("seconds", [40.0, 150.0])
def test_a_sound_shorter_than_its_header_says(tmp_path: Path, catalog: Catalog, seconds: float) -> None:
    """What is there counts, as `asda embed` takes it."""
    sound = np.random.default_rng(0).normal(size=int(seconds * 16_000)) * 0.1
    soundfile.write(tmp_path / "whole.mp3", sound, 16_000, format="MP3")
    content = (tmp_path / "whole.mp3").read_bytes()
    (tmp_path / "cut.mp3").write_bytes(content[: len(content) * 6 // 10])
    found = measure([tmp_path / "cut.mp3"], catalog, PluginChoice("log_mel"), progress=False)
    assert not found.broken
    assert sum(found.seconds) == pytest.approx(0.6 * seconds, rel=0.03)
    assert sum(found.seconds) == pytest.approx(len(read_audio(tmp_path / "cut.mp3", 16_000)) / 16_000, abs=0.01)


def test_names_that_are_no_utf_8(tmp_path: Path) -> None:
    """Nothing that was computed is lost where standard output takes UTF-8 alone."""
    folder = os.fsencode(tmp_path / "audio")
    os.mkdir(folder)
    soundfile.write(tmp_path / "audio" / "good.wav", np.random.default_rng(0).normal(size=16_000) * 0.1, 16_000)
    with open(os.path.join(folder, b"br\xe9.wav"), "wb") as opened:
        opened.write(b"no audio")
    command = [sys.executable, "-m", "asda_core.cli", "data", "stats", str(tmp_path / "audio")]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run(command, capture_output=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert b"br\xe9.wav" in done.stdout


def test_values_without_a_spread_give_no_line_for_a_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    soundfile.write(tmp_path / "silent.wav", np.zeros(16_000), 16_000)
    assert main(["data", "stats", str(tmp_path)]) == 0
    assert "All values are the same" in capsys.readouterr().out.splitlines()[-1]
    assert main(["data", "stats", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["yaml"] is None
