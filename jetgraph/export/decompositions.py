"""An exported program → the same in operators that are kept whole: composite ones that are not are written out.

`ExportedProgram.run_decompositions({})` is the definition. It runs the whole program twice more under the exporter's
modes, which takes longer than the export did. All but what writes into tensors is the same operator before and after,
or a composite such as `reshape` or `to`, which is traced by itself, on the values that the exporter noted.

An operator that has no Taylor rule, and for which torch has a definition in others that do (losses, `linalg.norm`,
cosine similarity), is written out too, so that a rule is wanted only of what is not made of others.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch._decomp
import torch._export.utils
from torch import SymInt, Tensor, fx
from torch._C._functorch import is_functorch_wrapped_tensor
from torch._dispatch.python import enable_python_dispatcher
from torch._ops import OpOverload
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from jetgraph.export.composites import composites_at_once
from jetgraph.export.graphs import call, copy_into, replace
from jetgraph.export.nested import write_out_nested
from jetgraph.export.normal_form import use_first_names

aten = torch.ops.aten


def decomposed(
    program: torch.export.ExportedProgram, has_rule: Callable[[Any], bool] | None = None
) -> torch.export.ExportedProgram:
    """The program without composite operators, but for those that are kept whole, and without writes into tensors.

    The program given is no longer used.

    Parameters
    ----------
    has_rule
        Whether an operator has a Taylor rule. Of those that torch keeps whole (linear, gelu, attention, …), the ones
        that have none, but a definition in operators that do, are written out; None: all are kept.
    """
    program = _in_whole_operators(program)
    if has_rule is not None:
        _write_out_unknown(program.graph, has_rule)
    _lay_out(program.graph)
    return program


def _in_whole_operators(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """What `run_decompositions({})` gives."""
    written = write_out_nested(program.graph_module)
    for node in program.graph.find_nodes(op="get_attr"):
        if isinstance(value := getattr(program.graph_module, node.target), Tensor):
            program.constants[node.target] = value  # For torch to make an input of.
    state = (*program.state_dict.values(), *program.constants.values())
    plain = not any(isinstance(value, Tensor) and is_traceable_wrapper_subclass(value) for value in state)
    # What is made under a vmap is of no memory that one could ask for.
    plain = plain and not any(map(is_functorch_wrapped_tensor, _values(program.graph)))
    if not written or not plain or not _without_writes(program.graph):
        with composites_at_once():
            program = program.run_decompositions({})
        # Some were held by what is written out there.
        write_out_nested(program.graph_module)
        return program
    sizes = _Sizes()
    for node in list(program.graph.nodes):
        # Whether a reshape copies is decided at each call, as views are reshapes there: the exporter's idea of where
        # values lie in memory need not be that of the kernels. So it is for `contiguous`.
        if node.target is aten.reshape.default:
            node.target = aten.view.default
        if _is_written_out(node):
            _write_out(node, sizes)
        else:
            sizes.note(node)
    return program


def _without_writes(graph: fx.Graph) -> bool:
    """Make a tensor with new values of each that is written into; False, and nothing changed, where what shares its
    memory in another way than as a part of the same whole is read later, and where it is an input or a weight.
    """
    order = {node: place for place, node in enumerate(graph.nodes)}
    sharing: dict[Any, list[fx.Node]] = {}
    for node in graph.nodes:
        if isinstance(node.meta.get("val"), Tensor):
            sharing.setdefault(_memory(node), []).append(node)
    writes = [node for node in graph.nodes if isinstance(node.target, OpOverload) and node.target._schema.is_mutable]
    made = dict[fx.Node, OpOverload]()
    for node in writes:
        target = _not_in_place(node)
        written = node.args[0]
        if target is None or not isinstance(written, fx.Node):
            return False
        whole = _parts(written)[-1]
        for other in sharing[_memory(written)]:
            later = any(order[user] > order[node] for user in other.users)
            read = later and order[other] < order[node]
            if other.op == "placeholder" or (read and _parts(other)[-1] is not whole):
                return False
        made[node] = target
    for node, target in made.items():
        node.target = target
        _write_back(node, order)
    return True


def _write_back(node: fx.Node, order: dict[fx.Node, int]) -> None:
    """Let what comes after a write, which gives a tensor of its own now, read that; after one into a part, a new whole
    and the parts of that.
    """
    written = node.args[0]
    assert isinstance(written, fx.Node)
    *parts, whole = _parts(written)
    following, value = node.next, node

    def made(op: Any, args: tuple[Any, ...], like: fx.Node) -> fx.Node:
        with node.graph.inserting_before(following):
            new = node.graph.call_function(op, args)
        new.meta = {**node.meta, "val": like.meta["val"]}
        order[new] = order[node]
        return new

    for part in parts:
        outer: Any = part.args[0]
        value = made(*_WRITTEN_BACK[part.target](value, outer, *part.args[1:]), like=outer)
    now = {whole: value}
    for view in _views(whole, order, node):
        outer = view.args[0]
        now[view] = made(view.target, (now[outer], *view.args[1:]), like=view)
    if now[written] is not node:
        now[node] = now[written]
    for before, after in now.items():
        before.replace_all_uses_with(after, lambda user: order[user] > order[node])


def _views(whole: fx.Node, order: dict[fx.Node, int], before: fx.Node) -> list[fx.Node]:
    """The parts of a value, and parts of these, that were taken before a node; each after what it is a part of."""
    views = [whole]
    for one in views:
        views += [
            user
            for user in one.users
            if user.target in _WRITTEN_BACK and not user.kwargs and user.args[0] is one and order[user] < order[before]
        ]
    return views[1:]


def _parts(view: fx.Node) -> list[fx.Node]:
    """A view, what it is a part of, and so on, to a value that is no part of another one."""
    views = [view]
    while views[-1].target in _WRITTEN_BACK and not views[-1].kwargs:
        outer = views[-1].args[0]
        assert isinstance(outer, fx.Node)
        views.append(outer)
    return views


_WRITTEN_BACK: dict[Any, Callable[..., tuple[Any, tuple[Any, ...]]]] = {
    aten.slice.Tensor: lambda value, outer, *where: (aten.slice_scatter.default, (outer, value, *where)),
    aten.select.int: lambda value, outer, *where: (aten.select_scatter.default, (outer, value, *where)),
    aten.transpose.int: lambda value, outer, *dims: (aten.transpose.int, (value, *dims)),
    aten.unsqueeze.default: lambda value, outer, dim: (aten.squeeze.dim, (value, dim)),
}
"""By operator that takes a part of a tensor: what puts a new value of it in its place."""


def _values(graph: fx.Graph) -> Iterator[Tensor]:
    return (value for node in graph.nodes for value in _tensors(node.meta.get("val")))


def _memory(node: fx.Node) -> Any:
    return node.meta["val"].untyped_storage()._cdata


def _not_in_place(node: fx.Node) -> OpOverload | None:
    """The operator that gives a tensor of its own with what this one writes into its first argument."""
    assert isinstance(node.target, OpOverload)
    first, *others = node.target._schema.arguments
    target = _with_the_same_arguments(node.target)
    if target is None or not first.is_write or any(each.is_write for each in others):
        return None
    given: Any = fx.map_arg((node.args, node.kwargs), lambda each: each.meta["val"])
    args, kwargs = given
    written, value = args[0], target(*args, **kwargs)
    # In place the result has the type of what is written into.
    fits = isinstance(value, Tensor) and (value.shape, value.dtype) == (written.shape, written.dtype)
    return target if fits else None


@functools.cache
def _with_the_same_arguments(op: OpOverload) -> OpOverload | None:
    """The operator without `_` at the end of its name that takes what this one takes.

    It need not have the same name among its overloads: `pow_.Scalar` writes a tensor to the power of a number, as
    `pow.Tensor_Scalar` gives it, and `pow.Scalar` is a number to the power of a tensor.
    """
    namespace, _, name = op._schema.name.partition("::")
    packet = getattr(getattr(torch.ops, namespace), name.removesuffix("_"), None)
    overloads = [getattr(packet, each) for each in packet.overloads()] if packet is not None else []
    return next((each for each in overloads if _arguments(each) == _arguments(op)), None)


def _arguments(op: OpOverload) -> list[tuple[str, str]]:
    return [(argument.name, str(argument.type)) for argument in op._schema.arguments]


@functools.cache
def _kept_whole() -> frozenset[Any]:
    return frozenset(torch._export.utils._collect_all_valid_cia_ops()) | {aten.contiguous.default}


def _is_written_out(node: fx.Node) -> bool:
    target = node.target
    return isinstance(target, OpOverload) and target._can_decompose() and target not in _kept_whole()


class _Sizes:
    """The nodes of a graph that hold sizes, by expression: a size that is there is not worked out again."""

    def __init__(self) -> None:
        self._nodes: dict[Any, fx.Node] = {}

    def note(self, node: fx.Node) -> fx.Node:
        """The first node that holds what this one does."""
        value = node.meta.get("val")
        return self._nodes.setdefault(value.node.expr, node) if isinstance(value, SymInt) else node


def _write_out(node: fx.Node, sizes: _Sizes) -> None:
    """Put in the place of a composite operator what it calls."""
    _put(node, _traced(node), sizes)


def _traced(node: fx.Node, definitions: dict[OpOverload, Callable[..., Any]] | None = None) -> fx.Graph:
    """What an operator calls, by itself, with these definitions of others."""
    inputs, operator = node.all_input_nodes, node.target
    assert isinstance(operator, OpOverload)

    def call(*values: Any) -> Any:
        given = dict(zip(inputs, values, strict=True))
        args, kwargs = fx.map_arg((node.args, node.kwargs), given.__getitem__)
        return operator(*args, **kwargs)

    # Where torch has operators call others in Python, as batch norms do, the dispatcher for Python is what knows it.
    with enable_python_dispatcher():
        return make_fx(call, decomposition_table=definitions)(*(each.meta["val"] for each in inputs)).graph


def _put(node: fx.Node, traced: fx.Graph, sizes: _Sizes) -> None:
    """A graph of what an operator calls in its place."""
    copies = dict(zip(traced.find_nodes(op="placeholder"), node.all_input_nodes, strict=True))

    def copied(inner: fx.Node, copy: fx.Node) -> fx.Node:
        # A check has no value.
        copy.meta = {**node.meta, "val": inner.meta.get("val")}
        first = sizes.note(copy)
        if first is not copy:
            node.graph.erase_node(copy)
        return first

    replace(node, copy_into(traced, copies, node, copied))


# Operators that read memory


def _lay_out(graph: fx.Graph) -> None:
    """Let operators that read a tensor as it lies in memory read one that lies as it did for the exporter: where it was
    made in another way, or given so, it need not lie so by itself.
    """
    for node in graph.find_nodes(op="call_function", target=aten.native_group_norm.default):
        node.update_arg(0, _copied(node.args[0], node))
    for node in graph.find_nodes(op="call_function", target=aten.as_strided.default):
        arguments: Any = (*node.args, None)[:4]
        given, size, stride, start = arguments
        value = given.meta["val"]
        # Places are counted from where the storage begins, in which the tensor may be a part of another one.
        before = 0 if start is None else value.storage_offset()
        order = range(value.dim())
        if not value.is_contiguous():
            order = sorted(order, key=lambda dim: -value.stride(dim))
            value = value.permute(order)
            given = call(aten.permute.default, (given, order), node)
        if not value.is_contiguous() or not _is_within(value, size, stride, start, before):
            raise NotImplementedError("as_strided reads memory besides that of its tensor")
        node.args = (_copied(given, node), size, stride, start - before if before else start)


def _is_within(value: Tensor, size: Any, stride: Any, start: Any, before: Any) -> bool:
    """A view of memory is of places that are known to be a tensor's."""
    sizes, strides, first = fx.map_arg((size, stride, start or 0), lambda each: each.meta["val"])
    last = first + sum((most - 1) * step for most, step in zip(sizes, strides, strict=True))
    known = before == 0 or (isinstance(before, int) and isinstance(start, int))
    return known and first >= before and last - before < value.numel()


