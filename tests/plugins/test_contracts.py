"""Every spec in the catalog against the contract of its family."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from asda_core.catalog import load_catalog
from asda_core.contracts import AdapterSpec, MixerSpec, hookimpl
from asda_core.layout import TokenLayout
from asda_core.model.encoder import Encoder
from asda_core.testing import check_adapter, check_combination, check_front_end, check_mixer, check_objective
from tests.conftest import BUILT_IN

CATALOG = load_catalog(*BUILT_IN, installed=False)
SMALL_OBJECTIVE: dict[str, dict[str, object]] = {
    "latent_regression": {"clones": 2, "decoder": {"dim": 32, "layers": 2, "groups": 4}},
    "masked_patch": {},
    "altered_frames": {},
}


def names(family: str) -> list[str]:
    return [offer.spec.name for offer in CATALOG.family_offers(family)]


@pytest.mark.parametrize("name", names("mixer"))
def test_mixer(name: str) -> None:
    check_mixer(CATALOG.find("mixer", name).spec)


@pytest.mark.parametrize("options", [{"lambda_learned": True}, {"lambda_init": 0.0}, {"qkv_bias": False}])
def test_differential_options(options: dict[str, object]) -> None:
    check_mixer(CATALOG.find("mixer", "differential").spec, **options)


@pytest.mark.parametrize("name", names("front end"))
def test_front_end(name: str) -> None:
    check_front_end(CATALOG.find("front end", name).spec)


@pytest.mark.slow
@pytest.mark.parametrize("objective", names("objective"))
@pytest.mark.parametrize("mixer", names("mixer"))
def test_objective(objective: str, mixer: str) -> None:
    check_objective(
        CATALOG.find("objective", objective).spec, CATALOG.find("mixer", mixer).spec, **SMALL_OBJECTIVE[objective]
    )


@pytest.mark.parametrize("adapter", names("adapter"))
@pytest.mark.parametrize("mixer", names("mixer"))
def test_adapter(adapter: str, mixer: str) -> None:
    check_adapter(CATALOG.find("adapter", adapter).spec, CATALOG.find("mixer", mixer).spec)


@pytest.mark.slow
@pytest.mark.parametrize("objective", names("objective"))
@pytest.mark.parametrize("adapter", names("adapter"))
@pytest.mark.parametrize("mixer", names("mixer"))
def test_combination(mixer: str, adapter: str, objective: str) -> None:
    specs = [CATALOG.find(*each).spec for each in (("mixer", mixer), ("adapter", adapter), ("objective", objective))]
    check_combination(*specs, **SMALL_OBJECTIVE[objective])


def test_all_families_are_covered() -> None:
    assert names("mixer") == [
        "differential", "differential_v1", "differential_v2", "dint", "frequency_time", "grouped_differential", "mamba",
        "standard", "two_simplicial",
    ]  # fmt: skip
    assert names("front end") == ["log_mel", "mfcc"]
    assert names("objective") == ["altered_frames", "latent_regression", "masked_patch"]
    assert names("adapter") == ["bias_only", "bottleneck", "convolution", "low_rank", "prompt"]


@dataclass(frozen=True)
class Nothing:
    """No options."""


class Scale(nn.Module):
    """An adapter for this test: a factor for every channel behind each MLP, 1 at first."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.factors = dim

    def attach(self, encoder: Encoder) -> None:
        for block in encoder.blocks:
            block.mlp = Scaled(block.mlp, self.factors)


class Scaled(nn.Module):
    def __init__(self, inner: nn.Module, dim: int) -> None:
        super().__init__()
        self.inner, self.scale = inner, nn.Parameter(torch.ones(dim))

    def forward(self, tokens: Tensor, layout: TokenLayout) -> Tensor:
        result: Tensor = self.inner(tokens, layout) * self.scale
        return result


class Ignored(Scale):
    """Like an adapter of a released code, whose result is never used."""

    def attach(self, encoder: Encoder) -> None:
        encoder.extra = nn.Parameter(torch.ones(3))


def adapter_spec(make: type[Scale]) -> AdapterSpec[Nothing]:
    return AdapterSpec("scale", Nothing, lambda config, context: make(context.dim), "for tests", "here")


@pytest.mark.parametrize("mixer", names("mixer"))
def test_adapter_contract_holds(mixer: str) -> None:
    check_adapter(adapter_spec(Scale), CATALOG.find("mixer", mixer).spec)


def test_adapter_contract_finds_what_never_learns() -> None:
    with pytest.raises(AssertionError, match="these parameters do not change in training"):
        check_adapter(adapter_spec(Ignored))


class Broken(nn.Module):
    """A mixer with one fault of those that the contract names."""

    def __init__(self, fault: str, dim: int) -> None:
        super().__init__()
        self.fault, self.linear, self.idle = fault, nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(self, tokens: Tensor, layout: TokenLayout) -> Tensor:
        weight = layout.valid.to(tokens).unsqueeze(-1)
        if self.fault == "padding":
            weight = torch.ones_like(weight)
        mean = (tokens * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True)
        if self.fault == "batch":
            mean = mean.mean(0, keepdim=True)
        if self.fault == "deaf":
            mean = torch.zeros_like(mean)
        mixed: Tensor = self.linear(tokens + mean)
        if self.fault == "order":
            mixed = mixed + torch.arange(mixed.shape[1])[:, None]
        return mixed[:, :-1] if self.fault == "shape" else mixed + 0 * mixed / (0 if self.fault == "nan" else 1)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("padding", "padding influences"),
        ("batch", "alone differs|clips influence each other"),
        ("deaf", "tokens do not influence each other"),
        ("order", "order of tokens"),
        ("shape", "shape"),
        ("nan", "not finite"),
        ("idle", "do not change in training: idle.weight, idle.bias"),
    ],
)
def test_mixer_contract_finds_faults(fault: str, message: str) -> None:
    spec = MixerSpec("broken", Nothing, lambda config, context: Broken(fault, context.dim), "for tests", "here")
    with pytest.raises(AssertionError, match=message):
        check_mixer(spec)


def test_hookimpl_is_public() -> None:
    assert hookimpl.project_name == "asda"
