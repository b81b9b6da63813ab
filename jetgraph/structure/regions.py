"""What the analysis finds, as frozen values: regions of the graph, joins, branches, streams and their two ends."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, fx

from jetgraph.algebra.outline import JoinStep, MapStep, Outline, Site, SkipKind, Source
from jetgraph.algebra.rules import Freeze
from jetgraph.errors import InputError
from jetgraph.jets.frozen import leaves_constant
from jetgraph.jets.interpreter import evaluate, op_in_module
from jetgraph.jets.series import Series, centre
from jetgraph.structure.dimensions.factors import size_read
from jetgraph.structure.homogeneity import Scaling, degree, scaling
from jetgraph.structure.parts import HELD_NORMS, Axis, held, kept, lifted, minus, whole_of, zeros_like
from jetgraph.structure.products import Product, product
from jetgraph.tracing.traced import Traced


@dataclass(frozen=True, eq=False)
class Region:
    """A single-entry, single-exit piece of the graph: all nodes on a way from `entry` to `exit`, whatever their type.

    Indices, masks and comparisons on such a way are part of the function, as in a mixture of experts; only sizes come
    from elsewhere. `nodes` are in execution order, without the entry; empty where entry and exit coincide. `side` are
    the values that the nodes read besides: weights, masks that do not depend on the entry, other streams.
    """

    entry: fx.Node
    exit: fx.Node
    nodes: tuple[fx.Node, ...]
    side: tuple[fx.Node, ...]
    context: frozenset[fx.Node]
    """Those of `side` that depend on the user's input as well: other streams, earlier points, masks."""
    affine: bool
    bias: bool
    """An affine region maps zero to something else than zero."""
    held: tuple[fx.Node, ...] = ()
    """Those of `side` that depend on the entry: the gates of a gated skip, which are read as they are on the true
    stream whatever enters."""

    @cached_property
    def sizes(self) -> Mapping[fx.Node, str]:
        """Those of `side` that are open sizes, by name."""
        read = ((node, size_read(node)) for node in self.side)
        return {node: size for node, size in read if isinstance(size, str)}

    @cached_property
    def held_bias(self) -> bool:
        """With its gates held, the region may map zero to something else than zero."""
        return leaves_constant(self.nodes, self.entry)

    @cached_property
    def homogeneous(self) -> bool:
        """f(s x) = f(x) for every s > 0, up to a norm's ε."""
        return degree(self.entry, self.nodes) == 0

    @cached_property
    def scaling(self) -> Scaling | None:
        """How the entry of a homogeneous region may be scaled."""
        return scaling(self.entry, self.nodes)

    @cached_property
    def normalised(self) -> Region:
        """From the entry of a homogeneous region to its linear image in whose coordinates a length counts."""
        scaling = self.scaling
        assert scaling is not None
        return Region(self.entry, scaling.image, scaling.nodes, scaling.side, frozenset(), affine=True, bias=False)

    @cached_property
    def node_set(self) -> frozenset[fx.Node]:
        return frozenset(self.nodes)


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
    """Values inside the branch that L reads besides u: gates, denominators of norms, and what a norm or an activation
    that is one operator reads."""
    whole: frozenset[fx.Node]
    """Norms and activations that are one operator each, among the carried nodes: they are held at the branch's own
    value."""
    constant: Literal["none", "fixed", "varying"]
    """c is zero, does not depend on h, or does."""
    factors: frozenset[fx.Node] = frozenset()
    """Those of `held` that depend on u and multiply what is carried."""

    @cached_property
    def after(self) -> Region:
        """L, with what it reads besides u."""
        inside = {self.node, *self.carried}
        side = dict.fromkeys(read for node in self.carried for read in node.all_input_nodes if read not in inside)
        return Region(self.node, self.region.exit, self.carried, tuple(side), frozenset(), affine=True, bias=False)

    @property
    def size(self) -> int:
        """How many coordinates are dealt out."""
        return math.prod(axis.size for axis in self.axes)

    def open(self, values: Mapping[fx.Node, Any], order: int = 0, frozen: Freeze | None = None) -> dict[fx.Node, Any]:
        """u and what L reads besides, from values (tensors or series) for the branch's entry and side inputs."""
        keep = {self.node, *self.held}
        if not self.before:
            return {node: values[node] for node in keep}
        computed = evaluate(self.before, dict(values), order, keep, frozen, constants=self.held - {self.node})
        return {node: computed[node] for node in keep}

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
            return self._run(read, zeros_like(u), order)
        dealt = kept(u, part.indices, self.axes)
        if self.constant != "varying":
            return self._linear(read, dealt, order)
        return minus(self._run(read, dealt, order), self._run(read, zeros_like(u), order), order)

    def linear_parts(
        self, opened: Mapping[fx.Node, Any], side: Mapping[fx.Node, Any], parts: Sequence[Part]
    ) -> Tensor | None:
        """L (1_I ⊙ u) for several parts of a tensor u, [part, *end], in one product; None where L is more than that."""
        product, indices = self._product, [part.indices for part in parts]
        if product is None or self.constant == "varying" or None in indices:
            return None
        return product.of_parts({**side, **opened}, self.axes, [one for one in indices if one is not None])

    @cached_property
    def _product(self) -> Product | None:
        """The matrix product that L is, if it is one."""
        return None if self.whole else product(self.node, self.carried)

    def fixed(self, opened: Mapping[fx.Node, Any], side: Mapping[fx.Node, Any]) -> Tensor:
        """c where it does not depend on h."""
        return self._run(self._read(opened, side, None), zeros_like(opened[self.node]), 0)

    def _read(
        self, opened: Mapping[fx.Node, Any], side: Mapping[fx.Node, Any], frozen: Freeze | None
    ) -> tuple[dict[fx.Node, Any], dict[fx.Node, Any]]:
        """What L reads besides u, and what norms and activations are held at: where they are frozen, true values."""
        wholes = {node: opened[whole_of(node)] for node in self.whole}
        if frozen is not None:
            for node in self.whole:
                if (gate := "norm" if node.target in HELD_NORMS else "gate") not in frozen.gates:
                    raise InputError(
                        f"with gates={frozen.gates} held, a part before {op_in_module(node)} is not affine: "
                        f"add {gate!r} to the gates, or take a jet or an atom there"
                    )
            wholes = {node: centre(value) for node, value in wholes.items()}
            opened = {**opened, **{node: centre(opened[node]) for node in self.factors}}
        return {**side, **opened}, wholes

    def _run(self, read: tuple[dict[fx.Node, Any], dict[fx.Node, Any]], u: Any, order: int) -> Any:
        """The branch's end where u is this; what L holds stays at its own value."""
        values, wholes = {**read[0], self.node: u}, read[1]
        if not self.carried:
            return u
        if not self.whole:
            return evaluate(self.carried, values, order, keep={self.carried[-1]})[self.carried[-1]]
        for node in self.carried:
            if node in self.whole:
                values[node] = held(node, wholes[node], values, order)
            else:
                evaluate((node,), values, order)
        return values[self.carried[-1]]

    def _linear(self, read: tuple[dict[fx.Node, Any], dict[fx.Node, Any]], u: Any, order: int) -> Any:
        """L u alone: pushed through as t · u, so that constants stay behind in the coefficients below."""
        if not self.carried:
            return u
        values, wholes = ({node: lifted(value, order + 1) for node, value in each.items()} for each in read)
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


