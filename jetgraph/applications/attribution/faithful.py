"""Faithfulness: what the model itself does when all but the components or edges of an attribution are ablated."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, TypeVar, get_args

import torch
from torch import Tensor

from jetgraph.applications.attribution.edges import EdgeRuns, Streams
from jetgraph.applications.attribution.graphs import Attribution
from jetgraph.applications.attribution.targets import measured
from jetgraph.applications.interventions.network import Network
from jetgraph.applications.results import Cell, Result, Shown
from jetgraph.applications.subject import Inputs, Subject
from jetgraph.compilation.components import Component
from jetgraph.errors import InputError, amount, check, quoted
from jetgraph.export.precision import own_types
from jetgraph.export.waiting import progress
from jetgraph.layout.colours import CYCLE, OTHER
from jetgraph.numbers import percent
from jetgraph.residual import one_look

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIZES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
"""Shares of the components, as in the Mechanistic Interpretability Benchmark."""

Parts = Literal["components", "edges"]
"""What is ablated: components at positions, or edges between them."""

Score = Literal["influence", "flow"]
"""What they are ranked by."""

Key = TypeVar("Key")

Ablation = Literal["zero", "mean", "resample"]
"""What stands for a component at a position that is ablated."""

NEAR = 0.25
"""Of the larger of two values: closer together they are told to be near."""


@dataclass(frozen=True)
class Circuit:
    """The most important components at positions, or edges, and the model with so many of them alone, or without."""

    share: float
    components: int
    """How many of them, or of the edges."""
    value: float
    """Σ of the targets then."""
    faithfulness: float
    """(value − that of none) / (that of all − that of none)."""


@dataclass(frozen=True, eq=False, repr=False)
class Faithfulness(Result):
    """The model on some of its components. Made by `faithfulness`."""

    model: str
    what: str
    of: Parts
    ablation: Ablation
    by: str
    inside: bool
    circuits: tuple[Circuit, ...]
    """By size, none and all among them."""
    kept: Circuit
    """The components of the attribution graph itself."""

    @property
    def cpr(self) -> float:
        """Circuit performance ratio: the area under the curve of faithfulness over the share of components."""
        return self._area(lambda value: value)

    @property
    def cmd(self) -> float:
        """Circuit–model distance: the area between that curve and 1."""
        return self._area(lambda value: abs(1 - value))

    def _area(self, height: Callable[[float], float]) -> float:
        heights = [(one.share, height(one.faithfulness)) for one in self.circuits]
        return sum((right - left) * (low + high) / 2 for (left, low), (right, high) in pairwise(heights))

    @property
    def title(self) -> str:
        what = "what the graph has is ablated" if self.inside else "all but the graph is ablated"
        curve = f"CPR {self.cpr:.3g}, CMD {self.cmd:.3g}"
        own = f"the graph's {amount(self.kept.components, self.of[:-1])}: {percent(self.kept.faithfulness)}"
        return f"{self.model}: faithfulness for {self.what}, {what} ({self.ablation}), by {self.by}; {curve}; {own}"

    @property
    def note(self) -> str:
        """That faithfulness says little, where none of the components give nearly what all do."""
        one, other = self.circuits[0].value, self.circuits[-1].value
        if abs(one - other) >= NEAR * max(abs(one), abs(other)):
            return ""
        return (
            f"the target is {one:.4g} at one end of the curve and {other:.4g} at the other, so near that shares of the "
            "way between say little: take the difference of two tokens (--versus), or put the mean or another prompt's "
            "values in the place of components (ablation=, --ablation)"
        )

    def columns(self) -> Mapping[str, Sequence[Cell]]:
        """share; how many components, or edges, as the column is then called; value, faithfulness: a row a size."""
        names = {"share": "share", self.of: "components", "value": "value", "faithfulness": "faithfulness"}
        return {name: [getattr(one, told) for one in self.circuits] for name, told in names.items()}

    def shown(self) -> Shown:
        """All rows, in their order."""
        return Shown(counts=(self.of,))

    def figure(self) -> Figure:
        """The curve of faithfulness over the share of components."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6, 4.2), layout="constrained")
        axes = figure.subplots()
        shares = [one.share for one in self.circuits]
        axes.plot(shares, [one.faithfulness for one in self.circuits], marker="o", markersize=4)
        axes.scatter([self.kept.share], [self.kept.faithfulness], color=CYCLE[4], zorder=3, label="the graph")
        axes.axhline(1, color=OTHER, linewidth=0.6)
        axes.axhline(0, color=OTHER, linewidth=0.6)
        axes.set_xscale("symlog", linthresh=0.01)
        axes.set_xlim(0, 1.1)
        axes.set_xlabel(f"share of the {self.of} " + ("ablated" if self.inside else "kept"))
        axes.set_ylabel("faithfulness")
        axes.set_title(self.title, fontsize=8, parse_math=False, wrap=True)
        axes.legend(fontsize=8)
        return figure


