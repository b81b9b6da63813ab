"""Choices that a model makes by values of tensors, which the exporter cannot follow.

`if mask.any(): …` has two ways to go, and a graph has one. Where the exporter refuses such a model, what its code asks
of tensors (`bool(x)`, `x.item()`, `int(x)`, `x.tolist()`) is answered with what the example gives. Every answer is a
condition of the trace: the tensor that was asked is kept, with all that makes it, and looked at again at each call.
Answers that are real numbers would be met by no other input; a model that asks for such is refused.

A loop over the places where a mask holds, as over the experts that a token was sent to, goes over all places instead:
its body then works on nothing where the mask does not hold. That this changes nothing is seen on the example; where the
mask holds everywhere there, it is not, and every call is held to such a mask. A model of which it is not so is traced
with the places of the example, as with any other answer. Code that asks whether there is anything to do at a place is
told that there is.

Sizes that depend on values are symbols to the exporter. Where it meets a choice by one, they are asked for as well
(`tracing.counts`).

`torch.export.draft_export` does the same with symbols for such values, in which sizes then are written; it takes
several times as long, and fails where the symbols meet convolutions or padding.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from jetgraph.errors import InputError
from jetgraph.export.program import line_above
from jetgraph.jets.interpreter import evaluate
from jetgraph.tracing.counts import PLACES, WHERE, counted

_ASKED: Mapping[Any, Callable[[Tensor], Any]] = {
    Tensor.__bool__: bool,
    Tensor.__int__: int,
    Tensor.__float__: float,
    Tensor.__index__: int,
    Tensor.item: Tensor.item,
    Tensor.tolist: Tensor.tolist,
    Tensor.is_nonzero: Tensor.is_nonzero,
    torch.is_nonzero: torch.is_nonzero,
}
"""How code asks for the value of a tensor, by the function that it calls."""


_REPEATS = (torch.repeat_interleave, Tensor.repeat_interleave)

_MADE_BY_SIZES = frozenset({"zeros", "ones", "empty"})
_BY_SIZES = _MADE_BY_SIZES | {"view", "reshape", "expand", "repeat", "tile", "new_zeros", "new_ones", "new_empty"}
"""Functions that take each size as an argument of its own, or all of them as a list; those after a tensor."""

_AT = (Tensor.__getitem__, Tensor.__setitem__)
_LAID_OUT = (Tensor.squeeze, Tensor.flatten, Tensor.reshape, Tensor.view, torch.squeeze, torch.flatten, torch.reshape)
_ONE_BY_ONE = (Tensor.unbind, torch.unbind, Tensor.tolist)

_OF_TENSORS = frozenset(
    {"stack", "cat", "concat", "concatenate", "hstack", "vstack", "dstack", "column_stack", "meshgrid", "block_diag"}
    | {"broadcast_tensors", "cartesian_prod", "__setitem__", "index_put", "index_put_", "einsum"}
)
"""Functions of lists of tensors, which are no sizes."""


def _is_size(item: Any) -> bool:
    if isinstance(item, Tensor):
        return item.dim() == 0 and not item.is_floating_point() and not item.is_complex()
    return isinstance(item, int | torch.SymInt) and not isinstance(item, bool)


@dataclasses.dataclass(frozen=True)
class Heard:
    """What code asked of tensors in a run, in this order."""

    answers: tuple[Any, ...]
    lines: tuple[str, ...]
    """The lines that asked."""
    loops: tuple[str, ...] = ()
    """The lines that went over the places of a mask."""
    counts: tuple[str, ...] = ()
    """The lines of which the answer is a size."""
    spread: bool = True
    """Loops over the places where a mask holds go over all of its places."""
    sized: bool = False
    """Sizes are asked for."""

    @property
    def chooses(self) -> bool:
        """Something was asked."""
        return bool(self.answers or self.loops)


class Answering(TorchFunctionMode):
    """Listens to what code asks of tensors, or answers it with what was heard before.

    Parameters
    ----------
    heard
        The answers in their order; None to listen.
    spread
        Loops over the places where a mask holds go over all of its places; as it was heard, where it was.
    sized
        Sizes that depend on values are asked for; as it was heard, where it was.
    """

    def __init__(self, heard: Heard | None = None, spread: bool = True, sized: bool = False) -> None:
        super().__init__()
        self.heard = heard
        self.spread = spread if heard is None else heard.spread
        self.sized = sized if heard is None else heard.sized
        self.answers: list[Any] = []
        self.lines: list[str] = []
        self.asked: list[Tensor] = []
        self.loops: list[str] = []
        """Lines that go over the places of a mask, one by one."""
        self.counts: list[str] = []
        """Lines of which the answer is a size."""
        self._at = 0
        self._places_of: dict[int, tuple[Tensor, Tensor]] = {}
        """Tensors that hold the places where a mask holds, by identity, and the mask."""
        self._numbers: dict[int, tuple[Tensor, int]] = {}
        """Tensors that hold one place, by identity, and the place."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function in _AT:
            return self._given(function, (args[0], self._whole_numbers(args[1]), *args[2:]), kwargs)
        if function is Tensor.__contains__:
            return self.answer((args[0] == args[1]).any(), bool)
        if function in _ONE_BY_ONE and id(args[0]) in self._places_of:
            self.loops.append(line_above())
            if self.spread:
                return self._all_places(args[0], function)
        if (name := getattr(function, "__name__", "")) in _BY_SIZES:
            first = 0 if name in _MADE_BY_SIZES else 1
            args = (*args[:first], *map(self._sizes, self._sizes(args[first:])))
            kwargs = {name: self._sizes(each) for name, each in kwargs.items()}
        if function in (*PLACES, *WHERE, *_LAID_OUT):
            return self._with_places(function, args, kwargs)
        if function is Tensor.__format__ and _is_size(args[0]):
            return format(self.answer(args[0], Tensor.item), args[1])
        if function in _ASKED:
            return self.answer(args[0], _ASKED[function])
        if function in _REPEATS and len(args) > 1 and isinstance(args[1], Tensor) and args[1].dim():
            return function(*args, **{"output_size": self.answer(args[1].sum(), int)} | kwargs)
        if name not in _OF_TENSORS:
            args = tuple(map(self._sizes, args))
            kwargs = {name: self._sizes(each) for name, each in kwargs.items()}
        return self._given(function, args, kwargs)

    def _given(self, function: Any, args: Any, kwargs: Any) -> Any:
        """What a function gives, with its size asked for if sizes are."""
        given = counted(function, args, kwargs, self._count) if self.sized else NotImplemented
        return function(*args, **kwargs) if given is NotImplemented else given

    def _count(self, tensor: Tensor, value: Callable[[Tensor], Any]) -> Any:
        self.counts.append(line_above())
        return self.answer(tensor, value)

    def answer(self, tensor: Tensor, value: Callable[[Tensor], Any]) -> Any:
        """What a tensor's value is, or is to be."""
        if value is Tensor.tolist and tensor.dim():
            # The exporter asks for each number by itself.
            return [self.answer(row, value) for row in tensor]
        if id(tensor) in self._numbers:
            return self._numbers[id(tensor)][1]
        line = line_above()
        if self.heard is None:
            self.answers.append(value(tensor))
            self.lines.append(line)
            return self.answers[-1]
        # The exporter does some of what is asked for itself, such as the larger of two tensors.
        while self._at < len(self.heard.lines) and self.heard.lines[self._at] != line:
            self._at += 1
        if self._at == len(self.heard.lines):
            return value(tensor)
        self.asked.append(tensor)
        self.answers.append(self.heard.answers[self._at])
        self.lines.append(line)
        self._at += 1
        return self.answers[-1]

    def _with_places(self, function: Any, args: Any, kwargs: Any) -> Any:
        """What the function gives, noted where it holds the places of a mask of one dimension."""
        given = self._given(function, args, kwargs)
        if self.spread and self.loops and self.heard is not None and (function in PLACES or len(args) == 1):
            first = given[0] if isinstance(given, tuple) else given
            if isinstance(first.shape[0], torch.SymInt):
                torch._check(first.shape[0] > 0)  # to the exporter alone, so that the loop's body is in the graph
        mask = args[0] if function in PLACES and args[0].dim() == 1 else None
        if function in _LAID_OUT and id(args[0]) in self._places_of:
            mask = self._places_of[id(args[0])][1]
        if mask is not None and isinstance(mask.shape[0], int):
            self._places_of |= {id(each): (each, mask) for each in (given if isinstance(given, tuple) else [given])}
        return given

    def _all_places(self, indices: Tensor, function: Any) -> Any:
        """All places of a mask, in the form in which those where it holds are asked for."""
        mask = self._places_of[id(indices)][1]
        if not self.answer(mask.all(), bool) and self.heard is not None:
            # Seen on the example, so that no call need be held to it.
            del self.asked[-1], self.answers[-1], self.lines[-1]
        places = torch.arange(mask.shape[0], device=indices.device)
        rows = places if indices.dim() == 1 else places[:, None]
        count = range(len(rows))
        if function is Tensor.tolist:
            return list(count) if indices.dim() == 1 else [[place] for place in count]
        each = rows.unbind(0)
        # The exporter makes a list of single tensors, whose values it asks for.
        self._numbers |= {id(row): (row, place) for row, place in zip(each, count, strict=True)}
        return each

    def _sizes(self, argument: Any) -> Any:
        """A list of sizes, some of which are tensors, as one of numbers."""
        if not isinstance(argument, list | tuple) or not all(map(_is_size, argument)):
            return argument
        return type(argument)(self.answer(size, int) if isinstance(size, Tensor) else size for size in argument)

    def _whole_numbers(self, index: Any) -> Any:
        """An index whose slices begin and end at numbers, and not at tensors."""
        if isinstance(index, tuple):
            return tuple(map(self._whole_numbers, index))
        if not isinstance(index, slice):
            return index
        ends = (index.start, index.stop, index.step)
        return slice(*(self.answer(end, int) if isinstance(end, Tensor) else end for end in ends))


