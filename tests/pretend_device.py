"""A device that is none: CPU tensors that claim to lie elsewhere, so that a mix of devices shows without a GPU.

`Elsewhere` wraps a CPU tensor under the device `pretend:0`, a Python backend of PyTorch. Every op on it runs on the CPU
and refuses what CUDA refuses: a CPU tensor beside one on the device, unless it is a 0-dim operand of a pointwise op or
an index; and there is no way to NumPy. Registering a backend cannot be undone, so what uses this module runs in a
process of its own: `python -m tests.pretend_device` prints what each check raised, as JSON.
"""

from __future__ import annotations

import json
import logging
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import transformers
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

import jetgraph as jg
from jetgraph.jets.registry import find_rule
from jetgraph.jets.series import Series
from jetgraph.lazy.tensors import Deferred
from tests import zoo
from tests.jets.cases import Case
from tests.jets.test_rules import SERIES_CASES, Prepared
from tests.placement import APPLICATIONS, Placed
from tests.spread import hooked

DEVICE = "pretend:0"
aten = torch.ops.aten

_INDEXED = frozenset({aten.index.Tensor, aten._unsafe_index.Tensor, aten.index_put.default, aten.index_put_.default})
"""Their indices may lie on the CPU."""
_ACROSS = frozenset({aten._to_copy.default, aten.copy_.default})

_ONLY_THERE: dict[Any, Callable[..., Tensor]] = {aten.mm.dtype: lambda a, b, dtype: a.to(dtype) @ b.to(dtype)}
"""Ops of CUDA that the CPU has no kernel for: here a product of half-precision matrices that is never rounded."""


class MixedDevicesError(RuntimeError):
    """An op got tensors on the CPU and on the device."""


class Elsewhere(Tensor):
    """A tensor on the device; `held` has its values."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Tensor) -> Elsewhere:
        return Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=torch.device(DEVICE),
        )

    def __init__(self, held: Tensor) -> None:
        self.held = held

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"Elsewhere({self.held})"

    def tolist(self) -> Any:
        return self.held.tolist()

    def untyped_storage(self) -> Any:
        return self.held.untyped_storage()

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError("can't convert a tensor on a device to numpy: use Tensor.cpu() first")

    __array__ = numpy

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class PretendDevice(TorchDispatchMode):
    """While it is on, tensors can be made on the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # What deferred weights make of it comes here again.
        return NotImplemented if Deferred in types else _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    """The op on the values, refused where CUDA would refuse it."""
    device = kwargs.get("device")
    given = list(_tensors((args, tuple(kwargs.values()))))
    ours = [leaf for leaf in given if isinstance(leaf, Elsewhere)]
    others = [leaf for leaf in given if not isinstance(leaf, Elsewhere)]
    if ours and others and func not in _ACROSS:
        numbers = torch.Tag.pointwise in func.tags and all(leaf.dim() == 0 for leaf in others)
        if not numbers and not (func in _INDEXED and isinstance(args[0], Elsewhere)):
            places = ", ".join(f"{list(leaf.shape)} on {leaf.device}" for leaf in given)
            raise MixedDevicesError(f"{func} got tensors on two devices: {places}")
    plain, named = _mapped(args, _held), {name: _mapped(value, _held) for name, value in kwargs.items()}
    result = _ONLY_THERE.get(func, func)(
        *plain, **({**named, "device": torch.device("cpu")} if device is not None else named)
    )
    if device is not None:
        there = torch.device(device).type == "pretend"
    else:
        there = isinstance(args[0], Elsewhere) if func in _ACROSS else bool(ours)
    if not there:
        return result
    moved = _mapped(result, lambda leaf: leaf if isinstance(leaf, Elsewhere) else Elsewhere(leaf))
    return return_and_correct_aliasing(func, args, kwargs, moved) if ours else moved


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors among arguments: of operators they are in no other containers than these, and a walk that knows more
    of them takes longer than the operator."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


def _mapped(value: Any, place: Callable[[Tensor], Tensor]) -> Any:
    """The same with other tensors."""
    if isinstance(value, Tensor):
        return place(value)
    return type(value)(_mapped(item, place) for item in value) if type(value) in (list, tuple) else value


def _held(tensor: Tensor) -> Tensor:
    return tensor.held if isinstance(tensor, Elsewhere) else tensor


def _register() -> None:
    """Make the device known, and `torch.tensor` able to place what it makes: it copies beneath all dispatch."""
    backend_registration._setup_privateuseone_for_python_backend("pretend")
    for name in ("tensor", "as_tensor"):
        setattr(torch, name, _placing(getattr(torch, name)))


