"""What a checkpoint was fine-tuned on, so that it is not tested on the same in silence."""

import functools
from collections.abc import Sequence

from asda_core.checkpoint import Checkpoint
from asda_core.data.content import ends
from asda_core.labelled.examples import TEST, VALID, Example, Labelled
from asda_core.labelled.splits import Round

MARK_DIGITS, MOST_MARKED = 8, 20_000
"""Of a clip of the training in a checkpoint, and how many are noted down: 160 kB."""


def note_clips(data: str, split: Round) -> dict[str, str]:
    """`Checkpoint.trained_on` of a training on a split of a set."""
    return {"data": data, "tested": split.name, "clips": _noted(split.train)}


@functools.lru_cache(maxsize=4)
def _noted(clips: tuple[Example, ...]) -> str:
    """Marks of clips; empty of more than `MOST_MARKED`."""
    return "" if len(clips) > MOST_MARKED else "".join(_marks(clips))


def _marks(clips: Sequence[Example]) -> list[str]:
    """Of each clip that can be read, by the first and last bytes of its file: every folder has a 1.wav."""
    return [found[:MARK_DIGITS] for clip in clips if (found := ends(clip.file))]


def heard_before(checkpoint: Checkpoint, data: Labelled, part: str, tested: str) -> str:
    """A warning where clips that are tested were in the training of the checkpoint; empty if that is not known.

    Args:
        checkpoint: fine-tuned here; others do not tell on what.
        data: the clips that are tested.
        part: "test", "train", "valid" or "all".
        tested: the fold of which that is a part; empty where the set has none.
    """
    trained = checkpoint.trained_on
    if marks := trained.get("clips", ""):
        known = {marks[start : start + MARK_DIGITS] for start in range(0, len(marks), MARK_DIGITS)}
        heard = sum(mark in known for mark in _marks(data.examples))
        told = f"{heard} of the {len(data.examples)} clips (by their first and last bytes) are not new to it"
        return f"warning: {checkpoint.file} was trained on {trained['data']}: {told}." if heard else ""
    if trained.get("data") != data.name or (part in (TEST, VALID) and trained.get("tested") == tested):
        return ""
    held_out = f" with {trained['tested']} held out" if trained.get("tested") else ""
    given = "all clips" if part == "all" else f"the {part} clips{f' of {tested}' if tested else ''}"
    return f"warning: {checkpoint.file} was trained on {data.name}{held_out}: {given} are not new to it."
