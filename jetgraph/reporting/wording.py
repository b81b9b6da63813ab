"""How a report calls what a model reads and gives: a prompt and its tokens, or inputs and outputs of any other kind."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from jetgraph.applications.lenses import Lens
from jetgraph.applications.subject import Inputs, Subject
from jetgraph.numbers import percent
from jetgraph.prompts import Chat

NATS = 8.0
"""The distance to the model's output at which a cell has no colour."""


@dataclass(frozen=True)
class Wording:
    """The words for one input."""

    number: int
    """Of the input, from 1."""
    prompt: str | None
    """The text that the model reads; None where it was given something else."""
    view: Lens
    labels: Mapping[int, str] = field(default_factory=dict)
    """What the model's config calls its classes."""

    @staticmethod
    def of(subject: Subject, given: Inputs, number: int, view: Lens) -> Wording:
        """The words for what a model makes of an input."""
        config = None if subject.loaded is None else subject.loaded.config
        labels: Any = getattr(config, "id2label", None) or {}
        told = {index: name for index, name in labels.items() if name != f"LABEL_{index}"}
        known = isinstance(index := next(iter(told), None), int) and len(labels) == view.output.shape[-1] > index
        return Wording(number, given if isinstance(given, str) else None, view, told if known else {})

    @property
    def speaks(self) -> bool:
        """It reads tokens and gives a logit for each token."""
        return self.view.vocabulary and self.view.ids is not None

    @property
    def given(self) -> str:
        """The input in a sentence."""
        if self.prompt is None:
            return f"{self.here} {self.number}"
        return repr(str(self.prompt)) + " (as chat)" * isinstance(self.prompt, Chat)

    @property
    def title(self) -> str:
        """The heading of its section."""
        heading = f"{self.here.capitalize()} {self.number}"
        return heading if self.prompt is None else f"{heading}: {self.given}"

    @property
    def here(self) -> str:
        """What gates are held at."""
        return "prompt" if self.speaks or self.prompt is not None else "input"

    @property
    def place(self) -> str:
        """What components are told apart by."""
        return "token" if self.here == "prompt" else "position"

    @property
    def columns(self) -> str:
        """What the columns of a grid over these are."""
        return f"{self.place}s of the {self.here}"

    @property
    def output(self) -> str:
        """What the model gives a number for."""
        return "token" if self.speaks else "class" if self.labels else "output"

    def said(self, index: int) -> str:
        """One of these."""
        return f"{self.labels[index]!r} (#{index})" if index in self.labels else self.view.said(index)

    @property
    def told(self) -> str:
        """The number that components and paths give parts of."""
        return "length" if self.view.features else "logit"

    @property
    def its(self) -> str:
        """The same, of the output."""
        return "its length along its own direction" if self.view.features else "its centred logit"

    @property
    def decoded(self) -> str:
        """What cells and colours of the lens are."""
        if self.view.features:
            return "the cosine of what it gives with the model's own features, which are no tokens"
        return f"its largest {self.output}. Colours are KL(model ‖ lens), from 0 nats (deep) to {NATS:g} (none)"

    def finding(self, index: int | None, row: Tensor) -> str:
        """What the model gives most for; of features, that they are such."""
        if index is None:
            return (
                f"On {self.given} the model gives {row.shape[-1]} features, of length {float(row.double().norm()):.4g}."
            )
        if self.speaks:
            probability = float(row.double().softmax(-1)[index])
            return f"After {self.given} the model says {self.said(index)} with probability {percent(probability)}."
        where = " at the last position" if self.view.output.dim() == 3 else ""
        return f"On {self.given} the largest {self.output}{where} is {self.said(index)}."


def flow_text(value: float | None, largest: float) -> str:
    """A flow with so many decimals that the largest has three digits or more; nothing where there is none, · for less.

    >>> flow_text(8.744, 8.744), flow_text(0.0161, 0.16), flow_text(0.0001, 0.16), flow_text(None, 1.0)
    ('+8.74', '+0.016', '·', '')
    """
    if value is None:
        return ""
    digits = decimals(largest)
    return f"{value:+.{digits}f}" if abs(value) >= 0.5 * 10.0**-digits else "·"


def decimals(largest: float) -> int:
    """Two, or as many as give a number of this size three digits.

    >>> decimals(8.7), decimals(0.16), decimals(1234.0), decimals(0.0)
    (2, 3, 2, 2)
    """
    return max(2, 2 - math.floor(math.log10(largest))) if largest > 0 and math.isfinite(largest) else 2
