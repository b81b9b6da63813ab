"""The law of a region, to be held over any graph: what a region gives at a value is what the module gives there.

f is recomputed from the whole graph with another value at its entry (`tests.interpretation`), near the stream and far
from it. At the true stream what was left out of a region agrees by itself, so that only other values show it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn.attention import SDPBackend, sdpa_kernel

import jetgraph as jg
from jetgraph.jets.series import Series
from jetgraph.structure.cuts import find_neurons
from jetgraph.structure.heads import find_heads
from jetgraph.structure.parts import Axis
from jetgraph.structure.regions import MapStage, Region
from tests.interpretation import Interpretation

EXACT = 1e-10
"""Relative, in float64."""


@dataclass(frozen=True)
class Subject:
    """A graph on given inputs, run by itself and by `Interpretation`, with values to put at any of its nodes."""

    graph: jg.ResidualGraph
    forward: Any
    own: Interpretation
    other: Interpretation
    """The same graph on other inputs of the same sizes."""

    def elsewhere(self, node: fx.Node) -> Iterator[Tensor]:
        """Values near the node's own, and far from it: another input's, and noise three times as large."""
        h = self.own.values[node]
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(h.shape, generator=generator, dtype=torch.float64).to(h.dtype)
        size = h.double().square().mean().sqrt().to(h.dtype)
        yield h + 0.1 * size * noise
        yield self.other.values[node]
        yield 3 * size * noise.flip(-1)

    def at(self, region: Region, value: Tensor) -> Tensor:
        """What the graph makes of another value at a region's entry, what the region holds being as it is."""
        held = {node: self.own.values[node] for node in region.held}
        return self.own({region.entry: value} | held, region.exit)

    def regions(self) -> Iterator[tuple[str, Region, Callable[..., Any]]]:
        """Every function that jetgraph cuts out of the graph, once: its name, its region, and how it is run."""
        forward, seen = self.forward, set()

        def new(region: Region) -> bool:
            key = (region.entry, region.exit)
            return bool(region.nodes) and key not in seen and not seen.add(key)

        def through(region: Region) -> Callable[..., Any]:
            return lambda value, order=0: forward.through(region, value, order)

        for join in self.graph.joins:
            for branch in join.branches:
                if new(branch.region):
                    yield branch.alias, branch.region, lambda value, order=0, b=branch: forward.branch(b, value, order)
            if join.skip is not None and new(join.skip):
                yield f"the skip of {join.alias}", join.skip, through(join.skip)
        for stream in self.graph.streams:
            for stage in stream.stages:
                if isinstance(stage, MapStage):
                    if new(stage.region):
                        yield stage.alias, stage.region, through(stage.region)
                    continue
                for branch in stage.join.branches:
                    if branch.part is None and new(branch.region):  # as the stream sees it, from its own point
                        yield branch.alias, branch.region, through(branch.region)
        decoder = self.graph.structure.decoder
        for name, region in (("the decoder's ν", decoder.nonlinear), ("the decoder's U", decoder.affine)):
            if new(region):
                yield name, region, through(region)


def subject(graph: jg.ResidualGraph, inputs: dict[str, Any], others: dict[str, Any], dtype: torch.dtype) -> Subject:
    """The graph with weights and inputs of this dtype; weights that are all zero get values, so that they show, unless
    the trace is held to decisions that follow from them.
    """
    generator = torch.Generator().manual_seed(0)

    def cast(value: Any) -> Any:
        return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

    def shown(weight: Tensor) -> Tensor:
        if not weight.is_floating_point() or weight.any() or graph.traced.decisions is not None:
            return weight
        return 0.1 * torch.randn(weight.shape, generator=generator, dtype=torch.float64)

    weights = {name: cast(shown(weight.detach())) for name, weight in graph.traced.tensors.items()}
    graph = graph.relocated(weights.__getitem__)
    given, changed = ({k: cast(v) for k, v in each.items()} for each in (inputs, others))
    with torch.no_grad():
        return Subject(graph, graph.run(**given), Interpretation(graph, given), Interpretation(graph, changed))


def distance(actual: Tensor, expected: Tensor) -> float:
    """max |actual − expected| over max |expected|; shapes may differ by sizes of one."""
    assert actual.numel() == expected.numel()
    scale = float(expected.detach().double().abs().max())
    difference = actual.detach().reshape(expected.shape).double() - expected.detach().double()
    return float(difference.abs().max()) / (scale or 1.0)


def check_values(given: Subject, tolerance: float = EXACT, *, finite: bool = True) -> int:
    """f at other values of its entry, for every region; returns how many comparisons were made.

    With `finite` all values must be; else those are passed over at which a function is not.
    """
    count = 0
    for name, region, function in given.regions():
        for number, value in enumerate(given.elsewhere(region.entry)):
            expected = given.at(region, value)
            if not finite and not expected.isfinite().all():
                continue
            assert expected.isfinite().all(), f"{name}: choose another model"
            assert distance(function(value), expected) < tolerance, f"{name} at value {number}"
            count += 1
    return count


