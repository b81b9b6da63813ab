"""Lenses: what the decoder makes of the stream before its end, how far that is from the model's output, and why.

A lens at point p expands the decoder around the stream there, h_p, towards the stream at its end, h_n:

    lens_{p,k} = U Σ_{j≤k} (1/j!) D^j ν(h_p)[(h_n − h_p)^{⊗j}] + b        (output = U ν(h_n) + b)

Order 0 is the logit lens, order k ≥ 1 the iterative jet lens, each layer an expansion of its own. The joint lens
takes the components of the stream as centres instead, together, with weights on the simplex.

What decides about orders is the radius of convergence ρ of t ↦ ν(h_p + t (h_n − h_p)) at t = 0, since the lens is its
Taylor polynomial at t = 1: for ρ > 1 higher orders converge to the output, for ρ < 1 they diverge from it.

Source: Chen et al., "Jet Expansions of Residual Computation", arXiv 2410.06024.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import nnls
from torch import Tensor, nn
from tqdm import tqdm

from jetgraph.applications.results import Cell, Result
from jetgraph.applications.subject import Inputs, Model, Subject, subject
from jetgraph.compilation import PathModule, PathValues, compile
from jetgraph.errors import BudgetError, InputError
from jetgraph.expansion import Expansion, expand
from jetgraph.jets import Series
from jetgraph.loading import Loaded, load, quiet
from jetgraph.program import Atom, JoinStep, MapStep, Outline
from jetgraph.readout import centred, token_text
from jetgraph.residual import Forward, ResidualGraph

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LENS_BUDGET = 2**33
"""Bytes of logits that one `lens` may hold."""

CHUNK = 2**28
"""Bytes of logits that are in memory at once where they are streamed."""

RADIUS_ORDER = 24
"""Highest Taylor coefficient from which a radius of convergence is read."""

RADIUS_TOKENS = 2048
"""Tokens on which `evaluate_lens` measures distances and radii."""

METRICS = ("kl", "cosine", "top1", "top5", "remainder")
"""What `compare` measures, in its order."""

Array = NDArray[np.float64]
Layers = int | str | Sequence[int | str] | None


# Distances between logits


@dataclass(frozen=True, eq=False)
class Comparison:
    """Distances between the logits of a model and of something that stands for them, one per vector of logits."""

    kl: Tensor
    """KL(model ‖ other) in nats."""
    cosine: Tensor
    """Cosine of the centred logits; 0 where one of them is constant."""
    top1: Tensor
    """The most probable tokens agree."""
    top5: Tensor
    """The model's most probable token is among the other's five."""
    remainder: Tensor
    """‖model − other‖ / ‖model‖ of centred logits."""


def compare(model: Tensor, other: Tensor) -> Comparison:
    """Distances of `other` [..., vocab] to `model` [..., vocab] over the last dimension, in float64.

    Leading dimensions broadcast, so one model can be compared with many lenses. Of equal logits the first
    one counts as the largest.

    >>> import torch
    >>> found = compare(torch.tensor([2.0, 0.0, 1.0]), torch.tensor([[7.0, 5.0, 6.0], [0.0, 4.0, 2.0]]))
    >>> found.top1.tolist(), found.cosine.round(decimals=9).tolist(), found.remainder.round(decimals=9).tolist()
    ([True, False], [1.0, -1.0], [0.0, 3.0])
    """
    a, b = centred(model), centred(other)
    log_p, log_q = a.log_softmax(-1), b.log_softmax(-1)
    kl = (log_p.exp() * (log_p - log_q)).sum(-1)
    scale = a.norm(dim=-1)
    product = scale * b.norm(dim=-1)
    cosine = torch.where(product > 0, (a * b).sum(-1) / product, 0.0)
    best = a.argmax(-1, keepdim=True).expand(*b.shape[:-1], 1)
    chosen = b.gather(-1, best)
    places = torch.arange(b.shape[-1], device=b.device)
    rank = ((b > chosen) | ((b == chosen) & (places < best))).sum(-1)
    return Comparison(
        # Rounding may leave a tiny negative number where the two are equal.
        kl.clamp_min(0.0),
        cosine,
        rank == 0,
        rank < 5,
        (a - b).norm(dim=-1) / scale,
    )


# The stream's points


def _after(outline: Outline, point: int) -> str:
    """What a point of the stream follows: the sources, the branches of a join, or a map."""
    if point == 0:
        return " + ".join(source.alias for source in outline.sources)
    step = outline.steps[point - 1]
    if isinstance(step, JoinStep):
        return " + ".join(named.alias for named in (*step.branches, *step.injections))
    return step.site.alias


def _points(expansion: Expansion) -> tuple[int, ...]:
    return tuple(entry.point for entry in expansion.entries if entry.origin == "stream")


def _partial_sums(expansion: Expansion, values: PathValues, source: str) -> Tensor:
    """The expansions around one source of orders 0..k with the decoder's bias: [k+1, *output].

    The jet of order 1 or more of an affine decoder is the decoder itself, whatever the centre. Half precision is summed
    in float32.
    """
    biases = {entry.source.alias for entry in expansion.entries if entry.origin == "decoder"}
    terms = [term for path, term in values.terms.items() if path.source.alias == source]
    bias = [term for path, term in values.terms.items() if path.source.alias in biases]
    dtype = torch.promote_types(terms[0].dtype, torch.float32)
    first = sum((term.to(dtype) for term in bias), terms[0].to(dtype))
    if expansion.outline.decoder.affine:
        return torch.stack((first, *[values.output.to(dtype)] * expansion.order))
    return torch.stack((first, *(term.to(dtype) for term in terms[1:]))).cumsum(0)


def _output_shape(graph: ResidualGraph, inputs: Mapping[str, Any]) -> tuple[int, ...]:
    """The output's shape on these inputs, without computing it."""
    shape = graph.run(**inputs).shape(graph.traced.output)
    if len(shape) not in (2, 3):
        raise InputError(
            f"a lens reads outputs of shape [batch, length, vocabulary] or [batch, classes], but "
            f"{graph.traced.output_name!r} of {graph.title} has shape {list(shape)}: name another with "
            "jetgraph.trace(model, ..., output=...)"
        )
    return shape


