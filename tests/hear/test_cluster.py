"""`--submit` with the real submitit: jobs whose time runs out, what a cluster refuses, what is told of jobs."""

import json
import signal
from pathlib import Path
from types import FrameType

import pytest
import submitit

from asda_core.errors import AsdaError, ConfigError, TrainingStopped
from asda_core.pretrain.resuming import stop_on_signal
from asda_core.system.command_line import EXIT_ERROR, EXIT_STOPPED
from asda_core.system.workers import Shard, WorkerResults
from asda_hear.ablation import jobs
from asda_hear.ablation.cells import ERROR_FILE
from asda_hear.ablation.jobs import submit_jobs
from asda_hear.cli import main
from tests.hear.fake_slurm import FakeSlurm
from tests.hear.plans import tone_plan, work_on
from tests.waiting import wait_until

pytestmark = pytest.mark.heareval

Capture = pytest.CaptureFixture[str]
LONG = {"steps": 200, "log_every": 1, "checkpoint_every": 2000}
FREE = {"seeds": [0], "baselines": {}, "axes": {"mixer": {"standard": {}}}}
"""Keys of a plan of one cell."""


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    return FakeSlurm(tmp_path, monkeypatch)


def logged_steps(out: Path) -> list[int]:
    (log,) = out.glob("cells/*/log.jsonl")
    return [json.loads(line)["step"] for line in log.read_text().splitlines()]


def times_requeued(out: Path) -> int:
    return (out / "submitit" / "100_0_log.out").read_text().count("Requeued job 100")


def ended(slurm: FakeSlurm, job: str = "100") -> bool:
    return slurm.jobs().get(job) in ("COMPLETED", "FAILED")


def wait_for_steps(out: Path, number: int = 5) -> None:
    wait_until(lambda: list(out.glob("cells/*/log.jsonl")) and len(logged_steps(out)) >= number, "steps")


def test_a_job_whose_time_runs_out_saves_and_resumes(tmp_path: Path, slurm: FakeSlurm) -> None:
    plan, out = tone_plan(tmp_path, set=LONG, **FREE), tmp_path / "out"
    submit_jobs(work_on(plan, out), 1, "slurm", {"timeout_min": 60}, wait=False)
    wait_for_steps(out)
    slurm.send("100", signal.SIGUSR2)
    wait_until(lambda: list(out.glob("cells/*/step-*")), "a saved step")
    assert not list(out.glob("cells/*/step-00000200"))
    log = out / "submitit" / "100_0_log.err"
    wait_until(lambda: ended(slurm), "the end of the job")
    assert slurm.jobs() == {"100": "COMPLETED"}, log.read_text()
    assert logged_steps(out) == list(range(1, 201))
    assert len(list(out.glob("cells/*/tensorboard/events*"))) == 2
    assert times_requeued(out) == 1


def test_an_evaluation_whose_time_runs_out_is_done_by_the_next_job(tmp_path: Path, slurm: FakeSlurm) -> None:
    """The training before it, and its finished parts, are not done again."""
    grid = {"grid": "default", "grid_points": 12}
    plan, out = tone_plan(tmp_path, evaluation=grid, **FREE), tmp_path / "out"
    submit_jobs(work_on(plan, out), 1, "slurm", {}, wait=False)
    wait_until(lambda: list(out.glob("cells/*/hear-*/*/trainings/0001.pt")), "a finished training of the evaluation")
    (first,) = out.glob("cells/*/hear-*/*/trainings/0001.pt")
    before = first.stat().st_mtime_ns
    slurm.send("100", signal.SIGUSR2)
    wait_until(lambda: ended(slurm), "the end of the job")
    assert slurm.jobs() == {"100": "COMPLETED"}
    assert times_requeued(out) == 1
    assert len(list(out.glob("cells/*/tensorboard/events*"))) == 1
    assert first.stat().st_mtime_ns == before
    assert len((out / "rows.csv").read_text().splitlines()) == 1 + 1


def test_a_job_that_is_requeued_no_more_leaves_its_cell_to_others(tmp_path: Path, slurm: FakeSlurm) -> None:
    plan = tone_plan(tmp_path, set=LONG, seeds=[0], baselines={})
    out = tmp_path / "out"
    submit_jobs(work_on(plan, out), 1, "slurm", {"slurm_max_num_timeout": 0}, wait=False)
    wait_for_steps(out)
    slurm.send("100", signal.SIGUSR2)
    wait_until(lambda: ended(slurm), "the end of the job")
    assert slurm.jobs() == {"100": "FAILED"}
    assert "timed-out too many times" in (out / "submitit" / "100_0_log.err").read_text()
    assert not list(out.rglob(ERROR_FILE))
    assert len(list(out.glob("cells/*/step-*"))) == len(list(out.glob("cells/*"))) == 1


