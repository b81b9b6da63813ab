"""Graphs to draw and to hand on, made by hand."""

from __future__ import annotations

import networkx as nx

from jetgraph.layout.laying_out import lay_out


def tokens(layers: int = 3, positions: int = 2, text: str = "'a'") -> nx.MultiDiGraph:
    """An attribution graph made by hand: each site gives to all later ones at its position, and to the target."""
    dag = nx.MultiDiGraph(model="made", target="'b'", total=10.0)
    dag.graph |= {"layers": layers, "heads": 1, "width": 8, "parallel": 0}

    def add(name: str, alias: str, role: str, kind: str, point: int, position: int) -> None:
        facts = {"alias": alias, "path": f"m.{alias}", "kind": kind, "role": role, "point": point}
        layer = alias.split(".")[0] if "." in alias else ""
        value = {"value": float(point), "share": point / 10, "influence": 0.1, "order": -1, "formula": f"F[{alias}](x)"}
        dag.add_node(name, label=name, layer=layer, position=position, token=text, **facts, **value)

    for position in range(positions):
        add(f"embed@{position}", "embed", "source", "embed", 0, position)
        for layer in range(layers):
            for number, kind in enumerate(("attn", "mlp")):
                add(f"L{layer}.{kind}@{position}", f"L{layer}.{kind}", "site", kind, 1 + 2 * layer + number, position)
    add("'b'", "logits", "target", "target", 1 + 2 * layers, positions - 1)
    sites = [node for node, role in dag.nodes(data="role") if role != "target"]
    for at, start in enumerate(sites):
        dag.add_edge(start, "'b'", value=float(at + 1), influence=0.1)
        for end in sites[at + 1 :]:
            if dag.nodes[start]["position"] == dag.nodes[end]["position"]:
                dag.add_edge(start, end, value=-0.01 * (at + 1), influence=0.01)
    return lay_out(dag)
