"""The head that turns an encoded clip into logits."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from asda_core.finetune_config import ClassifierConfig, Pooling
from asda_core.layout import mean_over_valid
from asda_core.model.encoder import EncoderOutput

HEAD_INIT_STD = 0.02
"""Standard deviation of the head's new weights, truncated at -2 and 2. **Source**: released fine-tuning model."""
ATTENTIVE_INIT_STD = 0.02
"""Standard deviation of a new query. **Source**: BERT, as all new weights here."""
LINEAR_SOFTMAX_SHIFT = 1e-6
"""Added to the log weights of linear-softmax pooling. **Source**: released code."""


class Classifier(nn.Module):
    """Classification head: pooling, LayerNorm, linear.

    **Source**: released fine-tuning model of ASDA and EAT (fc_norm and head).
    """

    def __init__(self, config: ClassifierConfig, dim: int) -> None:
        super().__init__()
        self.config = config
        self.attention = AttentivePooling(dim, config.num_heads) if config.pooling == "attentive" else None
        self.norm = nn.LayerNorm(dim, eps=config.norm_eps)
        self.head = nn.Linear(dim, config.num_classes)
        nn.init.trunc_normal_(self.head.weight, std=HEAD_INIT_STD)
        nn.init.zeros_(self.head.bias)

    def forward(self, encoded: EncoderOutput) -> Float[Tensor, "batch classes"]:
        """Logits of a batch."""
        pooled = pool(encoded, self.config.pooling) if self.attention is None else self.attention(encoded)
        return self.logits(pooled)

    def logits(self, pooled: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch classes"]:
        """Logits of pooled clips."""
        logits: Tensor = self.head(self.norm(pooled))
        return logits

    def probabilities(self, logits: Float[Tensor, "batch classes"]) -> Float[Tensor, "batch classes"]:
        """Sigmoids if a clip can have several labels, otherwise a softmax."""
        return logits.sigmoid() if self.config.multi_label else logits.softmax(dim=1)


class AttentivePooling(nn.Module):
    """A learned query attends over the patches and the summary.

    **Source**: attentive probing (Chen et al. 2022, context autoencoder, section 4); one cross-attention, no MLP.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.query = nn.Parameter(torch.randn(1, 1, dim) * ATTENTIVE_INIT_STD)
        self.attention = nn.MultiheadAttention(dim, num_heads, batch_first=True)

    def forward(self, encoded: EncoderOutput) -> Float[Tensor, "batch dim"]:
        """One vector per clip."""
        tokens = self.norm(torch.cat([encoded.summary[:, None], encoded.tokens], dim=1))
        padding = encoded.layout.padding
        mask = None if padding is None else torch.nn.functional.pad(padding, (1, 0))
        query = self.query.expand(len(tokens), -1, -1)
        pooled: Tensor = self.attention(query, tokens, tokens, key_padding_mask=mask, need_weights=False)[0]
        return pooled[:, 0]


def pool(encoded: EncoderOutput, pooling: Pooling) -> Float[Tensor, "batch dim"]:
    """One vector per clip: the summary, the mean of the patches, or their linear-softmax pooling."""
    if pooling == "summary":
        return encoded.summary
    return mean_over_valid(encoded.tokens, encoded.layout) if pooling == "mean" else linear_softmax(encoded.tokens)


def linear_softmax(tokens: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch dim"]:
    """Pool tokens as if each channel were the logit of a probability p: `logit(sum p^2 / sum p)`.

    **Source**: released code (LIN_SOFTMAX); Wang, Li and Metze 2019, linear softmax.
    """
    scores = logsigmoid(tokens)
    pooled = torch.logsumexp(2 * scores, dim=1) - torch.logsumexp(scores + LINEAR_SOFTMAX_SHIFT, dim=1)
    pooled = pooled.clamp(max=0.0)
    logit = pooled - torch.log(-torch.expm1(pooled))
    return torch.nan_to_num(logit, nan=0.0, posinf=0.0, neginf=0.0)
