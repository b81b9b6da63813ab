"""Everything with the model on a CUDA device, against the CPU. Without a device, `tests.test_devices` has to do."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

import jetgraph as jg
from tests.jets import test_closed
from tests.placement import APPLICATIONS, Placed
from tests.zoo import CASES

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

DEVICE = torch.device("cuda", 0)
BY_NAME = {case.name: case for case in CASES}
NAMES = ("gpt2", "llama")
HALVES = (torch.bfloat16, torch.float16)
PLAIN = (
    "replay",
    "order 0",
    "order 1",
    "order 2",
    "terms as directions",
    "heads",
    "neurons",
    "frozen",
    "modules move",
    "storage",
)

models = pytest.mark.parametrize("name", NAMES)


@functools.cache
def placed(name: str, dtype: torch.dtype = torch.float32) -> Placed:
    """The model traced on the CPU, and traced on the device."""
    case = BY_NAME[name]
    inputs = case.inputs()
    here = jg.trace(case.build().to(dtype), **inputs)
    given = pytree.tree_map_only(Tensor, lambda leaf: leaf.to(DEVICE), inputs)
    there = jg.trace(case.build().to(DEVICE, dtype), **given)
    # Values in half precision pass some ten roundings on their way, each half an eps, on either device.
    digits = 1e-4 if dtype == torch.float32 else 16 * torch.finfo(dtype).eps
    return Placed(here, inputs, DEVICE, there, digits)


@models
def test_trace_is_the_cpus(name: str) -> None:
    found, expected = placed(name).there, placed(name).graph
    assert {tensor.device for tensor in found.traced.tensors.values()} == {DEVICE}
    assert found.outline == expected.outline
    assert [join.name for join in found.joins] == [join.name for join in expected.joins]
    assert found.check is not None
    assert found.check.error <= 1e-5 * found.check.scale


@models
@pytest.mark.parametrize("check", [*PLAIN, *APPLICATIONS])
def test_results_are_the_cpus(name: str, check: str) -> None:
    with torch.no_grad():
        placed(name).checks()[check]()


@models
def test_a_graph_moves_to_the_device(name: str) -> None:
    """As one that was traced there."""
    moved = Placed(placed(name).graph, placed(name).inputs, DEVICE)
    with torch.no_grad():
        moved.replay()
        moved.terms(order=1)


@models
@pytest.mark.parametrize("dtype", HALVES, ids=["bfloat16", "float16"])
@pytest.mark.parametrize("check", ["replay", "order 0", "order 1", "heads", "frozen", "modules move"])
def test_half_precision(name: str, dtype: torch.dtype, check: str) -> None:
    with torch.no_grad():
        placed(name, dtype).checks()[check]()


@models
def test_order_2_in_bfloat16(name: str) -> None:
    """Around a centre that is far from the stream the second order may leave the range of float16."""
    with torch.no_grad():
        placed(name, torch.bfloat16).terms(order=2)


@models
@pytest.mark.parametrize("dtype", HALVES, ids=["bfloat16", "float16"])
def test_applications_in_half_precision(name: str, dtype: torch.dtype) -> None:
    """They run; rounding decides ties and ranks, so tables are not compared."""
    graph, ids = placed(name, dtype).there, placed(name, dtype).given["input_ids"]
    lens = jg.lens(graph, ids, order=1)
    assert bool(lens.logits.isfinite().all())
    joint = jg.joint_lens(graph, ids)
    torch.testing.assert_close(joint.weights.sum(-1), torch.ones_like(joint.weights[..., 0]))
    assert len(jg.ngrams(graph, top=5).scores) == 5


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=["float32", "bfloat16", "float16"])
def test_jets(dtype: torch.dtype) -> None:
    """Against float64 on the CPU, with the same rounded weights."""
    torch.manual_seed(0)
    module: Any = torch.nn.Sequential(torch.nn.LayerNorm(16), torch.nn.Linear(16, 32), torch.nn.GELU("tanh"))
    module = module.requires_grad_(False).to(dtype)
    x, v = torch.randn(5, 16).to(dtype), (0.3 * torch.randn(5, 16)).to(dtype)
    expected = jg.jet(module.double(), x.double(), v.double(), 4)
    found = jg.jet(module.to(DEVICE, dtype), x.to(DEVICE), v.to(DEVICE), 4)
    assert found.device == DEVICE
    errors = (found.cpu().double() - expected).flatten(1).norm(dim=1) / expected.flatten(1).norm(dim=1)
    bounds = torch.arange(1, 6) * (2 * torch.finfo(dtype).eps + 1e-6)
    assert bool((errors <= bounds).all()), errors


@pytest.mark.parametrize(("name", "order", "span"), test_closed.CASES)
@torch.no_grad()
def test_closed_forms_of_activations(name: str, order: int, span: tuple[int, ...]) -> None:
    """Above order 0 against float64 on the CPU, entry by entry."""
    x = test_closed.series(test_closed.centres(), order, span)
    found = test_closed.of_rule(name, x.like(x.coefficients.to(DEVICE))).stacked().cpu()
    exact = test_closed.of_rule(name, x.like(x.coefficients.double())).stacked()
    known = x.coefficient(0).abs() < 14 if name == "tanh" else slice(None)
    test_closed.check(found[1:, known].flatten(), exact[1:, known].flatten())


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("dtype", HALVES, ids=["bfloat16", "float16"])
@torch.no_grad()
def test_jets_of_a_gated_perceptron_called_again(dtype: torch.dtype, order: int) -> None:
    """As code it gives what it gave before, and what it gives on the CPU up to roundings."""
    torch.manual_seed(0)
    gate, up, down = (torch.nn.Linear(*sizes, bias=False).to(dtype) for sizes in ((16, 64), (16, 64), (64, 16)))

    class Perceptron(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate, self.up, self.down = gate, up, down

        def forward(self, x: Tensor) -> Tensor:
            return self.down(torch.nn.functional.silu(self.gate(x)) * self.up(x))

    module, (x, v) = Perceptron().requires_grad_(False), torch.randn(2, 5, 16).to(dtype)
    expected = jg.jet(module.double(), x.double(), v.double(), order)
    module.to(DEVICE, dtype)
    found = [jg.jet(module, x.to(DEVICE), v.to(DEVICE), order) for _ in range(4)]
    assert all(torch.equal(each, found[0]) for each in found)
    errors = (found[0].cpu().double() - expected).flatten(1).norm(dim=1) / expected.flatten(1).norm(dim=1)
    assert bool((errors <= torch.arange(1, order + 2) * 2 * torch.finfo(dtype).eps).all()), errors
