"""Where something is put in or read: a component, or what its attention takes one way, at all positions or at one."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from jetgraph.algebra.matching import Aliases, matching, named
from jetgraph.algebra.outline import SINK
from jetgraph.applications.interventions.network import Network
from jetgraph.errors import InputError, SelectionError, quoted
from jetgraph.structure.attention import operands

Names = str | Sequence[str]
"""Names or globs over aliases and module paths; `L3.attn.q`, `.k`, `.v` are what attention takes, `L3.mlp@5` is one
position, and `L3.mlp@*` each position by itself."""

_OPERAND = re.compile(r"(?P<branch>.+?)\.(?:hook_)?(?P<operand>[qkv])")


@dataclass(frozen=True)
class Port:
    """Where something is put in or read."""

    alias: str
    operand: str = ""
    """`q`, `k` or `v` of an attention branch; all of the component where it is empty."""
    at: int | None = None
    """One position, counted from the start; None is all."""

    def __str__(self) -> str:
        return self.alias + (f".{self.operand}" if self.operand else "") + ("" if self.at is None else f"@{self.at}")


def component_of(text: str) -> str:
    """What a name of a port says of its component.

    >>> component_of("L1.attn.head0.q@-1"), component_of("L3H5.k"), component_of("L0.mlp@*"), component_of("L0.mlp")
    ('L1.attn.head0', 'L3H5', 'L0.mlp', 'L0.mlp')
    """
    name = text.rpartition("@")[0] or text
    asked = _OPERAND.fullmatch(name)
    return name if asked is None else asked["branch"]


def ports(wanted: Names, aliases: Collection[str], network: Network, *, receiving: bool = False) -> list[Port]:
    """What some names stand for, in the order of the stream, each once.

    Parameters
    ----------
    wanted
        Names or globs.
    aliases
        The components that they may stand for.
    network
        The model on an input, whose positions are counted.
    receiving
        Queries, keys and values may be named, which receive and do not send.

    Raises
    ------
    SelectionError
        A name that is no component.
    InputError
        A position that there is not, or of what has none.
    """
    chosen: dict[Port, None] = {}
    for text in [wanted] if isinstance(wanted, str) else wanted:
        name, at, place = text.rpartition("@")
        name, place = (name, place) if at else (text, "")
        for port in _named(name.strip(), text, aliases, network, receiving):
            chosen |= dict.fromkeys(_placed(port, place.strip(), text, network) if at else (port,))
    order = {alias: number for number, alias in enumerate(aliases)}
    return sorted(chosen, key=lambda port: order[port.alias])


def _named(name: str, text: str, aliases: Collection[str], network: Network, receiving: bool) -> Iterator[Port]:
    outline = network.graph.outline
    paths = Aliases(
        {one.alias: one.path for one in (*outline.sources, *outline.sites())},
        {one.alias: one.kind for one in outline.sources},
    )
    asked = _OPERAND.fullmatch(name)
    if asked is None or matching(name, paths):
        yield from map(Port, named(name, paths, aliases, f"{quoted(text)} matches no component"))
        return
    operand = asked["operand"]
    if not receiving:
        raise SelectionError(
            f"{quoted(text)} can receive and not send: send what the whole branch {asked['branch']!r} adds"
        )
    found = named(asked["branch"], paths, aliases, f"{quoted(text)} matches no component")
    exact = len(found) == 1
    for alias in found:
        branch = network.graph.branches.get(alias)
        if branch is None or branch.kind != "attn":
            if exact:
                raise InputError(f"{alias!r} is no branch with attention, so it has no {quoted(operand)} to receive by")
            continue
        if operand in operands(branch):
            yield Port(alias, operand)
        elif exact:
            raise InputError(
                f"the {quoted(operand)} of {alias!r} does not depend on its stream, so it receives nothing"
            )


def _placed(port: Port, place: str, text: str, network: Network) -> list[Port]:
    """A port at one position, or at each."""
    if port.alias == SINK:
        raise InputError(f"{quoted(text)}: where the logits are read is said by position=, so leave the @ out")
    shape = network.forward.shape(network.graph.traced.output)
    if len(shape) != 3:
        raise InputError(f"{quoted(text)} names a position, but the output {list(shape)} has none: leave the @ out")
    length = shape[1]
    if place == "*":
        return [replace(port, at=number) for number in range(length)]
    if not re.fullmatch(r"-?[0-9]{1,9}", place) or not -length <= int(place) < length:
        raise InputError(
            f"{quoted(text)} names no position: after @ write one of 0 to {length - 1}, one from the end such as -1, "
            "or * for each"
        )
    return [replace(port, at=int(place) % length)]


def position_dim(port: Port, value: Tensor, network: Network) -> int:
    """The dimension, from the end, along which the positions of a port's value lie.

    Raises
    ------
    InputError
        It has none.
    """
    examples, length = network.forward.shape(network.graph.traced.output)[:2]
    dim = (
        operands(network.graph.branches[port.alias])[port.operand].dim if port.operand else network.rows(port.alias)[1]
    )
    if dim is None and examples == 1 and value.dim() == 2:
        # Rows and positions are one dimension there.
        dim = -2
    if dim is None or value.shape[dim] != length:
        raise InputError(
            f"{str(port)!r} names one of {length} positions, but which dimension of {list(value.shape)} they are is "
            "not told by its sizes: leave the @ out"
        )
    return dim


def at_port(port: Port, value: Tensor, network: Network) -> Callable[[Tensor], Tensor]:
    """What becomes of an own value [..., *value] where another one is put in at a port."""
    if port.at is None:
        return lambda own: value
    dim = position_dim(port, value, network)
    one = value.narrow(dim, port.at, 1).clone()

    def change(own: Tensor) -> Tensor:
        changed = own.clone()
        changed.narrow(dim, port.at or 0, 1).copy_(one.expand_as(changed.narrow(dim, port.at or 0, 1)))
        return changed

    return change
