"""The model that is traced: its state is its own, and stays as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import jetgraph as jg
from jetgraph.tracing.trace import canonical
from tests.tracing.models import Residual, X


def test_state_is_the_models_own() -> None:
    """Nothing is copied: parameters and buffers are the same objects under their own names."""
    model = Residual().eval()
    traced = canonical(model, (X,))
    assert {name: id(tensor) for name, tensor in traced.tensors.items()} == {
        name: id(tensor) for name, tensor in [*model.named_parameters(), *model.named_buffers()]
    }
    assert {binding.kind for binding in traced.bindings.values()} == {"parameter", "buffer", "input"}


def test_the_model_is_left_alone() -> None:
    model = Residual().eval()
    model.linear.weight.requires_grad_(False)
    seen: list[Tensor] = []
    handle = model.linear.register_forward_hook(lambda module, args, result: seen.append(result))
    before = {name: (id(value), value.requires_grad) for name, value in model.named_parameters()}
    attributes = sorted(model.__dict__), sorted(model.linear._forward_hooks)
    canonical(model, (X,))
    assert {name: (id(value), value.requires_grad) for name, value in model.named_parameters()} == before
    assert (sorted(model.__dict__), sorted(model.linear._forward_hooks)) == attributes
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    handle.remove()


def test_training_mode_is_refused_before_anything_runs() -> None:
    class Explodes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise AssertionError("ran")

    with pytest.raises(jg.TraceError, match=r"'Explodes' is in training mode.*model\.eval\(\)"):
        canonical(Explodes(), (X,))


def test_what_export_refuses() -> None:
    """Control flow over values: the error names the model, what the exporter said and what to check."""

    class Branches(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 1 if float(x.sum()) > 0 else x - 1

    with pytest.raises(jg.TraceError, match=r"torch\.export refuses Branches: .*control flow") as caught:
        jg.trace(Branches().eval(), X)
    assert caught.value.__cause__ is not None


def test_a_model_that_fails_by_itself() -> None:
    with pytest.raises(jg.TraceError, match=r"refuses Linear: .*runs on these inputs by itself"):
        jg.trace(nn.Linear(3, 3).eval(), X)


@pytest.mark.parametrize(
    ("given", "seen"),
    [
        ((X,), "a tuple of 1 tensor"),
        ([X, X], "a list of 2 tensors"),
        ({"input": X}, "a dict of 1 tensor"),
        ([[1.0, 2.0]], "a list"),
        (X.numpy(), "a ndarray"),
        ("text", "a str"),
    ],
)
def test_what_is_no_tensor_is_named_where_a_model_fails_on_it(given: Any, seen: str) -> None:
    with pytest.raises(jg.TraceError, match=rf"called with {seen} as 'input': .*give tensors one by one"):
        jg.trace(nn.Linear(3, 3).eval(), given)
    with pytest.raises(jg.TraceError, match=rf"called with {seen} as 'input': "):
        jg.trace(nn.Linear(3, 3).eval(), input=given)


def test_a_model_that_takes_a_tuple_is_given_one() -> None:
    class Pair(nn.Module):
        def forward(self, pair: tuple[Tensor, Tensor]) -> Tensor:
            return pair[0] * pair[1]

    assert not jg.trace(Pair().eval(), (X, X)).joins


def test_a_random_model_is_refused() -> None:
    class Random(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.rand_like(x)

    with pytest.raises(jg.TraceError, match="random"):
        jg.trace(Random().eval(), X)
