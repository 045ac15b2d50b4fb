"""The HEAR API: `load_model`, `get_scene_embeddings`, `get_timestamp_embeddings`.

They, and the modules `api`, `model` and `pooling`, are imported when they are first asked for, since torch takes
seconds, and `asda-hear --help` does not need it; their types are in `__init__.pyi`.

**Source**: https://hearbenchmark.com/hear-api.html
"""

from importlib import import_module
from typing import Any

__all__ = ["get_scene_embeddings", "get_timestamp_embeddings", "load_model"]


MODULES = ("api", "model", "pooling")
"""That have always come with the package."""


def __getattr__(name: str) -> Any:
    if name in MODULES:
        return import_module(f"{__name__}.{name}")
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module("asda_hear.api"), name)
    globals()[name] = found  # found at once from now on
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
