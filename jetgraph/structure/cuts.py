"""Branches cut into parts: one per attention head, or per set of neurons.

A branch is cut at an inner value u from which its end is reached linearly, up to a constant:

    γ(h) = L_h u(h) + c        parts: γ_I(h) = L_h (1_I ⊙ u(h)),  Σ_I γ_I + c = γ

1_I keeps some coordinates of u: along the heads of the last attention product, or along the inputs of the last layer
(the neurons). L_h is the branch's own code after u, its constants dropped: affine operators, factors that do not
depend on u, and norms, whose denominators are held at the branch's own value. Every part is a function of h like the
branch itself, so that jets, atoms and frozen gates apply to it.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, fx

from jetgraph.algebra.matching import matching, nearest
from jetgraph.algebra.program import Freeze, Site, Split
from jetgraph.errors import InputError, JetGraphError, SelectionError, quoted
from jetgraph.jets.interpreter import evaluate
from jetgraph.jets.registry import adds_constant, bind, find_rule, is_affine, is_floating, nodes_in
from jetgraph.jets.rules.norms import normalised, scaled_and_shifted
from jetgraph.jets.series import Series, centre, has_series
from jetgraph.structure.dimensions import Dimensions, Factor, Factors, Layout, einsum_labels, follow, leaves
from jetgraph.structure.operators import attention_products, is_mixing
from jetgraph.structure.regions import Branch, Join, JoinStage, Region, Stream, Structure

aten = torch.ops.aten

Share = Literal["heads", "neurons"] | int | Sequence[Sequence[int]]
"""How the coordinates are dealt out: one each, into so many groups of neighbours, or into these sets."""


@dataclass(frozen=True, slots=True)
class Axis:
    """A factor of one of u's dimensions, along which coordinates are dealt out."""

    dim: int
    """Counted from the end."""
    size: int
    outer: int | None = 1
    """How many of it the dimension has one after the other; None where that is open."""
    inner: int | None = 1
    """How many neighbours share one of its coordinates; None where that is open."""

    def numbers(self, u: Tensor) -> Tensor:
        """Its coordinate at every index of u's dimension, to be broadcast over u."""
        length = u.shape[self.dim]
        inner = self.inner or length // (self.size * (self.outer or 1))
        numbers = torch.arange(length, device=u.device) // inner % self.size
        return numbers.reshape(-1, *[1] * (-self.dim - 1))


