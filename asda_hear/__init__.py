"""The HEAR API: `load_model`, `get_scene_embeddings`, `get_timestamp_embeddings`.

The functions and the modules `api`, `model` and `pooling` are imported on first access, since importing torch takes
seconds and `asda-hear --help` does not need it; their types are in `__init__.pyi`.

**Source**: https://hearbenchmark.com/hear-api.html
"""

from importlib import import_module
from typing import Any

__all__ = ["get_scene_embeddings", "get_timestamp_embeddings", "load_model"]


MODULES = ("api", "model", "pooling")
"""Submodules that have always been available as attributes of the package."""


def __getattr__(name: str) -> Any:
    if name in MODULES:
        return import_module(f"{__name__}.{name}")
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    function = getattr(import_module("asda_hear.api"), name)
    globals()[name] = function  # later accesses skip this function
    return function


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
