"""What code asks for by name, and what it changes, is found out while it runs."""

from __future__ import annotations

import cProfile
import functools
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from jetgraph.tracing.ran import Ran

X = torch.ones(2, 3)


def _decorated(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any) -> Any:
        return function(*args)

    return wrapper


@_decorated
def called(x: Tensor) -> Tensor:
    return x


@_decorated
def idle(x: Tensor) -> Tensor:
    return x


class Reads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.made = nn.LayerNorm(3), 0

    def forward(self, x: Tensor) -> Tensor:
        self.counter = getattr(self, "counter", 0) + 1
        if len(x) > 5:
            self._grown(x)
            return idle(x)
        return called(self.norm(x)) * self.factor * getattr(self, "by_text", 1)

    @property
    def factor(self) -> float:
        return self.hidden if hasattr(self, "hidden") else 1.0

    def _grown(self, x: Tensor) -> None:
        self.longest = len(x)

    def reset(self) -> None:
        self.unreachable = 0


def _ran(model: nn.Module) -> Ran:
    ran = Ran()
    with ran.watched(model):
        model(X)
    return ran


def test_names_are_those_of_code_that_ran() -> None:
    model = Reads()
    asked = _ran(model).asked(model.modules())
    assert all(name in asked for name in ("norm", "factor", "hidden", "by_text", "eps", "normalized_shape"))
    assert not any(name in asked for name in ("reset", "unreachable", "made", "longest"))


def test_what_a_run_changes_does_not_count_and_what_it_may_change_is_told() -> None:
    model = Reads()
    asked = _ran(model).asked(model.modules())
    assert "counter" not in asked
    assert {"counter", "longest"} <= asked.written
    assert not {"unreachable", "made", "norm"} & asked.written


def test_functions_are_those_that_ran_where_they_are_called_from() -> None:
    model = Reads()
    assert _ran(model).asked(model.modules()).functions == {__name__: ("called",)}


def test_functions_that_are_in_no_file_are_not_looked_for() -> None:
    names: dict[str, Any] = {"__name__": "nowhere"}
    exec("def inner(x): return x\ndef outer(x): return inner(x)", names)

    class Runs(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return names["outer"](x)

    model = Runs()
    assert _ran(model).asked(model.modules()).functions == {}


def test_a_profiler_is_left_alone() -> None:
    model = Reads()
    with cProfile.Profile() as profiler:
        before = sys.getprofile()
        asked = _ran(model).asked(model.modules())
        assert sys.getprofile() is before
    assert any(entry.code == Reads.forward.__code__ for entry in profiler.getstats())
    assert "made" in asked
    assert "counter" not in asked


def test_nothing_is_left_behind_by_what_fails() -> None:
    ran = Ran()
    try:
        with ran.watched(Reads()):
            raise ValueError
    except ValueError:
        assert sys.getprofile() is None


def test_a_model_that_did_not_run_is_asked_for_everything() -> None:
    assert "anything" in Ran().asked([nn.Linear(1, 1)])
