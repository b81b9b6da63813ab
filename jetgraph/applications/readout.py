"""What a term says: its tokens, and how far it is from the model's own output.

Logits are compared at one position. A constant added to all logits changes no probability, so norms and cosines are
those of centred logits: x − mean(x) over the vocabulary.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor


def centred(logits: Tensor) -> Tensor:
    """logits − their mean over the last dimension, in float64.

    >>> import torch
    >>> centred(torch.tensor([1.0, 2.0, 6.0])).tolist()
    [-2.0, -1.0, 3.0]
    """
    logits = logits.detach().double()
    return logits - logits.mean(-1, keepdim=True)


def norm(logits: Tensor) -> float:
    """‖centred logits‖."""
    return float(centred(logits).norm())


def cosine(one: Tensor, other: Tensor) -> float:
    """Cosine of two vectors of centred logits; 0 where one of them is constant."""
    a, b = centred(one), centred(other)
    scale = float(a.norm() * b.norm())
    return float(a @ b) / scale if scale > 0 else 0.0


def divergence(model: Tensor, other: Tensor) -> float:
    """KL(model ‖ other) in nats, of the distributions that two vectors of logits stand for."""
    p, q = (logits.detach().double().log_softmax(-1) for logits in (model, other))
    return float((p.exp() * (p - q)).sum())


def relative_remainder(model: Tensor, other: Tensor) -> float:
    """‖model − other‖ / ‖model‖ of centred logits.

    >>> import torch
    >>> relative_remainder(torch.tensor([2.0, 0.0]), torch.tensor([6.0, 5.0]))
    0.5
    """
    return float(centred(model - other).norm() / centred(model).norm())


def token_text(tokenizer: Any | None, index: int) -> str:
    """A token as a person can read it, spaces and line breaks included."""
    if tokenizer is None or index >= len(tokenizer):
        return f"#{index}"
    text = tokenizer.decode([index])
    # A token may be a part of a character, which has no text of its own.
    return f"<{tokenizer.convert_ids_to_tokens(index)}>" if "\ufffd" in text else repr(text)


def top_tokens(logits: Tensor, tokenizer: Any | None, number: int = 1) -> str:
    """The tokens with the largest logits, best first."""
    best = logits.detach().topk(min(number, logits.shape[-1])).indices.tolist()
    return "  ".join(token_text(tokenizer, index) for index in best)