@dataclass(frozen=True, eq=False)
class Branch:
    """One operand of a join besides the skip: γ in h + γ(h)."""

    name: str
    """Module path of the child that holds most of the branch's mixing operators."""
    alias: str
    """Short name, such as `L3.mlp`."""
    kind: str
    """`attn`, `conv`, `ssm`, `mix` or `mlp`, read off the operators; `skip` where it is affine and nothing mixes, as
    in a long skip."""
    region: Region
    """From the fork, or an earlier point, to the operand."""
    part: Part | None = None
    """Which part of that this is, where the branch was split into heads or neurons."""
    undivided: str = ""
    """Why it was left whole, where all branches of its kind were to be split."""

    @property
    def node(self) -> fx.Node:
        """The operand of the sum."""
        return self.region.exit


@dataclass(frozen=True, eq=False)
class Join:
    """h' = S(h) + Σ branches(h) (+ what does not depend on h); gated: S(h) = G h, G of the true stream."""

    name: str
    alias: str
    kind: SkipKind
    depth: int
    """0 on a stream, 1 and more inside the branch of another join."""
    fork: fx.Node
    node: fx.Node
    """The sum or concatenation itself."""
    skip: Region | None
    """From the fork to its image among the operands; None where only branches are added."""
    branches: tuple[Branch, ...]
    injections: tuple[fx.Node, ...]
    """Operands that do not depend on the fork."""
    operands: tuple[fx.Node, ...]
    """All operands in order; for a sum, the leaves of the tree of adds."""
    adds: tuple[fx.Node, ...]
    """The nodes that make up the sum or concatenation, in execution order."""
    gates: tuple[Region, ...] = ()
    """From the fork to each factor that the skip holds."""

    @property
    def concatenates(self) -> bool:
        """The operands lie side by side, and are not added up."""
        return self.node.target is torch.ops.aten.cat.default

    @property
    def inside(self) -> tuple[Region, ...]:
        """The functions of the fork that the join is made with: its branches, and the gates of its skip."""
        return (*(branch.region for branch in self.branches), *self.gates)

    def __repr__(self) -> str:
        inside = " + ".join(branch.alias for branch in self.branches)
        return f"Join({self.name!r}, kind={self.kind!r}, branches={inside}, depth={self.depth})"


