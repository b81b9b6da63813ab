"""Sizes, the factors of which dimensions are laid_out, and layouts: what makes up each dimension of a value."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import sympy
import torch
from torch import fx

from jetgraph.algebra.sizes import names

aten = torch.ops.aten


@dataclass(frozen=True, slots=True)
class Size:
    """A whole number times symbols, such as 4 · batch; a sum or a quotient of symbols counts as one symbol."""

    number: int
    symbols: tuple[str, ...] = ()

    @staticmethod
    @cache
    def of(value: int | str | Size) -> Size:
        """Read from a shape: `4*batch`."""
        if isinstance(value, Size):
            return value
        if isinstance(value, int):
            return Size(value)
        # `names` refuses what is no formula of sizes, for sympy would run it.
        symbols = {name: sympy.Symbol(name) for name in names(value)}
        formula: Any = sympy.parse_expr(value, symbols)
        number, symbols = 1, []
        powers: Any = sympy.factor_terms(formula).as_powers_dict()
        for base, power in powers.items():
            if not (power.is_Integer and power > 0) or (base.is_number and not base.is_Integer):
                return Size(1, (value,))
            if base.is_Integer:
                number *= int(base**power)
            else:
                symbols += [str(base)] * int(power)
        return Size(number, tuple(sorted(symbols)))

    def over(self, other: Size) -> Size | None:
        """The quotient, if it is a size."""
        left = list(self.symbols)
        for symbol in other.symbols:
            if symbol not in left:
                return None
            left.remove(symbol)
        if not other.number or self.number % other.number:
            return None
        return Size(self.number // other.number, tuple(left))


class Factor:
    """An index that makes up a dimension, or a part of one; known by identity."""

    def __init__(self, size: Size, cut_from: tuple[Factor, ...] = ()) -> None:
        self.size = size
        self.cut_from = cut_from
        """What it is a slice of, or holds beside other values."""
        self._parts: tuple[Factor, ...] = ()

    def split(self, outer: Size) -> tuple[Factor, Factor]:
        """In two, wherever it occurs."""
        inner = self.size.over(outer)
        assert inner is not None
        assert not self._parts
        self._parts = Factor(outer, self.cut_from), Factor(inner, self.cut_from)
        return self._parts

    def leaves(self) -> tuple[Factor, ...]:
        """What it is made of now."""
        return tuple(leaf for part in self._parts for leaf in part.leaves()) if self._parts else (self,)

    def roots(self) -> set[Factor]:
        """The factors that it is cut from, else itself."""
        return {root for factor in self.cut_from for leaf in factor.leaves() for root in leaf.roots()} or {self}


Factors = tuple[Factor, ...]


def leaves(factors: Iterable[Factor]) -> Factors:
    """The factors with those that were split since replaced by their parts."""
    return tuple(leaf for factor in factors for leaf in factor.leaves())


@dataclass(frozen=True, eq=False)
class Layout:
    """What makes up each dimension of a value."""

    dims: tuple[Factors, ...]
    """By dimension; a dimension of size 1 has no factor."""
    mixed: frozenset[Factor] = frozenset()
    """Along these, an entry depends on more of the followed value than its own index."""
    tied: frozenset[Factor] = frozenset()
    """Along these, indices are not alike: a constant varies along them, or their size is written into the graph."""
    pieces: tuple[tuple[Factor, int], ...] = ()
    """Of these the value is the piece of this number."""

    def at(self, dim: int) -> Factors:
        """The factors of a dimension."""
        return leaves(self.dims[dim])

    @property
    def present(self) -> Factors:
        """All factors in order."""
        return leaves(factor for factors in self.dims for factor in factors)


Layouts = Layout | list[Layout]

# Sizes in the graph

SIZE_READS = {aten.sym_size.int, aten.sym_size.default, aten.sym_numel.default, aten.sym_stride.int, aten.size.int}


def size_read(node: fx.Node) -> str | int | None:
    """The size that a node reads off a tensor; None for any other node."""
    if node.target is not aten.sym_size.int:
        return None
    tensor, dim = node.args
    assert isinstance(tensor, fx.Node)
    assert isinstance(dim, int)
    return tensor.meta["shape"][dim]


def size_names(node: fx.Node) -> set[str]:
    """The open sizes on which a number of the graph may depend."""
    if "shape" in node.meta:
        return names_in(node.meta["shape"])
    size = size_read(node)
    if size is not None:
        return names_in([size])
    return {name for arg in node.all_input_nodes for name in size_names(arg)}


def names_in(shape: Iterable[int | str]) -> set[str]:
    """The open sizes that occur in a shape."""
    return {name for size in shape if isinstance(size, str) for name in re.findall(r"[A-Za-z_]\w*", size)}
