"""Composite operators stay whole as torch's own set-up keeps them, and torch is left as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_impls import op_implementations_dict
from torch.export import exported_program

from jetgraph.export.composites import composites_at_once

aten = torch.ops.aten


class Composites(nn.Module):
    """Operators that stay whole, and ones that do not."""

    def __init__(self) -> None:
        super().__init__()
        self.lin, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(nn.functional.dropout(self.lin(x), 0.5, training=False))
        return nn.functional.scaled_dot_product_attention(h, h, h).reshape(-1, 2) @ torch.ones(2, 2).to(x.dtype)


def exported(module: nn.Module) -> torch.export.ExportedProgram:
    with torch.no_grad():
        return torch.export.export(module.eval(), (torch.ones(2, 3, 4),))


def tables() -> dict[Any, Any]:
    operators = exported_program._collect_all_valid_cia_ops()
    return {op: (dict(op.py_kernels), op_implementations_dict.get(op)) for op in operators}


def test_the_graph_is_torchs_own() -> None:
    program = exported(Composites())
    own = program.run_decompositions({}).graph
    assert aten.linear.default in {node.target for node in own.nodes}
    for _ in range(2):  # as it makes the tables, and from those that it made
        with composites_at_once():
            assert str(program.run_decompositions({}).graph) == str(own)


def test_within_are_torchs_own_tables_and_after_it_what_was_before(monkeypatch: pytest.MonkeyPatch) -> None:
    before = tables()
    operators = dict.fromkeys(before, exported_program._special_op_to_preserve_cia)

    def shape() -> dict[Any, Any]:
        """Tables by what they have; the kernels are made anew by torch each time."""
        return {op: (set(kernels), rule is None) for op, (kernels, rule) in tables().items()}

    with exported_program._override_composite_implicit_decomp(dict(operators)):
        own = shape()
    for op, (kernels, rule) in before.items():  # torch takes away rules that were there before
        assert op.py_kernels == kernels
        if rule is not None:
            op_implementations_dict[op] = rule
    # Somebody gives an operator a kernel between two exports.
    for kernels in ({}, {torch._C.DispatchKey.PrivateUse1: len}):
        monkeypatch.setattr(aten.one_hot.default, "py_kernels", {**before[aten.one_hot.default][0], **kernels})
        changed = tables()
        for _ in range(2):
            with composites_at_once(), exported_program._override_composite_implicit_decomp(dict(operators)):
                assert kernels or shape() == own
                assert kernels.items() <= aten.one_hot.default.py_kernels.items()
            assert tables() == changed

    def fail() -> None:
        with composites_at_once(), exported_program._override_composite_implicit_decomp(dict(operators)):
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert tables() == changed


def test_an_operator_that_is_new_stays_whole() -> None:
    class Twice(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.ops.jetgraph_test_composites.twice(x)

    with composites_at_once():
        exported(Composites()).run_decompositions({})
    with torch.library._scoped_library("jetgraph_test_composites", "DEF") as library:
        library.define("twice(Tensor x) -> Tensor")
        library.impl("twice", lambda x: 2 * x, "CompositeImplicitAutograd")
        program = exported(Twice())
        with composites_at_once():
            targets = {str(node.target) for node in program.run_decompositions({}).graph.nodes}
    assert "jetgraph_test_composites.twice.default" in targets
