"""Attribution graphs: components at positions, and what flows from one to the next on its way to a target."""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from jetgraph.applications.attribution.pictures import picture, too_high, widest, without_overlap
from jetgraph.applications.attribution.routes import Route, Routes, best_first
from jetgraph.applications.attribution.targets import Aim
from jetgraph.applications.interventions.network import Network
from jetgraph.applications.interventions.targets import texts_at
from jetgraph.applications.readout import Texts
from jetgraph.applications.results import Cell, Result, Table
from jetgraph.compilation.along import along
from jetgraph.compilation.flows import Flows
from jetgraph.errors import InputError, amount, check
from jetgraph.export.precision import own_types
from jetgraph.layout.blocks import block_of
from jetgraph.layout.laying_out import lay_out
from jetgraph.numbers import percent
from jetgraph.views.style import check_width, fit, styled

if TYPE_CHECKING:
    import networkx as nx
    from matplotlib.figure import Figure

_SITE = re.compile(r"L(\d+)\.(?:mlp|attn(?:\.head(\d+))?)")

LEAST = 12
"""Nodes that every picture has room for, be they targets."""

DRAWN = 60
"""Nodes that a figure shows; of more, the most influential."""

MOST = 1000
"""Nodes that a figure shows where so many are asked for."""


@dataclass(frozen=True)
class Node:
    """A component at a position, a target, or what was cut."""

    name: str
    """Such as `L3.attn.head2@4`, and `L3.attn.head2.bias@4` for the constant that the site leaves."""
    alias: str
    """As in paths; of constants `bias4` and the like."""
    path: str
    """Module path of the code that makes it."""
    kind: str
    """That of the site or the source (`attn`, `mlp`, `embed`, `bias`, …), `target` or `rest`."""
    role: Literal["source", "site", "target", "rest"]
    point: int
    """The point of the stream that it adds to; of targets, one after the last."""
    position: int | None
    """None where positions are not told apart."""
    token: str | None
    """The text of the token at that position, where it is known."""
    flow: float
    """What it passes on to the targets; of a target, its value."""
    influence: float
    """The share of the targets that is due to it when every node's is divided among what enters it by size."""


