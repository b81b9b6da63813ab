"""What a trace depends on has one fingerprint, and whatever changes the program changes it."""

from __future__ import annotations

import functools
import gc
import operator
import re
import sys
import threading
import types
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from jetgraph.export.fingerprint import fingerprint, is_watched, watched
from tests import zoo
from tests.tracing import models
from tests.tracing.models import SETTINGS, Residual, settled

SLOPE = 2.0


class Sloped(Residual):
    """It reads what is not its own: its class's, its file's, and what functions that it holds are bound to."""

    slope = 2.0
    slopes: ClassVar[list[dict[str, float]]] = [{"first": 1.0}]
    scaled = models.Settings()

    def __init__(self) -> None:
        super().__init__()
        self.use_hash = 1.0
        self.act = _scaling(2.0)
        self.factor = torch.tensor(2.0)
        self.listed = Listed()
        self.renamed = Renamed(re.compile("a+"), 1)
        self.empty = Listed()
        self.ordered = OrderedDict(first=[1.0], second=[1.0])
        self.twice = [self.ordered["first"]] * 2

    def forward(self, x: Tensor) -> Tensor:
        return self._sloped(super().forward(x)) * _doubled(x)

    def _sloped(self, x: Tensor) -> Tensor:
        x = settled(x) * models.FACTOR * SETTINGS.factor * self.slopes[0]["first"] * self.scaled.listed[0]
        return self.slope * self.act(x) * float(self.factor)


class Listed(dict):
    """A dict with an attribute."""

    slope = 2.0


class Named:
    """It has no dict of attributes, as what renames the weights of a mixture of experts has none."""

    __slots__ = ("__own", "__weakref__", "pattern")

    def __init__(self, pattern: re.Pattern[str], own: int) -> None:
        self.pattern = pattern
        self.__own = own


class Renamed(Named):
    __slots__ = "unset"


def _doubled(x: Tensor) -> Tensor:
    return SLOPE * x


def _moved(one: list[float], other: list[float]) -> None:
    """What both hold in turn is the same."""
    other.insert(0, one.pop())


def _scaling(number: float) -> Callable[[Tensor], Tensor]:
    def scaled(x: Tensor, *, by: float = number) -> Tensor:
        return by * x

    return scaled


def _lambdas() -> list[Callable[[Tensor], Tensor]]:
    return [lambda x: x.sin(), lambda x: x.cos()]


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
    _, watch = watched(model)
    assert watch is not None
    assert is_watched(model, watch)
    CHANGES[what](model)
    assert fingerprint(model) not in (before, None)
    assert not is_watched(model, watch)


READ: dict[str, Callable[[Any, pytest.MonkeyPatch], Any]] = {
    "a class's value": lambda model, patch: patch.setattr(Sloped, "slope", 3.0),
    "a file's value": lambda model, patch: patch.setitem(globals(), "SLOPE", 3.0),
    "a file's function": lambda model, patch: patch.setitem(globals(), "_doubled", _lambdas()[0]),
    "a class's function": lambda model, patch: patch.setattr(Sloped, "_sloped", lambda self, x: x),
    "a class's container": lambda model, patch: patch.setitem(Sloped.slopes[0], "first", 3.0),
    "a class's object": lambda model, patch: patch.setattr(Sloped.scaled, "listed", (3.0,), raising=False),
    "another file's value": lambda model, patch: patch.setattr(models, "FACTOR", 3.0),
    "another file's object": lambda model, patch: patch.setattr(SETTINGS, "factor", 3.0),
    "what another file's function reads": lambda model, patch: patch.setitem(models.Settings.listed[1], "first", 3.0),
    "a default": lambda model, patch: setattr(model, "act", _scaling(3.0)),
    "a name that ends in hash": lambda model, patch: setattr(model, "use_hash", 2.0),
    "a number in a tensor": lambda model, patch: model.factor.fill_(3.0),
    "an attribute of a dict": lambda model, patch: setattr(model.listed, "slope", 3.0),
    "an attribute of an empty dict": lambda model, patch: setattr(model.empty, "slope", 3.0),
    "an attribute of what no hooks are in": lambda model, patch: setattr(model._forward_hooks, "slope", 3.0),
    "an order": lambda model, patch: model.ordered.move_to_end("first"),
    "a name": lambda model, patch: model.ordered.update(third=model.ordered.pop("second")),
    "a kind of container": lambda model, patch: model.ordered.update(second=(1.0,)),
    "one list for two": lambda model, patch: model.ordered.update(second=model.twice[0]),
    "two lists for one": lambda model, patch: operator.setitem(model.twice, 1, [*model.twice[0]]),
    "where one list ends": lambda model, patch: _moved(model.ordered["first"], model.ordered["second"]),
    "a slot": lambda model, patch: setattr(model.renamed, "unset", None),
    "a slot of a class above": lambda model, patch: setattr(model.renamed, "_Named__own", 2),
    "a pattern's flags": lambda model, patch: setattr(model.renamed, "pattern", re.compile("a+", re.DOTALL)),
    "strides": lambda model, patch: setattr(model.linear, "weight", nn.Parameter(model.linear.weight.detach().T)),
}