@dataclass(frozen=True, eq=False)
class Cut:
    """A branch as a linear function of an inner value u, plus a constant."""

    region: Region
    """The whole branch."""
    node: fx.Node
    """u."""
    axes: tuple[Axis, ...]
    """What is dealt out, the slowest first; none where there is one coordinate, which is everything."""
    carried: tuple[fx.Node, ...]
    """The nodes of L in execution order, the branch's end last; empty where u is the end."""
    before: tuple[fx.Node, ...]
    """What has to run to know u and everything else that L reads."""
    held: frozenset[fx.Node]
    """Values inside the branch that L reads besides u: gates that do not depend on u, denominators of norms, and what
    a norm that is one operator reads."""
    norms: frozenset[fx.Node]
    """Norms that are one operator each, among the carried nodes."""
    constant: Literal["none", "fixed", "varying"]
    """c is zero, does not depend on h, or does."""

    @property
    def size(self) -> int:
        """How many coordinates are dealt out."""
        return math.prod(axis.size for axis in self.axes)

    def open(self, values: Mapping[fx.Node, Any], order: int = 0, frozen: Freeze | None = None) -> dict[fx.Node, Any]:
        """u and what L reads besides, from values (tensors or series) for the branch's entry and side inputs."""
        keep = {self.node, *self.held}
        if not self.before:
            return {node: values[node] for node in keep}
        found = evaluate(self.before, dict(values), order, keep, frozen, constants=self.held - {self.node})
        return {node: found[node] for node in keep}

    def part(
        self,
        opened: Mapping[fx.Node, Any],
        side: Mapping[fx.Node, Any],
        part: Part,
        order: int = 0,
        frozen: Freeze | None = None,
    ) -> Tensor | Series:
        """γ_I, or c as a function of h, from what `open` gave."""
        read = self._read(opened, side, frozen)
        u = opened[self.node]
        if part.indices is None:
            return self._run(read, _zeros(u), order)
        kept = _kept(u, part.indices, self.axes)
        if self.constant != "varying":
            return self._linear(read, kept, order)
        return _minus(self._run(read, kept, order), self._run(read, _zeros(u), order), order)

    def fixed(self, opened: Mapping[fx.Node, Any], side: Mapping[fx.Node, Any]) -> Tensor:
        """c where it does not depend on h."""
        return self._run(self._read(opened, side, None), _zeros(opened[self.node]), 0)

    def _read(
        self, opened: Mapping[fx.Node, Any], side: Mapping[fx.Node, Any], frozen: Freeze | None
    ) -> tuple[dict[fx.Node, Any], dict[fx.Node, Any]]:
        """What L reads besides u, and by norm what it normalises as a whole: its true value where norms are frozen."""
        if frozen is not None and self.norms and "norm" not in frozen.gates:
            norm = next(iter(self.norms))
            raise InputError(
                f"with gates={frozen.gates} held, a part before {norm.target} in {norm.meta['module_path']!r} is not "
                "affine: add 'norm' to the gates, or take a jet or an atom there"
            )
        wholes = {norm: opened[_normalised(norm)] for norm in self.norms}
        if frozen is not None:
            wholes = {norm: centre(value) for norm, value in wholes.items()}
        return {**side, **opened}, wholes

    def _run(self, read: tuple[dict[fx.Node, Any], dict[fx.Node, Any]], u: Any, order: int) -> Any:
        """The branch's end where u is this; what L holds stays at its own value."""
        values, wholes = {**read[0], self.node: u}, read[1]
        for node in self.carried:
            if node in self.norms:
                values[node] = _held_norm(node, wholes[node], values, order)
            else:
                evaluate((node,), values, order)
        return values[self.carried[-1]] if self.carried else u

    def _linear(self, read: tuple[dict[fx.Node, Any], dict[fx.Node, Any]], u: Any, order: int) -> Any:
        """L u alone: pushed through as t · u, so that constants stay behind in the coefficients below."""
        if not self.carried:
            return u
        values, wholes = ({node: _lifted(value, order + 1) for node, value in each.items()} for each in read)
        held = u if isinstance(u, Series) else Series.constant(u, order)
        result = self._run((values, wholes), held.raised(1, order + 1), order + 1)
        if not isinstance(u, Series):
            return result.coefficient(1)
        return Series(result.span(1, max(result.stop, 2)), order)


@dataclass(frozen=True, eq=False)
class Part:
    """One part of a branch: the cut, and the coordinates that it keeps; None for what varies without u."""

    cut: Cut
    indices: tuple[int, ...] | None
    whole: str
    """Alias of the branch."""


def split(structure: Structure, how: Split) -> Structure:
    """The structure with some branches of its streams cut into parts. See `jetgraph.expand`."""
    chosen = _chosen(structure, how)
    streams = []
    joins: dict[fx.Node, Join] = {}
    for stream in structure.streams:
        stages = []
        for stage in stream.stages:
            if isinstance(stage, JoinStage) and any(branch.alias in chosen for branch in stage.join.branches):
                stage = _split_stage(stage, chosen)
                joins[stage.join.node] = stage.join
            stages.append(stage)
        streams.append(Stream(stream.encoder, tuple(stages)))
    return replace(
        structure, streams=tuple(streams), joins=tuple(joins.get(join.node, join) for join in structure.joins)
    )


# Which branches, and how


def _chosen(structure: Structure, how: Split) -> dict[str, tuple[Cut, Share]]:
    """The cut of every branch that is to be split, and how it is dealt out, by alias."""
    branches = [branch for stream in structure.streams for join in stream.joins for branch in join.branches]
    if isinstance(how, str) and how in ("heads", "neurons"):
        some = (branch for branch in branches if branch.kind != "skip")
        found = [branch for branch in some if (branch.kind == "attn") == (how == "heads")]
        if not found:
            raise InputError(f"split={quoted(how)}: no branch of this model has {how} to split by")
        return {branch.alias: (_cut(branch, how), how) for branch in found}
    if not isinstance(how, Mapping):
        raise InputError(
            f"split={quoted(how)} is unknown: choose 'heads', 'neurons', or a mapping from branches to 'heads', "
            "'neurons', a number of groups, or sets of indices"
        )
    paths = {branch.alias: branch.name for branch in branches}
    chosen: dict[str, tuple[Cut, Share]] = {}
    for pattern, share in how.items():
        if not isinstance(pattern, str):
            raise InputError(f"split maps branches to parts, and {quoted(pattern)} is no text that names a branch")
        named = set(matching(pattern, paths))
        found = [branch for branch in branches if branch.alias in named]
        if not found:
            names = [branch.alias for branch in branches]
            raise SelectionError(f"split[{quoted(pattern)}] matches no branch of a stream{nearest(pattern, names)}")
        for branch in found:
            kind = share if isinstance(share, str) else "heads" if branch.kind == "attn" else "neurons"
            if kind not in ("heads", "neurons"):
                raise InputError(f"split[{pattern!r}]={quoted(share)} is unknown: choose 'heads', 'neurons', or sets")
            chosen[branch.alias] = _cut(branch, kind), share
    return chosen