@dataclass(frozen=True, eq=False, repr=False)
class Attribution(Result):
    """An attribution graph. Made by `attribute`.

    Flow is conserved: what enters a site at a position is what it passes on, and what enters the targets is their
    value. Constants of sites are sources of their own. What was cut is one node, `rest`, so that the sums stay.
    """

    model: str
    what: str
    """The targets by name."""
    output: float
    """Σ of the targets in the model's own output."""
    nodes: tuple[Node, ...]
    """Components in the order of the stream, then targets; `rest` at the end, where something was cut."""
    senders: Tensor
    """[edge]: places in `nodes`."""
    receivers: Tensor
    """[edge]"""
    values: Tensor
    """[edge]: flow, signed."""
    influences: Tensor
    """[edge]: influence; edges of `rest` have none."""
    flows: Flows
    """Of all nodes."""
    numbers: tuple[int, ...]
    """By node, its number in `flows`; −1 for `rest`."""
    edges: Tensor
    """[edge]: its number in `flows`; −1 for edges of `rest`."""
    network: Network
    """The model on the prompt."""
    aims: tuple[Aim, ...]
    """The targets."""
    tokenizer: Any | None
    most: int | None = None
    """Nodes that its figure shows; as many as a page has room for, up to `DRAWN`, unless given."""

    @cached_property
    def tokens(self) -> Texts:
        """The texts of the prompt's tokens, as of its one example; none where it has no tokens."""
        return texts_at(self.network, self.tokenizer)

    @property
    def total(self) -> float:
        """Σ of what enters the targets: `output`, up to rounding."""
        return sum(node.flow for node in self.nodes if node.role == "target")

    @cached_property
    def carried(self) -> float:
        """What reaches the targets along paths of this graph alone, without `rest`, evaluated path-exactly."""
        return float(along(self.flows, self.edges[self.edges >= 0]).sum())

    @property
    def completeness(self) -> float:
        """The share of the targets that the graph carries: `carried` / `total`."""
        return self.carried / self.total if self.total else float("nan")

    @property
    def title(self) -> str:
        size = f"{amount(len(self.nodes), 'node')} and {amount(len(self.values), 'edge')}"
        return f"{self.model}: attribution of {self.what}: {self.total:.4g}; {size}{_share(self)}"

    @property
    def note(self) -> str:
        """What the numbers before tokens are, where there are some."""
        if not any(aim.weighted for aim in self.aims):
            return ""
        return (
            "a number before a token is the weight of its centred logit: its probability, where no target was named "
            "(target=, --target)"
        )

    def columns(self) -> Mapping[str, Sequence[Cell]]:
        """An edge a row, the most influential first: sender, receiver, flow, share of the targets, and influence."""
        values, total = self.values.tolist(), self.total
        return {
            "sender": [self.nodes[at].name for at in self.senders.tolist()],
            "receiver": [self.nodes[at].name for at in self.receivers.tolist()],
            "flow": values,
            "share": [value / total if total else None for value in values],
            "influence": self.influences.tolist(),
        }

    def at(self, position: int) -> Table:
        """The edges into one position; negative ones are counted from the end of the prompt.

        Raises
        ------
        InputError
            Positions are not told apart, or none is this one.
        """
        check(Attribution.at, locals())
        known = [place for component in self.flows.components for place in component.positions if place is not None]
        if not known:
            raise InputError("this graph does not tell positions apart: attribute with positions=True")
        place = position if position >= 0 else max(known) + 1 + position
        if not 0 <= place <= max(known):
            raise InputError(f"there is no position {position}: there are 0 to {max(known)}")
        rows = [row for row, node in enumerate(self.receivers.tolist()) if self.nodes[node].position == place]
        return self._rows(rows, f"edges into position {place} of")

    def components(self) -> Mapping[str, Sequence[Cell]]:
        """A node a row, by column: see `Node` for what each one is."""
        names = ("name", "alias", "path", "kind", "role", "position", "token", "flow", "influence")
        return {name: [getattr(node, name) for node in self.nodes] for name in names}

    @own_types()
    def prune(self, nodes: float = 0.8, edges: float = 0.98) -> Attribution:
        """The smallest graph of the most influential nodes and edges.

        Parameters
        ----------
        nodes
            The share of the influence of all nodes that those which stay have together. Targets stay.
        edges
            The same for the edges among them. Nodes are dropped that no edge then leads on from, and sites that none
            leads to.

        Returns
        -------
        Attribution
            What was cut is its node `rest`: it gives every node what that has lost, and takes what it no longer passes
            on, so that every sum stays. Pruned again, a graph is pruned further.

        Raises
        ------
        InputError
            A share is not between 0 and 1.
        """
        check(Attribution.prune, locals())
        for name, share in (("nodes", nodes), ("edges", edges)):
            if not 0 < share <= 1:
                raise InputError(f"{name}={share} is no share of the influence: give a number above 0, up to 1")
        own = self.edges >= 0
        target = torch.tensor([node.role == "target" for node in self.nodes])
        influence = torch.tensor([node.influence for node in self.nodes], dtype=torch.float64)
        influence[target] = 0
        kept = target | _most(influence, nodes)
        inside = own & kept[self.senders] & kept[self.receivers]
        chosen = inside & _most(torch.where(inside, self.influences.double(), 0.0), edges)
        return self._of(kept, chosen)

    def _of(self, kept: Tensor, chosen: Tensor) -> Attribution:
        """Some of the nodes and edges, as far as they lead from sources to targets, and the rest."""
        role = [node.role for node in self.nodes]
        source, target = (torch.tensor([one == name for one in role]) for name in ("source", "target"))
        while True:
            leads = torch.zeros_like(kept)
            leads[self.senders[chosen]] = True
            reached = source.clone()
            reached[self.receivers[chosen]] = True
            alive = kept & (target | (leads & reached))
            still = chosen & alive[self.senders] & alive[self.receivers]
            if bool((alive == kept).all()) and bool((still == chosen).all()):
                break
            kept, chosen = alive, still
        return _assembled(self, kept.nonzero()[:, 0], chosen.nonzero()[:, 0])

    def paths(self, top: int = 20) -> Routes:
        """The most influential paths of this graph, source to target, each with its exact value.

        Parameters
        ----------
        top
            How many.

        Returns
        -------
        Routes
            Found best first by the product of the shares that edges have in what enters their receivers; the value of
            each is evaluated along it. Largest value first. For the paths of largest value see `jetgraph.rank`.

        Raises
        ------
        InputError
            A number below 1 or above 10,000.
        """
        check(Attribution.paths, locals())
        if not 1 <= top <= 10_000:
            raise InputError(f"top={top} is no number of paths between 1 and 10000")
        columns = zip(self.senders.tolist(), self.receivers.tolist(), self.influences.tolist(), strict=True)
        edges = {at: edge for at, edge in enumerate(columns) if self.edges[at] >= 0}
        best = best_first([node.role for node in self.nodes], [node.influence for node in self.nodes], edges)
        found: list[Route] = []
        for influence, path in itertools.islice(best, top):
            places = [edges[path[0]][0], *(edges[edge][1] for edge in path)]
            value = float(along(self.flows, self.edges[list(path)]).sum())
            found.append(Route(" > ".join(self.nodes[at].name for at in places), value, influence))
        found.sort(key=lambda route: -abs(route.value))
        return Routes(self.title, self.total, tuple(found), self.tokens)

    def to_networkx(self) -> nx.MultiDiGraph:
        """The graph for networkx; `jetgraph.write_graph` writes it.

        Nodes and edges have `value` (the flow), its `share` in the targets', `influence`, `position` (−1 where there is
        none), `token`, `order` and weights as those of path graphs, and `formula`; nodes the rest of `Node` too, and
        their place, `x` and `y`; edges `from_position`, and `way` (see `jetgraph.layout`). The graph has `model`,
        `target` and `total`.
        """
        import networkx as nx

        total, letters = self.total, {}
        for component in self.flows.components:
            if (passage := component.passage) is not None:
                letters[component.alias] = passage.rule.letter(passage.hops[0].order)
        dag = nx.MultiDiGraph(model=self.model, target=self.what, total=total, **_about(self))
        for node in self.nodes:
            dag.add_node(
                node.name,
                label=node.name,
                alias=node.alias,
                path=node.path,
                layer=block_of(node.name),
                kind=node.kind,
                role=node.role,
                point=node.point,
                influence=node.influence,
                formula=f"{letters[node.alias]}[{node.alias}](x)" if node.role == "site" else node.alias,
                **_measured(node.flow, total, node),
            )
        columns = (self.senders, self.receivers, self.values, self.influences)
        table = zip(*(column.tolist() for column in columns), strict=True)
        for sender, receiver, value, influence in table:
            start, end = self.nodes[sender], self.nodes[receiver]
            facts = _measured(value, total, end)
            ends = {"formula": "", "from_position": _place(start)}
            dag.add_edge(start.name, end.name, influence=influence, **ends, **facts)
        return lay_out(dag)

    @own_types()
    def figure(self) -> Figure:
        """Nodes by position and depth, as large as their influence; edges as wide, red where they take away.

        As many nodes as a page has rows for, up to `DRAWN`, or `most`: the most influential ones, and of these the
        widest edges. Then the title says how many, and what they carry.
        """
        return self._figure(None)

    def plot(
        self, file: str | os.PathLike[str] | None = None, *, width: float | None = None, most: int | None = None
    ) -> Figure:
        """Draw the graph; into `file` (.png, .svg, .pdf) too where one is given.

        A picture is as high as a page, and shows as many of the most influential nodes as there is room for; with
        `most` it shows so many, and is as high as that takes. For `width` see `Result.plot`.

        Raises
        ------
        InputError, FileError, MissingExtraError
            As `Result.plot`; `most` is not between 1 and 1,000.
        """
        check(Attribution.plot, locals())
        if most is not None and not 1 <= most <= MOST:
            raise InputError(f"most={most} is no number of nodes to draw: give 1 to {MOST}")
        return Result.plot(self if most is None else replace(self, most=most), file, width=width)

    @own_types()
    @styled
    def drawn(self, width: float | None = None) -> Figure:
        """The picture, in a width: targets stand in more lines, and the axis says how many names have no room.

        It is no higher than a page, see `plot`.

        Raises
        ------
        InputError
            As `plot`.
        """
        if width is not None:
            check_width(width)
        figure = fit(self._figure(width), width)
        return figure if width is None else without_overlap(figure)

    def _figure(self, width: float | None) -> Figure:
        number = min(self.most or DRAWN, len(self.nodes))
        shown = self._largest(number)
        dag = shown.to_networkx()
        while self.most is None and number > LEAST and (rows := too_high(dag, width)):
            # A row is gone when its last node is.
            number = max(LEAST, number - rows)
            shown = self._largest(number)
            dag = shown.to_networkx()
        edges = widest(dag)
        title = self.title + _left_out(self, shown, len(edges))
        return picture(title, dag, edges, width, on_page=self.most is None, rest=_rest(shown))

    def _largest(self, number: int) -> Attribution:
        """The graph of its targets and most influential nodes; itself where it has no more."""
        if number >= len(self.nodes):
            return self
        kept = _most_influential(self.nodes, number)
        return self._of(kept, (self.edges >= 0) & kept[self.senders] & kept[self.receivers])


