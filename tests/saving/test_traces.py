"""Traces kept between processes: what is read again is the model's own, and what does not fit is dropped."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import jetgraph as jg
from jetgraph.saving import traces
from jetgraph.saving.traces import CacheWarning, clear_traces, kept_trace, kept_traces, key_of
from tests import zoo
from tests.tracing.models import Residual, X


@pytest.fixture(autouse=True)
def folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    monkeypatch.setenv("JETGRAPH_CACHE", str(tmp_path))
    return tmp_path / "traces"


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The models that were traced, and not read."""
    done: list[str] = []

    def trace(model: nn.Module, **options: Any) -> jg.ResidualGraph:
        done.append(type(model).__name__)
        return jg.trace(model, **options)

    monkeypatch.setattr(traces, "trace", trace)
    return done


class Table(nn.Module):
    """x + tanh(W x) + c, with a tensor c that only the code knows."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.linear(x)) + torch.tensor([1.0, 2.0, 3.0, 4.0])


def test_a_trace_is_read_by_the_next_model_of_its_kind(traced: list[str]) -> None:
    """It is bound to that one's weights, and follows what becomes of them."""
    kept_trace(Table(0).eval(), {"x": X})
    model = Table(1).eval()
    graph = kept_trace(model, {"x": torch.cat([X, X])})
    assert traced == ["Table"]
    assert graph.check is not None
    assert graph.check.good
    assert graph.traced.model is model
    assert graph.title == "Table"
    assert str(graph) == str(jg.trace(model, x=torch.cat([X, X])))
    with torch.no_grad():
        nn.init.ones_(model.linear.weight)
        assert torch.allclose(graph(X), model(X))
        expansion = jg.expand(graph, order=1)
        found = jg.compile(expansion, "**")(X)
        assert torch.allclose(found.output, model(X))


@pytest.mark.parametrize("name", ["llama", "bert", "t5"])
def test_a_transformer_is_read_as_it_was_traced(name: str, traced: list[str]) -> None:
    case = zoo.case(name)
    model, inputs = case.build("sdpa"), case.inputs()
    first, second = kept_trace(model, inputs), kept_trace(model, inputs)
    assert len(traced) == 1
    assert str(first) == str(second)
    with torch.no_grad():
        assert torch.equal(first(**inputs), second(**inputs))
        assert torch.equal(first.run(**inputs).replay(), second.run(**inputs).replay())


def test_what_the_model_does_otherwise_is_traced_anew(traced: list[str], folder: pathlib.Path) -> None:
    """A kept trace of another program under the model's name is noticed by what it gives."""
    kept_trace(Table().eval(), {"x": X})
    (own,) = folder.iterdir()
    with safe_open(own, "pt") as stored:
        header, tensors = stored.metadata(), {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    assert tensors
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, own, header)
    model = Table().eval()
    with torch.no_grad():
        assert torch.equal(kept_trace(model, {"x": X})(X), model(X))
    assert traced == ["Table", "Table"]
    kept_trace(model, {"x": X})
    assert traced == ["Table", "Table"]


def _cut(file: pathlib.Path) -> None:
    file.write_bytes(file.read_bytes()[:200])


def _no_trace(file: pathlib.Path) -> None:
    save_file({}, file, {"trace": "[]"})


def _deep(file: pathlib.Path) -> None:
    save_file({}, file, {"trace": "[" * 100_000})


def _of_another_version(file: pathlib.Path) -> None:
    save_file({}, file, {"trace": '{"version": 0, "bound": []}'})


@pytest.mark.parametrize("damage", [_cut, _no_trace, _deep, _of_another_version])
def test_a_damaged_file_is_replaced(
    damage: Callable[[pathlib.Path], None], traced: list[str], folder: pathlib.Path
) -> None:
    model = Table().eval()
    kept_trace(model, {"x": X})
    (file,) = folder.iterdir()
    damage(file)
    with torch.no_grad():
        assert torch.equal(kept_trace(model, {"x": X})(X), model(X))
    assert len(traced) == 2
    kept_trace(model, {"x": X})
    assert len(traced) == 2


