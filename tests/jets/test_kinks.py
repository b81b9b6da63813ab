"""A centre on a kink takes the piece that PyTorch's own derivative takes; masks never make a NaN."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import jetgraph as jg
from jetgraph.jets import Series, evaluate
from jetgraph.jets.registry import RULES
from tests.jets.graphs import Graph

KINKS: list[tuple[str, Callable[[Tensor], Tensor], list[float]]] = [
    ("relu", F.relu, [0.0]),
    ("relu6", F.relu6, [0.0, 6.0]),
    ("abs", torch.abs, [0.0]),
    ("leaky_relu", F.leaky_relu, [0.0]),
    ("prelu", lambda x: F.prelu(x, torch.tensor([0.25])), [0.0]),
    ("prelu of a slope that varies", lambda x: F.prelu(x, 0.25 + x[:1] * 0), [0.0]),
    ("softplus", lambda x: F.softplus(x, threshold=1.0), [1.0]),
    ("hardtanh", F.hardtanh, [-1.0, 1.0]),
    ("hardsigmoid", F.hardsigmoid, [-3.0, 3.0]),
    ("hardswish", F.hardswish, [-3.0, 3.0]),
    ("elu", F.elu, [0.0]),
    ("celu", F.celu, [0.0]),
    ("selu", F.selu, [0.0]),
    ("hardshrink", F.hardshrink, [-0.5, 0.5]),
    ("softshrink", F.softshrink, [-0.5, 0.5]),
    ("threshold", lambda x: F.threshold(x, 0.5, 2.0), [0.5]),
    ("clamp", lambda x: x.clamp(-1, 1), [-1.0, 1.0]),
    ("clamp_min", lambda x: x.clamp_min(0.5), [0.5]),
    ("clamp_max", lambda x: x.clamp_max(0.5), [0.5]),
    ("clamp.Tensor", lambda x: torch.clamp(x, torch.zeros(1), torch.ones(1)), [0.0, 1.0]),
    ("maximum", lambda x: torch.maximum(x, torch.ones(1)), [1.0]),
    ("minimum", lambda x: torch.minimum(x, torch.ones(1)), [1.0]),
    ("fmax", lambda x: torch.fmax(x, torch.ones(1)) + torch.fmax(torch.zeros(1), x), [0.0, 1.0]),
    ("fmin", lambda x: torch.fmin(torch.ones(1), x) + torch.fmin(x, torch.zeros(1)), [0.0, 1.0]),
    ("fmax of no number", lambda x: torch.fmax(x, torch.full((1,), math.nan)), [0.0, 1.0]),
    ("fmin of no number", lambda x: torch.fmin(x, torch.full((1,), math.nan)), [0.0, 1.0]),
    ("copysign", lambda x: torch.copysign(x, torch.ones(1)), [0.0]),
    ("logit", lambda x: torch.logit(x / 8, eps=0.25), [0.0, 6.0]),
    ("powers", lambda x: torch.pow(x, torch.tensor([2.0])) + x ** torch.ones(1) + (x / 8) ** 80, [0.0]),
    ("remainder", lambda x: x.remainder(1.0), [1.0]),
    ("floor", lambda x: x - x.floor(), [2.0]),
]


def test_kink_takes_the_piece_of_pytorchs_derivative() -> None:
    x = torch.tensor(sorted({kink for _, _, kinks in KINKS for kink in kinks}))
    graph = Graph(lambda y: tuple(function(y) for _, function, _ in KINKS), x)
    values = evaluate(graph.nodes, graph.values(Series.variate(x, torch.ones_like(x), 2)), 2)
    for (name, function, kinks), node in zip(KINKS, graph.outputs, strict=True):
        at = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(function(at).sum(), at)
        coefficients = values[node].stacked()
        assert torch.isfinite(coefficients).all(), name
        for kink in kinks:
            place = x.tolist().index(kink)
            assert coefficients[1, place].item() == pytest.approx(slope[place].item()), (name, kink)


@pytest.mark.parametrize("p", [0, 1, 1.5, 2, 3, 4, 2.5, math.inf, -math.inf])
def test_norm_of_vectors_with_zeros(p: float) -> None:
    """PyTorch's slope; where a norm is 0, it is level, as |x| is, and at order 0 it is a value like any other."""
    x = torch.tensor([[0.0, 0, 0], [1, 0, -2], [0, 1, 0], [2, 1, -2]], dtype=torch.float64)
    v = torch.tensor([[1.0, 2, 3], [1, 1, 1], [0, 1, 1], [1, 2, 4]], dtype=torch.float64)

    def norm(y: Tensor) -> Tensor:
        return torch.linalg.vector_norm(y, p, dim=-1, keepdim=True)

    _, slope = torch.func.jvp(norm, (x,), (v,))
    torch.testing.assert_close(jg.jet(norm, x, v, 1), torch.stack((norm(x), slope)))
    if p not in (1.5, 2.5):
        assert jg.jet(norm, x, v, 3)[1:, 0].abs().sum() == 0


