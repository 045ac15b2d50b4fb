"""Capabilities of the CPU, and float32 matrix products by the faster of two exact methods.

The method is chosen by rules, not by timing: a machine uses the same one in every run, so that runs are reproducible.
`benchmarks/` prints what a machine uses.
"""

import functools
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch

from asda_core.settings.compute import Precision

EXACT_ERROR = 4e-6
"""Largest error, relative to the largest magnitude, of a product of 768 terms that still counts as float32; with
operands rounded to bfloat16 the error is 4e-3."""
ONEDNN_PRECISION = "medium"
"""PyTorch's name of the setting; "high" has no effect on a CPU."""
TRIAL_SIZE = 768
"""Width of the trial product: that of the base model."""


@dataclass(frozen=True)
class Processor:
    """CPU capabilities that decide how attention is computed.

    Attributes:
        wide_vectors: whether it has 512-bit vectors and no matrix tiles; float32 products then go through oneDNN.
        bfloat16: whether it multiplies bfloat16 natively; otherwise bfloat16 is several times slower than float32.
    """

    wide_vectors: bool
    bfloat16: bool


MACHINE = Processor(
    wide_vectors=torch.cpu._is_avx512_supported() and not torch.cpu._is_amx_tile_supported(),
    bfloat16=bool(torch.cpu._is_avx512_bf16_supported()),
)
"""Capabilities of this machine's CPU: a constant, since compiled blocks read it, and the compiler warns of caches."""


def processor() -> Processor:
    """Return the capabilities of this machine's CPU."""
    return MACHINE


@contextmanager
def exact_matmul(device: torch.device | str = "cpu") -> Iterator[None]:
    """Context in which float32 products on the CPU go through oneDNN, where that is faster and still float32.

    On AMD processors with AVX-512, PyTorch's default is a generic path at less than half the rate. The setting that
    moves products to oneDNN permits it to round operands to bfloat16, which it does where there are matrix tiles; so
    it is used only without them, and only after a trial product was found to be exact. In training the context must
    enclose the backward pass too. The previous setting is restored.

    Args:
        device: where the model is; on a GPU the setting has another meaning, so nothing is done.
    """
    if torch.device(device).type != "cpu" or not processor().wide_vectors or not _stays_exact():
        yield
        return
    try:
        _setting.enter()
    except RuntimeError:  # the caller has set the backends individually
        yield
        return
    try:
        yield
    finally:
        _setting.leave()


class _Setting:
    """The process-wide setting, restored when the last thread that uses it leaves."""

    def __init__(self) -> None:
        self.lock, self.inside, self.before = threading.Lock(), 0, ""

    def enter(self) -> None:
        """Apply the setting; raise RuntimeError if the previous one cannot be determined."""
        with self.lock:
            if not self.inside:
                self.before = torch.get_float32_matmul_precision()
                torch.set_float32_matmul_precision(ONEDNN_PRECISION)
            self.inside += 1

    def leave(self) -> None:
        """Restore the previous setting when the last user leaves."""
        with self.lock:
            self.inside -= 1
            if not self.inside:
                torch.set_float32_matmul_precision(self.before)


_setting = _Setting()


@contextmanager
def matmul_precision(device: torch.device | str, precision: Precision) -> Iterator[None]:
    """Context for the matrix products of a model in inference: `exact_matmul`, or bfloat16 by autocast.

    Args:
        device: where the model is.
        precision: "bfloat16" uses autocast: an error of about 1 % in the output of ASDA base, see
            `benchmarks/encoder.py`.
    """
    device_type = torch.device(device).type
    if precision == "float32":
        with torch.autocast(device_type, enabled=False), exact_matmul(device):  # also inside the caller's autocast
            yield
        return
    if device_type == "cpu" and not processor().bfloat16:
        warnings.warn(
            "this processor has no bfloat16 instructions: precision bfloat16 is slower than float32.", stacklevel=3
        )
    with torch.autocast(device_type, torch.bfloat16):
        yield


@functools.cache
def _stays_exact() -> bool:
    """Whether a float32 product through oneDNN is as exact as float32, on this machine."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(TRIAL_SIZE, TRIAL_SIZE, generator=generator) for _ in range(2))
    try:
        _setting.enter()
    except RuntimeError:
        return False
    try:
        product = left @ right
    except RuntimeError:
        return False
    finally:
        _setting.leave()
    exact = left.double() @ right.double()
    return cast(bool, ((product - exact).abs().max() / exact.abs().max() < EXACT_ERROR).item())
