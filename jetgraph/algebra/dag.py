"""The terms of an expansion, or some of them, as a networkx DAG."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import networkx as nx

from jetgraph.algebra.automaton import Arc, Node, Root, TermGraph
from jetgraph.algebra.expansion import Expansion
from jetgraph.algebra.formulas import moved, passed
from jetgraph.algebra.outline import SINK, JoinStep, Site
from jetgraph.algebra.paths import Hop, Path
from jetgraph.algebra.scores import Values, add_scores, scores_of, sources, walk_text, walks
from jetgraph.algebra.selection import Pattern, select
from jetgraph.errors import check
from jetgraph.layout.blocks import block_of
from jetgraph.layout.laying_out import lay_out


def path_graph(expansion: Expansion, paths: Pattern | None = None, *, values: Values | None = None) -> nx.MultiDiGraph:
    """The terms as a DAG: its walks from a source to the sink are exactly the terms.

    Nodes are the sources, the points of the stream, each site at each order, and the sink. All have the attributes
    `label`, `hop` (what the path's text says there; empty at points and the sink), `alias`, `path` (of the module),
    `layer` (the block that the alias begins with), `order` (-1 where none is taken), `kind`, `role` (source, point,
    branch, map, decoder or sink), `point`, `formula` (in the letters of `jetgraph.symbolic`, of what enters as x; empty
    where that is left as it is), `weight_symbol` and `weight_value` (an exact fraction; empty where weights differ by
    centre), and their place, `x` and `y`. Edges have the same without `point` and place, with `from_point`, `to_point`
    and `way` (see `jetgraph.layout`); their role is that of the move (source, skip, branch, map, decoder), their `hop`
    is empty. The graph has `recipe`, `order` and `count` (in digits).

    With values, nodes and edges have `value`, the sum over the paths that pass them, its `share` in the target's, and
    the target's `position` and `token`; the graph has `target` and `total`.

    Parameters
    ----------
    expansion
        Of which all terms are drawn, at a size of joins times orders.
    paths
        Draw these only (whatever `select` takes). Points at which none of them part are left out.
    values
        Of the paths, by path or its text; or what knows them: what `jetgraph.terms` or `jetgraph.rank` returns, or a
        module's `PathValues`. Without `paths`, those that have a value are drawn.

    Returns
    -------
    nx.MultiDiGraph
        Acyclic; `jetgraph.write_graph` writes it.

    Raises
    ------
    SelectionError
        `paths` matches nothing, or a value is that of no path.
    InputError
        A path has no value.

    Examples
    --------
    >>> from jetgraph.algebra.expansion import expand
    >>> from jetgraph.algebra import JoinStep, Outline, Site, Source
    >>> join = JoinStep("add", "identity", False, (Site("L0.mlp", "layers.0.mlp", "mlp", "branch", False, False),))
    >>> decoder = Site("logits", "", "logits", "decoder", False, False)
    >>> dag = path_graph(expand(Outline((Source("embed", "embed", "embed"),), (join,), decoder), order=0))
    >>> count_paths(dag), list(path_texts(dag))
    (2, ['embed > logits^0', 'embed > L0.mlp^0 > logits^0'])
    """
    check(path_graph, locals())
    scores = None if values is None else scores_of(values)
    if scores is not None and paths is None and len(scores.by_path) < expansion.count():
        paths = [Path.parse(text) for text in scores.by_path]
    terms = expansion.term_graph if paths is None else select(expansion, paths).term_graph()
    dag = _Drawing(expansion, terms, shorten=paths is not None).dag
    if scores is not None:
        add_scores(dag, scores)
    return lay_out(dag)


class _Drawing:
    """Draws a term graph, one node after the other."""

    def __init__(self, expansion: Expansion, terms: TermGraph, *, shorten: bool) -> None:
        self._expansion, self._terms = expansion, terms
        count = str(terms.count())
        self.dag = nx.MultiDiGraph(recipe=expansion.recipe, order=expansion.order, count=count)
        self._numbers: dict[Node, int] = {terms.end: 1}
        states: dict[int, int] = {}
        for point, state in terms.arcs:
            states[point] = states.get(point, 0) + 1
            self._numbers[point, state] = states[point]
        # Where a walk has no choice but to move on silently, it is drawn at the point where that ends.
        self._shown: dict[Node, Node] = {terms.end: terms.end}
        for node, arcs in reversed(terms.arcs.items()):
            idle = shorten and len(arcs) == 1 and arcs[0].hop is None
            self._shown[node] = self._shown[arcs[0].target] if idle else node
        for root in terms.roots:
            self._draw_root(root)
        for node, arcs in terms.arcs.items():
            if self._shown[node] == node:
                for arc in arcs:
                    self._draw_arc(node, arc)

    def _numbered(self, name: str, node: Node) -> str:
        number = self._numbers[node]
        return name if number == 1 else f"{name}/{number}"

    def _point(self, node: Node) -> str:
        if node == self._terms.end:
            facts = _facts(alias=SINK, kind="sink", role="sink")
            name, label = "sink", "output"
        else:
            facts = _facts(alias=f"h{node[0]}", kind="stream", role="point")
            name, label = self._numbered(f"point:{node[0]}", node), f"h{node[0]}"
        self.dag.add_node(name, label=label, hop="", point=node[0], **facts)
        return name

    def _edge(self, start: str, end: str, points: tuple[int, int], facts: dict[str, str | int]) -> None:
        self.dag.add_edge(start, end, label="", hop="", from_point=points[0], to_point=points[1], **facts)

    def _draw_root(self, root: Root) -> None:
        entry = root.entry
        source = entry.source
        facts = _facts(alias=source.alias, path=source.path, kind=source.kind, role="source")
        begun = entry.hop if entry.is_group else None
        facts["formula"] = source.alias if begun is None else passed(self._expansion, begun, source.alias)
        name = f"{'group' if entry.is_group else 'source'}:{source.alias}"
        self.dag.add_node(name, label=source.alias, hop=source.alias, point=entry.point, **facts)
        for hop in root.hops[1:]:
            self._draw_site(name, entry.point, hop, root.target)
            return
        target = self._shown[root.target]
        self._edge(name, self._point(target), (entry.enters, target[0]), facts)

    def _draw_arc(self, node: Node, arc: Arc) -> None:
        if arc.hop is not None:
            self._draw_site(self._point(node), node[0], arc.hop, arc.target)
            return
        step = self._expansion.outline.steps[arc.target[0] - 1]
        if isinstance(step, JoinStep):
            facts = _facts(alias=step.name, kind=step.skip, role="skip")
        else:
            facts = _facts(alias=step.site.alias, path=step.site.path, kind=step.site.kind, role="map")
        facts["formula"] = moved(self._expansion, node[0], arc.target[0])
        target = self._shown[arc.target]
        self._edge(self._point(node), self._point(target), (node[0], target[0]), facts)

    def _draw_site(self, start: str, point: int, hop: Hop, target: Node) -> None:
        facts = self._site_facts(self._expansion.passage(hop.alias).site, hop)
        name = self._numbered(f"site:{hop}", target)
        new = name not in self.dag
        self.dag.add_node(name, label=str(hop), hop=str(hop), point=target[0], **facts)
        self._edge(start, name, (point, point), facts)
        if new:
            unweighted = facts | {"formula": "", "weight_symbol": "", "weight_value": "1"}
            resolved = self._shown[target]
            self._edge(name, self._point(resolved), (target[0], resolved[0]), unweighted)

    def _site_facts(self, site: Site, hop: Hop) -> dict[str, str | int]:
        facts = _facts(alias=site.alias, path=site.path, kind=site.kind, role=site.role)
        facts["formula"] = passed(self._expansion, hop)
        if hop.order is None:
            return facts
        rule = self._expansion.rules[site.alias]
        by_centre = isinstance(rule.weighting, Mapping) or not rule.weighs_alike
        value = "" if by_centre else str(self._expansion.centre_weight(site.alias, ""))
        symbol = self._expansion.symbol(site.alias)
        return facts | {"order": hop.order, "weight_symbol": symbol, "weight_value": value}


def _facts(*, alias: str, kind: str, role: str, path: str = "") -> dict[str, str | int]:
    return {
        "alias": alias,
        "path": path,
        "order": -1,
        "kind": kind,
        "role": role,
        "layer": block_of(alias),
        "formula": "",
        "weight_symbol": "",
        "weight_value": "1",
    }


def count_paths(dag: nx.MultiDiGraph) -> int:
    """Exact number of walks from a source to the sink of a path DAG, parallel edges told apart."""
    counts: dict[str, int] = {}
    for node in reversed(list(nx.topological_sort(dag))):
        onward = sum(counts[target] for _, target in dag.out_edges(node))
        counts[node] = 1 if dag.nodes[node]["role"] == "sink" else onward
    return sum(counts[source] for source in sources(dag))


def path_texts(dag: nx.MultiDiGraph) -> Iterator[str]:
    """The texts of the paths of a path DAG, also of one that was read from a file; in the expansion's order."""
    return (walk_text(dag, walk) for walk in walks(dag))
