"""The canonical graph: what is traced, which output and inputs it has, and what is said where tracing is refused."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import jetgraph as jg
from jetgraph.jets.interpreter import evaluate
from jetgraph.tracing import Traced, canonical, run_model, wrap_function
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
        return x if x.sum() > 0 else x + 1


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
        (lambda: "gpt2", r"a str is neither a module nor a function of tensors: pass a torch\.nn\.Module"),
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
    kinds = {torch.int64: torch.int32, torch.float32: torch.float64}
    if called_as == kinds.get(traced_as, traced_as):
        assert graph(X, mask.to(called_as)).shape == model(X, mask.to(called_as)).shape
        return
    said = rf"input 'mask' is \w+ \({called_as}\), but was \w+ \({traced_as}\) in the trace.*convert it, or trace"
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
