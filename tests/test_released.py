"""`compat: released`: one switch that sets the keys of the release's defects, each of which can be set alone."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import soundfile
import torch

from asda_core.assemble import build_parts
from asda_core.audio.feature_padding import fill_features
from asda_core.audio_files.sources import find_audio
from asda_core.catalog import Catalog
from asda_core.commands.config_arguments import apply_changes
from asda_core.config import ADDED, DataConfig, OptimizerConfig, RunConfig
from asda_core.config_io import load_run_config, parse, signature, to_plain, value_at, with_change
from asda_core.data.clip_batches import ClipBatches, Clips
from asda_core.errors import ConfigError
from asda_core.log_mel import LogMel, LogMelConfig
from asda_core.pretrain import loop
from asda_core.pretrain.loop import pretrain
from asda_core.pretrain.schedule import FairseqAdam, learning_rate, make_optimizer
from asda_core.settings.released import LATENT_REGRESSION, RELEASED
from tests.conftest import TINY
from tests.pretrain.test_loop import losses

ROOT = Path(__file__).parents[1]


def test_the_switch_sets_every_key_and_a_stated_key_wins() -> None:
    config = parse(RunConfig, {"compat": "released", "data": {"crop": "random"}})
    plain = to_plain(config)
    for key, value in RELEASED[LATENT_REGRESSION].items():
        assert value_at(plain, key) == ("random" if key == "data.crop" else value)
    assert parse(RunConfig, plain) == config
    with pytest.raises(ConfigError, match="compat"):
        parse(RunConfig, {"compat": "fairseq"})


def test_the_switch_is_that_of_the_system() -> None:
    """SSAST's release has no defect of fairseq, and a pre-norm model keeps its residual."""
    config = apply_changes(load_run_config("ssast_base"), ["compat=released"])
    assert config.encoder.pre_norm_residual
    assert config.optimizer.algorithm == "adam"
    assert (config.data.crop, config.data.padding, config.data.min_samples) == ("first", "features", 0)
    assert parse(RunConfig, {"compat": "released", "objective": "masked_patch"}).encoder.positions.through_bands == 8
    other = parse(RunConfig, {"compat": "released", "objective": {"name": "altered_frames"}})
    assert other == parse(RunConfig, {**to_plain(other), "compat": "released"})
    assert replace(other, compat="default") == parse(RunConfig, {"objective": "altered_frames"})


def test_the_switch_on_a_command_line() -> None:
    usual = RunConfig()
    released = apply_changes(usual, ["compat=released", "data.min_samples=5"])
    assert (released.optimizer.algorithm, released.data.min_samples) == ("fairseq_adam", 5)
    back = apply_changes(released, ["compat=default"])
    assert back == replace(usual, data=replace(usual.data, min_samples=5))  # a value of its own stays
    own = parse(RunConfig, {"data": {"crop": "first", "min_samples": 7}})
    assert apply_changes(own, ["compat=default"]) == own
    assert apply_changes(own, ["compat=released"]).data.min_samples == 7
    assert parse(RunConfig, with_change(to_plain(usual), "compat", "released")) == parse(
        RunConfig, {"compat": "released"}
    )


def test_older_runs_keep_their_signature() -> None:
    """Keys that came later are not part of it at the value that was in use before."""
    assert signature(RunConfig()) == "4aee5dbf"
    assert signature(load_run_config("asda_tiny")) == "fcc3b112"
    plain = to_plain(RunConfig())
    assert all(value_at(plain, key) == value for key, value in ADDED.items())
    assert signature(parse(RunConfig, {"compat": "released"})) != signature(RunConfig())


def test_a_plugin_says_what_is_released(catalog: Catalog) -> None:
    tiny = parse(RunConfig, TINY)
    assert build_parts(catalog, tiny).objective.config.utterance_rows == 192
    released = parse(RunConfig, {**TINY, "compat": "released"})
    assert build_parts(catalog, released).objective.config.utterance_rows is None
    options = {**released.objective.options, "utterance_rows": 7}
    stated = replace(released, objective=replace(released.objective, options=options))
    assert build_parts(catalog, stated).objective.config.utterance_rows == 7


def test_every_key_of_the_switch_is_documented() -> None:
    text = (ROOT / "docs" / "released.md").read_text()
    for key in (*RELEASED[LATENT_REGRESSION], "objective.options.utterance_rows"):
        assert re.search(rf"^\| .*`{re.escape(key)}", text, re.MULTILINE), key


