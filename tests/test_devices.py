"""What a caller has set in torch for itself changes no model: the default dtype and device, autocast, gradients off."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from asda_core.audio_files.sources import find_audio
from asda_core.catalog import Catalog
from asda_core.checkpoint import load_classifier, load_encoder, read_checkpoint
from asda_core.config import RunConfig
from asda_core.devices import default_dtype
from asda_core.finetune.jobs import Job
from asda_core.finetune.running import finetune
from asda_core.labelled.reading import read_labelled
from asda_core.labelled.source import SourceConfig
from asda_core.labelled.splits import rounds
from asda_core.pretrain.loop import pretrain
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
    with mode():
        loaded = *load_encoder(checkpoint, catalog), load_classifier(checkpoint)
    for prefix, module in zip(("front_end", "encoder", "classifier"), loaded, strict=True):
        for name, values in module.state_dict().items():
            assert values.dtype == checkpoint.tensors[f"{prefix}.{name}"].dtype
            assert torch.equal(values, checkpoint.tensors[f"{prefix}.{name}"])
            assert not values.is_inference()
