"""Order-0 paths of a language model as a table of next-token logits, P(next | context), without data.

A path of recipe `path` that starts at the token embedding is a function of the context's tokens alone: from one token
(n = 2) it is a bi-gram table over the vocabulary, and through an attention site from two tokens (n = 3) a table of
skip-tri-grams. Such a table has a row per context and a column per next token; it is never held as a whole, but
streamed in chunks of rows whose size follows from a memory bound.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from jetgraph.algebra.expansion import Expansion, expand
from jetgraph.algebra.outline import Split
from jetgraph.algebra.paths import Path
from jetgraph.algebra.selection import select
from jetgraph.applications.ngrams.fitting import filling, fitting, ids_input, token_number
from jetgraph.applications.readout import token_text
from jetgraph.applications.subject import Model, Subject, is_vocabulary
from jetgraph.compilation import PathModule, compile
from jetgraph.errors import BudgetError, InputError, big, check, quoted
from jetgraph.residual import ResidualGraph
from jetgraph.running.indices import check_whole
from jetgraph.running.sizes import Sizes

Paths = str | Path | Iterable[str | Path]
"""One path or pattern, or several."""

DIRECT = "embed > logits"
"""The path that passes no site: bi-grams of embedding and unembedding alone."""

Contexts = Tensor | Sequence[Tensor | None]
"""Contexts [rows, n-1], or for each place the tokens that may stand there (None: the whole vocabulary)."""

CELL_BUDGET = 2**37
"""Largest table (contexts times next tokens) that is streamed: about twice the square of a vocabulary of 256,000."""

PATH_BUDGET = 4096
"""The most paths whose mean is one table."""

FARTHEST = 2**31
"""The most positions that the two tokens of a context can be apart."""

_PART = re.compile(r"(?P<site>[^\s>]+)\.(?P<part>head|neuron)(\d+|\*)(\^\d+)?")

_SPLITS = {"head": "heads", "neuron": "neurons"}


class PathTable:
    """The conditional table of a model's order-0 paths: one row of next-token logits per context.

        logits[a] = (1/P) Σ_p U ν(γ_p,m(… γ_p,1(E[a]))) + b

    over the P selected paths p, each taken alone at order 0 with weight 1 (recipe `path`): E is the source `embed`, γ
    are the sites that the path passes, ν the nonlinear and U the linear part of the decoder. b is the constant part of
    U (the bias of a biased unembedding, the source `bias… > logits` of the expansion): it is added once, however many
    paths there are, and need not be selected. Learned positions are a source of their own (`pos`), so a path from
    `embed` is position-free; other sources count when a pattern names them. No forward pass takes place.

    n = 2: a context is one token, evaluated as a sequence of length 1. Through an attention site the token attends to
    itself with weight 1, which leaves the OV circuit: `embed > L0.attn > logits` is U ν(W_O W_V norm(E[a]) + …).

    n = 3: a context is two tokens [a, b], evaluated as a sequence of length 2, and the logits at the last position, b,
    are read. Through an attention site, and only there, a matters: `embed > L0.attn.head3 > logits` is what head 3
    alone writes at b: norm of E[a] and E[b], queries of b, softmax over the two keys, their values through OV, then
    the decoder. The embedding of b itself is another path. No learned positions take part; rotary and relative
    positions are those of two tokens that stand `distance` apart.

    Parameters
    ----------
    model
        A causal or masked language model whose one input of token ids has the shape [batch, length]: a module, a
        traced graph, a name, or what `jetgraph.applications.subject` makes of one, so that several tables share a
        trace. A graph has to be traced with dynamic batch size; a module is traced here.
    paths
        A path, a pattern, or several; the table is the mean over all that match. Parts of a site, such as
        `L0.attn.head3`, split it; `split` says it for patterns that do not show it.
    n
        2 or 3: the length of the n-grams.
    distance
        For n = 3, positions of the two tokens: 0 and `distance`, passed as `position_ids`. Learned positions are no
        part of a path from `embed`, so there it makes no difference.
    memory
        Bytes that `chunks` may use above the model, the chunk that the caller holds and a quarter for its own work
        included.
    split
        As in `jetgraph.expand`.

    Raises
    ------
    InputError
        The model does not take token ids alone, or does not give logits over a vocabulary; `distance` cannot be passed.
    SelectionError
        No path matches.
    BudgetError
        One row needs more than `memory`, or more paths match than `PATH_BUDGET`.

    Source: Chen et al., arXiv 2410.06024, section on jet n-grams; the bias, the positions and the meaning of a path
    through attention are decided here.
    """

    def __init__(
        self,
        model: Model | Subject,
        paths: Paths = DIRECT,
        n: int = 2,
        tokenizer: Any | None = None,
        distance: int = 1,
        memory: int = 2**28,
        split: Split | None = None,
    ) -> None:
        check(PathTable.__init__, locals())
        if n not in (2, 3):
            raise InputError(f"n={n} is not available: 2 for bi-grams, 3 for skip-tri-grams through attention")
        if not 1 <= distance <= FARTHEST or (n == 2 and distance != 1):
            raise InputError(f"distance={distance} does not fit: it is 1 to {FARTHEST:,}, and for n=3 only")
        self.n = n
        self.distance = distance
        self.memory = memory
        wanted = [paths] if isinstance(paths, str | Path) else list(paths)
        self.label = ", ".join(map(str, wanted))
        """The paths as they were asked for."""
        self.subject = fitting(model, tokenizer, n, distance)
        if distance > 1:
            self.subject.reader.check_length(distance + 1, "stretch from one token of a context to the other")
        self._ids = ids_input(self.subject)
        self.expansion = _expansion(self.subject, wanted, split)
        """The expansion of recipe `path` that the paths are of."""
        chosen = select(self.expansion, wanted)
        if chosen.count() > PATH_BUDGET:
            raise BudgetError(
                f"{big(chosen.count())} paths match {self.label}, more than the {PATH_BUDGET} that a table is the "
                "mean of: name fewer, such as 'embed > *.mlp > logits'"
            )
        constants = {entry.source.alias for entry in self.expansion.entries if entry.enters == self.expansion.sink}
        self.paths: tuple[Path, ...] = tuple(path for path in chosen if path.source.alias not in constants)
        """The paths whose mean the table is; the decoder's constant part is none of them."""
        if not self.paths:
            raise InputError(
                f"{self.label} is the decoder's constant part alone, which every table has already: "
                "name a path from 'embed'"
            )
        bias = [Path.parse(f"{alias} > logits") for alias in sorted(constants)]
        self.module: PathModule = compile(self.expansion, (*self.paths, *bias))
        self._weights = torch.tensor([1 / len(self.paths)] * len(self.paths) + [1.0] * len(bias), dtype=torch.float64)
        affine = self.subject.graph.structure.decoder.affine
        # Else the affine part needs the other positions too.
        self._last_alone = n > 2 and self.subject.graph.by_position(affine)
        probe = self._evaluate(self._first(1))
        self.vocabulary: int = probe.shape[-1]
        """Number of next tokens: the columns of the table."""
        if not is_vocabulary(self.subject.graph, self.vocabulary, self.subject.tokenizer):
            raise InputError(
                f"n-grams need a logit for each token, but the output {self.subject.graph.traced.output_name!r} of "
                f"{self.subject.graph.title} has {self.vocabulary:,} features: load the model with its language "
                "modelling head, or name another output when you trace it"
            )
        self.dtype: torch.dtype = probe.dtype
        """Type of the logits: the model's own."""
        self.tokens: int = token_number(self.subject, self._ids, self.vocabulary)
        """Number of tokens that can stand in a context: the rows of the table for n = 2."""

    # Values

    @torch.no_grad()
    def logits(self, contexts: Tensor) -> Tensor:
        """Logits [rows, vocabulary] of the next token after each of the contexts [rows, n-1], in the model's dtype.

        All at once; `chunks` streams. Raises `InputError` for contexts of another shape or unknown tokens.
        """
        check(PathTable.logits, locals())
        return self._evaluate(self._checked(contexts))

    @torch.no_grad()
    def chunks(self, contexts: Contexts | None = None, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Contexts [rows, n-1] and their logits [rows, vocabulary], chunk by chunk, from row `start` on.

        `contexts` are the contexts themselves, or the tokens of each place, of which all combinations are made, the
        last place fastest; by default the whole vocabulary at each. `chunk_rows` rows come at a time, whose memory the
        next ones may take.

        Raises `BudgetError` for a table of more than `CELL_BUDGET` cells, before the first chunk.
        """
        check(PathTable.chunks, locals())
        shape = self._sizes.shape(self.subject.graph.traced.output)[1:]
        if self._last_alone:
            shape = (1, *shape[1:])
        memory: Tensor | None = None
        for number in self.numbers(self.chunk_rows, contexts, start):
            chunk = self.contexts(number, contexts)
            if memory is None:
                memory = torch.empty(len(chunk), *shape, dtype=self.dtype, device=self.subject.device)
            yield chunk, self._evaluate(chunk, memory[: len(chunk)])

    def numbers(self, rows: int, contexts: Contexts | None = None, start: int = 0) -> Iterator[Tensor]:
        """The numbers of the contexts that `chunks` goes through, `rows` at a time.

        Raises `BudgetError` for a table of more than `CELL_BUDGET` cells.
        """
        check(PathTable.numbers, locals())
        if rows < 1 or start < 0:
            raise InputError(f"rows={quoted(rows)} from start={quoted(start)} are none: take 1 or more, from 0 on")
        total = self.count(contexts)
        if total * self.vocabulary > CELL_BUDGET:
            raise BudgetError(
                f"the table has {total:,} rows of {self.vocabulary:,} next tokens, more than the budget of "
                f"{CELL_BUDGET:,} cells: restrict the tokens of each place with rows="
            )
        for first in range(start, total, rows):
            yield torch.arange(first, min(first + rows, total))

    def count(self, contexts: Contexts | None = None) -> int:
        """Number of contexts that `chunks` goes through."""
        check(PathTable.count, locals())
        if isinstance(contexts, Tensor):
            return self._checked(contexts).shape[0]
        return math.prod(self.tokens if place is None else place.numel() for place in self._places(contexts))

    def contexts(self, rows: Tensor, contexts: Contexts | None = None) -> Tensor:
        """The contexts [rows, n-1] that have these numbers [rows] in the order in which `chunks` goes through them."""
        check(PathTable.contexts, locals())
        check_whole(rows, "rows")
        total = self.count(contexts)
        if rows.dim() != 1 or (len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < total):
            raise InputError(f"rows are the numbers [rows] of contexts, 0 to {total - 1}, not {quoted(rows)}")
        if isinstance(contexts, Tensor):
            return self._checked(contexts)[rows]
        columns: list[Tensor] = []
        for place in reversed(self._places(contexts)):
            size = self.tokens if place is None else place.numel()
            digit = rows % size
            columns.append(digit if place is None else place.reshape(-1)[digit])
            rows = rows // size
        return self._checked(torch.stack(columns[::-1], dim=1))

    @cached_property
    def chunk_rows(self) -> int:
        """Rows per chunk that fit into `memory`; a quarter of it is left to the caller."""
        rows = 3 * self.memory // 4 // self.row_bytes
        if rows < 1:
            raise BudgetError(
                f"one row of {self.label} needs about {self.row_bytes:,} bytes, but memory={self.memory:,} leaves "
                f"{3 * self.memory // 4:,} for it: raise memory"
            )
        return rows

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the weights and of what is computed from them; equal tables have equal ones."""
        traced, tensors = self.subject.graph.traced, self.module.tensors()
        digest = hashlib.sha256(repr((self.n, self.distance, list(map(str, self.paths)))).encode())
        digest.update(str(traced.graph).encode())
        for name in sorted(tensors):
            tensor = tensors[name].detach()
            digest.update(repr((name, tuple(tensor.shape), tensor.dtype)).encode())
            digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def text(self, token: int) -> str:
        """A token as a person reads it; see `jetgraph.applications.readout.token_text`."""
        check(PathTable.text, locals())
        return token_text(self.subject.tokenizer, token)

    def inputs(self, contexts: Tensor) -> dict[str, Tensor]:
        """The model's inputs by name for contexts [rows, n-1], on its device."""
        check(PathTable.inputs, locals())
        return self._inputs(self._checked(contexts))

    def _inputs(self, contexts: Tensor) -> dict[str, Tensor]:
        device = self.subject.device
        values = {self._ids: contexts.to(device)}
        for name in self.subject.graph.traced.input_shapes:
            if name != self._ids:
                filled = filling(name, self.n - 1, self.distance)
                values[name] = filled.expand(contexts.shape[0], -1).to(device)
        return values

    def __repr__(self) -> str:
        rows = " x ".join([f"{self.tokens:,}"] * (self.n - 1))
        shown = str(self.paths[0]) if len(self.paths) == 1 else f"mean of {len(self.paths)} paths, {self.label}"
        return f"PathTable: {rows} contexts, {self.vocabulary:,} next tokens, {shown}"

    # Inside

    def _places(self, contexts: Sequence[Tensor | None] | None) -> Sequence[Tensor | None]:
        places = [None] * (self.n - 1) if contexts is None else list(contexts)
        if len(places) != self.n - 1:
            raise InputError(f"a context of n={self.n} has {self.n - 1} place(s), but tokens for {len(places)} came")
        return places

    def _first(self, rows: int) -> Tensor:
        return torch.zeros(rows, self.n - 1, dtype=torch.long)

    def _checked(self, contexts: Tensor) -> Tensor:
        odd = contexts.is_meta or contexts.layout is not torch.strided or contexts.is_complex()
        if odd or contexts.dim() != 2 or contexts.shape[1] != self.n - 1 or contexts.is_floating_point():
            raise InputError(
                f"contexts of n={self.n} are token ids of shape [rows, {self.n - 1}], not {contexts.dtype} of shape "
                f"{list(contexts.shape)}"
            )
        if contexts.numel() and (int(contexts.min()) < 0 or int(contexts.max()) >= self.tokens):
            raise InputError(
                f"token ids are 0 to {self.tokens - 1}, but the contexts hold {int(contexts.min())} to "
                f"{int(contexts.max())}"
            )
        return contexts

    def _evaluate(self, contexts: Tensor, out: Tensor | None = None) -> Tensor:
        values = self.module(**self._inputs(contexts))
        # The mean is taken before the unembedding, which is by far the largest product.
        return self._last(values.combine(self._weights, position=-1 if self._last_alone else None, out=out))

    def _last(self, value: Tensor) -> Tensor:
        """The logits at the last position, [rows, vocabulary], of a term of the output's shape."""
        if value.dim() not in (2, 3):
            raise InputError(
                f"the output {self.subject.graph.traced.output_name!r} has shape {list(value.shape)}, but logits are "
                "[batch, length, vocabulary] or [batch, vocabulary]: name the output when you trace the model"
            )
        last = value if value.dim() == 2 else value[:, -1]
        # A view of the last position would keep the others in memory.
        return last if last.is_contiguous() else last.contiguous()

    # Before the decoder's affine part

    @torch.no_grad()
    def hidden(self, contexts: Tensor) -> Tensor:
        """The mean x of the paths before the decoder's affine part x ↦ U x + b, [rows, `hidden_shape`, made flat]."""
        check(PathTable.hidden, locals())
        mixed = self.module(**self._inputs(self._checked(contexts))).mix(self._weights)
        return (mixed[:, -1] if self._last_alone else mixed).flatten(1)

    @torch.no_grad()
    def decode(self, hidden: Tensor, *, linear: bool = False) -> Tensor:
        """U x + b [rows, vocabulary] for values x as `hidden` gives them; U x alone if `linear`."""
        check(PathTable.decode, locals())
        size = math.prod(self.hidden_shape)
        plain = hidden.layout is torch.strided and not hidden.is_meta and hidden.dtype == self.hidden_dtype
        if not plain or hidden.dim() != 2 or hidden.shape[1] != size:
            raise InputError(
                f"values before the decoder's affine part are {self.hidden_dtype} of shape [rows, {size}], not "
                f"{hidden.dtype} of shape {list(hidden.shape)} on {hidden.device}"
            )
        forward = self.module.run(**self._inputs(self._first(len(hidden))))
        region = forward.graph.structure.decoder.affine
        value = hidden.unflatten(1, self.hidden_shape)
        return self._last(forward.pieces.linear(region, value) if linear else forward.through(region, value))

    @property
    def has_constant(self) -> bool:
        """The table's logits have the constant part b."""
        return len(self.paths) < len(self.module.paths)

    @cached_property
    def hidden_shape(self) -> tuple[int, ...]:
        """Shape of a row before the decoder's affine part: [`positions`, d_model]."""
        shape = self._sizes.shape(self.subject.graph.structure.decoder.nonlinear.exit)[1:]
        return (1, *shape[1:]) if self._last_alone else shape

    @property
    def positions(self) -> int:
        """Positions of a context whose logits are computed: the last one alone where the decoder allows for it."""
        return 1 if self._last_alone else self.n - 1

    @property
    def hidden_dtype(self) -> torch.dtype:
        """Type of the values before the decoder's affine part."""
        return self.subject.graph.structure.decoder.nonlinear.exit.meta["dtype"]

    @property
    def decodes_by_row(self) -> bool:
        """Each row goes through the decoder's affine part by itself."""
        return self.subject.graph.by_element(self.subject.graph.structure.decoder.affine)

    # Memory

    @cached_property
    def _sizes(self) -> Sizes:
        """Of the values for one context."""
        return self.module.run(**self._inputs(self._first(1))).sizes

    @cached_property
    def inside_bytes(self) -> int:
        """Bytes that one more row takes before the decoder's affine part, at its peak."""
        graph, sizes_of_one = self.subject.graph, self._sizes
        kinds: dict[tuple[Any, ...], Any] = {}
        for node in graph.traced.graph.nodes:
            sizes = node.meta.get("shape") if node.op == "call_function" else None
            # What starts with a dynamic size grows with the rows of a chunk; weights and tables do not.
            if isinstance(sizes, tuple) and sizes and isinstance(sizes[0], str) and node is not graph.traced.output:
                kinds[(sizes, node.meta["dtype"].itemsize)] = node
        widest = max((math.prod(sizes_of_one.shape(node)) * item for (_, item), node in kinds.items()), default=0)
        # Every path's value before the unembedding, and their mean.
        hidden = math.prod(self.hidden_shape) * (self.n - 1) // self.positions * (len(self.paths) + 1)
        # An activation in primitives, such as a GELU, holds five values of its width at once.
        return hidden * self.dtype.itemsize + 5 * widest

    @cached_property
    def row_bytes(self) -> int:
        """Bytes that one more row of a chunk takes at its peak: its logits and insides."""
        # Where there are several positions, a copy of the last one's too.
        logits = self.vocabulary * (self.positions + (self.positions > 1))
        return logits * self.dtype.itemsize + self.inside_bytes


def table_of(model: Model | Subject | PathTable, **options: Any) -> PathTable:
    """The table of a model, or a table as it is.

    Parameters
    ----------
    model
        What `PathTable` takes, or a `PathTable`.
    options
        Of `PathTable`, by name; None for its own default.

    Raises
    ------
    InputError
        An option beside a table, which has its own.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if not isinstance(model, PathTable):
        return PathTable(model, **given)
    if given:
        fixed = {"paths": "path"}
        named = " and ".join(f"{fixed.get(name, name)}={quoted(value)}" for name, value in given.items())
        raise InputError(
            f"{named} would change nothing, for the table that was given has its own ({model!r}): leave it out, or "
            "make another PathTable"
        )
    return model


def single_mlps(graph: ResidualGraph) -> list[str]:
    """The paths from the embedding through one MLP each, in the order of the stream."""
    sites = graph.outline.sites()
    return [f"embed > {site.alias} > logits" for site in sites if site.kind == "mlp" and site.role == "branch"]


def _expansion(found: Subject, wanted: Sequence[str | Path], split: Any | None) -> Expansion:
    """The expansion of recipe `path`, split where the paths name parts of a site."""
    if split is None and found.graph.parts is None:
        elements = [_PART.fullmatch(element.strip()) for text in wanted for element in str(text).split(">")]
        named = {match["site"]: _SPLITS[match["part"]] for match in elements if match is not None}
        kinds = set(named.values())
        # A glob such as `*` is meant for the sites that have such parts, which one word says and a mapping does not.
        split = kinds.pop() if len(kinds) == 1 and any("*" in site for site in named) else named
    return expand(found.graph, recipe="path", split=split or None)
