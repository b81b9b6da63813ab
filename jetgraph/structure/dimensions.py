"""How dimensions go through operators: which factors make up each dimension of each value.

A dimension is a product of factors, outermost first: batch · heads is one dimension of two factors. `follow` gives
every dimension of a value a factor of its own and carries these through the nodes that come after it:

    view, reshape, flatten       factors are dealt out anew; one is split where a new dimension ends within it
    permute, transpose           dimensions change places
    elementwise ops              operands are aligned and broadcast
    linear, matmul, einsum       what is summed over vanishes, and new features have a factor of their own
    softmax, cumsum, roll        a dimension stays, but its indices are mixed

Two questions are answered by it. Does each index of a dimension go through alone, so that several values can be put
side by side along it (`goes_alone`)? And which part of an attention product's dimensions counts heads
(`jetgraph.structure.heads`)? An operator that has no entry in `LAYOUTS` mixes everything.
"""

from __future__ import annotations

import operator
import re
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import sympy
import torch
from torch import fx

from jetgraph.algebra.sizes import names
from jetgraph.jets.registry import bind, find_rule, nodes_in

aten = torch.ops.aten

# Sizes and factors


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
        """What it is a slice of."""
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
        """The factors that it is a slice of, else itself."""
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
Rule = Callable[["Dimensions", fx.Node, Mapping[str, Any]], "Layouts | None"]
"""The layout of a node's value from those of its arguments; a list for a tuple of values; None: not known."""

# Following


def follow(start: fx.Node, nodes: Iterable[fx.Node]) -> Dimensions:
    """The layouts of what depends on `start` among `nodes`, which are in execution order."""
    return Dimensions(start, nodes)


class Dimensions:
    """Layouts by node."""

    def __init__(self, start: fx.Node, nodes: Iterable[fx.Node]) -> None:
        self.start = Layout(tuple(map(self.fresh, start.meta["shape"])))
        self._found: dict[fx.Node, Layouts] = {start: self.start}
        self.unknown: set[fx.Node] = set()
        """Nodes behind which the dimensions could not be followed any further."""
        for node in nodes:
            reads = [layout for arg in node.all_input_nodes if (layout := self.get(arg)) is not None]
            if not reads or node.target in _SIZE_READS:
                continue
            if node.target is operator.getitem and isinstance(several := self._found[node.args[0]], list):  # type: ignore[index]
                self._found[node] = several[node.args[1]]  # type: ignore[index]
            else:
                self._found[node] = self._completed(node, self._through(node), reads)

    def get(self, node: Any) -> Layout | None:
        """The layout of a node that depends on the start; None for any other value."""
        found = self._found.get(node) if isinstance(node, fx.Node) else None
        return Layout((), self._all(found), self._all(found)) if isinstance(found, list) else found

    def fresh(self, size: int | str | Size) -> Factors:
        """A dimension with a factor of its own."""
        return () if (known := Size.of(size)) == Size(1) else (Factor(known),)

    def _through(self, node: fx.Node) -> Layouts | None:
        if node.op != "call_function":
            return None
        rule = LAYOUTS.get(getattr(node.target, "overloadpacket", node.target))
        if rule is None:
            entry = find_rule(node.target)
            rule = _each if entry is not None and entry.kind == "elementwise" else None
        bound = bind(node.target, node.args, node.kwargs)  # type: ignore[arg-type]
        return None if rule is None else rule(self, node, bound)

    def _completed(self, node: fx.Node, found: Layouts | None, reads: Sequence[Layout]) -> Layouts:
        """With what the arguments had mixed, and with what any node may do to a dimension."""
        if found is None:
            self.unknown.add(node)
            mixed = frozenset(self.start.present).union(*(layout.present for layout in reads))
            found = Layout(tuple(map(self.fresh, node.meta.get("shape", ()))), mixed)
        mixed = frozenset[Factor]().union(*(layout.mixed for layout in reads))
        tied = frozenset[Factor]().union(*(layout.tied for layout in reads)) | self._counted(node)

        def completed(layout: Layout) -> Layout:
            seen = layout.present
            twice = {factor for factor in seen if seen.count(factor) > 1} if len(set(seen)) < len(seen) else set()
            return replace(layout, mixed=layout.mixed | mixed | twice, tied=layout.tied | tied)

        return [completed(layout) for layout in found] if isinstance(found, list) else completed(found)

    def _counted(self, node: fx.Node) -> set[Factor]:
        """Factors whose size the node reads as a number: as a divisor, say, and not as the size of a view."""
        bound = bind(node.target, node.args, node.kwargs)  # type: ignore[arg-type]
        read = [value for name, value in bound.items() if name not in ("size", "shape", "sizes")]
        names = {
            name for n in nodes_in(read) if "shape" not in n.meta and self.get(n) is None for name in size_names(n)
        }
        return {factor for factor in self.start.present if names & names_in(factor.size.symbols)} if names else set()

    def _all(self, found: Layouts | None) -> frozenset[Factor]:
        layouts = found if isinstance(found, list) else [found] if found is not None else []
        return frozenset(factor for layout in layouts for factor in (*layout.present, *layout.mixed))

    # What rules are made of

    def joined(
        self,
        operands: Sequence[tuple[fx.Node, Sequence[Hashable]]],
        out: Sequence[Hashable],
        shape: Sequence[int | str],
    ) -> Layout:
        """A product, or any function entry by entry, of operands whose dimensions carry labels; those not in `out` are
        summed over. Operands with the same label are aligned, one of size 1 is broadcast.
        """
        factors: dict[Hashable, Factors] = {}
        mixed: set[Factor] = set()
        uneven: set[Hashable] = set()
        for node, labels in operands:
            layout = self.get(node)
            for place, label in enumerate(labels):
                if layout is None:
                    if node.meta["shape"][place] != 1:
                        uneven.add(label)
                elif here := layout.at(place):
                    so_far = leaves(factors.get(label, ()))
                    if so_far and so_far != here:
                        # Aligned with something else: an entry is no longer that of one index.
                        mixed |= {*here, *so_far}
                        here = self.fresh(node.meta["shape"][place])
                    factors[label] = here
        mixed |= {factor for label, found in factors.items() if label not in out for factor in leaves(found)}
        tied = {factor for label in uneven for factor in leaves(factors.get(label, ()))}
        dims = tuple(
            factors[label] if label in factors else self.fresh(size) for label, size in zip(out, shape, strict=True)
        )
        pieces = {layout.pieces for node, _ in operands if (layout := self.get(node)) is not None}
        return Layout(dims, frozenset(mixed), frozenset(tied), pieces.pop() if len(pieces) == 1 else ())

    def regrouped(self, factors: Factors, shape: Sequence[int | str | Size]) -> tuple[list[Factors], Factors]:
        """Factors dealt out to dimensions of these sizes in row-major order, and those that could not be.

        From both ends, so that what fits on either side of what does not is found.
        """
        queue = deque(factors)
        groups: list[Factors | None] = [None] * len(shape)
        for places, last in ((range(len(shape)), False), (range(len(shape) - 1, -1, -1), True)):
            for place in places:
                if groups[place] is not None or (group := _taken(queue, Size.of(shape[place]), last)) is None:
                    break
                groups[place] = group
        dealt = [self.fresh(size) if group is None else group for group, size in zip(groups, shape, strict=True)]
        return dealt, tuple(queue)

    def stiff(self, factors: Factors, written: Any) -> Factors:
        """Those of a dimension's factors whose size a view's argument fixes: -1 and the start's own size follow it."""
        if written == -1:
            return ()
        text = size_read(written) if isinstance(written, fx.Node) else None
        own = isinstance(text, str) and len(factors) == 1 and factors[0] in self.start.present
        return () if own and factors[0].size == Size.of(text) else factors  # type: ignore[arg-type]


