"""Where a graph that the exporter grants does something else than the model: what of it, and what to say."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from jetgraph.errors import TraceError
from jetgraph.jets.draws import drawn
from jetgraph.jets.interpreter import evaluate
from jetgraph.tracing.agreement import compare
from jetgraph.tracing.traced import Traced


class UnlikeError(TraceError):
    """No graph that the exporter grants does what the model does; in another way of calling it one may.

    Parameters
    ----------
    found
        What is said of it, where another way is taken.
    """

    def __init__(self, message: str, found: str) -> None:
        super().__init__(message)
        self.found = found


def replayed(traced: Traced, args: Any, kwargs: Any) -> Tensor:
    """What a traced graph gives on inputs."""
    values = {**traced.state_values(), **traced.input_values(args, kwargs)}
    with torch.no_grad():
        return evaluate(traced.graph.nodes, values, keep={traced.output})[traced.output]


def alike(actual: Tensor, expected: Tensor) -> bool:
    """One output is another up to rounding, of the same shape."""
    return actual.shape == expected.shape and compare(actual, expected).good


def unlike(model: nn.Module, traced: Traced, inputs: Any, run: Callable[[], Tensor], expected: Tensor) -> TraceError:
    """What to say of a graph that gives something else on the example inputs than the model's output `expected`, where
    `run` calls the model on them again.
    """
    title = type(model).__name__
    again = run()
    if not alike(again, expected):
        return drawn(run) or TraceError(
            f"{title} gives something else when it is called on the example inputs again, so it has no one output to "
            "explain: it draws random numbers that torch does not know of, or depends on state outside its inputs"
        )
    values = {**traced.state_values(), **traced.input_values(*inputs)}
    with torch.no_grad():
        values = evaluate(traced.graph.nodes, values)
    actual = values[traced.output]
    what = (
        f"has the shape {tuple(actual.shape)} for {tuple(expected.shape)}"
        if actual.shape != expected.shape
        else f"has a {compare(actual, expected)}"
    )
    return UnlikeError(
        f"torch.export makes a graph of {title} that does something else on the example inputs: its output {what}"
        f"{_first(model, traced, values, _outputs(model, run))}. The code does something else where it is exported: "
        "pass what it makes for itself only where it is not (a mask, say), or do without asking",
        f"its graph does something else (its output {what})",
    )


def _outputs(model: nn.Module, run: Callable[[], Tensor]) -> list[tuple[str, Tensor]]:
    """The first tensor of what each module gives, if it is floating point, in the order in which they end; none where
    the model does not run while somebody listens, as with code that compiles parts of itself.
    """
    outputs: list[tuple[str, Tensor]] = []

    def noting(path: str) -> Callable[..., None]:
        def note(module: nn.Module, args: Any, result: Any) -> None:
            leaves = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]
            outputs.extend((path, leaf.detach().clone()) for leaf in leaves[:1] if leaf.is_floating_point())

        return note

    hooks = [module.register_forward_hook(noting(path)) for path, module in model.named_modules()]
    try:
        run()
    except Exception:  # whatever the model raises
        return []
    finally:
        for hook in hooks:
            hook.remove()
    return outputs


def _first(model: nn.Module, traced: Traced, values: Any, outputs: list[tuple[str, Tensor]]) -> str:
    """The first module whose output is none of the values that leave it in the graph, and where its code is written."""
    paths = {node: f"{node.meta.get('module_path', '')}." for node in traced.graph.nodes}
    for path, output in outputs:
        inside = {node for node, own in paths.items() if not path or own.startswith(f"{path}.")}
        leaving = [node for node in inside if not path or not inside.issuperset(node.users)]
        made = [values[node] for node in leaving if isinstance(values.get(node), Tensor)]
        if made and not any(alike(value, output) for value in made):
            return f", first in module {path!r}{_place(model.get_submodule(path))}" if path else _place(model)
    return ""


def _place(module: nn.Module) -> str:
    forward = type(module).forward
    try:
        return f" at {inspect.getsourcefile(forward)}:{inspect.getsourcelines(forward)[1]}"
    except (OSError, TypeError):  # written nowhere
        return ""
