"""Which training clips an epoch has, and in which order."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from asda_core.errors import ConfigError
from asda_core.finetune_config import SamplingConfig
from asda_core.labelled.examples import Example
from asda_core.system.files import file_digest

ORDER_KEY = 0
"""Third word of the seeds of clip orders, as in pre-training."""


def epoch_order(
    config: SamplingConfig, examples: Sequence[Example], seed: int, base_folder: Path
) -> Callable[[int], np.ndarray]:
    """Return a function from an epoch to the ordered indices of its training clips; the same for the same seed.

    Args:
        config: weights and draws.
        examples: the training clips.
        seed: seed of the run.
        base_folder: folder of the recipe, where a weights file is searched too.

    Raises:
        ConfigError: the weights do not fit the clips or have no effect, or an epoch without replacement has more
            draws than there are clips.
    """
    count = config.clips_per_epoch or len(examples)
    if count > len(examples) and not config.replacement:
        raise ConfigError(f"sampling.clips_per_epoch {count} is more than the {len(examples)} training clips.")
    if config.weights == "uniform":
        weights = np.ones(len(examples))
    elif config.weights == "balanced":
        weights = balanced_weights(examples)
    else:
        weights = _read_weights(weights_file(config, base_folder), examples)
    if not config.replacement and np.count_nonzero(weights) < count:
        raise ConfigError(
            f"{np.count_nonzero(weights)} clips have a weight above 0 (balanced: those with a label), but an "
            f"epoch has {count}; set a lower sampling.clips_per_epoch, or sampling.replacement: true."
        )
    if not config.replacement and len(set(weights[weights > 0])) > 1 and np.count_nonzero(weights) == count:
        raise ConfigError(
            f"sampling.weights have no effect: each of the {count} clips is drawn once per epoch. Set "
            f"sampling.clips_per_epoch below {count}, or replacement: true."
        )

    def order(epoch: int) -> np.ndarray:
        generator = np.random.default_rng([seed, epoch, ORDER_KEY])
        if config.weights == "uniform" and not config.replacement:
            return generator.permutation(len(examples))[:count]
        return draw_indices(weights, count, config.replacement, generator)

    return order


def weights_file(config: SamplingConfig, base_folder: Path) -> Path:
    """Path of the weights file: relative to the working directory, otherwise to the folder of the recipe."""
    path = Path(config.weights).expanduser()
    return path if path.is_file() else base_folder / path


def weights_digest(config: SamplingConfig, base_folder: Path) -> dict[str, str]:
    """Digest of the weights file, for an identity; empty if there is none."""
    if config.weights in ("uniform", "balanced"):
        return {}
    file = weights_file(config, base_folder)
    return {"weights": file_digest(file)} if file.is_file() else {}


def draw_indices(weights: np.ndarray, count: int, replacement: bool, generator: np.random.Generator) -> np.ndarray:
    """Draw indices one after the other, with probabilities proportional to the weights.

    Without replacement, the largest values of `log w + Gumbel noise` are taken, which has the same distribution.

    **Source**: released fine-tuning on AudioSet-2M (`torch.multinomial` without replacement); Efraimidis and Spirakis
    2006 for the keys.
    """
    if replacement:
        return generator.choice(len(weights), size=count, p=weights / weights.sum())
    with np.errstate(divide="ignore"):
        keys = np.log(weights) + generator.gumbel(size=len(weights))
    chosen = np.argpartition(-keys, count - 1)[:count]
    return chosen[np.argsort(-keys[chosen], kind="stable")]


def balanced_weights(examples: Sequence[Example]) -> np.ndarray:
    """Weight of each clip: the sum over its labels of 1 / (clips with this label).

    **Source**: PSLA (Gong et al. 2021), balanced sampling.
    """
    counts = Counter(label for example in examples for label in example.labels)
    return np.array([sum(1.0 / counts[label] for label in example.labels) for example in examples])


def _read_weights(file: Path, examples: Sequence[Example]) -> np.ndarray:
    """Read one weight per line, in the order of the clips; or, if lines begin with the names of all clips, by name.

    **Source**: released fine-tuning on AudioSet-2M, for the weights in order.
    """
    try:
        lines = [line.split() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        weights = np.array([float(fields[-1]) for fields in lines])
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read sampling.weights {file}: {error}") from None
    stems = [example.file.stem for example in examples]
    names = [Path(" ".join(fields[:-1])).stem for fields in lines]
    if len({*stems}) == len(stems) and len({*names}) == len(names) and {*stems} <= {*names}:
        named = dict(zip(names, weights, strict=True))
        weights = np.array([named[stem] for stem in stems])
    if len(weights) != len(examples):
        raise ConfigError(
            f"{file} has {len(weights)} weights for {len(examples)} training clips. Give one weight per clip, in "
            "order, or lines of NAME WEIGHT, which may include other clips."
        )
    if not (np.isfinite(weights).all() and (weights >= 0).all() and weights.any()):
        raise ConfigError(f"{file}: weights must be finite and non-negative, and not all 0.")
    return weights
