"""Losses of classifiers; the divisor of the sum over a batch decides how much each batch counts."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, log_softmax

from asda_core.errors import ConfigError
from asda_core.finetune_config import FinetuneConfig, LossDivisor


def multi_label_loss(
    logits: Float[Tensor, "batch classes"], labels: Float[Tensor, "batch classes"], divisor: LossDivisor = "clips"
) -> Float[Tensor, ""]:
    """Binary cross entropy, summed over the classes, averaged over the clips.

    Args:
        logits: logits of the classifier.
        labels: in [0, 1], several per clip; mixed ones after mixup.
        divisor: the sum is divided by the number of these; "labels" as in the release.

    **Source**: released fine-tuning. **Differs**: in the release a batch with few labels weighs more.
    """
    total = binary_cross_entropy_with_logits(logits.float(), labels, reduction="sum")
    return total / (_count(labels) if divisor == "labels" else len(labels))


def _count(labels: Tensor) -> Tensor:
    """Number of labels in a batch; 1 if there are none."""
    count = labels.sum()
    return torch.where(count > 0, count, torch.ones_like(count))


def single_label_loss(
    logits: Float[Tensor, "batch classes"], labels: Float[Tensor, "batch classes"], smoothing: float = 0.0
) -> Float[Tensor, " batch"]:
    """Cross entropy of each clip against one-hot or mixed labels.

    Args:
        logits: logits of the classifier.
        labels: rows that sum to 1.
        smoothing: share of every label that is spread over all classes.

    **Source**: released fine-tuning on ESC-50 (smoothing 0.1 in training, none in evaluation).
    """
    smooth = labels * (1 - smoothing) + smoothing / labels.shape[1]
    return -(smooth * log_softmax(logits.float(), dim=1)).sum(dim=1)


def batch_loss(
    recipe: FinetuneConfig, logits: Float[Tensor, "batch classes"], labels: Float[Tensor, "batch classes"]
) -> Float[Tensor, ""]:
    """The loss of a recipe on a batch; labels may be mixed."""
    if recipe.loss == "binary_cross_entropy":
        return multi_label_loss(logits, labels, recipe.loss_per)
    return single_label_loss(logits, labels, recipe.label_smoothing).mean()


def check_loss(recipe: FinetuneConfig, single: bool) -> None:
    """Check that cross entropy is used only if every clip has exactly one label.

    Raises:
        ConfigError: it is not; the message names the loss to use.
    """
    if recipe.loss == "cross_entropy" and not single:
        raise ConfigError(
            "not every clip has exactly one label; if this is intended, set loss: binary_cross_entropy "
            "(--set loss=binary_cross_entropy)."
        )
