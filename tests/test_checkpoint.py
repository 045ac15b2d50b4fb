"""Checkpoints: strict both ways, and nothing in a file is ever run."""

import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from asda_core.assemble import Parts, build_parts
from asda_core.catalog import Catalog, load_catalog
from asda_core.checkpoint import (
    checkpoint_metadata,
    load_encoder,
    model_tensors,
    read_checkpoint,
    write_model,
    write_step,
)
from asda_core.config import RunConfig
from asda_core.errors import CheckpointError, ConfigError
from asda_core.official.reading import read_model
from asda_core.system.paths import find_model_file, labelled_path, model_name, newest_step
from asda_core.weights.tensor_files import read_tensors


@pytest.fixture
def parts(catalog: Catalog, tiny: RunConfig) -> Parts:
    return build_parts(catalog, tiny)


@pytest.fixture
def file(catalog: Catalog, tiny: RunConfig, parts: Parts, tmp_path: Path) -> Path:
    write_model(tmp_path / "model.safetensors", model_tensors(parts, False), checkpoint_metadata(tiny, catalog, 3))
    return tmp_path / "model.safetensors"


def change(file: Path, tensors: dict[str, torch.Tensor], **metadata: str) -> Path:
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        kept = dict(opened.metadata())
    changed = file.with_name("changed.safetensors")
    save_file(tensors, changed, {**kept, **metadata})
    return changed


def test_round_trip(file: Path, parts: Parts, catalog: Catalog, tiny: RunConfig) -> None:
    checkpoint = read_checkpoint(file)
    assert checkpoint.config == tiny
    assert checkpoint.step == 3
    _, encoder = load_encoder(checkpoint, catalog)
    for one, other in zip(encoder.parameters(), parts.encoder.parameters(), strict=True):
        assert torch.equal(one, other)
    assert read_checkpoint(file.parent).file == file


def test_a_full_disk_is_one_line_with_the_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As safetensors words it."""
    before = file.read_bytes()

    def full(*arguments: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("asda_core.weights.tensor_files.save_file", full)
    with pytest.raises(OSError, match=r"^\[Errno 28\] No space left on device: '.*model\.safetensors'$") as failed:
        write_model(file, {}, {})
    assert failed.value.filename == str(file)
    assert file.read_bytes() == before


def test_the_same_content_is_the_same_bytes(file: Path, catalog: Catalog, tiny: RunConfig, parts: Parts) -> None:
    told = {**checkpoint_metadata(tiny, catalog, 3, data_digest='\x01 \\" é 音'), "z": "", "a": "\n"}
    tensors, again = model_tensors(parts, False), file.with_name("again.safetensors")
    for each in (file, again, again):  # the library's order of eight entries, drawn anew each time
        write_model(each, tensors, told)
        assert each.read_bytes() == file.read_bytes()
    read, metadata = read_tensors(again)
    assert metadata == told
    assert all(torch.equal(read[name], value) for name, value in tensors.items())


def test_whole_numbers_are_no_weights(file: Path, catalog: Catalog) -> None:
    tensors = load_file(file)
    tensors["encoder.input_norm.weight"] = tensors["encoder.input_norm.weight"].long()
    with pytest.raises(CheckpointError, match=r"input_norm\.weight has dtype torch\.int64, not torch\.float32"):
        load_encoder(read_checkpoint(change(file, tensors)), catalog)
    tensors["encoder.input_norm.weight"] = tensors["encoder.input_norm.weight"].half()  # as a smaller file holds them
    load_encoder(read_checkpoint(change(file, tensors)), catalog)


class Trap:
    """Pickled, it makes a file when opened."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.target), "w")


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_is_not_opened(tmp_path: Path, protocol: int) -> None:
    evil = tmp_path / "evil.safetensors"
    evil.write_bytes(pickle.dumps(Trap(tmp_path / "sprung"), protocol))
    with pytest.raises(CheckpointError, match="it is a pickle, which could run code when opened"):
        read_checkpoint(evil)
    torch.save(Trap(tmp_path / "sprung"), evil)
    with pytest.raises(CheckpointError, match="it is a zip archive, as torch.save writes"):
        read_checkpoint(evil)
    assert not (tmp_path / "sprung").exists()


def test_truncated(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="truncated"):
        read_checkpoint(file)
    file.write_bytes(b"")
    with pytest.raises(CheckpointError, match="it is empty"):
        read_checkpoint(file)


def test_a_strangers_safetensors(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="not an asda checkpoint"):
        read_checkpoint(tmp_path / "other.safetensors")


@pytest.mark.parametrize("where", ["none.safetensors", "."])
def test_nothing_there(tmp_path: Path, where: str) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        read_checkpoint(tmp_path / where)


def test_renamed_missing_and_misshapen(file: Path, catalog: Catalog) -> None:
    tensors = load_file(file)
    renamed = {("encoder.typo" if name == "encoder.class_token" else name): value for name, value in tensors.items()}
    with pytest.raises(CheckpointError, match=r"missing class_token; unexpected typo"):
        load_encoder(read_checkpoint(change(file, renamed)), catalog)
    tensors["encoder.input_norm.weight"] = torch.zeros(5)
    with pytest.raises(CheckpointError, match=r"input_norm.weight has shape \(5,\), not \(32,\)"):
        load_encoder(read_checkpoint(change(file, tensors)), catalog)


