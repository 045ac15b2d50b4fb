"""Configs, recipes and plans are told apart by keys that only one of them has."""

from dataclasses import fields

import pytest

from asda_core.config import RunConfig
from asda_core.config_io import find_config, shipped_configs
from asda_core.errors import ConfigError
from asda_core.finetune_config import FinetuneConfig
from asda_core.settings.kinds import KEYS, Kind, require_kind
from asda_core.settings.strict_yaml import read_yaml
from asda_hear.ablation.settings import PlanConfig

CLASSES: dict[Kind, type] = {"config": RunConfig, "recipe": FinetuneConfig, "plan": PlanConfig}
SHIPPED: list[tuple[Kind, str]] = [
    *(("config", name) for name in shipped_configs()),
    *(("recipe", name) for name in shipped_configs("finetune")),
    *(("plan", name) for name in shipped_configs("ablations")),
]


@pytest.mark.parametrize("kind", KEYS)
def test_the_keys_of_a_kind_are_of_its_class_alone(kind: Kind) -> None:
    keys = {other: {item.name for item in fields(cls)} for other, cls in CLASSES.items()}  # type: ignore[arg-type]
    assert keys[kind] >= KEYS[kind]
    assert not any(KEYS[kind] & keys[other] for other in CLASSES if other != kind)


@pytest.mark.parametrize(("kind", "name"), SHIPPED)
def test_a_shipped_file_is_of_its_kind(kind: Kind, name: str) -> None:
    content = read_yaml(find_config(name))
    require_kind(content, kind, name)
    for other in CLASSES.keys() - {kind} if KEYS[kind] & content.keys() else ():
        with pytest.raises(ConfigError, match=f"{name} is a {kind}, not a {other}: asda.* {name}"):
            require_kind(content, other, name)


@pytest.mark.parametrize("content", [None, {}, {"steps": 3}, {"encodre": {}}, [1], "text"])
def test_what_is_of_no_kind_is_left_to_the_parser(content: object) -> None:
    for kind in CLASSES:
        require_kind(content, kind, "file.yaml")
