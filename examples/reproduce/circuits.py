"""Which ranking finds the components that a model needs, and where does the frozen one lose?

    python examples/reproduce/circuits.py                                # the bundled GPT-2, sequences alone: seconds
    python examples/reproduce/circuits.py --model FOLDER --prompts 200   # SmolLM2-135M: about 50 minutes of one core

The paper reads off paths and components what a model does, and its reviewers asked how that compares with attribution
patching. Here components (an attention or an MLP at a position) are ranked on pairs of prompts, by the change that each
is told to make to the difference of two logits when it takes the value that it has on the other prompt:

  frozen      slope with gates, norms and attention patterns held (`jetgraph.Freeze`)
  half        the same, each factor of a product held for one half (LRP's rule, `jetgraph.Freeze(halves=True)`)
  order 1     the gradient: attribution patching, whose edges are EAP's
  IG          the mean gradient at 5 steps between the two prompts' embeddings (EAP-IG's inputs)
  patching    the change measured, one forward pass for each component: on few prompts
  influence   that of the attribution graph (`jetgraph.attribute`), which knows nothing of the other prompt

At each size the first so many components keep their values, all others take the other prompt's, everything after them
is computed anew, and faithfulness is (value − that of none) / (that of all − that of none): Σ over prompts of both,
with 95 % bootstrap intervals over prompts. CPR is the area under its curve, CMD that between it and 1. `minus_frozen`
is the difference from the frozen ranking on the same prompts. Prompts: a name that is said once of two (indirect
object), capitals (facts), eight words that come again (induction). Spectra are of all prompts, rankings of the first.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from experiment import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    RED,
    Row,
    command_line,
    estimate,
    opened,
    run,
    write_figure,
    write_table,
)
from matplotlib.figure import Figure
from pairs import Pair
from tasks import Prompt, tasks
from torch import Tensor
from tqdm import tqdm

import jetgraph as jg
from jetgraph.applications.subject import subject

SIZES = (0.01, 0.03, 0.1, 0.25)
STEPS = 5
COLOURS = {
    "frozen": BLUE, "half": GREEN, "order 1": ORANGE, "IG": RED, "patching": "black", "influence": GREY,
}  # fmt: skip


def rankings(pair: Pair, patching: bool) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Scores [site, position] by method, and the seconds of the processor that each took."""
    methods: dict[str, Callable[[], Tensor]] = {
        "frozen": lambda: pair.linear("frozen"),
        "half": lambda: pair.linear("half"),
        "order 1": lambda: pair.gradient([1.0]),
        "IG": lambda: pair.gradient([(step + 1) / STEPS for step in range(STEPS)]),
        "influence": pair.influence,
    }
    methods |= {"patching": pair.patched} if patching else {}
    scores, seconds = {}, {}
    for name, method in methods.items():
        start = time.process_time()
        scores[name], seconds[name] = method(), time.process_time() - start
    return scores, seconds


def curves(pair: Pair, scores: Mapping[str, Tensor]) -> tuple[float, float, dict[str, list[float]]]:
    """The quantity with none, with all, and by method at each of SIZES."""
    kept = [torch.zeros_like(scores["frozen"], dtype=torch.bool), torch.ones_like(scores["frozen"], dtype=torch.bool)]
    for score in scores.values():
        order = score.abs().flatten().argsort(descending=True)
        for size in SIZES:
            chosen = torch.zeros(score.numel(), dtype=torch.bool)
            chosen[order[: max(1, round(size * score.numel()))]] = True
            kept.append(chosen.view_as(score))
    none, every, *values = pair.circuits(torch.stack(kept)).tolist()
    number = len(SIZES)
    return none, every, {name: values[at * number : (at + 1) * number] for at, name in enumerate(scores)}


def summed(task: str, found: Sequence[Any], seed: int) -> list[Row]:
    """Faithfulness by method and size, with what it has over the frozen ranking on the same prompts."""
    rows: list[Row] = []
    for name in COLOURS:
        some = [one for one in found if name in one[2]]
        if not some:
            continue
        none, span = (np.array([f(one) for one in some]) for f in (lambda one: one[0], lambda one: one[1] - one[0]))
        values, frozen = (np.array([one[2][which] for one in some]) - none[:, None] for which in (name, "frozen"))
        ends = np.array((0.0, *SIZES, 1.0))
        whole, base = (np.column_stack([0 * span, each, span]) for each in (values, frozen))
        mean = whole.sum(0) / span.sum()
        area, own = np.trapezoid(whole, ends, axis=1), np.trapezoid(base, ends, axis=1)
        common = {"task": task, "ranking": name, "prompts": len(some)}
        for at, size in enumerate(SIZES):
            columns = estimate(values[:, at], span, seed).columns("faithfulness")
            columns |= estimate(values[:, at] - frozen[:, at], span, seed).columns("minus_frozen")
            rows.append({**common, "size": f"{size:g}", **columns, "CMD": "", "seconds": ""})
        columns = estimate(area, span, seed).columns("faithfulness")
        columns |= estimate(area - own, span, seed).columns("minus_frozen")
        seconds = float(np.mean([one[3][name] for one in some]))
        rows.append(
            {**common, "size": "CPR", **columns, "CMD": float(np.trapezoid(abs(1 - mean), ends)), "seconds": seconds}
        )
    return rows


