"""Traced graph → residual structure: joins, branches, maps on the stream, encoder and decoder.

Only the graph is read: dataflow says what is a skip and what is a branch, operators say what kind a branch is, and
module paths only give names (design: "the graph tells"). The analysis finds

    join    a sum (a tree of adds) or concatenation with a skip, i.e. an operand that is the fork itself or an affine
            image of it, and a branch, i.e. an operand that depends on the fork through a learned mixing operator;
    stream  a chain of joins, each forking where the one before it ended, up to maps such as a post-norm;
    long    an operand of a join that reads an earlier point of the stream than the fork: a skip over several joins, an
            input that is added again, a weighted sum of layers;
    nesting a join inside another one's branch has a depth of 1 or more and is listed, but expanded with that branch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise, permutations
from typing import Any

import torch
from torch import fx
from torch.fx.node import map_arg

from jetgraph.algebra.program import SINK, JoinStep, MapStep, Site, SkipKind, Source, SourceKind
from jetgraph.errors import TraceError
from jetgraph.jets.registry import adds_constant, is_affine, is_floating, values_read
from jetgraph.structure.naming import BlockNumbers, Uniquely, branch_path, common_path, stream_prefixes
from jetgraph.structure.regions import (
    Branch,
    Decoder,
    Encoder,
    Join,
    JoinStage,
    MapStage,
    Region,
    Stage,
    Stream,
    Structure,
    Summand,
)
from jetgraph.tracing.trace import Traced

aten = torch.ops.aten


@dataclass(frozen=True, eq=False)
class Way:
    """A chain of joins as the way of a stream: its start, and before each join the maps that lead to it."""

    encoder: Encoder
    legs: list[tuple[list[Region], Join]]


@dataclass(frozen=True)
class Numbers:
    """How the blocks of a chain are numbered."""

    prefix: str
    blocks: BlockNumbers
    of_joins: tuple[int, ...]


def analyse(traced: Traced) -> Structure:
    """Find the residual structure of a traced graph; a graph without a join has one stream without stages."""
    return _Analysis(traced).structure()


# Dataflow

_LOOKUPS = {aten.embedding: 1, aten.index_select: 2, aten.gather: 2, aten.index: 1}
"""Operators that look values up in a table, with the place of the indices."""

_LAYOUT = {
    aten.view, aten._unsafe_view, aten.reshape, aten.flatten, aten.unflatten, aten.permute, aten.transpose, aten.t,
    aten.unsqueeze, aten.squeeze, aten.movedim, aten.expand,
}  # fmt: skip
"""Operators that move or group dimensions."""

_IDENTITY = _LAYOUT | {
    aten.clone, aten.dropout, aten.alias, aten.detach, aten._to_copy, aten.to, aten.contiguous, aten.native_dropout,
}  # fmt: skip
"""Affine operators that leave the stream what it is, up to layout and precision."""

_SCALES = {aten.mul, aten.div, aten.neg}

_RECURRENT = {
    aten.lstm, aten.gru, aten.rnn_tanh, aten.rnn_relu,
    aten.lstm_cell, aten.gru_cell, aten.rnn_tanh_cell, aten.rnn_relu_cell,
}  # fmt: skip
"""Recurrent layers, and steps of them, that are one operator."""

_MIXING = _RECURRENT | {
    aten.linear, aten.addmm, aten.mm, aten.bmm, aten.baddbmm, aten.matmul, aten.mv, aten.einsum,
    aten.convolution, aten.conv1d,
    aten.conv2d, aten.conv3d, aten.conv_transpose1d, aten.conv_transpose2d, aten.conv_transpose3d,
    aten.scaled_dot_product_attention, aten._grouped_mm, aten.bilinear,
}  # fmt: skip
"""Learned mixing: operators that combine features or positions through a product."""

_WEIGHTLESS = {
    aten.avg_pool1d, aten.avg_pool2d, aten.avg_pool3d, aten.max_pool1d, aten.max_pool2d, aten.max_pool3d,
    aten.max_pool1d_with_indices, aten.max_pool2d_with_indices, aten.max_pool3d_with_indices,
    aten.cumsum, aten.cumprod, aten.logcumsumexp, aten.cummax, aten.cummin, aten.roll,
    aten.fft_fft, aten.fft_ifft, aten.fft_rfft, aten.fft_irfft, aten.fft_hfft, aten.fft_ihfft, aten.fft_fft2,
    aten.fft_ifft2, aten.fft_rfft2, aten.fft_irfft2, aten.fft_fftn, aten.fft_ifftn, aten.fft_rfftn, aten.fft_irfftn,
}  # fmt: skip
"""Operators that combine positions or features in a fixed way."""

_CONVOLUTIONS = {packet for packet in _MIXING if "conv" in str(packet)}
_PRODUCTS = {aten.bmm, aten.baddbmm, aten.matmul, aten.mm, aten.einsum}
_SOFTMAX = {aten.softmax, aten._softmax, aten._safe_softmax}
_NORMS = {
    aten.layer_norm, aten.native_layer_norm, aten.rms_norm, aten._fused_rms_norm, aten.group_norm,
    aten.native_group_norm, aten.batch_norm,
    aten._native_batch_norm_legit_no_training, aten.instance_norm, aten.rsqrt, aten.sqrt,
}  # fmt: skip


def _packet(node: fx.Node) -> Any:
    return node.target.overloadpacket if isinstance(node.target, torch._ops.OpOverload) else node.target


def is_mixing(node: fx.Node) -> bool:
    """The operator combines features or positions through a product."""
    packet = _packet(node)
    return packet in _MIXING or (isinstance(packet, torch._ops.OpOverloadPacket) and "grouped_mm" in str(packet))


def mixes(node: fx.Node) -> bool:
    """The operator combines features or positions, learned or not."""
    return is_mixing(node) or (_packet(node) in _WEIGHTLESS and is_floating(node))


def attention_products(region: Region) -> dict[fx.Node, fx.Node]:
    """The attention products of a region, in execution order, each with the node at which its pattern starts.

    These are fused attention (which starts at itself), products with what a softmax gives, and in general each product
    of something with an earlier product, both factors of both being activations. So softmax may be written by hand,
    masked or renormalised, or be a sigmoid or nothing (linear attention).
    """
    activations = {region.entry, *region.nodes, *region.context}
    scores: list[fx.Node] = []
    above: dict[fx.Node, int] = {}
    """By node, the pairwise products above it as a bit set."""
    found: dict[fx.Node, fx.Node] = {}
    for node in region.nodes:
        made = 0
        for arg in node.all_input_nodes:
            made |= above.get(arg, 0)
        packet = _packet(node)
        if packet is aten.scaled_dot_product_attention:
            found[node] = node
        elif packet in _PRODUCTS:
            factors = [arg for arg in node.all_input_nodes if arg in activations]
            histories = [above.get(factor, 0) for factor in factors]
            alone = next((one & ~other for one, other in permutations(histories, 2) if one & ~other), 0)
            if alone:
                found.setdefault(node, scores[alone.bit_length() - 1])
            if len(factors) > 1:
                made |= 1 << len(scores)
                scores.append(node)
        elif packet in _SOFTMAX:
            found |= dict.fromkeys((product for product in _weighted_by(node) if product in region.node_set), node)
        above[node] = made
    return {node: found[node] for node in region.nodes if node in found}


def _weighted_by(softmax: fx.Node) -> Iterator[fx.Node]:
    """The products that a softmax goes into through changes of layout alone."""
    stack = [softmax]
    while stack:
        for user in stack.pop().users:
            if _packet(user) in _PRODUCTS:
                yield user
            elif _packet(user) in _IDENTITY or _packet(user) is aten.slice:
                stack.append(user)


def _is_float(node: fx.Node) -> bool:
    """The node is a tensor of a floating or complex type."""
    return "dtype" in node.meta and is_floating(node)


class _Analysis:
    """The graph's dataflow, and the search for joins over it."""

    def __init__(self, traced: Traced) -> None:
        self.traced = traced
        self.nodes = [node for node in traced.graph.nodes if node.op != "output"]
        self.position = {node: index for index, node in enumerate(self.nodes)}
        self.read = {node: values_read(node) for node in self.nodes}
        self.flow = self._flow()
        self.parents = {node: [arg for arg in self.read[node] if arg in self.flow] for node in self.nodes}
        self.carriers = {node: [arg for arg in found if is_floating(arg)] for node, found in self.parents.items()}
        """The parents that can carry the stream on; indices, masks and comparisons only steer it."""
        # Bit sets of flow ancestors make "does a depend on b" one operation on graphs of tens of thousands of nodes.
        self.above: dict[fx.Node, int] = {}
        for node in self.nodes:
            if node in self.flow:
                bits = 1 << self.position[node]
                for parent in self.parents[node]:
                    bits |= self.above[parent]
                self.above[node] = bits

    def _flow(self) -> set[fx.Node]:
        """Everything from the first floating tensors on that depend on the user's input: inputs of such a type, and
        what is looked up by others.
        """
        varying: set[fx.Node] = set()
        found: set[fx.Node] = set()
        for node in self.nodes:
            if node.op == "placeholder":
                if self.traced.bindings[node.name].kind == "input":
                    varying.add(node)
                    if _is_float(node):
                        found.add(node)
                continue
            if not any(arg in varying for arg in self.read[node]):
                continue
            varying.add(node)
            at = _LOOKUPS.get(_packet(node))
            looked_up = (
                at is not None
                and _is_float(node)
                and any(arg in varying for arg in _node_leaves(node.args[at : at + 1]))
            )
            if looked_up or any(arg in found for arg in self.read[node]):
                found.add(node)
        return found

    def depends(self, node: fx.Node, on: fx.Node) -> bool:
        return node in self.above and bool(self.above[node] >> self.position[on] & 1)

    def between(self, entry: fx.Node, exit: fx.Node) -> tuple[fx.Node, ...]:
        """Nodes on ways from entry to exit, without the entry, in execution order."""
        if entry is exit:
            return ()
        found = {exit}
        stack = [exit]
        while stack:
            for parent in self.parents[stack.pop()]:
                if parent is not entry and parent not in found and self.depends(parent, entry):
                    found.add(parent)
                    stack.append(parent)
        return tuple(sorted(found, key=self.position.__getitem__))

    def region(self, entry: fx.Node, exit: fx.Node) -> Region:
        nodes = self.between(entry, exit)
        inside = {entry, *nodes}
        side = dict.fromkeys(arg for node in nodes for arg in node.all_input_nodes if arg not in inside)
        context = frozenset(side.keys() & self.flow)
        affine = all(is_affine(node, inside.__contains__) for node in nodes)
        bias = affine and any(adds_constant(node, inside.__contains__) for node in nodes)
        return Region(entry, exit, nodes, tuple(side), context, affine, bias)

    # Joins

    def joins(self) -> list[Join]:
        """Every join of the graph, at depth 0 and below, in topological order; names are given later."""
        found: dict[fx.Node, Join] = {}
        for node in self.nodes:
            if node not in self.flow:
                continue
            packet = _packet(node)
            if packet is aten.add and self._is_sum(node):
                join = self._sum(node, found)
            elif packet is aten.cat and _is_float(node) and len(self.parents[node]) > 1:
                join = self._classify(node, tuple(_node_leaves(node.args[:1])), (node,), found, concat=True)
            else:
                continue
            if join is not None:
                for absorbed in join.adds[:-1]:
                    found.pop(absorbed, None)
                found[node] = join
        return sorted(found.values(), key=lambda join: self.position[join.node])

    def _is_sum(self, node: fx.Node) -> bool:
        return bool(
            len(node.args) >= 2
            and node.kwargs.get("alpha", 1) == 1
            and all(isinstance(arg, fx.Node) and _is_float(arg) for arg in node.args[:2])
        )

    def _sum(self, node: fx.Node, found: Mapping[fx.Node, Join]) -> Join | None:
        """The join that ends at this add. Adds below it belong to it unless they are joins of another fork."""
        closed: set[fx.Node] = set()
        while True:
            leaves: list[fx.Node] = []
            adds: list[fx.Node] = []
            self._flatten(node, node, closed, leaves, adds)
            join = self._classify(node, tuple(leaves), tuple(sorted(adds, key=self.position.__getitem__)), found)
            inner = [add for add in adds if add is not node and add in found]
            if join is not None:
                # A sum of points alone, without a branch, is part of the sum that it goes into.
                inner = [add for add in inner if found[add].fork is not join.fork and found[add].branches]
            if not inner:
                return join
            # The outermost of them first: opening it may hide the others.
            closed.add(max(inner, key=self.position.__getitem__))

    def _flatten(
        self, node: fx.Node, root: fx.Node, closed: set[fx.Node], leaves: list[fx.Node], adds: list[fx.Node]
    ) -> None:
        inner = node is root or (
            node not in closed and _packet(node) is aten.add and self._is_sum(node) and len(node.users) == 1
        )
        if not inner or node not in self.flow:
            leaves.append(node)
            return
        adds.append(node)
        for arg in node.args[:2]:
            assert isinstance(arg, fx.Node)
            self._flatten(arg, root, closed, leaves, adds)

    def _classify(
        self,
        node: fx.Node,
        operands: tuple[fx.Node, ...],
        adds: tuple[fx.Node, ...],
        found: Mapping[fx.Node, Join],
        *,
        concat: bool = False,
    ) -> Join | None:
        """The join over these operands, if one of them is a skip and another one a branch of the same fork; `found` are
        the joins before it.
        """
        flowing = [operand for operand in operands if operand in self.flow]
        again = {operand for operand, number in Counter(flowing).items() if number > 1}
        if len(flowing) < 2 or len(again) > 1:
            return None
        candidates: list[Join] = []
        # What is added twice is the skip, or there is none.
        for operand in again or flowing:
            others = [other for other in flowing if other is not operand]
            for fork, kind in self._affine_history(operand):
                dependent = [other for other in others if self.depends(other, fork)]
                if not dependent:
                    continue
                # The nearest node that another operand depends on is the fork or there is none: through any
                # earlier one, skip and branch would share their way, as in x + 0.044715 x³ after a linear layer.
                if concat and kind == "projection":
                    break
                regions = [self.region(fork, other) for other in dependent]
                if not any(mixes(node) for region in regions for node in region.nodes):
                    break
                if kind == "projection" and all(region.affine for region in regions):
                    break
                candidates.append(
                    Join(
                        name="",
                        alias="",
                        kind="concat" if concat else kind,
                        depth=0,
                        fork=fork,
                        node=node,
                        skip=self.region(fork, operand),
                        branches=tuple(Branch("", "", self._kind(region), region) for region in regions),
                        injections=_without(operands, operand, dependent),
                        operands=operands,
                        adds=adds,
                    )
                )
                break
        chosen = [join for join in candidates if not any(self._earlier(join, other, found) for other in candidates)]
        return self._latest(max(chosen, key=self._preference), found) if chosen else None

    def _earlier(self, join: Join, other: Join, found: Mapping[fx.Node, Join]) -> bool:
        """What `join` takes for a branch is the skip of `other`, which forks later in the same stream."""
        return (
            other.fork is not join.fork
            and other.skip.exit in {branch.node for branch in join.branches}
            and self._leads(join.fork, other.fork, found)
        )

    def _leads(self, start: fx.Node, end: fx.Node, found: Mapping[fx.Node, Join]) -> bool:
        """Joins, one at least, and maps between them lead from one value of a stream to another."""
        join = self._gate(end, found)
        while join is not None and self.position[join.fork] > self.position[start]:
            before = self._gate(join.fork, found)
            if before is None:
                return self._dominates(start, join.fork)
            join = before
        return join is not None and join.fork is start

    def _latest(self, join: Join, found: Mapping[fx.Node, Join]) -> Join:
        """The join with its fork at the latest point of the stream that it adds an affine image of.

        In cat(h_4, h_1), where skips lead from h_1 on to h_4, the stream is h_4, and h_1 is read by a long skip.
        """
        latest: tuple[fx.Node, SkipKind, fx.Node] | None = None
        for operand in (branch.node for branch in join.branches):
            for node, kind in self._affine_past(operand):
                if node in found:
                    after = self.position[latest[0] if latest else join.fork]
                    if self.position[node] > after and self._skips(join, node, kind, found):
                        latest = node, kind, operand
                    break
        if latest is None:
            return join
        fork, kind, operand = latest
        dependent = [o for o in join.operands if o in self.flow and o is not operand and self.depends(o, fork)]
        regions = [self.region(fork, other) for other in dependent]
        return replace(
            join,
            kind=join.kind if join.kind == "concat" else kind,
            fork=fork,
            skip=self.region(fork, operand),
            branches=tuple(Branch("", "", self._kind(region), region) for region in regions),
            injections=_without(join.operands, operand, dependent),
        )

    def _skips(self, join: Join, end: fx.Node, kind: SkipKind, found: Mapping[fx.Node, Join]) -> bool:
        """Skips alone lead from the fork of a join to another value of the same stream, and on to an operand, which is
        an image of that of this kind.

        They are identities and scales: a branch that projects the stream, or projects what its own joins have made of
        it, is nested. Only where a concatenation skips several joins may they be projections, as from level to level of
        a U-net.
        """
        node, start, joins, widest = end, join.fork, 0, _SKIP_RANK[kind]
        while self.position[node] > self.position[start]:
            past = self._affine_past(node)
            reached = next((pair for pair in past if pair[0] in found or pair[0] is start), None)
            if reached is None:
                return False
            node, image = reached
            widest = max(widest, _SKIP_RANK[image])
            if node is not start:
                inner = found[node]
                joins += 1
                widest = max(widest, _SKIP_RANK[inner.kind])
                node = inner.fork
        same = widest <= _SKIP_RANK["scaled"] or (join.kind == "concat" and joins > 1)
        return node is start and same

    def _preference(self, join: Join) -> tuple[bool, bool, int, int, int]:
        """Which of several skips is the stream's: a direct one, whose fork alone feeds the branches, and most."""
        alone = all(self._dominates(join.fork, branch.node) for branch in join.branches)
        return (
            join.kind != "projection",
            alone,
            len(join.branches),
            -_SKIP_RANK[join.kind],
            self.position[join.fork],
        )

    def _dominates(self, above: fx.Node, node: fx.Node) -> bool:
        """Every flow path to the node passes `above`."""
        current: fx.Node | None = node
        while current is not None and self.position[current] > self.position[above]:
            current = self.bottleneck(current)
        return current is above

    def _affine_history(self, operand: fx.Node) -> Iterator[tuple[fx.Node, SkipKind]]:
        """The operand and the nodes of which it is an affine image, nearest first, each with the kind of that image."""
        kind: SkipKind = "identity"
        node = operand
        steering: list[fx.Node] = []
        while not any(self.depends(other, node) for other in steering):
            if _is_float(node):
                yield node, kind
            parents = self.carriers[node]
            if len(parents) != 1 or not is_affine(node, lambda other, parent=parents[0]: other is parent):
                return
            kind = max(kind, self._image(node), key=_SKIP_RANK.__getitem__)
            steering += [parent for parent in self.parents[node] if parent is not parents[0]]
            node = parents[0]

    def _affine_past(self, operand: fx.Node) -> Iterator[tuple[fx.Node, SkipKind]]:
        """As `_affine_history`, and on through sums of several images of one node."""
        kind: SkipKind = "identity"
        node: fx.Node | None = operand
        while node is not None:
            last = node
            for last, image in self._affine_history(node):
                yield last, max(kind, image, key=_SKIP_RANK.__getitem__)
            above = self.bottleneck(last)
            if above is None or above is node:
                return
            region = self.region(above, last)
            if not region.affine:
                return
            images: list[SkipKind] = [self._image(inner) for inner in region.nodes if _packet(inner) is not aten.add]
            kind, node = max([kind, "scaled", *images], key=_SKIP_RANK.__getitem__), above

    def _image(self, node: fx.Node) -> SkipKind:
        packet = _packet(node)
        if packet in _IDENTITY:
            return "identity"
        if packet in _SCALES:
            return "scaled"
        if (
            packet is aten.slice
            and len(self.carriers[node]) == 1
            and node.meta.get("shape") == self.carriers[node][0].meta.get("shape")
        ):
            return "identity"
        return "projection"

    def _kind(self, region: Region) -> str:
        if attention_products(region):
            return "attn"
        if self._scans(region):
            return "ssm"
        if any(_packet(node) in _CONVOLUTIONS for node in region.nodes):
            return "conv"
        if any(map(is_mixing, region.nodes)):
            return "mlp"
        return "skip" if region.affine and not any(map(mixes, region.nodes)) else "mix"

    def _scans(self, region: Region) -> bool:
        """A recurrence x_t = a_t x_{t-1} + b_t of three or more steps with varying a_t, or a cumulative operator."""
        length: dict[fx.Node, int] = {}
        inside = set(region.nodes)
        for node in region.nodes:
            packet = _packet(node)
            if not _is_float(node) and packet not in _RECURRENT:
                continue
            if packet in (aten.cumsum, aten.cumprod, aten.logcumsumexp) or packet in _RECURRENT:
                return True
            if packet is not aten.add:
                continue
            steps = [
                length[before]
                for product in self.parents[node]
                if product in inside and _packet(product) is aten.mul
                for before in self.parents[product]
                if before in length
            ]
            length[node] = 1 + max(steps, default=0)
            if length[node] >= 3:
                return True
        return False

    # Structure

    def structure(self) -> Structure:
        joins = self._nest(self.joins())
        chains = self._chains([join for join in joins if join.depth == 0])
        output = self.traced.output
        if output not in self.flow:
            raise TraceError(
                f"the output {self.traced.output_name!r} does not depend on the model's inputs through "
                f"differentiable operators"
            )
        ways = list(map(self._way, chains))
        chains = [[join for _, join in way.legs] for way in ways]
        joins = [{join.node: join for chain in chains for join in chain}.get(join.node, join) for join in joins]
        named, naming = self._named(joins, chains)
        main = self._main(chains, output)
        streams: list[Stream] = []
        for way, chain in zip(ways, chains, strict=True):
            legs = [(maps, named[join.node]) for maps, join in way.legs]
            stream = self._stream(Way(way.encoder, legs), naming[chain[0].node])
            if chain is main:
                last = self._cut(stream, output)
            else:
                streams.append(stream)
        streams.append(Stream(self._encoder(self._first_value(output)), ()) if main is None else last)
        decoder = self._decoder(streams[-1].end, output)
        return Structure(self.traced, tuple(streams), tuple(named[join.node] for join in joins), decoder)

    def _named(self, joins: list[Join], chains: list[list[Join]]) -> tuple[dict[fx.Node, Join], dict[fx.Node, Numbers]]:
        """The same joins with names, by node; and the numbers of blocks, by the node of a chain's first join."""
        naming: dict[fx.Node, Numbers] = {}
        unique = Uniquely()
        named: dict[fx.Node, Join] = {}
        paths = {
            (join.node, branch.node): branch_path(
                join.node.meta["module_path"],
                [node.meta["module_path"] for node in _working(branch.region)],
                self.traced.module_types,
            )
            for join in joins
            for branch in join.branches
        }
        prefixes = stream_prefixes(
            [
                common_path(paths[join.node, b.node] for join in chain for b in join.branches if b.kind != "skip")
                for chain in chains
            ]
        )
        for chain, prefix in zip(chains, prefixes, strict=True):
            numbers = self._numbered(chain, paths, prefix)
            naming[chain[0].node] = numbers
            for join, number in zip(chain, numbers.of_joins, strict=True):
                named[join.node] = _rename(join, paths, lambda kind, at=f"{prefix}L{number}": unique(f"{at}.{kind}"))
        # A join that contains another one ends after it, so that backwards every outer join has its name first.
        for join in reversed(joins):
            if join.depth:
                parent = named[self._innermost(join, joins).node]
                at = next(b.alias for b in parent.branches if self.depends(b.node, join.node))
                named[join.node] = _rename(join, paths, lambda kind, at=at: unique(f"{at}.{kind}"))
        return named, naming

    def _numbered(self, chain: list[Join], paths: Mapping[tuple[fx.Node, fx.Node], str], prefix: str) -> Numbers:
        blocks = BlockNumbers(self.traced.module_types)
        counted: list[bool] = []
        for join in chain:
            names = [paths[join.node, branch.node] for branch in join.branches]
            # What only adds earlier points, outside of all blocks, belongs to the block before it.
            idle = all(branch.kind == "skip" for branch in join.branches)
            counted.append(not idle or any(map(blocks.block, names)))
            if counted[-1]:
                blocks.add(names)
        given = iter(blocks.numbers())
        numbers: list[int] = []
        for own in counted:
            numbers.append(next(given) if own else numbers[-1] if numbers else 0)
        return Numbers(prefix, blocks, tuple(numbers))

    def _innermost(self, join: Join, joins: list[Join]) -> Join:
        """The closest join that has this one inside a branch."""
        return max((other for other in joins if self._inside(join, other)), key=lambda other: other.depth)

    def _inside(self, inner: Join, outer: Join) -> bool:
        """The whole of `inner`, from fork to sum, lies in a branch of `outer`."""
        return inner.node is not outer.node and any(
            inner.node in nodes and (inner.fork in nodes or inner.fork is outer.fork)
            for nodes in (branch.region.node_set for branch in outer.branches)
        )

    def _nest(self, joins: list[Join]) -> list[Join]:
        return [replace(join, depth=sum(self._inside(join, other) for other in joins)) for join in joins]

    def _cut(self, stream: Stream, output: fx.Node) -> Stream:
        """The stream up to the last point through which alone its start reaches the output.

        Where the output also reads earlier points (a weighted sum over layers), or a skip or map does, those reads
        would pass for constants; what follows belongs to the decoder then.
        """
        start = stream.encoder.exit

        def reads_start(region: Region) -> bool:
            return any(self.depends(node, start) for node in region.side)

        length = 0
        for stage in stream.stages:
            if reads_start(stage.join.skip if isinstance(stage, JoinStage) else stage.region):
                break
            length += 1
        while length and reads_start(self.region(stream.points[length], output)):
            length -= 1
        return Stream(stream.encoder, stream.stages[:length])

    def _chains(self, joins: list[Join]) -> list[list[Join]]:
        """Joins as chains in which each one forks from the one before it, up to a map."""
        ends = {join.node: join for join in joins}
        chains: list[list[Join]] = []
        last: dict[fx.Node, list[Join]] = {}
        for join in joins:
            before = self._gate(join.fork, ends)
            chain = last.pop(before.node, None) if before else None
            if chain is None:
                chain = []
                chains.append(chain)
            chain.append(join)
            last[join.node] = chain
        return chains

    def _gate(self, node: fx.Node, ends: Mapping[fx.Node, Join]) -> Join | None:
        """The join whose value alone reaches this node, if there is one."""
        frontier: set[fx.Node] = set()
        seen = {node}
        stack = [node]
        while stack:
            current = stack.pop()
            if current in ends:
                frontier.add(current)
                continue
            if not self.carriers[current]:
                return None
            for parent in self.carriers[current]:
                if parent not in seen:
                    seen.add(parent)
                    stack.append(parent)
        return ends[frontier.pop()] if len(frontier) == 1 else None

    def _main(self, chains: list[list[Join]], output: fx.Node) -> list[Join] | None:
        """The chain that leads to the output: the one whose end is nearest to it."""
        reaching = [chain for chain in chains if self.depends(output, chain[-1].node)]
        return max(reaching, key=lambda chain: self.position[chain[-1].node], default=None)

    def _way(self, chain: list[Join]) -> Way:
        """The points of a chain of joins: where it starts, and the maps before each of its joins."""
        encoder = self._encoder(self._start(chain))
        legs: list[tuple[list[Region], Join]] = []
        points = [encoder.exit]
        for join in chain:
            if join.fork is not points[-1]:
                join = self._rebased(join, points[-1])
            maps = self._pieces(points[-1], join.fork) if join.fork is not points[-1] else []
            points += [region.exit for region in maps]
            join = self._reading(join, points)
            legs.append((maps, join))
            points.append(join.node)
        return Way(encoder, legs)

    def _start(self, chain: list[Join]) -> fx.Node:
        """Where the stream of a chain starts: at its first fork, or before it at what joins further on add again."""
        start = chain[0].fork
        added = [operand for join in chain for operand in join.injections if operand in self.flow]
        for operand in added:
            node: fx.Node | None = start
            while node is not None and not self.depends(operand, node):
                node = self.bottleneck(node)
            start = node or start
        return start

    def _reading(self, join: Join, points: list[fx.Node]) -> Join:
        """The join with what it adds of earlier points as branches that read those."""
        regions: dict[int, Region] = {}
        for number, operand in enumerate(join.injections):
            for point in reversed(points):
                if self.depends(operand, point):
                    region = self.region(point, operand)
                    if not any(self.depends(node, points[0]) for node in region.side):
                        regions[number] = region
                    break
        if not regions:
            return join
        found = tuple(Branch("", "", self._kind(region), region) for region in regions.values())
        left = tuple(operand for number, operand in enumerate(join.injections) if number not in regions)
        return replace(join, branches=join.branches + found, injections=left)

    def _stream(self, way: Way, numbers: Numbers) -> Stream:
        encoder, blocks = way.encoder, numbers.blocks
        unique = Uniquely()
        stages: list[Stage] = []
        points = [encoder.exit]
        for (maps, join), before in zip(way.legs, (None, *numbers.of_joins), strict=False):
            for region in maps:
                work = [node for node in region.nodes if self._image(node) != "identity"] or region.nodes
                path = common_path(node.meta["module_path"] for node in work)
                number = blocks.number(path) if before is None or blocks.number(path) is not None else before
                at = numbers.prefix if number is None else f"{numbers.prefix}L{number}."
                stages.append(self._map(region, at, path, unique))
                points.append(region.exit)
            sites = tuple(_site(branch, points) for branch in join.branches)
            injections = tuple(
                Source(
                    f"{join.alias}.in" + (f".{i}" if i > 1 else ""), node.meta["module_path"], self._source_kind(node)
                )
                for i, node in enumerate(join.injections, 1)
            )
            step = JoinStep(join.alias, join.kind, join.skip.bias, sites, injections)
            stages.append(JoinStage(step, join, self.region(join.fork, join.node)))
            points.append(join.node)
        return Stream(encoder, tuple(stages))

    def _rebased(self, join: Join, point: fx.Node) -> Join:
        """The join with its fork at `point`, if only layout and precision change from there; no map stands
        between then.
        """
        if any(self._image(node) != "identity" for node in self.between(point, join.fork)):
            return join
        branches = tuple(replace(b, region=self.region(point, b.region.exit)) for b in join.branches)
        return replace(join, fork=point, skip=self.region(point, join.skip.exit), branches=branches)

    def _pieces(self, entry: fx.Node, exit: fx.Node) -> list[Region]:
        """A map in up to three: affine pieces at its ends that change the stream's layout stand on their own.

        The pooling and projection around a norm (patch merging, factorised embeddings) are then distributed over
        terms, and what is left as nonlinear keeps the shape.
        """
        cuts = [exit]
        while cuts[-1] is not entry:
            above = self.bottleneck(cuts[-1])
            if above is None or self.position[above] < self.position[entry]:
                return [self.region(entry, exit)]
            cuts.append(above)
        cuts.reverse()
        affine = [self.region(one, other).affine for one, other in pairwise(cuts)]
        if all(affine):
            return [self.region(entry, exit)]
        first, last = affine.index(False), len(affine) - affine[::-1].index(False)
        start = first if self._reshapes(entry, cuts[first]) else 0
        stop = last if self._reshapes(cuts[last], exit) else len(cuts) - 1
        ends = list(dict.fromkeys([0, start, stop, len(cuts) - 1]))
        return [self.region(cuts[one], cuts[other]) for one, other in pairwise(ends)]

    def _reshapes(self, entry: fx.Node, exit: fx.Node) -> bool:
        """Between these the stream changes its shape or the order of its dimensions."""
        return entry.meta["shape"] != exit.meta["shape"] or any(
            _packet(node) in _LAYOUT for node in self.between(entry, exit)
        )

    def _map(self, region: Region, at: str, path: str, unique: Uniquely) -> MapStage:
        if any(map(is_mixing, region.nodes)) or region.affine:
            kind = "map"
        elif any(_packet(node) in _NORMS for node in region.nodes):
            kind = "norm"
        else:
            kind = "act"
        site = Site(unique(f"{at}{kind}"), path, kind, "map", region.affine, region.bias, region.held_bias)
        return MapStage(MapStep(site), region)

    def _decoder(self, end: fx.Node, output: fx.Node) -> Decoder:
        """Split at the earliest node from which on everything is affine along a chain."""
        split = node = output
        while node is not end:
            parents = [parent for parent in self.parents[node] if parent is end or self.depends(parent, end)]
            if len(parents) != 1 or not is_affine(node, lambda other, parent=parents[0]: other is parent):
                break
            node = parents[0]
            if _is_float(node):
                split = node
        nonlinear, affine = self.region(end, split), self.region(split, output)
        if not affine.affine:
            raise AssertionError("the affine suffix is affine by construction")
        mixing = [node.meta["module_path"] for node in affine.nodes if is_mixing(node)]
        path = mixing[-1] if mixing else output.meta["module_path"]
        site = Site(SINK, path, SINK, "decoder", not nonlinear.nodes, affine.bias, nonlinear.held_bias)
        return Decoder(nonlinear, affine, site)

    # Encoder

    def _first_value(self, output: fx.Node) -> fx.Node:
        """Where the encoder of a model without joins ends: at the first value that depends on the user's input."""
        node = output
        while (above := self.bottleneck(node)) is not None:
            node = above
        return node

    def _encoder(self, exit: fx.Node) -> Encoder:
        """Split a value into the linear images of its leaves and a constant.

        Where the value is a nonlinear function of one earlier sum of two or more parts (BERT's norm over three
        embeddings), the split is made there; the stream then starts earlier, with that function as its first map.
        """
        node: fx.Node | None = exit
        while node is not None:
            encoder = self._split(node)
            if sum(summand.source.kind != "bias" for summand in encoder.summands) > 1:
                return encoder
            leaf = encoder.leaves[0] if encoder.leaves else node
            node = self.bottleneck(leaf)
        return self._split(exit)

    def bottleneck(self, node: fx.Node) -> fx.Node | None:
        """The nearest tensor through which every way to the node passes, if there is one."""
        frontier = set(self.parents[node])
        while frontier:
            latest = max(frontier, key=self.position.__getitem__)
            if len(frontier) == 1 and _is_float(latest):
                return latest
            frontier.remove(latest)
            if not self.parents[latest]:
                return None
            frontier.update(self.parents[latest])
        return None

    def _split(self, exit: fx.Node) -> Encoder:
        nodes: set[fx.Node] = set()
        flowing: list[fx.Node] = []
        added: list[fx.Node] = []
        stack = [exit]
        while stack:
            node = stack.pop()
            parents = self.parents[node]
            if not parents or not self._splits(node):
                if node not in flowing:
                    flowing.append(node)
                continue
            if node in nodes:
                continue
            nodes.add(node)
            if _packet(node) in (aten.add, aten.cat):
                for arg in _node_leaves(node.args):
                    if arg not in self.flow and len(arg.meta.get("shape", ())) > 1 and arg not in added:
                        added.append(arg)
            stack.extend(reversed(parents))
        order = tuple(sorted(nodes, key=self.position.__getitem__))
        kinds: list[tuple[SourceKind, fx.Node | None]] = []
        for leaf in flowing:
            kinds.append(("embed", leaf))
        for leaf in added:
            kinds.append(("pos", leaf))
        varying = {*flowing, *added, *nodes}
        if any(adds_constant(node, varying.__contains__) for node in order):
            kinds.append(("bias", None))
        counts = Counter[str]()
        summands = []
        for kind, leaf in kinds:
            counts[kind] += 1
            alias = kind if counts[kind] == 1 else f"{kind}{counts[kind]}"
            path = leaf.meta.get("module_path", "") if leaf is not None else ""
            if leaf is not None and leaf.op == "placeholder":
                path = self.traced.bindings[leaf.name].name
            summands.append(Summand(Source(alias, path, kind), leaf))
        return Encoder(exit, order, tuple(summands))

    def _splits(self, node: fx.Node) -> bool:
        """The node is affine in what flows into it; a part of a tuple is if the tuple is."""
        return is_affine(node, self.flow.__contains__) and all(
            "dtype" in parent.meta or (self.parents[parent] and self._splits(parent)) for parent in self.parents[node]
        )

    def _source_kind(self, node: fx.Node) -> SourceKind:
        return "embed" if node in self.flow else "pos"


