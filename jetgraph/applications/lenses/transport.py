"""The tail's linear map: what the rest of the stream makes of a point, on the whole of a text or on one prompt.

    J_p = E[∂h_n / ∂h_p]       the mean over positions of a text, of each position by itself

A transport lens decodes J_p h_p by U ∘ ν: what the stream at p is worth at its end, by the mean slope of all that comes
between. It is fitted once, window by window; sums and counts of shards add up. On one prompt the tail G, h_p ↦ h_n, has
also its frozen map, and Taylor series of any order: what is lost when h_p is taken away,

    G(h_p) − Σ_{j≤k} (1/j!) D^j G(h_p)[(−h_p)^{⊗j}]        (order 1: the Jacobian of the prompt itself)
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count, islice
from pathlib import Path
from typing import Any, Literal, get_args

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor

from jetgraph.algebra.expansion import expand
from jetgraph.algebra.rules import Freeze
from jetgraph.applications.lenses.corpora import Cursor, Texts, Windows, alike, corpus
from jetgraph.applications.lenses.iterative import Lens
from jetgraph.applications.lenses.points import Layers, after_point, lens_points, shape_of, token_ids
from jetgraph.applications.lenses.remarks import remarks
from jetgraph.applications.subject import Inputs, Model, Subject, counted_tokens, is_features, is_vocabulary, subject
from jetgraph.errors import FileError, InputError, amount, check, quoted
from jetgraph.export.precision import own_types
from jetgraph.files.targets import TENSORS, check_target
from jetgraph.files.writing import is_file, shown, write_atomically
from jetgraph.jets.series import Series, check_order, coefficient
from jetgraph.residual import ResidualGraph, one_look
from jetgraph.running.forward import Forward
from jetgraph.scale.shards import advance, each
from jetgraph.scale.states import ADDED, Record, digest_of_model, from_grid, onto_grid

Sampled = Literal["one", "all"]
"""Positions of a window whose slopes are taken."""

Tail = Literal["mean", "frozen", "jet"]
"""What stands for the rest of the stream."""


@dataclass(frozen=True, eq=False)
class Transport:
    """Mean Jacobians of the tail. Made by `fit_transport`, or read by `Transport.load`."""

    model: str
    sums: Mapping[int, Tensor]
    """By point, Σ ∂h_n/∂h_p over positions, [features of h_n, features of h_p], in float64."""
    count: int
    """How many positions."""

    @property
    def points(self) -> tuple[int, ...]:
        """The points of the stream that it was fitted at."""
        return tuple(self.sums)

    def map(self, point: int) -> Tensor:
        """J_p.

        Raises
        ------
        InputError
            A point at which it was not fitted.
        """
        if point not in self.sums:
            raise InputError(f"the transport was fitted at points {list(self.points)}, not at {quoted(point)}")
        return self.sums[point] / self.count

    def merge(self, other: Transport) -> Transport:
        """Of the texts of both.

        Raises
        ------
        InputError
            They are of different models or points.
        """
        check(Transport.merge, locals())
        shapes = [{point: tuple(total.shape) for point, total in one.sums.items()} for one in (self, other)]
        if self.model != other.model or shapes[0] != shapes[1]:
            raise InputError(
                f"one transport is of {self.model} at points {list(self.points)}, the other of {other.model} at "
                f"{list(other.points)}: shards that merge are of one model, at the same points"
            )
        return replace(
            self,
            sums={point: total + other.sums[point] for point, total in self.sums.items()},
            count=self.count + other.count,
        )

    def save(self, file: str | os.PathLike[str]) -> Path:
        """Write sums and counts as .safetensors, and return the file."""
        check(Transport.save, locals())
        target = check_target(file, TENSORS)
        tensors = {f"h{point}": total.contiguous() for point, total in self.sums.items()}
        facts = {"model": self.model, "count": str(self.count)}
        return write_atomically(target, lambda path: save_file(tensors, path, metadata=facts))

    @classmethod
    def load(cls, file: str | os.PathLike[str]) -> Transport:
        """Read what `save` has written.

        Raises
        ------
        FileError
            Anything else.
        """
        if not isinstance(file, str | os.PathLike) or not is_file(file):
            name = os.fspath(file) if isinstance(file, os.PathLike) else file
            made = "Transport.save, or jetgraph transport fit"
            raise FileError(f"there is no file {quoted(name)}: write one with {made}")
        try:
            with safetensors.safe_open(file, framework="pt") as stored:
                facts = stored.metadata() or {}
                sums = {int(name[1:]): stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
            model, count = facts["model"], int(facts["count"])
        except (safetensors.SafetensorError, KeyError, ValueError) as error:
            raise FileError(f"{shown(Path(file))} is no transport: {error}") from error
        if count < 1 or not sums or any(total.dim() != 2 for total in sums.values()):
            raise FileError(
                f"{shown(Path(file))} is no transport: it holds {amount(len(sums), 'sum')} of "
                f"{amount(count, 'position')}"
            )
        return cls(model, dict(sorted(sums.items())), count)

    def __repr__(self) -> str:
        return f"Transport(model={self.model!r}, points={list(self.points)}, count={self.count})"


@own_types()
def fit_transport(
    model: Model,
    texts: Texts,
    *,
    layers: Layers = None,
    tokens: int = 4096,
    window: int | None = None,
    batch: int = 8,
    shard: tuple[int, int] = (0, 1),
    positions: Sampled = "one",
    seed: int = 0,
    tokenizer: Any | None = None,
) -> Transport:
    """The mean Jacobian of the tail at points of the stream.

    Of each window one position is drawn, at which ∂h_n/∂h_p is made whole, a backward pass for each feature of h_n; all
    points share it. So a model of d features takes d backward passes for each `batch` windows.

    With all positions at once, each has a random sign σ, and what comes back is multiplied with it once more: σ_i σ_j
    is 1 for i = j and else 0 in the mean, so that Σ_i σ_i Σ_j σ_j ∂h_n[j]/∂h_p[i] has the right mean. That is as many
    samples more as a window has positions, at the noise of what flows between them.

    Parameters
    ----------
    model, texts, layers, window, batch, tokenizer
        As in `evaluate_lens`; `batch` windows go together.
    tokens
        Tokens of the text that are looked at: as many windows are taken as hold them.
    shard
        (i, n): every nth window from the ith on. What n runs give merges to what one gives of all, but for rounding;
        inside of `sharded`, which divides the job by itself, it does so to the last bit, and a job that was killed goes
        on.
    positions
        `one` of each window, or `all` by random signs.
    seed
        Of the positions, or of the signs.

    Returns
    -------
    Transport
        Sums and counts.

    Raises
    ------
    InputError
        No text, a shard that is none, or a point whose positions are not those of the stream's end.
    """
    check(fit_transport, locals())
    index, number = shard
    if not 0 <= index < number or tokens < 1 or batch < 1 or (window is not None and window < 2):
        raise InputError(
            f"shard={quoted(shard)}, tokens={tokens}, batch={batch}, window={quoted(window)}: a shard (i, n) is one of "
            "n, counted from 0, and the others are 1 or more, a window 2 or more"
        )
    if positions not in get_args(Sampled):
        raise InputError(f"positions={quoted(positions)} is unknown: choose 'one' or 'all'")
    if not 0 <= seed < 2**63:
        raise InputError(f"seed={quoted(seed)} is no whole number between 0 and 2^63")
    one, windows = corpus(model, texts, tokens, 64 if window is None else window, tokenizer)
    points = lens_points(expand(one.graph, 0, recipe="lens", layers=layers))
    if index >= windows.number:
        raise InputError(f"shard={quoted(shard)} holds none of {amount(windows.number, 'window')}: take fewer shards")
    chosen = windows.every(shard) if number > 1 else windows
    width = windows.longest if positions == "all" else None
    options = {"points": points, "batch": batch, "positions": positions, "seed": seed, "shard": shard}
    return _Fit(one, points, chosen, batch, Cursor(lambda: _draws(seed, width, shard)), repr(options)).run()


def _draws(seed: int, width: int | None, shard: tuple[int, int]) -> Iterator[Tensor]:
    """For each window of a shard a share of all its positions, or by position above a half or below."""
    drawn = torch.Generator().manual_seed(seed)
    shape = () if width is None else (width,)
    endless = (torch.rand(shape, generator=drawn) for _ in count())
    return islice(endless, shard[0], None, shard[1])


@dataclass(frozen=True, eq=False)
class _Fit:
    """Jacobians over windows, run by run."""

    one: Subject
    points: Sequence[int]
    windows: Windows
    batch: int
    numbers: Cursor[Tensor]
    options: str

    def run(self) -> Transport:
        """Sums over all windows; each run of them is a unit of a job that is divided."""
        run, cursor = self.windows.run(self.batch), Cursor(self.windows.begin)

        def compute(unit: int) -> Record:
            start, stop = unit * run, (unit + 1) * run
            return self._sums(cursor.take(start, stop), self.numbers.take(start, stop))

        number, glance = self.windows.units(self.batch)
        of = f"runs of {amount(run, 'window')}"
        features = self.one.graph.stream.points[-1].meta["shape"][-1]
        parts = self.windows.parts(run, features, "rows") if isinstance(features, int) else None
        records = each("jacobians", number, compute, self._identity, glance, of, parts)
        sums = records()[0]
        totals = {
            point: from_grid(*(sums[f"{ADDED}h{point} {grid}"] for grid in ("coarse", "fine"))) for point in self.points
        }
        return Transport(self.one.graph.title, totals, int(sums[f"{ADDED}positions"]))

    def _sums(self, windows: Sequence[Tensor], numbers: Sequence[Tensor]) -> Record:
        sums: dict[int, Tensor] = {}
        seen = 0
        for places in alike(windows, lambda window: self.batch):
            inputs = self.one.inputs(torch.stack([windows[place] for place in places]))
            drawn = torch.stack([numbers[place] for place in places])
            jacobians, positions = _jacobians(self.one.graph, inputs, self.points, drawn)
            sums = {point: sums[point] + total if point in sums else total for point, total in jacobians.items()}
            seen += positions
        on_grid = {point: zip(("coarse", "fine"), onto_grid(total), strict=True) for point, total in sums.items()}
        named = {f"{ADDED}h{point} {grid}": value for point, grids in on_grid.items() for grid, value in grids}
        return {f"{ADDED}positions": torch.tensor(seen), **named}

    def _identity(self) -> dict[str, str]:
        return {"model": digest_of_model(self.one.graph), "text": self.windows.digest, "options": self.options}


def _jacobians(
    graph: ResidualGraph, inputs: Mapping[str, Any], points: Sequence[int], numbers: Tensor
) -> tuple[dict[int, Tensor], int]:
    """By point, Σ ∂h_n/∂h_p over rows and positions, [features, features], in float64; and of how many.

    `numbers` are uniform in [0, 1]: one a row, for one position of each, or one for each position.
    """
    nodes = graph.stream.points
    with torch.inference_mode(False), torch.enable_grad():
        run = graph.run(**inputs)
        first = min(points)
        run.values.put(nodes[first], run[nodes[first]].detach().clone().requires_grad_())
        run.need([nodes[point] for point in range(first, len(nodes))])
        end, stream = run[nodes[-1]], [run[nodes[point]] for point in points]
        for point, value in zip(points, stream, strict=True):
            if value.dim() not in (2, 3) or value.shape[:-1] != end.shape[:-1]:
                raise InputError(
                    f"h{point} has shape {list(value.shape)} and the end of the stream {list(end.shape)}: their "
                    "positions are not the same, so leave the point out with layers="
                )
        if end.is_complex() or any(value.is_complex() for value in stream):
            raise InputError(
                "the stream is complex, and what moves it is no matrix of its numbers: take the tail on one prompt, "
                "tail='jet' or 'frozen'"
            )
        signs = _signs(numbers, end)
        totals = [torch.zeros(end.shape[-1], value.shape[-1], dtype=torch.float64) for value in stream]
        for feature in range(end.shape[-1]):
            seed = torch.zeros_like(end)
            seed[..., feature] = signs
            slopes = torch.autograd.grad(end, stream, seed, retain_graph=True, allow_unused=True)
            for total, slope in zip(totals, slopes, strict=True):
                if slope is not None:
                    total[feature] = (slope * signs[..., None]).flatten(0, -2).double().sum(0).cpu()
            advance(len(numbers))
    return dict(zip(points, totals, strict=True)), int(signs.count_nonzero())


def _signs(numbers: Tensor, end: Tensor) -> Tensor:
    """What each position of the stream's end is multiplied with: 1 at one of each row, or 1 or −1 at all."""
    if end.dim() == 2:
        return end.new_ones(end.shape[0])
    if numbers.dim() == 2:
        if numbers.shape[1] < end.shape[1]:
            raise InputError(
                "positions='all' is for windows of tokens, and here the stream has more positions than inputs, "
                f"{end.shape[1]} for {numbers.shape[1]}: take positions='one'"
            )
        return torch.where(numbers[:, : end.shape[1]] < 0.5, -1.0, 1.0).to(end)
    signs = torch.zeros(end.shape[:2])
    signs[range(len(signs)), (numbers * end.shape[1]).long()] = 1
    return signs.to(end)


