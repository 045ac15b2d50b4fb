"""Plugins: strangers come in like built-ins, and a bad one does not take the program down.

The strangers here are real: a module and the metadata of an installed distribution, in a folder on `sys.path`.
"""

import copy
import importlib
import pickle
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.metadata import Distribution, EntryPoint
from pathlib import Path

import pytest
from torch import nn

from asda_core.assemble import build_encoder, build_parts
from asda_core.catalog import Catalog, load_catalog, options_from_environment
from asda_core.checkpoint import checkpoint_metadata, load_encoder, model_tensors, read_checkpoint, write_model
from asda_core.config import EncoderConfig, PluginChoice, RunConfig
from asda_core.config_io import parse
from asda_core.contracts import MixerContext
from asda_core.errors import ConfigError, PluginError
from asda_core.system.paths import OWN_DISTRIBUTION
from tests.conftest import BUILT_IN, TINY

Install = Callable[..., None]
HEAD = """
from dataclasses import dataclass
from torch import nn
from asda_core.contracts import MixerSpec, hookimpl

@dataclass(frozen=True)
class Nothing:
    pass

def spec(name):
    return MixerSpec(name, Nothing, lambda config, context: nn.Identity(), "for tests", "here")
"""


PLACE = "(module_of_bad_package.py, line"


def offering(*names: str, hook: str = "asda_mixers") -> str:
    return f"{HEAD}\n@hookimpl\ndef {hook}():\n    return [spec(name) for name in {list(names)}]\n"


def with_field(name: str, value: str) -> str:
    """A plugin that puts a wrong value into its spec, which the checks of types in these tests would not let in."""
    body = f"one = spec('x')\n    object.__setattr__(one, '{name}', {value})\n    return one"
    return f"{HEAD}\n@hookimpl\ndef asda_mixers():\n    {body}\n"


def with_option(field: str) -> str:
    return offering("x").replace("    pass\n", f"    {field}\n")


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """install(entry point, distribution, source of its module)."""
    modules = set(sys.modules)

    def add(entry: str, distribution: str, source: str) -> None:
        module = f"module_of_{distribution.replace('-', '_')}"
        (tmp_path / f"{module}.py").write_text(source)
        info = tmp_path / f"{distribution.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[asda]\n{entry} = {module}\n")

    monkeypatch.syspath_prepend(tmp_path)
    yield add
    for name in set(sys.modules) - modules:
        if name.startswith("module_of_"):
            del sys.modules[name]


def strangers(catalog: Catalog) -> list[str]:
    return [offer.spec.name for offer in catalog.offers.values() if offer.distribution != OWN_DISTRIBUTION]


