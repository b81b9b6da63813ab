"""transformers, kept quiet: its bars and hints, and what it raises, in one line."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from jetgraph.errors import JetGraphError, LoadError, quoted
from jetgraph.export.process import alone


class CheckpointWarning(UserWarning):
    """A checkpoint holds weights that its model leaves out."""


@contextmanager
def one_line(name: str) -> Iterator[None]:
    """Turn what transformers raises, which may be anything where a config is odd, into a `LoadError` of one line."""
    try:
        with quiet():
            yield
    except JetGraphError:
        raise
    except Exception as error:
        raise LoadError(f"cannot load {quoted(name)}: {first_sentence(error)}") from error


def first_sentence(error: BaseException) -> str:
    """The first line of an error's text that says something, with its type where that says more."""
    lines = (re.sub(r"\s+", " ", line).strip() for line in str(error).splitlines())
    said = [line for line in lines if line]
    text = " ".join(said[: 2 if said and said[0].endswith(":") else 1])
    known = text and isinstance(error, (OSError, ValueError, RuntimeError, ImportError))
    return (text if known else f"{type(error).__name__} {text}".strip())[:300]


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' progress bars, hints and other libraries' warnings out of what a person reads."""
    import transformers
    from huggingface_hub.utils import logging as hub_logging

    hints, torch_hints = transformers.utils.logging, logging.getLogger("torch")
    # In another order, two threads would put back what the other one has set.
    with alone():
        verbosity, hub_verbosity, torch_level = hints.get_verbosity(), hub_logging.get_verbosity(), torch_hints.level
        bars = hints.is_progress_bar_enabled()
        hints.set_verbosity_error()
        hub_logging.set_verbosity(hub_logging.CRITICAL)
        torch_hints.setLevel(logging.ERROR)
        hints.disable_progress_bar()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                warnings.simplefilter("always", CheckpointWarning)
                yield
        finally:
            hints.set_verbosity(verbosity)
            hub_logging.set_verbosity(hub_verbosity)
            torch_hints.setLevel(torch_level)
            if bars:
                hints.enable_progress_bar()
