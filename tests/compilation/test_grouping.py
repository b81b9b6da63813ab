"""Centres that are sums of terms, against a recursion of its own over plain functions of the graph's pieces."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import jetgraph as jg
from jetgraph.algebra.dag import count_paths, path_texts
from jetgraph.algebra.formulas import formula, generating_function, x, y
from jetgraph.algebra.outline import MapStep
from tests import zoo
from tests.conftest import Example
from tests.outlines import llama

Term = tuple[str, str, Tensor]
"""Its text, its last site or source, and its value."""


class ByHand:
    """All terms at every point, where each site takes groups of terms as centres, with uniform weights at order 1."""

    def __init__(
        self, graph: jg.ResidualGraph, inputs: Any, expansion: jg.Expansion, group: Callable[[str], str]
    ) -> None:
        self.run, self.graph, self.expansion, self.group = graph.run(**inputs), graph, expansion, group
        start = [entry for entry in expansion.entries if entry.origin == "encoder"]
        terms = [[(e.source.alias, e.source.alias, self.run.summand(e.source.alias)) for e in start]]
        for number, step in enumerate(graph.outline.steps, 1):
            here: list[Term] = []
            if not isinstance(step, MapStep):
                here = [(text, last, self.run.stages.carry(v, number - 1, number)) for text, last, v in terms[-1]]
            for site in step.sites:
                read = site.reads_at(number)
                here += self.passed(site.alias, terms[read], self.run.point(read), self.function(number, site.alias))
            for entry in expansion.entries:
                assert entry.enters != number or entry.is_group or entry.origin == "skip", "written for such nets only"
            terms.append(here)
        decoder = graph.structure.decoder
        end = self.passed("logits", terms[-1], self.run.point(-1), lambda v: self.run.through(decoder.nonlinear, v))
        self.terms = {text: self.run.pieces.linear(decoder.affine, value) for text, _, value in end}

    def function(self, number: int, alias: str) -> Callable[[Tensor], Tensor]:
        stage: Any = self.graph.stream.stages[number - 1]
        if alias not in self.graph.branches:
            return lambda v: self.run.through(stage.region, v)
        branch = self.graph.branches[alias]
        return lambda v: self.run.stages.land(stage.join, branch.node, self.run.branch(branch, v))

    def passed(self, alias: str, terms: list[Term], h: Tensor, f: Callable[[Tensor], Tensor]) -> Iterator[Term]:
        groups: dict[str, Tensor] = {}
        for text, last, value in terms:
            name = text if self.expansion.rules[alias].grouping is None else self.group(last)
            groups[name] = groups.get(name, 0) + value
        for name, centre in groups.items():
            value, slope = torch.func.jvp(f, (centre,), (h - centre,))[:2]
            parts = {"^0": value, "^1": slope} if alias == "logits" else {"~1": value + slope}
            for mark, part in parts.items():
                yield f"{name} > {alias}{mark}", alias, part / len(groups)


def compared(example: Example, expansion: jg.Expansion, group: Callable[[str], str]) -> None:
    graph = example.graph.relocated(lambda name: _double(example.graph.traced.tensors[name]))
    inputs = {
        name: value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in example.inputs.items()
    }
    module = jg.compile(expansion).double()
    with torch.no_grad(), ExitStack() as stack:
        values = module(**inputs)
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        hand = ByHand(graph, inputs, expansion, group)
        bias = [path for path in values.terms if expansion.start(path).of_decoder]
        assert {str(path) for path in values.terms if path not in bias} == set(hand.terms)
        for text, value in hand.terms.items():
            size = float(value.abs().max()) + 1e-12
            assert float((values.terms[text] - value).abs().max()) < 1e-7 * size, text
        left = values.output - sum(hand.terms.values())
        constant = sum((values.terms[path] for path in bias), torch.zeros_like(left))
        assert float((values.remainder - (left - constant)).abs().max()) < 1e-7 * float(
            values.output.abs().max() + left.abs().max()
        )


def _double(value: Tensor) -> Tensor:
    return value.detach().double() if value.is_floating_point() else value


def block(alias: str) -> str:
    return alias.split(".")[0]


def kind(alias: str) -> str:
    return alias.split(".")[1] if "." in alias else alias


@pytest.mark.parametrize(
    ("centres", "group"),
    [
        ("components", lambda last: last),
        ("blocks", block),
        ("kinds", kind),
        ({"first": ["embed", "L0.*"]}, lambda last: "first" if last == "embed" or last.startswith("L0.") else "rest"),
        ({"attn": "*.attn", "mlp": "*.mlp"}, lambda last: last.split(".")[1] if "." in last else "rest"),
    ],
    ids=["components", "blocks", "kinds", "one group", "two groups"],
)
@pytest.mark.parametrize("name", ["gpt2", "llama", "gptj"])
def test_groups_at_every_site(name: str, centres: Any, group: Any, traced: Callable[..., Example]) -> None:
    """Chains of blocks, two sources, and branches side by side."""
    example = traced(zoo.case(name))
    compared(example, jg.expand(example.graph, 1, centres=centres, scale="none"), group)
    # The decoder's centres are single terms, each of which has passed one site after its group.
    single = jg.expand(example.graph, 1, centres=centres, rules={"logits": jg.Jet(1, scale="none")}, scale="none")
    assert single.count() > 2 * len(single.outline.sites())
    compared(example, single, group)


@pytest.mark.parametrize("name", ["bert", "encoder_post_norm", "bart"])
def test_groups_after_maps_and_beside_another_stream(name: str, traced: Callable[..., Example]) -> None:
    """A norm of the stream takes groups too; what a decoder reads of its encoder is its own."""
    example = traced(zoo.case(name))
    compared(example, jg.expand(example.graph, 1, centres="components", scale="none"), lambda last: last)


@torch.no_grad()
def test_matched_lengths_and_the_best_weights_of_groups(traced: Callable[..., Example]) -> None:
    """Of a group as of a term: s = ⟨h, h⟩ / ⟨x, h⟩ by token behind an RMS norm, and weights that leave no more."""
    example = traced(zoo.case("llama"))
    expansion = jg.expand(example.graph, 1, recipe="components", centres="blocks")
    values, run = jg.compile(expansion)(**example.inputs), example.graph.run(**example.inputs)
    h, decoder = run.point(-1), example.graph.structure.decoder
    parts = {"embed": run.point(0), "L0": run.point(2) - run.point(0), "L1": h - run.point(2)}
    for name, part in parts.items():
        product = (part * h).sum(-1, keepdim=True)
        centre = torch.where(product > 0, (h * h).sum(-1, keepdim=True) / product, 1.0) * part
        v = torch.where(product > 0, h - centre, torch.zeros_like(h))
        _, slope = torch.func.jvp(lambda z: run.through(decoder.nonlinear, z), (centre,), (v,))[:2]
        term = run.pieces.linear(decoder.affine, slope) / 3
        assert float((values.terms[f"{name} > logits^1"] - term).abs().max()) < 1e-4 * float(term.abs().max())
    best = jg.compile(jg.expand(example.graph, 1, recipe="components", centres="blocks", weights="optimal"))
    assert float(best(**example.inputs).remainder.norm()) <= float(values.remainder.norm())
    assert best.expansion.centres("logits") == ("embed", "L0", "L1")


def test_counts_and_names_and_pictures(traced: Callable[..., Example]) -> None:
    """Counted without listing, drawn, selected, checked, and read back."""
    graph = traced(zoo.case("gpt2")).graph
    expansion = jg.expand(graph, 1, centres="blocks", rules={"logits": jg.Jet(1)})
    paths = list(expansion)
    assert len(paths) == expansion.count() == len(set(paths))
    table = expansion.counts()
    assert sum(table.values()) == len(paths)
    for length, order in table:
        assert sum((p.length, p.order) == (length, order) for p in paths) == expansion.count(length=length, order=order)
    polynomial: Any = generating_function(expansion).expand()
    assert {key: polynomial.coeff(x, key[0]).coeff(y, key[1]) for key in table} == table
    dag = jg.path_graph(expansion)
    assert count_paths(dag) == len(paths)
    assert sorted(path_texts(dag)) == sorted(map(str, paths))
    assert all(path in expansion for path in paths)
    assert [str(path) for path in jg.select(expansion, "L0 > L1.mlp > logits^0")] == ["L0 > L1.mlp~1 > logits^0"]
    assert list(map(str, expansion.weights("L0 > L1.mlp~1 > logits^0"))) == ["1", "1/4", "1/14"]
    with pytest.raises(
        jg.SelectionError, match=r"the centres of 'L1.mlp' are groups, at which paths start: embed, pos, L0"
    ):
        expansion.check("embed > L0.attn~1 > L1.mlp~1 > logits^0")
    with pytest.raises(jg.SelectionError, match=r"of 'L1' paths begin L1 > L1.mlp~1"):
        expansion.check("L1 > L0.mlp~1 > logits^0")
    shown = "w[logits]*J[logits, 0](w[L1.mlp]*J[L1.mlp, ~1](L0))"
    assert str(formula(expansion, "L0 > L1.mlp~1 > logits^0")) == shown


def test_a_deep_net_is_a_polynomial_of_its_depth() -> None:
    """126 blocks: by kind a few centres a site; nothing is listed, and weights are one over the groups."""
    expansion = jg.expand(llama(126), 2, centres="kinds")
    assert expansion.count() == 9
    assert str(next(iter(jg.select(expansion, "attn > logits^2")))) == "attn > logits^2"
    assert [str(weight) for weight in expansion.weights("mlp > logits^1")] == ["1", "1/3"]
    by_block = jg.expand(llama(126), 2, centres="blocks")
    assert by_block.count() == 127 * 3
    given = jg.expand(llama(126), 2, centres="kinds", weights={"attn": 2.0})
    assert [str(weight) for weight in given.weights("attn > logits^1")] == ["1", "1/2"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"centres": "layers"}, "'terms', 'components', 'blocks', 'kinds'"),
        ({"centres": {"a": "L9.*"}}, "'L9.*' matches no source and no site"),
        ({"centres": {"a b": "*"}}, "a name has no spaces"),
        ({"centres": {"a": []}}, "has no pattern"),
        ({"centres": "blocks", "directions": "terms"}, "along single terms"),
        ({"centres": "blocks", "recipe": "path", "order": 0}, "single centres"),
    ],
)
def test_groups_that_are_none(options: dict[str, Any], says: str) -> None:
    with pytest.raises(jg.JetGraphError, match=says):
        jg.expand(llama(2), **{"order": 1, **options})


@pytest.mark.parametrize("recipe", ["exhaustive", "components"])
def test_kinds_are_those_of_sites_whatever_the_rule_is(recipe: Any) -> None:
    groups = jg.expand(llama(2), 1, recipe=recipe, centres="kinds").passage("logits").groups
    assert set(groups) == {"embed", "attn", "mlp"}


def test_weights_are_those_of_groups_where_groups_are_centres() -> None:
    with pytest.raises(jg.SelectionError, match=r"weights\['L0.mlp'\] matches no source and no site"):
        jg.expand(llama(2), 1, centres="blocks", weights={"L0.mlp": 50.0})
    expansion = jg.expand(llama(2), 1, centres="blocks", weights={"L0": 3.0})
    assert float(expansion.centre_weight("logits", "L0")) == 3 / 5


def test_a_group_may_be_called_as_a_source(traced: Callable[..., Example]) -> None:
    """And the source keeps its module path."""
    example = traced(zoo.case("gpt2"))
    path = example.graph.outline.sources[0].path
    for centres in ("components", {"embed": path}):
        expansion = jg.expand(example.graph, 1, centres=centres)
        assert jg.select(expansion, f"{path} > logits", limit=1).count() == 1
        assert expansion.names["embed"] == path
    assert jg.compile(expansion)(**example.inputs).terms


def test_sums_of_groups_at_a_site_that_is_not_linear_are_refused(traced: Callable[..., Example]) -> None:
    example = traced(zoo.case("gpt2"))
    rules = {"*": jg.Freeze(), "logits": jg.Jet(1, centres="kinds")}
    values = jg.compile(jg.expand(example.graph, rules=rules))(**example.inputs)
    with pytest.raises(jg.InputError, match=r"'logits' .* has the rule jet of order 1"):
        values.sum("**")
