"""The selective scan: a linear recurrence whose decay and input depend on the token.

    h_t = exp(step_t a) h_(t-1) + step_t u_t b_t        for each channel (E) and state (n)
    y_t = sum over states of c_t h_t

`chunked_scan` and `sequential_scan` are equal up to rounding. The chunked one computes decays and inputs of 64 steps at
a time, runs through them with one in-place operation per step, and reads them out with one product; for the gradient it
keeps the state at the start of each chunk and recomputes the others. It only multiplies by decays of at most 1, so
steps of any size are safe, unlike in forms that divide by cumulative decays.

Tensors are time first, so that one step is contiguous in memory; both directions of a mixer are stacked along the
batch axis.

**Source**: Gu and Dao 2023 (Mamba), equation 2 and section 3.3.2: exact for the decay, Euler for the input.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK = 64
"""Steps whose states are held at once. Measured: 32 to 128 are equal within noise on a CPU."""
FLOATS_PER_STEP = 2**14
"""States that one operation updates: 64 KiB, so that a chunk of them stays in the cache of a core."""
LOG2_E = math.log2(math.e)
"""`exp(x) = exp2(x log2(e))`; exp2 is several times faster than exp on CPUs without Intel's vector library."""

Steps = Float[Tensor, "steps rows channels"]
States = Float[Tensor, "steps rows states"]
Matrix = Float[Tensor, "rows states channels"]
Inputs = tuple[Tensor, Tensor, Tensor, Tensor]
"""Arguments of a scan: input u (N, R, E), steps (N, R, E), and b and c (N, R, n), see `chunked_scan`."""


def sequential_scan(u: Steps, step: Steps, a: Matrix, b: States, c: States) -> Steps:
    """Compute the recurrence as written; arguments as in `chunked_scan`. Slow: for tests and as a reference."""
    state = torch.zeros_like(a)
    outputs = []
    for index in range(len(u)):
        decay = (step[index].unsqueeze(1) * a).exp()
        state = decay * state + (step[index] * u[index]).unsqueeze(1) * b[index].unsqueeze(2)
        outputs.append((state * c[index].unsqueeze(2)).sum(dim=1))
    return torch.stack(outputs)


def chunked_scan(u: Steps, step: Steps, a: Matrix, b: States, c: States) -> Steps:
    """Compute the recurrence one chunk at a time.

    Args:
        u: input (N, R, E) of each channel; R rows are clips times directions.
        step: (N, R, E) step size at each token, not negative.
        a: (R, n, E) decay rates, negative.
        b, c: (N, R, n) how the input enters the states, and how they are read.

    Returns:
        output (N, R, E).
    """
    with torch.autocast(u.device.type, enabled=False):
        output: Tensor = _ChunkedScan.apply(u, step, a, b, c)  # type: ignore[no-untyped-call]
    return output


