"""What a checkpoint was fine-tuned on, so that it is not tested on the same in silence."""

from collections.abc import Mapping, Sequence

from asda_core.checkpoint import Checkpoint
from asda_core.data.content import ends
from asda_core.errors import TaskError
from asda_core.labelled.examples import TEST, VALID, Example, Labelled
from asda_core.labelled.splits import Round

MARK_DIGITS, MOST_MARKED = 8, 20_000
"""Of a clip of the training in a checkpoint, and how many are noted down: 160 kB."""


SEPARATOR = ", "
"""Between the names of sets."""


def note_clips(data: str, split: Round, earlier: Mapping[str, str]) -> dict[str, str]:
    """`Checkpoint.trained_on` of a training on a split of a set.

    Args:
        data: name of the set.
        split: what of it is trained on.
        earlier: the same of the weights that the training begins with.
    """
    few = len(split.train) <= MOST_MARKED
    marks = dict.fromkeys(
        filter(None, [*_split_marks(earlier.get("clips", "")), *(_marks(split.train) if few else ())])
    )
    unknown = not few or len(marks) > MOST_MARKED or (earlier and not earlier.get("clips"))
    sets = dict.fromkeys(name for name in (earlier.get("before", ""), earlier.get("data", "")) if name)
    before = {"before": SEPARATOR.join(sets)} if sets else {}
    return {"data": data, "tested": split.name, **before, "clips": "" if unknown else "".join(marks)}


def shared_sounds(split: Round) -> str:
    """A warning of test clips that are training clips under another name; empty where there are none, or too many.

    Raises:
        TaskError: a test clip is the very file of a training clip, as by a link.
    """
    if max(len(split.train), len(split.test)) > MOST_MARKED:
        return ""
    trained = dict(zip(_marks(split.train), split.train, strict=True))
    shared = [(clip, trained[mark]) for clip, mark in zip(split.test, _marks(split.test), strict=True)
              if mark in trained and mark]  # fmt: skip
    for ours, theirs in shared:
        if ours.file.resolve() == theirs.file.resolve():
            raise TaskError(f"{ours.file} is in the test split, and is the file of {theirs.file}, in the training.")
    if not shared:
        return ""
    ours, theirs = shared[0]
    return (
        f"warning: {len(shared)} of {len(split.test)} test clips have the first and last bytes of a training clip: "
        f"{ours.file} those of {theirs.file}."
    )


def _split_marks(marks: str) -> list[str]:
    return [marks[start : start + MARK_DIGITS] for start in range(0, len(marks), MARK_DIGITS)]


def _marks(clips: Sequence[Example]) -> list[str]:
    """Of each clip, by the first and last bytes of its file (every folder has a 1.wav); empty if it is unreadable."""
    return [ends(clip.file)[:MARK_DIGITS] for clip in clips]


def heard_before(checkpoint: Checkpoint, data: Labelled, part: str, tested: str) -> str:
    """A warning where clips that are tested were in the training of the checkpoint; empty if that is not known.

    Args:
        checkpoint: fine-tuned here; others do not tell on what.
        data: the clips that are tested.
        part: "test", "train", "valid" or "all".
        tested: the fold of which that is a part; empty where the set has none.
    """
    trained = checkpoint.trained_on
    sets = f"{trained.get('data', '')}{', and before on ' if trained.get('before') else ''}{trained.get('before', '')}"
    if known := set(_split_marks(trained.get("clips", ""))):
        heard = sum(mark in known for mark in _marks(data.examples))
        told = f"{heard} of the {len(data.examples)} clips (by their first and last bytes) are not new to it"
        return f"warning: {checkpoint.file} was trained on {sets}: {told}." if heard else ""
    if data.name in trained.get("before", "").split(SEPARATOR):
        return f"warning: {checkpoint.file} was trained on {sets}: its clips are not new to it."
    if trained.get("data") != data.name or (part in (TEST, VALID) and trained.get("tested") == tested):
        return ""
    held_out = f" with {trained['tested']} held out" if trained.get("tested") else ""
    given = "all clips" if part == "all" else f"the {part} clips{f' of {tested}' if tested else ''}"
    return f"warning: {checkpoint.file} was trained on {data.name}{held_out}: {given} are not new to it."
