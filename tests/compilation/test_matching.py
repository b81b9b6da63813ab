"""Matched scale and weights of centres, against series, angles and optima that are worked out without the library."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import jetgraph as jg
from jetgraph.jets.series import Series
from jetgraph.running import matching
from tests import zoo
from tests.conftest import Example

WIDTH = 6


class Net(nn.Module):
    """Two sources, blocks that begin with a norm, and a norm at the end."""

    def __init__(self, blocks: int, kind: str = "rms", eps: float = 1e-6) -> None:
        super().__init__()
        self.kind, self.eps = kind, eps
        self.up = nn.ModuleList(nn.Linear(WIDTH, 5) for _ in range(blocks))
        self.down = nn.ModuleList(nn.Linear(5, WIDTH, bias=False) for _ in range(blocks))
        self.head = nn.Linear(WIDTH, 4, bias=False)

    def norm(self, x: Tensor) -> Tensor:
        if self.kind == "layer":
            return F.layer_norm(x, [WIDTH], eps=self.eps)
        if self.kind == "everything":
            return x / (x.square().mean((0, 1, 2), keepdim=True) + self.eps).sqrt()
        return F.rms_norm(x, [WIDTH], eps=self.eps)

    def branch(self, block: int, x: Tensor) -> Tensor:
        return self.down[block](torch.tanh(self.up[block](self.norm(x))))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h = x + y
        for block in range(len(self.up)):
            h = h + self.branch(block, h)
        return self.head(self.norm(h))


@functools.cache
def made(
    blocks: int, kind: str = "rms", dtype: torch.dtype = torch.float64, **options: Any
) -> tuple[Net, jg.ResidualGraph, Tensor, Tensor]:
    torch.manual_seed(blocks)
    net = Net(blocks, kind, **options).to(dtype).eval()
    x, y = (size * torch.randn(2, 3, WIDTH, dtype=dtype) for size in (1, 2))
    return net, jg.trace(net, x, y, dynamic=False), x, y


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def centred(kind: str, x: Tensor) -> Tensor:
    return x - x.mean(-1, keepdim=True) if kind == "layer" else x


def by_fft(function: Callable[[Any], Any], orders: int, radius: float = 0.3) -> np.ndarray:
    """Taylor coefficients of an analytic function of a complex number, by Cauchy's integral over a circle."""
    roots = np.exp(2j * np.pi * np.arange(64) / 64)
    values = np.stack([function(radius * root) for root in roots])
    coefficients = np.fft.fft(values, axis=0)[: orders + 1].real / 64
    return coefficients / radius ** np.arange(orders + 1).reshape(-1, *[1] * (values.ndim - 1))


# The series


@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_coefficients_are_those_of_the_norm_along_the_line(kind: str) -> None:
    """From s x to h, with s = ⟨h, h⟩ / ⟨x, h⟩ of each token in the norm's own coordinates."""
    net, graph, x, y = made(0, kind)
    y = y - x  # so that some tokens of x point away from the stream
    y[:, 1] -= 2 * x[:, 1]
    values = jg.compile(jg.expand(graph, 4, weights="unit", orders="apart"))(x, y)
    head, seen = net.head.weight.numpy(), 0
    for alias, source in (("embed", x), ("y", y)):
        for place in np.ndindex(2, 3):
            centre, end = (centred(kind, value[place]).numpy() for value in (source, x + y))
            along = float(centre @ end)
            start = centre * (end @ end) / along if along > 0 else centre
            way = end - start if along > 0 else np.zeros(WIDTH)
            expected = by_fft(lambda t, u=start, v=way: (u + t * v) / np.sqrt(((u + t * v) ** 2).mean() + net.eps), 4)
            found = np.stack([values.terms[f"{alias} > logits^{j}"][place].numpy() for j in range(5)])
            np.testing.assert_allclose(found, expected @ head.T, rtol=1e-9, atol=1e-11)
            seen += along <= 0
    assert values.unmatched["logits"] == (seen, 12)
    assert 0 < seen < 12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_matched_centres_are_the_same_whoever_follows_them(dtype: torch.dtype) -> None:
    """Made in one memory, where the series takes them as they are, or each by itself."""
    x, h = torch.randn(1, 3, 4).to(dtype), torch.randn(5, 3, 4).to(dtype)
    scale, near = torch.rand(5, 3, 1), torch.rand(5, 3, 1) > 0.5
    followed = matching._pair(x, scale, h, near)
    with torch.no_grad():
        centre, way = matching._pair(x, scale, h, near)
        series = Series.variate(centre, way, 2)
    assert series.coefficients.data_ptr() == centre.data_ptr()
    assert torch.equal(series.coefficients, torch.stack(followed))
    assert not way[~near.expand_as(way)].any()
    with torch.no_grad():
        assert Series.variate(way, centre, 2).coefficients.data_ptr() != way.data_ptr()


