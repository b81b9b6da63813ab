"""Paths over the weights that a model has now, for work that evaluates them and is done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from jetgraph.algebra.expansion import Expansion
from jetgraph.algebra.paths import Path
from jetgraph.compilation.module import check_weights, values_of
from jetgraph.compilation.origins import Model
from jetgraph.compilation.planning import kept_plan
from jetgraph.compilation.values import PathValues
from jetgraph.export.frames import on_one_chunk
from jetgraph.export.precision import own_types
from jetgraph.residual import Looked, ResidualGraph
from jetgraph.running.forward import Forward


class Snapshot:
    """Selected paths of an expansion as a function of the model's inputs.

    As a `PathModule`, but for the parameters: registering those of a deep model takes longer than a small batch. Later
    changes in place are seen, a cast, a move or an exchange of weights is not. No gradients reach the weights.

    Parameters
    ----------
    expansion
        Of a graph with weights.
    paths
        Of the expansion.
    looked
        Its graph, where the weights have just been looked up.

    Raises
    ------
    StateError
        A graph on the meta device, or a model that has changed in more than its weights.
    """

    def __init__(self, expansion: Expansion, paths: Sequence[Path], looked: Looked | None = None) -> None:
        assert isinstance(expansion.graph, ResidualGraph)
        looked = looked if looked is not None and looked.graph is expansion.graph else Looked.at(expansion.graph)
        graph = looked.graph
        check_weights(graph.traced)
        self.tensors: Mapping[str, Tensor] = {name: tensor.detach() for name, tensor in looked.tensors.items()}
        """The weights by their names in the model."""
        self._state = graph.traced.state_values(self.tensors.__getitem__)
        self._model, self._paths = Model(expansion, graph), tuple(paths)
        self._plan = kept_plan(self._model, self._paths)

    def run(self, **inputs: Any) -> Forward:
        """The model's own forward pass on these inputs, evaluated on demand."""
        graph = self._model.graph
        return Forward(graph, self._state, graph.traced.input_values((), inputs))

    def __call__(self, **inputs: Any) -> PathValues:
        """Evaluate the paths on the model's inputs."""
        with own_types():
            return on_one_chunk(lambda: values_of(self._plan, self._model, self._paths, self.run(**inputs)))
