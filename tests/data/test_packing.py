"""Packs: whole or not there, going on after a kill, the same bytes whatever happened; broken files named."""

import io
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from filelock import FileLock

from asda_core.audio.reading import read_audio
from asda_core.audio_files.pack_options import PACK_FILE, SKIPPED_FILE, PackOptions, unfinished_message
from asda_core.audio_files.sources import find_audio
from asda_core.audio_files.tar_headers import read_headers
from asda_core.audio_files.tars import index_file, shard_index
from asda_core.cli import main
from asda_core.data import packing
from asda_core.data.packing import LOCK_FILE, pack
from asda_core.data.shard_writer import finished_shards
from asda_core.errors import AudioError, ConfigError
from tests.audio_files.shards import write_shards
from tests.waiting import wait_until

OPTIONS = PackOptions(shard_mebibytes=1)
ROOT = Path(__file__).parents[2]


def noise(folder: Path, count: int, seconds: float = 3.0) -> list[Path]:
    """FLAC does not make noise small: 20 of these fill a shard of one mebibyte more than once."""
    folder.mkdir()
    for number in range(count):
        sound = np.random.default_rng(number).normal(size=int(seconds * 16_000)) * 0.2
        soundfile.write(folder / f"{number:03d}.wav", sound, 16_000)
    return find_audio(folder)


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir()) if file.name != LOCK_FILE}


def described(folder: Path) -> dict[str, tuple[dict[str, object], np.ndarray]]:
    """Key -> what the shards say of each sound and the sound itself, by plain tarfile."""
    found = {}
    for shard in sorted(folder.glob("*.tar")):
        with tarfile.open(shard) as tar:
            names = tar.getnames()
            for name in names[::2]:
                key, _, suffix = name.partition(".")
                assert names[names.index(name) + 1] == f"{key}.json"  # side by side, as webdataset wants them
                facts = json.load(tar.extractfile(f"{key}.json"))  # type: ignore[arg-type]
                sound, rate = soundfile.read(io.BytesIO(tar.extractfile(name).read()), dtype="int16")  # type: ignore[union-attr]
                assert (len(sound), rate) == (facts["samples"], facts["rate"])
                found[key] = ({**facts, "suffix": suffix}, sound)
    return found


def test_what_is_packed(audio_folder: Path, tmp_path: Path) -> None:
    (audio_folder / "empty.wav").touch()
    (audio_folder / "text.wav").write_text("no audio")
    files = find_audio(audio_folder)
    packed = pack(files, tmp_path / "pack", OPTIONS, progress=False)
    assert (packed.shards, packed.clips) == (1, 5)
    assert {Path(file).name for file in packed.skipped} == {"empty.wav", "text.wav"}
    lines = (tmp_path / "pack" / SKIPPED_FILE).read_text().splitlines()
    assert sorted(Path(json.loads(line)["file"]).name for line in lines) == ["empty.wav", "text.wav"]
    found = described(tmp_path / "pack")
    assert len(found) == 5
    for facts, sound in found.values():
        wanted = read_audio(str(facts["file"]), 16_000)
        assert np.array_equal(sound, (wanted * 32_768).round().clamp(-32_768, 32_767).short().numpy())
        info = soundfile.info(str(facts["file"]))
        assert (facts["original_samples"], facts["original_rate"]) == (info.frames, info.samplerate)
    assert packed.hours == pytest.approx(sum(len(sound) for _, sound in found.values()) / 16_000 / 3600)


def test_sixteen_bits_at_the_rate_stay_as_they_are(tmp_path: Path) -> None:
    samples = np.random.default_rng(0).integers(-32_768, 32_768, 5_000).astype(np.int16)
    soundfile.write(tmp_path / "a.wav", samples, 16_000)
    pack([tmp_path / "a.wav"], tmp_path / "pack", OPTIONS, progress=False)
    ((_, sound),) = described(tmp_path / "pack").values()
    assert np.array_equal(sound, samples)


def test_as_wav(audio_folder: Path, tmp_path: Path) -> None:
    files = find_audio(audio_folder)
    for form in ("flac", "wav"):
        pack(files, tmp_path / form, replace(OPTIONS, format=form), progress=False)  # type: ignore[arg-type]
    pairs = list(zip(find_audio(tmp_path / "flac"), find_audio(tmp_path / "wav"), strict=True))
    assert {(flac.suffix, wav.suffix) for flac, wav in pairs} == {(".flac", ".wav")}
    assert all(torch.equal(read_audio(flac, 16_000), read_audio(wav, 16_000)) for flac, wav in pairs)


