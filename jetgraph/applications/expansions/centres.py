"""Centres by name: what a text, a group of texts or a tensor stands for at a point of the stream.

embed, L3.mlp      a source or a branch, at the true stream; a map, which is all that was before it
L3                 a whole block: the sum of what it adds
components, blocks all of them, one centre each
*.attn             each of several, or their sum where it is a member of a group
h2                 the stream at a point, carried on by the skips
embed > L0.mlp     a term of the exhaustive expansion of the order that is taken
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from itertools import chain

import torch
from torch import Tensor

from jetgraph.algebra.dialects import points_called
from jetgraph.algebra.expansion import Expansion
from jetgraph.algebra.grouping import block_of
from jetgraph.algebra.matching import Aliases, matching, nearest
from jetgraph.algebra.outline import SINK
from jetgraph.algebra.paths import Path
from jetgraph.algebra.selection import select
from jetgraph.compilation.arriving import arriving, components_at, terms_at
from jetgraph.errors import BudgetError, InputError, SelectionError, big, quoted
from jetgraph.residual import ResidualGraph
from jetgraph.running.forward import Forward

Centre = str | Tensor | Sequence[str | Tensor]
"""One centre, or by a pattern several; a list is one, the sum of its members."""

Centres = str | Sequence[Centre] | Mapping[str, Centre]
"""All of them; by name, each is one."""

CENTRE_BUDGET = 4096
"""How many terms a pattern may stand for."""


@dataclass(frozen=True)
class Naming:
    """What names stand for at a point of a run's stream."""

    graph: ResidualGraph
    forward: Forward
    point: int
    order: int

    def centres(self, given: Centres) -> dict[str, Tensor]:
        """All centres by name.

        Raises
        ------
        SelectionError
            A text stands for nothing.
        InputError
            There is no centre, two have one name, or a tensor has another shape than the stream.
        BudgetError
            A pattern stands for too many terms.
        """
        if isinstance(given, Mapping):
            pairs = [(name, self._sum([one] if isinstance(one, str | Tensor) else one)) for name, one in given.items()]
        else:
            pairs = [one for item in ([given] if isinstance(given, str) else given) for one in self._each(item)]
        if not pairs:
            raise InputError("centres= names none: give some, such as centres=['embed', 'L0.mlp']")
        named = dict(pairs)
        if len(named) < len(pairs):
            names = [name for name, _ in pairs]
            raise InputError(f"centres= has {quoted(next(n for n in names if names.count(n) > 1))} more than once")
        return named

    def _each(self, item: Centre) -> list[tuple[str, Tensor]]:
        if isinstance(item, Tensor):
            raise InputError("a tensor as a centre has no name: give centres={'name': tensor}")
        if isinstance(item, str):
            return self._named(item)
        names = " + ".join(one if isinstance(one, str) else "tensor" for one in item)
        return [(names, self._sum(item))]

    def _sum(self, items: Sequence[str | Tensor]) -> Tensor:
        """One centre: what its members stand for, each once."""
        values: dict[str | int, Tensor] = {}
        for item in items:
            if isinstance(item, Tensor):
                values[id(item)] = self._fitting(item)
            elif isinstance(item, str):
                values |= self._named(item, members=True)
            else:
                raise InputError(f"a centre is the sum of texts and tensors, not of {quoted(item)}")
        if not values:
            raise InputError("a centre is the sum of at least one member, and [] has none")
        return as_sum(list(values.values()))

    def _fitting(self, value: Tensor) -> Tensor:
        node = self.graph.stream.points[self.point]
        shape, dtype = self.forward.shape(node), node.meta["dtype"]
        if tuple(value.shape) != shape:
            raise InputError(f"a centre has the shape of h{self.point}, {list(shape)}, not {list(value.shape)}")
        return value.to(dtype)

    # Texts

    def _named(self, text: str, members: bool = False) -> list[tuple[str, Tensor]]:
        """What a text stands for; of a block the members, or their sum."""
        if ">" in text:
            return self._terms(text)
        points = self.graph.stream.points
        if text in {f"h{number}" for number in range(len(points))}:
            return [(text, self._stream(int(text[1:])))]
        if called := sorted(points_called(text, self.graph.outline)):
            return [(f"h{number}", self._stream(number)) for number in called]
        sources = {path.source.alias: path for path in self._components.terms(None)}
        blocks: dict[str, list[str]] = {}
        for alias in sources:
            blocks.setdefault(block_of(alias), []).append(alias)
        names = self._components.names
        aliases = matching(text, Aliases({alias: names.get(alias, "") for alias in sources}, names.kinds))
        if text == "components" and not aliases:
            aliases = list(sources)
        if not aliases:
            # A name of a block, or a glob that is none over sites.
            chosen = [block for block in blocks if text == "blocks" or fnmatchcase(block, text)]
            if not chosen:
                known = nearest(text, [*sources, *blocks])
                raise SelectionError(f"{quoted(text)} is nothing of what h{self.point} consists of{known}")
            values = [(block, self._components_of(blocks[block])) for block in chosen]
            if members:
                return [one for _, some in values for one in some]
            return [(block, as_sum([value for _, value in some])) for block, some in values]
        return self._components_of(aliases)

    def _stream(self, number: int) -> Tensor:
        if number > self.point:
            raise SelectionError(f"h{number} comes after h{self.point}, which is read here")
        points = self.graph.stream.points
        value = self.forward.stages.carry(self.forward[points[number]], number, self.point)
        return self._fitting(value)

    def _terms(self, text: str) -> list[tuple[str, Tensor]]:
        selection = select(self._exhaustive, f"{text} > {SINK}^0")
        if selection.count() > CENTRE_BUDGET:
            raise BudgetError(
                f"{quoted(text)} stands for {big(selection.count())} terms, more than {CENTRE_BUDGET:,}: name a "
                f"pattern that fewer match, {self._narrower(text)}a component, or a block"
            )
        return self._arriving(self._exhaustive, {str(path).rpartition(" > ")[0]: path for path in selection})

    def _narrower(self, text: str) -> str:
        """A pattern with a few sites in the place of each gap, which no more terms match than there may be."""
        for number in range(4, -1, -1):
            elements = [["*"] * number if part.strip() == "**" else [part.strip()] for part in text.split(">")]
            narrow = " > ".join(chain.from_iterable(elements))
            with suppress(SelectionError):
                if select(self._exhaustive, f"{narrow} > {SINK}^0").count() <= CENTRE_BUDGET:
                    return f"such as {quoted(narrow)}, "
        return ""

    def _components_of(self, aliases: Sequence[str]) -> list[tuple[str, Tensor]]:
        paths = {path.source.alias: path for path in self._components.terms(None)}
        return self._arriving(self._components, {alias: paths[alias] for alias in aliases})

    def _arriving(self, expansion: Expansion, paths: Mapping[str, Path]) -> list[tuple[str, Tensor]]:
        values = arriving(self.graph, expansion, self.forward, list(paths.values()))
        return [(name, values[path]) for name, path in paths.items()]

    @cached_property
    def _components(self) -> Expansion:
        return components_at(self.graph, self.point)

    @cached_property
    def _exhaustive(self) -> Expansion:
        return terms_at(self.graph, self.point, self.order)


def as_sum(values: Sequence[Tensor]) -> Tensor:
    """Σ values."""
    return torch.stack(list(values)).sum(0) if len(values) > 1 else values[0]
