"""What a report says of a prompt: what comes next, what the stream says before, what matters, and how exact it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from jetgraph.algebra.expansion import expand
from jetgraph.applications.attribution import attribute, faithfulness, spectrum
from jetgraph.applications.attribution.faithful import Faithfulness
from jetgraph.applications.attribution.graphs import Attribution
from jetgraph.applications.attribution.spectra import Spectrum
from jetgraph.applications.expansions import choose_orders
from jetgraph.applications.lenses import Lens, lens
from jetgraph.applications.results import Cell, cell_text
from jetgraph.applications.several import of_one
from jetgraph.applications.subject import Inputs, Subject
from jetgraph.compilation import compile
from jetgraph.errors import big
from jetgraph.numbers import fixed, percent
from jetgraph.reporting.again import Origin
from jetgraph.reporting.wording import NATS, Wording, decimals, flow_text
from jetgraph.views.report import Grid, Section, Table

SAID = 5
"""Tokens of the output that are told."""

ROWS = 16
"""Rows of a table that are shown, the largest."""

COLUMNS = 20
"""Positions of the prompt that are shown, the last."""

POINTS = 24
"""Points of the stream that are shown, evenly spread."""

WIDTH = 2
"""Of the beam whose ledger is told."""


UNFAITHFUL = 0.3
"""How far from 1 the faithfulness of a graph is where it explains little by itself."""


@dataclass(frozen=True)
class Told:
    """A prompt's sections, and what they come to in a line each."""

    section: Section
    findings: tuple[str, ...]


def prompt_section(subject: Subject, given: Inputs, origin: Origin, number: int) -> Told:
    """All that is told of one prompt.

    Raises
    ------
    InputError
        As `jetgraph.lens` and `jetgraph.attribute`.
    """
    inputs = subject.inputs(given)
    view = lens(subject.graph, inputs, order=0, tokenizer=subject.tokenizer)
    words = Wording.of(subject, given, number, view)
    row = view.output[0] if view.output.dim() == 2 else view.output[0, -1]
    # Of features their length along their own direction is told: the largest one says nothing.
    target = None if view.features else int(row.argmax())
    aimed = _Aimed(subject, inputs, origin, target, words)
    by_length, by_last = aimed.spectrum("length"), aimed.spectrum("last")
    every = of_one(attribute(subject.graph, inputs, target=target, tokenizer=subject.tokenizer))
    graph = every.prune()
    curves = faithfulness(graph)
    parts = [
        _next(words, row, origin),
        _lens(words, origin),
        aimed.spectra((by_length, by_last)),
        aimed.attributed(every, graph),
        aimed.faithful(curves),
        aimed.ledger((by_length, every)),
    ]
    strongest = max(range(len(by_last.counts)), key=lambda place: abs(float(by_last.values[place].nanmean())))
    share = float(by_last.values[strongest].nanmean()) / float(by_last.output.nanmean())
    placed = any(node.position is not None for node in every.nodes if node.role != "target")
    kept, all_of_them = curves.kept, max(one.components for one in curves.circuits)
    return Told(
        Section(words.title, "", inner=tuple(parts)),
        (
            words.finding(target, row),
            f"By the last branch that they pass, paths through {list(by_last.counts)[strongest]} give the largest "
            f"part of {words.its}: {percent(share, 0)}.",
            f"Its attribution graph has {kept.components} of {all_of_them} components{' at positions' * placed}; with "
            f"nothing else the model gives {percent(kept.faithfulness, 0)} of what all of them add to the {words.told}"
            + ("." if abs(kept.faithfulness - 1) <= UNFAITHFUL else ": the graph alone does not explain it."),
        ),
    )


