"""Outputs of a frozen encoder for clips that never change, computed once: a probe then trains in seconds."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from asda_core.data.clip_reader import ClipReader
from asda_core.errors import AudioError
from asda_core.finetune.batches import CLIPS_PER_PASS, MEMORY_ADVICE, is_augmented, plain_features
from asda_core.finetune.finetune_model import FinetuneModel
from asda_core.finetune_config import FinetuneConfig
from asda_core.labelled.examples import Example
from asda_core.layout import TokenLayout
from asda_core.model.encoder import EncoderOutput
from asda_core.system.memory import report_out_of_memory
from asda_core.system.resources import MEBIBYTE

FLOAT_BYTES = 4


@dataclass(frozen=True)
class EncodedClips:
    """The encoded training clips.

    Attributes:
        summary: (clips, D).
        tokens: (clips, N, D), as the head reads them.
        layout: token layout of one clip.
        row: number of an example -> its row; -1 for one that cannot be read.
    """

    summary: Float[Tensor, "clips dim"]
    tokens: Float[Tensor, "clips tokens dim"]
    layout: TokenLayout
    row: Int[Tensor, " examples"]

    def batch(self, numbers: Int[Tensor, " batch"]) -> EncoderOutput:
        """Return what the encoder would return for these examples.

        Raises:
            AudioError: one of them could not be read.
        """
        rows = self.row[numbers]
        if bool((rows < 0).any()):
            raise AudioError("a clip that could not be read during encoding can be read now: were files changed?")
        layout = TokenLayout(self.layout.index.expand(len(rows), -1), self.layout.grid)
        return EncoderOutput(self.summary[rows], self.tokens[rows], layout, ())


@report_out_of_memory(f"a pass of {CLIPS_PER_PASS} clips", MEMORY_ADVICE)
def encode_once(
    model: FinetuneModel, recipe: FinetuneConfig, reader: ClipReader, examples: Sequence[Example], progress: bool
) -> EncodedClips | None:
    """Encode the training clips, if training needs nothing else of the encoder and they fit in memory.

    Returns:
        the encoded clips; None if part of the encoder trains, clips are augmented or cropped at random, or they need
        more than `data.cache_mebibytes`.
    """
    if not model.frozen or is_augmented(recipe):
        return None
    model.set_training(False)
    encoded: list[EncoderOutput] = []
    row = torch.full((len(examples),), -1)
    limit = recipe.data.cache_mebibytes * MEBIBYTE
    pending: list[Tensor] = []
    count = 0

    def encode_pending() -> bool:
        """Encode the clips read since the last pass, and return whether all clips fit in memory."""
        encoded.append(model.encoder(plain_features(model, recipe, pending), layers=False))
        pending.clear()
        return encoded[0].tokens[0].numel() * FLOAT_BYTES * len(examples) <= limit

    with torch.no_grad(), tqdm(examples, desc="encode", unit="clip", disable=not progress, leave=False) as bar:
        for number, example in enumerate(bar):
            audio = _read_clip(reader, example)
            if audio is None and _partly_readable(reader, example):
                return None  # training uses the readable part of it
            if audio is None:
                continue
            if len(audio) > reader.num_samples:
                return None  # every epoch takes another crop of it
            row[number], count = count, count + 1
            pending.append(audio)
            if len(pending) == CLIPS_PER_PASS and not encode_pending():
                return None
        if pending and not encode_pending():
            return None
    if not encoded:
        return None
    layout = TokenLayout(encoded[0].layout.index[:1], encoded[0].layout.grid)
    tokens = torch.cat([batch.tokens for batch in encoded])
    return EncodedClips(torch.cat([batch.summary for batch in encoded]), tokens, layout, row)


def _partly_readable(reader: ClipReader, example: Example) -> bool:
    """Whether part of a clip that cannot be read as a whole is readable."""
    try:
        reader.read_crop(example.file, 0.0)
    except AudioError:
        return False
    return True


def _read_clip(reader: ClipReader, example: Example) -> Tensor | None:
    """Return the audio of a clip that training would use; None if it cannot be read."""
    try:
        return reader.read_for_evaluation(example.file)
    except AudioError:
        return None
