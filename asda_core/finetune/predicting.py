"""Class probabilities of labelled clips; every clip counts, whatever their number and length."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from asda_core.data.clip_reader import ClipReader
from asda_core.errors import AsdaError, AudioError, FileAccessError, TaskError, first_reasons
from asda_core.finetune.batches import CLIPS_PER_PASS, MEMORY_ADVICE, label_matrix, plain_features
from asda_core.finetune.evaluation import Predictions
from asda_core.finetune.finetune_model import FinetuneModel
from asda_core.finetune_config import FinetuneConfig
from asda_core.inference.classifying import probabilities
from asda_core.inference.clip_encoder import ClipEncoder, EncodeOptions, with_training_length
from asda_core.labelled.examples import Example, LabelledData
from asda_core.model.encoder import EncoderOutput
from asda_core.pretrain.step import DIVERGENCE_ADVICE
from asda_core.system.memory import report_out_of_memory


@dataclass
class Predictor:
    """A model and the reader of its clips, for `predict`.

    Attributes:
        model: the model.
        recipe: how clips are cut.
        reader: reader of the audio.
        skipped: file -> why it could not be read, at least once.
        damaged: those of them that are not tried again; others are missing, or their disk failed.
    """

    model: FinetuneModel
    recipe: FinetuneConfig
    reader: ClipReader
    skipped: dict[Path, str] = field(default_factory=dict)
    damaged: set[Path] = field(default_factory=set)

    def read_audio(self, file: Path) -> Float[Tensor, " samples"] | None:
        """Audio of a file, or its first crop if the recipe always takes that; None if it cannot be read."""
        if file in self.damaged:
            return None
        try:
            return self.reader.read_for_evaluation(file)
        except AudioError as error:
            self.skipped[file] = str(error)
            if not isinstance(error, FileAccessError):
                self.damaged.add(file)
            return None

    def is_short(self, audio: Float[Tensor, " samples"]) -> bool:
        """Whether a clip is no longer than the training clips."""
        return len(audio) <= self.reader.num_samples


@report_out_of_memory(f"a pass of {CLIPS_PER_PASS} clips", MEMORY_ADVICE)
def predict(
    predictor: Predictor,
    data: LabelledData,
    examples: Sequence[Example],
    progress: bool = False,
    description: str = "evaluate",
) -> Predictions:
    """Return the probability of every class in every readable clip, in the order of `examples`.

    Clips are padded to the length of the training clips; longer ones are processed in windows, whose probabilities are
    averaged as in `asda classify`.

    Raises:
        TaskError: none of the clips can be read.
        AsdaError: the model outputs NaN or infinite probabilities.
    """
    model = predictor.model
    model.set_training(False)
    outputs: dict[int, Tensor] = {}  # by index of the example
    with (
        tqdm(total=len(examples), desc=description, unit="clip", disable=not progress, leave=False) as bar,
        torch.no_grad(),
    ):
        for indices, values in _probabilities(predictor, examples):
            outputs |= zip(indices, values.float().cpu(), strict=True)
            bar.update(len(indices))
    if not outputs:
        reasons = first_reasons(predictor.skipped.values())
        raise TaskError(f"none of the {len(examples)} clips can be read. First reasons: {reasons}")
    order = sorted(outputs)
    readable, values = [examples[index] for index in order], torch.stack([outputs[index] for index in order])
    if not bool(torch.isfinite(values).all()):
        raise AsdaError(
            f"the model outputs probabilities that are not finite (NaN): its training diverged. {DIVERGENCE_ADVICE}"
        )
    targets = label_matrix(readable, data.classes).numpy().astype(np.uint8)
    files = tuple(str(example.file) for example in readable)
    return Predictions(files, targets, values.numpy(), data.classes, data.class_names, data.single)


def _probabilities(predictor: Predictor, examples: Sequence[Example]) -> Iterator[tuple[list[int], Tensor]]:
    """Yield indices of examples and their probabilities: of short clips in batches, of long ones one by one."""
    model = predictor.model
    options = EncodeOptions(clip_seconds=predictor.recipe.data.clip_seconds, padding=predictor.recipe.data.padding)
    clip_encoder = ClipEncoder(
        model.front_end, model.encoder, with_training_length(options, model.front_end, model.encoder)
    )
    pending: dict[int, Tensor] = {}
    for index, example in enumerate(examples):
        audio = predictor.read_audio(example.file)
        if audio is None:
            continue
        if not predictor.is_short(audio):
            yield [index], probabilities(clip_encoder, model.classifier, audio)[None]
            continue
        pending[index] = audio
        if len(pending) == CLIPS_PER_PASS:
            yield _batch(predictor, pending)
            pending = {}
    if pending:
        yield _batch(predictor, pending)


def _batch(predictor: Predictor, clips: Mapping[int, Tensor]) -> tuple[list[int], Tensor]:
    model = predictor.model
    features = plain_features(model, predictor.recipe, list(clips.values()))
    encoded: EncoderOutput = model.encoder(features, layers=False)
    return list(clips), model.classifier.probabilities(model.classifier(encoded))
