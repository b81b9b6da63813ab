"""Transports against Jacobians of the model's own tail, jets against derivatives along a ray, and what is followed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import jetgraph as jg
from jetgraph.applications.lenses.transport import _jacobians
from tests.compilation.test_flows import Net
from tests.conftest import Example
from tests.zoo import case


@pytest.fixture(scope="module")
def given() -> tuple[Net, Tensor, jg.ResidualGraph]:
    torch.manual_seed(0)
    net = Net().double().eval().requires_grad_(False)
    x = torch.randn(4, 5, 6, dtype=torch.float64)
    return net, x, jg.trace(net, x)


def tail(net: Net) -> Callable[[Tensor], Tensor]:
    """From the stream after the first block (h2) to its end."""
    return net.blocks[1]  # type: ignore[return-value]


def test_the_mean_jacobian(given: Any, tmp_path: Path) -> None:
    """Of each window one position, by itself; shards merge to the whole, in files too."""
    net, x, graph = given
    fitted = jg.fit_transport(graph, x, layers=[2, 4], seed=3)
    drawn = torch.Generator().manual_seed(3)
    places = (torch.rand(4, generator=drawn) * 5).int().tolist()
    jacobians = []
    for row, place in zip(net.blocks[0](x), places, strict=True):
        whole: Any = torch.autograd.functional.jacobian(tail(net), row[None])
        jacobians.append(whole[0, place, :, 0, place])
    torch.testing.assert_close(fitted.map(2), torch.stack(jacobians).mean(0))
    torch.testing.assert_close(fitted.map(4), torch.eye(6, dtype=torch.float64))
    parts = [jg.fit_transport(graph, x, layers=[2, 4], seed=3, shard=(at, 3), batch=1) for at in range(3)]
    merged = parts[0].merge(parts[1]).merge(jg.Transport.load(parts[2].save(tmp_path / "part.safetensors")))
    assert (merged.count, merged.points) == (4, (2, 4))
    torch.testing.assert_close(merged.map(2), fitted.map(2))
    found = jg.transport_lens(graph, x, merged)
    # It reads nothing of the prompt but the point, and is what other lenses are told to go to.
    assert "reads the end" not in found.note
    assert "transport_lens takes" not in found.note
    torch.testing.assert_close(found.logits[0, 0], net.head(net.blocks[0](x) @ fitted.map(2).T))
    torch.testing.assert_close(found.logits[1, 0], found.output)
    assert "mean Jacobian" in repr(found)


def test_the_mean_jacobian_by_random_signs(given: Any) -> None:
    """Over all patterns of signs it is the mean over all positions exactly."""
    net, x, graph = given
    h = net.blocks[0](x)
    whole: Any = torch.autograd.functional.jacobian(tail(net), h)
    exact = torch.stack([whole[row, place, :, row, place] for row in range(4) for place in range(5)]).mean(0)
    patterns = torch.cartesian_prod(*[torch.tensor([0.25, 0.75])] * 5)
    found = [
        _jacobians(graph, dict(zip(graph.traced.input_shapes, [x], strict=True)), [2], pattern.expand(4, 5))
        for pattern in patterns
    ]
    assert {count for _, count in found} == {20}
    torch.testing.assert_close(torch.stack([sums[2] for sums, _ in found]).mean(0) / 20, exact)
    shards = [jg.fit_transport(graph, x, layers=[2], positions="all", shard=(at, 2)) for at in range(2)]
    fitted = jg.fit_transport(graph, x, layers=[2], positions="all")
    assert fitted.count == 20
    torch.testing.assert_close(shards[0].merge(shards[1]).map(2), fitted.map(2))


@pytest.mark.parametrize("order", [1, 3])
def test_jets_of_the_tail(order: int, given: Any) -> None:
    """Derivatives of t ↦ G((1 − t) h) at 0, by nested forward mode on the model itself."""
    net, x, graph = given
    h, function = net.blocks[0](x), tail(net)

    def ray(t: Tensor) -> Tensor:
        return function((1 - t) * h)

    derivatives, at = [ray], torch.zeros((), dtype=torch.float64)
    for _ in range(order):
        derivatives.append(lambda t, f=derivatives[-1]: torch.func.jvp(f, (t,), (torch.ones_like(t),))[1])
    factorial = np.cumprod([1, *range(1, order + 1)])
    lost = -sum(f(at) / float(by) for f, by in zip(derivatives[1:], factorial[1:], strict=True))
    found = jg.transport_lens(graph, x, tail="jet", order=order, layers=[2])
    torch.testing.assert_close(found.logits[0, 0], net.head(lost))


class Levels(torch.nn.Module):
    """Blocks whose value is added again further on, by a long skip, or past those of another number of places."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.enter, self.head = torch.nn.Linear(3, 6), torch.nn.Linear(6, 5)
        self.blocks = torch.nn.ModuleList(torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.Tanh()) for _ in range(3))
        self.down, self.up = torch.nn.Linear(6 * steps, 6), torch.nn.Linear(6, 6 * steps)

    def forward(self, x: Tensor) -> Tensor:
        first, second, third = self.blocks
        h = self.enter(x)
        h = before = h + first(h)
        h = self.down(h.reshape(len(x), x.shape[1] // self.steps, -1))
        h = h + second(h)
        h = h + self.up(before) if self.steps == 1 else before + self.up(h).reshape(len(x), x.shape[1], -1)
        return self.head(h + third(h))


@pytest.mark.parametrize("steps", [1, 2])
def test_the_tail_reads_points_again(steps: int) -> None:
    """What a stage reads of a point before the one that it starts from is made of the tail's own entry too."""
    torch.manual_seed(0)
    net, x = Levels(steps).double().eval().requires_grad_(False), torch.randn(2, 4, 3, dtype=torch.float64)
    graph = jg.trace(net, x)
    points = graph.stream.points
    forward = graph.run(x)
    for point, node in enumerate(points[:-1]):

        def follow(h: Tensor, node: Any = node) -> Tensor:
            other = graph.run(x)
            other.values.put(node, h)
            return other[points[-1]]

        h = forward[node]
        _, slope = torch.func.jvp(follow, (h,), (h,))
        found = jg.transport_lens(graph, x, tail="jet", layers=[point])
        assert "reads the end" in found.note
        torch.testing.assert_close(found.logits[0, 0], net.head(slope))
    assert len(points) >= 4


def test_the_frozen_tail(given: Any) -> None:
    """It is the end itself but for the constants that the tail adds, whose sum is all that h = 0 would leave."""
    net, x, graph = given
    found = jg.transport_lens(graph, x, tail="frozen", layers=[2, 4])
    with torch.no_grad():
        values = jg.compile(jg.expand(graph, rules={"*": jg.Freeze()}), "** > logits")(x)
    constants = sum(
        term for path, term in values.terms.items() if path.source.alias in _of_second(graph) and len(path.hops) > 1
    )
    logits = found.logits[0, 0] - net.head.bias
    torch.testing.assert_close(logits, found.output - net.head.bias - constants)
    torch.testing.assert_close(found.logits[1, 0], found.output)


def _of_second(graph: jg.ResidualGraph) -> list[str]:
    entries = jg.expand(graph, rules={"*": jg.Freeze()}).entries
    return [e.source.alias for e in entries if e.site is not None and e.site.alias.startswith("L1")]


def test_a_token_along_the_stream(given: Any) -> None:
    _, x, graph = given
    found = jg.lens(graph, x, order=[0], target=2)
    logits = found.logits[:, 0].double()
    table = found.to_dataframe()
    torch.testing.assert_close(
        torch.tensor(table["target_probability"].to_list()).double(), logits.softmax(-1)[..., 2].flatten()
    )
    ranks = 5 - logits.argsort(-1).argsort(-1)[..., 2]
    assert table["target_rank"].to_list() == ranks.flatten().tolist()
    expected = (logits - logits.mean(-1, keepdim=True))[..., 2].flatten()
    assert table["target_logit"].to_list() == pytest.approx(expected.tolist())
    axes = found.figure().axes
    assert [one.get_ylabel() for one in axes] == ["rank", "probability", "centred logit"]
    last: Any = axes[1].lines[0].get_ydata()
    assert list(last) == pytest.approx(logits[:, 0, -1].softmax(-1)[:, 2].tolist())
    with pytest.raises(jg.InputError, match="out of range"):
        jg.lens(graph, x, target=5)


def test_lenses_side_by_side(given: Any) -> None:
    """Means over all tokens are those of the lenses themselves."""
    _, x, graph = given
    fitted = jg.fit_transport(graph, x)
    found = jg.compare_lenses(graph, x, fitted, order=2, batch=3, resamples=50)
    assert found.kinds == ("logit", "jet 2 plain", "jet 2 matched", "transport")
    for at, one in enumerate(
        (jg.lens(graph, x), jg.lens(graph, x, order=[2], scale="none"), jg.lens(graph, x, order=[2]),
         jg.transport_lens(graph, x, fitted))
    ):  # fmt: skip
        assert found.mean["kl"][at] == pytest.approx(one.comparison.kl[:, 0].mean((-1, -2)).numpy(), abs=1e-9)
    assert bool((found.low["remainder"] <= found.mean["remainder"] + 1e-12).all())
    assert found.figure().axes[0].get_ylabel() == "KL(model ‖ lens), nats"
    assert len(found) == 5 * 4 * 5


def test_what_does_not_fit_is_refused(given: Any, tmp_path: Path, traced: Callable[..., Example]) -> None:
    _, x, graph = given
    fitted = jg.fit_transport(graph, x, layers=[2])
    (tmp_path / "no.safetensors").write_bytes(b"nothing")
    for call, message in (
        (lambda: jg.transport_lens(graph, x), "goes with"),
        (lambda: jg.transport_lens(graph, x, fitted, tail="jet"), "goes with"),
        (lambda: jg.transport_lens(graph, x, fitted, layers=[1]), "fitted at points"),
        (lambda: jg.transport_lens(graph, x, tail="frozen", order=2), "of tail="),
        (lambda: jg.fit_transport(graph, x, shard=(3, 3)), "shard"),
        (lambda: jg.Transport.load(tmp_path / "no.safetensors"), "no transport"),
        (lambda: fitted.merge(jg.fit_transport(graph, x, layers=[1])), "shards that merge"),
        (lambda: jg.fit_transport(traced(case("basic_resnet")).graph, torch.randn(2, 3, 12, 12)), "positions"),
    ):
        with pytest.raises(jg.JetGraphError, match=message):
            call()
