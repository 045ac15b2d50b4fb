"""A fine-tuning job and its identity."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from asda_core.assemble import third_party_plugins
from asda_core.audio_files.digests import sampled_digest
from asda_core.audio_files.sources import list_identity
from asda_core.catalog import Catalog
from asda_core.checkpoint import Checkpoint
from asda_core.config_io import signature, to_plain
from asda_core.errors import ConfigError
from asda_core.finetune.finetune_model import Start, apply_recipe
from asda_core.finetune.leakage import trained_on_record
from asda_core.finetune.losses import check_loss
from asda_core.finetune.sampling import weights_digest
from asda_core.finetune_config import FinetuneConfig
from asda_core.labelled.examples import Example, LabelledData
from asda_core.labelled.random_splits import hold_out
from asda_core.labelled.splits import Round


@dataclass(frozen=True)
class Job:
    """One fine-tuning.

    Attributes:
        recipe: recipe of the fine-tuning.
        start: checkpoint, or config of random weights, that it begins with.
        data: labelled clips and classes.
        split: which clips train, validate and test.
        start_digest: digest of the file of these weights; empty for random ones.
        base_folder: folder that paths in the recipe are relative to.
    """

    recipe: FinetuneConfig
    start: Start
    data: LabelledData
    split: Round
    start_digest: str = ""
    base_folder: Path = Path()

    def identity(self, catalog: Catalog) -> str:
        """Signature of all that distinguishes jobs: recipe, clips with labels, classes, initial weights, and versions
        of third-party plugins.

        Clips enter by name and size, and an evenly spaced sample of them also by their first and last bytes.
        """
        config = self.start.config if isinstance(self.start, Checkpoint) else self.start
        start = {"digest": self.start_digest, "config": to_plain(config)}
        parts = {part: clip_facts(examples) for part, examples in vars(self.split).items() if part != "name"}
        extra = weights_digest(self.recipe.sampling, self.base_folder)
        clips = [example.file for part in (self.split.train, self.split.valid, self.split.test) for example in part]
        third_party = third_party_plugins(catalog, apply_recipe(self.recipe, config), with_objective=False)
        extra |= {"plugins": " ".join(third_party)} if third_party else {}
        facts = {"data": parts, "content": sampled_digest(clips), "classes": self.data.classes, **extra}
        return signature(self.recipe, start=start, **facts)

    def trained_on(self) -> dict[str, str]:
        """Return `Checkpoint.trained_on` of what the job trains."""
        earlier = self.start.trained_on if isinstance(self.start, Checkpoint) else {}
        return trained_on_record(self.data.name, self.split, earlier)


def clip_facts(examples: Sequence[Example]) -> list[list[object]]:
    """Return the name, the size and the labels of each clip."""
    identities = list_identity(example.file for example in examples)
    return [[*identity, *example.labels] for identity, example in zip(identities, examples, strict=True)]


def prepare_job(job: Job) -> Job:
    """Return the job with validation clips held out if the recipe says so, and with `select` resolved.

    Raises:
        ConfigError: the loss does not fit the labels, there are no clips to select weights on, or options contradict
            each other.
    """
    recipe, split = job.recipe, job.split
    check_loss(recipe, job.data.single)
    if recipe.valid_share and (recipe.select == "last" or recipe.average_from_epoch):
        raise ConfigError(
            "valid_share holds clips out of the training, but the last weights, or their average, are kept regardless: "
            "remove valid_share, or set select: valid, without average_from_epoch."
        )
    if recipe.valid_share and not split.valid:
        train, valid = hold_out(split.train, recipe.valid_share, recipe.seed)
        split = replace(split, train=tuple(train), valid=tuple(valid))
    select = recipe.select
    if select == "auto":
        select = "valid" if split.valid and not recipe.average_from_epoch else "last"
    if select == "valid" and not split.valid:
        raise ConfigError("select: valid needs validation clips: set valid_share, or a validation split in the data.")
    if recipe.average_from_epoch and select != "last":
        raise ConfigError(f"average_from_epoch averages the last weights; it cannot be used with select: {select}.")
    if recipe.patience is not None and select == "last":
        raise ConfigError("patience needs validation clips: set valid_share, or a validation split in the data.")
    return replace(job, recipe=replace(recipe, select=select), split=split)
