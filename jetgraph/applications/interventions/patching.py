"""What happens to the output when a part of the model is fed from another input, along one path."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from jetgraph.algebra.outline import SINK, Split
from jetgraph.applications.interventions.estimates import estimated, is_estimated
from jetgraph.applications.interventions.network import At, logits_at
from jetgraph.applications.interventions.others import Pair, Source, read_together
from jetgraph.applications.interventions.ports import Names, Port, component_of, ports
from jetgraph.applications.interventions.routes import Edge, replaced, routed
from jetgraph.applications.interventions.targets import Readout, Target
from jetgraph.applications.maps import has_place, layer_map, without
from jetgraph.applications.readout import Texts
from jetgraph.applications.results import Cell, Result, Shown
from jetgraph.applications.subject import Inputs, Model, split_subject, subject
from jetgraph.errors import InputError, check
from jetgraph.export.precision import own_types
from jetgraph.export.waiting import progress
from jetgraph.residual import one_look
from jetgraph.running.memory import check_memory

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
    estimates: Tensor | None = None
    """With a screen, the effects to first order [senders, receivers, examples], of which the largest were patched; NaN
    as for `effects`, and where there is none."""
    tokens: Texts = ()
    """By example, the texts of the clean input's tokens; none where it has no tokens."""

    @property
    def note(self) -> str:
        """With a screen, how many edges were patched, and how far their estimates were right."""
        if self.estimates is None:
            return ""
        sizes, exact = self.estimates.mean(-1), self.effects.nanmean((-2, -1))
        patched = ~exact.isnan()
        both = patched & ~sizes.isnan()
        left = sizes[~patched & ~sizes.isnan()].abs()
        text = (
            f"{int(patched.sum())} of {int((patched | ~sizes.isnan()).sum())} edges were patched, those of the largest "
            "effect to first order (attribution patching)"
        )
        if bool(both.any()):
            text += f"; the estimates of these are off by {float((sizes - exact)[both].abs().max()):.2g} at most"
        return text + (f", the largest of those left out is {float(left.max()):.2g}" if len(left) else "")

    @property
    def title(self) -> str:
        """What was patched."""
        several = len(self.clean) > 1
        own = f"the {len(self.clean)} clean inputs" if several else "the clean input"
        clean = f"{float(self.clean.nanmean()):.4g} on {own}"
        means = "senders at their mean over the corrupt ones"
        ones = f"one{'s' * several}"
        other = means if self.corrupt is None else f"{float(self.corrupt.nanmean()):.4g} on the corrupt {ones}"
        return f"{self.model}: path patching, mean change of the {self.what}, {clean} and {other}"

    def columns(self) -> Mapping[str, Sequence[Cell]]:
        """sender, receiver, effect along the direct path, its share of corrupt − clean, and the sender's total effect;
        with a screen the estimate, and no effect of those that were not patched.

        Means over examples and places.
        """
        effects, totals = self.effects.nanmean((-2, -1)), self.totals.nanmean((-2, -1))
        span = 0.0 if self.corrupt is None else float((self.corrupt - self.clean).nanmean())
        guesses = torch.full_like(effects, torch.nan) if self.estimates is None else self.estimates.mean(-1)
        places = (~(effects.isnan() & guesses.isnan())).nonzero().tolist()
        numbers = [_number(effects[i, j]) for i, j in places]
        columns: dict[str, list[Cell]] = {
            "sender": [self.senders[i] for i, _ in places],
            "receiver": [self.receivers[j] for _, j in places],
            "effect": list(numbers),
            "share": [number / span if span and number is not None else None for number in numbers],
            "total": [_number(totals[i]) for i, _ in places],
        }
        return (
            columns if self.estimates is None else {**columns, "estimate": [_number(guesses[i, j]) for i, j in places]}
        )

    def shown(self) -> Shown:
        """The largest effect first."""
        return Shown(keep=lambda row: row["effect"] is not None, first=("effect",))

    def figure(self) -> Figure:
        """Heat map: effect of each sender by way of each receiver; beside it, the sender's total effect.

        Of many senders, a map by block and head for each of the receivers of the largest effect, and one of the total;
        where they are no branches and heads, those `LARGEST` of each that have the largest effects.
        """
        from matplotlib.figure import Figure

        effects, totals = self.effects.nanmean((-2, -1)), self.totals.nanmean((-2, -1)).unsqueeze(1)
        sizes = effects.nan_to_num().abs()
        if all("@" in sender for sender in self.senders):
            return self._by_position(effects, totals[:, 0], sizes.amax(0))
        if layer_map(dict.fromkeys(self.senders, 0.0)) is not None:
            shown = [at for at, sender in enumerate(self.senders) if has_place(sender)]
            return self._maps(effects, totals[:, 0], sizes[shown].amax(0))
        rows, columns = _largest(sizes.amax(1)), _largest(sizes.amax(0))
        effects, totals = effects[rows][:, columns], totals[rows]
        senders, receivers = (
            [names[at] for at in some] for names, some in ((self.senders, rows), (self.receivers, columns))
        )
        wide, high = len(receivers), len(senders)
        more = "".join(
            f"; {number} of {len(every):,} {what}"
            for number, every, what in ((high, self.senders, "senders"), (wide, self.receivers, "receivers"))
            if number < len(every)
        )
        figure = Figure(figsize=(4 + 0.35 * wide, 2.2 + 0.3 * high), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=[max(wide, 4), 1])
        limit = float(torch.cat([effects.flatten(), totals.flatten()]).nan_to_num().abs().max()) or 1.0
        for axes, values in ((left, effects), (right, totals)):
            image = axes.imshow(values.numpy(), cmap="RdBu", vmin=-limit, vmax=limit, aspect="auto")
        left.set_xticks(range(wide), receivers, rotation=90, fontsize=8, parse_math=False)
        left.set_yticks(range(high), senders, fontsize=8, parse_math=False)
        left.set_xlabel("receiver (blank: not after the sender)")
        left.set_ylabel("sender, from the corrupt input")
        right.set_xticks([0], ["all ways"], rotation=90, fontsize=8)
        figure.colorbar(image, ax=[left, right], label="change on the clean input (logits)")
        figure.suptitle(f"{self.model}: {self.what}, by direct path{more}", fontsize=10, parse_math=False)
        return figure

    @own_types()
    def _by_position(self, effects: Tensor, totals: Tensor, sizes: Tensor) -> Figure:
        """Senders by component and position: a map for each of the receivers of the largest effect, and of all ways."""
        from matplotlib.figure import Figure

        places = [sender.rpartition("@") for sender in self.senders]
        names, columns = list(dict.fromkeys(name for name, _, _ in places)), sorted({int(at) for _, _, at in places})
        cells = [(names.index(name), columns.index(int(at))) for name, _, at in places]
        labels = [str(at) if len(self.tokens) != 1 else f"{at}  {self.tokens[0][at]}" for at in columns]
        panels = self._panels(effects, totals, sizes)
        limit = float(torch.cat([values for _, values in panels]).nan_to_num().abs().max()) or 1.0
        wide = 1.5 + 0.28 * len(columns)
        figure = Figure(figsize=(1.5 + wide * len(panels), 2 + 0.2 * len(names)), layout="constrained")
        every = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
        for axes, (label, values) in zip(every, panels, strict=True):
            grid = torch.full((len(names), len(columns)), torch.nan, dtype=torch.float64)
            grid[tuple(torch.tensor(cells).T)] = values
            image = axes.imshow(grid.numpy(), cmap="RdBu", vmin=-limit, vmax=limit, aspect="auto", origin="lower")
            axes.set_xticks(range(len(columns)), labels, fontsize=7, rotation=90, parse_math=False)
            axes.set_yticks(range(len(names)), names, fontsize=7, parse_math=False)
            axes.set_xlabel("position of the sender")
            axes.set_title(label, fontsize=8, parse_math=False)
        figure.colorbar(image, ax=list(every), label="change on the clean input (logits)")
        more = self._of_receivers(panels)
        figure.suptitle(f"{self.model}: {self.what}, by direct path{more}", fontsize=10, parse_math=False)
        return figure

    def _of_receivers(self, panels: Sequence[Any]) -> str:
        """How many receivers have a panel, where not all have."""
        number = len(panels) - 1
        return f"; {number} of {len(self.receivers):,} receivers" if number < len(self.receivers) else ""

    def _panels(self, effects: Tensor, totals: Tensor, sizes: Tensor) -> list[tuple[str, Tensor]]:
        """The senders' effects by way of the receivers of the largest, and by all ways."""
        best = sizes.argsort(descending=True, stable=True)[:PANELS].tolist()
        return [(f"by way of {self.receivers[at]}", effects[:, at]) for at in best] + [("all ways", totals)]

    def _maps(self, effects: Tensor, totals: Tensor, sizes: Tensor) -> Figure:
        """Senders by block and head: a map for each of the receivers of the largest effect, and one of all ways."""
        from matplotlib.figure import Figure

        panels = self._panels(effects, totals, sizes)
        limit = float(torch.cat([values for _, values in panels]).nan_to_num().abs().max()) or 1.0
        figure = Figure(figsize=(1.5 + 4.5 * len(panels), 6), layout="constrained")
        every = figure.subplots(1, len(panels), squeeze=False)[0]
        images = [
            cells.draw(axes, limit, label)
            for axes, (label, values) in zip(every, panels, strict=True)
            if (cells := layer_map(dict(zip(self.senders, values.tolist(), strict=True)))) is not None
        ]
        figure.colorbar(images[0], ax=list(every), label="change on the clean input (logits)")
        more = "" if self.estimates is None else "; blank: not patched"
        more += self._of_receivers(panels) + without(self.senders)
        figure.suptitle(f"{self.model}: {self.what}, by direct path{more}", fontsize=10, parse_math=False)
        return figure


