"""The table of a plan as Markdown and LaTeX, and its scores in long form."""

import csv
import dataclasses
import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from asda_core.errors import ConfigError
from asda_core.statistics import mean_interval
from asda_hear.ablation.noise_metric import NOISE_METRIC
from asda_hear.reporting.comparing import Difference, Interval, compare
from asda_hear.reporting.latex import escape_latex, narrow, to_latex
from asda_hear.reporting.notes import ALL_COSTS_NOTE, costs_note
from asda_hear.reporting.summary import Effect, Summary, SummaryLine, TaskResult
from asda_hear.reporting.tables import (
    excludes_zero,
    format_number,
    is_significant,
    make_grid,
    p_text,
    score_cell,
    short_names,
    to_markdown,
)
from asda_hear.reporting.tidy import tidy_rows, write_tidy

NASTY = '50 % of a|b & c_d #1 {x} $y$ ~ ^ \\ <script>alert(1)</script> *s* "q"'
APART = Difference(0.1, Interval(0.05, 0.15), 0.03, 5, Interval(0.02, 0.18))
ACROSS = Difference(-0.05, Interval(-0.1, 0.02), 0.4, 5, None)


def result(mean: float, best: bool = False, difference: Difference | None = None, seeds: int = 2) -> TaskResult:
    """Scores of `seeds` seeds and two folds around a mean."""
    scores = {str(seed): (mean - 0.01 * (seed + 1), mean + 0.02 * (seed + 1)) for seed in range(seeds)}
    return TaskResult(scores, mean_interval([sum(folds) / 2 for folds in scores.values()]), best, difference)


def line(
    labels: dict[str, str], results: dict[str, TaskResult], parameters: float = 1000.0, p_value: float | None = None
) -> SummaryLine:
    name = "-".join(labels.values())
    costs = {"parameters": parameters, "trained": parameters, "CPU s": parameters / 100}
    return SummaryLine(labels, "", results, costs, {"s(m)": 41.5}, (f"{name}0", f"{name}1"), (0, 1), p_value)


def summary(label: str = "b", seeds: int = 2) -> Summary:
    """Two axes, two tasks (less is better on the second), a baseline that is better, a task that is not done."""
    one, two = "esc10-v1.0.0-full", "noise-v1-full"
    first = line({"mixer": "a", "lambda": "0"}, {one: result(0.5, seeds=seeds), two: result(0.3, seeds=seeds)})
    lines = (
        first,
        line({"mixer": "a", "lambda": "0.1"}, {one: result(0.6, False, APART, seeds)}, 1500, 0.04),
        line({"mixer": label, "lambda": "0"}, {one: result(math.nan, seeds=seeds)}, 2000),
        line({"mixer": label, "lambda": "0.1"}, {one: result(0.45, False, ACROSS, seeds),
             two: result(0.2, True, ACROSS, seeds)}, 9000, 0.2),
        SummaryLine({}, "log-mel", {one: TaskResult({"": (0.7,)}, mean_interval([0.7]), True)}, {"parameters": 0.0}),
    )  # fmt: skip
    axes = {"mixer": ("a", label), "lambda": ("0", "0.1")}
    effects = tuple(
        Effect(axis, text, one, result(0.5 + 0.1 * place, seeds=seeds).estimate, APART if place else None)
        for axis, labels in axes.items()
        for place, text in enumerate(labels)
    )
    tasks = {one: "top1_acc", two: NOISE_METRIC}
    return Summary(
        "my plan", "Does it help?", tasks, frozenset({two}), axes, lines, first, effects, ("A note.",), ("b: gone",)
    )


def columns_of(row: str) -> int:
    """Columns of a row of Markdown, whose escaped bars are text."""
    return len(re.findall(r"(?<!\\)\|", row)) - 1


@pytest.mark.parametrize("label", ["b", NASTY])
def test_markdown_has_the_same_columns_in_every_line(label: str) -> None:
    rows = [row for row in to_markdown(summary(label)).splitlines() if row.startswith("|")]
    assert len(rows) == 2 + 5
    assert {columns_of(row) for row in rows} == {len(make_grid(summary(label)).columns)}
    assert "<script" not in "".join(rows)


