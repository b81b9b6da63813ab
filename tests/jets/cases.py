"""At least one case for every registered rule: the op, its arguments, which of them vary, and the oracle."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import mpmath as mp
import numpy as np
import torch
import transformers.integrations.moe  # registers transformers' grouped matmul

from jetgraph.jets.registry import find_op
from tests.jets import definitions as d

assert transformers.integrations.moe

Style = Literal["dyadic", "smooth", "whole"]


@dataclass(frozen=True)
class V:
    """A tensor argument that may vary. `low` and `high` bound its centre where the op has a domain."""

    shape: tuple[int, ...]
    low: float = -2.0
    high: float = 2.0

    def coefficients(self, style: Style, seed: int) -> np.ndarray:
        """Seven coefficients. Dyadic: the centre's entries lie 1/4 apart and off every multiple of 1/4, and no entry
        moves by 1/8 for |t| ≤ 3, so the active piece of a piecewise op stays the same. Whole: small whole numbers in
        float32, for an op that takes no float64 and is exact on them."""
        random = np.random.default_rng(seed)
        count = math.prod(self.shape)
        if style == "dyadic":
            first = (random.permutation(count) - count // 2) / 4 + 1 / 8
            rest = random.integers(-7, 8, size=(6, count)) / 65536
        elif style == "whole":
            return random.integers(-3, 4, size=(7, *self.shape)).astype(np.float32)
        else:
            first = random.uniform(self.low, self.high, size=count)
            rest = random.uniform(-1, 1, size=(6, count))
        return np.concatenate([first[None], rest]).reshape(7, *self.shape)


@dataclass(frozen=True)
class Case:
    op: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    definition: Callable[..., Any] | None = None
    degree: int = 6
    plain: bool = False
    """The rule gives plain values, those of the op at the centre."""
    fixed: tuple[int, ...] = ()
    """Numbers of `V`s that never vary."""
    reach: float = 0.0
    """How far a step goes that shows the op not to be affine; 0: a short way up, which stays in every domain."""
    whole: bool = False
    name: str = ""

    @property
    def style(self) -> Style:
        return "whole" if self.whole else "dyadic" if self.definition is None else "smooth"


CASES: list[Case] = []


def _op(name: str | Callable[..., Any]) -> Callable[..., Any]:
    if callable(name):
        return name
    return find_op(name if name.count(".") == 2 else f"aten.{name}")


def _add(name: Any, args: tuple[Any, ...], **fields: Any) -> None:
    op = _op(name)
    label = name if isinstance(name, str) else op.__name__
    same = sum(case.op is op for case in CASES)
    CASES.append(Case(op, args, name=f"{label}-{same}" if same else label, **fields))


def poly(name: Any, *args: Any, degree: int = 6, fixed: tuple[int, ...] = (), **kwargs: Any) -> None:
    """The plain op is the oracle: it is a polynomial of this degree in t while the piece stays."""
    _add(name, args, degree=degree, fixed=fixed, kwargs=kwargs)


def by_definition(
    name: Any, definition: Callable[..., Any], *args: Any, reach: float = 0.0, whole: bool = False, **kwargs: Any
) -> None:
    """A definition on arrays of mpmath numbers is the oracle."""
    _add(name, args, definition=definition, reach=reach, whole=whole, kwargs=kwargs)


def plain(name: Any, *args: Any, **kwargs: Any) -> None:
    """The rule gives the op's plain value at the centre."""
    _add(name, args, plain=True, kwargs=kwargs)


def ints(*values: Any) -> torch.Tensor:
    return torch.tensor(values)


X = V((2, 3))
P = V((2, 3), 0.3, 3.0)
P4 = V((4,), 0.3, 1.5)
U = V((2, 3), -0.8, 0.8)
CUBE = V((2, 3, 4))
IMAGE = V((2, 2, 4, 4))
VOLUME = V((1, 2, 4, 2, 2))
SIGNAL = V((2, 3, 8))
MASK = torch.tensor([[True, False, True], [False, True, True]])

# Shapes and selections

poly("view.default", CUBE, [4, 6])
poly("view.default", CUBE, [-1, 4])
poly("view_copy.default", CUBE, [6, 4])
poly("_unsafe_view.default", CUBE, [6, 4])
poly("reshape.default", CUBE, [4, -1])
poly("reshape.default", V((1,)), [])
poly("transpose.int", CUBE, 0, -1)
poly("swapaxes.default", CUBE, 0, 1)
poly("swapdims.default", CUBE, -1, 1)
poly("movedim.int", CUBE, 0, -1)
poly("movedim.intlist", CUBE, [0, 1], [-1, 0])
poly("moveaxis.int", CUBE, 0, 2)
poly("moveaxis.intlist", CUBE, [0], [1])
poly("unsqueeze.default", CUBE, 0)
poly("unsqueeze.default", CUBE, -1)
poly("unsqueeze.default", V(()), 0)
poly("squeeze.dim", V((1, 3)), 0)
poly("squeeze.dim", V((1, 3)), 1)
poly("squeeze.dims", V((1, 3, 1)), [0, 2])
poly("squeeze.default", V((1, 3, 1)))
poly("flatten.using_ints", CUBE)
poly("flatten.using_ints", CUBE, 1)
poly("unflatten.int", CUBE, -1, [2, 2])
poly("unflatten.int", CUBE, 2, [2, -1])
poly("ravel.default", CUBE)
poly("select.int", CUBE, 1, 2)
poly("slice.Tensor", CUBE, 2, 1, 4, 2)
poly("slice.Tensor", CUBE)
poly("slice.Tensor", CUBE, -1, -2)
poly("narrow.default", CUBE, 1, 1, 2)
poly("split.Tensor", CUBE, 2, 2)
poly("split.Tensor", CUBE, 1)
poly("split.sizes", CUBE, [1, 3], -1)
poly("split_with_sizes.default", CUBE, [1, 3], 2)
poly("tensor_split.sections", CUBE, 2, 1)
poly("tensor_split.indices", CUBE, [1, 2], 1)
poly("chunk.default", CUBE, 2, -1)
poly("unbind.int", CUBE, 1)
poly("unbind.int", CUBE)
poly("diagonal.default", CUBE)
poly("diagonal.default", CUBE, 1, 1, 2)
poly("diagonal.default", CUBE, 0, -2, -1)
poly("index_select.default", CUBE, 1, ints(2, 0))
poly("flip.default", CUBE, [0, -1])
poly("unfold.default", CUBE, 2, 2, 1)
poly("as_strided.default", X, [3, 2], [1, 3])
poly("repeat_interleave.self_int", X, 2, 1)
poly("repeat_interleave.self_int", X, 2)
poly("repeat_interleave.self_Tensor", X, ints(1, 2, 0), 1)
poly("trace.default", V((3, 3)))
poly("rot90.default", X)
poly("take.default", X, ints(0, 5, 5))
poly("im2col.default", IMAGE, [2, 2], [1, 1], [0, 0], [2, 2])
poly("col2im.default", V((1, 8, 4)), [4, 4], [2, 2], [1, 1], [0, 0], [2, 2])
poly("diag_embed.default", X)
poly("permute.default", CUBE, [2, -3, 1])
poly("t.default", X)
poly("t.default", V((3,)))
poly("numpy_T.default", CUBE)
poly("mT.default", CUBE)
poly("expand.default", V((2, 1)), [4, 2, 3])
poly("expand.default", V((1,)), [2, -1])
poly("broadcast_to.default", V((2, 1)), [4, 2, 3])
poly("broadcast_tensors.default", [V((2, 1)), V((4, 1, 3)), torch.ones(3, dtype=torch.float64)])
poly("expand_as.default", V((3,)), V((2, 3)))
poly("view_as.default", X, V((3, 2)))
poly("reshape_as.default", X, V((6,)))
poly("repeat.default", X, [2, 1, 2])
poly("tile.default", X, [2])
poly("tile.default", X, [2, 1, 1])
poly("roll.default", CUBE, [1, -1], [0, -1])
poly("roll.default", CUBE, [2])
poly("pixel_shuffle.default", V((1, 4, 2, 2)), 2)
poly("pixel_unshuffle.default", V((1, 1, 4, 4)), 2)
poly("tril.default", V((3, 3)))
poly("triu.default", V((2, 3, 3)), 1)
poly(operator.getitem, [X, X], 1, fixed=(0,))
poly("index.Tensor", CUBE, [ints(1, 0, 1)])
poly("index.Tensor", CUBE, [None, ints(2, 0)])
poly("index.Tensor", CUBE, [ints(1, 0), None, ints(3, 0)])
poly("index.Tensor", V((2, 2, 2, 3)), [ints(1, 0), None, None, ints(2, 0)])
poly("index.Tensor", X, [MASK])
poly("_unsafe_index.Tensor", CUBE, [None, ints(2, 0), ints(1, 1)])
poly("gather.default", X, 1, ints([0, 2], [1, 1]))
poly("gather.default", X, -2, ints([0, 1, 1]))
poly("take_along_dim.default", X, ints([0, 2], [1, 1]), 1)
poly("take_along_dim.default", X, ints(0, 2))
poly("masked_select.default", X, MASK)
poly("embedding.default", V((5, 3)), ints([0, 4], [2, 2]))

