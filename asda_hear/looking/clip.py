"""The model to inspect, and the excerpt of a clip given to it, prepared as the clips were in training."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from asda_core.audio.feature_padding import padded_features
from asda_core.audio.reading import crop_or_pad, read_audio
from asda_core.catalog import Catalog, installed_catalog
from asda_core.config import Padding
from asda_core.contracts import FrontEnd
from asda_core.errors import ConfigError
from asda_core.inference.clip_encoder import check_audio
from asda_core.inference.framing import num_frames
from asda_core.log_mel import LogMel
from asda_core.model.encoder import Encoder
from asda_core.model.patches import patch_values
from asda_core.system.paths import model_name
from asda_hear.model_loading import open_encoder
from asda_hear.names import LOG_MEL

SILENCE_DB = 60.0
"""Level in dB below the loudest patch of its excerpt from which a patch is silent. Our choice: the dynamic range with
which a spectrogram is usually drawn, and far above the quantisation of 16 bits (-96 dB)."""


@dataclass(frozen=True)
class OpenModel:
    """A model opened for inspection.

    Attributes:
        name: display name.
        front_end: on the CPU like the encoder, both in evaluation mode.
        encoder: its mixers may or may not expose maps; that is only checked when maps are computed.
        clip_seconds, padding: of its training clips.
    """

    name: str
    front_end: FrontEnd
    encoder: Encoder
    clip_seconds: float
    padding: Padding = "silence"

    @property
    def sample_rate(self) -> int:
        """Sample rate of its input audio, in Hz."""
        return self.front_end.sample_rate


@dataclass(frozen=True)
class Excerpt:
    """The audio given to a model.

    Attributes:
        audio: waveform exactly as long as a training clip, or as one patch if that is longer.
        num_file_samples: number of samples from the file; the rest is silence.
        start_seconds: start in the file.
    """

    audio: Float[Tensor, " samples"]
    num_file_samples: int
    start_seconds: float = 0.0

    @property
    def unpadded_audio(self) -> Float[Tensor, " unpadded"]:
        """The samples from the file, without the padding."""
        return self.audio[: self.num_file_samples]


def open_model(path: str | Path, catalog: Catalog | None = None, name: str = "") -> OpenModel:
    """Open a checkpoint of any kind, or a config for random weights drawn from its seed.

    Args:
        path: as for `asda_core.official.reading.read_model`, or a config, or the name of one in the package.
        catalog: plugins to use; by default those installed.
        name: display name; by default that of the file or its folder.

    Raises:
        CheckpointError: the checkpoint is missing, damaged, rejected, or needs a plugin that is not installed.
        ConfigError: the config is invalid, or the path is the baseline without a model.
    """
    if os.fspath(path) == LOG_MEL and not Path(path).exists():
        raise ConfigError(f"{LOG_MEL!r} is the baseline without a model and has no attention maps.")
    opened = open_encoder(path, catalog or installed_catalog())
    data = opened.config.data
    return OpenModel(name or model_name(opened.file), opened.front_end, opened.encoder, data.clip_seconds, data.padding)


def read_excerpt(file: str | Path, model: OpenModel, start_seconds: float = 0.0) -> Excerpt:
    """Read an excerpt of a file, as long as the model's training clips; if the file ends earlier, silence is appended.

    Raises:
        AudioError: the file cannot be used, or ends before the excerpt begins.
        ConfigError: the start is negative or not finite.
    """
    if not 0 <= start_seconds < float("inf"):
        raise ConfigError(f"--at must be finite and at least 0 s, not {start_seconds:g}.")
    seconds = model.clip_seconds
    return make_excerpt(read_audio(file, model.sample_rate, start_seconds, seconds), model, start_seconds)


def make_excerpt(audio: Float[Tensor, " any"], model: OpenModel, start_seconds: float = 0.0) -> Excerpt:
    """Crop or pad audio to the length of the model's training clips.

    Raises:
        AudioError: the audio has no samples, NaN, or more than one channel.
    """
    samples = check_audio(audio)
    num_samples = max(round(model.clip_seconds * model.sample_rate), _min_samples(model))
    return Excerpt(crop_or_pad(samples, num_samples), min(len(samples), num_samples), start_seconds)


@torch.inference_mode()
def input_features(model: OpenModel, excerpt: Excerpt) -> Float[Tensor, "one bins frames"]:
    """Input features of the encoder, padded as in the model's training, up to the last whole patch."""
    lengths = torch.tensor([excerpt.num_file_samples])
    features = padded_features(model.front_end, excerpt.audio[None], lengths, model.padding)
    config = model.encoder.config
    steps = config.grid(features.shape[1], features.shape[2])[0]
    return features[:, :, : (steps - 1) * config.step_frames + config.patch_frames]


@torch.inference_mode()
def mel_energies(model: OpenModel, audio: Float[Tensor, " samples"]) -> Float[Tensor, "bins frames"]:
    """Unnormalised energy in every mel band and frame, at least the floor that silence has in the model's features.

    Raises:
        ConfigError: the model's features are not mel bands.
    """
    front_end = model.front_end
    if not isinstance(front_end, LogMel):
        raise ConfigError(
            f"{model.name} uses the front end {type(front_end).__name__}, whose bins are not mel bands: it is unknown "
            "in which patches sound or noise is louder. Use a model with the front end 'log_mel'."
        )
    normalised: Tensor = front_end(audio[None])[0]
    return (normalised * 2 * front_end.std + front_end.mean).exp()


def patch_energies(model: OpenModel, audio: Float[Tensor, " samples"]) -> Float[Tensor, " patches"]:
    """Mean mel energy of each patch, in raster order; raises as `mel_energies` does."""
    return patch_values(mel_energies(model, audio)[None], model.encoder.config)[0].mean(dim=1)


def silent_patches(model: OpenModel, excerpt: Excerpt) -> Bool[Tensor, " patches"]:
    """Patches at least `SILENCE_DB` below the loudest one of the excerpt, or at the floor; raises as `mel_energies`."""
    energies = patch_energies(model, excerpt.audio)
    floor = patch_energies(model, torch.zeros_like(excerpt.audio))
    return (energies <= energies.max() * 10 ** (-SILENCE_DB / 10)) | (energies <= floor)


def _min_samples(model: OpenModel) -> int:
    """Number of samples in one whole patch."""
    front_end, frames = model.front_end, model.encoder.config.patch_frames
    num_samples = (frames - 1) * front_end.hop_samples + front_end.window_samples
    assert num_frames(num_samples, front_end) == frames
    return num_samples
