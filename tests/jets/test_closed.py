"""Coefficients of low order in closed form: entry by entry, against float64 and mpmath, and what they cost."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import mpmath as mp
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import jetgraph as jg
from jetgraph.jets import closed
from jetgraph.jets.registry import find_rule
from jetgraph.jets.series import Series
from tests.operators import Moved, Operators

aten = torch.ops.aten
EPS = torch.finfo(torch.bfloat16).eps
LEAST = 2.0**-118
"""Where the factors of a coefficient may be too small for normal numbers of float32."""
TANH = {"approximate": "tanh"}


def _gelu_tanh(x: Any) -> Any:
    return x * (1 + mp.tanh(mp.sqrt(2 / mp.pi) * (x + mp.mpf("0.044715") * x**3))) / 2


KINDS: dict[str, tuple[Any, dict[str, Any], int, Callable[[Any], Any]]] = {
    "exp": (aten.exp.default, {}, 1, mp.exp),
    "gelu": (aten.gelu.default, {}, 2, lambda x: x * mp.ncdf(x)),
    "gelu by tanh": (aten.gelu.default, TANH, 1, _gelu_tanh),
    "mish": (aten.mish.default, {}, 1, lambda x: x * mp.tanh(mp.log1p(mp.exp(x)))),
    "sigmoid": (aten.sigmoid.default, {}, 1, lambda x: 1 / (1 + mp.exp(-x))),
    "silu": (aten.silu.default, {}, 2, lambda x: x / (1 + mp.exp(-x))),
    "softplus": (aten.softplus.default, {}, 1, lambda x: mp.log1p(mp.exp(x))),
    "softplus, steeper": (
        aten.softplus.default,
        {"beta": 3, "threshold": 60},
        1,
        lambda x: mp.log1p(mp.exp(3 * x)) / 3,
    ),
    "tanh": (aten.tanh.default, {}, 1, mp.tanh),
}
"""By name: operator and its options, the highest order that is known, and the function."""
SPANS = {1: [(0, 1)], 2: [(0, 1), (0, 1, 2), (0, 2)]}
"""By order, which coefficients are not zero by structure."""
CASES = [
    (name, order, span) for name, kind in KINDS.items() for order in range(1, kind[2] + 1) for span in SPANS[order]
]


@functools.cache
def centres() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.cat([torch.linspace(-19, 19, 2001), 3 * torch.randn(2000, generator=generator), torch.zeros(1)])
    return drawn.bfloat16().unique()


def series(centre: Tensor, order: int, span: tuple[int, ...]) -> Series:
    generator = torch.Generator().manual_seed(1)
    above = torch.randn(order, *centre.shape, generator=generator).bfloat16()
    rows = [centre, *(row if j in span else None for j, row in enumerate(above, 1))]
    return Series.of_rows(rows, order)


def of_rule(name: str, x: Series) -> Series:
    op, options, _, _ = KINDS[name]
    entry = find_rule(op)
    assert entry is not None
    return entry.rule(x.order, x, **options)


def check(found: Tensor, exact: Tensor) -> None:
    """Rounded once, entry by entry."""
    off = (found.double() - exact).abs() - 0.505 * EPS * exact.abs() - LEAST
    assert float(off.max()) <= 0, f"entry {int(off.argmax())}: {found[off.argmax()]} for {exact[off.argmax()]}"


@pytest.mark.parametrize(("name", "order", "span"), CASES)
@torch.no_grad()
def test_each_entry_is_rounded_once(name: str, order: int, span: tuple[int, ...]) -> None:
    """Against the recurrence in float64; coefficient 0 is the plain operator's."""
    x = series(centres(), order, span)
    found, exact = of_rule(name, x), of_rule(name, x.like(x.coefficients.double()))
    op, options, _, _ = KINDS[name]
    assert torch.equal(found.coefficient(0), op(centres(), **options))
    assert found.dtype == torch.bfloat16
    for j in range(1, order + 1):
        slope = exact.coefficient(j)
        # There 1 - tanh² in float64 has fewer digits than are asked for.
        known = centres().abs() < 14 if name == "tanh" else torch.ones_like(slope, dtype=torch.bool)
        check(found.coefficient(j)[known], slope[known])


@pytest.mark.parametrize(("name", "order", "span"), CASES)
@torch.no_grad()
def test_taylor_series_of_the_function(name: str, order: int, span: tuple[int, ...]) -> None:
    """At centres in both tails and between, with 60 digits."""
    places = torch.tensor([-18.5, -11.25, -6.0, -2.40625, -1.2734375, -0.0625, 0.0, 0.75, 2.40625, 5.5, 12.0, 18.0])
    x = series(places.bfloat16(), order, span)
    found = of_rule(name, x)
    with mp.workdps(60):
        for at in range(len(places)):
            rows = [float(x.coefficient(j)[at]) for j in range(order + 1)]
            line = lambda t, rows=rows: sum(row * t**j for j, row in enumerate(rows))  # noqa: E731
            exact = mp.taylor(lambda t, line=line: KINDS[name][3](line(t)), 0, order)
            for j in range(1, order + 1):
                check(found.coefficient(j)[at : at + 1], torch.tensor([float(exact[j])], dtype=torch.float64))


