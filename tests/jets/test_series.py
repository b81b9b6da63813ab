from __future__ import annotations

import itertools

import pytest
import torch

from jetgraph.errors import BudgetError, JetGraphError
from jetgraph.jets.series import ORDER_BUDGET, Series, centre, check_order, coefficient, has_series, stack_of


def test_variate_stores_two_rows_at_any_order() -> None:
    x = Series.variate(torch.ones(3), torch.arange(3.0), order=4)
    assert x.coefficients.shape == (2, 3)
    assert (x.start, x.stop, x.order, x.shape, x.ndim) == (0, 2, 4, (3,), 1)
    assert x.varies
    assert not Series.constant(torch.ones(3), order=4).varies
    assert torch.equal(x.stacked(), torch.stack([torch.ones(3), torch.arange(3.0), *[torch.zeros(3)] * 3]))


def test_direction_alone_has_a_zero_centre() -> None:
    x = Series.direction(torch.arange(3.0), order=2)
    assert torch.equal(x.coefficient(0), torch.zeros(3))
    assert torch.equal(x.coefficient(1), torch.arange(3.0))
    assert x.row(2) is None
    assert Series.direction(torch.arange(3.0)).order == 1


def test_a_span_has_zeros_where_nothing_is_stored() -> None:
    x = Series(torch.arange(1.0, 7).reshape(3, 2), order=6, start=2)
    whole = torch.cat([torch.zeros(2, 2), x.coefficients, torch.zeros(2, 2)])
    assert torch.equal(x.stacked(), whole)
    for start, stop in itertools.combinations(range(8), 2):
        assert torch.equal(x.span(start, stop), whole[start:stop])


