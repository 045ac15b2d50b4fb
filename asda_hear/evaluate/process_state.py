"""State of the process that a tool changes for its own purposes, and that others must find as it was."""

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import numpy as np
import torch


@contextmanager
def keep_process_state() -> Iterator[None]:
    """Restore on exit the environment, torch's choice of deterministic algorithms, and the global random generators.

    The generators are those of Python, NumPy and torch; on GPUs they are restored where CUDA was initialised before.
    """
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    numpy_state, python_state = np.random.get_state(), random.getstate()
    initialised = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    gpus = range(torch.cuda.device_count()) if initialised else ()
    # It imports torch's compiler; on exit, an import that Ctrl-C has cut short would fail and hide the Ctrl-C.
    torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
    with mock.patch.dict(os.environ), torch.random.fork_rng(devices=gpus):
        try:
            yield
        finally:
            np.random.set_state(numpy_state)
            random.setstate(python_state)
            torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