def _copied(given: fx.Node, before: fx.Node) -> fx.Node:
    """What a node gives in memory of its own, the last dim innermost."""
    kwargs: Any = {"memory_format": torch.contiguous_format}
    if given.target is aten.clone.default and given.kwargs == kwargs:
        return given
    copy = call(aten.clone.default, (given,), before)
    copy.kwargs = kwargs
    copy.meta["val"] = copy.meta["val"].contiguous()
    return copy


# Operators without a rule


def _write_out_unknown(graph: fx.Graph, has_rule: Callable[[Any], bool]) -> None:
    """Write out what has no rule, where nothing is left then that has none; else it stays, so that an error names it
    as the model's code does.
    """

    def wants_rule(node: fx.Node) -> bool:
        real = node.op == "call_function" and _is_floating(node) and any(map(_is_floating, node.all_input_nodes))
        return real and not has_rule(node.target)

    use_first_names(graph)
    unknown = {node for node in graph.nodes if wants_rule(node) and _is_defined(node.target)}
    if not unknown:
        return
    definitions = {op: f for op, f in torch._decomp.decomposition_table.items() if _is_defined(op) and not has_rule(op)}
    sizes = _Sizes()
    for node in list(graph.nodes):
        if node not in unknown:
            sizes.note(node)
            continue
        traced = _traced(node, definitions | _DEFINITIONS)
        whole = any(inner.op == "get_attr" for inner in traced.nodes)
        if not whole and _without_writes(traced) and not any(map(wants_rule, traced.nodes)):
            _put(node, traced, sizes)