def _token_ids(graph: ResidualGraph, inputs: Mapping[str, Any], rows: Sequence[int]) -> Tensor | None:
    """The ids that belong to the rows of the output: the integer input of their shape that the stream starts from."""
    encoder = graph.stream.encoder
    seen, stack = set(), [encoder.exit]
    while stack:
        node = stack.pop()
        if node not in seen:
            seen.add(node)
            stack.extend(node.all_input_nodes)
    for node in graph.traced.graph.find_nodes(op="placeholder"):
        binding = graph.traced.bindings[node.name]
        value = inputs.get(binding.name) if node in seen and binding.kind == "input" else None
        if isinstance(value, Tensor) and not value.is_floating_point() and tuple(value.shape) == tuple(rows):
            return value.cpu()
    return None


# Lens


@dataclass(frozen=True, eq=False, repr=False)
class Lens(Result):
    """The lens at points of the stream, for orders 0..k. Made by `lens`."""

    model: str
    points: tuple[int, ...]
    """Numbers of the points: 0 is the encoder's sum, p the stream after step p."""
    after: tuple[str, ...]
    """What each point follows, such as `L0.attn`."""
    logits: Tensor
    """[point, order, batch, length, vocabulary], or [point, order, batch, classes]; order j is the sum of the terms
    0..j and the decoder's bias, so the last order is the lens of order k. At least float32."""
    output: Tensor
    """The model's own: [batch, length, vocabulary], or [batch, classes]."""
    tokens: Tensor | None
    """Input ids [batch, length]; None where the model reads no ids."""
    tokenizer: Any | None

    @property
    def order(self) -> int:
        """The highest order."""
        return self.logits.shape[1] - 1

    @property
    def title(self) -> str:
        name = "Logit lens" if self.order == 0 else f"Jet lens of orders 0 to {self.order}"
        rows = "" if self.output.dim() == 2 else f" of {self.output.shape[1]} positions"
        return f"{name} of {self.model} at {len(self.points)} points, {self.output.shape[0]} inputs{rows}"

    @cached_property
    def comparison(self) -> Comparison:
        """Distances to the model's output, [point, order, batch, length] or [point, order, batch]."""
        found = [compare(self.output, logits) for logits in self.logits]
        return Comparison(*(torch.stack([getattr(one, name) for one in found]) for name in METRICS))

    def columns(self) -> Mapping[str, Sequence[Cell]]:
        """One row per point, order, input and position.

        `token` is the input token, `top` the lens's most probable token with its `probability`, and `says` the model's;
        then KL(model ‖ lens) in nats, cosine of centred logits, agreement of the two top tokens, and
        ‖output − lens‖ / ‖output‖ of centred logits.
        """
        points, orders, batch, length, _ = self._grid.shape
        best = self._grid.max(-1)
        probability = (best.values.double() - self._grid.double().logsumexp(-1)).exp()
        top, says = best.indices.tolist(), _rows(self.output).argmax(-1).tolist()
        flat = {
            name: getattr(self.comparison, name).flatten().tolist() for name in ("kl", "cosine", "top1", "remainder")
        }
        index = [
            (p, j, row, i) for p in range(points) for j in range(orders) for row in range(batch) for i in range(length)
        ]
        return {
            "point": [f"h{self.points[p]}" for p, *_ in index],
            "after": [self.after[p] for p, *_ in index],
            "order": [j for _, j, *_ in index],
            "input": [row for _, _, row, _ in index],
            "position": [i if self.output.dim() == 3 else None for *_, i in index],
            "token": [None if self.tokens is None else self._text(int(self.tokens[row, i])) for _, _, row, i in index],
            "top": [self._text(top[p][j][row][i]) for p, j, row, i in index],
            "probability": probability.flatten().tolist(),
            "says": [self._text(says[row][i]) for _, _, row, i in index],
            "kl": flat["kl"],
            "cosine": flat["cosine"],
            "agrees": flat["top1"],
            "remainder": flat["remainder"],
        }

    @property
    def _grid(self) -> Tensor:
        """Logits as [point, order, batch, length, vocabulary] in every case."""
        return self.logits if self.logits.dim() == 5 else self.logits.unsqueeze(3)

    def _text(self, index: int) -> str:
        return token_text(self.tokenizer, index)

    def figure(self, row: int = 0, colour: Literal["kl", "probability"] = "kl") -> Figure:
        """Top tokens by point (from below) and position of one input, orders side by side, the model's own on top.

        Colours are KL(model ‖ lens) in nats or the top token's probability. Outputs [batch, classes] have one column
        per input instead of one per position.
        """
        from matplotlib.colors import LogNorm, Normalize
        from matplotlib.figure import Figure

        if not 0 <= row < self.output.shape[0]:
            raise InputError(f"the lens has inputs 0..{self.output.shape[0] - 1}, so row={row} does not exist")
        if self.output.dim() == 3:
            logits, output, heads = self.logits[:, :, row], self.output[row], self._heads(row)
            shown = self.comparison.kl[:, :, row]
        else:
            logits, output, shown = self.logits, self.output, self.comparison.kl
            heads = [f"input {i}" for i in range(len(output))]
        best = logits.max(-1)
        if colour == "probability":
            shown = (best.values.double() - logits.double().logsumexp(-1)).exp()
        points, orders, columns = shown.shape
        figure = Figure(figsize=(2.2 + orders * max(2.4, 0.62 * columns), 1.8 + 0.3 * points), layout="constrained")
        values = shown.cpu().numpy()
        # Orders that diverge and orders that converge are to be told apart on one scale.
        scale = LogNorm(1e-2, 10.0, clip=True) if colour == "kl" else Normalize(0.0, 1.0)
        labels = [*(f"h{p}  {after}" for p, after in zip(self.points, self.after, strict=True)), "model"]
        image = None
        for order, axes in enumerate(np.atleast_1d(figure.subplots(1, orders, sharey=True))):
            rows = np.vstack([values[:, order], np.full((1, columns), np.nan)])
            image = axes.imshow(rows, aspect="auto", origin="lower", cmap="viridis_r", norm=scale)
            axes.set_title("order 0: logit lens" if order == 0 else f"order {order}", fontsize=9)
            axes.set_xticks(range(columns), heads, rotation=60, ha="right", fontsize=7)
            axes.set_yticks(range(points + 1), labels, fontsize=7)
            tops = [[*map(self._text, line)] for line in best.indices[:, order].tolist()]
            _write(axes, tops, np.asarray(scale(values[:, order])))
            _write(axes, [[*map(self._text, output.argmax(-1).tolist())]], np.zeros((1, columns)), points)
        figure.supxlabel("input token" if self.output.dim() == 3 else "input", fontsize=9)
        figure.supylabel("point of the stream, and what it follows", fontsize=9)
        name = "KL(model ‖ lens), nats" if colour == "kl" else "probability of the token shown"
        assert image is not None
        figure.colorbar(image, ax=figure.axes, label=name, extend="both" if colour == "kl" else "neither", pad=0.01)
        return figure

    def _heads(self, row: int) -> list[str]:
        if self.tokens is None:
            return [str(i) for i in range(self.output.shape[1])]
        return [_short(self._text(index)) for index in self.tokens[row].tolist()]


