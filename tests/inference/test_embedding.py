"""`asda embed`: files, folders, manifests; formats; going on; what is wrong is named."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors import safe_open

from asda_core.assemble import build_parts
from asda_core.audio.reading import read_audio
from asda_core.catalog import Catalog, load_catalog
from asda_core.checkpoint import checkpoint_metadata, load_encoder, model_tensors, write_model
from asda_core.cli import main
from asda_core.config import RunConfig
from asda_core.config_io import parse, to_plain, with_value
from asda_core.errors import AudioError, CheckpointError, ConfigError
from asda_core.inference import clip_encoder
from asda_core.inference.clip_encoder import ClipEncoder, EncodedClip
from asda_core.inference.embedding import embedding, output_names
from asda_core.model.encoder import EncoderOutput
from asda_core.official.reading import read_model
from asda_core.pretrain.loop import pretrain
from asda_core.system.command_line import EXIT_ERROR, EXIT_STOPPED
from asda_hear.api import load_model
from tests.conftest import BUILT_IN, TINY
from tests.released.golden import GOLDEN
from tests.released.writing import OTHER_SIZES, write_fairseq

Capture = pytest.CaptureFixture[str]
DIM = OTHER_SIZES["encoder"]["dim"]


@pytest.fixture
def released(tmp_path: Path, catalog: Catalog) -> Path:
    return write_fairseq(tmp_path / "released.pt", catalog).path


def embed(released: Path, *arguments: object) -> int:
    return main(["embed", *map(str, arguments), "--checkpoint", str(released), "--device", "cpu"])


@pytest.mark.parametrize(("granularity", "rows"), [("all", 57), ("frame", 56), ("utterance", None)])
def test_a_folder(
    released: Path, audio_folder: Path, tmp_path: Path, granularity: str, rows: int | None, capsys: Capture
) -> None:
    (audio_folder / "below").mkdir()
    (audio_folder / "sound0.wav").rename(audio_folder / "below" / "one.wav")
    assert embed(released, audio_folder, "--out", tmp_path / "out", "--granularity", granularity) == 0
    assert "5 embedded in" in capsys.readouterr().out
    values = np.load(tmp_path / "out" / "below" / "one.npy")
    assert values.shape == ((DIM,) if rows is None else (rows, DIM))
    assert values.dtype == np.float32
    assert len(list((tmp_path / "out").rglob("*.npy"))) == 5


def test_equal_to_the_model_itself(released: Path, audio_folder: Path, tmp_path: Path, catalog: Catalog) -> None:
    file = audio_folder / "sound0.wav"
    assert embed(released, file, "--out", tmp_path / "a.npy", "--target-length", 96, "--compat", "released") == 0
    front_end, encoder = load_encoder(read_model(released), catalog)
    wave = read_audio(file, 16_000)
    with torch.no_grad():
        encoded = encoder(front_end((wave - wave.mean())[None, : 95 * 160 + 400]))
    wanted = torch.cat([encoded.summary[:, None], encoded.tokens], 1)[0]
    assert np.abs(np.load(tmp_path / "a.npy") - wanted.numpy()).max() < 1e-4


def test_safetensors_tell_their_grid(released: Path, audio_folder: Path, tmp_path: Path) -> None:
    assert embed(released, audio_folder, "--out", tmp_path / "out", "--format", "safetensors") == 0
    with safe_open(tmp_path / "out" / "sound0.safetensors", "np") as opened:
        assert opened.get_tensor("embedding").shape == (57, DIM)
        assert opened.metadata() == {"granularity": "all", "time_steps": "7", "bands": "8"}


def test_goes_on_and_refuses_another_job(released: Path, audio_folder: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "out"
    assert embed(released, audio_folder, "--out", out) == 0
    kept, gone = out / "sound1.npy", out / "sound2.npy"
    before = kept.stat().st_mtime_ns
    gone.unlink()
    assert embed(released, audio_folder, "--out", out) == 0
    assert gone.exists()
    assert kept.stat().st_mtime_ns == before
    assert embed(released, audio_folder, "--out", out, "--granularity", "frame") == EXIT_ERROR
    assert "holds embeddings with other settings (granularity all, not frame)" in capsys.readouterr().err
    listening = ("--window-seconds", "1.5")
    assert embed(released, audio_folder, "--out", out, *listening) == EXIT_ERROR
    assert "holds embeddings with other settings (window_seconds None, not 1.5); give" in capsys.readouterr().err
    assert embed(GOLDEN / "model_asda.pt", audio_folder, "--out", out) == EXIT_ERROR
    assert "holds embeddings with other settings (checkpoint" in capsys.readouterr().err
    assert embed(released, audio_folder, "--out", out, "--weights", "teacher") == EXIT_ERROR


def test_bad_files_are_named_and_skipped(released: Path, audio_folder: Path, tmp_path: Path, capsys: Capture) -> None:
    (audio_folder / "bad.wav").write_text("no sound")
    assert embed(released, audio_folder, "--out", tmp_path / "out") == 0
    assert "skipped: cannot read" in capsys.readouterr().err
    lines = (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()
    assert [Path(json.loads(line)["file"]).name for line in lines] == ["bad.wav"]
    assert embed(released, audio_folder / "bad.wav", "--out", tmp_path / "b.npy") == EXIT_ERROR
    assert "none of the 1 audio files is readable" in capsys.readouterr().err
    assert not (tmp_path / "b.npy").exists()
    assert embed(released, audio_folder, "--out", tmp_path / "b.npy") == EXIT_ERROR
    assert "is one file, but there are 6 audio files" in capsys.readouterr().err


def test_a_manifest(released: Path, audio_folder: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "list.tsv"
    manifest.write_text("audio\nsound0.wav\t16000\nsound2.ogg\t44100\n")
    assert embed(released, manifest, "--out", tmp_path / "out") == 0
    assert sorted(path.name for path in (tmp_path / "out").glob("*.npy")) == ["sound0.npy", "sound2.npy"]


def test_names_that_clash(tmp_path: Path) -> None:
    for name in ("a/x.wav", "a/x.flac", "a/y.wav", "b/y.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    names = output_names([tmp_path / "a"], "npy")
    assert sorted(map(str, names.values())) == ["x.flac.npy", "x.wav.npy", "y.npy"]
    assert sorted(map(str, output_names([tmp_path], "npy").values()))[-1] == "b/y.npy"
    with pytest.raises(AudioError, match="would both be written to"):
        output_names([tmp_path / "a", tmp_path / "b"], "npy")


def test_all_needs_a_class_token() -> None:
    heard = EncodedClip(torch.zeros(4), torch.zeros(8, 4), (1, 8), has_class_token=False)
    with pytest.raises(ConfigError, match="this model has none; use 'frame'"):
        embedding(heard, "all")
    assert embedding(heard, "utterance").shape == (4,)


def test_a_device_that_is_none(released: Path, audio_folder: Path, tmp_path: Path, capsys: Capture) -> None:
    command = ["embed", str(audio_folder), "--out", str(tmp_path / "o"), "--checkpoint", str(released)]
    assert main([*command, "--device", "bla"]) == EXIT_ERROR
    assert "the device 'bla' cannot be used here" in capsys.readouterr().err


def test_other_audio_by_the_same_name(released: Path, audio_folder: Path, tmp_path: Path, capsys: Capture) -> None:
    """A file that has changed is embedded anew; one from another place is refused, not taken for done."""
    out, other = tmp_path / "out", tmp_path / "other"
    assert embed(released, audio_folder, "--out", out) == 0
    before = np.load(out / "sound0.npy")
    soundfile.write(audio_folder / "sound0.wav", np.zeros(16_000), 16_000)
    assert embed(released, audio_folder, "--out", out) == 0
    assert not np.allclose(np.load(out / "sound0.npy"), before)
    other.mkdir()
    shutil.copy(audio_folder / "sound1.flac", other / "sound1.flac")
    assert embed(released, other, "--out", out) == EXIT_ERROR
    assert "sound1.npy is the embedding of" in capsys.readouterr().err
    lines = (out / "index.jsonl").read_text().splitlines()
    assert len(lines) == len({json.loads(line)["embedding"] for line in lines}) == 5
    shutil.copy(audio_folder / "sound0.wav", audio_folder / "sound1.wav")  # now two files would be sound1.npy
    (audio_folder / "sound2.ogg").unlink()
    assert embed(released, audio_folder, "--out", out) == 0
    assert "2 embedded in" in (printed := capsys.readouterr().out)
    assert "3 already embedded" in printed
    names = {json.loads(line)["embedding"] for line in (out / "index.jsonl").read_text().splitlines()}
    assert names == {"sound0.npy", "sound1.flac.npy", "sound1.wav.npy", "sound2.npy", "sound3.npy", "sound4.npy"}
    assert not (out / "sound1.npy").exists()


def test_a_kill_in_the_middle(
    released: Path, audio_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was finished stays; what was not noted is done again; half a line of the index harms nobody."""
    out = tmp_path / "out"
    encode = ClipEncoder._encode
    calls = []

    def stop(self: ClipEncoder, stretches: Sequence[tuple[torch.Tensor, int]]) -> EncoderOutput:
        calls.append(len(stretches))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return encode(self, stretches)

    monkeypatch.setattr(ClipEncoder, "_encode", stop)
    monkeypatch.setitem(clip_encoder.TOKENS_PER_PASS, "cpu", 1)
    assert embed(released, audio_folder, "--out", out) == EXIT_STOPPED
    assert len(list(out.glob("*.npy"))) == 3
    index = out / "index.jsonl"
    index.write_text(index.read_text()[:-20])
    assert embed(released, audio_folder, "--out", out) == 0
    assert len(calls) == 4 + 3
    assert len(list(out.glob("*.npy"))) == 5


