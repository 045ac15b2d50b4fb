"""The scan through loops compiled by Numba, where it is installed: arguments and results are those of `scan.py`."""

import importlib
import importlib.util
import os
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from asda_plugins.mixer_mamba.scan import Inputs, Matrix, States, Steps, sequential_scan

LOOPS_MODULE = "asda_plugins.mixer_mamba.loops"
CHANNELS_OF_GRADIENT = 128
"""Channels whose gradients are made together. Fixed: sums over them must not depend on the number of threads."""
CHANNELS_OF_THREAD = 16
"""Channels are shared among threads in multiples of this, which two instructions of 256 bits update."""
TOLERANCE = 1e-5
"""Largest difference from the scan as written, relative to its largest value, at which the loops are used."""


@cache
def compiled_loops() -> ModuleType | None:
    """Return the loops if Numba is installed and computes what it should here; looked up once, on first use."""
    if importlib.util.find_spec("numba") is None:
        return None
    try:
        import numba

        if numba.config.DISABLE_JIT:  # the loops would run in Python
            return None
        loops = importlib.import_module(LOOPS_MODULE)
        error = error_of(loops)
    except Exception as fault:  # of another NumPy, no space for what it compiles, ...: anything may be raised
        reason = f"it does not compile the scan ({fault})"
    else:
        if error <= TOLERANCE:
            return loops
        reason = f"the scan that it compiles is wrong by {error:.1e}"
    warnings.warn(f"Numba is installed, but {reason}; using the chunked scan.", stacklevel=2)
    return None


def error_of(loops: ModuleType) -> float:
    """Return the largest difference of the loops from the scan as written, over its largest value, for 33 tokens."""
    u, step, b, c = (
        torch.linspace(start, 2, 33 * 19, dtype=torch.float32, device="cpu").view(33, 1, 19) for start in (-1, 0, -2, 1)
    )
    a = torch.linspace(-9, 0, 19 * 19, dtype=torch.float32, device="cpu").view(1, 19, 19)
    wanted = sequential_scan(u, step, a, b, c)
    return float((compiled_scan(loops, u, step, a, b, c) - wanted).abs().max() / wanted.abs().max())


def loops_for(x: Tensor) -> ModuleType | None:
    """Return the loops if a scan of these tokens can go through them: on a CPU, in float32, and not while traced."""
    if torch.compiler.is_compiling() or is_in_torch_dispatch_mode() or type(x) is not Tensor or x.device.type != "cpu":
        return None
    return compiled_loops() if torch.promote_types(x.dtype, torch.float32) == torch.float32 else None


def compiled_scan(loops: ModuleType, u: Steps, step: Steps, a: Matrix, b: States, c: States) -> Steps:
    """Compute `chunked_scan` through compiled loops, in float32."""
    output: Tensor = _CompiledScan.apply(loops, u, step, a, b, c)  # type: ignore[no-untyped-call]
    return output


def compiled_softplus(loops: ModuleType, x: Tensor) -> Tensor:
    """Return log(1 + e^x), without a gradient; x may be overwritten."""
    values = x.detach().float().contiguous()
    threads = torch.get_num_threads()
    share_out(loops.softplus, [(part,) for part in np.array_split(values.view(-1).numpy(), threads)])
    return values


class CompiledScan:
    """The scan of a sequence given in parts, without gradients; the states are kept between parts."""

    def __init__(self, loops: ModuleType, a: Matrix, skip: Tensor | None = None) -> None:
        rows, _, channels = a.shape
        self.loops, self.a, self.state = loops, a, a.new_zeros(a.shape)
        self.skip = a.new_zeros(channels) if skip is None else skip.to(a)
        threads = -(-torch.get_num_threads() // rows)  # for each row
        share = -(-channels // (threads * CHANNELS_OF_THREAD)) * CHANNELS_OF_THREAD
        self.pieces = [(row, *piece) for row in range(rows) for piece in divide(channels, share)]

    def add(
        self,
        inputs: Inputs,
        output: Tensor,
        token: int = 0,
        clip: int = 0,
        backwards: bool = False,
        starts: Tensor | None = None,
    ) -> None:
        """Add what the next steps give, with the skip (E,), to a contiguous output (tokens, clips, E).

        Rows are clips from `clip` on; steps are tokens from `token` on, both counted from the end if `backwards`.
        `starts` is filled with the state before each chunk.
        """
        assert output.is_contiguous()
        u, step, b, c = inputs
        starts = self.a.new_empty(0, *self.a.shape) if starts is None else starts
        given = arrays(step, u, b, c, self.a, self.skip, self.state, starts, output)
        share_out(self.loops.advance, [(*given, token, clip, backwards, *piece) for piece in self.pieces])


class _CompiledScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loops: ModuleType, u: Tensor, step: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        starts, output = u.new_empty(-(-len(u) // loops.CHUNK), *a.shape), u.new_zeros(u.shape)
        CompiledScan(loops, a).add((u, step, b, c), output, starts=starts)
        ctx.loops = loops
        ctx.save_for_backward(u, step, a, b, c, starts)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        u, step, a, b, c, starts = ctx.saved_tensors
        grad_u, grad_step, grad_a = (each.new_empty(each.shape) for each in (u, step, a))
        rows, _, channels = a.shape
        parts = divide(channels, CHANNELS_OF_GRADIENT)
        grad_b, grad_c = (each.new_empty(len(parts), *each.shape) for each in (b, c))
        calls = []
        for part, of_b, of_c in zip(parts, grad_b, grad_c, strict=True):
            given = arrays(step, u, b, c, a, starts, grad, grad_step, grad_u, of_b, of_c, grad_a)
            calls += [(*given, row, *part) for row in range(rows)]
        share_out(ctx.loops.retreat, calls)
        return None, grad_u, grad_step, grad_a, grad_b.sum(dim=0), grad_c.sum(dim=0)


def divide(channels: int, share: int) -> list[tuple[int, int]]:
    """Return the first channel of each share, and the one behind its last."""
    return [(first, min(first + share, channels)) for first in range(0, channels, share)]


def arrays(*tensors: Tensor) -> list[np.ndarray]:
    """Return the tensors, or contiguous copies, as the loops take them."""
    return [tensor.detach().contiguous().numpy() for tensor in tensors]


def share_out(loop: Callable[..., None], calls: list[tuple[Any, ...]]) -> None:
    """Make the calls, in as many threads as PyTorch uses: the loops run without the interpreter's lock."""
    threads = min(torch.get_num_threads(), len(calls))
    if threads == 1:
        for arguments in calls:
            loop(*arguments)
        return
    for call in [threads_of(os.getpid(), threads).submit(loop, *arguments) for arguments in calls]:
        call.result()


@cache
def threads_of(process: int, threads: int) -> ThreadPoolExecutor:
    """Return threads, kept for later calls of a process: to start them takes as long as a short loop.

    A fork has none of its parent's threads, so it has its own.
    """
    return ThreadPoolExecutor(threads, thread_name_prefix=f"asda-scan-{process}")