def _rows(output: Tensor) -> Tensor:
    """[batch, length, vocabulary], with a length of 1 where the output has none."""
    return output if output.dim() == 3 else output.unsqueeze(1)


def _short(text: str, width: int = 9) -> str:
    """A token for a narrow cell, its quotes taken off."""
    text = text[1:-1] if len(text) > 2 and text[0] == text[-1] and text[0] in "'\"" else text
    text = text.replace(" ", "␣")
    return text if len(text) <= width else f"{text[: width - 1]}…"


def _write(axes: Axes, texts: Sequence[Sequence[str]], darkness: NDArray[Any], first: int = 0) -> None:
    """Tokens into the cells of a picture, from row `first` up."""
    for y, line in enumerate(texts):
        for x, text in enumerate(line):
            colour = "white" if darkness[y, x] > 0.5 else "black"
            axes.text(x, y + first, _short(text), ha="center", va="center", fontsize=6, color=colour, parse_math=False)


@torch.no_grad()
def lens(model: Model, inputs: Inputs, *, order: int = 0, layers: Layers = None, tokenizer: Any | None = None) -> Lens:
    """The logit lens (order 0) or the iterative jet lens (order k ≥ 1) at every point of the stream.

    Every join has a point (so after attention and after the MLP), and so has every map on the stream. Each lens is an
    expansion of the decoder around the stream at its point; all points and orders come out of one compiled module.

    Parameters
    ----------
    model
        A loaded model, a residual graph, or a name that `jetgraph.loading.load` takes.
    inputs
        A prompt, prompts of equal length, token ids (or whatever the model's first input is), or inputs by name.
    order
        Highest order k; orders 0..k are all in the result.
    layers
        Points by number (negative from the end), name (`h3`), or pattern over the sites that they follow
        (`*.mlp`); all points unless given.
    tokenizer
        For inputs that are texts, and to show tokens as texts; a model given by name brings its own.

    Returns
    -------
    Lens
        Holds logits of shape [point, order, *output].

    Raises
    ------
    InputError
        Inputs that do not fit the model, or an output that is neither [batch, length, vocabulary] nor [batch, classes].
    BudgetError
        The result would take more than `LENS_BUDGET` bytes.

    Notes
    -----
    A lens looks past everything between its point and the decoder; where the skips scale or project the stream, or maps
    are affine, it takes their linear part along. In post-norm models the maps in between are nonlinear and are left
    out, so early points meet a decoder that was never meant for their scale. An affine decoder makes every lens of
    order 1 or more the output itself.

    From order 1 on a lens reads the end of the stream too, through Dν(h_p)[h_n − h_p]. Where it agrees with the output
    it so does not tell what h_p already holds: from an embedding much shorter than h_n, order 1 of a norm is close to a
    multiple of ν(h_n), with the model's top token and a cosine near 1, and a large KL.

    >>> found = lens("demo", "Raise an exception if", order=1, layers="*.mlp")
    >>> found.logits.shape, found.after
    (torch.Size([4, 2, 1, 6, 1024]), ('L0.mlp', 'L1.mlp', 'L2.mlp', 'L3.mlp'))
    """
    one = subject(model, inputs, tokenizer)
    given = one.inputs(inputs)
    shape = _output_shape(one.graph, given)
    expansion = expand(one.graph, order, recipe="lens", layers=layers)
    points = _points(expansion)
    needed = len(points) * (order + 1) * int(np.prod(shape)) * 4
    if needed > LENS_BUDGET:
        raise BudgetError(
            f"lenses at {len(points)} points of {order + 1} orders on outputs of shape {list(shape)} take "
            f"{needed / 2**30:.1f} GiB, more than {LENS_BUDGET / 2**30:.0f}: choose points with layers=, give fewer or "
            "shorter inputs, or use evaluate_lens, which keeps statistics only"
        )
    values = compile(expansion)(**given)
    return Lens(
        one.graph.title,
        points,
        tuple(_after(one.graph.outline, point) for point in points),
        torch.stack([_partial_sums(expansion, values, f"h{point}") for point in points]),
        values.output,
        _token_ids(one.graph, given, shape[:-1]),
        one.tokenizer,
    )


# Joint lens


