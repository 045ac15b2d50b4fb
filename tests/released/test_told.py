"""What a stored config tells of its run: each key in its place, and what makes no sense named and left out."""

from pathlib import Path
from typing import Any

import pytest
import torch

from asda_core.config_io import parse
from asda_core.log_mel import LogMelConfig
from asda_core.official.reading import read_model
from asda_core.pretrain.latent_regression import LatentRegressionConfig
from tests.released import golden
from tests.released.test_reading import changed


def with_flags(*flags: str, **numbers: Any) -> Any:
    def change(whole: dict[str, Any]) -> None:
        whole["cfg"]["model"].update(dict.fromkeys(flags, True))
        whole["cfg"]["model"]["pretrained_model_args"]["optimization"].update(numbers)

    return change


@pytest.mark.parametrize(
    ("flags", "mean", "multi_label"),
    [
        ((), -4.268, True),
        (("esc50_eval",), -6.627, False),
        (("spcv2_eval",), -6.846, True),
        (("fsd50k_eval",), -7.966, True),
        (("esc50_eval", "fsd50k_eval"), -7.966, False),
    ],
)
@pytest.mark.parametrize("clip_norm", [4.0, -1.0])
def test_normalisation(
    flags: tuple[str, ...], mean: float, multi_label: bool, clip_norm: float, tmp_path: Path
) -> None:
    """The constants of the data set that a model was fine-tuned on, whatever else the config holds."""
    read = read_model(changed("finetune_asda", tmp_path, with_flags(*flags, clip_norm=clip_norm)))
    assert parse(LogMelConfig, read.config.front_end.options).mean == mean
    assert read.classifier is not None
    assert read.classifier.multi_label == multi_label
    frames = golden.load("model_asda.npz")["source"].shape[2]
    assert read.config.data.clip_seconds == pytest.approx((frames - 1) * 0.01 + 0.025)
    assert ("Ignored invalid settings of its config: clip_norm -1.0." in read.report) == (clip_norm < 0)


@pytest.mark.parametrize(
    ("mode", "pooling"), [("CLS_TOKEN", "summary"), ("MEAN_POOLING", "mean"), ("LIN_SOFTMAX", "linear_softmax")]
)
def test_pooling(mode: str, pooling: str, tmp_path: Path) -> None:
    def change(whole: dict[str, Any]) -> None:
        whole["cfg"]["model"]["prediction_mode"] = mode

    classifier = read_model(changed("finetune_asda", tmp_path, change)).classifier
    assert classifier is not None
    assert classifier.pooling == pooling


def test_every_number(tmp_path: Path) -> None:
    def change(whole: dict[str, Any]) -> None:
        cfg = whole["cfg"]
        group = cfg["optimizer"]["groups"]["default"]
        group["lr_float"], group["lr_scheduler"]["warmup_updates"] = 3e-4, 77
        group["optimizer"]["adam_betas"], group["optimizer"]["weight_decay"] = "(0.8, 0.9)", 0.01
        cfg["optimization"].update(max_update=999, clip_norm=2.0)
        cfg["dataset"]["batch_size"], cfg["common"]["seed"] = 12, 5
        cfg["model"].update(clone_batch=7, cls_loss=0.25, average_top_k_layers=1)
        cfg["model"].update(ema_decay=0.5, ema_end_decay=0.6, ema_anneal_end_step=9)
        image = cfg["model"]["modalities"]["image"]
        image.update(mask_noise_std=0.02, mask_prob=0.7, mask_length=4, mask_prob_adjust=0.05)
        whole["optimizer_history"] = [{"num_updates": 1}, {"num_updates": 321}]

    read = read_model(changed("model_asda", tmp_path, change))
    run = read.config
    assert read.step == 321
    assert (run.steps, run.seed, run.data.batch_size, run.compat) == (999, 5, 12, "released")
    rates = run.optimizer
    assert (rates.peak_lr, rates.warmup_steps, rates.betas) == (3e-4, 77, (0.8, 0.9))
    assert (rates.weight_decay, rates.clip_norm, rates.algorithm) == (0.01, 2.0, "fairseq_adam")
    options: LatentRegressionConfig = parse(LatentRegressionConfig, run.objective.options)
    assert (options.clones, options.utterance_weight, options.top_layers, options.noise_std) == (7, 0.25, 1, 0.02)
    assert (options.mask.hidden_share, options.mask.block, options.mask.adjust) == (0.7, 4, 0.05)
    assert (options.teacher.decay_start, options.teacher.decay_end, options.teacher.anneal_steps) == (0.5, 0.6, 9)


def test_labels_need_all_numbers(tmp_path: Path) -> None:
    def change(whole: dict[str, Any]) -> None:
        labels = whole["task_state"]["labels"]
        labels[next(iter(labels))] = "²"

    classifier = read_model(changed("finetune_asda", tmp_path, change)).classifier
    assert classifier is not None
    assert classifier.labels == ()
    assert torch.is_tensor(golden.checkpoint("finetune_asda").tensors["classifier.head.weight"])
