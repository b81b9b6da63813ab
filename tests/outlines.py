"""Outlines to expand, and an expansion by hand: every term written out, step by step, without an automaton."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from hypothesis import strategies as st

from jetgraph.algebra.outline import JoinStep, MapStep, Outline, Site, Source, Step
from jetgraph.algebra.rules import Atom, Distribute, Freeze, Jet, Rule

EMBED = Source("embed", "model.embed", "embed")


def branch(alias: str, *, affine: bool = False, bias: bool = False, reads: int | None = None) -> Site:
    path = f"model.{alias.replace('L', 'layers.')}"
    return Site(alias, path, alias.split(".")[-1], "branch", affine, bias, reads=reads)


def a_map(alias: str, *, affine: bool = False, bias: bool = False) -> Site:
    return Site(alias, f"model.{alias.replace('L', 'layers.')}", "norm", "map", affine, bias)


def decoder(*, affine: bool = False, bias: bool = False) -> Site:
    return Site("logits", "lm_head", "logits", "decoder", affine, bias)


def join(*branches: Site, bias: bool = False, injections: tuple[Source, ...] = ()) -> JoinStep:
    name = "+".join(site.alias for site in branches) or "add"
    return JoinStep(name, "projection" if bias else "identity", bias, branches, injections)


def outline(*steps: Step, sources: tuple[Source, ...] = (EMBED,), last: Site | None = None) -> Outline:
    return Outline(sources, steps, decoder() if last is None else last)


def llama(blocks: int) -> Outline:
    """Attention and MLP in turn, each behind a join of its own; no bias anywhere."""
    sites = [branch(f"L{block}.{kind}") for block in range(blocks) for kind in ("attn", "mlp")]
    return outline(*(join(site) for site in sites))


def gpt2(blocks: int) -> Outline:
    pos = Source("pos", "transformer.wpe", "pos")
    return Outline((EMBED, pos), llama(blocks).steps, decoder())


@dataclass(frozen=True)
class Written:
    """A term, spelled out; `last` is the alias of its last hop."""

    hops: tuple[str, ...]
    last: str


def by_hand(net: Outline, rule_at: Callable[[Site], Rule]) -> list[list[Written]]:
    """All terms at every point of the stream and, last, at the output, by rewriting step by step."""
    taken = {source.alias for source in net.sources}
    taken |= {source.alias for step in net.steps if isinstance(step, JoinStep) for source in step.injections}
    free = (name for name in ("bias", *(f"bias{n}" for n in range(2, 100))) if name not in taken)

    def start(alias: str) -> Written:
        return Written((alias,), alias)

    def through(site: Site, terms: list[Written]) -> list[Written]:
        rule = rule_at(site)
        if isinstance(rule, Atom):
            return [start(site.alias)]
        if isinstance(rule, Jet) and not site.affine:
            orders = [f"{site.alias}^{j}" for j in range(rule.order + 1)]
            passed = [Written((*term.hops, hop), site.alias) for term in terms for hop in orders]
            if site.role == "decoder" and site.bias:
                passed.append(Written((next(free), "logits"), "logits"))
            return passed
        if site.affine and site.role == "map":
            passed = list(terms)
        else:
            passed = [Written((*term.hops, site.alias), site.alias) for term in terms]
        if site.bias if site.affine else True:
            bias = start(next(free))
            passed.append(Written((*bias.hops, "logits"), "logits") if site.role == "decoder" else bias)
        return passed

    points = [[start(source.alias) for source in net.sources]]
    for step in net.steps:
        terms = points[-1]
        if isinstance(step, MapStep):
            points.append(through(step.site, terms))
            continue
        added = [start(source.alias) for source in step.injections]
        if step.bias:
            added.append(start(next(free)))
        read = [(site, terms if site.reads is None else points[site.reads]) for site in step.branches]
        points.append([*terms, *added, *(new for site, some in read for new in through(site, some))])
    points.append(through(net.decoder, points[-1]))
    return points


@st.composite
def nets(draw: st.DrawFn) -> tuple[Outline, Mapping[str, Rule]]:
    """A random small outline with a rule at each of its sites."""
    rules: dict[str, Rule] = {}
    orders = st.integers(0, 1)

    def site(alias: str, role: str, reads: int | None = None) -> Site:
        affine, bias = draw(st.booleans()), draw(st.booleans())
        choices: list[Rule] = [Jet(draw(orders)), Freeze()]
        choices += [Distribute()] if affine else []
        choices += [Atom()] if role != "decoder" else []
        rules[alias] = draw(st.sampled_from(choices))
        if role == "decoder":
            return decoder(affine=affine, bias=bias)
        if role == "map":
            return a_map(alias, affine=affine, bias=bias)
        return branch(alias, affine=affine, bias=bias, reads=reads)

    steps: list[Step] = []
    for number in range(draw(st.integers(0, 3))):
        if draw(st.integers(0, 3)) == 0:
            steps.append(MapStep(site(f"L{number}.norm", "map")))
            continue
        kinds = ("attn", "mlp")[: draw(st.integers(0, 2))]
        injections = (Source(f"extra{number}", "", "embed"),) if draw(st.booleans()) else ()
        earlier = st.none() | st.integers(0, len(steps))
        branches = tuple(site(f"L{number}.{kind}", "branch", draw(earlier)) for kind in kinds)
        steps.append(join(*branches, bias=draw(st.booleans()), injections=injections))
    sources = (EMBED, Source("pos", "wpe", "pos"), Source("bias", "", "bias"))[: draw(st.integers(1, 3))]
    return Outline(sources, tuple(steps), site("logits", "decoder")), rules
