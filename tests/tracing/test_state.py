"""What a model held before it ran is what it holds afterwards."""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from jetgraph.tracing.state import Held, kept


class Store:
    """A plain object with state."""

    def __init__(self) -> None:
        self.rows: list[Tensor] = []


class Moves(nn.Module):
    """Changes everything that a forward pass can change, at some depth."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("later", None, persistent=False)
        self.plain = torch.ones(3)
        self.flag, self.count = False, 0
        self.log: list[Any] = ["a"]
        self.nested = {"a": {"b": [torch.zeros(2)]}}
        self.recent: deque[int] = deque([1], maxlen=2)
        self.seen = {3}
        self.store = Store()

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.later = torch.ones(2)
        self.plain.mul_(3)
        self.flag, self.count = True, self.count + 1
        self.log.append(x)
        self.nested["a"]["b"][0].add_(1)
        self.nested["c"] = {}
        self.recent.extend([5, 6])
        self.seen.add(4)
        self.store.rows.append(x)
        self.store.size = 3  # type: ignore[attr-defined]
        self.inner.extra = nn.Linear(2, 2)
        self.register_buffer("table", torch.rand(2))
        self.inner.bias = None  # type: ignore[assignment]
        self.fresh = x
        return x


def described(model: Moves) -> dict[str, Any]:
    return {
        "attributes": {name: sorted(module.__dict__) for name, module in model.named_modules()},
        "tensors": {name: (id(value), value.tolist()) for name, value in model.state_dict(keep_vars=True).items()},
        "buffers": dict(model._buffers),
        "values": (model.plain.tolist(), model.flag, model.count, list(model.log), repr(model.nested)),
        "containers": (list(model.recent), set(model.seen), vars(model.store).keys(), list(model.store.rows)),
    }


@pytest.mark.parametrize("fails", [False, True])
def test_everything_is_put_back(fails: bool) -> None:
    model = Moves()
    before = described(model)
    containers = id(model.log), id(model.nested), id(model.store)

    def work() -> None:
        with kept(model) as held:
            assert not held.changed
            model(torch.ones(2))
            assert held.changed
            if fails:
                raise KeyError

    if fails:
        with pytest.raises(KeyError):
            work()
    else:
        work()
    assert described(model) == before
    assert (id(model.log), id(model.nested), id(model.store)) == containers


def test_values_go_back_without_what_holds_them() -> None:
    """A table that was made stays, and a counter does not."""
    model = Moves()
    with kept(model) as held:
        model(torch.ones(2))
        held.put_values_back()
        assert model.calls == 0
        assert model.plain.tolist() == [1, 1, 1]
        assert model.table is not None
        warm = Held(model)
        held.put_back()
        assert not hasattr(model, "table")
        warm.put_back()
        assert model.flag
    assert not model.flag


class Laid(nn.Parameter):
    """A weight that is laid out anew at the first run, and says how."""

    order: dict[str, Any]


class LaysOut(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.plain = Laid(torch.eye(3)[:2]), nn.Parameter(torch.ones(2))
        self.weight.order = {"rows": Store(), "turned": False}

    def forward(self, x: Tensor) -> Tensor:
        if not self.weight.order["turned"]:
            self.weight.data = self.weight.data.T.contiguous()
            self.plain.data = self.plain.data.double()
            self.weight.order["turned"] = True
            self.weight.order["rows"].rows.append(x)
            self.weight.first = x  # type: ignore[attr-defined]
        return x @ self.weight


def test_weights_that_are_laid_out_anew_are_put_back() -> None:
    """Their memory and their attributes go together: half of it would be another weight."""
    model = LaysOut()
    expected = model(torch.ones(3)).clone()
    model = LaysOut()
    with kept(model) as held:
        model(torch.ones(3))
        assert held.changed
    assert not held.changed
    assert torch.equal(model.weight, torch.eye(3)[:2])
    assert model.plain.dtype == torch.float32
    assert not model.weight.order["turned"]
    assert not model.weight.order["rows"].rows
    assert not hasattr(model.weight, "first")
    assert torch.equal(model(torch.ones(3)), expected)


def test_a_model_that_holds_itself() -> None:
    model = nn.Linear(2, 2)
    model.loop = [model]  # type: ignore[assignment]
    with kept(model):
        model.loop.append(1)  # type: ignore[operator]
    assert model.loop == [model]
