"""The selective scan as plain loops, compiled by Numba when they are first called; imported only where it is installed.

A range of channels of one row is copied to contiguous buffers, so that one instruction updates several channels, and
goes through all tokens before the next range: its states never leave the cache.

Arrays are float32 and C-contiguous, in the shapes of `scan.py`: `step`, `u` and the gradients (N, R, E);
`b`, `c` (N, R, n); `a`, `state` (R, n, E); `starts` (chunks, R, n, E), the states before each chunk.
"""

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numpy.polynomial import Chebyshev, Polynomial
from numpy.typing import NDArray

from asda_plugins.mixer_mamba.scan import LOG2_E as LOG2_E_EXACTLY

CHUNK = 32
"""Steps whose states are held at once for the gradient: of 128 channels and 16 states they take 256 KiB."""
LOG2_E = np.float32(LOG2_E_EXACTLY)
LEAST_EXPONENT = np.float32(-126)
"""Exponent of the smallest normal float32: smaller decays are taken as this one, 1.2e-38."""
ROUNDING = np.float32(1.5 * 2**23)
"""Added to a small float32, it leaves the nearest integer in the lowest bits."""
MANTISSA_BITS, EXPONENT_OF_ONE = np.int32(23), np.int32(127)
"""Of a float32. **Source**: IEEE 754."""
TWO = np.float32(2)
CONTRACT = {"contract"}
"""What the compiler may change: a product and a sum become one operation, rounded once."""
REORDER = {"contract", "reassoc", "nsz"}
"""And sums may be taken in another order, the same in every run."""

Array = NDArray[np.float32]


def polynomial(function: Callable[..., Any], degree: int, domain: tuple[float, float]) -> tuple[np.float32, ...]:
    """Return the coefficients, constant first, of a polynomial that equals the function nearly best on a domain."""
    series = Chebyshev.interpolate(function, degree, domain=domain).convert(kind=Polynomial, domain=[-1, 1])
    return tuple(np.float32(coefficient) for coefficient in series.coef)


POWERS = polynomial(np.exp2, 6, (-0.5, 0.5))
"""Of 2^f: the largest relative error is 3e-9, a twentieth of the rounding of float32."""
ARTANH = polynomial(lambda z: np.arctanh(z**0.5) / z**0.5, 4, (0, 1 / 9))
"""Of P in `artanh(s) = s P(s^2)`, s at most a third: 4e-9."""