def _cut(branch: Branch, kind: str) -> Cut:
    what = f"{branch.alias!r} (module {branch.name!r}) cannot be split into {kind}"
    try:
        cut = (find_heads if kind == "heads" else find_neurons)(branch.region)
    except _HeadsError as error:
        raise InputError(f"{what}: {error}. Split it into 'neurons', or into sets of them") from None
    if cut is None:
        part = "attention product" if kind == "heads" else "learned layer"
        raise InputError(f"{what}: no {part} in it reaches its end through affine operators and norms alone")
    return cut


def _split_stage(stage: JoinStage, chosen: Mapping[str, tuple[Cut, Share]]) -> JoinStage:
    branches: list[Branch] = []
    sites: list[Site] = []
    constants: list[Site] = []
    for branch, site in zip(stage.join.branches, stage.step.branches, strict=True):
        if branch.alias not in chosen:
            branches.append(branch)
            sites.append(site)
            continue
        cut, share = chosen[branch.alias]
        bias = site.affine and _biased(cut)
        for name, indices in _dealt(branch.alias, cut, share):
            alias = f"{branch.alias}.{name}"
            branches.append(replace(branch, alias=alias, part=Part(cut, indices, branch.alias)))
            sites.append(replace(site, alias=alias, bias=bias))
        if cut.constant == "varying":
            alias = f"{branch.alias}.offset"
            branches.append(replace(branch, alias=alias, part=Part(cut, None, branch.alias)))
            sites.append(replace(site, alias=alias, bias=bias))
        elif cut.constant == "fixed":
            constants.append(site)
    step = replace(stage.step, branches=tuple(sites), constants=tuple(constants))
    return replace(stage, step=step, join=replace(stage.join, branches=tuple(branches)))


def _dealt(alias: str, cut: Cut, share: Share) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and coordinates of the parts."""
    if isinstance(share, str):
        for index in range(cut.size):
            yield f"{share[:-1]}{index}", (index,)
        return
    if isinstance(share, int) and not isinstance(share, bool):
        if not 1 <= share <= cut.size:
            raise InputError(f"{alias!r} has {cut.size} coordinates, which make no {quoted(share)} groups")
        ends = [group * cut.size // share for group in range(share + 1)]
        share = [range(first, last) for first, last in pairwise(ends)]
    try:
        sets = [tuple(map(operator.index, indices)) for indices in share]  # type: ignore[union-attr]
    except TypeError:
        raise InputError(
            f"the split of {alias!r} is {quoted(share)}: give 'heads', 'neurons', a number of groups, or a list of "
            "sets of whole numbers such as [[0, 1], [7]]"
        ) from None
    left = set(range(cut.size))
    for number, indices in enumerate(sets):
        if not indices or not left.issuperset(indices) or len(set(indices)) < len(indices):
            raise InputError(
                f"set {number} of the split of {alias!r} is {indices[:8]}: sets are not empty, do not overlap, and "
                f"hold numbers from 0 to {cut.size - 1}"
            )
        left.difference_update(indices)
        yield f"set{number}", indices
    if left:
        yield "rest", tuple(sorted(left))


def _biased(cut: Cut) -> bool:
    """The inner value of an affine branch is not zero where the stream is."""
    inside = {cut.region.entry, *cut.before}
    return any(adds_constant(node, inside.__contains__) for node in cut.before)


# Finding cuts


class _HeadsError(JetGraphError):
    """Why an attention product has no heads that could be told apart."""


def find_heads(region: Region) -> Cut | None:
    """The cut at the last attention product from which the end is reached linearly, along its heads.

    Heads are what comes together with a head's features: where the features are summed over, by the output projection
    as a rule, so are they, or the projection has other weights for each; without a projection both are in one dimension
    of the branch's end. Without such a dimension there is one head, which is everything.
    """
    for product, start in reversed(attention_products(region).items()):
        cut = _carry(region, product, ())
        if cut is not None:
            return replace(cut, axes=_head_axes(cut, start))
    return None


def _head_axes(cut: Cut, start: fx.Node) -> tuple[Axis, ...]:
    """Where the heads are in an attention product, whose pattern starts at a node."""
    features, queries = _roles(cut.node, start)
    dimensions = follow(cut.node, cut.carried)
    if _summed(dimensions, cut, queries) and not _summed(dimensions, cut, features):
        # Linear attention q (kᵀ v): it is what the pattern is made of that has the features.
        features, queries = queries, features
    met = _met_by_features(cut, dimensions, [factor for place in features for factor in dimensions.start.dims[place]])
    layout = dimensions.start
    inside = {factor for place in features for factor in layout.at(place)}
    asked = {factor for place in queries for factor in layout.at(place)}
    # A dimension of queries that goes there as a whole holds positions; with heads in it, positions are left over.
    inside |= asked if asked <= met.keys() else set()
    found = [factor for factor in layout.present if factor in met and factor not in inside]
    return tuple(_axis(cut.node, layout, factor) for factor in sorted(found, key=met.__getitem__))


def _summed(dimensions: Dimensions, cut: Cut, places: Sequence[int]) -> bool:
    """These dimensions of u have factors, of which nothing is left at the branch's end."""
    end = dimensions.get(cut.carried[-1] if cut.carried else cut.node)
    assert end is not None
    left = {root for factor in end.present for root in leaves(factor.roots())}
    own = {factor for place in places for factor in dimensions.start.at(place)}
    return bool(own) and left.isdisjoint(own)


