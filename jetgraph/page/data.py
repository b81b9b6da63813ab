"""What a page knows of a graph, by column."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

import networkx as nx

from jetgraph.errors import big
from jetgraph.layout.colours import BY_KIND, OTHER
from jetgraph.layout.coordinates import box_width
from jetgraph.layout.grids import branch_of, short_name, short_width
from jetgraph.layout.laying_out import is_laid_out, lay_out
from jetgraph.layout.streams import is_straight
from jetgraph.numbers import rounded

Facts = Mapping[str, Any]

NOTES = {
    "paths": "A walk from a source to the output is a term of the model. Orders: ^j is the part of order j of a jet, "
    "~k the jet up to order k.",
    "tokens": "Columns are tokens, rows parts of the model. The value of an edge is what one node gives the next, as "
    "far as it reaches the target.",
    "cells": "Columns are tokens, rows parts of the model; the stronger the colour, the larger the value.",
}
"""What a kind of graph shows."""


def page_data(dag: nx.MultiDiGraph) -> dict[str, Any]:
    """A graph as the data of a page; `dag` is one of `jetgraph.path_graph` or `to_networkx()`.

    Raises
    ------
    InputError
        Its nodes do not say what they are.
    """
    dag = dag if is_laid_out(dag) and _is_described(dag) else lay_out(dag.copy())
    kind = _kind(dag)
    number = {node: index for index, node in enumerate(dag)}
    nodes: list[Facts] = [facts for _, facts in dag.nodes(data=True)]
    counts = _passing(dag) if kind == "paths" else None
    edges = [(number[start], number[end], facts) for start, end, facts in dag.edges(data=True)]
    total = dag.graph.get("total")
    return {
        "kind": kind,
        "title": title_of(dag),
        "facts": _summary(dag, kind),
        "note": dag.graph.get("note", NOTES[kind]),
        "total": total if isinstance(total, float) and math.isfinite(total) else None,
        "valueName": "value" if kind == "paths" else dag.graph.get("value_name", "flow"),
        "straight": kind == "paths" and is_straight(dag),
        "choice": _choice(nodes, dag.graph),
        "colours": {**BY_KIND, "": OTHER},
        "nodes": {
            "id": [str(node) for node in dag],
            "label": [str(facts["label"]) for facts in nodes],
            "short": [_short(facts, kind) for facts in nodes],
            "width": _widths(nodes, kind),
            "row": _rows(nodes, kind),
            "paths": ["" if counts is None else counts[node] for node in dag],
            **_columns(nodes, TEXTS, str, ""),
            **_columns(nodes, WHOLES, int, -1),
            **_columns(nodes, NUMBERS, _number, None),
            "weight": [_weight(facts) for facts in nodes],
            **_cells(nodes, dag.graph, kind),
        },
        "edges": {
            "from": [start for start, _, _ in edges],
            "to": [end for _, end, _ in edges],
            **_columns([facts for *_, facts in edges], ("role", "kind", "formula", "way"), str, ""),
            **_columns([facts for *_, facts in edges], ("value",), _number, None),
        },
    }


TEXTS = ("alias", "hop", "kind", "role", "layer", "path", "formula", "token")
WHOLES = ("position", "order", "point")
NUMBERS = ("x", "y", "value", "share", "influence")


def _columns(rows: list[Facts], names: tuple[str, ...], make: Callable[[Any], Any], none: Any) -> dict[str, list[Any]]:
    return {name: [make(row[name]) if row.get(name) is not None else none for row in rows] for name in names}


def _number(value: Any) -> float | None:
    """A number as short as it may be; JSON has none that is not finite."""
    if not math.isfinite(value):
        return None
    short = float(f"{value:.6g}")
    return short if short != 1 else float(value)


def _is_described(dag: nx.MultiDiGraph) -> bool:
    return all({"role", "point", "label"} <= facts.keys() for _, facts in dag.nodes(data=True))


def _kind(dag: nx.MultiDiGraph) -> str:
    roles = {facts["role"] for _, facts in dag.nodes(data=True)}
    return "cells" if "cell" in roles else "tokens" if roles & {"target", "site"} else "paths"


def title_of(dag: nx.MultiDiGraph) -> str:
    """What a page of a graph is called."""
    facts = dag.graph
    if "title" in facts:
        return str(facts["title"])
    about = [str(facts[name]) for name in ("model", "target") if facts.get(name)]
    if "count" in facts:
        number = str(facts["count"])
        paths = f"{_digits(number)} path{'s' * (number != '1')}"
        about += [f"{paths}, {facts.get('recipe')} of order {facts.get('order')}"]
    return " · ".join(about) or "A graph"


HIDDEN = ("by", "title", "note", "value_name", "strong", "tokens", "layers", "heads", "width", "parallel")
"""Facts of a graph that are not for the summary."""


def _summary(dag: nx.MultiDiGraph, kind: str) -> list[tuple[str, str]]:
    facts = {name: value for name, value in dag.graph.items() if isinstance(value, str | int | float)}
    told = [(name, rounded(value, 5) if isinstance(value, float) else str(value)) for name, value in facts.items()]
    told = [(name, _digits(text) if name == "count" else text) for name, text in told if name not in HIDDEN]
    # The cells of a lens are a table, which has no edges.
    parts = [("cells", len(dag))] if kind == "cells" else [("nodes", len(dag)), ("edges", dag.number_of_edges())]
    return [*told, *((name, f"{number:,}") for name, number in parts)]


def _digits(text: str) -> str:
    """A count, with an exponent where it is long."""
    return text if not text.isdecimal() else f"{int(text):,}" if len(text) <= 12 else f"{Decimal(text):.3e}"


def _short(facts: Facts, kind: str) -> str:
    return str(facts["label"]) if kind == "paths" else short_name(facts)


def _widths(nodes: list[Facts], kind: str) -> list[int]:
    """Widths of nodes; cells fill their columns."""
    if kind == "paths":
        return [10 if facts["role"] == "point" else round(box_width(facts["label"])) for facts in nodes]
    own = [round(short_width(facts)) for facts in nodes]
    if kind == "tokens":
        return own
    columns: dict[float, int] = {}
    for facts, width in zip(nodes, own, strict=True):
        columns[facts["x"]] = max(columns.get(facts["x"], 44), width)
    return [columns[facts["x"]] for facts in nodes]


def _weight(facts: Facts) -> str:
    """The weight of a centre: its symbol and its value, where it is not one."""
    symbol, value = str(facts.get("weight_symbol", "")), str(facts.get("weight_value", ""))
    return "" if not symbol or value == "1" else f"{symbol} = {value or 'by centre'}"


def _rows(nodes: list[Facts], kind: str) -> list[str]:
    """What each node's row of a grid is called: what most of its nodes are parts of."""
    if kind == "paths":
        return [""] * len(nodes)
    names: dict[int, Counter[str]] = {}
    for facts in nodes:
        names.setdefault(facts["point"], Counter())[branch_of(facts)] += 1
    return [names[facts["point"]].most_common(1)[0][0] for facts in nodes]


