"""What Python code calls for an operator is that operator."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from jetgraph.jets.bindings import BINDINGS, binding

aten = torch.ops.aten

X, Y, SQUARE, TABLE = torch.rand(2, 3, 4), torch.rand(3, 4), torch.rand(4, 4), torch.rand(5, 4)
HEADS, STACK = torch.rand(1, 2, 3, 4), torch.rand(2, 3, 4)
UNARY = (
    "abs",
    "cos",
    "exp",
    "log",
    "neg",
    "reciprocal",
    "relu",
    "rsqrt",
    "sigmoid",
    "silu",
    "sin",
    "sqrt",
    "t",
    "tanh",
)

CALLS: dict[Any, list[tuple[tuple[Any, ...], dict[str, Any]]]] = {
    **{getattr(aten, name).default: [((Y,), {})] for name in UNARY},
    **{getattr(aten, name).default: [((Y.clone(),), {})] for name in ("exp_", "sigmoid_", "tanh_")},
    aten.add.Tensor: [((X, Y), {}), ((X, 0.5), {}), ((X, Y), {"alpha": 2})],
    aten.add_.Tensor: [((Y.clone(), Y), {}), ((Y.clone(), 0.5), {"alpha": 2})],
    aten.addcmul.default: [((X, Y, Y), {"value": 2}), ((Y[:1, :1], X.half(), X.half()), {})],
    aten.addcmul.out: [((Y, Y, Y.half()), {"out": torch.empty(3, 4).half()})],
    aten.addcmul_.default: [((Y.clone(), Y, Y), {"value": 2})],
    aten.addmm.default: [((Y, Y, SQUARE), {"beta": 2})],
    aten.as_strided.default: [((X, [2, 3], [1, 4]), {}), ((X, [2], [4], 3), {})],
    aten.baddbmm.default: [((STACK, STACK, SQUARE.expand(2, 4, 4)), {})],
    aten.bmm.default: [((STACK, SQUARE.expand(2, 4, 4)), {})],
    aten.cat.default: [(([X, X], -1), {})],
    aten.clone.default: [((X.mT,), {"memory_format": torch.contiguous_format})],
    aten.copy_.default: [((X.half(), Y), {})],
    aten.div.Tensor: [((X, Y), {}), ((X, 3), {})],
    aten.embedding.default: [((TABLE, torch.tensor([[1, 4]])), {}), ((TABLE, torch.tensor([2]), 0), {})],
    aten.expand.default: [((Y, [2, -1, 4]), {})],
    aten.gelu.default: [((X,), {}), ((X,), {"approximate": "tanh"})],
    aten.layer_norm.default: [((X, [4], Y[0], Y[1], 1e-5), {}), ((X, [4]), {})],
    aten.linear.default: [((X, SQUARE), {}), ((X, SQUARE, Y[0]), {})],
    aten.matmul.default: [((X, SQUARE), {})],
    aten.maximum.default: [((X, Y), {})],
    aten.mean.dim: [((X, [-1], True), {}), ((X, [0]), {"dtype": torch.double}), ((X, None), {})],
    aten.minimum.default: [((X, Y), {})],
    aten.mm.default: [((Y, SQUARE), {})],
    aten.mm.out: [((Y, SQUARE), {"out": torch.empty(3, 4)})],
    aten.mul.Tensor: [((X, Y), {}), ((X, 2), {})],
    aten.mul.out: [((Y, Y.half()), {"out": torch.empty(3, 4).half()})],
    aten.mul_.Tensor: [((Y.clone(), 2), {})],
    aten.new_empty.default: [
        ((X, [0, 3]), {"pin_memory": False}),
        ((X, [0]), {"dtype": torch.half, "pin_memory": False}),
    ],
    aten.permute.default: [((X, [2, 0, 1]), {})],
    aten.scaled_dot_product_attention.default: [
        ((HEADS, HEADS, HEADS), {"is_causal": True, "scale": 0.3}),
        ((HEADS, HEADS, HEADS, HEADS[0, 0] @ HEADS[0, 0].mT > 1), {}),
    ],
    aten.select.int: [((X, 1, -1), {})],
    aten.softmax.int: [((X, -1), {}), ((X, -1, torch.double), {})],
    aten.stack.default: [(([X, X], 1), {})],
    aten.sub.Tensor: [((X, Y), {}), ((X, 1), {"alpha": 2})],
    aten.sub_.Tensor: [((Y.clone(), Y), {}), ((Y.clone(), 0.5), {})],
    aten.sum.dim_IntList: [((X, [0, 1]), {}), ((X, [-1], True), {"dtype": torch.double}), ((X, None), {})],
    aten.transpose.int: [((X, 0, -1), {})],
    aten.unbind.int: [((X, 1), {})],
    aten.unsqueeze.default: [((X, -1), {})],
    aten.view.default: [((X, [6, -1]), {})],
    aten.where.self: [((Y > 0.5, Y, X), {})],
}


def _told(value: Any) -> Any:
    return (*value.shape, value.dtype) if isinstance(value, Tensor) else value


class Seen(TorchDispatchMode):
    """What runs."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = {name: _told(value) for name, value in (kwargs or {}).items()}
        self.calls.append(f"{func} {[*map(_told, args)]} {sorted(named.items())}")
        return func(*args, **(kwargs or {}))


def test_all_are_tried() -> None:
    assert CALLS.keys() == BINDINGS.keys()


@pytest.mark.parametrize("op", CALLS, ids=str)
def test_the_same_runs(op: Any) -> None:
    for args, kwargs in CALLS[op]:
        seen, made = [], []
        for call in (op, binding(op)):
            given, named = copy.deepcopy((args, kwargs)) if op._schema.is_mutable else (args, kwargs)
            with torch.no_grad(), Seen() as one:
                made.append(call(*given, **named))
            seen.append(one.calls)
        assert binding(op) is not op
        assert seen[0] == seen[1]
        first, second = (each if isinstance(each, list | tuple) else [each] for each in made)
        assert all(
            torch.equal(*pair) and pair[0].stride() == pair[1].stride() for pair in zip(first, second, strict=True)
        )


def test_what_has_none_is_its_own() -> None:
    assert binding(aten.slice.Tensor) is aten.slice.Tensor._op
    assert binding(torch.sym_max) is torch.sym_max
