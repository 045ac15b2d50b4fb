"""`asda data pack`: pack audio files into tar shards, which are fast to train on and readable by webdataset.

folder/train-000000.tar         000000412.flac, 000000412.json, 000000007.flac, ...
folder/train-000000.index.json  where each audio file lies, and how far packing had come
folder/pack.json                what is packed and with which options: a folder holds one pack
folder/skipped.jsonl            files that could not be read, and why
"""

import io
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile
from tqdm import tqdm

from asda_core.audio.opening import length_and_rate, open_audio
from asda_core.audio.reading import read_audio
from asda_core.audio_files.digests import ends_digest
from asda_core.audio_files.pack_options import PACK_FILE, SKIPPED_FILE, PackOptions
from asda_core.audio_files.sources import list_identity
from asda_core.audio_files.tar_headers import TAR_SUFFIX
from asda_core.audio_files.tars import member_bytes, split_member
from asda_core.data.shard_writer import ShardWriter, finished_shards, shard_name
from asda_core.errors import AudioError, ConfigError, first_reasons
from asda_core.system.files import read_json_lines, text_digest, write_text
from asda_core.system.locks import hold_folder_lock
from asda_core.system.resources import GIBIBYTE, SECONDS_PER_HOUR
from asda_core.system.thread_map import map_in_threads

LOCK_FILE = ".pack.lock"
DIFFERENCE_NAMES = {"data": "other audio files", "content": "other audio content", "about": "other labels or splits"}
"""Meaning of a difference between the recorded digest of a pack and the requested one."""
FULL_SCALE = 1 << 15
"""16-bit steps per amplitude of 1; libsndfile divides by this when it reads."""
CLIPPING_WARNING_PEAK = 1.5
"""Peak above which clipping to 1 is reported: resampling and lossy codecs exceed 1 slightly."""
CLIPPING_WARNING = "warning: {}: its peak of {:g} is clipped to 1 in the pack; --keep stores the file unchanged."
Description = Mapping[str, Any]
DEFAULT_OPTIONS = PackOptions()


@dataclass(frozen=True)
class PackSummary:
    """Contents of a finished pack."""

    shards: int
    clips: int
    hours: float
    gibibytes: float
    skipped: dict[str, str]


class Piece(NamedTuple):
    """A file, or one of its equal parts: place of the file in the packed order, number of the part, number of parts."""

    position: int
    file: Path
    number: int = 0
    parts: int = 1


class EncodedPiece(NamedTuple):
    """A piece encoded for a shard, or the reason why it could not be."""

    suffix: str
    content: bytes
    description: dict[str, Any]
    problem: str = ""


def pack(
    files: Sequence[Path],
    folder: Path,
    options: PackOptions = DEFAULT_OPTIONS,
    jobs: int = 1,
    progress: bool = True,
    descriptions: Mapping[Path, Description] | None = None,
    extra_files: Mapping[str, str] | None = None,
) -> PackSummary:
    """Pack audio files into shards; after an interruption, packing resumes after the last complete shard.

    Args:
        files: audio files to pack.
        folder: output folder of the shards.
        options: of the pack.
        jobs: number of threads that decode and encode; it does not change the shards.
        progress: whether to show a progress bar.
        descriptions: further entries for the JSON description of each file, such as its labels.
        extra_files: name -> text of further files to write to the folder.

    Raises:
        ConfigError: the folder holds another pack, or another process is packing into it.
        AudioError: no file can be read.
        OSError: for example, the disk is full.
    """
    with hold_folder_lock(folder, LOCK_FILE, "packs into"):
        identity = {
            "files": len(files),
            "data": _digest(list_identity(files)),
            "content": _content(files, jobs, progress),
        }
        _claim(files, folder, {**identity, **asdict(options)}, options.name, descriptions or {}, extra_files or {})
        _write_shards(files, folder, options, jobs, progress, descriptions or {})
        return _report(folder, options)


def _claim(
    files: Sequence[Path],
    folder: Path,
    requested: dict[str, Any],
    name: str,
    descriptions: Mapping[Path, Description],
    extra_files: Mapping[str, str],
) -> None:
    """Record what the folder is to hold; raise a `ConfigError` if it holds something else."""
    if descriptions or extra_files:
        requested["about"] = _digest([[descriptions.get(file) for file in files], dict(extra_files)])
    file = folder / PACK_FILE
    if not file.exists() or not any(folder.glob(f"*{TAR_SUFFIX}")):  # an empty pack does not occupy the folder
        if (folder / shard_name(name, 0)).exists():
            raise ConfigError(f"{folder} contains shards but no {PACK_FILE}; use another folder or --name.")
        (folder / SKIPPED_FILE).unlink(missing_ok=True)  # of an empty pack; it marks a pack as finished
        for extra_name, text in extra_files.items():
            write_text(folder / extra_name, text)
        write_text(file, json.dumps(requested, indent=2) + "\n")
        return
    try:
        recorded = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        raise ConfigError(f"{file} is damaged; use another folder.") from None
    recorded.setdefault("content", requested["content"])  # of a pack of an earlier version, which did not record it
    keys = dict.fromkeys([*requested, *recorded])
    differences = [
        DIFFERENCE_NAMES.get(key, f"{key}: {recorded.get(key)!r}, now {requested.get(key)!r}")
        for key in keys
        if recorded.get(key) != requested.get(key)
    ]
    if differences:
        raise ConfigError(f"{folder} contains a different pack ({'; '.join(differences)}); use another folder.")


