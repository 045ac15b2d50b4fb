"""Resolve `--data` to audio files (from folders, files, manifests, tables, tar shards) or to streams of shards."""

import itertools
import os
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from asda_core.data.manifests import TABLE_SUFFIXES, in_manifest, in_parquet
from asda_core.data.pack_options import unfinished
from asda_core.data.tar_headers import AUDIO_SUFFIXES, TAR_SUFFIX, UNREAD_SUFFIXES, is_audio
from asda_core.data.tars import INDEX_SUFFIX, index_of, num_bytes, shard_of
from asda_core.errors import AudioError, ConfigError
from asda_core.system.files import files_below

PIPE, STREAM = "pipe:", "stream:"
"""Prefixes of a command that prints a tar, and of a tar file that is read sequentially."""
NUMBERS = re.compile(r"\{(\d+)\.\.(\d+)\}")
"""Range of shard numbers in a name, as in `train-{000000..000099}.tar`."""
FEW = 3


@dataclass(frozen=True)
class ShardStream:
    """A tar that is read sequentially: a file, or the output of a command.

    Attributes:
        address: "stream:FILE" or "pipe:COMMAND".
    """

    address: str

    @property
    def file(self) -> Path | None:
        """The file; None for a command."""
        return Path(self.address.removeprefix(STREAM)) if self.address.startswith(STREAM) else None


AudioList: TypeAlias = list[Path] | list[ShardStream]
"""Training data of a run: files with random access, or streamed shards."""


def find_training(sources: Iterable[str | Path]) -> AudioList:
    """Return the audio files of all sources, or all streamed shards, that a run trains on.

    Args:
        sources: as for `find_audio`, or "stream:SHARDS.tar" and "pipe:COMMAND", with `{000..099}` for numbers.

    Raises:
        AudioError: a source holds no audio, or a streamed file does not exist.
        ConfigError: some sources are streamed and some are not.
    """
    given = [str(source) for source in sources]
    streamed = [source for source in given if is_stream(source)]
    if not streamed:
        return [file for source in given for file in find_audio(source)]
    if len(streamed) < len(given):
        other = next(source for source in given if not is_stream(source))
        raise ConfigError(f"{streamed[0]} is streamed and {other} is not; give streams alone, or none.")
    found = [ShardStream(address) for source in streamed for address in expanded(source)]
    missing = [stream.address for stream in found if stream.file and not stream.file.is_file()]
    if missing:
        raise AudioError(f"{len(missing)} of {len(found)} shards are not there: {', '.join(missing[:FEW])}.")
    return found


def tell_doubles(files: Sequence[Path]) -> None:
    """Warn of files that are named more than once, and are therefore used more than once."""
    real = {folder: os.path.realpath(folder) for folder in {file.parent for file in files}}
    if doubles := len(files) - len({(real[file.parent], file.name) for file in files}):
        told = f"{doubles} of {len(files)} files are named more than once, as by a link to a folder, and count as often"
        print(f"warning: {told}.", file=sys.stderr)


def is_stream(source: str) -> bool:
    """Whether a source is a stream, read sequentially."""
    return source.startswith((PIPE, STREAM))


def expanded(pattern: str) -> list[str]:
    """All names that a pattern with `{000..099}` stands for; the pattern itself if it has no range.

    Raises:
        ConfigError: a range is descending.
    """
    parts = NUMBERS.split(pattern)  # text, first, last, text, first, last, ..., text
    ranges = []
    for first, last in zip(parts[1::3], parts[2::3], strict=True):
        if int(last) < int(first):
            raise ConfigError(f"{pattern}: the numbers {first}..{last} go backwards; write {{{last}..{first}}}.")
        ranges.append([str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)])
    return [
        "".join(itertools.chain(*zip(parts[::3], (*chosen, ""), strict=True))) for chosen in itertools.product(*ranges)
    ]


