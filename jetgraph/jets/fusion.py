"""Series evaluations through `torch.compile`, which fuses the elementwise work between the matrix products.

An evaluation is run once under `make_fx`, which leaves the flat graph of the tensor ops that it takes for these shapes,
this order and these structural zeros; that graph is compiled. Weights are inputs of it, so the layers of a model that
are built alike share one compilation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from jetgraph.algebra.rules import Freeze
from jetgraph.errors import StateError
from jetgraph.export.process import alone
from jetgraph.jets import domain
from jetgraph.jets.interpreter import evaluate
from jetgraph.jets.series import Series


@dataclass(frozen=True, eq=False)
class _Program:
    """A compiled evaluation: tensors → coefficients, and whether the centre lies in the domain of every op."""

    call: Callable[..., tuple[Tensor, Tensor]]
    start: int | None
    """First order that the coefficients are of; None for a result that is no series."""


class Fusion:
    """Compiled evaluations, kept by what they compute and for which shapes.

    `options` are those of `torch.compile`. A copy starts empty.
    """

    def __init__(self, **options: Any) -> None:
        self._options = options
        self._programs: dict[Any, _Program] = {}
        self._compiled: dict[Any, Callable[..., tuple[Tensor, Tensor]]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(Fusion, **self._options), ()

    def __len__(self) -> int:
        """Number of compilations."""
        return len(self._compiled)

    def __call__(
        self, nodes: Sequence[fx.Node], values: dict[fx.Node, Any], order: int, result: fx.Node, frozen: Freeze | None
    ) -> Any:
        """The value of `result` as `interpreter.evaluate` gives it.

        The first call for given nodes, order, shapes, dtypes and structural zeros compiles, which takes seconds to a
        minute. Raises what `evaluate` raises, and `StateError` where `torch.compile` fails.
        """
        nodes = tuple(nodes)
        computed = set(nodes)
        read = dict.fromkeys(used for node in nodes for used in node.all_input_nodes if used not in computed)
        leaves, structure = pytree.tree_flatten([values[node] for node in read], lambda leaf: isinstance(leaf, Series))
        tensors = [leaf.coefficients if isinstance(leaf, Series) else leaf for leaf in leaves if _is_tensor(leaf)]
        key = (nodes, order, result, frozen, structure, tuple(map(_kind, leaves)))

        def run(*given: Tensor) -> Any:
            filled = iter(given)
            again = [
                Series(next(filled), leaf.order, leaf.start)
                if isinstance(leaf, Series)
                else next(filled)
                if isinstance(leaf, Tensor)
                else leaf
                for leaf in leaves
            ]
            inputs = dict(zip(read, pytree.tree_unflatten(again, structure), strict=True))
            return evaluate(nodes, inputs, order, keep={result}, frozen=frozen)[result]

        program = self._programs.get(key)
        if program is None:
            with alone():
                program = self._program(run, tensors, key[-1])
                coefficients, fine = self._checked(program.call, tensors)
            self._programs[key] = program
        else:
            coefficients, fine = self._checked(program.call, tensors)
        if not bool(fine):
            # Run openly, it says where.
            return run(*tensors)
        return coefficients if program.start is None else Series(coefficients, order, program.start)

    def _program(self, run: Callable[..., Any], tensors: Sequence[Tensor], kinds: Any) -> _Program:
        start: int | None = None

        def flat(*given: Tensor) -> tuple[Tensor, Tensor]:
            nonlocal start
            with domain.deferred() as checks:
                value = run(*given)
            start = value.start if isinstance(value, Series) else None
            held = value.coefficients if isinstance(value, Series) else value
            fine = torch.stack(checks).all() if checks else torch.ones((), dtype=torch.bool, device=held.device)
            return held, fine

        module = make_fx(flat)(*tensors)
        constants = [
            (name, tensor.dtype, tensor.device, tensor.tolist())
            for name, tensor in sorted(vars(module).items())
            if isinstance(tensor, Tensor)
        ]
        shared = (module.code, repr(constants), kinds)
        if shared not in self._compiled:
            self._compiled[shared] = torch.compile(module, dynamic=False, **self._options)
        return _Program(self._compiled[shared], start)

    def _checked(self, call: Callable[..., tuple[Tensor, Tensor]], tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        # Importing them takes a second, and few compile.
        from torch._dynamo.exc import TorchDynamoException
        from torch._inductor.exc import CppCompileError, InvalidCxxCompiler

        try:
            return call(*tensors)
        except (TorchDynamoException, CppCompileError, InvalidCxxCompiler) as error:
            raise StateError(
                f"torch.compile cannot compile a jet: {error}\nIt needs a C++ compiler on CPU and Triton on CUDA; "
                "without fuse=True nothing is compiled"
            ) from error


def _is_tensor(leaf: Any) -> bool:
    return isinstance(leaf, Series | Tensor)


def _kind(leaf: Any) -> Any:
    """All that a flat graph takes for granted about an input."""
    if isinstance(leaf, Series):
        return (leaf.order, leaf.start, *_kind(leaf.coefficients))
    if isinstance(leaf, Tensor):
        return tuple(leaf.shape), leaf.stride(), leaf.dtype, leaf.device
    return type(leaf), leaf
