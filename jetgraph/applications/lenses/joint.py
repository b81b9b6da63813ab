"""The joint lens: all components of the stream as centres together, with the best weights on the simplex per token.

    output ≈ Σ_i w_i T_i,   T_i = U J^k ν(x_i)(h_n) + b,   w ≥ 0, Σ w_i = 1

The weights are the exact optimum of a small convex problem, not the end of some steps of an optimiser.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jetgraph.algebra.advice import of_remainder
from jetgraph.algebra.expansion import expand
from jetgraph.algebra.grouping import Grouping
from jetgraph.algebra.outline import MapStep
from jetgraph.algebra.rules import Atom, Scale
from jetgraph.applications.cells import cell_graph
from jetgraph.applications.intervals import Array
from jetgraph.applications.lenses.following import QUANTITIES, Share, curves, shared, target_index
from jetgraph.applications.lenses.pictures import short_text
from jetgraph.applications.lenses.points import by_position, jet_sums, output_shape, token_ids
from jetgraph.applications.orders import Auto, ChosenOrder, raised, tolerated
from jetgraph.applications.readout import Texts, texts_of, token_text
from jetgraph.applications.results import Cell, Result, Shown
from jetgraph.applications.subject import Inputs, Model, Subject, counted_tokens, is_vocabulary, subject
from jetgraph.compilation import compile
from jetgraph.compilation.hull import nearest_in_hull, optimality, without_rounding
from jetgraph.errors import DomainError, InputError, amount, check, quoted
from jetgraph.export.precision import own_types
from jetgraph.export.waiting import progress
from jetgraph.jets.series import check_order
from jetgraph.layout.colours import GIVES, OTHER
from jetgraph.residual import one_look

if TYPE_CHECKING:
    import networkx as nx
    from matplotlib.figure import Figure

GRAM_CELLS = 2**21
"""Errors that are in memory in float64 at once."""


@dataclass(frozen=True, eq=False, repr=False)
class JointLens(Result):
    """Components of the stream as centres of the decoder's jet, weighted per token. Made by `joint_lens`."""

    model: str
    order: int
    scale: Scale
    """Whether centres were matched to the end of the stream, where the decoder allows it."""
    components: tuple[str, ...]
    weights: Tensor
    """[batch, length, component] (length 1 for outputs [batch, classes]), float64; not negative, sum 1. Here and below,
    NaN for padding."""
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
    ids: Tensor | None
    """Of the input's tokens, [batch, length]; None where the model reads none."""
    tokenizer: Any | None
    counted: Tensor | None = None
    """True [batch, length] where there is a token and no padding; None where no attention mask tells."""
    chosen: ChosenOrder | None = None
    """Why this order, where it was to be chosen."""
    target: Share | None = None
    """What becomes of a token that is followed."""

    @property
    def title(self) -> str:
        batch, length, number = self.weights.shape
        tokens = batch * length if self.counted is None else int(self.counted.sum())
        plain = " with plain centres" if self.order and self.scale == "none" else ""
        why = "" if self.chosen is None else f"; {self.chosen}"
        return (
            f"Joint lens of order {self.order}{plain} of {self.model}: {amount(number, 'component')}, "
            f"{amount(tokens, 'token' if self.positions else 'input')}{why}"
        )

    @property
    def tokens(self) -> Texts:
        """By input, the texts of its tokens, padding among them; none where it has no tokens."""
        return texts_of(self.tokenizer, self.ids)

    @property
    def gap(self) -> float:
        """The largest violation of an optimality condition over all tokens, relative to ‖output‖².

        By convexity the objective is at most 2·stationarity·‖output‖² above its minimum.
        """
        return float(torch.maximum(self.stationarity, self.slackness).nan_to_num(-torch.inf).max())

    def columns(self) -> Mapping[str, Sequence[Cell]]:
        """One row per input, position and component; padding has none.

        `alone` is the relative remainder with all weight on this component; `uniform` and `remainder` those with equal
        and with the best weights, the same in all rows of a token; `stationarity` and `slackness` see `JointLens`. With
        a target, its rank, probability and centred logit by a component alone, and what the component gives to the
        centred logit of all, come after these.
        """
        number = self.weights.shape[-1]
        counted = torch.ones_like(self.remainder, dtype=torch.bool) if self.counted is None else self.counted
        index = [(row, i) for row, i in counted.nonzero().tolist() for _ in range(number)]

        def spread(values: Tensor) -> list[float]:
            return values[counted].repeat_interleave(number).tolist()

        table: dict[str, Sequence[Cell]] = {
            "example": [row for row, _ in index],
            "position": [i if self.positions else None for _, i in index],
            "token": [
                None if self.ids is None else token_text(self.tokenizer, int(self.ids[row, i])) for row, i in index
            ],
            "component": list(self.components) * int(counted.sum()),
            "weight": self.weights[counted].flatten().tolist(),
            "alone": self.vertex[counted].flatten().tolist(),
            "uniform": spread(self.uniform),
            "remainder": spread(self.remainder),
            "stationarity": spread(self.stationarity),
            "slackness": spread(self.slackness),
        }
        if self.target is None:
            return table
        told = {**self.target.alone, "share": self.target.shares}
        return table | {
            "target": [self.target.text] * len(index),
            **{f"target_{name}": values.cpu()[counted].flatten().tolist() for name, values in told.items()},
        }

    @property
    def note(self) -> str:
        """What is left at the last position, with these weights and with equal ones."""
        rest, alike = float(self.remainder[-1, self._last(-1)]), float(self.uniform[-1, self._last(-1)])
        where = "at the last position; " if self.positions else ""
        told = (
            f"{where}‖output − lens‖ / ‖output‖ is {rest:.4g} with these weights, {alike:.4g} with equal ones, and "
            f"as told with all weight on one (alone); optimal to {self.gap:.1e}"
        )
        return "\n".join(filter(None, (told, of_remainder(rest))))

    def _last(self, row: int) -> int:
        """The place of the last token of an input."""
        if self.counted is None or not self.positions:
            return self.weights.shape[1] - 1
        return int(self.counted[row].nonzero()[-1, 0])

    def shown(self) -> Shown:
        """The last position, the components of the largest weight first."""
        told = ("component", "weight", "alone", "target", *(f"target_{name}" for name in (*QUANTITIES, "share")))
        places = [self._last(row) for row in range(len(self.weights))]
        names = told if len(places) == 1 else ("example", *told)

        def keep(row: Mapping[str, Cell]) -> bool:
            return row["position"] in (None, places[int(row["example"] or 0)])

        return Shown(names, keep, () if len(places) > 1 else ("weight",))

    def to_networkx(self, row: int = 0) -> nx.MultiDiGraph:
        """Weights of one input as a graph of cells, by component and position; see `jetgraph.view`.

        Raises
        ------
        InputError
            An input that is not there.
        """
        check(JointLens.to_networkx, locals())
        if not 0 <= row < len(self.weights):
            raise InputError(f"the lens has inputs 0..{len(self.weights) - 1}, so row={quoted(row)} does not exist")

        def keep(facts: Mapping[str, Cell]) -> bool:
            return not self.positions or facts["example"] == row

        return cell_graph(self.columns(), title=self.title, keep=keep, row=("component",), value="weight")

    def figure(self, row: int = 0) -> Figure:
        """Weights by component (from below) and position of one input, and below them the relative remainders.

        Padding is left out. Outputs [batch, classes] have one column per input instead of one per position.

        With a target, its rank, probability and logit by each component alone, at the last position, in the place of
        that; dashed, the model's own.

        Raises
        ------
        InputError
            The lens has no such input, or every input is a column.
        """
        check(JointLens.figure, locals())
        if not 0 <= row < len(self.weights):
            raise InputError(f"the lens has inputs 0..{len(self.weights) - 1}, so row={quoted(row)} does not exist")
        if row and not self.positions:
            raise InputError(f"row={row} is for outputs with positions: here every input is a column; leave it out")
        return self._weights_figure(row) if self.target is None else self._target_figure(row, self.target)

    def _weights_figure(self, row: int) -> Figure:
        from matplotlib.figure import Figure
        from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

        kept = slice(None) if self.counted is None else self.counted[row].nonzero()[:, 0]
        part = (slice(None), 0) if not self.positions else (row, kept)
        weights = self.weights[part].T.numpy()
        number, columns = weights.shape
        if not self.positions:
            heads = [f"input {i}" for i in range(columns)]
        elif self.ids is None:
            heads = [str(i) for i in np.arange(self.weights.shape[1])[kept].tolist()]
        else:
            heads = [short_text(token_text(self.tokenizer, index)) for index in self.ids[row][kept].tolist()]
        figure = Figure(figsize=(2.8 + max(3.0, 0.5 * columns), 2.6 + 0.27 * number), layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(0.27 * number, 1.1))
        image = above.imshow(weights, aspect="auto", origin="lower", cmap="Blues", vmin=0.0, vmax=1.0)
        above.set_yticks(range(number), self.components, fontsize=7, parse_math=False)
        above.set_ylabel("component", fontsize=9)
        above.set_title(f"joint lens of order {self.order}", fontsize=10)
        figure.colorbar(image, ax=above, label="weight", pad=0.01)
        places = range(columns)
        below.plot(places, self.uniform[part].numpy(), "o:", color=OTHER, markersize=3, label="uniform weights")
        below.plot(places, self.remainder[part].numpy(), "o-", color=GIVES, markersize=3, label="best weights")
        # Behind an affine decoder nothing is left, and zeros have no logarithm.
        if bool((self.uniform[part] > 0).any() or (self.remainder[part] > 0).any()):
            below.set_yscale("log")
            span = float(self.uniform[part].max() / self.remainder[part].min().clamp_min(1e-12))
            below.yaxis.set_major_locator(LogLocator(subs=(1.0,) if span > 100 else (1.0, 2.0, 5.0)))
            below.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            below.yaxis.set_minor_formatter(NullFormatter())
        below.set_ylabel("‖output − lens‖\n/ ‖output‖", fontsize=8)
        below.set_xticks(places, heads, rotation=60, ha="right", fontsize=7, parse_math=False)
        below.set_xlabel("input token" if self.positions else "input", fontsize=9)
        below.legend(fontsize=7, frameon=False)
        below.tick_params(axis="y", labelsize=7)
        return figure

    def _target_figure(self, row: int, target: Share) -> Figure:
        last = -1 if self.counted is None or not self.positions else int(self.counted[row].nonzero()[-1, 0])
        alone = {name: value.cpu()[row, last, :, None] for name, value in target.alone.items()}
        own = {name: value.cpu()[row, last] for name, value in target.model.items()}
        return curves(alone, own, [self.order], self.components, f"{target.text} by: {self.title}", "component")


