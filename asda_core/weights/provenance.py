"""The plugins that made a checkpoint, compared with those that are installed.

A third-party plugin may have other options, sizes or defaults by now, and a config holds only what was stated.
"""

import json
import sys
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

from packaging.version import Version

from asda_core.catalog import Catalog, PluginOrigins
from asda_core.errors import AsdaError
from asda_core.system.files import safetensors_metadata
from asda_core.system.paths import MODEL_FILE, is_third_party


def stored_plugins(step: Path | None) -> PluginOrigins | None:
    """Return the plugins that made the weights of a step; None without a step."""
    if step is None:
        return None
    plugins: PluginOrigins = json.loads(safetensors_metadata(step / MODEL_FILE)["plugins"])
    return plugins


def changed_plugins(before: PluginOrigins, now: PluginOrigins) -> str:
    """What differs between the plugins of a run before and now, as in "mixer mine of my-package: 1.0, now 2.0"."""
    changes = []
    for family, origin in now.items():
        old = before.get(family, origin)
        if old != origin:
            moved = "" if old["distribution"] == origin["distribution"] else f" of {origin['distribution']}"
            changes.append(
                f"{family} {old['name']} of {old['distribution']}: {old['version']}, now {origin['version']}{moved}"
            )
    return "; ".join(changes)


def version_mismatches(plugins: PluginOrigins, catalog: Catalog) -> list[str]:
    """One sentence for each third-party plugin that is installed in another version than the one of the weights."""
    sentences = []
    for family, stored in plugins.items():
        offer = catalog.offers.get((family, stored["name"]))
        if offer and is_third_party(offer.distribution) and offer.origin != stored:
            then, now = (f"{of['distribution']} {of['version']}" for of in (stored, offer.origin))
            sentences.append(f"It was made with the {family} {stored['name']!r} of {then}, and {now} is installed.")
    return sentences


def warn_version_mismatches(plugins: PluginOrigins, file: Path, catalog: Catalog) -> None:
    """Warn of `version_mismatches` on stderr: the output of the model may differ."""
    for sentence in version_mismatches(plugins, catalog):
        print(f"warning: {file} may give other outputs than before. {sentence}", file=sys.stderr)


def outdated_installs(distributions: Iterable[str]) -> list[str]:
    """One sentence for each editable installation (`pip install -e`) whose `pyproject.toml` states another version.

    Its code is that of the folder, but its version stays that of the last `pip install`.
    """
    sentences = []
    for name in distributions:
        try:
            metadata = distribution(name)
            origin = json.loads(metadata.read_text("direct_url.json") or "{}")
            if not origin["dir_info"]["editable"]:
                continue
            file = Path(url2pathname(urlparse(origin["url"]).path)) / "pyproject.toml"
            version = tomllib.loads(file.read_text(encoding="utf-8"))["project"]["version"]
            is_same = Version(version) == Version(metadata.version)  # installers normalise it: 1.0-rc1 is 1.0rc1
        except (PackageNotFoundError, OSError, ValueError, KeyError, TypeError):  # another kind, or a computed version
            continue
        if not is_same:
            sentences.append(
                f"{name} is installed as {metadata.version}, but {file} states {version}; run "
                "`pip install -e` again, so that results carry the new version."
            )
    return sentences


@contextmanager
def append_mismatches_to_errors(sentences: Sequence[str]) -> Iterator[None]:
    """Add to errors from the block which plugins have changed since."""
    try:
        yield
    except AsdaError as error:
        if not sentences:
            raise
        raise type(error)(" ".join([str(error), *sentences])) from None