def _site(branch: Branch, points: list[fx.Node]) -> Site:
    """A branch as a site of the step after these points."""
    region = branch.region
    reads = points.index(region.entry)
    return Site(
        branch.alias,
        branch.name,
        branch.kind,
        "branch",
        region.affine,
        region.bias,
        region.held_bias,
        None if reads == len(points) - 1 else reads,
    )


def _without(operands: tuple[fx.Node, ...], skip: fx.Node, branches: list[fx.Node]) -> tuple[fx.Node, ...]:
    """The operands but for one occurrence of the skip, and the branches."""
    at = operands.index(skip)
    return tuple(o for o in (*operands[:at], *operands[at + 1 :]) if o not in branches)


_SKIP_RANK: dict[SkipKind, int] = {"identity": 0, "scaled": 1, "projection": 2, "concat": 3}


def _rename(join: Join, paths: Mapping[tuple[fx.Node, fx.Node], str], alias: Callable[[str], str]) -> Join:
    if not join.branches:
        return replace(join, name=join.node.meta["module_path"], alias=alias("add"))
    aliases = [alias(branch.kind) for branch in join.branches]
    # Code of the root module has no path; the alias names it then.
    branches = tuple(
        replace(branch, name=paths[join.node, branch.node] or short, alias=short)
        for branch, short in zip(join.branches, aliases, strict=True)
    )
    if len(branches) == 1:
        return replace(join, name=branches[0].name, alias=branches[0].alias, branches=branches)
    return replace(
        join,
        name=common_path(branch.name for branch in branches),
        alias="+".join(branch.alias for branch in branches),
        branches=branches,
    )


def _working(region: Region) -> list[fx.Node]:
    """The nodes that a region is named after: its learned mixing, where there is none the other."""
    return list(filter(is_mixing, region.nodes)) or list(filter(mixes, region.nodes))


def _node_leaves(value: Any) -> list[fx.Node]:
    found: list[fx.Node] = []
    map_arg(value, lambda node: found.append(node) or node)
    return found
