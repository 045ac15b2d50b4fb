"""`asda plugins --check`: what holds, and what does not, of all that is installed."""

from dataclasses import dataclass

import pytest
from torch import Tensor, nn

from asda_core import cli
from asda_core.catalog import Catalog, load_catalog
from asda_core.commands import plugins as commands
from asda_core.contract.matrix import check_catalog
from asda_core.contracts import MixerSpec, hookimpl
from asda_core.layout import TokenLayout
from tests.conftest import adapter_bottleneck as bottleneck
from tests.conftest import mixer_standard, objective_masked_patch


@dataclass(frozen=True)
class Nothing:
    """No options."""


class Deaf(nn.Linear):
    """A mixer that mixes nothing."""

    def forward(self, tokens: Tensor, layout: TokenLayout) -> Tensor:  # type: ignore[override]
        return super().forward(tokens)


class Stranger:
    @staticmethod
    @hookimpl
    def asda_mixers() -> list[MixerSpec[Nothing]]:
        return [MixerSpec("deaf", Nothing, lambda config, context: Deaf(context.dim, context.dim), "for tests", "here")]


def catalog_with(*more: object) -> Catalog:
    return load_catalog(mixer_standard, objective_masked_patch, bottleneck, *more, installed=False)


def test_all_is_well() -> None:
    tables, failures = check_catalog(catalog_with(), progress=False)
    assert failures == []
    assert tables.splitlines() == [
        "plugin                  its contract",
        "mixer standard          ok",
        "objective masked_patch  ok",
        "adapter bottleneck      ok",
        "",
        "objective + adapter        standard",
        "masked_patch + no adapter  ok",
        "masked_patch + bottleneck  ok",
        "",
        "5 of 5 checks passed.",
    ]


def test_a_bad_mixer_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    catalog = catalog_with(Stranger)
    monkeypatch.setattr(commands, "installed_catalog", lambda: catalog)
    assert cli.main(["plugins", "--check"]) == 1
    printed = capsys.readouterr()
    assert "mixer deaf              -" in printed.out
    assert "mixer standard          ok" in printed.out
    assert printed.out.endswith("\n7 of 8 checks passed.\n")
    assert "mixer deaf, its contract: AssertionError: deaf on (3, 20) tokens" in printed.err
    assert "tokens do not influence each other" in printed.err
