"""Jets of an ordinary function: trace it once, run the graph on a series."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from jetgraph.errors import InputError, TraceError, check
from jetgraph.export.callables import title, wrap_function
from jetgraph.export.normal_form import normalise
from jetgraph.export.program import export_program, first_line, origin
from jetgraph.jets.interpreter import evaluate, module_path
from jetgraph.jets.registry import has_rule
from jetgraph.jets.series import Series, check_order


def jet(f: Callable[[Tensor], Tensor], x: Tensor, v: Tensor, order: int) -> Tensor:
    """Taylor coefficients 0..order of t ↦ f(x + t v), stacked on dim 0: coefficient j is (1/j!) D^j f(x)[v, …, v].

    `f` is a module or function of one floating tensor that returns one tensor. The result is differentiable in `f`'s
    parameters, `x` and `v`.

    In half precision recurrences and sums of products run in float32, and every op rounds a coefficient once; for a
    transformer block the error of coefficient j is then at most about j + 1 times the dtype's eps, of its norm. A
    coefficient of float16 above 65504 is infinite, and one below 6e-8 is 0; coefficient j goes with the j-th power of
    the length of `v`, so a shorter or longer one brings them back.

    Raises
    ------
    InputError
        Arguments that do not fit.
    MissingRuleError
        An op without a rule.
    DomainError
        f has no expansion at x.

    >>> import torch
    >>> jet(torch.exp, torch.zeros(1), torch.ones(1), order=3).squeeze(-1)
    tensor([1.0000, 1.0000, 0.5000, 0.1667])
    """
    check(jet, locals())
    if order < 0:
        raise InputError(f"the order of a jet is at least 0, not {order}")
    check_order(order)
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise InputError(f"a jet is taken at one floating tensor, not at {getattr(x, 'dtype', type(x).__name__)}")
    if x.shape != v.shape or x.dtype != v.dtype:
        raise InputError(
            f"x is {list(x.shape)} {x.dtype} but v is {list(v.shape)} {v.dtype}: give the direction x's shape and dtype"
        )
    x, v = _recordable(x), _recordable(v)
    graph, values, source, result = _trace(f, x)
    values[source] = Series.variate(x, v, order)
    nodes = [node for node in graph.nodes if node.op not in ("placeholder", "output")]
    value = evaluate(nodes, values, order, keep=(result,))[result]
    if not isinstance(value, Series):
        value = Series.constant(value, order)
    return value.stacked()


def _trace(f: Callable[[Tensor], Any], x: Tensor) -> tuple[fx.Graph, dict[fx.Node, Any], fx.Node, fx.Node]:
    """f's graph in normal form, the values of everything but x that it reads, the nodes of x and of the result."""
    wrapped = wrap_function(f)
    try:
        program = export_program(wrapped, (x.detach(),), has_rule=has_rule).program
    except Exception as error:
        raise TraceError(
            f"torch.export cannot trace {title(wrapped)}: {first_line(error)}{origin(error, wrapped)}"
        ) from error
    signature = program.graph_signature
    tensors: dict[str, Any] = {**program.state_dict, **program.constants}
    # Not `program.state_dict`, whose tensors may be detached: gradients belong to the module's own.
    tensors |= dict(wrapped.named_parameters(remove_duplicate=False))
    tensors |= dict(wrapped.named_buffers(remove_duplicate=False))
    bound = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    returned = next(node for node in program.graph.nodes if node.op == "output").args[0]
    results = [item for item in returned if isinstance(item, fx.Node)]
    if len(returned) != 1 or len(results) != 1 or not isinstance(results[0].meta.get("val"), Tensor):
        raise InputError(
            f"a jet needs a function that returns one tensor; {title(wrapped)} returns {len(returned)} values"
        )
    graph = _normal(program.graph, results[0])
    values: dict[fx.Node, Any] = {}
    source: fx.Node | None = None
    for node in graph.find_nodes(op="placeholder"):
        if node.name in bound:
            values[node] = _recordable(tensors[bound[node.name]])
        else:
            source = node
    assert source is not None, "an exported function of one tensor has an input that is no parameter"
    result = graph.output_node().args[0]
    assert isinstance(result, fx.Node)
    return graph, values, source, result


def _normal(exported: fx.Graph, result: fx.Node) -> fx.Graph:
    """An exported graph in the form in which models are traced too."""
    graph, copied = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in exported.nodes:
        if node.op == "output":
            continue
        new = copied[node] = graph.node_copy(node, copied.__getitem__)
        new.name = node.name
        value = node.meta.get("val")
        new.meta = {"module_path": module_path(node)}
        if isinstance(value, Tensor):
            new.meta |= {"dtype": value.dtype, "shape": tuple(value.shape)}
    graph.output(copied[result])
    normalise(graph)
    graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
    return graph


def _recordable(tensor: Tensor) -> Tensor:
    """The tensor, which autograd may save: of one that was made in inference mode only a copy, outside of that mode."""
    return tensor.clone() if tensor.is_inference() and not torch.is_inference_mode_enabled() else tensor
