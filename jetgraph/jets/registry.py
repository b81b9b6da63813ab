"""What each op is, algebraically: the one table of Taylor rules, and the one answer to "is this node affine?".

Rules are keyed by the exact target of a graph node (an `OpOverload`, or a plain callable such as `operator.getitem`).
The interpreter asks the table how to push a series through a node; the residual analysis asks it what distributes
over a sum; the frozen evaluation asks it what can be held.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal

import torch
from torch import fx

from jetgraph.errors import InputError, check
from jetgraph.jets.series import centre

aten = torch.ops.aten

Kind = Literal["constant", "linear", "bilinear", "elementwise", "composite", "piecewise"]
Gate = Literal["norm", "attention", "gate"]
TaylorRule = Callable[..., Any]
"""`rule(order, *args, **kwargs)`: the node's arguments with some leaves a `Series`; returns a `Series`, a list or tuple
with series in it, or a plain value."""
Condition = Callable[[Mapping[str, Any], Mapping[str, int]], bool]
"""`(arguments by name, number of varying leaves by name) → bool`."""

Summands = Callable[[Mapping[str, Any], Collection[str]], Sequence[Any] | None]
"""`(arguments by name, names of the varying ones) → arguments`."""

KINDS = ("constant", "linear", "bilinear", "elementwise", "composite", "piecewise")


@dataclass(frozen=True, slots=True)
class Registration:
    """One op's entry in the table."""

    op: Callable[..., Any] | str
    kind: Kind
    rule: TaylorRule
    affine: tuple[frozenset[str], ...] = ()
    """The op is an affine function jointly of the arguments of any one of these sets, all others held."""
    when: Condition | None = None
    """Further condition for `affine`, such as "not in training"."""
    added: Summands | None = None
    """What the op's constant part is made of, by its arguments and the names of those that vary; where this is None or
    gives None, it is what does not vary of the affine set."""
    gate: Gate | Callable[[Mapping[str, Any]], Gate | None] | None = None
    """What holding this op counts as when it is frozen; None if it cannot be held."""
    held: TaylorRule | None = None
    """The op at order 1 with its gate held at the centre; None: the whole value is held, as a constant. With `held`
    but no gate, the op is held where its argument already contains a held gate, as in the square of a ReLU."""
    held_when: Callable[[Mapping[str, Any]], bool] | None = None
    """Further condition for `held`, on the op's arguments; where it does not hold, the whole value is held."""
    line: TaylorRule | None = None
    """The op at order 1 as a straight line through its values at 0 and at the centre, for one that is held as a whole
    where something reads it by itself; None: its tangent, which `rule` gives."""
    through_zero: bool | Callable[[Mapping[str, Any]], bool] = False
    """What `held` or `line` gives maps zero to zero, by the op's arguments where a function says so: held, the op adds
    no constant."""
    absorbs: frozenset[str] = frozenset()
    """Arguments that `held` is given at the centre, so that they need not be affine. Where no other one varies, the
    whole value is held."""
    unread: frozenset[str] = frozenset()
    """Arguments that only name a shape or a dtype; how their values vary does not count."""
    complex_values: bool = False
    """The rule holds for complex values as well as for real ones."""
    parts: Callable[..., Any] | None = None
    """`parts(step, *args)`: the op as a program of others, of which each is `step(op, *args)`; frozen, it is these."""

    def affine_in(self, bound: Mapping[str, Any], moving: Mapping[str, int]) -> bool:
        """Affine jointly in the arguments named in `moving`."""
        moving = {name: count for name, count in moving.items() if name not in self.unread}
        if not moving or self.kind == "constant":
            return True
        if not any(moving.keys() <= names for names in self.affine):
            return False
        return self.when is None or self.when(bound, moving)


def plain_rule(op: Callable[..., Any]) -> TaylorRule:
    """The plain op on the coefficients 0, for an op that does not read values, or has no slope."""
    return partial(_at_centre, op)


def _at_centre(op: Callable[..., Any], order: int, *args: Any, **kwargs: Any) -> Any:
    return execute(op, centre(args), centre(kwargs))


