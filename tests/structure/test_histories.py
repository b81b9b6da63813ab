"""Which lists of what layers have made are written as one tensor, and that values stay what they are."""

from __future__ import annotations

import pytest
import torch

from jetgraph.structure.dataflow import dataflow
from jetgraph.structure.histories import side_by_side_in_lists
from tests.interpretation import execute
from tests.structure.test_long_skips import (
    leapfrog,
    python_sum_of_layers,
    running_mean,
    traced,
    weighted_history,
    weighted_list,
)


@pytest.mark.parametrize("run", [weighted_list, weighted_history, python_sum_of_layers, running_mean, leapfrog])
@torch.no_grad()
def test_only_lists_of_which_no_sum_is_kept(run: object) -> None:
    net, inputs, graph = traced(run)  # type: ignore[arg-type]
    assert net.training is False
    program = graph.traced
    written = side_by_side_in_lists(dataflow(program))
    # What the graph has is written already: it has no list any more.
    assert written is None, run
    cats = [node for node in program.graph.nodes if "cat" in str(node.target)]
    assert len(cats) == (4 if run is weighted_list else 0)
    if not cats:
        return
    values = {}
    for node in program.graph.nodes:
        if node.op == "placeholder":
            binding = program.bindings[node.name]
            values[node] = (inputs if binding.kind == "input" else program.tensors)[binding.name]
        elif node.op != "output":
            values[node] = execute(node, values)
    widths = [values[node].shape[-1] for node in cats]
    assert widths == [width * widths[0] // 2 for width in range(2, 6)]
    assert torch.allclose(values[program.output], net(**inputs), atol=1e-12)
