"""The scan through loops compiled by Numba: results and gradients, when it is taken, and when it is not."""

import importlib
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from asda_plugins.mixer_mamba import compiled
from asda_plugins.mixer_mamba.compiled import (
    CHANNELS_OF_GRADIENT,
    CompiledScan,
    compiled_loops,
    compiled_scan,
    compiled_softplus,
    error_of,
    loops_for,
)
from asda_plugins.mixer_mamba.scan import sequential_scan
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from asda_core.catalog import Catalog
from asda_core.config_io import parse
from asda_core.contracts import MixerContext
from asda_core.layout import TokenLayout
from asda_core.testing import check_mixer

DIM = 32


@pytest.fixture(scope="module")
def loops() -> ModuleType:
    found = compiled_loops()
    assert found is not None, "Numba is among the packages of the tests"
    return found


@pytest.fixture
def fresh() -> Iterator[None]:
    """Numba is looked for again, in the test and after it."""
    compiled_loops.cache_clear()
    yield
    compiled_loops.cache_clear()


def arguments(steps: int, rows: int = 3, channels: int = 5, states: int = 4) -> list[Tensor]:
    torch.manual_seed(steps)
    u, step = torch.randn(steps, rows, channels), torch.rand(steps, rows, channels) * 3
    a = -torch.rand(rows, states, channels) * 16
    b, c = torch.randn(steps, rows, states), torch.randn(steps, rows, states)
    return [u, step, a, b, c]


def with_gradients(scan: Callable[..., Tensor], given: list[Tensor]) -> list[Tensor]:
    leaves = [each.clone().requires_grad_() for each in given]
    output = scan(*leaves)
    weight = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    return [output.detach(), *torch.autograd.grad((output * weight).sum(), leaves)]


def assert_close(given: list[Tensor], wanted: list[Tensor], tolerance: float = 2e-6) -> None:
    for one, other in zip(given, wanted, strict=True):
        assert (one - other).abs().max() <= tolerance * other.abs().max()


@pytest.mark.parametrize("sizes", [
    (1, 3, 5, 4), (7, 1, 1, 1), (31, 2, 8, 3), (32, 2, 8, 3), (33, 2, 17, 16), (100, 3, CHANNELS_OF_GRADIENT + 3, 2),
])  # fmt: skip
def test_loops_equal_steps(loops: ModuleType, sizes: tuple[int, int, int, int]) -> None:
    """Outputs and all gradients, to the rounding of float32."""
    given = arguments(*sizes)
    wanted = with_gradients(sequential_scan, [each.double() for each in given])
    assert_close(with_gradients(lambda *each: compiled_scan(loops, *each), given), wanted)


@pytest.mark.parametrize("backwards", [False, True])
def test_parts_equal_the_whole(loops: ModuleType, backwards: bool) -> None:
    """Added, with the skip, to some clips of many, from either end."""
    u, step, a, b, c = arguments(70)
    skip, output = torch.randn(5), torch.randn(70, 6, 5)
    wanted = output.clone()
    whole = compiled_scan(loops, u, step, a, b, c) + skip * u
    wanted[:, 2:5] += whole.flip(0) if backwards else whole
    scan = CompiledScan(loops, a, skip)
    for part in (slice(0, 1), slice(1, 40), slice(40, 70)):
        scan.add((u[part], step[part], b[part], c[part]), output, part.start, clip=2, backwards=backwards)
    assert torch.allclose(output, wanted, rtol=1e-6, atol=1e-6)
    assert torch.equal(output[:, [0, 1, 5]], wanted[:, [0, 1, 5]])


@pytest.mark.parametrize("rows", [1, 5])
def test_threads_change_no_bit(loops: ModuleType, rows: int) -> None:
    given, before = arguments(70, rows, CHANNELS_OF_GRADIENT + 40), torch.get_num_threads()
    x = torch.randn(1001)
    results = []
    try:
        for threads in (1, 2, 7):
            torch.set_num_threads(threads)
            scanned = with_gradients(lambda *each: compiled_scan(loops, *each), given)
            results.append([*scanned, compiled_softplus(loops, x.clone())])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


def test_strided_arguments(loops: ModuleType) -> None:
    """Views, as of one direction among several, and gradients that are expanded, as of a sum."""
    given = arguments(40)
    views = [each.repeat_interleave(2, dim=2)[..., ::2] for each in given]
    assert not views[0].is_contiguous()
    assert torch.equal(compiled_scan(loops, *views), compiled_scan(loops, *given))
    leaves = [[each.clone().requires_grad_() for each in group] for group in (views, given)]
    grads = [torch.autograd.grad(compiled_scan(loops, *each).sum(), each) for each in leaves]
    assert all(map(torch.equal, *grads))


