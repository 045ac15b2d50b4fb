"""The HEAR API: `load_model`, `get_scene_embeddings`, `get_timestamp_embeddings`.

**Source**: https://hearbenchmark.com/hear-api.html
"""

from asda_hear.api import get_scene_embeddings, get_timestamp_embeddings, load_model

__all__ = ["get_scene_embeddings", "get_timestamp_embeddings", "load_model"]