@pytest.mark.parametrize(("p", "order"), [(0.5, 1), (1.5, 2), (2.5, 3), (-1, 1)])
def test_norm_without_a_coefficient_at_zero(p: float, order: int) -> None:
    """|x|^p has none of an order above p; an entry that does not move needs none."""
    x, v = torch.tensor([0.0, 1.0]), torch.tensor([1.0, 1.0])
    assert jg.jet(lambda y: torch.linalg.vector_norm(y, p), x, v, 0).isfinite().all()
    with pytest.raises(jg.DomainError, match=rf"norm of order {p} no entry that varies may be 0"):
        jg.jet(lambda y: torch.linalg.vector_norm(y, p), x, v, order)
    if p > 0:
        still = jg.jet(lambda y: torch.linalg.vector_norm(y, p), x, torch.tensor([0.0, 1.0]), order)
        torch.testing.assert_close(still[:2], torch.tensor([1.0, 1.0]))


@pytest.mark.parametrize("floor", [0.5, 1e-12])
def test_normalised_vector_of_zeros_is_divided_by_the_floor(floor: float) -> None:
    """max(‖x‖, ε) is ε near 0, so that the slope of the norm is not read: x_j / ε at every order."""
    x, v = torch.zeros(2, 3, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    coefficients = jg.jet(lambda y: F.normalize(y + y * y, dim=-1, eps=floor), x, v, 3)
    torch.testing.assert_close(coefficients, torch.stack((x, v, v * v, x)) / floor)


@pytest.mark.parametrize("function", [torch.amax, torch.amin, lambda x, dim: x.max(dim).values])
def test_ties_of_a_maximum(function: Callable[..., Tensor]) -> None:
    x = torch.tensor([[1.0, 1.0, 1.0], [2.0, 2.0, 0.0]], requires_grad=True)
    v = torch.tensor([[1.0, 2.0, 4.0], [1.0, 3.0, 5.0]])
    (slope,) = torch.autograd.grad(function(x, 1).sum(), x)
    coefficients = jg.jet(lambda y: function(y, 1), x.detach(), v, 2)
    torch.testing.assert_close(coefficients[1], (slope * v).sum(1))
    assert coefficients[2].abs().sum() == 0


def _largest_of_neighbours(x: Tensor) -> Tensor:
    """x [2, 3]: of each row, those that land in one place; nothing lands in the last one."""
    index = torch.tensor([[0, 0, 1], [0, 1, 1]])
    return torch.zeros_like(x).scatter_reduce(1, index, x, "amax", include_self=False)


def test_ties_of_what_lands_in_one_place() -> None:
    x = torch.tensor([[1.0, 1.0, 5.0], [2.0, 3.0, 4.0]], requires_grad=True)
    v = torch.tensor([[1.0, 2.0, 4.0], [1.0, 3.0, 5.0]])
    (slope,) = torch.autograd.grad(_largest_of_neighbours(x).sum(), x)
    coefficients = jg.jet(_largest_of_neighbours, x.detach(), v, 2)
    assert coefficients.tolist() == [[[1, 5, 0], [2, 4, 0]], [[1.5, 4, 0], [1, 5, 0]], [[0] * 3] * 2]
    torch.testing.assert_close(coefficients[1].sum(1), (slope * v).sum(1))


def test_routing_is_fixed_at_the_centre() -> None:
    x, v = torch.tensor([3.0, 1.0, 2.0]), torch.tensor([-5.0, 10.0, 1.0])
    values = jg.jet(lambda y: y.topk(2).values, x, v, 1)
    assert values.tolist() == [[3.0, 2.0], [-5.0, 1.0]]
    chosen = jg.jet(lambda y: y * F.one_hot(y.argmax(), 3), x, v, 1)
    assert chosen.tolist() == [[3.0, 0.0, 0.0], [-5.0, 0.0, 0.0]]


def test_varying_condition_of_where() -> None:
    x, v = torch.tensor([-1.0, 2.0]), torch.tensor([1.0, 1.0])
    assert jg.jet(lambda y: torch.where(y > 0, y * y, -y), x, v, 2).tolist() == [[1, 4], [-1, 4], [0, 1]]


def test_softmax_over_masked_scores_has_no_nan() -> None:
    mask = torch.tensor([[0.0, -math.inf, 0.0], [0.0, 0.0, -math.inf]])
    x, v = torch.randn(2, 3), torch.randn(2, 3)
    coefficients = jg.jet(lambda y: F.softmax(y + mask, -1), x, v, 4)
    assert torch.isfinite(coefficients).all()
    assert coefficients[1:, 0, 1].abs().sum() == 0
    torch.testing.assert_close(coefficients[1:].sum(-1), torch.zeros(4, 2), atol=1e-6, rtol=0)
    filled = jg.jet(lambda y: F.softmax(y.masked_fill(mask < 0, -math.inf), -1), x, v, 4)
    torch.testing.assert_close(filled, coefficients)


def test_row_masked_throughout_is_pytorchs_at_order_0_and_zero_above() -> None:
    allowed = torch.tensor([[True, False, True], [False, False, False]])
    scores = jg.jet(
        lambda y: F.softmax(y.masked_fill(~allowed, -math.inf), -1), torch.randn(2, 3), torch.randn(2, 3), 3
    )
    added = jg.jet(
        lambda y: F.softmax(y + torch.where(allowed, 0.0, -math.inf), -1), torch.randn(2, 3), torch.randn(2, 3), 3
    )
    for rows in (scores, added):
        assert rows[0, 1].isnan().all()
        assert rows[1:, 1].abs().sum() == 0
    key, value = torch.randn(1, 3, 4), torch.randn(1, 3, 4)

    def attend(query: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key + query[:, :1], value + query[:, :1], attn_mask=allowed)

    query = torch.randn(1, 2, 4)
    mixed = jg.jet(attend, query, torch.randn(1, 2, 4), 3)
    torch.testing.assert_close(mixed[0], attend(query))
    assert mixed[1:, 0, 1].abs().sum() == 0


def test_attention_with_an_infinite_float_mask() -> None:
    mask = torch.full((3, 3), -math.inf).triu(1)
    x, v = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    masked = jg.jet(lambda y: F.scaled_dot_product_attention(y, y, y, attn_mask=mask), x, v, 4)
    causal = jg.jet(lambda y: F.scaled_dot_product_attention(y, y, y, is_causal=True), x, v, 4)
    assert torch.isfinite(masked).all()
    torch.testing.assert_close(masked, causal)


def test_large_arguments_stay_finite() -> None:
    x = torch.tensor([-200.0, -40.0, 40.0, 200.0])
    for function in (F.gelu, lambda y: F.gelu(y, approximate="tanh"), F.silu, F.softplus, F.mish, torch.tanh, F.elu):
        assert torch.isfinite(jg.jet(function, x, torch.ones(4), 4)).all(), function


@pytest.mark.parametrize(
    ("name", "arguments", "edges"),
    [
        ("relu", (), [0.0]),
        ("relu6", (), [0.0, 6.0]),
        ("hardshrink", (), [-0.5, 0.5]),
        ("softshrink", (), [-0.5, 0.5]),
        ("threshold", (0.25, 2.0), [0.25]),
        ("_prelu_kernel", (torch.tensor([0.25], dtype=torch.float64),), [0.0]),
    ],
)
def test_slopes_at_kinks_are_those_of_autograd(name: str, arguments: tuple[Any, ...], edges: list[float]) -> None:
    """Of rules by themselves: an export writes some of these operators out."""
    op = getattr(torch.ops.aten, name).default
    x = torch.tensor([*edges, -3.0, 0.1, 3.0, 6.5], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(op(x, *arguments).sum(), x)
    series = Series.variate(x.detach(), torch.ones_like(slope), 1)
    assert torch.equal(RULES[op].rule(1, series, *arguments).coefficient(1), slope)


def test_complex_values_are_compared_at_the_centre() -> None:
    def function(x: Tensor) -> Tensor:
        return torch.where(torch.complex(x, x - 1) == torch.complex(x * 0 + 2, x * 0 + 1), x**2, 3 * x)

    x = torch.tensor([2.0, 5.0])
    torch.testing.assert_close(jg.jet(function, x, torch.ones(2), 1), torch.tensor([[4.0, 15.0], [4.0, 3.0]]))
