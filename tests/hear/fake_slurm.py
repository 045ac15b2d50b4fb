"""Slurm's commands, of which each does on this machine what submitit needs; a job is a process of its own session."""

import os
import signal
import sys
from pathlib import Path

import pytest

SBATCH = """
import os, re, subprocess, sys
state, script = os.environ["FAKE_SLURM"], open(sys.argv[1]).read()
if "--partition=none" in script:
    sys.exit("sbatch: error: invalid partition specified: none\\nsbatch: error: Batch job submission failed")
number = str(100 + len([name for name in os.listdir(state) if name.endswith(".sh")]))
open(f"{state}/{number}.sh", "w").write(script)
array = re.search(r"--array='?0-(\\d+)", script)
for task in range(int(array[1]) + 1) if array else [None]:
    job = number if task is None else f"{number}_{task}"
    where = {} if task is None else {"SLURM_ARRAY_JOB_ID": number, "SLURM_ARRAY_TASK_ID": str(task)}
    one = {"SLURM_JOB_ID": number, "SLURM_NTASKS": "1", "SLURM_JOB_NUM_NODES": "1", "SLURM_PROCID": "0"}
    with open(f"{state}/{job}.out", "w") as out:
        subprocess.Popen([sys.executable, f"{state}/runner.py", job, f"{state}/{number}.sh"], stdout=out, stderr=out,
                         env={**os.environ, **one, **where, "FAKE_JOB": job}, start_new_session=True)
print(f"Submitted batch job {number}")
"""
RUNNER = """
import os, subprocess, sys
state, job = os.environ["FAKE_SLURM"], sys.argv[1]
again = True
while again:
    open(f"{state}/{job}.state", "w").write("RUNNING")
    code = subprocess.call(["bash", sys.argv[2]])
    again = os.path.exists(f"{state}/{job}.requeue")
    if again:
        os.remove(f"{state}/{job}.requeue")
open(f"{state}/{job}.state", "w").write("FAILED" if code else "COMPLETED")
"""
SRUN = """
import os, subprocess, sys
state, job, words = os.environ["FAKE_SLURM"], os.environ["FAKE_JOB"], sys.argv[1:]
files = {}
while words[0].startswith("-"):
    option = words.pop(0)
    if option != "--unbuffered":
        files[option] = words.pop(0).replace("%A_%a", job).replace("%j", job).replace("%t", "0")
process = subprocess.Popen(words, stdout=open(files["--output"], "a"), stderr=open(files["--error"], "a"))
open(f"{state}/{job}.pid", "w").write(str(process.pid))
sys.exit(process.wait() & 255)
"""
SACCT = """
import os
state = os.environ["FAKE_SLURM"]
print("JobID|State|NodeList")
for name in os.listdir(state):
    if name.endswith(".state"):
        print(f"{name[:-6]}|{open(state + '/' + name).read()}|here")
"""
SCONTROL = """
import os, sys
open(f"{os.environ['FAKE_SLURM']}/{sys.argv[2]}.requeue", "w").close()
"""


class FakeSlurm:
    """The commands are on the PATH; what they know of jobs is in a folder."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.state = folder / "slurm"
        self.state.mkdir()
        (self.state / "runner.py").write_text(RUNNER)
        for name, text in {"sbatch": SBATCH, "srun": SRUN, "sacct": SACCT, "scontrol": SCONTROL}.items():
            (self.state / name).write_text(f"#!{sys.executable}\n{text}")
            (self.state / name).chmod(0o755)
        monkeypatch.setenv("FAKE_SLURM", str(self.state))
        monkeypatch.setenv("PATH", f"{self.state}{os.pathsep}{os.environ['PATH']}")

    def jobs(self) -> dict[str, str]:
        """Job -> its state."""
        return {file.stem: file.read_text() for file in sorted(self.state.glob("*.state"))}

    def send(self, job: str, number: signal.Signals) -> None:
        """Send a signal to the process of a job."""
        os.kill(int((self.state / f"{job}.pid").read_text()), number)
