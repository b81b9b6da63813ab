"""One way to write each thing: second names of operators, as torch has them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn.functional import linear
from torch.utils._python_dispatch import TorchDispatchMode

import jetgraph as jg
from jetgraph.export.normal_form import normalise
from jetgraph.jets.registry import find_rule
from tests.jets.cases import CASES
from tests.jets.test_rules import Prepared

aten = torch.ops.aten


OTHERS = {
    "aten.split.default",  # Python writes split_with_sizes itself
    "aten.float_power.Tensor_Scalar",  # the same in float64 only, to which others are cast
    "aten.float_power.Tensor_Tensor",
    "aten.float_power.Scalar",
    "aten.data.default",  # what Python's .data is traced as is a detach
    "aten.argwhere.default",  # of sizes that depend on values, which no graph has
}


class Called(TorchDispatchMode):
    """Which operators are called in the end."""

    def __init__(self) -> None:
        super().__init__()
        self.ops: list[Any] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.ops.append(function)
        return function(*args, **(kwargs or {}))


def signature(op: torch._ops.OpOverload) -> tuple[Any, ...]:
    return tuple((str(argument.type), argument.kwarg_only) for argument in op._schema.arguments)


def without_rules() -> dict[tuple[Any, ...], list[torch._ops.OpOverload]]:
    """ATen's functional operators that have no rule, by signature: all, of which `aten` lists those once asked for."""
    found: dict[tuple[Any, ...], list[torch._ops.OpOverload]] = {}
    schemas = torch._C._jit_get_all_schemas()
    for name in sorted({schema.name.removeprefix("aten::") for schema in schemas if schema.name.startswith("aten::")}):
        packet = getattr(aten, name, None)
        if name.startswith("_") or not isinstance(packet, torch._ops.OpOverloadPacket):
            continue
        for op in (getattr(packet, overload) for overload in packet.overloads()):
            if not op._schema.is_mutable and find_rule(op) is None:
                found.setdefault(signature(op), []).append(op)
    return found


def second_names() -> Iterator[tuple[torch._ops.OpOverload, torch._ops.OpOverload, tuple[Any, ...], dict[str, Any]]]:
    """Operators that do nothing but call one that has a rule with the same arguments: both, and arguments."""
    others, seen = without_rules(), set[Any]()
    for case in CASES:
        if not isinstance(case.op, torch._ops.OpOverload) or case.op.namespace != "aten":
            continue
        prepared = Prepared(case)
        args = prepared.args([torch.as_tensor(rows[0]) for rows in prepared.coefficients])
        for other in others.get(signature(case.op), ()):
            if (other, case.op) in seen:
                continue
            try:
                with Called() as called:
                    other(*args, **case.kwargs)
            except (RuntimeError, NotImplementedError, IndexError, ValueError):
                continue  # not for these arguments
            if called.ops == [case.op]:
                seen.add((other, case.op))
                yield other, case.op, args, case.kwargs


@pytest.mark.filterwarnings("ignore")
def test_second_names_have_rules() -> None:
    """Whatever calls one operator with a rule alone is written as that operator, or as one that gives the same."""
    names: set[str] = set()
    missing: list[str] = []
    for other, op, args, kwargs in second_names():
        graph = fx.Graph()
        leaves: list[fx.Node] = []

        def put(value: Any, graph: fx.Graph = graph, leaves: list[fx.Node] = leaves) -> Any:
            if not isinstance(value, torch.Tensor):
                return value
            leaves.append(graph.placeholder(f"x{len(leaves)}"))
            leaves[-1].meta = {"dtype": value.dtype, "shape": tuple(value.shape), "module_path": ""}
            return leaves[-1]

        given = torch.utils._pytree.tree_map(put, (args, kwargs))
        node = graph.call_function(other, *given)
        node.meta = {"module_path": "", "dtype": torch.float64, "shape": ()}
        graph.output(node)
        normalise(graph)
        names.add(str(other))
        if str(other) in OTHERS:
            continue
        if any(n.op == "call_function" and find_rule(n.target) is None for n in graph.nodes):
            missing.append(f"{other} → {op}")
    assert not missing
    assert len(names) > 30, sorted(names)