@dataclasses.dataclass(frozen=True, eq=False)
class Decisions:
    """What a trace takes for granted of values: outputs of a graph of their own, and what they have to be."""

    graph: fx.Graph
    """Its placeholders have the names of the trace's."""
    answers: tuple[Any, ...]
    lines: tuple[str, ...]
    """The line of the model's code that asked, for each."""

    def __str__(self) -> str:
        places = list(dict.fromkeys(self.lines))
        more = f" and {len(places) - 2} more lines" if len(places) > 2 else ""
        return (
            f"its code chooses by values of tensors ({', '.join(places[:2])}{more}), which are those of the example, "
            "and every call is held to them"
        )

    @property
    def reads(self) -> frozenset[str]:
        """Names of the placeholders."""
        return frozenset(node.name for node in self.graph.find_nodes(op="placeholder"))

    def check(self, values: Mapping[str, Any]) -> None:
        """Raise `InputError` where a value decides otherwise than on the example.

        Parameters
        ----------
        values
            Of the placeholders, by name.
        """
        given = {node: values[node.name] for node in self.graph.find_nodes(op="placeholder")}
        if any(value.is_meta for value in given.values() if isinstance(value, Tensor)):
            return
        asked = [node for node in _results(self.graph) if isinstance(node, fx.Node)]
        with torch.no_grad():
            computed = evaluate(list(self.graph.nodes), given, keep=set(asked))
        for node, answer, line in zip(asked, self.answers, self.lines, strict=True):
            actual = _plain(computed[node], answer)
            if actual != answer:
                raise InputError(
                    f"the trace holds for inputs with which {line} reads {answer!r}, as with the example, and with "
                    f"these it reads {actual!r}: trace the model again with such an input"
                )


def _results(graph: fx.Graph) -> Sequence[Any]:
    (results,) = graph.output_node().args
    assert isinstance(results, list | tuple)
    return results


def _plain(value: Tensor, answer: Any) -> Any:
    if isinstance(answer, list):
        return value.tolist()
    return type(answer)(value.item())


@contextmanager
def modules_stay() -> Iterator[None]:
    """A module that is moved to where it is, or cast to what it is, stays what it is: the exporter refuses to exchange
    its weights. For use within `alone`.
    """
    original = nn.Module._apply

    def apply(self: nn.Module, fn: Any, recurse: bool = True) -> nn.Module:
        held = [*self.parameters(recurse), *self.buffers(recurse)]
        if all(_kind(fn(tensor)) == _kind(tensor) for tensor in held):
            return self
        return original(self, fn, recurse)

    nn.Module._apply = apply
    try:
        yield
    finally:
        nn.Module._apply = original


def _kind(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.dtype, tensor.device, tensor.shape, tensor.layout