def _axis(product: fx.Node, layout: Layout, factor: Factor) -> Axis:
    rank = len(layout.dims)
    place = next(place for place in range(rank) if factor in layout.at(place))
    factors = layout.at(place)
    at = factors.index(factor)
    outer, inner = (_number(part) for part in (factors[:at], factors[at + 1 :]))
    size = _number((factor,))
    where = f"{product.target} in {product.meta['module_path']!r}, of shape {list(product.meta['shape'])},"
    if size is None:
        raise _HeadsError(f"the number of heads of {where} is open")
    if outer is None and inner is None:
        raise _HeadsError(f"the heads of {where} lie between sizes that are both open")
    return Axis(place - rank, size, outer, inner)


def _number(factors: Factors) -> int | None:
    """The product of sizes, if they are all known."""
    return None if any(factor.size.symbols for factor in factors) else math.prod(f.size.number for f in factors)


def _met_by_features(cut: Cut, dimensions: Dimensions, features: Sequence[Factor]) -> dict[Factor, int]:
    """The factors that are summed over, or merged, with a head's features, with their order there.

    Raises `_HeadsError` where the features cannot be followed that far.
    """

    def held(layout: Layout | None) -> list[Factor]:
        """What the layout has of the features, slices of them too."""
        wanted = set(leaves(features))
        present = () if layout is None else layout.present
        return [factor for factor in present if not wanted.isdisjoint(leaves(factor.roots()))]

    for node in cut.carried:
        if "shape" not in node.meta:
            continue
        after = dimensions.get(node)
        reads = [arg for arg in node.all_input_nodes if arg in {cut.node, *cut.carried}]
        if features:
            before = None if held(after) else next((arg for arg in reads if held(dimensions.get(arg))), None)
        else:
            # A head of one feature has no dimension of them.
            before = reads[0] if is_mixing(node) else None
        if before is None:
            continue
        if node in dimensions.unknown:
            raise _HeadsError(
                f"a head's features cannot be followed through {node.target} in {node.meta['module_path']!r}, which "
                "does not say what it does to dimensions"
            )
        one = dimensions.get(before)
        assert one is not None
        assert after is not None
        gone = [factor for factor in one.present if factor not in after.present]
        own = [factor for factor in one.present if factor in leaves(after.tied - one.tied)]
        return _ordered([*(factor for factor, _ in one.pieces), *own, *gone])
    end = dimensions.get(cut.carried[-1] if cut.carried else cut.node)
    assert end is not None
    return _ordered(
        factor for dim in range(len(end.dims)) if set(held(end)) & set(end.at(dim)) for factor in end.at(dim)
    )


