"""The residual structure of every model of the zoo, against what its source says, and the replay from its stages."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import jetgraph as jg
from jetgraph import residual
from jetgraph.algebra.outline import JoinStep, MapStep
from jetgraph.jets import code
from jetgraph.structure.analysis import analyse
from tests import zoo
from tests.conftest import Example, run
from tests.zoo import Case, ExpectedJoin

TOLERANCE = 2e-5
"""Relative error of float32 where a replay need not be bit-equal, as when kernels sum in another order."""


@pytest.fixture(scope="module", params=zoo.CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


@pytest.fixture(scope="module")
def example(case: Case, traced: Callable[..., Example]) -> Example:
    return traced(case)


def found_joins(graph: jg.ResidualGraph) -> tuple[ExpectedJoin, ...]:
    """The graph's joins in the form of the zoo's expectations; branches of one join in the order of their aliases."""
    return tuple(
        ExpectedJoin(
            join.kind,
            tuple(sorted(((branch.name, branch.alias) for branch in join.branches), key=lambda pair: pair[1])),
            join.depth,
        )
        for join in graph.joins
    )


def error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """max |actual − expected| over max |expected|."""
    assert actual.shape == expected.shape
    return float((actual - expected).abs().max() / expected.abs().max())


# Structure


def test_structure(example: Example) -> None:
    """Joins, maps and, where the source says of one stream where it starts and ends, its sources and decoder."""
    graph, structure = example.graph, example.case.structure
    assert found_joins(graph) == structure.joins
    steps = graph.outline.steps
    assert tuple((s.site.path, s.site.alias) for s in steps if isinstance(s, MapStep)) == structure.maps
    if structure.sources is not None:
        assert sorted(source.alias for source in graph.outline.sources) == sorted(structure.sources)
    if structure.nonlinear is not None:
        decoder = graph.outline.decoder
        assert (not decoder.affine, decoder.bias) == (structure.nonlinear, structure.bias)


def test_outline_agrees_with_the_joins(example: Example) -> None:
    """The outline holds the stream that leads to the output: joins of depth 0 in their order, the last one included.
    An alias names one thing."""
    graph = example.graph
    steps = [step for step in graph.outline.steps if isinstance(step, JoinStep)]
    outlined = [(step.skip, [(site.path, site.alias) for site in step.branches]) for step in steps]
    listed = [(j.kind, [(b.name, b.alias) for b in j.branches]) for j in graph.joins if j.depth == 0]
    first = listed.index(outlined[0]) if outlined else len(listed)
    assert outlined == listed[first:]
    names = [site.alias for site in graph.outline.sites()] + [source.alias for source in graph.outline.sources]
    assert len(set(names)) == len(names)
    aliases = [branch.alias for join in graph.joins for branch in join.branches]
    assert len(set(aliases)) == len(aliases)


@pytest.mark.parametrize("name", [case.name for case in zoo.CASES if len(case.attention) > 1])
def test_attention_implementations_agree(name: str, traced: Callable[..., Example]) -> None:
    """Fused attention gives the same structure; it is traced with fixed sizes here, which takes a third of the time."""
    eager, fused = traced(zoo.case(name)), traced(zoo.case(name), "sdpa", dynamic=False)
    assert found_joins(eager.graph) == found_joins(fused.graph)
    assert eager.graph.outline == fused.graph.outline
    assert error(fused.graph(**fused.inputs).detach(), fused.output) < TOLERANCE, "replayed with gradients"
    with torch.no_grad():
        assert error(fused.graph(**fused.inputs), fused.output) < TOLERANCE


# Replay


def test_replay(example: Example, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stages put together are the model, bit for bit, interpreted and as code."""
    with torch.no_grad():
        for runs in (100, 0):
            monkeypatch.setattr(code, "RUNS", runs)
            assert torch.equal(example.graph(**example.inputs), example.output)


def test_replay_at_other_sizes(example: Example) -> None:
    case = example.case
    sizes = [(3, None), (1, None), (2, case.other_length)] if case.other_length else [(3, None), (1, None)]
    for batch, length in sizes:
        inputs = case.inputs(batch, length)
        with torch.no_grad():
            replayed = example.graph(**inputs)
        assert error(replayed, run(example.model, inputs)) < TOLERANCE, f"batch {batch}, length {length}"


