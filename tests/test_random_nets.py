"""Random residual nets against values of their terms that are worked out by hand, from the spec of the net alone.

    python -m tests.test_random_nets 10000 [first seed]

runs that many, prints what was checked how often, and for every fault the smallest net that shows it.
"""

from __future__ import annotations

import functools
import logging
import math
import random
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import jetgraph as jg
from jetgraph.algebra.paths import Hop
from jetgraph.algebra.rules import Orders
from tests.laws import check_affine, check_parts, check_slopes, check_values, distance, parted, subject
from tests.nets import Act, Choose, GateBranch, JoinSpec, MapSpec, Net, Norm

PARTS = 4
"""Of the nets that the tests run, so that workers share them."""

BY_HAND = 6
"""Terms of an expansion that are worked out by hand, where it has more."""


def taylor(f: Callable[[Tensor], Tensor], x: Tensor, v: Tensor, order: int) -> list[Tensor]:
    """The coefficients of t^0 to t^order in f(x + t v), by nested forward mode, which has the lower ones on its way."""

    def along(t: Tensor) -> tuple[Tensor, ...]:
        return (f(x + t * v),)

    for _ in range(order):
        along = _with_derivative(along)
    return [value / math.factorial(n) for n, value in enumerate(along(torch.zeros((), dtype=x.dtype)))]


def _with_derivative(f: Callable[[Tensor], tuple[Tensor, ...]]) -> Callable[[Tensor], tuple[Tensor, ...]]:
    def further(t: Tensor) -> tuple[Tensor, ...]:
        values, slopes = torch.func.jvp(f, (t,), (torch.ones_like(t),))
        return *values, slopes[-1]

    return further


