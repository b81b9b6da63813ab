"""Rules whose centre is the operator's own value."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from jetgraph.jets import Series
from jetgraph.jets.rules.centres import with_own_centre


def itself(order: int, value: Any) -> Any:
    """The rule whose result is what it is given."""
    return value


def test_what_another_holds_is_not_written_over() -> None:
    rows = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    rule = with_own_centre(lambda value: value + 0.5, itself)
    for given in (Series(rows.clone(), 1), Series.of_rows([*rows.clone()], 1)):
        assert torch.equal(rule(1, given).stacked(), torch.tensor([[1.5, 2.5], [3.0, 4.0]]))
        assert torch.equal(given.stacked(), rows)


def test_what_is_its_own_is() -> None:
    made = torch.ones(2, 3)
    rule = with_own_centre(lambda value: value + 0.5, lambda order, value: Series(made, order), in_place=True)
    assert rule(1, Series.constant(torch.ones(3), 1)).coefficients is made
    assert made.tolist() == [[1.5] * 3, [1.0] * 3]


def test_without_a_centre_nothing_is_asked() -> None:
    def plain(value: Tensor) -> Tensor:
        pytest.fail("it was asked")

    for given in (Series.direction(torch.ones(2)), torch.ones(2)):
        assert with_own_centre(plain, itself)(1, given) is given


def test_a_centre_that_overflows_where_the_operator_does_not() -> None:
    given = torch.tensor([math.inf, 2.0], requires_grad=True)
    value = with_own_centre(lambda value: torch.full_like(value, 3.0), itself)(0, Series.constant(given, 0)).first
    assert value.tolist() == [3.0, 3.0]
    value.sum().backward()
    assert given.grad is not None
    assert given.grad.tolist() == [0.0, 1.0]
