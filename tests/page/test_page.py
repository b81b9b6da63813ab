"""Pages, in a browser as a reader uses them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import networkx as nx
import pytest

import jetgraph as jg
from jetgraph.applications.cells import cell_graph
from jetgraph.layout.laying_out import lay_out
from jetgraph.page.building import LIBRARY, MODULES, WEB, page, table_page
from jetgraph.page.data import page_data
from tests.drawn import tokens
from tests.outlines import llama
from tests.page.browser import Tab, browser

pytestmark = pytest.mark.xdist_group("browser")


HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "\"'`${alert(1)}'",
    "</script><script>alert(1)</script>",
    "a\0b\x1b[0m",
    "\ud800",
    "\u202eabc",
]


@pytest.fixture(scope="module")
def opened() -> Iterator[Any]:
    with browser() as one:
        yield one


def written(dag: nx.MultiDiGraph, folder: Path) -> Path:
    return jg.write_graph(dag, folder / "page.html")


def test_a_page_is_one_small_file_under_a_strict_policy() -> None:
    text = page(tokens())
    assert len(text) < 300_000
    policy = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    assert len(policy) == 1
    assert "unsafe" not in policy[0]
    assert policy[0].startswith("default-src 'none'; script-src 'sha256-")
    assert not re.search(r"(?:src|href)\s*=|@import|url\(", text.replace("default-src", "").replace("img-src", ""))
    assert "Cytoscape Consortium" in text, "the licence goes with the code"
    assert page(tokens()) == text


def test_modules_share_one_scope() -> None:
    """No two of them call something by one name, and what one imports another has before it."""
    named: dict[str, str] = {}
    for module in (*MODULES, "table"):
        text = (WEB / f"{module}.js").read_text(encoding="utf-8")
        for names, other in re.findall(r'^import \{ ([^}]*) \} from "\./(\w+)\.js";$', text, flags=re.M):
            assert {named[name] for name in names.split(", ")} == {other}
        own = re.findall(r"^(?:export )?(?:async )?(?:const|let|function) (\w+)", text, flags=re.M)
        assert not set(own) & set(named)
        named |= dict.fromkeys(own, module)


def test_clicks_search_threshold_fold_and_reload(opened: Any, tmp_path: Path) -> None:
    tab = Tab(opened, written(tokens(), tmp_path), viewport={"width": 1200, "height": 800})
    assert tab.text("#title") == "made · 'b'"
    tab.tap("L2.mlp@0")
    assert tab.text("#panel h2") == "L2.mlp@0"
    assert "m.L2.mlp" in tab.text("#panel")
    assert tab.run("document.querySelector('#panel math msub mtext').textContent") == "L2.mlp"
    values = tab.page.locator("#panel section:last-of-type .number").all_inner_texts()
    assert values[1:] == ["7"], "the target is what it goes to"
    # Search by name, and by a path pattern.
    tab.page.keyboard.press("/")
    tab.page.keyboard.type("attn")
    assert tab.text("#found") == "6 found"
    tab.page.keyboard.press("Enter")
    assert tab.text("#found") == "1 of 6 found"
    assert tab.text("#panel h2") == "L0.attn@0"
    tab.page.fill("#search", "embed@1 > L1.mlp > logits")
    assert tab.text("#found") == "3 found"
    assert tab.run("jetgraph.drawing.cy.edges('.found').length") == 2
    # The threshold leaves out what is small, and says its sum.
    everything = tab.run("jetgraph.drawing.cy.edges().length")
    tab.page.fill("#search", "")
    tab.page.locator("#least").fill("60")
    some = tab.run("jetgraph.drawing.cy.edges().length")
    assert 0 < some < everything
    assert re.search(
        rf"hidden: {everything - some} of {everything} edges, Σ −[\d.]+; of those into the target", tab.text("#hidden")
    )
    # Pinned nodes stay when their block is folded.
    tab.page.locator("#least").fill("0")
    tab.tap("L2.mlp@0")
    tab.page.click("text=Pin")
    tab.page.click("#fold")
    labels = set(tab.run("jetgraph.drawing.cy.nodes().map(n => n.data('label'))"))
    assert labels == {"embed", "L0", "L1", "L2", "mlp", "'b'"}
    # What was chosen is in the address: another page of it is the same.
    tab.page.keyboard.press("d")
    address = tab.run("location.hash")
    again = Tab(opened, tmp_path / "page.html", address, viewport={"width": 1200, "height": 800})
    for code in (
        "location.hash",
        "jetgraph.drawing.cy.nodes().map(n => n.id())",
        "document.documentElement.dataset.theme",
    ):
        assert again.run(code) == tab.run(code)
    assert again.text("#panel h2") == tab.text("#panel h2")
    assert tab.complaints == again.complaints == []
    assert all(url.startswith("file:") for url in tab.asked)
    assert len(tab.asked) == 1
    tab.page.close()
    again.page.close()


def test_nodes_are_grouped_and_walked_with_the_keys(opened: Any, tmp_path: Path) -> None:
    tab = Tab(opened, written(jg.path_graph(jg.expand(llama(3), 1)), tmp_path), viewport={"width": 1300, "height": 700})
    tab.tap("L0.attn~1")
    assert "paths through it" in tab.text("#panel")
    tab.tap("L0.mlp~1", shift=True)
    tab.page.keyboard.press("g")
    assert tab.text("#panel h2") == "L0.attn~1 + 1"
    assert tab.run("jetgraph.state().groups.length") == 1
    tab.page.keyboard.press("g")
    assert tab.run("jetgraph.state().groups.length") == 0
    tab.page.keyboard.press("Escape")
    assert tab.text("#panel h2") == "Overview"
    tab.page.keyboard.press("ArrowRight")
    first = tab.text("#panel h2")
    tab.page.keyboard.press("ArrowRight")
    assert tab.text("#panel h2") != first
    tab.page.fill("#search", "embed > ** > L1.mlp~1 > logits")
    assert (
        tab.run("jetgraph.drawing.cy.nodes('.found').map(n => n.data('label')).filter(l => l.startsWith('L2'))") == []
    )
    assert not tab.page.is_visible("#threshold"), "without values there is nothing to hide"
    assert tab.complaints == []
    tab.page.close()


def test_a_lens_of_several_orders_lets_choose(opened: Any, tmp_path: Path) -> None:
    names = ("part", "order", "example", "position", "token", "kl", "top")
    columns: dict[str, list[Any]] = {name: [] for name in names}
    for part, order, position in product(("h0", "h1"), (0, 1, 2), (0, 1)):
        kl = math.inf if (part, order) == ("h0", 2) else float(order)
        row = (part, order, 0, position, "'a'", kl, f"<b>{part}^{order}@{position}")
        for name, cell in zip(columns, row, strict=True):
            columns[name].append(cell)
    how: dict[str, Any] = {
        "title": "made",
        "row": ("part",),
        "value": "kl",
        "label": "top",
        "strong": "low",
        "by": "order",
    }
    dag = cell_graph(columns, keep=lambda facts: True, first=lambda facts: facts["order"] == 2, **how)
    tab = Tab(opened, written(dag, tmp_path), viewport={"width": 390, "height": 800})
    labels = "jetgraph.drawing.cy.nodes().map(n => n.data('label')).sort()"
    assert tab.run(labels) == [f"<b>{part}^2@{position}" for part in ("h0", "h1") for position in (0, 1)]
    assert tab.page.locator("#choice option").all_inner_texts() == ["0", "1", "2"]
    assert tab.page.input_value("#choice select") == "2"
    tab.page.select_option("#choice select", "1")
    assert tab.run(labels) == [f"<b>{part}^1@{position}" for part in ("h0", "h1") for position in (0, 1)]
    assert "show=1" in tab.run("location.hash")
    assert tab.run("document.documentElement.scrollWidth") <= 390
    tab.run("document.activeElement.blur()")
    for shown in ("2", "0"):
        tab.page.keyboard.press("o")
        assert tab.page.input_value("#choice select") == shown
    again = Tab(opened, tmp_path / "page.html", tab.run("location.hash"))
    assert again.run(labels) == tab.run(labels)
    assert tab.complaints == again.complaints == []
    # By point, the order that was chosen for it first.
    mixed = cell_graph(
        columns, keep=lambda _: True, first=lambda facts: facts["order"] == 1 + (facts["part"] == "h1"), **how
    )
    assert page_data(mixed)["choice"] == {"name": "order", "texts": ["chosen", 0, 1, 2], "first": 0}
    tab.page.close()
    again.page.close()


def test_letters_on_cells_can_be_read_when_a_high_page_opens(opened: Any, tmp_path: Path) -> None:
    """Of sixty points of the stream those at its end come first, in letters of 10 pixels where there is room."""
    rows = [(point, position) for point in range(61) for position in range(5)]
    columns = {
        "point": [f"h{point}" for point, _ in rows],
        "position": [position for _, position in rows],
        "token": [f"t{position}" for _, position in rows],
        "kl": [61.0 - point for point, _ in rows],
    }
    dag = cell_graph(columns, title="a lens", keep=lambda _: True, row=("point",), value="kl", strong="low")
    for size, least in ((1300, 0.999), (390, 0.4)):
        tab = Tab(opened, written(dag, tmp_path), viewport={"width": size, "height": 900})
        assert tab.run("jetgraph.drawing.cy.zoom()") >= least
        box = tab.run(
            "(() => { const b = jetgraph.drawing.cy.elements().renderedBoundingBox(); return [b.x1, b.x2, b.y1]; })()"
        )
        assert 0 <= box[0] < box[1] <= size
        assert 0 <= box[2] < 100, "from above"
        tab.page.close()


def test_cytoscape_opens_what_is_written_for_it(opened: Any, tmp_path: Path) -> None:
    dag = tokens()
    text = jg.write_graph(dag, tmp_path / "a.cytoscape.json").read_text(encoding="utf-8")
    tab = opened.new_page()
    tab.add_script_tag(path=LIBRARY)
    count, label, x = tab.evaluate(
        "(text) => { const how = { headless: true, styleEnabled: true, layout: { name: 'preset' } };"
        "const cy = cytoscape({ ...how, ...JSON.parse(text) });"
        "const node = cy.getElementById('L2.mlp@0');"
        "return [[cy.nodes().length, cy.edges().length], node.data('label'), node.position('x')]; }",
        text,
    )
    assert count == [len(dag), dag.number_of_edges()]
    assert (label, x) == ("L2.mlp@0", dag.nodes["L2.mlp@0"]["x"])
    tab.close()


def test_tables_are_sorted_and_filtered(opened: Any, tmp_path: Path) -> None:
    number = len(HOSTILE) + 1
    columns = {
        "path": [*HOSTILE, "b"],
        "value": [*map(float, range(len(HOSTILE))), float("nan")],
        "paths": [str(2 ** (10 * row)) for row in range(number)],
    }
    svg = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><script>alert(1)</script></svg>'
    text = table_page(HOSTILE[0], columns, svg, note=HOSTILE[1])
    assert "unsafe" not in text
    (tmp_path / "page.html").write_text(text, encoding="utf-8")
    tab = Tab(opened, tmp_path / "page.html", viewport={"width": 390, "height": 700})
    assert tab.text("#title") == HOSTILE[0]
    assert tab.run("document.querySelector('#figure img').naturalWidth") == 9
    assert tab.text("#note") == HOSTILE[1]
    tab.page.click("text=value")
    first = tab.run("document.querySelector('tbody td').textContent")
    assert first == HOSTILE[-1], "the largest number first"
    tab.page.click("text=paths")
    assert tab.run("document.querySelector('tbody td:last-child').textContent") == str(2 ** (10 * (number - 1)))
    tab.page.click("text=paths")
    assert tab.run("[...document.querySelectorAll('tbody td:last-child')].map(c => c.textContent)") == columns["paths"]
    tab.page.fill("#search", HOSTILE[1])
    assert tab.text("#found") == f"1 of {len(HOSTILE) + 1} rows"
    assert tab.complaints == []
    tab.page.close()


def test_counts_of_tables_are_read_by_thousands(opened: Any, tmp_path: Path) -> None:
    """Counts, also those that no number of the browser's holds; ids and positions are none."""
    columns = {"id": [50256, 1024], "paths": [str(2**70), 1234567], "edges": [None, 999]}
    text = table_page("a table", columns, counts=("paths", "edges"))
    (tmp_path / "page.html").write_text(text, encoding="utf-8")
    tab = Tab(opened, tmp_path / "page.html")
    cells = "[...document.querySelectorAll('tbody td')].map(c => c.textContent)"
    assert tab.run(cells) == ["50256", f"{2**70:,}", "", "1024", "1,234,567", "999"]
    for wanted in ("1,234", "1234567"):
        tab.page.fill("#search", wanted)
        assert tab.text("#found") == "1 of 2 rows"
    tab.page.fill("#search", "")
    tab.page.click("text=paths")
    assert tab.run(cells)[1] == f"{2**70:,}", "the largest first"
    assert tab.complaints == []
    tab.page.close()


