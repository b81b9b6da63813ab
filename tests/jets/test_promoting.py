"""Casts that the operators after them do themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import jetgraph as jg
from jetgraph.jets import recorded
from jetgraph.jets.recorded import Repeated
from tests.jets.test_overwriting import Called

CAST = torch.ops.aten._to_copy.default
HELD = torch.linspace(-2, 3, 12).reshape(3, 4)
FEW = HELD[0].clone()

FUNCTIONS: dict[str, tuple[Callable[[Tensor], Any], int]] = {
    "a factor": (lambda x: x.float() * HELD, 0),
    "one that is written to": (lambda x: HELD.mul(x.float()).addcmul_(x.float(), x.float()), 0),
    "a view of a part": (lambda x: (y := x.float(), HELD[0] + y[1] - y.T[0, :1] / (HELD[:1] + 9))[1], 0),
    "two, one of which stays": (lambda x: (x * 2).float() * x[:1].float(), 1),
    "the smaller stays": (lambda x: (x[:1].float() * x.float()).addcmul_(x.float(), HELD), 1),
    "a stack": (lambda x: torch.stack([x, x + 1]).float().view(2, 12)[1].view(3, 4) * HELD, 0),
    "not beside a number": (lambda x: x.float() * 2 * HELD, 1),
    "not beside one number": (lambda x: x.float() * FEW[0] + HELD, 1),
    "not what is summed up": (lambda x: x.float().sum() + HELD, 1),
    "not what is wanted": (lambda x: (y := x.float(), y * HELD), 1),
    "not what is wanted as a view": (lambda x: ((y := x.float())[0], y * HELD), 1),
    "not what is written to": (lambda x: x.float().add_(HELD), 1),
    "not what is written to before it is cast": (lambda x: (y := x.float(), y[0].zero_(), y * HELD)[2], 1),
    "not of what is written to later": (lambda x: (z := x * 2, y := z.float(), z.add_(1), y * HELD)[3], 1),
    "not to another type": (lambda x: x.double() * HELD.double(), 1),
    "not of what has gaps": (lambda x: x.T.float() * HELD.T, 1),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("what", FUNCTIONS)
def test_casts_that_operators_do_themselves(what: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """No others; the numbers are the same to the bit."""
    function, casts = FUNCTIONS[what]
    monkeypatch.setattr(recorded, "PROMOTES", ("cpu",))

    def several(x: Tensor) -> tuple[Tensor, ...]:
        made = function(x)
        return made if isinstance(made, tuple) else (made,)

    run = Repeated(several)
    with torch.no_grad():
        for call in range(4):
            x = torch.randn(3, 4, generator=torch.Generator().manual_seed(call)).to(dtype)
            with Called() as called:
                found = run(x)
            for one, other in zip(found, several(x.clone()), strict=True):
                assert one.dtype == other.dtype
                assert torch.equal(one, other)
    assert called.done[CAST] == casts


def test_a_jet_of_a_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has a closed form casts what it starts from and no more, on any device; a recurrence on the rows that lie
    together casts those that it adds up, and the results."""
    gate, x, v = torch.randn(3, 5, 8).bfloat16()
    weight = torch.randn(8, 8).bfloat16()

    def casts(function: Callable[[Tensor], Tensor], order: int) -> tuple[int, Tensor]:
        series = jg.taylor(lambda x: function(x @ weight) * (x @ weight.T + gate), x)
        for _ in range(3):
            with Called() as called:
                found = series(x, v, order)
        return called.done[CAST], found

    with torch.no_grad():
        before = [casts(F.silu, 1), casts(F.silu, 2), casts(F.mish, 2)]
        monkeypatch.setattr(recorded, "PROMOTES", ("cpu",))
        after = [casts(F.silu, 1), casts(F.silu, 2), casts(F.mish, 2)]
    assert [count for count, _ in before] == [0, 1, 3]
    assert [count for count, _ in after] == [0, 1, 3]
    assert all(torch.equal(one, other) for (_, one), (_, other) in zip(before, after, strict=True))
