"""Benchmark of ASDA base on clips of 10 s: the fast path against attention by its formula, and against AST.

    OMP_NUM_THREADS=2 python benchmarks/encoder.py [--bfloat16] [--compile] [--ast]

Equality is checked first (float32 to 1e-5, bfloat16 to 3e-2 of the largest magnitude). `--ast` (pip install
transformers) starts from waveforms: AST with its own feature extractor and random weights against our front end and
encoder.
"""

import argparse
from functools import partial

import torch
from interleaved import Side, error, machine, medians, product_rate
from twins import set_by_formula

from asda_core.assemble import build_model
from asda_core.catalog import installed_catalog
from asda_core.config import RunConfig
from asda_core.model.flops import encoder_flops
from asda_core.model.processor import exact_matmul

SECONDS, RATE, FRAMES, BINS = 10, 16_000, 1024, 128
EXACT, ROUNDED = 1e-5, 3e-2


def beside_formula(batch: int, rounds: int, bfloat16: bool, compiled: bool) -> None:
    torch.manual_seed(0)
    _, encoder = build_model(installed_catalog(), RunConfig())
    encoder.eval()
    features = torch.randn(batch, BINS, FRAMES)
    encoders = {"fast": encoder} | ({"compiled": torch.compile(encoder)} if compiled else {})

    def run(name: str, half: bool) -> torch.Tensor:
        set_by_formula(encoder, name == "formula")
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=half):
            if name == "formula":
                return encoder(features).tokens
            with exact_matmul():
                return encoders[name](features).tokens

    names = ["formula", *encoders]
    sides: dict[str, Side] = {name: partial(run, name, False) for name in names}
    exact = run("formula", False)
    wrong = max(error(run(name, False), exact) for name in encoders)
    assert wrong < EXACT, f"not equal: {wrong:.1e}"
    if bfloat16:
        sides |= {f"{name}, bfloat16": partial(run, name, True) for name in names}
        assert max(error(run(name, True), exact) for name in encoders) < ROUNDED
    taken = medians(sides, rounds)
    flops = encoder_flops(encoder, BINS, FRAMES) * batch
    rates = {False: product_rate(torch.float32)} | ({True: product_rate(torch.bfloat16)} if bfloat16 else {})
    print(f"batch {batch}: error {wrong:.0e}")
    for name, seconds in taken.items():
        share = flops / seconds / rates["bfloat16" in name]
        print(
            f"  {name:<18} {seconds:>7.3f} s   {batch * SECONDS / seconds:>6.1f} s of audio per s   "
            f"{taken['formula'] / seconds:>5.2f} x   {share:>4.0%} of the rate of products"
        )


def beside_ast(rounds: int) -> None:
    from transformers import ASTConfig, ASTFeatureExtractor, ASTModel

    torch.manual_seed(0)
    front_end, encoder = build_model(installed_catalog(), RunConfig())
    encoder.eval()
    ast, extractor = ASTModel(ASTConfig()).eval(), ASTFeatureExtractor()
    audio = torch.randn(SECONDS * RATE) * 0.1

    def theirs() -> None:
        with torch.inference_mode():
            ast(**extractor(audio.numpy(), sampling_rate=RATE, return_tensors="pt"))

    def ours() -> None:
        with torch.inference_mode(), exact_matmul():
            encoder(front_end(audio[None]))

    taken = medians({"AST": theirs, "ASDA": ours}, rounds)
    rates = ", ".join(f"{name} {SECONDS / seconds:.1f}" for name, seconds in taken.items())
    print(f"from waveforms, s of audio per s: {rates}; ratio {taken['AST'] / taken['ASDA']:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--bfloat16", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--ast", action="store_true")
    parsed = parser.parse_args()
    print(machine())
    for batch in parsed.batches:
        beside_formula(batch, parsed.rounds, parsed.bfloat16, parsed.compile)
    if parsed.ast:
        beside_ast(parsed.rounds)


if __name__ == "__main__":
    main()
