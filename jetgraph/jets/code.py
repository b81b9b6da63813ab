"""Plain evaluations as code: a chain of nodes on tensors is one generated Python function.

Nothing is looked up or decided per node when it runs: operators and constants are bound to names, checks of what the
trace saw are left out, and a value is dropped after its last reader, as in the code of `torch.fx`. A chain is
interpreted the first few times, for writing code takes as long as they do, and runs as code from then on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache
from types import CodeType
from typing import Any

import torch
from torch import Tensor, fx, nn

from jetgraph.jets.bindings import binding
from jetgraph.jets.captured import Captured
from jetgraph.jets.series import has_series

aten = torch.ops.aten

CHECKS = frozenset(
    {
        aten._assert_tensor_metadata.default,
        aten._assert_scalar.default,
        aten._assert_async.default,
        aten._assert_async.msg,
        aten.sym_constrain_range.default,
        aten.sym_constrain_range_for_size.default,
    }
)
"""Checks of what was true in the trace: other shapes and dtypes are the point of running the graph again."""

CHECKED = "checked"
"""What says in a node's metadata that whoever gives the inputs has seen to it that a lookup finds its rows."""

RUNS = 3
"""How often a chain is interpreted: writing its code costs what interpreting costs more in so many runs."""

_KNOWN = "_jetgraph_code"
"""Where a graph keeps the code of its chains: it lives as long as the nodes that it is of."""

_LIMIT = 4096
"""Chains that a graph remembers; where there were more, it starts again."""

_PLAIN = frozenset({Tensor, nn.Parameter, int, float, bool, type(None)})
"""Types of values that hold no series."""

_ABSENT = object()
"""What a node without a value has."""


class Code:
    """A chain of nodes as a function of what it reads.

    Parameters
    ----------
    nodes
        In topological order; none but operators, and inputs that have values.
    keep
        Those whose values are wanted; all of them where it is None.
    check_rows
        Called with table and index before a lookup.
    """

    def __init__(
        self, nodes: Sequence[fx.Node], keep: Collection[fx.Node] | None, check_rows: Callable[[Tensor, Tensor], None]
    ) -> None:
        self._nodes = [node for node in nodes if node.op == "call_function"]
        computed = frozenset(self._nodes)
        inputs = [node for node in nodes if node.op == "placeholder"]
        read = (arg for node in self._nodes for arg in node.all_input_nodes if arg not in computed)
        self._reads = list(dict.fromkeys((*inputs, *read)))
        self._results = [node for node in self._nodes if keep is None or node in keep]
        self._names = {node: f"v{place}" for place, node in enumerate((*self._reads, *self._nodes))}
        self._function = self._made(check_rows)
        self._captured = Captured(
            self._function, [at for at, node in enumerate(self._reads) if node.op == "call_function"]
        )

    def __call__(self, values: Mapping[fx.Node, Any]) -> dict[fx.Node, Any] | None:
        """The wanted values; None where the chain reads a series, or what has no value."""
        given = []
        for node in self._reads:
            value = values.get(node, _ABSENT)
            if type(value) not in _PLAIN and (value is _ABSENT or has_series(value)):
                return None
            given.append(value)
        return dict(zip(self._results, self._captured(given), strict=True))

    def place(self, error: Exception) -> fx.Node | None:
        """The node at which the code raised."""
        trace = error.__traceback__
        while trace is not None:
            if trace.tb_frame.f_code is self._function.__code__:
                return self._nodes[trace.tb_lineno - 2]
            trace = trace.tb_next
        return None

    def _made(self, check_rows: Callable[[Tensor, Tensor], None]) -> Callable[..., Any]:
        """The function, of which line 2 is that of the first node."""
        kept = frozenset(self._results)
        last = {arg: node for node in self._nodes for arg in (*node.all_input_nodes, node)}
        over: dict[fx.Node, list[str]] = {}
        for arg in self._nodes:
            # A node that nobody reads is its own last reader.
            if arg not in kept and arg.target not in CHECKS:
                over.setdefault(last[arg], []).append(self._names[arg])
        script = Script(lambda value: self._names[value] if isinstance(value, fx.Node) else None)
        for node in self._nodes:
            statement = f"{self._names[node]} = None"
            if node.target not in CHECKS:
                statement = f"{self._names[node]} = {script.call(node.target, node.args, node.kwargs)}"
            if node.target is aten.embedding.default and not node.meta.get(CHECKED):
                statement = f"{script.call(check_rows, node.args[:2], {})}; {statement}"
            script.add(statement, over.get(node, ()))
        names = [[self._names[node] for node in nodes] for nodes in (self._reads, self._results)]
        return script.function(*names)


