"""What happens to the output when a part of the model is taken away.

The two questions behind an attribution are asked apart. The *direct* effect of a term is read off the expansion: the
output without it. The effect *through the network* is measured: a branch is scaled or replaced, and everything after
it is computed anew. Where the two agree, nothing later has made up for the branch or relied on it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from jetgraph.algebra.expansion import Expansion
from jetgraph.algebra.outline import SINK, Split
from jetgraph.algebra.paths import Path
from jetgraph.algebra.selection import Pattern, Selection, select
from jetgraph.applications.interventions.network import At, Network
from jetgraph.applications.interventions.others import Pair, Source, read_together
from jetgraph.applications.interventions.pictures import name_points
from jetgraph.applications.interventions.ports import Port
from jetgraph.applications.interventions.routes import routed, sent, straight
from jetgraph.applications.interventions.targets import Readout, Target
from jetgraph.applications.maps import layer_map, without
from jetgraph.applications.readout import Texts, token_text
from jetgraph.applications.results import Cell, Result, Shown
from jetgraph.applications.subject import Inputs, Model, expanded
from jetgraph.compilation import compile
from jetgraph.errors import BudgetError, InputError, SelectionError, amount, big, check, quoted, renamed
from jetgraph.export.precision import own_types
from jetgraph.export.waiting import progress
from jetgraph.layout.colours import OTHER
from jetgraph.residual import one_look
from jetgraph.running.copies import Change as Replacing
from jetgraph.running.memory import check_memory, give_back, suited

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Each = TypeVar("Each")

PATH_BUDGET = 10_000
"""How many paths are ablated one by one."""

WORKED_ON = 2**21
"""Bytes of logits in float64 that are taken off the output or measured at once, beside those that are returned."""

WORKED_ON_LAUNCHED = 2**28
"""The same on an accelerator."""

LARGEST_SCALE = 1e30
"""What paths may be multiplied by, at most."""

TOGETHER = "together"
"""Name of the joint ablation in `Ablation.outputs` and its table."""


@dataclass(frozen=True, eq=False)
class Outputs:
    """Logits [examples, places, vocabulary] after an ablation, at the positions that were looked at."""

    direct: Tensor
    """output − (1 − scale) · term."""
    through: Tensor | None
    """What the network gives with the branches scaled; None for a path without one."""


@dataclass(frozen=True)
class Change:
    """What an ablation does to the logits at one place, or to an encoder's features."""

    logit: float
    """Change of the target's logit, or of the pair's difference; of features, of their length along the direction."""
    centred: float | None = None
    """The same of centred logits, which a shift of all of them leaves as they are; None of features."""
    kl: float | None = None
    """KL(model ‖ ablated) in nats; None of features."""
    top: str | None = None
    """The token that is then the most probable one; None of features."""
    distance: float | None = None
    """‖ablated − output‖ / ‖output‖ of features; None of logits."""
    cosine: float | None = None
    """Of the angle between features before and after; None of logits."""


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
    """What paths are multiplied by; where they take other values, it is 0."""
    what: str
    """The quantity whose change is told, such as `logit of ' the'`."""
    effects: tuple[Effect, ...]
    """By path, example and position; those of all paths together come last where there are several."""
    output: Tensor
    """The model's own logits, [examples, places, vocabulary]."""
    outputs: Mapping[str, Outputs]
    """Logits after each ablation by path; `together` is the key of all at once."""
    values: Source | None = None
    """What paths are replaced by, their values on another `prompt` or the `mean` over others; None: they are scaled."""
    tokens: Texts = ()
    """By example, the texts of the input's tokens; none where it has no tokens."""

    @property
    def title(self) -> str:
        """What was ablated."""
        return (
            f"{self.model}: change of the {self.what} with a path {self._how}, directly (predicted) and through the "
            "network"
        )

    @property
    def note(self) -> str:
        """Where logits move together, which the change of one of them does not tell."""
        changes = [effect.actual or effect.predicted for effect in self.effects]
        pairs = [(change.logit, change.centred) for change in changes if change.centred is not None]
        together = sum(abs(logit - centred) > abs(centred) for logit, centred in pairs)
        if not together:
            return ""
        return (
            f"in {together:,} of {amount(len(pairs), 'row')} the logits of all tokens move together by more than this "
            "one does against them, which changes no probability: files have its change against their mean as well "
            "(actual_centred)"
        )

    @property
    def _how(self) -> str:
        """What was done to a path."""
        if self.values is not None:
            return "at its mean over other inputs" if self.values == "mean" else "at its value on another input"
        return "removed" if self.scale == 0 else f"scaled by {self.scale:g}"

    @property
    def features(self) -> bool:
        """The output is features, as an encoder's is, and no logits."""
        return any(effect.predicted.kl is None for effect in self.effects)

    def columns(self) -> Mapping[str, Sequence[Cell]]:
        """path, example, position, target; then predicted and actual change: see `Change` for what each one is. KL and
        top tokens of logits, distance and cosine of features.
        """
        columns: dict[str, list[Cell]] = {
            name: [getattr(effect, name) for effect in self.effects]
            for name in ("path", "example", "position", "target")
        }
        more = ("distance", "cosine") if self.features else ("centred", "kl", "top")
        for name, suffix in (("logit", ""), *((one, f"_{one}") for one in more)):
            columns[f"predicted{suffix}"] = [getattr(effect.predicted, name) for effect in self.effects]
            columns[f"actual{suffix}"] = [
                None if effect.actual is None else getattr(effect.actual, name) for effect in self.effects
            ]
        return columns

    def shown(self) -> Shown:
        """The largest change first."""
        ends = ("_distance", "_cosine") if self.features else ("_kl", "_top")
        names = ("path", "predicted", "actual", f"predicted{ends[0]}", f"actual{ends[0]}", f"actual{ends[1]}")
        several = len({(effect.example, effect.position) for effect in self.effects}) > 1
        # One target is in the title.
        more = ("target",) if len({effect.target for effect in self.effects}) > 1 else ()
        return Shown(("example", "position", *more, *names) if several else names, first=("predicted", "actual"))

    def figure(self) -> Figure:
        """Scatter: predicted against actual change, one point per path, example and position. Of many branches
        and heads, beside it the actual change as a map, a row a block (means over examples and positions).
        """
        from matplotlib.figure import Figure

        told = "change of the length" if self.features else "change of the logit"
        points = [
            (one.path, one.predicted.logit, one.actual.logit)
            for one in self.effects
            if one.actual is not None and one.path != TOGETHER
        ]
        changes: dict[str, list[float]] = {}
        for path, _, change in points:
            changes.setdefault(path.partition(" > ")[0], []).append(change)
        cells = layer_map({name: sum(some) / len(some) for name, some in changes.items()})
        figure = Figure(figsize=(6.5 if cells is None else 12.5, 6), layout="constrained")
        axes, *beside = [figure.subplots()] if cells is None else figure.subplots(1, 2)
        for other in beside:
            assert cells is not None
            limit = float(np.nanmax(np.abs(cells.values))) or 1.0
            figure.colorbar(cells.draw(other, limit, f"actual {told}{without(changes)}"), ax=other)
        predicted, actual = [point[1] for point in points], [point[2] for point in points]
        ends = [min((*predicted, *actual, 0.0)), max((*predicted, *actual, 0.0))]
        axes.plot(ends, ends, color=OTHER, linewidth=0.8, label="predicted = actual")
        axes.axhline(0, color="lightgrey", linewidth=0.6, zorder=0)
        axes.axvline(0, color="lightgrey", linewidth=0.6, zorder=0)
        axes.scatter(predicted, actual, s=18)
        name_points(points, axes)
        end = " on its way to the output" if self.values is not None else " from the output"
        axes.set_xlabel(f"predicted: the term {self._how}{end} ({told})")
        axes.set_ylabel(f"actual: its branches {self._how} in the network ({told})")
        axes.set_title(f"{self.model}: {self.what}", fontsize=10, parse_math=False)
        axes.legend(fontsize=8)
        return figure


