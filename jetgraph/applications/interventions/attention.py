"""Attention patterns by head, as a table and as pictures."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from jetgraph.algebra.dialects import translated
from jetgraph.algebra.matching import matching, named
from jetgraph.applications.lenses.points import token_ids
from jetgraph.applications.readout import Texts, texts_of
from jetgraph.applications.results import Cell, Result, Shown
from jetgraph.applications.subject import Inputs, Model, counted_tokens, subject
from jetgraph.errors import InputError, amount, check, quoted
from jetgraph.export.precision import own_types
from jetgraph.numbers import percent
from jetgraph.residual import one_look
from jetgraph.running.attention import attention_pattern, reads_itself

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DRAWN = 64
"""Heads that a figure has room for."""

LISTED = 1e-3
"""Weights below this are left out of the table."""

RESTS = 0.5
"""Heads that give more than that to the first key rest there, as most do of large models."""


@dataclass(frozen=True, eq=False, repr=False)
class AttentionPatterns(Result):
    """What each position takes of each other one, by branch and head. Made by `attention_patterns`."""

    model: str
    patterns: Mapping[str, Tensor]
    """By branch [example, head, query, key], in float32."""
    heads: Mapping[str, tuple[int, ...]]
    """By branch, the numbers of its heads that are here."""
    tokens: Texts
    """By example, the texts of its tokens; none where the inputs are no tokens of the queries and keys."""
    counted: Tensor | None = None
    """Where queries are tokens, [example, query]; None where all are."""
    crossing: frozenset[str] = frozenset()
    """Branches whose keys are no positions of the stream, but of what else they read: of an encoder, say."""

    @property
    def title(self) -> str:
        heads = sum(pattern.shape[1] for pattern in self.patterns.values())
        branches = amount(len(self.patterns), "branch")
        return f"{self.model}: attention patterns of {amount(heads, 'head')} of {branches}"

    def columns(self) -> Mapping[str, Sequence[Cell]]:
        """example, branch, head, position, token, key, read, weight: a row for each weight of at least `LISTED`.

        Padding has none. `read` is the token of the key, where keys are the positions of the stream alone, none of a
        cache.
        """
        names = ("example", "branch", "head", "position", "token", "key", "read", "weight")
        columns: dict[str, list[Cell]] = {name: [] for name in names}
        for alias, pattern in self.patterns.items():
            told = pattern >= LISTED
            if self.counted is not None:
                told = told & self.counted[:, None, :, None]
            for example, head, query, key in told.nonzero().tolist():
                texts = self.tokens[example] if self.tokens else []
                token, read = (texts[place] if place < len(texts) else None for place in (query, key))
                read = read if self._square(alias) else None
                cells = (
                    example,
                    alias,
                    self.heads[alias][head],
                    query,
                    token,
                    key,
                    read,
                    float(pattern[example, head, query, key]),
                )
                for name, cell in zip(names, cells, strict=True):
                    columns[name].append(cell)
        return columns

    def shown(self) -> Shown:
        """The largest weights of the last position first; where its heads rest on the first key, those of others."""
        ends = {alias: self._ends(alias) for alias in self.patterns}
        rests = self.resting > RESTS

        def kept(row: Mapping[str, Cell]) -> bool:
            first, last = ends[str(row["branch"])][int(row["example"] or 0)]
            return row["position"] == last and not (rests and row["key"] == first)

        several = any(len(pattern) > 1 for pattern in self.patterns.values())
        names = ("branch", "head", "position", "token", "key", "read", "weight")
        return Shown(("example", *names) if several else names, keep=kept, first=("weight",))

    @property
    def resting(self) -> float:
        """What the last position gives to the first key, mean over heads: a place to rest, as a rule. 0 of one key."""
        weights = [
            one[:, last, first]
            for alias, pattern in self.patterns.items()
            for one, (first, last) in zip(pattern, self._ends(alias), strict=True)
            if pattern.shape[3] > 1
        ]
        return float(torch.cat(weights).mean()) if weights else 0.0

    def _ends(self, alias: str) -> list[tuple[int, int]]:
        """By example, the first key and the last query that is a token; keys are padded where queries are."""
        pattern = self.patterns[alias]
        if self.counted is None:
            return [(0, pattern.shape[2] - 1)] * len(pattern)
        places = [row.nonzero().flatten().tolist() for row in self.counted]
        return [(places[0] if self._square(alias) else 0, places[-1]) for places in places]

    def _square(self, alias: str) -> bool:
        """Keys are what queries are, padding too."""
        pattern = self.patterns[alias]
        return alias not in self.crossing and pattern.shape[2] == pattern.shape[3]

    @property
    def note(self) -> str:
        """That heads rest on the first key, where they do."""
        if self.resting <= RESTS:
            return ""
        return (
            f"the last position gives {percent(self.resting, 0)} of its attention to the first key, where heads rest "
            "that have nothing to read: it is left out here, and is in files"
        )

    def figure(self) -> Figure:
        """Heat maps of the first example, one a head: queries from above, keys from the left."""
        from matplotlib.figure import Figure

        heads = [(alias, head) for alias, pattern in self.patterns.items() for head in range(pattern.shape[1])]
        wide = min(8, max(len(heads), 1))
        shown = heads[:DRAWN]
        high = -(-len(shown) // wide)
        figure = Figure(figsize=(1.6 * wide + 0.8, 1.7 * high + 0.6), layout="constrained")
        grid = figure.subplots(high, wide, squeeze=False).flatten().tolist()
        image = None
        for axes, (alias, head) in zip(grid, shown, strict=False):
            image = axes.imshow(self._drawn(alias, head).numpy(), cmap="Blues", vmin=0, vmax=1)
            axes.set_title(f"{alias}.head{self.heads[alias][head]}", fontsize=6, parse_math=False)
        for number, axes in enumerate(grid):
            axes.set_xticks([])
            axes.set_yticks([])
            axes.set_visible(number < len(shown))
        assert image is not None
        figure.colorbar(image, ax=grid, label="weight of a key (across) for a query (down)", fraction=0.02)
        more = f", the first {len(shown)}: branches= (--branch) names others" if len(heads) > len(shown) else ""
        figure.suptitle(self.title + more, fontsize=9, parse_math=False)
        return figure

    def _drawn(self, alias: str, head: int) -> Tensor:
        """What of the first example's pattern [query, key] is no padding."""
        pattern = self.patterns[alias][0, head]
        if self.counted is None:
            return pattern
        kept = self.counted[0]
        return pattern[kept][:, kept] if self._square(alias) else pattern[kept]


