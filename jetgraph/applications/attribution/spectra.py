"""Spectra: what all paths of a class give a logit, class by class, whatever their number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from jetgraph.algebra.classes import By, Label, classifier, ordered
from jetgraph.algebra.expansion import Expansion
from jetgraph.algebra.outline import Split
from jetgraph.algebra.selection import Pattern, select
from jetgraph.applications.attribution.linearising import Rules, linearised
from jetgraph.applications.bars import drawn
from jetgraph.applications.interventions.network import At, Network
from jetgraph.applications.interventions.targets import Readout, Target
from jetgraph.applications.readout import Texts
from jetgraph.applications.results import SHOWN, Cell, Result, Shown
from jetgraph.applications.subject import Inputs, Model
from jetgraph.compilation.evaluation import MEMORY
from jetgraph.compilation.sums import class_sums
from jetgraph.errors import amount, check, renamed
from jetgraph.export.precision import own_types
from jetgraph.layout.colours import GIVES, OTHER, TAKES
from jetgraph.residual import one_look
from jetgraph.running.memory import check_memory

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BARS = 60
"""The most bars in a figure."""

NOTHING = 1e-6
"""Classes of a smaller share of the largest are not shown."""

BY = {
    "all": "all paths",
    "length": "sites passed",
    "last": "last branch passed",
    "first": "first branch passed",
    "source": "source",
    "layer": "block of the last branch passed",
    "pattern": "the first pattern that matches",
}
"""What the axis of classes says of those that are not of a kind of sites."""

ABREAST = 50
"""Letters that have room under the narrowest figure."""

SEEN = 1e-3
"""Bars of a smaller share of the largest are no more than a line."""


@dataclass(frozen=True, eq=False, repr=False)
class Spectrum(Result):
    """A logit as a sum over classes of paths. Made by `spectrum`."""

    model: str
    by: str
    what: str
    """The quantity that is told, such as `centred logit of ' the'`."""
    counts: Mapping[Label, int]
    """By class, in the order of the table, the exact number of paths."""
    values: Tensor
    """What each class gives, [class, example, place], in float64; NaN for padding."""
    output: Tensor
    """The quantity in the model's own output, [example, place]."""
    places: tuple[tuple[int, int, int | None], ...]
    """The rows of the table: example, place, and position of the sequence."""
    tokens: Texts = ()
    """By example, the texts of the input's tokens, padding among them; none where it has no tokens."""

    @property
    def total(self) -> Tensor:
        """Σ of the classes, [example, place]: the output, where no path and no remainder is left out."""
        return self.values.sum(0)

    @property
    def cancellation(self) -> Tensor:
        """Σ |class| / |Σ class|, [example, place]: 1 where all classes say the same, large where they cancel."""
        return self.values.abs().sum(0) / self.total.abs()

    @property
    def title(self) -> str:
        total, output = float(self.total.nanmean()), float(self.output.nanmean())
        size = float(self.values.abs().sum(0).nanmean())
        mean = "mean " if len(self.places) > 1 else ""
        paths = sum(self.counts.values())
        return (
            f"{self.model}: {mean}{self.what} by {self.by}, {amount(paths, 'path')}; Σ = {total:.4g} of "
            f"{output:.4g}, Σ|class| = {size:.4g}"
        )

    def columns(self) -> Mapping[str, Sequence[Cell]]:
        """example, position, class, value, its share of the output, and the number of paths, written out."""
        rows = [(place, number, label) for place in self.places for number, label in enumerate(self.counts)]
        values = [float(self.values[number, at[0], at[1]]) for at, number, _ in rows]
        outputs = [float(self.output[at[0], at[1]]) for at, _, _ in rows]
        return {
            "example": [at[0] for at, _, _ in rows],
            "position": [at[2] for at, _, _ in rows],
            "class": [str(label) for _, _, label in rows],
            "value": values,
            "share": [value / output if output else None for value, output in zip(values, outputs, strict=True)],
            "paths": [str(self.counts[label]) for _, _, label in rows],
        }

    def shown(self) -> Shown:
        """All classes but those next to nothing; of many that have no order, such as heads, the largest first."""
        least = self._least
        listed = len(self.counts) > SHOWN and any(isinstance(label, str) for label in self.counts)
        return Shown(
            first=("value",) if listed else (),
            keep=lambda row: not isinstance(row["value"], float) or abs(row["value"]) >= least,
            counts=("paths",),
        )

    @property
    def _least(self) -> float:
        """The size of a value that is shown."""
        return NOTHING * float(self.values.abs().nan_to_num().max())

    @property
    def note(self) -> str:
        """How many classes are next to nothing, where some are."""
        few = int((self.values.abs().nan_to_num().flatten(1).amax(1) < self._least).sum())
        return f"{amount(few, 'class')} of less than {NOTHING:g} of the largest are left out here" if few else ""

    def figure(self) -> Figure:
        """Bars: what each class gives, the mean over examples and places; of many, those of the largest size. Where
        the first or last ones are too small to be seen, they are left out.
        """
        from matplotlib.figure import Figure

        means = self.values.nanmean((1, 2)).tolist()
        bars = _seen(list(zip(map(str, self.counts), means, strict=True)))
        seen = len(bars)
        if seen > BARS:
            least = sorted((abs(value) for _, value in bars), reverse=True)[BARS - 1]
            bars = [bar for bar in bars if abs(bar[1]) >= least][:BARS]
        figure = Figure(figsize=(3 + 0.24 * max(len(bars), 8), 3.6), layout="constrained")
        axes = figure.subplots()
        places = list(range(len(bars)))
        axes.bar(places, [value for _, value in bars], color=[GIVES if v >= 0 else TAKES for _, v in bars])
        axes.axhline(0, color=OTHER, linewidth=0.6)
        # Names that have room side by side are read without turning the head.
        turned = 0 if max(len(name) for name, _ in bars) * len(bars) < ABREAST else 90
        axes.set_xticks(places, [name for name, _ in bars], rotation=turned, fontsize=8, parse_math=False)
        counted = f"{self.by} passed" if " " in self.by else f"{self.by} sites passed"
        axes.set_xlabel(BY.get(self.by, counted), parse_math=False)
        axes.set_ylabel(self.what, parse_math=False)
        axes.set_title(self.title + drawn(len(bars), seen), fontsize=8, parse_math=False, wrap=True)
        return figure


