"""Audio of a task at another sample rate."""

import shutil
from collections.abc import Iterable
from pathlib import Path

from tqdm import tqdm

from asda_core.audio.reading import read_audio
from asda_core.audio.writing import write_wav
from asda_core.errors import TaskError
from asda_core.system.locks import hold_folder_lock
from asda_hear.evaluate.tasks import MIN_RATE


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
        ConfigError: another process resamples the same task to the same rate.
        OSError: for example, the disk is full.
    """
    if rate < MIN_RATE:
        raise TaskError(f"the sample rate must be at least {MIN_RATE} Hz, not {rate}.")
    if not folder.is_dir():
        raise TaskError(f"task folder {folder} does not exist.")
    rates = sorted((int(path.name) for path in folder.iterdir() if path.name.isdigit()), reverse=True)
    if not rates:
        raise TaskError(f"{folder} has no audio to resample.")
    source = folder / str(next((other for other in rates if other != rate), rate))
    files = sorted(source.rglob("*.wav"))
    final = out or folder
    lock = final / f".{rate}.lock"
    with hold_folder_lock(final, lock.name, f"resamples to {rate} Hz in"):
        try:
            if final != folder:
                for file in folder.iterdir():
                    if file.is_file():
                        shutil.copy(file, final)
            bar = tqdm(files, f"{folder.name} {rate} Hz", unit="clip", disable=not progress)
            _write_rate(source, final / str(rate), bar)
        finally:
            lock.unlink(missing_ok=True)
    return final


def _write_rate(source: Path, rate_folder: Path, files: Iterable[Path]) -> None:
    # heareval takes a folder named by the rate as complete
    output_folder = rate_folder if rate_folder.exists() else rate_folder.with_name(f".{rate_folder.name}.part")
    rate = int(rate_folder.name)
    for file in files:
        target = output_folder / file.relative_to(source)
        if not target.exists():
            part = target.with_suffix(".part")
            write_wav(part, read_audio(file, rate).clamp(-1, 1).numpy(), rate)
            part.replace(target)
    if output_folder != rate_folder:
        output_folder.rename(rate_folder)
