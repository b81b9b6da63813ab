"""The largest paths and their energy against all terms, listed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import jetgraph as jg
from jetgraph.compilation.bounds import energies
from jetgraph.compilation.components import Readout, Stream
from jetgraph.compilation.search import Search, search
from tests.compilation.test_flows import one_example
from tests.conftest import Example
from tests.structure import test_gated_joins as gated
from tests.structure import test_long_skips as skips
from tests.zoo import ROUTED, case


def values_of(graph: jg.ResidualGraph, inputs: dict[str, Any], readout: Readout) -> dict[str, float]:
    """All paths and what they give a target."""
    with torch.no_grad():
        terms = jg.compile(jg.expand(graph, rules={"*": jg.Freeze()}))(**inputs).terms
    read: Callable[[Tensor], Tensor] = lambda term: term[0] if readout.place is None else term[0, readout.place]  # noqa: E731
    return {str(path): float((read(term).double() * readout.weights).sum()) for path, term in terms.items()}


def searched(
    graph: jg.ResidualGraph,
    inputs: dict[str, Any],
    readout: Readout,
    top: int | None = None,
    least: float | None = None,
    *,
    memory: int = 2**30,
    signs: int = 64,
) -> Search:
    expansion = jg.expand(graph, rules={"*": jg.Freeze()})
    with torch.no_grad():
        stream = Stream(expansion, graph.run(**inputs), False, 2**28)
        back = stream.cotangents([readout])[0]
        return search(stream, readout, energies(stream, back, signs, memory, 0), back, top, least)


def named(found: Search) -> list[tuple[str, float]]:
    return [(" > ".join(str(hop) for hop, _ in one.steps), one.value) for one in found.found]


def check_search(graph: jg.ResidualGraph, inputs: dict[str, Any], exact: float) -> None:
    inputs = one_example(inputs)
    with torch.no_grad():
        output = graph(**inputs)
    place = None if output.dim() == 2 else output.shape[1] - 1
    readout = Readout(place, torch.linspace(-1, 2, output.shape[-1], dtype=torch.float64).flip(0))
    values = values_of(graph, inputs, readout)
    ranked = sorted(values.items(), key=lambda item: -abs(item[1]))
    top = min(7, len(ranked))
    size = abs(ranked[0][1])
    found = searched(graph, inputs, readout, top)
    assert [value for _, value in named(found)] == pytest.approx(
        [v for _, v in ranked[:top]], rel=exact, abs=exact * size
    )
    for path, value in named(found):
        assert values[path] == pytest.approx(value, rel=exact, abs=exact * size)
    assert found.error == 0
    assert found.energy == pytest.approx(sum(value**2 for value in values.values()), rel=10 * exact)
    least = abs(ranked[top - 1][1]) * (1 - 10 * exact)
    all_of_them = searched(graph, inputs, readout, None, least)
    assert {path for path, _ in named(all_of_them)} == {path for path, value in values.items() if abs(value) >= least}
    # Estimated, with signs enough to miss nothing here.
    estimated = searched(graph, inputs, readout, top, memory=1, signs=512)
    assert [v for _, v in named(estimated)] == pytest.approx([v for _, v in ranked[:top]], rel=exact, abs=exact * size)
    assert estimated.error > 0 or found.energy == 0
    assert abs(estimated.energy - found.energy) <= 6 * estimated.error + exact * found.energy


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "opt_post_norm", "bart", "unet_additive", "scaled_skip"])
def test_the_top_is_that_of_all_terms(name: str, traced: Callable[..., Example]) -> None:
    example = traced(case(name))
    check_search(example.graph, example.inputs, 1e-4)


def test_the_top_of_a_mixture_of_experts(traced: Callable[..., Example]) -> None:
    example = traced(ROUTED[0])
    check_search(example.graph, example.inputs, 1e-4)


@pytest.mark.parametrize("run", [skips.added_again, skips.weighted_history, skips.concatenated])
def test_the_top_over_long_skips(run: Any) -> None:
    net, inputs, _ = skips.traced(run)
    alone = {"x": inputs["x"][:1]}
    check_search(jg.trace(net, **alone, dynamic=False), alone, 1e-9)


def test_the_top_past_gated_skips() -> None:
    net, inputs, _ = gated.traced(gated.Highway, gated.Squeezed)
    alone = {"x": inputs["x"][:1]}
    check_search(jg.trace(net, **alone, dynamic=False), alone, 1e-9)


class Cancelling(nn.Module):
    """h + a h, + b h; of a path that is named nearly nothing is left, for what it passes last is orthogonal to it."""

    def __init__(self, x: Tensor, which: str) -> None:
        super().__init__()
        self.a, self.b, self.out = (nn.Linear(3, 3, bias=False, dtype=x.dtype) for _ in range(3))
        with torch.no_grad():
            for layer in (self.a, self.b, self.out):
                layer.weight.copy_(torch.tensor([[2.0, -1.0, 1.0], [1.0, 3.0, -1.0], [1.0, 1.0, 2.0]]))
            last, value = (self.a, x) if which == "a" else (self.b, x if which == "b" else self.a(x))
            value = value.flatten()
            other = torch.linalg.cross(value, torch.tensor([1.0, 2.0, 3.0], dtype=value.dtype))
            last.weight.copy_(torch.ones(3)[:, None] * (other + 1e-9 * value))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.a(x)
        return self.out(x + self.b(x))


@pytest.mark.parametrize("which", ["a", "b", "a, b"])
def test_paths_whose_energy_is_lost_in_rounding(which: str) -> None:
    """The square of what is left where large numbers cancel is smaller than what rounding makes of the energy."""
    readout = Readout(0, torch.tensor([1.0, 0.7, -0.4], dtype=torch.float64))
    for x in torch.tensor([[0.3, 1.1, -0.7], [0.9, 0.4, 0.2], [-0.5, 0.6, 1.3]], dtype=torch.float64):
        x = x[None, None]
        graph = jg.trace(Cancelling(x, which).eval(), x, dynamic=False)
        values = sorted(map(abs, values_of(graph, {"x": x}, readout).values()))
        assert values[0] < 1e-6 * values[-1]
        for told_apart in (False, True):
            stream = Stream(jg.expand(graph, rules={"*": jg.Freeze()}), graph.run(x=x), told_apart, 2**28)
            back = stream.cotangents([readout])[0]
            found = search(stream, readout, energies(stream, back, 64, 2**30, 0), back, None, values[0] * (1 - 1e-6))
            assert len(found.found) == len(values)
            assert found.error == 0


def test_a_budget_stops_what_would_not_end(traced: Callable[..., Example], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jetgraph.compilation.search.PREFIX_BUDGET", 5)
    """It says for which least value it ends, of exact energies and of estimated ones."""
    example = traced(case("gpt2"))
    readout = Readout(0, torch.ones(example.output.shape[-1]).double().cumsum(0))
    for memory in (2**30, 0):
        with pytest.raises(jg.BudgetError, match="prefixes of paths") as refused:
            searched(example.graph, one_example(example.inputs), readout, None, 1e-9, memory=memory)
        fits = float(str(refused.value).partition("at_least=")[2].split()[0])
        assert searched(example.graph, one_example(example.inputs), readout, None, fits, memory=memory).visited
