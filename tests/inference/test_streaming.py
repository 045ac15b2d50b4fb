"""Files of hours as streams: equal to the whole file, refused in the same words, in memory that does not grow."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from safetensors import safe_open

from asda_core.assemble import build_encoder, build_front_end
from asda_core.audio import long_files
from asda_core.audio.long_files import LoadedSound, StreamedSound, resampled_blocks
from asda_core.audio.reading import read_audio
from asda_core.catalog import Catalog
from asda_core.config import RunConfig
from asda_core.errors import AudioError
from asda_core.inference import embedding as embedding_module
from asda_core.inference import writing
from asda_core.inference.clip_encoder import ClipEncoder, EncodeOptions
from asda_core.inference.embedding import embed_files, embedding
from asda_core.inference.indexing import EmbedJob
from asda_core.inference.writing import OutputKind, write_embedding, write_windows

ROOT = Path(__file__).parents[2]
MEMORY_BOUND = 150
"""MiB above the loaded model, whatever the length: what docs/embedding.md promises."""


@pytest.fixture
def parts(catalog: Catalog, tiny: RunConfig) -> tuple[Any, Any]:
    torch.manual_seed(0)
    return build_front_end(catalog, tiny.front_end), build_encoder(catalog, tiny.encoder).eval()


def noise(samples: int, channels: int = 1) -> np.ndarray:
    return 0.1 * np.random.default_rng(0).standard_normal((samples, channels)) + 0.02


def write(file: Path, samples: int, rate: int, channels: int = 1, subtype: str = "PCM_16") -> Path:
    soundfile.write(file, noise(samples, channels), rate, subtype=subtype)
    return file


@pytest.mark.parametrize(
    ("samples", "rate", "channels"),
    [(30_011, 44_100, 2), (30_011, 16_000, 1), (9_001, 8_000, 1), (3, 44_100, 1), (3, 16_000, 2), (40_000, 48_000, 3),
     (30_000, 16_001, 1), (7_000, 44_100, 1)],
)  # fmt: skip
@pytest.mark.parametrize("along", ["time", "channels"])
def test_equal_to_the_whole_file(
    samples: int, rate: int, channels: int, along: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(long_files, "STREAM_SAMPLES", 1_777)
    file = write(tmp_path / "a.wav", samples, rate, channels)
    whole = read_audio(file, 16_000, resample_along=along)
    sound = StreamedSound(file, 16_000, along)
    assert sound.num_samples == len(whole)
    starts = range(0, len(whole), 2_500)
    for first in starts:  # they overlap, as windows do; the last reaches beyond the end
        stretch = sound.segment(first, first + 4_000)
        torch.testing.assert_close(stretch, whole[first : first + 4_000], rtol=0, atol=1e-6)
    torch.testing.assert_close(sound.segment(0, 50), whole[:50], rtol=0, atol=1e-6)  # back to the beginning
    assert sound.mean() == pytest.approx(float(whole.mean()), abs=1e-6)


def test_only_the_stretch_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_files, "STREAM_SAMPLES", 1_000)
    sound = StreamedSound(write(tmp_path / "a.wav", 100_000, 16_000), 16_000)
    for first in range(0, 95_000, 1_500):
        assert len(sound.segment(first, first + 2_000)) == 2_000
        assert len(sound._held) <= 2_000 + 1_000


def test_blocks_of_any_length() -> None:
    """The same samples, however they are cut, also into crumbs shorter than the kernel."""
    audio = torch.from_numpy(noise(20_000)[:, 0]).float()
    whole = torch.cat([*resampled_blocks([audio], 44_100, 16_000)])
    for size in (1, 997, 19_999):
        cut = torch.cat([*resampled_blocks(audio.split(size)[:9_000], 44_100, 16_000)])
        torch.testing.assert_close(cut[: len(whole) - 100][:2_000], whole[:2_000], rtol=0, atol=1e-6)
    assert not [*resampled_blocks([], 44_100, 16_000)]


def bad_nan(file: Path) -> None:
    audio = noise(5_000)[:, 0]
    audio[[1_234, 1_235, 4_999]] = np.nan, np.inf, np.nan
    soundfile.write(file, audio, 44_100, subtype="FLOAT")


def bad_loud(file: Path) -> None:
    audio = noise(5_000)[:, 0]
    audio[[3_000, 4_500]] = 2e6, -3e6
    soundfile.write(file, audio, 44_100, subtype="FLOAT")


def bad_header(file: Path) -> None:
    flac = file.with_suffix(".flac")
    soundfile.write(flac, np.zeros(1_000), 16_000)
    damaged = bytearray(flac.read_bytes())
    damaged[21] |= 0x0F
    file.write_bytes(bytes(damaged))


def bad_flac(file: Path) -> None:
    flac = file.with_suffix(".flac")
    soundfile.write(flac, noise(60_000)[:, 0], 16_000)
    damaged = bytearray(flac.read_bytes())
    for place in range(len(damaged) // 2, len(damaged) // 2 + 3_000):
        damaged[place] = 0xAA
    file.write_bytes(bytes(damaged))


@pytest.mark.parametrize(
    "damage",
    [bad_nan, bad_loud, bad_header, bad_flac, lambda file: file.write_text("no sound"), lambda file: file.touch(),
     lambda file: soundfile.write(file, np.zeros(0), 16_000), lambda file: None],
)  # fmt: skip
def test_refused_in_the_same_words(
    damage: Callable[[Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(long_files, "STREAM_SAMPLES", 1_000)
    file = tmp_path / "a.wav"
    damage(file)
    said = []
    for read in (read_audio, StreamedSound):
        try:
            read(file, 16_000)
            said.append("nothing")
        except AudioError as error:
            said.append(str(error).split(" (Error : ")[0])  # the decoder's own words depend on where it begins
    assert said[0] == said[1]
    if damage is not bad_flac:  # libsndfile may sound over it
        assert said[0].startswith("cannot")


def test_a_truncated_file_ends_where_it_ends(tmp_path: Path) -> None:
    """Its header promises 60,000 samples."""
    for name in ("a.wav", "a.ogg"):
        file = tmp_path / name
        soundfile.write(file, noise(60_000)[:, 0], 44_100)
        file.write_bytes(file.read_bytes()[: file.stat().st_size * 2 // 3])
        whole = read_audio(file, 16_000)
        sound = StreamedSound(file, 16_000)
        assert 0 < sound.num_samples == len(whole) < 60_000 * 160 / 441
        torch.testing.assert_close(sound.segment(0, 60_000), whole, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [{}, {"window_seconds": 0.64}, {"window_seconds": 1.5, "padding": "features"}, {"target_length": 64},
     {"target_length": 400, "padding": "features"}, {"minimum_length": 500}],
)  # fmt: skip
def test_heard_alike(
    options: dict[str, Any], parts: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(long_files, "STREAM_SAMPLES", 10_000)
    file = write(tmp_path / "a.wav", 150_000, 44_100, 2)
    listener = ClipEncoder(*parts, EncodeOptions(**options))
    whole = listener.encode(read_audio(file, 16_000))
    sound = StreamedSound(file, 16_000)
    pieces = [*listener.encode_windows(sound)]
    torch.testing.assert_close(torch.cat([piece.tokens() for piece in pieces]), whole.tokens, rtol=0, atol=1e-4)
    assert len(pieces) == len(listener.plan_windows(sound.num_samples).windows())


@pytest.mark.parametrize("granularity", ["all", "frame", "utterance"])
@pytest.mark.parametrize("form", ["npy", "safetensors"])
def test_written_as_it_comes(granularity: Any, form: Any, parts: tuple[Any, Any], tmp_path: Path) -> None:
    audio = torch.from_numpy(noise(70_000)[:, 0]).float()
    listener = ClipEncoder(*parts, EncodeOptions(window_seconds=0.64))
    heard, kind = listener.encode(audio), OutputKind(granularity, form)
    write_embedding(tmp_path / "whole", embedding(heard, granularity), heard.grid, kind)
    steps = listener.plan_windows(len(audio)).steps
    write_windows(tmp_path / "pieces", listener.encode_windows(LoadedSound(audio)), steps, kind)
    if form == "npy":
        whole, pieces = (np.load(tmp_path / name) for name in ("whole", "pieces"))
        np.save(tmp_path / "numpy.npy", embedding(heard, granularity).numpy())
        assert (tmp_path / "whole").read_bytes() == (tmp_path / "numpy.npy").read_bytes()
    else:
        whole, pieces = (read_tensor(tmp_path / name) for name in ("whole", "pieces"))
    assert whole.shape == pieces.shape
    np.testing.assert_allclose(pieces, whole, rtol=0, atol=1e-6)
    np.testing.assert_allclose(whole, embedding(heard, granularity).numpy(), rtol=0, atol=0)


def read_tensor(file: Path) -> np.ndarray:
    with safe_open(file, "np") as opened:
        assert opened.metadata()["bands"] == "8"
        assert list(opened.keys()) == [writing.TENSOR_NAME]
        found: np.ndarray = opened.get_tensor(writing.TENSOR_NAME)
        return found


@pytest.mark.parametrize("form", ["npy", "safetensors"])
@pytest.mark.parametrize("seconds", [0.02, 1.3, 6.0])
def test_embedded_as_before(
    form: Any, seconds: float, parts: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long and short, in a folder: what the whole file gives."""
    monkeypatch.setattr(embedding_module, "WHOLE_SECONDS", 1.0)
    file = write(tmp_path / "a.wav", round(seconds * 44_100), 44_100, 2)
    listener = ClipEncoder(*parts, EncodeOptions(window_seconds=2.0))
    embed_files(listener, {file: Path(f"a.{form}")}, tmp_path / "out", EmbedJob("c", "all", form, {}), False)
    wanted = embedding(listener.encode(read_audio(file, 16_000)), "all").numpy()
    made = tmp_path / "out" / f"a.{form}"
    found = np.load(made) if form == "npy" else read_tensor(made)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)


