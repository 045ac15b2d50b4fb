"""Many files, many processes, one folder: nothing twice, nothing torn, whatever is killed."""

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from asda_core.assemble import build_encoder, build_front_end
from asda_core.audio.reading import read_audio
from asda_core.catalog import Catalog
from asda_core.cli import main
from asda_core.commands.inference import _alone
from asda_core.config import RunConfig
from asda_core.errors import AudioError, ConfigError
from asda_core.inference import reading_ahead
from asda_core.inference.clip_encoder import ClipEncoder, EncodeOptions
from asda_core.inference.embedding import embed_files, embedding, output_names
from asda_core.inference.indexing import EmbedJob, Index, entry_of
from asda_core.inference.reading_ahead import FILES_AHEAD, READERS, BackgroundQueue, LengthBatcher, read_ahead
from asda_core.system import workers
from asda_core.system.command_line import EXIT_ERROR
from asda_core.system.workers import Shard, parse_shard
from tests.audio_files.shards import sound_bytes, write_tar
from tests.finetune.making import small_checkpoint
from tests.released.writing import write_fairseq
from tests.waiting import WAIT_SECONDS, wait_until

JOB = EmbedJob("c", "all", "npy", {})


@pytest.fixture
def listener(catalog: Catalog, tiny: RunConfig) -> ClipEncoder:
    torch.manual_seed(0)
    return ClipEncoder(
        build_front_end(catalog, tiny.front_end), build_encoder(catalog, tiny.encoder).eval(), EncodeOptions()
    )


def sounds(folder: Path, count: int, seconds: tuple[float, ...] = (0.3, 0.5, 0.31, 1.0)) -> dict[Path, Path]:
    """Audio file -> name of its embedding; a few lengths, in turn."""
    folder.mkdir(exist_ok=True)
    made = {}
    for number in range(count):
        file = folder / f"{number:03d}.wav"
        samples = round(seconds[number % len(seconds)] * 16_000)
        soundfile.write(file, 0.1 * np.random.default_rng(number).standard_normal(samples), 16_000)
        made[file] = Path(f"{file.stem}.npy")
    return made


def index_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "index.jsonl").read_text().splitlines()]


def check_folder(out: Path, names: dict[Path, Path], listener: ClipEncoder) -> None:
    """The index holds every file once, and each embedding is that of its file alone."""
    entries = index_of(out)
    assert sorted(entry["file"] for entry in entries) == sorted(map(str, names))
    for file, name in names.items():
        assert entry_of(name, file) in entries
        wanted = embedding(listener.encode(read_audio(file, 16_000)), "all").numpy()
        np.testing.assert_allclose(np.load(out / name), wanted, rtol=0, atol=1e-5)
    assert not list(out.rglob("*.part"))


@pytest.mark.parametrize("reverse", [False, True])
def test_files_of_one_length_go_together(
    listener: ClipEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reverse: bool
) -> None:
    """20 files of three lengths in steps, in either order: a few passes, and each as if it were alone."""
    names = sounds(tmp_path / "audio", 20)
    encode, passes = ClipEncoder._encode, []

    def count(self: ClipEncoder, stretches: Any) -> Any:
        passes.append(len(stretches))
        return encode(self, stretches)

    monkeypatch.setattr(ClipEncoder, "_encode", count)
    order = dict(reversed(names.items())) if reverse else names
    assert embed_files(listener, order, tmp_path / "out", JOB, False).startswith("20 embedded")
    assert sorted(passes) == [5, 5, 10]
    check_folder(tmp_path / "out", names, listener)


