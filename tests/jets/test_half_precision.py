"""Jets in bfloat16 and float16: every rule rounds a coefficient once, and no op loses more than its roundings.

The reference takes the same rounded weights, centres and directions in float64. Errors are relative to the norm of the
coefficient itself. A rounding is off by at most u = eps/2 of each entry.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import jetgraph as jg
from benchmarks import oracle
from jetgraph.jets.interpreter import evaluate
from jetgraph.jets.registry import find_rule
from jetgraph.jets.series import Series
from tests.jets.cases import Case
from tests.jets.graphs import Graph
from tests.jets.test_rules import SERIES_CASES, Prepared
from tests.operators import Operators

ORDER = 4
HALVES = (torch.bfloat16, torch.float16)
OFF = ("special_i0e.default",)
"""Ops whose own values, which are coefficient 0, are off by more than a rounding."""
NO_KERNEL = ("not implemented", "not supported", "must be either", "expected a tensor", "other than float")
dtypes = pytest.mark.parametrize("dtype", HALVES, ids=["bfloat16", "float16"])


def ulp(dtype: torch.dtype) -> float:
    """What a rounding is off by at most, below the smallest normal number."""
    return torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps / 2


# Every rule


def _converted(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(_converted(item, dtype) for item in value)
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def _run(prepared: Prepared, varying: tuple[int, ...], dtype: torch.dtype, work: torch.dtype) -> list[Any]:
    """The rule in `work` on data that are rounded to `dtype`."""
    rows = [torch.as_tensor(values[: ORDER + 1]).to(dtype).to(work) for values in prepared.coefficients]
    given = [Series(values, ORDER) if i in varying else values[0] for i, values in enumerate(rows)]
    args = _converted(_converted(prepared.args(given), dtype), work)
    entry = find_rule(prepared.case.op)
    assert entry is not None
    found = entry.rule(ORDER, *args, **prepared.case.kwargs)
    return list(found) if isinstance(found, (list, tuple)) else [found]


@pytest.mark.parametrize("case", [case for case in SERIES_CASES if not case.whole], ids=lambda case: case.name)
def test_a_rule_rounds_once(case: Case) -> None:
    """u for one rounding; 2u for products, some of which add a bias or one another after they were rounded. The rule in
    float64, which `test_rules` holds against independent oracles on these cases, is the reference."""
    prepared = Prepared(case)
    for varying in prepared.chosen():
        for dtype in HALVES:
            try:
                found = _run(prepared, varying, dtype, dtype)
            except RuntimeError as error:
                if not any(words in str(error) for words in NO_KERNEL):
                    raise
                pytest.skip(f"PyTorch has no kernel: {error}")
            for short, exact in zip(found, _run(prepared, varying, dtype, torch.float64), strict=True):
                if isinstance(short, Series) and isinstance(exact, Series):
                    if not short.coefficient(0).isfinite().all() and exact.coefficient(0).isfinite().all():
                        # Coefficient 0 is the plain operator's own result, whatever that is.
                        pytest.skip(f"PyTorch's own result is not finite in {dtype}")
                    _check_rounding(case, dtype, short, exact.stacked())


def _check_rounding(case: Case, dtype: torch.dtype, found: Series, exact: Tensor) -> None:
    entry = find_rule(case.op)
    assert entry is not None
    share = (1.02 if entry.kind == "bilinear" else 0.52) * torch.finfo(dtype).eps
    bounds = share * exact.reshape(ORDER + 1, -1).norm(dim=1)
    if dtype == torch.float16:
        # Below the normal numbers each entry of each product has an error of its own.
        bounds += 8 * ulp(dtype) * math.sqrt(max(exact[0].numel(), 1))
    errors = (found.stacked().double() - exact).reshape(ORDER + 1, -1).norm(dim=1)
    fine = errors <= bounds
    if case.name in OFF:
        fine[0] = True
    assert bool(fine.all()), f"{dtype}: {errors} off, more than {bounds}"


@pytest.mark.parametrize("case", [case for case in SERIES_CASES if "norm" in case.name], ids=lambda case: case.name)
def test_a_norm_rounds_once_where_nothing_follows_it(case: Case) -> None:
    """It is then a weighted sum of coefficients, written as it is rounded."""
    with torch.no_grad():
        test_a_rule_rounds_once(case)


def test_a_norm_casts_what_it_reads_alone() -> None:
    for norm in (nn.LayerNorm(40), nn.LayerNorm(40, bias=False), nn.RMSNorm(40, elementwise_affine=False)):
        x, v = torch.randn(2, 3, 40).bfloat16()
        series = jg.taylor(norm.bfloat16(), x)
        with torch.no_grad():
            for _ in range(3):
                with Operators() as operators:
                    series(x, v, 1)
        # RMS norm is several operators on a CPU, which cast what they read and what they give.
        assert operators.counts["_to_copy"] == (3 if isinstance(norm, nn.RMSNorm) else 1)


def test_default_eps_of_rms_norm_is_that_of_float32() -> None:
    """PyTorch computes in float32, and takes its machine precision where no eps is given."""
    for dtype in HALVES:
        x = torch.full((4,), 1e-3, dtype=dtype)
        found = jg.jet(nn.RMSNorm(4).requires_grad_(False).to(dtype), x, x, 1)
        torch.testing.assert_close(found[0], F.rms_norm(x, (4,)))
        assert float(found[0][0]) > 0.9


# Chains of ops


class Function(nn.Module):
    """f(weights, x) as a module."""

    def __init__(self, f: Callable[[Any, Tensor], Tensor], **weights: Tensor) -> None:
        super().__init__()
        self.f = f
        for name, value in weights.items():
            self.register_buffer(name, value)

    def forward(self, x: Tensor) -> Tensor:
        return self.f(self, x)


@dataclass(frozen=True)
class Chain:
    """Ops in a row, and how many values are rounded between the input and the output."""

    name: str
    make: Callable[[], nn.Module]
    roundings: int
    step: float = 0.3
    """Length of the direction beside the centre: where the coefficients fall fast, interpolation needs a longer one."""


def _weights(rows: int, columns: int) -> Tensor:
    return torch.randn(rows, columns) * rows**-0.5


def _eager_attention(m: Any, x: Tensor) -> Tensor:
    query, key, value = x @ m.q, x @ m.k, x @ m.v
    return torch.softmax(query @ key.mT * 32**-0.5, -1) @ value


def _fused_attention(m: Any, x: Tensor) -> Tensor:
    query, key, value = ((x @ w)[:, None] for w in (m.q, m.k, m.v))
    return F.scaled_dot_product_attention(query, key, value, is_causal=True)


def _gelu_new(m: Any, x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * torch.pow(x, 3))))


def _gated_mlp(m: Any, x: Tensor) -> Tensor:
    return (F.silu(x @ m.gate) * (x @ m.up)) @ m.down


def _attention(f: Callable[[Any, Tensor], Tensor]) -> nn.Module:
    return Function(f, q=_weights(32, 32), k=_weights(32, 32), v=_weights(32, 32))


class Gpt2Block(nn.Module):
    """A block of GPT-2: layer norm, attention, MLP with the tanh form of GELU in primitives."""

    def __init__(self, attn: str) -> None:
        super().__init__()
        from transformers import GPT2Config, GPT2Model

        config = GPT2Config(n_layer=1, n_embd=32, n_head=2, vocab_size=5, n_positions=8)
        config._attn_implementation = attn
        self.block = _randomised(GPT2Model(config)).h[0]

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.full((x.shape[1], x.shape[1]), -1e4, dtype=x.dtype).triu(1)
        found = self.block(x, attention_mask=mask[None, None])
        return found if isinstance(found, Tensor) else found[0]


class LlamaBlock(nn.Module):
    """A block of Llama: RMS norm in primitives, rotary grouped-query attention, gated MLP."""

    def __init__(self, attn: str) -> None:
        super().__init__()
        from transformers import LlamaConfig, LlamaModel

        config = LlamaConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=1,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=5,
        )
        config._attn_implementation = attn
        model = _randomised(LlamaModel(config))
        self.layer = model.layers[0]
        cos, sin = model.rotary_emb(torch.zeros(1, 6, 32), torch.arange(6)[None])
        self.register_buffer("cos", cos)
        self.register_buffer("sin", sin)

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.full((x.shape[1], x.shape[1]), -1e4, dtype=x.dtype).triu(1)
        found = self.layer(x, attention_mask=mask[None, None], position_embeddings=(self.cos, self.sin))
        return found if isinstance(found, Tensor) else found[0]

    def primitives(self, x: Tensor) -> Tensor:
        """The block by its definition: transformers' own takes the norms in float32 whatever the dtype."""
        layer: Any = self.layer

        def norm(h: Tensor, weight: Tensor) -> Tensor:
            return h / torch.sqrt((h * h).mean(-1, keepdim=True) + layer.input_layernorm.variance_epsilon) * weight

        def heads(h: Tensor, weight: Tensor) -> Tensor:
            return (h @ weight.T).unflatten(-1, (-1, 8)).transpose(1, 2)

        def rotated(h: Tensor) -> Tensor:
            return h * self.cos + torch.cat((-h[..., 4:], h[..., :4]), -1) * self.sin

        h, attn = norm(x, layer.input_layernorm.weight), layer.self_attn
        query, key = rotated(heads(h, attn.q_proj.weight)), rotated(heads(h, attn.k_proj.weight))
        # Two heads read each key and value.
        key, value = (part.repeat_interleave(2, 1) for part in (key, heads(h, attn.v_proj.weight)))
        allowed = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
        powers = torch.exp(query @ key.mT / math.sqrt(8)) * allowed
        mixed = (powers / powers.sum(-1, keepdim=True) @ value).transpose(1, 2).flatten(2)
        x = x + mixed @ attn.o_proj.weight.T
        h, mlp = norm(x, layer.post_attention_layernorm.weight), layer.mlp
        gate = h @ mlp.gate_proj.weight.T
        return x + (gate / (1 + torch.exp(-gate)) * (h @ mlp.up_proj.weight.T)) @ mlp.down_proj.weight.T


