"""Demands on values: what they say, when they are looked at, and where nobody can look."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from jetgraph.errors import DomainError, InputError
from jetgraph.jets import domain


def root(value: Tensor) -> Tensor:
    domain.demand(value, domain.positive, "a root wants x > 0")
    return value.sqrt()


def test_a_demand_says_what_was_expected_and_seen() -> None:
    assert root(torch.tensor([1.0, 4.0])).tolist() == [1, 2]
    with pytest.raises(DomainError, match=r"^a root wants x > 0, but 2 of 3 values are not \(such as -3\)$"):
        root(torch.tensor([1.0, -3.0, 0.0]))


def test_what_nobody_can_look_at_passes() -> None:
    assert root(torch.ones(2, device="meta")).is_meta
    with FakeTensorMode():
        root(torch.zeros(2))
    assert root(torch.zeros(0)).numel() == 0
    assert torch.vmap(root)(torch.full((2,), -1.0)).isnan().all()


@pytest.mark.parametrize(
    ("holds", "inside", "outside"),
    [
        (domain.positive, [1e-30, 1 + 0j, -1 + 1e-30j, 1j], [0.0, -1.0, -1 + 0j, 0j]),
        (domain.nonzero, [1e-30, -1.0], [0.0]),
        (domain.inside_one, [0.5, -0.5], [1.0, -1.0]),
        (domain.above_one, [1.5], [1.0, -1.5]),
    ],
)
def test_domains_are_open(holds: object, inside: list[complex], outside: list[complex]) -> None:
    assert callable(holds)
    assert [bool(holds(torch.tensor(value))) for value in inside + outside] == [True] * len(inside) + [False] * len(
        outside
    )


def test_demands_are_looked_at_once_and_openly_where_one_does_not_hold() -> None:
    runs: list[Tensor] = []

    def twice(value: Tensor) -> Tensor:
        runs.append(value)
        return root(root(value) - 1)

    assert domain.looked_at_once(lambda: twice(torch.tensor(4.0))) == 1
    assert len(runs) == 1
    with pytest.raises(DomainError, match=r"such as -0\.5"):
        domain.looked_at_once(lambda: twice(torch.tensor(0.25)))
    assert len(runs) == 3


@pytest.mark.parametrize("centre", [4.0, -1.0])
def test_another_error_comes_after_demands_that_did_not_hold(centre: float) -> None:
    """It may be their consequence."""

    def rows(value: Tensor) -> None:
        root(value)
        domain.demand(torch.tensor(7), lambda index: index < 5, "rows are 0 to 4", InputError)

    with pytest.raises(InputError if centre > 0 else DomainError):
        domain.looked_at_once(lambda: rows(torch.tensor(centre)))