def test_missing_plugin_names_the_package(file: Path) -> None:
    origin = {"mixer": {"name": "differential", "distribution": "their-package", "version": "2.1"}}
    changed = change(file, load_file(file), plugins=json.dumps(origin))
    with pytest.raises(CheckpointError, match="differential of their-package 2.1"):
        load_encoder(read_checkpoint(changed), load_catalog(installed=False))


@pytest.mark.parametrize("metadata", [{"config": '{"newkey": 1}'}, {"config": "no json"}, {"step": "many"}])
def test_strange_metadata_names_the_file(file: Path, metadata: dict[str, str]) -> None:
    with pytest.raises(CheckpointError, match="changed.safetensors: cannot read .* in its metadata"):
        read_checkpoint(change(file, load_file(file), **metadata))


def test_steps_are_whole_or_not_there(tmp_path: Path) -> None:
    files = {"model.safetensors": ({"a": torch.zeros(2)}, {"step": "1"})}
    for step in (1, 2, 3):
        write_step(tmp_path, step, files, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000003"]
    usual = tmp_path.with_name("usual")
    usual.touch()
    for file in tmp_path.rglob("*.safetensors"):
        assert file.stat().st_mode == usual.stat().st_mode  # not private, as safetensors makes it
    (tmp_path / ".step-00000009.part").mkdir()  # as a kill in the middle of a save leaves it
    assert newest_step(tmp_path) == tmp_path / "step-00000003"


def test_metadata_holds_the_plugins(tiny: RunConfig, catalog: Catalog) -> None:
    metadata = checkpoint_metadata(replace(tiny, seed=4), catalog, 1)
    assert json.loads(metadata["config"])["seed"] == 4
    assert set(json.loads(metadata["plugins"])) == {"front end", "mixer", "objective"}


def test_any_length_of_the_header(catalog: Catalog, tiny: RunConfig, parts: Parts, tmp_path: Path) -> None:
    """The first byte of a safetensors file is that of a length; at one in 32 lengths it is that of a pickle too."""
    lengths = set()
    for padding in range(0, 520, 8):
        file = tmp_path / f"{padding}.safetensors"
        metadata = {**checkpoint_metadata(tiny, catalog, 3), "padding": "x" * padding}
        write_model(file, model_tensors(parts, False), metadata)
        lengths.add(file.read_bytes()[0])
        assert read_model(file).step == 3
    assert 0x80 in lengths


def test_a_folder_of_runs(tmp_path: Path, catalog: Catalog, tiny: RunConfig, parts: Parts) -> None:
    """As a sweep leaves: of one run it means that, of several they are named."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_model(
            tmp_path / name / "model.safetensors", model_tensors(parts, False), checkpoint_metadata(tiny, catalog, 0)
        )
        if name == "a":
            assert find_model_file(tmp_path) == tmp_path / "a" / "model.safetensors"
    with pytest.raises(CheckpointError, match=r"holds 2 runs; give one of them: .*/a, .*/b\.$"):
        find_model_file(tmp_path)


def test_the_model_of_the_package_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_model_file(Path("asda_small")).name == "asda_small.safetensors"
    (tmp_path / "asda_small").mkdir()
    with pytest.raises(CheckpointError, match="no checkpoint at asda_small"):
        find_model_file(Path("asda_small"))


def test_labels_of_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a=b").mkdir()
    assert labelled_path("--model", "mine=runs/x=y") == ("mine", "runs/x=y")
    assert labelled_path("--model", "a=b") == ("", "a=b")  # a folder that is there
    assert labelled_path("--model", "runs/x") == ("", "runs/x")
    for text, message in (("mine=", "no path after 'mine'"), ("=runs/x", "cannot be a label")):
        with pytest.raises(ConfigError, match=f"--model '{text}'.*{message}"):
            labelled_path("--model", text)


def test_what_a_model_is_called(tmp_path: Path) -> None:
    """The same in tables, folders and figures; a learning rate in the name of a folder is no suffix of a file."""
    (tmp_path / "lr0.001").mkdir()
    (tmp_path / "model").mkdir()
    (tmp_path / "eat.v2").write_bytes(b"")
    expected = {
        "lr0.001": "lr0.001",
        "lr0.001/model.safetensors": "lr0.001",
        "lr0.001/step-00000100": "lr0.001-step-00000100",
        "lr0.01-{seed}": "lr0.01-{seed}",  # not there
        "EAT.pt": "EAT",
        "run/model.pt": "run",
        "eat.v2": "eat",
        "model": "model",
        "hub/pytorch_model.bin": "hub",
        "plans/model.yaml": "model",
        "latest": "latest",  # a link
    }
    (tmp_path / "latest").symlink_to("lr0.001")
    assert {path: model_name(tmp_path / path) for path in expected} == expected
    assert model_name("asda_base") == "asda_base"
