"""What is kept of the process while another tool runs in it."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from asda_hear.evaluate.process_state import keep_process_state


@contextmanager
def import_cut_short(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The first call imports a part of torch; if Ctrl-C cuts that short, every later call fails."""
    calls: list[bool] = []
    real = torch.use_deterministic_algorithms

    def use(mode: bool, *, warn_only: bool = False) -> None:
        calls.append(mode)
        if len(calls) == 1:
            raise KeyboardInterrupt
        raise ImportError("cannot import name '_inductor' from 'torch'")

    monkeypatch.setattr(torch, "use_deterministic_algorithms", use)
    yield
    monkeypatch.setattr(torch, "use_deterministic_algorithms", real)


def test_ctrl_c_in_the_import_of_a_tool_stays_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    with import_cut_short(monkeypatch), pytest.raises(KeyboardInterrupt), keep_process_state():
        torch.use_deterministic_algorithms(True)  # as pytorch-lightning does
