"""Where a branch can be cut into parts: one per attention head, or per set of neurons.

A branch is cut at an inner value u from which its end is reached linearly, up to a constant:

    γ(h) = L_h u(h) + c        parts: γ_I(h) = L_h (1_I ⊙ u(h)),  Σ_I γ_I + c = γ

1_I keeps some coordinates of u: along the heads of the last attention product, or along the inputs of the last layer
(the neurons). L_h is the branch's own code after u, its constants dropped: affine operators, factors that do not
depend on u, and norms, whose denominators are held at the branch's own value. Where layers follow u inside the branch,
their activations f(z) = g(z) z and gates are held so too. Every part is a function of h like the branch itself, so that
jets, atoms and frozen gates apply to it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Set
from dataclasses import dataclass

import torch
from torch import fx

from jetgraph.jets.registry import adds_constant, bind, find_rule, is_affine, is_floating, nodes_in
from jetgraph.structure.operators import is_mixing
from jetgraph.structure.parts import ACTIVATIONS, HELD_NORMS, Axis, whole_of
from jetgraph.structure.regions import Cut, Region

aten = torch.ops.aten


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


def carry(region: Region, u: fx.Node, axes: tuple[Axis, ...], *, gates: bool = False) -> Cut | None:
    """The cut at u, if the branch's end is linear in it.

    Parameters
    ----------
    region
        The whole branch.
    u
        A node of it, or its entry.
    axes
        What is dealt out of u.
    gates
        Activations, and what they multiply, are held like norms.

    Returns
    -------
    Cut or None
        None where something after u is neither affine in u nor can be held.
    """
    followed = _follow(region, u, gates=gates)
    depth, moving = followed.depth, followed.moving
    if region.exit not in moving:
        return None
    carried = _above(region.exit, moving, u)
    factors = {
        arg for node in carried for arg in node.all_input_nodes if arg in depth and arg not in moving[node] and gates
    }
    if not factors.isdisjoint({u, *carried}):
        return None
    return _cut_at(region, u, axes, {node: moving[node] for node in carried}, followed.whole & set(carried), factors)


def obstacle(region: Region, u: fx.Node) -> fx.Node | None:
    """The last operator between a value and the branch's end that is neither affine in it nor can be held; None where
    there is none.
    """
    followed = _follow(region, u, gates=True)
    known = {*followed.moving, *followed.steered}
    node = next(
        (
            node
            for node in reversed(region.nodes)
            if node not in known and any(arg in followed.moving for arg in node.all_input_nodes)
        ),
        None,
    )
    while node is not None:
        above = (arg for arg in node.all_input_nodes if arg in followed.depth and arg not in known)
        reason = next((arg for arg in above if not _normalises(arg, followed.depth)), None)
        if reason is None:
            return node
        node = reason
    return None


@dataclass(frozen=True, eq=False)
class _Followed:
    """What of a branch depends on a value inside it, and how."""

    depth: Mapping[fx.Node, int]
    """What depends on it, with the activations behind it."""
    moving: Mapping[fx.Node, frozenset[fx.Node]]
    """What is linear in it, with what it reads of that."""
    whole: Set[fx.Node]
    """Norms and activations among that, which are held at the branch's own value."""
    steered: Set[fx.Node]
    """What depends on it by gates alone."""


def _follow(region: Region, u: fx.Node, *, gates: bool) -> _Followed:
    inside = {region.entry, *region.nodes}
    depth: dict[fx.Node, int] = {u: 0}
    moving: dict[fx.Node, frozenset[fx.Node]] = {u: frozenset()}
    whole: set[fx.Node] = set()
    steered: set[fx.Node] = set()
    start = 0 if u is region.entry else region.nodes.index(u) + 1
    for node in region.nodes[start:]:
        reads = [arg for arg in node.all_input_nodes if arg in inside]
        dependent = [arg for arg in reads if arg in depth]
        if not dependent:
            continue
        depth[node] = max(map(depth.__getitem__, dependent)) + _is_gate(node)
        along = frozenset(arg for arg in dependent if arg in moving)
        held = all(arg in moving or arg in steered or _normalises(arg, depth) for arg in dependent)
        if along and held and is_affine(node, along.__contains__):
            moving[node] = along
        elif (
            along and reads == [node.args[0]] and (node.target in HELD_NORMS or (gates and node.target in ACTIVATIONS))
        ):
            moving[node] = along
            whole.add(node)
        elif gates and along and (chosen := _gated(node, along, depth)) is not None:
            moving[node] = frozenset({chosen})
        elif gates and not along and _steers(node, inside, depth, steered):
            steered.add(node)
    return _Followed(depth, moving, whole, steered)


