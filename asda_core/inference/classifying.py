"""Classify audio files into labels with probabilities: `asda classify`."""

import torch
from jaxtyping import Float
from torch import Tensor

from asda_core.audio.long_files import Sound
from asda_core.inference.clip_encoder import ClipEncoder, check_outputs
from asda_core.model.heads import Classifier


@torch.no_grad()
def probabilities(
    clip_encoder: ClipEncoder, classifier: Classifier, audio: Float[Tensor, " samples"] | Sound
) -> Float[Tensor, " classes"]:
    """Return the probability of every class in a clip: over windows, their mean weighted by the time steps kept.

    Raises:
        AudioError: the clip has no samples, or NaN or infinite ones.
        CheckpointError: the probabilities are NaN or infinite.
    """
    total, steps = torch.zeros(()), 0
    for piece in clip_encoder.encode_windows(audio):
        kept_steps = piece.keep_to - piece.keep_from
        in_window = classifier.probabilities(classifier(piece.encoded))[0]
        total, steps = total.to(in_window) + in_window * kept_steps, steps + kept_steps
    check_outputs(total.cpu())
    return total / steps
