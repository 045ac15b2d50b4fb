"""The four plugin hooks. Each returns the specs of one family that a plugin offers."""

from collections.abc import Iterable
from typing import Any

import pluggy

from asda_core.contracts import PROJECT, AdapterSpec, FrontEndSpec, MixerSpec, ObjectiveSpec, Spec

hookspec = pluggy.HookspecMarker(PROJECT)


@hookspec
def asda_mixers() -> Iterable[MixerSpec[Any]]:  # type: ignore[empty-body]
    """Token mixers: attention variants, state-space scans. Contract: `asda_core.testing.check_mixer`."""


@hookspec
def asda_front_ends() -> Iterable[FrontEndSpec[Any]]:  # type: ignore[empty-body]
    """Audio to features. Contract: `asda_core.testing.check_front_end`."""


@hookspec
def asda_objectives() -> Iterable[ObjectiveSpec[Any]]:  # type: ignore[empty-body]
    """What pre-training minimises. Contract: `asda_core.testing.check_objective`."""


@hookspec
def asda_adapters() -> Iterable[AdapterSpec[Any]]:  # type: ignore[empty-body]
    """A small number of new parameters added to a frozen encoder. Contract: `asda_core.testing.check_adapter`."""


FAMILIES: dict[str, tuple[str, type[Spec[Any, Any, Any]]]] = {
    "mixer": ("asda_mixers", MixerSpec),
    "front end": ("asda_front_ends", FrontEndSpec),
    "objective": ("asda_objectives", ObjectiveSpec),
    "adapter": ("asda_adapters", AdapterSpec),
}
"""Family, in plain words -> its hook, and the class of the specs that the hook returns."""