@renamed(paths="path")
@torch.no_grad()
@own_types()
@one_look()
def ablate(
    model: Model | Expansion,
    path: Pattern | None,
    inputs: Inputs,
    *,
    scale: float = 0.0,
    corrupt: Inputs | None = None,
    values: Source | None = None,
    target: Target | None = None,
    position: At = "last",
    split: Split | None = None,
    tokenizer: Any | None = None,
    memory: int | None = None,
) -> Ablation:
    """Remove, scale or replace paths, and compare the predicted effect with the actual one.

    For each path:

    - predicted, the direct effect: output − (1 − scale) · term. With the default expansion (recipe `components`, norms
      of the stream and of the decoder frozen) this is direct logit attribution, and exact.
    - actual, through the network: the branches that the path passes (for an atom, that branch; for a path without a
      branch, its source) are multiplied by `scale` in the forward pass, and everything after them is computed anew. A
      path that is no more than a bias of a skip, a site or the decoder, or what a concatenation adds, has none.

    With `corrupt`, a component takes the value that it has on other inputs: in the network for the actual effect; on
    its direct way to the decoder alone for the predicted one, all other branches held, as in a patch with the receiver
    `logits`.

    All paths that have an actual effect are ablated together too. They come in the last rows, as `together`.

    Parameters
    ----------
    model
        A model, a graph, or an expansion of one, whose terms are then those that are removed. For a part of a split
        branch whose last layer is followed by a norm, the denominator is held at the whole branch's value.
    path
        What `jetgraph.select` takes; None is every term of the expansion, a systematic scan of all components.
    inputs
        A prompt, prompts, token ids, or inputs by name.
    scale
        0 removes, 2 doubles.
    corrupt, values
        Inputs whose values components take, and how, as in `patch`: `prompt`, from one of the same shape (resample
        ablation), which it is unless given, or `mean`, the mean over all tokens of any (mean ablation).
    target
        The token whose logit is measured: an id or a text that is one token; a pair for the difference of two logits; a
        list for one token per example. By default the model's top token at each place; where the output is features, as
        of an encoder, the length along the direction of the model's own output there.
    position
        Of the sequence, negative ones counted from its end, or one for each example; None is all of them, each with a
        row of its own. `last` is the last one of each example, of padded ones the last that their attention mask
        counts.
    split
        Branches to cut first, as in `jetgraph.expand`; `heads` to scan attention heads.
    memory
        Bytes that ablations which go through the network side by side may take; unless given 16 MiB on a CPU, and a
        quarter of what is free on an accelerator. Where elements of a batch see each other, or the trace holds their
        number, they go one by one.

    Raises
    ------
    InputError
        A target or position that does not exist, a split of what is expanded already, `scale` and `corrupt` at once, or
        a path of several components that is to take other values.
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
    >>> ablation = ablate(model, "L0.mlp > logits", torch.tensor([[1.0, 0.0]]), target=0)
    >>> effect = ablation.effects[0]  # of (1 + 2)(1 + 3) = 12, the term is 2; without the branch 1 + 3 are left
    >>> effect.predicted.logit, effect.actual.logit
    (-2.0, -8.0)
    """
    check(ablate, locals())
    if not abs(scale) < LARGEST_SCALE:
        raise InputError(f"scale={quoted(scale)} is no number to multiply by: 0 removes a path, 2 doubles it")
    check_memory(memory)
    scale = float(scale)
    if corrupt is None and values is not None:
        raise InputError(f"values={quoted(values)} are those of other inputs: give these as corrupt")
    if corrupt is not None and scale:
        raise InputError(f"scale={scale:g} and corrupt= are two ways of ablation: leave one of the two out")
    traced_on = inputs if corrupt is None else read_together(inputs, corrupt)
    subject, expansion = expanded(model, traced_on, split, tokenizer, path)
    chosen = _chosen(expansion, "**" if path is None else path, inputs)
    if chosen.count() > PATH_BUDGET:
        raise BudgetError(
            f"{big(chosen.count())} paths are selected, more than the {PATH_BUDGET:,} that are ablated one by one: "
            f"select {PATH_BUDGET:,} or fewer (path=, --path)"
        )
    pair = None if corrupt is None else Pair.of(subject, inputs, corrupt, values or "prompt")
    network = Network(subject.graph, subject.inputs(inputs)) if pair is None else pair.one
    readout = Readout.of(network, position, target, subject.tokenizer)
    passed = {path: _passed(expansion, path, network.steps) for path in chosen}
    texts, source = readout.texts(network), None if pair is None else pair.source
    if pair is None:
        outputs = _scaled(expansion, passed, network, readout, scale, memory)
    else:
        outputs = _exchanged(pair, passed, readout, memory)
    # What passes keep is let go of before their outputs are measured.
    del network, pair
    effects = tuple(_effects(outputs, readout))
    return Ablation(subject.graph.title, scale, readout.name, effects, readout.clean, outputs, source, texts)