def test_what_is_nearly_all_or_nothing_is_not_said_to_be(opened: Any, tmp_path: Path) -> None:
    """In tables, and in the panel of a node; as `jetgraph.numbers` says it."""
    near = [0.99996, 1 - 3e-7, 1.0, 1 - 1e-15, -7.24e-4, 3e-7]
    (tmp_path / "table.html").write_text(table_page("a table", {"probability": near}), encoding="utf-8")
    tab = Tab(opened, tmp_path / "table.html")
    cells = tab.run("[...document.querySelectorAll('tbody td')].map(c => c.textContent)")
    assert cells == ["0.99996", "1−3.0e−7", "1", "1", "−7.24e−4", "3.00e−7"]
    assert tab.run("getComputedStyle(document.querySelector('th')).textAlign") == "right", "names stand over numbers"
    tab.page.close()
    dag = tokens()
    shares = {"L2.mlp@0": (0.9997, "99.97 %"), "L1.mlp@0": (0.99999, ">99.99 %"), "embed@0": (1.0, "100.0 %")}
    shares |= {"embed@1": (3e-5, "<0.01 %"), "L0.mlp@1": (0.25, "25.0 %")}
    nx.set_node_attributes(dag, {node: {"share": share} for node, (share, _) in shares.items()})
    tab = Tab(opened, written(dag, tmp_path), viewport={"width": 1200, "height": 800})
    for node, (_, told) in shares.items():
        tab.tap(node)
        assert told in tab.text("#panel")
    tab.page.close()


