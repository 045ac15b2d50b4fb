"""Differences between two models and their uncertainty over seeds, folds, test clips and tasks."""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import scipy  # loads its submodules lazily; `stats` takes more than a second
from numpy.typing import NDArray

from asda_core.finetune.bootstrap import BLOCK_CELLS, draw_counts, limit_resamples
from asda_core.statistics import CONFIDENCE
from asda_hear.evaluate.clip_predictions import ClipPredictions, scorer

Key = TypeVar("Key", bound=Hashable)
Floats = NDArray[np.float64]

DRAWS = 10_000
"""Bootstrap draws over seeds and folds; Monte Carlo error moves the ends of the interval by about 1 % of its width."""
DRAWS_PER_BLOCK = 250
"""Draws of the two-level bootstrap whose weights are held in memory at the same time."""
CLIP_DRAWS = 1_000
"""Bootstrap draws over test clips; fewer if there are very many clips and classes, see `limit_resamples`."""
ASSUMED_SEEDS = 5
"""Seed count assumed for `limit_resamples`, so that models with different numbers of seeds get equally many draws."""
BOOTSTRAP_SEED = 0
"""Seed of the generator that every comparison creates for itself: the same results give the same interval."""
TOLERANCE = 1e-6
"""Differences closer than this are equal: heareval writes scores as 32-bit floats, which are 6e-8 apart near 1."""
ANY_SEED = ""
"""The seed of an untrained model such as the log-mel baseline: paired with every seed of the other model."""


