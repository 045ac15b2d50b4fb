import os

from asda_core.catalog import Catalog
from asda_core.checkpoint import Weights
from asda_core.settings.compute import Precision
from asda_hear.api import get_scene_embeddings as get_scene_embeddings
from asda_hear.api import get_timestamp_embeddings as get_timestamp_embeddings
from asda_hear.model import HearModel
from asda_hear.pooling import ScenePooling, TimestampPooling

__all__ = ["get_scene_embeddings", "get_timestamp_embeddings", "load_model"]

def load_model(
    model_file_path: str | os.PathLike[str] = "",
    *,
    catalog: Catalog | None = None,
    timestamp_hop_ms: float | None = None,
    scene_pooling: ScenePooling | None = None,
    timestamp_pooling: TimestampPooling | None = None,
    layers: tuple[int, ...] | None = None,
    window_seconds: float | None = None,
    weights: Weights = "student",
    precision: Precision = "float32",
) -> HearModel: ...
