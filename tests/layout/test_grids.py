"""What stands on nodes of a grid, and beside its rows."""

from __future__ import annotations

import pytest

from jetgraph.layout.grids import branch_of, short_name


@pytest.mark.parametrize(
    ("label", "short", "row"),
    [
        ("L3.attn@4", "attn", "L3.attn"),
        ("L3.attn.head2@4", "head2", "L3.attn"),
        ("L3.mlp.bias@4", "mlp.bias", "L3.mlp"),
        ("L3.attn.head2.bias@4", "head2.bias", "L3.attn"),
        # The second of a name in its block is a branch of its own, and no part of the first.
        ("L4.norm.2@7", "norm.2", "L4.norm.2"),
        ("encoder.L1.mlp.2@0", "mlp.2", "encoder.L1.mlp.2"),
        ("L1.mlp.2.neuron5@0", "neuron5", "L1.mlp.2"),
        ("L1.mlp.2.bias@0", "mlp.2.bias", "L1.mlp.2"),
        ("embed@0", "embed", "embed"),
        ("norm.2", "norm.2", "norm.2"),
    ],
)
def test_names_of_nodes_and_rows(label: str, short: str, row: str) -> None:
    facts = {"label": label, "role": "site", "alias": label.partition("@")[0]}
    assert (short_name(facts), branch_of(facts)) == (short, row)
