"""Markdown tables in which names given by users are escaped."""

import re
from collections.abc import Iterable


def escape_markdown(text: str) -> str:
    """Escape Markdown syntax in a text: a bar would start a column, an asterisk italics."""
    marked = re.sub(r"([\\|*`\[\]~$])", r"\\\1", text.replace("\n", " ").replace("&", "&amp;")).replace("<", "&lt;")
    return re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", marked)


def table_row(cells: Iterable[str]) -> str:
    """A line of a table; the cells are Markdown."""
    return f"| {' | '.join(cells)} |"
