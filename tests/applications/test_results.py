"""Results: what users and models have written comes out as it is, whatever the format takes for a sign."""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
import json
import pathlib
import re
import sys
from typing import Any

import matplotlib.colors
import networkx as nx
import pydot
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from matplotlib.text import Text
from torch import Tensor, nn

import jetgraph as jg
from jetgraph.algebra.outline import JoinStep, Site, Source
from jetgraph.applications.comparing import ModelDiff
from jetgraph.applications.comparing.ngram_changes import NgramChange, NgramChanges
from jetgraph.applications.comparing.path_distances import Distance, PathDistances
from jetgraph.applications.comparing.site_changes import SiteChange, SiteChanges
from jetgraph.applications.results import Table, csv_text
from jetgraph.cli import terminal
from jetgraph.compilation.module import WeightWarning
from jetgraph.layout.colours import CYCLE, GIVES, TAKES
from jetgraph.views.picture import draw
from jetgraph.views.report import escaped, row_text
from tests.commands import invoke, succeed

NAMES = ["a$b", "$x_{$", r"$\frac$", "<script>alert(1)</script>", "&amp;", "`|`", "$$"]


def comparison(name: str) -> ModelDiff:
    change = NgramChange((1,), 2, 0.1, 0.4)
    return ModelDiff(
        NgramChanges((name, name), name, 3, (change,), (change,)),
        PathDistances((name, name), 3, (Distance(name, 0.1, 0.2, 0.3), Distance(f"-{name}", 0.1, None, 0.3))),
        SiteChanges((name, name), (SiteChange(name, name, 4, 0.5), SiteChange(f"={name}", name, 4, None))),
    )


def outline(name: str) -> jg.Outline:
    site = Site(f"{name}.mlp", f"layers.{name}", "mlp", "branch", False, False)
    decoder = Site("logits", "", "logits", "decoder", False, False)
    return jg.Outline((Source("embed", name, "embed"),), (JoinStep(name, "identity", False, (site,)),), decoder)


def texts_with(figure: Any, name: str) -> list[Text]:
    return [text for text in figure.findobj(Text) if name in text.get_text()]


@pytest.mark.parametrize("name", NAMES)
def test_names_in_pictures_are_no_formulas(name: str, tmp_path: pathlib.Path) -> None:
    found = comparison(name)
    figures = [result.plot() for result in (found.ngrams, found.paths, found.sites)] + [found.plot(tmp_path / "a.svg")]
    figures.append(draw(jg.path_graph(jg.expand(outline(name))), tmp_path / "dag.svg", title=name))
    for figure in figures:
        texts = texts_with(figure, name)
        assert texts
        assert not any(text.get_parse_math() for text in texts)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("suffix", [".graphml", ".gexf", ".json"])
def test_names_in_graph_files_are_texts(name: str, suffix: str, tmp_path: pathlib.Path) -> None:
    dag = jg.path_graph(jg.expand(outline(name)))
    assert nx.utils.graphs_equal(jg.read_graph(jg.write_graph(dag, tmp_path / f"dag{suffix}")), dag)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore::DeprecationWarning:pydot")
def test_names_in_dot_are_texts_to_others(name: str, tmp_path: pathlib.Path) -> None:
    dag = jg.path_graph(jg.expand(outline(name)))
    (graph,) = pydot.graph_from_dot_file(str(jg.write_graph(dag, tmp_path / "dag.dot")))
    labels = [node.get_attributes()['"label"'][1:-1].replace(r"\\", "\\") for node in graph.get_nodes()]
    assert labels == [label for _, label in dag.nodes(data="label")]
    assert len(graph.get_edges()) == dag.number_of_edges()


def test_names_in_notebooks_are_no_mark_up() -> None:
    page = comparison("<b>&amp;")._repr_html_() + jg.expand(outline("<b>&amp;"))._repr_html_()
    assert "&lt;b&gt;&amp;amp;" in page
    assert "<b>&amp;" not in page


@given(st.text(st.characters(exclude_categories=("C", "Z")), min_size=1) | st.sampled_from(NAMES))
def test_texts_in_reports_are_no_mark_up(text: str) -> None:
    reader = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    (paragraph,) = [token for token in reader.parse(f"x {escaped(text)} y") if token.type == "inline"]
    assert paragraph.children is not None
    assert "".join(token.content for token in paragraph.children) == f"x {text} y"
    assert {token.type for token in paragraph.children} <= {"text", "text_special"}
    table = reader.parse("\n".join([row_text(("a", "b")), "| --- | --- |", row_text((text, "last"))]))
    cells = [token.content for token in table if token.type == "inline"]
    assert len(cells) == 4
    assert cells[-1] == "last"


