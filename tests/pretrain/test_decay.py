"""Weight decay is for maps and kernels; not for tokens, positions, norms, biases, lambda, nor a scan's rates."""

from typing import Any

import pytest
from torch import nn

from asda_core.assemble import build_parts
from asda_core.catalog import Catalog
from asda_core.config import OptimizerConfig, RunConfig
from asda_core.config_io import parse
from asda_core.errors import PluginError
from asda_core.pretrain.schedule import decay_groups, no_decay_ids
from tests.conftest import TINY

MAPS = (nn.Linear, nn.Conv1d, nn.Conv2d)
FACTORS = ("down", "up")
"""The two matrices of `low_rank`."""
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "differential": [{}, {"lambda_learned": True}],
    "differential_v1": [{"lambda_mode": mode} for mode in ("vectors", "scalars", "fixed", "token")],
    "mamba": [{"version": version} for version in ("v1", "v2", "forward")],
}
"""Options with which a mixer has parameters of another kind; of those that are not named, the usual ones."""


def wrongly_decayed(config: RunConfig, catalog: Catalog) -> list[str]:
    """Names of what decays and should not, or does not and should."""
    parts = build_parts(catalog, config)
    modules = nn.ModuleDict({"encoder": parts.encoder, "objective": parts.objective})
    groups = decay_groups(modules.parameters(), config.optimizer, no_decay_ids(*modules.values()))
    decayed = {id(parameter) for group in groups if group["weight_decay"] for parameter in group["params"]}
    wrong = []
    for name, parameter in modules.named_parameters():
        owner, own_name = modules.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]
        is_map = own_name in FACTORS or (isinstance(owner, MAPS) and own_name == "weight")
        if parameter.requires_grad and is_map != (id(parameter) in decayed):
            wrong.append(name)
    return wrong


def test_maps_decay_and_nothing_else(catalog: Catalog) -> None:
    encoder: dict[str, Any] = {
        **TINY["encoder"],  # type: ignore[dict-item]
        "num_heads": 4,
        "positions": {"type": "learned"},
        "class_token": {"count": 2},
    }
    for offer in catalog.family_offers("mixer"):
        for options in OPTIONS.get(offer.spec.name, [{}]):
            mixer = {"name": offer.spec.name, "options": options}
            config = parse(RunConfig, {**TINY, "encoder": {**encoder, "mixer": mixer}})
            assert not wrongly_decayed(config, catalog), mixer
    for offer in catalog.family_offers("adapter"):
        config = parse(RunConfig, {**TINY, "encoder": encoder, "adapter": offer.spec.name})
        assert not wrongly_decayed(config, catalog), offer.spec.name
    for name in ("masked_patch", "altered_frames"):
        config = parse(RunConfig, {**TINY, "encoder": TINY["encoder"], "objective": name})
        assert not wrongly_decayed(config, catalog), name


def test_the_release_decays_everything(catalog: Catalog, tiny: RunConfig) -> None:
    parts = build_parts(catalog, tiny)
    parameters = list(parts.encoder.parameters())
    (group,) = decay_groups(parameters, OptimizerConfig(decay_norms_and_biases=True), no_decay_ids(parts.encoder))
    assert len(group["params"]) == len(parameters)


def test_a_plugin_names_its_own(tiny: RunConfig) -> None:
    """By a method of its module, whatever the shape."""

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(nn.Linear(3, 4).weight.detach())
            self.map = nn.Linear(3, 4)

        def no_weight_decay(self) -> set[str]:
            return {"table", "cls_token"}  # as timm's name what may not be there

    module = nn.Sequential(Own())
    groups = decay_groups(module.parameters(), tiny.optimizer, no_decay_ids(module))
    assert [[tuple(p.shape) for p in group["params"]] for group in groups] == [[(4, 3)], [(4, 3), (4,)]]
    assert groups[0]["params"][0] is module[0].map.weight


@pytest.mark.parametrize("given", [None, "table"])
def test_names_that_are_no_collection_are_an_error(given: object) -> None:
    module = nn.Linear(3, 4)
    module.no_weight_decay = lambda: given
    with pytest.raises(PluginError, match=f"no_weight_decay of Linear must return .*, not {given!r}"):
        no_decay_ids(module)
