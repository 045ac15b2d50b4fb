"""The catalog of installed plugins, an immutable value.

Each entry point of the group `asda` is loaded separately, so that a broken plugin does not stop the program; its error
is kept, shown by `asda plugins`, and raised when a config names what it should have offered.

Environment (read by command lines, and if no catalog is given, see `installed_catalog`):
    ASDA_STRICT_PLUGINS=1         any problem is an error
    ASDA_LOAD_PLUGINS=a,b         allow-list of distributions; built-in plugins are always loaded
"""

import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from traceback import walk_tb
from types import CodeType, MappingProxyType
from typing import Any

import pluggy
import torch

from asda_core import hookspecs
from asda_core.contracts import PROJECT, Spec
from asda_core.devices import default_dtype
from asda_core.errors import PluginError, unknown_message
from asda_core.spec_checks import check_spec
from asda_core.system.paths import NO_DISTRIBUTION, OWN_DISTRIBUTION

PluginOrigins = Mapping[str, Mapping[str, str]]
"""Family -> name, distribution and version of a plugin: of those installed, or of those that made some weights."""


@dataclass(frozen=True)
class Offer:
    """The spec of a plugin and its origin."""

    family: str
    spec: Spec[Any, Any, Any]
    distribution: str
    version: str

    @property
    def origin(self) -> dict[str, str]:
        """Name, distribution and version, as stored in checkpoints and result rows."""
        return {"name": self.spec.name, "distribution": self.distribution, "version": self.version}


@dataclass(frozen=True)
class Problem:
    """An error of a plugin: the entry point, its distribution, and the message.

    `name` is the name of the offer if a single one was rejected, otherwise the name of the entry point.
    """

    name: str
    distribution: str
    message: str


@dataclass(frozen=True)
class Catalog:
    """All offers by family and name, and the problems found while collecting them.

    It can be pickled if its specs can: their config and build are found by module and name, so neither may be local.
    """

    offers: Mapping[tuple[str, str], Offer]
    problems: tuple[Problem, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "offers", MappingProxyType(dict(self.offers)))

    def __reduce__(self) -> tuple[type["Catalog"], tuple[dict[tuple[str, str], Offer], tuple[Problem, ...]]]:
        return Catalog, (dict(self.offers), self.problems)  # the proxy itself cannot be pickled

    def __deepcopy__(self, memo: dict[int, Any]) -> "Catalog":
        return self  # immutable

    def find(self, family: str, name: str) -> Offer:
        """Return the offer of that name.

        Raises:
            PluginError: its plugin is broken (with the plugin's own error), or no plugin offers it.
        """
        if offer := self.offers.get((family, name)):
            return offer
        for problem in self.problems:
            if name in (problem.name, problem.distribution):
                raise PluginError(
                    f"{family} {name!r} is not available: {problem.message} (from {problem.distribution})"
                )
        message = unknown_message(family, name, (key[1] for key in self.offers if key[0] == family))
        distributions = sorted({problem.distribution for problem in self.problems})
        broken = "".join(f" A plugin of {distribution} is broken." for distribution in distributions)
        advice = (
            "Is the package that offers it installed? `asda plugins` lists all. In Python, pass a plugin without a "
            "package as catalog=load_catalog(plugin)."
        )
        raise PluginError(f"{message} {advice}{broken}")

    def family_offers(self, family: str) -> list[Offer]:
        """All offers of one family, by name."""
        return [offer for key, offer in sorted(self.offers.items()) if key[0] == family]


def load_catalog(
    *extra: object, installed: bool = True, strict: bool = False, allow: Iterable[str] | None = None
) -> Catalog:
    """Collect what plugins offer. pluggy is not used after this.

    Args:
        extra: modules or objects with `asda_` hooks, in addition to those installed; their errors and name
            clashes are raised.
        installed: whether to load the entry points of installed distributions.
        strict: raise the problems instead of keeping them.
        allow: names of the distributions to load; None loads all. asda's own is always loaded.

    Raises:
        PluginError: a plugin of `extra` offers nothing valid, or two plugins the same; if `strict`, any problem.
    """
    candidates: list[Offer] = []
    problems: list[Problem] = []
    allow = None if allow is None else list(allow)
    for entry, distribution, version in _entries(allow) if installed else []:
        try:
            candidates += _offers_of(entry.load, distribution, version)
        except (Exception, SystemExit) as error:  # third-party code: whatever it raises is kept and shown
            message = f"{type(error).__name__}: {error}{error_place(error, entry.module)}"
            problems.append(Problem(entry.name, distribution, message))
    problems += _not_installed(allow) if installed and allow is not None else []
    for plugin in extra:
        candidates += _offers_of(lambda plugin=plugin: plugin, NO_DISTRIBUTION, "0")  # type: ignore[misc]
    offers, clashes = _without_clashes(candidates)
    if messages := [clash.message for clash in clashes if clash.distribution == NO_DISTRIBUTION]:
        raise PluginError("; ".join(messages))
    problems += clashes
    if strict and problems:
        raise PluginError("; ".join(f"{p.name} of {p.distribution}: {p.message}" for p in problems))
    return Catalog(offers, tuple(problems))


