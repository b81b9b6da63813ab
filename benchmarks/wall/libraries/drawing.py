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
                if name.endswith("running_mean"):
                    value.normal_(0, 0.3)
                elif name.endswith("running_var"):
                    value.uniform_(0.5, 1.5)
                elif value.is_floating_point() and value.numel() and value.abs().max() < 1e-3:
                    value.normal_(0, 0.2)
        return model

    return build


def pictures(*shape: int, batch: int = 2, seed: int = 0) -> Callable[[], tuple[Tensor, ...]]:
    """A batch of pictures, volumes or films."""
    return lambda: (torch.randn(batch, *shape, generator=torch.Generator().manual_seed(seed)),)