def test_a_pass_is_bounded(listener: ClipEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By tokens; and what waits for others of its length, by the samples held."""
    cut = listener.plan_windows(16_000)
    assert listener.windows_per_pass(cut) * cut.steps * 8 <= 512 < (listener.windows_per_pass(cut) + 1) * cut.steps * 8
    assert listener.windows_per_pass(listener.plan_windows(16_000 * 100)) == 1
    monkeypatch.setattr(reading_ahead, "HELD_SAMPLES", 100)
    together: LengthBatcher[str] = LengthBatcher()
    assert together.add("a", 1, 60, 9) == []
    assert together.add("b", 2, 30, 9) == []
    assert together.add("c", 2, 40, 9) == ["b", "c"]  # 130 are too many: the fullest goes
    assert together.waiting == 1
    assert together.add("d", 1, 10, 2) == ["a", "d"]
    assert [*together.flush()] == []


def test_clips_of_different_lengths_are_refused(listener: ClipEncoder) -> None:
    with pytest.raises(ValueError, match="different lengths"):
        listener.encode_batch([torch.zeros(16_000), torch.zeros(32_000)])


def test_reading_ahead_is_bounded_and_in_order() -> None:
    begun = []
    lock = threading.Lock()

    def read(number: int) -> int:
        with lock:
            begun.append(number)
        if number == 40:
            raise AudioError("forty")
        return number * number

    made = read_ahead(iter(range(50)), read)
    for number in range(40):
        assert next(made) == (number, number * number)
        assert len(begun) <= number + 1 + READERS * FILES_AHEAD + 1
    with pytest.raises(AudioError, match="forty"):
        next(made)
    assert len([*read_ahead(range(3), str)]) == 3


def test_what_waits_for_the_disk_is_finished_also_after_an_error() -> None:
    done: list[int] = []

    def stopped() -> None:
        with BackgroundQueue(9) as writer:
            for number in range(5):
                writer.submit(lambda number=number: (time.sleep(0.01), done.append(number))[1])  # type: ignore[misc]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert done == [0, 1, 2, 3, 4]

    def full() -> None:
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"), BackgroundQueue(9) as writer:
        writer.submit(full)


def test_shards_share_a_folder(listener: ClipEncoder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In any order; each does its own, keeps what the others said, and does nothing twice."""
    names, out = sounds(tmp_path / "audio", 11), tmp_path / "out"
    for bad in ("003", "004"):
        (tmp_path / "audio" / f"{bad}.wav").write_text("no sound")
    lines = [embed_files(listener, names, out, JOB, False, Shard(index, 3)) for index in (2, 1, 3)]
    assert [line.split(" ")[0] for line in lines] == ["3", "3", "3"]
    skipped = [json.loads(line)["file"] for line in (out / "skipped.jsonl").read_text().splitlines()]
    assert sorted(Path(file).stem for file in skipped) == ["003", "004"]
    good = {file: name for file, name in names.items() if file.stem not in ("003", "004")}
    check_folder(out, good, listener)
    before = {name: (out / name).stat().st_mtime_ns for name in good.values()}
    assert embed_files(listener, names, out, JOB, False).startswith(
        f"0 embedded in {out}, 9 already embedded; 2 skipped"
    )
    assert before == {name: (out / name).stat().st_mtime_ns for name in good.values()}
    more = Shard(12, 12)  # more parts than files: an empty one is no mistake
    assert embed_files(listener, names, out, JOB, False, more).startswith("0 embedded")


def test_parts_are_disjoint_and_cover_all() -> None:
    for count, jobs in ((1, 3), (3, 2), (4, 4)):
        parts = [part for index in range(1, count + 1) for part in Shard(index, count).split(jobs)]
        found = [item for part in parts for item in part.of(range(50))]
        assert sorted(found) == list(range(50))
    assert Shard(2, 3).split(1) == [Shard(2, 3)]


def test_shards_with_other_settings_are_refused(listener: ClipEncoder, tmp_path: Path) -> None:
    """Also before the first of them has finished a file."""
    names, out = sounds(tmp_path / "audio", 2), tmp_path / "out"
    Index(out, names).claim(JOB, shared=True)
    other = EmbedJob("c", "frame", "npy", {})
    with pytest.raises(ConfigError, match="holds embeddings with other settings .granularity all, not frame"):
        embed_files(listener, names, out, other, False, Shard(1, 2))


NOTE = """
import sys
from pathlib import Path
from asda_core.inference.indexing import Index
index = Index(Path(sys.argv[1]), {})
print("ready", flush=True)
for number in range(int(sys.argv[3])):
    index.append({"embedding": f"{sys.argv[2]}-{number}", "file": "x" * 3000, "size": 1, "time": 1})
"""


def test_lines_of_several_processes_do_not_tear(tmp_path: Path) -> None:
    """Long lines from four processes, one of which is killed; and a line that somebody left half."""
    (tmp_path / "index.jsonl").write_text('{"embedding": "half')
    command = [sys.executable, "-c", NOTE, str(tmp_path)]
    running = [
        subprocess.Popen([*command, str(number), "10000" if number == 3 else "150"], stdout=subprocess.PIPE)
        for number in range(4)
    ]
    for process in running:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
    wait_until(lambda: b'"3-2"' in (tmp_path / "index.jsonl").read_bytes(), "lines of the fourth")
    running[3].kill()
    for process in running:
        process.communicate(timeout=WAIT_SECONDS)
    assert [process.returncode for process in running] == [0, 0, 0, -signal.SIGKILL]
    first, *lines = (tmp_path / "index.jsonl").read_text().splitlines()
    assert first == '{"embedding": "half'
    names = [json.loads(line)["embedding"] for line in lines[:-1]]
    assert len(names) == len(set(names))
    index = Index(tmp_path, {})
    index.read()
    assert {f"{number}-{line}" for number in range(3) for line in range(150)} <= set(index.entries)


SLOWLY = """
import sys, time
from asda_core.cli import main
from asda_core.commands.inference import _alone
from asda_core.inference import clip_encoder
encode = clip_encoder.ClipEncoder._encode
clip_encoder.TOKENS_PER_PASS["cpu"] = 1
clip_encoder.ClipEncoder._encode = lambda self, batch: (time.sleep(0.03), encode(self, batch))[1]
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_killed_at_any_moment(catalog: Catalog, tmp_path: Path) -> None:
    """SIGKILL, three times, then to the end: the index is right each time, and what it holds is not done again."""
    checkpoint = write_fairseq(tmp_path / "released.pt", catalog).path
    names, out = sounds(tmp_path / "audio", 24), tmp_path / "out"
    arguments = ["embed", str(tmp_path / "audio"), "--out", str(out), "--checkpoint", str(checkpoint)]
    done: dict[str, int] = {}
    for more in (1, 6, 5):
        process = subprocess.Popen([sys.executable, "-c", SLOWLY, *arguments], stderr=subprocess.PIPE)
        wait_until(lambda: len(lines_of(out)) >= len(done) + more, "an embedding")  # noqa: B023
        process.kill()
        process.communicate(timeout=WAIT_SECONDS)
        assert process.returncode == -signal.SIGKILL
        found = {entry["embedding"]: (out / entry["embedding"]).stat().st_mtime_ns for entry in lines_of(out)}
        assert done.items() <= found.items()
        assert all(np.load(out / name).ndim == 2 for name in found)
        assert len(found) < len(names)
        done = found
    assert main(arguments) == 0
    assert len(index_of(out)) == len(names)
    assert all((out / name).stat().st_mtime_ns == time_ns for name, time_ns in done.items())
    whole = tmp_path / "whole"
    assert main([*arguments[:2], "--out", str(whole), *arguments[4:]]) == 0
    for name in names.values():
        np.testing.assert_allclose(np.load(out / name), np.load(whole / name), rtol=0, atol=1e-5)
    assert not list(out.rglob("*.part"))


def lines_of(out: Path) -> list[dict[str, Any]]:
    """Whole lines of an index that may be written just now."""
    file = out / "index.jsonl"
    text = file.read_text() if file.exists() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


@pytest.mark.slow
def test_jobs(
    catalog: Catalog, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes; what is there is not done again; processes that die are told, and the command goes on."""
    checkpoint = write_fairseq(tmp_path / "released.pt", catalog).path
    names, out = sounds(tmp_path / "audio", 9), tmp_path / "out"
    (tmp_path / "audio" / "bad.wav").write_text("no sound")
    arguments = ["embed", str(tmp_path / "audio"), "--checkpoint", str(checkpoint), "--jobs", "2", "--out"]
    with monkeypatch.context() as patch:
        patch.setattr(workers.sys, "executable", "/bin/false")
        assert main([*arguments, str(out)]) == EXIT_ERROR
    assert (
        "not embedded: 10 files; the processes exited with codes [1, 1]; run the same command again to resume"
    ) in capsys.readouterr().err
    assert main([*arguments, str(out)]) == 0
    assert capsys.readouterr().out == f"9 embedded in {out}; 1 skipped, see {out / 'skipped.jsonl'}\n"
    assert sorted(entry["embedding"] for entry in index_of(out)) == sorted(map(str, names.values()))
    alone = tmp_path / "alone"
    assert main([*arguments[:4], "--out", str(alone)]) == 0
    for name in names.values():
        np.testing.assert_allclose(np.load(out / name), np.load(alone / name), rtol=0, atol=1e-5)
    capsys.readouterr()
    assert main([*arguments, str(out), "--shard", "1/2"]) == 0
    assert "0 embedded in" in (printed := capsys.readouterr().out)
    assert "5 already embedded" in printed
    with (out / "skipped.jsonl").open("a") as lines:
        lines.write('{"file": "cut o')  # by a kill
    assert main([*arguments, str(out)]) == 0
    assert "9 already embedded" in capsys.readouterr().out
    assert main(["embed", str(tmp_path / "audio" / "bad.wav"), *arguments[2:], str(tmp_path / "none")]) == EXIT_ERROR
    assert "none of the 1 audio files is readable" in capsys.readouterr().err


@pytest.mark.parametrize("more", [[], ["--jobs", "2"], ["--shard", "2/3"]])
def test_the_same_shard_twice_at_once(
    catalog: Catalog, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str]
) -> None:
    """The second is told so, and does nothing; other shards, and single files, may."""
    sounds(tmp_path / "audio", 3)
    small_checkpoint(tmp_path / "model", catalog)
    out = tmp_path / "out"
    command = ["embed", str(tmp_path / "audio"), "--checkpoint", str(tmp_path / "model"), "--out"]
    with _alone(out, parse_shard(more[1]) if "--shard" in more else Shard()):
        assert main([*command, str(out), *more]) == EXIT_ERROR
        what = " shard 2/3" if "--shard" in more else ""
        assert f"another process embeds{what} into {out}; wait for it" in capsys.readouterr().err
        assert not (out / "index.jsonl").exists()
        assert main([*command, str(out), "--shard", "1/3"]) == 0
    assert main([*command, str(out), *more]) == 0
    assert len(index_of(out)) == (2 if "--shard" in more else 3)