# Copies and casts

for _name in ("alias", "clone", "contiguous", "detach", "lift_fresh_copy", "positive", "neg"):
    poly(f"{_name}.default", X)
for _name in ("clone", "contiguous", "_to_copy"):
    poly(f"{_name}.default", V((1, 2, 2, 2)), memory_format=torch.channels_last)
poly("_to_copy.default", X, dtype=torch.float64)
plain("_to_copy.default", X, dtype=torch.int64)
poly("to.dtype", X, torch.float64)
poly("to.dtype_layout", X, dtype=torch.float64)
poly("to.device", X, torch.device("cpu"), torch.float64)
poly("to.other", X, V((1,)))
poly("type_as.default", X, V((1,)))
poly("copy.default", V((2, 3)), V((3,)))
poly("dropout.default", X, 0.5, False)
poly("feature_dropout.default", X, 0.5, False)
poly("alpha_dropout.default", X, 0.5, False)
poly("native_dropout.default", X, 0.5, False)

# Sums

poly("sum.default", X)
poly("sum.dim_IntList", CUBE, [0, -1])
poly("sum.dim_IntList", CUBE, None)
poly("sum.dim_IntList", CUBE, [1], True)
poly("mean.default", V((2, 4)))
poly("mean.dim", CUBE, [0, 2])
poly("mean.dim", CUBE, [-1], True)
poly("cumsum.default", CUBE, 1)
poly("diff.default", CUBE)
poly("diff.default", CUBE, 2, 1, V((2, 1, 4)), V((2, 2, 4)))
poly("diff.default", CUBE, 0, 1)
poly("add.Tensor", X, V((3,)))
poly("add.Tensor", V((3,)), V((2, 4, 3)), alpha=2)
poly("add.Tensor", X, 1.5)
poly("add.Scalar", X, 0.5, 2)
poly("sub.Tensor", X, V((2, 1)), alpha=0.5)
poly("sub.Scalar", X, 0.5)
poly("rsub.Scalar", X, 0.5, 2)
poly("rsub.Tensor", X, V((3,)))
poly("lerp.Scalar", X, X, 0.25)
poly("cat.default", [X, torch.ones(1, 3, dtype=torch.float64), V((2, 3))])
poly("cat.default", [X, V((2, 1))], -1)
poly("stack.default", [X, V((2, 3))], 1)
poly("stack.default", [X, torch.ones(2, 3, dtype=torch.float64)], -1)
poly("where.self", MASK, X, V((3,)))
poly("where.self", MASK, V(()), V((2, 2, 3)))
poly("where.ScalarSelf", MASK, 0.5, X)
poly("where.ScalarOther", MASK, X, 0.5)
poly("masked_fill.Scalar", X, MASK, 0)
poly("masked_fill.Scalar", X, MASK, -1.5)
poly("masked_fill.Tensor", X, MASK, V(()))
poly("index_put.default", X, [ints(1)], V((1, 3)))
poly("index_put.default", X, [ints(1, 1), ints(0, 0)], V((2,)), True)
poly("scatter.src", X, 1, ints([0, 2], [1, 0]), V((2, 2)))
poly("scatter_add.default", X, 1, ints([0, 0], [1, 2]), V((2, 2)))
poly("scatter.value", X, 1, ints([0, 2], [1, 0]), 0.5)
poly("slice_scatter.default", X, V((2, 2)), 1, 0, 2)
poly("select_scatter.default", X, V((3,)), 0, 1)
poly("diagonal_scatter.default", X, V((2,)))
poly("as_strided_scatter.default", X, V((2, 2)), [2, 2], [3, 1], 1)
poly("index_add.default", X, 1, ints(0, 0), V((2, 2)), alpha=2)
poly("index_copy.default", X, 1, ints(2, 0), V((2, 2)))
poly("index_fill.int_Scalar", X, 1, ints(2), 0.5)
poly("masked_scatter.default", X, MASK, V((2, 3)))
poly("constant_pad_nd.default", X, [1, 2], 0.0)
poly("constant_pad_nd.default", X, [1, -1], 0.5)
poly("pad.default", X, [1, 2])
poly("pad.default", SIGNAL, [1, 2], "reflect")
poly("pad.default", IMAGE, [1, 1, 1, 1], "circular")
poly("reflection_pad1d.default", SIGNAL, [2, 1])
poly("reflection_pad2d.default", IMAGE, [2, 1, 1, 0])
poly("replication_pad1d.default", SIGNAL, [2, 1])
poly("replication_pad2d.default", IMAGE, [2, 1, 1, 0])
poly("avg_pool1d.default", SIGNAL, [2])
poly("avg_pool1d.default", V((3, 8)), [2])
poly("avg_pool2d.default", IMAGE, [2, 2])
poly("avg_pool3d.default", VOLUME, [2, 2, 2])
poly("adaptive_avg_pool1d.default", SIGNAL, [2])
poly("adaptive_avg_pool2d.default", IMAGE, [2, 1])
poly("_adaptive_avg_pool2d.default", IMAGE, [2, 2])
poly("adaptive_avg_pool3d.default", VOLUME, [2, 2, 2])
poly("_adaptive_avg_pool3d.default", VOLUME, [2, 2, 2])
poly("upsample_nearest1d.vec", SIGNAL, None, [2.0])
poly("upsample_nearest2d.vec", IMAGE, None, [2.0, 2.0])
poly("upsample_nearest2d.default", IMAGE, [8, 8])
poly("upsample_bilinear2d.vec", IMAGE, None, False, [2.0, 2.0])
poly("upsample_bilinear2d.default", IMAGE, [8, 8], False)
poly("upsample_bicubic2d.vec", IMAGE, None, False, [2.0, 2.0])
poly("upsample_linear1d.vec", SIGNAL, None, False, [2.0])

