"""What every lens needs: the stream's points, sums of jets of the decoder, and the output's shape and tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jetgraph.algebra.expansion import Expansion
from jetgraph.algebra.outline import JoinStep, Outline
from jetgraph.algebra.paths import Path
from jetgraph.applications.intervals import Array
from jetgraph.applications.subject import Subject, stream_inputs
from jetgraph.compilation import PathValues
from jetgraph.errors import InputError
from jetgraph.residual import ResidualGraph
from jetgraph.running.components import Graph
from jetgraph.running.forward import Forward
from jetgraph.running.indices import dims_of_rows

CHUNK = 2**28
"""Bytes of logits that are in memory at once where they are streamed, on a CPU."""

LARGE_CHUNK = 2**31
"""The same on an accelerator, where each chunk is a number of launches."""

Layers = int | str | Sequence[int | str] | None
"""Points of the stream, as `lens` takes them."""


def after_point(outline: Outline, point: int) -> str:
    """What a point of the stream follows: the sources, the branches of a join, or a map."""
    if point == 0:
        return " + ".join(source.alias for source in outline.sources)
    step = outline.steps[point - 1]
    if isinstance(step, JoinStep):
        return " + ".join(named.alias for named in (*step.branches, *step.injections))
    return step.site.alias


def lens_points(expansion: Expansion) -> tuple[int, ...]:
    """The points at which an expansion of recipe `lens` looks."""
    return tuple(entry.point for entry in expansion.entries if entry.is_stream)


def jet_sums(expansion: Expansion, values: PathValues, sources: Sequence[str], orders: Sequence[int]) -> Tensor:
    """Expansions of the decoder around some sources, with its bias: see `JetSums.of`."""
    return JetSums(expansion, values).of(sources, orders)


class JetSums:
    """Expansions of the decoder around the sources of a lens, summed up to some orders, from the values of its terms.

    Parameters
    ----------
    expansion
        Of the recipe `lens`.
    values
        Of its terms.
    """

    def __init__(self, expansion: Expansion, values: PathValues) -> None:
        self._values = values
        self._affine = expansion.outline.decoder.affine
        self._terms: dict[str, list[tuple[Path, int]]] = {}
        """By source, its terms and their orders."""
        self._biases: list[Path] = []
        for path in values.hidden:
            if expansion.start(path).is_output_bias:
                self._biases.append(path)
            else:
                self._terms.setdefault(path.source.alias, []).append((path, path.hops[-1].order or 0))

    def of(self, sources: Sequence[str], orders: Sequence[int]) -> Tensor:
        """The sums with the decoder's bias: [source, order, *output].

        They are made before the unembedding, so that each of them takes one product with it. The jet of order 1 or more
        of an affine decoder is the decoder itself, whatever the centre. Of the output's type.
        """
        rows = [0] if self._affine else orders
        terms = [(at, path, taken) for at, source in enumerate(sources) for path, taken in self._terms[source]]
        single = len(rows) == 1 and not self._biases and [at for at, *_ in terms] == [*range(len(sources))]
        if single and all(taken <= rows[0] for *_, taken in terms):
            # Each sum is one term, with nothing to add up.
            return self._exact(self._values.each([path for _, path, _ in terms]).unsqueeze(1), orders)
        owner, taken = (np.array([term[part] for term in terms], dtype=int) for part in (0, 2))
        own = owner == np.arange(len(sources))[:, None, None]
        weights = torch.ones(len(sources) * len(rows), len(terms) + len(self._biases))
        weights[:, : len(terms)] = torch.from_numpy(own & (taken <= np.array(rows)[:, None])).flatten(0, 1)
        paths = [*(path for _, path, _ in terms), *self._biases]
        return self._exact(self._values.combine(weights, paths).unflatten(0, (len(sources), len(rows))), orders)

    def _exact(self, sums: Tensor, orders: Sequence[int]) -> Tensor:
        """Sums up to all orders; those of an affine decoder are there up to order 0, and are the output above it."""
        if not self._affine:
            return sums
        exact = self._values.output.expand_as(sums[:, 0])
        return torch.stack([sums[:, 0] if order == 0 else exact for order in orders], dim=1)


def output_shape(one: Subject, inputs: Mapping[str, Any]) -> tuple[int, ...]:
    """The output's shape on these inputs, without computing it."""
    return shape_of(one.graph, one.run(inputs))


def shape_of(graph: ResidualGraph, forward: Forward) -> tuple[int, ...]:
    """The output's shape of a forward pass of a graph, without computing it.

    Raises
    ------
    InputError
        An output that is neither [batch, length, vocabulary] nor [batch, classes].
    """
    shape = forward.shape(graph.traced.output)
    if len(shape) not in (2, 3):
        raise InputError(
            f"a lens reads outputs of shape [batch, length, vocabulary] or [batch, classes], but "
            f"{graph.traced.output_name!r} of {graph.title} has shape {list(shape)}: name another with "
            "jetgraph.trace(model, ..., output=...)"
        )
    return shape


def token_ids(graph: ResidualGraph, inputs: Mapping[str, Any], rows: Sequence[int]) -> Tensor | None:
    """The ids that belong to the rows of the output, [batch, length]: the integer input of their shape that the stream
    starts from. One number for each input, such as a class, is no token of it.
    """
    for name in stream_inputs(graph) if len(rows) == 2 else ():
        value = inputs.get(name)
        if isinstance(value, Tensor) and not value.is_floating_point() and tuple(value.shape) == tuple(rows):
            return value.cpu()
    return None


def by_position(output: Tensor) -> Tensor:
    """[batch, length, vocabulary], with a length of 1 where the output has none."""
    return output if output.dim() == 3 else output.unsqueeze(1)


def by_rows(values: Tensor, rows: tuple[int, ...], dims: tuple[int | None, int | None]) -> Array:
    """What a stack gives by token, for each row of the output; what it gives by element of the batch, for all its rows:
    [n, *rows], in float64.

    `dims` are those of the stream along which the batch and the positions lie: where positions come first, tokens do.
    """
    number, (batch, positions) = len(values), dims
    flat = values.double().cpu().numpy().reshape(number, -1)
    if flat.shape[1] != math.prod(rows):
        found = np.broadcast_to(flat.reshape(number, rows[0], -1)[:, :, :1], (number, *rows))
    elif batch is not None and positions is not None and positions < batch:
        found = flat.reshape(number, *rows[::-1]).swapaxes(1, 2)
    else:
        found = flat.reshape(number, *rows)
    return found.copy()


def stream_dims(graph: Graph) -> tuple[int | None, int | None]:
    """The dimensions of the end of the stream along which batch and positions of the output lie."""
    return dims_of_rows(graph.structure.main.end.meta["shape"], graph.traced.output.meta["shape"][:-1])


def is_norm_alone(graph: Graph) -> bool:
    """The decoder is one norm, up to affine parts."""
    region = graph.structure.decoder.nonlinear
    return bool(region.nodes) and region.scaling is not None and region.scaling.alone
