"""Operators that hold graphs of their own → the operators of these graphs.

Torch has operators for what Python's own control flow cannot say of tensors: `torch.cond`, `map`, `scan`,
`flex_attention`, and stretches that run without gradients. Each is written out as what it computes:

- `cond` as both of its sides, of which `torch.where` takes one. So the sum of a stream and a branch that a condition
  chooses is one join, and a jet uses the side that is taken at the centre;
- `map` and `scan` as their steps one after the other, wherever their number is fixed;
- `flex_attention` as the scores, masks and weights that it is defined by.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import SymBool, SymInt, Tensor, fx
from torch._guards import detect_fake_mode
from torch._ops import HigherOrderOperator
from torch.fx.experimental.proxy_tensor import make_fx

from jetgraph.export.graphs import call, copy_into, replace

aten = torch.ops.aten


class NestedError(Exception):
    """An operator that holds graphs has none of its own that does the same at each call."""


def write_out_nested(module: fx.GraphModule) -> bool:
    """Put what operators with graphs of their own compute in their places; whether nothing is held any more.

    Others are left, such as stretches with a type of their own, which `run_decompositions` writes out, and loops whose
    number of steps depends on values. Tensors that held graphs have as constants are then attributes of the module.

    Raises
    ------
    NestedError
        Which graph runs, or how often one does, depends on a size that may change.
    """
    known = [(node, written) for node in module.graph.nodes if (written := _known(node))]
    for node, written in known:
        held = [each for each in node.all_input_nodes if each.op == "get_attr"]
        replace(node, written(module, node))
        for each in held:
            if not each.users:
                module.graph.erase_node(each)
    if known:
        module.recompile()
    return not any(isinstance(node.target, HigherOrderOperator) or node.op == "get_attr" for node in module.graph.nodes)


def _inlined(module: fx.GraphModule, held: fx.Node, values: Sequence[Any], before: fx.Node, *, noted: bool) -> Any:
    """What a held graph gives for these values, in operators before a node.

    `noted` says that the exporter has noted of each operator which value it gives for these and where in the model's
    code it is; else both are as the node says.
    """
    inner = getattr(module, str(held.target))
    assert isinstance(inner, fx.GraphModule)
    write_out_nested(inner)

    def copied(original: fx.Node, copy: fx.Node) -> fx.Node:
        if original.op == "get_attr":
            # A constant, or a graph that could not be written out.
            _hold(copy, getattr(inner, str(original.target)), before)
        elif not noted:
            assert callable(copy.target)
            args, kwargs = fx.map_arg((copy.args, copy.kwargs), lambda each: each.meta["val"])
            runs = not isinstance(copy.target, HigherOrderOperator)
            copy.meta = {**before.meta, "val": copy.target(*args, **kwargs) if runs else original.meta["val"]}
        return copy

    return copy_into(
        inner.graph, dict(zip(inner.graph.find_nodes(op="placeholder"), values, strict=True)), before, copied
    )


def _hold(copy: fx.Node, value: Any, before: fx.Node) -> None:
    """Let a node that reads an attribute of another module read it of the module that it is in now."""
    module = copy.graph.owning_module
    assert module is not None
    names = (f"{copy.target}_{number}" for number in itertools.count())
    copy.target = next(name for name in names if not hasattr(module, name))
    setattr(module, copy.target, value)
    copy.meta = dict(before.meta)
    if isinstance(value, Tensor):
        mode = detect_fake_mode([each.meta["val"] for each in before.all_input_nodes if each.op != "get_attr"])
        copy.meta["val"] = value if mode is None else mode.from_tensor(value)


def _refusal(node: fx.Node, why: str) -> NestedError:
    return NestedError(f"{node.target} {why}")


# Each kind


def _without_gradients(module: fx.GraphModule, node: fx.Node) -> Any:
    arguments: Any = node.args
    _, held, *values = arguments
    return _inlined(module, held, values, node, noted=True)


def _chosen(module: fx.GraphModule, node: fx.Node) -> Any:
    arguments: Any = node.args
    condition, true, false, values = arguments
    if not isinstance(condition, fx.Node) or isinstance(condition.meta["val"], SymBool):
        raise _refusal(node, "chooses by a size that may change")
    if condition.meta["val"].dim():
        condition = call(aten.view.default, (condition, []), node)
    sides = [_inlined(module, side, values, node, noted=False) for side in (true, false)]
    return [_where(condition, one, other, node) for one, other in zip(*sides, strict=True)]


def _where(condition: fx.Node, one: Any, other: Any, node: fx.Node) -> Any:
    if one is other or (not isinstance(one, fx.Node) and one == other):
        return one
    if not all(isinstance(each, fx.Node) and isinstance(each.meta["val"], Tensor) for each in (one, other)):
        raise _refusal(node, "has a size for its result")
    return call(aten.where.self, (condition, one, other), node)


def _mapped(module: fx.GraphModule, node: fx.Node) -> Any:
    arguments: Any = node.args
    held, over, values = arguments
    steps = [_inlined(module, held, (*each, *values), node, noted=False) for each in _slices(node, over)]
    return _stacked(node, steps)


def _scanned(module: fx.GraphModule, node: fx.Node) -> Any:
    arguments: Any = node.args
    held, carried, over, values = arguments
    steps = []
    for each in _slices(node, over):
        made = _inlined(module, held, (*carried, *each, *values), node, noted=False)
        carried, step = made[: len(carried)], made[len(carried) :]
        steps.append(step)
    return [*carried, *_stacked(node, steps)]


def _slices(node: fx.Node, over: Sequence[fx.Node]) -> list[list[fx.Node]]:
    """By step, what it reads of the tensors that the steps go over."""
    steps = over[0].meta["val"].shape[0]
    if isinstance(steps, SymInt):
        raise _refusal(node, "has as many steps as a size that may change")
    return [[call(aten.select.int, (each, 0, step), node) for each in over] for step in range(steps)]


def _stacked(node: fx.Node, steps: Sequence[Sequence[fx.Node]]) -> list[fx.Node]:
    return [call(aten.stack.default, (list(each), 0), node) for each in zip(*steps, strict=True)]


def _attended(module: fx.GraphModule, node: fx.Node) -> Any:
    """Torch's own definition of the attention, in the working precision that it states."""
    from torch._higher_order_ops.flex_attention import math_attention

    inputs = [each for each in node.all_input_nodes if each.op != "get_attr"]

    def attend(*values: Any) -> Any:
        known = dict(zip(inputs, values, strict=True))
        given: Any = fx.map_arg(
            (node.args, node.kwargs), lambda each: known[each] if each in known else getattr(module, str(each.target))
        )
        args, kwargs = given
        return math_attention(*args, **kwargs)

    made = make_fx(attend)(*(each.meta["val"] for each in inputs))

    def copied(original: fx.Node, copy: fx.Node) -> fx.Node:
        if original.op == "get_attr":
            _hold(copy, getattr(made, str(original.target)), node)
        else:
            copy.meta = {**node.meta, "val": original.meta["val"]}
        return copy

    return copy_into(made.graph, dict(zip(made.graph.find_nodes(op="placeholder"), inputs, strict=True)), node, copied)


_WRITTEN: dict[str, Callable[[fx.GraphModule, fx.Node], Any]] = {
    "wrap_with_set_grad_enabled": _without_gradients,
    "cond": _chosen,
    "map_impl": _mapped,
    "scan": _scanned,
    "flex_attention": _attended,
}
"""By name of the operator, of which a version of torch may not have all."""


def _known(node: fx.Node) -> Callable[[fx.GraphModule, fx.Node], Any] | None:
    return _WRITTEN.get(node.target.name()) if isinstance(node.target, HigherOrderOperator) else None
