"""What the sizes of the inputs must be for a trace to hold: read off the exporter, as texts that `sizes` works out.

A model may do one thing for short inputs and another for long ones. Its trace is of one of them, and the exporter notes
on what that rested: `length <= 8`, `Eq(Mod(length, 2), 0)`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import sympy

from jetgraph.algebra import sizes
from jetgraph.errors import InputError
from jetgraph.export.program import Exported


def guards_of(exported: Exported, names: Mapping[str, str]) -> tuple[str, ...]:
    """Conditions on the open sizes of the inputs, under which an exported program is what its model does.

    `names` gives each of the exporter's symbols the name of a size. What rests on the values of tensors is not among
    them; the operators look at those again.
    """
    guards: list[str] = []
    for symbol, bounds in exported.program.range_constraints.items():
        if str(symbol) in names:
            name = names[str(symbol)]
            # The exporter takes it for granted that sizes are at least 2.
            guards += [f"{name} >= {bounds.lower}"] if bounds.lower > 2 else []
            guards += [f"{name} <= {bounds.upper}"] if isinstance(bounds.upper, sympy.Integer) else []
    for condition in exported.conditions:
        if {str(symbol) for symbol in condition.free_symbols} <= names.keys() and not _is_range(condition):
            guards.append(named(str(condition), names))
    return tuple(dict.fromkeys(guards))


def named(text: str, names: Mapping[str, str]) -> str:
    """A formula of the exporter's symbols as one of named sizes."""
    return re.sub(r"[A-Za-z_]\w*", lambda match: names.get(match[0], match[0]), text)


def check_guards(guards: Sequence[str], known: Mapping[str, int], places: Mapping[str, str]) -> None:
    """Raise `InputError` unless the sizes meet every guard; `places` says which input each size is of."""
    for guard in guards:
        if not sizes.holds(guard, known):
            read = " and ".join(f"input {places[name]!r} has {name} {known[name]}" for name in sizes.names(guard))
            raise InputError(
                f"{read}, but the trace holds for {guard} only, where the model does the same as on the example: "
                "trace the model again with such an input"
            )


def _is_range(condition: sympy.Basic) -> bool:
    """A bound of one size, which is a range of the program's."""
    sides = condition.args if isinstance(condition, sympy.Ge | sympy.Gt | sympy.Le | sympy.Lt) else ()
    return any(side.is_Symbol for side in sides) and any(side.is_Integer for side in sides)
