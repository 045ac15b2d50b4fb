"""The command `asda-hear ablate`."""

import argparse
import sys

from asda_core.config_io import parsed_changes
from asda_core.errors import ConfigError
from asda_core.system.command_line import interrupts_enabled
from asda_core.system.workers import Shard
from asda_hear.ablation.cells import PlanSetup
from asda_hear.ablation.estimate import print_estimate
from asda_hear.ablation.jobs import run_jobs, submit_jobs
from asda_hear.ablation.plan import load_plan
from asda_hear.ablation.rows import ResultRow
from asda_hear.ablation.run import RESULTS_FOLDER, CellsFailed, plan_warnings, prepare, run_plan, write_all_rows
from asda_hear.reporting.report import PAGE_FILE, write_report


@interrupts_enabled()
def run_ablate(parsed: argparse.Namespace) -> None:
    """`asda-hear ablate`."""
    if parsed.jobs < 1 or (parsed.submit is not None and parsed.submit < 1):
        raise ConfigError("--jobs and --submit must be at least 1.")
    if parsed.submit is None and (parsed.detach or parsed.cluster_set):
        raise ConfigError("--detach and --cluster-set require --submit.")
    if parsed.submit is not None and (parsed.shard != Shard() or parsed.jobs > 1):
        raise ConfigError("--submit cannot be combined with --shard or --jobs: its jobs share the plan.")
    plan = load_plan(parsed.plan)
    out = parsed.out or RESULTS_FOLDER / parsed.plan.stem
    setup = prepare(plan, out, progress=not parsed.worker, store=parsed.store)
    for sentence in [] if parsed.worker else plan_warnings(setup):
        print(f"warning: {sentence}", file=sys.stderr)
    if parsed.dry_run:
        jobs, option = (parsed.jobs, "--jobs") if parsed.submit is None else (parsed.submit, "--submit")
        print_estimate(setup, parsed.shard, jobs, option)
        return
    try:
        rows = _rows(setup, parsed)
    except CellsFailed as error:  # the other cells are reported all the same
        if error.results and not parsed.worker:
            print(write_report(setup, error.results), end="")
        raise
    if not parsed.worker:
        print(write_report(setup, rows), end="")
        print(f"wrote {PAGE_FILE} and tables to {out}", file=sys.stderr)


def _rows(setup: PlanSetup, parsed: argparse.Namespace) -> list[ResultRow]:
    """Run, submit or only collect results, as the options say; return the rows."""
    if parsed.report:
        return write_all_rows(setup)
    if parsed.submit is not None:
        settings = parsed_changes(parsed.cluster_set, "--cluster-set")
        return submit_jobs(setup, parsed.submit, parsed.cluster, settings, not parsed.detach)
    if parsed.jobs > 1:
        return run_jobs(setup, parsed.jobs, parsed.shard)
    return run_plan(setup, parsed.shard)