@dataclass(frozen=True, eq=False, repr=False)
class TransportLens(Lens):
    """A lens through the tail's map. Made by `transport_lens`."""

    tail: Tail = "mean"

    @property
    def title(self) -> str:
        how = {"mean": "the mean Jacobian", "frozen": "the frozen map", "jet": f"the jet of order {self.order}"}
        points = amount(len(self.points), "point")
        return f"Transport lens of {self.model} by {how[self.tail]} of the tail, at {points}"

    @property
    def note(self) -> str:
        """As of another lens. The mean Jacobian is of other texts, so that only the point is read of this one."""
        return remarks(self, carried=True, ahead=self.tail != "mean")


@torch.no_grad()
@own_types()
@one_look()
def transport_lens(
    model: Model,
    inputs: Inputs,
    transport: Transport | str | os.PathLike[str] | None = None,
    *,
    tail: Tail = "mean",
    order: int = 1,
    layers: Layers = None,
    target: int | str | None = None,
    tokenizer: Any | None = None,
) -> TransportLens:
    """Decode points of the stream, carried to its end by a linear or jet map in place of the tail between.

    Parameters
    ----------
    model, inputs, target, tokenizer
        As in `lens`.
    transport
        What `fit_transport` gives, or its file; for `tail="mean"`.
    tail
        `mean`: J_p h_p. On the prompt itself: `frozen`, with all gates of the tail held, which is the output itself but
        for constants that the tail adds; `jet`, the Taylor series of the tail around the stream to an order.
    order
        Of `tail="jet"`; 1 is the prompt's own Jacobian, over all positions.
    layers
        As in `lens`; those of the transport unless given.

    Returns
    -------
    TransportLens
        As `Lens`, of one order.

    Raises
    ------
    InputError
        A transport is missing, not asked for, or of another model; or an order below 1.
    """
    check(transport_lens, locals())
    if tail not in get_args(Tail):
        raise InputError(f"tail={quoted(tail)} is unknown: choose {', '.join(map(repr, get_args(Tail)))}")
    if (tail == "mean") != (transport is not None):
        raise InputError('a transport goes with tail="mean", and is made by jetgraph.fit_transport')
    if order < 1 or (tail != "jet" and order != 1):
        raise InputError(f'order={order}: it is 1 or more, of tail="jet" alone')
    check_order(order)
    fitted = Transport.load(transport) if isinstance(transport, str | os.PathLike) else transport
    one = subject(model, inputs, tokenizer)
    given = one.inputs(inputs)
    forward = one.run(given)
    shape = shape_of(one.graph, forward)
    layers = list(fitted.points) if layers is None and fitted is not None else layers
    points = lens_points(expand(one.graph, 0, recipe="lens", layers=layers))
    if fitted is not None:
        _check_fits(fitted, forward, points)
    logits = torch.stack([_decoded(forward, _carried(forward, point, fitted, tail, order)) for point in points])
    logits = logits.unsqueeze(1).to(torch.promote_types(logits.dtype, torch.float32))
    made = TransportLens(
        one.graph.title,
        points,
        tuple(after_point(one.graph.outline, point) for point in points),
        (order,),
        logits,
        forward.output,
        token_ids(one.graph, given, shape[:-1]),
        one.tokenizer,
        counted_tokens(one.graph, given, shape[:-1]),
        "none",
        vocabulary=is_vocabulary(one.graph, shape[-1], one.tokenizer),
        features=is_features(one.graph, shape[-1]),
        tail=tail,
    )
    return made if target is None else made.of(target)


def _check_fits(fitted: Transport, forward: Forward, points: Sequence[int]) -> None:
    end = forward.point(-1).shape[-1]
    for point in points:
        expected, own = (end, forward.point(point).shape[-1]), tuple(fitted.map(point).shape)
        if own != expected:
            raise InputError(
                f"the transport's map at h{point} is {list(own)}, of {fitted.model}, and this model's "
                f"{list(expected)}: fit one for this model"
            )


def _carried(forward: Forward, point: int, fitted: Transport | None, tail: Tail, order: int) -> Tensor:
    """What stands for h_p at the end of the stream."""
    h = forward.point(point)
    if fitted is not None:
        return h @ fitted.map(point).T.to(h)
    frozen = Freeze() if tail == "frozen" else None
    order = 1 if frozen else order
    value = forward.stages.tail(point, Series.of_rows([h, h if frozen else -h], order), order, frozen)
    if frozen:
        return coefficient(value, 1)
    return forward.point(-1) - sum(coefficient(value, j) for j in range(order + 1))


def _decoded(forward: Forward, value: Tensor) -> Tensor:
    decoder = forward.graph.structure.decoder
    return forward.through(decoder.affine, forward.through(decoder.nonlinear, value))
