"""The largest values against a sort of everything, ties by lower row and column, in whatever order blocks come."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jetgraph.applications.ranking import RunningTop, row_top
from jetgraph.applications.readout import top_tokens


def sorted_entries(values: torch.Tensor, keep: int) -> list[tuple[int, int]]:
    flat = [(-value, row, column) for row, line in enumerate(values.tolist()) for column, value in enumerate(line)]
    return [(row, column) for _, row, column in sorted(flat)[:keep]]


@given(st.integers(0, 2**16), st.integers(1, 30), st.integers(1, 5), st.booleans())
def test_the_running_top_is_that_of_the_whole(seed: int, keep: int, size: int, shuffled: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    # Few values, so that most are tied.
    values = torch.randint(0, 4, (7, 6), generator=generator).float()
    other = torch.rand(7, 6, generator=generator)
    rows = torch.randperm(7, generator=generator) if shuffled else torch.arange(7)
    best = RunningTop(keep, torch.float32, carried=1)
    for start in range(0, 7, size):
        some = rows[start : start + size]
        best.add(some, values[some], other[some])
    expected = sorted_entries(values, keep)
    assert list(zip(best.rows.tolist(), best.columns.tolist(), strict=True)) == expected
    assert best.values.tolist() == [values[entry] for entry in expected]
    assert best.carried[:, 0].tolist() == [other[entry] for entry in expected]


def test_entries_below_a_floor_are_left_out() -> None:
    best = RunningTop(5, above=0.0)
    best.add(torch.tensor([3, 1]), torch.tensor([[0.0, -1.0, 2.0], [2.0, 0.0, 0.5]]).double())
    assert (best.rows.tolist(), best.columns.tolist()) == ([1, 3, 1], [0, 2, 2])


@pytest.mark.parametrize("keep", [1, 3, 7])
def test_ties_in_rows_go_to_the_lower_column(keep: int) -> None:
    values = torch.randint(0, 3, (50, 7), generator=torch.Generator().manual_seed(keep)).double()
    best, place = row_top(values, keep)
    expected = np.argsort(-values.numpy(), axis=1, kind="stable")[:, :keep]
    assert (place.numpy() == expected).all()
    assert torch.equal(best, values.gather(1, place))


def test_tied_tokens_are_told_in_order() -> None:
    assert top_tokens(torch.tensor([0.0, 2.0, 2.0, 2.0, 1.0] * 40), None, 3) == "#1  #2  #3"