def test_branches_alone(example: Example) -> None:
    """Every branch, cut out and given the fork's value, gives its operand; joins of all streams and depths.

    Given another value it gives another one: with the stream among its side inputs it would hide part of its own
    dependence.
    """
    run = example.graph.run(**example.inputs)
    with torch.no_grad():
        for join in example.graph.joins:
            fork = run[join.fork]
            for branch in join.branches:
                assert branch.region.entry is join.fork
                assert torch.equal(run.through(branch.region, fork), run[branch.node]), branch.alias
                moved = run.through(branch.region, fork + 0.1 * torch.randn_like(fork))
                assert not torch.equal(moved, run[branch.node]), branch.alias


def test_operands_sum_to_the_join(example: Example) -> None:
    """skip + branches + injections, computed apart, is the value after the join (or their concatenation)."""
    run = example.graph.run(**example.inputs)
    with torch.no_grad():
        for join in example.graph.joins:
            if join.kind == "concat":
                continue
            total = run.through(join.skip, run[join.fork])
            for operand in (*(branch.node for branch in join.branches), *join.injections):
                total = total + run[operand].reshape(total.shape)
            assert error(total, run[join.node].reshape(total.shape)) < TOLERANCE, join.name


# One position


def test_one_position_of_the_output(example: Example) -> None:
    """The decoder's affine part runs there alone, unless it mixes positions."""
    output, decoder = example.output, example.graph.structure.decoder
    if output.dim() < 3:
        with pytest.raises(jg.InputError, match="has no positions"):
            example.graph.run(**example.inputs).output_at(-1)
        return
    alone = example.graph.by_position(decoder.affine)
    assert alone is (example.case.name not in ("unet", "unet_additive"))
    with torch.no_grad():
        for position in range(-output.shape[1], output.shape[1]):
            run = example.graph.run(**example.inputs)
            found = run.output_at(position)
            assert found.shape == (output.shape[0], 1, *output.shape[2:])
            assert error(found[:, 0], output[:, position]) < TOLERANCE
            # Without nodes, the affine part is no more than the value before it.
            assert (decoder.affine.exit in run.values) is (not alone or not decoder.affine.nodes)
    for position in (output.shape[1], -output.shape[1] - 1):
        with pytest.raises(jg.InputError, match=f"the output has positions 0 to {output.shape[1] - 1}"):
            example.graph.run(**example.inputs).output_at(position)


class Ends(nn.Module):
    """A residual stream of 5 positions, a norm, and an affine end."""

    def __init__(self, end: Callable[[Ends, Tensor], Tensor]) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.mlp = nn.Sequential(nn.Linear(6, 6), nn.GELU())
            self.norm = nn.LayerNorm(6)
            self.head = nn.Linear(6, 6)
            self.mix = nn.Linear(5, 5)
            self.places = nn.Parameter(torch.randn(5, 1))
            self.features = nn.Parameter(torch.randn(6))
        self.end = end

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self, self.norm(x + self.mlp(x)))


