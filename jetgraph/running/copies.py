"""A pass several times side by side along the batch, each time with other changes.

What changes reach is computed for all copies together, each operator once. What lies before the first change, or
beside, is computed once, by the pass that is copied. Copies do not see each other where every operator that a change
can reach leaves the elements of the batch alone, which `Reach.of` reads off the graph; a single copy needs no reach.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, fx

from jetgraph.algebra.sizes import names
from jetgraph.export.reach import below
from jetgraph.running.forward import Forward
from jetgraph.running.pieces import own_reads
from jetgraph.running.sizes import Sizes
from jetgraph.running.values import Exchange, Values
from jetgraph.structure.dimensions import Dimensions, Factor, go_abreast, size_read
from jetgraph.structure.regions import Branch

LIVE = 3
"""A copy takes so many times its largest value, for operators' results live in threes or so."""

Change = Callable[[Tensor], Tensor]
"""What becomes of a component's own value in some copies, [copies, *value]: values that broadcast to it."""


@dataclass(frozen=True, eq=False)
class Reach:
    """What changes of some components can reach, and where each value counts the batch."""

    nodes: tuple[fx.Node, ...]
    size: str
    """The name of the batch's size."""
    ends: tuple[fx.Node, ...]
    batch: Factor
    dimensions: Dimensions

    @classmethod
    def of(cls, forward: Forward, aliases: Iterable[str], ends: Sequence[fx.Node]) -> Reach | None:
        """What changes of components reach on the way to the ends; None where copies cannot be put side by side.

        They can where the elements of the batch, which the first dimension of the ends and of the components counts,
        stay apart all the way, and no number of them is held by the trace.
        """
        size = ends[0].meta["shape"][:1]
        if not size or not isinstance(size[0], str) or not size[0].isidentifier():
            return None
        changed = {node for alias in aliases for node in changed_nodes(forward, alias)}
        nodes, border = between(changed, ends, forward.graph.positions, size[0])
        # A stream may start at an input, which is then changed itself.
        starts = (*border, *(node for node in nodes if node.op == "placeholder"))
        followed = [node for node in starts if _counts(node, size[0])]
        plain = all(_is_plain(node, size[0]) for node in (*followed, *forward.inputs))
        if not followed or not plain or forward.graph.traced.decisions is not None:
            return None
        reach = cls(nodes, size[0], tuple(ends), *go_abreast(followed, nodes))
        tensors = [node for node in nodes if "shape" in node.meta and _counts(node, size[0])]
        fits = all(reach.place(node) == 0 for node in (*changed, *ends)) and all(map(reach.apart, tensors))
        return reach if fits else None

    def apart(self, node: fx.Node) -> bool:
        """The elements of the batch have stayed apart so far, and are the slowest of what their dimension counts."""
        layout = self.dimensions.get(node)
        if layout is None or self.batch in layout.mixed or self.batch in layout.tied:
            return False
        return layout.present.count(self.batch) == 1 and self.place(node) is not None

    def place(self, node: fx.Node) -> int | None:
        """The dimension that counts the batch; None where none does."""
        layout = self.dimensions.get(node)
        if layout is None:
            return 0 if _counts(node, self.size) else None
        return next((dim for dim in range(len(layout.dims)) if layout.at(dim)[:1] == (self.batch,)), None)

    def copied(self, node: fx.Node, value: Tensor, number: int) -> Tensor:
        """A value of the pass for so many copies, one after the other along the batch."""
        place = self.place(node)
        return value if place is None else torch.cat([value] * number, place)

    def joined(self, node: fx.Node, value: Tensor, clean: Tensor, more: int) -> Tensor:
        """A value of copies, with so many more of the pass after them."""
        place = self.place(node)
        return value if place is None else torch.cat([value, *[clean] * more], place)

    def taken(self, node: fx.Node, value: Tensor, number: int, rows: Sequence[int]) -> Tensor:
        """Of a value for so many copies, what belongs to some of them."""
        place = self.place(node)
        if place is None:
            return value
        index = torch.tensor(rows, device=value.device)
        return value.unflatten(place, (number, -1)).index_select(place, index).flatten(place, place + 1)

    def bytes(self, sizes: Sizes) -> int:
        """What a copy takes, or so."""
        tensors = (node for node in self.nodes if "shape" in node.meta)
        return LIVE * max((prod(sizes.shape(node)) * node.meta["dtype"].itemsize for node in tensors), default=1)


