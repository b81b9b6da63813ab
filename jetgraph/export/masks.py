"""Masks that are causal by construction, and calls of attention as the model itself makes them.

Under `sdpa` a model calls `scaled_dot_product_attention` with `is_causal` and no mask, so that a fast kernel runs;
while it is exported with open sizes it builds the mask and passes it. What such a mask holds is proven from the
operators that build it (`export.indices`), for every size: one that is true at i ≥ j alone, for query i and key j,
becomes `is_causal`, and one that is true everywhere is left out. Whatever depends on values, such as padding, has no
formula: such a mask stays. Attention whose mask is gone takes keys and values before they are repeated for groups of
queries, as models call it then.
"""

from __future__ import annotations

import torch
from torch import fx

from jetgraph.export.indices import Choice, Formula, Known, arguments, follow

aten = torch.ops.aten

WIDEST_HEAD = 256
"""Heads up to which kernels take keys and values that queries share; models repeat wider ones."""


def call_attention_as_models_do(graph: fx.Graph) -> None:
    """Leave masks out that say what `is_causal` says, or nothing, in place."""
    known: dict[fx.Node, Known | None] = {}
    for node in list(graph.nodes):
        if node.target is not aten.scaled_dot_product_attention.default:
            continue
        bound = arguments(node)
        mask = bound.get("attn_mask")
        if (
            not isinstance(mask, fx.Node)
            or bound.get("is_causal")
            or node.meta["shape"][:-2] != bound["query"].meta["shape"][:-2]
        ):
            continue
        said = _said(mask, known)
        if said is None:
            continue
        kept = {name: value for name, value in bound.items() if name not in ("query", "key", "value", "attn_mask")}
        causal = {"is_causal": True} if said == "causal" else {}
        shared = {} if kept.get("enable_gqa") else _shared(bound["key"], bound["value"])
        node.args = (bound["query"], *(shared or (bound["key"], bound["value"])))
        node.kwargs = kept | causal | ({"enable_gqa": True} if shared else {})


def _said(mask: fx.Node, known: dict[fx.Node, Known | None]) -> str | None:
    """`causal`, `nothing`, or None where the mask says something else, or what it says is not known."""
    formula, rank = follow(mask, known), len(mask.meta["shape"])
    if not isinstance(formula, Choice):
        return None
    # To scores 0 is added where attention is allowed, else −∞, or what is as good beside a query's own place.
    boolean = mask.meta["dtype"] == torch.bool
    open_, shut = (1.0, 0.0) if boolean else (0.0, torch.finfo(mask.meta["dtype"]).min)
    allowed = formula if formula.yes == open_ else formula.otherwise()
    if allowed is None or allowed.yes != open_:
        return None
    if allowed.alone is not None:
        return "nothing"
    causal = Formula(0, (*(0,) * (rank - 2), 1, -1))
    return "causal" if allowed.no <= shut and rank >= 2 and allowed.where == {causal} else None


def _shared(key: fx.Node, value: fx.Node) -> tuple[fx.Node, ...]:
    """Keys and values before both are repeated; none where they are not, or heads are too wide."""
    unrepeated = tuple(_repeated(each) for each in (key, value))
    width = value.meta["shape"][-1]
    if (
        unrepeated[0] is None
        or unrepeated[1] is None
        or unrepeated[0].meta["shape"][-3] != unrepeated[1].meta["shape"][-3]
    ):
        return ()
    fits = isinstance(width, int) and key.meta["shape"][-1] == width <= WIDEST_HEAD
    return unrepeated if fits else ()  # type: ignore[return-value]


def _repeated(node: fx.Node) -> fx.Node | None:
    """x [..., head, position, width], of which each head is repeated n times by `reshape(expand(unsqueeze(x)))`."""
    chain = [node]
    for target in (aten.view.default, aten.expand.default, aten.unsqueeze.default):
        if chain[-1].target is not target and not (target is aten.view.default and node.target is aten.reshape.default):
            return None
        chain.append(chain[-1].args[0])  # type: ignore[arg-type]
    x, (view, expanded, apart) = chain[3], (each.meta["shape"] for each in chain[:3])
    before = x.meta["shape"]
    if len(before) < 3 or not isinstance(heads := before[-3], int) or not isinstance(times := expanded[-3], int):
        return None
    aside = (*before[:-2], 1, *before[-2:]) == apart and (*before[:-2], times, *before[-2:]) == expanded
    return x if aside and view == (*before[:-3], heads * times, *before[-2:]) else None
