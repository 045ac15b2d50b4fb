"""All that computes, on a GPU that is none (`fake_gpu`): nothing is left on the CPU, and no step waits for the GPU."""

from typing import Any

import pytest
import torch

from asda_core import devices
from asda_core.assemble import SAMPLE_RATE, adapt, build_parts
from asda_core.catalog import Catalog
from asda_core.config import RunConfig
from asda_core.config_io import find_config, load_run_config, parse
from asda_core.data.clip_batches import Clips
from asda_core.devices import generator_on, to_device
from asda_core.finetune.batches import training_batch
from asda_core.finetune.finetune_model import build_finetune_model
from asda_core.finetune.losses import batch_loss
from asda_core.finetune_config import FinetuneConfig
from asda_core.inference.clip_encoder import ClipEncoder, EncodeOptions
from asda_core.layout import TokenLayout
from asda_core.model.norms import RmsNorm
from asda_core.pretrain import latent_regression
from asda_core.pretrain.schedule import FairseqAdam
from asda_hear.api import load_model
from tests.conftest import BUILT_IN, TINY
from tests.fake_gpu import GPU, Traffic, fake_gpu, move


def names(hook: str) -> list[str]:
    """Of what the built-in plugins offer through a hook."""
    return [spec.name for module in BUILT_IN for spec in getattr(module, hook, list)()]


CONFIGS = ["asda_tiny", "asda_base", "ssast_base", "mfcc_gram"]
MAX_CLONES = 16
BY_LINES, LINES = ("frequency_time", "two_simplicial"), 7
"""Mixers that count in every layer how many tokens the fullest line has, for which the CPU waits, and an answer."""