def test_a_stranger_comes_in(install: Install) -> None:
    install("mine", "my-package", offering("mine"))
    offer = load_catalog().find("mixer", "mine")
    assert offer.origin == {"name": "mine", "distribution": "my-package", "version": "1.0"}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import cupy_that_is_not_there", f"No module named 'cupy_that_is_not_there' {PLACE} 1)"),
        ("raise SystemError('broken at import')", f"SystemError: broken at import {PLACE} 1)"),
        ("\n\nint('x')", f"ValueError: invalid literal for int() with base 10: 'x' {PLACE} 3)"),
        ("import json\njson.loads('')", f"JSONDecodeError: Expecting value: line 1 column 1 (char 0) {PLACE} 2)"),
        ("def asda_mixers(:", "SyntaxError: invalid syntax (module_of_bad_package.py, line 1)"),
        (offering("x", hook="asda_mixer"), "unknown hook 'asda_mixer'"),
        ("nothing = 1", "it implements no hook"),
        (offering("x").replace("@hookimpl", ""), "asda_mixers must be decorated with @hookimpl"),
        (offering("x") + "\ndef asda_adapters():\n    pass\n", "asda_adapters must be decorated with @hookimpl"),
        ("import sys; sys.exit('no CUDA')", f"SystemExit: no CUDA {PLACE} 1)"),
        (
            offering("x").replace("name, Nothing,", "name, int,"),
            "the config of 'x' must be a frozen dataclass, not <class 'int'>",
        ),
        (with_field("config", "Nothing()"), "must be a frozen dataclass, not Nothing()"),
        (offering("x").replace("(frozen=True)", ""), "must be a frozen dataclass, not <class"),
        (with_field("build", "None"), "build of 'x' must be a function"),
        (
            offering("x").replace("config, context:", "config:"),
            "build of 'x' must take two arguments, options and context,",
        ),
        (with_option("size: int = 'x'"), "the default of 'size' of 'x': Input should be a valid integer"),
        (with_option("size: nn.Module = None"), "the config of 'x' cannot be used: Nothing: a field has a type that"),
        (with_option("size: 'Gone' = None"), "the config of 'x' cannot be used: name 'Gone' is not defined"),
        (with_field("released", "None"), "released of 'x' must be a mapping of options to values, not None"),
        (with_field("released", "{'nix': 1}"), "released of 'x' names 'nix', which is none of its options"),
        (with_field("without_influence", "('nix',)"), "without_influence of 'x' names 'nix', which is none of"),
        (offering("x").replace("spec(name) for", "name for"), "must return MixerSpec objects, not 'x'"),
        (
            offering("x").replace("def asda_mixers():", "def asda_mixers():\n    1 / 0"),
            f"ZeroDivisionError: division by zero {PLACE} 15)",
        ),
        (offering("x").replace("return [spec", "[spec"), "asda_mixers returned None; is a `return` missing?"),
        (offering(""), "the name must be a string"),
        (with_field("summary", "None"), "summary of 'x' must be a string, not None"),
        (with_field("takes_over", "None"), "takes_over of 'x' must be a tuple of names, not None"),
        (with_field("takes_over", "'standard'"), "takes_over of 'x' must be a tuple of names, not 'standard'"),
        (with_field("without_influence", "'scan'"), "without_influence of 'x' must be a tuple of names, not 'scan'"),
    ],
)
def test_a_broken_plugin_breaks_nothing_else(install: Install, source: str, message: str) -> None:
    install("broken", "bad-package", source)
    install("mine", "my-package", offering("mine"))
    catalog = load_catalog()
    assert strangers(catalog) == ["mine"]
    assert len(catalog.problems) == 1
    assert message in catalog.problems[0].message
    with pytest.raises(PluginError, match="'broken' is not available") as error:
        catalog.find("mixer", "broken")
    assert message in str(error.value)
    with pytest.raises(PluginError, match=r"unknown mixer 'min'. Did you mean 'mine'\?.*bad-package is broken"):
        catalog.find("mixer", "min")
    with pytest.raises(PluginError, match="bad-package"):
        load_catalog(strict=True)


@pytest.mark.parametrize("name", ["null", "3", "true", "1_000", "2024-01-01", "a/b", "My Mixer", "temp ", "x\ny", "-x"])
def test_names_that_a_config_cannot_say(install: Install, name: str) -> None:
    install("broken", "bad-package", offering(name))
    (problem,) = load_catalog().problems
    assert f"YAML reads as text, not {name!r}" in problem.message


def test_names_that_a_config_can_say(install: Install) -> None:
    names = ["Mamba-2", "a.b", "größe", "none", "w_", "x+y"]
    install("mine", "my-package", offering(*names))
    assert sorted(strangers(load_catalog(strict=True))) == sorted(names)


def test_two_strangers_with_one_name(install: Install) -> None:
    install("a", "first", offering("same", "other"))
    install("b", "second", offering("same"))
    catalog = load_catalog()
    assert strangers(catalog) == ["other"]
    with pytest.raises(PluginError, match=r"first 1\.0 and second 1\.0; none of them is used"):
        catalog.find("mixer", "same")


def test_a_stranger_with_one_name_twice(install: Install) -> None:
    install("a", "first", offering("same", "same"))
    (problem,) = load_catalog().problems
    assert problem.message == (
        "the mixer name 'same' is offered 2 times by first 1.0; none of them is used. Each needs a name of its own."
    )
    assert load_catalog(allow=[]).problems == ()