@torch.no_grad()
@own_types()
@one_look()
def faithfulness(
    attribution: Attribution,
    *,
    of: Parts = "components",
    edges: Sequence[tuple[str, str]] | None = None,
    ablation: Ablation = "zero",
    prompts: Inputs | Sequence[Inputs] | None = None,
    by: Score = "influence",
    inside: bool = False,
    sizes: Sequence[float] = SIZES,
) -> Faithfulness:
    """How much of the targets is left when only the most important components, or edges, of the model are kept.

    The components of an attribution (sites and their parts at positions) are ranked. At each size all but the first
    ones are ablated in the model itself, everything after them is computed anew, and the targets are read. Sources and
    maps on the stream stay.

    Of edges it is path patching: where u@i → v@j is not among the first, v is evaluated at j on a stream to which u
    gives at i what stands for it; by queries, keys or values alone where the graph tells these apart. Sources and maps
    send as others do; what is the same on all prompts stays, and gates of skips are those of the prompt.

    Parameters
    ----------
    attribution
        What `jetgraph.attribute` returns, pruned or not: the ranking is of all components, and those of the graph as it
        is are evaluated besides.
    of
        Ablate `components`, or patch `edges`: at each site that mixes positions one evaluation for each position.
    edges
        Edges by the names of their two nodes, `("L0.mlp@3", "L1.attn.k@5")`, in the place of those of the graph: the
        circuit `kept`, which is ablated with `inside`.
    ablation
        `zero`; `mean`, over all tokens of the prompts given; or `resample`, the values that components have on a prompt
        of the same length, the mean of what the targets then are over the prompts given.
    prompts
        For `mean` and `resample`: as the inputs of `attribute`, or several of them.
    by
        Rank by influence, or by the size of the flow.
    inside
        Ablate the first components or edges instead, and keep the others.
    sizes
        Shares of the components, or of the edges; none for the graph alone.

    Returns
    -------
    Faithfulness
        The curve, its area (CPR), and the area between it and 1 (CMD).

    Raises
    ------
    InputError
        Prompts are missing, are not asked for, or have another length; a size is no share; or there is no such edge.

    >>> from jetgraph import attribute
    >>> curves = faithfulness(attribute("demo", "Raise Value", target="Error").prune(), sizes=(0.1, 0.3))
    >>> [one.components for one in curves.circuits]
    [0, 6, 17, 56]
    """
    check(faithfulness, locals())
    if any(not 0 < size <= 1 for size in sizes):
        raise InputError(f"sizes={quoted(list(sizes))} are shares of the components: give numbers above 0, up to 1")
    for name, value, known in (("ablation", ablation, Ablation), ("by", by, Score), ("of", of, Parts)):
        if value not in get_args(known):
            raise InputError(f"{name}={quoted(value)} is unknown: choose {', '.join(map(repr, get_args(known)))}")
    if edges is not None and of != "edges":
        raise InputError('edges= are of path patching: give of="edges" too')
    if shared := next(iter(attribution.flows.stream.dictionaries), None):
        raise InputError(
            f"{shared!r} is shared out, but a direction of a dictionary is no component of the model that could be "
            "ablated: attribute without it"
        )
    others = _others(attribution, ablation, prompts)
    runs = _edge_runs(attribution, ablation, others) if of == "edges" else _runs(attribution, ablation, others)
    ranked = runs.ranked(by)
    own = runs.standing(attribution.edges.tolist() if of == "edges" else attribution.numbers)
    if edges is not None and isinstance(runs, EdgeRuns):
        own = runs.named(edges)
    circuits, kept = _curve(runs, ranked, [node for node in ranked if node in own], inside, sizes)
    return Faithfulness(attribution.model, attribution.what, of, ablation, by, inside, circuits, kept)


def _curve(
    runs: _Runs | EdgeRuns, ranked: Sequence[int], own: Sequence[int], inside: bool, sizes: Sequence[float]
) -> tuple[tuple[Circuit, ...], Circuit]:
    """The circuits of all sizes, and that of the graph."""
    whole, none = runs.value(ranked), runs.value([])

    def circuit(chosen: Sequence[int]) -> Circuit:
        out = set(chosen)
        value = runs.value([node for node in ranked if node not in out] if inside else chosen)
        ratio = (value - none) / (whole - none) if whole != none else float("nan")
        return Circuit(len(chosen) / max(1, len(ranked)), len(chosen), value, ratio)

    numbers = sorted({0, len(ranked), *(max(1, round(size * len(ranked))) for size in sizes if ranked)})
    bar = progress(numbers, desc="ablating", unit="sizes")
    return tuple(circuit(ranked[:number]) for number in bar), circuit(own)


Filling = Mapping[str, Tensor]
"""By component, what stands for it: [position, features], or one position for all."""


