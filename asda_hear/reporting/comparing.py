"""How far two models differ, and how sure that is: over seeds, folds, test clips, and tasks."""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import scipy  # loads its parts as they are used; `stats` takes more than a second
from numpy.typing import NDArray

from asda_core.finetune.bootstrap import BLOCK_CELLS, affordable, draw
from asda_core.statistics import CONFIDENCE
from asda_hear.evaluate.items import Items, scorer

Key = TypeVar("Key", bound=Hashable)
Floats = NDArray[np.float64]

DRAWS = 10_000
"""Bootstrap draws over seeds and folds; the ends of the interval move by about 1 % of its width."""
AT_ONCE = 250
"""Draws of the two-level bootstrap whose weights are in memory together."""
ITEM_DRAWS = 1_000
"""Bootstrap draws over test clips; fewer where clips and classes are very many, see `affordable`."""
USUAL_SEEDS = 5
"""By which `affordable` counts, so that models of different numbers of seeds are drawn equally often."""
BOOTSTRAP_SEED = 0
"""Every comparison draws from a generator of its own with this seed: the same results give the same interval."""
DIGITS = 6
"""Decimal digits of a difference that count: heareval writes scores as 32-bit floats, which are 6e-8 apart near 1."""
ANY_SEED = ""
"""The seed of a model that is not trained, as the log-mel baseline: paired with every seed of the other side."""


@dataclass(frozen=True)
class Interval:
    """From `low` to `high`; both NaN where there is too little to tell."""

    low: float
    high: float


UNKNOWN = Interval(math.nan, math.nan)


@dataclass(frozen=True)
class Difference:
    """Ours minus theirs on one task.

    Attributes:
        mean: mean over seeds of the mean over folds.
        interval: 95 % interval of the two-level bootstrap over seeds and folds.
        p_value: paired t-test over seeds; NaN below 2 pairs.
        pairs: seeds that both have.
        spread: standard deviation over seeds; NaN below 2 pairs.
        items: 95 % interval of the paired bootstrap over test clips, where the predictions were kept.
    """

    mean: float
    interval: Interval
    p_value: float
    pairs: int
    items: Interval | None = None
    spread: float = math.nan


def compare(ours: Mapping[str, tuple[float, ...]], theirs: Mapping[str, tuple[float, ...]]) -> Difference | None:
    """Pair two models by seed and fold.

    Args:
        ours: seed -> score of each fold, in order; the one seed "" is paired with every seed of the other side.
        theirs: the same of the model that is compared with.

    Returns:
        None where no seed is common, or where the numbers of folds differ.
    """
    differences = _paired(ours, theirs)
    if differences is None:
        return None
    by_seed = differences.mean(axis=1)
    spread = float(by_seed.std(ddof=1)) if len(by_seed) > 1 else math.nan
    found = _two_level(differences)
    interval = Interval(_or_zero(found.low), _or_zero(found.high))
    return Difference(_or_zero(by_seed.mean()), interval, _paired_t(by_seed), len(by_seed), None, spread)


def _or_zero(value: float) -> float:
    """0 for what is 0 to the digits that count, so that 0 is in an interval that ends at -1e-17."""
    return 0.0 if round(float(value), DIGITS) == 0 else float(value)


def _paired(ours: Mapping[str, tuple[float, ...]], theirs: Mapping[str, tuple[float, ...]]) -> Floats | None:
    """Differences (seeds, folds)."""
    if set(ours) == {ANY_SEED}:
        ours = dict.fromkeys(theirs, ours[ANY_SEED])
    elif set(theirs) == {ANY_SEED}:
        theirs = dict.fromkeys(ours, theirs[ANY_SEED])
    seeds = [seed for seed in ours if seed in theirs]
    lengths = {len(scores[seed]) for scores in (ours, theirs) for seed in seeds}
    if len(lengths) != 1 or 0 in lengths:
        return None
    mine, yours = (np.array([scores[seed] for seed in seeds], float) for scores in (ours, theirs))
    return np.asarray(mine - yours)


