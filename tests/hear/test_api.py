"""The HEAR API: any length, any batch, options, and bad input."""

import inspect
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import asda_hear
from asda_core.assemble import build_parts
from asda_core.catalog import Catalog
from asda_core.checkpoint import checkpoint_metadata, model_tensors, write_model
from asda_core.config import RunConfig
from asda_core.devices import default_dtype
from asda_core.errors import AsdaError, AudioError, ConfigError
from asda_core.pretrain.loop import pretrain
from asda_hear.evaluate.identity import weights_identity
from asda_hear.model import HearModel
from tests.released.golden import GOLDEN
from tests.released.writing import write_fairseq


@pytest.fixture
def checkpoint(catalog: Catalog, tiny: RunConfig, tmp_path: Path) -> Path:
    file = tmp_path / "model.safetensors"
    write_model(file, model_tensors(build_parts(catalog, tiny), False), checkpoint_metadata(tiny, catalog, 0))
    return file


@pytest.fixture
def model(checkpoint: Path, catalog: Catalog) -> HearModel:
    return asda_hear.load_model(checkpoint, catalog=catalog)


def noise(*shape: int) -> Tensor:
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_the_default_model() -> None:
    model = asda_hear.load_model()
    assert isinstance(model, torch.nn.Module)
    assert model.sample_rate == 16_000
    assert asda_hear.get_scene_embeddings(noise(2, 16_000), model).shape == (2, model.scene_embedding_size)


def test_to_load_draws_nothing_of_the_caller(checkpoint: Path) -> None:
    for path in ("", str(checkpoint), "asda_tiny", "log_mel"):
        before = torch.get_rng_state()
        asda_hear.load_model(path)
        assert torch.equal(torch.get_rng_state(), before), path


@pytest.mark.parametrize("samples", [1, 3, 399, 400, 641, 16_000, 50_000])
def test_any_length(model: HearModel, samples: int) -> None:
    audio = noise(2, samples)
    scene = asda_hear.get_scene_embeddings(audio, model)
    embeddings, stamps = asda_hear.get_timestamp_embeddings(audio, model)
    assert scene.shape == (2, model.scene_embedding_size)
    assert embeddings.shape == (2, samples // 640 + 1, model.timestamp_embedding_size)
    assert stamps.shape == embeddings.shape[:2]
    for result in (scene, embeddings, stamps):
        assert result.dtype == torch.float32
        assert result.isfinite().all()
        assert not result.requires_grad
    assert stamps[0].tolist() == [40.0 * step for step in range(samples // 640 + 1)]


@pytest.mark.parametrize("samples", [3, 8_000, 40_000])
def test_a_clip_alone_is_the_clip_in_a_batch(model: HearModel, samples: int, monkeypatch: pytest.MonkeyPatch) -> None:
    audio = noise(5, samples)
    scene = asda_hear.get_scene_embeddings(audio, model)
    embeddings, _ = asda_hear.get_timestamp_embeddings(audio, model)
    monkeypatch.setattr("asda_hear.model.TOKENS_PER_PASS", 1)
    for number in range(5):
        alone = audio[number : number + 1]
        assert torch.allclose(asda_hear.get_scene_embeddings(alone, model)[0], scene[number], atol=1e-5)
        assert torch.allclose(asda_hear.get_timestamp_embeddings(alone, model)[0][0], embeddings[number], atol=1e-5)


def test_what_comes_later_does_not_matter(model: HearModel) -> None:
    """Windows: the beginning of a long clip is the same however the clip goes on, up to one window."""
    audio = noise(1, 160_000)
    first = asda_hear.get_timestamp_embeddings(audio, model)[0]
    audio[:, 80_000:] = 0
    assert torch.allclose(asda_hear.get_timestamp_embeddings(audio, model)[0][:, :100], first[:, :100], atol=1e-5)


def test_native_grid_is_every_fourth_step(checkpoint: Path, catalog: Catalog, model: HearModel) -> None:
    native = asda_hear.load_model(checkpoint, catalog=catalog, timestamp_hop_ms=160)
    audio = noise(1, 5_000)
    fine, _ = asda_hear.get_timestamp_embeddings(audio, model)
    coarse, stamps = asda_hear.get_timestamp_embeddings(audio, native)
    assert stamps[0].tolist() == [0.0, 160.0]
    assert torch.allclose(coarse, fine[:, ::4], atol=1e-5)


@pytest.mark.parametrize(
    ("options", "scene", "timestamp"),
    [
        ({}, 32, 32),
        ({"scene_pooling": "summary"}, 32, 32),
        ({"scene_pooling": "both"}, 64, 32),
        ({"timestamp_pooling": "concat"}, 32, 256),
        ({"window_seconds": 0.2}, 32, 32),
    ],
)
def test_options(checkpoint: Path, catalog: Catalog, options: dict[str, object], scene: int, timestamp: int) -> None:
    model = asda_hear.load_model(checkpoint, catalog=catalog, **options)
    assert (model.scene_embedding_size, model.timestamp_embedding_size) == (scene, timestamp)
    audio = noise(2, 20_000)
    assert asda_hear.get_scene_embeddings(audio, model).shape == (2, scene)
    assert asda_hear.get_timestamp_embeddings(audio, model)[0].shape == (2, 32, timestamp)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timestamp_hop_ms": 50}, "50 does not divide the patch; valid: 160, 80, 40, 20, 10"),
        ({"timestamp_hop_ms": 0}, "does not divide"),
        ({"timestamp_hop": 40}, "Did you mean 'timestamp_hop_ms'"),
        ({"scene_pooling": "max"}, "scene_pooling"),
    ],
)
def test_wrong_options(checkpoint: Path, catalog: Catalog, options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        asda_hear.load_model(checkpoint, catalog=catalog, **options)


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        (torch.zeros(16_000), r"must have shape \(n_sounds, n_samples\)"),
        (torch.zeros(2, 0), r"both at least 1, not \("),
        (torch.zeros(0, 100), r"both at least 1, not \("),
        (torch.zeros(1, 2, 100), "must have shape"),
        (torch.zeros(1, 100, dtype=torch.int16), "floating point"),
        (torch.zeros(1, 100).to(torch.float8_e5m2), "not torch.float8_e5m2"),
        (torch.zeros(1, 100).to_sparse(), "a dense tensor, not torch.sparse_coo"),
        (torch.tensor([[0.0, float("nan")]]), r"1 samples are NaN or infinite, the first at index \[0, 1\]"),
    ],
)
def test_bad_audio(model: HearModel, audio: Tensor, message: str) -> None:
    for ask in (model.scene, model.timestamps):
        with pytest.raises(AudioError, match=message):
            ask(audio)


