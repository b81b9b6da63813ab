"""The judge of the wall of architectures: it sees what is there in any layout, and it can fail."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.utils import ModelOutput

import jetgraph as jg
from benchmarks.wall.hidden import found_states
from benchmarks.wall.sums import exported_sums


@dataclass
class Output(ModelOutput):
    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None


class Padding(nn.Module):
    """Two joins over a stream that is padded to eight positions."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(2))
        self.beside, self.norm, self.head = nn.Linear(6, 6), nn.LayerNorm(6), nn.Linear(6, 3)

    def forward(self, x: Tensor, output_hidden_states: bool = False) -> Output:
        length = x.shape[1]
        first = F.pad(x, (0, 0, 0, 8 - length))
        inner = self.layers[0](first)
        second = first + inner.tanh()
        third = second + self.layers[1](second).tanh()
        normed = self.norm(third)
        unused = self.beside(second)
        states = {
            "cropped": first[:, :length],
            "permuted": second.transpose(1, 2),
            "normed": normed,
            "unused": unused,
            "inside a branch": inner,
        }
        return Output(self.head(normed), tuple(states.values()) if output_hidden_states else None)


def test_hidden_states_are_known_in_any_layout_and_others_are_not() -> None:
    torch.manual_seed(0)
    model, given = Padding().eval(), {"x": torch.randn(2, 5, 6)}
    graph = jg.trace(model, inputs=given)
    # Of five states the output is made of four, and what lies inside a branch is none.
    assert found_states(graph, model, given) == (3, 4)


def test_what_was_missed_is_no_point() -> None:
    class Missed(Padding):
        """A join that is hidden from jetgraph in what it takes for a branch, as if it had been missed."""

        def forward(self, x: Tensor, output_hidden_states: bool = False) -> Output:
            first = x * 2
            inner = first + self.layers[0](first).tanh()
            states = (first, inner, self.layers[1](inner))
            return Output(first + states[-1].tanh(), states if output_hidden_states else None)

    torch.manual_seed(0)
    model, given = Missed().eval(), {"x": torch.randn(2, 5, 6)}
    graph = jg.trace(model, inputs=given)
    assert found_states(graph, model, given) == (2, 3)


class Summing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.other, self.norm = nn.Linear(6, 6), nn.Linear(6, 6), nn.BatchNorm1d(6)


class Plain(Summing):
    """Sums of two linear layers, of a mask and of a bias; a gate; no stream."""

    def forward(self, x: Tensor) -> Tensor:
        mask = x.mean(-1, keepdim=True)
        y = self.one(x).relu() + self.other(x)
        return self.one(y) * y.sigmoid() + mask + 1.0


class Skip(Summing):
    def forward(self, x: Tensor) -> Tensor:
        return self.one(x.relu()) + 2 * x


class Normalised(Summing):
    def forward(self, x: Tensor) -> Tensor:
        return self.one(self.other(x) + self.norm(x))


class Wide(Summing):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.one(x)], -1)


@pytest.mark.parametrize(("kind", "number"), [(Plain, 0), (Skip, 1), (Normalised, 1), (Wide, 1)])
def test_residual_sums_are_found_without_jetgraph(kind: type[Summing], number: int) -> None:
    assert len(exported_sums(kind().eval(), {"x": torch.randn(4, 6)})) == number
