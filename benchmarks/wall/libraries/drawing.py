"""What nets of other libraries are drawn with: weights, kept statistics, and inputs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def drawn(make: Callable[[], nn.Module], seed: int = 0) -> Callable[[], nn.Module]:
    """A net with random weights in evaluation mode, where statistics that norms keep are none of a fresh net, and
    factors of layers that start at zero or near it (layer scales) are of the size of a trained net's."""

    def build() -> nn.Module:
        torch.manual_seed(seed)
        model = make().eval()
        with torch.no_grad():
            for name, value in (*model.named_parameters(), *model.named_buffers()):
                if _draw_statistic(name, value):
                    continue
                if value.is_floating_point() and value.numel() and value.abs().max() < 1e-3:
                    value.normal_(0, 0.2)
        return model

    return build


def measured(model: nn.Module) -> nn.Module:
    """A net whose norms have seen something: statistics that they keep are drawn, in place."""
    for name, value in model.named_buffers():
        _draw_statistic(name, value)
    return model


def _draw_statistic(name: str, value: Tensor) -> bool:
    """Draw a statistic that a norm keeps, in place; whether this is one."""
    if name.endswith("running_mean"):
        value.normal_(0, 0.3)
    elif name.endswith("running_var"):
        value.uniform_(0.5, 1.5)
    return name.endswith(("running_mean", "running_var"))


def pictures(*shape: int, batch: int = 2, seed: int = 0) -> Callable[[], tuple[Tensor, ...]]:
    """A batch of pictures, volumes or films."""
    return lambda: (torch.randn(batch, *shape, generator=torch.Generator().manual_seed(seed)),)
