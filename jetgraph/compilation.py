"""Paths → an executable `torch.nn.Module`.

A path is evaluated from its source to the sink: a skip pushes a value on by its linear part, a site replaces it by one
of its Taylor coefficients there,

    x ← w · (1/j!) D^j f(x)[(h − x)^{⊗j}]        (h is the true stream; w the centre's weight)

so paths form a tree over common prefixes, which is walked once. The true stream is needed only for orders of 1 and
more, for atoms, frozen sites and lenses: `plan` collects beforehand exactly which of its values are read, and where
none is, no forward pass takes place.
"""

from __future__ import annotations

import copy
import itertools
from collections import Counter
from collections.abc import ItemsView, Iterable, Iterator, Mapping, Sequence, ValuesView
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn

from jetgraph.analysis import Branch, Join, Region, Stage
from jetgraph.automaton import Entry
from jetgraph.errors import BudgetError, InputError, JetGraphError, NotComputedError, big, check, quoted
from jetgraph.expansion import Expansion, Place
from jetgraph.frames import on_one_chunk
from jetgraph.jets.fusion import Fusion
from jetgraph.jets.series import Series, check_order
from jetgraph.paths import select
from jetgraph.precision import own_types
from jetgraph.program import SINK, Distribute, Freeze, Hop, Jet, JoinStep, Path
from jetgraph.residual import Forward, Position, ResidualGraph, at_places, coefficient

PATH_BUDGET = 100_000
"""How many paths are compiled without being asked for by number."""

CENTRE_BUDGET = 4096
"""How many centres a site with directions="terms" may have."""


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
            if some:
                hidden = _stacked([self._decoding.hidden[path] for path in some])
                self._made |= zip(some, self._decoding.decode(hidden, [float(constant)] * len(some)), strict=True)


