"""Ops that read a tensor's shape, type or nothing at all, never its values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from jetgraph.jets.registry import plain_rule, register_rule

aten = torch.ops.aten


def constant(op: Callable[..., Any]) -> None:
    """The plain op on the coefficients 0, whose values it does not read."""
    register_rule(op, plain_rule(op), kind="constant")


for _op in (
    aten.sym_size.int,
    aten.sym_size.default,
    aten.sym_stride.int,
    aten.sym_numel.default,
    aten.size.int,
    aten.zeros_like.default,
    aten.ones_like.default,
    aten.full_like.default,
    aten.empty_like.default,
    aten.new_zeros.default,
    aten.new_ones.default,
    aten.new_full.default,
    aten.new_empty.default,
    aten._shape_as_tensor.default,
):
    constant(_op)
