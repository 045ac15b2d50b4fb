"""Audio files -> files of embeddings: `asda embed`. What is done is not done again."""

import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from asda_core.audio import find_audio, read_audio
from asda_core.errors import AudioError, ConfigError
from asda_core.files import save_tensors, write_text, write_whole
from asda_core.inference.listening import Heard, Listener

Granularity = Literal["all", "frame", "utterance"]
Format = Literal["npy", "safetensors"]

SETTINGS_FILE = "embed.json"
INDEX_FILE = "index.jsonl"
SKIPPED_FILE = "skipped.jsonl"
NO_CLASS_TOKEN = "granularity 'all' puts the class token first, but this model has none; take 'frame'."
TENSOR_NAME = "embedding"
"""Name of the one tensor in a safetensors file of an embedding."""


@dataclass(frozen=True)
class EmbedJob:
    """What is made of the files of a folder, as `embed.json` keeps it.

    Attributes:
        checkpoint: name and digest of the file of weights, and which weights of it.
        granularity: "all" (class token and patches), "frame" (patches, 8 per time step), "utterance" (the summary).
        format: of the files.
        listening: the options of the listener.
    """

    checkpoint: str
    granularity: Granularity
    format: Format
    listening: Mapping[str, object]


def embedding(heard: Heard, granularity: Granularity) -> Float[Tensor, "*tokens dim"]:
    """The rows of a clip: (1 + N, D) with the class token first, (N, D) patches, or (D,).

    Raises:
        ConfigError: "all" of a model that has no class token.

    **Source**: granularities of the released feature extraction.
    """
    if granularity == "frame":
        return heard.tokens
    if granularity == "utterance":
        return heard.summary
    if not heard.has_class_token:
        raise ConfigError(NO_CLASS_TOKEN)
    return torch.cat([heard.summary[None], heard.tokens])


def embed_files(listener: Listener, names: Mapping[Path, Path], out: Path, job: EmbedJob, progress: bool = True) -> str:
    """Embed audio files; what `out` already holds of the same files is left as it is.

    Args:
        listener: the model.
        names: audio file -> name of its embedding, as of `output_names`.
        out: folder; or the file to write, by its suffix, for a single source file.
        job: what is made; another one in the same folder is refused.
        progress: whether to show a bar.

    Returns:
        one line on what was done.

    Raises:
        AudioError: no file is readable.
        ConfigError: the folder holds embeddings that were made otherwise, or of other files by these names.
    """
    single = out.suffix.lower() in (".npy", ".safetensors")
    if single and len(names) > 1:
        raise ConfigError(f"{out} is one file, but there are {len(names)} audio files; give a folder.")
    if job.granularity == "all" and listener.encoder.class_token is None:
        raise ConfigError(NO_CLASS_TOKEN)
    index = {} if single else _claim(out, job, names)
    skipped: dict[Path, str] = {}
    made = 0
    for file, name in tqdm(names.items(), unit="file", disable=not progress, desc="embed"):
        target = out if single else out / name
        try:
            entry = _entry(name, file)
            if index.get(entry["embedding"]) == entry and target.exists():
                continue
            audio = read_audio(file, listener.sample_rate, resample_along=listener.options.resample_along)
            heard = listener.listen(audio)
        except AudioError as error:
            skipped[file] = str(error)
            tqdm.write(f"skipped: {error}", file=sys.stderr)
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        write_embedding(target, embedding(heard, job.granularity), heard, job)
        made += 1
        if not single:
            _note(out / INDEX_FILE, entry)
    if len(skipped) == len(names):
        raise AudioError(f"none of the {len(names)} audio files is readable.")
    if not single:
        _tidy(out, names, skipped)
    return _summary(out, made, len(names) - len(skipped) - made, len(skipped))


def write_embedding(target: Path, values: Tensor, heard: Heard, job: EmbedJob) -> None:
    """Write one file, whole or not at all, float32."""
    values = values.float().cpu().contiguous()
    if job.format == "npy":
        write_whole(target, lambda part: _save_npy(part, values))
        return
    facts = {"granularity": job.granularity, "time_steps": str(heard.grid[0]), "bands": str(heard.grid[1])}
    write_whole(target, lambda part: save_tensors(part, {TENSOR_NAME: values}, facts))


