"""Tables in Markdown, in which names that users give are text."""

import re
from collections.abc import Iterable


def escaped(text: str) -> str:
    """Text in which Markdown finds no mark: a bar would be a column, a star italics."""
    marked = re.sub(r"([\\|*`\[\]~$])", r"\\\1", text.replace("\n", " ").replace("&", "&amp;")).replace("<", "&lt;")
    return re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", marked)


def table_row(cells: Iterable[str]) -> str:
    """A line of a table; the cells are Markdown."""
    return f"| {' | '.join(cells)} |"
