"""The command line: what it prints, what it writes, and how it fails."""

import csv
import errno
import io
import json
import os
import pathlib
import re
import subprocess
import sys
from dataclasses import replace

import networkx as nx
import pydot
import pytest
import torch
import transformers
from rich.cells import cell_len
from rich.console import Console

import jetgraph as jg
from jetgraph.algebra.outline import JoinStep, Outline, Site, Source
from jetgraph.applications import readout
from jetgraph.cli import main, terminal
from jetgraph.cli.terminal import Columns
from jetgraph.demo import Demo, _alike
from jetgraph.files.graphs import GRAPHS
from jetgraph.loading import LoadError, load
from jetgraph.views.picture import PICTURES, PIXELS, draw
from jetgraph.views.report import Grid, Section, Table
from tests.commands import invoke, run, succeed

PNG = b"\x89PNG\r\n"

# One worker runs them all, so that each model is traced once.
pytestmark = pytest.mark.xdist_group("commands")


@pytest.fixture
def traced_once(monkeypatch):
    """Trace each model once for all tests that ask for this: a traced graph takes any prompt."""

    def trace(loaded, inputs):
        if loaded.meta:
            return original(loaded, inputs)
        if loaded.name not in GRAPHS_BY_MODEL:
            GRAPHS_BY_MODEL[loaded.name] = original(loaded, inputs)
        return GRAPHS_BY_MODEL[loaded.name]

    original = terminal.trace
    monkeypatch.setattr(terminal, "trace", trace)


