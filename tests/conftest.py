"""Fixtures that several test modules share: one core, and each model of the zoo traced once a session."""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

import jetgraph as jg

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tests.zoo import Attention, Case

# What shares tests among workers reads this file too: it need not wait for PyTorch, and the workers for it.

# torch.export warns about guards that it chose; what counts here is whether the graph holds.
logging.getLogger("torch.fx.experimental.symbolic_shapes").setLevel(logging.ERROR)


@dataclass(frozen=True)
class Example:
    """A case's model with the inputs and output of its trace."""

    case: Case
    model: nn.Module
    inputs: dict[str, Any]
    output: Tensor
    graph: jg.ResidualGraph
    changes: tuple[str, ...]
    """What tracing changed on the model; it should be nothing."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All tests of one model go to one worker, so that it is traced once; and so do those that share what a fixture
    makes once for their module.
    """
    from tests.zoo import CASES, ROUTED

    names = {case.name for case in CASES + ROUTED}
    for item in items:
        if item.get_closest_marker("xdist_group") is not None:
            continue
        parameters = getattr(getattr(item, "callspec", None), "params", {})
        for value in parameters.values():
            name = getattr(value, "name", value)
            if isinstance(name, str) and name in names:
                item.add_marker(pytest.mark.xdist_group(name))
                break
        else:
            fixtures = getattr(getattr(item, "_fixtureinfo", None), "name2fixturedefs", {})
            if any(made.scope == "module" for several in fixtures.values() for made in several):
                item.add_marker(pytest.mark.xdist_group(item.nodeid.partition("::")[0]))


@pytest.fixture(scope="session", autouse=True)
def _one_core() -> Iterator[None]:
    """One thread, so that results do not depend on the machine's cores."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session", autouse=True)
def _quiet() -> None:
    """Transformers say what concerns nobody here."""
    import transformers

    transformers.logging.set_verbosity_error()


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Traces of models loaded by name are kept for the other tests of the session, and for nobody else."""
    folder = tmp_path_factory.getbasetemp()
    with pytest.MonkeyPatch.context() as patch:
        # Of a worker, the folder above is that of the session.
        patch.setenv(
            "JETGRAPH_CACHE", str((folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "cache")
        )
        yield


@pytest.fixture(scope="session", autouse=True)
def _few_collections() -> Iterator[None]:
    """What was imported is not looked through for garbage time and again, nor what the tests share as often: a tenth of
    the time that all of them take.
    """
    thresholds = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    yield
    gc.set_threshold(*thresholds)
    gc.unfreeze()


@pytest.fixture(scope="session", autouse=True)
def _few_layers() -> Iterator[None]:
    """Torch remembers what operators give on fake tensors. With open sizes that takes longer than it saves, until some
    ten layers are alike: a quarter of such an export of a model of two.
    """
    import torch
    import torch._dynamo.config

    export = torch.export.export

    def remembering_sizes(*args: Any, dynamic_shapes: Any = None, **kwargs: Any) -> Any:
        with torch._dynamo.config.patch(fake_tensor_cache_enabled=dynamic_shapes is None):
            return export(*args, dynamic_shapes=dynamic_shapes, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.export, "export", remembering_sizes)
        yield


@pytest.fixture(scope="session")
def traced() -> Callable[..., Example]:
    """`traced(case, attn, dynamic)` is the traced model of that case; tests share it and must not change it."""
    done: dict[tuple[str, str, bool], Example] = {}

    def trace(case: Case, attn: Attention = "eager", dynamic: bool = True) -> Example:
        key = (case.name, attn, dynamic)
        if key not in done:
            model, inputs = case.build(attn), case.inputs()
            before = _state(model)
            graph = jg.trace(model, dynamic=dynamic, **inputs)
            done[key] = Example(case, model, inputs, run(model, inputs), graph, _changes(before, _state(model)))
        return done[key]

    return trace


def run(model: nn.Module, inputs: dict[str, Any], output: str | int | None = None) -> Tensor:
    """The model's own output: the one named, else its logits, else its first float tensor.

    Computed with ordinary operators: the fused path of nn.TransformerEncoder rounds differently.
    """
    import torch
    from torch.utils import _pytree as pytree

    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    with torch.no_grad():
        result = model(**inputs)
    torch.backends.mha.set_fastpath_enabled(fast)
    if isinstance(result, torch.Tensor):
        return result
    if output is None and hasattr(result, "logits"):
        return result.logits
    if isinstance(result, dict):
        return result["logits" if output is None else output]
    if output is not None:
        return result[output]
    return next(leaf for leaf in pytree.tree_leaves(result) if leaf.is_floating_point())


def _state(model: nn.Module) -> dict[str, Any]:
    """Everything about a model that tracing has no business to change."""
    import torch

    state: dict[str, Any] = {}
    for name, module in model.named_modules():
        state[f"training of {name!r}"] = module.training
        for hooks in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks"):
            state[f"{hooks} of {name!r}"] = tuple(getattr(module, hooks))
        state[f"forward of {name!r}"] = module.__dict__.get("forward")
        state[f"attributes of {name!r}"] = tuple(sorted(module.__dict__))
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        state[f"identity of {name}"] = id(tensor)
        state[f"value of {name}"] = tensor.detach().clone()
        state[f"requires_grad of {name}"] = tensor.requires_grad
    config = getattr(model, "config", None)
    if config is not None:
        state["config"] = config.to_dict() | {"attention": config._attn_implementation}
    state["fast path of nn.TransformerEncoder"] = torch.backends.mha.get_fastpath_enabled()
    state["gradient mode"] = torch.is_grad_enabled()
    return state


def _changes(before: dict[str, Any], after: dict[str, Any]) -> tuple[str, ...]:
    import torch

    def same(one: Any, other: Any) -> bool:
        both = isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor)
        return torch.equal(one, other) if both else bool(one == other)

    return tuple(
        key for key in before | after if key not in before or key not in after or not same(before[key], after[key])
    )
