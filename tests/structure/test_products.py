"""Parts of a branch as one matrix product, against each part by itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import jetgraph as jg
from tests.operators import Operators
from tests.zoo import CASES

BY_NAME = {case.name: case for case in CASES}


@pytest.mark.parametrize(
    ("name", "split", "one_product"),
    [("llama", "heads", True), ("gpt2", "heads", True), ("gemma2", "heads", False), ("gpt2", "neurons", True)],
)
def test_parts_together_are_the_parts_alone(name: str, split: Any, one_product: bool) -> None:
    """In order, of any choice of them; behind a norm they are no single product."""
    case = BY_NAME[name]
    inputs = case.inputs()
    graph = jg.trace(case.build().double(), **inputs).split(split)
    forward = graph.run(**inputs)
    wholes = {branch.part.whole: branch.part.cut for branch in graph.branches.values() if branch.part is not None}
    for whole, cut in wholes.items():
        aliases = [a for a, b in graph.branches.items() if b.part is not None and b.part.whole == whole]
        chosen = [alias for alias in aliases if graph.branches[alias].part.indices is not None][::-1]  # type: ignore[union-attr]
        chosen = chosen[: max(2, len(chosen) - 1)]
        forward.component(chosen[0])
        with Operators() as together:
            values = forward.parts(chosen)
        for alias, value in zip(chosen, values, strict=True):
            torch.testing.assert_close(value, forward.component(alias), rtol=1e-12, atol=1e-13)
        parts = [part for alias in chosen if (part := graph.branches[alias].part) is not None]
        opened = {node: forward[node] for node in (cut.node, *cut.held)}
        found = cut.linear_parts(opened, forward.pieces.side(cut.region), parts)
        assert (found is not None) is one_product
        assert (together.counts["bmm"] == 1) is one_product


def test_patched_parts_are_what_was_put_there() -> None:
    case = BY_NAME["gpt2"]
    inputs = case.inputs()
    graph = jg.trace(case.build(), **inputs).split("heads")
    forward = graph.run(**inputs)
    first, second = (f"L0.attn.head{number}" for number in (0, 1))
    other = torch.randn_like(forward.component(first))
    forward.patch(first, other)
    torch.testing.assert_close(forward.parts([first, second])[0], other)
