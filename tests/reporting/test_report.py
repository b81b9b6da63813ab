"""Reports: what they say is what the functions say, every command makes its numbers again, and no text is mark-up."""

from __future__ import annotations

import html
import re
import shlex
import warnings
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import jetgraph as jg
from jetgraph.cli.root import _of_loading
from jetgraph.errors import InputError
from jetgraph.reporting import models
from jetgraph.reporting.again import Origin
from jetgraph.reporting.report import Report
from jetgraph.views.document import document
from jetgraph.views.report import Grid, Section, Table, markdown
from tests.commands import run
from tests.page.browser import Tab, browser

PROMPT = "Raise an exception if"

pytestmark = pytest.mark.xdist_group("browser")

HOSTILE = (
    "<script>alert(1)</script>",
    "</style><img src=x onerror=alert(1)>",
    "\"'`${a}",
    "a\0b\x1b[0m\ud800\u202e",
    "@body@",
)


@pytest.fixture(scope="module")
def made() -> Report:
    return jg.report("demo", PROMPT)


@pytest.fixture(scope="module")
def traced() -> tuple[jg.ResidualGraph, Any]:
    """The same model as a graph, which no name leads to, and its tokenizer."""
    loaded = jg.load_model("demo")
    return loaded.trace(loaded.inputs()), loaded.tokenizer


def found(report: Report, title: str) -> Section:
    every = [*report.sections, *(inner for section in report.sections for inner in section.inner)]
    (one,) = [section for section in every if section.title == title]
    return one


def commands(report: Report) -> list[str]:
    return [line for one in report.sections for part in (one, *one.inner) for line in part.commands]


def test_it_says_what_the_functions_say(made: Report) -> None:
    view = jg.lens("demo", PROMPT)
    best = int(view.output[0, -1].argmax())
    spectrum = jg.spectrum("demo", PROMPT, by="last", target=best)
    table = found(made, "Which paths make it").tables[1]
    assert [float(row[1]) for row in table.rows] == pytest.approx(spectrum.values[:, 0, 0].tolist(), abs=6e-4)
    assert list(table.bars) == spectrum.values[:, 0, 0].tolist()
    grid = found(made, "What the stream says on the way").grids[0]
    columns = view.columns()
    for row, name in enumerate(grid.rows[1:], 1):
        own = [top for top, point in zip(columns["top"], columns["point"], strict=True) if name.startswith(f"{point} ")]
        assert list(grid.texts[row]) == own
    graph = jg.attribute("demo", PROMPT, target=best)
    flows = found(made, "Which component, at which token").grids[0]
    by_name = {node.name: node.flow for node in graph.nodes}
    place = flows.rows.index("L0.mlp")
    assert flows.texts[place][len(view.output[0]) - 1] == f"{by_name[f'L0.mlp@{len(view.output[0]) - 1}']:+.2f}"
    kept = jg.faithfulness(graph.prune()).kept
    assert any(
        row[0] == f"{kept.components} (the graph)" for row in found(made, "Is that what the model does?").tables[0].rows
    )
    sites = found(made, "How exact is this?").tables[2]
    assert {row[0] for row in sites.rows} >= {"L0.attn", "L3.mlp", "logits"}


