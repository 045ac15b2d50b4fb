"""A third party's mixer: every token hears the mean of all tokens that are not padding."""

from dataclasses import dataclass

from torch import nn

from asda_core.contracts import MixerSpec, hookimpl


@dataclass(frozen=True)
class MeanConfig:
    bias: bool = True


class MeanMixer(nn.Module):
    def __init__(self, config, dim):
        super().__init__()
        self.value, self.proj = nn.Linear(dim, dim, bias=config.bias), nn.Linear(dim, dim)

    def forward(self, tokens, layout):
        weight = layout.valid.to(tokens).unsqueeze(-1)
        mean = (self.value(tokens) * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True)
        return self.proj(tokens + mean)


@hookimpl
def asda_mixers():
    build = lambda config, context: MeanMixer(config, context.dim)  # noqa: E731
    return [MixerSpec("mean", MeanConfig, build, "mean of all tokens (sample)", "tests/sample_plugin")]