@dataclass(frozen=True, eq=False)
class Summand:
    """One term of the encoder: the linear image of `leaf` at point 0; `leaf=None` is the constant part."""

    source: Source
    leaf: fx.Node | None


@dataclass(frozen=True, eq=False)
class Encoder:
    """Point 0 of the stream as a sum over leaves, through the affine region `nodes`."""

    exit: fx.Node
    nodes: tuple[fx.Node, ...]
    summands: tuple[Summand, ...]

    @property
    def leaves(self) -> tuple[fx.Node, ...]:
        return tuple(summand.leaf for summand in self.summands if summand.leaf is not None)

    @cached_property
    def side(self) -> tuple[fx.Node, ...]:
        """What the nodes read from outside: the leaves, and values such as positions and scales."""
        inside = set(self.nodes)
        return tuple(dict.fromkeys(arg for node in self.nodes for arg in node.all_input_nodes if arg not in inside))


@dataclass(frozen=True, eq=False)
class JoinStage:
    """A join as a step of a stream."""

    step: JoinStep
    join: Join
    region: Region
    """Of the whole step, from the point before it to the point after it."""

    @property
    def alias(self) -> str:
        return self.join.alias


@dataclass(frozen=True, eq=False)
class MapStage:
    """A map on the stream itself."""

    step: MapStep
    region: Region
    """From the point before it to the point after it."""

    @property
    def alias(self) -> str:
        return self.step.site.alias


Stage = JoinStage | MapStage
"""One step of a stream."""


@dataclass(frozen=True, eq=False)
class Stream:
    """A chain of joins and maps that starts at an encoder."""

    encoder: Encoder
    stages: tuple[Stage, ...]

    @property
    def end(self) -> fx.Node:
        return self.stages[-1].region.exit if self.stages else self.encoder.exit

    @cached_property
    def points(self) -> tuple[fx.Node, ...]:
        """The values of the stream: h_0, and h_p after step p."""
        return (self.encoder.exit, *(stage.region.exit for stage in self.stages))

    @cached_property
    def changes(self) -> tuple[int, ...]:
        """The numbers, from 0, of the stages through which a summand of the stream does not pass as it is."""
        return tuple(at for at, stage in enumerate(self.stages) if not _is_plain(stage, self.points[at]))

    @property
    def joins(self) -> tuple[Join, ...]:
        """The joins among the steps, in order."""
        return tuple(stage.join for stage in self.stages if isinstance(stage, JoinStage))


def _is_plain(stage: Stage, before: fx.Node) -> bool:
    """h + branches(h), of h's own shape and type."""
    if not isinstance(stage, JoinStage) or stage.join.skip is None or stage.join.skip.nodes:
        return False
    after = stage.region.exit
    return not stage.join.concatenates and all(before.meta[name] == after.meta[name] for name in ("shape", "dtype"))


@dataclass(frozen=True, eq=False)
class Decoder:
    """output = U(ν(h)): the nonlinear part, and the longest affine suffix."""

    nonlinear: Region
    affine: Region
    site: Site


@dataclass(frozen=True, eq=False)
class Structure:
    """What the analysis finds in a traced graph."""

    traced: Traced
    streams: tuple[Stream, ...]
    """In topological order; the last one leads to the output."""
    joins: tuple[Join, ...]
    decoder: Decoder

    @property
    def main(self) -> Stream:
        return self.streams[-1]

    @cached_property
    def sides(self) -> tuple[fx.Node, ...]:
        """What the regions on the way to the output read besides their entries."""
        regions: list[Region | Encoder] = [self.main.encoder, self.decoder.nonlinear, self.decoder.affine]
        for stage in self.main.stages:
            skip = stage.join.skip if isinstance(stage, JoinStage) else stage.region
            branches = stage.join.branches if isinstance(stage, JoinStage) else ()
            regions += [*(branch.region for branch in branches), *([] if skip is None else [skip])]
        return tuple(dict.fromkeys(node for region in regions for node in region.side))

    @cached_property
    def outline(self) -> Outline:
        return Outline(
            tuple(summand.source for summand in self.main.encoder.summands),
            tuple(stage.step for stage in self.main.stages),
            self.decoder.site,
        )
