from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from jetgraph.algebra.rules import Freeze
from jetgraph.errors import JetGraphError
from jetgraph.jets import Series, evaluate
from tests.jets.graphs import Graph


def test_plain_replay_is_the_model() -> None:
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    x = torch.randn(2, 3, 8)
    graph = Graph(model, x)
    assert torch.equal(evaluate(graph.nodes, graph.values(x))[graph.result], model(x))


def test_keep_drops_what_was_computed_and_nothing_that_was_given() -> None:
    graph = Graph(lambda x: (x.exp() + 1).sin(), torch.ones(2))
    values = graph.values(torch.ones(2))
    given = set(values)
    middle = graph.node("add")
    assert set(evaluate(graph.nodes, values, keep=(graph.result,))) == given | {graph.result}
    assert set(evaluate(graph.nodes, graph.values(torch.ones(2)), keep=(middle,))) == given | {middle}
    assert set(evaluate(graph.nodes, graph.values(torch.ones(2)))) == given | set(graph.nodes)


def test_part_of_a_graph() -> None:
    graph = Graph(lambda x: (x.exp() + 1).sin(), torch.ones(2))
    start = graph.node("exp")
    rest = graph.nodes[graph.nodes.index(start) + 1 :]
    result = evaluate(rest, {start: Series.variate(torch.zeros(2), torch.ones(2), 2)}, 2)[graph.result]
    expected = torch.tensor([1.0]).sin().item(), torch.tensor([1.0]).cos().item(), -torch.tensor([1.0]).sin().item() / 2
    assert result.stacked()[:, 0].tolist() == pytest.approx(expected)


def test_series_in_lists_and_keywords() -> None:
    graph = Graph(lambda x, y: torch.cat([x, y, x]).to(dtype=torch.float64), torch.ones(1), torch.ones(1))
    x = Series.variate(torch.ones(1), torch.ones(1), 2)
    result = evaluate(graph.nodes, graph.values(x, torch.full((1,), 5.0)), 2)[graph.result]
    assert result.stacked().tolist() == [[1, 5, 1], [1, 0, 1], [0, 0, 0]]
    assert result.dtype == torch.float64


def test_other_shapes_than_the_trace() -> None:
    batch = torch.export.Dim("batch")
    program = torch.export.export(
        _Doubled(), (torch.ones(3, 2),), dynamic_shapes=({0: batch},), strict=False
    ).run_decompositions({})
    (source, *nodes) = [node for node in program.graph.nodes if node.op != "output"]
    x = Series.variate(torch.ones(5, 2), torch.ones(5, 2), 1)
    result = evaluate(nodes, {source: x}, 1)[nodes[-1]]
    assert result.stacked().tolist() == [[10.0] * 10, [10.0] * 10]


class _Doubled(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(x.shape[0] * 2) * x.shape[0] * 2


def test_missing_value_is_named() -> None:
    graph = Graph(lambda x: x.exp(), torch.ones(2))
    with pytest.raises(JetGraphError, match="has no value"):
        evaluate(graph.nodes, {})


def test_frozen_evaluation_has_order_one() -> None:
    graph = Graph(lambda x: x.exp(), torch.ones(2))
    with pytest.raises(JetGraphError, match="order 1"):
        evaluate(graph.nodes, graph.values(torch.ones(2)), 2, frozen=Freeze())


def test_direction_alone_passes_a_linear_map() -> None:
    weight, bias = torch.randn(3, 4), torch.randn(3)
    graph = Graph(lambda x, w, b: F.linear(x, w, b), torch.ones(2, 4), weight, bias)
    t = torch.randn(2, 4)
    result = evaluate(graph.nodes, graph.values(Series(t[None], 1, start=1), weight, bias), 1)[graph.result]
    torch.testing.assert_close(result.coefficient(1), t @ weight.T)
    torch.testing.assert_close(result.coefficient(0), bias.expand(2, 3))