def _ordered(factors: Iterable[Factor]) -> dict[Factor, int]:
    """Numbers of the factors, and of what they are slices of, in order."""
    roots = [root for factor in factors for root in (factor, *leaves(factor.roots()))]
    return {factor: place for place, factor in enumerate(dict.fromkeys(roots))}


def _roles(product: fx.Node, start: fx.Node) -> tuple[list[int], list[int]]:
    """The dimensions of an attention product that come from the values alone, the features of a head, and from the
    pattern alone, the queries.
    """
    if product is start:
        return [-1], [-2]
    bound = bind(product.target, product.args, product.kwargs)  # type: ignore[arg-type]
    operands = list(nodes_in(product.args))[-2:]
    made = _made_from(start)
    pattern = next((place for place, operand in enumerate(operands) if operand in made), 0)
    if "equation" not in bound:
        return ([-2], [-1]) if pattern else ([-1], [-2])
    labels = einsum_labels(bound["equation"], [len(operand.meta["shape"]) for operand in bound["tensors"]])
    if labels is None or len(labels) != 3:
        raise _HeadsError(f"the roles of dimensions in the einsum {bound['equation']!r} are unclear")
    (*read, out) = labels
    alone = [
        [place for place, label in enumerate(out) if label in read[one] and label not in read[1 - one]]
        for one in (1 - pattern, pattern)
    ]
    return alone[0], alone[1]


def _made_from(start: fx.Node) -> set[fx.Node]:
    """Everything that is computed from a node."""
    found, stack = {start}, [start]
    while stack:
        for user in stack.pop().users:
            if user not in found:
                found.add(user)
                stack.append(user)
    return found


def find_neurons(region: Region) -> Cut | None:
    """The cut at the input of the last layer with learned weights from which the end is reached linearly."""
    inside = {region.entry, *region.nodes}
    for layer in reversed(region.nodes):
        if not is_mixing(layer):
            continue
        bound = bind(layer.target, layer.args, layer.kwargs)  # type: ignore[arg-type]
        # Indices and offsets only steer the layer.
        carriers = {node for node in layer.all_input_nodes if node in inside and is_floating(node)}
        read = [(name, value) for name, value in bound.items() if carriers.intersection(nodes_in(value))]
        if len(read) != 1 or not isinstance(read[0][1], fx.Node):
            continue
        name, u = read[0]
        if name in ("weight", "mat1", "bias"):
            dim = -1
        elif "conv" in str(layer.target):
            spatial = len(bound["weight"].meta["shape"]) - 2
            dim = -1 - spatial
        else:
            dim = -2 if name in ("mat2", "other", "vec2") else -1
        size = u.meta["shape"][dim]
        cut = _carry(region, u, (Axis(dim, size),)) if isinstance(size, int) else None
        if cut is not None:
            return cut
    return None


def _carry(region: Region, u: fx.Node, axes: tuple[Axis, ...]) -> Cut | None:
    """The cut at u, if the branch's end is linear in it."""
    inside = {region.entry, *region.nodes}
    dependent: set[fx.Node] = {u}
    carried: dict[fx.Node, None] = {u: None}
    norms: set[fx.Node] = set()
    start = 0 if u is region.entry else region.nodes.index(u) + 1
    for node in region.nodes[start:]:
        reads = [arg for arg in node.all_input_nodes if arg in inside]
        if not any(arg in dependent for arg in reads):
            continue
        dependent.add(node)
        along = {arg for arg in reads if arg in carried}
        held = all(arg not in dependent or _normalises(arg, dependent) for arg in reads if arg not in along)
        if along and held and is_affine(node, along.__contains__):
            carried[node] = None
        elif node.target in _NORMS and reads == [_normalised(node)] and along:
            carried[node] = None
            norms.add(node)
    if region.exit not in carried:
        return None
    return _cut_at(region, u, axes, _above(region.exit, carried, u), norms)


def _cut_at(
    region: Region, u: fx.Node, axes: tuple[Axis, ...], carried: tuple[fx.Node, ...], norms: set[fx.Node]
) -> Cut:
    inside = {region.entry, *region.nodes}
    along = {u, *carried}
    held: set[fx.Node] = set()
    constant = varying = False
    for node in carried:
        others = {arg for arg in node.all_input_nodes if arg in inside and arg not in along}
        factors = bool(others) or node in norms
        biased = node in norms and bind(node.target, node.args, node.kwargs).get("bias") is not None  # type: ignore[arg-type]
        added = adds_constant(node, along.__contains__)
        # A constant varies if it is a value inside the branch, or if one scales it afterwards.
        varying |= (added and bool(others)) or (constant and factors)
        constant |= added or biased
        held |= others | ({_normalised(node)} if node in norms else set())
    before = _needed(region, {u, *held})
    kind = "none" if not constant else "varying" if varying else "fixed"
    return Cut(region, u, axes, carried, before, frozenset(held), frozenset(norms & set(carried)), kind)


