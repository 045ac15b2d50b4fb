"""A plan in many processes: on this machine, or as jobs that submitit hands to Slurm. The store keeps them apart."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from tqdm import tqdm

from asda_core.cli import EXIT_STOPPED
from asda_core.errors import AsdaError, ConfigError
from asda_hear.ablation.cells import ERROR_FILE, Work, is_done
from asda_hear.ablation.plan import load_plan
from asda_hear.ablation.rows import Row
from asda_hear.ablation.run import CellsFailed, Shard, make_ready, prepare, run_plan, write_all_rows

try:
    import submitit
except ImportError:
    submitit = None  # type: ignore[assignment]

JOBS_FOLDER, CLUSTER_FOLDER = "jobs", "submitit"
"""Logs of the processes, in the result folder."""
LOOK_EVERY_SECONDS = 2.0
THREADS = "OMP_NUM_THREADS"
"""What tells torch how many threads to use; each of N processes gets an N-th of the processors unless it is set."""
ACCEPTED_EXITS = (0, EXIT_STOPPED)
"""A worker ended as it should: all is done or the budget spent, or it was asked to stop. 1 is any error."""
DIE_WITH_PARENT = 1
"""`PR_SET_PDEATHSIG` of Linux's prctl."""
TAIL_LINES = 5


