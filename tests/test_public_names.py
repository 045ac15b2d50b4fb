"""What is exported is what is promised."""

import ast
import inspect
from dataclasses import asdict
from pathlib import Path

import asda_core
import asda_core.contracts
import asda_hear
from asda_core import hookspecs, testing
from asda_hear.model import HearOptions


def test_hear_exports_three_functions() -> None:
    assert asda_hear.__all__ == ["get_scene_embeddings", "get_timestamp_embeddings", "load_model"]
    assert next(iter(inspect.signature(asda_hear.load_model).parameters)) == "model_file_path"
    assert list(inspect.signature(asda_hear.get_scene_embeddings).parameters) == ["audio", "model"]
    assert list(inspect.signature(asda_hear.get_timestamp_embeddings).parameters) == ["audio", "model"]


def test_a_check_for_every_family() -> None:
    for hook, spec in hookspecs.FAMILIES.values():
        check = f"check_{hook.removeprefix('asda_').removesuffix('s')}"
        assert callable(getattr(testing, check))
        assert check in (getattr(hookspecs, hook).__doc__ or "")
        assert spec is getattr(asda_core.contracts, spec.__name__)


def test_version() -> None:
    from importlib.metadata import version

    assert asda_core.__version__ == version("asda-hear")


def test_the_stub_names_every_option_with_its_default() -> None:
    """So that a type checker finds a misspelt option, which `**options` would take."""
    stub = ast.parse(Path(asda_hear.__file__).with_suffix(".pyi").read_text())
    (load,) = (node for node in stub.body if isinstance(node, ast.FunctionDef) and node.name == "load_model")
    defaults = [None if node is None else ast.literal_eval(node) for node in load.args.kw_defaults]
    named = dict(zip([argument.arg for argument in load.args.kwonlyargs], defaults, strict=True))
    assert named == {"catalog": None, **asdict(HearOptions())}