def _about(graph: Attribution) -> dict[str, Any]:
    """The prompt's tokens, as a list in JSON, and the sizes of a transformer, for the formats of others."""
    names = [component.name.removesuffix(".bias") for component in graph.flows.components]
    sites = [match for name in names if (match := _SITE.match(name))]
    lands = {component.name: component.lands for component in graph.flows.components}
    beside = {lands[name] for name in lands if name.endswith(".mlp")}
    return {
        "tokens": json.dumps([text for some in graph.tokens for text in some]),
        "layers": 1 + max((int(match[1]) for match in sites), default=-1),
        "heads": 1 + max((int(match[2]) for match in sites if match[2]), default=-1),
        "width": next(iter(graph.network.graph.branches.values())).node.meta["shape"][-1],
        "parallel": int(any(lands[name] in beside for name in lands if ".attn" in name and ".bias" not in name)),
    }


def _rest(graph: Attribution) -> str:
    """What the node of all that was cut is called in a picture: with what comes along paths that are not all drawn."""
    if graph.nodes[-1].role != "rest" or not graph.total:
        return "rest"
    return f"rest: {graph.total - graph.carried:.4g} ({percent(1 - graph.completeness)})"


def _left_out(graph: Attribution, shown: Attribution, edges: int) -> str:
    """What is said of a picture that has less than its graph."""
    if shown is graph:
        return f"; drawn: the {edges:,} widest edges" if edges < len(graph.values) else ""
    nodes = sum(node.role != "rest" for node in shown.nodes)
    return f"; drawn: the {nodes} most influential, with {amount(edges, 'edge')}{_share(shown)}"


