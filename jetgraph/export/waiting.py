"""Lines on stderr for work that takes long: what is being done, for how long already, and how far it has come."""

from __future__ import annotations

import os
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from tqdm import tqdm

from jetgraph.errors import several

PATIENCE = 5.0
"""Seconds before a line is shown."""

EVERY = 10.0
"""Seconds from one line to the next where stderr is no terminal, and before the first."""


def overwrites() -> bool:
    """Whether stderr is a terminal on which a line can be written over; one that calls itself dumb cannot."""
    return sys.stderr.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")


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
    """Show a line for this work once it takes longer than `PATIENCE`, where it can be taken away again.

    Work inside it may say at which stage it is, with `stage`; of works inside each other the outer one has the line.
    """
    if _line.get() is not None or not overwrites():
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


_said: ContextVar[bool] = ContextVar("what is begun is said", default=False)


@contextmanager
def said() -> Iterator[None]:
    """Let work inside say on stderr what it begins, with `say`, as commands do."""
    token = _said.set(True)
    try:
        yield
    finally:
        _said.reset(token)


def say(text: str) -> None:
    """A line on stderr about work that begins, where somebody listens."""
    if _said.get():
        sys.stderr.write(f"\r{text}\n" if overwrites() else f"{text}\n")
        sys.stderr.flush()


EARLY, PLENTY = 0.05, 60.0
"""The share of work that has to be done, or the seconds that have to be gone, before the time that is left is told."""


class _Ticking(tqdm):
    """A bar that goes on telling the time where one step takes long, by a thread of its own."""

    every = 1.0
    """Seconds from one look to the next."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self._done = threading.Event()
        self._thread: threading.Thread | None = None
        # Steps that go together are told in one moment: the mean says more than what was last.
        super().__init__(*args, **{"smoothing": 0.0, **options})
        if not self.disable and not self.pos:
            self._thread = threading.Thread(target=_tick, args=(weakref.ref(self), self._done, self.every), daemon=True)
            self._thread.start()

    def tick(self) -> None:
        """Tell how far it has come by now."""
        self.refresh()

    def close(self) -> None:
        """End, with the thread."""
        self._stop()
        super().close()

    def _stop(self) -> None:
        """End the thread."""
        self._done.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()


def _tick(bar: weakref.ref[_Ticking], done: threading.Event, every: float) -> None:
    """Have a bar tell how far it has come, until it has ended or is gone."""
    while not done.wait(every) and (there := bar()) is not None:
        there.tick()
        del there


class _Lines(_Ticking):
    """A bar for files and pipes: a line every `EVERY` seconds, of the outermost bar alone."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.every = EVERY
        # Each step is counted when it is done; when a line is written is the thread's to say.
        super().__init__(*args, **{**options, "file": sys.stderr, "miniters": 1, "mininterval": 0.0})

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Nothing: lines come with time, not with steps."""
        return True

    def tick(self) -> None:
        """Write how far it has come."""
        facts = self.format_dict
        done, gone = self.n - self.initial, facts["elapsed"]
        known = self.total and done and (done >= EARLY * self.total or (done > 1 and gone > PLENTY))
        left = f", {(self.total - self.n) * gone / done:,.0f} s left" if known else ""
        of = several(self.total or self.n, self.unit.strip())
        self.fp.write(f"{self.desc}: {f'{self.n:,} of ' if self.total else ''}{of}, {gone:,.0f} s{left}\n")
        self.fp.flush()

    def close(self) -> None:
        """End without a trace."""
        self._stop()
        if not self.disable:
            self.disable = True
            self._decr_instances(self)  # type: ignore[attr-defined]


def progress(*args: Any, **options: Any) -> tqdm[Any]:
    """How far long work has come: a bar on a terminal, which goes at its end; elsewhere a line every `EVERY` seconds.

    Arguments are those of `tqdm`: what is iterated over, or `total`; `desc`, `unit`, `initial`.
    """
    kind = _Ticking if overwrites() else _Lines
    # A bar has it behind a number, without a space.
    unit = f" {options.pop('unit', 'steps')}"
    return kind(*args, **{**options, "unit": unit, "leave": False})
