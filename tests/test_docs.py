"""The README runs, its table is that of the plugins, its commands parse, and every hook and key is documented."""

import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from asda_core import cli as core_cli
from asda_core import hookspecs
from asda_core.catalog import Catalog
from asda_core.config import PluginChoice, RunConfig
from asda_core.data.packing import CLIPPING_WARNING_PEAK
from asda_core.finetune.leakage import MAX_MARKED
from asda_core.finetune_config import FinetuneConfig
from asda_core.inference.clip_encoder import MAX_STEPS
from asda_core.inference.embedding import WHOLE_SECONDS
from asda_core.inference.reading_ahead import HELD_SAMPLES
from asda_core.labelled.source import SourceConfig
from asda_hear import cli as hear_cli
from asda_hear.ablation.settings import PlanConfig
from asda_hear.evaluate.task_checks import EvaluationConfig
from asda_hear.model import HearOptions

pytestmark = pytest.mark.docs

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
KEYS = (ROOT / "docs" / "configuration.md").read_text()
PLUGINS = (ROOT / "docs" / "plugins.md").read_text()
TABLE = re.compile(r"<!-- plugins:.*?-->\n(.*?)\n<!-- end of plugins -->", re.DOTALL)


DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\(([^)#:\s]*)(?:#([^)\s]+))?\)")
"""File and heading of a link within the project."""


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_python_of_the_readme_runs() -> None:
    assert blocks("python")
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), {})


def test_commands_parse() -> None:
    """Every `asda` and `asda-hear` command of the documents is one that the program takes."""
    parsers = {"asda": core_cli.make_parser(), "asda-hear": hear_cli.make_parser()}
    lines = [line for document in DOCUMENTS for block in blocks("bash", document.read_text()) for line in joined(block)]
    for config in (ROOT / "configs").rglob("*.yaml"):
        lines += [line.removeprefix("#") for line in config.read_text().splitlines() if line.startswith("#   ")]
    found = 0
    for line in lines:
        words = re.sub(r"^OMP_NUM_THREADS=\d+ ", "", re.split(r"#| [>|] ", line)[0].strip()).split()
        if words and words[0] in parsers:
            parsers[words[0]].parse_args(words[1:])
            found += 1
    assert found >= 10


def joined(block: str) -> list[str]:
    """Lines of a shell block, those that end in a backslash put together."""
    return block.replace("\\\n", " ").splitlines()


def plugin_table(catalog: Catalog) -> str:
    lines = ["| family | name | what | source |", "|---|---|---|---|"]
    for family in hookspecs.FAMILIES:
        specs = [offer.spec for offer in catalog.family_offers(family)]
        lines += [f"| {family} | `{spec.name}` | {spec.summary} | {spec.source} |" for spec in specs]
    return "\n".join(lines)


def test_plugin_table(catalog: Catalog) -> None:
    match = TABLE.search(PLUGINS)
    assert match is not None
    assert match.group(1) == plugin_table(catalog), f"the table must be:\n{plugin_table(catalog)}"


def test_every_hook_is_documented() -> None:
    for hook, _ in hookspecs.FAMILIES.values():
        assert f"`{hook}`" in README
        assert getattr(hookspecs, hook).__doc__


def keys(cls: type, prefix: str = "") -> list[tuple[str, Any]]:
    """(dotted key, default) of a dataclass and those below it."""
    found = []
    hints = get_type_hints(cls)
    for item in fields(cls):
        hint = hints[item.name]
        if is_dataclass(hint) and hint is not PluginChoice:
            found += keys(hint, f"{prefix}{item.name}.")  # type: ignore[arg-type]
        else:
            found.append((prefix + item.name, item))
    return found


@pytest.mark.parametrize(
    "cls",
    [RunConfig, FinetuneConfig, SourceConfig, PlanConfig, HearOptions, EvaluationConfig],
    ids=lambda cls: cls.__name__,
)
def test_every_key_is_documented(cls: type) -> None:
    for key, _ in keys(cls):
        assert f"| `{key}` |" in KEYS, key


def test_every_option_of_a_plugin_is_documented(catalog: Catalog) -> None:
    for offer in catalog.offers.values():
        for key, _ in keys(offer.spec.config):
            assert re.search(rf"### {offer.spec.name}\n(?:(?!###).)*\| `{re.escape(key)}` \|", KEYS, re.DOTALL), key


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_links_lead_somewhere(document: Path) -> None:
    for file, heading in LINK.findall(re.sub(r"```.*?```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL)):
        place = document.parent / file if file else document
        assert place.exists(), file
        assert not heading or heading in anchors(place.read_text()), f"{file}#{heading}"


def anchors(text: str) -> set[str]:
    """Of the headings of a document, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_results_name_their_command() -> None:
    results = (ROOT / "docs" / "results.md").read_text()
    for part in results.split("\n## ")[1:]:
        assert re.search(r"asda-hear ablate|asda finetune|python benchmarks/", part), part.splitlines()[0]
    assert "@" not in re.sub(r"`[^`]*`", "", README), "a placeholder is left"


@pytest.mark.parametrize(
    ("document", "sentence", "number"),
    [
        ("embedding", r"Clips of up to (\S+) time steps", MAX_STEPS),
        ("embedding", r"A file of more than (\S+) s is never in memory as a whole", WHOLE_SECONDS),
        ("embedding", r"At most (\S+) minutes of audio at 16 kHz are held back", round(HELD_SAMPLES / 16_000 / 60, 1)),
        ("data", r"beyond (\S+)\. `--keep` takes", CLIPPING_WARNING_PEAK),
        ("finetuning", r"fingerprints \(first and last bytes\) of up to (\S+) training clips", MAX_MARKED),
    ],
)
def test_numbers_are_those_of_the_code(document: str, sentence: str, number: float) -> None:
    (found,) = re.findall(sentence, (ROOT / "docs" / f"{document}.md").read_text())
    assert float(found.replace(",", "")) == number
