"""Results that are written over what nothing reads any more."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from jetgraph.jets.overwriting import OVER
from jetgraph.jets.recorded import Repeated

aten = torch.ops.aten
ROW, HELD = torch.tensor([0.3, 0.7, 1.5]), torch.tensor([0.5, 0.25, 4.0])

FUNCTIONS: dict[str, tuple[Callable[[Tensor], Any], dict[Any, int]]] = {
    "a chain": (
        lambda x: ((x * 2 + 1).tanh() - HELD) / 3,
        {aten.mul.Tensor: 1, aten.add_.Tensor: 1, aten.tanh_.default: 1, aten.sub_.Tensor: 1, aten.div_.Tensor: 1},
    ),
    "the second factor": (lambda x: x * x.exp(), {aten.exp.default: 1, aten.mul_.Tensor: 1}),
    "with itself": (lambda x: (y := x.exp()) * y, {aten.exp.default: 1, aten.mul_.Tensor: 1}),
    "through a view of all of it": (
        lambda x: x.exp().view(3, -1).T.contiguous().view(-1).neg(),
        {aten.exp.default: 1, aten.view.default: 2, aten.permute.default: 1, aten.neg_.default: 1},
    ),
    "not what a difference takes off": (lambda x: HELD - x.exp(), {aten.exp.default: 1, aten.sub.Tensor: 1}),
    "not what is added so many times": (
        lambda x: torch.add(x, x.exp(), alpha=2),
        {aten.exp.default: 1, aten.add.Tensor: 1},
    ),
    "not what is given": (lambda x: x.view(3, 1).exp(), {aten.view.default: 1, aten.exp.default: 1}),
    "not what is held": (lambda x: (HELD * 2) * x, {aten.mul.Tensor: 1}),
    "not what is read later": (
        lambda x: (z := (y := x.exp()).neg()) - y.sum() * z,
        {aten.exp.default: 1, aten.neg.default: 1, aten.sum.default: 1, aten.mul.Tensor: 1, aten.sub_.Tensor: 1},
    ),
    "not what is read later by a view": (
        lambda x: (y := x.exp(), z := y[1:], y.neg() * z.sum())[2],
        {aten.exp.default: 1, aten.slice.Tensor: 1, aten.neg.default: 1, aten.sum.default: 1, aten.mul_.Tensor: 1},
    ),
    "not what is read by a view in the same step": (
        lambda x: (y := x.exp()) * y.view(3, 1).expand(3, 3)[0],
        {aten.exp.default: 1, aten.view.default: 1, aten.expand.default: 1, aten.select.int: 1, aten.mul.Tensor: 1},
    ),
    "not a part": (lambda x: x.exp()[1:].neg(), {aten.exp.default: 1, aten.slice.Tensor: 1, aten.neg.default: 1}),
    "not of another type": (
        lambda x: x.exp() * torch.ones(3, dtype=torch.double),
        {aten.exp.default: 1, aten.mul.Tensor: 1},
    ),
    "not of another shape": (lambda x: x.exp() * HELD[:, None], {aten.exp.default: 1, aten.mul.Tensor: 1}),
    "not what is wanted": (lambda x: (y := x.exp(), y.neg()), {aten.exp.default: 1, aten.neg.default: 1}),
    "not what is wanted as a view": (
        lambda x: ((y := x.exp())[1:], y.neg()),
        {aten.exp.default: 1, aten.slice.Tensor: 1, aten.neg.default: 1},
    ),
}


class Called(TorchDispatchMode):
    """How often operators are called."""

    def __init__(self) -> None:
        super().__init__()
        self.done = Counter[Any]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.done[func] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("what", FUNCTIONS)
def test_a_result_is_written_over_what_nothing_reads_any_more(what: str) -> None:
    """And over nothing else; the numbers are the same to the bit, call after call."""
    function, calls = FUNCTIONS[what]

    def results(x: Tensor) -> tuple[Tensor, ...]:
        made = function(x)
        return made if isinstance(made, tuple) else (made,)

    repeated, kept = Repeated(results), []
    with torch.no_grad():
        for scale in (1.0, 2.0, 3.0, 4.0):
            given, held = ROW * scale, HELD.clone()
            with Called() as called:
                kept.append(repeated(given))
            assert torch.equal(given, ROW * scale)
            assert torch.equal(held, HELD)
        for scale, found in zip((1.0, 2.0, 3.0, 4.0), kept, strict=True):
            for one, other in zip(found, results(ROW * scale), strict=True):
                assert torch.equal(one, other)
    assert called.done == calls


def test_each_is_what_it_stands_for() -> None:
    for op, over in OVER.items():
        args = [ROW.clone(), *((2.0,) if len(op._schema.arguments) > 1 and "nan" not in str(op) else ())]
        expected = op(*args)
        assert torch.equal(over(*args), expected)
        assert torch.equal(args[0], expected)  # type: ignore[arg-type]