def linear(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The linear part of an affine f, without the digits that f(x) − f(0) loses for a small x."""
    return torch.func.jvp(f, (torch.zeros_like(x),), (x,))[1]


class ByHand:
    """Counts and values of an expansion's terms, by recursion over the steps of the net."""

    def __init__(self, net: Net, inputs: dict[str, Tensor], expansion: jg.Expansion) -> None:
        self.net, self.expansion = net, expansion
        self.points = net.points(**inputs, plain=True)
        self.sources = net.sources(**inputs)
        memory = net.other_stream(inputs["other"])
        self.last = len(net.steps) + 1
        self.functions: dict[str, tuple[int, Callable[[Tensor], Tensor]]] = {}
        """By alias: the step of a site, and what it is."""
        norms: dict[str, Any] = {"logits": net.nu}
        steps = expansion.outline.steps
        assert len(steps) == len(net.steps), f"{len(steps)} steps instead of {len(net.steps)}"
        for number, (found, step) in enumerate(zip(steps, net.steps, strict=True), 1):
            if isinstance(step, MapSpec):
                assert isinstance(found, jg.algebra.outline.MapStep)
                self.functions[found.site.alias] = number, lambda x, m=step.map: m(x, plain=True)
                norms[found.site.alias] = step.map
                continue
            assert isinstance(found, jg.algebra.outline.JoinStep)
            assert len(found.branches) == len(step.branches)
            for site in found.branches:
                ((at, branch),) = (
                    (i, b) for i, (name, b) in enumerate(step.branches, 1) if f"{site.path}.".startswith(f"{name}.")
                )
                self.functions[site.alias] = (
                    number,
                    lambda x, at=at, b=branch, step=step: step.placed(at, b(x, memory, plain=True)),
                )
                norms[site.alias] = getattr(branch, "norm", None)
        self.functions["logits"] = self.last, net.nonlinear_end
        self.norms = {alias: norm.kind if isinstance(norm, Norm) else "none" for alias, norm in norms.items()}
        """By alias of a site: the kind of the norm that it begins with, or is."""
        self.done: dict[Any, tuple[int, Tensor, float]] = {}
        """By hops and nudge: what paths that begin alike have in common."""
        self.affine = {site.alias: site.affine for site in expansion.outline.sites()}

    def zero(self, point: int) -> Tensor:
        return torch.zeros_like(self.points[point])

    def incoming(self, point: int) -> int:
        """The number of terms at a point of the stream."""
        if point == 0:
            return len(self.sources)
        step, before = self.net.steps[point - 1], self.incoming(point - 1)
        total = 0
        if isinstance(step, JoinSpec):
            carried = 0 if step.skip.kind == "none" else before
            total = carried + (step.skip.kind == "biased projection") + (step.injection is not None)
        for alias, (number, function) in self.functions.items():
            if number != point:
                continue
            rule = self.expansion.rules[alias]
            if isinstance(rule, jg.Atom):
                total += 1
            elif isinstance(rule, jg.Jet):
                together = rule.orders != "apart"
                # The derivatives at the stream itself, along zero, are no terms.
                total += before if together or before == 1 else before * (rule.order + 1)
            else:
                biased = isinstance(rule, jg.Freeze) or bool(function(self.zero(point - 1)).abs().max() > 0)
                total += before + biased
        return total

    def carried(self, x: Tensor, start: int, stop: int) -> Tensor:
        """A summand at one point, through skips and affine maps, at another one."""
        for number in range(start + 1, stop + 1):
            step = self.net.steps[number - 1]
            if isinstance(step, JoinSpec):
                skip = partial(step.skip, stream=self.points[number - 1])
                x = x if step.skip.kind == "none" else step.placed(0, linear(skip, x))
            else:
                alias = next(alias for alias, (at, _) in self.functions.items() if at == number)
                x = linear(step.map, x) if self.affine[alias] else x
        return x

    def source(self, entry: Any) -> tuple[int, Tensor]:
        """The point where a term's history starts, and the term there."""
        before = entry.enters - 1
        match entry.origin:
            case "encoder":
                return 0, self.sources[entry.source.alias]
            case "injection":
                step = self.net.steps[before]
                assert isinstance(step, JoinSpec)
                assert step.injection is not None
                return entry.enters, step.injection.expand_as(self.points[entry.enters])
            case "skip":
                step = self.net.steps[before]
                assert isinstance(step, JoinSpec)
                return entry.enters, step.skip(self.zero(before))
            case "affine":
                return entry.enters, self.functions[entry.site.alias][1](self.zero(before))
            case "atom":
                return entry.enters, self.functions[entry.site.alias][1](self.points[before])
            case "stream":
                return entry.point, self.points[entry.point]
            case other:
                raise AssertionError(f"a source of origin {other!r}")

    def value(self, path: jg.Path, nudge: int | None = None) -> Tensor:
        """The term of a path; with centres moved by what rounding may make of them where a seed for that is given."""
        if self.expansion.entry(path.hops[0].alias).enters == self.expansion.sink:
            return self.net.affine_end(self.zero(-1))
        _, x, weight = self.passed(path.hops, nudge)
        return weight * linear(self.net.affine_end, x)

    def passed(self, hops: tuple[Hop, ...], nudge: int | None) -> tuple[int, Tensor, float]:
        """The point that a term is at after these hops, the term there, and what weight is still to come."""
        if (hops, nudge) not in self.done:
            self.done[hops, nudge] = self.passing(hops, nudge) if hops[1:] else self.entering(hops[0])
        return self.done[hops, nudge]

    def entering(self, hop: Hop) -> tuple[int, Tensor, float]:
        return (*self.source(self.expansion.entry(hop.alias)), 1.0)

    def passing(self, hops: tuple[Hop, ...], nudge: int | None) -> tuple[int, Tensor, float]:
        hop = hops[-1]
        point, x, weight = self.passed(hops[:-1], nudge)
        step, function = self.functions[hop.alias]
        x = self.carried(x, point, step - 1)
        if self.affine[hop.alias]:
            return step, linear(function, x), weight
        rule = self.expansion.rules[hop.alias]
        assert isinstance(rule, jg.Jet)
        if nudge is not None:
            noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(nudge), dtype=x.dtype)
            x = x + 1e-13 * noise
        x, v = self.towards(hop.alias, rule, x, weight, self.points[step - 1])
        found = taylor(function, x, v, hop.order or 0)
        x = torch.stack(found).sum(0) if hop.together else found[-1]
        return step, x, 1.0 if rule.weights == "unit" else 1 / self.incoming(step - 1)

    def towards(self, alias: str, rule: jg.Jet, x: Tensor, weight: float, h: Tensor) -> tuple[Tensor, Tensor]:
        """The centre of a jet, and the way from there to the stream: behind a norm, whatever its weight, the multiple
        of each token at which it is the nearest to the token's ray."""
        norm = self.norms[alias]
        if norm == "none" or (rule.order and rule.scale == "none"):
            return weight * x, h - weight * x
        if not rule.order:
            return x, h - x
        seen, end = ((y - y.mean(-1, keepdim=True) if "layer" in norm else y) for y in (x, h))
        cosine = F.cosine_similarity(seen, end, dim=-1, eps=1e-300).unsqueeze(-1)
        sizes = [y.norm(dim=-1, keepdim=True) for y in (seen, x, end)]
        near = (cosine > 1e-15) & (sizes[0] > 1e-14 * torch.maximum(sizes[1], sizes[2]))
        length = sizes[2] / sizes[0] / cosine
        x = torch.where(near, length * x, x)
        return x, torch.where(near, h - x, 0)


# What is checked of a net


