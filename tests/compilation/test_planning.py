"""From paths to operations: a rule from outside needs a line of the table, and what is read is what is needed."""

from __future__ import annotations

import functools
import gc
import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import jetgraph as jg
from jetgraph.algebra import Hop, Rule, Site
from jetgraph.compilation import passing, planning
from jetgraph.compilation.plan import Matched, Open
from tests import zoo
from tests.conftest import Example
from tests.tracing.models import Residual


@dataclass(frozen=True, slots=True)
class Plain(Rule):
    """f(t) for every incoming term t, unweighted."""

    name: ClassVar[str] = "plain"

    def hops(self, site: Site) -> tuple[Hop | None, ...]:
        return (Hop(site.alias),)


def _plain(lane: passing.Crossed, at: passing.Crossing, given: passing.Given) -> passing.Made:
    made = lane.land(at, lane.coefficient(at, lane.through(at, lane.value(), 0), 0))
    return dict.fromkeys(given.values(), made)


def test_a_rule_from_outside_runs(traced: Callable[..., Example], monkeypatch: pytest.MonkeyPatch) -> None:
    """It gives what a jet of order 0 with weight 1 gives."""
    monkeypatch.setitem(passing.RULES, Plain, _plain)
    example = traced(zoo.case("gpt2"))
    with torch.no_grad():
        plain, jets = (
            jg.compile(jg.expand(example.graph, 0, weights="unit", rules={"*.mlp": rule}))(**example.inputs)
            for rule in (Plain(), jg.Jet(0, weights="unit"))
        )
    assert len(plain.terms) == len(jets.terms) > 4
    for path, value in plain.terms.items():
        named = " > ".join(f"{hop.alias}^0" if hop.alias.endswith("mlp") else str(hop) for hop in path.hops)
        assert torch.equal(value, jets.terms[jg.Path.parse(named)])


@pytest.mark.parametrize(
    ("rules", "point"),
    [({}, None), ({"L0.mlp": jg.Atom()}, 2), ({"L1.attn": jg.Freeze()}, 2), ({"logits": jg.Jet(1)}, 4)],
    ids=["none", "atom", "freeze", "order"],
)
def test_the_last_point_that_is_read(rules: dict[str, Rule], point: int | None, traced: Callable[..., Example]) -> None:
    """The true stream is run as far as a rule needs it, and not at all where every jet is of order 0."""
    module = jg.compile(jg.expand(traced(zoo.case("gpt2")).graph, 0, rules=rules))
    assert module.plan.last == point


class Net(torch.nn.Module):
    """Blocks of one or two branches side by side."""

    def __init__(self, *widths: int) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList(torch.nn.ModuleList(_branch() for _ in range(width)) for width in widths)
        self.norm, self.head = torch.nn.LayerNorm(6), torch.nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + sum(branch(x) for branch in block)  # type: ignore[assignment]
        return self.head(self.norm(x))


def _branch() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.LayerNorm(6), torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 6))


@functools.cache
def traced_net(*widths: int) -> tuple[jg.ResidualGraph, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 6, dtype=torch.float64)
    return jg.trace(Net(*widths).double().eval(), x=x), x


