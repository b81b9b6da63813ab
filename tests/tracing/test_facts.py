"""What a model's code reads, as values that compare by what they are."""

from __future__ import annotations

import copy
import enum
import functools
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from jetgraph.tracing.facts import EVERYTHING, Asked, described, moved

READ = Asked(frozenset(), frozenset({"read", "config", "act"}))


class Kind(enum.Enum):
    ONE = 1


class Object:
    def __init__(self, read: Any, other: Any) -> None:
        self.read, self.other = read, other


def _facts(model: nn.Module, asked: Asked = EVERYTHING) -> dict[str, Any]:
    found = described(model, asked).modules[""]
    return {name: value for name, value in found.items() if name.startswith(".")}


def test_attributes_that_are_asked_for() -> None:
    model: Any = nn.Identity()
    model.read, model.other, model.config = (1, Kind.ONE, "a"), 2, Object({"x": [1.5]}, 3)
    assert _facts(model, READ) == {
        ".read": (1, Kind.ONE, "a"),
        ".config": {"class": Object, ".read": {"'x'": (1.5,)}},
    }


def test_a_copy_is_the_same() -> None:
    """Though its objects, functions and methods are others."""
    model: Any = nn.Sequential(nn.GELU())
    model.config, model.read, model.method = Object(model, 1), functools.partial(max, 1), model.extend
    one, other = described(model, EVERYTHING), described(copy.deepcopy(model), EVERYTHING)
    assert one.modules == other.modules
    assert not moved(one, other)


def test_what_follows_the_model_does_not_count() -> None:
    model: Any = nn.Linear(1, 1)
    model.place, model.type, model.held = torch.device("cpu"), torch.float32, torch.ones(2)
    assert not {".place", ".type", ".held"} & _facts(model).keys()


def test_functions_are_their_code_and_what_is_bound_to_them() -> None:
    def scaled(by: float, kept: list[Tensor]) -> Any:
        def function(x: Tensor, *, shift: int = 1) -> Tensor:
            kept.append(x)
            return by * x + shift

        return function

    kept = list[Tensor]()
    model: Any = nn.Identity()
    found = []
    for by in (1.0, 1.0, 2.0):
        model.read = scaled(by, kept)
        model.read(torch.ones(1))
        found.append(_facts(model)[".read"])
    assert found[0] == found[1] != found[2]


def test_a_variable_that_a_function_changes_is_not_bound_to_it() -> None:
    number = 0

    def count() -> None:
        nonlocal number
        number += 1

    model: Any = nn.Identity()
    model.read = count
    before = _facts(model)
    count()
    assert _facts(model) == before


def test_names_of_what_has_moved() -> None:
    model: Any = nn.Sequential(nn.Identity())
    model.config = SimpleNamespace(scale=1.0, seen={"number": 0}, inner=SimpleNamespace(calls=[]))
    model[0].counter = 0
    before = described(model, EVERYTHING)
    model.config.seen["number"], model[0].counter, model.made = 1, 1, True
    model.config.inner.calls.append(1)
    assert moved(before, described(model, EVERYTHING)) == {"seen", "counter", "made", "calls"}


def test_a_parametrized_module_is_of_its_class() -> None:
    model = nn.Linear(2, 2)
    before = described(model, EVERYTHING).modules[""]
    parametrize.register_parametrization(model, "weight", nn.Identity())
    assert described(model, EVERYTHING).modules[""] == before


def test_what_holds_itself() -> None:
    model: Any = nn.Identity()
    model.read = [1]
    model.read.append(model.read)
    assert _facts(model)[".read"] == (1, _facts(model)[".read"][1])
