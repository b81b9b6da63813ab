"""The canonical graph: what is traced, which output and inputs it has, and what is said where tracing is refused."""

from __future__ import annotations

import contextlib
import copy
import functools
import itertools
import json
import pathlib
import re
from collections import OrderedDict
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensor

import jetgraph as jg
from jetgraph.export.callables import wrap_function
from jetgraph.jets.interpreter import evaluate
from jetgraph.tracing.trace import Traced, canonical, run_model
from tests import zoo


def replayed(traced: Traced, *args: Any, **kwargs: Any) -> Tensor:
    """The traced program run as it stands."""
    values: dict[fx.Node, Any] = {**traced.state_values(), **traced.input_values(args, kwargs)}
    with torch.no_grad():
        return evaluate(traced.graph.nodes, values)[traced.output]


def operators(traced: Traced) -> list[str]:
    return [str(node.target) for node in traced.graph.nodes if node.op == "call_function"]


class Residual(nn.Module):
    """x + tanh(W x), with a buffer, a shared parameter and switches for what a test needs."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.linear = nn.Linear(width, width)
            self.dropout = nn.Dropout(0.5)
            self.register_buffer("shift", torch.randn(width))

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return x + self.dropout(torch.tanh(self.linear(x) + self.shift)) * scale


class Returns(nn.Module):
    """Returns whatever `make` makes of a linear layer's result."""

    def __init__(self, make: Any) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.make = make

    def forward(self, x: Tensor) -> Any:
        return self.make(self.linear(x))


X = torch.linspace(-1, 1, 12).reshape(3, 4)


# The output


@pytest.mark.parametrize(
    ("make", "output", "name", "expected"),
    [
        (lambda h: h, None, "output", lambda h: h),
        (lambda h: {"a": h, "logits": 2 * h}, None, "logits", lambda h: 2 * h),
        (lambda h: {"a": h, "b": 2 * h}, None, "a", lambda h: h),
        (lambda h: {"a": h, "b": 2 * h}, "b", "b", lambda h: 2 * h),
        (lambda h: (h.argmax(-1), h, 2 * h), None, "1", lambda h: h),
        (lambda h: (h, 2 * h), 1, "1", lambda h: 2 * h),
        (lambda h: (h, 2 * h), -1, "-1", lambda h: 2 * h),
        (lambda h: {"states": (h, 3 * h)}, "states.1", "states.1", lambda h: 3 * h),
        (lambda h: OrderedDict(z=h.argmax(-1), inner={"y": h + 1}), None, "inner.y", lambda h: h + 1),
    ],
)
def test_output(make: Any, output: str | int | None, name: str, expected: Any) -> None:
    """`logits` if there is one, else the first float tensor, else what the caller names."""
    model = Returns(make).eval()
    traced = canonical(model, (X,), output=output)
    assert traced.output_name == name
    with torch.no_grad():
        assert torch.equal(replayed(traced, X), expected(model.linear(X)))
        assert torch.equal(run_model(model, (X,), {}, output), expected(model.linear(X)))


@pytest.mark.parametrize(
    ("make", "output", "says"),
    [
        (lambda h: {"a": h}, "b", "no 'b'; there are 'a'"),
        (lambda h: {"a": h.argmax(-1), "b": h}, "a", "'a' is a torch.int64, not a float tensor; there are 'b'"),
        (lambda h: (h, 2 * h), 2, "no '2'; there are '0', '1'"),
        (lambda h: h, "features", "'features' was asked for, but the model returns a single tensor"),
        (lambda h: h.argmax(-1), "x", "single tensor"),
        (lambda h: {"ids": h.argmax(-1)}, None, "no float tensor"),
    ],
)
def test_an_output_that_is_not_there(make: Any, output: str | int | None, says: str) -> None:
    with pytest.raises(jg.TraceError, match=says):
        canonical(Returns(make).eval(), (X,), output=output)


