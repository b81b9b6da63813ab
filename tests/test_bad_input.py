"""Bad input ends in one line that says what is wrong: never in an error of another library, and never in silence.

The table is every public function by every argument by values of every wrong kind; a value that an argument takes is
left to the other tests. Python's own rules hold for calls with missing or unknown arguments.
"""

from __future__ import annotations

import math
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import jetgraph as jg
from jetgraph.algebra import formulas as symbolic
from jetgraph.applications.ngrams.table import PathTable
from jetgraph.errors import check, quoted
from jetgraph.jets import registry
from jetgraph.views.picture import draw
from tests.commands import invoke

LONGEST = 1500
"""Characters that a message may have."""


class Model(nn.Module):
    """A residual language model."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(12, 6)
        self.mlp = nn.Linear(6, 6)
        self.unembed = nn.Linear(6, 12)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embed(input_ids)
        return self.unembed(x + torch.tanh(self.mlp(x)))


IDS = torch.tensor([[1, 2, 3], [4, 5, 6]])

BAD: Mapping[str, Any] = {
    "None": None,
    "bool": True,
    "negative": -1,
    "hopeless": -(10**9),
    "huge": 10**23,
    "digits": 10**5000,
    "fraction": 1.5,
    "nan": math.nan,
    "complex": 1j,
    "empty": "",
    "unknown": "nonsense",
    "markup": "a[/b]",
    "surrogate": "a\ud800b",
    "nul": "a\0b",
    "long": "x" * 30_000,
    "order": f"embed > L0.mlp^{'9' * 5000} > logits",
    "bytes": b"bytes",
    "bytes that change": bytearray(b"bytes"),
    "none": [],
    "nones": [None],
    "nested": [[1, 2], [3]],
    "mixed": ["a", 1],
    "mapping": {"x": 1},
    "numbered": {1: 2},
    "set": {1, 2},
    "class": int,
    "object": object(),
    "function": lambda *args, **options: None,
    "path": pathlib.Path("nowhere"),
    "scalar": torch.tensor(1.5),
    "no rows": torch.zeros(0, 3, dtype=torch.long),
    "no columns": torch.zeros(1, 0, dtype=torch.long),
    "far ids": torch.tensor([[10**9]]),
    "floats": torch.full((2, 3), math.nan),
    "bools": torch.zeros(2, 3, dtype=torch.bool),
    "bytes of ids": torch.zeros(2, 3, dtype=torch.int8),
    "complexes": torch.zeros(2, 3, dtype=torch.complex64),
    "meta": torch.zeros(2, 3, device="meta"),
    "sparse": torch.zeros(2, 3).to_sparse(),
    "rank": torch.zeros(1, 1, 1, 1, 1),
    "array": np.zeros((2, 3)),
    "module": nn.Linear(2, 2),
    "weights": {"*": -1.0},
    "split": {"*.mlp": "tails"},
    "set of far": {"L0.mlp": [[10**9]]},
    "wrong name": {"inputs": IDS},
    "no value": {"input_ids": None},
    "lines": "a\nb",
    "nested tensor": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "quantized": torch.quantize_per_tensor(torch.ones(2, 3), 0.1, 0, torch.qint8),
    "scripted": torch.jit.script(nn.Linear(2, 2)),
    "containing itself": [],
    "slice": slice("a", None, 0),
    "no file": "a\ud800.png",
}
BAD["containing itself"].append(BAD["containing itself"])


@pytest.fixture(scope="module")
def table() -> Mapping[str, tuple[Callable[..., Any], dict[str, Any]]]:
    """Functions by name, each with arguments that fit. All of them are tried, one after the other."""
    model = Model().eval()
    graph = jg.trace(model, input_ids=IDS)
    expansion = jg.expand(graph, 0)
    path = next(iter(expansion))
    values = jg.compile(expansion)(input_ids=IDS)
    frozen = jg.expand(graph, rules={"*": jg.Freeze()})
    frozen_values = jg.compile(frozen)(input_ids=IDS)
    attributed = jg.attribute(frozen, IDS[:1], target=1)
    mine = PathTable(graph)
    forward = graph.run(input_ids=IDS)
    joint = jg.joint_lens(graph, IDS)
    fitted = jg.fit_transport(graph, IDS, layers=[1])
    demo = jg.load_model("demo")
    compared = jg.ngram_agreement(graph, IDS.repeat(1, 20), top=1, minimum=2, resamples=2)
    few: dict[str, Any] = {"top": 3, "contexts": 3}
    dag = jg.path_graph(expansion)
    given: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
        "expand": (jg.expand, {"graph": graph, "order": 1, "recipe": "exhaustive", "directions": "stream"}),
        "expand by": (jg.expand, {"graph": graph, "weights": None, "split": None, "rules": None}),
        "expand lens": (jg.expand, {"graph": graph, "order": 1, "recipe": "lens", "layers": None}),
        "select": (jg.select, {"expansion": expansion, "pattern": "**", "limit": 1, "min_length": 0, "max_length": 3}),
        "path_graph": (jg.path_graph, {"expansion": expansion, "paths": "**"}),
        "compile": (jg.compile, {"expansion": expansion, "paths": "**", "budget": 10, "fuse": False}),
        "jet": (jg.jet, {"f": torch.exp, "x": torch.zeros(3), "v": torch.ones(3), "order": 2}),
        "taylor": (jg.taylor, {"f": torch.exp, "example": torch.zeros(3)}),
        "Jet": (jg.Jet, {"order": 1, "directions": "stream", "weights": "uniform"}),
        "Freeze": (jg.Freeze, {"gates": ("norm",), "halves": False}),
        "Path": (jg.Path, {"hops": path.hops}),
        "Outline": (
            jg.Outline,
            {name: getattr(expansion.outline, name) for name in ("sources", "steps", "decoder")},
        ),
        "Path.parse": (jg.Path.parse, {"text": str(path)}),
        "count": (expansion.count, {"length": 1, "order": 0}),
        "weight": (expansion.weight, {"path": path, "index": 0}),
        "weights": (expansion.weights, {"path": path}),
        "passage": (expansion.passage, {"alias": "logits"}),
        "entry": (expansion.entry, {"alias": "embed"}),
        "incoming": (expansion.incoming, {"point": 0}),
        "formula": (symbolic.formula, {"expansion": expansion, "path": path}),
        "split": (graph.split, {"how": "neurons"}),
        "graph": (graph, {"input_ids": IDS}),
        "combine": (values.combine, {"weights": torch.ones(len(values.terms)), "paths": None, "position": -1}),
        "each": (values.each, {"paths": None, "position": -1}),
        "mix": (values.mix, {"weights": torch.ones(len(values.terms)), "paths": None}),
        "lens": (
            jg.lens,
            {"model": graph, "inputs": IDS, "order": 0, "tolerance": None, "layers": None, "target": 1}
            | {"scale": "matched", "position": None, "tokenizer": None},
        ),
        "fit_transport": (
            jg.fit_transport,
            {"model": graph, "texts": IDS, "layers": [0], "tokens": 9, "window": None, "batch": 1, "shard": (0, 1)}
            | {"seed": 0, "positions": "one", "tokenizer": None},
        ),
        "open_corpus": (jg.open_corpus, {"source": __file__, "column": "text", "split": "train", "config": None}),
        "survey": (
            jg.survey,
            {
                "model": demo.trace(demo.inputs()),
                "prompts": ["Raise"],
                "of": "attributions",
                "targets": None,
                "split": None,
            }
            | {"resamples": 2, "seed": 0, "tokenizer": demo.tokenizer},
        ),
        "transport_lens": (
            jg.transport_lens,
            {"model": graph, "inputs": IDS, "transport": fitted, "tail": "mean", "order": 1, "layers": None}
            | {"target": 1, "tokenizer": None},
        ),
        "compare_lenses": (
            jg.compare_lenses,
            {"model": graph, "texts": IDS, "transport": None, "order": 1, "layers": [1], "tokens": 9, "window": None}
            | {"batch": 1, "resamples": 2, "seed": 0, "tokenizer": None},
        ),
        "merge": (fitted.merge, {"other": fitted}),
        "save a transport": (fitted.save, {"file": "a.safetensors"}),
        "load a transport": (jg.Transport.load, {"file": None}),
        "jet_expand": (
            jg.jet_expand,
            {
                "model": graph,
                "inputs": IDS,
                "at": "logits",
                "centres": ["components"],
                "order": 1,
                "tolerance": None,
                "weights": "uniform",
                "scale": "matched",
                "split": None,
                "tokenizer": None,
            },
        ),
        "choose_orders": (
            jg.choose_orders,
            {
                "model": graph,
                "inputs": IDS,
                "tolerance": 0.5,
                "highest": 1,
                "recipe": "exhaustive",
                "weights": "optimal",
            }
            | {"scale": "matched", "centres": "blocks", "split": None, "rules": None, "tokenizer": None},
        ),
        "joint_lens": (
            jg.joint_lens,
            {"model": graph, "inputs": IDS, "order": 1, "tolerance": None, "centres": "blocks", "target": 1}
            | {"scale": "matched", "tokenizer": None},
        ),
        "evaluate_lens": (
            jg.evaluate_lens,
            {
                "model": graph,
                "texts": IDS,
                "orders": (0,),
                "tolerance": None,
                "layers": None,
                "tokens": 4,
                "window": None,
                "batch": 2,
            }
            | {"resamples": 3, "seed": 0, "memory": 2**20, "skip_first": 0, "scale": "matched"},
        ),
        "terms": (jg.terms, {"model": expansion, "inputs": IDS, "path": "**", "split": None, "tokenizer": None}),
        "sum": (frozen_values.sum, {"pattern": "**", "position": -1}),
        "spectrum": (
            jg.spectrum,
            {"model": frozen, "inputs": IDS, "by": "length", "target": 1, "position": -1, "path": "**", "rules": None}
            | {"split": None, "memory": 2**20, "tokenizer": None},
        ),
        "attribute": (
            jg.attribute,
            {"model": frozen, "inputs": IDS[:1], "target": 1, "position": -1, "split": None, "rules": None}
            | {"scores": None, "positions": True, "memory": 2**20, "tokenizer": None},
        ),
        "prune": (attributed.prune, {"nodes": 0.8, "edges": 0.98}),
        "paths of an attribution": (attributed.paths, {"top": 2}),
        "faithfulness": (
            jg.faithfulness,
            {"attribution": attributed, "ablation": "mean", "prompts": IDS[:1], "by": "flow", "inside": False}
            | {"sizes": (0.5,), "of": "components"},
        ),
        "faithfulness of edges": (
            jg.faithfulness,
            {"attribution": attributed, "of": "edges", "edges": [("embed@0", "L0.mlp@0")], "sizes": ()},
        ),
        "rank": (
            jg.rank,
            {"model": frozen, "inputs": IDS[:1], "target": 1, "position": -1, "top": 2, "at_least": 0.1, "rules": None}
            | {"positions": True, "split": None, "signs": 4, "seed": 0, "memory": 2**20, "tokenizer": None}
            | {"path": None},
        ),
        "ablate": (
            jg.ablate,
            {"model": graph, "path": "L0.mlp > logits", "inputs": IDS, "scale": 0.0, "target": 1, "position": -1}
            | {"corrupt": IDS + 1, "values": "mean", "split": None, "tokenizer": None, "memory": 2**20},
        ),
        "attention_patterns": (
            jg.attention_patterns,
            {"model": graph, "inputs": IDS, "branches": "L0.attn", "tokenizer": None},
        ),
        "patch": (
            jg.patch,
            {"model": graph, "clean": IDS, "corrupt": IDS + 1, "senders": "L0.mlp", "receivers": "logits", "target": 1}
            | {"values": "mean", "screen": 2, "memory": 2**20},
        ),
        "ngrams": (
            jg.ngrams,
            {"model": graph, "path": "embed > logits", "n": 2, "top": 3, "per": "all", "scores": "logit", "first": [1]}
            | {"distance": 1, "memory": 2**20, "screen": None, "resume": None, "tokenizer": None}
            | {"least": None, "second": None, "identity": True},
        ),
        "ngram_mass": (
            jg.ngram_mass,
            {"model": graph, "keywords": ["a"], "path": "embed > logits", "weights": None}
            | {"reference": "uniform", "memory": 2**20},
        ),
        "ngram_agreement": (
            jg.ngram_agreement,
            {"model": graph, "texts": IDS.repeat(1, 20), "path": "embed > logits", "top": 1, "minimum": 2}
            | {"resamples": 2, "seed": 0, "memory": 2**20},
        ),
        "PathTable": (
            PathTable,
            {"model": graph, "path": "embed > logits", "n": 2, "distance": 1, "split": None, "memory": 2**20},
        ),
        "logits": (mine.logits, {"contexts": torch.zeros(1, 1, dtype=torch.long)}),
        "hidden": (mine.hidden, {"contexts": torch.zeros(1, 1, dtype=torch.long)}),
        "inputs": (mine.inputs, {"contexts": torch.zeros(1, 1, dtype=torch.long)}),
        "contexts": (mine.contexts, {"rows": torch.tensor([1]), "contexts": None}),
        "decode": (mine.decoding.decode, {"hidden": torch.zeros(2, 6)}),
        "numbers": (lambda **given: list(mine.numbers(**given)), {"rows": 2, "contexts": None, "start": 0}),
        "text": (mine.text, {"token": 1}),
        "selection": (jg.select(expansion, "**").__getitem__, {"index": 0}),
        "term": (values.terms.__getitem__, {"key": path}),
        "component": (forward.component, {"alias": "L0.mlp"}),
        "summand": (forward.summand, {"alias": "embed"}),
        "point": (forward.point, {"number": 0}),
        "at_end": (forward.at_end, {"point": 0}),
        "output_at": (forward.output_at, {"position": -1}),
        "value at a node": (forward.__getitem__, {"node": graph.traced.output}),
        "patch of a pass": (graph.run(input_ids=IDS).patch, {"alias": "L0.mlp", "value": torch.zeros(2, 3, 6)}),
        "figure": (joint.figure, {"row": 0}),
        "plot": (joint.plot, {"file": None}),
        "save a table": (joint.save, {"file": "a.csv", "spreadsheet": False}),
        "value": (compared.value, {"path": "unigram", "measure": "hit@1"}),
        "diff": (jg.diff, {"model_a": graph, "model_b": graph, "path": "embed > logits", "memory": 2**20, **few}),
        "compare": (
            jg.compare,
            {"model_a": graph, "model_b": graph, "prompts": IDS[:1], "target": 1, "split": None, "top": 1}
            | {"memory": 2**20, "tokenizer": None},
        ),
        "trajectory": (
            jg.trajectory,
            {"checkpoints": [graph], "path": "embed > logits", "names": None, "keywords": None, **few},
        ),
        "draw": (draw, {"dag": dag, "file": None, "title": "", "width": 4.0}),
        "write_graph": (jg.write_graph, {"dag": dag, "file": None}),
        "view": (jg.view, {"what": dag}),
        "report": (jg.report, {"model": graph, "prompts": (), "file": None}),
        "read_graph": (jg.read_graph, {"file": None}),
        "load": (jg.load, {"folder": None}),
        "chat": (jg.chat, {"messages": "Hello", "system": None}),
        "load_model": (
            jg.load_model,
            {"name": "demo", "meta": True, "dtype": None, "device": None, "revision": None, "peft": None},
        ),
        "save": (jg.save, {"value": graph, "folder": None}),
    }
    return given


NAMES = [
    *(
        "expand",
        "expand by",
        "expand lens",
        "select",
        "path_graph",
        "compile",
        "jet",
        "taylor",
        "Jet",
        "Freeze",
        "Path",
    ),
    "Outline",
    *(
        "Path.parse",
        "count",
        "weight",
        "weights",
        "passage",
        "entry",
        "incoming",
        "formula",
        "split",
        "graph",
        "combine",
    ),
    *(
        "each",
        "mix",
        "lens",
        "fit_transport",
        "open_corpus",
        "survey",
        "transport_lens",
        "compare_lenses",
        "merge",
        "save a transport",
        "load a transport",
        "jet_expand",
        "choose_orders",
        "joint_lens",
        "evaluate_lens",
        "terms",
        "sum",
        "spectrum",
        "attribute",
        "prune",
        "paths of an attribution",
        "faithfulness",
        "faithfulness of edges",
        "rank",
        "ablate",
        "patch",
        "attention_patterns",
        "ngrams",
        "ngram_mass",
        "ngram_agreement",
    ),
    *("PathTable", "logits", "diff", "compare", "trajectory", "draw", "write_graph", "view", "report", "read_graph"),
    *("load", "load_model", "save", "chat"),
    *("hidden", "inputs", "contexts", "decode", "numbers", "text", "selection", "term", "component", "summand"),
    *("point", "at_end", "output_at", "value at a node", "patch of a pass", "figure", "plot", "save a table", "value"),
]


@pytest.mark.parametrize("name", NAMES)
def test_no_argument_breaks_something_inside(name: str, table: Any, tmp_path: pathlib.Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    function, fitting = table[name]
    told = 0
    for argument in fitting:
        for kind, value in BAD.items():
            message = _told(function, {**fitting, argument: value}, f"{name}({argument}={kind})")
            told += message is not None
            assert message is None or (0 < len(message) < LONGEST and "\n" not in message), (argument, kind)
    assert told > 15 * len(fitting)


def _told(function: Callable[..., Any], arguments: Mapping[str, Any], call: str) -> str | None:
    """What a call says that it refuses; None where it takes its arguments."""
    try:
        function(**arguments)
    except jg.JetGraphError as error:
        return str(error)
    except Exception as error:
        raise AssertionError(f"{call} ends in {type(error).__name__}: {error}") from error
    return None


def test_rules_are_held_against_annotations(monkeypatch: Any) -> None:
    monkeypatch.setattr(registry, "RULES", {})
    fitting = {"op": torch.ops.aten.bitwise_and.Tensor, "rule": lambda order, *rest: rest, "kind": "linear"}
    for argument in (*fitting, "affine", "when", "gate", "held", "line", "absorbs", "complex_values", "replace"):
        calls = {kind: {"replace": True} | fitting | {argument: value} for kind, value in BAD.items()}
        told = [_told(jg.register_rule, call, f"{argument}={kind}") for kind, call in calls.items()]
        assert sum(message is not None for message in told) > len(BAD) / 2, argument


def test_the_table_has_every_function(table: Any) -> None:
    assert sorted(table) == sorted(NAMES)
    tried = {getattr(function, "__name__", "") for function, _ in table.values()}
    functions = {name for name in jg.__all__ if callable(getattr(jg, name)) and name[0].islower()}
    # Tracing and shards have their own tests, and rules have the one above.
    assert functions - tried <= {"trace", "sharded", "estimated", "on_ray", "register_rule"}


def test_a_number_or_path_that_is_none_is_an_error_of_python_too(table: Any) -> None:
    """Sequences end at an IndexError, mappings answer with a default on a KeyError."""
    expansion = table["select"][1]["expansion"]
    selection = jg.select(expansion, "** > logits")
    with pytest.raises(jg.SelectionError, match=r"selects 3 paths, so number 3 is none") as beyond:
        selection[3]
    assert isinstance(beyond.value, IndexError)
    assert list(reversed(selection)) == list(selection)[::-1]
    terms = jg.compile(expansion, selection[:1])(input_ids=IDS).terms
    with pytest.raises(
        jg.SelectionError, match=r"^'bias > logits' was not computed; there are embed > logits$"
    ) as other:
        terms["bias > logits"]
    assert isinstance(other.value, KeyError)
    assert terms.get("bias > logits") is None
    assert [1] not in terms


# What is shown


@pytest.mark.parametrize(
    "value", ["x" * 30_000, [*range(10**4)], 10**5000, [10**5000], {"a": "b" * 1000}, "a\n" * 1000], ids=range(6)
)
def test_long_values_are_shown_in_short(value: object) -> None:
    assert 0 < len(quoted(value)) < 200
    assert "\n" not in quoted(value)


def test_arguments_are_held_against_annotations() -> None:
    def function(one: int, two: str | list[int] | None = None, three: Mapping[str, float] | None = None) -> None:
        check(function, locals())

    function(1, [2, 3], {"a": 1})
    function(np.int64(1))  # type: ignore[arg-type]
    for wrong in ((1.5,), (True,), (1, [2, "3"]), (1, (2, 3)), (1, None, {1: 2.0}), (1, None, {"a": "b"})):
        with pytest.raises(jg.InputError, match=r"function takes as (one|two|three) "):
            function(*wrong)  # type: ignore[arg-type]


# The command line


def commands() -> Iterator[tuple[str, ...]]:
    """Commands with an option, whose value is to be bad; nothing here needs a trace."""
    options = {
        "lens": ("--order", "--output"),
        "evaluate-lens": ("--orders", "--tokens", "--window", "--batch", "--resamples", "--seed", "--output"),
        "ngrams": ("-n", "--top", "--per", "--scores", "--distance", "--memory", "--screen", "--output"),
        "agreement": ("--top", "--minimum", "--resamples", "--memory"),
        "diff": ("--top", "--contexts", "--memory", "--rows"),
        "compare": ("--split", "--top", "--rows"),
        "ablate": ("--split", "--scale", "--output"),
        "patch": ("--split", "--rows"),
        "expand": ("--order", "--recipe", "--directions", "--split", "--limit", "--rows", "--output"),
    }
    needed = {"lens": ("nowhere/x", "the"), "evaluate-lens": ("nowhere/x", "text"), "agreement": ("nowhere/x", "text")}
    needed |= {"diff": ("nowhere/x", "nowhere/y"), "compare": ("nowhere/x", "nowhere/y", "the")}
    needed |= {"ablate": ("nowhere/x", "the"), "patch": ("nowhere/x", "a", "b")}
    return ((name, *needed.get(name, ("nowhere/x",)), option) for name, some in options.items() for option in some)


@pytest.mark.parametrize("command", list(commands()), ids=lambda command: f"{command[0]} {command[-1]}")
def test_bad_options_are_one_line(command: tuple[str, ...], tmp_path: pathlib.Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text").write_text("a text", encoding="utf-8")
    for value in ("", "-1", "9" * 5000, "nan", "a[/b]", "a\udcffb", "a\0b", "x" * 30_000, "[[[["):
        result = invoke(*command, value)
        assert result.exit_code == 2, (value[:20], result.exception)
        assert result.stderr.count("\n") == 1, result.stderr[:500]
        assert len(result.stderr) < LONGEST


@pytest.mark.parametrize(
    "name", ["a[/b]", "a\udcffb", "a\0b", "x" * 30_000, "", "..", "--"], ids=lambda name: repr(name)[:20]
)
@pytest.mark.parametrize("command", ["inspect", "lens", "ngrams"])
def test_bad_names_are_one_line(command: str, name: str) -> None:
    result = invoke(command, name, *(["the"] if command == "lens" else []))
    assert result.exit_code == 2, result.exception
    assert result.stderr.count("\n") == 1
    assert len(result.stderr) < LONGEST


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(28, "No space left on device"), "cannot go on: No space left on device"),
        (PermissionError(13, "Permission denied", "a" * 5000), "cannot use 'aaa"),
        (jg.DomainError("x" * 30_000), "xxx … xxx"),
        (jg.InputError("two\nlines"), "two lines"),
    ],
    ids=["full disk", "no permission", "long", "lines"],
)
def test_errors_of_the_system_are_one_line(error: Exception, says: str, monkeypatch: Any) -> None:
    def fails(name: str, **options: object) -> None:
        raise error

    monkeypatch.setattr("jetgraph.loading.load_to_look", fails)
    result = invoke("inspect", "demo")
    assert result.exit_code == 2, result.exception
    assert says in result.stderr
    assert result.stderr.count("\n") == 1
    assert len(result.stderr) < LONGEST


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("x" * 300 + ".csv", "File name too long"),
        ("folder.csv", "it is a folder"),
        ("file/x.csv", "does not exist"),
        ("loop/x.csv", "Too many levels"),
        ("gone.csv", "the folder /no/such does not exist"),
    ],
    ids=lambda value: value[-12:],
)
def test_outputs_are_refused_before_work_starts(name: str, says: str, tmp_path: pathlib.Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "gone.csv").symlink_to("/no/such/x.csv")
    result = invoke("lens", "nowhere/x", "the", "--output", name)
    assert result.exit_code == 2, result.exception
    assert says in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("prompt", ["a\udcffb", "a\ud800"], ids=repr)
def test_prompts_are_unicode(prompt: str) -> None:
    result = invoke("lens", "demo", prompt)
    assert result.exit_code == 2, result.exception
    assert "half of a character" in result.stderr
    assert result.stderr.count("\n") == 1
