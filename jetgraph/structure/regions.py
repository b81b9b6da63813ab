"""What the analysis finds, as frozen values: regions of the graph, joins, branches, streams and their two ends."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from torch import fx

from jetgraph.algebra.program import JoinStep, MapStep, Outline, Site, SkipKind, Source
from jetgraph.jets.frozen import leaves_constant
from jetgraph.tracing.trace import Traced

if TYPE_CHECKING:
    from jetgraph.structure.cuts import Part


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

    @cached_property
    def held_bias(self) -> bool:
        """With its gates held, the region may map zero to something else than zero."""
        return leaves_constant(self.nodes, self.entry)

    @cached_property
    def node_set(self) -> frozenset[fx.Node]:
        return frozenset(self.nodes)


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

    @property
    def node(self) -> fx.Node:
        """The operand of the sum."""
        return self.region.exit


@dataclass(frozen=True, eq=False)
class Join:
    """h' = S(h) + Σ branches(h) (+ what does not depend on h)."""

    name: str
    alias: str
    kind: SkipKind
    depth: int
    """0 on a stream, 1 and more inside the branch of another join."""
    fork: fx.Node
    node: fx.Node
    """The sum or concatenation itself."""
    skip: Region
    branches: tuple[Branch, ...]
    injections: tuple[fx.Node, ...]
    """Operands that do not depend on the fork."""
    operands: tuple[fx.Node, ...]
    """All operands in order; for a sum, the leaves of the tree of adds."""
    adds: tuple[fx.Node, ...]
    """The nodes that make up the sum or concatenation, in execution order."""

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

    @property
    def points(self) -> tuple[fx.Node, ...]:
        """The values of the stream: h_0, and h_p after step p."""
        return (self.encoder.exit, *(stage.region.exit for stage in self.stages))

    @property
    def joins(self) -> tuple[Join, ...]:
        """The joins among the steps, in order."""
        return tuple(stage.join for stage in self.stages if isinstance(stage, JoinStage))


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
    def outline(self) -> Outline:
        return Outline(
            tuple(summand.source for summand in self.main.encoder.summands),
            tuple(stage.step for stage in self.main.stages),
            self.decoder.site,
        )