def test_every_command_of_it_runs(made: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [shlex.split(line) for line in commands(made)]
    assert {line[0] for line in lines} == {"jetgraph"}
    # The last of each kind, for the time that they take; this is the report of one of them.
    for arguments in {line[1]: line[1:] for line in lines if line[1] != "report"}.values():
        ended = run(arguments)
        assert ended.exit_code == 0, (arguments, ended.output)
    assert "jetgraph report demo 'Raise an exception if' --output report.html" in commands(made)
    assert (tmp_path / "graph.html").exists()


def test_lines_on_a_sample_of_contexts_run_as_they_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under the names that arguments have now, and they give what stands above them."""
    monkeypatch.setattr(models, "CELLS", 2**15)
    known = found(jg.report("demo"), "What the weights know without context")
    scope: dict[str, Any] = {"jg": jg}
    *before, last = known.commands
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        for line in before[:2]:
            exec(line, scope)
        listed = eval(last, scope)
    columns = listed.columns()
    assert [row[:2] for row in known.tables[-1].rows] == list(zip(columns["token"], columns["next"], strict=True))


@torch.no_grad()
def test_next_tokens_that_are_nearly_certain_have_bars() -> None:
    """Which a bound such as `>0.9999` has not."""
    loaded = jg.load_model("demo")
    loaded.model.transformer.ln_f.weight *= 10.0
    sharp = jg.report(loaded.trace(loaded.inputs()), PROMPT, tokenizer=loaded.tokenizer)
    tables = found(sharp, "What the weights know without context").tables
    pairs = [pair for table in tables for pair in zip((row[2] for row in table.rows), table.bars, strict=True)]
    assert any(text.startswith(">") and 0.9999 < size < 1 for text, size in pairs)
    assert all(abs(float(text.strip("<>")) - size) <= 0.0005 for text, size in pairs)


def test_a_model_without_a_name_is_told_in_python(traced: tuple[jg.ResidualGraph, Any]) -> None:
    graph, tokenizer = traced
    report = jg.report(graph, [torch.tensor([tokenizer.encode(PROMPT)])])
    assert report.title == "demo (GPT2LMHeadModel): a report"
    assert "jg.lens(model, inputs, order=0)" in commands(report)
    assert not any(line.startswith("jetgraph ") for line in commands(report))
    assert report.sections[-1].title == "Prompt 1"


def test_two_models(traced: tuple[jg.ResidualGraph, Any]) -> None:
    graph, tokenizer = traced
    loaded = jg.load_model("demo")
    with torch.no_grad():
        loaded.model.transformer.h[2].mlp.c_proj.weight.mul_(1.5)  # pyright: ignore[reportCallIssue]
    report = jg.report(graph, PROMPT, other=loaded.model, tokenizer=tokenizer)
    weights, paths, ngrams, prompt = report.sections[1:]
    assert weights.tables[0].rows[0][0] == "L2.mlp"
    assert report.sections[0].points[0] == "The weights of L2.mlp have changed most."
    for other, said in ((graph, "No weights have changed."), ("demo:llama", "No site of one has weights of the same")):
        assert jg.report(graph, other=other, tokenizer=tokenizer).sections[0].points[0].startswith(said)
    assert paths.tables[0].rows
    assert {table.caption for table in ngrams.tables} <= {"gained", "lost"}
    assert prompt.title == f"Prompt 1: {PROMPT!r}"
    (inner,) = prompt.inner
    by_component, by_path = inner.tables
    assert by_component.rows[0][0] in ("L2.mlp", "L2.mlp.bias", "L0.mlp")
    assert list(map(abs, by_path.bars)) == sorted(map(abs, by_path.bars), reverse=True)
    assert inner.commands == (f"jg.compare(model, other, {PROMPT!r}, tokenizer=tokenizer)",)


@pytest.mark.parametrize("prompts", [[1], ["", PROMPT], [torch.zeros(2, 3, dtype=torch.long)]])
def test_bad_prompts(prompts: Any, traced: tuple[jg.ResidualGraph, Any]) -> None:
    graph, tokenizer = traced
    with pytest.raises(InputError):
        jg.report(graph, prompts, tokenizer=tokenizer)


@pytest.mark.parametrize("file", ["a.pdf", "missing/a.html"])
def test_bad_files(file: str) -> None:
    with pytest.raises(jg.JetGraphError):
        jg.report("demo", file=file)


def test_a_command_is_told_so_that_a_shell_reads_it() -> None:
    for text in HOSTILE[:-1]:
        line = Origin("demo").at(text).again("lens", "--order", 0, order=0)
        assert shlex.split(line) == ["jetgraph", "lens", "demo", text, "--order", "0"]
    line = Origin("demo").at("-5 is").again("lens", "--order", 0, order=0)
    assert shlex.split(line) == ["jetgraph", "lens", "--order", "0", "--", "demo", "-5 is"]
    for text in ("@home", "-"):
        line = Origin("demo").at(text).again("lens", "--order", 0, order=0)
        assert line == f"jg.lens('demo', {text!r}, order=0)", "a command would take it for a file, or for stdin"


@pytest.mark.parametrize(
    ("options", "flags"),
    [
        ({"dtype": torch.bfloat16, "device": torch.device("cpu")}, ["--dtype", "bfloat16", "--device", "cpu"]),
        ({"weights": "lazy", "memory": 2**30}, ["--lazy", "--weights-memory", str(2**30)]),
        ({"trust_remote_code": True, "revision": "v1"}, ["--trust-remote-code", "--revision", "v1"]),
        ({"tokenizer": Path("folder")}, ["--tokenizer", "folder"]),
        ({"quantization": {"quant_method": "quanto"}}, None),
    ],
)
def test_commands_repeat_what_a_model_was_loaded_with(options: dict[str, Any], flags: list[str] | None) -> None:
    loaded = replace(jg.load_model("demo"), options=options)
    line = Origin.of(loaded).at("text").shell("lens")
    assert line is None if flags is None else shlex.split(line or "") == ["jetgraph", "lens", "demo", "text", *flags]
    if flags:
        named = {option.name for option in _of_loading()}
        assert {flag[2:].replace("-", "_") for flag in flags if flag.startswith("--")} <= named


def test_commands_repeat_that_a_prompt_is_chat() -> None:
    said, started = jg.chat("How?"), jg.chat([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
    assert Origin("demo").at(said).shell("lens") == "jetgraph lens demo 'How?' --chat"
    assert Origin("demo").at(said, "How?").shell("report") is None, "a command takes all prompts for what a user says"
    for text in (started, jg.chat("How?", system="Be short.")):
        line = Origin("demo").at(text).again("lens", order=0)
        made = eval(line.removeprefix("jg.lens('demo', ").removesuffix(", order=0)"), {"jg": jg})
        assert made.messages == text.messages


def small() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """A network that reads no texts, with inputs; found by its name."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), Block(4), Block(4), nn.LayerNorm(4), nn.Linear(4, 5)), {
        "input": torch.randn(2, 3)
    }


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.tanh(self.body(x))


