"""Order-0 paths of a language model as a table of next-token logits, P(next | context), without data.

A path of recipe `path` that starts at the token embedding is a function of the context's tokens alone: from one token
(n = 2) it is a bi-gram table over the vocabulary, and through an attention site from two tokens (n = 3) a table of
skip-tri-grams. Such a table has a row per context and a column per next token; it is never held as a whole, but
streamed in chunks of rows whose size follows from a memory bound.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx

from jetgraph.algebra.outline import Split
from jetgraph.algebra.paths import Path
from jetgraph.applications.kept import kept
from jetgraph.applications.ngrams.choosing import DIRECT, Paths, choose
from jetgraph.applications.ngrams.contexts import Contexts, Numbering
from jetgraph.applications.ngrams.decoding import Decoding, last
from jetgraph.applications.ngrams.fitting import filling, fitting, ids_input, token_number, vocabulary_of
from jetgraph.applications.readout import token_text
from jetgraph.applications.subject import Model, Subject
from jetgraph.compilation.snapshot import Snapshot
from jetgraph.errors import BudgetError, InputError, check, quoted, renamed
from jetgraph.export.precision import own_types
from jetgraph.residual import ResidualGraph
from jetgraph.running.forward import Forward
from jetgraph.running.memory import allowed, is_accelerator
from jetgraph.running.sizes import Sizes
from jetgraph.scale.states import digest_of_tensors

MEMORY, LARGE_MEMORY = 2**28, 2**33
"""Bytes for a chunk where nobody says, on a CPU and, where there is as much, on an accelerator."""

FARTHEST = 2**31
"""The most positions that the two tokens of a context can be apart."""


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
    positions are those of two tokens that stand `distance` apart; a window of attention counts the tokens of a context,
    and so hides neither of the two.

    Parameters
    ----------
    model
        A causal or masked language model whose one input of token ids has the shape [batch, length]: a module, a
        traced graph, a name, or what `jetgraph.applications.subject` makes of one, so that several tables share a
        trace. A graph has to be traced with dynamic batch size; a module is traced here.
    path
        A path, a pattern, or several; the table is the mean over all that match. Parts of a site, such as
        `L0.attn.head3`, split it; `split` says it for patterns that do not show it.
    n
        2 or 3: the length of the n-grams.
    distance
        For n = 3, positions of the two tokens: 0 and `distance`, passed as `position_ids`. Learned positions are no
        part of a path from `embed`, so there it makes no difference.
    memory
        Bytes that `chunks` may use above the model, the chunk that the caller holds and a quarter for its own work
        included: 256 MiB unless given; on an accelerator, where each chunk is a number of launches, 8 GiB, or a quarter
        of what is free.
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

    @renamed(paths="path")
    @own_types()
    def __init__(
        self,
        model: Model | Subject,
        path: Paths = DIRECT,
        n: int = 2,
        tokenizer: Any | None = None,
        distance: int = 1,
        memory: int | None = None,
        split: Split | None = None,
    ) -> None:
        check(PathTable.__init__, locals())
        if n not in (2, 3):
            raise InputError(f"n={n} is not available: 2 for bi-grams, 3 for skip-tri-grams through attention")
        if not 1 <= distance <= FARTHEST or (n == 2 and distance != 1):
            raise InputError(f"distance={distance} does not fit: it is 1 to {FARTHEST:,}, and for n=3 only")
        self.n = n
        self.distance = distance
        self.subject = fitting(model, tokenizer, n, distance)
        self.memory: int = usual_memory(self.subject.device) if memory is None else memory
        if distance > 1:
            self.subject.reader.check_length(distance + 1, "stretch from one token of a context to the other")
        self._ids = ids_input(self.subject)
        choice = choose(self.subject, [path] if isinstance(path, str | Path) else list(path), split)
        self.label = choice.label
        """The paths as they were asked for."""
        self.expansion = choice.expansion
        """The expansion of recipe `path` that the paths are of."""
        self.paths: tuple[Path, ...] = choice.paths
        """The paths whose mean the table is; the decoder's constant part is none of them."""
        self._snapshot = Snapshot(self.expansion, (*self.paths, *choice.constants), self.subject.looked)
        mean = [1 / len(self.paths)] * len(self.paths) + [1.0] * len(choice.constants)
        self._weights = torch.tensor(mean, dtype=torch.float64)
        output = self.subject.graph.traced.output
        self.vocabulary: int = vocabulary_of(self.subject)
        """Number of next tokens: the columns of the table."""
        self.dtype: torch.dtype = output.meta["dtype"]
        """Type of the logits: the model's own."""
        self.numbering = Numbering(n, token_number(self.subject, self._ids, self.vocabulary))
        """The contexts that there are."""
        self.decoding = Decoding(self.subject, n - 1, self._run, biased=bool(choice.constants))
        """The decoder's affine part."""

    @property
    def tokens(self) -> int:
        """Number of tokens that can stand in a context: the rows of the table for n = 2."""
        return self.numbering.tokens

    # Values

    @torch.no_grad()
    @own_types()
    def logits(self, contexts: Tensor) -> Tensor:
        """Logits [rows, vocabulary] of the next token after each of the contexts [rows, n-1], in the model's dtype.

        All at once; `chunks` streams.

        Raises
        ------
        InputError
            Contexts of another shape or unknown tokens.
        """
        check(PathTable.logits, locals())
        return self._evaluate(self.numbering.checked(contexts))

    @torch.no_grad()
    def chunks(self, contexts: Contexts | None = None, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Contexts [rows, n-1] and their logits [rows, vocabulary], chunk by chunk, from row `start` on.

        `contexts` are the contexts themselves, or the tokens of each place, of which all combinations are made, the
        last place fastest; by default the whole vocabulary at each. `chunk_rows` rows come at a time, whose memory the
        next ones may take.

        Raises
        ------
        BudgetError
            A table of too many cells, before the first chunk; see `Numbering.numbers`.
        """
        check(PathTable.chunks, locals())
        shape = self.sizes.shape(self.subject.graph.traced.output)[1:]
        if self.decoding.last_alone:
            shape = (1, *shape[1:])
        memory: Tensor | None = None
        for number in self.numbers(self.chunk_rows, contexts, start):
            chunk = self.contexts(number, contexts)
            if memory is None:
                memory = torch.empty(len(chunk), *shape, dtype=self.dtype, device=self.subject.device)
            yield chunk, self._evaluate(chunk, memory[: len(chunk)])

    def numbers(self, rows: int, contexts: Contexts | None = None, start: int = 0) -> Iterator[Tensor]:
        """The numbers of the contexts that `chunks` goes through, `rows` at a time; see `Numbering.numbers`."""
        check(PathTable.numbers, locals())
        return self.numbering.numbers(rows, self.vocabulary, contexts, start)

    def count(self, contexts: Contexts | None = None) -> int:
        """Number of contexts that `chunks` goes through."""
        check(PathTable.count, locals())
        return self.numbering.count(contexts)

    def contexts(self, rows: Tensor, contexts: Contexts | None = None) -> Tensor:
        """The contexts [rows, n-1] that have these numbers [rows] in the order in which `chunks` goes through them."""
        check(PathTable.contexts, locals())
        return self.numbering.numbered(rows, contexts)

    @cached_property
    def chunk_rows(self) -> int:
        """Rows per chunk that fit into `memory`; a quarter of it is left to the caller.

        Raises
        ------
        BudgetError
            Not one does; the message says what one takes.
        """
        rows = 3 * self.memory // 4 // self.row_bytes
        if rows < 1:
            raise BudgetError(
                f"one row of {self.label} needs about {self.row_bytes:,} bytes, but memory={self.memory:,} leaves "
                f"{3 * self.memory // 4:,} for it: take memory={-(-4 * self.row_bytes // 3):,} or more (--memory)"
            )
        return rows

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the weights and of what is computed from them; equal tables have equal ones."""
        graph = str(self.subject.graph.traced.graph)
        return digest_of_tensors(self._snapshot.tensors, self.n, self.distance, list(map(str, self.paths)), graph)

    def text(self, token: int) -> str:
        """A token as a person reads it; see `jetgraph.applications.readout.token_text`."""
        check(PathTable.text, locals())
        return token_text(self.subject.tokenizer, token)

    def inputs(self, contexts: Tensor) -> dict[str, Tensor]:
        """The model's inputs by name for contexts [rows, n-1], on its device."""
        check(PathTable.inputs, locals())
        return self._inputs(self.numbering.checked(contexts))

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

    @torch.no_grad()
    def hidden(self, contexts: Tensor) -> Tensor:
        """The mean x of the paths before the decoder's affine part x ↦ U x + b, [rows, `decoding.shape`, made flat]."""
        check(PathTable.hidden, locals())
        mixed = self._snapshot(**self.inputs(contexts)).mix(self._weights)
        return (mixed[:, -1] if self.decoding.last_alone else mixed).flatten(1)

    def _run(self, rows: int) -> Forward:
        """The model's pass over so many contexts."""
        return self._snapshot.run(**self.inputs(self.numbering.first(rows)))

    def _evaluate(self, contexts: Tensor, out: Tensor | None = None) -> Tensor:
        values = self._snapshot(**self._inputs(contexts))
        # The mean is taken before the unembedding, which is by far the largest product.
        return last(values.combine(self._weights, position=-1 if self.decoding.last_alone else None, out=out))

    # Memory

    @cached_property
    def sizes(self) -> Sizes:
        """Of the values for one context."""
        graph = self.subject.graph

        def sizes() -> Sizes:
            traced = graph.traced
            return Sizes(traced.input_values((), self._inputs(self.numbering.first(1)))).bounded(traced.graph)

        return kept(graph, "sizes of a context", (self.n, self.distance), sizes)

    @cached_property
    def inside_bytes(self) -> int:
        """Bytes that one more row takes before the decoder's affine part, at its peak."""
        sizes, kinds = self.sizes, kept(self.subject.graph, "rows", None, lambda: _kinds(self.subject.graph))
        widest = max((math.prod(sizes.shape(node)) * item for (_, item), node in kinds.items()), default=0)
        # Every path's value before the unembedding, and their mean.
        decoding = self.decoding
        hidden = math.prod(decoding.shape) * (self.n - 1) // decoding.positions * (len(self.paths) + 1)
        # An activation in primitives, such as a GELU, holds five values of its width at once.
        return hidden * self.dtype.itemsize + 5 * widest

    @cached_property
    def row_bytes(self) -> int:
        """Bytes that one more row of a chunk takes at its peak: its logits and insides."""
        # Where there are several positions, a copy of the last one's too.
        positions = self.decoding.positions
        logits = self.vocabulary * (positions + (positions > 1))
        return logits * self.dtype.itemsize + self.inside_bytes


def _kinds(graph: ResidualGraph) -> Mapping[tuple[Any, int], fx.Node]:
    """By shape and bytes of a number, a value inside that grows with the rows of a chunk, as weights and tables do not:
    it starts with a dynamic size."""
    kinds: dict[tuple[Any, int], fx.Node] = {}
    for node in graph.traced.graph.nodes:
        shape = node.meta.get("shape") if node.op == "call_function" else None
        if isinstance(shape, tuple) and shape and isinstance(shape[0], str) and node is not graph.traced.output:
            kinds[shape, node.meta["dtype"].itemsize] = node
    return kinds


def usual_memory(device: torch.device) -> int:
    """Bytes for a chunk where nobody says."""
    return min(LARGE_MEMORY, allowed(None, device)) if is_accelerator(device) else MEMORY


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
        named = " and ".join(f"{name}={quoted(value)}" for name, value in given.items())
        raise InputError(
            f"{named} would change nothing, for the table that was given has its own ({model!r}): leave it out, or "
            "make another PathTable"
        )
    return model


def own_logits(table: PathTable, contexts: Tensor) -> Tensor:
    """The model's own output at the last position of the contexts."""
    output = table.subject.graph(**table.inputs(contexts))
    return output if output.dim() == 2 else output[:, -1]