def test_the_index_is_what_the_headers_say(tmp_path: Path) -> None:
    files = noise(tmp_path / "audio", 25)
    packed = pack(files, tmp_path / "pack", OPTIONS, jobs=3, progress=False)
    assert packed.shards == 3
    for shard in sorted((tmp_path / "pack").glob("*.tar")):
        told = json.loads(index_file(shard).read_text())["members"]
        assert [tuple(row[:3]) for row in told] == [member[:3] for member in read_headers(shard)[0]]
        assert all(row[3:] == [48_000, 16_000] for row in told)
    members = find_audio(tmp_path / "pack")
    assert len(members) == 25
    origin = {facts["file"] for facts, _ in described(tmp_path / "pack").values()}
    assert origin == {str(file) for file in files}
    order = [int(member.name[:9]) for member in members]
    assert order == list(range(25))
    shuffled = [facts["file"] for facts, _ in described(tmp_path / "pack").values()]
    assert shuffled != sorted(map(str, shuffled))


def test_any_number_of_jobs_packs_the_same(tmp_path: Path) -> None:
    files = noise(tmp_path / "audio", 15)
    for jobs in (1, 4):
        pack(files, tmp_path / f"pack{jobs}", OPTIONS, jobs=jobs, progress=False)
    assert content(tmp_path / "pack1") == content(tmp_path / "pack4")


def test_long_files_in_equal_pieces(tmp_path: Path) -> None:
    ramp = np.arange(-20_000, 20_000, dtype=np.int16)
    soundfile.write(tmp_path / "long.wav", ramp, 16_000)
    soundfile.write(tmp_path / "short.wav", ramp[:8_000], 16_000)
    options = replace(OPTIONS, seconds=0.7)  # 40,000 samples are 2.5 s: four pieces of 10,000
    pack([tmp_path / "long.wav", tmp_path / "short.wav"], tmp_path / "pack", options, progress=False)
    found = described(tmp_path / "pack")
    pieces = [(facts, sound) for facts, sound in found.values() if str(facts["file"]).endswith("long.wav")]
    assert np.array_equal(np.concatenate([sound for _, sound in pieces]), ramp)
    assert [len(sound) for _, sound in pieces] == [10_000] * 4
    assert [facts["start_seconds"] for facts, _ in pieces] == [0, 0.625, 1.25, 1.875]
    assert len(found) == 5


@pytest.mark.parametrize(("more", "pieces"), [(0, 1), (1, 2)])
def test_a_file_of_exactly_the_given_length_stays_whole(tmp_path: Path, more: int, pieces: int) -> None:
    """2.01 * 8000 is a little less than 16,080 in floating point."""
    soundfile.write(tmp_path / "a.wav", np.zeros(16_080 + more), 8_000)
    assert pack([tmp_path / "a.wav"], tmp_path / "p", replace(OPTIONS, seconds=2.01), progress=False).clips == pieces


def test_files_as_they_are(audio_folder: Path, tmp_path: Path) -> None:
    files = find_audio(audio_folder)
    pack(files, tmp_path / "pack", replace(OPTIONS, keep=True), progress=False)
    members = find_audio(tmp_path / "pack")
    assert sorted(member.suffix for member in members) == sorted(file.suffix for file in files)
    with tarfile.open(tmp_path / "pack" / "train-000000.tar") as tar:
        for member in members:
            facts = json.load(tar.extractfile(f"{member.stem}.json"))  # type: ignore[arg-type]
            assert tar.extractfile(member.name).read() == Path(facts["file"]).read_bytes()  # type: ignore[union-attr]
            assert torch.equal(read_audio(member, 16_000), read_audio(facts["file"], 16_000))
    again = pack(members, tmp_path / "again", OPTIONS, progress=False)  # shards are packed as files are
    assert again.clips == 5


def test_what_is_kept_can_be_read(tmp_path: Path) -> None:
    """libsndfile takes a file for MP3 by its suffix; from a shard it gets bytes alone."""
    sounds = noise(tmp_path / "audio", 2)
    soundfile.write(tmp_path / "whole.mp3", soundfile.read(sounds[0])[0], 16_000)
    sounds[0].rename(tmp_path / "a.mp3")  # a WAV by its content
    (tmp_path / "junk.mp3").write_bytes(b"ab\0" * 100 + (tmp_path / "whole.mp3").read_bytes())
    files = [tmp_path / name for name in ("a.mp3", "junk.mp3", "whole.mp3")]
    assert not pack(files, tmp_path / "pack", replace(OPTIONS, keep=True), progress=False).skipped
    for member in find_audio(tmp_path / "pack"):
        read_audio(member, 16_000)