def _is_gate(node: fx.Node) -> bool:
    entry = find_rule(node.target)
    return entry is not None and (node.target in ACTIVATIONS or entry.gate in ("gate", "attention"))


def _steers(
    node: fx.Node, inside: Collection[fx.Node], depth: Mapping[fx.Node, int], steered: Collection[fx.Node]
) -> bool:
    """The node is an affine image of values that do not depend on u, once gates are held that do."""
    reads = [arg for arg in node.all_input_nodes if arg in inside]
    varying = {arg for arg in reads if arg not in depth or arg in steered}
    entry = find_rule(node.target)
    product = entry is not None and entry.kind == "bilinear"
    return bool(varying) and (product or varying.issuperset(reads)) and is_affine(node, varying.__contains__)


def _gated(node: fx.Node, along: frozenset[fx.Node], depth: Mapping[fx.Node, int]) -> fx.Node | None:
    """The factor of a product that is carried on, if the others are held as gates of it: one with fewer activations
    behind it than each that is linear too; and what is divided by a sum that is carried as well, as attention is whose
    weights are added up in a column of their own.
    """
    entry = find_rule(node.target)
    if node.target is aten.div.Tensor and len(along) == 2:
        return next(arg for arg in along if arg is node.args[0])
    if entry is None or entry.kind != "bilinear":
        return None
    fewest = min(along, key=depth.__getitem__)
    if any(depth[arg] <= depth[fewest] for arg in along if arg is not fewest):
        return None
    return fewest if is_affine(node, {fewest}.__contains__) else None


def _cut_at(
    region: Region,
    u: fx.Node,
    axes: tuple[Axis, ...],
    carried: Mapping[fx.Node, frozenset[fx.Node]],
    whole: Set[fx.Node],
    factors: Set[fx.Node],
) -> Cut:
    """The cut with these nodes after it, each with what it reads of them."""
    inside = {region.entry, *region.nodes}
    held: set[fx.Node] = set()
    constant = varying = False
    for node, along in carried.items():
        others = {arg for arg in node.all_input_nodes if arg in inside and arg not in along}
        scaled = bool(others) or node in whole
        biased = node in whole and bind(node.target, node.args, node.kwargs).get("bias") is not None  # type: ignore[arg-type]
        added = adds_constant(node, along.__contains__)
        # A constant varies if it is a value inside the branch, or if one scales it afterwards.
        varying |= (added and bool(others)) or (constant and scaled)
        constant |= added or biased
        held |= others | ({whole_of(node)} if node in whole else set())
    before = needed(region, {u, *held})
    kind = "none" if not constant else "varying" if varying else "fixed"
    return Cut(region, u, axes, tuple(carried), before, frozenset(held), frozenset(whole), kind, frozenset(factors))


def _above(exit: fx.Node, moving: Mapping[fx.Node, frozenset[fx.Node]], u: fx.Node) -> tuple[fx.Node, ...]:
    """The nodes that lead linearly to the end, in execution order, without u."""
    above = {exit}
    stack = [exit]
    while stack:
        for arg in moving[stack.pop()]:
            if arg not in above:
                above.add(arg)
                stack.append(arg)
    return tuple(node for node in moving if node in above and node is not u)


def needed(region: Region, wanted: Collection[fx.Node]) -> tuple[fx.Node, ...]:
    """The nodes of the region that compute these values, in execution order."""
    found: set[fx.Node] = set()
    for node in reversed(region.nodes):
        if node in wanted or any(user in found for user in node.users):
            found.add(node)
    return tuple(node for node in region.nodes if node in found)


def _normalises(node: fx.Node, dependent: Collection[fx.Node]) -> bool:
    """The value is an affine image of what a norm divides by, such as a reciprocal square root, with a floor or
    without."""
    while True:
        entry = find_rule(node.target)
        if entry is None:
            return False
        bound = bind(node.target, node.args, node.kwargs)  # type: ignore[arg-type]
        gate = entry.gate(bound) if callable(entry.gate) else entry.gate
        reads = [arg for arg in node.all_input_nodes if arg in dependent]
        if gate == "norm":
            return True
        floor = node.target in _FLOORS
        if len(reads) != 1 or not (floor or is_affine(node, {reads[0]}.__contains__)):
            return False
        node = reads[0]


_FLOORS = {aten.clamp_min.default, aten.clamp.default, aten.maximum.default}
"""What keeps a denominator from zero."""
