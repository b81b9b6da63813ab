"""What a model makes when it first runs is in its trace."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

import jetgraph as jg
from tests.tracing.models import Residual, X


class Positions(nn.Module):
    """x + tanh(W x) + positions, with positions made as `make` does it."""

    def __init__(self, make: Callable[[Any, int], Tensor], **attributes: Any) -> None:
        super().__init__()
        self.mlp = nn.Linear(4, 4)
        self.make = make
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.mlp(x)) + self.make(self, x.shape[1])[: x.shape[1]]


def _table(rows: int) -> Tensor:
    return torch.arange(1.0 * rows).unsqueeze(1) / 7


_MODULE_WIDE: dict[str, Tensor] = {}


_kept_table = functools.lru_cache(_table)


def _as_attribute(model: Any, length: int) -> Tensor:
    if not hasattr(model, "table"):
        model.table = _table(64)
    return model.table


def _as_buffer(model: Any, length: int) -> Tensor:
    if not hasattr(model, "table"):
        model.register_buffer("table", torch.rand(64, 4), persistent=False)
    return model.table


def _in_a_dict(model: Any, length: int) -> Tensor:
    return model.cache.setdefault("table", _table(64))


def _growing(model: Any, length: int) -> Tensor:
    if model.cache is None or model.cache.shape[0] < length:
        model.cache = _table(length)
    return model.cache


def _module_wide(model: Any, length: int) -> Tensor:
    if "table" not in _MODULE_WIDE:
        _MODULE_WIDE["table"] = _table(64)
    return _MODULE_WIDE["table"]


def _counting(model: Any, length: int) -> Tensor:
    model.cache["calls"] = model.cache.get("calls", 0) + 1
    model.log.append(torch.ones(1))
    return _table(64)


def _as_a_child(model: Any, length: int) -> Tensor:
    if not hasattr(model, "child"):
        model.child = nn.Embedding(64, 4)
    return model.child.weight


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(
    ("make", "attributes"),
    [
        (_as_attribute, {}),
        (_as_buffer, {}),
        (_in_a_dict, {"cache": {}}),
        (_growing, {"cache": None}),
        (_module_wide, {}),
        (lambda model, length: _kept_table(64), {}),
        (_counting, {"cache": {}, "log": []}),
        (_as_a_child, {}),
    ],
)
def test_a_table_made_at_the_first_call(make: Any, attributes: dict[str, Any], batch: int) -> None:
    """The graph has its values; the model has what it had, and makes the same one when it runs by itself."""
    _MODULE_WIDE.clear()
    _kept_table.cache_clear()
    model = Positions(make, **copy.deepcopy(attributes)).eval()
    before = {name: sorted(module.__dict__) for name, module in model.named_modules()}
    buffers = dict(model._buffers)
    given, x = torch.randn(batch, 6, 4), torch.randn(2, 9, 4)
    graph = jg.trace(model, given)
    assert {name: sorted(module.__dict__) for name, module in model.named_modules()} == before
    assert model._buffers == buffers
    assert all(getattr(model, name) == value for name, value in attributes.items())
    assert not any(
        isinstance(tensor, FakeTensor) for tensor in [*graph.traced.tensors.values(), *_MODULE_WIDE.values()]
    )
    assert not isinstance(_kept_table(64), FakeTensor)
    with torch.no_grad():
        assert torch.equal(graph(x), model(x))


def test_counters_and_means_keep_their_values() -> None:
    """After a trace and after a refused one; and the graph reads the mean as the model's next call does."""

    class Counts(Residual):
        def __init__(self, choose: bool) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros((), dtype=torch.long))
            self.register_buffer("mean", torch.zeros(4))
            self.choose = choose

        def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
            self.calls += 1
            self.mean.mul_(0.9).add_(0.1 * x.mean(0))
            if self.choose and float(x.sum()) > 0:
                x = x + 1
            return super().forward(x, scale) + self.mean

    model = Counts(choose=False).eval()
    calls = model.calls
    graph = jg.trace(model, X)
    assert model.calls is calls
    assert (int(model.calls), float(model.mean.abs().sum())) == (0, 0)
    assert torch.equal(graph(X), model(X))
    refused = Counts(choose=True).eval()
    with pytest.raises(jg.TraceError):
        jg.trace(refused, X)
    assert (int(refused.calls), float(refused.mean.abs().sum())) == (0, 0)


def test_long_rope() -> None:
    """Tables for short and for long inputs: the graph has both, and the traced model is as a fresh one."""
    scaling = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "rope_theta": 1e4}
    config = transformers.Phi3Config(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        pad_token_id=0,
        num_attention_heads=2,
        num_key_value_heads=2,
        bos_token_id=1,
        eos_token_id=2,
        max_position_embeddings=64,
        original_max_position_embeddings=16,
        rope_parameters={**scaling, "original_max_position_embeddings": 16},
    )
    model = transformers.Phi3ForCausalLM(config).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    fresh = copy.deepcopy(model)
    ids = torch.arange(40).unsqueeze(0) % 50
    graph = jg.trace(model, input_ids=ids[:, :8])
    with torch.no_grad():
        for length in (8, 16, 17, 40):
            given = ids[:, :length]
            expected = copy.deepcopy(fresh)(input_ids=given).logits
            assert torch.equal(model(input_ids=given).logits, expected)
            assert torch.allclose(graph(input_ids=given), expected, atol=1e-5)
