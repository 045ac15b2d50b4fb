"""`asda-hear validate`: the tool's own entry point, with a stand-in for TensorFlow."""

import argparse

from asda_hear.evaluate.compat import validate


def add_validate(parser: argparse.ArgumentParser) -> None:
    """Arguments of `asda-hear validate`."""
    parser.add_argument("rest", nargs=argparse.REMAINDER, help="arguments of hear-validator (default: asda_hear)")
    parser.set_defaults(run=lambda parsed: validate(parsed.rest or ["asda_hear"]))