class _ChunkedScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, step: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        starts = u.new_empty(-(-len(u) // CHUNK), *a.shape)
        output = Scan(a)(u, step, b, c, starts)
        ctx.save_for_backward(u, step, a, b, c, starts)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        with torch.autocast(grad.device.type, enabled=False):
            return _gradients(grad, *ctx.saved_tensors)


def _gradients(
    grad: Tensor, u: Tensor, step: Tensor, a: Tensor, b: Tensor, c: Tensor, starts: Tensor
) -> tuple[Tensor, ...]:
    """Return the gradients of u, step, a, b and c."""
    grads = [torch.empty_like(tensor) for tensor in (u, step, b, c)]
    grad_a = torch.zeros_like(a)
    for rows in _groups(a):
        inputs = [tensor[:, rows] for tensor in (u, step, b, c)]
        outputs = [tensor[:, rows] for tensor in grads]
        _backward(inputs, grad[:, rows], starts[:, rows], a[rows], outputs, grad_a[rows])
    grad_u, grad_step, grad_b, grad_c = grads
    return grad_u, grad_step, grad_a, grad_b, grad_c


def _groups(a: Tensor) -> list[slice]:
    """Return the rows that are processed together: on a CPU few enough that their states stay in the cache."""
    size = len(a) if a.is_cuda else max(1, FLOATS_PER_STEP // a[0].numel())
    return [slice(first, first + size) for first in range(0, len(a), size)]


def _chunks(steps: int) -> list[slice]:
    return [slice(first, min(first + CHUNK, steps)) for first in range(0, steps, CHUNK)]


class Scan:
    """`chunked_scan` of a sequence given in parts, without gradients; the states are kept between parts."""

    def __init__(self, a: Matrix) -> None:
        self.groups = [(rows, _Buffer(a[rows], CHUNK), torch.zeros_like(a[rows])) for rows in _groups(a)]

    @torch.no_grad()
    def __call__(self, u: Steps, step: Steps, b: States, c: States, starts: Tensor | None = None) -> Steps:
        """Return the outputs of the next steps; `starts` is filled with the state before each chunk."""
        output = torch.empty_like(u)
        with torch.autocast(u.device.type, enabled=False):
            entering = step * u
            for rows, buffer, state in self.groups:
                wide = [tensor[:, rows].unsqueeze(2) for tensor in (step, entering, c, output)]
                chunks = zip(*(torch.split(tensor, CHUNK) for tensor in (*wide, b[:, rows].unsqueeze(3))), strict=True)
                for number, (steps, inputs, reading, read, weights) in enumerate(chunks):
                    if starts is not None:
                        starts[number, rows] = state
                    states, _ = buffer.walk(steps, inputs, weights, state)
                    torch.matmul(reading, states, out=read)
                    state.copy_(states[-1])
        return output


def _backward(
    inputs: list[Tensor], grad: Tensor, starts: Tensor, a: Tensor, outputs: list[Tensor], grad_a: Tensor
) -> None:
    """Fill the gradients of u, step, b and c, and add that of a; last chunk first."""
    size = min(CHUNK, len(grad))
    buffer, grad_states = _Buffer(a, size), a.new_empty(size, *a.shape)
    grad_state = torch.zeros_like(a)  # gradient of the state at the end of the chunk
    for number, part in reversed(list(enumerate(_chunks(len(grad))))):
        chunk = [tensor[part] for tensor in inputs]
        out = [tensor[part] for tensor in outputs]
        size = part.stop - part.start
        grad_state = _chunk_backward(
            chunk, grad[part], a, starts[number], grad_state, buffer, grad_states[:size], out, grad_a
        )


class _Buffer:
    """Buffers for the decays and states (Q, R, n, E) of a chunk, reused by the next."""

    def __init__(self, a: Tensor, size: int) -> None:
        self.rate = a * LOG2_E
        self.decay, self.states = (a.new_empty(size, *a.shape) for _ in range(2))
        self.steps = self.states.unbind(), self.decay.unbind()

    def walk(self, step: Tensor, entering: Tensor, b: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return (states, decays) of a chunk that starts from `state`; the next call overwrites them.

        Args:
            step: (Q, R, 1, E); entering: `step * u`, of the same shape; b: (Q, R, n, 1).
            state: (R, n, E).
        """
        size = len(step)
        decay, states = self.decay[:size], self.states[:size]
        torch.mul(step, self.rate, out=decay)
        torch.exp2(decay, out=decay)
        torch.mul(entering, b, out=states)
        inputs, decays = (tensor[:size] for tensor in self.steps)
        _carry(state, inputs, decays)
        return states, decay


def _carry(state: Tensor, inputs: Sequence[Tensor], decays: Sequence[Tensor]) -> None:
    """Compute `state = inputs + decays * state` for one step after another, in place in `inputs`.

    On a CPU one call suffices: `_foreach_addcmul_` processes its lists in order there, which the tests verify (torch's
    versions are pinned), and separate calls for each step took a third longer.
    """
    if inputs and state.device.type == "cpu":
        torch._foreach_addcmul_(list(inputs), list(decays), [state, *inputs[:-1]])
        return
    for current, factor in zip(inputs, decays, strict=True):
        state = torch.addcmul(current, factor, state, out=current)


def _chunk_backward(
    chunk: list[Tensor],
    grad: Tensor,
    a: Tensor,
    start: Tensor,
    grad_end: Tensor,
    buffer: _Buffer,
    grad_states: Tensor,
    out: list[Tensor],
    grad_a: Tensor,
) -> Tensor:
    """Write gradients of a chunk to `out` (u, step, b, c), add to `grad_a`, and return the gradient of `start`.

    `grad_states` is a buffer for the gradients of the states.
    """
    u, step, b, c = chunk
    entering = step * u
    states, decay = buffer.walk(step.unsqueeze(2), entering.unsqueeze(2), b.unsqueeze(3), start)
    grad_u, grad_step, grad_b, grad_c = out
    grad_c.copy_(torch.matmul(states, grad.unsqueeze(3)).squeeze(3))
    torch.mul(c.unsqueeze(3), grad.unsqueeze(2), out=grad_states)
    grad_states[-1] += grad_end
    last, *earlier = reversed(grad_states.unbind())  # each becomes the gradient of its state
    _carry(last, earlier, decay.unbind()[:0:-1])
    grad_b.copy_(torch.matmul(grad_states, entering.unsqueeze(3)).squeeze(3))
    grad_input = torch.matmul(b.unsqueeze(2), grad_states).squeeze(2)  # gradient of step * u
    torch.mul(grad_input, step, out=grad_u)
    grad_start = decay[0] * grad_states[0]
    decay *= grad_states  # from here on: gradient of decay, times decay
    decay[1:] *= states[:-1]
    decay[0] *= start
    grad_a += (decay * step.unsqueeze(2)).sum(dim=0)
    torch.addcmul((decay * a).sum(dim=2), grad_input, u, out=grad_step)
    return grad_start