GRAPHS_BY_MODEL: dict[str, tuple[jg.ResidualGraph, float]] = {}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A folder with a random BERT that has no tokenizer."""
    folder = tmp_path_factory.mktemp("bert")
    config = transformers.BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24
    )
    transformers.BertForMaskedLM(config).save_pretrained(folder)
    return folder


# Help


def test_help_teaches():
    text = succeed("--help")
    assert "jetgraph expand demo --order 1 --output dag.png" in text
    assert "Show a model's residual structure" in text
    assert succeed() == text


@pytest.mark.parametrize("words", [(), ("inspect",), ("cache",), ("cache", "list"), ("transport", "fit")])
def test_switches_are_given_nothing(words: tuple[str, ...]) -> None:
    assert "<bool>" not in succeed(*words, "--help")


def test_help_has_room_to_say_what_options_are_for():
    """In a terminal of 80 columns: what an option is given is one word, and a switch is given nothing."""
    for command in ("lens", "attribute", "ngrams"):
        lines = run([command, "--help"], env={"COLUMNS": "80", "TERMINAL_WIDTH": "80"}).stdout.splitlines()
        text = "\n".join(lines)
        for of_types in ("<int", "<float", "| gradient", "<bool> Print", "<str> Where"):
            assert of_types not in text
        starts = [line.index(word) for line in lines for word in ("Rows of the table", "Write the ") if word in line]
        assert max(starts) < 50, command
    assert "One of frozen, half, gradient." in re.sub(r"[\s│]+", " ", succeed("attribute", "--help"))


def test_help_of_commands_shows_defaults():
    text = re.sub(r"\s+", " ", succeed("expand", "--help"))
    assert "default: exhaustive" in text
    assert "default: 20" in text
    assert "[default: jetgraph-demo]" in re.sub(r"\s+", " ", succeed("demo", "--help"))


def test_version(monkeypatch):
    monkeypatch.setattr("importlib.metadata.version", {"jetgraph": "9.8.7"}.__getitem__)
    assert succeed("--version") == "9.8.7\n"


# Inspect


def test_inspect(traced_once):
    text = succeed("inspect", "demo")
    assert "8 residual joins" in text
    assert "L0.attn" in text
    assert "replay bit-equal" in text
    assert re.search(r"exhaustive\s+512\s+1,024\s+1,536", text)


def test_inspect_json(traced_once):
    facts = json.loads(succeed("inspect", "demo:llama", "--json"))
    assert facts["class"] == "LlamaForCausalLM"
    assert [join["branches"][0]["alias"] for join in facts["joins"][:2]] == ["L0.attn", "L0.mlp"]
    assert facts["terms"]["exhaustive"] == {"0": "256", "1": "512", "2": "768"}
    assert facts["replay"]["error"] == 0
    assert facts["parameters"] == sum(p.numel() for p in load("demo:llama").model.parameters())
    assert facts["parameters_read"] == facts["parameters"]


def test_inspect_meta_needs_no_weights(tmp_path):
    transformers.LlamaConfig(num_hidden_layers=2, architectures=["LlamaForCausalLM"]).save_pretrained(tmp_path)
    facts = json.loads(succeed("inspect", tmp_path, "--meta", "--json"))
    assert facts["terms"]["exhaustive"]["0"] == str(2**4)
    assert facts["replay"] is None


@pytest.mark.parametrize(
    ("config", "joins"),
    [
        (
            transformers.ViTConfig(
                hidden_size=16,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=24,
                image_size=32,
                patch_size=8,
            ),
            4,
        ),
        (transformers.T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2), 5),
        (
            transformers.BertConfig(
                vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24
            ),
            4,
        ),
    ],
    ids=["vit", "t5", "bert"],
)
def test_inspect_makes_inputs_for_other_models(config, joins, tmp_path):
    config.save_pretrained(tmp_path)
    assert len(json.loads(succeed("inspect", tmp_path, "--meta", "--json"))["joins"]) == joins


def test_architectures_of_the_config_are_loaded(tiny):
    assert type(load(str(tiny)).model).__name__ == "BertForMaskedLM"


# Expand


@pytest.mark.parametrize("suffix", GRAPHS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning:pydot")
def test_expand_writes_graphs(suffix, tmp_path, traced_once):
    file = tmp_path / f"dag{suffix}"
    text = succeed("expand", "demo:llama", "--order", 1, "--output", file)
    assert "512" in text
    if suffix in (".dot", ".gv"):
        # It is for writing: other programs read it.
        (drawn,) = pydot.graph_from_dot_file(str(file))
        dag, count = nx.nx_pydot.from_pydot(drawn), drawn.get_attributes()['"count"'].strip('"')
    elif suffix == ".html":
        assert "Content-Security-Policy" in file.read_text(encoding="utf-8")
        with pytest.raises(jg.InputError, match="a page is for writing"):
            jg.read_graph(file)
        return
    else:
        dag = jg.read_graph(file)
        count = dag.graph["count"]
    assert count == "512"
    assert nx.is_directed_acyclic_graph(dag)


@pytest.mark.parametrize("suffix", PICTURES)
def test_expand_writes_pictures(suffix, tmp_path, traced_once):
    file = tmp_path / f"dag{suffix}"
    file.write_text("old")
    chosen = ("--select", "embed > ** > L1.mlp~1 > logits^0", "--limit", 5)
    succeed("expand", "demo:llama", *chosen, "-o", file, "--figure-width", "6.8")
    start = {".png": PNG, ".svg": b"<?xml", ".pdf": b"%PDF"}[suffix]
    assert file.read_bytes().startswith(start)
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_what_is_printed_may_hold_what_is_no_text(tmp_path, monkeypatch, traced_once):
    """Linux takes any bytes for a name; a terminal may not."""
    monkeypatch.chdir(tmp_path)
    assert succeed("expand", "demo", "--order", 0, "-o", "a\udcff.json").endswith("wrote a\\udcff.json\n")
    assert jg.read_graph("a\udcff.json").graph["count"] == "512"


@pytest.mark.skipif(not pathlib.Path("/dev/full").is_char_device(), reason="Linux has a disk that is full")
@pytest.mark.parametrize("suffix", [".json", ".graphml", ".png", ".svg"])
def test_a_full_disk_is_told_and_left_as_it_is(suffix, tmp_path, monkeypatch, traced_once):
    file = tmp_path / f"full{suffix}"
    file.symlink_to("/dev/full")
    result = invoke("expand", "demo", "--select", "embed > L0.mlp > logits^0", "-o", file)
    assert result.exit_code == 2, result.exception
    assert result.stderr == f"jetgraph: cannot write {file}: No space left on device\n"
    assert file.is_char_device()
    assert not pathlib.Path("/dev/full.png").exists()


def test_expand_lists_paths_with_weights(traced_once):
    text = succeed("expand", "demo:llama", "--order", 0, "--select", "embed > *.mlp > logits")
    assert "4 paths match embed > *.mlp > logits" in text
    assert re.search(r"embed > L0\.mlp\^0 > logits\^0\s+L0\.mlp: 1/2\s+logits: 1/256", text)


def test_expand_evaluates_on_a_prompt(traced_once):
    text = succeed("expand", "demo", "--recipe", "components", "--prompt", "Return the number of")
    error = re.search(r"max error ([\d.e+-]+)", text)
    assert error is not None
    assert float(error[1]) < 1e-4
    loaded = load("demo")
    inputs = loaded.inputs("Return the number of")
    with torch.no_grad():
        last = loaded.model(**inputs).logits[0, -1]
    assert f"the model says {readout.top_tokens(last, loaded.tokenizer, 3)}" in text
    # What was not selected is no remainder.
    some = succeed("expand", "demo", "--recipe", "components", "-p", "L0.mlp > logits", "--prompt", "Return the")
    assert "remainder " in text
    assert re.search(r"others .*; 2 of 20 terms are told here", some)


def test_expand_sums_the_orders_of_a_lens(traced_once):
    text = succeed("expand", "demo", "--recipe", "lens", "-k", 1, "--prompt", "Return the")
    assert re.search(r"h8 > logits\^1\s+1\.000\s+0\.000\s+0\.000", text)


# Bad input


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["inspect", "nobody/nothing-of-this-name"], "nor is there a folder or a file 'nobody/nothing-of-this-name'"),
        (["inspect", "nothing.pt2"], "there is no file 'nothing.pt2'"),
        (["inspect", "./nowhere"], "there is no folder './nowhere'"),
        (["inspect", "demo:bert"], "choose one of demo, demo:gpt2, demo:llama"),
        (["inspect"], "MODEL"),
        (["inspect", "demo", "--nonsense"], "--nonsense"),
        (["unknown"], "unknown"),
        (["expand", "demo", "--order", "-1"], "--order"),
        (["expand", "demo", "--order", "one"], "--order"),
        (["expand", "demo", "--recipe", "soup"], "soup"),
        (["expand", "demo", "--recipe", "path", "--order", "2"], 'recipe="path" is of order 0'),
        (["expand", "demo", "--order", "2", "--directions", "terms"], 'directions="terms"'),
        (["expand", "demo", "--select", "embed > L9.mlp > logits"], "'L9.mlp'"),
        (["expand", "demo", "--select", "embed >"], "cannot be read"),
        (["expand", "demo", "--prompt", ""], "no tokens"),
        (["expand", "demo", "--prompt", "the " * 500], "more than the 128"),
        (["expand", "demo", "--meta", "--prompt", "the"], "--meta"),
        (["expand", "demo", "--output", "dag.docx"], ".graphml"),
        (["expand", "demo", "--output", "no/such/folder/dag.json"], "does not exist"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_bad_input_is_one_line(arguments, says, tmp_path, monkeypatch, traced_once):
    monkeypatch.chdir(tmp_path)
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1, result.stderr
    assert result.stderr.startswith("jetgraph: ")
    assert says in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        ("lens", "jetgraph lens"),
        ("expand demo --prompt", "jetgraph expand"),
        ("transport fit demo", "jetgraph transport fit"),
        ("transport fit demo --tokens", "jetgraph transport fit"),
        ("transport merge --foo", "jetgraph transport merge"),
        ("transport foo", "jetgraph transport"),
        ("estimate transport fit --foo", "jetgraph transport fit"),
        ("--foo", "jetgraph"),
    ],
)
def test_what_is_wrong_with_a_command_names_its_own_help(arguments: str, command: str) -> None:
    result = invoke(*arguments.split())
    assert result.exit_code == 2
    assert f"(see {command} --help)" in result.stderr


@pytest.mark.parametrize("width", [40, 60, 80, 140])
def test_no_number_of_a_table_is_cut_and_each_row_has_its_name(width: int) -> None:
    names = ["path", "variation", "variation ±", "top", "divergence", "divergence ±", "cosine"]
    rows = [
        ("embed > L0.mlp^0 > logits^0", "0.86151", "0.021461", "' the'", "0.52551", "0.021271", "-0.46641"),
        ("日本語 > logits^0", "0.86152", "0.021462", "' a longer text of some words'", "0.52552", "0.021272", ""),
    ]
    written = io.StringIO()
    Console(file=written, width=width).print(Columns(names, rows))
    lines = written.getvalue().splitlines()
    assert all(cell_len(line) <= width for line in lines)
    words = written.getvalue().split()
    numbers = [cell for row in rows for cell in row if re.fullmatch(r"-?[\d.]+", cell)]
    assert [words.count(number) for number in numbers] == [1] * 9
    heads = [line.split()[0] for line, before in zip(lines, ["", *lines], strict=False) if not before]
    assert set(heads) == {"path"}
    assert (len(heads) == 1) == (width > 100)
    assert sum(line.startswith("日本語") for line in lines) == len(heads)


def test_short_texts_of_a_table_are_not_broken() -> None:
    written = io.StringIO()
    rows = [("L1.mlp > logits", "0.123456", "' Paris'", "0.234567")]
    Console(file=written, width=30).print(Columns(["path", "a", "top", "b"], rows))
    assert "L1.mlp > logits" in written.getvalue()
    assert "' Paris'" in written.getvalue()


@pytest.mark.parametrize(
    ("option", "given", "told"),
    [
        ("--top", "0", "0 is too small: give 1 or more"),
        ("--top", "-7", "-7 is too small: give 1 or more"),
        ("--n", "5", "5 is too large: give 3 or less"),
        ("--top", "1.5", "'1.5' is no whole number"),
        ("--rows", "many", "'many' is no whole number"),
        ("--top", "9" * 5000, "'99999"),
        ("--per", "line", "'line' is not one of "),
    ],
)
def test_a_refused_value_is_told(option, given, told):
    result = invoke("ngrams", "demo", option, given)
    assert result.exit_code == 2
    assert told in result.stderr
    assert "Value error" not in result.stderr
    assert ". (see jetgraph ngrams --help)" not in result.stderr


def test_what_the_demo_says_of_terms_that_are_loaded_again():
    """Rounding is no fault to report; another value is."""
    path = jg.Path.parse("embed > logits")
    one = {path: torch.tensor([3.0, -4.0])}
    assert _alike(one, {path: torch.tensor([3.0, -4.0])}) == "the same to the bit"
    near = torch.nextafter(torch.tensor([3.0, -4.0]), torch.tensor(9.0))
    assert _alike(one, {path: near}).startswith("the same up to rounding: max difference")
    assert "please report" in _alike(one, {path: torch.tensor([3.0, -4.001])})
    assert "please report" in _alike(one, {path: torch.tensor([3.0, torch.nan])})


def test_too_many_terms_to_evaluate(traced_once):
    result = invoke("expand", "demo", "--order", 4, "--orders", "apart", "--prompt", "the")
    assert result.exit_code == 2
    assert "--limit" in result.stderr


def test_models_without_tokenizer_take_no_prompt(tiny):
    result = invoke("expand", tiny, "--prompt", "the")
    assert result.exit_code == 2
    assert "has no tokenizer" in result.stderr


def test_damaged_weights(tiny, tmp_path):
    (tmp_path / "config.json").write_bytes((tiny / "config.json").read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(LoadError, match="cannot load"):
        load(str(tmp_path))


def test_bugs_keep_their_traceback(monkeypatch):
    def broken(name, **options):
        raise RuntimeError("a bug")

    monkeypatch.setattr("jetgraph.loading.load_to_look", broken)
    assert isinstance(invoke("inspect", "demo").exception, RuntimeError)


# The process


def test_process(monkeypatch, capsys):
    """By itself, and with its exit code, which what tests run commands with would catch."""
    command = [sys.executable, "-m", "jetgraph", "inspect", "demo"]
    good = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert good.returncode == 0
    assert good.stderr == ""
    assert "\x1b" not in good.stdout
    monkeypatch.setattr(sys, "argv", ["jetgraph", "expand", "demo", "-o", "x"])
    with pytest.raises(SystemExit) as bad:
        main()
    assert bad.value.code == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.count("\n") == 1


class _Refusing(io.StringIO):
    """Stdout as it is behind a closed pipe, or on a full disk."""

    def __init__(self, error: OSError) -> None:
        super().__init__()
        self.error = error

    def write(self, text: str) -> int:
        raise self.error

    def fileno(self) -> int:
        return os.open(os.devnull, os.O_WRONLY)


@pytest.mark.parametrize(
    ("stdout", "code", "says"),
    [
        (_Refusing(BrokenPipeError(errno.EPIPE, "Broken pipe")), 1, ""),
        (
            _Refusing(OSError(errno.ENOSPC, "No space left on device")),
            2,
            "jetgraph: cannot print: No space left on device\n",
        ),
        (None, 0, ""),
    ],
    ids=["head", "full", "closed"],
)
@pytest.mark.parametrize("arguments", ["expand demo --order 0 -o out.json", "lens demo Raise -o out.json --json"])
def test_files_are_written_whatever_becomes_of_stdout(
    stdout, code, says, arguments, tmp_path, monkeypatch, capsys, traced_once
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdout", stdout)
    monkeypatch.setattr(sys, "argv", ["jetgraph", *arguments.split()])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == code
    assert capsys.readouterr().err == says
    assert json.loads(pathlib.Path("out.json").read_text())


# Demo


@pytest.fixture(scope="module", params=["demo:gpt2", "demo:llama"])
def demonstration(request, tmp_path_factory):
    """The demo's text and folder, and its model."""
    folder = tmp_path_factory.mktemp("demo") / "new" / "folder"
    text = succeed("demo", "--model", request.param, "--prompt", "Raise Value", "--output", folder)
    return text, folder, load(request.param)