# Products

poly("mul.Tensor", X, V((3,)), degree=12)
poly("mul.Tensor", X, 1.5)
poly("mul.Tensor", V(()), X, degree=12)
poly("mul.Scalar", X, 1.5)
poly("addcmul.default", X, V((3,)), V((2, 1)), value=0.5, degree=12)
poly("lerp.Tensor", X, X, V((3,)), degree=12)
poly("matmul.default", X, V((3, 2)), degree=12)
poly("matmul.default", V((3,)), V((3,)), degree=12)
poly("matmul.default", CUBE, V((4,)), degree=12)
poly("matmul.default", V((3,)), CUBE, degree=12)
poly("matmul.default", CUBE, V((2, 1, 4, 2)), degree=12)
poly("mm.default", X, V((3, 2)), degree=12)
poly("bmm.default", CUBE, V((2, 4, 2)), degree=12)
poly("addmm.default", V((2,)), X, V((3, 2)), degree=12)
poly("addmm.default", V((2, 2)), X, V((3, 2)), beta=0.5, alpha=2, degree=12)
poly("addmv.default", V((2,)), X, V((3,)), degree=12)
poly("baddbmm.default", V((2, 1, 2)), CUBE, V((2, 4, 2)), beta=2, alpha=0.5, degree=12)
poly("linear.default", CUBE, V((2, 4)), V((2,)), degree=12)
poly("linear.default", V((4,)), V((2, 4)), degree=12)
poly("outer.default", V((3,)), V((2,)), degree=12)
poly("dot.default", V((3,)), V((3,)), degree=12)
poly("vdot.default", V((3,)), V((3,)), degree=12)
poly("inner.default", X, V((4, 3)), degree=12)
poly("mv.default", X, V((3,)), degree=12)
poly("kron.default", X, V((2, 1)), degree=12)
poly("tensordot.default", CUBE, V((4, 3)), [2, 1], [0, 1], degree=12)
poly("linalg_cross.default", X, X, degree=12)
poly("linalg_vecdot.default", X, V((3,)), degree=12)
poly("einsum.default", "bij,jk->bik", [CUBE, V((4, 2))], degree=12)
poly("einsum.default", "i,j,ij->", [V((2,)), V((3,)), X], degree=18)
poly("conv1d.default", SIGNAL, V((2, 3, 3)), V((2,)), [2], [1], degree=12)
poly("conv1d.default", V((3, 8)), V((2, 3, 3)), V((2,)), degree=12)
poly("conv1d.padding", SIGNAL, V((3, 1, 3)), V((3,)), [1], "same", [1], 3, degree=12)
poly("conv2d.default", IMAGE, V((2, 2, 2, 2)), V((2,)), degree=12)
poly("conv2d.default", V((2, 4, 4)), V((2, 2, 2, 2)), degree=12)
poly("conv2d.padding", IMAGE, V((2, 2, 3, 3)), V((2,)), [1, 1], "same", degree=12)
poly("conv3d.default", VOLUME, V((2, 2, 2, 1, 2)), V((2,)), degree=12)
poly("conv3d.padding", VOLUME, V((2, 2, 2, 2, 2)), None, [1, 1, 1], "valid", degree=12)
poly("convolution.default", IMAGE, V((2, 2, 2, 2)), V((2,)), [1, 1], [0, 0], [1, 1], False, [0, 0], 1, degree=12)
poly("conv_transpose1d.default", SIGNAL, V((3, 2, 2)), V((2,)), [2], degree=12)
poly("conv_transpose2d.input", IMAGE, V((2, 1, 2, 2)), V((1,)), [2, 2], degree=12)
poly("conv_transpose3d.input", VOLUME, V((2, 1, 2, 1, 1)), V((1,)), degree=12)
_STATISTICS = (torch.tensor([0.5, -0.5]).double(), torch.tensor([0.75, 3.75]).double())
poly("batch_norm.default", IMAGE, V((2,)), V((2,)), *_STATISTICS, False, 0.1, 0.25, False, degree=12)
poly("batch_norm.default", IMAGE, None, None, *_STATISTICS, False, 0.1, 0.25, False)
poly("_native_batch_norm_legit_no_training.default", IMAGE, V((2,)), V((2,)), *_STATISTICS, 0.1, 0.25, degree=12)
poly(
    "_native_batch_norm_legit_no_training.default", IMAGE, None, V((2,)), V((2,)), _STATISTICS[1], 0.1, 0.25, degree=12
)
poly("transformers.grouped_mm_fallback.default", V((4, 3)), V((2, 3, 2)), ints(1, 4), degree=12)
by_definition(
    "_grouped_mm.default",
    lambda a, b, _: np.concatenate([a[:1] @ b[0], a[1:] @ b[1]]),
    V((4, 4)),
    V((2, 4, 4)),
    torch.tensor([1, 4], dtype=torch.int32),
    whole=True,
)

# Equations and determinants


def _inverse(a: np.ndarray) -> np.ndarray:
    """By elimination."""
    size = len(a)
    both = np.concatenate([a, np.eye(size, dtype=int).astype(object)], 1)
    for i in range(size):
        both[i] = both[i] / both[i, i]
        for k in range(size):
            if k != i:
                both[k] = both[k] - both[k, i] * both[i]
    return both[:, size:]


def _determinant(a: np.ndarray) -> np.ndarray:
    return np.asarray(a[0, 0] * a[1, 1] - a[0, 1] * a[1, 0], dtype=object)


SQUARE, BESIDE = V((2, 2), 0.5, 2.0), V((2, 3))
for _name in ("linalg_inv", "inverse", "linalg_inv_ex"):
    by_definition(f"{_name}.default", _inverse, SQUARE)
