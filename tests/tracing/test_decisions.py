"""Choices by values of tensors: what the example decides, and that every call is held to it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import jetgraph as jg
from jetgraph.files.stored import Stored
from jetgraph.saving.serialization import traced_from_json, traced_to_json


class Net(nn.Module):
    """A residual block that asks tensors for values in one way."""

    def __init__(self, way: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.way = way
        self.mlp = nn.Linear(4, 4)

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        return x + torch.tanh(self.mlp(self.way(x, ids)))


def _branch(x: Tensor, ids: Tensor) -> Tensor:
    return 2 * x if (ids == 0).any() else x


def _nested(x: Tensor, ids: Tensor) -> Tensor:
    return x * (3 if ids.max() > 4 and not bool((ids == 1).all()) else 1)


def _number(x: Tensor, ids: Tensor) -> Tensor:
    return x * ids.max().item()


def _listed(x: Tensor, ids: Tensor) -> Tensor:
    return x * sum(ids.amax(0).tolist())


def _listed_in_rows(x: Tensor, ids: Tensor) -> Tensor:
    """Sizes of windows, as the towers of Qwen3-VL make of the grids of images: two lists on one line."""
    for (height, width), scale in zip(ids[:, :2].tolist(), ids[0, :2].tolist(), strict=True):
        x = x + scale * sum(torch.arange(width).sum() for _ in range(height))
    return x


def _sliced(x: Tensor, ids: Tensor) -> Tensor:
    return F.pad(x[:, : ids.max()], (0, 0, 0, x.shape[1] - int(ids.max())))


def _padded(x: Tensor, ids: Tensor) -> Tensor:
    most = ids.max()
    return F.pad(x, (0, 0, most, most - most))[:, most:]


def _contained(x: Tensor, ids: Tensor) -> Tensor:
    return 2 * x if 3 in ids else x


def _repeated(x: Tensor, ids: Tensor) -> Tensor:
    return torch.repeat_interleave(x, ids[0], 1)[:, : x.shape[1]]


def _laid_out(x: Tensor, ids: Tensor) -> Tensor:
    """Patches of an image, as the tower of VideoLLaMA 3 lays them out: each size is an argument of its own."""
    frames, height, width, merged = ids[0, 2], ids[0, 0], 5 * ids[0, 0], ids[1, 2]
    y = _branch(x, ids + 1).view(frames, height // merged, width // merged, merged, merged, 2)
    y = y.permute(0, 1, 3, 2, 4, 5).reshape(frames, height, width, 2).permute(0, 3, 1, 2)
    y = F.interpolate(y, size=(height // merged, width // merged), mode="bilinear")
    return x * y.permute(0, 2, 3, 1).view(-1, 2).mean(1, keepdim=True)


def _made(x: Tensor, ids: Tensor) -> Tensor:
    """Of sizes, and laid out by a list of them."""
    frames, height, width = ids[0, 2], ids[0, 0] // ids[1, 2], 5 * ids[0, 0] // ids[1, 2]
    ramp = torch.ones(frames, height, width, 2).cumsum(2).reshape([frames, width, height, 2]).permute(0, 3, 1, 2)
    ramp = F.interpolate(_branch(ramp, ids + 1), size=(width, height), mode="bilinear")
    return x * ramp.permute(0, 2, 3, 1).view(-1, 2).mean(1, keepdim=True)


def _at_a_mask(x: Tensor, ids: Tensor) -> Tensor:
    kept = x[ids > 1]
    return x + kept.mean(0) if kept.shape[0] % 2 else x * kept.shape[0]


def _set_at_a_mask(x: Tensor, ids: Tensor) -> Tensor:
    y = x.clone()
    y[ids > 1, 1:] = torch.cumsum(x[ids > 1], 0)[:, 1:]
    return y


def _selected(x: Tensor, ids: Tensor) -> Tensor:
    selected = torch.masked_select(x, (ids > 1)[..., None])
    return x * (1 if len(selected) < 21 else selected.sum())


def _different(x: Tensor, ids: Tensor) -> Tensor:
    """Ends of windows, as the tower of Qwen2.5-VL has them."""
    ends = torch.unique_consecutive(ids[0].cumsum(0) // 2)
    return sum((x * ids for ids in ends), torch.zeros_like(x)) / len(torch.unique(ids))


X = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
IDS = torch.tensor([[2, 3, 1, 2, 3], [1, 1, 2, 1, 3]])
OTHER = torch.tensor([[0, 5, 4, 2, 1], [2, 2, 1, 1, 1]])


@pytest.mark.parametrize(
    "way",
    [
        *(_branch, _nested, _number, _listed, _listed_in_rows, _sliced, _padded, _contained, _repeated),
        *(_laid_out, _made, _at_a_mask, _set_at_a_mask, _selected, _different),
    ],
    ids=lambda way: way.__name__[1:],
)
def test_the_example_decides_and_every_call_is_held_to_it(way: Callable[[Tensor, Tensor], Tensor]) -> None:
    model = Net(way).eval()
    graph = jg.trace(model, X, IDS, dynamic=False)
    assert len(graph.joins) == 1
    assert graph.check is not None
    assert graph.check.good
    if graph.traced.decisions is None:  # the exporter follows it by itself
        torch.testing.assert_close(graph(X, OTHER), model(X, OTHER))
        return
    assert "chooses by values" in repr(graph)
    assert "test_decisions.py" in repr(graph)
    torch.testing.assert_close(graph(2 * X, IDS), model(2 * X, IDS))
    with pytest.raises(jg.InputError, match=r"test_decisions\.py:\d+.* reads .* as with the example"):
        graph(X, OTHER)


@pytest.mark.parametrize("way", [_branch, _contained], ids=lambda way: way.__name__[1:])
def test_compiled_paths_are_held_to_it_too(way: Callable[[Tensor, Tensor], Tensor]) -> None:
    model = Net(way).eval()
    module = jg.compile(jg.expand(jg.trace(model, X, IDS)))
    torch.testing.assert_close(module(X, IDS).output, model(X, IDS))
    with pytest.raises(jg.InputError, match="as with the example"):
        module(X, OTHER)


class Experts(nn.Module):
    """A residual mixture of four experts, each run on the tokens that are sent to it."""

    def __init__(self, hit: Callable[[Tensor], object], drift: float = 0.0, skips: bool = False) -> None:
        super().__init__()
        self.hit, self.drift, self.skips = hit, drift, skips
        self.gate = nn.Linear(4, 4)
        self.experts = nn.ModuleDict({f"expert_{i}": nn.Linear(4, 4) for i in range(4)})

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, 4)
        weights, chosen = self.gate(flat).softmax(-1).max(-1)
        sent, y = F.one_hot(chosen, 4).T, torch.zeros_like(flat)
        for i in self.hit(sent.sum(-1) > 0):  # type: ignore[attr-defined]
            (tokens,) = torch.where(sent[i].reshape(-1))
            if self.skips and tokens.numel() == 0:
                continue
            out = self.experts[f"expert_{int(i)}"](flat[tokens]) * weights[tokens, None]
            y = y.index_add(0, tokens, out) + self.drift
        return x + y.reshape(x.shape)


HIT: list[Callable[[Tensor], object]] = [
    lambda m: m.nonzero(), lambda m: torch.nonzero(m).flatten(), lambda m: m.nonzero().squeeze(-1).tolist()
]  # fmt: skip


@pytest.mark.parametrize("hit", HIT, ids=["rows", "places", "listed"])
def test_a_loop_over_the_experts_that_are_hit_goes_over_all(hit: Callable[[Tensor], object]) -> None:
    """So that other experts may be hit elsewhere, on other inputs and at other centres."""
    torch.manual_seed(1)
    model, x = Experts(hit, skips=hit is HIT[0]).eval(), torch.randn(1, 2, 4)
    graph = jg.trace(model, x)
    assert re.search(r"loops over where a mask holds go over all of its places \(.*test_decisions\.py:\d+", repr(graph))
    assert graph.traced.decisions is None
    for other in (torch.randn(1, 2, 4), torch.randn(2, 9, 4), -3 * x):
        torch.testing.assert_close(graph(other), model(other))
    (branch,) = graph.branches.values()
    h = 4 * torch.randn(1, 2, 4)
    torch.testing.assert_close(graph.run(x).branch(branch, h), model(h) - h)


def test_where_all_are_hit_on_the_example_a_call_is_held_to_that() -> None:
    """Nothing shows then that a place that is not hit gives nothing, as here it does."""
    torch.manual_seed(1)
    model, x = Experts(HIT[0], drift=0.5).eval(), 9 * torch.randn(1, 30, 4)
    graph = jg.trace(model, x)
    torch.testing.assert_close(graph(2 * x), model(2 * x))
    with pytest.raises(jg.InputError, match=r"test_decisions\.py:\d+.* reads True, as with the example"):
        graph(x[:, :2])


def test_a_loop_that_does_something_where_nothing_is_hit_goes_over_the_places_of_the_example() -> None:
    torch.manual_seed(1)
    model, x = Experts(HIT[0], drift=0.5).eval(), torch.randn(1, 2, 4)
    graph = jg.trace(model, x, dynamic=False)
    torch.testing.assert_close(graph(1.001 * x), model(1.001 * x))
    with pytest.raises(jg.InputError, match=r"test_decisions\.py:\d+.* reads \d, as with the example"):
        graph(-3 * x)


def test_what_weights_alone_decide_is_no_condition() -> None:
    model = Net(lambda x, ids: x).eval()
    model.way = lambda x, ids: 2 * x if model.mlp.weight.sum() > 0 else x
    graph = jg.trace(model, X, IDS)
    assert graph.traced.decisions is None
    torch.testing.assert_close(graph(X, OTHER), model(X, OTHER))


def test_it_follows_a_cast() -> None:
    model = Net(_branch).eval()
    graph = jg.trace(model, X, IDS)
    model.double()
    torch.testing.assert_close(graph(X.double(), IDS), model(X.double(), IDS))
    with pytest.raises(jg.InputError, match="as with the example"):
        graph(X.double(), OTHER)


@pytest.mark.parametrize("way", [_branch, _contained, _sliced], ids=lambda way: way.__name__[1:])
def test_the_conditions_are_saved_and_read_again(way: Callable[[Tensor, Tensor], Tensor], tmp_path: Path) -> None:
    graph = jg.trace(Net(way).eval(), X, IDS)
    jg.save(graph, tmp_path / "graph")
    loaded = jg.load(tmp_path / "graph")
    assert isinstance(loaded, jg.ResidualGraph)
    assert torch.equal(loaded(X, IDS), graph(X, IDS))
    assert "chooses by values" in repr(loaded)
    with pytest.raises(jg.InputError, match=r"test_decisions\.py:\d+.* reads .* as with the example"):
        loaded(X, OTHER)
    # What is read is believed in nothing.
    described = traced_to_json(graph.traced, graph.traced.tensors)
    for part, value in (("answers", [0.5]), ("answers", []), ("places", [3]), ("nodes", described["nodes"])):
        damaged = described | {"decisions": described["decisions"] | {part: value}}
        with pytest.raises(jg.FileError, match=r"graph\.json is damaged: decisions"):
            traced_from_json(Stored(damaged, "graph.json"), graph.traced.tensors)


@pytest.mark.parametrize("cast", [lambda m, x: m.to(x.device), lambda m, x: m.float(), lambda m, x: m.to(x)])
def test_a_module_that_is_moved_to_where_it_is(cast: Callable[[nn.Module, Tensor], nn.Module]) -> None:
    class Moving(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mlp = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return x + torch.tanh(cast(self.mlp, x)(x))

    model = Moving().eval()
    graph = jg.trace(model, X)
    assert torch.equal(graph(X), model(X))
    assert nn.Module._apply.__module__ == "torch.nn.modules.module"
