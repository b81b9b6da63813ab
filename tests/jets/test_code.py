"""Chains on tensors as code, against their interpretation, which the first runs of a chain are."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from jetgraph.errors import InputError
from jetgraph.jets import Series, code, evaluate
from jetgraph.jets.code import RUNS, Code, code_of
from jetgraph.jets.interpreter import check_rows
from tests.jets.graphs import Graph


def varied(x: Tensor, table: Tensor) -> Tensor:
    """Arguments of every form: lists, texts, types, numbers that are no literals, an operator with two results."""
    low, high = torch.cat([x, x.flip(0)], -1).topk(2, -1)
    y = F.gelu(low, approximate="tanh").to(torch.float64).masked_fill(low > 0, -torch.inf)
    y = torch.nan_to_num(y, neginf=1e-9) + F.pad(high, (1, -1)).clamp(max=3.5)
    return y + F.embedding(high % 3 + 3, table)[..., :2].sum(-1)


def test_code_is_the_interpretation() -> None:
    x, table = torch.randn(3, 4), torch.randn(6, 5, dtype=torch.float64)
    graph = Graph(varied, x, table)
    run = Code(graph.nodes, None, check_rows)
    for given in (x, torch.randn(3, 4)):
        # Memory for results is for the interpreter alone.
        own = evaluate(graph.nodes, graph.values(given, table), out={})
        found = run(graph.values(given, table))
        assert found is not None
        assert list(found) == graph.nodes
        for node, value in found.items():
            torch.testing.assert_close(value, own[node], rtol=0, atol=0, equal_nan=True)


def test_a_chain_is_code_after_some_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code, "_LIMIT", 2)
    nodes = tuple(Graph(lambda x: x.exp().sin(), torch.ones(2)).nodes)
    chains = nodes, nodes[:1]
    for _ in range(RUNS):
        assert [code_of(chain, None, check_rows) for chain in chains] == [None, None]
    made = [code_of(chain, None, check_rows) for chain in chains]
    assert None not in made
    assert [code_of(chain, None, check_rows) for chain in chains] == made
    # One more than are remembered.
    assert code_of(nodes, nodes[:1], check_rows) is None
    assert code_of(nodes, None, check_rows) is None
    assert code_of((), None, check_rows) is None


def test_a_series_is_interpreted() -> None:
    graph = Graph(lambda x: x.exp().sin(), torch.ones(2))
    for _ in range(RUNS + 2):
        value = evaluate(graph.nodes, graph.values(Series.constant(torch.ones(2), 0)), keep=(graph.result,))
        assert isinstance(value[graph.result], Series)
        assert isinstance(evaluate(graph.nodes, graph.values(torch.ones(2)))[graph.result], Tensor)


class Alive(TorchDispatchMode):
    """The largest number of results that were alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.results: list[weakref.ref[Tensor]] = []
        self.most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.results = [one for one in self.results if one() is not None] + [weakref.ref(result)]
        self.most = max(self.most, len(self.results))
        return result


def test_what_nothing_waits_for_is_dropped() -> None:
    def long(x: Tensor) -> Tensor:
        for _ in range(9):
            x = x.sin() * x
        return x

    graph = Graph(long, torch.ones(2))
    most = []
    for _ in range(RUNS + 2):
        with Alive() as alive:
            evaluate(graph.nodes, graph.values(torch.ones(2)), keep=(graph.result,))
        most.append(alive.most)
    # Three that a product takes, and one that the mode still holds.
    assert max(most) <= 4


@pytest.mark.parametrize(
    ("rows", "error", "says"), [((0, 7), InputError, "embedding.*row numbers"), ((0, 1), RuntimeError, "must match")]
)
def test_errors_say_where(rows: tuple[int, int], error: type[Exception], says: str) -> None:
    graph = Graph(
        lambda i, table, x: table[0] + F.embedding(i, table) + x,
        torch.tensor(rows[:1]),
        torch.ones(3, 4),
        torch.ones(4),
    )
    for _ in range(RUNS + 2):
        evaluate(graph.nodes, graph.values(torch.tensor([0]), torch.ones(3, 4), torch.ones(4)))
        with pytest.raises(error, match=says) as caught:
            evaluate(graph.nodes, graph.values(torch.tensor(rows), torch.ones(3, 4), torch.ones(3)))
        assert error is InputError or "aten.add" in caught.value.__notes__[0]
        with pytest.raises(InputError, match=r"reads .*no value"):
            evaluate(graph.nodes, {})