def _randomised(model: Any) -> Any:
    """Weights at a scale where the nonlinear parts matter, biases and norms off their defaults."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
            else:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


CHAINS = (
    Chain("softmax", lambda: Function(lambda m, x: torch.softmax(x, -1)), 1),
    Chain("log softmax", lambda: Function(lambda m, x: torch.log_softmax(x, -1)), 1, step=1.0),
    Chain("layer norm", lambda: _randomised(nn.LayerNorm(32)), 1),
    Chain("RMS norm", lambda: _randomised(nn.RMSNorm(32, eps=1e-6)), 1),
    Chain("gelu", lambda: nn.GELU(), 1),
    Chain("gelu, tanh form", lambda: nn.GELU("tanh"), 1),
    Chain("silu", lambda: nn.SiLU(), 1),
    Chain("tanh", lambda: Function(lambda m, x: torch.tanh(2 * x)), 2),
    Chain("gelu in primitives", lambda: Function(_gelu_new), 8),
    Chain("product", lambda: Function(lambda m, x: torch.sin(x) * torch.exp(x / 2)), 3),
    Chain(
        "gated MLP", lambda: Function(_gated_mlp, gate=_weights(32, 48), up=_weights(32, 48), down=_weights(48, 32)), 4
    ),
    Chain("eager attention", lambda: _attention(_eager_attention), 5),
    Chain("fused attention", lambda: _attention(_fused_attention), 2),
    # norm 1, projection 2, attention 4, projection 2, sum 1; the same of the MLP with 8 for GELU
    Chain("GPT-2 block", lambda: Gpt2Block("eager"), 24),
    # norm 2, projection 1, rotation 2, attention 1, projection 1, sum 1; norm 2, MLP 4, sum 1
    Chain("Llama block", lambda: LlamaBlock("sdpa"), 15),
)


@dataclass(frozen=True)
class Problem:
    """A chain in a dtype with a centre and a direction, and its exact coefficients for these very numbers."""

    module: nn.Module
    x: Tensor
    v: Tensor
    exact: Tensor
    graph: Graph

    @property
    def found(self) -> Tensor:
        """What jetgraph makes of them."""
        values = self.graph.values(Series.variate(self.x, self.v, ORDER))
        return evaluate(self.graph.nodes, values, ORDER)[self.graph.result].stacked()

    @property
    def norms(self) -> Tensor:
        return self.exact.reshape(ORDER + 1, -1).norm(dim=1)

    def errors(self, found: Tensor) -> Tensor:
        """By coefficient, relative to its norm, in units of the dtype's eps."""
        return (found.double() - self.exact).flatten(1).norm(dim=1) / self.norms / torch.finfo(self.x.dtype).eps


