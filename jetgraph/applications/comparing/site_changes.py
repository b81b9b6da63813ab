"""How far the weights that each site reads have moved from one model to another."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from jetgraph.applications.results import Cell, Result, Shown
from jetgraph.export.reach import above
from jetgraph.layout.colours import GIVES, OTHER
from jetgraph.residual import ResidualGraph
from jetgraph.scale.shards import each
from jetgraph.scale.states import Record
from jetgraph.structure.regions import MapStage

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ENTRIES = 2**21
"""Weights that are compared at once."""


@dataclass(frozen=True)
class SiteChange:
    """How far the weights that a site, a source or a skip reads have moved."""

    site: str
    module: str
    parameters: int
    """Numbers in them."""
    change: float | None
    """‖W_b − W_a‖_F / ‖W_a‖_F over all of them together; None where names or shapes differ, or W_a is zero."""


@dataclass(frozen=True, eq=False, repr=False)
class SiteChanges(Result):
    """Relative change of the weights, site by site, in the order of the stream."""

    names: tuple[str, str]
    rows: tuple[SiteChange, ...]

    @property
    def title(self) -> str:
        """What was compared."""
        return f"relative change of weights from {self.names[0]} to {self.names[1]} by site"

    @property
    def note(self) -> str:
        """That the weights are equal, where they are, or that none can be compared."""
        if all(row.change is None for row in self.rows):
            return "no site reads weights of the same names and shapes in both, so there is no change to tell"
        return "the weights of both are equal" if all(row.change == 0 for row in self.rows) else ""

    def columns(self) -> Mapping[str, Sequence[Cell]]:
        """site, module, parameters, change = ‖W_b − W_a‖ / ‖W_a‖."""
        return {
            "site": [row.site for row in self.rows],
            "module": [row.module for row in self.rows],
            "parameters": [row.parameters for row in self.rows],
            "change": [row.change for row in self.rows],
        }

    def shown(self) -> Shown:
        """The largest change first."""
        return Shown(first=("change",), counts=("parameters",))

    def figure(self) -> Figure:
        """Bars: the relative change by site."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6, 1.4 + 0.22 * len(self.rows)), layout="constrained")
        self.draw(figure.subplots())
        return figure

    def draw(self, axes: Any) -> None:
        """The bars, on matplotlib axes."""
        places = range(len(self.rows))
        axes.barh(places, [math.nan if row.change is None else row.change for row in self.rows], color=GIVES)
        axes.set_yticks(places, [row.site for row in self.rows], fontsize=8, parse_math=False)
        axes.set_ylim(len(self.rows) - 0.5, -0.5)
        axes.set_xlim(left=0)
        for place, row in enumerate(self.rows):
            if row.change is None:
                axes.text(0, place, " no weights of the same name and shape", va="center", fontsize=7, color=OTHER)
        axes.set_xlabel("‖W_b − W_a‖ / ‖W_a‖ (Frobenius)")
        axes.set_title("weights by site", fontsize=10)


def site_changes(
    one: ResidualGraph, other: ResidualGraph, identity: Callable[[], Mapping[str, str]]
) -> Callable[[], tuple[SiteChange, ...]]:
    """What gives the changes of what reads weights in one of two models, those of the first one in its order before
    others; each is a unit of work of the job that compares the two.
    """
    first, second = _readers(one), _readers(other)
    aliases = list(dict.fromkeys((*first, *second)))

    def look(unit: int) -> Record:
        alias = aliases[unit]
        shared = alias in first and alias in second and first[alias][1] == second[alias][1]
        change = _relative_change(one, other, first[alias][1]) if shared else None
        return {} if change is None else {"change": torch.tensor(change, dtype=torch.float64)}

    records = each("weights", len(aliases), look, identity, of="sites")

    def whole() -> tuple[SiteChange, ...]:
        changes: list[SiteChange] = []
        for alias, record in zip(aliases, records(), strict=True):
            module, names = (first if alias in first else second)[alias]
            parameters = sum((one if alias in first else other).traced.tensors[name].numel() for name in names)
            changes.append(SiteChange(alias, module, parameters, record["change"].item() if record else None))
        return tuple(changes)

    return whole


