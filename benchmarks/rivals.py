"""Finding the rivals: each is a module, or the reason why it cannot take part."""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness import Setting, reason


@dataclass(frozen=True)
class Found:
    """A rival's module, or why there is none."""

    module: Any | None
    why: str = ""


def jex(setting: Setting) -> Found:
    """The paper's own code, from a checkout."""
    if setting.jex is None:
        return Found(None, "no checkout given (--jex PATH)")
    return _imported("jex", Path(setting.jex) / "src")


def torch_jet(setting: Setting) -> Found:
    """jet-for-pytorch, installed or from a checkout."""
    return _imported("jet", None if setting.torch_jet is None else Path(setting.torch_jet), "operations")


def jax() -> Found:
    """JAX, of the extra `bench`."""
    return _imported("jax")


def jax_jet() -> Found:
    """Its experimental Taylor mode."""
    return _imported("jax.experimental.jet")


def language_model(module: Any, model: Any) -> Any:
    """A loaded GPT-2 as jex sees it."""
    # jex wraps only what it loads by name itself; its table of adapters is the same step without the loading.
    return importlib.import_module("jex.models")._ADAPTERS[type(model).__name__](model, None)


def _imported(name: str, folder: Path | None = None, part: str | None = None) -> Found:
    """A module, from a folder if given; `part` must be among its submodules, since others may have its name."""
    if folder is not None and str(folder) not in sys.path:
        if not folder.is_dir():
            return Found(None, f"{folder.name or folder} is no folder")
        sys.path.insert(0, str(folder))
    try:
        module = importlib.import_module(name)
        if part is not None:
            importlib.import_module(f"{name}.{part}")
    except ImportError as error:
        return Found(None, reason(error))
    return Found(module)
