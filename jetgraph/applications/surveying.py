"""What components do on many prompts: an attribution or an ablation of each prompt by itself, and their means."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch

from jetgraph.algebra.outline import Split
from jetgraph.applications.attribution.attributing import attribute
from jetgraph.applications.bars import bars
from jetgraph.applications.intervals import Array, bootstrap, check_bootstrap
from jetgraph.applications.interventions.ablation import ablate
from jetgraph.applications.readout import token_text
from jetgraph.applications.results import Cell, Result, Shown
from jetgraph.applications.subject import DIRECTION, Model, Subject, encode_token, is_features, split_subject, subject
from jetgraph.errors import InputError, amount, check, quoted
from jetgraph.export.precision import own_types
from jetgraph.files.writing import read_lines
from jetgraph.prompts import encode, texts_of
from jetgraph.scale.shards import each
from jetgraph.scale.states import Record, digest_of_model
from jetgraph.scale.texts import Corpus, open_corpus

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Studied = Literal["attributions", "ablations"]
"""What is made of each prompt."""

Token = int | str
"""A token by its id or its text."""

QUANTITIES: Mapping[Studied, tuple[str, ...]] = {
    "attributions": ("flow", "influence"),
    "ablations": ("predicted", "actual", "kl"),
}
"""What is told of a component."""


@dataclass(frozen=True, eq=False, repr=False)
class Survey(Result):
    """Means over prompts, component by component. Made by `survey`."""

    model: str
    of: Studied
    what: str
    """What the components are told of."""
    names: tuple[str, ...]
    """Components, by path where they were ablated."""
    prompts: int
    mean: Mapping[str, Array]
    """By quantity, [component]; NaN where it has none."""
    low: Mapping[str, Array]
    """The lower ends of 95 % bootstrap intervals over prompts; NaN of one prompt."""
    high: Mapping[str, Array]
    """The upper ends."""

    @property
    def title(self) -> str:
        """What was looked at, and on how many prompts."""
        return f"{self.of.capitalize()} of {self.model}: {self.what}, means over {amount(self.prompts, 'prompt')}"

    @property
    def note(self) -> str:
        """What the quantities are."""
        if self.of == "ablations":
            return "changes of the target's logit without the component: as its term predicts, and in the network"
        return "flow: what goes through it to the target, along all paths and over all positions"

    def columns(self) -> Mapping[str, Sequence[Cell]]:
        """A row for each component: mean and 95 % interval of each quantity."""
        table: dict[str, Sequence[Cell]] = {"component": self.names}
        for name in self.mean:
            for suffix, values in (("", self.mean), ("_low", self.low), ("_high", self.high)):
                table[f"{name}{suffix}"] = [None if np.isnan(value) else float(value) for value in values[name]]
        return table

    def shown(self) -> Shown:
        """The largest first."""
        return Shown(first=("actual", "predicted") if self.of == "ablations" else ("flow",))

    def figure(self) -> Figure:
        """The largest means."""
        name = "actual" if self.of == "ablations" else "flow"
        means = [(self.names[i], float(value)) for i, value in enumerate(self.mean[name]) if not np.isnan(value)]
        label = {"actual": "mean change of the target's logit", "flow": "mean of what it gives the target"}[name]
        return bars(sorted(means, key=lambda one: -abs(one[1])), self.title, label)


@own_types()
def survey(
    model: Model,
    prompts: Sequence[str] | PathLike[str] | Corpus,
    *,
    of: Studied = "attributions",
    targets: Token | tuple[Token, Token] | Sequence[Token | tuple[Token, Token]] | None = None,
    split: Split | None = None,
    resamples: int = 1000,
    seed: int = 0,
    tokenizer: Any | None = None,
) -> Survey:
    """Which components make the targets on a set of prompts: means over prompts, each of which runs by itself.

    Parameters
    ----------
    model, split, tokenizer
        As in `attribute`.
    prompts
        Texts; the path of a text file with one in each line, of a .jsonl or of a .parquet; or what `open_corpus` gives.
    of
        `attributions`: what flows from each component to the target along all paths, over all positions, and its
        influence. `ablations`: the change of the target's logit at the last position without the component, as its term
        predicts and in the network, and KL(model ‖ ablated).
    targets
        A token or a pair for all prompts, or a list with one for each; those of `attribute` and `ablate` unless given.
    resamples, seed
        Of the bootstrap over prompts.

    Returns
    -------
    Survey
        Means with 95 % intervals. Inside of `sharded` each prompt is a unit of the job.

    Raises
    ------
    InputError
        No prompt, or targets of another number.

    >>> found = survey("demo", ["Raise Value", "return a new"], resamples=10)
    >>> found.prompts, "L0.attn" in found.names
    (2, True)
    """
    check(survey, locals())
    if of not in get_args(Studied):
        raise InputError(f"of={quoted(of)} is unknown: choose {', '.join(map(repr, get_args(Studied)))}")
    check_bootstrap(resamples, seed)
    texts = _texts(prompts)
    aims = list(targets) if isinstance(targets, list) else [targets] * len(texts)
    if len(aims) != len(texts):
        raise InputError(f"{amount(len(aims), 'target')} for {amount(len(texts), 'prompt')}: give one, or one for each")
    one = split_subject(subject(model, tokenizer=tokenizer), split)

    def look(unit: int) -> Record:
        found = _looked(one, texts[unit], of, aims[unit])
        listed = "\n".join(found).encode()
        return {
            "names": torch.tensor(list(listed), dtype=torch.uint8),
            "values": torch.tensor(list(found.values()), dtype=torch.float64),
        }

    def identity() -> dict[str, str]:
        # What the model reads, for another tokenizer makes other ids of the same texts.
        told = sha256(repr(([encode(one.tokenizer, text) for text in texts], aims)).encode()).hexdigest()
        return {
            "model": digest_of_model(one.graph),
            "prompts": told,
            "options": repr((of, one.graph.parts is not None and repr(split))),
        }

    records = each("prompts", len(texts), look, identity, of="prompts")()
    return _means((one.graph.title, of, _what(aims, of, one)), records, resamples, seed)


def _what(aims: Sequence[Any], of: Studied, one: Subject) -> str:
    """What the components are told of, in words."""
    if any(aim != aims[0] for aim in aims):
        return "a target of each prompt"
    if aims[0] is None and is_features(one.graph, one.graph.traced.output.meta["shape"][-1]):
        return f"the {DIRECTION} of each prompt"
    if aims[0] is None:
        return "the top token of each prompt" if of == "ablations" else "the top tokens of each prompt"
    tokens = aims[0] if isinstance(aims[0], tuple) else (aims[0],)
    ids = (encode_token(one.tokenizer, aim, "target") if isinstance(aim, str) else int(aim) for aim in tokens)
    return " − ".join(token_text(one.tokenizer, index) for index in ids)


def _texts(prompts: Sequence[str] | PathLike[str] | Corpus) -> list[str]:
    given = open_corpus(prompts) if isinstance(prompts, PathLike) else prompts
    if not isinstance(given, Corpus):
        listed: Iterable[str] = texts_of(given)
    else:
        listed = given if given.has_rows else read_lines(given.source)
    texts = [text for text in listed if text.strip()]
    if not texts:
        raise InputError("there is no prompt to look at: give one of a word or more")
    return texts


def _looked(one: Subject, text: str, of: Studied, target: Any) -> dict[str, tuple[float, ...]]:
    """The quantities of each component on one prompt."""
    if of == "attributions":
        found = attribute(one.graph, text, target=target, positions=False, tokenizer=one.tokenizer)
        return {node.name: (node.flow, node.influence) for node in found.nodes if node.role in ("source", "site")}
    looked: dict[str, tuple[float, ...]] = {}
    for effect in ablate(one.graph, None, text, target=target, tokenizer=one.tokenizer).effects:
        actual = (None, None) if effect.actual is None else (effect.actual.logit, effect.actual.kl)
        # A path without a branch has no actual effect, and features have no KL.
        looked[effect.path] = (effect.predicted.logit, *(float("nan") if one is None else one for one in actual))
    return looked


def _means(about: tuple[str, Studied, str], records: Sequence[Record], resamples: int, seed: int) -> Survey:
    _, of, _ = about
    listed = [bytes(record["names"].tolist()).decode().split("\n") for record in records]
    names = list(dict.fromkeys(name for some in listed for name in some))
    places = {name: place for place, name in enumerate(names)}
    values = np.full((len(records), len(names), len(QUANTITIES[of])), np.nan)
    for prompt, (some, record) in enumerate(zip(listed, records, strict=True)):
        values[prompt, [places[name] for name in some]] = record["values"].numpy()
    known = ~np.isnan(values)
    filled, sizes = np.where(known, values, 0.0), known.astype(np.float64)
    low, high = bootstrap(filled, sizes, resamples, seed)
    with np.errstate(invalid="ignore"):
        mean = filled.sum(0) / sizes.sum(0)
    parts = ({name: end[:, at] for at, name in enumerate(QUANTITIES[of])} for end in (mean, low, high))
    return Survey(*about, tuple(names), len(records), *parts)
