"""What holds for the modules of any plugin: a state of tensors that holds all, finite gradients, nothing lazy."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

CheckT = TypeVar("CheckT", bound=Callable[..., None])
TOLERANCE = 1e-5
"""Of float32 sums in another order."""
TRAINING_STEPS = 3
"""Updates after which every parameter has moved, also one whose gradient is 0 until another has."""


def seeded(check: CheckT) -> CheckT:
    """Let a check draw the same numbers every time, and leave the caller's generator as it was."""

    @functools.wraps(check)
    def run(*arguments: Any, **options: Any) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            check(*arguments, **options)

    return cast(CheckT, run)


def check_state(module: nn.Module, other: nn.Module, answer: Callable[[Any], Tensor]) -> None:
    """A second module of the same make gives the same numbers after taking over the state, which is of tensors.

    Args:
        module: in evaluation mode.
        other: drawn with other random numbers, in evaluation mode.
        answer: what is compared of either.
    """
    state = module.state_dict()
    strange = [name for name, value in state.items() if not isinstance(value, Tensor)]
    assert not strange, f"a checkpoint holds tensors alone, and {', '.join(strange)} is none"
    whole = [name for name, parameter in module.named_parameters() if not parameter.is_floating_point()]
    assert not whole, f"parameters must be floating point; make {', '.join(whole)} a buffer"
    other.load_state_dict(state)
    with torch.no_grad():
        assert torch.equal(answer(module), answer(other)), (
            "state_dict does not hold all that matters: make what was drawn a parameter, or a buffer that is saved"
        )


def check_made(module: nn.Module) -> None:
    """All parameters have their sizes, before any token is seen: optimisers and checkpoints need them."""
    lazy = [name for name, parameter in module.named_parameters() if is_lazy(parameter)]
    assert not lazy, f"{', '.join(lazy)} has no size yet; take the sizes from the context"


def check_all_parameters_move(module: nn.Module, loss: Any) -> None:
    """Gradients are finite, and every parameter that wants one has moved after three steps."""
    parameters = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    optimizer = torch.optim.SGD(parameters.values(), lr=1e-2)
    for _ in range(TRAINING_STEPS):
        optimizer.zero_grad()
        value = loss()
        if value.requires_grad:
            value.backward()
        wild = [name for name, p in parameters.items() if p.grad is not None and not p.grad.isfinite().all()]
        assert not wild, f"gradients are not finite: {', '.join(wild)}"
        optimizer.step()
    still = [name for name, parameter in parameters.items() if torch.equal(parameter, before[name])]
    assert not still, f"these parameters never move: {', '.join(still)}"