def _is_defined(op: Any) -> bool:
    """Torch, or we, say what the operator is in others; it draws no random numbers, and writes into nothing."""
    if not isinstance(op, OpOverload) or torch.Tag.nondeterministic_seeded in op.tags or op._schema.is_mutable:
        return False
    return op in _DEFINITIONS or (
        (op._can_decompose() or op in torch._decomp.decomposition_table) and op not in _WRONGLY_DEFINED
    )


def _is_floating(node: fx.Node) -> bool:
    return any(value.is_floating_point() or value.is_complex() for value in _tensors(node.meta.get("val")))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


_WRONGLY_DEFINED = {aten.multilabel_margin_loss.default, aten.multilabel_margin_loss_forward.default}
"""In torch's definition what comes after the first -1 of the target counts as class 0."""


def _distances(x: Tensor, y: Tensor, p: float = 2, compute_mode: int | None = None) -> Tensor:
    """‖x_i − y_j‖, which where the two are equal has the derivative that a norm has at 0."""
    return torch.linalg.vector_norm(x.unsqueeze(-2) - y.unsqueeze(-3), p, -1)


def _distances_within(x: Tensor, p: float = 2) -> Tensor:
    """‖x_i − x_j‖ for i < j."""
    first, second = torch.triu_indices(x.shape[0], x.shape[0], 1, device=x.device)
    return torch.linalg.vector_norm(x[first] - x[second], p, -1)


