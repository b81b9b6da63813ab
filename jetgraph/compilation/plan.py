"""What an evaluation of paths consists of, as data: a DAG of frozen operations, in the order in which they run.

Operations name each other by their place in `Plan.operations`. Values that go into a site are tensors or series
x + t v; those that come out are summands of the next point.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from math import prod
from typing import Any, NamedTuple

from torch import fx

from jetgraph.algebra.automaton import Entry
from jetgraph.algebra.paths import Path
from jetgraph.algebra.rules import Freeze
from jetgraph.algebra.sizes import evaluate as size_of
from jetgraph.algebra.sizes import names as names_in
from jetgraph.compilation.costs import flops
from jetgraph.errors import InputError, amount, quoted


@dataclass(frozen=True, slots=True)
class Enter:
    """A source's value at the point where it enters; one of the decoder's is taken before its affine part."""

    entry: Entry


@dataclass(frozen=True, slots=True)
class Stream:
    """The true stream at a point."""

    point: int


@dataclass(frozen=True, slots=True)
class Carry:
    """A term at the next point, through the linear part of the skip, or of the affine map, that leads there."""

    value: int
    point: int


@dataclass(frozen=True, slots=True)
class Matched:
    """A centre at the length at which it is nearest to the stream, each token in the coordinates of a site's norm; and
    the way from there to the stream."""

    centre: int
    stream: int
    site: str
    """Of parts, the whole branch."""


@dataclass(frozen=True, slots=True)
class Towards:
    """x + t (h − x): a centre x, and the way from it to the stream; of order 0 the centre."""

    centre: int
    stream: int | None
    """None for a centre that is matched, which has its way with it."""
    order: int


@dataclass(frozen=True, slots=True)
class Along:
    """x + t v for a direction v, which is 0 where a matched x has no way to the stream; t v alone without a centre,
    which is all that a linear part needs."""

    direction: int
    centre: int | None = None


@dataclass(frozen=True, slots=True)
class Pass:
    """What a site makes of a tensor (order 0) or of a series."""

    site: str
    value: int
    order: int
    frozen: Freeze | None = None


@dataclass(frozen=True, slots=True)
class Open:
    """What the parts of a split branch have in common: the branch, whose alias is `site`, up to its cut."""

    site: str
    value: int
    order: int
    frozen: Freeze | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """One part of an opened branch."""

    site: str
    opened: int
    order: int
    frozen: Freeze | None = None


@dataclass(frozen=True, slots=True)
class Coefficient:
    """A coefficient of a series, or a tensor as it is, times a centre's weight."""

    value: int
    order: int
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Polynomial:
    """All coefficients of a series up to an order, added up, times a centre's weight: a jet at its variate."""

    value: int
    order: int
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Land:
    """What a branch gave, as a summand of its join."""

    site: str
    value: int


@dataclass(frozen=True, slots=True)
class Sum:
    """Σ values; without any, zeros such as the site gives."""

    site: str
    values: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Own:
    """What a site gives at the true stream."""

    site: str


@dataclass(frozen=True, slots=True)
class Optimum:
    """By token, the weights on the simplex that bring Σ w values nearest to what they are to make up."""

    site: str
    values: tuple[int, ...]
    own: int


@dataclass(frozen=True, slots=True)
class Preset:
    """Weights that a tensor has, one for each centre, for all tokens or for each."""

    site: str


@dataclass(frozen=True, slots=True)
class Weigh:
    """A value times the weight of a centre, each token with its own."""

    value: int
    weights: int
    place: int


Operation = (
    Enter
    | Stream
    | Carry
    | Matched
    | Towards
    | Along
    | Pass
    | Open
    | Part
    | Coefficient
    | Polynomial
    | Land
    | Sum
    | Own
    | Optimum
    | Preset
    | Weigh
)

_LINKS = frozenset({"value", "centre", "direction", "stream", "opened", "values", "own", "weights"})
"""Fields that name other operations; the `stream` of `Towards` is one, the `point` of `Stream` is none."""


def inputs(operation: Operation) -> tuple[int, ...]:
    """The operations whose values this one reads."""
    reads: list[int] = []
    for each in fields(operation):
        if each.name in _LINKS:
            value = getattr(operation, each.name)
            reads += [] if value is None else value if isinstance(value, tuple) else [value]
    return tuple(reads)


class Work(NamedTuple):
    """What an operation reads of the true forward pass, and what it takes."""

    reads: tuple[fx.Node, ...]
    makes: fx.Node
    """A node of the shape and type of the value that is made."""
    rows: int = 1
    """How many coefficients of that shape."""
    runs: tuple[fx.Node, ...] = ()
    """Nodes of the graph that are run, on as many coefficients."""


@dataclass(frozen=True, eq=False)
class Lane:
    """One value on its way past a site: what makes it ready, the passes, and what takes their results apart."""

    before: tuple[int, ...]
    passes: tuple[int, ...]
    after: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Visit:
    """All values that pass one site, or the parts of one branch; those in one way can go side by side."""

    lanes: tuple[Lane, ...]
    stacked: bool
    """They can be stacked along the batch, and pass together."""