def _taken(queue: deque[Factor], size: Size, last: bool) -> Factors | None:
    """Factors of this size in all, off one end of the queue; None, and the queue as it was, where they do not fit."""
    group: list[Factor] = []
    left = size
    before = list(queue)
    while left != Size(1):
        if not queue:
            break
        factor = queue.pop() if last else queue.popleft()
        if len(parts := factor.leaves()) > 1:
            # It stood here twice, and was split the first time.
            queue.extend(parts) if last else queue.extendleft(reversed(parts))
            continue
        rest = left.over(factor.size)
        if rest is None:
            other = factor.size.over(left)
            if other is None:
                break
            outer, inner = factor.split(other if last else left)
            group.append(inner if last else outer)
            queue.append(outer) if last else queue.appendleft(inner)
            left = Size(1)
        else:
            group.append(factor)
            left = rest
    if left != Size(1):
        queue.clear()
        queue.extend(leaves(before))
        return None
    return tuple(group[::-1] if last else group)


# Sizes in the graph

_SIZE_READS = {aten.sym_size.int, aten.sym_size.default, aten.sym_numel.default, aten.sym_stride.int, aten.size.int}


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


def goes_alone(
    start: fx.Node, nodes: Sequence[fx.Node], exit: fx.Node, side: Iterable[fx.Node], dim: int
) -> tuple[Factor, Layout] | None:
    """The factor of the start's dimension and the exit's layout, if each index of the dimension goes through the nodes
    alone, and all alike; else None.

    The dimension may then have another size than the graph was traced with: no op looks beyond one index, nothing that
    is read besides has a size along it, and no size of it is written down or counted with.
    """
    shape = start.meta["shape"]
    others = [size for place, size in enumerate(shape) if place != dim]
    if names_in([shape[dim]]) & names_in([*others, *(s for node in side for s in node.meta.get("shape", ()))]):
        return None
    found = follow(start, nodes)
    reached = found.get(exit)
    own = found.start.dims[dim]
    if reached is None or len(own) != 1 or found.start.at(dim) != own:
        return None
    return None if own[0] in leaves((*reached.mixed, *reached.tied)) else (own[0], reached)


