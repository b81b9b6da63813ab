"""The largest values, in an order that does not depend on how they were computed: by value, then by lower index."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def row_top(values: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """The largest values of each row and where they are.

    Parameters
    ----------
    values
        Of shape [rows, columns].
    keep
        How many, no more than there are columns.

    Returns
    -------
    tuple[Tensor, Tensor]
        Values and columns, both [rows, keep], best first; of equal values the one in the lower column.

    >>> [part.tolist() for part in row_top(torch.tensor([[1.0, 3.0, 3.0, 3.0]]), 2)]
    [[[3.0, 3.0]], [[1, 2]]]
    """
    best, place = values.topk(keep, dim=1)
    last = best[:, -1:]
    # topk breaks ties at the border as it likes; in rows where there are any, they are chosen again by place.
    for row in ((values >= last).sum(1) > keep).nonzero()[:, 0].tolist():
        at = (values[row] >= last[row]).nonzero()[:, 0]
        order = values[row, at].sort(descending=True, stable=True).indices[:keep]
        place[row], best[row] = at[order], values[row, at[order]]
    place, order = place.sort(dim=1)
    best, order = best.gather(1, order).sort(dim=1, descending=True, stable=True)
    return best, place.gather(1, order)


class RunningTop:
    """The largest entries of a table whose rows come in blocks, in any order and each once.

    Parameters
    ----------
    keep
        How many.
    dtype
        Of the values.
    above
        Entries have to be larger than this.
    carried
        Number of other tables whose values at the same entries are kept too.
    """

    def __init__(
        self, keep: int, dtype: torch.dtype = torch.float64, above: float = -math.inf, carried: int = 0
    ) -> None:
        self.keep = keep
        self._above = above
        self.rows = torch.empty(0, dtype=torch.long)
        """The row of each entry that is held, best first; of equal values the lower row, then the lower column."""
        self.columns = torch.empty(0, dtype=torch.long)
        self.values = torch.empty(0, dtype=dtype)
        self.carried = torch.empty(0, carried, dtype=dtype)
        """What the other tables have there, [entries, tables]."""

    @property
    def held(self) -> tuple[Tensor, Tensor, Tensor]:
        """Rows, columns and values."""
        return self.rows, self.columns, self.values

    @held.setter
    def held(self, top: tuple[Tensor, Tensor, Tensor]) -> None:
        self.rows, self.columns, self.values = top

    @property
    def full(self) -> bool:
        """As many entries are held as are looked for."""
        return len(self.values) >= self.keep

    @property
    def bound(self) -> float:
        """The value that an entry has to reach to be among the top of what has been seen."""
        return float(self.values[-1]) if self.full else self._above

    def beaten(self, rows: Tensor, highest: Tensor) -> Tensor:
        """True where a row's upper bound rules it out of the top.

        Parameters
        ----------
        rows
            Numbers of rows [rows].
        highest
            What none of a row's values exceeds [rows].
        """
        if not self.full:
            return torch.zeros_like(rows, dtype=torch.bool)
        # A row that comes after the last entry that is held loses a tie with it.
        return (highest < self.bound) | ((highest == self.bound) & (rows > self.rows[-1]))

    def bounds(self, rows: Tensor, like: Tensor) -> Tensor:
        """What a value of each row has to exceed to be taken up: [rows], of the type and on the device of `like`."""
        bound = torch.full((len(rows),), self.bound, dtype=like.dtype, device=like.device)
        if self.full and bool((early := rows < self.rows[-1]).any()):
            # They come before the last one that is held, and win a tie with it.
            bound = torch.where(early.to(like.device), bound.nextafter(bound.new_tensor(-math.inf)), bound)
        return bound.clamp_min(self._above)

    def take(self, top: tuple[Tensor, Tensor, Tensor], carried: Tensor | None = None) -> None:
        """Take in what another one has held, of other rows."""
        rows, columns, values = (torch.cat(both) for both in zip(self.held, top, strict=True))
        carried = self.carried[:0] if carried is None else torch.cat([self.carried, carried])
        if not len(rows):
            return
        order = (rows * (int(columns.max()) + 1) + columns).argsort()
        order = order[values[order].sort(descending=True, stable=True).indices[: self.keep]]
        self.held = rows[order], columns[order], values[order]
        self.carried = carried[order] if len(carried) else carried

    def add(self, rows: Tensor, values: Tensor, *others: Tensor) -> None:
        """Take in a block.

        Parameters
        ----------
        rows
            Numbers of the rows [rows], on the CPU.
        values
            Of shape [rows, columns].
        others
            The same rows of the other tables.
        """
        bounds = self.bounds(rows, values)[:, None]
        if not self.full and values.numel() > self.keep:
            # No more than are looked for, and their ties.
            least = values.reshape(-1).topk(self.keep).values[-1]
            chosen = ((values >= least) & (values > bounds)).nonzero()
        else:
            chosen = (values > bounds).nonzero()
        fresh, *carried = (table[chosen[:, 0], chosen[:, 1]].cpu() for table in (values, *others))
        chosen = chosen.cpu()
        number = torch.cat([self.rows, rows[chosen[:, 0]]])
        columns = torch.cat([self.columns, chosen[:, 1]])
        both = torch.cat([self.values, fresh])
        order = (number * values.shape[1] + columns).argsort()
        order = order[both[order].sort(descending=True, stable=True).indices[: self.keep]]
        self.held = number[order], columns[order], both[order]
        if carried:
            self.carried = torch.cat([self.carried, torch.stack(carried, dim=1)])[order]
