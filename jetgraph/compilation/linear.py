"""The linear maps of an expansion at the true stream, forwards and backwards, on stacks of values.

With gates held, or to first order at the stream, a site takes a term t to A t; skips and affine maps do as they are.
Each map is made by one evaluation on the true stream under autograd, whose graph is then linear in what entered:
transposed, it takes cotangents back; transposed twice, it takes other values forward. Neither computes again what is
held.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import cached_property, partial
from math import prod

import torch
from torch import Tensor, fx

from jetgraph.algebra.automaton import Entry
from jetgraph.algebra.expansion import Expansion
from jetgraph.algebra.passages import Passage
from jetgraph.algebra.rules import Distribute, Tangent
from jetgraph.compilation.evaluation import MEMORY
from jetgraph.compilation.origins import SOURCES, Model, landed, through
from jetgraph.errors import InputError
from jetgraph.jets.registry import bind, is_native
from jetgraph.jets.series import Series, coefficient
from jetgraph.running.alone import by_position
from jetgraph.running.forward import Forward
from jetgraph.running.reals import as_like, as_reals
from jetgraph.running.ways import Entering, opened
from jetgraph.running.ways import through as through_attention
from jetgraph.structure.ways import Way, Ways, find_ways

MOST = 1 << 16
"""Values that pass together at most."""


class LinearMap:
    """x ↦ A x, of which A is known by its value at one x, as a graph of autograd.

    Parameters
    ----------
    entry
        What entered; a leaf of the graph.
    image
        A · entry.
    rows
        How many values may pass at once.
    plain
        The map itself, for code that autograd can go through once but not twice, nor in batches.
    """

    def __init__(
        self, entry: Tensor, image: Tensor, rows: int, plain: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        self._entry = entry
        self._image = image
        self._rows = rows if plain is None else 1
        self._plain = plain

    @property
    def entry(self) -> Tensor:
        """What entered."""
        return self._entry

    @property
    def image(self) -> Tensor:
        """A · entry, without its graph."""
        return self._image.detach()

    @property
    def graph(self) -> Tensor:
        """A · entry, with its graph."""
        return self._image

    @property
    def identity(self) -> bool:
        """A x is x."""
        return self._image is self._entry

    def backwards(self, cotangents: Tensor) -> Tensor:
        """Aᵀ of a stack [n, *image]: [n, *entry]."""
        if self.identity:
            return cotangents
        return _by_rows(lambda some: _pulled(self._image, self._entry, some), cotangents, self._rows, self._entry)

    def forwards(self, values: Tensor) -> Tensor:
        """A of a stack [n, *entry]: [n, *image]."""
        if self.identity:
            return values
        if not self._image.requires_grad:
            return values.new_zeros((len(values), *self._image.shape), dtype=self._image.dtype)
        if self._plain is not None:
            return torch.stack([self._plain(value).detach() for value in values])
        back, seed = self._transposed
        return _by_rows(lambda some: _pulled(back, seed, some), values, self._rows, self._image)

    @cached_property
    def _transposed(self) -> tuple[Tensor, Tensor]:
        """Aᵀ of a seed, and the seed, as a graph."""
        with torch.enable_grad():
            seed = torch.zeros_like(self._image, requires_grad=True)
            (back,) = torch.autograd.grad(self._image, self._entry, seed, create_graph=True)
        return back, seed


def _pulled(image: Tensor, entry: Tensor, cotangents: Tensor) -> Tensor | None:
    """The cotangents of what entered, for a stack of those of the image; None where it does not depend on it."""
    if not image.requires_grad:
        return None
    cotangents = cotangents.to(image.dtype)
    if len(cotangents) == 1:
        (pulled,) = torch.autograd.grad(image, entry, cotangents[0], retain_graph=True, allow_unused=True)
        return None if pulled is None else pulled.unsqueeze(0)
    (pulled,) = torch.autograd.grad(
        image, entry, cotangents, retain_graph=True, allow_unused=True, is_grads_batched=True
    )
    return pulled


def _by_rows(function: Callable[[Tensor], Tensor | None], stack: Tensor, rows: int, like: Tensor) -> Tensor:
    """A function of some rows at once, on all of them; zeros like `like` for None."""
    parts: list[Tensor] = []
    for some in stack.split(rows):
        value = function(some)
        parts.append(like.new_zeros((len(some), *like.shape)) if value is None else value.detach())
    return parts[0] if len(parts) == 1 else torch.cat(parts)


class Shares:
    """The directions of a dictionary, and what their span leaves.

    A value x ends as Σ_k c_k d_k + rest with c = x D⁺, the coefficients of least squares, each of which is linear in x.

    Parameters
    ----------
    directions
        [n, features], of the features of the last dimension of what is shared out.
    """

    def __init__(self, directions: Tensor) -> None:
        self.directions = directions
        self._inverse = torch.linalg.pinv(directions.double()).to(directions.dtype)

    def share(self, values: Tensor, number: int | None) -> Tensor:
        """What a direction has of values [..., features]; None is the rest."""
        if number is None:
            return values - values @ self._inverse @ self.directions
        return (values @ self._inverse[:, number, None]) * self.directions[number]

    def back(self, cotangents: Tensor, number: int | None) -> Tensor:
        """The transpose of `share`."""
        if number is None:
            return cotangents - cotangents @ self.directions.T @ self._inverse.T
        return (cotangents @ self.directions[number, :, None]) * self._inverse[:, number]


class SharedMap(LinearMap):
    """A map of which one direction of a dictionary is taken, or the rest; its graph is the whole map's."""

    def __init__(self, whole: LinearMap, shares: Shares, number: int | None) -> None:
        super().__init__(whole._entry, whole._image, whole._rows, whole._plain)
        self._whole, self._shares, self._number = whole, shares, number

    @property
    def image(self) -> Tensor:
        """The share of A · entry."""
        return self._shares.share(self._whole.image, self._number)

    def backwards(self, cotangents: Tensor) -> Tensor:
        """The transpose, of a stack [n, *image]."""
        return self._whole.backwards(self._shares.back(cotangents, self._number))

    def forwards(self, values: Tensor) -> Tensor:
        """The share of A x for a stack [n, *entry]."""
        return self._shares.share(self._whole.forwards(values), self._number)