def test_a_drawing_fits_its_window_until_it_is_moved(opened: Any, tmp_path: Path) -> None:
    tab = Tab(opened, written(tokens(), tmp_path), viewport={"width": 800, "height": 600})
    graph = "(() => { const c = jetgraph.drawing.cy, b = c.elements().renderedBoundingBox(), s = "
    graph += "document.getElementById('stage').getBoundingClientRect(); return [c.width() - s.width, c.height() - "
    graph += "s.height, b.x1, s.width - b.x2, c.zoom()]; })()"
    zooms = []
    for width, height in ((800, 600), (1400, 900), (420, 700)):
        tab.page.set_viewport_size({"width": width, "height": height})
        tab.page.wait_for_timeout(200)
        across, down, left, right, zoom = tab.run(graph)
        assert max(abs(across), abs(down)) <= 0.5, "the drawing is as large as its place"
        assert min(left, right) >= 0
        zooms.append(zoom)
    assert len(set(zooms)) == 3
    tab.page.keyboard.press("+")
    moved = tab.run("jetgraph.drawing.view()")
    tab.page.set_viewport_size({"width": 1000, "height": 800})
    tab.page.wait_for_timeout(200)
    assert tab.run("jetgraph.drawing.view()") == moved, "what a reader has moved stays"
    assert tab.complaints == []
    tab.page.close()