def _others(attribution: Attribution, ablation: Ablation, prompts: Inputs | Sequence[Inputs] | None) -> list[Network]:
    """The model on the prompts that values are taken from."""
    if ablation == "zero":
        if prompts is not None:
            raise InputError('prompts are for ablation="mean" and "resample", not for "zero"')
        return []
    if prompts is None:
        raise InputError(f"ablation={quoted(ablation)} takes values of other prompts: give prompts=")
    network = attribution.network
    given = list(_each(prompts, attribution))
    if not given:
        raise InputError("prompts=[] holds no prompt: give one or more")
    networks: list[Network] = []
    for inputs in given:
        other = Network(network.graph, inputs)
        shape, own = (one.forward.shape(network.graph.traced.output) for one in (other, network))
        if shape[0] != 1 or (ablation == "resample" and shape != own):
            long = " and of its length" if ablation == "resample" else ""
            raise InputError(
                f"a prompt gives an output of shape {list(shape)}, the attribution's {list(own)}: give prompts one by "
                f"one{long}"
            )
        networks.append(other)
    return networks


def _fillings(ablation: Ablation, by_prompt: Sequence[Mapping[Key, Tensor]]) -> Sequence[Mapping[Key, Tensor] | None]:
    """What stands for components, once or by prompt; None is zero."""
    if ablation != "mean":
        return by_prompt or [None]
    return [{name: torch.cat([one[name] for one in by_prompt]).mean(0, keepdim=True) for name in by_prompt[0]}]


def _runs(attribution: Attribution, ablation: Ablation, others: Sequence[Network]) -> _Runs:
    values = [
        {one.alias: _placed(attribution, other.value(one.alias)) for one in _sites(attribution)} for other in others
    ]
    return _Runs(attribution, _fillings(ablation, values))


def _edge_runs(attribution: Attribution, ablation: Ablation, others: Sequence[Network]) -> EdgeRuns:
    streams = Streams(attribution)
    return EdgeRuns(attribution, _fillings(ablation, [streams.filling(other) for other in others]), streams)


def _each(prompts: Inputs | Sequence[Inputs], attribution: Attribution) -> Iterator[dict[str, object]]:
    subject = Subject(attribution.network.graph, attribution.tokenizer, None)
    several = isinstance(prompts, Sequence) and not isinstance(prompts, str)
    for one in prompts if several else [prompts]:  # type: ignore[union-attr]
        yield subject.inputs(one)  # type: ignore[arg-type]


@dataclass(frozen=True)
class _Site:
    """A branch or a part of one, which is ablated as a whole."""

    alias: str
    members: tuple[Component, ...]
    """Its one component, or those of the ways into its attention. Its nodes are numbered as those of the first."""

    @property
    def nodes(self) -> range:
        """By position."""
        return range(self.members[0].first, self.members[0].first + len(self.members[0].positions))


def _sites(attribution: Attribution) -> list[_Site]:
    """What is ablated: branches and their parts, in the order of the stream."""
    by_alias: dict[str, list[Component]] = {}
    for one in attribution.flows.components:
        if one.passage is not None and one.passage.site.role == "branch":
            by_alias.setdefault(one.passage.site.alias, []).append(one)
    return [_Site(alias, tuple(members)) for alias, members in by_alias.items()]


def _placed(attribution: Attribution, value: Tensor) -> Tensor:
    """A component's value as [position, features]."""
    return attribution.flows.stream.placed(value[None])[0]


class _Runs:
    """Runs of the model with some components ablated."""

    def __init__(self, attribution: Attribution, fillings: Sequence[Filling | None]) -> None:
        self._attribution, self._fillings = attribution, fillings
        self._sites = _sites(attribution)
        self._known: dict[frozenset[int], float] = {}

    def ranked(self, by: str) -> list[int]:
        """The numbers of all nodes that can be ablated, the most important first."""
        flows = self._attribution.flows
        score = flows.influence if by == "influence" else flows.flow
        total: dict[int, float] = {}
        for site in self._sites:
            for at, node in enumerate(site.nodes):
                total[node] = abs(sum(float(score[one.first + at]) for one in site.members))
        return sorted(total, key=lambda node: -total[node])

    def standing(self, numbers: Iterable[int]) -> set[int]:
        """The nodes that some nodes of an attribution are of."""
        own = {
            one.first + at: node for site in self._sites for one in site.members for at, node in enumerate(site.nodes)
        }
        return {own[number] for number in numbers if number in own}

    def value(self, kept: Sequence[int]) -> float:
        """The targets with all nodes ablated but these."""
        stays = frozenset(kept)
        if stays not in self._known:
            values = (self._value(stays, filling) for filling in self._fillings)
            self._known[stays] = sum(values) / len(self._fillings)
        return self._known[stays]

    def _value(self, kept: frozenset[int], filling: Filling | None) -> float:
        network = self._attribution.network
        forward = network.graph.run(**network.inputs)
        for one in self._sites:
            gone = [at for at, node in enumerate(one.nodes) if node not in kept]
            if not gone:
                continue
            # Where all of it goes, what it would have been need not be known.
            like = network.value(one.alias) if len(gone) == len(one.nodes) else forward.component(one.alias)
            value = like.clone(memory_format=torch.contiguous_format)
            placed = _placed(self._attribution, value)
            if filling is None:
                placed[gone] = 0
            else:
                other = filling[one.alias]
                placed[gone] = other if len(other) == 1 else other[gone]
            forward.patch(one.alias, value)
        return measured(forward, self._attribution.aims)
