"""The command `asda`: pretrain, data, finetune, test, embed, classify, convert, plugins, new-plugin, show."""

import argparse
import os
import sys
from collections.abc import Sequence

from asda_core.system.command_line import Command, Program

PROGRAM = Program(
    "asda",
    "Pre-train and fine-tune audio models, embed and classify sounds, list plugins.",
    (
        Command(
            "pretrain",
            "asda_core.arguments:add_pretrain",
            "pre-train a model on unlabelled audio, or resume a run",
        ),
        Command(
            "data",
            "asda_core.arguments:add_data",
            "dataset statistics and broken files; pack audio into shards",
        ),
        Command(
            "finetune",
            "asda_core.arguments:add_finetune",
            "fine-tune or probe checkpoints on labelled audio; writes a table",
        ),
        Command(
            "test",
            "asda_core.arguments:add_test",
            "accuracy or mAP of a fine-tuned checkpoint on labelled audio",
        ),
        Command(
            "embed",
            "asda_core.arguments:add_embed",
            "write embeddings of audio files",
        ),
        Command(
            "classify",
            "asda_core.arguments:add_classify",
            "class probabilities of audio files, by a fine-tuned checkpoint",
        ),
        Command(
            "convert",
            "asda_core.arguments:add_convert",
            "convert a released checkpoint to one of asda",
        ),
        Command(
            "plugins",
            "asda_core.arguments:add_plugins",
            "list plugins and load errors, or check them",
        ),
        Command(
            "new-plugin",
            "asda_core.arguments:add_new_plugin",
            "write a small package with a working plugin to start from",
        ),
        Command(
            "show",
            "asda_core.arguments:add_show",
            "print a config with model size and GFLOPs, or a recipe",
        ),
    ),
)


def make_parser() -> argparse.ArgumentParser:
    """Return the argument parser of `asda` with all its commands."""
    return PROGRAM.parser()


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the console script.

    One of several processes exits at once when all is done, skipping the interpreter's shutdown: threads of gloo
    outlive their process group, and one that is alive at shutdown aborts the process, which its launcher takes for a
    failure.
    """
    status = PROGRAM.run(arguments)
    if arguments is None and os.environ.get("WORLD_SIZE", "1") not in ("", "1"):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


if __name__ == "__main__":
    sys.exit(main())
