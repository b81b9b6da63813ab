"""What a region is: attention, a scan, a convolution; the products and the mixing that say so."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations

import torch
from torch import fx

from jetgraph.jets.registry import values_read
from jetgraph.structure.contractions import SUMS, factors_of, labels_of, summed_by_index, weighted, written_out
from jetgraph.structure.operators import (
    CONVOLUTIONS,
    IDENTITY,
    NORMS,
    RECURRENT,
    ROOTS,
    SOFTMAX,
    is_float_tensor,
    is_mixing,
    mixes,
    multiple_of,
    packet_of,
)
from jetgraph.structure.places import is_softmax_of_neighbours
from jetgraph.structure.regions import Region
from jetgraph.structure.weighted import sums_others, sums_places

aten = torch.ops.aten


def attention_products(region: Region) -> dict[fx.Node, fx.Node]:
    """The attention products of a region, in execution order, each with the node at which its pattern starts.

    These are fused attention (which starts at itself), products with what a softmax gives, and in general each product
    of something with an earlier product, both factors of both being activations, that sums over more than one. So
    softmax may be written by hand, masked or renormalised, or be a sigmoid or nothing (linear attention, with kᵀ v
    summed up to each place too). A product is one too where it is written out, Σ q[:, :, None] ⊙ k[:, None], with rows
    and columns by broadcasting; and so is a sum over places with weights of a softmax for each, or for each place and
    feature (vector attention), or over the neighbours of a node, by an index (graph attention).
    """
    activations = {region.entry, *region.nodes, *region.context}
    scores: list[fx.Node] = []
    above: dict[fx.Node, int] = {}
    """By node, the pairwise products above it as a bit set."""
    starts: dict[fx.Node, fx.Node] = {}
    for node in region.nodes:
        made = 0
        for arg in node.all_input_nodes:
            made |= above.get(arg, 0)
        packet = packet_of(node)
        if packet is aten.scaled_dot_product_attention:
            starts[node] = node
        elif read := factors_of(node):
            factors = [arg for arg in dict.fromkeys(read) if arg in activations]
            histories = [above.get(factor, 0) for factor in factors]
            alone = next((one & ~other for one, other in permutations(histories, 2) if one & ~other), 0)
            if alone and _sums_up(node):
                starts.setdefault(node, scores[alone.bit_length() - 1])
            if len(factors) > 1:
                made |= 1 << len(scores)
                scores.append(node)
        elif packet is aten.mul and _is_summed_up(node) and activations.issuperset(node.all_input_nodes):
            made |= 1 << len(scores)
            scores.append(node)
        elif packet in SOFTMAX:
            starts |= dict.fromkeys(_weighted_by(node, region, scored=bool(made)), node)
        elif is_softmax_of_neighbours(node):
            starts |= dict.fromkeys(_summed_with(node, region), node)
        above[node] = made
    return {node: starts[node] for node in region.nodes if node in starts}


def _sums_up(product: fx.Node) -> bool:
    """A product sums over something: what spreads one value over streams with a weight for each attends to nothing."""
    told = labels_of(product)
    if told is None:
        return True
    pair, (one, other, made) = told
    shapes = [factor.meta["shape"] for factor in pair]
    return any(shapes[0][at] != 1 for at, label in enumerate(one) if label in other and label not in made)


def _is_summed_up(product: fx.Node) -> bool:
    """Every feature of one value times every one of another, which is read by cumulative sums alone."""
    shapes = [arg.meta.get("shape", ()) for arg in product.all_input_nodes]
    return (
        bool(product.users)
        and all(packet_of(user) is aten.cumsum for user in product.users)
        and len(shapes) == 2
        and len(shapes[0]) == len(shapes[1])
        and any(one == 1 != other for one, other in zip(*shapes, strict=True))
        and any(other == 1 != one for one, other in zip(*shapes, strict=True))
    )


def _weighted_by(softmax: fx.Node, region: Region, scored: bool) -> Iterator[fx.Node]:
    """The products that a softmax goes into through changes of layout alone, but those that sum experts or the
    like; a softmax that is scored by a product of two activations has none of these.
    """
    stack = [softmax]
    while stack:
        for user in stack.pop().users:
            if user not in region.node_set:
                continue
            if factors_of(user):
                if scored or not sums_others(region, user, softmax):
                    yield user
            elif packet_of(user) in IDENTITY or packet_of(user) is aten.slice:
                stack.append(user)
            elif packet_of(user) is aten.mul:
                totals = (reader for reader in user.users if reader in region.node_set and weighted(reader) is user)
                yield from (one for one in totals if written_out(one) or sums_places(region, one, softmax))


def _summed_with(weights: fx.Node, region: Region) -> Iterator[fx.Node]:
    """The sums over neighbours of what weights are multiplied with."""
    stack = [weights]
    while stack:
        for user in stack.pop().users:
            if user in region.node_set and packet_of(user) in IDENTITY:
                stack.append(user)
            elif user in region.node_set and packet_of(user) is aten.mul:
                yield from (
                    reader for reader in user.users if reader in region.node_set and summed_by_index(reader) is user
                )


def branch_kind(region: Region) -> str:
    """`attn`, `ssm`, `conv`, `mlp`, `mix` or `skip`: the first that the operators of a region show."""
    if attention_products(region):
        return "attn"
    if _scans(region):
        return "ssm"
    if any(packet_of(node) in CONVOLUTIONS for node in region.nodes):
        return "conv"
    if any(map(is_mixing, region.nodes)):
        return "mlp"
    return "skip" if region.affine and not any(map(mixes, region.nodes)) else "mix"


def map_kind(region: Region) -> str:
    """`map`, `norm` or `act`: what a map on the stream is named after."""
    if any(map(is_mixing, region.nodes)) or region.affine:
        return "map"
    return "norm" if any(packet_of(node) in NORMS | ROOTS for node in region.nodes) else "act"


def _scans(region: Region) -> bool:
    """A recurrence x_t = a_t x_{t-1} + b_t of three or more steps with varying a_t, or a cumulative operator."""
    length: dict[fx.Node, int] = {}
    """By add, the steps of the longest recurrence that ends there."""
    for node in region.nodes:
        packet = packet_of(node)
        if not is_float_tensor(node) and packet not in RECURRENT:
            continue
        if packet in RECURRENT or (packet in (aten.cumsum, aten.cumprod, aten.logcumsumexp) and not _is_running(node)):
            return True
        if packet is not aten.add:
            continue
        steps = [
            length[before]
            for product in values_read(node)
            if product in region.node_set and packet_of(product) is aten.mul
            for before in values_read(product)
            if before in length
        ]
        length[node] = 1 + max(steps, default=0)
        if length[node] >= 3:
            return True
    return False


def _is_running(node: fx.Node) -> bool:
    """A cumulative sum of totals or means, which is a statistic of all places so far, as a causal norm divides by."""
    total = node.args[0]
    return isinstance(total, fx.Node) and packet_of(multiple_of(total)) in SUMS


def working(region: Region) -> list[fx.Node]:
    """The nodes that a region is named after: its learned mixing, where there is none the other."""
    return list(filter(is_mixing, region.nodes)) or list(filter(mixes, region.nodes))
