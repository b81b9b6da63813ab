"""Types: terms take those of the points that they pass, whatever the branches compute in, and neither an autocast nor a
default device around a call changes a number.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import jetgraph as jg
from jetgraph.export.precision import callers_device, own_types

IDS = torch.arange(10).view(2, 5) % 7
CENTRE, TOWARDS = torch.ones(1, 4), torch.eye(4)[:1]


class Block(nn.Module):
    """x + mlp(norm(x)), the branch in a type of its own."""

    dtype = torch.float32

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mlp = nn.LayerNorm(4), nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 4))
        self.to(self.dtype)

    def branch(self, x: Tensor) -> Tensor:
        return self.mlp(self.norm(x.to(self.dtype)))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


class NarrowBranch(Block):
    dtype = torch.bfloat16


class CastAfter(Block):
    """The sum is wide, and what follows is narrow again."""

    def forward(self, x: Tensor) -> Tensor:
        return (x.float() + self.branch(x)).bfloat16()


class Autocast(Block):
    def branch(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.mlp(self.norm(x))


class Squashed(Block):
    """A map on the stream itself, after which its type is another one."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x + self.branch(x)).bfloat16()


class Model(nn.Module):
    def __init__(self, block: type[Block], stream: torch.dtype) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.embed, self.blocks = nn.Embedding(7, 4), nn.ModuleList([block(), block()])
            self.norm, self.head = nn.LayerNorm(4), nn.Linear(4, 7, bias=False)
        self.embed.to(stream)
        self.requires_grad_(False).eval()

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        return self.decode(x)

    def decode(self, x: Tensor) -> Tensor:
        return self.head(self.norm(x.float()))


MIXED = {
    "narrow branches": (NarrowBranch, torch.float32),
    "wide branches on a narrow stream": (Block, torch.bfloat16),
    "half": (Block, torch.float16),
    "a cast after each join": (CastAfter, torch.bfloat16),
    "a narrow map on the stream": (Squashed, torch.float32),
    "autocast inside": (Autocast, torch.float32),
}


@pytest.mark.parametrize("name", MIXED)
def test_mixed_types(name: str) -> None:
    model = Model(*MIXED[name])
    graph = jg.trace(model, IDS)
    assert graph.check is not None
    assert graph.check.exact
    if name != "a narrow map on the stream":
        _chain_of_sites(model, graph)
    found = jg.compile(jg.expand(graph, recipe="components", order=1))(IDS)
    assert torch.equal(found.output, model(IDS))
    # The decoder's affine part and the points before it are float32: what is left is its curvature.
    lens = jg.compile(jg.expand(graph, 1, recipe="lens"))(IDS)
    assert all(term.dtype == torch.float32 and term.isfinite().all() for term in lens.terms.values())
    for application in (
        lambda: jg.ablate(graph, "L1.mlp > logits", IDS),
        lambda: jg.patch(graph, IDS, IDS.flip(1), receivers="logits"),
        lambda: jg.joint_lens(graph, IDS),
    ):
        assert len(application().to_dataframe())


def _chain_of_sites(model: Model, graph: jg.ResidualGraph) -> None:
    """A path of order 0 is the sites' own code, one after the other, each on the type of its point; away from the
    stream.
    """
    expansion = jg.expand(graph, recipe="path")
    path = "embed > L0.mlp^0 > L1.mlp^0 > logits^0"
    point = model.embed(IDS)
    for block in model.blocks:
        wide = torch.promote_types(point.dtype, block.branch(point).dtype)
        value = block.branch(point).to(wide)
        point = value.bfloat16() if isinstance(block, CastAfter) else value
    term = jg.compile(expansion, [path])(IDS).terms[path]
    expected = model.decode(point)
    assert torch.allclose(term, expected, rtol=1e-4, atol=1e-5)
    assert (term - model(IDS)).abs().max() > 1e-2


AROUND: dict[str, Callable[[jg.ResidualGraph, Model], Any]] = {
    "graph": lambda graph, model: graph(IDS).tolist(),
    "run": lambda graph, model: graph.run(IDS).component("L1.mlp").tolist(),
    "compiled": lambda graph, model: jg.compile(jg.expand(graph, order=1))(IDS).remainder.tolist(),
    "frozen parts": lambda graph, model: [
        term.tolist()
        for term in jg.compile(
            jg.expand(graph, recipe="components", rules={"*": jg.Freeze()}, split={"*.mlp": [[0, 1], [2, 3, 4, 5]]})
        )(IDS).terms.values()
    ],
    "lens": lambda graph, model: jg.lens(graph, IDS, order=1).to_dataframe().to_csv(),
    "joint lens": lambda graph, model: jg.joint_lens(graph, IDS).to_dataframe().to_csv(),
    "ablate": lambda graph, model: jg.ablate(graph, "L1.mlp > logits", IDS).to_dataframe().to_csv(),
    "patch": lambda graph, model: jg.patch(graph, IDS, IDS.flip(1), receivers="logits").to_dataframe().to_csv(),
    "attribute": lambda graph, model: jg.attribute(graph, IDS[:1]).prune(nodes=0.5).to_dataframe().to_csv(),
    "ngrams": lambda graph, model: jg.ngrams(graph, "embed > L0.mlp > logits", top=2).to_dataframe().to_csv(),
    "trace": lambda graph, model: str(jg.trace(model, IDS).check),
    "jet": lambda graph, model: jg.jet(model.blocks[0], CENTRE, TOWARDS, 2).tolist(),
}


@pytest.fixture(scope="module")
def plain() -> tuple[jg.ResidualGraph, Model]:
    model = Model(Block, torch.float32)
    return jg.trace(model, IDS), model


@pytest.mark.parametrize("name", AROUND)
def test_what_is_around_a_call_changes_nothing(name: str, plain: tuple[jg.ResidualGraph, Model]) -> None:
    expected = AROUND[name](*plain)
    with torch.device("meta"):
        assert AROUND[name](*plain) == expected
        assert torch.get_default_device() == torch.device("meta")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert AROUND[name](*plain) == expected
        assert torch.is_autocast_enabled("cpu")


class Placed(Block):
    """Code that makes a tensor without saying where."""

    def branch(self, x: Tensor) -> Tensor:
        return self.mlp(x + torch.arange(4))


def test_code_of_a_model_makes_tensors_where_its_caller_has_them_made() -> None:
    with torch.device("meta"):
        assert jg.trace(nn.Sequential(Placed(), Placed()).eval(), torch.ones(2, 4)).traced.meta
        with own_types():
            assert torch.ones(1).device.type == "cpu"
            with callers_device():
                assert torch.ones(1).is_meta


def test_own_types_is_undone_after_an_error() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with pytest.raises(jg.DomainError), own_types():
            _refuse()
        assert torch.is_autocast_enabled("cpu")


def _refuse() -> None:
    assert not torch.is_autocast_enabled("cpu")
    raise jg.DomainError("as an evaluation may")