def _two_level(differences: Floats) -> Interval:
    """Percentile interval of the mean with seeds and folds drawn again, each with replacement, crossed.

    **Source**: Owen, "The pigeonhole bootstrap", Annals of Applied Statistics 1 (2007) 386.
    """
    if differences.size < 2:
        return UNKNOWN
    generator, (seeds, folds) = np.random.default_rng(BOOTSTRAP_SEED), differences.shape
    seed_weights = generator.multinomial(seeds, [1 / seeds] * seeds, size=DRAWS) / seeds
    drawn = []
    for rows in np.array_split(seed_weights, DRAWS // AT_ONCE):  # of a noise plan every clip is a fold
        fold_weights = generator.multinomial(folds, [1 / folds] * folds, size=len(rows)) / folds
        drawn.append(((rows @ differences) * fold_weights).sum(axis=1))
    return _percentiles(np.concatenate(drawn))


def _percentiles(values: Floats) -> Interval:
    """The middle 95 % of the draws that are numbers."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return UNKNOWN
    low, high = np.quantile(finite, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(float(low), float(high))


def _paired_t(by_seed: Floats) -> float:
    """p of the paired t-test; without spread 1 if nothing differs, else NaN: the test has nothing to measure by."""
    if len(by_seed) < 2 or not np.isfinite(by_seed).all():
        return math.nan
    rounded = by_seed.round(DIGITS)
    if np.ptp(rounded) == 0:
        return math.nan if rounded.any() else 1.0
    return float(scipy.stats.ttest_1samp(by_seed, 0).pvalue)


def score_draws(items: Sequence[Items], draws: int = ITEM_DRAWS) -> Floats:
    """Scores of one model, mean over its seeds, on clips that are drawn again and again, fold by fold.

    The draws are the same for every model of the same clips, so that two may be subtracted.

    Args:
        items: predictions of each seed.
        draws: how often clips are drawn.
    """
    generator = np.random.default_rng(BOOTSTRAP_SEED)
    sizes = [len(targets) for targets, _ in items[0].folds]
    count = affordable(sum(sizes), items[0].folds[0][0].shape[1] * USUAL_SEEDS, draws)
    measures = [scorer(each) for each in items]
    width = max(1, BLOCK_CELLS // sum(sizes))
    found = [np.empty(0)]
    for start in range(0, count, width):
        weights = [draw(generator, size, min(width, count - start)) for size in sizes]
        found.append(np.mean([measure(weights) for measure in measures], axis=0))
    return np.concatenate(found)


def compare_items(
    ours: Sequence[Items], theirs: Sequence[Items], drawn: Callable[[Sequence[Items]], Floats] = score_draws
) -> Interval | None:
    """Paired bootstrap over test clips: both models are scored on the same drawn clips, fold by fold.

    Args:
        ours: predictions of each seed; scores are averaged over seeds.
        theirs: of the other model.
        drawn: `score_draws`, or one that remembers.

    Returns:
        Interval of ours minus theirs; None where a side has no predictions, or where the clips are not the same.

    **Source**: Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), chapter 8.
    """
    if not ours or not theirs or not all(_same_clips(ours[0], other) for other in (*ours, *theirs)):
        return None
    return _percentiles(drawn(ours) - drawn(theirs))


def _same_clips(one: Items, other: Items) -> bool:
    return (
        one.metric == other.metric
        and len(one.folds) == len(other.folds)
        and all(np.array_equal(mine, yours) for (mine, _), (yours, _) in zip(one.folds, other.folds, strict=True))
    )


def wilcoxon_over_tasks(differences: Mapping[str, float]) -> float:
    """Two-sided p of the Wilcoxon signed-rank test over tasks.

    Tasks without a difference are dropped (Wilcoxon's own way). Exact up to 50 tasks without ties in the size of the
    difference and up to 13 with ties; the normal approximation beyond. NaN below 2 tasks; 1 where all are equal.

    Args:
        differences: task -> score of one model less that of the other.

    **Source**: Wilcoxon, Biometrics Bulletin 1 (1945) 80; over tasks after Demšar, JMLR 7 (2006) 1.
    """
    found = np.array(list(differences.values()), float)
    known = found[np.isfinite(found)].round(DIGITS)
    if known.size < 2:
        return math.nan
    moved = known[known != 0]
    return float(scipy.stats.wilcoxon(moved).pvalue) if moved.size else 1.0


def smallest_p(tasks: int, comparisons: int = 1) -> float:
    """The least p that the two-sided Wilcoxon test can give with so many tasks, all differences being of one sign.

    Args:
        tasks: how many.
        comparisons: for which Holm corrects it.
    """
    return min(1.0, comparisons * 2.0 ** min(0, 1 - tasks))


def holm(p_values: Mapping[Key, float]) -> dict[Key, float]:
    """Adjusted p of several comparisons; NaN stays NaN and does not count as a comparison.

    **Source**: Holm, "A simple sequentially rejective multiple test procedure", Scand. J. Statistics 6 (1979) 65.
    """
    known = sorted((key for key, p in p_values.items() if not math.isnan(p)), key=lambda key: p_values[key])
    adjusted, highest = dict(p_values), 0.0
    for rank, key in enumerate(known):
        highest = max(highest, min(1.0, (len(known) - rank) * p_values[key]))
        adjusted[key] = highest
    return adjusted


def smallest_difference_seen(spread: float, pairs: int, power: float = 0.8, confidence: float = CONFIDENCE) -> float:
    """The true difference that a paired t-test finds with the given power; NaN below 2 pairs.

    Args:
        spread: standard deviation of the paired differences.
        pairs: how many there are.
        power: chance to find it.
        confidence: 1 minus the level of the two-sided test.

    **Source**: Cohen, "Statistical Power Analysis for the Behavioral Sciences" (1988), chapter 2: the noncentral t.
    """
    if pairs < 2 or math.isnan(spread):
        return math.nan
    freedom = pairs - 1
    limit = float(scipy.stats.t.ppf((1 + confidence) / 2, freedom))

    def lacking(shift: float) -> float:
        wrong_side = np.nan_to_num(scipy.stats.nct.cdf(-limit, freedom, shift))  # NaN where it vanishes
        return float(scipy.stats.nct.sf(limit, freedom, shift) + wrong_side) - power

    ceiling = limit
    while lacking(ceiling) < 0:
        ceiling *= 2
    return float(scipy.optimize.brentq(lacking, 0, ceiling)) * spread / math.sqrt(pairs)
