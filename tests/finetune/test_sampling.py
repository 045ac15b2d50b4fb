"""Which clips an epoch has: draws against brute force, balanced weights by hand, AudioSet-2M's size."""

import time
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest

from asda_core.errors import ConfigError
from asda_core.finetune.recipes import load_recipe
from asda_core.finetune.sampling import balanced_weights, draw_indices, epoch_order, weights_digest
from asda_core.finetune_config import SamplingConfig
from asda_core.labelled.examples import Example

WEIGHTS = np.array([5.0, 1.0, 3.0, 0.5])
SIGMAS = 4.5


def examples(*labels: str) -> list[Example]:
    """A clip for each text of labels, one letter each."""
    return [Example(Path(f"{number}.wav"), tuple(each)) for number, each in enumerate(labels)]


def one_after_the_other(order: tuple[int, ...]) -> float:
    """Probability of clips in this order, each drawn from those that are left."""
    left, chance = WEIGHTS.sum(), 1.0
    for number in order:
        chance *= WEIGHTS[number] / left
        left -= WEIGHTS[number]
    return chance


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_draw_without_replacement_is_one_after_the_other(count: int) -> None:
    """Every order of clips comes as often as in sequential draws."""
    orders = list(permutations(range(4), count))
    assert sum(one_after_the_other(order) for order in orders) == pytest.approx(1)
    generator, draws = np.random.default_rng(0), 30_000
    seen = dict.fromkeys(orders, 0)
    for _ in range(draws):
        seen[tuple(draw_indices(WEIGHTS, count, False, generator).tolist())] += 1
    for order, times in seen.items():
        expected = draws * one_after_the_other(order)
        assert abs(times - expected) < SIGMAS * np.sqrt(expected), order


def test_draw_with_replacement() -> None:
    chosen = draw_indices(WEIGHTS, 40_000, True, np.random.default_rng(0))
    expected = 40_000 * WEIGHTS / WEIGHTS.sum()
    assert (np.abs(np.bincount(chosen) - expected) < SIGMAS * np.sqrt(expected)).all()


def test_an_epoch_of_audioset() -> None:
    """200,000 of 1.9 million clips: none twice, none of weight 0, in proportion to small weights, in seconds."""
    weights = np.tile([0.0, 1.0, 2.0, 4.0], 475_000)
    begun = time.process_time()
    chosen = draw_indices(weights, 200_000, False, np.random.default_rng(0))
    assert time.process_time() - begun < 5
    assert len(set(chosen.tolist())) == len(chosen) == 200_000
    kinds = np.bincount(chosen % 4, minlength=4)
    assert kinds[0] == 0
    # after a "time" t a clip of weight w is drawn with 1 - exp(-w t); t is such that 200,000 are
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (
            (middle, high) if 475_000 * sum(1 - np.exp(-w * middle) for w in (1, 2, 4)) < 200_000 else (low, middle)
        )
    for kind, weight in ((1, 1.0), (2, 2.0), (3, 4.0)):
        assert kinds[kind] == pytest.approx(475_000 * (1 - np.exp(-weight * low)), rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["asda_as2m", "eat_as2m"])
def test_epochs_of_the_recipe(name: str) -> None:
    """As the recipe says, of a small set: no clip twice, epochs differ, a seed gives the same, rare labels win."""
    sampling = load_recipe(f"finetune/{name}").sampling
    clips = examples(*["a"] * 240_000, *["b"] * 10_000)
    order = epoch_order(sampling, clips, seed=1, base_folder=Path())
    first, second = order(0), order(1)
    assert [len(first), len(set(first.tolist()))] == [200_000, 200_000]
    assert not np.array_equal(first, second)
    assert np.array_equal(first, epoch_order(sampling, clips, 1, Path())(0))
    assert not np.array_equal(first, epoch_order(sampling, clips, 2, Path())(0))
    rare = np.count_nonzero(first >= 240_000)
    assert rare > 9_990  # by chance alone 8,000
    with pytest.raises(ConfigError, match="200000 is more than the 1000 training clips"):
        epoch_order(sampling, clips[:1000], 1, Path())


def test_a_file_of_weights(tmp_path: Path) -> None:
    (tmp_path / "weights.txt").write_text("0\n3\n1\n0\n")
    sampling = SamplingConfig(weights="weights.txt", clips_per_epoch=1)
    order = epoch_order(sampling, examples("a", "a", "b", "b"), 1, tmp_path)
    counts = np.bincount([order(epoch)[0] for epoch in range(2_000)], minlength=4)
    assert counts[[0, 3]].tolist() == [0, 0]
    assert counts[1] == pytest.approx(1_500, abs=SIGMAS * np.sqrt(375))


def test_a_file_with_the_name_of_a_rule_is_no_weights(tmp_path: Path) -> None:
    (tmp_path / "balanced").write_text("1\n1\n")
    (tmp_path / "mine").write_text("1\n1\n")
    assert weights_digest(SamplingConfig(weights="balanced"), tmp_path) == {}
    assert weights_digest(SamplingConfig(weights="mine"), tmp_path).keys() == {"weights"}


def test_balanced_weights_by_hand() -> None:
    """Three clips with a, two with b, one with c."""
    weights = balanced_weights(examples("a", "ab", "abc"))
    assert weights.tolist() == pytest.approx([1 / 3, 1 / 3 + 1 / 2, 1 / 3 + 1 / 2 + 1])


def test_uniform_epochs_have_every_clip_once() -> None:
    order = epoch_order(load_recipe("finetune/asda_esc50").sampling, examples(*"abcdefgh"), 1, Path())
    assert sorted(order(0).tolist()) == sorted(order(5).tolist()) == list(range(8))
    assert len({tuple(order(epoch).tolist()) for epoch in range(20)}) == 20


@pytest.mark.parametrize("more", [{}, {"clips_per_epoch": 10}])
def test_weights_that_change_nothing_are_refused(more: dict[str, int]) -> None:
    """Every clip once, whatever its weight."""
    clips = examples(*"aaaaaaaaab")
    with pytest.raises(ConfigError, match="sampling.weights have no effect: each of the 10 clips"):
        epoch_order(SamplingConfig(weights="balanced", **more), clips, 1, Path())
    assert len(epoch_order(SamplingConfig(weights="balanced", replacement=True), clips, 1, Path())(0)) == 10
    assert len(epoch_order(SamplingConfig(weights="balanced"), examples(*"aabb"), 1, Path())(0)) == 4  # all alike


def test_weights_by_name(tmp_path: Path) -> None:
    """A list of all videos, of which some are gone: those that are there are found in it."""
    named = zip(examples("a", "b"), "xz", strict=True)
    clips = [replace(example, file=Path(f"audio/{name}.wav")) for example, name in named]
    (tmp_path / "weights.txt").write_text("x\t0\ny y\t5\nz.flac\t2\n")
    sampling = SamplingConfig(weights="weights.txt", clips_per_epoch=1)
    order = epoch_order(sampling, clips, 1, tmp_path)
    assert {int(order(epoch)[0]) for epoch in range(50)} == {1}
    (tmp_path / "weights.txt").write_text("z\t0\nx\t1\n")  # as many lines as clips, in another order
    order = epoch_order(sampling, clips, 1, tmp_path)
    assert {int(order(epoch)[0]) for epoch in range(50)} == {0}
    (tmp_path / "weights.txt").write_text("x\t1\ny\t5\nw\t2\n")
    with pytest.raises(ConfigError, match="has 3 weights for 2 training clips.*lines of NAME WEIGHT"):
        epoch_order(sampling, clips, 1, tmp_path)
