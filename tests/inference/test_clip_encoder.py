"""A clip as a whole, in windows, filled as one wants, filled as released."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import torchaudio
from torch import Tensor

from asda_core.assemble import build_encoder, build_front_end
from asda_core.audio.feature_padding import fill_features
from asda_core.audio.reading import read_audio
from asda_core.catalog import Catalog
from asda_core.config import ClassTokenConfig, Padding, RunConfig
from asda_core.errors import AudioError, ConfigError
from asda_core.inference.clip_encoder import MAX_STEPS, ClipEncoder, EncodeOptions, check_audio, with_training_length

MEAN, STD = -4.268, 4.569


@pytest.fixture
def parts(catalog: Catalog, tiny: RunConfig) -> tuple[Any, Any]:
    torch.manual_seed(0)
    return build_front_end(catalog, tiny.front_end), build_encoder(catalog, tiny.encoder).eval()


def sound(seconds: float, rate: int = 16_000) -> Tensor:
    return 0.1 * torch.randn(round(seconds * rate), generator=torch.Generator().manual_seed(1)) + 0.02


@pytest.mark.parametrize(("samples", "steps"), [(1, 1), (399, 1), (2_800, 1), (2_960, 2), (16_000, 7), (160_000, 63)])
def test_every_sample_is_heard(parts: tuple[Any, Any], samples: int, steps: int) -> None:
    heard = ClipEncoder(*parts, EncodeOptions()).encode(sound(2)[:1].repeat(samples))
    assert heard.grid == (steps, 8)
    assert heard.tokens.shape == (steps * 8, 32)
    assert heard.summary.shape == (32,)
    assert heard.tokens.isfinite().all()


def released_features(wave: Tensor, target_length: int | None) -> Tensor:
    """Steps of the released script, restated with torchaudio's own function."""
    wave = wave - wave.mean()
    mel = torchaudio.compliance.kaldi.fbank(
        wave[None], htk_compat=True, sample_frequency=16_000, use_energy=False, window_type="hanning",
        num_mel_bins=128, dither=0.0, frame_shift=10,
    )  # fmt: skip
    length = target_length or -(-len(mel) // 16) * 16
    mel = torch.nn.functional.pad(mel, (0, 0, 0, max(0, length - len(mel))))[:length]
    return ((mel - MEAN) / (2 * STD)).T[None]


@pytest.mark.parametrize("target_length", [None, 64, 96, 256])
def test_equal_to_the_released_extraction(parts: tuple[Any, Any], target_length: int | None) -> None:
    wave = sound(1.23)
    listener = ClipEncoder(*parts, EncodeOptions(target_length=target_length, padding="features"))
    heard = listener.encode(wave)
    with torch.no_grad():
        wanted = parts[1](released_features(wave, target_length))
    assert torch.allclose(heard.tokens, wanted.tokens[0], atol=1e-4)
    assert torch.allclose(heard.summary, wanted.summary[0], atol=1e-4)


def test_filling_matters_only_where_there_is_some(parts: tuple[Any, Any]) -> None:
    usual = ClipEncoder(*parts, EncodeOptions(target_length=64))
    released = ClipEncoder(*parts, EncodeOptions(target_length=64, padding="features"))
    long, short = sound(2), sound(0.3)
    assert torch.allclose(usual.encode(long).tokens, released.encode(long).tokens, atol=1e-4)
    assert not torch.allclose(usual.encode(short).tokens, released.encode(short).tokens, atol=1e-2)


def test_windows_join(parts: tuple[Any, Any]) -> None:
    """Every step is there once, and is what a model that hears its window alone makes of it."""
    wave = sound(20)
    whole = ClipEncoder(*parts, EncodeOptions())
    cut = ClipEncoder(*parts, EncodeOptions(window_seconds=2.575)).encode(wave)
    assert cut.grid == whole.encode(wave).grid
    window, step = 41_200, 2_560  # 16 steps; two of them are context at each inner edge
    for first, keep_from, keep_to in ((0, 0, 14), (12, 2, 14), (24, 2, 14)):
        alone = whole.encode(wave[first * step : first * step + window])
        assert alone.grid[0] == 16
        kept = cut.tokens[(first + keep_from) * 8 : (first + keep_to) * 8]
        assert torch.allclose(kept, alone.tokens[keep_from * 8 : keep_to * 8], atol=1e-5)
    last = whole.encode(wave[(cut.grid[0] - 16) * step :])
    assert torch.allclose(cut.tokens[-16:], last.tokens[-16:], atol=1e-5)


def test_very_long_audio_is_cut_by_itself(parts: tuple[Any, Any]) -> None:
    seconds = MAX_STEPS * 0.16 + 10
    seen = []
    parts[1].register_forward_hook(lambda module, given, made: seen.append(made.layout.grid[0]))
    heard = ClipEncoder(*parts, EncodeOptions(clip_seconds=2.575)).encode(sound(seconds))
    assert heard.grid[0] > MAX_STEPS
    assert max(seen) == 16


@pytest.mark.parametrize("padding", ["silence", "features"])
@pytest.mark.parametrize("seconds", [0.3, 1.0])
@pytest.mark.parametrize("stride", [None, 10])
def test_a_clip_is_heard_as_in_training(
    catalog: Catalog, tiny: RunConfig, stride: int | None, seconds: float, padding: Padding
) -> None:
    """In one piece and of as many time steps, also where patches overlap and the last frames are in none."""
    front_end = build_front_end(catalog, tiny.front_end)
    encoder = build_encoder(catalog, replace(tiny.encoder, stride_frames=stride, stride_bins=stride)).eval()
    options = with_training_length(EncodeOptions(clip_seconds=1.0, padding=padding), front_end, encoder)
    clip = sound(seconds)
    heard = ClipEncoder(front_end, encoder, options).encode(clip)
    trained = torch.nn.functional.pad(clip, (0, 16_000 - len(clip)))[None]
    features = front_end(trained)
    if padding == "features":
        features = fill_features(front_end(trained - clip.mean()), torch.tensor([len(clip)]), front_end)
    with torch.no_grad():
        wanted = encoder(features)
    assert heard.grid == wanted.layout.grid == ((6, 8) if stride is None else (9, 12))
    assert torch.allclose(heard.tokens, wanted.tokens[0], atol=1e-5)


def test_without_class_token(catalog: Catalog, tiny: RunConfig) -> None:
    config = replace(tiny.encoder, class_token=ClassTokenConfig(position="none"))
    listener = ClipEncoder(
        build_front_end(catalog, tiny.front_end), build_encoder(catalog, config).eval(), EncodeOptions()
    )
    heard = listener.encode(sound(1))
    assert not heard.has_class_token
    assert torch.allclose(heard.summary, heard.tokens.mean(0), atol=1e-5)


def test_bad_audio_and_options(parts: tuple[Any, Any]) -> None:
    listener = ClipEncoder(*parts, EncodeOptions())
    with pytest.raises(AudioError, match="at least one sample"):
        listener.encode(torch.zeros(0))
    with pytest.raises(AudioError, match="NaN"):
        listener.encode(torch.full((500,), torch.nan))
    with pytest.raises(ConfigError, match="less than a patch"):
        ClipEncoder(*parts, EncodeOptions(target_length=15))
    for options in ({"target_length": 0}, {"window_seconds": math.inf}, {"clip_seconds": 0.0}):
        with pytest.raises(ConfigError, match="must be positive"):
            EncodeOptions(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        (torch.zeros(9, dtype=torch.int16), r"must be floating point in \[-1, 1\], not torch.int16"),
        (torch.zeros(9).to(torch.float8_e4m3fn), r"not torch.float8_e4m3fn; convert it with audio.float\(\)"),
        (torch.zeros(9).to_sparse(), r"a dense tensor, not torch.sparse_coo; convert it with audio.to_dense\(\)"),
        (torch.nested.nested_tensor([torch.zeros(9)], layout=torch.jagged), "a dense tensor, not a nested one; pass"),
        (np.zeros(9, np.float32), "must be a torch tensor, not ndarray"),
        (torch.zeros(2, 9), r"one channel of at least one sample, not of shape \(2, 9\)"),
    ],
)
def test_audio_of_another_kind(audio: object, message: str) -> None:
    with pytest.raises(AudioError, match=message):
        check_audio(audio)


