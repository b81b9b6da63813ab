"""Work that the exporter does for others, left out.

Torch keeps what an operator makes of shapes that it has met, and makes each result a second time to check what it
keeps. With open sizes that costs more than it saves unless the same shapes come in many layers: a quarter of an export
of two layers, a tenth of one of twelve, while one of thirty takes a tenth less with it. And what a model does without
gradients is cut out as a graph of its own, which here would be put back where it was: nothing asks whether it was.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import fx, nn
from torch.fx.experimental import proxy_tensor

MANY = 200
"""Modules of a model that has so many layers; it is their number that decides, and no time, so that traces are the
same on every machine."""


@contextlib.contextmanager
def without_what_others_need(module: nn.Module, open_sizes: bool) -> Iterator[None]:
    """`torch.export` without that; for use within `alone`. A version of torch that has not these does as it does."""
    # Imported with the exporter, and no sooner.
    import torch._dynamo.config

    with contextlib.ExitStack() as stack:
        alike = sum(1 for _ in module.modules()) > MANY
        if open_sizes and not alike and hasattr(torch._dynamo.config, "fake_tensor_cache_enabled"):
            stack.enter_context(torch._dynamo.config.patch(fake_tensor_cache_enabled=False))
        with contextlib.suppress(ImportError):
            from torch._export.passes import replace_set_grad_with_hop_pass as passes

            if hasattr(passes, "replace_set_grad_with_hop_pass"):
                stack.enter_context(mock.patch.object(passes, "replace_set_grad_with_hop_pass", _one_graph))
        yield


@contextlib.contextmanager
def graphs_to_read() -> Iterator[None]:
    """Graphs that are written out as code when they are first run, and of whose tensors nobody asks whether they lie in
    memory as some kernels want it; for use within `alone`. A version of torch that has not these does as it does.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(ImportError):
            from torch.fx._lazy_graph_module import _use_lazy_graph_module

            stack.enter_context(_use_lazy_graph_module(True))
        if noted := getattr(proxy_tensor, "_extract_tensor_metadata", None):
            without_layout = partial(noted, include_contiguity=False)
            stack.enter_context(mock.patch.object(proxy_tensor, "_extract_tensor_metadata", without_layout))
        yield


def _one_graph(module: fx.GraphModule, signature: Any) -> tuple[fx.GraphModule, Any]:
    """What torch's pass is called for, without the switches of gradients that it makes graphs of."""
    for inner in module.modules():
        if isinstance(inner, fx.GraphModule):
            for node in inner.graph.find_nodes(op="call_function", target=torch._C._set_grad_enabled):
                inner.graph.erase_node(node)
    return module, signature
