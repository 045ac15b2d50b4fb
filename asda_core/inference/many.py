"""`asda embed --jobs N`: several processes of this machine, each with its part of the files, into one folder."""

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from asda_core.errors import AsdaError, AudioError
from asda_core.inference.embedding import summary
from asda_core.inference.indexing import INDEX_FILE, SKIPPED_FILE, Index, entry_of
from asda_core.workers import (
    Shard,
    Worker,
    begin,
    ended_as_interrupt,
    how_ended,
    share_of_processors,
    stop,
    tails,
    with_options,
)

JOBS_FOLDER = ".jobs"
"""Logs of the processes, in the folder of embeddings."""
LOOK_EVERY_SECONDS = 0.5


def embed_in_processes(given: Sequence[str], names: Mapping[Path, Path], out: Path, jobs: int, shard: Shard) -> str:
    """Embed files in so many processes, and wait for them; Ctrl-C and SIGTERM stop all.

    Args:
        given: the command line of `asda`, which each process gets with a shard of its own.
        names: audio file -> name of its embedding, as of `embedding.output_names`.
        out: folder.
        jobs: processes; torch has an equal share of the processors in each, unless OMP_NUM_THREADS tells.
        shard: the part of the files that they do together.

    Returns:
        one line on what was done.

    Raises:
        AsdaError: files are left, since processes have failed or were killed.
        AudioError: no file is readable.
    """
    files = shard.of(list(names))
    there = len(files) - len(_missing(out, names, files))
    logs = [out / JOBS_FOLDER / f"{os.getpid()}-{number}.log" for number in range(1, jobs + 1)]
    (out / JOBS_FOLDER).mkdir(parents=True, exist_ok=True)
    workers: list[Worker] = []
    try:
        with ended_as_interrupt():
            for part, log in zip(shard.split(jobs), logs, strict=True):
                rest = ["--jobs", "1", "--shard", f"{part.index}/{part.count}", "--worker"]
                workers.append(begin(["asda_core.cli", *with_options(given, rest)], log, share_of_processors(jobs)))
            _wait(out / INDEX_FILE, len(files) - there, workers)
    finally:
        stop(workers)
    skipped = _skipped(out) & {str(file) for file in files}
    left = [file for file in _missing(out, names, files) if str(file) not in skipped]
    codes = [worker.returncode for worker in workers]
    if left:
        raise AsdaError(f"{len(left)} files are left, and {how_ended(codes, logs)}")
    if len(skipped) == len(names):
        raise AudioError(f"none of the {len(names)} audio files is readable.")
    if any(codes):
        raise AsdaError(f"all files are there, but processes have failed ({codes}). {tails(logs)}")
    return summary(out, len(files) - there - len(skipped), there, len(skipped))


def _wait(index: Path, to_do: int, workers: Sequence[Worker]) -> None:
    """A bar of the lines that come to the index, until no process runs any more."""
    before = _count(index)
    with tqdm(total=to_do, unit="file", desc="embed") as bar:
        while True:
            alive = any(worker.poll() is None for worker in workers)
            bar.update(max(0, min(to_do, _count(index) - before) - bar.n))
            if not alive:
                return
            time.sleep(LOOK_EVERY_SECONDS)


def _count(index: Path) -> int:
    return index.read_bytes().count(b"\n") if index.exists() else 0


def _missing(out: Path, names: Mapping[Path, Path], files: Sequence[Path]) -> list[Path]:
    """Files whose embeddings are not there."""
    index = Index(out, names)
    index.read()
    return [file for file in files if not _there(index, names[file], file)]


def _there(index: Index, name: Path, file: Path) -> bool:
    try:
        return index.holds(entry_of(name, file))
    except (AudioError, OSError):  # the file has gone
        return False


def _skipped(out: Path) -> set[str]:
    file = out / SKIPPED_FILE
    return {json.loads(line)["file"] for line in file.read_text().splitlines()} if file.exists() else set()
