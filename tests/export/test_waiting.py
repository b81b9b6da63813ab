"""The line for work that takes long."""

from __future__ import annotations

import contextlib
import io
import re
import threading
import time

import pytest

from jetgraph.export import waiting
from jetgraph.export.process import alone, torch_silent


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("kind", [Terminal, io.StringIO])
def test_a_line_is_shown_on_a_terminal_once_work_takes_long(
    kind: type[io.StringIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = kind()
    monkeypatch.setattr("sys.stderr", stream)
    with waiting.waited_for("tracing Net"):
        waiting.stage("exporting it")
    assert not stream.getvalue()
    monkeypatch.setattr(waiting, "PATIENCE", 0.01)
    # What torch writes is kept from being shown meanwhile, and the line is not.
    with waiting.waited_for("tracing Net"), alone(), torch_silent():
        waiting.stage("exporting it")
        with waiting.waited_for("something inside"):
            time.sleep(0.2)
    text = stream.getvalue()
    assert bool(re.search(r"tracing Net: exporting it … \d+ s", text)) == (kind is Terminal)
    assert "inside" not in text
    assert not text or text.endswith("\r")


def test_how_far_work_has_come_is_a_line_where_stderr_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the outermost bar alone, and none of work that takes no time."""
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    assert list(waiting.progress(range(3), desc="short")) == [0, 1, 2]
    assert not stream.getvalue()
    # A terminal that cannot write over a line gets lines too.
    monkeypatch.setattr("sys.stderr", dumb := Terminal())
    monkeypatch.setenv("TERM", "dumb")
    assert list(waiting.progress(range(3), desc="short")) == [0, 1, 2]
    assert not dumb.getvalue()
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setattr(waiting, "EVERY", 0.01)
    with waiting.progress(total=4, desc="comparing", unit="contexts") as bar:
        for _ in waiting.progress(range(2), desc="inside"):
            bar.update(2)
            time.sleep(0.1)
    first, *_ = lines = stream.getvalue().splitlines()
    assert first.startswith("comparing: 2 of 4 contexts, 0 s, ")
    assert first.endswith(" s left")
    assert not any("inside" in line for line in lines)


@pytest.mark.parametrize(
    ("total", "unit", "told"),
    [(1, "runs of 4 windows", "0 of 1 run of 4 windows"), (1, "passes", "0 of 1 pass"), (2, "rows", "0 of 2 rows")],
)
def test_a_single_step_is_one(total: int, unit: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", stream := io.StringIO())
    monkeypatch.setattr(waiting, "EVERY", 0.01)
    with waiting.progress(total=total, desc="lenses", unit=unit):
        time.sleep(0.1)
    assert stream.getvalue().startswith(f"lenses: {told}, 0 s")


def test_the_time_that_is_left_is_told_once_it_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 302 steps that go together in batches, one says nothing; twenty do, and so do two after a minute."""
    monkeypatch.setattr(waiting, "EVERY", 0.01)
    for steps, plenty, told in ((1, 60.0, False), (2, 60.0, False), (20, 60.0, True), (2, 0.0, True), (1, 0.0, False)):
        stream = io.StringIO()
        monkeypatch.setattr("sys.stderr", stream)
        monkeypatch.setattr(waiting, "PLENTY", plenty)
        with waiting.progress(total=302, desc="ablating") as bar:
            bar.update(steps)
            time.sleep(0.1)
        assert stream.getvalue().startswith(f"ablating: {steps} of 302 steps, 0 s")
        assert (" s left" in stream.getvalue()) == told


def test_lines_go_on_while_one_step_takes_long_and_tell_all_that_are_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps that go together in one moment were told as the first of them, and a long step was silent."""
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setattr(waiting, "EVERY", 0.05)
    with waiting.progress(total=2000, desc="ablating", unit="components") as bar:
        time.sleep(0.2)
        for _ in range(1000):
            bar.update()
        time.sleep(0.2)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "ablating: 0 of 2,000 components, 0 s"
    assert lines[-1] == "ablating: 1,000 of 2,000 components, 0 s, 0 s left"
    assert not any(line.startswith("ablating: 1 of") for line in lines)


def test_a_bar_on_a_terminal_moves_by_itself_and_ends_with_its_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the work inside fails, and where nobody closes it."""
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(waiting._Ticking, "every", 0.02)
    before = threading.active_count()
    with contextlib.suppress(KeyboardInterrupt), waiting.progress(total=3, desc="patching") as bar:
        time.sleep(0.2)
        raise KeyboardInterrupt
    assert bar.disable
    assert terminal.getvalue().count("patching") > 3
    left = waiting.progress(range(3), desc="patching")
    del left
    time.sleep(0.1)
    assert threading.active_count() == before
