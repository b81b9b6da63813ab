from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx

from jetgraph.errors import JetGraphError
from jetgraph.jets import is_affine, register_rule
from jetgraph.jets.registry import (
    RULES,
    adds_constant,
    constant_on_pieces,
    find_rule,
    is_native,
    op_name,
    readers,
    values_read,
)
from jetgraph.jets.series import Series
from tests.jets.graphs import Graph

aten = torch.ops.aten


def _identity(order: int, x: Series) -> Series:
    return x


def unknown_op(x: Tensor, y: Tensor | None = None) -> Tensor:
    return x


@pytest.fixture
def _forgotten() -> Iterator[None]:
    yield
    RULES.pop(unknown_op, None)


@pytest.mark.usefixtures("_forgotten")
def test_registering_twice_is_an_error_unless_replaced() -> None:
    register_rule(unknown_op, _identity, kind="linear")
    with pytest.raises(JetGraphError, match=r"unknown_op has a rule already; give replace=True"):
        register_rule(unknown_op, _identity, kind="linear")
    register_rule(unknown_op, _identity, kind="composite", replace=True)
    entry = find_rule(unknown_op)
    assert entry is not None
    assert (entry.kind, entry.affine, entry.complex_values, entry.through_zero) == ("composite", (), False, False)
    register_rule(unknown_op, _identity, kind="linear", replace=True)
    entry = find_rule(unknown_op)
    assert entry is not None
    assert (entry.affine, entry.complex_values) == ((frozenset({"x"}),), True)
    assert constant_on_pieces(unknown_op).complex_values


@pytest.mark.usefixtures("_forgotten")
def test_decorator_registers_and_returns_the_rule() -> None:
    decorated = register_rule(unknown_op, kind="linear", affine="x y")(_identity)
    assert decorated is _identity
    entry = find_rule(unknown_op)
    assert entry is not None
    assert entry.affine == (frozenset({"x", "y"}),)


def test_packet_is_refused_with_its_overloads() -> None:
    with pytest.raises(JetGraphError, match=r"torch\.ops\.aten\.exp\.default"):
        register_rule(aten.exp, _identity)


def test_unknown_kind_and_argument_are_refused() -> None:
    kind: Any = "cubic"
    with pytest.raises(JetGraphError, match="choose one of constant, linear"):
        register_rule(unknown_op, _identity, kind=kind)
    with pytest.raises(JetGraphError, match="has no argument z; it has x, y"):
        register_rule(unknown_op, _identity, affine="x z")
    with pytest.raises(JetGraphError, match="not of the form"):
        register_rule("library::name", _identity)
    register_rule("library.name.overload", _identity)
    assert RULES.pop("library.name.overload").rule is _identity


W = torch.ones(3, 3)


AFFINE: list[tuple[Callable[..., Any], str, bool]] = [
    (lambda x, y: F.linear(x, W), "x", True),
    (lambda x, y: F.linear(x, y), "x", True),
    (lambda x, y: F.linear(x, y), "xy", False),
    (lambda x, y: x + y, "xy", True),
    (lambda x, y: x * y, "x", True),
    (lambda x, y: x * y, "xy", False),
    (lambda x, y: x * x, "x", False),
    (lambda x, y: x / y, "x", True),
    (lambda x, y: x / y, "y", False),
    (lambda x, y: torch.cat([x, y, x]), "xy", True),
    (lambda x, y: torch.where(x > 0, x, y), "y", True),
    (lambda x, y: F.softmax(x, -1), "x", False),
    (lambda x, y: F.softmax(x, -1), "y", True),
    (lambda x, y: F.dropout(x, 0.1, False), "x", True),
    (lambda x, y: F.dropout(x, 0.1, True), "x", False),
    (lambda x, y: F.batch_norm(x, W[0], W[0]), "x", True),
    (lambda x, y: F.batch_norm(x, None, None, training=True), "x", False),
    (lambda x, y: torch.einsum("ij,jk->ik", x, y), "x", True),
    (lambda x, y: torch.einsum("ij,jk->ik", x, y), "xy", False),
    (lambda x, y: x.to(torch.float64), "x", True),
    (lambda x, y: x.to(torch.int64), "x", False),
    (lambda x, y: x**1, "x", True),
    (lambda x, y: x**2, "x", False),
    (lambda x, y: torch.zeros_like(x), "x", True),
    (lambda x, y: x.argmax(-1), "x", False),
    (lambda x, y: F.gelu(x), "x", False),
]


def test_is_affine() -> None:
    graph = Graph(lambda x, y: tuple(function(x, y) for function, _, _ in AFFINE), torch.ones(3, 3), torch.ones(3, 3))
    for place, (node, (_, names, expected)) in enumerate(zip(graph.outputs, AFFINE, strict=True)):
        flowing = {source for source, name in zip(graph.inputs, "xy", strict=True) if name in names}
        for other in graph.nodes:
            if flowing.intersection(other.all_input_nodes):
                flowing.add(other)
        behind = _ancestors(node)
        assert all(is_affine(n, flowing.__contains__) for n in behind & flowing) is expected, place


def _ancestors(node: fx.Node) -> set[fx.Node]:
    """The node and what it is computed from, inputs left out."""
    seen: set[fx.Node] = set()
    waiting = [node]
    while waiting:
        here = waiting.pop()
        if here.op != "placeholder" and here not in seen:
            seen.add(here)
            waiting += here.all_input_nodes
    return seen


