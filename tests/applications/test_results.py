"""Results: what users and models have written comes out as it is, whatever the format takes for a sign."""

from __future__ import annotations

import csv
import io
import pathlib
from typing import Any

import networkx as nx
import pydot
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from matplotlib.text import Text

import jetgraph as jg
from jetgraph.algebra.outline import JoinStep, Site, Source
from jetgraph.applications.comparing import ModelDiff
from jetgraph.applications.comparing.ngram_changes import NgramChange, NgramChanges
from jetgraph.applications.comparing.path_distances import Distance, PathDistances
from jetgraph.applications.comparing.site_changes import SiteChange, SiteChanges
from jetgraph.applications.results import csv_text
from jetgraph.cli import terminal
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
