"""`asda new-plugin`: write a small package that offers one plugin and passes the contract of its family unchanged.

The files are made from `asda_core/templates`, where `$name` and similar placeholders are filled in.
"""

import argparse
import keyword
import re
import shlex
from dataclasses import dataclass
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from string import Template

from asda_core.catalog import Catalog, installed_catalog
from asda_core.errors import AsdaError, PluginError
from asda_core.hookspecs import FAMILIES
from asda_core.settings.strict_yaml import parse_value
from asda_core.system.files import write_text

NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
"""Valid as an identifier, as a name in YAML, and after `asda-` as the name of a distribution."""


@dataclass(frozen=True)
class FamilyTemplate:
    """What differs between families apart from the module itself.

    Attributes:
        check: the function of `asda_core.testing` that checks the contract.
        options: arguments of a second check, for options other than the defaults.
        use: how the plugin is used, for the README of its package.
    """

    check: str
    options: str
    use: str


PRETRAIN_USAGE = (
    "Use it: `asda pretrain asda_tiny --data AUDIO --set {}=$name`, where AUDIO is a folder of audio files."
)
FAMILY_TEMPLATES = {
    "mixer": FamilyTemplate("check_mixer", "temperature=0.1", PRETRAIN_USAGE.format("encoder.mixer")),
    "front end": FamilyTemplate("check_front_end", "num_bins=64", PRETRAIN_USAGE.format("front_end")),
    "objective": FamilyTemplate("check_objective", 'mask={"hidden_share": 0.5}', PRETRAIN_USAGE.format("objective")),
    "adapter": FamilyTemplate(
        "check_adapter",
        "first_layer=1",
        "Use it: `asda pretrain RUN --init RUN --data AUDIO --set adapter=$name` trains it beside the frozen encoder\n"
        "of a run RUN; `asda_core.adapting.attach(adapter, encoder)` does so in a program of your own.",
    ),
}
"""Family -> the texts to fill in for it."""


def run_new_plugin(parsed: argparse.Namespace) -> None:
    """`asda new-plugin`."""
    family = parsed.family.replace("-", " ")
    name = plugin_name(parsed.name)
    folder, written = write_plugin(family, name, parsed.into, installed_catalog())
    print(f"{folder} offers the {family} {name!r}:")
    for file in written:
        print(f"  {file}")
    print("Next, with the pip of this environment:")
    print(f"  cd {shlex.quote(str(folder))} && pip install -e '.[test]'")
    print("  pytest && asda plugins")


def plugin_name(text: str) -> str:
    """Return the name as it is written in configs, with `_` for `-`.

    Raises:
        PluginError: it is not valid for a plugin, its module and its distribution.
    """
    name = text.replace("-", "_")
    if not NAME.fullmatch(name):
        raise PluginError(
            f"{text!r} is not a valid plugin name: use lower-case letters and digits, starting with a letter, "
            "words joined by single - or _, as in my-linear."
        )
    if keyword.iskeyword(name):
        raise PluginError(f"{text!r} is not a valid plugin name: it is a Python keyword.")
    if parse_value(name) != name:
        raise PluginError(f"{text!r} is not a valid plugin name: YAML reads it as {parse_value(name)!r}.")
    return name


def write_plugin(family: str, name: str, into: Path, catalog: Catalog) -> tuple[Path, list[Path]]:
    """Write the package into `into/asda-NAME`; return the folder and its files.

    Args:
        family: a key of `FAMILY_TEMPLATES`.
        name: as returned by `plugin_name`.
        into: a folder; created if missing.
        catalog: the installed plugins, so that no name is taken twice.

    Raises:
        PluginError: the name is taken.
        AsdaError: the folder exists and is not empty.
        OSError: the package cannot be written.
    """
    module = f"asda_{name}"
    distribution = module.replace("_", "-")
    if existing := catalog.offers.get((family, name)):
        owner = f"{existing.distribution} {existing.version}"
        raise PluginError(f"the {family} name {name!r} is taken by {owner}. Choose another name.")
    if find_spec(module) is not None:
        raise PluginError(f"a module {module} is installed already, so {name!r} cannot be used. Choose another name.")
    folder = into / distribution
    if folder.is_dir() and any(folder.iterdir()):
        raise AsdaError(f"{folder} exists and is not empty; nothing was written.")
    folder.mkdir(parents=True, exist_ok=True)
    texts = FAMILY_TEMPLATES[family]
    fields = {
        "name": name,
        "Name": "".join(word.capitalize() for word in name.split("_")),
        "module": module,
        "distribution": distribution,
        "family": family,
        "hook": FAMILIES[family][0],
        "check": texts.check,
        "options": texts.options,
        "use": Template(texts.use).substitute(name=name),
    }
    sources = {
        "pyproject.toml": "pyproject.toml",
        f"{module}.py": f"{family.replace(' ', '_')}.py",
        f"test_{name}.py": "test.py",
        "README.md": "README.md",
    }
    written = []
    for target, source in sources.items():
        template = files("asda_core").joinpath("templates", f"{source}.template").read_text(encoding="utf-8")
        write_text(folder / target, Template(template).substitute(fields))
        written.append(folder / target)
    return folder, written
