"""Random residual nets that keep the functions they are made of, so that every term can be evaluated by hand.

A net is drawn by a `choose`, which picks one of some options: hypothesis's, which makes failing nets small, or a random
generator's. Every function runs in two ways: as a model is written, and, with `plain=True`, from elementary primitives,
whose nested forward-mode derivatives can be trusted (PyTorch's own are wrong through `layer_norm` from order 2).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.gates import GATES, POSITIONS, Gate, Weights

Choose = Callable[[Sequence[Any]], Any]
"""Picks one of these; the first ones are the simplest."""


# Activations and norms


@dataclass(frozen=True)
class Activation:
    written: Callable[[Tensor], Tensor]
    plain: Callable[[Tensor], Tensor]
    smooth: bool = True


def _sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))


def _softplus(x: Tensor) -> Tensor:
    return torch.log1p(torch.exp(x))


def _tanh_gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh((2 / math.pi) ** 0.5 * (x + 0.044715 * x * x * x)))


ACTIVATIONS = {
    "tanh": Activation(torch.tanh, torch.tanh),
    "gelu": Activation(F.gelu, lambda x: 0.5 * x * (1 + torch.erf(x / 2**0.5))),
    "tanh gelu": Activation(lambda x: F.gelu(x, approximate="tanh"), _tanh_gelu),
    "silu": Activation(F.silu, lambda x: x * _sigmoid(x)),
    "sigmoid": Activation(torch.sigmoid, _sigmoid),
    "softplus": Activation(F.softplus, _softplus),
    "mish": Activation(F.mish, lambda x: x * torch.tanh(_softplus(x))),
    "log sigmoid": Activation(F.logsigmoid, lambda x: -_softplus(-x)),
    "sin": Activation(torch.sin, torch.sin),
    "erf": Activation(torch.erf, torch.erf),
    "square": Activation(lambda x: x**2, lambda x: x * x),
    "cube": Activation(lambda x: x.pow(3), lambda x: x * x * x),
    "bell": Activation(lambda x: torch.exp(-x * x), lambda x: torch.exp(-x * x)),
    "softsign": Activation(lambda x: x / (1 + x * x).sqrt(), lambda x: x * (1 + x * x) ** -0.5),
    "root": Activation(lambda x: torch.sqrt(F.softplus(x)), lambda x: _softplus(x) ** 0.5),
    "relu": Activation(F.relu, F.relu, smooth=False),
    "leaky": Activation(lambda x: F.leaky_relu(x, 0.1), lambda x: F.leaky_relu(x, 0.1), smooth=False),
    "hardswish": Activation(F.hardswish, F.hardswish, smooth=False),
    "hardtanh": Activation(F.hardtanh, F.hardtanh, smooth=False),
    "abs": Activation(torch.abs, torch.abs, smooth=False),
}

NORMS = ("none", "layer", "layer without bias", "layer by hand", "rms", "rms by hand", "length")


class Act(nn.Module):
    def __init__(self, choose: Choose, smooth: bool) -> None:
        super().__init__()
        self.name = choose([name for name, act in ACTIVATIONS.items() if act.smooth or not smooth])
        self.smooth = ACTIVATIONS[self.name].smooth

    def forward(self, x: Tensor, memory: Tensor | None = None, plain: bool = False) -> Tensor:
        act = ACTIVATIONS[self.name]
        return act.plain(x) if plain else act.written(x)

    def extra_repr(self) -> str:
        return self.name


class Norm(nn.Module):
    def __init__(self, choose: Choose, width: int, kinds: Sequence[str] = NORMS) -> None:
        super().__init__()
        # Two centred features, and a single one, normalise to ±1 whatever they are.
        least = {"none": 1, "rms": 2, "rms by hand": 2, "length": 2}
        self.kind = choose([kind for kind in kinds if width >= least.get(kind, 3)] or ["none"])
        self.weight = nn.Parameter(1 + 0.3 * torch.randn(width)) if self.kind not in ("none", "length") else None
        self.bias = nn.Parameter(0.3 * torch.randn(width)) if self.kind in ("layer", "layer by hand") else None

    def forward(self, x: Tensor, memory: Tensor | None = None, plain: bool = False) -> Tensor:
        if self.kind == "none":
            return x
        if self.kind == "length":
            return x * (x * x).sum(-1, keepdim=True) ** -0.5 if plain else x / x.norm(dim=-1, keepdim=True)
        if self.kind == "rms" and not plain:
            return F.rms_norm(x, x.shape[-1:], self.weight, 1e-5)
        if self.kind in ("layer", "layer without bias") and not plain:
            return F.layer_norm(x, x.shape[-1:], self.weight, self.bias, 1e-5)
        centred = x - x.mean(-1, keepdim=True) if "layer" in self.kind else x
        variance = (centred * centred).mean(-1, keepdim=True)
        y = centred * (variance + 1e-5) ** -0.5 if plain else centred * torch.rsqrt(variance + 1e-5)
        assert self.weight is not None
        return y * self.weight if self.bias is None else y * self.weight + self.bias

    def extra_repr(self) -> str:
        return self.kind


# Branches: f(x, memory), x of [batch, pos, width], memory the end of another stream


class Mlp(nn.Module):
    def __init__(self, choose: Choose, width: int, out: int, smooth: bool) -> None:
        super().__init__()
        hidden = choose((3, 1, 2, 5))
        self.norm, self.act = Norm(choose, width), Act(choose, smooth)
        self.up = nn.Linear(width, hidden, bias=choose((True, False)))
        self.down = nn.Linear(hidden, out, bias=choose((False, True)))

    def forward(self, x: Tensor, memory: Tensor, plain: bool = False) -> Tensor:
        return self.down(self.act(self.up(self.norm(x, plain=plain)), plain=plain))


class Glu(nn.Module):
    def __init__(self, choose: Choose, width: int, out: int, smooth: bool) -> None:
        super().__init__()
        self.norm, self.act = Norm(choose, width), Act(choose, smooth)
        self.gate, self.up = nn.Linear(width, 3), nn.Linear(width, 3, bias=False)
        self.down = nn.Linear(3, out, bias=False)

    def forward(self, x: Tensor, memory: Tensor, plain: bool = False) -> Tensor:
        x = self.norm(x, plain=plain)
        return self.down(self.act(self.gate(x), plain=plain) * self.up(x))


class Nested(nn.Module):
    """A residual block inside the branch."""

    def __init__(self, choose: Choose, width: int, out: int, smooth: bool) -> None:
        super().__init__()
        self.inner, self.down = Mlp(choose, width, width, smooth), nn.Linear(width, out)

    def forward(self, x: Tensor, memory: Tensor, plain: bool = False) -> Tensor:
        return self.down(x + self.inner(x, memory, plain))


class Attention(nn.Module):
    """Over the stream's own positions, or over those of the memory."""

    def __init__(self, choose: Choose, width: int, out: int, smooth: bool, cross: bool = False) -> None:
        super().__init__()
        self.heads, self.size = choose((1, 2)), choose((2, 3))
        self.norm, self.cross = Norm(choose, width), cross
        inner = self.heads * self.size
        self.q, self.kv = nn.Linear(width, inner), nn.Linear(MEMORY if cross else width, 2 * inner)
        self.o = nn.Linear(inner, out, bias=choose((False, True)))
        self.causal, self.fused = choose((False, True)), choose((False, True))

    def forward(self, x: Tensor, memory: Tensor, plain: bool = False) -> Tensor:
        x = self.norm(x, plain=plain)
        q, k, v = (
            y.unflatten(-1, (self.heads, self.size)).transpose(1, 2)
            for y in (self.q(x), *self.kv(memory if self.cross else x).chunk(2, -1))
        )
        if self.fused and not plain:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        else:
            scores = q @ k.transpose(-1, -2) / self.size**0.5
            if self.causal:
                ahead = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
                scores = scores.masked_fill(ahead, -1e4 if plain else -torch.inf)
            if plain:
                weights = torch.exp(scores - scores.detach().max())
                y = (weights / weights.sum(-1, keepdim=True)) @ v
            else:
                y = scores.softmax(-1) @ v
        return self.o(y.transpose(1, 2).flatten(2))


