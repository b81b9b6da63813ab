"""Weights of centres by token: the best ones on the simplex, and those that a tensor gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jetgraph.algebra.passages import Passage
from jetgraph.compilation.hull import nearest_in_hull, without_rounding
from jetgraph.errors import DomainError, InputError
from jetgraph.running.reals import in_double, square


def optimal_weights(values: Sequence[Tensor], own: Tensor, tokens: Sequence[int], at: str) -> Tensor:
    """By token, the w on the simplex that minimise ‖own − Σ w_i values_i‖, exactly.

    Constants, as far as gradients go.

    Parameters
    ----------
    values
        The jets of all centres.
    own
        What they are to make up.
    tokens
        Dimensions, counted from the end, along which weights may differ.
    at
        The place, for messages.

    Returns
    -------
    Tensor
        [centre, *own], the size of every dimension being 1 that is not among `tokens`.

    Raises
    ------
    DomainError
        A jet is larger than any number.
    """
    with torch.no_grad():
        grams = _grams([value.expand_as(own) for value in values], own, tokens)
        weights: Any = _Nearest.apply(*grams, at, torch.finfo(own.dtype).eps)
    return weights.mT.to(own).reshape(len(values), *_sizes(own, tokens))


class _Nearest(torch.autograd.Function):
    """By token the weights [token, centre] of the point that is nearest in a hull, from inner products [token, centre,
    centre] of errors of a value, and its square [token]: on the host, of what function transforms wrap as well.
    """

    @staticmethod
    def forward(grams: Tensor, sizes: Tensor, at: str, eps: float) -> Tensor:
        found = grams.cpu().numpy()
        broken = ~np.isfinite(np.diagonal(found, axis1=-2, axis2=-1)).all(0)
        if broken.any():
            raise DomainError(
                f"the jet of centre {int(broken.argmax())} at {at!r} is larger than any number, so there "
                "are no best weights: take a lower order, or scale='matched'"
            )
        found = without_rounding(found, sizes.cpu().numpy(), eps)
        return torch.from_numpy(np.stack([nearest_in_hull(gram) for gram in found])).to(grams.device)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        return None

    @staticmethod
    def vmap(info: Any, in_dims: Any, grams: Tensor, sizes: Tensor, at: str, eps: float) -> Any:
        several = zip((grams, sizes), in_dims, strict=False)
        apart = [
            value.expand(info.batch_size, *value.shape) if dim is None else value.movedim(dim, 0)
            for value, dim in several
        ]
        made: Any = _Nearest.apply(*(value.flatten(0, 1) for value in apart), at, eps)
        return made.unflatten(0, apart[0].shape[:2]), 0


def _grams(values: Sequence[Tensor], own: Tensor, tokens: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Inner products of values − own over all dimensions but those of tokens, [token, centre, centre], and ‖own‖²,
    [token], in float64.
    """
    others = [dim for dim in range(-own.dim(), 0) if dim not in tokens]
    kept = [dim for dim in range(-own.dim(), 0) if dim in tokens]

    def rows(value: Tensor) -> Tensor:
        moved = in_double(value).permute(*(dim + own.dim() for dim in (*kept, *others)))
        return moved.flatten(len(kept)).flatten(0, max(len(kept) - 1, 0)) if kept else moved.reshape(1, -1)

    target = rows(own)
    errors = torch.stack([rows(value) - target for value in values], dim=1)
    gram = (errors @ errors.mH).real if errors.is_complex() else errors @ errors.mT
    return gram, square(target).sum(-1)


def _sizes(own: Tensor, tokens: Sequence[int]) -> list[int]:
    return [own.shape[dim] if dim in tokens else 1 for dim in range(-own.dim(), 0)]


def given_weights(passage: Passage, like: Tensor, tokens: Sequence[int]) -> Tensor:
    """The weights of a tensor [centre] or [*tokens, centre], scaled to sum to 1: [centre, *like], as `optimal_weights`.

    Raises
    ------
    InputError
        The tensor has other sizes than the tokens.
    """
    weights = torch.tensor(passage.rule.weighting, dtype=torch.float64)
    weights = (weights / weights.sum(-1, keepdim=True)).movedim(-1, 0)
    sizes = _sizes(like, tokens)
    kept = [size for dim, size in zip(range(-like.dim(), 0), sizes, strict=True) if dim in tokens]
    if weights.dim() > 1:
        if list(weights.shape[1:]) != kept:
            raise InputError(
                f"the tensor of weights at {passage.site.alias!r} has the sizes {list(weights.shape[1:])} before its "
                f"centres, but the tokens there are {kept}: give [{', '.join(map(str, [*kept, len(weights)]))}]"
            )
        weights = weights.reshape(len(weights), *sizes)
    else:
        weights = weights.reshape(-1, *[1] * like.dim())
    return weights.to(like)