def constant_on_pieces(op: Callable[..., Any]) -> Registration:
    """The entry of an op that has none and whose values are steps, such as an index or a comparison."""
    return Registration(op, "piecewise", plain_rule(op), complex_values=True)


RULES: dict[Callable[..., Any] | str, Registration] = {}
"""By op; by the op's name for ops of libraries that need not be loaded."""


def find_rule(op: Any) -> Registration | None:
    """The op's entry, None if it has none."""
    entry = RULES.get(op)
    return RULES.get(str(op)) if entry is None and isinstance(op, torch._ops.OpOverload) else entry


def has_rule(op: Any) -> bool:
    """The op has an entry."""
    return find_rule(op) is not None


def find_op(name: str) -> torch._ops.OpOverload:
    """The loaded op `namespace.name.overload`."""
    namespace, packet, overload = name.split(".")
    return getattr(getattr(getattr(torch.ops, namespace), packet), overload)


def register_rule(
    op: Callable[..., Any] | str,
    rule: TaylorRule | None = None,
    *,
    kind: Kind = "composite",
    affine: Sequence[str] | str = (),
    when: Condition | None = None,
    added: Summands | None = None,
    gate: Gate | Callable[[Mapping[str, Any]], Gate | None] | None = None,
    held: TaylorRule | None = None,
    held_when: Callable[[Mapping[str, Any]], bool] | None = None,
    line: TaylorRule | None = None,
    through_zero: bool | Callable[[Mapping[str, Any]], bool] = False,
    absorbs: str = "",
    unread: str = "",
    complex_values: bool | None = None,
    parts: Callable[..., Any] | None = None,
    replace: bool = False,
) -> Any:
    """Give an op its Taylor rule, as a call or as a decorator.

    `rule(order, *args, **kwargs)` receives the node's arguments, some leaves of which are `Series`, and returns what
    the op returns with `Series` in place of tensors. `kind` says what the op is: constant (does not read the values) ·
    linear · bilinear · elementwise · composite · piecewise (the piece active at the centre). `affine` names sets of
    arguments, each a text of space-separated names out of the op's schema, in which the op is jointly affine, others
    held: `("input bias", "weight bias")` for a linear layer. A linear op's default is its first argument. An op of a
    library that may not be loaded yet is given by name, `"namespace.name.overload"`. `unread` names arguments that only
    give a shape or a dtype. `gate`, `held`, `held_when`, `line`, `through_zero` and `absorbs` say what happens when the
    op is frozen, and `added` what its constant part is made of (see `Registration` and `jetgraph.Freeze`).
    `complex_values` says that the rule holds for complex values too; rules of the kinds constant, linear and bilinear
    do, unless told otherwise. Of an op that is a program of others, such as a recurrent cell, `parts(step, *args)` runs
    it by `step(op, *args)`, and each of these is frozen by itself.

    Raises
    ------
    InputError
        An op packet (name the overload), an unknown kind or argument name, and an op that has a rule already,
        unless `replace=True`.

    >>> import torch
    >>> from jetgraph.jets.registry import RULES, register_rule
    >>> from jetgraph.jets.series import Series
    >>> def double(value: torch.Tensor) -> torch.Tensor:
    ...     return 2 * value
    >>> @register_rule(double, kind="linear")
    ... def double_series(order: int, value: Series) -> Series:
    ...     return value.like(2 * value.coefficients)
    >>> del RULES[double]
    """
    given = dict(locals())
    check(register_rule, given)
    if rule is None:
        options = {name: value for name, value in given.items() if name not in ("op", "rule")}
        return lambda rule: register_rule(op, rule, **options)
    _check_op(op, kind, replace)
    names = () if isinstance(op, str) else argument_names(op)
    sets = tuple(frozenset(text.split()) for text in ([affine] if isinstance(affine, str) else affine))
    if kind == "linear" and not sets:
        sets = (frozenset(names[:1]),)
    unknown = [] if isinstance(op, str) else sorted({name for chosen in sets for name in chosen} - set(names))
    if unknown:
        raise InputError(f"{op_name(op)} has no argument {', '.join(unknown)}; it has {', '.join(names)}")
    RULES[op] = Registration(
        op,
        kind,
        rule,
        sets,
        when,
        added,
        gate,
        held,
        held_when,
        line,
        through_zero,
        frozenset(absorbs.split()),
        frozenset(unread.split()),
        kind in ("constant", "linear", "bilinear") if complex_values is None else complex_values,
        parts,
    )
    return rule


