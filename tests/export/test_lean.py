"""What the exporter does not do for us."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._export.passes import replace_set_grad_with_hop_pass as passes
from torch._subclasses.fake_tensor import FakeTensorMode

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


def test_an_export_keeps_no_shapes_and_cuts_out_no_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: Any, **options: Any) -> Any:
        raise AssertionError

    model, x = Switching().eval(), torch.randn(2, 3, 4)
    monkeypatch.setattr(FakeTensorMode, "_make_cache_entry", never)
    monkeypatch.setattr(passes, "sequential_split", never)
    graph = jg.trace(model, x)
    assert graph.traced.dynamic == "all"
    torch.testing.assert_close(graph(x[:1, :2]), model(x[:1, :2]))
    assert torch._dynamo.config.fake_tensor_cache_enabled
