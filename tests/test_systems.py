"""Every system that comes with the package, from audio to HEAR embeddings."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import asda_hear
from asda_core.adapting import attach
from asda_core.assemble import build_encoder, build_parts
from asda_core.catalog import Catalog
from asda_core.checkpoint import load_encoder, read_checkpoint
from asda_core.config import RunConfig
from asda_core.config_io import load_run_config, parse, signature, to_plain
from asda_core.contracts import AdapterContext
from asda_core.errors import ConfigError
from asda_core.official.reading import read_model
from asda_core.pretrain.loop import pretrain
from asda_core.system.paths import MODEL_FILE, newest_step
from tests.conftest import TINY

TOKEN = {"patch_frames": 1, "patch_bins": 128}
PRE = {"norm": "pre", "input_norm": False, "final_norm": True}
LEARNED = {"positions": {"type": "learned", "grid": [3, 8]}}
MAMBA = {"mixer": "mamba", "mlp_ratio": 0.0, "token_order": "frequency", **PRE, **LEARNED}
SYSTEMS: dict[str, dict[str, Any]] = {
    "SSAST, patches": {
        "encoder": {**PRE, **LEARNED, "mixer": "standard", "class_token": {"count": 2}},
        "objective": "masked_patch",
    },
    "SSAST, frames": {
        "encoder": {
            **PRE, "mixer": "standard", "patch_frames": 2, "patch_bins": 128, "class_token": {"count": 2},
            "positions": {"type": "learned", "grid": [31, 1]},
        },
        "objective": {"name": "masked_patch", "options": {"pattern": "uniform", "one_mask": True}},
    },
    "SSAMBA, figure": {"encoder": {**MAMBA, "class_token": {"position": "middle"}}, "objective": "masked_patch"},
    "SSAMBA, released": {"encoder": {**MAMBA, "wiring": "released"}, "objective": "masked_patch"},
    "SSAMBA, paired": {"encoder": {**MAMBA, "wiring": "paired", "norm_type": "rms"}, "objective": "masked_patch"},
    "MFCC-gram": {
        "front_end": "mfcc",
        "encoder": {**PRE, **TOKEN, "mixer": "standard", "class_token": {"position": "none"}},
        "objective": "altered_frames",
    },
    "MFCC-gram, differential": {
        "front_end": "mfcc", "encoder": {**TOKEN, "mixer": "differential_v2"}, "objective": "altered_frames"
    },
    "MFCC, latent regression": {"front_end": "mfcc", "encoder": {"mixer": "frequency_time"}},
    "FTA": {"encoder": {"mixer": "frequency_time"}},
    "FTA, masked patches": {"encoder": {"mixer": "frequency_time"}, "objective": "masked_patch"},
    "Mamba, latent regression": {"encoder": {"mixer": "mamba", "class_token": {"position": "last"}}},
    "two-simplicial": {"encoder": {"mixer": "two_simplicial"}},
    "overlapping patches": {
        "encoder": {"mixer": "standard", "stride_frames": 10, "stride_bins": 10}, "objective": "altered_frames"
    },
    **{name: {"encoder": {"mixer": name}} for name in ("differential_v1", "differential_v2", "dint")},
    "grouped_differential": {"encoder": {"mixer": {"name": "grouped_differential", "options": {"ratio": 2}}}},
}  # fmt: skip
ADAPTERS = ("bottleneck", "convolution", "low_rank", "prompt", "bias_only")


def run_of(system: dict[str, Any], **changes: Any) -> RunConfig:
    plain: dict[str, Any] = {**TINY, "steps": 2, **system, **changes}
    plain["encoder"] = {**TINY["encoder"], **system.get("encoder", {})}  # type: ignore[dict-item]
    return parse(RunConfig, plain)


@pytest.mark.parametrize("name", SYSTEMS)
def test_from_audio_to_embeddings(name: str, catalog: Catalog, audio_folder: Path, tmp_path: Path) -> None:
    config = run_of(SYSTEMS[name])
    model_file = pretrain(config, sorted(audio_folder.iterdir()), tmp_path / "run", catalog, progress=False)
    model = asda_hear.load_model(str(model_file), catalog=catalog)
    audio = torch.randn(2, 23_000) * 0.1
    scenes = asda_hear.get_scene_embeddings(audio, model)
    assert scenes.shape == (2, 32)
    embeddings, stamps = asda_hear.get_timestamp_embeddings(audio, model)
    assert embeddings.isfinite().all()
    assert embeddings.shape[:2] == stamps.shape
    hops = stamps.diff(dim=1)
    assert hops.max() <= 50.0
    assert (hops - hops[0, 0]).abs().max() < 1e-3
    alone = asda_hear.get_scene_embeddings(audio[1:], model)
    assert torch.allclose(alone, scenes[1:], atol=1e-5)
    one = asda_hear.get_scene_embeddings(torch.zeros(1, 1), model)
    assert one.isfinite().all()


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_adapted_training(adapter: str, catalog: Catalog, audio_folder: Path, tmp_path: Path) -> None:
    """Only the adapter learns; the checkpoint holds it; a killed run goes on; an adapted model can be trained on."""
    files = sorted(audio_folder.iterdir())
    first = pretrain(run_of({}), files, tmp_path / "first", catalog, progress=False)
    base = read_checkpoint(first)
    config = run_of({}, adapter=adapter, steps=3, checkpoint_every=1, keep_checkpoints=9)
    with pytest.raises(ConfigError, match="needs a trained encoder"):
        pretrain(config, files, tmp_path / "none", catalog, progress=False)
    file = pretrain(config, files, tmp_path / "run", catalog, progress=False, init=base)
    adapted = read_checkpoint(file)
    assert adapted.plugins["adapter"]["name"] == adapter
    _, before = load_encoder(base, catalog)
    _, after = load_encoder(adapted, catalog)
    old = {id(p) for p in before.parameters()}
    new = attach(catalog.find("adapter", adapter).spec.build(config_of(catalog, adapter), context_of(config)), before)
    kept = [p for p in before.parameters() if id(p) in old]
    trained = {name for name, p in before.named_parameters() if any(p is each for each in new)}
    same = dict(after.named_parameters())
    for name, parameter in before.named_parameters():
        if name not in trained:
            assert torch.equal(parameter, same[name]), name
    assert len(kept) + len(new) == len(same)
    assert any(not torch.equal(p, same[name]) for name, p in before.named_parameters() if name in trained)
    features = torch.randn(1, 128, 64)
    _, plain = load_encoder(base, catalog)
    assert not torch.equal(after(features).tokens, plain(features).tokens)
    # killed after its second step, and gone on: the same to the bit
    (tmp_path / "run" / MODEL_FILE).unlink()
    shutil.rmtree(tmp_path / "run" / "step-00000003")
    again = read_checkpoint(pretrain(config, files, tmp_path / "run", catalog, progress=False, init=base))
    assert all(torch.equal(value, again.tensors[name]) for name, value in adapted.tensors.items())
    following = pretrain(run_of({}, adapter=adapter), files, tmp_path / "on", catalog, progress=False, init=adapted)
    assert read_checkpoint(following).plugins["adapter"]["name"] == adapter
    with pytest.raises(ConfigError, match="the model of the run differs from"):
        pretrain(run_of({}), files, tmp_path / "other", catalog, progress=False, init=adapted)
    assert asda_hear.load_model(str(file), catalog=catalog).scene_embedding_size == 32


@pytest.mark.parametrize("source", ["model_eat.pt", "model_asda.pt", "a run"])
def test_adapter_on_a_checkpoint_with_a_teacher(
    source: str, catalog: Catalog, audio_folder: Path, tmp_path: Path
) -> None:
    """The stored teacher has no adapter: decoder and heads are taken, the teacher begins as the adapted encoder."""
    files = sorted(audio_folder.iterdir())
    if source == "a run":
        pretrain(run_of({}), files, tmp_path / "first", catalog, progress=False)
        init = read_checkpoint(tmp_path / "first" / "step-00000002")
    else:
        init = read_model(Path(__file__).parent / "golden" / source)
    plain = {**to_plain(init.config), "adapter": "bottleneck", "steps": 1}
    plain["data"] = {**plain["data"], "batch_size": 2, "min_samples": 0}
    file = pretrain(parse(RunConfig, plain), files, tmp_path / "run", catalog, progress=False, init=init)
    trained = read_checkpoint(newest_step(tmp_path / "run") or file)
    decoder = [name for name in init.tensors if name.startswith("objective.decoder")]
    assert decoder
    assert all(name in trained.tensors for name in decoder)
    teacher = [name for name in trained.tensors if name.startswith("objective.teacher.") and "adapter" in name]
    assert teacher


def test_weights_of_standard_in_frequency_time(catalog: Catalog, audio_folder: Path, tmp_path: Path) -> None:
    """`--init` takes a mixer over that says so, and refuses the other way round."""
    files = sorted(audio_folder.iterdir())
    standard = run_of({"encoder": {"mixer": "standard"}})
    first = read_checkpoint(pretrain(standard, files, tmp_path / "first", catalog, progress=False))
    config = run_of({"encoder": {"mixer": "frequency_time"}}, steps=0)
    file = pretrain(config, files, tmp_path / "run", catalog, progress=False, init=first)
    taken = read_checkpoint(file).tensors
    assert all(torch.equal(taken[name], value) for name, value in first.tensors.items())
    with pytest.raises(ConfigError, match=r"encoder.mixer.name standard, not frequency_time"):
        pretrain(standard, files, tmp_path / "back", catalog, progress=False, init=read_checkpoint(file))


def test_what_does_not_matter_does_not_hinder(catalog: Catalog, audio_folder: Path, tmp_path: Path) -> None:
    """Heads of a mixer that has none, and how its scan is computed."""
    files = sorted(audio_folder.iterdir())
    first = read_checkpoint(pretrain(run_of({"encoder": MAMBA}), files, tmp_path / "first", catalog, progress=False))
    mixer = {"name": "mamba", "options": {"scan": "sequential"}}
    config = run_of({"encoder": {**MAMBA, "mixer": mixer, "num_heads": 4}}, steps=0)
    pretrain(config, files, tmp_path / "run", catalog, progress=False, init=first)
    other = run_of({"encoder": {"mixer": "standard", "num_heads": 4}})
    with pytest.raises(ConfigError, match="num_heads"):
        pretrain(other, files, tmp_path / "other", catalog, progress=False, init=first)


def config_of(catalog: Catalog, adapter: str) -> Any:
    return catalog.find("adapter", adapter).spec.config()


def context_of(config: RunConfig) -> Any:
    return AdapterContext(config.encoder.dim, config.encoder.depth)


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("name", ["model_asda.pt", "model_eat.pt"])
def test_on_a_released_checkpoint(adapter: str, name: str, catalog: Catalog) -> None:
    """Zero effect when attached to released weights; they stay."""
    _, encoder = load_encoder(read_model(Path(__file__).parent / "golden" / name), catalog)
    features = torch.randn(2, 128, 64)
    state = {key: value.clone() for key, value in encoder.named_parameters()}
    identities = {id(p): key for key, p in encoder.named_parameters()}
    with torch.no_grad():
        before = encoder(features)
        context = context_of(parse(RunConfig, {"encoder": {"dim": encoder.config.dim, "num_heads": 4, "depth": 2}}))
        new = attach(catalog.find("adapter", adapter).spec.build(config_of(catalog, adapter), context), encoder)
        after = encoder(features)
    assert torch.allclose(before.tokens, after.tokens, atol=1e-5)
    assert torch.allclose(before.summary, after.summary, atol=1e-5)
    optimizer = torch.optim.SGD(new, lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        encoder(features).tokens.square().mean().backward()
        optimizer.step()
    for parameter in encoder.parameters():
        if id(parameter) in identities:
            assert torch.equal(parameter, state[identities[id(parameter)]])
    assert not torch.equal(encoder(features).tokens, after.tokens)


def test_an_adapter_in_a_config() -> None:
    """By its name alone, with options, or none; a run without one is named as before."""
    plain = to_plain(RunConfig())
    assert plain["adapter"] is None
    named = parse(RunConfig, {"adapter": "low_rank"})
    assert named.adapter is not None
    assert named.adapter.name == "low_rank"
    full = parse(RunConfig, {"adapter": {"name": "low_rank", "options": {"rank": 4}}})
    assert len({signature(RunConfig()), signature(named), signature(full)}) == 3
    with pytest.raises(ConfigError, match=r"unknown config key 'nam'. Did you mean 'name'"):
        parse(RunConfig, {"adapter": {"nam": "low_rank"}})


def test_the_wiring_of_the_figure_is_the_default(catalog: Catalog) -> None:
    """SSAMBA's own config runs blocks one after the other, and its released wiring is another function."""
    config = load_run_config("ssamba_tiny")
    assert (config.encoder.wiring, config.encoder.class_token.position) == ("sequential", "middle")
    small = run_of({"encoder": {**MAMBA, "depth": 4}, "objective": "masked_patch"})
    features = torch.randn(1, 128, 48)
    outputs = []
    for wiring in ("sequential", "paired", "paired_sum", "released"):
        run = parse(RunConfig, {**to_plain(small), "encoder": {**to_plain(small)["encoder"], "wiring": wiring}})
        encoder = build_parts(catalog, run).encoder.eval()
        with torch.no_grad():
            for block in encoder.blocks:
                block.mixer.out_proj.weight *= 30  # as large as the tokens
            encoder.final_norm.bias += torch.arange(32.0)  # so that norming twice shows
            outputs.append(encoder(features).tokens)
    for one in range(4):
        for other in range(one):
            assert not torch.allclose(outputs[one], outputs[other], atol=1e-4)
    with pytest.raises(ConfigError, match="encoder.depth 3 is odd"):
        run_of({"encoder": {**MAMBA, "wiring": "paired", "depth": 3}})
    with pytest.raises(ConfigError, match="set encoder.final_norm: true"):
        run_of({"encoder": {**MAMBA, "wiring": "released", "final_norm": False}})