@pytest.mark.parametrize("order", [0, 1, 2])
@torch.no_grad()
def test_values_that_pass_together_are_those_that_pass_alone(order: int) -> None:
    """Branches side by side read one and the same series."""
    graph, x = traced_net(1, 2, 2)
    expansion = jg.expand(graph, order, weights="unit")
    paths = list(expansion)[:: 1 + expansion.count() // 200]
    together = jg.compile(expansion, paths)(x=x)
    for memory, chosen in ((0, paths), (1, paths), (None, paths[::17])):
        options = {} if memory is None else {"memory": memory}
        other = jg.compile(expansion, chosen, **options)(x=x)
        for path in chosen:
            torch.testing.assert_close(other.terms[path], together.terms[path], rtol=1e-9, atol=1e-12)


class Kinks(torch.nn.Module):
    """Blocks over images, after a stem whose ReLU leaves exact zeros; what comes out of a sum depends on `kind`."""

    def __init__(self, kind: str, act: type[torch.nn.Module]) -> None:
        super().__init__()
        self.kind, self.act = kind, act()
        conv = [torch.nn.Conv2d(3, 6, 3, padding=1), torch.nn.BatchNorm2d(6), torch.nn.ReLU()]
        self.stem = torch.nn.Sequential(*conv)
        self.blocks = torch.nn.ModuleList(torch.nn.ModuleList(_convolutions(act) for _ in range(2)) for _ in range(2))
        self.norms = torch.nn.ModuleList(torch.nn.GroupNorm(2, 6) for _ in range(2))
        self.head = torch.nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for (one, other), norm in zip(self.blocks, self.norms, strict=True):
            h = h + one(h) + (other(h) if self.kind == "parallel" else 0.0)
            h = norm(h) if self.kind == "post-norm" else h if self.kind == "pre" else self.act(h)
        return self.head(h.mean((2, 3)))


def _convolutions(act: type[torch.nn.Module]) -> torch.nn.Module:
    conv = torch.nn.Conv2d
    return torch.nn.Sequential(conv(6, 6, 3, padding=1), torch.nn.BatchNorm2d(6), act(), conv(6, 6, 3, padding=1))


@pytest.mark.parametrize("act", [torch.nn.ReLU, torch.nn.GELU])
@pytest.mark.parametrize("kind", ["pre", "post-act", "post-norm", "parallel"])
@torch.no_grad()
def test_values_do_not_depend_on_their_company(kind: str, act: type[torch.nn.Module]) -> None:
    """Alone, in pairs and all together: at a kink nothing that is zero by structure is the rest of two roundings."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    expansion = jg.expand(jg.trace(Kinks(kind, act).double().eval(), x=x, dynamic=False), 1, orders="apart")
    paths = list(expansion)
    together = jg.compile(expansion, paths)(x=x).terms
    for first, second in pairwise(paths[:: 1 + len(paths) // 40]):
        pair = jg.compile(expansion, [first, second])(x=x).terms
        alone = jg.compile(expansion, [first])(x=x).terms[first]
        for other in (pair[first], together[first]):
            torch.testing.assert_close(other, alone, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("widths", [(1, 1), (2, 1)])
@torch.no_grad()
def test_directions_along_terms_through_several_sites(widths: tuple[int, ...]) -> None:
    """Σ_{i≠m} w_i Df(x_i)[t_m] at the decoder, by forward mode over all terms that arrive there."""
    graph, x = traced_net(*widths)
    expansion = jg.expand(graph, 1, directions="terms", orders="apart", scale="none")
    values = jg.compile(expansion)(x=x)
    region = graph.structure.decoder.nonlinear
    forward = graph.run(x=x)
    # What arrives at the decoder are the terms of an expansion with an affine one: the values before it.
    arriving = {path.hops[:-1]: path for path in expansion if path.sink.order == 0}
    centres = {hops: _before(graph, expansion, forward, hops) for hops in arriving if hops[0].alias != "bias"}
    weight = 1 / expansion.incoming(expansion.sink - 1)
    assert len(centres) == expansion.incoming(expansion.sink - 1)

    def nu(value: Tensor) -> Tensor:
        return forward.through(region, value)

    for hops, term in centres.items():
        expected = torch.zeros_like(term)
        for other, centre in centres.items():
            if other != hops:
                expected += weight * torch.func.jvp(nu, (centre,), (term,))[1]
        path = next(p for p in expansion if p.hops[:-1] == hops and p.sink.order == 1)
        torch.testing.assert_close(values.hidden[path], expected, rtol=1e-8, atol=1e-10)


@torch.no_grad()
def test_directions_along_terms_stay_together() -> None:
    """What is due to a term at a site: f at it, and what it does as a direction at the other centres."""
    graph, x = traced_net(2)
    whole = jg.compile(jg.expand(graph, 1, directions="terms", orders="together"))(x=x)
    # Before the decoder, whose centres would differ, nothing is apart.
    rules = {"*.mlp*": jg.Jet(1, "terms", orders="together"), "logits": jg.Jet(1, "terms", orders="apart")}
    apart = jg.compile(jg.expand(graph, 1, directions="terms", rules=rules))(x=x)
    for path, value in whole.terms.items():
        if path.length or str(path.source) == "embed":
            parts = [apart.terms[f"{str(path).rpartition(' > ')[0]} > logits^{order}"] for order in range(2)]
            torch.testing.assert_close(value, sum(parts), rtol=1e-10, atol=1e-12)
    assert len(whole.terms) == 3 + 1


def _before(graph: jg.ResidualGraph, expansion: jg.Expansion, forward: Any, hops: tuple[Hop, ...]) -> Tensor:
    """A term at the last point of the stream, by forward mode through the sites' own code."""
    weights = {hop.alias: float(expansion.centre_weight(hop.alias, before.alias)) for before, hop in pairwise(hops)}
    value = forward.summand(hops[0].alias)
    for at, hop in enumerate(hops[1:], 1):
        branch, read = graph.branches[hop.alias], expansion.passage(hop.alias).reads

        def function(h: Tensor, branch: Any = branch) -> Tensor:
            return forward.branch(branch, h)

        if hop.order == 0:
            value = weights[hop.alias] * function(value)
            continue
        total = torch.zeros_like(value)
        for other in _arriving(expansion, read):
            if other != hops[:at]:
                share = float(expansion.centre_weight(hop.alias, other[-1].alias))
                centre = _before(graph, expansion, forward, other)
                total += share * torch.func.jvp(function, (centre,), (value,))[1]
        value = total
    return value


def _arriving(expansion: jg.Expansion, point: int) -> list[tuple[Hop, ...]]:
    """The hops of all terms at a point."""
    found = [(Hop(entry.source.alias),) for entry in expansion.automaton.entering[point]]
    for move in expansion.automaton.moves[point - 1] if point else ():
        for hops in _arriving(expansion, move.start):
            found.append(hops if move.hop is None else (*hops, move.hop))
    return found


def test_sizes_of_a_table_are_the_models() -> None:
    graph, _ = traced_net(1)
    plan = jg.compile(jg.expand(graph, 0)).plan
    assert "batch 3" in plan.table(batch=3)
    with pytest.raises(jg.InputError, match="no open size of this model"):
        plan.table(lenght=512)
    with pytest.raises(jg.InputError, match="no number from 1 on"):
        plan.table(batch=0)


@pytest.mark.parametrize("options", [{"directions": "terms"}, {"split": "heads"}, {}], ids=["terms", "heads", "plain"])
def test_each_centre_is_matched_once(options: dict[str, Any], traced: Callable[..., Example]) -> None:
    """However many jets there are around it, and parts of the branch that it passes; and it is opened once."""
    example = traced(zoo.case("llama"))
    expansion = jg.expand(example.graph, 1, **options)
    module = jg.compile(expansion)
    matched = [operation for operation in module.plan.operations if isinstance(operation, Matched)]
    incoming: dict[str, int] = {}
    for alias, passage in expansion.passages.items():
        # The parts of a branch read the same terms, and the first of all is the stream itself.
        incoming[alias.partition(".head")[0]] = expansion.incoming(passage.reads)
    assert Counter(operation.site for operation in matched) == incoming
    opened = Counter(operation.site for operation in module.plan.operations if isinstance(operation, Open))
    assert opened == (
        {alias: incoming[alias] for alias in incoming if alias.endswith("attn")} if "split" in options else {}
    )
    with torch.no_grad():
        values = module(**example.inputs)
        tokens = values.output[..., 0].numel()
    assert {site: number for site, (_, number) in values.unmatched.items()} == {
        site: number * tokens for site, number in incoming.items()
    }


def test_what_is_compiled_again_is_planned_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same plan for the same request of a graph, another for any other; it keeps no graph alive."""
    graph = jg.trace(torch.nn.Sequential(Residual(4), Residual(4)).eval(), torch.randn(2, 4), dynamic=False)

    def plan(graph: jg.ResidualGraph, **options: Any) -> Any:
        given: dict[str, Any] = {"order": 1, **options}
        return jg.compile(jg.expand(graph, **given)).plan

    first = plan(graph)
    assert plan(graph) is first
    expansion = jg.expand(graph, 1)
    some = jg.compile(expansion, [*jg.select(expansion, "**")][:1]).plan
    others = [
        plan(graph, order=0),
        plan(graph, scale="none"),
        plan(graph, weights="unit"),
        plan(graph, rules={"L0.*": jg.Atom()}),
        some,
    ]
    assert len({id(one) for one in (first, *others)}) == 6
    # Weights that have no hash, and more plans than are kept.
    by_name = plan(graph, weights={"L0.*": 2.0})
    assert plan(graph, weights={"L0.*": 2.0}) is not by_name
    monkeypatch.setattr(planning, "KEPT", 1)
    assert plan(graph, order=2) is plan(graph, order=2)
    assert plan(graph) is not first
    gone = weakref.ref(graph)
    del graph, expansion, first, some, others, by_name
    gc.collect()
    assert gone() is None
