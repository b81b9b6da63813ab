"""What happens to the output when a part of the model is fed from another input, along one path."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm import tqdm

from jetgraph.algebra.matching import named
from jetgraph.algebra.outline import SINK, Split
from jetgraph.applications.interventions.network import At, Network, logits_at
from jetgraph.applications.interventions.targets import Readout, Target
from jetgraph.applications.maps import layer_map
from jetgraph.applications.results import Cell, Result, Shown
from jetgraph.applications.subject import Inputs, Model, split_subject, subject
from jetgraph.errors import InputError, check, quoted
from jetgraph.export.precision import own_types
from jetgraph.residual import ResidualGraph
from jetgraph.running.forward import Forward

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
    asked = [name for some in (senders, receivers) if some for name in ([some] if isinstance(some, str) else some)]
    found = split_subject(subject(model, clean, tokenizer), split, asked)
    one, other = (Network(found.graph, found.inputs(inputs)) for inputs in (clean, corrupt))
    _check_shapes(one.inputs, other.inputs)
    readout = Readout.of(one, position, target, found.tokenizer)
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
        readout.without_padding(readout.logit(logits_at(other.forward, other.places(position)))),
    )


def _received(network: Network, sender: str, value: Tensor, receivers: Sequence[str]) -> Iterator[tuple[str, Forward]]:
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


def _differing(one: Network, other: Network) -> list[str]:
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
