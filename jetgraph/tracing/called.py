"""A model as it is called on its example: what it gives itself, and what its code asks of tensors meanwhile."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from jetgraph.errors import JetGraphError, TraceError
from jetgraph.export.derivatives import derivatives
from jetgraph.export.program import fails_by_itself, ordinary_operators
from jetgraph.tracing.calls import Lookups, named_leaves, positional_names
from jetgraph.tracing.decisions import Answering, Heard
from jetgraph.tracing.manners import Manner
from jetgraph.tracing.outputs import pick
from jetgraph.tracing.ran import Ran
from jetgraph.tracing.state import Held


@dataclass(frozen=True, eq=False)
class Called:
    """A model and example inputs, called in one manner, while the model's state is kept."""

    model: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: str | int | None
    """Which of what the model gives is explained; see `jetgraph.trace`."""
    held: Held
    manner: Manner
    ran: Ran
    """Notes which code runs."""

    @property
    def inputs(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The example as one value."""
        return self.args, self.kwargs

    def run(self, args: Any, kwargs: Any) -> Tensor:
        """The explained output of the model itself; the values that it holds are put back."""
        args, kwargs = pytree.tree_map_only(Tensor, lambda leaf: leaf.detach().clone(), (args, kwargs))
        try:
            with ordinary_operators(), torch.set_grad_enabled(self.manner.derived):
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
        if taken and not self.manner.derived:
            said = f"{type(self.model).__name__} takes derivatives"
            raise TraceError(f"jetgraph refuses {said}") from NotImplementedError(said)
        return output

    def runs(self, example: Any) -> bool:
        """The model takes another example, such as a wider one: the exporter may see it."""
        if is_meta(self.model):
            return True
        try:
            self.run(*example)
        except Exception:  # whatever the model raises: then its example is traced as it is
            return False
        return True

    def heard(self, example: Any, *, spread: bool = False, sized: bool = False) -> Heard:
        """What the model's code asks of tensors on an example, and what it is answered; raises what the model raises.

        Parameters
        ----------
        spread, sized
            As of `Answering`.
        """
        args, kwargs = example
        with Answering(spread=spread, sized=sized) as answering:
            self.run(args, self.manner.filled(self.model, args, kwargs))
        answers, lines = tuple(answering.answers), tuple(answering.lines)
        return Heard(answers, lines, tuple(answering.loops), tuple(answering.counts), answering.spread, answering.sized)


def is_meta(model: nn.Module) -> bool:
    """The model has a parameter without values."""
    return any(parameter.is_meta for parameter in model.parameters())
