"""Each statistic against a plain restatement on a small example."""

import itertools
import math
import time
import tracemalloc

import numpy as np
import pytest
from scipy import stats

from asda_hear.evaluate.clip_predictions import ClipPredictions
from asda_hear.reporting.comparing import (
    BOOTSTRAP_SEED,
    DRAWS,
    Interval,
    compare,
    compare_predictions,
    holm,
    min_detectable_difference,
    smallest_p,
    wilcoxon_over_tasks,
)
from asda_hear.reporting.tables import is_significant

OURS = {"0": (0.70, 0.80), "1": (0.74, 0.82), "2": (0.69, 0.85)}
THEIRS = {"0": (0.68, 0.75), "1": (0.75, 0.79), "2": (0.66, 0.80), "3": (0.1, 0.1)}


def test_the_difference_and_its_paired_t_by_formula() -> None:
    found = compare(OURS, THEIRS)
    assert found is not None
    by_seed = np.array([0.035, 0.01, 0.04])
    assert found.pairs == 3
    assert found.mean == pytest.approx(by_seed.mean())
    t = by_seed.mean() / (by_seed.std(ddof=1) / math.sqrt(3))
    assert found.p_value == pytest.approx(2 * stats.t.sf(t, 2))
    by_fold = np.array([0.04 / 3, 0.13 / 3])
    t = by_fold.mean() / (by_fold.std(ddof=1) / math.sqrt(2))
    assert found.p_folds == pytest.approx(2 * stats.t.sf(t, 1))
    assert found.clip_interval is None


def test_the_two_level_bootstrap_is_a_loop_over_drawn_seeds_and_folds() -> None:
    differences = np.array([[0.02, 0.05], [-0.01, 0.03], [0.03, 0.05]])
    generator = np.random.default_rng(BOOTSTRAP_SEED)
    seed_counts = generator.multinomial(3, [1 / 3] * 3, size=DRAWS)
    fold_counts = generator.multinomial(2, [1 / 2] * 2, size=DRAWS)
    means = []
    for seeds, folds in zip(seed_counts, fold_counts, strict=True):
        rows, columns = np.repeat(np.arange(3), seeds), np.repeat(np.arange(2), folds)
        means.append(np.mean([differences[row, column] for row in rows for column in columns]))
    found = compare(OURS, THEIRS)
    assert found is not None
    assert [found.interval.low, found.interval.high] == pytest.approx(list(np.percentile(means, [2.5, 97.5])))
    assert compare(OURS, THEIRS) == found


@pytest.mark.parametrize("shape", [(1, 4), (4, 1)])
def test_one_seed_or_one_fold_leaves_the_other_level(shape: tuple[int, int]) -> None:
    """Four values of 0 and 1: the mean of four draws is binomial, whose middle 95 % is 0 to 1."""
    values = np.array([0.0, 0.0, 1.0, 1.0]).reshape(shape)
    found = compare({str(seed): tuple(row) for seed, row in enumerate(values)}, {"": (0.0,) * shape[1]})
    assert found is not None
    assert found.interval == Interval(0.0, 1.0)
    assert math.isnan(found.p_value) == (shape[0] == 1)
    assert math.isnan(found.p_folds) == (shape[1] == 1)


def test_one_seed_with_one_fold_says_nothing_of_spread() -> None:
    found = compare({"0": (0.5,)}, {"0": (0.25,)})
    assert found is not None
    assert (found.mean, found.pairs) == (0.25, 1)
    assert math.isnan(found.interval.low)
    assert math.isnan(found.interval.high)
    assert math.isnan(found.p_value)


def test_a_baseline_is_paired_with_every_seed() -> None:
    forth, back = compare(OURS, {"": (0.5, 0.5)}), compare({"": (0.5, 0.5)}, OURS)
    assert forth is not None
    assert back is not None
    assert forth.pairs == back.pairs == 3
    assert forth.mean == pytest.approx(-back.mean) == pytest.approx(sum(map(sum, OURS.values())) / 6 - 0.5)
    both = compare({"": (0.5, 0.6)}, {"": (0.4, 0.4)})
    assert both is not None
    assert both.pairs == 1


def test_what_cannot_be_paired() -> None:
    assert compare({"0": (0.5, 0.5)}, {"0": (0.5,)}) is None
    assert compare({"0": (0.5,)}, {"1": (0.5,)}) is None
    assert compare({}, {"0": (0.5,)}) is None


