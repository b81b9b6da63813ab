"""What goes through a region by itself, so that several values can be put side by side, or one be taken out."""

from __future__ import annotations

from weakref import WeakKeyDictionary

from torch import Tensor

from jetgraph.structure.dimensions import goes_alone
from jetgraph.structure.regions import Region

_ALONE: WeakKeyDictionary[Region, dict[tuple[int, int], bool]] = WeakKeyDictionary()
"""By region, the dimensions of its entry, and of its exit, that were asked for: following one takes milliseconds, once.
"""


def by_element(region: Region) -> bool:
    """Each element of the batch, the first dimension of the region's entry and of its exit, goes through the region by
    itself: several values can be put side by side.
    """
    shape = region.entry.meta["shape"]
    return bool(shape) and isinstance(shape[0], str) and _alone(region, 0)


def by_position(region: Region) -> bool:
    """Each index of the second dimension of the entry, which has three or more, goes through the region by itself to
    the exit's second dimension, and all of them alike: one can be taken out.
    """
    return len(region.entry.meta["shape"]) > 2 and _alone(region, 1)


def by_place(region: Region, places: int | Tensor) -> bool:
    """A place can be taken out before the region as well as behind it: where each row has one of its own, rows go
    through it by themselves too.
    """
    return by_position(region) and (isinstance(places, int) or _alone(region, 0))


def comes_alone(region: Region, places: int | Tensor) -> bool:
    """A place of the exit's second dimension is made of one of the entry alone, wherever that counts positions: so many
    heads may stand before them.
    """
    entry, exit = region.entry.meta["shape"], region.exit.meta["shape"]
    dims = [dim for dim, size in enumerate(entry) if len(exit) > 2 and size == exit[1]]
    if len(dims) != 1 or not _alone(region, dims[0], 1):
        return False
    return isinstance(places, int) or (dims[0] > 0 and _alone(region, 0))


def _alone(region: Region, dim: int, out: int | None = None) -> bool:
    known = _ALONE.setdefault(region, {})
    key = dim, dim if out is None else out
    if key not in known:
        known[key] = _follow(region, *key)
    return known[key]


def _follow(region: Region, dim: int, out: int) -> bool:
    alone = goes_alone(region.entry, region.nodes, region.exit, region.side, dim)
    if alone is None:
        return False
    factor, layout = alone
    if layout.dims[out : out + 1] == ():
        return False
    # Several values side by side make the batch longer, and it has to stay the slowest of what its dimension holds; one
    # position can be taken out only where the dimension holds nothing else.
    return layout.at(out)[:1] == (factor,) if out == 0 else layout.at(out) == (factor,)
