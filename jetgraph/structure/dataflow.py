"""The dataflow of a traced graph: what depends on what, and what lies between two values."""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from torch import fx

from jetgraph.jets.registry import adds_constant, is_affine, is_floating, nodes_in, values_read
from jetgraph.structure.dimensions import Dimensions, follow
from jetgraph.structure.operators import LOOKUPS, aten, is_float_tensor, packet_of
from jetgraph.structure.regions import Region
from jetgraph.tracing.traced import Traced


@dataclass(frozen=True, eq=False)
class Dataflow:
    """How values flow from the user's input to the output.

    `node in flow` where a node depends on the user's input through values of a floating type; weights, indices and
    masks made of the input's sizes or of whole numbers alone are outside.
    """

    traced: Traced
    nodes: tuple[fx.Node, ...]
    """All nodes in execution order, but for the graph's output."""
    positions: Mapping[fx.Node, int]
    """The place of each in that order."""
    parents: Mapping[fx.Node, tuple[fx.Node, ...]]
    """The nodes of the flow whose values a node reads."""
    carriers: Mapping[fx.Node, tuple[fx.Node, ...]]
    """The parents that can carry the stream on; indices, masks and comparisons only steer it."""
    above: Mapping[fx.Node, int]
    """For the nodes of the flow, what they depend on and themselves, as a bit set over positions: that makes "does a
    depend on b" one operation on graphs of tens of thousands of nodes."""
    _affine: dict[tuple[fx.Node, tuple[fx.Node, ...]], bool] = field(default_factory=dict, repr=False)

    _followed: dict[fx.Node, Dimensions] = field(default_factory=dict, repr=False)

    def followed(self, start: fx.Node) -> Dimensions:
        """How what is made of a value lies in memory, by the factors of its dimensions; found out once."""
        if start not in self._followed:
            later = self.nodes[self.positions[start] + 1 :]
            self._followed[start] = follow(start, [node for node in later if node.op == "call_function"])
        return self._followed[start]

    def __contains__(self, node: fx.Node) -> bool:
        return node in self.above

    def depends(self, node: fx.Node, on: fx.Node) -> bool:
        """The node is the other one, or computed from it within the flow."""
        return node in self.above and bool(self.above[node] >> self.positions[on] & 1)

    def mask(self, nodes: Iterable[fx.Node]) -> int:
        """These nodes as a bit set, for `touches`."""
        bits = 0
        for node in nodes:
            bits |= 1 << self.positions[node]
        return bits

    def touches(self, node: fx.Node, mask: int) -> bool:
        """The node depends on one of those in a bit set."""
        return bool(self.above.get(node, 0) & mask)

    def affine(self, node: fx.Node, inside: Container[fx.Node]) -> bool:
        """The node's operator is affine in those that it reads of these, while the others are held; found out once."""
        read = tuple(parent for parent in node.all_input_nodes if parent in inside)
        if (node, read) not in self._affine:
            self._affine[node, read] = is_affine(node, read.__contains__)
        return self._affine[node, read]

    @cached_property
    def _starts(self) -> int:
        """The nodes where the flow starts, as a bit set."""
        return self.mask(node for node in self.above if not self.parents[node])

    def inputs(self, node: fx.Node) -> int:
        """Where what a node of the flow depends on starts, as a bit set: inputs, and what is looked up by them."""
        return self.above[node] & self._starts

    def ordered(self, nodes: Iterable[fx.Node]) -> tuple[fx.Node, ...]:
        """The nodes in execution order."""
        return tuple(sorted(nodes, key=self.positions.__getitem__))

    def between(self, entry: fx.Node, exit: fx.Node, held: Collection[fx.Node] = ()) -> tuple[fx.Node, ...]:
        """Nodes on ways from entry to exit that pass none of those held, without the entry, in execution order."""
        if entry is exit:
            return ()
        nodes = {exit}
        stack = [exit]
        while stack:
            for parent in self.parents[stack.pop()]:
                if parent is entry or parent in nodes or parent in held:
                    continue
                if self.depends(parent, entry):
                    nodes.add(parent)
                    stack.append(parent)
        return self.ordered(nodes)

    def region(self, entry: fx.Node, exit: fx.Node, held: Collection[fx.Node] = ()) -> Region:
        """The function from one value to another one that depends on it, with some values on the way held."""
        nodes = self.between(entry, exit, held)
        inside = {entry, *nodes}
        side = dict.fromkeys(arg for node in nodes for arg in node.all_input_nodes if arg not in inside)
        context = frozenset(node for node in side if node in self)
        affine = all(self.affine(node, inside) for node in nodes)
        bias = affine and any(adds_constant(node, inside.__contains__) for node in nodes)
        return Region(entry, exit, nodes, tuple(side), context, affine, bias, tuple(held))

    def shared_inputs(self, nodes: Iterable[fx.Node]) -> tuple[fx.Node, ...]:
        """Where the flow starts that all these depend on, in execution order."""
        bits = self._starts
        for node in nodes:
            bits &= self.above[node]
        return tuple(node for node in self.nodes if bits >> self.positions[node] & 1)

    def bottleneck(self, node: fx.Node, of: fx.Node | None = None) -> fx.Node | None:
        """The nearest tensor above the node through which every way to it passes, if there is one; `of` a value, every
        way from there: another input may come in after that, as a mask or a condition.
        """
        frontier = set(self._made_of(node, of))
        while frontier:
            latest = max(frontier, key=self.positions.__getitem__)
            if len(frontier) == 1 and is_float_tensor(latest):
                return latest
            frontier.remove(latest)
            above = self._made_of(latest, of)
            # A way that starts here has nothing in common with the others above this.
            if not above:
                return None
            frontier.update(above)
        return None

    def _made_of(self, node: fx.Node, of: fx.Node | None) -> tuple[fx.Node, ...]:
        """The parents of a node; `of` a value, those that depend on it."""
        parents = self.parents[node]
        return parents if of is None else tuple(parent for parent in parents if self.depends(parent, of))

    def dominates(self, above: fx.Node, node: fx.Node, of: fx.Node | None = None) -> bool:
        """Every way to the node passes `above`; `of` a value, every way from there."""
        current: fx.Node | None = node
        while current is not None and self.positions[current] > self.positions[above]:
            current = self.bottleneck(current, of)
        return current is above

    def carries(self, above: fx.Node, node: fx.Node) -> bool:
        """Every way to the node from one of the inputs that `above` is made of passes that: what else the node is made
        of comes in beside it, as a condition does.
        """
        starts = (None, *self.shared_inputs([above]))
        return any(self.dominates(above, node, start) for start in starts)


