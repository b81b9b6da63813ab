"""Terms as they arrive at a point of the stream, which is where they are centres."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from jetgraph.algebra.expansion import Expansion, expand
from jetgraph.algebra.outline import SINK, MapStep, Outline, Site
from jetgraph.algebra.paths import Path
from jetgraph.algebra.rules import Atom, Rule
from jetgraph.compilation.evaluation import evaluated
from jetgraph.compilation.origins import Model
from jetgraph.compilation.planning import plan
from jetgraph.residual import ResidualGraph
from jetgraph.running.forward import Forward

_END = Site(SINK, "", "logits", "decoder", affine=False, bias=False)
"""In the place of what reads the terms: something that is not linear in them."""


def up_to(graph: ResidualGraph, point: int) -> Outline:
    """What leads to a point of the stream; a term there is a path that ends behind it, in the sink."""
    return Outline(graph.outline.sources, graph.outline.steps[:point], _END)


def terms_at(graph: ResidualGraph, point: int, order: int) -> Expansion:
    """The exhaustive expansion of a point of the stream: Algorithm 2, up to there."""
    return expand(up_to(graph, point), order, scale="none")


def components_at(graph: ResidualGraph, point: int) -> Expansion:
    """What a point of the stream consists of after its last nonlinear map, at the true stream; exactly."""
    outline = up_to(graph, point)
    maps = [step.site for step in outline.steps if isinstance(step, MapStep) and not step.site.affine]
    rules: dict[str, Rule] = {site.alias: Atom() for site in maps}
    return expand(outline, 0, recipe="components", rules=rules)


def arriving(
    graph: ResidualGraph, expansion: Expansion, forward: Forward, paths: Sequence[Path]
) -> Mapping[Path, Tensor]:
    """The values of terms at the point where an expansion of `terms_at` or `components_at` ends."""
    model = Model(expansion, graph)
    point = expansion.sink - 1
    values = evaluated(plan(model, paths, point), model, forward)
    shape = forward.shape(model.point(point))
    return {path: value.expand(shape).contiguous() for path, value in values.hidden.items()}
