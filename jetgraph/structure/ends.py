"""The two ends of a stream: the encoder that makes point 0, and the decoder that reads the last point."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from torch import fx

from jetgraph.algebra.outline import SINK, Site, Source, SourceKind
from jetgraph.export.reach import above
from jetgraph.jets.registry import adds_constant, is_affine, nodes_in
from jetgraph.structure.dataflow import Dataflow
from jetgraph.structure.naming import source_names
from jetgraph.structure.operators import COUNTS, IDENTITY, LOOKUPS, aten, is_float_tensor, is_mixing, packet_of
from jetgraph.structure.regions import Decoder, Encoder, Summand


def first_value(flow: Dataflow, output: fx.Node) -> fx.Node:
    """Where the encoder of a model without joins ends: at the first value that depends on the user's input."""
    node = output
    while (above := flow.bottleneck(node)) is not None:
        node = above
    return node


def encoder(flow: Dataflow, exit: fx.Node, joins: Collection[fx.Node] = ()) -> Encoder:
    """Split a value into the linear images of its leaves and a constant; leaves below one of the joins are `context`.

    Where the value is a nonlinear function of one earlier sum of two or more parts (BERT's norm over three embeddings),
    the split is made there; the stream then starts earlier, with that function as its first map.
    """
    node: fx.Node | None = exit
    while node is not None:
        split = _split(flow, node, joins)
        if sum(summand.source.kind != "bias" for summand in split.summands) > 1:
            return split
        leaf = split.leaves[0] if split.leaves else node
        node = flow.bottleneck(leaf)
    return _split(flow, exit, joins)


def decoder(flow: Dataflow, end: fx.Node, output: fx.Node) -> Decoder:
    """Split at the earliest node from which on everything is affine."""
    split = node = output
    while node is not end and (above := _affine_of(flow, node, end)) is not None:
        node = above
        # Whole numbers and tuples lie on the way, but no region ends at one.
        if is_float_tensor(node):
            split = node
    nonlinear, affine = flow.region(end, split), flow.region(split, output)
    if not affine.affine:
        raise AssertionError("the affine suffix is affine by construction")
    mixing = [node.meta["module_path"] for node in affine.nodes if is_mixing(node)]
    path = mixing[-1] if mixing else output.meta["module_path"]
    site = Site(
        SINK, path, SINK, "decoder", not nonlinear.nodes, affine.bias, nonlinear.held_bias, None, nonlinear.homogeneous
    )
    return Decoder(nonlinear, affine, site)


def _affine_of(flow: Dataflow, node: fx.Node, end: fx.Node) -> fx.Node | None:
    """The nearest node below a stream's end of which all is affine in between: what the node reads, or what comes
    together in it again.
    """
    parents = [parent for parent in flow.parents[node] if parent is end or flow.depends(parent, end)]
    if len(parents) == 1:
        return parents[0] if is_affine(node, lambda other: other is parents[0]) else None
    above = flow.bottleneck(node)
    return above if above is not None and flow.depends(above, end) and flow.region(above, node).affine else None


def _split(flow: Dataflow, exit: fx.Node, joins: Collection[fx.Node]) -> Encoder:
    nodes, leaves, added = _gathered(flow, exit)
    varying = {*leaves, *added, *nodes}
    constant = any(adds_constant(node, varying.__contains__) for node in nodes)
    above = [leaf for leaf in leaves if any(flow.depends(leaf, join) for join in joins)]
    beside = _beside_tokens(flow, [leaf for leaf in leaves if leaf not in above])
    # What is added last comes first, whether it is given or a constant.
    positions = sorted((*added, *beside), key=lambda leaf: -max(flow.positions[n] for n in leaf.users if n in nodes))
    kinds: list[tuple[SourceKind, fx.Node | None]] = [
        *(("context" if leaf in above else "embed", leaf) for leaf in leaves if leaf not in beside),
        *(("pos", leaf) for leaf in positions),
        *([("bias", None)] if constant else []),
    ]
    paths = [_path(flow, leaf) for _, leaf in kinds]
    names = source_names([kind for kind, _ in kinds], paths)
    sources = [Source(alias, path, kind) for alias, path, (kind, _) in zip(names, paths, kinds, strict=True)]
    return Encoder(exit, nodes, tuple(Summand(source, leaf) for source, (_, leaf) in zip(sources, kinds, strict=True)))


