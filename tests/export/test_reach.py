"""Walks over a graph of operators."""

from __future__ import annotations

from torch import fx

from jetgraph.export.reach import above, below


def diamond() -> dict[str, fx.Node]:
    """x → a, b → sum → end, and `side`, which sum reads too."""
    graph = fx.Graph()
    x, side = graph.placeholder("x"), graph.placeholder("side")
    a, b = graph.call_function(abs, (x,)), graph.call_function(round, (x,))
    total = graph.call_function(sum, ([a, b, side],))
    return {"x": x, "side": side, "a": a, "b": b, "sum": total, "end": graph.call_function(abs, (total,))}


def test_walks_hold_where_they_begin_and_all_that_they_reach() -> None:
    nodes = diamond()
    assert above([nodes["sum"]]) == {nodes[name] for name in ("x", "side", "a", "b", "sum")}
    assert below([nodes["x"]]) == {nodes[name] for name in ("x", "a", "b", "sum", "end")}
    assert below([nodes["side"], nodes["a"]]) == {nodes[name] for name in ("side", "a", "sum", "end")}
    assert above([]) == below([]) == set()


def test_what_a_walk_does_not_go_into_is_found_by_other_ways_alone() -> None:
    nodes = diamond()
    assert above([nodes["sum"]], lambda node: node is not nodes["a"]) == {
        nodes[name] for name in ("x", "side", "b", "sum")
    }
    assert below([nodes["x"]], lambda node: node not in (nodes["a"], nodes["b"])) == {nodes["x"]}
    begins = below([nodes["a"]], lambda node: node in (nodes["sum"],))
    assert begins == {nodes["a"], nodes["sum"]}, "where it begins it need not go into"
