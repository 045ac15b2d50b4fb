"""A plan in many processes: on this machine, or as Slurm jobs by submitit. Locks in the store coordinate them."""

import io
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from types import FrameType
from typing import Any

from tqdm import tqdm

from asda_core.errors import AsdaError, ConfigError, TrainingStopped
from asda_core.system.command_line import EXIT_ERROR, EXIT_STOPPED, interrupts_enabled
from asda_core.system.files import disk_time
from asda_core.system.workers import Shard, WorkerResults, run_workers, show_progress, threads_per_job
from asda_hear.ablation.cells import ERROR_FILE, PlanSetup, is_done
from asda_hear.ablation.plan import load_plan
from asda_hear.ablation.rows import ResultRow
from asda_hear.ablation.run import CellsFailed, prepare, prepare_folders, report_spent_budget, run_plan, write_all_rows
from asda_hear.work_queue import read_failure

try:
    import submitit
except ImportError:
    submitit = None  # type: ignore[assignment]

JOBS_FOLDER, CLUSTER_FOLDER = "jobs", "submitit"
"""Logs of the processes, in the result folder."""
ACCEPTED_EXITS = (0, EXIT_STOPPED)
"""Exit codes of a worker that ended normally: all done or the budget spent, or asked to stop. 1 is any error."""
MAX_TIMEOUTS = 1000
"""Default number of times that a job whose time runs out is submitted again; submitit's own is 3."""
LOCAL_END_SECONDS = 2.0
"""Time that submitit's local jobs need to end after Ctrl-C in the terminal, which reaches them too."""


def run_jobs(setup: PlanSetup, jobs: int, shard: Shard) -> list[ResultRow]:
    """Run a plan in `jobs` processes on this machine, and wait for them; Ctrl-C and SIGTERM stop all.

    If a process dies, the others take over its unit. Their output goes to `jobs/` in the result folder.

    Raises:
        CellsFailed: cells failed.
        AsdaError: all processes died before the plan was done.
    """
    prepare_folders(setup)
    since = disk_time(setup.store)
    command = ["asda_hear.cli", "ablate", setup.plan.argument, "--out", str(setup.out), "--worker"]
    command += ["--store", str(setup.store), "--shard", f"{shard.index}/{shard.count}"]
    bar, count_done = _progress(setup, shard)
    ended = run_workers([command] * jobs, setup.out / JOBS_FOLDER, threads_per_job(jobs), bar, count_done)
    rows = write_all_rows(setup)
    _report(setup, shard, rows, since, ended)
    return rows


def submit_jobs(
    setup: PlanSetup, jobs: int, cluster: str, parameters: Mapping[str, Any], wait: bool = True
) -> list[ResultRow]:
    """Submit a plan to a cluster as `jobs` jobs that share the store, which all machines must be able to access.

    Args:
        setup: the plan; submitit's logs are in its result folder.
        jobs: number of jobs.
        cluster: "slurm", or "local" for processes of this machine.
        parameters: for submitit, as in {"slurm_partition": "gpu", "timeout_min": 600, "gpus_per_node": 1}.
        wait: whether to wait until they have ended; otherwise `--report` shows their progress later.

    Raises:
        ConfigError: submitit is not installed, or it or the cluster rejects a parameter.
        CellsFailed: cells failed.
        TrainingStopped: after Ctrl-C, if jobs are still running.
        AsdaError: jobs failed before the plan was done.
    """
    if submitit is None:
        raise ConfigError('submitit is not installed: pip install "asda-hear[slurm]".')
    prepare_folders(setup)
    out, since = setup.out.resolve(), disk_time(setup.store)
    job = ClusterJob(Path(setup.plan.argument), out, setup.store.resolve())
    submitted = _submit([job] * jobs, out / CLUSTER_FOLDER, cluster, parameters)
    ids = [str(job.job_id) for job in submitted]
    print(f"submitted {', '.join(ids)}; logs in {out / CLUSTER_FOLDER}", file=sys.stderr)
    if not wait:
        return write_all_rows(setup)
    _wait(setup, submitted, cluster)
    rows = write_all_rows(setup)
    failed = [job for job in submitted if job.exception() is not None]
    if failed:
        which = ", ".join(str(job.job_id) for job in failed)
        print(f"{len(failed)} of {len(submitted)} jobs ended with an error: {which}.", file=sys.stderr)
    logs = [log for job_id in ids for log in sorted((out / CLUSTER_FOLDER).glob(f"{job_id}_*_log.err"))]
    codes = [EXIT_ERROR if job in failed else 0 for job in submitted]
    _report(setup, Shard(), rows, since, WorkerResults(codes, logs))
    return rows


