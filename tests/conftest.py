"""Shared fixtures: an explicit catalog, so that no installed plugin can change a result; shape checks; no network."""

import os
import socket
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from jaxtyping import install_import_hook

torch.set_num_threads(int(os.environ.setdefault("OMP_NUM_THREADS", "1")))  # the last digits change with it
PACKAGES = ("asda_core", "asda_hear", "asda_plugins")

with install_import_hook(PACKAGES, "beartype.beartype"):
    import asda_plugins.adapter_bias_only as adapter_bias_only
    import asda_plugins.adapter_bottleneck as adapter_bottleneck
    import asda_plugins.adapter_convolution as adapter_convolution
    import asda_plugins.adapter_low_rank as adapter_low_rank
    import asda_plugins.adapter_prompt as adapter_prompt
    import asda_plugins.front_end_mfcc as front_end_mfcc
    import asda_plugins.mixer_differential as mixer_differential
    import asda_plugins.mixer_differential_v1 as mixer_differential_v1
    import asda_plugins.mixer_differential_v2 as mixer_differential_v2
    import asda_plugins.mixer_dint as mixer_dint
    import asda_plugins.mixer_frequency_time as mixer_frequency_time
    import asda_plugins.mixer_grouped_differential as mixer_grouped_differential
    import asda_plugins.mixer_mamba as mixer_mamba
    import asda_plugins.mixer_standard as mixer_standard
    import asda_plugins.mixer_two_simplicial as mixer_two_simplicial
    import asda_plugins.objective_altered_frames as objective_altered_frames
    import asda_plugins.objective_masked_patch as objective_masked_patch

    import asda_core.log_mel as log_mel
    import asda_core.pretrain.latent_regression as latent_regression
    from asda_core.catalog import Catalog, load_catalog
    from asda_core.config import RunConfig
    from asda_core.config_io import parse

BUILT_IN = (
    log_mel,
    latent_regression,
    mixer_standard,
    mixer_differential,
    mixer_differential_v1,
    mixer_differential_v2,
    mixer_dint,
    mixer_grouped_differential,
    mixer_frequency_time,
    mixer_mamba,
    mixer_two_simplicial,
    objective_masked_patch,
    objective_altered_frames,
    front_end_mfcc,
    adapter_prompt,
    adapter_low_rank,
    adapter_convolution,
    adapter_bottleneck,
    adapter_bias_only,
)
SHARED = Path(__file__).parents[2] / "shared"

TINY = {
    "encoder": {"dim": 32, "depth": 2, "num_heads": 2},
    "objective": {
        "name": "latent_regression",
        "options": {
            "clones": 2,
            "decoder": {"dim": 32, "layers": 2, "groups": 4},
            "teacher": {"decay_start": 0.9, "decay_end": 0.99, "anneal_steps": 10},
        },
    },
    "optimizer": {"peak_lr": 1e-3, "warmup_steps": 2},
    "data": {"clip_seconds": 0.64, "batch_size": 2},
    "steps": 6,
    "checkpoint_every": 2,
    "log_every": 1,
}
"""A run that takes a second."""


@pytest.fixture(scope="session")
def catalog() -> Catalog:
    return load_catalog(*BUILT_IN, installed=False)


@pytest.fixture(autouse=True)
def no_hear_tools(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test without the mark `heareval` must pass without the HEAR tools: here it does not find them either."""
    if request.node.get_closest_marker("heareval") is None:
        for tool in ("heareval", "hearvalidator"):
            monkeypatch.setitem(sys.modules, tool, None)


@pytest.fixture
def tiny() -> RunConfig:
    return parse(RunConfig, TINY)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def audio_folder(tmp_path: Path) -> Path:
    """Five sounds: wav, flac and ogg at three rates, mono and stereo, from 0.3 to 2 s."""
    folder = tmp_path / "audio"
    folder.mkdir()
    noise = np.random.default_rng(0)
    for number, (suffix, rate, channels, seconds) in enumerate(
        [
            ("wav", 16_000, 1, 1.0),
            ("flac", 44_100, 2, 0.7),
            ("ogg", 22_050, 1, 2.0),
            ("wav", 8_000, 1, 0.3),
            ("wav", 48_000, 2, 1.3),
        ]
    ):
        time = np.arange(int(seconds * rate)) / rate
        tone = 0.3 * np.sin(2 * np.pi * 220 * (number + 1) * time)[:, None] + 0.05 * noise.normal(
            size=(len(time), channels)
        )
        soundfile.write(folder / f"sound{number}.{suffix}", tone, rate)
    return folder


@pytest.fixture(autouse=True)
def small_steps_are_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """As those of large models are, so that tests of small ones hold for them."""
    monkeypatch.setattr("asda_core.model.recomputation.MIN_VALUES", 0)


@pytest.fixture(autouse=True)
def commands_are_run_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of streams, which else wait for a server."""
    monkeypatch.setattr("asda_core.data.shard_streams.RETRY_SECONDS", 0.0)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening a connection to another machine is an error."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: object) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and isinstance(address, tuple):
            assert str(address[0]) in ("127.0.0.1", "localhost", "::1"), f"a test opened a connection to {address}"
        connect(self, address)  # type: ignore[arg-type]

    monkeypatch.setattr(socket.socket, "connect", guarded)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `shared` need real audio that a plain clone does not have."""
    if not SHARED.is_dir():
        for item in items:
            if item.get_closest_marker("shared"):
                item.add_marker(pytest.mark.skip(reason="needs the folder ../shared with real audio"))
