"""What an attribution is of: linear functions of the output, at one or more positions of one prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Literal

import torch
from torch import Tensor

from jetgraph.applications.distances import centred
from jetgraph.applications.interventions.network import Network
from jetgraph.applications.ranking import row_top
from jetgraph.applications.readout import token_text
from jetgraph.applications.subject import DIRECTION, encode_token, is_vocabulary, own_direction
from jetgraph.compilation.components import Readout
from jetgraph.errors import InputError, amount, quoted
from jetgraph.running.forward import Forward
from jetgraph.running.indices import whole_numbers

Token = int | str
"""A token id, or a text that is one token."""

Target = Token | tuple[Token, Token] | Sequence[Token] | Mapping[Token, float] | Tensor
"""A token; a pair, whose difference of logits is meant; several, each a target of its own; tokens with weights; or a
direction, a tensor of the size of the vocabulary. None: the fewest top tokens that hold `COVERED` of the probability,
each weighted by its own; of an output of features, as of an encoder, its own direction."""

Positions = int | Sequence[int] | Literal["last"] | None
"""Where targets are read: one position, several (a span), the last token, or all of them."""

COVERED = 0.95
"""The probability that top tokens hold together."""

SHOWN = 4
"""Targets that a title names."""

MOST = 10
"""Top tokens at most."""


@dataclass(frozen=True, eq=False)
class Aim:
    """One target: what it is called, and the linear function of the output that it is."""

    name: str
    readout: Readout
    weighted: bool = False
    """It is a logit times a number, which its name begins with."""


def aims(network: Network, target: Target | None, position: Positions, tokenizer: Any | None) -> list[Aim]:
    """The targets of an attribution.

    Parameters
    ----------
    network
        The model on its one prompt.
    target, position
        See `Target` and `Positions`.
    tokenizer
        For texts.

    Returns
    -------
    list[Aim]
        Centred logits of tokens (their mean taken off, which says nothing of a token), differences, or directions.

    Raises
    ------
    InputError
        There is no such token or position, several prompts, or nothing to be told.
    """
    shape = network.forward.shape(network.graph.traced.output)
    places = _places(network, position, shape)
    size = shape[-1]
    if tokenizer is not None and not is_vocabulary(network.graph, size, tokenizer):
        tokenizer = None
    targets: list[Aim] = []
    for place in places:
        at = "" if place is None else f"@{place}"
        for name, weights, weighted in _functions(network, target, place, size, tokenizer):
            targets.append(Aim(f"{name}{at}", Readout(place, weights), weighted))
    return targets


def named(aims: Sequence[Aim]) -> str:
    """Several targets in one line; a position that they share is said once."""
    place = _shared_place(aims)
    return without_place(aims) + ("" if place is None else f" at position {place}")


def without_place(aims: Sequence[Aim]) -> str:
    """Several targets in one line, without the position that they share."""
    more = f" + {len(aims) - SHOWN} more" if len(aims) > SHOWN else ""
    at = f"@{_shared_place(aims)}"
    return " + ".join(aim.name.removesuffix(at) for aim in aims[:SHOWN]) + more


def _shared_place(aims: Sequence[Aim]) -> int | None:
    places = {aim.readout.place for aim in aims}
    return places.pop() if len(places) == 1 else None


def measured(forward: Forward, aims: Sequence[Aim]) -> float:
    """Σ of some targets in the output of a pass."""
    total = 0.0
    for aim in aims:
        place = aim.readout.place
        output = forward.output[0] if place is None else forward.output_at(place)[0, 0]
        total += float((output.detach().double().cpu() * aim.readout.weights).sum())
    return total


def _places(network: Network, position: Positions, shape: Sequence[int]) -> list[int | None]:
    if len(shape) not in (2, 3) or shape[0] != 1:
        fixed = len(shape) in (2, 3) and not isinstance(network.graph.traced.output.meta["shape"][0], str)
        what = (
            f"this trace holds for {shape[0]} rows together and for no other number: trace the model on inputs of one"
            if fixed
            else "give prompts one at a time, and name the output when you trace the model; rows that read one another "
            "(positions that come first) are no prompts: wrap the model so that its batch comes first"
        )
        raise InputError(
            f"the output has shape {list(shape)}, but an attribution is of one prompt, with an output [1, classes] or "
            f"[1, position, vocabulary]: {what}"
        )
    if len(shape) == 2:
        if position not in ("last", None, -1):
            raise InputError(f"position={quoted(position)} does not exist: the output {list(shape)} has no positions")
        return [None]
    if isinstance(position, Sequence) and not isinstance(position, str):
        if not position:
            raise InputError("position=[] names no position: give one or more, or leave it out for the last")
        chosen = [network.forward.places(one) for one in position]
    elif position is None:
        chosen = list(range(shape[1]))
    else:
        chosen = [network.places(position)]
    return list(dict.fromkeys(int(one) for one in chosen))  # type: ignore[arg-type]


def _functions(
    network: Network, target: Target | None, place: int | None, size: int, tokenizer: Any | None
) -> list[tuple[str, Tensor, bool]]:
    """Names, weights [size], and whether the name begins with a number that they are times of."""
    if target is None:
        output = network.forward.output[0] if place is None else network.forward.output_at(place)[0, 0]
        direction = own_direction(network.graph, output)
        return _top(output, tokenizer) if direction is None else [(DIRECTION, direction.cpu(), False)]
    if isinstance(target, Tensor) and target.is_floating_point():
        if tuple(target.shape) != (size,) or target.is_meta or not bool(target.isfinite().all()):
            raise InputError(
                f"the direction has shape {list(target.shape)}, but the output has {amount(size, 'feature')}: give "
                f"[{size}] finite numbers"
            )
        if not bool(target.any()):
            raise InputError("the direction is zero, so that nothing is attributed to it")
        return [("direction", target.detach().double().cpu(), False)]
    if isinstance(target, Tensor):
        target = whole_numbers(target, "target")
    if isinstance(target, tuple):
        if len(target) != 2:
            raise InputError(
                f"a tuple as target is a pair, whose logits are subtracted, but it has {amount(len(target), 'token')}: "
                "give a list for several targets"
            )
        one, other = (_index(token, size, tokenizer) for token in target)
        if one == other:
            raise InputError(f"the target is {quoted(target)}, one token against itself, whose difference is 0")
        name = f"{token_text(tokenizer, one)} − {token_text(tokenizer, other)}"
        return [(name, _logit(one, size) - _logit(other, size), False)]
    weighted = dict(target) if isinstance(target, Mapping) else dict.fromkeys(_listed(target), 1.0)
    if not weighted:
        raise InputError("no target is named: give a token, a pair, or a list of tokens")
    functions: list[tuple[str, Tensor, bool]] = []
    for token, weight in weighted.items():
        if not abs(weight) < float("inf") or weight == 0:
            raise InputError(f"the weight of {quoted(token)} is {weight}: give a finite number other than 0")
        index = _index(token, size, tokenizer)
        share = "" if weight == 1 else f"{weight:.3g} "
        functions.append((f"{share}{token_text(tokenizer, index)}", weight * _logit(index, size), weight != 1))
    return functions


def _listed(target: Token | Sequence[Token]) -> Sequence[Token]:
    return [target] if isinstance(target, str | Integral) else target  # type: ignore[list-item]


def _top(output: Tensor, tokenizer: Any | None) -> list[tuple[str, Tensor, bool]]:
    """The fewest top tokens that hold `COVERED`, at most `MOST`, each weighted by its probability."""
    size = len(output)
    probability = output.double().softmax(-1).cpu()
    best, index = row_top(probability[None], min(MOST, size))
    number = min(int((best[0].cumsum(0) < COVERED).sum()) + 1, len(best[0]))
    return [
        (f"{share:.3g} {token_text(tokenizer, token)}", share * _logit(token, size), True)
        for share, token in zip(best[0, :number].tolist(), index[0, :number].tolist(), strict=True)
    ]


def _index(token: Token, size: int, tokenizer: Any | None) -> int:
    if isinstance(token, str) and tokenizer is None:
        raise InputError(f"{quoted(token)} is a text, and there is no tokenizer for this output: give a number")
    index = encode_token(tokenizer, token, "target") if isinstance(token, str) else int(token)
    if not 0 <= index < size:
        raise InputError(f"target {quoted(token)} is out of range: the output has logits 0 to {size - 1}")
    return index


def _logit(index: int, size: int) -> Tensor:
    """The centred logit as a function of the logits."""
    return centred(torch.eye(1, size, dtype=torch.float64).roll(index, 1)[0])
