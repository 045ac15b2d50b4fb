"""How a step is computed: recomputed or compiled blocks, a replica per process, or one model sharded over all."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from asda_core.errors import ConfigError
from asda_core.model.block import Block
from asda_core.pretrain.decoder import ConvolutionalDecoder
from asda_core.pretrain.processes import Processes
from asda_core.settings.compute import ComputeConfig


def prepare(step: nn.Module, config: ComputeConfig, processes: Processes, device: torch.device) -> nn.Module:
    """Move a step to its device and wrap it; the names of its tensors do not change.

    Args:
        step: holds encoder and objective, with the initial weights.
        config: how to compute it.
        processes: the processes that train it together.
        device: of this process.

    Returns:
        the module to call instead of `step`, which takes part in the exchange of gradients.

    Raises:
        ConfigError: `compute.compile` is set, and there is no compiler.
    """
    blocks = [module for module in step.modules() if isinstance(module, Block)]
    if config.compile:
        check_compiler(device)
        for block in blocks:
            replace_forward(block, torch.compile(block.forward))
    if config.recompute:
        for block in blocks:
            replace_forward(block, partial(checkpoint, block.forward, use_reentrant=False))
    if processes.world_size == 1:
        return step.to(device)
    if config.sharding == "full":
        return shard(step, blocks, processes, device)
    # The parameters in use depend on the config (no class token, a loss of weight 0), so DDP looks for unused ones.
    return DistributedDataParallel(
        step.to(device), broadcast_buffers=False, find_unused_parameters=True, gradient_as_bucket_view=True
    )


def replace_forward(module: nn.Module, forward: Callable[..., Any]) -> None:
    """Replace the forward function of a module; hooks, children and names of tensors are kept."""
    module.forward = forward


def check_compiler(device: torch.device) -> None:
    """Compile a trivial function.

    Raises:
        ConfigError: the compilation fails.
    """
    try:
        torch.compile(lambda values: values + 1)(torch.zeros(2, device=device))
    except Exception as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ConfigError(
            f"compute.compile: true needs a compiler for {device.type} (g++ on a CPU, Triton on a GPU): {reason:.200} "
            "Without one, compute.compile: false gives the same results."
        ) from None


def shard(step: nn.Module, blocks: list[Block], processes: Processes, device: torch.device) -> nn.Module:
    """Shard every tensor over the processes: each block, the decoder, and the rest with the step itself.

    Tensors move to the device one block at a time, so that it never holds the whole model. The teacher is sharded like
    the student, and follows it shard by shard.
    """
    from torch.distributed.device_mesh import init_device_mesh  # takes a second to import, and is rarely needed
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (processes.world_size,))
    decoders = [module for module in step.modules() if isinstance(module, ConvolutionalDecoder)]
    for module in (*blocks, *decoders):
        fully_shard(module, mesh=mesh)
    fully_shard(step, mesh=mesh)
    return step


def is_sharded(tensor: Tensor) -> bool:
    """Whether this process holds only a shard of a tensor."""
    return hasattr(tensor, "full_tensor")


def full_tensor(tensor: Any) -> Tensor:
    """Return the full tensor; for a sharded one all processes must call this."""
    full: Tensor = tensor.full_tensor() if is_sharded(tensor) else tensor
    return full


def gather_tensors(tensors: Mapping[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """Apply `full_tensor` to each, one at a time, moving sharded ones to the CPU.

    All processes must call this; those without `keep` get an empty dict.
    """
    full_tensors = {}
    for name, tensor in tensors.items():
        full = full_tensor(tensor).cpu() if is_sharded(tensor) else tensor
        if keep:
            full_tensors[name] = full
    return full_tensors


def distribute_like(value: Tensor, parameter: Any) -> Tensor:
    """Return a full tensor of a parameter's shape on the parameter's device, sharded like the parameter."""
    moved = value.to(parameter.device)
    if not is_sharded(parameter):
        return moved
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(moved, parameter.device_mesh, parameter.placements, src_data_rank=None)
