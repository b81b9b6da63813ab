"""Running a traced graph, or a part of it, on tensors and on series.

One function does both: a node none of whose arguments holds a series is executed as it stands, so the plain replay of
a model and its jets take the same way. A chain that reads no series at all is run as code (`jets.code`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from typing import Any, NoReturn

import torch
from torch import Tensor, fx
from torch._C._functorch import get_unwrapped, is_functorch_wrapped_tensor
from torch.fx.node import map_arg

from jetgraph.algebra.rules import Freeze
from jetgraph.errors import DomainError, InputError, JetGraphError, MissingRuleError
from jetgraph.export.precision import own_types
from jetgraph.jets import frozen as frozen_run
from jetgraph.jets.code import CHECKED, CHECKS, code_of
from jetgraph.jets.domain import demand, has_passed, shown
from jetgraph.jets.registry import (
    Registration,
    bind,
    constant_on_pieces,
    execute,
    find_rule,
    is_complex,
    is_floating,
    op_name,
)
from jetgraph.jets.series import Series, has_series

aten = torch.ops.aten

_PRODUCTS = frozenset({aten.mm.default, aten.bmm.default, aten.addmm.default, aten.baddbmm.default})
"""Ops that can write their result into given memory, as exactly as without."""


def evaluate(
    nodes: Iterable[fx.Node],
    values: dict[fx.Node, Any],
    order: int = 0,
    keep: Collection[fx.Node] | None = None,
    frozen: Freeze | None = None,
    out: Mapping[fx.Node, Tensor] | None = None,
    constants: Collection[fx.Node] = (),
) -> dict[fx.Node, Any]:
    """Run `nodes`, given in topological order, and return `values`, which gains their values.

    `values` holds, before the call, everything that the nodes read and do not compute: tensors, numbers, or `Series` of
    this `order`. A result is a `Series` where it depends on one in a way that can be differentiated; comparisons,
    indices and shapes are plain, taken at the centre. A node that has a value already is run again.

    With `keep`, a computed value that is not in `keep` is dropped after its last user among `nodes`; values that were
    there before the call belong to the caller and stay.

    With `frozen`, series are of order 1, coefficient 0 the true value h and coefficient 1 a direction t; the gates are
    held at h, and coefficient 1 of a result f is A_h t, where f(h) = A_h h + b_h. A value that is kept (or that no node
    reads, without `keep`) and is not affine raises `InputError`, naming the op that is not. Kept values that are
    themselves held are lines (see `jets.frozen`), those among `constants` stay what they are at h.

    `out` offers memory for the plain values of nodes, of their shape and dtype, outside of grad mode. Matrix products
    write to it.

    An autocast of the caller takes no part.

    Raises
    ------
    MissingRuleError
        An op without a rule that a series reaches.
    DomainError
        A centre at which an op has no expansion; both name op and module path. Where nothing that is kept depends on
        that, as with the logarithms of where(x > 0, log x, 0) that are not chosen, it is no error.
    """
    if frozen is not None and order != 1:
        raise InputError(f"a frozen evaluation is of order 1, not {order}: coefficient 1 is the direction")
    if torch._C._is_any_autocast_enabled():
        with own_types():
            return evaluate(nodes, values, order, keep, frozen, out, constants)
    chain = tuple(nodes)
    if not order and frozen is None and out is None and _run_code(chain, values, keep):
        return values
    if has_passed():
        return _evaluated(chain, values, order, keep, frozen, out, constants)
    given = dict(values)
    try:
        return _evaluated(chain, values, order, keep, frozen, out, constants)
    except DomainError:
        values.clear()
        values |= given
        with shown(), suppress(DomainError):
            _evaluated(chain, values, order, keep, frozen, out, constants)
            if all(map(_is_finite, map(values.get, _wanted(chain, keep)))):
                return values
        raise


def _wanted(chain: tuple[fx.Node, ...], keep: Collection[fx.Node] | None) -> Collection[fx.Node]:
    """What is kept of the values of nodes; without `keep`, what none of them reads."""
    computed = frozenset(chain)
    return keep if keep is not None else [node for node in chain if not computed.intersection(node.users)]


def _is_finite(value: Any) -> bool:
    """Of numbers at every order."""
    if isinstance(value, (list, tuple)):
        return all(map(_is_finite, value))
    if isinstance(value, Series):
        return all(map(_is_finite, value.stored()))
    while isinstance(value, Tensor) and is_functorch_wrapped_tensor(value):
        value = get_unwrapped(value)
    return not isinstance(value, Tensor) or bool(value.isfinite().all())


def _evaluated(
    chain: tuple[fx.Node, ...],
    values: dict[fx.Node, Any],
    order: int,
    keep: Collection[fx.Node] | None,
    frozen: Freeze | None,
    out: Mapping[fx.Node, Tensor] | None,
    constants: Collection[fx.Node],
) -> dict[fx.Node, Any]:
    computed = frozenset(chain)
    users = _uses(chain) if keep is not None else {}
    for node in chain:
        if node.op == "call_function":
            values[node] = _run(node, values, order, frozen, None if out is None else out.get(node))
        elif node.op == "get_attr":
            values[node] = _attribute(node)
        elif node.op == "placeholder":
            if node not in values:
                raise InputError(f"the input {node.name!r} has no value: put it into `values`")
        elif node.op != "output":
            raise InputError(
                f"node {node.name!r} is a {node.op}; only call_function nodes of an exported graph can be run"
            )
        if keep is not None:
            for read in node.all_input_nodes:
                users[read] -= 1
                if users[read] == 0 and read in computed and read not in keep and read.op != "placeholder":
                    del values[read]
            if users.get(node, 0) == 0 and node not in keep and node.op == "call_function":
                del values[node]
    if frozen is not None:
        frozen_run.settle(chain, values, _wanted(chain, keep), frozen, constants)
    return values


def _run_code(chain: tuple[fx.Node, ...], values: dict[fx.Node, Any], keep: Collection[fx.Node] | None) -> bool:
    """Run nodes as code, if there is code of them and they read no series."""
    code = code_of(chain, keep, check_rows)
    if code is None:
        return False
    try:
        computed = code(values)
    except Exception as error:
        _raise_at(code.place(error), error)
    values |= computed or {}
    return computed is not None


def _raise_at(node: fx.Node | None, error: Exception) -> NoReturn:
    """Raise an error again, with the node at which it was raised."""
    if node is None:
        raise error
    where = op_in_module(node)
    if isinstance(error, MissingRuleError) and str(error).startswith("torch.ops."):
        raise error  # Of an operator that has none, and it says where.
    if isinstance(error, JetGraphError):
        raise type(error)(f"{where}: {error}") from error
    error.add_note(f"while evaluating node {node.name!r}: {where}")
    raise error


def _uses(chain: tuple[fx.Node, ...]) -> dict[fx.Node, int]:
    """How many of the nodes read each node."""
    users: dict[fx.Node, int] = {}
    for node in chain:
        for read in node.all_input_nodes:
            users[read] = users.get(read, 0) + 1
    return users


def _run(node: fx.Node, values: dict[fx.Node, Any], order: int, frozen: Freeze | None, out: Tensor | None) -> Any:
    op: Any = node.target
    if op in CHECKS:
        return None
    try:
        args: Any = map_arg(node.args, values.__getitem__)
        kwargs: Any = map_arg(node.kwargs, values.__getitem__)
        if frozen is not None:
            if any(frozen_run.is_marked(values[read]) for read in node.all_input_nodes):
                where = op_in_module(node)
                call = frozen_run.Call(op, rule_for(node), args, kwargs, frozen.gates, where, shared=frozen.halves)
                return frozen_run.run(call)
        elif any(has_series(values[read]) for read in node.all_input_nodes):
            return rule_for(node).rule(order, *args, **kwargs)
        if op is aten.embedding.default and not node.meta.get(CHECKED):
            check_rows(*args[:2])
        # With a bias, linear.out would round twice.
        if out is not None and (op in _PRODUCTS or (op is aten.linear.default and len(args) == 2 and not kwargs)):
            return op.overloadpacket.out(*args, **kwargs, out=out)
        return execute(op, args, kwargs)
    except Exception as error:
        absent = ", ".join(read.name for read in node.all_input_nodes if read not in values)
        if isinstance(error, KeyError) and absent:
            raise InputError(f"node {node.name!r} reads {absent}, which has no value: put it into `values`") from error
        fixed = _varies_where_it_may_not(node, values)
        if fixed and not isinstance(error, JetGraphError):
            raise MissingRuleError(
                f"{op_in_module(node)} (node {node.name!r}) has a rule for its {fixed[0]} as a "
                "constant, and here it varies: register another with jetgraph.register_rule(..., replace=True)"
            ) from error
        _raise_at(node, error)


def _varies_where_it_may_not(node: fx.Node, values: Mapping[fx.Node, Any]) -> list[str]:
    """Of a linear op, the arguments that vary and in which it is not linear."""
    entry = find_rule(node.target)
    if entry is None or entry.kind != "linear":
        return []
    taken = entry.unread.union(*entry.affine)
    bound = bind(node.target, node.args, node.kwargs)  # type: ignore[arg-type]
    return [name for name in bound if name not in taken and has_series(map_arg(bound[name], values.get))]


def check_rows(table: Tensor, index: Tensor) -> None:
    """Raise `InputError` for rows that a table does not have, which would end a process on some devices."""
    check_index(table.shape[0], index)


def check_index(rows: int, index: Tensor) -> None:
    """Raise `InputError` for numbers that are not those of so many rows."""
    demand(
        index,
        lambda index: (index >= 0) & (index < rows),
        f"row numbers must be 0 to {rows - 1}, for the model has no more positions, or token ids, than that",
        InputError,
    )


def rule_for(node: fx.Node) -> Registration:
    """The entry of the node's op. One that has none, and gives or reads no floating value, is constant on pieces.

    Raises
    ------
    MissingRuleError
        Another op without an entry.
    """
    entry = find_rule(node.target)
    if entry is not None and entry.complex_values:
        return entry
    complex_values = any(map(is_complex, node.all_input_nodes))
    if entry is not None and not complex_values:
        return entry
    steps = not is_floating(node) or not any(map(is_floating, node.all_input_nodes))
    if entry is None and steps and callable(node.target):
        return constant_on_pieces(node.target)
    name = op_name(node.target)
    what = "Taylor rule" if entry is None else "Taylor rule for complex values"
    options = ", replace=True, complex_values=True" if complex_values else ""
    raise MissingRuleError(
        f"{op_in_module(node)} (node {node.name!r}) has no {what}. Register one:\n"
        f"    @jetgraph.register_rule({name}, kind='composite'{options})\n"
        f"    def rule(order, *args, **kwargs):  # arguments as in the graph, those that vary as Series\n"
        f"        ...  # return the op's result as a Series of that order"
    )


def module_path(node: fx.Node) -> str:
    """The path of the innermost module that a node belongs to, in a traced graph or in an exported one."""
    path = node.meta.get("module_path")
    if path is None:
        stack = node.meta.get("nn_module_stack") or {}
        path = next((entry[0] for entry in reversed(stack.values())), "")
    return path.removeprefix("L['self']").removeprefix(".")


def op_in_module(node: fx.Node) -> str:
    """The op of a node and where it comes from, for messages: `torch.ops.aten.exp.default in module 'layers.0'`."""
    path = module_path(node)
    return f"{op_name(node.target)} in {f'module {path!r}' if path else 'the root module'}"


def _attribute(node: fx.Node) -> Any:
    owner: Any = node.graph.owning_module
    for name in str(node.target).split("."):
        owner = getattr(owner, name)
    return owner
