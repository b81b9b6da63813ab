"""Values of other inputs sent into a pass: by all ways, or by way of one receiver, which is measured exactly."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from torch import Tensor, fx

from jetgraph.algebra.outline import SINK
from jetgraph.applications.interventions.network import Network
from jetgraph.applications.interventions.others import Pair
from jetgraph.applications.interventions.ports import Port, at_port, position_dim
from jetgraph.applications.interventions.targets import Readout
from jetgraph.running.copies import Change, Copies, Reach
from jetgraph.structure.attention import operands

Edge = tuple[Port, Port]
"""A sender, and a receiver after it."""


def replaced(
    pair: Pair, senders: Sequence[Port], readout: Readout, memory: int | None
) -> Iterator[tuple[Port, Tensor]]:
    """Logits with each sender at its other value, and everything after it computed anew."""
    changes = [{sender.alias: sent(pair, sender)} for sender in senders]
    for number, logits in pair.one.outcomes(changes, readout.read, readout.places, memory):
        yield senders[number], logits


def routed(pair: Pair, edges: Sequence[Edge], readout: Readout, memory: int | None) -> Iterator[tuple[Edge, Tensor]]:
    """Logits by sender and receiver. Senders go side by side, and so do the values that receivers have of them."""
    one, receivers = pair.one, dict.fromkeys(receiver for _, receiver in edges)
    for senders in _together(one, dict.fromkeys(sender for sender, _ in edges), receivers, readout, memory):
        wanted = [edge for edge in edges if edge[0] in senders]
        received, ends = _received(pair, senders, wanted, readout)
        yield from (((sender, Port(SINK)), ends[sender]) for sender in senders if sender in ends)
        rest = list(received)
        changes = [{edge[1].alias: _constant(received[edge])} for edge in rest]
        for number, logits in one.outcomes(changes, readout.read, readout.places, memory):
            yield rest[number], logits


def straight(pair: Pair, senders: Sequence[Port], readout: Readout) -> Tensor:
    """Logits when several senders at once reach the decoder by the stream alone, each component once."""
    network, copies, held = pair.one, Copies(pair.one.forward, None), dict[fx.Node, Tensor]()
    sending = {sender.alias: sender for sender in senders}
    for alias in sorted(network.steps, key=network.steps.__getitem__):
        branch, sender = network.graph.branches.get(alias), sending.get(alias)
        if branch is not None and branch.kind != "skip":
            own: Tensor = held[branch.node] if branch.node in held else network.forward[branch.node]
            held[branch.node] = own if sender is None else _sending(pair, sender, own)
            copies.put(branch.node, {0: held[branch.node]})
        elif sender is not None:
            copies.change(alias, [((0,), sent(pair, sender))])
        elif branch is not None:
            copies.change(alias, [((0,), _constant(network.value(alias)))])
    return readout.read(copies.forward)[0]


def sent(pair: Pair, sender: Port) -> Change:
    """What becomes of a sender's own value."""
    return at_port(sender, pair.other.value(sender.alias), pair.one)


def _constant(value: Tensor) -> Change:
    return lambda own: value


def _together(
    network: Network, senders: Iterable[Port], receivers: Iterable[Port], readout: Readout, memory: int | None
) -> Iterator[list[Port]]:
    """Senders, as many at once as there is memory for, with what receivers have of each."""
    listed = list(senders)
    reach = network.reach(network.steps, readout.places)
    most = 1
    if reach is not None:
        received = sum(network.value(port.alias).nbytes for port in receivers if port.alias != SINK)
        most = network.together(reach, memory, besides=received)
    yield from (listed[start : start + most] for start in range(0, len(listed), most))