def _relative_change(one: ResidualGraph, other: ResidualGraph, names: Sequence[str]) -> float | None:
    """‖W_b − W_a‖_F / ‖W_a‖_F over parameters; None where there are none, their shapes differ, or W_a is zero."""
    both = [(one.traced.tensors[name].detach(), other.traced.tensors[name].detach()) for name in names]
    if not names or any(a.shape != b.shape for a, b in both):
        return None
    moved, size = map(math.fsum, zip(*(squares for a, b in both for squares in _squares(a, b)), strict=True))
    if size == 0:
        return 0.0 if moved == 0 else None
    return math.sqrt(moved / size)


def _squares(a: Tensor, b: Tensor) -> Iterator[tuple[float, float]]:
    """‖b − a‖² and ‖a‖² of some rows after others, so that few are there in float64."""
    if not a.dim():
        a, b = a[None], b[None]
    rows = max(1, ENTRIES * len(a) // max(1, a.numel()))
    for start in range(0, max(1, len(a)), rows):
        some = a[start : start + rows].double()
        yield (
            float((b[start : start + rows].to(some.device).double() - some).square().sum()),
            float(some.square().sum()),
        )


def _readers(graph: ResidualGraph) -> dict[str, tuple[str, tuple[str, ...]]]:
    """What reads weights on the stream, in its order: alias → module path and names of the parameters."""
    readers: dict[str, tuple[str, tuple[str, ...]]] = {}
    constant = _constant(graph)
    for summand in graph.stream.encoder.summands:
        readers[summand.source.alias] = (summand.source.path, _source_parameters(graph, summand.leaf, constant))
    for stage in graph.stream.stages:
        if isinstance(stage, MapStage):
            site = stage.step.site
            readers[site.alias] = (site.path, _parameters(graph, stage.region.side, constant))
            continue
        for branch in stage.join.branches:
            readers[branch.alias] = (branch.name, _parameters(graph, branch.region.side, constant))
        gates = (node for gate in stage.join.gates for node in gate.side)
        if stage.join.skip and (skip := _parameters(graph, (*stage.join.skip.side, *gates), constant)):
            readers[f"skip of {stage.join.alias}"] = (stage.join.name, skip)
    decoder = graph.structure.decoder
    sides = (*decoder.nonlinear.side, *decoder.affine.side)
    readers[decoder.site.alias] = (decoder.site.path, _parameters(graph, sides, constant))
    return readers


def _source_parameters(graph: ResidualGraph, leaf: fx.Node | None, constant: set[fx.Node]) -> tuple[str, ...]:
    """Names of the parameters that a source of the encoder is made with, those on its way to point 0 included."""
    encoder = graph.stream.encoder
    if leaf is None:
        leaves = set(encoder.leaves)
        read = {arg for node in encoder.nodes for arg in node.all_input_nodes} - leaves
        return _parameters(graph, read, constant)
    way = {leaf}
    for node in encoder.nodes:
        if not way.isdisjoint(node.all_input_nodes):
            way.add(node)
    read = {arg for node in way - {leaf} for arg in node.all_input_nodes} - way - {*encoder.nodes, *encoder.leaves}
    return tuple(sorted({*_parameters(graph, [leaf], None), *_parameters(graph, read, constant)}))


def _constant(graph: ResidualGraph) -> set[fx.Node]:
    """Nodes whose values the inputs' contents do not reach; sizes are no contents."""
    varying: set[fx.Node] = set()
    for node in graph.traced.graph.nodes:
        is_input = node.op == "placeholder" and graph.traced.bindings[node.name].kind == "input"
        if is_input or (node.meta.get("dtype") is not None and not varying.isdisjoint(node.all_input_nodes)):
            varying.add(node)
    return set(graph.traced.graph.nodes) - varying


def _parameters(graph: ResidualGraph, nodes: Iterable[fx.Node], within: set[fx.Node] | None) -> tuple[str, ...]:
    """Names of the parameters that these values are made from, by way of `within` only (None: any way)."""
    into = set(graph.traced.graph.nodes) if within is None else within
    read = above(into.intersection(nodes), into.__contains__)
    bindings = (graph.traced.bindings[node.name] for node in read if node.op == "placeholder")
    return tuple(sorted({binding.name for binding in bindings if binding.kind == "parameter"}))
