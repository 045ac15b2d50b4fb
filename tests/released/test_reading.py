"""Released checkpoints are read without fairseq, strictly, and nothing in them is ever run."""

import argparse
import enum
import pickle
import shutil
import sys
import types
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from asda_core.catalog import Catalog
from asda_core.checkpoint import load_classifier, load_encoder
from asda_core.cli import main
from asda_core.config_io import load_run_config, parse
from asda_core.errors import CheckpointError
from asda_core.model.encoder import Encoder
from asda_core.official.eat import Architecture, classifier_names, decoder_names, encoder_names
from asda_core.official.pickles import read_pickled
from asda_core.official.reading import read_model
from asda_core.pretrain.latent_regression import LatentRegressionConfig
from tests.released import golden
from tests.released.writing import NUM_CLASSES, write_fairseq, write_hugging_face

GOLDEN_FILES = ["model_asda", "model_eat", "finetune_asda", "finetune_eat"]
Capture = pytest.CaptureFixture[str]


def clips(num_frames: int = 96) -> Tensor:
    return torch.randn(2, 128, num_frames, generator=torch.Generator().manual_seed(0))


def features_of(path: Path, catalog: Catalog, weights: str = "student") -> Tensor:
    _, encoder = load_encoder(read_model(path, weights), catalog)
    return features(encoder)


def features(encoder: Encoder) -> Tensor:
    with torch.no_grad():
        encoded = encoder.eval()(clips())
    return torch.cat([encoded.summary[:, None], encoded.tokens], 1)


@pytest.mark.parametrize("name", GOLDEN_FILES)
def test_convert_keeps_the_features(name: str, catalog: Catalog, tmp_path: Path, capsys: Capture) -> None:
    before = features_of(golden.GOLDEN / f"{name}.pt", catalog)
    out = tmp_path / "ours.safetensors"
    assert main(["convert", str(golden.GOLDEN / f"{name}.pt"), str(out)]) == 0
    printed = capsys.readouterr()
    assert printed.out.strip() == str(out)
    assert "tensors matched" in printed.err
    assert torch.equal(features_of(out, catalog), before)
    kept = read_model(out)
    assert kept.config == read_model(golden.GOLDEN / f"{name}.pt").config
    if name.startswith("finetune"):
        assert kept.classifier == golden.checkpoint(name).classifier
        assert kept.classifier is not None
        with torch.no_grad():
            one, other = (load_classifier(read).logits(before[:, 0]) for read in (kept, golden.checkpoint(name)))
        assert torch.equal(one, other)
    else:
        assert torch.equal(
            features_of(out, catalog, "teacher"), features_of(golden.GOLDEN / f"{name}.pt", catalog, "teacher")
        )


@pytest.mark.parametrize("mixer", ["differential", "standard"])
def test_other_sizes(mixer: str, catalog: Catalog, tmp_path: Path) -> None:
    written = write_fairseq(tmp_path / "a.pt", catalog, mixer)
    read = read_model(written.path)
    config = read.config
    assert (config.encoder.dim, config.encoder.depth, config.encoder.num_heads) == (40, 3, 5)
    assert config.encoder.mixer.name == mixer
    assert int(40 * config.encoder.mlp_ratio) == (140 if mixer == "differential" else 160)
    assert config.data.clip_seconds == pytest.approx(0.975)
    options: LatentRegressionConfig = parse(LatentRegressionConfig, config.objective.options)
    assert (options.clones, options.decoder.dim, options.decoder.kernel) == (3, 20, 5)
    assert (options.decoder.layers, options.decoder.groups) == (2, 5)
    assert torch.equal(features_of(written.path, catalog), features(written.parts.encoder))
    teacher = features(written.parts.objective.teacher.encoder)
    assert torch.equal(features_of(written.path, catalog, "teacher"), teacher)
    assert not torch.allclose(teacher, features(written.parts.encoder), atol=0.1)


