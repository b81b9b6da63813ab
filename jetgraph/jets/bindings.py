"""Operators as the functions that Python code calls.

`torch.ops.aten.mul.Tensor` and `torch.mul` run the same operator. The first looks its arguments up in a schema, the
second reads them by generated code, which takes half a microsecond less, a tenth of a call on few numbers: and a host
that launches kernels does nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

aten, _methods = torch.ops.aten, torch._C.TensorBase
_nn: Any = torch._C._nn  # type: ignore[attr-defined]

BINDINGS: dict[Any, Callable[..., Any]] = {
    aten.abs.default: torch.abs,
    aten.add.Tensor: torch.add,
    aten.add_.Tensor: _methods.add_,
    aten.addcmul.default: torch.addcmul,
    aten.addcmul.out: torch.addcmul,
    aten.addcmul_.default: _methods.addcmul_,
    aten.addmm.default: torch.addmm,
    aten.as_strided.default: torch.as_strided,
    aten.baddbmm.default: torch.baddbmm,
    aten.bmm.default: torch.bmm,
    aten.cat.default: torch.cat,
    aten.clone.default: torch.clone,
    aten.copy_.default: _methods.copy_,
    aten.cos.default: torch.cos,
    aten.div.Tensor: torch.div,
    aten.embedding.default: torch.embedding,
    aten.exp.default: torch.exp,
    aten.exp_.default: _methods.exp_,
    aten.expand.default: _methods.expand,
    aten.gelu.default: _nn.gelu,
    aten.layer_norm.default: torch.layer_norm,
    aten.linear.default: _nn.linear,
    aten.log.default: torch.log,
    aten.matmul.default: torch.matmul,
    aten.maximum.default: torch.maximum,
    aten.mean.dim: torch.mean,
    aten.minimum.default: torch.minimum,
    aten.mm.default: torch.mm,
    aten.mm.out: torch.mm,
    aten.mul.Tensor: torch.mul,
    aten.mul.out: torch.mul,
    aten.mul_.Tensor: _methods.mul_,
    aten.neg.default: torch.neg,
    aten.new_empty.default: _methods.new_empty,
    aten.permute.default: torch.permute,
    aten.reciprocal.default: torch.reciprocal,
    aten.relu.default: torch.relu,
    aten.rsqrt.default: torch.rsqrt,
    aten.scaled_dot_product_attention.default: _nn.scaled_dot_product_attention,
    aten.select.int: torch.select,
    aten.sigmoid.default: torch.sigmoid,
    aten.sigmoid_.default: _methods.sigmoid_,
    aten.silu.default: _nn.silu,
    aten.sin.default: torch.sin,
    aten.softmax.int: torch.softmax,
    aten.sqrt.default: torch.sqrt,
    aten.stack.default: torch.stack,
    aten.sub.Tensor: torch.sub,
    aten.sub_.Tensor: _methods.sub_,
    aten.sum.dim_IntList: torch.sum,
    aten.t.default: torch.t,
    aten.tanh.default: torch.tanh,
    aten.tanh_.default: _methods.tanh_,
    aten.transpose.int: torch.transpose,
    aten.unbind.int: torch.unbind,
    aten.unsqueeze.default: torch.unsqueeze,
    # A view of what cannot be viewed so would be refused.
    aten.view.default: torch.reshape,
    aten.where.self: torch.where,
}
"""By operator, what runs it, and nothing else, on whatever the operator takes."""


def binding(op: Any) -> Callable[..., Any]:
    """What runs an operator, for code that does so again and again."""
    if (bound := BINDINGS.get(op)) is not None:
        return bound
    # The overload's own function, without the method that hands over to it.
    return op._op if isinstance(op, torch._ops.OpOverload) else op
