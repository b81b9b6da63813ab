"""Which component, at which token, by which way, makes a logit: the attribution graph of a prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any, overload

import torch

from jetgraph.algebra.expansion import Expansion
from jetgraph.algebra.outline import SINK
from jetgraph.applications.attribution.dictionaries import Shared, dictionaries, scored, told_apart
from jetgraph.applications.attribution.graphs import Attribution, Node, whole_graph
from jetgraph.applications.attribution.linearising import Rules, linearised
from jetgraph.applications.attribution.targets import Aim, Positions, Target, aims, measured, named
from jetgraph.applications.interventions.network import Network
from jetgraph.applications.readout import token_text
from jetgraph.applications.several import Several, each_prompt, first_of
from jetgraph.applications.subject import Inputs, Model, Subject, stream_inputs
from jetgraph.compilation.evaluation import MEMORY
from jetgraph.compilation.flows import Flows, flows
from jetgraph.errors import check
from jetgraph.export.precision import own_types
from jetgraph.residual import one_look
from jetgraph.running.memory import check_memory


# Of a tensor, and of inputs by name, of several rows it is `Several` too, which their types do not tell.
@overload
def attribute(
    model: Model | Expansion,
    inputs: str | PathLike[str] | torch.Tensor | Mapping[str, Any],
    *,
    target: Target | None = None,
    position: Positions = "last",
    split: Shared | None = None,
    rules: Rules | None = None,
    scores: str | Sequence[str] | None = None,
    positions: bool = True,
    memory: int = MEMORY,
    tokenizer: Any | None = None,
) -> Attribution: ...
@overload
def attribute(
    model: Model | Expansion,
    inputs: list[Any] | tuple[Any, ...],
    *,
    target: Target | None = None,
    position: Positions = "last",
    split: Shared | None = None,
    rules: Rules | None = None,
    scores: str | Sequence[str] | None = None,
    positions: bool = True,
    memory: int = MEMORY,
    tokenizer: Any | None = None,
) -> Several[Attribution]: ...
@torch.no_grad()
@own_types()
@one_look()
def attribute(
    model: Model | Expansion,
    inputs: Inputs | Sequence[Inputs],
    *,
    target: Target | None = None,
    position: Positions = "last",
    split: Shared | None = None,
    rules: Rules | None = None,
    scores: str | Sequence[str] | None = None,
    positions: bool = True,
    memory: int = MEMORY,
    tokenizer: Any | None = None,
) -> Attribution | Several[Attribution]:
    """The attribution graph of a prompt: what each component at each token contributes to a target, and by which way.

    Each site is replaced by a linear map at the model's own forward pass (its gates held there, unless `rules` say
    otherwise). The flow from u at i to v at j is what u at i contributes to the input of v at j, carried on to the
    target along all paths. Flow is conserved: what enters a node, constants included, equals what leaves it, and what
    enters the targets equals their value. One backward sweep from the targets computes all flows.

    Parameters
    ----------
    model
        A model or graph; or an expansion with linear rules.
    inputs
        A prompt: a text, token ids, or inputs by name. Of a list of prompts, or of several rows, each has its own
        graph.
    target
        A token (its centred logit); a pair (the difference of their logits); several; tokens with weights; or a
        direction in the output. By default the fewest top tokens that hold 95 % of the probability, at most 10, each
        weighted by its probability; where the output is the features of the stream (an encoder), its own direction, so
        that contributions add up to its length.
    position
        Where targets are read: one position, several, `last`, or None for all.
    split
        Branches of a model to cut first, as in `jetgraph.expand`; `heads` for attention head by head. A mapping may
        also give a branch a matrix of directions [n, d_model], such as the decoder of a sparse autoencoder: what the
        branch adds is shared out among them by least squares, `L3.mlp.direction0`, …, and what is left, `L3.mlp.rest`.
    rules
        Which linear map stands for each site: `frozen` (unless given), `half`, `gradient`, or rules by pattern. To
        first order the scores of an attention vary, and what goes by its queries, keys and values are nodes of their
        own: `L3.attn.q@4`, `.k`, `.v`; and `.past` where something reads the stream beside them, such as a gate.
    scores
        Attentions, by pattern, whose scores are sites of their own, where rules let them vary: `L3.attn.q2@4` is the
        score of position 4 with key 2 as far as its query goes, and `L3.attn.k2@4` as its key goes. By each enters the
        score times its slope, term by term of q · k. That is a node for each two positions, and with heads for each
        head: name few.
    positions
        Tell the positions of the sequence apart.
    memory
        Bytes for cotangents that go back together, and for edges; the least influential edges beyond it go into `rest`.
    tokenizer
        For texts; a model given by name brings its own.

    Returns
    -------
    Attribution
        Prunes, lists paths, and becomes a networkx graph, a table, a file or a figure. Of several prompts they are in
        `Several.each`, each as it is by itself.

    Raises
    ------
    InputError
        An option is unknown, or a site has a rule that is not linear.
    BudgetError
        What the components add is larger than 64 times the memory.

    >>> graph = attribute("demo", "Raise Value", target="Error")
    >>> bool(abs(graph.total - graph.output) < 1e-3)
    True
    >>> [node.name for node in graph.nodes if node.role == "target"]
    ["'Error'@6"]
    """
    check(
        attribute,
        {**locals(), "rules": None if isinstance(rules, Mapping) else rules, "split": None},
    )
    check_memory(memory)
    parts, directions = told_apart(split)
    subject, expansion = linearised(model, first_of(inputs), rules, parts, tokenizer)
    size = {alias: branch.node.meta["shape"][-1] for alias, branch in subject.graph.branches.items()}
    shared = dictionaries(expansion, directions, size)
    told = scored(expansion, scores, shared)

    def look(given: dict[str, Any]) -> Attribution:
        network = Network(subject.graph, given)
        chosen = aims(network, target, position, subject.tokenizer)
        swept = flows(
            expansion,
            network.forward,
            [aim.readout for aim in chosen],
            positions=positions,
            memory=memory,
            dictionaries=shared,
            scores=told,
        )
        value = measured(network.forward, chosen)
        nodes = tuple(_nodes(swept, chosen, _tokens(subject, network)))
        return whole_graph(named(chosen), value, nodes, swept, network, chosen, subject.tokenizer)

    return each_prompt(subject, inputs, "attributions", look)


def _tokens(subject: Subject, network: Network) -> list[str]:
    """The texts of the tokens that the stream starts from, where it is token ids."""
    for name in stream_inputs(subject.graph):
        ids = network.inputs.get(name)
        if isinstance(ids, torch.Tensor) and ids.dim() == 2 and not ids.is_floating_point() and name.endswith("ids"):
            return [token_text(subject.tokenizer, int(index)) for index in ids[0].tolist()]
    return []


def _nodes(swept: Flows, chosen: list[Aim], tokens: list[str]) -> list[Node]:
    flow, influence = swept.flow.tolist(), swept.influence.tolist()
    nodes: list[Node] = []
    last = 0
    for component in swept.components:
        last = max(last, component.lands)
        for number, position in enumerate(component.positions, component.first):
            text = None if position is None or position >= len(tokens) else tokens[position]
            name = component.name if position is None else f"{component.name}@{position}"
            role = "source" if component.passage is None else "site"
            nodes.append(
                Node(
                    name,
                    component.alias,
                    component.path,
                    component.kind,
                    role,
                    component.lands,
                    position,
                    text,
                    flow[number],
                    influence[number],
                )
            )
    for number, aim in enumerate(chosen, len(nodes)):
        place = aim.readout.place
        text = None if place is None or place >= len(tokens) else tokens[place]
        nodes.append(
            Node(aim.name, SINK, "", "target", "target", last + 1, place, text, flow[number], influence[number])
        )
    return nodes