def run_jobs(work: Work, jobs: int, shard: Shard) -> list[Row]:
    """Run a plan in so many processes of this machine, and wait for them; Ctrl-C and SIGTERM stop all.

    A process that dies leaves its unit to the others. What they print goes to `jobs/` in the result folder.

    Raises:
        CellsFailed: cells failed.
        AsdaError: all processes died before the plan was done.
    """
    make_ready(work)
    out = work.out
    (out / JOBS_FOLDER).mkdir(parents=True, exist_ok=True)
    began = time.time()
    threads = {THREADS: os.environ.get(THREADS) or str(max(1, (os.cpu_count() or 1) // jobs))}
    command = [sys.executable, "-m", "asda_hear.cli", "ablate", str(work.plan.file), "--out", str(out), "--worker"]
    command += ["--store", str(work.store), "--shard", f"{shard.index}/{shard.count}"]
    workers: list[subprocess.Popen[bytes]] = []
    logs = [out / JOBS_FOLDER / f"{os.getpid()}-{number}.log" for number in range(1, jobs + 1)]
    try:
        with _ended_as_interrupt():
            for file in logs:
                with file.open("w") as log:
                    workers.append(
                        subprocess.Popen(
                            command, stdout=log, stderr=log, env={**os.environ, **threads},
                            start_new_session=True,  # Ctrl-C reaches them once, through us
                            preexec_fn=_die_with_parent if sys.platform == "linux" else None,
                        )
                    )  # fmt: skip
            _wait(work, shard, lambda: any(worker.poll() is None for worker in workers))
    finally:
        _stop(workers)
    rows = write_all_rows(work)
    _report(work, shard, rows, began, [worker.returncode for worker in workers], logs)
    return rows


def submit_jobs(work: Work, jobs: int, cluster: str, parameters: Mapping[str, Any], wait: bool = True) -> list[Row]:
    """Hand a plan to a cluster as so many jobs that share the store, which all machines must see.

    Args:
        work: the plan; submitit's logs lie in its result folder.
        jobs: how many.
        cluster: "slurm", or "local" for processes of this machine.
        parameters: for submitit, as in {"slurm_partition": "gpu", "timeout_min": 600, "gpus_per_node": 1}.
        wait: whether to wait until they have ended; the same command later shows how far they are.

    Raises:
        ConfigError: submitit is not installed, or refuses a parameter.
        CellsFailed: cells failed.
    """
    if submitit is None:
        raise ConfigError('submitit is not installed: pip install "asda-hear[slurm]".')
    plan_file, out, began = work.plan.file.resolve(), work.out.resolve(), time.time()
    try:
        executor = submitit.AutoExecutor(folder=out / CLUSTER_FOLDER, cluster=cluster)
        executor.update_parameters(name=f"asda-{plan_file.stem}", **parameters)
    except (NameError, RuntimeError, ValueError, TypeError) as error:
        raise ConfigError(f"submitit: {error}") from None
    with executor.batch():
        submitted = [executor.submit(PlanJob(plan_file, out, work.store.resolve())) for _ in range(jobs)]
    print(
        f"submitted {', '.join(str(job.job_id) for job in submitted)}; logs in {out / CLUSTER_FOLDER}", file=sys.stderr
    )
    if not wait:
        return write_all_rows(work)
    _wait(work, Shard(), lambda: not all(job.done() for job in submitted))
    rows = write_all_rows(work)
    codes = [0 if job.exception() is None else -1 for job in submitted]
    _report(work, Shard(), rows, began, codes, sorted((out / CLUSTER_FOLDER).glob("*_log.err")))
    return rows


class PlanJob:
    """What a job of a cluster runs. Where its time runs out, submitit asks for the same once more, and it goes on."""

    def __init__(self, plan_file: Path, out: Path, store: Path) -> None:
        self.plan_file, self.out, self.store = plan_file, out, store

    def __call__(self) -> int:
        """Returns how many rows there are."""
        try:
            return len(run_plan(prepare(load_plan(self.plan_file), self.out, progress=False, store=self.store)))
        except CellsFailed as failed:  # named in the store
            return len(failed.rows)

    def checkpoint(self) -> Any:
        """What submitit shall submit when the time of this job has run out."""
        return submitit.helpers.DelayedSubmission(PlanJob(self.plan_file, self.out, self.store))


def _wait(work: Work, shard: Shard, running: Callable[[], bool]) -> None:
    """A bar of what is done, until nothing runs any more."""
    units = shard.of(work.units())
    with tqdm(total=len(units), desc="cells", unit="cell") as bar:
        while True:
            alive = running()
            bar.update(sum(is_done(work, unit) for unit in units) - bar.n)
            if not alive:
                return
            time.sleep(LOOK_EVERY_SECONDS)


def _die_with_parent() -> None:
    """In a worker, before it begins: SIGTERM where its parent ends in a way that cannot be caught."""
    ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGTERM)


@contextmanager
def _ended_as_interrupt() -> Iterator[None]:
    """SIGTERM, and a terminal that closes, end a wait as Ctrl-C does, so that the workers are stopped too."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(workers: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ask those that still run to stop, and wait: a training saves its step first."""
    for worker in workers:
        if worker.poll() is None:
            worker.send_signal(signal.SIGTERM)
    for worker in workers:
        worker.wait()


def _report(
    work: Work, shard: Shard, rows: list[Row], began: float, codes: Sequence[int], logs: Sequence[Path]
) -> None:
    """Raise what went wrong."""
    left = [unit for unit in shard.of(work.units()) if not is_done(work, unit)]
    errors = {unit.name: unit.folder / ERROR_FILE for unit in left}
    if dead := [code for code in codes if code < 0]:
        print(
            f"{len(dead)} of {len(codes)} processes were killed ({dead}); others took up their work.", file=sys.stderr
        )
    failed = [
        f"{name}: {file.read_text().strip().splitlines()[-1]}"
        for name, file in errors.items()
        if file.exists() and file.stat().st_mtime > began
    ]
    if failed:
        raise CellsFailed(rows, f"{len(failed)} trainings and baselines failed: " + "; ".join(failed))
    if left and any(code not in ACCEPTED_EXITS for code in codes):
        tails = [" ".join(log.read_text().splitlines()[-TAIL_LINES:]) for log in logs if log.exists()]
        raise AsdaError(f"{len(left)} are left, and the processes have ended ({list(codes)}). {' | '.join(tails)}")
