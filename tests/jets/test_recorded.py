"""What is decided once, and done again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

import jetgraph as jg
from jetgraph.jets import code
from jetgraph.jets.recorded import Repeated
from jetgraph.jets.series import stack_of

HELD = torch.randn(3, 4, dtype=torch.double)


class Counted:
    """A function that counts its calls, as a function of a tuple."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self.function, self.calls = function, 0

    def __call__(self, *given: Tensor) -> tuple[Tensor, ...]:
        self.calls += 1
        return (self.function(*given),)


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
            (result,) = repeated(given)
            assert torch.equal(result, function(given))
            assert torch.equal(given, again)
        assert counted.calls == before + 2
    # Results are tensors of their own.
    one, other = repeated(torch.zeros(5, 3, 4, dtype=torch.double)), repeated(torch.ones(5, 3, 4, dtype=torch.double))
    assert not torch.equal(one[0], other[0])


aten = torch.ops.aten
WEIGHT, BIAS, ROWS = torch.randn(4, 3), torch.randn(4), torch.randn(2, 5, 3)

LAYERS: dict[str, tuple[Callable[..., Any], Tensor, dict[Any, int]]] = {
    "on rows": (F.linear, ROWS[0], {aten.linear.default: 1}),
    "on more dimensions": (lambda x, w, b: F.linear(x, w) + b, ROWS, {aten.linear.default: 1, aten.add_.Tensor: 1}),
    "with a bias": (F.linear, ROWS, {aten.linear.default: 1}),
    "of rows that are turned": (F.linear, torch.randn(3, 5).T, {aten.linear.default: 1}),
    "with a bias of another shape": (
        lambda x, w, b: torch.addmm(b[None], x, w.t()),
        ROWS[0],
        {aten.t.default: 1, aten.unsqueeze.default: 1, aten.addmm.default: 1},
    ),
    "whose rows are read": (
        lambda x, w, b: (y := torch.mm(x.view(10, 3), w.t())).view(2, 5, 4) + y.sum(),
        ROWS,
        {aten.view.default: 2, aten.linear.default: 1, aten.sum.default: 1, aten.add_.Tensor: 1},
    ),
    "to other rows": (
        lambda x, w, b: torch.mm(x.view(10, 3), w.t()).view(5, 2, 4) * 2,
        ROWS,
        {aten.view.default: 2, aten.linear.default: 1, aten.mul_.Tensor: 1},
    ),
    "that is written to": (
        lambda x, w, b: F.linear(x, w).mul_(2)[0].add_(b),
        ROWS,
        {aten.linear.default: 1, aten.mul_.Tensor: 1, aten.select.int: 1, aten.add_.Tensor: 1},
    ),
    "of which nothing comes": (lambda x, w, b: (F.linear(x, w), x * 2)[1], ROWS, {aten.mul.Tensor: 1}),
}


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> Counter[Any]:
    """How often code has called operators."""
    done, binding = Counter[Any](), code.binding

    def counted(op: Any) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            done[op] += 1
            return binding(op)(*args, **kwargs)

        return call

    monkeypatch.setattr(code, "binding", counted)
    return done


@pytest.mark.parametrize("what", LAYERS)
def test_a_layer_is_one_call(what: str, called: Counter[Any]) -> None:
    """As it was, to the bit; nothing is called whose result is not read."""
    function, given, calls = LAYERS[what]
    repeated = Repeated(lambda *each: (function(*each),))
    with torch.no_grad():
        for _ in range(3):
            found = repeated(given, WEIGHT, BIAS)[0]
    assert torch.equal(found, function(given, WEIGHT, BIAS))
    assert called == calls


def test_a_jet_calls_each_layer_once(called: Counter[Any]) -> None:
    """One product for all coefficients."""
    up, down = torch.nn.Linear(3, 8, bias=False), torch.nn.Linear(8, 3, bias=False)
    series = jg.taylor(lambda x: down(F.silu(up(x))), ROWS)
    with torch.no_grad():
        found = [series(ROWS, ROWS, 2) for _ in range(3)]
    assert torch.equal(found[0], found[2])
    assert called[aten.linear.default] == 2
    assert not {aten.mm.default, aten.t.default, aten.view.default, aten._unsafe_view.default} & called.keys()


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


