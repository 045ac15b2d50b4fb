"""Fast bootstrap of accuracy, mAP and AUC over clips, for the confidence intervals."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_array

MAX_CELLS = 4_000_000_000
"""Limit of clips x classes x resamples, about five seconds: larger sets get fewer resamples."""
MIN_RESAMPLES = 100
"""Resamples of the largest sets; 2.5 of them lie beyond each end of a 95 % interval."""
BLOCK_CELLS = 2**22
"""Clips x resamples held in memory at a time: 16 MB of weights."""


def limit_resamples(num_clips: int, num_classes: int, requested: int) -> int:
    """Number of resamples: as many as wanted, or fewer for a large set; none for a single clip."""
    if num_clips < 2:
        return 0
    return min(requested, max(MIN_RESAMPLES, MAX_CELLS // (num_clips * num_classes)))


def resample(
    truth: Bool[np.ndarray, "clips classes"],
    scores: Float[np.ndarray, "clips classes"],
    resamples: int,
    seed: int,
) -> Float[np.ndarray, "3 resamples"]:
    """Score bootstrap resamples, each of as many clips as there are, drawn with replacement.

    Args:
        truth: whether each clip has each label.
        scores: scores of a classifier.
        resamples: number of resamples.
        seed: seed of the draws.

    Returns:
        accuracy (for one label per clip), mAP and AUC of each resample; NaN where no class can be scored.

    **Source**: percentile bootstrap, Efron (1979).
    """
    generator = np.random.default_rng(seed)
    correct = truth[np.arange(len(truth)), scores.argmax(axis=1)].astype(np.float32)
    present = np.flatnonzero(truth.any(axis=0))
    rankings = [Ranking(truth[:, index], scores[:, index]) for index in present]
    width = max(1, BLOCK_CELLS // len(truth))
    blocks = []
    for start in range(0, resamples, width):
        weights = draw_counts(generator, len(truth), min(width, resamples - start))
        accuracy = (correct @ weights).astype(np.float64) / len(truth)
        blocks.append(np.stack([accuracy, *macro_means(rankings, weights)]))
    return np.concatenate(blocks, axis=1)


def draw_counts(generator: np.random.Generator, num_clips: int, resamples: int) -> Float[np.ndarray, "clips resamples"]:
    """Return how often each clip occurs in each resample."""
    cells = generator.integers(num_clips, size=(num_clips, resamples)) * resamples + np.arange(resamples)
    counts = np.bincount(cells.ravel(), minlength=num_clips * resamples)
    return counts.reshape(num_clips, resamples).astype(np.float32)  # exact up to 2**24 clips


class Ranking:
    """Clips sorted by decreasing score of one class, prepared for scoring under many weights.

    A clip drawn twice has weight 2, so all resamples share one order and differ only in sums. scikit-learn is not used
    because it scores one resample at a time, some hundred times slower.

    Args:
        truth: whether each clip has the label; at least one has.
        scores: scores of the class.
    """

    def __init__(self, truth: Bool[np.ndarray, " clips"], scores: Float[np.ndarray, " clips"]) -> None:
        order = np.argsort(-scores, kind="stable")
        ranked = truth[order]
        starts = np.flatnonzero(np.diff(scores[order], prepend=math.inf))
        counts = np.add.reduceat(ranked, starts, dtype=np.int64)
        has_positive = counts > 0  # only ties with a positive clip enter the sums of average precision and area
        edges = np.stack([starts[has_positive], np.append(starts[1:], len(order))[has_positive]], axis=1).ravel()
        self.group_sums = _sums(order, np.r_[0, edges, len(order)], len(order))
        """Matrix of sums over a gap, the ties with the best positive clip, a gap, the next such ties, ..., a gap."""
        self.positives = _sums(order[ranked], np.r_[0, np.cumsum(counts[has_positive])], len(order))
        """Matrix of sums over the positive clips in each of these groups of ties."""

    def ap_and_auc(
        self, weights: Float[np.ndarray, "clips resamples"]
    ) -> tuple[Float[np.ndarray, " resamples"], Float[np.ndarray, " resamples"]]:
        """Average precision and AUC under integer weights; NaN if the positives (for AUC, or the negatives) weigh 0."""
        sums = (self.group_sums @ weights).astype(np.float64)
        hits = (self.positives @ weights).astype(np.float64)
        tied, ranked, hits_ranked = sums[1::2], sums.cumsum(axis=0), hits.cumsum(axis=0)
        positive = hits_ranked[-1]
        negative = ranked[-1] - positive
        precision = hits_ranked / np.maximum(ranked[1::2], 1)
        wins = negative - (ranked[1::2] - hits_ranked) + (tied - hits) / 2  # a tie is half a win
        with np.errstate(invalid="ignore"):
            return (hits * precision).sum(axis=0) / positive, (hits * wins).sum(axis=0) / (positive * negative)


def _sums(order: Int[np.ndarray, " chosen"], edges: Int[np.ndarray, " edges"], num_clips: int) -> csr_array:
    """Return the sparse matrix that sums weights over each `order[edges[i]:edges[i + 1]]`."""
    ones = np.ones(len(order), dtype=np.float32)
    return csr_array((ones, order, edges), shape=(len(edges) - 1, num_clips))


def macro_means(
    rankings: Sequence[Ranking], weights: Float[np.ndarray, "clips resamples"]
) -> Float[np.ndarray, "2 resamples"]:
    """mAP and AUC: means over the classes that can be scored in a resample, NaN if there are none."""
    total, count = np.zeros((2, 2, weights.shape[1]))
    for ranking in rankings:
        areas = np.stack(ranking.ap_and_auc(weights))
        total += np.nan_to_num(areas)
        count += ~np.isnan(areas)
    with np.errstate(invalid="ignore"):
        return total / count