def _beside_tokens(flow: Dataflow, leaves: Collection[fx.Node]) -> list[fx.Node]:
    """Leaves that are looked up by no token: by other inputs than the tokens, or by their number in the sequence.

    What a position adds is so named whether the model counts positions by itself, from a mask, or is given them. The
    tokens are the first of the model's inputs that rows are looked up by.
    """
    read = {leaf: _read_by(leaf) for leaf in leaves if _table(flow, leaf) is not None}
    counted = {leaf for leaf, nodes in read.items() if any(packet_of(node) in COUNTS for node in nodes)}
    tokens = next(
        (one for one in flow.traced.inputs if any(one in read[leaf] for leaf in read if leaf not in counted)), None
    )
    return [leaf for leaf, nodes in read.items() if tokens is not None and (tokens not in nodes or leaf in counted)]


def _table(flow: Dataflow, leaf: fx.Node) -> fx.Node | None:
    """The table that a leaf is looked up in, whole rows at a time; None of other leaves."""
    table = leaf.args[0] if packet_of(leaf) in LOOKUPS and leaf.args else None
    return table if isinstance(table, fx.Node) and table not in flow else None


def _read_by(leaf: fx.Node) -> set[fx.Node]:
    """All tensors that the indices of a lookup are made of, without those of which they have only the size."""
    return above(filter(_is_tensor, nodes_in(leaf.args[1:])), _is_tensor)


def _is_tensor(node: fx.Node) -> bool:
    return "dtype" in node.meta


def _gathered(flow: Dataflow, exit: fx.Node) -> tuple[tuple[fx.Node, ...], tuple[fx.Node, ...], tuple[fx.Node, ...]]:
    """The affine nodes that lead to a value, in execution order; the leaves that flow into them; and what they add of
    tensors with positions that do not flow, such as learned position embeddings.
    """
    nodes: set[fx.Node] = set()
    leaves: dict[fx.Node, None] = {}
    added: dict[fx.Node, None] = {}
    stack = [exit]
    while stack:
        node = stack.pop()
        parents = flow.parents[node]
        if not parents or not _splits(flow, node):
            leaves[node] = None
            continue
        if node in nodes:
            continue
        nodes.add(node)
        added |= dict.fromkeys(adds_positions(flow, node))
        stack.extend(reversed(parents))
    return flow.ordered(nodes), tuple(leaves), tuple(added)


def adds_positions(flow: Dataflow, node: fx.Node) -> list[fx.Node]:
    """What a sum or concatenation adds of tensors that do not depend on the user's input. What a sum adds alike in all
    dimensions but one, as a frozen norm of channels does by [1, C, 1, 1], is a bias, which is part of the constant.
    """
    if packet_of(node) not in (aten.add, aten.cat):
        return []
    others = [arg for arg in nodes_in(node.args) if arg not in flow and len(arg.meta.get("shape", ())) > 1]
    if packet_of(node) is aten.cat:
        return others
    return [arg for arg in others if not _is_alike(arg.meta["shape"], node.meta["shape"])]


def _is_alike(constant: Sequence[int | str], shape: Sequence[int | str]) -> bool:
    """A constant varies along one dimension, and is repeated along others, if an example has any that could tell.

    A table [position, 1] of a stream of width 1 is not: it is another number for each entry of an example.
    """
    sizes = [*[1] * (len(shape) - len(constant)), *constant]
    varying = {dim for dim, size in enumerate(sizes) if size != 1}
    rest = [size for dim, size in enumerate(shape) if dim and dim not in varying]
    return len(varying) <= 1 and (not rest or any(size != 1 for size in rest))


def _splits(flow: Dataflow, node: fx.Node) -> bool:
    """The node is affine in what flows into it; a part of a tuple is if the tuple is."""
    return is_affine(node, flow.__contains__) and all(
        "dtype" in parent.meta or (flow.parents[parent] and _splits(flow, parent)) for parent in flow.parents[node]
    )


def _path(flow: Dataflow, leaf: fx.Node | None) -> str:
    """The module that a leaf is made in; of an input, or of a parameter, its name."""
    if leaf is None:
        return ""
    shown = IDENTITY | {aten.slice, aten.select}
    while packet_of(leaf) in shown and leaf not in flow and isinstance(leaf.args[0], fx.Node):
        leaf = leaf.args[0]
    return flow.traced.bindings[leaf.name].name if leaf.op == "placeholder" else leaf.meta.get("module_path", "")
