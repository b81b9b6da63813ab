"""Branches cut into parts: one per attention head, or per set of neurons.

A branch is cut at an inner value u from which its end is reached linearly, up to a constant:

    γ(h) = L_h u(h) + c        parts: γ_I(h) = L_h (1_I ⊙ u(h)),  Σ_I γ_I + c = γ

1_I keeps some coordinates of u along one dimension: the heads of the last attention product, or the inputs of the last
layer (the neurons). L_h is the branch's own code after u, its constants dropped: affine operators, factors that do not
depend on u, and norms, whose denominators are held at the branch's own value. Every part is a function of h like the
branch itself, so that jets, atoms and frozen gates apply to it.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, fx

from jetgraph.analysis import Branch, Join, Region, Stage, Stream, Structure, attention_products, is_mixing
from jetgraph.errors import JetGraphError, quoted
from jetgraph.expansion import matches, nearest
from jetgraph.jets.interpreter import evaluate
from jetgraph.jets.registry import adds_constant, bind, find_rule, is_affine, nodes_in
from jetgraph.jets.rules.norms import normalised, scaled_and_shifted
from jetgraph.jets.series import Series, centre, has_series
from jetgraph.program import Freeze, JoinStep, Site, Split

aten = torch.ops.aten

Share = Literal["heads", "neurons"] | int | Sequence[Sequence[int]]
"""How the coordinates are dealt out: one each, into so many groups of neighbours, or into these sets."""


@dataclass(frozen=True, eq=False)
class Cut:
    """A branch as a linear function of an inner value u, plus a constant."""

    region: Region
    """The whole branch."""
    node: fx.Node
    """u."""
    dim: int
    """The dimension of u that is dealt out, counted from the end."""
    size: int
    """How many coordinates it has."""
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
        kept = _kept(u, part.indices, self.dim)
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
            raise JetGraphError(
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
            if stage.join is not None and any(branch.alias in chosen for branch in stage.join.branches):
                stage = _split_stage(stage, chosen)
                assert stage.join is not None
                joins[stage.join.node] = stage.join
            stages.append(stage)
        streams.append(Stream(stream.encoder, tuple(stages)))
    return replace(
        structure, streams=tuple(streams), joins=tuple(joins.get(join.node, join) for join in structure.joins)
    )


# Which branches, and how


def _chosen(structure: Structure, how: Split) -> dict[str, tuple[Cut, Share]]:
    """The cut of every branch that is to be split, and how it is dealt out, by alias."""
    branches = [
        branch
        for stream in structure.streams
        for stage in stream.stages
        if stage.join is not None
        for branch in stage.join.branches
    ]
    if how in ("heads", "neurons"):
        found = [branch for branch in branches if (branch.kind == "attn") == (how == "heads")]
        if not found:
            raise JetGraphError(f"split={quoted(how)}: no branch of this model has {how} to split by")
        return {branch.alias: (_cut(branch, how), how) for branch in found}
    if not isinstance(how, Mapping):
        raise JetGraphError(
            f"split={quoted(how)} is unknown: choose 'heads', 'neurons', or a mapping from branches to 'heads', "
            "'neurons', a number of groups, or sets of indices"
        )
    chosen: dict[str, tuple[Cut, Share]] = {}
    for pattern, share in how.items():
        found = [branch for branch in branches if matches(pattern, branch.alias, branch.name)]
        if not found:
            names = [branch.alias for branch in branches]
            raise JetGraphError(f"split[{quoted(pattern)}] matches no branch of a stream{nearest(pattern, names)}")
        for branch in found:
            kind = share if isinstance(share, str) else "heads" if branch.kind == "attn" else "neurons"
            if kind not in ("heads", "neurons"):
                raise JetGraphError(
                    f"split[{pattern!r}]={quoted(share)} is unknown: choose 'heads', 'neurons', or sets"
                )
            chosen[branch.alias] = _cut(branch, kind), share
    return chosen


def _cut(branch: Branch, kind: str) -> Cut:
    cut = (find_heads if kind == "heads" else find_neurons)(branch.region)
    if cut is None:
        what = "attention product" if kind == "heads" else "learned layer"
        raise JetGraphError(
            f"{branch.alias!r} (module {branch.name!r}) cannot be split into {kind}: no {what} in it reaches its end "
            "through affine operators and norms alone"
        )
    return cut


def _split_stage(stage: Stage, chosen: Mapping[str, tuple[Cut, Share]]) -> Stage:
    assert stage.join is not None
    assert isinstance(stage.step, JoinStep)
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
            raise JetGraphError(f"{alias!r} has {cut.size} coordinates, which make no {quoted(share)} groups")
        ends = [group * cut.size // share for group in range(share + 1)]
        share = [range(first, last) for first, last in pairwise(ends)]
    try:
        sets = [tuple(map(operator.index, indices)) for indices in share]  # type: ignore[union-attr]
    except TypeError:
        raise JetGraphError(
            f"the split of {alias!r} is {quoted(share)}: give 'heads', 'neurons', a number of groups, or a list of "
            "sets of whole numbers such as [[0, 1], [7]]"
        ) from None
    left = set(range(cut.size))
    for number, indices in enumerate(sets):
        if not indices or not left.issuperset(indices) or len(set(indices)) < len(indices):
            raise JetGraphError(
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


def find_heads(region: Region) -> Cut | None:
    """The cut at the last attention product from which the end is reached linearly, along its heads."""
    inside = region.node_set
    for product in reversed(attention_products(region)):
        node = product
        # A product over batch · heads: the view after it tells the two apart.
        while node.meta["shape"] and len(node.meta["shape"]) < 4 and len(node.users) == 1:
            (after,) = node.users
            if after not in inside or is_mixing(after) or not is_affine(after, {node}.__contains__):
                break
            node = after
        single = len(node.meta["shape"]) < 4
        cut = _carry(region, product if single else node, -1 if single else -3)
        if cut is not None:
            # Without a dimension of heads there is one head, which is everything.
            return replace(cut, dim=0, size=1) if single else cut
    return None


def find_neurons(region: Region) -> Cut | None:
    """The cut at the input of the last layer with learned weights from which the end is reached linearly."""
    inside = {region.entry, *region.nodes}
    for layer in reversed(region.nodes):
        if not is_mixing(layer):
            continue
        bound = bind(layer.target, layer.args, layer.kwargs)  # type: ignore[arg-type]
        read = [(name, value) for name, value in bound.items() if any(node in inside for node in nodes_in(value))]
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
        cut = _carry(region, u, dim)
        if cut is not None:
            return cut
    return None


def _carry(region: Region, u: fx.Node, dim: int) -> Cut | None:
    """The cut at u, if the branch's end is linear in it."""
    size = u.meta["shape"][dim]
    if not isinstance(size, int):
        return None
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
    return _cut_at(region, u, dim, size, _above(region.exit, carried, u), norms)


def _cut_at(region: Region, u: fx.Node, dim: int, size: int, carried: tuple[fx.Node, ...], norms: set[fx.Node]) -> Cut:
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
    return Cut(region, u, dim, size, carried, before, frozenset(held), frozenset(norms & set(carried)), kind)


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


def _kept(u: Tensor | Series, indices: tuple[int, ...], dim: int) -> Any:
    """1_I ⊙ u."""
    value = u.coefficients if isinstance(u, Series) else u
    if dim == 0:
        return u
    index = torch.tensor(indices, device=value.device)
    kept = torch.zeros_like(value).index_copy_(dim, index, value.index_select(dim, index))
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
