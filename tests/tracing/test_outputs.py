"""Which tensor of a result is explained."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch

import jetgraph as jg
from jetgraph.tracing.calls import run_model
from jetgraph.tracing.trace import canonical
from tests import zoo
from tests.tracing.models import Returns, X, replayed


@pytest.mark.parametrize(
    ("make", "output", "name", "expected"),
    [
        (lambda h: h, None, "output", lambda h: h),
        (lambda h: {"a": h, "logits": 2 * h}, None, "logits", lambda h: 2 * h),
        (lambda h: {"a": h, "b": 2 * h}, None, "a", lambda h: h),
        (lambda h: {"a": h, "b": 2 * h}, "b", "b", lambda h: 2 * h),
        (lambda h: (h.argmax(-1), h, 2 * h), None, "1", lambda h: h),
        (lambda h: (h, 2 * h), 1, "1", lambda h: 2 * h),
        (lambda h: (h, 2 * h), -1, "-1", lambda h: 2 * h),
        (lambda h: {"states": (h, 3 * h)}, "states.1", "states.1", lambda h: 3 * h),
        (lambda h: OrderedDict(z=h.argmax(-1), inner={"y": h + 1}), None, "inner.y", lambda h: h + 1),
    ],
)
def test_output(make: Any, output: str | int | None, name: str, expected: Any) -> None:
    """`logits` if there is one, else the first float tensor, else what the caller names."""
    model = Returns(make).eval()
    traced = canonical(model, (X,), output=output)
    assert traced.output_name == name
    with torch.no_grad():
        assert torch.equal(replayed(traced, X), expected(model.linear(X)))
        assert torch.equal(run_model(model, (X,), {}, output), expected(model.linear(X)))


@pytest.mark.parametrize(
    ("make", "output", "says"),
    [
        (lambda h: {"a": h}, "b", "no 'b'; there are 'a'"),
        (lambda h: {"a": h.argmax(-1), "b": h}, "a", "'a' is a torch.int64, not a float tensor; there are 'b'"),
        (lambda h: (h, 2 * h), 2, "no '2'; there are '0', '1'"),
        (lambda h: h, "features", "'features' was asked for, but the model returns a single tensor"),
        (lambda h: h.argmax(-1), "x", "single tensor"),
        (lambda h: {"ids": h.argmax(-1)}, None, "no float tensor"),
    ],
)
def test_an_output_that_is_not_there(make: Any, output: str | int | None, says: str) -> None:
    with pytest.raises(jg.TraceError, match=says):
        canonical(Returns(make).eval(), (X,), output=output)


def test_only_what_the_output_needs_is_kept() -> None:
    """A head that another output needs is no part of the graph."""
    model = zoo.case("returns_dict").build()
    traced = canonical(model, kwargs=zoo.case("returns_dict").inputs(), output="features", dynamic=False)
    assert not any(name.startswith("head") for name in traced.tensors)
    assert any(name.startswith("blocks.1") for name in traced.tensors)


def test_an_output_that_the_input_does_not_change() -> None:
    with pytest.raises(jg.JetGraphError, match="input"):
        jg.trace(Returns(lambda h: torch.ones(3)).eval(), X)