def _next(words: Wording, row: torch.Tensor, origin: Origin) -> Section:
    """The most probable tokens, the largest outputs, or the size of features."""
    if words.view.features:
        sizes = (str(row.shape[-1]), f"{float(row.double().norm()):.4g}")
        table, commands = Table(("features", "length"), (sizes,)), (origin.again("lens", "--order", 0, order=0),)
        return Section("What comes out", "", tables=(table,), commands=commands)
    best = row.double().softmax(-1).topk(min(SAID, row.shape[-1]))
    listed = list(zip(*map(torch.Tensor.tolist, best), strict=True))
    columns, rows = ("token", "probability"), tuple((words.said(index), fixed(p)) for p, index in listed)
    if not words.speaks:
        columns = (words.output, "value", "softmax")
        rows = tuple((words.said(index), f"{float(row[index]):.4g}", fixed(p)) for p, index in listed)
    title = "What comes next" if words.speaks else "What comes out"
    table = Table(columns, rows, bars=tuple(best.values.tolist()))
    return Section(title, "", tables=(table,), commands=(origin.again("lens", "--order", 0, order=0),))


def _lens(words: Wording, origin: Origin) -> Section:
    """Top tokens, or outputs, by point and position."""
    view = words.view
    columns = view.columns()
    places = [place for place, order in enumerate(columns["example"]) if order == 0]
    positions = sorted({_position(columns, place) for place in places})[-COLUMNS:]
    points = list(dict.fromkeys(columns["point"][place] for place in places))
    step = -(-len(points) // POINTS)
    # The last one is always there; top to bottom is output to input, as the stream is drawn elsewhere.
    shown = points[::-1][::step]
    at = {(columns["point"][place], _position(columns, place)): place for place in places}
    cells = [[at[point, position] for position in positions] for point in shown]
    names = [f"{point}  {columns['after'][at[point, positions[0]]]}" for point in shown]
    grid = Grid(
        tuple(str(columns["token"][at[shown[0], position]] or position) for position in positions)
        if view.output.dim() == 3
        else ("",),
        ("model", *names),
        (tuple(_says(view, columns, place) for place in cells[0]), *(_texts(view, columns, line) for line in cells)),
        ((1.0,) * len(positions), *(tuple(_near(view, columns, place) for place in line) for line in cells)),
        f"{_across(words, len(positions))}; rows: points of the stream, and what each follows; deep: near the model's "
        "own output",
    )
    every = "" if step == 1 else f" Of {len(points)} points, every {step}."
    return Section(
        "What the stream says on the way",
        f"The logit lens: the decoder on the stream as it is after each branch, and {words.decoded}.{every}",
        grids=(grid,),
        commands=(origin.again("lens", "--order", 0, order=0),),
    )


def _across(words: Wording, shown: int) -> str:
    """What the columns of the lens are."""
    if words.view.output.dim() == 2:
        return f"column: {words.given}"
    return f"columns: {'the last ' * (shown < words.view.output.shape[1])}{words.columns}"


def _says(view: Lens, columns: Mapping[str, Sequence[Cell]], place: int) -> str:
    """What the model itself gives at a place."""
    return "1.00" if view.features else str(columns["says"][place])


def _texts(view: Lens, columns: Mapping[str, Sequence[Cell]], places: Sequence[int]) -> tuple[str, ...]:
    """What the lens gives at some places: top tokens or outputs, or how near features are."""
    if view.features:
        return tuple(fixed(float(str(columns["cosine"][place])), 2) for place in places)
    return tuple(str(columns["top"][place]) for place in places)


def _position(columns: Mapping[str, Sequence[Cell]], place: int) -> int:
    position = columns["position"][place]
    return position if isinstance(position, int) else 0


def _near(view: Lens, columns: Mapping[str, Sequence[Cell]], place: int) -> float:
    """How near the lens is to the model: from 0 to 1."""
    if view.features:
        return max(0.0, float(str(columns["cosine"][place])))
    return max(0.0, 1.0 - float(str(columns["kl"][place])) / NATS)


@dataclass(frozen=True)
class _Aimed:
    """What is told of one logit, or of features, on one prompt."""

    subject: Subject
    inputs: Mapping[str, Any]
    origin: Origin
    target: int | None
    words: Wording

    def again(self, command: str, *options: str | float, **arguments: Any) -> str:
        return self.origin.again(command, *self._aim, *options, **self._named, **arguments)

    @property
    def _aim(self) -> tuple[str, ...]:
        """How commands name the target, where it has a name."""
        return () if self.target is None else ("--target", f"#{self.target}")

    @property
    def _named(self) -> dict[str, Any]:
        """The same for Python."""
        return {} if self.target is None else {"target": self.target}

    def spectrum(self, by: str) -> Spectrum:
        given = {"target": self.target, "tokenizer": self.subject.tokenizer}
        return spectrum(self.subject.graph, dict(self.inputs), by=by, **given)

    def spectra(self, some: Sequence[Spectrum]) -> Section:
        """A logit by classes of paths."""
        tables = []
        for one in some:
            values = one.values.nanmean((1, 2)).tolist()
            labels = list(one.counts)
            kept = sorted(range(len(values)), key=lambda place: -abs(values[place]))[:ROWS]
            kept.sort()
            digits = max(3, decimals(max(map(abs, values))))
            left = sum(value for place, value in enumerate(values) if place not in kept)
            rows = [
                (str(labels[place]), f"{values[place]:+.{digits}f}", str(one.counts[labels[place]])) for place in kept
            ]
            sizes = [values[place] for place in kept]
            if len(kept) < len(values):
                rows.append((f"{len(values) - len(kept)} others", f"{left:+.{digits}f}", ""))
                sizes.append(left)
            total, size = float(one.total.nanmean()), float(one.values.abs().sum(0).nanmean())
            caption = f"by {one.by}: Σ = {total:.4g}, Σ|class| = {size:.4g}"
            rows = [(name, value, _short(number)) for name, value, number in rows]
            tables.append(Table((one.by, "gives", "paths"), tuple(rows), bars=tuple(sizes), caption=caption))
        return Section(
            "Which paths make it",
            f"The {some[0].what}, as a sum over all paths by one of their properties (the number of sites that "
            f"they pass; the last one), with every gate held at this {self.words.here}: exact, without listing them. "
            f"Where Σ|class| is much larger than Σ, classes cancel, and no single one explains the {self.words.told}.",
            tables=tuple(tables),
            commands=tuple(self.again("spectrum", "--by", one.by, by=one.by) for one in some),
        )

    def attributed(self, every: Attribution, graph: Attribution) -> Section:
        """Components at tokens."""
        nodes = [node for node in every.nodes if node.role in ("source", "site")]
        named = [(node, node.name.rsplit("@", 1)[0]) for node in nodes]
        influence: dict[str, float] = {}
        for node, name in named:
            influence[name] = influence.get(name, 0.0) + node.influence
        kept = set(sorted(influence, key=lambda name: -influence[name])[:ROWS])
        rows = [name for name in influence if name in kept][::-1]
        tokens = {node.position: node.token for node in nodes if node.position is not None}
        positions = sorted(tokens)[-COLUMNS:]
        flows = {(name, node.position): node.flow for node, name in named}
        if alone := any((name, None) in flows for name in rows):
            positions = [*positions, None]
        values = [[flows.get((name, position)) for position in positions] for name in rows]
        largest = max((abs(value) for line in values for value in line if value is not None), default=1.0) or 1.0
        grid = Grid(
            tuple(("all" if tokens else "") if place is None else str(tokens[place] or place) for place in positions),
            tuple(rows),
            tuple(tuple(flow_text(value, largest) for value in line) for line in values),
            tuple(tuple(0.0 if value is None else value / largest for value in line) for line in values),
            f"{f'columns: {self.words.columns}, ' if tokens else ''}· below {0.5 * 10.0 ** -decimals(largest):g}"
            + "; all: at every position alike" * (alone and bool(tokens))
            + f"; rows: the {len(rows)} most influential of {len(influence)} components; the second colour takes away",
        )
        return Section(
            f"Which component, at which {self.words.place}" if tokens else "Which component",
            f"Flow: what a component{f' at a {self.words.place}' if tokens else ''} gives the {self.words.told}, along "
            "all ways onwards from it. A way through several components counts at each of them, so that a column of "
            f"flows does not add up to the {self.words.told}.",
            grids=(grid,),
            after=f"the smallest graph with 80 % of the influence has {len(graph.nodes):,} of {len(every.nodes):,} "
            f"nodes and {len(graph.values):,} of {len(every.values):,} edges, and carries "
            f"{percent(graph.completeness)} of the {self.words.told}",
            commands=(self.again("attribute"), self._drawn()),
        )

    def _drawn(self) -> str:
        """What makes the page of the graph."""
        drawn = self.origin.shell("attribute", *self._aim, "--output", "graph.html")
        return drawn or f"jg.view({self._pruned}, 'graph.html')"

    @property
    def _pruned(self) -> str:
        return f"{self.origin.python('attribute', **self._named)}.prune()"

    def faithful(self, curves: Faithfulness) -> Section:
        """The model on the most important components alone."""
        circuits = sorted((*curves.circuits, curves.kept), key=lambda one: one.share)
        rows = tuple(
            (f"{one.components}{' (the graph)' * (one is curves.kept)}", f"{one.value:.3f}", percent(one.faithfulness))
            for one in circuits
        )
        bars = tuple(one.faithfulness for one in circuits)
        return Section(
            "Is that what the model does?",
            "The test: the model itself runs with only its most influential components, all others set to zero and "
            "everything after them computed anew. 0 % is with none of them, 100 % with all.",
            tables=(Table(("components", self.words.told, "faithfulness"), rows, bars=bars),),
            after=f"area under the curve (CPR) {curves.cpr:.3f}, distance to the model (CMD) {curves.cmd:.3f}",
            commands=(self.origin.shell("faithfulness", *self._aim) or f"jg.faithfulness({self._pruned})",),
        )

    def ledger(self, exact: tuple[Spectrum, Attribution]) -> Section:
        """How exact all this is: sums against the model, what orders leave by a closed form, and what sites leave."""
        by_length, every = exact
        check = self.subject.graph.check
        told = [
            ("trace against the model", "largest difference", "not checked" if check is None else f"{check.error:.1e}"),
            (
                "classes of paths",
                f"Σ − {self.words.told}",
                f"{float((by_length.total - by_length.output).abs().nanmean()):.1e}",
            ),
            ("attribution graph", f"Σ − {self.words.told}", f"{abs(every.total - every.output):.1e}"),
        ]
        tables = [Table(("what", "measured as", "off by"), tuple(told), caption="certificates")]
        left, after = self._left_by_jets()
        return Section(
            "How exact is this?",
            f"The sums above equal the model's own {self.words.told} up to rounding. Terms of jets leave something: "
            "how much is told site by site, so that one sees where it comes from.",
            tables=(*tables, *left),
            after=after,
            commands=self._of_ledger(),
        )

    def _left_by_jets(self) -> tuple[list[Table], str]:
        """What jets leave, by closed forms and in a beam, and what that comes to."""
        graph, tables = self.subject.graph, []
        orders = choose_orders(graph, dict(self.inputs), recipe="components", tokenizer=self.subject.tokenizer)
        columns = orders.columns()
        rows = [tuple(map(cell_text, row)) for row in zip(*(columns[n] for n in ("site", "order", "why")), strict=True)]
        if rows:
            caption = "components: at each site the lowest order that leaves 1 %"
            tables.append(Table(("site", "order", "why"), tuple(rows[:ROWS]), caption=caption))
        beam = compile(expand(graph, 1, recipe="beam", width=WIDTH))(**self.inputs)
        sites = sorted(beam.remainders.items(), key=lambda item: -item[1].relative)[:ROWS]
        caption = (
            f"beam of width {WIDTH}, order 1: what each site leaves besides its terms, as a share of what it gives"
        )
        left = tuple((site, percent(one.relative)) for site, one in sites)
        tables.append(Table(("site", "remainder"), left, bars=tuple(one.relative for _, one in sites), caption=caption))
        rest = percent(float(beam.remainder.norm() / beam.output.norm()))
        return tables, f"the beam's terms leave {rest} of the output"

    def _of_ledger(self) -> tuple[str, str]:
        beamed = ("--recipe", "beam", "--width", str(WIDTH), "--order", "1")
        auto = self.origin.shell("expand", "--recipe", "components", "--order", "auto", prompts="--prompt")
        beam = self.origin.shell("expand", *beamed, prompts="--prompt")
        return (
            auto or self.origin.python("choose_orders", recipe="components"),
            beam or self.origin.python("terms", of=f"jg.expand({self.origin.graph}, 1, recipe='beam', width={WIDTH})"),
        )


def _short(number: str) -> str:
    return big(int(number)) if number else ""
