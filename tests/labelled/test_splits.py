"""Rounds, drawn splits, clips held out, and what is wrong with a round."""

import random
from collections import Counter
from pathlib import Path

import pytest

from asda_core.errors import ConfigError, TaskError
from asda_core.labelled.examples import Example
from asda_core.labelled.random_splits import hold_out
from asda_core.labelled.source import SourceConfig
from asda_core.labelled.splits import Round, check_round, rounds
from tests.labelled.making import labelled


def clips(*splits: str, labels: tuple[str, ...] = ("x", "y")) -> list[Example]:
    """A clip of each label in each split."""
    return [Example(Path(f"{split}-{label}.wav"), (label,), split) for split in splits for label in labels]


def source(**keys: object) -> SourceConfig:
    return SourceConfig("made", **keys)  # type: ignore[arg-type]


def splits_of(drawn: Round) -> tuple[set[str], set[str], set[str]]:
    return (
        {each.split for each in drawn.train},
        {each.split for each in drawn.valid},
        {each.split for each in drawn.test},
    )


@pytest.mark.parametrize(
    "names", [("train", "valid", "test"), ("Training", "val", "evaluation"), ("train", "dev", "eval")]
)
def test_splits_by_usual_names(names: tuple[str, ...]) -> None:
    (only,) = rounds(labelled(clips(*names)), source(folds=5))
    assert only.name == ""
    assert splits_of(only) == ({names[0]}, {names[1]}, {names[2]})
    (only,) = rounds(labelled(clips(names[0], names[2])), source())
    assert only.valid == ()


def test_splits_by_statement() -> None:
    split = {"train": ("a", "b"), "test": ("c",), "valid": ("dev",), "leave_out": ("d", "e")}
    (only,) = rounds(labelled(clips("a", "b", "c", "d", "dev", "e")), source(split=split))
    assert splits_of(only) == ({"a", "b"}, {"dev"}, {"c"})
    # a folder `validation` was read as valid
    (only,) = rounds(labelled(clips("train", "valid")), source(split={"train": ("train",), "test": ("validation",)}))
    assert splits_of(only) == ({"train"}, set(), {"valid"})


def test_leaving_out_alone() -> None:
    leave_out = {"leave_out": ("3",)}
    assert [each.name for each in rounds(labelled(clips("1", "2", "3")), source(split=leave_out))] == ["fold1", "fold2"]
    (only,) = rounds(labelled(clips("train", "3", "test")), source(split=leave_out))
    assert splits_of(only) == ({"train"}, set(), {"test"})


def test_folds_are_in_order_and_chosen() -> None:
    data = labelled(clips("10", "2", "1", "Fold-x"))
    made = rounds(data, source())
    assert [each.name for each in made] == ["fold1", "fold2", "fold10", "Fold-x"]
    assert splits_of(made[2]) == ({"1", "2", "Fold-x"}, set(), {"10"})
    assert [each.name for each in rounds(labelled(clips("fold_10", "fold_2")), source())] == ["fold_2", "fold_10"]
    assert rounds(data, source(), selected_folds=["fold10", "1"]) == [made[0], made[2]]