def _most_influential(nodes: Sequence[Node], number: int) -> Tensor:
    """Which nodes are the targets and the most influential ones, so many in all."""
    influence = torch.tensor([torch.inf if node.role == "target" else node.influence for node in nodes])
    kept = torch.zeros(len(nodes), dtype=torch.bool)
    kept[influence.topk(number).indices] = True
    return kept


def _share(graph: Attribution) -> str:
    """What a graph carries, where something was cut."""
    return (
        "" if graph.nodes[-1].role != "rest" else f", which carry {graph.carried:.4g} ({percent(graph.completeness)})"
    )


def _measured(value: float, total: float, node: Node) -> dict[str, Any]:
    """What is known of a flow into a node, or through it."""
    return {
        "value": value,
        "share": value / total if total else 0.0,
        "position": _place(node),
        "token": node.token or "",
        "order": -1,
        "weight_symbol": "",
        "weight_value": "1",
    }


def _place(node: Node) -> int:
    return -1 if node.position is None else node.position


def whole_graph(
    what: str,
    output: float,
    nodes: tuple[Node, ...],
    flows: Flows,
    network: Network,
    aims: Sequence[Aim],
    tokenizer: Any,
) -> Attribution:
    """All of some flows as a graph; what there was no memory for is its node `rest`."""
    edges = torch.arange(len(flows.values))
    graph = Attribution(
        network.graph.title,
        what,
        output,
        nodes,
        flows.senders,
        flows.receivers,
        flows.values,
        flows.influences,
        flows,
        tuple(range(len(nodes))),
        edges,
        network,
        tuple(aims),
        tokenizer,
    )
    return _assembled(graph, torch.arange(len(nodes)), edges) if flows.left_out else graph