def test_only_what_the_output_needs_is_kept() -> None:
    """A head that another output needs is no part of the graph."""
    model = zoo.case("returns_dict").build()
    traced = canonical(model, kwargs=zoo.case("returns_dict").inputs(), output="features", dynamic=False)
    assert not any(name.startswith("head") for name in traced.tensors)
    assert any(name.startswith("blocks.1") for name in traced.tensors)


def test_an_output_that_the_input_does_not_change() -> None:
    with pytest.raises(jg.JetGraphError, match="input"):
        jg.trace(Returns(lambda h: torch.ones(3)).eval(), X)


# The graph


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


def test_control_flow_operators_are_named() -> None:
    class Conditional(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cond(x.sum() > 0, lambda y: y + 1, lambda y: y - 1, (x,))

    with pytest.raises(jg.TraceError, match="cond"):
        canonical(Conditional().eval(), (X,))


# The model


def test_state_is_the_models_own() -> None:
    """Nothing is copied: parameters and buffers are the same objects under their own names."""
    model = Residual().eval()
    traced = canonical(model, (X,))
    assert {name: id(tensor) for name, tensor in traced.tensors.items()} == {
        name: id(tensor) for name, tensor in [*model.named_parameters(), *model.named_buffers()]
    }
    assert {binding.kind for binding in traced.bindings.values()} == {"parameter", "buffer", "input"}


def test_the_model_is_left_alone() -> None:
    model = Residual().eval()
    model.linear.weight.requires_grad_(False)
    seen: list[Tensor] = []
    handle = model.linear.register_forward_hook(lambda module, args, result: seen.append(result))
    before = {name: (id(value), value.requires_grad) for name, value in model.named_parameters()}
    attributes = sorted(model.__dict__), sorted(model.linear._forward_hooks)
    canonical(model, (X,))
    assert {name: (id(value), value.requires_grad) for name, value in model.named_parameters()} == before
    assert (sorted(model.__dict__), sorted(model.linear._forward_hooks)) == attributes
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    handle.remove()


def test_training_mode_is_refused_before_anything_runs() -> None:
    class Explodes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise AssertionError("ran")

    with pytest.raises(jg.TraceError, match=r"'Explodes' is in training mode.*model\.eval\(\)"):
        canonical(Explodes(), (X,))


def test_what_export_refuses() -> None:
    """Control flow over values: the error names the model, what the exporter said and what to check."""

    class Branches(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 1 if float(x.sum()) > 0 else x - 1

    with pytest.raises(jg.TraceError, match=r"torch\.export refuses Branches: .*control flow") as caught:
        jg.trace(Branches().eval(), X)
    assert caught.value.__cause__ is not None


def test_a_model_that_fails_by_itself() -> None:
    with pytest.raises(jg.TraceError, match=r"refuses Linear: .*runs on these inputs by itself"):
        jg.trace(nn.Linear(3, 3).eval(), X)


def test_a_random_model_is_refused() -> None:
    class Random(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.rand_like(x)

    with pytest.raises(jg.TraceError, match="random"):
        jg.trace(Random().eval(), X)


# Sizes


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_batch_and_length_are_free(batch: int) -> None:
    """From an example of batch 1 too, which the exporter by itself takes for a constant."""
    case = zoo.case("root_loop")
    model = case.build()
    traced = canonical(model, kwargs=case.inputs(batch))
    assert traced.dynamic == "all"
    assert traced.note == ""
    for other, length in ((1, 7), (4, 3), (2, 1)):
        inputs = case.inputs(other, length)
        with torch.no_grad():
            torch.testing.assert_close(replayed(traced, **inputs), model(**inputs), rtol=1e-5, atol=1e-6)


def test_length_1_is_free_too() -> None:
    case = zoo.case("root_loop")
    traced = canonical(case.build(), kwargs=case.inputs(1, 1))
    assert all(isinstance(size, str) for size in traced.input_shapes["input_ids"])
    with torch.no_grad():
        inputs = case.inputs(3, 5)
        torch.testing.assert_close(replayed(traced, **inputs), case.build()(**inputs), rtol=1e-5, atol=1e-6)


class FixedLength(nn.Module):
    """Mixes positions with a matrix, so that only the batch is free."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        rows = [row + torch.tanh(row) for row in x.unbind(1)]
        return torch.stack(rows, 1) + self.mix(x)


class FixedBatch(nn.Module):
    """Walks over the batch in Python, so that nothing is free."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] != 3:
            raise ValueError("three rows, please")
        return x + torch.tanh(self.mix(x))


def test_sizes_that_the_model_fixes_are_numbers() -> None:
    graph = jg.trace(FixedLength().eval(), torch.randn(3, 5, 4))
    (shape,) = graph.traced.input_shapes.values()
    assert isinstance(shape[0], str)
    assert shape[1:] == (5, 4)
    graph(torch.randn(2, 5, 4))
    with pytest.raises(jg.InputError, match=r"shape \(2, 6, 4\)"):
        graph(torch.randn(2, 6, 4))


def test_a_fixed_batch_is_refused_later() -> None:
    graph = jg.trace(FixedBatch().eval(), X)
    assert graph.traced.input_shapes == {"x": (3, 4)}
    with pytest.raises(jg.InputError, match=r"'x' has shape \(2, 4\), but the trace takes \[3, 4\]"):
        graph(X[:2])


def test_static_sizes_are_noted_where_export_refuses_dynamic_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph says in its repr, and again where an input does not fit, what was refused and what it means."""
    export = torch.export.export

    def refusing(model: Any, args: Any, **options: Any) -> Any:
        if options["dynamic_shapes"] is not None:
            raise RuntimeError("sizes of this scan have to be known\nand more")
        return export(model, args, **options)

    monkeypatch.setattr("torch.export.export", refusing)
    graph = jg.trace(Residual().eval(), X)
    assert graph.traced.dynamic == "none"
    assert "torch.export refused dynamic sizes (sizes of this scan have to be known)" in graph.traced.note
    assert "fixed input shapes" in repr(graph)
    with pytest.raises(jg.InputError, match=r"refused dynamic sizes \(sizes of this scan"):
        graph(X[:2])
    assert torch.equal(graph(X), Residual().eval()(X))


class Undecided(nn.Module):
    """What it does depends on the values."""

    def forward(self, x: Tensor) -> Tensor:
        return x if float(x.sum()) > 0 else x + 1


def test_a_refused_trace_leaves_the_inputs_alone() -> None:
    """The exporter marks sizes on its examples, and a later trace of the same tensor would take them for dynamic."""
    x = X.clone()
    with pytest.raises(jg.TraceError, match="refuses Undecided"):
        jg.trace(Undecided().eval(), x)
    assert not vars(x)
    assert jg.trace(Residual().eval(), x, dynamic=False).traced.dynamic == "none"


def test_only_the_batch_is_free_where_export_allows_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    export = torch.export.export

    def refusing(model: Any, args: Any, **options: Any) -> Any:
        (shapes,), _ = options["dynamic_shapes"]
        if len(shapes) > 1:
            raise RuntimeError("no length, please")
        return export(model, args, **options)

    monkeypatch.setattr("torch.export.export", refusing)
    graph = jg.trace(Residual().eval(), torch.randn(2, 5, 4))
    assert graph.traced.dynamic == "batch"
    assert "no length, please" in graph.traced.note
    assert "only the batch size may change" in graph.traced.note
    assert graph(torch.randn(3, 5, 4)).shape == (3, 5, 4)
    with pytest.raises(jg.InputError, match="only the batch size may change"):
        graph(torch.randn(3, 6, 4))


def test_mamba_falls_back_and_says_so() -> None:
    """Its scan is unrolled over the length; the repr of the graph shows what is fixed."""
    case = zoo.case("mamba")
    graph = jg.trace(case.build(), **case.inputs())
    assert all(isinstance(size, int) for size in graph.traced.input_shapes["input_ids"][1:])
    assert "fixed" in repr(graph) or "7" in repr(graph).splitlines()[1]
    with pytest.raises(jg.InputError, match=r"\(2, 9\)"):
        graph(**case.inputs(2, 9))


# Inputs


def test_a_cache_is_switched_off() -> None:
    """Without `use_cache=False` transformers' models return keys and values, which are no part of the output."""
    case = zoo.case("llama")
    inputs = {"input_ids": case.inputs()["input_ids"]}
    model = case.build()
    assert model.config.use_cache
    traced = canonical(model, kwargs=inputs, dynamic=False)
    assert traced.output_name == "logits"
    assert traced.defaults["use_cache"] is False
    assert model.config.use_cache
    with torch.no_grad():
        assert torch.equal(replayed(traced, **inputs), model(**inputs).logits)


def test_options_are_fixed_by_the_trace() -> None:
    """What is no tensor is part of the program: it may be left out or repeated, but not changed."""
    model = Residual().eval()
    traced = canonical(model, (X,), {"scale": 2.0})
    with torch.no_grad():
        assert torch.equal(replayed(traced, X), model(X, scale=2.0))
    assert torch.equal(replayed(traced, X, scale=2.0), replayed(traced, X))
    with pytest.raises(jg.InputError, match=r"'scale' was fixed to 2\.0 by the trace and cannot be 3\.0"):
        traced.input_values((X,), {"scale": 3.0})
    with pytest.raises(jg.InputError, match="'other' was not among the inputs of the trace"):
        traced.input_values((X,), {"other": X})
    assert list(traced.input_values((X,), {"other": None}).values()) == [X]


def test_nested_inputs_have_dotted_names() -> None:
    class Nested(nn.Module):
        def forward(self, pair: dict[str, list[Tensor]]) -> Tensor:
            return pair["a"][0] + torch.sin(pair["a"][1])

    traced = canonical(Nested().eval(), kwargs={"pair": {"a": [X, 2 * X]}})
    assert set(traced.input_shapes) == {"pair.a.0", "pair.a.1"}
    assert torch.equal(replayed(traced, pair={"a": [X, 3 * X]}), X + torch.sin(3 * X))
    with pytest.raises(jg.InputError, match=r"'pair\.a\.1' is missing"):
        traced.input_values((), {"pair": {"a": [X]}})


# Moves


def test_relocation_moves_the_types_that_the_trace_wrote_down() -> None:
    """A cast to the model's type follows the weights; one to another type stays, and what has not moved is kept."""

    class Casts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4).to(torch.bfloat16)

        def forward(self, x: Tensor) -> Tensor:
            wide = x.to(torch.float32)
            return self.linear((wide * wide.pow(2).mean(-1, keepdim=True).rsqrt()).to(torch.bfloat16))

    model = Casts().eval()
    traced = canonical(model, (X.bfloat16(),))
    assert traced.relocated(lambda name: traced.tensors[name]) is traced
    double = traced.relocated(lambda name: traced.tensors[name].double())
    assert replayed(double, X.double()).dtype == torch.float64
    assert {node.meta["dtype"] for node in double.graph.nodes if node.op == "call_function"} == {
        torch.float32,
        torch.float64,
    }
    assert all(tensor.dtype == torch.bfloat16 for tensor in traced.tensors.values())
    assert torch.equal(replayed(traced, X.bfloat16()), model(X.bfloat16()))


def test_meta() -> None:
    model = Residual().to("meta").eval()
    traced = canonical(model, (X.to("meta"),))
    assert traced.meta
    assert not canonical(Residual().eval(), (X,)).meta


# Functions


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
        (lambda: "gpt2", r"the str 'gpt2' is neither a module nor a function of tensors: load the model"),
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


class Masked(nn.Module):
    """x + tanh(W x), and at some places something else, by an operator that reads the mask as its kind says."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return (x + torch.tanh(self.linear(x))) * (~mask if not mask.is_floating_point() else mask)[:, None]


@pytest.mark.parametrize("traced_as", [torch.bool, torch.int64, torch.uint8, torch.float32])
@pytest.mark.parametrize("called_as", [torch.bool, torch.int32, torch.uint8, torch.float64, torch.complex64])
def test_inputs_of_another_kind_are_refused(traced_as: torch.dtype, called_as: torch.dtype) -> None:
    model, mask = Masked().eval(), torch.tensor([1, 0, 1])
    graph = _masked_graph(traced_as)
    if called_as == {torch.int64: torch.int32}.get(traced_as, traced_as):
        assert graph(X, mask.to(called_as)).shape == model(X, mask.to(called_as)).shape
        return
    said = rf"input 'mask' is \w+ \({called_as}\), but was \w+ \({traced_as}\) in the trace.*convert it, or trace"
    if (traced_as, called_as) == (torch.float32, torch.float64):
        said = "input 'mask' is of torch.float64, but was of torch.float32 in the trace"
    with pytest.raises(jg.InputError, match=said):
        graph(X, mask.to(called_as))


@cache
def _masked_graph(dtype: torch.dtype) -> jg.ResidualGraph:
    return jg.trace(Masked().eval(), X, torch.tensor([1, 0, 1]).to(dtype))


def test_an_input_may_be_given_by_position_or_by_name() -> None:
    graph = jg.trace(Residual().eval(), X)
    assert torch.equal(graph(X), graph(x=X))


class Subtracting(torch.nn.Module):
    """h − tanh(W h), then h + 0.5 W' h tanh(h)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x - torch.tanh(self.first(x))
        return torch.add(x, torch.tanh(self.second(x)), alpha=0.5)


def test_differences_and_scaled_sums_are_joins() -> None:
    model = Subtracting().eval()
    graph = jg.trace(model, X)
    assert [(join.name, join.kind) for join in graph.joins] == [("first", "identity"), ("second", "identity")]
    expansion = jg.expand(graph, order=0, recipe="path")
    values = jg.compile(expansion, "embed > L0.mlp > logits")(X)
    (term,) = values.terms.values()
    assert torch.allclose(term, -torch.tanh(model.first(X)))
    assert torch.allclose(values.output, model(X))


def test_inputs_follow_the_weights_to_meta() -> None:
    with torch.device("meta"):
        model = Subtracting().eval()
    assert len(jg.trace(model, X).joins) == 2


def test_inputs_longer_than_the_positions() -> None:
    """Told where it happens, whether the graph is run, or traced on such an input; by name of the model's own table."""
    model = zoo.case("gpt2").build()
    rows = model.get_submodule("transformer.wpe").weight.shape[0]
    long = torch.zeros(1, rows + 2, dtype=torch.long)
    expected = rf"'transformer.wpe'.* 0 to {rows - 1}.* 2 of {rows + 2} values are not \(such as {rows}\)"
    graph = jg.trace(model, **zoo.case("gpt2").inputs())
    for run in (lambda: graph(input_ids=long), lambda: jg.trace(model, input_ids=long), lambda: jg.lens(graph, long)):
        with pytest.raises(jg.InputError, match=expected):
            run()


def test_ids_that_the_embedding_does_not_have() -> None:
    case = zoo.case("gpt2")
    graph = jg.trace(case.build(), **case.inputs())
    ids = case.inputs()["input_ids"]
    for wrong in (zoo.VOCAB, -1):
        ids[0, 2] = wrong
        with pytest.raises(jg.InputError, match=f"'input_ids' holds {wrong}, but its embedding has the rows 0 to 52"):
            graph(input_ids=ids)


# Sizes for which a trace holds


class BySize(nn.Module):
    """x + c · tanh(W x), where c depends on a size."""

    def __init__(self, factor: Callable[[int, int], float]) -> None:
        super().__init__()
        self.mlp = nn.Linear(4, 4)
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x + self.factor(x.shape[0], x.shape[1]) * torch.tanh(self.mlp(x))


BY_SIZE: list[tuple[str, Callable[[int, int], float], tuple[int, int], str]] = [
    ("batch of one", lambda batch, length: 1 if batch == 1 else 3, (2, 5), "batch 1, .* batch >= 2"),
    ("length of one", lambda batch, length: 1 if length < 2 else 3, (2, 5), "length 1, .* length >= 2"),
    ("one of both", lambda batch, length: 1 if batch * length < 3 else 3, (2, 5), "batch >= 2|batch.length"),
    ("long", lambda batch, length: 3 if length > 7 else 1, (2, 5), "length 8, .* length <= 7"),
    ("short", lambda batch, length: 3 if length > 7 else 1, (2, 9), "length 7, .* length >= 8"),
    ("odd", lambda batch, length: 2 if length % 2 else 1, (2, 6), r"length 5, .*Mod\(length, 2\)"),
    ("all but one", lambda batch, length: 2 if length == 4 else 1, (2, 6), r"length 4, .*Ne\(length, 4\)"),
    ("product", lambda batch, length: 2 if batch * length > 20 else 1, (2, 6), r"batch 3 .*length 7, .* batch\*length"),
    ("both of one", lambda batch, length: 1 if batch + length == 2 else 3, (2, 5), r"batch 1 .*length 1, .* Max\("),
    ("each other", lambda batch, length: 2 if batch > length else 1, (2, 6), "batch 3 .*length 1|length 1"),
]


@pytest.mark.parametrize(("factor", "shape", "says"), [row[1:] for row in BY_SIZE], ids=[row[0] for row in BY_SIZE])
def test_a_size_for_which_the_model_does_something_else(
    factor: Callable[[int, int], float], shape: tuple[int, int], says: str
) -> None:
    """The graph is right, or refuses: for every batch and length around the example's, with the bound that it has."""
    model = BySize(factor).eval()
    graph = jg.trace(model, torch.randn(*shape, 4))
    refusals = []
    for batch, length in itertools.product((1, 2, 3), range(1, 11)):
        x = torch.randn(batch, length, 4)
        try:
            actual = graph(x)
        except jg.InputError as error:
            refusals.append(str(error))
            continue
        assert torch.allclose(actual, model(x), atol=1e-6), (batch, length)
    assert any(re.search(says, refusal) for refusal in refusals)
    assert all("'x'" in refusal and "trace the model again with such an input" in refusal for refusal in refusals)
    assert len(refusals) < 29


def test_guards_are_plain(tmp_path: pathlib.Path) -> None:
    """Texts, so that they go into files; a loaded graph has them too."""
    graph = jg.trace(BySize(lambda batch, length: 3 if length > 7 else 1).eval(), torch.randn(2, 5, 4))
    assert json.loads(json.dumps(graph.traced.guards)) == ["length <= 7"]
    with pytest.raises(jg.InputError, match="length <= 7"):
        jg.load(jg.save(graph, tmp_path))(torch.randn(2, 8, 4))
    assert jg.trace(Residual().eval(), torch.randn(2, 5, 4)).traced.guards == ()


@pytest.mark.parametrize("length", [4, 5, 8])
def test_patches_of_a_padded_input(length: int) -> None:
    """What memory looks like is no condition: multiples of four, also the one that makes a single patch."""

    class Patches(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x = F.pad(x, (0, 0, 0, -x.shape[1] % 4)) if x.shape[1] % 4 else x
            return x.view(x.shape[0], -1, 4, 4).sum(2)

    traced = canonical(Patches().eval(), (torch.randn(2, 8, 4),))
    x = torch.randn(1, length, 4)
    if length % 4:
        with pytest.raises(jg.InputError, match=r"length 5, .* Eq\(Mod\(length, 4\), 0\)"):
            replayed(traced, x)
    else:
        assert torch.allclose(replayed(traced, x), Patches()(x))


@pytest.mark.parametrize("limit", [1, 2])
def test_an_example_of_batch_1_that_cannot_be_doubled(limit: int) -> None:
    """Because the model does something else for more, or refuses more: then the batch is what it was."""

    class Lone(BySize):
        def forward(self, x: Tensor) -> Tensor:
            if x.shape[0] > limit:
                raise ValueError("too many")
            return super().forward(x)

    model = Lone(lambda batch, length: 1 if batch == 1 else 3).eval()
    x = torch.randn(1, 5, 4)
    graph = jg.trace(model, x)
    assert graph.traced.input_shapes == {"x": (1, "length", 4)}
    assert torch.equal(graph(x[:, :3]), model(x[:, :3]))
    with pytest.raises(
        jg.InputError, match=r"\(2, 5, 4\), but the trace takes \[1, length, 4\].* Trace the model again"
    ):
        graph(torch.randn(2, 5, 4))


def test_two_inputs_share_a_size() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + torch.sin(torch.cat([x, y], 1)[:, : x.shape[1]])

    traced = canonical(Two().eval(), (torch.randn(2, 5, 4), torch.randn(2, 3, 4)))
    assert replayed(traced, torch.randn(3, 6, 4), torch.randn(3, 2, 4)).shape == (3, 6, 4)
    with pytest.raises(jg.InputError, match=r"'y' has .* 2, but input 'x' has .* 3"):
        replayed(traced, torch.randn(3, 6, 4), torch.randn(2, 3, 4))


def test_a_mask_with_a_batch_of_its_own() -> None:
    """To the exporter its batch is another size; it may be 1 where that of the ids is."""
    case = zoo.case("bert")
    model = case.build()
    graph = jg.trace(model, **case.inputs())
    lone, two = case.inputs(1), case.inputs(2)
    assert torch.allclose(graph(**lone), model(**lone).logits, atol=1e-5)
    assert torch.allclose(graph(**two), model(**two).logits, atol=1e-5)
    with pytest.raises(
        jg.InputError, match="'attention_mask' has attention_mask_batch 1 and input 'input_ids' has batch 2"
    ):
        graph(input_ids=two["input_ids"], attention_mask=lone["attention_mask"])


# What a model makes when it runs


class Positions(nn.Module):
    """x + tanh(W x) + positions, with positions made as `make` does it."""

    def __init__(self, make: Callable[[Any, int], Tensor], **attributes: Any) -> None:
        super().__init__()
        self.mlp = nn.Linear(4, 4)
        self.make = make
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.mlp(x)) + self.make(self, x.shape[1])[: x.shape[1]]


def _table(rows: int) -> Tensor:
    return torch.arange(1.0 * rows).unsqueeze(1) / 7


_MODULE_WIDE: dict[str, Tensor] = {}
_kept_table = functools.lru_cache(_table)


def _as_attribute(model: Any, length: int) -> Tensor:
    if not hasattr(model, "table"):
        model.table = _table(64)
    return model.table


def _as_buffer(model: Any, length: int) -> Tensor:
    if not hasattr(model, "table"):
        model.register_buffer("table", torch.rand(64, 4), persistent=False)
    return model.table


def _in_a_dict(model: Any, length: int) -> Tensor:
    return model.cache.setdefault("table", _table(64))


def _growing(model: Any, length: int) -> Tensor:
    if model.cache is None or model.cache.shape[0] < length:
        model.cache = _table(length)
    return model.cache


def _module_wide(model: Any, length: int) -> Tensor:
    if "table" not in _MODULE_WIDE:
        _MODULE_WIDE["table"] = _table(64)
    return _MODULE_WIDE["table"]


def _counting(model: Any, length: int) -> Tensor:
    model.cache["calls"] = model.cache.get("calls", 0) + 1
    model.log.append(torch.ones(1))
    return _table(64)


def _as_a_child(model: Any, length: int) -> Tensor:
    if not hasattr(model, "child"):
        model.child = nn.Embedding(64, 4)
    return model.child.weight


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(
    ("make", "attributes"),
    [
        (_as_attribute, {}),
        (_as_buffer, {}),
        (_in_a_dict, {"cache": {}}),
        (_growing, {"cache": None}),
        (_module_wide, {}),
        (lambda model, length: _kept_table(64), {}),
        (_counting, {"cache": {}, "log": []}),
        (_as_a_child, {}),
    ],
)
def test_a_table_made_at_the_first_call(make: Any, attributes: dict[str, Any], batch: int) -> None:
    """The graph has its values; the model has what it had, and makes the same one when it runs by itself."""
    _MODULE_WIDE.clear()
    _kept_table.cache_clear()
    model = Positions(make, **copy.deepcopy(attributes)).eval()
    before = {name: sorted(module.__dict__) for name, module in model.named_modules()}
    buffers = dict(model._buffers)
    given, x = torch.randn(batch, 6, 4), torch.randn(2, 9, 4)
    graph = jg.trace(model, given)
    assert {name: sorted(module.__dict__) for name, module in model.named_modules()} == before
    assert model._buffers == buffers
    assert all(getattr(model, name) == value for name, value in attributes.items())
    assert not any(
        isinstance(tensor, FakeTensor) for tensor in [*graph.traced.tensors.values(), *_MODULE_WIDE.values()]
    )
    assert not isinstance(_kept_table(64), FakeTensor)
    with torch.no_grad():
        assert torch.equal(graph(x), model(x))


def test_counters_and_means_keep_their_values() -> None:
    """After a trace and after a refused one; and the graph reads the mean as the model's next call does."""

    class Counts(Residual):
        def __init__(self, choose: bool) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros((), dtype=torch.long))
            self.register_buffer("mean", torch.zeros(4))
            self.choose = choose

        def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
            self.calls += 1
            self.mean.mul_(0.9).add_(0.1 * x.mean(0))
            if self.choose and float(x.sum()) > 0:
                x = x + 1
            return super().forward(x, scale) + self.mean

    model = Counts(choose=False).eval()
    calls = model.calls
    graph = jg.trace(model, X)
    assert model.calls is calls
    assert (int(model.calls), float(model.mean.abs().sum())) == (0, 0)
    assert torch.equal(graph(X), model(X))
    refused = Counts(choose=True).eval()
    with pytest.raises(jg.TraceError):
        jg.trace(refused, X)
    assert (int(refused.calls), float(refused.mean.abs().sum())) == (0, 0)


def test_long_rope() -> None:
    """Tables for short and for long inputs: the graph has both, and the traced model is as a fresh one."""
    scaling = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "rope_theta": 1e4}
    config = transformers.Phi3Config(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        pad_token_id=0,
        num_attention_heads=2,
        num_key_value_heads=2,
        bos_token_id=1,
        eos_token_id=2,
        max_position_embeddings=64,
        original_max_position_embeddings=16,
        rope_parameters={**scaling, "original_max_position_embeddings": 16},
    )
    model = transformers.Phi3ForCausalLM(config).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    fresh = copy.deepcopy(model)
    ids = torch.arange(40).unsqueeze(0) % 50
    graph = jg.trace(model, input_ids=ids[:, :8])
    with torch.no_grad():
        for length in (8, 16, 17, 40):
            given = ids[:, :length]
            expected = copy.deepcopy(fresh)(input_ids=given).logits
            assert torch.equal(model(input_ids=given).logits, expected)
            assert torch.allclose(graph(input_ids=given), expected, atol=1e-5)


# Random models


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
    with pytest.raises(jg.TraceError, match=r"torch\.ops\.aten\S+ in module '0' draws random numbers.*switch it off"):
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


# What is said


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


@pytest.mark.parametrize("model", [None, "gpt2", pathlib.Path("gpt2"), nn.Linear, 3, {"weight": X}])
def test_what_is_no_model(model: Any) -> None:
    says = "neither a module nor a function of tensors: (pass|load)|Linear is a class: pass an object"
    with pytest.raises(jg.TraceError, match=says):
        jg.trace(model, X)


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