def _check_op(op: Callable[..., Any] | str, kind: str, replace: bool) -> None:
    """Raises `InputError` for an op that no entry can be of, an unknown kind, or an op that has a rule already."""
    if isinstance(op, torch._ops.OpOverloadPacket):
        overloads = ", ".join(f"torch.ops.{op}.{name}" for name in op.overloads())
        raise InputError(f"{op} is a packet of ops; register a rule for one of its overloads: {overloads}")
    if kind not in KINDS:
        raise InputError(f"kind={kind!r} is unknown for {op}: choose one of {', '.join(KINDS)}")
    if op in RULES and not replace:
        raise InputError(f"{op_name(op)} has a rule already; give replace=True to put another in its place")
    if isinstance(op, str) and len(op.split(".")) != 3:
        raise InputError(f"the name {op!r} is not of the form 'namespace.name.overload'")


def op_name(op: Any) -> str:
    """How a person writes the op down: `torch.ops.aten.exp.default`, `operator.getitem`."""
    if isinstance(op, (str, torch._ops.OpOverload)):
        return f"torch.ops.{op}"
    module = getattr(op, "__module__", None)
    name = getattr(op, "__name__", repr(op))
    return f"{module.removeprefix('_')}.{name}" if module else name


@cache
def argument_names(op: Callable[..., Any]) -> tuple[str, ...]:
    """Names of the op's arguments in order."""
    if isinstance(op, torch._ops.OpOverload):
        return tuple(argument.name for argument in op._schema.arguments)
    try:
        return tuple(inspect.signature(op).parameters)
    except ValueError:
        return tuple(f"argument{i}" for i in range(8))


