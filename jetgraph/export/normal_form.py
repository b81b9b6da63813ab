"""Normal forms of a traced graph: one way to write each thing, so that the analysis has one thing to look for.

Every pass keeps the values, to the bit but for `a + c·b` and other sums that an operator computes together with
something else: they may round once more.
"""

from __future__ import annotations

import operator
import string
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from jetgraph.export.buffers import write_buffers_as_pieces
from jetgraph.export.cells import write_out_steps
from jetgraph.export.complex_parts import write_complex_parts
from jetgraph.export.copies import write_complex_parts_as_pairs, write_copies_out
from jetgraph.export.factors import broadcast, distribute_over_differences, distribute_over_own_sums, is_zeros
from jetgraph.export.masks import call_attention_as_models_do
from jetgraph.export.projections import write_projections_beside
from jetgraph.export.stacks import nest_stacks, read_past_stacks, write_sums_over_stacks
from jetgraph.export.units import write_units_as_lookups
from jetgraph.export.updates import write_updates_as_sums

aten = torch.ops.aten

_ALIASES = {
    "absolute": "abs", "arccos": "acos", "arccosh": "acosh", "arcsin": "asin", "arcsinh": "asinh", "arctan": "atan",
    "arctan2": "atan2", "arctanh": "atanh", "clip": "clamp", "concat": "cat", "concatenate": "cat", "divide": "div",
    "greater": "gt", "greater_equal": "ge", "less": "lt", "less_equal": "le", "linalg_matmul": "matmul",
    "multiply": "mul", "negative": "neg", "not_equal": "ne", "orgqr": "linalg_householder_product",
    "special_digamma": "digamma", "special_erf": "erf", "special_erfc": "erfc", "special_erfinv": "erfinv",
    "special_exp2": "exp2", "special_expit": "sigmoid", "special_expm1": "expm1", "special_gammaln": "lgamma",
    "special_i0": "i0", "special_log1p": "log1p", "special_log_softmax": "log_softmax", "special_logit": "logit",
    "special_logsumexp": "logsumexp", "special_polygamma": "polygamma", "special_psi": "digamma",
    "special_round": "round", "special_sinc": "sinc", "special_softmax": "softmax", "special_xlogy": "xlogy",
    "subtract": "sub", "swapaxes": "transpose", "swapdims": "transpose", "true_divide": "div", "fix": "trunc",
}  # fmt: skip
"""Second names of operators."""


def normalise(graph: fx.Graph) -> None:
    """Bring a graph of ATen operators into normal form, in place."""
    use_first_names(graph)
    _resolve_types(graph)
    _drop_empty_parts(graph)
    _drop_identities(graph)
    _join_equal_sums(graph)
    call_attention_as_models_do(graph)
    _write_constant_powers_as_ones(graph)
    _write_norms_by_running_statistics_alike(graph)
    _write_norms_without_their_statistics(graph)
    _write_moments_apart(graph)
    write_out_steps(graph)
    write_units_as_lookups(graph)
    _write_equations_with_letters(graph)
    _write_products_of_two(graph)
    _write_dot_products(graph)
    _write_products_with_vectors(graph)
    _write_scattered_sums_alike(graph)
    _unfuse_sums(graph)
    write_complex_parts(graph)
    write_copies_out(graph)
    write_buffers_as_pieces(graph)
    read_past_stacks(graph)
    write_sums_over_stacks(graph)
    nest_stacks(graph)
    _write_sums_as_adds(graph)
    _drop_zeros(graph)
    distribute_over_differences(graph)
    distribute_over_own_sums(graph)
    write_projections_beside(graph)
    write_updates_as_sums(graph)
    write_complex_parts_as_pairs(graph)
    _write_open_ends_as_none(graph)
    _nest_concatenations(graph)


def use_first_names(graph: fx.Graph) -> None:
    """Operators that have several names by the first of them, in place."""
    for node in graph.nodes:
        if not isinstance(node.target, torch._ops.OpOverload) or node.target.namespace != "aten":
            continue
        name = _ALIASES.get(str(node.target.overloadpacket).removeprefix("aten."))
        first = None if name is None else _same_arguments(getattr(aten, name), node.target)
        if first is not None:
            node.target = first


