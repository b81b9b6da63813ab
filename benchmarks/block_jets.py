"""Jets of one whole block, both branches, by order."""

from __future__ import annotations

import copy
import importlib
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

import jetgraph as jg
from benchmarks import blocks, models, oracle, rivals
from benchmarks.harness import Benchmark, Case, Contestant, Setting, missing, reason
from jetgraph.jets.fusion import Fusion
from jetgraph.running.forward import Forward


def cases(setting: Setting) -> Iterator[Case]:
    """One per order."""
    problem = Problem(setting)
    makers = (_jex, _torch_func, _torch_jet, _jax_jet, _jax_nested)
    for order in setting.orders:
        ours = [problem.jetgraph(order), problem.taylor(order)]
        # Compiling takes longer than all the rest at small sizes.
        if order == 1 or not setting.quick:
            ours.append(problem.fused(order))
        yield Case(f"order {order}", [problem.forward(order), *ours, *(maker(problem, order) for maker in makers)])


class Problem:
    """A block in a dtype, a centre x, a direction v, and the Taylor coefficients of t ↦ block(x + t v)."""

    def __init__(self, setting: Setting, dtype: torch.dtype = torch.float32) -> None:
        self.setting = setting
        self.dtype = dtype
        model: Any = models.gpt2(setting, dtype)
        self.block: Any = model.transformer.h[0]
        self.ids = models.token_ids(setting, setting.batch, setting.length)
        with torch.no_grad():
            places = torch.arange(setting.length, device=self.ids.device)
            self.x: Tensor = model.transformer.wte(self.ids) + model.transformer.wpe(places)
            generator = torch.Generator().manual_seed(1)
            self.v = (torch.randn(self.x.shape, generator=generator) * float(self.x.float().std())).to(self.x)

    @cached_property
    def coefficients(self) -> Tensor:
        """What is right for these weights, x and v: [order + 1, batch, length, width] in float64."""
        exact: Any = models.double(self.block)
        centre, direction = self.x.cpu().double(), self.v.cpu().double()
        return oracle.taylor(lambda h: _tensor(exact(h)), centre, direction, max(self.setting.orders))

    def error(self, found: Any, order: int) -> float:
        """The largest relative distance among the coefficients 0..order."""
        parts = [torch.as_tensor(part) for part in found]
        assert len(parts) == order + 1
        return max(oracle.distance(part, true) for part, true in zip(parts, self.coefficients, strict=False))

    def rival(self, name: str, work: Callable[[], Any], order: int) -> Contestant:
        """One that gives all coefficients."""
        return Contestant(name, "rival", work, partial(self.error, order=order))

    def forward(self, order: int) -> Contestant:
        """The model's own block on order + 1 times the rows, and how far it is off at x."""
        rows = self.x.repeat(order + 1, 1, 1)

        def work() -> Tensor:
            with torch.no_grad():
                return _tensor(self.block(rows))

        def error(found: Tensor) -> float:
            return oracle.distance(found[: len(self.x)], self.coefficients[0])

        return Contestant("floor", "floor", work, error, note=f"forward, {order + 1}× rows")

    def jetgraph(self, order: int) -> Contestant:
        """The two stages of the traced graph on a series, op by op."""

        def work() -> list[Tensor]:
            return self._jets(self.run, order)

        return Contestant("jetgraph", "jetgraph", work, partial(self.error, order=order), prepare=lambda: self.run)

    def taylor(self, order: int) -> Contestant:
        """`jg.taylor` of the model's own block: traced once, and decided once for tensors of a kind."""
        block = _One(self.block)
        series = jg.taylor(block, self.x)

        def work() -> Tensor:
            with torch.no_grad():
                return series(self.x, self.v, order)

        return Contestant("jetgraph, taylor", "jetgraph", work, partial(self.error, order=order), prepare=work)

    def fused(self, order: int) -> Contestant:
        """The two stages through torch.compile, which takes its time before."""

        def work() -> list[Tensor]:
            return self._jets(self.fused_run, order)

        return Contestant("jetgraph, fuse=True", "jetgraph", work, partial(self.error, order=order), prepare=work)

    def _jets(self, run: Forward, order: int) -> list[Tensor]:
        with torch.no_grad():
            value: Any = jg.Series.variate(self.x, self.v, order)
            for stage in self.graph.stream.stages[:2]:
                value = run.through(stage.region, value, order)
            return [value.coefficient(j) for j in range(order + 1)]

    @cached_property
    def graph(self) -> jg.ResidualGraph:
        return models.traced(self.setting, self.dtype)

    @cached_property
    def run(self) -> Forward:
        """A pass that has what the block reads besides the stream."""
        run = self.graph.run(input_ids=self.ids)
        with torch.no_grad():
            for stage in self.graph.stream.stages[:2]:
                run.need(stage.region.side)
        return run

    @cached_property
    def fused_run(self) -> Forward:
        return Forward(self.graph, self.run.state, self.run.inputs, Fusion())


