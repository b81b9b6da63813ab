"""What happens to the output when a part of the model is taken away, or fed from another input.

The two questions behind an attribution are asked apart. The *direct* effect of a term is read off the expansion: the
output without it. The effect *through the network* is measured: a branch is scaled or replaced, and everything after
it is computed anew. Where the two agree, nothing later has made up for the branch or relied on it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from numbers import Integral
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from tqdm import tqdm

from jetgraph.algebra.expansion import Expansion, expand
from jetgraph.algebra.matching import matching, nearest
from jetgraph.algebra.program import SINK, Freeze, JoinStep, Path, Split
from jetgraph.algebra.selection import Pattern, select
from jetgraph.applications.distances import centred, divergence
from jetgraph.applications.readout import token_text
from jetgraph.applications.results import Cell, Result
from jetgraph.applications.subject import (
    Inputs,
    Model,
    Subject,
    counted_tokens,
    encode_token,
    is_vocabulary,
    last_tokens,
    subject,
)
from jetgraph.compilation import compile
from jetgraph.errors import BudgetError, InputError, SelectionError, big, check, quoted
from jetgraph.export.precision import own_types
from jetgraph.residual import Forward, Position, ResidualGraph, whole_numbers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Token = int | str
"""A token id, or a text that is one token."""

Target = Token | tuple[Token, Token] | Sequence[Token] | Tensor
"""A token; a pair, whose difference of logits is meant; or a list, one token for each example."""

At = Position | Literal["last"] | None
"""Where logits are looked at: one position, one for each row, `last` (the last token of each row that is no padding),
or everywhere."""

PATH_BUDGET = 10_000
"""How many paths are ablated one by one."""

TERM_BYTES = 2**28
"""Bytes of terms that are held at once; a term is as large as the logits that are looked at."""

LARGEST_SCALE = 1e30
"""What paths may be multiplied by, at most."""

LABELLED = 10
"""Points of a scatter plot that are named."""


# What is measured


@dataclass(frozen=True, eq=False)
class _Readout:
    """Where the output is looked at, and which of its logits."""

    places: int | Tensor | None
    """The place that is looked at, or that of each example [examples]; None is all of them."""
    positions: bool
    """The output has positions."""
    clean: Tensor
    """The model's own logits there, [examples, places, vocabulary]."""
    tokens: Tensor
    """The target, [examples, places]."""
    against: Tensor | None
    """The token whose logit is subtracted, where the target is a pair."""
    tokenizer: Any | None
    counted: Tensor | None
    """True [examples, places] where all places are looked at and one is a token and no padding; None: they all are."""

    @classmethod
    def of(cls, network: _Network, position: At, target: Target | None, tokenizer: Any | None) -> _Readout:
        forward = network.forward
        places = network.places(position)
        clean = _logits(forward, places)
        shape = forward.shape(forward.graph.traced.output)
        positions = len(shape) == 3
        counted = counted_tokens(network.graph, network.inputs, shape[:-1]) if places is None else None
        if tokenizer is not None and not is_vocabulary(network.graph, clean.shape[-1], tokenizer):
            if any(isinstance(one, str) for one in (target if isinstance(target, Sequence) else ())):
                raise InputError(
                    f"the output has {clean.shape[-1]} features and no vocabulary, so {quoted(target)} names none of "
                    "them: give a number"
                )
            tokenizer = None
        if isinstance(target, tuple):
            if len(target) != 2:
                raise InputError(
                    f"a tuple as target is a pair, whose logits are subtracted, but it has {len(target)} tokens: give "
                    "a list for one token per example"
                )
            one, other = (_tokens(token, clean, tokenizer) for token in target)
            return cls(places, positions, clean, one, other, tokenizer, counted)
        return cls(places, positions, clean, _tokens(target, clean, tokenizer), None, tokenizer, counted)

    def read(self, forward: Forward) -> Tensor:
        """A pass's logits [examples, places, vocabulary]."""
        return _logits(forward, self.places)

    def logit(self, logits: Tensor) -> Tensor:
        """The target's logit, or the pair's difference, in float64 [examples, places]."""
        logits = logits.double()
        value = logits.gather(-1, self.tokens.unsqueeze(-1)).squeeze(-1)
        if self.against is not None:
            value = value - logits.gather(-1, self.against.unsqueeze(-1)).squeeze(-1)
        return value

    def change(self, logits: Tensor) -> Tensor:
        """What `logit` has changed by against the model's own output."""
        return self.logit(logits) - self.logit(self.clean)

    def centred_change(self, logits: Tensor) -> Tensor:
        """The same for centred logits, which a shift of all logits leaves as they are."""
        return self.logit(centred(logits)) - self.logit(centred(self.clean))

    def divergence(self, logits: Tensor) -> Tensor:
        """KL(model ‖ logits) in nats."""
        return divergence(self.clean, logits)

    def text(self, example: int, place: int) -> str:
        """The target of one row, for people."""
        text = token_text(self.tokenizer, int(self.tokens[example, place]))
        if self.against is None:
            return text
        return f"{text} − {token_text(self.tokenizer, int(self.against[example, place]))}"

    @property
    def name(self) -> str:
        """The target as axes and titles call it."""
        texts = {self.text(example, place) for example, place in self.rows()}
        what = "logit" if self.against is None else "logit difference"
        return f"{what} of {texts.pop()}" if len(texts) == 1 else f"{what} of the target"

    def rows(self) -> Iterator[tuple[int, int]]:
        """All (example, place) but padding."""
        examples, places = self.tokens.shape
        return (
            (example, place)
            for example in range(examples)
            for place in range(places)
            if self.counted is None or self.counted[example, place]
        )

    def without_padding(self, values: Tensor) -> Tensor:
        """Numbers [..., examples, places], NaN for padding; on the CPU."""
        return values.cpu() if self.counted is None else values.cpu().masked_fill(~self.counted, torch.nan)

    def position(self, example: int, place: int) -> int | None:
        """The position that a place of an example is, counted from the start; None where the output has none."""
        if not self.positions:
            return None
        if isinstance(self.places, Tensor):
            return int(self.places[example])
        return place if self.places is None else self.places


