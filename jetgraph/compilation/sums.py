"""Sums over languages of paths: the total of all paths that an automaton accepts, class by class, without listing them.

Where every site that is passed takes a term to a linear image of it, the sum of all walks that reach a state is one
value,

    V(v, q) = Σ sources entering (v, q) + Σ_{moves (u, r) → (v, q)} A_move V(u, r)

over the product of an expansion's automaton with one that accepts and sorts paths. All states of a point pass a site
together, and those that it takes to one state are added up before it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from jetgraph.algebra.automaton import Arc, Node, TermGraph
from jetgraph.algebra.classes import Classifier, Label, Sorting, classifier, counted, ends
from jetgraph.algebra.expansion import Expansion
from jetgraph.algebra.paths import Hop
from jetgraph.algebra.selection import Selection
from jetgraph.compilation.decoding import Decoding
from jetgraph.compilation.evaluation import MEMORY
from jetgraph.compilation.linear import LinearMap, LinearMaps, check_linear
from jetgraph.errors import BudgetError
from jetgraph.export.precision import own_types
from jetgraph.running.forward import Forward
from jetgraph.running.indices import Position


@dataclass(frozen=True, eq=False)
class ClassSums:
    """Sums of paths by class."""

    totals: Tensor
    """[class, *output], or at one position of it."""
    counts: dict[Label, int]
    """By class, in the order of `totals`, the exact number of paths."""


@own_types()
def class_sums(
    forward: Forward,
    selection: Selection,
    classes: Classifier,
    *,
    position: Position | None = None,
    memory: int = MEMORY,
) -> ClassSums:
    """The sum of the selected paths of each class.

    Parameters
    ----------
    forward
        A pass over the graph of the selection's expansion.
    selection
        What `jetgraph.select` returns, of any number of paths.
    classes
        What sorts them.
    position
        The one position of the output at which sums are wanted.
    memory
        Bytes that values may take which pass a site together.

    Returns
    -------
    ClassSums
        Without gradients.

    Raises
    ------
    InputError
        A path passes a site whose rule is not linear.
    BudgetError
        The product of the automata has more than `STATE_BUDGET` states.
    """
    expansion = selection.expansion
    sorting = Sorting(selection.term_graph().acceptor, classes)
    terms = _sorted(expansion, sorting)
    hops = {arc.hop.alias for arcs in terms.arcs.values() for arc in arcs if arc.hop is not None}
    # A group is a term at one site alone, which it passes at once.
    hops |= {hop.alias for root in terms.roots for hop in root.hops[1:]}
    check_linear(passage for alias, passage in expansion.passages.items() if alias in hops)
    with torch.inference_mode(False), torch.no_grad():
        walk = _Walk(expansion, terms, sorting, LinearMaps(expansion, forward, memory))
        walk.run()
        decoding = Decoding(expansion, walk.maps.forward)
        counts = counted(terms, sorting)
        hidden = torch.stack([walk.hidden[label] for label in counts])
        constant = [walk.constant.get(label, 0.0) for label in counts]
        return ClassSums(decoding.decode(hidden, constant, position), counts)


def _sorted(expansion: Expansion, sorting: Sorting) -> TermGraph:
    try:
        return TermGraph(expansion.automaton, sorting)
    except BudgetError as error:
        for by in ("length", "all"):
            if TermGraph.count_within(expansion.automaton, Sorting(sorting.acceptor, classifier(expansion, by))):
                raise BudgetError(f"{error}, sorted so: take by={by!r}, or fewer patterns") from None
        raise


class _Walk:
    """The dynamic programme over the states of a term graph, in the order of the points."""

    def __init__(self, expansion: Expansion, terms: TermGraph, sorting: Sorting, maps: LinearMaps) -> None:
        self.expansion, self.terms, self.sorting, self.maps = expansion, terms, sorting, maps
        self.hidden: dict[Label, Tensor] = {}
        """By class, the sum before the decoder's affine part."""
        self.constant: dict[Label, float] = {}
        """By class, how often the constant of that part is in it."""
        self._values: dict[Node, Tensor] = {}
        self._labels = {(node, number, hop): label for node, number, hop, label in ends(terms, sorting)}

    def run(self) -> None:
        for number, root in enumerate(self.terms.roots):
            value = self.maps.source(root.entry)
            if root.target != self.terms.end:
                self._add(root.target, value)
                continue
            label = self._labels[None, number, None]
            self._end(label, value)
            self.constant[label] = self.constant.get(label, 0.0) + 1.0
        points: dict[int, list[Node]] = {}
        for node in self.terms.arcs:
            points.setdefault(node[0], []).append(node)
        for point, nodes in points.items():
            self._leave(point, nodes)
            for node in nodes:
                del self._values[node]

    def _leave(self, point: int, nodes: list[Node]) -> None:
        """All moves that start at a point."""
        stack = torch.stack([self._values[node] for node in nodes])
        moves: dict[tuple[Hop | None, int], dict[Node | Label, list[int]]] = {}
        for row, node in enumerate(nodes):
            for arc in self.terms.arcs[node]:
                into = moves.setdefault((arc.hop, arc.target[0]), {})
                into.setdefault(self._target(node, arc), []).append(row)
        maps = self._maps([hop for hop, _ in moves if hop is not None])
        for (hop, stop), into in moves.items():
            map = self.maps.carry(stop, point) if hop is None else maps[hop]
            passed = map.forwards(_gathered(stack, into.values()))
            for target, value in zip(into, passed, strict=True):
                if stop < self.terms.end[0]:
                    self._add(target, value)  # type: ignore[arg-type]
                else:
                    self._end(target, value)  # type: ignore[arg-type]

    def _maps(self, hops: list[Hop]) -> dict[Hop, LinearMap]:
        """The maps of the sites that read a point; the parts of one branch are opened together."""
        made = self.maps.by_site([self.expansion.passage(hop.alias) for hop in hops])
        by_alias = {alias: map for alias, _, map in made}
        return {hop: by_alias[hop.alias] for hop in hops}

    def _target(self, node: Node, arc: Arc) -> Node | Label:
        return self._labels[node, -1, arc.hop] if arc.target == self.terms.end else arc.target

    def _add(self, node: Node, value: Tensor) -> None:
        self._values[node] = self._values[node] + value if node in self._values else value

    def _end(self, label: Label, value: Tensor) -> None:
        self.hidden[label] = self.hidden[label] + value if label in self.hidden else value


def _gathered(stack: Tensor, groups: Iterable[list[int]]) -> Tensor:
    """For each group of rows their sum."""
    groups = list(groups)
    if groups == [[row] for row in range(len(stack))]:
        return stack
    return torch.stack([stack[rows[0]] if len(rows) == 1 else stack[rows].sum(0) for rows in groups])