def test_demo_tells_every_step(demonstration):
    text, folder, _ = demonstration
    for step in ("Trace", "Expand", "Attribute", "Evaluate", "Draw", "Compile", "Lens", "Bigrams", "Done"):
        assert re.search(rf"^\d  {step}", text, re.MULTILINE), step
    assert str(folder) in text.replace("\n", "")


def test_demo_as_json(monkeypatch):
    """Each section with its tables by column; a grid whose columns have equal names, by row."""
    twice = Grid(("a", "a"), ("x",), (("1", "2"),), ((0.5, 0.5),))
    table = Table(("token", "next"), (("a", "b"), ("c", "d")), "bigrams.csv")
    monkeypatch.setattr(Demo, "steps", lambda self: iter([Section("One", "why", tables=(table,), grids=(twice,))]))
    facts = json.loads(succeed("demo", "--json"))
    assert facts["folder"] == "jetgraph-demo"
    assert facts["sections"] == [
        {
            "title": "One",
            "note": "why",
            "tables": [
                {"file": "bigrams.csv", "columns": {"token": ["a", "c"], "next": ["b", "d"]}},
                {"rows": [["", "a", "a"], ["x", "1", "2"]]},
            ],
        }
    ]


def test_demo_writes_its_files(demonstration):
    _, folder, _ = demonstration
    names = {path.name for path in folder.iterdir()}
    assert names >= {"demo.graphml", "demo.json", "demo.png", "selected.png", "report.html", "bigrams.csv", "lens.csv"}
    assert not any(name.startswith(".") for name in names)
    assert (folder / "demo.png").read_bytes().startswith(PNG)
    assert jg.read_graph(folder / "demo.graphml").graph == jg.read_graph(folder / "demo.json").graph


