"""What is made of one prompt, of several: a result of each, as one table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from torch.utils import _pytree as pytree

from jetgraph.applications.bars import BARS, drawn
from jetgraph.applications.results import Cell, Result, Table
from jetgraph.applications.rows import are_apart
from jetgraph.applications.subject import Inputs, Subject, one_by_one
from jetgraph.errors import InputError, amount, check
from jetgraph.tracing.calls import named_leaves

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from jetgraph.applications.readout import Texts

Each = TypeVar("Each", bound=Result)

PRINTED = 4
"""Results that a repr shows."""


@dataclass(frozen=True, eq=False, repr=False)
class Several(Result, Generic[Each]):
    """The results of several prompts, each looked at by itself. Made by `attribute` and `rank`."""

    model: str
    of: str
    """What was made of each prompt."""
    each: tuple[Each, ...]
    """The result of each prompt, as of it alone."""

    @property
    def alone(self) -> Each | Several[Each]:
        """The result itself where there is one prompt."""
        return self.each[0] if len(self.each) == 1 else self

    @cached_property
    def tokens(self) -> Texts:
        """By example, the texts of the prompt's tokens; none where they have none."""
        return tuple(row for one in self.each for row in getattr(one, "tokens", ()))

    @property
    def title(self) -> str:
        return f"{self.model}: {self.of} of {amount(len(self.each), 'input')}, each by itself"

    @property
    def note(self) -> str:
        return "\n".join(dict.fromkeys(one.note for one in self.each if one.note))

    def columns(self) -> Mapping[str, Sequence[Cell]]:
        """The columns of each result under one another, after the number of its example."""
        return _joined([one.columns() for one in self.each])

    def at(self, position: int) -> Table:
        """The rows of one position; negative ones are counted from the end of each prompt.

        Raises
        ------
        InputError
            The tables have no positions, or none has this one.
        """
        check(Several.at, locals())
        found: dict[int, Table] = {}
        refused: list[InputError] = []
        for example, one in enumerate(self.each):
            try:
                found[example] = one.at(position)
            except InputError as error:
                refused.append(error)
        if not found:
            raise refused[0]
        rows = _joined([table.columns() for table in found.values()], list(found))
        return Table(f"position {position} of {self.title}", rows, self.note, self.tokens)

    def figure(self) -> Figure:
        """Bars: of each prompt what is the largest. Its own figure has `.each[0].plot()`."""
        some = max(1, BARS // max(1, len(self.each)))
        title = self.title + drawn(sum(min(some, len(one)) for one in self.each), sum(map(len, self.each)))
        rows = {name: list(cells) for name, cells in _joined([one.top(some).columns() for one in self.each]).items()}
        rows["example"] = [str(example) for example in rows["example"]]
        return Table(title, rows).figure()

    def __repr__(self) -> str:
        more = [f"… {len(self.each) - PRINTED} more: .each has all"] if len(self.each) > PRINTED else []
        return "\n\n".join([self.title, *map(repr, self.each[:PRINTED]), *more])

    def _repr_html_(self) -> str:
        shown = (one._repr_html_() for one in self.each[:PRINTED])
        more = f"<p>… {len(self.each) - PRINTED} more</p>" if len(self.each) > PRINTED else ""
        return f"<p><b>{amount(len(self.each), 'input')}, each by itself</b></p>{''.join(shown)}{more}"


def _joined(
    tables: Sequence[Mapping[str, Sequence[Cell]]], examples: Sequence[int] | None = None
) -> dict[str, list[Cell]]:
    """Tables of the same columns under one another."""
    numbered = list(zip(range(len(tables)) if examples is None else examples, tables, strict=True))
    joined: dict[str, list[Cell]] = {"example": [number for number, one in numbered for _ in next(iter(one.values()))]}
    for name in (one for one in tables[0] if one != "example"):
        joined[name] = [cell for one in tables for cell in one[name]]
    return joined


def first_of(inputs: Inputs | Sequence[Inputs]) -> Inputs:
    """What a model is traced on that is to see each of some prompts by itself.

    Raises
    ------
    InputError
        There is none.
    """
    if not isinstance(inputs, list | tuple):
        return inputs  # type: ignore[return-value]
    if not inputs:
        raise InputError("there is no text to look at: give a prompt of a word or more")
    return inputs[0]


def each_prompt(
    subject: Subject, inputs: Inputs | Sequence[Inputs], of: str, look: Callable[[dict[str, Any]], Each]
) -> Each | Several[Each]:
    """What is made of one prompt; or, of a list or of several rows, of each of them by itself.

    No prompt is padded for that of another, so that each is what it is alone.

    Parameters
    ----------
    subject
        The model.
    inputs
        One prompt, or several.
    of
        What is made, in the plural.
    look
        Makes it of the inputs of one.

    Raises
    ------
    InputError
        No prompt, or what the model cannot read.
    """
    if isinstance(inputs, list | tuple):
        alone = [row for one in one_by_one(inputs) for row in each_row(subject, subject.inputs(one))]
    else:
        alone = each_row(subject, subject.inputs(inputs))  # type: ignore[arg-type]
        if len(alone) == 1:
            return look(alone[0])
    return Several(subject.graph.title, of, tuple(map(look, alone)))


def of_one(found: Each | Several[Each]) -> Each:
    """What was made of one prompt.

    Raises
    ------
    InputError
        It was made of several rows.
    """
    if isinstance(found, Several):
        raise InputError(
            f"one prompt at a time is looked at here, but an input has {amount(len(found.each), 'row')}: give a list "
            "in which each row is an input of its own, such as list(rows.split(1))"
        )
    return found


def each_row(subject: Subject, inputs: dict[str, Any]) -> list[dict[str, Any]]:
    """Inputs of several rows one by one: what has as many rows as the first input is cut, the rest is for all.

    Rows that some input has as columns too, as a graph's nodes in the matrix of its edges, are no inputs by themselves,
    nor are others that read one another.
    """
    shapes, main = subject.graph.traced.input_shapes, inputs.get(subject.first_input)
    sizes = shapes[subject.first_input]
    if main is None or not _has_rows(main) or main.dim() != len(sizes) or not isinstance(sizes[0], str):
        return [inputs]
    if any(sizes[0] in shape[1:] for shape in shapes.values()):
        return [inputs]
    # A mask may have one row for all, so that its rows are of a size of their own; what begins with positions has none.
    leaves, structure = list(named_leaves((), inputs, ())), pytree.tree_structure(inputs)
    along = {
        name
        for name, value in leaves
        if _has_rows(value)
        and value.shape[:1] == main.shape[:1]
        and isinstance(first := next(iter(shapes.get(name, ())), None), str)
        and first not in sizes[1:]
    }
    if not are_apart(subject.graph, inputs, along, len(main)):
        return [inputs]
    cut = [[value[row : row + 1] if name in along else value for name, value in leaves] for row in range(len(main))]
    return [pytree.tree_unflatten(row, structure) for row in cut] or [inputs]


def _has_rows(value: Any) -> bool:
    """It can be cut into rows; the graph says what is wrong with others."""
    plain = isinstance(value, torch.Tensor) and value.layout is torch.strided and not value.is_nested
    return plain and value.dim() > 0