def _logits(forward: Forward, places: int | Tensor | None) -> Tensor:
    """A pass's logits [examples, places, vocabulary], at one place or all of them (None)."""
    if places is not None:
        return forward.output_at(places)
    output = forward.output
    return output.unsqueeze(1) if output.dim() == 2 else output


def _tokens(target: Token | Sequence[Token] | Tensor | None, clean: Tensor, tokenizer: Any | None) -> Tensor:
    """Token ids [examples, places]; the model's top token where none is given."""
    examples, places, vocabulary = clean.shape
    if target is None:
        return clean.argmax(-1)
    listed = whole_numbers(target, "target") if isinstance(target, Tensor) else target
    if isinstance(listed, int | Integral | str):
        ids = [_token(listed, tokenizer)] * examples
    else:
        ids = [_token(one, tokenizer) for one in listed]
        ids = ids * examples if isinstance(target, Tensor) and len(ids) == 1 else ids
    if len(ids) != examples:
        raise InputError(f"there are {len(ids)} targets for {examples} examples: give one, or one for each")
    if not all(0 <= index < vocabulary for index in ids):
        raise InputError(f"target {quoted(target)} is out of range: the output has logits 0 to {vocabulary - 1}")
    return torch.tensor(ids, device=clean.device).unsqueeze(1).expand(examples, places)


def _token(token: Token, tokenizer: Any | None) -> int:
    return encode_token(tokenizer, token, "target") if isinstance(token, str) else int(token)


# The network, piece by piece