def _seen(bars: list[tuple[str, float]]) -> list[tuple[str, float]]:
    """The bars from the first to the last one that is seen."""
    least = SEEN * max((abs(value) for _, value in bars), default=0.0)
    seen = [place for place, (_, value) in enumerate(bars) if abs(value) > least]
    return bars[seen[0] : seen[-1] + 1] if seen else bars


@renamed(paths="path")
@torch.no_grad()
@own_types()
@one_look()
def spectrum(
    model: Model | Expansion,
    inputs: Inputs,
    *,
    by: By = "length",
    target: Target | None = None,
    position: At = "last",
    path: Pattern | None = None,
    rules: Rules | None = None,
    split: Split | None = None,
    memory: int = MEMORY,
    tokenizer: Any | None = None,
) -> Spectrum:
    """A logit as a sum over classes of paths: of all paths of length 3, say, or of all that end in a given head.

    With the gates of every site held at the model's own pass, the value of a path is linear along it, so the paths of a
    class are summed by dynamic programming and never listed: 2^60 of them cost some dozens of forward passes. The sum
    over the classes is the logit itself. Classes may cancel: `cancellation` and the title say by how much.

    Parameters
    ----------
    model
        A model or graph; or an expansion with linear rules, whose terms are then sorted.
    inputs
        A prompt, prompts, token ids, or inputs by name.
    by
        What paths are sorted by: `length`, a kind of sites that is counted (`attn`, `mlp`, …), `last`, `first`,
        `last attn`, `layer`, `source`, `all`; or a mapping from patterns to names of classes.
    target
        As in `jetgraph.ablate`: a token (its centred logit); a pair (the difference of two); a list with a token for
        each example. By default the model's top token; where the output is features, its own direction.
    position
        As in `jetgraph.ablate`.
    path
        Sort only those that match, as in `jetgraph.select`; then the sum over the classes is theirs.
    rules
        Which linear map stands for each site: `frozen` (unless given), `half`, `gradient`, or rules by pattern.
    split
        Branches of a model to cut first, as in `jetgraph.expand`.
    memory
        Bytes for the values that pass a site together.
    tokenizer
        For texts; a model given by name brings its own.

    Returns
    -------
    Spectrum
        One row for each class, example and place.

    Raises
    ------
    InputError
        An option is unknown, a site has a rule that is not linear, or the output is no logits.
    SelectionError
        A pattern matches nothing.

    >>> sums = spectrum("demo", "Raise Value", by="attn")
    >>> list(sums.counts.values())
    [78, 230, 276, 152, 32]
    >>> bool((sums.total - sums.output).abs() < 1e-3)
    True
    """
    check(spectrum, {**locals(), "rules": None if isinstance(rules, Mapping) else rules})
    check_memory(memory)
    named = [path, *(by if isinstance(by, Mapping) else ())]
    subject, expansion = linearised(model, inputs, rules, split, tokenizer, named)
    classes = classifier(expansion, by)
    selection = select(expansion, "**" if path is None else path)
    network = Network(subject.graph, subject.inputs(inputs))
    readout = Readout.of(network, position, target, subject.tokenizer)
    sums = class_sums(network.forward, selection, classes, position=readout.places, memory=memory)
    labels = ordered(expansion, sums.counts, by)
    rows = [list(sums.counts).index(label) for label in labels]
    logits = sums.totals.reshape(len(rows), *readout.clean.shape)
    values = torch.stack([readout.centred_logit(logits[row]) for row in rows])
    return Spectrum(
        subject.graph.title,
        by if isinstance(by, str) else "pattern",
        readout.centred_name,
        {label: sums.counts[label] for label in labels},
        readout.without_padding(values),
        readout.without_padding(readout.centred_logit(readout.clean)),
        tuple((example, place, readout.position(example, place)) for example, place in readout.rows()),
        readout.texts(network),
    )