@pytest.fixture(autouse=True)
def _draws_on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no generator of a GPU here; what is drawn there has no values anyway."""
    monkeypatch.setattr(latent_regression, "generator_on", lambda device, generator: generator)


def with_mixer(name: str) -> dict[str, Any]:
    """A small run with a mixer, of as many heads as any of them wants."""
    return {**TINY, "encoder": {**TINY["encoder"], "num_heads": 4, "mixer": name}}


def pass_on_gpu(catalog: Catalog, config: RunConfig, clips: int = 2, reads: int | None = None) -> tuple[Any, Traffic]:
    """The losses of a pass in bfloat16, from the audio on, and what went to the GPU; `reads` as of `fake_gpu`."""
    parts = build_parts(catalog, config)
    audio = torch.randn(clips, round(config.data.clip_seconds * SAMPLE_RATE))
    with fake_gpu(reads) as traffic:
        for module in (parts.front_end, parts.encoder, parts.objective):
            move(module.train())
        features = parts.front_end(to_device(audio, GPU))
        with torch.autocast("cuda", torch.bfloat16):
            losses = parts.objective.loss(parts.encoder, features, torch.Generator().manual_seed(0))
        parts.objective.after_step(parts.encoder, 1)
    assert not traffic.waited, "copies for which the CPU would wait"
    assert losses.total.device.type == "cuda"
    assert all(part.device.type == "cuda" for part in losses.parts.values())
    return losses, traffic


@pytest.mark.parametrize("name", CONFIGS)
def test_a_pass_draws_its_masks_on_the_cpu_and_all_else_on_the_gpu(name: str, catalog: Catalog) -> None:
    config = load_run_config(find_config(name))
    _, traffic = pass_on_gpu(catalog, config, clips := 2)
    audio, *sent_later = traffic.sent
    times, bands = config.encoder.grid(128, round(config.data.clip_seconds * 100))
    rows, tokens = clips * config.objective.options.get("clones", MAX_CLONES), times * bands
    assert audio == clips * round(config.data.clip_seconds * SAMPLE_RATE)
    assert max(sent_later) <= tokens * max(rows, config.encoder.dim), "masks and positions; no noise"
    assert max(traffic.drawn) <= rows * tokens, "masks; no noise"


@pytest.mark.parametrize("objective", names("asda_objectives"))
@pytest.mark.parametrize("mixer", names("asda_mixers"))
def test_every_mixer_learns_by_every_objective(mixer: str, objective: str, catalog: Catalog) -> None:
    plain = {**with_mixer(mixer), "data": {"clip_seconds": 1.0}}
    if objective != "latent_regression":
        plain["objective"] = objective
    pass_on_gpu(catalog, parse(RunConfig, plain), reads=LINES if mixer in BY_LINES else None)


@pytest.mark.parametrize("mixer", names("asda_mixers"))
def test_every_mixer_leaves_padding_out(mixer: str, catalog: Catalog) -> None:
    encoder = build_parts(catalog, parse(RunConfig, with_mixer(mixer))).encoder.eval()
    with fake_gpu(LINES if mixer in BY_LINES else None):
        move(encoder)
        tokens, layout = encoder.embed(torch.randn(2, 128, 64, device=GPU))
        padding = torch.zeros(layout.index.shape, dtype=torch.bool, device=GPU)
        encoded = encoder.encode(tokens, TokenLayout(layout.index, layout.grid, padding))
    assert encoded.tokens.device.type == encoded.summary.device.type == "cuda"


@pytest.mark.parametrize("adapter", names("asda_adapters"))
def test_every_adapter(adapter: str, catalog: Catalog, tiny: RunConfig) -> None:
    encoder = build_parts(catalog, tiny).encoder
    adapt(catalog, parse(RunConfig, {**TINY, "adapter": adapter}), encoder)
    with fake_gpu():
        move(encoder)
        encoded = encoder(torch.randn(2, 128, 64, device=GPU))
    assert encoded.tokens.device.type == "cuda"


@pytest.mark.parametrize("scene", ["mean", "summary", "both", "statistics", "dynamics"])
def test_embeddings_of_the_hear_api(scene: str, catalog: Catalog) -> None:
    model = load_model("asda_tiny", catalog=catalog, scene_pooling=scene)
    audio = torch.randn(2, 9 * SAMPLE_RATE)  # several windows
    expected = model.scene(audio)
    with fake_gpu():
        move(model)
        embedded = model.scene(audio)
        steps, stamps = model.timestamps(audio)
    assert embedded.device.type == steps.device.type == stamps.device.type == "cuda"
    assert embedded.shape == expected.shape


@pytest.mark.parametrize("padding", ["silence", "features"])
def test_embeddings_of_a_file(padding: Any, catalog: Catalog, tiny: RunConfig) -> None:
    parts = build_parts(catalog, tiny)
    with fake_gpu():
        move(parts.front_end.eval())
        move(parts.encoder.eval())
        listener = ClipEncoder(parts.front_end, parts.encoder, EncodeOptions(padding=padding, window_seconds=1.0))
        pieces = list(listener.encode_windows(torch.randn(5 * SAMPLE_RATE)))
    assert len(pieces) > 1
    assert all(piece.tokens().device.type == "cuda" for piece in pieces)


def test_an_update_of_a_fine_tuning(catalog: Catalog, tiny: RunConfig) -> None:
    augment = {"mixup": {"probability": 1.0}, "spec_augment": {"bins": 8, "frames": 8}, "noise": 0.1, "time_shift": 3}
    recipe = parse(
        FinetuneConfig, {"steps": 2, "augment": augment, "data": {"clip_seconds": 1.0, "padding": "features"}}
    )
    tuned = build_finetune_model(catalog, recipe, tiny, ["a", "b", "c"])
    clips = Clips(torch.randn(4, SAMPLE_RATE), torch.full((4,), 9000), torch.arange(4))
    with fake_gpu():
        for module in tuned.modules().values():
            move(module)
        tuned.set_training(True)
        batch = training_batch(tuned, recipe, clips, torch.eye(4, 3), step=0)
        loss = batch_loss(recipe, tuned.classifier(tuned.encoder(batch.features, layers=False)), batch.labels)
    assert loss.device.type == batch.labels.device.type == "cuda"


def calls_of_adam(count: int) -> int:
    """Operations of the second update of so many parameters; the first makes their averages."""
    with fake_gpu() as traffic:
        parameters = [torch.nn.Parameter(torch.randn(size, device=GPU)) for size in range(1, count + 1)]
        optimizer = FairseqAdam([{"params": parameters}], 1e-3, (0.9, 0.98), 1e-6, 0.01)
        for parameter in parameters:
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
        before = traffic.calls
        optimizer.step()
    assert all(optimizer.state[each]["step"].device.type == "cpu" for each in parameters), (
        "to read it waits for nothing"
    )
    assert all(optimizer.state[each]["exp_avg"].device.type == "cuda" for each in parameters)
    return traffic.calls - before


def test_an_update_of_fairseqs_adam_is_as_many_calls_for_any_number_of_parameters() -> None:
    assert calls_of_adam(2) == calls_of_adam(20)


def test_norms_compute_in_the_type_of_their_weights() -> None:
    """Autocast gives them half of it, and types that differ have no fused kernel."""
    values = torch.randn(3, 8).bfloat16()
    normed = RmsNorm(8)(values)
    assert normed.dtype == torch.float32
    torch.testing.assert_close(normed, torch.nn.functional.rms_norm(values.float(), (8,)))


def test_draws_of_a_device_depend_on_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, int]] = []

    class Generator:
        def __init__(self, device: torch.device) -> None:
            self.device = device

        def manual_seed(self, seed: int) -> torch.Generator:
            asked.append((self.device.type, seed))
            return begun[0]

    begun = [torch.Generator().manual_seed(seed) for seed in (1, 1, 2)]
    assert generator_on(torch.device("cpu"), begun[0]) is begun[0]
    monkeypatch.setattr(devices.torch, "Generator", Generator)
    for generator in begun:
        generator_on(GPU, generator)
        generator_on(GPU, generator)
    (first, second), (again, _), (other, _) = (asked[place : place + 2] for place in (0, 2, 4))
    assert first == again != other
    assert first != second, "what is drawn twice differs"
    assert {kind for kind, _ in asked} == {"cuda"}