def test_demo_agrees_with_the_model(demonstration):
    text, _, _ = demonstration
    errors = [float(value) for value in re.findall(r"max error ([\d.e+-]+)", text)]
    assert errors
    assert max(errors) < 1e-4
    remainder = re.search(r"remainder ([\d.e+-]+)\n", text)
    assert remainder is not None
    assert float(remainder[1]) < 1e-3


def test_demo_bigrams_are_those_of_the_weights(demonstration):
    _, folder, loaded = demonstration
    model = loaded.model
    norm = [module for name, module in model.base_model.named_children() if "norm" in name or name == "ln_f"]
    with torch.no_grad():
        table = model.lm_head(norm[0](model.get_input_embeddings().weight)).softmax(-1)
    rows = read(folder / "bigrams.csv")
    best = table.topk(2)
    assert len(rows) == len(table) == loaded.config.vocab_size
    for row, p, tokens in zip(rows, best.values.tolist(), best.indices.tolist(), strict=True):
        # Rounding decides between two that are equally likely.
        near = tokens if p[0] - p[1] < 1e-5 else tokens[:1]
        assert row["next 1"] in [readout.token_text(loaded.tokenizer, index) for index in near]
        assert float(row["p 1"]) == pytest.approx(p[0], abs=6e-4)


def test_demo_lens_ends_at_the_output(demonstration):
    _, folder, loaded = demonstration
    with torch.no_grad():
        final = loaded.model(**loaded.inputs("Raise Value")).logits[0, -1]
    last = read(folder / "lens.csv")[-1]
    assert last["says, order 0"] == last["says, order 1"] == readout.top_tokens(final, loaded.tokenizer)
    assert float(last["KL, order 0"]) == pytest.approx(0, abs=1e-3)


