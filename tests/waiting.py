"""Waiting for what other processes do, in tests."""

import time
from collections.abc import Callable

import pytest

WAIT_SECONDS = 120
LOOK_SECONDS = 0.005


def wait_until(happened: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline:
        if happened():
            return
        time.sleep(LOOK_SECONDS)
    pytest.fail(f"{what} did not happen in {WAIT_SECONDS} s")