def error_place(error: BaseException, module: str, code: CodeType | None = None) -> str:
    """The last line of a plugin that an error passed through, as in " (mixers.py, line 3)"; "" if there is none.

    Args:
        error: as it was caught.
        module: dotted name of a module of the plugin; all of its top-level package is the plugin.
        code: of a function of the plugin, whose first line counts if the error passed through no other.
    """
    frames = [(frame.f_globals.get("__name__", ""), frame.f_code, at) for frame, at in walk_tb(error.__traceback__)]
    package = module.partition(".")[0]
    lines = [] if code is None else [(code, code.co_firstlineno)]
    lines += [(inner, line) for name, inner, line in frames if name.partition(".")[0] == package]
    return "".join(f" ({Path(inner.co_filename).name}, line {line})" for inner, line in lines[-1:])


def installed_catalog() -> Catalog:
    """Load the installed plugins as the environment allows: for command lines, and if no catalog is given."""
    return load_catalog(**options_from_environment(os.environ))


def options_from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    """Arguments of `load_catalog` from `ASDA_STRICT_PLUGINS` and `ASDA_LOAD_PLUGINS`."""
    allow = environment.get("ASDA_LOAD_PLUGINS")
    return {
        "strict": environment.get("ASDA_STRICT_PLUGINS", "") not in ("", "0"),
        "allow": None if allow is None else [name.strip() for name in allow.split(",") if name.strip()],
    }


def _entries(allow: Iterable[str] | None) -> list[tuple[EntryPoint, str, str]]:
    """Entry points with their distribution and its version, in an order that does not depend on the file system."""
    allowed = None if allow is None else {_canonical(name) for name in (*allow, OWN_DISTRIBUTION)}
    selected = set()
    for entry in entry_points(group=PROJECT):
        distribution, version = _metadata(entry, "Name") or "(unknown)", _metadata(entry, "Version") or "0"
        if allowed is None or _canonical(distribution) in allowed:
            selected.add((entry, distribution, version))
    return sorted(selected, key=lambda item: (item[1] != OWN_DISTRIBUTION, item[1], item[0].name))


def _metadata(entry: EntryPoint, field: str) -> str:
    """A field of the metadata of the distribution; empty if missing, as an interrupted uninstall leaves it."""
    return str(entry.dist.metadata.get_all(field, [""])[0]) if entry.dist else ""  # `[field]` warns from Python 3.13 on


def _not_installed(allow: Iterable[str]) -> list[Problem]:
    """Problems of distributions to load that have no installed plugin: a misspelt name would load nothing."""
    installed = {_canonical(_metadata(entry, "Name")) for entry in entry_points(group=PROJECT)}
    message = "it is on the list of distributions to load, but no distribution of this name with plugins is installed"
    return [Problem(name, name, message) for name in allow if _canonical(name) not in installed]


def _canonical(name: str) -> str:
    """The name of a distribution as pip compares it. **Source**: PEP 503."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _offers_of(load: Callable[[], object], distribution: str, version: str) -> list[Offer]:
    """Load one plugin and call each of its hooks once. What it prints goes to stderr."""
    with redirect_stdout(sys.stderr), default_dtype(torch.get_default_dtype()):
        plugin = load()
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(hookspecs)
    manager.register(plugin)
    hooks = [caller.name for caller in manager.get_hookcallers(plugin) or []]
    valid = [hook for hook, _ in hookspecs.FAMILIES.values()]
    if unmarked := [hook for hook in valid if hook not in hooks and hasattr(plugin, hook)]:
        raise PluginError(f"{', '.join(unmarked)} must be decorated with @hookimpl of asda_core.contracts.")
    if not hooks:
        raise PluginError(f"it implements no hook; valid hooks: {', '.join(valid)}.")
    manager.check_pending()
    offers, any_returned = [], False
    for family, (hook, spec_class) in hookspecs.FAMILIES.items():
        for returned in getattr(manager.hook, hook)():  # pluggy omits None
            any_returned = True
            for spec in [returned] if isinstance(returned, Spec) else returned:
                if not isinstance(spec, spec_class):
                    raise PluginError(f"{hook} must return {spec_class.__name__} objects, not {spec!r}.")
                check_spec(spec, hook)
                offers.append(Offer(family, spec, distribution, version))
    if not any_returned:
        raise PluginError(f"{', '.join(hooks)} returned None; is a `return` missing?")
    return offers


def _without_clashes(candidates: list[Offer]) -> tuple[dict[tuple[str, str], Offer], list[Problem]]:
    """Reject names that are offered twice; asda's own are kept, of two third-party offers neither is."""
    by_name: dict[tuple[str, str], list[Offer]] = {}
    for offer in candidates:
        by_name.setdefault((offer.family, offer.spec.name), []).append(offer)
    accepted: dict[tuple[str, str], Offer] = {}
    problems = []
    for key, rivals in sorted(by_name.items()):
        own = [offer for offer in rivals if offer.distribution == OWN_DISTRIBUTION]
        if len(rivals) == 1 or own:
            accepted[key] = (own or rivals)[0]
        if len(rivals) > 1:
            owners = list(dict.fromkeys(f"{offer.distribution} {offer.version}" for offer in rivals))
            if own:
                advice = f"that of {OWN_DISTRIBUTION} is used."
            elif len(owners) > 1:
                advice = "none of them is used. Set ASDA_LOAD_PLUGINS to the distributions to load."
            else:
                advice = "none of them is used. Each needs a name of its own."
            times = "" if len(owners) > 1 else f"{len(rivals)} times "
            message = f"the {key[0]} name {key[1]!r} is offered {times}by {' and '.join(owners)}; {advice}"
            at_fault = dict.fromkeys(offer.distribution for offer in rivals if offer not in own[:1])
            problems += [Problem(key[1], distribution, message) for distribution in at_fault]
    return accepted, problems
