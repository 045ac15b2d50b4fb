"""Audio files -> files of embeddings: `asda embed`. What is done is not done again."""

import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from asda_core.audio import find_audio, read_audio
from asda_core.errors import AsdaError, AudioError, ConfigError
from asda_core.files import write_text, write_whole
from asda_core.inference.listening import Heard, Listener

Granularity = Literal["all", "frame", "utterance"]
Format = Literal["npy", "safetensors"]

SETTINGS_FILE = "embed.json"
SKIPPED_FILE = "skipped.jsonl"
TENSOR_NAME = "embedding"
"""Name of the one tensor in a safetensors file of an embedding."""


@dataclass(frozen=True)
class EmbedJob:
    """What is made of the files of a folder, as `embed.json` keeps it.

    Attributes:
        checkpoint: digest of the weights.
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
        raise ConfigError("granularity 'all' puts the class token first, but this model has none; take 'frame'.")
    return torch.cat([heard.summary[None], heard.tokens])


def embed_files(listener: Listener, sources: Sequence[Path], out: Path, job: EmbedJob, progress: bool = True) -> int:
    """Embed every audio file of the sources; files that `out` already holds are left as they are.

    Args:
        listener: the model.
        sources: folders, manifests or audio files.
        out: folder; or the file to write, by its suffix, for a single source file.
        job: what is made; another one in the same folder is refused.
        progress: whether to show a bar.

    Returns:
        how many embeddings `out` holds of these sources.

    Raises:
        AudioError: no file is readable; the sources hold two files of one name.
        ConfigError: the folder holds embeddings that were made otherwise.
    """
    single = out.suffix in (".npy", ".safetensors")
    names = output_names(sources, job.format)
    if single:
        if len(names) > 1:
            raise ConfigError(f"{out} is one file, but there are {len(names)} audio files; give a folder.")
        names = {file: Path(out.name) for file in names}
    folder = out.parent if single else out
    folder.mkdir(parents=True, exist_ok=True)
    if not single:
        _claim(folder, job)
    skipped: dict[Path, str] = {}
    for file, name in tqdm(names.items(), unit="file", disable=not progress, desc="embed"):
        target = folder / name
        if target.exists() and not single:
            continue
        try:
            audio = read_audio(file, listener.sample_rate, resample_along=listener.resample_along)
            heard = listener.listen(audio)
        except AudioError as error:
            skipped[file] = str(error)
            tqdm.write(f"skipped: {error}", file=sys.stderr)
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        write_embedding(target, embedding(heard, job.granularity), heard, job)
    if len(skipped) == len(names):
        first = next(iter(skipped.values()))
        raise AudioError(f"none of the {len(names)} audio files is readable. The first one: {first}")
    if not single:
        lines = [json.dumps({"file": str(file), "reason": reason}) for file, reason in skipped.items()]
        write_text(folder / SKIPPED_FILE, "".join(f"{line}\n" for line in lines))
    return len(names) - len(skipped)


def write_embedding(target: Path, values: Tensor, heard: Heard, job: EmbedJob) -> None:
    """Write one file, whole or not at all, float32."""
    values = values.float().cpu().contiguous()
    if job.format == "npy":
        write_whole(target, lambda part: _save_npy(part, values))
        return
    facts = {"granularity": job.granularity, "time_steps": str(heard.grid[0]), "bands": str(heard.grid[1])}
    write_whole(target, lambda part: save_file({TENSOR_NAME: values}, part, facts))


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
    files = find_audio(source)
    root = source if source.is_dir() else Path(os.path.commonpath([file.parent for file in files]))
    return [(file, file.relative_to(root)) for file in files]


def _claim(folder: Path, job: EmbedJob) -> None:
    """Note what is made here, or refuse if something else is."""
    now = json.loads(json.dumps(asdict(job)))
    settings = folder / SETTINGS_FILE
    if settings.exists():
        try:
            before = json.loads(settings.read_text())
        except ValueError:
            raise AsdaError(f"{settings} is damaged; give another folder.") from None
        other = [f"{key} {before.get(key)}, not {value}" for key, value in now.items() if before.get(key) != value]
        if other:
            raise ConfigError(f"{folder} holds embeddings made otherwise ({'; '.join(other)}); give another folder.")
    write_text(settings, json.dumps(now, indent=2) + "\n")


def _save_npy(part: Path, values: Tensor) -> None:
    with part.open("wb") as opened:
        np.save(opened, values.numpy())