def test_markdown_says_what_the_numbers_say() -> None:
    text = to_markdown(summary())
    assert "## Does it help?" in text
    assert "| mixer | lambda | seeds | esc10 (top1_acc) | Δ esc10 | noise ↓ |" in text
    assert "| s(m) | parameters | CPU s |" in text
    assert "trained" not in text
    assert "+0.100 [+0.050, +0.150] † |" in text
    assert "-0.050 [-0.100, +0.020] |" in text
    assert "| *log-mel* |  | 1 | **0.700** |" in text
    assert "| 0.04 ‡ | 41.5 | 1,500 |" in text
    assert "| 0.2 | 41.5 | " in text
    assert "esc10 is esc10-v1.0.0-full" in text
    assert "Not in the table: b: gone." in text
    assert "with 5 seeds such intervals are too narrow" in text
    assert "| nan |" in text


def test_commands_in_markdown_can_be_pasted() -> None:
    """Text is escaped; code in backticks is shown as it is."""
    note = "Made by a|b_: `asda-hear ablate 'plans/a&b [x]_ $1.yaml'`."
    text = to_markdown(dataclasses.replace(summary(), notes=(note,)))
    assert r"Made by a\|b\_: `asda-hear ablate 'plans/a&b [x]_ $1.yaml'`." in text


def test_one_seed_has_no_intervals() -> None:
    assert "±" not in to_markdown(summary(seeds=1))
    assert "scriptstyle\\pm" not in to_latex(summary(seeds=1))


@pytest.mark.parametrize(("pairs", "over"), [(1, "over folds;"), (2, "over seeds and folds;")])
def test_too_few_seeds_mark_nothing(pairs: int, over: str) -> None:
    """The legend explains no mark that cannot be there."""
    whole = summary(seeds=pairs)
    apart = dataclasses.replace(APART, pairs=pairs)
    lines = tuple(
        dataclasses.replace(
            each,
            results={
                task: dataclasses.replace(found, difference=found.difference and apart)
                for task, found in each.results.items()
            },
        )
        for each in whole.lines
    )
    text = to_markdown(dataclasses.replace(whole, lines=lines))
    assert "+0.100 [+0.050, +0.150] |" in text
    assert f"95 % interval {over} none is marked below 3 seeds, and with {pairs} seed" in text
    assert "†" not in text
    assert "†" in to_markdown(summary())


@pytest.mark.parametrize(("p_value", "marked"), [(0.049, True), (0.05, False), (math.nan, False)])
def test_a_mark_needs_the_test_too(p_value: float, marked: bool) -> None:
    """Of three seeds the bootstrap alone calls a quarter of equal models different; without variance there is no p."""
    assert is_significant(dataclasses.replace(APART, p_value=p_value)) == marked
    assert not is_significant(dataclasses.replace(ACROSS, p_value=0.01))
    assert not is_significant(None)


@pytest.mark.parametrize(("p_folds", "marked"), [(0.049, True), (0.05, False), (math.nan, True)])
def test_a_mark_needs_the_folds_too(p_folds: float, marked: bool) -> None:
    """Where there are several; with one fold there is no test over them."""
    assert is_significant(dataclasses.replace(APART, p_folds=p_folds)) == marked
    assert not is_significant(dataclasses.replace(APART, p_value=0.3, p_folds=p_folds))


def test_marks_are_rarely_wrong_of_folds() -> None:
    """Of models that differ by fold alone, with 5 seeds and 5 folds; the bootstrap and seeds mark one in seven."""
    generator = np.random.default_rng(0)
    found = []
    for _ in range(100):
        scores = generator.normal(size=5) + 0.3 * generator.normal(size=(5, 1)) + 0.3 * generator.normal(size=(5, 5))
        found.append(compare({str(seed): tuple(row) for seed, row in enumerate(scores)}, {"": (0.0,) * 5}))
    assert sum(excludes_zero(each) and each is not None and each.p_value < 0.05 for each in found) > 10
    assert sum(map(is_significant, found)) < 10


def test_marks_are_rarely_wrong() -> None:
    """Of models that do not differ, with 3 seeds and one fold."""
    generator = np.random.default_rng(0)
    found = []
    for _ in range(200):
        ours, theirs = ({str(s): (float(v),) for s, v in enumerate(generator.normal(size=3))} for _ in range(2))
        found.append(compare(ours, theirs))
    assert sum(map(excludes_zero, found)) > 30
    assert sum(map(is_significant, found)) < 20


