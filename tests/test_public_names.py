"""What is exported is what is promised."""

import ast
import inspect
from dataclasses import asdict, replace
from pathlib import Path

import pytest

import asda_core
import asda_core.contracts
import asda_hear
from asda_core import hookspecs, testing
from asda_core.audio.reading import read_audio
from asda_core.audio_files.sources import find_audio
from asda_core.catalog import Catalog
from asda_core.config import RunConfig
from asda_core.finetune.evaluation import load_predictions
from asda_core.finetune.running import Job, finetune
from asda_core.finetune.sweep import read_start
from asda_core.labelled.reading import read_labelled
from asda_core.labelled.source import load_source
from asda_core.labelled.splits import rounds
from asda_core.pretrain.loop import pretrain
from asda_hear.demo import make_corpus
from asda_hear.looking.noise_attention import NoiseConfig, measure_noise
from asda_hear.model import HearOptions
from tests.finetune.making import small_recipe, write_tones


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


def test_paths_may_be_strings(
    catalog: Catalog, tiny: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every function of the documents that takes a path, but those that other tests give a string."""
    monkeypatch.chdir(tmp_path)
    write_tones(tmp_path / "tones")
    saved = pretrain(replace(tiny, steps=1), find_audio("tones"), "run", catalog, progress=False)
    assert saved == Path("run/model.safetensors")
    source, here = load_source("tones")
    data = read_labelled(source, str(here))
    for path in ("run", Path("run")):
        start, digest = read_start(path)
    job = Job(small_recipe(steps=1), start, data, rounds(data, source)[0], digest)
    finetune(job, "tuned", catalog, progress=False)
    assert Path("tuned/model.safetensors").is_file()
    assert load_predictions("tuned/predictions.npz").classes == data.classes
    sound = str(data.examples[0].file)
    assert len(read_audio(sound, 16_000))
    assert measure_noise(Path("run"), [sound], NoiseConfig((0.0,)), False, catalog)
    assert make_corpus("corpus") == Path("corpus/tasks")
