"""Model and example inputs → one canonical `torch.fx` graph.

`torch.export` gives a functional graph of ATen operators that keeps linear, layer_norm, gelu and attention whole. The
traced graph shares the model's parameters; nothing is copied and the model is not modified.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from jetgraph.errors import InputError, TraceError
from jetgraph.export.derivatives import transforms
from jetgraph.export.process import alone, torch_silent
from jetgraph.export.program import first_line
from jetgraph.export.waiting import stage
from jetgraph.jets.draws import DrawsError, at_its_line, drawn
from jetgraph.jets.recording import recordable
from jetgraph.tracing.attempts import most_dynamic
from jetgraph.tracing.called import Called, is_meta
from jetgraph.tracing.calls import check_call, named_leaves, positional_names
from jetgraph.tracing.code import Call
from jetgraph.tracing.copies import owners
from jetgraph.tracing.examples import levels
from jetgraph.tracing.manners import Manner, manners
from jetgraph.tracing.ran import Ran
from jetgraph.tracing.state import Held, kept
from jetgraph.tracing.traced import Dynamic, Traced
from jetgraph.tracing.unlike import UnlikeError
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
    if is_meta(model):
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
    """The explained output of the model itself on an example, called in the first manner in which it runs; errors as of
    `canonical`. What ran on the way is noted in `ran`.
    """
    ran = Ran() if ran is None else ran
    check_call(model, output)
    first: TraceError | None = None
    with alone(), torch_silent(), kept(model) as held, _random_numbers_kept(model):
        for manner in manners(model, args, kwargs):
            try:
                return Called(model, tuple(args), dict(manner.options), output, held, manner, ran).first_run()
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
    """The trace of the first manner of calling the model that the exporter grants; else the first refusal."""
    first: TraceError | None = None
    for manner in manners(model, args, kwargs):
        called = Called(model, args, dict(manner.options), output, held, manner, ran)
        if manner.derived:
            does = transforms(partial(called.run, args, dict(manner.options)))
            if not does:
                continue
            # What is said of the others is that derivatives cannot be followed.
            first = None if does == "derivatives" else first
        try:
            traced, expected = _traced(called, levels)
        except DrawsError as error:
            raise at_its_line(error, partial(called.run, args, dict(manner.options))) from error.__cause__
        except TraceError as error:
            first = first or error
            # Without a cause it is a finding about the model as it is given.
            if error is first and error.__cause__ is None and not isinstance(error, UnlikeError):
                raise
            held.put_back()
            continue
        if first is None or not manner.note:
            return traced, expected
        refusal = f"it is refused ({first_line(first.__cause__ or first)})"
        note = f"{manner.note}, for without it {first.found if isinstance(first, UnlikeError) else refusal}"
        return dataclasses.replace(traced, note="; ".join(filter(None, (note, traced.note)))), expected
    assert first is not None
    # A model that draws random numbers may be refused for something else before they are seen.
    given = Called(model, args, kwargs, output, held, Manner(kwargs, {}), ran)
    runs = not is_meta(model) and given.runs(given.inputs)
    raise (drawn(lambda: given.run(args, kwargs)) if runs else None) or first from first.__cause__


def _traced(called: Called, levels: Sequence[Dynamic]) -> tuple[Traced, Tensor | None]:
    """The trace of a model that is called in one manner, and its own output; None for that on `meta`."""
    stage("running the model")
    # Before the export, so that what the model makes when it first runs is real.
    expected = None if is_meta(called.model) else called.first_run()
    return most_dynamic(called, levels, expected), expected


def _random_numbers_kept(model: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Random numbers that follow are those that would have followed: also of a table that the model draws once."""
    devices = {parameter.device for parameter in model.parameters()}
    return torch.random.fork_rng(sorted(device.index or 0 for device in devices if device.type == "cuda"))