def over_what_was_read(given: Tensor) -> Tensor:
    held = torch.ones(3, 4, dtype=torch.double)
    before = given * held
    return before - given * held.add_(1)


@pytest.mark.parametrize(
    "function",
    [over_what_is_held, over_what_is_given, drawn, by_its_values, of_nothing, with_another_class, over_what_was_read],
)
def test_what_cannot_be_done_again_is_decided_each_time(function: Callable[[Tensor], Tensor]) -> None:
    counted = Counted(function)
    repeated = Repeated(counted)
    for sign in (1, 1, 1, -1, 1):
        given = sign * torch.rand(3, 4, dtype=torch.double)
        assert torch.equal(repeated(given)[0], function(given))
    assert counted.calls == 5


def test_what_is_followed_is_decided_each_time() -> None:
    counted = Counted(torch.sin)
    repeated = Repeated(counted)
    for _ in range(4):
        repeated(torch.ones(2))
    assert counted.calls == 2
    given = torch.ones(2, requires_grad=True)
    repeated(given)[0].sum().backward()
    torch.testing.assert_close(given.grad, torch.ones(2).cos())
    (tangent,) = torch.func.jvp(repeated, (torch.ones(2),), (torch.ones(2),))[1]
    torch.testing.assert_close(tangent, torch.ones(2).cos())
    assert counted.calls == 4
    scale = torch.ones((), requires_grad=True)
    # What depends on it would be made once, and let go of by the first derivative.
    scaled = Repeated(lambda value: (value * scale.exp(),))
    for _ in range(4):
        scaled(torch.ones(2))[0].sum().backward()
    torch.testing.assert_close(scale.grad, 8 * torch.ones(()).exp())


def laid(x: Tensor, v: Tensor) -> Tensor:
    """By how its arguments lie in memory."""
    stack = stack_of((x, v))
    return stack[1] - 2 * stack[0]


def test_what_may_be_decided_by_is_another_kind() -> None:
    """Where arguments lie, whether they are one, the type of constants; what exchanges operators is asked each time."""
    counted = Counted(laid)
    repeated = Repeated(counted)
    long = torch.arange(8.0)
    ways: list[Callable[[], tuple[Tensor, Tensor]]] = [
        lambda: torch.rand(2, 4).unbind(),  # type: ignore[return-value]
        lambda: (torch.rand(4), torch.rand(4)),
        lambda: (long[:4],) * 2,
        lambda: (long[4:], long[:4]),
        lambda: (torch.rand(4, dtype=torch.cfloat).conj().imag, torch.rand(4)),
    ]
    with torch.no_grad():
        for _ in range(4):
            for way in ways:
                given = way()
                assert torch.equal(repeated(*given)[0], given[1] - 2 * given[0])
    # Twice of each kind, but for what has still to be negated.
    assert counted.calls == 2 * 4 + 4
    typed = Repeated(lambda x: (x + torch.ones(2),))
    with torch.no_grad():
        for dtype in (torch.float32, torch.float64) * 4:
            torch.set_default_dtype(dtype)
            try:
                assert typed(torch.ones(2, dtype=torch.half))[0].dtype == dtype
            finally:
                torch.set_default_dtype(torch.float32)
        product = Repeated(lambda x: (torch.mm(x, x),))
        for _ in range(4):
            assert product(torch.ones(2, 2))[0].dtype == torch.float32
            with torch.autocast("cpu", torch.bfloat16):
                assert product(torch.ones(2, 2))[0].dtype == torch.bfloat16
            with Doubled():
                assert torch.equal(product(torch.ones(2, 2))[0], torch.full((2, 2), 4.0))


class Doubled(TorchFunctionMode):
    """Products are twice what they are."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {})) * (2 if func is torch.mm else 1)