def _same_arguments(packet: Any, op: torch._ops.OpOverload) -> torch._ops.OpOverload | None:
    """The overload that takes what `op` takes: of the same name, or else of the same types (log_softmax's is `int`)."""
    named = getattr(packet, op._overloadname, None)
    if named is not None:
        return named
    types = [str(argument.type) for argument in op._schema.arguments]
    overloads = (getattr(packet, name) for name in packet.overloads())
    return next((one for one in overloads if [str(a.type) for a in one._schema.arguments] == types), None)


def _resolve_types(graph: fx.Graph) -> None:
    """A cast to another tensor's type becomes a cast to that type: the other tensor is not data."""
    for node in list(graph.nodes):
        if node.target not in (aten.type_as.default, aten.to.other) or "dtype" not in node.meta:
            continue
        with graph.inserting_before(node):
            cast = graph.call_function(aten._to_copy.default, node.args[:1], {"dtype": node.meta["dtype"]})
        cast.meta = dict(node.meta)
        _replace(node, cast)


def _drop_empty_parts(graph: fx.Graph) -> None:
    """cat skips operands of shape (0,), such as an empty cache; so does the graph."""
    for node in list(graph.nodes):
        if node.target is not aten.cat.default:
            continue
        parts = node.args[0]
        filled = [part for part in parts if not _is_empty(part)]
        if not filled or (len(filled) == len(parts) and len(parts) > 1):
            continue
        if len(filled) == 1:
            _replace(node, filled[0])
        else:
            node.args = (filled, *node.args[1:])


def _is_empty(part: fx.Node) -> bool:
    """Of the shape (0,); a size that depends on values is not asked."""
    shape = part.meta.get("shape", ())
    return len(shape) == 1 and isinstance(shape[0], int) and shape[0] == 0


def _drop_identities(graph: fx.Graph) -> None:
    for node in list(graph.nodes):
        if node.op == "call_function" and _does_nothing(node):
            _replace(node, node.args[0])


def _join_equal_sums(graph: fx.Graph) -> None:
    """A sum that the code writes twice, once for a layer to read and once to add to, h + d + f(h + d), is one value."""
    alike: dict[Any, list[fx.Node]] = {}
    for node in graph.nodes:
        if node.target is aten.add.Tensor:
            alike.setdefault((*node.args, *node.kwargs.items()), []).append(node)
    for first, *others in alike.values():
        if len({_is_added_to(node) for node in (first, *others)}) > 1:
            for other in others:
                _replace(other, first)


def _is_added_to(node: fx.Node) -> bool:
    return any(user.target is aten.add.Tensor for user in node.users)


def _replace(node: fx.Node, value: Any) -> None:
    node.replace_all_uses_with(value)
    node.graph.erase_node(node)


def _does_nothing(node: fx.Node) -> bool:
    """Copies, dropout in evaluation and slices of everything: the values are the argument's own."""
    packet = getattr(node.target, "overloadpacket", None)
    if packet in (aten.alias, aten.detach, aten.lift_fresh_copy):
        return True
    if packet is aten.clone:
        # A change of layout matters to a view that follows, and so does a conjugate that is written out.
        return not node.kwargs and not getattr(node.meta.get("dtype"), "is_complex", False)
    if packet is aten.dropout:
        return True
    if packet is aten.slice:
        start, end = (*node.args[2:], None, None)[:2]
        return start in (None, 0) and end in (None, 2**63 - 1) and len(node.args) < 5
    if node.target is aten._to_copy.default:
        same = isinstance(node.args[0], fx.Node) and node.args[0].meta.get("dtype") == node.meta.get("dtype")
        return same and set(node.kwargs) <= {"dtype"}
    if node.target in (aten.add.Tensor, aten.sub.Tensor):
        return _unchanged(node, 0)
    return node.target in (aten.mul.Tensor, aten.div.Tensor) and _unchanged(node, 1)