@pytest.mark.parametrize(
    ("end", "alone"),
    [
        (lambda m, h: m.head(h), True),
        (lambda m, h: m.head(h * m.features) / 3 + m.features, True),
        (lambda m, h: -m.head(h) - m.features, True),
        (lambda m, h: m.head(h).view(h.shape), True),
        (lambda m, h: (m.head(h).view(*h.shape[:2], 2, 3) * m.places[:3, 0]).flatten(2), True),
        (lambda m, h: m.head(h).view(-1, 5, 6), False),
        (lambda m, h: m.head(h).view(h.shape[1], h.shape[0], 6), False),
        (lambda m, h: m.head(h) * m.places, False),
        (lambda m, h: m.head(h) + m.places, False),
        (lambda m, h: m.head(h).flip(1), False),
        (lambda m, h: m.head(h).cumsum(1), False),
        (lambda m, h: m.head(h).roll(1, 1), False),
        (lambda m, h: m.mix(m.head(h).mT).mT, False),
        (lambda m, h: m.head(h).mean(1, keepdim=True).expand(-1, 5, -1), False),
        (lambda m, h: m.head(h) @ m.head.weight, True),
        (lambda m, h: m.head(h).reshape(-1, 6).view(h.shape), True),
        (lambda m, h: m.head(h).transpose(0, 1).transpose(0, 1), True),
        (lambda m, h: m.head(h).softmax(-1), True),
        (lambda m, h: m.head(h) / h.shape[1], False),
        (lambda m, h: F.pad(m.head(h), (0, 0, 1, -1)) + m.features, False),
        (lambda m, h: m.head(h)[:, torch.tensor([1, 0, 2, 4, 3])], False),
    ],
)
def test_an_end_that_mixes_positions_is_run_whole(end: Callable[[Ends, Tensor], Tensor], alone: bool) -> None:
    model = Ends(end).eval()
    x = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0))
    graph = jg.trace(model, x)
    assert graph.structure.decoder.nonlinear.nodes
    assert graph.by_position(graph.structure.decoder.affine) is alone
    with torch.no_grad():
        output = model(x)
        values = jg.compile(jg.expand(graph, 1))(x)
        for position in range(output.shape[1]):
            assert error(graph.run(x).output_at(position)[:, 0], output[:, position]) < TOLERANCE
            weights = torch.ones(len(values.terms))
            assert error(values.combine(weights, position=position)[:, 0], values.total[:, position]) < TOLERANCE


# The batch


def causal(m: Ends, h: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(h, h, m.head(h), is_causal=True)


@pytest.mark.parametrize(
    ("end", "alone"),
    [
        (lambda m, h: m.head(h), True),
        (lambda m, h: 3 * torch.tanh(m.head(h.tanh()).softmax(-1) * m.features / 3), True),
        (lambda m, h: causal(m, m.mix(m.head(h).mT).mT.cumsum(1).roll(1, 1)), True),
        (lambda m, h: m.head(h.transpose(0, 1).tanh()).transpose(0, 1).softmax(-1), True),
        (lambda m, h: m.head(h.reshape(-1, 6)).view(h.shape).tanh(), True),
        # The batch is not where it was.
        (lambda m, h: m.head(h).transpose(0, 1), False),
        # Elements of the batch are mixed.
        (lambda m, h: m.head(h).softmax(0), False),
        (lambda m, h: m.head(h).roll(1, 0), False),
        (lambda m, h: m.head(h) * h.flip(0).tanh(), False),
        (lambda m, h: h / h.square().sum((0, 1, 2), keepdim=True).sqrt(), False),
        (lambda m, h: (h.flatten(1) @ h.flatten(1).T).softmax(-1) @ m.head(h).flatten(1), False),
        (lambda m, h: causal(m, h.transpose(0, 1)).transpose(0, 1), False),
        (lambda m, h: m.head(h)[torch.tensor([1, 0, 0])], False),
        # Its size is a number, or something else has it.
        (lambda m, h: m.head(h).tanh() * (h.shape[0] * 2 + h.shape[1]), False),
        (lambda m, h: m.head(h).tanh() * torch.arange(h.shape[0])[:, None, None], False),
    ],
)
def test_a_value_does_not_depend_on_what_is_beside_it(end: Callable[[Ends, Tensor], Tensor], alone: bool) -> None:
    """Lenses, which go through the decoder side by side where they can, against the model's own end at each point."""
    model = Ends(end).eval()
    x = torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(0))
    graph = jg.trace(model, x)
    decoder = graph.structure.decoder
    assert (graph.by_element(decoder.nonlinear) and graph.by_element(decoder.affine)) is alone
    lens = jg.compile(jg.expand(graph, 0, recipe="lens"))
    with torch.no_grad():
        terms = lens(x).terms
        bias = sum(value for path, value in terms.items() if not path.source.alias.startswith("h"))
        for number, point in enumerate((x, x + model.mlp(x))):
            (path,) = [path for path in terms if path.source.alias == f"h{number}"]
            expected = end(model, model.norm(point))
            assert error(terms[path] + bias, expected) < TOLERANCE
            assert error(jg.compile(lens.expansion, [path])(x).terms[path], terms[path]) < TOLERANCE