ADDED: list[Callable[[Tensor, Tensor], Tensor]] = [
    lambda x, y: x + y,
    lambda x, y: x - 1,
    lambda x, y: x - 0,
    lambda x, y: x * y,
    lambda x, y: F.linear(x, W),
    lambda x, y: F.linear(x, W, y[0]),
    lambda x, y: torch.cat([x, y]),
    lambda x, y: torch.cat([x, torch.zeros_like(y), x]),
    lambda x, y: x.masked_fill(y > 2, 0.0),
    lambda x, y: x.masked_fill(y < 2, 3.0),
    # What is made of zeros alone is zero.
    lambda x, y: x + torch.zeros(3),
    lambda x, y: x + y.new_zeros(3),
    lambda x, y: x + torch.full((3,), 0.0),
    lambda x, y: x + torch.full((3,), 2.0),
    lambda x, y: x + torch.full_like(y, 0),
    lambda x, y: x + torch.full_like(y, 2),
    lambda x, y: x + y.new_full((3,), 0.0),
    lambda x, y: x + y.new_full((3,), 2.0),
    lambda x, y: x + torch.scalar_tensor(0.0),
    lambda x, y: x + torch.scalar_tensor(2.0),
    # So is a linear image of zeros, and a product with them.
    lambda x, y: x + torch.zeros(3).unsqueeze(0).expand(3, 3),
    lambda x, y: x + torch.full((3,), 2.0).unsqueeze(0),
    lambda x, y: x + torch.zeros(3) * y,
    lambda x, y: x + y * torch.zeros(3),
    lambda x, y: x + y @ torch.zeros(3, 3),
    lambda x, y: x + 2 * y,
    lambda x, y: x + torch.zeros(3) * 2,
    lambda x, y: x + (torch.zeros(3) + 1),
    lambda x, y: x + torch.zeros(3).exp(),
    lambda x, y: x + torch.special.airy_ai(torch.zeros(3)),
]


def test_adds_constant() -> None:
    """Whether it gives anything where what varies is zero."""
    y = torch.full((3, 3), 1.5)
    graph = Graph(lambda x, y: tuple(function(x, y) for function in ADDED), torch.ones(3, 3), y)
    for node in (*graph.inputs, *graph.nodes):
        # As in a traced graph.
        node.meta["shape"] = node.meta["val"].shape
    for function, node in zip(ADDED, graph.outputs, strict=True):
        expected = bool(function(torch.zeros(3, 3), y).any())
        assert adds_constant(node, lambda arg: arg is graph.inputs[0]) is expected, node
    assert not adds_constant(graph.outputs[0], lambda arg: False)


def test_attention_is_affine_in_the_values_alone() -> None:
    q, k, v = (torch.ones(1, 2, 3) for _ in range(3))
    graph = Graph(F.scaled_dot_product_attention, q, k, v)
    node = graph.node("scaled_dot_product")
    query, key, value = graph.inputs
    assert is_affine(node, lambda n: n is value)
    assert not is_affine(node, lambda n: n is query)
    assert not is_affine(node, lambda n: n is key or n is value)


def test_piece_of_a_split_is_affine() -> None:
    graph = Graph(lambda x: x.split(1)[1], torch.ones(2, 3))
    assert graph.result.target is operator.getitem
    assert is_affine(graph.node("split"), lambda node: True)
    assert is_affine(graph.result, lambda node: True)


def test_an_op_without_a_rule_is_not_affine() -> None:
    graph = Graph(lambda x: torch.special.airy_ai(x), torch.ones(4))
    unknown = next(node for node in graph.nodes if find_rule(node.target) is None)
    assert not is_affine(unknown, lambda node: True)
    assert is_affine(unknown, lambda node: False)
    assert not is_affine(graph.inputs[0], lambda node: True)
    assert not adds_constant(unknown, lambda node: True)


def test_what_a_node_reads() -> None:
    """Not what gives it a shape or a dtype, but where that shape depends on values."""
    graph = fx.Graph()
    x, y, found, bare = (graph.placeholder(name) for name in ("x", "y", "found", "bare"))
    x.meta["shape"], y.meta["shape"], found.meta["shape"] = (2, "s0"), (3,), ("u0", 3)
    call = graph.call_function
    for target, args, expected in (
        (aten.exp.default, (x,), [x]),
        (aten.cat.default, ([x, y],), [x, y]),
        (aten.special_airy_ai.default, (x,), [x]),
        (aten.zeros_like.default, (x,), []),
        (aten.zeros_like.default, (found,), [found]),
        (aten.zeros_like.default, (bare,), [bare]),
        (aten.expand_as.default, (x, y), [x]),
        (aten.expand_as.default, (y, y), [y]),
        (aten.expand_as.default, (y, found), [y, found]),
    ):
        assert values_read(call(target, args)) == expected, (target, args)
    assert [node.target for node in readers(x)] == [
        aten.exp.default,
        aten.cat.default,
        aten.special_airy_ai.default,
        aten.expand_as.default,
    ]


def test_names_and_origins_of_ops() -> None:
    assert op_name(operator.getitem) == "operator.getitem"
    assert op_name(aten.exp.default) == op_name("aten.exp.default") == "torch.ops.aten.exp.default"
    x = fx.Graph().placeholder("x")
    for op, native in (
        (aten.exp.default, True),
        (operator.getitem, True),
        (torch.ops.c10d_functional.wait_tensor.default, False),
    ):
        assert is_native(x.graph.call_function(op, (x,))) == native
