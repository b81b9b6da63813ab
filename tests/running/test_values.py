"""Values on demand: what is computed, how often, and what a patch makes forgotten; against nets written by hand."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import jetgraph as jg

WIDTH, HEADS = 6, 3


class Attention(nn.Module):
    """Heads side by side, with an output projection or without one."""

    def __init__(self, projected: bool) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH) if projected else None

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        """`scale` [heads]: by what each head is multiplied."""
        batch, length, _ = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        z = F.scaled_dot_product_attention(q, k, v)
        if scale is not None:
            z = z * scale[:, None, None]
        z = z.transpose(1, 2).reshape(batch, length, WIDTH)
        return z if self.out is None else self.out(z)


class Net(nn.Module):
    def __init__(self, projected: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Attention(projected) for _ in range(2))

    def forward(self, x: Tensor, scales: list[Tensor | None] | None = None) -> Tensor:
        for block, scale in zip(self.blocks, scales or [None, None], strict=True):
            x = x + block(x, scale)
        return x


class Count(TorchDispatchMode):
    """How many attention products are computed."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.number += "scaled_dot_product" in func.__name__
        return func(*args, **(kwargs or {}))


@pytest.fixture(params=[True, False], ids=["projected", "without a projection"])
def net(request) -> tuple[Net, jg.ResidualGraph, Tensor]:
    torch.manual_seed(0)
    model = Net(request.param).double().eval()
    x = torch.randn(2, 4, WIDTH, dtype=torch.float64)
    return model, jg.trace(model, x, dynamic=False).split({"*.attn": "heads"}), x


def heads(layer: int) -> list[str]:
    return [f"L{layer}.attn.head{index}" for index in range(HEADS)]


@torch.no_grad()
def test_heads_patched_together(net):
    """Heads of both layers scaled one after the other, each as it comes out after those before it."""
    model, graph, x = net
    scales = [torch.tensor([0.0, 0.5, 1.0]).double(), torch.tensor([2.0, 1.0, 0.0]).double()]
    forward = graph.run(x)
    for layer, scale in enumerate(scales):
        for alias, factor in zip(heads(layer), scale, strict=True):
            forward.patch(alias, forward.component(alias) * factor)
    torch.testing.assert_close(forward.output, model(x, scales))
    assert not torch.allclose(forward.output, model(x))


@torch.no_grad()
def test_a_patch_reaches_the_heads_after_it_and_no_others(net):
    model, graph, x = net
    forward = graph.run(x)
    first, second = (torch.stack([forward.component(alias) for alias in heads(layer)]) for layer in (0, 1))
    forward.patch("L0.attn.head1", torch.zeros_like(first[1]))
    for index in (0, 2):
        torch.testing.assert_close(forward.component(f"L0.attn.head{index}"), first[index], rtol=0, atol=0)
    h = x + model.blocks[0](x, torch.tensor([1.0, 0.0, 1.0]).double())
    changed = torch.stack([forward.component(alias) for alias in heads(1)])
    bias = 0 if model.blocks[1].out is None else model.blocks[1].out.bias
    torch.testing.assert_close(changed.sum(0) + bias, model.blocks[1](h))
    assert not torch.allclose(changed, second)


@torch.no_grad()
def test_heads_share_what_lies_before_them(net):
    """In whatever order they are asked for; and a branch is run once where one of them is patched."""
    _, graph, x = net
    with Count() as count:
        forward = graph.run(x)
        found = {alias: forward.component(alias) for pair in zip(heads(0), heads(1), strict=True) for alias in pair}
    assert count.number == 2
    with Count() as count:
        forward = graph.run(x)
        forward.patch("L0.attn.head0", torch.zeros_like(found["L0.attn.head0"]))
        assert forward.output.isfinite().all()
    assert count.number == 2
    with Count() as count:
        graph(x)
    assert count.number == 2


@torch.no_grad()
def test_whole_branches_and_their_parts(net):
    model, graph, x = net
    forward = graph.run(x)
    with pytest.raises(jg.InputError, match=r"has the shape \(2, 4, 6\)"):
        forward.patch("L0.attn.head0", torch.zeros(2, 4, dtype=torch.float64))
    with pytest.raises(jg.InputError, match="of another graph"):
        forward.need([jg.trace(model, x, dynamic=False).stream.end])
    whole = jg.trace(model, x, dynamic=False).run(x)
    whole.patch("L1.attn", torch.zeros_like(x))
    torch.testing.assert_close(whole.output, x + model.blocks[0](x))
    whole.patch("L0.attn", torch.zeros_like(x))
    # It keeps its value, whatever changes before it.
    torch.testing.assert_close(whole.output, x)


class Product(nn.Module):
    """One head, whose attention product is all that the branch is."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.v = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return x + scale * (self.q(x) @ x.transpose(1, 2)).softmax(-1) @ self.v(x)


@torch.no_grad()
def test_a_part_that_is_the_end_of_its_branch():
    """Its own value is not the one that stands in its place."""
    torch.manual_seed(0)
    model = Product().double().eval()
    x = torch.randn(2, 4, WIDTH, dtype=torch.float64)
    graph = jg.trace(model, x, dynamic=False).split("heads")
    (alias,) = (alias for alias, branch in graph.branches.items() if branch.part is not None)
    assert not graph.branches[alias].part.cut.carried  # type: ignore[union-attr]
    forward = graph.run(x)
    torch.testing.assert_close(forward.component(alias), model(x) - x)
    for scale in (0.5, -1.0):
        forward.patch(alias, scale * (model(x) - x))
        torch.testing.assert_close(forward.output, model(x, scale))
        torch.testing.assert_close(forward.component(alias), scale * (model(x) - x))


@torch.no_grad()
@pytest.mark.parametrize("end", [lambda h: h.flip(0), lambda h: h - h.mean(0, keepdim=True), lambda h: 2 * h])
def test_places_of_rows_that_the_decoder_puts_together(end) -> None:
    """Where each row has a place of its own, one can be taken out before the decoder only if rows stay apart there."""
    layer = nn.Linear(WIDTH, WIDTH).eval()
    x, places = torch.randn(2, 3, WIDTH), torch.tensor([2, 0])
    graph = jg.trace(lambda x: end(x + torch.tanh(layer(x))), x, dynamic=False)
    rows = torch.arange(2), places
    torch.testing.assert_close(graph.run(x=x).output_at(places)[:, 0], end(x + torch.tanh(layer(x)))[rows])
    expansion = jg.expand(graph, recipe="components")
    paths = list(expansion.terms())
    values = jg.compile(expansion, paths)(x=x)
    for path, term in zip(paths, values.each(paths, position=places), strict=True):
        torch.testing.assert_close(term[:, 0], values.terms[path][rows])