def test_samples_of_any_precision(parts: tuple[Any, Any]) -> None:
    encoder, audio = ClipEncoder(*parts, EncodeOptions()), torch.rand(9000) - 0.5
    assert torch.equal(encoder.encode(audio.double()).summary, encoder.encode(audio).summary)


def test_stereo(parts: tuple[Any, Any], tmp_path: Path) -> None:
    file = tmp_path / "stereo.wav"
    soundfile.write(file, torch.stack([sound(1, 44_100), -sound(1, 44_100)], 1).numpy(), 44_100)
    listener = ClipEncoder(*parts, EncodeOptions())
    assert listener.encode(read_audio(file, 16_000)).grid[0] == 7
    assert listener.encode(read_audio(file, 16_000, resample_along="channels")).grid[0] == 18


def test_filling_behind_the_last_window(parts: tuple[Any, Any]) -> None:
    """Only the window that holds the end is filled, from the end on."""
    wave = sound(6.0)
    options = EncodeOptions(target_length=800, window_seconds=2.575, padding="features")
    heard = ClipEncoder(*parts, options).encode(wave)
    usual = ClipEncoder(*parts, replace(options, padding="silence")).encode(wave)
    assert heard.grid[0] == 50
    assert torch.allclose(heard.tokens[: 20 * 8], usual.tokens[: 20 * 8], atol=1e-4)
    alone = ClipEncoder(*parts, EncodeOptions(padding="features", target_length=256)).encode(wave[34 * 2_560 :])
    assert torch.allclose(heard.tokens[-12 * 8 :], alone.tokens[-12 * 8 :], atol=1e-4)