def read(file) -> list[dict[str, str]]:
    with open(file, newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


# Drawing


def outline(layers: int) -> Outline:
    joins = tuple(
        JoinStep(f"h.{i}", "identity", False, (Site(f"L{i}.mlp", f"h.{i}.mlp", "mlp", "branch", False, False),))
        for i in range(layers)
    )
    return Outline((Source("embed", "", "embed"),), joins, Site("logits", "", "logits", "decoder", False, False))


def texts(figure) -> set[str]:
    return {text.get_text() for text in figure.axes[0].texts}


def test_picture_names_every_site():
    figure = draw(jg.path_graph(jg.expand(outline(5), order=1)))
    assert texts(figure) >= {"embed", "output", "logits⁰ ¹", *(f"L{i}.mlp~1" for i in range(5)), "h0", "h5"}
    apart = draw(jg.path_graph(jg.expand(outline(5), order=1, orders="apart")))
    assert texts(apart) >= {"embed", "output", "logits⁰ ¹", *(f"L{i}.mlp⁰ ¹" for i in range(1, 5)), "h0", "h5"}


def test_long_streams_are_folded():
    figure = draw(jg.path_graph(jg.expand(outline(252), order=0)))
    shown = texts(figure)
    assert {"L0.mlp⁰", "L251.mlp⁰"} <= shown
    assert "L100.mlp⁰" not in shown
    hidden = 252 - sum(".mlp" in text for text in shown)
    assert f"⋯\n{hidden} more sites" in shown


def blocks(layers: int) -> Outline:
    """A transformer's outline."""
    first, *_ = outline(1).steps
    assert isinstance(first, JoinStep)
    joins = tuple(
        replace(
            first, name=f"h.{i}.{kind}", branches=(Site(f"L{i}.{kind}", f"h.{i}.{kind}", kind, "branch", False, False),)
        )
        for i in range(layers)
        for kind in ("attn", "mlp")
    )
    return Outline((Source("embed", "", "embed"),), joins, outline(1).decoder)


@pytest.mark.parametrize("layers", [12, 30])
@pytest.mark.parametrize(
    "pattern",
    ["embed > L0.attn > L{0}.mlp > L{1}.mlp > logits", "embed > L{0}.* > L{1}.* > logits", "embed > *.mlp > logits"],
)
def test_selected_paths_are_drawn_whole(layers, pattern):
    expansion = jg.expand(blocks(layers), order=0)
    dag = jg.path_graph(expansion, pattern.format(layers // 2, layers - 1))
    figure = draw(dag)
    places = {text.get_text().removesuffix("⁰"): text.get_position() for text in figure.axes[0].texts}
    assert set(places) >= {facts["label"].removesuffix("^0") for _, facts in dag.nodes(data=True)}
    assert not any("more sites" in text for text in places)
    boxes = {places[facts["alias"]] for _, facts in dag.nodes(data=True) if facts["role"] == "branch"}
    curves = [patch.get_path().vertices for patch in figure.axes[0].patches]
    assert len(curves) == dag.number_of_edges()
    # Between its ends an edge keeps clear of the sites.
    assert not any(tuple(vertex) in boxes for curve in curves for vertex in curve[1:-1])


def test_folded_atoms_are_counted():
    shown = texts(draw(jg.path_graph(jg.expand(blocks(126), recipe="components"))))
    hidden = 252 - sum(text.endswith((".mlp", ".attn")) for text in shown)
    assert hidden > 30
    assert f"⋯\n{hidden} more sites" in shown


def test_heads_stand_below_the_stream():
    heads = tuple(Site(f"L0.attn.head{i}", "h.0.attn", "attn", "branch", False, False) for i in range(8))
    first, *rest = outline(3).steps
    assert isinstance(first, JoinStep)
    whole = Outline(outline(3).sources, (replace(first, branches=heads), *rest), outline(3).decoder)
    figure = draw(jg.path_graph(jg.expand(whole, recipe="components")))
    places = {text.get_text(): text.get_position() for text in figure.axes[0].texts}
    stream = places["output"][1]
    rows = [places[head.alias][1] for head in heads]
    assert len(set(rows)) == 8
    assert max(rows) < stream == places["embed"][1]
    assert places["L1.mlp"][1] == max(rows)


def test_selected_paths_and_lenses_are_drawn_in_layers():
    expansion = jg.expand(outline(6), order=1)
    figure = draw(jg.path_graph(expansion, jg.select(expansion, "embed > ** > L3.mlp~1 > ** > logits^0", limit=7)))
    assert "L3.mlp~1" in texts(figure)
    lens = draw(jg.path_graph(jg.expand(outline(6), recipe="lens", order=1)))
    assert texts(lens) >= {f"h{i}" for i in range(7)}


@pytest.mark.parametrize("pattern", ["**", "embed > L0.attn > L6.mlp > L11.mlp > logits", "embed > *.mlp > logits"])
def test_lines_end_at_a_width(pattern):
    dag = jg.path_graph(jg.expand(blocks(12), order=0), pattern)
    before = dict(dag.nodes(data="x"))
    for width in (3.4, 6.8, 30.0):
        figure = draw(dag, width=width)
        assert figure.get_figwidth() == pytest.approx(width)
        (axes,) = figure.axes
        left, right = axes.get_xlim()
        assert right - left == pytest.approx(PIXELS * width)
        drawn = [x for patch in axes.patches for x, _ in patch.get_path().vertices]
        assert left - 1e-6 <= min(drawn) < max(drawn) <= right + 1e-6
    assert dict(dag.nodes(data="x")) == before, "the graph is left as it was"
    with pytest.raises(jg.InputError, match="no width of a figure"):
        draw(dag, width=0.5)
    long = Site("name" * 20, "", "mlp", "branch", False, False)
    outline = Outline(blocks(1).sources, (JoinStep("0", "identity", False, (long,)),), blocks(1).decoder)
    with pytest.raises(jg.InputError, match=r"too narrow for this graph: take \d+\.\d inches"):
        draw(jg.path_graph(jg.expand(outline, order=0)), width=2.5)


def test_drawing_says_what_is_wrong(tmp_path, monkeypatch):
    dag = jg.path_graph(jg.expand(outline(2), order=0))
    with pytest.raises(jg.JetGraphError, match=r"\.png"):
        draw(dag, tmp_path / "dag.docx")
    with pytest.raises(jg.JetGraphError, match="does not exist"):
        draw(dag, tmp_path / "no" / "dag.png")
    with pytest.raises(jg.JetGraphError, match="no path DAG"):
        draw(nx.MultiDiGraph([(1, 2)]))
    many = jg.expand(outline(12), order=1)
    with pytest.raises(jg.JetGraphError, match="more than the 300"):
        draw(jg.path_graph(many, jg.select(many, "**")[::13]))
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(jg.JetGraphError, match=r"pip install 'jetgraph\[plot\]'"):
        draw(dag)


def test_orders_are_chosen_on_a_prompt(traced_once):
    """What is told of them, and the terms that they have; the options that they need and refuse."""
    text = succeed(
        *("expand", "demo", "--order", "auto", "--tolerance", "0.3", "--weights", "optimal", "--centres", "blocks"),
        *("--prompt", "Return the", "--rows", 9),
    )
    assert re.search(r"logits\s+[0-8]\s+\S+.*the lowest order within 0.3", text)
    assert "remainder" in text
    for options in (("--order", "auto"), ("--order", "auto", "--prompt", "a", "--halves"), ("--tolerance", "0.1")):
        assert invoke("expand", "demo", *options).exit_code == 2
    lens = succeed("lens", "demo", "Return the", "--order", "auto", "--tolerance", "0.3", "-l", "*.mlp")
    assert lens.count("by the norm's closed") == 4  # the column wraps


# The cache of traces


def test_commands_share_their_traces(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JETGRAPH_CACHE", str(tmp_path))
    assert "0 of at most" in succeed("cache", "list")
    first = succeed("lens", "demo", "Raise", "--json")
    listed = succeed("cache", "list")
    assert "1 of at most" in listed
    assert "GPT2LMHeadModel" in listed
    with monkeypatch.context() as patch:
        patch.setattr("jetgraph.saving.traces.trace", None)
        assert succeed("lens", "demo", "Raise", "--json") == first
    bytes_ = json.loads(succeed("cache", "list", "--json"))["columns"]["bytes"]
    assert json.loads(succeed("cache", "clear", "--json")) == {
        "title": "removed traces",
        "traces": 1,
        "bytes": sum(bytes_),
    }
    assert "removed 0 traces," in succeed("cache", "clear")
    assert succeed("lens", "demo", "Raise", "--json", "--no-cache") == first
    assert "0 of at most" in succeed("cache", "list")
    monkeypatch.setenv("JETGRAPH_CACHE", "off")
    assert "JETGRAPH_CACHE is off" in succeed("cache", "list")


def test_help_needs_no_tensors() -> None:
    """It comes at once: what takes seconds to import is imported where it is used."""
    commands = ("", "lens", "transport fit", "cache")
    code = (
        "import contextlib, sys; from jetgraph.cli import main\n"
        "for command in sys.argv[1:]:\n"
        "    sys.argv[1:] = [*command.split(), '--help']\n"
        "    with contextlib.suppress(SystemExit): main()\n"
        "    print('torch' in sys.modules, 'sympy' in sys.modules, end='\\f')"
    )
    found = subprocess.run([sys.executable, "-c", code, *commands], capture_output=True, text=True, check=True)
    for command, text in zip(commands, found.stdout.removesuffix("\f").split("\f"), strict=True):
        assert text.endswith("False False")
        assert ("--no-cache" in text) == (command not in ("", "cache"))
