"""What compiled paths evaluate to: values before the decoder's affine part, and terms when they are read."""

from __future__ import annotations

import html
import textwrap
from collections.abc import Callable, ItemsView, Iterable, Iterator, Mapping, Sequence, ValuesView
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor, peek_interpreter_stack
from torch.func import debug_unwrap

from jetgraph.algebra.advice import of_remainder
from jetgraph.algebra.classes import classifier
from jetgraph.algebra.expansion import Expansion
from jetgraph.algebra.paths import Path
from jetgraph.algebra.scores import PathScores
from jetgraph.algebra.selection import Pattern, select
from jetgraph.compilation.decoding import Decoding
from jetgraph.compilation.evaluated import Evaluated
from jetgraph.compilation.ledger import Ledger
from jetgraph.compilation.sums import class_sums
from jetgraph.errors import InputError, NotComputedError, StateError, amount, check, quoted
from jetgraph.jets.recording import is_followed, may_follow
from jetgraph.jets.series import stack_of
from jetgraph.running.alone import by_place
from jetgraph.running.forward import Forward
from jetgraph.running.indices import Position, at_places
from jetgraph.running.memory import give_back
from jetgraph.running.reals import as_reals, in_double

_Row = list[tuple[int, float]]
"""The weights of a sum that are not 0, each with the number of its path."""

TOGETHER, STACK = 64, 2**27
"""Terms that are made in one product with U, where they are many, and bytes of their values before it."""


class Terms(Mapping[Path, Tensor]):
    """Values of paths, each of the output's shape; a path's text is accepted as a key too.

    Made when they are read, and kept: one by one through `terms[path]`, together by going through `values` or `items`.
    """

    def __init__(self, decoding: _Decoding) -> None:
        self._decoding = decoding
        self._made: dict[Path, Tensor | None] = dict.fromkeys(decoding.hidden)

    def __getitem__(self, key: Path | str) -> Tensor:
        path = self._decoding.path(key)
        self._make([path])
        value = self._made[path]
        assert value is not None
        return value

    def __iter__(self) -> Iterator[Path]:
        return iter(self._made)

    def __len__(self) -> int:
        return len(self._made)

    def __contains__(self, key: object) -> bool:
        path = Path.parse(key) if isinstance(key, str) else key
        return isinstance(path, Path) and path in self._made

    def values(self) -> ValuesView[Tensor]:
        self._make(self._made)
        return super().values()

    def items(self) -> ItemsView[Path, Tensor]:
        self._make(self._made)
        return super().items()

    def _make(self, paths: Iterable[Path]) -> None:
        missing = [path for path in paths if self._made[path] is None]
        for constant in (False, True):
            some = [path for path in missing if (path in self._decoding.constants) is constant]
            if len(some) > 1:
                # All terms together are the most that an evaluation ever holds: what it needed before them goes first.
                give_back(self._decoding.forward.graph.traced.device_and_dtype[0])
            if some:
                self._made |= zip(some, self._decoding.each(some), strict=True)


