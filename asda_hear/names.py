"""What `load_model` knows by name."""

from pathlib import Path

from asda_core.weights.paths import PACKAGE_MODEL

DEFAULT_WEIGHTS = Path(__file__).with_name(f"{PACKAGE_MODEL}.safetensors")
"""What `load_model()` loads: the small model that comes with the package; see MODEL_CARD.md."""
LOG_MEL = "log_mel"
"""Name of the baseline that is no model: `load_model("log_mel")`."""
MEAN = "mean"
"""Of `asda-hear look`, in the place of a head: the mean over all."""
