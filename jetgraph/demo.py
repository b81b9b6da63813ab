"""The demo: every step from a loaded model to its terms, one after the other.

`steps` yields what there is to read, and writes its files into one folder; the command line shows it. Only public names
of jetgraph are used, so that each step can be copied into a notebook.
"""

from __future__ import annotations

import os
import pathlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import jetgraph as jg
from jetgraph.applications.distances import centred, norm
from jetgraph.applications.lenses import Lens
from jetgraph.applications.ngrams import NGrams
from jetgraph.applications.results import csv_text
from jetgraph.applications.subject import is_vocabulary
from jetgraph.errors import InputError, big
from jetgraph.files.writing import make_folder, write_atomically
from jetgraph.loading import Loaded, quiet
from jetgraph.numbers import fixed, percent
from jetgraph.tracing.calls import run_model
from jetgraph.views.picture import draw
from jetgraph.views.report import Section, Table

SHOWN = 10
"""Rows of a long table that are shown; the CSV files hold all of them."""
PATHS = 4096
"""The most terms that the demo evaluates one by one."""
ROUNDING = 64
"""Times the machine precision: the most by which values may differ that are computed in another order."""
BEST = 5
"""Bigrams of each token that the file of bigrams holds."""
DRAWN = 12
"""The most paths in the picture of selected paths."""
REPORT = "report.html"
"""The file of the report."""