def _content(files: Sequence[Path], jobs: int, progress: bool) -> str:
    """Digest of the first and last bytes of all files, without decoding them."""
    with tqdm(total=len(files), unit="file", disable=not progress, desc="hashing", leave=False) as bar:
        digests = []
        for _, digest in map_in_threads(ends_digest, files, jobs):
            digests.append(digest)
            bar.update()
    return _digest(digests)


def _digest(plain: Any) -> str:
    return text_digest(json.dumps(plain))


def _write_shards(
    files: Sequence[Path],
    folder: Path,
    options: PackOptions,
    jobs: int,
    progress: bool,
    descriptions: Mapping[Path, Description],
) -> None:
    finished = finished_shards(folder, options.name)
    last = tuple(finished[-1]["last"]) if finished else (-1, -1)
    writer = ShardWriter(folder, options.name, len(finished), options.shard_mebibytes)
    bar = tqdm(total=len(files), initial=max(0, last[0]), unit="file", disable=not progress, desc=folder.name)
    pieces = _pieces(files, options, *last)
    position = last
    try:
        with bar:
            for piece, sound in map_in_threads(lambda piece: encode_piece(piece, options), pieces, jobs):
                bar.update(piece.position - bar.n)
                position = piece.position, piece.number
                if sound.problem:
                    prefix = f"piece {piece.number + 1} of {piece.parts}: " if piece.parts > 1 else ""
                    writer.skipped.append((str(piece.file), f"{prefix}{sound.problem}"))
                    continue
                if (peak := sound.description.get("clipped_from")) is not None:
                    print(CLIPPING_WARNING.format(piece.file, peak), file=sys.stderr)
                key = f"{piece.position:09d}" + (f"-{piece.number:05d}" if piece.parts > 1 else "")
                writer.add(key, sound.suffix, sound.content, {**sound.description, **descriptions.get(piece.file, {})})
                if writer.is_full:
                    writer.finish(position)
            bar.update(len(files) - bar.n)
        _finish(folder, options, writer, position)
    finally:
        writer.drop()


def _finish(folder: Path, options: PackOptions, writer: ShardWriter, last: tuple[int, int]) -> None:
    """Close the last shard and list all skipped files, including those after the last shard."""
    remaining = [] if writer.is_open else list(writer.skipped)
    if writer.is_open:
        writer.finish(last)
    skipped = [entry for facts in finished_shards(folder, options.name) for entry in facts["skipped"]] + remaining
    lines = [json.dumps({"file": file, "reason": reason}) + "\n" for file, reason in skipped]
    write_text(folder / SKIPPED_FILE, "".join(lines))


def _report(folder: Path, options: PackOptions) -> PackSummary:
    finished = finished_shards(folder, options.name)
    skipped = {entry["file"]: entry["reason"] for entry in read_json_lines(folder / SKIPPED_FILE)}
    if not finished:
        reasons = first_reasons(skipped.values())
        raise AudioError(f"none of the {len(skipped)} audio files can be packed. First reasons: {reasons}")
    members = [member for facts in finished for member in facts["members"]]
    hours = sum(samples / rate for *_, samples, rate in members) / SECONDS_PER_HOUR
    return PackSummary(
        len(finished), len(members), hours, sum(facts["bytes"] for facts in finished) / GIBIBYTE, skipped
    )


def _pieces(files: Sequence[Path], options: PackOptions, position: int, number: int) -> Iterator[Piece]:
    """All pieces after (place, number), in the order of the pack."""
    order = np.random.default_rng(options.seed).permutation(len(files))
    for index in range(max(0, position), len(files)):
        file = files[int(order[index])]
        count = _count(file, options)
        yield from (Piece(index, file, part, count) for part in range(count) if (index, part) > (position, number))


def _count(file: Path, options: PackOptions) -> int:
    """Number of pieces of a file; 1 for an unreadable one, which is reported when it is read."""
    if options.seconds is None:
        return 1
    try:
        num_frames, rate = length_and_rate(file)
    except AudioError:
        return 1
    return max(1, math.ceil(num_frames / (Fraction(str(options.seconds)) * rate)))  # exact: 2.01 s at 8 kHz are 16,080


def encode_piece(piece: Piece, options: PackOptions) -> EncodedPiece:
    """Encode a piece for a shard."""
    try:
        num_frames, rate = length_and_rate(piece.file)
        description: dict[str, Any] = {"file": str(piece.file), "original_samples": num_frames, "original_rate": rate}
        if options.keep:
            inside = split_member(piece.file)
            content = piece.file.read_bytes() if inside is None else member_bytes(*inside)
            with open_audio(piece.file, content) as original:  # as it is read from the shard
                description |= {"samples": num_frames, "rate": rate, "channels": original.channels}
            return EncodedPiece(piece.file.suffix.lower(), content, description)
        first, stop = (edge * num_frames // piece.parts for edge in (piece.number, piece.number + 1))
        if piece.parts > 1:
            description["start_seconds"] = first / rate
        audio = read_audio(piece.file, options.rate, first / rate, (stop - first) / rate)
        peak = float(audio.abs().max())
        description |= {"clipped_from": round(peak, 3)} if peak > CLIPPING_WARNING_PEAK else {}
        samples = (audio * FULL_SCALE).round().clamp(-FULL_SCALE, FULL_SCALE - 1).short().numpy()
    except AudioError as error:
        return EncodedPiece("", b"", {}, str(error))
    sound = io.BytesIO()
    soundfile.write(sound, samples, options.rate, format=options.format.upper(), subtype="PCM_16")
    return EncodedPiece(
        f".{options.format}", sound.getvalue(), {**description, "samples": len(samples), "rate": options.rate}
    )