def check_affine(given: Subject) -> None:
    """`affine` where f((1 − t) a + t b) = (1 − t) f(a) + t f(b) for all t, and `bias` where such an f(0) ≠ 0."""
    for name, region, _ in given.regions():
        f = partial(given.at, region)
        near, *_, far = given.elsewhere(region.entry)
        ends = f(near), f(far)
        scale = max(float(end.abs().max()) for end in ends)
        bent = max(
            float((f((1 - t) * near + t * far) - (1 - t) * ends[0] - t * ends[1]).abs().max())
            for t in (0.4, 3.0, -2.0, 9.0)
        )
        if torch.equal(*ends) and bent <= 1e-9 * scale and not region.affine:
            continue  # a mask that no value of this net reaches
        assert region.affine is (bent <= 1e-9 * scale), f"{name} is affine up to {bent / scale:.1e}"
        if region.affine:
            constant = float(f(torch.zeros_like(near)).abs().max())
            assert region.bias is (constant > 1e-12 * scale), f"{name} is {constant:.1e} at zero"


def check_slopes(given: Subject, tolerance: float = 10 * EXACT) -> None:
    """Coefficient 1 of f(h′ + t v) for every region, against forward-mode derivatives of the interpretation."""
    for name, region, function in given.regions():
        near, *_, far = given.elsewhere(region.entry)
        v = far - near
        with sdpa_kernel(SDPBackend.MATH):  # the others have no forward-mode derivative
            _, expected = torch.func.jvp(partial(given.at, region), (near,), (v,))
        series = function(Series.variate(near, v, 1), 1)
        actual = series.coefficient(1) if isinstance(series, Series) else torch.zeros_like(series)
        assert distance(actual, expected) < tolerance, name


# Parts


def parted(graph: jg.ResidualGraph) -> jg.ResidualGraph | None:
    """The graph with every branch of its streams that can be cut into heads or groups of neurons cut so."""
    how: dict[str, Any] = {}
    for join in (join for stream in graph.streams for join in stream.joins):
        for branch in join.branches:
            cut = (find_heads if branch.kind == "attn" else find_neurons)(branch.region)
            if cut is not None:
                how[branch.alias] = "heads" if branch.kind == "attn" else min(3, cut.size)
    return graph.split(how) if how else None


def check_parts(given: Subject, tolerance: float = EXACT, *, finite: bool = True) -> tuple[int, int]:
    """Σ parts + constant = branch, at other values; and each part by hand where the end is linear in what is dealt out.

    Part I is then f(h′; 1_I ⊙ u′) − f(h′; 0), f as a function of the entry and of the inner value u. Returns the
    numbers of branches and of parts compared. `finite` as of `check_values`.
    """
    whole, alone = 0, 0
    parts = [branch for branch in given.graph.branches.values() if branch.part is not None]
    for cut, entry, exit in dict.fromkeys((b.part.cut, b.region.entry, b.node) for b in parts):  # type: ignore[union-attr]
        own = [branch for branch in parts if branch.part is not None and branch.part.cut is cut]
        for value in given.elsewhere(entry):
            expected = given.own({entry: value}, exit)
            if not finite and not expected.isfinite().all():
                continue
            found = [given.forward.branch(branch, value) for branch in own]
            constant = [given.forward.pieces.constant(cut, value)] if cut.constant == "fixed" else []
            assert distance(sum([*found, *constant]), expected) < tolerance, own[0].alias
            u = given.own({entry: value}, cut.node)
            zero = given.own({entry: value, cut.node: torch.zeros_like(u)}, exit)
            double = given.own({entry: value, cut.node: 2 * u}, exit)
            whole += 1
            if distance(double - zero, 2 * (expected - zero)) > 1e-9:
                continue  # a norm after u, whose denominator the parts hold
            for branch, actual in zip(own, found, strict=True):
                assert branch.part is not None
                if branch.part.indices is not None:
                    kept = _only(u, branch.part.indices, cut.axes)
                    by_hand = given.own({entry: value, cut.node: kept}, exit) - zero
                    assert float((actual - by_hand).abs().max()) <= tolerance * float(expected.abs().max()), (
                        branch.alias
                    )
                    alone += 1
    return whole, alone


def _only(value: Tensor, indices: tuple[int, ...], axes: tuple[Axis, ...]) -> Tensor:
    """Zero outside these coordinates, which count the axes as the digits of a number, place by place."""
    kept = torch.zeros(value.shape, dtype=torch.bool)
    for index in indices:
        here = torch.ones(value.shape, dtype=torch.bool)
        for axis in reversed(axes):
            index, digit = divmod(index, axis.size)
            length = value.shape[axis.dim]
            inner = axis.inner or length // (axis.size * (axis.outer or 1))
            along = torch.tensor([place // inner % axis.size == digit for place in range(length)])
            here &= along.reshape(-1, *[1] * (-axis.dim - 1))
        kept |= here
    return torch.where(kept, value, 0)