class Cross(Attention):
    def __init__(self, choose: Choose, width: int, out: int, smooth: bool) -> None:
        super().__init__(choose, width, out, smooth, cross=True)


class Conv(nn.Module):
    def __init__(self, choose: Choose, width: int, out: int, smooth: bool) -> None:
        super().__init__()
        self.norm, self.act = Norm(choose, width), Act(choose, smooth)
        self.conv = nn.Conv1d(width, out, 3, padding=1, bias=choose((False, True)))

    def forward(self, x: Tensor, memory: Tensor, plain: bool = False) -> Tensor:
        return self.act(self.conv(self.norm(x, plain=plain).transpose(1, 2)).transpose(1, 2), plain=plain)


class Affine(nn.Module):
    """A linear layer, over features or over the mean of all positions."""

    def __init__(self, choose: Choose, width: int, out: int, smooth: bool) -> None:
        super().__init__()
        self.linear, self.mean = nn.Linear(width, out, bias=choose((False, True))), choose((False, True))

    def forward(self, x: Tensor, memory: Tensor, plain: bool = False) -> Tensor:
        y = self.linear(x.mean(1, keepdim=True) if self.mean else x)
        return y.expand(-1, x.shape[1], -1) if self.mean else y


class Product(nn.Module):
    def __init__(self, choose: Choose, width: int, out: int, smooth: bool) -> None:
        super().__init__()
        self.one, self.two, self.down = nn.Linear(width, 3), nn.Linear(width, 3, bias=False), nn.Linear(3, out)

    def forward(self, x: Tensor, memory: Tensor, plain: bool = False) -> Tensor:
        return self.down(self.one(x) * self.two(x))


