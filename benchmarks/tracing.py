"""Tracing, against the export that it cannot do without."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import transformers
from torch import Tensor, nn

import jetgraph as jg
from benchmarks import models, oracle
from benchmarks.harness import Benchmark, Case, Contestant, Peak, Setting, child, clock
from jetgraph.export.frames import on_one_chunk
from jetgraph.export.program import ordinary_operators

MODELS = ("gpt2", "llama-405b")


def cases(setting: Setting) -> Iterator[Case]:
    """GPT-2, and where asked for Llama 3.1 405B, which has no weights here."""
    for model in MODELS if setting.large else MODELS[:1]:
        yield Case(model, [_contestant(setting, model, what) for what in ("export", "trace")])


def _contestant(setting: Setting, model: str, what: str) -> Contestant:
    # A second trace in one process finds caches warm that a user's first one does not.
    work = (
        partial(once, setting, model, what)
        if setting.quick
        else partial(child, "--trace", model, what, "--setting", setting.text)
    )
    return Contestant(
        "floor" if what == "export" else "jetgraph",
        "floor" if what == "export" else "jetgraph",
        work,
        lambda found: found["error"],
        own=lambda found: (found["seconds"], found["peak"]),
        note="torch.export with decompositions" if what == "export" else "jg.trace",
    )


def once(setting: Setting, model: str, what: str) -> dict[str, Any]:
    """Trace or export a model that was built before, and say what it took."""
    built, ids = _build(setting, model)
    work: Callable[[], Any] = (
        partial(_export, built, ids) if what == "export" else partial(jg.trace, built, input_ids=ids)
    )
    with Peak(setting.device) as peak:
        seconds, graph = clock(Contestant(what, "jetgraph", work), setting.device)
    error = None
    if what == "trace" and not ids.is_meta and model == "gpt2":
        with torch.no_grad():
            exact: Any = models.double(built)
            error = oracle.distance(graph(input_ids=ids), exact(ids.cpu(), use_cache=False).logits)
    return {"seconds": seconds, "peak": peak.bytes, "error": error}


def _export(model: nn.Module, ids: Tensor) -> object:
    auto = torch.export.Dim.AUTO
    shapes = {"input_ids": {0: auto, 1: auto}, "use_cache": None}
    options = {"input_ids": ids, "use_cache": False}
    with ordinary_operators():
        # Else its time depends on the depth that it is called from, and is up to half longer.
        return on_one_chunk(
            lambda: torch.export.export(model, (), options, dynamic_shapes=shapes, strict=False).run_decompositions({})
        )


def _build(setting: Setting, name: str) -> tuple[nn.Module, Tensor]:
    """A model of that size, and token ids."""
    if name == "gpt2":
        return models.gpt2(setting), models.token_ids(setting, 2, min(16, setting.positions))
    transformers.logging.set_verbosity_error()
    config = transformers.LlamaConfig(
        num_hidden_layers=126,
        hidden_size=16384,
        intermediate_size=53248,
        num_attention_heads=128,
        num_key_value_heads=8,
        vocab_size=128256,
    )
    with torch.device("meta"):
        return transformers.LlamaForCausalLM(config).eval(), torch.zeros(2, 16, dtype=torch.long)


BENCHMARK = Benchmark(
    "trace",
    "Tracing a model",
    "`jg.trace` on GPT-2 small, each time in a fresh process, with all that it does: export, the residual "
    "structure, and the check that the stages reproduce the model. Floor: `torch.export` with decompositions. The "
    "error is that of the traced graph's output to the model in float64. `--large` adds Llama 3.1 405B on the meta "
    "device.",
    cases,
)
