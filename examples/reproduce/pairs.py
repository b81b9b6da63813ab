"""A model on two prompts, and what each of its components is told to change when it is taken from the other one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tasks import Prompt
from torch import Tensor

import jetgraph as jg
from jetgraph.applications.interventions.network import Network
from jetgraph.compilation.components import Readout, Stream
from jetgraph.compilation.evaluation import MEMORY

RULES = {"frozen": jg.Freeze(), "half": jg.Freeze(halves=True)}
"""What stands for each site where slopes are of the expansion."""


class Pair:
    """A model on a prompt and on its counterpart."""

    def __init__(self, graph: jg.ResidualGraph, name: str, prompt: Prompt) -> None:
        self.graph, self.name, self.prompt = graph, name, prompt
        self.one, self.other = (Network(graph, {name: ids}) for ids in (prompt.ids, prompt.other))
        self.sources = [alias for alias, step in self.one.steps.items() if not step]
        whole = {alias for alias, branch in graph.branches.items() if branch.kind != "skip" and branch.part is None}
        self.sites = [alias for alias in self.one.steps if alias in whole]
        self.change = {alias: self.one.value(alias) - self.other.value(alias) for alias in (*self.sites, *self.sources)}

    def read(self, logits: Tensor) -> Tensor:
        """logit of the answer − logit of the wrong one, [row]."""
        return logits[..., self.prompt.answer] - logits[..., self.prompt.wrong]

    def run(self, rows: int) -> Any:
        """A pass over some copies of the prompt."""
        return self.graph.run(**{self.name: self.prompt.ids.expand(rows, -1)})

    def scored(self, slopes: Mapping[str, Tensor]) -> Tensor:
        """⟨slope, change of the component⟩, [site, position]."""
        return torch.stack([(slopes[alias] * self.change[alias])[0].sum(-1) for alias in self.sites])

    def linear(self, rule: str) -> Tensor:
        """By the slope of the target along all paths of the expansion in which every site has one rule."""
        stream = Stream(jg.expand(self.graph, rules={"*": RULES[rule]}), self.one.forward, True, MEMORY)
        weights = torch.zeros(self.one.forward.output.shape[-1], dtype=torch.float64)
        weights[self.prompt.answer], weights[self.prompt.wrong] = 1, -1
        slopes: dict[int, Tensor] = {stream.end: stream.cotangents([Readout(self.prompt.ids.shape[1] - 1, weights)])[0]}
        found: dict[str, Tensor] = {}
        for point in range(stream.end, 0, -1):
            slope = slopes[point]
            for one in stream.components:
                if one.lands == point and one.passage is not None:
                    found[one.alias] = slope
                    back = stream.sites[one.alias].backwards(slope[None])[0]
                    slopes[one.passage.reads] = slopes.get(one.passage.reads, 0) + back
            if (silent := stream.silent[point]) is not None:
                slopes[silent[0]] = slopes.get(silent[0], 0) + silent[1].backwards(slope[None])[0]
        return self.scored(found)

    def gradient(self, shares: Sequence[float]) -> Tensor:
        """By the mean gradient where the embeddings are those of the prompt up to such shares of the change."""
        left = 1 - torch.tensor(shares)[:, None, None]
        with torch.inference_mode(False), torch.enable_grad():
            run = self.run(len(shares))
            for alias in self.sources:
                start = (self.one.value(alias) - left * self.change[alias]).detach().requires_grad_()
                run.patch(alias, start)
            nodes = [self.graph.branches[alias].node for alias in self.sites]
            run.need([*nodes, self.graph.traced.output])
            found = torch.autograd.grad(self.read(run.output[:, -1]).sum(), [run[node] for node in nodes])
        return self.scored({alias: slope.mean(0, keepdim=True) for alias, slope in zip(self.sites, found, strict=True)})

    def patched(self) -> Tensor:
        """By what changes in the model itself when one component after the other is exchanged."""
        length = self.prompt.ids.shape[1]
        clean, rows = float(self.read(self.one.forward.output[0, -1])), []
        for number, alias in enumerate(self.sites):
            run = self.run(length)
            for before in self.sites[:number]:
                run.patch(before, self.one.value(before).expand(length, -1, -1).contiguous())
            mask = torch.eye(length, dtype=torch.bool)[..., None]
            run.patch(alias, torch.where(mask, self.other.value(alias), self.one.value(alias)))
            rows.append(clean - self.read(run.output_at(-1)[:, 0]))
        return torch.stack(rows)

    def influence(self) -> Tensor:
        """That of the attribution graph."""
        target = (self.prompt.answer, self.prompt.wrong)
        found = jg.attribute(self.graph, self.prompt.ids, target=target)
        of = {(node.alias, node.position): node.influence for node in found.nodes}
        return torch.tensor([[of[alias, at] for at in range(self.prompt.ids.shape[1])] for alias in self.sites])

    def circuits(self, kept: Tensor) -> Tensor:
        """The quantity where components are as they are if kept, and else the other prompt's: [circuit]."""
        run = self.run(len(kept))
        for number, alias in enumerate(self.sites):
            run.patch(alias, torch.where(kept[:, number, :, None], run.component(alias), self.other.value(alias)))
        return self.read(run.output_at(-1)[:, 0])