def test_finetuned_of_another_size(catalog: Catalog, tmp_path: Path) -> None:
    labels = {f"/m/{number}": str(number) for number in range(NUM_CLASSES)}
    written = write_fairseq(tmp_path / "a.pt", catalog, classes=NUM_CLASSES, task_state={"labels": labels})
    read = read_model(written.path)
    assert read.classifier is not None
    assert (read.classifier.num_classes, read.classifier.labels[3]) == (NUM_CLASSES, "/m/3")
    assert written.classifier is not None
    pooled = features(written.parts.encoder)[:, 0]
    assert torch.equal(load_classifier(read).logits(pooled), written.classifier.logits(pooled))
    with pytest.raises(CheckpointError, match="holds no teacher"):
        read_model(written.path, "teacher")


@pytest.mark.parametrize("classes", [0, NUM_CLASSES])
def test_hugging_face(classes: int, catalog: Catalog, tmp_path: Path) -> None:
    written = write_hugging_face(tmp_path / "EAT", catalog, classes)
    for path in (written.path, written.path / "model.safetensors"):
        read = read_model(path)
        assert "EAT" in read.report
        assert "Hugging Face" in read.report
        assert torch.equal(features_of(path, catalog), features(written.parts.encoder))
    assert read.config.data.clip_seconds == pytest.approx(0.975)
    assert (read.classifier is None) == (classes == 0)
    if read.classifier:
        assert read.classifier.norm_eps == 1e-5
        pooled = features(written.parts.encoder)[:, 0]
        assert written.classifier is not None
        assert torch.equal(load_classifier(read).logits(pooled), written.classifier.logits(pooled))
    (written.path / "config.json").unlink()
    with pytest.raises(CheckpointError, match="states num_heads, and its width 40 is not a multiple of 64"):
        read_model(written.path)


def changed(name: str, tmp_path: Path, change: Any) -> Path:
    """A golden checkpoint after a change of its dictionary."""
    whole = torch.load(golden.GOLDEN / f"{name}.pt", weights_only=True)
    change(whole)
    torch.save(whole, tmp_path / "changed.pt")
    return tmp_path / "changed.pt"