def test_no_spread_over_seeds_gives_no_t_test_and_no_warning() -> None:
    same, constant = compare(OURS, OURS), compare({"0": (0.3,), "1": (0.65,)}, {"0": (0.2,), "1": (0.55,)})
    assert same is not None
    assert constant is not None
    assert same.p_value == 1
    assert same.interval == Interval(0, 0)
    assert math.isnan(constant.p_value)


def test_a_hundred_comparisons_are_quick() -> None:
    generator = np.random.default_rng(1)
    start = time.process_time()
    for _ in range(100):
        sides = [{str(seed): tuple(generator.random(5)) for seed in range(5)} for _ in range(2)]
        compare(*sides)
    assert time.process_time() - start < 5


def accuracy_items(hits: list[bool]) -> ClipPredictions:
    """Two classes; all clips are of the first."""
    said = np.array([[0.9, 0.1] if hit else [0.1, 0.9] for hit in hits], np.float32)
    return ClipPredictions("top1_acc", ((np.array([[True, False]] * len(hits)), said),))


def test_clips_are_drawn_alike_for_both_models() -> None:
    """Ours is right where theirs is, and on 10 of 100 more: the drawn difference is binomial(100, 0.1) / 100."""
    ours, theirs = accuracy_items([True] * 60 + [False] * 40), accuracy_items([True] * 50 + [False] * 50)
    found = compare_predictions([ours], [theirs])
    assert found is not None
    assert found.low == pytest.approx(stats.binom.ppf(0.025, 100, 0.1) / 100, abs=0.011)
    assert found.high == pytest.approx(stats.binom.ppf(0.975, 100, 0.1) / 100, abs=0.011)
    assert compare_predictions([ours, ours], [ours]) == Interval(0, 0)
    halves = compare_predictions([ours, theirs], [theirs])
    assert halves is not None
    assert [halves.low, halves.high] == pytest.approx([found.low / 2, found.high / 2])


def test_rankings_over_many_clips_and_classes() -> None:
    """As many as FSD50K has classes: a second, not an hour. Of one clip nothing can be drawn."""
    generator = np.random.default_rng(0)
    truth = np.eye(200, dtype=bool)[generator.integers(200, size=2_000)]
    noisy = [(truth + spread * generator.normal(size=truth.shape)).astype(np.float32) for spread in (0.5, 0.6)]
    ours, theirs = (ClipPredictions("mAP", ((truth, said),)) for said in noisy)
    assert compare_predictions([ours], [ours]) == Interval(0, 0)
    found = compare_predictions([ours], [theirs])
    assert found is not None
    assert 0 < found.low < found.high
    one = ClipPredictions("mAP", ((truth[:1], noisy[0][:1]),))
    alone = compare_predictions([one], [one])
    assert alone is not None
    assert math.isnan(alone.low)


def test_other_clips_are_not_compared() -> None:
    items = accuracy_items([True, False])
    assert compare_predictions([items], [accuracy_items([True])]) is None
    assert compare_predictions([items], []) is None


@pytest.mark.parametrize("sizes", [(1, 2, 3, 4, 5, 6), (1, 1, 2, 3, 3)])
def test_wilcoxon_by_all_signs(sizes: tuple[int, ...]) -> None:
    """Exact p: the share of all choices of signs whose rank sum is as far from its middle; tied sizes share a rank."""
    differences = np.array(sizes) * np.array([-1] + [1] * (len(sizes) - 1))
    ranks = stats.rankdata(sizes)
    sums = [ranks[np.array(signs)].sum() for signs in itertools.product([False, True], repeat=len(sizes))]
    seen, middle = ranks[differences > 0].sum(), ranks.sum() / 2
    exact = np.mean([abs(value - middle) >= abs(seen - middle) - 1e-9 for value in sums])
    by_task = {f"task {number}": value / 100 for number, value in enumerate(differences)}
    assert wilcoxon_over_tasks(by_task) == pytest.approx(exact)
    assert wilcoxon_over_tasks(by_task | {"equal": 0.0, "unknown": math.nan}) == pytest.approx(exact)