@dataclass(frozen=True, eq=False)
class _Network:
    """A model on one input, any of whose components can be replaced."""

    graph: ResidualGraph
    inputs: Mapping[str, Any]

    @cached_property
    def forward(self) -> Forward:
        """The pass as it is."""
        return self.graph.run(**self.inputs)

    @cached_property
    def steps(self) -> dict[str, int]:
        """The step at which each component enters the stream: sources of the encoder at 0, then in order branches, and
        what enters in mid-stream."""
        outline = self.graph.outline
        found = {source.alias: 0 for source in outline.sources}
        for number, step in enumerate(outline.steps, start=1):
            if isinstance(step, JoinStep):
                found |= {site.alias: number for site in step.branches}
                found |= {source.alias: number for source in step.injections if source.alias in self.graph.injections}
        return found

    @cached_property
    def whole(self) -> frozenset[str]:
        """Branches that are not parts of one: to hold one of these saves its computation."""
        branches = self.graph.branches
        return frozenset(alias for alias in self.steps if alias in branches and branches[alias].part is None)

    def places(self, position: At) -> int | Tensor | None:
        """Where the output is looked at; None is everywhere. Raises `InputError` for an output that is no logits."""
        shape = self.forward.shape(self.graph.traced.output)
        if len(shape) not in (2, 3):
            raise InputError(
                f"the output has shape {list(shape)}, but logits are [batch, classes] or [batch, position, "
                "vocabulary]: name the output when you trace the model"
            )
        if isinstance(position, str):
            if position != "last":
                raise InputError(f"position={quoted(position)} is unknown: give a number, one for each row, or 'last'")
            last = last_tokens(self.graph, self.inputs, shape[:-1])
            position = -1 if last is None else last
        if position is None or (len(shape) == 2 and isinstance(position, int) and position == -1):
            return None
        return self.forward.places(position)

    def value(self, alias: str) -> Tensor:
        """A component's own value."""
        return self.forward.component(alias)

    def started(self, step: int) -> Forward:
        """A new pass, in which branches before a step need not be computed again."""
        forward = self.graph.run(**self.inputs)
        for alias, at in self.steps.items():
            if at < step and alias in self.whole:
                forward.patch(alias, self.value(alias))
        return forward

    def scaled(self, aliases: Iterable[str], scale: float) -> Forward:
        """The pass in which components are scaled, each as it comes out after those before it were."""
        chosen = set(aliases)
        ordered = [alias for alias in self.steps if alias in chosen]
        forward = self.started(self.steps[ordered[0]])
        for alias in ordered:
            forward.patch(alias, forward.component(alias) * scale)
        return forward

    def replaced(self, alias: str, value: Tensor) -> Forward:
        """The pass in which one component has another value."""
        forward = self.started(self.steps[alias])
        forward.patch(alias, value)
        return forward


# Ablation


@dataclass(frozen=True, eq=False)
class Outputs:
    """Logits [examples, places, vocabulary] after an ablation, at the positions that were looked at."""

    direct: Tensor
    """output − (1 − scale) · term."""
    through: Tensor | None
    """What the network gives with the branches scaled; None for a path without one."""


@dataclass(frozen=True)
class Change:
    """What an ablation does to the logits at one place."""

    logit: float
    """Change of the target's logit, or of the pair's difference."""
    centred: float
    """The same of centred logits, which a shift of all of them leaves as they are."""
    kl: float
    """KL(model ‖ ablated) in nats."""
    top: str
    """The token that is then the most probable one."""


@dataclass(frozen=True)
class Effect:
    """One path's ablation at one place."""

    path: str
    example: int
    position: int | None
    target: str
    predicted: Change
    """When the term is taken off the output."""
    actual: Change | None
    """When the path's branches are scaled in the network; None for a path without one."""