def test_doubling_and_mean(catalog: Catalog) -> None:
    """With mixers that give nothing, pairs leave the tokens as they are (mean) or double them (sum)."""
    for wiring, factor in (("paired", 1), ("paired_sum", 4)):  # two pairs
        encoder = build_encoder(catalog, run_of({"encoder": {**MAMBA, "wiring": wiring, "depth": 4}}).encoder)
        encoder.final_norm = torch.nn.Identity()
        for block in encoder.blocks:
            torch.nn.init.zeros_(block.mixer.out_proj.weight)
        tokens, layout = encoder.embed(torch.randn(1, 128, 48))
        assert torch.allclose(encoder.encode(tokens, layout).tokens, factor * tokens, atol=1e-6)


def test_token_order_is_what_a_scan_hears(catalog: Catalog) -> None:
    """A forward scan along frequency or along time: who hears a changed patch."""
    for order, heard in (
        ("time", lambda time, band: (time, band) >= (1, 3)),
        ("frequency", lambda time, band: (band, time) >= (3, 1)),
    ):
        mixer = {"name": "mamba", "options": {"version": "forward"}}
        shape = {**MAMBA, "mixer": mixer, "token_order": order, "depth": 1, "class_token": {"position": "none"}}
        encoder = build_encoder(catalog, run_of({"encoder": shape}).encoder).double()
        tokens, layout = encoder.embed(torch.randn(1, 128, 48, dtype=torch.float64))
        changed = tokens.clone()
        changed[0, 1 * 8 + 3] += torch.randn(32)  # not a constant, which norms take away
        with torch.no_grad():
            moved = (encoder.encode(tokens, layout).tokens - encoder.encode(changed, layout).tokens)[0].abs().amax(
                1
            ) > 0
        for column in range(24):
            assert bool(moved[column]) == heard(column // 8, column % 8)