def image() -> tuple[nn.Module, torch.Tensor]:
    """What a lens cannot read, with inputs."""
    return nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.Tanh()), torch.randn(2, 1, 4, 4)


class Own(nn.Module):
    """A branch of an operator without a Taylor rule."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.special.airy_ai(x)


def without_rule() -> tuple[nn.Module, torch.Tensor]:
    return nn.Sequential(nn.Linear(3, 4), Own(), nn.LayerNorm(4), nn.Linear(4, 5)), torch.randn(1, 3)


def test_what_cannot_be_told_is_left_out() -> None:
    assert [one.title for one in jg.report(f"{__name__}:image").sections][-1] == "How many terms"
    last = jg.report(f"{__name__}:without_rule").sections[-1]
    assert last.title == "Input 1"
    assert "airy_ai" in last.text
    model, inputs = without_rule()
    with pytest.raises(jg.MissingRuleError, match="airy_ai"):
        jg.report(model.eval(), inputs)


def test_what_reads_no_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told as inputs and outputs, and the lines of Python run."""
    monkeypatch.chdir(tmp_path)
    named = f"{__name__}:small"
    report = jg.report(named)
    assert report.sections[-1].title == "Input 1", "the first of those that it came with"
    assert report.sections[0].points[1].startswith("On input 1 the largest output is #")
    for words in ("token", "prompt", "self."):
        assert words not in report.html.partition("<body>")[2].lower(), words
    made = found(report, "What comes out").tables[0]
    loaded = jg.load_model(named)
    scope: dict[str, Any] = {"jg": jg, "model": loaded.model, "inputs": {"input": torch.randn(1, 3)}}
    lines = [line for line in commands(report) if not line.startswith("jetgraph ")]
    assert lines[0].startswith("inputs = ")
    # What came with the model is what a command without a prompt looks at.
    assert f"jetgraph lens {named} --order 0" in commands(report)
    assert any(line.startswith(f"jetgraph attribute {named} --target '#") for line in commands(report))
    for line in lines:
        exec(line, scope)
    row = loaded.model(**scope["inputs"])[0]
    assert float(made.rows[0][1]) == pytest.approx(float(row.detach().max()), rel=1e-3)
    alone = jg.report(loaded.model, scope["inputs"]["input"])
    for line in commands(alone):
        exec(line, {**scope, "inputs": scope["inputs"]["input"], "prompts": scope["inputs"]["input"]})
    assert (tmp_path / "graph.html").exists()