def compiled(fastmath: set[str], **options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Compile a function on its first call; kept on disk for other processes if some folder for that is writable."""
    options |= {"fastmath": fastmath, "nogil": True, "error_model": "numpy"}

    def compile_later(function: Callable[..., Any]) -> Callable[..., Any]:
        try:
            loop: Callable[..., Any] = numba.njit(cache=True, **options)(function)
        except RuntimeError:  # no such folder
            loop = numba.njit(**options)(function)
        return loop

    return compile_later


@compiled(CONTRACT, inline="always")
def exp2(x: Any) -> Any:
    """Return 2^x, x at most 127, to rounding; NaN stays NaN."""
    bounded = LEAST_EXPONENT if x < LEAST_EXPONENT else x
    shifted = np.float32(bounded + ROUNDING)
    fraction = bounded - (shifted - ROUNDING)
    power = POWERS[-1]
    for degree in range(len(POWERS) - 2, -1, -1):
        power = power * fraction + POWERS[degree]
    return power * np.int32((shifted.view(np.int32) + EXPONENT_OF_ONE) << MANTISSA_BITS).view(np.float32)


@compiled(CONTRACT)
def softplus(x: Array) -> None:
    """Replace each of x (N,) by log(1 + e^x) = max(x, 0) + 2 artanh(p / (2 + p)), where p = e^-|x|."""
    for place in range(len(x)):
        above, below = (np.float32(0), x[place]) if x[place] < 0 else (x[place], -x[place])
        power = exp2(below * LOG2_E)
        ratio = power / (TWO + power)
        square = ratio * ratio
        series = ARTANH[-1]
        for degree in range(len(ARTANH) - 2, -1, -1):
            series = series * square + ARTANH[degree]
        x[place] = above + TWO * ratio * series


@compiled(CONTRACT)
def advance(
    step: Array,
    u: Array,
    b: Array,
    c: Array,
    a: Array,
    skip: Array,
    state: Array,
    starts: Array,
    output: Array,
    token: int,
    clip: int,
    backwards: bool,
    row: int,
    first: int,
    last: int,
) -> None:
    """Run channels `first` to `last` of a row through all steps: move `state`, fill `starts` unless empty.

    The outputs and `skip` (E) times `u` are added to `output` (tokens, clips, E) of a clip, from a token on; tokens are
    counted from the end if `backwards`.
    """
    states, width = a.shape[1], last - first
    rate, h = np.empty((states, width), np.float32), np.empty((states, width), np.float32)
    steps, entering, read = np.empty(width, np.float32), np.empty(width, np.float32), np.empty(width, np.float32)
    for n in range(states):
        for e in range(width):
            rate[n, e] = a[row, n, first + e] * LOG2_E
            h[n, e] = state[row, n, first + e]
    for now in range(len(step)):
        if now % CHUNK == 0 and len(starts):
            for n in range(states):
                for e in range(width):
                    starts[now // CHUNK, row, n, first + e] = h[n, e]
        for e in range(width):
            steps[e] = step[now, row, first + e]
            entering[e] = steps[e] * u[now, row, first + e]
            read[e] = 0
        for n in range(states):
            weight, reading = b[now, row, n], c[now, row, n]
            for e in range(width):
                h[n, e] = h[n, e] * exp2(steps[e] * rate[n, e]) + entering[e] * weight
                read[e] += h[n, e] * reading
        place = len(output) - 1 - token - now if backwards else token + now
        for e in range(width):
            output[place, clip + row, first + e] += read[e] + skip[first + e] * u[now, row, first + e]
    for n in range(states):
        for e in range(width):
            state[row, n, first + e] = h[n, e]


@compiled(REORDER)
def sums(left: Array, right: Array, total: Array, row: int) -> None:
    """Fill a row of `total` (Q, R, n) with the sums over channels of `left` (Q, n, e) times `right` (Q, e)."""
    for q in range(len(total)):
        for n in range(left.shape[1]):
            product = np.float32(0)
            for e in range(left.shape[2]):
                product += left[q, n, e] * right[q, e]
            total[q, row, n] = product


@compiled(CONTRACT)
def remake(
    step: Array,
    u: Array,
    b: Array,
    rate: Array,
    decay: Array,
    h: Array,
    entering: Array,
    row: int,
    first: int,
    begin: int,
    end: int,
) -> None:
    """Fill `decay` (Q, n, e), `entering` (Q, e) and, from `h[0]` on, the states `h[1:]` of steps `begin` to `end`."""
    for q in range(end - begin):
        for e in range(rate.shape[1]):
            entering[q, e] = step[begin + q, row, first + e] * u[begin + q, row, first + e]
        for n in range(len(rate)):
            weight = b[begin + q, row, n]
            for e in range(rate.shape[1]):
                decay[q, n, e] = exp2(step[begin + q, row, first + e] * rate[n, e])
                h[q + 1, n, e] = h[q, n, e] * decay[q, n, e] + entering[q, e] * weight


@compiled(CONTRACT)
def turn_back(
    step: Array,
    u: Array,
    b: Array,
    c: Array,
    a: Array,
    grad: Array,
    grad_step: Array,
    grad_u: Array,
    grad_a: Array,
    decay: Array,
    h: Array,
    carried: Array,
    row: int,
    first: int,
    begin: int,
    end: int,
) -> None:
    """Go back from `end` to `begin`, `decay` becoming the gradients of the states; `carried` is that before a step."""
    states, width = carried.shape
    steps, of_input, of_exponent = np.empty(width, np.float32), np.empty(width, np.float32), np.empty(width, np.float32)
    of_rate = np.zeros((states, width), np.float32)
    for now in range(end - 1, begin - 1, -1):
        for e in range(width):
            steps[e] = step[now, row, first + e]
            of_input[e] = 0
            of_exponent[e] = 0
        for n in range(states):
            weight, reading = b[now, row, n], c[now, row, n]
            for e in range(width):
                of_state = carried[n, e] + grad[now, row, first + e] * reading
                carried[n, e] = of_state * decay[now - begin, n, e]
                decay[now - begin, n, e] = of_state
                of_input[e] += of_state * weight
                of_exponent[e] += carried[n, e] * h[now - begin, n, e] * a[row, n, first + e]
                of_rate[n, e] += carried[n, e] * h[now - begin, n, e] * steps[e]
        for e in range(width):
            grad_u[now, row, first + e] = of_input[e] * steps[e]
            grad_step[now, row, first + e] = of_exponent[e] + of_input[e] * u[now, row, first + e]
    for n in range(states):
        for e in range(width):
            grad_a[row, n, first + e] += of_rate[n, e]


@compiled(CONTRACT)
def retreat(
    step: Array,
    u: Array,
    b: Array,
    c: Array,
    a: Array,
    starts: Array,
    grad: Array,
    grad_step: Array,
    grad_u: Array,
    grad_b: Array,
    grad_c: Array,
    grad_a: Array,
    row: int,
    first: int,
    last: int,
) -> None:
    """Fill the gradients for channels `first` to `last` of a row, last chunk first.

    `grad` is that of the output; `grad_b` and `grad_c` are what these channels contribute.
    """
    states, width = a.shape[1], last - first
    rate, carried = np.empty((states, width), np.float32), np.zeros((states, width), np.float32)
    decay, h = np.empty((CHUNK, states, width), np.float32), np.empty((CHUNK + 1, states, width), np.float32)
    entering, read = np.empty((CHUNK, width), np.float32), np.empty((CHUNK, width), np.float32)
    for n in range(states):
        for e in range(width):
            rate[n, e] = a[row, n, first + e] * LOG2_E
            grad_a[row, n, first + e] = 0
    for chunk in range(len(starts) - 1, -1, -1):
        begin = chunk * CHUNK
        end = min(begin + CHUNK, len(step))
        for n in range(states):
            for e in range(width):
                h[0, n, e] = starts[chunk, row, n, first + e]
        for q in range(end - begin):
            for e in range(width):
                read[q, e] = grad[begin + q, row, first + e]
        remake(step, u, b, rate, decay, h, entering, row, first, begin, end)
        sums(h[1:], read, grad_c[begin:end], row)
        turn_back(step, u, b, c, a, grad, grad_step, grad_u, grad_a, decay, h, carried, row, first, begin, end)
        sums(decay, entering, grad_b[begin:end], row)