def _submit(jobs: Sequence["ClusterJob"], folder: Path, cluster: str, parameters: Mapping[str, Any]) -> Sequence[Any]:
    """Submit jobs and return submitit's objects for them.

    Raises:
        ConfigError: submitit or the cluster rejects a parameter.
    """
    limit = f"{cluster}_max_num_timeout"  # a parameter of the executor, unlike the others
    settings = {"name": f"asda-{jobs[0].plan_file.stem}", limit: MAX_TIMEOUTS, **parameters}
    for key in (limit, "slurm_time"):  # submitit computes with them when the time of a job runs out
        if not isinstance(settings.get(key, 0), int):
            raise ConfigError(f"--cluster-set: {key} must be a whole number, not {settings[key]!r}.")
    try:
        executor = submitit.AutoExecutor(folder=folder, cluster=cluster, **{limit: settings.pop(limit)})
        executor.update_parameters(**settings)
        with redirect_stderr(io.StringIO()), executor.batch():  # submitit prints what sbatch says, and raises it
            return [executor.submit(job) for job in jobs]
    except (AssertionError, NameError, RuntimeError, ValueError, TypeError) as error:
        message = re.sub(r"<class '(\w+)'>", r"\1", " ".join(str(error).split()))
        raise ConfigError(f"submitit: {message}") from None


def _wait(setup: PlanSetup, submitted: Sequence[Any], cluster: str) -> None:
    """Show the progress of submitted jobs until all have ended.

    Raises:
        TrainingStopped: after Ctrl-C, if jobs are still running; they are left to run.
    """
    try:
        show_progress(*_progress(setup, Shard()), lambda: not all(job.done() for job in submitted))
    except KeyboardInterrupt:
        if cluster == "local":
            time.sleep(LOCAL_END_SECONDS)
        ids = " ".join(str(job.job_id) for job in submitted if not job.done())
        if not ids:
            raise
        end = "kill -INT" if cluster == "local" else "scancel"
        raise TrainingStopped(
            f"stopped waiting; the jobs {ids} go on. The same command with --report instead of --submit shows their "
            f"progress, `{end} {ids}` ends them."
        ) from None


class ClusterJob:
    """Callable that a cluster job runs. When its time runs out, it stops and saves, and submitit submits it again."""

    def __init__(self, plan_file: Path, out: Path, store: Path) -> None:
        self.plan_file, self.out, self.store = plan_file, out, store

    def __call__(self) -> int:
        """Run the plan and return the number of rows."""
        with _requeued_after_stop():
            try:
                return len(run_plan(prepare(load_plan(self.plan_file), self.out, progress=False, store=self.store)))
            except CellsFailed as failed:  # their errors are in the store
                return len(failed.results)

    def checkpoint(self) -> Any:
        """Return what submitit submits when the time of this job has run out."""
        return submitit.helpers.DelayedSubmission(ClusterJob(self.plan_file, self.out, self.store))


@contextmanager
def _requeued_after_stop() -> Iterator[None]:
    """Context that stops at submitit's signal as at Ctrl-C, so that a training saves its step, and requeues the job.

    The handler of submitit would exit in the middle of a step, or raise an error there that is taken for the cell's.
    """
    number = signal.Signals[f"SIG{submitit.JobEnvironment.USR_SIG}"]
    received = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal received
        if not received:  # a second Ctrl-C would stop at once, before the step is saved or the job requeued
            received = True
            signal.raise_signal(signal.SIGINT)

    requeue: Any = signal.signal(number, stop)
    try:
        with interrupts_enabled():
            yield
    except (TrainingStopped, KeyboardInterrupt):
        if not received:
            raise
        requeue(number, None)  # exits, or raises that the job was requeued too many times
        sys.exit()  # not the first process of the job, which requeues it
    finally:
        signal.signal(number, requeue)


def _progress(setup: PlanSetup, shard: Shard) -> tuple["tqdm[Any]", Callable[[], int]]:
    """Return a progress bar over the units, and a function that counts those that are done."""
    units = setup.units(shard)
    bar = tqdm(total=len(units), desc="cells", unit="cell")
    return bar, lambda: sum(is_done(setup, unit) for unit in units)


def _report(setup: PlanSetup, shard: Shard, rows: list[ResultRow], since: float, ended: WorkerResults) -> None:
    """Raise an error for what failed; report killed processes and a spent budget on stderr."""
    remaining = [unit for unit in setup.units(shard) if not is_done(setup, unit)]
    killed = [code for code in ended.exit_codes if code < 0]
    if 0 < len(killed) < len(ended.exit_codes):
        print(
            f"killed: {len(killed)} of {len(ended.exit_codes)} processes ({killed}); the others take over their work.",
            file=sys.stderr,
        )
    errors = {unit.name: read_failure(unit.folder / ERROR_FILE, since) for unit in remaining}
    failed = [f"{name}: {why}" for name, why in errors.items() if why]
    if failed:
        raise CellsFailed(rows, f"{len(failed)} trainings and baselines failed: " + "; ".join(failed))
    if remaining and any(code not in ACCEPTED_EXITS for code in ended.exit_codes):
        raise AsdaError(f"{len(remaining)} trainings and baselines remain, and {ended.failure_message()}")
    if remaining and 0 in ended.exit_codes and setup.plan.config.budget.hours is not None:  # a spent budget ends with 0
        report_spent_budget(setup, len(remaining))
