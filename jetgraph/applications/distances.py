"""How far logits are from each other, and next-token distributions: every application measures with these.

All are in float64 and over the last dimension; leading dimensions broadcast. A constant added to all logits changes no
probability, so norms and cosines are those of centred logits: x − mean(x) over the vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from jetgraph.running.memory import suited

METRICS = ("kl", "cosine", "top1", "top5", "remainder")
"""What `compare` measures, in its order."""


CACHE = 2**21
"""Bytes of one value of a comparison in float64 on a CPU: what it holds near itself."""

LAUNCHES = 2**28
"""The same on an accelerator, where each operator is a launch: so much that launching takes less time than running."""


def centred(logits: Tensor) -> Tensor:
    """logits − their mean over the last dimension.

    >>> centred(torch.tensor([1.0, 2.0, 6.0])).tolist()
    [-2.0, -1.0, 3.0]
    """
    logits = logits.detach()
    # Read once more rather than written in float64 first: half of what is moved.
    return logits - logits.mean(-1, keepdim=True, dtype=torch.float64)


def norm(logits: Tensor) -> Tensor:
    """‖centred logits‖."""
    return centred(logits).norm(dim=-1)


def cosine(one: Tensor, other: Tensor) -> Tensor:
    """Cosine of centred logits; 0 where one of the two is constant."""
    return _cosine(centred(one), centred(other))


def divergence(model: Tensor, other: Tensor) -> Tensor:
    """KL(model ‖ other) in nats, of the distributions that logits stand for."""
    return _divergence(_log_probabilities(model), _log_probabilities(other))


def relative_remainder(model: Tensor, other: Tensor) -> Tensor:
    """‖model − other‖ / ‖model‖ of centred logits.

    >>> float(relative_remainder(torch.tensor([2.0, 0.0]), torch.tensor([6.0, 5.0])))
    0.5
    """
    return _relative_remainder(centred(model), centred(other))


def total_variation(p: Tensor, q: Tensor) -> Tensor:
    """½ Σ |p − q| of two distributions.

    >>> float(total_variation(torch.tensor([1.0, 0.0]), torch.tensor([0.5, 0.5])))
    0.5
    """
    return (p - q).abs().sum(-1) / 2


def jensen_shannon(log_p: Tensor, log_q: Tensor) -> Tensor:
    """½ KL(p ‖ m) + ½ KL(q ‖ m) in nats, m = ½ (p + q), of two distributions given by their logarithms.

    >>> distance = jensen_shannon(torch.tensor([1.0, 0.0]).log(), torch.tensor([0.0, 1.0]).log())
    >>> bool(distance.isclose(torch.tensor(2.0).log()))
    True
    """
    # log m = log(p + q) − log 2, from the logarithms, so that nothing underflows to 0 · ∞.
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    return (_divergence(log_p, log_m) + _divergence(log_q, log_m)) / 2


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
    """All distances of `other` to `model` at once, in one pass that holds a few values of `CACHE` bytes besides
    the two, or of `LAUNCHES` bytes on an accelerator.

    Parameters
    ----------
    model, other
        Logits [..., vocab]. Of equal ones the first counts as the largest.

    >>> gaps = compare(torch.tensor([2.0, 0.0, 1.0]), torch.tensor([[7.0, 5.0, 6.0], [0.0, 4.0, 2.0]]))
    >>> gaps.top1.tolist(), gaps.cosine.round(decimals=9).tolist(), gaps.remainder.round(decimals=9).tolist()
    ([True, False], [1.0, -1.0], [0.0, 3.0])
    """
    rows = torch.broadcast_shapes(model.shape[:-1], other.shape[:-1])
    if 0 in rows:
        nothing = torch.zeros(rows, dtype=torch.float64, device=other.device)
        return Comparison(nothing, nothing, nothing == 0, nothing == 0, nothing)
    own = model.shape[:-1] if rows[len(rows) - model.dim() + 1 :] == model.shape[:-1] else rows
    flat = model.detach().expand(*own, -1).reshape(-1, model.shape[-1])
    grouped = other.detach().expand(*rows, -1).reshape(-1, len(flat), other.shape[-1])
    at_once = suited(model.device, cpu=CACHE, accelerator=LAUNCHES)
    size = max(1, at_once // (8 * max(1, flat.shape[-1])))
    together = max(1, size // len(flat))
    parts = [
        _Rows(part).compare(grouped[:, at * size : (at + 1) * size], together)
        for at, part in enumerate(flat.split(size))
    ]
    kl, cosine, rank, remainder = (torch.cat(each, dim=-1).reshape(rows) for each in zip(*parts, strict=True))
    return Comparison(kl, cosine, rank == 0, rank < 5, remainder)


class _Rows:
    """Some rows [row, vocab] of a model's logits, with what of them every comparison needs.

    Products and sums are in float64, because KL and remainder are differences of what is nearly equal: they are read to
    nine digits. Ranks need none of that.
    """

    def __init__(self, logits: Tensor) -> None:
        self.best = logits.argmax(-1, keepdim=True)
        self.before = torch.arange(logits.shape[-1], device=logits.device) < self.best
        self.centred = centred(logits)
        self.norm = self.centred.norm(dim=-1)
        self.log_probability = _log_probabilities(logits)
        self.probability = self.log_probability.exp()
        self.impossible = self.probability == 0

    def compare(self, others: Tensor, together: int) -> tuple[Tensor, ...]:
        """KL, cosine, rank of the own top token and remainder, [group, row] each, of logits [group, row, vocab], of so
        many groups at once.
        """
        return tuple(torch.cat(each) for each in zip(*map(self._some, others.split(together)), strict=True))

    def _some(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        chosen = logits.gather(-1, self.best.expand(*logits.shape[:-1], 1))
        rank = torch.count_nonzero((logits > chosen) | ((logits == chosen) & self.before), dim=-1)
        # Not of centred ones: where tokens are ruled out by the lowest number of all, so is the mean.
        told = _log_probabilities(logits)
        gap = torch.sub(self.log_probability, told, out=told)
        # Where p is 0, so is its part, even if both logarithms are −∞; rounding may leave a tiny negative sum.
        divergence = gap.mul_(self.probability).masked_fill_(self.impossible, 0.0).sum(-1).clamp_min_(0.0)
        del told, gap
        other = centred(logits)
        lengths = self.norm * other.norm(dim=-1)
        cosine = torch.where(lengths > 0, (self.centred * other).sum(-1) / lengths, 0.0)
        return divergence, cosine, rank, torch.sub(self.centred, other, out=other).norm(dim=-1) / self.norm


# Of values that are ready


def _log_probabilities(logits: Tensor) -> Tensor:
    return torch.log_softmax(logits.detach(), -1, dtype=torch.float64)


def _divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    p = log_p.exp()
    # Where p is 0, so is its part, even if the logarithms are both −∞; rounding may leave a tiny negative sum.
    return torch.where(p > 0, p * (log_p - log_q), 0.0).sum(-1).clamp_min(0.0)


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    product = a.norm(dim=-1) * b.norm(dim=-1)
    return torch.where(product > 0, (a * b).sum(-1) / product, 0.0)


def _relative_remainder(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).norm(dim=-1) / a.norm(dim=-1)
