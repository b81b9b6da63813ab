"""Work on one chunk of the interpreter's stack."""

from __future__ import annotations

import sys

import pytest

from jetgraph.export.frames import on_one_chunk


def test_what_the_work_returns_or_raises() -> None:
    assert on_one_chunk(lambda: 3) == 3
    with pytest.raises(KeyError, match="seen"):
        on_one_chunk(lambda: {}["seen"])


@pytest.mark.skipif(sys.platform != "linux", reason="counts page faults")
def test_no_depth_is_slow() -> None:
    """A loop at the end of a chunk of the interpreter's stack maps the next one in every call: a page fault each."""
    resource = pytest.importorskip("resource")

    def called() -> None:
        return None

    # Wider than a step of the depth, so that one of them ends within it.
    called.__code__ = called.__code__.replace(co_stacksize=100)

    def faults() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(2000):
            called()
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    def deep(depth: int) -> int:
        return faults() if depth == 0 else deep(depth - 1)

    assert on_one_chunk(lambda: max(map(deep, range(400)))) < 1000
