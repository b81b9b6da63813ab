"""Lines on stderr for work that takes long: what is being done, for how long already, and how far it has come."""

from __future__ import annotations

import itertools
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


_numbers = itertools.count()


class _Ticking(tqdm):
    """A bar that goes on telling the time where one step takes long, by a thread that all bars share."""

    every = 1.0
    """Seconds from one look to the next."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.number = next(_numbers)
        self._ends, self._ended = threading.Lock(), False
        # Steps that go together are told in one moment: the mean says more than what was last.
        super().__init__(*args, **{"smoothing": 0.0, **options})
        if not self.disable and not self.pos:
            _clock.add(self)

    def tick(self) -> None:
        """Tell how far it has come by now."""
        self.refresh()

    def tick_unless_ended(self) -> bool:
        """As `tick`, and not beside or after its end; whether it goes on."""
        with self._ends:
            if not self._ended:
                self.tick()
            return not self._ended

    def close(self) -> None:
        """End; nothing is told after that."""
        self._stop()
        super().close()

    def _stop(self) -> None:
        """Be ticked no more."""
        _clock.remove(self)
        with self._ends:
            self._ended = True


class _Clock:
    """A thread that ticks bars when their time comes: one that ends before has not started any.

    It begins with a bar and ends where it finds none, when the time of one comes that was.
    """

    def __init__(self) -> None:
        self._process = os.getpid()
        self._bars: dict[int, tuple[weakref.ref[_Ticking], float]] = {}
        """Each, and when its time comes."""
        self._begins, self._sooner = threading.Lock(), threading.Event()
        self._thread: threading.Thread | None = None
        self._wakes = 0.0

    def add(self, bar: _Ticking) -> None:
        """Tick a bar from now on."""
        if self._process != os.getpid():
            # Forked off, without the thread, and with its locks as they happened to be.
            self.__init__()
        due = time.monotonic() + bar.every
        self._bars[bar.number] = weakref.ref(bar), due
        with self._begins:
            if self._thread is None or not self._thread.is_alive():
                self._wakes = due
                self._thread = threading.Thread(target=self._run, name="jetgraph's bars", daemon=True)
                self._thread.start()
            elif due < self._wakes:
                self._sooner.set()

    def remove(self, bar: _Ticking) -> None:
        """Tick a bar no more. No lock is taken: bars are also collected, which is anywhere."""
        self._bars.pop(bar.number, None)

    def _run(self) -> None:
        while self._goes_on():
            self._sooner.wait(self._wakes - time.monotonic())
            for number, (there, due) in [*self._bars.items()]:
                if due > time.monotonic():
                    continue
                # Before it is told: one that cannot be, as its stream is closed, is not tried again.
                self._bars.pop(number, None)
                if (bar := there()) is not None and bar.tick_unless_ended():
                    # Where it has ended since, that is found out the next time.
                    self._bars[number] = there, time.monotonic() + bar.every
                del bar

    def _goes_on(self) -> bool:
        """There is a bar; and what it is woken for."""
        with self._begins:
            dues = [due for _, due in [*self._bars.values()]]
            self._sooner.clear()
            if dues:
                self._wakes = min(dues)
            else:
                self._thread = None
            return bool(dues)


_clock = _Clock()


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