@dataclass(frozen=True, eq=False, repr=False)
class JointLens(Result):
    """Components of the stream as centres of the decoder's jet, weighted per token. Made by `joint_lens`."""

    model: str
    order: int
    components: tuple[str, ...]
    weights: Tensor
    """[batch, length, component] (length 1 for outputs [batch, classes]), float64; not negative, sum 1."""
    vertex: Tensor
    """‖output − T_i‖ / ‖output‖ for each component on its own; as `weights`."""
    uniform: Tensor
    """‖output − Σ T_i / n‖ / ‖output‖: [batch, length]."""
    remainder: Tensor
    """‖output − Σ w_i T_i‖ / ‖output‖: [batch, length]."""
    stationarity: Tensor
    """max_i (λ − (M w)_i) / ‖output‖², λ = wᵀM w: [batch, length]; 0 at the optimum."""
    slackness: Tensor
    """max_i w_i |(M w)_i − λ| / ‖output‖²: [batch, length]; 0 at the optimum."""
    positions: bool
    """The output has positions."""
    tokens: Tensor | None
    tokenizer: Any | None

    @property
    def title(self) -> str:
        batch, length, number = self.weights.shape
        return f"Joint lens of order {self.order} of {self.model}: {number} components, {batch * length} tokens"

    @property
    def gap(self) -> float:
        """The largest violation of an optimality condition over all tokens, relative to ‖output‖².

        By convexity the objective is at most 2·stationarity·‖output‖² above its minimum.
        """
        return float(torch.maximum(self.stationarity, self.slackness).max())

    def columns(self) -> Mapping[str, Sequence[Cell]]:
        """One row per input, position and component.

        `alone` is the relative remainder with all weight on this component; `uniform` and `remainder` those with equal
        and with the best weights, the same in all rows of a token; `stationarity` and `slackness` see `JointLens`.
        """
        batch, length, number = self.weights.shape
        index = [(row, i) for row in range(batch) for i in range(length) for _ in range(number)]

        def spread(values: Tensor) -> list[float]:
            return values.unsqueeze(-1).expand_as(self.weights).flatten().tolist()

        return {
            "input": [row for row, _ in index],
            "position": [i if self.positions else None for _, i in index],
            "token": [
                None if self.tokens is None else token_text(self.tokenizer, int(self.tokens[row, i]))
                for row, i in index
            ],
            "component": list(self.components) * (batch * length),
            "weight": self.weights.flatten().tolist(),
            "alone": self.vertex.flatten().tolist(),
            "uniform": spread(self.uniform),
            "remainder": spread(self.remainder),
            "stationarity": spread(self.stationarity),
            "slackness": spread(self.slackness),
        }

    def figure(self, row: int = 0) -> Figure:
        """Weights by component (from below) and position of one input, and below them the relative remainders.

        Outputs [batch, classes] have one column per input instead of one per position.
        """
        from matplotlib.figure import Figure
        from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

        if not 0 <= row < len(self.weights):
            raise InputError(f"the lens has inputs 0..{len(self.weights) - 1}, so row={row} does not exist")
        part = (slice(None), 0) if not self.positions else (row,)
        weights = self.weights[part].T.numpy()
        number, columns = weights.shape
        if not self.positions:
            heads = [f"input {i}" for i in range(columns)]
        elif self.tokens is None:
            heads = [str(i) for i in range(columns)]
        else:
            heads = [_short(token_text(self.tokenizer, index)) for index in self.tokens[row].tolist()]
        figure = Figure(figsize=(2.8 + max(3.0, 0.5 * columns), 2.6 + 0.27 * number), layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(0.27 * number, 1.1))
        image = above.imshow(weights, aspect="auto", origin="lower", cmap="Blues", vmin=0.0, vmax=1.0)
        above.set_yticks(range(number), self.components, fontsize=7)
        above.set_ylabel("component", fontsize=9)
        above.set_title(f"joint lens of order {self.order}", fontsize=10)
        figure.colorbar(image, ax=above, label="weight", pad=0.01)
        places = range(columns)
        below.plot(places, self.uniform[part].numpy(), "o:", color="tab:grey", markersize=3, label="uniform weights")
        below.plot(places, self.remainder[part].numpy(), "o-", color="tab:blue", markersize=3, label="best weights")
        below.set_yscale("log")
        span = float(self.uniform[part].max() / self.remainder[part].min().clamp_min(1e-12))
        below.yaxis.set_major_locator(LogLocator(subs=(1.0,) if span > 100 else (1.0, 2.0, 5.0)))
        below.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        below.yaxis.set_minor_formatter(NullFormatter())
        below.set_ylabel("‖output − lens‖\n/ ‖output‖", fontsize=8)
        below.set_xticks(places, heads, rotation=60, ha="right", fontsize=7)
        below.set_xlabel("input token" if self.positions else "input", fontsize=9)
        below.legend(fontsize=7, frameon=False)
        below.tick_params(axis="y", labelsize=7)
        return figure


def nearest_in_hull(gram: Array) -> Array:
    """The weights w on the simplex that minimise q(w) = wᵀM w: the point nearest to 0 in the hull of vectors of Gram
    matrix M [n, n].

    With FᵀF = M, non-negative least squares on [F; 1ᵀ] u = [0; 1] minimises s² q(w) + (s − 1)² over u = s w, s ≥ 0. For
    fixed w the best s = 1/(1 + q(w)) leaves q/(1 + q), which grows with q: so w = u / Σu minimises q, exactly.

    The active-set solution is exact up to rounding. Vectors are first scaled to length 1 (which only rescales u), and M
    by its smallest diagonal entry, so that s is at least 1/2.

    >>> nearest_in_hull(np.diag([1.0, 3.0])).round(12).tolist()
    [0.75, 0.25]
    """
    diagonal = np.diagonal(gram)
    best = int(diagonal.argmin())
    if diagonal[best] <= 0:
        return np.eye(len(gram))[best]
    lengths = np.sqrt(diagonal / diagonal[best])
    values, vectors = np.linalg.eigh(gram / np.sqrt(np.outer(diagonal, diagonal)))
    factor = np.sqrt(values.clip(min=0.0))[:, None] * vectors.T
    target = np.zeros(len(gram) + 1)
    target[-1] = 1.0
    found, _ = nnls(np.vstack([factor, 1.0 / lengths]), target, maxiter=100 * len(gram))
    weights = found / lengths
    return weights / weights.sum()


def optimality(gram: Array, weights: Array) -> tuple[float, float]:
    """How far weights are from the conditions of the minimum of wᵀM w on the simplex.

    w is optimal if and only if (M w)_i ≥ λ = wᵀM w for all i, with equality where w_i > 0. Returned are
    max_i (λ − (M w)_i), which also bounds wᵀM w − minimum by twice itself, and max_i w_i |(M w)_i − λ|.
    """
    gradient = gram @ weights
    level = float(weights @ gradient)
    return float((level - gradient).max()), float((weights * np.abs(gradient - level)).max())


