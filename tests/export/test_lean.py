"""What the exporter does not do for us."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch._export.passes import replace_set_grad_with_hop_pass as passes
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.passes import shape_prop

import jetgraph as jg


class Switching(nn.Module):
    """Without gradients for a while, and within that with them."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            scale = x.square().mean(-1, keepdim=True)
            with torch.enable_grad():
                scale = scale.sqrt()
            scale = scale + 1
        return x + torch.tanh(self.mlp(x / scale))


def test_an_export_keeps_no_shapes_and_cuts_out_and_compiles_no_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: Any, **options: Any) -> Any:
        raise AssertionError

    model, x = Switching().eval(), torch.randn(2, 3, 4)
    monkeypatch.setattr(FakeTensorMode, "_make_cache_entry", never)
    monkeypatch.setattr(passes, "sequential_split", never)
    # None is compiled but the one that is the result, and nobody asks how tensors lie in memory to note it.
    compiled, compile_ = [], fx.GraphModule.recompile
    monkeypatch.setattr(fx.GraphModule, "recompile", lambda module: compiled.append(module) or compile_(module))
    monkeypatch.setattr(shape_prop, "is_contiguous_for_memory_format_or_false", never)
    graph = jg.trace(model, x)
    assert len(compiled) == 1
    assert graph.traced.dynamic == "all"
    torch.testing.assert_close(graph(x[:1, :2]), model(x[:1, :2]))
    assert torch._dynamo.config.fake_tensor_cache_enabled