def _most(values: Tensor, share: float) -> Tensor:
    """The fewest of the largest values that hold a share of the sum."""
    best, order = values.sort(descending=True, stable=True)
    total = best.cumsum(0)
    kept = torch.zeros_like(values, dtype=torch.bool)
    number = int((total < share * float(total[-1]) * (1 - 1e-12)).sum()) + 1 if len(values) else 0
    kept[order[:number]] = True
    return kept & (values > 0)


def _assembled(whole: Attribution, nodes: Tensor, edges: Tensor) -> Attribution:
    """Some nodes and edges of a graph, and the rest of it as one node."""
    place = torch.full((len(whole.nodes),), -1)
    place[nodes] = torch.arange(len(nodes))
    kept = [whole.nodes[at] for at in nodes.tolist()]
    senders, receivers, values = place[whole.senders[edges]], place[whole.receivers[edges]], whole.values[edges]
    flow = torch.tensor([node.flow for node in kept], dtype=torch.float64)
    enters, leaves = (torch.zeros_like(flow).index_add_(0, ends, values.double()) for ends in (receivers, senders))
    takes = torch.tensor([node.role != "source" for node in kept])
    gives = torch.tensor([node.role != "target" for node in kept])
    missing, unused = torch.where(takes, flow - enters, 0.0), torch.where(gives, flow - leaves, 0.0)
    exact = 1e-6 * float(flow.abs().max()) if len(kept) else 0.0
    complete = len(edges) == len(whole.flows.values) and not whole.flows.left_out
    if complete or (float(missing.abs().max()) <= exact and float(unused.abs().max()) <= exact):
        return replace(
            whole,
            nodes=tuple(kept),
            senders=senders,
            receivers=receivers,
            values=values,
            influences=whole.influences[edges],
            numbers=tuple(whole.numbers[at] for at in nodes.tolist()),
            edges=whole.edges[edges],
        )
    from_rest, to_rest = (missing != 0).nonzero()[:, 0], (unused != 0).nonzero()[:, 0]
    own = float(missing.sum() - unused.sum())
    rest = Node("rest", "rest", "", "rest", "rest", -1, None, None, own, 0.0)
    last = torch.tensor([len(kept)])
    none = torch.zeros(len(from_rest) + len(to_rest), dtype=whole.influences.dtype)
    return replace(
        whole,
        nodes=(*kept, rest),
        senders=torch.cat([senders, last.expand(len(from_rest)), to_rest]),
        receivers=torch.cat([receivers, from_rest, last.expand(len(to_rest))]),
        values=torch.cat([values, missing[from_rest].to(values.dtype), unused[to_rest].to(values.dtype)]),
        influences=torch.cat([whole.influences[edges], none]),
        numbers=(*(whole.numbers[at] for at in nodes.tolist()), -1),
        edges=torch.cat([whole.edges[edges], torch.full((len(none),), -1)]),
    )