def test_unscaled_samples_are_told(model: HearModel) -> None:
    """They are embedded all the same."""
    with pytest.warns(
        UserWarning, match=r"the samples reach 8192, expected \[-1, 1\]; divide those of 16 bits by 32768"
    ):
        model.scene(torch.full((1, 8_000), 8_192.0))
    model.scene(torch.full((1, 8_000), 2.5))


@pytest.mark.parametrize("function", [asda_hear.get_scene_embeddings, asda_hear.get_timestamp_embeddings])
def test_a_name_in_place_of_a_model(function: Callable[..., object]) -> None:
    message = r"model must be what load_model returns, not 'asda_tiny'; call load_model\('asda_tiny'\) first"
    for name in ("asda_tiny", Path("asda_tiny")):
        with pytest.raises(ConfigError, match=message):
            inspect.unwrap(function)(noise(1, 4_000), name)
    with pytest.raises(ConfigError, match="model must be what load_model returns, not NoneType; call load_model first"):
        inspect.unwrap(function)(noise(1, 4_000), None)


def test_half_and_double_are_float(model: HearModel) -> None:
    audio = noise(1, 4_000)
    wanted = model.scene(audio)
    assert torch.allclose(model.scene(audio.double()), wanted)
    assert torch.allclose(model.scene(audio.half()), wanted, atol=1e-2)