def _placing(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def placed(*args: Any, device: Any = None, **kwargs: Any) -> Tensor:
        return make(*args, **kwargs) if device is None else make(*args, **kwargs).to(device)

    return placed


def to_device(value: Any) -> Any:
    """All tensors in a value, on the device."""
    return pytree.tree_map_only(Tensor, lambda leaf: leaf if isinstance(leaf, Elsewhere) else leaf.to(DEVICE), value)


def same(found: Tensor, expected: Tensor) -> None:
    """`found` lies on the device and has the values of `expected`."""
    assert isinstance(found, Elsewhere), f"the result lies on {found.device}"
    torch.testing.assert_close(found.held, expected, equal_nan=True)


# Checks


def refusals() -> None:
    """What CUDA refuses is refused, and what it allows is allowed."""
    there, here = torch.randn(3, 4).to(DEVICE), torch.ones(3, 4)
    for mixed in (
        lambda: there + here,
        lambda: torch.cat((there, here)),
        lambda: there @ here.T,
        lambda: torch.where(here > 0, there, there),
        lambda: here[there > 0],
        lambda: torch.nn.functional.embedding(torch.tensor([0]), there),
    ):
        with pytest.raises(MixedDevicesError):
            mixed()
    with pytest.raises(TypeError, match="numpy"):
        there.numpy()
    same(there * torch.tensor(2.0), there.held * 2)
    same(there[torch.tensor([2, 0])], there.held[[2, 0]])
    same(torch.tensor([1, 2], device=there.device), torch.tensor([1, 2]))
    assert torch.equal(there.cpu(), there.held)


def rule(case: Case) -> None:
    """The rule with everything on the device."""
    prepared = Prepared(case)
    varying = list(prepared.chosen())[-1]
    rows = [torch.as_tensor(values[:3]) for values in prepared.coefficients]
    entry = find_rule(case.op)
    assert entry is not None

    def run(place: Callable[[Any], Any]) -> list[Any]:
        given = [Series(place(v), 2) if i in varying else place(v[0]) for i, v in enumerate(rows)]
        found = entry.rule(2, *place(prepared.args(given)), **place(case.kwargs))
        return list(found) if isinstance(found, (list, tuple)) else [found]

    for found, expected in zip(run(to_device), run(lambda value: value), strict=True):
        if isinstance(expected, Series):
            same(found.coefficients, expected.coefficients)


def checks() -> Iterator[tuple[str, Callable[[], None]]]:
    """By name."""
    yield "refusals", refusals
    for case in SERIES_CASES:
        # A cast to the CPU belongs there.
        if case.name != "to.device":
            yield f"rule {case.name}", lambda case=case: rule(case)
    for name in ("gpt2", "llama"):
        case = next(case for case in zoo.CASES if case.name == name)
        graph = jg.trace(case.build(), **case.inputs())
        with PretendDevice():
            placed = Placed(graph, case.inputs(), torch.device(DEVICE))
        for what, check in placed.checks().items():
            # What applications do themselves is the same of any model; by heads it is not, where these share keys.
            if name == "gpt2" or what not in APPLICATIONS or what in ("attribution", "ablation", "patching"):
                yield f"{name}: {what}", check
        if name == "llama":
            yield from spread_checks(case, graph)


def spread_checks(case: zoo.Case, graph: jg.ResidualGraph) -> Iterator[tuple[str, Callable[[], None]]]:
    """A Llama whose first block is offloaded, and whose second one and unembedding are on the device."""
    model = cast(Any, case.build())
    hooked(model.model.embed_tokens, "cpu")
    hooked(model.model.layers[0], "cpu", offloaded=True)
    with PretendDevice():
        hooked(model.model.layers[1], DEVICE)
        hooked(model.lm_head, DEVICE)
        spread = jg.trace(model, **case.inputs())
    places = {tensor.place.type for tensor in spread.traced.tensors.values() if isinstance(tensor, Deferred)}
    assert places == {"cpu", torch.device(DEVICE).type}, places
    placed = Placed(graph, case.inputs(), torch.device("cpu"), spread)
    for what, check in placed.checks().items():
        if what in ("replay", "order 1", "heads", "frozen", "lens", "attribution", "ngrams", "ablation"):
            yield f"spread: {what}", check


def main() -> None:
    """Print {check: None, or where and why it failed} as JSON."""
    torch.set_num_threads(1)
    logging.getLogger("torch.fx.experimental.symbolic_shapes").setLevel(logging.ERROR)
    transformers.logging.set_verbosity_error()
    _register()
    found: dict[str, str | None] = {}
    for name, check in checks():
        with PretendDevice(), torch.no_grad():
            try:
                check()
                found[name] = None
            except Exception as error:
                frames = [f for f in traceback.extract_tb(error.__traceback__) if "site-packages" not in f.filename]
                where = " ← ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames[-4:]))
                found[name] = f"{type(error).__name__}: {error}\n{where}"
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
