"""Interventions side by side along the batch, against each by itself and against passes that are patched by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import jetgraph as jg
from jetgraph.applications.interventions import network, patch
from jetgraph.applications.interventions.network import Changes, Network, logits_at
from tests.conftest import Example
from tests.operators import Operators
from tests.zoo import case

STACKED = {
    "gpt2": None, "llama": "heads", "gpt_neox": "heads", "opt_post_norm": "heads", "resnet_basic": None, "bart": None,
    "t5": "heads",
}  # fmt: skip
ONE_BY_ONE = ("mixtral", "swin")
"""Experts sort the tokens of all rows; windows are counted along the batch."""


def changes_of(found: Network) -> list[Changes]:
    """Each component by itself, some of them together, and all, scaled and shifted."""

    def change(own: Tensor) -> Tensor:
        return own * 0.3 + 0.1

    names = list(found.steps)
    return [{name: change} for name in names] + [dict.fromkeys(some, change) for some in (names, names[1::2])]


def by_hand(found: Network, changes: Changes, at: Any) -> Tensor:
    forward = found.graph.run(**found.inputs)
    for alias in sorted(changes, key=found.steps.__getitem__):
        forward.patch(alias, changes[alias](forward.component(alias)))
    return logits_at(forward, at)


@pytest.mark.parametrize("name", [*STACKED, *ONE_BY_ONE])
@torch.no_grad()
def test_side_by_side_they_are_what_they_are_alone(
    name: str, traced: Callable[..., Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    example = traced(case(name))
    split = STACKED.get(name)
    found = Network(example.graph.split(split) if split else example.graph, example.inputs)
    at = found.places("last")
    several = changes_of(found)
    expected = [by_hand(found, changes, at) for changes in several]
    assert (found.reach(found.steps, at) is None) == (name in ONE_BY_ONE)
    # In groups that join at every step; all from the start; two at once.
    for rows, memory in ((1, None), (10**6, None), (1, 0)):
        monkeypatch.setattr(network, "ROWS", rows)
        actual = dict(found.outcomes(several, lambda forward, n: _read(forward, at, n), at, memory))
        for number, logits in enumerate(expected):
            close = 1e-5 * float(logits.abs().max())
            torch.testing.assert_close(actual[number], logits, atol=close, rtol=0)


def _read(forward: Any, at: Any, copies: int) -> Tensor:
    return logits_at(forward, at, copies).unflatten(0, (copies, -1))


class Entering(nn.Module):
    """Parameters of positions alone enter in mid-stream, in a sum and beside it; the stream starts at the input."""

    def __init__(self, beside: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(9 if beside else 4, 5)
        self.table, self.aside = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(3, 1))
        self.beside = beside

    def forward(self, x: Tensor, scales: tuple[float, float] = (1.0, 1.0)) -> Tensor:
        h = x + torch.tanh(self.one(x)) + scales[0] * self.table
        aside = scales[1] * self.aside
        if not self.beside:
            return self.head(torch.sin(h + torch.tanh(self.two(h)) + aside))
        return self.head(torch.sin(torch.cat([h, torch.tanh(self.two(h)), aside.expand(x.shape[0], -1, -1)], -1)))


@pytest.mark.parametrize("beside", [False, True])
@torch.no_grad()
def test_what_enters_in_mid_stream_is_changed_in_each_copy(beside: bool) -> None:
    """Three copies, and three positions: the one is not taken for the other."""
    model, x = Entering(beside).eval(), torch.randn(4, 3, 4)
    found = Network(jg.trace(model, x), {"x": x})
    entering = list(found.graph.injections)
    scaled: list[Changes] = [{alias: lambda own: 0.3 * own} for alias in entering] + [{"embed": lambda own: 0 * own}]
    expected = [model(x, (0.3, 1.0)), *([] if beside else [model(x, (1.0, 0.3))])]
    outcomes = dict(found.outcomes(scaled, lambda forward, n: _read(forward, None, n), None))
    for number in range(len(entering)):
        torch.testing.assert_close(outcomes[number], expected[number])
        torch.testing.assert_close(outcomes[number], by_hand(found, scaled[number], None))
    assert (found.reach(found.steps, None) is None) == beside
    mean = patch(found.graph, {"x": x}, {"x": x[:2] + 1}, values="mean", target=0)
    assert set(entering) < {*mean.senders}


def test_operators_are_dispatched_once_for_all_that_go_together(traced: Callable[..., Example]) -> None:
    """24 changes cost about what one costs: only what is particular to each is done so often."""
    example = traced(case("gpt2"))
    found = Network(example.graph, example.inputs)
    assert found.forward.output is not None
    numbers = []
    for many in (1, 24):
        several: list[Changes] = [{"L0.attn": lambda own, i=i: own * (i / 24)} for i in range(many)]
        with Operators() as operators:
            assert len(list(found.outcomes(several, lambda forward, n: _read(forward, -1, n), -1))) == many
        numbers.append(operators.counts.total())
    assert numbers[1] - numbers[0] < 8 * 24
    assert numbers[1] < numbers[0] * 24 / 3


class Deep(nn.Module):
    """Eight branches, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers, self.head = nn.ModuleList(nn.Linear(6, 6) for _ in range(8)), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + torch.tanh(layer(x))
        return self.head(x)


