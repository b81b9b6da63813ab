"""A report as a page: elements made of texts, so that no text is ever mark-up, and no script at all."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from jetgraph.numbers import NUMBER
from jetgraph.page.building import still_page
from jetgraph.views.report import Grid, Section, Table

BAR = 140
"""Units of a bar's width."""

LEVELS = 8
"""Depths of a colour."""


def document(title: str, about: str, sections: Iterable[Section]) -> str:
    """The page, as HTML."""
    body = Element("main")
    head = element("header", element("h1", title), element("p", about))
    listed = list(sections)
    links = [element("li", element("a", one.title, href=f"#{number}")) for number, one in enumerate(listed, 1)]
    body.extend([head, element("nav", element("ol", *links), **{"aria-label": "Contents"})])
    for number, section in enumerate(listed, 1):
        made = _section(section, 2)
        made.set("id", str(number))
        body.append(made)
    return still_page(visible(title), ElementTree.tostring(body, encoding="unicode", method="html"))


def visible(text: str) -> str:
    """A text whose letters a page can hold and a reader see: others as their escapes.

    >>> print(visible("a\\0b\\ud800, \\u202ec"))
    a\\x00b\\ud800, \\u202ec
    """
    return "".join(letter if _is_shown(letter) else letter.encode("unicode_escape").decode() for letter in text)


def _is_shown(letter: str) -> bool:
    return letter.isprintable() or letter in "\n\t\u00a0\u3000"


def element(name: str, *inside: str | Element, **attributes: str) -> Element:
    """An element with texts, which stay texts, and elements in it; `class` is spelled `kind`."""
    made = Element(name, {{"kind": "class"}.get(key, key): visible(value) for key, value in attributes.items()})
    last: Element | None = None
    for one in inside:
        if isinstance(one, Element):
            made.append(one)
            last = one
        elif last is None:
            made.text = (made.text or "") + visible(one)
        else:
            last.tail = (last.tail or "") + visible(one)
    return made


def _section(section: Section, level: int) -> Element:
    made = element("section", element(f"h{min(level, 6)}", section.title))
    made.extend(_content(section))
    made.extend(_section(inner, level + 1) for inner in section.inner)
    return made


def _content(section: Section) -> Iterator[Element]:
    if section.note:
        yield element("p", section.note)
    if section.points:
        yield element("ul", *(element("li", point) for point in section.points), kind="points")
    if section.text:
        yield element("pre", section.text, tabindex="0")
    if section.tables:
        yield element("div", *(_wide(table.caption, _table(table)) for table in section.tables), kind="beside")
    for grid in section.grids:
        yield _wide(grid.caption, _grid(grid))
    if section.after:
        yield element("p", section.after, kind="note")
    if section.commands:
        told = [element("code", command) for command in section.commands]
        yield element("details", element("summary", "reproduce"), element("pre", *_joined(told), tabindex="0"))


def _joined(parts: Sequence[Element]) -> Iterator[str | Element]:
    for number, part in enumerate(parts):
        yield from ("\n", part) if number else (part,)


def _wide(caption: str, inside: Element) -> Element:
    """What may be wider than the page, and then goes to and fro by itself under its caption."""
    told = [element("figcaption", caption)] if caption else []
    return element("figure", *told, element("div", inside, kind="wide", tabindex="0"))


def _table(table: Table) -> Element:
    numbers = [
        bool(cells) and all(NUMBER.fullmatch(cell) for cell in cells)
        for cells in ([row[place] for row in table.rows if row[place]] for place in range(len(table.columns)))
    ]
    kinds = [{"kind": "number"} if number else {} for number in numbers]
    head = [element("th", name, scope="col", **kind) for name, kind in zip(table.columns, kinds, strict=True)]
    made = _headed([*head, *([element("th", kind="bar")] if table.bars else [])])
    rows = element("tbody")
    largest = max((abs(size) for size in table.bars if math.isfinite(size)), default=0.0)
    signed = any(size < 0 for size in table.bars)
    for number, row in enumerate(table.rows):
        cells = [element("td", cell, **kind) for cell, kind in zip(row, kinds, strict=True)]
        if table.bars:
            cells.append(element("td", _bar(table.bars[number], largest, signed), kind="bar"))
        rows.append(element("tr", *cells))
    made.append(rows)
    return made


def _headed(head: Sequence[Element]) -> Element:
    return element("table", element("thead", element("tr", *head)))


def _bar(size: float, largest: float, signed: bool) -> Element:
    """A bar from a line in the middle where some go the other way, else from the left."""
    start, room = (BAR / 2, BAR / 2) if signed else (0.0, float(BAR))
    length = room * abs(size) / largest if largest and math.isfinite(size) else 0.0
    place = {"x": f"{start - length if size < 0 else start:.1f}", "width": f"{length:.1f}"}
    parts = [element("rect", y="2", height="10", rx="2", kind="takes" if size < 0 else "gives", **place)]
    if signed:
        parts.append(element("rect", x=f"{start:.1f}", y="0", width="1", height="14", kind="axis"))
    return element("svg", *parts, viewBox=f"0 0 {BAR} 14", width=str(BAR), height="14", **{"aria-hidden": "true"})


def _grid(grid: Grid) -> Element:
    head = [element("th"), *(element("th", name, scope="col") for name in grid.columns)]
    made = _headed(head)
    rows = element("tbody")
    for name, texts, strengths in zip(grid.rows, grid.texts, grid.strengths, strict=True):
        cells = [element("td", text, kind=_colour(size)) for text, size in zip(texts, strengths, strict=True)]
        rows.append(element("tr", element("th", name, scope="row"), *cells))
    made.append(rows)
    made.set("class", "grid")
    return made


def _colour(strength: float) -> str:
    """The class of a cell: how deep its colour is, and which of the two."""
    if not math.isfinite(strength):
        return "g0"
    level = round(LEVELS * min(abs(strength), 1.0))
    return f"{'t' if strength < 0 and level else 'g'}{level}"
