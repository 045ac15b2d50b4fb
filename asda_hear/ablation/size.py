"""Size of the model of a cell."""

from typing import Any

from asda_core.assemble import adapt, build_encoder, build_front_end
from asda_core.catalog import Catalog
from asda_core.config import RunConfig
from asda_core.devices import building
from asda_core.inference.framing import num_frames
from asda_core.model.flops import GIGA, encoder_flops


def model_size(catalog: Catalog, config: RunConfig) -> dict[str, Any]:
    """Return encoder parameters, those that train, and 10^9 operations of a forward pass over one training clip."""
    with building():
        front_end = build_front_end(catalog, config.front_end, config.compat)
        encoder = build_encoder(catalog, config.encoder, config.compat).eval()
        adapt(catalog, config, encoder)
    frames = num_frames(round(config.data.clip_seconds * front_end.sample_rate), front_end)
    return {
        "parameters": sum(parameter.numel() for parameter in encoder.parameters()),
        "trained": sum(parameter.numel() for parameter in encoder.parameters() if parameter.requires_grad),
        "gflops": encoder_flops(encoder, int(front_end.num_bins), frames) / GIGA,
    }