@pytest.mark.parametrize("name", ["deep", "t5"])
@torch.no_grad()
def test_a_pass_with_many_changes_costs_a_pass_and_batches_what_comes_after_their_changes(
    name: str, traced: Callable[..., Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many go together; those that join others take one pass more, of the model as it is."""
    monkeypatch.setattr(network, "ROWS", 1)
    if name == "deep":
        x = torch.randn(2, 3, 6)
        found = Network(jg.trace(Deep().eval(), x), {"x": x})
    else:
        found = Network((example := traced(case(name))).graph, example.inputs)
    at = None if name == "deep" else found.places("last")
    with FlopCounterMode(display=False) as whole:
        assert found.forward.output is not None
    branches = [alias for alias in found.steps if alias in found.graph.branches]
    with FlopCounterMode(display=False) as changed:
        assert found.changed(dict.fromkeys(branches[::2], lambda own: 0.5 * own)).output is not None
    assert changed.get_total_flops() <= 1.02 * whole.get_total_flops()
    several = changes_of(found)
    reach = found.reach(found.steps, at)
    assert reach is not None
    costs: list[int] = []
    for memory in (0, None, 5 * reach.bytes(found.forward.sizes)):
        with FlopCounterMode(display=False) as counted:
            assert len(dict(found.outcomes(several, lambda f, n: _read(f, at, n), at, memory))) == len(several)
        costs.append(counted.get_total_flops())
    assert max(costs) - costs[0] <= whole.get_total_flops()


@torch.no_grad()
def test_rows_of_unequal_length_side_by_side() -> None:
    """Padded prompts: a component that is removed of all rows at once is removed of each alone."""
    loaded = jg.loading.load("demo")
    prompts = ["Raise Value", "for key in error values"]
    inputs = loaded.inputs(prompts)
    assert 0 in inputs["attention_mask"]
    graph = loaded.trace(inputs)
    found = jg.ablate(graph, None, inputs, target=5, split="heads")
    for row in range(len(prompts)):
        kept = inputs["attention_mask"][row] != 0
        single = {name: value[row : row + 1, kept] for name, value in inputs.items()}
        alone = jg.ablate(graph, None, single, target=5, split="heads")
        for path, outputs in found.outputs.items():
            if outputs.through is not None:
                expected = alone.outputs[path].through
                assert expected is not None
                torch.testing.assert_close(outputs.through[row], expected[0], atol=2e-4, rtol=1e-4)


@torch.no_grad()
def test_senders_side_by_side_are_senders_one_by_one(traced: Callable[..., Example]) -> None:
    """Heads of post-norm layers, whose branches are held as wholes, and what they give to others and to the decoder."""
    example = traced(case("opt_post_norm"))
    other = {**example.inputs, "input_ids": example.inputs["input_ids"].roll(1, -1)}
    options: dict[str, Any] = {"target": 3, "split": "heads", "receivers": ["logits", "L1.*"]}
    every = patch(example.graph, example.inputs, other, **options)
    for sender in ("embed", "L0.attn.head1", "L1.attn.head0"):
        one = patch(example.graph, example.inputs, other, senders=sender, **options)
        place = every.senders.index(sender)
        torch.testing.assert_close(one.effects[0], every.effects[place], atol=1e-5, rtol=1e-4, equal_nan=True)
        torch.testing.assert_close(one.totals[0], every.totals[place], atol=1e-5, rtol=1e-4)
    # To the decoder alone, later branches are held as well: they stand at more steps than there are components.
    straight = patch(example.graph, example.inputs, other, **{**options, "receivers": "logits"})
    torch.testing.assert_close(straight.effects[:, 0], every.effects[:, -1], atol=1e-5, rtol=1e-4)
