"""A key that stands twice, of which PyYAML would take the last without a word."""

from pathlib import Path

import pytest
import yaml

from asda_core.errors import ConfigError
from asda_core.settings.strict_yaml import parse_value, parse_yaml, read_yaml


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps: 1\nsteps: 2\n", r"duplicate key 'steps' \(line 2\)"),
        ("axes:\n  a: {x: 1}\n  b: 2\n  a: {y: 1}\n", r"duplicate key 'a' \(line 4\)"),
        ("axes: {true: 1, on: 2}\n", "duplicate key True"),
        ("{? [1]: 2, x: {y: 1, y: 2}}\n", "duplicate key 'y'"),
        ("? [1]\n: 2\n", "unhashable key"),
        ("a: [1\n", "is not YAML"),
        ("a: !!python/object/apply:os.system [ls]\n", "could not determine a constructor"),
    ],
)
def test_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message) as error:
        read_yaml(file)
    assert str(file) in str(error.value)


def test_a_change_of_the_command_line() -> None:
    with pytest.raises(ConfigError, match="duplicate key"):
        parse_value("{peak_lr: 1, peak_lr: 2}")


def test_what_is_merged_may_be_overridden() -> None:
    text = "usual: &usual {steps: 1, seed: 2}\nrun: {<<: *usual, steps: 3}\n"
    assert parse_yaml(text) == yaml.safe_load(text)
    assert parse_yaml(text)["run"] == {"steps": 3, "seed": 2}


def test_all_else_is_as_pyyaml_reads_it() -> None:
    files = list((Path(__file__).parents[1] / "configs").rglob("*.yaml"))
    assert len(files) > 20
    for file in files:
        assert read_yaml(file) == yaml.safe_load(file.read_text())


def test_a_mapping_that_is_merged_where_it_was_nested_deeper() -> None:
    """PyYAML writes merged keys into the mapping as it constructs it; what was written is what counts."""
    text = """
axes:
  rate:
    usual: &usual {optimizer.peak_lr: 0.001, optimizer.warmup_steps: 2}
    high: &high {<<: *usual, optimizer.peak_lr: 0.01}
set: {<<: *high, steps: 2}
again: *high
"""
    assert parse_yaml(text) == yaml.safe_load(text)
    assert parse_yaml("") is None
    assert parse_yaml("&a [*a]")  # a list that holds itself