Passed = Mapping[Path, tuple[str, ...]]
"""The components that each path goes through."""


def _together(passed: Passed) -> tuple[str, ...]:
    """The components of all paths, where several have some."""
    several = sum(map(bool, passed.values())) > 1
    return tuple(dict.fromkeys(alias for aliases in passed.values() for alias in aliases)) if several else ()


def _chosen(expansion: Expansion, path: Pattern, inputs: Inputs) -> Selection:
    """The paths that are asked for; most functions take the prompt where this one takes them."""
    try:
        return select(expansion, path)
    except SelectionError as error:
        if not isinstance(path, str) or not isinstance(inputs, str):
            raise
        try:
            select(expansion, inputs)
        except SelectionError:
            raise error from None
        raise InputError(
            f"ablate takes the path first, then the prompt: ablate(model, {quoted(inputs)}, {quoted(path)})"
        ) from None


def _scaled(
    expansion: Expansion, passed: Passed, network: Network, readout: Readout, scale: float, memory: int | None
) -> dict[str, Outputs]:
    """Logits with each path scaled, and with all of them, at the places that are looked at."""
    paths, joint = list(passed), _together(passed)

    def scaled(own: Tensor) -> Tensor:
        return own * scale

    through = _through([*passed.values(), joint], network, readout, lambda alias: scaled, memory)
    outputs: dict[str, Outputs] = {}
    clean = readout.clean.double()
    removed, direct = torch.zeros_like(clean), _block(len(paths), clean)
    values = compile(expansion, paths, budget=len(paths)).at(readout.places, **network.inputs)
    for start, some in _portions(paths, readout):
        shares = direct[start : start + len(some)]
        shares.copy_(values.each(some).view(shares.shape)).mul_(1 - scale)
        for path, share in zip(some, shares, strict=True):
            if passed[path]:
                removed += share
        torch.sub(clean, shares, out=shares)
        for path, logits in zip(some, shares, strict=True):
            outputs[str(path)] = Outputs(logits, through.get(passed[path]))
    if joint:
        outputs[TOGETHER] = Outputs(clean - removed, through[joint])
    return outputs