class PathValues:
    """What compiled paths evaluate to on one input.

    The decoder ends in an affine part x ↦ U x + b, which for a language model is by far its largest. What is held of a
    path is its value x before U; U is applied when a term, or a sum of terms, is read. Reading happens in the grad mode
    of the evaluation and with its weights: where they have been changed in place since, it raises `JetGraphError`.
    """

    def __init__(self, plan: Plan, forward: Forward, hidden: Mapping[Path, Tensor]) -> None:
        self._decoding = _Decoding(plan, forward, hidden)
        self.terms = Terms(self._decoding)
        """Value U x of every path (of the decoder's constant part U x + b), each of the output's shape."""

    @property
    def hidden(self) -> Mapping[Path, Tensor]:
        """Value x of every path before U, each of the shape of the decoder's value there."""
        return self._decoding.hidden

    @property
    def output(self) -> Tensor:
        """The model's own output; computed when it is first asked for, from what the paths have left."""
        with self._decoding.reading():
            return self._decoding.forward.output

    @property
    def remainder(self) -> Tensor:
        """output − Σ terms."""
        return self.output - self.total

    @property
    def total(self) -> Tensor:
        """Σ terms."""
        return self.combine(torch.ones(len(self.hidden)))

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
        given. `position` asks for one position of outputs [batch, position, ...], or one of each row, which then
        have a single one: U is applied there only. `out` offers memory of the result's shape and type, outside of grad
        mode; what is returned lies there where the decoder ends in a matrix product.

        Raises `JetGraphError` for weights that do not fit, `NotComputedError` for a path that was not computed, and
        `InputError` for a position that does not exist.
        """
        check(PathValues.combine, locals())
        chosen, rows = self._rows(weights, paths)
        known = [path in self._decoding.constants for path in chosen]
        constant = [sum(itertools.compress(row, known)) for row in rows]
        if out is not None and (out.layout is not torch.strided or out.dim() <= weights.dim() - 1):
            raise InputError(f"out of shape {list(out.shape)} and layout {out.layout} is no memory for outputs")
        memory = out.unsqueeze(0) if out is not None and weights.dim() == 1 else out
        found = self._decoding.decode(self._mixed(chosen, rows), constant, position, memory)
        return found if weights.dim() == 2 else found[0]

    def mix(self, weights: Tensor, paths: Sequence[Path | str] | None = None) -> Tensor:
        """Σ_p w_p x_p before U: [*hidden], or [row, *hidden]; see `combine`."""
        check(PathValues.mix, locals())
        mixed = self._mixed(*self._rows(weights, paths))
        return mixed if weights.dim() == 2 else mixed[0]

    def _rows(self, weights: Tensor, paths: Sequence[Path | str] | None) -> tuple[list[Path], list[list[float]]]:
        """The paths that weights belong to, and the weights row by row."""
        chosen = self._decoding.chosen(paths)
        rows = weights.unsqueeze(0) if weights.dim() == 1 else weights
        if weights.is_meta or weights.is_complex() or weights.layout is not torch.strided:
            raise JetGraphError(
                f"weights of {weights.dtype} on {weights.device} are no real numbers: give a float tensor"
            )
        if rows.dim() != 2 or rows.shape[1] != len(chosen) or not len(rows):
            raise JetGraphError(
                f"weights of shape {list(weights.shape)} do not fit {len(chosen)} paths: give [{len(chosen)}], or "
                f"[rows, {len(chosen)}] for several sums"
            )
        return chosen, rows.tolist()

    def _mixed(self, chosen: Sequence[Path], rows: Sequence[Sequence[float]]) -> Tensor:
        """Sums before U: [row, *hidden]."""
        values = [self.hidden[path] for path in chosen]
        with self._decoding.reading():
            return _stacked([_weighted(values, row) for row in rows])

    def __repr__(self) -> str:
        shape = tuple(self._decoding.forward.shape(self._decoding.plan.graph.traced.output))
        lines = [f"PathValues: {len(self.terms)} terms of shape {shape}"]
        norms = [(float(value.detach().double().norm()), path) for path, value in self.terms.items()]
        norms.sort(key=lambda pair: pair[0], reverse=True)
        lines += [f"  {norm:>10.4g}  {path}" for norm, path in norms[:10]]
        if len(norms) > 10:
            lines.append(f"  … {len(norms) - 10} smaller ones")
        return "\n".join(lines)


class _Decoding:
    """Values of paths before the decoder's affine part, and that part."""

    def __init__(self, plan: Plan, forward: Forward, hidden: Mapping[Path, Tensor]) -> None:
        self.plan = plan
        self.forward = forward
        self.hidden = hidden
        expansion = plan.expansion
        self.constants = {path for path in hidden if expansion.entry(path.source.alias).enters == expansion.sink}
        """Paths of the decoder's constant part, to which b belongs."""
        self._grad = torch.is_grad_enabled()
        self._versions = [
            (value, value._version)
            for value in forward.state.values()
            if isinstance(value, Tensor) and not value.is_inference()
        ]

    def path(self, key: Path | str) -> Path:
        """The path that a key names. Raises `NotComputedError`, a `KeyError`, for one that was not computed."""
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

    def decode(
        self, hidden: Tensor, constant: Sequence[float], position: Position | None = None, out: Tensor | None = None
    ) -> Tensor:
        """U x + β b for rows of x and β: [row, *output], at one position if given, in `out` where that can be."""
        region = self.plan.graph.structure.decoder.affine
        if position is not None:
            places = self.forward.places(position)
            if not self.plan.graph.by_position(region):
                return at_places(self.decode(hidden, constant), places, 2)
            hidden = at_places(hidden, places, 2).contiguous()
        whole = not self.plan.biased or all(weight == 1 for weight in constant)
        with self.reading():
            value = self.forward.side_by_side(region, hidden, linear=not whole, out=out)
            if whole or not any(constant):
                return value
            bias = self.forward.through(region, torch.zeros_like(hidden[0]))
            return torch.stack(
                [row + weight * bias if weight else row for row, weight in zip(value, constant, strict=True)]
            )

    @contextmanager
    def reading(self) -> Iterator[None]:
        """The evaluation's modes. Raises `JetGraphError` where its weights have changed in place."""
        if any(value._version != version for value, version in self._versions):
            raise JetGraphError(
                "the model's weights were changed in place after these paths were evaluated (an optimiser's step, or "
                "other ones were loaded): read what you need before, or call the module again"
            )
        with own_types(), torch.set_grad_enabled(self._grad):
            yield


