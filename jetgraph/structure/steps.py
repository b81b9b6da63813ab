"""Steps from one state of several values to the next: what carries the state on, and what is added to it.

step   each value of the next state is a sum of an affine image of the state (its skip) and of what is made of the state
       otherwise (branches); or only a mixture of its values; or one value is replaced by a map of it.

Which states there are, and how steps follow each other, is told in `jetgraph.structure.walks`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import fx

from jetgraph.jets.registry import nodes_in
from jetgraph.structure.dataflow import Dataflow
from jetgraph.structure.images import held_image
from jetgraph.structure.operators import aten, is_float_tensor, is_mixing, mixes, packet_of
from jetgraph.structure.sums import flattened


@dataclass(frozen=True, eq=False)
class Next:
    """A value of a state, as a sum over the state before it."""

    node: fx.Node
    skip: tuple[fx.Node, ...]
    """Affine images of values of the state before, where factors are held; the value itself where it stays."""
    branches: tuple[fx.Node, ...]
    injections: tuple[fx.Node, ...]
    homes: tuple[int, ...]
    """Which values of the state before these are images of."""
    gates: tuple[fx.Node, ...] = ()
    """Factors that are made of the state, with which they are."""


@dataclass(frozen=True, eq=False)
class Step:
    """From one state to the next."""

    at: fx.Node
    """The node at which the next state is there."""
    nexts: tuple[Next, ...]

    @property
    def state(self) -> tuple[fx.Node, ...]:
        """The values of the next one."""
        return tuple(each.node for each in self.nexts)


Known = dict[fx.Node, Next | None]
"""What values are over one state, as far as they have been looked at; None where one is no sum over it."""


def adding_step(
    flow: Dataflow,
    state: Sequence[fx.Node],
    at: fx.Node,
    live: Sequence[fx.Node],
    *,
    all_carried: bool = True,
    known: Known | None = None,
) -> Step | None:
    """The step from a state to what is live at a node, if each value of that carries the state on, and layers add to
    it.

    Parameters
    ----------
    all_carried
        Each value of the state has to be carried on.
    known
        What values are over this state: read, and filled in.
    """
    nexts = _values_over(flow, state, live, {} if known is None else known)
    if nexts is None or (all_carried and not _carry_all(nexts, state)):
        return None
    branches = [branch for each in nexts for branch in each.branches]
    return Step(at, nexts) if any(map(mixes, way_from(flow, state, branches))) else None


def mixing_step(flow: Dataflow, state: Sequence[fx.Node], at: fx.Node, live: Sequence[fx.Node]) -> Step | None:
    """The step from a state to what is live at a node, if its values are only mixed there, and all are carried on."""
    nexts = _values_over(flow, state, live, {})
    if nexts is None or not _carry_all(nexts, state) or any(each.branches for each in nexts):
        return None
    if all(node in state for node in live) or any(_is_product(flow, state, each) for each in nexts):
        return None
    return Step(at, nexts)


def _values_over(
    flow: Dataflow, state: Sequence[fx.Node], live: Sequence[fx.Node], known: Known
) -> tuple[Next, ...] | None:
    """Those values that are made of a state as sums over it, in its order; None where one is no such sum. The others
    are what the streams are given from outside.
    """
    nexts: list[Next] = []
    mask = flow.mask(state)
    for node in live:
        if not flow.touches(node, mask):
            continue
        if node not in known:
            known[node] = _next(flow, state, node)
        each = known[node]
        if each is None:
            return None
        nexts.append(each)
    return tuple(sorted(nexts, key=lambda each: (each.homes, flow.positions[each.node])))


def _carry_all(nexts: Sequence[Next], state: Sequence[fx.Node]) -> bool:
    """Each value of a state has an image in the next one."""
    return len({home for each in nexts for home in each.homes}) == len(state)


def _is_product(flow: Dataflow, state: Sequence[fx.Node], each: Next) -> bool:
    """A value is made of several others by layers alone: a branch's code, and none of them goes on in it."""
    return len(each.homes) > 1 and all(
        any(map(mixes, way_from(flow, state, [image], each.gates))) for image in each.skip
    )


