"""Write embeddings of audio files: `asda embed`. Existing embeddings are not computed again."""

import os
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from asda_core.audio.long_files import StreamedSound
from asda_core.audio.opening import length_and_rate
from asda_core.audio.reading import read_audio
from asda_core.audio_files.sources import find_audio
from asda_core.errors import AudioError, ConfigError
from asda_core.inference.clip_encoder import ClipEncoder, EncodedClip, WindowPlan, check_audio
from asda_core.inference.framing import MILLISECONDS
from asda_core.inference.indexing import SKIPPED_FILE, EmbedJob, Entry, Index, entry_of
from asda_core.inference.reading_ahead import BackgroundQueue, LengthBatcher, read_ahead
from asda_core.inference.writing import NO_CLASS_TOKEN, embedding, write_embedding, write_windows
from asda_core.system.paths import is_array_file
from asda_core.system.workers import Shard

WHOLE_SECONDS = 30.0
"""Longer files are streamed: each segment is decoded when the encoder needs it."""
WRITES_WAITING = 4
"""Embeddings that may be queued for writing."""


@dataclass(frozen=True)
class EmbedItem:
    """One file: the audio file, and the name and path of its embedding."""

    file: Path
    name: Path
    target: Path


@dataclass(frozen=True)
class LoadedFile:
    """File that was read: its samples if it is short, otherwise a stream of them; how it is cut; its index entry."""

    sound: Tensor | StreamedSound
    plan: WindowPlan
    entry: Entry


@dataclass(frozen=True)
class UnreadableFile:
    """File that could not be read, and the reason."""

    reason: str


def embed_files(
    clip_encoder: ClipEncoder,
    names: Mapping[Path, Path],
    out: Path,
    job: EmbedJob,
    progress: bool = True,
    shard: Shard | None = None,
) -> str:
    """Embed audio files; embeddings of the same files that `out` already holds are kept.

    Files are decoded in the background. Short ones of equal length go through the encoder together, which changes the
    last digits at most; those above 30 s are never held in memory whole, and neither are their embeddings.

    Args:
        clip_encoder: the model.
        names: audio file -> name of its embedding, as returned by `output_names`.
        out: output folder; or, for a single source file, the output file, recognised by its suffix.
        job: settings of the embeddings; a folder made with others is rejected.
        progress: whether to show a progress bar.
        shard: part of the files to process; other processes may write the others to the same folder meanwhile.

    Returns:
        one line on what was done.

    Raises:
        AudioError: no file is readable.
        ConfigError: the folder holds embeddings made with other settings, or of other files under the same names.
    """
    part = shard or Shard()
    single = is_array_file(out)
    if single and len(names) > 1:
        raise ConfigError(f"{out} is one file, but there are {len(names)} audio files; give a folder.")
    if job.granularity == "all" and clip_encoder.encoder.class_token is None:
        raise ConfigError(NO_CLASS_TOKEN)
    index = None if single else Index(out, names)
    if index:
        index.claim(job, shared=part.count > 1, grid=grid_of(clip_encoder))
    mine = part.of([EmbedItem(file, name, out if single else out / name) for file, name in names.items()])
    embedder = Embedder(clip_encoder, job, index, progress)
    embedder.run(mine)
    made = embedder.num_embedded
    if index:
        index.tidy([item.file for item in mine], embedder.skipped)
    if len(embedder.skipped) == len(names):
        raise AudioError(f"none of the {len(names)} audio files is readable.")
    return summary(out, made, len(mine) - len(embedder.skipped) - made, len(embedder.skipped))


def grid_of(clip_encoder: ClipEncoder) -> dict[str, float]:
    """Return the geometry of the patches: bands per time step, and the durations of a step and a patch in ms."""
    shape, front_end = clip_encoder.encoder.config, clip_encoder.front_end
    hop_ms = MILLISECONDS * front_end.hop_samples / clip_encoder.sample_rate
    bands = shape.grid(front_end.num_bins, shape.patch_frames)[1]
    return {"bands": bands, "step_ms": shape.step_frames * hop_ms, "patch_ms": shape.patch_frames * hop_ms}


def open_sound(file: Path, clip_encoder: ClipEncoder) -> Tensor | StreamedSound:
    """Open and check a file for a clip encoder: a short one is read whole, a long one is returned as a stream.

    Raises:
        AudioError: as in `audio.reading.read_audio`.
    """
    num_samples, rate = length_and_rate(file)
    along, sample_rate = clip_encoder.options.resample_along, clip_encoder.sample_rate
    if num_samples > WHOLE_SECONDS * rate:
        return StreamedSound(file, sample_rate, along)
    return check_audio(read_audio(file, sample_rate, resample_along=along))