def test_a_misspelt_name_tells_whose_plugins_are_broken_and_no_more(install: Install) -> None:
    install("a", "first", f"raise SystemError('{'long ' * 500}')")
    install("b", "second", "1 / 0")
    with pytest.raises(PluginError, match=r"A plugin of first is broken\. A plugin of second is broken\.$") as error:
        load_catalog().find("mixer", "standrad")
    assert len(str(error.value)) < 500


def test_own_names_cannot_be_taken(install: Install) -> None:
    install("a", "a-stranger", offering("standard"))
    catalog = load_catalog()
    assert catalog.find("mixer", "standard").distribution == OWN_DISTRIBUTION
    assert [problem.distribution for problem in catalog.problems] == ["a-stranger"]


def test_same_entry_point_name_in_two_packages(install: Install) -> None:
    install("plugin", "first", offering("one"))
    install("plugin", "second", offering("two"))
    assert strangers(load_catalog()) == ["one", "two"]


def test_allow_list(install: Install) -> None:
    install("first", "first", offering("first"))
    install("second", "second", offering("second"))
    assert strangers(load_catalog(**options_from_environment({"ASDA_LOAD_PLUGINS": "second"}))) == ["second"]
    assert strangers(load_catalog(**options_from_environment({}))) == ["first", "second"]
    assert strangers(load_catalog(**options_from_environment({"ASDA_LOAD_PLUGINS": ""}))) == []
    assert load_catalog(**options_from_environment({"ASDA_LOAD_PLUGINS": ""})).find("mixer", "standard")
    assert options_from_environment({"ASDA_STRICT_PLUGINS": "1"})["strict"]


def test_the_allow_list_reads_names_as_pip_does_and_tells_misses(install: Install) -> None:
    install("first", "My_First-Plugin", offering("first"))
    for name in ("My_First-Plugin", "my-first-plugin", "MY.first_plugin"):
        catalog = load_catalog(allow=[name])
        assert strangers(catalog) == ["first"]
        assert not catalog.problems
    (problem,) = load_catalog(allow=["my-frist-plugin"]).problems
    assert problem.distribution == "my-frist-plugin"
    with pytest.raises(PluginError, match="no distribution of this name"):
        load_catalog(allow=["my-frist-plugin"], strict=True)


def test_a_given_plugin_with_a_taken_name_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "module_of_given.py").write_text(offering("standard"))
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(PluginError, match="the mixer name 'standard' is offered by asda-hear .* and .given. 0"):
        load_catalog(importlib.import_module("module_of_given"))
    monkeypatch.delitem(sys.modules, "module_of_given")


def test_a_package_that_is_missing_when_a_plugin_is_built(install: Install) -> None:
    build = "def build(config, context):\n    import not_there\n\n"
    source = offering("heavy").replace("lambda config, context: nn.Identity()", "build")
    install("heavy", "heavy", source.replace("def spec", f"{build}def spec"))
    with pytest.raises(PluginError, match=r"mixer 'heavy' of heavy 1\.0 cannot be built: No module named 'not_there'"):
        build_encoder(load_catalog(), EncoderConfig(dim=32, depth=1, num_heads=2, mixer=PluginChoice("heavy")))