@dataclass(frozen=True, eq=False, repr=False)
class Ablation(Result):
    """Predicted (direct) against actual change of a logit, path by path."""

    model: str
    scale: float
    what: str
    """The quantity whose change is told, such as `logit of ' the'`."""
    effects: tuple[Effect, ...]
    """By path, example and position; those of all paths together come last where there are several."""
    output: Tensor
    """The model's own logits, [examples, places, vocabulary]."""
    outputs: Mapping[str, Outputs]
    """Logits after each ablation by path; `together` is the key of all at once."""

    @property
    def title(self) -> str:
        """What was ablated."""
        how = "removed" if self.scale == 0 else f"scaled by {self.scale:g}"
        return (
            f"{self.model}: change of the {self.what} with a path {how}, directly (predicted) and through the network"
        )

    def columns(self) -> Mapping[str, Sequence[Cell]]:
        """path, example, position, target; then predicted and actual change: see `Change` for what each one is."""
        columns: dict[str, list[Cell]] = {
            name: [getattr(effect, name) for effect in self.effects]
            for name in ("path", "example", "position", "target")
        }
        for name, suffix in (("logit", ""), ("centred", "_centred"), ("kl", "_kl"), ("top", "_top")):
            columns[f"predicted{suffix}"] = [getattr(effect.predicted, name) for effect in self.effects]
            columns[f"actual{suffix}"] = [
                None if effect.actual is None else getattr(effect.actual, name) for effect in self.effects
            ]
        return columns

    def figure(self) -> Figure:
        """Scatter: predicted against actual change, one point per path, example and position."""
        from matplotlib.figure import Figure

        points = [
            (one.path, one.predicted.logit, one.actual.logit)
            for one in self.effects
            if one.actual is not None and one.path != TOGETHER
        ]
        figure = Figure(figsize=(6.5, 6), layout="constrained")
        axes = figure.subplots()
        predicted, actual = [point[1] for point in points], [point[2] for point in points]
        ends = [min((*predicted, *actual, 0.0)), max((*predicted, *actual, 0.0))]
        axes.plot(ends, ends, color="grey", linewidth=0.8, label="predicted = actual")
        axes.axhline(0, color="lightgrey", linewidth=0.6, zorder=0)
        axes.axvline(0, color="lightgrey", linewidth=0.6, zorder=0)
        axes.scatter(predicted, actual, s=18)
        for path, x, y, side in _labels(points, axes):
            ha = "left" if side > 0 else "right"
            axes.annotate(
                path,
                (x, y),
                xytext=(4 * side, 0),
                textcoords="offset points",
                fontsize=7,
                ha=ha,
                va="center",
                parse_math=False,
            )
        how = "removed" if self.scale == 0 else f"scaled by {self.scale:g}"
        axes.set_xlabel(f"predicted: the term {how} from the output (change of the logit)")
        axes.set_ylabel(f"actual: its branches {how} in the network (change of the logit)")
        axes.set_title(f"{self.model}: {self.what}", fontsize=10, parse_math=False)
        axes.legend(fontsize=8)
        return figure


def _labels(points: Sequence[tuple[str, float, float]], axes: Any) -> Iterator[tuple[str, float, float, int]]:
    """The names of the largest effects that have room, and on which side of the point (1: right, -1: left)."""
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    spots = [(path, x, y, (x - left) / (right - left), (y - low) / (high - low)) for path, x, y in points]
    taken: list[tuple[float, float, float]] = []
    for path, x, y, across, up in sorted(spots, key=lambda spot: -abs(spot[1]) - abs(spot[2])):
        name = path.removesuffix(f" > {SINK}")
        # In shares of the axes: a letter is about 0.0105 wide, a line 0.025 high.
        reach = 0.02 + 0.0105 * len(name)
        for side, start in ((1, across + 0.008), (-1, across - 0.008 - reach)):
            end = start + reach
            clear = all(abs(up - other[4]) > 0.017 or not start < other[3] < end for other in spots)
            free = all(abs(up - other) > 0.027 or end < begin or start > stop for begin, stop, other in taken)
            if clear and free and start > 0 and end < 1:
                taken.append((start, end, up))
                yield name, x, y, side
                break
        if len(taken) == LABELLED:
            return


TOGETHER = "together"
"""Name of the joint ablation in `Ablation.outputs` and its table."""


