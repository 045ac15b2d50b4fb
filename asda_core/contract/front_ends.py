"""Contract of every front end."""

from typing import Any

import torch

from asda_core.assemble import SAMPLE_RATE
from asda_core.contract.modules import builder, check_state, check_tensor, seeded, unchanged_inputs
from asda_core.contracts import FrontEndContext, FrontEndSpec


@seeded
def check_front_end(spec: FrontEndSpec[Any], **options: Any) -> None:
    """Check attributes; shape; float32; that the audio is left as it is, and two calls are equal; finite output for
    silence; that a delay of one hop is one frame, that a frame depends only on its window and a clip only on itself; no
    trainable parameter, since no gradient passes through a front end; state round trip."""
    build, context = builder(spec, FrontEndSpec, options), FrontEndContext(SAMPLE_RATE)
    front_end, other = build(context), build(context)
    _check_front_end(spec.name, front_end)
    audio = 0.1 * torch.randn(1, front_end.window_samples + 20 * front_end.hop_samples)
    check_state(front_end.eval(), other.eval(), audio)


def _check_front_end(plugin: str, front_end: Any) -> None:
    for name in ("sample_rate", "num_bins", "hop_samples", "window_samples"):
        value = getattr(front_end, name, None)
        is_positive = isinstance(value, int) and value > 0
        assert is_positive, f"{plugin}: attribute {name} must be a positive int, not {value!r}"
    hop, window = front_end.hop_samples, front_end.window_samples
    audio = 0.1 * torch.randn(2, window + 20 * hop + hop // 2)
    with unchanged_inputs(plugin, audio=audio):
        features = front_end(audio)
    check_tensor(plugin, features, (2, front_end.num_bins, 21))
    assert features.dtype == torch.float32, f"{plugin}: {features.dtype}, not torch.float32"
    assert torch.equal(front_end(audio), features), f"{plugin}: two calls with the same input differ"
    trainable = [name for name, parameter in front_end.named_parameters() if parameter.requires_grad]
    assert not trainable, f"{plugin}: no gradient reaches {', '.join(trainable)}; register as buffers"
    assert front_end(torch.zeros(1, window)).isfinite().all(), f"{plugin}: the features of silence are not finite"
    delayed = front_end(torch.nn.functional.pad(audio, (hop, 0)))
    assert torch.allclose(delayed[:, :, 1:], features, atol=1e-4), f"{plugin}: a delay of one hop is not one frame"
    for clip in range(len(audio)):
        alone = front_end(audio[clip : clip + 1])
        assert torch.allclose(alone, features[clip : clip + 1], atol=1e-4), (
            f"{plugin}: a clip alone differs from it in a batch"
        )
    for frame in (3, 12):
        changed = 3 * torch.randn_like(audio)  # louder outside the window, so that a dependence on it shows
        changed[:, frame * hop : frame * hop + window] = audio[:, frame * hop : frame * hop + window]
        change = (front_end(changed) - features)[:, :, frame].abs().max()
        assert change <= 1e-3, f"{plugin}: frame {frame} depends on audio outside its window (by {change:.1e})"
