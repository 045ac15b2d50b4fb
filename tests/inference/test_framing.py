"""Integer framing: windows cover everything once, and timestamps do not drift."""

import pytest
import torch

from asda_core.inference.framing import Framing, windows

CENTRED = Framing(16_000, 160, 400, 16, shifts=4)
SCENE = Framing(16_000, 160, 400, 16, centred=False)


def test_published_geometry() -> None:
    assert (CENTRED.step_samples, CENTRED.span_samples, CENTRED.offset_samples) == (640, 2800, 1400)
    assert CENTRED.window_frames(64) == 64 * 16 + 12


@pytest.mark.parametrize(("samples", "steps"), [(1, 1), (639, 1), (640, 2), (16_000, 26), (9_600_000, 15_001)])
def test_number_of_steps(samples: int, steps: int) -> None:
    assert CENTRED.num_steps(samples) == steps


@pytest.mark.parametrize(("samples", "steps"), [(1, 1), (400, 1), (2800, 1), (2960, 2), (160_000, 63), (80_000, 32)])
def test_number_of_scene_patches(samples: int, steps: int) -> None:
    assert SCENE.num_steps(samples) == steps


def test_timestamps_do_not_drift() -> None:
    """At ten minutes and at four hours: multiples of 40 ms, exactly."""
    for seconds in (600, 4 * 3600):
        stamps = CENTRED.timestamps_ms(seconds * 16_000)
        assert stamps.dtype == torch.float32
        assert torch.equal(stamps, (torch.arange(seconds * 25 + 1) * 40).float())


def test_a_rate_that_does_not_divide() -> None:
    """At 44.1 kHz a step is 1,764 samples; the millionth timestamp is right to float32."""
    framing = Framing(44_100, 441, 1102, 16, shifts=4)
    assert float(framing.timestamps_ms(1764 * 1_000_000)[-1]) == pytest.approx(1764 * 1e9 / 44_100, rel=1e-7)


@pytest.mark.parametrize("patches", [1, 5, 15, 16, 17, 31, 100, 1023])
@pytest.mark.parametrize(("size", "context"), [(16, 2), (64, 8), (1, 0), (3, 0)])
def test_windows_keep_every_patch_once(patches: int, size: int, context: int) -> None:
    kept: list[int] = []
    for window in windows(patches, size, context):
        assert 0 <= window.first <= max(0, patches - window.size)
        assert window.size == min(size, patches)
        kept += range(window.first + window.keep_from, window.first + window.keep_to)
        if window.first > 0:
            assert window.keep_from >= context
        if window.first + window.size < patches:
            assert window.size - window.keep_to == context
    assert kept == list(range(patches))


def test_window_audio_is_the_audio_with_silence_around() -> None:
    audio = torch.arange(1.0, 5001.0)[None]
    first = CENTRED.window_audio(audio, 0, 2)
    assert first.shape[1] == (CENTRED.window_frames(2) - 1) * 160 + 400
    assert (first[0, :1400] == 0).all()
    assert first[0, 1400:1404].tolist() == [1, 2, 3, 4]
    second = CENTRED.window_audio(audio, 1, 2)
    assert second[0, 0] == 2 * 640 * 2 - 1400 + 1  # patch 1 of run 0 is step 4
    last = CENTRED.window_audio(audio, 5, 1)
    assert (last == 0).all()
    assert last.shape[1] == (CENTRED.window_frames(1) - 1) * 160 + 400