class Script:
    """Statements, of which a function is made; operators and constants are bound to names.

    Parameters
    ----------
    name_of
        What a value is called that is not the same in each call; None for constants.
    """

    def __init__(self, name_of: Callable[[Any], str | None]) -> None:
        self._name_of = name_of
        self._lines: list[str] = []
        self._bound: dict[str, Any] = {}
        self._constants: dict[int, str] = {}
        """Names of constants by the identity of their values, which are bound."""

    def add(self, statement: str, over: Collection[str] = ()) -> None:
        """A statement, in a line of its own, and the names of what nothing reads after it."""
        self._lines.append("; ".join((f"    {statement}", *(f"del {name}" for name in over))))

    def function(self, reads: Sequence[str], results: Sequence[str]) -> Callable[..., Any]:
        """Of some names a tuple of others; line 2 is that of the first statement."""
        ends = f"    return ({''.join(f'{name}, ' for name in results)})"
        exec(_compiled("\n".join([f"def run({', '.join(reads)}):", *self._lines, ends])), self._bound)
        return self._bound["run"]

    def call(self, op: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
        """What an operator gives, as an expression."""
        written = [*map(self.written, args), *(f"{key}={self.written(arg)}" for key, arg in kwargs.items())]
        return f"{self.name(binding(op))}({', '.join(written)})"

    def written(self, value: Any) -> str:
        """An argument as an expression."""
        if (name := self._name_of(value)) is not None:
            return name
        if type(value) in (bool, int, str, type(None)) or (type(value) is float and math.isfinite(value)):
            return repr(value)
        if isinstance(value, slice):
            return f"slice({', '.join(map(self.written, (value.start, value.stop, value.step)))})"
        if isinstance(value, (list, tuple)):
            inner = "".join(f"{self.written(item)}, " for item in value)
            return f"[{inner}]" if isinstance(value, list) else f"({inner})"
        if isinstance(value, dict):
            return f"{{{''.join(f'{key!r}: {self.written(item)}, ' for key, item in value.items())}}}"
        return self.name(value)

    def name(self, value: Any) -> str:
        """A name that is bound to a value, such as an operator or a type."""
        name = self._constants.setdefault(id(value), f"c{len(self._constants)}")
        self._bound[name] = value
        return name


@lru_cache(maxsize=512)
def _compiled(text: str) -> CodeType:
    """The layers of a model have one code between them, with operators and constants bound to its names."""
    return compile(text, "<code of a graph>", "exec")


def code_of(
    nodes: tuple[fx.Node, ...], keep: Collection[fx.Node] | None, check_rows: Callable[[Tensor, Tensor], None]
) -> Code | None:
    """The code of a chain of nodes; None where it was not run often enough, or is not to be written as such.

    Weights that are attributes of a graph are looked up each time that it is run.
    """
    if not nodes:
        return None
    # Its code, or how often it was run.
    known: dict[Any, Code | int] = vars(nodes[0].graph).setdefault(_KNOWN, {})
    key = nodes, None if keep is None else frozenset(keep)
    before = known.get(key, 0)
    if isinstance(before, Code):
        return before
    if before < RUNS or any(node.op not in ("call_function", "placeholder") for node in nodes):
        if key not in known and len(known) >= _LIMIT:
            known.clear()
        known[key] = before + 1
        return None
    code = known[key] = Code(nodes, keep, check_rows)
    return code
