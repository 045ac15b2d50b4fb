"""Benchmark of `asda-hear evaluate` against heareval's two commands, and of two processes against one. Interleaved.

    python benchmarks/evaluate.py

Two tasks of the demo's corpus, scored with a small grid; every side runs as started from a shell, including imports:

- `by hand`: `heareval.embeddings.runner` and then `heareval.predictions.runner` in the environment of
  `asda_hear.evaluate.compat.hear_tools`, without which they do not run with current library versions;
- `--jobs 1` and `--jobs 2`: `asda-hear evaluate`.

In every round all three must give the same scores to the last digit. Prints the median seconds of each and its ratio to
`--jobs 1`, the speed-up of `--jobs 2`, and its upper bound: a task is not divided (each training in heareval starts
from the generator states that the previous one left), so at best the shorter task takes no extra time. It needs the
extra `hear` and heareval.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from asda_hear.demo import make_corpus
from asda_hear.evaluate.runner import SECONDS_FILE
from asda_hear.evaluate.scores import read_task_score
from asda_hear.evaluate.task_checks import find_tasks

BY_HAND = """
import sys
from asda_hear.evaluate.compat import hear_tools
with hear_tools():
    if sys.argv[1] == "embed":
        from heareval.embeddings.runner import runner
    else:
        from heareval.predictions.runner import runner
    runner.main(sys.argv[2:], standalone_mode=False)
"""
TASKS = ("demo_kind-v1.0.0-full", "demo_pitch-v1.0.0-full")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def make_tasks(folder: Path, epochs: int) -> Path:
    """Make two tasks whose trainings take `epochs` epochs."""
    found = make_corpus(folder)
    for task in find_tasks(found):
        if task.name not in TASKS:
            shutil.rmtree(task)
            continue
        metadata = json.loads((task / "task_metadata.json").read_text(encoding="utf-8"))
        grid = {"max_epochs": [epochs], "check_val_every_n_epoch": [10], "patience": [epochs]}
        metadata["evaluation_params"]["task_specific_param_grid"] |= grid
        (task / "task_metadata.json").write_text(json.dumps(metadata), encoding="utf-8")
    return found


def run(*command: str) -> None:
    subprocess.run([sys.executable, *command], env=ENVIRONMENT, check=True, capture_output=True)


def by_hand(tasks: Path, out: Path, points: int) -> Path:
    run("-c", BY_HAND, "embed", "asda_hear", "--tasks-dir", str(tasks), "--embeddings-dir", str(out))
    folders = [str(out / "asda_hear" / task) for task in TASKS]
    run("-c", BY_HAND, "predict", *folders, "--grid-points", str(points), "--grid", "faster")
    return out / "asda_hear"


def ours(tasks: Path, out: Path, points: int, jobs: int) -> Path:
    command = ["-m", "asda_hear.cli", "evaluate", "--tasks", str(tasks), "--out", str(out), "--grid", "faster"]
    run(*command, "--grid-points", str(points), "--jobs", str(jobs))
    return out / "asda_hear"


def scores(folder: Path) -> list[tuple[object, ...]]:
    found = [read_task_score(folder / task) for task in TASKS]
    return [(score.task, score.metric, score.score, score.folds, sorted(score.metrics.items())) for score in found]


def shorter_task(folder: Path) -> float:
    """Seconds of the shorter task, embedding and trainings together."""
    return min(sum(json.loads((folder / task / SECONDS_FILE).read_text(encoding="utf-8")).values()) for task in TASKS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=120)
    parser.add_argument("--grid-points", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=2)
    parsed = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} processors, 1 thread in each process", flush=True)
    with tempfile.TemporaryDirectory() as name:
        work, points = Path(name), parsed.grid_points
        tasks = make_tasks(work, parsed.epochs)
        sides = {
            "by hand": lambda out: by_hand(tasks, out, points),
            "--jobs 1": lambda out: ours(tasks, out, points, 1),
            "--jobs 2": lambda out: ours(tasks, out, points, 2),
        }
        took: dict[str, list[float]] = {side: [] for side in sides}
        hidden = []
        for number in range(parsed.rounds):
            found = []
            for side, evaluate in sides.items():
                start = time.perf_counter()
                made = evaluate(work / f"{side}-{number}")
                took[side].append(time.perf_counter() - start)
                found.append(scores(made))
                if side == "--jobs 1":
                    hidden.append(shorter_task(made))
            assert found[0] == found[1] == found[2], found
        print(f"the same scores, to the last digit: {', '.join(f'{row[0]} {row[2]}' for row in found[0])}")
        for side, seconds in took.items():
            ratio = statistics.median(own / one for own, one in zip(seconds, took["--jobs 1"], strict=True))
            print(f"{side:>8}: {statistics.median(seconds):6.1f} s, {ratio:.3f} of --jobs 1")
        one, two = took["--jobs 1"], took["--jobs 2"]
        gain = statistics.median(alone / both for alone, both in zip(one, two, strict=True))
        bound = statistics.median(alone / (alone - short) for alone, short in zip(one, hidden, strict=True))
        print(f"--jobs 2 is {gain:.2f} times as fast as --jobs 1; with these two tasks at most {bound:.2f}")


if __name__ == "__main__":
    main()
