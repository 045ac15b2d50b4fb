"""Checks shared by all readers of released tensors: names and shapes match in both directions, and no NaN."""

from collections.abc import Collection, Mapping
from pathlib import Path

from torch import Tensor

from asda_core.checkpoint import is_finite
from asda_core.errors import CheckpointError

Shape = tuple[int, ...]


def check_tensors(
    tensors: Mapping[str, Tensor], expected: Mapping[str, Shape], optional: Collection[str], file: Path, owner: str = ""
) -> None:
    """Check that the tensors are exactly the expected ones.

    Args:
        tensors: by released name.
        expected: released name -> shape.
        optional: further names that are allowed, of any shape and type.
        file: for messages.
        owner: whose tensors they are, for messages, as in " of the teacher".

    Raises:
        CheckpointError: naming all tensors that are missing, unexpected, misshapen or of a wrong type.
    """
    bad = {
        name: f"{name} has shape {tuple(tensors[name].shape)}, not {shape}"
        for name, shape in expected.items()
        if name in tensors and tuple(tensors[name].shape) != shape
    }
    bad |= {
        name: f"{printable(name)} has type {tensor.dtype}"
        for name, tensor in tensors.items()
        if not tensor.is_floating_point() and name not in optional
    }
    missing = [name for name in expected if name not in tensors]
    unexpected = [name for name in tensors if name not in expected and name not in optional]
    if bad or missing or unexpected:
        wrong = [*(f"missing {name}" for name in missing), *(f"unexpected {printable(name)}" for name in unexpected)]
        places = [*expected, *(name for name in optional if name in tensors)]
        matched = len([name for name in places if name in tensors and name not in bad])
        counted = f"{matched} of {len(places)} tensors{owner} matched"
        raise CheckpointError(f"{file}: {counted}; {'; '.join([*wrong, *bad.values()])}.")


def check_finite_tensors(tensors: Mapping[str, Tensor], file: Path) -> None:
    """Check that no weight is NaN or infinite.

    Raises:
        CheckpointError: some are; naming the tensors.
    """
    bad = [name for name, tensor in tensors.items() if not is_finite(tensor)]
    if bad:
        raise CheckpointError(f"{file} holds NaN or infinite values in {', '.join(map(printable, bad))}.")


def printable(name: object) -> str:
    """Return a name for a message: unchanged, or its `repr` if it is not printable text."""
    return name if isinstance(name, str) and name.isprintable() else repr(name)