@pytest.mark.parametrize(
    ("given", "keys", "only", "message"),
    [
        (("train",), {}, (), "made has no test split, only train; add one"),
        (("train", "valid"), {}, (), "made has no test split, only train, valid"),
        (("test", "dev"), {}, (), "made has no train split"),
        (("train", "test", "extra"), {}, (), "extra is not train, valid or test"),
        (("1",), {}, (), "expected at least 2 folds, .* got \\['1'\\]"),
        (("1", "2"), {"split": {"leave_out": ("1", "2")}}, (), "expected at least 2 folds, .* got \\[\\]"),
        (("fold1", "fold2"), {}, ("fold3",), "unknown fold 'fold3'. Did you mean 'fold"),
        (("train", "test"), {}, ("1",), "has train and test splits, not folds, but the fold '1' was requested"),
        (("a", "b"), {"split": {"train": ("a",), "test": ("bb",)}}, (), "'bb'. Did you mean 'b'.* \\(at split.test\\)"),
        (("a", "b", "c"), {"split": {"train": ("a",), "test": ("b",)}}, (), "split does not assign c; list them"),
        (("", "b"), {}, (), "-x.wav has no split; give it one"),
        (("",), {"split": {"train": ("a",), "test": ("b",)}}, (), "-x.wav has no split; .* remove the key split"),
    ],
)
def test_wrong_splits(given: tuple[str, ...], keys: dict[str, object], only: tuple[str, ...], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        rounds(labelled(clips(*given)), source(**keys), only)


def pool(**sizes: int) -> list[Example]:
    return [Example(Path(f"{label}/{n}.wav"), (label,)) for label, size in sizes.items() for n in range(size)]


def test_drawn_splits_keep_the_shares_of_labels() -> None:
    examples = pool(x=10, y=25)
    (only,) = rounds(labelled(examples), source())
    shares = [Counter(each.labels[0] for each in part) for part in (only.train, only.valid, only.test)]
    assert shares == [{"x": 6, "y": 15}, {"x": 2, "y": 5}, {"x": 2, "y": 5}]
    shuffled = random.Random(0).sample(examples, len(examples))
    (again,) = rounds(labelled(shuffled), source())
    assert {each.file for each in again.test} == {each.file for each in only.test}
    (other,) = rounds(labelled(examples), source(seed=1))
    assert {each.file for each in other.test} != {each.file for each in only.test}


def test_too_few_clips_to_draw() -> None:
    """Nobody gave a split, so none is missing from what was given."""
    few = [Example(Path(f"{number}.wav"), (label,), "") for number, label in enumerate(("x", "y"))]
    with pytest.raises(TaskError, match="made: a random split of 2 clips leaves test empty; set their splits"):
        rounds(labelled(few), source())


def test_drawn_folds() -> None:
    examples = pool(x=8, y=12)
    made = rounds(labelled(examples), source(folds=4), selected_folds=())
    assert [each.name for each in made] == ["fold1", "fold2", "fold3", "fold4"]
    for each in made:
        assert Counter(example.labels[0] for example in each.test) == {"x": 2, "y": 3}
        assert {example.file for example in (*each.train, *each.test)} == {example.file for example in examples}
    with pytest.raises(TaskError, match="made: folds: 21 exceeds the number of clips, 20"):
        rounds(labelled(examples), source(folds=21))


@pytest.mark.parametrize("share", [0.01, 0.2, 0.5])
def test_holding_out(share: float) -> None:
    examples = pool(x=20, y=2, z=1)
    kept, held = hold_out(examples, share, seed=0)
    assert sorted(map(examples.index, (*kept, *held))) == list(range(23))
    assert Counter(each.labels[0] for each in held) == {"x": max(1, round(20 * share)), "y": 1}
    shuffled = random.Random(1).sample(examples, len(examples))
    assert set(hold_out(shuffled, share, seed=0)[1]) == set(held)
    assert set(hold_out(examples, share, seed=1)[1]) != set(held)


def test_holding_out_of_many_random_sets() -> None:
    """Nothing is lost, the last clip of a label stays, and shares are near where clips have several labels."""
    generator = random.Random(0)
    for _ in range(50):
        labels = [tuple(generator.sample("abcde", generator.choice((0, 1, 1, 2, 3)))) for _ in range(200)]
        examples = [Example(Path(f"{number}.wav"), each) for number, each in enumerate(labels)]
        kept, held = hold_out(examples, 0.2, seed=0)
        assert len(kept) + len(held) == 200
        assert 0.15 < len(held) / 200 < 0.3
        for label in "abcde":
            total, taken = (sum(label in each.labels for each in part) for part in (examples, held))
            assert 0.15 < taken / total < 0.35


def test_holding_out_nothing() -> None:
    examples = pool(x=5)
    assert hold_out(examples, 0.0, seed=0) == (tuple(examples), ())
    with pytest.raises(ConfigError, match="must be in \\[0, 1\\), not 1.0"):
        hold_out(examples, 1.0, seed=0)


def test_a_good_round_and_its_warnings() -> None:
    train, test = tuple(clips("train")), tuple(clips("test"))
    assert check_round(Round("", train, (), test), ("x", "y"), True) == []
    classes = ("x", "y", *"abcdef")
    assert check_round(Round("fold1", train, (), test[:1]), classes, single=True) == [
        "fold1: 6 classes (a, b, c, d, e, ...) without training clips.",
        "fold1: 7 classes (y, a, b, c, d, ...) without test clips; the accuracy does not cover them.",
        "fold1: the test split has only the class x; AUC is undefined.",
    ]
    assert check_round(Round("", train, (), test), ("x", "y", "z"), single=False)[1] == (
        "the task: 1 class (z) without test clips; the mean over classes excludes them."
    )


def test_wrong_rounds() -> None:
    train, test = tuple(clips("train")), tuple(clips("test"))
    for wrong, message in (
        (Round("fold1", (), (), test), "fold1: the train split is empty"),
        (Round("", train, test, ()), "the task: the test split is empty"),
        (Round("", train[:1], (), test), "at least two classes; the train split has x"),
        (Round("", train, (), (*test, train[1])), "in both train and test: 1 file; the first is train-y.wav"),
    ):
        with pytest.raises(TaskError, match=message):
            check_round(wrong, ("x", "y"), True)