@pytest.mark.parametrize("what", READ)
def test_what_a_program_reads_from_elsewhere_changes_it(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Sloped().eval()
    before = fingerprint(model)
    assert before is not None
    assert before == fingerprint(Sloped().eval())
    _, watch = watched(model)
    assert watch is not None
    nn.init.ones_(model.linear.weight)
    assert is_watched(model, watch)
    READ[what](model, monkeypatch)
    assert fingerprint(model) not in (before, None)
    assert not is_watched(model, watch)


def test_functions_of_one_name_are_told_apart() -> None:
    first, second = map(fingerprint, _lambdas())
    assert None not in (first, second)
    assert first != second


@pytest.mark.parametrize("wrap", [torch.compiler.disable, torch.no_grad()])
def test_wrapping_a_function_again_does_not_change_it(wrap: Callable[[Any], Any]) -> None:
    """Where the wrapper lies in memory is another place in each process."""
    inner = settled
    first, second = wrap(inner), wrap(inner)
    assert first is not second
    assert fingerprint(first) == fingerprint(second) is not None


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
    _, watch = watched(model)
    assert watch is not None
    make(model)
    assert fingerprint(model) is None
    assert watched(model) == (None, None)
    assert not is_watched(model, watch)


def test_what_is_watched_is_not_kept_alive() -> None:
    model = Residual().eval()
    described, watch = watched(model)
    assert watch is not None
    inner, model.linear = weakref.ref(model.linear), nn.Linear(4, 4)
    gc.collect()
    assert inner() is None
    assert not is_watched(model, watch)
    again, _ = watched(model.train())
    assert again != described
    # What nothing can refer to weakly might be another one in its place.
    model.place = Place()
    described, watch = watched(model)
    assert described is not None
    assert watch is None


def test_what_is_watched_is_looked_at_together() -> None:
    """However many containers there are, and nothing in what Python keeps of a class."""
    calls = list[int]()
    model = Sloped().eval()
    for number in (2, 50):
        setattr(model, "sizes", {f"{at}": [at, {"first": at}] for at in range(number)})  # noqa: B010
        _, watch = watched(model)
        assert watch is not None
        counted = list[str]()
        sys.setprofile(lambda frame, event, arg, counted=counted: counted.append(event))
        try:
            same = is_watched(model, watch)
        finally:
            sys.setprofile(None)
        assert same
        calls.append(counted.count("call"))
    assert calls[0] == calls[1]
    Sloped.__annotations__["later"] = int
    try:
        assert is_watched(model, watch)
    finally:
        del Sloped.__annotations__["later"]


class Place:
    __slots__ = ("at",)


def test_what_holds_itself_deeply_or_is_not_there_yet_has_none_or_one(monkeypatch: pytest.MonkeyPatch) -> None:
    deep: list[Any] = []
    for _ in range(5000):
        deep = [deep]
    assert fingerprint(deep) is None

    def early() -> Any:
        return late

    assert fingerprint(early) is not None
    late = 1
    assert fingerprint(early) is not None
    gone = types.ModuleType("gone")
    gone.__file__ = "/nowhere/gone.py"
    monkeypatch.setitem(sys.modules, "gone", gone)
    assert fingerprint(type("Gone", (nn.Identity,), {"__module__": "gone"})()) is None


def test_with_a_hook_of_all_modules_there_is_none() -> None:
    hook = nn.modules.module.register_module_forward_hook(lambda module, args, output: output)
    try:
        assert fingerprint(nn.Identity()) is None
    finally:
        hook.remove()


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
