"""What a caller has set in torch for itself, and what other threads build, changes no model, and stays as it was."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from asda_core import assemble
from asda_core.assemble import build_parts
from asda_core.audio_files.sources import find_audio
from asda_core.catalog import Catalog
from asda_core.checkpoint import Checkpoint, load_classifier, load_encoder, read_checkpoint
from asda_core.config import RunConfig
from asda_core.devices import default_dtype, seeded
from asda_core.finetune.finetune_model import build_finetune_model
from asda_core.finetune.jobs import Job
from asda_core.finetune.running import finetune
from asda_core.labelled.reading import read_labelled
from asda_core.labelled.source import SourceConfig
from asda_core.labelled.splits import rounds
from asda_core.pretrain.loop import pretrain
from asda_hear import load_model
from tests.finetune.making import small_checkpoint, small_recipe, write_tones

Mode = Callable[[], AbstractContextManager[object]]
MODES = {
    "float64": partial(default_dtype, torch.float64),
    "autocast": partial(torch.autocast, "cpu", torch.bfloat16),
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "meta": partial(torch.device, "meta"),
}
each_mode = pytest.mark.parametrize("mode", MODES.values(), ids=MODES)


def assert_same_models(folder: Path, other: Path) -> None:
    one, two = (load_file(run / "model.safetensors") for run in (folder, other))
    assert one.keys() == two.keys()
    for name, values in one.items():
        assert values.dtype == two[name].dtype, name
        assert torch.equal(values, two[name]), name


@each_mode
def test_pretraining_in_modes_of_the_caller(
    mode: Mode, catalog: Catalog, tiny: RunConfig, audio_folder: Path, tmp_path: Path
) -> None:
    config, files = replace(tiny, steps=2), find_audio(audio_folder)
    pretrain(config, files, tmp_path / "plain", catalog, progress=False)
    with mode():
        pretrain(config, files, tmp_path / "other", catalog, progress=False)
    assert_same_models(tmp_path / "plain", tmp_path / "other")


def test_bfloat16_casts_the_weights_of_each_update(
    catalog: Catalog, tiny: RunConfig, audio_folder: Path, tmp_path: Path
) -> None:
    """An autocast around all updates, on or off, keeps what those in it have cast until it ends."""
    config, files = replace(tiny, compute=replace(tiny.compute, precision="bfloat16")), find_audio(audio_folder)
    pretrain(config, files, tmp_path / "plain", catalog, progress=False)
    for enabled in (True, False):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            pretrain(config, files, tmp_path / str(enabled), catalog, progress=False)
        assert_same_models(tmp_path / "plain", tmp_path / str(enabled))


@each_mode
def test_fine_tuning_in_modes_of_the_caller(mode: Mode, catalog: Catalog, tmp_path: Path) -> None:
    source = SourceConfig(data=str(write_tones(tmp_path / "tones")))
    data = read_labelled(source, Path())
    start = small_checkpoint(tmp_path / "start", catalog)
    job = Job(small_recipe(steps=2), start, data, rounds(data, source)[0])
    plain = finetune(job, tmp_path / "plain", catalog, progress=False)
    with mode():
        other = finetune(job, tmp_path / "other", catalog, progress=False)
    assert other["scores"] == plain["scores"]
    assert_same_models(tmp_path / "plain", tmp_path / "other")

    checkpoint = read_checkpoint(tmp_path / "plain")
    before = torch.get_rng_state()
    with mode():
        loaded = *load_encoder(checkpoint, catalog), load_classifier(checkpoint)
    assert torch.equal(torch.get_rng_state(), before)
    for prefix, module in zip(("front_end", "encoder", "classifier"), loaded, strict=True):
        for name, values in module.state_dict().items():
            assert values.dtype == checkpoint.tensors[f"{prefix}.{name}"].dtype
            assert torch.equal(values, checkpoint.tensors[f"{prefix}.{name}"])
            assert not values.is_inference()


@pytest.fixture
def start(tmp_path: Path, catalog: Catalog) -> Checkpoint:
    return small_checkpoint(tmp_path / "start", catalog)


Builder = Callable[[Catalog, Checkpoint], torch.nn.Module]
BUILDERS: dict[str, Builder] = {
    "build_parts": lambda catalog, start: build_parts(catalog, start.config).encoder,
    "build_finetune_model": lambda catalog, start: (
        build_finetune_model(catalog, small_recipe(), start.config, ("a", "b")).encoder
    ),
    "load_encoder": lambda catalog, start: load_encoder(start, catalog)[1],
    "load_model": lambda catalog, start: load_model("asda_tiny", catalog=catalog),
    "log_mel": lambda catalog, start: load_model("log_mel", catalog=catalog),
}
each_builder = pytest.mark.parametrize("make", BUILDERS.values(), ids=BUILDERS)


@each_builder
def test_threads_build_the_same_models(
    make: Builder, catalog: Catalog, start: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = make(catalog, start).state_dict()
    build = assemble.build

    def slow_build(*arguments: object) -> object:
        time.sleep(0.01)  # another thread's turn
        return build(*arguments)

    monkeypatch.setattr(assemble, "build", slow_build)
    before = torch.get_rng_state()
    with default_dtype(torch.float64), ThreadPoolExecutor(3) as pool:
        made = list(pool.map(lambda _: make(catalog, start), range(3)))
        assert torch.get_default_dtype() == torch.float64
    assert torch.equal(torch.get_rng_state(), before)
    for model in made:
        for name, values in model.state_dict().items():
            assert values.dtype == plain[name].dtype, name
            assert torch.equal(values, plain[name]), name


@pytest.fixture
def gpu_seeds(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The seeds that all GPUs get: `torch.manual_seed` seeds them at once or when CUDA starts."""
    seeds: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    torch.manual_seed(5)
    assert seeds == [5]
    seeds.clear()
    return seeds


