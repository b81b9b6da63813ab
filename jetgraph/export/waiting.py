"""A line on stderr for work that takes long, as tracing may: what is being done, and for how long already."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from tqdm import tqdm

PATIENCE = 5.0
"""Seconds before a line is shown."""


class _Line:
    """What is being done, shown by a thread of its own once it takes long."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.stage = ""
        self._started = time.perf_counter()
        self._stream = sys.stderr
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._show, daemon=True)

    def start(self) -> None:
        """Begin to wait."""
        self._thread.start()

    def end(self) -> None:
        """Take the line away."""
        self._done.set()
        self._thread.join()

    def _show(self) -> None:
        if self._done.wait(PATIENCE):
            return
        with tqdm(bar_format="{desc}", file=self._stream, leave=False) as bar:
            while not self._done.is_set():
                stage = f": {self.stage}" if self.stage else ""
                bar.set_description_str(f"{self.text}{stage} … {time.perf_counter() - self._started:.0f} s")
                self._done.wait(1.0)


_line: ContextVar[_Line | None] = ContextVar("line", default=None)


@contextmanager
def waited_for(text: str) -> Iterator[None]:
    """Show a line for this work once it takes longer than `PATIENCE`, where stderr is a terminal.

    Work inside it may say at which stage it is, with `stage`; of works inside each other the outer one has the line.
    """
    if _line.get() is not None or not sys.stderr.isatty():
        yield
        return
    line = _Line(text)
    token = _line.set(line)
    line.start()
    try:
        yield
    finally:
        _line.reset(token)
        line.end()


def stage(text: str) -> None:
    """Say what of the work is being done, for its line."""
    line = _line.get()
    if line is not None:
        line.stage = text
