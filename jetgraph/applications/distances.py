"""How far logits are from each other, and next-token distributions: every application measures with these.

All are in float64 and over the last dimension; leading dimensions broadcast. A constant added to all logits changes no
probability, so norms and cosines are those of centred logits: x − mean(x) over the vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from jetgraph.applications.compiling import kernels_for
from jetgraph.export.precision import rounding, summed_in
from jetgraph.running.memory import is_accelerator, suited

METRICS = ("kl", "cosine", "top1", "top5", "remainder")
"""What `compare` measures, in its order."""


CACHE = 2**21
"""Bytes of one value of a comparison in float64 on a CPU: what it holds near itself."""

LAUNCHES = 2**26
"""The same on an accelerator, where each operator is a launch: so much that launching takes less time than running."""

KEPT = 2**28
"""Bytes of a model's log-probabilities that are kept for the next comparison on an accelerator."""

HUGE = 2.0**50
"""The largest logits that are squared in float32, in which a sum of 2^27 such squares is finite."""


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
    return _length(centred(logits).norm(dim=-1), logits.detach())


def cosine(one: Tensor, other: Tensor) -> Tensor:
    """Cosine of centred logits; 0 where one of the two is constant."""
    a, b = centred(one), centred(other)
    product = _length(a.norm(dim=-1), one) * _length(b.norm(dim=-1), other)
    return torch.where(product > 0, (a * b).sum(-1) / product, 0.0)


def cosine_distance(one: Tensor, other: Tensor) -> Tensor:
    """1 − cosine of centred logits, as ½ ‖a/‖a‖ − b/‖b‖‖², so that it is 0 of equal ones, and exact of near ones; 1
    where one of the two is constant.

    >>> one = torch.tensor([[1.0, 0.0], [3.0, 1.0], [1.0, 0.0]])
    >>> cosine_distance(one, torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, 1.0]])).round(decimals=6).tolist()
    [0.0, 2.0, 1.0]
    """
    a, b = centred(one), centred(other)
    long, wide = _length(a.norm(dim=-1), one), _length(b.norm(dim=-1), other)
    apart = a / long.where(long > 0, 1.0)[..., None] - b / wide.where(wide > 0, 1.0)[..., None]
    return torch.where((long > 0) == (wide > 0), apart.square().sum(-1) / 2, 1.0)


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
    # log m = log(p + q) − log 2, from the logarithms, so that nothing underflows to 0 · ∞; equal ones leave 0.
    log_m = torch.where(log_p == log_q, log_p, torch.logaddexp(log_p, log_q) - math.log(2))
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
    """All distances of `other` to `model` at once: see `Reference`.

    Parameters
    ----------
    model, other
        Logits [..., vocab]. Of equal ones the first counts as the largest.

    >>> gaps = compare(torch.tensor([2.0, 0.0, 1.0]), torch.tensor([[7.0, 5.0, 6.0], [0.0, 4.0, 2.0]]))
    >>> gaps.top1.tolist(), gaps.cosine.round(decimals=9).tolist(), gaps.remainder.round(decimals=9).tolist()
    ([True, False], [1.0, -1.0], [0.0, 3.0])
    """
    return Reference(model).compare(other)


