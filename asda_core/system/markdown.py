"""Names given by users, escaped for files of text and for Markdown tables."""

import re
from collections.abc import Iterable, Sequence


def escape_surrogates(text: str) -> str:
    r"""Escape bytes of a file name that are not UTF-8, as `\udce9` for the byte e9: no encoding accepts them."""
    return text.encode(errors="backslashreplace").decode()


def escape_markdown(text: str) -> str:
    """Escape Markdown syntax in a text: a bar would start a column, an asterisk italics."""
    marked = re.sub(r"([\\|*`\[\]~$])", r"\\\1", text.replace("\n", " ").replace("&", "&amp;")).replace("<", "&lt;")
    return re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", marked)


def table_row(cells: Iterable[str]) -> str:
    """A line of a table; the cells are Markdown."""
    return f"| {' | '.join(cells)} |"


def table_lines(header: Sequence[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """The lines of a table; the cells are Markdown."""
    return [table_row(header), "|" + "---|" * len(header), *map(table_row, rows)]