def test_what_many_processes_cannot_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (file,) = sounds(tmp_path / "audio", 1)
    command = ["embed", str(file), "--checkpoint", "none.pt", "--out", str(tmp_path / "a.npy")]
    assert main([*command, "--jobs", "2"]) == EXIT_ERROR
    assert "is a single file, written by one process" in capsys.readouterr().err
    assert main([*command, "--shard", "2/2"]) == EXIT_ERROR
    assert "--jobs and --shard need a folder" in capsys.readouterr().err
    assert main([*command, "--jobs", "0"]) == EXIT_ERROR
    assert "--jobs must be at least 1, not 0" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*command, "--shard", "3/2"])
    assert "must be one of 1/2 to 2/2" in capsys.readouterr().err


def test_tensors_are_heard_as_before(listener: ClipEncoder) -> None:
    """Together and alone, also where silence is filled behind them."""
    clips: list[Tensor] = [0.1 * torch.randn(samples) for samples in (2_800, 2_500, 399)]
    for alone, heard in zip(map(listener.encode, clips), listener.encode_batch(clips), strict=True):
        torch.testing.assert_close(heard.tokens, alone.tokens, rtol=0, atol=1e-5)
        torch.testing.assert_close(heard.summary, alone.summary, rtol=0, atol=1e-5)
        assert heard.grid == alone.grid


