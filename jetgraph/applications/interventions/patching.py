"""What happens to the output when a part of the model is fed from another input, along one path."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, fx
from tqdm import tqdm

from jetgraph.algebra.matching import named
from jetgraph.algebra.outline import SINK, Split
from jetgraph.applications.interventions.network import At, Network, logits_at
from jetgraph.applications.interventions.targets import Readout, Target
from jetgraph.applications.maps import layer_map
from jetgraph.applications.results import Cell, Result, Shown
from jetgraph.applications.subject import Inputs, Model, counted_tokens, split_subject, subject
from jetgraph.errors import InputError, check, quoted
from jetgraph.export.precision import own_types
from jetgraph.residual import ResidualGraph
from jetgraph.running.copies import Change, Copies
from jetgraph.running.forward import Forward
from jetgraph.running.memory import check_memory

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Names = str | Sequence[str]
"""Names or globs over aliases and module paths."""


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
    corrupt: Tensor | None
    """The same on the corrupt input; None where senders take means."""

    @property
    def title(self) -> str:
        """What was patched."""
        clean = f"{float(self.clean.nanmean()):.4g} on the clean input"
        means = "senders at their mean over the corrupt ones"
        other = means if self.corrupt is None else f"{float(self.corrupt.nanmean()):.4g} on the corrupt one"
        return f"{self.model}: path patching, mean change of the {self.what}, {clean} and {other}"

    def columns(self) -> Mapping[str, Sequence[Cell]]:
        """sender, receiver, effect along the direct path, its share of corrupt − clean, and the sender's total effect.

        Means over examples and places.
        """
        effects, totals = self.effects.nanmean((-2, -1)), self.totals.nanmean((-2, -1)).tolist()
        span = 0.0 if self.corrupt is None else float((self.corrupt - self.clean).nanmean())
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

    def shown(self) -> Shown:
        """The largest effect first."""
        return Shown(first=("effect",))

    def figure(self) -> Figure:
        """Heat map: effect of each sender by way of each receiver; beside it, the sender's total effect.

        Of many senders, a map by block and head for each of the receivers of the largest effect, and one of the total;
        where they are no branches and heads, those `LARGEST` of each that have the largest effects.
        """
        from matplotlib.figure import Figure

        effects, totals = self.effects.nanmean((-2, -1)), self.totals.nanmean((-2, -1)).unsqueeze(1)
        sizes = effects.nan_to_num().abs()
        if layer_map(dict.fromkeys(self.senders, 0.0)) is not None:
            return self._maps(effects, totals[:, 0], sizes.amax(0))
        rows, columns = _largest(sizes.amax(1)), _largest(sizes.amax(0))
        effects, totals = effects[rows][:, columns], totals[rows]
        senders, receivers = (
            [names[at] for at in some] for names, some in ((self.senders, rows), (self.receivers, columns))
        )
        wide, high = len(receivers), len(senders)
        figure = Figure(figsize=(4 + 0.35 * wide, 2.2 + 0.3 * high), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=[max(wide, 4), 1])
        limit = float(torch.cat([effects.flatten(), totals.flatten()]).nan_to_num().abs().max()) or 1.0
        for axes, values in ((left, effects), (right, totals)):
            image = axes.imshow(values.numpy(), cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
        left.set_xticks(range(wide), receivers, rotation=90, fontsize=8, parse_math=False)
        left.set_yticks(range(high), senders, fontsize=8, parse_math=False)
        left.set_xlabel("receiver (blank: not after the sender)")
        left.set_ylabel("sender, from the corrupt input")
        right.set_xticks([0], ["all ways"], rotation=90, fontsize=8)
        figure.colorbar(image, ax=[left, right], label="change on the clean input (logits)")
        figure.suptitle(f"{self.model}: {self.what}, by direct path", fontsize=10, parse_math=False)
        return figure

    def _maps(self, effects: Tensor, totals: Tensor, sizes: Tensor) -> Figure:
        """Senders by block and head: a map for each of the receivers of the largest effect, and one of all ways."""
        from matplotlib.figure import Figure

        best = sizes.argsort(descending=True, stable=True)[:PANELS].tolist()
        panels = [(f"by way of {self.receivers[at]}", effects[:, at]) for at in best] + [("all ways", totals)]
        limit = float(torch.cat([values for _, values in panels]).nan_to_num().abs().max()) or 1.0
        figure = Figure(figsize=(1.5 + 4.5 * len(panels), 6), layout="constrained")
        every = figure.subplots(1, len(panels), squeeze=False)[0]
        images = [
            cells.draw(axes, limit, label)
            for axes, (label, values) in zip(every, panels, strict=True)
            if (cells := layer_map(dict(zip(self.senders, values.tolist(), strict=True)))) is not None
        ]
        figure.colorbar(images[0], ax=list(every), label="change on the clean input (logits)")
        more = f"; {len(best)} of {len(self.receivers)} receivers" if len(best) < len(self.receivers) else ""
        figure.suptitle(f"{self.model}: {self.what}, by direct path{more}", fontsize=10, parse_math=False)
        return figure


LARGEST = 40
"""Senders and receivers of a picture at most."""

PANELS = 3
"""Receivers that have a map of their own."""


def _largest(sizes: Tensor) -> list[int]:
    """Places of the largest of some sizes, in their own order."""
    return sorted(sizes.argsort(descending=True, stable=True)[:LARGEST].tolist())


@torch.no_grad()
@own_types()
def patch(
    model: Model,
    clean: Inputs,
    corrupt: Inputs,
    *,
    values: Literal["prompt", "mean"] = "prompt",
    senders: Names | None = None,
    receivers: Names | None = None,
    target: Target | None = None,
    position: At = "last",
    split: Split | None = None,
    tokenizer: Any | None = None,
    memory: int | None = None,
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
        Two inputs of the same shape; with `values="mean"` the corrupt ones may be of any length and number.
    values
        What senders take: `prompt`, the values that they have on the corrupt input (resample ablation), or `mean`, the
        mean of these over all its tokens but padding (mean ablation), at every position.
    senders, receivers
        Names or globs over branches, their parts, and for senders the encoder's sources; `logits` is a receiver. All
        pairs with the receiver after the sender are evaluated, which takes a part of a forward pass each; many go side
        by side. By default all, but no source that is the same on both inputs.
    target
        A token, a pair of tokens for the difference of their logits, or a list with a token per example; the model's
        top token on the clean input unless given.
    position, split, tokenizer, memory
        As in `ablate`.

    Raises
    ------
    InputError
        Inputs of different shapes, or no receiver that comes after a sender.
    SelectionError
        A name that is no component.
    """
    check(patch, locals())
    check_memory(memory)
    asked = [name for some in (senders, receivers) if some for name in ([some] if isinstance(some, str) else some)]
    studied = split_subject(subject(model, clean, tokenizer), split, asked)
    one, given = (Network(studied.graph, studied.inputs(inputs)) for inputs in (clean, corrupt))
    other = _sent(one, given, values)
    readout = Readout.of(one, position, target, studied.tokenizer)
    steps = {**one.steps, SINK: len(studied.graph.outline.steps) + 1}
    sending = _differing(one, other) if senders is None else _chosen(senders, list(one.steps), studied.graph)
    receiving = [alias for alias, step in steps.items() if step]
    receiving = receiving if receivers is None else _chosen(receivers, receiving, studied.graph)
    shape = (len(sending), len(receiving), *readout.tokens.shape)
    pairs = _pairs(sending, receiving, steps)
    effects = torch.full(shape, torch.nan, dtype=torch.float64)
    totals = torch.zeros(len(sending), *readout.tokens.shape, dtype=torch.float64)
    with tqdm(total=len(pairs) + len(sending), desc="patching", disable=None, leave=False) as bar:
        for sender, receiver, change in _changes(one, other, sending, pairs, readout, memory):
            if receiver is None:
                totals[sending.index(sender)] = change
            else:
                effects[sending.index(sender), receiving.index(receiver)] = change
            bar.update()
    corrupted = readout.logit(logits_at(given.forward, given.places(position))) if values == "prompt" else None
    return Patching(
        studied.graph.title,
        readout.name,
        tuple(sending),
        tuple(receiving),
        effects,
        totals,
        readout.without_padding(readout.logit(readout.clean)),
        None if corrupted is None else readout.without_padding(corrupted),
    )


