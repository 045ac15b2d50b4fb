"""The house rules, held by the source itself: import order, sizes, no side effects at import."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "asda_core": ROOT / "asda_core",
    "asda_hear": ROOT / "asda_hear",
    "asda_plugins": ROOT / "plugins" / "asda_plugins",
}
FILES = sorted(file for folder in PACKAGES.values() for file in folder.rglob("*.py"))
SCRIPTS = sorted(file for folder in ("recipes", "benchmarks") for file in (ROOT / folder).rglob("*.py"))


def in_order(*layers: str) -> tuple[str, ...]:
    """Modules of layers, lowest first; a layer is a file of the package's root, or "folder: files"."""
    modules: list[str] = []
    for layer in layers:
        folder, colon, files = layer.partition(": ")
        modules += [f"{folder}.{file}" for file in files.split()] if colon else [folder]
    assert len({layer.partition(": ")[0] for layer in layers}) == len(layers), "each folder is one layer"
    return tuple(modules)


CORE_ORDER = in_order(
    "errors",
    "system: command_line markdown locks thread_map workers paths files resources memory",
    "settings: compute released strict_yaml checks kinds",
    "devices", "config", "finetune_config", "config_io", "layout", "statistics",
    "audio_files: pack_options tar_headers tars manifests sources digests",
    "audio: feature_padding checks flac mp3 opening reading writing long_files",
    "labelled: examples source random_splits label_files rows splits tables folders shards datasets audioset "
    "reading",
    "model: norms recomputation block attention processor subtraction patches lines encoder flops heads",
    "contracts", "hookspecs", "spec_checks", "catalog", "adapting", "assemble",
    "weights: tensor_files provenance",
    "checkpoint", "log_mel",
    "data: clip_counts shard_streams shard_writer packing statistics clip_reader clip_batches stream_batches "
    "prefetching",
    "pretrain: masking teacher decoder latent_regression schedule reporter resuming processes step step_wrapping "
    "initial_weights loop",
    "official: matching eat pickles stored_config ssast_names ssast reading",
    "inference: framing clip_encoder attention_maps writing indexing reading_ahead embedding jobs classifying",
    "finetune: losses rates augment bootstrap scoring pictures evaluation finetune_model optimizing sampling "
    "batches frozen predicting leakage jobs best_weights loop running recipes sweep table continual "
    "continual_table",
    "contract: modules mixers front_ends training matrix",
    "testing",
    "commands: config_arguments data finetune inference new_plugin plugins pretrain test",
    "arguments", "cli",
)  # fmt: skip
"""Layers of asda_core, lowest first: a file imports only from files above it, and no two folders import each other."""

HEAR_ORDER = in_order(
    "names", "work_queue", "model_paths", "model_loading", "pooling", "model", "api",
    "evaluate: scores task_checks identity process_state compat tasks task_audio labels clip_predictions leaderboard "
    "standing runner pairs scoring commands task_commands validating",
    "looking: clip patch_positions measures noise noise_attention view drawing page commands",
    "ablation: size environment noise_metric settings axes plan cells rows run jobs estimate",
    "reporting: comparing summary notes summarising tables latex svg line_styles charts tidy conclusion page report",
    "ablate", "demo", "arguments", "cli",
)  # fmt: skip

FOR_PLUGINS = {
    "contracts", "hookspecs", "layout", "errors", "devices", "adapting", "pretrain.masking", "model.patches",
    "model.attention", "model.norms", "model.recomputation", "model.block", "model.lines", "model.encoder",
    "model.subtraction",
}  # fmt: skip
"""What a plugin may import of asda_core."""

MAX_FILE_LINES, MAX_FUNCTION_LINES = 300, 50


def module_name(file: Path) -> tuple[str, str]:
    """(package, module within it)."""
    for package, folder in PACKAGES.items():
        if file.is_relative_to(folder):
            return package, ".".join(file.relative_to(folder).with_suffix("").parts)
    raise AssertionError(file)


def imports(file: Path) -> list[tuple[str, str]]:
    """(package, module) of everything of ours that a file imports."""
    found = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            names = [node.module or ""]
            if names[0] in PACKAGES:  # "from asda_core import files", but not __version__
                names = [f"{names[0]}.{alias.name}" for alias in node.names if not alias.name.startswith("_")]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            names = [str(argument.value) for argument in node.args if isinstance(argument, ast.Constant)]
        found += [tuple(name.split(".", 1)) for name in names if name.split(".")[0] in PACKAGES and "." in name]
    return found  # type: ignore[return-value]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_flow_one_way(file: Path) -> None:
    package, module = module_name(file)
    if module.endswith("__init__") and package != "asda_plugins":
        return
    own = module.rpartition(".")[0]  # a plugin may be a package, whose files belong together
    for other, name in imports(file):
        if package == "asda_plugins" and other == package and own:
            assert name.startswith(f"{own}."), f"{file} imports {other}.{name}"
        elif package == "asda_plugins":
            assert (other, name in FOR_PLUGINS) == ("asda_core", True), f"{file} imports {other}.{name}"
        elif other == package:
            order = CORE_ORDER if package == "asda_core" else HEAR_ORDER
            assert order.index(name) < order.index(module), f"{file} imports {name}, which comes later"
        else:
            assert (package, other) == ("asda_hear", "asda_core"), f"{file} imports {other}"


def test_the_orders_name_every_file() -> None:
    for package, order in (("asda_core", CORE_ORDER), ("asda_hear", HEAR_ORDER)):
        named = {module_name(file)[1] for file in FILES if module_name(file)[0] == package}
        assert {name for name in named if not name.endswith("__init__")} == set(order)


@pytest.mark.parametrize("file", [*FILES, *SCRIPTS], ids=lambda file: str(file.relative_to(ROOT)))
def test_sizes(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert text.count("\n") <= MAX_FILE_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= MAX_FUNCTION_LINES, f"{file}: {node.name} has {length} lines"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_imports_for_types_alone_and_no_catch_alls(file: Path) -> None:
    assert "TYPE_CHECKING" not in file.read_text(encoding="utf-8")
    assert file.stem not in {"utils", "helpers", "misc", "base", "common"}


def test_a_file_of_plugins_is_named_after_its_spec() -> None:
    files = [file for file in PACKAGES["asda_plugins"].glob("*_*") if not file.name.startswith("_")]
    assert len(files) > 15
    for file in files:
        family = next(each for each in ("mixer", "front_end", "objective", "adapter") if file.stem.startswith(each))
        text = (file / "__init__.py" if file.is_dir() else file).read_text()
        assert f'name="{file.stem.removeprefix(f"{family}_")}"' in text, file


def test_importing_changes_nothing() -> None:
    """No threads, files, seeds or registrations: the global generators and torch's settings stay as they were."""
    code = """
import random, sys, threading, warnings
warnings.simplefilter("ignore")
import numpy, torch
state = (random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
settings = (torch.get_default_dtype(), torch.get_float32_matmul_precision(), torch.get_num_threads())
import asda_hear, asda_hear.cli, asda_core.testing, asda_plugins.mixer_differential
assert state == (random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
assert settings == (torch.get_default_dtype(), torch.get_float32_matmul_precision(), torch.get_num_threads())
assert threading.active_count() == 1
assert not {"heareval", "hearvalidator", "pytorch_lightning"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
