"""TokenLayout: the position of each token in the time-frequency grid. It is passed along with the tokens."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

CLASS_TOKEN = -1
"""Raster index of the class token, which has no position in the grid."""


@dataclass(frozen=True)
class TokenLayout:
    """Positions of the tokens of a batch in the time-frequency grid.

    Patches are numbered in raster order, time first::

        index = time * num_bands + band          band  2 | 2 5 8 ...
                                                       1 | 1 4 7 ...
                                                       0 | 0 3 6 ...
                                                         +---------- time

    Attributes:
        index: (B, N) raster index of each token, `CLASS_TOKEN` for the class token.
        grid: (number of time steps, number of frequency bands) of the whole grid.
        padding: (B, N) True at padding tokens, which must influence nothing; None if there are none.
        class_column: column of the (first) class token, the same in every clip; None if there is none.
        class_count: number of adjacent class tokens. A prompt counts as one: it has no position in the grid.
    """

    index: Int[Tensor, "batch tokens"]
    grid: tuple[int, int]
    padding: Bool[Tensor, "batch tokens"] | None = None
    class_column: int | None = None
    class_count: int = 1

    @staticmethod
    def full(batch: int, grid: tuple[int, int], device: torch.device | None = None) -> "TokenLayout":
        """All patches of a grid in raster order, no class token, no padding."""
        index = torch.arange(grid[0] * grid[1], device=device)
        return TokenLayout(index.expand(batch, -1), grid)

    @property
    def is_class(self) -> Bool[Tensor, "batch tokens"]:
        """True at the class token."""
        return self.index == CLASS_TOKEN

    @property
    def time(self) -> Int[Tensor, "batch tokens"]:
        """Time step of each token; -1 for the class token."""
        return torch.where(self.is_class, CLASS_TOKEN, self.index // self.grid[1])

    @property
    def band(self) -> Int[Tensor, "batch tokens"]:
        """Frequency band of each token; -1 for the class token."""
        return torch.where(self.is_class, CLASS_TOKEN, self.index % self.grid[1])

    @property
    def valid(self) -> Bool[Tensor, "batch tokens"]:
        """True at tokens that are not padding."""
        if self.padding is None:
            return torch.ones_like(self.index, dtype=torch.bool)
        return ~self.padding

    def select(self, rows: Int[Tensor, "clones"], columns: Int[Tensor, "clones kept"]) -> "TokenLayout":
        """The layout of selected tokens, before a class token joins.

        Args:
            rows: which clip each new row comes from.
            columns: which of its tokens are kept, per new row.
        """
        index = self.index[rows].gather(1, columns)
        padding = None if self.padding is None else self.padding[rows].gather(1, columns)
        return TokenLayout(index, self.grid, padding)

    def with_class_token(self, column: int, count: int = 1) -> "TokenLayout":
        """The layout with `count` class tokens inserted at `column`, adjacent to any existing ones."""
        num_existing = 0 if self.class_column is None else self.class_count
        first = column if self.class_column is None else min(column, self.class_column)
        assert self.class_column is None or column in (first, first + num_existing), "class tokens must be adjacent"
        index = insert_column(self.index, self.index.new_full((len(self.index), count), CLASS_TOKEN), column)
        padding = self.padding
        if padding is not None:
            padding = insert_column(padding, padding.new_zeros(len(index), count), column)
        return replace(self, index=index, padding=padding, class_column=first, class_count=num_existing + count)

    def without_class_token(self) -> "TokenLayout":
        """The layout without the class tokens; itself if there are none."""
        if self.class_column is None:
            return self
        index = self.without_class(self.index)
        padding = None if self.padding is None else self.without_class(self.padding)
        return replace(self, index=index, padding=padding, class_column=None, class_count=1)

    def without_class(self, values: Tensor, axis: int = 1) -> Tensor:
        """`values` (B, N, ...), with tokens along `axis`, without those of the class tokens."""
        if self.class_column is None:
            return values
        after = self.class_column + self.class_count
        rest = values.narrow(axis, after, values.shape[axis] - after)
        return torch.cat([values.narrow(axis, 0, self.class_column), rest], dim=axis)

    def only_class(self, values: Tensor, axis: int = 1) -> Tensor:
        """`values` of the class tokens alone; empty along `axis` if there are none."""
        if self.class_column is None:
            return values.narrow(axis, 0, 0)
        return values.narrow(axis, self.class_column, self.class_count)

    def with_class(self, patches: Tensor, class_tokens: Tensor, axis: int = 1) -> Tensor:
        """Recombine the values of the patches and of the class tokens."""
        column = self.class_column or 0
        rest = patches.narrow(axis, column, patches.shape[axis] - column)
        return torch.cat([patches.narrow(axis, 0, column), class_tokens, rest], dim=axis)

    def reversed(self) -> "TokenLayout":
        """The layout of the reversed sequence."""
        padding = None if self.padding is None else self.padding.flip(1)
        column = self.class_column
        if column is not None:
            column = self.index.shape[1] - column - self.class_count
        return replace(self, index=self.index.flip(1), padding=padding, class_column=column)

    def frequency_order(self) -> Int[Tensor, "batch tokens"]:
        """Columns of the patches, sorted by band and within a band by time step."""
        rank: Tensor = self.band * self.grid[0] + self.time
        return rank.argsort(dim=1, stable=True)


def mean_over_valid(values: Float[Tensor, "batch *heads tokens width"], layout: TokenLayout) -> Tensor:
    """Mean (batch, *heads, width) over the tokens that are not padding."""
    if layout.padding is None:
        return values.mean(dim=-2)
    valid = layout.valid.to(values)
    weight = valid.view(len(valid), *[1] * (values.ndim - 3), valid.shape[1], 1)
    return (values * weight).sum(dim=-2) / weight.sum(dim=-2).clamp(min=1)


def insert_column(values: Tensor, new: Tensor, column: int) -> Tensor:
    """Insert `new` (B, n, ...) at `column` of `values` (B, N, ...)."""
    return torch.cat([values[:, :column], new, values[:, column:]], dim=1)


def gather_tokens(
    tokens: Float[Tensor, "batch tokens dim"], columns: Int[Tensor, "batch n"]
) -> Float[Tensor, "batch n dim"]:
    """Select tokens by column, with separate columns for each clip."""
    rows = torch.arange(len(tokens), device=tokens.device).unsqueeze(1)
    return tokens[rows, columns]  # copies whole tokens, where `gather` copies element by element