class PathValues:
    """What compiled paths evaluate to on one input.

    The decoder ends in an affine part x ↦ U x + b, which for a language model is by far its largest. What is held of a
    path is its value x before U; U is applied when a term, or a sum of terms, is read. Reading happens in the grad mode
    of the evaluation and with its weights: where they have been changed in place since, it raises `StateError`.
    """

    def __init__(
        self,
        expansion: Expansion,
        forward: Forward,
        evaluated: Evaluated,
        make_ledger: Callable[[], Ledger],
        places: int | Tensor | None = None,
    ) -> None:
        self._decoding = _Decoding(expansion, forward, evaluated.hidden, places)
        self.terms = Terms(self._decoding)
        """Value U x of every path (of the decoder's constant part U x + b), each of the output's shape."""
        self.weights: Mapping[str, Tensor] = evaluated.weights
        """By site with weights by token, those of its centres: [centre, *tokens], in the order of
        `Expansion.centres`."""
        self.radii: Mapping[str, Sequence[Tensor]] = evaluated.radii
        """By site that is one norm: radii of convergence of its matched centres in units of the way to the stream, in
        the order in which they went, one stack [n, *tokens] after the other."""
        self.scales: Mapping[str, Sequence[Tensor]] = evaluated.scales
        """By such a site: what these centres were multiplied by; of those whose orders are one term, nothing."""
        self._far = evaluated.far
        self._make_ledger = make_ledger

    @cached_property
    def unmatched(self) -> Mapping[str, tuple[int, int]]:
        """By site with matched centres, or branch that is split: for how many tokens of centres no scale brings x near
        to h, as ⟨x, h⟩ ≤ 0, so that they took order 0; and how many there were.
        """
        return {site: (int(few), number) for site, (few, number) in self._far.items()}

    @cached_property
    def remainders(self) -> Ledger:
        """What each site leaves besides its terms, f(h) − Σ terms, by alias: in its own units, and in the output where
        what follows is affine. Worked out when first read, by an evaluation of its own."""
        with self._decoding.reading():
            return self._make_ledger()

    @property
    def hidden(self) -> Mapping[Path, Tensor]:
        """Value x of every path before U, each of the shape of the decoder's value there."""
        return self._decoding.hidden

    @cached_property
    def norms(self) -> Mapping[Path, float]:
        """‖term‖ of every path, in float64, without making the terms."""
        constant = [float(path in self._decoding.constants) for path in self.hidden]
        return dict(zip(self.hidden, self._decoding.norms(list(self.hidden.values()), constant), strict=True))

    @property
    def forward(self) -> Forward:
        """The model's own pass that the paths were evaluated on."""
        return self._decoding.forward

    @property
    def output(self) -> Tensor:
        """The model's own output; computed when it is first asked for, from what the paths have left."""
        return self._decoding.output

    @property
    def remainder(self) -> Tensor:
        """output − Σ terms."""
        return self.output - self.total

    @cached_property
    def relative(self) -> float:
        """‖remainder‖ / ‖output‖, over all positions that were evaluated."""
        size = float(in_double(self.output.detach()).norm())
        return float(in_double(self.remainder.detach()).norm()) / size if size else 0.0

    @property
    def total(self) -> Tensor:
        """Σ terms."""
        return self.combine(torch.ones(len(self.hidden), device="cpu"))

    def combine(
        self,
        weights: Tensor,
        paths: Sequence[Path | str] | None = None,
        *,
        position: Position | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        """Σ_p w_p term_p for `weights` [path]: [*output]. For weights [row, path] several such sums: [row, *output].

        The sums are made before U, in float32 at least: a row costs one product with U, whatever the number of paths,
        and all rows are one product. `paths` are those that the weights belong to; all, in the order of `terms`, unless
        given. `position` asks for one position of outputs [batch, position, ...], or one of each row, which then have a
        single one: U is applied there only. `out` offers memory of the result's shape and type, outside of grad mode;
        what is returned lies there where the decoder ends in a matrix product.

        Raises
        ------
        InputError
            Weights that do not fit, or a position that does not exist.
        NotComputedError
            A path that was not computed.
        """
        check(PathValues.combine, locals())
        chosen, rows = self._rows(weights, paths)
        known = [path in self._decoding.constants for path in chosen]
        constant = [sum((weight for at, weight in row if known[at]), 0.0) for row in rows]
        if out is not None and (out.layout is not torch.strided or out.dim() <= weights.dim() - 1):
            raise InputError(f"out of shape {list(out.shape)} and layout {out.layout} is no memory for outputs")
        mixed = self._mixed(chosen, rows)
        if out is None:
            sums = self._decoding.in_parts(mixed, constant, position)
        else:
            memory = out.unsqueeze(0) if weights.dim() == 1 else out
            sums = self._decoding.decode(_stacked(mixed), constant, position, memory)
        return sums if weights.dim() == 2 else sums[0]

    def each(self, paths: Sequence[Path | str] | None = None, *, position: Position | None = None) -> Tensor:
        """The terms of paths, one product with U for all: [path, *output]; `paths` and `position` as in `combine`.

        What `combine` gives for one row of weights a path, at the cost of the paths alone.

        Raises
        ------
        NotComputedError
            A path that was not computed.
        InputError
            No path at all, or a position that does not exist.
        """
        check(PathValues.each, locals())
        chosen = self._decoding.chosen(paths)
        if not chosen:
            raise InputError("no path is named: give some, or leave them out for all")
        return self._decoding.each(chosen, position)

    def scores(self, target: int | None = None, *, example: int = 0, position: int = -1) -> PathScores:
        """What each path gives a logit, for `jetgraph.path_graph`: that of its term, less the mean of the term's.

        Parameters
        ----------
        target
            Number of the logit; the model's largest unless given.
        example
            Which of the batch.
        position
            Of outputs [batch, position, logits]; the last unless given.

        Raises
        ------
        InputError
            The output has no such logit, or is no output of logits.
        """
        check(PathValues.scores, locals())
        shape = self.output.shape
        sizes = {"example": (example, shape[0])}
        sizes |= {} if len(shape) == 2 else {"position": (position, shape[1] if len(shape) == 3 else 0)}
        sizes |= {"target": (0 if target is None else target, shape[-1])}
        for name, (number, size) in sizes.items():
            if not -size <= number < size:
                raise InputError(f"the output has shape {list(shape)}, so there is no {name}={number}")
        place = (example,) if len(shape) == 2 else (example, position)
        row = as_reals(self.output[place].detach()).double()
        index = int(row.argmax()) if target is None else target
        by_path: dict[str, float] = {}
        for path, term in self.terms.items():
            own = as_reals(term[place].detach()).double()
            by_path[str(path)] = float(own[index] - own.mean())
        at = -1 if len(shape) == 2 else self._decoding.place(example, position % shape[1])
        return PathScores(by_path, float(row[index] - row.mean()), str(index), at)

    def mix(self, weights: Tensor, paths: Sequence[Path | str] | None = None) -> Tensor:
        """Σ_p w_p x_p before U: [*hidden], or [row, *hidden]; see `combine`."""
        check(PathValues.mix, locals())
        mixed = self._mixed(*self._rows(weights, paths))
        return _stacked(mixed) if weights.dim() == 2 else mixed[0]

    def sum(self, pattern: Pattern, *, position: Position | None = None) -> Tensor:
        """The sum of all terms of the expansion that match a pattern, listed or not: [*output].

        A dynamic programme over the points of the stream and the states of the pattern, whatever the number of terms
        (see `jetgraph.compilation.sums`); it does not ask which paths were compiled. Where the pattern takes every term
        and no remainder is left, it is the output.

        Parameters
        ----------
        pattern
            What `jetgraph.select` takes.
        position
            As in `combine`.

        Returns
        -------
        Tensor
            Without gradients.

        Raises
        ------
        InputError
            A term passes a site whose rule is not linear: all have to be Freeze, Tangent or Distribute.
        SelectionError
            The pattern matches nothing.
        StateError
            In a function that `torch.func` transforms.
        """
        check(PathValues.sum, locals())
        if peek_interpreter_stack() is not None:
            raise StateError(
                "the sum of all terms that match has no gradients, and is not for torch.func: add up values.terms, or "
                "take values.combine(...)"
            )
        selection = select(self._decoding.expansion, pattern)
        with self._decoding.reading():
            classes = classifier(self._decoding.expansion, "all")
            position = self._decoding.asked(position)
            return class_sums(self._decoding.forward, selection, classes, position=position).totals[0]

    def _rows(self, weights: Tensor, paths: Sequence[Path | str] | None) -> tuple[list[Path], list[_Row]]:
        """The paths that weights belong to, and the weights row by row."""
        chosen = self._decoding.chosen(paths)
        rows = weights.unsqueeze(0) if weights.dim() == 1 else weights
        if weights.is_meta or weights.is_complex() or weights.layout is not torch.strided:
            raise InputError(f"weights of {weights.dtype} on {weights.device} are no real numbers: give a float tensor")
        if rows.dim() != 2 or rows.shape[1] != len(chosen) or not len(rows):
            raise InputError(
                f"weights of shape {list(weights.shape)} do not fit {amount(len(chosen), 'path')}: give "
                f"[{len(chosen)}], or [rows, {len(chosen)}] for several sums"
            )
        own = _numbers(weights).reshape(rows.shape)
        taken: list[_Row] = [[] for _ in own]
        places = own.nonzero()
        for row, at, weight in zip(*(found.tolist() for found in (*places, own[places])), strict=True):
            taken[row].append((at, weight))
        return chosen, taken

    def _mixed(self, chosen: Sequence[Path], rows: Sequence[_Row]) -> list[Tensor]:
        """Sums before U, one for each row."""
        values = [self.hidden[path] for path in chosen]
        with self._decoding.reading():
            return _weighted(values, rows)

    def __repr__(self) -> str:
        shape = self._decoding.shape
        lines = [f"PathValues: {amount(len(self.terms), 'term')} of shape {shape}"]
        norms = sorted(self.norms.items(), key=lambda item: item[1], reverse=True)
        lines += [f"  {norm:>10.4g}  {path}" for path, norm in norms[:10]]
        if len(norms) > 10:
            lines.append(f"  … {amount(len(norms) - 10, 'smaller one')}")
        # Of a part of the terms, each site would leave what the others are.
        if len(self.terms) == self._decoding.expansion.count() and self.remainders:
            lines.append("what sites leave besides these, as a share of what they give:")
            lines += self.remainders.lines(5)
            if told := of_remainder(self.relative):
                lines += ["", *textwrap.wrap(told, 100)]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """The text of `repr`, as it is: what it says of sites is no table."""
        return f"<pre>{html.escape(repr(self))}</pre>"


class _Decoding(Decoding):
    """Values of paths before the decoder's affine part, and that part."""

    def __init__(
        self, expansion: Expansion, forward: Forward, hidden: Mapping[Path, Tensor], places: int | Tensor | None = None
    ) -> None:
        super().__init__(expansion, forward)
        self.expansion = expansion
        self.places = places
        """The position, or one of each row, of which alone everything is; None for all of them."""
        self._taken = places is not None and by_place(forward.graph.structure.decoder.affine, places)
        """Only that is there of values."""
        self.hidden = hidden
        # There may be thousands of paths, of which one or two are looked at.
        some = (path for path in hidden if path.source.alias in expansion.constants)
        self.constants = {path for path in some if expansion.start(path).of_decoder}
        """Paths of the decoder's constant part, to which b belongs."""

    def _are_followed(self, values: Sequence[Tensor]) -> bool:
        """Autograd or a transform sees the values, or the affine part's weights, and what is made of them."""
        if self._grad:
            return True
        with torch.no_grad():
            if not may_follow():
                return False
            side = self.forward.pieces.side(self.forward.graph.structure.decoder.affine)
            every = [value for value in (*values, *side.values()) if isinstance(value, Tensor)]
            return any(is_functorch_wrapped_tensor(value) or is_followed(value) for value in every)

    @cached_property
    def _output_there(self) -> Tensor:
        assert self.places is not None
        return self.forward.output_at(self.places)

    @property
    def output(self) -> Tensor:
        """The model's own, where values are."""
        with self.reading():
            return self.forward.output if self.places is None else self._output_there

    @property
    def shape(self) -> tuple[int, ...]:
        """The output's, where values are."""
        shape = tuple(self.forward.shape(self.forward.graph.traced.output))
        return shape if self.places is None else (shape[0], 1, *shape[2:])

    def place(self, example: int, place: int) -> int:
        """The position of the sequence that a place of an output is."""
        if self.places is None:
            return place
        return self.places if isinstance(self.places, int) else int(self.places[example])

    def asked(self, position: Position | None) -> Position | None:
        """Where sums are to be, of a position that is asked for.

        Raises
        ------
        InputError
            A position that is asked for of values at one.
        """
        if self.places is not None and position is not None:
            raise InputError(f"these values are those at one position, so that position={position} says nothing more")
        return self.places if position is None else position

    def decode(
        self, hidden: Tensor, constant: Sequence[float], position: Position | None = None, out: Tensor | None = None
    ) -> Tensor:
        places = self.asked(position)
        if self.places is not None and not self._taken:
            return at_places(super().decode(hidden, constant), self.places, 2)
        return super().decode(hidden, constant, None if self._taken else places, out)

    def path(self, key: Path | str) -> Path:
        """The path that a key names.

        Raises
        ------
        NotComputedError
            A path that was not computed; it is a `KeyError` too.
        """
        path = Path.parse(key) if isinstance(key, str) else key
        if not isinstance(path, Path) or path not in self.hidden:
            shown = ", ".join(map(str, list(self.hidden)[:5])) + (", …" if len(self.hidden) > 5 else "")
            raise NotComputedError(
                f"{quoted(str(key) if isinstance(key, Path) else key)} was not computed; there are {shown}"
            )
        return path

    def chosen(self, paths: Sequence[Path | str] | None) -> list[Path]:
        """The paths that keys name; all for None."""
        return list(self.hidden) if paths is None else [self.path(path) for path in paths]

    def each(self, paths: Sequence[Path], position: Position | None = None) -> Tensor:
        """The terms of paths: [path, *output]."""
        return self.in_parts(
            [self.hidden[path] for path in paths], [float(p in self.constants) for p in paths], position
        )

    def in_parts(self, values: Sequence[Tensor], constant: Sequence[float], position: Position | None) -> Tensor:
        """As `decode` of the stacked values; many of them some at a time, in the memory of the result, so that no stack
        of all values before U is held beside it.
        """
        size = min(TOGETHER, max(1, STACK // max(1, values[0].nbytes)))
        # What is decoded is made anew, unless there is nothing to do.
        together = stack_of if self.forward.graph.structure.decoder.affine.nodes else _stacked
        if len(values) <= size or self._are_followed(values):
            return self.decode(together(values), constant, position)
        first = self.decode(_stacked(values[:1]), constant[:1], position)
        made = first.new_empty(len(values), *first.shape[1:])
        made[:1] = first
        for start in range(1, len(values), size):
            some = slice(start, start + size)
            value = self.decode(together(values[some]), constant[some], position, made[some])
            if value.data_ptr() != made[some].data_ptr():
                made[some] = value
        return made


def _numbers(weights: Tensor) -> NDArray[np.float64]:
    """Weights as numbers. Under a transform of functions (`torch.func`), what operators give has none to be read.

    Raises
    ------
    InputError
        Weights that differ along what is mapped over.
    """
    if peek_interpreter_stack() is None:
        return weights.detach().double().cpu().numpy()
    plain = debug_unwrap(weights, recurse=True)
    if plain.shape != weights.shape:
        raise InputError("weights are numbers, and cannot be mapped over: give those of all rows at once")
    return np.array(plain.tolist(), dtype=np.float64)


def _stacked(values: Sequence[Tensor]) -> Tensor:
    """[n, ...], without a copy of a single one."""
    return values[0].unsqueeze(0) if len(values) == 1 else torch.stack(list(values))


def _weighted(values: Sequence[Tensor], rows: Sequence[_Row]) -> list[Tensor]:
    """Σ w x of each row of weights, in the type of x, summed in float32 at least, from the first on: where a row begins
    with all that the one before has, it goes on from there. What has no weight takes no part, even if it is infinite.
    """
    like = values[0]
    wide = torch.promote_types(like.dtype, torch.float32)
    sums, before, total = list[Tensor](), _Row(), None
    for taken in rows:
        if len(taken) == 1 and taken[0][1] == 1:
            total = values[taken[0][0]]
            sums.append(total)
        else:
            added = taken[len(before) :] if total is not None and taken[: len(before)] == before else taken
            total = torch.zeros_like(like, dtype=wide) if total is None or added is taken else total.to(wide)
            for at, weight in added:
                total = torch.add(total, values[at], alpha=weight)
            sums.append(total.to(like.dtype))
        before = taken
    return sums
