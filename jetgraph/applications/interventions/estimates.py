"""Effects estimated to first order: one gradient tells of all edges at once what a patch of each would do.

A patch of an edge moves the receiver's entry by what the sender's change becomes on the stream; to first order the
target then changes by the product of that with the target's gradient with respect to the entry, as the receiver alone
sees it. Both are read off passes on the clean input: the gradient at all components in one backward pass, then
through each receiver, then back along the stream, on which all branches are held.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from jetgraph.algebra.outline import SINK
from jetgraph.applications.interventions.network import Network
from jetgraph.applications.interventions.others import Pair
from jetgraph.applications.interventions.ports import Port, position_dim
from jetgraph.applications.interventions.routes import Edge, sent
from jetgraph.applications.interventions.targets import Readout
from jetgraph.compilation.linear import leaf
from jetgraph.running.copies import Copies
from jetgraph.running.forward import Forward
from jetgraph.running.reals import in_double, product
from jetgraph.structure.attention import operands


def is_estimated(port: Port, network: Network) -> bool:
    """A long skip is a summand of its join by way of operators of its own: it is patched, and not estimated."""
    branch = network.graph.branches.get(port.alias)
    return branch is None or branch.kind != "skip"


def estimated(pair: Pair, edges: Sequence[Edge], readout: Readout) -> dict[Edge, Tensor]:
    """The change of the target by sender and receiver, to first order, [examples] summed over places."""
    network = pair.one
    senders = dict.fromkeys(sender for sender, _ in edges)
    changes = {port: sent(pair, port)(own) - own for port in senders for own in [network.value(port.alias)]}
    found: dict[Edge, Tensor] = {}
    with torch.inference_mode(False), torch.enable_grad():
        held, nodes = _held(network), {port: network.forward.sum_of(port.alias) for port in senders}
        points = [network.graph.structure.main.encoder.exit, *network.graph.stream.points]
        held.need(dict.fromkeys((*nodes.values(), *points, *_ends(network))))
        gradients = _gradients(network, [port for _, port in edges], readout)
        for receiver in dict.fromkeys(port for _, port in edges):
            among = [sender for sender, other in edges if other == receiver]
            if receiver.alias in network.graph.injections:
                # What enters in mid-stream reads nothing of it.
                found |= {(sender, receiver): torch.zeros(len(readout.tokens), dtype=torch.float64) for sender in among}
                continue
            entry, cotangent = _entering(network, held, receiver, gradients, readout)
            reached = dict.fromkeys(nodes[sender] for sender in among)
            back = _pulled(held[entry], cotangent, [held[node] for node in reached])
            by_node = dict(zip(reached, back, strict=True))
            for sender in among:
                found[sender, receiver] = _by_example(
                    network, sender, product(in_double(changes[sender]), in_double(by_node[nodes[sender]])), readout
                )
    return found


def _ends(network: Network) -> list[fx.Node]:
    """What branches and the decoder are entered by."""
    branches = [branch for alias in network.steps if (branch := network.graph.branches.get(alias)) is not None]
    return [network.graph.structure.decoder.nonlinear.entry, *(branch.region.entry for branch in branches)]


def _held(network: Network) -> Forward:
    """The clean pass with every branch held, in which only the stream itself has gradients."""
    copies = Copies(network.forward, None)
    encoder = network.graph.structure.main.encoder.exit
    copies.forward.values.put(encoder, leaf(network.forward[encoder]))
    branches = [branch for alias in network.steps if (branch := network.graph.branches.get(alias)) is not None]
    for node in dict.fromkeys(branch.node for branch in branches if branch.kind != "skip"):
        copies.forward.values.put(node, leaf(network.forward[node]))
    for alias in (branch.alias for branch in branches if branch.kind == "skip"):
        copies.change(alias, [((0,), lambda own, alias=alias: network.value(alias))])
    return copies.forward


def _target(readout: Readout, forward: Forward) -> Tensor:
    """What is told, summed over what is no padding."""
    logits = readout.logit(readout.read(forward)[0])
    return logits.sum() if readout.counted is None else logits[readout.counted.to(logits.device)].sum()


def _gradients(network: Network, receivers: Iterable[Port], readout: Readout) -> dict[fx.Node, Tensor]:
    """The target's gradient at what each receiver adds to: one backward pass of the whole network."""
    copies = Copies(network.forward, None)
    encoder = network.graph.structure.main.encoder.exit
    copies.forward.values.put(encoder, leaf(network.forward[encoder]))
    nodes = list(dict.fromkeys(network.forward.sum_of(port.alias) for port in receivers if port.alias != SINK))
    if not nodes:
        return {}
    copies.forward.need([*nodes, *_output(network, readout)])
    values = [copies.forward[node] for node in nodes]
    return dict(zip(nodes, _grad(_target(readout, copies.forward), values), strict=True))


