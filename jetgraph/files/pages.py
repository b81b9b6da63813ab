"""Pages of graphs as values: written to files, and shown in notebooks."""

from __future__ import annotations

import html
import os
from dataclasses import dataclass
from pathlib import Path

import networkx as nx

from jetgraph.errors import check
from jetgraph.files.targets import check_target
from jetgraph.files.writing import write_text
from jetgraph.page.building import page
from jetgraph.page.data import title_of

EMBEDDED = 2**19
"""Characters of a page that a notebook shows where it is; a larger one is to be saved."""


@dataclass(frozen=True)
class View:
    """A page. In a notebook it shows itself."""

    title: str
    html: str

    def save(self, file: str | os.PathLike[str]) -> Path:
        """Write the page, as .html; an existing file is replaced as a whole or not at all.

        Raises
        ------
        InputError
            Another suffix.
        FileError
            A folder that does not exist.
        """
        check(View.save, locals())
        return write_text(check_target(file, (".html",)), self.html)

    def __repr__(self) -> str:
        return f"View of {self.title}: {len(self.html):,} characters; .save('page.html') writes it"

    @property
    def is_small(self) -> bool:
        """A notebook may hold it."""
        return len(self.html) <= EMBEDDED

    def _repr_html_(self) -> str:
        return self.frame() if self.is_small else f"<p>{html.escape(repr(self))}</p>"

    def frame(self) -> str:
        """The page in a frame of another one, in which it can run its own script and nothing else."""
        inside = html.escape(self.html, quote=True)
        return (
            f'<iframe title="{html.escape(self.title, quote=True)}" srcdoc="{inside}" sandbox="allow-scripts" '
            'width="100%" height="640" style="border: 1px solid #ccc; border-radius: 6px"></iframe>'
        )


def view_of(dag: nx.MultiDiGraph) -> View:
    """The page of a graph whose nodes say what they are."""
    return View(title_of(dag), page(dag))
