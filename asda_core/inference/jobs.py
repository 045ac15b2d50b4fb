"""`asda embed --jobs N`: several processes on this machine embed one shard each into the same folder."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from asda_core.errors import AsdaError, AudioError, counted
from asda_core.inference.embedding import summary
from asda_core.inference.indexing import INDEX_FILE, SKIPPED_FILE, Index, entry_of, read_entries
from asda_core.system.workers import Shard, log_tails, run_workers, threads_per_job, with_options

JOBS_FOLDER = ".jobs"
"""Logs of the processes, in the folder of embeddings."""


def embed_in_processes(arguments: Sequence[str], names: Mapping[Path, Path], out: Path, jobs: int, shard: Shard) -> str:
    """Embed files in `jobs` processes, and wait for them; Ctrl-C and SIGTERM stop all of them.

    Args:
        arguments: the command line of `asda`, which each process gets with its own shard.
        names: audio file -> name of its embedding, as returned by `embedding.output_names`.
        out: output folder.
        jobs: number of processes; each gives torch an equal share of the CPU cores unless OMP_NUM_THREADS is set.
        shard: part of the files that the processes embed together.

    Returns:
        one line on what was done.

    Raises:
        AsdaError: a process failed or was killed, so that files may be missing.
        AudioError: no file is readable.
    """
    files = shard.of(list(names))
    embedded = len(files) - len(_missing(out, names, files))
    commands = []
    for part in shard.split(jobs):
        rest = ["--jobs", "1", "--shard", f"{part.index}/{part.count}", "--worker"]
        commands.append(["asda_core.cli", *with_options(arguments, rest)])
    index, to_do = out / INDEX_FILE, len(files) - embedded
    before = _count(index)
    workers = run_workers(
        commands,
        out / JOBS_FOLDER,
        threads_per_job(jobs),
        tqdm(total=to_do, unit="file", desc="embed"),
        lambda: max(0, min(to_do, _count(index) - before)),  # new lines of the index
    )
    skipped = _skipped(out) & {str(file) for file in files}
    remaining = [file for file in _missing(out, names, files) if str(file) not in skipped]
    if remaining:
        raise AsdaError(f"not embedded: {counted(len(remaining), 'file')}; {workers.failure_message()}")
    if len(skipped) == len(names):
        raise AudioError(f"none of the {len(names)} audio files is readable.")
    if any(workers.exit_codes):
        raise AsdaError(
            f"all files are done, but processes failed (exit codes {workers.exit_codes}). {log_tails(workers.logs)}"
        )
    return summary(out, len(files) - embedded - len(skipped), embedded, len(skipped))


def _count(index: Path) -> int:
    return index.read_bytes().count(b"\n") if index.exists() else 0


def _missing(out: Path, names: Mapping[Path, Path], files: Sequence[Path]) -> list[Path]:
    """Return the files that have no embedding."""
    index = Index(out, names)
    index.read()
    return [file for file in files if not _has_embedding(index, names[file], file)]


def _has_embedding(index: Index, name: Path, file: Path) -> bool:
    try:
        return index.holds(entry_of(name, file))
    except (AudioError, OSError):  # the file no longer exists
        return False


def _skipped(out: Path) -> set[str]:
    return {entry["file"] for entry in read_entries(out / SKIPPED_FILE)}
