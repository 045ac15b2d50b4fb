"""The page of a plan: whole HTML, nothing from outside, no label taken for code, the numbers of the table."""

import dataclasses
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import matplotlib
import pytest

from asda_core.statistics import mean_interval
from asda_hear.ablation.noise_metric import NOISE_METRIC
from asda_hear.reporting.charts import cost_charts, effect_charts, score_charts
from asda_hear.reporting.comparing import UNKNOWN
from asda_hear.reporting.conclusion import conclusion
from asda_hear.reporting.line_styles import MAX_NAMED_LINES, line_styles
from asda_hear.reporting.page import Failure, PageDetails, write_page
from asda_hear.reporting.report import distinct_facts
from asda_hear.reporting.summary import Effect, Summary, SummaryLine, TaskResult
from asda_hear.reporting.tables import make_grid
from tests.hear.test_tables import APART, NASTY, result, summary

VOID = {"meta", "link", "br", "hr", "img", "input"}


class Page(HTMLParser):
    """Collects what a test asks for, and fails on a tag that is not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def values(self, attribute: str) -> list[str]:
        """Of every tag that has the attribute."""
        return [attrs[attribute] or "" for _, attrs in self.tags if attribute in attrs]

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


def details(shown: Summary) -> PageDetails:
    """Everything that a page can show, with code in every text."""
    cells = {cell: seed for line in shown.lines for cell, seed in zip(line.cells, line.seeds, strict=True)}
    curve = {"step": [1, 20, 40], "loss": [60.0, 20.0, 5.0]}
    return PageDetails(
        curves={line.name: {"0": curve, "1": {**curve, "loss": [50.0, math.nan, 4.0]}} for line in shown.lines[:4]},
        configs={cell: f"model: {NASTY}\nseed: {seed}\nsteps: 40\n" for cell, seed in cells.items()}
        | {"lost": "seed: 9"},
        plan=f"question: {NASTY}",
        environment={"torch": "2.11", "note": NASTY, "commit": "abc"},
        commit="abc123",
        command=f"asda-hear ablate {NASTY}",
        cell_commands={cell: f"asda-hear ablate plan.yaml --cell {cell}" for cell in cells},
        failures=(Failure("lost", f"ValueError: {NASTY}", f"Traceback\n{NASTY}"),),
        created="2026-11-21 01:00 UTC",
        wall_seconds=6300.0,
        cpu_seconds=59.0,
    )


def written(shown: Summary, folder: Path, more: PageDetails | None = None) -> str:
    write_page(shown, details(shown) if more is None else more, folder / "new" / "page.html")
    return (folder / "new" / "page.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("label", ["b", NASTY])
def test_the_page_is_whole_and_needs_nothing_else(tmp_path: Path, label: str) -> None:
    text = written(dataclasses.replace(summary(label), question=f"Why {label}?"), tmp_path)
    page = Page(text)
    assert page.count("script") == 1
    assert text.count("<script") == 1
    for attribute in ("src", "href", "xlink:href", "srcset"):
        assert all(value.startswith("#") for value in page.values(attribute)), attribute
    assert "url(http" not in text
    assert "@import" not in text
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    assert {value[1:] for value in page.values("href")} <= set(ids)
    assert set(re.findall(r"url\(#([^)]+)\)", text)) <= set(ids)
    assert {name for value in page.values("aria-labelledby") for name in value.split()} <= set(ids)
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert all("scope" in attrs for tag, attrs in page.tags if tag == "th")


def test_the_numbers_of_the_table_are_in_the_page(tmp_path: Path) -> None:
    text = re.sub("<[^>]+>", "", written(summary(), tmp_path)).replace("−", "-")  # noqa: RUF001
    for row in make_grid(summary()).rows:
        for cell in row:
            assert cell.text in text
            assert cell.half in text
            assert ", ".join(cell.bounds) in text
    assert "[+0.020, +0.180]" in text  # over clips
    assert "1 h 45 min of training, 59 s of CPU time" in text


def test_numbers_are_sorted_by_their_value(tmp_path: Path) -> None:
    """Not by how they are written: "< 0.001" is small, and a minus of typography no digit."""
    shown = summary()
    lines = tuple(
        dataclasses.replace(line, aggregates={"z": -0.5 + place, "mean": 0.5}, p_value=0.0001)
        for place, line in enumerate(shown.lines)
    )
    text = written(dataclasses.replace(shown, lines=lines), tmp_path)
    assert 'data-value="-0.5">−0.500</td>' in text  # noqa: RUF001
    assert 'data-value="0.0001">&lt; 0.001' in text
    comparison = text[text.index('<h2 id="comparison">') : text.index('<h2 id="aggregates">')]
    cells = re.findall(r'<td class="number"([^>]*)>([^<]*)', comparison)
    assert len(cells) > 10
    assert all("data-value" in attributes for attributes, inside in cells if inside.strip())


def test_there_is_a_figure_for_each_axis_task_and_cost(tmp_path: Path) -> None:
    page = Page(written(summary(), tmp_path))
    ids = page.values("id")
    for name in ("effect-0", "effect-1", "scores-0", "scores-1", "cost-CPU-s", "cost-parameters", "curves"):
        assert f"{name}-title" in ids
    assert page.count("svg") == 7
    assert {
        "table",
        "effects",
        "scores",
        "costs",
        "training",
        "comparison",
        "aggregates",
        "failed",
        "reproduce",
    } <= set(ids)


def test_a_line_that_misses_a_task_is_in_the_legend(tmp_path: Path) -> None:
    other = "noise-v1-full"
    shown = summary()
    lines = (dataclasses.replace(shown.lines[0], results={other: shown.lines[0].results[other]}), *shown.lines[1:])
    text = written(dataclasses.replace(shown, lines=lines), tmp_path)
    figure = text[text.index('id="cost-CPU-s-title"') :]
    assert ">a · 0<" in figure[: figure.index("</svg>")]


def test_every_fold_is_a_dot(tmp_path: Path) -> None:
    text = written(summary(), tmp_path)
    figure = text[text.index('id="scores-1-title"') :]
    figure = figure[: figure.index("</svg>")]
    assert figure.count("fill-opacity: 0; stroke: var(--blue)") >= 2 * 2 * 2  # lines, seeds, folds
    assert "#010203" not in text


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    first = written(summary(NASTY), tmp_path / "a")
    matplotlib.rcParams["font.size"] = 30
    try:
        assert written(summary(NASTY), tmp_path / "b") == first
        assert matplotlib.rcParams["font.size"] == 30
    finally:
        matplotlib.rcParams["font.size"] = matplotlib.rcParamsDefault["font.size"]


def test_configs_stand_once_per_line(tmp_path: Path) -> None:
    text = written(summary(), tmp_path)
    assert text.count("steps: 40") == 4
    assert text.count("seed: 0  # 1 in the other cells") == 4
    assert text.count("--cell a-00") == 1
    assert "not in the table" in text


def test_the_answer_says_no_more_than_the_numbers() -> None:
    shown = summary()
    lines = [dataclasses.replace(each, seeds=tuple(range(APART.pairs))) for each in shown.lines]
    text = " ".join(conclusion(dataclasses.replace(shown, lines=tuple(lines))))
    assert "esc10: mixer a, lambda 0.1 has the best mean of 4" in text
    assert "+0.100 [+0.050, +0.150] from the reference, which excludes 0" in text
    assert "but the baseline log-mel (0.700) is better" in text
    assert "noise: mixer b, lambda 0.1 has the best mean of 2" in text  # less is better
    assert "which includes 0" in text
    assert "With 5 seeds" in text
    assert "too narrow" in text
    doubtful = dataclasses.replace(APART, p_value=0.3)
    lines = list(summary().lines)
    lines[1] = dataclasses.replace(lines[1], results={"esc10-v1.0.0-full": result(0.6, difference=doubtful)})
    doubted = dataclasses.replace(summary(), lines=tuple(lines))
    assert "though a paired t-test over seeds gives p = 0.3" in " ".join(conclusion(doubted))
    by_folds = dataclasses.replace(APART, p_folds=0.2)
    lines[1] = dataclasses.replace(lines[1], results={"esc10-v1.0.0-full": result(0.6, difference=by_folds)})
    doubted = dataclasses.replace(summary(), lines=tuple(lines))
    assert "though a paired t-test over folds gives p = 0.2" in " ".join(conclusion(doubted))


def test_the_answer_doubts_where_no_t_test_is_possible() -> None:
    """All seeds differ by the same amount."""
    lines = list(summary().lines)
    equal = dataclasses.replace(APART, p_value=math.nan)
    lines[1] = dataclasses.replace(lines[1], results={"esc10-v1.0.0-full": result(0.6, difference=equal)})
    text = " ".join(conclusion(dataclasses.replace(summary(), lines=tuple(lines))))
    assert "which excludes 0, without a t-test over seeds, whose differences are equal" in text


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
@pytest.mark.parametrize("down", ["true", "false"])
def test_rows_without_a_number_are_sorted_last(tmp_path: Path, down: str) -> None:
    text = written(summary(), tmp_path)
    order = text[text.index("const order =") : text.index("body.append(...rows")]
    cells = '["0.4", "nan", "", "0.9"].map(text => [text])'
    script = f"const rows = {cells}, down = {down};{order}console.log(rows.join())"
    shown = subprocess.run(["node", "-e", script], capture_output=True, text=True, check=True).stdout.strip()
    assert shown == ("0.4,0.9,nan," if down == "true" else "0.9,0.4,nan,")


def test_the_test_over_folds_has_a_column_where_there_are_folds(tmp_path: Path) -> None:
    assert "t-test over folds" not in written(summary(), tmp_path)
    lines = list(summary().lines)
    by_folds = dataclasses.replace(APART, p_folds=0.21)
    lines[1] = dataclasses.replace(lines[1], results={"esc10-v1.0.0-full": result(0.6, difference=by_folds)})
    text = written(dataclasses.replace(summary(), lines=tuple(lines)), tmp_path)
    assert "p, t-test over folds" in text
    assert ">0.21<" in text
    assert "p of both t-tests is below 0.05" in text


@pytest.mark.parametrize("pairs", [1, 5])
def test_clips_of_noise_are_not_called_folds(tmp_path: Path, pairs: int) -> None:
    """A plan of attention on noise alone, with one seed and with several."""
    lines = list(summary(seeds=pairs).lines[:3])
    shown = dataclasses.replace(APART, pairs=pairs, p_folds=0.21, clip_interval=None)
    lines[1] = dataclasses.replace(lines[1], results={"esc10-v1.0.0-full": result(0.6, False, shown, pairs)})
    lines = [dataclasses.replace(each, seeds=tuple(range(pairs)), cells=()) for each in lines]
    tasks = dict.fromkeys(summary().tasks, NOISE_METRIC)
    noise = dataclasses.replace(summary(), tasks=tasks, lower_is_better=frozenset(tasks), lines=tuple(lines))
    text = written(noise, tmp_path, PageDetails())
    assert "fold" not in text
    assert "[95 %, clips]" not in text  # all of it is over clips
    texts = ("Small markers: clips", "Every seed and clip<", "[95 %, seeds and clips]", "p, t-test over clips")
    assert all(each in text for each in texts)
    note = next(each for each in make_grid(noise).footnotes if each.startswith("Δ"))
    assert ("interval over seeds and clips;" if pairs > 1 else "interval over clips;") in note
    by_folds = written(dataclasses.replace(noise, tasks=summary().tasks), tmp_path, PageDetails())
    assert all(each.replace("clip", "fold") in by_folds for each in texts)


def test_an_interval_over_clips_that_cannot_be_computed_is_empty(tmp_path: Path) -> None:
    lines = list(summary().lines)
    unknown = dataclasses.replace(APART, clip_interval=UNKNOWN)
    lines[1] = dataclasses.replace(lines[1], results={"esc10-v1.0.0-full": result(0.6, difference=unknown)})
    assert "[nan, nan]" not in written(dataclasses.replace(summary(), lines=tuple(lines)), tmp_path)


def test_the_answer_counts_many_tasks() -> None:
    tasks = {f"t{number}": "mAP" for number in range(6)}
    labels = {"mixer": "a"}
    first = SummaryLine(labels, "", dict.fromkeys(tasks, result(0.5)), {}, seeds=(0, 1))
    other = SummaryLine(
        {"mixer": "b"}, "", {task: result(0.6, difference=APART) for task in list(tasks)[:4]}, {}, seeds=(0, 1)
    )
    many = Summary("t", "q", tasks, frozenset(), {"mixer": ("a", "b")}, (first, other), first, (), ())
    first_sentence, _ = conclusion(many)
    assert first_sentence.startswith("b has the best mean on 4 of 6 tasks; its difference from a has an interval")
    assert "without 0 and p < 0.05 on 4 of these" in first_sentence
    few = dataclasses.replace(APART, pairs=1)
    other = dataclasses.replace(other, results=dict.fromkeys(other.results, result(0.6, difference=few)))
    first_sentence, _ = conclusion(dataclasses.replace(many, lines=(first, other)))
    assert first_sentence.endswith("; there are too few seeds for intervals of its differences from a.")


def test_the_answer_does_not_count_ties_as_wins() -> None:
    """Two lines that are level on three tasks; the other is better on the fourth."""
    tasks = {f"t{number}": "mAP" for number in range(4)}
    same = dict.fromkeys(list(tasks)[:3], result(0.5))
    first = SummaryLine({"mixer": "p"}, "", {**same, "t3": result(0.1)}, {}, seeds=(0, 1))
    other = SummaryLine({"mixer": "q"}, "", {**same, "t3": result(0.9)}, {}, seeds=(0, 1))
    found = Summary("t", "q", tasks, frozenset(), {"mixer": ("p", "q")}, (first, other), None, (), ())
    assert conclusion(found)[0] == "q has the best mean on 1 of 4 tasks (on 3 several tie)."
    level = dataclasses.replace(found, lines=(first, dataclasses.replace(first, labels={"mixer": "q"})))
    assert conclusion(level)[0] == "several tie for the best mean on each of 4 tasks."
    few = dataclasses.replace(found, tasks={"t0": "mAP"})
    assert conclusion(few)[0].startswith("t0: p ties with 1 more for the best mean of 2, 0.508 ± 0.032")


def one_axis(count: int, tasks: tuple[str, ...] = ("x",), value: float = 0.5, seeds: int = 1) -> Summary:
    """A plan with one axis of so many labels."""
    labels = tuple(f"label{place}" for place in range(count))
    results = {task: result(value, seeds=seeds) for task in tasks}
    lines = tuple(SummaryLine({"a": label}, "", results, {"CPU s": 1.0 + place}, seeds=tuple(range(seeds)))
                  for place, label in enumerate(labels))  # fmt: skip
    effects = tuple(Effect("a", label, task, results[task].estimate, None) for label in labels for task in tasks)
    return Summary("t", "q", dict.fromkeys(tasks, "mAP"), frozenset(), {"a": labels}, lines, lines[0], effects, ())


def baselines_alone() -> Summary:
    line = SummaryLine({}, "mel", {"x": TaskResult({"": (0.5,)}, mean_interval([0.5]), True)}, {})
    return Summary("t", "q", {"x": "mAP"}, frozenset(), {"a": ("b",)}, (line,), None, (), ())


@pytest.mark.parametrize(
    "shown",
    [
        Summary("t", "", {}, frozenset(), {}, (), None, (), ()),
        baselines_alone(),
        one_axis(1),
        one_axis(2, ("x", "y", "z", "u")),
        one_axis(2, value=math.nan, seeds=2),
        summary(seeds=1),
    ],
    ids=["nothing", "baselines", "one", "tasks", "nan", "one-seed"],
)
def test_plans_of_all_shapes(tmp_path: Path, shown: Summary) -> None:
    page = Page(written(shown, tmp_path, PageDetails()))
    assert len([attrs for tag, attrs in page.tags if attrs.get("scope") == "row"]) >= len(shown.lines)
    assert all(sentence.endswith(".") for sentence in conclusion(shown))


@pytest.mark.parametrize("metric", ["d_prime", "segment_1s_er", NOISE_METRIC])
def test_charts_show_values_above_one(metric: str) -> None:
    """Their axes cover the mean of 2.51."""
    shown = dataclasses.replace(one_axis(2, value=2.5, seeds=2), tasks={"x": metric})
    for chart in (next(iter(effect_charts(shown).values())), score_charts(shown)[0], cost_charts(shown)[0]):
        assert any(float(tick) > 2.51 for tick in re.findall(r">(\d\.\d+)<", chart.svg))


def test_a_large_plan_is_small_enough(tmp_path: Path) -> None:
    large = one_axis(100, seeds=3)
    assert sum(look.named for look in line_styles(large).values()) == MAX_NAMED_LINES
    curve = {"step": list(range(20)), "loss": [1.0] * 20}
    text = written(large, tmp_path, PageDetails(curves={line.name: {"0": curve} for line in large.lines}))
    assert len(text.encode()) < 2_000_000
    assert "label99" in text


def test_lines_differ_by_more_than_colour() -> None:
    looks = list(line_styles(one_axis(MAX_NAMED_LINES)).values())
    assert len({(look.colour, look.marker) for look in looks}) == MAX_NAMED_LINES
    assert len({look.marker for look in looks[:6]}) == 6


def test_charts_leave_formulas_alone() -> None:
    chart = next(iter(effect_charts(summary("$x^2$")).values()))
    assert ">$x^2$<" in chart.svg


@pytest.mark.parametrize(
    "labels",
    [
        [(str(first), other) for first in range(7) for other in "ab"],  # two of them have no name
        [("one", str(number)) for number in range(MAX_NAMED_LINES)],
        [*((str(first), "a") for first in range(7)), ("0", "b")],
        [(first, str(number)) for first in "ab" for number in range(6)],
    ],
    ids=["some grey", "one label first", "seven labels first", "a grid"],
)
def test_lines_of_two_axes_differ_by_more_than_colour(labels: list[tuple[str, str]]) -> None:
    one = one_axis(1).lines[0]
    lines = tuple(dataclasses.replace(one, labels={"axis": first, "other": other}) for first, other in labels)
    axes = {"axis": tuple(dict(labels)), "other": tuple(dict.fromkeys(other for _, other in labels))}
    shown = dataclasses.replace(one_axis(1), axes=axes, lines=lines)
    looks = [look for look in line_styles(shown).values() if look.named]
    assert len({(look.colour, look.marker) for look in looks}) == len(looks) == min(len(lines), MAX_NAMED_LINES)
    assert len({look.marker for look in looks}) == 6


def test_charts_of_effects_have_no_empty_frames_and_one_set_of_names() -> None:
    """Of four tasks two panels stay empty in the second line; a label may lack a result on one task alone."""
    tasks = {f"t{number}": "mAP" for number in range(4)}
    labels = ("p", "q", "r")
    effects = [Effect("mixer", label, task, mean_interval([0.5, 0.6]), None, "p") for task in tasks for label in labels]
    effects = [effect for effect in effects if (effect.label, effect.task) != ("q", "t3") and effect.label != "r"]
    found = Summary("t", "q", tasks, frozenset(), {"mixer": labels}, (), None, tuple(effects), ())
    drawn = effect_charts(found)["mixer"]
    assert drawn.svg.count(">no result<") == 4 + 1  # "r" on every task, "q" on the last
    for name in ("p (reference)", "q", "r (no results)"):
        assert f">{name}<" in drawn.svg
    assert len(re.findall(r">0\.0<|>1\.0<", drawn.svg)) <= 2 * 4  # axes of four panels at most


def test_only_the_reference_label_is_hollow() -> None:
    """Also where no label has a difference, as of models measured on different clips."""
    effects = tuple(
        Effect("a", label, "x", mean_interval([0.5, 0.6]), None, "label0") for label in ("label0", "label1")
    )
    shown = dataclasses.replace(one_axis(2), effects=effects)
    assert effect_charts(shown)["a"].svg.count("fill: var(--paper)") == 1


def test_facts_that_differ_between_cells_are_all_listed() -> None:
    first: dict[str, str | int] = {"torch": "2.9.0", "commit": "a", "threads": 2}
    made = [first, {**first, "torch": "2.11.0", "commit": ""}]
    assert distinct_facts(made) == {"torch": "2.9.0 / 2.11.0 (cells differ)", "commit": "a", "threads": "2"}


def test_commands_in_notes_are_code(tmp_path: Path) -> None:
    text = written(dataclasses.replace(summary(), notes=("Made by `asda-hear ablate <plan>`.",)), tmp_path)
    assert "<li>Made by <code>asda-hear ablate &lt;plan&gt;</code>.</li>" in text
