"""The table of a plan in LaTeX, narrow enough for a page."""

import re
from dataclasses import replace

from asda_hear.reporting.notes import ALL_COSTS_NOTE, costs_note
from asda_hear.reporting.summary import Summary, varies
from asda_hear.reporting.tables import DIFFERENCE_MARK, P_VALUE_MARK, Column, ColumnKind, TableCell, make_grid

LATEX_ESCAPES = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "[": "{[}", "]": "{]}", "*": "{*}",  # after `\\` they would be parsed as its arguments
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': "''", "±": r"$\pm$", "×": r"$\times$", "−": r"$-$", "·": r"$\cdot$",  # noqa: RUF001
    "≤": r"$\le$", "≥": r"$\ge$", "→": r"$\to$", "↓": r"$\downarrow$", "†": r"$^{\dagger}$", "‡": r"$^{\ddagger}$",
    "–": "--", "—": "---", "…": r"\ldots{}", "Δ": r"$\Delta$", "α": r"$\alpha$", "β": r"$\beta$", "γ": r"$\gamma$",  # noqa: RUF001
    "δ": r"$\delta$", "ε": r"$\varepsilon$", "λ": r"$\lambda$", "μ": r"$\mu$", "π": r"$\pi$", "σ": r"$\sigma$",  # noqa: RUF001
    "τ": r"$\tau$", "ω": r"$\omega$", "\n": " ",
}  # fmt: skip
"""Character -> its LaTeX source, without further packages."""
DIFFERENCE_NOTE, MARKED_NOTE = "Δ: difference", "Marks at scores refer to their difference"
"""How the note on differences begins, and its replacement: in LaTeX they have no column, and scores carry the marks."""
CODE = re.compile("`([^`]*)`")


def to_latex(summary: Summary) -> str:
    r"""Return the table as a LaTeX float that needs only `\usepackage{booktabs}`.

    Differences from the reference are shown by a mark at the score if `is_significant`; costs that are the same for all
    lines are omitted. Characters other than Latin letters and those in `LATEX_ESCAPES` are kept as they are and need
    XeLaTeX or LuaLaTeX.
    """
    grid = make_grid(summary)
    columns = narrow(grid.columns)
    rows = [tuple(column.cells[row] for column in columns) for row in range(len(grid.baselines))]
    sides = "".join("l" if column.kind == "label" else "r" for column in columns)
    body = [" & ".join(escape_latex(column.heading) for column in columns) + r" \\", r"\midrule"]
    after_baseline = False
    for row, baseline in zip(rows, grid.baselines, strict=True):
        if baseline and not after_baseline and body[-1] != r"\midrule":
            body.append(r"\midrule")
        after_baseline = baseline
        texts = [_latex_cell(cell, column.kind) for cell, column in zip(row, columns, strict=True)]
        body.append(" & ".join([rf"\textit{{{texts[0]}}}", *texts[1:]] if baseline else texts) + r" \\")
    label = re.sub(r"[^a-z0-9]+", "-", summary.title.lower()).strip("-") or "ablation"
    top = [r"\begin{table}[tbp]", r"\centering", rf"\caption{{{escape_latex(summary.question or summary.title)}}}",
           rf"\label{{tab:{label}}}", r"\small", r"\setlength{\tabcolsep}{4pt}", rf"\begin{{tabular}}{{{sides}}}",
           r"\toprule"]  # fmt: skip
    costs = costs_note({column.heading for column in columns if column.kind == "cost"})
    replaced = (note.replace(DIFFERENCE_NOTE, MARKED_NOTE).replace(ALL_COSTS_NOTE, costs) for note in grid.footnotes)
    footer = [CODE.sub(r"\\texttt{\1}", escape_latex(note)) for note in replaced if note]
    notes = (
        [r"\par\smallskip", r"\begin{minipage}{\linewidth}\footnotesize", *footer, r"\end{minipage}"] if footer else []
    )
    return "\n".join([*top, *body, r"\bottomrule", r"\end{tabular}", *notes, r"\end{table}", ""])


def escape_latex(text: str) -> str:
    """Escape text for LaTeX."""
    return "".join(LATEX_ESCAPES.get(letter, letter) for letter in text)


def narrow(columns: tuple[Column, ...]) -> list[Column]:
    """Drop difference columns, moving their marks to the scores before them, and cost columns that hardly differ."""
    kept: list[Column] = []
    for column in columns:
        if column.kind == "difference":
            scores = zip(kept[-1].cells, column.cells, strict=True)
            kept[-1] = replace(
                kept[-1], cells=tuple(replace(cell, mark=difference.mark) for cell, difference in scores)
            )
        elif column.kind != "cost" or varies([cell.value for cell in column.cells if cell.value]):
            kept.append(column)
    return kept


def _latex_cell(cell: TableCell, kind: ColumnKind) -> str:
    if kind in ("label", "count") or not cell.text:
        return escape_latex(cell.text)
    value = cell.text.replace(",", "{,}")
    value = rf"\mathbf{{{value}}}" if cell.best else value
    half = r"\,{\scriptstyle\pm " + cell.half.replace(",", "{,}") + "}" if cell.half else ""
    mark = {DIFFERENCE_MARK: r"^{\dagger}", P_VALUE_MARK: r"^{\ddagger}", "": ""}[cell.mark]
    return f"${value}{half}{mark}$"
