"""What distinguishes two models on prompts: what each says, and the components and paths that make it say so.

`jetgraph.diff` reads weights alone; this runs both models. With gates held at each model's own pass a logit is a sum
over components and over paths in both, and so is its change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from jetgraph.algebra.expansion import Expansion
from jetgraph.algebra.outline import Split
from jetgraph.applications.attribution.attributing import attribute
from jetgraph.applications.attribution.linearising import linearised
from jetgraph.applications.attribution.rankings import rank
from jetgraph.applications.attribution.targets import without_place
from jetgraph.applications.comparing.prompt_changes import (
    Changes,
    ComponentChanges,
    PathChanges,
    PromptChange,
    PromptChanges,
    PromptComparison,
)
from jetgraph.applications.comparing.vocabularies import check_sizes, check_tokenizers
from jetgraph.applications.comparing.walking import titles
from jetgraph.applications.distances import divergence
from jetgraph.applications.interventions.network import Network, logits_at
from jetgraph.applications.readout import token_text
from jetgraph.applications.several import of_one
from jetgraph.applications.subject import Inputs, Model, Subject, is_vocabulary, one_by_one, own_direction, subject
from jetgraph.compilation.evaluation import MEMORY
from jetgraph.errors import BudgetError, InputError, amount, check, quoted
from jetgraph.export.precision import own_types
from jetgraph.export.waiting import progress
from jetgraph.residual import one_look
from jetgraph.running.memory import check_memory

Token = int | str
"""A token by its id or its text."""

MOST = 5_000
"""Paths that are evaluated on each prompt."""


@torch.no_grad()
@own_types()
@one_look()
def compare(
    model_a: Model,
    model_b: Model,
    prompts: Inputs | Sequence[Inputs],
    *,
    target: Token | tuple[Token, Token] | Sequence[Token | tuple[Token, Token]] | None = None,
    split: Split | None = None,
    top: int = 20,
    memory: int = MEMORY,
    tokenizer: Any | None = None,
) -> PromptComparison:
    """What changed between two models on prompts: what they predict, by which components, along which paths.

    Gates (norm denominators, attention patterns) are held at each model's own pass. A target, read at the last token,
    is then in both models

    - the sum of what each component gives it directly, so that the changes of these add up to the target's change;
    - the sum over paths. Of each prompt the `top` largest are looked for in both models, and each is evaluated in the
      other too. A path that is in neither list is no larger than the last of each, so it changes by no more than the
      sum of these two, which the table says.

    What goes through a component, along all paths that pass it, is told beside what it gives directly.

    Parameters
    ----------
    model_a, model_b
        The model before, and the one after; of one vocabulary.
    prompts
        A text, or several; token ids, or inputs by name, and a list of such. One input each.
    target
        A token, whose centred logit is told, or a pair, for the difference of two; a list with one for each prompt.
        Unless given, the token that the second model says against the one that the first says; where both say the same,
        that token; of an output of features, the direction that it has in the second.
    split
        Branches to cut first, as in `jetgraph.expand`; `heads` for attention head by head.
    top
        Paths that are looked for in each model, of each prompt.
    memory
        Bytes for what goes together, as in `jetgraph.attribute`.
    tokenizer
        For texts; the models' own unless given.

    Returns
    -------
    PromptComparison
        Means over the prompts, of several with 95 % bootstrap intervals; its `prompts` are told one by one.

    Raises
    ------
    InputError
        The models do not share a vocabulary, or read a prompt as other tokens; no prompt, or targets of another number.
    BudgetError
        More paths than are evaluated: 2 · `top` · prompts.

    >>> same = compare("demo", "demo", "Raise Value", top=2)
    >>> same.prompts.columns()["says_b"], max(map(abs, same.components.columns()["direct"]))
    (["'Error'"], 0.0)
    """
    check(compare, locals())
    check_memory(memory)
    listed = one_by_one(prompts)
    targets = list(target) if isinstance(target, list) else [target] * len(listed)
    _check_numbers(len(listed), len(targets), top)
    one, other = (subject(model, listed[0], tokenizer) for model in (model_a, model_b))
    names = titles(one, other)
    check_tokenizers(one.tokenizer, other.tokenizer, names)
    sides = tuple(
        _Side(*linearised(side.graph, listed[0], None, split, side.tokenizer), memory) for side in (one, other)
    )
    with progress(total=2 * len(listed), desc="comparing", unit="passes") as bar:
        told = [_look(sides, names, given, aim, top, bar.update) for given, aim in zip(listed, targets, strict=True)]
    first, second = sides
    largest = list(dict.fromkeys(path for side in sides for some in side.paths for path in some))
    for side in sides:
        side.complete(largest)
    components = list(dict.fromkeys(name for side in sides for some in (*side.through, *side.direct) for name in some))
    return PromptComparison(
        PromptChanges(names, tuple(told)),
        ComponentChanges(
            names,
            len(listed),
            Changes.of(components, first.direct, second.direct),
            Changes.of(components, first.through, second.through),
        ),
        PathChanges(
            names,
            len(listed),
            Changes.of(largest, first.paths, second.paths),
            sum(sum(side.beyond) for side in sides) / len(listed),
            first.exact and second.exact,
        ),
    )


def _check_numbers(prompts: int, targets: int, top: int) -> None:
    if not prompts:
        raise InputError("there is no prompt to look at: give one of a word or more")
    if targets != prompts:
        raise InputError(f"{amount(targets, 'target')} for {amount(prompts, 'prompt')}: give one, or one for each")
    if top < 1:
        raise InputError(f"top={quoted(top)} looks for no path: give 1 or more")
    if 2 * top * prompts > MOST:
        fits = MOST // (2 * prompts)
        fitting = f"take top={fits}" if fits else f"take top=1 and {MOST // 2} prompts at once"
        raise BudgetError(
            f"{2 * top * prompts:,} paths may have to be evaluated on each prompt, more than {MOST:,}: {fitting}, or "
            "fewer"
        )


@dataclass(eq=False)
class _Side:
    """One of the two models, and what is known of it, prompt by prompt."""

    subject: Subject
    expansion: Expansion
    """All gates held."""
    memory: int
    """Bytes for what goes together."""
    given: list[tuple[dict[str, Any], Any]] = field(default_factory=list)
    """Inputs and target."""
    direct: list[Mapping[str, float]] = field(default_factory=list)
    through: list[Mapping[str, float]] = field(default_factory=list)
    paths: list[dict[str, float]] = field(default_factory=list)
    beyond: list[float] = field(default_factory=list)
    """The size that no other path has."""
    exact: bool = True

    def read(self, given: Inputs) -> tuple[dict[str, Any], Tensor]:
        """The inputs, and the logits [vocabulary] at the last token."""
        network = Network(self.subject.graph, self.subject.inputs(given))
        logits = logits_at(network.forward, network.places("last"))
        return dict(network.inputs), logits[0, -1].double().cpu()

    def look(self, inputs: dict[str, Any], target: Any, top: int) -> tuple[str, float]:
        """Tell components and the largest paths; the target's name, and its value."""
        asked: dict[str, Any] = {"target": target, "memory": self.memory, "tokenizer": self.subject.tokenizer}
        found = of_one(attribute(self.expansion, inputs, positions=False, **asked))
        if found.flows.left_out:
            raise BudgetError(
                f"edges between components do not fit into memory={self.memory}: take more (--memory), "
                f"or split fewer branches; left out: {found.flows.left_out}"
            )
        ends = {place for place, node in enumerate(found.nodes) if node.role == "target"}
        own = [node for node in found.nodes if node.role in ("source", "site")]
        # What gives nothing has no edge, and is there all the same.
        direct = {node.name: 0.0 for node in own}
        edges = zip(found.senders.tolist(), found.receivers.tolist(), found.values.tolist(), strict=True)
        for sender, receiver, value in edges:
            if receiver in ends:
                name = found.nodes[sender].name
                direct[name] = direct.get(name, 0.0) + value
        ranking = rank(self.expansion, inputs, top=top, **asked)
        every = len(ranking.found) < top or ranking.paths <= top
        self.given.append((inputs, target))
        self.direct.append(direct)
        self.through.append({node.name: node.flow for node in own})
        self.paths.append({one.path: one.value for one in ranking.found})
        self.beyond.append(0.0 if every else abs(ranking.found[-1].value))
        self.exact = self.exact and ranking.exact
        return without_place(found.aims), found.output

    def complete(self, paths: Sequence[str]) -> None:
        """Evaluate those of some paths that this model has and that were not among its largest."""
        for known, (inputs, target) in zip(self.paths, self.given, strict=True):
            missing = [path for path in paths if path not in known and path in self.expansion]
            if missing:
                asked: dict[str, Any] = {"target": target, "memory": self.memory, "tokenizer": self.subject.tokenizer}
                found = rank(self.expansion, inputs, path=missing, top=len(missing), **asked).found
                known |= {one.path: one.value for one in found}