def test_a_bad_sample_at_the_end_leaves_nothing(
    parts: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding_module, "WHOLE_SECONDS", 1.0)
    audio = noise(50_000)[:, 0]
    audio[-1] = np.nan
    soundfile.write(tmp_path / "a.wav", audio, 16_000, subtype="FLOAT")
    write(tmp_path / "b.wav", 50_000, 16_000)
    names = {tmp_path / f"{name}.wav": Path(f"{name}.npy") for name in "ab"}
    listener = ClipEncoder(*parts, EncodeOptions(window_seconds=1.0))
    line = embed_files(listener, names, tmp_path / "out", EmbedJob("c", "frame", "npy", {}), False)
    assert line.startswith("1 embedded")
    told = json.loads((tmp_path / "out" / "skipped.jsonl").read_text())
    assert told["reason"].endswith("1 samples are NaN or infinite, the first at index [49999].")
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.suffix in (".npy", ".part")) == ["b.npy"]


def test_a_file_that_shrinks_meanwhile_is_skipped(
    parts: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding_module, "WHOLE_SECONDS", 1.0)
    file = write(tmp_path / "a.wav", 50_000, 16_000)
    keep = write(tmp_path / "b.wav", 50_000, 16_000)
    pieces = ClipEncoder.encode_windows

    def shrink(self: ClipEncoder, audio: Any) -> Any:
        if audio.file == file:
            write(file, 20_000, 16_000)
        return pieces(self, audio)

    monkeypatch.setattr(ClipEncoder, "encode_windows", shrink)
    names = {file: Path("a.npy"), keep: Path("b.npy")}
    listener = ClipEncoder(*parts, EncodeOptions(window_seconds=1.0))
    line = embed_files(listener, names, tmp_path / "out", EmbedJob("c", "frame", "npy", {}), False)
    assert "1 skipped" in line
    assert "it changed while being read" in (tmp_path / "out" / "skipped.jsonl").read_text()
    assert not list((tmp_path / "out").glob("*a.npy*"))


PEAK = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import long_audio
from asda_hear.names import DEFAULT_WEIGHTS
audio, short = Path(sys.argv[2]), Path(sys.argv[3])
minutes = int(sys.argv[4])
print(long_audio.measure_file(Path(DEFAULT_WEIGHTS), minutes, audio, short, audio.parent)[1])
"""


@pytest.mark.slow
def test_memory_does_not_grow(tmp_path: Path) -> None:
    """Twenty minutes of 44.1 kHz stereo are 404 MiB as float32; each length in a process of its own."""
    short, peaks = write(tmp_path / "short.wav", 45 * 44_100, 44_100, 2), []
    for minutes in (5, 20):
        audio = tmp_path / f"{minutes}.wav"
        with soundfile.SoundFile(audio, "w", 44_100, 2) as sound:
            for _ in range(minutes):
                sound.write(noise(60 * 44_100, 2))
        command = [sys.executable, "-c", PEAK, str(ROOT / "benchmarks"), str(audio), str(short), str(minutes)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        peaks.append(float(done.stdout))
    assert max(peaks) < MEMORY_BOUND, peaks
    assert peaks[1] < peaks[0] + 25, peaks
