"""The keys of a plan file, and the names that no axis can have."""

from dataclasses import dataclass, field, fields
from typing import Any

from asda_core.config import require
from asda_core.errors import ConfigError, unknown
from asda_hear.evaluate.task_checks import EvaluationConfig
from asda_hear.looking.noise_attention import NoiseConfig, NoiseRow

FACTS = (
    "seed",
    "cell",
    "parameters",
    "trained",
    "gflops",
    "updates",
    "pretrain_seconds",
    "pretrain_cpu_seconds",
    "pretrain_mebibytes",
    "plugins",
)
RESULTS = ("task", "metric", "score", "folds", "validation", "asda", "torch", "heareval")
BASELINE = "model"
"""Columns of `rows.csv` beside the axes; `model` tells baselines from cells."""
TIDY = ("fold", "clips")
OVER_CLIPS = ("num_clips", "mean_ratio_of_clips")
"""What the table of the attention on noise has of all clips."""
NOISE = (*(item.name for item in fields(NoiseRow) if item.name != "mixer"), *OVER_CLIPS)
"""Columns of other tables that a plan leaves; `mixer` is a natural name of an axis, whose labels then stand there."""
RESERVED = {BASELINE, *FACTS, *RESULTS, *TIDY, *NOISE}


@dataclass(frozen=True)
class TaskChoice:
    """HEAR tasks: their folder, and which of them (empty: all)."""

    folder: str
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class NoisePlan(NoiseConfig):
    """Measure how much attention falls on noise: which clips, and the noise that is added to them.

    Attributes:
        audio: folders, manifests or files.
    """

    audio: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        require(bool(self.audio), "noise_attention.audio must name the clips.")


@dataclass(frozen=True)
class BudgetConfig:
    """What a plan may take.

    Attributes:
        steps: updates of every cell; None leaves them as the config and the axes say.
        hours: after so long a command begins no further cell; what it has begun it ends. None: no limit.
    """

    steps: int | None = None
    hours: float | None = None

    def __post_init__(self) -> None:
        require(self.steps is None or self.steps >= 0, f"budget.steps must not be negative, not {self.steps}.")
        require(self.hours is None or self.hours > 0, f"budget.hours must be positive, not {self.hours}.")


@dataclass(frozen=True)
class PlanConfig:
    """The keys of a plan file.

    Attributes:
        base: config file that every cell starts from.
        data: folders, manifests or files of audio to pre-train on.
        tasks: what is evaluated; None where attention alone is measured.
        axes: name -> label -> {config key: value}; or key -> list of values. Beside the keys of a run there are
            "options.KEY" of `load_model`, and "init".
        seeds: every combination is run with each.
        baselines: label -> what `load_model` takes; evaluated once.
        evaluation: heareval's search.
        options: keyword arguments of `load_model`.
        set: config keys that differ from the base in every cell.
        init: a checkpoint that every cell begins with, as `asda pretrain --init` does; adapters need one.
        question: what the table answers; its heading.
        reference: the line that others are compared with, as {axis: label}, or the label of a baseline; by default
            the first combination.
        budget: limits.
        noise_attention: how much attention falls on added noise, measured of every cell.
    """

    base: str
    axes: dict[str, Any]
    tasks: TaskChoice | None = None
    data: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0,)
    baselines: dict[str, str] = field(default_factory=dict)
    evaluation: EvaluationConfig = EvaluationConfig()
    options: dict[str, Any] = field(default_factory=dict)
    set: dict[str, Any] = field(default_factory=dict)
    question: str = ""
    init: str | None = None
    reference: dict[str, Any] | str | None = None
    budget: BudgetConfig = BudgetConfig()
    noise_attention: NoisePlan | None = None

    def __post_init__(self) -> None:
        if not self.axes or not self.seeds:
            raise ConfigError("a plan needs at least one axis and one seed.")
        if self.tasks is None and self.noise_attention is None:
            raise ConfigError("a plan needs tasks, or noise_attention.")
        if len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(f"the seeds of a plan must differ, given {list(self.seeds)}.")
        if taken := sorted(RESERVED & self.axes.keys()):
            raise ConfigError(f"an axis cannot be called {taken[0]!r}: the table has a column of that name.")
        for label in self.baselines:
            if not label or label.startswith(".") or set(label) & set("/\\"):
                raise ConfigError(f"a baseline cannot be called {label!r}: a folder is named by it.")
        if self.budget.steps is not None and self.set.get("steps", self.budget.steps) != self.budget.steps:
            raise ConfigError(f"set.steps {self.set['steps']} and budget.steps {self.budget.steps} differ; give one.")
        if isinstance(self.reference, str) and self.reference not in self.baselines:
            raise ConfigError(unknown("baseline as the reference", self.reference, self.baselines))
