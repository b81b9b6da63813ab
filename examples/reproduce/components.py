"""What do single MLPs and attention heads say, and does the model lose it when they are removed?

    python examples/reproduce/components.py                                              # about 1 minute
    python examples/reproduce/components.py --model gpt2 --text prose.txt --windows 8

The paper shows single MLPs and heads whose n-grams have a role ("-ing", "-ly", "than"), picked by hand, and how the
logit of such a token changes when the component is removed: by -0.58 to -9.73. Here all components are scanned, and the
roles are chosen by a number.

1. Scan, without data. The table P(b | a) of the path `embed > component > logits`, over the vocabulary, gives
     mass        of a class of tokens b: suffix (letters that continue a word), word (a space, then lower-case letters),
                 capital, punctuation, white space, digits; mean over contexts a
     lift        log2 of that mass over its mean over all components; the role is the class with the largest lift
     divergence  KL of the component's mean next-token distribution from the mean of all components, nats
2. Removal, on windows of 64 tokens of held-out text. A position t carries one of the component's n-grams where the
   token that really follows is among the 10 that its table ranks first, after x_t for an MLP (bi-gram), and after
   x_(t-1) x_t for a head (skip-tri-gram). Given is the change of the centred logit of the token that follows:
     direct      with the component's term taken off the output, the final norm held
     through     with the component's output set to zero in the network, and everything after it computed anew
   mean over positions with its n-grams (own), over those with n-grams of other components but none of its own (other),
   and over all the rest; over positions where a token of its role follows, and where none does (role, no_role);
   95 % bootstrap intervals over windows.
The picture: on the left the lift of each class by component (the component that is strongest in a class is framed), in
the middle and on the right the two changes of the logit: on its n-grams, on those of others, and on the rest. If the
table tells what a component does, its own n-grams lie to the left of the others'.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from corpora import docstrings, token_row
from experiment import (
    BLUE,
    GREY,
    ORANGE,
    Estimate,
    Row,
    bars,
    command_line,
    estimate,
    opened,
    run,
    write_figure,
    write_table,
)
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor
from train_demo_model import Document

import jetgraph as jg
from jetgraph.applications.distances import centred
from jetgraph.applications.readout import token_text
from jetgraph.applications.subject import subject
from jetgraph.files.writing import read_text

CLASSES = ("suffix", "word", "capital", "punctuation", "white space", "digits")
WINDOW, RANKED, SCANNED = 64, 10, 1024
"""Tokens of a window; how many tokens a table's n-grams are, per context; how many contexts are scanned at most."""


def token_class(text: str) -> str | None:
    """The class of a token, by its text."""
    bare = text.strip()
    if not bare:
        return "white space" if text else None
    if bare.isalpha() and bare[0].isupper():
        return "capital"
    if bare.isalpha():
        return "word" if text.startswith(" ") else "suffix" if len(bare) > 1 else None
    if bare.isdigit():
        return "digits"
    return None if any(character.isalnum() for character in bare) else "punctuation"


def components(graph: jg.ResidualGraph) -> dict[str, str]:
    """Aliases of all MLPs and heads of a split graph, and their kinds."""
    sites = (site for site in graph.outline.sites() if site.role == "branch")
    return {site.alias: "head" if ".head" in site.alias else site.kind for site in sites}


def scan(
    graph: jg.ResidualGraph, aliases: Sequence[str], tokenizer: Any, number: int
) -> tuple[np.ndarray, dict[str, str]]:
    """Mean next-token distribution of each component's table, [components, vocabulary], and its top bi-grams."""
    means, said = [], {}
    for alias in aliases:
        table = jg.PathTable(graph, f"embed > {alias} > logits", tokenizer=tokenizer)
        contexts = torch.linspace(0, table.tokens - 1, min(number, table.tokens)).round().long()[:, None]
        total, best = torch.zeros(table.vocabulary, dtype=torch.float64), []
        for rows, logits in table.chunks(contexts):
            p = logits.double().softmax(-1)
            total += p.sum(0)
            top = p.max(-1)
            best += zip(top.values.tolist(), rows[:, 0].tolist(), top.indices.tolist(), strict=True)
        means.append((total / len(contexts)).numpy())
        pairs = [f"{token_text(tokenizer, a)} → {token_text(tokenizer, b)}" for _, a, b in sorted(best)[:-6:-1]]
        said[alias] = ", ".join(pairs)
    return np.stack(means), said


