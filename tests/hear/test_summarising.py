"""Rows to lines, differences and effects, on numbers that can be done by hand."""

import dataclasses
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats

from asda_hear.ablation.plan import Plan, load_plan
from asda_hear.cli import main
from asda_hear.reporting import notes
from asda_hear.reporting.comparing import Interval
from asda_hear.reporting.conclusion import conclusion
from asda_hear.reporting.notes import make_notes
from asda_hear.reporting.summarising import summarise
from asda_hear.reporting.summary import effect_labels
from asda_hear.reporting.tables import make_grid
from tests.hear.test_ablation import plan_file

FACTS = {"heareval": "h", "torch": "t", "asda": "a", "gflops": 0.5, "trained": 8, "parameters": 8, "cell": "c"}


def row(task: str, lambda_: str, steps: str, seed: int | str, folds: tuple[float, ...], **more: Any) -> dict[str, Any]:
    text = " ".join(map(str, folds))
    known = {"model": "", "lambda": lambda_, "steps": steps, "seed": seed, "task": task, "metric": "top1_acc"}
    return {**FACTS, **known, "score": sum(folds) / len(folds), "folds": text, **more}


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return load_plan(plan_file(tmp_path, question="Which?", baselines={"log-mel": "log_mel"}, seeds=[0, 1]))


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    """A full grid on task a; on task b one combination is missing."""
    grid = {
        ("0.1", "0"): ((0.4, 0.6), (0.5, 0.5)),
        ("0.1", "2"): ((0.5, 0.7), (0.6, 0.8)),
        ("0.3", "0"): ((0.6, 0.8), (0.7, 0.5)),
        ("0.3", "2"): ((0.9, 0.9), (0.6, 0.8)),
    }
    found = [
        row("a", *labels, seed, folds, pretrain_cpu_seconds=10.0 + seed)
        for labels, of_seeds in grid.items()
        for seed, folds in enumerate(of_seeds)
    ]
    found += [row("b", *labels, 0, (0.2,)) for labels in list(grid)[:3]]
    return [*found, row("a", "", "", "", (0.5, 0.3), model="log-mel")]


def test_lines(plan: Plan, rows: list[dict[str, Any]]) -> None:
    summary = summarise(plan, rows)
    assert (summary.question, summary.title) == ("Which?", "plan")
    assert summary.tasks == {"a": "top1_acc", "b": "top1_acc"}
    assert summary.axes == {"lambda": ("0.1", "0.3"), "steps": ("0", "2")}
    assert [line.name for line in summary.lines] == [
        "lambda 0.1, steps 0", "lambda 0.1, steps 2", "lambda 0.3, steps 0", "lambda 0.3, steps 2", "log-mel",
    ]  # fmt: skip
    best = summary.lines[3]
    assert [line.results["a"].best for line in summary.lines] == [False, False, False, True, False]
    assert best.results["a"].estimate.mean == pytest.approx((0.9 + 0.7) / 2)
    low, high = scipy.stats.t.interval(0.95, 1, loc=0.8, scale=scipy.stats.sem([0.9, 0.7]))
    assert best.results["a"].estimate.half_width == pytest.approx((high - low) / 2)
    assert (best.seeds, best.costs["CPU s"]) == ((0, 1), 10.5)
    assert "b" not in best.results
    assert all(line.results["b"].best for line in summary.lines[:3])  # equal


def test_ties_are_not_broken_by_the_rounding_of_scores(plan: Plan) -> None:
    """heareval's scores are 32-bit floats: the means of (0.5, 0.7) and (0.6, 0.6) differ by 1e-8."""
    rounded = {share: float(np.float32(share)) for share in (0.4, 0.5, 0.6, 0.7, 0.8)}
    grid = [row("a", "0.1", "0", 0, (rounded[0.5], rounded[0.7])), row("a", "0.3", "0", 0, (rounded[0.6],) * 2)]
    summary = summarise(plan, [*grid, row("a", "", "", "", (rounded[0.8], rounded[0.4]), model="log-mel")])
    assert len({line.results["a"].estimate.mean for line in summary.lines}) == 3
    assert all(line.results["a"].best for line in summary.lines)
    expected = "a: lambda 0.1, steps 0 ties with 1 more for the best mean of 2, 0.600; it is the reference itself."
    assert conclusion(summary)[0] == expected