def _unchanged(node: fx.Node, neutral: int) -> bool:
    """x + 0 and x · 1 with a number of a type that changes nothing."""
    value, number = node.args[:2]
    return (
        isinstance(value, fx.Node)
        and isinstance(number, (int, float))
        and number == neutral
        and not (number == 0 and str(number).startswith("-"))
        and value.meta.get("dtype") == node.meta.get("dtype")
        and "dtype" in node.meta
    )


def _drop_zeros(graph: fx.Graph) -> None:
    """x + zeros of the same shape is x, as where a loop adds up what experts make: zeros are no source of a stream."""
    for node in list(graph.nodes):
        if node.target is not aten.add.Tensor or node.kwargs or "dtype" not in node.meta:
            continue
        for value, other in (node.args, node.args[::-1]):
            unchanged = isinstance(value, fx.Node) and all(
                value.meta.get(what) == node.meta.get(what) for what in ("shape", "dtype")
            )
            if unchanged and is_zeros(other):
                _replace(node, value)
                break
    graph.eliminate_dead_code()


def _write_constant_powers_as_ones(graph: fx.Graph) -> None:
    """x⁰ is 1 whatever x is: nothing of x is read but its shape."""
    for node in list(graph.nodes):
        if node.target is aten.pow.Tensor_Scalar and node.args[1] == 0:
            with graph.inserting_before(node):
                ones = graph.call_function(aten.ones_like.default, node.args[:1])
            ones.meta = dict(node.meta)
            _replace(node, ones)


def _write_norms_by_running_statistics_alike(graph: fx.Graph) -> None:
    """An instance norm by statistics that it is given is a batch norm by them, for all instances have the same."""
    for node in graph.find_nodes(op="call_function", target=aten.instance_norm.default):
        if not node.args[5]:
            node.target = aten.batch_norm.default


def _write_norms_without_their_statistics(graph: fx.Graph) -> None:
    """Norms that give their statistics too, which nothing reads, as those that do not."""
    for node in list(graph.nodes):
        whole = _WITHOUT_STATISTICS.get(node.target)
        if whole is None or any(user.target is not operator.getitem or user.args[1] != 0 for user in node.users):
            continue
        op, places = whole
        for first in list(node.users):
            with graph.inserting_before(node):
                alone = graph.call_function(op, tuple(node.args[place] for place in places if place < len(node.args)))
            alone.meta = dict(first.meta)
            _replace(first, alone)
        graph.erase_node(node)


_WITHOUT_STATISTICS: dict[Any, tuple[Any, tuple[int, ...]]] = {
    aten.native_layer_norm.default: (aten.layer_norm.default, (0, 1, 2, 3, 4)),
    aten.native_group_norm.default: (aten.group_norm.default, (0, 6, 1, 2, 7)),
    aten._fused_rms_norm.default: (aten.rms_norm.default, (0, 1, 2, 3)),
}
"""Such norms, those that do not, and where the former have the latter's arguments."""


def _write_moments_apart(graph: fx.Graph) -> None:
    """var_mean and std_mean become two operators, of which one is affine and the other one can be held."""
    for node in list(graph.nodes):
        moment = _MOMENTS.get(node.target)
        if moment is None or any(user.target is not operator.getitem for user in node.users):
            continue
        value, dims, keep = node.args[0], (*node.args[1:], None)[0], node.kwargs.get("keepdim", False)
        for part in list(node.users):
            with graph.inserting_before(node):
                alone = (
                    graph.call_function(aten.mean.dim, (value, dims, keep))
                    if part.args[1]
                    else graph.call_function(moment, node.args, dict(node.kwargs))
                )
            alone.meta = dict(part.meta)
            _replace(part, alone)
        graph.erase_node(node)


_MOMENTS = {
    aten.var_mean.correction: aten.var.correction,
    aten.std_mean.correction: aten.std.correction,
}