@torch.no_grad()
@own_types()
@one_look()
def joint_lens(
    model: Model,
    inputs: Inputs,
    *,
    order: int | Auto = 1,
    tolerance: float | None = None,
    scale: Scale = "matched",
    centres: Grouping = "components",
    target: int | str | None = None,
    tokenizer: Any | None = None,
) -> JointLens:
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
        The order k of the jets. `auto`: the lowest one that leaves no more than `tolerance`, at most `HIGHEST`; what
        orders leave is measured, each with its best weights, and `chosen` says what was found.
    tolerance
        For the order `auto`: the root mean square over tokens of ‖output − lens‖ / ‖output‖ that may be left, 0.01
        unless given.
    scale
        Length of the components as centres of order 1 and more, as in `lens`.
    centres
        What is one centre: each component, or all of a block (`blocks`), of a kind (`kinds`), or of a group by name, as
        patterns over components.
    target
        A token (an id, or a text that is one) to follow: its rank, probability and centred logit by each component
        alone, what each gives to the centred logit of all together, and a figure of it.

    Raises
    ------
    SelectionError
        A pattern of a group matches nothing.
    InputError
        Inputs that do not fit the model, or an output that is neither [batch, length, vocabulary] nor [batch, classes].
    DomainError
        A jet that overflows.

    Notes
    -----
    Components are what the stream consists of after its last nonlinear map: in post-norm models the output of that map
    is one component, and the branches after it are the others. All T_i of all inputs are in memory at once, each of the
    output's size: give long texts in parts.

    >>> lens = joint_lens("demo", "Raise an exception if")
    >>> bool((lens.remainder <= lens.uniform).all()), lens.gap < 1e-9
    (True, True)
    """
    check(joint_lens, locals())
    limit = tolerated(order, tolerance)
    if isinstance(order, int):
        if order < 0:
            raise InputError(f"order={order} is no order of a jet: take 0 or more")
        check_order(order)
    one = subject(model, inputs, tokenizer)
    given = one.inputs(inputs)
    if isinstance(order, int):
        return _joint(one, given, order, scale, centres, target)
    assert limit is not None
    lens, why = raised(lambda order: _joint(one, given, order, scale, centres, target), _left, limit)
    return replace(lens, chosen=why)


def _left(lens: JointLens) -> float:
    """The root mean square over tokens of what is left."""
    return float(lens.remainder.square().nanmean().sqrt())


def _joint(
    one: Subject, given: Mapping[str, Any], order: int, scale: Scale, centres: Grouping, target: int | str | None
) -> JointLens:
    """The joint lens of one order."""
    shape = output_shape(one, given)
    token = None if target is None else _token(one, target, shape[-1])
    maps = [step.site for step in one.graph.outline.steps if isinstance(step, MapStep) and not step.site.affine]
    atoms = {site.alias: Atom() for site in maps}
    expansion = expand(one.graph, order, recipe="components", weights="unit", scale=scale, rules=atoms, centres=centres)
    values = compile(expansion)(**given)
    paths = (path for path in values.terms if not expansion.start(path).is_output_bias)
    names = tuple(dict.fromkeys(path.source.alias for path in paths))
    output = by_position(values.output)
    batch, length, vocabulary = output.shape
    terms = jet_sums(expansion, values, names, [order]).reshape(len(names), batch, length, vocabulary)
    gram = _gram_matrices(terms, output)
    counted = counted_tokens(one.graph, given, shape[:-1])
    tokens = np.ones((batch, length), dtype=bool) if counted is None else counted.numpy()
    _check_finite(gram, tokens, names, order)
    size = output.double().square().sum(-1).cpu().numpy()
    size[~tokens] = np.nan
    seen = without_rounding(gram, size, torch.finfo(output.dtype).eps)
    weights, conditions = _best_weights(seen, size, tokens)
    return JointLens(
        model=one.graph.title,
        order=order,
        scale=scale,
        components=names,
        weights=torch.from_numpy(weights),
        vertex=torch.from_numpy(np.sqrt(np.diagonal(gram, axis1=-2, axis2=-1) / size[..., None])),
        uniform=_relative(gram, np.full_like(weights, 1 / len(names)), size),
        remainder=_relative(gram, weights, size),
        stationarity=conditions[..., 0],
        slackness=conditions[..., 1],
        positions=len(shape) == 3,
        ids=token_ids(one.graph, given, shape[:-1]),
        tokenizer=one.tokenizer,
        counted=counted,
        target=None if token is None else shared(terms, torch.from_numpy(weights), output, *token),
    )


def _token(one: Subject, target: int | str, size: int) -> tuple[int, str]:
    """The place of a target in the output, and its text."""
    tokenizer = one.tokenizer if is_vocabulary(one.graph, size, one.tokenizer) else None
    index = target_index(target, size, tokenizer)
    return index, token_text(tokenizer, index)


def _check_finite(gram: Array, tokens: NDArray[np.bool_], names: Sequence[str], order: int) -> None:
    """Raises `DomainError` where the jet around a component is no number."""
    overflown = ~np.isfinite(np.diagonal(gram, axis1=-2, axis2=-1)[tokens]).all(0)
    if overflown.any():
        name = names[int(overflown.argmax())]
        raise DomainError(f"the jet of order {order} around {name!r} is larger than any number: take a lower order")


def _best_weights(gram: Array, size: Array, tokens: NDArray[np.bool_]) -> tuple[Array, Tensor]:
    """By token that counts: the weights [batch, length, component], and how far [batch, length, 2] from the optimum."""
    weights = np.full(gram.shape[:-1], np.nan)
    conditions = np.full((*tokens.shape, 2), np.nan)
    places = [place for place in np.ndindex(*tokens.shape) if tokens[place]]
    for place in progress(places, desc="weights", unit="tokens"):
        weights[place] = nearest_in_hull(gram[place])
        conditions[place] = np.array(optimality(gram[place], weights[place])) / size[place]
    return weights, torch.from_numpy(conditions)


def _gram_matrices(terms: Tensor, output: Tensor) -> Array:
    """Inner products of T_i − output over the vocabulary: [batch, length, component, component], in float64."""
    number, batch, length, vocabulary = terms.shape
    gram = torch.zeros(batch, length, number, number, dtype=torch.float64, device=terms.device)
    # Small enough for a part of all errors to stay in the cache, wide enough for the products.
    width = max(1, GRAM_CELLS // (number * batch * length))
    for start in range(0, vocabulary, width):
        part = slice(start, start + width)
        error = terms[..., part].permute(1, 2, 0, 3).double()
        error -= output[:, :, None, part]
        gram += error @ error.mT
    return gram.cpu().numpy()


def _relative(gram: Array, weights: Array, size: Array) -> Tensor:
    """√(wᵀM w / ‖output‖²) per token."""
    square = np.einsum("bti,btij,btj->bt", weights, gram, weights)
    return torch.from_numpy(np.sqrt(square.clip(min=0.0) / size))