def test_a_median_of_costs_counts_every_seed_once(plan: Plan) -> None:
    """The first seed has finished three tasks, the second one."""
    grid = [row(task, "0.1", "0", 0, (0.5,), pretrain_cpu_seconds=10.0) for task in "abc"]
    (line,) = summarise(plan, [*grid, row("a", "0.1", "0", 1, (0.5,), pretrain_cpu_seconds=30.0)]).lines
    assert line.costs["CPU s"] == 20


def test_differences_from_the_reference(plan: Plan, rows: list[dict[str, Any]]) -> None:
    summary = summarise(plan, rows, compare_clips=lambda ours, theirs: Interval(len(ours), len(theirs)))
    assert summary.reference is summary.lines[0]
    assert summary.reference.results["a"].difference is None
    difference = summary.lines[3].results["a"].difference
    assert difference is not None
    assert difference.mean == pytest.approx(0.8 - 0.5)
    assert difference.p_value == pytest.approx(scipy.stats.ttest_rel([0.9, 0.7], [0.5, 0.5]).pvalue)
    assert difference.pairs == 2
    assert difference.clip_interval == Interval(2, 2)  # the rows of the two lines on this task
    baseline = summary.lines[4].results["a"].difference
    assert baseline is not None
    assert baseline.mean == pytest.approx(0.4 - 0.5)
    assert all(line.p_value is None for line in summary.lines)  # two tasks are too few for a test over tasks


def over_tasks(count: int) -> list[dict[str, Any]]:
    """The reference, a line that is better on every task, and one that is better and worse in turn."""
    names = [f"t{number}" for number in range(count)]
    grid = [row(name, "0.1", "0", 0, (0.5,)) for name in names]
    grid += [row(name, "0.3", "0", 0, (0.6 + 0.01 * place,)) for place, name in enumerate(names)]
    grid += [row(name, "0.3", "2", 0, (0.5 + 0.01 * (-1) ** place * (place + 1),)) for place, name in enumerate(names)]
    return grid


def test_wilcoxon_over_seven_tasks(plan: Plan) -> None:
    """All seven better: 2 of 128 ways of signs; Holm multiplies the smaller of two by two."""
    _, better, mixed = summarise(plan, over_tasks(7)).lines
    raw = scipy.stats.wilcoxon([(-1) ** place * (place + 1) for place in range(7)]).pvalue
    assert better.p_value == pytest.approx(2 * 2 / 128)
    assert mixed.p_value == pytest.approx(raw)


def test_a_p_over_tasks_that_cannot_be_small_is_left_out(plan: Plan) -> None:
    """Of six tasks one line may reach 2/64, and two no less than 4/64."""
    summary = summarise(plan, over_tasks(6))
    assert all(line.p_value is None for line in summary.lines)
    assert any("with 6 tasks p cannot be below 0.062, corrected for 2 comparisons" in note for note in summary.notes)
    alone = [each for each in over_tasks(6) if each["steps"] == "0"]
    assert summarise(plan, alone).lines[1].p_value == pytest.approx(2 / 64)


def test_a_p_over_tasks_is_of_paired_differences(plan: Plan) -> None:
    """A seed that the reference lacks, and that is better for everybody, says nothing of a line."""
    grid = over_tasks(7)
    grid += [{**each, "seed": 1, "folds": "0.9", "score": 0.9} for each in grid if each["lambda"] == "0.3"]
    mixed = summarise(plan, grid).lines[2]
    raw = scipy.stats.wilcoxon([(-1) ** place * (place + 1) for place in range(7)]).pvalue
    assert mixed.p_value == pytest.approx(raw)
    apart = [each for each in grid if each["steps"] == "0" or each["seed"] == 1]  # no common seed with the reference
    assert summarise(plan, apart).lines[2].p_value is None