@dataclass(frozen=True, eq=False)
class Mean:
    """Components at the mean over the tokens of other inputs, in the shape that they have on one's own."""

    own: Network
    of: Network

    @property
    def forward(self) -> Forward:
        """The pass on the other inputs."""
        return self.of.forward

    def value(self, alias: str) -> Tensor:
        """What stands for a component.

        Raises
        ------
        InputError
            It has other features, or other positions that are not told apart from features.
        """
        value, like = self.of.value(alias), self.own.value(alias)
        rows = self.forward.shape(self.own.graph.traced.output)[:-1]
        tokens = value.flatten(0, 1) if len(rows) == 2 and tuple(value.shape[:2]) == rows else value
        counted = counted_tokens(self.own.graph, self.of.inputs, rows) if len(rows) == 2 else None
        if counted is not None and len(tokens) == counted.numel():
            tokens = tokens[counted.flatten().to(tokens.device)]
        mean = tokens.mean(0)
        if tuple(mean.shape) != tuple(like.shape[like.dim() - mean.dim() :]):
            raise InputError(
                f"{alias!r} has the mean {list(mean.shape)} on the corrupt inputs, and {list(like.shape)} on the clean "
                "ones: give corrupt inputs of the same length"
            )
        return mean.expand(like.shape)


def _pairs(sending: Sequence[str], receiving: Sequence[str], steps: Mapping[str, int]) -> list[tuple[str, str]]:
    """Senders with the receivers after them."""
    pairs = [(sender, receiver) for sender in sending for receiver in receiving if steps[sender] < steps[receiver]]
    if not pairs:
        raise InputError(
            f"none of the receivers ({', '.join(receiving)}) comes after a sender ({', '.join(sending)}) on the stream"
        )
    return pairs


