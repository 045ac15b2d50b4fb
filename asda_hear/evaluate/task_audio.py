"""Audio of a task at another sample rate."""

import shutil
from pathlib import Path

import soundfile
from tqdm import tqdm

from asda_core.audio import read_audio
from asda_core.errors import TaskError
from asda_hear.evaluate.tasks import LEAST_RATE


def resample_task(folder: Path, rate: int, out: Path | None = None, progress: bool = True) -> Path:
    """Resample a task from its highest other sample rate; files from an interrupted call are kept.

    Args:
        folder: the task.
        rate: sample rate in Hz.
        out: another task folder to write to, with everything but the audio copied; None adds to `folder` itself.
        progress: whether to show a progress bar.

    Returns:
        the task folder that has the rate.

    Raises:
        TaskError: the task is missing or has no audio, or the rate is too low.
    """
    if rate < LEAST_RATE:
        raise TaskError(f"a rate must be {LEAST_RATE} Hz or more, not {rate}.")
    if not folder.is_dir():
        raise TaskError(f"no task at {folder}.")
    rates = sorted((int(path.name) for path in folder.iterdir() if path.name.isdigit()), reverse=True)
    if not rates:
        raise TaskError(f"{folder} has no audio to resample.")
    source = folder / str(next((each for each in rates if each != rate), rate))
    files = sorted(source.rglob("*.wav"))
    final = out or folder
    if final != folder:
        final.mkdir(parents=True, exist_ok=True)
        for file in folder.iterdir():
            if file.is_file():
                shutil.copy(file, final)
    made = final / str(rate)
    place = made if made.exists() else final / f".{rate}.part"  # heareval takes a folder named by the rate as complete
    for file in tqdm(files, desc=f"{folder.name} {rate} Hz", unit="clip", disable=not progress):
        target = place / file.relative_to(source)
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            part = target.with_suffix(".part")
            soundfile.write(part, read_audio(file, rate).clamp(-1, 1).numpy(), rate, subtype="PCM_16", format="WAV")
            part.replace(target)
    if place != made:
        place.rename(made)
    return final