def test_manifests_of_mixed_paths(released: Path, audio_folder: Path, tmp_path: Path) -> None:
    """Absolute and relative lines, another folder, a file twice: all lands below the output folder."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copy(audio_folder / "sound0.wav", elsewhere / "x.wav")
    manifest = audio_folder / "list.txt"
    manifest.write_text(f"sound0.wav\n../elsewhere/x.wav\n{audio_folder / 'sound1.flac'}\nsound0.wav\n")
    out = tmp_path / "deep" / "out"
    assert embed(released, manifest, audio_folder / "sound0.wav", "--out", out) == 0
    found = sorted(str(path.relative_to(out)) for path in out.rglob("*.npy"))
    assert found == ["audio/sound1.npy", "elsewhere/x.npy", "sound0.npy"]
    assert not list((tmp_path / "deep").glob("*.npy"))


def test_nothing_is_claimed_by_a_mistake(audio_folder: Path, tmp_path: Path, capsys: Capture) -> None:
    """A model without class token cannot give `all`; the folder is then free for another granularity."""
    file = tmp_path / "none.safetensors"
    catalog = load_catalog(*BUILT_IN, installed=False)
    plain = {**TINY, "encoder": {**TINY["encoder"], "class_token": {"position": "none"}}}  # type: ignore[dict-item]
    config = parse(RunConfig, plain)
    write_model(file, model_tensors(build_parts(catalog, config), False), checkpoint_metadata(config, catalog, 0))
    out = tmp_path / "out"
    assert embed(file, audio_folder, "--out", out, "--granularity", "all") == EXIT_ERROR
    assert "this model has none; use 'frame'" in capsys.readouterr().err
    assert embed(file, audio_folder, "--out", out, "--granularity", "frame") == 0
    (out / "embed.json").write_text("[]")
    assert embed(file, audio_folder, "--out", out, "--granularity", "frame") == EXIT_ERROR
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("form", ["npy", "safetensors"])
def test_what_cannot_be_written_leaves_nothing(
    released: Path, audio_folder: Path, tmp_path: Path, form: str, capsys: Capture
) -> None:
    (tmp_path / f"d.{form}").mkdir()
    assert embed(released, audio_folder / "sound0.wav", "--out", tmp_path / f"d.{form}") == EXIT_ERROR
    errors = capsys.readouterr().err
    assert "error: " in errors
    assert "Traceback" not in errors
    assert not list(tmp_path.glob(".*part"))


@pytest.mark.parametrize("suffix", ["pt", "csv"])
def test_formats_that_are_none(
    released: Path, audio_folder: Path, tmp_path: Path, suffix: str, capsys: Capture
) -> None:
    assert embed(released, audio_folder / "sound0.wav", "--out", tmp_path / f"a.{suffix}") == EXIT_ERROR
    assert "written as .npy or .safetensors" in capsys.readouterr().err


def test_formats_that_contradict(released: Path, audio_folder: Path, tmp_path: Path, capsys: Capture) -> None:
    command = [audio_folder / "sound0.wav", "--out", tmp_path / "a.NPY", "--format"]
    assert embed(released, *command, "safetensors") == EXIT_ERROR
    assert "name different formats" in capsys.readouterr().err
    assert embed(released, *command, "npy") == 0
    assert (tmp_path / "a.NPY").is_file()


def test_filled_as_the_model_was_trained(released: Path, audio_folder: Path, tmp_path: Path) -> None:
    """A released model was trained on clips filled behind the log-mel: so they are, unless one says otherwise."""
    values = {}
    for name, more in (("own", []), ("released", ["--compat", "released"]), ("default", ["--compat", "default"])):
        target = tmp_path / f"{name}.npy"
        assert embed(released, audio_folder / "sound3.wav", "--out", target, "--target-length", 96, *more) == 0
        values[name] = np.load(target)
    assert np.array_equal(values["own"], values["released"])
    assert not np.allclose(values["own"], values["default"], atol=1e-2)


def test_the_default_granularity_follows_the_model(
    catalog: Catalog, tiny: RunConfig, audio_folder: Path, tmp_path: Path
) -> None:
    """All with a class token; the patches alone without one."""
    for position, rows in (("first", 1), ("none", 0)):
        plain = with_value(to_plain(tiny), "encoder.class_token.position", position)
        run = parse(RunConfig, {**plain, "steps": 0})
        model = pretrain(run, [audio_folder / "sound0.wav"], tmp_path / position, catalog, progress=False)
        out = tmp_path / f"{position}.npy"
        command = ["embed", str(audio_folder / "sound0.wav"), "--checkpoint", str(model), "--out", str(out)]
        assert main([*command, "--device", "cpu"]) == 0
        assert len(np.load(out)) % 8 == rows


def test_a_sound_that_was_there_and_is_broken_now(released: Path, audio_folder: Path, tmp_path: Path) -> None:
    """Nothing is left of what it was."""
    out = tmp_path / "out"
    assert embed(released, audio_folder, "--out", out) == 0
    (audio_folder / "sound0.wav").write_text("no audio")
    assert embed(released, audio_folder, "--out", out) == 0
    assert not (out / "sound0.npy").exists()
    entries = [json.loads(line) for line in (out / "index.jsonl").read_text().splitlines()]
    assert sorted(entry["embedding"] for entry in entries) == [f"sound{number}.npy" for number in range(1, 5)]


def test_what_was_computed_stays_while_a_disk_is_away(
    released: Path, audio_folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    out, files = tmp_path / "out", tmp_path / "files.txt"
    files.write_text("".join(f"{file}\n" for file in sorted(audio_folder.iterdir())))
    assert embed(released, files, "--out", out) == 0
    (audio_folder / "sound0.wav").rename(tmp_path / "away.wav")
    assert embed(released, files, "--out", out) == 0
    (tmp_path / "away.wav").rename(audio_folder / "sound0.wav")
    capsys.readouterr()
    assert embed(released, files, "--out", out) == 0
    assert "0 embedded" in capsys.readouterr().out


def test_a_name_as_long_as_names_may_be(released: Path, audio_folder: Path, tmp_path: Path) -> None:
    long = "n" * 251 + ".wav"
    (audio_folder / "sound0.wav").rename(audio_folder / long)
    assert embed(released, audio_folder, "--out", tmp_path / "out") == 0
    assert (tmp_path / "out" / ("n" * 251 + ".npy")).exists()


def test_the_model_of_the_package_and_its_grid(tmp_path: Path, capsys: Capture) -> None:
    """Without a checkpoint the package's model embeds; how its patches lie stands beside what is made."""
    soundfile.write(tmp_path / "a.wav", np.random.default_rng(0).normal(size=32_000) * 0.1, 16_000)
    out = tmp_path / "out"
    assert main(["embed", str(tmp_path / "a.wav"), "--out", str(out), "--granularity", "frame", "--device", "cpu"]) == 0
    told = json.loads((out / "embed.json").read_text())
    assert told["checkpoint"].startswith("asda_small.safetensors")
    patches = np.load(out / "a.npy")
    assert told["grid"] == {"bands": 4, "step_ms": 80.0, "patch_ms": 80.0}
    assert len(patches) == 25 * 4  # 2 s, filled to a whole step
    assert main(["embed", str(tmp_path / "a.wav"), "--out", str(out), "--granularity", "frame", "--device", "cpu"]) == 0


def test_a_model_that_has_gone_astray(
    audio_folder: Path, tmp_path: Path, catalog: Catalog, tiny: RunConfig, capsys: Capture
) -> None:
    """Finite weights whose answers are not: nothing is written and indexed as if it were an embedding."""
    tensors = model_tensors(build_parts(catalog, tiny), False)
    tensors["encoder.input_norm.weight"] = torch.full_like(tensors["encoder.input_norm.weight"], 3e38)
    file, out = tmp_path / "model.safetensors", tmp_path / "out"
    write_model(file, tensors, checkpoint_metadata(tiny, catalog, 0))
    assert embed(file, audio_folder, "--out", out) == EXIT_ERROR
    assert "the model outputs NaN or infinite values: its weights are too large" in capsys.readouterr().err
    assert not list(out.rglob("*.npy"))
    assert not (out / "index.jsonl").exists() or not (out / "index.jsonl").read_text()
    model = load_model(file, catalog=catalog)
    for ask in (model.scene, model.timestamps):
        with pytest.raises(CheckpointError, match="NaN or infinite"):
            ask(torch.zeros(1, 16_000))