KNOWN = frozenset((*TEXTS, *WHOLES, *NUMBERS, "label", "weight_symbol", "weight_value", "variants"))


def _cells(nodes: list[Facts], graph: Facts, kind: str) -> dict[str, list[Any]]:
    """Colours of cells, and what else is told of them; also of what they are by choice."""
    if kind != "cells":
        return {}
    cells = [_cell(facts, graph) for facts in nodes]
    table = {name: [cell[name] for cell in cells] for name in ("shade", "ink", "more")}
    if (choice := _choice(nodes, graph)) is None:
        return table
    variants = []
    for facts in nodes:
        told = {row[graph["by"]]: {**facts, **row} for row in json.loads(facts["variants"])}
        chosen = [facts if text == CHOSEN else told.get(text) for text in choice["texts"]]
        variants.append([one and {**_cell(one, graph), **_of_choice(one)} for one in chosen])
    return {**table, "variants": variants}


def _cell(facts: Facts, graph: Facts) -> dict[str, Any]:
    """How a cell looks, and what is told of it."""
    share = _strength(facts.get("value"), str(graph.get("strong", "high")))
    known = KNOWN | {graph.get("value_name")}
    more = [[name, _told(fact)] for name, fact in facts.items() if name not in known]
    return {"shade": _mixed(share), "ink": "#ffffff" if share > 0.5 else "#1f2933", "more": more}


def _of_choice(facts: Facts) -> dict[str, Any]:
    """What of a cell depends on the choice besides how it looks."""
    value = facts.get("value")
    return {
        "label": str(facts["label"]),
        "short": _short(facts, "cells"),
        "value": None if value is None else _number(value),
        "order": facts.get("order", -1),
    }


CHOSEN = "chosen"
"""What a page shows first where nodes are of several of the values among which it lets choose."""


def _choice(nodes: list[Facts], graph: Facts) -> dict[str, Any] | None:
    """Among what a page lets choose: the name, its values, and which of them it shows first."""
    if "by" not in graph or not all("variants" in facts for facts in nodes):
        return None
    by = graph["by"]
    values = sorted({row[by] for facts in nodes for row in json.loads(facts["variants"])})
    own = {facts[by] for facts in nodes}
    texts = values if len(own) == 1 else [CHOSEN, *values]
    return {"name": by, "texts": texts, "first": texts.index(own.pop()) if len(own) == 1 else 0}


def _strength(value: float | None, strong: str) -> float:
    """How strong the colour of a value is, from 0 to 1; low values are told apart by their logarithms."""
    if value is None or math.isnan(value):
        return 0.0
    share = (1 - math.log10(max(value, 1e-9))) / 3 if strong == "low" else value
    return min(1.0, max(0.0, share))


PALE, STRONG = (237, 242, 247), (27, 82, 140)


def _mixed(share: float) -> str:
    """A colour between the pale and the strong one."""
    return "#" + "".join(f"{round(low + share * (high - low)):02x}" for low, high in zip(PALE, STRONG, strict=True))


def _told(fact: Any) -> str:
    return rounded(fact, 5) if isinstance(fact, float) else str(fact)


def _passing(dag: nx.MultiDiGraph) -> dict[str, str]:
    """How many walks pass each node."""
    order = list(nx.topological_sort(dag))
    before: dict[str, int] = {}
    for node in order:
        arriving = sum(before[start] for start, _ in dag.in_edges(node))
        before[node] = arriving + (dag.nodes[node]["role"] == "source")
    after: dict[str, int] = {}
    for node in reversed(order):
        onward = sum(after[end] for _, end in dag.out_edges(node))
        after[node] = onward + (dag.nodes[node]["role"] == "sink")
    return {node: big(before[node] * after[node]) for node in order}
