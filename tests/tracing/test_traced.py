"""Inputs of a traced program, and the program moved to other devices and types."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor, nn

import jetgraph as jg
from jetgraph.tracing.trace import canonical
from tests import zoo
from tests.conftest import Example
from tests.tracing.models import Residual, X, replayed


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


def test_inputs_follow_the_weights_to_meta() -> None:
    with torch.device("meta"):
        model = Residual().eval()
    assert len(jg.trace(model, X).joins) == 1


def test_inputs_longer_than_the_positions(traced: Callable[..., Example]) -> None:
    """Told where it happens, whether the graph is run, or traced on such an input; by name of the model's own table."""
    example = traced(zoo.case("gpt2"))
    model, graph = example.model, example.graph
    rows = model.get_submodule("transformer.wpe").weight.shape[0]
    long = torch.zeros(1, rows + 2, dtype=torch.long)
    expected = rf"'transformer.wpe'.* 0 to {rows - 1}.* 2 of {rows + 2} values are not \(such as {rows}\)"
    for run in (lambda: graph(input_ids=long), lambda: jg.trace(model, input_ids=long)):
        with pytest.raises(jg.InputError, match=expected):
            run()
    with pytest.raises(jg.InputError, match=f"the input has {rows + 2} tokens, more than the {rows} that"):
        jg.lens(graph, long)


def test_ids_that_the_embedding_does_not_have(traced: Callable[..., Example]) -> None:
    case = zoo.case("gpt2")
    graph = traced(case).graph
    ids = case.inputs()["input_ids"]
    for wrong in (zoo.VOCAB, -1):
        ids[0, 2] = wrong
        with pytest.raises(jg.InputError, match=f"'input_ids' holds {wrong}, but its embedding has the rows 0 to 52"):
            graph(input_ids=ids)


def test_parameters_are_those_that_the_output_reads() -> None:
    """Tied ones count once; a head that another output has, buffers and constants do not count."""

    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.pooler = nn.Linear(4, 4, bias=False), nn.Linear(4, 7)
            self.tied = nn.Linear(4, 4)
            self.tied.weight = self.inner.weight
            self.register_buffer("shift", torch.ones(4))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            h = x + self.tied(torch.tanh(self.inner(x) + self.shift))
            return h, self.pooler(h)

    model = Pooled().eval()
    loaded = jg.loading.Loaded("pooled", model, None, example={"x": torch.randn(2, 4)})
    graph = jg.trace(model, torch.randn(2, 4))
    assert graph.traced.parameters == 4 * 4 + 4
    assert loaded.parameters == 4 * 4 + 4 + 4 * 7 + 7
    after = jg.report(loaded).sections[1].after
    assert after == "parameters: 55 (float32); the output reads 20 of them", after
    alone = jg.report(jg.trace(Residual().eval(), torch.randn(2, 4))).sections[1].after
    assert "reads" not in alone, alone
