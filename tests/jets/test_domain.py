"""Demands on values: what they say, when they are looked at, and where nobody can look."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import jetgraph as jg
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


CHOSEN: list[tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = [
    (torch.log, lambda x: torch.where(x > 0, x, 1.0).log()),
    (torch.sqrt, lambda x: torch.where(x > 0, x, 1.0).sqrt()),
    (lambda x: x**-1.5, lambda x: torch.where(x > 0, x, 1.0) ** -1.5),
    (lambda x: 1 / x, lambda x: 1 / torch.where(x > 0, x, 1.0)),
    (lambda x: x**2 / x.clamp_min(0), lambda x: torch.where(x > 0, x, 1.0)),
    (lambda x: torch.acosh(1 + x), lambda x: torch.acosh(1 + torch.where(x > 0, x, 1.0))),
]
"""What has no expansion at 0 or below, and what is the same above."""


@pytest.mark.parametrize(("function", "safe"), CHOSEN)
def test_what_is_not_chosen_needs_no_expansion(function: Any, safe: Any) -> None:
    x = torch.tensor([-1.0, 0.0, 0.5, 2.0], dtype=torch.float64, requires_grad=True)
    v = torch.tensor([1.0, 2.0, -1.0, 0.7], dtype=torch.float64)
    found, expected = (jg.jet(lambda y, f=f: torch.where(y > 0, f(y), y**2) * y[-1], x, v, 2) for f in (function, safe))
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(each.square().sum(), x)[0] for each in (found, expected)]
    torch.testing.assert_close(*gradients)
    for read in (function, lambda y: function(y).exp(), lambda y: torch.where(y >= 0, function(y), y)):
        with pytest.raises(DomainError, match="of 4 values are not"):
            jg.jet(read, x, v, 2)


class Guarded(nn.Module):
    """Layers of a function where that has an expansion."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head, self.function = nn.Embedding(9, 6), nn.Linear(6, 9), function
        self.into, self.out = (nn.ModuleList(nn.Linear(6, 6) for _ in "ab") for _ in "ab")

    def forward(self, ids: Tensor) -> Tensor:
        h = self.embed(ids)
        for into, out in zip(self.into, self.out, strict=True):
            u = into(h)
            h = h + out(torch.where(u > 0, self.function(u), 0.0))
        return self.head(h)


@pytest.mark.parametrize(("function", "safe"), CHOSEN[:2])
def test_terms_and_flows_are_those_of_what_is_chosen(function: Any, safe: Any) -> None:
    ids = torch.tensor([[1, 4, 2]])
    graphs = [jg.trace(Guarded(each).double().eval(), ids, dynamic=False) for each in (function, safe)]
    terms = [jg.compile(jg.expand(graph, order=1))(ids).terms for graph in graphs]
    assert terms[0].keys() == terms[1].keys()
    for path, term in terms[0].items():
        torch.testing.assert_close(term, terms[1][path])
    for rules in (None, "gradient"):
        found, expected = (jg.attribute(graph, ids, target=3, rules=rules).columns() for graph in graphs)
        assert found["sender"] == expected["sender"]
        assert found["flow"] == pytest.approx(expected["flow"], abs=1e-12)