def _output(network: Network, readout: Readout) -> list[fx.Node]:
    """What the logits are read from, to be computed in the one pass that has gradients."""
    inside = readout.places is not None
    return [network.graph.structure.decoder.affine.entry if inside else network.graph.traced.output]


def _entering(
    network: Network, held: Forward, receiver: Port, gradients: dict[fx.Node, Tensor], readout: Readout
) -> tuple[fx.Node, Tensor]:
    """Where a receiver is entered, and the target's gradient there as the receiver alone sees it."""
    if receiver.alias == SINK:
        point = network.graph.structure.decoder.nonlinear.entry
        return point, _grad(_target(readout, held), [held[point]])[0]
    branch = network.graph.branches[receiver.alias]
    entry = branch.region.entry
    cotangent = gradients[network.forward.sum_of(receiver.alias)]
    if receiver.at is not None and not receiver.operand:
        cotangent = _masked(receiver, cotangent, network)
    start = leaf(network.forward[entry])
    if not receiver.operand:
        return entry, _pulled(network.forward.branch(branch, start), cotangent, [start])[0]
    return entry, _by_operand(network, receiver, start, cotangent)


def _by_operand(network: Network, receiver: Port, start: Tensor, cotangent: Tensor) -> Tensor:
    """The gradient at a branch's entry by one operand of its attention alone."""
    branch, found = network.graph.branches[receiver.alias], operands(network.graph.branches[receiver.alias])
    node = found[receiver.operand].node
    copies = Copies(network.forward, None)
    for operand in found.values():
        copies.forward.values.put(operand.node, network.forward[operand.node].detach())
    own = leaf(network.forward[node])
    copies.forward.values.put(node, own)
    if branch.part is None:
        value: Any = copies.forward[branch.node]
    else:
        cut = branch.part.cut
        read = copies.forward.values.of((*cut.region.side, cut.node, *cut.held))
        value = cut.part({inner: read[inner] for inner in (cut.node, *cut.held)}, read, branch.part)
    at_operand = _pulled(value, cotangent, [own])[0]
    if receiver.at is not None:
        at_operand = _masked(receiver, at_operand, network)
    before = Copies(network.forward, None)
    before.forward.values.put(branch.region.entry, start)
    return _pulled(before.forward[node], at_operand, [start])[0]


def _masked(port: Port, value: Tensor, network: Network) -> Tensor:
    """Zero but at a port's position."""
    masked, dim = torch.zeros_like(value), position_dim(port, value, network)
    assert port.at is not None
    masked.narrow(dim, port.at, 1).copy_(value.narrow(dim, port.at, 1))
    return masked


def _grad(value: Tensor, at: Sequence[Tensor]) -> list[Tensor]:
    return _pulled(value, torch.ones_like(value), at)


def _pulled(value: Tensor, cotangent: Tensor, at: Sequence[Tensor]) -> list[Tensor]:
    """A cotangent of a value pulled back to others; zeros where it does not depend on them."""
    if not value.requires_grad:
        return [torch.zeros_like(one) for one in at]
    followed = [number for number, one in enumerate(at) if one.requires_grad]
    found = torch.autograd.grad(value, [at[one] for one in followed], cotangent, retain_graph=True, allow_unused=True)
    by_number = dict(zip(followed, found, strict=True))
    return [torch.zeros_like(one) if (got := by_number.get(number)) is None else got for number, one in enumerate(at)]


def _by_example(network: Network, sender: Port, products: Tensor, readout: Readout) -> Tensor:
    """The change of the target, [examples] where a value counts them."""
    examples, batch = readout.tokens.shape[0], network.rows(sender.alias)[0]
    if batch is not None and products.shape[batch] == examples:
        return products.detach().movedim(batch, 0).reshape(examples, -1).sum(1).cpu()
    # Of what all examples share only the sum is known.
    return (products.detach().sum().cpu() / examples).expand(examples)
