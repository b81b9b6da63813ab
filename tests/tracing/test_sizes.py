"""Sizes that may change between calls, and those for which a trace holds."""

from __future__ import annotations

import itertools
import json
import pathlib
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import jetgraph as jg
from jetgraph.export import questions
from jetgraph.tracing.trace import canonical
from tests import zoo
from tests.conftest import Example
from tests.tracing.models import Residual, X, replayed


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


def test_only_the_batch_is_free_where_no_more_is_asked_for() -> None:
    graph = jg.trace(Residual().eval(), X, dynamic="batch")
    assert (graph.traced.dynamic, graph.traced.note) == ("batch", "")
    assert "dynamic batch, other sizes fixed" in repr(graph)
    assert torch.equal(graph(X[:1]), Residual().eval()(X[:1]))


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


class Padding(nn.Module):
    """Brings its length to whole chunks, over and over: each round compares another formula of it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = x
        for chunk in range(2, 8):
            h = F.pad(h, (0, 0, 0, -h.shape[1] % chunk))
        return x + torch.tanh(self.linear(h))[:, : x.shape[1]]


def test_a_length_that_is_computed_with_is_given_up_before_it_takes_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a number of questions, the same on every machine; the batch, about which nothing is asked, is kept."""
    model, x = Padding().eval(), torch.randn(2, 5, 4)
    assert jg.trace(model, x).traced.dynamic == "all"
    monkeypatch.setattr(questions, "MOST", 10)
    graph = jg.trace(model, x)
    assert graph.traced.dynamic == "batch"
    assert "stopped after 10 different questions about them" in graph.traced.note
    other = torch.randn(4, 5, 4)
    torch.testing.assert_close(graph(other), model(other))


@pytest.mark.xdist_group("mamba")
def test_mamba_falls_back_and_says_so(traced: Callable[..., Example]) -> None:
    """Its scan is unrolled over the length; the repr of the graph shows what is fixed."""
    case = zoo.case("mamba")
    graph = traced(case).graph
    assert all(isinstance(size, int) for size in graph.traced.input_shapes["input_ids"][1:])
    assert "fixed" in repr(graph) or "7" in repr(graph).splitlines()[1]
    with pytest.raises(jg.InputError, match=r"'input_ids' .*\(2, 9\)"):
        graph(**case.inputs(2, 9))


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


def test_sizes_of_what_has_a_number_for_a_name() -> None:
    class Pairs(nn.Module):
        def forward(self, *inputs: Tensor) -> Tensor:
            h, edges = inputs
            return h + torch.sin(h.unsqueeze(1) * edges.unsqueeze(-1)).flatten(1, 2)[:, : h.shape[1]]

    graph = jg.trace(Pairs().eval(), torch.randn(2, 5, 4), torch.randn(2, 7, 5))
    assert graph(torch.randn(3, 4, 4), torch.randn(3, 6, 4)).shape == (3, 4, 4)


@pytest.mark.xdist_group("bert")
def test_a_mask_with_a_batch_of_its_own(traced: Callable[..., Example]) -> None:
    """To the exporter its batch is another size; it may be 1 where that of the ids is."""
    case = zoo.case("bert")
    model, graph = traced(case).model, traced(case).graph
    lone, two = case.inputs(1), case.inputs(2)
    assert torch.allclose(graph(**lone), model(**lone).logits, atol=1e-5)
    assert torch.allclose(graph(**two), model(**two).logits, atol=1e-5)
    with pytest.raises(
        jg.InputError, match="'attention_mask' has attention_mask_batch 1 and input 'input_ids' has batch 2"
    ):
        graph(input_ids=two["input_ids"], attention_mask=lone["attention_mask"])


@pytest.mark.parametrize("kind", [torch.float32, torch.bool])
def test_the_sides_of_a_mask_are_lengths(kind: torch.dtype) -> None:
    """A mask of scores [batch, 1, length, length] is no image, whose sides are fixed, also where it is added."""

    def masked(batch: int, length: int) -> dict[str, Any]:
        seen = torch.ones(length, length, dtype=torch.bool).tril().expand(batch, 1, -1, -1)
        mask = seen if kind is torch.bool else torch.zeros(seen.shape).masked_fill(~seen, -1e9)
        return {"input_ids": torch.randint(3, zoo.VOCAB, (batch, length)), "attention_mask": mask, "use_cache": False}

    model = zoo.case("llama").build()
    graph = jg.trace(model, **masked(2, 7))
    assert graph.traced.input_shapes["attention_mask"] == ("batch", 1, "length", "length")
    for batch, length in ((3, 10), (1, 2)):
        inputs = masked(batch, length)
        with torch.no_grad():
            torch.testing.assert_close(graph(**inputs), model(**inputs).logits)


def test_an_image_beside_a_text_keeps_its_sides() -> None:
    def looked(ids: Tensor, image: Tensor) -> Tensor:
        h = F.one_hot(ids, 5).to(image) + image.mean((-1, -2))[:, None]
        return h + torch.tanh(h)

    graph = jg.trace(looked, torch.zeros(2, 6, dtype=torch.long), torch.randn(2, 5, 8, 8))
    assert graph.traced.input_shapes["image"] == ("batch", 5, 8, 8)
