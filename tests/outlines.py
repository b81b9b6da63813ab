"""Outlines to expand, and an expansion by hand: every term written out, step by step, without an automaton."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

from hypothesis import strategies as st

from jetgraph.algebra.outline import JoinStep, MapStep, Outline, Site, SkipKind, Source, Step
from jetgraph.algebra.rules import Atom, Distribute, Freeze, Jet, Orders, Rule

EMBED = Source("embed", "model.embed", "embed")
POS = Source("pos", "transformer.wpe", "pos")


def branch(alias: str, *, affine: bool = False, bias: bool = False, reads: int | None = None) -> Site:
    path = f"model.{alias.replace('L', 'layers.')}"
    return Site(alias, path, alias.split(".")[-1], "branch", affine, bias, reads=reads)


def a_map(alias: str, *, affine: bool = False, bias: bool = False) -> Site:
    return Site(alias, f"model.{alias.replace('L', 'layers.')}", "norm", "map", affine, bias)


def decoder(*, affine: bool = False, bias: bool = False) -> Site:
    return Site("logits", "lm_head", "logits", "decoder", affine, bias)


def join(
    *branches: Site, bias: bool = False, injections: tuple[Source, ...] = (), skip: SkipKind = "identity"
) -> JoinStep:
    name = "+".join(site.alias for site in branches) or "add"
    return JoinStep(name, "projection" if bias else skip, bias, branches, injections)


def outline(*steps: Step, sources: tuple[Source, ...] = (EMBED,), last: Site | None = None) -> Outline:
    return Outline(sources, steps, decoder() if last is None else last)


def llama(blocks: int) -> Outline:
    """Attention and MLP in turn, each behind a join of its own; no bias anywhere."""
    sites = [branch(f"L{block}.{kind}") for block in range(blocks) for kind in ("attn", "mlp")]
    return outline(*(join(site) for site in sites))


def gpt2(blocks: int) -> Outline:
    return Outline((EMBED, POS), llama(blocks).steps, decoder())


@dataclass(frozen=True)
class Written:
    """A term, spelled out; `last` is the alias of its last hop."""

    hops: tuple[str, ...]
    last: str


def by_hand(net: Outline, rules: Mapping[str, Rule]) -> list[list[Written]]:
    """All terms at every point of the stream and, last, at the output, by rewriting step by step.

    What comes into no nonlinear site is found by looking at all that comes into one.
    """
    read: set[str] = set()
    _written(net, rules, frozenset(), read)
    jets = {alias for alias, rule in rules.items() if isinstance(rule, Jet)}
    return _written(net, rules, frozenset(jets - {hop.split("~")[0].split("^")[0] for hop in read}), set())


def _written(net: Outline, rules: Mapping[str, Rule], apart: frozenset[str], read: set[str]) -> list[list[Written]]:
    """All terms; those jets of `orders="auto"` are apart that are named. The hops of all centres go into `read`."""
    taken = {source.alias for source in net.sources}
    taken |= {source.alias for step in net.steps if isinstance(step, JoinStep) for source in step.injections}

    def free(whose: str) -> str:
        """The name of a skip's constant, or of the decoder's."""
        numbered = (f"{whose}.bias{n}" for n in range(2, 100))
        name = next(name for name in ("bias", f"{whose}.bias", *numbered) if name not in taken)
        taken.add(name)
        return name

    def start(alias: str) -> Written:
        return Written((alias,), alias)

    def through(site: Site, point: int) -> list[Written]:
        rule, terms = rules[site.alias], points[point]
        if isinstance(rule, Atom):
            return [start(site.alias)]
        if isinstance(rule, Jet) and not site.affine:
            read.update(hop for term in terms for hop in term.hops)
            # The one term is the stream itself: its derivatives are taken along zero.
            still = len(terms) == 1 and whole[point]
            if rule.order and (rule.orders == "together" or (rule.orders == "auto" and site.alias not in apart)):
                orders = [f"{site.alias}~{rule.order}"]
            else:
                orders = [f"{site.alias}^{j}" for j in range(1 if still else rule.order + 1)]
            passed = [Written((*term.hops, hop), site.alias) for term in terms for hop in orders]
            if site.role == "decoder" and site.bias:
                passed.append(Written((free("logits"), "logits"), "logits"))
            return passed
        if site.affine and site.role == "map":
            passed = list(terms)
        else:
            passed = [Written((*term.hops, site.alias), site.alias) for term in terms]
        if site.bias if site.affine else True:
            decodes = site.role == "decoder"
            passed.append(Written((free("logits"), "logits"), "logits") if decodes else start(f"{site.alias}.bias"))
        return passed

    def leaves_nothing(site: Site, point: int) -> bool:
        jet = isinstance(rules[site.alias], Jet) and not site.affine
        return isinstance(rules[site.alias], Atom) or (whole[point] and not (jet and len(points[point]) > 1))

    points, whole = [[start(source.alias) for source in net.sources]], [True]
    for number, step in enumerate(net.steps):
        terms = points[-1]
        if isinstance(step, MapStep):
            whole.append(leaves_nothing(step.site, number))
            points.append(through(step.site, number))
            continue
        added = [start(source.alias) for source in step.injections]
        if step.bias:
            added.append(start(free(f"{step.name}.skip")))
        reading = [(site, number if site.reads is None else site.reads) for site in step.branches]
        new = [term for site, point in reading for term in through(site, point)]
        kept = step.skip != "none"
        whole.append(all([whole[number] or not kept, *(leaves_nothing(site, point) for site, point in reading)]))
        points.append([*(terms if kept else ()), *added, *new])
    points.append(through(net.decoder, len(net.steps)))
    return points


@st.composite
def nets(draw: st.DrawFn) -> tuple[Outline, Mapping[str, Rule]]:
    """A random small outline with a rule at each of its sites."""
    rules: dict[str, Rule] = {}
    orders = st.integers(0, 1)

    def site(alias: str, role: str, reads: int | None = None) -> Site:
        affine, bias = draw(st.booleans()), draw(st.booleans())
        choices: list[Rule] = [Jet(draw(orders), orders=draw(st.sampled_from(get_args(Orders)))), Freeze()]
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
        # A sum of what several points give may have no skip.
        skip: SkipKind = "none" if branches and draw(st.integers(0, 3)) == 0 else "identity"
        steps.append(join(*branches, bias=skip != "none" and draw(st.booleans()), injections=injections, skip=skip))
    sources = (EMBED, Source("pos", "wpe", "pos"), Source("bias", "", "bias"))[: draw(st.integers(1, 3))]
    return Outline(sources, tuple(steps), site("logits", "decoder")), rules
