"""Gates: what residual branches do besides smooth maps, as a table that the law and the random nets run over.

Masks, indices, counts and complex numbers lie between a branch's entry and its exit here. A branch that kept any of
them at the true stream would agree with the model there and nowhere else.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH = 6
POSITIONS = 4
EXPERTS = 4
ROWS = 16


class Weights(nn.Module):
    """What the gates read besides their argument."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.threshold = nn.Parameter(0.3 * torch.randn(width))
        self.router = nn.Parameter(torch.randn(EXPERTS, width) / width**0.5)
        self.experts = nn.Parameter(torch.randn(EXPERTS, width, width) / width**0.5)
        self.rows = nn.Parameter(torch.randn(ROWS, width))
        self.filter = nn.Parameter(torch.randn(POSITIONS, width))
        self.register_buffer("edges", torch.linspace(-2, 2, ROWS - 1))
        self.register_buffer("angles", torch.rand(POSITIONS, width // 2))
        self.register_buffer("lower", torch.ones(POSITIONS, POSITIONS, dtype=torch.bool).tril())
        self.register_buffer("order", torch.randperm(width))


Function = Callable[[Tensor, Tensor, Weights], Tensor]
"""u = W h + b, the branch's entry h, and weights → a value of u's shape [batch, pos, width]."""


@dataclass(frozen=True)
class Gate:
    """One way to gate, and what it is algebraically."""

    name: str
    function: Function
    affine: bool = False
    """Affine in h, u being affine in it."""


GATES: list[Gate] = []


def gate(affine: bool = False) -> Callable[[Function], Function]:
    """Enter a function into the table under its own name."""

    def enter(function: Function) -> Function:
        GATES.append(Gate(function.__name__, function, affine))
        return function

    return enter


# Thresholds


@gate()
def jump_relu(u, h, w):
    return u * (u > w.threshold)


@gate()
def jump_relu_of_floats(u, h, w):
    return u * (u > w.threshold).to(u.dtype)


@gate()
def relu_by_comparison(u, h, w):
    return u * (u > 0)


@gate()
def gate_read_off_the_stream(u, h, w):
    return u * (h[..., : u.shape[-1]] > 0)


@gate()
def relu_by_masked_fill(u, h, w):
    return u.masked_fill(u < 0, 0.0)


@gate()
def relu_in_place(u, h, w):
    u = u.clone()
    u[u < 0] = 0
    return u


@gate()
def leaky_by_where(u, h, w):
    return torch.where(u > 0, u, 0.1 * u)


@gate()
def hardshrink_by_where(u, h, w):
    return torch.where(u.abs() > 0.5, u, torch.zeros_like(u))


@gate()
def band_by_boolean_algebra(u, h, w):
    inside = torch.logical_and(u > -0.5, torch.logical_not(u >= 0.8)) | (u.roll(1, -1) > 1)
    return u * inside


@gate()
def count_of_the_positive(u, h, w):
    return u + (u > 0).sum(-1, keepdim=True) / 3


@gate()
def any_position(u, h, w):
    return torch.where((u > 1).any(-1, keepdim=True), u, -u)


@gate()
def nan_is_mended(u, h, w):
    root = torch.sqrt(u)
    return torch.where(torch.isnan(root), torch.zeros_like(u), root + u)


@gate()
def clipped_by_minimum(u, h, w):
    return torch.minimum(u, w.threshold.abs())


# Steps


@gate()
def sign(u, h, w):
    return u + torch.sign(u)


@gate()
def rounded(u, h, w):
    return torch.round(3 * u) / 3


@gate()
def floor(u, h, w):
    return torch.floor(2 * u) - torch.ceil(u)


@gate()
def integers_and_back(u, h, w):
    return u + (4 * u).long().to(u.dtype) / 4


@gate()
def integer_arithmetic(u, h, w):
    codes = (3 * u).to(torch.int32)
    return ((codes * 5 + 2) % 7 - codes // 2).to(u.dtype)


@gate()
def look_up_in_buckets(u, h, w):
    codes = torch.bucketize(u.sum(-1), w.edges)
    return w.rows[codes]


@gate()
def embedding_of_a_code(u, h, w):
    codes = (2 * u.sum(-1)).round().long().clamp(-ROWS // 2, ROWS // 2 - 1) + ROWS // 2
    return F.embedding(codes, w.rows)


@gate()
def embedding_of_the_argmax(u, h, w):
    return u + F.embedding(u.argmax(-1), w.rows)


@gate()
def nearest_row(u, h, w):
    return w.rows[(u[..., None, :] - w.rows).square().sum(-1).argmin(-1)]


# Order


@gate()
def top_k_by_scatter(u, h, w):
    values, indices = u.topk(2, -1)
    return torch.zeros_like(u).scatter(-1, indices, values)


@gate()
def top_k_by_threshold(u, h, w):
    return u * (u >= u.topk(2, -1).values[..., -1:])


@gate()
def kth_value(u, h, w):
    return torch.where(u > u.kthvalue(3, -1, keepdim=True).values, u, torch.zeros_like(u))


@gate()
def median(u, h, w):
    return u * (u > u.median(-1, keepdim=True).values)


@gate()
def one_hot_of_the_argmax(u, h, w):
    return u * F.one_hot(u.argmax(-1), u.shape[-1])


@gate()
def argsort_and_gather(u, h, w):
    return u.gather(-1, u.argsort(-1)) * w.threshold


@gate()
def sorted_values(u, h, w):
    return u.sort(-1).values * w.threshold


@gate()
def ranks(u, h, w):
    return u * (1 + u.argsort(-1).argsort(-1))


@gate()
def running_maximum(u, h, w):
    return torch.cummax(u, -1).values


@gate()
def routed_by_sorting(u, h, w):
    order = u[..., 0].argsort(-1)
    mixed = torch.take_along_dim(u, order[..., None], 1).cumsum(1)
    return torch.take_along_dim(mixed, order.argsort(-1)[..., None], 1)


# Attention


@gate()
def attention_to_the_best(u, h, w):
    scores = u @ u.mT / 2
    kept = scores >= scores.topk(2, -1).values[..., -1:]
    return scores.masked_fill(~kept, -torch.inf).softmax(-1) @ u


@gate()
def attention_under_a_bool_mask_of_its_own(u, h, w):
    mask = w.lower & ((u[..., :1] > 0).mT | torch.eye(u.shape[1], dtype=torch.bool))
    return F.scaled_dot_product_attention(u, u, u, attn_mask=mask)


@gate()
def hard_attention(u, h, w):
    best = (u @ u.mT).argmax(-1)
    return torch.take_along_dim(u, best[..., None], 1)


# Experts


@gate()
def best_expert_by_gather(u, h, w):
    best = F.linear(u, w.router).argmax(-1)
    return (w.experts[best] @ u[..., None]).squeeze(-1)


@gate()
def two_experts_by_gather(u, h, w):
    share, chosen = F.linear(u, w.router).softmax(-1).topk(2, -1)
    each = torch.einsum("bnkij,bnj->bnki", w.experts[chosen], u)
    return (share[..., None] * each).sum(-2)


@gate()
def two_experts_by_mask(u, h, w):
    scores = F.linear(u, w.router)
    share, chosen = scores.topk(2, -1)
    dense = torch.zeros_like(scores).scatter(-1, chosen, share.softmax(-1))
    out = torch.zeros_like(u)
    for expert in range(EXPERTS):
        out = out + dense[..., expert, None] * torch.tanh(F.linear(u, w.experts[expert]))
    return out


@gate()
def best_expert_by_index_add(u, h, w):
    rows = u.reshape(-1, u.shape[-1])
    share, chosen = F.linear(rows, w.router).softmax(-1).max(-1)
    out = torch.zeros_like(rows)
    places = torch.arange(rows.shape[0])
    for expert in range(EXPERTS):
        mine = (chosen == expert).to(u.dtype)[:, None]
        out = out.index_add(0, places, mine * share[:, None] * F.linear(rows, w.experts[expert]))
    return out.view_as(u)


@gate()
def experts_over_their_own_rows(u, h, w):
    rows = u.reshape(-1, u.shape[-1])
    best = F.linear(rows, w.router).argmax(-1)
    out = torch.zeros_like(rows)
    for expert in range(EXPERTS):
        (places,) = torch.where(best == expert)
        out = out.index_add(0, places, torch.tanh(F.linear(rows[places], w.experts[expert])))
    return out.view_as(u)


@gate()
def experts_over_sorted_rows(u, h, w):
    rows = u.reshape(-1, u.shape[-1])
    best = F.linear(rows, w.router).argmax(-1)
    order = best.argsort(stable=True)
    done = torch.tanh((w.experts[best[order]] @ rows[order][..., None]).squeeze(-1))
    return torch.zeros_like(rows).index_copy(0, order, done).view_as(u)


@gate()
def experts_by_one_hot(u, h, w):
    choice = F.one_hot(F.linear(u, w.router).argmax(-1), EXPERTS).to(u.dtype)
    return torch.einsum("bne,eij,bnj->bni", choice, w.experts, u)


# Complex numbers


@gate(affine=True)
def fourier_mixer(u, h, w):
    return torch.fft.fft(torch.fft.fft(u, dim=-1), dim=-2).real


@gate(affine=True)
def fourier_mixer_of_two_dimensions(u, h, w):
    return torch.fft.fftn(u, dim=(1, 2)).imag


@gate(affine=True)
def long_convolution(u, h, w):
    n = u.shape[1]
    spectrum = torch.fft.rfft(u, 2 * n, dim=1) * torch.fft.rfft(w.filter, 2 * n, dim=0)
    return torch.fft.irfft(spectrum, 2 * n, dim=1)[:, :n]


@gate(affine=True)
def rotation_of_complex_pairs(u, h, w):
    pairs = torch.view_as_complex(u.unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(w.angles), w.angles)).flatten(-2)


@gate()
def rotation_by_its_own_angle(u, h, w):
    pairs = torch.view_as_complex(u.unflatten(-1, (-1, 2)))
    turned = pairs * torch.polar(torch.ones_like(pairs.real), u[..., : pairs.shape[-1]])
    return torch.view_as_real(turned).flatten(-2)


@gate()
def modulus_and_argument(u, h, w):
    pairs = torch.view_as_complex(u.unflatten(-1, (-1, 2)))
    return torch.cat((pairs.abs(), pairs.angle()), -1)


@gate()
def modulus_of_the_spectrum(u, h, w):
    return torch.fft.fft(u, dim=-1).abs()


@gate()
def filter_of_the_strong_frequencies(u, h, w):
    spectrum = torch.fft.rfft(u, dim=1)
    return torch.fft.irfft(spectrum * (spectrum.abs() > 1), u.shape[1], dim=1)


# Plain ones


@gate()
def root_of_softplus(u, h, w):
    return torch.sqrt(F.softplus(u))


@gate()
def swish_of_its_own(u, h, w):
    return u * torch.sigmoid(1.7 * u)


@gate()
def product(u, h, w):
    return u * u.roll(1, -1)


@gate(affine=True)
def mask_of_a_constant(u, h, w):
    return torch.where(w.threshold > 0, u, 0.5 * u)


@gate(affine=True)
def fill_by_a_constant(u, h, w):
    return u.masked_fill(w.threshold > 0, 0.7)


@gate(affine=True)
def permutation(u, h, w):
    return u[..., w.order].flip(1)


@gate(affine=True)
def running_sum(u, h, w):
    return u.cumsum(1)


class Gated(nn.Module):
    """h + V gate(W h + b)."""

    def __init__(self, gate: Gate, width: int = WIDTH) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, width), nn.Linear(width, width, bias=False)
        self.weights = Weights(width)
        self.gate = gate

    def forward(self, h: Tensor) -> Tensor:
        return h + self.down(self.gate.function(self.up(h), h, self.weights))


def gated(gate: Gate) -> nn.Module:
    """Such a block with random weights, the same on every call, in float64."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(zlib.crc32(gate.name.encode()))
        return Gated(gate).double().eval()
