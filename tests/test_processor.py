"""How products are computed: float32 unless bfloat16 is asked for, and told where that is slower."""

import threading
import warnings

import pytest
import torch

from asda_core.assemble import build_model
from asda_core.catalog import Catalog
from asda_core.config import RunConfig
from asda_core.errors import ConfigError
from asda_core.inference.clip_encoder import ClipEncoder, EncodeOptions
from asda_core.model import processor as module
from asda_core.model.processor import Processor, matmul_precision
from asda_hear import get_scene_embeddings, get_timestamp_embeddings, load_model

ROUNDING = 0.1
"""Largest error of bfloat16 beside the largest value, through the blocks of a tiny model."""


@pytest.fixture
def with_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "processor", lambda: Processor(wide_vectors=False, bfloat16=True))


def test_float32_stays_float32_and_bfloat16_is_asked_for(with_bfloat16: None) -> None:
    left = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    with matmul_precision("cpu", "float32"):
        assert (left @ left).dtype == torch.float32
    with matmul_precision("cpu", "bfloat16"):
        assert (left @ left).dtype == torch.bfloat16
    assert (left @ left).dtype == torch.float32


def test_a_processor_that_is_slow_in_bfloat16_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "processor", lambda: Processor(wide_vectors=False, bfloat16=False))
    with pytest.warns(UserWarning, match="slower than float32"), matmul_precision("cpu", "bfloat16"):
        pass
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with matmul_precision("cpu", "float32"):
            pass


def test_embeddings_in_bfloat16_are_near_those_in_float32(with_bfloat16: None) -> None:
    audio = torch.randn(2, 20_000, generator=torch.Generator().manual_seed(0)) * 0.1
    exact, rounded = load_model(), load_model(precision="bfloat16")
    pairs = [
        (get_scene_embeddings(audio, model), *get_timestamp_embeddings(audio, model)) for model in (exact, rounded)
    ]
    for wanted, given in zip(*pairs, strict=True):
        assert given.dtype == torch.float32
        assert float((given - wanted).abs().max()) <= ROUNDING * float(wanted.abs().max())
    assert not torch.equal(pairs[0][0], pairs[1][0])
    with pytest.raises(ConfigError, match="precision"):
        load_model(precision="float16")


def test_a_listener_in_bfloat16_gives_float32(catalog: Catalog, tiny: RunConfig, with_bfloat16: None) -> None:
    torch.manual_seed(0)
    front_end, encoder = build_model(catalog, tiny)
    audio = torch.randn(20_000, generator=torch.Generator().manual_seed(0)) * 0.1
    heard = [
        ClipEncoder(front_end.eval(), encoder.eval(), EncodeOptions(precision=precision)).encode(audio)
        for precision in ("float32", "bfloat16")
    ]
    assert heard[1].tokens.dtype == heard[1].summary.dtype == torch.float32
    assert not torch.equal(heard[0].tokens, heard[1].tokens)
    assert float((heard[0].tokens - heard[1].tokens).abs().max()) <= ROUNDING * float(heard[0].tokens.abs().max())


def test_threads_leave_the_setting_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is of the whole process: the one that leaves first must not fix what the other has set."""
    monkeypatch.setattr(module, "processor", lambda: Processor(wide_vectors=True, bfloat16=False))
    monkeypatch.setattr(module, "_stays_exact", lambda: True)
    before = torch.get_float32_matmul_precision()
    inside, left = threading.Event(), threading.Event()

    def first() -> None:
        with module.exact_matmul():
            inside.set()
            left.wait(10)

    thread = threading.Thread(target=first)
    thread.start()
    inside.wait(10)
    with module.exact_matmul():
        left.set()
        thread.join()
        assert torch.get_float32_matmul_precision() == module.ONEDNN_PRECISION
    assert torch.get_float32_matmul_precision() == before


def test_a_trial_product_that_fails_leaves_the_setting_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_float32_matmul_precision()

    def failing(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        assert torch.get_float32_matmul_precision() == module.ONEDNN_PRECISION
        raise RuntimeError("could not create a primitive")

    monkeypatch.setattr(torch.Tensor, "__matmul__", failing)
    assert module._stays_exact.__wrapped__() is False
    assert torch.get_float32_matmul_precision() == before


def test_the_autocast_of_a_caller_changes_nothing(catalog: Catalog, tiny: RunConfig) -> None:
    """What was asked for is float32; the features are in any case."""
    audio = torch.randn(2, 20_000, generator=torch.Generator().manual_seed(0)) * 0.1
    model = load_model()
    torch.manual_seed(0)
    front_end, encoder = build_model(catalog, tiny)
    listener = ClipEncoder(front_end.eval(), encoder.eval(), EncodeOptions())

    def answers() -> list[torch.Tensor]:
        found = [get_scene_embeddings(audio, model), *get_timestamp_embeddings(audio, model)]
        return [*found, listener.encode(audio[0]).tokens]

    wanted = answers()
    with torch.autocast("cpu", torch.bfloat16):
        given = answers()
    for one, other in zip(given, wanted, strict=True):
        assert torch.equal(one, other)