def _write_equations_with_letters(graph: fx.Graph) -> None:
    """An einsum's equation has a letter for each dimension, and an output: nothing that reads it asks what `...` is."""
    for node in graph.find_nodes(op="call_function", target=aten.einsum.default):
        equation, operands = node.args
        if all("shape" in one.meta for one in operands):
            node.args = (_with_letters(equation, [len(one.meta["shape"]) for one in operands]), operands)


def _write_products_of_two(graph: fx.Graph) -> None:
    """An einsum of three operands or more is one of two after another, in the order in which torch contracts them.

    Which of them an attention product is, and what becomes of heads and positions in each, can be told then.
    """
    for node in graph.find_nodes(op="call_function", target=aten.einsum.default):
        operands = list(node.args[1])
        if len(operands) < 3 or any("shape" not in one.meta for one in operands):
            continue
        reads, arrow, out = node.args[0].partition("->")
        labels = reads.split(",")
        if not arrow or "." in reads:
            continue
        path = list(node.kwargs.get("path") or ())
        at_end = bool(path)
        with graph.inserting_before(node):
            while len(operands) > 1:
                pair, path = sorted(path[:2] or (0, 1)), path[2:]
                right, left = (operands.pop(at) for at in reversed(pair))
                second, first = (labels.pop(at) for at in reversed(pair))
                read = "".join([out, *labels])
                kept = "".join(label for label in dict.fromkeys(first + second) if label in read) if labels else out
                product = graph.call_function(aten.einsum.default, (f"{first},{second}->{kept}", [left, right]))
                sizes = [*zip(first, left.meta["shape"], strict=True), *zip(second, right.meta["shape"], strict=True)]
                # A size of one is spread over the other's.
                known = dict(sorted(sizes, key=lambda each: each[1] != 1))
                product.meta = {**node.meta, "shape": tuple(known[label] for label in kept)}
                operands.insert(len(operands) if at_end else 0, product)
                labels.insert(len(labels) if at_end else 0, kept)
        _replace(node, operands[0])


def _write_dot_products(graph: fx.Graph) -> None:
    """Dot products of real vectors as sums of products."""
    for node in graph.find_nodes(op="call_function", target=aten.linalg_vecdot.default):
        one, other = node.args[:2]
        if "shape" not in node.meta or any(each.meta["dtype"].is_complex for each in (one, other)):
            continue
        with graph.inserting_before(node):
            product = graph.call_function(aten.mul.Tensor, (one, other))
            dim = node.kwargs.get("dim", -1)
            product.meta = {**node.meta, "shape": broadcast(one.meta["shape"], other.meta["shape"])}
            total = graph.call_function(aten.sum.dim_IntList, (product, [dim]))
        total.meta = dict(node.meta)
        _replace(node, total)


def _write_products_with_vectors(graph: fx.Graph) -> None:
    """A linear layer whose weight is one vector, and which has no dimension of outputs, as a matrix product with it."""
    for node in graph.find_nodes(op="call_function", target=aten.linear.default):
        value, weight, *bias = node.args
        if len(weight.meta.get("shape", ())) != 1:
            continue
        with graph.inserting_before(node):
            product = graph.call_function(aten.matmul.default, (value, weight))
            product.meta = dict(node.meta)
            if bias and bias[0] is not None:
                product = graph.call_function(aten.add.Tensor, (product, bias[0]))
                product.meta = dict(node.meta)
        _replace(node, product)


def _with_letters(equation: str, ranks: Sequence[int]) -> str:
    """An equation with letters for the dimensions that `...` stands for, which are counted from the last, and with the
    output that it has where it says none.
    """
    reads, arrow, out = equation.replace(" ", "").partition("->")
    left = reads.split(",")
    if not arrow:
        told = [letter for letter in reads if letter.isalpha()]
        out = "..." * ("..." in reads) + "".join(sorted(letter for letter in set(told) if told.count(letter) == 1))
    widths = [rank - len(label.replace("...", "")) for label, rank in zip(left, ranks, strict=True)]
    free = [letter for letter in string.ascii_letters if letter not in equation]
    width = max((width for label, width in zip(left, widths, strict=True) if "..." in label), default=0)
    if width > len(free):
        return equation
    dots = "".join(free[:width])
    written = [label.replace("...", dots[width - own :]) for label, own in zip(left, widths, strict=True)]
    return f"{','.join(written)}->{out.replace('...', dots)}"


