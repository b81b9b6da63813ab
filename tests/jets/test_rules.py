"""The law over the registry: every rule against an oracle, in float64, at orders 0..6."""

from __future__ import annotations

import dataclasses
import itertools
import zlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import mpmath as mp
import numpy as np
import pytest
import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from jetgraph.algebra.rules import Freeze
from jetgraph.errors import DomainError, InputError, TraceError
from jetgraph.jets import evaluate
from jetgraph.jets.frozen import leaves_constant
from jetgraph.jets.registry import RULES, adds_constant, bind, find_rule, op_name, values_read
from jetgraph.jets.series import Series
from jetgraph.jets.totals import total
from tests.jets import oracle
from tests.jets.cases import CASES, Case, V
from tests.jets.test_complex import traced_ops

TOLERANCE = 1e-10


def _places(value: Any, found: list[V]) -> Any:
    """The arguments with the i-th `V` replaced by a function of a list of i-th things."""
    if isinstance(value, V):
        place = len(found)
        found.append(value)
        return lambda given: given[place]
    if isinstance(value, (list, tuple)):
        items = [_places(item, found) for item in value]
        kind = type(value)
        return lambda given: kind(item(given) for item in items)
    return lambda given: value


class Prepared:
    """A case with its data: `coefficients[i]` of the i-th varying argument, `[7, *shape]`."""

    def __init__(self, case: Case) -> None:
        self.case = case
        found: list[V] = []
        self._args = _places(case.args, found)
        seed = zlib.crc32(case.name.encode())
        self.coefficients = [variable.coefficients(case.style, seed + i) for i, variable in enumerate(found)]

    def plain(self, given: list[Any]) -> Any:
        return self.case.op(*self._args(given), **self.case.kwargs)

    def rule(self, order: int, given: list[Any]) -> Any:
        entry = find_rule(self.case.op)
        assert entry is not None
        return entry.rule(order, *self._args(given), **self.case.kwargs)

    def args(self, given: list[Any]) -> Any:
        return self._args(given)

    def chosen(self) -> Iterator[tuple[int, ...]]:
        """Which arguments vary: each alone, then all."""
        places = [i for i in range(len(self.coefficients)) if i not in self.case.fixed]
        yield from ((place,) for place in places)
        if len(places) > 1:
            yield tuple(places)