class Window(nn.Module):
    """Another function of more than 4 rows."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.sin(x) if x.shape[0] <= 4 else x + torch.cos(x)


def test_inputs_for_which_a_trace_does_not_hold_are_traced(traced: list[str]) -> None:
    model = Window().eval()
    for rows in (3, 4, 6, 7):
        x = torch.randn(rows, 5)
        assert torch.equal(kept_trace(model, {"x": x})(x), model(x))
    assert len(traced) == 2


def test_inputs_of_other_kinds_are_other_keys() -> None:
    model = Residual().eval()
    key = key_of(model, {"x": X})
    assert key is not None
    assert key_of(model, {"x": torch.cat([X, X])}) == key
    for other in ({"x": X[:1]}, {"x": X.double()}, {"x": X, "scale": 2.0}):
        assert key_of(model, other) not in (key, None)


def _first_mlp(model: Any) -> Any:
    return model.model.layers[0].mlp


CODE: dict[str, Callable[[Any], Any]] = {
    "an activation": lambda model: setattr(_first_mlp(model), "act_fn", nn.ReLU().eval()),
    "an ε": lambda model: setattr(model.model.norm, "variance_epsilon", 2 * model.model.norm.variance_epsilon),
    "a depth": lambda model: setattr(model.config, "num_hidden_layers", 1),
    "a hook": lambda model: _first_mlp(model).register_forward_hook(lambda module, given, output: 2 * output),
    "a hook before": lambda model: _first_mlp(model).register_forward_pre_hook(lambda module, given: (2 * given[0],)),
    "a forward": lambda model: setattr(_first_mlp(model), "forward", lambda x: 2 * x),
}


@pytest.mark.parametrize("change", CODE)
def test_a_model_of_other_code_has_another_key(change: str) -> None:
    case = zoo.case("llama")
    model, inputs = case.build(), case.inputs()
    before = key_of(model, inputs)
    CODE[change](model)
    assert key_of(model, inputs) != before


def test_a_kept_trace_is_of_the_code_that_it_was_made_of(traced: list[str]) -> None:
    """Also of code that changes once it is read."""
    case = zoo.case("llama")
    model, inputs = case.build(), case.inputs()
    kept_trace(model, inputs)
    graph = kept_trace(model, inputs)
    model.config.pad_token_id = 1
    with torch.no_grad():
        before = graph(**inputs)
        assert torch.equal(before, model(**inputs).logits)
        for change in CODE:
            other = case.build()
            held = graph.over(other)
            CODE[change](other)
            with pytest.raises(jg.StateError, match="since the trace, the model's code has changed"):
                held(**inputs)
        CODE["an activation"](model)
        with pytest.raises(jg.StateError, match="act_fn"):
            graph(**inputs)
        changed = kept_trace(model, inputs)(**inputs)
        assert torch.equal(changed, model(**inputs).logits)
        assert not torch.equal(changed, before)
    assert len(traced) == 2


def test_what_is_wrong_is_told_as_without_a_cache() -> None:
    case = zoo.case("gpt2")
    model, inputs = case.build(), case.inputs()
    kept_trace(model, inputs)
    with pytest.raises(jg.InputError, match="row numbers must be 0 to"):
        kept_trace(model, {"input_ids": torch.full_like(inputs["input_ids"], 10_000)})
    with pytest.raises(jg.TraceError, match="training mode"):
        kept_trace(Residual(), {"x": X})


def test_the_cache_can_be_listed_and_cleared(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traces, "MOST", 2)
    for seconds, width in enumerate((4, 5, 6)):
        kept_trace(Residual(width).eval(), {"x": torch.randn(2, width)})
        for file in folder.iterdir():
            # The newest is the one without a time of its own.
            if file.stat().st_mtime > 10:
                os.utime(file, (seconds, seconds))
    found = kept_traces()
    assert [trace.inputs.split(",")[0] for trace in found] == ["x[batch", "x[batch"]
    assert [trace.used for trace in found] == [2.0, 1.0]
    assert all(trace.model == "Residual" and trace.bytes > 1000 for trace in found)
    assert clear_traces() == found
    assert kept_traces() == []


def test_nothing_is_kept_where_it_is_off(
    traced: list[str], folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Residual().eval()
    with traces.unused():
        kept_trace(model, {"x": X})
    monkeypatch.setenv("JETGRAPH_CACHE", "off")
    kept_trace(model, {"x": X})
    assert len(traced) == 2
    assert not folder.exists()


def test_a_folder_that_cannot_be_written(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said, and the trace is there all the same."""
    file = tmp_path / "file"
    file.write_text("")
    monkeypatch.setenv("JETGRAPH_CACHE", str(file / "below"))
    model = Residual().eval()
    with pytest.warns(CacheWarning, match="JETGRAPH_CACHE names another folder"):
        graph = kept_trace(model, {"x": X})
    with torch.no_grad():
        assert torch.equal(graph(X), model(X))


def test_a_file_that_cannot_be_removed(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a folder that is another user's: it is said, and the trace is there all the same."""
    model = Residual().eval()
    kept_trace(model, {"x": X})
    (file,) = folder.iterdir()
    _cut(file)

    def refused(*args: Any, **options: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(pathlib.Path, "unlink", refused)
    monkeypatch.setattr(traces, "MOST", 0)
    with pytest.warns(CacheWarning, match="cannot remove .*Permission denied"):
        graph = kept_trace(model, {"x": X})
    with torch.no_grad():
        assert torch.equal(graph(X), model(X))


@pytest.mark.parametrize("name", ["a" * 300, "file"])
def test_a_folder_that_no_file_can_be_in_is_empty(
    name: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("JETGRAPH_CACHE", str(tmp_path / name))
    assert kept_traces() == clear_traces() == []
    with pytest.warns(CacheWarning, match="cannot make the folder"):
        kept_trace(Residual().eval(), {"x": X})
