"""Beams against a recursion of their own over plain tensors, and against the exhaustive expansion."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import jetgraph as jg
from jetgraph.algebra.outline import MapStep
from tests import zoo
from tests.conftest import Example

WIDTH = 6


def norm(x: Tensor) -> Tensor:
    # Without ε, which would see the weights of centres.
    return x * (x * x).mean(-1, keepdim=True) ** -0.5


class Branch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 5), nn.Linear(5, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.tanh(self.up(norm(x))))


Step = tuple[int, str, Callable[[Tensor], Tensor]]
"""The point that a branch reads, its alias, and what it is."""


class Net(nn.Module):
    """Points of a stream, each made of the one before: `shape` says how."""

    def __init__(self, shape: str) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.shape = shape
        self.blocks = nn.ModuleList(Branch() for _ in range(4))
        self.tokens, self.places = nn.Embedding(9, WIDTH), nn.Embedding(9, WIDTH)
        self.head = nn.Linear(WIDTH, 7, bias=False)

    def start(self, ids: Tensor) -> dict[str, Tensor]:
        return {
            "embed": self.tokens(ids),
            "pos": self.places(torch.arange(ids.shape[1])).expand(len(ids), -1, -1).clone(),
        }

    def steps(self) -> list[list[Step] | None]:
        """The branches of each join; None for a norm of the stream."""
        a, b, c, d = self.blocks
        return {
            "chain": [[(0, "L0", a)], [(1, "L1", b)], [(2, "L2", c)], [(3, "L3", d)]],
            "parallel": [[(0, "L0", a), (0, "L0", b)], [(1, "L1", c), (1, "L1", d)]],
            "post norm": [[(0, "L0", a)], None, [(2, "L1", b)]],
            "long": [[(0, "L0", a)], [(1, "L1", b)], [(2, "L2", c), (0, "L2", d)]],
        }[self.shape]

    def points(self, ids: Tensor) -> list[Tensor]:
        points = [sum(self.start(ids).values(), torch.zeros(()))]
        for step in self.steps():
            last = points[-1]
            points.append(norm(last) if step is None else sum((f(points[r]) for r, _, f in step), last))
        return points

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(norm(self.points(ids)[-1]))


def by_hand(net: Net, graph: jg.ResidualGraph, ids: Tensor, order: int, width: int, size: Any) -> dict[str, Tensor]:
    """All terms of a beam, as a list of (text, value) at each point; jets of order 1 by forward mode."""
    points, sites = net.points(ids), [step.sites for step in graph.outline.steps]

    def passed(alias: str, read: int, f: Callable[[Tensor], Tensor], arriving: Any, apart: bool) -> list[Any]:
        ranked = sorted(range(len(arriving)), key=lambda i: -size(arriving[i][1], read))
        largest = sorted(ranked[:width])
        centres = [arriving[i] for i in largest]
        if len(arriving) > width:
            others = [value for i, (_, value) in enumerate(arriving) if i not in largest]
            centres.append(("rest", torch.stack(others).sum(0)))
        made = []
        for text, x in centres:
            value, slope = torch.func.jvp(f, (x,), (points[read] - x,))[:2]
            weighed = value / len(centres), slope / len(centres)
            if order == 0:
                made.append((f"{text} > {alias}^0", weighed[0]))
            elif apart:
                made += [(f"{text} > {alias}^{j}", weighed[j]) for j in range(2)]
            else:
                made.append((f"{text} > {alias}~1", weighed[0] + weighed[1]))
        return made

    terms = [list(net.start(ids).items())]
    for number, step in enumerate(net.steps()):
        here = [] if step is None else list(terms[-1])
        functions = [(number, "", norm)] if step is None else step
        for site, (read, _, f) in zip(sites[number], functions, strict=True):
            assert isinstance(graph.outline.steps[number], MapStep) == (step is None)
            here += passed(site.alias, read, f, terms[read], False)
        terms.append(here)
    end = passed("logits", len(points) - 1, norm, terms[-1], order > 0)
    return {text: net.head(value) for text, value in end}


@functools.cache
def traced_net(shape: str) -> tuple[Net, Tensor, jg.ResidualGraph]:
    net, ids = Net(shape).double().eval(), torch.tensor([[1, 5, 3], [0, 2, 8]])
    return net, ids, jg.trace(net, ids, dynamic=False)


@pytest.mark.parametrize("width", [1, 2, 3, 50])
@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("shape", ["chain", "parallel", "post norm", "long"])
@torch.no_grad()
def test_a_beam_by_hand(shape: str, order: int, width: int) -> None:
    """The same terms under the same names, whichever are the largest, and the same remainder."""
    net, ids, graph = traced_net(shape)
    expansion = jg.expand(graph, order, recipe="beam", width=width, weights="uniform", scale="none")
    values = jg.compile(expansion)(ids)
    expected = by_hand(net, graph, ids, order, width, lambda value, point: float(value.norm()))
    assert {str(path) for path in values.terms} == set(expected)
    for text, value in expected.items():
        torch.testing.assert_close(values.terms[text], value, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(values.remainder, net(ids) - sum(expected.values()), rtol=1e-8, atol=1e-10)
    # What each site leaves, from what the terms that pass it add.
    site = values.remainders["logits"]
    left = sum(net.head.weight @ row for row in site.value.flatten(0, 1)) - values.remainder.flatten(0, 1).sum(0)
    assert float(left.abs().max()) < 1e-8
    if width == 50:
        whole = jg.compile(jg.expand(graph, order, scale="none"))(ids)
        assert list(map(str, whole.terms)) == sorted(map(str, values.terms), key=list(map(str, whole.terms)).index)


@torch.no_grad()
def test_the_largest_for_a_target() -> None:
    """|⟨g, x⟩| for the gradient g of a logit by the point that is read."""
    net, ids, graph = traced_net("chain")
    with torch.enable_grad():
        h = [net.points(ids)[0].detach().requires_grad_()]
        for block in net.blocks:
            h.append(h[-1] + block(h[-1]))
        slopes = torch.autograd.grad(net.head(norm(h[-1]))[:, -1, 4].sum(), h)

    def size(value: Tensor, point: int) -> float:
        return abs(float((value * slopes[point]).sum()))

    expected = by_hand(net, graph, ids, 1, 3, size)
    values = jg.compile(jg.expand(graph, 1, recipe="beam", width=3, target=4, weights="uniform", scale="none"))(ids)
    assert {str(path) for path in values.terms} == set(expected)
    for text, value in expected.items():
        torch.testing.assert_close(values.terms[text], value, rtol=1e-8, atol=1e-10)
    by_norm = jg.compile(jg.expand(graph, 1, recipe="beam", width=3, weights="uniform", scale="none"))(ids)
    assert set(by_norm.terms) != set(values.terms)
    with pytest.raises(jg.InputError, match="target=9 is no token"):
        jg.compile(jg.expand(graph, 1, recipe="beam", width=2, target=9))(ids)


@pytest.mark.parametrize(
    "options",
    [{"weights": "uniform"}, {"weights": "optimal"}, {"weights": "unit"}, {"weights": "uniform", "scale": "none"}],
)
@pytest.mark.parametrize("name", ["gpt2", "gptj"])
@torch.no_grad()
def test_any_width_beyond_all_terms_is_exhaustive(
    name: str, options: dict[str, Any], traced: Callable[..., Example]
) -> None:
    example = traced(zoo.case(name))
    wide = jg.compile(jg.expand(example.graph, 1, recipe="beam", width=10**6, **options))(**example.inputs)
    whole = jg.compile(jg.expand(example.graph, 1, **options))(**example.inputs)
    assert set(wide.terms) == set(whole.terms)
    for path, value in whole.terms.items():
        torch.testing.assert_close(wide.terms[path], value, rtol=1e-5, atol=1e-6)
    narrow = jg.compile(jg.expand(example.graph, 1, recipe="beam", width=2, **options))(**example.inputs)
    assert len(narrow.terms) < len(whole.terms)
    total = sum(narrow.terms.values()) + narrow.remainder
    torch.testing.assert_close(total, example.output, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_parts_and_patterns_and_other_rules(traced: Callable[..., Example]) -> None:
    """Heads as sites, frozen sites beside jets, and only what a pattern asks for."""
    example = traced(zoo.case("gpt2"))
    expansion = jg.expand(
        example.graph, 1, recipe="beam", width=2, split="heads", rules={"*.mlp": jg.Freeze(), "logits": jg.Freeze()}
    )
    values = jg.compile(expansion)(**example.inputs)
    assert any("attn.head" in str(path) for path in values.terms)
    assert all(path in expansion for path in values.terms)
    some = jg.compile(expansion, "rest > ** > logits")(**example.inputs)
    assert [str(path) for path in some.terms] == [text for text in map(str, values.terms) if text.startswith("rest > ")]
    for path, value in some.terms.items():
        torch.testing.assert_close(value, values.terms[path])


@pytest.mark.parametrize("width", [1, 2, 4])
@torch.no_grad()
def test_the_usual_weights_are_the_best(width: int, traced: Callable[..., Example]) -> None:
    """At each site by itself: at the first one that has a choice, the sum of its jets is nearest to what it is."""
    example = traced(zoo.case("llama"))
    usual, best, alike = (
        jg.compile(jg.expand(example.graph, 2, recipe="beam", width=width, **weights))(**example.inputs)
        for weights in ({}, {"weights": "optimal"}, {"weights": "uniform"})
    )
    assert usual.weights
    assert set(usual.terms) == set(best.terms)
    assert all(torch.equal(value, best.terms[path]) for path, value in usual.terms.items())
    first = next(site for site, one in alike.remainders.items() if one.relative > 1e-4)
    assert usual.remainders[first].norm < alike.remainders[first].norm


@torch.no_grad()
def test_a_beam_says_what_it_is(traced: Callable[..., Example]) -> None:
    example = traced(zoo.case("gpt2"))
    expansion = jg.expand(example.graph, 1, recipe="beam", width=2)
    assert "around the 2 largest" in repr(expansion)
    module = jg.compile(expansion)
    assert "found when it runs" in repr(module)
    with pytest.raises(jg.StateError, match="no plan before"):
        module.plan  # noqa: B018
    told = jg.terms(expansion, example.inputs)
    assert {term.path for term in told.terms} == set(map(str, module(**example.inputs).terms))
    doubled = module.double()(**example.inputs)
    assert all(value.dtype == torch.float64 for value in doubled.terms.values())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"recipe": "beam"}, "needs a width"),
        ({"recipe": "beam", "width": 0}, "at least one"),
        ({"width": 3}, 'for recipe="beam"'),
        ({"target": 3}, 'for recipe="beam"'),
        ({"recipe": "beam", "width": 2, "directions": "terms"}, "among single terms"),
        ({"recipe": "beam", "width": 2, "centres": "blocks"}, "among single terms"),
        ({"recipe": "beam", "width": 2, "weights": {"embed": 2.0}}, "'uniform', 'unit' or 'optimal'"),
        ({"rules": {"*": jg.Jet(1, scale="none", orders="apart")}, "recipe": "beam"}, "needs a width"),
    ],
)
def test_beams_that_are_none(options: dict[str, Any], says: str, traced: Callable[..., Example]) -> None:
    with pytest.raises(jg.InputError, match=says):
        jg.expand(traced(zoo.case("gpt2")).graph, 1, **options)


@pytest.mark.parametrize(
    "rule",
    [
        jg.Jet(1),
        jg.Jet(1, weights="optimal"),
        jg.Jet(1, weights={"embed": 2.0}),
        jg.Jet(1, directions="terms"),
        jg.Jet(0, centres="kinds"),
    ],
    ids=["uniform", "optimal", "mapping", "directions", "groups"],
)
def test_what_asks_for_centres_before_a_beam_has_found_them_is_refused(
    rule: jg.Jet, traced: Callable[..., Example]
) -> None:
    graph = traced(zoo.case("gpt2")).graph
    with pytest.raises(jg.InputError, match=r"the beam at 'L0.attn' chooses terms when it runs, but 'logits' has jet"):
        jg.expand(graph, recipe="beam", width=2, rules={"logits": rule})
    # One weight for each centre, whatever others there are, asks for none.
    assert jg.expand(graph, recipe="beam", width=2, rules={"logits": jg.Jet(1, weights="unit")}).chooses


def test_memory_of_a_beam_is_a_number_of_bytes(traced: Callable[..., Example]) -> None:
    with pytest.raises(jg.InputError, match="memory is a number of bytes"):
        jg.compile(jg.expand(traced(zoo.case("gpt2")).graph, recipe="beam", width=2), memory=-1)