def test_a_number_by_itself() -> None:
    with torch.no_grad():
        for name, order, span in CASES:
            x = series(torch.tensor(0.75).bfloat16(), order, span)
            row = series(torch.tensor([0.75]).bfloat16(), order, span)
            found, expected = of_rule(name, x), of_rule(name, x.like(row.coefficients[:, 0]))
            assert found.shape == ()
            assert torch.equal(found.stacked(), expected.stacked())


def test_without_a_centre() -> None:
    with torch.no_grad():
        v = torch.randn(2, 5).bfloat16()
        for name, order, _ in CASES:
            found = of_rule(name, Series(v[:order], order, 1))
            whole = of_rule(name, Series.of_rows([torch.zeros(5).bfloat16(), *v[:order]], order))
            assert torch.equal(found.stacked(), whole.stacked())


@pytest.mark.parametrize("name", KINDS)
def test_what_is_followed_has_derivatives(name: str) -> None:
    """Of the recurrence's values, which are the same up to a rounding."""
    centre = torch.linspace(-3, 3, 7).bfloat16()
    x = series(centre, 1, (0, 1))
    with torch.no_grad():
        plain = of_rule(name, x).stacked()
    stack = x.coefficients.clone().requires_grad_()
    found = of_rule(name, x.like(stack)).stacked()
    torch.testing.assert_close(found, plain, rtol=2 * EPS, atol=1e-6)
    (slope,) = torch.autograd.grad(found[1].float().sum(), stack)
    torch.testing.assert_close(slope[1].double(), of_rule(name, _unit(centre)).coefficient(1), rtol=2 * EPS, atol=1e-6)
    over = torch.func.vmap(lambda rows: of_rule(name, x.like(rows)).stacked())
    torch.testing.assert_close(over(x.coefficients[None])[0], plain, rtol=2 * EPS, atol=1e-6)


def _unit(centre: Tensor) -> Series:
    return Series.variate(centre.double(), torch.ones_like(centre.double()), 1)


def test_large_coefficients_of_what_is_flat() -> None:
    """Where a slope is 0, so is what comes of it, however large the direction."""
    centre, first = torch.tensor([-300.0, -110.0, 0.0]).bfloat16(), torch.tensor([1e30, 1e25, 1e15]).bfloat16()
    x, wide = Series.variate(centre, first, 2), Series.variate(centre.double(), first.double(), 2)
    with torch.no_grad():
        for name in ("silu", "gelu"):
            found, exact = of_rule(name, x), of_rule(name, wide)
            for j in (1, 2):
                check(found.coefficient(j)[[0, 2]], exact.coefficient(j)[[0, 2]])
                assert bool(found.coefficient(j).isfinite().all())


def test_orders_that_are_not_known_are_those_of_the_recurrence() -> None:
    centre, first = torch.randn(2, 5).bfloat16()
    assert closed.silu([centre, first, None, None]) is None
    assert closed.gelu([centre, first, None, None]) is None
    assert closed.gelu([centre, first, None], approximate="tanh") is None
    assert closed.gelu([centre, None, first]) is None
    for function in (closed.exp, closed.mish, closed.sigmoid, closed.softplus, closed.tanh):
        assert function([centre, first, None]) is None


PASSES = {
    ("exp", 1): (4, 13),
    ("gelu", 1): (7, 28),
    ("gelu", 2): (11, 49),
    ("gelu by tanh", 1): (11, 50),
    ("mish", 1): (2, 5),
    ("sigmoid", 1): (5, 16),
    ("silu", 1): (2, 5),
    ("silu", 2): (9, 37),
    ("softplus", 1): (2, 5),
    ("tanh", 1): (6, 18),
}
"""By function and order: kernels, and how many times x_0 is read and written, coefficient 0 included."""


@pytest.mark.parametrize(("name", "order"), PASSES)
@torch.no_grad()
def test_passes_over_memory(name: str, order: int) -> None:
    x = series(torch.randn(30, 40).bfloat16(), order, (0, 1))
    with Operators() as operators, Moved() as moved:
        of_rule(name, x)
    small = ("unbind", "select", "empty_like", "full", "unsqueeze")
    kernels = operators.counts.total() - sum(operators.counts[each] for each in small)
    assert (kernels, moved.bytes // (2 * 30 * 40)) == PASSES[name, order]


GATED = {0: (2, 5), 1: (5, 17), 2: (14, 58)}
"""By order, kernels besides matrix products, and how many times the inner values of a Llama's MLP are moved by them. Of
the MLP on as many rows these are 2 kernels and 5, 10 and 15 times."""


@pytest.mark.parametrize("order", GATED)
@torch.no_grad()
def test_passes_of_a_gated_perceptron(order: int) -> None:
    gate, up, down = (nn.Linear(*sizes, bias=False).bfloat16() for sizes in ((8, 64), (8, 64), (64, 8)))
    x, v = torch.randn(2, 30, 8).bfloat16()
    jet = jg.taylor(lambda x: down(F.silu(gate(x)) * up(x)), x)
    for _ in range(3):
        with Operators() as operators, Moved() as moved:
            jet(x, v, order)
    views = ("as_strided", "select", "t", "unbind", "unsqueeze", "view", "_unsafe_view")
    beside = sum(operators.counts[name] for name in (*views, "mm", "empty_like", "new_empty"))
    assert (operators.counts.total() - beside, moved.bytes // (2 * 30 * 64)) == GATED[order]
