"""Parity of the front end on a second of real audio; the file stays outside, since it holds that second."""

import os
from pathlib import Path

import pytest
import soundfile
import torch
from torch import Tensor

from asda_core.audio.feature_padding import fill_features
from asda_core.audio.reading import crop_or_pad, read_audio, resample
from asda_core.config import ResampleAxis
from asda_core.finetune.augment import roll_and_gain
from asda_core.log_mel import LogMel, LogMelConfig
from asda_core.official.stored_config import NORMALISATION
from tests.conftest import SHARED
from tests.released.golden import Arrays, assert_close

FOLDER = Path(os.environ.get("ASDA_GOLDEN", SHARED / "golden" / "asda"))
RATE = 16_000

pytestmark = pytest.mark.shared


def features(wave: Tensor, num_frames: int, front_end: LogMel) -> Tensor:
    """What the release makes of a clip: (1, frames, bins), filled behind the log-mel."""
    samples = (num_frames - 1) * front_end.hop_samples + front_end.window_samples
    made = front_end(crop_or_pad(wave - wave.mean(), samples)[None])
    return fill_features(made, torch.tensor([len(wave)]), front_end).transpose(1, 2)


def test_front_end(tmp_path: Path) -> None:
    arrays = Arrays(FOLDER / "fbank.npz")
    wave, rate = arrays["wave16"], int(arrays["sr_src"])
    assert_close(resample(arrays["wave_src"], rate, RATE), wave)
    audioset = LogMel(LogMelConfig(), RATE)
    raw = LogMel(LogMelConfig(mean=0.0, std=0.5), RATE)
    assert_close(raw((wave - wave.mean())[None])[0].T, arrays["logmel_raw"])
    for num_frames in (64, 128):
        assert_close(features(wave, num_frames, audioset), arrays[f"as_{num_frames}"])
    for name, flag in (("esc50", "esc50_eval"), ("spcv2", "spcv2_eval")):
        front_end = LogMel(LogMelConfig(**NORMALISATION[flag]), RATE)
        assert_close(features(wave, 128, front_end)[:, -40:], arrays[f"{name}_128_last40"])
    assert_close(audioset(torch.zeros(1, 400))[0, :1, 0], arrays["silence_value"])
    _compare_stereo(arrays, audioset, tmp_path)
    rolled = roll_and_gain(wave, int(arrays["roll_shift"]), float(arrays["roll_gain"]))
    assert_close(rolled, arrays["roll_out"])
    arrays.assert_all_compared()


def _compare_stereo(arrays: Arrays, audioset: LogMel, folder: Path) -> None:
    def heard(first: Tensor, second: Tensor, rate: int, along: ResampleAxis) -> Tensor:
        file = folder / f"{along}{rate}.wav"
        soundfile.write(file, torch.stack([first, second], 1).numpy(), rate, subtype="FLOAT")
        return features(read_audio(file, RATE, resample_along=along), 64, audioset)

    source, rate = (arrays["wave_src"], arrays["stereo_second_channel"]), int(arrays["sr_src"])
    assert_close(heard(*source, rate, "channels"), arrays["as_stereo_resample_bug_64"])
    right = features(resample(torch.stack(source).mean(0), rate, RATE), 64, audioset)
    assert_close(heard(*source, rate, "time"), right)
    assert float((right - arrays["as_stereo_resample_bug_64"]).abs().max()) > 0.1
    same_rate = (arrays["wave16"], arrays["stereo16_second_channel"])
    for along in ("time", "channels"):
        assert_close(heard(*same_rate, RATE, along), arrays["as_stereo16_64"])
