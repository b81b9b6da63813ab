from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

from jetgraph.algebra.rules import Freeze
from jetgraph.errors import InputError, JetGraphError, MissingRuleError
from jetgraph.jets import Series, evaluate
from jetgraph.jets.registry import find_rule
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
    with pytest.raises(JetGraphError, match="not 0"):
        evaluate(graph.nodes, graph.values(torch.ones(2)), frozen=Freeze())


def test_direction_alone_passes_a_linear_map() -> None:
    weight, bias = torch.randn(3, 4), torch.randn(3)
    graph = Graph(lambda x, w, b: F.linear(x, w, b), torch.ones(2, 4), weight, bias)
    t = torch.randn(2, 4)
    result = evaluate(graph.nodes, graph.values(Series(t[None], 1, start=1), weight, bias), 1)[graph.result]
    torch.testing.assert_close(result.coefficient(1), t @ weight.T)
    torch.testing.assert_close(result.coefficient(0), bias.expand(2, 3))


def test_products_are_written_into_memory_that_is_offered() -> None:
    """As often as they are run, where that rounds no more than without."""
    x, w, b = torch.randn(4, 4), torch.randn(4, 4), torch.randn(4)
    graph = Graph(lambda x, w, b: (x.exp(), x @ w, torch.addmm(b, x, w), F.linear(x, w), F.linear(x, w, b)), x, w, b)
    plain = evaluate(graph.nodes, graph.values(x, w, b))
    products = [node for node in graph.nodes if node.meta["val"].shape == (4, 4)]
    written = {"mm": True, "addmm": True, "exp": False}
    for _ in range(5):
        out = {node: torch.full((4, 4), torch.nan) for node in products}
        values = evaluate(graph.nodes, graph.values(x, w, b), out=out)
        for node in graph.outputs:
            assert torch.equal(values[node], plain[node])
            name = node.target.__name__.split(".")[0]
            expected = written.get(name, name == "linear" and len(node.args) == 2)
            assert (values[node] is out[node]) == expected, node


def _fails(x: torch.Tensor) -> torch.Tensor:
    raise KeyError("inside")


def test_nodes_of_all_kinds() -> None:
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(2, 2)

    graph = fx.Graph()
    x = graph.placeholder("x")
    weight = graph.get_attr("inner.weight")
    total = graph.call_function(torch.ops.aten.add.Tensor, (x, weight))
    called = graph.call_module("inner", (total,))
    failed = graph.call_function(_fails, (total,))
    model = Holder()
    fx.GraphModule(model, graph)
    graph.owning_module = model  # type: ignore[assignment]
    given = torch.ones(2, 2)
    assert torch.equal(evaluate([x, weight, total], {x: given})[total], given + model.inner.weight)
    with pytest.raises(InputError, match=r"the input 'x' has no value"):
        evaluate([x, weight, total], {})
    with pytest.raises(InputError, match=r"node 'inner' is a call_module; only call_function"):
        evaluate([x, weight, total, called], {x: given})
    with pytest.raises(KeyError, match="inside") as caught:
        evaluate([weight, total, failed], {x: given})
    assert "while evaluating node" in caught.value.__notes__[0]


def test_an_op_without_a_rule_whose_values_are_steps_is_taken_at_the_centre() -> None:
    steps = torch.tensor([0.0, 1.0])
    graph = Graph(lambda x, steps: x * torch.isin(x, steps), torch.ones(3), steps)
    assert find_rule(graph.node("isin").target) is None
    x = Series.variate(torch.tensor([0.0, 0.5, 1.0]), torch.ones(3), 1)
    values = evaluate(graph.nodes, graph.values(x, steps), 1)
    assert values[graph.result].stacked().tolist() == [[0, 0, 1], [1, 0, 1]]


def test_what_to_register_is_said_once() -> None:
    for x, lacks, said in (
        (torch.ones(2), r"Taylor rule\.", r"kind='composite'\)"),
        (1j * torch.ones(2), r"Taylor rule for complex values\.", "complex_values=True"),
    ):
        graph = Graph(torch.special.airy_ai if not x.is_complex() else torch.acosh, x)
        with pytest.raises(
            MissingRuleError, match=rf"^torch\.ops\.aten\.\w+\.default in [^:]*has no {lacks}(?:.|\n)*{said}"
        ):
            evaluate(graph.nodes, graph.values(Series.variate(x, x, 1)), 1)


def test_an_argument_that_varies_where_the_rule_has_a_constant_is_named() -> None:
    signal, window = torch.randn(40), torch.ones(8)
    graph = Graph(lambda x, w: torch.view_as_real(torch.stft(x, 8, window=w, return_complex=True)), signal, window)
    values = graph.values(signal, Series.variate(window, window, 1))
    with pytest.raises(MissingRuleError, match=r"aten\.stft\.default in the root module .* its window as a constant"):
        evaluate(graph.nodes, values, 1)


def test_rows_of_a_table() -> None:
    graph = Graph(lambda i, table: F.embedding(i, table, 0), torch.ones(2, dtype=torch.long), torch.ones(5, 3))
    table = torch.arange(15.0).reshape(5, 3)
    # More often than a chain is interpreted before it is code.
    for _ in range(5):
        found = evaluate(graph.nodes, graph.values(torch.tensor([4, 0]), table))[graph.result]
        assert torch.equal(found, table[[4, 0]])
    for row in (5, -1):
        with pytest.raises(InputError, match="row numbers must be 0 to 4"):
            evaluate(graph.nodes, graph.values(torch.tensor([0, row]), table))