def dataflow(traced: Traced) -> Dataflow:
    """The dataflow of a traced graph."""
    nodes = tuple(node for node in traced.graph.nodes if node.op != "output")
    positions = {node: index for index, node in enumerate(nodes)}
    read = {node: values_read(node) for node in nodes}
    flowing = _flowing(traced, nodes, read)
    if traced.output not in flowing:
        flowing = _flowing(traced, nodes, read, counted=True)
    parents = {node: tuple(arg for arg in read[node] if arg in flowing) for node in nodes}
    carriers = {node: tuple(arg for arg in args if is_floating(arg)) for node, args in parents.items()}
    above: dict[fx.Node, int] = {}
    for node in nodes:
        if node in flowing:
            bits = 1 << positions[node]
            for parent in parents[node]:
                bits |= above[parent]
            above[node] = bits
    return Dataflow(traced, nodes, positions, parents, carriers, above)


def _flowing(
    traced: Traced, nodes: Iterable[fx.Node], read: Mapping[fx.Node, list[fx.Node]], counted: bool = False
) -> set[fx.Node]:
    """Everything from the first floating tensors on that depend on the user's input: inputs of such a type, and what is
    looked up by others. With `counted` also what others are cast to, such as counts and units; masks are among that.
    """
    varying: set[fx.Node] = set()
    flowing: set[fx.Node] = set()
    for node in nodes:
        if node.op == "placeholder":
            if traced.bindings[node.name].kind == "input":
                varying.add(node)
                if is_float_tensor(node):
                    flowing.add(node)
            continue
        if not any(arg in varying for arg in read[node]):
            continue
        varying.add(node)
        at = LOOKUPS.get(packet_of(node))
        made = is_float_tensor(node) or packet_of(node) is aten.embedding_bag
        looked_up = at is not None and any(arg in varying for arg in nodes_in(node.args[at : at + 1]))
        if (made and (counted or looked_up)) or any(arg in flowing for arg in read[node]):
            flowing.add(node)
    return flowing
