"""Compiled evaluations against plain ones; what they share, and what they refuse."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import jetgraph as jg
from jetgraph.algebra.rules import Freeze
from jetgraph.jets.fusion import Fusion
from jetgraph.jets.interpreter import evaluate
from jetgraph.running.forward import Forward
from tests import zoo
from tests.conftest import Example
from tests.jets.graphs import Graph

EAGER = {"backend": "eager"}
"""The flat graph as it is: what `torch.compile` then makes of it is its own concern."""


def fused(graph: jg.ResidualGraph, fusion: Fusion, inputs: dict[str, Any]) -> Forward:
    plain = graph.run(**inputs)
    return Forward(graph, plain.state, plain.inputs, fusion)


@torch.no_grad()
def through(forward: Forward, order: int, frozen: Freeze | None = None) -> list[Tensor]:
    """All coefficients of what every branch makes of the same series; `frozen` takes the first order alone."""
    stream = forward.graph.stream
    found = []
    for join in stream.joins:
        h = forward[join.fork].detach()
        for branch in join.branches:
            series = forward.branch(branch, jg.Series.variate(h, h.flip(-1), order), order, frozen)
            found += [series.coefficient(j) for j in range(int(frozen is not None), order + 1)]
    return found


@pytest.mark.parametrize(
    ("name", "runs"), [("gpt2", [(2, None), (1, Freeze())]), ("llama", [(1, None)])], ids=["gpt2", "llama"]
)
def test_compiled_series_are_the_plain_ones(
    name: str, runs: list[tuple[int, Freeze | None]], traced: Callable[..., Example]
) -> None:
    """Free and held; layers that are built alike share one compilation per kind of branch and order."""
    example = traced(zoo.case(name))
    fusion = Fusion(**EAGER)
    plain, compiled = example.graph.run(**example.inputs), fused(example.graph, fusion, example.inputs)
    for number, (order, frozen) in enumerate(runs, 1):
        expected, found = through(plain, order, frozen), through(compiled, order, frozen)
        assert len(found) == len(expected) > 0
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * float(other.abs().max()))
        assert len(fusion) == 2 * number
    again = through(compiled, *runs[0])
    assert len(fusion) == 2 * len(runs)
    assert all(torch.equal(one, other) for one, other in zip(again, through(compiled, *runs[0]), strict=True))


class Roots(nn.Module):
    """h + √(h W), which has an expansion only where the argument is positive."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(4, 4, bias=False)
        nn.init.eye_(self.lin.weight)

    def forward(self, h: Tensor) -> Tensor:
        return h + torch.sqrt(self.lin(h))


def test_a_centre_outside_the_domain_is_found_as_before() -> None:
    """The compiled graph checks too; what is wrong is said in the same words."""
    graph = jg.trace(Roots().eval(), torch.ones(2, 4), dynamic=False)
    (branch,) = graph.stream.joins[0].branches

    def evaluated(forward: Forward, h: Tensor) -> Tensor:
        return forward.branch(branch, jg.Series.variate(h, torch.ones_like(h), 2), 2).coefficient(2)

    inputs = graph.traced.input_values((torch.ones(2, 4),), {})
    plain = graph.run(torch.ones(2, 4))
    compiled = Forward(graph, plain.state, inputs, Fusion(**EAGER))
    fine = torch.full((2, 4), 4.0)
    torch.testing.assert_close(evaluated(compiled, fine), torch.full((2, 4), -(4.0**-1.5) / 8))
    outside = fine.clone()
    outside[0, 1] = -1
    messages = []
    for forward in (plain, compiled):
        with pytest.raises(jg.DomainError) as caught:
            evaluated(forward, outside)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert "sqrt" in messages[0]


