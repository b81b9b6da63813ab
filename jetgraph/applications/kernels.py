"""Kernels for CUDA devices, where operators of PyTorch go over the same memory again and again. Needs Triton.

PyTorch brings Triton with it where it has CUDA (https://triton-lang.org); import this module only where it is there.
"""

# pyright: reportMissingImports=false, reportIndexIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from jetgraph.export.precision import rounding

BLOCK = 2048
"""Numbers of a row that are looked at together."""

WARPS = 8
"""Of 32 threads each, that do so."""


def check(device: torch.device) -> None:
    """A first run of all kernels, on a device.

    Raises
    ------
    ArithmeticError
        They give other numbers than operators do.
    """
    drawn = 3 * torch.randn(4, 2, BLOCK + 3, generator=torch.Generator().manual_seed(0)).to(device)
    model, other = drawn[0], drawn[0] + drawn[1:] / 9
    for wide in (torch.float32, torch.float64):
        found = totals(model, wide)
        if not all(map(torch.equal, found, totals(model, wide, lengths=False))):
            raise ArithmeticError("its kernels give other numbers each time")
        centred, best = model - model.mean(1, keepdim=True), model.argmax(1)
        expected = [model.amax(1), model.logsumexp(1), model.mean(1), centred.norm(dim=1)]
        _, log_total, mean, _ = found
        found += compared(model, other, best, log_total, mean, wide)
        log_p, log_q = model.log_softmax(-1), other.log_softmax(-1)
        ahead = (other > other.gather(2, best.expand(3, -1)[..., None])).sum(-1)
        shifted = other - other.mean(2, keepdim=True)
        lengths = [shifted.norm(dim=2), (centred - shifted).norm(dim=2)]
        expected += [(log_p.exp() * (log_p - log_q)).sum(-1), ahead, *lengths]
        for one, other_way in zip(found, expected, strict=True):
            if not torch.allclose(one.double(), other_way.double(), rtol=1e-3, atol=1e-4):
                raise ArithmeticError("its kernels give other numbers than the operators of PyTorch")


def totals(logits: Tensor, wide: torch.dtype, *, lengths: bool = True) -> tuple[Tensor, ...]:
    """Of rows of logits [row, vocab], each read from the device's memory once.

    There may be gaps between the rows, but not in them. Without `lengths`, for which a row is passed once more, there
    are only the first three results.

    Returns
    -------
    largest, log_total, mean, length
        [row] each, in the type `wide`: the largest, log Σ exp, the mean, and the length of the centred ones.
    """
    made = [torch.empty(len(logits), dtype=wide, device=logits.device) for _ in range(3 + lengths)]
    vocab = logits.shape[-1]
    with torch.cuda.device_of(logits):
        # What is not written may be any of the others.
        _rows[(len(logits),)](
            *(logits, *made[:3], made[-1], vocab, logits.stride(0), rounding(vocab, wide)),
            *(_kind(wide), lengths, BLOCK),
            num_warps=WARPS,
        )
    return tuple(made)