for _name in ("linalg_solve", "linalg_solve_ex"):
    by_definition(f"{_name}.default", lambda a, b: _inverse(a) @ b, SQUARE, BESIDE)
by_definition("linalg_solve.default", lambda a, b: _inverse(a) @ b, SQUARE, V((2,)))
by_definition("linalg_solve.default", lambda a, b, left: b @ _inverse(a), SQUARE, V((3, 2)), left=False)
by_definition(
    "linalg_solve_triangular.default", lambda a, b, upper: _inverse(np.triu(a)) @ b, SQUARE, BESIDE, upper=True
)
by_definition(
    "linalg_solve_triangular.default",
    lambda a, b, upper, left, unitriangular: b @ _inverse(np.tril(a, -1) + np.eye(3, dtype=int)),
    V((3, 3)),
    BESIDE,
    upper=False,
    left=False,
    unitriangular=True,
)
for _name in ("linalg_det", "det"):
    by_definition(f"{_name}.default", _determinant, SQUARE)
by_definition("logdet.default", lambda a: np.asarray(mp.log(a.item()), dtype=object), V((1, 1), 0.5, 2.0))
for _name in ("linalg_slogdet", "slogdet"):
    by_definition(
        f"{_name}.default",
        lambda a: [mp.sign(_determinant(a).item()), np.asarray(mp.log(abs(_determinant(a).item())), dtype=object)],
        SQUARE,
    )


def _qr(a: np.ndarray, mode: str = "reduced") -> list[np.ndarray]:
    """One reflection, as LAPACK makes it of positive numbers; of what lies beside the square the image by it."""
    x, y = a[:2, 0] / -d.sqrt(np.asarray([a[0, 0] ** 2 + a[1, 0] ** 2], dtype=object))[0]
    q = np.array([[x, y], [y, -x]], dtype=object)
    return [q, q.T @ a]


def _matrix_exp(a: np.ndarray) -> np.ndarray:
    return np.array(mp.expm(mp.matrix(a.tolist())).tolist(), dtype=object)


# Of size 1, for torch's slopes are those of symmetric directions; others are in test_function and test_complex.
for _name in ("linalg_cholesky", "linalg_cholesky_ex", "cholesky"):
    by_definition(f"{_name}.default", d.sqrt, V((2, 1, 1), 0.5, 2.0))
by_definition(
    "cholesky_solve.default", lambda b, factor: _inverse(np.tril(factor) @ np.tril(factor).T) @ b, BESIDE, SQUARE
)
by_definition("cholesky_inverse.default", lambda factor: _inverse(np.tril(factor) @ np.tril(factor).T), SQUARE)
by_definition("linalg_qr.default", _qr, SQUARE)
by_definition("linalg_qr.default", _qr, V((2, 3), 0.5, 2.0))
by_definition("linalg_qr.default", lambda a, mode: [np.zeros(0), _qr(a)[1]], SQUARE, mode="r")
for _name in ("linalg_matrix_exp", "matrix_exp"):
    by_definition(f"{_name}.default", _matrix_exp, SQUARE)


def _roots_of_gram(a: np.ndarray) -> np.ndarray:
    """Singular values of two columns, the largest first."""
    gram = a.T @ a if a.shape[1] == 2 else a @ a.T
    half, rest = (gram[0, 0] + gram[1, 1]) / 2, (gram[0, 0] - gram[1, 1]) / 2
    root = mp.sqrt(rest**2 + gram[0, 1] ** 2)
    return d.sqrt(np.array([half + root, half - root], dtype=object))


def _svd(a: np.ndarray, full_matrices: bool = True) -> list[np.ndarray]:
    """Of two positive columns; a column of V begins with a negative and a positive number, or as LAPACK has it."""
    values = _roots_of_gram(a)
    gram = a.T @ a
    columns = [np.array([gram[0, 1], value**2 - gram[0, 0]], dtype=object) for value in values]
    signs = np.sign(torch.linalg.svd(torch.tensor(a.astype(float)), full_matrices=False)[2].numpy()[:, 0])
    v = np.stack(
        [column / mp.sqrt(column @ column) * int(sign) for column, sign in zip(columns, signs, strict=True)], 1
    )
    return [a @ v / values, values, v.T]


def _lu(a: np.ndarray, pivot: bool = True) -> list[np.ndarray]:
    """Of two columns or two rows; of the rows that are left the one with the largest entry is ahead."""
    order = sorted(range(len(a)), key=lambda row: -abs(a[row, 0]))[:1]
    rest = [row for row in range(len(a)) if row not in order]
    left = {row: a[row, 1] - a[row, 0] / a[order[0], 0] * a[order[0], 1] for row in rest}
    order += sorted(rest, key=lambda row: -abs(left[row]))
    moved = a[order]
    size = min(a.shape)
    lower, upper = np.eye(len(a), size, dtype=int).astype(object), np.zeros((size, a.shape[1]), dtype=object)
    upper[0] = moved[0]
    lower[1:, 0] = moved[1:, 0] / moved[0, 0]
    rest = moved[1:, 1:] - np.outer(lower[1:, 0], moved[0, 1:])
    upper[1, 1:] = rest[0]
    lower[2:, 1] = rest[1:, 0] / rest[0, 0]
    return [np.eye(len(a), dtype=int)[order].T, lower, upper]


def _compact(a: np.ndarray) -> np.ndarray:
    _, lower, upper = _lu(a)
    return lower + upper - np.eye(2, dtype=int)


TALL = V((3, 2), 0.5, 2.0)
by_definition("linalg_svd.default", _svd, TALL, False)
by_definition("linalg_svd.default", _svd, SQUARE)
by_definition("linalg_svdvals.default", _roots_of_gram, V((2, 3), 0.5, 2.0))
by_definition("linalg_matrix_norm.str_ord", lambda a, ord: np.sum(_roots_of_gram(a)), TALL, "nuc")
by_definition("linalg_matrix_norm.default", lambda a, ord: _roots_of_gram(a)[1], SQUARE, -2)
by_definition("linalg_pinv.default", lambda a, *_: _inverse(a.T @ a) @ a.T, TALL, 1e-9)
by_definition("pinverse.default", lambda a: a.T @ _inverse(a @ a.T), V((2, 3), 0.5, 2.0))
for _overload in ("atol_rtol_tensor", "atol_rtol_float"):
    by_definition(f"linalg_pinv.{_overload}", lambda a: _inverse(a.T @ a) @ a.T, TALL)
by_definition("linalg_pinv.rcond_tensor", lambda a, *_: _inverse(a), SQUARE, torch.tensor(1e-9))
for _argument in (SQUARE, TALL, V((2, 3), 0.5, 2.0)):
    by_definition("linalg_lu.default", _lu, _argument)
PIVOTS = torch.tensor([2, 2], dtype=torch.int32)
for _name in ("linalg_lu_factor", "linalg_lu_factor_ex"):
    by_definition(f"{_name}.default", _compact, SQUARE)