FORMULAS = ["=1+1", "+1+1", "-1+1", "@SUM(A1)", "\t=1", "\r=1", " =1", "\n=1", "\uff1d1", "-x", "=cmd|' /C calc'!A0"]


@pytest.mark.parametrize("text", FORMULAS)
def test_texts_are_no_formulas_in_spreadsheets(text: str) -> None:
    def read(spreadsheet: bool) -> list[Any]:
        content = csv_text((text, "b"), [(text, -0.5), ("plain", "-0.25")], spreadsheet=spreadsheet)
        return list(csv.reader(io.StringIO(content, newline="")))

    assert read(False) == [[text, "b"], [text, "-0.5"], ["plain", "-0.25"]]
    # Numbers stay numbers.
    assert read(True) == [[f"'{text}", "b"], [f"'{text}", "-0.5"], ["plain", "-0.25"]]


def test_tables_for_spreadsheets(tmp_path: pathlib.Path) -> None:
    found = comparison("=HYPERLINK(1)").paths
    file = found.save(tmp_path / "a.csv", spreadsheet=True)
    assert [line.split(",")[0] for line in file.read_text().splitlines()[1:]] == ["'=HYPERLINK(1)", "'-=HYPERLINK(1)"]
    assert file.read_text() != found.save(tmp_path / "b.csv").read_text()


def test_spreadsheets_on_the_command_line(tmp_path: pathlib.Path) -> None:
    outputs = terminal.check_outputs([tmp_path / "a.csv"], True)
    terminal.write(comparison("@x").sites, outputs)
    lines = (tmp_path / "a.csv").read_text(encoding="utf-8").splitlines()
    assert [line.split(",")[0] for line in lines[1:]] == ["'@x", "'=@x"]
    refused = invoke("lens", "demo", "a prompt", "--spreadsheet")
    assert refused.exit_code == 2
    assert "--spreadsheet is for a .csv file" in refused.stderr
    assert "--spreadsheet" in succeed("demo", "--help")


# What is shown first


@pytest.fixture(scope="module")
def demo() -> Any:
    loaded = jg.load_model("demo")
    return loaded, loaded.trace(loaded.inputs())


@pytest.fixture(scope="module")
def lens(demo: Any) -> Any:
    texts = ["Raise Value", "return"]
    return jg.lens(
        demo[0].trace(demo[0].inputs(texts)), texts, order=[0, 1], layers=[0, 2, -1], tokenizer=demo[0].tokenizer
    )


def test_results_show_the_last_position_of_each_input(lens: Any, demo: Any) -> None:
    columns, rows = lens.columns(), lens.shown().rows(lens.columns())
    assert len(rows) == 3 * 2 * 2
    assert {(columns["example"][row], columns["position"][row]) for row in rows} == {(0, 6), (1, 1)}
    assert "at 1 of 3 points the remainder is larger than the output" in lens.note
    assert "order 1 on a lens reads the end" in lens.note
    assert lens.note in " ".join(repr(lens).splitlines())
    tokenizer = demo[0].tokenizer
    said = [repr(tokenizer.decode([columns["top id"][row]])) for row in rows]
    assert [columns["top"][row] for row in rows] == said
    # Where there is no room for all, the end of the stream is shown, to which the rest leads.
    assert lens.shown().cut(rows, 5) == rows[-5:]
    assert lens.shown().cut(rows, 50) == rows
    assert lens.top(9, by="kl").shown().cut(rows, 5) == rows[:5]


def test_rows_are_taken_by_size_and_by_position(lens: Any) -> None:
    columns = lens.columns()
    best = lens.top(3, by="kl")
    assert list(best.columns()["kl"]) == sorted(columns["kl"], reverse=True)[:3]
    assert len(lens.top(5)) == 5
    # Of each input its own last one; of the shorter there is no third from the end.
    ends = [lens.at(place).columns() for place in (-1, -3)]
    assert [{*zip(end["example"], end["position"], strict=True)} for end in ends] == [{(0, 6), (1, 1)}, {(0, 4)}]
    assert len(lens.at(1)) == 2 * 3 * 2
    assert lens.at(1).top(1, by="kl").figure() is not None
    for wrong, says in (({"by": "size"}, "no column 'size': choose one of point"), ({"by": "top"}, "holds no numbers")):
        with pytest.raises(jg.InputError, match=says):
            lens.top(2, **wrong)
    with pytest.raises(jg.InputError, match="1 or more"):
        lens.top(0)
    with pytest.raises(jg.InputError, match="no position 7: there are 0 to 6"):
        lens.at(7)
    with pytest.raises(jg.InputError, match="has no positions"):
        comparison("a").paths.at(0)