@pytest.mark.slow
def test_jobs_on_a_shard_and_when_all_fail(
    catalog: Catalog, tiny: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tar(tmp_path / "s.tar", [(f"{number}.wav", sound_bytes(number)) for number in range(3)])
    checkpoint = small_checkpoint(tmp_path / "start", catalog)
    command = ["embed", str(tmp_path / "s.tar"), "--out", str(tmp_path / "out"), "--jobs", "2", "--checkpoint"]
    assert main([*command, str(checkpoint.file)]) == 0
    assert "3 embedded" in "".join(capsys.readouterr())
    assert main([*command, str(checkpoint.file)]) == 0
    assert "3 already embedded" in "".join(capsys.readouterr())
    assert main([*command, str(checkpoint.file), "--granularity", "frame"]) == EXIT_ERROR
    told = capsys.readouterr().err
    assert "holds embeddings with other settings" in told
    assert "the same command" not in told  # it never could
    new = ["embed", "--out", str(tmp_path / "new"), "--checkpoint", str(checkpoint.file), "--jobs", "2"]
    assert main([*new, "--", str(tmp_path / "s.tar")]) == 0
    assert "3 embedded" in "".join(capsys.readouterr())


def test_links_keep_their_places(audio_folder: Path, tmp_path: Path) -> None:
    sound = next(audio_folder.rglob("*.wav"))
    for part in ("train", "test"):
        (tmp_path / "links" / part).mkdir(parents=True)
        (tmp_path / "links" / part / "dog.wav").symlink_to(sound)
    names = output_names([tmp_path / "links"], "npy")
    assert sorted(map(str, names.values())) == ["test/dog.npy", "train/dog.npy"]
