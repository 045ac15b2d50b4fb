"""A GPU that computes no values, on a machine that has none: shapes, types and devices are those of CUDA.

What is on the CPU is computed as ever. An operation that mixes both raises as it would on a GPU; one that makes the CPU
wait for the GPU (to read a number, to count what is True) has no value to give here, and raises too, unless a test says
what is read. PyTorch's fake tensors do it; gradients need a real device, so what is tried here is the way forward.
"""

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

GPU = torch.device("cuda")


class Traffic(TorchDispatchMode):
    """Real on the CPU, fake on the GPU.

    Attributes:
        sent: numbers that went from the CPU to the GPU, per copy.
        waited: those of them for which the CPU would wait.
        calls: operations of the GPU.
        drawn: random numbers that the CPU drew, per draw.
    """

    def __init__(self, reads: int | None) -> None:
        super().__init__()
        self.reads = reads
        self.sent: list[int] = []
        self.waited: list[int] = []
        self.calls = 0
        self.drawn: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        leaves = tree_leaves((args, kwargs or {}))
        there = (leaf.type == GPU.type for leaf in leaves if isinstance(leaf, torch.device))
        on_gpu = any(isinstance(leaf, FakeTensor) for leaf in leaves) or any(there)
        name = func._schema.name.partition("::")[2]
        if name == "_local_scalar_dense" and on_gpu and self.reads is not None:
            return args[0].dtype == torch.bool or self.reads
        with contextlib.nullcontext() if on_gpu else unset_fake_temporarily():
            result = func(*args, **(kwargs or {}))
        self.calls += on_gpu
        if name == "_to_copy" and isinstance(result, FakeTensor) and args[0].device.type == "cpu":
            self.sent.append(result.numel())
            if not (kwargs.get("non_blocking") and hasattr(args[0], "pinned")):
                self.waited.append(result.numel())
        if not on_gpu and name.startswith("rand") and isinstance(result, Tensor):
            self.drawn.append(result.numel())
        return result


def _pinned(values: Tensor) -> Tensor:
    """Where there is no GPU, no memory can be pinned: a copy that is marked."""
    copied = values.clone()
    copied.pinned = True  # type: ignore[attr-defined]
    return copied


def _yes(*arguments: Any) -> bool:
    return True


def _no(*arguments: Any) -> bool:
    return False


@contextlib.contextmanager
def fake_gpu(reads: int | None = None) -> Iterator[Traffic]:
    """In here `GPU` is a device; yields what went there.

    Args:
        reads: the number that the CPU reads from the GPU, wherever it does; None allows no reading.
    """
    with (
        mock.patch("torch.cuda.amp.common.amp_definitely_not_available", _no),
        mock.patch("torch.cuda.is_bf16_supported", _yes),
        mock.patch.object(Tensor, "pin_memory", _pinned),
        FakeTensorMode(allow_non_fake_inputs=True),
        Traffic(reads) as traffic,
        torch.no_grad(),
    ):
        yield traffic


def move(module: nn.Module) -> None:
    """Put a module on the GPU in place, within `fake_gpu`."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                empty = torch.empty(parameter.shape, dtype=parameter.dtype, device=GPU)
                part._parameters[name] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device=GPU)
