"""Matplotlib figures as inline SVG: text stays text, and colours follow those of the page."""

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from io import StringIO

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

INK, FAINT, PAPER = "#010203", "#040506", "#070809"
"""Placeholders for the colours of the page: matplotlib cannot write `currentColor`."""
PAGE_COLOURS = {INK: "currentColor", FAINT: "var(--faint)", PAPER: "var(--paper)", "#0072b2": "var(--blue)"}
WIDE_INCHES = 8.4
"""Width of a chart before it is scaled to the page."""
MARGIN = 0.03
"""Margin below 0 and above 1 on a score axis."""
STYLE = {
    "svg.fonttype": "none", "svg.hashsalt": "asda", "text.parse_math": False, "axes.formatter.useoffset": False,
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": FAINT, "xtick.color": FAINT, "ytick.color": FAINT,
    "xtick.labelcolor": INK, "ytick.labelcolor": INK, "font.size": 9.0, "axes.titlesize": 10.0,
    "axes.titlelocation": "left", "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False,
    "figure.facecolor": "none", "axes.facecolor": "none", "savefig.facecolor": "none", "axes.axisbelow": True,
    "grid.color": FAINT, "grid.alpha": 0.35, "grid.linewidth": 0.6,
}  # fmt: skip


@dataclass(frozen=True)
class Chart:
    """A chart: its id, title, a caption on how to read it, and SVG to embed in HTML."""

    name: str
    title: str
    caption: str
    svg: str


def make_figure(height: float) -> Figure:
    """Return a figure `height` inches high with a canvas of its own, independent of pyplot."""
    new_figure = Figure(figsize=(WIDE_INCHES, height), layout="constrained")
    FigureCanvasAgg(new_figure)
    return new_figure


@contextmanager
def chart_style() -> Iterator[None]:
    """Use the charts' style whatever the user's matplotlib settings, which are restored afterwards."""
    with warnings.catch_warnings(), style.context(["default", STYLE]):
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # the page has more fonts than matplotlib
        yield


def limit_score_axis(axes: Axes, bounded: bool, vertical: bool = False) -> None:
    """Limit the axis to possible scores: intervals of few seeds may exceed 0 to 1 and would compress the rest."""
    if not bounded:
        return
    low, high = axes.get_ylim() if vertical else axes.get_xlim()
    (axes.set_ylim if vertical else axes.set_xlim)(max(low, -MARGIN), min(high, 1 + MARGIN))


def render_chart(name: str, title: str, caption: str, picture: Figure) -> Chart:
    """Render a figure as SVG, inside `chart_style`; the same figure always gives the same text."""
    text = StringIO()
    picture.savefig(text, format="svg", bbox_inches="tight", pad_inches=0.05, metadata={"Date": None})
    return Chart(name, title, caption, _for_page(text.getvalue(), name, title))


def _for_page(svg: str, name: str, title: str) -> str:
    """SVG to embed in HTML: no header or metadata, unique ids, the page's colours, short numbers."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", body, flags=re.S)
    referenced = set(re.findall(r'(?:href="|url\()#([^")]+)', body))
    body = re.sub(r' id="([^"]*)"', lambda match: f' id="{name}-{match[1]}"' if match[1] in referenced else "", body)
    body = re.sub(r'(xlink:href="|url\()#', lambda match: f"{match[1].removeprefix('xlink:')}#{name}-", body)
    body = re.sub(r"<[^>]+>", lambda tag: _short_tag(tag[0]), body)
    body = re.sub(r">\s+<", "><", body).replace("<g/>", "")
    size = re.search(r'viewBox="[^"]*"', body)
    head = f'<svg class="chart" {size[0] if size else ""} role="img" aria-labelledby="{name}-title">'
    return f'{head}<title id="{name}-title">{escape(title)}</title>{body[body.index(">") + 1 :].strip()}'


def _short_tag(text: str) -> str:
    """Rewrite a tag with two decimals and the page's colours and fonts; text between tags is never changed."""
    for stand_in, colour in PAGE_COLOURS.items():
        text = text.replace(stand_in, colour)
    text = re.sub(r" font-family: [^;]*;| transform=\"rotate\(-0 [^\"]*\"|(?<=\d)\n(?=[LzCMQ\"])", "", text)
    return re.sub(r"(\d\.\d\d)\d+", r"\1", text)
