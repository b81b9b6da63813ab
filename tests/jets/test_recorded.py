"""What is decided once, and done again."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from jetgraph.jets.recorded import Repeated

HELD = torch.randn(3, 4, dtype=torch.double)


class Counted:
    """A function that counts its calls."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self.function, self.calls = function, 0

    def __call__(self, given: Tensor) -> Tensor:
        self.calls += 1
        return self.function(given)


def within_vmap(given: Tensor) -> Tensor:
    """What does not depend on a row is made once."""
    return torch.vmap(lambda row: (row * HELD.exp().sum(-1)[:, None]).flip(0) + HELD.rsqrt().nan_to_num())(given)


def several(given: Tensor) -> Tensor:
    first, *_, last = given.unbind()
    return torch.stack([first - last, last.view(-1).view(3, 4)])


def into_own_memory(given: Tensor) -> Tensor:
    return torch.mul(given, 2, out=torch.empty_like(given))


def over_what_it_made(given: Tensor) -> Tensor:
    made = given + 1
    made[1:].mul_(2).addcmul_(made[1:], given[1:])
    return made


@pytest.mark.parametrize("function", [within_vmap, several, into_own_memory, over_what_it_made])
def test_it_is_decided_twice_for_each_shape(function: Callable[[Tensor], Tensor]) -> None:
    counted = Counted(function)
    repeated = Repeated(counted)
    for number in (5, 2):
        before = counted.calls
        for _ in range(4):
            given = torch.randn(number, 3, 4, dtype=torch.double)
            again = given.clone()
            result = repeated(given)
            assert torch.equal(result, function(given))
            assert torch.equal(given, again)
        assert counted.calls == before + 2
    # Results are tensors of their own.
    one, other = repeated(torch.zeros(5, 3, 4, dtype=torch.double)), repeated(torch.ones(5, 3, 4, dtype=torch.double))
    assert not torch.equal(one, other)


def over_what_is_held(given: Tensor) -> Tensor:
    return HELD.clone().mul_(given)


def over_what_is_given(given: Tensor) -> Tensor:
    return given.abs_()


def drawn(given: Tensor) -> Tensor:
    return given + torch.rand(3, 4) * 0


def by_its_values(given: Tensor) -> Tensor:
    return given * 2 if float(given.sum()) > 0 else given


class Other(Tensor):
    """What sees to its values itself."""


def with_another_class(given: Tensor) -> Tensor:
    with torch._C.DisableTorchFunctionSubclass():
        return given * HELD.as_subclass(Other)


def of_nothing(given: Tensor) -> Tensor:
    return HELD


@pytest.mark.parametrize(
    "function", [over_what_is_held, over_what_is_given, drawn, by_its_values, of_nothing, with_another_class]
)
def test_what_cannot_be_done_again_is_decided_each_time(function: Callable[[Tensor], Tensor]) -> None:
    counted = Counted(function)
    repeated = Repeated(counted)
    for sign in (1, 1, 1, -1, 1):
        given = sign * torch.rand(3, 4, dtype=torch.double)
        assert torch.equal(repeated(given), function(given))
    assert counted.calls == 5


def test_what_is_followed_is_decided_each_time() -> None:
    counted = Counted(torch.sin)
    repeated = Repeated(counted)
    for _ in range(4):
        repeated(torch.ones(2))
    assert counted.calls == 2
    given = torch.ones(2, requires_grad=True)
    repeated(given).sum().backward()
    torch.testing.assert_close(given.grad, torch.ones(2).cos())
    tangent = torch.func.jvp(repeated, (torch.ones(2),), (torch.ones(2),))[1]
    torch.testing.assert_close(tangent, torch.ones(2).cos())
    assert counted.calls == 4
    scale = torch.ones((), requires_grad=True)
    # What depends on it would be made once, and let go of by the first derivative.
    scaled = Repeated(lambda value: value * scale.exp())
    for _ in range(4):
        scaled(torch.ones(2)).sum().backward()
    torch.testing.assert_close(scale.grad, 8 * torch.ones(()).exp())