@pytest.mark.parametrize(
    ("second", "first"),
    [
        (torch.arctan, torch.atan),
        (torch.special.expit, torch.sigmoid),
        (lambda x: torch.concat([x, 2 * x]), lambda x: torch.cat([x, 2 * x])),
        (lambda x: torch.linalg.matmul(x, x.T), lambda x: x @ x.T),
        (lambda x: torch.clip(x, -0.1, 0.5), lambda x: torch.clamp(x, -0.1, 0.5)),
        (lambda x: torch.divide(torch.subtract(x, 1), torch.absolute(x)), lambda x: (x - 1) / x.abs()),
        (lambda x: torch.addbmm(x, x[None], x[None]), lambda x: x + x @ x),
        (lambda x: torch.special.log_softmax(x, -1), lambda x: torch.log_softmax(x, -1)),
    ],
)
def test_jets_of_second_names(second: Any, first: Any) -> None:
    """`jg.jet` goes the way of `jg.trace`."""
    x, v = torch.rand(2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.2
    torch.testing.assert_close(jg.jet(second, x, v, 3), jg.jet(first, x, v, 3), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("affine", [False, True])
def test_instance_norms_by_running_statistics(affine: bool) -> None:
    """In evaluation they go entry by entry, by what the layer holds."""
    norm = torch.nn.InstanceNorm1d(3, affine=affine, track_running_stats=True).double().eval()
    norm.running_mean, norm.running_var = torch.randn(2, 3, dtype=torch.float64)[0], torch.ones(3).double() / 2
    x, v = torch.randn(2, 2, 3, 4, dtype=torch.float64)
    factor = (norm.running_var + norm.eps).rsqrt()[:, None]
    expected = [(x**2 - norm.running_mean[:, None]) * factor, 2 * x * v * factor, v * v * factor]
    torch.testing.assert_close(jg.jet(lambda y: norm(y**2), x, v, 2), torch.stack(expected))


@pytest.mark.parametrize("moments", [torch.var_mean, torch.std_mean])
def test_norms_by_both_moments_at_once(moments: Any) -> None:
    """With the deviation held they are affine: the mean is an operator of its own."""
    root = (lambda v: v.sqrt()) if moments is torch.var_mean else (lambda v: v)

    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(4, 4, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            moment, mean = moments(x, -1, keepdim=True)
            return x + self.layer((x - mean) / (root(moment) + 0.1))

    torch.manual_seed(0)
    block, x = Block().double().eval(), torch.randn(2, 3, 4, dtype=torch.float64)
    with torch.no_grad():
        values = jg.compile(jg.expand(jg.trace(block, x), rules={"*": jg.Freeze()}))(x)
        branch = next(value for path, value in values.terms.items() if "L0" in str(path))
        torch.testing.assert_close(branch, block(x) - x)
        torch.testing.assert_close(values.total, block(x))


def test_writes_up_to_the_end() -> None:
    """They have none, for torch.vmap takes no slice_scatter up to 2**63 - 1."""
    graph = fx.Graph()
    whole, part = graph.placeholder("whole"), graph.placeholder("part")
    for node, shape in ((whole, (4, 2)), (part, (3, 2))):
        node.meta = {"shape": shape, "dtype": torch.float64, "module_path": ""}
    written = graph.call_function(aten.slice_scatter.default, (whole, part, 0, 1, 2**63 - 1))
    written.meta = dict(whole.meta)
    graph.output(written)
    normalise(graph)
    run = fx.GraphModule(torch.nn.Module(), graph)
    x, y = torch.randn(5, 4, 2), torch.randn(5, 3, 2)
    assert torch.equal(torch.vmap(run)(x, y), torch.cat([x[:, :1], y], 1))


@pytest.mark.parametrize(
    ("equation", "path"),
    [
        ("bts,bsk,kd->btd", None),
        ("bt,bts,bsk,kd->dbt", [2, 3, 0, 2, 0, 1]),
        ("...sk, ...ts,...t->...tk", None),
        ("...s,sk,b...kd->...bd", None),
    ],
)
def test_products_of_several_are_products_of_two(equation: str, path: list[int] | None) -> None:
    sizes = {"b": 2, "t": 1, "s": 5, "k": 3, "d": 7, ".": 4}
    left = equation.replace(" ", "").replace("...", ".").split("->")[0].split(",")
    values = [torch.randn([sizes[label] for label in labels]) for labels in left]
    graph = fx.Graph()
    given = [graph.placeholder(f"of_{place}") for place in range(len(values))]
    total = graph.call_function(aten.einsum.default, (equation, given), {"path": path} if path else {})
    for node, value in zip((*given, total), (*values, torch.einsum(equation, values)), strict=True):
        node.meta = {"shape": tuple(value.shape), "dtype": value.dtype, "module_path": ""}
    graph.output(total)
    normalise(graph)
    products = graph.find_nodes(op="call_function", target=aten.einsum.default)
    assert [len(product.args[1]) for product in products] == [2] * (len(values) - 1)
    run = fx.GraphModule(torch.nn.Module(), graph)
    torch.testing.assert_close(run(*values), aten.einsum(equation, values, path=path), rtol=0, atol=0)
    for product in products:
        one, other = (arg.meta["shape"] for arg in product.args[1])
        assert torch.einsum(product.args[0], torch.ones(one), torch.ones(other)).shape == product.meta["shape"]


class _Vectors(nn.Module):
    """Layers with a number for each place: a gate by a learned vector, and the expectation under a softmax, whose
    values are no weights.
    """

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.vector = nn.Linear(6, 6), nn.Parameter(torch.randn(6))
        self.bias = nn.Parameter(torch.randn(()))

    def forward(self, h: Tensor) -> Tensor:
        h = h + self.layer(h).tanh() * linear(h, self.vector, self.bias)[..., None]
        spread = linear(self.layer(h).softmax(-1).reshape(-1, 6), torch.linspace(-1, 1, 6, dtype=h.dtype))
        return linear(h + spread.reshape(h.shape[:-1])[..., None] * self.layer(h), self.vector)


def test_layers_whose_weight_is_a_vector() -> None:
    net = _Vectors().double().eval()
    h, v = torch.randn(2, 2, 3, 6, dtype=torch.float64)
    graph = jg.trace(net, h=h)
    assert len(graph.joins) == 2
    layers = graph.traced.graph.find_nodes(op="call_function", target=aten.linear.default)
    assert [len(layer.args[1].meta["shape"]) for layer in layers] == [2, 2, 2]
    value, slope = jg.jet(net, h, v, 1)
    expected = torch.autograd.functional.jvp(net, h, v)
    torch.testing.assert_close((value, slope), expected, rtol=1e-12, atol=1e-12)
