"""Paths at one position: what they are at all of them there, with no work at others behind what mixes positions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import jetgraph as jg
from jetgraph.compilation.placing import _divided
from jetgraph.compilation.plan import Enter, Pass, Plan
from jetgraph.running.indices import at_places
from tests.conftest import Example
from tests.operators import peak
from tests.zoo import case

EXPANSIONS: dict[str, Callable[[jg.ResidualGraph], jg.Expansion]] = {
    "heads": lambda graph: jg.expand(graph, recipe="components", rules={"logits": jg.Freeze()}, split="heads"),
    "lens": lambda graph: jg.expand(graph, 2, recipe="lens"),
    "frozen": lambda graph: jg.expand(graph, recipe="frozen"),
    "optimal": lambda graph: jg.expand(graph, 1, weights="optimal"),
    "beam": lambda graph: jg.expand(graph, 1, recipe="beam", width=2),
}


def module_of(expansion: jg.Expansion) -> jg.PathModule:
    return jg.compile(expansion, None if expansion.chooses or expansion.count() < 200 else "embed > *.mlp > logits")


def there(value: Tensor, places: int | Tensor, shape: tuple[int, ...]) -> Tensor:
    return at_places(value.expand(shape), places)


@pytest.mark.parametrize("recipe", EXPANSIONS)
@pytest.mark.parametrize("name", ["llama", "gpt2", "whisper", "unet"])
def test_values_are_those_of_all_positions_there(
    name: str, recipe: str, traced: Callable[..., Example], recwarn: pytest.WarningsRecorder
) -> None:
    """Of a U-Net, whose second dimension counts channels, nothing is apart."""
    example = traced(case(name))
    if recipe == "heads" and name == "unet":
        pytest.skip("it has no heads")
    module = module_of(EXPANSIONS[recipe](example.graph))
    with torch.no_grad():
        whole = module(**example.inputs)
        for position in (-1, 0, [1, -1]):
            found, places = module.at(position, **example.inputs), whole.forward.places(position)
            assert list(found.hidden) == list(whole.hidden)
            # One row and all of them may have other kernels for their products.
            torch.testing.assert_close(found.output, at_places(whole.output, places), rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(found.total, at_places(whole.total, places), rtol=1e-5, atol=1e-6)
            shape = tuple(whole.output.shape)
            terms = torch.stack([there(term, places, shape) for term in whole.terms.values()])
            torch.testing.assert_close(found.each(), terms, rtol=1e-4, atol=1e-6 * float(terms.abs().max()))


def test_only_what_mixes_positions_is_made_at_all_of_them(traced: Callable[..., Example]) -> None:
    graph = traced(case("llama")).graph
    sites: dict[str, tuple[set[str], set[str]]] = {}
    for recipe in ("heads", "frozen"):
        module = module_of(EXPANSIONS[recipe](graph))
        divided = _divided(module.plan, module._model, -1)
        sites[recipe] = told(divided.whole), told(divided.apart)
    assert sites["heads"][0] == {"embed"}
    assert {"L0.attn.head1", "L1.mlp", "logits"} <= sites["heads"][1]
    assert {"embed", "L0.attn", "L1.attn", "L0.mlp"} <= sites["frozen"][0]
    assert {"L1.mlp", "logits"}.isdisjoint(sites["frozen"][0])
    assert {"L1.mlp", "logits"} <= sites["frozen"][1]
    assert {"L0.attn", "L1.attn", "L0.mlp"}.isdisjoint(sites["frozen"][1])


def told(plan: Plan) -> set[str]:
    operations = (plan.operations[index] for index in plan.order())
    return {
        one.entry.source.alias if isinstance(one, Enter) else one.site
        for one in operations
        if isinstance(one, Enter | Pass)
    }


def test_work_and_memory_at_other_positions(traced: Callable[..., Example]) -> None:
    """Of heads one by one at all positions, their outputs alone take some times what the pass has for them."""
    example = traced(case("llama"), "sdpa")
    module, ids = module_of(EXPANSIONS["heads"](example.graph)), torch.randint(0, 50, (1, 96))

    def flops(work: Callable[[], Any]) -> int:
        with torch.no_grad(), FlopCounterMode(display=False) as counted:
            work()
        return counted.get_total_flops()

    def whole() -> Tensor:
        return module(input_ids=ids).each(position=-1)

    def apart() -> Tensor:
        return module.at(-1, input_ids=ids).each()

    def forward() -> None:
        module.run(input_ids=ids).need(module.plan.reads)

    own = flops(forward)
    assert 5 * (flops(apart) - own) < flops(whole) - own
    held = peak(forward)
    assert peak(whole) > 2 * held
    assert peak(apart) < 1.1 * held
    torch.testing.assert_close(apart(), whole())


def test_what_is_asked_of_values_at_one_position(traced: Callable[..., Example]) -> None:
    example = traced(case("llama"))
    module = module_of(EXPANSIONS["frozen"](example.graph))
    whole, found = module(**example.inputs), module.at([2, -1], **example.inputs)
    assert found.remainder.abs().max() < 1e-5 * found.output.abs().max()
    assert found.relative < 1e-5
    scores, others = found.scores(example=1), whole.scores(example=1)
    assert scores.position == others.position == 6
    assert scores.by_path == pytest.approx(others.by_path, abs=1e-5)
    assert found.scores().position == 2
    torch.testing.assert_close(found.sum("embed > **"), whole.sum("embed > **", position=[2, -1]))
    assert "terms of shape (2, 1, " in repr(found)
    with pytest.raises(jg.InputError, match="those at one position"):
        found.each(position=0)
    with pytest.raises(jg.InputError, match="position=7 does not exist"):
        module.at(7, **example.inputs)
    assert torch.equal(module.at(None, **example.inputs).total, whole.total)


def test_results_of_frozen_sites_keep_nothing_else_in_memory(traced: Callable[..., Example]) -> None:
    """One by one they pass as series, whose coefficient at the stream nothing reads."""
    example = traced(case("llama"), "sdpa")
    module = jg.compile(EXPANSIONS["heads"](example.graph), memory=0)
    with torch.no_grad():
        hidden = module(**example.inputs).hidden
    held = {id(value.untyped_storage()): value.untyped_storage().nbytes() for value in hidden.values()}
    assert sum(held.values()) == sum(value.nbytes for value in hidden.values())