def test_wilcoxon_at_its_ends() -> None:
    best = {str(number): number / 10 for number in range(1, 8)}
    assert wilcoxon_over_tasks(best) == smallest_p(7) == 2 / 2**7
    assert smallest_p(1) == smallest_p(0) == 1
    assert smallest_p(7, 3) == 3 * smallest_p(7)
    assert smallest_p(2, 12) == 1
    assert wilcoxon_over_tasks(dict.fromkeys(best, 0.0)) == 1
    assert math.isnan(wilcoxon_over_tasks({"0": 0.1}))


def test_holm_on_a_worked_example() -> None:
    """Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1 is 0.02, 0.03, 0.06, 0.04; and it never falls."""
    found = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005, "none": math.nan})
    assert math.isnan(found.pop("none"))
    assert found == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02})
    assert holm({1: 0.6, 2: 0.7}) == {1: 1.0, 2: 1.0}
    assert holm({}) == {}


@pytest.mark.parametrize("pairs", [3, 5, 12])
def test_power_by_simulation(pairs: int) -> None:
    shift = min_detectable_difference(0.02, pairs)
    drawn = np.random.default_rng(3).normal(shift, 0.02, size=(20_000, pairs))
    assert np.mean(stats.ttest_1samp(drawn, 0, axis=1).pvalue < 0.05) == pytest.approx(0.8, abs=0.01)


def test_power_at_its_ends() -> None:
    many = min_detectable_difference(1.0, 10_000)
    assert many == pytest.approx((stats.norm.ppf(0.975) + stats.norm.ppf(0.8)) / 100, rel=1e-3)
    assert min_detectable_difference(1.0, 5, power=0.9) > min_detectable_difference(1.0, 5)
    assert min_detectable_difference(0.0, 5) == 0
    assert math.isfinite(min_detectable_difference(0.01, 2))
    assert math.isnan(min_detectable_difference(0.01, 1))


def test_nothing_is_no_difference() -> None:
    """Sums of decimals leave -6e-17, which must not be an interval that excludes 0."""
    found = compare({"0": (0.1, 0.2, 0.3), "1": (0.1, 0.2, 0.3)}, {"0": (0.3, 0.2, 0.1), "1": (0.3, 0.2, 0.1)})
    assert found is not None
    assert str(found.mean) == "0.0"
    steady = compare({"0": (0.1 + 0.2,), "1": (0.1 + 0.2,), "2": (0.1 + 0.2,)}, {"": (0.3,)})
    assert steady is not None
    assert (steady.interval.low, steady.interval.high) == (0.0, 0.0)


def test_many_folds_take_little_memory() -> None:
    """Of a noise plan every clip is a fold."""
    tracemalloc.start()
    generator = np.random.default_rng(0)
    one, other = ({str(seed): tuple(generator.normal(size=2000)) for seed in range(3)} for _ in range(2))
    assert compare(one, other) is not None
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50e6  # all draws at once: 500 MB


def test_equal_differences_of_every_seed_have_no_p() -> None:
    """Scores are 32-bit floats: -1/18 of every seed differs in its eighth digit, which is no spread to test against."""
    theirs = {str(seed): tuple(np.float32(np.array(folds) / 30)) for seed, folds in enumerate(BASE)}
    ours = {seed: tuple(np.float32(np.array(folds) + np.array(MORE[int(seed)]) / 30)) for seed, folds in theirs.items()}
    found = compare(ours, theirs)
    assert found is not None
    assert found.mean == pytest.approx(7 / 90, abs=1e-6)
    assert math.isnan(found.p_value)
    assert not is_significant(found)
    same = compare(theirs, {seed: tuple(value + 1e-8 for value in folds) for seed, folds in theirs.items()})
    assert same is not None
    assert (same.mean, same.p_value) == (0.0, 1.0)


BASE = ((10, 18, 10), (15, 10, 12), (14, 14, 14))
MORE = ((4, 1, 2), (2, 4, 1), (1, 4, 2))
"""Clips of 30 that are told right: seven more in each seed."""


def test_sizes_that_differ_by_rounding_are_tied() -> None:
    """At the edge of rounding, 0.0555555 and 0.0555556 are the same twentieth."""
    exact = {str(number): value for number, value in enumerate([1 / 18, 1 / 18, -1 / 18, 0.2, 0.3, 0.4])}
    noisy = {task: value + 6e-8 * (-1) ** int(task) for task, value in exact.items()}
    assert wilcoxon_over_tasks(noisy) == wilcoxon_over_tasks(exact)