class Embedder:
    """Embed files one at a time or several together, and record them in the index."""

    def __init__(self, clip_encoder: ClipEncoder, job: EmbedJob, index: Index | None, progress: bool) -> None:
        self.clip_encoder, self.job, self.index, self.progress = clip_encoder, job, index, progress
        self.skipped: dict[Path, str] = {}
        self.num_embedded = 0

    def run(self, items: Sequence[EmbedItem]) -> None:
        """Embed all files that have no embedding yet."""
        batcher: LengthBatcher[tuple[EmbedItem, LoadedFile]] = LengthBatcher()
        with (
            tqdm(total=len(items), unit="file", disable=not self.progress, desc="embed") as bar,
            BackgroundQueue(WRITES_WAITING) as writer,
        ):
            for number, (item, outcome) in enumerate(read_ahead(items, self._read)):
                if isinstance(outcome, UnreadableFile):
                    self._skip(item, outcome.reason)
                elif (
                    isinstance(outcome, LoadedFile) and outcome.plan.in_one_piece and isinstance(outcome.sound, Tensor)
                ):
                    full = self.clip_encoder.windows_per_pass(outcome.plan)
                    self._encode(batcher.add((item, outcome), outcome.plan.steps, len(outcome.sound), full), writer)
                elif isinstance(outcome, LoadedFile):
                    self._stream(item, outcome)
                bar.update(number + 1 - batcher.waiting - bar.n)
            for clips in batcher.flush():
                self._encode(clips, writer)
                bar.update(len(clips))

    def _read(self, item: EmbedItem) -> LoadedFile | UnreadableFile | None:
        """Read one file; None if its embedding exists. Runs in the background."""
        try:
            entry = entry_of(item.name, item.file)
            if self.index and self.index.holds(entry):
                return None
            sound = open_sound(item.file, self.clip_encoder)
            num_samples = len(sound) if isinstance(sound, Tensor) else sound.num_samples
            return LoadedFile(sound, self.clip_encoder.plan_windows(num_samples), entry)
        except AudioError as error:
            return UnreadableFile(str(error))

    def _encode(self, clips: Sequence[tuple[EmbedItem, LoadedFile]], writer: BackgroundQueue) -> None:
        """Embed short files of equal length in one pass; they are written in the background."""
        if not clips:
            return
        encoded = self.clip_encoder.encode_batch([ready.sound for _, ready in clips if isinstance(ready.sound, Tensor)])
        for (item, ready), clip in zip(clips, encoded, strict=True):
            writer.submit(partial(self._write, item, ready.entry, clip))
        self.num_embedded += len(clips)

    def _write(self, item: EmbedItem, entry: Entry, clip: EncodedClip) -> None:
        item.target.parent.mkdir(parents=True, exist_ok=True)
        write_embedding(item.target, embedding(clip, self.job.granularity), clip.grid, self.job.kind)
        self._note(entry)

    def _stream(self, item: EmbedItem, ready: LoadedFile) -> None:
        """Embed a file that is long or takes several windows; it is written window by window."""
        item.target.parent.mkdir(parents=True, exist_ok=True)
        try:
            pieces = self.clip_encoder.encode_windows(ready.sound)
            write_windows(item.target, pieces, ready.plan.steps, self.job.kind)
        except AudioError as error:
            self._skip(item, str(error))
            return
        self.num_embedded += 1
        self._note(ready.entry)

    def _note(self, entry: Entry) -> None:
        if self.index:
            self.index.append(entry)

    def _skip(self, item: EmbedItem, reason: str) -> None:
        self.skipped[item.file] = reason
        tqdm.write(f"skipped: {reason}", file=sys.stderr)


def output_names(sources: Iterable[Path], suffix: str) -> dict[Path, Path]:
    """Map each audio file to the name of its embedding below the output folder.

    The name is the path below the source folder with the suffix replaced; files that would then share a name get the
    new suffix appended to their own.

    Raises:
        AudioError: two files still share a name.
    """
    places = {file: place for source in sources for file, place in _places(Path(source))}
    short = {file: place.with_suffix(f".{suffix}") for file, place in places.items()}
    counts = Counter(short.values())
    names = {
        file: name if counts[name] == 1 else places[file].with_name(f"{places[file].name}.{suffix}")
        for file, name in short.items()
    }
    owner: dict[Path, Path] = {}
    for file, name in names.items():
        if name in owner:
            raise AudioError(f"{owner[name]} and {file} would both be written to {name}; embed them separately.")
        owner[name] = file
    return names


def _places(source: Path) -> list[tuple[Path, Path]]:
    """List every audio file of a source: absolute path, links not resolved, and path relative to the source."""
    files = [Path(os.path.abspath(file)) for file in find_audio(source)]
    root = Path(os.path.abspath(source) if source.is_dir() else os.path.commonpath([file.parent for file in files]))
    return [(file, file.relative_to(root) if file.is_relative_to(root) else Path(file.name)) for file in files]


def summary(out: Path, embedded: int, existing: int, skipped: int) -> str:
    """Summarise what was done in one line."""
    line = f"{embedded} embedded in {out}" + (f", {existing} already embedded" if existing else "")
    return f"{line}; {skipped} skipped, see {out / SKIPPED_FILE}" if skipped else line