def test_other_shapes_dtypes_and_zeros_are_other_programs(traced: Callable[..., Example]) -> None:
    """And a copy starts empty."""
    example = traced(zoo.case("gpt2"))
    fusion = Fusion(**EAGER)
    forward = fused(example.graph, fusion, example.inputs)
    join = example.graph.stream.joins[1]
    (branch,) = join.branches
    h = forward[join.fork]
    direction = forward.branch(branch, jg.Series(h.unsqueeze(0), 1, 1), 1)
    assert isinstance(direction, jg.Series)
    assert len(fusion) == 1
    forward.branch(branch, jg.Series.variate(h, h, 1), 1)
    assert len(fusion) == 2
    short = forward[join.fork][:, :3].contiguous()
    small = fused(example.graph, fusion, example.inputs | {"input_ids": example.inputs["input_ids"][:, :3]})
    small.branch(branch, jg.Series.variate(short, short, 1), 1)
    assert len(fusion) == 3
    assert len(copy.deepcopy(fusion)) == 0
    assert len(fusion) == 3


@pytest.mark.parametrize(
    "function", [lambda x: F.layer_norm(x, (5,)).sin(), lambda x: x.var(-1).exp(), lambda x: torch.logaddexp(x, x * x)]
)
def test_what_was_compiled_without_gradients_has_them(function: Callable[[Tensor], Tensor]) -> None:
    """A module that was looked at first is trained with the same program."""
    graph = Graph(function, torch.randn(3, 5))
    stack, fusion = torch.randn(2, 3, 5), Fusion(**EAGER)

    def compiled(stack: Tensor) -> Tensor:
        return fusion(graph.nodes, graph.values(jg.Series(stack, 2)), 2, graph.result, None).stacked()

    def plain(stack: Tensor) -> Tensor:
        return evaluate(graph.nodes, graph.values(jg.Series(stack, 2)), 2)[graph.result].stacked()

    with torch.no_grad():
        torch.testing.assert_close(compiled(stack), plain(stack))
    stack.requires_grad_()
    found, expected = (torch.autograd.grad(run(stack).sum(), stack)[0] for run in (compiled, plain))
    torch.testing.assert_close(found, expected)
    assert len(fusion) == 1


def test_weights_are_read_at_each_call_and_numbers_are_not() -> None:
    """What is compiled holds for shapes, types and numbers, whatever is in tensors."""
    graph = Graph(lambda x, w: torch.tanh(x * w), torch.randn(3, 4), torch.randn(4))
    fusion = Fusion(**EAGER)
    for rows, dtype, weight, programs in (
        *((3, torch.float32, torch.tensor([1.0, 2.0, 3.0, 4.0]), 1), (3, torch.float32, torch.ones(4), 1)),
        *((2, torch.float32, torch.ones(4), 2), (2, torch.float64, torch.ones(4).double(), 3)),
        *((2, torch.float64, 2.0, 4), (2, torch.float64, 3.0, 5), (2, torch.float64, 3.0, 5)),
    ):
        values = graph.values(jg.Series(torch.randn(2, rows, 4, dtype=dtype), 2), weight)
        expected = evaluate(graph.nodes, {**values}, 2)[graph.result].stacked()
        torch.testing.assert_close(fusion(graph.nodes, values, 2, graph.result, None).stacked(), expected)
        assert len(fusion) == programs


def test_a_compiler_that_fails_is_named(traced: Callable[..., Example]) -> None:
    def broken(module: Any, inputs: Any) -> Any:
        raise RuntimeError("no compiler was found")

    example = traced(zoo.case("gpt2"))
    with pytest.raises(jg.JetGraphError, match=r"(?s)cannot compile a jet.*no compiler.*without fuse"):
        through(fused(example.graph, Fusion(backend=broken), example.inputs), 1)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_fused_paths(traced: Callable[..., Example]) -> None:
    """Through the compiler itself, from `jetgraph.compile`."""
    example = traced(zoo.case("gpt2"))
    expansion = jg.expand(example.graph, 1, orders="apart")
    paths = ["embed > L0.mlp^1 > logits^0", "embed > L1.mlp^1 > logits^0"]
    module = jg.compile(expansion, paths, fuse=True)
    assert "fused" in repr(module)
    expected = jg.compile(expansion, paths)(**example.inputs)
    found = module(**example.inputs)
    for path, value in expected.terms.items():
        torch.testing.assert_close(found.terms[path], value, rtol=1e-4, atol=1e-4 * float(value.detach().abs().max()))
    sum(value.sum() for value in module(**example.inputs).terms.values()).backward()
    assert all(
        p.grad is not None and bool(p.grad.isfinite().all()) for n, p in module.named_parameters() if ".0.mlp" in n
    )
