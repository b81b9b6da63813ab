"""A bound on what the exporter asks about open sizes.

Each comparison of sizes that it has not met yet is simplified as a formula, and where code computes with its sizes
(lengths padded to whole chunks, say) these grow from operator to operator: one such model asks thousands, for minutes,
others a few dozen. Numbers of questions, unlike seconds, are the same on every machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from torch.fx.experimental.symbolic_shapes import ShapeEnv

MOST = 300
"""Different questions; 60 are asked by a Llama of 30 layers."""


class SizesError(Exception):
    """The exporter asks too much about open sizes."""


@contextmanager
def bounded_questions() -> Iterator[None]:
    """Let the exporter ask no more than `MOST` different questions; it has to run alone.

    Raises
    ------
    SizesError
        It asks for more.
    """
    answer = ShapeEnv.evaluate_expr
    asked: set[Any] = set()

    def count(question: Any) -> None:
        asked.add(question)
        if len(asked) > MOST:
            raise SizesError(f"stopped after {MOST:,} different questions about them, which may go on for minutes")

    def evaluate(self: ShapeEnv, question: Any, *args: Any, **kwargs: Any) -> Any:
        count(question)
        return answer(self, question, *args, **kwargs)

    # The exporter notes with each guard which line has asked, the innermost that is not of its own files.
    evaluate.__code__ = evaluate.__code__.replace(co_filename=answer.__code__.co_filename)
    with mock.patch.object(ShapeEnv, "evaluate_expr", evaluate):
        yield
