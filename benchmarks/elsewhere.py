"""Rivals in an environment of their own: a process there does the work, times it itself, and waits meanwhile."""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from benchmarks.harness import Contestant, Setting, missing, reason

SCRIPT = Path(__file__).with_name("in_transformer_lens.py")


class Elsewhere:
    """TransformerLens on a model, in the environment that a setting names; started when something is asked for.

    Parameters
    ----------
    setting
        `transformer_lens` is the environment's Python.
    model
        What transformers can save.
    """

    def __init__(self, setting: Setting, model: Any) -> None:
        self._setting, self._model = setting, model
        self._process: subprocess.Popen[str] | None = None

    def contestant(
        self, work: str, ids: Tensor, other: Tensor, error: Callable[[Any], float], note: str, tolerance: float = 1e-4
    ) -> Contestant:
        """One of the script's works as a contestant, whose values `error` looks at."""
        name = "TransformerLens"
        if self._setting.transformer_lens is None:
            return missing(name, "no environment given (--transformer-lens PYTHON)")
        if self._setting.device != "cpu":
            return missing(name, "compared on a CPU alone")
        asked = {"work": work, "ids": ids.tolist(), "other": other.tolist()}
        return Contestant(
            name,
            "rival",
            lambda: self._answer(asked),
            lambda found: error(found["values"]),
            tolerance,
            own=lambda found: (found["seconds"], found["peak"]),
            note=note,
        )

    def _answer(self, asked: dict[str, Any]) -> dict[str, Any]:
        process = self._process = self._process or self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            print(json.dumps(asked), file=process.stdin, flush=True)
        except OSError as error:
            raise RuntimeError(f"TransformerLens has stopped: {reason(error)}") from error
        if not (line := process.stdout.readline()):
            raise RuntimeError(f"TransformerLens has stopped with exit status {process.wait()}")
        return json.loads(line)

    def _started(self) -> subprocess.Popen[str]:
        folder = tempfile.TemporaryDirectory(prefix="jetgraph-")
        self._model.save_pretrained(folder.name)
        assert self._setting.transformer_lens is not None
        # Not from the benchmarks' own folder, whose modules would stand in for others.
        command = [self._setting.transformer_lens, "-P", str(SCRIPT), folder.name, str(self._setting.threads)]
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"},
        )
        atexit.register(folder.cleanup)
        atexit.register(process.kill)
        return process