@torch.no_grad()
def joint_lens(model: Model, inputs: Inputs, *, order: int = 1, tokenizer: Any | None = None) -> JointLens:
    """The joint jet lens: components x_i as centres of the decoder's jet, with the best weights on the simplex.

    T_i is the jet of order k of the decoder around component i towards the end of the stream, with the decoder's bias;
    the components are the encoder's summands and every branch, at the true stream. Per token the weights minimise

        ‖output − Σ w_i T_i‖²,   w_i ≥ 0,  Σ w_i = 1,

    which in the coordinates before the unembedding U is distance in the metric UᵀU. The minimum is exact, from the Gram
    matrix of T_i − output in float64 (`nearest_in_hull`), and its optimality conditions are part of the result.
    Distances here are of logits as they are, not centred: they are what is minimised.

    Parameters
    ----------
    model, inputs, tokenizer
        As in `lens`.
    order
        The order k of the jets.

    Raises
    ------
    InputError
        Inputs that do not fit the model, or an output that is neither [batch, length, vocabulary] nor [batch, classes].

    Notes
    -----
    Components are what the stream consists of after its last nonlinear map: in post-norm models the output of that map
    is one component, and the branches after it are the others. All T_i of all inputs are in memory at once, in number
    (order + 1) times the components times the output's size: give long texts in parts.

    >>> found = joint_lens("demo", "Raise an exception if")
    >>> bool((found.remainder <= found.uniform).all()), found.gap < 1e-9
    (True, True)
    """
    one = subject(model, inputs, tokenizer)
    given = one.inputs(inputs)
    shape = _output_shape(one.graph, given)
    maps = [step.site for step in one.graph.outline.steps if isinstance(step, MapStep) and not step.site.affine]
    expansion = expand(
        one.graph, order, recipe="components", weights="unit", rules={site.alias: Atom() for site in maps}
    )
    values = compile(expansion)(**given)
    biases = {entry.source.alias for entry in expansion.entries if entry.origin == "decoder"}
    names = tuple(dict.fromkeys(path.source.alias for path in values.terms if path.source.alias not in biases))
    output = _rows(values.output)
    batch, length, _ = output.shape
    terms = torch.stack([_rows(_partial_sums(expansion, values, name)[-1]) for name in names])
    gram = _gram_matrices(terms, output)
    scale = output.double().square().sum(-1).cpu().numpy()
    weights = np.zeros(gram.shape[:-1])
    conditions = np.zeros((batch, length, 2))
    for place in tqdm(list(np.ndindex(batch, length)), desc="weights", disable=None, leave=False, unit="token"):
        weights[place] = nearest_in_hull(gram[place])
        conditions[place] = np.array(optimality(gram[place], weights[place])) / scale[place]
    conditions = torch.from_numpy(conditions)
    return JointLens(
        model=one.graph.title,
        order=order,
        components=names,
        weights=torch.from_numpy(weights),
        vertex=torch.from_numpy(np.sqrt(np.diagonal(gram, axis1=-2, axis2=-1) / scale[..., None])),
        uniform=_relative(gram, np.full_like(weights, 1 / len(names)), scale),
        remainder=_relative(gram, weights, scale),
        stationarity=conditions[..., 0],
        slackness=conditions[..., 1],
        positions=len(shape) == 3,
        tokens=_token_ids(one.graph, given, shape[:-1]),
        tokenizer=one.tokenizer,
    )