def test_a_norm_over_everything_has_one_length() -> None:
    """All tokens of all rows are scaled alike."""
    net, graph, x, y = made(0, "everything")
    values = jg.compile(jg.expand(graph, 3, weights="unit", orders="apart"))(x, y)
    for alias, centre in (("embed", x.numpy()), ("y", y.numpy())):
        end = (x + y).numpy()
        start = centre * (end * end).sum() / (centre * end).sum()
        way = end - start
        expected = by_fft(lambda t, u=start, v=way: (u + t * v) / np.sqrt(((u + t * v) ** 2).mean() + net.eps), 3)
        found = np.stack([values.terms[f"{alias} > logits^{j}"].numpy() for j in range(4)])
        np.testing.assert_allclose(found, expected.reshape(4, *end.shape) @ net.head.weight.numpy().T, atol=1e-9)
    lens = jg.lens(graph, {"x": x, "y": y}, order="auto", tolerance=0.5)
    assert not any(one.certified for one in lens.chosen)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_what_is_left_shrinks_with_the_angle(order: int) -> None:
    """Like sin^{k+1} of the angle between centre and stream, however long the centre is."""
    _, graph, h, _ = made(0)
    expansion = jg.expand(graph, order, weights="unit")
    left = []
    for angle in (0.2, 0.1):
        across = torch.randn(h.shape, dtype=h.dtype, generator=torch.Generator().manual_seed(1))
        across -= (across * h).sum(-1, keepdim=True) / h.square().sum(-1, keepdim=True) * h
        across *= h.norm(dim=-1, keepdim=True) / across.norm(dim=-1, keepdim=True)
        x = 0.01 * (h + np.tan(angle) * across)
        values = jg.compile(expansion, "embed > logits")(x, h - x)
        left.append(float((values.output - values.total).norm()))
    ratio = np.sin(0.2) / np.sin(0.1)
    assert left[0] / left[1] == pytest.approx(ratio ** (order + 1), rel=0.1)


def test_order_0_does_not_care_for_the_scale(traced: Callable[..., Example]) -> None:
    for name in ("gpt2", "opt_post_norm"):
        example = traced(zoo.case(name))
        one, other = (
            jg.compile(jg.expand(example.graph, 0, scale=scale))(**example.inputs) for scale in ("none", "matched")
        )
        assert all(torch.equal(value, other.terms[path]) for path, value in one.terms.items())
        assert not other.unmatched


def test_a_centre_of_any_length_has_one_jet() -> None:
    """Behind a norm; its length counts where there is none, and with scale="none"."""
    _, graph, x, y = made(1)
    for scale, same in (("matched", True), ("none", False)):
        module = jg.compile(jg.expand(graph, 2, scale=scale), "embed > L0.mlp~2 > logits")
        one, other = (module(a, x + y - a).total for a in (x, 7 * x))
        assert torch.allclose(one, other, rtol=1e-4) is same


# Weights


