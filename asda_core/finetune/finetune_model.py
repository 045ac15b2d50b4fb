"""A checkpoint with a head, and which parts of it are trained."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from asda_core.adapting import set_train_mode
from asda_core.assemble import build_front_end, build_model
from asda_core.catalog import Catalog
from asda_core.checkpoint import Checkpoint, load_classifier, load_encoder, load_strict, load_weights
from asda_core.config import PluginChoice, RunConfig
from asda_core.devices import building, usable_device
from asda_core.errors import ConfigError
from asda_core.finetune.rates import drop_path_rates
from asda_core.finetune_config import ClassifierConfig, FinetuneConfig
from asda_core.model.encoder import Encoder
from asda_core.model.heads import Classifier
from asda_core.pretrain.initial_weights import check_compatible
from asda_core.system.memory import report_out_of_memory
from asda_core.weights.provenance import warn_version_mismatches

LOG_MEL = "log_mel"
"""The front end to which the options in a recipe apply, unless they name another."""
Start = Checkpoint | RunConfig
"""Start of a fine-tuning: a checkpoint, or a config whose weights are drawn with the seed of the recipe."""


@dataclass(frozen=True)
class FinetuneModel:
    """A model in fine-tuning.

    Attributes:
        config: config of front end and encoder, with the changes of the recipe.
        front_end: a module that is a `FrontEnd`.
        encoder: encoder with its adapter.
        classifier: the head.
    """

    config: RunConfig
    front_end: Any
    encoder: Encoder
    classifier: Classifier

    @property
    def device(self) -> torch.device:
        """Device of the encoder."""
        return next(self.encoder.parameters()).device

    def modules(self) -> dict[str, nn.Module]:
        """Return front end, encoder and head by their names in a checkpoint file."""
        return {"front_end": self.front_end, "encoder": self.encoder, "classifier": self.classifier}

    def move_to(self, device: torch.device) -> None:
        """Move all modules to a device.

        Raises:
            ConfigError: they do not fit into its memory.
        """
        with report_out_of_memory("the model"):
            for module in self.modules().values():
                module.to(device)

    def trained_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Return the names and parameters of everything that is trained."""
        return [
            (f"{part}.{name}", parameter)
            for part, module in self.modules().items()
            for name, parameter in module.named_parameters()
            if parameter.requires_grad
        ]

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors by their names in a checkpoint file."""
        return {
            f"{part}.{name}": tensor.detach().contiguous()
            for part, module in self.modules().items()
            for name, tensor in module.state_dict().items()
        }

    def load(self, checkpoint: Checkpoint) -> None:
        """Load what `tensors` returned."""
        for part, module in self.modules().items():
            load_strict(module, checkpoint.tensors, f"{part}.", checkpoint.file)

    def set_training(self, training: bool) -> None:
        """Turn dropout and drop path on or off; a frozen encoder stays in evaluation mode.

        In a partly frozen encoder so do frozen modules with buffers, such as the running statistics of batch norms.
        """
        self.front_end.eval()
        self.classifier.train(training)
        if training and not self.frozen and any(not parameter.requires_grad for parameter in self.encoder.parameters()):
            set_train_mode(self.encoder)
        else:
            self.encoder.train(training and not self.frozen)

    @property
    def frozen(self) -> bool:
        """Whether no parameter of the encoder is trained."""
        return not any(parameter.requires_grad for parameter in self.encoder.parameters())

    def sizes(self) -> dict[str, int]:
        """Return the numbers of parameters: of encoder and head, those trained, and those of the head."""
        parameters = [*self.encoder.parameters(), *self.classifier.parameters()]
        trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
        head = sum(parameter.numel() for parameter in self.classifier.parameters())
        return {"parameters": sum(parameter.numel() for parameter in parameters), "trained": trained, "head": head}


def apply_recipe(recipe: FinetuneConfig, before: RunConfig) -> RunConfig:
    """Return the config of a checkpoint with the changes of a recipe.

    Raises:
        ConfigError: the checkpoint has another adapter or front end than the recipe.
    """
    if before.adapter is not None and recipe.adapter is not None and recipe.adapter.name != before.adapter.name:
        raise ConfigError(
            f"the checkpoint already has the adapter {before.adapter.name!r}, and adapters cannot be stacked: the "
            f"recipe sets {recipe.adapter.name!r}."
        )
    options = {key: value for key, value in recipe.front_end.items() if key != "name"}
    named = recipe.front_end.get("name", LOG_MEL)
    if recipe.front_end and named != before.front_end.name:
        raise ConfigError(
            f"the recipe is for the front end {named!r}, but the model has {before.front_end.name!r}: set "
            f"front_end={{}}, or front_end={{name: {before.front_end.name}, ...}}."
        )
    front_end = PluginChoice(before.front_end.name, {**before.front_end.options, **options})
    encoder = replace(
        before.encoder,
        mixer=recipe.mixer or before.encoder.mixer,
        stride_frames=recipe.stride_frames or before.encoder.stride_frames,
        stride_bins=recipe.stride_bins or before.encoder.stride_bins,
    )
    adapter = recipe.adapter or before.adapter
    return replace(before, front_end=front_end, encoder=encoder, adapter=adapter, data=recipe.data, seed=recipe.seed)


def build_finetune_model(
    catalog: Catalog, recipe: FinetuneConfig, start: Start, classes: Sequence[str]
) -> FinetuneModel:
    """Build the model with a new head; new weights depend on the seed of the recipe alone.

    Args:
        catalog: the plugins.
        recipe: what is trained.
        start: a checkpoint, or a config for random weights.
        classes: identifier of each class.

    Raises:
        ConfigError: the recipe does not fit the model.
        CheckpointError: the tensors do not match the config in the file.
    """
    before = start if isinstance(start, RunConfig) else start.config
    config = apply_recipe(recipe, before)
    load = None
    if isinstance(start, Checkpoint):
        strided = replace(
            before.encoder, stride_frames=config.encoder.stride_frames, stride_bins=config.encoder.stride_bins
        )
        adjusted = replace(before, front_end=config.front_end, encoder=strided)
        check_compatible(replace(start, config=adjusted), catalog, config)
        _check_frames(catalog, before, config)
        warn_version_mismatches(start.plugins, start.file, catalog)
        load = partial(load_weights, start)
    head = ClassifierConfig(
        num_classes=len(classes),
        pooling=recipe.pooling,
        multi_label=recipe.loss == "binary_cross_entropy",
        labels=tuple(classes),
        num_heads=config.encoder.num_heads if recipe.pooling == "attentive" else 1,
    )
    with building(config.seed):
        front_end, encoder = build_model(catalog, config, load, with_adapter=before.adapter is not None)
        model = FinetuneModel(config, front_end, encoder, Classifier(head, config.encoder.dim))
    _freeze(model, recipe)
    if recipe.mode in ("full", "last_blocks", "adapter"):
        rates = drop_path_rates(config.encoder.depth, recipe.drop_path)
        for block, rate in zip(encoder.typed_blocks, rates, strict=True):
            block.drop_path = rate
    return model


def _check_frames(catalog: Catalog, before: RunConfig, config: RunConfig) -> None:
    """Check that frames and bins are unchanged; mean and std may differ with the data.

    Raises:
        ConfigError: naming what differs.
    """
    old, new = (build_front_end(catalog, item.front_end, item.compat) for item in (before, config))
    for name in ("num_bins", "hop_samples", "window_samples"):
        if getattr(old, name) != getattr(new, name):
            raise ConfigError(
                f"front_end changes {name} from {getattr(old, name)} to {getattr(new, name)}, which does not match the "
                "weights of the checkpoint."
            )


def load_finetune_model(checkpoint: Checkpoint, catalog: Catalog, device: str = "cpu") -> FinetuneModel:
    """Load a fine-tuned checkpoint, of this package or released, in evaluation mode.

    Raises:
        CheckpointError: it has no head, a plugin is missing, or the tensors do not match.
    """
    classifier = load_classifier(checkpoint)
    front_end, encoder = load_encoder(checkpoint, catalog)
    model = FinetuneModel(checkpoint.config, front_end, encoder, classifier)
    model.move_to(usable_device(device))
    return model


def _freeze(model: FinetuneModel, recipe: FinetuneConfig) -> None:
    """Unfreeze what the mode trains; an adapter has already frozen everything but itself."""
    encoder = model.encoder
    if recipe.mode == "adapter":
        return
    encoder.requires_grad_(recipe.mode == "full")
    if recipe.mode == "last_blocks":
        depth = len(encoder.blocks)
        if recipe.blocks > depth:
            raise ConfigError(f"blocks {recipe.blocks} is more than the {depth} blocks of the encoder.")
        encoder.final_norm.requires_grad_(True)
        for block in encoder.typed_blocks[depth - recipe.blocks :]:
            block.requires_grad_(True)
