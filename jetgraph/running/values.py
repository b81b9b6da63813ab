"""Values of the model's own forward pass, computed on demand and each at most once, any of which can be patched.

Only what was asked for is kept: inner values are dropped as soon as nothing waits for them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from jetgraph.errors import InputError
from jetgraph.jets.interpreter import evaluate
from jetgraph.lazy.tensors import Deferred, read_ahead


class Places(dict[fx.Node, int]):
    """Where each node of a graph stands in the order of execution.

    Parameters
    ----------
    graph
        Whose nodes they are.
    """

    def __init__(self, graph: fx.Graph) -> None:
        super().__init__((node, place) for place, node in enumerate(graph.nodes))
        self._reads = {node: tuple(node.all_input_nodes) for node in self}
        self._chains: dict[Any, tuple[fx.Node, ...]] = {}
        """What was asked for before, by what was asked for and what was there."""

    def chain(self, wanted: tuple[fx.Node, ...], there: Collection[fx.Node]) -> tuple[fx.Node, ...]:
        """What has to be computed for these values where others are there, in the order of execution."""
        key = wanted, frozenset(there)
        if key not in self._chains:
            if len(self._chains) >= _CHAINS:
                self._chains.clear()
            needed: set[fx.Node] = set()
            stack = list(wanted)
            while stack:
                node = stack.pop()
                if node not in needed and node not in there:
                    needed.add(node)
                    stack.extend(self._reads[node])
            self._chains[key] = tuple(sorted(needed, key=self.__getitem__))
        return self._chains[key]


_CHAINS = 1024
"""Chains that are remembered; where there were more, it starts again."""


@dataclass(frozen=True, eq=False)
class Exchange:
    """One summand of a node's value in another's place."""

    value: Tensor
    own: Callable[[], Tensor] | None
    """What the summand is by itself; None where it is all of the value."""
    among: tuple[int, Sequence[int]] | None = None
    """Where the batch holds copies one after the other: how many, and which of them it is exchanged in."""

    def into(self, whole: Tensor, own: Tensor) -> Tensor:
        """A node's value with the summand exchanged."""
        if self.among is None:
            return (whole + (self.value - own)).to(whole.dtype)
        number, rows = self.among
        changed = whole.clone(memory_format=torch.contiguous_format)
        index = torch.tensor(rows, device=whole.device)
        changed.unflatten(0, (number, -1)).index_add_(0, index, (self.value - own).to(whole.dtype))
        return changed


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

    def __init__(self, state: Mapping[fx.Node, Any], inputs: Mapping[fx.Node, Any], positions: Places) -> None:
        self._inputs = inputs
        self._positions = positions
        self._held: dict[fx.Node, Any] = {**state, **inputs}
        self._deferred = {node: value for node, value in state.items() if isinstance(value, Deferred)}
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
        while wanted and (exchanged := self._exchanges and self._exchanges.keys() & set(self._missing(wanted))):
            # The first of them: nothing that it is made from has an exchange of its own that is still to be made.
            self._exchange(min(exchanged, key=self._positions.__getitem__))
            wanted = [node for node in wanted if node not in self._held]
        self._compute(wanted)

    def in_order(self, nodes: Iterable[fx.Node]) -> list[fx.Node]:
        """Nodes in the order of execution."""
        return sorted(nodes, key=self._positions.__getitem__)

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
        exchange = self._exchanges.get(node, {}).get(name)
        return None if exchange is None else exchange.value

    def has_exchanged(self, node: fx.Node, names: Sequence[str]) -> bool:
        """Something stands in the place of one of a node's summands that are called so."""
        exchanges = self._exchanges.get(node)
        return exchanges is not None and not exchanges.keys().isdisjoint(names)

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

    def release(self, nodes: Iterable[fx.Node]) -> None:
        """Let go of values that nobody will ask for again, or else have them made anew."""
        for node in nodes:
            if node not in self._put and node not in self._inputs:
                self._held.pop(node, None)

    def keep(self, nodes: Collection[fx.Node]) -> None:
        """Let go of what operators have made but for these."""
        self.release([node for node in self._held if node.op == "call_function" and node not in nodes])

    def _exchange(self, node: fx.Node) -> None:
        """Compute a value some of whose summands are exchanged."""
        exchanges = self._exchanges[node]
        # Before the value itself: what a summand is made from is kept, and the value is then made from it too.
        own = {name: each.own() for name, each in exchanges.items() if each.own is not None}
        self._compute([node])
        value = self._held[node]
        for name, each in exchanges.items():
            value = each.into(value, own[name]) if name in own else each.value
        self._held[node] = value

    def _compute(self, wanted: Sequence[fx.Node]) -> None:
        if wanted:
            chain = self._missing(wanted)
            # A stream may start at an input itself, whose value a patch has put aside.
            self._held |= {node: self._inputs[node] for node in chain if node in self._inputs}
            self.read_ahead(chain)
            evaluate(chain, self._held, keep=wanted)

    def read_ahead(self, nodes: Iterable[fx.Node]) -> None:
        """Weights that are still in files are read in the order in which these nodes will want them."""
        if self._deferred:
            read_ahead(
                self._deferred[read] for node in nodes for read in node.all_input_nodes if read in self._deferred
            )

    def _missing(self, wanted: Sequence[fx.Node]) -> tuple[fx.Node, ...]:
        """What has to be computed for these values."""
        return self._positions.chain(tuple(wanted), self._held.keys())
