"""The command `asda-hear`: validate, tasks, evaluate, ablate, look, demo."""

import argparse
import sys
from collections.abc import Sequence

from asda_core.system.command_line import Command, Program

PROGRAM = Program(
    "asda-hear",
    "HEAR evaluation and ablation tables.",
    (
        Command(
            "validate",
            "asda_hear.arguments:add_validate",
            "hear-validator, without TensorFlow: asda_hear --model CHECKPOINT",
        ),
        Command(
            "tasks",
            "asda_hear.arguments:add_tasks",
            "build, check, resample HEAR-format tasks",
        ),
        Command(
            "evaluate",
            "asda_hear.evaluate.commands:add_evaluate",
            "score a model on HEAR tasks with heareval",
        ),
        Command(
            "ablate",
            "asda_hear.arguments:add_ablate",
            "pre-train and evaluate every cell of a plan; one table",
        ),
        Command(
            "look",
            "asda_hear.arguments:add_look",
            "show attention maps on a sound: map 1, map 2, lambda, their difference",
        ),
        Command(
            "demo",
            "asda_hear.arguments:add_demo",
            "the full pipeline on a synthetic corpus: minutes on a laptop, no download",
        ),
    ),
)


def make_parser() -> argparse.ArgumentParser:
    """The whole command line of `asda-hear`."""
    return PROGRAM.parser()


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the console script."""
    return PROGRAM.run(arguments)


if __name__ == "__main__":
    sys.exit(main())
