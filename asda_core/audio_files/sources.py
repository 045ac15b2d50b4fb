"""Resolve `--data` to audio files (from folders, files, manifests, tables, tar shards) or to streams of shards."""

import itertools
import os
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from asda_core.audio_files.manifests import TABLE_SUFFIXES, files_in_manifest, files_in_parquet
from asda_core.audio_files.pack_options import unfinished_message
from asda_core.audio_files.tar_headers import AUDIO_SUFFIXES, TAR_SUFFIX, UNSUPPORTED_SUFFIXES, is_audio
from asda_core.audio_files.tars import INDEX_SUFFIX, num_bytes, shard_index, shard_of
from asda_core.errors import MAX_LISTED_LONG, AudioError, ConfigError, counted, listing
from asda_core.system.files import files_below

PIPE_PREFIX, STREAM_PREFIX = "pipe:", "stream:"
"""Prefixes of a command that prints a tar, and of a tar file that is read sequentially."""
BRACE_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
"""Range of shard numbers in a name, as in `train-{000000..000099}.tar`."""


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
        return Path(self.address.removeprefix(STREAM_PREFIX)) if self.address.startswith(STREAM_PREFIX) else None


AudioList: TypeAlias = list[Path] | list[ShardStream]
"""Training data of a run: files with random access, or streamed shards."""


def find_training_data(sources: Iterable[str | Path]) -> AudioList:
    """Return the audio files of all sources, or all streamed shards, that a run trains on.

    Args:
        sources: as for `find_audio`, or "stream:SHARDS.tar" and "pipe:COMMAND", with `{000..099}` for numbers.

    Raises:
        AudioError: a source holds no audio, or a streamed file does not exist.
        ConfigError: some sources are streamed and some are not.
    """
    names = [str(source) for source in sources]
    streamed = [source for source in names if is_stream(source)]
    if not streamed:
        return [file for source in names for file in find_audio(source)]
    if len(streamed) < len(names):
        other = next(source for source in names if not is_stream(source))
        raise ConfigError(f"streams cannot be mixed with other sources: {streamed[0]} is a stream, {other} is not.")
    streams = [ShardStream(address) for source in streamed for address in expand_braces(source)]
    missing = [stream.address for stream in streams if stream.file and not stream.file.is_file()]
    if missing:
        raise AudioError(f"{len(missing)} of {len(streams)} shards not found: {listing(missing, MAX_LISTED_LONG)}.")
    return streams


def warn_of_duplicates(files: Sequence[Path]) -> None:
    """Warn of files that are named more than once, and are therefore used more than once."""
    real = {folder: os.path.realpath(folder) for folder in {file.parent for file in files}}
    if repeated := len(files) - len({(real[file.parent], file.name) for file in files}):
        message = f"listed more than once (linked folders?): {repeated} of {len(files)} files"
        print(f"warning: {message}; each is used as often as it is listed.", file=sys.stderr)


def is_stream(source: str) -> bool:
    """Whether a source is a stream, read sequentially."""
    return source.startswith((PIPE_PREFIX, STREAM_PREFIX))


def expand_braces(pattern: str) -> list[str]:
    """All names that a pattern with `{000..099}` stands for; the pattern itself if it has no range.

    Raises:
        ConfigError: a range is descending.
    """
    parts = BRACE_RANGE.split(pattern)  # text, first, last, text, first, last, ..., text
    ranges = []
    for first, last in zip(parts[1::3], parts[2::3], strict=True):
        if int(last) < int(first):
            raise ConfigError(f"{pattern}: the range {first}..{last} is descending; write {{{last}..{first}}}.")
        ranges.append([str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)])
    return [
        "".join(itertools.chain(*zip(parts[::3], (*numbers, ""), strict=True)))
        for numbers in itertools.product(*ranges)
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
        raise ConfigError(f"{source}: only `asda pretrain` reads streamed shards; give the tar files instead.")
    path = Path(source)
    if path.is_dir():
        files = _in_folder(path)
    elif not path.is_file() and BRACE_RANGE.search(str(path)):
        files = list(itertools.chain(*(find_audio(name) for name in expand_braces(str(path)))))
    elif path.suffix == TAR_SUFFIX and path.is_file():
        files = shard_index(path).paths()
    elif is_audio(path.name) and (path.is_file() or num_bytes(path)):
        files = [path]
    elif path.suffix.lower() in TABLE_SUFFIXES and path.is_file():
        files = files_in_parquet(path)
    elif path.is_file():
        files = files_in_manifest(path)
    else:
        raise AudioError(f"no folder, manifest or audio file at {os.path.normpath(path)}.")
    if not files:
        raise AudioError(f"no audio files in {path} (looked for {' '.join(AUDIO_SUFFIXES)}).")
    return files


def _in_folder(folder: Path) -> list[Path]:
    """Audio files below a folder; if there are none, those in its shards, with a warning for each unreadable one.

    A tar beside loose files is usually the archive that they were unpacked from.
    """
    entries = list(files_below(folder))
    names = sorted(entry for entry in entries if is_audio(entry.name) or entry.suffix == TAR_SUFFIX)
    if unread := [entry.suffix.lower() for entry in entries if entry.suffix.lower() in UNSUPPORTED_SUFFIXES]:
        suffixes = ", ".join(sorted(set(unread)))
        skipped = f"{counted(len(unread), 'file')} in {folder} that libsndfile cannot read ({suffixes})"
        print(f"warning: skipped {skipped}; convert them to use them.", file=sys.stderr)
    files = [file for file in names if file.is_file()]
    if len(files) < len(names) and (broken := [entry for entry in names if entry.is_symlink() and not entry.exists()]):
        skipped = f"{counted(len(broken), 'broken link')} in {folder}"
        print(f"warning: skipped {skipped}, such as {broken[0]}.", file=sys.stderr)
    shards = [file for file in files if file.suffix == TAR_SUFFIX]
    loose = [file for file in files if file.suffix != TAR_SUFFIX]
    if loose and shards:
        skipped = f"{counted(len(shards), 'tar file')} beside {counted(len(loose), 'audio file')} in {folder}"
        print(f"warning: skipped {skipped}; name the tar files to use them.", file=sys.stderr)
    if loose:
        return loose
    for pack in sorted({file.parent for file in shards}):
        _warn_of_missing(pack)
    members = []
    for file in shards:
        try:
            members += shard_index(file).paths()
        except AudioError as error:
            print(f"warning: skipped: {error}", file=sys.stderr)
    return members


def _warn_of_missing(pack: Path) -> None:
    """Warn of an unfinished pack, and of shards of which only the index exists."""
    if problem := unfinished_message(pack):
        print(f"warning: {problem}", file=sys.stderr)
    indices = sorted(pack.glob(f"*{INDEX_SUFFIX}"))
    shards = [index.with_name(shard_of(index.name)) for index in indices]
    missing = [shard.name for shard in shards if not shard.exists()]
    if missing:
        message = f"{len(missing)} of {len(indices)} shards of {pack} not found, although their index files exist"
        print(f"warning: {message}: {listing(missing, MAX_LISTED_LONG)}.", file=sys.stderr)


def list_identity(files: Iterable[Path] | Iterable[ShardStream]) -> list[tuple[str, int]]:
    """Identity of a list of audio files: their names and sizes; for the output of a command, the command."""
    return [_identity(file) for file in files]


def _identity(file: Path | ShardStream) -> tuple[str, int]:
    if isinstance(file, ShardStream):
        return (file.address, 0) if file.file is None else (file.file.name, num_bytes(file.file))
    return file.name, num_bytes(file)
