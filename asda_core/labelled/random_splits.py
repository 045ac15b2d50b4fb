"""Clips -> parts by chance, with the shares of the labels kept."""

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from asda_core.config import require
from asda_core.labelled.examples import Example

TURNS = ("train", "train", "valid", "train", "test")
"""Where no split is given, clips take turns, label by label: 60, 20 and 20 % of every label."""


def deal(labels: Sequence[tuple[str, ...]], turns: Sequence[str], seed: int) -> list[str]:
    """Shuffle the clips of each label and deal them out.

    Args:
        labels: of each clip; clips with several are dealt by their combination.
        turns: what the clips get, in turns.
        seed: of the shuffle.

    Returns:
        for each clip its turn; the count of a combination differs from its share by less than one round of turns.
    """
    alike: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for number, combination in enumerate(labels):
        alike[combination].append(number)
    generator = np.random.default_rng(seed)
    order = [number for _, members in sorted(alike.items()) for number in generator.permutation(members)]
    given = {number: turns[place % len(turns)] for place, number in enumerate(order)}
    return [given[number] for number in range(len(labels))]


def hold_out(examples: Sequence[Example], share: float, seed: int) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Take a share of every label out of the training clips, for validation.

    Of a label with two clips or more at least one is taken, but never the last clip of any label that it has. Rare
    labels choose first. Which clips are taken does not depend on their order.

    Args:
        examples: of the training split.
        share: to take of every label, in [0, 1); 0 takes none at all.
        seed: of the choice.

    Returns:
        (kept, held), each in the order of `examples`.

    Raises:
        ConfigError: the share is not in its range.
    """
    require(0 <= share < 1, f"the share to hold out must be in [0, 1), not {share}.")
    members: dict[str, list[int]] = defaultdict(list)
    for number in _shuffled(examples, seed):
        for label in _labels(examples[number]):
            members[label].append(number)
    left = Counter({label: len(numbers) for label, numbers in members.items()})
    held: set[int] = set()
    for label in sorted(members, key=lambda label: (len(members[label]), label)):
        total = len(members[label])
        wanted = max(1, round(share * total)) if share else 0
        for number in members[label]:
            if total - left[label] >= wanted:
                break
            if number not in held and all(left[other] > 1 for other in _labels(examples[number])):
                held.add(number)
                left.subtract(_labels(examples[number]))
    kept = tuple(example for number, example in enumerate(examples) if number not in held)
    return kept, tuple(example for number, example in enumerate(examples) if number in held)


def _shuffled(examples: Sequence[Example], seed: int) -> list[int]:
    """All places, in an order that hangs on the files and the seed alone."""
    ordered = sorted(range(len(examples)), key=lambda number: str(examples[number].file))
    return [ordered[place] for place in np.random.default_rng(seed).permutation(len(ordered))]


def _labels(example: Example) -> tuple[str, ...]:
    """Clips without any label are held out as if they shared one."""
    return example.labels or ("",)