def _write_scattered_sums_alike(graph: fx.Graph) -> None:
    """scatter_reduce by a sum, with what was there, and scatter that adds: both are scatter_add."""
    for node in graph.nodes:
        name = _ADDING.get(node.target)
        if name in (*node.args[4:], node.kwargs.get("reduce")) and name and node.kwargs.get("include_self", True):
            node.target, node.args, node.kwargs = aten.scatter_add.default, node.args[:4], {}


_ADDING = {aten.scatter_reduce.two: "sum", aten.scatter.reduce: "add"}
"""What the reduction is called that is a sum, by operator."""


def _unfuse_sums(graph: fx.Graph) -> None:
    """Sums that an operator makes together with something else become adds of their own, so that they can be joins.

        addcmul(a, b, c, value)  → a + value·(b·c)          lerp(a, b, w)      → (1 − w)·a + w·b
        addcdiv(a, b, c, value)  → a + value·(b/c)          addmm(a, b, c)     → a + b c, and baddbmm, addbmm's like

    A matrix product keeps what it adds where that is no value of the output's shape, such as a bias, and loses it where
    it is added 0 times.
    """
    for node in list(graph.nodes):
        write = _UNFUSED.get(node.target)
        if write is None or "dtype" not in node.meta or not node.meta["dtype"].is_floating_point:
            continue
        with graph.inserting_before(node):
            total = write(node, _Writer(graph, node))
        if total is not None:
            _replace(node, total)
    graph.eliminate_dead_code()


class _Writer:
    """Writes nodes that have the metadata of the one whose place they take."""

    def __init__(self, graph: fx.Graph, like: fx.Node) -> None:
        self.graph = graph
        self.meta = like.meta

    def __call__(self, op: Any, *args: Any) -> fx.Node:
        node = self.graph.call_function(op, args)
        shapes = [arg.meta.get("shape") for arg in args if isinstance(arg, fx.Node)]
        node.meta = dict(self.meta)
        # Products and scalings of one operand keep its shape; with two, they have that of the whole at most.
        if len(shapes) == 1:
            node.meta["shape"] = shapes[0]
        return node

    def scaled(self, value: Any, factor: Any) -> Any:
        return value if factor == 1 else self(aten.mul.Tensor, value, factor)

    def plus(self, value: Any, factor: Any, product: fx.Node) -> fx.Node:
        """A multiple of a value and a product. Times 0 it is not looked at: nobody may have written it."""
        return self(aten.add.Tensor, self.scaled(value, factor), product) if factor else product


def _unfused_product(node: fx.Node, write: _Writer, op: Any) -> fx.Node | None:
    one, left, right = node.args[:3]
    value = write(op, left, right)
    value = write.scaled(value, node.kwargs.get("value", 1))
    return write(aten.add.Tensor, one, value)


def _unfused_matrix_product(node: fx.Node, write: _Writer, op: Any) -> fx.Node | None:
    one, left, right = node.args[:3]
    beta = node.kwargs.get("beta", 1)
    if beta and (not isinstance(one, fx.Node) or one.meta.get("shape") != node.meta["shape"]):
        return None
    return write.plus(one, beta, write.scaled(write(op, left, right), node.kwargs.get("alpha", 1)))


def _unfused_sum_of_products(node: fx.Node, write: _Writer) -> fx.Node:
    one, left, right = node.args[:3]
    products = write(aten.bmm.default, left, right)
    products.meta["shape"] = (left.meta["shape"][0], *node.meta["shape"])  # type: ignore[union-attr]
    total = write(aten.sum.dim_IntList, products, [0])
    total.meta["shape"] = node.meta["shape"]
    return write.plus(one, node.kwargs.get("beta", 1), write.scaled(total, node.kwargs.get("alpha", 1)))