# What each operator does


def _single(rule: Callable[[Dimensions, fx.Node, Mapping[str, Any], Layout], Layouts | None]) -> Rule:
    """A rule of an op that reads one value, its first argument; not known where another one depends on the start."""

    def single(d: Dimensions, node: fx.Node, bound: Mapping[str, Any]) -> Layouts | None:
        read = [arg for arg in node.all_input_nodes if d.get(arg) is not None]
        layout = d.get(node.args[0]) if node.args else None
        return rule(d, node, bound, layout) if layout is not None and len(read) == 1 else None

    return single


def _places(dim: Any, rank: int) -> list[int]:
    """Dimensions that an argument names, counted from the front; all of them for None and an empty list."""
    if not rank or dim is None or (isinstance(dim, (list, tuple)) and not dim):
        return list(range(rank))
    return [item % rank for item in (dim if isinstance(dim, (list, tuple)) else [dim])]


def _each(d: Dimensions, node: fx.Node, bound: Mapping[str, Any]) -> Layout | None:
    """Entry by entry, operands being aligned at their last dimensions and broadcast."""
    if "shape" not in node.meta:
        return None
    operands = [value for value in nodes_in(dict(bound)) if "shape" in value.meta]
    labelled = [(operand, range(-len(operand.meta["shape"]), 0)) for operand in operands]
    return d.joined(labelled, range(-len(node.meta["shape"]), 0), node.meta["shape"])


def _made(layout: Layout, dims: Sequence[Factors], mixed: Iterable[Factor] = (), tied: Iterable[Factor] = ()) -> Layout:
    return Layout(tuple(dims), frozenset(mixed), frozenset(tied), layout.pieces)


def _along(layout: Layout, places: Iterable[int]) -> Layout:
    """The same dimensions, of which these are mixed."""
    return _made(layout, layout.dims, (factor for place in places for factor in layout.at(place)))


def _cut(d: Dimensions, layout: Layout, shape: Sequence[int | str], places: Iterable[int]) -> Layout:
    """The same dimensions, of which these have been cut or enlarged to the sizes of `shape`."""
    dims = list(layout.dims)
    for place in places:
        dims[place] = (Factor(Size.of(shape[place]), layout.at(place)),)
    return _made(layout, dims, (factor for place in places for factor in layout.at(place)))


def _reduced(layout: Layout, places: Sequence[int], keep: bool) -> Layout:
    """Without these dimensions, or with them at size 1."""
    dims = [() if place in places else found for place, found in enumerate(layout.dims) if keep or place not in places]
    return _made(layout, dims, (factor for place in places for factor in layout.at(place)))


# Layout


@_single
def _reshape(d: Dimensions, node: fx.Node, bound: Mapping[str, Any], layout: Layout) -> Layout:
    shape = node.meta["shape"]
    dims, lost = d.regrouped(layout.present, shape)
    if lost:
        d.unknown.add(node)
    written = bound.get("size", bound.get("shape", bound.get("sizes", ())))
    first = bound["dim"] % len(layout.dims) if "sizes" in bound else 0
    stiff = [
        factor
        for place, size in enumerate(written if isinstance(written, (list, tuple)) else (), first)
        for factor in d.stiff(dims[place], size)
    ]
    return _made(layout, dims, lost, stiff)


@_single
def _moved(d: Dimensions, node: fx.Node, bound: Mapping[str, Any], layout: Layout) -> Layout:
    """Any op that only exchanges dimensions: the strides of a probe say which came from where."""
    probe = torch.empty_strided((2,) * len(layout.dims), tuple(range(1, len(layout.dims) + 1)), device="meta")
    moved = node.target(probe, *node.args[1:], **node.kwargs)  # type: ignore[operator]
    return _made(layout, [layout.dims[stride - 1] for stride in moved.stride()])


@_single
def _expand(d: Dimensions, node: fx.Node, bound: Mapping[str, Any], layout: Layout) -> Layout:
    shape = node.meta["shape"]
    new = len(shape) - len(layout.dims)
    dims = [
        d.fresh(size) if place < new or not layout.at(place - new) else layout.at(place - new)
        for place, size in enumerate(shape)
    ]
    stiff = [factor for place, size in enumerate(bound.get("size", ())) for factor in d.stiff(dims[place], size)]
    return _made(layout, dims, (), stiff)


