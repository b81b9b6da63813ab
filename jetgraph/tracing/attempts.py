"""Attempts to export a model: the most dynamic first, until the exporter grants one that holds for the example.

levels    all sizes open, then the batch alone, then none
examples  the example made wider where it has sizes of 1, which the exporter takes for constants; then as it is
states    the model's buffers as they were before it first ran, then as they are now
deciding  where values of tensors decide, what the code asks is answered as on the example
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from jetgraph.errors import InputError, SizeError, TraceError
from jetgraph.export.program import chooses_by_values, export_program, first_line, refused
from jetgraph.export.waiting import stage
from jetgraph.jets.registry import has_rule
from jetgraph.tracing.agreement import compare
from jetgraph.tracing.called import Called
from jetgraph.tracing.copies import copy_program
from jetgraph.tracing.decisions import Answering, Heard, modules_stay
from jetgraph.tracing.examples import generic, open_sizes, unmarked
from jetgraph.tracing.manners import Manner
from jetgraph.tracing.ones import guarded
from jetgraph.tracing.outputs import pick
from jetgraph.tracing.packed import Unpacking, holds_packed, refused_activations, rounded, unknown
from jetgraph.tracing.state import Held, kept
from jetgraph.tracing.traced import Dynamic, Traced
from jetgraph.tracing.unlike import UnlikeError, alike, replayed, unlike


class _UnfitError(Exception):
    """A trace that does not hold for the example itself."""


class _ExportError(Exception):
    """The exporter refuses."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(first_line(cause))
        self.cause = cause


Deciding = Literal["", "loops", "answers", "sizes"]
"""What the code asks of tensors is answered as on the example, loops going over all places of a mask, or not; or sizes
that depend on values are what they are there; or nothing is answered.
"""


class _ChoiceError(_ExportError):
    """The exporter refuses a choice by the values of tensors, which can be made as it was heard."""

    def __init__(self, cause: Exception, heard: Heard) -> None:
        super().__init__(cause)
        possible: Mapping[Deciding, bool] = {
            "loops": bool(heard.loops),
            "answers": bool(heard.loops) or len(heard.answers) > len(heard.counts),
            "sizes": bool(heard.counts),
        }
        self.possible = tuple(deciding for deciding, some in possible.items() if some)


def most_dynamic(called: Called, levels: Sequence[Dynamic], expected: Tensor | None) -> Traced:
    """The most dynamic trace that the exporter grants and that holds for the example.

    Where the exporter refuses because values of tensors decide, what the code asks of them is answered as on the
    example.

    Parameters
    ----------
    levels
        Which sizes are left open, one choice after the other.
    expected
        The model's own output on the example; None on `meta`, where nothing can be compared.

    Raises
    ------
    TraceError
        None is granted, or none that is granted does what the model does.
    """
    attempts = _Attempts(called, expected)
    try:
        return attempts.most_dynamic(levels)
    except _ChoiceError as choice:
        for deciding in choice.possible:
            with contextlib.suppress(TraceError, InputError):
                return dataclasses.replace(attempts, deciding=deciding).most_dynamic(levels)
        raise refused(choice.cause, called.model) from choice.cause