def test_large_remainders_are_told_in_words(demo: Any, recwarn: pytest.WarningsRecorder) -> None:
    loaded, graph = demo
    given = loaded.inputs("Raise Value")
    plain = jg.compile(jg.expand(graph, 1, recipe="components", scale="none"))(**given)
    assert plain.relative > 1
    assert f"the remainder is {plain.relative:.3g} times as large as the output" in " ".join(repr(plain).split())
    assert "remainder is" not in repr(jg.compile(jg.expand(graph, recipe="frozen"))(**given))
    assert "not tell what it is" in jg.terms(jg.expand(graph, 1, recipe="components", scale="none"), given).note
    assert not [one for one in recwarn if one.category is WeightWarning]


def test_weights_that_no_type_holds_are_told() -> None:
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return x + torch.tanh(self.inner(x))

    graph = jg.trace(nn.Sequential(*(Branch() for _ in range(18))).eval(), torch.randn(2, 3), dynamic=False)
    expansion = jg.expand(graph, order=0)
    assert "below what float32 holds (2^-149)" in str(expansion)
    longest = jg.select(expansion, "**", min_length=18)
    assert expansion.lightness(longest[0]) == pytest.approx(sum(range(18)))
    with pytest.warns(WeightWarning, match=r"weights of 2\^-153 along a path"):
        jg.compile(expansion, longest)
    assert "below" not in str(jg.expand(graph, order=0, centres="blocks"))