def _above(exit: fx.Node, carried: Mapping[fx.Node, None], u: fx.Node) -> tuple[fx.Node, ...]:
    """The carried nodes that lead to the end, in execution order, without u."""
    found = {exit}
    stack = [exit]
    while stack:
        for arg in stack.pop().all_input_nodes:
            if arg in carried and arg not in found:
                found.add(arg)
                stack.append(arg)
    return tuple(node for node in carried if node in found and node is not u)


def _needed(region: Region, wanted: set[fx.Node]) -> tuple[fx.Node, ...]:
    """The nodes of the region that compute these values, in execution order."""
    found: set[fx.Node] = set()
    for node in reversed(region.nodes):
        if node in wanted or any(user in found for user in node.users):
            found.add(node)
    return tuple(node for node in region.nodes if node in found)


def _normalises(node: fx.Node, dependent: set[fx.Node]) -> bool:
    """The value is an affine image of what a norm divides by, such as a reciprocal square root."""
    while True:
        entry = find_rule(node.target)
        if entry is None:
            return False
        bound = bind(node.target, node.args, node.kwargs)  # type: ignore[arg-type]
        gate = entry.gate(bound) if callable(entry.gate) else entry.gate
        reads = [arg for arg in node.all_input_nodes if arg in dependent]
        if gate == "norm":
            return True
        if len(reads) != 1 or not is_affine(node, {reads[0]}.__contains__):
            return False
        node = reads[0]


# Values

_NORMS = {aten.layer_norm.default: True, aten.rms_norm.default: False}
"""Norms over the last dimensions that are one operator, and whether they take the mean off first."""


def _normalised(norm: fx.Node) -> fx.Node:
    (node, *_) = norm.args
    assert isinstance(node, fx.Node)
    return node


def _held_norm(norm: fx.Node, x: Any, values: Mapping[fx.Node, Any], order: int) -> Any:
    """g ⊙ (y − mean y) / σ(x) + b, for the part y among `values` of the whole x; without the means in an RMS norm."""
    bound = bind(norm.target, norm.args, norm.kwargs)  # type: ignore[arg-type]
    dims = list(range(-len(bound["normalized_shape"]), 0))
    centred = _NORMS[norm.target]  # type: ignore[index]
    y = values[_normalised(norm)]
    whole, part = (value if isinstance(value, Series) else Series.constant(value, order) for value in (x, y))
    eps = bound.get("eps")
    if eps is None:
        eps = 1e-5 if centred else torch.finfo(whole.dtype).eps
    scaled = normalised(order, whole, dims, eps, centred=centred, part=part)
    weight, bias = (None if node is None else values[node] for node in (bound.get("weight"), bound.get("bias")))
    result = scaled_and_shifted(order, scaled, weight, bias, whole.dtype)
    return result if has_series((x, y)) else result.coefficient(0)


def _kept(u: Tensor | Series, indices: tuple[int, ...], axes: tuple[Axis, ...]) -> Any:
    """1_I ⊙ u."""
    if not axes:
        return u
    value = u.coefficients if isinstance(u, Series) else u
    wanted = torch.tensor(indices, device=value.device)
    if axes == (Axis(dim := axes[0].dim, value.shape[axes[0].dim]),):
        kept = torch.zeros_like(value).index_copy_(dim, wanted, value.index_select(dim, wanted))
    else:
        numbers = axes[0].numbers(value)
        for axis in axes[1:]:
            numbers = numbers * axis.size + axis.numbers(value)
        kept = torch.where(torch.isin(numbers, wanted), value, 0)
    return u.like(kept) if isinstance(u, Series) else kept


def _zeros(u: Tensor | Series) -> Tensor:
    return torch.zeros_like(u.first if isinstance(u, Series) else u)


def _lifted(value: Any, order: int) -> Any:
    return value.raised(0, order) if isinstance(value, Series) else value


def _minus(one: Any, other: Any, order: int) -> Any:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one - other
    first, second = (value if isinstance(value, Series) else Series.constant(value, order) for value in (one, other))
    return Series(first.stacked() - second.stacked(), order)