@dataclass(frozen=True, eq=False)
class _Attempts:
    """Exports of a model on its example, one tried after the other."""

    called: Called
    expected: Tensor | None
    deciding: Deciding = ""

    def most_dynamic(self, levels: Sequence[Dynamic]) -> Traced:
        """The trace at the first of these levels that the exporter grants and that holds."""
        given = self.called.inputs
        examples = [wide for wide in [generic(given)] if wide is not given and self.called.runs(wide)] + [given]
        # A table that the model makes anew for longer inputs is part of the graph where it is made in the export.
        held = self.called.held
        states = [held] * held.changed + [Held(self.called.model)]
        refusal = ""
        for level in levels:
            tried = examples if level != "none" else [given]
            for example, state in [(example, state) for example in tried for state in states]:
                try:
                    return self._attempt(example, level, state, refusal)
                except (_UnfitError, _ExportError, TraceError) as error:
                    if state is not states[-1]:
                        continue
                    if isinstance(error, TraceError):
                        raise
                    refusal = refusal or first_line(error)
                    if isinstance(error, _ExportError):
                        self._decide(error)
                        if level == "none":
                            raise refused(error.cause, self.called.model) from error.cause
                        break
                    # As given, a size of 1 is a constant.
                    examples = [given]
        raise UnlikeError(f"no trace of {type(self.called.model).__name__} holds for the example: {refusal}", refusal)

    def _decide(self, error: _ExportError) -> None:
        """Raise `_ChoiceError` where values of tensors decide and were not answered, but can be."""
        possible = not self.deciding and self.expected is not None and chooses_by_values(error.cause)
        if possible and (heard := self._heard(self.called.inputs, sized=True)).chooses:
            raise _ChoiceError(error.cause, heard)

    def _heard(self, example: Any, sized: bool) -> Heard:
        try:
            return self.called.heard(example, spread=self.deciding == "loops", sized=sized)
        except Exception as error:  # whatever the model raises where it gets to more than it asked for
            raise _ExportError(error) from error

    def _attempt(self, example: Any, level: Dynamic, state: Held, refusal: str) -> Traced:
        stage(f"exporting it with {_OPEN[level]}")
        state.put_back()
        if self.expected is None:
            return self._export(example, level, refusal)
        if not holds_packed(self.called.model):
            return self._shown(self._export(example, level, refusal), self.expected)
        return self._shown(self._export_packed(example, level, refusal, self.expected), self.expected)

    def _export_packed(self, example: Any, level: Dynamic, refusal: str, expected: Tensor) -> Traced:
        """The model as it is written, or with packed weights unpacked where only that gives operators with rules.

        Raises `TraceError` where not the weights alone are rounded.
        """
        packed = self._exported(example, level, refusal, unpack=False)
        closed: list[fx.Node] = []
        if isinstance(packed, Traced):
            for node in rounded(packed.graph, packed.state):
                raise refused_activations(self.called.model, node, f"rounds its inputs to {node.meta['dtype']}")
            closed += unknown(packed.graph, packed.state)
            if not closed:
                return packed
        plain = self._exported(example, level, refusal, unpack=True)
        if isinstance(plain, Traced):
            still = [node.target for node in unknown(plain.graph, plain.state)]
            opened = [node for node in closed if node.target not in still]
            if opened or isinstance(packed, _ExportError):
                check = compare(replayed(plain, *self.called.inputs), expected)
                if check.good:
                    return plain
                if opened:
                    why = f"rounds more than the weights (without which the output has a {check})"
                    raise refused_activations(self.called.model, opened[0], why)
        if isinstance(packed, _ExportError):
            raise packed
        return packed

    def _exported(self, example: Any, level: Dynamic, refusal: str, unpack: bool) -> Traced | _ExportError:
        try:
            return self._export(example, level, refusal, unpack)
        except _ExportError as error:
            return error

    def _export(self, example: Any, level: Dynamic, refusal: str, unpack: bool = False) -> Traced:
        picked: list[tuple[str, Answering | None]] = []
        heard = self._heard(example, self.deciding == "sizes") if self.deciding else None
        wrapper = _Explained(
            self.called.model, self.called.output, lambda *pick: picked.append(pick), self.called.manner, unpack, heard
        )
        wrapper.training = False
        example = pytree.tree_map(unmarked, example)
        shapes = None if level == "none" else open_sizes(example, level)
        # What the model makes while it is exported has no values.
        with kept(self.called.model), modules_stay():
            try:
                exported = export_program(wrapper, example, shapes, has_rule, derived=self.called.manner.derived)
            except TraceError:
                raise
            except Exception as error:  # the exporter raises many types
                raise _ExportError(error) from error
        return copy_program(exported, self.called.model, *picked[-1], level, refusal)

    def _shown(self, traced: Traced, expected: Tensor) -> Traced:
        """The trace, if it gives what the model gives, with guards against sizes of 1 for which it may not."""
        called = self.called
        try:
            known = _sizes(traced, *called.inputs)
        except (InputError, SizeError) as error:  # such as a size that is what another one lacks of a number
            raise _UnfitError(str(error)) from error
        assumed = 1 in known.values() or bool(called.manner.masks) or bool(self.deciding)
        same = alike(replayed(traced, *called.inputs), expected)
        if not same and assumed:
            raise _UnfitError("the model does not do the same for what is assumed of its call, or a size of 1")
        # One with entries that are no numbers is refused later, as nothing to explain.
        if not same and expected.isfinite().all():
            called.held.put_back()
            raise unlike(called.model, traced, called.inputs, lambda: called.run(*called.inputs), expected)
        return guarded(called, traced, known)


_OPEN: Mapping[Dynamic, str] = {"all": "sizes open", "batch": "the batch size open", "none": "sizes as given"}


def _sizes(traced: Traced, args: Any, kwargs: Any) -> dict[str, int]:
    """The sizes of a call by name."""
    values = traced.input_values(args, kwargs)
    return traced.sizes({traced.inputs[node]: value for node, value in values.items()})


class _Explained(nn.Module):
    """The model down to one tensor. Arguments come as one tuple and one dict, so that the exporter never has
    to bind names.
    """

    def __init__(
        self,
        model: nn.Module,
        output: str | int | None,
        record: Callable[[str, Answering | None], None],
        manner: Manner,
        unpack: bool = False,
        heard: Heard | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.manner = manner
        self.output = output
        self.unpack = unpack
        self.heard = heard
        # Export undoes changes of a module's own attributes.
        self.record = record

    def forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | tuple[Tensor, ...]:
        """The tensor; after those that were asked for their values, where there are answers."""
        answering = None if self.heard is None else Answering(self.heard)
        unpacking = Unpacking() if self.unpack else contextlib.nullcontext()
        with unpacking, answering or contextlib.nullcontext(), self.manner.entered():
            result = self.model(*args, **self.manner.filled(self.model, args, kwargs))
        name, tensor = pick(result, self.output)
        self.record(name, answering)
        return tensor if answering is None else (*answering.asked, tensor)