by_definition(
    "lu_unpack.default",
    lambda data, _: [np.eye(2, dtype=int)[::-1], np.tril(data, -1) + np.eye(2, dtype=int), np.triu(data)],
    SQUARE,
    PIVOTS,
)


def _from_compact(data: np.ndarray) -> np.ndarray:
    return ((np.tril(data, -1) + np.eye(2, dtype=int)) @ np.triu(data))[::-1]


by_definition("linalg_lu_solve.default", lambda data, _, b: _inverse(_from_compact(data)) @ b, SQUARE, PIVOTS, BESIDE)
by_definition(
    "linalg_lu_solve.default",
    lambda data, _, b, left: b @ _inverse(_from_compact(data)),
    SQUARE,
    PIVOTS,
    V((3, 2)),
    left=False,
)


def _reflections(a: np.ndarray, tau: np.ndarray) -> np.ndarray:
    made = np.eye(3, dtype=int)
    for place in range(len(tau)):
        v = np.array([0] * place + [1, *a[place + 1 :, place]], dtype=object)
        made = made @ (np.eye(3, dtype=int) - tau[place] * np.outer(v, v))
    return made[:, :2]


by_definition("linalg_householder_product.default", _reflections, TALL, V((2,)))

# Special functions

ODD_AND_EVEN = V((2, 3), -3.0, 3.0)
for _name, _definition in (
    ("special_bessel_j0", lambda v: mp.besselj(0, v)),
    ("special_bessel_j1", lambda v: mp.besselj(1, v)),
    ("i0", lambda v: mp.besseli(0, v)),
    ("special_i1", lambda v: mp.besseli(1, v)),
    ("special_modified_bessel_i0", lambda v: mp.besseli(0, v)),
    ("special_modified_bessel_i1", lambda v: mp.besseli(1, v)),
    ("special_spherical_bessel_j0", mp.sinc),
    ("special_i0e", lambda v: mp.besseli(0, v) * mp.exp(-abs(v))),
    ("special_i1e", lambda v: mp.besseli(1, v) * mp.exp(-abs(v))),
    ("special_erfcx", lambda v: mp.exp(v * v) * mp.erfc(v)),
    ("special_log_ndtr", lambda v: mp.log(mp.erfc(-v / mp.sqrt(2)) / 2)),
):
    by_definition(f"{_name}.default", d.each(_definition), ODD_AND_EVEN)
for _name, _definition in (
    ("special_bessel_y0", lambda v: mp.bessely(0, v)),
    ("special_bessel_y1", lambda v: mp.bessely(1, v)),
    ("special_modified_bessel_k0", lambda v: mp.besselk(0, v)),
    ("special_modified_bessel_k1", lambda v: mp.besselk(1, v)),
    ("special_scaled_modified_bessel_k0", lambda v: mp.besselk(0, v) * mp.exp(v)),
    ("special_scaled_modified_bessel_k1", lambda v: mp.besselk(1, v) * mp.exp(v)),
):
    by_definition(f"{_name}.default", d.each(_definition), V((1,), 0.5, 3.0))
by_definition("special_ndtri.default", d.each(lambda v: mp.sqrt(2) * mp.erfinv(2 * v - 1)), V((2, 3), 0.1, 0.9))
_ORDER = torch.tensor([1.5, 2.0, 3.25], dtype=torch.float64)
for _name, _definition in (
    ("special_zeta", mp.zeta),
    ("special_gammainc", lambda a, v: mp.gammainc(a, 0, v, regularized=True)),
    ("igamma", lambda a, v: mp.gammainc(a, 0, v, regularized=True)),
    ("special_gammaincc", lambda a, v: mp.gammainc(a, v, regularized=True)),
    ("igammac", lambda a, v: mp.gammainc(a, v, regularized=True)),
):
    by_definition(f"{_name}.default", np.frompyfunc(_definition, 2, 1), _ORDER, P)
by_definition("special_zeta.self_scalar", lambda s, x: d.each(lambda v: mp.zeta(s, v))(x), 2.5, P)
by_definition("polygamma.default", lambda n, x: d.each(lambda v: mp.polygamma(n, v))(x), 2, P)
for _name, _definition in (
    ("hermite_polynomial_h", mp.hermite),
    ("hermite_polynomial_he", lambda n, v: mp.mpf(2) ** (-mp.mpf(n) / 2) * mp.hermite(n, v / mp.sqrt(2))),
    ("laguerre_polynomial_l", lambda n, v: mp.laguerre(n, 0, v)),
    ("legendre_polynomial_p", mp.legendre),
    ("chebyshev_polynomial_t", mp.chebyt),
    ("chebyshev_polynomial_u", mp.chebyu),
    ("chebyshev_polynomial_v", lambda n, v: mp.chebyu(n, v) - (mp.chebyu(n - 1, v) if n else 0)),
    ("chebyshev_polynomial_w", lambda n, v: mp.chebyu(n, v) + (mp.chebyu(n - 1, v) if n else 0)),
):
    for _op_name, _at in ((f"special_{_name}", lambda v: v), (f"special_shifted_{_name}", lambda v: 2 * v - 1)):
        if not hasattr(torch.ops.aten, _op_name):
            continue
        _of = functools.partial(
            lambda f, at, x, n: np.frompyfunc(lambda v, n: f(int(n), at(v)), 2, 1)(x, n), _definition, _at
        )
        by_definition(f"{_op_name}.n_scalar", _of, U, 7)
        by_definition(f"{_op_name}.default", _of, U, torch.tensor([0.0, 1.0, 4.0], dtype=torch.float64))

# Elementwise

for _name, _definition, _argument in (
    ("exp", mp.exp, X),
    ("expm1", mp.expm1, X),
    ("exp2", lambda v: mp.power(2, v), X),
    ("log", mp.log, P),
    ("log2", lambda v: mp.log(v, 2), P),
    ("log10", mp.log10, P),
    ("log1p", mp.log1p, V((2, 3), -0.5, 2.0)),
    ("sqrt", mp.sqrt, P),
    ("rsqrt", lambda v: 1 / mp.sqrt(v), P),
    ("reciprocal", lambda v: 1 / v, P),
    ("sin", mp.sin, X),
    ("cos", mp.cos, X),
    ("tan", mp.tan, U),
    ("sinh", mp.sinh, X),
    ("cosh", mp.cosh, X),
    ("tanh", mp.tanh, X),
    ("atan", mp.atan, X),
    ("asin", mp.asin, U),
    ("acos", mp.acos, U),
    ("asinh", mp.asinh, X),
    ("acosh", mp.acosh, V((2, 3), 1.5, 3.0)),
    ("atanh", mp.atanh, U),
    ("erf", mp.erf, X),
    ("erfc", mp.erfc, X),
    ("sigmoid", lambda v: 1 / (1 + mp.exp(-v)), V((2, 3), -8.0, 8.0)),
    ("log_sigmoid", lambda v: -mp.log(1 + mp.exp(-v)), X),
    ("silu", lambda v: v / (1 + mp.exp(-v)), X),
    ("mish", lambda v: v * mp.tanh(mp.log(1 + mp.exp(v))), X),
    ("logit", lambda v: mp.log(v / (1 - v)), V((2, 3), 0.1, 0.9)),
    ("lgamma", mp.loggamma, P),
    ("digamma", mp.digamma, P),
    ("square", lambda v: v * v, X),
):
    by_definition(f"{_name}.default", d.each(_definition), _argument)
