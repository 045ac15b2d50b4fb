"""Hardware and software with which a result was made."""

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch

import asda_core

PROCESSOR_FILE = Path("/proc/cpuinfo")
"""Where Linux names the processor."""


def environment() -> dict[str, str | int]:
    """Return versions, processor, threads, and the commit of the code if it is a git working copy."""
    return {
        "asda": version("asda-hear"),
        "commit": code_commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "processors": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }


def processor() -> str:
    """Return the name of the processor, if the system provides it."""
    try:
        lines = PROCESSOR_FILE.read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def code_commit() -> str:
    """Return the commit of the code, with "+" if files differ from it; "" outside a working copy."""
    here = Path(asda_core.__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(here), *arguments], capture_output=True, text=True, check=True).stdout

    try:
        tracked = git("ls-files", "--error-unmatch", "__init__.py")  # the package, not a project that has it in a venv
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--short=12", "HEAD").strip() + ("+" if changed.strip() else "") if tracked else ""
    except (OSError, subprocess.CalledProcessError):
        return ""
