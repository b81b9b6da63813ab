"""What a lens holds: logits by point and order, beside the model's own, and the table of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor

from jetgraph.algebra.rules import Scale
from jetgraph.applications.distances import Comparison, compare
from jetgraph.applications.lenses.following import QUANTITIES, followed, target_index
from jetgraph.applications.lenses.points import by_position
from jetgraph.applications.orders import ChosenOrder
from jetgraph.applications.readout import Texts, texts_of, token_text
from jetgraph.applications.results import Cell, Result
from jetgraph.errors import amount, check


@dataclass(frozen=True, eq=False, repr=False)
class LensValues(Result):
    """What a lens holds, and its table; `Lens` has its pictures too."""

    model: str
    points: tuple[int, ...]
    """Numbers of the points: 0 is the encoder's sum, p the stream after step p."""
    after: tuple[str, ...]
    """What each point follows, such as `L0.attn`."""
    orders: tuple[int, ...]
    """In ascending order."""
    logits: Tensor
    """[point, order, batch, length, vocabulary], or [point, order, batch, classes]: for each of `orders` the sum of the
    terms up to it and of the decoder's bias. Of the output's type."""
    output: Tensor
    """The model's own: [batch, length, vocabulary], or [batch, classes]."""
    ids: Tensor | None
    """Of the input's tokens, [batch, length]; None where the model reads none."""
    tokenizer: Any | None
    counted: Tensor | None = None
    """True [batch, length] where there is a token and no padding; None where no attention mask tells."""
    scale: Scale = "matched"
    """Whether centres were matched to the end of the stream, where the decoder allows it."""
    chosen: tuple[ChosenOrder, ...] = ()
    """At each point the order that was chosen, and why, where orders were not given."""
    vocabulary: bool = True
    """The output holds a logit for each token; else it has features or classes, which go by their numbers."""
    target: int | None = None
    """The token, or class, that is followed along the stream."""
    places: Tensor | None = None
    """[batch]: the position that is looked at, where it is one; all of them unless given."""
    radius: Tensor | None = None
    """[point, batch, length]: the radius of convergence of orders 1 and more, in units of the way to the end; None
    where none has a closed form, or there is order 0 alone."""
    features: bool = False
    """The output has the stream's features, as of an encoder, which are neither tokens nor classes."""

    def of(self, target: int | str) -> Self:
        """The same lens, whose table and figure follow a token: its rank, probability and centred logit.

        Raises
        ------
        InputError
            What is no token of the output.
        """
        check(LensValues.of, locals())
        own = self.tokenizer if self.vocabulary else None
        return replace(self, target=target_index(target, self.output.shape[-1], own))

    @property
    def tokens(self) -> Texts:
        """By input, the texts of its tokens, padding among them; none where it has no tokens."""
        return texts_of(self.tokenizer, self.ids)

    @property
    def order(self) -> int:
        """The highest order."""
        return self.orders[-1]

    @property
    def title(self) -> str:
        listed = ", ".join(map(str, self.orders))
        name = "Logit lens" if self.orders == (0,) else f"Jet lens of order{'s' * (len(self.orders) > 1)} {listed}"
        name += " with plain centres" if self.order and self.scale == "none" else ""
        name += f", chosen for each point to leave {self.chosen[0].tolerance:g}," if self.chosen else ""
        number, length = self.output.shape[0], self.output.shape[1]
        rows = "" if self.output.dim() == 2 else f" of {amount(length, 'position')}"
        if self.places is not None:
            rows = f", position {', '.join(map(str, sorted({*self.places.tolist()})))}"
        elif self.counted is not None and not bool(self.counted.all()):
            tokens = int(self.counted.sum())
            rows = f", {amount(tokens, 'token')}"
        points = amount(len(self.points), "point")
        return f"{name} of {self.model} at {points}, {amount(number, 'input')}{rows}"

    @cached_property
    def comparison(self) -> Comparison:
        """Distances to the model's output, [point, order, batch, length] or [point, order, batch]."""
        return compare(self.output, self.logits)

    def columns(self) -> Mapping[str, Sequence[Cell]]:
        """One row per point, order, input and position; padding has none.

        `token` is the input token, `top` the lens's most probable token with its `probability`, and `says` the model's
        (numbers of features or classes where the output is no vocabulary);
        then KL(model ‖ lens) in nats, cosine of centred logits, agreement of the two top tokens, and
        ‖output − lens‖ / ‖output‖ of centred logits. With a target, its rank (1 is the first), probability and centred
        logit come after these.
        """
        points, orders, batch, length, _ = self.grid.shape
        best = self.grid.max(-1)
        # Point by point: of all logits at once float64 would take more than they do.
        totals = torch.stack([point.double().logsumexp(-1) for point in self.grid])
        probability = (best.values.double() - totals).exp()
        top, says = best.indices.tolist(), by_position(self.output).argmax(-1).tolist()
        flat_shape = (points, orders, batch, length)
        flat = {name: self._kept(getattr(self.comparison, name)) for name in ("kl", "cosine", "top1", "remainder")}
        kept = [(row, i) for row in range(batch) for i in range(length) if self._counts(row, i)]
        index = [(p, j, row, i) for p in range(points) for j in range(orders) for row, i in kept]
        table: dict[str, Sequence[Cell]] = {
            "point": [f"h{self.points[p]}" for p, *_ in index],
            "after": [self.after[p] for p, *_ in index],
            "order": [self.orders[j] for _, j, *_ in index],
            "example": [row for _, _, row, _ in index],
            "position": [self.position(row, i) for _, _, row, i in index],
            "token": [None if self.ids is None else self._text(int(self.ids[row, i])) for _, _, row, i in index],
            "top": [self.said(top[p][j][row][i]) for p, j, row, i in index],
            "top id": [top[p][j][row][i] for p, j, row, i in index],
            "probability": self._kept(probability),
            "says": [self.said(says[row][i]) for _, _, row, i in index],
            "kl": flat["kl"],
            "cosine": flat["cosine"],
            "agrees": flat["top1"],
            "remainder": flat["remainder"],
            **({} if self.radius is None else {"radius": self._kept(self.radius[:, None].expand(flat_shape))}),
            **self._reasons([(p, j) for p, j, *_ in index]),
        }
        if self.target is None:
            return table
        told = followed(self.grid, self.target)
        return table | {
            "target": [self.said(self.target)] * len(index),
            **{f"target_{name}": self._kept(told[name]) for name in QUANTITIES},
        }

    def _reasons(self, places: Sequence[tuple[int, int]]) -> Mapping[str, Sequence[Cell]]:
        """For rows by point and order: why an order was chosen, where it was; nothing where orders were given."""
        if not self.chosen:
            return {}
        return {"chosen": [self.chosen[p].why if self.orders[j] == self.chosen[p].order else None for p, j in places]}

    def last(self, row: int = 0) -> int:
        """The place of the last token of an input."""
        if self.output.dim() == 2:
            return 0
        return self.output.shape[1] - 1 if self.counted is None else int(self.counted[row].nonzero()[-1, 0])

    def position(self, row: int, place: int) -> int | None:
        """The position of the sequence that a place of an input is; None where the output has none."""
        if self.output.dim() == 2:
            return None
        return place if self.places is None else int(self.places[row])

    def said(self, index: int) -> str:
        """What the output has at an index."""
        return token_text(self.tokenizer if self.vocabulary else None, index)

    @property
    def grid(self) -> Tensor:
        """Logits as [point, order, batch, length, vocabulary] in every case."""
        return self.logits if self.logits.dim() == 5 else self.logits.unsqueeze(3)

    def _counts(self, row: int, place: int) -> bool:
        """A position holds a token."""
        return self.counted is None or bool(self.counted[row, place])

    def _kept(self, values: Tensor) -> list[Any]:
        """Values [point, order, batch, length] of tokens, in the order of the table."""
        return (values if self.counted is None else values[..., self.counted.to(values.device)]).flatten().tolist()

    def _text(self, index: int) -> str:
        return token_text(self.tokenizer, index)
