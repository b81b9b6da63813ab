"""The structure as a tree: which blocks are folded into one."""

import re

import torch
from torch import Tensor, nn

import jetgraph as jg


class Block(nn.Module):
    """A residual block around some mixer."""

    def __init__(self, mixer: nn.Module) -> None:
        super().__init__()
        self.mixer = mixer

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mixer(x)


class Net(nn.Module):
    """Blocks one after the other."""

    def __init__(self, *mixers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block(mixer) for mixer in mixers)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 6))


def conv() -> nn.Module:
    return nn.Sequential(nn.Conv1d(5, 5, 1), nn.GELU())


def folded(*mixers: nn.Module) -> list[str]:
    graph = jg.trace(Net(*mixers).eval(), torch.randn(2, 5, 6), dynamic=False)
    assert len(graph.joins) == len(mixers)
    return re.findall(r"\d+ blocks like this one", str(graph))


def test_blocks_of_one_kind_are_folded() -> None:
    assert folded(mlp(), mlp(), mlp(), mlp()) == ["3 blocks like this one"]


def test_blocks_of_other_kinds_are_not() -> None:
    assert folded(mlp(), conv(), mlp(), conv()) == []
    assert folded(conv(), mlp(), mlp(), mlp()) == ["2 blocks like this one"]


class Ends(nn.Module):
    """A residual layer whose output is the stream behind a norm, as an encoder's is, or behind an unembedding."""

    def __init__(self, *, unembed: bool) -> None:
        super().__init__()
        self.block, self.norm = Block(mlp()), nn.LayerNorm(6)
        self.head = nn.Linear(6, 9) if unembed else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.block(x)))


def decoder_of(net: nn.Module) -> str:
    return " ".join(str(jg.trace(net.eval(), torch.randn(2, 5, 6))).splitlines()[-1].split())


def test_a_decoder_stands_after_other_modules_alone() -> None:
    assert decoder_of(Ends(unembed=True)) == "└─ logits head after norm"
    assert decoder_of(Ends(unembed=False)) == "└─ logits norm nonlinear"
