"""Textbook definitions of ops on arrays of mpmath numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mpmath as mp
import numpy as np

Array = np.ndarray


def each(function: Callable[[Any], Any]) -> Callable[..., Array]:
    """A function of one number, entry by entry; further arguments are left to the caller."""
    vectorized = np.frompyfunc(function, 1, 1)
    return lambda x, *_, **__: np.asarray(vectorized(x), dtype=object)


exp, log, sqrt, tanh, erf = (each(f) for f in (mp.exp, mp.log, mp.sqrt, mp.tanh, mp.erf))


def sigmoid(x: Array) -> Array:
    return 1 / (1 + exp(-x))


def normal_cdf(x: Array) -> Array:
    return (1 + erf(x / mp.sqrt(2))) / 2


def gelu(x: Array, *, approximate: str = "none") -> Array:
    if approximate == "tanh":
        return x / 2 * (1 + tanh(mp.sqrt(2 / mp.pi) * (x + mp.mpf(0.044715) * x**3)))
    return x * normal_cdf(x)


def softplus(x: Array, beta: float = 1, threshold: float = 20) -> Array:
    curve = np.frompyfunc(lambda v: v if v * beta > threshold else mp.log(1 + mp.exp(beta * v)) / beta, 1, 1)
    return np.asarray(curve(x), dtype=object)


def elu(x: Array, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Array:
    return each(lambda v: scale * v if v > 0 else scale * alpha * (mp.exp(input_scale * v) - 1))(x)


def mean(x: Array, axes: Any) -> Array:
    axes = tuple(axes) if isinstance(axes, (list, tuple)) else (axes,)
    count = int(np.prod([x.shape[axis] for axis in axes]))
    return np.sum(x, axis=axes, keepdims=True) / count


def normalised(x: Array, axes: Any, eps: float, centred: bool = True) -> Array:
    away = x - mean(x, axes) if centred else x
    return away / sqrt(mean(away * away, axes) + mp.mpf(eps))


def statistics(x: Array, axes: Any, eps: float) -> list[Array]:
    """Mean and reciprocal deviation, dims kept."""
    away = x - mean(x, axes)
    return [mean(x, axes), 1 / sqrt(mean(away * away, axes) + mp.mpf(eps))]


def with_affine(x: Array, weight: Any, bias: Any) -> Array:
    if weight is not None:
        x = x * weight
    return x if bias is None else x + bias


def layer_norm(x: Array, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: Any) -> Array:
    return with_affine(normalised(x, tuple(range(-len(shape), 0)), eps), weight, bias)


def rms_norm(x: Array, shape: Any, weight: Any = None, eps: float | None = None) -> Array:
    eps = float(np.finfo(np.float64).eps) if eps is None else eps
    return with_affine(normalised(x, tuple(range(-len(shape), 0)), eps, centred=False), weight, None)


def channels(value: Any, x: Array) -> Any:
    return None if value is None else np.reshape(value, (1, -1, *[1] * (x.ndim - 2)))


def group_norm(x: Array, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: Any) -> Array:
    split = x.reshape(x.shape[0], groups, -1)
    whole = normalised(split, -1, eps).reshape(x.shape)
    return with_affine(whole, channels(weight, x), channels(bias, x))


def batch_statistics_norm(x: Array, weight: Any, bias: Any, eps: float) -> Array:
    return with_affine(normalised(x, (0, *range(2, x.ndim)), eps), channels(weight, x), channels(bias, x))


def softmax(x: Array, axis: int = -1) -> Array:
    powers = exp(x)
    return powers / np.sum(powers, axis=axis, keepdims=True)


def logsumexp(x: Array, axes: Any, keepdim: bool = False) -> Array:
    axes = tuple(axes) if isinstance(axes, (list, tuple)) else (axes,)
    return log(np.asarray(np.sum(exp(x), axis=axes, keepdims=keepdim), dtype=object))


def attention(
    q: Array,
    k: Array,
    v: Array,
    mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Array:
    if enable_gqa:
        k = np.repeat(k, q.shape[-3] // k.shape[-3], axis=-3)
        v = np.repeat(v, q.shape[-3] // v.shape[-3], axis=-3)
    factor = 1 / mp.sqrt(q.shape[-1]) if scale is None else mp.mpf(scale)
    scores = factor * np.matmul(q, np.swapaxes(k, -1, -2))
    allowed = np.ones(scores.shape, dtype=bool)
    if is_causal:
        allowed = allowed & np.tril(np.ones(scores.shape[-2:], dtype=bool))
    if mask is not None and np.asarray(mask).dtype == bool:
        allowed = allowed & mask
    elif mask is not None:
        scores = scores + mask
    powers = np.where(allowed, exp(scores), mp.mpf(0))
    return np.matmul(powers / np.sum(powers, axis=-1, keepdims=True), v)


def variance(x: Array, axes: Any, correction: float, keepdim: bool) -> Array:
    axes = tuple(range(x.ndim)) if axes is None else tuple(axes)
    away = x - mean(x, axes)
    count = int(np.prod([x.shape[axis] for axis in axes]))
    return np.asarray(np.sum(away * away, axis=axes, keepdims=keepdim) / (count - correction), dtype=object)


def vector_norm(x: Array, p: float = 2, axes: Any = None, keepdim: bool = False) -> Array:
    axes = tuple(range(x.ndim)) if axes is None else tuple(axes)
    if p == mp.inf:
        return np.max(np.abs(x), axis=axes, keepdims=keepdim)
    total = np.asarray(np.sum(np.abs(x) ** mp.mpf(p), axis=axes, keepdims=keepdim), dtype=object)
    return total ** (1 / mp.mpf(p))


def _halves(x: Array, h: Array, w_ih: Array, w_hh: Array, b_ih: Array, b_hh: Array, parts: int) -> list[list[Array]]:
    """(W x + b) and (W' h + b') cut into parts along the features."""
    read, kept = np.matmul(x, w_ih.T) + b_ih, np.matmul(h, w_hh.T) + b_hh
    return [np.split(value, parts, axis=1) for value in (read, kept)]


def gru_cell(x: Array, h: Array, *weights: Array) -> Array:
    read, kept = _halves(x, h, *weights, 3)
    reset, update = (sigmoid(read[i] + kept[i]) for i in (0, 1))
    return (1 - update) * tanh(read[2] + reset * kept[2]) + update * h


def lstm_cell(x: Array, state: list[Array], *weights: Array) -> list[Array]:
    i, f, g, o = (read + kept for read, kept in zip(*_halves(x, state[0], *weights, 4), strict=True))
    cell = sigmoid(f) * state[1] + sigmoid(i) * tanh(g)
    return [sigmoid(o) * tanh(cell), cell]


def rnn_cell(x: Array, h: Array, *weights: Array) -> Array:
    ((read,), (kept,)) = _halves(x, h, *weights, 1)
    return np.where(read + kept > 0, read + kept, mp.mpf(0))


def _layer(cell: Any, x: Array, starts: Array, params: list[Array], layers: int, both: bool, batch_first: bool) -> Any:
    """A recurrent layer: outputs, and the last states by layer and direction, from a cell that gives its state."""
    steps = list(np.moveaxis(x, 1, 0) if batch_first else x)
    ends: list[Any] = []
    for _ in range(layers):
        outputs = []
        for backwards in (False, True)[: 1 + both]:
            at, state = len(ends), starts[len(ends)]
            made = []
            for step in steps[::-1] if backwards else steps:
                state = cell(step, state, *params[4 * at : 4 * at + 4])
                made.append(state[0])
            outputs.append(made[::-1] if backwards else made)
            ends.append(state)
        steps = [np.concatenate(parts, -1) for parts in zip(*outputs, strict=True)]
    return [np.stack(steps, 1 if batch_first else 0), *(np.stack(parts) for parts in zip(*ends, strict=True))]


def _alone(cell: Any) -> Any:
    return lambda x, state, *weights: [cell(x, state[0], *weights)]


def gru(
    x: Array, h: Array, params: list[Array], biases: bool, layers: int, drop: float, train: bool, *how: bool
) -> Any:
    return _layer(_alone(gru_cell), x, [[state] for state in h], params, layers, *how)


def lstm(
    x: Array, h: list[Array], params: list[Array], biases: bool, layers: int, drop: float, train: bool, *how: bool
) -> Any:
    return _layer(lstm_cell, x, list(zip(*h, strict=True)), params, layers, *how)


def rnn_relu(
    x: Array, h: Array, params: list[Array], biases: bool, layers: int, drop: float, train: bool, *how: bool
) -> Any:
    return _layer(_alone(rnn_cell), x, [[state] for state in h], params, layers, *how)


def rnn(
    x: Array, h: Array, params: list[Array], biases: bool, layers: int, drop: float, train: bool, *how: bool
) -> Any:
    def cell(x: Array, h: Array, w_ih: Array, w_hh: Array, b_ih: Array, b_hh: Array) -> Array:
        return tanh(np.matmul(x, w_ih.T) + b_ih + np.matmul(h, w_hh.T) + b_hh)

    return _layer(_alone(cell), x, [[state] for state in h], params, layers, *how)
