"""Runs of pointwise ops in blocks give what the ops give one by one."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import jetgraph as jg
from jetgraph.jets import interpreter, pointwise
from tests import zoo
from tests.conftest import Example

WHOLE = 2**40
"""A block that is never filled."""


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the groups that were run in blocks."""
    seen: list[int] = []

    def run(group: Any, *rest: Any) -> None:
        seen.append(len(group))
        original(group, *rest)

    original = pointwise.run
    monkeypatch.setattr(interpreter.pointwise, "run", run)
    return seen


def gelu(x: Tensor) -> Tensor:
    """The tanh form, in primitives."""
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * torch.pow(x, 3))))


FUNCTIONS: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "gelu": (gelu, 1),
    "swish": (lambda x: x * torch.sigmoid(1.7 * x) + x, 1),
    "a result in mid-run": (lambda x: (u := torch.tanh(2 * x)).sum(-1, keepdim=True) * (u * u + x), 2),
    "a comparison": (lambda x: torch.where(x * 1.0 > 0.1, torch.exp(x) * x, -x + 1), 1),
    "a kink": (lambda x: torch.relu(x * 2.0) * torch.clamp(x, -0.3, 0.4), 1),
    "a constant beside it": (lambda x: torch.exp(x * torch.arange(21.0).view(3, 7) / 9).sin() + 1, 1),
    "orders that are zero": (lambda x: (x * x) * (x - x.detach()) + 2, 1),
    "between products": (lambda x: gelu(x @ torch.ones(7, 7, dtype=x.dtype) / 9) @ torch.ones(7, 2, dtype=x.dtype), 1),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize(
    ("order", "dtype"), [(1, torch.float64), (4, torch.float64), (2, torch.bfloat16), (2, torch.float16)]
)
def test_blocks_are_the_whole(
    name: str, order: int, dtype: torch.dtype, groups: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    f, least = FUNCTIONS[name]
    torch.manual_seed(0)
    x, v = torch.randn(3, 7, dtype=torch.float64).to(dtype), torch.randn(3, 7, dtype=torch.float64).to(dtype)

    def typed(x: Tensor) -> Tensor:
        return f(x).to(dtype)

    with torch.no_grad():
        monkeypatch.setattr(pointwise, "BLOCK", WHOLE)
        expected = jg.jet(typed, x, v, order)
        assert not groups
        for block in (1, 4, 10):
            monkeypatch.setattr(pointwise, "BLOCK", block)
            torch.testing.assert_close(jg.jet(typed, x, v, order), expected)
    assert len(groups) >= 3 * least
    assert min(groups) > 1


@torch.no_grad()
@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "mamba", "deepseek_v3"])
def test_models(name: str, traced: Callable[..., Example], groups: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    example = traced(zoo.case(name))
    expansion = jg.expand(example.graph, 2)
    module = jg.compile(expansion, list(jg.select(expansion, "embed > *^2 > logits^1"))[:12])
    monkeypatch.setattr(pointwise, "BLOCK", WHOLE)
    expected = module(**example.inputs)
    assert not groups
    monkeypatch.setattr(pointwise, "BLOCK", 5)
    found = module(**example.inputs)
    assert groups
    for path, term in expected.terms.items():
        torch.testing.assert_close(found.terms[path], term, rtol=1e-4, atol=1e-5 * float(term.abs().max() + 1))


def test_what_is_recorded_is_left_whole(groups: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pointwise, "BLOCK", 2)
    torch.manual_seed(0)
    x, v = torch.randn(12, dtype=torch.float64), torch.randn(12, dtype=torch.float64)
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(jg.jet(gelu, leaf, v, 2)[2].sum(), leaf)
    assert not groups
    # Coefficient j is the j-th derivative times v^j / j!.
    torch.testing.assert_close(gradient, 3 * jg.jet(gelu, x, v, 3)[3] / v)
    assert groups


@torch.no_grad()
def test_errors_say_where(groups: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """From whatever block they come."""

    class Root(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.log(2.0 * x)

    monkeypatch.setattr(pointwise, "BLOCK", 2)
    x = torch.ones(9)
    x[-1] = -1
    with pytest.raises(jg.DomainError, match=r"log.*must be positive, but 1 of 1 values"):
        jg.jet(Root(), x, torch.ones(9), 1)
    assert groups == [2]