@pytest.mark.parametrize("floor", [0.0, 1e-4])
def test_rates(floor: float) -> None:
    config = OptimizerConfig(peak_lr=1e-3, floor_lr=floor, warmup_steps=4, schedule="fairseq_cosine")
    rates = [learning_rate(step, 12, config) for step in range(14)]
    assert rates[0] == floor
    assert rates[4] == pytest.approx(1e-3)
    assert rates[11] < rates[10]
    assert rates[12] == pytest.approx(1e-4)  # the jump behind the end
    usual = [learning_rate(step, 12, replace(config, schedule="cosine")) for step in range(14)]
    assert usual[0] > floor
    assert usual[12] == pytest.approx(floor)


def test_decay_on_everything() -> None:
    parameters = [torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(2))]
    released = parse(RunConfig, {"compat": "released"}).optimizer
    optimizer = make_optimizer(parameters, released)
    assert isinstance(optimizer, FairseqAdam)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.05]
    assert [group["weight_decay"] for group in make_optimizer(parameters, OptimizerConfig()).param_groups] == [
        0.05,
        0.0,
    ]


def test_filling() -> None:
    front_end = LogMel(LogMelConfig(), 16_000)
    features = front_end(torch.zeros(4, 16_000))
    filled = fill_features(features, torch.tensor([16_000, 400, 399, 560]), front_end)
    assert torch.equal(filled[0], features[0])
    for clip, frames in ((1, 1), (2, 0), (3, 2)):
        assert torch.equal(filled[clip, :, :frames], features[clip, :, :frames])
        assert torch.allclose(filled[clip, :, frames:], torch.tensor(0.467), atol=1e-3)
    with pytest.raises(ConfigError, match="defines no value to pad with"):
        fill_features(features, torch.tensor([1, 1, 1, 1]), torch.nn.Identity())


def test_short_files_are_left_out_and_stereo_is_slowed_down(audio_folder: Path) -> None:
    released = DataConfig(clip_seconds=2.0, batch_size=5, crop="first", resample_along="channels", min_samples=10_000)
    clips = ClipBatches(find_audio(audio_folder), released, 16_000, seed=1)
    batch = clips.batch(0)
    assert batch.audio.shape == (5, 32_000)
    assert [path.name for path in clips.skipped] == ["sound3.wav"]  # 2,400 samples
    assert "2,400 samples, fewer than data.min_samples 10000" in clips.skipped[audio_folder / "sound3.wav"]
    usual = ClipBatches([audio_folder / "sound1.flac"], replace(released, resample_along="time"), 16_000, 1).batch(0)
    slow = ClipBatches([audio_folder / "sound1.flac"], released, 16_000, 1).batch(0)
    assert usual.num_samples.tolist() == [11_200] * 5  # 0.7 s
    assert slow.num_samples.tolist() == [30_869] * 5  # all samples of 44.1 kHz, read at 16 kHz


def test_a_run_as_released(
    catalog: Catalog, audio_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Short and stereo clips, fairseq's Adam and rates; stopped and gone on with the same losses."""
    soundfile.write(audio_folder / "short.wav", 0.1 * torch.randn(11_000).numpy(), 48_000)
    files = find_audio(audio_folder)
    config = parse(RunConfig, {**TINY, "compat": "released", "steps": 4})
    pretrain(config, files, tmp_path / "whole", catalog, progress=False)
    lines = losses(tmp_path / "whole")
    assert lines[0]["lr"] == 0.0
    assert lines[0]["loss"] == pytest.approx(lines[0]["frame"] + 0.5 * 4 * lines[0]["utterance"], rel=1e-5)
    step, calls = loop._train_step, []

    def fail_behind_the_save(run: loop.Run, batch: Clips) -> dict[str, object]:
        calls.append(run.step)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return step(run, batch)

    monkeypatch.setattr(loop, "_train_step", fail_behind_the_save)
    with pytest.raises(KeyboardInterrupt):
        pretrain(config, files, tmp_path / "parts", catalog, progress=False)
    pretrain(config, files, tmp_path / "parts", catalog, progress=False)
    assert calls == [0, 1, 2, 3, 2, 3]
    assert losses(tmp_path / "parts") == lines