@dataclass(frozen=True)
class Interval:
    """An interval from `low` to `high`; both are NaN if there is too little data."""

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
        pairs: number of seeds that both models have.
        std: standard deviation over seeds; NaN below 2 pairs.
        p_folds: paired t-test over folds, each the mean of its seeds; NaN below 2 folds.
        clip_interval: 95 % interval of the paired bootstrap over test clips, if the predictions were kept.
    """

    mean: float
    interval: Interval
    p_value: float
    pairs: int
    clip_interval: Interval | None = None
    std: float = math.nan
    p_folds: float = math.nan


def compare(ours: Mapping[str, tuple[float, ...]], theirs: Mapping[str, tuple[float, ...]]) -> Difference | None:
    """Compare two models, paired by seed and fold.

    Args:
        ours: seed -> score of each fold, in order; a single seed "" is paired with every seed of the other model.
        theirs: the same for the model to compare with.

    Returns:
        the difference; None if the models share no seed, or if the numbers of folds differ.
    """
    differences = _paired(ours, theirs)
    if differences is None:
        return None
    by_seed = differences.mean(axis=1)
    spread = float(by_seed.std(ddof=1)) if len(by_seed) > 1 else math.nan
    bounds = _two_level(differences)
    interval = Interval(_or_zero(bounds.low), _or_zero(bounds.high))
    p_seeds, p_folds = _paired_t(by_seed), _paired_t(differences.mean(axis=0))
    return Difference(_or_zero(by_seed.mean()), interval, p_seeds, len(by_seed), None, spread, p_folds)


def _or_zero(value: float) -> float:
    """Return 0 for values within `TOLERANCE` of it, so that an interval that ends at -1e-17 includes 0."""
    return 0.0 if abs(value) < TOLERANCE else float(value)


def _paired(ours: Mapping[str, tuple[float, ...]], theirs: Mapping[str, tuple[float, ...]]) -> Floats | None:
    """Differences of shape (seeds, folds)."""
    if set(ours) == {ANY_SEED}:
        ours = dict.fromkeys(theirs, ours[ANY_SEED])
    elif set(theirs) == {ANY_SEED}:
        theirs = dict.fromkeys(ours, theirs[ANY_SEED])
    seeds = [seed for seed in ours if seed in theirs]
    lengths = {len(scores[seed]) for scores in (ours, theirs) for seed in seeds}
    if len(lengths) != 1 or 0 in lengths:
        return None
    our_scores, their_scores = (np.array([scores[seed] for seed in seeds], float) for scores in (ours, theirs))
    return np.asarray(our_scores - their_scores)


def _two_level(differences: Floats) -> Interval:
    """Percentile interval of the mean with seeds and folds resampled independently (crossed), with replacement.

    **Source**: Owen, "The pigeonhole bootstrap", Annals of Applied Statistics 1 (2007) 386.
    """
    if differences.size < 2:
        return UNKNOWN
    generator, (seeds, folds) = np.random.default_rng(BOOTSTRAP_SEED), differences.shape
    seed_weights = generator.multinomial(seeds, [1 / seeds] * seeds, size=DRAWS) / seeds
    means = []
    for rows in np.array_split(seed_weights, DRAWS // DRAWS_PER_BLOCK):  # in a noise plan every clip is a fold
        fold_weights = generator.multinomial(folds, [1 / folds] * folds, size=len(rows)) / folds
        means.append(((rows @ differences) * fold_weights).sum(axis=1))
    return _percentiles(np.concatenate(means))


def _percentiles(values: Floats) -> Interval:
    """Central 95 % of the finite draws."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return UNKNOWN
    low, high = np.quantile(finite, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(float(low), float(high))


def _paired_t(differences: Floats) -> float:
    """p of the paired t-test; without any spread 1 if nothing differs, otherwise NaN, as the test is undefined."""
    if len(differences) < 2 or not np.isfinite(differences).all():
        return math.nan
    if np.ptp(differences) < TOLERANCE:
        return 1.0 if abs(differences.mean()) < TOLERANCE else math.nan
    return float(scipy.stats.ttest_1samp(differences, 0).pvalue)


def bootstrap_scores(predictions: Sequence[ClipPredictions], draws: int = CLIP_DRAWS) -> Floats:
    """Scores of one model, averaged over its seeds, on bootstrap resamples of the clips of each fold.

    The resamples are the same for every model on the same clips, so that the scores of two models can be subtracted.

    Args:
        predictions: predictions of each seed.
        draws: number of resamples.
    """
    generator = np.random.default_rng(BOOTSTRAP_SEED)
    sizes = [len(targets) for targets, _ in predictions[0].folds]
    count = limit_resamples(sum(sizes), predictions[0].folds[0][0].shape[1] * ASSUMED_SEEDS, draws)
    measures = [scorer(each) for each in predictions]
    width = max(1, BLOCK_CELLS // sum(sizes))
    scores = [np.empty(0)]
    for start in range(0, count, width):
        weights = [draw_counts(generator, size, min(width, count - start)) for size in sizes]
        scores.append(np.mean([measure(weights) for measure in measures], axis=0))
    return np.concatenate(scores)


def compare_predictions(
    ours: Sequence[ClipPredictions],
    theirs: Sequence[ClipPredictions],
    bootstrap: Callable[[Sequence[ClipPredictions]], Floats] = bootstrap_scores,
) -> Interval | None:
    """Paired bootstrap over test clips: both models are scored on the same resampled clips, fold by fold.

    Args:
        ours: predictions of each seed; scores are averaged over seeds.
        theirs: predictions of the other model.
        bootstrap: `bootstrap_scores`, or a cached version of it.

    Returns:
        interval of ours minus theirs; None if a model has no predictions, or if the clips differ.

    **Source**: Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), chapter 8.
    """
    if not ours or not theirs or not all(_same_clips(ours[0], other) for other in (*ours, *theirs)):
        return None
    return _percentiles(bootstrap(ours) - bootstrap(theirs))


def _same_clips(one: ClipPredictions, other: ClipPredictions) -> bool:
    return (
        one.metric == other.metric
        and len(one.folds) == len(other.folds)
        and all(np.array_equal(first, second) for (first, _), (second, _) in zip(one.folds, other.folds, strict=True))
    )


def wilcoxon_over_tasks(differences: Mapping[str, float]) -> float:
    """Two-sided p of the Wilcoxon signed-rank test over tasks.

    Tasks without a difference are dropped (Wilcoxon's own treatment). Exact up to 50 tasks without ties in the
    absolute differences and up to 13 with ties; the normal approximation beyond. NaN below 2 tasks; 1 if all are equal.

    Args:
        differences: task -> score of one model minus that of the other.

    **Source**: Wilcoxon, Biometrics Bulletin 1 (1945) 80; over tasks after Demšar, JMLR 7 (2006) 1.
    """
    values = np.array(list(differences.values()), float)
    finite = values[np.isfinite(values)]
    if finite.size < 2:
        return math.nan
    nonzero = finite[abs(finite) >= TOLERANCE]
    return float(scipy.stats.wilcoxon(_signed_ranks(nonzero)).pvalue) if nonzero.size else 1.0


def _signed_ranks(differences: Floats) -> Floats:
    """Differences by the rank of their size, which is all that the test uses; sizes within `TOLERANCE` are tied."""
    sizes = np.abs(differences)
    order = sizes.argsort()
    levels = np.empty_like(sizes)
    levels[order] = 1 + np.concatenate([[0], np.cumsum(np.diff(sizes[order]) > TOLERANCE)])
    return np.asarray(np.sign(differences) * levels)


def smallest_p(tasks: int, comparisons: int = 1) -> float:
    """Smallest p that the two-sided Wilcoxon test can give, reached when all differences have the same sign.

    Args:
        tasks: number of tasks.
        comparisons: number of comparisons in Holm's correction.
    """
    return min(1.0, comparisons * 2.0 ** min(0, 1 - tasks))


def holm(p_values: Mapping[Key, float]) -> dict[Key, float]:
    """Holm-adjusted p-values of several comparisons; NaN stays NaN and does not count as a comparison.

    **Source**: Holm, "A simple sequentially rejective multiple test procedure", Scand. J. Statistics 6 (1979) 65.
    """
    ordered = sorted((key for key, p in p_values.items() if not math.isnan(p)), key=lambda key: p_values[key])
    adjusted, highest = dict(p_values), 0.0
    for rank, key in enumerate(ordered):
        highest = max(highest, min(1.0, (len(ordered) - rank) * p_values[key]))
        adjusted[key] = highest
    return adjusted


def min_detectable_difference(std: float, pairs: int, power: float = 0.8, confidence: float = CONFIDENCE) -> float:
    """The true difference that a paired t-test detects with the given power; NaN below 2 pairs.

    Args:
        std: standard deviation of the paired differences.
        pairs: number of pairs.
        power: probability of detecting the difference.
        confidence: 1 minus the level of the two-sided test.

    **Source**: Cohen, "Statistical Power Analysis for the Behavioral Sciences" (1988), chapter 2: the noncentral t.
    """
    if pairs < 2 or math.isnan(std):
        return math.nan
    freedom = pairs - 1
    limit = float(scipy.stats.t.ppf((1 + confidence) / 2, freedom))

    def missing_power(shift: float) -> float:
        wrong_side = np.nan_to_num(scipy.stats.nct.cdf(-limit, freedom, shift))  # NaN where it underflows
        return float(scipy.stats.nct.sf(limit, freedom, shift) + wrong_side) - power

    ceiling = limit
    while missing_power(ceiling) < 0:
        ceiling *= 2
    return float(scipy.optimize.brentq(missing_power, 0, ceiling)) * std / math.sqrt(pairs)
