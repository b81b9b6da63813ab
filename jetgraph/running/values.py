"""Values of the model's own forward pass, computed on demand and each at most once, any of which can be patched.

Only what was asked for is kept: inner values are dropped as soon as nothing waits for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from jetgraph.errors import InputError
from jetgraph.jets.interpreter import evaluate


@dataclass(frozen=True, eq=False)
class Exchange:
    """One summand of a node's value in another's place."""

    value: Tensor
    own: Callable[[], Tensor] | None
    """What the summand is by itself; None where it is all of the value."""


class Values:
    """Values of nodes on given inputs.

    Parameters
    ----------
    state
        Weights and constants by placeholder.
    inputs
        The inputs by placeholder.
    positions
        Where each node of the graph stands in the order of execution.
    """

    def __init__(
        self, state: Mapping[fx.Node, Any], inputs: Mapping[fx.Node, Any], positions: Mapping[fx.Node, int]
    ) -> None:
        self._inputs = inputs
        self._positions = positions
        self._held: dict[fx.Node, Any] = {**state, **inputs}
        self._put: set[fx.Node] = set()
        """Nodes that have been given a value, whatever changes before them."""
        self._exchanges: dict[fx.Node, dict[str, Exchange]] = {}
        """By node, the summands of it that have another value, by name."""

    def __contains__(self, node: fx.Node) -> bool:
        """The value is there already."""
        return node in self._held

    def __getitem__(self, node: fx.Node) -> Any:
        if node not in self._held:
            self.need([node])
        return self._held[node]

    def of(self, nodes: Iterable[fx.Node]) -> dict[fx.Node, Any]:
        """The values of several nodes, computed in one pass."""
        nodes = tuple(nodes)
        self.need(nodes)
        return {node: self._held[node] for node in nodes}

    def need(self, nodes: Iterable[fx.Node]) -> None:
        """Compute values, in one pass, if they are not there yet.

        Raises
        ------
        InputError
            A node is of another graph.
        """
        wanted = [node for node in nodes if node not in self._held]
        if foreign := next((node for node in wanted if node not in self._positions), None):
            raise InputError(
                f"{foreign.name!r} is of another graph than this pass, which is of the model as it was moved or cast "
                "since the trace: take points, regions and branches from forward.graph"
            )
        while wanted and (exchanged := self._missing(wanted).keys() & self._exchanges.keys()):
            # The first of them: nothing that it is made from has an exchange of its own that is still to be made.
            self._exchange(min(exchanged, key=self._positions.__getitem__))
            wanted = [node for node in wanted if node not in self._held]
        self._compute(wanted)

    def put(self, node: fx.Node, value: Tensor) -> None:
        """Give a node a value, which stays whatever changes before it, and forget what depended on the old one."""
        self._put.add(node)
        self._exchanges.pop(node, None)
        self.forget(node)
        self._held[node] = value

    def exchange(self, node: fx.Node, name: str, by: Exchange) -> None:
        """Exchange one summand of a node's value, and forget what depended on it.

        Raises
        ------
        InputError
            The node has been given a value as a whole.
        """
        if node in self._put:
            raise InputError(f"a part of {node.name!r} cannot be patched, for the whole branch was: make a new pass")
        self._exchanges.setdefault(node, {})[name] = by
        self.forget(node)

    def exchanged(self, node: fx.Node, name: str) -> Tensor | None:
        """What stands in a summand's place; None where it was not exchanged."""
        found = self._exchanges.get(node, {}).get(name)
        return None if found is None else found.value

    def forget(self, node: fx.Node) -> None:
        """Drop the value and all that depends on it."""
        seen: set[fx.Node] = set()
        stack = [node]
        while stack:
            current = stack.pop()
            self._held.pop(current, None)
            for user in current.users:
                if user not in seen and user not in self._put:
                    seen.add(user)
                    stack.append(user)

    def _exchange(self, node: fx.Node) -> None:
        """Compute a value some of whose summands are exchanged."""
        exchanges = self._exchanges[node]
        # Before the value itself: what a summand is made from is kept, and the value is then made from it too.
        own = {name: each.own() for name, each in exchanges.items() if each.own is not None}
        self._compute([node])
        value = self._held[node]
        for name, each in exchanges.items():
            value = (value + (each.value - own[name])).to(value.dtype) if name in own else each.value
        self._held[node] = value

    def _compute(self, wanted: Sequence[fx.Node]) -> None:
        if wanted:
            order = sorted(self._missing(wanted), key=self._positions.__getitem__)
            # A stream may start at an input itself, whose value a patch has put aside.
            self._held |= {node: self._inputs[node] for node in order if node in self._inputs}
            evaluate(order, self._held, keep={*self._held, *wanted})

    def _missing(self, wanted: Sequence[fx.Node]) -> dict[fx.Node, None]:
        """What has to be computed for these values."""
        found: dict[fx.Node, None] = {}
        stack = list(wanted)
        while stack:
            node = stack.pop()
            if node not in found and node not in self._held:
                found[node] = None
                stack.extend(node.all_input_nodes)
        return found
