from __future__ import annotations

import contextlib
import copy
import gc
import math
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import mpmath as mp
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

import jetgraph as jg
from jetgraph.errors import DomainError, InputError, MissingRuleError, TraceError
from jetgraph.jets import function, registry
from tests.jets import definitions, oracle


def test_jet_of_the_exponential() -> None:
    x, v = torch.randn(3, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    expected = torch.stack([x.exp() * v**j / math.factorial(j) for j in range(6)])
    torch.testing.assert_close(jg.jet(torch.exp, x, v, 5), expected)


def _block() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 6)).double()


@pytest.mark.parametrize("graded", [False, True])
def test_weights_and_centres_made_in_inference_mode(graded: bool) -> None:
    plain, x, v = _block(), torch.randn(2, 6, dtype=torch.float64), torch.randn(2, 6, dtype=torch.float64)
    with torch.inference_mode():
        model, made = _block(), x.clone()
    for centre in (x.requires_grad_(graded), made):
        found, expected = (jg.jet(module, centre, v, 2) for module in (model, plain))
        torch.testing.assert_close(found, expected)
    if graded:
        found, expected = (torch.autograd.grad(jg.jet(module, x, v, 2).sum(), x) for module in (model, plain))
        torch.testing.assert_close(found, expected)


def test_jet_of_a_module_predicts_it_nearby() -> None:
    """The remainder of order k shrinks as t^(k+1)."""
    model = _block()
    x, v = torch.randn(2, 6, dtype=torch.float64), torch.randn(2, 6, dtype=torch.float64)
    for order in range(5):
        coefficients = jg.jet(model, x, v, order)
        assert coefficients.shape == (order + 1, 2, 6)

        def remainder(t: float, c: Tensor = coefficients) -> float:
            predicted = sum(row * t**j for j, row in enumerate(c))
            return float((model(x + t * v) - predicted).detach().abs().max())

        ratio = remainder(0.02) / remainder(0.01)
        assert 2 ** (order + 0.5) < ratio < 2 ** (order + 1.5)


def test_coefficients_are_differentiable_in_the_weights() -> None:
    """Σ_j c_j t^j has the gradient of f(x + t v), to the order of the jet."""
    model = _block()
    x, v, t = torch.randn(2, 6, dtype=torch.float64), torch.randn(2, 6, dtype=torch.float64), 1e-2
    predicted = sum(row.sum() * t**j for j, row in enumerate(jg.jet(model, x, v, 6)))
    assert isinstance(predicted, Tensor)
    found = torch.autograd.grad(predicted, list(model.parameters()))
    expected = torch.autograd.grad(model(x + t * v).sum(), list(model.parameters()))
    for left, right in zip(found, expected, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-7, atol=1e-9)


def test_gradients_reach_x_v_and_what_a_closure_holds() -> None:
    weight = torch.randn(3, dtype=torch.float64, requires_grad=True)
    x = torch.randn(3, dtype=torch.float64, requires_grad=True)
    v = torch.randn(3, dtype=torch.float64, requires_grad=True)
    coefficients = jg.jet(lambda y: torch.sin(weight * y), x, v, 1)
    torch.testing.assert_close(coefficients[1], torch.cos(weight * x) * weight * v)
    for left, right in zip(
        torch.autograd.grad(coefficients[1].sum(), [weight, x, v]),
        torch.autograd.grad((torch.cos(weight * x) * weight * v).sum(), [weight, x, v]),
        strict=True,
    ):
        torch.testing.assert_close(left, right)


def test_gradients_reach_modules_that_a_function_names() -> None:
    model = _block()
    x = torch.randn(2, 6, dtype=torch.float64)
    expected = torch.autograd.grad(jg.jet(model, x, x, 2).sum(), list(model.parameters()))
    for given in (lambda y: model(y), model.forward):
        found = torch.autograd.grad(jg.jet(given, x, x, 2).sum(), list(model.parameters()))
        for left, right in zip(found, expected, strict=True):
            torch.testing.assert_close(left, right)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtype_stays_and_digits_are_kept(dtype: torch.dtype) -> None:
    model = _block()
    x, v = torch.randn(2, 6, dtype=torch.float64), torch.randn(2, 6, dtype=torch.float64)
    exact = jg.jet(model, x, v, 3)
    short = jg.jet(copy.deepcopy(model).to(dtype), x.to(dtype), v.to(dtype), 3)
    assert short.dtype == dtype
    error = (short.double() - exact).flatten(1).norm(dim=1) / exact.flatten(1).norm(dim=1)
    assert float(error.max()) < 60 * torch.finfo(dtype).eps