@torch.no_grad()
@own_types()
def ablate(
    model: Model | Expansion,
    paths: Pattern | None,
    inputs: Inputs,
    *,
    scale: float = 0.0,
    target: Target | None = None,
    position: At = "last",
    split: Split | None = None,
    tokenizer: Any | None = None,
) -> Ablation:
    """Remove or scale paths, and compare what that should do with what it does.

    For each path:

    - predicted, the direct effect: output − (1 − scale) · term. With the default expansion (recipe `components`, norms
      of the stream and of the decoder frozen) this is direct logit attribution, and exact.
    - actual, through the network: the branches that the path passes (for an atom, that branch; for a path without a
      branch, its source) are multiplied by `scale` in the forward pass, and everything after them is computed anew. A
      path that is no more than a bias of a skip, a site or the decoder, or what a concatenation adds, has none.

    All paths that have an actual effect are ablated together too. They come in the last rows, as `together`.

    Parameters
    ----------
    model
        A model, a graph, or an expansion of one, whose terms are then those that are removed. For a part of a split
        branch whose last layer is followed by a norm, the denominator is held at the whole branch's value.
    paths
        What `jetgraph.select` takes; None is every term of the expansion, a systematic scan of all components.
    inputs
        A prompt, prompts, token ids, or inputs by name.
    scale
        0 removes, 2 doubles.
    target
        The token whose logit is told: an id or a text that is one token; a pair for the difference of two logits; a
        list for one token per example. The model's top token at each place unless given.
    position
        Of the sequence, negative ones counted from its end, or one for each example; None is all of them, each with a
        row of its own. `last` is the last one of each example, of padded ones the last that their attention mask
        counts.
    split
        Branches to cut first, as in `jetgraph.expand`; `heads` to scan attention heads.

    Raises
    ------
    InputError
        A target or position that does not exist, or a split of what is expanded already.
    SelectionError
        No path matches.
    BudgetError
        More than `PATH_BUDGET` paths match.

    >>> import torch, jetgraph as jg
    >>> from jetgraph.applications.interventions import ablate
    >>> class Block(torch.nn.Module):
    ...     def __init__(self, scale):
    ...         super().__init__()
    ...         self.scale = torch.nn.Parameter(torch.tensor(scale))
    ...         self.mlp = torch.nn.Linear(2, 2, bias=False)
    ...         torch.nn.init.eye_(self.mlp.weight)
    ...     def forward(self, x):
    ...         return x + self.scale * self.mlp(x)
    >>> model = torch.nn.Sequential(Block(2.0), Block(3.0)).eval()
    >>> found = ablate(model, "L0.mlp > logits", torch.tensor([[1.0, 0.0]]), target=0)
    >>> effect = found.effects[0]  # of (1 + 2)(1 + 3) = 12, the term is 2; without the branch 1 + 3 are left
    >>> effect.predicted.logit, effect.actual.logit
    (-2.0, -8.0)
    """
    check(ablate, locals())
    if not abs(scale) < LARGEST_SCALE:
        raise InputError(f"scale={quoted(scale)} is no number to multiply by: 0 removes a path, 2 doubles it")
    scale = float(scale)
    found, expansion = _expanded(model, inputs, split, tokenizer)
    network = _Network(found.graph, found.inputs(inputs))
    chosen = select(expansion, "**" if paths is None else paths)
    if chosen.count() > PATH_BUDGET:
        raise BudgetError(
            f"{big(chosen.count())} paths are selected, more than the {PATH_BUDGET} that are ablated one by one: "
            "select fewer"
        )
    readout = _Readout.of(network, position, target, found.tokenizer)
    outputs = _ablated(expansion, list(chosen), network, readout, scale)
    return Ablation(
        found.graph.title,
        scale,
        readout.name,
        tuple(effect for path, one in outputs.items() for effect in _effects(path, one, readout)),
        readout.clean,
        outputs,
    )


def _expanded(
    model: Model | Expansion, inputs: Inputs, split: Split | None, tokenizer: Any | None
) -> tuple[Subject, Expansion]:
    """The expansion to work on, and the graph that it is of."""
    if isinstance(model, Expansion):
        if split is not None:
            raise InputError(f"split={split!r} comes too late for an expansion: give split to jetgraph.expand")
        if not isinstance(model.graph, ResidualGraph):
            raise InputError("this expansion was made from an outline, which has no tensors to run")
        # Of the weights' place of now, where the model was moved or cast since the trace.
        found = subject(model.graph, tokenizer=tokenizer)
        return found, model if found.graph is model.graph else replace(model, graph=found.graph)
    found = _split(subject(model, inputs, tokenizer), split)
    sites = found.graph.outline.sites()
    held = {site.alias: Freeze() for site in sites if site.role != "branch" and not site.affine}
    return found, expand(found.graph, recipe="components", rules=held)


