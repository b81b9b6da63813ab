"""Which operators an evaluation dispatches: no more than the model's own forward pass, and none that waits for values.

On a CPU nothing waits; what would on a device is counted by the operators that read numbers out of tensors.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch

import jetgraph as jg
from tests.conftest import Example, run
from tests.operators import Operators
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


def test_places_beyond_the_table_are_named(traced: Callable[..., Example]) -> None:
    """They follow from the length, so that no value is looked at."""
    example = traced(case("gpt2"), "sdpa")
    rows: int = example.model.config.n_positions  # type: ignore[union-attr, assignment]
    longest, longer = (torch.zeros(1, rows + more, dtype=torch.long) for more in (0, 1))
    assert waiting(calls(lambda: example.graph(longest))) == 0
    with pytest.raises(jg.InputError, match=f"wpe.*row numbers must be 0 to {rows - 1}.*such as {rows}"):
        example.graph(longer)
