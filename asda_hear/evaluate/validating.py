"""`asda-hear validate`: the tool's own entry point, with a stand-in for TensorFlow."""

import argparse

from asda_hear.evaluate.compat import validate


def run_validate(parsed: argparse.Namespace) -> None:
    """`asda-hear validate`."""
    validate(parsed.rest or ["asda_hear"])