@dataclass(frozen=True, eq=False)
class Plan:
    """The evaluation of paths: `print(plan)` is its cost table."""

    operations: tuple[Operation, ...]
    work: tuple[Work, ...]
    visits: tuple[Visit, ...]
    results: Mapping[Path, int]
    """By path, the operation whose value before the decoder's affine part it is."""
    passed: Mapping[str, int]
    """How many values pass sites, by role."""
    forward: tuple[fx.Node, ...]
    """The nodes that one forward pass of the model runs."""
    last: int | None
    """The last point of the true stream that is read; None where no forward pass is needed."""
    sums: Mapping[str, int] = field(default_factory=dict)
    """By site, the operation that adds up all that it gives, as summands of the next point; where that is wanted."""

    @cached_property
    def reads(self) -> tuple[fx.Node, ...]:
        """All values of the true forward pass that are read."""
        return tuple(dict.fromkeys(node for work in self.work for node in work.reads))

    def order(self) -> Iterator[int]:
        """The operations in the order in which they run, one lane after the other."""
        for visit in self.visits:
            for lane in visit.lanes:
                yield from (*lane.before, *lane.passes, *lane.after)

    def summary(self) -> str:
        """What an evaluation takes, in a line."""
        sites = ", ".join(f"{number} of {role} sites" for role, number in self.passed.items())
        point = "no forward pass" if self.last is None else f"the forward pass up to h{self.last}"
        return f"{amount(sum(self.passed.values()), 'evaluation')} ({sites}) and {point}"

    def sizes(self, **given: int) -> dict[str, int]:
        """Numbers for the open sizes of the model: those given, else 1 for the batch and 16 for any other.

        Raises
        ------
        InputError
            No open size is called so, or a number below 1.
        """
        names = {size for node in self.forward for size in node.meta.get("shape", ()) if isinstance(size, str)}
        atoms = dict.fromkeys(name for size in sorted(names) for name in names_in(size))
        for name, size in given.items():
            if name not in atoms:
                raise InputError(
                    f"{quoted(name)} is no open size of this model; there are: {', '.join(atoms) or 'none'}"
                )
            if not isinstance(size, int) or size < 1:
                raise InputError(f"the size {name}={quoted(size)} is no number from 1 on")
        return {name: given.get(name, 1 if name == "batch" else 16) for name in atoms}

    def table(self, **given: int) -> str:
        """Operations by kind, with FLOPs and bytes made, and the largest set of values that live at once.

        `given` are sizes by name, as `print(graph)` shows them (`batch`, `length`).
        """
        sizes = self.sizes(**given)

        def numbers(node: fx.Node) -> tuple[int, ...]:
            return tuple(size if isinstance(size, int) else size_of(size, sizes) for size in node.meta["shape"])

        once = flops(self.forward, numbers) or 1
        count, work, made = Counter[str](), Counter[str](), Counter[str]()
        size = [prod(numbers(each.makes)) * each.rows * each.makes.meta["dtype"].itemsize for each in self.work]
        for index, operation in enumerate(self.operations):
            kind, each = type(operation).__name__.lower(), self.work[index]
            count[kind] += 1
            work[kind] += flops(each.runs, numbers, each.rows)
            made[kind] += size[index]
        at = ", ".join(f"{name} {number}" for name, number in sizes.items()) or "fixed sizes"
        lines = [f"Plan: {amount(len(self.results), 'path')}, {self.summary()}; at {at}"]
        rows = [("operation", "number", "FLOPs", "× forward", "bytes made")]
        rows += [(k, f"{n:,}", _big(work[k]), f"{work[k] / once:.3g}", _big(made[k])) for k, n in count.items()]
        total = work.total()
        rows.append(("all", f"{count.total():,}", _big(total), f"{total / once:.3g}", _big(made.total())))
        widths = [max(len(row[column]) for row in rows) for column in range(5)]
        lines += ["  ".join((row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))))
                  for row in rows]  # fmt: skip
        lines.append(f"largest set of values at once: {_big(self._largest(size))} bytes")
        return "\n".join(lines)

    def _largest(self, size: list[int]) -> int:
        """The largest sum of sizes that wait at once, one lane after the other."""
        waiting = self.waiting()
        live = most = 0
        for index in self.order():
            live += size[index]
            most = max(most, live)
            for read in self.links[index]:
                waiting[read] -= 1
                live -= size[read] if waiting[read] == 0 else 0
        return most

    @cached_property
    def links(self) -> tuple[tuple[int, ...], ...]:
        """By operation, those whose values it reads."""
        return tuple(map(inputs, self.operations))

    def waiting(self) -> list[int]:
        """How often each value will be read, the results once more."""
        return [*self._waiting]

    @cached_property
    def _waiting(self) -> list[int]:
        counts = [0] * len(self.operations)
        for index in self.order():
            for read in self.links[index]:
                counts[read] += 1
        for index in (*self.results.values(), *self.sums.values()):
            counts[index] += 1
        return counts

    def __repr__(self) -> str:
        return self.table()

    def __deepcopy__(self, memo: dict[int, Any]) -> Plan:
        """Itself: a plan never changes."""
        return self


def _big(number: int) -> str:
    return f"{number:,}" if number < 10**6 else f"{number:.3g}"
