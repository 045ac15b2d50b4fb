"""Masked patches: identify and reconstruct the hidden patches of a clip from the encoder's outputs at their places.

    features --> patches --> some replaced by a mask token --> encoder --+--> predict --> which patch is it?   (InfoNCE)
                    |                                                    +--> paint ----> its values           (MSE)
                    +--> values of the hidden patches = targets ------------------^

**Source**: SSAST (Gong et al. 2022), sections 2.2 and 2.3, released code; SSAMBA (Shams et al. 2024) uses it unchanged.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from asda_core.contracts import Losses, ObjectiveContext, ObjectiveSpec, hookimpl
from asda_core.devices import to_device
from asda_core.errors import ConfigError
from asda_core.layout import gather_tokens
from asda_core.model.encoder import Encoder
from asda_core.model.patches import patch_values

DRAWS_PER_PATCH = 6
"""Clusters are drawn until they would cover the grid about six times; about 1 % is never covered, and hidden last."""
MIN_MASKED = 2
"""Fewest hidden patches per clip; with fewer there is nothing to discriminate."""
CLUSTER_SIDES = (3, 5)
"""Smallest and largest side of a cluster in patches. **Source**: SSAST, released code."""
PUBLISHED_SHARE = 400 / 512
"""Share of patches hidden: 400 of the 512 in 10 s (SSAMBA: 250, 300 or 400)."""


@dataclass(frozen=True)
class MaskedPatchConfig:
    """Settings of masked-patch modelling; the defaults are SSAST's.

    Attributes:
        masked_share: share of the patches that are hidden.
        pattern: "clusters" of neighbouring patches (the patch models), or "uniform" (the frame models).
        cluster_sides: smallest and largest side of a cluster, drawn once per clip; no effect with "uniform".
        biased_clusters: draws clusters as the release does: the first patch is never hidden, the last hardly ever;
            clusters only extend to higher bands and later times and wrap around the end into the next band, so that the
            lowest band is hidden half as often as the middle.
        normalise_over: "predictions" asks, for each target, which prediction is its own, as released; "targets" asks,
            for each prediction, which target is its own, as in equation 1 of the paper.
        discriminative_weight, generative_weight: of the two losses; a loss of weight 0 is not computed.
        one_mask: whether both losses share one mask and one forward pass; the release uses a mask and a pass for each,
            which costs twice as much.
    """

    masked_share: float = PUBLISHED_SHARE
    pattern: Literal["clusters", "uniform"] = "clusters"
    cluster_sides: tuple[int, int] = CLUSTER_SIDES
    biased_clusters: bool = False
    normalise_over: Literal["predictions", "targets"] = "predictions"
    discriminative_weight: float = 1.0
    generative_weight: float = 10.0
    one_mask: bool = False

    def __post_init__(self) -> None:
        low, high = self.cluster_sides
        weights = (self.discriminative_weight, self.generative_weight)
        for valid, message in (
            (0 < self.masked_share < 1, f"masked_share must lie between 0 and 1, not {self.masked_share}."),
            (1 <= low <= high, f"cluster_sides must be two sides, smallest first, not {self.cluster_sides}."),
            (
                min(weights) >= 0 and max(weights) > 0,
                f"discriminative_weight and generative_weight must not be negative or both 0, not {weights}.",
            ),
        ):
            if not valid:
                raise ConfigError(f"objective.options.{message}")


class MaskedPatch(nn.Module):
    """Mask token, two heads and the two losses."""

    def __init__(self, config: MaskedPatchConfig, context: ObjectiveContext) -> None:
        super().__init__()
        shape = context.encoder.config
        if (shape.step_frames, shape.step_bins) != (shape.patch_frames, shape.patch_bins):
            raise ConfigError(
                "masked_patch requires patches that do not overlap (encoder.stride_frames and stride_bins null): "
                "otherwise a hidden patch is partly visible in its neighbours."
            )
        self.config = config
        self.mask_token = nn.Parameter(torch.empty(1, 1, shape.dim))
        nn.init.xavier_normal_(self.mask_token)
        values = shape.patch_frames * shape.patch_bins
        self.predict, self.paint = (_head(shape.dim, values) for _ in range(2))

    def loss(
        self,
        encoder: Encoder,
        features: Float[Tensor, "batch bins frames"],
        generator: torch.Generator,
    ) -> Losses:
        """Draw the masks and compute `loss_for`.

        Raises:
            ConfigError: the clips hold too few patches.
        """
        grid = encoder.config.grid(*features.shape[1:])
        if grid[0] * grid[1] <= MIN_MASKED:
            raise ConfigError(f"clips of {features.shape[2]} frames contain fewer than {MIN_MASKED + 1} patches.")
        masks = [draw_masked(grid, len(features), self.config, generator) for _ in range(2 - self.config.one_mask)]
        on_device = [to_device(mask, features.device) for mask in masks]
        return self.loss_for(encoder, features, on_device[0], on_device[-1])

    def loss_for(
        self,
        encoder: Encoder,
        features: Float[Tensor, "batch bins frames"],
        discriminative_columns: Int[Tensor, "batch masked"],
        generative_columns: Int[Tensor, "batch masked2"],
    ) -> Losses:
        """Compute the losses for given masks.

        Args:
            encoder: the model that is trained.
            features: a batch of clips.
            discriminative_columns: columns of the patches that are hidden in the discriminative pass, in any order.
            generative_columns: likewise in the generative pass; passing the same tensor shares the pass.
        """
        values = patch_values(features, encoder.config)
        total = values.new_zeros(())
        parts: dict[str, Tensor] = {}
        if self.config.discriminative_weight:
            outputs = self._encoded(encoder, features, discriminative_columns)
            loss, accuracy = info_nce(
                gather_tokens(values, discriminative_columns), self.predict(outputs), self.config.normalise_over
            )
            total = total + self.config.discriminative_weight * loss
            parts |= {"discriminative": loss.detach(), "accuracy": accuracy}
        if self.config.generative_weight:
            if generative_columns is not discriminative_columns or not self.config.discriminative_weight:
                outputs = self._encoded(encoder, features, generative_columns)
            loss = (self.paint(outputs).float() - gather_tokens(values, generative_columns)).square().mean()
            total = total + self.config.generative_weight * loss
            parts["generative"] = loss.detach()
        return Losses(total, parts)

    def after_step(self, encoder: Encoder, step: int) -> None:
        """Do nothing: there is no teacher to update."""

    def _encoded(self, encoder: Encoder, features: Tensor, masked: Tensor) -> Tensor:
        """Return the encoder's outputs at the columns (B, M) whose patches are hidden."""
        tokens, layout = encoder.embed(features)
        hidden = torch.zeros_like(layout.index, dtype=torch.bool).scatter(1, masked, True)
        blank = (self.mask_token + encoder.patches.positions(layout.grid)).to(tokens)
        encoded = encoder.encode(torch.where(hidden.unsqueeze(-1), blank, tokens), layout, layers=False)
        return gather_tokens(encoded.tokens, masked)


