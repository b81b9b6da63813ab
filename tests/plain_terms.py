"""Terms of an expansion worked out from plain runs of the graph's pieces, for comparison."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

import jetgraph as jg
from jetgraph.jets.interpreter import evaluate
from jetgraph.structure.regions import Branch, Join, JoinStage, MapStage, Region


class RoughError(Exception):
    """A function has no derivatives at a centre, such as ReLU at 0, or changes too fast there for differences; or the
    centre is one of their rounding errors."""


@dataclass(frozen=True)
class Differences:
    """Central differences of a function with one step."""

    right: Tensor
    middle: Tensor
    left: Tensor
    step: float

    def __getitem__(self, order: int) -> Tensor:
        """Taylor coefficient 1 or 2, up to the square of the step."""
        if order == 1:
            return (self.right - self.left) / (2 * self.step)
        return (self.right - 2 * self.middle + self.left) / (2 * self.step**2)

    def smoother_than(self, wider: Differences) -> bool:
        """The slopes on both sides come nearer to each other as the step shrinks; at a kink they stay apart."""
        gap, before = (float((one[2] * one.step).abs().max()) for one in (self, wider))
        return gap <= 0.6 * before or gap <= 1e-9 * float(self[1].abs().max())

    def close_to(self, wider: Differences, order: int) -> bool:
        here = self[order]
        # A zero coefficient, as of a piecewise linear function, leaves only the value to be relative to.
        size = max(1e-4 * float(here.abs().max()), 1e-6 * float(self.middle.abs().max()))
        return float((here - wider[order]).abs().max()) <= size


class PlainTerms:
    """Terms of an expansion from plain runs of the graph's pieces in float64, one path at a time.

    Linear parts are differences of two runs, A x = S(x) − S(0), and Taylor coefficients are central differences of
    t ↦ f(x + t v); neither a series nor anything of `jetgraph.compilation` takes part.
    """

    def __init__(self, expansion: jg.Expansion, graph: jg.ResidualGraph, inputs: Mapping[str, Any]) -> None:
        self.expansion = expansion
        self.stages = graph.stream.stages
        self.encoder = graph.stream.encoder
        self.points = graph.stream.points
        self.decoder = graph.structure.decoder
        self.run = graph.run(**inputs)
        self.probed: dict[Region, tuple[int, ...] | None] = {}

    def __call__(self, path: jg.Path) -> Tensor:
        """The value of a path; no lens among them."""
        entry = self.expansion.entry(path.source.alias)
        if entry.enters == self.expansion.sink:
            return self.run.through(self.decoder.affine, self.zeros(self.decoder.affine.entry))
        value, point, weight = self.source(path.source.alias), entry.enters, 1.0
        for index, hop in enumerate(path.hops[1:], start=1):
            place = self.expansion.passage(hop.alias)
            value = self.carried(value, point, place.reads)
            region = self.region(hop.alias)
            if place.site.affine:
                value = self.linear(region, value)
            else:
                assert hop.order is not None
                centre, way = self.towards(hop.alias, value, weight, self.run[self.points[place.reads]])
                orders = range(hop.order + 1) if hop.together else (hop.order,)
                coefficients = (self.coefficient(region, centre, way, order) for order in orders)
                value = sum(coefficients, torch.zeros(()))
                weight = float(self.expansion.weight(path, index))
            value, point = self.landed(hop.alias, value), place.step
        return weight * value.expand(self.run.shape(self.decoder.affine.exit))

    def towards(self, alias: str, x: Tensor, weight: float, h: Tensor) -> tuple[Tensor, Tensor]:
        """The centre of a jet, and the way from there to the stream. Where the function does not change with the length
        of x, the weight takes no part, and each token has the length at which h − s x is perpendicular to h.
        """
        rule, region = self.expansion.rules[alias], self.region(alias)
        assert isinstance(rule, jg.Jet)
        free = self.free(region)
        if free is None or (rule.order and rule.scale == "none"):
            return weight * x, h - weight * x
        if not rule.order:
            return x, h - x
        seen, end = (self.run.through(region.normalised, y) for y in (x, h))
        whole = seen.dim() == x.dim()
        dims = tuple(
            dim for dim in range(-seen.dim(), 0) if (dim not in free if whole else dim >= len(free) - seen.dim())
        )
        if self.is_centred(region):
            seen, end = (y - y.mean(dims, keepdim=True) for y in (seen, end))
        along, square, length = ((a * b).sum(dims, keepdim=True) for a, b in ((seen, end), (end, end), (seen, seen)))
        if bool(((length > 0) & (length < 1e-12 * square)).any()):
            raise RoughError  # a zero to the digits of differences, which the scale would blow up
        near = (along > 1e-15 * (square * length).sqrt()) & (length > 1e-28 * square)
        scale, near = (
            value.reshape([size if dim - x.dim() in free else 1 for dim, size in enumerate(x.shape)])
            for value in (torch.where(near, square / along, 1), near)
        )
        return scale * x, torch.where(near, h - scale * x, 0)

    def free(self, region: Region) -> tuple[int, ...] | None:
        """The dimensions of the entry along which any positive factors change nothing; None where no length may."""
        if region not in self.probed:
            x = self.noise(region)
            # Far from the ε of a norm; and nearer too, for what saturates far away seems not to change.
            values = {size: self.run.through(region, size * x) for size in (10, 100)}

            def same(factor: Tensor | float) -> bool:
                return all(
                    float((self.run.through(region, factor * size * x) - value).abs().max())
                    <= 1e-5 * float(value.abs().max())
                    for size, value in values.items()
                )

            rank = x.dim()
            factors = {
                d: torch.linspace(1, 2, x.shape[d], dtype=x.dtype).reshape(-1, *[1] * (-d - 1)) for d in range(-rank, 0)
            }
            found = tuple(d for d, factor in factors.items() if same(factor))
            self.probed[region] = found if same(2.0) else None
        return self.probed[region]

    def is_centred(self, region: Region) -> bool:
        """Adding one number to the entry changes nothing."""
        x = 100 * self.noise(region)
        value, moved = self.run.through(region, x), self.run.through(region, x + 50)
        return float((moved - value).abs().max()) <= 1e-5 * float(value.abs().max())

    def noise(self, region: Region) -> Tensor:
        shape = self.run.shape(region.entry)
        return torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def coefficient(self, region: Region, centre: Tensor, direction: Tensor, order: int) -> Tensor:
        """Coefficient 0, 1 or 2 of t ↦ f(x + t v); raises `RoughError` where differences do not settle."""

        def f(t: float) -> Tensor:
            return self.run.through(region, centre + t * direction)

        middle = f(0)
        if order == 0:
            return middle
        if not bool(direction.any()):
            return torch.zeros_like(middle)
        if not bool(centre.any()):
            raise RoughError
        scale = float(centre.norm() / direction.norm())
        for step in (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8):
            wide, narrow = (Differences(f(s), middle, f(-s), s) for s in (step * scale, step * scale / 2))
            if narrow.smoother_than(wide) and narrow.close_to(wide, order):
                return (4 * narrow[order] - wide[order]) / 3
        raise RoughError

    def region(self, alias: str) -> Region:
        place = self.expansion.passage(alias)
        if place.site.role == "decoder":
            return self.decoder.nonlinear
        return self.stages[place.step - 1].region if place.site.role == "map" else self.branch(alias)[1].region

    def branch(self, alias: str) -> tuple[Join, Branch]:
        stage = self.stages[self.expansion.passage(alias).step - 1]
        assert isinstance(stage, JoinStage)
        join = stage.join
        return join, next(branch for branch in join.branches if branch.alias == alias)

    def zeros(self, node: fx.Node) -> Tensor:
        return torch.zeros(self.run.shape(node), dtype=torch.float64)

    def linear(self, region: Region, value: Tensor) -> Tensor:
        return self.run.through(region, value) - self.run.through(region, torch.zeros_like(value))

    def placed(self, join: Join, operand: fx.Node, value: Tensor) -> Tensor:
        """One operand of a sum or concatenation, all others zero, and itself where it is added once more."""
        operands: dict[fx.Node, Any] = {other: self.zeros(other) for other in join.operands} | {operand: value}
        return evaluate(join.adds, operands, keep={join.node})[join.node] / join.operands.count(operand)

    def carried(self, value: Tensor, start: int, stop: int) -> Tensor:
        for stage in self.stages[start:stop]:
            if isinstance(stage, MapStage):
                value = self.linear(stage.region, value)
            else:
                value = self.placed(stage.join, stage.join.skip.exit, self.linear(stage.join.skip, value))
        return value

    def landed(self, alias: str, value: Tensor) -> Tensor:
        role = self.expansion.passage(alias).site.role
        if role == "decoder":
            return self.linear(self.decoder.affine, value)
        if role == "map":
            return value
        join, branch = self.branch(alias)
        return self.placed(join, branch.node, value)

    def source(self, alias: str) -> Tensor:
        entry = self.expansion.entry(alias)
        if entry.origin == "encoder":
            return self.summand(alias)
        stage = self.stages[entry.enters - 1]
        if entry.origin == "skip":
            assert isinstance(stage, JoinStage)
            join = stage.join
            return self.placed(join, join.skip.exit, self.run.through(join.skip, self.zeros(join.skip.entry)))
        assert entry.site is not None
        region = self.region(entry.site.alias)
        made = self.run[region.exit] if entry.is_atom else self.run.through(region, self.zeros(region.entry))
        return self.landed(entry.site.alias, made)

    def summand(self, alias: str) -> Tensor:
        """The encoder with every other leaf at zero, less what it makes of zeros alone."""
        leaf = next(summand.leaf for summand in self.encoder.summands if summand.source.alias == alias)
        nothing = {node: torch.zeros_like(self.run[node]) for node in self.encoder.leaves}
        constant = self.encode(nothing)
        return constant if leaf is None else self.encode({**nothing, leaf: self.run[leaf]}) - constant

    def encode(self, leaves: Mapping[fx.Node, Tensor]) -> Tensor:
        values: dict[fx.Node, Any] = dict(leaves)
        for node in self.encoder.nodes:
            values |= {
                read: self.run[read] for read in node.all_input_nodes if read not in {*leaves, *self.encoder.nodes}
            }
        return evaluate(self.encoder.nodes, values)[self.encoder.exit].expand(self.run.shape(self.encoder.exit))