def _exchanged(pair: Pair, passed: Passed, readout: Readout, memory: int | None) -> dict[str, Outputs]:
    """Logits with each component at its value of other inputs, and with all of them."""
    long = next((path for path, aliases in passed.items() if len(aliases) > 1), None)
    if long is not None:
        raise InputError(
            f"{str(long)!r} goes through {len(passed[long])} components, and other values are put in one: take paths "
            "of one component, as the default expansion has, or scale= in the place of corrupt="
        )
    joint = _together(passed)
    through = _through([*passed.values(), joint], pair.one, readout, lambda alias: sent(pair, Port(alias)), memory)
    edges = [(Port(aliases[0]), Port(SINK)) for aliases in dict.fromkeys(passed.values()) if aliases]
    clean = readout.clean.double()
    direct = {
        edge[0].alias: row.copy_(logits)
        for row, (edge, logits) in zip(_block(len(edges), clean), routed(pair, edges, readout, memory), strict=True)
    }
    outputs = {
        str(path): Outputs(direct[aliases[0]] if aliases else clean, through.get(aliases))
        for path, aliases in passed.items()
    }
    if joint:
        outputs[TOGETHER] = Outputs(straight(pair, list(map(Port, joint)), readout).double(), through[joint])
    return outputs


def _through(
    several: Iterable[tuple[str, ...]],
    network: Network,
    readout: Readout,
    change: Callable[[str], Replacing],
    memory: int | None,
) -> dict[tuple[str, ...], Tensor]:
    """Logits with the components of each changed in the network; of what has none there are none."""
    chosen = [aliases for aliases in dict.fromkeys(several) if aliases]
    outcomes: dict[tuple[str, ...], Tensor] = {}
    with progress(total=len(chosen), desc="ablating", unit="components") as bar:
        changes = [{alias: change(alias) for alias in aliases} for aliases in chosen]
        rows = _block(len(chosen), readout.clean)
        for row, (number, logits) in zip(
            rows, network.outcomes(changes, readout.read, readout.places, memory), strict=True
        ):
            outcomes[chosen[number]] = row.copy_(logits)
            bar.update()
    return outcomes


