"""What all threads of a process share, and torch.export and torch.compile change: one at a time, and put back."""

from __future__ import annotations

import importlib
import io
import logging
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TextIO
from unittest import mock

import torch
import torch.fx.config

_ALONE = threading.RLock()


def one_at_a_time() -> AbstractContextManager[Any]:
    """Work that only reads what another thread of ours may be changing in `alone`, such as the weights of a module."""
    return _ALONE


@contextmanager
def alone() -> Iterator[None]:
    """Work that no other thread of ours does at the same time, however it ends.

    Put back are the fast path of `nn.TransformerEncoder`, the filters of warnings, the recursion limit, and what torch
    adds to the environment.
    """
    with _ALONE, warnings.catch_warnings():
        fastpath = torch.backends.mha.get_fastpath_enabled()
        limit, environment = sys.getrecursionlimit(), set(os.environ)
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fastpath)
            sys.setrecursionlimit(limit)
            # Others may have written theirs meanwhile.
            for name in set(os.environ) - environment:
                if "TORCH" in name or "TRITON" in name:
                    del os.environ[name]


@contextmanager
def torch_silent() -> Iterator[None]:
    """Keep what torch warns of, logs and prints about an export from being shown; for use within `alone`."""
    # With the exporter come its loggers. It takes a third of all imports, and a graph that is there needs none.
    importlib.import_module("torch.export._trace")
    loggers = [
        logger
        for name, logger in list(logging.root.manager.loggerDict.items())
        if isinstance(logger, logging.Logger) and name.partition(".")[0] == "torch" and not logger.disabled
    ]
    shown = sys.stderr
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sys.stderr = _OfOthers(shown)
        for logger in loggers:
            logger.disabled = True
        try:
            yield
        finally:
            for logger in loggers:
                logger.disabled = False
            sys.stderr = shown


@contextmanager
def without_stacks() -> Iterator[None]:
    """Graphs whose nodes do not hold the lines of code that they come from, which nothing here reads: noting them takes
    a tenth to a third of an export. For use within `alone`; a version of torch that always notes them does so.
    """
    name = "do_not_emit_stack_traces"
    if not hasattr(torch.fx.config, name):
        yield
        return
    with mock.patch.object(torch.fx.config, name, True):
        yield


class _OfOthers(io.TextIOBase):
    """A stream that passes on what other threads write: torch prints a refused graph, of any length."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._mine = threading.get_ident()

    def write(self, text: str) -> int:
        return len(text) if threading.get_ident() == self._mine else self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
