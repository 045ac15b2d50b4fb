"""Strict configs: unknown keys, wrong types and YAML's traps are named with their place."""

import math
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any, Literal

import pytest

from asda_core.assemble import build_parts
from asda_core.catalog import Catalog
from asda_core.commands.config_arguments import apply_changes
from asda_core.config import OptimizerConfig, PluginChoice, RunConfig
from asda_core.config_io import load_run_config, parse, signature, to_plain, to_yaml, with_value
from asda_core.errors import ConfigError
from tests.conftest import TINY


def write(folder: Path, text: str) -> Path:
    file = folder / "config.yaml"
    file.write_text(text)
    return file


def test_defaults_are_the_published_model(tmp_path: Path) -> None:
    assert load_run_config(write(tmp_path, "")) == RunConfig()


def test_round_trip(tiny: RunConfig, tmp_path: Path) -> None:
    assert load_run_config(write(tmp_path, to_yaml(tiny))) == tiny


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("stepz: 3", ["unknown config key 'stepz'", "Did you mean 'steps'?"]),
        ("encoder: {dimm: 3}", ["unknown config key 'dimm'", "Did you mean 'dim'?", "at encoder.dimm"]),
        ("encoder: 3", ["encoder must be a mapping", "3"]),
        ("optimizer: {betas: 3}", ["optimizer.betas: Input should be a list such as [1, 2], got 3"]),
        ("steps: many", ["steps: Input should be a valid integer", "'many'"]),
        ("encoder: {norm: no}", ["encoder.norm", "False", "YAML 1.1", "quote"]),
        ("encoder: {dim: 30}", ["encoder.dim 30 is not a multiple of encoder.num_heads 12"]),
        ("encoder: {depth: 4, class_token: {join_layer: 4}}", ["join_layer 4 is not in 0..3"]),
        ("steps: [", ["is not YAML"]),
        ("- 1", ["must be a mapping"]),
        ("data: {batch_size: 0}", ["data.batch_size must be positive"]),
    ],
)
def test_wrong_configs(tmp_path: Path, text: str, messages: list[str]) -> None:
    file = write(tmp_path, text)
    with pytest.raises(ConfigError) as error:
        load_run_config(file)
    for message in ["config.yaml", *messages]:
        assert message in str(error.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the config"):
        load_run_config(tmp_path / "none.yaml")


def test_a_config_by_its_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_run_config("asda_tiny").encoder.dim == 128
    wrong = "no file at asda_tinny: unknown config 'asda_tinny'. Did you mean 'asda_tiny'\\? Valid: asda_base, .*"
    with pytest.raises(ConfigError, match=wrong):
        load_run_config("asda_tinny")


def test_wrong_plugin_option_names_its_place(catalog: Catalog) -> None:
    from asda_core.assemble import build_parts

    config = parse(
        RunConfig, {**TINY, "encoder": {**TINY["encoder"], "mixer": {"name": "differential", "options": {"lamda": 1}}}}
    )  # type: ignore[dict-item]
    with pytest.raises(ConfigError, match=r"'lamda'.*Did you mean 'lambda_init'.*at encoder.mixer.options.lamda"):
        build_parts(catalog, config)


def test_number_that_yaml_reads_as_text(tmp_path: Path) -> None:
    """YAML 1.1 reads 1e-3 as text; it is a number here all the same."""
    assert load_run_config(write(tmp_path, "optimizer: {peak_lr: 1e-3}")).optimizer == OptimizerConfig(peak_lr=0.001)


@dataclass(frozen=True)
class Stage:
    width: int = 1
    limit: float = 1.0


class Kind(Enum):
    FAST = "fast"
    SLOW = "slow"


@dataclass(frozen=True)
class Stranger:
    """Options as a plugin of someone else may have them."""

    stages: tuple[Stage, ...] = ()
    pair: tuple[Stage, float] = (Stage(), 0.5)
    named: dict[str, Stage] = field(default_factory=dict)
    maybe: Stage | None = None
    table: Path = Path("here")
    kind: Kind = Kind.FAST
    wait: Literal[True, False, "auto"] = "auto"
    bound: float = math.inf
    scale: float = 1.0
    numbers: tuple[float, ...] = ()
    band: tuple[float, float] = (0.0, math.inf)
    bounds: list[float] = field(default_factory=lambda: [0.0, math.inf])
    weights: dict[str, float] = field(default_factory=dict)
    rows: tuple[tuple[float, ...], ...] = ()
    word: float | str = 1.0
    anything: tuple[object, ...] = ()
    inner: Stage = Stage(limit=math.inf)


def test_options_of_a_stranger_come_back_as_they_were() -> None:
    given = {
        "stages": [{"width": 2}, {}], "pair": [{"width": 3}, 1.5], "named": {"x": {"width": 4}}, "maybe": {"width": 5},
        "table": "a/b", "kind": "slow", "wait": True, "bound": math.inf,
    }  # fmt: skip
    found = parse(Stranger, given)
    assert found == Stranger(
        (Stage(2), Stage()), (Stage(3), 1.5), {"x": Stage(4)}, Stage(5), Path("a/b"), Kind.SLOW, True
    )
    for each in (found, Stranger()):
        assert parse(Stranger, to_plain(each)) == each


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"stages": [{"width": 2}, {"wide": 2}]}, r"'wide'.* Did you mean 'width'.* \(at stages.1.wide\)"),
        ({"named": {"x": {"wide": 2}}}, r"at named.x.wide"),
        ({"pair": [{"wide": 1}, 1]}, r"at pair.0.wide"),
        ({"scale": math.nan}, "scale must be a finite number, not nan"),
        ({"scale": -math.inf}, "scale must be a finite number, not -inf"),
        ({"scale": True}, "expected float, got the boolean True"),
        ({"scale": "inf"}, "scale must be a finite number, not inf"),
        ({"numbers": [1.0, "nan"]}, "numbers must be a finite number, not nan"),
        ({"weights": {"a": "inf"}}, "weights must be a finite number, not inf"),
        ({"rows": [[1.0, math.inf]]}, "rows must be a finite number, not inf"),
        ({"band": [0, math.nan]}, "band must be a finite number, not nan"),
        ({"band": [0, -math.inf]}, "band must be a finite number, not -inf"),
        ({"inner": {"limit": -math.inf}}, "inner.limit must be a finite number, not -inf"),
        ({"stages": [{}, {"limit": math.inf}]}, "stages.1.limit must be a finite number, not inf"),
        ({"numbers": [1.0, True]}, "expected float, got the boolean True"),
    ],
)
def test_wrong_options_of_a_stranger(given: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(Stranger, given)


def test_signature_is_of_what_changes_results(tiny: RunConfig) -> None:
    plain = to_plain(tiny)
    same = [{"log_every": 7}, {"checkpoint_every": 1}, {"data": {**plain["data"], "cache_mebibytes": 1}}]
    other = [{"seed": 2}, {"steps": 7}, {"encoder": {**plain["encoder"], "mixer": "standard"}}]
    assert {signature(parse(RunConfig, {**plain, **change})) for change in same} == {signature(tiny)}
    assert len({signature(tiny), *(signature(parse(RunConfig, {**plain, **change})) for change in other)}) == 4
    assert signature(tiny, data=["a"]) != signature(tiny)


def test_with_value_copies() -> None:
    data = {"encoder": {"mixer": "differential"}, "steps": 1}
    changed = with_value(data, "encoder.mixer.options.lambda_init", 0.3)
    assert changed["encoder"]["mixer"] == {"name": "differential", "options": {"lambda_init": 0.3}}
    assert data == {"encoder": {"mixer": "differential"}, "steps": 1}


def test_changes_do_not_undo_each_other(tiny: RunConfig) -> None:
    """A plugin and its options in either order; a group of keys changes those that it names."""
    given = ["encoder.mixer.options.lambda_init=0.5", "encoder.mixer=differential_v1"]
    for changes in (given, given[::-1]):
        assert apply_changes(tiny, changes).encoder.mixer == PluginChoice("differential_v1", {"lambda_init": 0.5})
    grouped = apply_changes(tiny, ["optimizer={peak_lr: 0.5}"])
    assert grouped.optimizer == replace(tiny.optimizer, peak_lr=0.5)
    with pytest.raises(ConfigError, match=r"optimizer\.peek"):
        apply_changes(tiny, ["optimizer={peek: 1}"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("seed=20240101123456", "seed must be at most 4294967295"),
        ("objective.options.decoder.groups=0", "decoder.groups must be at least 1"),
        ("objective.options.decoder.kernel=2", "decoder.kernel must be odd"),
        ("objective.options.mask.adjust=-0.5", "mask.adjust -0.5 moves the kept share"),
        ("objective.options.teacher.decay_start=1.5", r"teacher.decay_start must lie in 0\.\.1"),
        ("objective.options.teacher.anneal_steps=-1", "teacher.anneal_steps must be 0 or more"),
        ("front_end.options.hop_ms=0.01", "must span at least 2 samples and 1 sample at 16000 Hz"),
        ("front_end.options.num_bins=2", "num_bins must be at least 4"),
        ("front_end.options.std=inf", "front_end.options.std must be a finite number, not inf"),
        ("front_end.options.mean=nan", "front_end.options.mean must be a finite number, not nan"),
        ("encoder.mixer.options.output_scale=-Infinity", "output_scale must be a finite number, not -inf"),
        ("objective.options.frame_weight=nan", "frame_weight must be a finite number"),
        ("front_end={name: mfcc, options: {hop_ms: inf}}", "hop_ms must be a finite number"),
        ("front_end={name: mfcc, options: {window_ms: 0.13}}", "2 samples at 16000 Hz: too short for any FFT bin"),
        ("encoder.dim=4000000", "'differential' of these sizes does not fit into memory: 256000000000000 bytes"),
        ("data.micro_batch=3", r"does not divide batch_size; valid: \[1, 2\]"),
        ("data.micro_batch=0", "does not divide batch_size"),
    ],
)
def test_numbers_that_cannot_be(tiny: RunConfig, catalog: Catalog, change: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_parts(catalog, apply_changes(tiny, [change]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["encoder.dim=-4"], "encoder.dim must be positive, not -4."),
        (["encoder.positions.through_bands=-1"], "encoder.positions.through_bands must be positive."),
        (["encoder.mixer=mamba", "encoder.mixer.options.states=0"], "encoder.mixer.options.states must be at least 1"),
        (["encoder.mixer.options.sub_norm_eps=-1"], "encoder.mixer.options.sub_norm_eps must not be negative"),
        (["objective.options.mask.block=0"], "objective.options.mask.block must be at least 1, not 0."),
        (["objective.options.decoder.layers=0"], "objective.options.decoder.layers must be at least 1, not 0."),
        (["objective.options.teacher.anneal_steps=-1"], "objective.options.teacher.anneal_steps must be 0 or more"),
        (["objective.options={frame_weight: 0, utterance_weight: 0}"], "objective.options: frame_weight and"),
        (["adapter=prompt", "adapter.options.count=0"], "adapter.options.count must be at least 1, not 0."),
        (["adapter={name: convolution, options: {beside_mixer: no, beside_mlp: no}}"], "adapter.options: nothing to"),
        (["adapter={name: low_rank, options: {rank: none}}"], "adapter.options.rank: Input should be a valid integer"),
    ],
)
def test_errors_name_the_full_path_once(tiny: RunConfig, catalog: Catalog, changes: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as told:
        build_parts(catalog, apply_changes(tiny, changes))
    assert str(told.value).startswith(message)


def test_numbers_that_are_not_finite_by_default(tmp_path: Path) -> None:
    """A plugin may have them as defaults; who states the same says nothing new."""
    given = {"band": [100, "inf"], "bounds": [1.0, math.inf], "bound": "inf", "word": "infinity"}
    found = parse(Stranger, {**given, "anything": [True, "x"]})
    assert (found.band, found.bounds, found.bound) == ((100.0, math.inf), [1.0, math.inf], math.inf)
    assert (found.word, found.anything) == ("infinity", (True, "x"))


@dataclass(frozen=True)
class Derives:
    """What is not given may be anything."""

    width: int = 1
    floor: float = math.nan
    limit: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "limit", math.inf)


def test_what_a_plugin_derives_is_its_own() -> None:
    assert parse(Derives, {"width": 2}).limit == math.inf
    assert math.isnan(parse(Derives, {"floor": "nan"}).floor)
    with pytest.raises(ConfigError, match="floor must be a finite number, not inf"):
        parse(Derives, {"floor": "inf"})


def test_options_that_no_config_can_hold() -> None:
    """Of a stranger's plugin: keys that are no text, and sets that cannot be put in order."""

    class Colour(Enum):
        RED = "red"

    @dataclass(frozen=True)
    class Options:
        value: Any

    for value in ({Colour.RED: 1}, {"b", 1}):
        with pytest.raises(ConfigError, match="an option cannot be written to a config"):
            to_plain(Options(value))
