"""`asda plugins` and `asda show`."""

import argparse
import json
import sys

from torch import nn

from asda_core.assemble import (
    adapt,
    build,
    build_encoder,
    build_front_end,
    chosen_plugins,
    weightless,
    with_all_options,
)
from asda_core.catalog import Catalog, installed_catalog
from asda_core.commands.config_arguments import apply_changes, config_from_path, is_config
from asda_core.config import RunConfig
from asda_core.config_io import signature, to_yaml
from asda_core.contract.matrix import check_catalog
from asda_core.contracts import ObjectiveContext
from asda_core.errors import AsdaError
from asda_core.finetune.recipes import changed_recipe, is_recipe, load_recipe
from asda_core.hookspecs import FAMILIES
from asda_core.inference.framing import num_frames
from asda_core.model.encoder import Encoder
from asda_core.model.flops import GIGA, encoder_flops
from asda_core.weights.provenance import outdated_installs


def run_plugins(parsed: argparse.Namespace) -> None:
    """`asda plugins`."""
    catalog = installed_catalog()
    if parsed.check:
        tables, failures = check_catalog(catalog)
        print(tables)
        failures += [f"{problem.name} of {problem.distribution}: {problem.message}" for problem in catalog.problems]
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
        for offer in catalog.family_offers(family):
            print(f"  {offer.spec.name:<20} {f'{offer.distribution} {offer.version}':<24} {offer.spec.summary}")
            print(f"  {'':<20} {'':<24} {offer.spec.source}")
        if not catalog.family_offers(family):
            print("  (none)")
    for problem in catalog.problems:
        print(f"problem: {problem.name} of {problem.distribution}: {problem.message}")
    for sentence in outdated_installs(sorted({offer.distribution for offer in catalog.offers.values()})):
        print(f"problem: {sentence}")


def run_show(parsed: argparse.Namespace) -> None:
    """`asda show`."""
    if is_recipe(parsed.config):
        print(to_yaml(changed_recipe(load_recipe(parsed.config), parsed.changes)))
        return
    config = apply_changes(config_from_path(parsed.config), parsed.changes)
    catalog = installed_catalog()
    front_end = build_front_end(catalog, config.front_end, config.compat)
    with_objective = ("objective", config.objective.name) in catalog.offers or is_config(parsed.config)
    if not with_objective:  # of a checkpoint, which does not need it
        message = f"no installed plugin offers its objective {config.objective.name!r}, needed only for training"
        print(f"warning: {message}.", file=sys.stderr)
    encoder, *others = weightless(lambda: _modules(catalog, config, with_objective))
    print(to_yaml(config))
    for family, _, choice in chosen_plugins(with_all_options(catalog, config)):
        print(f"# {family} {choice.name} in full: {json.dumps(choice.options)}")
    print(f"# signature  {signature(config)} (without data)")
    for name, module in zip(("encoder", "objective"), (encoder, *others), strict=False):
        counts = [parameter.numel() for parameter in module.parameters() if parameter.requires_grad]
        print(f"# {name:<10} {sum(counts):>12,} trainable parameters")
    samples = round(config.data.clip_seconds * front_end.sample_rate)
    frames = num_frames(samples, front_end)
    clip = f"clip of {config.data.clip_seconds:g} s ({frames:,} frames)"
    operations = encoder_flops(encoder, front_end.num_bins, frames) / GIGA
    gflops = f"{operations:,.2f}" if operations >= 1 else f"{operations:.2g}"
    print(f"# {'encoder':<10} {gflops:>12} GFLOPs per {clip}")


def _modules(catalog: Catalog, config: RunConfig, with_objective: bool) -> tuple[Encoder, *tuple[nn.Module, ...]]:
    """Build the encoder of a run with its adapter, and the objective."""
    encoder = build_encoder(catalog, config.encoder, config.compat)
    adapt(catalog, config, encoder)
    if not with_objective:
        return (encoder,)
    context = ObjectiveContext(encoder)
    return encoder, build(catalog, "objective", config.objective, context, "objective", config.compat)