@pytest.mark.parametrize("order", [0, 1])
def test_optimal_weights_of_two_centres(order: int) -> None:
    """w is where the segment between the two jets is nearest to f(h), which has a closed form."""
    net, graph, x, y = made(1)
    values = jg.compile(jg.expand(graph, order, weights="optimal"))(x, y)
    h = x + y

    def missed(centre: Tensor) -> Tensor:
        """J^k f(s x)(h) − f(h)."""
        along = (centre * h).sum(-1, keepdim=True)
        start = torch.where((along > 0) & (order > 0), h.square().sum(-1, keepdim=True) / along, 1) * centre
        way = order * torch.where(along > 0, h - start, 0)
        value, slope = torch.func.jvp(lambda z: net.branch(0, z), (start,), (way,))
        return value + slope - net.branch(0, h)

    one, other = missed(x), missed(y)
    share = ((other - one) * other).sum(-1) / (one - other).square().sum(-1)
    torch.testing.assert_close(values.weights["L0.mlp"][0, ..., 0], share.clamp(0, 1), atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(values.weights["L0.mlp"].sum(0), torch.ones(2, 3, 1, dtype=torch.float64))


@pytest.mark.parametrize("name", ["gpt2", "bert", "t5", "dense_block", "two_towers"])
def test_optimal_weights_leave_least(name: str, traced: Callable[..., Example]) -> None:
    """At the decoder no step towards another centre brings the sum nearer, and what is left is less than uniformly."""
    example = traced(zoo.case(name))
    best, uniform = (
        jg.compile(jg.expand(example.graph, 1, recipe="components", weights=weights))(**example.inputs)
        for weights in ("optimal", "uniform")
    )
    if example.graph.outline.decoder.affine:
        assert not best.weights
        return
    weights = best.weights["logits"]
    own = example.graph.run(**example.inputs)[example.graph.structure.decoder.nonlinear.exit]
    assert bool((weights >= 0).all())
    torch.testing.assert_close(weights.sum(0), torch.ones_like(weights[0]))
    left, more = (float((own - values.mix(torch.ones(len(values.hidden)))).norm()) for values in (best, uniform))
    assert left < more
    # No step towards a single centre brings the sum nearer.
    jets = jg.compile(jg.expand(example.graph, 1, recipe="components", weights="unit", orders="together"))
    error = best.mix(torch.ones(len(best.hidden))) - own
    for path, value in jets(**example.inputs).hidden.items():
        if path.sink.order is None:
            continue  # the decoder's own constant is no centre
        slope = (error * (value - own - error)).flatten(1).sum(-1)
        sizes = error.flatten(1).norm(dim=-1) * (value - own - error).flatten(1).norm(dim=-1)
        assert bool((slope >= -1e-3 * sizes - 1e-5 * float(own.square().sum())).all()), (path, slope, sizes)


def test_a_tensor_of_weights() -> None:
    """By centre, or by token and centre; relative, in the order of `centres`, and read again from a file's tuples."""
    _, graph, x, y = made(1)
    uniform = jg.expand(graph, 1)
    assert uniform.centres("L0.mlp") == ("embed", "y")
    assert uniform.centres("logits") == ("embed", "y", "embed > L0.mlp~1", "y > L0.mlp~1")
    expected = jg.compile(uniform)(x, y)
    for weights in (torch.full((4,), 3.0), torch.ones(2, 3, 4)):
        expansion = jg.expand(graph, 1, rules={"logits": jg.Jet(1, weights=weights)})
        values = jg.compile(expansion)(x, y)
        assert values.weights["logits"].shape[0] == 4
        for path, value in expected.terms.items():
            torch.testing.assert_close(values.terms[path], value)
    some = jg.compile(jg.expand(graph, 1, rules={"logits": jg.Jet(1, weights=torch.tensor([0.0, 1, 0, 0]))}))(x, y)
    for path, value in some.terms.items():
        alone = str(path).startswith("y > logits")
        torch.testing.assert_close(value, 4 * expected.terms[path] if alone else torch.zeros_like(value))


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        (torch.ones(3), "ends in 3 centres, not in 4, which is how many terms arrive there"),
        (torch.tensor([1.0, 2.0, 3.0, -1.0]), "finite and not negative"),
        (torch.zeros(2, 3, 4), "zero for every centre"),
        (torch.ones(4, dtype=torch.complex64), "finite and not negative"),
        (torch.tensor(1.0), "one number: give a tensor"),
        ("best", "choose 'uniform', 'unit', 'optimal'"),
    ],
)
def test_weights_that_are_none(weights: Any, says: str) -> None:
    _, graph, _, _ = made(1)
    with pytest.raises(jg.InputError, match=says):
        jg.expand(graph, 1, rules={"logits": jg.Jet(1, weights=weights)})


def test_weights_of_other_tokens_are_refused() -> None:
    _, graph, x, y = made(1)
    module = jg.compile(jg.expand(graph, 1, rules={"logits": jg.Jet(1, weights=torch.ones(2, 4, 4))}))
    with pytest.raises(jg.InputError, match=r"the tokens there are \[2, 3\]: give \[2, 3, 4\]"):
        module(x, y)


def test_weights_that_are_found_are_no_fractions() -> None:
    _, graph, _, _ = made(1)
    expansion = jg.expand(graph, 1, weights="optimal")
    with pytest.raises(jg.InputError, match=r"found for each token: PathValues\.weights"):
        expansion.weights("embed > L0.mlp~1 > logits^0")
    assert jg.path_graph(expansion).number_of_nodes()


