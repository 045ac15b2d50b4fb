"""What the processor is good at, and float32 products on the faster of two exact ways.

Rules, not measurements, choose: the same machine takes the same way in every run, so that runs are repeatable. What a
machine takes is printed by `benchmarks/`.
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
"""Largest error, relative to the largest magnitude, of a product of 768 terms that still counts as float32; products
of operands rounded to bfloat16 are off by 4e-3."""
THROUGH_ONEDNN = "medium"
"""PyTorch's name of the setting; "high" changes nothing on a CPU."""
TRIAL_SIZE = 768
"""Width of the product on which it is tried: that of the base model."""


@dataclass(frozen=True)
class Processor:
    """What decides how attention is computed on the CPU.

    Attributes:
        wide: whether it has 512-bit vectors and no matrix tiles: then float32 products go through oneDNN.
        bfloat16: whether it multiplies bfloat16 numbers itself; else they are several times slower than float32.
    """

    wide: bool
    bfloat16: bool


@functools.cache
def processor() -> Processor:
    """The processor of this machine."""
    wide = torch.cpu._is_avx512_supported() and not torch.cpu._is_amx_tile_supported()
    return Processor(wide=wide, bfloat16=bool(torch.cpu._is_avx512_bf16_supported()))


@contextmanager
def exact_products(device: torch.device | str = "cpu") -> Iterator[None]:
    """Compute float32 products of the CPU through oneDNN in here, where that is faster and still float32.

    On AMD processors with AVX-512 PyTorch's default takes a generic path at less than half the rate. The setting that
    moves products to oneDNN permits it to round operands to bfloat16, which it does where there are matrix tiles; so
    it is used only without them, and only after a product was found to be exact. Round a training step it must hold
    the backward pass too. What was set before is put back.

    Args:
        device: where the model is; the setting means something else to a GPU, so there nothing is done.
    """
    if torch.device(device).type != "cpu" or not processor().wide or not _stays_exact():
        yield
        return
    try:
        _setting.enter()
    except RuntimeError:  # whoever runs us has set each backend by itself
        yield
        return
    try:
        yield
    finally:
        _setting.leave()


class _Setting:
    """The setting, which is of the whole process: put back when the last of the threads that want it leaves."""

    def __init__(self) -> None:
        self.lock, self.inside, self.before = threading.Lock(), 0, ""

    def enter(self) -> None:
        """Set it; RuntimeError where it cannot be told what was set before."""
        with self.lock:
            if not self.inside:
                self.before = torch.get_float32_matmul_precision()
                torch.set_float32_matmul_precision(THROUGH_ONEDNN)
            self.inside += 1

    def leave(self) -> None:
        """Put back what was set before."""
        with self.lock:
            self.inside -= 1
            if not self.inside:
                torch.set_float32_matmul_precision(self.before)


_setting = _Setting()


@contextmanager
def products(device: torch.device | str, precision: Precision) -> Iterator[None]:
    """Compute the products of a model that listens in here: as `exact_products`, or in bfloat16 if that is wanted.

    Args:
        device: where the model is.
        precision: "bfloat16" is autocast: about 1 % off at the end of ASDA base, see `benchmarks/encoder.py`.
    """
    kind = torch.device(device).type
    if precision == "float32":
        with torch.autocast(kind, enabled=False), exact_products(device):  # also within the caller's autocast
            yield
        return
    if kind == "cpu" and not processor().bfloat16:
        warnings.warn("this processor has no bfloat16 products: precision bfloat16 is slower here.", stacklevel=3)
    with torch.autocast(kind, torch.bfloat16):
        yield


@functools.cache
def _stays_exact() -> bool:
    """Whether a float32 product through oneDNN is as exact as float32, on this machine."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(TRIAL_SIZE, TRIAL_SIZE, generator=generator) for _ in range(2))
    try:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(THROUGH_ONEDNN)
        product = left @ right
        torch.set_float32_matmul_precision(before)
    except RuntimeError:
        return False
    true = left.double() @ right.double()
    return cast(bool, ((product - true).abs().max() / true.abs().max() < EXACT_ERROR).item())
