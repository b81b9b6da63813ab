"""Results over tokens and parts of the model as graphs of cells, which pages show: a column a token, a row a part."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from jetgraph.applications.results import Cell
from jetgraph.files.exchange import finite
from jetgraph.layout.laying_out import lay_out
from jetgraph.numbers import rounded

if TYPE_CHECKING:
    import networkx as nx


NOTES = {
    "low": "Columns are tokens, rows points of the stream: what the decoder makes of them. The stronger the colour, "
    "the nearer to the model's own output, from 10 nats of KL to 0.01.",
    "high": "Columns are tokens, rows parts of the model. The stronger the colour, the larger the weight.",
}
"""What a page says of cells, by which values have the strong colours."""


def cell_graph(
    columns: Mapping[str, Sequence[Cell]],
    *,
    title: str,
    keep: Callable[[Mapping[str, Cell]], bool],
    row: Sequence[str],
    value: str,
    label: str | None = None,
    strong: Literal["low", "high"] = "high",
    by: str | None = None,
    first: Callable[[Mapping[str, Cell]], bool] | None = None,
) -> nx.MultiDiGraph:
    """A graph without edges, a node for each part and position of a table.

    Parameters
    ----------
    columns
        The table, with `position` and `token`; where there are no positions, `input` tells them apart.
    title
        Of the page.
    keep
        Which rows are taken.
    row
        The columns that say which part of the model it is, from below in the table's order.
    value
        The column that cells are coloured by.
    label
        The column that is written on them; the value unless given.
    strong
        Which values have the strong colours; low ones are told apart by their logarithms.
    by
        A column that tells rows of one part and position apart, such as `order`: pages show one of its values at a
        time.
    first
        Which of these rows a node is of.

    Returns
    -------
    nx.MultiDiGraph
        Nodes have all columns as attributes, and their place; with `by`, also all their rows, as the text `variants`,
        a list in JSON.
    """
    import networkx as nx

    dag = nx.MultiDiGraph(title=title, value_name=value, strong=strong, note=NOTES[strong])
    if by is not None:
        dag.graph["by"] = by
    levels: dict[str, int] = {}
    variants: dict[str, list[dict[str, Any]]] = {}
    for cells in zip(*columns.values(), strict=True):
        facts = dict(zip(columns, cells, strict=True))
        if not keep(facts):
            continue
        part = " ".join(str(facts[name]) for name in row)
        level = levels.setdefault(part, len(levels))
        position = facts["example"] if facts["position"] is None else facts["position"]
        size = facts[value]
        text = facts[label] if label else rounded(size, 2) if isinstance(size, float) else str(size)
        kept = {name: cell for name, cell in facts.items() if cell is not None and name not in ("token", "position")}
        told = {"label": str(text), "alias": part, "kind": "cell", "role": "cell", "point": level}
        told |= {"position": position, "token": facts["token"] or "", "value": size}
        node = f"{part}@{position}"
        variants.setdefault(node, []).append(finite({**kept, "label": str(text), "value": size}))
        if first is None or first(facts):
            dag.add_node(node, **{**kept, **told})
    if by is not None:
        nx.set_node_attributes(dag, {node: json.dumps(rows) for node, rows in variants.items()}, "variants")
    return lay_out(dag)