def changed_nodes(forward: Forward, alias: str) -> tuple[fx.Node, ...]:
    """The sum that a component is changed in; of a part of a branch also what its own value is made of."""
    branch = forward.graph.branches.get(alias)
    inner: tuple[fx.Node, ...] = ()
    if branch is not None and branch.part is not None:
        cut = branch.part.cut
        inner = tuple(node for node in own_reads(branch) if node in {cut.node, *cut.held})
    return (*inner, forward.sum_of(alias))


def _counts(node: fx.Node, size: str) -> bool:
    """A size occurs in a value's shape."""
    return any(_names(one, size) for one in node.meta["shape"])


def _names(one: int | str, size: str) -> bool:
    return isinstance(one, str) and size in names(one)


def _is_plain(node: fx.Node, size: str) -> bool:
    """It is the first dimension by itself, and occurs in no other; or nowhere."""
    first, *others = node.meta["shape"] or [1]
    return (first == size or not _names(first, size)) and not any(_names(one, size) for one in others)


def between(
    changed: Iterable[fx.Node], ends: Sequence[fx.Node], positions: Mapping[fx.Node, int], size: str = ""
) -> tuple[tuple[fx.Node, ...], tuple[fx.Node, ...]]:
    """What depends on changes and leads to the ends, in execution order; and the tensors that it reads besides.

    Tensors that count a size among others, of [batch · length, ...] say, are followed further back.
    """
    changed = tuple(changed)
    reached = below(changed)
    between: set[fx.Node] = set()
    border: dict[fx.Node, None] = {}
    stack = [node for node in (*ends, *changed) if node in reached]
    while stack:
        node = stack.pop()
        tensor = node not in reached and "shape" in node.meta
        if tensor and (node.op != "call_function" or not size or _is_plain(node, size)):
            border[node] = None
        elif node not in between and size_read(node) is None:
            # Several tensors at once have no shape: what they are made of is before the border.
            between.add(node)
            stack.extend(node.all_input_nodes)
    return tuple(sorted(between, key=positions.__getitem__)), tuple(border)


class _Copied(Values):
    """Values of copies: what no change has reached yet comes from the pass that is copied."""

    def __init__(self, clean: Forward, reach: Reach | None, number: int) -> None:
        inputs = clean.inputs
        if reach is not None:
            inputs = {node: reach.copied(node, value, number) for node, value in inputs.items()}
        super().__init__(clean.state, inputs, clean.graph.positions)
        self.inputs = inputs
        self._clean, self._reach, self._number = clean, reach, number
        self._sizes = Sizes(inputs)
        self._reached: set[fx.Node] = set()

    def forget(self, node: fx.Node) -> None:
        start = self._positions[node]
        held = (other for other in self._reached - self._put if other in self._held)
        if any(self._positions[other] >= start for other in held):
            super().forget(node)
        # Nothing after it is held that a change has reached: the rest has only to be told that one does.
        self._held.pop(node, None)
        stack = [node]
        while stack:
            for user in stack.pop().users:
                if user not in self._put and user not in self._reached:
                    self._reached.add(user)
                    self._held.pop(user, None)
                    stack.append(user)

    def exchange(self, node: fx.Node, name: str, by: Exchange) -> None:
        super().exchange(node, name, by)
        self._reached.add(node)

    def _compute(self, wanted: Sequence[fx.Node]) -> None:
        missing = self._missing(wanted)
        for node in missing:
            if size_read(node) is not None:
                tensor, dim = node.args
                self._held[node] = self._sizes.shape(tensor)[dim]  # type: ignore[arg-type, index]
        shared = [node for node in missing if node not in self._held and self._is_shared(node)]
        for node, value in self._clean.values.of(shared).items():
            self._held[node] = value if self._reach is None else self._reach.copied(node, value, self._number)
        super()._compute([node for node in wanted if node not in self._held])

    def _missing(self, wanted: Sequence[fx.Node]) -> tuple[fx.Node, ...]:
        missing: set[fx.Node] = set()
        stack = list(wanted)
        while stack:
            node = stack.pop()
            if node not in missing and node not in self._held:
                missing.add(node)
                known = size_read(node) is not None or self._is_shared(node)
                stack.extend(() if known else node.all_input_nodes)
        return tuple(sorted(missing, key=self._positions.__getitem__))

    def _is_shared(self, node: fx.Node) -> bool:
        """A tensor that no change has reached yet."""
        return "shape" in node.meta and node not in self._reached

    def grown(self, more: int, border: Iterable[fx.Node]) -> _Copied:
        """So many copies more, from a border on behind which nothing of these is asked for."""
        assert self._reach is not None
        copies = _Copied(self._clean, self._reach, self._number + more)
        copies._reached |= self._reached
        reached = [node for node in border if node in self._reached]
        clean = self._clean.values.of(reached)
        for node, value in self.of(reached).items():
            copies._held[node] = self._reach.joined(node, value, clean[node], more)
        return copies


