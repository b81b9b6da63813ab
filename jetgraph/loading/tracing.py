"""`jetgraph.trace`: of models, and of names of models."""

from __future__ import annotations

import os
from inspect import signature
from typing import Any

from torch import nn

from jetgraph import residual
from jetgraph.errors import InputError, quoted
from jetgraph.loading.lazy import lazy
from jetgraph.loading.loaded import Loaded
from jetgraph.loading.naming import load_model
from jetgraph.residual import ResidualGraph, Traceable

_LOADING = tuple(name for name in signature(load_model).parameters if name != "name")


def trace(model: Traceable | Loaded | str | os.PathLike[str], /, *args: Any, **kwargs: Any) -> ResidualGraph:
    """Trace a model on example inputs and find its residual structure.

    Parameters
    ----------
    model
        Any loaded `nn.Module` in evaluation mode, on any device, a `torch.export.ExportedProgram`, or a function of
        tensors that reads modules: see `jetgraph.residual.trace`. Or what `jetgraph.load_model` gives, or takes for a
        name.
    args, kwargs
        Example inputs, given as to the model, and `output`, `dynamic` and `inputs` as of `jetgraph.residual.trace`. Of
        a name also the options of `jetgraph.load_model`, such as `weights="lazy"`; there, and of what that gives,
        example inputs are made unless they are given, and go by name.

    Returns
    -------
    ResidualGraph
        `graph.joins` is empty for a model without a residual join.

    Raises
    ------
    TraceError, InputError
        As `jetgraph.residual.trace`.
    LoadError
        As `jetgraph.load_model`.

    >>> trace("demo").joins[0]
    Join('transformer.h.0.attn', kind='identity', branches=L0.attn, depth=0)
    """
    if not isinstance(model, Loaded | str | os.PathLike):
        spread = lazy(Loaded("", model, None)) if isinstance(model, nn.Module) else None
        if spread is None or spread.stand_in is None:
            return residual.trace(model, *args, **kwargs)
        return residual.trace(spread.stand_in, *args, **kwargs).over(spread.model)
    named = model.name if isinstance(model, Loaded) else os.fspath(model)
    for name in ("output", "dynamic"):
        if name in kwargs:
            raise InputError(
                f"{name}={quoted(kwargs[name])} is of models, and {quoted(named)} is the name of one: trace "
                "jetgraph.load_model(name).model"
            )
    options = {name: kwargs.pop(name) for name in _LOADING if name in kwargs}
    if not isinstance(model, Loaded):
        model = load_model(model, **options)
    elif options:
        raise InputError(f"{', '.join(options)}: {named} is loaded already; give options to jetgraph.load_model")
    if args:
        raise InputError(f"the inputs of {model.name} go by name, such as input_ids=..., or are left out")
    return model.trace(kwargs.pop("inputs", {}) | kwargs or model.inputs())
