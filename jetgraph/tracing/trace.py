"""Model and example inputs → one canonical `torch.fx` graph.

`torch.export` gives a functional graph of ATen operators that keeps linear, layer_norm, gelu and attention whole. The
traced graph shares the model's parameters; nothing is copied and the model is not modified.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from jetgraph.algebra.sizes import holds
from jetgraph.errors import InputError, JetGraphError, SizeError, TraceError
from jetgraph.export.derivatives import derivatives, transforms
from jetgraph.export.process import alone, torch_silent
from jetgraph.export.program import (
    chooses_by_values,
    export_program,
    fails_by_itself,
    first_line,
    ordinary_operators,
    refused,
)
from jetgraph.export.waiting import stage
from jetgraph.jets.draws import DrawsError, at_its_line, drawn
from jetgraph.jets.interpreter import evaluate
from jetgraph.jets.recording import recordable
from jetgraph.jets.registry import has_rule
from jetgraph.tracing.agreement import compare
from jetgraph.tracing.calls import Lookups, check_call, named_leaves, positional_names
from jetgraph.tracing.code import Call
from jetgraph.tracing.copies import copy_program, owners
from jetgraph.tracing.decisions import Answering, Heard, modules_stay
from jetgraph.tracing.examples import cut_down, generic, levels, open_sizes, unmarked
from jetgraph.tracing.outputs import pick
from jetgraph.tracing.packed import Unpacking, holds_packed, refused_activations, rounded, unknown
from jetgraph.tracing.ran import Ran
from jetgraph.tracing.state import Held, kept
from jetgraph.tracing.traced import Dynamic, Traced
from jetgraph.tracing.unlike import UnlikeError, unlike
from jetgraph.tracing.ways import Way, ways
from jetgraph.tracing.weights import Weights


def canonical(
    model: nn.Module,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    output: str | int | None = None,
    dynamic: bool | Literal["batch"] = True,
) -> Traced:
    """Trace `model(*args, **kwargs)` down to the tensor that `output` names.

    Parameters
    ----------
    output
        Attribute, key or index of the wanted tensor in the model's output, dotted for nested ones; by default
        `logits`, else the first float tensor.
    dynamic
        Let batch, length and other sizes of the inputs vary where the model allows. Where export refuses, first only
        the batch is left free ("batch" begins with that), then nothing; `Traced.note` says so. `Traced.guards` says
        between which bounds.

    Raises
    ------
    TraceError
        The model is no module, is in training mode, does not run on the inputs, or is random; torch.export refuses it,
        or `output` names no float tensor.
    InputError
        An example input is empty, or holds ids that the model does not have.
    """
    return trace_example(model, args, kwargs or {}, output=output, dynamic=dynamic)[0]


def trace_example(
    model: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *,
    output: str | int | None,
    dynamic: bool | Literal["batch"],
) -> tuple[Traced, Tensor | None]:
    """What `canonical` returns, and the output of the model itself on the example; None for that on `meta`."""
    check_call(model, output)
    values, options = tuple(args), dict(kwargs)
    for name, leaf in named_leaves(values, options, positional_names(model)):
        if isinstance(leaf, Tensor) and not leaf.numel():
            raise InputError(
                f"input {name!r} is empty: its shape is {tuple(leaf.shape)}. Trace the model with one whose batch and "
                "length are at least 1"
            )
    values, options = pytree.tree_map_only(Tensor, recordable, (values, options))
    if any(parameter.is_meta for parameter in model.parameters()):
        values, options = pytree.tree_map_only(Tensor, lambda leaf: leaf.to("meta"), (values, options))
    ran = Ran()
    with alone(), torch_silent(), kept(model) as held, _random_numbers_kept(model):
        traced, expected = _first_that_holds(model, values, options, output, held, levels(dynamic), ran)
    # What the model made on the way is gone from it again, and is the graph's own.
    assert isinstance(traced.tensors, Weights)
    weights = traced.tensors.rebound(owners(model))
    weights.watch(owners(model).values(), ran.asked(model.modules()), Call(values, options, output))
    return dataclasses.replace(traced, tensors=weights), expected


def example_output(
    model: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    output: str | int | None,
    ran: Ran | None = None,
) -> Tensor:
    """The explained output of the model itself on an example, called in the first way in which it runs; errors as of
    `canonical`. What ran on the way is noted in `ran`.
    """
    ran = Ran() if ran is None else ran
    check_call(model, output)
    first: TraceError | None = None
    with alone(), torch_silent(), kept(model) as held, _random_numbers_kept(model):
        for way in ways(model, args, kwargs):
            try:
                return _Example(model, tuple(args), dict(way.options), output, held, way, ran).first_run()
            except TraceError as error:
                first = first or error
    assert first is not None
    raise first


def _first_that_holds(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    output: str | int | None,
    held: Held,
    levels: Sequence[Dynamic],
    ran: Ran,
) -> tuple[Traced, Tensor | None]:
    """The trace of the first way to call the model that the exporter grants; the first refusal where it grants none."""
    first: TraceError | None = None
    for way in ways(model, args, kwargs):
        called = _Example(model, args, dict(way.options), output, held, way, ran)
        if way.derived:
            does = transforms(partial(called.run, args, dict(way.options)))
            if not does:
                continue
            # What is said of the other ways is that derivatives cannot be followed.
            first = None if does == "derivatives" else first
        try:
            traced, expected = called.trace(levels)
        except DrawsError as error:
            raise at_its_line(error, partial(called.run, args, dict(way.options))) from error.__cause__
        except TraceError as error:
            first = first or error
            # Without a cause it is a finding about the model as it is given.
            if error is first and error.__cause__ is None and not isinstance(error, UnlikeError):
                raise
            held.put_back()
            continue
        if first is None or not way.note:
            return traced, expected
        refusal = f"it is refused ({first_line(first.__cause__ or first)})"
        note = f"{way.note}, for without it {first.found if isinstance(first, UnlikeError) else refusal}"
        return dataclasses.replace(traced, note="; ".join(filter(None, (note, traced.note)))), expected
    assert first is not None
    # A model that draws random numbers may be refused for something else before they are seen.
    given = _Example(model, args, kwargs, output, held, Way(kwargs, {}), ran)
    runs = not _is_meta(model) and _runs(given, (args, kwargs))
    raise (drawn(lambda: given.run(args, kwargs)) if runs else None) or first from first.__cause__


def _random_numbers_kept(model: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Random numbers that follow are those that would have followed: also of a table that the model draws once."""
    devices = {parameter.device for parameter in model.parameters()}
    return torch.random.fork_rng(sorted(device.index or 0 for device in devices if device.type == "cuda"))