@functools.cache
def _problem(chain: Chain, dtype: torch.dtype) -> Problem:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        module = chain.make().eval().requires_grad_(False).to(dtype)
        x, v = torch.randn(2, 6, 32).to(dtype), (chain.step * torch.randn(2, 6, 32)).to(dtype)
    double: Any = copy.deepcopy(module).double()
    exact = oracle.taylor(getattr(double, "primitives", double), x.double(), v.double(), ORDER)
    return Problem(module, x, v, exact, Graph(module, x))


def _rounded_once(graph: Graph, x: Tensor, v: Tensor) -> Tensor:
    """The coefficients where every op is exact and its value rounded to the dtype once: nobody who stores values of
    that dtype gets closer, but for luck."""
    values = graph.values(Series.variate(x.double(), v.double(), ORDER))
    values |= {node: _converted(value, torch.float64) for node, value in graph.constants.items()}
    for node in graph.nodes:
        evaluate([node], values, ORDER)
        values[node] = _rounded(values[node], x.dtype)
    return values[graph.result].stacked()


def _rounded(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(_rounded(item, dtype) for item in value)
    if isinstance(value, Series):
        return value.like(value.coefficients.to(dtype).double())
    return value.to(dtype).double() if isinstance(value, Tensor) and value.is_floating_point() else value


@dtypes
@pytest.mark.parametrize("chain", CHAINS, ids=lambda chain: chain.name)
def test_errors_are_those_of_rounding(chain: Chain, dtype: torch.dtype) -> None:
    """Coefficient j has at most u for each rounded value, times the j + 1 factors of which one may carry it; and no
    more than half as much again as exact ops whose values are rounded once. With one op there is nothing to carry."""
    problem = _problem(chain, dtype)
    errors = problem.errors(problem.found)
    for j, error in enumerate(errors.tolist()):
        bound = 0.52 if chain.roundings == 1 else 0.5 * chain.roundings * (j + 1)
        assert error <= bound, f"coefficient {j} is {error:.2f} eps off, more than {bound}"
    unavoidable = problem.errors(_rounded_once(problem.graph, problem.x, problem.v))
    assert bool((errors <= 1.5 * unavoidable + 0.1).all()), f"{errors} eps off, where {unavoidable} would do"


@dtypes
@pytest.mark.parametrize("chain", CHAINS[-2:], ids=lambda chain: chain.name)
def test_errors_of_a_block(chain: Chain, dtype: torch.dtype) -> None:
    """j + 1 eps for coefficient j: the plain forward is off by less than one, and coefficient j has j + 1 factors."""
    problem = _problem(chain, dtype)
    plain = problem.errors(problem.module(problem.x).expand_as(problem.exact))[0]
    errors = problem.errors(problem.found)
    assert float(plain) < 1
    assert float(errors[0]) <= 1.25 * float(plain)
    assert all(error <= j + 1 for j, error in enumerate(errors.tolist())), errors


def test_offset_is_taken_off_before_rounding() -> None:
    """Batch norm at a running mean that is large beside the deviation."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        norm = nn.BatchNorm1d(6).eval().requires_grad_(False)
        x = 30 + torch.randn(4, 6, 8)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.fill_(30)
    norm.running_var.fill_(0.4)
    for dtype in HALVES:
        module, centre = copy.deepcopy(norm).to(dtype), x.to(dtype)
        found = jg.jet(module, centre, centre, 1)
        exact = copy.deepcopy(module).double()(centre.double())
        error = float((found[0].double() - exact).norm() / exact.norm())
        assert error <= 0.52 * torch.finfo(dtype).eps


# Range


def test_an_overflow_inside_float16_stays_where_it_matters() -> None:
    """x³ leaves float16 from 40 on, and so do its coefficients; where tanh is flat GELU does not mind."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        x, v = (60 * torch.randn(4, 64)).half(), (20 * torch.randn(4, 64)).half()
    module = Function(_gelu_new)
    found, exact = jg.jet(module, x, v, 2), jg.jet(module, x.double(), v.double(), 2)
    assert bool((x.double().abs() > 41).any())
    assert float(exact.abs().max()) < torch.finfo(torch.float16).max
    assert bool(found.isfinite().all())
    errors = (found.double() - exact).flatten(1).norm(dim=1) / exact.flatten(1).norm(dim=1)
    assert float(errors.max()) <= 3 * torch.finfo(torch.float16).eps


def test_an_overflow_that_matters_is_infinite() -> None:
    """tanh of something whose slope overflowed, where tanh is steep."""
    x, v = torch.tensor([0.5, 60.0]).half(), torch.tensor([300.0, 300.0]).half()
    found = jg.jet(lambda y: torch.tanh(y * 300 - 150), x, v, 1)
    assert found[1].tolist() == [math.inf, 0.0]


def test_sums_of_products_overflow_only_if_the_sum_does() -> None:
    """Coefficient 1 of a · b is a_0 b_1 + a_1 b_0 = 300 · 300 - 300 · 299."""
    a = Series(torch.tensor([[300.0], [-300.0]]).half(), 1)
    b = Series(torch.tensor([[299.0], [300.0]]).half(), 1)
    entry = find_rule(torch.ops.aten.mul.Tensor)
    assert entry is not None
    found = entry.rule(1, a, b)
    assert found.dtype == torch.float16
    assert float(found.coefficient(1)) == 300.0