class Copies:
    """A pass so many times side by side, each copy to be changed by itself.

    Components are changed in the order of the stream.

    Parameters
    ----------
    clean
        The pass that is copied.
    reach
        What the changes can reach; None for a single copy.
    number
        How many copies.
    """

    def __init__(self, clean: Forward, reach: Reach | None, number: int = 1, values: _Copied | None = None) -> None:
        assert reach is not None or number == 1
        self._values = _Copied(clean, reach, number) if values is None else values
        self.number = number
        self.forward = Forward(clean.graph, clean.state, self._values.inputs, values=self._values)
        """The pass of all copies, one after the other along the batch."""
        self._clean, self._reach = clean, reach

    def grown(self, more: int, border: Iterable[fx.Node]) -> Copies:
        """These copies and so many more, whose changes all lie behind a border (see `between`)."""
        number = self.number + more
        return Copies(self._clean, self._reach, number, self._values.grown(more, border))

    def wait(self, border: Iterable[fx.Node]) -> None:
        """Come as far as a border behind which all further changes lie, and stay there: what a change forgets is made
        from here, and what lies before it is let go of.
        """
        border = frozenset(border)
        self._values.need(self._values.in_order(border))
        self._values.keep(border)

    def rows(self, value: Tensor) -> Tensor:
        """A value whose first dimension counts the batch, by copy: [copy, *value]."""
        return value.unsqueeze(0) if self.number == 1 else value.unflatten(0, (self.number, -1))

    def change(self, alias: str, changes: Sequence[tuple[Sequence[int], Change]]) -> None:
        """Put other values in a component's place, in some of the copies; each copy once, in order."""
        branch = self.forward.graph.branches.get(alias)
        if self._reach is not None and self.number > 1 and branch is not None and self._is_inner(branch):
            self._change_part(alias, branch, changes, self._reach)
            return
        own = self.forward.component(alias)
        if self.number == 1:
            ((_, change),) = changes
            self.forward.patch(alias, change(own.unsqueeze(0)).expand(1, *own.shape)[0])
            return
        value = own.clone(memory_format=torch.contiguous_format)
        by_copy = self.rows(value)
        for rows, change in changes:
            if rows[-1] - rows[0] == len(rows) - 1:
                some = by_copy[rows[0] : rows[-1] + 1]
                some.copy_(change(some).expand_as(some))
            else:
                index = torch.tensor(rows, device=own.device)
                some = by_copy.index_select(0, index)
                by_copy.index_copy_(0, index, change(some).expand_as(some))
        self.forward.patch(alias, value)

    def put(self, node: fx.Node, others: Mapping[int, Tensor]) -> None:
        """Give a node the value of the pass that is copied, but other ones in some of the copies."""
        value = self._clean[node]
        if self.number == 1 or self._reach is None:
            value = others.get(0, value)
        else:
            value = self._reach.copied(node, value, self.number)
            by_copy = self.rows(value)
            for row, other in others.items():
                by_copy[row] = other
        self.forward.values.put(node, value)

    @staticmethod
    def _is_inner(branch: Branch) -> bool:
        return branch.part is not None and bool(branch.part.cut.carried)

    def _change_part(
        self, alias: str, branch: Branch, changes: Sequence[tuple[Sequence[int], Change]], reach: Reach
    ) -> None:
        """The same for a part of a branch, whose value is made for the copies alone in which it is changed."""
        assert branch.part is not None
        cut = branch.part.cut
        rows = [row for some, _ in changes for row in some]
        # Sizes are those of so many copies.
        fewer = _Copied(self._clean, reach, len(rows))
        read = {
            node: reach.taken(node, value, self.number, rows) if isinstance(value, Tensor) else fewer[node]
            for node, value in self.forward.values.of(own_reads(branch)).items()
        }
        own = cut.part({node: read[node] for node in (cut.node, *cut.held)}, read, branch.part)
        assert isinstance(own, Tensor)
        by_copy = own.unflatten(0, (len(rows), -1))
        new, start = [], 0
        for some, change in changes:
            value = by_copy[start : start + len(some)]
            new.append(change(value).expand_as(value))
            start += len(some)
        exchange = Exchange(torch.cat(new), lambda: by_copy, (self.number, rows))
        self.forward.values.exchange(branch.node, alias, exchange)
