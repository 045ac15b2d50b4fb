"""What `compat: released` sets in a config, beside the options that plugins name in `Spec.released`."""

from collections.abc import Mapping
from typing import Any

LATENT_REGRESSION = "latent_regression"

TRAINING: Mapping[str, Any] = {
    "optimizer.algorithm": "fairseq_adam",
    "optimizer.schedule": "fairseq_cosine",
    "optimizer.decay_norms_and_biases": True,
    "data.crop": "first",
    "data.padding": "features",
    "data.resample_along": "channels",
    "data.min_samples": 10_000,
}
"""What the released pre-training and fine-tuning of ASDA and EAT have in common."""
RELEASED: Mapping[str, Mapping[str, Any]] = {
    LATENT_REGRESSION: {
        "encoder.pre_norm_residual": False,
        **TRAINING,
    },
    "masked_patch": {
        "data.crop": "first",
        "data.padding": "features",
        "encoder.positions.through_bands": 8,
    },
}
"""Objective -> the keys of its released training: of ASDA and EAT, and of SSAST and SSAMBA. Others have none.

**Source**: defects and habits of the released codes, see docs/released.md.
"""


FINETUNING: Mapping[str, Any] = {
    **TRAINING,
    "loss_per": "labels",
    "decay_embeddings": False,
    "select": "test",
}
"""The keys of the released fine-tuning of ASDA and EAT.

With its schedule each layer's floor stays `floor_lr` whatever its peak, so the lowest blocks keep a constant rate.
**Source**: as above.
"""


def released_keys(plain: Mapping[str, Any]) -> Mapping[str, Any]:
    """The keys that `compat: released` sets in a config (nested plain data, where the objective may be omitted)."""
    objective = plain.get("objective") or LATENT_REGRESSION
    name = objective.get("name") if isinstance(objective, Mapping) else objective
    return RELEASED.get(str(name), {})