def test_a_mean_and_its_half_have_as_many_digits() -> None:
    found = [score_cell(mean_interval(values)) for values in ([0.5, 0.5], [50.0, 51.0], [2e3, 2e3], [math.nan] * 2)]
    texts = [(cell.text, cell.half) for cell in found]
    assert texts == [("0.500", "0.000"), ("50.5", "6.4"), ("2,000", "0"), ("nan", "")]
    assert score_cell(mean_interval([0.5])).half == ""


def test_trained_parameters_stand_where_they_differ() -> None:
    changed = summary().lines[0].costs | {"trained": 10.0}
    full = summary()
    first = SummaryLine(full.lines[0].labels, "", full.lines[0].results, changed)
    adapted = Summary("t", "", full.tasks, frozenset(), full.axes, (first, *full.lines[1:]), None, (), ())
    assert "trained" in [column.heading for column in make_grid(adapted).columns]


def test_latex_takes_no_label_for_an_argument() -> None:
    r"""`[` and `*` behind `\\\\` or `\midrule`, also on the next line, would be."""
    text = to_latex(summary("[2, 4]*"))
    assert not re.search(r"(\\\\|midrule)\s*[\[*]", text)
    assert "{[}2, 4{]}{*}" in text


@pytest.mark.parametrize("label", ["b", NASTY])
def test_latex_is_balanced(label: str) -> None:
    text = to_latex(summary(label))
    plain = re.sub(r"\\[\\{}&%$#_]", "", text)
    assert plain.count("{") == plain.count("}")
    assert plain.count("$") % 2 == 0
    table = text[text.index(r"\toprule") : text.index(r"\bottomrule")]
    rows = [row for row in table.splitlines() if row.endswith(r"\\")]
    assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {len(narrow(make_grid(summary(label)).columns)) - 1}
    assert len(rows) == 1 + 5
    sides = re.search(r"\\begin{tabular}{(\w+)}", text)
    assert sides is not None
    assert len(sides[1]) == len(narrow(make_grid(summary(label)).columns))
    assert table.count(r"\midrule") == 2
    for name in ("table", "tabular", "minipage"):
        assert text.count(rf"\begin{{{name}}}") == text.count(rf"\end{{{name}}}") == 1
    assert not re.search(r"(?<!\\)[#%]", text)
    assert r"$\mathbf{0.700}$" in text
    assert r"\label{tab:my-plan}" in text
    assert text.isascii()


def test_latex_is_narrow() -> None:
    """Marks of differences move to the scores; costs that hardly differ go."""
    table = to_latex(summary())
    heads = table[table.index(r"\toprule") :].splitlines()[1]
    assert "Delta" not in heads
    assert r"$0.607\,{\scriptstyle\pm 0.032}^{\dagger}$" in table
    assert "parameters" in heads
    same = Summary(
        "t", "", {}, frozenset(), {"a": ("x",)}, (line({"a": "x"}, {}), line({"a": "x"}, {}, 1001)), None, (), ()
    )
    assert "parameters" not in to_latex(same)


def test_the_footnote_of_costs_is_on_the_columns_of_the_table() -> None:
    """In LaTeX some are left out."""
    lines = tuple(
        dataclasses.replace(line({"a": label}, {}), costs={"parameters": 1000.0, "GFLOPs per clip": 1.0, "CPU s": cost})
        for label, cost in (("x", 1.0), ("y", 9.0))
    )
    axes = {"a": ("x", "y")}
    plan = Summary("t", "", {}, frozenset(), axes, lines, None, (), (ALL_COSTS_NOTE,))
    assert "Costs are medians: parameters and operations of the encoder, time and memory of" in to_markdown(plan)
    assert "Costs are medians: time of a whole training with its audio; the first" in to_latex(plan)
    same = dataclasses.replace(plan, lines=(lines[0], dataclasses.replace(lines[0], labels={"a": "y"})))
    assert "Costs" not in to_latex(same)
    assert costs_note({"GFLOPs per clip"}) == "Costs are medians: operations of the encoder."