def test_another_pack_is_refused(tmp_path: Path) -> None:
    files = noise(tmp_path / "audio", 3)
    folder = tmp_path / "pack"
    pack(files, folder, OPTIONS, progress=False)
    before = content(folder)
    for others, options, message in (
        (files[:2], OPTIONS, "files: 3, now 2"),
        (files, replace(OPTIONS, rate=8_000), "rate: 16000, now 8000"),
    ):
        with pytest.raises(ConfigError, match=message):
            pack(others, folder, options, progress=False)
    with FileLock(folder / LOCK_FILE), pytest.raises(ConfigError, match="another process packs into"):
        pack(files, folder, OPTIONS, progress=False)
    assert content(folder) == before
    write_shards(tmp_path / "foreign", [1])
    (tmp_path / "foreign" / "train-000.tar").rename(tmp_path / "foreign" / "train-000000.tar")
    with pytest.raises(ConfigError, match=f"contains shards but no {PACK_FILE}"):
        pack(files, tmp_path / "foreign", OPTIONS, progress=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rate": 0}, "--rate must lie in"),
        ({"rate": 1}, "--rate must lie in 1000..655350"),
        ({"rate": 96_001}, "above 65535, FLAC needs a multiple of 10; or use --format wav"),
        ({"seconds": 1e-9}, "--seconds must be finite and at least 0.01"),
        ({"seconds": math.inf}, "--seconds must be"),
        ({"keep": True, "seconds": 2.0}, "give one"),
        ({"keep": True, "rate": 8_000}, "--rate and --format apply to re-encoded files only"),
        ({"keep": True, "format": "wav"}, "--rate and --format apply to re-encoded files only"),
        ({"seconds": 0.0}, "--seconds must be finite and at least"),
        ({"shard_mebibytes": 0}, "--shard-mebibytes"),
        ({"format": "mp3"}, "--format must be flac or wav, not 'mp3'"),
        ({"name": "a/b"}, "--name must be a plain word"),
        ({"name": ""}, "--name must be a plain word"),
        ({"name": "a\nb"}, r"--name must be a plain word .*, not 'a\\nb'"),
        ({"name": "a b"}, "--name must be a plain word"),
        ({"name": "-x"}, "--name must be a plain word"),
        ({"seed": -1}, "--seed"),
    ],
)
def test_wrong_options(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(OPTIONS, **changes)  # type: ignore[arg-type]


def test_nothing_to_pack(tmp_path: Path) -> None:
    (tmp_path / "a.wav").touch()
    for _ in range(2):
        with pytest.raises(AudioError, match="none of the 1 audio files can be packed. First reasons: .*0 bytes"):
            pack([tmp_path / "a.wav"], tmp_path / "pack", OPTIONS, progress=False)


def test_a_stop_between_any_two_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped before every file in turn, it ends as one that was never stopped, and packs no whole shard twice."""
    files = noise(tmp_path / "audio", 25)
    (tmp_path / "audio" / "012.wav").write_text("no audio")
    pack(files, tmp_path / "whole", OPTIONS, progress=False)
    original, folder = packing.encode_piece, tmp_path / "stopped"
    for stop in (2, 11, 12, 23, 24):
        done = {file.name: file.stat().st_mtime_ns for file in folder.glob("*.tar")}

        def stopping(piece: packing.Piece, options: PackOptions, stop: int = stop) -> packing.EncodedPiece:
            if piece.position == stop:
                raise KeyboardInterrupt
            return original(piece, options)

        monkeypatch.setattr(packing, "encode_piece", stopping)
        shards = finished_shards(folder, "train")
        assert len(shards) == len(done)
        if not shards or stop > shards[-1]["last"][0]:
            with pytest.raises(KeyboardInterrupt):
                pack(files, folder, OPTIONS, progress=False)
        assert not list(folder.glob(".*.part"))
        assert done.items() <= {file.name: file.stat().st_mtime_ns for file in folder.glob("*.tar")}.items()
    monkeypatch.setattr(packing, "encode_piece", original)
    pack(files, folder, OPTIONS, progress=False)
    assert content(folder) == content(tmp_path / "whole")
    assert "012.wav" in (folder / SKIPPED_FILE).read_text()


def is_ahead(process: subprocess.Popen[bytes], folder: Path, done: int) -> bool:
    return len(list(folder.glob("*.tar"))) > done or process.poll() is not None


@pytest.mark.slow
def test_killed_again_and_again(tmp_path: Path) -> None:
    """kill -9 at moments that nobody chose: every tar with a name is whole, and the end is that of an unkilled one."""
    files = noise(tmp_path / "audio", 80, seconds=10)
    pack(files, tmp_path / "whole", OPTIONS, progress=False)
    folder = tmp_path / "killed"
    command = [sys.executable, "-c", KILLED, str(tmp_path / "audio"), str(folder)]
    kills, kept = 0, 0
    for attempt in range(6):
        done = {file.name: file.stat().st_mtime_ns for file in folder.glob("*.tar")}
        process = subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        process.stdout.readline()  # it begins to pack
        if attempt % 2:  # soon behind another shard, however busy the machine is
            wait_until(partial(is_ahead, process, folder, len(done)), "a shard")
            time.sleep(0.01 * attempt)
        else:
            time.sleep(0.05 + 0.04 * attempt)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        kills += process.returncode == -signal.SIGKILL
        now = {file.name: file.stat().st_mtime_ns for file in folder.glob("*.tar")}
        assert done.items() <= now.items()  # nothing that was done is done again
        kept += len(done) > 0
        for shard in folder.glob("*.tar"):
            assert not read_headers(shard)[1]
            assert shard_index(shard).paths()
        if process.returncode == 0:
            break
    assert kills >= 2
    assert kept >= 1
    pack(files, folder, OPTIONS, progress=False)
    assert content(folder) == content(tmp_path / "whole")


KILLED = """
import sys
from pathlib import Path
from asda_core.audio_files.sources import find_audio
from asda_core.audio_files.pack_options import PackOptions
from asda_core.data.packing import pack
files = find_audio(sys.argv[1])
print("begins", flush=True)
pack(files, Path(sys.argv[2]), PackOptions(shard_mebibytes=1), jobs=2, progress=False)
"""


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = noise(tmp_path / "audio", 3)
    files[0].write_text("no audio")
    out = tmp_path / "pack"
    assert main(["data", "pack", str(tmp_path / "audio"), "--out", str(out), "--jobs", "2", "--rate", "8000"]) == 0
    printed = capsys.readouterr()
    assert "1 shard, 2 clips, 0.00 h" in printed.out
    assert "skipped 1 file; see" in printed.err
    assert {member.suffix for member in find_audio(out)} == {".flac"}
    assert json.loads((out / PACK_FILE).read_text())["rate"] == 8_000
    assert main(["data", "pack", str(tmp_path / "audio"), "--out", str(out)]) == 1
    assert "contains a different pack" in capsys.readouterr().err


def test_other_audio_of_the_same_names_and_sizes(tmp_path: Path) -> None:
    """As two microphones give it."""
    for name, seed in (("one", 0), ("two", 1)):
        (tmp_path / name).mkdir()
        sound = np.random.default_rng(seed).normal(size=48_000) * 0.2
        soundfile.write(tmp_path / name / "0.wav", sound, 16_000, subtype="PCM_16")
    first, second = (find_audio(tmp_path / name) for name in ("one", "two"))
    pack(first, tmp_path / "out", OPTIONS, progress=False)
    pack(first, tmp_path / "out", OPTIONS, progress=False)
    with pytest.raises(ConfigError, match="contains a different pack .other audio content."):
        pack(second, tmp_path / "out", OPTIONS, progress=False)
    facts = json.loads((tmp_path / "out" / PACK_FILE).read_text())
    del facts["content"]
    (tmp_path / "out" / PACK_FILE).write_text(json.dumps(facts))  # of a version that did not tell it
    pack(first, tmp_path / "out", OPTIONS, progress=False)


def test_a_full_disk_gets_its_room_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = noise(tmp_path / "noise", 3)

    close = tarfile.TarFile.close

    def full(tar: tarfile.TarFile) -> None:
        close(tar)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tarfile.TarFile, "close", full)
    with pytest.raises(OSError, match="No space") as told:
        pack(files, tmp_path / "out", OPTIONS, progress=False)
    assert told.value.filename == str(tmp_path / "out" / ".train-000000.tar.part")
    monkeypatch.undo()
    assert not list((tmp_path / "out").glob(".*.part"))
    assert pack(files, tmp_path / "out", OPTIONS, progress=False).clips == 3


def test_a_pack_of_nothing_holds_no_folder(tmp_path: Path) -> None:
    """As a list whose disk was not mounted makes one: put right, the same command packs."""
    (tmp_path / "list.txt").write_text("audio/000.wav\naudio/001.wav\n")
    files = find_audio(tmp_path / "list.txt")
    with pytest.raises(AudioError, match="none of the 2 audio files can be packed"):
        pack(files, tmp_path / "out", OPTIONS, progress=False)
    noise(tmp_path / "audio", 2)
    assert pack(files, tmp_path / "out", OPTIONS, progress=False).clips == 2
    assert (tmp_path / "out" / SKIPPED_FILE).read_text() == ""
    with pytest.raises(ConfigError, match=r"contains a different pack .*other audio files; other audio content"):
        pack(files[:1], tmp_path / "out", OPTIONS, progress=False)


def test_which_pieces_of_a_file_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = noise(tmp_path / "audio", 2, seconds=10.0)[0]
    soundfile.write(file.with_suffix(".flac"), soundfile.read(file)[0], 16_000)
    whole = file.with_suffix(".flac").read_bytes()
    file.with_suffix(".flac").write_bytes(whole[: len(whole) // 2])
    file.unlink()
    assert main(["data", "pack", str(tmp_path / "audio"), "--seconds", "2", "--out", str(tmp_path / "out")]) == 0
    assert "skipped 1 file, or parts of it; see" in capsys.readouterr().err
    lines = [json.loads(line) for line in (tmp_path / "out" / SKIPPED_FILE).read_text().splitlines()]
    assert sorted(line["reason"].split(":")[0] for line in lines) == [f"piece {number} of 5" for number in (3, 4, 5)]


def test_a_damaged_shard_that_is_put_back_is_not_packed_again(tmp_path: Path) -> None:
    pack(noise(tmp_path / "noise", 3), tmp_path / "out", OPTIONS, progress=False)
    (shard,) = (tmp_path / "out").glob("*.tar")
    good, index = shard.read_bytes(), index_file(shard).read_bytes()
    shard.write_bytes(good[: len(good) // 2])
    assert len(shard_index(shard).rows) < 3
    assert index_file(shard).read_bytes() == index
    shard.write_bytes(good)
    assert len(shard_index(shard).rows) == 3


def test_samples_beyond_one_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Floats that nobody scaled become a square wave in 16 bits; what resampling overshoots is no trouble."""
    (tmp_path / "audio").mkdir()
    sound = np.random.default_rng(0).normal(size=16_000)
    for name, peak in (("fine", 1.4), ("raw", 32_000.0)):
        soundfile.write(tmp_path / "audio" / f"{name}.wav", sound / abs(sound).max() * peak, 16_000, subtype="FLOAT")
    pack(find_audio(tmp_path / "audio"), tmp_path / "pack", OPTIONS, progress=False)
    told = capsys.readouterr().err
    assert told.count("warning:") == 1
    assert "raw.wav: its peak of 32000 is clipped to 1 in the pack; --keep stores the file unchanged" in told
    clipped = [facts.get("clipped_from") for facts, _ in described(tmp_path / "pack").values()]
    assert sorted(clipped, key=bool) == [None, 32_000.0]


def test_a_pack_of_nothing_that_is_begun_anew_is_not_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The list of what was skipped is there from before, and tells nothing of shards to come."""
    (tmp_path / "audio").mkdir()
    for number in range(20):
        (tmp_path / "audio" / f"{number:03d}.wav").write_text("version https://git-lfs.github.com/spec/v1")
    files = find_audio(tmp_path / "audio")
    with pytest.raises(AudioError, match="none of the 20 audio files can be packed"):
        pack(files, tmp_path / "pack", OPTIONS, progress=False)
    shutil.rmtree(tmp_path / "audio")
    noise(tmp_path / "audio", 20)
    real = packing.ShardWriter.finish

    def killed(writer: packing.ShardWriter, last: tuple[int, int]) -> None:
        real(writer, last)
        raise KeyboardInterrupt

    monkeypatch.setattr(packing.ShardWriter, "finish", killed)
    with pytest.raises(KeyboardInterrupt):
        pack(files, tmp_path / "pack", OPTIONS, progress=False)
    assert "is not finished" in unfinished_message(tmp_path / "pack")