def test_another_version_of_a_plugin_is_told(
    install: Install, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its defaults may be others today."""
    install("other", "other", offering("other"))
    catalog = load_catalog()
    config = parse(RunConfig, {**TINY, "encoder": {**TINY["encoder"], "mixer": "other"}})
    file = tmp_path / "m.safetensors"
    write_model(file, model_tensors(build_parts(catalog, config), False), checkpoint_metadata(config, catalog, 1))
    stored = read_checkpoint(file)
    load_encoder(stored, catalog)
    assert not capsys.readouterr().err
    mixer = {**stored.plugins["mixer"], "version": "0.9"}
    load_encoder(replace(stored, plugins={**stored.plugins, "mixer": mixer}), catalog)
    assert "made with the mixer 'other' of other 0.9, and other 1.0 is installed" in capsys.readouterr().err


def test_the_catalog_is_frozen(catalog: Catalog) -> None:
    with pytest.raises(TypeError):
        catalog.offers["mixer", "x"] = catalog.find("mixer", "standard")  # type: ignore[index]


def test_a_catalog_goes_to_another_process(install: Install) -> None:
    install("bad", "bad-package", "1/0")
    catalog = load_catalog()
    assert catalog.problems
    received = pickle.loads(pickle.dumps(catalog))
    assert received == catalog
    with pytest.raises(TypeError):
        received.offers["mixer", "x"] = catalog.find("mixer", "standard")
    assert copy.deepcopy([catalog]) == copy.copy([catalog]) == [catalog]


@pytest.mark.parametrize("family", ["mixer", "front end", "objective", "adapter"])
def test_an_unknown_plugin_tells_how_to_offer_it(catalog: Catalog, family: str) -> None:
    advice = (
        r"Is the package that offers it installed\?.* pass a plugin without a package as catalog=load_catalog\(plugin\)"
    )
    with pytest.raises(PluginError, match=f"unknown {family} 'mine'.* {advice}"):
        catalog.find(family, "mine")


def test_the_sample_plugin_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    from asda_core.testing import check_mixer

    monkeypatch.syspath_prepend(Path(__file__).parent / "sample_plugin")
    import asda_sample_mean

    found = load_catalog(asda_sample_mean, installed=False).find("mixer", "mean")
    check_mixer(found.spec)
    assert isinstance(found.spec.build(found.spec.config(), MixerContext(8, 2, 0, 1)), nn.Module)
    sys.modules.pop("asda_sample_mean")


def test_entry_points_are_declared() -> None:
    """The built-ins come in through the entry points of the installed distribution, like a stranger's."""
    entries = {entry.name for entry in Distribution.from_name(OWN_DISTRIBUTION).entry_points if entry.group == "asda"}
    assert entries == {offer.spec.name for offer in load_catalog(*BUILT_IN, installed=False).offers.values()}
    assert EntryPoint("x", "asda_plugins.mixer_standard", "asda").load().__name__ == "asda_plugins.mixer_standard"


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            "lambda *given: (lambda options: options)(*given)",
            r"TypeError: .*takes 1 positional argument but 2 were given",
        ),
        ("lambda config, context: None", r"TypeError: .* None, expected Module \(module_of_broken.py, line \d+\)"),
        ("lambda config, context: nn.Linear('x', 1)", r"TypeError: .*\(module_of_broken.py, line \d+\)"),
        ("lambda config, context: 1 / 0", r"ZeroDivisionError: division by zero \(module_of_broken.py, line \d+\)"),
    ],
)
def test_whose_plugin_cannot_be_built(install: Install, build: str, message: str) -> None:
    install("broken", "broken", offering("broken").replace("lambda config, context: nn.Identity()", build))
    config = EncoderConfig(dim=16, depth=1, num_heads=2, mixer=PluginChoice("broken"))
    with pytest.raises(PluginError, match=rf"mixer 'broken' of broken 1\.0 cannot be built: {message}"):
        build_encoder(load_catalog(), config)


@pytest.mark.parametrize(
    ("body", "error", "message"),
    [
        ("def __post_init__(self):\n        raise RuntimeError('no')", PluginError, "of broken 1.0 .*RuntimeError: no"),
        ("kind: type(nn) = nn", PluginError, "a field has a type that configs do not support"),
        ("kind: int", ConfigError, r"encoder\.mixer\.options\.kind: Field required"),
    ],
)
def test_options_that_cannot_be_read(install: Install, body: str, error: type[Exception], message: str) -> None:
    install("broken", "broken", offering("broken").replace("    pass\n", f"    {body}\n"))
    config = EncoderConfig(dim=16, depth=1, num_heads=2, mixer=PluginChoice("broken"))
    with pytest.raises(error, match=message):
        build_encoder(load_catalog(), config)


def test_a_plugin_may_have_nothing_to_offer_here(install: Install) -> None:
    """As one whose mixers need a package that is not there."""
    install("empty", "empty", offering())
    assert not load_catalog(strict=True).problems