@_single
def _repeat(d: Dimensions, node: fx.Node, bound: Mapping[str, Any], layout: Layout) -> Layout | None:
    times = bound.get("repeats", bound.get("dims"))
    shape = node.meta["shape"]
    if not isinstance(times, (list, tuple)):
        return None
    # tile takes fewer numbers than there are dimensions.
    times = [*[1] * (len(shape) - len(times)), *times]
    new = len(shape) - len(layout.dims)
    return _made(
        layout,
        [
            ((Factor(Size.of(number)),) if number != 1 else ()) + (layout.at(place - new) if place >= new else ())
            if isinstance(number, int)
            else d.fresh(shape[place])
            for place, number in enumerate(times)
        ],
        (
            f
            for place, number in enumerate(times)
            if not isinstance(number, int) and place >= new
            for f in layout.at(place - new)
        ),
    )


@_single
def _interleaved(d: Dimensions, node: fx.Node, bound: Mapping[str, Any], layout: Layout) -> Layout | None:
    """repeat_interleave: every entry so many times in a row, along one dimension or along all of them as one."""
    times, dim = bound["repeats"], bound.get("dim")
    if dim is None:
        layout = _made(layout, [layout.present])
    place = (dim or 0) % len(layout.dims)
    if not isinstance(times, int):
        return _cut(d, layout, node.meta["shape"], [place])
    dims = [*layout.dims]
    dims[place] = (*layout.at(place), *d.fresh(times))
    return _made(layout, dims, (), layout.at(place) if bound.get("output_size") is not None else ())


# Choosing


@_single
def _slice(d: Dimensions, node: fx.Node, bound: Mapping[str, Any], layout: Layout) -> Layout:
    return _cut(d, layout, node.meta["shape"], [bound.get("dim", 0) % len(layout.dims)])