def test_huge_steps_and_nan(loops: ModuleType) -> None:
    u, step, a, b, c = arguments(50)
    wanted = sequential_scan(*(each.double() for each in (u, step * 1e4, a, b, c)))
    assert_close([compiled_scan(loops, u, step * 1e4, a, b, c)], [wanted])
    u[20, 1, 2] = torch.nan
    output = compiled_scan(loops, u, step, a, b, c)
    assert output[20:, 1, 2].isnan().all()
    assert output.isnan().sum() == 30
    a[0, 0, 0] = torch.nan
    assert compiled_scan(loops, u, step, a, b, c)[1:, 0, 0].isnan().all()


def test_softplus(loops: ModuleType) -> None:
    x = torch.cat([torch.linspace(-20, 20, 10_001), torch.tensor([-1e30, 0, 1e30, torch.inf, -torch.inf, torch.nan])])
    given = compiled_softplus(loops, x.clone())
    wanted = torch.nn.functional.softplus(x.double())
    assert torch.equal(given.isnan(), x.isnan())
    finite = wanted.isfinite()
    assert ((given - wanted).abs() <= 1.2e-6 * wanted + 1e-37)[finite].all()
    assert given[-3] == torch.inf


def test_powers_of_two(loops: ModuleType) -> None:
    """To one and a half roundings; below the normal numbers the smallest of them."""
    x = np.concatenate([np.linspace(-126, 126, 100_001), np.arange(-126, 127)]).astype(np.float32)
    given = np.array([loops.exp2.py_func(each) for each in x[::100]])
    assert np.abs(given / np.exp2(x[::100].astype(np.float64)) - 1).max() < 1.5 * 2**-24
    with np.errstate(over="ignore"):
        assert loops.exp2.py_func(np.float32(-1000)) == np.float32(2**-126)


def make(catalog: Catalog, **options: Any) -> Any:
    spec = catalog.find("mixer", "mamba").spec
    torch.manual_seed(2)
    return spec.build(parse(spec.config, options), MixerContext(DIM, 4, 0, 2)).eval()


def tokens_and_layout(padded: bool) -> tuple[Tensor, TokenLayout]:
    torch.manual_seed(1)
    layout = TokenLayout.full(3, (45, 1))
    if padded:
        padding = torch.zeros(3, 45, dtype=torch.bool)
        padding[0, 30:] = padding[1, :9] = padding[2, 4:8] = True
        layout = TokenLayout(layout.index, layout.grid, padding)
    return torch.randn(3, 45, DIM), layout


class Watched(ModuleType):
    """The loops, counting their calls."""

    def __init__(self, loops: ModuleType) -> None:
        super().__init__("watched")
        self.CHUNK = loops.CHUNK
        self.calls = dict.fromkeys(("advance", "retreat", "softplus"), 0)
        for name in self.calls:
            setattr(self, name, self.counted(name, getattr(loops, name)))

    def counted(self, name: str, loop: Callable[..., None]) -> Callable[..., None]:
        def call(*arguments: Any) -> None:
            self.calls[name] += 1
            loop(*arguments)

        return call


