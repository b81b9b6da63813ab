"""A search's rows screened in bfloat16: bounds of their scores, so that only few rows are computed in float32.

`ngrams(..., screen="bf16")` goes through a `PathTable` in this way: `Screen.bounds` says for every row between what its
largest score lies, at the price of a product in bfloat16, and what could still be among the top is computed anew by the
table itself.
"""

from __future__ import annotations

import math
from functools import cached_property

import torch
from torch import Tensor

from jetgraph.applications.ngrams.rounding import Rounded
from jetgraph.applications.ngrams.table import PathTable
from jetgraph.errors import BudgetError, InputError

CHUNK_SHARE, RESCORED_SHARE, UNITS_SHARE = 0.4, 0.3, 0.75
"""What chunks of the screen, rows that are computed anew, and the copy while it is made may use of the memory above
the copy; a quarter is left to the search."""

GROUP = 256
"""Exponentials whose sum is taken at a time: sums of sums have small errors in whatever order they are made."""

_STEP = 2.0**-22
"""Largest relative error of a step of the accumulation: four times that of float32, for units that truncate."""

_ROUNDED = 2.0**-8
"""Largest relative error of rounding to bfloat16, whose significand has 8 bits."""


class Screen:
    """Bounds of the largest score in each row of a table, from a product in bfloat16.

    Let l_c = u_c · h + b_c be the logits of a row: h is its mean value before the decoder's affine part, U that part's
    linear map [V, d], read off by applying it to the unit vectors, and b its constant. Let ũ, h̃ be u, h rounded to
    bfloat16, and l̃_c the computed product of ũ_c and h̃, plus b_c. Then for every c

        |l_c − l̃_c| ≤ ε = max_c ‖u_c − ũ_c‖ ‖h‖ + max_c ‖ũ_c‖ ‖h − h̃‖ + γ max_c ‖ũ_c‖ ‖h̃‖ + 2⁻⁸ max_c |l̃_c − b_c|

    for u·h − ũ·h̃ = (u − ũ)·h + ũ·(h − h̃) and Cauchy–Schwarz; products of two bfloat16 numbers are exact in float32,
    their sum over d takes d steps with an error of 2⁻²² at most, γ = d 2⁻²² (in any order: float32 rounds by 2⁻²⁴); and
    a result in bfloat16 is rounded by 2⁻⁸ (where the product gives float32, on CUDA, this is left out). All norms
    are measured, with a margin for their own rounding. To ε is added what the product in float32 may be off by,
    d 2⁻²³ max_c ‖u_c‖ ‖h‖. That the machine's product accumulates as is assumed is tried on rows of the first chunk.

    For scores="logit" the bounds of a row are max_c l̃_c ± ε. For probabilities p_c = 1 / (1 + r_c), with the odds
    against c, r_c = Σ_{c' ≠ c} exp(l_c' − l_c). Every exponent is off by 2ε at most, so that

        log p_c ≤ −log(1 + exp(−2ε) r̃_c),        r̃_c = Σ_{c' ≠ c} exp(l̃_c' − l̃_c)

    which is largest where l̃_c is; with exp(2ε) it is a lower bound. (With log p_c ≤ log p̃_c + 2ε instead, a row that
    is sure of its next token could not be told from one that is a little surer.) The sum of exponentials is taken in
    float32, in groups of `GROUP` and then over groups, so with a relative error of (GROUP + V / GROUP + 128) 2⁻²⁴ at
    most, which is allowed for; the 128 are for the exponentials themselves.

    For probabilities U is centred first, u_c − mean_c' u_c': it changes all logits of a row alike, and so no
    probability, but makes the norms smaller.

    Parameters
    ----------
    table
        Of a model in float32 or float64, whose `memory` bounds the copy of U in bfloat16, and what is computed at once.
    scores
        "probability" or "logit"; see `jetgraph.ngrams`.
    identity
        False leaves out next tokens that occur in the context.

    Raises
    ------
    InputError
        The model is in half precision already, its logits are no affine map of fewer numbers (a soft cap), or, from
        `bounds`, the machine's product in bfloat16 is less accurate than is assumed.
    BudgetError
        The copy of U and a row do not fit into `memory`.
    """

    def __init__(self, table: PathTable, scores: str, identity: bool) -> None:
        self._table = table
        self._probability = scores == "probability"
        self._identity = identity
        _check(table)
        self._width = math.prod(table.decoding.shape)
        step = min(self._width, 256, int(UNITS_SHARE * self.memory / self._unit_bytes))
        self._unembedding = Rounded(table.decoding, step, centre=self._probability)
        self._buffer: Tensor | None = None
        self._work: Tensor | None = None
        self._tried = False

    # Memory

    @cached_property
    def memory(self) -> int:
        """Bytes of the table's memory that the copy of U leaves."""
        table = self._table
        held = table.vocabulary * (2 * self._width + 4 * 8)
        row = max(
            self._row_bytes / CHUNK_SHARE, table.row_bytes / RESCORED_SHARE, self._unit_bytes / UNITS_SHARE, 64 * 1024
        )
        if table.memory < held + row:
            raise BudgetError(
                f'screen="bf16" holds the unembedding in bfloat16, and with a row of {table.label} more than '
                f"memory={table.memory:,}: take memory={math.ceil(held + row)} or more (--memory), or no screen"
            )
        return table.memory - held

    @cached_property
    def chunk_rows(self) -> int:
        """Rows that `bounds` may take at once."""
        return int(CHUNK_SHARE * self.memory / self._row_bytes)

    @cached_property
    def rescored_rows(self) -> int:
        """Rows that may be computed anew at once."""
        return int(RESCORED_SHARE * self.memory / self._table.row_bytes)

    @property
    def _row_bytes(self) -> int:
        """Of a row of a chunk: its product, and its value before it, exact, rounded and in float64."""
        # Processors that have no instructions for bfloat16 make it in float32 first, in memory of their own.
        product = 4 if self._gives_float32 else 2 + 4
        return self._table.vocabulary * product + self._table.inside_bytes + self._width * 24

    @property
    def _unit_bytes(self) -> int:
        """Of a column of U: at each position, at the last one alone, its square, rounded, and which are none."""
        length = self._table.decoding.positions
        item = self._table.dtype.itemsize
        return self._table.vocabulary * ((length + (length > 1) + 1) * item + 3) + self._width * 2 * item

    # The product

    @property
    def _gives_float32(self) -> bool:
        """The device multiplies matrices in bfloat16 with a result in float32."""
        return self._table.subject.device.type == "cuda"

    def product(self, contexts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits l̃ − b [rows, V] of contexts, centred for probabilities; ε [rows], and a bound [rows] of all |l|.

        The logits lie in a buffer that the next call uses again; the bounds are in float64.
        """
        unembedding = self._unembedding
        hidden = self._table.hidden(contexts)[:, unembedding.span]
        rounded = hidden.to(torch.bfloat16)
        if self._gives_float32:
            logits = torch.mm(rounded, unembedding.weight.T, out_dtype=torch.float32)
        else:
            if self._buffer is None or len(self._buffer) < len(hidden):
                self._buffer = rounded.new_empty(len(hidden), len(unembedding.weight))
            logits = torch.mm(rounded, unembedding.weight.T, out=self._buffer[: len(hidden)])
        wide = hidden.double()
        length = torch.linalg.vector_norm(wide, dim=1)
        length_rounded = torch.linalg.vector_norm(rounded.double(), dim=1)
        lost = torch.linalg.vector_norm(wide.sub_(rounded), dim=1)
        # Numbers too small for a normal one may count as zero.
        steps = hidden.shape[1] + 8
        computed = steps * _STEP * unembedding.norm_rounded * length_rounded + steps * 2.0**-120 * (
            1 + unembedding.norm_rounded + length_rounded
        )
        if not self._gives_float32:
            computed += _ROUNDED * torch.maximum(logits.amax(1), logits.amin(1).neg_()).double()
        self._try(rounded, logits, computed)
        error = unembedding.norm_lost * length + unembedding.norm_rounded * lost + computed
        size = unembedding.norm * length + unembedding.largest_constant
        return logits, (error + steps * 2.0**-23 * size) * (1 + 2.0**-10), size

    def _try(self, rounded: Tensor, logits: Tensor, bound: Tensor) -> None:
        """Raises `InputError` where this machine's product is off by more than is assumed of it."""
        if self._tried:
            return
        self._tried = True
        columns = torch.arange(
            0, len(self._unembedding.weight), max(1, len(self._unembedding.weight) // 32), device=logits.device
        )
        rows = slice(0, 8)
        exact = rounded[rows].double() @ self._unembedding.weight[columns].double().T
        if bool(((logits[rows][:, columns].double() - exact).abs() > bound[rows, None]).any()):
            raise InputError(
                f"the product of bfloat16 matrices on this {logits.device.type} does not accumulate in float32, on "
                'which the bound of screen="bf16" rests: leave screen out'
            )

    # Bounds

    def bounds(self, contexts: Tensor) -> tuple[Tensor, Tensor]:
        """A lower and an upper bound [rows] of the largest log-probability or logit of each context's row, on the CPU.

        They hold for what the table's own precision gives, and are in float64. Of a row about which nothing is known,
        for logits that are not finite, they are -inf and NaN.
        """
        logits, error, size = self.product(contexts)
        exact = self._table.vocabulary
        padded = -(-exact // GROUP) * GROUP
        # Few enough to stay in a core's cache.
        cells = 2**19 if logits.device.type == "cpu" else 2**23
        rows = max(1, min(cells, self.memory // 64) // padded)
        if self._work is None:
            self._work = torch.zeros(rows, padded, device=logits.device)
        parts = [
            self._block(logits[start : start + rows], contexts[start : start + rows], self._work)
            for start in range(0, len(logits), rows)
        ]
        best, total = (torch.cat(part) for part in zip(*parts, strict=True))
        if self._probability:
            lost = (GROUP + padded / GROUP + 128) * 2.0**-24
            least, most = ((total * (1 + sign * lost) - 1).clamp_(min=0) for sign in (-1, 1))
            # What a log-probability in float32 is off by: the sum's logarithm is rounded, and the logit less that.
            rounding = (size + 8 + math.log(exact)) * 2.0**-22
            lower = -torch.log1p(most * torch.exp(2 * error)) - rounding
            upper = (rounding - torch.log1p(least * torch.exp(-2 * error))).clamp_(max=0)
        else:
            lower, upper = best - error, best + error
        return lower.nan_to_num_(nan=-math.inf, posinf=math.inf, neginf=-math.inf).cpu(), upper.cpu()

    def _block(self, logits: Tensor, contexts: Tensor, work: Tensor) -> tuple[Tensor, Tensor]:
        """The largest l̃ of each row that may be given, and Σ exp(l̃ − it) = 1 + r̃, in float64."""
        exact = logits.shape[1]
        padded = work[: len(logits)]
        block = padded[:, :exact]
        block.copy_(logits)
        if self._unembedding.constant is not None:
            block += self._unembedding.constant
        if self._identity:
            best = largest = block.amax(1)
        else:
            row = torch.arange(len(block), device=block.device)[:, None]
            token = contexts.to(block.device)
            # Some models know tokens that have no logit.
            inside = token < exact
            token = token.clamp(max=exact - 1)
            left = block[row, token]
            block[row, token] = left.masked_fill(inside, -math.inf)
            best = block.amax(1)
            block[row, token] = left
            largest = torch.maximum(best, left.amax(1))
        if not self._probability:
            return best.double(), best.double()
        # Below, exp gives denormal numbers, which processors are slow at.
        block.sub_(largest[:, None]).clamp_(min=-80).exp_()
        total = padded.view(len(padded), -1, GROUP).sum(2).sum(1).double()
        return best.double(), total * torch.exp((largest - best).double())


def _check(table: PathTable) -> None:
    """Raises `InputError` for a table that a screen does not fit."""
    decoding = table.decoding
    if decoding.dtype not in (torch.float32, torch.float64) or table.dtype != decoding.dtype:
        raise InputError(
            f'screen="bf16" is for models in float32 or float64, but this one is in {decoding.dtype} and gives '
            f"{table.dtype}: leave screen out, for half precision is as fast without"
        )
    if decoding.shape[-1] >= table.vocabulary or not decoding.by_row:
        raise InputError(
            f'screen="bf16" needs logits that are a linear map of fewer numbers, but here the last affine part maps '
            f"{decoding.shape[-1]:,} to {table.vocabulary:,}, as where the unembedding is followed by a soft cap: "
            "leave screen out"
        )
