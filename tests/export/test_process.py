"""What threads share, put back after a trace and after a compilation."""

from __future__ import annotations

import logging
import os
import sys
import threading
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import jetgraph as jg
from jetgraph.export.process import alone, torch_silent
from jetgraph.loading import quiet


def shared() -> list[Any]:
    loggers = {
        name: (logger.level, logger.disabled)
        for name, logger in list(logging.root.manager.loggerDict.items())
        if isinstance(logger, logging.Logger) and name.startswith(("torch.fx", "torch.export", "transformers"))
    }
    return [
        torch.backends.mha.get_fastpath_enabled(),
        sys.getrecursionlimit(),
        dict(os.environ),
        list(warnings.filters),
        sys.stderr,
        loggers,
        torch.get_rng_state().tolist(),
    ]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mlp = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.mlp(x))


class Chooses(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if float(x.sum()) > 0 else x + 1


def test_threads_trace_one_after_another() -> None:
    """With refusals among them, and loading; every trace is right, and nothing of the process has changed."""
    models = [(Chooses() if index % 3 == 2 else Block()).eval() for index in range(6)]
    results: list[Any] = []

    def work(model: nn.Module) -> None:
        x = torch.linspace(-1, 1, 8).reshape(2, 4)
        with quiet():
            pass
        try:
            results.append(bool(torch.equal(jg.trace(model, x)(x), model(x))))
        except jg.TraceError as error:
            results.append(str(error)[:21])

    jg.trace(models[0], torch.ones(2, 4))
    before = shared()
    threads = [threading.Thread(target=work, args=(model,)) for model in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(str, results)) == ["True"] * 4 + ["torch.export refuses "] * 2
    assert shared() == before


def test_all_is_put_back_after_a_failure() -> None:
    before = shared()

    def work() -> None:
        with alone(), torch_silent():
            sys.setrecursionlimit(sys.getrecursionlimit() + 100)
            os.environ["TORCH_THAT_WAS_SET"] = "1"
            torch.backends.mha.set_fastpath_enabled(False)
            warnings.simplefilter("error")
            raise KeyError

    with pytest.raises(KeyError):
        work()
    assert shared() == before


def test_only_its_own_thread_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    with alone(), torch_silent():
        sys.stderr.write("mine\n")
        thread = threading.Thread(target=lambda: sys.stderr.write("another's\n"))
        thread.start()
        thread.join()
    assert capsys.readouterr().err == "another's\n"


def test_fusing_leaves_the_process_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever torch.compile sets while it compiles, the first time and where it fails."""
    x = torch.ones(2, 4)
    graph = jg.trace(torch.nn.Sequential(Block(), Block()).eval(), x)
    module = jg.compile(jg.expand(graph, order=1), fuse=True)

    def compile_and_fail(*_: Any, **__: Any) -> Any:
        sys.setrecursionlimit(sys.getrecursionlimit() + 100)
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = "/nowhere"
        raise KeyError

    monkeypatch.setattr(torch, "compile", compile_and_fail)
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    before = shared()
    with pytest.raises(KeyError):
        module(x)
    assert shared() == before
