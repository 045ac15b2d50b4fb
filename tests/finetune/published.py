"""The published recipes, typed from the papers' and releases' tables, not from our files.

Columns as they are printed there; `None` where nothing is published. Rates per update, lengths in frames.
"""

from typing import Any

EAT_ASDA = (
    "eat_as20k", "asda_as20k", "eat_as2m", "asda_as2m", "eat_esc50", "asda_esc50", "eat_spcv2", "asda_spcv2"
)  # fmt: skip
BCE, CE = "binary_cross_entropy", "cross_entropy"

EAT_ASDA_ROWS: dict[str, tuple[Any, ...]] = {
    "optimizer.peak_lr": (5e-5, 5e-5, 5e-5, 5e-5, 5e-5, 5e-5, 2e-4, 2e-4),
    "optimizer.warmup_steps": (4000, 6000, 30000, 60000, 400, 400, 4000, 8000),
    "data.batch_size": (48, 32, 96, 48, 48, 48, 256, 256),
    "steps": (40000, 60000, 300000, 600000, 4000, 4000, 40000, 80000),
    "frames": (1024, 1024, 1024, 1024, 512, 512, 128, 128),
    "augment.mixup.probability": (0.9, 0.9, 0.9, 0.9, 0, 0, 0.9, 0.9),
    "augment.mixup.alpha": (0.8, 0.8, 0.8, 0.8, None, None, 0.8, 0.8),
    "augment.mixup.of": ("features",) * 4 + (None, None) + ("features",) * 2,
    "augment.mixup.each": ("batch",) * 4 + (None, None) + ("batch",) * 2,
    "augment.spec_augment.share": (0.2, 0.2, 0.2, 0.2, 0.4, 0.4, 0.2, 0.2),
    "augment.roll": (True,) * 8,
    "augment.noise": (0, 0, 0, 0, 0, 0, 0.1, 0.1),
    "augment.time_shift": (0, 0, 0, 0, 0, 0, 10, 10),
    "label_smoothing": (0, 0, 0, 0, 0.1, 0.1, 0, 0),
    "loss": (BCE, BCE, BCE, BCE, CE, CE, BCE, BCE),
    "front_end.mean": (-4.268, -4.268, -4.268, -4.268, -6.627, -6.627, -6.846, -6.846),
    "front_end.std": (4.569, 4.569, 4.569, 4.569, 5.359, 5.359, 5.565, 5.565),
    "sampling.clips_per_epoch": (None, None, 200_000, 200_000, None, None, None, None),
    "sampling.replacement": (None, None, False, False, None, None, None, None),
    "seed": (1, 1, 1, 1, 1, 1, 42, 42),
    "optimizer.floor_lr": (1e-6,) * 8,
    "optimizer.betas": ([0.9, 0.95],) * 8,
    "optimizer.weight_decay": (0.05,) * 8,
    "optimizer.clip_norm": (0,) * 8,
    "layer_decay": (0.65,) * 8,
    "drop_path": (0.1,) * 8,
    "pooling": ("summary",) * 8,
    "mode": ("full",) * 8,
}

AST_FAMILY = ("ssast_as20k", "ssast_esc50", "ssast_spcv2", "aat_esc50", "aat_urbansound8k", "aat_spcv2", "aicl")
MS = {"ratio": 0.25, "beside_mlp": True, "behind_mixer": True}
CONVPASS = {"width": 64, "dropout": 0.1, "beside_mixer": True, "beside_mlp": True}