def test_model_is_left_alone() -> None:
    model = _block().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    jg.jet(model, torch.randn(2, 6).double(), torch.randn(2, 6).double(), 2)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_arguments_that_do_not_fit() -> None:
    x = torch.ones(2)
    with pytest.raises(InputError, match="at least 0"):
        jg.jet(torch.exp, x, x, -1)
    with pytest.raises(InputError, match="direction x's shape"):
        jg.jet(torch.exp, x, torch.ones(3), 1)
    with pytest.raises(InputError, match="one floating tensor"):
        jg.jet(torch.exp, torch.ones(2, dtype=torch.int64), x, 1)
    with pytest.raises(InputError, match="returns one tensor"):
        jg.jet(lambda y: (y, y), x, x, 1)


def test_constant_function_has_a_zero_jet() -> None:
    result = jg.jet(lambda y: torch.ones(3), torch.ones(2), torch.ones(2), 2)
    assert result.tolist() == [[1.0] * 3, [0.0] * 3, [0.0] * 3]


def test_missing_rule_names_op_module_and_remedy() -> None:
    class Inner(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.special.airy_ai(x)

    model = nn.Sequential(nn.Identity(), nn.ModuleDict({"odd": Inner()})["odd"])
    with pytest.raises(MissingRuleError) as caught:
        jg.jet(model, torch.ones(2), torch.ones(2), 1)
    text = str(caught.value)
    assert "torch.ops.aten.special_airy_ai.default" in text
    assert "in module '1' (node" in text
    assert "jetgraph.register_rule(torch.ops.aten.special_airy_ai.default" in text


@pytest.mark.parametrize(
    ("function", "bad", "text"),
    [
        (torch.rsqrt, 0.0, "rsqrt"),
        (torch.log, 0.0, "log"),
        (torch.log, -1.0, "log"),
        (torch.sqrt, 0.0, "sqrt"),
        (torch.reciprocal, 0.0, "reciprocal"),
        (lambda x: 1 / x, 0.0, "reciprocal"),
        (lambda x: x / (x - 1), 1.0, "div"),
        (lambda x: x**1.5, 0.0, "pow"),
        (lambda x: x**-1, 0.0, "pow"),
        (torch.asin, 1.0, "asin"),
        (torch.acosh, 1.0, "acosh"),
        (torch.log, math.nan, "log"),
        (lambda x: torch.linalg.vector_norm(x, 0.5), 0.0, "vector_norm"),
        (lambda x: (x * 0).std(), 1.0, "std"),
        (torch.special.i0e, 0.0, "i0e"),
        (torch.special.ndtri, 1.0, "ndtri"),
        (lambda x: torch.linalg.svdvals(torch.diag(x)), 0.5, "svdvals"),
        (lambda x: torch.linalg.pinv(torch.stack([x, x])), 1.0, "pinv"),
    ],
)
def test_leaving_the_domain_is_an_error(function: object, bad: float, text: str) -> None:
    class Named(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return function(x)  # type: ignore[operator]

    x, v, module = torch.tensor([0.5, bad]), torch.ones(2), nn.Sequential(Named())
    with pytest.raises(DomainError) as caught:
        jg.jet(module, x, v, 2)
    assert text in str(caught.value)
    assert "in module '0': " in str(caught.value)
    # Where what is done was written down at centres that are none of these.
    with torch.no_grad():
        series = jg.taylor(module, x)
        for _ in range(3):
            with contextlib.suppress(DomainError):
                series(torch.tensor([0.5, 0.75]), v, 2)
        with pytest.raises(DomainError) as later:
            series(x, v, 2)
    assert str(later.value) == str(caught.value)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x * torch.rand_like(x),
        lambda x: F.dropout2d(x, training=True),
        lambda x: F.rrelu(x, training=True),
        lambda x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.1),
    ],
)
def test_what_draws_random_numbers_is_no_function(function: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(2, 3, 4, 4)
    with pytest.raises(TraceError, match=r"in the root module at .*test_function\.py:\d+, .* draws random numbers"):
        jg.jet(function, x, x, 1)
    assert jg.jet(lambda y: F.dropout2d(2 * y, 0.0) + F.rrelu(y), x, x, 1).isfinite().all()


CONTINUED: list[tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = [
    (lambda x: F.normalize(x, dim=-1), lambda x: x / _length(x, 2)[..., None]),
    (lambda x: F.normalize(x, p=4, dim=-1), lambda x: x / _length(x, 4)[..., None]),
    (
        lambda x: F.cosine_similarity(x, x.flip(0), dim=-1),
        lambda x: (x * x.flip(0)).sum(-1) / (_length(x, 2) * _length(x.flip(0), 2)),
    ),
    (lambda x: F.pairwise_distance(x, x.flip(0)[:1]), lambda x: _length(x - x.flip(0)[:1] + 1e-6, 2)),
    (lambda x: torch.cdist(x, x[:1] * x[2:]), lambda x: _length(x[:, None] - x[:1] * x[2:], 2)),
    (lambda x: F.pdist(x), lambda x: _length(torch.stack([x[0] - x[1], x[0] - x[2], x[1] - x[2]]), 2)),
    (lambda x: torch.linalg.norm(x, ord="fro"), lambda x: _length(x.flatten(), 2)),
    (
        lambda x: torch.linalg.matrix_power(x[:, 1:] ** 2, -2),
        lambda x: torch.linalg.inv(x[:, 1:] ** 2) @ torch.linalg.inv(x[:, 1:] ** 2),
    ),
    (lambda x: torch.linalg.cholesky(_symmetric(x)), lambda x: _cholesky(_symmetric(x))),
    (lambda x: torch.linalg.cholesky(_symmetric(x), upper=True), lambda x: _cholesky(_symmetric(x)).mT),
    (lambda x: torch.linalg.qr(x[:, :2])[1].square(), lambda x: _cholesky(x[:, :2].mT @ x[:, :2]).mT ** 2),
    (lambda x: torch.tensor_split(x, torch.tensor([1, 2]))[1], lambda x: x[1:2]),
    (lambda x: F.mse_loss(x, x.tanh()), lambda x: ((x - x.tanh()) ** 2).mean()),
    (lambda x: F.kl_div(x, x.flip(0).exp(), reduction="sum"), lambda x: (x.flip(0).exp() * (x.flip(0) - x)).sum()),
]
"""Functions, and their continuations to complex numbers."""


def _symmetric(x: Tensor) -> Tensor:
    return x[:2].mT[1:3] @ x[:2, 1:3] + torch.diag(torch.tensor([1.0, 3.0])).to(x)


def _cholesky(a: Tensor) -> Tensor:
    """Of two rows."""
    first = a[0, 0].sqrt()
    beside = a[1, 0] / first
    return torch.stack([first, 0 * first, beside, (a[1, 1] - beside**2).sqrt()]).view(2, 2)


def _length(x: Tensor, p: int) -> Tensor:
    return (x**p).sum(-1) ** (1 / p)


def test_distances_and_losses_against_the_circle() -> None:
    """Orders 0..3 by the Fourier coefficients of f(x + r e^{iθ} v)."""
    random = torch.Generator().manual_seed(1)
    x, v = torch.randn(2, 3, 4, generator=random, dtype=torch.float64).unbind()
    radius, count = 0.05, 32
    circle = radius * torch.exp(2j * math.pi / count * torch.arange(count, dtype=torch.float64))

    def together(x: Tensor) -> Tensor:
        return torch.cat([function(x).flatten() for function, _ in CONTINUED])

    values = torch.stack([torch.cat([f(x + t * v).flatten() for _, f in CONTINUED]) for t in circle])
    expected = torch.fft.fft(values, dim=0)[:4].real / count / radius ** torch.arange(4, dtype=torch.float64)[:, None]
    torch.testing.assert_close(jg.jet(together, x, v, 3), expected, rtol=1e-8, atol=1e-8)


def test_nested_jvp_through_layer_norm_is_still_wrong_in_pytorch() -> None:
    """PyTorch issue 196700: forward mode over forward mode forgets terms of layer_norm's second derivative.

    If this fails, PyTorch has mended it, and the warning in the documentation can go.
    """
    torch.manual_seed(0)
    x, v = torch.randn(2, 5, dtype=torch.float64), torch.randn(2, 5, dtype=torch.float64)

    def norm(y: Tensor) -> Tensor:
        return F.layer_norm(y, (5,))

    def derivative(function: object, y: Tensor) -> Tensor:
        return torch.func.jvp(function, (y,), (v,))[1]  # type: ignore[arg-type]

    nested = [norm]
    for _ in range(3):
        nested.append(lambda y, inner=nested[-1]: derivative(inner, y))
    (exact,) = oracle.definition(
        lambda t: [definitions.layer_norm(oracle.at(torch.stack([x, v]).numpy(), t), [5], eps=1e-5)]
    )
    ours = jg.jet(norm, x, v, 3)
    for order in (2, 3):
        expected = torch.from_numpy(exact[order])
        wrong = nested[order](x) / math.factorial(order)
        torch.testing.assert_close(ours[order], expected, rtol=1e-10, atol=1e-12)
        assert float((wrong - expected).norm() / expected.norm()) > 0.01
    torch.testing.assert_close(nested[1](x), torch.from_numpy(exact[1]))


def test_oracle_knows_a_series_by_heart() -> None:
    """exp(t) · (1 - t)^-1, whose coefficient j is Σ_{i ≤ j} 1/i!."""
    (found,) = oracle.definition(lambda t: [definitions.exp(oracle.at(torch.eye(2)[:, 1:].numpy(), t)) / (1 - t)])
    expected = [float(sum(mp.mpf(1) / mp.factorial(i) for i in range(j + 1))) for j in range(7)]
    assert found.reshape(-1).tolist() == pytest.approx(expected, rel=1e-14)


def test_softmax_keeps_its_digits_at_high_orders() -> None:
    """Scores far apart: the coefficients of exp and of its sum grow and cancel, those of the log-partition do not."""
    generator = torch.Generator().manual_seed(1)
    x, v = (10 * torch.randn(6, dtype=torch.float64, generator=generator) for _ in range(2))
    order = 12

    def entry(i: int, t: mp.mpf) -> mp.mpf:
        scores = [mp.mpf(float(a)) + t * mp.mpf(float(b)) for a, b in zip(x, v, strict=True)]
        return mp.exp(scores[i]) / mp.fsum(map(mp.exp, scores))

    with mp.workdps(50):
        columns = [[float(c) for c in mp.taylor(lambda t, i=i: entry(i, t), 0, order)] for i in range(6)]
    exact = torch.tensor(columns, dtype=torch.float64).T
    found = jg.jet(lambda y: torch.softmax(y, -1), x, v, order)
    assert float(((found - exact).norm(dim=1) / exact.norm(dim=1)).max()) < 2e-14


# Tracing once


class Scaled(nn.Module):
    """sin(a W x) + b, where a is a number, and b a tensor that is no buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3).double()
        self.a = 2.0
        self.b = torch.ones(3, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(self.a * self.linear(x)) + self.b


@pytest.fixture
def exports(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """The modules that were exported."""
    done: list[nn.Module] = []
    export = function.export_program

    def counted(module: nn.Module, *args: Any, **options: Any) -> Any:
        done.append(module)
        return export(module, *args, **options)

    monkeypatch.setattr(function, "export_program", counted)
    return done


X, V = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64), torch.tensor([1.0, 2.0, -1.0], dtype=torch.float64)


def _expected(model: Scaled, x: Tensor) -> Tensor:
    """Order 2 by hand."""
    inner, slope = model.a * model.linear(x), model.a * (V @ model.linear.weight.T)
    return torch.stack([inner.sin() + model.b, inner.cos() * slope, -inner.sin() * slope**2 / 2])


CHANGES: dict[str, tuple[Callable[[Scaled], Any], int]] = {
    "nothing": (lambda model: None, 1),
    "values of a weight": (lambda model: nn.init.ones_(model.linear.weight), 1),
    "a weight": (lambda model: setattr(model.linear, "weight", nn.Parameter(torch.eye(3).double())), 1),
    "another tensor": (lambda model: setattr(model, "b", torch.zeros(3, dtype=torch.float64)), 1),
    "a number": (lambda model: setattr(model, "a", 3.0), 2),
    "a hook": (lambda model: model.register_forward_hook(lambda module, args, output: output + 0), 2),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_module_is_traced_again_where_it_has_changed(what: str, exports: list[nn.Module]) -> None:
    model = Scaled()
    change, times = CHANGES[what]
    torch.testing.assert_close(jg.jet(model, X, V, 2), _expected(model, X))
    change(model)
    torch.testing.assert_close(jg.jet(model, X + 1, V, 2), _expected(model, X + 1))
    assert len(exports) == times
    assert jg.jet(model, torch.stack([X, X]), torch.stack([V, V]), 1).shape == (2, 2, 3)
    assert len(exports) == times + 1


def test_a_module_is_looked_at_when_its_jet_is_launched(
    exports: list[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device works meanwhile; what a program makes of a module that has changed, or its error, goes."""
    order: list[str] = []
    described, at = function._described, function.Taylor.at
    monkeypatch.setattr(function, "_described", lambda module: order.append("looked at") or described(module))
    monkeypatch.setattr(function.Taylor, "at", lambda self, *given: order.append("launched") or at(self, *given))
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    for _ in range(2):
        torch.testing.assert_close(jg.jet(model, X, V, 1), torch.stack(torch.func.jvp(model, (X,), (V,))))
    assert order == ["looked at", "launched", "launched", "looked at"]
    # Another function with the same weights, and weights that the program has no use for.
    for at_place, other in (
        (1, nn.Softplus()),
        (0, nn.Linear(3, 4, bias=False).double()),
        (2, nn.Linear(4, 5).double()),
    ):
        model[at_place] = other
        order.clear()
        torch.testing.assert_close(jg.jet(model, X, V, 1), torch.stack(torch.func.jvp(model, (X,), (V,))))
        assert order == ["launched", "looked at", "launched"]
    assert len(exports) == 4
    # Where nothing has changed the error is its own.
    logarithm = nn.Sequential(nn.Linear(3, 3), nn.LogSigmoid(), Logarithm()).double()
    for _ in range(3):
        with pytest.raises(jg.DomainError, match="log"):
            jg.jet(logarithm, X, V, 1)


class Logarithm(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.log(x)


def test_the_oldest_program_goes_first_and_a_module_is_described_once(
    exports: list[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    described: list[nn.Module] = []
    watched = function.watched
    monkeypatch.setattr(function, "watched", lambda module: described.append(module) or watched(module))
    monkeypatch.setattr(function, "_MOST", 2)
    model, seen = Scaled(), []
    for rows in (1, 2, 1, 3, 2, 1):
        jg.jet(model, X.expand(rows, 3), V.expand(rows, 3), 1)
        seen.append(len(exports))
    assert seen == [1, 2, 2, 3, 3, 4]
    assert len(described) == 1


def test_tensors_in_lists_are_read_again(exports: list[nn.Module]) -> None:
    """They have no name in the module, so that the program holds them."""

    class Holding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.held = [torch.ones(3, dtype=torch.float64)]

        def forward(self, x: Tensor) -> Tensor:
            return torch.sin(x) * self.held[0]

    model = Holding()
    for factor in (1.0, 2.0):
        model.held[0] = torch.full((3,), factor, dtype=torch.float64)
        torch.testing.assert_close(jg.jet(model, X, V, 1)[0], factor * X.sin())
    jg.jet(model, X, V, 1)
    assert len(exports) == 3


def test_a_value_of_its_class_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    class Classed(nn.Module):
        slope = 2.0

        def forward(self, x: Tensor) -> Tensor:
            return torch.sin(self.slope * x)

    model = Classed()
    # At zero the value itself does not tell.
    for slope in (2.0, 3.0):
        monkeypatch.setattr(Classed, "slope", slope)
        torch.testing.assert_close(jg.jet(model, 0 * X, V, 1)[1], slope * V)


def test_threads_take_jets_of_one_module() -> None:
    """While one exports it, its weights are stand-ins, which another must not read."""
    model = Scaled()
    expected = _expected(model, X)

    def off(rows: int) -> float:
        x, v = X.expand(rows, 3), V.expand(rows, 3)
        return float((jg.jet(model, x, v, 2) - expected[:, None]).abs().max())

    with ThreadPoolExecutor(3) as pool:
        assert max(pool.map(off, [2, 3, 4, 5, 2, 3])) < 1e-12


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda model: delattr(model, "linear"), "is gone instead of"),
        (lambda model: setattr(model, "linear", nn.Linear(3, 4).double()), r"is \[4(, 3)?\] torch.float64 on cpu"),
        (lambda model: model.float(), "torch.float32 on cpu instead of .* torch.float64"),
        (lambda model: model.to("meta"), "on meta instead of"),
    ],
)
def test_weights_that_no_longer_fit_are_told(change: Callable[[Scaled], Any], said: str) -> None:
    model = Scaled()
    series = jg.taylor(model, X)
    change(model)
    with pytest.raises(jg.StateError, match=said):
        series(X, V, 1)


def test_weights_that_are_tied_no_more_are_told() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3)).double()
    model[2].weight = model[0].weight
    series = jg.taylor(model, X)
    torch.testing.assert_close(series(X, V, 1), jg.jet(model, X, V, 1))
    model[2].weight = nn.Parameter(torch.eye(3, dtype=torch.float64))
    with pytest.raises(jg.StateError, match=r"no longer one tensor with '2\.weight'"):
        series(X, V, 1)
    torch.testing.assert_close(jg.jet(model, X, V, 1)[0], model(X))


