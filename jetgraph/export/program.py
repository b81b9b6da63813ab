"""A module and example arguments → torch.export's program, and what is said where it refuses."""

from __future__ import annotations

import contextlib
import linecache
import os
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import sympy
import torch
import torch._prims_common
from torch import SymInt, Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from jetgraph.errors import TraceError
from jetgraph.export.decompositions import decomposed
from jetgraph.export.derivatives import own_derivatives
from jetgraph.export.frames import on_one_chunk
from jetgraph.export.lean import graphs_to_read, without_what_others_need
from jetgraph.export.precision import callers_device, own_types
from jetgraph.export.process import alone, torch_silent, without_stacks
from jetgraph.export.questions import bounded_questions


@contextlib.contextmanager
def ordinary_operators() -> Iterator[None]:
    """Run without gradients, without the caller's autocast, and without the fused inference path of
    `nn.TransformerEncoder`, which is one opaque operator.
    """
    with alone(), torch.no_grad(), own_types(), callers_device():
        torch.backends.mha.set_fastpath_enabled(False)
        yield


_WITHOUT_DERIVATIVES = ("out=... arguments don't support automatic differentiation", "does not support backward")
"""What torch says of operators that have no derivative where they run."""


@dataclass(frozen=True)
class Exported:
    """A module as a functional graph of ATen operators."""

    program: torch.export.ExportedProgram
    conditions: tuple[sympy.Basic, ...]
    """What the module's code took for granted of the sizes of its inputs, in the exporter's symbols."""


def export_program(
    module: nn.Module,
    args: tuple[Any, ...],
    shapes: Any = None,
    has_rule: Callable[[Any], bool] | None = None,
    *,
    derived: bool = False,
) -> Exported:
    """The functional graph of ATen operators of a module on example arguments.

    Parameters
    ----------
    has_rule
        As of `decomposed`.
    derived
        Write out what computes the derivatives that the module's code takes; composite operators are then written out
        too, and attention as the products that it is defined by, of which there are derivatives.
    """

    # Before anything is exchanged in torch, of which a module that is imported would keep what stands there meanwhile.
    from torch.export._trace import _export

    def export() -> Exported:
        with bounded_questions(), without_what_others_need(module, open_sizes=shapes is not None):
            if derived:
                with own_derivatives(module), sdpa_kernel(SDPBackend.MATH):
                    program = _export(module, args, dynamic_shapes=shapes, strict=False, pre_dispatch=False)
            else:
                program = torch.export.export(module, args, dynamic_shapes=shapes, strict=False)
        if any(isinstance(each, Tensor) and is_functorch_wrapped_tensor(each) for each in program.constants.values()):
            raise NotImplementedError("what a function of torch.func works on was taken for a constant")
        # Before operators are written with others: from then on nothing of the module's own is decided.
        conditions = _conditions(program)
        return Exported(decomposed(program, has_rule), conditions)

    # The exporter sets flags on tensors like the weights; on what was made in inference mode it may do so only there.
    made_there = any(parameter.is_inference() for parameter in module.parameters())
    with (
        ordinary_operators(),
        torch_silent(),
        without_stacks(),
        graphs_to_read(),
        torch.inference_mode(made_there),
        _untrained_packs(module),
    ):
        try:
            return on_one_chunk(export)
        except RuntimeError as error:
            if not any(said in str(error) for said in _WITHOUT_DERIVATIVES):
                raise
        # The exporter asks for derivatives of its own accord, which code that runs without them need not have.
        with _untrained(module.parameters()):
            return on_one_chunk(export)