def _number(value: Tensor) -> float | None:
    """A number for a cell; None where there is none."""
    return None if value.isnan() else float(value)


LARGEST = 40
"""Senders and receivers of a picture at most."""

PANELS = 3
"""Receivers that have a map of their own."""


def _largest(sizes: Tensor) -> list[int]:
    """Places of the largest of some sizes, in their own order."""
    return sorted(sizes.argsort(descending=True, stable=True)[:LARGEST].tolist())


@torch.inference_mode(False)
@torch.no_grad()
@own_types()
@one_look()
def patch(
    model: Model,
    clean: Inputs,
    corrupt: Inputs,
    *,
    values: Source = "prompt",
    senders: Names | None = None,
    receivers: Names | None = None,
    screen: int | None = None,
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

    With `logits` as receiver, step 2 is the decoder itself. A receiver `L3.attn.q`, `.k` or `.v` (of a head,
    `L3.attn.head2.q`) sees that stream by its queries, keys or values alone. The total effect of s (activation
    patching) replaces s and lets everything after it run.

    Parameters
    ----------
    clean, corrupt
        Two inputs of the same shape, or one prompt and several to take values from in turn; with `values="mean"` the
        corrupt ones may be of any length and number.
    values
        What senders take: `prompt`, the values that they have on the corrupt input (resample ablation), or `mean`, the
        mean of these over all its tokens but padding (mean ablation), at every position.
    senders, receivers
        Names or globs over branches, their parts, and for senders the encoder's sources; `logits` is a receiver, and so
        are queries, keys and values of attention. `L0.mlp@3` is one position, `L0.mlp@-1` the last, `L0.mlp@*` each by
        itself. All pairs with the receiver after the sender are evaluated, which takes a part of a forward pass each;
        many go side by side. By default all components, but no source that is the same on both inputs.
    screen
        How many pairs are evaluated: those with the largest effects to first order, which one gradient pass estimates
        for all pairs (attribution patching). The result has the estimates too, and says how far off they were.
    target
        A token, a pair of tokens for the difference of their logits, or a list with a token per example, or a pair of
        such lists; the model's top token on the clean input unless given; of features, the direction of the clean
        output.
    position, split, tokenizer, memory
        As in `ablate`.

    Raises
    ------
    InputError
        Inputs of different shapes, no receiver that comes after a sender, or a position that there is not.
    SelectionError
        A name that is no component.
    """
    check(patch, locals())
    if screen is not None and screen < 1:
        raise InputError(
            f"screen={screen} leaves nothing to patch: give the number of pairs, 1 or more, or leave it out"
        )
    check_memory(memory)
    asked = [name for some in (senders, receivers) if some for name in ([some] if isinstance(some, str) else some)]
    studied = split_subject(
        subject(model, read_together(clean, corrupt), tokenizer), split, [component_of(name) for name in asked]
    )
    pair = Pair.of(studied, clean, corrupt, values)
    readout = Readout.of(pair.one, position, target, studied.tokenizer)
    sending, receiving, edges = _asked(pair, senders, receivers)
    guesses = None if screen is None else _guesses(pair, edges, readout, sending, receiving)
    if guesses is not None and screen is not None:
        edges = _largest_edges(edges, guesses, sending, receiving, screen)
    effects, totals = _measured(pair, edges, sending, receiving, readout, memory, every=screen is None)
    corrupted = None
    if values == "prompt":
        logits = logits_at(pair.given.forward, pair.given.places(position))
        corrupted = readout.without_padding(readout.logit(logits))
    return Patching(
        studied.graph.title,
        readout.name,
        tuple(map(str, sending)),
        tuple(map(str, receiving)),
        effects,
        totals,
        readout.without_padding(readout.logit(readout.clean)),
        corrupted,
        guesses,
        readout.texts(pair.one),
    )


def _asked(pair: Pair, senders: Names | None, receivers: Names | None) -> tuple[list[Port], list[Port], list[Edge]]:
    """Senders and receivers in the order of the stream, and each sender with the receivers after it."""
    one = pair.one
    steps = {**one.steps, SINK: len(one.graph.outline.steps) + 1}
    differing = [Port(alias) for alias, step in one.steps.items() if step or pair.differs(alias)]
    sending = differing if senders is None else ports(senders, list(one.steps), one)
    after = [alias for alias, step in steps.items() if step]
    receiving = list(map(Port, after)) if receivers is None else ports(receivers, after, one, receiving=True)
    return sending, receiving, _edges(sending, receiving, steps)


def _measured(
    pair: Pair,
    edges: Sequence[Edge],
    sending: Sequence[Port],
    receiving: Sequence[Port],
    readout: Readout,
    memory: int | None,
    *,
    every: bool,
) -> tuple[Tensor, Tensor]:
    """Effects and totals, of every sender or of those alone that have an edge; NaN elsewhere."""
    effects = torch.full((len(sending), len(receiving), *readout.tokens.shape), torch.nan, dtype=torch.float64)
    totals = torch.full((len(sending), *readout.tokens.shape), torch.nan, dtype=torch.float64)
    some = {sender for sender, _ in edges}
    used = [sender for sender in sending if every or sender in some]
    places = [{port: place for place, port in enumerate(listed)} for listed in (sending, receiving)]
    with progress(total=len(edges) + len(used), desc="patching", unit="replacements") as bar:
        for sender, receiver, change in _changes(pair, used, edges, readout, memory):
            if receiver is None:
                totals[places[0][sender]] = change
            else:
                effects[places[0][sender], places[1][receiver]] = change
            bar.update()
    return effects, totals


def _edges(sending: Sequence[Port], receiving: Sequence[Port], steps: Mapping[str, int]) -> list[Edge]:
    """Senders with the receivers after them."""
    edges = [
        (sender, receiver)
        for sender in sending
        for receiver in receiving
        if steps[sender.alias] < steps[receiver.alias]
    ]
    if not edges:
        raise InputError(
            f"none of the receivers ({', '.join(map(str, receiving))}) comes after a sender "
            f"({', '.join(map(str, sending))}) on the stream"
        )
    return edges


def _guesses(
    pair: Pair, edges: Sequence[Edge], readout: Readout, senders: Sequence[Port], receivers: Sequence[Port]
) -> Tensor:
    """Effects to first order [senders, receivers, examples], means over places; NaN where there is none."""
    guesses = torch.full((len(senders), len(receivers), readout.tokens.shape[0]), torch.nan, dtype=torch.float64)
    known = [edge for edge in edges if all(is_estimated(port, pair.one) for port in edge)]
    places = readout.tokens.shape[1] if readout.counted is None else readout.counted.sum(1)
    for (sender, receiver), change in estimated(pair, known, readout).items():
        guesses[senders.index(sender), receivers.index(receiver)] = change / places
    return guesses


def _largest_edges(
    edges: Sequence[Edge], guesses: Tensor, senders: Sequence[Port], receivers: Sequence[Port], screen: int
) -> list[Edge]:
    """The pairs that are patched: those that no estimate tells of first, then the largest."""
    sizes = {
        edge: float(guesses[senders.index(edge[0]), receivers.index(edge[1])].mean().abs().nan_to_num(torch.inf))
        for edge in edges
    }
    kept = set(sorted(edges, key=lambda edge: -sizes[edge])[:screen])
    return [edge for edge in edges if edge in kept]


def _changes(
    pair: Pair, sending: Sequence[Port], edges: Sequence[Edge], readout: Readout, memory: int | None
) -> Iterator[tuple[Port, Port | None, Tensor]]:
    """The change [examples, places] by sender and receiver, and by sender when it is replaced (None)."""
    same = {sender for sender in sending if not pair.differs(sender.alias)}
    # What enters in mid-stream reads nothing of it.
    still = pair.one.graph.injections
    asked: Iterable[tuple[Port, Port | None]] = (*((sender, None) for sender in sending), *edges)
    for sender, receiver in asked:
        if sender in same or (receiver is not None and receiver.alias in still):
            yield sender, receiver, readout.without_padding(readout.unchanged)
    for sender, logits in replaced(pair, [one for one in sending if one not in same], readout, memory):
        yield sender, None, readout.without_padding(readout.change(logits))
    rest = [edge for edge in edges if edge[0] not in same and edge[1].alias not in still]
    for (sender, receiver), logits in routed(pair, rest, readout, memory):
        yield sender, receiver, readout.without_padding(readout.change(logits))