def carried(graph: jg.ResidualGraph, alias: str, kind: str, tokens: Tensor) -> Tensor:
    """Where the token that follows is one of the component's n-grams, bool [windows, positions from 1 on]."""
    table = jg.PathTable(graph, f"embed > {alias} > logits", n=3 if kind == "head" else 2)
    before = tokens[:, :-2], tokens[:, 1:-1]
    contexts = torch.stack(before if kind == "head" else before[1:], dim=-1).flatten(0, 1)
    follows, hits, done = tokens[:, 2:].flatten(), [], 0
    for rows, logits in table.chunks(contexts):
        own = logits.gather(-1, follows[done : done + len(rows), None])
        hits.append((logits > own).sum(-1) < RANKED)
        done += len(rows)
    return torch.cat(hits).view(tokens.shape[0], -1)


def removals(graph: jg.ResidualGraph, aliases: Sequence[str], tokens: Tensor) -> Mapping[str, tuple[Tensor, Tensor]]:
    """(direct, through) change of the logit of the token that follows, each [windows, positions from 1 on]."""
    found: dict[str, list[tuple[Tensor, Tensor]]] = {alias: [] for alias in aliases}
    for part in tokens.split(8):
        ablation = jg.ablate(
            graph, [f"{alias} > logits" for alias in aliases], part[:, :-1], position=None, split="heads"
        )
        follows = part[:, 1:, None]
        base = centred(ablation.output).gather(-1, follows)
        for path, outputs in ablation.outputs.items():
            alias = path.split(" > ")[0]
            if alias in found and outputs.through is not None:
                logits = (outputs.direct, outputs.through)
                changes = [(centred(each).gather(-1, follows) - base)[:, 1:, 0] for each in logits]
                found[alias].append((changes[0], changes[1]))
    return {
        alias: (torch.cat([a for a, _ in parts]), torch.cat([b for _, b in parts])) for alias, parts in found.items()
    }


def mean_change(change: Tensor, where: Tensor, seed: int) -> Estimate:
    """Mean change at the chosen positions, with its interval over windows."""
    return estimate((change * where).sum(-1).numpy(), where.sum(-1).numpy(), seed)