def draw(rows: Sequence[Row]) -> Figure:
    """Curves of faithfulness, a panel for each task."""
    names = list(dict.fromkeys(row["task"] for row in rows))
    figure = Figure(figsize=(4.6 * len(names), 4), layout="constrained")
    for axes, task in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for name, colour in COLOURS.items():
            some = [row for row in rows if row["task"] == task and row["ranking"] == name and row["size"] != "CPR"]
            if not some:
                continue
            sizes = [float(row["size"]) for row in some]
            axes.plot(
                sizes, [row["faithfulness"] for row in some], "o-", color=colour, label=f"{name} ({some[0]['prompts']})"
            )
            axes.fill_between(
                sizes,
                *([row[f"faithfulness_{end}"] for row in some] for end in ("low", "high")),
                color=colour,
                alpha=0.12,
            )
        axes.axhline(1, color="black", linewidth=0.6)
        axes.set_xscale("log")
        axes.set_title(task)
        axes.set_xlabel("share of the components kept")
        axes.legend(fontsize=7, title="ranking (prompts)")
    figure.axes[0].set_ylabel("faithfulness")
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the experiment."""
    parser = command_line(__doc__ or "", "circuits", "a causal language model (default: the bundled GPT-2)")
    parser.add_argument("--prompts", type=int, default=24, help="of a task that are ranked (default: 24)")
    parser.add_argument("--patched", type=int, default=2, help="of these that are patched one by one (default: 2)")
    options = parser.parse_args(arguments)
    loaded, model, tokenizer = opened(options.model)
    model.requires_grad_(False)
    graph = subject(loaded).graph
    name = next(iter(graph.traced.input_shapes))
    several = (
        {"indirect": 4, "facts": 4, "induction": 4}
        if options.quick
        else {"indirect": 200, "facts": 50, "induction": 50}
    )
    rows: list[Row] = []
    spectra: list[Row] = []
    for task, prompts in tasks(tokenizer, **several, seed=options.seed).items():
        hops = [spectrum(graph, prompt) for prompt in tqdm(prompts, desc=f"{task}: spectra", disable=None)]
        spectra += by_hops(task, hops, options.seed)
        found = []
        for number, prompt in enumerate(tqdm(prompts[: options.prompts], desc=task, disable=None)):
            pair = Pair(graph, name, prompt)
            scores, seconds = rankings(pair, number < options.patched)
            found.append((*curves(pair, scores), seconds))
        rows += summed(task, found, options.seed)
        write_table(options.output / "circuits.csv", rows)
        write_table(options.output / "spectra.csv", spectra)
        write_figure(options.output / "circuits.png", draw(rows))


def spectrum(graph: jg.ResidualGraph, prompt: Prompt) -> dict[str, float]:
    """The quantity by how many attention sites a path passes."""
    found = jg.spectrum(graph, prompt.ids, by="attn", target=(prompt.answer, prompt.wrong))
    return {str(label): float(value) for label, value in zip(found.counts, found.values[:, 0, 0], strict=True)}


def by_hops(task: str, found: Sequence[Mapping[str, float]], seed: int) -> list[Row]:
    """Means over prompts by number of attention sites, and how many prompts are answered rightly."""
    rows: list[Row] = [
        {"task": task, "attention sites": label, "prompts": len(found)}
        | estimate([one[label] for one in found], seed=seed).columns("logit difference")
        for label in list(found[0])[:10]
    ]
    totals = [sum(one.values()) for one in found]
    right = float(np.mean(np.array(totals) > 0))
    print(f"{task}: {len(found)} prompts, {right:.0%} with the right answer before the wrong one")
    return [*rows, {**rows[0], "attention sites": "all"} | estimate(totals, seed=seed).columns("logit difference")]


if __name__ == "__main__":
    sys.exit(run(main))