def _received(
    pair: Pair, senders: Sequence[Port], edges: Sequence[Edge], readout: Readout
) -> tuple[dict[Edge, Tensor], dict[Port, Tensor]]:
    """By sender and receiver, the value of the receiver's component when the sender's reaches the receiver by the
    stream alone; and the logits when it reaches the decoder so.
    """
    network, wanted = pair.one, set(edges)
    steps = network.steps
    reach = network.reach(steps, readout.places) if len(senders) > 1 else None
    copies = Copies(network.forward, reach, len(senders))
    end = max(steps.values())
    first = min(steps[sender.alias] for sender in senders)
    last = max(steps.get(receiver.alias, end) for _, receiver in edges)
    receivers = list(dict.fromkeys(receiver for _, receiver in edges))
    values: dict[Edge, Tensor] = {}
    for step in range(first, last + 1):
        # Each receiver is read while all before it are held, and is then held itself.
        here = [alias for alias, at in steps.items() if at == step]
        for receiver in (port for port in receivers if port.alias in here):
            rows = [row for row, sender in enumerate(senders) if (sender, receiver) in wanted]
            if rows:
                value = copies.rows(_at(receiver, copies, network, reach))
                values |= {(senders[row], receiver): value[row].clone() for row in rows}
        _hold(copies, pair, here, {row: sender for row, sender in enumerate(senders) if sender.alias in here})
    sinking = [row for row, sender in enumerate(senders) if (sender, Port(SINK)) in wanted]
    logits = readout.read(copies.forward, copies.number) if sinking else ()
    return values, {senders[row]: logits[row] for row in sinking}


def _at(receiver: Port, copies: Copies, network: Network, reach: Reach | None) -> Tensor:
    """A receiver's component in all copies, where the receiver alone sees what was sent."""
    alias = receiver.alias
    if receiver.operand:
        return _by_operand(receiver, copies, network, reach)
    value = copies.forward.component(alias)
    if receiver.at is None:
        return value
    clean = network.value(alias)
    return _one_position(receiver, value, clean.repeat(copies.number, *[1] * (clean.dim() - 1)), network)


def _by_operand(receiver: Port, copies: Copies, network: Network, reach: Reach | None) -> Tensor:
    """A branch, or a part of one, in clean passes in which one operand of its attention is that of the copies."""
    branch = network.graph.branches[receiver.alias]
    found = operands(branch)
    node = found[receiver.operand].node
    clean = Copies(network.forward, reach, copies.number)
    for operand in found.values():
        # The others are held as well, lest one of them be made from this one.
        clean.put(operand.node, {})
    other = copies.forward.values[node]
    if receiver.at is not None:
        other = _one_position(receiver, other, clean.forward.values[node], network)
    clean.forward.values.put(node, other)
    if branch.part is None:
        return clean.forward.values[branch.node]
    cut = branch.part.cut
    read = clean.forward.values.of((*cut.region.side, cut.node, *cut.held))
    value = cut.part({inner: read[inner] for inner in (cut.node, *cut.held)}, read, branch.part)
    assert isinstance(value, Tensor)
    return value


def _one_position(port: Port, value: Tensor, clean: Tensor, network: Network) -> Tensor:
    """The clean value but at one position."""
    dim = position_dim(port, clean, network)
    assert port.at is not None
    changed = clean.clone()
    changed.narrow(dim, port.at, 1).copy_(value.narrow(dim, port.at, 1))
    return changed


def _hold(copies: Copies, pair: Pair, aliases: Iterable[str], senders: Mapping[int, Port]) -> None:
    """Components of a step keep their own values, but those that send theirs of the other input."""
    network = pair.one
    branches, held = network.graph.branches, set[fx.Node]()
    for alias in aliases:
        branch = branches.get(alias)
        rows = {row: sender for row, sender in senders.items() if sender.alias == alias}
        if branch is None or branch.kind == "skip":
            changes: list[tuple[Sequence[int], Change]] = [((row,), sent(pair, sender)) for row, sender in rows.items()]
            rest = [row for row in range(copies.number) if row not in rows]
            changes += [(rest, _constant(network.value(alias)))] if rest and branch is not None else []
            if changes:
                copies.change(alias, changes)
        elif branch.node not in held:
            # Of a branch in parts all are held, which is the branch itself, but for the part that sends.
            held.add(branch.node)
            parts = {row: sender for row, sender in senders.items() if sender.alias in branches}
            same = {row: sender for row, sender in parts.items() if branches[sender.alias].node is branch.node}
            own = network.forward[branch.node]
            copies.put(branch.node, {row: _sending(pair, sender, own) for row, sender in same.items()})


def _sending(pair: Pair, sender: Port, own: Tensor) -> Tensor:
    """A branch's value with one of its parts, or all of it, of the other input."""
    clean = pair.one.value(sender.alias)
    value = sent(pair, sender)(clean)
    return value if pair.one.graph.branches[sender.alias].part is None else own + (value - clean)