def _untrained_packs(module: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Packed weights want no gradient: the exporter would ask the tensors inside for one, integers among them."""
    return _untrained(weight for weight in module.parameters() if is_traceable_wrapper_subclass(weight))


@contextlib.contextmanager
def _untrained(weights: Iterable[nn.Parameter]) -> Iterator[None]:
    trained = [weight for weight in weights if weight.requires_grad]
    for weight in trained:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in trained:
            weight.requires_grad_(True)


def _conditions(program: torch.export.ExportedProgram) -> tuple[sympy.Basic, ...]:
    """Choices by size that were made on the way, and sizes asserted.

    Without those of the layout of memory, which no value depends on: a tensor that happens to be contiguous.
    """
    conditions: dict[sympy.Basic, None] = {}
    for environment in _environments(program):
        asserted = [item.expr for items in environment.deferred_runtime_asserts.values() for item in items]
        chosen = [guard.expr for guard in environment.guards if not _is_of_layout(guard.sloc.framework_loc)]
        conditions |= dict.fromkeys(environment.replace(condition) for condition in (*chosen, *asserted))
    return tuple(condition for condition in conditions if condition.free_symbols)


def _is_of_layout(location: Any) -> bool:
    return getattr(location, "filename", "").startswith(os.path.dirname(torch._prims_common.__file__))


def _environments(program: torch.export.ExportedProgram) -> list[Any]:
    """Where the exporter notes what it takes for granted of sizes."""
    environments = {}
    for node in program.graph.find_nodes(op="placeholder"):
        value = node.meta.get("val")
        for size in value.shape if isinstance(value, Tensor) else ():
            if isinstance(size, SymInt):
                environments[id(size.node.shape_env)] = size.node.shape_env
    return list(environments.values())


def refused(error: Exception, model: nn.Module) -> TraceError:
    """What to say where torch.export refuses a model: what it met, in which module, at which line, and what to do."""
    path, line = _met(error, model)
    packed = _packed_weight(path, model)
    if chooses_by_values(error):
        what = "its control flow depends on the values of tensors"
        advice = ["Write the choice with torch.where, or make it outside of the model"]
    else:
        what = first_line(error)
        advice = [
            "Check that its control flow does not depend on the values of tensors, and that inputs which it fills in "
            "for itself (an attention mask, say) are given"
        ]
    if packed is not None:
        owner, said = packed
        advice = [*([] if owner == path else advice), said]
    return TraceError(f"torch.export refuses {type(model).__name__}: {what}{_at(path, line)}. {'. '.join(advice)}")


def chooses_by_values(error: BaseException) -> bool:
    """The exporter refuses because of a choice by the values of tensors."""
    return any(isinstance(cause, GuardOnDataDependentSymNode) for cause in _causes(error))


def line_above() -> str:
    """The innermost line being run that is not torch's or ours: `file:number, `source``."""
    for frame, number in traceback.walk_stack(None):
        file = frame.f_code.co_filename
        if not file.startswith(_NOT_THEIRS):
            return _written(file, number)
    return "a line"


def _written(file: str, number: int) -> str:
    source = linecache.getline(file, number).strip()
    return f"{file}:{number}" + (f", `{source[:120]}`" if source else "")


def _packed_weight(path: str, model: nn.Module) -> tuple[str, str] | None:
    """The module that has a weight which is no plain floating-point parameter, and what to do about it: the module of
    this path if it has one, else the first.
    """
    modules = dict(model.named_modules())
    for owner, module in {path: modules.get(path, model), **modules}.items():
        for name, weight in module.named_parameters(recurse=False):
            if type(weight) is not nn.Parameter or not (weight.is_floating_point() or weight.is_complex()):
                return owner, (
                    f"The {name} of {owner or 'the model'!r} ({type(module).__name__}) is a {type(weight).__name__} of "
                    f"{weight.dtype}: where the code of such quantised weights cannot be exported, {PLAIN_WEIGHTS}"
                )
    return None


PLAIN_WEIGHTS = (
    "trace a model with plain ones: the one that was quantised, or model.dequantize() in transformers, or with "
    "module.weight = nn.Parameter(module.weight.dequantize()) in each module where the weight's type can do so"
)
"""What to do where quantised weights are in the way."""


def fails_by_itself(error: Exception, model: nn.Module, given: Mapping[str, Any]) -> TraceError:
    """What to say where a model does not run on the example inputs, `given` by name."""
    other = {name: said for name, value in given.items() if (said := _no_tensor(value)) is not None}
    called = ""
    if other:
        names = " and ".join(f"{said} as {name!r}" for name, said in other.items())
        called = (
            f"It was called with {names}: jg.trace(model, x, name=y) calls model(x, name=y), so give tensors one by "
            "one where it takes tensors. "
        )
    return TraceError(
        f"jetgraph refuses {type(model).__name__}: {type(error).__name__}: {first_line(error)}{origin(error, model)}. "
        f"{called}Nothing was traced yet: check that the model runs on these inputs by itself"
    )


def _no_tensor(value: Any) -> str | None:
    """What an argument is that may stand where a tensor has to; None for tensors and options."""
    if value is None or isinstance(value, Tensor | bool | int):
        return None
    kind = type(value).__name__
    text = f"{'an' if kind[0].lower() in 'aeiou' else 'a'} {kind}"
    if not isinstance(value, tuple | list | Mapping):
        return text
    leaves = list(value.values() if isinstance(value, Mapping) else value)
    tensors = sum(isinstance(leaf, Tensor) for leaf in leaves)
    return f"{text} of {tensors} tensor{'s' * (tensors != 1)}" if tensors == len(leaves) else text


def first_line(error: BaseException) -> str:
    """The first line of an error's text that says something."""
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)[:300].rstrip(".")


def origin(error: BaseException, model: nn.Module) -> str:
    """Where an error came from: the innermost module of the model, and the innermost line that is not torch's."""
    return _at(*_met(error, model))


def _at(path: str, line: str) -> str:
    return (f", in module {path!r}" if path else "," * bool(line)) + line


def _met(error: BaseException, model: nn.Module) -> tuple[str, str]:
    """The path of that module, and the line; empty where there are none."""
    paths = {id(module): path for path, module in model.named_modules()}
    for cause in _causes(error):
        module, line = "", ""
        for frame, number in traceback.walk_tb(cause.__traceback__):
            module = paths.get(id(frame.f_locals.get("self")), module)
            file = frame.f_code.co_filename
            if not file.startswith(_NOT_THEIRS):
                line = f" at {_written(file, number)}"
        if line:
            return module, line
    return "", ""


_NOT_THEIRS = (
    os.path.dirname(torch.__file__) + os.sep,
    os.path.dirname(os.path.dirname(__file__)) + os.sep,
    "<eval_with",
    "<string>",
)
"""Files whose lines a user did not write."""


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