def bind(op: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments by name, those left to their default left out."""
    return dict(zip(argument_names(op), args, strict=False)) | dict(kwargs)


def execute(op: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """The plain op.

    A view is a reshape here: a centre cut out of a stack need not have the strides that the traced value had.
    """
    if op is torch.ops.aten.view.default:
        return torch.reshape(*args, **kwargs)
    return op(*args, **kwargs)


def is_affine(node: fx.Node, varying: Callable[[fx.Node], bool]) -> bool:
    """Is the node's value an affine function, jointly, of those argument nodes for which `varying` holds?

    All other arguments are held constant. True where nothing varies; False for an op without a rule, and for a
    result that is not floating (an index, a mask), which cannot be affine in anything that varies.
    """
    if not callable(node.target):
        return False
    bound = bind(node.target, node.args, node.kwargs)
    moving = {name: count for name, value in bound.items() if (count := sum(map(varying, nodes_in(value))))}
    if not moving:
        return True
    entry = find_rule(node.target)
    if entry is None:
        return False
    if entry.kind != "constant" and not is_floating(node):
        return False
    return entry.affine_in(bound, moving)


def adds_constant(node: fx.Node, varying: Callable[[fx.Node], bool]) -> bool:
    """Does a node that `is_affine` map zero to something else than zero, as a bias or a constant summand makes it?"""
    assert callable(node.target)
    bound = bind(node.target, node.args, node.kwargs)
    moving = {name for name, value in bound.items() if any(map(varying, nodes_in(value)))}
    entry = find_rule(node.target)
    if entry is None:
        return False
    moving -= entry.unread
    if not moving:
        return False
    summands = entry.added(bound, moving) if entry.added else None
    if summands is None:
        jointly = next((names for names in entry.affine if moving <= names), frozenset[str]())
        summands = [bound[name] for name in jointly if name in bound]
    return any(_constant_part(value, varying) for value in summands)


def _constant_part(value: Any, varying: Callable[[fx.Node], bool]) -> bool:
    if isinstance(value, (list, tuple)):
        return any(_constant_part(item, varying) for item in value)
    return not (varying(value) or _is_zero(value)) if isinstance(value, fx.Node) else bool(value)


_ZEROS = frozenset(
    {aten.zeros.default, aten.zeros_like.default, aten.new_zeros.default, aten.full.default, aten.full_like.default}
    | {aten.new_full.default, aten.scalar_tensor.default}
)
"""Ops whose values are zero if what they are filled with is."""


def _is_zero(node: fx.Node) -> bool:
    """The node is zero by structure, whatever its arguments are: made of zeros, or a linear image of such."""
    if node.op != "call_function":
        return False
    if node.target in _ZEROS:
        bound = bind(node.target, node.args, node.kwargs)  # type: ignore[arg-type]
        filled = bound.get("fill_value", bound.get("s", 0))
        return isinstance(filled, int | float) and filled == 0
    entry = find_rule(node.target)
    if entry is None:
        return False
    tensors = [arg for arg in node.all_input_nodes if "shape" in arg.meta]
    if entry.kind == "bilinear" and all(len(names) == 1 for names in entry.affine):
        return any(map(_is_zero, tensors))
    linear = entry.kind == "linear" and len(tensors) == 1 and not adds_constant(node, {tensors[0]}.__contains__)
    return linear and _is_zero(tensors[0])


def values_read(node: fx.Node) -> list[fx.Node]:
    """The arguments whose values the node reads.

    Of an argument that only gives a shape or a dtype it does not, unless that shape depends on values itself, as what
    `nonzero` finds does.
    """
    entry = find_rule(node.target)
    if entry is None or (entry.kind != "constant" and not entry.unread):
        return node.all_input_nodes
    unread: set[fx.Node] = set()
    read: set[fx.Node] = set()
    for name, value in bind(node.target, node.args, node.kwargs).items():  # type: ignore[arg-type]
        for arg in nodes_in(value):
            shape_only = entry.kind == "constant" or name in entry.unread
            (unread if shape_only and "shape" in arg.meta and not _sized_by_values(arg) else read).add(arg)
    return [arg for arg in node.all_input_nodes if arg in read or arg not in unread]


def readers(node: fx.Node) -> list[fx.Node]:
    """The nodes that read the value of this one; those that only ask for its shape do not."""
    return [user for user in node.users if node in values_read(user)]


_VALUE_SIZE = re.compile(r"\bu\d+\b")
"""The exporter's symbols for sizes that depend on values."""


def _sized_by_values(node: fx.Node) -> bool:
    return any(isinstance(size, str) and _VALUE_SIZE.search(size) for size in node.meta["shape"])


def nodes_in(value: Any) -> Iterator[fx.Node]:
    """The nodes in an argument, nested ones too."""
    if isinstance(value, fx.Node):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from nodes_in(item)
    elif isinstance(value, dict):
        yield from nodes_in(tuple(value.values()))
    elif isinstance(value, slice):
        yield from nodes_in((value.start, value.stop, value.step))


def is_native(node: fx.Node) -> bool:
    """The operator is one of PyTorch's own, whose backward has a backward, and which takes batches of `torch.vmap`."""
    return not isinstance(node.target, torch._ops.OpOverload) or node.target.namespace in ("aten", "prims")


def is_floating(node: fx.Node) -> bool:
    """The node's value is of a floating or complex type, or holds such a tensor; True where that is unknown."""
    return any(dtype is None or dtype.is_floating_point or dtype.is_complex for dtype in _dtypes(node))


def is_complex(node: fx.Node) -> bool:
    """The node's value is of a complex type, or holds such a tensor."""
    return any(dtype is not None and dtype.is_complex for dtype in _dtypes(node))


def _dtypes(node: fx.Node) -> list[torch.dtype | None]:
    """Types of what the node's value holds, None where unknown: the exporter keeps fake values, a trace the dtype."""
    value = node.meta.get("val", node.meta.get("dtype"))
    leaves = value if isinstance(value, (list, tuple)) else [value]
    return [leaf if isinstance(leaf, torch.dtype) else getattr(leaf, "dtype", None) for leaf in leaves]