@pytest.mark.parametrize("path", ["", "asda_tiny", "log_mel"])
def test_torch_defaults_of_the_caller_change_nothing(path: str) -> None:
    audio = noise(1, 16_000)
    model = asda_hear.load_model(path)
    expected = model.scene(audio), *model.timestamps(audio)
    with default_dtype(torch.float64):
        loaded = asda_hear.load_model(path)
        assert torch.get_default_dtype() == torch.float64
        computed = loaded.scene(audio), *loaded.timestamps(audio)
    for one, other in zip(expected, computed, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


def test_the_default_device_of_the_caller_changes_nothing(model: HearModel) -> None:
    audio = noise(1, 9_000)
    expected = model.scene(audio), *model.timestamps(audio)
    with torch.device("meta"):
        computed = model.scene(audio), *model.timestamps(audio)
    assert all(torch.equal(one, other) for one, other in zip(expected, computed, strict=True))


def test_a_model_cast_to_double_and_back(model: HearModel) -> None:
    expected = model.scene(noise(1, 16_000))
    with pytest.raises(ConfigError, match=r"cast to torch.float64; cast it back with model.float\(\)"):
        model.double().scene(noise(1, 16_000))
    assert torch.equal(model.float().scene(noise(1, 16_000)), expected)


@pytest.mark.parametrize("cast", ["half", "double"])
def test_a_model_that_was_cast(model: HearModel, cast: str) -> None:
    with pytest.raises(ConfigError, match="was cast to torch.float.*precision='bfloat16'"):
        getattr(model, cast)().scene(noise(1, 16_000))


def test_silence(model: HearModel) -> None:
    assert model.scene(torch.zeros(1, 16_000)).isfinite().all()


def test_log_mel_baseline(catalog: Catalog) -> None:
    """The baseline is the mean spectrum."""
    model = asda_hear.load_model("log_mel", catalog=catalog)
    audio = noise(2, 400 + 159 * 160)  # ten patches
    features = model.front_end(audio)
    assert torch.allclose(asda_hear.get_scene_embeddings(audio, model), features.mean(2), atol=1e-5)


def test_random_weights_from_a_config(tmp_path: Path, catalog: Catalog) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(
        "encoder: {dim: 32, depth: 1, num_heads: 2}\n"
        "objective: {name: latent_regression, options: {decoder: {dim: 32}}}"
    )
    audio = noise(1, 8_000)
    one, other = (asda_hear.load_model(config, catalog=catalog).scene(audio) for _ in range(2))
    assert torch.equal(one, other)


def test_missing_checkpoint() -> None:
    with pytest.raises(AsdaError, match="no checkpoint at"):
        asda_hear.load_model("none.safetensors")
    with pytest.raises(AsdaError, match="no checkpoint at logmel: .* by name: .* Did you mean 'log_mel'.* asda_tiny"):
        asda_hear.load_model("logmel")


def test_a_config_of_the_package_by_its_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    model = asda_hear.load_model("asda_tiny")
    file = Path(asda_hear.__file__).parents[1] / "configs" / "asda_tiny.yaml"
    audio = noise(1, 8_000)
    assert torch.equal(model.scene(audio), asda_hear.load_model(file).scene(audio))
    assert weights_identity("asda_tiny") == weights_identity(str(file))


@pytest.mark.parametrize("mixer", ["differential", "standard"])
def test_released_checkpoints(mixer: str, catalog: Catalog, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = write_fairseq(tmp_path / "released.pt", catalog, mixer)
    model = asda_hear.load_model(written.path, catalog=catalog)
    assert "tensors matched" in capsys.readouterr().err
    audio = noise(2, 20_000)
    scene = asda_hear.get_scene_embeddings(audio, model)
    embeddings, stamps = asda_hear.get_timestamp_embeddings(audio, model)
    assert scene.shape == (2, 40)
    assert embeddings.shape == (2, 32, 40)
    assert stamps[0, 1] == 40.0
    teacher = asda_hear.load_model(written.path, catalog=catalog, weights="teacher")
    assert not torch.allclose(asda_hear.get_scene_embeddings(audio, teacher), scene)


def test_released_checkpoint_of_the_golden_set(catalog: Catalog) -> None:
    for name in ("model_asda", "model_eat", "finetune_asda", "finetune_eat"):
        model = asda_hear.load_model(GOLDEN / f"{name}.pt", catalog=catalog)
        assert asda_hear.get_scene_embeddings(noise(1, 9_000), model).isfinite().all()


def test_the_teacher_of_a_run_folder(tmp_path: Path, catalog: Catalog, audio_folder: Path, tiny: RunConfig) -> None:
    """What a run exports has none: that of its newest step is taken."""
    folder = tmp_path / "run"
    pretrain(tiny, sorted(audio_folder.iterdir()), folder, catalog, progress=False)
    audio = torch.randn(1, 16_000) * 0.1
    of_folder, of_step = (
        asda_hear.load_model(str(place), catalog=catalog, weights="teacher")
        for place in (folder, folder / f"step-{tiny.steps:08d}")
    )
    scene = asda_hear.get_scene_embeddings(audio, of_folder)
    assert torch.equal(scene, asda_hear.get_scene_embeddings(audio, of_step))
    student = asda_hear.load_model(str(folder), catalog=catalog)
    assert not torch.allclose(scene, asda_hear.get_scene_embeddings(audio, student))


@pytest.mark.parametrize("model", ["log_mel", "asda_tiny"])
def test_what_is_not_trained_has_no_teacher(model: str, catalog: Catalog) -> None:
    with pytest.raises(ConfigError, match=f"weights teacher: {model} is not a trained model and has no teacher"):
        asda_hear.load_model(model, catalog=catalog, weights="teacher")


def test_the_package_model_by_its_name(catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    named, usual = (asda_hear.load_model(name, catalog=catalog) for name in ("asda_small", ""))
    audio = torch.randn(1, 16_000) * 0.1
    assert torch.equal(asda_hear.get_scene_embeddings(audio, named), asda_hear.get_scene_embeddings(audio, usual))
    assert weights_identity("asda_small") == weights_identity("")


def test_timestamps_may_be_written_to(model: HearModel) -> None:
    """Each clip has its own."""
    _, stamps = asda_hear.get_timestamp_embeddings(noise(2, 20_000), model)
    stamps[0] += 1000
    assert stamps[1].tolist() == [40.0 * step for step in range(stamps.shape[1])]
