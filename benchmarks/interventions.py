"""Components removed and exchanged in the network, as multiples of one forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

import jetgraph as jg
from benchmarks import models, oracle
from benchmarks.elsewhere import Elsewhere
from benchmarks.harness import Benchmark, Case, Contestant, Setting
from jetgraph.applications.interventions import Ablation

TOKENS = 16
CHECKED = 4
"""So many of the components are held against hooks in float64."""


def cases(setting: Setting) -> Iterator[Case]:
    """All branches, all heads; and what all heads give to the logits by the stream alone."""
    problem = _Problem(setting)
    branches = {f"L{layer}.{kind}": None for layer in range(setting.layers) for kind in ("attn", "mlp")}
    heads = {f"L{layer}.attn.head{head}": head for layer in range(setting.layers) for head in range(setting.heads)}
    yield Case("branches removed", [problem.floor(), problem.ablated(branches), problem.hooked(branches)])
    yield Case(
        "heads removed",
        [problem.floor(), problem.ablated(heads, "heads"), problem.hooked(heads), problem.removed_elsewhere(heads)],
    )
    yield Case(
        "heads exchanged, straight to the logits",
        [problem.floor(), problem.patched(), problem.exchanged_elsewhere()],
    )


class _Problem:
    """A prompt of random tokens; the last position is looked at."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.model: Any = models.gpt2(setting)
        self.ids = models.token_ids(setting, 1, TOKENS)
        self.other = self.ids.roll(1, -1)
        self.elsewhere = Elsewhere(setting, self.model)

    def floor(self) -> Contestant:
        def work() -> None:
            with torch.no_grad():
                self.model(input_ids=self.ids)

        return Contestant("floor", "floor", work, note="a forward pass")

    def ablated(self, components: Mapping[str, int | None], split: Any = None) -> Contestant:
        graph = models.traced(self.setting)
        paths = [f"{alias} > logits" for alias in components]

        def error(found: Ablation) -> float:
            chosen = list(components)[:: max(1, len(components) // CHECKED)]
            through = [found.outputs[_path(found, alias)].through for alias in chosen]
            exact = without(models.double(self.model), self.ids.cpu(), {alias: components[alias] for alias in chosen})
            return max(
                oracle.distance(one, other) for one, other in zip(through, exact, strict=True) if one is not None
            )

        note = f"{len(components)} and all of them together, with their terms"
        return Contestant(
            "jetgraph", "jetgraph", lambda: jg.ablate(graph, paths, self.ids, split=split), error, note=note
        )

    def hooked(self, components: Mapping[str, int | None]) -> Contestant:
        """Each by itself, by hooks on the model's own modules."""
        return Contestant(
            "hooks, one by one",
            "rival",
            lambda: without(self.model, self.ids, components),
            note=f"{len(components)} forward passes",
        )

    def patched(self) -> Contestant:
        graph, number = models.traced(self.setting), self.setting.layers * self.setting.heads

        def work() -> Any:
            return jg.patch(graph, self.ids, self.other, senders="*.head*", receivers="logits", split="heads", target=0)

        return Contestant(
            "jetgraph",
            "jetgraph",
            work,
            lambda found: self.change_error(found.totals.flatten()),
            note=f"{number} senders, and their total effects",
        )

    def change_error(self, found: Tensor) -> float:
        """Of changes of logit 0 with each head exchanged."""
        number = self.setting.layers * self.setting.heads
        chosen = list(range(0, number, max(1, number // CHECKED)))
        heads = [divmod(at, self.setting.heads) for at in chosen]
        exact = exchanged(models.double(self.model), self.ids.cpu(), self.other.cpu(), heads)
        return oracle.distance(found[chosen], exact[:, 0])

    def removed_elsewhere(self, heads: Mapping[str, int | None]) -> Contestant:
        """By TransformerLens: hooks, a forward pass for each."""
        ends = dict([*heads.items()][:: len(heads) - 1])

        def error(values: Any) -> float:
            exact = without(models.double(self.model), self.ids.cpu(), ends)
            return oracle.distance(torch.tensor(values), torch.cat(exact).flatten(0, 1))

        return self.elsewhere.contestant(
            "without heads", self.ids, self.other, error, f"{len(heads)} forward passes with hooks"
        )

    def exchanged_elsewhere(self) -> Contestant:
        """By TransformerLens: all effects of each head, with no share of the direct one."""
        return self.elsewhere.contestant(
            "with heads",
            self.ids,
            self.other,
            lambda values: self.change_error(torch.tensor(values).flatten()),
            "total effects alone, by its function for them",
            # Changes are small beside the logits that they are differences of.
            tolerance=1e-3,
        )


def _path(found: Ablation, alias: str) -> str:
    return next(path for path in found.outputs if path.startswith(f"{alias} >"))


@torch.no_grad()
def without(model: Any, ids: Tensor, components: Mapping[str, int | None]) -> list[Tensor]:
    """Logits at the last position without each of some branches of a GPT-2, or heads of their attention."""
    found: list[Tensor] = []
    for alias, head in components.items():
        layer, kind = alias.removeprefix("L").split(".")[:2]
        block = model.transformer.h[int(layer)]
        if head is None:
            handle = getattr(block, kind).register_forward_hook(_nothing)
        else:
            size = block.attn.head_dim
            handle = block.attn.c_proj.register_forward_pre_hook(_written(slice(head * size, (head + 1) * size), 0.0))
        try:
            found.append(model(input_ids=ids).logits[:, -1:])
        finally:
            handle.remove()
    return found


@torch.no_grad()
def exchanged(model: Any, ids: Tensor, other: Tensor, heads: Sequence[tuple[int, int]]) -> Tensor:
    """The change of the logits [head, logit] at the last position with heads (layer, head) of another prompt."""
    found: list[Tensor] = []
    clean = model(input_ids=ids).logits[0, -1]
    for layer, head in heads:
        attention = model.transformer.h[layer].attn
        columns = slice(head * attention.head_dim, (head + 1) * attention.head_dim)
        kept: list[Tensor] = []
        handle = attention.c_proj.register_forward_pre_hook(lambda module, given, kept=kept: kept.append(given[0]))
        model(input_ids=other)
        handle.remove()
        handle = attention.c_proj.register_forward_pre_hook(_written(columns, kept[0][..., columns]))
        found.append(model(input_ids=ids).logits[0, -1] - clean)
        handle.remove()
    return torch.stack(found)


def _nothing(module: Any, given: Any, value: Any) -> Any:
    return (torch.zeros_like(value[0]), *value[1:]) if isinstance(value, tuple) else torch.zeros_like(value)


def _written(columns: slice, other: Tensor | float) -> Callable[..., Any]:
    def hook(module: Any, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        value = given[0].clone()
        value[..., columns] = other
        return (value, *given[1:])

    return hook


BENCHMARK = Benchmark(
    "interventions",
    "Interventions",
    "A prompt of 16 random tokens, read at its last position: every branch removed by itself, and all together; every "
    "head; and every head exchanged for that of another prompt, its effect straight to the logits and by all ways. "
    "Floor: one forward pass, so that the column / floor is the multiple of it. Rivals: hooks on the model's own "
    "modules, a whole forward pass for each, which is also the oracle, in float64; and TransformerLens, which removes "
    "and exchanges heads one by one too, in a process of its own environment that times itself.",
    cases,
)