def _sent(one: Network, given: Network, values: Literal["prompt", "mean"]) -> Network | Mean:
    """Where senders take their values from."""
    if values not in ("prompt", "mean"):
        raise InputError(f"values={quoted(values)} is unknown: choose 'prompt' or 'mean'")
    if values == "mean":
        return Mean(one, given)
    _check_shapes(one.inputs, given.inputs)
    return given


def _changes(
    one: Network,
    other: Network | Mean,
    sending: Sequence[str],
    pairs: Sequence[tuple[str, str]],
    readout: Readout,
    memory: int | None,
) -> Iterator[tuple[str, str | None, Tensor]]:
    """The change [examples, places] by sender and receiver, and by sender when it is replaced (None)."""
    same = {sender for sender in sending if torch.equal(one.value(sender), other.value(sender))}
    for sender, receiver in (*((sender, None) for sender in sending), *pairs):
        if sender in same:
            yield sender, receiver, readout.without_padding(readout.unchanged)
    changed = [sender for sender in sending if sender not in same]
    replaced = [{sender: _constant(other.value(sender))} for sender in changed]
    for number, logits in one.outcomes(replaced, readout.read, readout.places, memory):
        yield changed[number], None, readout.without_padding(readout.change(logits))
    rest = [pair for pair in pairs if pair[0] not in same]
    for sender, receiver, logits in _patched(one, other, rest, readout, memory):
        yield sender, receiver, readout.without_padding(readout.change(logits))


def _constant(value: Tensor) -> Change:
    return lambda own: value


def _patched(
    one: Network, other: Network | Mean, pairs: Sequence[tuple[str, str]], readout: Readout, memory: int | None
) -> Iterator[tuple[str, str, Tensor]]:
    """Logits by sender and receiver. Senders go side by side, and so do the values that receivers have of them."""
    receivers = dict.fromkeys(receiver for _, receiver in pairs)
    for senders in _together(one, dict.fromkeys(sender for sender, _ in pairs), receivers, readout, memory):
        wanted = [pair for pair in pairs if pair[0] in senders]
        received, ends = _received(one, other, senders, wanted, readout)
        yield from ((sender, SINK, ends[sender]) for sender in senders if sender in ends)
        rest = list(received)
        changes = [{receiver: _constant(received[sender, receiver])} for sender, receiver in rest]
        for number, logits in one.outcomes(changes, readout.read, readout.places, memory):
            yield *rest[number], logits