AST_FAMILY_ROWS: dict[str, tuple[Any, ...]] = {
    "optimizer.peak_lr": (5e-5, 1e-4, 2.5e-4, 1e-4, 1e-4, 5e-4, 3e-4),
    "optimizer.warmup_steps": (0, 0, 1000, 0, 0, 0, 0),
    "data.batch_size": (12, 48, 128, 42, 48, 128, 128),
    "epochs": (25, 50, 30, 25, 25, 30, 5),
    "frames": (1024, 512, 128, 512, 400, 128, None),
    "step_decay.first_epoch": (10, 6, 5, 5, 5, 5, None),
    "step_decay.every": (5, 1, 1, 1, 1, 1, None),
    "step_decay.factor": (0.5, 0.85, 0.85, 0.85, 0.85, 0.85, None),
    "augment.spec_augment.bins": (48, 24, 48, 24, 24, 48, None),
    "augment.spec_augment.frames": (192, 96, 48, 96, 96, 48, None),
    "augment.mixup.probability": (0.5, 0, 0.6, 0, 0, 0.6, 0),
    "augment.mixup.alpha": (10, None, 10, None, None, 10, None),
    "augment.mixup.of": ("audio", None, "audio", None, None, "audio", None),
    "augment.mixup.each": ("clip", None, "clip", None, None, "clip", None),
    "augment.roll": (False,) * 7,
    "augment.noise": (0, 0.1, 0.1, 0, 0, 0.1, 0),
    "augment.time_shift": (0, 10, 10, 0, 0, 10, 0),
    "label_smoothing": (0,) * 7,
    "loss": (BCE, CE, BCE, CE, CE, BCE, CE),
    "front_end.mean": (-4.2677393, -6.6268077, -6.845978, -6.6268, -4.4520, -6.845978, None),
    "front_end.std": (4.5689974, 5.358466, 5.5654526, 5.3585, 3.9358, 5.565453, None),
    "optimizer.algorithm": ("adam",) * 3 + ("adamw",) * 3 + ("adam",),
    "optimizer.schedule": ("constant",) * 7,
    "optimizer.betas": ([0.95, 0.999],) * 3 + (None,) * 4,
    "optimizer.weight_decay": (5e-7,) * 3 + (0.05,) * 3 + (0,),
    "optimizer.decay_norms_and_biases": (True,) * 7,
    "optimizer.clip_norm": (0,) * 7,
    "layer_decay": (1,) * 7,
    "drop_path": (0,) * 7,
    "stride_frames": (10, 10, 1, 10, 10, 10, 10),
    "stride_bins": (10, 10, 128, 10, 10, 10, 10),
    "pooling": ("mean",) * 3 + ("summary",) * 4,
    "mode": ("full",) * 3 + ("adapter",) * 4,
    "adapter.name": (None,) * 3 + ("bottleneck",) * 3 + ("convolution",),
    "adapter.options": (None,) * 3 + (MS,) * 3 + (CONVPASS,),
    "average_from_epoch": (6, None, None, None, None, None, None),
    "select": ("last", None, "valid", None, None, None, None),
    "by_mode": (None, None, None, {"full": {"optimizer.peak_lr": 1e-5, "data.batch_size": 48}}, None, None, None),
}

SCORES: dict[str, float | None] = {
    "eat_as20k": 40.2,
    "asda_as20k": 41.5,
    "eat_as2m": 48.6,
    "asda_as2m": 49.0,
    "eat_esc50": 95.9,
    "asda_esc50": 96.1,
    "eat_spcv2": 98.3,
    "asda_spcv2": 98.3,
    "ssast_as20k": 31.0,
    "ssast_esc50": 88.8,
    "ssast_spcv2": 98.1,
    "aat_esc50": 98.7,
    "aat_urbansound8k": None,
    "aat_spcv2": None,
    "aicl": None,
}

TRAINING_CLIPS = {
    "as20k": 20_550,  # the released manifest
    "as2m": 200_000,  # draws in an epoch
    "esc50": 1_600,  # four folds
    "urbansound8k": 7_859,  # all but the first fold
    "spcv2": 84_843,
    "aicl": 84_843,  # its first task
}


def table() -> dict[str, dict[str, Any]]:
    """Recipe -> key -> what is published; what is not is left out."""
    found: dict[str, dict[str, Any]] = {}
    for names, rows in ((EAT_ASDA, EAT_ASDA_ROWS), (AST_FAMILY, AST_FAMILY_ROWS)):
        for column, name in enumerate(names):
            assert all(len(row) == len(names) for row in rows.values())
            found[name] = {key: row[column] for key, row in rows.items() if row[column] is not None}
    return found


PUBLISHED = table()


def clips_of(name: str) -> int:
    """Training clips, or draws, of an epoch of a recipe."""
    return TRAINING_CLIPS[name.rpartition("_")[2]]
