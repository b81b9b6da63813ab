"""What a model's code asks for by name, found out while it runs on the example.

Models hold much that their forward pass never looks at: plans for clusters, names of labels, a padding token. What is
named by the code that ran may decide what is computed; all else cannot.
"""

from __future__ import annotations

import dis
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from types import CodeType, FrameType, FunctionType
from typing import Any

import torch
from torch import nn

from jetgraph.tracing.facts import EVERYTHING, Asked, described, has_run, moved

_OURS = os.path.dirname(os.path.dirname(__file__)) + os.sep
_TORCH = os.path.dirname(torch.__file__) + os.sep
_COMPILED = os.path.join(os.path.dirname(torch.__file__), "_dynamo", "eval_frame.py")


class Ran:
    """The code of all functions that have run in `watched`, and what running has changed of what modules hold."""

    def __init__(self) -> None:
        self.codes: dict[CodeType, dict[str, Any]] = {}
        """With the names of the file that each is written in."""
        self.changed: set[str] = set()
        """Names of attributes that hold something else after a run."""
        self._seen = True
        """All that ran was seen."""

    @contextmanager
    def watched(self, model: nn.Module) -> Iterator[None]:
        """Note what runs, and what that changes in a model."""
        before = described(model, EVERYTHING)
        with self._profiled():
            yield
        self.changed |= moved(before, described(model, EVERYTHING))

    @contextmanager
    def _profiled(self) -> Iterator[None]:
        """Note the functions that run, by the interpreter's own profiling hook; nothing where somebody else has it."""
        if sys.getprofile() is not None:
            self._seen = False
            yield
            return
        codes = self.codes

        def called(frame: FrameType, event: str, _: Any) -> None:
            if event == "call":
                codes[frame.f_code] = frame.f_globals

        sys.setprofile(called)
        try:
            yield
        finally:
            sys.setprofile(None)

    def asked(self, modules: Iterable[nn.Module]) -> Asked:
        """The names that count in these modules and in what they hold."""
        codes = {code for code in self.codes if not code.co_filename.startswith(_OURS)}
        if not (self._seen and codes) or any(code.co_filename == _COMPILED for code in codes):
            # What a compiler has made of functions does not name what they name.
            return Asked(frozenset(self.codes), None, frozenset(self.changed))
        kinds = {above for kind in {type(module) for module in modules} for above in kind.__mro__}
        named = frozenset(name for code in codes for name in _named(code))
        written = frozenset(name for code in _reachable(codes, kinds) for name in _written(code))
        return Asked(frozenset(codes), named, frozenset(self.changed), written, self._functions(codes))

    def _functions(self, codes: set[CodeType]) -> dict[str, tuple[str, ...]]:
        """Functions that ran and that others have by their names, of what is neither torch's nor Python's."""
        found: dict[str, dict[str, None]] = {}
        for code in codes:
            file = self.codes[code]
            module = str(file.get("__name__"))
            if _is_library(module) or getattr(sys.modules.get(module), "__dict__", None) is not file:
                continue
            functions = (name for name in code.co_names if isinstance(file.get(name), FunctionType))
            found.setdefault(module, {}).update((name, None) for name in functions if has_run(file[name], codes))
        return {module: tuple(names) for module, names in found.items() if names}


def _reachable(codes: set[CodeType], kinds: set[type]) -> set[CodeType]:
    """Code that ran, without torch's, and methods that it names, which may run another time."""
    own = [kind for kind in kinds if not _is_library(kind.__module__)]
    methods: dict[str, list[CodeType]] = {}
    for kind in own:
        for name, value in vars(kind).items():
            if isinstance(value, FunctionType):
                methods.setdefault(name, []).append(value.__code__)
    reached, stack = set[CodeType](), [code for code in codes if not code.co_filename.startswith(_TORCH)]
    while stack:
        if (code := stack.pop()) not in reached:
            reached.add(code)
            stack += [each for name in code.co_names for each in methods.get(name, ())]
    # What makes an object gives it what it has.
    return {code for code in reached if code.co_name != "__init__"}


def _is_library(module: str) -> bool:
    """torch's or Python's."""
    name = module.partition(".")[0]
    return name == "torch" or name in sys.stdlib_module_names - {"__main__"}


@cache
def _named(code: CodeType) -> frozenset[str]:
    """The names in a function's code, and the words in it that may be one, as in `getattr(self, "scale", 1)`."""
    words = (constant for constant in code.co_consts if isinstance(constant, str) and constant.isidentifier())
    return frozenset((*code.co_names, *words))


@cache
def _written(code: CodeType) -> frozenset[str]:
    """The names of attributes that a function sets."""
    found, high, bytes_ = set[str](), 0, code.co_code
    for operation, argument in zip(bytes_[::2], bytes_[1::2], strict=True):
        if operation == dis.EXTENDED_ARG:
            high = (high | argument) << 8
            continue
        if operation == _STORE:
            found.add(code.co_names[high | argument])
        high = 0
    return frozenset(found)


_STORE = dis.opmap["STORE_ATTR"]
