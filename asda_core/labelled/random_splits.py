"""Random stratified splits: the share of every label is kept."""

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from asda_core.config import require
from asda_core.labelled.examples import Example

SPLIT_CYCLE = ("train", "train", "valid", "train", "test")
"""Cycle of splits for the clips of each label, if no split is given: 60, 20 and 20 % of every label."""


def assign_stratified(labels: Sequence[tuple[str, ...]], cycle: Sequence[str], seed: int) -> list[str]:
    """Shuffle the clips of each label and assign them to `cycle` in rotation.

    Args:
        labels: of each clip; clips with several labels are grouped by their combination.
        cycle: values to assign, in rotation.
        seed: of the shuffle.

    Returns:
        value of each clip; the count of a combination differs from its share by less than one pass over `cycle`.
    """
    by_combination: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for number, combination in enumerate(labels):
        by_combination[combination].append(number)
    generator = np.random.default_rng(seed)
    order = [number for _, members in sorted(by_combination.items()) for number in generator.permutation(members)]
    assigned = {number: cycle[place % len(cycle)] for place, number in enumerate(order)}
    return [assigned[number] for number in range(len(labels))]


def hold_out(examples: Sequence[Example], share: float, seed: int) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Hold out a share of every label from the training clips, for validation.

    At least one clip of every label with two or more is held out, but never the last remaining clip of any label.
    Rare labels are treated first. The selection does not depend on the order of the clips.

    Args:
        examples: of the training split.
        share: to hold out of every label, in [0, 1); 0 holds out nothing.
        seed: of the selection.

    Returns:
        (kept, held out), each in the order of `examples`.

    Raises:
        ConfigError: the share is not in [0, 1).
    """
    require(0 <= share < 1, f"the share to hold out must be in [0, 1), not {share}.")
    members: dict[str, list[int]] = defaultdict(list)
    for number in _shuffled(examples, seed):
        for label in _labels(examples[number]):
            members[label].append(number)
    remaining = Counter({label: len(numbers) for label, numbers in members.items()})
    held_out: set[int] = set()
    for label in sorted(members, key=lambda label: (len(members[label]), label)):
        total = len(members[label])
        target = max(1, round(share * total)) if share else 0
        for number in members[label]:
            if total - remaining[label] >= target:
                break
            if number not in held_out and all(remaining[other] > 1 for other in _labels(examples[number])):
                held_out.add(number)
                remaining.subtract(_labels(examples[number]))
    kept = tuple(example for number, example in enumerate(examples) if number not in held_out)
    return kept, tuple(example for number, example in enumerate(examples) if number in held_out)


def _shuffled(examples: Sequence[Example], seed: int) -> list[int]:
    """All indices, in an order that depends only on the files and the seed."""
    ordered = sorted(range(len(examples)), key=lambda number: str(examples[number].file))
    return [ordered[index] for index in np.random.default_rng(seed).permutation(len(ordered))]


def _labels(example: Example) -> tuple[str, ...]:
    """Labels of a clip; clips without labels are treated as sharing one."""
    return example.labels or ("",)
