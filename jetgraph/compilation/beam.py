"""A beam: which terms are centres by themselves is chosen when it runs, by the values that have arrived.

Site by site along the stream, the terms that arrive are ranked, the largest pass the site by themselves and the sum of
the others as one centre more, and the plan grows by the operations for that. So the sum is exact at any width, and the
paths are those that were found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from jetgraph.algebra.grouping import REST
from jetgraph.algebra.passages import Passage
from jetgraph.algebra.paths import Hop, Path
from jetgraph.algebra.rules import Jet
from jetgraph.compilation.evaluated import Evaluated
from jetgraph.compilation.ledger import Ledger, ledger_of
from jetgraph.compilation.numbering import Values
from jetgraph.compilation.origins import Model
from jetgraph.compilation.plan import Lane, Operation, Work, inputs
from jetgraph.compilation.planning import Planning
from jetgraph.compilation.stacking import StackedRun
from jetgraph.errors import InputError
from jetgraph.running.forward import Forward
from jetgraph.running.reals import as_reals, in_double, product


@dataclass(frozen=True)
class Found:
    """A term at a point: its number among the values, and the path so far."""

    value: int
    hops: tuple[Hop, ...]


def evaluate_beam(model: Model, forward: Forward, accepts: Callable[[Path], bool], memory: int) -> Evaluated:
    """The terms that are found, those of them that are accepted.

    Parameters
    ----------
    model, forward
        What is run, on which inputs.
    accepts
        Whether the term of a path is wanted.
    memory
        As in `evaluate`.
    """
    beam = _Beam(model, forward, memory)
    for term in beam.terms():
        path = Path(term.hops)
        if accepts(path):
            beam.results[path] = beam.result(term.value)
    shape = forward.shape(model.graph.structure.decoder.nonlinear.exit)
    hidden = {path: beam.run.values[index].expand(shape) for path, index in beam.results.items()}
    far = {site: (sum(few), number) for site, (few, number) in beam.run.far.items()}
    return Evaluated(hidden, beam.run.weights, far, {})


def beam_ledger(model: Model, forward: Forward, memory: int) -> Ledger:
    """What each site leaves besides the terms that are found."""
    beam = _Beam(model, forward, memory, by_site=True)
    beam.terms()
    sums = {alias: beam.run.values[index] for alias, index in beam.planning.sums().items()}
    return ledger_of(model, forward, {entry.source.alias for entry in model.expansion.entries}, sums)


def largest_paths(model: Model, forward: Forward, width: int, memory: int) -> list[Path]:
    """Paths that keep large terms on their way, best first: a heuristic.

    At every point of the stream the `width` largest of the terms that have come so far go on, by their norms with their
    weights; the others are dropped with all that would have come of them. So a path may be missed whose beginning is
    small, and none is where there are no more terms than that.

    Parameters
    ----------
    model, forward, memory
        As of `evaluate_beam`; centres are single terms, with weights that are known beforehand.
    width
        How many go on.

    Returns
    -------
    list[Path]
        In no order.
    """
    return [Path(term.hops) for term in _Beam(model, forward, memory, width=width).terms()]


@dataclass
class _Growing:
    """A plan that is being made; as far as a run reads one."""

    operations: list[Operation]
    work: list[Work]
    links: list[tuple[int, ...]] = field(default_factory=list)
    results: tuple[int, ...] = ()
    """Which values these are is not known before its end."""

    def waiting(self) -> list[int]:
        return []

    def order(self) -> Iterator[int]:
        return iter(range(len(self.operations)))


class _Beam:
    """The terms along the stream, and the run that their plan is part of."""

    def __init__(
        self, model: Model, forward: Forward, memory: int, by_site: bool = False, width: int | None = None
    ) -> None:
        self.model, self.forward, self.memory, self.width = model, forward, memory, width
        self.values = Values(model.expansion)
        self.planning = Planning(model, self.values, by_site)
        self.making = self.planning.making
        self.plan = _Growing(self.making.operations, self.making.work)
        self.run: StackedRun = StackedRun(self.plan, model, forward, memory)  # type: ignore[arg-type]
        self.results: dict[Path, int] = {}
        self._visited = 0
        self._kept: set[int] = set()
        self._gradients: dict[int, tuple[Tensor, ...]] = {}
        self._sizes: dict[tuple[int, int | None], float] = {}

    def terms(self) -> list[Found]:
        """All terms at the end, past the decoder."""
        expansion = self.model.expansion
        points: list[list[Found]] = [self._going_on(self._entering(0), 0)]
        for number, step in enumerate(expansion.outline.steps, start=1):
            here: list[Found] = []
            if any(move.hop is None for move in expansion.automaton.moves[number - 1]):
                here = [Found(self.values.carry(one.value, number), one.hops) for one in points[-1]]
            here += self._past([expansion.passage(site.alias) for site in step.sites], points)
            points.append(self._going_on([*here, *self._entering(number)], number))
        last = self._past([expansion.passage(expansion.outline.decoder.alias)], points)
        return [*last, *self._entering(expansion.sink)]

    def _entering(self, point: int) -> list[Found]:
        entries = self.model.expansion.automaton.entering[point]
        return [Found(self.values.enter(entry), entry.hops) for entry in entries if not self._is_rest(entry)]

    def _is_rest(self, entry: Any) -> bool:
        return entry.is_group and self.model.expansion.passage(entry.last).beam is not None

    def _going_on(self, here: list[Found], point: int) -> list[Found]:
        """What is not dropped at a point."""
        if self.width is None or len(here) <= self.width:
            return here
        sizes = self._measured(here, point, None)
        kept = sorted(sorted(range(len(here)), key=lambda i: -sizes[i])[: self.width])
        return [here[i] for i in kept]

    # At a step

    def _past(self, passages: Sequence[Passage], points: Sequence[Sequence[Found]]) -> list[Found]:
        """What the sites of a step make of the terms that arrive."""
        terms: list[Found] = []
        for passage in passages:
            if not passage.hops or passage.groups:
                continue
            centres = self._centres(passage, points[passage.reads])
            if passage.beam is not None:
                self.values.chosen[passage.site.alias] = [one.value for one in centres]
            for one in centres:
                for hop in passage.hops:
                    terms.append(Found(self.values.past(one.value, hop), (*one.hops, hop)))
        wanted = {passage.site.alias for passage in passages}
        for alias, value in self.values.passing:
            if alias in wanted and value not in (reading := self.planning.reading.setdefault(alias, [])):
                reading.append(value)
        self.planning.pass_sites(passages)
        self._run_new()
        return terms

    def _centres(self, passage: Passage, arriving: Sequence[Found]) -> list[Found]:
        """The largest of what arrives, in the order in which they arrive, and the sum of the others."""
        rule = passage.rule
        if rule.beam is None or len(arriving) <= rule.beam:
            return list(arriving)
        sizes = self._ranked(passage, arriving)
        largest = sorted(sorted(range(len(arriving)), key=lambda i: -sizes[i])[: rule.beam])
        kept = set(largest)
        others = tuple(one.value for i, one in enumerate(arriving) if i not in kept)
        rest = Found(self.values.lump(passage.reads, REST, others), (Hop(REST),))
        return [*(arriving[i] for i in largest), rest]

    def _ranked(self, passage: Passage, arriving: Sequence[Found]) -> list[float]:
        """How large terms are for a site: by norm, or by what they add to its target, to first order."""
        return self._measured(arriving, passage.reads, passage.rule.target if isinstance(passage.rule, Jet) else None)

    def _measured(self, arriving: Sequence[Found], point: int, target: int | None) -> list[float]:
        """How large terms are at a point."""
        missing = [one.value for one in arriving if (one.value, target) not in self._sizes]
        new: list[int] = []
        made = {}
        for value in missing:
            new += self.making.make(value)
            made[value] = self.making.weighed(value, new)
        self.planning.visit_alone(new)
        self._run_new(list(made.values()))
        for value, index in made.items():
            tensor = self.run.values[index].detach()
            if target is None:
                self._sizes[value, target] = float(as_reals(tensor).double().norm())
            else:
                self._sizes[value, target] = abs(
                    float(product(in_double(tensor), in_double(self._gradient(target)[point])).sum())
                )
        return [self._sizes[one.value, target] for one in arriving]

    def _gradient(self, target: int) -> tuple[Tensor, ...]:
        """The derivative of a token's logit at the last position by every point of the stream."""
        if target not in self._gradients:
            graph = self.model.graph
            run = Forward(graph, self.forward.state, self.forward.inputs)
            points: tuple[fx.Node, ...] = graph.stream.points
            with torch.inference_mode(False), torch.enable_grad():
                start = self.forward[points[0]].detach().clone().requires_grad_()
                run.values.put(points[0], start)
                # In one pass, for what is asked for later would be computed anew.
                run.need([*points, graph.traced.output])
                output = run.output
                if not 0 <= target < output.shape[-1]:
                    raise InputError(f"target={target} is no token: the output has {output.shape[-1]}")
                logit = (output[:, -1] if output.dim() == 3 else output)[..., target].sum()
                self._gradients[target] = torch.autograd.grad(logit, [run[node] for node in points])
        return self._gradients[target]

    # Running

    def _run_new(self, keep: Sequence[int] = ()) -> None:
        """Run the visits that have been planned and not run; what values are made by is kept, and what is asked for."""
        plan, run, visits = self.plan, self.run, self.planning.visits[self._visited :]
        plan.links += map(inputs, plan.operations[len(plan.links) :])
        run.waiting += [0] * (len(plan.operations) - len(run.waiting))
        fresh = [index for visit in visits for lane in visit.lanes for index in _all(lane)]
        for index in fresh:
            for read in plan.links[index]:
                run.waiting[read] += 1
        for index in {*self.planning.held(), *keep} - self._kept:
            run.waiting[index] += 1
            self._kept.add(index)
        self.forward.need(dict.fromkeys(node for index in fresh for node in plan.work[index].reads))
        for visit in visits:
            run.visit(visit)
        for index in fresh:
            if not run.waiting[index]:
                run.values.pop(index, None)
                self.making.forget(index)
        self._visited = len(self.planning.visits)

    def result(self, value: int) -> int:
        """The operation of a term at the end."""
        new = self.making.make(value)
        index = self.making.weighed(value, new)
        self.planning.visit_alone(new)
        self._run_new([index])
        return index


def _all(lane: Lane) -> tuple[int, ...]:
    return (*lane.before, *lane.passes, *lane.after)
