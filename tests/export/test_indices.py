"""Formulas in indices against the values that operators make, at every index."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from jetgraph.export.indices import Choice, Formula, Known, follow

LOWEST = torch.finfo(torch.float32).min


def value(known: Known, index: tuple[int, ...]) -> float:
    if isinstance(known, Formula):
        return known.constant + sum(slope * at for slope, at in zip(known.slopes, index, strict=True))
    return known.yes if all(value(each, index) >= 0 for each in known.where) else known.no


class Followed(fx.Interpreter):
    """A run in which every formula is compared with what the operator makes."""

    def run_node(self, n: fx.Node) -> object:
        result = super().run_node(n)
        if isinstance(result, Tensor) and n.op == "call_function":
            n.meta |= {"shape": tuple(result.shape), "dtype": result.dtype}
            known = follow(n, {})
            for index in itertools.product(*map(range, result.shape)) if known is not None else ():
                assert value(known, index) == result[index].item(), (n.format_node(), known, index)
            self.last = known
        return result


def i() -> Tensor:
    return torch.arange(4)[:, None]


def j() -> Tensor:
    return torch.arange(3)


def past() -> Tensor:
    return i() >= j()


FOLLOWED: dict[str, Callable[[], Tensor]] = {
    "a boolean that is false where a condition holds": lambda: torch.where(torch.where(past(), 0.0, 1.0).bool(), 2, 3),
    "the same of two conditions": lambda: torch.where(torch.where(i() == j(), 0.0, 1.0).bool(), 0.0, LOWEST),
    "whether numbers are others than 0": lambda: torch.where(past(), LOWEST, 0.0).bool(),
    "not a number": lambda: torch.logical_not(torch.full((2, 3), 3.0)),
    "not one of two numbers": lambda: torch.logical_not(torch.where(past(), 2.0, 0.0)),
    "a boolean filled with a number": lambda: torch.zeros(2, 3, dtype=torch.bool).masked_fill(j() >= 0, -1),
    "booleans made of a number": lambda: torch.full((2, 3), -1, dtype=torch.bool),
    "what a smaller type holds": lambda: torch.where(past(), 0.0, LOWEST).half(),
    "what an integer holds": lambda: torch.where(past(), 2.5, 0.0).long(),
    "no dimension to exchange": lambda: torch.zeros(()).transpose(0, -1),
}
UNKNOWN: dict[str, Callable[[], Tensor]] = {
    "integers that overflow": lambda: torch.arange(3, dtype=torch.uint8) - 1,
    "a cast to such": lambda: (j() - 1).to(torch.int8),
    "bits": lambda: ~torch.where(past(), 3, 0),
    "bits of two": lambda: torch.full((4, 3), 3) | torch.where(past(), 4, 0),
}


@pytest.mark.parametrize("name", FOLLOWED | UNKNOWN)
def test_a_formula_is_what_the_operator_makes(name: str) -> None:
    code = (FOLLOWED | UNKNOWN)[name]
    run = Followed(make_fx(lambda _: code())(torch.zeros(())))
    run.run(torch.zeros(()))
    assert (run.last is not None) == (name in FOLLOWED)


def test_a_choice_keeps_what_it_is_between() -> None:
    run = Followed(make_fx(lambda _: torch.where(torch.where(past(), 0.0, 1.0).bool(), 0.0, LOWEST))(torch.zeros(())))
    run.run(torch.zeros(()))
    assert run.last == Choice(frozenset({Formula(-1, (-1, 1))}), 0.0, LOWEST)