def mapping_step(flow: Dataflow, state: Sequence[fx.Node], at: fx.Node, live: Sequence[fx.Node]) -> Step | None:
    """The step in which a value of the state is replaced by a function of it, such as a post-norm."""
    gone = [node for node in state if node not in live]
    way = way_from(flow, state, [at])
    read = {parent for inner in way for parent in flow.parents[inner]}.intersection(state)
    others = [node for node in live if node not in state and node is not at]
    beside = any(flow.depends(node, before) for node in others for before in state)
    if len(gone) != 1 or read != set(gone) or beside or not is_float_tensor(at) or any(map(mixes, way)):
        return None
    if at.meta["shape"] != gone[0].meta["shape"]:
        return None  # A mean of a value is what a branch reads of it.
    nexts = [at if node in gone else node for node in state]
    return Step(at, tuple(Next(node, (node,), (), (), (place,)) for place, node in enumerate(nexts)))


def _next(flow: Dataflow, state: Sequence[fx.Node], node: fx.Node) -> Next | None:
    """A value as a sum of affine images of a state and others; of nothing but branches it is none."""
    if not is_float_tensor(node):
        return None
    operands = (node,) if node in state else flattened(flow, node, state).operands
    skip, branches, injections, gates, homes = [], [], [], [], set[int]()
    for operand in operands:
        held = held_image(flow, operand, state)
        way = way_from(flow, state, [operand], held or ())
        if held and any(mixes(inner) and not is_mixing(inner) for inner in way):
            # Messages to neighbours, a(h) (x_i − x_j), are what a branch makes of a state.
            held, way = None, way_from(flow, state, [operand])
        inside = {*state, *way}
        read = {operand, *(parent for inner in way for parent in flow.parents[inner])}.intersection(state)
        if held is None and not read:
            injections.append(operand)
        elif held is not None or all(flow.affine(inner, inside) for inner in way):
            skip.append(operand)
            gates += held or ()
            homes.update(map(state.index, read))
        else:
            branches.append(operand)
    # One that starts at a constant has no skip yet.
    if all(operand.meta["shape"] != node.meta["shape"] for operand in (*skip, *injections)):
        return None
    return Next(node, tuple(skip), tuple(branches), tuple(injections), tuple(sorted(homes)), tuple(gates))


# What lies between


def way_from(
    flow: Dataflow, state: Sequence[fx.Node], ends: Sequence[fx.Node], held: Sequence[fx.Node] = ()
) -> tuple[fx.Node, ...]:
    """The nodes between a state and values that are made of it, these with them, but for those behind what is held."""
    known, mask = {*state, *held}, flow.mask(state)
    nodes = [end for end in ends if end not in known]
    known.update(nodes)
    for node in nodes:
        for parent in flow.parents[node]:
            if parent not in known and flow.touches(parent, mask):
                known.add(parent)
                nodes.append(parent)
    return tuple(nodes)


def between(flow: Dataflow, state: Sequence[fx.Node], step: Step) -> tuple[fx.Node, ...]:
    """What lies between a state and what a step adds to it."""
    return way_from(flow, state, [branch for each in step.nexts for branch in each.branches])


def is_mixed(flow: Dataflow, state: Sequence[fx.Node], step: Step) -> bool:
    """Something learned lies between a state and its image in the next one."""
    images = [image for each in step.nexts for image in each.skip]
    gates = [gate for each in step.nexts for gate in each.gates]
    return any(map(mixes, way_from(flow, state, images, gates)))


def lies_whole(state: Sequence[fx.Node], step: Step) -> bool:
    """A value of the next state is all of the one before, side by side: what is beside it is code of its branches."""
    return any(packet_of(each.node) is aten.cat and {*state} <= {*nodes_in(each.node.args[:1])} for each in step.nexts)
