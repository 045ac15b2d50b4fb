"""Parity of fine-tuning: logits, losses, augmentation, rates by layer."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from asda_core.catalog import Catalog
from asda_core.checkpoint import load_classifier, load_encoder
from asda_core.finetune.augment import largest_masks, mixup
from asda_core.finetune.losses import multi_label_loss, single_label_loss
from asda_core.finetune.rates import drop_path_rates, rate_scale
from asda_core.model.heads import Classifier
from asda_core.official.eat import classifier_names, encoder_names
from asda_core.pretrain.schedule import decays
from tests.released import golden
from tests.released.golden import CASES, Arrays, assert_close, features_of

SMOOTHING = 0.1
"""Label smoothing of the golden set. **Source**: released recipe for ESC-50."""


@pytest.mark.parametrize("case", CASES)
def test_finetuned_model(catalog: Catalog, case: str) -> None:
    arrays, source = golden.load(f"finetune_{case}.npz"), golden.load(f"model_{case}.npz")
    read = golden.checkpoint(f"finetune_{case}")
    _, encoder = load_encoder(read, catalog)
    classifier = load_classifier(read)
    features = features_of(source)
    encoded = encoder(features)
    logits = classifier(encoded)
    assert_close(logits, arrays["logits_cls"])
    assert_close(classifier.probabilities(logits), arrays["predictions"])
    for pooling in ("mean", "linear_softmax"):
        other = Classifier(replace(classifier.config, pooling=pooling), encoder.config.dim)
        other.load_state_dict(classifier.state_dict())
        assert_close(other(encoded), arrays[f"logits_{'mean_pooling' if pooling == 'mean' else 'lin_softmax'}"])
    _compare_losses(arrays, logits)
    mixed, labels = mixup(features, arrays["label_multi"], torch.full((len(features),), float(arrays["mixup_lam"])))
    assert_close(mixed[:, :, :4].transpose(1, 2)[:, None], arrays["mixup_x_first4frames"])
    assert_close(labels, arrays["mixup_label"])
    settings = golden.stored_settings(f"finetune_{case}")
    widths = largest_masks(features.shape[1], features.shape[2], settings["mask_ratio"])
    assert_close(torch.tensor(widths, dtype=torch.float64), arrays["spc_freqm_timem"].double())
    _compare_rates(arrays, case, encoder)
    arrays.assert_all_compared()


def _compare_losses(arrays: Arrays, logits: torch.Tensor) -> None:
    several, single = arrays["label_multi"], arrays["label_single"]
    assert_close(multi_label_loss(logits, several, "labels"), arrays["bce_loss"].sum() / arrays["bce_sample_size"])
    assert_close(multi_label_loss(logits, several), arrays["bce_loss"].sum() / len(several))
    assert_close(single_label_loss(logits, single), arrays["esc_eval_loss"])
    assert_close(single_label_loss(logits, single, SMOOTHING), arrays["esc_train_loss"])
    assert int((logits.argmax(1) == single.argmax(1)).sum()) == int(arrays["esc_eval_correct"])
    assert int(arrays["esc_sample_size"]) == len(single)
    assert_close(multi_label_loss(logits, single), arrays["spc_eval_loss"].sum() / len(single))
    assert_close(binary_cross_entropy_with_logits(logits, single, reduction="none"), arrays["spc_eval_loss"])


def _compare_rates(arrays: Arrays, case: str, encoder: torch.nn.Module) -> None:
    found, settings = golden.architecture(f"finetune_{case}"), golden.stored_settings(f"finetune_{case}")
    ours = {released: f"encoder.{name}" for name, (released, _) in encoder_names(found).items()}
    ours |= {released: f"classifier.{name}" for name, (released, _) in classifier_names(found).items()}
    shapes = {released: shape for _, (released, shape) in (encoder_names(found) | classifier_names(found)).items()}
    depth, names = found.encoder.depth, arrays["param_names"]
    compared = 0
    for name, scale, decay in zip(names, arrays["lr_scale"], arrays["requested_weight_decay_scale"], strict=True):
        if name in ours:  # the fixed positions are no parameter of ours
            compared += 1
            assert rate_scale(ours[name], depth, settings["layer_decay"]) == pytest.approx(float(scale), rel=1e-6), name
            if not name.endswith("extra_tokens"):  # we leave the class token without decay too
                assert decays(torch.zeros(shapes[name])) == bool(decay), name  # the release asks, and does not get it
    assert compared >= len(names) - 1
    assert drop_path_rates(depth, settings["drop_path_rate"]) == pytest.approx(
        arrays["drop_path_rates"].tolist(), abs=1e-7
    )