@dataclass
class Demo:
    """A model, a prompt and a folder; `steps` runs the demo on them."""

    loaded: Loaded
    prompt: str
    folder: pathlib.Path
    spreadsheet: bool = False
    """Its .csv files are for a spreadsheet; see `jetgraph.applications.results.Result.save`."""

    def steps(self) -> Iterator[Section]:
        """Run step by step.

        Raises
        ------
        JetGraphError, OSError
            As the steps do.
        """
        started = time.perf_counter()
        self.inputs = self.loaded.inputs(self.prompt)
        if list(self.inputs) != ["input_ids"]:
            raise InputError(f"the demo needs a language model that takes input_ids, but {self.loaded.name} is none")
        make_folder(self.folder)
        with torch.no_grad(), quiet():
            for step in (
                self.structure,
                self.counting,
                self.attribution,
                self.exhaustive,
                self.drawing,
                self.compiling,
                self.lenses,
                self.bigrams,
            ):
                yield step()
        jg.report(self.loaded, self.prompt, file=self.folder / REPORT)
        files = sorted(path.name for path in self.folder.iterdir() if not path.name.startswith("."))
        seconds = time.perf_counter() - started
        note = f"{seconds:.0f} s. Everything is in {self.folder}{os.sep}"
        yield Section("Done", note, text="  ".join(files), after=f"read {self.folder / REPORT}: the page to hand on")

    # Steps

    def structure(self) -> Section:
        """Trace."""
        start = time.perf_counter()
        self.graph = self.loaded.trace({"input_ids": self.inputs["input_ids"]})
        seconds = time.perf_counter() - start
        self.output: Tensor = run_model(self.loaded.model, (), self.inputs, self.graph.traced.output_name)
        if self.output.dim() != 3 or not is_vocabulary(self.graph, self.output.shape[-1], self.loaded.tokenizer):
            raise InputError(f"the demo needs a language model, but {self.loaded.name} gives no logits of tokens")
        return Section(
            "Trace: where are the residual joins?",
            "The structure is read off the traced graph; nothing here knows the architecture.",
            text=str(self.graph),
            after=f"{self.loaded.parameters:,} parameters, traced in {seconds:.1f} s",
        )

    def counting(self) -> Section:
        """Expand symbolically, and count."""
        rows = []
        for order in (0, 1, 2):
            expansion = jg.expand(self.graph, order=order)
            rows.append((f"exhaustive, order {order}", big(expansion.count()), big(expansion.count(length=1))))
        first = jg.select(jg.expand(self.graph, order=1), "embed > ** > logits", limit=3)
        return Section(
            "Expand: how many terms are there?",
            "Every path from a source to the logits, with an order at each site, is a term. They are counted "
            "exactly and without listing them, before any tensor is touched.",
            tables=(Table(("expansion", "terms", "through one site"), tuple(rows)),),
            after="such as " + ", ".join(map(str, first)),
        )

    def attribution(self) -> Section:
        """Components with a frozen decoder: direct logit attribution."""
        expansion = jg.expand(self.graph, recipe="components", rules={"logits": jg.Freeze()})
        terms = jg.terms(expansion, self.inputs, tokenizer=self.loaded.tokenizer)
        (token,) = terms.best
        table = self._table(
            "components.csv",
            ("norm", "term", f"for {token}", "says"),
            [(f"{term.norm:.2f}", term.path, f"{term.share:+.2f}", term.says) for term in terms.terms],
        )
        best = int(terms.output[0].argmax())
        return Section(
            "Attribute: which component says what?",
            f"After {self.prompt!r} the model says {token}. With the last norm's scale held (rule Freeze), each "
            "component's share in the logits is exact: the remainder is rounding.",
            tables=(table,),
            after=f"sum of the shares {sum(term.share for term in terms.terms):+.4f}, the model's centred logit "
            f"{float(centred(terms.output)[0, best]):+.4f}, remainder {_largest(terms.output - terms.total):.1e}",
        )

    def exhaustive(self) -> Section:
        """All terms of order 0, and the remainder."""
        expansion = jg.expand(self.graph, order=0)
        everything = expansion.count() <= PATHS
        terms = jg.terms(
            expansion,
            self.inputs,
            jg.select(expansion, "**", limit=None if everything else PATHS),
            tokenizer=self.loaded.tokenizer,
        )
        table = self._table(
            "terms.csv",
            ("norm", "term", "says"),
            [(f"{term.norm:.4f}", term.path, term.says) for term in terms.terms],
        )
        orders = ", ".join(f"order {order}: {percent(rest, 0)}" for order, rest in _remainders(self.graph, self.inputs))
        return Section(
            "Evaluate: the largest terms",
            f"{'All' if everything else 'The first'} {len(terms):,} terms of the exhaustive expansion at order 0, "
            "with uniform weights, by the norm of their centred logits at the last position.",
            tables=(table,),
            after=f"what these terms leave: {percent(float(terms.rest), 0)} of the output. What the components recipe "
            f"leaves: {orders}",
        )

    def drawing(self) -> Section:
        """The path DAG as files and pictures."""
        expansion = jg.expand(self.graph, order=1)
        dag = jg.path_graph(expansion)
        selected = jg.path_graph(expansion, jg.select(expansion, "embed > ** > *.mlp~1 > logits^0", limit=DRAWN))
        for suffix in ("graphml", "json"):
            jg.write_graph(dag, self.folder / f"demo.{suffix}")
        draw(dag, self.folder / "demo.png", title=f"{self.graph.title}: every path")
        draw(selected, self.folder / "selected.png", title="the first paths of 'embed > ** > *.mlp~1 > logits^0'")
        again = jg.read_graph(self.folder / "demo.graphml")
        return Section(
            "Draw: the path graph",
            f"{dag.number_of_nodes()} nodes and {dag.number_of_edges()} edges hold all {big(expansion.count())} "
            "terms of order 1: its walks from a source to the sink are the terms.",
            text=f"demo.graphml and demo.json for graph tools ({again.number_of_nodes()} nodes when read again), "
            "demo.png and selected.png to look at",
            pictures=(("every path", "demo.png"), ("selected paths", "selected.png")),
        )

    def compiling(self) -> Section:
        """Compile chosen paths; check them against the model itself."""
        expansion = jg.expand(self.graph, order=0)
        paths = jg.select(expansion, "embed > *.mlp > logits")
        module = jg.compile(expansion, paths)
        start = time.perf_counter()
        values = module(**self.inputs)
        seconds = time.perf_counter() - start
        terms = jg.terms(expansion, self.inputs, paths, tokenizer=self.loaded.tokenizer)
        rows = [(term.path, f"{term.norm:.4f}", term.says) for term in terms.terms]
        rows.append(("remainder", f"{float(norm(values.remainder[0, -1])):.4f}", ""))
        put_together = values.total + values.remainder
        loaded = jg.load(jg.save(module, self.folder / "module"))
        assert isinstance(loaded, jg.PathModule)
        again = loaded(**self.inputs).terms
        return Section(
            "Compile: chosen paths as a torch module",
            "select 'embed > *.mlp > logits', compile, run: an nn.Module on the model's own weights, which "
            "takes other batch sizes and lengths too.",
            text=module.extra_repr(),
            tables=(Table(("term", "norm", "says"), tuple(rows)),),
            after=f"terms + remainder against the model called by itself: max error "
            f"{_largest(put_together - self.output):.1e}; ran in {1000 * seconds:.0f} ms\n"
            f"saved in module/ as JSON and safetensors; loaded again, the terms are {_alike(values.terms, again)}",
        )

    def lenses(self) -> Section:
        """Logit lens (order 0) and jet lens (order 1) at every point of the stream."""
        lens = jg.lens(self.graph, self.inputs, order=1, tokenizer=self.loaded.tokenizer)
        rows = _lens_rows(lens)
        names = [f"{name}, order {order}" for order in (0, 1) for name in ("says", "KL", "cosine", "rest")]
        self._csv("lens.csv", ("point", "after", *names), rows)
        shown = ("point", "after", *(("says", "KL", "cos", "rest") * 2))
        return Section(
            "Lens: what does the stream say on the way?",
            "Per point of the stream, left the logit lens (order 0) and right the jet lens (order 1), against "
            "the model's output at the last position: KL in nats, cosine of centred logits, relative remainder.",
            tables=(Table(shown, tuple(rows), "lens.csv"),),
        )

    def bigrams(self) -> Section:
        """The table of `embed > logits` over the whole vocabulary."""
        vocabulary = self.output.shape[-1]
        bigrams = jg.ngrams(self.graph, per="row", top=BEST, tokenizer=self.loaded.tokenizer)
        header = ("token", *(f"{name} {rank}" for rank in range(1, BEST + 1) for name in ("next", "p")))
        everything = _bigram_rows(bigrams)
        order = bigrams.scores[::BEST].sort(descending=True, stable=True).indices[:SHOWN].tolist()
        self._csv("bigrams.csv", header, everything)
        rows = tuple(everything[row][:7] for row in order)
        table = Table(("token", "next", "p", "2nd", "p", "3rd", "p"), rows, "bigrams.csv", vocabulary)
        return Section(
            "Bigrams: what the weights know without context",
            f"The path 'embed > logits' is a table of {vocabulary:,} × {vocabulary:,} bigrams, computed from the "
            "weights alone. Its surest rows, with the softmax of each row:",
            tables=(table,),
        )

    # Files

    def _table(self, file: str, columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Table:
        self._csv(file, columns, rows)
        return Table(columns, tuple(rows[:SHOWN]), file, len(rows))

    def _csv(self, file: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        self._write(file, csv_text(columns, rows, spreadsheet=self.spreadsheet))

    def _write(self, file: str, text: str) -> None:
        write_atomically(self.folder / file, lambda part: part.write_text(text, encoding="utf-8"))


def _remainders(graph: jg.ResidualGraph, inputs: Mapping[str, Tensor]) -> Iterator[tuple[int, float]]:
    """What the components recipe leaves of the output, by order."""
    for order in (0, 1, 2):
        expansion = jg.expand(graph, recipe="components", order=order)
        yield order, float(jg.terms(expansion, inputs).rest)


def _lens_rows(lens: Lens) -> list[tuple[str, ...]]:
    """A row per point of what the lenses of order 0 and 1 say at the last position."""
    columns, last = lens.columns(), lens.output.shape[1] - 1
    kept = [row for row, place in enumerate(columns["position"]) if place == last]
    rows = []
    for zeroth, first in zip(kept[::2], kept[1::2], strict=True):
        cells = []
        for row in (zeroth, first):
            kl, cosine, rest = (columns[name][row] for name in ("kl", "cosine", "remainder"))
            cells += [str(columns["top"][row]), f"{kl:.3f}", fixed(float(str(cosine))), f"{rest:.2f}"]
        after = "embeddings" if columns["point"][zeroth] == "h0" else str(columns["after"][zeroth])
        rows.append((str(columns["point"][zeroth]), after, *cells))
    return rows


def _bigram_rows(bigrams: NGrams) -> list[tuple[str, ...]]:
    """A row per token: what follows best, and how probable it is, by rank."""
    columns, rows = bigrams.columns(), []
    for start in range(0, len(bigrams), BEST):
        pairs = [(columns["next"][row], columns["probability"][row]) for row in range(start, start + BEST)]
        cells = (cell for following, p in pairs for cell in (str(following), fixed(float(str(p)))))
        rows.append((str(columns["token"][start]), *cells))
    return rows


def _alike(one: Mapping[jg.Path, Tensor], other: Mapping[jg.Path, Tensor]) -> str:
    """Whether terms are those of a module that was loaded again. Its weights are mapped from their file, and products
    of what begins elsewhere in memory may round differently.
    """
    if all(torch.equal(value, other[path]) for path, value in one.items()):
        return "the same to the bit"
    most = max(_largest(value - other[path]) for path, value in one.items())
    size = max(map(_largest, one.values()))
    if most <= ROUNDING * size * torch.finfo(next(iter(one.values())).dtype).eps:
        return f"the same up to rounding: max difference {most:.1e}, of values up to {size:.3g}"
    return f"NOT the same, but up to {most:.1e} apart: please report this"


def _largest(values: Tensor) -> float:
    return float(values.detach().abs().max())
