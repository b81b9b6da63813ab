"""The line for work that takes long."""

from __future__ import annotations

import io
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
    assert ("tracing Net: exporting it … 0 s" in text) == (kind is Terminal)
    assert "inside" not in text
    assert not text or text.endswith("\r")
