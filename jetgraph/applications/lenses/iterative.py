"""The lens: what the decoder makes of the stream before its end, and how far that is from the model's output.

A lens at point p expands the decoder around the stream there, h_p, towards the stream at its end, h_n:

    lens_{p,k} = U Σ_{j≤k} (1/j!) D^j ν(h_p)[(h_n − h_p)^{⊗j}] + b        (output = U ν(h_n) + b)

Order 0 is the logit lens, order k ≥ 1 the iterative jet lens, each layer an expansion of its own. `joint` takes the
components of the stream as centres together, and `evaluation` says over a corpus when an order helps, and why.

Source: Chen et al., "Jet Expansions of Residual Computation", arXiv 2410.06024.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from jetgraph.algebra.rules import Scale
from jetgraph.applications.cells import cell_graph
from jetgraph.applications.lenses.choosing import chosen_orders
from jetgraph.applications.lenses.compiled import Lenses, lenses
from jetgraph.applications.lenses.held import LensValues
from jetgraph.applications.lenses.measuring import closed_radii
from jetgraph.applications.lenses.pictures import AXIS, check_figure, figure_of, room, thinned
from jetgraph.applications.lenses.points import (
    Layers,
    by_rows,
    jet_sums,
    shape_of,
    stream_dims,
    token_ids,
)
from jetgraph.applications.lenses.remarks import first_rows, remarks
from jetgraph.applications.orders import Auto, tolerated
from jetgraph.applications.results import Cell, Shown
from jetgraph.applications.subject import (
    Inputs,
    Model,
    counted_tokens,
    is_features,
    is_vocabulary,
    last_tokens,
    subject,
)
from jetgraph.compilation import PathValues
from jetgraph.errors import BudgetError, InputError, amount, check, quoted
from jetgraph.export.frames import on_one_chunk
from jetgraph.export.precision import own_types
from jetgraph.jets.domain import looked_at_once
from jetgraph.jets.series import check_order
from jetgraph.residual import ResidualGraph, one_look
from jetgraph.running.forward import Forward
from jetgraph.running.indices import at_places, places_of
from jetgraph.views.style import check_width, fit

if TYPE_CHECKING:
    import networkx as nx
    from matplotlib.figure import Figure

LENS_BUDGET = 2**33
"""Bytes of logits that one `lens` may hold."""


@dataclass(frozen=True, eq=False, repr=False)
class Lens(LensValues):
    """The lens at points of the stream, for one or several orders. Made by `lens`."""

    def shown(self) -> Shown:
        """The last position; of a point whose order was chosen, that order."""
        return first_rows(self)

    @property
    def note(self) -> str:
        """Where the lens leaves more than the output, and what orders above 0 read."""
        return remarks(self)

    def figure(self, row: int = 0, colour: Literal["kl", "probability"] = "kl", columns: int = 24) -> Figure:
        """Top tokens by point (from below) and position of one input, a panel per order, the model's own on top.
        Padding is left out.

        With a target, its rank, probability and logit along the stream at the last position in the place of that.

        Colours are KL(model ‖ lens) in nats or the top token's probability. Outputs [batch, classes] have one column
        per input instead of one per position. Of more than `columns` the last ones are shown.

        Raises
        ------
        InputError
            An input that is not there, and columns below 1.
        """
        check(Lens.figure, locals())
        return figure_of(self, row, colour, columns)

    def drawn(self, width: float | None = None) -> Figure:
        """The picture, in a width: so many of the last columns as have room for their tokens, and of many points every
        second, third, … back from the last.

        Raises
        ------
        InputError
            As `plot`.
        """
        if width is None or self.target is not None:
            return super().drawn(width)
        check_width(width)
        step, columns = room(self, width)
        figure = fit(thinned(self, step).figure(columns=columns), width)
        if step > 1:
            figure.supylabel(f"{AXIS}: one of every {step}, of {len(self.points)} in all", fontsize=9)
        return figure

    def to_networkx(self, row: int = 0) -> nx.MultiDiGraph:
        """The lens on one input as a graph of cells, its top tokens by point and position, at the highest order or the
        chosen one; pages show the others too, see `jetgraph.view`. Outputs [batch, classes] have a column per input.

        Raises
        ------
        InputError
            An input that is not there.
        """
        check(Lens.to_networkx, locals())
        check_figure(self.output, row, "kl", 1)
        chosen = {f"h{point}": one.order for point, one in zip(self.points, self.chosen, strict=False)}

        def keep(facts: Mapping[str, Cell]) -> bool:
            return self.output.dim() == 2 or facts["example"] == row

        def first(facts: Mapping[str, Cell]) -> bool:
            return facts["order"] == chosen.get(str(facts["point"]), self.order)

        several: dict[str, Any] = {"by": "order", "first": first} if len(self.orders) > 1 else {}
        columns, rows = self.columns(), ("point", "after")
        return cell_graph(
            columns, title=self.title, keep=keep, row=rows, value="kl", label="top", strong="low", **several
        )


@torch.no_grad()
@own_types()
@one_look()
def lens(
    model: Model,
    inputs: Inputs,
    *,
    order: int | Sequence[int] | Auto = 0,
    tolerance: float | None = None,
    layers: Layers = None,
    scale: Scale = "matched",
    target: int | str | None = None,
    position: int | Literal["last"] | None = None,
    tokenizer: Any | None = None,
) -> Lens:
    """The logit lens (order 0) or the iterative jet lens (order k ≥ 1) at every point of the stream.

    Every join has a point (so after attention and after the MLP), and so has every map on the stream. Each lens is an
    expansion of the decoder around the stream at its point; all points and orders come out of one evaluation, and the
    terms of a lens are summed before the unembedding, which is one product for all of them.

    Parameters
    ----------
    model
        A loaded model, a residual graph, or a name that `jetgraph.load_model` takes.
    inputs
        A prompt, or several of any length, token ids (or whatever the model's first input is), or inputs by name.
    order
        Highest order k: orders 0..k are all in the result. Or the orders themselves: `order=[2]` gives the lens of
        order 2 alone, at a third of the logits. `auto`: at each point the lowest one that leaves no more than
        `tolerance`; `orders` are then those that some point has, and `chosen` says which and why. Where the decoder is
        one norm, what an order leaves has a closed form, in the norm's units; elsewhere it is measured in logits.
    tolerance
        For the order `auto`: the share of the norm, or of the logits, that may be left over all tokens, 0.01 unless
        given.
    layers
        Points by number (negative from the end), name (`h3`), or pattern over the sites that they follow
        (`*.mlp`); all points unless given.
    scale
        Length of the points as centres of order 1 and more. `matched`: each token at the length at which it is nearest
        to the end of the stream, as the decoder's norm sees it; `none`: as it is. See `jetgraph.Jet`.
    target
        A token (an id, or a text that is one) to follow along the stream: its rank, probability and centred logit are
        in the table, and are the figure.
    position
        One position, negative ones counted from the end, or `last`, the last token of each input: logits are made there
        alone. All positions unless given.
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

    In a result of several orders, order 0 is a part of the others, and is taken at the matched length as these are. A
    norm does not see that, but for its ε: where a point is not long beside √ε, as a small embedding may be, the logit
    lens itself is that of `order=0` alone.

    From order 1 on a lens reads the end of the stream too, through Dν(s h_p)[h_n − s h_p]. Where it agrees with the
    output it so does not tell what h_p already holds. With `scale="none"` it is worse: from an embedding much shorter
    than h_n, order 1 of a norm is close to a multiple of ν(h_n), with the model's top token and a cosine near 1, and a
    large KL.

    >>> decoded = lens("demo", "Raise an exception if", order=1, layers="*.mlp")
    >>> decoded.logits.shape, decoded.after
    (torch.Size([4, 2, 1, 6, 1024]), ('L0.mlp', 'L1.mlp', 'L2.mlp', 'L3.mlp'))
    """
    check(lens, locals())
    limit = tolerated(order, tolerance)
    orders = _orders(0 if isinstance(order, str) else order)
    one = subject(model, inputs, tokenizer)
    given = one.inputs(inputs)
    forward = one.run(given)
    shape = shape_of(one.graph, forward)
    chosen = () if limit is None else chosen_orders(one, [given], layers, scale, limit)
    orders = tuple(sorted({one.order for one in chosen})) if chosen else orders
    # Of one order alone the sum up to it is all that is asked for.
    known = lenses(one.graph, orders[-1], layers, scale, len(orders) == 1 and orders[0] > 0)
    places = None if position is None else _places(one.graph, given, shape, position)
    _check_size(known.points, orders, shape if places is None else (shape[0], 1, shape[2]))
    output, found, logits = on_one_chunk(
        lambda: looked_at_once(lambda: _evaluated(known, forward, orders, scale, places))
    )
    radii = None if found is None else torch.from_numpy(by_rows(found, (*shape[:-1], 1)[:2], stream_dims(one.graph)))

    def at(value: Tensor | None, dim: int = 1) -> Tensor | None:
        return value if value is None or places is None else at_places(value, places, dim)

    made = Lens(
        one.graph.title,
        known.points,
        known.after,
        orders,
        logits,
        output,
        at(token_ids(one.graph, given, shape[:-1])),
        one.tokenizer,
        at(counted_tokens(one.graph, given, shape[:-1])),
        scale,
        chosen,
        is_vocabulary(one.graph, shape[-1], one.tokenizer),
        places=None if places is None else torch.as_tensor(places).expand(shape[0]),
        radius=at(radii, 2),
        features=is_features(one.graph, shape[-1]),
    )
    return made if target is None else made.of(target)


def _evaluated(
    known: Lenses, forward: Forward, orders: Sequence[int], scale: Scale, places: int | Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor]:
    """The model's own output, radii of the points of lenses, and logits."""
    values = known.values(forward, places)
    # Before the logits take the memory, and read of the device after they are made.
    found = _radii(values, forward, known.points, scale, places) if orders[-1] else None
    # With the model's own output all is made of the points, which take as much as the jets that are decoded.
    output, points = values.output, forward.graph.structure.main.points
    forward.values.release(point for point in points if point is not forward.graph.traced.output)
    return output, found, jet_sums(known.expansion, values, [f"h{point}" for point in known.points], orders)


def _radii(
    values: PathValues, forward: Forward, points: Sequence[int], scale: Scale, places: int | Tensor | None
) -> Tensor | None:
    """The radii of convergence of all points [point, ...] at all positions: those of the centres that were matched,
    where they all were, there; else of a closed form, if there is one.
    """
    told = [radii for site in values.radii.values() for radii in site]
    whole = places is None and sum(map(len, told)) == len(points)
    return torch.cat(told) if whole else closed_radii(forward, points, scale)


def _places(
    graph: ResidualGraph, inputs: Mapping[str, Any], shape: Sequence[int], position: int | Literal["last"]
) -> int | Tensor:
    """The place that is looked at; of several inputs that end elsewhere, that of each."""
    if isinstance(position, str) and position != "last":
        raise InputError(f"position={quoted(position)} is unknown: give a number, or 'last'")
    if position == "last":
        last = last_tokens(graph, inputs, shape[:-1])
        places = places_of(-1 if last is None else last, shape)
    else:
        places = places_of(position, shape)
    counted = counted_tokens(graph, inputs, shape[:-1])
    if counted is not None and not bool(at_places(counted, places).all()):
        raise InputError(f"position={quoted(position)} is padding of a shorter prompt: give position='last'")
    return places


def _check_size(points: Sequence[int], orders: Sequence[int], shape: Sequence[int]) -> None:
    """Raise `BudgetError` for logits that are too large."""
    needed = len(points) * len(orders) * int(np.prod(shape)) * 4
    if needed > LENS_BUDGET:
        settings = {
            ("choose {} or fewer with layers=", "point"): len(points),
            ("give {} at once or fewer", "input"): shape[0],
            ("give inputs of {} or fewer, or look at one position=", "position"): shape[1] if len(shape) == 3 else 1,
        }
        fits = {told: number * LENS_BUDGET // needed for told, number in settings.items()}
        fitting = [told.format(amount(number, word)) for (told, word), number in fits.items() if number]
        raise BudgetError(
            f"lenses at {amount(len(points), 'point')} of {amount(len(orders), 'order')} on outputs of shape "
            f"{list(shape)} take {needed / 2**30:.1f} GiB, more than {LENS_BUDGET / 2**30:.0f}: "
            + ", ".join([*fitting, "or use evaluate_lens, which keeps statistics only"])
        )


def _orders(order: int | Sequence[int]) -> tuple[int, ...]:
    """The orders that are asked for."""
    highest = max(order, default=-1) if isinstance(order, Sequence) else int(order)
    if highest < 0 or (isinstance(order, Sequence) and min(order) < 0):
        raise InputError(f"order={quoted(order)} gives no order: take 0 or more, or several such as [0, 2]")
    check_order(highest)
    return tuple(sorted(set(order))) if isinstance(order, Sequence) else tuple(range(highest + 1))
