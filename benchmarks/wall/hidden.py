"""Which hidden states of a model are values that jetgraph has found, in whatever layout.

A model returns its states as it likes: permuted, without the padding that it added, as a piece of a value that holds
several, or through a norm that the next layer does not read. So a state is looked for among all values of the graph,
and from where it is found the graph is followed upwards: no learned operator may lie between a value that jetgraph
names (a point of a stream, the fork or the sum of an inner join) and the state. What the output is not made of at all,
autograd knows; what is the same for all inputs, such as the queries that a decoder starts from, is no state.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor, fx, nn

import jetgraph as jg
from benchmarks.wall.inputs import BATCH
from benchmarks.wall.sums import residual_sums
from jetgraph.structure.regions import MapStage, Region
from tests.interpretation import Interpretation

FIELDS = ("hidden_states", "encoder_hidden_states", "decoder_hidden_states")

LEARNED = ("linear", "mm", "matmul", "einsum", "conv", "attention", "embedding", "lstm", "gru", "pool")
"""What the name of an operator says where it mixes features or positions."""


def found_states(graph: jg.ResidualGraph, model: nn.Module, given: Mapping[str, Tensor]) -> tuple[int, int] | None:
    """How many of the hidden states are found, and how many the output is made of; None where there are none."""
    # As it was traced: some models mask otherwise with a cache.
    cached = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}
    try:
        result = model(**given, **cached, output_hidden_states=True)
    except Exception:  # not every model has the option
        return None
    states = [state for name in FIELDS for state in _flat(getattr(result, name, None)) if _varies(state)]
    if not states or not graph.joins:
        return None
    with torch.no_grad():
        run = Interpretation(graph, given).values
    values = {node: run[node] for node in _varying(graph) if _is_float(run[node])}
    carriers = {node for node in run if node in values or isinstance(run[node], tuple | list)}
    output = next(_flat([getattr(result, graph.traced.output_name, None), *result.values()]))
    known = _named(graph, values)
    counted = [_is_known(state, values, known, carriers) for state in states]
    left = [each for each, state in zip(counted, states, strict=True) if each is not None or _used(output, state)]
    return (left.count(True), len(left)) if left else None


def _flat(found: Any) -> Iterator[Tensor]:
    if isinstance(found, Tensor):
        yield found
    elif isinstance(found, Sequence):
        for each in found:
            yield from _flat(each)


def _varies(state: Tensor) -> bool:
    """The two examples of a batch, which differ, have made different states."""
    return len(state) != BATCH or not torch.equal(*state)


def _named(graph: jg.ResidualGraph, varying: Collection[fx.Node]) -> set[fx.Node]:
    """Points, forks and sums of all joins, and where no residual sum was missed: what lies in the encoder or the
    decoder, before the first join and after the end of the main stream, and the values that a map runs through.
    """
    points = {point for stream in graph.streams for point in stream.points}
    ends = {node for join in graph.joins for node in (join.fork, join.node)}
    first = min(graph.positions[join.fork] for join in graph.joins)
    last = graph.positions[graph.stream.points[-1]]
    inputs = [name for name, binding in graph.traced.bindings.items() if binding.kind == "input"]
    sums = set(residual_sums(graph.traced.graph, inputs, concatenations=False))
    around = (
        {node for node in varying if graph.positions[node] < first},
        {node for node in varying if graph.positions[node] > last},
    )
    maps = [stage.region for stream in graph.streams for stage in stream.stages if isinstance(stage, MapStage)]
    through = (set(_narrow(region)) for region in maps if sums.isdisjoint(region.nodes))
    return points.union(ends, *(nodes for nodes in around if sums.isdisjoint(nodes)), *through)


def _narrow(region: Region) -> Iterator[fx.Node]:
    """The values of a region that every way through it passes."""
    for left_out in region.nodes:
        reached = {region.entry}
        for node in region.nodes:
            if node is not left_out and not reached.isdisjoint(node.all_input_nodes):
                reached.add(node)
        if region.exit not in reached:
            yield left_out


def _varying(graph: jg.ResidualGraph) -> set[fx.Node]:
    """What depends on the inputs."""
    found = set[fx.Node]()
    for node in graph.traced.graph.nodes:
        given = node.op == "placeholder" and graph.traced.bindings[node.name].kind == "input"
        if node.op != "output" and (given or not found.isdisjoint(node.all_input_nodes)):
            found.add(node)
    return found


def _is_known(
    state: Tensor, values: Mapping[fx.Node, Tensor], known: Collection[fx.Node], carriers: Collection[fx.Node]
) -> bool | None:
    """Whether a state is made of one named value without learned operators; None where it is no value of the graph."""
    holders = [node for node, value in values.items() if is_same(state, value)]
    wholes = (node for node, value in values.items() if is_piece(state, value))
    if any(_leads_up(node, known, carriers) for node in (*holders, *wholes)):
        return True
    return False if holders else None


def _leads_up(node: fx.Node, known: Collection[fx.Node], carriers: Collection[fx.Node]) -> bool:
    """Every way up from a node ends at the same named value, and no learned operator lies on it."""
    reached, seen, stack = set[fx.Node](), {node}, [node]
    while stack:
        current = stack.pop()
        if current in known:
            reached.add(current)
            continue
        if any(word in str(current.target) for word in LEARNED):
            return False
        fresh = [parent for parent in current.all_input_nodes if parent in carriers and parent not in seen]
        seen.update(fresh)
        stack += fresh
    return len(reached) == 1


def _used(output: Tensor, state: Tensor) -> bool:
    """The output is computed from the very tensor; what no weight has made is no state of a stream."""
    return (
        state.requires_grad
        and torch.autograd.grad(output.sum(), state, retain_graph=True, allow_unused=True)[0] is not None
    )


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def is_same(state: Tensor, value: Tensor) -> bool:
    """The same numbers, in whatever layout: [batch, channel, height, width] or [batch, position, channel]."""
    if state.numel() != value.numel():
        return False
    state, value = state.detach().double(), value.detach().double()
    # Of some models the values are tiny; what counts is by how much two differ for their size.
    size = state.square().mean().sqrt().item()
    # What no layout changes, before everything is sorted: a graph has hundreds of values as large as a state.
    measures = ((size, value.square().mean().sqrt().item()), *((f(state).item(), f(value).item()) for f in _EXTREMES))
    if any(abs(a - b) > 1e-4 * size + 1e-3 * abs(b) for a, b in measures):
        return False
    if state.shape != value.shape:
        state, value = state.flatten().sort().values, value.flatten().sort().values
    return torch.allclose(state, value, rtol=1e-3, atol=1e-4 * size)


_EXTREMES = (torch.amin, torch.amax)
"""Of close values they are as close; so is the root of the mean square."""


def is_piece(state: Tensor, value: Tensor) -> bool:
    """A value without its padding, or one of several that lie side by side in it."""
    if (
        state.shape == value.shape
        or state.dim() != value.dim()
        or any(a > b for a, b in zip(state.shape, value.shape, strict=True))
    ):
        return False
    starts = [sorted({*range(0, b - a + 1, a), b - a}) for a, b in zip(state.shape, value.shape, strict=True)]
    return any(
        is_same(state, value[tuple(slice(at, at + size) for at, size in zip(place, state.shape, strict=True))])
        for place in product(*starts)
    )
