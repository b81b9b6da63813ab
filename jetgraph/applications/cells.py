"""Results over tokens and parts of the model as graphs of cells, which pages show: a column a token, a row a part."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from jetgraph.applications.results import Cell
from jetgraph.layout.laying_out import lay_out

if TYPE_CHECKING:
    import networkx as nx


def cell_graph(
    columns: Mapping[str, Sequence[Cell]],
    *,
    title: str,
    keep: Callable[[Mapping[str, Cell]], bool],
    row: Sequence[str],
    value: str,
    label: str | None = None,
    strong: Literal["low", "high"] = "high",
) -> nx.MultiDiGraph:
    """A graph without edges, a node for each row of a table.

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

    Returns
    -------
    nx.MultiDiGraph
        Nodes have all columns as attributes, and their place.
    """
    import networkx as nx

    dag = nx.MultiDiGraph(title=title, value_name=value, strong=strong)
    levels: dict[str, int] = {}
    for cells in zip(*columns.values(), strict=True):
        facts = dict(zip(columns, cells, strict=True))
        if not keep(facts):
            continue
        part = " ".join(str(facts[name]) for name in row)
        level = levels.setdefault(part, len(levels))
        position = facts["input"] if facts["position"] is None else facts["position"]
        size = facts[value]
        text = facts[label] if label else f"{size:.2g}" if isinstance(size, float) else str(size)
        kept = {name: cell for name, cell in facts.items() if cell is not None and name not in ("token", "position")}
        told = {"label": str(text), "alias": part, "kind": "cell", "role": "cell", "point": level}
        told |= {"position": position, "token": facts["token"] or "", "value": size}
        dag.add_node(f"{part}@{position}", **{**kept, **told})
    return lay_out(dag)