def _outputs(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _as_arrays(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.numpy()
    if isinstance(value, (list, tuple)):
        return [_as_arrays(item) for item in value]
    return value


def _expected(prepared: Prepared, coefficients: list[np.ndarray]) -> list[np.ndarray]:
    """Coefficients 0..6 of every floating output by the case's oracle."""
    case = prepared.case
    if case.definition is None:

        def value_at(t: float) -> list[Tensor]:
            powers = t ** np.arange(7)
            given = [_tensor(np.tensordot(powers, rows, 1)) for rows in coefficients]
            return [item for item in _outputs(prepared.plain(given)) if item.is_floating_point()]

        return oracle.polynomial(value_at, case.degree)

    def defined_at(t: mp.mpf) -> list[np.ndarray]:
        args = _as_arrays(prepared.args([oracle.at(rows, t) for rows in coefficients]))
        assert case.definition is not None
        return _outputs_of_definition(case.definition(*args, **case.kwargs))

    return oracle.definition(defined_at)


def _outputs_of_definition(value: Any) -> list[np.ndarray]:
    return value if isinstance(value, list) else [value]


def _close(found: np.ndarray, expected: np.ndarray, what: str) -> None:
    scale = max(float(np.abs(expected).max(initial=0.0)), 1e-7)
    error = float(np.abs(found - expected).max(initial=0.0))
    assert error <= TOLERANCE * scale, f"{what}: {error:.2e} off at a scale of {scale:.2e}"


def _series(rows: np.ndarray, order: int) -> Series:
    return Series(torch.from_numpy(rows.copy()), order)


def _tensor(array: Any) -> Tensor:
    return torch.from_numpy(np.asarray(array))


def _check(prepared: Prepared, varying: tuple[int, ...]) -> None:
    """All orders, all coefficients of the arguments that vary."""
    coefficients = [rows.copy() for rows in prepared.coefficients]
    for place, rows in enumerate(coefficients):
        if place not in varying:
            rows[1:] = 0
    expected = _expected(prepared, coefficients)
    centre = _outputs(prepared.plain([_tensor(rows[0]) for rows in coefficients]))
    node, sources = _node(prepared)
    held = _constants(node)
    node.meta = {"shape": tuple(centre[0].shape), "dtype": centre[0].dtype}
    summed = len(centre) == 1 and (prepared.case.op is torch.ops.aten.mul.Tensor or _affine(prepared, varying))
    for order in range(oracle.TOP + 1):
        given = [
            _series(rows, order) if place in varying else _tensor(rows[0]) for place, rows in enumerate(coefficients)
        ]
        results = _outputs(prepared.rule(order, given))
        assert len(results) == len(centre)
        floating = iter(expected)
        seen = 0
        for result, at_centre in zip(results, centre, strict=True):
            if not isinstance(result, Series):
                # A plain value says that the result does not vary.
                torch.testing.assert_close(result, at_centre)
                if at_centre.is_floating_point() and expected:
                    assert np.abs(next(floating)[1 : order + 1]).max(initial=0.0) < 1e-30
                    seen += 1
                continue
            seen += 1
            assert (result.dtype, result.shape, result.order) == (at_centre.dtype, at_centre.shape, order)
            torch.testing.assert_close(result.coefficient(0), at_centre, rtol=1e-12, atol=1e-12)
            wanted = next(floating)
            for j in range(order + 1):
                what = f"{prepared.case.name}, {varying}, order {order}, coefficient {j}"
                _close(result.coefficient(j).numpy(), wanted[j], what)
        assert seen
        if summed:
            # What is linear at the end runs once, on the sum.
            found = total((node,), {**held, **dict(zip(sources, given, strict=True))}, order, node)
            what = f"{prepared.case.name}, {varying}, order {order}, the sum"
            _close(found.numpy(), expected[0][: order + 1].sum(0), what)


SERIES_CASES = [case for case in CASES if not case.plain]


def agrees_with_oracle(prepared: Prepared) -> None:
    for varying in prepared.chosen():
        _check(prepared, varying)


def structural_zeros_change_nothing(prepared: Prepared) -> None:
    """A fresh variate c + t v gives what the same series gives with its zeros written out; and where nothing follows
    what is done, so that results may be written over one another, what is given where it might.
    """
    varying = list(prepared.chosen())[-1]

    def results(written: bool) -> list[Any]:
        given: list[Any] = []
        for place, rows in enumerate(prepared.coefficients):
            if place not in varying:
                given.append(_tensor(rows[0]))
                continue
            kept = rows.copy()
            kept[2:] = 0
            given.append(_series(kept if written else kept[:2], 4))
        return _outputs(prepared.rule(4, given))

    with torch.no_grad():
        short, apart = results(False), results(True)
    for one, other, long in zip(short, apart, results(True), strict=True):
        if isinstance(long, Series):
            torch.testing.assert_close(one.stacked(), long.stacked(), rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(other.stacked(), long.stacked(), rtol=1e-12, atol=1e-12)


def _same(one: Any, other: Any, order: int, what: str) -> None:
    for values in zip(_outputs(one), _outputs(other), strict=True):
        found, expected = (
            value if isinstance(value, Series) else Series.constant(torch.as_tensor(value), order) for value in values
        )
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape), what
        torch.testing.assert_close(found.stacked(), expected.stacked(), rtol=1e-12, atol=1e-12, msg=what)


def what_stays_may_be_a_series(prepared: Prepared) -> None:
    """Whatever varies beside it: a series of its centre alone gives what the plain tensor gives."""
    places = [i for i in range(len(prepared.coefficients)) if i not in prepared.case.fixed]
    for size in range(1, min(len(places), 3)):
        for varying in itertools.combinations(places, size):
            plain = [_series(r[:3], 2) if i in varying else _tensor(r[0]) for i, r in enumerate(prepared.coefficients)]
            again = [
                one if isinstance(one, Series) or i not in places else Series(one[None], 2)
                for i, one in enumerate(plain)
            ]
            _same(prepared.rule(2, again), prepared.rule(2, plain), 2, f"{prepared.case.name}, {varying}")


def zeros_before_a_series_change_nothing(prepared: Prepared) -> None:
    """Of linear and bilinear ops, which have a value there: written out, they give the same."""
    entry = find_rule(prepared.case.op)
    if entry is None or entry.kind not in ("linear", "bilinear"):
        return
    for varying, order in itertools.product(prepared.chosen(), (1, 3)):
        given: list[list[Any]] = [[_tensor(rows[0])] * 2 for rows in prepared.coefficients]
        for place in varying:
            rows = prepared.coefficients[place][:3].copy()
            rows[0] = 0
            given[place] = [Series(_tensor(rows[1:]), order, 1), _series(rows, order)]
        short, written = (prepared.rule(order, [*each]) for each in zip(*given, strict=True))
        _same(short, written, order, f"{prepared.case.name}, {varying}, order {order}")


PRODUCTS = ("conv", "linear", "addmm", "addmv", "baddbmm", "_native_batch_norm", "batch_norm.default-1")
"""Of these what is multiplied and added, weights and biases, hardly ever varies."""

APART = (
    "prod.",
    "cumprod",
    "gru",
    "lstm",
    "rnn",
    "mm.",
    "bmm",
    "mv",
    "matmul",
    "linear.default-1",
    "_grouped_mm",
    "scaled",
)
"""Kernels that round in half precision after each step, products whose rows round with the number of them, and fused
attention, which `vmap` would take one by one.
"""


def coefficient_0_has_the_bits_of_the_plain_op(prepared: Prepared) -> None:
    """A sum that is rounded once is not one that is rounded twice, and a kernel rounds unlike what it consists of."""
    name = prepared.case.name
    if name.startswith(APART):
        return
    alone = [(1 if name.startswith(("add", "baddbmm")) else 0,)]
    which = alone if name.startswith(PRODUCTS) else list(prepared.chosen())
    random = np.random.default_rng(0)
    given = [_tensor(rows * random.uniform(0.9, 1.1, rows.shape)) for rows in prepared.coefficients]
    expected = _outputs(prepared.plain([rows[0] for rows in given]))
    for order, chosen in itertools.product((1, 3), which):
        varying = [Series(rows, order) if at in chosen else rows[0] for at, rows in enumerate(given)]
        with torch.set_grad_enabled(order == 1):
            results = _outputs(prepared.rule(order, varying))
        for found, value in zip(results, expected, strict=True):
            if isinstance(found, Series):
                first = found.coefficient(0).expand(value.shape)
                assert torch.equal(torch.nan_to_num(first), torch.nan_to_num(value))


@pytest.mark.parametrize("case", [case for case in CASES if case.plain], ids=lambda case: case.name)
def test_rule_gives_plain_value(case: Case) -> None:
    prepared = Prepared(case)
    # So far apart that no two of their integers are the same.
    coefficients = [8 * rows for rows in prepared.coefficients]
    given = [_series(rows, 3) for rows in coefficients]
    expected = prepared.plain([_tensor(rows[0]) for rows in coefficients])
    result = prepared.rule(3, given)
    if isinstance(expected, (Tensor, list, tuple)):
        torch.testing.assert_close(result, expected, rtol=0, atol=0, check_stride=False)
    else:
        assert result == expected


def direction_alone(prepared: Prepared) -> None:
    """Where the op is affine, a series without coefficient 0 gives the derivative, and the value at 0."""
    for varying in prepared.chosen():
        if not _affine(prepared, varying):
            continue
        rows = prepared.coefficients
        full = [_series(values[:2], 1) if i in varying else _tensor(values[0]) for i, values in enumerate(rows)]
        alone = [
            Series(_tensor(values[1:2]), 1, start=1) if i in varying else _tensor(values[0])
            for i, values in enumerate(rows)
        ]
        results = (_outputs(prepared.rule(1, given)) for given in (full, alone))
        at_zero = _outputs(prepared.plain([_tensor(one[0] * (i not in varying)) for i, one in enumerate(rows)]))
        for whole, part, value in zip(*results, at_zero, strict=True):
            if isinstance(whole, Series):
                assert isinstance(part, Series)
                torch.testing.assert_close(part.coefficient(1), whole.coefficient(1))
                torch.testing.assert_close(part.coefficient(0), value)


WITHOUT_TANGENT = ("detach", "transformers.grouped_mm_fallback")
"""Cuts it off; and an operator whose own forward mode is wrong."""


def coefficient_0_has_a_tangent(prepared: Prepared) -> None:
    """In forward mode, which goes on where gradients are not recorded, its derivative is coefficient 1."""
    varying = list(prepared.chosen())[-1]
    rows = [_tensor(values[:2]) for values in prepared.coefficients]
    if prepared.case.name.startswith(WITHOUT_TANGENT) or not all(rows[at].is_floating_point() for at in varying):
        return

    def value(*centres: Tensor) -> list[Any]:
        moving = dict(zip(varying, centres, strict=True))
        given = [Series(moving[at][None], 0) if at in moving else values[0] for at, values in enumerate(rows)]
        found = _outputs(prepared.rule(0, given))
        return [part.coefficient(0) if isinstance(part, Series) else torch.zeros(()) for part in found]

    expected = _outputs(prepared.rule(1, [Series(r, 1) if at in varying else r[0] for at, r in enumerate(rows)]))
    try:
        with torch.no_grad():
            centres, directions = (tuple(rows[at][order] for at in varying) for order in (0, 1))
            tangents = torch.func.jvp(value, centres, directions)[1]
    except (NotImplementedError, RuntimeError) as error:
        if "forward AD" not in str(error):
            raise
        return
    for tangent, series in zip(tangents, expected, strict=True):
        if isinstance(series, Series):
            torch.testing.assert_close(tangent, series.coefficient(1), rtol=1e-6, atol=1e-9)


def dtype_is_the_plain_ops(prepared: Prepared) -> None:
    """In lower precision the result has the plain op's dtype, and no more error than its digits."""
    case = prepared.case
    if case.whole:
        return
    varying = list(prepared.chosen())[-1]

    def results(dtype: torch.dtype) -> tuple[list[Any], list[Any]]:
        rows = [_tensor(values[:3]).to(dtype) for values in prepared.coefficients]
        given = [Series(values, 2) if i in varying else values[0] for i, values in enumerate(rows)]
        centre = [values[0] for values in rows]
        # Constants of a case are in float64, so promotion is left out of the comparison.
        plain = _outputs(case.op(*_cast(prepared.args(centre), dtype), **case.kwargs))
        entry = find_rule(case.op)
        assert entry is not None
        return plain, _outputs(entry.rule(2, *_cast(prepared.args(given), dtype), **case.kwargs))

    _, exact = results(torch.float64)
    for dtype in (torch.float32, torch.bfloat16):
        try:
            plain, short = results(dtype)
        except (RuntimeError, NotImplementedError) as error:
            if not any(
                said in str(error)
                for said in ("not implemented", "not supported", "expected", "must be either", "other than")
            ):
                raise
            continue  # The op itself has no kernel for the dtype.
        for value, result, reference in zip(plain, short, exact, strict=True):
            if not isinstance(result, Series) or not isinstance(reference, Series):
                continue
            assert result.dtype == value.dtype
            if not value.isfinite().all():
                continue  # The op's own kernel gives none, as that of matrix_exp in bfloat16.
            scale = reference.stacked().abs().max()
            error = (result.stacked().double() - reference.stacked()).abs().max()
            assert float(error) <= 400 * torch.finfo(dtype).eps * float(scale) + 1e-6


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(_cast(item, dtype) for item in value)
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def _moving(prepared: Prepared, varying: tuple[int, ...]) -> tuple[dict[str, Any], dict[str, int]]:
    marker = object()
    given = [marker if i in varying else None for i in range(len(prepared.coefficients))]
    bound = bind(prepared.case.op, prepared.args(given), prepared.case.kwargs)

    def count(value: Any) -> int:
        return sum(map(count, value)) if isinstance(value, (list, tuple)) else int(value is marker)

    return bound, {name: found for name, value in bound.items() if (found := count(value))}


def _affine(prepared: Prepared, varying: tuple[int, ...]) -> bool:
    entry = find_rule(prepared.case.op)
    assert entry is not None
    return entry.affine_in(*_moving(prepared, varying))


def _steps(prepared: Prepared, random: np.random.Generator) -> list[tuple[Any, Any]]:
    """Two moves of every varying argument, large enough to leave a piece where the op has any."""
    case = prepared.case
    moves = []
    for rows in prepared.coefficients:
        size = (2, *rows.shape[1:])
        if case.style == "smooth":
            low = -case.reach if case.reach else 0.0
            first, second = random.uniform(low, case.reach or 0.1, size)
        else:
            first, second = (random.integers(-40, 40, size) / (1 if case.whole else 4)).astype(rows.dtype)
        moves.append((first, second))
    return moves


def _mixed_difference(prepared: Prepared, varying: tuple[int, ...], moves: list[tuple[Any, Any]]) -> float:
    """|f(x + a + b) - f(x + a) - f(x + b) + f(x)|, relative."""

    def value(first: bool, second: bool) -> list[Tensor]:
        given = [
            _tensor(rows[0] + (first * a + second * b) * (i in varying))
            for i, (rows, (a, b)) in enumerate(zip(prepared.coefficients, moves, strict=True))
        ]
        return [item.double() for item in _outputs(prepared.plain(given)) if item.is_floating_point()]

    worst = 0.0
    corners = zip(value(True, True), value(True, False), value(False, True), value(False, False), strict=True)
    for both, left, right, neither in corners:
        if neither.numel():
            difference = (both - left - right + neither).abs().max()
            worst = max(worst, float(difference / (1 + neither.abs().max())))
    return worst


def declared_affine_iff_affine(prepared: Prepared) -> None:
    """f(x + a + b) - f(x + a) - f(x + b) + f(x) vanishes for all a, b just where the registry says affine."""
    places = [i for i in range(len(prepared.coefficients)) if i not in prepared.case.fixed]
    random = np.random.default_rng(0)
    for size in range(1, min(len(places), 3) + 1):
        for varying in itertools.combinations(places, size):
            worst = max(_mixed_difference(prepared, varying, _steps(prepared, random)) for _ in range(6))
            assert _affine(prepared, varying) == (worst < 1e-10), f"{prepared.case.name}, {varying}: {worst:.1e}"


def _node(prepared: Prepared) -> tuple[fx.Node, list[fx.Node]]:
    """The case as a node of a graph, and those of its arguments that may vary; the others know their values."""
    graph = fx.Graph()
    given = [graph.placeholder(f"x{i}") for i in range(len(prepared.coefficients))]
    for source in given:
        source.meta["shape"] = ()

    def held(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return type(value)(map(held, value))
        if not isinstance(value, Tensor):
            return value
        constant = graph.placeholder("held")
        constant.meta["value"] = value
        return constant

    args = held(prepared.args(given))
    kwargs = {name: held(value) for name, value in prepared.case.kwargs.items()}
    return graph.call_function(prepared.case.op, args, kwargs), given


def declared_constant_iff_not_zero_at_zero(prepared: Prepared) -> None:
    """Where the op is affine in the arguments that vary, its result at their zero is its constant part: the
    first one of several, all of a list of tensors."""
    case = prepared.case
    node, sources = _node(prepared)
    places = [i for i in range(len(prepared.coefficients)) if i not in case.fixed]
    for size in range(1, len(places) + 1):
        for varying in itertools.combinations(places, size):
            moving = {sources[i] for i in varying}
            if not _affine(prepared, varying) or moving.isdisjoint(values_read(node)):
                continue
            given = [_tensor(abs(rows[0]) * (i not in varying)) for i, rows in enumerate(prepared.coefficients)]
            several = len(getattr(getattr(case.op, "_schema", None), "returns", ())) > 1
            values = _outputs(prepared.plain(given))
            found = any(bool(value.any()) for value in (values[:1] if several else values))
            assert adds_constant(node, moving.__contains__) == found, f"{case.name}, {varying}"


def _constants(node: fx.Node) -> dict[fx.Node, Tensor]:
    return {arg: arg.meta["value"] for arg in node.all_input_nodes if "value" in arg.meta}


OF_SCORES = "scaled_dot_product_attention.default-1"
"""Its line starts where the scores are 0, with the mask added."""


SHIFTED_ON_SOME_PIECES = ("relu6", "clamp", "max.other", "maximum", "fmax", "min.other", "minimum", "fmin", "fmod")
SHIFTED_ON_SOME_PIECES += ("scatter_reduce",)
"""These are said to have a constant wherever they are."""


def held_it_is_affine(prepared: Prepared) -> None:
    """A frozen evaluation gives the op's value at the centre and is linear in the direction, and keeps rows apart.

    Along the centre itself it is all of the value, where it is said to have no constant, and all but its value at 0
    where it is the line between the two.
    """
    entry = find_rule(prepared.case.op)
    assert entry is not None
    if entry.gate is None and entry.held is None:
        return
    node, sources = _node(prepared)

    def refused(varying: tuple[int, ...]) -> bool:
        """A product of what varies, without a gate behind it, and scores that are one with values that do not vary."""
        name = prepared.case.name
        pattern = name.startswith("scaled_dot_product") and {0, 1} <= {*varying} and 2 not in varying
        return pattern or name.startswith("square.") or name in ("pow.Tensor_Scalar", "pow.Tensor_Scalar-1")

    rows = [_tensor(values[:2]) for values in prepared.coefficients]
    plain = _outputs(prepared.plain([row[0] for row in rows]))
    for varying in itertools.chain.from_iterable(itertools.combinations(range(len(rows)), n + 1) for n in range(3)):

        def found(shares: list[float], apart: bool = False, varying: tuple[int, ...] = varying) -> list[Any]:
            given: list[Any] = [row[0] for row in rows]
            for at in varying:
                both = rows[at][0], torch.tensordot(torch.tensor(shares).to(rows[at]), rows[at], 1)
                given[at] = Series.of_rows(both, 1) if apart else Series(torch.stack(both), 1)
            values = dict(zip(sources, given, strict=True)) | _constants(node)
            return _outputs(evaluate([node], values, 1, frozen=Freeze())[node])

        if refused(varying):
            with pytest.raises(InputError, match="not affine"):
                found([1, 0])
            continue
        along, away, both = found([1, 0]), found([0, 1], apart=True), found([2, 3])
        for value, other, sum_, first in zip(along, away, both, plain, strict=True):
            what = partial("{}\n{}, {}".format, prepared.case.name, varying)
            close = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-9, equal_nan=True, msg=what)
            if not isinstance(value, Series):
                close(value, first)
            else:
                assert value.order == other.order == 1
                close(value.coefficient(0), first)
                close(other.coefficient(0), first)
                assert other.apart
                close(sum_.coefficient(1), 2 * value.coefficient(1) + 3 * other.coefficient(1))
        if not isinstance(along[0], Series):
            continue
        rest = plain[0] - along[0].coefficient(1)
        one = node.graph.placeholder("one")
        entered = {sources[at]: one for at in varying}
        args: Any = map_arg(node.args, lambda arg, to=entered: to.get(arg, arg))
        constant = leaves_constant([node.graph.call_function(prepared.case.op, args, node.kwargs)], one)
        if not constant or not prepared.case.name.startswith(SHIFTED_ON_SOME_PIECES):
            assert constant == bool((rest.abs() > 1e-9).any()), f"{prepared.case.name}, {varying}"
        at_zero = _outputs(prepared.plain([row[0] * (at not in varying) for at, row in enumerate(rows)]))[0]
        if entry.line is not None and at_zero.isfinite().all() and prepared.case.name != OF_SCORES:
            torch.testing.assert_close(rest, at_zero, rtol=1e-9, atol=1e-9)


LAWS = (
    agrees_with_oracle,
    structural_zeros_change_nothing,
    what_stays_may_be_a_series,
    zeros_before_a_series_change_nothing,
    coefficient_0_has_the_bits_of_the_plain_op,
    coefficient_0_has_a_tangent,
    direction_alone,
    dtype_is_the_plain_ops,
    declared_affine_iff_affine,
    declared_constant_iff_not_zero_at_zero,
    held_it_is_affine,
)


@pytest.mark.parametrize("case", SERIES_CASES, ids=lambda case: case.name)
def test_a_rule_obeys_the_laws(case: Case) -> None:
    """All of them in one test: there are hundreds of rules, and a test by itself takes as long as most laws."""
    for law in LAWS:
        law(Prepared(case))


def test_every_rule_has_a_case() -> None:
    covered = {case.op for case in CASES} | traced_ops()
    uncovered = sorted(
        op_name(op) for op in RULES if op not in covered and not any(str(known) == op for known in covered)
    )
    assert not uncovered, f"rules without a case in tests/jets/cases.py: {', '.join(uncovered)}"


@pytest.mark.parametrize("value", [0.0, 1.0, 2.5])
@pytest.mark.parametrize("start", [0, 1])
@pytest.mark.parametrize("rows", [1, 3])
def test_numbers_that_are_put_in_count_at_order_0_alone(value: float, start: int, rows: int) -> None:
    aten, x = torch.ops.aten, Series(torch.randn(2, rows, 4, dtype=torch.float64), 3, start)
    places = torch.tensor([[0, 2, 1, 1]]) % rows
    for op, *args in (
        (aten.constant_pad_nd.default, (1, 2)),
        (aten.pad.default, (1, 2), "constant"),
        (aten.scatter.value, 0, places),
        (aten.index_fill.int_Scalar, 1, places[0, :2]),
        (aten.masked_fill.Scalar, torch.tensor([True, False, True, False])),
    ):
        found = RULES[op].rule(3, x, *args, value)
        for j in range(4):
            assert torch.equal(found.coefficient(j), op(x.coefficient(j), *args, value if j == 0 else 0.0)), (op, j)


def _with_defaults(case: Case) -> tuple[Case, Case] | None:
    """A case with the arguments alone that its op wants, and with all others at what the op says that they are."""
    schema = getattr(case.op, "_schema", None)
    placed = [argument for argument in schema.arguments if not argument.kwarg_only] if schema else []
    wanted = sum(not argument.has_default_value() for argument in placed)
    others = [argument.default_value for argument in placed[wanted:]]
    more = [argument for argument in schema.arguments if argument.kwarg_only] if schema else []
    named = {argument.name: argument.default_value for argument in more if argument.has_default_value()}
    if not (others or named) or any(argument.name in case.kwargs for argument in placed):
        return None
    kept = {name: value for name, value in case.kwargs.items() if name not in named}
    short = dataclasses.replace(case, args=case.args[:wanted], kwargs=kept)
    return short, dataclasses.replace(case, args=(*short.args, *others), kwargs=named | kept)


def test_dropout_leaves_a_model_alone_that_is_not_in_training() -> None:
    """Or that drops nothing; else its value is random, and no affine function of anything."""
    x = Series(torch.randn(2, 3), 2)
    for name in ("dropout", "feature_dropout", "alpha_dropout", "native_dropout"):
        entry = RULES[getattr(torch.ops.aten, name).default]
        for p, train, random in ((0.5, False, False), (0.0, True, False), (1e-3, True, True), (1.0, True, True)):
            assert entry.affine_in({"input": None, "p": p, "train": train}, {"input": 1}) == (not random)
            if random:
                with pytest.raises(TraceError, match=r"training mode.*call \.eval\(\) on the model"):
                    entry.rule(2, x, p, train)
            else:
                assert _outputs(entry.rule(2, x, p, train))[0] is x
    with pytest.raises(TraceError, match=r"rrelu is in training mode.*call \.eval\(\) on the model"):
        RULES[torch.ops.aten.rrelu.default].rule(2, x, 0.1, 0.3, True)


def test_arguments_that_are_left_out_are_what_the_op_says() -> None:
    """A traced graph leaves out what is at its default."""
    checked = 0
    for case in {case.op: case for case in CASES if not case.plain}.values():
        both = _with_defaults(case)
        if both is None:
            continue
        short, full = map(Prepared, both)
        given = [rows[0] for rows in short.coefficients]
        try:
            plain = _outputs(short.plain(list(map(_tensor, given))))
        except (RuntimeError, ValueError, IndexError):
            continue
        series = [_series(rows, 2) for rows in short.coefficients]
        for found, expected, at_centre in zip(
            *(_outputs(one.rule(2, series)) for one in (short, full)), plain, strict=True
        ):
            stacks = [one.stacked() if isinstance(one, Series) else one for one in (found, expected)]
            assert torch.equal(*stacks), case.name
            assert stacks[0].shape[stacks[0].dim() - at_centre.dim() :] == at_centre.shape, case.name
        checked += 1
    assert checked > 80


def test_series_that_do_not_vary_and_rows_that_are_not_there() -> None:
    aten = torch.ops.aten
    above, below = torch.tensor([1.0, -3.0]), torch.tensor([0.25, 4.0])
    for one in (above, Series.constant(above, 2)):
        found = RULES[aten.div.Tensor].rule(2, one, Series.constant(below, 2))
        assert found.stacked().tolist() == [[4, -0.75], [0, 0], [0, 0]]
    # A root has a value at 0, though no slope.
    root = RULES[aten.pow.Tensor_Scalar].rule(2, Series.constant(torch.tensor([0.0, 4.0]), 2), 0.5)
    assert root.stacked().tolist() == [[0, 2], [0, 0], [0, 0]]
    one = Series(torch.tensor([1.5, -2.0]), 1)
    assert RULES[aten.max.dim].rule(1, one, 0)[0].stacked().tolist() == [1.5, -2]
    # Of what is no number there, a quantile has the others.
    few = Series(torch.tensor([[1.0, torch.nan, 3.0, 2.0], [10.0, 0.0, 30.0, 20.0]]), 1)
    found = RULES[aten.nanquantile.scalar].rule(1, few, 0.25)
    assert found.stacked().tolist() == [1.5, 15.0]
    gap = Series.of_rows([below, None, above], 3)
    half = RULES[aten.exp.default].rule(3, Series.of_rows([below.half(), None, above.half()], 3))
    torch.testing.assert_close(
        half.stacked().float(), RULES[aten.exp.default].rule(3, gap).stacked(), rtol=1e-3, atol=0
    )
    late = Series.of_rows([None, None, above], 3)
    for op in (aten.tanh.default, aten.elu.default):
        short, written_out = (RULES[op].rule(3, one).stacked() for one in (late, Series(late.stacked(), 3)))
        assert torch.equal(short, written_out)
    early = Series.of_rows([below, above], 3)
    powers = [RULES[aten.pow.Tensor_Tensor].rule(3, one, above) for one in (early, Series(early.stacked(), 3))]
    assert torch.equal(*(one.stacked() for one in powers))
    square = Series.of_rows([below, None, above], 2)
    norms = [RULES[aten.norm.ScalarOpt_dim].rule(2, square, p, [0]).stacked() for p in (None, 2)]
    assert torch.equal(*norms)
    found = RULES[aten.pow.Tensor_Tensor].rule(2, square, torch.tensor([2.0, 0.5]))
    assert found.stacked().tolist() == [[0.0625, 2], [0, 0], [0.5, -0.75]]


def test_dims_are_counted_from_both_ends() -> None:
    """Of each op that goes along one dim: at any of them what finite differences give."""
    random = torch.Generator().manual_seed(0)
    x, v = torch.randn((2, 2, 4, 6), dtype=torch.float64, generator=random)
    seen = 0
    for op, entry in RULES.items():
        schema = getattr(op, "_schema", None)
        placed = [argument for argument in schema.arguments if not argument.kwarg_only] if schema else []
        if [argument.name for argument in placed[:2]] != ["self", "dim"] or str(placed[1].type) != "int":
            continue
        if not all(argument.has_default_value() for argument in placed[2:]):
            continue
        seen += 1
        for dim in range(-3, 3):
            below, at, above = (_outputs(op(x + step * v, dim)) for step in (-1e-6, 0, 1e-6))
            results = _outputs(entry.rule(1, Series.variate(x, v, 1), dim))
            for low, middle, high, found in zip(below, at, above, results, strict=True):
                if isinstance(found, Series):
                    torch.testing.assert_close(found.coefficient(0), middle, rtol=1e-12, atol=1e-12)
                    slope = (high - low) / 2e-6
                    torch.testing.assert_close(found.coefficient(1), slope, rtol=1e-6, atol=1e-6, msg=f"{op} {dim}")
    assert seen > 10


def _of_a_number(op: Any) -> Iterator[list[Any]]:
    """Arguments beside a number, its dims named in each way that there is; none of an op that takes something else."""
    arguments = getattr(getattr(op, "_schema", None), "arguments", ())
    kinds = {"int": 1, "number": 2.0, "Optional[number]": 2.0, "Tensor": torch.tensor(2.0).double()}
    if [argument.name for argument in arguments[:1]] != ["self"] or "Tensor" not in str(arguments[0].type):
        return
    placed = [argument for argument in arguments[1:] if not argument.kwarg_only]
    for dim in (0, -1, [0], [-1], [], None):
        given = [
            dim
            if argument.name in ("dim", "dims", "dimension")
            else torch.tensor(0)
            if argument.name == "index"
            else argument.default_value
            if argument.has_default_value()
            else kinds.get(str(argument.type))
            for argument in placed
        ]
        yield given
        if "dim" not in [argument.name for argument in placed]:
            return


OF_NO_NUMBER = ("var", "std", "mT.", "acosh.", "special_zeta.", "special_gammainc", "igamma")
"""No ops of a number below 1: there is no variance of one, and a transpose of one is warned of; the first
argument of the last ones has to stand still."""


def test_a_number_has_a_dim() -> None:
    """Of each op that is given a number and, if it goes along dims, one of its dims: what finite differences give."""
    curve = torch.tensor([0.7, 0.3, -0.2], dtype=torch.float64)
    x, step, seen = Series(curve, 2), 1e-5, set[str]()
    for op, entry in RULES.items():
        name = str(op).removeprefix("aten.")
        if name.startswith(OF_NO_NUMBER):
            continue
        for given in _of_a_number(op):
            if given[:1] == [[]] and name.startswith("logsumexp"):
                continue  # PyTorch has it of a number, and not of one entry.
            assert callable(op)
            try:
                below, at, above = (_outputs(op(curve[0] + t * curve[1], *given)) for t in (-step, 0, step))
            except (RuntimeError, TypeError, ValueError, IndexError):
                continue
            if not (at and isinstance(at[0], Tensor) and at[0].is_floating_point()):
                continue
            for low, middle, high, found in zip(below, at, above, _outputs(entry.rule(2, x, *given)), strict=True):
                if isinstance(found, Series):
                    seen.add(name)
                    what = f"{name} {given}"
                    assert found.shape == middle.shape, what
                    torch.testing.assert_close(found.coefficient(0), middle, msg=what)
                    slope = (high - low) / (2 * step)
                    torch.testing.assert_close(found.coefficient(1), slope, rtol=1e-6, atol=1e-6, msg=what)
    assert len(seen) > 120


def test_a_tensor_may_be_empty() -> None:
    """Along a dim that is gone afterwards, or stays: values and zeros above, as of a sum of nothing."""
    aten = torch.ops.aten
    empty = Series(torch.zeros(2, 2, 0, 4, dtype=torch.float64), 2)
    calls: list[tuple[Any, tuple[Any, ...]]] = [
        (aten.cumprod.default, (1,)),
        (aten.cumsum.default, (1,)),
        (aten.linalg_vector_norm.default, (2, [1])),
        (aten.linalg_vector_norm.default, (3, [1])),
        (aten.logsumexp.default, ([1],)),
        (aten.logsumexp.default, ([2],)),
        (aten.group_norm.default, (2,)),
        (aten.native_group_norm.default, (None, None, 0, 2, 4, 2, 1e-5)),
        (aten.prod.dim_int, (1,)),
    ]
    for op, args in calls:
        x = empty.like(empty.coefficients.transpose(1, 2)) if "group" in str(op) or args == ([2],) else empty
        own, found = _outputs(op(x.coefficient(0), *args))[0], _outputs(RULES[op].rule(2, x, *args))[0]
        assert found.shape == own.shape, op
        assert torch.equal(found.coefficient(0), own), op
        assert not found.coefficient(1).any(), op


def test_variances_of_few_entries() -> None:
    """Of one, of a number along its dim, and of fewer than are taken off: what the operators give, slopes NaN."""
    aten = torch.ops.aten
    for op in (aten.var.correction, aten.std.correction, aten.var_mean.correction, aten.std_mean.correction):
        for centre in (torch.tensor(3.0), torch.tensor([3.0]), torch.tensor([3.0, 5.0])):
            for dim, correction, keepdim in itertools.product(([0], [-1], None), (0, 1, 3), (False, True)):
                if centre.numel() < 2 and correction == 0 and "std" in str(op):
                    continue  # A root of 0, which has no expansion.
                named = {"correction": correction, "keepdim": keepdim}
                found = _outputs(RULES[op].rule(1, Series.variate(centre, torch.ones_like(centre), 1), dim, **named))
                for own, series in zip(_outputs(op(centre, dim, **named)), found, strict=True):
                    torch.testing.assert_close(series.coefficient(0), own, equal_nan=True)
                    assert series.shape == own.shape
                if centre.numel() == 1 and correction:
                    assert found[0].coefficient(1).isnan().all()


@pytest.mark.parametrize("op", [torch.ops.aten.instance_norm.default, torch.ops.aten.batch_norm.default])
def test_running_statistics_stay_as_they_are(op: Any) -> None:
    """Of a norm by its input's statistics, whose operator would move them on."""
    x = torch.randn(2, 2, 3, 4, dtype=torch.float64)
    mean, var = torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    own = op(x[0][None], None, None, mean.clone(), var.clone(), True, 0.1, 1e-5, False)
    for rule in (RULES[op].rule, RULES[op].held):
        assert rule is not None
        found = rule(1, Series.variate(x[0][None], x[1][None], 1), None, None, mean, var, True, 0.1, 1e-5, False)
        assert (mean.tolist(), var.tolist()) == ([0, 0], [1, 1])
        torch.testing.assert_close(found.coefficient(0), own)


def test_a_norm_needs_a_deviation() -> None:
    """Where nothing is added to it."""
    aten, v = torch.ops.aten, torch.tensor([[1.0, 2, 4, 3]])
    for op, centre in ((aten.layer_norm.default, torch.ones(1, 4)), (aten.rms_norm.default, torch.zeros(1, 4))):
        series = Series.variate(centre, v, 2)
        with pytest.raises(DomainError, match="the mean square under a norm must be positive"):
            RULES[op].rule(2, series, [4], eps=0.0)
        away = v - v.mean() if op is aten.layer_norm.default else v
        torch.testing.assert_close(RULES[op].rule(2, series, [4], eps=0.25).coefficient(1), 2 * away)
    with pytest.raises(DomainError, match="the variance under a standard deviation must be positive"):
        RULES[aten.std.correction].rule(1, Series.variate(torch.ones(1, 4), v, 1), [1])


def test_where_functions_have_no_expansion() -> None:
    """A value may be there all the same."""
    aten = torch.ops.aten
    x = torch.tensor([0.0, 1.0])
    still, moving, apart = Series.constant(x, 1), Series.variate(x, x + 1, 1), Series.variate(x + 1, x, 1)
    for op, *rest in ((aten.sqrt.default,), (aten.pow.Tensor_Scalar, 0.5)):
        assert RULES[op].rule(1, still, *rest).coefficient(0).tolist() == [0, 1]
        with pytest.raises(DomainError, match="must be positive"):
            RULES[op].rule(1, moving, *rest)
    with pytest.raises(DomainError, match="must be positive"):
        RULES[aten.pow.Tensor_Scalar].rule(0, Series(x[None], 0), -0.5)
    torch.testing.assert_close(RULES[aten.atan2.default].rule(1, apart, x + 1).coefficient(1), x / (x + 1) / 2)
    for op, outside in ((aten.logit.default, (0.0, 1.0, 1.5)), (aten.log1p.default, (-1.0, -1.5))):
        for value in outside:
            with pytest.raises(DomainError, match=r"must lie between 0 and 1|must be above -1"):
                RULES[op].rule(0, Series(torch.tensor([[value, 0.5]]), 0))
    both = torch.tensor([1.0, -0.5])
    assert RULES[aten.atan2.default].rule(0, Series(both.flip(0)[None], 0), both).first.isfinite().all()
    with pytest.raises(DomainError, match="must not both be 0"):
        RULES[aten.atan2.default].rule(1, moving, x)


@torch.no_grad()
def test_slopes_in_bfloat16_are_rounded_once() -> None:
    """That of SiLU by one kernel; others have the general way."""
    x, v = torch.linspace(-4, 4, 64, dtype=torch.float64), torch.linspace(1, 3, 64, dtype=torch.float64)
    for op in (torch.ops.aten.silu.default, torch.ops.aten.gelu.default):
        for order in (1, 2):
            series = Series.variate(x.bfloat16(), v.bfloat16(), order)
            short, exact = (
                RULES[op].rule(order, series.like(series.coefficients.to(to))) for to in (torch.bfloat16, x.dtype)
            )
            torch.testing.assert_close(short.stacked().double(), exact.stacked(), rtol=2**-8, atol=1e-4)
    base = Series.variate(x[32:].bfloat16() + 1, v[32:].bfloat16(), 1)
    short, exact = (
        RULES[torch.ops.aten.pow.Tensor_Tensor].rule(
            1, base.like(base.coefficients.to(to)), torch.tensor(1.5, dtype=to)
        )
        for to in (torch.bfloat16, x.dtype)
    )
    torch.testing.assert_close(short.stacked().double(), exact.stacked(), rtol=2**-8, atol=0)
    # The kernel would make no number of an overflow where the function is flat.
    over = Series.variate(torch.tensor([-200.0, -60.0, 60.0]).half(), torch.full((3,), torch.inf).half(), 1)
    found = RULES[torch.ops.aten.silu.default].rule(1, over).coefficient(1)
    assert found.tolist() == [0, -torch.inf, torch.inf]


def test_a_line_has_the_derivative_at_zero_and_beside_it() -> None:
    aten, z = torch.ops.aten, torch.tensor([0.0, 1e-9, 2.0], dtype=torch.float64)
    for op, slope, value in ((aten.tanh.default, 1.0, z.tanh()), (aten.sigmoid.default, 0.25, z.sigmoid() - 0.5)):
        line = RULES[op].line
        assert line is not None
        expected = torch.cat([torch.full((2,), slope).double(), value[2:] / 2])
        torch.testing.assert_close(line(1, Series.variate(z, torch.ones_like(z), 1)).coefficient(1), expected)


def test_a_gate_is_zero_at_zero_as_far_as_its_arguments_are_known() -> None:
    through = RULES[torch.ops.aten.gelu.default].through_zero, RULES[torch.ops.aten.tanh.default].through_zero
    assert through[0] is True
    assert callable(through[1])
    assert through[1]({"self": None})
    assert not through[1]({"self": None, "other": object()})


def test_attention_that_is_random_is_refused() -> None:
    x = Series.variate(torch.ones(1, 2, 3), torch.ones(1, 2, 3), 1)
    with pytest.raises(TraceError, match="dropout switched on"):
        RULES[torch.ops.aten.scaled_dot_product_attention.default].rule(1, x, x, x, None, 0.5)


@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize("projected", [0, 2])
def test_an_lstm_may_project_what_it_puts_out(biases: bool, projected: int) -> None:
    """With biases or without: against finite differences."""
    cell = torch.nn.LSTM(3, 4, proj_size=projected, bias=biases, batch_first=True, dtype=torch.float64)
    weights = [weight.detach() for weight in cell._flat_weights]
    state = [torch.randn(1, 2, projected or 4, dtype=torch.float64), torch.randn(1, 2, 4, dtype=torch.float64)]
    x, v = torch.randn(2, 2, 5, 3, dtype=torch.float64)
    op, rest = torch.ops.aten.lstm.input, (state, weights, biases, 1, 0.0, False, False, True)
    below, at, above = (op(x + step * v, *rest) for step in (-1e-6, 0, 1e-6))
    for low, middle, high, found in zip(
        below, at, above, RULES[op].rule(1, Series.variate(x, v, 1), *rest), strict=True
    ):
        torch.testing.assert_close(found.coefficient(0), middle)
        torch.testing.assert_close(found.coefficient(1), (high - low) / 2e-6, rtol=1e-6, atol=1e-6)


def test_dtypes_that_are_asked_for() -> None:
    """Are those of the result, and of what it is worked out in."""
    aten, rows = torch.ops.aten, torch.randn(2, 2, 3)
    x, wide = Series(rows, 2), Series(rows.double(), 2)
    for op, *args in (
        (aten.linalg_vector_norm.default, 2, [1]),
        (aten.prod.default,),
        (aten.prod.dim_int, 1),
        (aten.cumprod.default, 1),
        (aten.cumsum.default, 1),
        (aten.sum.dim_IntList, [1]),
        (aten.mean.dim, [1]),
    ):
        found = RULES[op].rule(2, x, *args, dtype=torch.float64).stacked()
        assert found.dtype == torch.float64
        torch.testing.assert_close(found, RULES[op].rule(2, wide, *args).stacked(), rtol=1e-13, atol=1e-13)
