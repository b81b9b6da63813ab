"""Where the length of what enters a region makes no difference, against the region at scaled values."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import jetgraph as jg
from jetgraph.running.forward import Forward
from jetgraph.structure.regions import Region
from tests import zoo
from tests.conftest import Example

WIDTH = 6


class Block(nn.Module):
    """One branch by hand, behind a skip."""

    def __init__(self, function: Callable[[Tensor, nn.Linear], Tensor]) -> None:
        super().__init__()
        self.function, self.linear = function, nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.function(x, self.linear)


def _rms(x: Tensor, eps: float = 1e-6) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)


def _qk_normed(x: Tensor, linear: nn.Linear) -> Tensor:
    """Queries and keys are normed, values are not: the whole is of degree 1, and mixes positions."""
    q, k = _rms(x @ linear.weight), _rms(x @ linear.weight.T)
    return _rms(F.scaled_dot_product_attention(q, k, x))


BRANCHES: dict[str, tuple[Callable[[Tensor, nn.Linear], Tensor], tuple[int, ...] | None, bool]] = {
    "layer norm": (lambda x, w: w(F.layer_norm(x, [WIDTH])).tanh(), (-3, -2), True),
    "rms norm": (lambda x, w: w(F.rms_norm(x, [WIDTH])).sigmoid(), (-3, -2), False),
    "rms by hand": (lambda x, w: w(_rms(x)).exp(), (-3, -2), False),
    "layer by hand": (lambda x, w: w(_rms(x - x.mean(-1, keepdim=True))), (-3, -2), False),
    "deviation": (lambda x, w: w((x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-6)), (-3, -2), True),
    "normalize": (lambda x, w: w(F.normalize(x, dim=-1)), (-3, -2), False),
    "scaled first": (lambda x, w: w(_rms(3 * x)), (-3, -2), False),
    "over positions": (lambda x, w: w(F.layer_norm(x.mT, [4]).mT), (-3, -1), True),
    "over both": (lambda x, w: w(F.layer_norm(x, [4, WIDTH])), (-3,), True),
    "mixed before": (lambda x, w: w(_rms(x.cumsum(1))), (-3,), False),
    "relu before": (lambda x, w: w(_rms(x.relu())), (-3, -2), False),
    "values without a norm": (_qk_normed, (-3,), False),
    "gated by a sign": (lambda x, w: w(_rms(x)) * (_rms(x) > 0), (-3, -2), False),
    "two norms": (lambda x, w: w(_rms(x)) * F.layer_norm(x, [WIDTH]), (-3, -2), False),
    "product of degree 0": (lambda x, w: w(x * x.norm(dim=-1, keepdim=True) ** -1), (-3, -2), False),
    "norms of stretches": (
        lambda x, w: w(torch.cat([F.layer_norm(x[:, :1], [WIDTH]), F.layer_norm(x[:, 1:], [WIDTH])], 1)).tanh(),
        (-3, -2),
        True,
    ),
    "two norms of stretches": (
        lambda x, w: w(torch.cat([_rms(x[:, :2]), F.layer_norm(x[:, 2:], [WIDTH])], 1)),
        (-3, -2),
        False,
    ),
    "stretches in another order": (lambda x, w: w(_rms(torch.cat([x[:, 1:], x[:, :1]], 1))), (-3, -2), False),
    "beside constants": (
        lambda x, w: w(F.layer_norm(torch.cat([x, w.weight.expand(2, 6, 6)], 1), [WIDTH]).softmax(1)[:, :4]).tanh(),
        (-3, -2),
        True,
    ),
    "beside constants and normed with them": (
        lambda x, w: w(F.layer_norm(torch.cat([x, w.weight.expand(2, 6, 6)], 1), [10, WIDTH])[:, :4]),
        None,
        False,
    ),
    "beside constants by features": (
        lambda x, w: w(F.rms_norm(torch.cat([x, w.weight[:4].expand(2, 4, 6)], -1), [2 * WIDTH])[..., 3:9]),
        None,
        False,
    ),
    "beside constants without a norm": (
        lambda x, w: w(torch.cat([x, w.weight.expand(2, 6, 6)], 1).relu()[:, :4]),
        None,
        False,
    ),
    "stretches added up": (lambda x, w: w(_rms(x[:, :2] + x[:, 2:]).repeat(1, 2, 1)), (-3,), False),
    "one beside all": (lambda x, w: w(_rms(x + x[:, :1])), (-3,), False),
    "a stretch beside all": (lambda x, w: w(_rms(x + torch.cat([x[:, :2], x[:, :2]], 1))), (-3,), False),
    "mixed in a stretch": (lambda x, w: w(_rms(torch.cat([x[:, :2].cumsum(1), x[:, 2:]], 1))), (-3,), False),
    "a bias before": (lambda x, w: _rms(w(x)), None, False),
    "no norm": (lambda x, w: w(x).tanh(), None, False),
    "degree 1": (lambda x, w: (x @ w.weight).relu(), None, False),
    "degree 2": (lambda x, w: (x @ w.weight) * _rms(x) * x, None, False),
    "a constant beside": (lambda x, w: w(_rms(x + 0.5)), None, False),
    "one added to the square": (lambda x, w: w(_rms(x, 1.0)), None, False),
    "the stream beside": (lambda x, w: w(_rms(x)) * x, None, False),
}


def _changed(region: Region, run: Forward, shape: tuple[int, ...], free: tuple[int, ...], size: float = 100) -> float:
    """How much positive factors along some dimensions change what the region gives."""
    x = size * torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    factor = 0.5 + torch.rand([size if d - len(shape) in free else 1 for d, size in enumerate(shape)]).double()
    value, other = run.through(region, x), run.through(region, factor * x)
    return float((value - other).abs().max() / value.abs().max())


@pytest.mark.parametrize("name", BRANCHES)
@torch.no_grad()
def test_degrees_of_branches_by_hand(name: str) -> None:
    function, free, centred = BRANCHES[name]
    torch.manual_seed(0)
    x = torch.randn(2, 4, WIDTH, dtype=torch.float64)
    graph = jg.trace(Block(function).double().eval(), x, dynamic=False)
    (site,) = (site for site in graph.outline.sites() if site.role == "branch")
    region, run = graph.branches[site.alias].region, graph.run(x)
    assert site.homogeneous == region.homogeneous == (free is not None)
    if free is None:
        assert region.scaling is None
        assert _changed(region, run, x.shape, (), 1) > 1e-3
        return
    assert region.scaling is not None
    assert (region.scaling.free, region.scaling.centred) == (free, centred)
    assert _changed(region, run, x.shape, free) < 1e-6
    for dim in {-3, -2, -1} - set(free):
        assert _changed(region, run, x.shape, (dim,)) > 1e-3


@pytest.mark.parametrize("name", ["gpt2", "opt", "olmo2", "cohere", "t5", "bert", "convnext", "mixtral"])
@torch.no_grad()
def test_degrees_of_models(name: str, traced: Callable[..., Example]) -> None:
    """Of every site, whatever it is made of; the ε of a norm is all that is left."""
    example = traced(zoo.case(name))
    graph = example.graph.relocated(
        lambda name: t.double() if (t := example.graph.traced.tensors[name]).is_floating_point() else t
    )
    inputs = {
        key: value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
        for key, value in example.inputs.items()
    }
    run, found = graph.run(**inputs), 0
    regions = {stage.alias: stage.region for stage in graph.stream.stages}
    regions |= {alias: branch.region for alias, branch in graph.branches.items()}
    for site in graph.outline.sites():
        if site.affine:
            continue
        region = graph.structure.decoder.nonlinear if site.role == "decoder" else regions[site.alias]
        shape = run.shape(region.entry)
        if site.homogeneous:
            assert region.scaling is not None
            assert _changed(region, run, shape, region.scaling.free) < 1e-4
            found += 1
        else:
            assert _changed(region, run, shape, (), 1) > 1e-3
    assert found