def _split(found: Subject, split: Split | None) -> Subject:
    return found if split is None else Subject(found.graph.split(split), found.tokenizer, found.loaded)


def _ablated(
    expansion: Expansion, paths: Sequence[Path], network: _Network, readout: _Readout, scale: float
) -> dict[str, Outputs]:
    """Logits without each path, and without all of them, at the places that are looked at."""
    found: dict[str, Outputs] = {}
    through: dict[tuple[str, ...], Tensor] = {}
    removed = torch.zeros_like(readout.clean, dtype=torch.float64)
    together: dict[str, None] = {}
    values = compile(expansion, paths, budget=len(paths))(**network.inputs)
    size = max(1, TERM_BYTES // (readout.clean.numel() * readout.clean.element_size()))
    with tqdm(total=len(paths), desc="ablating", disable=None, leave=False, unit=" paths") as bar:
        for start in range(0, len(paths), size):
            some = paths[start : start + size]
            terms = values.combine(torch.eye(len(some)), some, position=readout.places)
            for path, term in zip(some, terms.view(len(some), *readout.clean.shape), strict=True):
                share = (1 - scale) * term.double()
                aliases = _passed(expansion, path)
                if aliases:
                    removed += share
                    together |= dict.fromkeys(aliases)
                    if aliases not in through:
                        through[aliases] = readout.read(network.scaled(aliases, scale))
                found[str(path)] = Outputs(readout.clean.double() - share, through.get(aliases))
                bar.update()
    if sum(one.through is not None for one in found.values()) > 1:
        actual = readout.read(network.scaled(together, scale))
        found[TOGETHER] = Outputs(readout.clean.double() - removed, actual)
    return found


def _passed(expansion: Expansion, path: Path) -> tuple[str, ...]:
    """The components that a path goes through: its branches, else its source where that can be replaced."""
    entry = expansion.entry(path.source.alias)
    hops = [path.source, *path.sites] if entry.origin == "atom" else path.sites
    branches = tuple(hop.alias for hop in hops if expansion.place(hop.alias).site.role == "branch")
    replaceable = entry.origin == "encoder" or path.source.alias in expansion.graph.injections
    return branches or ((path.source.alias,) if replaceable else ())


def _effects(path: str, outputs: Outputs, readout: _Readout) -> Iterator[Effect]:
    predicted = _changes(outputs.direct, readout)
    actual = {} if outputs.through is None else _changes(outputs.through, readout)
    for place, change in predicted.items():
        yield Effect(path, place[0], readout.position(*place), readout.text(*place), change, actual.get(place))


def _changes(logits: Tensor, readout: _Readout) -> dict[tuple[int, int], Change]:
    """What has changed, by (example, place)."""
    change, shifted = readout.change(logits).tolist(), readout.centred_change(logits).tolist()
    divergence, top = readout.divergence(logits).tolist(), logits.argmax(-1).tolist()
    return {
        (i, j): Change(change[i][j], shifted[i][j], divergence[i][j], token_text(readout.tokenizer, top[i][j]))
        for i, j in readout.rows()
    }


# Path patching


@dataclass(frozen=True, eq=False, repr=False)
class Patching(Result):
    """What reaches the output from a sender by way of a receiver, when the sender comes from another input."""

    model: str
    what: str
    """The quantity whose change is told, such as `logit of ' the'`."""
    senders: tuple[str, ...]
    receivers: tuple[str, ...]
    effects: Tensor
    """Change of that quantity, [senders, receivers, examples, places]; NaN where the receiver is not after the
    sender, and here and below for padding."""
    totals: Tensor
    """Its change when the sender is replaced and everything after it is computed anew, [senders, examples, places]."""
    clean: Tensor
    """The quantity on the clean input, [examples, places]."""
    corrupt: Tensor
    """The same on the corrupt input."""

    @property
    def title(self) -> str:
        """What was patched."""
        return (
            f"{self.model}: path patching, mean change of the {self.what}, "
            f"{float(self.clean.nanmean()):.4g} on the clean input and {float(self.corrupt.nanmean()):.4g} on the "
            "corrupt one"
        )

    def columns(self) -> Mapping[str, Sequence[Cell]]:
        """sender, receiver, effect along the direct path, its share of corrupt − clean, and the sender's total effect.

        Means over examples and places.
        """
        effects, totals = self.effects.nanmean((-2, -1)), self.totals.nanmean((-2, -1)).tolist()
        span = float((self.corrupt - self.clean).nanmean())
        rows = [
            (sender, receiver, float(effects[i, j]), totals[i])
            for i, sender in enumerate(self.senders)
            for j, receiver in enumerate(self.receivers)
            if not effects[i, j].isnan()
        ]
        return {
            "sender": [row[0] for row in rows],
            "receiver": [row[1] for row in rows],
            "effect": [row[2] for row in rows],
            "share": [row[2] / span if span else None for row in rows],
            "total": [row[3] for row in rows],
        }

    def figure(self) -> Figure:
        """Heat map: effect of each sender by way of each receiver; beside it, the sender's total effect."""
        from matplotlib.figure import Figure

        effects, totals = self.effects.nanmean((-2, -1)), self.totals.nanmean((-2, -1)).unsqueeze(1)
        wide, high = len(self.receivers), len(self.senders)
        figure = Figure(figsize=(4 + 0.35 * wide, 2.2 + 0.3 * high), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=[max(wide, 4), 1])
        limit = float(torch.cat([effects.flatten(), totals.flatten()]).nan_to_num().abs().max()) or 1.0
        for axes, values in ((left, effects), (right, totals)):
            image = axes.imshow(values.numpy(), cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
        left.set_xticks(range(wide), self.receivers, rotation=90, fontsize=8, parse_math=False)
        left.set_yticks(range(high), self.senders, fontsize=8, parse_math=False)
        left.set_xlabel("receiver (blank: not after the sender)")
        left.set_ylabel("sender, from the corrupt input")
        right.set_xticks([0], ["all ways"], rotation=90, fontsize=8)
        figure.colorbar(image, ax=[left, right], label="change on the clean input (logits)")
        figure.suptitle(f"{self.model}: {self.what}, by direct path", fontsize=10, parse_math=False)
        return figure


Names = str | Sequence[str]
"""Names or globs over aliases and module paths."""


@torch.no_grad()
@own_types()
def patch(
    model: Model,
    clean: Inputs,
    corrupt: Inputs,
    *,
    senders: Names | None = None,
    receivers: Names | None = None,
    target: Target | None = None,
    position: At = "last",
    split: Split | None = None,
    tokenizer: Any | None = None,
) -> Patching:
    """Path patching between two inputs, for any pair of components.

    The effect of a sender s by way of a receiver r, on the clean input:

    1. s takes the value that it has on the corrupt input, every other branch before r keeps its clean value. What lies
       on the stream itself (skips, maps such as post-norms) is computed anew.
    2. r is evaluated on the stream that this gives.
    3. In a clean pass r is replaced by that value, everything after r is computed anew, and the target is read.

    With `logits` as receiver, step 2 is the decoder itself. The total effect of s (activation patching) replaces s and
    lets everything after it run.

    Parameters
    ----------
    clean, corrupt
        Two inputs of the same shape.
    senders, receivers
        Names or globs over branches, their parts, and for senders the encoder's sources; `logits` is a receiver. All
        pairs with the receiver after the sender are evaluated, which takes a part of a forward pass each. By default
        all, but no source that is the same on both inputs.
    target
        A token, a pair of tokens for the difference of their logits, or a list with a token per example; the model's
        top token on the clean input unless given.
    position, split, tokenizer
        As in `ablate`.

    Raises
    ------
    InputError
        Inputs of different shapes, or no receiver that comes after a sender.
    SelectionError
        A name that is no component.
    """
    check(patch, locals())
    found = _split(subject(model, clean, tokenizer), split)
    one, other = (_Network(found.graph, found.inputs(inputs)) for inputs in (clean, corrupt))
    _check_shapes(one.inputs, other.inputs)
    readout = _Readout.of(one, position, target, found.tokenizer)
    steps = {**one.steps, SINK: len(found.graph.outline.steps) + 1}
    sending = _differing(one, other) if senders is None else _chosen(senders, list(one.steps), found.graph)
    receiving = [alias for alias, step in steps.items() if step]
    receiving = receiving if receivers is None else _chosen(receivers, receiving, found.graph)
    shape = (len(sending), len(receiving), *readout.tokens.shape)
    effects = torch.full(shape, torch.nan, dtype=torch.float64)
    totals = torch.zeros(len(sending), *readout.tokens.shape, dtype=torch.float64)
    pairs = [(s, r) for s in sending for r in receiving if steps[s] < steps[r]]
    if not pairs:
        raise InputError(
            f"none of the receivers ({', '.join(receiving)}) comes after a sender ({', '.join(sending)}) on the stream"
        )
    with tqdm(total=len(pairs), desc="patching", disable=None, leave=False, unit=" pairs") as bar:
        for i, sender in enumerate(sending):
            value = other.value(sender)
            totals[i] = readout.without_padding(readout.change(readout.read(one.replaced(sender, value))))
            wanted = [alias for alias in receiving if steps[sender] < steps[alias]]
            for alias, forward in _received(one, sender, value, wanted):
                change = readout.change(readout.read(forward))
                effects[i, receiving.index(alias)] = readout.without_padding(change)
                bar.update()
    return Patching(
        found.graph.title,
        readout.name,
        tuple(sending),
        tuple(receiving),
        effects,
        totals,
        readout.without_padding(readout.logit(readout.clean)),
        readout.without_padding(readout.logit(_logits(other.forward, other.places(position)))),
    )


def _received(network: _Network, sender: str, value: Tensor, receivers: Sequence[str]) -> Iterator[tuple[str, Forward]]:
    """The pass by receiver, when the sender's value reaches it by the stream alone."""
    held = network.started(network.steps[sender])
    held.patch(sender, value)
    first, last = network.steps[sender], max(network.steps.get(alias, len(network.steps)) for alias in receivers)
    for alias in [alias for alias, step in network.steps.items() if first < step <= last]:
        # One pass serves all receivers: each is read while all before it are held, and then held itself.
        if alias in receivers:
            yield alias, network.replaced(alias, held.component(alias))
        held.patch(alias, network.value(alias))
    if SINK in receivers:
        yield SINK, held


def _differing(one: _Network, other: _Network) -> list[str]:
    """Everything that can differ between two inputs: all branches, and the sources that do."""
    return [alias for alias, step in one.steps.items() if step or not torch.equal(one.value(alias), other.value(alias))]


def _chosen(wanted: Names, names: Sequence[str], graph: ResidualGraph) -> list[str]:
    """The components that are named, in the order of the stream."""
    outline = graph.outline
    paths = {one.alias: one.path for one in (*outline.sources, *outline.sites())}
    patterns = [wanted] if isinstance(wanted, str) else list(wanted)
    chosen: set[str] = set()
    for pattern in patterns:
        found = set(matching(pattern, paths)).intersection(names)
        if not found:
            raise SelectionError(f"{quoted(pattern)} matches no component{nearest(pattern, names)}")
        chosen |= found
    return [name for name in names if name in chosen]


def _check_shapes(one: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    """Raise `InputError` where two inputs cannot be exchanged for one another."""
    if one.keys() != other.keys():
        raise InputError(
            f"the clean input has {', '.join(one)}, the corrupt one {', '.join(other)}: give the same names"
        )
    for name, value in one.items():
        if isinstance(value, Tensor) and value.shape != getattr(other[name], "shape", None):
            raise InputError(
                f"{name!r} has shape {list(value.shape)} in the clean input and {_shape(other[name])} in the "
                "corrupt one: a path is patched between inputs of one shape, so give prompts of equally many tokens"
            )


def _shape(value: Any) -> str:
    return str(list(value.shape)) if isinstance(value, Tensor) else f"none ({type(value).__name__})"