def _gram_matrices(terms: Tensor, output: Tensor) -> Array:
    """Inner products of T_i − output over the vocabulary: [batch, length, component, component], in float64."""
    number, batch, length, vocabulary = terms.shape
    gram = torch.zeros(batch, length, number, number, dtype=torch.float64, device=terms.device)
    width = max(1, CHUNK // (8 * number * batch * length))
    for start in range(0, vocabulary, width):
        part = slice(start, start + width)
        error = (terms[..., part].double() - output[..., part].double()).permute(1, 2, 0, 3)
        gram += error @ error.transpose(-1, -2)
    return gram.cpu().numpy()


def _relative(gram: Array, weights: Array, scale: Array) -> Tensor:
    """√(wᵀM w / ‖output‖²) per token."""
    square = np.einsum("bti,btij,btj->bt", weights, gram, weights)
    return torch.from_numpy(np.sqrt(square.clip(min=0.0) / scale))


# Evaluation


@dataclass(frozen=True, eq=False)
class Statistic:
    """A quantity over tokens: its mean with a 95 % bootstrap interval, and its median.

    Arrays of shape [point, order], or [point] for what does not depend on the order.
    """

    mean: Array
    low: Array
    high: Array
    median: Array


@dataclass(frozen=True, eq=False, repr=False)
class LensEvaluation(Result):
    """Lenses of several orders against the model's output on a corpus. Made by `evaluate_lens`."""

    model: str
    points: tuple[int, ...]
    after: tuple[str, ...]
    orders: tuple[int, ...]
    tokens: int
    """Positions that were compared."""
    windows: int
    metrics: Mapping[str, Statistic]
    """`kl`, `cosine`, `top1`, `top5` and `remainder`, each [point, order]."""
    geometry: Mapping[str, Statistic]
    """`distance`, `radius` and `converges`, each [point], over `radius_tokens` positions."""
    inside: Array
    """Median relative remainder where ρ > 1: [point, order]; NaN where there is no such token."""
    outside: Array
    """Median relative remainder where ρ ≤ 1: [point, order]; NaN where there is no such token."""
    radius_tokens: int

    @property
    def title(self) -> str:
        orders = ", ".join(map(str, self.orders))
        return (
            f"Lenses of orders {orders} of {self.model} at {len(self.points)} points, on {self.tokens} tokens in "
            f"{self.windows} windows"
        )

    def columns(self) -> Mapping[str, Sequence[Cell]]:
        """One row per quantity, order and point: mean, 95 % interval, and median.

        Quantities: `kl`, `cosine`, `top1`, `top5`, `remainder` (see `Comparison`); `remainder inside` and `remainder
        outside`, its medians over the tokens with ρ > 1 and with ρ ≤ 1; and without an order `distance`, `radius` and
        `converges`, the share of tokens with ρ > 1 (see `evaluate_lens`).
        """
        rows: list[tuple[Cell, ...]] = []
        places = list(enumerate(zip(self.points, self.after, strict=True)))

        def add(name: str, order: int | None, numbers: Sequence[Array | None], tokens: int) -> None:
            for i, (point, after) in places:
                cells = (None if values is None or np.isnan(values[i]) else float(values[i]) for values in numbers)
                rows.append((name, order, f"h{point}", after, *cells, tokens))

        for name, found in self.metrics.items():
            for j, order in enumerate(self.orders):
                add(name, order, [v[:, j] for v in (found.mean, found.low, found.high, found.median)], self.tokens)
        for name, medians in (("remainder inside", self.inside), ("remainder outside", self.outside)):
            for j, order in enumerate(self.orders):
                add(name, order, [None, None, None, medians[:, j]], self.radius_tokens)
        for name, found in self.geometry.items():
            add(name, None, [found.mean, found.low, found.high, found.median], self.radius_tokens)
        names = ("quantity", "order", "point", "after", "mean", "low", "high", "median", "tokens")
        return {name: [row[i] for row in rows] for i, name in enumerate(names)}

    def figure(self) -> Figure:
        """Every metric along the stream, by order, with its interval; and what explains it."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(16.5, 7.6), layout="constrained")
        grid = figure.subplots(2, 4, sharex=True).flatten()
        panels = (
            ("kl", "KL(model ‖ lens), nats", 0.0),
            ("remainder", "‖output − lens‖ / ‖output‖, centred", 0.0),
            ("cosine", "cosine of centred logits", 1.0),
            ("top1", "share of tokens: top tokens agree", 1.0),
            ("top5", "share of tokens: model's top in lens's five", 1.0),
        )
        for axes, (name, label, own) in zip(grid[[0, 1, 2, 4, 5]], panels, strict=True):
            self._panel(axes, name, own)
            axes.set_ylabel(label, fontsize=9)
        grid[0].legend(fontsize=8)
        self._by_radius(grid[3])
        self._radii(grid[6])
        self._convergent(grid[7])
        # Deep models have more points than labels fit.
        ticks = range(0, len(self.points), -(-len(self.points) // 24))
        labels = [f"h{self.points[i]} {self.after[i]}" for i in ticks]
        for axes in grid:
            axes.grid(alpha=0.25)
            axes.tick_params(labelsize=8)
        for axes in grid[4:]:
            axes.set_xticks(ticks, labels, rotation=60, ha="right", fontsize=7)
            axes.set_xlabel("point of the stream, and what it follows", fontsize=9)
        figure.suptitle(self.title, fontsize=11)
        return figure

    def _panel(self, axes: Axes, name: str, own: float) -> None:
        found, places = self.metrics[name], range(len(self.points))
        unbounded = name in ("kl", "remainder")
        for j, order in enumerate(self.orders):
            label = f"order {order}" + (" (logit lens)" if order == 0 else "")
            (line,) = axes.plot(places, found.mean[:, j], "o-", markersize=3, linewidth=1.4, label=label)
            colour = line.get_color()
            axes.fill_between(places, found.low[:, j], found.high[:, j], alpha=0.25, color=colour, linewidth=0)
            if unbounded:
                axes.plot(places, found.median[:, j], ":", color=colour, linewidth=1.2)
        if unbounded:
            axes.plot([], [], ":", color="black", linewidth=1.2, label="medians")
            axes.set_yscale("symlog", linthresh=0.01)
            axes.set_ylim(bottom=-0.003)
        axes.axhline(own, color="black", linestyle="--", linewidth=1, label="the model's own output")

    def _by_radius(self, axes: Axes) -> None:
        places = range(len(self.points))
        for j, order in enumerate(self.orders):
            (line,) = axes.plot(
                places, self.inside[:, j], "o-", markersize=3, linewidth=1.4, label=f"order {order}, ρ > 1"
            )
            axes.plot(places, self.outside[:, j], "x:", color=line.get_color(), label=f"order {order}, ρ ≤ 1")
        axes.set_yscale("symlog", linthresh=0.01)
        axes.set_ylim(bottom=-0.003)
        axes.set_ylabel("median of ‖output − lens‖ / ‖output‖, centred", fontsize=9)
        axes.legend(fontsize=7, ncols=2)

    def _radii(self, axes: Axes) -> None:
        for name, colour, label in (
            ("radius", "tab:purple", "radius of convergence ρ, in units of h_n − h_p"),
            ("distance", "tab:brown", "distance ‖h_n − h_p‖ / ‖h_p‖"),
        ):
            values = self.geometry[name].median
            shown = np.where(np.isfinite(values) & (values > 0), values, np.nan)
            axes.plot(range(len(self.points)), shown, "o-", markersize=3, color=colour, label=label)
        axes.set_yscale("log")
        axes.axhline(1.0, color="black", linestyle="--", linewidth=1, label="where the lens is evaluated")
        axes.set_ylabel("median over tokens", fontsize=9)
        axes.legend(fontsize=7)

    def _convergent(self, axes: Axes) -> None:
        found, places = self.geometry["converges"], range(len(self.points))
        axes.plot(places, found.mean, "o-", markersize=3, color="tab:purple")
        axes.fill_between(places, found.low, found.high, alpha=0.25, color="tab:purple", linewidth=0)
        axes.set_ylim(-0.03, 1.03)
        axes.set_ylabel("share of tokens with ρ > 1", fontsize=9)


@torch.no_grad()
def evaluate_lens(
    model: Model,
    texts: str | os.PathLike[str] | Sequence[str] | Tensor,
    *,
    orders: Sequence[int] = (0, 1, 2, 3),
    layers: Layers = None,
    tokens: int = 20_000,
    window: int = 64,
    batch: int = 16,
    resamples: int = 1000,
    seed: int = 0,
    tokenizer: Any | None = None,
) -> LensEvaluation:
    """Lenses of several orders against the model's own output, at every point of the stream and every position.

    Texts are tokenised and cut into windows of `window` tokens, each an input of its own; a text's last window may be
    shorter, and one of a single token is left out. Where there are more windows than `tokens` needs, they are taken at
    even distances. One pass gives all orders, and only numbers per token are kept.

    Parameters
    ----------
    model, layers, tokenizer
        As in `lens`.
    texts
        The name of a text file (UTF-8), a sequence of prompts, or a tensor [row, ...] of inputs, such as token ids.
    orders
        Which orders to report.
    tokens
        How many positions to compare, at most about as many.
    batch
        Windows that are run at once; fewer where their logits would take more than `CHUNK` bytes.
    resamples, seed
        Of the bootstrap. Whole windows are resampled, as the tokens of one are not independent.

    Returns
    -------
    LensEvaluation
        `metrics`: means with 95 % intervals, and medians, of what `Comparison` has. Means over tokens are ruled by few
        tokens where an expansion diverges; the median is not.

        `geometry`, on whole windows of `RADIUS_TOKENS` positions or more in all: `distance` ‖h_n − h_p‖ / ‖h_p‖ to the
        centre; `radius` ρ, the radius of convergence of t ↦ ν(h_p + t (h_n − h_p)) in units of that distance, estimated
        by `radius_of_convergence` from orders up to `RADIUS_ORDER`; and `converges`, whether ρ > 1. For an RMSNorm ρ is
        the distance's inverse, and for a LayerNorm that of centred vectors (up to the norm's ε): the expansion
        converges where the centre is longer than what is still missing.

    Raises
    ------
    InputError
        No text, no tokenizer for it, a file that does not exist, or orders that are none.

    Notes
    -----
    Windows start in mid-text, without a token that marks a start, except where the tokenizer puts one before a text.
    `top5` is whether the model's top token is among the lens's five. `distance` is NaN where the stream has another
    shape at the point than at its end.
    """
    chosen = tuple(sorted(set(orders)))
    if not chosen or chosen[0] < 0 or tokens < 1 or window < 2 or batch < 1 or resamples < 1:
        raise InputError(
            "orders are 0 or more, tokens, batch and resamples 1 or more, and a window 2 or more, but "
            f"orders={orders}, tokens={tokens}, batch={batch}, resamples={resamples}, window={window} were given"
        )
    one, inputs = _corpus(model, texts, tokens, window, tokenizer)
    run = _Run(one, chosen, layers, batch)
    measured = run.measure(inputs)
    sample = _spread(inputs, RADIUS_TOKENS)
    geometry = run.geometry([inputs[i] for i in sample])
    resampling = np.random.default_rng(seed).multinomial(
        len(inputs), np.full(len(inputs), 1 / len(inputs)), size=resamples
    )
    chosen_windows = np.zeros(len(inputs), dtype=bool)
    chosen_windows[sample] = True
    in_sample = np.repeat(chosen_windows, [values.shape[-1] for values in measured])
    flat = np.concatenate(measured, axis=-1)
    few = np.random.default_rng(seed).multinomial(len(sample), np.full(len(sample), 1 / len(sample)), size=resamples)
    remainder = flat[METRICS.index("remainder")][..., in_sample]
    converges = np.concatenate(geometry, axis=-1)[1] > 1
    return LensEvaluation(
        model=one.graph.title,
        points=run.points,
        after=tuple(_after(one.graph.outline, point) for point in run.points),
        orders=chosen,
        tokens=flat.shape[-1],
        windows=len(inputs),
        metrics={name: _statistic([w[i] for w in measured], resampling) for i, name in enumerate(METRICS)},
        geometry={
            "distance": _statistic([w[0] for w in geometry], few),
            "radius": _statistic([w[1] for w in geometry], few),
            "converges": _statistic([(w[1] > 1).astype(float) for w in geometry], few),
        },
        inside=_medians(remainder, converges),
        outside=_medians(remainder, ~converges),
        radius_tokens=int(in_sample.sum()),
    )


def radius_of_convergence(sizes: Array) -> Array:
    """Radius of convergence of power series from the sizes ‖c_j‖ of their coefficients j = 0..K: [K+1, ...] → [...].

    The root test on ‖c_j‖ ~ C j^(−1/2) ρ^(−j), the growth at a singularity of the kind x^(−1/2), which norms have:
    −log ρ is the slope of log ‖c_j‖ + ½ log j over the upper two thirds of the orders. At a pole that is a few per cent
    too large at K = 24. Only orders before the first one that overflows count; ρ is infinite where the coefficients end
    (a polynomial).

    >>> orders = np.arange(25.0)
    >>> float(radius_of_convergence(0.5**orders / np.sqrt(orders.clip(min=1))).round(6))
    2.0
    """
    sizes = np.asarray(sizes, dtype=np.float64)
    orders = np.arange(len(sizes)).reshape(-1, *[1] * (sizes.ndim - 1))
    finite = np.logical_and.accumulate(np.isfinite(sizes), axis=0)
    usable = finite & (np.nan_to_num(sizes, posinf=0.0) > 0) & (orders > 0)
    last = (usable * orders).max(axis=0)
    used = usable & (orders >= np.maximum(last // 3, 1))
    count = used.sum(axis=0)
    logs = np.where(used, np.log(np.where(used, sizes, 1.0)) + 0.5 * np.log(np.maximum(orders, 1)), 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = (used * orders).sum(axis=0) / count
        offset = np.where(used, orders - mean, 0.0)
        slope = (offset * logs).sum(axis=0) / np.square(offset).sum(axis=0)
        radius = np.exp(-slope)
    # Zeros after sizes near the smallest number are underflow, zeros after large ones the end of a polynomial.
    size = np.take_along_axis(sizes, last[None], axis=0)[0]
    ended = (last < len(sizes) - 1) & finite[-1] & (size > 1e-25)
    return np.where(ended | (count < 2), np.inf, radius)


class _Run:
    """One model with its lenses compiled, in groups of points whose logits fit into `CHUNK` bytes."""

    def __init__(self, one: Subject, orders: tuple[int, ...], layers: Layers, batch: int) -> None:
        self.subject = one
        self.graph = one.graph
        self.orders = orders
        self.batch = batch
        self.points = _points(expand(one.graph, 0, recipe="lens", layers=layers))
        self._modules: dict[tuple[int, tuple[int, ...]], PathModule] = {}

    def measure(self, inputs: Sequence[Tensor]) -> list[Array]:
        """Per window [metric, point, order, position], in the order of `METRICS`."""
        found: list[Array | None] = [None] * len(inputs)
        highest = self.orders[-1]
        for numbers, batch in self._batches(inputs, highest, "lenses"):
            parts: list[Array] = []
            for values, expansion, point in self._lenses(batch, highest):
                logits = _partial_sums(expansion, values, f"h{point}")[list(self.orders)]
                one = compare(_rows(values.output), torch.stack([_rows(order) for order in logits]))
                parts.append(torch.stack([getattr(one, name).double() for name in METRICS]).cpu().numpy())
            # [metric, point, order, window, position]
            stacked = np.stack(parts, axis=1)
            for i, number in enumerate(numbers):
                found[number] = stacked[..., i, :]
        return [window for window in found if window is not None]

    def geometry(self, inputs: Sequence[Tensor]) -> list[Array]:
        """Per window [distance and radius, point, position]."""
        found: list[Array | None] = [None] * len(inputs)
        for numbers, batch in self._batches(inputs, RADIUS_ORDER, "radii"):
            radii = []
            for values, expansion, point in self._lenses(batch, RADIUS_ORDER):
                terms = [term for path, term in values.terms.items() if path.source.alias == f"h{point}"]
                sizes = torch.stack([_rows(term).double().norm(dim=-1) for term in terms])
                affine = expansion.outline.decoder.affine
                radii.append(np.full(sizes.shape[1:], np.inf) if affine else radius_of_convergence(sizes.cpu().numpy()))
            forward = self.graph.run(**batch)
            distances = [_distance(self.graph, forward, point, radii[0].shape) for point in self.points]
            stacked = np.stack([np.stack(distances), np.stack(radii)])
            for i, number in enumerate(numbers):
                found[number] = stacked[..., i, :]
        return [window for window in found if window is not None]

    def _batches(self, inputs: Sequence[Tensor], order: int, label: str) -> Iterator[tuple[list[int], dict[str, Any]]]:
        """Windows of equal size together, with their numbers."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for number, window in enumerate(inputs):
            groups.setdefault(tuple(window.shape), []).append(number)
        with tqdm(total=len(inputs), desc=label, disable=None, leave=False, unit="window") as bar:
            for numbers in groups.values():
                shape = _output_shape(self.graph, self.subject.inputs(inputs[numbers[0]][None]))
                size = min(self.batch, max(1, CHUNK // (8 * (order + 1) * int(np.prod(shape[1:])))))
                for start in range(0, len(numbers), size):
                    part = numbers[start : start + size]
                    yield part, self.subject.inputs(torch.stack([inputs[number] for number in part]))
                    bar.update(len(part))

    def _lenses(self, batch: Mapping[str, Any], order: int) -> Iterator[tuple[PathValues, Expansion, int]]:
        """The values of a lens at each point, several points a pass."""
        size = 4 * (order + 1) * int(np.prod(_output_shape(self.graph, batch)))
        width = max(1, CHUNK // size)
        for start in range(0, len(self.points), width):
            points = self.points[start : start + width]
            key = (order, points)
            if key not in self._modules:
                self._modules[key] = compile(expand(self.graph, order, recipe="lens", layers=points))
            values = self._modules[key](**batch)
            for point in points:
                yield values, self._modules[key].expansion, point


def _distance(graph: ResidualGraph, forward: Forward, point: int, rows: tuple[int, ...]) -> Array:
    """‖h_n − x‖ / ‖x‖ per row of the output; x is the stream at a point, carried to the end by its skips.

    NaN where x has another shape than h_n. Where the output has no positions, the norm is over the whole stream.
    """
    points = graph.stream.points
    value, end = forward[points[point]], forward[points[-1]]
    for stage in graph.stream.stages[point:]:
        region = stage.region if stage.join is None else stage.join.skip
        if region.nodes and region.affine:
            value = forward.through(region, Series(value.unsqueeze(0), 1, start=1), 1).coefficient(1)
    if value.shape != end.shape:
        return np.full(rows, np.nan)
    value, end = value.double(), end.double()
    # Some models have rows and positions in one dimension on the way.
    by_position = int(np.prod(end.shape[:-1])) == int(np.prod(rows))
    dims = (-1,) if by_position else tuple(range(1, end.dim()))
    ratio = torch.linalg.vector_norm(end - value, dim=dims) / torch.linalg.vector_norm(value, dim=dims)
    return ratio.cpu().numpy().reshape(rows)


# Corpora


def _corpus(
    model: Model,
    texts: str | os.PathLike[str] | Sequence[str] | Tensor,
    tokens: int,
    window: int,
    tokenizer: Any | None,
) -> tuple[Subject, list[Tensor]]:
    """The traced model and the windows on which it is looked at."""
    read = texts if isinstance(texts, Tensor) else _read(texts)
    if isinstance(model, str):
        model = load(model)
    if isinstance(read, Tensor):
        windows = list(read)
    else:
        own = getattr(model, "tokenizer", None)
        windows = _cut(read, tokenizer if tokenizer is not None else own, window)
    if not windows:
        raise InputError("there is no text to look at: give one of two tokens or more")
    example = None
    module = model.model if isinstance(model, Loaded) else model
    if isinstance(module, nn.Module) and not hasattr(module, "config"):
        device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
        example = torch.stack([one for one in windows if one.shape == windows[0].shape][:2]).to(device)
    one = subject(model, example, tokenizer)
    rows = _output_shape(one.graph, one.inputs(windows[0][None]))
    each = rows[1] if len(rows) == 3 else 1
    number = -(-tokens // each) if isinstance(read, Tensor) else None
    chosen = _spread(windows, tokens) if number is None else _even(len(windows), number)
    return one, [windows[i] for i in chosen]


def _read(texts: str | os.PathLike[str] | Sequence[str]) -> list[str]:
    if not isinstance(texts, str | os.PathLike):
        return list(texts)
    if not os.path.isfile(texts):
        raise InputError(f"there is no text file {os.fspath(texts)!r}: give prompts as a list")
    try:
        return [Path(texts).read_text(encoding="utf-8")]
    except UnicodeDecodeError as error:
        raise InputError(f"{os.fspath(texts)!r} is no UTF-8 text: {error}") from error


def _cut(texts: Sequence[str], tokenizer: Any | None, window: int) -> list[Tensor]:
    """Windows of ids, at least two tokens long."""
    if tokenizer is None:
        raise InputError("a text needs a tokenizer: pass tokenizer=..., or a tensor of token ids instead")
    windows = []
    for text in texts:
        # Transformers warns that a text is longer than the model takes; it is about to be cut.
        with quiet():
            ids = tokenizer(text)["input_ids"]
        pieces = (ids[start : start + window] for start in range(0, len(ids), window))
        windows.extend(torch.tensor(piece, dtype=torch.long) for piece in pieces if len(piece) > 1)
    return windows


def _spread(windows: Sequence[Tensor], tokens: int) -> list[int]:
    """Windows at even distances, about as many as hold `tokens` tokens."""
    total = sum(window.shape[0] if window.dim() == 1 else 1 for window in windows)
    return _even(len(windows), -(-tokens * len(windows) // total))


def _even(total: int, number: int) -> list[int]:
    return [i * total // number for i in range(number)] if number < total else list(range(total))


# Statistics


def _statistic(windows: Sequence[Array], resampling: NDArray[Any]) -> Statistic:
    """Mean over tokens, its 95 % percentile interval when windows are resampled, and median.

    windows: [..., token] each; resampling: how often each window is drawn, [resample, window].
    """
    flat = np.concatenate(windows, axis=-1)
    sums = np.stack([values.sum(axis=-1) for values in windows])
    sizes = np.array([values.shape[-1] for values in windows], dtype=np.float64)
    with np.errstate(invalid="ignore"):
        drawn = np.tensordot(resampling.astype(np.float64), sums, axes=1)
        means = drawn / (resampling @ sizes).reshape(-1, *[1] * (sums.ndim - 1))
        low, high = np.quantile(means, (0.025, 0.975), axis=0)
    return Statistic(flat.mean(axis=-1), low, high, np.median(flat, axis=-1))


def _medians(values: Array, where: NDArray[np.bool_]) -> Array:
    """Median over chosen tokens of [point, order, token], chosen per point [point, token]; NaN where there are none."""
    found = np.full(values.shape[:2], np.nan)
    for point, chosen in enumerate(where):
        if chosen.any():
            found[point] = np.median(values[point][:, chosen], axis=-1)
    return found
