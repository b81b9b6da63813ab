"""At a glance: a model that holds what it held is the same, and nothing is kept alive to tell that."""

from __future__ import annotations

import gc
import re
import types
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from jetgraph.tracing.facts import EVERYTHING
from jetgraph.tracing.glance import Glance


def _adding(number: int) -> Callable[[int], int]:
    return lambda other: number + other


def _model() -> Any:
    model = nn.Sequential(nn.Linear(2, 2), nn.ModuleDict({"act": nn.GELU(), "norm": nn.LayerNorm(2)}))
    model.config = types.SimpleNamespace(scale=1.0, inner=types.SimpleNamespace(names=["a"]), table={"a": {"b": 1}})
    model.listed, model.plain, model.function, model.built_in = [1.0, (2, 3)], 0.5, len, torch.relu
    model.config.itself = model.config
    return model


CHANGES: dict[str, Callable[[Any], Any]] = {
    "a value": lambda model: setattr(model, "plain", 0.25),
    "a kind of value": lambda model: setattr(model, "plain", torch.ones(2)),
    "a value more": lambda model: setattr(model, "more", 1),
    "a value less": lambda model: delattr(model, "plain"),
    "in a list": lambda model: model.listed.append(1),
    "an object": lambda model: setattr(model, "config", types.SimpleNamespace(scale=2.0)),
    "in an object": lambda model: setattr(model.config, "scale", 2.0),
    "in an object's": lambda model: model.config.inner.names.append("b"),
    "in a table": lambda model: model.config.table["a"].update(b=2),
    "a function": lambda model: setattr(model, "function", sum),
    "a class": lambda model: setattr(model[1]["act"], "__class__", nn.SiLU),
    "a module": lambda model: setattr(model[1], "act", nn.ReLU()),
    "a module more": lambda model: model.append(nn.ReLU()),
    "a module less": lambda model: model[1].pop("act"),
    "a hook": lambda model: model[0].register_forward_hook(lambda *_: None),
    "a hook before": lambda model: model[0].register_forward_pre_hook(lambda *_: None),
}


def test_nothing_has_changed() -> None:
    model = _model()
    glance = Glance(model, EVERYTHING)
    assert glance.still(model)
    model.double().train()
    model[0].weight = nn.Parameter(torch.zeros(2, 2))
    assert glance.still(model)


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_seen(change: str) -> None:
    model = _model()
    glance = Glance(model, EVERYTHING)
    CHANGES[change](model)
    assert not glance.still(model)
    assert Glance(model, EVERYTHING).still(model)


def test_another_hook_in_the_place_of_one() -> None:
    model = _model()
    handle = model[0].register_forward_hook(lambda *_: None)
    glance = Glance(model, EVERYTHING)
    assert glance.still(model)
    handle.remove()
    model[0].register_forward_hook(lambda *_: None)
    assert not glance.still(model)


def test_one_object_in_the_place_of_two() -> None:
    model = _model()
    model.other = types.SimpleNamespace(**vars(model.config) | {"scale": 2.0})
    glance = Glance(model, EVERYTHING)
    assert glance.still(model)
    model.other = model.config
    assert not glance.still(model)


def test_what_cannot_be_told_is_to_be_looked_at_in_full() -> None:
    model = _model()
    model.pattern = {"words": re.compile("a")}
    assert not Glance(model, EVERYTHING).still(model)


def test_functions_are_the_same_where_their_code_and_variables_are() -> None:
    model = _model()
    model.function = _adding(1)
    glance = Glance(model, EVERYTHING)
    model.function = _adding(1)
    assert glance.still(model)
    model.function = _adding(2)
    assert not glance.still(model)


def test_nothing_is_kept_alive() -> None:
    model = _model()
    model.config.model = [model]
    glance, gone = Glance(model, EVERYTHING), [weakref.ref(each) for each in (model, model[1])]
    del model
    gc.collect()
    assert [each() for each in gone] == [None, None]
    assert not glance.still(_model())