class GateBranch(nn.Module):
    """Any gate of the table."""

    def __init__(self, choose: Choose, width: int, out: int, smooth: bool) -> None:
        super().__init__()
        self.gate: Gate = choose(GATES)
        self.norm, self.up = Norm(choose, width), nn.Linear(width, 4)
        self.weights, self.down = Weights(4), nn.Linear(4, out, bias=False)

    def forward(self, x: Tensor, memory: Tensor, plain: bool = False) -> Tensor:
        x = self.norm(x, plain=plain)
        u = self.up(x)
        # A gate that reads the stream itself finds it as wide as u.
        return self.down(self.gate.function(u, F.pad(x, (0, 4))[..., :4] + 0.1 * u, self.weights))

    def extra_repr(self) -> str:
        return self.gate.name


def is_affine(branch: nn.Module) -> bool:
    """By what it is made of."""
    return isinstance(branch, Affine) or (
        isinstance(branch, GateBranch) and branch.gate.affine and branch.norm.kind == "none"
    )


CURVED = (Mlp, Glu, Nested, Attention, Cross, Conv, Product)
MEMORY = 3
"""Width of the other stream."""


# The net


class Skip(nn.Module):
    KINDS = ("identity", "half", "scalar", "vector", "negative", "gated", "none", "projection", "biased projection")

    def __init__(self, choose: Choose, width: int, out: int, alone: bool) -> None:
        super().__init__()
        kinds = [kind for kind in self.KINDS if alone or kind != "none"]
        self.kind = choose(kinds if width == out else kinds[-2:])
        if self.kind == "gated":
            self.gate = nn.Linear(width, width)
        if self.kind in ("scalar", "vector"):
            self.scale = nn.Parameter(torch.randn(width) if self.kind == "vector" else torch.tensor(0.7))
        if "projection" in self.kind:
            self.linear = nn.Linear(width, out, bias="biased" in self.kind)

    def forward(self, x: Tensor, stream: Tensor | None = None) -> Tensor:
        """S(x), with the gate of the true stream where one is given."""
        if "projection" in self.kind:
            return self.linear(x)
        if self.kind == "gated":
            return _sigmoid(self.gate(x if stream is None else stream)) * x
        if self.kind in ("scalar", "vector"):
            return x * self.scale
        return {"identity": lambda: x, "half": lambda: 0.5 * x, "negative": lambda: -x}[self.kind]()

    @property
    def plain(self) -> bool:
        """The stream itself, or a multiple of it."""
        return self.kind not in ("gated", "none") and "projection" not in self.kind

    def extra_repr(self) -> str:
        return self.kind


