"""The keys of a plan file, and the names that no axis can have."""

from dataclasses import dataclass, field, fields
from typing import Any, Literal, NamedTuple

from asda_core.config import require
from asda_core.errors import ConfigError, unknown_message
from asda_hear.evaluate.task_checks import EvaluationConfig
from asda_hear.looking.noise_attention import NoiseConfig, NoiseRow

PARAMETERS, TRAINED, SECONDS, CPU_SECONDS = "parameters", "trained", "training s", "CPU s"
"""Headings of costs that a table or chart selects."""


class Cost(NamedTuple):
    """A column of `rows.csv` with a cost.

    Attributes:
        column: its name.
        heading: heading in the table of a plan; "" if it is not shown there.
        quantity: what it is, as in "time".
        of: what it is a cost of.
    """

    column: str
    heading: str
    quantity: str
    of: Literal["encoder", "training"]


COSTS = (
    Cost("parameters", PARAMETERS, "parameters", "encoder"),
    Cost("trained", TRAINED, "parameters", "encoder"),
    Cost("gflops", "GFLOPs per clip", "operations", "encoder"),
    Cost("updates", "", "updates", "training"),
    Cost("pretrain_seconds", SECONDS, "time", "training"),
    Cost("pretrain_cpu_seconds", CPU_SECONDS, "time", "training"),
    Cost("pretrain_mebibytes", "training MiB", "memory", "training"),
)
"""All costs, in the order of the columns: counts, GFLOPs per clip, seconds, MiB."""
SHOWN_COSTS = tuple(cost for cost in COSTS if cost.heading)
"""Costs in the table of a plan."""
FACT_COLUMNS = ("seed", "cell", *(cost.column for cost in COSTS), "plugins")
RESULT_COLUMNS = ("task", "metric", "score", "folds", "validation", "asda", "torch", "heareval")
BASELINE_COLUMN = "model"
"""Columns of `rows.csv` besides the axes; `model` distinguishes baselines from cells."""
TIDY_COLUMNS = ("fold", "clips")
CLIP_COLUMNS = ("num_clips", "mean_ratio_of_clips")
"""Columns of the table of attention on noise that summarise all clips."""
NOISE_COLUMNS = (*(item.name for item in fields(NoiseRow) if item.name != "mixer"), *CLIP_COLUMNS)
"""Columns of the other tables of a plan, except `mixer`: a natural name of an axis, whose labels then fill it."""
RESERVED_NAMES = {BASELINE_COLUMN, *FACT_COLUMNS, *RESULT_COLUMNS, *TIDY_COLUMNS, *NOISE_COLUMNS}


@dataclass(frozen=True)
class TaskChoice:
    """HEAR tasks: their folder, and which of them (empty: all)."""

    folder: str
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class NoisePlan(NoiseConfig):
    """Settings to measure how much attention falls on noise: the clips, and the noise that is added to them.

    Attributes:
        audio: folders, manifests or files.
    """

    audio: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        require(bool(self.audio), "noise_attention.audio must name the clips.")


@dataclass(frozen=True)
class BudgetConfig:
    """Limits of a plan.

    Attributes:
        steps: updates of every cell; None keeps those of the config and the axes.
        hours: time after which a command starts no further cell but finishes the current one. None: no limit.
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
        tasks: tasks to evaluate; None if only attention is measured.
        axes: name -> label -> {config key: value}; or key -> list of values. Besides the keys of a run,
            "options.KEY" of `load_model` and "init" are possible.
        seeds: every combination is run with each.
        baselines: label -> what `load_model` takes; evaluated once.
        evaluation: settings of heareval's search.
        options: keyword arguments of `load_model`.
        set: config keys that differ from the base in every cell.
        init: a checkpoint that every cell starts from, as in `asda pretrain --init`; adapters need one.
        question: the question that the table answers; its heading.
        reference: the row that others are compared with, as {axis: label}, or the label of a baseline; by default
            the first combination.
        budget: limits.
        noise_attention: settings to measure how much attention of every cell falls on added noise.
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
            raise ConfigError(f"the seeds of a plan must differ, got {list(self.seeds)}.")
        if reserved := sorted(RESERVED_NAMES & self.axes.keys()):
            raise ConfigError(f"an axis cannot be named {reserved[0]!r}: the table has a column of that name.")
        for label in self.baselines:
            if not label or label.startswith(".") or set(label) & set("/\\"):
                raise ConfigError(f"a baseline cannot be named {label!r}: its label is a folder name.")
        if self.budget.steps is not None and self.set.get("steps", self.budget.steps) != self.budget.steps:
            raise ConfigError(f"set.steps {self.set['steps']} and budget.steps {self.budget.steps} differ; give one.")
        if isinstance(self.reference, str) and self.reference not in self.baselines:
            raise ConfigError(unknown_message("reference baseline", self.reference, self.baselines))
