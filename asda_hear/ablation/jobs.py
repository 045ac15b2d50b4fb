"""A plan in many processes: on this machine, or as Slurm jobs by submitit. Locks in the store coordinate them."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from asda_core.errors import AsdaError, ConfigError
from asda_core.system.command_line import EXIT_STOPPED
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
        ConfigError: submitit is not installed, or rejects a parameter.
        CellsFailed: cells failed.
    """
    if submitit is None:
        raise ConfigError('submitit is not installed: pip install "asda-hear[slurm]".')
    prepare_folders(setup)
    plan_file, out, since = Path(setup.plan.argument), setup.out.resolve(), disk_time(setup.store)
    try:
        executor = submitit.AutoExecutor(folder=out / CLUSTER_FOLDER, cluster=cluster)
        executor.update_parameters(name=f"asda-{plan_file.stem}", **parameters)
    except (NameError, RuntimeError, ValueError, TypeError) as error:
        raise ConfigError(f"submitit: {error}") from None
    with executor.batch():
        submitted = [executor.submit(ClusterJob(plan_file, out, setup.store.resolve())) for _ in range(jobs)]
    print(
        f"submitted {', '.join(str(job.job_id) for job in submitted)}; logs in {out / CLUSTER_FOLDER}", file=sys.stderr
    )
    if not wait:
        return write_all_rows(setup)
    show_progress(*_progress(setup, Shard()), lambda: not all(job.done() for job in submitted))
    rows = write_all_rows(setup)
    codes = [0 if job.exception() is None else -1 for job in submitted]
    _report(setup, Shard(), rows, since, WorkerResults(codes, sorted((out / CLUSTER_FOLDER).glob("*_log.err"))))
    return rows


class ClusterJob:
    """Callable that a cluster job runs. When its time runs out, submitit submits it again, and it resumes."""

    def __init__(self, plan_file: Path, out: Path, store: Path) -> None:
        self.plan_file, self.out, self.store = plan_file, out, store

    def __call__(self) -> int:
        """Run the plan and return the number of rows."""
        try:
            return len(run_plan(prepare(load_plan(self.plan_file), self.out, progress=False, store=self.store)))
        except CellsFailed as failed:  # their errors are in the store
            return len(failed.rows)

    def checkpoint(self) -> Any:
        """Return what submitit submits when the time of this job has run out."""
        return submitit.helpers.DelayedSubmission(ClusterJob(self.plan_file, self.out, self.store))


def _progress(setup: PlanSetup, shard: Shard) -> tuple["tqdm[Any]", Callable[[], int]]:
    """Return a progress bar over the units, and a function that counts those that are done."""
    units = setup.units(shard)
    bar = tqdm(total=len(units), desc="cells", unit="cell")
    return bar, lambda: sum(is_done(setup, unit) for unit in units)


def _report(setup: PlanSetup, shard: Shard, rows: list[ResultRow], since: float, ended: WorkerResults) -> None:
    """Raise an error for what failed; report killed processes and a spent budget on stderr."""
    remaining = [unit for unit in setup.units(shard) if not is_done(setup, unit)]
    if killed := [code for code in ended.exit_codes if code < 0]:
        print(
            f"{len(killed)} of {len(ended.exit_codes)} processes were killed ({killed}); the others take over their "
            "work.",
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
