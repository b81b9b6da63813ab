"""What a stored graph may call, and the texts that stand for it.

A graph from a file is run, so its calls are held to a list: the operators that have a rule, functional operators of a
few libraries (by their schema: what they take and give are tensors and numbers, and nothing is written to), and the
Python functions that an exporter writes for arithmetic on sizes. None of them opens a file or runs a text.

    op:aten:add:Tensor        the operator torch.ops.aten.add.Tensor
    py:_operator:getitem      a function of `_FUNCTIONS`
"""

from __future__ import annotations

import builtins
import math
import operator
import re
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from jetgraph.errors import FileError
from jetgraph.jets.registry import RULES

_NAMESPACES = ("aten", "prims", "transformers", "torchvision", "quantized_decomposed", "torchao", "quanto")
"""Libraries whose functional operators may be called; of others those that have a rule."""

_FUNCTIONS: dict[str, Callable[..., Any]] = {
    f"py:{function.__module__}:{function.__name__}": function
    for module, names in {
        operator: "getitem add sub mul truediv floordiv mod pow neg pos abs eq ne lt le gt ge and_ or_ xor invert not_ "
        "lshift rshift",
        math: "ceil floor trunc sqrt exp log log2 pow sin cos tan sinh cosh tanh asin acos atan",
        torch: "sym_int sym_float sym_max sym_min sym_not sym_ite sym_sum _sym_sqrt _sym_cos _sym_cosh _sym_sin "
        "_sym_sinh _sym_tan _sym_tanh _sym_asin _sym_acos _sym_atan _sym_log2",
        builtins: "round",
    }.items()
    for name in names.split()
    if (function := getattr(module, name, None)) is not None
}

_KINDS = re.compile(
    r"Tensor|number|int|float|bool|complex|SymInt|SymBool|SymFloat|Scalar|ScalarType|Layout|Device|MemoryFormat|"
    r"Generator|str|NoneType|List|Optional|Tuple"
)
"""Types of what an operator may take and give."""


def target_text(target: Any) -> str:
    """The text under which a node's target is stored.

    Raises
    ------
    FileError
        One that could not be read again.
    """
    if isinstance(target, torch._ops.OpOverload):
        text = f"op:{target.namespace}:{target._schema.name.split('::')[1]}:{target._overloadname}"
    else:
        text = f"py:{getattr(target, '__module__', '')}:{getattr(target, '__name__', '')}"
    if target_of(text) is not target:
        raise _refusal(text)
    return text


def target_of(text: str) -> Callable[..., Any]:
    """The target that a text stands for.

    Raises
    ------
    FileError
        A text that stands for none, an operator that this installation lacks, and one that a graph from a file may not
        call.

    >>> target_of("op:aten:add:Tensor")
    <OpOverload(op='aten.add', overload='Tensor')>
    >>> target_of("py:torch:load")
    Traceback (most recent call last):
    jetgraph.errors.FileError: a stored graph may not call 'py:torch:load', which is none of the known functions
    """
    if text in _FUNCTIONS:
        return _FUNCTIONS[text]
    match = re.fullmatch(r"op:(\w+):(\w+):(\w+)", text, re.ASCII)
    if match is None:
        raise _refusal(text)
    namespace, name, overload = match.groups()
    if namespace not in _NAMESPACES and not _ruled(f"{namespace}.{name}.{overload}"):
        raise _refusal(text)
    target = getattr(getattr(getattr(torch.ops, namespace), name, None), overload, None)
    if target is None:
        raise FileError(
            f"the stored graph calls {text!r}, which this installation does not have: import the library that "
            "defines it first"
        )
    if not isinstance(target, torch._ops.OpOverload) or not (is_functional(target) or _ruled(str(target))):
        raise _refusal(text)
    return target


@cache
def is_functional(op: torch._ops.OpOverload) -> bool:
    """By its schema, the operator takes and gives tensors and numbers alone, and writes to nothing.

    Texts, such as the mode of a padding, come beside a tensor: what takes a text alone opens a file by that name.

    >>> is_functional(torch.ops.aten.gelu.default), is_functional(torch.ops.aten.add_.Tensor)
    (True, False)
    >>> is_functional(torch.ops.aten.from_file.default)
    False
    """
    schema = op._schema
    taken, given = ([str(part.type) for part in parts] for parts in (schema.arguments, schema.returns))
    plain = all(_KINDS.fullmatch(word) for kind in (*taken, *given) for word in re.findall(r"[\w.]+", kind))
    tensors, texts = any("Tensor" in kind for kind in taken), any("str" in kind for kind in taken)
    gives = bool(given) and (tensors or any("Tensor" in kind for kind in given))
    return not schema.is_mutable and plain and gives and (tensors or not texts)


def _ruled(name: str) -> bool:
    return any(str(op) == name for op in RULES)


def _refusal(text: str) -> FileError:
    if text.startswith("op:"):
        why = "which neither has a rule (jetgraph.register_rule gives it one) nor is a functional operator of PyTorch"
    else:
        why = "which is none of the known functions"
    return FileError(f"a stored graph may not call {text!r}, {why}")