def _block(count: int, like: Tensor) -> Tensor:
    """Room for so many outputs. What is returned lies in one piece: between what a pass frees, it would keep the
    allocator from using that again.
    """
    return like.new_empty((count, *like.shape))


def _passed(expansion: Expansion, path: Path, components: Collection[str]) -> tuple[str, ...]:
    """The components that a path goes through: its branches, else its source where that can be replaced."""
    entry = expansion.start(path)
    hops = [path.source, *path.sites] if entry.is_atom else path.sites
    branches = tuple(hop.alias for hop in hops if expansion.passage(hop.alias).site.role == "branch")
    return branches or ((path.source.alias,) if path.source.alias in components else ())


def _effects(outputs: Mapping[str, Outputs], readout: Readout) -> Iterator[Effect]:
    """What each path's ablation does, at each place."""
    # One after the other: what is measured at once is held once.
    predicted = [*_changes([one.direct for one in outputs.values()], readout)]
    actual = _changes([one.through for one in outputs.values() if one.through is not None], readout)
    for (path, one), direct in zip(outputs.items(), predicted, strict=True):
        through = {} if one.through is None else next(actual)
        for place, change in direct.items():
            yield Effect(path, place[0], readout.position(*place), readout.text(*place), change, through.get(place))


def _changes(several: Sequence[Tensor], readout: Readout) -> Iterator[dict[tuple[int, int], Change]]:
    """What has changed in each of several outputs, by (example, place)."""
    rows = list(readout.rows())
    measures: tuple[Callable[[Tensor], Tensor], ...] = readout.change, readout.distance, readout.cosine
    if not readout.features:
        measures = readout.change, readout.centred_change, readout.divergence, _largest
    for _, some in _portions(several, readout):
        logits = torch.stack([*some])
        for numbers in zip(*(measure(logits).tolist() for measure in measures), strict=True):
            yield {(i, j): _change([each[i][j] for each in numbers], readout) for i, j in rows}


def _portions(several: Sequence[Each], readout: Readout) -> Iterator[tuple[int, Sequence[Each]]]:
    """As many at once as their logits in float64 are worked on together, and where they start."""
    most = suited(readout.clean.device, cpu=WORKED_ON, accelerator=WORKED_ON_LAUNCHED)
    size = max(1, most // (8 * max(1, readout.clean.numel())))
    for start in range(0, len(several), size):
        give_back(readout.clean.device)
        yield start, several[start : start + size]


def _largest(logits: Tensor) -> Tensor:
    return logits.argmax(-1)


def _change(numbers: Sequence[Any], readout: Readout) -> Change:
    """What was measured at one place."""
    if readout.features:
        logit, distance, cosine = numbers
        return Change(logit, distance=distance, cosine=cosine)
    logit, shifted, divergence, top = numbers
    return Change(logit, shifted, divergence, token_text(readout.tokenizer, top))