def _look(
    sides: tuple[_Side, ...], names: tuple[str, str], given: Inputs, aim: Any, top: int, told: Any
) -> PromptChange:
    """Both models on a prompt."""
    (one, before), (other, after) = (side.read(given) for side in sides)
    _check_same(one, other, names)
    check_sizes(len(before), len(after), names)
    subject = sides[0].subject
    tokenizer = subject.tokenizer if is_vocabulary(subject.graph, len(before), subject.tokenizer) else None
    best = int(before.argmax()), int(after.argmax())
    direction = own_direction(subject.graph, after)
    aim = direction if aim is None else aim
    if aim is None:
        aim = best[1] if best[0] == best[1] else (best[1], best[0])
    values: list[float] = []
    what = ""
    for side, inputs in zip(sides, (one, other), strict=True):
        what, value = side.look(inputs, aim, top)
        values.append(value)
        told(1)
    p, q = (float(logits.softmax(-1)[best[1]]) for logits in (before, after))
    return PromptChange(
        str(given) if isinstance(given, str) else _read(subject, one),
        (token_text(tokenizer, best[0]), token_text(tokenizer, best[1])) if direction is None else None,
        (p, q),
        float(divergence(before, after)),
        float((after - before).norm() / before.norm()),
        float(torch.cosine_similarity(before, after, dim=0)),
        what,
        (values[0], values[1]),
    )


def _read(subject: Subject, inputs: Mapping[str, Any]) -> str:
    """What stands for inputs that are no text: the text of their token ids, or the ids."""
    ids = inputs.get(subject.first_input)
    if not isinstance(ids, Tensor) or ids.dim() != 2 or ids.is_floating_point() or ids.is_complex():
        return "inputs"
    listed = ids[0].tolist()
    return quoted(listed) if subject.tokenizer is None else subject.tokenizer.decode(listed)


def _check_same(one: Mapping[str, Any], other: Mapping[str, Any], names: tuple[str, str]) -> None:
    """Raise `InputError` where two models read a prompt as other tokens."""
    first, second = (next(iter(inputs.values())).cpu() for inputs in (one, other))
    if first.shape != second.shape or not torch.equal(first, second):
        raise InputError(
            f"{names[0]} reads the prompt as {list(first.shape)} and {names[1]} as {list(second.shape)}, of other "
            "tokens: pass tokenizer=... for both"
        )