def test_what_lies_beside_its_first_coefficient_is_stacked_where_it_lies() -> None:
    room = torch.cat([torch.full((1, 2), torch.nan), torch.arange(6.0).reshape(3, 2)])
    x = Series.beside(torch.tensor([7.0, 8.0]), room, order=4)
    assert x.apart
    assert (x.start, x.stop, x.order) == (0, 4, 4)
    rows = [[7.0, 8.0], [0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]
    assert [row.tolist() for row in x.stored()] == rows
    # A span copies nothing, and does not touch what is free.
    with torch.no_grad():
        assert x.span(1, 3).data_ptr() == room[1].data_ptr()
    assert x.apart
    assert room[0].isnan().all()
    assert x.coefficients.data_ptr() == room.data_ptr()
    assert not x.apart
    assert x.coefficients.tolist() == rows
    # Where less is kept than there is, what is beyond the order goes.
    cut = Series.beside(torch.zeros(2), room, order=1)
    assert cut.coefficients.tolist() == [[0.0, 0.0], [0.0, 1.0]]


def test_rows_that_lie_one_after_the_other_are_a_stack_as_they_are() -> None:
    block = torch.arange(24.0).view(3, 2, 4)
    apart = [
        *([row.T for row in block], [block[0], block[2]], [block[1], block[0]], [block[0]] * 2),
        *([*block[:2], torch.ones(2, 4)], [block[0], block[1].clone(), block[2]]),
    ]
    with torch.no_grad():
        assert stack_of(block.unbind()).data_ptr() == block.data_ptr()
        for rows in apart:
            stack = stack_of(rows)
            assert torch.equal(stack, torch.stack(rows))
            assert stack.untyped_storage().data_ptr() != block.untyped_storage().data_ptr()


def test_order_zero_variate_is_its_centre() -> None:
    assert Series.variate(torch.ones(2), torch.ones(2), order=0).stacked().tolist() == [[1.0, 1.0]]


def test_coefficients_above_the_order_are_cut() -> None:
    assert Series(torch.ones(5, 2), order=2).coefficients.shape == (3, 2)
    assert Series(torch.ones(5, 2), order=2, start=1).coefficients.shape == (2, 2)
    none = Series(torch.ones(1, 2), order=2, start=3)
    assert (none.start, none.coefficients.tolist()) == (0, [[0.0, 0.0]])


@pytest.mark.parametrize(
    ("centre_value", "direction"),
    [(torch.ones(2), torch.ones(3)), (torch.ones(2), torch.ones(2, dtype=torch.float64))],
)
def test_variate_wants_one_shape_and_dtype(centre_value: torch.Tensor, direction: torch.Tensor) -> None:
    with pytest.raises(JetGraphError, match="centre and direction differ"):
        Series.variate(centre_value, direction, 1)


def test_series_wants_a_stack_and_an_order() -> None:
    with pytest.raises(JetGraphError, match="stacked on dim 0"):
        Series(torch.tensor(1.0), 1)
    with pytest.raises(JetGraphError, match="not negative"):
        Series(torch.ones(1), -1)
    check_order(ORDER_BUDGET)
    with pytest.raises(BudgetError, match="take 1000 or less"):
        check_order(ORDER_BUDGET + 1)


def test_nested_values() -> None:
    x = Series.variate(torch.ones(2), torch.ones(2), 1)
    assert has_series([1, {"a": (x,)}])
    assert not has_series([1, {"a": (torch.ones(1),)}])
    assert torch.equal(centre({"a": [x, 2]})["a"][0], torch.ones(2))


def test_of_what_did_not_depend_on_the_variate_order_0_alone_is_there() -> None:
    x = Series.variate(torch.ones(2), torch.full((2,), 3.0), 1)
    assert [coefficient(x, j).tolist() for j in (0, 1)] == [[1, 1], [3, 3]]
    assert [coefficient(torch.full((2,), 5.0), j).tolist() for j in (0, 1)] == [[5, 5], [0, 0]]


def test_rows_that_are_none_are_not_stored() -> None:
    like = torch.ones(2)
    x = Series.of_rows([None, like, None, like * 2, None], 4, like)
    assert (x.start, x.stop) == (1, 4)
    assert x.coefficient(2).abs().sum() == 0
    assert Series.of_rows([None, None], 1, like).stacked().tolist() == [[0, 0], [0, 0]]
    assert not Series.of_rows([None, like], 4).apart


def test_rows_stay_apart_until_the_stack_is_asked_for() -> None:
    rows = [torch.full((2,), float(j)) for j in range(3)]
    x = Series.of_rows([*rows, None], 3, rows[0])
    assert x.apart
    assert (x.start, x.stop, x.shape, x.ndim, x.dtype) == (0, 3, (2,), 1, torch.float32)
    assert all(kept is given for kept, given in zip(x.rows(), [*rows, None], strict=True))
    assert torch.equal(x.coefficients, torch.stack(rows))
    assert not x.apart
    assert torch.equal(x.coefficient(2), rows[2])


def test_rows_above_the_order_are_cut_and_smaller_ones_broadcast() -> None:
    like = torch.ones(2, 3)
    x = Series.of_rows([like, torch.ones(3), like, like], 1, like)
    assert (x.stop, x.coefficients.shape) == (2, (2, 2, 3))


@pytest.mark.parametrize("apart", [False, True])
def test_raised_is_times_a_power_of_t(apart: bool) -> None:
    rows = [torch.full((2,), 1.0 + j) for j in range(2)]
    x = Series.of_rows(rows, 1, rows[0]) if apart else Series(torch.stack(rows), 1)
    assert x.raised(2, 3).stacked()[:, 0].tolist() == [0.0, 0.0, 1.0, 2.0]
    assert x.raised(2, 2).stacked()[:, 0].tolist() == [0.0, 0.0, 1.0]
    assert x.raised(2, 1).stacked()[:, 0].tolist() == [0.0, 0.0]


def test_repr_says_what_is_stored() -> None:
    assert repr(Series.variate(torch.ones(2), torch.ones(2), 3)) == "Series(orders 0..1 of 0..3, torch.float32[2])"