def draw(rows: Sequence[Row]) -> Figure:
    """Lift by class, and the change of the logit by component."""
    figure = Figure(figsize=(14, 1.8 + 0.26 * len(rows)), layout="constrained")
    left, middle, right = figure.subplots(1, 3, sharey=True, width_ratios=[1, 1.2, 1.2])
    lifts = np.array([[row[f"lift_{name}"] for name in CLASSES] for row in rows])
    limit, places = float(np.abs(lifts).max()), np.arange(len(rows))
    image = left.imshow(lifts, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
    for column, row in enumerate(lifts.argmax(axis=0)):
        left.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, linewidth=1.8))
    left.set_xticks(range(len(CLASSES)), CLASSES, rotation=40, ha="right")
    left.set_yticks(places, [str(row["component"]) for row in rows], fontsize=8)
    left.set_title("log2 (mass of a class in the table / mean)", fontsize=10)
    figure.colorbar(image, ax=left, shrink=0.6)
    for axes, name, title in (
        (middle, "direct", "direct: its term taken off the output"),
        (right, "through", "through the network: set to zero"),
    ):
        for shift, where, colour, label in (
            (-0.25, "own", BLUE, "where its n-grams occur"),
            (0, "other", ORANGE, "where others' n-grams occur, not its own"),
            (0.25, "rest", GREY, "elsewhere"),
        ):
            centre, error = bars(rows, f"{name}_{where}")
            axes.errorbar(centre, places + shift, xerr=error, fmt="o", color=colour, label=label, markersize=4)
        axes.set_xscale("symlog", linthresh=0.1)
        axes.set_xticks([-10, -1, -0.1, 0, 0.1], ["−10", "−1", "−0.1", "0", "0.1"])
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set_xlabel("change of the logit of the token that follows\n(linear within ±0.1, else logarithmic)")
        axes.set_title(title, fontsize=10)
        axes.grid(alpha=0.3)
    figure.legend(*middle.get_legend_handles_labels(), loc="outside lower right", ncols=3)
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = command_line(__doc__ or "", "components", "a causal language model (default: the bundled GPT-2)")
    parser.add_argument("--text", type=Path, metavar="FILE", help="a text file (default: held-out docstrings)")
    parser.add_argument("--windows", type=int, default=96, help=f"of {WINDOW} tokens each (default: 96)")
    options = parser.parse_args(arguments)
    loaded, _, tokenizer = opened(options.model)
    given = (Document(options.text.stem, (read_text(options.text),)),) if options.text else None
    texts = given or docstrings(options.quick)[1]
    tokens = token_row(tokenizer, texts)
    if len(tokens) <= WINDOW:
        raise ValueError(f"the text has {len(tokens)} tokens, and a window takes {WINDOW + 1}: give a longer one")
    tokens = tokens[: len(tokens) // (WINDOW + 1) * (WINDOW + 1)].view(-1, WINDOW + 1)
    chosen = np.linspace(0, len(tokens) - 1, min(2 if options.quick else options.windows, len(tokens)))
    tokens = tokens[chosen.astype(int)]
    graph = subject(loaded).graph
    kinds = components(graph.split("heads"))
    means, said = scan(graph, list(kinds), tokenizer, 64 if options.quick else SCANNED)
    classes = np.array([str(token_class(tokenizer.decode([b]))) for b in range(means.shape[1])])
    masses = np.stack([means[:, classes == name].sum(axis=1) for name in CLASSES], axis=1)
    lifts = np.log2(masses / masses.mean(axis=0))
    divergences = (means * np.log(means / means.mean(axis=0))).sum(axis=1)
    changes = removals(graph, list(kinds), tokens)
    rows: list[Row] = []
    carrying = {alias: carried(graph, alias, kind, tokens) for alias, kind in kinds.items()}
    for i, (alias, own) in enumerate(carrying.items()):
        other = torch.stack([where for name, where in carrying.items() if name != alias]).any(0) & ~own
        role = CLASSES[int(lifts[i].argmax())]
        in_role = torch.from_numpy(classes == role)[tokens[:, 2:]]
        row: dict[str, Any] = {
            "component": alias,
            "role": role,
            "divergence": float(divergences[i]),
            **{f"mass_{name}": float(masses[i, j]) for j, name in enumerate(CLASSES)},
            **{f"lift_{name}": float(lifts[i, j]) for j, name in enumerate(CLASSES)},
        }
        for name, change in zip(("direct", "through"), changes[alias], strict=True):
            places = {"own": own, "other": other, "rest": ~own & ~other, "role": in_role, "no_role": ~in_role}
            for place, where in places.items():
                row |= mean_change(change, where, options.seed).columns(f"{name}_{place}")
        rows.append({**row, "positions": int(own.sum()), "bigrams": said[alias]})
    write_table(options.output / "components.csv", rows)
    for kind, one, two in (("direct", "own", "other"), ("through", "own", "other"), ("through", "role", "no_role")):
        apart = sum(row[f"{kind}_{one}_high"] < row[f"{kind}_{two}_low"] for row in rows)
        print(f"{kind}: {apart} of {len(rows)} components lose more on {one} than on {two}, with intervals apart")
    write_figure(options.output / "components.png", draw(rows))


if __name__ == "__main__":
    sys.exit(run(main))