class _Explained(nn.Module):
    """The model down to one tensor. Arguments come as one tuple and one dict, so that the exporter never has
    to bind names.
    """

    def __init__(
        self,
        model: nn.Module,
        output: str | int | None,
        record: Callable[[str, Answering | None], None],
        way: Way,
        unpack: bool = False,
        heard: Heard | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.way = way
        self.output = output
        self.unpack = unpack
        self.heard = heard
        # Export undoes changes of a module's own attributes.
        self.record = record

    def forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | tuple[Tensor, ...]:
        """The tensor; after those that were asked for their values, where there are answers."""
        answering = None if self.heard is None else Answering(self.heard)
        unpacking = Unpacking() if self.unpack else contextlib.nullcontext()
        with unpacking, answering or contextlib.nullcontext(), self.way.entered():
            result = self.model(*args, **self.way.filled(self.model, args, kwargs))
        name, tensor = pick(result, self.output)
        self.record(name, answering)
        return tensor if answering is None else (*answering.asked, tensor)


class _UnfitError(Exception):
    """A trace that does not hold for the example itself."""


class _ExportError(Exception):
    """The exporter refuses."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(first_line(cause))
        self.cause = cause


Deciding = Literal["", "loops", "answers", "sizes"]


class _ChoiceError(_ExportError):
    """The exporter refuses a choice by the values of tensors, which can be made as it was heard."""

    def __init__(self, cause: Exception, heard: Heard) -> None:
        super().__init__(cause)
        possible: Mapping[Deciding, bool] = {
            "loops": bool(heard.loops),
            "answers": bool(heard.loops) or len(heard.answers) > len(heard.counts),
            "sizes": bool(heard.counts),
        }
        self.ways = tuple(way for way, some in possible.items() if some)


@dataclass(frozen=True, eq=False)
class _Example:
    """A model and example inputs, while the model's state is kept."""

    model: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: str | int | None
    held: Held
    way: Way
    ran: Ran

    deciding: Deciding = ""
    """What the code asks of tensors is answered as on the example, loops going over all places of a mask, or not; and
    sizes that depend on values are what they are there.
    """

    def trace(self, levels: Sequence[Dynamic]) -> tuple[Traced, Tensor | None]:
        """The most dynamic trace that the exporter grants and that holds for the example."""
        stage("running the model")
        # Before the export, so that what the model makes when it first runs is real.
        expected = None if _is_meta(self.model) else self.first_run()
        try:
            return self._most_dynamic(levels, expected), expected
        except _ChoiceError as choice:
            for deciding in choice.ways:
                with contextlib.suppress(TraceError, InputError):
                    return dataclasses.replace(self, deciding=deciding)._most_dynamic(levels, expected), expected
            raise refused(choice.cause, self.model) from choice.cause

    def _most_dynamic(self, levels: Sequence[Dynamic], expected: Tensor | None) -> Traced:
        given = (self.args, self.kwargs)
        examples = [wide for wide in [generic(given)] if wide is not given and _runs(self, wide)] + [given]
        # A table that the model makes anew for longer inputs is part of the graph where it is made in the export.
        states = [self.held] * self.held.changed + [Held(self.model)]
        refusal = ""
        for level in levels:
            tried = examples if level != "none" else [given]
            for example, state in [(example, state) for example in tried for state in states]:
                try:
                    return self._attempt(example, level, state, expected, refusal)
                except (_UnfitError, _ExportError, TraceError) as error:
                    if state is not states[-1]:
                        continue
                    if isinstance(error, TraceError):
                        raise
                    refusal = refusal or first_line(error)
                    if isinstance(error, _ExportError):
                        self._decide(error, expected)
                        if level == "none":
                            raise refused(error.cause, self.model) from error.cause
                        break
                    # As given, a size of 1 is a constant.
                    examples = [given]
        raise UnlikeError(f"no trace of {type(self.model).__name__} holds for the example: {refusal}", refusal)

    def _decide(self, error: _ExportError, expected: Tensor | None) -> None:
        """Raise `_ChoiceError` where values of tensors decide and were not answered, but can be."""
        possible = not self.deciding and expected is not None and chooses_by_values(error.cause)
        if possible and (heard := self._heard((self.args, self.kwargs), sized=True)).chooses:
            raise _ChoiceError(error.cause, heard)

    def _heard(self, example: Any, sized: bool = False) -> Heard:
        """What the model's code asks of tensors on an example."""
        args, kwargs = example
        with Answering(spread=self.deciding == "loops", sized=sized) as answering:
            try:
                self.run(args, self.way.filled(self.model, args, kwargs))
            except Exception as error:  # whatever the model raises where it gets to more than it asked for
                raise _ExportError(error) from error
        answers, lines = tuple(answering.answers), tuple(answering.lines)
        return Heard(answers, lines, tuple(answering.loops), tuple(answering.counts), answering.spread, answering.sized)

    def _attempt(self, example: Any, level: Dynamic, state: Held, expected: Tensor | None, refusal: str) -> Traced:
        stage(f"exporting it with {_OPEN[level]}")
        state.put_back()
        if expected is None:
            return self._export(example, level, refusal)
        if not holds_packed(self.model):
            return self._shown(self._export(example, level, refusal), expected)
        return self._shown(self._export_packed(example, level, refusal, expected), expected)

    def _export_packed(self, example: Any, level: Dynamic, refusal: str, expected: Tensor) -> Traced:
        """The model as it is written, or with packed weights unpacked where only that gives operators with rules.

        Raises `TraceError` where not the weights alone are rounded.
        """
        packed = self._exported(example, level, refusal, unpack=False)
        closed: list[fx.Node] = []
        if isinstance(packed, Traced):
            for node in rounded(packed.graph, packed.state):
                raise refused_activations(self.model, node, f"rounds its inputs to {node.meta['dtype']}")
            closed += unknown(packed.graph, packed.state)
            if not closed:
                return packed
        plain = self._exported(example, level, refusal, unpack=True)
        if isinstance(plain, Traced):
            still = [node.target for node in unknown(plain.graph, plain.state)]
            opened = [node for node in closed if node.target not in still]
            if opened or isinstance(packed, _ExportError):
                check = compare(_replayed(plain, self.args, self.kwargs), expected)
                if check.good:
                    return plain
                if opened:
                    why = f"rounds more than the weights (without which the output has a {check})"
                    raise refused_activations(self.model, opened[0], why)
        if isinstance(packed, _ExportError):
            raise packed
        return packed

    def _exported(self, example: Any, level: Dynamic, refusal: str, unpack: bool) -> Traced | _ExportError:
        try:
            return self._export(example, level, refusal, unpack)
        except _ExportError as error:
            return error

    def run(self, args: Any, kwargs: Any) -> Tensor:
        """The explained output of the model itself; the values that it holds are put back."""
        args, kwargs = pytree.tree_map_only(Tensor, lambda leaf: leaf.detach().clone(), (args, kwargs))
        try:
            with ordinary_operators(), torch.set_grad_enabled(self.way.derived):
                return pick(self.model(*args, **kwargs), self.output)[1].detach()
        finally:
            self.held.put_values_back()

    def first_run(self) -> Tensor:
        """The explained output of the model itself; raises what its user is to be told of."""
        lookups = Lookups(self.model, dict(named_leaves(self.args, self.kwargs, positional_names(self.model))))
        try:
            with lookups, derivatives() as taken, self.ran.watched(self.model):
                output = self.run(self.args, self.kwargs)
        except JetGraphError:
            raise
        except Exception as error:  # whatever the model raises
            names = (*positional_names(self.model), *map(str, range(len(self.args))))
            given = dict(zip(names, self.args, strict=False)) | dict(self.kwargs)
            raise fails_by_itself(error, self.model, given) from error
        if taken and not self.way.derived:
            said = f"{type(self.model).__name__} takes derivatives"
            raise TraceError(f"jetgraph refuses {said}") from NotImplementedError(said)
        return output

    def _export(self, example: Any, level: Dynamic, refusal: str, unpack: bool = False) -> Traced:
        picked: list[tuple[str, Answering | None]] = []
        heard = self._heard(example, self.deciding == "sizes") if self.deciding else None
        wrapper = _Explained(self.model, self.output, lambda *pick: picked.append(pick), self.way, unpack, heard)
        wrapper.training = False
        example = pytree.tree_map(unmarked, example)
        shapes = None if level == "none" else open_sizes(example, level)
        # What the model makes while it is exported has no values.
        with kept(self.model), modules_stay():
            try:
                exported = export_program(wrapper, example, shapes, has_rule, derived=self.way.derived)
            except TraceError:
                raise
            except Exception as error:  # the exporter raises many types
                raise _ExportError(error) from error
        return copy_program(exported, self.model, *picked[-1], level, refusal)

    def _shown(self, traced: Traced, expected: Tensor) -> Traced:
        """The trace, with a guard against each size of 1 for which it is not shown to be what the model does.

        The exporter takes it for granted that open sizes are 2 or more, and notes no choice that follows from it.
        """
        try:
            known = _sizes(traced, self.args, self.kwargs)
        except (InputError, SizeError) as error:  # such as a size that is what another one lacks of a number
            raise _UnfitError(str(error)) from error
        assumed = 1 in known.values() or bool(self.way.masks) or bool(self.deciding)
        actual = _replayed(traced, self.args, self.kwargs)
        if not (same := _alike(actual, expected)) and assumed:
            raise _UnfitError("the model does not do the same for what is assumed of its call, or a size of 1")
        # One with entries that are no numbers is refused later, as nothing to explain.
        if not same and expected.isfinite().all():
            self.held.put_back()
            given = (self.args, self.kwargs)
            raise unlike(self.model, traced, given, lambda: self.run(*given), expected)
        bounded = {guard.partition(" >= ")[0] for guard in traced.guards}
        open_sizes = [name for name, size in known.items() if size > 1 and name not in bounded]
        guards: list[str] = []
        shown: list[str] = []
        for name in open_sizes:
            # A mask may have a batch of its own to the exporter, and be 1 where the ids' is.
            alike = [other for other, size in known.items() if size == known[name]]
            if self._holds_at_one(traced, known, name):
                shown.append(name)
            elif len(alike) > 1 and self._holds_for(traced, known | dict.fromkeys(alike, 1)):
                shown.append(name)
                guards.append(f"({name} >= 2) | (Max({', '.join(alike)}) < 2)")
            else:
                guards.append(f"{name} >= 2")
        if len(shown) > 1 and not self._holds_for(traced, known | dict.fromkeys(shown, 1)):
            guards.append(f"Max({', '.join(shown)}) >= 2")
        return dataclasses.replace(traced, guards=(*traced.guards, *guards))

    def _holds_at_one(self, traced: Traced, known: Mapping[str, int], name: str) -> bool:
        """With one size cut down to 1, the graph and the model give the same; the others as they are, and at 2."""
        few = {other: min(size, 2) for other, size in known.items()} | {name: 1}
        many = {**known, name: 1}
        possible = [many] if many == few or not all(holds(guard, few) for guard in traced.guards) else [many, few]
        return all(self._holds_for(traced, sizes) for sizes in possible)

    def _holds_for(self, traced: Traced, sizes: Mapping[str, int]) -> bool:
        """With the example cut down to these sizes, the graph and the model give the same."""
        leaves, structure = pytree.tree_flatten((self.args, self.kwargs))
        names = (name for name, _ in named_leaves(self.args, self.kwargs, traced.positional))
        shapes = (traced.input_shapes.get(name, ()) for name in names)
        try:
            cut = [cut_down(leaf, shape, sizes) for leaf, shape in zip(leaves, shapes, strict=True)]
            args, kwargs = pytree.tree_unflatten(cut, structure)
            return _agrees(traced, args, kwargs, self.run(args, kwargs))
        except Exception:  # whatever the model raises for such sizes: it is not shown, and refused
            return False


def _runs(given: _Example, example: Any) -> bool:
    """The model takes another example, such as a wider one: the exporter may see it."""
    if _is_meta(given.model):
        return True
    try:
        given.run(*example)
    except Exception:  # whatever the model raises: then its example is traced as it is
        return False
    return True


_OPEN: Mapping[Dynamic, str] = {"all": "sizes open", "batch": "the batch size open", "none": "sizes as given"}


def _sizes(traced: Traced, args: Any, kwargs: Any) -> dict[str, int]:
    """The sizes of a call by name."""
    values = traced.input_values(args, kwargs)
    return traced.sizes({traced.inputs[node]: value for node, value in values.items()})


def _agrees(traced: Traced, args: Any, kwargs: Any, expected: Tensor) -> bool:
    """The traced graph gives what the model gave."""
    return _alike(_replayed(traced, args, kwargs), expected)


def _alike(actual: Tensor, expected: Tensor) -> bool:
    return actual.shape == expected.shape and compare(actual, expected).good


def _replayed(traced: Traced, args: Any, kwargs: Any) -> Tensor:
    values = {**traced.state_values(), **traced.input_values(args, kwargs)}
    with torch.no_grad():
        return evaluate(traced.graph.nodes, values, keep={traced.output})[traced.output]


def _is_meta(model: nn.Module) -> bool:
    return any(parameter.is_meta for parameter in model.parameters())
