"""Functions are traced as modules are."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import jetgraph as jg
from jetgraph.export.callables import wrap_function
from jetgraph.tracing.trace import canonical
from tests.tracing.models import Residual, X, replayed


def test_a_function_is_wrapped_and_a_module_is_not() -> None:
    model = Residual()
    assert wrap_function(model) is model
    wrapped = wrap_function(lambda x: torch.sin(x) + 1)
    assert not wrapped.training
    traced = canonical(wrapped, (X,))
    assert torch.equal(replayed(traced, X), torch.sin(X) + 1)


class Owner:
    """An object that is no module, but has one."""

    def __init__(self, net: nn.Module) -> None:
        self.net = net

    def __call__(self, x: Tensor) -> Tensor:
        return self.net(x)

    def doubled(self, x: Tensor) -> Tensor:
        return 2 * self.net(x)


def _from_a_list(model: nn.Module) -> Callable[[Tensor], Tensor]:
    nets = [model]
    return lambda x: nets[0](x)


def _of_functions(model: nn.Module) -> Callable[[Tensor], Tensor]:
    inner = _from_a_list(model)
    return lambda x: 3 * inner(x)


TRACEABLE: dict[str, tuple[Callable[[nn.Module], Any], float]] = {
    "a closure": (lambda model: lambda x: model(x) + model(x), 2),
    "a default": (lambda model: lambda x, net=model: net(x), 1),
    "a collection": (_from_a_list, 1),
    "a function of functions": (_of_functions, 3),
    "a method of a module": (lambda model: model.forward, 1),
    "a method of another object": (lambda model: Owner(model).doubled, 2),
    "a partial": (lambda model: partial(_from_a_list(model)), 1),
    "an fx graph": (fx.symbolic_trace, 1),
    "an exported program": (lambda model: torch.export.export(model, (X,)), 1),
    "its module": (lambda model: torch.export.export(model, (X,)).module(), 1),
}
"""Ways to say what a module computes, and the factor on it."""


@pytest.mark.parametrize("kind", TRACEABLE)
def test_what_can_be_traced(kind: str) -> None:
    model = Residual().eval()
    make, factor = TRACEABLE[kind]
    graph = jg.trace(make(model), X)
    assert graph.joins
    assert any(name.endswith("linear.weight") for name in graph.traced.tensors)
    with torch.no_grad():
        assert torch.allclose(graph(X), factor * model(X))
        assert torch.allclose(graph(**dict.fromkeys(graph.traced.input_shapes, X)), factor * model(X))


def _scripted(x: Tensor) -> Tensor:
    return torch.sin(x)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize(
    ("given", "said"),
    [
        (lambda: Owner(Residual()), r"an? Owner is neither a module nor a function.*pass the module.*its \.net"),
        (lambda: torch.jit.trace(Residual().eval(), X), r"TopLevelTracedModule is TorchScript.*pass the module"),
        (lambda: torch.jit.script(_scripted), r"ScriptFunction is TorchScript.*pass the module or function"),
        (lambda: fx.symbolic_trace(nn.Sequential(nn.Linear(4, 4), nn.Dropout())), r"'0' is in training mode"),
        (lambda: Residual().forward, r"'modules_read\.0' is in training mode"),
    ],
)
def test_what_cannot_be_traced_is_told_in_a_line(given: Callable[[], Any], said: str) -> None:
    with pytest.raises(jg.TraceError, match=said) as raised:
        jg.trace(given(), X)
    assert "\n" not in str(raised.value)


def test_applications_take_what_can_be_traced() -> None:
    model = Residual().eval()
    found = jg.ablate(lambda x: model(x), "*.mlp > logits", X[:, None])
    expected = jg.ablate(model, "*.mlp > logits", X[:, None])
    assert found.to_dataframe().equals(expected.to_dataframe())
    with pytest.raises(jg.TraceError, match=r"an? Owner is neither .*its \.net"):
        jg.lens(Owner(model), X)


class Clashing(nn.Module):
    """Its arguments are called like options of `jetgraph.trace`."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor, output: Tensor, dynamic: Tensor, model: Tensor, inputs: Tensor) -> dict[str, Tensor]:
        y = x + torch.tanh(self.linear(x))
        return {"first": y * output + dynamic, "second": y * model - inputs}


def test_arguments_called_like_options() -> None:
    model = Clashing().eval()
    given = {name: torch.randn(3, 4) for name in ("x", "output", "dynamic", "model", "inputs")}
    with torch.no_grad():
        expected = model(**given)["second"]
        graph = jg.trace(model, inputs=given, output="second", dynamic=False)
        assert torch.equal(graph(**given), expected)
        assert torch.equal(jg.compile(jg.expand(graph, recipe="components"))(**given).output, expected)
        positional = jg.trace(model, *list(given.values())[:3], model=given["model"], inputs=given["inputs"])
        assert torch.equal(positional(**given), model(**given)["first"])
    for name in ("output", "dynamic"):
        with pytest.raises(jg.InputError, match=rf"{name}= of jetgraph\.trace .*inputs={{'{name}': \.\.\."):
            jg.trace(model, given["x"], **{name: given[name]})


class Subtracting(torch.nn.Module):
    """h − tanh(W h), then h + tanh(W' h)/2, and h − tanh(W'' h) the other way round."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (torch.nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = x - torch.tanh(self.first(x))
        x = torch.add(x, torch.tanh(self.second(x)), alpha=0.5)
        return torch.rsub(torch.tanh(self.third(x)), x)


def test_differences_and_scaled_sums_are_joins() -> None:
    model = Subtracting().eval()
    graph = jg.trace(model, X)
    found = [(join.name, join.kind) for join in graph.joins]
    assert found == [(name, "identity") for name in ("first", "second", "third")]
    expansion = jg.expand(graph, order=0, recipe="path")
    values = jg.compile(expansion, "embed > L0.mlp > logits")(X)
    (term,) = values.terms.values()
    assert torch.allclose(term, -torch.tanh(model.first(X)))
    assert torch.allclose(values.output, model(X))


class WritesOut(torch.nn.Module):
    """Sums and layers into buffers that are given, as code for inference has them: an error with derivatives."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        total, layer = torch.empty_like(x), torch.empty_like(x)
        torch.add(x, torch.tanh(self.first(x), out=layer), out=total)
        x = total.clone()
        torch.add(x, torch.tanh(self.second(x), out=layer), out=total)
        return total


@pytest.mark.parametrize("dynamic", [False, True])
def test_what_is_written_out_without_derivatives(dynamic: bool) -> None:
    model = WritesOut().eval()
    model.second.bias.requires_grad_(False)
    graph = jg.trace(model, X, dynamic=dynamic)
    assert [(join.name, join.kind) for join in graph.joins] == [("first", "identity"), ("second", "identity")]
    with torch.no_grad():
        torch.testing.assert_close(graph(X + 1), model(X + 1))
    assert [weight.requires_grad for weight in model.parameters()] == [True, True, True, False]
