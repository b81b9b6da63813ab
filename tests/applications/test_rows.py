"""Rows of inputs are looked at one by one where they are inputs by themselves, and where they read one another not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import jetgraph as jg
from jetgraph.applications.rows import are_apart
from jetgraph.errors import InputError

WIDTH = 4


class Rows(nn.Module):
    """h + f(h) in a stream that starts from rows of features."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(3, WIDTH), nn.Linear(WIDTH, 3)
        self.layer = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        h = h + torch.fft.fft(self.layer(h)).real
        return self.head(h)


class PositionsFirst(Rows):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        h = h + self.attention(h, h, h, need_weights=False)[0]
        return self.head(h + self.layer(h))


class Nodes(Rows):
    def forward(self, x: Tensor, edges: Tensor) -> Tensor:  # type: ignore[override]
        h, (senders, receivers) = self.embed(x), edges
        h = h.index_add(0, receivers, self.layer(h)[senders])
        return self.head(h)


def made(kind: type[Rows]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return kind().eval().double()


def features(*shape: int) -> Tensor:
    return torch.randn(*shape, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_rows_that_nothing_mixes_are_looked_at_one_by_one() -> None:
    net, x = made(Rows), features(5)
    found = jg.attribute(net, inputs={"x": x}, target=1)
    logits = net(x).detach()
    assert [one.total for one in found.each] == pytest.approx((logits[:, 1] - logits.mean(1)).tolist())  # type: ignore[union-attr]


@pytest.mark.parametrize("function", [jg.attribute, jg.rank])
@pytest.mark.parametrize("rows", [2, 5])
def test_positions_that_come_first_are_no_inputs(function, rows: int) -> None:
    # Of one position alone each attends to itself, so that all numbers were those of another input.
    with pytest.raises(InputError, match="rows that read one another"):
        function(made(PositionsFirst), inputs={"x": features(rows, 2)}, target=1)


def test_nodes_of_a_graph_are_no_inputs() -> None:
    edges = torch.tensor([[0, 3, 4], [1, 2, 4]])
    with pytest.raises(InputError, match="rows that read one another"):
        jg.attribute(made(Nodes), inputs={"x": features(5), "edges": edges}, target=1)


def test_rows_may_hold_what_is_no_number() -> None:
    class Masked(Rows):
        """A mean over the positions that a mask counts, and where it counts none before this one 0/0."""

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
            h, counted = self.embed(x), mask.cumsum(1)[..., None].to(x.dtype)
            h = h + torch.fft.fft((self.layer(h) * mask[..., None]).cumsum(1) / counted).real
            return self.head(h)

    net, x = made(Masked), features(2, 3)
    mask = torch.tensor([[1, 1, 1], [0, 1, 1]])
    assert net(x, mask).isnan().any()
    graph = jg.trace(net, x, torch.ones_like(mask))
    assert are_apart(graph, {"x": x, "mask": mask}, {"x", "mask"}, 2)
    assert not are_apart(jg.trace(made(PositionsFirst), x), {"x": x}, {"x"}, 2)
