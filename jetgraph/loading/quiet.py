"""transformers, kept quiet: its bars and hints, and what it raises, in one line."""

from __future__ import annotations

import contextlib
import logging
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from jetgraph.errors import JetGraphError, LoadError, quoted
from jetgraph.export.process import alone

SHORT = 40
"""Characters of a line that says too little by itself."""


_ALLOWED = "--trust-remote-code on the command line, trust_remote_code=True from Python"
"""How the code that comes with a checkpoint is allowed to run."""


class CheckpointWarning(UserWarning):
    """A checkpoint holds weights that its model leaves out."""


@contextmanager
def one_line(name: str, found: Callable[[], str] = str) -> Iterator[None]:
    """Turn what transformers raises, which may be anything where a config is odd, into a `LoadError` of one line.

    Parameters
    ----------
    name
        The model, as the message calls it.
    found
        What is found to be wrong, which is told in the place of what transformers says.
    """
    try:
        with quiet():
            yield
    except JetGraphError:
        raise
    except Exception as error:
        if told := own_code(error) or found():
            raise LoadError(f"cannot load {quoted(name)}: {told}") from error
        raise LoadError(f"cannot load {quoted(name)}: {first_sentence(error)}") from error


def own_code(error: BaseException) -> str:
    """What is said where code of a checkpoint's own would have to run; nothing of another error.

    transformers names the argument that allows it.

    >>> own_code(ValueError("… Please pass the argument `trust_remote_code=True` to …")).split(",")[0]
    'it comes with custom code'
    """
    if "trust_remote_code" not in str(error):
        return ""
    return f"it comes with custom code, which is not run unasked. Read it, and where you trust it, allow it: {_ALLOWED}"


def first_sentence(error: BaseException) -> str:
    """The first line of an error's text that says something, with its type where that says more."""
    lines = (re.sub(r"\s+", " ", line).strip() for line in str(error).splitlines())
    said = [line for line in lines if line]
    # What says no more than that, such as that a model is gated, is followed by what to do.
    goes_on = bool(said) and (said[0].endswith(":") or len(said[0]) < SHORT)
    text = " ".join(said[: 2 if goes_on else 1])
    known = text and isinstance(error, (OSError, ValueError, RuntimeError, ImportError))
    return (text if known else f"{type(error).__name__} {text}".strip())[:300]


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' progress bars, hints and other libraries' warnings out of what a person reads.

    Where nobody has imported transformers yet, there is nothing of it to keep quiet; what imports it later does so in a
    block of its own.
    """
    torch_hints = logging.getLogger("torch")
    # In another order, two threads would put back what the other one has set.
    with alone(), _hints_off() if "transformers" in sys.modules else contextlib.nullcontext():
        torch_level = torch_hints.level
        torch_hints.setLevel(logging.ERROR)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                warnings.simplefilter("always", CheckpointWarning)
                yield
        finally:
            torch_hints.setLevel(torch_level)


@contextmanager
def _hints_off() -> Iterator[None]:
    """Neither bars nor hints of transformers and of the hub."""
    import transformers
    from huggingface_hub.utils import logging as hub_logging

    hints = transformers.utils.logging
    verbosity, hub_verbosity, bars = hints.get_verbosity(), hub_logging.get_verbosity(), hints.is_progress_bar_enabled()
    hints.set_verbosity_error()
    hub_logging.set_verbosity(hub_logging.CRITICAL)
    hints.disable_progress_bar()
    try:
        yield
    finally:
        hints.set_verbosity(verbosity)
        hub_logging.set_verbosity(hub_verbosity)
        if bars:
            hints.enable_progress_bar()