def _hypotenuse(x: Tensor, y: Tensor) -> Tensor:
    """√(x² + y²)."""
    return torch.linalg.vector_norm(torch.stack(torch.broadcast_tensors(x, y)), 2, 0)


def _trilinear(
    x: Tensor, y: Tensor, z: Tensor, expand1: list[int], expand2: list[int], expand3: list[int], sumdim: list[int],
    unroll_dim: int = 1,
) -> Tensor:  # fmt: skip
    """Σ x y z, each unsqueezed first."""
    factors = [x, y, z]
    for place, dims in enumerate((expand1, expand2, expand3)):
        for dim in sorted(dims):
            factors[place] = factors[place].unsqueeze(dim)
    return (factors[0] * factors[1] * factors[2]).sum(sumdim)


def _convolution_backward(
    gradient: Tensor, x: Tensor, weight: Tensor, bias_sizes: list[int] | None, stride: list[int], padding: list[int],
    dilation: list[int], transposed: bool, output_padding: list[int], groups: int, output_mask: list[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
    """The derivative for the input, as a convolution the other way; for the bias, a sum."""
    if output_mask[1]:
        raise NotImplementedError("the derivative for the weight")
    spatial = range(len(stride))
    # What the other way lacks at the ends, where strides do not go up in the size.
    lacking = [
        x.shape[i + 2]
        - ((gradient.shape[i + 2] - 1) * stride[i] - 2 * padding[i] + dilation[i] * (weight.shape[i + 2] - 1) + 1)
        for i in spatial
    ]
    ends = [0] * len(stride) if transposed else lacking
    return (
        aten.convolution.default(gradient, weight, None, stride, padding, dilation, not transposed, ends, groups)
        if output_mask[0]
        else None,
        None,
        gradient.sum([0, *(i + 2 for i in spatial)]) if output_mask[2] else None,
    )


_DEFINITIONS: dict[Any, Callable[..., Any]] = {
    aten.convolution_backward.default: _convolution_backward,
    aten._cdist_forward.default: _distances,
    aten._euclidean_dist.default: _distances,
    aten._pdist_forward.default: _distances_within,
    aten.hypot.default: _hypotenuse,
    aten._trilinear.default: _trilinear,
}
"""Where torch's own has no derivative at 0, or there is none."""