class _One(torch.nn.Module):
    """A block that returns its stream alone."""

    def __init__(self, block: torch.nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        return _tensor(self.block(x))


def _tensor(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


def _jex(problem: Problem, order: int) -> Contestant:
    """jex's jet of the model's own block, with the eager attention that double backward needs, and a causal mask."""
    found = rivals.jex(problem.setting)
    if found.module is None:
        return missing("jex", found.why)
    jet = importlib.import_module("jex.jet").jet
    block: Any = copy.deepcopy(problem.block)
    block.attn.config = copy.deepcopy(block.attn.config)
    block.attn.config._attn_implementation = "eager"
    mask = torch.from_numpy(blocks.causal(problem.setting.length)).to(problem.x)[None, None]

    def work() -> list[Tensor]:
        return jet(
            lambda h: _tensor(block(h, attention_mask=mask)),
            problem.x,
            problem.x + problem.v,
            order,
            return_coefficients=True,
        )[1]

    return problem.rival("jex", work, order)


def _primitives(problem: Problem) -> Callable[[Tensor], Tensor]:
    weights = blocks.weights(problem.block)
    mask = torch.from_numpy(blocks.causal(problem.setting.length)).to(problem.x)
    return lambda x: blocks.apply(x, weights, mask, problem.setting.heads, torch)


def _torch_func(problem: Problem, order: int) -> Contestant:
    """torch.func.jvp of itself, order times, of the block in primitives."""
    f = _primitives(problem)

    def work() -> list[Tensor]:
        with torch.no_grad():
            function = _nested(f, problem.v, order, torch.func.jvp)
            return [value / math.factorial(j) for j, value in enumerate(function(problem.x))]

    # Its first call compiles decompositions.
    return replace(problem.rival("torch.func.jvp, nested", work, order), prepare=work)


def _nested(f: Callable[[Any], Any], v: Any, order: int, jvp: Callable[..., Any]) -> Callable[[Any], tuple[Any, ...]]:
    """x ↦ (f, Df[v], D²f[v, v], …) up to `order`: every derivative is the JVP of what gives the ones below."""
    if order == 0:
        return lambda x: (f(x),)
    below = _nested(f, v, order - 1, jvp)

    def function(x: Any) -> tuple[Any, ...]:
        values, tangents = jvp(below, (x,), (v,))
        return (*values, tangents[-1])

    return function


def _torch_jet(problem: Problem, order: int) -> Contestant:
    """jet-for-pytorch of the block in primitives."""
    name = "jet-for-pytorch"
    found = rivals.torch_jet(problem.setting)
    if found.module is None:
        return missing(name, found.why)
    try:
        function = found.module.jet(_primitives(problem), order, torch.zeros_like(problem.x))
    except Exception as error:
        return missing(name, reason(error))

    def work() -> list[Tensor]:
        rest = [torch.zeros_like(problem.x)] * (order - 1)
        with torch.no_grad():
            return [value / math.factorial(j) for j, value in enumerate(function(problem.x, problem.v, *rest))]

    return problem.rival(name, work, order)


def _jax_block(problem: Problem, jax: Any) -> tuple[Callable[[Any], Any], Any, Any]:
    """The block in primitives, x and v for JAX."""
    array = jax.numpy.asarray
    weights = {name: array(value.cpu().numpy()) for name, value in blocks.weights(problem.block).items()}
    mask = array(blocks.causal(problem.setting.length))

    def f(x: Any) -> Any:
        return blocks.apply(x, weights, mask, problem.setting.heads, jax.numpy)

    return f, array(problem.x.cpu().numpy()), array(problem.v.cpu().numpy())


def _jitted(problem: Problem, order: int, name: str, jax: Any, function: Callable[[Any, Any], Any]) -> Contestant:
    """A compiled function of x and v that gives the derivatives 0..order."""
    _, x, v = _jax_block(problem, jax)
    compiled = jax.jit(function)

    def work() -> Any:
        return jax.block_until_ready(compiled(x, v))

    def error(found: Any) -> float:
        coefficients = [torch.from_numpy(np.array(part)) / math.factorial(j) for j, part in enumerate(found)]
        return problem.error(coefficients, order)

    # Compiling is no part of it.
    return Contestant(name, "rival", work, error, prepare=work)


def _jax_jet(problem: Problem, order: int) -> Contestant:
    """jax.experimental.jet under jit."""
    name = "jax.experimental.jet, jitted"
    found, taylor_mode = rivals.jax(), rivals.jax_jet()
    if found.module is None or taylor_mode.module is None:
        return missing(name, found.why or taylor_mode.why)
    f, _, _ = _jax_block(problem, found.module)
    zeros, jet = found.module.numpy.zeros_like, taylor_mode.module.jet

    def function(x: Any, v: Any) -> Any:
        value, derivatives = jet(f, (x,), ([v, *[zeros(v)] * (order - 1)],))
        return [value, *derivatives]

    return _jitted(problem, order, name, found.module, function)


def _jax_nested(problem: Problem, order: int) -> Contestant:
    """jax.jvp of itself, order times, under jit."""
    name = "jax.jvp, nested and jitted"
    found = rivals.jax()
    if found.module is None:
        return missing(name, found.why)
    f, _, _ = _jax_block(problem, found.module)
    jvp = found.module.jvp

    def function(x: Any, v: Any) -> Any:
        return _nested(f, v, order, jvp)(x)

    return _jitted(problem, order, name, found.module, function)


BENCHMARK = Benchmark(
    "jets",
    "Taylor coefficients of a block",
    "Coefficients 0..k of t ↦ block(x + t v) for one block of GPT-2 (norm, attention, norm, MLP, both sums), batch "
    "4 of 32 tokens. Floor: the model's own block on k + 1 times the rows, which has the matrix products that k + 1"
    " coefficients need. `taylor` is `jg.taylor` of that block. `torch.func`, JAX and jet-for-pytorch get the block in "
    "elementary primitives, jex the model's own. Oracle: interpolation of the model's own block at Chebyshev nodes in "
    "float64; the error is the largest over the coefficients.",
    cases,
)
