"""Files that are damaged, odd, or crafted: one clear line, nothing run, nothing wrong without a word."""

import json
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from asda_core.assemble import build_parts
from asda_core.catalog import Catalog
from asda_core.checkpoint import checkpoint_metadata, load_encoder, model_tensors, read_checkpoint, write_model
from asda_core.cli import main
from asda_core.config import RunConfig
from asda_core.errors import CheckpointError
from asda_core.official.pickles import called_globals, plain_data, read_pickled
from asda_core.official.reading import read_model
from asda_core.system.command_line import EXIT_ERROR
from tests.released import golden
from tests.released.test_reading import Trap, changed, features, features_of
from tests.released.writing import write_fairseq, write_hugging_face

DIM = golden.architecture("model_asda").encoder.dim
POSITIONS = "modality_encoders.IMAGE.fixed_positional_encoder.positions"


def put(*path: str, value: Any) -> Any:
    """A change that sets a value in the dictionary of a checkpoint."""

    def change(whole: dict[str, Any]) -> None:
        for key in path[:-1]:
            whole = whole[key]
        whole[path[-1]] = value

    return change


def put_in_model(name: str, value: Any) -> Any:
    return put("model", name, value=value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            put("cfg", "model", "norm_eps", value="abc"),
            "norm_eps in its config must be a number between 0 and 1, not 'abc'",
        ),
        (
            put("cfg", "model", "norm_eps", value=float("inf")),
            "norm_eps in its config must be a number between 0 and 1, not inf",
        ),
        (put("cfg", "model", "num_heads", value=True), "num_heads True"),
        (put_in_model("_ema", [1]), "expected a dict of tensors, got"),
        (put_in_model("note", "text"), "unexpected entries among its tensors: note"),
        (put_in_model("blocks.0.norm1.bias", torch.zeros(DIM, dtype=torch.int64)), "has type torch.int64"),
        (put_in_model("a\nb", torch.zeros(1)), r"unexpected 'a\\nb'"),
        (put_in_model(POSITIONS, torch.zeros(1, 8, DIM)), "differ from the fixed sine-cosine table"),
        (
            put_in_model(POSITIONS, torch.zeros(1, 7, DIM)),
            r"positions of shape \(1, 7, \d+\) are not a table of 8 bands",
        ),
        (put_in_model("blocks.0.norm1.bias", torch.zeros(DIM).to_sparse()), "its tensors or its config are invalid"),
        (put_in_model("blocks.0.norm1.bias", torch.zeros(DIM, device="meta")), "its tensors or its config are invalid"),
        (
            put_in_model("modality_encoders.IMAGE.local_encoder.proj.weight", torch.zeros(DIM, 1, 16, 256)),
            "of 0 bands",
        ),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_told_in_a_line(
    change: Any, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = changed("model_asda", tmp_path, change)
    with pytest.raises(CheckpointError, match=message) as raised:
        read_model(file)
    assert "\n" not in str(raised.value)
    assert main(["convert", str(file), str(tmp_path / "o.safetensors")]) == EXIT_ERROR
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "change",
    [
        put("cfg", "task", value="a text"),
        put("cfg", "task", value=["a", "list"]),
        put("cfg", "task", "target_length", value=10**400),
        put("cfg", "task", "target_length", value=-4),
        put("cfg", "model", "clone_batch", value=-3),
        put("cfg", "model", "average_top_k_layers", value=99),
        put("cfg", "optimization", "clip_norm", value=0.0),
        put("cfg", "common", "seed", value=-1),
        put("cfg", "model", "modalities", value=3),
        put("cfg", value=None),
        put("task_state", value={"labels": {"a": "²"}}),
        put("extra_state", value={(0, 1): "a", None: [{1, 2}]}),
        put("optimizer_history", value="none"),
    ],
)
def test_a_strange_config_does_not_keep_the_weights_from_use(change: Any, tmp_path: Path, catalog: Catalog) -> None:
    def also_heads(whole: dict[str, Any]) -> None:
        change(whole)
        if whole["cfg"] is None:
            whole["args"] = {"num_heads": golden.architecture("model_asda").encoder.num_heads}

    file = changed("model_asda", tmp_path, also_heads)
    assert torch.equal(features_of(file, catalog), features_of(golden.GOLDEN / "model_asda.pt", catalog))
    assert main(["show", str(file)]) == 0


