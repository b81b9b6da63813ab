"""The model that is traced: its state is its own, and stays as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import jetgraph as jg
from jetgraph.tracing.trace import canonical
from tests import zoo
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


class _Pair:
    """Two tensors, and nothing else."""

    def __init__(self, one: Tensor, two: Tensor) -> None:
        assert one.shape == two.shape
        self.one, self.two = one, two


@pytest.fixture
def known() -> Iterator[Callable[..., None]]:
    """Tells torch how the pair is taken apart."""

    def tell(**options: Any) -> None:
        pytree.register_pytree_node(
            _Pair, lambda pair: ([pair.one, pair.two], None), lambda parts, _: _Pair(*parts), **options
        )

    yield tell
    pytree._deregister_pytree_node(_Pair)


def _both(x: Tensor, given: Any) -> Tensor:
    h = x + given.one @ given.two.mT
    return h + torch.tanh(h)


def test_containers_that_hold_nothing_but_tensors(known: Callable[..., None]) -> None:
    names = [pytree.GetAttrKey("one"), pytree.GetAttrKey("two")]
    known(flatten_with_keys_fn=lambda pair: (list(zip(names, (pair.one, pair.two), strict=True)), None))
    graph = jg.trace(_both, torch.randn(2, 5, 5), _Pair(torch.randn(2, 5, 4), torch.randn(2, 5, 4)))
    assert set(graph.traced.input_shapes) == {"x", "given.one", "given.two"}
    x, given = torch.randn(3, 6, 6), _Pair(torch.randn(3, 6, 4), torch.randn(3, 6, 4))
    torch.testing.assert_close(graph(x, given), _both(x, given))


def test_containers_without_names(known: Callable[..., None]) -> None:
    known()
    with pytest.raises(jg.InputError, match=r"cannot be called by names: .* flatten_with_keys_fn"):
        jg.trace(_both, torch.randn(2, 5, 5), _Pair(torch.randn(2, 5, 4), torch.randn(2, 5, 4)))


def test_a_cache_of_keys_and_values_is_an_input() -> None:
    """What it holds is the model's, and is read; it is the user's, and stays what it is."""
    model = zoo.case("llama").build()

    def given(batch: int) -> dict[str, Any]:
        cache = transformers.DynamicCache(config=model.config)
        with torch.no_grad():
            model(torch.randint(3, zoo.VOCAB, (batch, 4)), past_key_values=cache)
        return {"input_ids": torch.randint(3, zoo.VOCAB, (batch, 5)), "past_key_values": cache}

    graph = jg.trace(model, **given(2))
    inputs = given(3)
    again = {**inputs, "past_key_values": copy.deepcopy(inputs["past_key_values"])}
    with torch.no_grad():
        torch.testing.assert_close(graph(**inputs), model(**again).logits)
        first = jg.lens(graph, inputs).logits[0, 0]
    assert inputs["past_key_values"].get_seq_length() == 4
    assert first.shape == (3, 5, zoo.VOCAB)
