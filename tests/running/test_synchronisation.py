"""Which operators an evaluation dispatches: no more than the model's own forward pass, and none that waits for values.

On a CPU nothing waits; what would on a device is counted by the operators that read numbers out of tensors.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch

import jetgraph as jg
from jetgraph.applications.lenses import Lens
from jetgraph.jets import interpreter
from jetgraph.jets.code import RUNS
from jetgraph.tracing.weights import Weights
from tests.conftest import Example, run
from tests.operators import Moved, Operators
from tests.zoo import case

WAITING = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select")


def waiting(counts: Counter[str]) -> int:
    return sum(counts[name] for name in WAITING)


def calls(work: Callable[[], object]) -> Counter[str]:
    work()
    with torch.no_grad(), Operators() as operators:
        work()
    return operators.counts


@pytest.fixture(params=["llama", "gpt2"])
def example(request: pytest.FixtureRequest, traced: Callable[..., Example]) -> Example:
    return traced(case(request.param), "sdpa")


def test_a_replay_dispatches_what_the_model_does(example: Example) -> None:
    own = calls(lambda: run(example.model, {**example.inputs, "use_cache": False}))
    replay = calls(lambda: example.graph(**example.inputs))
    assert replay.total() <= 1.05 * own.total()
    assert waiting(replay) == 0


@pytest.mark.parametrize("scale", ["matched", "none"])
def test_a_lens_decides_once_and_looks_at_the_weights_once(
    scale: Any, example: Example, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lens() -> Lens:
        return jg.lens(example.graph, example.inputs["input_ids"], order=[2], scale=scale)

    first, *_ = [lens() for _ in range(RUNS + 1)]
    run, now = interpreter._run, Weights.now
    interpreted: list[Any] = []
    looks: list[Weights] = []
    monkeypatch.setattr(interpreter, "_run", lambda node, *given: interpreted.append(node.target) or run(node, *given))
    monkeypatch.setattr(Weights, "now", lambda weights: looks.append(weights) or now(weights))
    again = lens()
    # The unembedding alone, which writes where it is told to.
    assert {*interpreted} <= {torch.ops.aten.linear.default, torch.ops.aten.addmm.default}
    assert len(looks) == 1
    assert torch.equal(first.logits, again.logits)
    assert torch.equal(torch.as_tensor(first.radius), torch.as_tensor(again.radius))
    for orders in ([2], "auto"):
        looks.clear()
        jg.evaluate_lens(example.graph, example.inputs["input_ids"], orders=orders, scale=scale, resamples=10)
        assert len(looks) == 1


@pytest.mark.parametrize(
    ("most", "work"),
    [
        (1, lambda graph, ids: jg.lens(graph, ids, order=2)),
        (1, lambda graph, ids: jg.compile(jg.expand(graph, 1), "embed > *.mlp > logits")(input_ids=ids).terms),
        (
            0,
            lambda graph, ids: jg.compile(jg.expand(graph, recipe="frozen"), "embed > * > logits")(input_ids=ids).terms,
        ),
        (6, lambda graph, ids: jg.attribute(graph, ids[:1], target=3)),
    ],
    ids=["lens", "paths", "frozen paths", "attribution"],
)
def test_nothing_is_waited_for_but_at_the_end(example: Example, most: int, work: Callable[..., object]) -> None:
    found = calls(lambda: work(example.graph, example.inputs["input_ids"]))
    assert waiting(found) <= most
    # From one type or device to another; distances of a lens are in float64.
    assert found["_to_copy"] <= 12


@pytest.mark.parametrize(("order", "most"), [(0, {"llama": 40, "gpt2": 20}), (2, {"llama": 180, "gpt2": 380})])
def test_a_lens_reads_and_writes_what_its_norm_needs(example: Example, order: int, most: dict[str, int]) -> None:
    """Bytes for each number of the stream at all points, beside the forward pass: there an accelerator's time goes.

    Of float32, whose numbers have four; sums are scaled and decoded once whatever the order, centres are matched once.
    """
    ids = example.inputs["input_ids"]
    moved = []
    for work in (
        lambda: run(example.model, {**example.inputs, "use_cache": False}),
        lambda: jg.lens(example.graph, ids, order=[order]),
    ):
        work()
        with torch.no_grad(), Moved() as found:
            work()
        moved.append(found.bytes)
    points = example.graph.stream.points
    assert moved[1] - moved[0] <= most[example.case.name] * len(points) * ids.numel() * points[-1].meta["shape"][-1]


@pytest.mark.parametrize("order", [0, 2])
def test_a_lens_is_a_forward_pass_and_its_decodes(example: Example, order: int) -> None:
    """All points go through the decoder together, and what is asked for again is neither expanded nor registered."""
    ids = example.inputs["input_ids"]
    own = calls(lambda: run(example.model, {**example.inputs, "use_cache": False}))
    found = calls(lambda: jg.lens(example.graph, ids, order=[order]))
    points = len(example.graph.stream.points)
    assert found.total() <= own.total() + (30 if order == 0 else 140 + 4 * points)
    assert found["mm"] + found["addmm"] <= own["mm"] + own["addmm"] + 1


def test_an_evaluation_of_lenses_runs_each_window_once(example: Example) -> None:
    """The sample of which radii are known is part of what is measured; one look at a device for each batch."""
    ids = example.inputs["input_ids"]
    ids = torch.cat([ids, ids.flip(1)])
    own = calls(lambda: run(example.model, {**example.inputs, "use_cache": False}))
    found = calls(lambda: jg.evaluate_lens(example.graph, ids, orders=[0, 1], batch=len(ids) // 2, resamples=2))
    # Two batches, and in each of them one product for the logits of all points.
    products = own["mm"] + own["addmm"]
    assert found["mm"] + found["addmm"] <= 2 * (products + 2)
    assert waiting(found) <= 2 * 3


def test_places_beyond_the_table_are_named(traced: Callable[..., Example]) -> None:
    """They follow from the length, so that no value is looked at."""
    example = traced(case("gpt2"), "sdpa")
    rows: int = example.model.config.n_positions  # type: ignore[union-attr, assignment]
    longest, longer = (torch.zeros(1, rows + more, dtype=torch.long) for more in (0, 1))
    assert waiting(calls(lambda: example.graph(longest))) == 0
    with pytest.raises(jg.InputError, match=f"wpe.*row numbers must be 0 to {rows - 1}.*such as {rows}"):
        example.graph(longer)
