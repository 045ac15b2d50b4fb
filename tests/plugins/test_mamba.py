"""The scan against its sequential twin, and the mixer: order, padding, directions, the kernel's door."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from asda_plugins.mixer_mamba import fused_kernel, scan_with_kernel
from asda_plugins.mixer_mamba.scan import CHUNK, Scan, chunked_scan, sequential_scan
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from asda_core.catalog import Catalog
from asda_core.config_io import parse
from asda_core.contracts import MixerContext
from asda_core.errors import ConfigError
from asda_core.layout import TokenLayout
from asda_core.testing import check_mixer

DIM = 32


def arguments(steps: int, rows: int = 3, channels: int = 5, states: int = 4) -> list[Tensor]:
    torch.manual_seed(steps)
    u, step = torch.randn(steps, rows, channels), torch.rand(steps, rows, channels) * 3
    a = -torch.rand(rows, states, channels) * 16
    b, c = torch.randn(steps, rows, states), torch.randn(steps, rows, states)
    return [each.double().requires_grad_() for each in (u, step, a, b, c)]


@pytest.mark.parametrize("steps", [1, 7, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 2])
def test_chunks_equal_steps(steps: int) -> None:
    """Outputs and all gradients, to rounding."""
    given = arguments(steps)
    results = []
    for scan in (sequential_scan, chunked_scan):
        output = scan(*given)
        weight = torch.linspace(-1, 1, output.numel(), dtype=torch.float64).view_as(output)
        results.append([output, *torch.autograd.grad((output * weight).sum(), given)])
    for one, other in zip(*results, strict=True):
        assert torch.allclose(one, other, rtol=1e-10, atol=1e-12)


def test_many_rows_are_walked_in_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    given = arguments(70, rows=7)
    whole = chunked_scan(*given)
    monkeypatch.setattr("asda_plugins.mixer_mamba.scan.FLOATS_PER_STEP", 2 * 5 * 4)  # two rows at a time
    parts = chunked_scan(*given)
    assert torch.equal(whole, parts)
    for one, other in zip(*(torch.autograd.grad(each.sum(), given) for each in (whole, parts)), strict=True):
        assert torch.allclose(one, other, rtol=1e-12)


def test_float32_and_huge_steps() -> None:
    """Steps so large that a decay is 0: finite, where forms that divide by cumulated decays are not."""
    u, step, a, b, c = (each.detach().float() for each in arguments(130))
    for factor in (1, 1e4):
        wanted = sequential_scan(*(each.double() for each in (u, step * factor, a, b, c)))
        given = chunked_scan(u, step * factor, a, b, c).double()
        assert given.isfinite().all()
        assert (given - wanted).abs().max() <= 1e-6 * wanted.abs().max()


def make(catalog: Catalog, **options: Any) -> Any:
    spec = catalog.find("mixer", "mamba").spec
    torch.manual_seed(2)
    return spec.build(parse(spec.config, options), MixerContext(DIM, 4, 0, 2)).eval()


@pytest.mark.parametrize("block", [1, 2, 8, 37, 64])
@pytest.mark.parametrize("version", ["v1", "v2", "forward"])
@pytest.mark.parametrize("padded", [False, True])
def test_blocks_equal_all_at_once(
    catalog: Catalog, version: str, block: int, padded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without gradients tokens go block by block, and a few clips at a time: the same outputs, by far less memory."""
    mixer = make(catalog, version=version).double()
    layout = TokenLayout.full(5, (37, 1))
    if padded:
        padding = torch.zeros(5, 37, dtype=torch.bool)
        padding[0, 30:] = padding[1, :9] = padding[2, 4:8] = True
        layout = TokenLayout(layout.index, layout.grid, padding)
    tokens = torch.randn(5, 37, DIM, dtype=torch.float64)
    wanted = mixer(tokens, layout)
    assert wanted.requires_grad
    monkeypatch.setattr("asda_plugins.mixer_mamba.BLOCK", block)
    monkeypatch.setattr("asda_plugins.mixer_mamba.FLOATS_PER_STEP", 2 * 2 * 2 * DIM * 16)  # two clips at a time
    sizes: list[int] = []
    monkeypatch.setattr(Scan, "__call__", watched(Scan.__call__, sizes))
    with torch.no_grad():
        given = mixer(tokens, layout)
    assert max(sizes) == min(block, 37)
    assert torch.allclose(given[layout.valid], wanted[layout.valid], rtol=1e-10, atol=1e-12)


