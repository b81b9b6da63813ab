"""Functions as graphs of kernels, against the functions; where there is no CUDA device, on one that is played."""

from __future__ import annotations

import runpy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

import jetgraph as jg
from jetgraph.jets import captured
from jetgraph.jets.captured import Captured
from jetgraph.jets.code import RUNS
from tests.zoo import CASES

CUDA = pytest.param(
    "cuda",
    marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")],
)


class _Played(TorchDispatchMode):
    """Operators that are done again in the same memory, as a device does the kernels of a graph."""

    def __init__(self) -> None:
        super().__init__()
        self._steps: list[Callable[[], None]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        made = func(*args, **kwargs)
        if func._schema.is_mutable:
            self._steps.append(lambda: func(*args, **kwargs))
        elif all(each.alias_info is None for each in func._schema.returns):
            kept = [leaf for leaf in tree_leaves(made) if isinstance(leaf, Tensor)]

            def again() -> None:
                anew = [leaf for leaf in tree_leaves(func(*args, **kwargs)) if isinstance(leaf, Tensor)]
                for one, other in zip(kept, anew, strict=True):
                    one.copy_(other)

            self._steps.append(again)
        return made

    def launch(self) -> None:
        for step in self._steps:
            step()


class Graphs:
    """How many graphs were captured, and launched."""

    def __init__(self) -> None:
        self.captured, self.launched = 0, 0


@pytest.fixture(params=["cpu", CUDA])
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


@pytest.fixture
def graphs(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> Iterator[Graphs]:
    """Of the device, or played on a CPU."""
    counts, own = Graphs(), captured.capture

    def played(run: Callable[[], Any], _: torch.device) -> Any:
        with _Played() as mode:
            results = run()
        return results, mode.launch

    def counted(run: Callable[[], Any], where: torch.device) -> Any:
        results, launch = (own if device.type == "cuda" else played)(run, where)
        counts.captured += 1

        def launched() -> None:
            counts.launched += 1
            launch()

        return results, launched

    monkeypatch.setattr(captured, "capture", counted)
    monkeypatch.setattr(captured, "DEVICES", ("cpu", "cuda"))
    monkeypatch.setattr(captured, "FEW", 1)
    with torch.no_grad():
        yield counts


def same(found: tuple[Any, ...], expected: tuple[Any, ...]) -> None:
    for one, other in zip(found, expected, strict=True):
        if isinstance(other, Tensor):
            assert one.stride() == other.stride()
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


def layer(x: Tensor, weight: Tensor, number: int) -> tuple[Any, ...]:
    """Views of what is made and of what is given, memory that results share, an empty one, a number."""
    hidden = (x @ weight).relu() + number
    # A mask that selects and whole numbers that index wait for nothing.
    hidden = torch.where(hidden > number, hidden, hidden.index_select(1, hidden[0].argsort()))
    return hidden, hidden[:, 1:], hidden.T.exp(), weight[1:].T, x[:0], hidden.shape[0], x[:, ::2]


def test_nothing_is_captured_where_it_is_declined(monkeypatch: pytest.MonkeyPatch) -> None:
    for asked in ("0", "1"):
        monkeypatch.setenv("JETGRAPH_CUDA_GRAPHS", asked)
        assert runpy.run_path(captured.__file__)["DEVICES"] == ("cuda",) * int(asked)
    monkeypatch.delenv("JETGRAPH_CUDA_GRAPHS")
    assert runpy.run_path(captured.__file__)["DEVICES"] == ("cuda",)


def test_it_is_the_function(device: torch.device, graphs: Graphs, monkeypatch: pytest.MonkeyPatch) -> None:
    # More than any operator makes, and less than all of them.
    monkeypatch.setattr(captured, "LARGE", 60)
    weight, run = torch.rand(4, 4, device=device), Captured(layer)
    for call in range(6):
        x = torch.randn(3, 4, device=device)
        if call == 4:
            weight.data.mul_(2)
        found = run([x, weight, 3])
        same(found, layer(x, weight, 3))
        hidden, part, _, turned, empty, number, some = found
        assert part.untyped_storage().data_ptr() == hidden.untyped_storage().data_ptr()
        assert turned.untyped_storage().data_ptr() == weight.untyped_storage().data_ptr()
        assert some.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
        assert (empty.shape, number) == ((0, 4), 3)
    assert (graphs.captured, graphs.launched) == (1, 5)
    # Results of one call are not those of the next, and other numbers are another kind.
    first, second = (run([torch.full((3, 4), fill, device=device), weight, 3]) for fill in (1.0, 2.0))
    assert not torch.equal(first[0], second[0])
    same(run([x, weight, 4]), layer(x, weight, 4))
    assert graphs.captured == 1


def test_weights_that_move_are_noticed(device: torch.device, graphs: Graphs) -> None:
    run, x = Captured(layer), torch.randn(3, 4, device=device)
    x[0, 0] = torch.nan
    kept = []
    for _ in range(10):
        weight = torch.nn.Parameter(torch.randn(4, 4, device=device))
        for _ in range(4):
            same(run([x, weight, 3]), layer(x, weight, 3))
        weight.data = torch.randn(4, 4, device=device)
        same(run([x, weight, 3]), layer(x, weight, 3))
        kept.append(weight.data)
    # Once for what stays, once for what is known to move.
    assert graphs.captured == 2
    # One argument after the other is moved, each before the call of its number.
    given = [torch.randn(3, device=device) for _ in range(5)]
    run = Captured(lambda *given: (sum(given),))
    for call in range(8):
        for moved in given[1 : max(call - 2, 0)]:
            moved.data = moved.data.clone()
            kept.append(moved.data)
        assert torch.equal(run(given)[0], sum(given))
    assert graphs.captured == 2 + 3


def test_what_is_made_for_each_call_is_copied_from_the_start(
    device: torch.device, graphs: Graphs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that one capture is enough wherever it comes to be; but for what cannot be copied, or is too much."""
    weight, kept = torch.randn(4, 4, device=device), list[Tensor]()
    for made, times in (((0,), 1), ((), 2)):
        run, before = Captured(layer, made), graphs.captured
        x = torch.randn(3, 4, device=device)
        for call in range(7):
            if call > 3:
                kept.append(x := torch.randn(3, 4, device=device))
            same(run([x, weight, 3]), layer(x, weight, 3))
        assert graphs.captured - before == times
    monkeypatch.setattr(captured, "MOVED", 64)
    given = [torch.ones(2, 3), torch.ones(1, 3).expand(9, 3), 3, torch.ones(2, 3, dtype=torch.float64), torch.ones(4)]
    assert captured._movable(given, range(5)) == {0, 4}


def test_a_function_of_few_kernels_is_looked_at_once(
    device: torch.device, graphs: Graphs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it has as few for arguments of any kind."""
    monkeypatch.setattr(captured, "FEW", 2)
    run = Captured(lambda x: (x + 1,))
    for _ in range(3):
        run([torch.ones(3, device=device)])
    monkeypatch.setattr(captured, "_settings", lambda device: pytest.fail("it is known"))
    assert torch.equal(run([torch.ones(4, device=device)])[0], torch.full((4,), 2.0, device=device))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: (x + 1, x * 2),
        lambda x: ((x + 1).mul_(2),),
        lambda x: (torch.exp(x, out=x + 1),),
    ],
)
def test_what_writes_to_what_was_made_is_a_kernel(
    function: Callable[[Tensor], tuple[Tensor, ...]],
    device: torch.device,
    graphs: Graphs,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is launched, as views are not."""
    monkeypatch.setattr(captured, "FEW", 2)
    run = Captured(function)
    for number in range(4):
        x = torch.full((3,), float(number), device=device)
        assert all(torch.equal(*pair) for pair in zip(run([x]), function(x), strict=True))
    assert graphs.captured > 0


class Own(Tensor):
    """What is done to it may be another thing."""


NONE = {
    "draws": lambda x: (x + torch.rand_like(x),),
    "drops": lambda x: (F.scaled_dot_product_attention(x[None], x[None], x[None], dropout_p=0.5),),
    "looks": lambda x: (x * float(x.sum().item()),),
    "counts": lambda x: (x[x > 0],),
    "a mask": lambda x: (x.index_put((x > 0,), torch.zeros((), device=x.device)),),
    "writes": lambda x: (x.mul_(2),),
    "writes to a part": lambda x: (x[0].fill_(7.0),),
    "checks": lambda x: (torch.linalg.inv(x),),
    "a list": lambda x: ((x * 2).split(1),),
    "another class": lambda x: (x.as_subclass(Own) + 1,),
    "one and views": lambda x: (x.T[1:] + 1,),
}


@pytest.mark.parametrize("name", NONE)
def test_what_has_no_graph(device: torch.device, graphs: Graphs, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    function = NONE[name]
    monkeypatch.setattr(captured, "FEW", 2 if name == "one and views" else 1)
    run = Captured(function)
    for _ in range(5):
        x, given = (torch.eye(3, device=device) * 5 for _ in range(2))
        torch.manual_seed(0)
        expected = function(given)
        torch.manual_seed(0)
        found = run([x])
        assert all(torch.equal(*pair) for pair in zip(*map(tree_leaves, (found, expected)), strict=True))
        assert torch.equal(x, given)
    assert graphs.captured == 0


def test_what_is_not_worth_one(device: torch.device, graphs: Graphs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large values, much that moves, entries in one place, tensors of two devices."""
    weight = torch.randn(4, 4, device=device)
    for name, most in (("LARGE", 40), ("MOVED", 40)):
        with monkeypatch.context() as patch:
            patch.setattr(captured, name, most)
            run, kept = Captured(layer), [torch.randn(3, 4, device=device) for _ in range(5)]
            for x in kept:
                same(run([x, weight, 3]), layer(x, weight, 3))
    run, kept = Captured(layer), [torch.randn(1, 4, device=device).expand(3, 4) for _ in range(5)]
    for x in kept:
        same(run([x, weight, 3]), layer(x, weight, 3))
    with monkeypatch.context() as patch:
        patch.setattr(captured, "FEW", 2)
        run = Captured(lambda x: (x + 1, F.scaled_dot_product_attention(*[x[None, None]] * 3)))
        for _ in range(5):
            assert torch.equal(run([weight])[0], weight + 1)
    run = Captured(lambda x, y: (x + y, x.exp()))
    for _ in range(5):
        assert torch.equal(run([weight, torch.ones(())])[0], weight + 1)
    # Attention that drops nothing draws nothing.
    assert graphs.captured == (2 if device.type == "cpu" else 1)


def test_modes(device: torch.device, graphs: Graphs) -> None:
    """Where derivatives may be asked for it is the function itself; what is made in one mode serves in the others."""
    weight, run = torch.randn(4, 4, device=device, requires_grad=True), Captured(layer)
    modes = [torch.inference_mode, torch.no_grad]
    for call in range(8):
        with modes[call // 4 % 2]():
            x = torch.randn(3, 4, device=device)
            found = run([x, weight, 3])
            same(found, layer(x, weight, 3))
            assert found[0].is_inference() == x.is_inference()
            found[0].add_(1)
    with torch.enable_grad():
        x = torch.randn(3, 4, device=device)
        run([x, weight, 3])[0].sum().backward()
    assert weight.grad is not None
    slope = torch.func.jvp(lambda x: run([x, weight.detach(), 3])[0], (x,), (torch.ones_like(x),))[1]
    assert slope.abs().sum() > 0
    assert graphs.captured == 1
    # Another precision may have other kernels.
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        for _ in range(4):
            same(run([x, weight, 3]), layer(x, weight, 3))
    finally:
        torch.backends.cuda.matmul.fp32_precision = "none"
    assert graphs.captured == 2


@pytest.mark.parametrize("name", ["gpt2", "mixtral"])
def test_models(device: torch.device, graphs: Graphs, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs, terms, lenses and ablations, call after call, of other tokens and weights, as without any graph."""
    case = next(case for case in CASES if case.name == name)
    model = case.build().to(device)
    inputs = tree_map_only(Tensor, lambda value: value.to(device), case.inputs())
    graph = jg.trace(model, **inputs, dynamic=False)
    module = jg.compile(jg.expand(graph, recipe="components", rules={"logits": jg.Freeze()}))

    def work(given: dict[str, Any]) -> list[Tensor]:
        values = module(**given)
        lens = jg.lens(graph, given["input_ids"], order=[0, 1])
        removed = jg.ablate(graph, "L0.attn > logits", given["input_ids"]).outputs["L0.attn > logits"].through
        assert removed is not None
        return [graph(**given), values.total, *values.hidden.values(), lens.logits, removed]

    for call in range(RUNS + 4):
        given = tree_map_only(Tensor, lambda value: value.roll(call, -1), inputs)  # noqa: B023
        if call == RUNS + 3:
            for parameter in model.parameters():
                parameter.data *= 1.01
        found = work(given)
        torch.testing.assert_close(found[0], model(**given).logits, rtol=1e-4, atol=1e-5)
        with monkeypatch.context() as patch:
            patch.setattr(captured, "DEVICES", ())
            same(tuple(found), tuple(work(given)))
    assert graphs.launched > 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.filterwarnings("ignore:from here on kernels")
def test_a_capture_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """It changes nothing for what comes after it."""
    monkeypatch.setattr(captured, "DEVICES", ("cuda",))
    monkeypatch.setattr(captured, "_FAILED", [])
    monkeypatch.setattr(captured._Observer, "refusal", lambda *_: "")
    run = Captured(lambda x: (x * float(x.sum().item()),))
    with torch.no_grad():
        for _ in range(5):
            x = torch.rand(3, device="cuda")
            assert torch.equal(run([x])[0], x * float(x.sum().item()))
    assert len(captured._FAILED) == 1
    torch.cuda.manual_seed(1)
    first = torch.rand(3, device="cuda")
    torch.cuda.manual_seed(1)
    assert torch.equal(torch.rand(3, device="cuda"), first)
