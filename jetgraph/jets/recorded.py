"""What a function does to tensors, written down while it runs, to be done again to others of the same kind.

Deciding what to do, operator by operator, takes longer than doing it to few numbers, and on a device longer than doing
it to many. Where the same function is applied again and again, it is decided once, and is code from then on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakTensorKeyDictionary

from jetgraph.errors import DomainError
from jetgraph.jets.captured import Captured
from jetgraph.jets.code import Script
from jetgraph.jets.domain import deferred, leave, looked_at_once
from jetgraph.jets.joining import Memory, Name, Step, joined
from jetgraph.jets.overwriting import overwritten
from jetgraph.jets.promoting import promoted
from jetgraph.jets.recording import is_followed, may_follow, written
from jetgraph.jets.registry import Registration, find_rule

_KINDS = 8
"""Kinds of arguments that are known of a function; the oldest goes first."""

PROMOTES = ("cuda",)
"""Types of devices whose operators cast what they read as they read it; on a CPU they make a copy of it first."""

Function = Callable[..., tuple[Tensor, ...]]


class Repeated:
    """A function of tensors that is called again and again, with everything else that it reads as it is.

    From the third call on of a kind of arguments, the operators that depend on them are run, and nothing else: what
    they read besides is what it was in the second call. Where derivatives may be asked for, or the function looks at
    values, it is called each time.

    Parameters
    ----------
    function
        Gives a tuple of tensors.
    """

    def __init__(self, function: Function) -> None:
        self._function = function
        self._known: dict[Any, Function | None] = {}
        """By kind, what is called; None where it was seen once."""

    def __call__(self, *given: Tensor) -> tuple[Tensor, ...]:
        follows = may_follow()
        if (follows and any(map(is_followed, given))) or not _are_plain(given):
            return self._function(*given)
        kind = follows, *_kind(given)
        if (known := self._known.get(kind)) is not None:
            return known(*given)
        if kind not in self._known:
            if len(self._known) >= _KINDS:
                del self._known[next(iter(self._known))]
            self._known[kind] = None
            return self._function(*given)
        with _Recorder(given) as recorder:
            results = self._function(*given)
        self._known[kind] = recorder.recorded(results) or self._function
        return results


class Routine:
    """A function of tensors that is kept for all calls, whose demands on centres are looked at together.

    Parameters
    ----------
    function
        Gives a tuple of tensors; all that may be another one in the next call is an argument.
    nodes
        What it evaluates. With a rule of somebody else, of which nobody knows what it decides by, it is called each
        time.
    """

    def __init__(self, function: Function, nodes: Sequence[fx.Node]) -> None:
        self._function = function
        self._number = 0
        """How many tensors it gives, once it has run."""
        self._targets = [node.target for node in nodes]
        self._rules: list[Registration | None] = []
        self._known = False
        self._run = Captured(Repeated(self._with_demands))

    def __call__(self, *given: Tensor) -> tuple[Tensor, ...]:
        # Rules may be replaced.
        if (rules := [*map(find_rule, self._targets)]) != self._rules:
            self._rules, self._run = rules, Captured(Repeated(self._with_demands))
            self._known = all(each is None or each.rule.__module__.startswith("jetgraph.") for each in rules)
        if not self._known or (may_follow() and any(map(is_followed, given))):
            return self._function(*given)

        made = self._run(given)
        if len(made) == self._number:
            return made

        def demanded() -> tuple[Tensor, ...]:
            leave(made[self._number :])
            return made[: self._number]

        return looked_at_once(demanded, lambda: self._function(*given))

    def _with_demands(self, *given: Tensor) -> tuple[Tensor, ...]:
        """What the function gives, and what is to be true for it, which nobody has looked at."""
        with deferred(DomainError) as checks:
            made = self._function(*given)
        self._number = len(made)
        return *made, *checks


def _are_plain(given: Sequence[Tensor]) -> bool:
    """Tensors are what they are, of which none has still to be negated or conjugated, and operators do what they are
    called for: nothing exchanges them for others.
    """
    if torch._C._len_torch_function_stack() or torch._C._is_any_autocast_enabled():
        return False
    return all(type(each) in (Tensor, nn.Parameter) and not (each.is_neg() or each.is_conj()) for each in given)


def _kind(given: Sequence[Tensor]) -> tuple[Any, ...]:
    """All that may be decided by, but for numbers: what arguments are, and which of them lie in one memory, and how."""
    first: dict[int, int] = {}
    kind: list[Any] = [torch.get_default_dtype()]
    for number, each in enumerate(given):
        owner = first.setdefault(_memory(each), number)
        apart = 0 if owner == number else each.storage_offset() - given[owner].storage_offset()
        kind.append((each.shape, each.stride(), each.dtype, each.device, owner, apart))
    return tuple(kind)


def _memory(value: Any) -> int:
    return value.untyped_storage()._cdata if isinstance(value, Tensor) else 0


class _Recorder(TorchDispatchMode):
    """Writes down the operators that depend on some tensors."""

    def __init__(self, given: Sequence[Tensor]) -> None:
        super().__init__()
        self._names = WeakTensorKeyDictionary()
        self._count = 0
        self._given = [self._named(each, self._memory(each, given[:at], False)) for at, each in enumerate(given)]
        self._steps: list[Step] = []
        self._held = set[int]()
        """The memory of what they read besides."""
        self._fits = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        writes = written(func, args, kwargs)
        if not any(leaf in self._names for leaf in leaves):
            # It would be drawn once, and what was read before it is not what is there after it.
            self._fits &= torch.Tag.nondeterministic_seeded not in func.tags
            self._fits &= self._held.isdisjoint(map(_memory, writes))
            return func(*args, **kwargs)
        # Of what is not made anew each time, memory would be written twice, and a number would be what it is now.
        others = [leaf for leaf in leaves if leaf not in self._names]
        self._fits &= not any(is_followed(leaf) or type(leaf) not in (Tensor, nn.Parameter) for leaf in others)
        self._held.update(map(_memory, others))
        # It writes to no tensor but such as are made again when it is done again.
        self._fits &= all(self._names.get(leaf, self._given[0]) not in self._given for leaf in writes)
        called = tree_map(
            lambda leaf: self._names.get(leaf, leaf) if isinstance(leaf, Tensor) else leaf, (args, kwargs)
        )
        made = func(*args, **kwargs)
        several = isinstance(made, list | tuple)
        results = made if several else [made]
        self._fits &= all(isinstance(each, Tensor) for each in results)
        anew = not several and func.namespace == "aten"
        names = tuple(
            self._named(each, self._memory(each, leaves, anew)) for each in results if isinstance(each, Tensor)
        )
        self._steps.append(Step(func, called[0], called[1], names, several))
        return made

    def _named(self, tensor: Tensor, memory: Memory) -> Name:
        lies = tensor.layout is torch.strided and tensor.is_contiguous()
        name = self._names[tensor] = Name(f"v{self._count}", tuple(tensor.shape), tensor.dtype, lies, memory)
        self._count += 1
        return name

    def _memory(self, tensor: Tensor, beside: Sequence[Tensor], anew: bool) -> Memory:
        """Where a tensor lies: with one of those beside it, or in memory that was made `anew` for it or not."""
        place = _memory(tensor)
        near = [each for each in beside if _memory(each) == place]
        named = next((self._names[each] for each in near if each in self._names), None)
        return Memory(anew and not near, tensor.untyped_storage().nbytes()) if named is None else named.memory

    def recorded(self, results: Sequence[Tensor]) -> Function | None:
        """What was written down; None where the results cannot be had again by it."""
        wanted: list[Name] = [self._names[each] for each in results if each in self._names]
        if not self._fits or len(wanted) < len(results) or not set(wanted).isdisjoint(self._given):
            return None
        steps = joined(self._steps, wanted)
        if results and results[0].device.type in PROMOTES:
            steps = promoted(steps, wanted)
        steps = overwritten(steps, wanted)
        last = {name: at for at, step in enumerate(steps) for name in (*step.reads, *step.results)}
        over: dict[int, list[str]] = {}
        for name, at in last.items():
            if name not in wanted:
                over.setdefault(at, []).append(name.text)
        script = Script(lambda value: value.text if isinstance(value, Name) else None)
        for at, step in enumerate(steps):
            target = "".join(f"{name.text}, " if step.several else name.text for name in step.results)
            call = script.call(step.op, step.args, step.kwargs)
            script.add(f"{target or '()'} = {call}", over.get(at, ()))
        return script.function([name.text for name in self._given], [name.text for name in wanted])