def _unfused_lerp(node: fx.Node, write: _Writer) -> fx.Node | None:
    one, other, weight = node.args[:3]
    negated = write(aten.neg.default, weight) if isinstance(weight, fx.Node) else None
    rest = 1 - weight if negated is None else write(aten.add.Tensor, negated, 1)  # type: ignore[operator]
    return write(aten.add.Tensor, write(aten.mul.Tensor, one, rest), write(aten.mul.Tensor, other, weight))


_UNFUSED: dict[Any, Callable[[fx.Node, _Writer], fx.Node | None]] = {
    aten.addcmul.default: lambda node, write: _unfused_product(node, write, aten.mul.Tensor),
    aten.addcdiv.default: lambda node, write: _unfused_product(node, write, aten.div.Tensor),
    aten.addmm.default: lambda node, write: _unfused_matrix_product(node, write, aten.mm.default),
    aten.baddbmm.default: lambda node, write: _unfused_matrix_product(node, write, aten.bmm.default),
    aten.addmv.default: lambda node, write: _unfused_matrix_product(node, write, aten.mv.default),
    aten.addbmm.default: _unfused_sum_of_products,
    aten.lerp.Scalar: _unfused_lerp,
    aten.lerp.Tensor: _unfused_lerp,
}


def _write_sums_as_adds(graph: fx.Graph) -> None:
    """a − b becomes a + (−b), and a + c·b with a factor c two nodes, so that every sum of tensors is a tree of adds;
    rsub(b, a) is a − b.
    """
    for node in list(graph.nodes):
        if node.op != "call_function" or node.target not in (aten.add.Tensor, aten.sub.Tensor, aten.rsub.Tensor):
            continue
        alpha = node.kwargs.get("alpha", 1)
        if node.target is aten.add.Tensor and alpha == 1:
            continue
        one, other = node.args[1::-1] if node.target is aten.rsub.Tensor else node.args[:2]
        floats = [
            isinstance(arg, fx.Node) and arg.meta.get("dtype", torch.int64).is_floating_point for arg in (one, other)
        ]
        if not all(floats):
            continue
        factor = alpha if node.target is aten.add.Tensor else -alpha
        with graph.inserting_before(node):
            scaled = (
                graph.call_function(aten.neg.default, (other,))
                if factor == -1
                else graph.call_function(aten.mul.Tensor, (other, factor))
            )
            scaled.meta = {**other.meta, "module_path": node.meta["module_path"]}  # type: ignore[union-attr]
            total = graph.call_function(aten.add.Tensor, (one, scaled))
            total.meta = dict(node.meta)
        _replace(node, total)


def _write_open_ends_as_none(graph: fx.Graph) -> None:
    """What is written up to the end has none: `torch.vmap` counts on from the largest number, which is an error."""
    for node in graph.find_nodes(op="call_function", target=aten.slice_scatter.default):
        if len(node.args) > 4 and node.args[4] == 2**63 - 1:
            node.update_arg(4, None)


def _nest_concatenations(graph: fx.Graph) -> None:
    """cat(a, b, c) after cat(a, b) becomes cat(cat(a, b), c), so that a list that grows block by block is one
    stream.
    """
    cat = aten.cat.default
    earlier: list[tuple[fx.Node, list[Any], int]] = []
    for node in graph.nodes:
        if node.op != "call_function" or node.target is not cat:
            continue
        parts = list(node.args[0])
        dim = node.args[1] if len(node.args) > 1 else 0
        best: tuple[int, int, fx.Node] | None = None
        for other, pieces, axis in earlier:
            if axis != dim or len(pieces) >= len(parts) or (best and len(pieces) <= best[1]):
                continue
            for at in range(len(parts) - len(pieces) + 1):
                if parts[at : at + len(pieces)] == pieces:
                    best = (at, len(pieces), other)
                    break
        earlier.append((node, parts, dim))
        if best is not None:
            at, width, other = best
            node.args = ([*parts[:at], other, *parts[at + width :]], *node.args[1:])
