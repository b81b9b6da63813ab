"""Where a branch can be cut into parts: one per attention head, or per set of neurons.

A branch is cut at an inner value u from which its end is reached linearly, up to a constant:

    γ(h) = L_h u(h) + c        parts: γ_I(h) = L_h (1_I ⊙ u(h)),  Σ_I γ_I + c = γ

1_I keeps some coordinates of u: along the heads of the last attention product, or along the inputs of the last layer
(the neurons). L_h is the branch's own code after u, its constants dropped: affine operators, factors that do not
depend on u, and norms, whose denominators are held at the branch's own value. Every part is a function of h like the
branch itself, so that jets, atoms and frozen gates apply to it.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx

from jetgraph.jets.registry import adds_constant, bind, find_rule, is_affine, is_floating, nodes_in
from jetgraph.structure.operators import is_mixing
from jetgraph.structure.parts import NORMS, Axis, normalised_by
from jetgraph.structure.regions import Cut, Region


def find_neurons(region: Region) -> Cut | None:
    """The cut at the input of the last layer with learned weights from which the end is reached linearly.

    Parameters
    ----------
    region
        The whole branch.

    Returns
    -------
    Cut or None
        None where there is no such layer.
    """
    inside = {region.entry, *region.nodes}
    for layer in reversed(region.nodes):
        if not is_mixing(layer):
            continue
        bound = bind(layer.target, layer.args, layer.kwargs)  # type: ignore[arg-type]
        # Indices and offsets only steer the layer.
        carriers = {node for node in layer.all_input_nodes if node in inside and is_floating(node)}
        read = [(name, value) for name, value in bound.items() if carriers.intersection(nodes_in(value))]
        if len(read) != 1 or not isinstance(read[0][1], fx.Node):
            continue
        name, u = read[0]
        if name in ("weight", "mat1", "bias"):
            dim = -1
        elif "conv" in str(layer.target):
            spatial = len(bound["weight"].meta["shape"]) - 2
            dim = -1 - spatial
        else:
            dim = -2 if name in ("mat2", "other", "vec2") else -1
        size = u.meta["shape"][dim]
        cut = carry(region, u, (Axis(dim, size),)) if isinstance(size, int) else None
        if cut is not None:
            return cut
    return None


def carry(region: Region, u: fx.Node, axes: tuple[Axis, ...]) -> Cut | None:
    """The cut at u, if the branch's end is linear in it.

    Parameters
    ----------
    region
        The whole branch.
    u
        A node of it, or its entry.
    axes
        What is dealt out of u.

    Returns
    -------
    Cut or None
        None where something after u is neither affine in u nor a norm that can be held.
    """
    inside = {region.entry, *region.nodes}
    dependent: set[fx.Node] = {u}
    carried: dict[fx.Node, None] = {u: None}
    norms: set[fx.Node] = set()
    start = 0 if u is region.entry else region.nodes.index(u) + 1
    for node in region.nodes[start:]:
        reads = [arg for arg in node.all_input_nodes if arg in inside]
        if not any(arg in dependent for arg in reads):
            continue
        dependent.add(node)
        along = {arg for arg in reads if arg in carried}
        held = all(arg not in dependent or _normalises(arg, dependent) for arg in reads if arg not in along)
        if along and held and is_affine(node, along.__contains__):
            carried[node] = None
        elif node.target in NORMS and reads == [normalised_by(node)] and along:
            carried[node] = None
            norms.add(node)
    if region.exit not in carried:
        return None
    return _cut_at(region, u, axes, _above(region.exit, carried, u), norms)


def _cut_at(
    region: Region, u: fx.Node, axes: tuple[Axis, ...], carried: tuple[fx.Node, ...], norms: set[fx.Node]
) -> Cut:
    inside = {region.entry, *region.nodes}
    along = {u, *carried}
    held: set[fx.Node] = set()
    constant = varying = False
    for node in carried:
        others = {arg for arg in node.all_input_nodes if arg in inside and arg not in along}
        factors = bool(others) or node in norms
        biased = node in norms and bind(node.target, node.args, node.kwargs).get("bias") is not None  # type: ignore[arg-type]
        added = adds_constant(node, along.__contains__)
        # A constant varies if it is a value inside the branch, or if one scales it afterwards.
        varying |= (added and bool(others)) or (constant and factors)
        constant |= added or biased
        held |= others | ({normalised_by(node)} if node in norms else set())
    before = _needed(region, {u, *held})
    kind = "none" if not constant else "varying" if varying else "fixed"
    return Cut(region, u, axes, carried, before, frozenset(held), frozenset(norms & set(carried)), kind)


def _above(exit: fx.Node, carried: Mapping[fx.Node, None], u: fx.Node) -> tuple[fx.Node, ...]:
    """The carried nodes that lead to the end, in execution order, without u."""
    above = {exit}
    stack = [exit]
    while stack:
        for arg in stack.pop().all_input_nodes:
            if arg in carried and arg not in above:
                above.add(arg)
                stack.append(arg)
    return tuple(node for node in carried if node in above and node is not u)


def _needed(region: Region, wanted: set[fx.Node]) -> tuple[fx.Node, ...]:
    """The nodes of the region that compute these values, in execution order."""
    needed: set[fx.Node] = set()
    for node in reversed(region.nodes):
        if node in wanted or any(user in needed for user in node.users):
            needed.add(node)
    return tuple(node for node in region.nodes if node in needed)


def _normalises(node: fx.Node, dependent: set[fx.Node]) -> bool:
    """The value is an affine image of what a norm divides by, such as a reciprocal square root."""
    while True:
        entry = find_rule(node.target)
        if entry is None:
            return False
        bound = bind(node.target, node.args, node.kwargs)  # type: ignore[arg-type]
        gate = entry.gate(bound) if callable(entry.gate) else entry.gate
        reads = [arg for arg in node.all_input_nodes if arg in dependent]
        if gate == "norm":
            return True
        if len(reads) != 1 or not is_affine(node, {reads[0]}.__contains__):
            return False
        node = reads[0]
