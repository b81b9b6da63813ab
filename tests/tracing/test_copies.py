"""What is copied of an exported program: operators, module paths, and no random numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import jetgraph as jg
from jetgraph.tracing.trace import canonical
from jetgraph.tracing.traced import Traced
from tests.tracing.models import Residual, X, replayed


def operators(traced: Traced) -> list[str]:
    return [str(node.target) for node in traced.graph.nodes if node.op == "call_function"]


def test_dropout_copies_and_whole_slices_leave_no_trace() -> None:
    class Copies(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(x.clone(), 0.5, self.training)[:].detach() * 2

    traced = canonical(Copies().eval(), (X,))
    assert operators(traced) == ["aten.mul.Tensor"]
    assert torch.equal(replayed(traced, X), 2 * X)


def test_layers_are_kept_whole() -> None:
    net = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4), nn.GELU()).eval()
    assert operators(canonical(net, (X,))) == ["aten.layer_norm.default", "aten.linear.default", "aten.gelu.default"]


def test_every_node_says_where_it_comes_from() -> None:
    traced = canonical(nn.Sequential(Residual(), nn.Sequential(Residual())).eval(), (X,))
    paths = {node.meta["module_path"] for node in traced.graph.nodes if node.op == "call_function"}
    assert paths == {"0", "0.linear", "1.0", "1.0.linear"}
    assert traced.module_types["1.0"] == "Residual"
    assert all(
        set(node.meta) == {"module_path", "dtype", "shape"} for node in traced.graph.nodes if node.op == "call_function"
    )


def test_a_module_that_runs_twice_has_one_path() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = Residual()

        def forward(self, x: Tensor) -> Tensor:
            return self.block(self.block(x))

    traced = canonical(Twice().eval(), (X,))
    paths = [node.meta["module_path"] for node in traced.graph.nodes if str(node.target) == "aten.linear.default"]
    assert paths == ["block.linear", "block.linear"]
    assert sorted(traced.tensors) == ["block.linear.bias", "block.linear.weight", "block.shift"]


def test_a_list_that_grows_is_concatenated_step_by_step() -> None:
    """cat(a, b, c) after cat(a, b) holds the earlier one, so that dense blocks have one stream; values are the same."""

    class Grows(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            parts = [x, x.sin()]
            parts.append(torch.cat(parts, -1).cos())
            return torch.cat(parts, -1)

    traced = canonical(Grows().eval(), (X,))
    inner, outer = (node for node in traced.graph.nodes if str(node.target) == "aten.cat.default")
    assert outer.args[0][0] is inner
    with torch.no_grad():
        assert torch.equal(replayed(traced, X), Grows()(X))


class Draws(nn.Module):
    def __init__(self, draw: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.mlp = nn.Linear(4, 4)
        self.draw = draw

    def forward(self, x: Tensor) -> Tensor:
        return x + self.draw(torch.tanh(self.mlp(x)))


@pytest.mark.parametrize(
    "draw",
    [
        lambda h: F.dropout(h, 0.5, training=True),
        lambda h: F.alpha_dropout(h, 0.1, training=True),
        lambda h: h + 1e-9 * torch.rand_like(h),
        lambda h: h * torch.bernoulli(h.sigmoid()),
        lambda h: h[..., torch.randperm(4)],
        lambda h: h + torch.multinomial(h.softmax(-1), 1),
        lambda h: F.rrelu(h, training=True),
        lambda h: F.scaled_dot_product_attention(h[None], h[None], h[None], dropout_p=0.2)[0],
    ],
)
def test_random_operators_are_refused(draw: Any) -> None:
    """By what the operator is, however little it changes; with its name and module and what to do."""
    model = nn.Sequential(Draws(draw)).eval()
    says = r"torch\.ops\.aten\S+ in module '0' at .*:\d+, `.*` draws random numbers.*switch it off"
    with pytest.raises(jg.TraceError, match=says):
        jg.trace(model, X)


@pytest.mark.parametrize(
    "draw",
    [
        lambda h: F.dropout(h, 0.5, training=False),
        lambda h: F.dropout(h, 0.0, training=True),
        lambda h: F.rrelu(h, training=False),
        lambda h: F.scaled_dot_product_attention(h[None], h[None], h[None], dropout_p=0.0)[0],
        lambda h: (torch.rand_like(h), h)[1],
    ],
)
def test_random_operators_that_are_off(draw: Any) -> None:
    model = Draws(draw).eval()
    assert torch.allclose(jg.trace(model, X)(X), model(X))
