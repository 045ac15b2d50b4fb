"""The command `asda`: pretrain, data, finetune, test, embed, classify, convert, plugins, new-plugin, show."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from asda_core import __version__
from asda_core.assemble import adapt, build, build_encoder, build_front_end, in_full, plugin_origins
from asda_core.catalog import installed_catalog
from asda_core.config import RunConfig
from asda_core.config_io import (
    CONFIG_SUFFIXES,
    find_config,
    load_run_config,
    parse,
    parsed_changes,
    signature,
    to_plain,
    to_yaml,
    with_change,
)
from asda_core.contracts import ObjectiveContext
from asda_core.counting import encoder_flops
from asda_core.data.commands import add_data
from asda_core.data.sources import find_training, is_stream, list_identity
from asda_core.errors import AsdaError
from asda_core.files import file_digest
from asda_core.finetune.commands import add_finetune
from asda_core.finetune.measuring import add_test
from asda_core.finetune.recipes import changed_recipe, is_recipe, load_recipe
from asda_core.hookspecs import FAMILIES
from asda_core.inference.commands import add_classify, add_convert, add_embed
from asda_core.inference.framing import num_frames
from asda_core.matrix import check_catalog
from asda_core.new_plugin import add_new_plugin
from asda_core.official.reading import read_model
from asda_core.pretrain.loop import pretrain
from asda_core.pretrain.processes import launched
from asda_core.pretrain.resuming import TrainingStopped
from asda_core.starting import holds_objective

SET_HELP = "change keys, as in --set steps=400 encoder.mixer=standard"
GIGA = 1e9
FEW = 5
"""Names of classes that a line tells."""
EXIT_ERROR = 1
EXIT_STOPPED = 130
"""What a shell reports for a program that Ctrl-C ended."""


def run_command(arguments: Sequence[str] | None, make_parser: Callable[[], argparse.ArgumentParser]) -> int:
    """Parse, run, and turn a user's mistake into one line on stderr."""
    parsed = make_parser().parse_args(arguments)
    parsed.given = list(sys.argv[1:] if arguments is None else arguments)  # what other processes of it are given too
    try:
        parsed.run(parsed)
    except TrainingStopped as stopped:
        print(stopped, file=sys.stderr)
        return EXIT_STOPPED
    except BrokenPipeError:  # the reader of our output, such as `head`, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_ERROR
    except (AsdaError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        print("stopped; the same command goes on with what was finished.", file=sys.stderr)
        return EXIT_STOPPED
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the console script."""
    return run_command(arguments, make_parser)


def make_parser() -> argparse.ArgumentParser:
    """The command line of `asda`."""
    parser = argparse.ArgumentParser(
        prog="asda",
        description="Pre-train and fine-tune audio models, embed and classify sounds, list plugins.",
    )
    parser.add_argument("--version", action="version", version=f"asda {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    train = commands.add_parser("pretrain", help="train a model on unlabelled audio, or go on with it")
    train.add_argument("config", type=Path, help="YAML, the name of one that comes with the package, or a checkpoint")
    train.add_argument(
        "--data", required=True, nargs="+", help="folders, manifests, audio files or shards; stream:, pipe:"
    )
    train.add_argument("--out", type=Path, help="run folder (default: runs/CONFIG-SIGNATURE)")
    train.add_argument("--init", type=Path, help="checkpoint to begin with, ours or a released one (default: random)")
    train.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    train.add_argument(
        "--set", dest="changes", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help=SET_HELP
    )
    train.set_defaults(run=run_pretrain)
    add_data(commands.add_parser("data", help="pack audio into shards; mean, spread and faults of one's data"))
    add_finetune(commands.add_parser("finetune", help="checkpoints and labelled audio to classifiers, and a table"))
    add_test(commands.add_parser("test", help="accuracy or mAP of a fine-tuned checkpoint on labelled audio"))
    add_embed(commands.add_parser("embed", help="audio files to files of embeddings, with any checkpoint"))
    add_classify(commands.add_parser("classify", help="labels of audio, with a fine-tuned checkpoint"))
    add_convert(commands.add_parser("convert", help="any checkpoint, as the released ones, to one of asda"))
    plugins = commands.add_parser("plugins", help="list what the installed plugins offer, and what is wrong with any")
    plugins.add_argument("--json", action="store_true", help="for programs")
    plugins.add_argument(
        "--check", action="store_true", help="run the contract suite on each, and on all that fit together; minutes"
    )
    plugins.set_defaults(run=run_plugins)
    add_new_plugin(commands.add_parser("new-plugin", help="write a small package with a plugin to begin with"))
    show = commands.add_parser("show", help="print a whole config with its size, or a whole recipe")
    show.add_argument("config", type=Path, help="YAML of a run or a recipe, a name, or a checkpoint")
    show.add_argument(
        "--set", dest="changes", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help=SET_HELP
    )
    show.set_defaults(run=run_show)
    return parser


def changed(config: RunConfig, changes: Sequence[str]) -> RunConfig:
    """The config with `key=value` changes; values are read as YAML.

    Raises:
        ConfigError: a change has no `=`, or the key or value is wrong.
    """
    plain = to_plain(config)
    for key, value in parsed_changes(changes).items():
        plain = with_change(plain, key, value)
    return parse(RunConfig, plain)


def run_pretrain(parsed: argparse.Namespace) -> None:
    """`asda pretrain`, also as one of the processes that torchrun starts."""
    processes = launched(os.environ)
    config = changed(_config_of(parsed.config), parsed.changes)
    catalog = installed_catalog()
    plugin_origins(catalog, config)  # a missing plugin shows before anything is made
    files = find_training(parsed.data)
    init = read_model(parsed.init) if parsed.init else None
    identity: dict[str, Any] = {"data": list_identity(files)}
    if init is not None:
        identity["init"] = file_digest(init.file)
        takes = "with its objective" if holds_objective(init) else "with a new objective"
        if processes.first:
            print(f"{init.report}\nbegins with the encoder of {init.file}, {takes}.".lstrip(), file=sys.stderr)
    if processes.first and config.optimizer.warmup_steps >= config.steps > 0:
        print(
            f"warning: optimizer.warmup_steps {config.optimizer.warmup_steps} is not less than steps {config.steps}: "
            "the rate will not reach its peak.",
            file=sys.stderr,
        )
    folder = parsed.out or Path("runs") / f"{parsed.config.stem}-{signature(config, **identity)}"
    if processes.first:
        kind = "streamed shards" if is_stream(parsed.data[0]) else "audio files"
        print(f"{len(files)} {kind} -> {folder}", file=sys.stderr)
    final = pretrain(config, files, folder, catalog, parsed.device, processes.first, init, processes)
    if processes.first:
        print(final)


def run_plugins(parsed: argparse.Namespace) -> None:
    """`asda plugins`."""
    catalog = installed_catalog()
    if parsed.check:
        tables, failures = check_catalog(catalog)
        print(tables)
        if failures:
            raise AsdaError("\n".join(["checks failed:", *failures]))
        return
    if parsed.json:
        offers = [
            {"family": o.family, "summary": o.spec.summary, "source": o.spec.source, **o.origin}
            for o in catalog.offers.values()
        ]
        print(json.dumps({"plugins": offers, "problems": [vars(p) for p in catalog.problems]}, indent=2))
        return
    for family in FAMILIES:
        print(f"{family}s:")
        for offer in catalog.family(family):
            print(f"  {offer.spec.name:<20} {f'{offer.distribution} {offer.version}':<24} {offer.spec.summary}")
            print(f"  {'':<20} {'':<24} {offer.spec.source}")
        if not catalog.family(family):
            print("  (none)")
    for problem in catalog.problems:
        print(f"problem: {problem.name} of {problem.distribution}: {problem.message}")


def _config_of(path: Path) -> RunConfig:
    """The config of a file or name, or that within a checkpoint, of which a line is told on stderr."""
    if find_config(path).suffix in CONFIG_SUFFIXES or not path.exists():
        return load_run_config(path)
    checkpoint = read_model(path)
    what = "pre-trained"
    if checkpoint.classifier:
        labels = ", ".join(checkpoint.classifier.labels[:FEW]) + (
            ", ..." if len(checkpoint.classifier.labels) > FEW else ""
        )
        what = f"a classifier of {checkpoint.classifier.num_classes} classes ({labels or 'without names'})"
    print(checkpoint.report or f"{checkpoint.file}: of asda, {what}, step {checkpoint.step}", file=sys.stderr)
    return checkpoint.config


def run_show(parsed: argparse.Namespace) -> None:
    """`asda show`."""
    if is_recipe(parsed.config):
        print(to_yaml(changed_recipe(load_recipe(parsed.config), parsed.changes)))
        return
    config = changed(_config_of(parsed.config), parsed.changes)
    catalog = installed_catalog()
    front_end = build_front_end(catalog, config.front_end, config.compat)
    with torch.device("meta"):  # shapes alone: no weights are drawn
        encoder = build_encoder(catalog, config.encoder, config.compat)
        adapt(catalog, config, encoder)
        objective = build(catalog, "objective", config.objective, ObjectiveContext(encoder), "objective", config.compat)
    print(to_yaml(config))
    full = in_full(catalog, config)
    chosen = {"front end": full.front_end, "mixer": full.encoder.mixer, "objective": full.objective}
    if full.adapter is not None:
        chosen["adapter"] = full.adapter
    for family, choice in chosen.items():
        print(f"# {family} {choice.name} in full: {json.dumps(choice.options)}")
    print(f"# signature  {signature(config)} (without data)")
    for name, module in (("encoder", encoder), ("objective", objective)):
        counts = [parameter.numel() for parameter in module.parameters() if parameter.requires_grad]
        print(f"# {name:<10} {sum(counts):>12,} parameters that train")
    samples = round(config.data.clip_seconds * front_end.sample_rate)
    frames = num_frames(samples, front_end)
    clip = f"clip of {config.data.clip_seconds:g} s ({frames:,} frames)"
    operations = encoder_flops(encoder, front_end.num_bins, frames) / GIGA
    print(f"# {'encoder':<10} {operations:>12,.2f} GFLOPs per {clip}")


if __name__ == "__main__":
    sys.exit(main())