@pytest.fixture
def watched(loops: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Watched:
    watched = Watched(loops)
    monkeypatch.setattr(compiled, "compiled_loops", lambda: watched)
    return watched


@pytest.mark.parametrize("version", ["v1", "v2", "forward"])
@pytest.mark.parametrize("padded", [False, True])
def test_the_mixer_is_the_same(catalog: Catalog, version: str, padded: bool, watched: Watched) -> None:
    """Outputs with and without gradients, and all gradients, equal those in plain PyTorch."""
    tokens, layout = tokens_and_layout(padded)
    results = []
    for scan in ("auto", "chunked"):
        before = dict(watched.calls)
        mixer = make(catalog, version=version, scan=scan)
        with torch.no_grad():
            alone = mixer(tokens, layout)[layout.valid]
        leaf = tokens.clone().requires_grad_()
        output = mixer(leaf, layout)[layout.valid]
        grads = torch.autograd.grad(output.square().sum(), [leaf, *mixer.parameters()])
        results.append([alone, output.detach(), *grads])
        assert all((watched.calls[name] > before[name]) == (scan == "auto") for name in before)
    assert_close(*results, tolerance=1e-5)


def test_contract(catalog: Catalog, watched: Watched) -> None:
    """Of both: each of them is taken on some machine."""
    check_mixer(catalog.find("mixer", "mamba").spec)
    assert min(watched.calls["advance"], watched.calls["retreat"]) > 0
    calls = dict(watched.calls)
    check_mixer(catalog.find("mixer", "mamba").spec, scan="chunked")
    assert watched.calls == calls


def test_autocast(catalog: Catalog, watched: Watched) -> None:
    """States are float32; the linear maps around them are not."""
    tokens, layout = tokens_and_layout(False)
    outputs = []
    for scan in ("auto", "chunked"):
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            outputs.append(make(catalog, scan=scan)(tokens, layout))
    assert watched.calls["advance"]
    assert outputs[0].dtype == outputs[1].dtype
    assert_close([outputs[0].float()], [outputs[1].float()], tolerance=0.02)


def test_float64_is_not_rounded(catalog: Catalog, watched: Watched) -> None:
    tokens, layout = tokens_and_layout(False)
    make(catalog).double()(tokens.double(), layout)
    assert not any(watched.calls.values())


def test_what_is_traced_is_plain_pytorch(catalog: Catalog, watched: Watched) -> None:
    """Operations are counted, and tensors without values go through, as if Numba were not there."""
    tokens, layout = tokens_and_layout(False)
    mixer = make(catalog)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        mixer(tokens, layout)
    assert counter.get_total_flops() > 2 * tokens.numel() * 4 * DIM
    assert loops_for(torch.empty(3, device="meta")) is None
    with FakeTensorMode():
        assert loops_for(torch.empty(3)) is None
    assert not any(watched.calls.values())
    assert loops_for(tokens) is not None


def test_without_numba(catalog: Catalog, fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert compiled_loops() is None
    tokens, layout = tokens_and_layout(False)
    with torch.no_grad():
        assert torch.equal(make(catalog)(tokens, layout), make(catalog, scan="chunked")(tokens, layout))


@pytest.mark.parametrize("fault", [ImportError("Numba needs NumPy 2.3 or less"), OSError("No space left on device")])
def test_numba_is_broken(fault: Exception, fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> ModuleType:
        raise fault

    monkeypatch.setattr("importlib.import_module", fail)
    with pytest.warns(UserWarning, match=r"Numba is installed, but .* does not compile the scan \(N.*the chunked scan"):
        assert compiled_loops() is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert compiled_loops() is None, "told once"


def test_numba_is_wrong(loops: ModuleType, fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def advance(*given: Any) -> None:
        loops.advance(*given)
        given[8][:] *= 1.001

    wrong = ModuleType("wrong")
    wrong.__dict__.update(advance=advance, CHUNK=loops.CHUNK)
    monkeypatch.setattr("importlib.import_module", lambda name: wrong)
    with pytest.warns(UserWarning, match=r"Numba is installed, but the scan that it compiles is wrong by"):
        assert compiled_loops() is None
    assert error_of(loops) < 1e-6


def test_no_folder_keeps_what_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then it is compiled in each process: an installation that cannot be written to, and no home."""
    from numba.core import caching

    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [])
    with pytest.raises(RuntimeError, match="cannot cache"):
        caching.FunctionCache(lambda: None)
    name = "asda_plugins.mixer_mamba.loops"
    monkeypatch.delitem(sys.modules, name)
    again = importlib.import_module(name)
    assert error_of(again) < 1e-6


@pytest.mark.slow
def test_kept_on_disk(tmp_path: Path) -> None:
    """A second process does not compile again."""
    script = (
        "from asda_plugins.mixer_mamba.compiled import compiled_loops\n"
        "stats = compiled_loops().advance.stats\n"
        "print(sum(stats.cache_hits.values()), sum(stats.cache_misses.values()))"
    )
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", script]
    told = [subprocess.run(command, env=environment, capture_output=True, text=True, check=True) for _ in range(2)]
    assert [each.stdout.split() for each in told] == [["0", "1"], ["1", "0"]]
    assert list(tmp_path.rglob("*.nbc"))


@pytest.mark.slow
def test_a_fork_has_threads_of_its_own(loops: ModuleType) -> None:
    """Those of its parent are not there, and waiting for them would never end."""
    script = (
        "import os, torch\n"
        "from asda_plugins.mixer_mamba.compiled import CompiledScan, compiled_loops\n"
        "torch.set_num_threads(2)\n"
        "def scan():\n"
        "    output = torch.zeros(9, 2, 16)\n"
        "    ones = torch.ones(9, 2, 16)\n"
        "    CompiledScan(loops, -torch.ones(2, 3, 16)).add((ones, ones, ones[..., :3], ones[..., :3]), output)\n"
        "    return output\n"
        "loops = compiled_loops()\n"
        "before = scan()\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    os._exit(0 if torch.equal(scan(), before) else 1)\n"
        "raise SystemExit(os.waitpid(child, 0)[1])"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True, timeout=120)


def test_numba_is_switched_off(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """NUMBA_DISABLE_JIT: its loops would run in Python, hundreds of times slower."""
    monkeypatch.setattr("numba.config.DISABLE_JIT", 1)
    assert compiled_loops() is None
