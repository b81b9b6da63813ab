"""One token along the stream: its rank, its probability and its logit at every point of a lens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from jetgraph.applications.distances import centred
from jetgraph.applications.subject import encode_token
from jetgraph.errors import InputError, quoted

if TYPE_CHECKING:
    from matplotlib.figure import Figure

QUANTITIES = ("rank", "probability", "logit")
"""What is followed."""


def target_index(target: int | str, size: int, tokenizer: Any | None) -> int:
    """The place of a token, or of a class, in the output.

    Raises
    ------
    InputError
        The output has no such token or class.
    """
    index = encode_token(tokenizer, target, "target") if isinstance(target, str) else int(target)
    if not 0 <= index < size:
        raise InputError(f"target {quoted(target)} is out of range: the output has logits 0 to {size - 1}")
    return index


def followed(logits: Tensor, index: int) -> dict[str, Tensor]:
    """Rank (1 is the first), probability and centred logit of one token among logits [..., vocabulary], in float64."""
    if logits.dim() > 2:
        # One point after the other: float64 of all logits would be twice as large as they are, or four times.
        parts = [followed(part, index) for part in logits]
        return {name: torch.stack([part[name] for part in parts]) for name in QUANTITIES}
    own = logits[..., index, None]
    return {
        "rank": (logits > own).sum(-1) + 1,
        "probability": (own.double() - logits.double().logsumexp(-1, keepdim=True)).exp()[..., 0],
        "logit": centred(logits.double())[..., index],
    }


def curves(
    lens: Mapping[str, Tensor],
    model: Mapping[str, Tensor],
    orders: Sequence[int],
    labels: Sequence[str],
    title: str,
    along: str = "point of the stream, and what it follows",
) -> Figure:
    """Each quantity along the stream, a line for each order; dashed, the model's own.

    Parameters
    ----------
    lens
        By quantity, [point, order], at one position.
    model
        By quantity, the model's own there.
    orders, labels
        Of the lines, and of the points.
    title
        What is followed.
    along
        What the labels are of.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4), layout="constrained")
    ticks = range(0, len(labels), -(-len(labels) // 24))
    for axes, name in zip(figure.subplots(1, 3), QUANTITIES, strict=True):
        for column, order in enumerate(orders):
            axes.plot(range(len(labels)), lens[name][:, column].tolist(), "o-", markersize=3, label=f"order {order}")
        axes.axhline(float(model[name]), color="black", linestyle="--", linewidth=1, label="the model's own output")
        if name == "rank":
            axes.set_yscale("log")
            axes.invert_yaxis()
        axes.set_ylabel("centred logit" if name == "logit" else name)
        axes.set_xticks(ticks, [labels[i] for i in ticks], rotation=60, ha="right", fontsize=7, parse_math=False)
        axes.grid(alpha=0.25)
    figure.axes[0].legend(fontsize=8)
    figure.supxlabel(along, fontsize=9)
    figure.suptitle(title, fontsize=10, parse_math=False)
    return figure


@dataclass(frozen=True, eq=False)
class Share:
    """One token among centres that make up the output together. By quantity (`QUANTITIES`), in float64."""

    index: int
    text: str
    alone: Mapping[str, Tensor]
    """Of each centre with all weight on it: [batch, length, centre]."""
    together: Mapping[str, Tensor]
    """Of their weighted sum: [batch, length]."""
    model: Mapping[str, Tensor]
    """Of the model: [batch, length]."""
    shares: Tensor
    """[batch, length, centre]: what each gives to the centred logit of the sum, w_i times its own."""


def shared(terms: Tensor, weights: Tensor, output: Tensor, index: int, text: str) -> Share:
    """What becomes of a token in Σ_i w_i T_i.

    Parameters
    ----------
    terms
        [centre, batch, length, vocabulary].
    weights
        [batch, length, centre]; NaN for padding.
    output
        The model's own, [batch, length, vocabulary].
    index, text
        The token.
    """
    each = [followed(term, index) for term in terms]
    alone = {name: torch.stack([one[name] for one in each], dim=-1) for name in QUANTITIES}
    shares = weights.to(terms.device) * alone["logit"]
    whole = torch.einsum("nblv,bln->blv", terms.double(), weights.to(terms.device))
    return Share(index, text, alone, followed(whole, index), followed(output, index), shares)


def at_last(quantities: Mapping[str, Tensor], row: int, place: int) -> dict[str, Tensor]:
    """Quantities [..., batch, length] at one position of one input."""
    return {name: torch.as_tensor(value)[..., row, place] for name, value in quantities.items()}
