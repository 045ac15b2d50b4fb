"""The fused scan of `mamba_ssm`, where it is installed."""

import importlib
import importlib.util
import warnings
from collections.abc import Callable
from functools import cache

from torch import Tensor

from asda_plugins.mixer_mamba.scan import Inputs

KERNEL_MODULE = "mamba_ssm.ops.selective_scan_interface"


@cache
def fused_kernel() -> Callable[..., Tensor] | None:
    """Return the scan of `mamba_ssm` if it is installed and works here; looked up once, on first use."""
    if importlib.util.find_spec("mamba_ssm") is None:
        return None
    try:
        kernel: Callable[..., Tensor] = importlib.import_module(KERNEL_MODULE).selective_scan_fn
    except Exception as error:  # built for another driver, or without this kernel: an extension may raise anything
        warnings.warn(
            f"mamba_ssm is installed, but its selective scan does not load ({error}); using the chunked scan.",
            stacklevel=2,
        )
        return None
    return kernel


def scan_with_kernel(kernel: Callable[..., Tensor], inputs: Inputs, log_decay: Tensor, skip: Tensor) -> Tensor:
    """Run one direction through `mamba_ssm`, which expects tokens last."""
    u, step, b, c = (tensor.permute(1, 2, 0).contiguous() for tensor in inputs)  # (B, E or n, N)
    return kernel(u, step, -log_decay.exp(), b, c, skip).permute(2, 0, 1)
