"""Turn splits and folds into rounds, each with training and test clips."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from asda_core.errors import TaskError, counted, listing, unknown_message
from asda_core.labelled.examples import NO_SPLIT, TEST, TRAIN, TRAIN_VALID_TEST, VALID, Example, LabelledData
from asda_core.labelled.random_splits import SPLIT_CYCLE, assign_stratified
from asda_core.labelled.rows import by_number
from asda_core.labelled.source import LEAVE_OUT, SourceConfig

SPLIT_NAMES: Mapping[str, str] = {
    "train": TRAIN,
    "training": TRAIN,
    "balanced_train": TRAIN,
    "unbalanced_train": TRAIN,
    "valid": VALID,
    "val": VALID,
    "validation": VALID,
    "dev": VALID,
    "test": TEST,
    "testing": TEST,
    "eval": TEST,
    "evaluation": TEST,
}
"""Usual names of the three splits; no fold has such a name, but ESC-50 has a class "train"."""
FOLD = "fold"
"""Prefix of the name of a round that is a fold."""
MIN_FOLDS = 2
"""Minimum number of folds: one to test, one to train."""


@dataclass(frozen=True)
class Round:
    """Clips of one training run and its test: a fold, or the only round, whose name is empty."""

    name: str
    train: tuple[Example, ...]
    valid: tuple[Example, ...]
    test: tuple[Example, ...]


def usual_split(name: str) -> str:
    """Train, valid or test, if the name is usual for one of them; otherwise `NO_SPLIT`."""
    return SPLIT_NAMES.get(name.lower(), NO_SPLIT)


def rounds(data: LabelledData, source: SourceConfig, selected_folds: Sequence[str] = ()) -> list[Round]:
    """Return the rounds to train and test, from the splits of the source, or from randomly drawn ones if it has none.

    Args:
        data: clips with their splits as in the source.
        source: may state which values are train, valid and test; has folds and seed of a random draw.
        selected_folds: folds to select, by value or name; empty selects all.

    Returns:
        one round for train, valid and test; or one for each fold, in order, with the fold as its test split and all
        others as its training split.

    Raises:
        TaskError: a value has no split, train or test is missing, there is one fold alone, or one is unknown; more
            folds than clips are to be drawn.
    """
    examples, part_of = _assigned(data, source)
    if not part_of:
        return _folds(examples, selected_folds, data.name)
    if selected_folds:
        raise TaskError(
            f"{data.name} has train and test splits, not folds, but the fold {selected_folds[0]!r} was requested."
        )
    parts = {
        part: tuple(example for example in examples if part_of[example.split] == part) for part in TRAIN_VALID_TEST
    }
    return [Round("", **parts)]


def with_splits(data: LabelledData, source: SourceConfig) -> LabelledData:
    """Return the data with the splits of the source, or a random draw, applied, so that the source is no longer needed.

    Raises:
        TaskError: as `rounds`; but data that have splits, on which the source states nothing, are returned unchanged.
    """
    if not source.split and not _needs_draw(data.examples, source):
        return data
    examples, part_of = _assigned(data, source)
    assigned = tuple(replace(example, split=part_of.get(example.split, example.split)) for example in examples)
    return replace(data, examples=assigned)


def _assigned(data: LabelledData, source: SourceConfig) -> tuple[list[Example], dict[str, str]]:
    """Examples that are used, each with a split, and value -> train, valid or test; empty if the values are folds."""
    examples = list(data.examples)
    if _needs_draw(examples, source):
        if len(examples) < source.folds:
            raise TaskError(f"{data.name}: folds: {source.folds} exceeds the number of clips, {len(examples)}.")
        examples = _draw(examples, source)
        if missing := sorted((set() if source.folds else {TRAIN, TEST}) - {example.split for example in examples}):
            message = f"{data.name}: a random split of {len(examples)} clips leaves {missing[0]} empty"
            raise TaskError(f"{message}; set their splits or add clips.")
    if unassigned := next((example for example in examples if example.split == NO_SPLIT), None):
        raise TaskError(f"{data.name}: {unassigned.file} has no split; give it one, or remove the key split.")
    values = {example.split for example in examples}
    assignments = _assignments(values, source)
    left_out = {value for value, part in assignments.items() if part == LEAVE_OUT}
    examples = [example for example in examples if example.split not in left_out]
    return examples, _parts(values - left_out, assignments, data.name)


def _needs_draw(examples: Sequence[Example], source: SourceConfig) -> bool:
    """Whether no split is given; or all clips are train, as in shards named so, and folds are requested."""
    values = {example.split for example in examples}
    all_train = source.folds > 0 and {*map(usual_split, values)} == {TRAIN}
    return not source.split and (values == {NO_SPLIT} or all_train)


def _draw(examples: Sequence[Example], source: SourceConfig) -> list[Example]:
    """Draw random splits, independent of the order of the examples."""
    ordered = sorted(examples, key=lambda example: str(example.file))
    turns = [str(fold + 1) for fold in range(source.folds)] or SPLIT_CYCLE
    assigned = assign_stratified([example.labels for example in ordered], turns, source.seed)
    split_of = {example.file: turn for example, turn in zip(ordered, assigned, strict=True)}
    return [replace(example, split=split_of[example.file]) for example in examples]


def _assignments(values: set[str], source: SourceConfig) -> dict[str, str]:
    """Value -> part, from `source.split`; a folder `validation` was read as valid, and either name is accepted."""
    assignments: dict[str, str] = {}
    for part, listed in source.split.items():
        for value in listed:
            actual = value if value in values else usual_split(value)
            if actual not in values:
                raise TaskError(f"{unknown_message('split value', value, values)} (at split.{part})")
            assignments[actual] = part
    return assignments


def _parts(values: set[str], assignments: Mapping[str, str], name: str) -> dict[str, str]:
    """Value -> train, valid or test, as stated or by usual names; empty if the values are folds."""
    splits = ", ".join(sorted(values))
    assigned_parts = set(assignments.values()) - {LEAVE_OUT}
    part_of = {value: part for value in values if (part := assignments.get(value, "") or usual_split(value))}
    if assigned_parts:
        if unassigned := sorted(values - assignments.keys()):
            raise TaskError(
                f"{name}: split does not assign {', '.join(unassigned)}; list them in it, or as {LEAVE_OUT}."
            )
    elif part_of and (unknown_values := sorted(values - part_of.keys())):
        raise TaskError(
            f"{name}: the splits are {splits}: {unknown_values[0]} is not train, valid or test, and the others are not "
            "folds; set the key split."
        )
    for part in (TRAIN, TEST):
        if part_of and part not in part_of.values():
            raise TaskError(
                f"{name} has no {part} split, only {splits}; add one, assign values to it with the key split, or, if "
                "all clips are train, draw folds with the key folds."
            )
    return part_of


def _folds(examples: Sequence[Example], selected_folds: Sequence[str], name: str) -> list[Round]:
    """One round for each fold, that is, each value of the splits."""
    values = sorted({example.split for example in examples}, key=fold_sort_key)
    if len(values) < MIN_FOLDS:
        raise TaskError(
            f"{name}: expected at least {MIN_FOLDS} folds, one to test and the others to train; got {values}."
        )
    names = {value: value if value.lower().startswith(FOLD) else f"{FOLD}{value}" for value in values}
    for fold in selected_folds:
        if fold not in names and fold not in names.values():
            raise TaskError(unknown_message("fold", fold, names.values()))
    return [
        Round(
            names[value],
            train=tuple(example for example in examples if example.split != value),
            valid=(),
            test=tuple(example for example in examples if example.split == value),
        )
        for value in values
        if not selected_folds or value in selected_folds or names[value] in selected_folds
    ]


def fold_sort_key(value: str) -> tuple[tuple[bool, float, str], str]:
    """Sort key of folds by their number, named like 2 and 10 or fold2 and fold_10."""
    return by_number(value.lower().removeprefix(FOLD).strip(" _-")), value


def check_round(checked: Round, classes: Sequence[str], single: bool) -> list[str]:
    """Check that a round can be trained and tested.

    Args:
        checked: the round.
        classes: all classes of the data set.
        single: whether every clip has exactly one label.

    Returns:
        warnings: classes without training or test clips; only one class in the test split.

    Raises:
        TaskError: train or test is empty, there are fewer than two classes to train on, or a file is in both.
    """
    name = checked.name or "the task"
    for part, examples in ((TRAIN, checked.train), (TEST, checked.test)):
        if not examples:
            raise TaskError(f"{name}: the {part} split is empty.")
    trained, tested = _labels_of(checked.train), _labels_of(checked.test)
    if len(trained) < 2:
        present = ", ".join(trained) or "none"
        raise TaskError(f"{name}: training needs clips of at least two classes; the train split has {present}.")
    if shared := {example.file for example in checked.train} & {example.file for example in checked.test}:
        raise TaskError(f"{name}: in both train and test: {counted(len(shared), 'file')}; the first is {min(shared)}.")
    warnings = []
    if untrained := [label for label in classes if label not in trained]:
        warnings.append(f"{name}: {_listed(untrained)} without training clips.")
    if untested := [label for label in classes if label not in tested]:
        effect = "the accuracy does not cover them" if single else "the mean over classes excludes them"
        warnings.append(f"{name}: {_listed(untested)} without test clips; {effect}.")
    if len(tested) == 1:
        warnings.append(f"{name}: the test split has only the class {next(iter(tested))}; AUC is undefined.")
    return warnings


def _labels_of(examples: Iterable[Example]) -> dict[str, None]:
    return dict.fromkeys(label for example in examples for label in example.labels)


def _listed(classes: Sequence[str]) -> str:
    return f"{len(classes)} {'class' if len(classes) == 1 else 'classes'} ({listing(classes)})"
