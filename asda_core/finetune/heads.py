"""The head that turns an encoded clip into logits."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from asda_core.config import ClassifierConfig, Pooling
from asda_core.model.encoder import Encoded, masked_mean

HEAD_INIT_STD = 0.02
"""Standard deviation of the head's new weights, cut at two units. **Source**: released fine-tuning model."""
LINEAR_SOFTMAX_SHIFT = 1e-6
"""Added to the log weights of linear-softmax pooling. **Source**: released code."""


class Classifier(nn.Module):
    """Pool, LayerNorm, linear.

    **Source**: released fine-tuning model of ASDA and EAT (fc_norm and head).
    """

    def __init__(self, config: ClassifierConfig, dim: int) -> None:
        super().__init__()
        self.config = config
        self.norm = nn.LayerNorm(dim, eps=config.norm_eps)
        self.head = nn.Linear(dim, config.num_classes)
        nn.init.trunc_normal_(self.head.weight, std=HEAD_INIT_STD)
        nn.init.zeros_(self.head.bias)

    def forward(self, encoded: Encoded) -> Float[Tensor, "batch classes"]:
        """Logits of a batch."""
        return self.logits(pool(encoded, self.config.pooling))

    def logits(self, pooled: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch classes"]:
        """Logits of pooled clips."""
        given: Tensor = self.head(self.norm(pooled))
        return given

    def probabilities(self, logits: Float[Tensor, "batch classes"]) -> Float[Tensor, "batch classes"]:
        """Sigmoids where a clip can have several labels, else a softmax."""
        return logits.sigmoid() if self.config.multi_label else logits.softmax(dim=1)


def pool(encoded: Encoded, how: Pooling) -> Float[Tensor, "batch dim"]:
    """One vector per clip: the summary, the mean of the patches, or their linear-softmax pooling."""
    if how == "summary":
        return encoded.summary
    return masked_mean(encoded.tokens, encoded.layout) if how == "mean" else linear_softmax(encoded.tokens)


def linear_softmax(tokens: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch dim"]:
    """Pool tokens as if each channel were the logit of a probability p: `logit(sum p^2 / sum p)`.

    **Source**: released code (LIN_SOFTMAX); Wang, Li and Metze 2019, linear softmax.
    """
    scores = logsigmoid(tokens)
    pooled = torch.logsumexp(2 * scores, dim=1) - torch.logsumexp(scores + LINEAR_SOFTMAX_SHIFT, dim=1)
    pooled = pooled.clamp(max=0.0)
    logit = pooled - torch.log(-torch.expm1(pooled))
    return torch.nan_to_num(logit, nan=0.0, posinf=0.0, neginf=0.0)