def test_one_wrong_name_changes_nothing_of_the_rest(tmp_path: Path) -> None:
    """Whatever is renamed, the others tell the architecture, and every wrong name is told."""

    def change(whole: dict[str, Any]) -> None:
        state = whole["model"]
        for name in ("blocks.0.norm1.weight", "blocks.0.attn.qk.weight", "blocks.0.mlp.fc1.weight"):
            state[f"{name}s"] = state.pop(name)
        del state["modality_encoders.IMAGE.local_encoder.proj.weight"]
        del state["blocks.1.norm2.bias"]
        state["blocks.1.mlp.fc1.bias"] = torch.zeros(3)

    with pytest.raises(CheckpointError) as raised:
        read_model(changed("model_asda", tmp_path, change))
    message = str(raised.value)
    for name in ("blocks.0.norm1.weight", "blocks.0.attn.qk.weight", "blocks.0.mlp.fc1.weight"):
        assert f"missing {name}" in message
        assert f"unexpected {name}s" in message
    assert "missing modality_encoders.IMAGE.local_encoder.proj.weight" in message
    assert "missing blocks.1.norm2.bias" in message
    assert "blocks.1.mlp.fc1.bias has shape (3,)" in message
    assert "qkv" not in message
    total = len(golden.ours("asda")) + 1  # and the table of positions
    assert f"{total - 6} of {total} tensors matched" in message


def test_names_of_parallel_training(tmp_path: Path, catalog: Catalog) -> None:
    def change(whole: dict[str, Any]) -> None:
        state = whole["model"]
        del state["_ema"]
        whole["model"] = {f"module.{name}": value for name, value in state.items()}

    file = changed("model_asda", tmp_path, change)
    assert torch.equal(features_of(file, catalog), features_of(golden.GOLDEN / "model_asda.pt", catalog))


def test_bfloat16(tmp_path: Path, catalog: Catalog) -> None:
    def change(whole: dict[str, Any]) -> None:
        del whole["model"]["_ema"]
        whole["model"] = {name: value.bfloat16() for name, value in whole["model"].items()}

    read = read_model(changed("model_asda", tmp_path, change))
    assert all(tensor.dtype == torch.float32 for tensor in read.tensors.values())


def test_tensors_that_are_parameters(tmp_path: Path, catalog: Catalog) -> None:
    """Read without a warning, as the tensors that they hold."""
    written = write_fairseq(tmp_path / "a.pt", catalog)
    whole = torch.load(written.path, weights_only=True)
    ema = {name: torch.nn.Parameter(value) for name, value in whole["model"].pop("_ema").items()}
    state = {name: torch.nn.Parameter(value) for name, value in whole["model"].items()}
    torch.save({**whole, "model": {**state, "_ema": ema}}, tmp_path / "b.pt")
    plain, parameters = (read_model(tmp_path / name).tensors for name in ("a.pt", "b.pt"))
    assert parameters.keys() == plain.keys()
    for name, tensor in parameters.items():
        assert torch.equal(tensor, plain[name])
        assert not tensor.requires_grad


def test_pre_norm_and_no_bias(tmp_path: Path) -> None:
    def change(whole: dict[str, Any]) -> None:
        whole["cfg"]["model"]["layer_norm_first"] = True
        for state in (whole["model"], whole["model"]["_ema"]):
            for name in [name for name in state if name.endswith(("attn.qk.bias", "attn.v.bias"))]:
                del state[name]

    encoder = read_model(changed("model_asda", tmp_path, change)).config.encoder
    assert (encoder.norm, encoder.pre_norm_residual) == ("pre", False)
    assert encoder.mixer.options == {"qkv_bias": False}


@pytest.mark.parametrize("hidden", [10, 11, 13, 49, 163])
def test_any_width_of_the_mlp(hidden: int, tmp_path: Path) -> None:
    """No width is lost in rounding the ratio, as 49 of 48 x 1.0208333 would be."""
    dim = golden.architecture("model_eat").encoder.dim

    def change(whole: dict[str, Any]) -> None:
        for state in (whole["model"], whole["model"]["_ema"]):
            for block in {name.split(".")[1] for name in state if name.startswith("blocks.")}:
                state[f"blocks.{block}.mlp.fc1.weight"] = torch.zeros(hidden, dim)
                state[f"blocks.{block}.mlp.fc1.bias"] = torch.zeros(hidden)
                state[f"blocks.{block}.mlp.fc2.weight"] = torch.zeros(dim, hidden)

    ratio = read_model(changed("model_eat", tmp_path, change)).config.encoder.mlp_ratio
    assert int(dim * ratio) == hidden


