"""What is said where a model, an example or an option is refused."""

from __future__ import annotations

import contextlib
import pathlib
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import jetgraph as jg
from tests import zoo
from tests.tracing.models import Residual, Returns, X


def test_a_refusal_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    """The module and the line of the model's code that was met, and nothing else on any stream."""

    class Chooses(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 1 if float(x.sum()) > 0 else x

    model = nn.Sequential(Residual(), Chooses()).eval()
    with pytest.raises(jg.TraceError) as caught:
        jg.trace(model, X)
    line = str(caught.value)
    assert re.fullmatch(
        rf"torch.export refuses Sequential: its control flow depends on the values of tensors, in module '1' at "
        rf"{re.escape(__file__)}:\d+, `return x \+ 1 if float\(x.sum\(\)\) > 0 else x`\. .*torch\.where.*",
        line,
    )
    assert capfd.readouterr() == ("", "")


def test_a_hook_that_refuses(capfd: pytest.CaptureFixture[str]) -> None:
    model = nn.Sequential(Residual(), Residual()).eval()
    model[1].linear.register_forward_hook(lambda module, given, out: out if float(out.sum()) < 1e9 else None)
    with pytest.raises(
        jg.TraceError, match=rf"values of tensors, in module '1.linear' at {re.escape(__file__)}:\d+, `"
    ):
        jg.trace(model, X)
    assert capfd.readouterr() == ("", "")


def test_a_model_that_raises_says_where() -> None:
    class Raises(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise ValueError("not like this\nand more")

    says = rf"Sequential: ValueError: not like this, in module '1' at {re.escape(__file__)}:\d+, `raise .*by itself"
    with pytest.raises(jg.TraceError, match=says):
        jg.trace(nn.Sequential(Residual(), Raises()).eval(), X)


def test_scripted_parts_are_named() -> None:
    model = nn.Sequential(nn.Linear(3, 3), torch.jit.script(nn.Sequential(nn.Linear(3, 3), nn.GELU()))).eval()
    with pytest.raises(jg.TraceError, match=r"module '1' is TorchScript, .* put the module that it was made from"):
        jg.trace(model, torch.ones(2, 3))


@pytest.mark.parametrize("model", [None, nn.Linear, 3, {"weight": X}])
def test_what_is_no_model(model: Any) -> None:
    says = "neither a module nor a function of tensors: (pass|load)|Linear is a class: pass an object"
    with pytest.raises(jg.TraceError, match=says):
        jg.trace(model, X)


@pytest.mark.parametrize("name", ["no/such/folder/", pathlib.Path("gpt2")])
def test_a_name_of_nothing(name: Any) -> None:
    with pytest.raises(jg.LoadError, match=r"cannot load|there is no folder"):
        jg.trace(name, X)


@pytest.mark.parametrize("options", [{"dynamic": "yes"}, {"dynamic": 10**30}, {"dynamic": None}])
def test_odd_dynamic(options: Any) -> None:
    with pytest.raises(jg.InputError, match=r"dynamic= of jetgraph\.trace is True or False"):
        jg.trace(Residual().eval(), X, **options)


@pytest.mark.parametrize(
    "output",
    [True, 1.5, (0,), X, pytest.param(10**6000, id="huge"), -(10**30), "", "x" * 10**5, "__class__", "a..b", "-1.0"],
)
def test_odd_output(output: Any) -> None:
    """One error of ours, of a readable length."""
    with pytest.raises(jg.JetGraphError) as caught:
        jg.trace(Returns(lambda h: (h, {"a": h})).eval(), X, output=output)
    assert len(str(caught.value)) < 400


def test_ids_of_the_example_that_the_embedding_does_not_have() -> None:
    """The input, the value and the table, at once."""
    case = zoo.case("gpt2")
    ids = case.inputs()["input_ids"]
    ids[0, 2] = 99
    says = rf"'input_ids' .*'transformer.wte'.* 0 to {zoo.VOCAB - 1}.* 1 of {ids.numel()} .*such as 99"
    with pytest.raises(jg.InputError, match=says):
        jg.trace(case.build(), input_ids=ids)
    with pytest.raises(jg.InputError, match=r"a table: .* 0 to 3.*such as -2"):
        jg.trace(Returns(lambda h: F.embedding(torch.tensor([-2]), h[0].unsqueeze(1))).eval(), X)


@pytest.mark.parametrize("shape", [(0, 4), (2, 0, 4)])
def test_an_empty_example(shape: tuple[int, ...]) -> None:
    with pytest.raises(jg.InputError, match=r"input 'x' is empty: its shape is \("):
        jg.trace(Residual().eval(), torch.zeros(shape))
    with pytest.raises(jg.InputError, match="input 'x' is empty"):
        jg.trace(Residual().eval(), torch.zeros(*(3 for _ in shape[:-1]), 4))(torch.zeros(shape))


def test_an_example_is_left_as_it_was() -> None:
    class Overwrites(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.add_(1) * 2

    x = X.clone()
    with contextlib.suppress(jg.TraceError):
        jg.trace(Overwrites().eval(), x)
    assert torch.equal(x, X)


@pytest.mark.parametrize(
    "squeezed", [lambda x: x.squeeze(0), lambda x: x.squeeze((0,)), lambda x: x.squeeze()], ids=["dim", "dims", "all"]
)
def test_a_dimension_that_is_squeezed_only_at_size_1(squeezed: Callable[[Tensor], Tensor]) -> None:
    class Squeezes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = Residual()

        def forward(self, x: Tensor) -> Tensor:
            return self.block(squeezed(x))

    model, lone, two = Squeezes().eval(), X[None, :2], X.unflatten(0, (-1, 1)).expand(-1, 2, -1)
    assert torch.equal(jg.trace(model, lone)(lone), model(lone))
    graph = jg.trace(model, two)
    assert torch.equal(graph(two), model(two))
    with pytest.raises(jg.InputError, match="batch 1"):
        graph(lone)