def _stacked(values: Sequence[Tensor]) -> Tensor:
    """[n, ...], without a copy of a single one."""
    return values[0].unsqueeze(0) if len(values) == 1 else torch.stack(list(values))


def _weighted(values: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Σ w x in the type of x, summed in float32 at least. What has no weight takes no part, even if it is infinite."""
    taken = [(weight, value) for weight, value in zip(weights, values, strict=True) if weight]
    if len(taken) == 1 and taken[0][0] == 1:
        return taken[0][1]
    like = values[0]
    total = torch.zeros_like(like, dtype=torch.promote_types(like.dtype, torch.float32))
    for weight, value in taken:
        total = torch.add(total, value, alpha=weight)
    return total.to(like.dtype)


def compile(expansion: Expansion, paths: Any = None, *, budget: int = PATH_BUDGET, fuse: bool = False) -> PathModule:
    """Compile paths of an expansion into a module.

    Parameters
    ----------
    paths
        What `jetgraph.select` returns, paths, texts or patterns; all terms of the expansion if left out.
    budget
        How many paths there may be.
    fuse
        Evaluate jets of order 1 and more through `torch.compile`, which fuses the elementwise work between the matrix
        products. The first call with inputs of a new shape compiles, for seconds to a minute per kind of site and
        order; it needs a C++ compiler on CPU and Triton on CUDA. Worth it where one module is called many times. Parts
        of a split branch are not fused.

    Returns
    -------
    PathModule
        Takes the traced model's inputs, of any batch size and length that the trace allows, and returns `PathValues`.

    Raises
    ------
    BudgetError
        There are more paths than `budget`; nothing was enumerated.
    """
    check(compile, locals())
    if not isinstance(expansion.graph, ResidualGraph):
        raise JetGraphError(
            "this expansion was made from an outline, which has no tensors: expand what jetgraph.trace(model, "
            "...) returns"
        )
    if paths is None:
        paths = "**"
    selection = select(expansion, paths)
    if selection.count() > budget:
        raise BudgetError(
            f"{big(selection.count())} paths are selected, more than the budget of {budget}: select fewer, or raise it "
            "with jetgraph.compile(expansion, paths, budget=...)"
        )
    return PathModule(expansion, tuple(selection), fuse)


# The tree of prefixes


@dataclass(eq=False)
class Prefix:
    """A node of the tree of common prefixes; `path` is set where one ends."""

    hop: Hop | None = None
    path: Path | None = None
    children: dict[Hop, Prefix] = field(default_factory=dict)

    @classmethod
    def of(cls, paths: Iterable[Path]) -> Prefix:
        root = cls()
        for path in paths:
            node = root
            for hop in path.hops:
                node = node.children.setdefault(hop, cls(hop))
            node.path = path
        return root

    def by_site(self) -> dict[str, list[Prefix]]:
        """Children by alias: the orders of one site come out of one evaluation."""
        groups: dict[str, list[Prefix]] = {}
        for hop, child in self.children.items():
            groups.setdefault(hop.alias, []).append(child)
        return groups

    def walk(self) -> Iterator[Prefix]:
        yield self
        for child in self.children.values():
            yield from child.walk()


# The module


class PathModule(nn.Module):
    """Selected paths of an expansion as a module over the traced model's inputs.

    The weights are the model's own at the time of `jetgraph.compile`, shared in memory, but registered as parameters of
    this module under `weights`: they can be moved, cast, trained and saved without touching the model's registration of
    them. So what changes the model's weights in place (an optimiser's step, `load_state_dict`) changes these, and what
    replaces the model's (`load_state_dict(assign=True)`, a cast or a move) does not: compile again, which is cheap, for
    the graph has the new ones. A copy made with `copy.deepcopy` has weights of its own.
    """

    def __init__(self, expansion: Expansion, paths: Sequence[Path], fuse: bool = False) -> None:
        super().__init__()
        graph = expansion.graph
        assert isinstance(graph, ResidualGraph)
        if not paths:
            raise JetGraphError("no path was given to compile")
        self.expansion = expansion
        self.paths = tuple(paths)
        self.weights = _weights(graph)
        self._plan = Plan(expansion, graph, self.paths)
        self._fusion = Fusion() if fuse else None

    def forward(self, *args: Any, **kwargs: Any) -> PathValues:
        """Evaluate the paths on the model's inputs."""
        with own_types():
            return on_one_chunk(lambda: self._evaluate(args, kwargs))

    def run(self, *args: Any, **kwargs: Any) -> Forward:
        """The model's own forward pass on these inputs, evaluated on demand, with this module's weights."""
        traced = self._located().graph.traced
        if traced.meta:
            raise JetGraphError(
                "these paths were compiled from a graph on the meta device, which has no weights, so they cannot be "
                "run: trace a model with weights"
            )
        # Views, so that values which are computed later (the output) still see the weights of this call after a move.
        state = traced.state_values(lambda name: (weight := self._tensor(name)).view_as(weight))
        return Forward(self._plan.graph, state, traced.input_values(args, kwargs), self._fusion)

    def _evaluate(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> PathValues:
        forward = self.run(*args, **kwargs)
        return PathValues(self._plan, forward, Evaluation(self._plan, forward).hidden())

    def __deepcopy__(self, memo: dict[int, Any]) -> PathModule:
        """The same paths over weights of its own."""
        # What does not change is shared: a copy of the graph would hold the weights a second time.
        memo[id(self.expansion)] = self.expansion
        copied = memo[id(self)] = self.__class__.__new__(self.__class__)
        copied.__setstate__({name: copy.deepcopy(value, memo) for name, value in self.__dict__.items()})
        return copied

    def tensors(self) -> dict[str, Tensor]:
        """The weights by their names in the model."""
        return {name: self._tensor(name) for name in self._plan.graph.traced.tensors}

    def _tensor(self, name: str) -> Tensor:
        holder: Any = self.weights
        for part in name.split("."):
            holder = getattr(holder, part)
        return holder

    def _located(self) -> Plan:
        """The plan for where the weights are now: the graph's constants follow them to another device or precision."""
        traced = self._plan.graph.traced
        # A move changes the parameters' data in place; what is detached from them stays where and what it was.
        now = {name: self._tensor(name).detach() for name in traced.tensors}
        if traced.relocated(now.__getitem__) is not traced:
            # From the trace itself: types that one move has merged could not be told apart by the next.
            self._plan = Plan(self.expansion, self.expansion.graph.relocated(now.__getitem__), self.paths)
        return self._plan

    def extra_repr(self) -> str:
        shown = [f"{path}" for path in self.paths[:5]] + (
            [f"… {len(self.paths) - 5} more"] if len(self.paths) > 5 else []
        )
        fused = "" if self._fusion is None else ", fused"
        return "\n".join([f"{len(self.paths)} paths: {self._plan}{fused}", *shown])


class _Weights(nn.Module):
    """Parameters and buffers of a model under their own names."""

    def __repr__(self) -> str:
        return f"{sum(tensor.numel() for tensor in self.parameters()):,} weights, shared with the model"


def _weights(graph: ResidualGraph) -> nn.Module:
    root = _Weights()
    for binding in graph.traced.bindings.values():
        if binding.kind == "input":
            continue
        *above, leaf = binding.name.split(".")
        holder: nn.Module = root
        for part in above:
            if part not in holder._modules:
                holder.add_module(part, _Weights())
            holder = holder.get_submodule(part)
        tensor = graph.traced.tensors[binding.name]
        if binding.kind == "parameter":
            trained = tensor.requires_grad and not tensor.is_inference()
            holder.register_parameter(leaf, nn.Parameter(tensor.detach(), requires_grad=trained))
        else:
            holder.register_buffer(leaf, tensor.detach())
    return root


# Planning


class Plan:
    """The tree of prefixes, and which values of the true forward pass its evaluation reads."""

    def __init__(self, expansion: Expansion, graph: ResidualGraph, paths: Sequence[Path]) -> None:
        self.expansion = expansion
        self.graph = graph
        self.paths = tuple(paths)
        self.tree = Prefix.of(paths)
        self.stages = graph.stream.stages
        self._values: dict[fx.Node, None] = {}
        self._points: dict[int, None] = {}
        for source in self.tree.children.values():
            self._source(expansion.entry(source.hop.alias))  # type: ignore[union-attr]
            for prefix in source.walk():
                if prefix is not source:
                    assert prefix.hop is not None
                    self._hop(prefix.hop)
        points = graph.stream.points
        self.points = tuple(sorted(self._points))
        """Points of the true stream that are read; empty where no forward pass is needed."""
        self.values = tuple(self._values) + tuple(points[point] for point in self.points)
        """All values of the true forward pass that are read."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Plan:
        """Itself: a plan never changes."""
        return self

    @cached_property
    def biased(self) -> bool:
        """The decoder may have a constant part."""
        return any(entry.enters == self.expansion.sink for entry in self.expansion.entries)

    @cached_property
    def stackable(self) -> bool:
        """Lenses can go through the decoder side by side."""
        rule = self.expansion.place(SINK).rule
        return self.graph.by_element(self.graph.structure.decoder.nonlinear) and (
            isinstance(rule, Distribute) or (isinstance(rule, Jet) and rule.weights == "unit")
        )

    def __str__(self) -> str:
        """What an evaluation costs."""
        passed = Counter(
            self.expansion.place(alias).site.role if alias in self.expansion.places else "source"
            for prefix in self.tree.walk()
            if prefix is not self.tree
            for alias in prefix.by_site()
        )
        sites = ", ".join(f"{number} of {role} sites" for role, number in passed.items() if role != "source")
        atoms = [
            entry.point for path in self.paths if (entry := self.expansion.entry(path.source.alias)).origin == "atom"
        ]
        last = max([*self.points, *atoms], default=None)
        point = "no forward pass" if last is None else f"the forward pass up to h{last}"
        return f"{passed.total()} evaluations ({sites}) and {point}"

    def branch(self, place: Place) -> tuple[Join, Branch]:
        """The join and branch at a site."""
        join = self.stages[place.step - 1].join
        assert join is not None
        return join, next(branch for branch in join.branches if branch.alias == place.site.alias)

    def region(self, place: Place) -> Region:
        """The code of a site; for the decoder its nonlinear part."""
        if place.site.role == "decoder":
            return self.graph.structure.decoder.nonlinear
        if place.site.role == "map":
            return self.stages[place.step - 1].region
        return self.branch(place)[1].region

    def _reads(self, *regions: Region) -> None:
        for region in regions:
            self._values |= dict.fromkeys(region.side)

    def _source(self, entry: Entry) -> None:
        encoder = self.graph.stream.encoder
        decoder = self.graph.structure.decoder
        if entry.origin == "encoder":
            self._values |= dict.fromkeys((*encoder.leaves, *encoder.side))
        elif entry.origin == "stream":
            self._points[entry.point] = None
            for step in range(entry.point, self.expansion.sink - 1):
                self._carry(self.stages[step])
        elif entry.origin == "injection":
            self._values[self.injection(entry)] = None
        elif entry.origin == "skip":
            join = self.stages[entry.enters - 1].join
            assert join is not None
            self._reads(join.skip)
        elif entry.origin == "split":
            self._reads(self.whole(entry)[1].region)
        elif entry.site is not None and entry.site.role == "decoder":
            self._reads(decoder.nonlinear, decoder.affine)
            if entry.origin == "freeze":
                self._points[entry.enters - 1] = None
        else:
            assert entry.site is not None
            place = self.expansion.place(entry.site.alias)
            self._reads(self.region(place))
            if entry.origin == "atom":
                region = self.region(place)
                part = place.site.role == "branch" and self.branch(place)[1].part is not None
                self._values[region.entry if part else region.exit] = None
            elif entry.origin == "freeze":
                self._points[place.reads] = None
        for step in range(entry.enters, self.expansion.sink - 1):
            self._carry(self.stages[step])

    def whole(self, entry: Entry) -> tuple[Join, Branch]:
        """The join, and some part of the split branch, whose constant part an entry is."""
        join = self.stages[entry.enters - 1].join
        assert join is not None
        assert entry.site is not None
        alias = entry.site.alias
        return join, next(branch for branch in join.branches if branch.part is not None and branch.part.whole == alias)

    def injection(self, entry: Entry) -> fx.Node:
        stage = self.stages[entry.enters - 1]
        assert isinstance(stage.step, JoinStep)
        assert stage.join is not None
        return stage.join.injections[stage.step.injections.index(entry.source)]

    def _carry(self, stage: Stage) -> None:
        if stage.join is not None:
            self._reads(stage.join.skip)
        elif stage.region.affine:
            self._reads(stage.region)

    def _hop(self, hop: Hop) -> None:
        place = self.expansion.place(hop.alias)
        self._reads(self.region(place))
        if place.site.role == "decoder":
            self._reads(self.graph.structure.decoder.affine)
        rule = place.rule
        if isinstance(rule, Freeze) and not place.site.affine:
            self._points[place.reads] = None
        elif hop.order:
            check_order(hop.order)
            assert isinstance(rule, Jet)
            if rule.directions == "stream":
                self._points[place.reads] = None
            else:
                self._every_centre(place)

    def _every_centre(self, place: Place) -> None:
        """directions="terms" reads every term that arrives at the site, not only the selected ones."""
        centres = self.expansion.incoming(place.reads)
        if centres > CENTRE_BUDGET:
            raise BudgetError(
                f'directions="terms" at {place.site.alias!r} takes all {big(centres)} terms that arrive there as '
                f'centres, more than {CENTRE_BUDGET}: use directions="stream" there, or a recipe with fewer terms '
                'such as "components"'
            )
        for entry in self.expansion.entries:
            if entry.enters <= place.reads:
                self._source(entry)
        for moves in self.expansion.automaton.moves[: place.reads]:
            for move in moves:
                if move.hop is not None:
                    self._hop(move.hop)


# Evaluation


@dataclass(frozen=True, eq=False)
class _Term:
    """A term on its way: its value at a point of the stream, and the alias of its last hop."""

    value: Tensor
    point: int
    last: str
    key: tuple[Hop, ...]


class Evaluation:
    """One evaluation of a plan on one input."""

    def __init__(self, plan: Plan, forward: Forward) -> None:
        self.plan = plan
        self.forward = forward
        self.expansion = plan.expansion
        self.stream = plan.graph.stream
        self.decoder = plan.graph.structure.decoder
        forward.need(plan.values)
        self._arrived: dict[int, list[_Term]] = {}
        self._centre: tuple[Any, Any, Any] = (None, None, None)

    def hidden(self) -> dict[Path, Tensor]:
        """Values of all paths before the decoder's affine part, in the order in which they were given."""
        found: dict[Path, Tensor] = {}
        shape = self.forward.shape(self.decoder.nonlinear.exit)
        lenses: dict[int, Prefix] = {}
        for prefix in self.plan.tree.children.values():
            assert prefix.hop is not None
            entry = self.expansion.entry(prefix.hop.alias)
            if entry.origin == "stream" and self.plan.stackable:
                lenses[entry.point] = prefix
            elif entry.enters == self.expansion.sink:
                (end,) = prefix.children.values()
                assert end.path is not None
                found[end.path] = self._decoder_constant(entry)
            else:
                self._descend(prefix, self._enter(entry), found)
        if lenses:
            found |= self._lenses(lenses)
        return {path: found[path].expand(shape) for path in self.plan.paths}

    # Sources

    def _enter(self, entry: Entry) -> _Term:
        """A source's value at the point where it enters."""
        return _Term(self._source(entry), entry.enters, entry.source.alias, (Hop(entry.source.alias),))

    def _source(self, entry: Entry) -> Tensor:
        if entry.origin == "encoder":
            return self.forward.summand(entry.source.alias)
        if entry.origin == "stream":
            return self.forward.at_end(entry.point)
        stage = self.plan.stages[entry.enters - 1]
        if entry.origin == "injection":
            node = self.plan.injection(entry)
            assert stage.join is not None
            return self.forward.place(stage.join, node, self.forward[node])
        if entry.origin == "skip":
            assert stage.join is not None
            return self.forward.place(stage.join, stage.join.skip.exit, self._constant(stage.join.skip))
        assert entry.site is not None
        if entry.origin == "split":
            return self._split_constant(entry)
        place = self.expansion.place(entry.site.alias)
        if entry.origin == "atom":
            value = self._atom(place)
        elif entry.origin == "affine":
            value = self._through(place, self._zeros(self.plan.region(place).entry))
        else:
            value = self._held(place)
        return self._land(place, value)

    def _atom(self, place: Place) -> Tensor:
        return (
            self.forward.component(place.site.alias)
            if place.site.role == "branch"
            else self.forward[self.plan.region(place).exit]
        )

    def _split_constant(self, entry: Entry) -> Tensor:
        """What a split branch adds besides its parts."""
        join, branch = self.plan.whole(entry)
        assert branch.part is not None
        value = self.forward.constant(branch.part.cut, self._zeros(branch.region.entry))
        return self.forward.place(join, branch.node, value)

    def _lenses(self, points: Mapping[int, Prefix]) -> dict[Path, Tensor]:
        """All lenses in one pass through the decoder, side by side along the batch."""
        region = self.decoder.nonlinear
        value = torch.stack([self.forward.at_end(point) for point in points])
        orders = list(dict.fromkeys(hop.order for prefix in points.values() for hop in prefix.children))
        found: dict[int | None, Tensor]
        if self.expansion.place(SINK).site.affine:
            found = {None: value}
        elif highest := max(order or 0 for order in orders):
            variate = Series.variate(value, self.forward[region.entry] - value, highest)
            series = self.forward.side_by_side(region, variate, highest)
            found = {order: coefficient(series, order or 0) for order in orders}
        else:
            found = {0: self.forward.side_by_side(region, value)}
        return {
            child.path: found[hop.order][index]
            for index, prefix in enumerate(points.values())
            for hop, child in prefix.children.items()
            if child.path is not None
        }

    # Moving on

    def _descend(self, prefix: Prefix, term: _Term, found: dict[Path, Tensor]) -> None:
        steps: dict[int, dict[str, list[Prefix]]] = {}
        for alias, children in prefix.by_site().items():
            steps.setdefault(self.expansion.place(alias).step, {})[alias] = children
        # Carried values are kept for the sites further on, so that each skip is pushed through once.
        carried = {term.point: term}
        for step in sorted(steps):
            # All sites of a step before what follows them, so that parts of one branch share what they have in common.
            for child, value in [
                pair for alias, group in steps[step].items() for pair in self._visit(carried, term, alias, group)
            ]:
                assert child.hop is not None
                if child.path is not None:
                    found[child.path] = value
                else:
                    self._descend(child, _Term(value, step, child.hop.alias, (*term.key, child.hop)), found)

    def _visit(
        self, carried: dict[int, _Term], term: _Term, alias: str, children: Sequence[Prefix]
    ) -> list[tuple[Prefix, Tensor]]:
        """The children of one site with their values; the orders of a site come out of one evaluation.

        `carried` are the term's values at points that it was carried to, to which those on the way to the site are
        added.
        """
        place = self.expansion.place(alias)
        orders = [child.hop.order for child in children if child.hop is not None]
        for point in self.expansion.automaton.route(term.point, place.reads) or ():
            if point not in carried:
                carried[point] = self._carry(term, point)
            term = carried[point]
        values = self._pass(place, term, orders)
        return [(child, values[child.hop.order]) for child in children if child.hop is not None]

    def _carry(self, term: _Term, point: int) -> _Term:
        """The term at a later point, through the skip or affine map that leads there."""
        return replace(term, value=self.forward.carry(term.value, point - 1, point), point=point)

    def _pass(self, place: Place, term: _Term, orders: Sequence[int | None]) -> dict[int | None, Tensor]:
        """Values of a term after a site, by the order taken there; the sink's are of the output."""
        rule = place.rule
        values: dict[int | None, Tensor] = {}
        if place.site.affine:
            values = {None: coefficient(self._through(place, Series.direction(term.value), 1), 1)}
        elif isinstance(rule, Freeze):
            values = {None: self._frozen(place, term.value)}
        else:
            assert isinstance(rule, Jet)
            taken = [order or 0 for order in orders]
            values |= self._jet(place, rule, term, taken)
        return {order: self._land(place, values[order]) for order in orders}

    def _jet(self, place: Place, rule: Jet, term: _Term, orders: Sequence[int]) -> dict[int, Tensor]:
        weight = float(self.expansion.centre_weight(place.site.alias, term.last))
        highest = max(orders)
        if rule.directions == "terms":
            values = {0: weight * self._through(place, term.value)} if 0 in orders else {}
            return values | ({1: self._along(place, term)} if 1 in orders else {})
        if highest == 0:
            return {0: _scaled(self._through(place, term.value), weight)}
        series = self._through(place, self._variate(place, term, highest), highest)
        return {order: _scaled(coefficient(series, order), weight) for order in orders}

    def _variate(self, place: Place, term: _Term, order: int) -> Series:
        """x + t (h − x); one and the same object for all parts of a branch."""
        key = (place.reads, order)
        if self._centre[0] != key or self._centre[1] is not term.value:
            variate = self.forward[self.stream.points[place.reads]] - term.value
            self._centre = (key, term.value, Series.variate(term.value, variate, order))
        return self._centre[2]

    def _along(self, place: Place, term: _Term) -> Tensor:
        """Σ_{i≠m} w_i Df(x_i)[t_m] for the incoming term m."""
        total: Tensor | None = None
        for centre in self._arriving(place.reads):
            if centre.key == term.key:
                continue
            weight = float(self.expansion.centre_weight(place.site.alias, centre.last))
            series = self._through(place, Series.variate(centre.value, term.value, 1), 1)
            value = _scaled(coefficient(series, 1), weight)
            total = value if total is None else total + value
        if total is None:
            return torch.zeros_like(self._through(place, term.value))
        return total

    def _arriving(self, point: int) -> list[_Term]:
        """Every term of the expansion at a point of the stream."""
        if point not in self._arrived:
            terms: list[_Term] = []
            for move in self.expansion.automaton.moves[point - 1] if point else ():
                for term in self._arriving(move.start):
                    if move.hop is None:
                        terms.append(self._carry(term, point))
                        continue
                    value = self._pass(self.expansion.place(move.hop.alias), term, [move.hop.order])[move.hop.order]
                    terms.append(_Term(value, point, move.hop.alias, (*term.key, move.hop)))
            terms += [self._enter(entry) for entry in self.expansion.entries if entry.enters == point]
            self._arrived[point] = terms
        return self._arrived[point]

    # Rules on values

    def _through(self, place: Place, value: Any, order: int = 0, frozen: Freeze | None = None) -> Any:
        """Push a value (a tensor or a series) through the code of a site."""
        if place.site.role == "branch":
            return self.forward.branch(self.plan.branch(place)[1], value, order, frozen)
        return self.forward.through(self.plan.region(place), value, order, frozen=frozen)

    def _constant(self, region: Region) -> Tensor:
        """What an affine region makes of zero."""
        return self.forward.through(region, self._zeros(region.entry))

    def _zeros(self, node: fx.Node) -> Tensor:
        device = next(iter(self.forward.inputs.values())).device
        return torch.zeros(self.forward.shape(node), dtype=node.meta["dtype"], device=device)

    def _frozen(self, place: Place, value: Tensor) -> Tensor:
        """A_h t for f(h) = A_h h + b_h with the gates held at the true stream."""
        rule = place.rule
        assert isinstance(rule, Freeze)
        h = self.forward[self.stream.points[place.reads]]
        return coefficient(self._through(place, Series.variate(h, value, 1), 1, rule), 1)

    def _held(self, place: Place) -> Tensor:
        """b_h = f(h) − A_h h."""
        h = self.forward[self.stream.points[place.reads]]
        return self._through(place, h) - self._frozen(place, h)

    def _land(self, place: Place, value: Tensor) -> Tensor:
        """What a site gave, as a summand of the next point; of the decoder, before its affine part."""
        if place.site.role != "branch":
            return value
        join, branch = self.plan.branch(place)
        return self.forward.place(join, branch.node, value)

    def _decoder_constant(self, entry: Entry) -> Tensor:
        """What the decoder adds to its constant part before its affine part."""
        if entry.origin == "freeze":
            assert entry.site is not None
            return self._held(self.expansion.place(SINK))
        return self._zeros(self.decoder.nonlinear.exit)


def _scaled(value: Tensor, weight: float) -> Tensor:
    return value if weight == 1 else value * weight