def check(net: Net, tally: Counter[str], choose: Choose) -> None:
    """Trace the net, and hold every recipe's terms, counts and remainders against the net itself."""
    net, inputs = net.double().eval(), net.inputs()
    expected = net(**inputs)
    if not expected.isfinite().all() or expected.abs().max() > 1e6:
        tally["not finite"] += 1
        return
    graph = jg.trace(net, dynamic=False, **inputs)
    tally["nets"] += 1
    check_structure(net, graph)
    tally["joins"] += len(net.steps)
    check_law(graph, inputs, net.inputs(seed=1), tally)
    order = choose((2, 1)) if net.smooth else choose((1, 0))
    for recipe in ("exhaustive", "path", "components", "lens"):
        check_recipe(
            net,
            inputs,
            expected,
            jg.expand(graph, 0 if recipe == "path" else order, recipe=recipe, orders=choose(get_args(Orders))),
            tally,
            choose,
        )
    if order:
        check_recipe(net, inputs, expected, jg.expand(graph, order, scale="none"), tally, choose)
    check_frozen(net, inputs, expected, graph, tally)


def check_structure(net: Net, graph: jg.ResidualGraph) -> None:
    """The steps are those of the spec."""
    steps = graph.outline.steps
    found = [[site.path.partition(".")[0] for site in getattr(step, "branches", ())] for step in steps]
    wanted = [[name for name, _ in step.branches] if isinstance(step, JoinSpec) else [] for step in net.steps]
    assert [sorted(names) for names in found] == [sorted(names) for names in wanted], f"{found} instead of {wanted}"


def check_law(
    graph: jg.ResidualGraph, inputs: dict[str, Tensor], others: dict[str, Tensor], tally: Counter[str]
) -> None:
    """`tests.laws` over the net and, where branches can be cut into parts, over the parts."""
    given = subject(graph, inputs, others, torch.float64)
    tally["values of regions"] += check_values(given, 1e-8, finite=False)
    check_affine(given)
    check_slopes(given, 1e-7)
    cut = parted(graph)
    if cut is not None:
        whole, alone = check_parts(subject(cut, inputs, others, torch.float64), 1e-8, finite=False)
        tally["branches as sums of parts"] += whole
        tally["parts by hand"] += alone


def check_recipe(
    net: Net, inputs: dict[str, Tensor], expected: Tensor, expansion: jg.Expansion, tally: Counter[str], choose: Choose
) -> None:
    hand = ByHand(net, inputs, expansion)
    if not all(bool(point.isfinite().all()) for point in hand.points):
        # Formulas written out overflow where operators do not: exp(-x) at a very negative x.
        tally["stream not finite by hand"] += 1
        return
    if expansion.recipe == "exhaustive":
        assert [expansion.incoming(p) for p in range(hand.last)] == [hand.incoming(p) for p in range(hand.last)]
    paths = list(expansion.terms()) if expansion.count() <= 400 else []
    if paths:
        assert len(paths) == len(set(paths)) == expansion.count()
        assert Counter((path.length, path.order) for path in paths) == expansion.counts()
        tally["enumerated"] += 1
    chosen = paths if len(paths) <= BY_HAND else [choose(paths) for _ in range(BY_HAND)]
    if not paths:
        every = jg.select(expansion, "**")
        chosen = [every[choose(range(every.count()))] for _ in range(BY_HAND)]
    try:
        values = jg.compile(expansion, paths or chosen)(**inputs)
    except jg.DomainError:  # as where the length of a term is divided by, and the term is zero
        tally["outside a domain"] += 1
        return
    largest = max(float(term.abs().max()) for term in [*values.terms.values(), expected])
    assert distance(values.output, expected) < 1e-9
    if not all(bool(term.isfinite().all()) for term in values.terms.values()) or largest > 1e6:
        tally["terms not finite"] += 1
        return
    assert float((values.total + values.remainder - expected).abs().max()) < 1e-9 * largest
    assert float((sum(values.terms.values()) - values.total).abs().max()) < 1e-9 * largest
    for path in dict.fromkeys(chosen):
        term = hand.value(path)
        if not term.isfinite().all():
            tally["not finite by hand"] += 1
            continue
        off = float((values.terms[path] - term).abs().max())
        size = max(float(term.abs().max()), 1e-5 * float(expected.abs().max()))
        if off >= 1e-6 * size and any(distance(hand.value(path, seed), term) > 1e-6 for seed in range(8)):
            # Rows that are alike, as those of a bias are, tie what sorts rows or takes the nearest one.
            tally["at a jump"] += 1
            continue
        assert off < 1e-6 * size, f"{expansion.recipe} {expansion.order}: {path} is off by {off / size:.1e}"
        tally[f"terms of order {max(h.order or 0 for h in path.hops)}"] += 1