def output_names(sources: Iterable[Path], suffix: str) -> dict[Path, Path]:
    """Audio file -> name of its embedding below the output folder.

    The place below the source folder, with another suffix; files that would then share a name keep theirs before it.

    Raises:
        AudioError: two files still share one.
    """
    places = {file: place for source in sources for file, place in _places(Path(source))}
    short = {file: place.with_suffix(f".{suffix}") for file, place in places.items()}
    taken = Counter(short.values())
    names = {
        file: name if taken[name] == 1 else places[file].with_name(f"{places[file].name}.{suffix}")
        for file, name in short.items()
    }
    owner: dict[Path, Path] = {}
    for file, name in names.items():
        if name in owner:
            raise AudioError(f"{owner[name]} and {file} would both be embedded as {name}; embed them apart.")
        owner[name] = file
    return names


def _places(source: Path) -> list[tuple[Path, Path]]:
    """Every audio file of a source, resolved, and its place below the source."""
    files = [file.resolve() for file in find_audio(source)]
    root = source.resolve() if source.is_dir() else Path(os.path.commonpath([file.parent for file in files]))
    return [(file, file.relative_to(root) if file.is_relative_to(root) else Path(file.name)) for file in files]


def _entry(name: Path, file: Path) -> dict[str, Any]:
    """What the index keeps of an embedding: whose it is, and by what a change of the file is seen."""
    try:
        facts = file.stat()
    except OSError:
        raise AudioError(f"cannot read {file}: there is no such file.") from None
    return {"embedding": str(name), "file": str(file), "size": facts.st_size, "time": facts.st_mtime_ns}


def _claim(folder: Path, job: EmbedJob, names: Mapping[Path, Path]) -> dict[str, dict[str, Any]]:
    """Note what is made in a folder, or refuse if something else is; the index of what it holds."""
    now = json.loads(json.dumps(asdict(job)))
    settings = folder / SETTINGS_FILE
    index = _read_index(folder / INDEX_FILE)
    if settings.exists() and index:
        try:
            before = dict(json.loads(settings.read_text()))
        except (TypeError, ValueError):
            raise ConfigError(f"{settings} is damaged; give another folder.") from None
        other = [f"{key} {before.get(key)}, not {value}" for key, value in now.items() if before.get(key) != value]
        if other:
            raise ConfigError(f"{folder} holds embeddings made otherwise ({'; '.join(other)}); give another folder.")
    for file, name in names.items():
        known = index.get(str(name), {}).get("file", str(file))
        if known != str(file):
            raise ConfigError(f"{folder / name} is the embedding of {known}, not of {file}; give another folder.")
    folder.mkdir(parents=True, exist_ok=True)
    write_text(settings, json.dumps(now, indent=2) + "\n")
    return index


def _read_index(file: Path) -> dict[str, dict[str, Any]]:
    """Embedding -> its entry; a line that a kill cut off is none."""
    lines = file.read_text().splitlines() if file.exists() else []
    index = {}
    for line in lines:
        try:
            entry = json.loads(line)
            index[entry["embedding"]] = entry
        except (KeyError, TypeError, ValueError):
            continue
    return index


def _summary(out: Path, made: int, there: int, skipped: int) -> str:
    line = f"{made} embedded in {out}" + (f", {there} were there" if there else "")
    return f"{line}; {skipped} skipped, see {out / SKIPPED_FILE}" if skipped else line


def _tidy(folder: Path, names: Mapping[Path, Path], skipped: Mapping[Path, str]) -> None:
    """Leave one line of each embedding in the index, and no embedding under a name that its sound had before."""
    lines = [json.dumps({"file": str(file), "reason": reason}) for file, reason in skipped.items()]
    write_text(folder / SKIPPED_FILE, "".join(f"{line}\n" for line in lines))
    index = _read_index(folder / INDEX_FILE)
    now = {str(file): str(name) for file, name in names.items()}
    kept = []
    for place, entry in sorted(index.items()):
        name = now.get(entry["file"], place)
        if name != place and Path(name).parent == Path(place).parent:  # another sound of its name has come since
            (folder / place).unlink(missing_ok=True)
        elif (folder / place).exists():
            kept.append(json.dumps(entry))
    write_text(folder / INDEX_FILE, "".join(f"{line}\n" for line in kept))


def _note(index: Path, entry: dict[str, Any]) -> None:
    with index.open("a") as opened:
        opened.write(json.dumps(entry) + "\n")


def _save_npy(part: Path, values: Tensor) -> None:
    with part.open("wb") as opened:
        np.save(opened, values.numpy())