by_definition(
    "logit.default",
    d.each(lambda v: mp.log(v / (1 - v)) if 0.2 <= v <= 0.8 else v * 0 + mp.log(4) * (1 if v > 0.8 else -1)),
    V((4, 4), -0.5, 1.5),
    reach=4.0,
    eps=0.2,
)
by_definition("gelu.default", d.gelu, V((2, 3), -4.0, 4.0))
by_definition("gelu.default", d.gelu, V((2, 3), -4.0, 4.0), approximate="tanh")
by_definition("softplus.default", d.softplus, X)
by_definition("softplus.default", d.softplus, V((3,), 20.1, 20.9), reach=30.0)
by_definition("softplus.default", d.softplus, V((2, 3), 5.0, 20.0), 2, 20)
by_definition("pow.Tensor_Scalar", lambda x, n: x**n, X, 3)
by_definition("pow.Tensor_Scalar", lambda x, n: x**n, X, 2.0)
by_definition("pow.Tensor_Scalar", lambda x, n: x**n, P, -2)
by_definition("pow.Tensor_Scalar", lambda x, n: x ** mp.mpf(n), P, 0.5)
by_definition("pow.Tensor_Scalar", lambda x, n: x ** mp.mpf(n), P, -1.7)
by_definition("pow.Tensor_Scalar", lambda x, n: x * 0 + 1, X, 0)
poly("pow.Tensor_Scalar", X, 1)
by_definition("pow.Scalar", lambda base, x: d.exp(x * mp.log(base)), 1.5, X)
by_definition("pow.Tensor_Tensor", lambda a, b: d.exp(b * d.log(a)), P, V((3,)))
by_definition("div.Tensor", lambda a, b: a / b, X, V((3,), 0.5, 2.0))
by_definition("div.Tensor", lambda a, b: a / b, V((3,)), P)
poly("div.Tensor", X, 2.0)
by_definition("div.Scalar", lambda a, b: a / b, X, 3.0)
by_definition("true_divide.Tensor", lambda a, b: a / b, X, P)
by_definition("addcdiv.default", lambda a, b, c, value: a + value * b / c, X, V((3,)), P, value=0.5)
by_definition("atan2.default", np.frompyfunc(mp.atan2, 2, 1), P, X)

# Norms, softmax, attention

ROWS = V((2, 5))
by_definition("layer_norm.default", d.layer_norm, ROWS, [5], V((5,)), V((5,)), 1e-5)
by_definition("layer_norm.default", d.layer_norm, CUBE, [3, 4], None, None, 0.1)
by_definition(
    "native_layer_norm.default",
    lambda x, shape, w, b, eps: [d.layer_norm(x, shape, w, b, eps), *d.statistics(x, -1, eps)],
    ROWS,
    [5],
    V((5,)),
    V((5,)),
    1e-5,
)
by_definition("rms_norm.default", d.rms_norm, ROWS, [5], V((5,)), 1e-6)
by_definition("rms_norm.default", d.rms_norm, ROWS, [5])
by_definition(
    "_fused_rms_norm.default",
    lambda x, shape, w, eps: [d.rms_norm(x, shape, w, eps), 1 / d.sqrt(d.mean(x * x, -1) + mp.mpf(eps))],
    ROWS,
    [5],
    V((5,)),
    1e-6,
)
GROUPS = V((2, 4, 3))
by_definition("group_norm.default", d.group_norm, GROUPS, 2, V((4,)), V((4,)), 1e-5)
by_definition(
    "native_group_norm.default",
    lambda x, w, b, batch, channels, positions, groups, eps: [
        d.group_norm(x, groups, w, b, eps),
        *(row.squeeze(-1) for row in d.statistics(x.reshape(batch, groups, -1), -1, eps)),
    ],
    GROUPS,
    V((4,)),
    V((4,)),
    2,
    4,
    3,
    2,
    1e-5,
)
by_definition(
    "instance_norm.default",
    lambda x, w, b, *rest: d.group_norm(x, x.shape[1], w, b, 1e-5),
    GROUPS,
    V((4,)),
    V((4,)),
    None,
    None,
    True,
    0.1,
    1e-5,
    False,
)
by_definition(
    "batch_norm.default",
    lambda x, w, b, *rest: d.batch_statistics_norm(x, w, b, 1e-5),
    GROUPS,
    V((4,)),
    V((4,)),
    None,
    None,
    True,
    0.1,
    1e-5,
    False,
)
by_definition(
    "batch_norm.default",
    lambda x, w, b, mean, var, *_: (
        (x - d.channels(mean, x)) / d.sqrt(d.channels(var, x) + mp.mpf(0.1)) * d.channels(w, x) + d.channels(b, x)
    ),
    V((3, 2, 2)),
    V((2,)),
    V((2,)),
    V((2,)),
    V((2,), 0.3, 3.0),
    False,
    0.1,
    0.1,
    False,
)
by_definition("softmax.int", lambda x, axis: d.softmax(x, axis), CUBE, 1)
by_definition("_softmax.default", lambda x, axis, _: d.softmax(x, axis), ROWS, -1, False)
by_definition("_safe_softmax.default", lambda x, axis: d.softmax(x, axis), ROWS, -1)
by_definition("log_softmax.int", lambda x, axis: d.log(d.softmax(x, axis)), CUBE, 1)
by_definition("_log_softmax.default", lambda x, axis, _: d.log(d.softmax(x, axis)), ROWS, -1, False)
by_definition("logsumexp.default", d.logsumexp, CUBE, [0, 2])
by_definition("logaddexp.default", lambda a, b: d.log(d.exp(a) + d.exp(b)), CUBE, V((3, 1)))
by_definition("logaddexp2.default", lambda a, b: d.log(mp.mpf(2) ** a + mp.mpf(2) ** b) / mp.log(2), X, X)
by_definition("logsumexp.default", d.logsumexp, ROWS, [-1], True)
by_definition("logcumsumexp.default", lambda x, axis: d.log(np.cumsum(d.exp(x), axis)), CUBE, 1)
Q, K, VALUE = V((1, 2, 3, 2)), V((1, 2, 4, 2)), V((1, 2, 4, 3))
attend = functools.partial(by_definition, "scaled_dot_product_attention.default", d.attention)
attend(Q, K, VALUE)
attend(Q, K, VALUE, V((3, 4)), scale=0.3)
attend(Q, K, VALUE, torch.tensor([[1, 0, 1, 1], [0, 0, 1, 0], [1, 1, 1, 1]], dtype=torch.bool))
attend(V((1, 3, 2)), V((1, 3, 2)), V((1, 3, 2)), None, 0.0, True)
attend(V((1, 4, 2, 2)), V((1, 2, 3, 2)), V((1, 2, 3, 2)), enable_gqa=True)
attend(V((1, 1, 3, 2)), V((1, 2, 2, 2)), V((1, 2, 2, 2)), None, 0.0, True)
by_definition(
    "glu.default", lambda x, axis: np.split(x, 2, axis)[0] * d.sigmoid(np.split(x, 2, axis)[1]), V((2, 4)), -1
)
by_definition(
    "var.correction", lambda x, axes, *, correction: d.variance(x, axes, correction, False), CUBE, [1], correction=2
)
by_definition("var.correction", lambda x, axes: d.variance(x, axes, 1, False), CUBE, [1])
by_definition("var.dim", lambda x, axes, *_: d.variance(x, axes, 0, False), CUBE, [1], False)
by_definition("var.dim", lambda x, axes, *_: d.variance(x, axes, 0, True), CUBE, [0, -1], False, True)
by_definition(
    "std.correction",
    lambda x, axes, *, correction: d.sqrt(d.variance(x, axes, correction, False)),
    CUBE,
    None,
    correction=0,
)
by_definition("std.dim", lambda x, axes, *_: d.sqrt(d.variance(x, axes, 0, True)), CUBE, [1], False, True)
for _name, _root in (("var_mean", False), ("std_mean", True)):
    by_definition(
        f"{_name}.correction",
        lambda x, axes, *, correction, root=_root: [
            (d.sqrt if root else np.asarray)(d.variance(x, axes, correction, False)),
            d.mean(x, axes).squeeze(tuple(axes)),
        ],
        CUBE,
        [1],
        correction=0,
    )