def find_audio(source: str | Path) -> list[Path]:
    """List the audio files of a folder (recursively), a manifest, a table, tar shards, or a single file.

    A manifest is a text file with one path per line, relative to the manifest: the whole line, or its first field
    separated by tabs, commas or spaces. If the first line names a folder, it is the root of the lines after it, as in
    the tsv lists of fairseq. From a csv or tsv whose header names a file column (`file`, `path`, ...), and from a
    parquet table, that column is read. A shard yields its audio files, each as a path below the tar;
    `train-{000000..000099}.tar` names a hundred shards.

    Returns:
        paths in sorted order for a folder, otherwise in the order of the source.

    Raises:
        AudioError: the source does not exist, or no name in it looks like audio.
        ConfigError: the source is a stream, which cannot be listed.
    """
    if is_stream(str(source)):
        raise ConfigError(f"{source}: streams of shards serve `asda pretrain` alone; give the tar files themselves.")
    path = Path(source)
    if path.is_dir():
        found = _in_folder(path)
    elif not path.is_file() and NUMBERS.search(str(path)):
        found = list(itertools.chain(*(find_audio(name) for name in expanded(str(path)))))
    elif path.suffix == TAR_SUFFIX and path.is_file():
        found = index_of(path).paths()
    elif is_audio(path.name) and (path.is_file() or num_bytes(path)):
        found = [path]
    elif path.suffix.lower() in TABLE_SUFFIXES and path.is_file():
        found = in_parquet(path)
    elif path.is_file():
        found = in_manifest(path)
    else:
        raise AudioError(f"no folder, manifest or audio file at {os.path.normpath(path)}.")
    if not found:
        raise AudioError(f"no audio files in {path} (looked for {' '.join(AUDIO_SUFFIXES)}).")
    return found


def _in_folder(folder: Path) -> list[Path]:
    """Audio files below a folder; if there are none, those in its shards, with a warning for each unreadable one.

    A tar beside loose files is usually the archive that they were unpacked from.
    """
    every = list(files_below(folder))
    names = sorted(each for each in every if is_audio(each.name) or each.suffix == TAR_SUFFIX)
    if unread := [each.suffix.lower() for each in every if each.suffix.lower() in UNREAD_SUFFIXES]:
        what = f"{len(unread)} files in {folder} that libsndfile does not read ({', '.join(sorted(set(unread)))})"
        print(f"warning: left out {what}; convert them to use them.", file=sys.stderr)
    files = [file for file in names if file.is_file()]
    if len(files) < len(names) and (gone := [each for each in names if each.is_symlink() and not each.exists()]):
        print(f"warning: left out {len(gone)} links in {folder} that lead nowhere, as {gone[0]}.", file=sys.stderr)
    shards = [file for file in files if file.suffix == TAR_SUFFIX]
    loose = [file for file in files if file.suffix != TAR_SUFFIX]
    if loose and shards:
        what = f"{len(shards)} tar files beside {len(loose)} audio files in {folder}"
        print(f"warning: left out {what}; name them to use them.", file=sys.stderr)
    if loose:
        return loose
    for pack in sorted({file.parent for file in shards}):
        _tell_what_is_missing(pack)
    found = []
    for file in shards:
        try:
            found += index_of(file).paths()
        except AudioError as error:
            print(f"warning: left out: {error}", file=sys.stderr)
    return found


def _tell_what_is_missing(pack: Path) -> None:
    """Warn of an unfinished pack, and of shards of which only the index exists."""
    if trouble := unfinished(pack):
        print(f"warning: {trouble}", file=sys.stderr)
    indices = sorted(pack.glob(f"*{INDEX_SUFFIX}"))
    gone = [each.name for each in indices if not each.with_name(shard_of(each.name)).exists()]
    if gone:
        told = f"{len(gone)} of {len(indices)} shards of {pack} are gone, of which the index is there"
        print(f"warning: {told}: {', '.join(map(shard_of, gone[:FEW]))}.", file=sys.stderr)


def list_identity(files: Iterable[Path] | Iterable[ShardStream]) -> list[tuple[str, int]]:
    """Identity of a list of audio files: their names and sizes; for the output of a command, the command."""
    return [_identity(file) for file in files]


def _identity(file: Path | ShardStream) -> tuple[str, int]:
    if isinstance(file, ShardStream):
        return (file.address, 0) if file.file is None else (file.file.name, num_bytes(file.file))
    return file.name, num_bytes(file)