def test_latex_escapes_every_letter_with_a_meaning() -> None:
    assert escape_latex("a_b & 5 % #{}") == r"a\_b \& 5 \% \#\{\}"
    assert escape_latex("\\x~^") == r"\textbackslash{}x\textasciitilde{}\textasciicircum{}"
    assert escape_latex("λ ± Δ$") == r"$\lambda$ $\pm$ $\Delta$\$"


@pytest.mark.parametrize("lines", [0, 1])
def test_a_plan_without_axes_or_lines(lines: int) -> None:
    baseline = SummaryLine({}, "mel", {"a": TaskResult({"": (0.5,)}, mean_interval([0.5]), True)}, {})
    empty = Summary("t", "", {"a": "mAP"} if lines else {}, frozenset(), {}, (baseline,) * lines, None, (), ())
    assert len([row for row in to_markdown(empty).splitlines() if row.startswith("|")]) == 2 + lines
    assert to_latex(empty).count(r"\\") == 1 + lines


def test_numbers_have_few_digits() -> None:
    assert [format_number(value) for value in (0.12345, 41.55, 12345.6, 0.0, math.nan)] == [
        "0.123",
        "41.5",
        "12,346",
        "0",
        "nan",
    ]
    assert [p_text(value) for value in (0.0001, 0.0123, None, math.nan)] == ["< 0.001", "0.012", "", ""]
    assert short_names(["a-v1-5h", "a-v1-full", "b-v2-full"]) == {
        "a-v1-5h": "a-v1-5h",
        "a-v1-full": "a-v1-full",
        "b-v2-full": "b",
    }


ROWS = [
    {"model": "mel", "mixer": "", "seed": "", "cell": "", "parameters": 0, "task": "a", "metric": "m", "score": 0.5,
     "folds": "0.4 0.6", "gflops": ""},
    {"model": "", "mixer": "x", "seed": "0", "cell": "c1", "parameters": "1000", "task": "a", "metric": "m",
     "score": "0.2", "folds": "0.100000 0.300000", "gflops": "0.25", "pretrain_cpu_seconds": "12.5"},
    {"model": "", "mixer": "x", "seed": 0, "cell": "c1", "parameters": 1000, "task": "b", "metric": "m",
     "score": 0.7, "folds": "0.7", "gflops": 0.25, "pretrain_cpu_seconds": 12.5},
]  # fmt: skip


def test_tidy_rows_hold_every_fold_once() -> None:
    tidy = tidy_rows(ROWS)
    assert len(tidy) == 2 + 2 + 1
    assert sum(row["score"] for row in tidy) == pytest.approx(0.4 + 0.6 + 0.1 + 0.3 + 0.7)
    assert len({tuple(row) for row in tidy}) == 1
    assert [row["fold"] for row in tidy] == [0, 1, 0, 1, 0]
    assert tidy[2] | {"mixer": "x", "seed": 0, "cell": "c1", "task": "a", "score": 0.1, "gflops": 0.25} == tidy[2]
    assert (tidy[0]["model"], tidy[0]["seed"], tidy[0]["gflops"]) == ("mel", None, None)
    assert tidy_rows([]) == []


def test_tidy_rows_say_which_row_is_wrong() -> None:
    with pytest.raises(ConfigError, match=r"row 2 \(cell 'c1', task 'a'\).*'x'"):
        tidy_rows([ROWS[0], ROWS[1] | {"folds": "0.1 x"}])


def test_parquet_of_an_earlier_call_does_not_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "scores.parquet").write_bytes(b"other rows")
    write_tidy([], tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["scores.csv"]


@pytest.mark.parametrize("rows", [ROWS, []])
def test_parquet_equals_csv(tmp_path: Path, rows: list[dict[str, object]]) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    write_tidy(rows, tmp_path / "new")
    with (tmp_path / "new" / "scores.csv").open(newline="") as file:
        written = list(csv.DictReader(file))
    stored = parquet.read_table(tmp_path / "new" / "scores.parquet").to_pylist()
    assert stored == tidy_rows(rows)
    assert written == [{name: "" if value is None else str(value) for name, value in row.items()} for row in stored]


def test_without_pyarrow_there_is_csv_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    write_tidy(ROWS, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["scores.csv"]
    assert capsys.readouterr() == ("", "")