@each_builder
def test_building_seeds_no_gpu(make: Builder, catalog: Catalog, start: Checkpoint, gpu_seeds: list[int]) -> None:
    make(catalog, start)
    assert not gpu_seeds


def test_training_on_the_cpu_seeds_no_gpu(
    catalog: Catalog, tiny: RunConfig, start: Checkpoint, audio_folder: Path, tmp_path: Path, gpu_seeds: list[int]
) -> None:
    pretrain(replace(tiny, steps=1), find_audio(audio_folder), tmp_path / "run", catalog, progress=False)
    assert not gpu_seeds
    source = SourceConfig(data=str(write_tones(tmp_path / "tones")))
    data = read_labelled(source, Path())
    finetune(Job(small_recipe(steps=1), start, data, rounds(data, source)[0]), tmp_path / "tuned", catalog)
    assert not gpu_seeds


@pytest.mark.parametrize("number", [None, 0, 1])
def test_seeded_devices(number: int | None, monkeypatch: pytest.MonkeyPatch, gpu_seeds: list[int]) -> None:
    """In the block the CPU and one GPU draw what `torch.manual_seed` would have them draw; all is restored after it."""
    gpus = (torch.Generator().manual_seed(1), torch.Generator().manual_seed(2))
    monkeypatch.setattr(torch.cuda, "default_generators", gpus)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: gpus[device.index].get_state())
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: gpus[device.index].set_state(state))
    generators = (torch.default_generator, *gpus)
    before = [generator.get_state() for generator in generators]
    seeded_state = torch.Generator().manual_seed(7).get_state()
    used = (0,) if number is None else (0, number + 1)
    with seeded(torch.device("cpu") if number is None else torch.device("cuda", number), 7):
        for place, generator in enumerate(generators):
            assert torch.equal(generator.get_state(), seeded_state if place in used else before[place])
            if place in used:
                torch.rand((), generator=generator)
    assert all(torch.equal(generator.get_state(), state) for generator, state in zip(generators, before, strict=True))
    assert not gpu_seeds
