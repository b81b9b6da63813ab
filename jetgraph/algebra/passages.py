"""How paths pass each site of an expansion, and why a text that looks like a path is none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from jetgraph.algebra.automaton import Automaton, Entry, Move
from jetgraph.algebra.matching import nearest
from jetgraph.algebra.outline import SINK, Outline, Site
from jetgraph.algebra.paths import Hop, Path
from jetgraph.algebra.rules import Rule


@dataclass(frozen=True, slots=True)
class Passage:
    """A site, and how paths pass it."""

    step: int
    """The site adds to this point; the decoder's is n+1."""
    reads: int
    """The point that it reads: the one before, but for long skips."""
    site: Site
    rule: Rule
    hops: tuple[Hop, ...]
    """What a path may write here; empty where none is written (an atom, an affine map)."""
    groups: tuple[str, ...] = ()
    """The groups of terms that are its centres, where they are not single terms."""
    beam: int | None = None
    """How many centres it has when it runs, where the largest are chosen then."""


def passages(outline: Outline, rules: Mapping[str, Rule], automaton: Automaton) -> dict[str, Passage]:
    """The passage of every site that has a rule, by alias, in the order of the stream."""
    hops: dict[str, list[Hop]] = {}
    groups: dict[str, dict[str, None]] = {}
    for hop in automaton.hops():
        hops.setdefault(hop.alias, []).append(hop)
    beams = beam_widths(outline, rules, automaton)
    for entry in automaton.entries:
        if entry.is_group and rules[entry.last].beam is None:
            groups.setdefault(entry.last, {})[entry.source.alias] = None
    return {
        alias: Passage(
            step,
            site.reads_at(step),
            site,
            rules[alias],
            tuple(dict.fromkeys(hops.get(alias, ()))),
            tuple(groups.get(alias, ())),
            beams.get(alias),
        )
        for step, site in outline.numbered()
        if (alias := site.alias) in rules
    }


def beam_widths(outline: Outline, rules: Mapping[str, Rule], automaton: Automaton) -> dict[str, int]:
    """By site that chooses its centres when it runs: how many it has then."""
    if all(rule.beam is None for rule in rules.values()):
        return {}
    steps: dict[int, list[Site]] = {}
    for number, site in outline.numbered():
        steps.setdefault(number, []).append(site)
    incoming, widths = [len(automaton.entering[0])], dict[str, int]()
    for point, moves in enumerate(automaton.moves, start=1):
        for site in steps.get(point, ()):
            beam = rules[site.alias].beam
            if beam is not None:
                widths[site.alias] = min(incoming[site.reads_at(point)], beam + 1)
        passed = (
            widths.get(move.hop.alias, incoming[move.start]) if move.hop else incoming[move.start] for move in moves
        )
        entering = sum(not (entry.is_group and rules[entry.last].beam) for entry in automaton.entering[point])
        incoming.append(sum(passed) + entering)
    return widths


def fault(
    path: Path, entries: Mapping[tuple[Hop, ...], Entry], passages: Mapping[str, Passage], automaton: Automaton
) -> str | None:
    """Why no term has this name; None where one has.

    Parameters
    ----------
    path
        The name.
    entries
        Sources by what their paths begin with.
    passages
        Sites by alias.
    automaton
        Whose walks are the terms.
    """
    entry = entries.get(path.hops[:2]) or entries.get(path.hops[:1])
    if entry is None:
        return _fault_of_source(path.source, entries, automaton)
    if entry.enters == automaton.sink:
        return None if path.hops == entry.hops else f"this is the term '{' > '.join(map(str, entry.hops))}'"
    point = entry.enters
    for hop in path.hops[entry.begins :]:
        passage = passages.get(hop.alias)
        if passage is None:
            return f"there is no site {hop.alias!r}{nearest(hop.alias, passages)}"
        if (problem := _fault_of_hop(hop, passage, point, automaton)) is not None:
            return problem
        point = passage.step
    return None if point == automaton.sink else f"it does not end at {SINK!r}"


def _fault_of_source(source: Hop, entries: Iterable[tuple[Hop, ...]], automaton: Automaton) -> str:
    """Why no path begins like this."""
    names = dict.fromkeys(entry.source.alias for entry in automaton.entries)
    if source.alias not in names:
        return f"it starts at {source.alias!r}, which is no source{nearest(source.alias, names)}"
    if source.order is not None:
        return f"the source {source.alias!r} carries no order"
    begins = [" > ".join(map(str, start)) for start in entries if start[0] == source]
    if begins == [f"{source.alias} > {SINK}"]:
        return f"this bias of the decoder is the term '{begins[0]}'"
    return f"of {source.alias!r} paths begin {' or '.join(begins[:6])}{' …' if len(begins) > 6 else ''}"


def _fault_of_hop(hop: Hop, passage: Passage, point: int, automaton: Automaton) -> str | None:
    """Why what has come to a point does not pass a site in this way."""
    if not passage.hops:
        return f"no path passes {hop.alias!r}, whose rule is {passage.rule.text}"
    if passage.groups:
        shown = ", ".join(passage.groups[:6]) + (", …" if len(passage.groups) > 6 else "")
        return f"the centres of {hop.alias!r} are groups, at which paths start: {shown}"
    if passage.step <= point:
        return f"{hop.alias!r} comes before what precedes it in the path, or stands beside it"
    if automaton.route(point, passage.reads) is None:
        return _no_way(point, passage, automaton)
    if hop not in passage.hops:
        return f"at {hop.alias!r} it has to be {' or '.join(map(str, passage.hops))}, not {hop}"
    return None


def _no_way(point: int, passage: Passage, automaton: Automaton) -> str:
    """Why nothing gets silently from a point to what a site reads."""
    alias = passage.site.alias
    if passage.reads < point:
        return f"{alias!r} reads point {passage.reads}, which comes before what precedes it in the path"
    for moves in automaton.moves[point : passage.reads]:
        if all(move.hop is not None for move in moves):
            return f"before {alias!r} it has to pass {_texts(moves) or 'an atom of a map'}"
    return f"{alias!r} reads point {passage.reads}, to which no skip leads from point {point}"


def _texts(moves: Iterable[Move]) -> str:
    return " or ".join(str(move.hop) for move in moves if move.hop is not None)