def test_a_term_of_many_sites_does_not_shrink_to_nothing() -> None:
    """What one of a million centres weighs is far below √ε; the norm after it sees the term as it is."""
    _, graph, x, y = made(16, dtype=torch.float32, eps=1e-5)
    text = "embed > L3.mlp^0 > L14.mlp^0 > logits^0"
    exhaustive = jg.expand(graph, 0)
    found = jg.compile(exhaustive, text)(x, y).terms[text]
    alone = jg.compile(jg.expand(graph, recipe="path"), text)(x, y).terms[text]
    weight = float(exhaustive.weight(text, -1))
    assert weight == 2**-17
    torch.testing.assert_close(found / weight, alone, rtol=1e-6, atol=1e-7)
    first = jg.compile(jg.expand(graph, 1), "embed > L3.mlp~1 > L14.mlp~1 > logits^1")(x, y)
    assert float(first.total.norm()) > 1e-3 * weight * float(alone.norm())


# The ledger


@pytest.mark.parametrize("weights", ["uniform", "optimal"])
def test_remainders_by_site(weights: str) -> None:
    """f(h) less the jets of the terms that arrive, of which the ones by hand are few enough to be added up."""
    net, graph, x, y = made(2)
    values = jg.compile(jg.expand(graph, 0, weights=weights))(x, y)
    terms, h, left = [x, y], x + y, {}
    for block in range(2):
        alike = torch.full((len(terms), 1, 1, 1), 1 / len(terms)).double()
        shares = values.weights.get(f"L{block}.mlp", alike)
        # What a norm reads has no weights.
        jets = [net.branch(block, term) for term in terms]
        added = net.branch(block, h)
        left[f"L{block}.mlp"] = added - sum(share * jet for share, jet in zip(shares, jets, strict=True))
        terms, h = [*terms, *jets], h + added
    ledger = values.remainders
    assert list(ledger) == ["L0.mlp", "L1.mlp", "logits"]
    for alias, expected in left.items():
        torch.testing.assert_close(ledger[alias].value, expected)
        assert ledger[alias].logits is None
        assert ledger[alias].relative == pytest.approx(float(expected.norm()) / ledger[alias].size)
    torch.testing.assert_close(ledger["logits"].logits, values.remainder)
    assert "what sites leave" in repr(values)
    first, last = sorted(ledger, key=lambda alias: -ledger[alias].relative)[::2]
    assert repr(ledger).index(first) < repr(ledger).index(last)


def test_remainders_in_logits() -> None:
    """Where all that follows is held, δ of one site is all that the terms leave of the output."""
    _, graph, x, y = made(3)
    rules = {"L1.mlp": jg.Freeze(), "L2.mlp": jg.Tangent(), "logits": jg.Freeze()}
    values = jg.compile(jg.expand(graph, 1, rules=rules))(x, y)
    logits = values.remainders["L0.mlp"].logits
    assert logits is not None
    torch.testing.assert_close(logits, values.remainder)
    assert float(values.remainder.norm()) > 1e-3
    held = jg.compile(jg.expand(graph, rules={"*": jg.Freeze()}))(x, y).remainders
    assert max(one.relative for one in held.values()) < 1e-12


@pytest.mark.parametrize("name", ["gpt2", "gptj", "bert", "convnext", "unet", "t5"])
def test_the_last_remainder_is_that_of_the_output(name: str, traced: Callable[..., Example]) -> None:
    example = traced(zoo.case(name))
    values = jg.compile(jg.expand(example.graph, 1, recipe="components"))(**example.inputs)
    logits = values.remainders["logits"].logits
    assert logits is not None
    torch.testing.assert_close(logits, values.remainder, rtol=1e-3, atol=1e-4 * float(values.output.abs().max()))


def test_no_ledger_where_nothing_adds_up() -> None:
    _, graph, x, y = made(1)
    for recipe in ("path", "lens"):
        values = jg.compile(jg.expand(graph, recipe=recipe))(x, y)
        assert not values.remainders
        assert "what sites leave" not in repr(values)
    some = jg.compile(jg.expand(graph, 1), "embed > L0.mlp > logits")(x, y)
    assert "what sites leave" not in repr(some)
    with pytest.raises(jg.SelectionError, match=r"no compiled path passes 'L7\.mlp'"):
        some.remainders["L7.mlp"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_matches_what_float64_does(dtype: torch.dtype) -> None:
    """A centre of a tenth of the stream's length is none of rounding."""
    net, graph, x, y = made(3)
    wide = jg.compile(jg.expand(graph, 1, recipe="components"))(x, y)
    x, y = x.to(dtype), y.to(dtype)
    found = jg.compile(jg.expand(jg.trace(copy.deepcopy(net).to(dtype), x, y, dynamic=False), 1, recipe="components"))(
        x, y
    )
    (few, number), (wanted, same) = found.unmatched["logits"], wide.unmatched["logits"]
    assert number == same
    assert abs(few - wanted) <= 2 < number - wanted