def test_pages_in_notebooks(opened: Any, tmp_path: Path) -> None:
    """A frame in a page of others: it runs, keeps out of the address, and a title cannot leave it."""
    dag = tokens()
    dag.graph["title"] = '"></iframe><b id="out">'
    (tmp_path / "notebook.html").write_text(f"<!doctype html>{jg.view(dag)._repr_html_()}", encoding="utf-8")
    tab = opened.new_page()
    complaints: list[str] = []
    tab.on("console", lambda message: complaints.append(message.text))
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.goto((tmp_path / "notebook.html").as_uri())
    frame = tab.frame_locator("iframe")
    frame.locator("html[data-ready]").wait_for(state="attached")
    assert frame.locator("#title").inner_text() == dag.graph["title"]
    assert tab.locator("#out").count() == 0
    frame.locator("#search").fill("attn")
    assert frame.locator("#found").inner_text() == "6 found"
    assert complaints == []
    tab.close()


def test_hostile_texts_stay_texts(opened: Any, tmp_path: Path) -> None:
    dag = tokens(len(HOSTILE), 1)
    names = {f"L{number}.mlp@0": text for number, text in enumerate(HOSTILE)}
    for node, text in names.items():
        dag.nodes[node].update(label=text, alias=text, token=text, formula=f"F[{text}](x)", path=text, layer="")
        dag.graph[text] = text
    dag.graph["model"] = HOSTILE[0]
    tab = Tab(opened, written(nx.relabel_nodes(dag, names), tmp_path))
    assert tab.text("#title").startswith(HOSTILE[0])
    for number, text in enumerate(HOSTILE[:4]):
        tab.run(f"void jetgraph.drawing.cy.getElementById('node:{2 * number + 2}').emit('tap')")
        assert tab.text("#panel h2") == text
        tab.page.fill("#search", text)
        assert tab.text("#found") in ("1 found", "2 found"), "the fourth holds the first"
    assert tab.run("document.querySelectorAll('img, iframe, object, script').length") == 4
    assert tab.complaints == []
    tab.page.close()


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1600, "light")])
def test_pages_fit_phones_and_desks(width: int, scheme: Any, opened: Any, tmp_path: Path) -> None:
    tab = Tab(opened, written(tokens(), tmp_path), viewport={"width": width, "height": 800}, color_scheme=scheme)
    assert tab.run("document.documentElement.scrollWidth") <= width
    assert tab.run("document.documentElement.dataset.theme") == scheme
    assert tab.run("document.getElementById('canvas').clientHeight") > 300
    assert tab.complaints == []
    tab.page.close()


@pytest.mark.parametrize(("layers", "positions"), [(25, 20), (100, 25)])
def test_large_graphs_open(layers: int, positions: int, opened: Any, tmp_path: Path) -> None:
    """1,000 nodes, and 5,000, of which each block is one node first."""
    dag = nx.MultiDiGraph(model="large", total=1.0)
    for position in range(positions):
        names = [f"L{layer // 2}.{('attn', 'mlp')[layer % 2]}@{position}" for layer in range(2 * layers)]
        for point, name in enumerate(names):
            alias, kind = name.partition("@")[0], name.partition("@")[0].partition(".")[2]
            facts = {"alias": alias, "kind": kind, "role": "site", "point": point, "position": position}
            dag.add_node(name, label=name, layer=alias.split(".")[0], token="'a'", value=1.0, **facts)
        dag.add_edges_from((start, end, {"value": 1.0}) for start, end in pairwise(names))
    tab = Tab(opened, written(lay_out(dag), tmp_path))
    shown = tab.run("jetgraph.drawing.cy.nodes().length")
    assert shown == (len(dag) if len(dag) <= 1500 else len(dag) / 2), "many are folded first"
    assert tab.complaints == []
    tab.page.close()
