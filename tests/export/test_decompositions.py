"""Programs in operators that are kept whole: the same as torch's own `run_decompositions({})` makes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import jetgraph as jg
from jetgraph.export import decompositions
from jetgraph.export.decompositions import decomposed
from jetgraph.export.program import export_program, ordinary_operators
from jetgraph.jets.interpreter import rule_for
from jetgraph.jets.registry import has_rule

aten = torch.ops.aten
FREE = torch.export.Dim.AUTO


class Net(nn.Module):
    """A function of x [b, 4, 6] beside a few modules that it may call."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function
        self.linear, self.norm = nn.Linear(6, 6), nn.BatchNorm1d(4)
        self.register_buffer("table", torch.arange(6.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def composites(net, x):
    y = net.linear(x).reshape(x.shape[0], -1, 3).transpose(1, 2).contiguous().to(torch.float64).to(torch.float32)
    first, second = y.chunk(2, dim=2)
    return F.gelu(torch.matmul(first.flatten(1), second.flatten(1).t()))


def norms(net, x):
    return net.norm(x) + F.instance_norm(x.transpose(1, 2)).transpose(1, 2)


@torch.no_grad()
def angles(net, x):
    return torch.outer(torch.arange(x.shape[0] * 1.0), net.table).cos()


def without_gradients(net, x):
    return net.linear(x) * angles(net, x)[:, None]


def in_place(net, x):
    y = net.linear(x)
    y += 1
    y.mul_(2).relu_()
    return y.masked_fill_(x > 1, 0.5) - net.table


def powers_in_place(net, x):
    """Operators whose overloads are named differently with and without `_`; `pow.Scalar` is another function."""
    y = net.linear(x).exp()
    y.pow_(-0.5).pow_(x.sigmoid() + 1)
    return y.floor_divide_(x.abs() + 0.1)


def halves_in_place(net, x):
    y = torch.empty_like(x)
    y[..., :3] = x[..., 3:]
    y[..., 3:] = net.linear(x)[..., :3]
    return y


def a_view_sees_it(net, x):
    y = net.linear(x)
    first = y[:, 0]
    y.mul_(3)
    return y + first[:, None]


def a_view_is_written(net, x):
    y = net.linear(x)
    y.transpose(1, 2).add_(1)
    return y * 2


def widened_in_place(net, x):
    y = net.linear(x).to(torch.bfloat16)
    y += torch.ones(6, dtype=torch.float32) / 3
    return y.float()


def counted_in_place(net, x):
    counts = torch.zeros(x.shape[0], 6, dtype=torch.int64)
    counts.scatter_add_(1, x.argmax(-1), torch.ones(x.shape[0], 4, dtype=torch.int64))
    return net.linear(x) * counts[:, None]


def without_gradients_and_in_place(net, x):
    return without_gradients(net, a_view_is_written(net, x))


def row_by_row(net, x):
    """As in the delta rule: parts of parts are written, and read again."""
    y = net.linear(x)
    for i in range(1, 4):
        y[:, i, :i] = y[:, i, :i] + y[:, :i, i].clone() * 2
    y.unsqueeze(1)[..., 5] = 0.5
    return y * 2


def a_part_sees_it(net, x):
    y = net.linear(x)
    first = y[:, 0]
    y[:, :2] = 1
    return y + first[:, None]


def parts_of_a_part(net, x):
    """As in rotary embeddings by axes: a part that is kept is written into part by part, and is read at the end."""
    y = net.linear(x)
    kept, rest = y[:, 0], y[:, 1:]
    kept[:, 1:3] = rest[:, 0, 1:3]
    between = y[:, :2]
    rest[:, 0, 4:] = kept[:, 4:] * 2
    return torch.cat([kept[:, None], rest], 1) * between[:, 1:]


def seen_in_another_shape(net, x):
    y = net.linear(x)
    pairs = y.view(-1, 4, 3, 2)
    y[:, 0] = 1
    return y + pairs[..., 0].sum(-1, keepdim=True)


SIMPLE = [composites, norms, without_gradients, in_place, counted_in_place, powers_in_place, halves_in_place]
SIMPLE += [a_view_is_written, without_gradients_and_in_place, a_view_sees_it]
HARD = [seen_in_another_shape, widened_in_place]


@pytest.mark.parametrize("function", SIMPLE + HARD)
def test_the_program_is_torchs_own(function, monkeypatch):
    """The same values at another batch size and, but for layouts, the same operators; what writes into memory that is
    seen elsewhere too is left to torch.
    """
    torch.manual_seed(0)
    net, x = Net(function).eval(), torch.randn(2, 4, 6)
    left = []
    whole = decompositions.composites_at_once
    monkeypatch.setattr(decompositions, "composites_at_once", lambda: left.append(1) or whole())

    def export() -> torch.export.ExportedProgram:
        return torch.export.export(net, (x,), dynamic_shapes=((FREE, None, None),), strict=False)

    with ordinary_operators():
        ours = decomposed(export())
        assert bool(left) == (function in HARD)
        theirs = export().run_decompositions({})
        ours.graph.lint()
        assert _operators(ours) == _operators(theirs)
        assert not any(
            getattr(node.target, "_schema", None) and node.target._schema.is_mutable for node in ours.graph.nodes
        )
        other = torch.randn(3, 4, 6)
        ours.graph_module.recompile()
        torch.testing.assert_close(ours.module()(other), net(other), rtol=0, atol=0)


@pytest.mark.parametrize("function", [row_by_row, a_part_sees_it, parts_of_a_part])
def test_parts_that_are_written(function, monkeypatch):
    """What torch does to them takes minutes where sizes are open and there are many."""
    monkeypatch.setattr(decompositions, "composites_at_once", pytest.fail)
    torch.manual_seed(0)
    net, x = Net(function).eval(), torch.randn(2, 4, 6)
    with ordinary_operators():
        program = decomposed(torch.export.export(net, (x,), dynamic_shapes=((FREE, None, None),), strict=False))
        program.graph_module.recompile()
        other = torch.randn(3, 4, 6)
        torch.testing.assert_close(program.module()(other), net(other), rtol=0, atol=0)


def _operators(program: torch.export.ExportedProgram) -> Counter[str]:
    """Of what the output is made, without what only concerns where values lie in memory."""
    live, stack = set(), [program.graph.output_node()]
    while stack:
        node = stack.pop()
        if node not in live:
            live.add(node)
            stack += node.all_input_nodes
    names = [str(node.target).removeprefix("aten.") for node in live if node.op == "call_function"]
    layouts = ("sym_size.int", "contiguous.default", "clone.default", "view.default", "_unsafe_view.default")
    return Counter(name for name in names if name not in layouts)


LABELS, SIGNS = torch.tensor([2, 0, 5]), torch.tensor([1.0, -1.0, 1.0])
WITHOUT_A_RULE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse_loss": F.mse_loss,
    "l1_loss": F.l1_loss,
    "smooth_l1_loss": F.smooth_l1_loss,
    "huber_loss": lambda x, y: F.huber_loss(x, y, delta=0.3),
    "cross_entropy": lambda x, y: F.cross_entropy(x, LABELS, ignore_index=0),
    "cross_entropy, smoothed": lambda x, y: F.cross_entropy(x, LABELS, label_smoothing=0.1),
    "nll_loss": lambda x, y: F.nll_loss(x, LABELS, weight=y[0], reduction="sum"),
    "kl_div": lambda x, y: F.kl_div(x, y.exp(), reduction="batchmean"),
    "binary_cross_entropy": lambda x, y: F.binary_cross_entropy(x.sigmoid(), y.sigmoid()),
    "with logits": lambda x, y: F.binary_cross_entropy_with_logits(x, y.sigmoid()),
    "soft_margin_loss": lambda x, y: F.soft_margin_loss(x, y.sign()),
    "hinge_embedding_loss": lambda x, y: F.hinge_embedding_loss(x, y.sign()),
    "margin_ranking_loss": lambda x, y: F.margin_ranking_loss(x, y, y.sign()),
    "triplet_margin_loss": lambda x, y: F.triplet_margin_loss(x, y, y.flip(0)),
    "cosine_embedding_loss": lambda x, y: F.cosine_embedding_loss(x, y, SIGNS),
    "multi_margin_loss": lambda x, y: F.multi_margin_loss(x, LABELS),
    "cosine_similarity": lambda x, y: F.cosine_similarity(x, y, dim=-1),
    "pairwise_distance": lambda x, y: F.pairwise_distance(x, y, p=1),
    "linalg.norm": lambda x, y: torch.linalg.norm(x, ord=3, dim=-1),
    "of a matrix": lambda x, y: torch.linalg.norm(x, ord=1),
    "cdist": lambda x, y: torch.cdist(x, y, p=3.0),
    "cdist by products": lambda x, y: torch.cdist(x, y, compute_mode="use_mm_for_euclid_dist"),
    "pdist": lambda x, y: F.pdist(x),
    "dist": torch.dist,
    "hypot": torch.hypot,
    "bilinear": lambda x, y: F.bilinear(x, y, x.new_ones(2, 6, 6).cumsum(-1), y[0, :2]),
    "renorm": lambda x, y: x.renorm(2, 0, 1.0),
}


def test_what_has_no_rule_is_written_in_what_has():
    """Every operator left has a rule, and the values are the operators' own."""
    functions = WITHOUT_A_RULE.values()

    class Functions(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
            return tuple(function(x, y) for function in functions)

    torch.manual_seed(0)
    x, y = torch.randn(2, 3, 6, dtype=torch.float64).unbind()
    program = export_program(Functions(), (x, y), has_rule=has_rule).program
    for node in program.graph.nodes:
        assert node.op != "call_function" or rule_for(node)
    program.graph_module.recompile()
    for name, value, function in zip(WITHOUT_A_RULE, program.module()(x, y), functions, strict=True):
        torch.testing.assert_close(value, function(x, y), msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("length", [7, 8])
def test_the_derivative_of_a_convolution_is_one(transposed: bool, length: int) -> None:
    """Also where a stride leaves the end of the input unread."""

    def convolved(x: Tensor) -> Tensor:
        weight = torch.linspace(-1, 1, 2 * 3 * 3, dtype=torch.float64).reshape(2, 3, 3)
        weight = weight if transposed else weight.transpose(0, 1)
        function = F.conv_transpose1d if transposed else F.conv1d
        return function(x, weight, stride=2, padding=1, dilation=1)

    net = Net(lambda _, x: torch.func.grad(lambda y: convolved(y).square().sum())(x)).double().eval()
    x = torch.linspace(-2, 3, 2 * 2 * length, dtype=torch.float64).reshape(2, 2, length)
    program = export_program(net, (x,), has_rule=has_rule, derived=True).program
    assert aten.convolution_backward.default not in {node.target for node in program.graph.nodes}
    torch.testing.assert_close(program.module()(x), net(x))


READ = {
    # The second reads a copy that the exporter knows to lie so; the third a part, the fourth the same place often.
    "transposed": lambda y: y.mT.clone(memory_format=torch.contiguous_format).as_strided((2, 4, 6), (24, 6, 1)),
    "repeated": lambda y: (y[0, 0].expand(2, 4, 6) * 1.0).contiguous().as_strided((2, 4, 6), (24, 1, 4)),
    "a part": lambda y: (y * y)[1].as_strided((2, 4, 6), (6, 3, 1), 25),
    "open sizes": lambda y: (y * 2).as_strided(y.shape, (y.stride(0) // 2, 1, 2)),
    "a derivative": lambda y: torch.func.grad(lambda z: F.group_norm(z.mT, 3).pow(3).sum())(y.tanh()),
}
"""Functions of [2, 4, 6] that read values by where they lie in memory."""


@pytest.mark.parametrize("name", READ)
@pytest.mark.parametrize("layout", [lambda x: x, lambda x: x.mT.contiguous().mT])
def test_what_is_read_by_its_place_in_memory(name: str, layout: Callable[[Tensor], Tensor]) -> None:
    """It is there as it was in the export, however inputs and the coefficients of series lie."""
    net = Net(lambda net, x: net.linear(x) + READ[name](net.linear(x))).double().eval()
    x, v = torch.randn(2, 2, 4, 6, dtype=torch.float64)
    traced = jg.trace(net, x)
    torch.testing.assert_close(traced(layout(x)), net(x))
    assert ("batch" in traced.traced.signature) == (name in ("open sizes", "a derivative"))
    found = jg.jet(net, layout(x), layout(v), 2)
    ahead, behind = net(x + v / 1e4), net(x - v / 1e4)
    torch.testing.assert_close(found[1], (ahead - behind) / 2e-4, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[2], (ahead + behind - 2 * net(x)) / 2e-8, atol=1e-4, rtol=1e-4)


def test_what_is_read_besides_a_tensor_is_refused() -> None:
    with pytest.raises(jg.TraceError, match="as_strided reads memory besides that of its tensor"):
        jg.trace(
            Net(lambda net, x: net.linear(x)[:, :, :3].as_strided((2, 4), (24, 6), 5)).eval(), torch.randn(2, 4, 6)
        )


def test_what_cannot_be_written_out_stays():
    """An error names it as the model's code does."""
    target = torch.tensor([[3, 0, -1, 1, 2]] * 3)

    class Functions(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            # By singular values, which have no rule; random; wrong in torch's definition, where the target ends early.
            return torch.linalg.norm(x, ord=2) * torch.rand_like(x) + F.multilabel_margin_loss(x, target)

    x = torch.randn(3, 5)
    program = export_program(Functions(), (x,), has_rule=has_rule).program
    targets = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert {aten.linalg_norm.default, aten.rand_like.default, aten.multilabel_margin_loss.default} <= {*targets}
    definition = torch._decomp.decomposition_table[aten.multilabel_margin_loss_forward.default]
    assert not torch.allclose(definition(x, target, 1)[0], F.multilabel_margin_loss(x, target)), "torch has mended it"
