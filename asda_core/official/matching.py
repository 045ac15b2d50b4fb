"""Checks shared by all readers of released tensors: names and shapes match in both directions, and no NaN."""

from collections.abc import Collection, Mapping
from pathlib import Path

from torch import Tensor

from asda_core.checkpoint import is_finite
from asda_core.errors import CheckpointError

Shape = tuple[int, ...]


def check_all(
    given: Mapping[str, Tensor], wanted: Mapping[str, Shape], also: Collection[str], file: Path, whose: str = ""
) -> None:
    """Check that the given tensors are exactly the wanted ones.

    Args:
        given: by released name.
        wanted: released name -> shape.
        also: further names that are allowed, of any shape and type.
        file: for messages.
        whose: owner of the tensors for messages, as in " of the teacher".

    Raises:
        CheckpointError: naming all tensors that are missing, unexpected, misshapen or of a wrong type.
    """
    bad = {
        name: f"{name} has shape {tuple(given[name].shape)}, not {shape}"
        for name, shape in wanted.items()
        if name in given and tuple(given[name].shape) != shape
    }
    bad |= {
        name: f"{shown(name)} has type {tensor.dtype}"
        for name, tensor in given.items()
        if not tensor.is_floating_point() and name not in also
    }
    missing = [name for name in wanted if name not in given]
    unexpected = [name for name in given if name not in wanted and name not in also]
    if bad or missing or unexpected:
        wrong = [*(f"missing {name}" for name in missing), *(f"unexpected {shown(name)}" for name in unexpected)]
        places = [*wanted, *(name for name in also if name in given)]
        matched = len([name for name in places if name in given and name not in bad])
        counted = f"{matched} of {len(places)} tensors{whose} matched"
        raise CheckpointError(f"{file}: {counted}; {'; '.join([*wrong, *bad.values()])}.")


def check_finite_tensors(tensors: Mapping[str, Tensor], file: Path) -> None:
    """Check that no weight is NaN or infinite.

    Raises:
        CheckpointError: some are; naming the tensors.
    """
    bad = [name for name, tensor in tensors.items() if not is_finite(tensor)]
    if bad:
        raise CheckpointError(f"{file} holds NaN or infinite values in {', '.join(map(shown, bad))}.")


def shown(name: object) -> str:
    """Return a name for a message: unchanged, or its `repr` if it is not printable text."""
    return name if isinstance(name, str) and name.isprintable() else repr(name)
