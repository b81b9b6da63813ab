"""What a trace depends on has one fingerprint, and whatever changes the program changes it."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from jetgraph.export.fingerprint import fingerprint
from tests import zoo
from tests.tracing.models import Residual


def _shared(model: Any) -> None:
    model.again = model.linear


def _config(model: Any) -> None:
    model.sizes = {"width": [4, 8]}


class Other(Residual):
    """Another class with the same modules."""


CHANGES: dict[str, Callable[[Any], Any]] = {
    "a switch": lambda model: setattr(model.dropout, "p", 0.25),
    "a tie": _shared,
    "a container": _config,
    "a type": lambda model: model.double(),
    "a shape": lambda model: setattr(model, "linear", nn.Linear(4, 4, bias=False)),
    "a class": lambda model: setattr(model, "__class__", Other),
    "a function": lambda model: setattr(model, "act", torch.relu),
    "a closure": lambda model: setattr(model, "act", functools.partial(torch.add, 2)),
    "a frozen weight": lambda model: model.linear.weight.requires_grad_(False),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_changes_a_program_changes_it(what: str) -> None:
    model = Residual().eval()
    before = fingerprint(model)
    assert before is not None
    assert before == fingerprint(Residual().eval())
    CHANGES[what](model)
    assert fingerprint(model) not in (before, None)


def test_values_of_weights_do_not_change_it() -> None:
    model = Residual().eval()
    before = fingerprint(model)
    nn.init.ones_(model.linear.weight)
    assert fingerprint(model) == before
    assert fingerprint(model, 1) not in (before, None)


def _hook(model: nn.Module) -> None:
    model.register_forward_hook(lambda module, args, output: output * 2)


@pytest.mark.parametrize("make", [_hook, lambda model: setattr(model, "lock", threading.Lock())])
def test_what_cannot_be_described_has_none(make: Callable[[Any], Any]) -> None:
    model = Residual().eval()
    make(model)
    assert fingerprint(model) is None


def test_a_class_that_was_typed_in_has_none() -> None:
    """Nobody could tell that its code has changed."""
    kind = type("Typed", (Residual,), {"__module__": "nowhere"})
    assert fingerprint(kind().eval()) is None


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_models_of_transformers_have_one(name: str) -> None:
    case = zoo.case(name)
    first, second = (fingerprint(case.build(attention)) for attention in ("eager", "sdpa"))
    assert None not in (first, second)
    assert first == fingerprint(case.build("eager"))
    assert first != second