@pytest.mark.parametrize(
    "command", ["joint-lens", "ngrams", "mass", "agreement", "evaluate-lens", "diff", "trajectory"]
)
def test_every_command_has_json(command: str, tmp_path: pathlib.Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("raise ValueError\nreturn value\n" * 20)
    given = {
        "joint-lens": ["demo", "Raise Value"],
        "ngrams": ["demo", "--top", 3],
        "mass": ["demo", text],
        "agreement": ["demo", text],
        "evaluate-lens": ["demo", text, "--layers", "0,-1", "--orders", "0", "--tokens", 20, "--window", 8],
        "diff": ["demo", "demo", "--contexts", 20],
        "trajectory": ["demo", "demo", "--contexts", 20],
    }[command]
    found = json.loads(succeed(command, *given, "--json"))
    assert found["title"]
    assert found["ngrams" if command == "diff" else "columns"]


HOSTILE = ["a&b_c%$#{}~^\\", "<b>|*x*", "line\nbreak", "\ud800\0", "naïve ─ 日本"]


@pytest.mark.parametrize("name", HOSTILE)
def test_tables_for_other_programs(name: str, tmp_path: pathlib.Path) -> None:
    found = comparison(name).paths
    read = json.loads(found.save(tmp_path / "a.json").read_text(encoding="utf-8"))
    assert read == {"title": found.title, "columns": {key: list(cells) for key, cells in found.columns().items()}}
    markdown = found.save(tmp_path / "a.md").read_text(encoding="utf-8")
    tokens = MarkdownIt("commonmark").enable("table").parse(markdown)
    assert sum(token.type == "tr_open" for token in tokens) == 3
    assert not any(token.type.startswith("html") for token in tokens)
    lines = found.save(tmp_path / "a.tex").read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("% ")
    assert lines[1] == r"\begin{tabular}{lrrr}"
    assert lines[-1] == r"\end{tabular}"
    rows = [line for line in lines if line.endswith(r" \\")]
    assert len(rows) == 3
    # Signs that LaTeX reads as its own are behind a backslash, three of them between cells.
    assert all(len(re.findall(r"(?<!\\)&", row)) == 3 for row in rows)
    assert not any(re.search(r"(?<!\\)[_%$#]", row) for row in rows)


def test_counts_are_read_by_thousands_and_written_in_digits(tmp_path: pathlib.Path) -> None:
    """Also those that no whole number of a file holds; positions and ids are no counts."""
    data = {"position": [1234], "token id": [50256], "paths": [str(12345)], "edges": [2**60], "value": [0.5]}
    table = Table("a", data, counts=("paths", "edges"))
    told = "1234      50256     12,345  2^60 ≈ 1.15e+18  0.5"
    assert told in repr(table)
    assert told in repr(table.top(1))
    assert all(f"<td>{text}</td>" in table._repr_html_() for text in ("50256", "12,345"))
    assert "| 12,345 |" in table.save(tmp_path / "a.md").read_text()
    tex = table.save(tmp_path / "a.tex").read_text()
    assert "12,345" in tex
    assert "{rrrrr}" in tex
    assert f"1234,50256,12345,{2**60}" in table.save(tmp_path / "a.csv").read_text()


def test_counts_of_commands_are_read_by_thousands(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "a.csv"
    assert "10,000\n" in succeed("spectrum", "demo:llama", "Raise Value", "--heads", "--by", "all", "-o", file)
    assert file.read_text().splitlines()[1].endswith(",10000")


def test_numbers_that_are_none_are_null(tmp_path: pathlib.Path) -> None:
    found = PathDistances(("a", "b"), 3, (Distance("x", float("nan"), float("inf"), 0.5),))
    columns = json.loads(found.save(tmp_path / "a.json").read_text())["columns"]
    assert [columns[name] for name in ("total_variation", "jensen_shannon", "cosine_distance")] == [
        [None],
        [None],
        [0.5],
    ]


def test_arrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """What polars, duckdb and pandas ask for: pyarrow does so too."""
    pyarrow = pytest.importorskip("pyarrow")
    found = comparison("a").paths
    assert pyarrow.table(found).to_pydict() == {name: list(cells) for name, cells in found.columns().items()}
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(jg.MissingExtraError, match=r"pip install 'jetgraph\[tables\]'"):
        found.__arrow_c_stream__()


def test_polars_and_duckdb_read_results() -> None:
    polars = pytest.importorskip("polars", reason="polars is not installed")
    duckdb = pytest.importorskip("duckdb", reason="duckdb is not installed")
    found = comparison("a").paths
    table = {name: list(cells) for name, cells in found.columns().items()}
    assert polars.DataFrame(found).to_dict(as_series=False) == table
    # By the variable's own name.
    assert duckdb.sql("select count(*) from found").fetchall() == [(len(found),)]
    name = next(name for name, cells in table.items() if isinstance(cells[0], float))
    assert duckdb.sql(f'select max("{name}") from found').fetchall() == [(max(table[name]),)]


def test_figures_have_one_style_and_the_width_of_a_column(tmp_path: pathlib.Path) -> None:
    found = comparison("name " * 30)
    wide = found.plot()
    narrow = found.plot(tmp_path / "a.pdf", width=3.4)
    assert narrow.get_figwidth() == 3.4
    assert wide.get_figwidth() == 17
    shown: Any = narrow
    assert shown._repr_png_().startswith(b"\x89PNG"), "a notebook shows it, where pyplot was never imported"
    for part in (found.ngrams, found.paths, found.sites):
        figure = part.plot(tmp_path / "b.png", width=3.4)
        assert all(not axes.spines["top"].get_visible() for axes in figure.axes)
        for axes in figure.axes:
            assert all(len(line) < 60 for line in axes.get_title().splitlines())
            colours = {matplotlib.colors.to_hex(patch.get_facecolor()) for patch in axes.patches}
            assert colours <= {*CYCLE, GIVES, TAKES}
    for width in (0.1, float("nan"), 1e9):
        with pytest.raises(jg.InputError, match=r"no width of a figure"):
            found.plot(width=width)
    assert matplotlib.rcParams["axes.spines.top"] is True, "the reader's own settings stay"


def test_tables_by_position_know_their_tokens() -> None:
    """All by example and position, so that `tokens[example][position]` is what stands there."""
    ids = torch.tensor([[5, 6, 7]])
    graph = jg.trace(jg.load_model("demo").model, input_ids=ids)
    attributed = jg.attribute(graph, ids, target=1)
    results = [
        *(jg.lens(graph, ids), jg.joint_lens(graph, ids), jg.spectrum(graph, ids), jg.ablate(graph, None, ids)),
        *(jg.patch(graph, ids, ids + 1, receivers="logits"), jg.attention_patterns(graph, ids)),
        *(attributed, attributed.prune(), attributed.paths(2), jg.rank(graph, ids, target=1, top=2, positions=True)),
    ]
    for result in results:
        assert result.tokens == (("#5", "#6", "#7"),), type(result).__name__
        assert result.top(1).tokens == result.tokens
    assert jg.spectrum(graph, ids + 1, position=1).at(1).tokens == (("#6", "#7", "#8"),)


def test_half_a_character_is_told_where_a_file_cannot_hold_it(tmp_path: pathlib.Path) -> None:
    """Such as in the label of a class, which a config may say in JSON."""
    table = Table("classes", {"label": ["\ud800"], "value": [0.5]})
    for suffix in (".csv", ".parquet"):
        with pytest.raises(jg.FileError, match="surrogates not allowed"):
            table.save(tmp_path / f"a{suffix}")
    table.save(tmp_path / "a.json")
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_pictures_say_what_they_leave_out(tmp_path: pathlib.Path) -> None:
    """Of more bars, nodes or classes than there is room for; those that have all say nothing."""
    many = {"path": [f"a{row}" for row in range(1200)], "value": [1.0 / (1 + row) for row in range(1200)]}
    for rows, said in ((1200, True), (24, False)):
        table = Table("a title", {name: cells[:rows] for name, cells in many.items()})
        assert ("drawn: 24 of 1,200" in table.figure().axes[0].get_title()) is said

    graph = jg.attribute("demo", "Raise Value")
    (title,) = [axes.get_title() for axes in graph.figure().axes]
    wanted = r"137 nodes and 976 edges; drawn: the 60 most influential, with 400 edges, which carry .* \(.*%\)"
    assert re.search(wanted, title), title
    (title,) = [axes.get_title() for axes in graph.prune(0.5).figure().axes]
    assert "drawn" not in title
    sums = jg.spectrum("demo", "Raise Value", by="last attn", split="heads")
    assert "drawn" not in sums.figure().axes[0].get_title()
    help_text = " ".join(succeed("attribute", "--help").split())
    assert "as many of the most influential nodes as a page has room for" in help_text


@pytest.mark.parametrize("prompt", ["The capital of France is", "Raise an exception if a value is"])
@pytest.mark.parametrize("width", [2.5, 3.3, 6.8])
def test_names_of_an_attribution_do_not_stand_on_each_other_in_a_column_of_a_paper(prompt: str, width: float) -> None:
    """What has no room for its name is told; all nodes are there, and so are the names of all targets."""
    found = jg.attribute("demo", prompt)
    figure = found.drawn(width)
    figure.canvas.draw()
    (axes,) = figure.axes
    named = [text for text in axes.texts if text.get_visible()]
    boxes = [text.get_window_extent() for text in named]
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    assert len(axes.collections) == min(len(found.nodes), 60 + 1)
    targets = {node.name for node in found.nodes if node.role == "target"}
    assert targets <= {text.get_text() for text in named}
    hidden = len(axes.texts) - len(named)
    assert (f"{hidden} node" in axes.get_xlabel()) == (hidden > 0)
    assert figure.get_figwidth() == width


class _Deep(nn.Module):
    """Forty blocks over embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 4)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)) for _ in range(40))
        self.head = nn.Linear(4, 9)

    def forward(self, ids: Tensor) -> Tensor:
        h = self.embed(ids)
        for layer in self.layers:
            h = h + layer(h)
        return self.head(h)


def test_the_picture_of_a_deep_attribution_is_no_higher_than_a_page() -> None:
    """As many nodes as there are rows for, the most influential ones, with all targets; the title says how many."""
    torch.manual_seed(0)
    found = jg.attribute(_Deep().eval(), torch.tensor([[3, 1, 4]]), target=[7, 8, 2])
    drawn = [node for node in found.nodes if node.role != "rest"]
    targets = {node.name for node in drawn if node.role == "target"}
    for width in (None, 2.5, 3.3, 6.8):
        figure = found.drawn(width)
        assert figure.get_figheight() <= 9
        (axes,) = figure.axes
        number = int(re.search(r"drawn:\s+the\s+(\d+)\s+most", axes.get_title())[1])
        assert number == len(axes.collections) - 1 < len(drawn)
        assert targets <= {text.get_text() for text in axes.texts}
    figure = found.plot(most=len(drawn))
    assert figure.get_figheight() > 9, "who asks for more has it"
    assert len(figure.axes[0].collections) == len(drawn)


def test_a_narrow_picture_of_a_lens_tells_which_points_it_leaves_out() -> None:
    """Of more points than a page has room for every second, third, … is drawn."""
    found = jg.lens("demo", "Raise an exception if")
    many = dataclasses.replace(
        found,
        points=tuple(range(63)),
        after=found.after[:1] * 63,
        logits=found.logits[:1].expand(63, *found.logits.shape[1:]),
        radius=None if found.radius is None else found.radius[:1].expand(63, *found.radius.shape[1:]),
    )
    narrow = many.drawn(3.3)
    assert len(narrow.axes[0].get_yticks()) == 32 + 1
    assert narrow.get_supylabel().endswith(": one of every 2, of 63 in all")
    assert "one of every" not in many.drawn().get_supylabel()
    assert "one of every" not in found.drawn(3.3).get_supylabel()