@dataclass(frozen=True, eq=False)
class JoinSpec:
    """h' = S(h) + scale · Σ branches(h) (+ injection), written in one of several forms, or all of them side by side."""

    skip: Skip
    branches: tuple[tuple[str, nn.Module], ...]
    form: str
    injection: Tensor | None
    width: int
    """Of each operand."""

    def placed(self, operand: int, value: Tensor) -> Tensor:
        """The value of an operand (0 is the skip) as a summand of the join."""
        if self.form == "side by side":
            return F.pad(value, (operand * self.width, (len(self.branches) - operand) * self.width))
        return value if operand == 0 else {"subtracted": -1.0, "alpha": 0.5}.get(self.form, 1.0) * value


@dataclass(frozen=True, eq=False)
class MapSpec:
    """h' = m(h)."""

    name: str
    map: nn.Module


FORMS = ("sum", "one by one", "reversed", "subtracted", "alpha", "stacked", "in place")


class Net(nn.Module):
    """A random residual net over inputs [batch, pos, ...]."""

    def __init__(self, choose: Choose, seed: int = 0, smooth: bool = True) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.seed = seed
        self.width = width = choose((4, 3, 6, 2, 1))
        self.encoder = choose(("x", "table", "linear", "tokens", "two", "scaled", "cast"))
        self.table = nn.Parameter(torch.randn(POSITIONS, width))
        self.linear = nn.Linear(5, width)
        self.tokens = nn.Embedding(11, width)
        self.memory = nn.Linear(MEMORY, MEMORY)
        self.steps: list[JoinSpec | MapSpec] = []
        shared: dict[tuple[int, int], list[tuple[str, nn.Module]]] = {}
        number = choose((1, 2, 3))
        # Branches alone are a join where all that reaches the output passes them: where no other stream is read.
        alone = choose((False, True))
        curved_kinds = [kind for kind in CURVED if kind is not Cross or not alone]
        for step in range(number):
            out = choose((width, width, width, 3, 5))
            skip = self._named(f"skip{step}", Skip(choose, width, out, alone))
            branches: list[tuple[str, nn.Module]] = []
            for index in range(choose((2, 2, 3) if skip.kind == "none" else (1, 1, 1, 2, 3))):
                # Of two affine maps side by side either may be the skip, and by themselves they are one.
                curved = not skip.plain
                again = [pair for pair in shared.get((width, out), []) if pair not in branches]
                again = [pair for pair in again if not curved or not is_affine(pair[1])]
                if again and choose((False, False, True)):
                    branches.append(choose(again))
                    continue
                kinds = [*([] if curved else [Affine]), *curved_kinds, *([] if smooth else [GateBranch] * 4)]
                name = f"block{step}_{index}"
                branch = choose(kinds)(choose, width, out, smooth)
                if curved and is_affine(branch):
                    branch = Mlp(choose, width, out, smooth)
                self._named(name, branch)
                branches.append((name, branch))
                shared.setdefault((width, out), []).append((name, branch))
            # Only the stream itself is a skip of a concatenation.
            form = choose((*FORMS, "side by side") if skip.plain and width <= 6 else FORMS)
            injection = None
            if form != "side by side" and choose((False, False, False, True)):
                injection = nn.Parameter(torch.randn(POSITIONS, out))
                self.register_parameter(f"injection{step}", injection)
            self.steps.append(JoinSpec(skip, tuple(branches), form, injection, out))
            width = out * (1 + len(branches)) if form == "side by side" else out
            if step < number - 1 and choose((False, False, True)):
                kinds = [lambda: Act(choose, smooth), lambda w=width: _Linear(w)]
                kinds += [lambda w=width: Norm(choose, w, NORMS[1:])] * 2 if width > 1 else []
                name = f"map{step}"
                self.steps.append(MapSpec(name, self._named(name, choose(kinds)())))
        self.nu = Norm(choose, width)
        self.unembed = choose((lambda: nn.Linear(width, 3, bias=False), lambda: nn.Linear(width, 2), nn.Identity))()

    def _named(self, name: str, module: Any) -> Any:
        self.add_module(name, module)
        return module

    @property
    def smooth(self) -> bool:
        """Every function has all derivatives, and is written from primitives whose nested derivatives are right."""
        return not any(isinstance(m, GateBranch) or (isinstance(m, Act) and not m.smooth) for m in self.modules())

    def inputs(self, seed: int = 0, batch: int = 2) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(1000 + seed)

        def normal(width: int, dtype: torch.dtype = torch.float64) -> Tensor:
            return torch.randn(batch, POSITIONS, width, generator=generator, dtype=torch.float64).to(dtype)

        x = {
            "tokens": lambda: torch.randint(0, 11, (batch, POSITIONS), generator=generator),
            "linear": lambda: normal(5),
            "cast": lambda: normal(self.width, torch.float32),
        }.get(self.encoder, lambda: normal(self.width))()
        return {"x": x, "side": normal(self.width if self.encoder == "two" else MEMORY), "other": normal(MEMORY)}

    def sources(self, x: Tensor, side: Tensor, other: Tensor) -> dict[str, Tensor]:
        """The summands of point 0 by alias."""
        match self.encoder:
            case "table":
                return {"embed": x, "pos": self.table.expand_as(x)}
            case "linear":
                return {"embed": x @ self.linear.weight.T, "bias": self.linear.bias.expand(*x.shape[:2], -1)}
            case "tokens":
                return {"embed": self.tokens.weight[x], "pos": self.table.expand(x.shape[0], -1, -1)}
            case "two":
                return {"embed": x, "side": side}
            case "scaled":
                return {"embed": 3 * x}
            case _:
                return {"embed": x.double()}

    def _encode(self, x: Tensor, side: Tensor) -> Tensor:
        return {
            "x": lambda: x,
            "table": lambda: x + self.table,
            "linear": lambda: self.linear(x),
            "tokens": lambda: self.tokens(x) + self.table,
            "two": lambda: x + side,
            "scaled": lambda: x * 3,
            "cast": lambda: x.to(self.table.dtype),
        }[self.encoder]()

    def other_stream(self, other: Tensor) -> Tensor:
        """A stream of its own, of another width, which some branches read."""
        return other + torch.tanh(self.memory(other))

    def nonlinear_end(self, h: Tensor) -> Tensor:
        """ν: the end up to what is affine from there on, as is the bias that a norm written out adds last."""
        y = self.nu(h, plain=True)
        return y - self.nu.bias if self.nu.kind == "layer by hand" else y

    def affine_end(self, y: Tensor) -> Tensor:
        """U."""
        return self.unembed(y + self.nu.bias if self.nu.kind == "layer by hand" else y)

    def points(self, x: Tensor, side: Tensor, other: Tensor, plain: bool = False) -> list[Tensor]:
        """The stream after every step."""
        memory = self.other_stream(other)
        found = [self._encode(x, side)]
        for step in self.steps:
            h = found[-1]
            if isinstance(step, MapSpec):
                found.append(step.map(h, plain=plain))
            else:
                values = [b(h, memory, plain=plain) for _, b in step.branches]
                if step.skip.kind == "none":
                    h, values = step.placed(1, values[0]), values[1:]
                else:
                    h = step.skip(h)
                found.append(_joined(step, h, values))
        return found

    def forward(self, x: Tensor, side: Tensor, other: Tensor) -> Tensor:
        return self.unembed(self.nu(self.points(x, side, other)[-1]))


class _Linear(nn.Linear):
    """An affine map on the stream."""

    def __init__(self, width: int) -> None:
        super().__init__(width, width)

    def forward(self, x: Tensor, memory: Tensor | None = None, plain: bool = False) -> Tensor:
        return super().forward(x)


def _joined(step: JoinSpec, h: Tensor, values: list[Tensor]) -> Tensor:
    match step.form:
        case "sum":
            total = values[0]
            for value in values[1:]:
                total = total + value
            h = h + total
        case "side by side":
            h = torch.cat([h, *values], -1)
        case "stacked":
            h = torch.stack([h, *values]).sum(0)
        case "in place":
            h = h.clone()
            for value in values:
                h += value
        case _:
            for value in values:
                h = {
                    "one by one": lambda h=h, value=value: h + value,
                    "reversed": lambda h=h, value=value: value + h,
                    "subtracted": lambda h=h, value=value: h - value,
                    "alpha": lambda h=h, value=value: torch.add(h, value, alpha=0.5),
                }[step.form]()
    return h if step.injection is None else h + step.injection
