"""How dimensions go through operators: every operator by brute force, and chains of views by hand."""

from __future__ import annotations

import operator
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, fx

from jetgraph.structure.dimensions import LAYOUTS, Dimensions, Factor, Layout, Size, follow, leaves
from tests.jets.cases import CASES, Case, V

aten = torch.ops.aten


class Called:
    """One call of an operator as a graph, with the dimensions of one of its tensor arguments followed through it."""

    def __init__(self, op: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], number: int) -> None:
        self.op, self.args, self.kwargs = op, args, kwargs
        self.tensors: list[Tensor] = []
        graph = fx.Graph()
        self.inputs: list[fx.Node] = []
        given = [self._node(graph, arg) for arg in args]
        call = graph.call_function(op, tuple(given), {name: self._node(graph, value) for name, value in kwargs.items()})
        self.number = number
        self.nodes, self.plain = [call], self.run(self.tensors[number])
        if len(self.plain) > 1 or not isinstance(self.raw(self.tensors), Tensor):
            self.nodes += [graph.call_function(operator.getitem, (call, place)) for place in range(len(self.plain))]
        for node, value in zip(self.nodes[-len(self.plain) :], self.plain, strict=True):
            node.meta = {"shape": tuple(value.shape), "dtype": value.dtype}
        self.found: Dimensions = follow(self.inputs[number], self.nodes)

    def _node(self, graph: fx.Graph, value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return type(value)(self._node(graph, item) for item in value)
        if not isinstance(value, Tensor):
            return value
        node = graph.placeholder(f"x{len(self.tensors)}")
        node.meta = {"shape": tuple(value.shape), "dtype": value.dtype}
        self.tensors.append(value)
        self.inputs.append(node)
        return node

    def raw(self, tensors: list[Tensor]) -> Any:
        left = list(tensors)

        def filled(value: Any) -> Any:
            if isinstance(value, (list, tuple)):
                return type(value)(filled(item) for item in value)
            return left.pop(0) if isinstance(value, Tensor) else value

        args = [filled(arg) for arg in self.args]
        return self.op(*args, **{name: filled(value) for name, value in self.kwargs.items()})

    def run(self, value: Tensor) -> list[Tensor]:
        """The outputs with this value for the argument that is followed."""
        found = self.raw([value if i == self.number else tensor for i, tensor in enumerate(self.tensors)])
        return [found] if isinstance(found, Tensor) else [item for item in found if isinstance(item, Tensor)]

    @property
    def layouts(self) -> list[Layout]:
        found = [self.found.get(node) for node in self.nodes[-len(self.plain) :]]
        assert all(layout is not None for layout in found)
        return found  # type: ignore[return-value]


def index_of(factor: Factor, layout: Layout, value: Tensor) -> Tensor:
    """The factor's index at every entry of a value, to be broadcast over it; -1 where the value has no such factor."""
    for dim in range(len(layout.dims)):
        factors = layout.at(dim)
        if factor in factors:
            inner = 1
            for other in factors[factors.index(factor) + 1 :]:
                inner *= other.size.number
            index = torch.arange(value.shape[dim]) // inner % factor.size.number
            return index.reshape(-1, *[1] * (value.dim() - dim - 1)).expand(value.shape)
    return torch.full(value.shape, -1)


def check(called: Called) -> set[tuple[int, bool]]:
    """Brute force: along what is not mixed an index changes itself alone; along what is not tied all are alike.

    Gives the dimensions that go through alone, and whether alike.
    """
    x = called.tensors[called.number]
    passed: set[tuple[int, bool]] = set()
    for dim in range(x.dim()):
        size = x.shape[dim]
        whole = called.found.start.dims[dim]
        for number, (layout, before) in enumerate(zip(called.layouts, called.plain, strict=True)):
            own = called.found.start.at(dim)
            # One that is split into factors is checked by hand below.
            if size < 2 or own != whole or set(own) & set(leaves(layout.mixed)):
                continue
            at = index_of(whole[0], layout, before)
            for index in range(size):
                moved = x.clone()
                moved.select(dim, index).copy_(x.select(dim, (index + 1) % size))
                after = called.run(moved)[number]
                changed = (after != before) & ~(after.isnan() & before.isnan())
                assert not changed[at != index].any(), f"dimension {dim} of {called.op} is mixed"
            tied = whole[0] in leaves(layout.tied)
            passed.add((dim, not tied))
            if not tied and (at >= 0).all():
                turned = called.run(x.roll(1, dim))[number]
                place = next(d for d in range(before.dim()) if whole[0] in layout.at(d))
                factors = layout.at(place)
                spread = before.unflatten(place, [factor.size.number for factor in factors])
                expected = spread.roll(1, place + factors.index(whole[0])).reshape(before.shape)
                same = torch.isclose(turned, expected, rtol=1e-5, atol=1e-8, equal_nan=True)
                assert same.all(), f"along dimension {dim} of {called.op} indices are not alike"
    return passed


def values(case: Case) -> tuple[Any, ...]:
    """A case's arguments, with a value for everything that may vary."""
    seed = zlib.crc32(case.name.encode())
    number = iter(range(100))

    def value(argument: Any) -> Any:
        if isinstance(argument, V):
            return torch.tensor(argument.coefficients(case.style, seed + next(number))[0])
        if isinstance(argument, (list, tuple)):
            return type(argument)(value(item) for item in argument)
        return argument

    return tuple(value(argument) for argument in case.args)


def test_every_operator_by_brute_force() -> None:
    """Of every operator that has a Taylor rule, whatever its layout says."""
    passed = 0
    for case in CASES:
        args = values(case)
        result = case.op(*args, **case.kwargs)
        if case.op is operator.getitem or not any(
            isinstance(x, Tensor) for x in torch.utils._pytree.tree_leaves(result)
        ):
            continue
        for number in range(sum(isinstance(leaf, Tensor) for leaf in torch.utils._pytree.tree_leaves(args))):
            called = Called(case.op, args, case.kwargs, number)
            passed += len(check(called))
    # Of some 360 cases; were a rule lost, its dimensions would count as mixed, and the number would fall.
    assert passed > 750


X = torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(0))
W = torch.randn(8, 8, generator=torch.Generator().manual_seed(1))
LINES = torch.randn(6, 6, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(
    ("op", "args", "kwargs", "alone"),
    [
        # All that a decoder or a branch does as a rule goes through; the last dimension is the one that is mixed.
        (aten.linear.default, (X, W), {}, {(0, True), (1, True)}),
        (aten.layer_norm.default, (X, [8], W[0], W[1]), {}, {(0, True), (1, True)}),
        (aten.rms_norm.default, (X, [8], W[0]), {}, {(0, True), (1, True)}),
        (aten.softmax.int, (X, -1), {}, {(0, True), (1, True)}),
        (aten.mul.Tensor, (X, W[0]), {}, {(0, True), (1, True), (2, False)}),
        (aten.add.Tensor, (X, X[0]), {}, {(0, True), (1, False), (2, False)}),
        (aten.tanh.default, (X,), {}, {(0, True), (1, True), (2, True)}),
        (aten.matmul.default, (LINES, X), {}, {(0, True), (2, True)}),
        (aten.mean.dim, (X, [1], True), {}, {(0, True), (2, True)}),
        (aten.cumsum.default, (X, 1), {}, {(0, True), (2, True)}),
        (aten.roll.default, (X, [1], [0]), {}, {(1, True), (2, True)}),
        (aten.flip.default, (X, [0, 2]), {}, {(1, True)}),
        (aten.sort.default, (X, 0), {}, {(1, True), (2, True)}),
        (aten.constant_pad_nd.default, (X, [0, 0, 1, -1]), {}, {(0, True), (2, True)}),
        (aten.slice.Tensor, (X, 1, 2, 5), {}, {(0, True), (2, True)}),
        (aten.permute.default, (X, [2, 0, 1]), {}, {(0, True), (1, True), (2, True)}),
        (aten.cat.default, ([X, X], 1), {}, {(0, False), (2, False)}),
        (aten.index.Tensor, (X, [None, torch.tensor([0, 3])]), {}, {(0, True), (2, True)}),
        (aten.masked_fill.Scalar, (X, LINES[:, :1] > 0, 0.0), {}, {(0, True), (1, False), (2, True)}),
        (
            aten.scaled_dot_product_attention.default,
            (X, X.flip(0), X.flip(1)),
            {"is_causal": True},
            {(0, False), (1, False)},
        ),
        (aten.diff.default, (X, 1, 1), {}, {(0, True), (2, True)}),
        (aten.unfold.default, (X, 1, 3, 2), {}, {(0, True), (2, True)}),
        (aten.tile.default, (X, [2, 1]), {}, {(0, True), (1, True), (2, True)}),
        (aten.repeat_interleave.self_int, (X, 3, 1), {}, {(0, True), (1, True), (2, True)}),
        (aten.repeat_interleave.self_int, (X, 2), {}, {(0, True), (1, True), (2, True)}),
        (aten.repeat_interleave.self_Tensor, (X, torch.tensor([1, 2, 0, 1, 3, 0]), 1), {}, {(0, True), (2, True)}),
        (aten.index_add.default, (X, 1, torch.tensor([2, 2]), X[:, :2]), {}, {(0, False), (2, False)}),
        (aten.index_add.default, (X, 1, torch.tensor([2, 2]), torch.zeros(4, 2, 8)), {}, {(0, False), (2, False)}),
        (aten.scatter.value, (X, 1, torch.zeros(4, 2, 8, dtype=torch.int64), 0.5), {}, {(0, False), (2, False)}),
        # Smaller than the value that it is written into.
        (aten.scatter.src, (X, 1, torch.zeros(2, 1, 8, dtype=torch.int64), X), {}, set()),
        (aten.select_scatter.default, (X, X[:, 0], 1, 3), {}, {(0, False), (2, False)}),
        # An op that says nothing about dimensions mixes them all.
        (aten.nonzero.default, (X,), {}, set()),
        (aten.trace.default, (W,), {}, set()),
        (aten.mul.Tensor, (X[:, None], X), {}, {(0, True), (2, False), (3, False)}),
    ],
)
def test_what_goes_through_alone(op, args, kwargs, alone) -> None:
    assert check(Called(op, args, kwargs, 1 if op is aten.matmul.default else 0)) == alone


# Views


def chain(shape: tuple[int | str, ...], *calls: tuple[Any, tuple[Any, ...], Any]) -> tuple[Layout, list[Layout]]:
    """The layouts of a value of this shape and of what each call, with its further arguments and shape, makes of it."""
    graph = fx.Graph()
    nodes = [graph.placeholder("x")]
    nodes[0].meta = {"shape": shape}
    for op, args, made in calls:
        nodes.append(graph.call_function(op, (nodes[-1], *args)))
        nodes[-1].meta = {"shape": made} if made is not None else {}
    found = follow(nodes[0], nodes[1:])
    return found.start, [layout for node in nodes[1:] if (layout := found.get(node)) is not None]


def test_batch_and_heads_are_told_apart_after_they_were_one() -> None:
    """PyTorch's own multi-head attention: [batch · heads, length, d] to [length · batch, heads · d]."""
    start, (turned, merged) = chain(
        ("2*batch", "length", 4),
        (aten.transpose.int, (0, 1), ("length", "2*batch", 4)),
        (aten.view.default, (["batch*length", 8],), ("batch*length", 8)),
    )
    batch, heads = start.at(0)
    assert (batch.size, heads.size) == (Size.of("batch"), Size.of(2))
    assert turned.at(1) == (batch, heads)
    assert merged.dims == ((*start.at(1), batch), (heads, *start.at(2)))
    assert not merged.mixed


def test_a_split_is_seen_by_what_came_before_it() -> None:
    start, (*_, last) = chain(
        (6, 4),
        (aten.view.default, ([2, 3, 2, 2],), (2, 3, 2, 2)),
        (aten.permute.default, ([2, 0, 3, 1],), (2, 2, 2, 3)),
        (aten.reshape.default, ([4, 6],), (4, 6)),
    )
    (rows, columns) = start.at(0), start.at(1)
    assert [factor.size for factor in (*rows, *columns)] == [Size(2), Size(3), Size(2), Size(2)]
    assert last.dims == ((columns[0], rows[0]), (columns[1], rows[1]))
    assert set(rows) < last.tied, "their sizes are written down"


@pytest.mark.parametrize(
    ("before", "after", "kept", "lost"),
    [
        # What lies on either side of sizes that do not fit is found all the same.
        (("batch", 6, 4, 5), ("batch", 4, 6, 5), {0: 0, 3: 3}, {1, 2}),
        (("batch", "length + 1", 4), ("batch", "2*length", 4), {0: 0, 2: 2}, {1}),
        (("batch", 6, 4), (6, "batch", 4), {2: 2}, {0, 1}),
        ((3, "batch*length", 1, 4), (3, "batch", "length", 4), {0: 0, 3: 3}, set()),
        (("batch", 2, 3), (1, "batch", 6), {0: 1}, set()),
    ],
)
def test_dimensions_that_a_view_keeps(before, after, kept, lost) -> None:
    start, (last,) = chain(before, (aten.reshape.default, (after,), after))
    found = [(dim, at) for dim in range(len(before)) for at in range(len(after)) if last.at(at) == start.at(dim) != ()]
    assert dict(found) == kept
    assert {dim for dim in range(len(before)) if set(start.at(dim)) & set(last.mixed)} == lost


def test_a_factor_that_stands_in_a_value_twice_is_split_once() -> None:
    """x xᵀ has each row twice; its entries are of no one row."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    turned = graph.call_function(aten.t.default, (x,))
    square = graph.call_function(aten.mm.default, (x, turned))
    viewed = graph.call_function(aten.view.default, (square, [2, 3, 2, 3]))
    for node, shape in ((x, (6, 5)), (turned, (5, 6)), (square, (6, 6)), (viewed, (2, 3, 2, 3))):
        node.meta = {"shape": shape}
    found = follow(x, [turned, square, viewed])
    layout, rows = found.get(viewed), found.start.at(0)
    assert layout is not None
    assert layout.present == (*rows, *rows)
    assert set(rows) <= set(leaves(layout.mixed))


def test_slices_remember_what_they_are_cut_from() -> None:
    start, (cut, last) = chain(
        ("batch", 8), (aten.slice.Tensor, (1, 0, 6), ("batch", 6)), (aten.view.default, ([-1, 2, 3],), ("batch", 2, 3))
    )
    assert cut.at(0) == start.at(0)
    assert {root for factor in last.present for root in factor.roots()} == {*start.at(0), *start.at(1)}


@pytest.mark.parametrize(
    "text", ["4*batch", "batch*length*2", "(length + 1)*3", "length**2", "batch//2", "2*(length//3)"]
)
def test_sizes(text: str) -> None:
    size = Size.of(text)
    assert size.over(size) == Size(1)
    assert Size.of(f"2*({text})").over(size) == Size(2)
    assert size.over(Size.of("other")) is None


def test_every_entry_is_of_an_operator() -> None:
    assert all(isinstance(packet, torch._ops.OpOverloadPacket) for packet in LAYOUTS)