def test_references_to_references_cost_nothing(tmp_path: Path, catalog: Catalog) -> None:
    bomb: list[Any] = ["ha"]
    for _ in range(40):
        bomb = [bomb] * 10

    def change(whole: dict[str, Any]) -> None:
        whole["extra_state"] = bomb
        whole["cfg"]["bomb"] = bomb

    assert read_model(changed("model_asda", tmp_path, change)).step == 10
    loop: dict[str, Any] = {}
    loop["self"] = loop
    assert plain_data(loop)["self"]["self"] is not loop


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_what_would_be_called_is_named(tmp_path: Path, protocol: int) -> None:
    evil = tmp_path / "evil.pt"
    evil.write_bytes(b"\x80" + bytes([protocol]) + pickle.dumps(Trap(tmp_path / "sprung"), protocol))
    assert called_globals(evil) in (["io.open"], ["_io.open"])
    with zipfile.ZipFile(tmp_path / "zip.pt", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Trap(tmp_path / "sprung"), protocol))
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
    for file in (evil, tmp_path / "zip.pt"):
        with pytest.raises(CheckpointError, match=r"would call \w*io.open when loaded|truncated, damaged"):
            read_pickled(file)
    assert not (tmp_path / "sprung").exists()


def test_hugging_face_of_odd_configs(tmp_path: Path, catalog: Catalog, capsys: pytest.CaptureFixture[str]) -> None:
    written = write_hugging_face(tmp_path / "EAT", catalog)
    config = written.path / "config.json"
    usual = json.loads(config.read_text())
    assert main(["show", str(written.path)]) == 0  # of a width that the published decoder does not fit
    assert "dim: 40" in capsys.readouterr().out
    config.write_text(json.dumps({**usual, "img_size": 1024}))
    assert torch.equal(features_of(written.path, catalog), features(written.parts.encoder))
    for other in ({"mel_bins": 0}, {"mel_bins": -128}, {"mel_bins": 8}, {"norm_eps": [1]}):
        config.write_text(json.dumps({**usual, **other}))
        with pytest.raises(CheckpointError):
            read_model(written.path)
    for text in ("[" * 100_000, "[1]", "{"):
        config.write_text(text)
        with pytest.raises(CheckpointError, match="config.json"):
            read_model(written.path)


def test_a_folder_with_a_bare_state(tmp_path: Path, catalog: Catalog) -> None:
    written = write_hugging_face(tmp_path / "EAT", catalog)
    torch.save(load_file(written.path / "model.safetensors"), written.path / "pytorch_model.bin")
    (written.path / "model.safetensors").unlink()
    assert torch.equal(features_of(written.path, catalog), features(written.parts.encoder))


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"plugins": "[]"}, "cannot read 'plugins' in its metadata"),
        ({"plugins": '{"mixer": {"name": "x"}}'}, "cannot read 'plugins' in its metadata"),
        ({"config": "[" * 100_000}, "cannot read 'config' in its metadata"),
        (
            {"config": '{"encoder": {"dim": 4000000, "num_heads": 1, "depth": 2}}'},
            "cannot build a model from its config|does not match its config",
        ),
        ({"classifier": '{"num_classes": 0}'}, "num_classes must be positive"),
    ],
)
def test_strange_files_of_our_own(metadata: dict[str, str], message: str, tmp_path: Path, catalog: Catalog) -> None:
    from safetensors import safe_open

    file = tmp_path / "ours.safetensors"
    assert main(["convert", str(golden.GOLDEN / "model_asda.pt"), str(file)]) == 0
    with safe_open(file, "pt") as opened:
        kept = dict(opened.metadata())
    tensors = load_file(file)
    save_file(tensors, file, {**kept, **metadata})
    with pytest.raises(CheckpointError, match=message):
        load_encoder(read_checkpoint(file), catalog)
    tensors["stray"] = torch.zeros(1)
    save_file(tensors, file, kept)
    with pytest.raises(CheckpointError, match="belong to no part of a model: stray"):
        read_checkpoint(file)


def test_nan_in_a_file_of_our_own(tmp_path: Path, catalog: Catalog) -> None:
    from safetensors import safe_open

    file = tmp_path / "ours.safetensors"
    assert main(["convert", str(golden.GOLDEN / "model_asda.pt"), str(file)]) == 0
    with safe_open(file, "pt") as opened:
        kept = dict(opened.metadata())
    tensors = load_file(file)
    tensors["encoder.input_norm.bias"][0] = torch.nan
    save_file(tensors, file, kept)
    with pytest.raises(CheckpointError, match="input_norm.bias holds NaN"):
        load_encoder(read_checkpoint(file), catalog)


def test_convert_does_not_write_over_what_it_reads(tmp_path: Path, catalog: Catalog, capsys: Any) -> None:
    file = tmp_path / "ours.safetensors"
    assert main(["convert", str(golden.GOLDEN / "finetune_asda.pt"), str(file)]) == 0
    assert main(["convert", str(file), str(file)]) == EXIT_ERROR
    assert "is the input file" in capsys.readouterr().err
    assert main(["convert", str(file), str(tmp_path / "x.pt")]) == EXIT_ERROR
    assert "must end in .safetensors" in capsys.readouterr().err
    assert write_fairseq(tmp_path / "a.pt", catalog).path.exists()