def watched(call: Any, sizes: list[int]) -> Any:
    """A scan that tells how many tokens it was given."""

    def __call__(self: Any, u: Tensor, **rest: Tensor) -> Any:  # noqa: N807
        sizes.append(len(u))
        return call(self, u, **rest)

    return __call__


class Calls(TorchDispatchMode):
    """Notes each operation with the shapes that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, list[torch.Size]]] = []

    def __torch_dispatch__(self, call: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        shapes = [each.shape for each in args if isinstance(each, Tensor)]
        if "mm" in call.__name__:
            self.found.append((call.__name__, shapes))
        return call(*args, **(kwargs or {}))


@pytest.mark.parametrize("clips", [1, 3])
def test_frozen_weights_are_multiplied_as_others_are(catalog: Catalog, clips: int) -> None:
    """By frozen weights PyTorch multiplies time-first tokens one time step at a time, which took five times as long."""
    mixer, tokens = make(catalog), torch.randn(clips, 50, DIM)
    found = []
    for frozen in (False, True):
        mixer.requires_grad_(not frozen)
        with torch.no_grad(), Calls() as calls:
            mixer(tokens, TokenLayout.full(clips, (50, 1)))
        found.append(calls.found)
    assert found[0] == found[1]
    assert ("mm.default", [(clips * 50, DIM), (DIM, 4 * DIM)]) in found[0]


@pytest.mark.parametrize("options", [
    {"version": "v1"}, {"version": "forward"}, {"halve": False}, {"scan": "sequential"}, {"init_backward_steps": False},
    {"states": 3, "expand": 1, "conv_width": 2, "step_rank": 5}, {"conv_width": 1},
])  # fmt: skip
def test_contract_of_the_options(catalog: Catalog, options: dict[str, Any]) -> None:
    check_mixer(catalog.find("mixer", "mamba").spec, **options)


@pytest.mark.parametrize("version", ["v1", "v2", "forward"])
def test_padding_is_as_if_it_were_not_there(catalog: Catalog, version: str) -> None:
    """In front, between and behind: valid tokens come out as in a clip of valid tokens alone."""
    mixer = make(catalog, version=version)
    layout = TokenLayout.full(1, (12, 1))
    tokens = torch.randn(1, 12, DIM)
    for hidden in ([0, 1], [5], [10, 11], [0, 3, 4, 11]):
        padding = torch.zeros(1, 12, dtype=torch.bool)
        padding[0, hidden] = True
        kept = (~padding[0]).nonzero()[:, 0]
        with torch.no_grad():
            mixed = mixer(tokens, TokenLayout(layout.index, layout.grid, padding))[:, kept]
            alone = mixer(tokens[:, kept], TokenLayout.full(1, (len(kept), 1)))
        assert torch.allclose(mixed, alone, atol=1e-6)


def test_directions(catalog: Catalog) -> None:
    """Forward hears nothing of what follows; both directions hear all; v1 and v2 read a reversed clip differently."""
    layout = TokenLayout.full(1, (9, 1))
    tokens = torch.randn(1, 9, DIM)
    changed = tokens.clone()
    changed[0, 4] += 1
    for version, from_start in (("forward", False), ("v1", True), ("v2", True)):
        mixer = make(catalog, version=version)
        with torch.no_grad():
            moved = (mixer(tokens, layout) - mixer(changed, layout)).abs()[0].amax(dim=1) > 0
        assert moved[4:].all()
        assert bool(moved[:4].all()) == from_start


def assert_steps(steps: Tensor) -> None:
    assert steps.min() >= 1e-3 * 0.99
    assert steps.max() <= 0.1 * 1.01


def test_backward_steps_begin_like_forward_ones(catalog: Catalog) -> None:
    """As drawn: log-uniform between 0.001 and 0.1; the release leaves the backward branch at softplus(0) = 0.69."""
    softplus = torch.nn.functional.softplus
    for alike in (True, False):
        mixer = make(catalog, init_backward_steps=alike)
        forward, backward = (softplus(branch.to_steps.bias) for branch in mixer.branches)
        assert_steps(forward)
        if alike:
            assert_steps(backward)
        else:
            assert torch.allclose(backward, torch.full_like(backward, 0.6931), atol=1e-4)


def selective_scan_fn(u: Tensor, step: Tensor, a: Tensor, b: Tensor, c: Tensor, skip: Tensor) -> Tensor:
    """`mamba_ssm`'s interface: (B, E, N), (B, E, N), (E, n), (B, n, N), (B, n, N), (E) -> (B, E, N)."""
    inputs = [each.permute(2, 0, 1) for each in (u, step)]
    states = [each.permute(2, 0, 1) for each in (b, c)]
    return sequential_scan(*inputs, a.t().expand(len(u), -1, -1), *states).permute(1, 2, 0) + skip[:, None] * u