by_definition("linalg_vector_norm.default", d.vector_norm, CUBE, 2, [1], True)
by_definition("linalg_vector_norm.default", d.vector_norm, CUBE, 1, [1], reach=4.0)
by_definition("linalg_vector_norm.default", d.vector_norm, CUBE, 3, [0, 1])
by_definition("linalg_vector_norm.default", d.vector_norm, CUBE, math.inf, [1])
by_definition("norm.ScalarOpt_dim", d.vector_norm, CUBE, 3, [1])
by_definition("norm.Scalar", d.vector_norm, CUBE)
by_definition("prod.default", lambda x: np.asarray(np.prod(x), dtype=object), X)
by_definition("prod.dim_int", lambda x, axis, keepdim: np.prod(x, axis=axis, keepdims=keepdim), CUBE, 1, True)
by_definition("cumprod.default", lambda x, axis: np.cumprod(x, axis=axis), CUBE, -1)

# Piecewise

for _name in ("relu", "abs", "relu6", "hardtanh", "hardshrink", "softshrink", "frac", "nan_to_num"):
    poly(f"{_name}.default", V((3, 4)))
by_definition(
    "hardsigmoid.default",
    d.each(lambda v: mp.mpf(0) if v < -3 else mp.mpf(1) if v > 3 else (v + 3) / 6),
    V((3, 4), -6, 6),
    reach=4.0,
)
by_definition(
    "hardswish.default", d.each(lambda v: v * 0 if v < -3 else v if v > 3 else v * (v + 3) / 6), V((3, 4), -6, 6)
)
poly("leaky_relu.default", X, 0.2)
poly("rrelu.default", X, 0.25, 0.75)
poly("threshold.default", X, 0.25, 1.5)
poly("clamp.default", X, -0.5, 0.25)
poly("clamp.default", X, None, 0.25)
poly("clamp_min.default", X, 0.0)
poly("clamp_max.default", X, 0.0)
poly("clamp.Tensor", X, torch.tensor(-0.5).double(), torch.tensor(0.25).double())
poly("clamp_min.Tensor", X, torch.zeros(3).double())
poly("clamp_max.Tensor", X, torch.zeros(3).double())
poly("maximum.default", V((3, 4)), torch.zeros(4).double())
poly("max.other", torch.zeros(3, 4).double(), V((4,)))
poly("fmax.default", V((3, 4)), torch.zeros(4).double())
poly("minimum.default", V((3, 4)), torch.zeros(4).double())
poly("min.other", V((3, 4)), torch.zeros(4).double())
poly("fmin.default", V((3, 4)), torch.zeros(4).double())
by_definition("maximum.default", np.maximum, X, V((3,)), reach=4.0)
by_definition(
    "clamp.Tensor",
    lambda x, low, high: np.minimum(np.maximum(x, low), high),
    X,
    V((3,), -1, 0),
    V((3,), 0.5, 1),
    reach=4.0,
)
by_definition("prelu.default", lambda x, w: np.where(x > 0, x, x * d.channels(w, x)), CUBE, V((3,)), reach=4.0)
by_definition("prelu.default", lambda x, w: np.where(x > 0, x, x * w), V((5,)), V((1,)), reach=4.0)
poly("_prelu_kernel.default", X, torch.tensor([[0.25, 0.5, 0.25]]).double())
by_definition("elu.default", d.elu, V((3, 4)), 0.7)
by_definition("celu.default", lambda x, a: d.elu(x, a, 1, 1 / mp.mpf(a)), V((3, 4)), 0.7)
by_definition(
    "selu.default",
    lambda x: d.elu(x, mp.mpf("1.6732632423543772848170429916717"), mp.mpf("1.0507009873554804934193349852946")),
    V((3, 4)),
)
poly("remainder.Scalar", V((3, 4)), 0.75)
poly("fmod.Scalar", V((3, 4)), 0.75)
by_definition("remainder.Tensor", lambda x, y: x - y * d.each(mp.floor)(x / y), V((3, 4)), P4, reach=4.0)
by_definition(
    "fmod.Tensor",
    lambda x, y: x - y * d.each(lambda v: mp.sign(v) * mp.floor(abs(v)))(x / y),
    V((3, 1), -4.0, 4.0),
    P4,
    reach=4.0,
)
poly("copysign.Tensor", V((3, 4)), V((4,)), fixed=(1,))
poly("copysign.Scalar", V((3, 4)), -1.0)
poly("fmod.Tensor", V((4,)), torch.tensor([[0.5, 0.25, 0.75, 1.0]]).double())
for _name in ("max", "min", "median"):
    poly(f"{_name}.dim", V((3, 5)), 1)
    poly(f"{_name}.dim", V((3, 5)), -2, True)