def test_damage_that_torch_does_not_see(tmp_path: Path, catalog: Catalog) -> None:
    """A bit in a tensor: torch reads it as it is, though the archive notes a checksum."""
    file = tmp_path / "whole.pt"
    write_fairseq(file, catalog)
    assert read_model(file)
    with zipfile.ZipFile(file) as archive:
        largest = max(archive.infolist(), key=lambda info: info.file_size)
    content = bytearray(file.read_bytes())
    content[largest.header_offset + largest.file_size // 2] ^= 255
    (tmp_path / "flipped.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=f"it is damaged .the checksum of .*{largest.filename} does not match"):
        read_model(tmp_path / "flipped.pt")


def test_archives_without_checksums(tmp_path: Path) -> None:
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": torch.arange(1000.0), "b": torch.ones(3)}, tmp_path / "bare.pt")
    finally:
        torch.serialization.set_crc32_options(before)
    assert torch.equal(read_pickled(tmp_path / "bare.pt")["a"], torch.arange(1000.0))


@pytest.mark.parametrize(("member", "size"), [("archive/data.pkl", 1 << 22), ("archive/data/0", 1 << 24)])
def test_archives_that_are_larger_inside_are_refused_at_once(tmp_path: Path, member: str, size: int) -> None:
    """Before anything in them is unpacked: a few megabytes could take all memory, or minutes of checksums."""
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        if member != "archive/data.pkl":
            archive.writestr("archive/data.pkl", b"\x80\x02N.", zipfile.ZIP_STORED)
        archive.writestr(member, b"\x80\x02" + b"N0" * (size // 2) + b"N.")
        archive.writestr("archive/version", "3\n")
    with pytest.raises(CheckpointError, match=f"{member} is compressed, which torch.save never does"):
        read_pickled(tmp_path / "bomb.pt")


def test_a_torchscript_archive_is_told_as_one(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "scripted.pt")
    with pytest.raises(CheckpointError, match="it is a TorchScript archive, not a checkpoint"):
        read_pickled(tmp_path / "scripted.pt")


def test_another_protocol_is_told_as_one(tmp_path: Path, catalog: Catalog) -> None:
    """It is no code."""
    written = write_fairseq(tmp_path / "a.pt", catalog)
    contents = torch.load(written.path, weights_only=False)["model"]
    torch.save({"model": contents}, tmp_path / "four.pt", pickle_protocol=4)
    with pytest.raises(CheckpointError, match="its pickle protocol is 4, not 2 as torch.save writes") as error:
        read_model(tmp_path / "four.pt")
    assert "would call" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config": None}, "cannot read 'config' in its metadata: it is missing"),
        ({"plugins": None}, "cannot read 'plugins' in its metadata: it is missing"),
        ({"plugins": '{"mixer": {"name": "standard"}}'}, "'plugins' in its metadata: key 'distribution' is missing"),
        ({"plugins": '{"mixer": "standard"}'}, "cannot read 'plugins' in its metadata"),
        ({"trained_on": "[1]"}, "cannot read 'trained_on' in its metadata"),
        ({"embedding": "[1]"}, "cannot read 'embedding' in its metadata"),
        ({"step": "-5"}, "'step' in its metadata: -5 is not a number of steps"),
        ({"step": "1e400"}, "'step' in its metadata: inf is not a number of steps"),
        ({"step": "true"}, "'step' in its metadata: True is not a number of steps"),
        ({"format": "asda-2"}, "of another version of asda .format 'asda-2'.: expected format 'asda-1'"),
        ({"format": None}, "not an asda checkpoint: expected format 'asda-1' in its metadata"),
        ({"deep": ""}, "its config has encoder.depth 1000000, but the file holds 2 blocks"),
    ],
)
def test_what_is_wrong_beside_our_tensors_is_named(
    changes: dict[str, str | None], message: str, tmp_path: Path, catalog: Catalog, tiny: RunConfig
) -> None:
    parts = build_parts(catalog, tiny)
    metadata: dict[str, str] = checkpoint_metadata(tiny, catalog, 3, "")
    if "deep" in changes:
        plain_config = json.loads(metadata["config"])
        plain_config["encoder"]["depth"] = 1_000_000
        metadata["config"] = json.dumps(plain_config)
    changed_metadata = {key: value for key, value in {**metadata, **changes}.items() if value is not None}
    write_model(tmp_path / "a.safetensors", model_tensors(parts, False), changed_metadata)
    with pytest.raises(CheckpointError, match=message):
        read_model(tmp_path / "a.safetensors")
