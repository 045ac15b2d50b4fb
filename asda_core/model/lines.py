"""Tokens sorted into the lines of the grid, for mixers that work along rows and columns.

A line is all tokens of one band ("bands": a row, along time) or of one time step ("times": a column, along frequency).
Where tokens were dropped, lines are packed to the left, so that the cost depends on the remaining tokens::

    grid          packed, axis "bands"     slots = tokens of the fullest line
    . 5 8 .       5 8                      place of a token = line * slots + slot
    1 . . .       1
    0 3 6 9       0 3 6 9
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from asda_core.layout import TokenLayout


@dataclass(frozen=True)
class LineTable:
    """Position of each token of a batch in a table of lines x slots.

    Attributes:
        table_index: (B, N) index of each token in the flattened table.
        token_index: (B, lines * slots) column of the token in each slot; N where the slot is empty.
        shape: (lines, slots).
        valid: (B, lines, slots) True where the slot holds a token that is not padding.
        all_valid: whether every slot holds a valid token.
        full_grid: (time steps, bands) if the tokens are the whole grid in raster order, so that views suffice;
            otherwise None.
        axis: "bands" or "times".
    """

    table_index: Int[Tensor, "batch tokens"]
    token_index: Int[Tensor, "batch places"]
    shape: tuple[int, int]
    valid: Bool[Tensor, "batch lines slots"]
    all_valid: bool
    full_grid: tuple[int, int] | None
    axis: Literal["bands", "times"]

    def to_table(self, values: Tensor) -> Tensor:
        """(B, H, N, ...) -> (B, H, lines, slots, ...); the values in empty slots are arbitrary."""
        if self.full_grid is not None:
            table = values.reshape(*values.shape[:2], *self.full_grid, *values.shape[3:])
            return table.transpose(2, 3) if self.axis == "bands" else table
        if not values.shape[2]:
            return values.new_zeros(*values.shape[:2], *self.shape, *values.shape[3:])
        rows = torch.arange(len(values), device=values.device)[:, None]
        gathered = values.transpose(1, 2)[rows, self.token_index.clamp(max=values.shape[2] - 1)]  # (B, places, H, ...)
        packed = gathered.transpose(1, 2)
        return packed.reshape(*packed.shape[:2], *self.shape, *packed.shape[3:])

    def from_table(self, table: Tensor) -> Tensor:
        """(B, H, lines, slots, ...) -> (B, H, N, ...), the inverse of `to_table`."""
        if self.full_grid is not None:
            return (table.transpose(2, 3) if self.axis == "bands" else table).flatten(2, 3)
        rows = torch.arange(len(table), device=table.device)[:, None]
        collected: Tensor = table.flatten(2, 3).transpose(1, 2)[rows, self.table_index].transpose(1, 2)
        return collected


def whole_grid(layout: TokenLayout) -> tuple[int, int] | None:
    """Return (time steps, bands) if the tokens are the whole grid in raster order without padding, otherwise None."""
    times, bands = layout.grid
    if layout.index.shape[1] != times * bands or layout.padding is not None:  # padding may repeat a place
        return None
    raster = torch.arange(times * bands, device=layout.index.device)
    return layout.grid if bool((layout.index == raster).all()) else None


def line_table(layout: TokenLayout, axis: Literal["bands", "times"]) -> LineTable:
    """Sort tokens into the lines of one axis.

    Args:
        layout: of patches only, without class tokens; any patches of the grid may be missing.
        axis: "bands" sorts by frequency band, "times" by time step.
    """
    times, bands = layout.grid
    number, across = (bands, times) if axis == "bands" else (times, bands)
    complete = layout.index.shape[1] == times * bands and layout.padding is None  # padding may repeat a place
    line = layout.band if axis == "bands" else layout.time
    if complete:
        slot, slots = (layout.time if axis == "bands" else layout.band), across
    else:
        member = torch.nn.functional.one_hot(line, number)  # (B, N, lines)
        slot = (member.cumsum(dim=1) - member).gather(2, line.unsqueeze(2)).squeeze(2)
        slots = int(slot.max()) + 1 if slot.numel() else 1
    place = line * slots + slot
    token = place.new_full((len(place), number * slots), place.shape[1])
    columns = torch.arange(place.shape[1], device=place.device).expand_as(place)
    token.scatter_(1, place, columns)
    shape = (number, slots)
    valid = torch.zeros_like(token, dtype=torch.bool).scatter_(1, place, layout.valid).reshape(-1, *shape)
    return LineTable(place, token, shape, valid, complete, whole_grid(layout), axis)