class Reader(HTMLParser):
    """The elements of a page, and its texts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.attributes: set[str] = set()
        self.texts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def hostile(text: str) -> Section:
    table = Table((text, "n"), ((text, "1"), (text, "-2")), bars=(1.0, float("nan")), caption=text)
    grid = Grid((text,), (text,), ((text,),), ((-1.0,),), caption=text)
    inside = Section(text, text, commands=(text,))
    return Section(text, text, text=text, tables=(table,), grids=(grid,), points=(text,), after=text, inner=(inside,))


@pytest.mark.parametrize("text", HOSTILE)
def test_texts_stay_texts(text: str) -> None:
    page = document(text, text, [hostile(text)])
    page.encode()
    read = Reader(page)
    assert not read.names & {"script", "img", "iframe", "object", "link", "form"}
    assert not any(name.startswith("on") or name in ("src", "style") for name in read.attributes)
    assert "\0" not in page
    assert not re.search(r"(?:src|href)=\"(?!#)|@import|url\(", page)
    if text.isprintable():
        assert sum(text in one for one in read.texts) > 10
        assert len(re.findall(r"(?<!\\)<script>", markdown(text, text, [hostile(text)]))) <= 3, "in fences only"


def test_it_is_one_page_in_which_nothing_runs(made: Report, tmp_path: Path) -> None:
    policy = re.findall(r'Content-Security-Policy" content="([^"]*)"', made.html)
    assert len(policy) == 1
    assert html.unescape(policy[0]).startswith("default-src 'none'; style-src 'sha256-")
    assert "script-src" not in policy[0]
    assert len(made.html) < 200_000
    assert made.save(tmp_path / "r.md").read_text(encoding="utf-8").startswith("# demo: a report\n")
    file = made.save(tmp_path / "r.html")
    with browser() as opened:
        for scheme, width in (("light", 1600), ("dark", 390)):
            tab = Tab(opened, file, color_scheme=scheme, viewport={"width": width, "height": 800})
            assert tab.complaints == []
            assert tab.asked == [file.as_uri()]
            assert tab.run("document.documentElement.scrollWidth") <= width
            paper = tab.run("getComputedStyle(document.body).backgroundColor")
            assert paper == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 24, 29)"), "the style is let in"


class Energy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x + torch.tanh(self.layer(x))).logsumexp(-1).mean()


def energy() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    return Energy().eval(), {"x": torch.randn(2, 4, 3)}


def test_nets_whose_output_is_a_number_have_reports(tmp_path: Path) -> None:
    result = run(["report", f"{__name__}:energy", "-o", str(tmp_path / "energy.md")])
    assert result.exit_code == 0, result.stderr
    assert "L0.mlp" in (tmp_path / "energy.md").read_text(encoding="utf-8")