def info_nce(
    targets: Float[Tensor, "batch masked values"],
    predictions: Float[Tensor, "batch masked values"],
    normalise_over: Literal["predictions", "targets"],
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """InfoNCE over the hidden patches of each clip, with dot products and no temperature; and the accuracy.

    The accuracy is the share of predictions whose own target has the highest (normalised) score among the targets, as
    the release logs it; with "predictions" this is not the top-1 accuracy of the trained task.

    **Source**: SSAST, equation 1 ("targets"); released code ("predictions").
    """
    with torch.autocast(targets.device.type, enabled=False):
        scores = targets.float() @ predictions.float().transpose(1, 2)  # (B, M, M): targets x predictions
    log_probs = scores.log_softmax(dim=2 if normalise_over == "predictions" else 1)
    correct = log_probs.detach().argmax(dim=1) == torch.arange(scores.shape[2], device=scores.device)
    return -log_probs.diagonal(dim1=1, dim2=2).mean(), correct.float().mean()


def draw_masked(
    grid: tuple[int, int], num_clips: int, config: MaskedPatchConfig, generator: torch.Generator
) -> Int[Tensor, "clips masked"]:
    """Draw the columns of the hidden patches, in raster order; equally many in every clip.

    Clusters are placed at random until enough is covered; the surplus of the last one is dropped at random. They may
    extend beyond the grid, so that every patch is hidden equally often. `biased_clusters` differs in both.
    """
    times, bands = grid
    size = times * bands
    masked = min(size - 1, max(MIN_MASKED, round(size * config.masked_share)))
    uniform = torch.rand(num_clips, size, generator=generator)
    if config.pattern == "uniform":
        return uniform.topk(masked, dim=1).indices.sort(dim=1).values
    covered = _covered(grid, num_clips, config, generator)
    if not config.biased_clusters:
        return (covered + uniform).topk(masked, dim=1, largest=False).indices.sort(dim=1).values
    counts = covered.sort(dim=1).values[:, masked : masked + 1]  # the draw at which enough is covered
    columns = torch.arange(size)
    by_release = columns % bands * times + columns // bands  # the release's index, band by band: highest are dropped
    return ((covered > counts) * size + by_release).argsort(dim=1)[:, :masked].sort(dim=1).values


def _covered(
    grid: tuple[int, int], num_clips: int, config: MaskedPatchConfig, generator: torch.Generator
) -> Int[Tensor, "clips patches"]:
    """Return the draw at which a cluster first covers each patch; the number of draws if none does."""
    times, bands = grid
    low, high = config.cluster_sides
    draws = -(-DRAWS_PER_PATCH * times * bands // low**2)
    side = torch.randint(low, high + 1, (num_clips, 1, 1), generator=generator)
    uniform = torch.rand(2, num_clips, draws, 1, generator=generator)
    across, up = (cells.flatten() for cells in torch.meshgrid(torch.arange(high), torch.arange(high), indexing="ij"))
    inside = (across < side) & (up < side)  # (B, 1, high * high)
    if config.biased_clusters:
        number = (uniform[0] * times * bands).long() + times * up + across
        inside = inside & (number > 0) & (number < times * bands)
        column = number % times * bands + number // times
    else:
        time, band = (
            (uniform[axis] * (length + side - 1)).long() - (side - 1) + offset
            for axis, length, offset in ((0, times, across), (1, bands, up))
        )
        inside = inside & (time >= 0) & (time < times) & (band >= 0) & (band < bands)
        column = time * bands + band
    outside = times * bands  # an extra cell for what is outside
    column = torch.where(inside, column, outside).flatten(1)
    draw = torch.arange(draws).repeat_interleave(high**2).expand_as(column)
    covered = torch.full((num_clips, outside + 1), draws).scatter_reduce(1, column, draw, "amin")
    return covered[:, :outside]


def _head(dim: int, values: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, values))


def build(config: MaskedPatchConfig, context: ObjectiveContext) -> MaskedPatch:
    """Build the objective from its options and the encoder."""
    return MaskedPatch(config, context)


@hookimpl
def asda_objectives() -> Iterable[ObjectiveSpec[MaskedPatchConfig]]:
    """Offer `masked_patch`."""
    return [
        ObjectiveSpec(
            name="masked_patch",
            config=MaskedPatchConfig,
            build=build,
            summary="identify the hidden patches of a clip (InfoNCE) and reconstruct them (MSE)",
            source="SSAST (Gong et al. 2022), eq. 1-3, released code; SSAMBA (Shams et al. 2024)",
            released={"biased_clusters": True},
        )
    ]