class Reference:
    """Logits [..., vocab] that others are compared with.

    One pass over the others holds a few values of `CACHE` bytes, or of `LAUNCHES` bytes on an accelerator; where there
    is Triton, nothing but the results. It computes in float64, for KL and remainder are differences of what is nearly
    equal: of float32 logits they are read to nine digits, and float32 would leave 1e-6 of a KL that is 0. Logits of
    half precision have three digits, so that float32 changes none of theirs; where they hold numbers whose squares it
    has not, as of tokens that are ruled out by the lowest of all, they take float64 too.
    """

    def __init__(self, logits: Tensor) -> None:
        self._logits = logits.detach()
        wide = summed_in(logits.dtype)
        self._wide = wide if wide == torch.float64 or not _has_huge(self._logits) else torch.float64
        self._kept: dict[tuple[int, ...], Sequence[_Rows | _KernelRows]] = {}
        """By shape of the rows, those that are few: what every comparison needs of them is made once."""
        self._totals: dict[tuple[int, ...], list[_Totals]] = {}
        """By shape of the rows that are too many to be kept, their totals, part by part."""

    @property
    def shape(self) -> torch.Size:
        """That of the logits."""
        return self._logits.shape

    def compare(self, other: Tensor) -> Comparison:
        """Distances of other logits, whose leading dimensions broadcast; in float64."""
        model = self._logits
        rows = torch.broadcast_shapes(model.shape[:-1], other.shape[:-1])
        if 0 in rows:
            nothing = torch.zeros(rows, dtype=torch.float64, device=other.device)
            return Comparison(nothing, nothing, nothing == 0, nothing == 0, nothing)
        own = model.shape[:-1] if rows[len(rows) - model.dim() + 1 :] == model.shape[:-1] else rows
        number = math.prod(own)
        grouped = other.detach().expand(*rows, -1).reshape(-1, number, other.shape[-1])
        at_once = suited(model.device, cpu=CACHE, accelerator=LAUNCHES)
        size = max(1, at_once // (self._wide.itemsize * max(1, model.shape[-1])))
        together = max(1, size // number)
        parts, start = [], 0
        for part in self._parts(own, size):
            parts.append(part.compare(grouped[:, start : start + part.number], together))
            start += part.number
        kl, cosine, rank, remainder = (torch.cat(each, dim=-1).reshape(rows) for each in zip(*parts, strict=True))
        return Comparison(kl.double(), cosine.double(), rank == 0, rank < 5, remainder.double())

    def _parts(self, own: tuple[int, ...], size: int) -> Iterable[_Rows | _KernelRows]:
        """So many rows at a time, kept where they are few; all of them where there are kernels."""
        if own in self._kept:
            return self._kept[own]
        flat = self._logits.expand(*own, -1).reshape(-1, self._logits.shape[-1])
        if (kernels := kernels_for(flat)) is not None:
            self._kept[own] = [_KernelRows(flat, self._wide, kernels)]
            return self._kept[own]
        most = suited(flat.device, cpu=0, accelerator=KEPT // (self._wide.itemsize * max(1, flat.shape[-1])))
        if len(flat) > max(size, most):
            return self._again(flat.split(size), self._totals.setdefault(own, []))
        self._kept[own] = [_Rows(part, self._wide) for part in flat.split(size)]
        return self._kept[own]

    def _again(self, parts: Sequence[Tensor], totals: list[_Totals]) -> Iterator[_Rows]:
        """Rows that are made for each comparison, with the totals that an earlier one has left."""
        for number, part in enumerate(parts):
            rows = _Rows(part, self._wide, totals[number] if number < len(totals) else None)
            if number == len(totals):
                totals.append(rows.totals)
            yield rows


class _Totals(NamedTuple):
    """What of rows of logits takes a whole pass over them."""

    best: Tensor
    """The largest one's place [row, 1]."""
    at_best: Tensor
    """Its logarithm of the probability [row, 1]."""
    length: Tensor
    """‖logits − their mean‖ [row]."""


class _Rows:
    """Some rows [row, vocab] of a model's logits, with what of them every comparison needs, in a type."""

    def __init__(self, logits: Tensor, wide: torch.dtype, totals: _Totals | None = None) -> None:
        self._wide, self.number = wide, len(logits)
        self.best = logits.argmax(-1, keepdim=True) if totals is None else totals.best
        before = torch.arange(logits.shape[-1], device=logits.device) < self.best
        self.before = before.to(logits.dtype) if is_accelerator(logits.device) else before
        if totals is None or is_accelerator(logits.device):
            self.log_probability = torch.log_softmax(logits, -1, dtype=wide)
            self.length = _length(_spread(self.log_probability), self.log_probability)
        else:
            # Bit for bit what log_softmax gives on a CPU: (x − max) − log Σ exp(x − max), of the largest 0 − log Σ.
            largest = logits.gather(-1, self.best).to(wide)
            self.log_probability, self.length = (logits - largest).add_(totals.at_best), totals.length
        self.probability = self.log_probability.exp()

    @property
    def totals(self) -> _Totals:
        """What another pass need not find again."""
        return _Totals(self.best, self.log_probability.gather(-1, self.best), self.length)

    def compare(self, others: Tensor, together: int) -> tuple[Tensor, ...]:
        """KL, cosine, rank of the own top token and remainder, [group, row] each, of logits [group, row, vocab], of so
        many groups at once.
        """
        parts = zip(*map(self._some, others.split(together)), strict=True)
        divergence, rank, length, apart = (torch.cat(each) for each in parts)
        return divergence, _angle(self.length, length, apart), rank, apart / self.length

    def _some(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """KL, rank, and the lengths of the centred logits and of their difference."""
        best = self.best.expand(*logits.shape[:-1], 1)
        chosen = logits.gather(-1, best)
        rank = _number_ahead(logits, chosen, self.before)
        # Logarithms of probabilities are logits up to a constant each: centred they are the same.
        told = torch.log_softmax(logits, -1, dtype=self._wide)
        length = _length(_spread(told), told)
        gap = torch.sub(self.log_probability, told, out=told)
        apart = _spread(gap)
        at_best = gap.gather(-1, best)[..., 0]
        # Where p is 0, so is its part, even if both logarithms are −∞ and their difference is no number. The largest p
        # is none: there it is no number where the logits are none. Rounding may leave a tiny negative sum.
        divergence = gap.mul_(self.probability).nansum(-1).clamp_min_(0.0)
        return torch.where(at_best.isnan(), at_best, divergence), rank, length, apart


class _KernelRows:
    """The same, where each row is read once."""

    def __init__(self, logits: Tensor, wide: torch.dtype, kernels: Any) -> None:
        self._logits, self._wide, self._kernels = logits.contiguous(), wide, kernels
        self.number = len(logits)
        self.best = logits.argmax(-1)
        _, self.log_total, self.mean, self.length = kernels.totals(self._logits, wide)

    def compare(self, others: Tensor, together: int) -> tuple[Tensor, ...]:
        """As of `_Rows`, of all groups at once."""
        divergence, rank, length, apart = self._kernels.compared(
            self._logits, others.contiguous(), self.best, self.log_total, self.mean, self._wide
        )
        return divergence, _angle(self.length, length, apart), rank, apart / self.length


def _angle(one: Tensor, other: Tensor, apart: Tensor) -> Tensor:
    """The cosine between two sides of a triangle whose third is `apart`; 0 where a side is."""
    lengths = one * other
    return torch.where(lengths > 0, (one.square() + other.square() - apart.square()) / (2 * lengths), 0.0)


def _number_ahead(logits: Tensor, chosen: Tensor, before: Tensor) -> Tensor:
    """How many logits are larger than a chosen one, or as large and before it."""
    if before.dtype == torch.bool:
        return (logits == chosen).logical_and_(before).logical_or_(logits > chosen).sum(-1)
    # An accelerator makes whole numbers of 8 bytes of truth values before it adds them up. Differences have their sign
    # in every type; that of two which are ruled out is no number, which is ahead of nothing.
    apart = logits - chosen
    return torch.heaviside(apart, before, out=apart).sum(-1, dtype=torch.float32)


def _spread(values: Tensor) -> Tensor:
    """‖values − their mean‖ over the last dimension."""
    if values.device.type == "cpu":
        # A variance goes number by number there.
        return torch.linalg.vector_norm(values - values.mean(-1, keepdim=True), dim=-1)
    return values.var(-1, correction=0).mul_(values.shape[-1]).sqrt_()


def _length(spread: Tensor, values: Tensor) -> Tensor:
    """‖values − their mean‖ where they differ, and 0 where they are equal, of which the spread is their rounding."""
    size = values.detach()[..., 0].abs()
    return torch.where(spread <= rounding(values.shape[-1], spread.dtype) * size, 0.0, spread)


def _has_huge(logits: Tensor) -> bool:
    """Some finite ones are beyond `HUGE`; a number that is read of a device."""
    if not logits.numel() or torch.finfo(logits.dtype).max < HUGE:
        return False
    size = logits.abs()
    return bool(torch.where(size.isinf(), 0, size).amax() > HUGE)


# Of values that are ready


def _log_probabilities(logits: Tensor) -> Tensor:
    return torch.log_softmax(logits.detach(), -1, dtype=torch.float64)


def _divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    p = log_p.exp()
    # Where p is 0, so is its part, even if the logarithms are both −∞; rounding may leave a tiny negative sum.
    return torch.where(p > 0, p * (log_p - log_q), 0.0).sum(-1).clamp_min(0.0)


def _relative_remainder(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).norm(dim=-1) / a.norm(dim=-1)