def test_a_module_that_was_traced_is_not_kept_alive() -> None:
    model = Scaled()
    jg.jet(model, X, V, 1)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_functions_are_traced_once_where_that_is_said(
    exports: list[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A function may read anything that has changed since. What to do is decided twice, where nothing is followed."""
    factors = [2.0]

    def f(x: Tensor) -> Tensor:
        return torch.exp(factors[0] * x)

    series = jg.taylor(f, X)
    for _ in range(3):
        torch.testing.assert_close(series(X, V, 3), jg.jet(f, X, V, 3))
    assert len(exports) == 4
    decided, evaluate = list[int](), function.evaluate
    monkeypatch.setattr(function, "evaluate", lambda *args, **kwargs: decided.append(1) or evaluate(*args, **kwargs))
    with torch.no_grad():
        for number in range(5):
            torch.testing.assert_close(series(X + number, V, 1)[1], 2 * V * f(X + number))
    assert len(decided) == 2
    factors[0] = 3.0
    torch.testing.assert_close(jg.jet(f, X, V, 1)[0], torch.exp(3 * X))
    assert repr(series) == "Taylor coefficients of f at [3] torch.float64"
    for x in (X[:2], X.float()):
        with pytest.raises(InputError, match=r"traced at \[3\] torch.float64 on cpu"):
            series(x, x, 1)
    with pytest.raises(InputError, match="at least 0"):
        series(X, V, -1)
    with pytest.raises(InputError, match="one floating tensor"):
        jg.taylor(f, torch.arange(3))


def test_functions_that_take_derivatives() -> None:
    """Of the slope of GELU, Φ(x) + x φ(x), by either way of writing it."""

    def by_function(x: Tensor) -> Tensor:
        return torch.func.grad(lambda v: F.gelu(v).sum())(x)

    def by_tape(x: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            return torch.autograd.grad(F.gelu(leaf).sum(), leaf)[0]

    x = torch.tensor([0.3, -1.0], dtype=torch.float64)
    expected = [mp.taylor(lambda t: mp.ncdf(t) + t * mp.npdf(t), float(center), 4) for center in x]
    for slope in (by_function, by_tape):
        actual = jg.jet(slope, x, torch.ones_like(x), order=4)
        torch.testing.assert_close(actual.T, torch.tensor([[float(c) for c in row] for row in expected], dtype=x.dtype))


@torch.no_grad()
def test_weights_are_read_at_each_call() -> None:
    """However they were written to, and whatever is made of them."""
    module = nn.Sequential(weight_norm(nn.Linear(3, 5)), nn.SiLU(), nn.Linear(5, 3)).double()
    x, v = torch.randn(2, 2, 3, dtype=torch.float64)
    series = jg.taylor(module, x)

    def same() -> None:
        for _ in range(3):
            found = series(x, v, 1)
        torch.testing.assert_close(found[0], module(x))
        torch.testing.assert_close(found, jg.jet(module, x, v, 1))
        # Side by side in memory, as these are, or apart.
        torch.testing.assert_close(found, series(x.clone(), v.clone(), 1))
        torch.testing.assert_close(found, jg.taylor(module, x)(x, v, 1))

    same()
    for written in module.parameters():
        written.mul_(2)
        same()
        # Of what is written in this way PyTorch keeps no count.
        written.data.mul_(2)
        same()
        written.data = written + 1
        same()
    module[2].weight = nn.Parameter(torch.randn(3, 5, dtype=torch.float64))
    same()


def test_rules_that_are_replaced_are_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where what was done had been written down; and one of somebody else, whatever it decides by."""
    monkeypatch.setattr(registry, "RULES", dict(registry.RULES))
    x, v = torch.rand(2), torch.ones(2)

    def rule(order: int, x: Any) -> Any:
        sign = 1.0 if x.coefficient(0).tolist()[0] > 0 else -1.0
        return x.like(x.coefficients * sign)

    with torch.no_grad():
        series = jg.taylor(torch.sin, x)
        for _ in range(4):
            torch.testing.assert_close(series(x, v, 1)[1], x.cos())
        jg.register_rule(torch.ops.aten.sin.default, rule, kind="composite", replace=True)
        for sign in (1, 1, 1, -1):
            torch.testing.assert_close(series(sign * x, v, 1), torch.stack([x, sign * v]))