def test_two_batches_are_no_batch() -> None:
    """A dimension that shares its open size with another one cannot be made longer by itself."""

    class Twice(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x + torch.tanh(x @ x)
            return torch.tanh(y * 2)

    model, x = Twice().eval(), torch.randn(3, 3)
    graph = jg.trace(model, x)
    lens = jg.compile(jg.expand(graph, 0, recipe="lens"))(x)
    assert not graph.by_element(graph.structure.decoder.nonlinear)
    for path, value in lens.terms.items():
        point = x if path.source.alias == "h0" else x + torch.tanh(x @ x)
        assert error(value, torch.tanh(point * 2)) < TOLERANCE


# The model


def test_model_is_untouched_and_shared(example: Example) -> None:
    """Tracing changes nothing of it, and the graph reads its own parameters."""
    assert example.changes == ()
    own = {id(tensor) for tensor in [*example.model.parameters(), *example.model.buffers()]}
    held = {name: tensor for name, tensor in example.graph.traced.tensors.items() if isinstance(tensor, nn.Parameter)}
    assert held or not list(example.model.parameters())
    assert all(id(tensor) in own for tensor in held.values())


@pytest.mark.parametrize("name", ["gpt2", "mixtral", "bert", "resnet_basic", "unet", "encoder_pre_norm"])
def test_meta(name: str, traced: Callable[..., Example]) -> None:
    """Without weights: the same structure, and a clear refusal to run."""
    case = zoo.case(name)
    model = case.build().to("meta")
    inputs: dict[str, Any] = {
        key: value.to("meta") if isinstance(value, torch.Tensor) else value for key, value in case.inputs().items()
    }
    graph = jg.trace(model, dynamic=False, **inputs)
    assert found_joins(graph) == case.structure.joins
    assert graph.outline == traced(case).graph.outline
    with pytest.raises(jg.JetGraphError, match="meta"):
        graph(**inputs)


def test_training_mode_is_refused() -> None:
    case = zoo.case("gpt2")
    model = case.build().train()
    with pytest.raises(jg.TraceError, match=r"eval\(\)"):
        jg.trace(model, **case.inputs())
    assert model.training


def test_one_module_in_training_mode_is_refused_by_name() -> None:
    case = zoo.case("rezero")
    model = case.build()
    model.get_submodule("blocks.1").train()
    with pytest.raises(jg.TraceError, match=r"blocks\.1"):
        jg.trace(model, **case.inputs())


def test_gradient_mode_does_not_matter() -> None:
    """Without gradients nn.TransformerEncoder takes a fused path, but the trace holds its ordinary operators."""
    case = zoo.case("encoder_pre_norm")
    with torch.no_grad():
        graph = jg.trace(case.build(), **case.inputs())
    assert found_joins(graph) == case.structure.joins


def test_other_dtypes(traced: Callable[..., Example]) -> None:
    """Traced in one, and traced in another and put over a model of it."""
    case = zoo.case("gpt2")
    model = case.build().to(torch.bfloat16)
    for graph in (jg.trace(model, **case.inputs()), traced(case).graph.over(model)):
        assert found_joins(graph) == case.structure.joins
        with torch.no_grad():
            assert torch.equal(graph(**case.inputs()), run(model, case.inputs()))


# Inputs and outputs


def test_positional_inputs() -> None:
    case = zoo.case("root_loop")
    model, ids = case.build(), case.inputs()["input_ids"]
    graph = jg.trace(model, ids)
    assert found_joins(graph) == case.structure.joins
    with torch.no_grad():
        assert torch.equal(graph(ids), model(ids))


@pytest.mark.parametrize(
    ("name", "output"),
    [("returns_dict", "features"), ("returns_dict", "logits"), ("returns_tuple", 1), ("returns_tuple", 2)],
)
def test_output_is_chosen_by_name(name: str, output: str | int) -> None:
    case = zoo.case(name)
    model, inputs = case.build(), case.inputs()
    graph = jg.trace(model, output=output, **inputs)
    with torch.no_grad():
        assert torch.equal(graph(**inputs), run(model, inputs, output))
    assert [join.branches[0].name for join in graph.joins] == ["blocks.0.mlp", "blocks.1.mlp"]


def test_an_output_in_mid_stream() -> None:
    """The stream ends where the chosen output leaves it, and needs no decoder."""
    case = zoo.case("returns_dict")
    decoder = jg.trace(case.build(), output="features", **case.inputs()).outline.decoder
    assert decoder.affine
    assert not decoder.bias


def test_an_unknown_output_names_the_ones_there_are() -> None:
    case = zoo.case("returns_dict")
    with pytest.raises(jg.TraceError, match="features"):
        jg.trace(case.build(), output="logit", **case.inputs())


@pytest.mark.parametrize("output", [0, "0"])
def test_an_integer_output_is_refused(output: str | int) -> None:
    case = zoo.case("returns_tuple")
    with pytest.raises(jg.TraceError, match="float"):
        jg.trace(case.build(), output=output, **case.inputs())


def test_a_hidden_state_is_an_output() -> None:
    """Models of transformers return the stream itself on request; the joins are then those before it."""
    case = zoo.case("gpt2")
    model, inputs = case.build(), case.inputs() | {"output_hidden_states": True}
    graph = jg.trace(model, output="hidden_states.1", **inputs)
    assert found_joins(graph) == case.structure.joins[:2]
    with torch.no_grad():
        assert torch.equal(graph(**inputs), model(**inputs).hidden_states[1])


def test_static_sizes_on_request() -> None:
    case = zoo.case("rezero")
    graph = jg.trace(case.build(), dynamic=False, **case.inputs())
    assert found_joins(graph) == case.structure.joins
    with pytest.raises(jg.InputError, match="shape"):
        graph(**case.inputs(batch=3))


def test_wrong_inputs_are_named(traced: Callable[..., Example]) -> None:
    graph = traced(zoo.case("two_towers")).graph
    inputs = zoo.case("two_towers").inputs()
    with pytest.raises(jg.InputError, match="input_ids"):
        graph(x=inputs["x"])
    with pytest.raises(jg.InputError, match="mask"):
        graph(**inputs, mask=inputs["x"])
    with pytest.raises(jg.InputError, match="int64"):
        graph(input_ids=inputs["input_ids"], x=inputs["input_ids"])


def test_no_join(traced: Callable[..., Example]) -> None:
    """No residual join is no error: the graph is one function, and replays."""
    example = traced(zoo.case("plain_mlp"))
    assert example.graph.joins == ()
    assert not [step for step in example.graph.outline.steps if isinstance(step, JoinStep)]
    assert example.graph.outline.sources


def test_repr_shows_the_structure(example: Example) -> None:
    """The tree names the model, its first join and its decoder; blocks like the one before them may be folded."""
    graph = example.graph
    text = repr(graph)
    assert type(example.model).__name__ in text
    assert graph.outline.decoder.alias in text
    joins = [step for step in graph.outline.steps if isinstance(step, JoinStep)]
    for join in joins[:1]:
        assert join.skip in text
        for branch in join.branches:
            assert branch.alias in text
            assert branch.path.rpartition(".")[2] in text
    assert "<" in graph._repr_html_()


# A frozen value


class Tanh(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.tanh(self.up(x)))


def test_a_graph_is_a_frozen_value_that_is_analysed_once(monkeypatch):
    """By `trace`, and again only where the program has other nodes: on another device or in another type."""
    calls: list[object] = []
    monkeypatch.setattr(residual, "analyse", lambda traced: calls.append(traced) or analyse(traced))
    torch.manual_seed(0)
    model = nn.Sequential(Tanh(), Tanh()).eval()
    x = torch.randn(2, 4)
    graph = jg.trace(model, x)
    assert calls == [graph.traced]
    assert graph.check is not None
    parts, copied = graph.split("neurons"), copy.deepcopy(graph)
    assert len(calls) == 1
    assert parts.structure is not graph.structure
    assert copied.structure.traced is copied.traced
    with torch.no_grad():
        expected = model(x)
        for parameter in model.parameters():
            parameter.zero_()
        torch.testing.assert_close(copied(x), expected)
        torch.testing.assert_close(parts(x), x)
    for found in (graph.relocated(lambda name: graph.traced.tensors[name].double()), parts):
        with pytest.raises(dataclasses.FrozenInstanceError):
            found.title = "another"  # type: ignore[misc]
    assert len(calls) == 2