def test_effects_are_from_the_label_of_the_reference(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    given = {"reference": {"lambda": "0.3", "steps": "0"}, "baselines": {"log-mel": "log_mel"}}
    plan = load_plan(plan_file(tmp_path, **given))
    effects = {(effect.axis, effect.label, effect.task): effect for effect in summarise(plan, rows).effects}
    assert effects["lambda", "0.3", "a"].difference is None
    difference = effects["lambda", "0.1", "a"].difference
    assert difference is not None
    assert difference.mean == pytest.approx(0.575 - 0.725)
    assert effects["lambda", "0.1", "a"].reference_label == "0.3"


def test_a_label_without_results_leaves_the_effects_of_the_others(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    init = "encoder.mixer.options.lambda_init"
    axes = {"lambda": {"0.1": {}, "0.3": {init: 0.3}, "0.5": {init: 0.5}}, "steps": [0, 2]}
    plan = load_plan(plan_file(tmp_path, baselines={"log-mel": "log_mel"}, axes=axes))
    summary = summarise(plan, rows)
    assert {effect.label for effect in summary.effects if effect.axis == "lambda"} == {"0.1", "0.3"}
    assert effect_labels(summary, "lambda") == ["0.1 (reference)", "0.3", "0.5 (no results)"]


def test_a_baseline_as_the_reference(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    given = {"reference": "log-mel", "baselines": {"log-mel": "log_mel"}}
    summary = summarise(load_plan(plan_file(tmp_path, **given)), rows)
    assert summary.reference is summary.lines[4]
    difference = summary.lines[0].results["a"].difference
    assert difference is not None
    assert (difference.mean, difference.pairs) == (pytest.approx(0.1), 2)


def test_effects_average_over_the_other_axes(plan: Plan, rows: list[dict[str, Any]]) -> None:
    effects = {(effect.axis, effect.label, effect.task): effect for effect in summarise(plan, rows).effects}
    first, second = effects["lambda", "0.1", "a"], effects["lambda", "0.3", "a"]
    assert first.difference is None
    assert first.estimate.mean == pytest.approx((0.5 + 0.6 + 0.5 + 0.7) / 4)
    assert second.estimate.mean == pytest.approx((0.7 + 0.9 + 0.6 + 0.7) / 4)
    assert second.difference is not None
    assert second.difference.mean == pytest.approx(0.725 - 0.575)
    assert second.difference.pairs == 2
    shared = effects["lambda", "0.3", "b"]  # only steps 0 has both labels
    assert shared.estimate.mean == pytest.approx(0.2)
    assert math.isnan(shared.estimate.half_width)


def test_notes(plan: Plan, rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    assert not any("true difference" in note for note in summarise(plan, rows).notes)  # two seeds tell nothing
    monkeypatch.setattr(notes, "MIN_PAIRS", 2)
    text = "\n".join(summarise(plan, rows, missing=["one"]).notes)
    assert "Mean ± half the 95 % interval (Student's t) over seeds." in text
    assert "p cannot be below 0.5" in text
    assert "With 2 seeds a true difference under" in text
    assert "heareval h, grid default, 8 grid points, 1 thread(s)" in text
    assert summarise(plan, []).notes == ("No results yet.",)


@pytest.mark.heareval
def test_a_warm_up_as_long_as_the_training_is_told(
    tmp_path: Path, audio_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the terminal before anything runs, and below the table."""
    axes = {"warm": {"usual": {}, "long": {"optimizer.warmup_steps": 9}}}
    file = plan_file(tmp_path, axes=axes, data=[str(audio_folder)])
    assert main(["ablate", str(file), "--out", str(tmp_path / "out"), "--report"]) == 0
    plan = load_plan(file)
    steps, half = plan.cells[0].config.steps, len(plan.cells) // 2
    sentence = f"warning: in {half} of {2 * half} cells, as in warm long, optimizer.warmup_steps 9 is not less than"
    assert f"{sentence} steps {steps}: the learning rate will not reach its peak." in capsys.readouterr().err
    note = f"In {half} of {2 * half} trainings the warm-up is as long as the training or longer"
    made = [row("a", "", "", seed, (0.5,)) for seed in (0, 1)]
    assert any(text.startswith(note) for text in make_notes(plan, made, [], None))
    usual = load_plan(plan_file(tmp_path / "usual", axes={"warm": {"usual": {}}}, data=[str(audio_folder)]))
    assert not any("warm-up" in text for text in make_notes(usual, made, [], None))


def test_less_is_better_for_noise(plan: Plan, rows: list[dict[str, Any]]) -> None:
    less = [{**each, "metric": "noise share"} for each in rows if each["task"] == "a" and not each["model"]]
    summary = summarise(plan, less)
    assert summary.lower_is_better == {"a"}
    assert [line.results["a"].best for line in summary.lines] == [True, False, False, False]
    assert not any(line.aggregates for line in summary.lines)


def test_less_is_better_for_error_rates(plan: Plan) -> None:
    """Of an error rate the larger value is worse: its difference is ranked with the other sign."""
    grid = over_tasks(7)
    rates = (("0.1", "0", 0.5), ("0.3", "0", 1.2), ("0.3", "2", 0.4))
    grid += [row("e", *labels, 0, (rate,), metric="segment_1s_er") for *labels, rate in rates]
    baseline = [row(f"t{number}", "", "", "", (0.3,), model="log-mel") for number in range(7)]
    baseline += [row("e", "", "", "", (0.3,), model="log-mel", metric="segment_1s_er")]
    summary = summarise(plan, [*grid, *baseline])
    assert summary.lower_is_better == {"e"}
    assert [line.results["e"].best for line in summary.lines] == [False, False, False, True]
    expected = scipy.stats.wilcoxon([*(0.1 + 0.01 * place for place in range(7)), -0.7]).pvalue
    assert summarise(plan, [each for each in grid if each["steps"] == "0"]).lines[1].p_value == pytest.approx(expected)
    assert summary.lines[0].aggregates == {"mean": pytest.approx(0.5)}
    assert "The mean is without e (segment_1s_er), which may exceed 1." in summary.notes
    assert "e (segment_1s_er) ↓" in [column.heading for column in make_grid(summary).columns]
    (sentence, _) = conclusion(dataclasses.replace(summary, tasks={"e": "segment_1s_er"}))
    assert sentence.startswith("e: lambda 0.3, steps 2 has the best mean of 3, 0.400;")
    assert sentence.endswith("but the baseline log-mel (0.300) is better.")


def test_aggregates_of_hears_tasks(plan: Plan) -> None:
    names = ("esc50-v2.0.0-full", "libricount-v1.0.0-hear2021-full")
    grid = [row(name, "0.1", "0", seed, (0.6 + 0.1 * seed,)) for name in names for seed in (0, 1)]
    grid += [row(name, "", "", "", (0.3,), model="log-mel") for name in names]
    line, baseline = summarise(plan, grid).lines
    assert line.aggregates["mean"] == pytest.approx(0.65)
    assert 0 < line.aggregates["s(m)"] < 100
    assert baseline.aggregates["s(m)"] == 0
    assert -1 <= line.aggregates["z"] <= 1


@pytest.mark.parametrize(
    ("measured", "zero"), [(2, "the baseline log-mel of this plan"), (1, "HEAR's published log-mel baseline")]
)
def test_the_table_says_what_the_zero_of_s_m_is(plan: Plan, measured: int, zero: str) -> None:
    names = ("esc50-v2.0.0-full", "libricount-v1.0.0-hear2021-full")
    grid = [row(name, "0.1", "0", 0, (0.6,)) for name in names]
    grid += [row(name, "", "", "", (0.3,), model="log-mel") for name in names[:measured]]
    summary = summarise(plan, grid)
    measured_zero = 100 * sum((0.6 - 0.3) / (best - 0.3) for best in (0.9665, 0.7853)) / 2
    published_zero = 100 * ((0.6 - 0.286) / (0.9665 - 0.286) + (0.6 - 0.435) / (0.7853 - 0.435)) / 2
    expected = measured_zero if measured == 2 else published_zero
    assert summary.lines[0].aggregates["s(m)"] == pytest.approx(expected)
    assert f"s(m): 0 is {zero}, 100 the best score of HEAR's leaderboard." in make_grid(summary).footnotes


def test_a_mean_over_tasks_leaves_out_d_prime(plan: Plan) -> None:
    """It has no upper limit, and would outweigh accuracies."""
    grid = [row(task, "0.1", "0", 0, (0.5,)) for task in "ab"] + [row("d", "0.1", "0", 0, (2.5,), metric="d_prime")]
    summary = summarise(plan, grid)
    assert summary.lines[0].aggregates == {"mean": pytest.approx(0.5)}
    assert "The mean is without d (d_prime), which may exceed 1." in summary.notes
    assert not any("s(m)" in note for note in summary.notes)


def test_in_a_plan_of_one_axis_an_effect_is_what_the_table_says(tmp_path: Path) -> None:
    axes = {"lambda": {"0.1": {}, "0.3": {"encoder.mixer.options.lambda_init": 0.3}}}
    plan = load_plan(plan_file(tmp_path, axes=axes))
    values = {("0.1", 0): (0.2, 0.6), ("0.1", 1): (0.5, 0.3), ("0.3", 0): (0.8, 0.1), ("0.3", 1): (0.6, 0.4)}
    grid = [row("a", label, "", seed, folds) for (label, seed), folds in values.items()]
    summary = summarise(plan, grid)
    assert summary.effects[1].difference == summary.lines[1].results["a"].difference
    lonely = [row("a", label, "", 0, (value,)) for label, value in (("0.1", 0.2), ("0.3", 0.4))]
    difference = summarise(plan, lonely).effects[1].difference
    assert difference is not None
    assert math.isnan(difference.interval.low)  # one seed and one fold: nothing can be drawn again


def test_the_power_note_counts_pairs(plan: Plan, rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    """A line that is not finished changes nothing; with a baseline as the reference there is a note too."""
    monkeypatch.setattr(notes, "MIN_PAIRS", 2)
    whole = [note for note in summarise(plan, rows[:6]).notes if "true difference" in note]
    late = [*rows[:6], row("a", "0.3", "2", 0, (0.1, 0.9))]
    assert [note for note in summarise(plan, late).notes if "true difference" in note] == whole
    assert "With 2 seeds" in whole[0]


def test_power_against_a_baseline(tmp_path: Path, rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notes, "MIN_PAIRS", 2)
    given = {"reference": "log-mel", "baselines": {"log-mel": "log_mel"}}
    found = summarise(load_plan(plan_file(tmp_path, **given)), rows).notes
    assert any("With 2 seeds a true difference under" in note for note in found)


def test_aggregates_need_every_task(plan: Plan) -> None:
    """A mean over fewer tasks would stand in one column with means over all."""
    names = ("esc50-v2.0.0-full", "libricount-v1.0.0-hear2021-full", "fsd50k-v1.0-full")
    grid = [row(name, "0.1", "0", 0, (0.9,)) for name in names]
    grid += [row(name, "0.3", "0", 0, (0.8,)) for name in names[:2]]
    whole, part = summarise(plan, grid).lines
    assert whole.aggregates["mean"] == pytest.approx(0.9)
    assert part.aggregates == {}


def test_other_clips_are_not_paired(plan: Plan) -> None:
    """Of noise, models may leave out different clips: their ratios then stand side by side, without a difference."""
    facts = {"metric": "noise share"}
    same = [row("n", label, "0", 0, (0.9, 0.8), **facts, clips="x") for label in ("0.1", "0.3")]
    assert summarise(plan, same).lines[1].results["n"].difference is not None
    other = [same[0], {**same[1], "clips": "y"}]
    summary = summarise(plan, other)
    assert summary.lines[1].results["n"].difference is None
    assert all(effect.difference is None for effect in summary.effects)


def test_controls_are_neither_better_nor_worse(plan: Plan) -> None:
    grid = [row("c", label, "0", 0, (value,), metric="share, clean") for label, value in (("0.1", 1.1), ("0.3", 0.9))]
    summary = summarise(plan, grid)
    assert summary.control_tasks == {"c"}
    assert not any(line.results["c"].best for line in summary.lines)


def test_a_baseline_may_be_called_as_a_combination_is(tmp_path: Path) -> None:
    plan = load_plan(plan_file(tmp_path, axes={"steps": [0, 2]}, baselines={"steps 0": "log_mel"}))
    grid = [row("a", "", step, 0, (value,)) for step, value in (("0", 0.5), ("2", 0.7))]
    summary = summarise(plan, [*grid, row("a", "", "", "", (0.6,), model="steps 0")])
    assert summary.reference is summary.lines[0]
    assert summary.lines[2].results["a"].difference is not None


def test_a_reference_that_is_not_done_is_named(plan: Plan, rows: list[dict[str, Any]]) -> None:
    others = [each for each in rows if (each["lambda"], each["steps"]) != ("0.1", "0")]
    summary = summarise(plan, others)
    assert summary.reference is None
    assert "No differences: the reference has no results." in summary.notes


def test_infinite_scores_are_never_the_best(plan: Plan) -> None:
    """d' of an AUC of 1: no mean, no difference, no warning of NumPy, and a note that counts them."""
    grid = [row("d", "0.1", "0", seed, (1.0, 1.2), metric="d_prime") for seed in (0, 1)]
    grid += [row("d", "0.3", "0", 0, (math.inf, 1.0), metric="d_prime"), row("d", "0.3", "0", 1, (1.0, 2.0))]
    grid += [row("d", "0.3", "2", seed, (0.5, -math.inf), metric="d_prime") for seed in (0, 1)]
    for each in grid:
        each["metric"] = "d_prime"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        summary = summarise(plan, grid)
    results = [line.results["d"] for line in summary.lines]
    assert [result.best for result in results] == [True, False, False]
    assert all(math.isnan(result.estimate.mean) for result in results[1:])
    assert all(result.difference and math.isnan(result.difference.mean) for result in results[1:])
    (note,) = (note for note in summary.notes if "score is not finite" in note)
    assert note.endswith("d_prime on d in 3 folds.")


def test_notes_count_the_seeds_that_are_paired(plan: Plan, rows: list[dict[str, Any]]) -> None:
    """A plan of two seeds of which the reference has one."""
    assert any("bootstraps over both" in note for note in summarise(plan, rows).notes)
    less = [each for each in rows if (each["lambda"], each["steps"], each["seed"]) != ("0.1", "0", 1)]
    assert any(
        "paired by fold; their intervals are bootstraps over the folds" in n for n in summarise(plan, less).notes
    )


@pytest.mark.parametrize(("metric", "unit"), [("top1_acc", "fold"), ("noise share", "clip")])
def test_notes_say_what_is_paired(plan: Plan, rows: list[dict[str, Any]], metric: str, unit: str) -> None:
    grid = [{**each, "metric": metric} for each in rows]
    paired = f"paired by seed and {unit}; their intervals are bootstraps over both."
    assert any(note.endswith(paired) for note in summarise(plan, grid).notes)


def test_lines_without_a_seed_of_the_reference_have_no_differences(plan: Plan) -> None:
    grid = [row("a", "0.1", "0", seed, (0.5 + 0.01 * seed, 0.6)) for seed in (0, 1)]
    grid += [row("a", "0.3", "0", seed, (0.7 + 0.01 * seed, 0.6)) for seed in (2, 3)]
    found = summarise(plan, grid).notes
    assert "No differences: no line shares a seed and a task with the reference." in found
    assert not any("Differences are from" in note for note in found)


def test_the_conclusion_counts_paired_seeds(plan: Plan) -> None:
    """A reference of three seeds, and a line of two."""
    grid = [row("a", "0.1", "0", seed, (0.5 + 0.01 * seed, 0.6)) for seed in (0, 1, 2)]
    late = row("a", "0.3", "0", 2, (0.72, 0.67))
    grid += [row("a", "0.3", "0", seed, (0.7 + 0.02 * seed, 0.65)) for seed in (0, 1)]
    few, limits = conclusion(summarise(plan, grid))
    assert "too few seeds for an interval" in few
    assert limits.startswith("With 2 paired seeds, the interval")
    assert conclusion(summarise(plan, [*grid, late]))[1].startswith("With 3 seeds, the interval")


def test_versions_of_one_task_are_told(plan: Plan) -> None:
    grid = [row(f"esc50-v{version}.0.0-full", "0.1", "0", 0, (0.5,)) for version in (1, 2)]
    summary = summarise(plan, grid)
    assert set(summary.lines[0].aggregates) == {"mean"}
    assert any("are versions of one task" in note for note in summary.notes)


def test_infinite_scores_on_one_of_several_tasks(plan: Plan) -> None:
    """Tasks that are none of HEAR's have a mean alone, and a line without one has none."""
    grid = [row(task, "0.1", "0", 0, (0.5, 0.6)) for task in "ab"]
    grid += [row("a", "0.3", "0", 0, (0.5, math.inf)), row("b", "0.3", "0", 0, (0.7, 0.8))]
    first, second = summarise(plan, grid).lines
    assert first.aggregates == {"mean": pytest.approx(0.55)}
    assert second.aggregates == {}
