"""`asda classify`: labels from the checkpoint, from AudioSet's table, from a list; long and short clips."""

import json
from pathlib import Path

import pytest
import torch

from asda_core.audio.reading import read_audio
from asda_core.catalog import Catalog
from asda_core.checkpoint import load_classifier, load_encoder
from asda_core.cli import main
from asda_core.inference import embedding
from asda_core.inference.classifying import probabilities
from asda_core.inference.clip_encoder import ClipEncoder, EncodeOptions
from asda_core.official.reading import read_model
from asda_core.system.command_line import EXIT_ERROR
from tests.released.writing import NUM_CLASSES, Written, write_fairseq, write_hugging_face

Capture = pytest.CaptureFixture[str]
IDENTIFIERS = {f"/m/{number}": str(number) for number in range(NUM_CLASSES)}
AUDIOSET = "index,mid,display_name\n" + "".join(
    f'{number},/m/{NUM_CLASSES - 1 - number},"Sound, {NUM_CLASSES - 1 - number}"\n' for number in range(NUM_CLASSES)
)


@pytest.fixture
def finetuned(tmp_path: Path, catalog: Catalog) -> Written:
    return write_fairseq(tmp_path / "tuned.pt", catalog, classes=NUM_CLASSES, task_state={"labels": IDENTIFIERS})


def test_prints_the_top(
    finetuned: Written, audio_folder: Path, tmp_path: Path, catalog: Catalog, capsys: Capture
) -> None:
    file = audio_folder / "sound0.wav"
    labels = tmp_path / "labels.csv"
    labels.write_text(AUDIOSET)
    command = ["classify", str(file), "--checkpoint", str(finetuned.path), "--device", "cpu"]
    assert main([*command, "--top", "3", "--labels", str(labels), "--target-length", "96"]) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert lines[0] == str(file)
    assert lines[1].split() == ["LABEL", "PROBABILITY"]
    assert len(lines) == 5
    assert "tensors matched" in printed.err
    front_end, encoder = load_encoder(read_model(finetuned.path), catalog)
    with torch.no_grad():
        logits = load_classifier(read_model(finetuned.path))(
            encoder(front_end(read_audio(file, 16_000)[None, :15_600]))
        )
    best = logits[0].sigmoid().topk(3)
    for line, number, value in zip(lines[2:], best.indices.tolist(), best.values.tolist(), strict=True):
        assert line.split("  ")[0].strip() == f"Sound, {number}"  # by identifier: the file has another order
        assert float(line.split()[-1]) == pytest.approx(value, abs=1e-4)


def test_json_and_all_classes(finetuned: Written, audio_folder: Path, capsys: Capture) -> None:
    files = [str(audio_folder / name) for name in ("sound0.wav", "none.wav", "sound1.flac")]
    assert main(["classify", *files, "--checkpoint", str(finetuned.path), "--json", "--top", "99"]) == EXIT_ERROR
    printed = capsys.readouterr()
    found = [json.loads(line) for line in printed.out.splitlines()]
    assert [Path(entry["file"]).name for entry in found] == ["sound0.wav", "sound1.flac"]
    assert {entry["label"] for entry in found[0]["labels"]} == set(IDENTIFIERS)
    assert "skipped: cannot read" in printed.err
    assert f"not classified: {files[1]}; the others were" in printed.err


def test_short_clips_are_filled_and_long_ones_cut(finetuned: Written, audio_folder: Path, capsys: Capture) -> None:
    """As the classifier was trained: 96 frames; a window of that length after the other, averaged."""
    command = ["classify", "--checkpoint", str(finetuned.path), "--json", "--top", "1"]
    assert main([*command, str(audio_folder / "sound3.wav")]) == 0
    usual = capsys.readouterr().out
    assert main([*command, str(audio_folder / "sound3.wav"), "--target-length", "96"]) == 0
    assert capsys.readouterr().out == usual
    assert main([*command, str(audio_folder / "sound2.ogg")]) == 0
    usual = capsys.readouterr().out
    assert main([*command, str(audio_folder / "sound2.ogg"), "--window-seconds", "0.975"]) == 0
    assert capsys.readouterr().out == usual


def test_probabilities_of_windows_are_averaged(finetuned: Written, catalog: Catalog) -> None:
    read = read_model(finetuned.path)
    listener = ClipEncoder(*load_encoder(read, catalog), EncodeOptions(window_seconds=0.975))
    given = probabilities(listener, load_classifier(read), torch.randn(40_000) * 0.1)
    assert given.shape == (NUM_CLASSES,)
    assert ((given > 0) & (given < 1)).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--top", "0"], "--top must be at least 1"),
        (["--labels", "nowhere.csv"], "cannot read the label file nowhere.csv"),
    ],
)
def test_mistakes(finetuned: Written, audio_folder: Path, arguments: list[str], message: str, capsys: Capture) -> None:
    command = ["classify", str(audio_folder / "sound0.wav"), "--checkpoint", str(finetuned.path), *arguments]
    assert main(command) == EXIT_ERROR
    assert message in capsys.readouterr().err


def test_needs_a_classifier_and_a_sound(tmp_path: Path, catalog: Catalog, finetuned: Written, capsys: Capture) -> None:
    pretrained = write_hugging_face(tmp_path / "EAT", catalog).path
    assert main(["classify", "a.wav", "--checkpoint", str(pretrained)]) == EXIT_ERROR
    assert "is pre-trained only: it has no classifier" in capsys.readouterr().err
    assert main(["classify", "a.wav", "--checkpoint", str(finetuned.path)]) == EXIT_ERROR
    assert "none of the audio files is readable" in capsys.readouterr().err


def test_a_broken_file_in_a_folder_is_skipped(audio_folder: Path, finetuned: Written, capsys: Capture) -> None:
    (audio_folder / "broken.wav").write_text("no sound")
    assert main(["classify", str(audio_folder), "--checkpoint", str(finetuned.path)]) == 0
    assert "skipped: " in capsys.readouterr().err


def test_filled_as_the_classifier_was_trained(finetuned: Written, audio_folder: Path, capsys: Capture) -> None:
    """Also with windows of another length; `--compat default` fills with silence."""
    command = ["classify", str(audio_folder / "sound3.wav"), "--checkpoint", str(finetuned.path), "--json"]
    printed = []
    for more in ([], ["--compat", "released"], ["--window-seconds", "5"], ["--compat", "default"]):
        assert main([*command, *more]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1] == printed[2]
    assert printed[3] != printed[0]


def test_a_folder(finetuned: Written, audio_folder: Path, capsys: Capture) -> None:
    assert main(["classify", str(audio_folder), "--checkpoint", str(finetuned.path), "--json"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 5


def test_long_files_are_streams(
    finetuned: Written, audio_folder: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The probabilities of the whole file."""
    command = ["classify", str(audio_folder), "--checkpoint", str(finetuned.path), "--json", "--top", "2"]
    assert main(command) == 0
    whole = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    monkeypatch.setattr(embedding, "WHOLE_SECONDS", 0.1)
    monkeypatch.setattr(embedding, "read_audio", lambda *_, **__: pytest.fail("it was read whole"))
    assert main(command) == 0
    streamed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(streamed) == len(whole) == 5
    for one, other in zip(streamed, whole, strict=True):
        assert [entry["label"] for entry in one["labels"]] == [entry["label"] for entry in other["labels"]]
        for mine, wanted in zip(one["labels"], other["labels"], strict=True):
            assert mine["probability"] == pytest.approx(wanted["probability"], abs=1e-5)