def test_renamed_missing_unexpected_misshapen_are_all_named(tmp_path: Path) -> None:
    def change(whole: dict[str, Any]) -> None:
        state = whole["model"]
        state["blocks.1.norm1.wieght"] = state.pop("blocks.1.norm1.weight")
        state["extra.layer"] = torch.zeros(2)
        del state["modality_encoders.IMAGE.context_encoder.norm.bias"]
        state["blocks.0.norm2.bias"] = torch.zeros(3)

    with pytest.raises(CheckpointError) as raised:
        read_model(changed("model_asda", tmp_path, change))
    message = str(raised.value)
    dim = golden.architecture("model_asda").encoder.dim
    for text in (
        "missing blocks.1.norm1.weight",
        "missing modality_encoders.IMAGE.context_encoder.norm.bias",
        "unexpected blocks.1.norm1.wieght",
        "unexpected extra.layer",
        f"blocks.0.norm2.bias has shape (3,), not ({dim},)",
        "tensors matched",
    ):
        assert text in message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda whole: whole["model"]["_ema"].pop("blocks.0.norm1.bias"),
            "of the teacher matched; missing blocks.0.norm1.bias",
        ),
        (
            lambda whole: whole["model"]["blocks.0.norm1.bias"].fill_(torch.nan),
            "NaN or infinite values in encoder.blocks",
        ),
        (
            lambda whole: whole.update(model={}),
            "no tensor has a name like 'blocks.0.norm1",
        ),
        (lambda whole: whole.update(model=3), "not a checkpoint of EAT or ASDA"),
        (
            lambda whole: whole["model"]["modality_encoders.IMAGE.fixed_positional_encoder.positions"].mul_(2),
            "positions differ from the fixed sine-cosine table",
        ),
        (lambda whole: whole["cfg"]["model"].update(num_heads=10_007), "states num_heads 10007, which do"),
        (lambda whole: whole["model"].pop("blocks.0.mlp.fc1.weight"), "missing blocks.0.mlp.fc1.weight"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, change: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_model(changed("model_asda", tmp_path, change))


def test_old_tables_of_positions_and_odd_configs_are_fine(tmp_path: Path, catalog: Catalog) -> None:
    name = "modality_encoders.IMAGE.fixed_positional_encoder.positions"

    def shorten(whole: dict[str, Any]) -> None:
        whole["model"][name] = whole["model"][name][:, :32].clone()
        whole["cfg"]["model"]["clone_batch"] = -3
        whole["cfg"]["optimization"] = "strange"
        whole["cfg"]["model"]["loss_beta"] = 0.5

    assert "Further training" not in read_model(golden.GOLDEN / "model_asda.pt").report
    read = read_model(changed("model_asda", tmp_path, shorten))
    assert "Further training would differ, because it was trained with loss_beta 0.5." in read.report
    assert torch.equal(features_of(read.file, catalog), features_of(golden.GOLDEN / "model_asda.pt", catalog))


def test_truncated(tmp_path: Path) -> None:
    file = tmp_path / "cut.pt"
    file.write_bytes((golden.GOLDEN / "model_asda.pt").read_bytes()[:-5000])
    with pytest.raises(CheckpointError, match=r"cut.pt: it is truncated, damaged or not a file of torch.save \("):
        read_model(file)


class Trap:
    """Pickled, it makes a file when opened."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.target), "w")


class Call:
    """Pickled, it calls a function when opened."""

    def __init__(self, function: Callable[..., object]) -> None:
        self.function = function

    def __reduce__(self) -> tuple[object, tuple[()]]:
        return self.function, ()


@pytest.mark.parametrize("function", [setattr, shutil.rmtree])  # `builtins.set` is a known one
def test_a_name_that_only_begins_like_a_known_one_is_refused(tmp_path: Path, function: Callable[..., object]) -> None:
    torch.save({"model": {}, "extra": Call(function)}, tmp_path / "evil.pt")
    with pytest.raises(
        CheckpointError, match=r"rejected, because it would call \S+ when loaded. Nothing in it was run"
    ):
        read_pickled(tmp_path / "evil.pt")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("command", ["convert", "embed"])
def test_a_malicious_file_does_nothing(tmp_path: Path, zipped: bool, command: str, capsys: Capture) -> None:
    """A pickle that would make a file when opened, in the place of a checkpoint's extra state."""
    whole = torch.load(golden.GOLDEN / "model_asda.pt", weights_only=True)
    whole["extra_state"] = Trap(tmp_path / "sprung")
    evil = tmp_path / "evil.pt"
    torch.save(whole, evil, _use_new_zipfile_serialization=zipped)
    if zipped:
        with open(evil, "rb") as opened:
            assert opened.read(2) == b"PK"
    soundfile.write(tmp_path / "x.wav", np.zeros(8000), 16_000)
    arguments = {
        "convert": [str(evil), str(tmp_path / "out.safetensors")],
        "embed": [str(tmp_path / "x.wav"), "--checkpoint", str(evil)],
    }
    more = ["--out", str(tmp_path)] if command == "embed" else []
    assert main([command, *arguments[command], *more]) == 1
    message = capsys.readouterr().err
    assert "rejected, because it would call" in message
    assert "open" in message
    assert "Nothing in it was run." in message
    assert not (tmp_path / "sprung").exists()
    torch.load(evil, weights_only=False)["extra_state"].close()  # the trap is real: this is what must not happen
    assert (tmp_path / "sprung").exists()


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_bare_malicious_pickle_does_nothing(tmp_path: Path, protocol: int) -> None:
    evil = tmp_path / "evil.pt"
    evil.write_bytes(pickle.dumps(Trap(tmp_path / "sprung"), protocol))
    with pytest.raises(CheckpointError, match=r"evil.pt: (rejected|it is truncated)"):
        read_model(evil)
    assert not (tmp_path / "sprung").exists()


def stranger(module: str, name: str, bases: tuple[type, ...] = (), **members: Any) -> type:
    """A class as fairseq or omegaconf has it, in a module that is there while the file is written."""
    made = type(name, bases, {"__module__": module, **members})
    parts = module.split(".")
    for number in range(1, len(parts) + 1):
        sys.modules.setdefault(".".join(parts[:number]), types.ModuleType(".".join(parts[:number])))
    setattr(sys.modules[module], name, made)
    return made


def test_stand_ins_for_what_fairseq_pickles(tmp_path: Path, catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    """Namespaces, enums, omegaconf nodes, numpy scalars, a defaultdict: read, and their modules never imported."""
    before = set(sys.modules)
    modality = enum.Enum("Modality", {"IMAGE": 2}, module="fairseq_user_dir_123.data.modality")
    stranger("fairseq_user_dir_123.data.modality", "Unused")
    sys.modules["fairseq_user_dir_123.data.modality"].Modality = modality  # type: ignore[attr-defined]
    dict_config = stranger("omegaconf.dictconfig", "DictConfig")
    any_node = stranger("omegaconf.nodes", "AnyNode")
    dictionary = stranger("fairseq.data.dictionary", "Dictionary")
    node, whole = any_node(), dict_config()
    node.__dict__.update(_val=5, _parent=None)
    whole.__dict__.update(_content={"num_heads": node, "norm_eps": 1e-6}, _metadata=None)
    written = write_fairseq(
        tmp_path / "strange.pt",
        catalog,
        args=argparse.Namespace(num_heads=3),
        task_state={"dictionary": dictionary(), "kind": modality.IMAGE, "counts": defaultdict(int, a=1)},
        extra_state={"best": np.float64(0.5), "array": np.zeros(2)},
    )
    again = torch.load(written.path, weights_only=False)
    again["cfg"]["model"] = whole
    torch.save(again, written.path)
    for name in set(sys.modules) - before:
        if name.split(".")[0] in ("omegaconf", "fairseq", "fairseq_user_dir_123"):
            del sys.modules[name]
    read = read_model(written.path)
    assert read.config.encoder.num_heads == 5
    assert torch.equal(features_of(written.path, catalog), features(written.parts.encoder))
    assert not {"omegaconf", "fairseq", "fairseq_user_dir_123"} & {name.split(".")[0] for name in sys.modules}


def test_half_precision_and_a_bare_state(tmp_path: Path, catalog: Catalog) -> None:
    written = write_hugging_face(tmp_path / "EAT", catalog)
    state = {name: tensor.half() for name, tensor in load_file(written.path / "model.safetensors").items()}
    torch.save(state, written.path / "pytorch_model.bin")
    read = read_model(written.path / "pytorch_model.bin")
    assert all(tensor.dtype == torch.float32 for tensor in read.tensors.values())
    assert torch.allclose(features_of(read.file, catalog), features(written.parts.encoder), atol=0.05)


def test_a_strangers_safetensors(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="not a checkpoint of EAT or ASDA: .* found a"):
        read_model(tmp_path / "other.safetensors")


PUBLISHED = {"asda_base": (212, 198, 202), "eat_base": (164, 150, 154)}
"""Config -> tensors of the published pre-trained student, its teacher, and a fine-tuned model."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_names_and_shapes_of_the_published_models(name: str) -> None:
    """As the appendix of the specification lists them: 212 tensors and 198 of ASDA's teacher, 202 fine-tuned."""
    config = load_run_config(name)
    options: LatentRegressionConfig = parse(LatentRegressionConfig, config.objective.options)
    dim, hidden = config.encoder.dim, int(config.encoder.dim * config.encoder.mlp_ratio)
    convolutions = ((dim, dim // options.decoder.groups, 3, 3),) * options.decoder.layers
    found = Architecture("fairseq", "", config.encoder, hidden, True, convolutions, 0)
    tuned = Architecture("fairseq", "model.", config.encoder, hidden, True, (), 527)
    student, teacher, finetuned = PUBLISHED[name]
    assert len(encoder_names(found)) + 1 == teacher  # with the table of positions
    assert len(encoder_names(found)) + len(decoder_names(found)) + 1 == student
    assert len(encoder_names(tuned)) + len(classifier_names(tuned)) + 1 == finetuned
    shapes = dict((encoder_names(found) | decoder_names(found)).values())
    assert shapes["modality_encoders.IMAGE.decoder.blocks.5.0.weight"] == (768, 48, 3, 3)
    assert shapes["modality_encoders.IMAGE.extra_tokens"] == (1, 1, 768)
    assert shapes["blocks.11.mlp.fc1.weight"] == ((2688, 768) if name == "asda_base" else (3072, 768))
    assert dict(classifier_names(tuned).values())["head.weight"] == (527, 768)


@pytest.mark.parametrize("name", ["asda_base", "own.yaml"])
def test_a_config_is_no_checkpoint(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.yaml").write_text("steps: 1\n")
    with pytest.raises(CheckpointError, match=f"{name} is a config and has no weights; give a checkpoint"):
        read_model(name)