def test_a_second_signal_stops_neither_saving_nor_requeueing() -> None:
    done = []

    def requeue(number: int, frame: FrameType | None) -> None:
        signal.raise_signal(signal.SIGUSR2)
        done.append("requeued")

    def train() -> None:
        with jobs._requeued_after_stop(), stop_on_signal(lambda: done.append("asked to stop")):
            for _ in range(2):
                signal.raise_signal(signal.SIGUSR2)
            done.append("saved")
            raise TrainingStopped

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGUSR2)}
    signal.signal(signal.SIGUSR2, requeue)
    try:
        with pytest.raises((SystemExit, KeyboardInterrupt)):
            train()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert done == ["asked to stop", "saved", "requeued"]


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("slurm_partition=none", "sbatch: error: invalid partition specified: none"),
        ("timeout_min=abc", '"timeout_min" expected type int (but value: "abc")'),
        ("timeout_min=1.5", '"timeout_min" expected type int (but value: "1.5")'),
        ("gpus_per_node=one", '"gpus_per_node" expected type int'),
        ("mem_gb=many", '"mem_gb" expected type (int, float)'),
        ("name=5", '"name" expected type str'),
        ("nonsense=5", "'nonsense' need to be prefixed by an executor name. Known executors: "),
        ("slurm_partitoin=gpu", "Unknown argument 'partitoin' for executor 'slurm'"),
        ("slurm_time=1-00:00:00", "--cluster-set: slurm_time must be a whole number, not '1-00:00:00'"),
        ("slurm_max_num_timeout=many", "slurm_max_num_timeout must be a whole number, not 'many'"),
    ],
)
def test_what_the_cluster_or_submitit_refuses(
    tmp_path: Path, slurm: FakeSlurm, capsys: Capture, setting: str, told: str
) -> None:
    plan = tone_plan(tmp_path, seeds=[0], set={"steps": 3})  # more than the warm-up, of which it would warn
    command = ["ablate", str(plan), "--out", str(tmp_path / "out"), "--submit", "2", "--cluster-set", setting]
    assert main(command) == EXIT_ERROR
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert told in line
    assert not slurm.jobs()


def test_limits_and_names_of_jobs(tmp_path: Path, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs are submitted again as often as they need, unless a limit is given."""
    work, limits = work_on(tone_plan(tmp_path), tmp_path / "out"), list[int]()

    def note(executor: submitit.SlurmExecutor, command: str) -> None:
        limits.append(executor.max_num_timeout)
        raise RuntimeError(executor.parameters["job_name"])

    monkeypatch.setattr(submitit.SlurmExecutor, "_submit_command", note)
    for settings, name in (({}, "asda-plan"), ({"name": "mine", "slurm_max_num_timeout": 7}, "mine")):
        with pytest.raises(ConfigError, match=f"submitit: {name}"):
            submit_jobs(work, 2, "slurm", settings)
    assert limits == [jobs.MAX_TIMEOUTS, 7]


def test_a_plan_that_is_a_link(tmp_path: Path, slurm: FakeSlurm) -> None:
    """Its paths are relative to the link, in jobs too."""
    plan = tone_plan(tmp_path, set={"steps": 1}, **FREE)
    (tmp_path / "elsewhere").mkdir()
    plan.rename(tmp_path / "elsewhere" / "real.yaml")
    plan.symlink_to("elsewhere/real.yaml")
    rows = submit_jobs(work_on(plan, tmp_path / "out"), 1, "slurm", {})
    assert len(rows) == 1


def test_ctrl_c_leaves_the_jobs(
    tmp_path: Path, slurm: FakeSlurm, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*given: object) -> None:
        raise KeyboardInterrupt

    plan, out = tone_plan(tmp_path, set={"steps": 1}, **FREE), tmp_path / "out"
    monkeypatch.setattr(jobs, "is_done", interrupted)  # while the progress is shown
    assert main(["ablate", str(plan), "--out", str(out), "--submit", "2"]) == EXIT_STOPPED
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("stopped waiting; the jobs 100_0 100_1 go on.")
    assert "--report instead of --submit" in told
    assert "`scancel 100_0 100_1` ends them" in told
    wait_until(lambda: ended(slurm, "100_0") and ended(slurm, "100_1"), "the end of the jobs")
    assert set(slurm.jobs().values()) == {"COMPLETED"}
    with pytest.raises(KeyboardInterrupt):  # none is left: told as any Ctrl-C
        jobs._wait(work_on(plan, out), [], "slurm")


def test_jobs_that_fail(tmp_path: Path, slurm: FakeSlurm, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told what happened to them, and not what happened to those of another submission."""

    class Failing(jobs.ClusterJob):
        def __call__(self) -> int:
            raise RuntimeError("no memory today")

    out = tmp_path / "out"
    (out / "submitit").mkdir(parents=True)
    (out / "submitit" / "99_0_log.err").write_text("of yesterday\n")
    monkeypatch.setattr(jobs, "ClusterJob", Failing)
    with pytest.raises(
        AsdaError, match=r"5 trainings and baselines remain, .*RuntimeError: no memory today"
    ) as failure:
        submit_jobs(work_on(tone_plan(tmp_path), out), 2, "slurm", {})
    assert "yesterday" not in str(failure.value)
    told = capsys.readouterr().err
    assert "2 of 2 jobs ended with an error: 100_0, 100_1." in told
    assert "killed" not in told


def test_who_takes_over_from_killed_processes(tmp_path: Path, capsys: Capture) -> None:
    """Of several only."""
    work = work_on(tone_plan(tmp_path), tmp_path / "out")
    for codes, takes_over in (([-9], False), ([-9, -9], False), ([-9, 0], True)):
        with pytest.raises(AsdaError, match=rf"exited with codes \{codes}"):
            jobs._report(work, Shard(), [], 0.0, WorkerResults(codes, []))
        assert ("the others take over" in capsys.readouterr().err) == takes_over
