"""Small modules for traces, and what to look at in these."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import torch
from torch import Tensor, fx, nn

from jetgraph.jets.interpreter import evaluate
from jetgraph.tracing.traced import Traced


def replayed(traced: Traced, *args: Any, **kwargs: Any) -> Tensor:
    """The traced program run as it stands."""
    values: dict[fx.Node, Any] = {**traced.state_values(), **traced.input_values(args, kwargs)}
    with torch.no_grad():
        return evaluate(traced.graph.nodes, values)[traced.output]


class Residual(nn.Module):
    """x + tanh(W x), with a buffer, a shared parameter and switches for what a test needs."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.linear = nn.Linear(width, width)
            self.dropout = nn.Dropout(0.5)
            self.register_buffer("shift", torch.randn(width))

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return x + self.dropout(torch.tanh(self.linear(x) + self.shift)) * scale


FACTOR = 2.0
SETTINGS = Namespace(factor=2.0)


class Settings:
    """What code reads in another file."""

    listed = (2.0, {"first": 1.0})


def settled(x: Tensor) -> Tensor:
    """It reads what is its file's."""
    return x * SETTINGS.factor * Settings.listed[1]["first"]


class Returns(nn.Module):
    """Returns whatever `make` makes of a linear layer's result."""

    def __init__(self, make: Any) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.make = make

    def forward(self, x: Tensor) -> Any:
        return self.make(self.linear(x))


X = torch.linspace(-1, 1, 12).reshape(3, 4)
