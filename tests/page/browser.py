"""A headless Chromium, where the system has one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@contextmanager
def browser() -> Iterator[Any]:
    """A browser of playwright's. Skips the test where there is none."""
    if CHROMIUM is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as driver:
        # As root, Chromium has no sandbox; the page is our own file.
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


class Tab:
    """A page that is open, and what it has complained of."""

    def __init__(self, opened: Any, file: Path, fragment: str = "", **how: Any) -> None:
        self.complaints: list[str] = []
        self.page = opened.new_page(**how)
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("dialog", lambda dialog: (self.complaints.append(dialog.message), dialog.dismiss()))
        self.asked: list[str] = []
        self.page.goto(f"{file.as_uri()}{fragment}")
        self.page.wait_for_selector("html[data-ready]")

    def run(self, code: str) -> Any:
        """What an expression is in the page."""
        return self.page.evaluate(code)

    def text(self, selector: str) -> str:
        return self.page.inner_text(selector)

    def tap(self, name: str, shift: bool = False) -> None:
        """Click on a node, called by its label."""
        number = self.run(f"jetgraph.graph.nodes.find(n => n.label === {name!r}).index")
        find = f"jetgraph.drawing.cy.getElementById('node:{number}')"
        place = self.run(
            f"(() => {{ const p = {find}.renderedPosition(), r = document.getElementById('canvas')"
            ".getBoundingClientRect(); return [p.x + r.left, p.y + r.top]; })()"
        )
        if shift:
            self.page.keyboard.down("Shift")
        self.page.mouse.click(*place)
        if shift:
            self.page.keyboard.up("Shift")
        # Cytoscape waits for a second click.
        self.page.wait_for_timeout(30)