class RealMap(LinearMap):
    """A map between values of which one is complex, on pairs of real numbers; its graph is the map's own."""

    def __init__(self, whole: LinearMap) -> None:
        super().__init__(whole._entry, whole._image, whole._rows, whole._plain)
        self._whole = whole

    @property
    def image(self) -> Tensor:
        """A · entry, in pairs."""
        return as_reals(self._whole.image)

    def backwards(self, cotangents: Tensor) -> Tensor:
        """The transpose, of a stack [n, *image]."""
        return as_reals(self._whole.backwards(as_like(cotangents, self._image)))

    def forwards(self, values: Tensor) -> Tensor:
        """A x of a stack [n, *entry]."""
        return as_reals(self._whole.forwards(as_like(values, self._entry)))


def on_reals(whole: LinearMap) -> LinearMap:
    """A map that takes and gives real values, which are pairs where it has complex ones."""
    return RealMap(whole) if whole.graph.is_complex() or whole.entry.is_complex() else whole


class LinearMaps:
    """The maps of sites and skips on one input, each made when it is asked for.

    Parameters
    ----------
    expansion
        Whose sites are to be linear.
    forward
        A pass over its graph; its values are computed again, without gradients of weights.
    memory
        Bytes that values may take which pass a map together.
    """

    def __init__(self, expansion: Expansion, forward: Forward, memory: int = MEMORY) -> None:
        state = {node: value.detach() if isinstance(value, Tensor) else value for node, value in forward.state.items()}
        self.model = Model(expansion, forward.graph)  # type: ignore[arg-type]
        self.forward = Forward(forward.graph, state, forward.inputs)
        self._memory = memory

    def site(self, passage: Passage) -> LinearMap:
        """From the point that a site reads to what it adds to its own; of the decoder, before its affine part."""
        (linear_map,) = self.sites([passage])
        return linear_map

    def by_site(
        self, passages: Iterable[Passage], whole: Collection[str] | None = None, scores: Collection[str] = ()
    ) -> Iterator[tuple[str, Passage, LinearMap]]:
        """The maps of sites that read one point, with their names; the parts of a branch are opened together.

        Parameters
        ----------
        passages
            Of the sites.
        whole
            Aliases of those whose ways into their attention are not told apart, as `L3.attn.q` and so on; None is all.
        scores
            Aliases of those whose queries and keys are told apart by the key of each score: `L3.attn.q2`, `.k2`.
        """
        groups: dict[object, list[Passage]] = {}
        for passage in passages:
            part = self.model.part(passage)
            groups.setdefault(passage.site.alias if part is None else (part.whole, passage.rule), []).append(passage)
        for group in groups.values():
            ways = None if whole is None or group[0].site.alias in whole else self.ways(group[0])
            if ways is None:
                for passage, map in zip(group, self.sites(group), strict=True):
                    yield passage.site.alias, passage, map
            else:
                each = any(passage.site.alias in scores for passage in group)
                for passage, maps in zip(group, self._by_way(group, ways, each), strict=True):
                    yield from ((f"{passage.site.alias}.{name}", passage, map) for name, map in maps.items())

    def ways(self, passage: Passage) -> Ways | None:
        """The ways into a site's attention, where its rule lets the scores vary; else None."""
        varies = passage.site.role == "branch" and isinstance(passage.rule, Tangent)
        return find_ways(self.model.region(passage)) if varies else None

    def _by_way(self, passages: Sequence[Passage], ways: Ways, by_score: bool) -> list[dict[str, LinearMap]]:
        """The maps of the parts of a branch with attention, each the sum of those by its ways, by name."""
        first = passages[0]
        region = self.model.region(first)
        h = self.forward[self.model.point(first.reads)].detach()
        self.forward.need((*region.side, *(node for p in passages for node in self._inside(p))))
        entry = leaf(h)
        rows = self._rows(region.nodes, h)
        known = all(map(is_native, region.nodes))
        chosen: list[tuple[Way, int | None]] = [(way, None) for way in ways.names]
        if by_score:
            keys = self._keys(ways)
            chosen = [(way, key) for way in ways.names for key in (range(keys) if way in "qk" else (None,))]

        def image(passage: Passage, way: tuple[Way, int | None], value: Tensor) -> Tensor:
            return self._crossed([passage], ways, [way], h, value)[0][way]

        with torch.enable_grad():
            images = self._crossed(passages, ways, chosen, h, entry)
        return [
            {
                way[0] if way[1] is None else f"{way[0]}{way[1]}": LinearMap(
                    entry, one, rows, None if known else partial(image, passage, way)
                )
                for way, one in by.items()
            }
            for passage, by in zip(passages, images, strict=True)
        ]

    def _keys(self, ways: Ways) -> int:
        """The most keys of any score."""
        sizes: list[int] = []
        for node, dim in ways.scores.items():
            shape = self.forward.shape(node if dim is not None else _key_of(node))
            sizes.append(shape[-2 if dim is None else dim])
        return max(sizes)

    def _crossed(
        self,
        passages: Sequence[Passage],
        ways: Ways,
        chosen: Sequence[tuple[Way, int | None]],
        h: Tensor,
        entry: Tensor,
    ) -> list[dict[tuple[Way, int | None], Tensor]]:
        """A · entry by site and by way; what lies before the attention is computed once."""
        branch, pieces = self.model.branch(passages[0]), self.forward.pieces
        still, moving = (Entering(pieces, branch, x, 1) for x in (h, Series.of_rows([h, entry], 1)))
        by_site: list[dict[tuple[Way, int | None], Tensor]] = [{} for _ in passages]
        for way, key in chosen:
            inside = opened({other: moving if other == way else still for other in ways.names}, key)
            for one, passage in zip(by_site, passages, strict=True):
                value = coefficient(through_attention(pieces, self.model.branch(passage), inside, 1), 1)
                one[way, key] = landed(self.model, self.forward, passage, value)
        return by_site

    def sites(self, passages: Sequence[Passage]) -> list[LinearMap]:
        """The maps of several sites that read one point under one rule, such as the parts of a branch.

        Raises
        ------
        InputError
            A site is not linear under its rule.
        """
        first = passages[0]
        check_linear(passages)
        region = self.model.region(first)
        h = self.forward[self.model.point(first.reads)].detach()
        reads = (*region.side, *(node for p in passages for node in self._inside(p)))
        self.forward.need(reads)
        entry = leaf(h)
        rows = self._rows(region.nodes, h)
        with torch.enable_grad():
            images = self._images(passages, h, entry)
        if all(map(is_native, region.nodes)):
            return [LinearMap(entry, image, rows) for image in images]
        return [
            LinearMap(entry, image, 1, lambda value, passage=passage: self._images([passage], h, value)[0])
            for passage, image in zip(passages, images, strict=True)
        ]

    def _images(self, passages: Sequence[Passage], h: Tensor, entry: Tensor) -> list[Tensor]:
        """A · entry by site. What the parts of a branch have in common is computed once."""
        first = passages[0]
        frozen = first.rule.frozen
        series = Series.direction(entry) if isinstance(first.rule, Distribute) else Series.of_rows([h, entry], 1)
        parts = [self.model.part(passage) for passage in passages]
        opened = None
        if len(passages) > 1 and (part := parts[0]) is not None:
            opened = self.forward.pieces.open(part.cut, series, 1, frozen)
        images: list[Tensor] = []
        for passage, part in zip(passages, parts, strict=True):
            if opened is not None and part is not None:
                value = self.forward.pieces.part(part, opened, 1, frozen)
            else:
                value = through(self.model, self.forward, passage, series, 1, frozen)
            images.append(landed(self.model, self.forward, passage, coefficient(value, 1)))
        return images

    def _inside(self, passage: Passage) -> Iterable[fx.Node]:
        part = self.model.part(passage)
        return () if part is None else part.cut.region.side

    def carry(self, point: int, start: int) -> LinearMap:
        """From a point silently to a later one."""
        entry = leaf(self.forward[self.model.point(start)].detach())
        with torch.enable_grad():
            image = self.forward.stages.carry(entry, start, point)
        nodes = [node for at in range(start + 1, point + 1) for node in getattr(self.model.carrying(at), "nodes", ())]
        return LinearMap(entry, image, self._rows(nodes, entry))

    def decode(self, place: int | None) -> LinearMap:
        """The linear part of the decoder's affine end: at one position [batch, 1, ...], where it goes by itself there,
        else at all of them.
        """
        decoder = self.model.graph.structure.decoder
        hidden = self.forward[decoder.nonlinear.exit].detach()
        if place is not None and by_position(decoder.affine):
            hidden = hidden.narrow(1, place, 1)
        entry = leaf(hidden)
        self.forward.need(decoder.affine.side)
        with torch.enable_grad():
            image = self.forward.pieces.linear(decoder.affine, entry)
        return LinearMap(entry, image, self._rows((), image))

    def source(self, entry: Entry) -> Tensor:
        """The value of a source at the point where it enters."""
        return SOURCES[entry.origin].run(self.model, self.forward, entry).detach()

    def _rows(self, nodes: Iterable[fx.Node], like: Tensor) -> int:
        """How many values may pass at once: what one takes inside lives in threes or so."""
        shaped = [node for node in nodes if "shape" in node.meta and "dtype" in node.meta]
        largest = max((prod(self.forward.shape(node)) for node in shaped), default=like.numel())
        return max(1, min(MOST, self._memory // (6 * max(largest, like.numel(), 1) * like.element_size())))


def is_linear(passage: Passage) -> bool:
    """Whatever passes a site is taken to a linear image of it; nothing passes an atom."""
    return passage.rule.linear or not passage.hops


def check_linear(passages: Iterable[Passage]) -> None:
    """Refuse sites at which a term is not taken to a linear image of it.

    Raises
    ------
    InputError
        Names the first of them, and what to do.
    """
    for passage in passages:
        if not is_linear(passage):
            raise InputError(
                f"{passage.site.alias!r} (module {passage.site.path!r}) has the rule {passage.rule.text}, under which "
                "what passes it is no linear image of a term, so that paths cannot be summed without listing them: "
                'give it a linear rule, as jetgraph.expand(graph, rules={"*": jetgraph.Freeze()}) does everywhere'
            )


def _key_of(node: fx.Node) -> fx.Node:
    """The keys that fused attention reads."""
    return bind(node.target, node.args, node.kwargs)["key"]  # type: ignore[arg-type]


def leaf(value: Tensor) -> Tensor:
    """A value from which autograd begins: gradients reach it, and go no further."""
    return value.detach().clone().requires_grad_()
