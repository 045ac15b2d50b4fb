"""Contract of the modules of any plugin: inputs left as they are, a complete state, finite gradients, known sizes."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from asda_core.config_io import parse
from asda_core.contracts import Adapter, AdapterSpec, Spec
from asda_core.devices import building
from asda_core.errors import PluginError
from asda_core.spec_checks import check_spec

CheckT = TypeVar("CheckT", bound=Callable[..., None])
TOLERANCE = 1e-5
"""Tolerance for float32 sums in another order."""
TRAINING_STEPS = 3
"""Updates after which every parameter has moved, also one whose gradient is 0 until another has moved."""


def seeded(check: CheckT) -> CheckT:
    """Decorator that runs a check with a fixed seed and leaves the caller's generator unchanged."""

    @functools.wraps(check)
    def run(*arguments: Any, **options: Any) -> None:
        with building(0):
            check(*arguments, **options)

    return cast(CheckT, run)


def builder(spec: object, spec_class: type[Spec[Any, Any, Any]], options: Mapping[str, Any]) -> Callable[[Any], Any]:
    """Check a spec; return the function that builds its product for a context, and checks the type of it.

    Args:
        spec: what the plugin offers.
        spec_class: what it must be.
        options: of the plugin, as in a config.

    Raises:
        ConfigError: the options are wrong.
    """
    assert isinstance(spec, spec_class), f"a {spec_class.__name__} is needed, not {spec!r}"
    try:
        check_spec(spec, spec_class.__name__)
    except PluginError as error:
        raise AssertionError(error) from None
    name, build, config = spec.name, spec.build, parse(spec.config, options)
    expected = Adapter if spec_class is AdapterSpec else nn.Module

    def checked(context: Any) -> Any:
        product = build(config, context)
        assert isinstance(product, expected), f"{name}: build returned {product!r}, not a {expected.__name__}"
        return product

    return checked


@contextmanager
def unchanged_inputs(where: str, **inputs: Tensor | None) -> Iterator[None]:
    """Check that the calls in the block leave these tensors as they are: the caller goes on with them."""
    before = {name: value.clone() for name, value in inputs.items() if value is not None}
    yield
    for name, value in before.items():
        assert torch.equal(value, cast(Tensor, inputs[name])), f"{where}: changes its input {name} in place"


def check_tensor(where: str, output: object, shape: Sequence[int]) -> None:
    """Check that an output is a tensor of this shape."""
    assert isinstance(output, Tensor), f"{where}: returned {type(output).__name__}, not a tensor"
    assert tuple(output.shape) == tuple(shape), f"{where}: shape {tuple(output.shape)}, not {tuple(shape)}"


def check_round_trip(module: nn.Module, other: nn.Module, compute_output: Callable[[Any], Tensor]) -> None:
    """Check that the state holds only tensors, and that a second module gives the same output after loading it.

    Args:
        module: in evaluation mode.
        other: built the same way with another random initialisation, in evaluation mode.
        compute_output: output of a module that is compared.
    """
    state = module.state_dict()
    other_types = [name for name, value in state.items() if not isinstance(value, Tensor)]
    assert not other_types, f"state_dict may hold only tensors; not a tensor: {', '.join(other_types)}"
    integral = [name for name, parameter in module.named_parameters() if not parameter.is_floating_point()]
    assert not integral, f"parameters must be floating point; make {', '.join(integral)} a buffer"
    other.load_state_dict(state)
    with torch.no_grad():
        assert torch.equal(compute_output(module), compute_output(other)), (
            "state_dict is incomplete, as a copy loaded from it gives another output: keep what is drawn or "
            "updated in parameters or persistent buffers"
        )


def check_state(module: nn.Module, other: nn.Module, *arguments: Any) -> None:
    """`check_round_trip` for modules that return a tensor for these arguments."""
    check_round_trip(module, other, lambda instance: instance(*arguments))


def check_no_lazy_parameters(module: nn.Module) -> None:
    """Check that all parameters have a shape before the first call: optimisers and checkpoints need it."""
    lazy = [name for name, parameter in module.named_parameters() if is_lazy(parameter)]
    assert not lazy, f"no shape yet: {', '.join(lazy)}; take the sizes from the context"


def check_all_parameters_move(module: nn.Module, loss: Any) -> None:
    """Check that output and gradients are finite, and that every trainable parameter has moved after three steps."""
    parameters = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    optimizer = torch.optim.SGD(parameters.values(), lr=1e-2)
    for _ in range(TRAINING_STEPS):
        optimizer.zero_grad()
        value = loss()
        assert value.isfinite(), "the output in training mode is not finite"
        if value.requires_grad:
            value.backward()
        non_finite = [name for name, p in parameters.items() if p.grad is not None and not p.grad.isfinite().all()]
        assert not non_finite, f"gradients are not finite: {', '.join(non_finite)}"
        optimizer.step()
    unchanged = [name for name, parameter in parameters.items() if torch.equal(parameter, before[name])]
    assert not unchanged, f"these parameters do not change in training: {', '.join(unchanged)}"