def check_frozen(
    net: Net, inputs: dict[str, Tensor], expected: Tensor, graph: jg.ResidualGraph, tally: Counter[str]
) -> None:
    """With every site frozen the terms alone are the model."""
    expansion = jg.expand(graph, rules={"*": jg.Freeze()})
    if expansion.count() > 400:
        return
    try:
        values = jg.compile(expansion)(**inputs)
    except jg.DomainError:
        tally["outside a domain"] += 1
        return
    except jg.JetGraphError as error:
        if not any(reason in str(error) for reason in ("neither affine nor held", "nothing else is left")):
            raise
        tally["cannot be frozen"] += 1
        return
    largest = max(float(term.abs().max()) for term in values.terms.values())
    assert float((sum(values.terms.values()) - expected).abs().max()) < 1e-8 * max(largest, 1.0)
    tally["frozen"] += 1


# The tests


CANDIDATES = 400
"""Nets that those are chosen from which the tests run."""


def made_of(net: Net) -> set[str]:
    """What a net has of all that nets can be made of, and which of these things meet in it."""
    joins = [step for step in net.steps if isinstance(step, JoinSpec)]
    found = {f"encoder {net.encoder}", f"norm {net.nu.kind} before {type(net.unembed).__name__}"}
    found |= {f"map {type(step.map).__name__}" for step in net.steps if isinstance(step, MapSpec)}
    for join in joins:
        found |= {f"skip {join.skip.kind} {join.form}", f"injection {join.injection is not None}"}
        for _, branch in join.branches:
            kind = type(branch).__name__
            found |= {
                f"{kind} beside {join.skip.kind}",
                f"{kind} of {getattr(getattr(branch, 'norm', None), 'kind', '')}",
            }
            found |= {f"act {module.name}" for module in branch.modules() if isinstance(module, Act)}
            found |= {f"gate {branch.gate.name}"} if isinstance(branch, GateBranch) else set()
    return found


@functools.cache
def covering() -> tuple[tuple[int, bool], ...]:
    """Few nets, by seed and whether they are smooth, in which everything comes that does in many: the net that has most
    of what is missing for what it costs, each time, and in the end those without which something would be missing. That
    it is smooth, and so expanded further, counts as one thing more.
    """
    every = [(seed, smooth) for smooth in (True, False) for seed in range(CANDIDATES)]
    nets = {one: drawn_net(*one)[0] for one in every}
    made = {one: made_of(net) for one, net in nets.items()}
    # Half of what a net takes goes with its number of steps, about.
    price = {one: math.sqrt(1 + len(net.steps)) for one, net in nets.items()}
    missing, chosen = set[str]().union(*made.values()), list[tuple[int, bool]]()
    while missing:
        useful = (one for one in made if made[one] & missing)
        chosen.append(max(useful, key=lambda one: (len(made[one] & missing) + one[1]) / price[one]))
        missing -= made[chosen[-1]]
    often = Counter(thing for one in chosen for thing in made[one])
    for one in [*chosen]:
        if all(often[thing] > 1 for thing in made[one]):
            chosen.remove(one)
            often.subtract(made[one])
    return tuple(chosen)


def drawn_net(seed: int, smooth: bool) -> tuple[Net, Choose]:
    """A net, and what it was drawn by."""
    choose = random.Random(seed).choice
    with torch.random.fork_rng(devices=[]):
        return Net(choose, seed, smooth), choose


@pytest.mark.parametrize("part", range(PARTS))
def test_random_nets(part: int) -> None:
    for one in covering()[part::PARTS]:
        net, choose = drawn_net(*one)
        with torch.no_grad():
            check(net, Counter(), choose)


def main(number: int, first: int = 0) -> None:
    """Run that many seeds and print what was found; for each kind of fault, its smallest net."""
    tally: Counter[str] = Counter()
    faults: dict[str, list[tuple[int, int]]] = {}
    began, write = time.time(), sys.stdout.write
    for seed in range(first, first + number):
        net, choose = drawn_net(seed, seed % 2 == 0)
        try:
            with torch.no_grad():
                check(net, tally, choose)
        except Exception as error:  # every fault counts, and the run goes on
            where = traceback.extract_tb(error.__traceback__)[-1]
            kind = f"{type(error).__name__} at {where.filename.rsplit('/', 1)[-1]}:{where.lineno}: {str(error)[:150]}"
            kind = kind.split(" is off by")[0]
            write(f"seed {seed}: {kind}\n")
            sys.stdout.flush()
            faults.setdefault(kind, []).append((len(repr(net)), seed))
    write(f"{number} nets in {time.time() - began:.0f} s: {dict(tally)}\n")
    for kind, shown in sorted(faults.items(), key=lambda item: -len(item[1])):
        seed = min(shown)[1]
        write(f"{len(shown)} × {kind}\n    smallest: seed {seed}\n")


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    main(*map(int, sys.argv[1:]))