def _together(
    network: Network, senders: Iterable[str], receivers: Iterable[str], readout: Readout, memory: int | None
) -> Iterator[list[str]]:
    """Senders, as many at once as there is memory for, with what receivers have of each."""
    listed = list(senders)
    reach = network.reach(network.steps, readout.places)
    most = 1
    if reach is not None:
        received = sum(network.value(alias).nbytes for alias in receivers if alias != SINK)
        most = max(1, network.allowed(memory) // (reach.bytes(network.forward.sizes) + received))
    yield from (listed[start : start + most] for start in range(0, len(listed), most))


def _received(
    network: Network, other: Network | Mean, senders: Sequence[str], pairs: Sequence[tuple[str, str]], readout: Readout
) -> tuple[dict[tuple[str, str], Tensor], dict[str, Tensor]]:
    """By sender and receiver, the receiver's value when the sender's reaches it by the stream alone; and the logits
    when they reach the decoder so.
    """
    steps, wanted = network.steps, set(pairs)
    reach = network.reach(steps, readout.places) if len(senders) > 1 else None
    copies = Copies(network.forward, reach, len(senders))
    end = max(steps.values())
    first, last = min(map(steps.__getitem__, senders)), max(steps.get(receiver, end) for _, receiver in pairs)
    values: dict[tuple[str, str], Tensor] = {}
    for step in range(first, last + 1):
        # Each receiver is read while all before it are held, and is then held itself.
        here = [alias for alias, at in steps.items() if at == step]
        for alias in here:
            rows = [row for row, sender in enumerate(senders) if (sender, alias) in wanted]
            if rows:
                value = copies.rows(copies.forward.component(alias))
                values |= {(senders[row], alias): value[row].clone() for row in rows}
        _hold(copies, network, here, {row: sender for row, sender in enumerate(senders) if sender in here}, other)
    sinking = [row for row, sender in enumerate(senders) if (sender, SINK) in wanted]
    logits = readout.read(copies.forward, copies.number) if sinking else ()
    return values, {senders[row]: logits[row] for row in sinking}


def _hold(
    copies: Copies, network: Network, aliases: Iterable[str], sent: Mapping[int, str], other: Network | Mean
) -> None:
    """Components of a step keep their own values, but those that send theirs of the other input."""
    branches, held = network.graph.branches, set[fx.Node]()
    for alias in aliases:
        branch = branches.get(alias)
        rows = {row: sender for row, sender in sent.items() if sender == alias}
        if branch is None or branch.kind == "skip":
            changes = [((row,), _constant(other.value(alias))) for row in rows]
            rest = [row for row in range(copies.number) if row not in rows]
            changes += [(rest, _constant(network.value(alias)))] if rest and branch is not None else []
            if changes:
                copies.change(alias, changes)
        elif branch.node not in held:
            # Of a branch in parts all are held, which is the branch itself, but for the part that sends.
            held.add(branch.node)
            parts = {row: sender for row, sender in sent.items() if sender in branches}
            same = {row: sender for row, sender in parts.items() if branches[sender].node is branch.node}
            own = network.forward[branch.node]
            copies.put(branch.node, {row: _sending(network, other, sender, own) for row, sender in same.items()})


def _sending(network: Network, other: Network | Mean, sender: str, own: Tensor) -> Tensor:
    """A branch's value with one of its parts, or all of it, of the other input."""
    value = other.value(sender)
    return value if network.graph.branches[sender].part is None else own + (value - network.value(sender))


def _differing(one: Network, other: Network | Mean) -> list[str]:
    """Everything that can differ between two inputs: all branches, and the sources that do."""
    return [alias for alias, step in one.steps.items() if step or not torch.equal(one.value(alias), other.value(alias))]


def _chosen(wanted: Names, names: Sequence[str], graph: ResidualGraph) -> list[str]:
    """The components that are named, in the order of the stream."""
    outline = graph.outline
    paths = {one.alias: one.path for one in (*outline.sources, *outline.sites())}
    patterns = [wanted] if isinstance(wanted, str) else list(wanted)
    chosen: set[str] = set()
    for pattern in patterns:
        chosen |= {*named(pattern, paths, names, f"{quoted(pattern)} matches no component")}
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