def compared(
    model: Tensor, other: Tensor, best: Tensor, log_total: Tensor, mean: Tensor, wide: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows of logits against a model's, each read from the device's memory once.

    Parameters
    ----------
    model
        Logits [row, vocab].
    other
        Logits [group, row, vocab].
    best
        The model's most probable token [row].
    log_total, mean
        Of the model's rows, as of `totals`.
    wide
        The type that is computed in.

    Returns
    -------
    kl, ahead, length, apart
        [group, row] each: KL(model ‖ other) in nats, how many logits of the other are larger than that at `best` or as
        large and before it, and the lengths of the centred logits of the other and of the difference. What is equal has
        exactly no difference.
    """
    rows = other.shape[:2]
    made = [torch.empty(rows, dtype=wide, device=other.device) for _ in range(4)]
    vocab, strides = model.shape[-1], (model.stride(0), other.stride(0), other.stride(1))
    with torch.cuda.device_of(model):
        _compared[(rows.numel(),)](
            *(model, other, best, log_total, mean, *made, rows[1], vocab, *strides, rounding(vocab, wide)),
            *(_kind(wide), BLOCK),
            num_warps=WARPS,
        )
    kl, ahead, length, apart = made
    return kl, ahead, length, apart


def _kind(wide: torch.dtype) -> tl.dtype:
    return tl.float64 if wide == torch.float64 else tl.float32


@triton.jit
def _totals(logits, vocab, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    """Largest, log Σ exp and mean of a row, the same to the bit wherever they are computed."""
    columns = tl.arange(0, BLOCK)
    largest = tl.full([BLOCK], float("-inf"), WIDE)
    summed = tl.zeros([BLOCK], WIDE)
    for start in range(0, vocab, BLOCK):
        at = start + columns
        x = tl.load(logits + at, mask=at < vocab, other=0.0).to(WIDE)
        summed += x
        largest = tl.maximum(largest, tl.where(at < vocab, x, float("-inf")))
    most = tl.max(largest, 0)
    total = tl.zeros([BLOCK], WIDE)
    for start in range(0, vocab, BLOCK):
        at = start + columns
        x = tl.load(logits + at, mask=at < vocab, other=float("-inf")).to(WIDE)
        total += tl.exp(x - most)
    return most, most + tl.log(tl.sum(total, 0)), tl.sum(summed, 0) / vocab


@triton.jit
def _rows(
    logits, largest, log_total, mean, length, vocab, stride, rounding,
    WIDE: tl.constexpr, LENGTHS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    most, own_total, own_mean = _totals(logits, vocab, WIDE, BLOCK)
    tl.store(largest + row, most)
    tl.store(log_total + row, own_total)
    tl.store(mean + row, own_mean)
    if LENGTHS:
        columns = tl.arange(0, BLOCK)
        squares = tl.zeros([BLOCK], WIDE)
        for start in range(0, vocab, BLOCK):
            at = start + columns
            x = tl.load(logits + at, mask=at < vocab, other=0.0).to(WIDE) - own_mean
            squares += tl.where(at < vocab, x * x, 0.0)
        tl.store(length + row, _length(squares, tl.load(logits).to(WIDE) - own_total, vocab, rounding))


@triton.jit
def _length(squares, first, vocab, rounding):
    """‖l‖ of squares of centred logits; that of equal ones is not their rounding but 0. `first` is one's log p."""
    found = tl.sqrt(tl.sum(squares, 0))
    return tl.where(found <= rounding * tl.abs(first), 0.0, found)


@triton.jit
def _compared(
    model, other, best, log_total, mean,
    kl, ahead, length, apart,
    rows, vocab, model_stride, group_stride, row_stride, rounding,
    WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One row of `other`: three times over it, of which the cache has two."""
    place = tl.program_id(0).to(tl.int64)
    row = place % rows
    other += place // rows * group_stride + row * row_stride
    model += row * model_stride
    _, own_total, own_mean = _totals(other, vocab, WIDE, BLOCK)
    model_total, model_mean = tl.load(log_total + row), tl.load(mean + row)
    token = tl.load(best + row)
    chosen = tl.load(other + token).to(WIDE)
    columns = tl.arange(0, BLOCK)
    larger = tl.zeros([BLOCK], WIDE)
    divergence = tl.zeros([BLOCK], WIDE)
    squares = tl.zeros([BLOCK], WIDE)
    gaps = tl.zeros([BLOCK], WIDE)
    for start in range(0, vocab, BLOCK):
        at = start + columns
        inside = at < vocab
        x = tl.load(other + at, mask=inside, other=0.0).to(WIDE)
        y = tl.load(model + at, mask=inside, other=0.0).to(WIDE)
        larger += (inside & ((x > chosen) | ((x == chosen) & (at < token)))).to(WIDE)
        log_p = y - model_total
        part = tl.exp(log_p) * (log_p - (x - own_total))
        # Where p is 0, so is its part, even if both logarithms are -inf and their difference is no number.
        divergence += tl.where(inside & (part == part), part, 0.0)
        x -= own_mean
        gap = (y - model_mean) - x
        squares += tl.where(inside, x * x, 0.0)
        gaps += tl.where(inside, gap * gap, 0.0)
    found = tl.sum(divergence, 0)
    # Rounding may leave a tiny negative sum. The largest p is not 0: where it gives no number, the logits are none.
    found = tl.where(found < 0, 0.0, found)
    at_best = (tl.load(model + token).to(WIDE) - model_total) - (chosen - own_total)
    tl.store(kl + place, tl.where(at_best == at_best, found, at_best))
    tl.store(ahead + place, tl.sum(larger, 0))
    tl.store(length + place, _length(squares, tl.load(other).to(WIDE) - own_total, vocab, rounding))
    tl.store(apart + place, tl.sqrt(tl.sum(gaps, 0)))