@_single
def _padded(d: Dimensions, node: fx.Node, bound: Mapping[str, Any], layout: Layout) -> Layout:
    pad, rank = bound["pad"], len(layout.dims)
    return _cut(
        d, layout, node.meta["shape"], [rank - 1 - i // 2 for i in range(0, len(pad), 2) if pad[i] or pad[i + 1]]
    )


@_single
def _differences(d: Dimensions, node: fx.Node, bound: Mapping[str, Any], layout: Layout) -> Layout | None:
    beside = bound.get("prepend") is not None or bound.get("append") is not None
    return None if beside else _cut(d, layout, node.meta["shape"], [bound.get("dim", -1) % len(layout.dims)])


@_single
def _windows(d: Dimensions, node: fx.Node, bound: Mapping[str, Any], layout: Layout) -> Layout:
    """unfold: pieces of a dimension, one after the other; what is in a piece is a new last dimension."""
    shape = node.meta["shape"]
    cut = _cut(d, layout, shape[:-1], [bound["dimension"] % len(layout.dims)])
    return replace(cut, dims=(*cut.dims, d.fresh(shape[-1])))


def _piece(layout: Layout, place: int, kept: list[Factors], number: int | None) -> Layout:
    """The piece of this number along a dimension; what is left of the dimension is `kept`, if anything is."""
    dims = [*layout.dims[:place], *kept, *layout.dims[place + 1 :]]
    left = {factor for factors in kept for factor in factors}
    of = tuple(factor for factor in layout.at(place) if factor not in left)
    made = _made(layout, dims, layout.at(place))
    return replace(made, pieces=(*made.pieces, (of[0], number))) if len(of) == 1 and number is not None else made


@_single
def _select(d: Dimensions, node: fx.Node, bound: Mapping[str, Any], layout: Layout) -> Layout:
    index = bound["index"]
    return _piece(layout, bound["dim"] % len(layout.dims), [], index if isinstance(index, int) else None)


@_single
def _unbind(d: Dimensions, node: fx.Node, bound: Mapping[str, Any], layout: Layout) -> Layouts | None:
    place = bound.get("dim", 0) % len(layout.dims)
    size = node.args[0].meta["shape"][place]  # type: ignore[union-attr]
    return [_piece(layout, place, [], number) for number in range(size)] if isinstance(size, int) else None


@_single
def _divided(d: Dimensions, node: fx.Node, bound: Mapping[str, Any], layout: Layout) -> Layouts | None:
    """split and chunk: numbered pieces where all have one size, slices else."""
    place = bound.get("dim", 0) % len(layout.dims)
    size = Size.of(node.args[0].meta["shape"][place])  # type: ignore[union-attr]
    written = bound.get("split_size", bound.get("split_sizes", bound.get("chunks")))
    if isinstance(written, (list, tuple)):
        if len(set(written)) > 1:
            known = all(isinstance(part, int) for part in written)
            return [_cut(d, layout, [part] * len(layout.dims), [place]) for part in written] if known else None
        each = Size.of(written[0]) if isinstance(written[0], int) else None
    else:
        # The size of a piece may be counted in the graph; the pieces say what it is.
        sizes = {Size.of(user.meta["shape"][place]) for user in node.users if "shape" in user.meta}
        each = sizes.pop() if len(sizes) == 1 else None
    number = None if each is None else size.over(each)
    if each is None or number is None or number.symbols:
        return None
    (pieces, rest), lost = d.regrouped(layout.at(place), [number.number, each])
    return None if lost else [_piece(layout, place, [rest], i if pieces else None) for i in range(number.number)]


def _pick(d: Dimensions, node: fx.Node, bound: Mapping[str, Any]) -> Layout:
    """gather and index_select: entries along one dimension, by indices."""
    value, index = bound["self"], bound["index"]
    rank = len(value.meta["shape"])
    place = bound["dim"] % max(rank, 1)
    labels: list[Hashable] = list(range(rank))
    labels[place] = "picked"
    indices = range(rank) if len(index.meta["shape"]) == rank > 1 else [place]
    return d.joined([(value, labels), (index, indices)], range(rank), node.meta["shape"])


def _index(d: Dimensions, node: fx.Node, bound: Mapping[str, Any]) -> Layout | None:
    """x[:, i, j]: neighbouring dimensions give way to those of the indices."""
    value, indices = bound["self"], bound["indices"]
    used = [place for place, index in enumerate(indices) if index is not None]
    given = [indices[place] for place in used]
    mask = any(index.meta.get("dtype") in (torch.bool, torch.uint8) for index in given)
    if mask or not used or used != list(range(used[0], used[-1] + 1)):
        return None
    rank, first = len(value.meta["shape"]), used[0]
    width = max(len(index.meta["shape"]) for index in given)
    chosen = [("index", place) for place in range(-width, 0)]
    labels = [("picked", place) if place in used else place for place in range(rank)]
    operands = [(value, labels), *((index, chosen[width - len(index.meta["shape"]) :]) for index in given)]
    out = [*range(first), *chosen, *range(used[-1] + 1, rank)]
    return d.joined(operands, out, node.meta["shape"])


def _embedding(d: Dimensions, node: fx.Node, bound: Mapping[str, Any]) -> Layout:
    table, indices = bound["weight"], bound["indices"]
    rank = len(indices.meta["shape"])
    return d.joined(
        [(table, ("row", "feature")), (indices, range(rank))], (*range(rank), "feature"), node.meta["shape"]
    )


# Putting together


def _concatenated(d: Dimensions, node: fx.Node, bound: Mapping[str, Any]) -> Layout:
    operands, shape = list(bound["tensors"]), node.meta["shape"]
    place = bound.get("dim", 0) % len(shape)
    whole = _whole(d, operands)
    labels = [[("part", i) if at == place else at for at in range(len(shape))] for i in range(len(operands))]
    if whole is not None:
        labels = [list(range(len(shape)))] * len(operands)
    found = d.joined(list(zip(operands, labels, strict=True)), range(len(shape)), shape)
    if whole is None:
        return found
    dims = [(whole, *found.at(at)) if at == place else found.dims[at] for at in range(len(shape))]
    return replace(found, dims=tuple(dims), pieces=_without_last(d, operands))


def _stacked(d: Dimensions, node: fx.Node, bound: Mapping[str, Any]) -> Layout:
    operands, shape = list(bound["tensors"]), node.meta["shape"]
    place = bound.get("dim", 0) % len(shape)
    whole = _whole(d, operands)
    labels = [at for at in range(len(shape)) if at != place]
    found = d.joined([(operand, labels) for operand in operands], range(len(shape)), shape)
    if whole is None:
        return found
    dims = [(whole,) if at == place else found.dims[at] for at in range(len(shape))]
    return replace(found, dims=tuple(dims), pieces=_without_last(d, operands))


def _whole(d: Dimensions, operands: Sequence[fx.Node]) -> Factor | None:
    """The factor whose pieces these are, all of them and in order."""
    pieces = [layout.pieces[-1] if (layout := d.get(operand)) and layout.pieces else None for operand in operands]
    whole = pieces[0][0] if pieces[0] is not None else None
    if whole is None or whole.leaves() != (whole,) or whole.size != Size(len(operands)):
        return None
    return whole if pieces == [(whole, number) for number in range(len(operands))] else None


def _without_last(d: Dimensions, operands: Sequence[fx.Node]) -> tuple[tuple[Factor, int], ...]:
    layout = d.get(operands[0])
    assert layout is not None
    return layout.pieces[:-1]


def _written_into(d: Dimensions, node: fx.Node, bound: Mapping[str, Any]) -> Layout | None:
    """Ops that write entries of another value, or add them, along one dimension, at places that an index may give.

    Along the others their sizes are alike: what is written is not broadcast, and entries beyond it would stay.
    """
    shape = node.meta["shape"]
    rank = len(shape)
    place = bound["dim"] % rank if bound.get("dim") is not None else 0
    off = [at for at in range(rank) if at != place]
    operands: list[tuple[fx.Node, Sequence[Hashable]]] = [
        (bound["self"], ["into" if at == place else at for at in range(rank)])
    ]
    for name in ("index", "src", "source"):
        value = bound.get(name)
        if not isinstance(value, fx.Node) or "shape" not in value.meta:
            continue
        size = value.meta["shape"]
        if len(size) == rank:
            if any(size[at] != shape[at] for at in off):
                return None
            operands.append((value, ["from" if at == place else at for at in range(rank)]))
        else:
            # An index along the dimension, or what is put at one place of it.
            operands.append((value, ["from"] if name == "index" else off))
    return d.joined(operands, range(rank), shape)


# Along dimensions


def _mixing(default: Any = -1) -> Rule:
    """Ops that keep their dimensions, of which they mix those named by `dim`."""

    def rule(d: Dimensions, node: fx.Node, bound: Mapping[str, Any], layout: Layout) -> Layouts:
        places = _places(bound.get("dim", bound.get("dims", default)), len(layout.dims))
        return _along(layout, places)

    return _single(rule)


def _sorting(default: Any = -1) -> Rule:
    """As `_mixing`, of ops that give entries and their indices; the dimension may have another size."""

    def rule(d: Dimensions, node: fx.Node, bound: Mapping[str, Any], layout: Layout) -> Layouts:
        places = _places(bound.get("dim", default), len(layout.dims))
        whole = _along(layout, places)
        fresh = [
            (Factor(Size(1, (f"{node.name} {place}",)), whole.at(place)),) if place in places else dims
            for place, dims in enumerate(whole.dims)
        ]
        chosen = replace(whole, dims=tuple(fresh)) if "k" in bound else whole
        return chosen if "shape" in node.meta else [chosen, chosen]

    return _single(rule)


def _reducing(outputs: int = 1) -> Rule:
    """Sums, means and extremes over the dimensions named by `dim`, or over all."""

    def rule(d: Dimensions, node: fx.Node, bound: Mapping[str, Any], layout: Layout) -> Layouts | None:
        if "other" in bound:
            return None
        places = _places(bound.get("dim"), len(layout.dims))
        found = _reduced(layout, places, bool(bound.get("keepdim", False)))
        return found if "shape" in node.meta else [found] * max(outputs, 2)

    return _single(rule)


def _extreme(d: Dimensions, node: fx.Node, bound: Mapping[str, Any]) -> Layouts | None:
    """max and min: of two values, or over a dimension."""
    return _each(d, node, bound) if "other" in bound else _reducing(2)(d, node, bound)


@_single
def _last_dims(d: Dimensions, node: fx.Node, bound: Mapping[str, Any], layout: Layout) -> Layouts:
    """Norms over the last dimensions; a native one gives its statistics besides."""
    rank = len(layout.dims)
    places = range(rank - len(bound["normalized_shape"]), rank)
    norm = _along(layout, places)
    return norm if "shape" in node.meta else [norm, *[_reduced(layout, list(places), keep=True)] * 2]


@_single
def _group_norm(d: Dimensions, node: fx.Node, bound: Mapping[str, Any], layout: Layout) -> Layout | None:
    """Group and instance norm: each element of the batch by itself."""
    return (
        _along(layout, range(1, len(layout.dims)))
        if "shape" in node.meta and bound.get("use_input_stats", True)
        else None
    )


@_single
def _batch_norm(d: Dimensions, node: fx.Node, bound: Mapping[str, Any], layout: Layout) -> Layouts:
    """With running statistics entry by entry, channels not being alike."""
    batch = bound.get("training", False) or bound.get("running_mean") is None
    norm = _along(layout, range(len(layout.dims))) if batch else _made(layout, layout.dims, (), layout.at(1))
    return norm if "shape" in node.meta else [norm, *[_reduced(layout, list(range(len(layout.dims))), False)] * 2]


@_single
def _by_channel(d: Dimensions, node: fx.Node, bound: Mapping[str, Any], layout: Layout) -> Layout:
    """A slope for each channel."""
    return _made(layout, layout.dims, (), layout.at(1) if len(layout.dims) > 1 else ())


@_single
def _triangle(d: Dimensions, node: fx.Node, bound: Mapping[str, Any], layout: Layout) -> Layout:
    """What is kept depends on the indices."""
    return _made(layout, layout.dims, (), (*layout.at(-2), *layout.at(-1)))


@_single
def _halves(d: Dimensions, node: fx.Node, bound: Mapping[str, Any], layout: Layout) -> Layout:
    return _cut(d, layout, node.meta["shape"], [bound.get("dim", -1) % len(layout.dims)])


# Sums of products


def _linear(d: Dimensions, node: fx.Node, bound: Mapping[str, Any]) -> Layout:
    rank = len(node.meta["shape"])
    operands = [(bound["input"], (*range(rank - 1), "in")), (bound["weight"], ("out", "in"))]
    if bound.get("bias") is not None:
        operands.append((bound["bias"], ("out",)))
    return d.joined(operands, (*range(rank - 1), "out"), node.meta["shape"])


def _matrices(left: str, right: str) -> Rule:
    """Matrix products of any rank, with or without a summand."""

    def rule(d: Dimensions, node: fx.Node, bound: Mapping[str, Any]) -> Layout:
        one, other = bound[left], bound[right]
        first, second = len(one.meta["shape"]), len(other.meta["shape"])
        rows = () if first == 1 else ("row",)
        columns = () if second == 1 else ("column",)
        batch = range(-max(first, second, 2), -2)
        operands = [
            (one, (*batch[len(batch) - max(first - 2, 0) :], *rows, "in")),
            (other, (*batch[len(batch) - max(second - 2, 0) :], "in", *columns)),
        ]
        out = (*batch, *rows, *columns)
        if left != "self":
            added = bound["self"]
            rank = len(added.meta["shape"])
            operands.append((added, out[len(out) - rank :]))
        return d.joined(operands, out, node.meta["shape"])

    return rule


def _einsum(d: Dimensions, node: fx.Node, bound: Mapping[str, Any]) -> Layout | None:
    labels = einsum_labels(bound["equation"], [len(operand.meta["shape"]) for operand in bound["tensors"]])
    if labels is None:
        return None
    *read, out = labels
    return d.joined(list(zip(bound["tensors"], read, strict=True)), out, node.meta["shape"])


def einsum_labels(equation: str, ranks: Sequence[int]) -> list[list[Hashable]] | None:
    """Labels of the operands' dimensions and of the result's; None where an operand has one twice."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    texts = left.split(",")
    if not arrow:
        letters = left.replace(",", "").replace(".", "")
        right = "..." * ("..." in left) + "".join(
            sorted(letter for letter in set(letters) if letters.count(letter) == 1)
        )
    widths = [rank - len(text.replace("...", "")) for text, rank in zip(texts, ranks, strict=True)]
    found: list[list[Hashable]] = []
    for text, width in zip([*texts, right], [*widths, max(widths, default=0)], strict=True):
        before, dots, after = text.partition("...")
        found.append([*before, *(range(-width, 0) if dots else ()), *after])
    return None if any(len(set(labels)) < len(labels) for labels in found) else found


def _attention(d: Dimensions, node: fx.Node, bound: Mapping[str, Any]) -> Layout:
    rank = len(node.meta["shape"])
    batch: list[Hashable] = list(range(-rank, -2))
    shared: list[Hashable] = [*batch[:-1], "group"] if bound.get("enable_gqa") and batch else batch
    operands = [
        (bound["query"], [*batch, "query", "score"]),
        (bound["key"], [*shared, "key", "score"]),
        (bound["value"], [*shared, "key", "feature"]),
    ]
    mask = bound.get("attn_mask")
    if mask is not None:
        operands.append((mask, [*batch, "query", "key"][rank - len(mask.meta["shape"]) :]))
    found = d.joined(operands, [*batch, "query", "feature"], node.meta["shape"])
    # Keys and values are other ones for each group of heads; a causal mask for each query.
    tied = {*(found.at(-2) if bound.get("is_causal") else ()), *(found.at(-3) if shared != batch else ())}
    return replace(found, tied=found.tied | tied)


@_single
def _convolution(d: Dimensions, node: fx.Node, bound: Mapping[str, Any], layout: Layout) -> Layout:
    """Positions are mixed unless the kernel is one position wide; channels always."""
    shape, kernel = node.meta["shape"], bound["weight"].meta["shape"][2:]
    first = len(layout.dims) - len(kernel)
    read = node.args[0].meta["shape"]  # type: ignore[union-attr]
    padded = bound.get("padding", 0) not in (0, "same", "valid") and any(_listed(bound["padding"]))
    pointwise = all(size == 1 for size in kernel) and tuple(shape[first:]) == tuple(read[first:]) and not padded
    moved = () if pointwise else range(first, len(shape))
    found = _cut(d, layout, shape, moved)
    dims = [d.fresh(shape[place]) if place == first - 1 else dims for place, dims in enumerate(found.dims)]
    return _made(layout, dims, {*found.mixed, *layout.at(first - 1)})


def _listed(value: Any) -> Sequence[Any]:
    return value if isinstance(value, (list, tuple)) else [value]


def _positions(spatial: int) -> Rule:
    """Pools and resizing of the last dimensions."""

    def rule(d: Dimensions, node: fx.Node, bound: Mapping[str, Any], layout: Layout) -> Layout | None:
        places = range(len(layout.dims) - spatial, len(layout.dims))
        return _cut(d, layout, node.meta["shape"], places) if "shape" in node.meta else None

    return _single(rule)


def _like(d: Dimensions, node: fx.Node, bound: Mapping[str, Any]) -> Layout | None:
    """Of the argument only the shape is read."""
    layout = d.get(node.args[0])
    return None if layout is None or "shape" not in node.meta else Layout(layout.dims)


def _packets(names: str) -> list[Any]:
    return [getattr(aten, name) for name in names.split() if hasattr(aten, name)]


LAYOUTS: dict[Any, Rule] = {
    **dict.fromkeys(
        _packets(
            "add sub rsub mul div neg abs sign sgn where clamp clamp_min clamp_max relu leaky_relu relu6 hardtanh "
            "hardsigmoid hardswish hardshrink softshrink threshold elu celu selu rrelu frac floor ceil round "
            "trunc remainder fmod maximum minimum fmax fmin nan_to_num lerp addcmul addcdiv masked_fill "
            "_prelu_kernel eq ne lt le gt ge logical_not logical_and logical_or logical_xor bitwise_not "
            "bitwise_and bitwise_or isnan isinf isfinite floor_divide heaviside _to_copy to clone contiguous "
            "alias detach lift_fresh_copy dropout positive copy fill real imag conj signbit isclose"
        ),
        _each,
    ),
    **dict.fromkeys(
        _packets("view _unsafe_view view_copy reshape flatten unflatten unsqueeze squeeze ravel view_as reshape_as"),
        _reshape,
    ),
    **dict.fromkeys(_packets("permute transpose t mT movedim moveaxis swapaxes swapdims adjoint"), _moved),
    **dict.fromkeys(_packets("expand broadcast_to expand_as"), _expand),
    **dict.fromkeys(_packets("repeat tile"), _repeat),
    **dict.fromkeys(_packets("slice narrow"), _slice),
    **dict.fromkeys(_packets("constant_pad_nd pad"), _padded),
    **dict.fromkeys(_packets("split split_with_sizes chunk"), _divided),
    **dict.fromkeys(_packets("gather index_select"), _pick),
    **dict.fromkeys(
        _packets("softmax _softmax _safe_softmax log_softmax _log_softmax cumsum cumprod logcumsumexp"), _mixing()
    ),
    **dict.fromkeys(_packets("flip roll"), _mixing(None)),
    **dict.fromkeys(_packets("fft_fft fft_ifft _fft_c2c"), _mixing()),
    **dict.fromkeys(_packets("topk sort argsort cummax cummin"), _sorting()),
    **dict.fromkeys(
        _packets(
            "sum mean amax amin var std prod logsumexp any all argmax argmin count_nonzero linalg_vector_norm norm"
        ),
        _reducing(),
    ),
    **dict.fromkeys(_packets("var_mean std_mean median kthvalue mode"), _reducing(2)),
    **dict.fromkeys(_packets("max min"), _extreme),
    **dict.fromkeys(_packets("layer_norm native_layer_norm rms_norm _fused_rms_norm"), _last_dims),
    **dict.fromkeys(_packets("group_norm instance_norm"), _group_norm),
    **dict.fromkeys(_packets("batch_norm _native_batch_norm_legit_no_training"), _batch_norm),
    **dict.fromkeys(
        _packets("conv1d conv2d conv3d convolution conv_transpose1d conv_transpose2d conv_transpose3d"), _convolution
    ),
    **dict.fromkeys(
        _packets(
            "avg_pool1d max_pool1d adaptive_avg_pool1d upsample_nearest1d upsample_linear1d reflection_pad1d "
            "replication_pad1d"
        ),
        _positions(1),
    ),
    **dict.fromkeys(
        _packets(
            "avg_pool2d max_pool2d adaptive_avg_pool2d _adaptive_avg_pool2d upsample_nearest2d upsample_bilinear2d "
            "upsample_bicubic2d reflection_pad2d replication_pad2d"
        ),
        _positions(2),
    ),
    **dict.fromkeys(_packets("avg_pool3d max_pool3d adaptive_avg_pool3d _adaptive_avg_pool3d"), _positions(3)),
    **dict.fromkeys(_packets("zeros_like ones_like full_like empty_like"), _like),
    aten.select: _select,
    aten.unbind: _unbind,
    aten.index: _index,
    aten.embedding: _embedding,
    aten.cat: _concatenated,
    aten.stack: _stacked,
    aten.diff: _differences,
    aten.unfold: _windows,
    aten.repeat_interleave: _interleaved,
    **dict.fromkeys(
        _packets("slice_scatter select_scatter scatter scatter_add scatter_reduce index_add index_copy"), _written_into
    ),
    aten.prelu: _by_channel,
    aten.tril: _triangle,
    aten.triu: _triangle,
    aten.glu: _halves,
    aten.linear: _linear,
    aten.matmul: _matrices("self", "other"),
    aten.mm: _matrices("self", "mat2"),
    aten.bmm: _matrices("self", "mat2"),
    aten.mv: _matrices("self", "vec"),
    aten.addmm: _matrices("mat1", "mat2"),
    aten.baddbmm: _matrices("batch1", "batch2"),
    aten.einsum: _einsum,
    aten.scaled_dot_product_attention: _attention,
}
"""The rule of each operator, by its packet, besides those that have a Taylor rule of kind `elementwise`."""
