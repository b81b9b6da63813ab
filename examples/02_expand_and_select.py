"""Expand a model into terms, count them, and select among 2^252 of them without listing any.

python examples/02_expand_and_select.py
"""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM

import jetgraph as jg
from jetgraph.algebra import JoinStep, Outline, Site, Source
from jetgraph.models import bundled


def outline_of(layers: int) -> Outline:
    """A decoder-only transformer as expansion sees it: names and joins, no tensor."""
    joins = tuple(
        JoinStep(f"layers.{i}.{kind}", "identity", False, (Site(f"L{i}.{kind}", "", kind, "branch", False, False),))
        for i in range(layers)
        for kind in ("attn", "mlp")
    )
    return Outline((Source("embed", "", "embed"),), joins, Site("logits", "", "logits", "decoder", False, False))


def main() -> None:
    """Count, select, weigh."""
    model = AutoModelForCausalLM.from_pretrained(bundled("gpt2")).eval()
    graph = jg.trace(model, input_ids=torch.arange(1, 7)[None])
    expansion = jg.expand(graph, order=1)
    print(expansion)
    print("\nterms by (sites passed, order), the first few:", dict(list(expansion.counts().items())[:4]))

    for pattern in ("embed > *.mlp > logits", "embed > ** > L3.mlp~1 > logits^0", "pos > L0.attn > ** > logits"):
        selection = jg.select(expansion, pattern)
        print(f"\n{pattern}: {selection.count()} paths, such as {selection[0]}")
    weights = ", ".join(map(str, expansion.weights("embed > L0.mlp~1 > logits^0")))
    print("\nweights along embed > L0.mlp~1 > logits^0:", weights)

    large = jg.expand(outline_of(126), order=0)
    print(f"\n126 layers at order 0: {large.count()} terms = 2^252: {large.count() == 2**252}")
    selection = jg.select(large, "embed > ** > L125.mlp > logits")
    print(f"through the last MLP: {selection.count()}; number 10^70 of these passes {selection[10**70].length} sites")


if __name__ == "__main__":
    main()
