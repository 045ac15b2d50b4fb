"""What checkpoints note of their training clips, and what is told of clips that are tested."""

from dataclasses import replace
from pathlib import Path

import pytest

from asda_core.catalog import Catalog
from asda_core.checkpoint import Checkpoint
from asda_core.errors import CheckpointError
from asda_core.finetune import leakage
from asda_core.finetune.leakage import leakage_warning, shared_clips_warning, trained_on_record
from asda_core.labelled.examples import Example, LabelledData
from asda_core.labelled.splits import Round
from tests.finetune.making import small_checkpoint


def clips(folder: Path, name: str, count: int) -> tuple[Example, ...]:
    """Files that each hold their name and number."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / f"{name}{number}.wav").write_text(f"{name}{number}")
    return tuple(Example(folder / f"{name}{number}.wav", ("x",), "") for number in range(count))


def of_set(name: str, examples: tuple[Example, ...]) -> LabelledData:
    return LabelledData(name=name, examples=examples, classes=("x",), class_names=("x",), single=True)


@pytest.fixture
def start(tmp_path: Path, catalog: Catalog) -> Checkpoint:
    return small_checkpoint(tmp_path / "start", catalog)


def test_an_earlier_fold_that_was_held_out_is_new(
    tmp_path: Path, start: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Known by marks, and by name and fold where the set between was too large to be marked, or both together are."""
    held, trained, large = (clips(tmp_path, name, 4) for name in ("held", "trained", "large"))
    first = trained_on_record("esc", Round("fold1", trained, (), held), {})
    for most in (100, 6, 3):
        monkeypatch.setattr(leakage, "MAX_MARKED", most)
        both = replace(start, trained_on=trained_on_record("big", Round("", large, (), held), first))
        assert leakage_warning(both, of_set("esc", held), "test", "fold1") == ""
        told = leakage_warning(both, of_set("esc", trained), "train", "fold1")
        assert "was trained on big, and before on esc with fold1 held out: " in told
        assert ("4 of the 4 clips" if most == 100 else "the train clips of fold1 are in its training data") in told
    monkeypatch.setattr(leakage, "MAX_MARKED", 6)
    assert "4 of the 4 clips" in leakage_warning(both, of_set("any", large), "test", "") or most == 3
    third = replace(start, trained_on=trained_on_record("more", Round("", held, (), large), both.trained_on))
    assert "before on big, and before on esc" in leakage_warning(third, of_set("any", held), "test", "")


def test_a_mark_that_chance_explains_says_nothing(
    tmp_path: Path, start: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = clips(tmp_path, "one", 3), clips(tmp_path, "other", 3)
    trained = replace(start, trained_on=trained_on_record("set", Round("", one, (), other), {}))
    assert "1 of the 3 clips" in leakage_warning(trained, of_set("any", (*other[:2], one[0])), "test", "")
    monkeypatch.setattr(leakage, "MAX_CHANCE_MATCHES", 1e-12)  # as beside twenty thousand others
    assert leakage_warning(trained, of_set("any", (*other[:2], one[0])), "test", "") == ""
    assert "2 of the 3 clips" in leakage_warning(trained, of_set("any", (other[0], *one[:2])), "test", "")


@pytest.mark.parametrize("before", ["tones", "3", "[[1]]"])
def test_what_was_written_by_hand(start: Checkpoint, before: str) -> None:
    edited = replace(start, trained_on={"data": "set", "before": before})
    with pytest.raises(CheckpointError, match="cannot read the earlier training sets"):
        leakage_warning(edited, of_set("any", ()), "test", "")


def test_without_a_mark_names_decide(tmp_path: Path, start: Checkpoint) -> None:
    """Marks of an earlier training do not stand for clips that could not be marked."""
    one, other = clips(tmp_path, "one", 2), clips(tmp_path, "other", 2)
    first = trained_on_record("first", Round("", one, (), other), {})
    gone = tuple(Example(tmp_path / f"gone{number}.wav", ("x",), "") for number in range(2))
    trained = replace(start, trained_on=trained_on_record("second", Round("", gone, (), other), first))
    told = leakage_warning(trained, of_set("second", gone), "train", "")
    assert "was trained on second, and before on first: the train clips are in its training data." in told


def test_every_clip_that_is_shared_counts(tmp_path: Path) -> None:
    """Copies of one clip are as many clips."""
    (one,) = clips(tmp_path / "train", "one", 1)
    copies = tuple(clips(tmp_path / f"test{number}", "one", 1)[0] for number in range(3))
    assert "3 of 3 test clips have the same first and last bytes" in shared_clips_warning(Round("", (one,), (), copies))


def test_unreadable_clips_share_nothing(tmp_path: Path) -> None:
    gone = tuple(Example(tmp_path / f"gone{number}.wav", ("x",), "") for number in range(2))
    assert shared_clips_warning(Round("", gone[:1], (), gone[1:])) == ""