@torch.no_grad()
@own_types()
@one_look()
def attention_patterns(
    model: Model, inputs: Inputs, *, branches: str | Sequence[str] | None = None, tokenizer: Any | None = None
) -> AttentionPatterns:
    """The attention weights of each head: how much each position reads from every other, as values are weighted.

    Parameters
    ----------
    model
        A model or a graph.
    inputs
        A prompt, prompts, token ids, or inputs by name.
    branches
        Names or globs over branches, or over heads (`L3.attn.head2`, `L3H2`); all with attention unless given.

    Returns
    -------
    AttentionPatterns
        `patterns["L3.attn"]` is [example, head, query, key].

    Raises
    ------
    InputError
        No branch with attention, one that is named and has none that can be told, or not so many heads.
    SelectionError
        A name that is no branch.

    >>> attention = attention_patterns("demo", "Raise Value")
    >>> list(attention.patterns), bool(attention.patterns["L0.attn"].sum(-1).sub(1).abs().max() < 1e-5)
    (['L0.attn', 'L1.attn', 'L2.attn', 'L3.attn'], True)
    """
    check(attention_patterns, locals())
    studied = subject(model, inputs, tokenizer)
    graph, given = studied.graph, studied.inputs(inputs)
    paths = {branch.alias: branch.name for branch in graph.branches.values() if branch.part is None}
    chosen = [alias for alias in paths if graph.branches[alias].kind == "attn"]
    wanted: dict[str, set[str]] = {}
    if branches is not None:
        for text in [branches] if isinstance(branches, str) else branches:
            for alias, head in _branches(text, paths):
                wanted.setdefault(alias, set()).add(head)
        chosen = [alias for alias in paths if alias in wanted]
    if not chosen and branches is not None:
        raise InputError("branches=[] names no branch: leave it out for all with attention")
    if not chosen:
        raise InputError(f"{graph.title} has no branch with attention on its stream")
    forward = graph.run(**given)
    values = {alias: attention_pattern(forward, graph.branches[alias]).float().cpu() for alias in chosen}
    heads = {alias: _heads(alias, wanted.get(alias, {"*"}), value.shape[1]) for alias, value in values.items()}
    values = {alias: value[:, list(heads[alias])] for alias, value in values.items()}
    first = next(iter(values.values()))
    rows = (first.shape[0], first.shape[2])
    texts, counted = texts_of(studied.tokenizer, token_ids(graph, given, rows)), counted_tokens(graph, given, rows)
    crossing = frozenset(alias for alias in chosen if not reads_itself(graph.branches[alias]))
    return AttentionPatterns(graph.title, values, heads, texts, counted, crossing)


_HEAD = re.compile(r"(?P<branch>\S+)\.head(?P<head>\d{1,9}|\*)")


def _branches(text: str, paths: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """The branches that a text names, and which of their heads: `*` for all."""
    asked = None if matching(text, paths) else _HEAD.fullmatch(translated(text) or text)
    name, head = (text, "*") if asked is None else (asked["branch"], asked["head"])
    for alias in named(name, paths, paths, f"{quoted(text)} matches no branch"):
        yield alias, head


def _heads(alias: str, wanted: Collection[str], number: int) -> tuple[int, ...]:
    """The heads of a branch that are asked for, out of so many."""
    if "*" in wanted:
        return tuple(range(number))
    chosen = sorted(map(int, wanted))
    if chosen[-1] >= number:
        raise InputError(f"{alias!r} has the heads 0 to {number - 1}, and no head{chosen[-1]}: name one of these")
    return tuple(chosen)
