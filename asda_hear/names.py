"""Names that `load_model` and `asda-hear look` recognise."""

from pathlib import Path

from asda_core.system.paths import PACKAGE_MODEL

DEFAULT_WEIGHTS = Path(__file__).with_name(f"{PACKAGE_MODEL}.safetensors")
"""What `load_model()` loads: the small model that comes with the package; see MODEL_CARD.md."""
LOG_MEL = "log_mel"
"""Name of the baseline without a model: `load_model("log_mel")`."""
MEAN_HEAD = "mean"
"""Value of `--head` of `asda-hear look` for the mean over all heads."""