@pytest.mark.parametrize("version", ["v1", "v2", "forward"])
def test_the_kernel_is_given_what_it_wants(catalog: Catalog, version: str) -> None:
    """The kernel is CUDA only; a function of its interface stands in for it, direction by direction."""
    mixer = make(catalog, version=version)
    tokens, layout = torch.randn(2, 11, DIM), TokenLayout.full(2, (11, 1))
    with torch.no_grad():
        x, z = mixer.in_proj(tokens.transpose(0, 1)).chunk(2, dim=2)
        ways = zip(mixer._ways(x, None, 0, 11), mixer._owned(), strict=True)
        outputs = [scan_with_kernel(selective_scan_fn, way, *owned) for way, owned in ways]
        mixed = outputs[0] if len(outputs) == 1 else outputs[0] + outputs[1].flip(0)
        mixed = mixed / 2 if version == "v2" else mixed
        wanted = mixer.out_proj(mixed * torch.nn.functional.silu(z)).transpose(0, 1)
        assert torch.allclose(mixer(tokens, layout), wanted, atol=1e-6)


@pytest.mark.parametrize("fault", ["", "raise RuntimeError('0 active drivers')", "raise OSError('no such symbol')"])
def test_the_kernel_is_looked_for(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not installed: nothing. Installed: it. Broken: a warning, and nothing."""
    fused_kernel.cache_clear()
    assert fused_kernel() is None
    package = tmp_path / "mamba_ssm" / "ops"
    package.mkdir(parents=True)
    for folder in (package, package.parent):
        (folder / "__init__.py").write_text("")
    (package / "selective_scan_interface.py").write_text(f"{fault}\ndef selective_scan_fn():\n    return 'here'\n")
    monkeypatch.syspath_prepend(tmp_path)
    fused_kernel.cache_clear()
    if fault:
        with pytest.warns(UserWarning, match="its selective scan does not load"):
            assert fused_kernel() is None
    else:
        kernel = fused_kernel()
        assert kernel is not None
        assert kernel() == "here"  # type: ignore[comparison-overlap]
    fused_kernel.cache_clear()
    for name in [name for name in sys.modules if name.startswith("mamba_ssm")]:
        del sys.modules[name]


def test_the_scan_is_float32_under_autocast() -> None:
    given = [each.detach().float() for each in arguments(70)]
    weights = torch.randn(70, 3, 5)
    leaves = [each.clone().requires_grad_() for each in given]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = chunked_scan(*leaves)
        gradients = torch.autograd.grad((output * weights).sum(), leaves)
        u, step, a, b, c = given
        scan = Scan(a)
        parts = torch.cat([scan(u[part], step[part], b[part], c[part]) for part in (slice(0, 33), slice(33, 70))])
    assert torch.allclose(output, chunked_scan(*given), atol=1e-6)
    assert torch.allclose(parts, output, atol=1e-6)
    plain = torch.autograd.grad((chunked_scan(*leaves) * weights).sum(), leaves)
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(gradients, plain, strict=True))


def test_wrong_options(catalog: Catalog) -> None:
    with pytest.raises(ConfigError, match=r"encoder.mixer.options.states must be at least 1, not 0"):
        make(catalog, states=0)
