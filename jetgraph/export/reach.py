"""What values are made of, and what is made of them: walks over a graph that stop where they are told to."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import fx

Passes = Callable[[fx.Node], bool]
"""Whether a walk goes into a node."""


def above(nodes: Iterable[fx.Node], into: Passes = lambda node: True) -> set[fx.Node]:
    """Some nodes and all that they are made of, as far as a walk goes into it.

    Parameters
    ----------
    nodes
        Where the walk begins; they belong to it whatever `into` says.
    into
        Of a node that is read; what lies behind one that is left out is found only by other ways.

    >>> graph = fx.Graph()
    >>> x = graph.placeholder("x")
    >>> y = graph.call_function(abs, (x,))
    >>> z = graph.call_function(max, (y, x))
    >>> above([z]) == {x, y, z}, above([z], lambda node: node is not x) == {y, z}
    (True, True)
    """
    return _reached(nodes, lambda node: node.all_input_nodes, into)


def below(nodes: Iterable[fx.Node], into: Passes = lambda node: True) -> set[fx.Node]:
    """Some nodes and all that is made of them, as far as a walk goes into it; see `above`.

    >>> graph = fx.Graph()
    >>> x = graph.placeholder("x")
    >>> y = graph.call_function(abs, (x,))
    >>> below([x]) == {x, y}, below([y]) == {y}
    (True, True)
    """
    return _reached(nodes, lambda node: node.users, into)


def _reached(nodes: Iterable[fx.Node], step: Callable[[fx.Node], Iterable[fx.Node]], into: Passes) -> set[fx.Node]:
    found = set(nodes)
    stack = list(found)
    while stack:
        new = {other for other in step(stack.pop()) if other not in found and into(other)}
        found |= new
        stack += new
    return found
