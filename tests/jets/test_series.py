from __future__ import annotations

import pytest
import torch

from jetgraph.errors import JetGraphError
from jetgraph.jets.series import Series, centre, has_series


def test_variate_stores_two_rows_at_any_order() -> None:
    x = Series.variate(torch.ones(3), torch.arange(3.0), order=4)
    assert x.coefficients.shape == (2, 3)
    assert (x.start, x.stop, x.order, x.shape, x.ndim) == (0, 2, 4, (3,), 1)
    assert torch.equal(x.stacked(), torch.stack([torch.ones(3), torch.arange(3.0), *[torch.zeros(3)] * 3]))


def test_direction_alone_has_a_zero_centre() -> None:
    x = Series(torch.arange(3.0)[None], order=2, start=1)
    assert torch.equal(x.coefficient(0), torch.zeros(3))
    assert torch.equal(x.coefficient(1), torch.arange(3.0))
    assert x.row(2) is None
    assert x.span(0, 2).shape == (2, 3)
    assert x.span(2, 4).shape == (2, 3)


def test_order_zero_variate_is_its_centre() -> None:
    assert Series.variate(torch.ones(2), torch.ones(2), order=0).stacked().tolist() == [[1.0, 1.0]]


def test_coefficients_above_the_order_are_cut() -> None:
    assert Series(torch.ones(5, 2), order=2).coefficients.shape == (3, 2)
    assert Series(torch.ones(1, 2), order=2, start=3).stacked().abs().sum() == 0


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


def test_nested_values() -> None:
    x = Series.variate(torch.ones(2), torch.ones(2), 1)
    assert has_series([1, {"a": (x,)}])
    assert not has_series([1, {"a": (torch.ones(1),)}])
    assert torch.equal(centre({"a": [x, 2]})["a"][0], torch.ones(2))


def test_rows_that_are_none_are_not_stored() -> None:
    like = torch.ones(2)
    x = Series.of_rows([None, like, None, like * 2, None], 4, like)
    assert (x.start, x.stop) == (1, 4)
    assert x.coefficient(2).abs().sum() == 0
    assert Series.of_rows([None, None], 1, like).stacked().abs().sum() == 0


def test_repr_says_what_is_stored() -> None:
    assert repr(Series.variate(torch.ones(2), torch.ones(2), 3)) == "Series(orders 0..1 of 0..3, torch.float32[2])"
