"""The contract suite for all installed plugins and for all combinations of them: `asda plugins --check`."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from tqdm import tqdm

from asda_core.catalog import Catalog
from asda_core.contract.front_ends import check_front_end
from asda_core.contract.mixers import check_mixer
from asda_core.contract.training import check_adapter, check_combination, check_objective
from asda_core.contracts import AdapterSpec

CONTRACT_COLUMN = "its contract"
Check = tuple[str, str, Callable[[], None]]
"""Row, column, and the check for that cell."""


def check_catalog(catalog: Catalog, progress: bool = True) -> tuple[str, list[str]]:
    """Run every check.

    Args:
        catalog: the plugins.
        progress: whether to show a progress bar.

    Returns:
        tables of the checks that pass (`ok`) and fail (`-`) with their number, and a line for each failure.
    """
    single, combined = list(_single(catalog)), list(_combined(catalog))
    failures: list[str] = []
    outcomes: dict[tuple[str, str], str] = {}
    for row, column, check in tqdm([*single, *combined], desc="checks", disable=not progress):
        try:
            check()
            outcomes[row, column] = "ok"
        except Exception as error:  # a third-party plugin may raise anything
            outcomes[row, column] = "-"
            failures.append(f"{row}, {column}: {type(error).__name__}: {error}")
    passed = f"{len(outcomes) - len(failures)} of {len(outcomes)} checks passed."
    return "\n\n".join([_table("plugin", single, outcomes), _table("mixer", combined, outcomes), passed]), failures


def _single(catalog: Catalog) -> Iterator[Check]:
    """Every plugin against the contract of its family; adapters on every mixer."""
    mixers: list[Any] = [offer.spec for offer in catalog.family_offers("mixer")]

    def on_every_mixer(spec: AdapterSpec[Any]) -> None:
        for mixer in mixers:
            try:
                check_adapter(spec, mixer)
            except Exception as error:  # the mixer's own row shows which of the two is at fault
                raise AssertionError(f"on the mixer {mixer.name}: {type(error).__name__}: {error}") from error

    checks: dict[str, Callable[[Any], None]] = {
        "mixer": check_mixer,
        "front end": check_front_end,
        "objective": check_objective,
        "adapter": on_every_mixer,
    }
    for family, check in checks.items():
        for offer in catalog.family_offers(family):
            yield f"{family} {offer.spec.name}", CONTRACT_COLUMN, partial(check, offer.spec)


def _combined(catalog: Catalog) -> Iterator[Check]:
    """Every mixer with every objective, each with no adapter and with every one."""
    for mixer in catalog.family_offers("mixer"):
        for objective in catalog.family_offers("objective"):
            for adapter in (None, *catalog.family_offers("adapter")):
                name = f"{objective.spec.name} + {adapter.spec.name if adapter else 'no adapter'}"
                specs: tuple[Any, ...] = (mixer.spec, None if adapter is None else adapter.spec, objective.spec)
                yield mixer.spec.name, name, partial(check_combination, *specs)


def _table(corner: str, checks: list[Check], outcomes: dict[tuple[str, str], str]) -> str:
    """Format rows and columns as text, transposed if there are more columns than rows."""
    rows = list(dict.fromkeys(row for row, _, _ in checks))
    columns = list(dict.fromkeys(column for _, column, _ in checks))
    if len(columns) > len(rows):
        cells = {(column, row): value for (row, column), value in outcomes.items()}
        corner, rows, columns = "objective + adapter", columns, rows
    else:
        cells = outcomes
    lines = [[corner, *columns], *([row, *(cells[row, column] for column in columns)] for row in rows)]
    widths = [max(len(line[place]) for line in lines) for place in range(len(columns) + 1)]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )
