"""Where the output is looked at, and which of its logits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from jetgraph.applications.distances import centred, divergence
from jetgraph.applications.interventions.network import At, Network, logits_at
from jetgraph.applications.lenses.points import token_ids
from jetgraph.applications.readout import Texts, texts_of, token_text
from jetgraph.applications.subject import (
    DIRECTION,
    counted_tokens,
    encode_token,
    is_features,
    is_vocabulary,
    own_direction,
)
from jetgraph.errors import InputError, amount, quoted
from jetgraph.running.forward import Forward
from jetgraph.running.indices import whole_numbers

Token = int | str
"""A token id, or a text that is one token."""

Target = Token | tuple[Token | Sequence[Token], Token | Sequence[Token]] | Sequence[Token] | Tensor
"""A token; a pair, whose difference of logits is meant; or one for each example: a list, or a pair of lists."""


@dataclass(frozen=True, eq=False)
class Readout:
    """Where the output is looked at, and which of its logits."""

    places: int | Tensor | None
    """The place that is looked at, or that of each example [examples]; None is all of them."""
    positions: bool
    """The output has positions."""
    clean: Tensor
    """The model's own logits there, [examples, places, vocabulary]."""
    direction: Tensor | None
    """Of features where no target is named: what they are told by, [examples, places, features]."""
    tokens: Tensor
    """The target, [examples, places]; the largest feature, which is not told, where there is a direction."""
    against: Tensor | None
    """The token whose logit is subtracted, where the target is a pair."""
    tokenizer: Any | None
    counted: Tensor | None
    """True [examples, places] where all places are looked at and one is a token and no padding; None: they all are."""
    features: bool = False
    """The output is features, which are no logits of tokens."""

    @classmethod
    def of(cls, network: Network, position: At, target: Target | None, tokenizer: Any | None) -> Readout:
        forward = network.forward
        places = network.places(position)
        clean = logits_at(forward, places)
        shape = forward.shape(forward.graph.traced.output)
        positions = len(shape) == 3
        counted = counted_tokens(network.graph, network.inputs, shape[:-1]) if places is None else None
        features = is_features(network.graph, clean.shape[-1])
        if tokenizer is not None and not is_vocabulary(network.graph, clean.shape[-1], tokenizer):
            if any(isinstance(one, str) for one in (target if isinstance(target, Sequence) else ())):
                raise InputError(
                    f"the output has {amount(clean.shape[-1], 'feature')} and no vocabulary, so {quoted(target)} names "
                    "none of them: give a number"
                )
            tokenizer = None
        if isinstance(target, tuple):
            if len(target) != 2:
                raise InputError(
                    "a tuple as target is a pair, whose logits are subtracted, but it has "
                    f"{amount(len(target), 'token')}: give a list for one token per example"
                )
            one, other = (_tokens(token, clean, tokenizer) for token in target)
            return cls(places, positions, clean, None, one, other, tokenizer, counted, features)
        direction = own_direction(network.graph, clean) if target is None else None
        tokens = _tokens(target, clean, tokenizer)
        return cls(places, positions, clean, direction, tokens, None, tokenizer, counted, features)

    def read(self, forward: Forward, copies: int = 1) -> Tensor:
        """The logits of so many copies of the pass, [copy, examples, places, vocabulary]."""
        return logits_at(forward, self.places, copies).unflatten(0, (copies, -1))

    def logit(self, logits: Tensor) -> Tensor:
        """The target's logit, or the pair's difference, in float64 [..., examples, places] of logits or stacks of them;
        of features, their length along the direction.
        """
        logits = logits.double()
        if self.direction is not None:
            return (logits * self.direction.to(logits.device)).sum(-1)
        one, *other = (
            logits.gather(-1, tokens.expand(logits.shape[:-1]).unsqueeze(-1)).squeeze(-1)
            for tokens in (self.tokens, self.against)
            if tokens is not None
        )
        return one - other[0] if other else one

    def change(self, logits: Tensor) -> Tensor:
        """What `logit` has changed by against the model's own output."""
        return self.logit(logits) - self.logit(self.clean)

    @property
    def unchanged(self) -> Tensor:
        """What `change` is of the model's own output: zeros [examples, places]."""
        return torch.zeros(self.tokens.shape, dtype=torch.float64)

    def centred_logit(self, logits: Tensor) -> Tensor:
        """`logit` of centred logits, which a shift of all logits leaves as it is; features are told as they are."""
        return self.logit(logits if self.features else centred(logits))

    def centred_change(self, logits: Tensor) -> Tensor:
        """What `centred_logit` has changed by."""
        return self.centred_logit(logits) - self.centred_logit(self.clean)

    def divergence(self, logits: Tensor) -> Tensor:
        """KL(model ‖ logits) in nats."""
        return divergence(self.clean, logits)

    def distance(self, features: Tensor) -> Tensor:
        """‖features − the model's own‖ as a share of the length of these."""
        own = self.clean.double()
        length = own.norm(dim=-1)
        return (features.double() - own).norm(dim=-1) / length.where(length > 0, 1.0)

    def cosine(self, features: Tensor) -> Tensor:
        """Of the angle to the model's own features."""
        return torch.cosine_similarity(features.double(), self.clean.double(), dim=-1)

    def text(self, example: int, place: int) -> str:
        """The target of one row, for people."""
        if self.direction is not None:
            return DIRECTION
        text = token_text(self.tokenizer, int(self.tokens[example, place]))
        if self.against is None:
            return text
        return f"{text} − {token_text(self.tokenizer, int(self.against[example, place]))}"

    @property
    def centred_name(self) -> str:
        """The target as titles call it where `centred_logit` is told; a difference is the same centred or not."""
        return self.name if self.direction is not None or self.against is not None else f"centred {self.name}"

    @property
    def name(self) -> str:
        """The target as axes and titles call it."""
        if self.direction is not None:
            return f"length along the {DIRECTION}"
        texts = {self.text(example, place) for example, place in self.rows()}
        what = "logit" if self.against is None else "logit difference"
        return f"{what} of {texts.pop()}" if len(texts) == 1 else f"{what} of the target"

    def texts(self, network: Network) -> Texts:
        """By example, the texts of the input's tokens; none where the output has no positions, or the input no tokens
        for them.
        """
        return texts_at(network, self.tokenizer)

    def rows(self) -> Iterator[tuple[int, int]]:
        """All (example, place) but padding."""
        examples, places = self.tokens.shape
        return (
            (example, place)
            for example in range(examples)
            for place in range(places)
            if self.counted is None or self.counted[example, place]
        )

    def without_padding(self, values: Tensor) -> Tensor:
        """Numbers [..., examples, places], NaN for padding; on the CPU."""
        return values.cpu() if self.counted is None else values.cpu().masked_fill(~self.counted, torch.nan)

    def position(self, example: int, place: int) -> int | None:
        """The position that a place of an example is, counted from the start; None where the output has none."""
        if not self.positions:
            return None
        if isinstance(self.places, Tensor):
            return int(self.places[example])
        return place if self.places is None else self.places


def texts_at(network: Network, tokenizer: Any | None) -> Texts:
    """By example, the texts of the input's tokens; see `Readout.texts`."""
    rows = network.forward.shape(network.graph.traced.output)[:-1]
    return texts_of(tokenizer, token_ids(network.graph, network.inputs, rows) if len(rows) == 2 else None)


def _tokens(target: Token | Sequence[Token] | Tensor | None, clean: Tensor, tokenizer: Any | None) -> Tensor:
    """Token ids [examples, places]; the model's top token where none is given."""
    examples, places, vocabulary = clean.shape
    if target is None:
        return clean.argmax(-1)
    listed = whole_numbers(target, "target") if isinstance(target, Tensor) else target
    if isinstance(listed, int | Integral | str):
        ids = [_token(listed, tokenizer)] * examples
    else:
        ids = [_token(one, tokenizer) for one in listed]
        ids = ids * examples if isinstance(target, Tensor) and len(ids) == 1 else ids
    if len(ids) != examples:
        raise InputError(f"{amount(len(ids), 'target')} for {amount(examples, 'example')}: give one, or one for each")
    if not all(0 <= index < vocabulary for index in ids):
        raise InputError(f"target {quoted(target)} is out of range: the output has logits 0 to {vocabulary - 1}")
    return torch.tensor(ids, device=clean.device).unsqueeze(1).expand(examples, places)


def _token(token: Token, tokenizer: Any | None) -> int:
    return encode_token(tokenizer, token, "target") if isinstance(token, str) else int(token)