poly("nanmedian.dim", V((3, 5)), 1)
poly("mode.default", V((3, 5)), 0, True)
poly("median.default", CUBE)
poly("nanmedian.default", V((3, 5)))
poly("kthvalue.default", V((3, 5)), 2, 1)
poly("quantile.scalar", V((3, 5)), 0.3, 1)
poly("quantile.scalar", V((3, 5)), 0.3, keepdim=True, interpolation="midpoint")
poly("nanquantile.scalar", V((3, 5)), 0.3, 1)
poly("nanquantile.default", V((3, 5)), torch.tensor([0.25, 0.75], dtype=torch.float64), 0, True)
poly("quantile.default", V((3, 5)), torch.tensor([0.25, 0.75], dtype=torch.float64), 0, True, interpolation="higher")
poly("topk.default", V((3, 5)), 2)
poly("topk.default", V((3, 5)), 2, 0, False)
poly("sort.default", V((3, 5)), 0, True)
poly("sort.stable", V((3, 5)), stable=True, dim=1)
poly("cummax.default", V((3, 5)), 1)
poly("cummin.default", V((3, 5)), 0)
poly("amax.default", CUBE, [1])
poly("amax.default", CUBE, [0, -1], True)
poly("amin.default", CUBE, [])
poly("scatter_reduce.two", X, 1, ints([2, 1]), V((1, 2)), "amax")
poly("scatter_reduce.two", X, 1, ints([2, 1]), V((1, 2)), "amin")
poly("scatter_reduce.two", X, 1, ints([0, 0], [1, 2]), V((2, 2)), "sum")
poly("scatter_reduce.two", X, 0, ints([0, 0, 1], [0, 1, 1]), V((3, 4)), "mean", include_self=False)
poly("max.default", CUBE)
poly("min.default", CUBE)
poly("max_pool1d.default", SIGNAL, [2])
poly("max_pool2d.default", IMAGE, [3, 3], [2, 2], [1, 1])
poly("max_pool2d.default", V((3, 4, 4)), [2, 2])
poly("max_pool3d.default", VOLUME, [2, 2, 2])
poly("max_pool1d_with_indices.default", SIGNAL, [2])
poly("max_pool2d_with_indices.default", IMAGE, [2, 2])
poly("max_pool3d_with_indices.default", VOLUME, [2, 2, 2])
poly("adaptive_max_pool1d.default", SIGNAL, [2])
poly("adaptive_max_pool2d.default", IMAGE, [2, 1])
poly("adaptive_max_pool3d.default", VOLUME, [2, 2, 2])
poly("div.Tensor_mode", X, 2.0, rounding_mode=None)
plain("div.Tensor_mode", X, 2.0, rounding_mode="floor")

# Recurrent cells


def _weights(parts: int, features: int = 2) -> tuple[torch.Tensor, ...]:
    """W_ih, W_hh and their biases for inputs of 3 features and states of so many."""
    random = np.random.default_rng(parts)
    rows = features * parts
    shapes = ((rows, 3), (rows, features), (rows,), (rows,))
    return tuple(torch.from_numpy(random.uniform(-1, 1, shape)) for shape in shapes)


SEQUENCE = V((2, 3, 3))


def _layers(parts: int, layers: int, directions: int) -> list[torch.Tensor]:
    """Weights of layers for inputs of 3 and states of 2 features."""
    random = np.random.default_rng(parts)
    widths = [(3 if layer == 0 else 2 * directions) for layer in range(layers) for _ in range(directions)]
    shapes = [shape for w in widths for shape in ((2 * parts, w), (2 * parts, 2), (2 * parts,), (2 * parts,))]
    return [torch.from_numpy(random.uniform(-1, 1, shape)) for shape in shapes]


# States so wide that one part more would be another cut.
by_definition("gru_cell.default", d.gru_cell, X, V((2, 5)), *_weights(3, 5))
by_definition("gru.input", d.gru, SEQUENCE, V((2, 2, 2)), _layers(3, 2, 1), True, 2, 0.0, False, False, True)
by_definition(
    "rnn_relu.input", d.rnn_relu, SEQUENCE, V((1, 3, 2)), _layers(1, 1, 1), True, 1, 0.0, False, False, False, reach=4.0
)
by_definition(
    "lstm.input", d.lstm, SEQUENCE, [V((2, 3, 2)), V((2, 3, 2))], _layers(4, 1, 2), True, 1, 0.0, False, True, False
)
by_definition("rnn_tanh.input", d.rnn, SEQUENCE, V((1, 3, 2)), _layers(1, 1, 1), True, 1, 0.0, False, False, False)
by_definition("lstm_cell.default", d.lstm_cell, X, [V((2, 5)), V((2, 5))], *_weights(4, 5))
by_definition("rnn_relu_cell.default", d.rnn_cell, X, V((2, 2)), *_weights(1), reach=4.0)
by_definition(
    "rnn_tanh_cell.default",
    lambda x, h, w_ih, w_hh: d.tanh(np.matmul(x, w_ih.T) + np.matmul(h, w_hh.T)),
    X,
    V((2, 2)),
    *_weights(1)[:2],
)

# Plain values

for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    plain(f"{_name}.Tensor", X, V((3,)))
    plain(f"{_name}.Scalar", X, 0.25)
for _name in [
    "logical_not",
    "isnan",
    "isinf",
    "isfinite",
    "any",
    "all",
    "argmax",
    "argmin",
    "argsort",
    "nonzero",
    "nonzero_numpy",
    "where",
    "count_nonzero",
    "sign",
    "sgn",
    "signbit",
    "floor",
    "ceil",
    "round",
    "trunc",
    "histc",
    "zeros_like",
    "ones_like",
]:
    plain(f"{_name}.default", X)
for _name in ("logical_and", "logical_or", "logical_xor", "isclose", "heaviside", "floor_divide"):
    plain(f"{_name}.default", X, X)
plain("any.dim", X, 1)
plain("all.dim", X, 1)
plain("argsort.stable", X, stable=True, dim=1)
plain("searchsorted.Tensor", torch.linspace(-3, 3, 7).double(), X)
plain("bucketize.Tensor", X, torch.linspace(-3, 3, 7).double())
plain("item.default", V(()))
for _name in ("bitwise_not.default", "one_hot.default", "bincount.default"):
    plain(_name, ints(0, 2, 1))
plain("bitwise_and.Tensor", MASK, MASK)
plain("bitwise_or.Tensor", MASK, MASK)
plain("nonzero_static.default", X, size=3)
plain("sym_size.int", X, 1)
plain("size.int", X, 0)
plain("sym_stride.int", X, 0)
plain("sym_size.default", X)
plain("sym_numel.default", X)
plain("_shape_as_tensor.default", X)
plain("full_like.default", X, 0.5)
plain("fill.Scalar", X, 0.5)
plain("new_zeros.default", X, [2])
plain("new_ones.default", X, [2])
plain("new_full.default", X, [2], 0.5)
plain("empty_like.default", V((0, 3)))
plain("new_empty.default", X, [0])
plain("_assert_tensor_metadata.default", X)
plain("_assert_scalar.default", 1, "positive")
plain("_assert_async.msg", torch.tensor(True), "true")
